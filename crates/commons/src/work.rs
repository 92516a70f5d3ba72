//! The working folder of a long job: everything needed to go on after a crash, and nothing half
//! written under the name of the result.
//!
//! `OUT.work/` holds the settings, one file per finished stage and the checkpoints; the result is
//! put together in it and renamed to `OUT` at the end. The folder then disappears.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use commons_core::fs::{clean_stale, create_folder, read_text, write_json_atomic};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{During, Failure, Result};

/// Settings of the job, in the working folder and in the result.
pub const SETTINGS: &str = "commons.json";

/// Held by the process that works in the folder.
const LOCK: &str = "lock";

/// The result, before it has its name.
const RESULT: &str = "result";

/// What stood under the name of the result, while it is being replaced.
const REPLACED: &str = "replaced";

/// Largest stage file that is read, bytes.
const STAGE_LIMIT: u64 = 256 << 20;

/// How to treat what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Go on with an interrupted job.
    pub resume: bool,
    /// Start over, and replace the result of another job.
    pub force: bool,
    /// The result is a folder, not a file.
    pub folder: bool,
}

/// An open working folder. No other process works in it meanwhile.
#[derive(Debug)]
pub struct Work {
    out: PathBuf,
    folder: PathBuf,
    _lock: File,
}

/// What opening a working folder found.
#[derive(Debug)]
pub enum Opened {
    /// Work to do.
    Work(Work),
    /// `--resume` of a job that is complete.
    Complete,
}

impl Work {
    /// Opens the working folder of a job with `settings` that ends in `out`.
    ///
    /// The result of a job with the same settings is replaced without being asked: the same job
    /// gives the same result.
    ///
    /// # Errors
    /// When something else is under the name, an interrupted job is there and `resume` was not
    /// given, its settings differ, or another process is at it.
    pub fn open(out: &Path, settings: &Value, policy: Policy) -> Result<Opened> {
        let Some(name) = out.file_name() else {
            return Err(Failure::usage(format!("--out {}", out.display()), "has no last name").help("give the name of a new file or folder"));
        };
        let mut work_name = name.to_os_string();
        work_name.push(".work");
        let folder = out.with_file_name(work_name);
        let begun = folder.join(SETTINGS).is_file();
        if policy.resume && !begun && is_result_of(out, settings) {
            return Ok(Opened::Complete);
        }
        check_result(out, settings, policy)?;
        if begun && !policy.resume && !policy.force {
            return Err(Failure::usage(folder.display(), "holds an interrupted job")
                .help("pass --resume to go on with it, or --force to start over"));
        }
        create_folder(&folder)?;
        let lock = lock(&folder)?;
        if begun && policy.resume {
            check_same(&folder.join(SETTINGS), settings)?;
        } else {
            empty(&folder)?;
            write_json_atomic(folder.join(SETTINGS), settings)?;
        }
        clean_stale(&folder)?;
        Ok(Opened::Work(Self { out: out.to_owned(), folder, _lock: lock }))
    }

    /// A path in the working folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The result of the stage `name`: read if it was finished before, else made and kept.
    ///
    /// # Errors
    /// Those of `make`, or a stage file that cannot be read or written.
    pub fn stage<T: Serialize + DeserializeOwned>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.path(&format!("{name}.json"));
        if path.is_file() {
            return read_json(&path);
        }
        let value = make()?;
        write_json_atomic(&path, &value)?;
        Ok(value)
    }

    /// Where the result is put together.
    pub fn result(&self) -> PathBuf {
        self.path(RESULT)
    }

    /// Gives the result its name and removes the working folder.
    ///
    /// # Errors
    /// When renaming fails; the work is then still there.
    pub fn publish(self) -> Result<()> {
        let result = self.result();
        if self.out.symlink_metadata().is_ok() {
            let aside = self.path(REPLACED);
            remove(&aside)?;
            fs::rename(&self.out, &aside).map_err(commons_core::Error::io("move away", &self.out))?;
        }
        fs::rename(&result, &self.out).map_err(commons_core::Error::io("rename the result to", &self.out))?;
        if let Some(parent) = self.out.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync(parent);
        }
        // Settings first: a folder without them is not taken for an interrupted job.
        remove(&self.path(SETTINGS))?;
        remove(&self.folder)
    }
}

/// Makes a rename durable where the system knows how.
fn sync(folder: &Path) {
    if let Ok(handle) = File::open(folder) {
        // Some file systems refuse to sync a folder; the rename is then as durable as it gets.
        let _ = handle.sync_all();
    }
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(commons_core::Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::usage(folder.display(), "is being worked in by another process").help("wait for it, or choose another --out"))
        }
        Err(TryLockError::Error(error)) => Err(commons_core::Error::io("lock", &path)(error).into()),
    }
}

/// Refuses to replace what this job would not write again, unless forced and of the same kind.
fn check_result(out: &Path, settings: &Value, policy: Policy) -> Result<()> {
    if out.symlink_metadata().is_err() || is_result_of(out, settings) {
        return Ok(());
    }
    crate::model::Target::free(out, policy.folder, policy.force).map(drop)
}

fn is_result_of(out: &Path, settings: &Value) -> bool {
    read_json::<Value>(&out.join(SETTINGS)).is_ok_and(|found| found == *settings)
}

fn check_same(path: &Path, settings: &Value) -> Result<()> {
    let found: Value = read_json(path)?;
    match difference(&found, settings, "") {
        None => Ok(()),
        Some((key, was, is)) => Err(Failure::usage(path.display(), format!("the job was begun with `{key}` = {was}, not {is}"))
            .help("resume with the command that began it, or pass --force to start over")),
    }
}

/// The first key at which two trees differ, with both values.
fn difference(a: &Value, b: &Value, at: &str) -> Option<(String, String, String)> {
    if let (Value::Object(a), Value::Object(b)) = (a, b) {
        let path = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
        let null = Value::Null;
        return a
            .keys()
            .chain(b.keys())
            .find_map(|k| difference(a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null), &path(k)));
    }
    (a != b).then(|| (at.to_owned(), a.to_string(), b.to_string()))
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read or is not of that form.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path, STAGE_LIMIT)?;
    serde_json::from_str(&text).map_err(|e| Failure::usage(path.display(), format!("is damaged: {e}"))).during(|| "reading a finished stage".into())
}

/// Removes everything but the lock.
fn empty(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(commons_core::Error::io("list", folder))?;
    // Settings first: see `publish`.
    remove(&folder.join(SETTINGS))?;
    for entry in entries {
        let path = entry.map_err(commons_core::Error::io("list", folder))?.path();
        if path.file_name().is_some_and(|n| n != LOCK) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(m) if m.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    Ok(removed.map_err(commons_core::Error::io("remove", path))?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Policy = Policy { resume: false, force: false, folder: true };
    const RESUME: Policy = Policy { resume: true, ..PLAIN };
    const FORCE: Policy = Policy { force: true, ..PLAIN };

    fn open(out: &Path, settings: &Value, policy: Policy) -> Result<Work> {
        match Work::open(out, settings, policy)? {
            Opened::Work(work) => Ok(work),
            Opened::Complete => panic!("complete"),
        }
    }

    #[test]
    fn an_interrupted_job_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let settings = json!({"steps": 3, "options": {"rank": 4}});
        let work = open(&out, &settings, PLAIN).unwrap();
        assert_eq!(work.stage("one", || Ok(1)).unwrap(), 1);
        let busy = open(&out, &settings, RESUME).unwrap_err();
        assert!(busy.to_string().contains("another process"), "{busy}");
        drop(work);

        let again = open(&out, &settings, PLAIN).unwrap_err();
        assert!(again.to_string().contains("interrupted job"), "{again}");
        let other = open(&out, &json!({"steps": 3, "options": {"rank": 5}}), RESUME).unwrap_err();
        assert!(other.to_string().contains("`options.rank` = 4, not 5"), "{other}");

        let work = open(&out, &settings, RESUME).unwrap();
        assert_eq!(work.stage("one", || -> Result<i32> { panic!("made twice") }).unwrap(), 1);
        fs::create_dir(work.result()).unwrap();
        write_json_atomic(work.result().join(SETTINGS), &settings).unwrap();
        work.publish().unwrap();
        assert!(out.join(SETTINGS).is_file() && !folder.path().join("out.work").exists());
        assert!(matches!(Work::open(&out, &settings, RESUME).unwrap(), Opened::Complete));
    }

    #[test]
    fn only_the_result_of_the_same_job_is_replaced_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let settings = json!({"steps": 3});
        fs::create_dir(&out).unwrap();
        write_json_atomic(out.join(SETTINGS), &settings).unwrap();
        fs::write(out.join("config.json"), "old").unwrap();
        assert!(open(&out, &json!({"steps": 4}), PLAIN).is_err());
        drop(open(&out, &json!({"steps": 4}), FORCE).unwrap());
        let work = open(&out, &settings, FORCE).unwrap();
        fs::create_dir(work.result()).unwrap();
        fs::write(work.result().join("config.json"), "new").unwrap();
        work.publish().unwrap();
        assert_eq!(fs::read_to_string(out.join("config.json")).unwrap(), "new");
    }

    #[test]
    fn a_damaged_stage_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let work = open(&folder.path().join("out"), &json!({}), PLAIN).unwrap();
        fs::write(work.path("one.json"), "{").unwrap();
        let error = work.stage("one", || Ok(1)).unwrap_err();
        assert!(error.to_string().contains("one.json"), "{error}");
    }
}
