use crate::{par, view};
use candle_core::{Result, Tensor, Var};
use commons_core::Seed;

/// `θ += Σ αₖ z(seedₖ)` in one pass over the parameter, where `z(seed)` is the standard normal
/// stream of a seed, element `i` of `θ` taking element `i` of the stream.
///
/// # Errors
/// Only if candle fails.
pub fn add_noise(var: &Var, seeds: &[(Seed, f32)]) -> Result<()> {
    if view::fused(&[var]) {
        return view::write(var, |data| {
            add(data, seeds);
            Ok(())
        });
    }
    let mut noise = vec![0f32; var.elem_count()];
    add(&mut noise, seeds);
    let noise = Tensor::from_vec(noise, var.shape(), var.device())?.to_dtype(var.dtype())?;
    var.set(&(var.as_detached_tensor() + noise)?)
}

fn add(data: &mut [f32], seeds: &[(Seed, f32)]) {
    par::blocks(data, |start, block| {
        let mut noise = [0f32; 1024];
        for (piece, out) in block.chunks_mut(noise.len()).enumerate() {
            let start = (start + piece * noise.len()) as u64;
            let noise = &mut noise[..out.len()];
            for &(seed, alpha) in seeds {
                seed.normal(start, noise);
                for (out, z) in out.iter_mut().zip(&*noise) {
                    *out += alpha * z;
                }
            }
        }
    });
}
