//! `run`: a recipe of a method, and the verdicts on the claims of its paper.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use commons_core::Seed;
use commons_core::evidence::{ConfigSource, RunOptions, RunResult, Verdict};
use commons_core::format;
use serde_json::json;

use crate::cli::{App, Done};
use crate::error::{During, Failure, Result};
use crate::evidence::{RUNS, Verdicts, find, newest_run};
use crate::examples;
use crate::output::Grid;

pub const EXAMPLES: &str = examples![
    "# a minute: shows that everything works",
    "$ commons run relaxed-recursive --recipe smoke",
    "# the run behind the published result; exit code 3 unless every claim holds",
    "$ commons run foldgpt --recipe full --strict",
    "# with other settings, into another folder",
    "$ commons run foldgpt --recipe smoke --set study.blocks_saved=4 --runs trials --seed 3",
];

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Method: a slug of `commons list`
    #[arg(value_name = "METHOD")]
    pub method: String,
    /// Recipe of the method, over its defaults and under --config and --set
    #[arg(long, value_name = "NAME")]
    pub recipe: Option<String>,
    /// Exit with code 3 if a claim fails
    #[arg(long)]
    pub strict: bool,
    /// Folder that holds the runs
    #[arg(long, value_name = "FOLDER", default_value = RUNS)]
    pub runs: PathBuf,
}

/// Runs a method.
///
/// # Errors
/// Naming an unknown method, recipe or setting, or what went wrong in the experiment.
pub fn run(app: &App, args: &RunArgs) -> Result<Done> {
    let method = find(&args.method)?;
    let slug = method.paper().slug;
    let source = ConfigSource {
        recipe: args.recipe.clone(),
        file: app.global.config.clone(),
        sets: app.global.set.clone(),
    };
    method.configure(&source)?;
    let options = RunOptions {
        seed: Seed::new(app.seed()),
        progress: Arc::new(app.progress.clone()),
        stop: app.stop.inner(),
        ..RunOptions::new(&args.runs, SystemTime::now())
    };
    let result =
        method.run(&source, options).map_err(Failure::from).during(|| format!("running {slug}"))?;
    let folder = newest_run(&args.runs, slug).map(|(folder, _)| folder);
    show(app, &result, folder)?;
    let failed = result.failed().next().is_some();
    Ok(if args.strict && failed { Done::ClaimNotMet } else { Done::Well })
}

fn show(app: &App, result: &RunResult, folder: Option<PathBuf>) -> Result<()> {
    if app.out.json {
        return app.out.json(&json!({ "folder": folder, "result": result }));
    }
    app.out.text(&app.out.bold(&result.title))?;
    app.out.text("")?;
    let mut grid = Grid::new(&["claim", ">paper", ">measured", ">baseline", "needed", "verdict"]);
    for claim in &result.claims {
        let verdict = match claim.verdict {
            Verdict::Holds | Verdict::NotComparable => claim.verdict.to_string(),
            Verdict::Fails => app.out.bold("fails"),
        };
        grid.row([
            claim.id.clone(),
            claim.paper.to_string(),
            claim.measured.map(format::number).unwrap_or_default(),
            claim.baseline.as_ref().map(|b| format::number(b.value)).unwrap_or_default(),
            claim.requirement(),
            verdict,
        ]);
    }
    app.out.grid(&grid)?;
    for note in &result.notes {
        app.out.text(&format!("note: {note}"))?;
    }
    app.out.text("")?;
    let minutes = result.wall_seconds / 60.;
    app.out.text(&format!(
        "{}; {:.1} min, {} at most",
        Verdicts::of(result).text(),
        minutes,
        format::bytes(result.peak_memory),
    ))?;
    if let Some(folder) = folder {
        app.out.text(&format!("report: {}", folder.join("report.html").display()))?;
    }
    Ok(())
}
