//! A run under way: the folder it writes and what the experiment records in it.

use super::{
    Claim, Paper, RunResult, Series, Stamp,
    result::{ClaimResult, Record},
};
use crate::{
    error::{Error, Result},
    fs, number,
    progress::{Progress, Silent, Stop},
    report::{self, Plot},
    seed::Seed,
    table::Table,
    tensorboard::EventWriter,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// What the program decides about a run, as opposed to the settings of the experiment.
#[derive(Clone)]
pub struct RunOptions {
    /// Folder that holds the runs of all methods.
    pub root: PathBuf,
    /// The time now; names the folder and dates the result.
    pub started: SystemTime,
    /// All randomness comes from here.
    pub seed: Seed,
    /// Whether to write TensorBoard event files as well.
    pub tensorboard: bool,
    /// Where progress is shown.
    pub progress: Arc<dyn Progress>,
    /// How the run is asked to stop.
    pub stop: Stop,
}

impl RunOptions {
    /// Runs below `root`, begun at `started`, with seed 0, event files, and no progress shown.
    pub fn new(root: impl Into<PathBuf>, started: SystemTime) -> Self {
        Self {
            root: root.into(),
            started,
            seed: Seed::new(0),
            tensorboard: true,
            progress: Arc::new(Silent),
            stop: Stop::new(),
        }
    }
}

impl std::fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunOptions")
            .field("root", &self.root)
            .field("started", &self.started)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// How often the log is handed to the system, so that others can follow it.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// A run under way. See the [module](crate::evidence) for the folder it writes.
pub struct Run {
    folder: PathBuf,
    paper: Paper,
    claims: &'static [Claim],
    recipe: Option<String>,
    config: String,
    options: RunOptions,
    clock: Instant,
    flushed: Instant,
    log: BufWriter<File>,
    events: Option<EventWriter>,
    series: BTreeMap<String, Series>,
    measures: BTreeMap<String, Vec<f64>>,
    excuses: BTreeMap<String, String>,
    tables: Vec<Table>,
    notes: Vec<String>,
    plots: Vec<Plot>,
}

#[derive(Serialize)]
struct LogLine<'a> {
    step: u64,
    key: &'a str,
    #[serde(with = "number")]
    value: f64,
    seconds: f64,
}

impl Run {
    /// Makes the folder of a run and writes its settings. Usually called by
    /// [`Method::run`](super::Method::run); directly by commands that want the record of a run
    /// without a method's claims.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made; [`Error::Argument`] for a slug that is no folder
    /// name.
    pub fn create(
        paper: Paper,
        claims: &'static [Claim],
        recipe: Option<&str>,
        config: &str,
        options: RunOptions,
    ) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if paper.slug.is_empty() || !paper.slug.bytes().all(plain) {
            let problem = format!("{:?} cannot name a folder", paper.slug);
            return Err(Error::argument(
                "slug",
                problem,
                "use lower-case letters, digits and hyphens",
            ));
        }
        let mut ids = BTreeSet::new();
        if let Some(twice) = claims.iter().find(|claim| !ids.insert(claim.id)) {
            let problem = format!("{} has two claims {:?}", paper.slug, twice.id);
            return Err(Error::argument("claims", problem, "give each its own id"));
        }
        let folder = new_folder(&options.root.join(paper.slug), Stamp::from(options.started))?;
        fs::write_atomic(folder.join("config.toml"), config)?;
        let path = folder.join("metrics.jsonl");
        let log = BufWriter::new(File::create(&path).map_err(Error::io("create", &path))?);
        let events = options
            .tensorboard
            .then(|| EventWriter::create(&folder, options.started))
            .transpose()?;
        let now = Instant::now();
        Ok(Self {
            folder,
            paper,
            claims,
            recipe: recipe.map(str::to_owned),
            config: config.to_owned(),
            options,
            clock: now,
            flushed: now,
            log,
            events,
            series: BTreeMap::new(),
            measures: BTreeMap::new(),
            excuses: BTreeMap::new(),
            tables: Vec::new(),
            notes: Vec::new(),
            plots: Vec::new(),
        })
    }

    /// The seed of the run. Fork it for every use; repeat `i` of an experiment uses
    /// `run.seed().fork("repeat", i)`.
    pub fn seed(&self) -> Seed {
        self.options.seed
    }

    /// The folder of the run.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder for checkpoints, made when first asked for and removed when the run is finished.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be made.
    pub fn checkpoints(&self) -> Result<PathBuf> {
        let folder = self.folder.join("checkpoints");
        fs::create_folder(&folder)?;
        Ok(folder)
    }

    /// The name of the recipe, if one was chosen.
    pub fn recipe(&self) -> Option<&str> {
        self.recipe.as_deref()
    }

    /// Where progress is shown.
    pub fn progress(&self) -> Arc<dyn Progress> {
        Arc::clone(&self.options.progress)
    }

    /// The flag that asks the run to stop.
    pub fn stop(&self) -> &Stop {
        &self.options.stop
    }

    /// For use as `run.check_stop()?` between steps.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once a stop was requested.
    pub fn check_stop(&self) -> Result<()> {
        self.options.stop.check()
    }

    /// Since the run began.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Logs one point of a curve. Keys have the form `what/quantity`, as in `heal/loss`: curves of
    /// the same quantity share a plot in the report. NaN and infinity are kept as such.
    ///
    /// # Errors
    /// [`Error::Io`] if the log cannot be written.
    pub fn log(&mut self, step: u64, key: &str, value: f64) -> Result<()> {
        let seconds = (self.elapsed().as_secs_f64() * 1e6).round() / 1e6;
        let line = LogLine { step, key, value, seconds };
        let written = serde_json::to_writer(&mut self.log, &line)
            .map_err(io::Error::from)
            .and_then(|()| self.log.write_all(b"\n"));
        written.map_err(Error::io("write", self.folder.join("metrics.jsonl")))?;
        let at = self.options.started + self.elapsed();
        if let Some(events) = &mut self.events {
            events.scalar(key, step, value, at)?;
        }
        if let Some(series) = self.series.get_mut(key) {
            series.push(step, value);
        } else {
            self.series.entry(key.to_owned()).or_default().push(step, value);
        }
        if self.flushed.elapsed() >= FLUSH_EVERY {
            self.flush()?;
        }
        Ok(())
    }

    /// Logs points of several curves at one step.
    ///
    /// # Errors
    /// [`Error::Io`] if the log cannot be written.
    pub fn log_all<'a>(
        &mut self,
        step: u64,
        points: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<()> {
        points.into_iter().try_for_each(|(key, value)| self.log(step, key, value))
    }

    /// Records a measure: one value per repeat, in the order of the repeats, so that the values of a
    /// metric and of its baseline belong together. Claims are judged by measures.
    pub fn measure(&mut self, key: &str, value: f64) {
        self.measures.entry(key.to_owned()).or_default().push(value);
    }

    /// The values of a measure so far.
    pub fn measured(&self, key: &str) -> &[f64] {
        self.measures.get(key).map_or(&[], Vec::as_slice)
    }

    /// Says why this run cannot be held against a claim, e.g. because the recipe is far smaller
    /// than the paper's setting. What was measured is still reported.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such claim or no reason.
    pub fn not_comparable(&mut self, claim: &str, reason: impl Into<String>) -> Result<()> {
        let reason = reason.into();
        if !self.claims.iter().any(|known| known.id == claim) {
            let ids: Vec<&str> = self.claims.iter().map(|known| known.id).collect();
            let problem = format!("{} claims nothing called {claim:?}", self.paper.slug);
            return Err(Error::argument(
                "claim",
                problem,
                format!("its claims are: {}", ids.join(", ")),
            ));
        }
        if reason.trim().is_empty() {
            return Err(Error::argument(
                "reason",
                "is empty",
                "say why the claim cannot be compared",
            ));
        }
        self.excuses.insert(claim.to_owned(), reason);
        Ok(())
    }

    /// Adds a table to the result and the report.
    pub fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Adds a remark to the result and the report.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a plot to the report, before those of the logged curves.
    pub fn plot(&mut self, plot: Plot) {
        self.plots.push(plot);
    }

    /// The curves logged so far, by key.
    pub fn series(&self) -> &BTreeMap<String, Series> {
        &self.series
    }

    /// Judges the claims, writes `report.html` and, last, `result.json`, and removes the checkpoints.
    ///
    /// # Errors
    /// [`Error::NoEvidence`] naming the claims without measures; [`Error::Io`].
    pub fn finish(mut self) -> Result<RunResult> {
        let wall_seconds = self.elapsed().as_secs_f64();
        self.flush()?;
        let mut missing = Vec::new();
        let mut judged = Vec::new();
        for claim in self.claims {
            match ClaimResult::judge(claim, &self.measures, self.excuses.remove(claim.id)) {
                Ok(result) => judged.push(result),
                Err(problem) => missing.push(format!("{} ({problem})", claim.id)),
            }
        }
        if !missing.is_empty() {
            return Err(Error::NoEvidence {
                slug: self.paper.slug.to_owned(),
                claims: missing.join(", "),
            });
        }
        let record = Record {
            paper: self.paper,
            recipe: self.recipe,
            date: Stamp::from(self.options.started),
            seed: self.options.seed,
            wall_seconds,
            measures: self.measures,
            tables: self.tables,
            notes: self.notes,
            config: self.config,
        };
        let result = RunResult::new(record, judged)?;
        let html = report::html(&self.paper, &result, &self.series, &self.plots);
        fs::write_atomic(self.folder.join("report.html"), html)?;
        result.save(self.folder.join("result.json"))?;
        // Nothing goes on from them any more, and they may be gigabytes.
        let checkpoints = self.folder.join("checkpoints");
        if checkpoints.exists() {
            std::fs::remove_dir_all(&checkpoints).map_err(Error::io("remove", &checkpoints))?;
        }
        Ok(result)
    }

    fn flush(&mut self) -> Result<()> {
        let path = self.folder.join("metrics.jsonl");
        self.log.flush().map_err(Error::io("write", path))?;
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        self.flushed = Instant::now();
        Ok(())
    }
}

/// Runs begun within one second get `-2`, `-3` and so on.
const MOST_PER_SECOND: usize = 1000;

fn new_folder(parent: &Path, stamp: Stamp) -> Result<PathBuf> {
    fs::create_folder(parent)?;
    let name = stamp.file_name();
    let names =
        (1..=MOST_PER_SECOND).map(|n| if n == 1 { name.clone() } else { format!("{name}-{n}") });
    let mut last = None;
    for name in names {
        let folder = parent.join(name);
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                last = Some((folder, error))
            }
            Err(error) => return Err(Error::io("create folder", folder)(error)),
        }
    }
    match last {
        Some((folder, error)) => Err(Error::io("create folder", folder)(error)),
        None => Err(Error::argument("runs", "allow none per second", "raise the limit")),
    }
}
