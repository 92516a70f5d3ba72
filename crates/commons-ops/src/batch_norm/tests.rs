//! Against composed graphs, finite differences and themselves on other numbers of threads.

use super::*;
use crate::testing::{agree, distance, mix, randn, var};
use crate::{Var, backward};

fn reference(
    t: &[Tensor],
    residual: bool,
    relu: bool,
) -> Result<(Tensor, Tensor, Tensor)> {
    let dims = check("reference", &t[0], &[])?;
    composed(&dims, &t[0], &t[1], &t[2], residual.then(|| &t[3]), 1e-3, relu)
}

#[test]
fn batch_norm_matches_the_composed_graph() {
    for (at, shape) in [&[3, 5, 4, 7][..], &[9, 6], &[1, 3, 50], &[4, 2, 3, 3, 2]].iter().enumerate() {
        let at = at as u64;
        let c = shape[1];
        let inputs = [randn(at, shape), randn(10 + at, &[c]), randn(20 + at, &[c]), randn(30 + at, shape)];
        let [x, gain, bias, residual] = &inputs;
        let x = &(x * 2.0).unwrap().affine(1.0, 3.0).unwrap();
        let plain = |t: &[Tensor]| Ok(batch_norm(&t[0], &t[1], &t[2], 1e-3)?.0);
        agree(&[x, gain, bias], plain, |t| Ok(reference(t, false, false)?.0), 1e-4);
        let relu = |t: &[Tensor]| Ok(batch_norm_relu(&t[0], &t[1], &t[2], None, 1e-3)?.0);
        agree(&[x, gain, bias], relu, |t| Ok(reference(t, false, true)?.0), 1e-4);
        let whole =
            |t: &[Tensor]| Ok(batch_norm_relu(&t[0], &t[1], &t[2], Some(&t[3]), 1e-3)?.0);
        agree(&[x, gain, bias, residual], whole, |t| Ok(reference(t, true, true)?.0), 1e-4);
        // The same code in double precision.
        let double = |t: &[Tensor]| {
            let t: Vec<_> = t.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_>>()?;
            Ok(batch_norm_relu(&t[0], &t[1], &t[2], Some(&t[3]), 1e-3)?.0)
        };
        agree(&[x, gain, bias, residual], double, |t| Ok(reference(t, true, true)?.0), 1e-6);
        let (_, mean, variance) = batch_norm(x, gain, bias, 1e-3).unwrap();
        let (_, m, v) = reference(&[x.clone(), gain.clone(), bias.clone()], false, false).unwrap();
        assert!(distance(&mean, &m) < 1e-6 && distance(&variance, &v) < 1e-5);
    }
}

#[test]
fn eval_uses_the_given_statistics() {
    let (x, gain, bias) = (randn(1, &[3, 4, 5]), randn(2, &[4]), randn(3, &[4]));
    let (mean, variance) = (randn(4, &[4]), randn(5, &[4]).sqr().unwrap());
    let dims = check("reference", &x, &[]).unwrap();
    agree(
        &[&x, &gain, &bias],
        |t| batch_norm_eval(&t[0], &t[1], &t[2], &mean, &variance, 1e-3),
        |t| {
            let column = |t: &Tensor| dims.column(&t.to_dtype(DType::F64)?);
            dims.affine(&t[0], &column(&mean)?, &column(&variance)?, &t[1], &t[2], 1e-3)
        },
        1e-5,
    );
    // Feeding back the batch's own statistics gives the training result.
    let (y, mean, variance) = batch_norm(&x, &gain, &bias, 1e-3).unwrap();
    let again = batch_norm_eval(&x, &gain, &bias, &mean, &variance, 1e-3).unwrap();
    assert!(distance(&again, &y) < 1e-6);
}

#[test]
fn group_norm_matches_the_composed_graph() {
    for (shape, groups) in [(&[2, 6, 5, 3][..], 3), (&[3, 4], 2), (&[2, 4, 9], 4), (&[2, 6, 35], 1)] {
        let c = shape[1];
        let (x, gain, bias) = (randn(1, shape), randn(2, &[c]), randn(3, &[c]));
        agree(
            &[&x, &gain, &bias],
            |t| group_norm(&t[0], groups, &t[1], &t[2], 1e-3),
            |t| {
                let dims = check("reference", &t[0], &[])?;
                let op = GroupNorm { dims, groups, eps: 1e-3 };
                op.composed(&t[0], &t[1], &t[2])?.reshape(shape)
            },
            1e-4,
        );
    }
}

#[test]
fn strided_input_used_twice() {
    let x = var(1, &[5, 4, 3]);
    let (gain, bias) = (var(2, &[4]), var(3, &[4]));
    let t = x.transpose(0, 2).unwrap();
    let y = batch_norm_relu(&t, &gain, &bias, Some(&t), 1e-3).unwrap().0;
    let grads = backward(&mix(&y).unwrap()).unwrap();
    let plain = Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
    let (gain, bias) = [&gain, &bias].map(|v| v.to_dtype(DType::F64).unwrap()).into();
    let t = plain.transpose(0, 2).unwrap().contiguous().unwrap();
    let want = reference(&[t.clone(), gain, bias, t], true, true).unwrap().0;
    assert!(distance(&y, &want) < 1e-5);
    let want = mix(&want).unwrap().backward().unwrap();
    assert!(distance(grads.get(&x).unwrap(), want.get(&plain).unwrap()) < 1e-4);
}

#[test]
fn threads_do_not_matter_and_offsets_do_not_hurt() {
    let x = (randn(1, &[8, 24, 20, 20]) + 1000.0).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let x = Var::from_tensor(&x).unwrap();
            let (gain, bias) = (var(2, &[24]), var(3, &[24]));
            let y = batch_norm_relu(&x, &gain, &bias, None, 1e-5).unwrap().0;
            let z = group_norm(&y, 3, &gain, &bias, 1e-5).unwrap();
            let grads = backward(&mix(&z).unwrap()).unwrap();
            [&z, grads.get(&x).unwrap(), grads.get(&gain).unwrap()]
                .map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(4));
    // A large mean must not swamp the variance.
    let ones = Tensor::ones(24, DType::F32, x.device()).unwrap();
    let (_, _, variance) = batch_norm(&x, &ones, &ones, 1e-5).unwrap();
    for v in variance.to_vec1::<f32>().unwrap() {
        assert!((v - 1.0).abs() < 0.1, "{v}");
    }
}

#[test]
fn misuse_is_explained() {
    let x = randn(1, &[2, 3, 4]);
    let (three, four) = (randn(2, &[3]), randn(3, &[4]));
    let message = batch_norm(&x, &four, &three, 1e-5).unwrap_err().to_string();
    assert!(message.contains("needs vectors [3]"), "{message}");
    assert!(batch_norm_relu(&x, &three, &three, Some(&three), 1e-5).is_err());
    assert!(group_norm(&x, 2, &three, &three, 1e-5).is_err());
    assert!(batch_norm(&randn(1, &[3]), &three, &three, 1e-5).is_err());
}
