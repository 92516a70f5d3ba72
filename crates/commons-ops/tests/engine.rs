//! The gradient engine: shared tensors, views, checkpoints, threads and instruction sets.
#![allow(clippy::unwrap_used)]

use commons_core::Seed;
use commons_ops::simd::{self, Level};
use commons_ops::{
    AttentionOptions, Device, Grads, LossOptions, Result, Tensor, Var, add, attention, backward,
    checkpoint, layer_norm, linear, linear_cross_entropy, no_grad, rms_norm, silu, sum, swiglu,
};

fn var(seed: u64, dims: &[usize]) -> Var {
    let mut data = vec![0f32; dims.iter().product()];
    Seed::new(seed).normal(0, &mut data);
    data.iter_mut().for_each(|x| *x *= 0.2);
    Var::from_vec(data, dims, &Device::Cpu).unwrap()
}

/// Held by tests that choose the instruction set or compare bit by bit: the choice is global.
static INSTRUCTIONS: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn close(a: &Tensor, b: &Tensor) {
    let (a, b) = (a.flatten_all().unwrap(), b.flatten_all().unwrap());
    let (a, b) = (a.to_vec1::<f32>().unwrap(), b.to_vec1::<f32>().unwrap());
    let size = b.iter().fold(1e-3f32, |m, b| m.max(b.abs()));
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * size), "{a:?} {b:?}");
}

/// Two transformer layers that share one set of weights, with a tied head.
struct Model {
    table: Var,
    qkv: Var,
    out: Var,
    up: Var,
    gate: Var,
    down: Var,
    gain: Var,
}

const WIDTH: usize = 64;
const VOCAB: usize = 130;

impl Model {
    fn new() -> Self {
        Self {
            table: var(1, &[VOCAB, WIDTH]),
            qkv: var(2, &[3 * WIDTH, WIDTH]),
            out: var(3, &[WIDTH, WIDTH]),
            up: var(4, &[2 * WIDTH, WIDTH]),
            gate: var(5, &[2 * WIDTH, WIDTH]),
            down: var(6, &[WIDTH, 2 * WIDTH]),
            gain: var(7, &[WIDTH]),
        }
    }

    fn parameters(&self) -> [&Var; 7] {
        [&self.table, &self.qkv, &self.out, &self.up, &self.gate, &self.down, &self.gain]
    }

    fn layer(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        let n = rms_norm(x, &self.gain, 1e-5)?;
        let heads = linear(&n, &self.qkv, None)?.reshape((b, t, 12, WIDTH / 4))?;
        let part = |i: usize| heads.narrow(2, 4 * i, 4);
        let mixed = attention(&part(0)?, &part(1)?, &part(2)?, &AttentionOptions::causal())?;
        let x = add(x, &linear(&mixed, &self.out, None)?)?;
        let n = rms_norm(&x, &self.gain, 1e-5)?;
        let hidden = swiglu(&linear(&n, &self.gate, None)?, &linear(&n, &self.up, None)?)?;
        add(&x, &linear(&hidden, &self.down, None)?)
    }

    fn loss(&self, layer: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let ids: Vec<u32> = (0..240).map(|i| i * 37 % VOCAB as u32).collect();
        let ids = Tensor::from_vec(ids, (2, 120), &Device::Cpu)?;
        let mut x = commons_ops::embedding(&self.table, &ids)?;
        for _ in 0..2 {
            x = layer(&x)?;
        }
        linear_cross_entropy(&x, &self.table, &ids, &LossOptions::default())
    }

    fn grads(&self) -> Grads {
        backward(&self.loss(|x| self.layer(x)).unwrap()).unwrap()
    }
}

#[test]
fn shared_weights_get_the_gradient_that_candles_engine_finds() {
    let model = Model::new();
    let ours = model.grads();
    assert_eq!(ours.len(), 7);
    // One candle op in the graph sends all of it through candle's engine.
    let loss = model.loss(|x| self_plus_nothing(&model.layer(x)?)).unwrap();
    let candle = backward(&loss).unwrap();
    for p in model.parameters() {
        close(ours.get(p).unwrap(), candle.get(p).unwrap());
    }
    // Without a checkpoint candle's own entry point agrees as well.
    let plain = model.loss(|x| model.layer(x)).unwrap().backward().unwrap();
    for p in model.parameters() {
        close(plain.get(p).unwrap(), ours.get(p).unwrap());
    }
}

fn self_plus_nothing(x: &Tensor) -> Result<Tensor> {
    x.affine(1.0, 0.0)
}

#[test]
fn results_do_not_depend_on_threads() {
    let _alone = INSTRUCTIONS.lock();
    let model = Model::new();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let loss = model.loss(|x| model.layer(x)).unwrap();
            let grads = backward(&loss).unwrap();
            let mut all = bits(&loss);
            model.parameters().iter().for_each(|p| all.extend(bits(grads.get(p).unwrap())));
            all
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(4));
}

#[test]
fn instruction_sets_agree() {
    let _alone = INSTRUCTIONS.lock();
    let model = Model::new();
    let best = model.grads();
    for level in [Level::Plain, Level::Avx2, Level::Avx512] {
        simd::limit(level);
        let grads = model.grads();
        for p in model.parameters() {
            close(grads.get(p).unwrap(), best.get(p).unwrap());
        }
    }
}

#[test]
fn checkpoints_change_memory_but_not_gradients() {
    let model = std::sync::Arc::new(Model::new());
    let plain = model.grads();
    let segment = |x: &Tensor| {
        let inner = model.clone();
        checkpoint(&[x], move |x| inner.layer(&x[0]))
    };
    let loss = model.loss(segment).unwrap();
    for (loss, checked) in [
        (&loss, backward(&loss).unwrap()),
        (&loss, {
            let mixed = model.loss(|x| self_plus_nothing(&segment(x)?)).unwrap();
            backward(&mixed).unwrap()
        }),
    ] {
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
        for p in model.parameters() {
            close(checked.get(p).unwrap(), plain.get(p).unwrap());
        }
    }
    let refused = loss.backward().unwrap_err().to_string();
    assert!(refused.contains("commons_ops::backward"), "{refused}");
}

#[test]
fn a_checkpoint_of_constants_still_reaches_its_parameters() {
    let w = var(1, &[3, 4]);
    let x = var(2, &[2, 4]).as_detached_tensor();
    let inner = w.clone();
    let y = checkpoint(&[&x], move |x| silu(&linear(&x[0], &inner, None)?)).unwrap();
    let checked = backward(&sum(&y).unwrap()).unwrap();
    let plain = backward(&sum(&silu(&linear(&x, &w, None).unwrap()).unwrap()).unwrap()).unwrap();
    close(checked.get(&w).unwrap(), plain.get(&w).unwrap());
    // Four inputs are more than a candle op takes.
    let parts: Vec<Var> = (0..4).map(|i| var(i, &[2, 2])).collect();
    let refs: Vec<&Tensor> = parts.iter().map(|p| p.as_tensor()).collect();
    let total = |x: &[Tensor]| add(&add(&x[0], &x[1])?, &add(&x[2], &silu(&x[3])?)?);
    let y = checkpoint(&refs, total).unwrap();
    let ours = backward(&sum(&y).unwrap()).unwrap();
    let mixed = backward(&sum(&self_plus_nothing(&y).unwrap()).unwrap()).unwrap();
    for p in &parts {
        close(mixed.get(p).unwrap(), ours.get(p).unwrap());
    }
    assert_eq!(bits(ours.get(&parts[0]).unwrap()), [1f32.to_bits(); 4]);
}

#[test]
fn views_pass_gradients_back() {
    let x = var(1, &[4, 6]);
    let views: [fn(&Tensor) -> Result<Tensor>; 6] = [
        |x| x.reshape((2, 12)),
        |x| x.t(),
        |x| x.narrow(1, 2, 3),
        |x| x.narrow(0, 1, 2)?.t()?.narrow(0, 1, 4),
        |x| x.unsqueeze(0)?.broadcast_as((3, 4, 6)),
        |x| x.unsqueeze(1)?.broadcast_as((4, 2, 6))?.narrow(2, 0, 3)?.transpose(0, 1),
    ];
    for view in views {
        let ours = silu(&view(&x).unwrap()).unwrap();
        let ours = backward(&sum(&ours).unwrap()).unwrap();
        let mixed = self_plus_nothing(&silu(&view(&x).unwrap()).unwrap()).unwrap();
        let mixed = backward(&sum(&mixed).unwrap()).unwrap();
        close(ours.get(&x).unwrap(), mixed.get(&x).unwrap());
    }
}

#[test]
fn a_tensor_used_often_adds_up_without_touching_shared_buffers() {
    let (x, y) = (var(1, &[5]), var(2, &[5]));
    // x's and y's gradients start as one buffer, which further uses must not write.
    let both = add(&x, &y).unwrap();
    let loss = sum(&add(&add(&both, &both).unwrap(), &add(&x, &x).unwrap()).unwrap()).unwrap();
    let grads = backward(&loss).unwrap();
    assert_eq!(bits(grads.get(&x).unwrap()), [4f32.to_bits(); 5]);
    assert_eq!(bits(grads.get(&y).unwrap()), [2f32.to_bits(); 5]);
}

#[test]
fn grads_add_up_scale_and_measure() {
    let x = var(1, &[3]);
    let run = || backward(&sum(&add(&x, &x).unwrap()).unwrap()).unwrap();
    let mut grads = run();
    assert!((grads.global_norm().unwrap() - 12f64.sqrt()).abs() < 1e-6);
    grads.accumulate(run()).unwrap();
    grads.scale_(0.5).unwrap();
    assert_eq!(bits(grads.get(&x).unwrap()), [2f32.to_bits(); 3]);
    let other = var(9, &[3]);
    assert!(grads.get(&other).is_none());
    assert!(backward(&add(&x, &x).unwrap()).unwrap_err().to_string().contains("one element"));
}

#[test]
fn nothing_is_recorded_without_gradients() {
    let (x, w) = (var(1, &[2, 3]), var(2, &[3]));
    let y = no_grad(|| layer_norm(&x, &w, None, 1e-5)).unwrap();
    assert!(!y.track_op());
    assert!(layer_norm(&x, &w, None, 1e-5).unwrap().track_op());
    assert!(!layer_norm(&x.detach(), &w.detach(), None, 1e-5).unwrap().track_op());
}
