//! Which query heads read which key and value head, when groups are not all of one size.

use commons_ops::{Device, Tensor};
use serde_json::Value;

use super::DecoderConfig;
use super::decoder::{Decoder, layer_prefix};
use crate::bank::Bank;
use crate::{Error, Result};

/// Key of `config.json` under which unequal groups stand: for every layer, how many consecutive
/// query heads read each key and value head.
pub const GROUPS_KEY: &str = "query_heads_per_kv_head";

/// The key head that each query head reads, of the sizes of consecutive groups.
pub fn key_heads(sizes: &[usize]) -> Vec<usize> {
    sizes.iter().enumerate().flat_map(|(g, &a)| std::iter::repeat_n(g, a)).collect()
}

impl DecoderConfig {
    /// The configuration with the groups `sizes: [layers][kv heads]`; equal ones leave no trace, so
    /// that the model is an ordinary grouped-query one.
    ///
    /// # Errors
    /// When a layer's sizes do not add up to the number of query heads.
    pub fn with_groups(mut self, sizes: Vec<Vec<usize>>) -> Result<Self> {
        let equal = self.num_attention_heads / self.num_key_value_heads.max(1);
        let plain = sizes.iter().flatten().all(|&a| a == equal);
        self.query_heads_per_kv_head = sizes;
        self.check_groups()?;
        if plain {
            self.query_heads_per_kv_head.clear();
        }
        Ok(self)
    }

    /// The groups of `config.json`.
    pub(super) fn read_groups(config: &Value) -> Result<Vec<Vec<usize>>> {
        match config.get(GROUPS_KEY) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(v) => serde_json::from_value(v.clone()).map_err(|e| {
                Error::config(GROUPS_KEY, format!("must be one list of counts per layer: {e}"))
            }),
        }
    }

    /// Checks the groups against the numbers of layers and heads.
    pub(super) fn check_groups(&self) -> Result<()> {
        let rows = &self.query_heads_per_kv_head;
        if rows.is_empty() {
            return Ok(());
        }
        if rows.len() != self.num_hidden_layers {
            let (found, layers) = (rows.len(), self.num_hidden_layers);
            return Err(Error::config(
                GROUPS_KEY,
                format!("has {found} lists for {layers} layers"),
            ));
        }
        let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
        for (layer, sizes) in rows.iter().enumerate() {
            let sum = sizes.iter().try_fold(0usize, |sum, &a| sum.checked_add(a));
            if sizes.len() != groups || sum != Some(heads) {
                return Err(Error::config(
                    format!("{GROUPS_KEY}[{layer}]"),
                    format!(
                        "{sizes:?} must hold one count for each of {groups} key-value heads, \
                         {heads} in all"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The key head of every query head of `layer`; `None` where groups are equal.
    pub fn key_heads(&self, layer: usize) -> Option<Vec<usize>> {
        self.query_heads_per_kv_head.get(layer).map(|sizes| key_heads(sizes))
    }

    /// The fewest key heads with which equal groups can say the same: query heads over the greatest
    /// common divisor of all group sizes.
    fn equal_kv_heads(&self) -> usize {
        let gcd = |mut a: usize, mut b: usize| {
            while b > 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let sizes = self.query_heads_per_kv_head.iter().flatten().copied();
        self.num_attention_heads / sizes.fold(self.num_attention_heads, gcd).max(1)
    }
}

impl Decoder {
    /// The same function as other libraries know it: every weight plainly stored, and where groups
    /// are unequal, key and value heads repeated until they are equal.
    ///
    /// # Errors
    /// When a weight cannot be made.
    pub fn plain(&self) -> Result<Self> {
        let mut bank = self.bank.materialize()?;
        let mut config = DecoderConfig { share_layers: false, ..self.config.clone() };
        if config.query_heads_per_kv_head.is_empty() {
            return Ok(Self { config, bank });
        }
        let groups = config.equal_kv_heads();
        let every = config.num_attention_heads / groups;
        for layer in 0..config.num_hidden_layers {
            let Some(heads) = config.key_heads(layer) else { continue };
            let rows: Vec<u32> = heads.iter().step_by(every).map(|&g| g as u32).collect();
            for module in ["k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"] {
                let name = format!("{}self_attn.{module}", layer_prefix(layer));
                if bank.contains(&name) {
                    repeat_heads(&mut bank, &name, &rows, config.head_dim)?;
                }
            }
        }
        config.num_key_value_heads = groups;
        config.query_heads_per_kv_head.clear();
        Self::new(config, bank)
    }
}

/// Makes the heads of `name: [heads · head_dim, ..]` those that `rows` names.
fn repeat_heads(bank: &mut Bank, name: &str, rows: &[u32], head_dim: usize) -> Result<()> {
    let w = bank.weight(name)?.detach();
    let mut shape = w.dims().to_vec();
    let heads = shape[0] / head_dim;
    let index = Tensor::new(rows, &Device::Cpu)?.to_device(bank.device())?;
    let w = w.reshape((heads, ()))?.index_select(&index, 0)?;
    shape[0] = rows.len() * head_dim;
    bank.insert(name, w.reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use commons_core::Seed;

    use super::super::{DecoderConfig, ids_tensor};
    use super::*;

    fn unequal(sizes: [[usize; 3]; 2]) -> Decoder {
        let config = DecoderConfig::llama(19, 24, 2, 6, 3, 16);
        let config = config.with_groups(sizes.map(|s| s.to_vec()).to_vec()).unwrap();
        Decoder::init(config, Seed::new(4)).unwrap()
    }

    fn logits(model: &Decoder) -> Vec<f32> {
        let ids = ids_tensor(&[&[3, 1, 4, 1, 5, 9, 2]], &model.bank).unwrap();
        let hidden = model.forward(&ids, None).unwrap();
        model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_plain_copy_is_the_same_function_with_the_fewest_equal_heads() {
        for (sizes, heads) in [([[0, 4, 2], [2, 2, 2]], 3), ([[1, 5, 0], [2, 4, 0]], 6)] {
            let model = unequal(sizes);
            let plain = model.plain().unwrap();
            assert_eq!(plain.config.num_key_value_heads, heads);
            assert!(plain.config.query_heads_per_kv_head.is_empty());
            for (a, b) in logits(&model).iter().zip(logits(&plain)) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_cache_gives_the_logits_of_the_whole_sequence() {
        let model = unequal([[0, 4, 2], [5, 0, 1]]);
        let mut cache = model.cache(1, 7).unwrap();
        let mut parts = Vec::new();
        for part in [&[3u32, 1, 4][..], &[1], &[5, 9, 2]] {
            let ids = ids_tensor(&[part], &model.bank).unwrap();
            let hidden = model.forward(&ids, Some(&mut cache)).unwrap();
            parts.extend(
                model.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            );
        }
        for (a, b) in logits(&model).iter().zip(parts) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn groups_are_read_checked_and_written() {
        let model = unequal([[0, 4, 2], [5, 0, 1]]);
        let json = model.config.to_json().unwrap();
        assert_eq!(DecoderConfig::from_json(&json).unwrap(), model.config);
        // Others would read it as a model of equal groups.
        assert_eq!(json["model_type"], "commons_llama");
        assert_eq!(model.plain().unwrap().config.to_json().unwrap()["model_type"], "llama");
        for (bad, says) in [
            (serde_json::json!([[0, 4, 2]]), "1 lists for 2 layers"),
            (serde_json::json!([[0, 4, 2], [1, 1, 1]]), "query_heads_per_kv_head[1]"),
            (serde_json::json!([[0, 6], [3, 3]]), "query_heads_per_kv_head[0]"),
            (serde_json::json!([[0, -4, 2], [2, 2, 2]]), "one list of counts"),
        ] {
            let mut json = json.clone();
            json[GROUPS_KEY] = bad;
            let message = DecoderConfig::from_json(&json).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn equal_groups_leave_no_trace() {
        let model = unequal([[2, 2, 2], [2, 2, 2]]);
        assert!(model.config.to_json().unwrap().get(GROUPS_KEY).is_none());
    }
}
