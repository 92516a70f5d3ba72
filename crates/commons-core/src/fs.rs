//! Files and folders that appear whole or not at all.
//!
//! Content is written under a temporary name `.NAME.tmp-XXXXXX` in the folder it is meant for,
//! forced to disk, and renamed. Whoever is killed half-way leaves only such a temporary, which no
//! reader takes for the real thing; [`clean_stale`] removes it. A live writer holds a lock on its
//! temporary, so that cleaning never takes one away that is in use.

use crate::error::{Error, Result};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::{NamedTempFile, TempDir};

const TEMPORARY: &str = ".tmp-";
const REPLACED: &str = ".old-";
const IN_FOLDER: &str = "write inside";

/// Writes `bytes` to `path`, replacing what is there, in one step that a crash cannot split.
///
/// # Errors
/// [`Error::Io`] naming the path, e.g. when its folder does not exist or the disk is full.
pub fn write_atomic(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes.as_ref()).map_err(Error::io("write", path))?;
    file.commit()
}

/// Serialises `value` as indented JSON with a final newline and writes it with [`write_atomic`].
///
/// # Errors
/// [`Error::Io`], or [`Error::Context`] if the value cannot be JSON (a map with non-text keys).
pub fn write_json_atomic(path: impl AsRef<Path>, value: &impl serde::Serialize) -> Result<()> {
    let path = path.as_ref();
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::other(error).context(format!("writing {}", path.display())))?;
    text.push(b'\n');
    write_atomic(path, text)
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is longer or not UTF-8.
pub fn read_text(path: impl AsRef<Path>, limit: u64) -> Result<String> {
    use io::Read;
    let path = path.as_ref();
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        let problem = format!("is longer than the {limit} bytes allowed");
        return Err(Error::file(path, "", problem, "check that this is the file you meant"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let field = format!("byte {}", error.utf8_error().valid_up_to());
        Error::file(path, field, "is not UTF-8 text", "check that this is the file you meant")
    })
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`Error::Io`] naming the folder.
pub fn create_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    fs::create_dir_all(path).map_err(Error::io("create folder", path))
}

/// A file being written that takes its name only on [`AtomicFile::commit`]. Dropped before, it
/// disappears. Writes are buffered.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Opens a temporary beside `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder does not exist or cannot be written;
    /// [`Error::Argument`] if `path` has no file name.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (folder, prefix) = place(path, TEMPORARY)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        // The default of the library is 0600; the umask should decide, as for any other file.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(Error::io("create", path))?;
        lock(file.as_file()).map_err(Error::io("lock", file.path()))?;
        Ok(Self { path: path.to_owned(), writer: BufWriter::with_capacity(1 << 16, file) })
    }

    /// Forces the content to disk and gives the file its name, replacing any file of that name.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file, if any, is then untouched.
    pub fn commit(self) -> Result<()> {
        let Self { path, writer } = self;
        let file =
            writer.into_inner().map_err(|error| Error::io("write", &path)(error.into_error()))?;
        file.as_file().sync_all().map_err(Error::io("write", &path))?;
        file.persist(&path)
            .map_err(|error| Error::io("rename a temporary to", &path)(error.error))?;
        sync_folder(parent(&path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.seek(to)
    }
}

/// A folder being filled that takes its name only on commit. Dropped before, it disappears.
#[derive(Debug)]
pub struct AtomicFolder {
    path: PathBuf,
    folder: TempDir,
    _lock: Option<File>,
}

impl AtomicFolder {
    /// Makes a temporary folder beside `path`, creating the parents of `path` as needed.
    ///
    /// # Errors
    /// [`Error::Io`] if that is not possible; [`Error::Argument`] if `path` has no last name.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (parent, prefix) = place(path, TEMPORARY)?;
        create_folder(parent)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder.tempdir_in(parent).map_err(Error::io("create folder", path))?;
        let lock = lock_folder(folder.path()).map_err(Error::io("lock", folder.path()))?;
        Ok(Self { path: path.to_owned(), folder, _lock: lock })
    }

    /// The folder to write into until commit.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Forces everything to disk and gives the folder its name, which must be free.
    ///
    /// # Errors
    /// [`Error::Io`]; if the name is taken, its kind is `AlreadyExists`.
    pub fn commit(self) -> Result<PathBuf> {
        if self.path.symlink_metadata().is_ok() {
            let taken = io::Error::new(io::ErrorKind::AlreadyExists, "it exists already");
            return Err(Error::io("create folder", &self.path)(taken));
        }
        self.publish()
    }

    /// Like [`AtomicFolder::commit`], but a folder of that name is replaced. A crash at the wrong
    /// moment leaves the old one under a temporary name, whence [`clean_stale`] puts it back.
    ///
    /// # Errors
    /// [`Error::Io`]; the old folder is then untouched or put back.
    pub fn commit_replacing(self) -> Result<PathBuf> {
        if self.path.symlink_metadata().is_err() {
            return self.publish();
        }
        let (parent, prefix) = place(&self.path, REPLACED)?;
        // An empty folder of a unique name, which the rename below replaces.
        let aside = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(Error::io("create folder", parent))?
            .keep();
        let path = self.path.clone();
        let moved = sync_tree(self.path())
            .and_then(|()| fs::rename(&path, &aside).map_err(Error::io("move away", &path)));
        if let Err(error) = moved {
            remove(&aside)?;
            return Err(error);
        }
        match self.publish() {
            Ok(path) => {
                remove(&aside)?;
                Ok(path)
            }
            Err(error) => {
                fs::rename(&aside, &path).map_err(Error::io("put back", &path))?;
                Err(error)
            }
        }
    }

    fn publish(self) -> Result<PathBuf> {
        sync_tree(self.folder.path())?;
        fs::rename(self.folder.path(), &self.path)
            .map_err(Error::io("rename a temporary to", &self.path))?;
        // It has its name now: nothing is left for the guard to delete.
        let _ = self.folder.keep();
        sync_folder(parent(&self.path))?;
        Ok(self.path)
    }
}

/// Removes from `folder` the temporaries that killed writers of this module left, and puts back
/// folders that were moved aside but never replaced. Temporaries of live writers stay. Returns how
/// many entries were removed or put back; a folder that does not exist has none.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be listed or an entry not removed.
pub fn clean_stale(folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::io("list", folder)(error)),
    };
    let mut count = 0;
    for entry in entries {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        if original(name, TEMPORARY).is_some() {
            if stale(&path) {
                remove(&path)?;
                count += 1;
            }
        } else if let Some(original) = original(name, REPLACED) {
            let target = folder.join(original);
            if target.symlink_metadata().is_ok() {
                remove(&path)?;
            } else {
                fs::rename(&path, &target).map_err(Error::io("put back", &target))?;
            }
            count += 1;
        }
    }
    Ok(count)
}

/// The folder of `path` and the beginning `.NAME.tmp-` of a temporary's name.
fn place<'a>(path: &'a Path, marker: &str) -> Result<(&'a Path, OsString)> {
    let Some(name) = path.file_name() else {
        let problem = format!("{} has no file name", path.display());
        return Err(Error::argument("path", problem, "give the name of a file or folder"));
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(marker);
    Ok((parent(path), prefix))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `NAME` of `.NAME<marker>XXXXXX`, where the X are letters or digits.
fn original<'a>(name: &'a OsStr, marker: &str) -> Option<&'a str> {
    let (original, random) = name.to_str()?.strip_prefix('.')?.rsplit_once(marker)?;
    let valid = random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric());
    (valid && !original.is_empty()).then_some(original)
}

fn remove(path: &Path) -> Result<()> {
    let folder = path.symlink_metadata().is_ok_and(|data| data.is_dir());
    let removed = if folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Locks a temporary for as long as it is open. File systems without locks go without.
fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

/// Folders can be opened, and so locked, on Unix only.
fn lock_folder(path: &Path) -> io::Result<Option<File>> {
    if cfg!(unix) {
        let file = File::open(path)?;
        lock(&file)?;
        Ok(Some(file))
    } else {
        Ok(None)
    }
}

/// Whether nobody is writing to this temporary any more.
fn stale(path: &Path) -> bool {
    if cfg!(not(unix)) && path.is_dir() {
        return false;
    }
    File::open(path).is_ok_and(|file| file.try_lock().is_ok())
}

/// Forces every file and folder below `path`, and `path`, to disk.
fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let kind = entry.file_type().map_err(Error::io("list", path))?;
        let inner = entry.path();
        if kind.is_dir() {
            sync_tree(&inner)?;
        } else if kind.is_file() {
            let file = File::options().read(true).write(cfg!(windows)).open(&inner);
            file.and_then(|file| file.sync_all()).map_err(Error::io(IN_FOLDER, &inner))?;
        }
    }
    sync_folder(path)
}

/// Forces the names in a folder to disk (Unix; elsewhere renames are durable by themselves).
fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        let synced = File::open(path).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io(IN_FOLDER, path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn file_appears_only_on_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bin");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        file.write_all(b" whole").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"half whole");
        drop(AtomicFile::create(&path).unwrap());
        assert_eq!(names(folder.path()), ["model.bin"]);
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_follow_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, b"").unwrap();
        let atomic = folder.path().join("atomic");
        write_atomic(&atomic, b"").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&plain), mode(&atomic));
    }

    #[test]
    fn folder_appears_only_on_commit_and_may_replace() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("deep/checkpoint");
        for (round, text) in ["first", "second"].into_iter().enumerate() {
            let folder = AtomicFolder::create(&path).unwrap();
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::write(folder.path().join("sub/file"), text).unwrap();
            assert_eq!(path.exists(), round > 0);
            folder.commit_replacing().unwrap();
            assert_eq!(fs::read_to_string(path.join("sub/file")).unwrap(), text);
        }
        let refused = AtomicFolder::create(&path).unwrap().commit().unwrap_err();
        assert!(
            matches!(&refused, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
        );
        assert_eq!(names(&root.path().join("deep")), ["checkpoint"]);
    }

    #[test]
    fn cleaning_spares_live_writers_and_restores_replaced_folders() {
        let root = tempfile::tempdir().unwrap();
        let live_file = AtomicFile::create(root.path().join("a")).unwrap();
        let live_folder = AtomicFolder::create(root.path().join("b")).unwrap();
        fs::write(root.path().join(".c.tmp-a1B2c3"), b"dead").unwrap();
        fs::create_dir(root.path().join(".d.tmp-a1B2c3")).unwrap();
        fs::create_dir(root.path().join(".e.old-a1B2c3")).unwrap();
        fs::write(root.path().join(".notes.tmp-draft-of-mine"), b"not ours").unwrap();
        assert_eq!(clean_stale(root.path()).unwrap(), 3);
        live_file.commit().unwrap();
        live_folder.commit().unwrap();
        assert_eq!(names(root.path()), [".notes.tmp-draft-of-mine", "a", "b", "e"]);
        assert_eq!(clean_stale(root.path().join("nowhere")).unwrap(), 0);
    }

    #[test]
    fn reading_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("text");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert!(read_text(&path, 4).unwrap_err().to_string().contains("longer"));
        fs::write(&path, b"ab\xff").unwrap();
        assert!(read_text(&path, 9).unwrap_err().to_string().contains("byte 2"));
    }
}
