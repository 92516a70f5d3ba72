//! A checkpoint as users have it: one file, or a folder with one file or an index and shards.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{SafeTensors, TensorView};
use crate::error::{Error, Result};

/// The file name of a checkpoint that is not split.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The file name of the table that says which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Name of shard `i` (from 1) of `n`.
pub(super) fn shard_name(i: usize, n: usize) -> String {
    format!("model-{i:05}-of-{n:05}.safetensors")
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// All tensors of a checkpoint, however many files they are spread over.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    root: PathBuf,
    files: Vec<SafeTensors>,
    /// Tensor name to position in `files`.
    place: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, an index file, or a folder that holds either.
    ///
    /// A folder without `model.safetensors` and index may hold exactly one other `.safetensors`
    /// file.
    ///
    /// # Errors
    /// When there is no checkpoint, a shard is missing, lacks a tensor the index promises or is
    /// malformed, or the index names a file outside the folder.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return if path.extension().is_some_and(|e| e == "json") {
                Self::open_index(path)
            } else {
                Ok(Self::single(path, SafeTensors::open(path)?))
            };
        }
        let (single, index) = (path.join(SINGLE_FILE), path.join(INDEX_FILE));
        if single.is_file() {
            return Ok(Self::single(path, SafeTensors::open(single)?));
        }
        if index.is_file() {
            return Self::open_index(&index);
        }
        let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, "list", e))?;
        let candidates: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect();
        match candidates.as_slice() {
            [only] => Ok(Self::single(path, SafeTensors::open(only)?)),
            [] => Err(Error::malformed(path, "holds no .safetensors file")
                .remedy(format!("expected {SINGLE_FILE} or {INDEX_FILE}"))),
            many => Err(Error::malformed(
                path,
                format!("holds {} .safetensors files and no {INDEX_FILE}", many.len()),
            )
            .remedy("name the file itself, or restore the index")),
        }
    }

    /// Wraps one file that is already open.
    pub fn single(root: impl Into<PathBuf>, file: SafeTensors) -> Self {
        Self {
            root: root.into(),
            place: file.names().map(|name| (name.to_owned(), 0)).collect(),
            files: vec![file],
        }
    }

    fn open_index(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::malformed(path, format!("is not a shard index: {e}")))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut files: Vec<SafeTensors> = Vec::new();
        let mut opened: HashMap<&str, usize> = HashMap::new();
        let mut place = BTreeMap::new();
        for (tensor, shard) in &index.weight_map {
            let position = match opened.get(shard.as_str()) {
                Some(&position) => position,
                None => {
                    check_shard_name(path, tensor, shard)?;
                    files.push(SafeTensors::open(folder.join(shard))?);
                    opened.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[position].header.entries.contains_key(tensor) {
                return Err(Error::malformed(
                    folder.join(shard),
                    "is promised by the index but absent",
                )
                .item(format!("tensor `{tensor}`"))
                .remedy("index and shards are from different checkpoints; fetch them again"));
            }
            place.insert(tensor.clone(), position);
        }
        Ok(Self { root: folder.to_path_buf(), files, place })
    }

    /// The path that was opened: the file, or the folder for a split checkpoint.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The open files.
    pub fn files(&self) -> &[SafeTensors] {
        &self.files
    }

    /// Tensor names in lexical order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Whether a tensor of that name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    /// Metadata of all files together; the first file wins where they differ.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for file in self.files.iter().rev() {
            all.extend(file.metadata().clone());
        }
        all
    }

    /// The tensor called `name`, not yet decoded.
    ///
    /// # Errors
    /// When no file has it.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match self.place.get(name) {
            Some(&position) => self.files[position].tensor(name),
            None => Err(Error::malformed(&self.root, "is not in the checkpoint")
                .item(format!("tensor `{name}`"))
                .remedy("list the names the checkpoint has with `inspect`")),
        }
    }

    /// Every tensor, not yet decoded, in lexical order of names.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.place.iter().filter_map(|(name, &position)| self.files[position].tensor(name).ok())
    }

    /// Scans every tensor for NaN and infinity.
    ///
    /// # Errors
    /// As for [`TensorView::check_finite`].
    pub fn check_finite(&self) -> Result<()> {
        self.tensors().try_for_each(|view| view.check_finite())
    }
}

/// A shard must lie in the index's own folder: a hostile index must not reach other files.
fn check_shard_name(index: &Path, tensor: &str, shard: &str) -> Result<()> {
    let mut parts = Path::new(shard).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(()),
        _ => Err(Error::malformed(index, format!("names the shard `{shard}` outside its folder"))
            .item(format!("tensor `{tensor}`"))),
    }
}
