//! Checkpoints of a run: `step-NNNNNN/` with the bank, the optimiser's state and the position.
//!
//! A folder appears under its name only when it is whole, so whatever is found can be resumed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use commons_core::fs::{AtomicFolder, clean_stale, read_text, write_json_atomic};
use commons_ops::Tensor;
use serde::{Deserialize, Serialize};

use super::{TrainConfig, Trainer};
use crate::bank::{Bank, PLAN_KEY, SharingPlan};
use crate::format::safetensors;
use crate::{Error, Result};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer.json";
const PREFIX: &str = "step-";

/// Largest `trainer.json` that is read, bytes.
const STATE_LIMIT: u64 = 256 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: usize,
    losses: Vec<f64>,
    config: TrainConfig,
}

/// What a run does about checkpoints that are already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Refuse to start over checkpoints of another run.
    Refuse,
    /// Go on from the newest.
    Latest,
}

/// The newest complete checkpoint under `folder`, and its step.
pub fn latest_checkpoint(folder: &Path) -> Result<Option<(usize, PathBuf)>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let steps = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let step = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
        Some((step, path))
    });
    Ok(steps.max_by_key(|(step, _)| *step))
}

impl Bank {
    /// Writes the stored tensors and the plan as one safetensors file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.stored_vars().map(|(name, var)| (name, var.as_tensor()));
        safetensors::save(path, tensors, &self.metadata()?)
    }

    /// The safetensors metadata that carries the plan.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        if !self.plan().is_empty() {
            metadata.insert(PLAN_KEY.to_owned(), self.plan().to_json()?);
        }
        Ok(metadata)
    }

    /// Reads a safetensors file or folder, plan included. All floats become f32.
    pub fn open(path: &Path) -> Result<Self> {
        let file = safetensors::Checkpoint::open(path)?;
        let mut bank = Self::default();
        for view in file.tensors() {
            view.check_finite()?;
            bank.insert(view.name(), view.to_tensor(Some(commons_ops::DType::F32))?)?;
        }
        if let Some(json) = file.metadata().get(PLAN_KEY) {
            bank.set_plan(SharingPlan::from_json(json)?)?;
        }
        Ok(bank)
    }

    /// Sets every stored tensor to the value it has in `path`, keeping handles (so that models that
    /// share this bank see the values).
    fn restore(&self, path: &Path) -> Result<()> {
        let other = Self::open(path)?;
        let mine: Vec<&str> = self.stored_vars().map(|(n, _)| n).collect();
        let theirs: Vec<&str> = other.stored_vars().map(|(n, _)| n).collect();
        if mine != theirs || self.plan() != other.plan() {
            return Err(Error::malformed(
                path,
                "holds other tensors or another sharing plan than this run",
            )
            .remedy("resume with the command that started the run, or choose another folder"));
        }
        for (name, var) in self.stored_vars() {
            let saved = other.stored_var(name)?;
            if saved.dims() != var.dims() {
                return Err(Error::malformed(
                    path,
                    format!("has shape {:?}, the run {:?}", saved.dims(), var.dims()),
                )
                .item(format!("tensor `{name}`")));
            }
            var.set(saved.as_tensor())?;
        }
        Ok(())
    }
}

impl Trainer {
    /// Looks at the checkpoint folder before the first step: goes on from the newest checkpoint,
    /// or refuses to run over one. Returns the step it stands at.
    ///
    /// # Errors
    /// When there are checkpoints and `resume` refuses, or they belong to another run.
    pub fn resume(&mut self, resume: Resume) -> Result<usize> {
        let Some(folder) = self.folder.clone() else { return Ok(0) };
        clean_stale(&folder)?;
        let Some((_, path)) = latest_checkpoint(&folder)? else { return Ok(0) };
        if resume == Resume::Refuse {
            return Err(Error::invalid(
                path.display().to_string(),
                "is a checkpoint of an earlier run",
            )
            .remedy("pass --resume to go on from it, or choose another output folder"));
        }
        let state_path = path.join(STATE);
        let text = read_text(&state_path, STATE_LIMIT)?;
        let state: State = serde_json::from_str(&text)
            .map_err(|e| Error::malformed(&state_path, format!("is not a trainer state: {e}")))?;
        let same = TrainConfig {
            steps: self.config.steps,
            save_steps: self.config.save_steps,
            ..state.config.clone()
        };
        if same != self.config {
            return Err(Error::malformed(&state_path, "was written with another configuration")
                .remedy("resume with the options that started the run, or choose another folder"));
        }
        self.bank.restore(&path.join(MODEL))?;
        let file = safetensors::Checkpoint::open(path.join(OPTIMIZER))?;
        let tensors = file.tensors().map(|v| Ok((v.name().to_owned(), v.to_tensor(None)?)));
        self.optimizer
            .load_state(&self.bank, tensors.collect::<Result<BTreeMap<String, Tensor>>>()?)?;
        self.step = state.step;
        self.losses = state.losses;
        Ok(self.step)
    }

    /// Writes a checkpoint of the steps done and removes checkpoints beyond the limit. Without a
    /// folder this does nothing.
    pub fn save(&self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let atomic = AtomicFolder::create(folder.join(format!("{PREFIX}{:06}", self.step)))?;
        self.bank.save(&atomic.path().join(MODEL))?;
        let state = self.optimizer.state();
        let tensors = state.iter().map(|(n, t)| (n.as_str(), t));
        safetensors::save(&atomic.path().join(OPTIMIZER), tensors, &BTreeMap::new())?;
        let state =
            State { step: self.step, losses: self.losses.clone(), config: self.config.clone() };
        write_json_atomic(atomic.path().join(STATE), &state)?;
        atomic.commit_replacing()?;
        self.remove_old(folder)
    }

    fn remove_old(&self, folder: &Path) -> Result<()> {
        let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
        let mut steps: Vec<PathBuf> = entries
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX)))
            .collect();
        steps.sort();
        let excess = steps.len().saturating_sub(self.config.save_total_limit.max(1));
        for path in &steps[..excess] {
            std::fs::remove_dir_all(path).map_err(|e| Error::io(path, "remove", e))?;
        }
        Ok(())
    }
}
