use super::{linear, log_softmax, widen};
use crate::check;
use crate::loss::{DistillOptions, Distilled, LossOptions, targets_of};
use candle_core::{D, DType, Result, Tensor};

/// [`crate::cross_entropy`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit or a target is out of range.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f32) -> Result<Tensor> {
    let (n, v) = check::matrix("cross_entropy", "logits", logits)?;
    let targets = targets_of("cross_entropy", targets, n, v)?;
    let (index, weight) = selection(&targets.ids, targets.counted, logits)?;
    let logp = log_softmax(&widen(logits)?)?;
    let picked = logp.gather(&index, 1)?.squeeze(1)?;
    let smoothing = f64::from(label_smoothing);
    let row = if smoothing > 0.0 {
        let uniform = logp.mean(D::Minus1)?;
        ((picked * (smoothing - 1.0))? - (uniform * smoothing)?)?
    } else {
        picked.neg()?
    };
    weighted(&row, &weight)
}

/// [`crate::linear_cross_entropy`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit or a target is out of range.
pub fn linear_cross_entropy(
    h: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    options: &LossOptions,
) -> Result<Tensor> {
    let mut logits = widen(&linear(h, w, None)?)?;
    if let Some(cap) = options.softcap {
        let cap = f64::from(cap);
        logits = ((logits / cap)?.tanh()? * cap)?;
    }
    cross_entropy(&logits, targets, options.label_smoothing)
}

/// [`crate::linear_kl`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_kl(
    h_student: &Tensor,
    w_student: &Tensor,
    h_teacher: &Tensor,
    w_teacher: &Tensor,
    temperature: f32,
    targets: Option<&Tensor>,
) -> Result<Tensor> {
    let (n, v) = check::kl("linear_kl", h_student, w_student, h_teacher, w_teacher, temperature)?;
    let t = f64::from(temperature);
    let logq = log_softmax(&(widen(&linear(h_student, w_student, None)?)? / t)?)?;
    let teacher = linear(&h_teacher.detach(), &w_teacher.detach(), None)?;
    let logp = log_softmax(&(widen(&teacher)? / t)?)?;
    let row = (logp.exp()? * (logp - logq)?)?.sum(D::Minus1)?;
    let (ids, counted) = match targets {
        Some(targets) => {
            let targets = targets_of("linear_kl", targets, n, v)?;
            (targets.ids, targets.counted)
        }
        None => (vec![0; n], n),
    };
    let (_, weight) = selection(&ids, counted, h_student)?;
    weighted(&row, &weight)? * (t * t)
}

/// [`crate::linear_distill`] as a candle graph: `[h, w]` of the student, then of the teacher.
///
/// # Errors
/// If the shapes do not fit or a target is out of range.
pub fn linear_distill(
    [h, w, h_teacher, w_teacher]: [&Tensor; 4],
    targets: &Tensor,
    options: DistillOptions,
) -> Result<Distilled> {
    let DistillOptions { ce_coef, kl_coef, temperature } = options;
    let ce = linear_cross_entropy(h, w, targets, &LossOptions::default())?;
    let kl = linear_kl(h, w, h_teacher, w_teacher, temperature, Some(targets))?;
    let value = |x: &Tensor| x.to_dtype(DType::F64)?.to_scalar::<f64>();
    let (ce_value, kl_value) = (if ce_coef > 0.0 { value(&ce)? } else { 0.0 }, value(&kl)?);
    let total = ((ce * f64::from(ce_coef))? + (kl * f64::from(kl_coef))?)?;
    Ok(Distilled { total, ce: ce_value, kl: kl_value })
}

/// The targets as an index column for `gather`, and each row's weight in the mean.
fn selection(ids: &[u32], counted: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
    let index: Vec<u32> = ids.iter().map(|&id| if id == u32::MAX { 0 } else { id }).collect();
    let share = 1.0 / counted.max(1) as f64;
    let weight: Vec<f64> = ids.iter().map(|&id| if id == u32::MAX { 0.0 } else { share }).collect();
    let n = ids.len();
    Ok((
        Tensor::from_vec(index, (n, 1), like.device())?,
        Tensor::from_vec(weight, n, like.device())?,
    ))
}

/// `Σ row·weight`, leaving out rows of weight zero even when they hold a NaN.
fn weighted(row: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let counted = weight.ne(&weight.zeros_like()?)?;
    let weight = match row.dtype() {
        DType::F64 => weight.clone(),
        other => weight.to_dtype(other)?,
    };
    counted.where_cond(&(row * weight)?, &row.zeros_like()?)?.sum_all()
}
