//! Golden scaler, loads, identity at compression 1, independence of scale, pruning by hand, the
//! sketch's variance, and what is refused.

use commons_nn::model::{DecoderConfig, ids_tensor};
use commons_ops::{self as ops, Device, FoldedLayout, Tensor};
use proptest::prelude::*;

use super::mlp::{Masks, Mlp, Training};
use super::prune::{Score, apply, densities, magnitude_of_kept};
use super::study::Study;
use super::*;
use crate::images::{ImageSets, ImagesConfig};

fn sets() -> ImageSets {
    let config = ImagesConfig { train: 200, test: 50, ..ImagesConfig::default() };
    config.prepare(Seed::new(1)).unwrap()
}

fn mlp() -> Mlp {
    Mlp::init(&[256, 24, 16, 10], Seed::new(3)).unwrap()
}

fn training(sets: &ImageSets, stable: bool) -> Training<'_> {
    Training { sets, steps: 20, batch_size: 20, rate: 0.05, seed: Seed::new(2), stable }
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn quiet() -> Result<()> {
    Ok(())
}

#[test]
fn the_scaler_is_golden() {
    assert!((scaler(4., 3.) - 16. / 3.).abs() < 1e-6);
    assert!((scaler(1., 2.) - 0.5).abs() < 1e-9);
    assert_eq!(scaler(0., 0.), 1.);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn loads_are_even(compression in 1f64..300., seed in any::<u64>()) {
        let mut mlp = mlp();
        let names = mlp.matrices();
        let done =
            pool(&mut mlp.bank, &names, compression, Mapping::Fold, Fill::Weights, Seed::new(seed))
                .unwrap();
        let loads = loads(&mlp.bank).unwrap();
        prop_assert_eq!(loads.iter().sum::<usize>(), done.elements);
        let (least, most) = (done.elements / done.slots, done.elements.div_ceil(done.slots));
        prop_assert!(loads.iter().all(|c| (least..=most).contains(c)));
    }
}

#[test]
fn without_compression_training_follows_the_dense_network() {
    let sets = sets();
    let (dense, mut folded) = (mlp(), mlp());
    let names = folded.matrices();
    let done =
        pool(&mut folded.bank, &names, 1., Mapping::Fold, Fill::Weights, Seed::new(5)).unwrap();
    assert!((done.kept - 1.).abs() < 1e-9);
    let a = training(&sets, false).run(&dense, None, 0..20, &mut quiet).unwrap();
    let b = training(&sets, true).run(&folded, None, 0..20, &mut quiet).unwrap();
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    for name in &names {
        let (w, v) = (dense.bank.weight(name).unwrap(), folded.bank.weight(name).unwrap());
        for (a, b) in numbers(&w).iter().zip(numbers(&v)) {
            assert!((a - b).abs() < 1e-4, "{name}: {a} {b}");
        }
    }
    assert!(a[19] < a[0]);
}

#[test]
fn with_the_scaler_weights_do_not_feel_the_scale_of_the_pool() {
    let sets = sets();
    let train = |scale: f32, stable: bool| {
        let mut mlp = mlp();
        let names = mlp.matrices();
        let fill = Fill::Uniform(scale);
        pool(&mut mlp.bank, &names, 4., Mapping::Fold, fill, Seed::new(5)).unwrap();
        training(&sets, stable).run(&mlp, None, 0..12, &mut quiet).unwrap();
        names.iter().flat_map(|n| numbers(&mlp.bank.weight(n).unwrap())).collect::<Vec<f32>>()
    };
    let gap = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, |m, d| if d <= m { m } else { d })
    };
    let reference = train(0.1, true);
    for scale in [0.01, 1.] {
        assert!(gap(&train(scale, true), &reference) < 1e-3);
    }
    assert!(!(gap(&train(0.01, false), &train(0.1, false)) < 1e-1));
}

#[test]
fn a_pooled_gradient_is_the_finite_difference() {
    for mapping in [Mapping::Fold, Mapping::Blocks { block: 4 }] {
        let mut mlp = mlp();
        let names = mlp.matrices();
        pool(&mut mlp.bank, &names, 20., mapping, Fill::Uniform(0.1), Seed::new(5)).unwrap();
        let (images, labels) = sets().train_batch(Seed::new(2), 0, 8).unwrap();
        let loss = || mlp.loss(&images, &labels).unwrap();
        let var = mlp.bank.stored_var(POOL).unwrap();
        let grad = numbers(ops::backward(&loss()).unwrap().get(var).unwrap());
        let start = numbers(var);
        for at in [0, 7, 300] {
            let shifted = |h: f32| {
                let mut psi = start.clone();
                psi[at] += h;
                var.set(&Tensor::from_vec(psi, var.dims(), &Device::Cpu).unwrap()).unwrap();
                f64::from(loss().to_scalar::<f32>().unwrap())
            };
            let slope = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
            let error = (slope - f64::from(grad[at])).abs();
            assert!(error < 2e-2 * (0.1 + slope.abs()), "{slope} {}", grad[at]);
        }
    }
}

#[test]
fn pruning_keeps_what_scores_highest() {
    let (mlp, sets) = (mlp(), sets());
    let (images, labels) = sets.train_batch(Seed::new(2), 0, 20).unwrap();
    let masks =
        |score: Score, kept| score.masks(&mlp, &images, &labels, kept, Seed::new(1)).unwrap();
    let total: usize =
        mlp.matrices().iter().map(|n| mlp.bank.shape(n).unwrap().iter().product::<usize>()).sum();
    let count = |m: &Masks| m.values().flat_map(numbers).sum::<f32>() as usize;
    for score in [Score::Random, Score::Magnitude, Score::Snip, Score::Grasp, Score::SynFlow] {
        assert_eq!(count(&masks(score, 0.05)), (total as f64 * 0.05) as usize, "{score:?}");
    }
    let magnitude = masks(Score::Magnitude, 0.1);
    let mut sizes: Vec<(f32, f32)> = mlp
        .matrices()
        .iter()
        .flat_map(|n| {
            let w = numbers(&mlp.bank.weight(n).unwrap());
            w.into_iter().map(f32::abs).zip(numbers(&magnitude[n])).collect::<Vec<_>>()
        })
        .collect();
    sizes.sort_by(|a, b| b.0.total_cmp(&a.0));
    let kept = count(&magnitude);
    assert!(sizes[..kept].iter().all(|s| s.1 == 1.) && sizes[kept..].iter().all(|s| s.1 == 0.));
    // SNIP keeps the largest |w · g|.
    let loss = mlp.loss(&images, &labels).unwrap();
    let grads = ops::backward(&loss).unwrap();
    let (snip, mut scored) = (masks(Score::Snip, 0.1), Vec::new());
    for name in mlp.matrices() {
        let var = mlp.bank.stored_var(&name).unwrap();
        let products = numbers(var).into_iter().zip(numbers(grads.get(var).unwrap()));
        scored.extend(products.map(|(w, g)| (w * g).abs()).zip(numbers(&snip[&name])));
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let least = scored[..count(&snip)].iter().map(|s| s.0).fold(f32::INFINITY, f32::min);
    assert!(scored.iter().all(|(s, kept)| *kept == 1. || *s <= least));
    // GraSP keeps the flow of gradients, which the opposite sign would cut off.
    let norm = |m: &Masks| prune::gradient_norm(&mlp, Some(m), &images, &labels).unwrap();
    assert!(norm(&masks(Score::Grasp, 0.5)) > 1.5 * norm(&masks(Score::Random, 0.5)));
    // SynFlow's rounds exist so that no layer vanishes; magnitude has no such care.
    assert!(densities(&masks(Score::SynFlow, 0.01)).unwrap().iter().all(|d| *d > 0.));
    let fewer = magnitude_of_kept(&mlp, &magnitude, 0.05).unwrap();
    for (name, mask) in &fewer {
        assert!(numbers(mask).iter().zip(numbers(&magnitude[name])).all(|(a, b)| *a <= b));
    }
}

#[test]
fn a_drawn_pool_keeps_the_deviations_of_the_matrices() {
    let model = Decoder::init(DecoderConfig::llama(64, 32, 3, 4, 2, 48), Seed::new(1)).unwrap();
    let config = RpsConfig { compression: 4., ..Default::default() };
    let (made, pooled) = fresh(&config, &model, Seed::new(2)).unwrap();
    assert_eq!(pooled.slots, pooled.elements / 4);
    let mean = pooled.scales.iter().map(|(_, s)| s).sum::<f32>() / pooled.scales.len() as f32;
    assert!((mean - 1.).abs() < 1e-5, "{mean}");
    let deviation = |m: &Decoder, name: &str| {
        let w = numbers(&m.bank.weight(name).unwrap());
        (w.iter().map(|x| x * x).sum::<f32>() / w.len() as f32).sqrt()
    };
    for (name, _) in &pooled.scales {
        let ratio = deviation(&made, name) / deviation(&model, name);
        assert!((ratio - 1.).abs() < 0.15, "{name} {ratio}");
    }
}

#[test]
fn masked_weights_stay_zero() {
    let (mlp, sets) = (mlp(), sets());
    let (images, labels) = sets.train_batch(Seed::new(2), 0, 20).unwrap();
    let masks = Score::Snip.masks(&mlp, &images, &labels, 0.1, Seed::new(1)).unwrap();
    apply(&mlp, &masks).unwrap();
    training(&sets, false).run(&mlp, Some(&masks), 0..8, &mut quiet).unwrap();
    for (name, mask) in &masks {
        let w = numbers(&mlp.bank.weight(name).unwrap());
        assert!(w.iter().zip(numbers(mask)).all(|(w, m)| m == 1. || *w == 0.));
    }
}

/// `E⟨Rx, Ry⟩ = ⟨x, y⟩` with the variance `(‖x‖²‖y‖² + ⟨x,y⟩² − 2Σx²y²)/m` of full hashing, `R` the
/// sum of signed elements of each slot.
#[test]
fn sketched_products_have_the_mean_and_variance_of_hashing() {
    let (n, m, draws) = (40usize, 10usize, 20_000u64);
    let vector = |label: &str| {
        let mut v = vec![0f32; n];
        Seed::new(8).fork(label, 0).normal(0, &mut v);
        v.into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let (x, y) = (vector("x"), vector("y"));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (mut sum, mut square) = (0., 0.);
    for draw in 0..draws {
        let layout =
            commons_ops::HashedLayout::new(Seed::new(9).fork("draw", draw), n, m, 1).unwrap();
        let sketch = |v: &[f64]| {
            let mut s = vec![0f64; m];
            for ((v, &o), &g) in v.iter().zip(&layout.offsets).zip(&layout.signs) {
                s[o as usize] += v * f64::from(g);
            }
            s
        };
        let found = dot(&sketch(&x), &sketch(&y));
        sum += found;
        square += found * found;
    }
    let mean = sum / draws as f64;
    let variance = square / draws as f64 - mean * mean;
    let both: f64 = x.iter().zip(&y).map(|(x, y)| (x * y).powi(2)).sum();
    let wanted = (dot(&x, &x) * dot(&y, &y) + dot(&x, &y).powi(2) - 2. * both) / m as f64;
    assert!((mean - dot(&x, &y)).abs() < 4. * (wanted / draws as f64).sqrt());
    assert!((variance / wanted - 1.).abs() < 0.05, "{variance} {wanted}");
}

#[test]
fn a_decoder_is_folded_exactly_at_one_and_stays_a_model() {
    let model = Decoder::init(DecoderConfig::llama(24, 32, 2, 4, 2, 24), Seed::new(7)).unwrap();
    let ids = ids_tensor(&[&[3, 1, 4, 1, 5, 9, 2, 6]], &model.bank).unwrap();
    let loss = |m: &Decoder| m.next_token_loss(&ids).unwrap().to_scalar::<f32>().unwrap();
    for embedding in [false, true] {
        let config = |compression| RpsConfig { compression, embedding, ..RpsConfig::default() };
        let (one, pooled) = fold(&config(1.), &model, Seed::new(1)).unwrap();
        assert!((loss(&one) - loss(&model)).abs() < 1e-4);
        assert!((pooled.kept - 1.).abs() < 1e-6);
        let (four, pooled) = fold(&config(4.), &model, Seed::new(1)).unwrap();
        // Unrelated weights average out: of four in a slot `Σ λ⁴ / (Σ λ²)²` of the variance stays, a
        // quarter where they are of one scale and more where one is larger.
        assert!((0.23..0.4).contains(&pooled.kept), "{}", pooled.kept);
        let mut adapted = four.clone();
        let name = format!("{}{}", layer_prefix(0), BLOCK_MATRICES[0]);
        adapted.bank.add_lora(&name, 2, 4., Seed::new(3)).unwrap();
        let (a, b) = (loss(&adapted), loss(&adapted.baked().unwrap()));
        assert!((a - b).abs() < 1e-5);
        assert!(
            fold(&config(2.), &four, Seed::new(1)).unwrap_err().to_string().contains("materialize")
        );
    }
}

#[test]
fn refusals_name_what_works() {
    let mut mlp = mlp();
    let names = mlp.matrices();
    let mut says = |compression, mapping| {
        pool(&mut mlp.bank, &names, compression, mapping, Fill::Weights, Seed::new(1))
            .unwrap_err()
            .to_string()
    };
    assert!(says(0.5, Mapping::Fold).contains("1 is the nearest"));
    assert!(says(f64::NAN, Mapping::Fold).contains("1 is the nearest"));
    assert!(says(1e9, Mapping::Fold).contains("at most 6688 works"));
    assert!(says(1000., Mapping::Blocks { block: 64 }).contains("at most 104 works"));
    let bad = Study { rewinding: vec![7.], ..Study::default() };
    assert!(bad.check().unwrap_err().to_string().contains("rewinding"));
    let bad = Study { choice_seeds: 0, ..Study::default() };
    assert!(bad.check().unwrap_err().to_string().contains("choice_seeds"));
    let bad = Study { learning_rates: vec![0.1, f64::NAN], ..Study::default() };
    assert!(bad.check().unwrap_err().to_string().contains("learning_rates"));
    for (field, bad) in [
        ("batch_size", Study { batch_size: 0, ..Study::default() }),
        ("scales", Study { scales: vec![0.1, 0.], ..Study::default() }),
        ("timed", Study { timed: (10, 0.5), ..Study::default() }),
    ] {
        assert!(bad.check().unwrap_err().to_string().contains(field), "{field}");
    }
    let bad = Study { learning_rate: -0.1, ..Study::default() };
    let said = bad.check().unwrap_err().to_string();
    assert!(said.contains("learning_rate") && !said.contains("learning_rates"), "{said}");
}

#[test]
fn the_best_rate_is_the_first_of_the_most_accurate() {
    let study = Study { learning_rates: vec![0.1, 0.2, 0.3, 0.4], ..Study::default() };
    let mut tried = Vec::new();
    let best = study
        .best_rate(|study| {
            tried.push(study.learning_rate);
            // The last rate diverges.
            Ok([0.5, 0.7, 0.7, f64::NAN][tried.len() - 1])
        })
        .unwrap();
    assert_eq!((tried, best), (study.learning_rates, 0.2));
    let none = Study::default();
    assert_eq!(none.best_rate(|_| Ok(1.)).unwrap(), none.learning_rate);
}

#[test]
fn layouts_of_one_row_meet_without_a_gap() {
    // Two weights in a row cover the slots of one weight of both lengths.
    let slots = |start, n| {
        let layout = FoldedLayout::new(Seed::new(2), start, n, 7).unwrap();
        layout
            .segments()
            .iter()
            .flat_map(|s| (s.from..s.from + s.len).map(move |j| (j, s.sign as i8)))
            .collect::<Vec<_>>()
    };
    assert_eq!([slots(0, 10), slots(10, 13)].concat(), slots(0, 23));
}
