use commons_core::Seed;
use commons_nn::bank::{Bank, Share};
use commons_nn::model::{Decoder, DecoderConfig, Vit, VitConfig, ids_tensor};
use commons_ops::{self as ops, Device, Tensor, Var};
use proptest::prelude::*;

use super::study::{ScratchStudy, Stage, Variant, train};
use super::*;

const IDS: [u32; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn decoder(layers: usize) -> Decoder {
    let mut model =
        Decoder::init(DecoderConfig::llama(24, 16, layers, 4, 2, 24), Seed::new(7)).unwrap();
    // Layers that differ visibly, so that sharing the wrong one shows.
    for projection in Projection::ALL {
        for name in projection.of_decoder(&model.config) {
            let w = model.bank.weight(&name).unwrap().affine(10., 0.).unwrap();
            model.bank.insert(name, w).unwrap();
        }
    }
    model
}

fn logits(model: &Decoder) -> Vec<f32> {
    let ids = ids_tensor(&[&IDS], &model.bank).unwrap();
    let hidden = model.forward(&ids, None).unwrap();
    model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Decoder, b: &Decoder) -> f32 {
    logits(a).iter().zip(logits(b)).map(|(x, y)| (x - y).abs()).fold(0., f32::max)
}

fn convert_with(config: &Config, model: &Decoder) -> Result<Converted> {
    let text: Vec<u32> = (0..600u32).map(|i| (i * i + i / 7) % 23).collect();
    let mut progress = |_: &str, _: usize, _: usize| {};
    let stop = Default::default();
    let mut context = Context { calibration: &text, seed: 3, stop, progress: &mut progress };
    convert(config, model, &mut context)
}

fn config() -> Config {
    Config { ratio: 0.3, groups: 2, seq_len: 64, ..Config::default() }
}

fn vector(values: &[f32]) -> Tensor {
    Tensor::from_slice(values, (2, 2), &Device::Cpu).unwrap()
}

#[test]
fn golden_principal_directions() {
    let (w1, w2) = (vector(&[3., 0., 0., 0.]), vector(&[0., 1., 0., 0.]));
    let weights = [w1, w2];
    let pca = MatrixPca::new(&weights).unwrap();
    assert!((pca.error(0) - 10.).abs() < 1e-9 && (pca.error(1) - 1.).abs() < 1e-9);
    let (atoms, rows) = pca.dictionary(&weights, 1).unwrap();
    let atom: Vec<f32> = atoms[0].flatten_all().unwrap().to_vec1().unwrap();
    assert!((atom[0].abs() - 1.).abs() < 1e-6 && atom[1..].iter().all(|v| v.abs() < 1e-6));
    assert!((rows[0][0] * atom[0] - 3.).abs() < 1e-5 && rows[1][0].abs() < 1e-5);
    let equal = [vector(&[1., 1., 0., 0.]), vector(&[1., -1., 0., 0.])];
    let pca = MatrixPca::new(&equal).unwrap();
    assert!(pca.eigenvalues.iter().all(|v| (v - 2.).abs() < 1e-9));
    assert!((pca.error(1) - 2.).abs() < 1e-9);
}

#[test]
fn a_dictionary_never_has_more_atoms_than_directions() {
    let twice = [vector(&[1., 2., 0., 0.]), vector(&[2., 4., 0., 0.])];
    let pca = MatrixPca::new(&twice).unwrap();
    assert_eq!(pca.rank(), 1);
    assert_eq!(pca.dictionary(&twice, 2).unwrap().0.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// `Σ_l ‖W_l − Ŵ_l‖² = Σ_{s>S} λ_s`, and atoms are orthonormal.
    #[test]
    fn the_error_is_the_rest_of_the_spectrum(n in 1usize..8, keep in 0.0f64..=1.0, seed in any::<u64>()) {
        let weight = |l: u64| {
            let mut v = vec![0f32; 35];
            Seed::new(seed).fork("w", l).normal(0, &mut v);
            Tensor::from_vec(v, (5, 7), &Device::Cpu).unwrap()
        };
        let weights: Vec<Tensor> = (0..n as u64).map(weight).collect();
        let pca = MatrixPca::new(&weights).unwrap();
        let s = ((keep * n as f64).ceil() as usize).max(1);
        let (atoms, rows) = pca.dictionary(&weights, s).unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut error = 0.;
        for (w, row) in weights.iter().zip(&rows) {
            let mut left = flat(w);
            for (c, atom) in row.iter().zip(&atoms) {
                left.iter_mut().zip(flat(atom)).for_each(|(l, a)| *l -= c * a);
            }
            error += left.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        }
        prop_assert!((error - pca.error(s)).abs() < 1e-3 * pca.error(0), "{error} {}", pca.error(s));
        for (i, a) in atoms.iter().enumerate() {
            for (j, b) in atoms.iter().enumerate() {
                let dot: f32 = flat(a).iter().zip(flat(b)).map(|(x, y)| x * y).sum();
                let wanted = if i == j { 1. } else { 0. };
                prop_assert!((dot - wanted).abs() < 1e-3, "{i} {j} {dot}");
            }
        }
    }
}

#[test]
fn one_hot_coefficients_are_copying_bit_for_bit() {
    for copying in [Copying::Sequential, Copying::RepeatAllOver] {
        let model = decoder(6);
        let (mut tied, mut combined) = (model.clone(), model.clone());
        for projection in Projection::ALL {
            let members = projection.of_decoder(&model.config);
            let key = projection.letter();
            copying.tie(&mut tied.bank, key, &members, 3).unwrap();
            let atoms = (0..3).map(|s| tied.bank.weight_of_part(key, s)).collect();
            let rows = copying.coefficients(6, 3);
            share(&mut combined.bank, key, &members, atoms, &rows).unwrap();
        }
        assert_eq!(logits(&tied), logits(&combined));
        assert!(distance(&tied, &model) > 1e-4);
        assert!(tied.bank.stored() < model.bank.stored());
    }
    assert_eq!(
        (0..6).map(|l| Copying::Sequential.atom(l, 6, 2)).collect::<Vec<_>>(),
        [0, 0, 0, 1, 1, 1]
    );
    assert_eq!(
        (0..6).map(|l| Copying::RepeatAllOver.atom(l, 6, 2)).collect::<Vec<_>>(),
        [0, 1, 0, 1, 0, 1]
    );
}

trait PartOf {
    fn weight_of_part(&self, key: &str, s: usize) -> Tensor;
}

impl PartOf for Bank {
    fn weight_of_part(&self, key: &str, s: usize) -> Tensor {
        self.stored_var(&atom_part(key, s)).unwrap().as_detached_tensor()
    }
}

#[test]
fn as_many_atoms_as_layers_are_the_original() {
    let model = decoder(4);
    let mut whole = model.clone();
    for projection in Projection::ALL {
        let members = projection.of_decoder(&model.config);
        let atoms = members.iter().map(|m| model.bank.weight(m).unwrap()).collect();
        let identity = Copying::RepeatAllOver.coefficients(4, 4);
        share(&mut whole.bank, projection.letter(), &members, atoms, &identity).unwrap();
    }
    assert_eq!(logits(&whole), logits(&model));
}

#[test]
fn gradients_are_sums_and_inner_products() {
    let mut model = decoder(4);
    let members = Projection::V.of_decoder(&model.config);
    initialise(&mut model.bank, "v", &members, 2, Start::Nearest, Seed::new(1)).unwrap();
    // The same function with every weight a leaf of its own.
    let plain = Decoder::new(model.config.clone(), model.bank.materialize().unwrap()).unwrap();
    let ids = ids_tensor(&[&IDS], &model.bank).unwrap();
    let grads = ops::backward(&model.next_token_loss(&ids).unwrap()).unwrap();
    let whole = ops::backward(&plain.next_token_loss(&ids).unwrap()).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let of = |bank: &Bank, name: &str| bank.stored_var(name).unwrap().clone();
    let by_weight: Vec<Vec<f32>> =
        members.iter().map(|m| flat(whole.get(of(&plain.bank, m).as_tensor()).unwrap())).collect();
    for s in 0..2 {
        let atom = of(&model.bank, &atom_part("v", s));
        let mut wanted = vec![0f32; by_weight[0].len()];
        for (l, grad) in by_weight.iter().enumerate() {
            let row = of(&model.bank, &coefficient_part("v", l));
            let c = flat(row.as_tensor())[s];
            wanted.iter_mut().zip(grad).for_each(|(w, g)| *w += c * g);
            let dot: f32 = grad.iter().zip(flat(atom.as_tensor())).map(|(g, d)| g * d).sum();
            let got = flat(grads.get(row.as_tensor()).unwrap())[s];
            assert!((got - dot).abs() < 1e-5, "{got} {dot}");
        }
        let got = flat(grads.get(atom.as_tensor()).unwrap());
        assert!(got.iter().zip(&wanted).all(|(g, w)| (g - w).abs() < 1e-5));
    }
}

#[test]
fn weights_of_a_fresh_dictionary_have_the_usual_variance() {
    let study = ScratchStudy::default();
    let rms = |variant| {
        let model = study.fresh(variant, Seed::new(0)).unwrap().model;
        let weights = Projection::Q.of_decoder(&model.config).into_iter().map(|n| {
            let w = model.bank.weight(&n).unwrap().flatten_all().unwrap();
            w.to_vec1::<f32>().unwrap().iter().map(|v| v * v).sum::<f32>() / w.elem_count() as f32
        });
        (weights.sum::<f32>() / 12.).sqrt()
    };
    for variant in [Variant::MasaQkvo, Variant::MasaRaw, Variant::LowRank] {
        let ratio = rms(variant) / rms(Variant::Vanilla);
        assert!((ratio - 1.).abs() < 0.1, "{variant:?} {ratio}");
    }
}

fn tiny_study() -> ScratchStudy {
    let mut study = ScratchStudy { atoms: 2, ..ScratchStudy::default() };
    study.scratch.hidden_size = 16;
    study.scratch.intermediate_size = 24;
    study.scratch.num_hidden_layers = 4;
    study.scratch.train.steps = 12;
    study.scratch.train.batch_size = 2;
    study.scratch.train.seq_len = 16;
    study.context = 32;
    study.eval_tokens = 64;
    study
}

#[test]
fn variants_of_a_size_store_the_same() {
    let study = ScratchStudy::default();
    let attention = |variant| {
        let model = study.fresh(variant, Seed::new(0)).unwrap().model;
        let part = |n: &str| n.contains("attn") || n.contains(".atom.");
        let sizes = model.bank.stored_vars().filter(|(n, _)| part(n)).map(|(_, v)| v.elem_count());
        sizes.sum::<usize>()
    };
    let whole = attention(Variant::Vanilla);
    for variant in [Variant::Sequential, Variant::RepeatAllOver, Variant::MasaQkvo] {
        assert_eq!(3 * attention(variant), whole, "{variant:?}");
    }
    let low = attention(Variant::LowRank);
    assert!(3 * low <= whole && 10 * 3 * low > 9 * whole, "{low} {whole}");
    assert_eq!(2 * attention(Variant::MasaQkv), whole);
}

#[test]
fn what_the_network_made_is_what_is_stored() {
    let study = tiny_study();
    let tokens: Vec<u32> = (0..400u32).map(|i| (i * i) % 97).collect();
    let fresh = study.fresh(Variant::MasaQkvo, Seed::new(0)).unwrap();
    let before: Vec<f32> = coefficient(&fresh.model.bank, "q", 3);
    let (bank, network) = (fresh.model.bank.clone(), fresh.network.clone().unwrap());
    let config = study.scratch.train.clone();
    let model = train(fresh, &tokens, &config, Default::default(), |_| {}).unwrap();
    // The handle shares its variables with what was trained, so the network can be asked again.
    let made = network.make(&bank).unwrap();
    for (name, value) in made {
        let stored = model.bank.stored_var(&name).unwrap();
        let (a, b): (Vec<f32>, Vec<f32>) = (value.to_vec1().unwrap(), stored.to_vec1().unwrap());
        assert_eq!(a, b, "{name}");
    }
    assert_ne!(before, coefficient(&model.bank, "q", 3));
    assert!(model.bank.stored_vars().all(|(n, _)| !n.contains("masa.net")));
    assert!(matches!(
        model.bank.plan().get("model.layers.0.self_attn.q_proj.weight").unwrap().share,
        Share::Combine { .. }
    ));
}

fn coefficient(bank: &Bank, key: &str, l: usize) -> Vec<f32> {
    bank.stored_var(&coefficient_part(key, l)).unwrap().to_vec1().unwrap()
}

#[test]
fn training_does_not_depend_on_threads() {
    let study = tiny_study();
    let tokens: Vec<u32> = (0..400u32).map(|i| (i * i) % 97).collect();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let train =
            || study.train(Variant::MasaQkvo, &tokens, &tokens, 1, Default::default(), &mut |_| {});
        pool.install(train).unwrap().perplexity
    };
    assert_eq!(run(1).to_bits(), run(3).to_bits());
}

#[test]
fn a_conversion_keeps_its_budget_and_every_stage_lowers_the_error() {
    let model = decoder(6);
    for stage in Stage::ALL {
        let c = convert_with(&stage.config(&config()), &model).unwrap();
        assert!(c.budget.stored <= c.budget.allowed, "{stage:?} {:?}", c.budget);
        let saved = model.bank.stored() - c.model.bank.stored();
        assert_eq!(saved, c.budget.original - c.budget.stored, "{stage:?}");
        for o in &c.outcomes {
            assert!(o.error <= o.atoms_error + 1e-6, "{o:?}");
        }
        // Whatever a program reads of it, it is the same function.
        let plain = Decoder::new(c.model.config.clone(), c.model.bank.materialize().unwrap());
        assert!(distance(&c.model, &plain.unwrap()) < 1e-4, "{stage:?}");
    }
}

/// `‖(W − Ŵ) L‖ / ‖W L‖` of one weight of the converted bank, with `L Lᵀ` the inputs' ridged
/// autocorrelation.
fn measured_error(c: &Converted, model: &Decoder, o: &Outcome, r: &[f64], ridge: f64) -> f64 {
    let name = &o.projection.of_decoder(&model.config)[o.block];
    let rows = |m: &Decoder| m.bank.weight(name).unwrap().to_vec2::<f32>().unwrap();
    let (whole, made) = (rows(model), rows(&c.model));
    let n = whole[0].len();
    let mean = (0..n).map(|i| r[i * n + i]).sum::<f64>() / n as f64;
    let form = |x: &[f64]| -> f64 {
        let at = |i: usize, j: usize| r[i * n + j] + if i == j { ridge * mean } else { 0. };
        (0..n).map(|i| (0..n).map(|j| x[i] * at(i, j) * x[j]).sum::<f64>()).sum()
    };
    let total = |f: &dyn Fn(usize, usize) -> f64| -> f64 {
        (0..whole.len()).map(|i| form(&(0..n).map(|j| f(i, j)).collect::<Vec<_>>())).sum()
    };
    let left = total(&|i, j| f64::from(whole[i][j]) - f64::from(made[i][j]));
    (left / total(&|i, j| f64::from(whole[i][j]))).sqrt()
}

#[test]
fn the_error_reported_is_that_of_the_stored_weights() {
    let model = decoder(6);
    let text: Vec<u32> = (0..600u32).map(|i| (i * i + i / 7) % 23).collect();
    let mut progress = |_: &str, _: usize, _: usize| {};
    let stop = Default::default();
    let mut context = Context { calibration: &text, seed: 3, stop, progress: &mut progress };
    let seen = Calibration::measure(&model, config().seq_len, &mut context).unwrap();
    for stage in [Stage::WhitenedSvd, Stage::Grouped, Stage::Refined] {
        let config = stage.config(&config());
        let c = convert(&config, &model, &mut context).unwrap();
        assert!(!c.outcomes.is_empty());
        for o in &c.outcomes {
            let inputs = if o.projection == Projection::O { &seen.heads } else { &seen.inputs };
            let error = measured_error(&c, &model, o, &inputs[o.block], config.ridge);
            assert!((error - o.error).abs() < 2e-3, "{stage:?} {o:?} {error}");
        }
    }
}

#[test]
fn atoms_of_a_conversion_have_the_scale_of_the_weights() {
    let model = decoder(6);
    let c = convert_with(&Stage::Pca.config(&config()), &model).unwrap();
    let rms = |t: Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let mut atoms = 0;
    for (name, atom) in c.model.bank.stored_vars().filter(|(n, _)| n.contains(".atom.")) {
        let projection = name.trim_start_matches("bank.masa.").chars().next().unwrap();
        let whole = format!("model.layers.0.self_attn.{projection}_proj.weight");
        let (whole, atom) =
            (rms(model.bank.weight(&whole).unwrap()), rms(atom.as_detached_tensor()));
        assert!((0.8..1.25).contains(&(atom / whole)), "{name} {atom} {whole}");
        atoms += 1;
    }
    assert!(atoms > 0);
}

#[test]
fn shared_projections_are_refused_and_others_may_be_shared() {
    let model = decoder(4);
    let once = convert_with(&config(), &model).unwrap().model;
    let said = convert_with(&config(), &once).unwrap_err().to_string();
    assert!(said.contains("materialize") && said.contains("self_attn"), "{said}");
    let only = Config { share: vec![Projection::Q], ..config() };
    let once = convert_with(&only, &model).unwrap().model;
    let rest = Config { share: vec![Projection::K, Projection::V], ..config() };
    assert!(convert_with(&rest, &once).is_ok());
}

#[test]
fn refinement_is_best_for_the_inputs_it_was_made_for() {
    // Two strongly correlated inputs: what they have in common must be kept.
    let r = [1.0f64, 0.99, 0.99, 1.0];
    let white = crate::linalg::Whitening::new(&r, 2, 0.).unwrap();
    let w = Tensor::from_slice(&[2f32, 1.9, -1., 1.], (2, 2), &Device::Cpu).unwrap();
    let svd = crate::linalg::truncated_svd(&white.apply(&w).unwrap(), 1).unwrap();
    let product = svd.b.matmul(&white.undo(&svd.a).unwrap()).unwrap();
    let plain = crate::linalg::truncated_svd(&w, 1).unwrap();
    let plain = plain.b.matmul(&plain.a).unwrap();
    let loss = |p: &Tensor| {
        let e = (&w - p).unwrap().to_vec2::<f32>().unwrap();
        let form = |row: &Vec<f32>| {
            let (x, y) = (f64::from(row[0]), f64::from(row[1]));
            x * x + 2. * 0.99 * x * y + y * y
        };
        e.iter().map(form).sum::<f64>()
    };
    let whole = loss(&w.zeros_like().unwrap());
    assert!(loss(&product) <= loss(&plain) + 1e-6 && loss(&product) < whole);
    let left = svd.error().unwrap().powi(2);
    assert!((loss(&product) - left).abs() < 1e-4, "{} {left}", loss(&product));
}

#[test]
fn cuts_fall_where_predictions_drift() {
    assert_eq!(cut(&[0.1, 3., 0.2, 2.], 3).unwrap(), [0..2, 2..4, 4..5]);
    assert_eq!(cut(&[1., 1.], 2).unwrap(), [0..1, 1..3]);
    let whole = cut(&[], 1).unwrap();
    assert_eq!((whole.len(), whole[0].clone()), (1, 0..1));
    assert!(cut(&[1.], 3).is_err() && cut(&[1.], 0).is_err());
}

#[test]
fn wrong_options_name_what_works() {
    let model = decoder(4);
    let refusal = |c: Config| convert_with(&c, &model).unwrap_err().to_string();
    for (bad, word) in [
        (Config { ratio: 1.2, ..config() }, "ratio"),
        (Config { groups: 9, ..config() }, "1..=4"),
        (Config { share: vec![], ..config() }, "share"),
        (Config { share: vec![Projection::Q, Projection::Q], ..config() }, "each once"),
        (Config { atoms_share: -1., ..config() }, "atoms_share"),
        (Config { ratio: 0.99, atoms_share: 0., ..config() }, "ratio"),
    ] {
        let message = refusal(bad);
        assert!(message.contains(word), "{message}");
    }
    let mut bank = model.bank.deep_clone().unwrap();
    let mixed =
        ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"]
            .map(str::to_owned);
    let e = initialise(&mut bank, "x", &mixed, 1, Start::Uniform, Seed::new(0)).unwrap_err();
    assert!(e.to_string().contains("one shape"), "{e}");
    let e = initialise(&mut bank, "x", &mixed[..1], 2, Start::Uniform, Seed::new(0)).unwrap_err();
    assert!(e.to_string().contains("atoms"), "{e}");
}

#[test]
fn a_vision_transformer_shares_the_same_way() {
    let config = VitConfig {
        image_size: 8,
        patch_size: 4,
        num_channels: 1,
        hidden_size: 8,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        intermediate_size: 16,
        num_labels: 3,
    };
    let mut model = Vit::init(config.clone(), Seed::new(0)).unwrap();
    let before = model.bank.stored();
    for projection in Projection::ALL {
        let members = projection.of_vit(&config);
        let (key, seed) = (projection.letter(), Seed::new(1));
        initialise(&mut model.bank, key, &members, 1, Start::Nearest, seed).unwrap();
    }
    assert_eq!(before - model.bank.stored(), 4 * (2 * 64 - 3));
    let images = Tensor::ones((2, 1, 8, 8), ops::DType::F32, &Device::Cpu).unwrap();
    let loss = ops::sum(&model.forward(&images).unwrap()).unwrap();
    let grads = ops::backward(&loss).unwrap();
    let atom: &Var = model.bank.stored_var(&atom_part("o", 0)).unwrap();
    assert!(grads.get(atom.as_tensor()).is_some());
}
