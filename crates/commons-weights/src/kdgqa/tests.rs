//! Golden allocations, identities (equal groups, identical heads, all heads), gradients, resumption,
//! and what is refused.

use commons_nn::bank::Entry;
use commons_nn::model::{DecoderConfig, Vit, VitConfig, ids_tensor, layer_prefix};
use commons_nn::train::{Loss, Resume, TrainConfig, Trainer};
use commons_ops::{self as ops, Device, Tensor};
use proptest::prelude::*;

use super::allocation::{dead, entropy, next_cache, uniform};
use super::*;

#[test]
fn allocations_are_golden() {
    assert_eq!(key_driven(12, &[1., 2., 3., 4.]), [0, 2, 4, 6]);
    assert_eq!(key_driven(16, &[10., 10.5, 11., 14.]), [0, 1, 3, 12]);
    assert_eq!(key_driven(6, &[5., 6., 7.]), [0, 2, 4]);
    assert_eq!(key_driven(9, &[3., 3., 9.]), [0, 0, 9]);
    let mut rng = Seed::new(0).rng();
    let diff = Dynamic::Difference.allocate(6, &[10., 12., 11.], &[9., 9., 10.5], &mut rng);
    assert_eq!(diff, [1, 4, 1]);
    // 0.9 n + 0.1 c = 10, 20, 30.
    let ema = Dynamic::Ema.allocate(6, &[10., 20., 30.], &[10., 20., 30.], &mut rng);
    assert_eq!(ema, [1, 2, 3]);
    let mut cache = [1., 2.];
    next_cache(&mut cache, &[5., 7.], 3);
    assert_eq!(cache, [2., 3.]);
    assert_eq!((dead(&[0, 2, 4]), entropy(&[3, 3])), (1, 1.));
}

proptest! {
    #[test]
    fn every_allocation_shares_out_all_heads(
        norms in proptest::collection::vec(0f64..100., 1..12),
        extra in 0usize..20,
        cache in proptest::collection::vec(0f64..100., 12),
        seed in any::<u64>(),
    ) {
        let heads = norms.len() + extra;
        let sum = |a: Vec<usize>| (a.len(), a.iter().sum::<usize>());
        prop_assert_eq!(sum(key_driven(heads, &norms)), (norms.len(), heads));
        prop_assert_eq!(sum(uniform(heads, norms.len())), (norms.len(), heads));
        for kind in [Dynamic::Difference, Dynamic::Ema] {
            let mut rng = Seed::new(seed).rng();
            let a = kind.allocate(heads, &norms, &cache[..norms.len()], &mut rng);
            prop_assert_eq!(sum(a), (norms.len(), heads));
        }
    }

    #[test]
    fn a_longer_key_never_serves_fewer(norms in proptest::collection::vec(1f64..9., 2..6)) {
        // A repair moves one head at a time, and there are at most as many as key heads.
        let a = key_driven(24, &norms);
        for (i, x) in norms.iter().enumerate() {
            for (j, y) in norms.iter().enumerate() {
                prop_assert!(x < y || a[i] + norms.len() >= a[j], "{:?} {:?}", norms, a);
            }
        }
    }
}

#[test]
fn equal_norms_fall_back_to_equal_groups() {
    assert_eq!(key_driven(9, &[2., 2., 2.]), [3, 3, 3]);
    assert_eq!(key_driven(9, &[f64::NAN, 2., 2.]), [3, 3, 3]);
    assert_eq!(key_driven(5, &[7.]), [5]);
}

#[test]
fn norms_are_summed_over_the_batch() {
    // Head 0 of item 0 holds (3, 4), of item 1 (0, 2); head 1 ones.
    let k = Tensor::new(&[3f32, 4., 1., 1., 0., 2., 1., 1.], &Device::Cpu).unwrap();
    let norms = key_norms(&k.reshape((2, 1, 2, 2)).unwrap()).unwrap();
    assert!((norms[0] - 7.).abs() < 1e-12 && (norms[1] - 8f64.sqrt()).abs() < 1e-12, "{norms:?}");
}

fn vit(seed: u64) -> Vit {
    let config = VitConfig {
        image_size: 8,
        patch_size: 4,
        num_channels: 1,
        hidden_size: 24,
        num_attention_heads: 6,
        num_key_value_heads: 6,
        num_hidden_layers: 2,
        intermediate_size: 32,
        num_labels: 4,
    };
    let vit = Vit::init(config, Seed::new(seed)).unwrap();
    for (name, var) in vit.bank.stored_vars() {
        // Far enough from zero for every path to matter.
        let mut noise = vec![0f32; var.elem_count()];
        Seed::new(seed).fork(name, 1).normal(0, &mut noise);
        let noise = Tensor::from_vec(noise, var.dims(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + (noise * 0.2).unwrap()).unwrap()).unwrap();
    }
    vit
}

fn images(n: usize) -> Tensor {
    let mut pixels = vec![0f32; n * 64];
    Seed::new(9).normal(0, &mut pixels);
    Tensor::from_vec(pixels, (n, 1, 8, 8), &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32) {
    for (x, y) in numbers(a).iter().zip(numbers(b)) {
        assert!((x - y).abs() <= tolerance * (1. + y.abs()), "{x} against {y}");
    }
}

#[test]
fn all_heads_are_multi_head_and_forced_equal_groups_are_gqa() {
    let (base, x) = (vit(1), images(3));
    let model = |groups, scheme| GroupedVit::convert(&base, groups, scheme, Seed::new(2)).unwrap();
    let plain = base.forward(&x).unwrap();
    close(&model(6, Scheme::Gqa).forward(&x, Phase::Train(0)).unwrap(), &plain, 1e-6);
    let gqa = model(3, Scheme::Gqa).forward(&x, Phase::Eval).unwrap();
    let forced = model(3, Scheme::Kdgqa);
    assert_ne!(numbers(&forced.forward(&x, Phase::Train(0)).unwrap()), numbers(&gqa));
    for layer in 0..2 {
        forced.set_allocation(layer, &[2, 2, 2]).unwrap();
    }
    close(&forced.forward(&x, Phase::Eval).unwrap(), &gqa, 1e-6);
    close(&model(3, Scheme::DgqaEma).forward(&x, Phase::Train(0)).unwrap(), &gqa, 1e-6);
    assert!(forced.set_allocation(0, &[2, 2, 1]).is_err());
}

#[test]
fn pooling_identical_heads_is_lossless() {
    let base = vit(3);
    for layer in 0..2 {
        for module in ["key.weight", "value.weight", "key.bias", "value.bias"] {
            let name = format!("vit.encoder.layer.{layer}.attention.attention.{module}");
            let var = base.bank.stored_var(&name).unwrap();
            let pooled = mean_pool(var, 6, 3).unwrap();
            let rows = pooled.reshape((3, ())).unwrap();
            let index = Tensor::new(&[0u32, 0, 1, 1, 2, 2], &Device::Cpu).unwrap();
            let doubled = rows.index_select(&index, 0).unwrap().reshape(var.dims()).unwrap();
            var.set(&doubled).unwrap();
        }
    }
    let x = images(2);
    let gqa = GroupedVit::convert(&base, 3, Scheme::Gqa, Seed::new(0)).unwrap();
    close(&gqa.forward(&x, Phase::Eval).unwrap(), &base.forward(&x).unwrap(), 1e-5);
}

#[test]
fn heads_are_pooled_by_runs_of_rows() {
    let w = Tensor::arange(0f32, 16., &Device::Cpu).unwrap().reshape((8, 2)).unwrap();
    // Four heads of two rows: head means of (0, 1) and (2, 3).
    let pooled = mean_pool(&w, 4, 2).unwrap();
    assert_eq!(numbers(&pooled), [2., 3., 4., 5., 10., 11., 12., 13.]);
}

#[test]
fn an_unread_head_gets_no_gradient_and_others_the_sum() {
    let model = GroupedVit::convert(&vit(5), 3, Scheme::Kdgqa, Seed::new(2)).unwrap();
    let name = "vit.encoder.layer.0.attention.attention.key.weight";
    let x = images(2);
    let labels = Tensor::new(&[1u32, 3], &Device::Cpu).unwrap();
    model.set_allocation(0, &[4, 0, 2]).unwrap();
    let loss = || {
        let scores = model.forward(&x, Phase::Eval).unwrap();
        ops::cross_entropy(&scores, &labels, 0.).unwrap()
    };
    let var = model.vit.bank.stored_var(name).unwrap();
    let grad = numbers(ops::backward(&loss()).unwrap().get(var).unwrap());
    let (third, at) = (grad.len() / 3, 7);
    assert!(grad[third..2 * third].iter().all(|g| *g == 0.));
    let values = numbers(var);
    let at_shift = |h: f32| {
        let mut moved = values.clone();
        moved[at] += h;
        var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
        f64::from(loss().to_scalar::<f32>().unwrap())
    };
    let slope = (at_shift(1e-2) - at_shift(-1e-2)) / 2e-2;
    assert!(
        (slope - f64::from(grad[at])).abs() < 2e-3 * (1. + slope.abs()),
        "{slope} {}",
        grad[at]
    );
}

#[test]
fn perturbation_takes_the_mean_away_and_is_seeded() {
    let model = GroupedVit::convert(&vit(6), 3, Scheme::Pgqa, Seed::new(2)).unwrap();
    let x = images(2);
    let scores = |step| numbers(&model.forward(&x, Phase::Train(step)).unwrap());
    assert_eq!(scores(4), scores(4));
    assert_ne!(scores(4), scores(5));
    // Of every head's output, noise with the mean and deviation of that output is taken.
    let mut y = vec![0f32; 2 * 5 * 6 * 4];
    Seed::new(9).normal(0, &mut y);
    y[..4 * 6].iter_mut().for_each(|v| *v += 3.);
    let y = Tensor::from_vec(y, (2, 5, 6, 4), &Device::Cpu).unwrap();
    let noise = (&y - model.perturb(0, &y, Phase::Train(4)).unwrap()).unwrap();
    let per_head = |t: &Tensor| t.transpose(1, 2).unwrap().reshape((12, 20)).unwrap();
    let (of_y, of_noise) = (per_head(&y), per_head(&noise));
    for head in 0..12 {
        let (a, b) = (numbers(&of_y.get(head).unwrap()), numbers(&of_noise.get(head).unwrap()));
        let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
        let spread = |v: &[f32]| {
            let m = mean(v);
            v.iter().map(|x| (x - m).powi(2)).sum::<f32>() / v.len() as f32
        };
        assert!((mean(&a) - mean(&b)).abs() < 1e-5, "{head}");
        assert!((spread(&a) - spread(&b)).abs() < 1e-4 * spread(&a), "{head}");
        assert_ne!(a, b, "{head}: noise is the output itself");
    }
    let gqa = GroupedVit::convert(&vit(6), 3, Scheme::Gqa, Seed::new(2)).unwrap();
    assert_ne!(scores(4), numbers(&gqa.forward(&x, Phase::Train(4)).unwrap()));
    // One noise for the batch: an image is scored the same whatever stands beside it.
    let alone = model.forward(&x.narrow(0, 1, 1).unwrap(), Phase::Eval).unwrap();
    let both = model.forward(&x, Phase::Eval).unwrap().narrow(0, 1, 1).unwrap();
    close(&alone, &both, 1e-5);
}

#[test]
fn the_control_has_the_counts_of_norms_in_an_order_of_its_own() {
    let x = images(4);
    let of = |scheme, seed| {
        let model = GroupedVit::convert(&vit(7), 3, scheme, Seed::new(seed)).unwrap();
        model.calibrate(&x).unwrap();
        model.allocation().unwrap()
    };
    let sorted = |mut a: Vec<usize>| {
        a.sort_unstable();
        a
    };
    let first = |rows: Vec<Vec<usize>>| rows[0].clone();
    let by_norms = first(of(Scheme::Kdgqa, 2));
    let controls: Vec<_> = (0..8).map(|seed| first(of(Scheme::Random, seed))).collect();
    assert!(controls.iter().all(|c| sorted(c.clone()) == sorted(by_norms.clone())));
    assert!(controls.iter().any(|c| *c != by_norms), "{controls:?}");
}

#[test]
fn frozen_groups_do_not_depend_on_the_batch_unless_asked() {
    let model = GroupedVit::convert(&vit(7), 3, Scheme::Kdgqa, Seed::new(2)).unwrap();
    let x = images(4);
    model.calibrate(&x).unwrap();
    let allocation = model.allocation().unwrap();
    assert!(allocation.iter().any(|a| a != &[2, 2, 2]), "{allocation:?}");
    let alone = model.forward(&x.narrow(0, 1, 1).unwrap(), Phase::Eval).unwrap();
    let all = model.forward(&x, Phase::Eval).unwrap();
    close(&alone, &all.narrow(0, 1, 1).unwrap(), 1e-5);
    assert_eq!(model.allocation().unwrap(), allocation);
    let paper = GroupedVit { paper_eval: true, ..model };
    // On the very images of calibration, deciding anew decides the same.
    close(&paper.forward(&x, Phase::Eval).unwrap(), &all, 1e-6);
}

#[test]
fn a_run_resumed_within_a_window_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let labels = Tensor::new(&[1u32, 3, 0, 2], &Device::Cpu).unwrap();
    let train = |steps: usize, resume: bool, folder: &std::path::Path| {
        let made = GroupedVit::convert(&vit(8), 3, Scheme::DgqaDiff, Seed::new(2)).unwrap();
        let model = GroupedVit { window: 3, ..made };
        let config = TrainConfig {
            steps,
            save_steps: 5,
            learning_rate: 1e-2,
            schedule: commons_nn::train::Schedule::Constant,
            ..TrainConfig::default()
        };
        let mut trainer = Trainer::new(config, &model.vit.bank).unwrap().checkpoints(folder);
        trainer.resume(if resume { Resume::Latest } else { Resume::Refuse }).unwrap();
        trainer
            .run(
                |at| {
                    let scores = model.forward(&images(4), Phase::Train(at.step))?;
                    Ok(Loss::new(ops::cross_entropy(&scores, &labels, 0.)?, 4))
                },
                |_| {},
            )
            .unwrap();
        let cache = numbers(model.vit.bank.stored_var(CACHE).unwrap());
        assert_eq!(cache.iter().all(|c| *c > 0.), steps > 3, "{cache:?}");
        let all = model.vit.bank.stored_vars().flat_map(|(_, v)| numbers(v));
        (model.allocation().unwrap(), all.map(f32::to_bits).collect::<Vec<_>>())
    };
    let whole = train(11, false, &folder.path().join("whole"));
    train(5, false, &folder.path().join("parts"));
    assert_eq!(train(11, true, &folder.path().join("parts")), whole);
    assert_eq!(train(11, true, &folder.path().join("parts")), whole, "nothing left to do");
}

fn decoder() -> Decoder {
    Decoder::init(DecoderConfig::llama(24, 32, 3, 8, 4, 24), Seed::new(7)).unwrap()
}

fn text() -> Vec<u32> {
    (0..400u32).map(|i| (i * i + i / 3) % 23).collect()
}

fn options(kv_heads: usize, scheme: Scheme) -> KdgqaConfig {
    KdgqaConfig { kv_heads: Some(kv_heads), scheme, seq_len: 32, ..KdgqaConfig::default() }
}

fn converted(config: &KdgqaConfig, model: &Decoder) -> Result<Converted> {
    convert(config, model, &text(), Seed::new(3), &mut |_, _, _| Ok(()))
}

#[test]
fn every_scheme_converts_a_decoder_and_its_plain_copy_agrees() {
    let model = decoder();
    for scheme in [Scheme::Gqa, Scheme::Kdgqa, Scheme::DgqaDiff, Scheme::DgqaEma, Scheme::Random] {
        let done = converted(&options(2, scheme), &model).unwrap();
        assert_eq!(done.model.config.num_key_value_heads, 2);
        assert!(done.groups.iter().all(|a| a.iter().sum::<usize>() == 8));
        assert_eq!(done.table().rows.len(), 3);
        let ids = ids_tensor(&[&text()[..20]], &model.bank).unwrap();
        let hidden = done.model.forward(&ids, None).unwrap();
        close(&done.model.plain().unwrap().forward(&ids, None).unwrap(), &hidden, 1e-5);
    }
    // Norms of this text are not all equal, so groups are not.
    let done = converted(&options(4, Scheme::Kdgqa), &model).unwrap();
    assert!(!done.model.config.query_heads_per_kv_head.is_empty());
    assert_eq!(done.model.bank.stored(), model.bank.stored());
}

#[test]
fn what_layers_share_stays_shared() {
    let mut model = decoder();
    for layer in [1, 2] {
        for module in ["k_proj", "v_proj"] {
            let name = |l| format!("{}self_attn.{module}.weight", layer_prefix(l));
            model.bank.share(&name(layer), Entry::same(name(0))).unwrap();
        }
    }
    let term = format!("{}self_attn.k_proj.weight", layer_prefix(1));
    model.bank.add_lora(&term, 2, 4., Seed::new(1)).unwrap();
    let b = model.bank.stored_var(&format!("bank.lora.{term}.0.b")).unwrap();
    b.set(&Tensor::ones(b.dims(), ops::DType::F32, &Device::Cpu).unwrap()).unwrap();
    let before: Vec<Tensor> = (0..3)
        .map(|l| model.bank.weight(&format!("{}self_attn.k_proj.weight", layer_prefix(l))).unwrap())
        .collect();
    let done = converted(&options(2, Scheme::Gqa), &model).unwrap().model;
    for (layer, before) in before.iter().enumerate() {
        let name = format!("{}self_attn.k_proj.weight", layer_prefix(layer));
        close(&done.bank.weight(&name).unwrap(), &mean_pool(before, 4, 2).unwrap(), 1e-5);
    }
    assert_eq!(done.bank.plan().len(), model.bank.plan().len());
    assert!(done.bank.stored() < model.bank.stored());
}

#[test]
fn refusals_name_what_works() {
    let says =
        |config: &KdgqaConfig, model: &Decoder| converted(config, model).unwrap_err().to_string();
    let model = decoder();
    for (kv_heads, scheme, part) in [
        (3, Scheme::Gqa, "nearest that works is 2"),
        (9, Scheme::Kdgqa, "nearest that works is 4"),
        (0, Scheme::Kdgqa, "nearest that works is 1"),
        (4, Scheme::Gqa, "give fewer"),
        (2, Scheme::Pgqa, "use gqa"),
    ] {
        let message = says(&options(kv_heads, scheme), &model);
        assert!(message.contains(part), "{message}");
    }
    let config = options(2, Scheme::Kdgqa);
    let none = convert(&config, &model, &[1, 2], Seed::new(0), &mut |_, _, _| Ok(()));
    assert!(none.unwrap_err().to_string().contains("bring text, or use scheme gqa"));
    let twice = converted(&config, &model).unwrap().model;
    let message = says(&config, &twice);
    assert!(message.contains("materialize") || twice.config.query_heads_per_kv_head.is_empty());
    let one = Decoder::init(DecoderConfig::llama(24, 32, 1, 4, 1, 24), Seed::new(7)).unwrap();
    let config = KdgqaConfig { kv_heads: None, ..options(1, Scheme::Kdgqa) };
    assert!(says(&config, &one).contains("nothing left to share"));
}
