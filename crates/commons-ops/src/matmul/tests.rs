use super::*;
use crate::testing::{randn, values};

/// The product in `f64`.
fn reference(a: &[f64], b: &[f64], m: usize, n: usize, k: usize) -> Vec<f64> {
    let at = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
    (0..m * n).map(|ij| at(ij / n, ij % n)).collect()
}

fn turned(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| x[i * columns + j])).collect()
}

#[test]
fn every_orientation_and_edge() {
    let sizes = [
        (1, 1, 1),
        (1, 9, 70),
        (2, 6, 33),
        (3, 5, 7),
        (4, 7, 50),
        (5, 3, 20),
        (6, 5, 31),
        (7, 4, 64),
        (8, 32, 16),
        (9, 33, 17),
        (17, 70, 40),
        (40, 100, 300),
    ];
    for (m, n, k) in sizes {
        let (a, b) = (randn(1, &[m, k]), randn(2, &[k, n]));
        let want = reference(&values(&a), &values(&b), m, n, k);
        let a: Vec<f32> = a.flatten_all().unwrap().to_vec1().unwrap();
        let b: Vec<f32> = b.flatten_all().unwrap().to_vec1().unwrap();
        let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
        for a in [mat(&a, m, k, k), mat(&at, k, m, m).t()] {
            for b in [mat(&b, k, n, n), mat(&bt, n, k, k).t()] {
                let mut c = vec![1f32; m * n];
                matmul(mat_mut(&mut c, m, n), true, a, b, 0.5);
                for (c, want) in c.iter().zip(&want) {
                    assert!((f64::from(*c) - (1.0 + 0.5 * want)).abs() < 1e-4, "{m} {n} {k}");
                }
                matmul(mat_mut(&mut c, m, n), false, a, b, 1.0);
                for (c, want) in c.iter().zip(&want) {
                    assert!((f64::from(*c) - want).abs() < 1e-4);
                }
            }
        }
    }
}

#[test]
fn empty_depth_gives_zeros_and_parts_are_parts() {
    let mut c = vec![1f32; 6];
    matmul(mat_mut(&mut c, 2, 3), false, mat(&[], 2, 0, 0), mat(&[], 0, 3, 3), 1.0);
    assert_eq!(c, [0.0; 6]);
    let data: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let part = mat(&data, 3, 4, 4).rows(1..3).columns(2..4);
    let unit = [1.0, 0.0, 0.0, 1.0];
    let mut c = vec![0f32; 4];
    matmul(mat_mut(&mut c, 2, 2), false, part, mat(&unit, 2, 2, 2), 1.0);
    assert_eq!(c, [6.0, 7.0, 10.0, 11.0]);
}

#[test]
fn bits_do_not_depend_on_threads_or_cuts() {
    let (m, n, k) = (300, 420, 600);
    let a: Vec<f32> = randn(1, &[m * k]).to_vec1().unwrap();
    let b: Vec<f32> = randn(2, &[k * n]).to_vec1().unwrap();
    let (va, vb) = (mat(&a, m, k, k), mat(&b, k, n, n));
    let mut whole = vec![0f32; m * n];
    serial(&mut mat_mut(&mut whole, m, n), false, va, vb, 1.0);
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut cut = vec![0f32; m * n];
        pool.install(|| matmul(mat_mut(&mut cut, m, n), false, va, vb, 1.0));
        assert!(cut.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

/// A row alone has the bits it has among others, and each inner product is summed in lanes.
#[test]
fn a_few_rows_are_inner_products_whatever_the_threads() {
    let (n, k) = (1000, 700);
    let a: Vec<f32> = randn(3, &[8 * k]).to_vec1().unwrap();
    let b: Vec<f32> = randn(4, &[n * k]).to_vec1().unwrap();
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for m in 1..=8 {
            let mut c = vec![0f32; m * n];
            let (va, vb) = (mat(&a, m, k, k), mat(&b, n, k, k).t());
            pool.install(|| matmul(mat_mut(&mut c, m, n), false, va, vb, 1.0));
            for (at, got) in c.iter().enumerate() {
                let (row, column) = (&a[at / n * k..][..k], &b[at % n * k..][..k]);
                let want = simd::sum2(row, column, |x, y| x * y);
                assert_eq!(got.to_bits(), want.to_bits(), "{m} rows, {threads} threads");
            }
        }
    }
}

/// The last rows of a tall product are summed like the others, into however many pieces it is cut.
#[test]
fn a_small_piece_is_summed_like_the_whole() {
    let (m, n, k) = (20, 40, 24_000);
    let a: Vec<f32> = randn(5, &[m * k]).to_vec1().unwrap();
    let b: Vec<f32> = randn(6, &[n * k]).to_vec1().unwrap();
    let (va, vb) = (mat(&a, m, k, k), mat(&b, n, k, k).t());
    let mut whole = vec![0f32; m * n];
    serial(&mut mat_mut(&mut whole, m, n), false, va, vb, 1.0);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let mut cut = vec![0f32; m * n];
    pool.install(|| matmul(mat_mut(&mut cut, m, n), false, va, vb, 1.0));
    assert!(cut.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn nan_reaches_the_product() {
    let a = [f32::NAN, 0.0];
    let b = [0.0, 1.0];
    let mut c = [0f32];
    matmul(mat_mut(&mut c, 1, 1), false, mat(&a, 1, 2, 2), mat(&b, 2, 1, 1), 1.0);
    assert!(c[0].is_nan());
}
