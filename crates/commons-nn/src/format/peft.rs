//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`, as raw LoRA pairs.
//!
//! LoRA (Hu et al. 2021) adds `scale · B A` to a weight `W [out, in]`, with `A [rank, in]` and
//! `B [out, rank]`; `scale` is `alpha / rank`, or `alpha / √rank` when rank-stabilised
//! (Kalajdzievski 2023).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use tokenizers::utils::SysRegex;

use super::atomic;
use super::safetensors::{self, SafeTensors};
use crate::bank::Bank;
use crate::error::{Error, Result};

/// The description of the adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before the name of every module.
const PREFIX: &str = "base_model.model.";

/// Which modules carry an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Module names, or their last parts.
    Names(Vec<String>),
    /// A regular expression over whole module names, or `all-linear`.
    Pattern(String),
}

/// `adapter_config.json`. Keys not listed here are kept in `other` and written back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// Name or path of the adapted model.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Kind of task, e.g. `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Rank of every module that `rank_pattern` does not name.
    pub r: usize,
    /// Numerator of the scale of every module that `alpha_pattern` does not name.
    #[serde(default = "default_alpha")]
    pub lora_alpha: f64,
    /// Probability of dropping an input of the adapter while training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Which modules carry an adapter.
    #[serde(default)]
    pub target_modules: Option<TargetModules>,
    /// Ranks of particular modules, by name, last part of the name, or regular expression.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Numerators of particular modules, keyed in the same way.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Whether the scale divides by `√rank`.
    #[serde(default)]
    pub use_rslora: bool,
    /// Which biases were trained; only `none` is supported.
    #[serde(default = "default_bias")]
    pub bias: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

fn default_alpha() -> f64 {
    8.0
}

fn default_bias() -> String {
    "none".into()
}

/// Keys whose non-default value changes what the tensors mean.
const UNSUPPORTED: [(&str, &str); 6] = [
    ("use_dora", "weight-decomposed adapters"),
    ("fan_in_fan_out", "transposed layers"),
    ("layer_replication", "replicated layers"),
    ("lora_bias", "adapter biases"),
    ("trainable_token_indices", "trained single tokens"),
    ("target_parameters", "adapters of bare parameters"),
];

impl LoraConfig {
    /// A configuration with one rank and numerator for all modules.
    pub fn new(rank: usize, alpha: f64, target_modules: Vec<String>) -> Self {
        Self {
            peft_type: "LORA".into(),
            base_model_name_or_path: None,
            task_type: Some("CAUSAL_LM".into()),
            r: rank,
            lora_alpha: alpha,
            lora_dropout: 0.0,
            target_modules: Some(TargetModules::Names(target_modules)),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            bias: default_bias(),
            other: Map::new(),
        }
    }

    /// Rank of the adapter of `module`.
    pub fn rank(&self, module: &str) -> usize {
        pattern(&self.rank_pattern, module).copied().unwrap_or(self.r)
    }

    /// What `B A` of `module` is multiplied by.
    pub fn scale(&self, module: &str) -> f64 {
        let alpha = pattern(&self.alpha_pattern, module).copied().unwrap_or(self.lora_alpha);
        let rank = self.rank(module) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    fn check(&self, file: &Path) -> Result<()> {
        let fault =
            |key: &str, reason: String| Error::malformed(file, reason).item(format!("`{key}`"));
        if self.peft_type != "LORA" {
            return Err(fault("peft_type", format!("`{}` is not supported", self.peft_type))
                .remedy("only LORA adapters can be read"));
        }
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return Err(fault("r", "a rank is zero".into()));
        }
        if !self.lora_alpha.is_finite() {
            return Err(fault("lora_alpha", "is not a finite number".into()));
        }
        if self.bias != "none" {
            return Err(fault("bias", format!("`{}` is not supported", self.bias))
                .remedy("train with bias=\"none\", or merge the adapter first"));
        }
        for (key, what) in UNSUPPORTED {
            let set = match self.other.get(key) {
                None | Some(Json::Null | Json::Bool(false)) => false,
                Some(Json::Array(items)) => !items.is_empty(),
                Some(Json::Object(items)) => !items.is_empty(),
                Some(_) => true,
            };
            if set {
                return Err(fault(key, format!("{what} are not supported"))
                    .remedy("merge the adapter into its base model first"));
            }
        }
        Ok(())
    }
}

/// The entry for `module`: PEFT matches keys as regular expressions at the end of the name.
fn pattern<'a, T>(patterns: &'a BTreeMap<String, T>, module: &str) -> Option<&'a T> {
    let ends_with = |key: &str| {
        module == key || module.strip_suffix(key).is_some_and(|rest| rest.ends_with('.'))
    };
    patterns
        .iter()
        .find(|(key, _)| ends_with(key) || matches(&format!(r"^(.*\.)?({key})$"), module))
        .map(|(_, value)| value)
}

fn matches(expression: &str, text: &str) -> bool {
    SysRegex::new(expression).is_ok_and(|regex| regex.find_iter(text).next().is_some())
}

/// The two factors of one module's adapter.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
}

/// An adapter as stored: its description and its tensors by module.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// `adapter_config.json`.
    pub config: LoraConfig,
    /// Factors by module, e.g. `model.layers.0.self_attn.q_proj`.
    pub pairs: BTreeMap<String, LoraPair>,
    /// Whole weights that were trained beside the adapter, by weight name (`modules_to_save`).
    pub saved: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// Reads an adapter folder; tensors become `dtype`, or keep the stored type when `None`.
    ///
    /// # Errors
    /// When a file is missing or malformed, the kind of adapter is not supported, a factor lacks its
    /// partner, or a shape contradicts the configured rank.
    pub fn open(folder: impl AsRef<Path>, dtype: Option<DType>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let config: LoraConfig = serde_json::from_slice(&text).map_err(|e| {
            Error::malformed(&path, format!("is not an adapter's description: {e}"))
        })?;
        config.check(&path)?;
        let file = SafeTensors::open(folder.join(WEIGHTS_FILE))?;
        let mut halves: BTreeMap<String, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
        let mut saved = BTreeMap::new();
        for view in file.tensors() {
            let tensor = view.to_tensor(dtype)?;
            let name = view.name().strip_prefix(PREFIX).unwrap_or(view.name());
            if let Some(module) = name.strip_suffix(".lora_A.weight") {
                halves.entry(module.to_owned()).or_default().0 = Some(tensor);
            } else if let Some(module) = name.strip_suffix(".lora_B.weight") {
                halves.entry(module.to_owned()).or_default().1 = Some(tensor);
            } else if name.contains(".lora_") {
                return Err(Error::malformed(
                    file.file(),
                    "is a kind of adapter tensor that is not supported",
                )
                .item(format!("tensor `{}`", view.name()))
                .remedy("only lora_A and lora_B of linear layers can be read"));
            } else {
                saved.insert(name.to_owned(), tensor);
            }
        }
        let mut pairs = BTreeMap::new();
        for (module, half) in halves {
            let fault = |reason: String| {
                Error::malformed(file.file(), reason).item(format!("module `{module}`"))
            };
            let pair = match half {
                (Some(a), Some(b)) => LoraPair { a, b },
                (Some(_), None) => return Err(fault("has lora_A but no lora_B".into())),
                _ => return Err(fault("has lora_B but no lora_A".into())),
            };
            check_shapes(&config, &module, &pair).map_err(fault)?;
            pairs.insert(module, pair);
        }
        Ok(Self { config, pairs, saved })
    }

    /// Adds the adapter to the model in `bank`: a low-rank term on the weight of every module, and
    /// the weights saved whole in place of the model's. Nothing is frozen.
    ///
    /// # Errors
    /// When the model lacks a weight or has it in another shape, or a weight saved whole is one that
    /// others are made from; the bank is then changed in part.
    pub fn apply(&self, bank: &mut Bank) -> Result<()> {
        let fits = |bank: &Bank, weight: &str, shape: &[usize]| {
            let fault = |reason: String| {
                Error::plan(weight, reason).remedy("give the model that the adapter was trained on")
            };
            if !bank.contains(weight) {
                return Err(fault("is adapted, but the model has no such weight".into()));
            }
            let found = bank.shape(weight)?;
            if found != shape {
                return Err(fault(format!("is {found:?}, the adapter is made for {shape:?}")));
            }
            Ok(())
        };
        for (module, pair) in &self.pairs {
            let weight = format!("{module}.weight");
            fits(bank, &weight, &[pair.b.dim(0)?, pair.a.dim(1)?])?;
            let (a, b) = (pair.a.to_dtype(DType::F32)?, pair.b.to_dtype(DType::F32)?);
            bank.add_low_rank(&weight, a, b, self.config.scale(module) as f32)?;
        }
        for (weight, tensor) in &self.saved {
            fits(bank, weight, tensor.dims())?;
            let plan = bank.plan();
            if plan.iter().any(|(n, e)| n != weight && e.reads(n).contains(&weight.as_str())) {
                return Err(Error::plan(
                    weight,
                    "is shared by others, but the adapter replaces it",
                )
                .remedy("materialize the model first"));
            }
            bank.remove(weight);
            bank.insert(weight, tensor.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }

    /// Writes the adapter as a folder that PEFT loads.
    ///
    /// # Errors
    /// When a pair contradicts the configuration, or a file cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.config.check(&folder.join(CONFIG_FILE))?;
        let mut tensors: BTreeMap<String, &Tensor> = BTreeMap::new();
        for (module, pair) in &self.pairs {
            check_shapes(&self.config, module, pair)
                .map_err(|reason| Error::invalid(format!("module `{module}`"), reason))?;
            tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), &pair.a);
            tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), &pair.b);
        }
        for (name, tensor) in &self.saved {
            tensors.insert(format!("{PREFIX}{name}"), tensor);
        }
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor));
        safetensors::save(&folder.join(WEIGHTS_FILE), named, &metadata)?;
        let mut config = serde_json::to_value(&self.config)
            .map_err(|e| Error::invalid("adapter configuration", e.to_string()))?;
        // PEFT warns about an adapter that does not say it is for inference.
        if let Some(map) = config.as_object_mut()
            && !map.contains_key("inference_mode")
        {
            map.insert("inference_mode".into(), true.into());
        }
        atomic::write(&folder.join(CONFIG_FILE), format!("{config:#}\n").as_bytes())
    }
}

fn check_shapes(config: &LoraConfig, module: &str, pair: &LoraPair) -> Result<(), String> {
    let rank = config.rank(module);
    match (pair.a.dims(), pair.b.dims()) {
        (&[ra, _], &[_, rb]) if ra == rank && rb == rank => Ok(()),
        (a, b) => Err(format!(
            "has lora_A {a:?} and lora_B {b:?}, which do not have the configured rank {rank}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn adapter() -> Adapter {
        let mut config = LoraConfig::new(2, 16.0, vec!["q_proj".into(), "up_proj".into()]);
        config.base_model_name_or_path = Some("base".into());
        config.rank_pattern.insert("layers.1.mlp.up_proj".into(), 3);
        config.alpha_pattern.insert(r".*layers\.0\..*q_proj".into(), 4.0);
        let tensor = |rows, columns| {
            Tensor::arange(0f32, (rows * columns) as f32, &Device::Cpu)
                .unwrap()
                .reshape((rows, columns))
                .unwrap()
        };
        let pair = |rank| LoraPair { a: tensor(rank, 4), b: tensor(5, rank) };
        Adapter {
            config,
            pairs: BTreeMap::from([
                ("model.layers.0.self_attn.q_proj".to_owned(), pair(2)),
                ("model.layers.1.mlp.up_proj".to_owned(), pair(3)),
            ]),
            saved: BTreeMap::from([("lm_head.weight".to_owned(), tensor(3, 4))]),
        }
    }

    #[test]
    fn round_trip_keeps_config_and_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let mut adapter = adapter();
        adapter.config.other.insert("revision".into(), "main".into());
        adapter.save(folder.path()).unwrap();
        let read = Adapter::open(folder.path(), Some(DType::F32)).unwrap();
        adapter.config.other.insert("inference_mode".into(), true.into());
        assert_eq!(read.config, adapter.config);
        assert_eq!(read.saved.len(), 1);
        for (module, pair) in &adapter.pairs {
            let other = &read.pairs[module];
            assert_eq!(other.a.to_vec2::<f32>().unwrap(), pair.a.to_vec2::<f32>().unwrap());
            assert_eq!(other.b.to_vec2::<f32>().unwrap(), pair.b.to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn applied_adapters_change_weights_by_their_product() {
        let mut bank = Bank::new(Device::Cpu);
        let weight = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
        bank.insert("m.q_proj.weight", weight.clone()).unwrap();
        bank.insert("lm_head.weight", weight).unwrap();
        let of = |values: &[f32], shape: (usize, usize)| {
            Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
        };
        let pair = LoraPair { a: of(&[1., 2., 3.], (1, 3)), b: of(&[1., -1.], (2, 1)) };
        let mut adapter = Adapter {
            config: LoraConfig::new(1, 2., vec!["q_proj".into()]),
            pairs: BTreeMap::from([("m.q_proj".to_owned(), pair)]),
            saved: BTreeMap::from([("lm_head.weight".to_owned(), of(&[0.; 6], (2, 3)))]),
        };
        adapter.apply(&mut bank).unwrap();
        let values = |name: &str| bank.weight(name).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values("m.q_proj.weight"), [[3., 5., 7.], [-1., -3., -5.]]);
        assert_eq!(values("lm_head.weight"), [[0.; 3]; 2]);
        adapter.saved.insert("lm_head.weight".into(), of(&[0.; 4], (2, 2)));
        let message = adapter.apply(&mut bank).unwrap_err().to_string();
        assert!(message.contains("lm_head.weight") && message.contains("[2, 2]"), "{message}");
        let pair = adapter.pairs.remove("m.q_proj").unwrap();
        adapter.pairs.insert("m.k_proj".into(), pair);
        let message = adapter.apply(&mut bank).unwrap_err().to_string();
        assert!(message.contains("m.k_proj.weight"), "{message}");
    }

    #[test]
    fn scale_follows_patterns_and_stabilisation() {
        let mut config = adapter().config;
        assert_eq!(config.scale("model.layers.0.self_attn.q_proj"), 2.0);
        assert_eq!(config.scale("model.layers.1.self_attn.q_proj"), 8.0);
        assert_eq!(config.scale("model.layers.1.mlp.up_proj"), 16.0 / 3.0);
        assert_eq!(config.rank("model.layers.11.mlp.up_proj"), 2);
        config.use_rslora = true;
        assert_eq!(config.scale("model.layers.1.self_attn.q_proj"), 16.0 / 2f64.sqrt());
    }

    #[test]
    fn unsupported_and_broken_adapters_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refuse = |change: &dyn Fn(&mut Adapter), words: &[&str]| {
            let mut broken = adapter();
            change(&mut broken);
            let message = broken.save(folder.path()).unwrap_err().to_string();
            assert!(words.iter().all(|w| message.contains(w)), "{message}");
        };
        refuse(&|a| a.config.bias = "all".into(), &["bias", "all"]);
        refuse(&|a| a.config.peft_type = "IA3".into(), &["peft_type", "IA3"]);
        refuse(
            &|a| {
                a.config.other.insert("use_dora".into(), true.into());
            },
            &["use_dora"],
        );
        refuse(&|a| a.config.r = 4, &["model.layers.0.self_attn.q_proj", "rank 4"]);
        adapter().save(folder.path()).unwrap();
        let file = SafeTensors::open(folder.path().join(WEIGHTS_FILE)).unwrap();
        let kept: Vec<(String, Tensor)> = file
            .tensors()
            .filter(|v| !v.name().ends_with("up_proj.lora_B.weight"))
            .map(|v| (v.name().to_owned(), v.to_tensor(None).unwrap()))
            .collect();
        let named = kept.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::save(&folder.path().join(WEIGHTS_FILE), named, &BTreeMap::new()).unwrap();
        let message = Adapter::open(folder.path(), None).unwrap_err().to_string();
        assert!(message.contains("up_proj") && message.contains("no lora_B"), "{message}");
    }
}
