//! Files out of packages, fetched by the package client that the user has set up.
//!
//! The client runs as a child process with its own configuration (index, proxy, credentials); this
//! crate never names a host and never installs anything.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use commons_core::{Progress, Stop};

use super::archive;
use super::http::{Fetched, measure};
use super::registry::{Client, Members, Take};
use crate::error::{Error, Result};

/// How often a running client is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How much of a client's complaint is shown.
const COMPLAINT: usize = 600;

impl Client {
    /// What users call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PipWheel | Self::PipSource => "pip",
            Self::Npm => "npm",
            Self::Apt => "apt",
        }
    }

    /// Command lines that may work, in order; the first whose program exists is used.
    fn commands(self, name: &str, version: &str, into: &Path) -> Vec<Vec<String>> {
        let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let folder = into.to_string_lossy();
        match self {
            Self::PipWheel | Self::PipSource => {
                let kind = if self == Self::PipWheel {
                    "--only-binary=:all:"
                } else {
                    "--no-binary=:all:"
                };
                let package = format!("{name}=={version}");
                let rest = [
                    "download",
                    "--no-deps",
                    "--no-input",
                    "--disable-pip-version-check",
                    "--quiet",
                    kind,
                    "--dest",
                    &folder,
                    &package,
                ];
                let programs: [&[&str]; 4] =
                    [&["pip"], &["pip3"], &["python3", "-m", "pip"], &["python", "-m", "pip"]];
                programs.iter().map(|program| own(&[program, &rest[..]].concat())).collect()
            }
            Self::Npm => {
                let package = format!("{name}@{version}");
                vec![own(&["npm", "pack", &package, "--silent", "--pack-destination", &folder])]
            }
            Self::Apt => vec![own(&["apt-get", "download", name])],
        }
    }
}

/// Fetches `packages` and makes `files` from them in `folder`, each complete or not at all.
///
/// # Errors
/// When no client is installed, it fails, a member is missing, or a checksum is wrong.
pub(super) fn fetch(
    client: Client,
    packages: &[(&str, &str)],
    files: &[Take],
    folder: &Path,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<BTreeMap<String, Fetched>> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create the folder", e))?;
    // On the same file system as the result, so that renaming is all that remains to be done.
    let work = tempfile::Builder::new()
        .prefix(".commons-")
        .tempdir_in(folder)
        .map_err(|e| Error::io(folder, "create a temporary folder in", e))?;
    let mut archives = Vec::new();
    let mut task =
        progress.task(&format!("{} packages", client.name()), Some(packages.len() as u64));
    for (i, (name, version)) in packages.iter().enumerate() {
        task.update(i as u64, name);
        let into = work.path().join(i.to_string());
        fs::create_dir_all(&into).map_err(|e| Error::io(&into, "create the folder", e))?;
        run_client(client, name, version, &into, stop)?;
        archives.push(only_file(&into, name)?);
    }
    task.update(packages.len() as u64, "unpacking");
    let out = work.path().join("out");
    fs::create_dir_all(&out).map_err(|e| Error::io(&out, "create the folder", e))?;
    if client == Client::Apt {
        assemble_from_folder(&unpack_deb(&archives, work.path(), stop)?, files, &out)?;
    } else {
        assemble(&archives, files, &out)?;
    }
    install(files, &out, folder)
}

fn run_client(client: Client, name: &str, version: &str, into: &Path, stop: &Stop) -> Result<()> {
    let mut missing = Vec::new();
    for words in client.commands(name, version, into) {
        let [program, arguments @ ..] = words.as_slice() else {
            continue;
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(into);
        match run(&mut command, into, stop) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                missing.push(program.clone());
            }
            outcome => return outcome,
        }
    }
    Err(Error::invalid(
        client.name(),
        format!("is not installed (looked for {})", missing.join(", ")),
    ))
}

/// Runs a command to its end, or until a stop is requested.
fn run(command: &mut Command, folder: &Path, stop: &Stop) -> Result<()> {
    let log = folder.join(".log");
    let program = command.get_program().to_string_lossy().into_owned();
    let file = File::create(&log).map_err(|e| Error::io(&log, "create", e))?;
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
    let mut child = spawned.map_err(|e| Error::io(&program, "start", e))?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| Error::io(&program, "wait for", e))? {
            break status;
        }
        if stop.is_requested() {
            end(&mut child);
            stop.check()?;
        }
        std::thread::sleep(POLL);
    };
    let text = fs::read(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&text);
    let start = text.char_indices().rev().nth(COMPLAINT).map_or(0, |(at, _)| at);
    Err(Error::invalid(program, format!("failed with {status}: {}", text[start..].trim())))
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The one file that the client left.
fn only_file(folder: &Path, package: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_file()).collect();
    match files.pop() {
        Some(file) if files.is_empty() => Ok(file),
        _ => Err(Error::invalid(package, "the package client left no single archive")),
    }
}

/// Where members go while archives are read: one piece per (file, position).
struct Pieces {
    folder: PathBuf,
    /// Path of the member to (index of the file, position within it).
    wanted: HashMap<&'static str, (usize, usize)>,
}

impl Pieces {
    fn path(&self, file: usize, position: usize) -> PathBuf {
        self.folder.join(format!("piece-{file}-{position}"))
    }
}

/// Reads every archive once, then puts the pieces of each file end to end.
fn assemble(archives: &[PathBuf], files: &[Take], out: &Path) -> Result<()> {
    let mut pieces = Pieces { folder: out.to_path_buf(), wanted: HashMap::new() };
    for (i, take) in files.iter().enumerate() {
        if let Members::Named(members) = take.members {
            pieces.wanted.extend(members.iter().enumerate().map(|(k, m)| (*m, (i, k))));
        }
    }
    // Members found by pattern, in lexical order of their paths.
    let mut matching: BTreeMap<(usize, String), PathBuf> = BTreeMap::new();
    for path in archives {
        archive::for_each_member(path, |member, content| {
            if let Some(&(file, position)) = pieces.wanted.get(member) {
                return save(path, content, &pieces.path(file, position));
            }
            let pattern = files.iter().position(|take| match take.members {
                Members::Matching(begin, end) => member.starts_with(begin) && member.ends_with(end),
                Members::Named(_) => false,
            });
            let Some(file) = pattern else {
                return Ok(());
            };
            let piece = out.join(format!("match-{}", matching.len()));
            save(path, content, &piece)?;
            matching.insert((file, member.to_owned()), piece);
            Ok(())
        })?;
    }
    for (i, take) in files.iter().enumerate() {
        let parts: Vec<(String, PathBuf)> = match take.members {
            Members::Named(members) => members
                .iter()
                .enumerate()
                .map(|(k, m)| ((*m).to_owned(), pieces.path(i, k)))
                .collect(),
            Members::Matching(..) => matching
                .iter()
                .filter(|((file, _), _)| *file == i)
                .map(|((_, member), piece)| (member.clone(), piece.clone()))
                .collect(),
        };
        join(&parts, &out.join(take.to))?;
    }
    Ok(())
}

fn save(archive_path: &Path, content: &mut dyn Read, to: &Path) -> Result<()> {
    let file = File::create(to).map_err(|e| Error::io(to, "create", e))?;
    let mut writer = BufWriter::new(file);
    archive::copy(archive_path, content, &mut writer)?;
    writer.flush().map_err(|e| Error::io(to, "write", e))
}

/// Puts the pieces end to end at `to` and removes them; a missing one is named.
fn join(parts: &[(String, PathBuf)], to: &Path) -> Result<()> {
    if parts.is_empty() {
        return Err(Error::invalid(to.display().to_string(), "the package has no matching member"));
    }
    for (member, piece) in parts {
        if !piece.is_file() {
            return Err(Error::invalid(member, "is not in the package"));
        }
    }
    if let [(_, only)] = parts {
        return fs::rename(only, to).map_err(|e| Error::io(to, "rename", e));
    }
    let file = File::create(to).map_err(|e| Error::io(to, "create", e))?;
    let mut writer = BufWriter::new(file);
    for (_, piece) in parts {
        let mut reader =
            BufReader::new(File::open(piece).map_err(|e| Error::io(piece, "open", e))?);
        std::io::copy(&mut reader, &mut writer).map_err(|e| Error::io(to, "write", e))?;
        let _ = fs::remove_file(piece);
    }
    writer.flush().map_err(|e| Error::io(to, "write", e))
}

/// Unpacks `.deb` archives with the system's own tool.
fn unpack_deb(archives: &[PathBuf], work: &Path, stop: &Stop) -> Result<PathBuf> {
    let root = work.join("root");
    fs::create_dir_all(&root).map_err(|e| Error::io(&root, "create the folder", e))?;
    for path in archives {
        run(Command::new("dpkg-deb").arg("--extract").arg(path).arg(&root), work, stop)?;
    }
    Ok(root)
}

fn assemble_from_folder(root: &Path, files: &[Take], out: &Path) -> Result<()> {
    for take in files {
        let Members::Named(members) = take.members else {
            return Err(Error::invalid(take.to, "patterns do not apply to system packages"));
        };
        let parts: Vec<_> = members.iter().map(|m| ((*m).to_owned(), root.join(m))).collect();
        join(&parts, &out.join(take.to))?;
    }
    Ok(())
}

/// Checks the finished files and gives them their place.
fn install(files: &[Take], out: &Path, folder: &Path) -> Result<BTreeMap<String, Fetched>> {
    let mut fetched = BTreeMap::new();
    for take in files {
        let made = out.join(take.to);
        let measured = measure(&made)?;
        if let Some(expected) = take.sha256.filter(|e| *e != measured.sha256) {
            return Err(Error::malformed(
                folder.join(take.to),
                format!("has the SHA-256 {} instead of {expected}", measured.sha256),
            )
            .remedy("the package is not the expected one"));
        }
        File::open(&made)
            .and_then(|f| f.sync_all())
            .map_err(|e| Error::io(&made, "flush to disk", e))?;
        fetched.insert(take.to.to_owned(), measured);
    }
    for take in files {
        let to = folder.join(take.to);
        fs::rename(out.join(take.to), &to).map_err(|e| Error::io(&to, "rename into place", e))?;
    }
    Ok(fetched)
}
