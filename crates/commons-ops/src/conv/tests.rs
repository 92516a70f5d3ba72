use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::backward;

/// Pseudo-random values in (-1, 1) that differ between call sites.
fn values(shape: &[usize], salt: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let data: Vec<f64> = (0..n as u64)
        .map(|i| {
            let h = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(salt * 0x1234_5678_9ABC);
            let h = (h ^ (h >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((h >> 11) as f64 / (1u64 << 53) as f64) * 2.0 - 1.0
        })
        .collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Direct translation of the definition, both directions.
fn naive(x: &Tensor, w: &Tensor, b: Option<&Tensor>, o: &ConvOptions<2>, t: bool) -> Tensor {
    let (n, _, h, wd) = x.dims4().unwrap();
    let (w0, w1, kh, kw) = w.dims4().unwrap();
    let c = if t { w1 * o.groups } else { w0 };
    let out = |i: usize, k: usize, a: usize| {
        let span = o.dilation[a] * (k - 1) + 1;
        if t {
            (i - 1) * o.stride[a] + span + o.output_padding[a] - 2 * o.padding[a]
        } else {
            (i + 2 * o.padding[a] - span) / o.stride[a] + 1
        }
    };
    let (oh, ow) = (out(h, kh, 0), out(wd, kw, 1));
    let (xs, ws) = (flat(x), flat(w));
    let mut y = vec![0.0; n * c * oh * ow];
    let (small, big) = (w0 / o.groups, w1);
    let (sh, sw) = if t { (h, wd) } else { (oh, ow) };
    let (bh, bw) = if t { (oh, ow) } else { (h, wd) };
    for i in 0..n {
        for s in 0..w0 {
            for q in 0..big {
                let bc = (s / small) * big + q;
                for (r, cl) in (0..sh).flat_map(|r| (0..sw).map(move |c| (r, c))) {
                    for (a, e) in (0..kh).flat_map(|a| (0..kw).map(move |e| (a, e))) {
                        let br = r * o.stride[0] + a * o.dilation[0];
                        let bcol = cl * o.stride[1] + e * o.dilation[1];
                        let (Some(br), Some(bcol)) =
                            (br.checked_sub(o.padding[0]), bcol.checked_sub(o.padding[1]))
                        else {
                            continue;
                        };
                        if br >= bh || bcol >= bw {
                            continue;
                        }
                        let small_at = ((i * w0 + s) * sh + r) * sw + cl;
                        let big_at = ((i * big * o.groups + bc) * bh + br) * bw + bcol;
                        let weight = ws[((s * big + q) * kh + a) * kw + e];
                        if t {
                            y[big_at] += xs[small_at] * weight;
                        } else {
                            y[small_at] += xs[big_at] * weight;
                        }
                    }
                }
            }
        }
    }
    if let Some(b) = b {
        let b = flat(b);
        for (at, v) in y.iter_mut().enumerate() {
            *v += b[at / (oh * ow) % c];
        }
    }
    Tensor::from_vec(y, (n, c, oh, ow), &Device::Cpu).unwrap()
}

struct Case {
    x: [usize; 4],
    w: [usize; 4],
    o: ConvOptions<2>,
}

fn case(x: [usize; 4], w: [usize; 4], s: [usize; 2], p: [usize; 2], d: [usize; 2], g: usize) -> Case {
    let o = ConvOptions { stride: s, padding: p, dilation: d, groups: g, output_padding: [0, 0] };
    Case { x, w, o }
}

/// Convolutions; the weight is `[out, in/groups, kh, kw]`.
fn cases() -> Vec<Case> {
    vec![
        case([2, 3, 5, 7], [4, 3, 3, 3], [1, 1], [1, 1], [1, 1], 1),
        case([1, 1, 1, 1], [1, 1, 1, 1], [1, 1], [0, 0], [1, 1], 1),
        case([3, 4, 9, 8], [6, 2, 3, 2], [2, 3], [1, 0], [1, 1], 2),
        case([2, 5, 11, 6], [5, 1, 3, 3], [1, 1], [1, 1], [1, 1], 5),
        case([2, 6, 10, 9], [12, 1, 5, 3], [2, 2], [2, 1], [1, 1], 6),
        case([1, 2, 13, 12], [3, 2, 3, 3], [1, 2], [2, 3], [2, 3], 1),
        case([2, 2, 6, 6], [11, 2, 1, 1], [1, 1], [0, 0], [1, 1], 1),
        case([2, 3, 7, 7], [2, 3, 1, 1], [2, 2], [0, 0], [1, 1], 1),
        case([2, 3, 4, 4], [2, 3, 1, 1], [1, 1], [2, 1], [1, 1], 1),
        case([1, 3, 8, 8], [2, 3, 2, 2], [3, 4], [0, 0], [1, 1], 1),
        case([9, 2, 4, 4], [3, 2, 3, 3], [1, 1], [1, 1], [1, 1], 1),
        case([1, 3, 20, 17], [17, 3, 7, 7], [2, 2], [3, 3], [1, 1], 1),
        case([1, 2, 3, 40], [3, 2, 3, 5], [1, 1], [0, 4], [1, 2], 1),
    ]
}

fn assert_close(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{name}");
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "{name}: element {i}: {g} instead of {w}");
    }
}

/// Weighted sum, so that every output element gets a different gradient.
fn objective(y: &Tensor) -> Tensor {
    let weights = values(y.dims(), 77).to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

/// Checks values against the definition, `f64` gradients against central differences of the
/// definition (exact up to rounding, since the op is linear in each input) and `f32` against
/// `f64`.
fn check(c: &Case, transposed: bool) {
    let name = format!("{:?} {:?} {:?} transposed {transposed}", c.x, c.w, c.o);
    let (x, w) = (values(&c.x, 1), values(&c.w, 2));
    let out = if transposed { c.w[1] * c.o.groups } else { c.w[0] };
    let b = values(&[out], 3);
    let run = |x: &Tensor, w: &Tensor, b: &Tensor| {
        if transposed { conv_transpose2d(x, w, Some(b), &c.o) } else { conv2d(x, w, Some(b), &c.o) }
            .unwrap()
    };
    let want = naive(&x, &w, Some(&b), &c.o, transposed);
    assert_close(&name, &run(&x, &w, &b), &want, 1e-13);

    let inputs = [&x, &w, &b].map(|t| Var::from_tensor(t).unwrap());
    let grads = backward(&objective(&run(&inputs[0], &inputs[1], &inputs[2]))).unwrap();
    let singles =
        [&x, &w, &b].map(|t| Var::from_tensor(&t.to_dtype(DType::F32).unwrap()).unwrap());
    let y = run(&singles[0], &singles[1], &singles[2]);
    assert_close(&name, &y, &want, 2e-5);
    let single_grads = backward(&objective(&y)).unwrap();
    for at in 0..3 {
        let grad = grads.get(&inputs[at]).unwrap();
        let single = single_grads.get(&singles[at]).unwrap();
        assert_close(&format!("{name} f32 gradient {at}"), single, grad, 3e-5);
        let values = flat(&inputs[at]);
        let stride = (values.len() / 23).max(1);
        for element in (0..values.len()).step_by(stride) {
            let shifted = |by: f64| {
                let mut v = values.clone();
                v[element] += by;
                let t = Tensor::from_vec(v, inputs[at].shape(), &Device::Cpu).unwrap();
                let mut all = [&x, &w, &b];
                all[at] = &t;
                let y = naive(all[0], all[1], Some(all[2]), &c.o, transposed);
                objective(&y).to_scalar::<f64>().unwrap()
            };
            let slope = (shifted(0.5) - shifted(-0.5)) / 1.0;
            let got = flat(grad)[element];
            assert!((slope - got).abs() < 1e-9, "{name} gradient {at}[{element}]: {got} {slope}");
        }
    }
}

#[test]
fn conv2d_matches_the_definition() {
    for c in cases() {
        check(&c, false);
    }
}

#[test]
fn conv_transpose2d_matches_the_definition() {
    for mut c in cases() {
        // The weight's first axis is the input of a transposed convolution.
        c.x[1] = c.w[0];
        for extra in [0, 1] {
            c.o.output_padding = [
                if c.o.stride[0] > 1 { extra } else { 0 },
                if c.o.stride[1] > 1 { extra } else { 0 },
            ];
            let fits = |a: usize, i: usize, k: usize| {
                (i - 1) * c.o.stride[a] + c.o.dilation[a] * (k - 1) + 1 > 2 * c.o.padding[a]
            };
            if fits(0, c.x[2], c.w[2]) && fits(1, c.x[3], c.w[3]) {
                check(&c, true);
            }
        }
    }
}

#[test]
fn banded_and_grouped_panels_agree_with_the_definition() {
    // Too large for one panel, so it is cut into bands of rows; and a batch that shares panels.
    for (x, w, s) in [([1, 24, 130, 90], [9, 24, 3, 3], 1), ([2, 24, 131, 90], [5, 24, 3, 3], 2), ([40, 3, 5, 5], [4, 3, 3, 3], 1)] {
        let o = ConvOptions::<2>::padded(1).strided(s);
        let (xt, wt) = (values(&x, 1), values(&w, 2));
        let want = naive(&xt, &wt, None, &o, false);
        for dtype in [DType::F64, DType::F32] {
            let x = Var::from_tensor(&xt.to_dtype(dtype).unwrap()).unwrap();
            let w = Var::from_tensor(&wt.to_dtype(dtype).unwrap()).unwrap();
            let y = conv2d(&x, &w, None, &o).unwrap();
            assert_close("banded", &y, &want, 1e-5);
            let grads = backward(&objective(&y)).unwrap();
            let direction = values(wt.dims(), 9).to_dtype(dtype).unwrap();
            let along = (grads.get(&w).unwrap() * &direction).unwrap().sum_all().unwrap();
            // The op is linear in w: the derivative along a direction is the op itself.
            let slope = objective(&naive(&xt, &direction, None, &o, false));
            assert_close("weight gradient", &along, &slope, 2e-4);
            let direction = values(xt.dims(), 10).to_dtype(dtype).unwrap();
            let along = (grads.get(&x).unwrap() * &direction).unwrap().sum_all().unwrap();
            let slope = objective(&naive(&direction, &wt, None, &o, false));
            assert_close("input gradient", &along, &slope, 2e-4);
        }
    }
}

#[test]
fn one_dimensional_convolutions_are_two_dimensional_ones() {
    let (x, w, b) = (values(&[2, 4, 19], 1), values(&[6, 2, 3], 2), values(&[6], 3));
    let o = ConvOptions { stride: [2], padding: [2], dilation: [3], groups: 2, output_padding: [0] };
    let y = conv1d(&x, &w, Some(&b), &o).unwrap();
    let wide = ConvOptions { stride: [1, 2], padding: [0, 2], dilation: [1, 3], groups: 2, output_padding: [0, 0] };
    let want = naive(&x.unsqueeze(2).unwrap(), &w.unsqueeze(2).unwrap(), Some(&b), &wide, false);
    assert_close("conv1d", &y, &want.squeeze(2).unwrap(), 1e-13);

    // Vocoder-like upsampling, for which candle has no backward.
    let (x, w) = (values(&[2, 6, 9], 1), values(&[6, 3, 8], 2));
    let o = ConvOptions::<1> { padding: [2], ..Default::default() }.strided(4);
    let (xv, wv) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
    let y = conv_transpose1d(&xv, &wv, None, &o).unwrap();
    assert_eq!(y.dims(), [2, 3, 36]);
    assert_close("candle", &y, &x.conv_transpose1d(&w, 2, 0, 4, 1, 1).unwrap(), 1e-12);
    assert!(xv.conv_transpose1d(&wv, 2, 0, 4, 1, 1).unwrap().sum_all().unwrap().backward().is_err());
    let grads = backward(&objective(&y)).unwrap();
    let d = values(&[2, 6, 9], 5);
    let along = (grads.get(&xv).unwrap() * &d).unwrap().sum_all().unwrap();
    let slope = objective(&d.conv_transpose1d(&w, 2, 0, 4, 1, 1).unwrap());
    assert_close("input gradient", &along, &slope, 1e-12);
}

#[test]
fn strided_inputs_and_repeated_use() {
    let base = values(&[5, 3, 6, 2], 1);
    let v = Var::from_tensor(&base).unwrap();
    let x = v.permute((3, 1, 2, 0)).unwrap();
    let w = values(&[3, 3, 3, 3], 2);
    let w = Var::from_tensor(&w).unwrap();
    let wt = w.transpose(2, 3).unwrap();
    let o = ConvOptions::<2>::padded(1);
    // The same input and the same weight twice in one graph.
    let once = conv2d(&x, &wt, None, &o).unwrap();
    let twice = conv2d(&once, &wt, None, &o).unwrap();
    let y = (twice + &x).unwrap();
    let plain = x.contiguous().unwrap().detach();
    let wp = wt.contiguous().unwrap().detach();
    let want = naive(&naive(&plain, &wp, None, &o, false), &wp, None, &o, false);
    assert_close("strided", &y, &(want + &plain).unwrap(), 1e-12);
    let grads = backward(&objective(&y)).unwrap();
    let f = |w: &Tensor| {
        let w = w.transpose(2, 3).unwrap().contiguous().unwrap();
        let y = naive(&naive(&plain, &w, None, &o, false), &w, None, &o, false);
        objective(&(y + &plain).unwrap()).to_scalar::<f64>().unwrap()
    };
    let d = values(w.dims(), 4);
    let step = |e: f64| f(&(w.as_tensor() + (&d * e).unwrap()).unwrap().detach());
    let slope = (step(1e-4) - step(-1e-4)) / 2e-4;
    let along = flat(&(grads.get(&w).unwrap() * &d).unwrap()).iter().sum::<f64>();
    assert!((slope - along).abs() < 1e-5 * slope.abs().max(1.0), "{slope} {along}");
    assert!(grads.get(&v).is_some());
}

#[test]
fn results_do_not_depend_on_threads() {
    let x = values(&[16, 16, 20, 20], 1).to_dtype(DType::F32).unwrap();
    let w = values(&[24, 16, 3, 3], 2).to_dtype(DType::F32).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (x, w) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
            let y = conv2d(&x, &w, None, &ConvOptions::padded(1)).unwrap();
            let grads = backward(&objective(&y)).unwrap();
            [&y, grads.get(&x).unwrap(), grads.get(&w).unwrap()]
                .map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(4));
}

#[test]
fn half_precision_goes_through_single() {
    let x = values(&[1, 2, 5, 5], 1).to_dtype(DType::BF16).unwrap();
    let w = values(&[3, 2, 3, 3], 2).to_dtype(DType::BF16).unwrap();
    let y = conv2d(&x, &w, None, &ConvOptions::default()).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    assert_close("bf16", &y, &naive(&x, &w, None, &ConvOptions::default(), false), 1e-2);
}

#[test]
fn misuse_is_explained() {
    let x = values(&[1, 3, 4, 4], 1);
    let w = values(&[2, 4, 3, 3], 2);
    let message = conv2d(&x, &w, None, &ConvOptions::default()).unwrap_err().to_string();
    assert!(message.contains("3 channels") && message.contains("needs 4"), "{message}");
    let w = values(&[2, 3, 5, 5], 2);
    let message = conv2d(&x, &w, None, &ConvOptions::default()).unwrap_err().to_string();
    assert!(message.contains("kernel spans 5"), "{message}");
    let w = values(&[2, 3, 3, 3], 2);
    let o = ConvOptions { output_padding: [1, 1], ..Default::default() };
    assert!(conv2d(&x, &w, None, &o).is_err());
    assert!(conv2d(&x, &w.to_dtype(DType::F32).unwrap(), None, &ConvOptions::default()).is_err());
    assert!(conv2d(&x, &w, Some(&values(&[3], 1)), &ConvOptions::default()).is_err());
}
