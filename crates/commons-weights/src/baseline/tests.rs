use commons_core::Seed;
use commons_nn::model::{Decoder, DecoderConfig, ids_tensor};
use proptest::prelude::*;

use super::*;

fn small(layers: usize) -> Decoder {
    Decoder::init(DecoderConfig::llama(24, 16, layers, 4, 2, 24), Seed::new(7)).unwrap()
}

fn logits(model: &Decoder) -> Vec<f32> {
    let ids = ids_tensor(&[&[3, 1, 4, 1, 5, 9]], &model.bank).unwrap();
    let hidden = model.forward(&ids, None).unwrap();
    model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn spread_matches_numpy() {
    // np.round(np.linspace(0, L - 1, K)).astype(int)
    assert_eq!(spread_layers(18, 9), [0, 2, 4, 6, 8, 11, 13, 15, 17]);
    assert_eq!(spread_layers(30, 10), [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]);
    assert_eq!(spread_layers(4, 1), [0]);
    assert_eq!(spread_layers(4, 9), [0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn spread_is_increasing_and_keeps_the_ends(layers in 2usize..80, keep in 2usize..80) {
        let picked = spread_layers(layers, keep);
        prop_assert_eq!(picked.len(), keep.min(layers));
        prop_assert!(picked.windows(2).all(|w| w[0] < w[1]));
        prop_assert_eq!((picked[0], picked[picked.len() - 1]), (0, layers - 1));
    }
}

#[test]
fn keeping_every_layer_changes_nothing() {
    let model = small(4);
    let same = drop_layers(&model, &[0, 1, 2, 3]).unwrap();
    assert_eq!(logits(&same), logits(&model));
    assert_eq!(same.bank.stored(), model.bank.stored());
}

#[test]
fn dropping_equals_skipping() {
    let model = small(4);
    let short = drop_layers(&model, &[0, 3]).unwrap();
    let ids = ids_tensor(&[&[3, 1, 4, 1, 5, 9]], &model.bank).unwrap();
    let rotary = model.rotary(0, 6).unwrap();
    let mut x = model.embed(&ids).unwrap();
    for depth in [0, 3] {
        x = model.block(depth, &x, &rotary, None).unwrap();
    }
    let x = model.logits(&model.final_norm(&x).unwrap()).unwrap();
    assert_eq!(logits(&short), x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    assert!(short.bank.plan().get("lm_head.weight").is_some(), "the output head stays tied");
}

#[test]
fn bad_selections_are_refused() {
    let model = small(3);
    for keep in [&[][..], &[0, 0], &[1, 0], &[0, 3]] {
        let message = drop_layers(&model, keep).unwrap_err().to_string();
        assert!(message.contains("below 3"), "{message}");
    }
}

fn stored_with(model: &Decoder, keep: usize) -> usize {
    drop_layers(model, &spread_layers(6, keep)).unwrap().bank.stored()
}

#[test]
fn budget_goes_to_the_nearest_count() {
    let model = small(6);
    for keep in 1..=6 {
        let stored = stored_with(&model, keep);
        assert_eq!(layers_for_budget(&model, stored), keep);
        let layer = stored_with(&model, 2) - stored_with(&model, 1);
        assert_eq!(layers_for_budget(&model, stored + layer / 4), keep);
        assert_eq!(layers_for_budget(&model, stored + layer.div_ceil(2)), (keep + 1).min(6));
    }
    assert_eq!(layers_for_budget(&model, 0), 1);
}
