//! Losses over blocks of rows of logits.

use super::{LossOptions, Targets};
use crate::matmul::{mat, mat_mut, matmul};
use crate::{norm, par, simd, tape};
use candle_core::{Result, Tensor};

/// Cells of the block of logits held at once: 64 MiB.
const CELLS: usize = 16 << 20;

/// A linear head whose logits are formed block by block, and its gradients.
pub(super) struct Head {
    /// Rows handled at once.
    pub block: usize,
    vocab: usize,
    width: usize,
    dh: Option<Vec<f32>>,
    dw: Option<Vec<f32>>,
}

impl Head {
    pub fn new(h: &Tensor, w: &Tensor, vocab: usize, width: usize) -> Self {
        let zeros = |x: &Tensor| tape::tracking(&[x]).then(|| vec![0f32; x.elem_count()]);
        let rows = h.elem_count() / width.max(1);
        // Blocks of equal height, so that the last one is not a sliver.
        let pieces = (rows * vocab).div_ceil(CELLS).max(1);
        let block = rows.div_ceil(pieces).next_multiple_of(4);
        Self { block, vocab, width, dh: zeros(h), dw: zeros(w) }
    }

    pub fn tracks(&self) -> bool {
        self.dh.is_some() || self.dw.is_some()
    }

    /// Logits of a block of rows.
    pub fn scores(&self, h: &[f32], w: &[f32]) -> Vec<f32> {
        let rows = h.len() / self.width.max(1);
        let mut scores = vec![0f32; rows * self.vocab];
        let h = mat(h, rows, self.width, self.width);
        let w = mat(w, self.vocab, self.width, self.width);
        matmul(mat_mut(&mut scores, rows, self.vocab), false, h, w.t(), 1.0);
        scores
    }

    /// Adds the gradients that `dscores` of the block at `index` imply.
    pub fn gradients(&mut self, index: usize, dscores: &[f32], h: &[f32], w: &[f32]) {
        let rows = h.len() / self.width.max(1);
        let d = mat(dscores, rows, self.vocab, self.vocab);
        if let Some(dh) = &mut self.dh {
            let start = index * self.block * self.width;
            let dh = mat_mut(&mut dh[start..start + h.len()], rows, self.width);
            matmul(dh, false, d, mat(w, self.vocab, self.width, self.width), 1.0);
        }
        if let Some(dw) = &mut self.dw {
            let h = mat(h, rows, self.width, self.width);
            matmul(mat_mut(dw, self.vocab, self.width), index > 0, d.t(), h, 1.0);
        }
    }

    /// The gradients of `h` and `w`, where wanted.
    pub fn into_grads(self, h: &Tensor, w: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let tensor = |grad: Option<Vec<f32>>, like: &Tensor| {
            grad.map(|grad| Tensor::from_vec(grad, like.shape(), like.device())).transpose()
        };
        Ok(vec![tensor(self.dh, h)?, tensor(self.dw, w)?])
    }
}

/// How a row of logits becomes a loss and a gradient.
pub(super) struct Rule {
    vocab: usize,
    smoothing: f32,
    softcap: Option<f32>,
    /// One over the number of counted rows.
    share: f32,
}

impl Rule {
    pub fn new(options: &LossOptions, vocab: usize, targets: &Targets) -> Self {
        Self {
            vocab,
            smoothing: options.label_smoothing,
            softcap: options.softcap,
            share: 1.0 / targets.counted.max(1) as f32,
        }
    }

    /// The loss of some rows of logits, which become their gradient if `grad`.
    pub fn rows(&self, scores: &mut [f32], ids: &[u32], grad: bool) -> f64 {
        let (work, width) = (scores.len(), self.vocab.max(1));
        let height = par::rows_per_piece(width);
        let tasks = scores.chunks_mut(height * width).zip(ids.chunks(height));
        let parts = par::map(tasks, work, |(scores, ids)| {
            let rows = scores.chunks_exact_mut(width).zip(ids);
            rows.map(|(row, &id)| self.row(row, id, grad)).sum::<f64>()
        });
        parts.into_iter().sum::<f64>() * f64::from(self.share)
    }

    fn row(&self, row: &mut [f32], id: u32, grad: bool) -> f64 {
        if id == u32::MAX {
            row.fill(0.0);
            return 0.0;
        }
        let id = id as usize;
        let uniform = self.smoothing / row.len() as f32;
        simd::run(
            #[inline(always)]
            || {
                if let Some(cap) = self.softcap {
                    for x in row.iter_mut() {
                        *x = simd::tanh(*x / cap) * cap;
                    }
                }
                let picked = row[id];
                let mean =
                    if uniform > 0.0 { simd::sum(row, |x| x) / row.len() as f32 } else { 0.0 };
                let slope = self.softcap.filter(|_| grad).map(|cap| (row.to_vec(), cap));
                let log = match grad {
                    true => norm::softmax_in_place(row),
                    false => norm::log_total(row),
                };
                if grad {
                    for x in row.iter_mut() {
                        *x = (*x - uniform) * self.share;
                    }
                    row[id] -= (1.0 - self.smoothing) * self.share;
                }
                if let Some((capped, cap)) = slope {
                    for (d, y) in row.iter_mut().zip(capped) {
                        *d *= 1.0 - (y / cap) * (y / cap);
                    }
                }
                let target = (1.0 - self.smoothing) * picked + self.smoothing * mean;
                f64::from(log) - f64::from(target)
            },
        )
    }
}

/// What a row of logits loses to its target and to a teacher.
#[derive(Clone, Copy)]
pub(super) struct Distil {
    pub ce_coef: f32,
    pub kl_coef: f32,
    pub temperature: f32,
    /// One over the number of counted rows.
    pub share: f32,
}

impl Distil {
    /// Cross-entropy and `temperature² · KL(teacher ‖ student)` of some rows, both times `share`;
    /// the student's logits become the gradient of their weighted sum.
    pub fn rows(&self, student: &mut [f32], teacher: &mut [f32], ids: &[u32]) -> [f64; 2] {
        let work = student.len();
        let width = (work / ids.len().max(1)).max(1);
        let height = par::rows_per_piece(width);
        let cells = height * width;
        let tasks =
            student.chunks_mut(cells).zip(teacher.chunks_mut(cells)).zip(ids.chunks(height));
        let parts = par::map(tasks, work, |((student, teacher), ids)| {
            let rows = student.chunks_exact_mut(width).zip(teacher.chunks_exact_mut(width));
            rows.zip(ids).fold([0.0; 2], |sum, ((q, p), &id)| add(sum, self.row(q, p, id)))
        });
        let [ce, kl] = parts.into_iter().fold([0.0; 2], add);
        let (share, t) = (f64::from(self.share), f64::from(self.temperature));
        [ce * share, kl * t * t * share]
    }

    fn row(&self, q: &mut [f32], p: &mut [f32], id: u32) -> [f64; 2] {
        if id == u32::MAX {
            q.fill(0.0);
            return [0.0; 2];
        }
        let Self { ce_coef, kl_coef, temperature, share } = *self;
        // At temperature 1 both terms are of one distribution.
        let apart = temperature != 1.0 && ce_coef > 0.0;
        let plain = if apart { q.to_vec() } else { Vec::new() };
        simd::run(
            #[inline(always)]
            || {
                let picked = q[id as usize];
                let log = if ce_coef > 0.0 { norm::log_total(q) } else { picked };
                for (q, p) in q.iter_mut().zip(p.iter_mut()) {
                    *q /= temperature;
                    *p /= temperature;
                }
                let (log_q, log_p) = (norm::log_total(q), norm::log_total(p));
                let divergence = simd::sum2(p, q, |p, q| {
                    let p = p - log_p;
                    // A class the teacher rules out adds nothing, whatever the student says.
                    if p == f32::NEG_INFINITY { 0.0 } else { simd::exp(p) * (p - (q - log_q)) }
                });
                let pull = kl_coef * temperature * share;
                let own = pull + if apart { 0.0 } else { ce_coef * share };
                for (q, p) in q.iter_mut().zip(p.iter()) {
                    *q = simd::exp(*q - log_q) * own - simd::exp(*p - log_p) * pull;
                }
                if apart {
                    for (q, x) in q.iter_mut().zip(&plain) {
                        *q += simd::exp(*x - log) * (ce_coef * share);
                    }
                }
                q[id as usize] -= ce_coef * share;
                [f64::from(log) - f64::from(picked), f64::from(divergence)]
            },
        )
    }
}

fn add(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
    [a[0] + b[0], a[1] + b[1]]
}
