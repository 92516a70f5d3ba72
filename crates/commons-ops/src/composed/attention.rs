use super::{softmax, widen};
use crate::attention::{AttentionOptions, Shape};
use candle_core::{Result, Tensor};

/// [`crate::attention()`] as a candle graph.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let s = Shape::check(q, k, v, options)?;
    let scale = f64::from(s.scale);
    let heads_first = |x: &Tensor| widen(x)?.transpose(1, 2)?.contiguous();
    let repeat = |x: &Tensor| -> Result<Tensor> {
        let x = heads_first(x)?;
        if let Some(map) = &options.key_heads {
            let map: Vec<u32> = map.iter().map(|&g| g as u32).collect();
            return x.index_select(&Tensor::new(map, x.device())?, 1);
        }
        let group = s.hq / s.hkv;
        x.unsqueeze(2)?
            .broadcast_as((s.b, s.hkv, group, s.tk, s.d))?
            .contiguous()?
            .reshape((s.b, s.hq, s.tk, s.d))
    };
    let (qh, kh, vh) = (heads_first(q)?, repeat(k)?, repeat(v)?);
    let mut scores = (qh.matmul(&kh.transpose(2, 3)?.contiguous()?)? * scale)?;
    if let Some(cap) = options.softcap {
        let cap = f64::from(cap);
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let p = match mask(&s, options)? {
        None => softmax(&scores)?,
        Some(mask) => {
            let mask = Tensor::from_vec(mask, (s.b, 1, s.tq, s.tk), q.device())?
                .broadcast_as(scores.shape())?
                .contiguous()?;
            let floor =
                Tensor::full(-1e30f32, scores.shape(), q.device())?.to_dtype(scores.dtype())?;
            let p = softmax(&mask.where_cond(&scores, &floor)?)?;
            // A query that may see no key at all gets a zero row, not the mean of what is hidden.
            mask.where_cond(&p, &p.zeros_like()?)?
        }
    };
    p.matmul(&vh)?.transpose(1, 2)?.contiguous()?.to_dtype(q.dtype())
}

/// `[b, 1, tq, tk]`, 1 where a query may see a key; `None` when everything is visible.
fn mask(s: &Shape, options: &AttentionOptions) -> Result<Option<Vec<u8>>> {
    if !options.causal && options.window.is_none() && options.key_lengths.is_none() {
        return Ok(None);
    }
    let mut mask = vec![0u8; s.b * s.tq * s.tk];
    for (row, line) in mask.chunks_mut(s.tk).enumerate() {
        let range = s.visible(options, row / s.tq, row % s.tq);
        line[range].fill(1);
    }
    Ok(Some(mask))
}
