//! Attention in blocks of query rows. A task is one head of one batch row; scores of a block live
//! in a scratch buffer as wide as the keys the block can see.

use super::{AttentionOptions, Shape};
use crate::matmul::{Rows, View, mat, mat_mut, serial};
use crate::{par, simd};
use std::ops::Range;

/// Query rows handled at once.
const BLOCK: usize = 64;

/// One attention call.
pub(super) struct Call {
    pub shape: Shape,
    pub options: AttentionOptions,
}

/// Views of one head of one batch row.
#[derive(Clone, Copy)]
struct Head<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
}

impl Call {
    /// The output `[b, tq, hq, d]` and `log Σ e^score` `[b, hq, tq]`.
    pub fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let s = self.shape;
        let mut out = vec![0f32; q.len()];
        let mut logs = vec![0f32; s.b * s.hq * s.tq];
        if out.is_empty() || s.tk == 0 {
            return (out, logs);
        }
        let work = self.work();
        let heads = split_heads(&mut out, s.b, s.tq, s.hq, s.d);
        par::each(heads.into_iter().zip(logs.chunks_mut(s.tq)).enumerate(), work, |task| {
            let (i, (out, logs)) = task;
            self.head_forward(self.head(q, k, v, i), i / s.hq, out, logs);
        });
        (out, logs)
    }

    /// Gradients of `q`, `k` and `v`.
    pub fn backward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &[f32],
        dout: &[f32],
        logs: &[f32],
    ) -> [Vec<f32>; 3] {
        let s = self.shape;
        let mut dq = vec![0f32; q.len()];
        let (mut dk, mut dv) = (vec![0f32; k.len()], vec![0f32; v.len()]);
        if q.is_empty() || s.tk == 0 {
            return [dq, dk, dv];
        }
        let work = self.work();
        let width = s.hq * s.d;
        let along = self.along(out, dout);
        let heads = split_heads(&mut dq, s.b, s.tq, s.hq, s.d);
        let parts = par::map(heads.into_iter().enumerate(), work, |(i, dq)| {
            let dout = head_of(dout, s.tq, width, i / s.hq, i % s.hq, s.d);
            let logs = &logs[i * s.tq..(i + 1) * s.tq];
            let along = &along[i * s.tq..(i + 1) * s.tq];
            self.head_backward(self.head(q, k, v, i), i / s.hq, dout, logs, along, dq)
        });
        // Query heads of a group add up in order, whichever thread was first.
        let dks = split_heads(&mut dk, s.b, s.tk, s.hkv, s.d);
        let dvs = split_heads(&mut dv, s.b, s.tk, s.hkv, s.d);
        let work = parts.len() * s.tk * s.d;
        par::each(dks.into_iter().zip(dvs).enumerate(), work, |(i, (dk, dv))| {
            let (mut dk, mut dv) = (dk, dv);
            let (row, kv) = (i / s.hkv, i % s.hkv);
            let heads = parts[row * s.hq..(row + 1) * s.hq].iter().enumerate();
            for (_, (pk, pv)) in heads.filter(|(h, _)| self.key_head(*h) == kv) {
                add_to(&mut dk, pk);
                add_to(&mut dv, pv);
            }
        });
        [dq, dk, dv]
    }

    /// `⟨out, dout⟩` of every query, `[b, hq, tq]`: it equals `Σⱼ pⱼ dpⱼ` (Dao et al. 2022,
    /// appendix B.4).
    fn along(&self, out: &[f32], dout: &[f32]) -> Vec<f32> {
        let s = self.shape;
        let mut along = vec![0f32; s.b * s.hq * s.tq];
        let pairs = out.chunks_exact(s.d).zip(dout.chunks_exact(s.d));
        simd::run(
            #[inline(always)]
            || {
                for (at, (out, dout)) in pairs.enumerate() {
                    let (row, i, h) = (at / s.hq / s.tq, at / s.hq % s.tq, at % s.hq);
                    along[(row * s.hq + h) * s.tq + i] = simd::sum2(out, dout, |a, b| a * b);
                }
            },
        );
        along
    }

    fn key_head(&self, h: usize) -> usize {
        self.options.key_head(h, (self.shape.hq / self.shape.hkv).max(1))
    }

    /// A measure of the work for choosing threads, in elements.
    fn work(&self) -> usize {
        let s = self.shape;
        s.b * s.hq * s.tq * (s.tk + s.d)
    }

    fn head<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], i: usize) -> Head<'a> {
        let s = self.shape;
        let (row, h) = (i / s.hq, i % s.hq);
        let kv = self.key_head(h);
        let (wide, narrow) = (s.hq * s.d, s.hkv * s.d);
        Head {
            q: head_of(q, s.tq, wide, row, h, s.d),
            k: head_of(k, s.tk, narrow, row, kv, s.d),
            v: head_of(v, s.tk, narrow, row, kv, s.d),
        }
    }

    /// The keys that any query of the block may see.
    fn span(&self, row: usize, block: Range<usize>) -> Range<usize> {
        let (mut start, mut end) = (self.shape.tk, 0);
        for i in block {
            let seen = self.shape.visible(&self.options, row, i);
            if !seen.is_empty() {
                start = start.min(seen.start);
                end = end.max(seen.end);
            }
        }
        start.min(end)..end
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let tq = self.shape.tq;
        (0..tq).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(tq))
    }

    fn head_forward(&self, head: Head<'_>, row: usize, mut out: Rows<'_>, logs: &mut [f32]) {
        let (s, o) = (self.shape, &self.options);
        let mut scratch = vec![0f32; BLOCK.min(s.tq) * s.tk];
        for block in self.blocks() {
            let span = self.span(row, block.clone());
            if span.is_empty() {
                logs[block].fill(f32::NEG_INFINITY);
                continue;
            }
            let (rows, width) = (block.len(), span.len());
            let scores = &mut scratch[..rows * width];
            self.scores(scores, &head, &block, &span);
            for (line, i) in scores.chunks_exact_mut(width).zip(block.clone()) {
                let seen = within(s.visible(o, row, i), &span);
                logs[i] = soften(line, seen, o.softcap);
            }
            let p = mat(scores, rows, width, width);
            let v = head.v.rows(span.clone());
            serial(&mut out[block], false, p, v, 1.0);
        }
    }

    /// `scores = scale · q kᵀ` of a block.
    fn scores(
        &self,
        scores: &mut [f32],
        head: &Head<'_>,
        block: &Range<usize>,
        span: &Range<usize>,
    ) {
        let q = head.q.rows(block.clone());
        let k = head.k.rows(span.clone());
        let mut scores = mat_mut(scores, block.len(), span.len());
        serial(&mut scores, false, q, k.t(), self.shape.scale);
    }

    /// Writes the gradient of the head's queries to `dq`; returns those of its keys and values.
    fn head_backward(
        &self,
        head: Head<'_>,
        row: usize,
        dout: View<'_>,
        logs: &[f32],
        along: &[f32],
        mut dq: Rows<'_>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (s, o) = (self.shape, &self.options);
        let (mut dk, mut dv) = (vec![0f32; s.tk * s.d], vec![0f32; s.tk * s.d]);
        let size = BLOCK.min(s.tq) * s.tk;
        let (mut p, mut dp) = (vec![0f32; size], vec![0f32; size]);
        for block in self.blocks() {
            let span = self.span(row, block.clone());
            if span.is_empty() {
                continue;
            }
            let (rows, width) = (block.len(), span.len());
            let (p, dp) = (&mut p[..rows * width], &mut dp[..rows * width]);
            let dout = dout.rows(block.clone());
            let v = head.v.rows(span.clone());
            self.scores(p, &head, &block, &span);
            serial(&mut mat_mut(dp, rows, width), false, dout, v.t(), 1.0);
            let lines = p.chunks_exact_mut(width).zip(dp.chunks_exact_mut(width));
            for ((p, dp), i) in lines.zip(block.clone()) {
                let seen = within(s.visible(o, row, i), &span);
                soften_backward(p, dp, seen, logs[i], along[i], o.softcap);
            }
            let (p, ds) = (mat(p, rows, width, width), mat(dp, rows, width, width));
            let (q, k) = (head.q.rows(block.clone()), head.k.rows(span.clone()));
            serial(&mut dq[block], false, ds, k, s.scale);
            let keys = span.start * s.d..span.end * s.d;
            let mut dk = mat_mut(&mut dk[keys.clone()], width, s.d);
            serial(&mut dk, true, ds.t(), q, s.scale);
            let mut dv = mat_mut(&mut dv[keys], width, s.d);
            serial(&mut dv, true, p.t(), dout, 1.0);
        }
        (dk, dv)
    }
}

/// Softmax over the `seen` part of a line of scores, zero elsewhere; returns `log Σ e^score`.
fn soften(line: &mut [f32], seen: Range<usize>, softcap: Option<f32>) -> f32 {
    line[..seen.start].fill(0.0);
    line[seen.end..].fill(0.0);
    if seen.is_empty() {
        return f32::NEG_INFINITY;
    }
    let line = &mut line[seen];
    simd::run(
        #[inline(always)]
        || {
            if let Some(cap) = softcap {
                for x in line.iter_mut() {
                    *x = simd::tanh(*x / cap) * cap;
                }
            }
            crate::norm::softmax_in_place(line)
        },
    )
}

/// Turns scores into probabilities `p` and `dp` into the gradient of the scaled scores.
fn soften_backward(
    p: &mut [f32],
    dp: &mut [f32],
    seen: Range<usize>,
    log: f32,
    along: f32,
    softcap: Option<f32>,
) {
    for line in [&mut *p, &mut *dp] {
        line[..seen.start].fill(0.0);
        line[seen.end..].fill(0.0);
    }
    let (p, dp) = (&mut p[seen.clone()], &mut dp[seen]);
    simd::run(
        #[inline(always)]
        || match softcap {
            None => {
                for (p, dp) in p.iter_mut().zip(dp) {
                    *p = simd::exp(*p - log);
                    *dp = *p * (*dp - along);
                }
            }
            Some(cap) => {
                for (p, dp) in p.iter_mut().zip(dp) {
                    let t = simd::tanh(*p / cap);
                    *p = simd::exp(t * cap - log);
                    *dp = *p * (*dp - along) * (1.0 - t * t);
                }
            }
        },
    );
}

/// One head of one batch row of `x [b, t, h, d]`, `[t, d]`.
fn head_of(x: &[f32], t: usize, width: usize, row: usize, h: usize, d: usize) -> View<'_> {
    let batch = &x[row * t * width..(row + 1) * t * width];
    mat(batch, t, width, width).columns(h * d..(h + 1) * d)
}

/// The heads of every batch row of `x [b, t, h, d]`, batch row by batch row.
fn split_heads(x: &mut [f32], b: usize, t: usize, h: usize, d: usize) -> Vec<Rows<'_>> {
    let mut heads: Vec<Rows<'_>> = (0..b * h).map(|_| Vec::with_capacity(t)).collect();
    for (at, line) in x.chunks_exact_mut(d).enumerate() {
        heads[at / (t * h) * h + at % h].push(line);
    }
    heads
}

/// `range`, counted from the start of `span`, which holds it unless it is empty.
fn within(range: Range<usize>, span: &Range<usize>) -> Range<usize> {
    range.start.max(span.start) - span.start..range.end.max(span.start) - span.start
}

fn add_to(dst: &mut Rows<'_>, src: &[f32]) {
    let width = dst.first().map_or(1, |row| row.len());
    for (row, line) in dst.iter_mut().zip(src.chunks_exact(width)) {
        row.iter_mut().zip(line).for_each(|(d, s)| *d += s);
    }
}
