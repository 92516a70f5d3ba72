//! Small dense linear algebra.

/// Solves `H x = g` for symmetric positive definite `H` (`n × n`, lower triangle) by Cholesky,
/// overwriting `H`; pivots lost to rounding are lifted.
pub(crate) fn solve_spd(h: &mut [f64], n: usize, g: &[f64]) -> Vec<f64> {
    // Unknowns of very different size: scale the diagonal to 1 first.
    let scale: Vec<f64> = (0..n).map(|i| 1. / h[i * n + i].max(f64::MIN_POSITIVE).sqrt()).collect();
    for i in 0..n {
        for j in 0..=i {
            h[i * n + j] *= scale[i] * scale[j];
        }
    }
    for i in 0..n {
        for j in 0..=i {
            let (upper, lower) = h.split_at(i * n);
            let dot = |other: &[f64]| lower[..j].iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
            if i == j {
                let pivot = lower[i] - dot(&lower[..j]);
                h[i * n + i] = pivot.max(1e-14).sqrt();
            } else {
                let value = (lower[j] - dot(&upper[j * n..j * n + j])) / upper[j * n + j];
                h[i * n + j] = value;
            }
        }
    }
    let mut x: Vec<f64> = g.iter().zip(&scale).map(|(g, s)| g * s).collect();
    for i in 0..n {
        let dot: f64 = (0..i).map(|j| h[i * n + j] * x[j]).sum();
        x[i] = (x[i] - dot) / h[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|j| h[j * n + i] * x[j]).sum();
        x[i] = (x[i] - dot) / h[i * n + i];
    }
    x.iter().zip(&scale).map(|(x, s)| x * s).collect()
}
