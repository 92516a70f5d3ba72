//! The local cache: one folder per entry, whole when its manifest says so.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::http::{Fetched, measure};
use crate::error::{Error, Result};
use crate::format::atomic;

/// Written last; without it a folder counts as absent.
const MANIFEST: &str = "manifest.json";
const LOCK: &str = ".lock";

/// What an entry's folder holds and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name that was pulled.
    pub name: String,
    /// Where it came from, in words.
    pub source: String,
    /// Terms of the content, as far as known.
    pub licence: String,
    /// Each file with its size and checksum.
    pub files: BTreeMap<String, FileRecord>,
}

/// A file as it was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// The cache folder: `COMMONS_HOME`, else `commons` in the user's cache folder.
pub(super) fn home() -> PathBuf {
    if let Some(home) = non_empty("COMMONS_HOME") {
        return home;
    }
    user_cache().join("commons")
}

/// The user's cache folder: `XDG_CACHE_HOME`, `LOCALAPPDATA`, else `.cache` at home.
pub(super) fn user_cache() -> PathBuf {
    ["XDG_CACHE_HOME", "LOCALAPPDATA"]
        .iter()
        .find_map(|name| non_empty(name))
        .or_else(|| Some(non_empty("HOME")?.join(".cache")))
        .unwrap_or_else(|| env::temp_dir().join("commons-cache"))
}

/// An environment variable that is set to something.
pub(super) fn non_empty(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// The folder of one entry.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub folder: PathBuf,
}

impl Slot {
    /// The manifest, whatever has become of the files since it was written.
    pub fn manifest(&self) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(self.folder.join(MANIFEST)).ok()?).ok()
    }

    /// The manifest, if the entry is whole: every file there with the recorded length.
    pub fn whole(&self) -> Option<Manifest> {
        let manifest = self.manifest()?;
        let there = |(name, record): (&String, &FileRecord)| {
            fs::metadata(self.folder.join(name))
                .is_ok_and(|m| m.is_file() && m.len() == record.bytes)
        };
        manifest.files.iter().all(there).then_some(manifest)
    }

    /// What users open: the only file, or the folder of several.
    pub fn target(&self, manifest: &Manifest) -> PathBuf {
        match manifest.files.keys().next() {
            Some(only) if manifest.files.len() == 1 => self.folder.join(only),
            _ => self.folder.clone(),
        }
    }

    /// Waits until no other process fills this folder; held until dropped.
    pub fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.folder)
            .map_err(|e| Error::io(&self.folder, "create the folder", e))?;
        let path = self.folder.join(LOCK);
        let file = File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
        file.lock().map_err(|e| Error::io(&path, "lock", e))?;
        Ok(file)
    }

    /// Declares the entry whole.
    pub fn complete(
        &self,
        name: &str,
        source: String,
        licence: &str,
        files: BTreeMap<String, Fetched>,
    ) -> Result<Manifest> {
        let manifest = Manifest {
            name: name.to_owned(),
            source,
            licence: licence.to_owned(),
            files: files
                .into_iter()
                .map(|(name, f)| (name, FileRecord { bytes: f.bytes, sha256: f.sha256 }))
                .collect(),
        };
        let text = serde_json::to_string_pretty(&manifest)
            .map_err(|e| Error::invalid("manifest", e.to_string()))?;
        atomic::write(&self.folder.join(MANIFEST), format!("{text}\n").as_bytes())?;
        Ok(manifest)
    }

    /// Reads every file again and compares checksums.
    pub fn verify(&self, manifest: &Manifest) -> Result<()> {
        for (name, record) in &manifest.files {
            let path = self.folder.join(name);
            let reason = match measure(&path) {
                Ok(found) if found.sha256 == record.sha256 => continue,
                Ok(found) if found.bytes != record.bytes => {
                    format!("has {} bytes instead of {}", found.bytes, record.bytes)
                }
                Ok(found) => {
                    format!("has the SHA-256 {} instead of {}", found.sha256, record.sha256)
                }
                Err(_) if !path.exists() => "is gone".to_owned(),
                Err(error) => return Err(error),
            };
            return Err(Error::malformed(&path, reason).remedy(format!(
                "it has changed since it was fetched; `commons pull {}` fetches it again",
                manifest.name
            )));
        }
        Ok(())
    }

    /// Forgets an entry, keeping parts of downloads.
    pub fn invalidate(&self) {
        let _ = fs::remove_file(self.folder.join(MANIFEST));
    }
}

/// Manifests of all entries below `folder`, by name.
pub(super) fn manifests(folder: &Path) -> Vec<Manifest> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut found: Vec<Manifest> =
        entries.filter_map(|e| Slot { folder: e.ok()?.path() }.manifest()).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Files of a repository that another tool of the same hub has already fetched.
pub(super) fn foreign_snapshot(repo_folder: &str, files: &[String]) -> Option<PathBuf> {
    let root = non_empty("HF_HUB_CACHE")
        .or_else(|| non_empty("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(non_empty("HF_HOME")?.join("hub")))
        .unwrap_or_else(|| user_cache().join("huggingface").join("hub"));
    snapshot_in(&root, repo_folder, files)
}

fn snapshot_in(root: &Path, repo_folder: &str, files: &[String]) -> Option<PathBuf> {
    let repo = root.join(repo_folder);
    let commit = fs::read_to_string(repo.join("refs").join("main")).ok()?;
    let commit = commit.trim();
    if commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let snapshot = repo.join("snapshots").join(commit);
    files.iter().all(|f| snapshot.join(f).is_file()).then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_manifest_with_whole_files_counts() {
        let folder = tempfile::tempdir().unwrap();
        let slot = Slot { folder: folder.path().join("models/m") };
        let lock = slot.lock().unwrap();
        assert_eq!(slot.whole(), None);
        let path = slot.folder.join("a.bin");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(slot.whole(), None);
        let files = BTreeMap::from([("a.bin".to_owned(), measure(&path).unwrap())]);
        let manifest = slot.complete("m", "test".into(), "none", files).unwrap();
        assert_eq!(
            manifest.files["a.bin"].sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(slot.whole().unwrap(), manifest);
        assert_eq!(slot.target(&manifest), path);
        slot.verify(&manifest).unwrap();
        fs::write(&path, b"abd").unwrap();
        assert!(slot.whole().is_some());
        assert!(slot.verify(&manifest).unwrap_err().to_string().contains("SHA-256"));
        fs::write(&path, b"ab").unwrap();
        assert_eq!(slot.whole(), None);
        drop(lock);
    }

    #[test]
    fn snapshots_of_other_tools_are_found_when_whole() {
        let root = tempfile::tempdir().unwrap();
        let repo = root.path().join("models--o--n");
        let snapshot = repo.join("snapshots/abc123");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), "abc123").unwrap();
        let files = ["config.json".to_owned()];
        assert_eq!(snapshot_in(root.path(), "models--o--n", &files), None);
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(snapshot_in(root.path(), "models--o--n", &files), Some(snapshot));
        fs::write(repo.join("refs/main"), "../../x").unwrap();
        assert_eq!(snapshot_in(root.path(), "models--o--n", &files), None);
    }
}
