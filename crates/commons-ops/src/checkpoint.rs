//! Activation checkpointing: keep a segment's inputs, recompute its inside (Chen et al. 2016).

use crate::tape::{self, Cx, Op};
use candle_core::{CpuStorage, Result, Storage, Tensor, Var};

/// `f(inputs)`, holding none of its intermediate results for the backward pass, which calls `f`
/// again. Gradients reach the inputs and every parameter `f` uses inside.
///
/// `f` must give the same result both times: draw its randomness from a fixed
/// [`commons_core::Seed`]. Call [`crate::backward`] on the loss; candle's own refuses. On devices
/// other than the CPU `f` is simply called, and its intermediate results stay.
///
/// # Errors
/// What `f` returns.
pub fn checkpoint<F>(inputs: &[&Tensor], f: F) -> Result<Tensor>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
{
    if inputs.iter().any(|x| !x.device().is_cpu()) {
        let inputs: Vec<Tensor> = inputs.iter().map(|&x| x.clone()).collect();
        return f(&inputs);
    }
    let detached: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
    let (out, skipped) = tape::unrecorded(|| f(&detached));
    let out = out?;
    let inside = skipped || out.track_op();
    let value = storage_of(&out)?;
    let anchor = tape::anchor()?;
    let mut args = inputs.to_vec();
    if inside {
        args.push(&anchor);
    }
    let op = Segment { f: Box::new(f), inputs: inputs.len() };
    if args.is_empty() {
        return Ok(out);
    }
    tape::record(op, &args, value, out.shape())
}

fn storage_of(x: &Tensor) -> Result<CpuStorage> {
    let x = x.detach().contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let whole = match layout.contiguous_offsets() {
        Some((0, end)) if end == layout.shape().elem_count() => x.clone(),
        _ => x.copy()?,
    };
    drop(storage);
    let (storage, _) = whole.storage_and_layout();
    match &*storage {
        Storage::Cpu(data) => Ok(data.clone()),
        _ => candle_core::bail!("checkpoint: the result must stay on the CPU"),
    }
}

type Function = dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync;

struct Segment {
    f: Box<Function>,
    inputs: usize,
}

impl Op for Segment {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let inputs = cx.args[..self.inputs]
            .iter()
            .map(|x| match x.track_op() {
                true => Var::from_tensor(&x.detach()).map(Var::into_inner),
                false => Ok(x.clone()),
            })
            .collect::<Result<Vec<_>>>()?;
        let out = (self.f)(&inputs)?;
        if !out.track_op() {
            return Ok(());
        }
        let mut found = tape::run_store(&out, cx.grad.clone())?;
        drop(out);
        for (i, input) in inputs.iter().enumerate() {
            if let Some(slot) = found.remove(input)
                && cx.wants(i)
            {
                cx.merge(i, slot)?;
            }
        }
        cx.leaves(found)
    }
}
