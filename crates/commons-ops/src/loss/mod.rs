//! Losses over a vocabulary.

use crate::tape::{self, Cx, Op};
use crate::view::{fused, read};
use crate::{check, composed};
use candle_core::{DType, Result, Tensor, bail};
use kernel::{Head, Rule, kl_rows};

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
    let options = LossOptions { label_smoothing, softcap: None };
    let rule = Rule::new(&options, vocab, &targets);
    let grad = tape::tracking(&[logits]);
    let mut scores = read(logits, |x| Ok(x.to_vec()))?;
    let loss = rule.rows(&mut scores, &targets.ids, grad);
    let found = if grad {
        vec![Some(Tensor::from_vec(scores, (rows, vocab), logits.device())?)]
    } else {
        vec![]
    };
    tape::record_f32(Ready(found), &[logits], vec![loss as f32], ())
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
    let mut head = Head::new(h, w, vocab, shape.inputs);
    let mut loss = 0.0;
    read(h, |h_all| {
        read(w, |w| {
            let width = shape.inputs.max(1);
            let pieces = h_all.chunks(head.block * width).zip(targets.ids.chunks(head.block));
            for (i, (h, ids)) in pieces.enumerate() {
                let mut scores = head.scores(h, w);
                loss += rule.rows(&mut scores, ids, head.tracks());
                head.gradients(i, &scores, h, w);
            }
            Ok(())
        })
    })?;
    tape::record_f32(head.ready(h, w)?, &[h, w], vec![loss as f32], ())
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
    let (rows, vocab) = check::kl(h_student, w_student, h_teacher, w_teacher, temperature)?;
    let targets = match targets {
        Some(targets) => targets_of("linear_kl", targets, rows, vocab)?,
        None => Targets { ids: vec![0; rows], counted: rows },
    };
    let (ds, dt) = (w_student.dims()[1].max(1), w_teacher.dims()[1].max(1));
    let mut head = Head::new(h_student, w_student, vocab, ds);
    let teacher = Head::new(&h_teacher.detach(), &w_teacher.detach(), vocab, dt);
    let share = 1.0 / targets.counted.max(1) as f32;
    let mut loss = 0.0;
    read(h_student, |hs| {
        read(w_student, |ws| {
            read(h_teacher, |ht| {
                read(w_teacher, |wt| {
                    let pieces = hs.chunks(head.block * ds).zip(ht.chunks(head.block * dt));
                    for (i, ((hs, ht), ids)) in
                        pieces.zip(targets.ids.chunks(head.block)).enumerate()
                    {
                        let mut student = head.scores(hs, ws);
                        let mut scores = teacher.scores(ht, wt);
                        loss += kl_rows(&mut student, &mut scores, ids, temperature, share);
                        head.gradients(i, &student, hs, ws);
                    }
                    Ok(())
                })
            })
        })
    })?;
    let ready = head.ready(h_student, w_student)?;
    tape::record_f32(ready, &[h_student, w_student], vec![loss as f32], ())
}

/// Gradients of a loss's arguments, computed along with it for a loss gradient of 1.
struct Ready(Vec<Option<Tensor>>);

impl Op for Ready {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn backward(&self, cx: &mut Cx<'_>) -> Result<()> {
        let factor: f32 = cx.grad.flatten_all()?.get(0)?.to_scalar()?;
        for (i, grad) in self.0.iter().enumerate() {
            let Some(grad) = grad else { continue };
            if factor == 1.0 {
                cx.share(i, grad.clone())?;
            } else {
                cx.give(i, (grad * f64::from(factor))?)?;
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
