use super::*;
use crate::testing::{agree, distance, randn};

fn check(q: &[usize], k: &[usize], options: &AttentionOptions) {
    let (q, k, v) = (randn(1, q), randn(2, k), randn(3, k));
    let fused = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], options);
    let plain = |x: &[Tensor]| composed::attention(&x[0], &x[1], &x[2], options);
    agree(&[&q, &k, &v], fused, plain, 2e-5);
}

#[test]
fn every_option_agrees_with_the_definition() {
    let causal = AttentionOptions::causal();
    check(&[2, 3, 2, 4], &[2, 5, 2, 4], &AttentionOptions::default());
    check(&[1, 5, 4, 3], &[1, 5, 2, 3], &causal);
    check(&[2, 3, 3, 2], &[2, 6, 1, 2], &causal);
    check(&[1, 6, 2, 3], &[1, 6, 2, 3], &AttentionOptions { window: Some(2), ..causal.clone() });
    let both_ways = AttentionOptions { window: Some(3), ..AttentionOptions::default() };
    check(&[1, 6, 2, 3], &[1, 6, 2, 3], &both_ways);
    // Two queries of each row, each at a place of its own.
    let placed = AttentionOptions { positions: Some(vec![1, 4, 0, 5]), ..causal.clone() };
    check(&[2, 2, 2, 3], &[2, 6, 2, 3], &placed);
    let capped = AttentionOptions { softcap: Some(1.5), scale: Some(0.7), ..causal.clone() };
    check(&[1, 5, 2, 3], &[1, 5, 1, 3], &capped);
    let padded =
        AttentionOptions { key_lengths: Some(vec![3, 0, 5]), ..AttentionOptions::default() };
    check(&[3, 2, 2, 3], &[3, 5, 2, 3], &padded);
    let padded = AttentionOptions { key_lengths: Some(vec![2, 5]), window: Some(2), ..causal };
    check(&[2, 5, 2, 3], &[2, 5, 2, 3], &padded);
}

#[test]
fn groups_may_be_unequal() {
    let map = |heads: &[usize]| Some(heads.to_vec());
    let causal = AttentionOptions::causal();
    // Key head 1 is read by nobody; heads need not be in order, nor divide the query heads.
    for heads in [[0, 0, 0, 2, 2], [2, 0, 2, 0, 0]] {
        let options = AttentionOptions { key_heads: map(&heads), ..causal.clone() };
        check(&[2, 4, 5, 3], &[2, 4, 3, 3], &options);
    }
    let (q, k, v) = (randn(1, &[2, 3, 4, 2]), randn(2, &[2, 3, 2, 2]), randn(3, &[2, 3, 2, 2]));
    let equal = AttentionOptions { key_heads: map(&[0, 0, 1, 1]), ..causal.clone() };
    let got = attention(&q, &k, &v, &equal).unwrap();
    assert_eq!(distance(&got, &attention(&q, &k, &v, &causal).unwrap()), 0.0);
    for heads in [&[0, 0, 1][..], &[0, 0, 1, 2]] {
        let options = AttentionOptions { key_heads: map(heads), ..causal.clone() };
        assert!(attention(&q, &k, &v, &options).unwrap_err().to_string().contains("key_heads"));
    }
}

#[test]
fn blocks_join_up() {
    // Longer than a block of queries, with a ragged end.
    let (q, k, v) =
        (randn(1, &[2, 150, 3, 8]), randn(2, &[2, 150, 1, 8]), randn(3, &[2, 150, 1, 8]));
    for window in [None, Some(40)] {
        let options = AttentionOptions { window, ..AttentionOptions::causal() };
        let got = attention(&q, &k, &v, &options).unwrap();
        let want = composed::attention(&q, &k, &v, &options).unwrap();
        assert!(distance(&got, &want) < 1e-5);
    }
}

#[test]
fn strided_heads_need_no_copy_by_the_caller() {
    let packed = randn(1, &[2, 7, 3, 8]);
    let part = |i: usize| packed.narrow(2, i, 1).unwrap();
    let options = AttentionOptions::causal();
    let got = attention(&part(0), &part(1), &part(2), &options).unwrap();
    let whole = |i: usize| part(i).contiguous().unwrap();
    let want = attention(&whole(0), &whole(1), &whole(2), &options).unwrap();
    assert_eq!(distance(&got, &want), 0.0);
}

#[test]
fn misfits_are_refused_with_their_shapes() {
    let (q, k) = (randn(1, &[1, 4, 3, 2]), randn(2, &[1, 4, 2, 2]));
    let message = |q: &Tensor, k: &Tensor, o: &AttentionOptions| {
        attention(q, k, k, o).unwrap_err().to_string()
    };
    let text = message(&q, &k, &AttentionOptions::default());
    assert!(text.contains("attention") && text.contains("[1, 4, 3, 2]"), "{text}");
    let causal = AttentionOptions::causal();
    assert!(message(&randn(1, &[1, 5, 2, 2]), &k, &causal).contains("5 queries"));
    let lengths = AttentionOptions { key_lengths: Some(vec![5]), ..AttentionOptions::default() };
    assert!(message(&k, &k, &lengths).contains("key_lengths"));
}

#[test]
fn nan_in_a_visible_key_shows() {
    let mut data = vec![1f32; 6];
    data[0] = f32::NAN;
    let k = Tensor::from_vec(data, (1, 3, 1, 2), &candle_core::Device::Cpu).unwrap();
    let q = randn(1, &[1, 3, 1, 2]);
    let out = attention(&q, &k, &q, &AttentionOptions::causal()).unwrap();
    assert!(crate::testing::values(&out).iter().all(|x| x.is_nan()));
}
