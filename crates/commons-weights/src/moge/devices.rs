//! Experts on devices of their own: one thread per group, and the time until the last is done.

use std::ops::Range;
use std::time::Instant;

use commons_nn::model::moe::experts;
use commons_nn::model::{Decoder, MoePhase, layer_prefix};
use commons_ops::{self as ops, Activation, Dispatch, Expert, Tensor};

use crate::{Error, Result};

/// A layer's routed experts spread over devices, each a thread with a pool of one thread.
pub struct Devices {
    pools: Vec<rayon::ThreadPool>,
    experts: Vec<Expert>,
    act: Activation,
}

/// One step over all devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Seconds each device computed.
    pub busy: Vec<f64>,
    /// Seconds until the last was done, start of the threads included.
    pub wall: f64,
}

impl Step {
    /// Seconds that the first to finish waited for the last.
    pub fn gap(&self) -> f64 {
        let most = self.busy.iter().copied().fold(0., f64::max);
        most - self.busy.iter().copied().fold(most, f64::min)
    }
}

impl Devices {
    /// Spreads the experts of layer `l` over `devices`.
    ///
    /// # Errors
    /// When the model has no experts, devices do not divide them, or threads cannot be made.
    pub fn new(model: &Decoder, l: usize, devices: usize) -> Result<Self> {
        let n = model.experts()?.num_experts;
        if devices == 0 || !n.is_multiple_of(devices) {
            let reason = format!("{devices} must divide the {n} experts");
            return Err(Error::config("devices", reason));
        }
        let module = format!("{}mlp", layer_prefix(l));
        let pool = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..devices).map(pool).collect::<Result<Vec<_>, _>>();
        let pools = pools.map_err(|e| Error::config("devices", e.to_string()))?;
        let experts = experts(&model.bank, &module, n)?;
        Ok(Self { pools, experts, act: model.expert_route(l, MoePhase::Scoring)?.act })
    }

    /// The experts of a device.
    fn held(&self, device: usize) -> Range<usize> {
        let each = self.experts.len() / self.pools.len();
        device * each..(device + 1) * each
    }

    /// Runs the experts on `x [tokens, hidden]`: every device computes the part of the sum that its
    /// experts give, then the parts are added.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(&self, x: &Tensor, gates: &Tensor, dispatch: &Dispatch) -> Result<(Tensor, Step)> {
        let plans: Vec<Dispatch> =
            (0..self.pools.len()).map(|d| dispatch.restricted(self.held(d))).collect();
        let began = Instant::now();
        let parts: Vec<_> = std::thread::scope(|scope| {
            let run = |(pool, plan)| {
                let pool: &rayon::ThreadPool = pool;
                scope.spawn(move || {
                    pool.install(|| {
                        let began = Instant::now();
                        let part =
                            ops::no_grad(|| ops::moe(x, gates, plan, &self.experts, self.act));
                        Ok::<_, Error>((part?.0, began.elapsed().as_secs_f64()))
                    })
                })
            };
            let threads: Vec<_> = self.pools.iter().zip(&plans).map(run).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let wall = began.elapsed().as_secs_f64();
        let (mut sum, mut busy) = (None::<Tensor>, Vec::new());
        for part in parts {
            let part: Result<(Tensor, f64)> =
                part.map_err(|_| Error::config("devices", "a device's thread died"))?;
            let (y, seconds) = part?;
            busy.push(seconds);
            sum = Some(match sum {
                Some(sum) => ops::add(&sum, &y)?,
                None => y,
            });
        }
        let sum = sum.ok_or_else(|| Error::config("devices", "there are none"))?;
        Ok((sum, Step { busy, wall }))
    }
}
