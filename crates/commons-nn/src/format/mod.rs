//! Checkpoint formats: safetensors, GGUF, Hugging Face folders and PEFT adapter folders.

pub mod atomic;
mod convert;
pub mod folder;
pub mod gguf;
pub mod peft;
pub mod safetensors;

use candle_core::{DType, Tensor};

use crate::error::Result;

/// Tensors under Hugging Face names, loaded one at a time; what a model is built from.
pub trait Weights: Send + Sync {
    /// All names, in lexical order.
    fn names(&self) -> Vec<String>;

    /// Dimensions of tensor `name`, outermost first, without decoding it.
    ///
    /// # Errors
    /// When there is no such tensor.
    fn shape(&self, name: &str) -> Result<Vec<usize>>;

    /// Decodes tensor `name` to a CPU tensor of element type `dtype`.
    ///
    /// # Errors
    /// When there is no such tensor, or it cannot be converted.
    fn load(&self, name: &str, dtype: DType) -> Result<Tensor>;
}

impl Weights for safetensors::Checkpoint {
    fn names(&self) -> Vec<String> {
        Self::names(self).map(str::to_owned).collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.tensor(name)?.shape().to_vec())
    }

    fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        self.tensor(name)?.to_tensor(Some(dtype))
    }
}

impl Weights for std::collections::BTreeMap<String, Tensor> {
    fn names(&self) -> Vec<String> {
        self.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        find(self, name).map(|t| t.dims().to_vec())
    }

    fn load(&self, name: &str, dtype: DType) -> Result<Tensor> {
        Ok(find(self, name)?.to_dtype(dtype)?)
    }
}

fn find<'a>(
    tensors: &'a std::collections::BTreeMap<String, Tensor>,
    name: &str,
) -> Result<&'a Tensor> {
    tensors
        .get(name)
        .ok_or_else(|| crate::error::Error::invalid(format!("tensor `{name}`"), "does not exist"))
}
