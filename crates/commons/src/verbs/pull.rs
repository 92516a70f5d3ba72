//! `pull`: fetch models and data by name.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use commons_core::format::bytes;
use commons_nn::hub::registry::find;
use commons_nn::hub::{ENTRIES, Hub, Kind, Manifest};
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::{Failure, Result};
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "# what there is",
    "$ commons pull --list",
    "# once; later commands find it in the cache, with --offline too",
    "$ commons pull smollm2-135m",
    "$ commons pull smollm2-135m minilm-l6 shakespeare",
    "# whether the files in the cache are still what was fetched",
    "$ commons pull --verify",
];

/// Every kind of entry.
const KINDS: [Kind; 2] = [Kind::Model, Kind::Data];

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Names of models and data
    #[arg(value_name = "NAME", required_unless_present_any = ["list", "verify"])]
    pub names: Vec<String>,
    /// List the known names and what is in the cache
    #[arg(long, conflicts_with = "names")]
    pub list: bool,
    /// Fetch nothing: read what is in the cache (all of it, or NAME) again and compare its SHA-256
    #[arg(long, conflicts_with = "list")]
    pub verify: bool,
}

/// Fetches what is not in the cache yet, lists what there is, or checks it.
pub fn run(app: &App, args: &PullArgs) -> Result<Done> {
    app.no_settings("pull")?;
    let hub = hub(app);
    if args.list {
        return list(app, &hub);
    }
    if args.verify {
        return verify(app, &hub, &args.names);
    }
    let mut pulled = Vec::new();
    for name in &args.names {
        app.stop.check()?;
        let kind = kind_of(name);
        let path = hub.resolve(kind, name)?;
        let manifest = hub.manifest(kind, name);
        let source = manifest.as_ref().map(|m| m.source.clone());
        if !app.global.json {
            let from = source.as_deref().map(|s| format!(" (from {s})")).unwrap_or_default();
            app.out.text(&format!("{name}: {}{from}", path.display()))?;
        }
        let files = manifest.map(|m| json!(m.files));
        pulled.push(json!({"name": name, "kind": kind.folder(), "path": path, "source": source, "files": files}));
    }
    if app.global.json {
        app.out.json(&pulled)?;
    }
    Ok(Done::Well)
}

/// The known names, and what else is in the cache.
fn list(app: &App, hub: &Hub) -> Result<Done> {
    let mut grid = Grid::new(&["name", "kind", ">cached", "licence", "what it is"]);
    let mut rows = Vec::new();
    let mut row = |kind: Kind, name: &str, licence: &str, title: &str| {
        let size = hub.manifest(kind, name).as_ref().map(size);
        let cached = size.map_or_else(|| "-".into(), bytes);
        grid.row([name, word(kind), &cached, licence, title]);
        rows.push(json!({
            "name": name, "kind": word(kind), "licence": licence, "title": title,
            "cached_bytes": size, "path": hub.cached(kind, name),
        }));
    };
    for entry in ENTRIES {
        row(entry.kind, entry.name, entry.licence, entry.title);
    }
    for kind in KINDS {
        for manifest in hub.entries(kind) {
            if find(kind, &manifest.name).is_none() {
                row(kind, &manifest.name, &manifest.licence, &manifest.source);
            }
        }
    }
    if app.global.json {
        app.out.json(&rows)?
    } else {
        app.out.grid(&grid)?
    }
    Ok(Done::Well)
}

/// Compares the checksums of everything in the cache, or of what is called one of `names`. Goes on
/// after a damaged entry, so that one look shows all that is to be fetched again.
fn verify(app: &App, hub: &Hub, names: &[String]) -> Result<Done> {
    let named = |kind| hub.entries(kind).into_iter().map(move |manifest| (kind, manifest.name));
    let cached: Vec<(Kind, String)> = KINDS.into_iter().flat_map(named).collect();
    if let Some(absent) = names.iter().find(|n| cached.iter().all(|(_, name)| name != *n)) {
        return Err(Failure::usage(format!("`{absent}`"), "is not in the cache")
            .help(format!("fetch it with `commons pull {absent}`")));
    }
    let (mut rows, mut damaged) = (Vec::new(), None);
    for (kind, name) in cached.iter().filter(|(_, n)| names.is_empty() || names.contains(n)) {
        app.stop.check()?;
        match hub.verify(*kind, name) {
            Ok(manifest) => {
                let (files, size) = (manifest.files.len(), size(&manifest));
                if !app.global.json {
                    let line = format!("{name}: {files} files, {}, as fetched", bytes(size));
                    app.out.text(&line)?;
                }
                rows.push(json!({
                    "name": name, "kind": word(*kind), "files": files, "bytes": size,
                }));
            }
            Err(error) if damaged.is_none() => damaged = Some(error),
            Err(error) => app.progress.note(error.to_string()),
        }
    }
    if let Some(error) = damaged {
        return Err(error.into());
    }
    if app.global.json {
        app.out.json(&rows)?;
    }
    Ok(Done::Well)
}

fn size(manifest: &Manifest) -> u64 {
    manifest.files.values().map(|f| f.bytes).sum()
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "model",
        Kind::Data => "data",
    }
}

/// A name of the registry says what it stands for; anything else is taken for a model.
fn kind_of(name: &str) -> Kind {
    if find(Kind::Model, name).is_none() && find(Kind::Data, name).is_some() {
        Kind::Data
    } else {
        Kind::Model
    }
}

fn hub(app: &App) -> Hub {
    let mut hub = Hub::from_env();
    hub.offline |= app.global.offline;
    hub.progress = Arc::new(app.progress.clone());
    hub.stop = app.stop.inner();
    hub
}

/// The path of the model `name`, fetched if need be.
///
/// # Errors
/// Naming every place that was tried.
pub fn model(app: &App, name: &str) -> Result<PathBuf> {
    Ok(hub(app).resolve(Kind::Model, name)?)
}

/// The path of the data `name`, fetched if need be.
///
/// # Errors
/// Naming every place that was tried.
pub fn data(app: &App, name: &str) -> Result<PathBuf> {
    Ok(hub(app).resolve(Kind::Data, name)?)
}
