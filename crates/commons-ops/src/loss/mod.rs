//! Losses over a vocabulary.

use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{check, composed};
use candle_core::{DType, Result, Tensor, bail};
use kernel::{Distil, Head, Rule};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

mod kernel;
#[cfg(test)]
mod tests;

/// Options of [`linear_cross_entropy`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossOptions {
    /// Weight of the uniform distribution in the target, in `[0, 1]` (Szegedy et al. 2015).
    pub label_smoothing: f32,
    /// Logits become `softcap · tanh(logit / softcap)` (Gemma 2, section 2).
    pub softcap: Option<f32>,
}

/// Mean cross-entropy in nats of `logits [n, vocab]` against `targets [n]` (`u32`; `u32::MAX` =
/// ignored). The mean is over counted rows; with none the loss is 0.
///
/// # Errors
/// If the shapes do not fit, a target is not below `vocab`, or the smoothing is not in `[0, 1]`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f32) -> Result<Tensor> {
    smoothing_in_range("cross_entropy", label_smoothing)?;
    if !fused(&[logits]) {
        return composed::cross_entropy(logits, targets, label_smoothing);
    }
    let (rows, vocab) = check::matrix("cross_entropy", "logits", logits)?;
    let targets = targets_of("cross_entropy", targets, rows, vocab)?;
    let rule = Rule::new(&LossOptions { label_smoothing, softcap: None }, vocab, &targets);
    let compute = move |args: &[Tensor]| {
        let logits = &args[0];
        let wanted = tape::tracking(&[logits]);
        let mut scores = read(logits, |x| Ok(x.to_vec()))?;
        let loss = rule.rows(&mut scores, &targets.ids, wanted);
        let grad = || Tensor::from_vec(scores, logits.shape(), logits.device());
        Ok((loss, vec![wanted.then(grad).transpose()?]))
    };
    Ready::record(compute, &[logits])
}

/// Cross-entropy of the logits `h Wᵀ` without holding them: `h [.., hidden]`, `w [vocab, hidden]`,
/// `targets` with as many entries as `h` has rows.
///
/// # Errors
/// As [`cross_entropy`], and if `softcap` is not positive.
pub fn linear_cross_entropy(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    options: &LossOptions,
) -> Result<Tensor> {
    smoothing_in_range("linear_cross_entropy", options.label_smoothing)?;
    if let Some(cap) = options.softcap
        && !(cap > 0.0)
    {
        bail!("linear_cross_entropy: softcap {cap} must be positive")
    }
    if !fused(&[h, w]) {
        return composed::linear_cross_entropy(h, w, targets, options);
    }
    let shape = check::linear("linear_cross_entropy", h, w, None)?;
    let vocab = w.dims()[0];
    let targets = targets_of("linear_cross_entropy", targets, shape.rows, vocab)?;
    let rule = Rule::new(options, vocab, &targets);
    let width = shape.inputs.max(1);
    let compute = move |args: &[Tensor]| {
        let mut head = Head::new(&args[0], &args[1], vocab, width);
        let mut loss = 0.0;
        read(&args[0], |all| {
            read(&args[1], |w| {
                let pieces = all.chunks(head.block * width).zip(targets.ids.chunks(head.block));
                for (i, (h, ids)) in pieces.enumerate() {
                    let mut scores = head.scores(h, w);
                    loss += rule.rows(&mut scores, ids, head.tracks());
                    head.gradients(i, &scores, h, w);
                }
                Ok(())
            })
        })?;
        Ok((loss, head.into_grads(&args[0], &args[1])?))
    };
    Ready::record(compute, &[h, w])
}

/// Distillation loss `temperature² · KL(teacher ‖ student)` of the distributions
/// `softmax(h Wᵀ / temperature)` (Hinton et al. 2015), one block of logits at a time.
///
/// `h_student [.., ds]`, `w_student [vocab, ds]`, `h_teacher [.., dt]`, `w_teacher [vocab, dt]`.
/// Rows whose entry in `targets` is `u32::MAX` are left out; the mean is over the others. The
/// teacher receives no gradient.
///
/// # Errors
/// If rows or vocabularies differ or the temperature is not positive.
pub fn linear_kl(
    h_student: &Tensor,
    w_student: &Tensor,
    h_teacher: &Tensor,
    w_teacher: &Tensor,
    temperature: f32,
    targets: Option<&Tensor>,
) -> Result<Tensor> {
    let all = [h_student, w_student, h_teacher, w_teacher];
    if !fused(&all) {
        let [h, w, h_teacher, w_teacher] = all;
        return composed::linear_kl(h, w, h_teacher, w_teacher, temperature, targets);
    }
    let (rows, vocab) =
        check::kl("linear_kl", h_student, w_student, h_teacher, w_teacher, temperature)?;
    let targets = match targets {
        Some(targets) => targets_of("linear_kl", targets, rows, vocab)?,
        None => Targets { ids: vec![0; rows], counted: rows },
    };
    let options = DistillOptions { ce_coef: 0.0, kl_coef: 1.0, temperature };
    distill(all, targets, options).map(|d| d.total)
}

/// Options of [`linear_distill`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DistillOptions {
    /// Weight of the cross-entropy.
    pub ce_coef: f32,
    /// Weight of the divergence from the teacher.
    pub kl_coef: f32,
    /// Softmax temperature of both distributions in the divergence.
    pub temperature: f32,
}

/// What [`linear_distill`] gives.
#[derive(Debug, Clone)]
pub struct Distilled {
    /// `ce_coef · ce + kl_coef · kl`.
    pub total: Tensor,
    /// Mean cross-entropy, nats; 0 if its weight is.
    pub ce: f64,
    /// Mean `temperature² · KL(teacher ‖ student)`, nats.
    pub kl: f64,
}

/// [`linear_cross_entropy`] and [`linear_kl`] together: the student's logits and what comes back
/// through them are computed once, four products with the head instead of seven.
///
/// # Errors
/// As both, and if a weight is negative.
pub fn linear_distill(
    [h_student, w_student]: [&Tensor; 2],
    [h_teacher, w_teacher]: [&Tensor; 2],
    targets: &Tensor,
    options: DistillOptions,
) -> Result<Distilled> {
    let all = [h_student, w_student, h_teacher, w_teacher];
    let DistillOptions { ce_coef, kl_coef, temperature } = options;
    if !(ce_coef >= 0.0 && kl_coef >= 0.0) {
        bail!("linear_distill: weights {ce_coef} and {kl_coef} must not be negative")
    }
    if !fused(&all) {
        return composed::linear_distill(all, targets, options);
    }
    let (rows, vocab) =
        check::kl("linear_distill", h_student, w_student, h_teacher, w_teacher, temperature)?;
    distill(all, targets_of("linear_distill", targets, rows, vocab)?, options)
}

fn distill(
    [h_student, w_student, h_teacher, w_teacher]: [&Tensor; 4],
    targets: Targets,
    options: DistillOptions,
) -> Result<Distilled> {
    let vocab = w_student.dims()[0];
    let (ds, dt) = (w_student.dims()[1].max(1), w_teacher.dims()[1].max(1));
    let (h_teacher, w_teacher) = (h_teacher.detach(), w_teacher.detach());
    let DistillOptions { ce_coef, kl_coef, temperature } = options;
    let share = 1.0 / targets.counted.max(1) as f32;
    let rule = Distil { ce_coef, kl_coef, temperature, share };
    let terms = Arc::new(OnceLock::new());
    let seen = terms.clone();
    let compute = move |args: &[Tensor]| {
        let (h, w) = (&args[0], &args[1]);
        let mut student = Head::new(h, w, vocab, ds);
        let teacher = Head::new(&h_teacher, &w_teacher, vocab, dt);
        let block = student.block;
        let (mut ce, mut kl) = (0.0, 0.0);
        let mut run = |hs: &[f32], ws: &[f32], ht: &[f32], wt: &[f32]| {
            let pieces = hs.chunks(block * ds).zip(ht.chunks(block * dt));
            for (i, ((hs, ht), ids)) in pieces.zip(targets.ids.chunks(block)).enumerate() {
                let mut scores = student.scores(hs, ws);
                let mut goal = teacher.scores(ht, wt);
                let [c, k] = rule.rows(&mut scores, &mut goal, ids);
                (ce, kl) = (ce + c, kl + k);
                student.gradients(i, &scores, hs, ws);
            }
        };
        read(h, |hs| {
            read(w, |ws| {
                read(&h_teacher, |ht| {
                    read(&w_teacher, |wt| {
                        run(hs, ws, ht, wt);
                        Ok(())
                    })
                })
            })
        })?;
        // A second backward pass computes the same again.
        let _ = seen.set((ce, kl));
        let total = f64::from(ce_coef) * ce + f64::from(kl_coef) * kl;
        Ok((total, student.into_grads(h, w)?))
    };
    let total = Ready::record(compute, &[h_student, w_student])?;
    let (ce, kl) = terms.get().copied().unwrap_or_default();
    Ok(Distilled { total, ce, kl })
}

/// A loss whose gradients were computed along with it, for a loss gradient of 1.
struct Ready<F> {
    /// Taken by the first backward pass, so that the engine may add to them in place.
    grads: Mutex<Option<Vec<Option<Tensor>>>>,
    /// Computes them again for a second pass over the same graph.
    again: F,
}

impl<F: Fn(&[Tensor]) -> Result<Computed> + Send + Sync + 'static> Ready<F> {
    /// Records the loss that `compute` gives for `args`.
    fn record(compute: F, args: &[&Tensor]) -> Result<Tensor> {
        let owned: Vec<Tensor> = args.iter().map(|&arg| arg.clone()).collect();
        let (loss, grads) = compute(&owned)?;
        let op = Self { grads: Mutex::new(Some(grads)), again: compute };
        tape::record_f32(op, args, vec![loss as f32], ())
    }
}

/// A loss and the gradients of those arguments that want one.
type Computed = (f64, Vec<Option<Tensor>>);

impl<F: Fn(&[Tensor]) -> Result<Computed> + Send + Sync + 'static> Op for Ready<F> {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let factor: f32 = cx.grad.flatten_all()?.get(0)?.to_scalar()?;
        let taken = self.grads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let grads = match taken {
            Some(grads) => grads,
            None => (self.again)(cx.args)?.1,
        };
        for (i, grad) in grads.into_iter().enumerate() {
            match grad {
                Some(grad) if factor == 1.0 => cx.give(i, grad)?,
                Some(grad) => cx.give(i, (grad * f64::from(factor))?)?,
                None => {}
            }
        }
        Ok(())
    }
}

/// Checked targets on the host.
pub(crate) struct Targets {
    /// One id per row, `u32::MAX` = ignored.
    pub ids: Vec<u32>,
    /// Rows not ignored.
    pub counted: usize,
}

/// Reads `targets` (any shape of `rows` entries) and checks them against the vocabulary.
pub(crate) fn targets_of(
    op: &'static str,
    targets: &Tensor,
    rows: usize,
    vocab: usize,
) -> Result<Targets> {
    if targets.dtype() != DType::U32 || targets.elem_count() != rows {
        bail!(
            "{op}: targets {:?} of type {:?} must be u32, one for each of {rows} rows",
            targets.dims(),
            targets.dtype()
        )
    }
    let ids = targets.flatten_all()?.to_vec1::<u32>()?;
    if let Some((row, id)) =
        ids.iter().enumerate().find(|&(_, &id)| id != u32::MAX && id as usize >= vocab)
    {
        bail!("{op}: target {id} in row {row} is outside the vocabulary of {vocab}")
    }
    let counted = ids.iter().filter(|&&id| id != u32::MAX).count();
    Ok(Targets { ids, counted })
}

fn smoothing_in_range(op: &'static str, smoothing: f32) -> Result<()> {
    if !(0.0..=1.0).contains(&smoothing) {
        bail!("{op}: label smoothing {smoothing} is not in [0, 1]")
    }
    Ok(())
}
