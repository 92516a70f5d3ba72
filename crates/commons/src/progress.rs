//! What is being done, on standard error: bars on a terminal, a line every few seconds elsewhere.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use commons_nn::train::StepReport;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use commons_core::format::{bytes, number, si};

/// Time between two lines of one task when standard error is not a terminal.
const PERIOD: Duration = Duration::from_secs(5);

/// Share of the newest step in the running mean of the step time.
const NEWEST: f64 = 0.1;

/// How progress is shown.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Bars on a terminal.
    Bars(MultiProgress),
    /// A line now and then.
    Lines,
    /// Not at all.
    Silent,
}

impl Progress {
    /// Bars if standard error is a terminal, else lines; nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        if quiet {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)))
        } else {
            Self::Lines
        }
    }

    /// A line that stays, above the bars.
    pub fn note(&self, text: impl AsRef<str>) {
        if !matches!(self, Self::Silent) {
            self.above_bars(text.as_ref());
        }
    }

    /// Writes a line to standard error without tearing a bar.
    fn above_bars(&self, text: &str) {
        let write = || {
            // Nothing is left to tell if standard error is closed.
            let _ = writeln!(io::stderr(), "{}", text.trim_end());
        };
        match self {
            Self::Bars(bars) => bars.suspend(write),
            _ => write(),
        }
    }

    /// A task of `total` units; `total` 0 means unknown.
    pub fn task(&self, name: &str, total: u64) -> Task {
        self.start(name, total, "{prefix:>10} {bar:16.cyan/dim} {pos}/{len} {wide_msg}")
    }

    /// A file of `total` bytes on its way; `total` 0 means unknown.
    pub fn transfer(&self, name: &str, total: u64) -> Transfer {
        let task = self.start(name, total, "{prefix:>10} {bar:16.cyan/dim} {wide_msg}");
        Transfer { task, began: Instant::now(), first: None, done: 0 }
    }

    fn start(&self, name: &str, total: u64, template: &str) -> Task {
        let now = Instant::now();
        let bar = match self {
            Self::Bars(bars) => {
                let template =
                    if total == 0 { "{prefix:>10} {spinner} {wide_msg}" } else { template };
                let style = ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
                    .progress_chars("━━─");
                let bar = bars
                    .add(ProgressBar::new(total).with_style(style).with_prefix(name.to_owned()));
                bar.tick();
                Some(bar)
            }
            _ => None,
        };
        Task {
            name: name.to_owned(),
            total,
            bar,
            lines: matches!(self, Self::Lines),
            printed: RefCell::new(now),
        }
    }
}

impl commons_core::Progress for Progress {
    fn task(&self, label: &str, total: Option<u64>) -> Box<dyn commons_core::Task> {
        Box::new(Progress::task(self, label, total.unwrap_or(0)))
    }

    fn transfer(&self, label: &str, total: Option<u64>) -> Box<dyn commons_core::Task> {
        Box::new(Progress::transfer(self, label, total.unwrap_or(0)))
    }

    fn note(&self, text: &str) {
        Progress::note(self, text);
    }
}

impl commons_core::Task for Task {
    fn update(&mut self, done: u64, status: &str) {
        Task::update(self, done, status);
    }
}

/// One thing being done. Its bar goes away when it is dropped.
#[derive(Debug)]
pub struct Task {
    name: String,
    total: u64,
    bar: Option<ProgressBar>,
    lines: bool,
    printed: RefCell<Instant>,
}

impl Task {
    /// How far it is, and a word about it.
    pub fn update(&self, done: u64, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(note.to_owned());
        } else if self.lines {
            let mut printed = self.printed.borrow_mut();
            if printed.elapsed() >= PERIOD {
                *printed = Instant::now();
                self.line(done, note);
            }
        }
    }

    /// The last word, shown whatever the time.
    pub fn finish(self, note: &str) {
        if self.lines {
            self.line(self.total, note);
        }
    }

    fn line(&self, done: u64, note: &str) {
        let of = if self.total == 0 { String::new() } else { format!(" {done}/{}", self.total) };
        self.write(&format!("{of}  {note}"));
    }

    fn write(&self, rest: &str) {
        // Nothing is left to tell if standard error is closed.
        let _ = writeln!(io::stderr(), "{}", format!("{}{rest}", self.name).trim_end());
    }
}

/// A file on its way: how much of it has arrived, and how fast. What was there before does not count
/// for the speed.
#[derive(Debug)]
pub struct Transfer {
    task: Task,
    began: Instant,
    /// Bytes that were there at the first update.
    first: Option<u64>,
    done: u64,
}

impl Transfer {
    fn describe(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-3);
        let new = self.done.saturating_sub(self.first.unwrap_or(0));
        arrived(self.done, self.task.total, new as f64 / seconds)
    }
}

impl commons_core::Task for Transfer {
    fn update(&mut self, done: u64, _: &str) {
        self.first.get_or_insert(done);
        self.done = done;
        if let Some(bar) = &self.task.bar {
            bar.set_position(done);
            bar.set_message(self.describe());
        } else if self.task.lines && self.task.printed.borrow().elapsed() >= PERIOD {
            self.task.printed.replace(Instant::now());
            self.task.write(&format!("  {}", self.describe()));
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.task.lines && self.first.is_some() {
            self.task.write(&format!("  {}", self.describe()));
        }
    }
}

/// `1.2 MB of 3.4 MB, 5.6 MB/s`.
fn arrived(done: u64, total: u64, speed: f64) -> String {
    let of = if total == 0 { String::new() } else { format!(" of {}", bytes(total)) };
    format!("{}{of}, {}/s", bytes(done), bytes(speed as u64))
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of a training run: step, loss, rate, gradient norm, speed and time left on one line.
#[derive(Debug)]
pub struct Steps {
    task: Task,
    seconds: f64,
    rate: f64,
}

impl Steps {
    /// A run of `steps` steps under `name`.
    pub fn new(progress: &Progress, name: &str, steps: usize) -> Self {
        Self { task: progress.task(name, steps as u64), seconds: 0., rate: 0. }
    }

    /// Shows a step.
    pub fn observe(&mut self, report: &StepReport) {
        let rate = report.tokens as f64 / report.seconds.max(1e-9);
        let first = self.seconds == 0.;
        let blend = |old: f64, new: f64| if first { new } else { old + NEWEST * (new - old) };
        self.seconds = blend(self.seconds, report.seconds);
        self.rate = blend(self.rate, rate);
        self.task.update(report.step as u64, &self.describe(report));
        if report.step == report.steps && self.task.lines {
            self.task.line(report.step as u64, &self.describe(report));
        }
    }

    fn describe(&self, report: &StepReport) -> String {
        let left = self.seconds * (report.steps - report.step) as f64;
        let part = |(name, value): &(&str, f64)| format!("  {name} {}", number(*value));
        let parts: String = report.parts.iter().map(part).collect();
        format!(
            "loss {}  lr {:.1e}  |g| {}  {} tok/s  ETA {}{parts}",
            number(report.loss),
            report.learning_rate,
            number(report.grad_norm),
            si(self.rate),
            clock(left),
        )
    }
}

/// Seconds as `0:07`, `12:34` or `1:02:03`.
fn clock(seconds: f64) -> String {
    let s = seconds.max(0.).round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s % 3600 / 60, s % 60),
    }
}

/// Lets log lines go through [`Progress`], so that they do not tear a bar.
#[derive(Debug, Clone)]
pub struct LogWriter(pub Progress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.above_bars(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_count_hours_only_when_there_are_any() {
        assert_eq!(clock(7.4), "0:07");
        assert_eq!(clock(754.), "12:34");
        assert_eq!(clock(3723.), "1:02:03");
    }

    #[test]
    fn transfers_show_size_and_speed() {
        let text = arrived(1_500_000, 3_000_000, 250_000.);
        assert_eq!(
            text,
            format!("{} of {}, {}/s", bytes(1_500_000), bytes(3_000_000), bytes(250_000))
        );
        assert!(!arrived(1, 0, 1.).contains("of"));
    }
}
