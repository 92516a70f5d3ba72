//! One weight out of a dictionary: `W = Σ_k c_k D_k`, forward and backward in one pass each.

use crate::tape::{self, Cx, Op};
use crate::{composed, par, simd, view};
use candle_core::{Result, Tensor, bail};

/// `Σ_k coefficients[k] · atoms[k]`.
///
/// `atoms` share one shape and `coefficients` is `[atoms]`; the result has the atoms' shape. A
/// coefficient of exactly zero leaves its atom out, so that a one-hot vector gives its atom bit
/// for bit. The gradient of an atom is its coefficient times that of the result, the gradient of
/// a coefficient the inner product of its atom with that of the result.
///
/// # Errors
/// When there is no atom, when shapes differ, or when the coefficients do not match in number.
pub fn weighted_sum(atoms: &[Tensor], coefficients: &Tensor) -> Result<Tensor> {
    let Some(first) = atoms.first() else { bail!("weighted_sum: no atoms") };
    if coefficients.dims() != [atoms.len()] {
        bail!(
            "weighted_sum: {} atoms need coefficients [{}], got {:?}",
            atoms.len(),
            atoms.len(),
            coefficients.dims()
        )
    }
    if let Some(k) = atoms.iter().position(|a| a.dims() != first.dims()) {
        bail!("weighted_sum: atom {k} is {:?}, atom 0 is {:?}", atoms[k].dims(), first.dims())
    }
    let args: Vec<&Tensor> = atoms.iter().chain([coefficients]).collect();
    if !view::fused(&args) {
        return composed::weighted_sum(atoms, coefficients);
    }
    let mut sum = vec![0f32; first.elem_count()];
    let work = sum.len();
    view::read(coefficients, |c| {
        view::read_all(atoms, |atoms| {
            par::each(sum.chunks_mut(par::PIECE).enumerate(), work, |(i, sum)| {
                let start = i * par::PIECE;
                for (&c, atom) in c.iter().zip(atoms).filter(|(c, _)| **c != 0.) {
                    add_scaled(sum, c, &atom[start..start + sum.len()]);
                }
            });
            Ok(())
        })
    })?;
    tape::record_f32(WeightedSum, &args, sum, first.shape())
}

/// `y += c · x`.
fn add_scaled(y: &mut [f32], c: f32, x: &[f32]) {
    simd::run(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(x) {
                *y += c * x;
            }
        },
    );
}

struct WeightedSum;

impl Op for WeightedSum {
    fn name(&self) -> &'static str {
        "weighted-sum"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let (args, grad) = (cx.args, cx.grad.clone());
        let [atoms @ .., coefficients] = args else { bail!("weighted-sum: no arguments") };
        let c = view::read(coefficients, |c| Ok(c.to_vec()))?;
        view::read(&grad, |grad| {
            if cx.wants(atoms.len()) {
                let dots = inner_products(atoms, grad)?;
                cx.accumulate(atoms.len(), |dst, _| {
                    dst.iter_mut().zip(dots).for_each(|(d, dot)| *d += dot as f32);
                    Ok(())
                })?;
            }
            for (k, &c) in c.iter().enumerate() {
                if cx.wants(k) {
                    cx.accumulate(k, |dst, _| {
                        par::zip2(dst, grad, |dst, grad| add_scaled(dst, c, grad));
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })
    }
}

/// `⟨atom_k, grad⟩` of every atom; the gradient is read once, its pieces added in order.
fn inner_products(atoms: &[Tensor], grad: &[f32]) -> Result<Vec<f64>> {
    view::read_all(atoms, |atoms| {
        let pieces = par::map(grad.chunks(par::PIECE).enumerate(), grad.len(), |(i, grad)| {
            let start = i * par::PIECE;
            let dot = |atom: &&[f32]| {
                let atom = &atom[start..start + grad.len()];
                // Runs of 4096 in single precision, the runs in double.
                let runs = atom.chunks(4096).zip(grad.chunks(4096));
                runs.map(|(a, g)| {
                    f64::from(simd::run(
                        #[inline(always)]
                        || simd::sum2(a, g, |a, g| a * g),
                    ))
                })
                .sum::<f64>()
            };
            atoms.iter().map(dot).collect::<Vec<f64>>()
        });
        let mut dots = vec![0f64; atoms.len()];
        for piece in pieces {
            dots.iter_mut().zip(piece).for_each(|(sum, dot)| *sum += dot);
        }
        Ok(dots)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agree, randn, values};

    #[test]
    fn agrees_with_the_plain_sum_and_finite_differences() {
        let (a, b, c) = (randn(1, &[3, 5]), randn(2, &[3, 5]), randn(3, &[3, 5]));
        let k = randn(4, &[3]);
        let fused = |x: &[Tensor]| weighted_sum(&x[..3], &x[3]);
        agree(&[&a, &b, &c, &k], fused, |x| composed::weighted_sum(&x[..3], &x[3]), 1e-5);
        // One atom used twice collects both gradients.
        let k = randn(5, &[2]);
        let twice = |x: &[Tensor]| weighted_sum(&[x[0].clone(), x[0].clone()], &x[1]);
        let plain = |x: &[Tensor]| composed::weighted_sum(&[x[0].clone(), x[0].clone()], &x[1]);
        agree(&[&a, &k], twice, plain, 1e-5);
    }

    #[test]
    fn one_hot_coefficients_give_the_atom_itself() {
        let (a, b) = (randn(1, &[300, 171]), randn(2, &[300, 171]));
        let c = Tensor::new(&[0f32, 1.], a.device()).unwrap();
        assert_eq!(values(&weighted_sum(&[a, b.clone()], &c).unwrap()), values(&b));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (a, b) = (randn(1, &[2, 3]), randn(2, &[3, 2]));
        let c = randn(3, &[2]);
        let message = weighted_sum(&[a.clone(), b], &c).unwrap_err().to_string();
        assert!(message.contains("[3, 2]") && message.contains("[2, 3]"), "{message}");
        assert!(weighted_sum(&[a], &c).is_err() && weighted_sum(&[], &c).is_err());
    }
}
