//! Names of models and data to files on disk: a path, the local cache, the model hub, a package
//! registry's copy, or bytes that the program carries, in this order.
//!
//! The only module of this crate that uses the network.

mod archive;
mod cache;
mod http;
mod package;
pub mod registry;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

pub use cache::{FileRecord, Manifest};
use cache::{Slot, non_empty};
use commons_core::{Progress, Silent, Stop};
use http::Fetched;
pub use registry::{Client, ENTRIES, Entry, Kind, Source};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, Unresolved};
use crate::format::atomic;

/// The hub used unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";

/// The source that the manifest of an unpacked entry names.
const EMBEDDED: &str = "embedded";

/// A file that the program carries: its name and content.
pub type EmbeddedFile = (&'static str, &'static [u8]);

type Embedded = RwLock<HashMap<(Kind, &'static str), &'static [EmbeddedFile]>>;

fn embedded() -> &'static Embedded {
    static TABLE: OnceLock<Embedded> = OnceLock::new();
    TABLE.get_or_init(Embedded::default)
}

/// Offers files that the program carries under a name of the registry with [`Source::Embedded`].
/// Called once at start; a second call for the same name replaces the first.
pub fn register_embedded(kind: Kind, name: &'static str, files: &'static [EmbeddedFile]) {
    if let Ok(mut table) = embedded().write() {
        table.insert((kind, name), files);
    }
}

/// Where and how names are looked up.
#[derive(Clone)]
pub struct Hub {
    /// The cache folder.
    pub home: PathBuf,
    /// Address of the model hub.
    pub endpoint: String,
    /// Access token of the model hub.
    pub token: Option<String>,
    /// Uses nothing but what is on disk or in the program.
    pub offline: bool,
    /// Whether files that other tools fetched from the hub may be used where they lie.
    pub foreign_cache: bool,
    /// Told about downloads.
    pub progress: Arc<dyn Progress>,
    /// Ends downloads early.
    pub stop: Stop,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("home", &self.home)
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Settings from the environment: `COMMONS_HOME`, `HF_ENDPOINT`, `HF_TOKEN` (or the token file
    /// the hub's own tools keep), `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let text = |name: &str| non_empty(name).map(|v| v.to_string_lossy().trim().to_owned());
        let offline = text("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Self {
            home: cache::home(),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: text("HF_TOKEN").or_else(stored_token),
            offline,
            foreign_cache: true,
            progress: Arc::new(Silent),
            stop: Stop::new(),
        }
    }

    /// The file or folder that `name` stands for, fetched if need be: a path that exists, a name of
    /// the registry, or `owner/name` on the hub.
    ///
    /// # Errors
    /// Lists every place tried with the reason it failed.
    pub fn resolve(&self, kind: Kind, name: &str) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.exists() {
            return Ok(path.to_path_buf());
        }
        let mut attempts = vec![(format!("path {name}"), "no such file or folder".to_owned())];
        let slot = self.slot(kind, name)?;
        if let Some(manifest) = current(kind, name, &slot) {
            return Ok(slot.target(&manifest));
        }
        attempts.push((format!("cache {}", slot.folder.display()), "not there".to_owned()));
        let found = match registry::find(kind, name) {
            Some(entry) => self.try_sources(entry, &slot, &mut attempts)?,
            None if is_repository(name) => self.try_repository(kind, name, &slot, &mut attempts)?,
            None => None,
        };
        found.ok_or_else(|| {
            let known: Vec<_> = ENTRIES.iter().filter(|e| e.kind == kind).map(|e| e.name).collect();
            let remedy = if self.offline {
                "offline: only paths, the cache and embedded files are used".to_owned()
            } else {
                format!("give a path, owner/name on the hub, or one of: {}", known.join(", "))
            };
            Error::Unresolved(Box::new(Unresolved { name: name.to_owned(), attempts, remedy }))
        })
    }

    /// The file or folder of `name` if it is already in the cache; nothing is fetched.
    pub fn cached(&self, kind: Kind, name: &str) -> Option<PathBuf> {
        let slot = self.slot(kind, name).ok()?;
        current(kind, name, &slot).map(|manifest| slot.target(&manifest))
    }

    /// What the cache holds under `name`.
    pub fn manifest(&self, kind: Kind, name: &str) -> Option<Manifest> {
        self.slot(kind, name).ok()?.whole()
    }

    /// Everything of one kind that was fetched into the cache, by name; files may have been damaged
    /// since.
    pub fn entries(&self, kind: Kind) -> Vec<Manifest> {
        cache::manifests(&self.home.join(kind.folder()))
    }

    /// Reads every file of a cached entry again and compares its SHA-256 with the recorded one; a
    /// damaged entry no longer counts, and is fetched again by the next [`Hub::resolve`].
    ///
    /// # Errors
    /// When it is not in the cache, or damaged: names the file.
    pub fn verify(&self, kind: Kind, name: &str) -> Result<Manifest> {
        let slot = self.slot(kind, name)?;
        let manifest = slot
            .manifest()
            .ok_or_else(|| Error::invalid(name, "is not in the cache").remedy("pull it first"))?;
        slot.verify(&manifest).inspect_err(|_| slot.invalidate())?;
        Ok(manifest)
    }

    fn slot(&self, kind: Kind, name: &str) -> Result<Slot> {
        if name.is_empty() || name.len() > 200 || name.split('/').any(|part| part.starts_with('.'))
        {
            return Err(Error::invalid("name", format!("`{name}` names no model or data")));
        }
        // `owner/name` becomes one folder.
        let folder = name.replace(['/', '\\', ':'], "--");
        Ok(Slot { folder: self.home.join(kind.folder()).join(folder) })
    }

    fn try_sources(
        &self,
        entry: &Entry,
        slot: &Slot,
        attempts: &mut Vec<(String, String)>,
    ) -> Result<Option<PathBuf>> {
        for source in entry.sources {
            let place = describe(source);
            match self.try_source(entry, source, slot, &place) {
                Ok(path) => return Ok(Some(path)),
                Err(error) => attempts.push((place, given_up(error)?)),
            }
        }
        Ok(None)
    }

    fn try_source(
        &self,
        entry: &Entry,
        source: &Source,
        slot: &Slot,
        place: &str,
    ) -> Result<PathBuf> {
        let own = |files: &[&str]| files.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>();
        match source {
            Source::Hub { repo, files } => self.fetch_repository(
                entry.kind,
                entry.name,
                repo,
                &own(files),
                entry.licence,
                slot,
            ),
            Source::System { folder, files } => {
                let folder = PathBuf::from(folder);
                match files.iter().find(|f| !folder.join(f).is_file()) {
                    None => Ok(folder),
                    Some(file) => {
                        Err(Error::invalid(folder.join(file).display().to_string(), "is not there"))
                    }
                }
            }
            Source::Package { client, packages, files } => {
                self.online()?;
                self.fill(slot, entry.name, place, entry.licence, || {
                    package::fetch(
                        *client,
                        packages,
                        files,
                        &slot.folder,
                        &*self.progress,
                        &self.stop,
                    )
                })
            }
            Source::Embedded => {
                let files =
                    embedded().read().ok().and_then(|t| t.get(&(entry.kind, entry.name)).copied());
                let files =
                    files.ok_or_else(|| Error::invalid("this program", "does not carry it"))?;
                self.fill(slot, entry.name, place, entry.licence, || {
                    unpack_embedded(files, &slot.folder)
                })
            }
        }
    }

    /// Any repository of the hub: the files a model needs, or all tables of a data set.
    fn try_repository(
        &self,
        kind: Kind,
        name: &str,
        slot: &Slot,
        attempts: &mut Vec<(String, String)>,
    ) -> Result<Option<PathBuf>> {
        let attempt = || {
            if self.foreign_cache
                && let Some(found) =
                    cache::foreign_snapshot(&repo_folder(kind, name), &["config.json".into()])
            {
                return Ok(found);
            }
            self.online()?;
            let files = wanted(kind, &self.listing(kind, name)?);
            if files.is_empty() {
                return Err(Error::invalid(name, "holds no files of a kind that can be used"));
            }
            self.fetch_repository(kind, name, name, &files, "see the repository", slot)
        };
        match attempt() {
            Ok(path) => Ok(Some(path)),
            Err(error) => {
                attempts.push((format!("hub {name}"), given_up(error)?));
                Ok(None)
            }
        }
    }

    fn listing(&self, kind: Kind, repo: &str) -> Result<Vec<String>> {
        let url = format!("{}/api/{}/{repo}/revision/main", self.endpoint, api_kind(kind));
        let answer = http::Client::new(self.token.clone()).json(&url)?;
        let files = answer["siblings"].as_array().into_iter().flatten();
        Ok(files.filter_map(|f| Some(f["rfilename"].as_str()?.to_owned())).collect())
    }

    fn fetch_repository(
        &self,
        kind: Kind,
        name: &str,
        repo: &str,
        files: &[String],
        licence: &str,
        slot: &Slot,
    ) -> Result<PathBuf> {
        if self.foreign_cache
            && let Some(found) = cache::foreign_snapshot(&repo_folder(kind, repo), files)
        {
            return Ok(found);
        }
        self.online()?;
        let client = http::Client::new(self.token.clone());
        let prefix = match kind {
            Kind::Model => String::new(),
            Kind::Data => "datasets/".to_owned(),
        };
        // The registry's files are chosen so that their last names differ.
        let flat = name != repo;
        self.fill(slot, name, &format!("hub {repo}"), licence, || {
            let mut fetched = BTreeMap::new();
            for file in files {
                let url = format!("{}/{prefix}{repo}/resolve/main/{file}", self.endpoint);
                let local = local_name(file, flat)?;
                let path = slot.folder.join(&local);
                match client.fetch(&url, &path, None, &*self.progress, &self.stop) {
                    Ok(got) => {
                        fetched.insert(local, got);
                    }
                    Err(error) if is_optional(file) && http::is_absent(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(fetched)
        })
    }

    fn online(&self) -> Result<()> {
        if self.offline {
            return Err(Error::invalid("network", "not used: offline"));
        }
        Ok(())
    }

    /// Fills an entry's folder under its lock and declares it whole.
    fn fill(
        &self,
        slot: &Slot,
        name: &str,
        source: &str,
        licence: &str,
        fetch: impl FnOnce() -> Result<BTreeMap<String, Fetched>>,
    ) -> Result<PathBuf> {
        let _lock = slot.lock()?;
        // Another process may have filled it while this one waited.
        if let Some(manifest) = slot.whole() {
            return Ok(slot.target(&manifest));
        }
        let manifest = slot.complete(name, source.to_owned(), licence, fetch()?)?;
        Ok(slot.target(&manifest))
    }
}

/// [`Hub::resolve`] for a model, with settings from the environment.
///
/// # Errors
/// Lists every place tried with the reason it failed.
pub fn resolve_model(name: &str) -> Result<PathBuf> {
    Hub::from_env().resolve(Kind::Model, name)
}

/// [`Hub::resolve`] for data, with settings from the environment.
///
/// # Errors
/// Lists every place tried with the reason it failed.
pub fn resolve_data(name: &str) -> Result<PathBuf> {
    Hub::from_env().resolve(Kind::Data, name)
}

/// [`Hub::cached`] for a model, with settings from the environment.
pub fn cached_model(name: &str) -> Option<PathBuf> {
    Hub::from_env().cached(Kind::Model, name)
}

/// [`Hub::cached`] for data, with settings from the environment.
pub fn cached_data(name: &str) -> Option<PathBuf> {
    Hub::from_env().cached(Kind::Data, name)
}

/// What the cache holds, unless it was unpacked by another version of this program that carried
/// something else under the name: then it is forgotten.
fn current(kind: Kind, name: &str, slot: &Slot) -> Option<Manifest> {
    let manifest = slot.whole()?;
    let carried = embedded().read().ok().and_then(|table| table.get(&(kind, name)).copied());
    let stale = carried.filter(|_| manifest.source == EMBEDDED).is_some_and(|files| {
        files.len() != manifest.files.len()
            || files.iter().any(|(file, bytes)| {
                manifest.files.get(*file).is_none_or(|record| {
                    record.bytes != bytes.len() as u64
                        || record.sha256 != http::hex(&Sha256::digest(bytes))
                })
            })
    });
    if stale {
        slot.invalidate();
        return None;
    }
    Some(manifest)
}

fn unpack_embedded(files: &[EmbeddedFile], folder: &Path) -> Result<BTreeMap<String, Fetched>> {
    let mut fetched = BTreeMap::new();
    for (name, bytes) in files {
        let path = folder.join(local_name(name, false)?);
        atomic::write(&path, bytes)?;
        fetched.insert((*name).to_owned(), http::measure(&path)?);
    }
    Ok(fetched)
}

/// The reason an attempt failed, unless the user wished to stop: that ends the whole search.
fn given_up(error: Error) -> Result<String> {
    match error {
        Error::Core(inner) if matches!(*inner, commons_core::Error::Interrupted) => {
            Err(Error::Core(inner))
        }
        other => Ok(other.to_string()),
    }
}

fn describe(source: &Source) -> String {
    match source {
        Source::Hub { repo, .. } => format!("hub {repo}"),
        Source::Package { client, packages, .. } => {
            let names: Vec<String> = packages
                .iter()
                .map(|(name, version)| match *version {
                    "" => (*name).to_owned(),
                    version => format!("{name} {version}"),
                })
                .collect();
            format!("{} {}", client.name(), names.join(", "))
        }
        Source::System { folder, .. } => format!("folder {folder}"),
        Source::Embedded => EMBEDDED.to_owned(),
    }
}

fn api_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "models",
        Kind::Data => "datasets",
    }
}

/// The folder of a repository in the cache of the hub's own tools.
fn repo_folder(kind: Kind, repo: &str) -> String {
    format!("{}--{}", api_kind(kind), repo.replace('/', "--"))
}

fn is_repository(name: &str) -> bool {
    let good = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split_once('/').is_some_and(|(owner, repo)| good(owner) && good(repo))
}

/// The path under which a file of a repository is kept: its own, or its last part when `flat`.
fn local_name(file: &str, flat: bool) -> Result<String> {
    let mut parts = file.split('/');
    if parts.any(|p| p.is_empty() || p.starts_with('.') || p.contains(['\\', ':'])) {
        return Err(Error::invalid(file, "is not a file name that can be kept"));
    }
    Ok(if flat { file.rsplit('/').next().unwrap_or(file) } else { file }.to_owned())
}

/// Files that a model can do without.
fn is_optional(file: &str) -> bool {
    [
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    .contains(&file)
}

/// The files worth fetching out of a repository's listing.
fn wanted(kind: Kind, files: &[String]) -> Vec<String> {
    let top = |f: &&String| !f.contains('/');
    let ends = |f: &String, endings: &[&str]| endings.iter().any(|e| f.ends_with(e));
    match kind {
        Kind::Data => files
            .iter()
            .filter(|f| ends(f, &[".parquet", ".csv", ".jsonl", ".json", ".txt", ".gz"]))
            .cloned()
            .collect(),
        Kind::Model => {
            let has_safetensors = files.iter().filter(top).any(|f| f.ends_with(".safetensors"));
            let weights: &[&str] = if has_safetensors { &[".safetensors"] } else { &[".gguf"] };
            files
                .iter()
                .filter(top)
                .filter(|f| {
                    ends(f, weights) || ends(f, &[".json", ".jinja", "vocab.txt", "merges.txt"])
                })
                .cloned()
                .collect()
        }
    }
}

/// The token that the hub's own tools keep after a login.
fn stored_token() -> Option<String> {
    let path = non_empty("HF_TOKEN_PATH")
        .or_else(|| Some(non_empty("HF_HOME")?.join("token")))
        .unwrap_or_else(|| cache::user_cache().join("huggingface").join("token"));
    let token = std::fs::read_to_string(path).ok()?;
    Some(token.trim().to_owned()).filter(|t| !t.is_empty())
}
