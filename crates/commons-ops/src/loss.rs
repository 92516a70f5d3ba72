//! Losses over a vocabulary.

use crate::composed;
use candle_core::{DType, Result, Tensor, bail};

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
    composed::cross_entropy(logits, targets, label_smoothing)
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
    composed::linear_cross_entropy(h, w, targets, options)
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
    composed::linear_kl(h_student, w_student, h_teacher, w_teacher, temperature, targets)
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
    if let Some((row, id)) = ids
        .iter()
        .enumerate()
        .find(|&(_, &id)| id != u32::MAX && id as usize >= vocab)
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
