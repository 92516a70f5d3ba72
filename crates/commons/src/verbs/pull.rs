//! `pull`: fetch models and data by name.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use commons_core::format::bytes;
use commons_nn::hub::registry::find;
use commons_nn::hub::{ENTRIES, Hub, Kind};
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::Result;
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "# what there is",
    "$ commons pull --list",
    "# once; later commands find it in the cache, with --offline too",
    "$ commons pull smollm2-135m",
    "$ commons pull smollm2-135m minilm-l6 shakespeare",
];

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Names of models and data
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub names: Vec<String>,
    /// List the known names and what is in the cache
    #[arg(long, conflicts_with = "names")]
    pub list: bool,
}

/// Fetches what is not in the cache yet, or lists what there is.
pub fn run(app: &App, args: &PullArgs) -> Result<Done> {
    app.no_settings("pull")?;
    let hub = hub(app);
    if args.list {
        return list(app, &hub);
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

fn list(app: &App, hub: &Hub) -> Result<Done> {
    let mut grid = Grid::new(&["name", "kind", ">cached", "licence", "what it is"]);
    let mut rows = Vec::new();
    for entry in ENTRIES {
        let manifest = hub.manifest(entry.kind, entry.name);
        let size = manifest.map(|m| m.files.values().map(|f| f.bytes).sum::<u64>());
        let kind = if entry.kind == Kind::Model { "model" } else { "data" };
        let cached = size.map(|s| bytes(s as f64)).unwrap_or_else(|| "-".into());
        grid.row([entry.name, kind, &cached, entry.licence, entry.title]);
        rows.push(json!({
            "name": entry.name, "kind": kind, "licence": entry.licence, "title": entry.title,
            "cached_bytes": size, "path": hub.cached(entry.kind, entry.name),
        }));
    }
    if app.global.json { app.out.json(&rows)? } else { app.out.grid(&grid)? }
    Ok(Done::Well)
}

/// A name of the registry says what it stands for; anything else is taken for a model.
fn kind_of(name: &str) -> Kind {
    if find(Kind::Model, name).is_none() && find(Kind::Data, name).is_some() { Kind::Data } else { Kind::Model }
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
