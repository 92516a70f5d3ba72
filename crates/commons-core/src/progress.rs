//! How long work reports where it is, and how it is told to stop. Libraries print nothing: the
//! program that uses them decides what to show.

use crate::error::{Error, Result};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Receives the progress of long work. Implementations are shared between threads.
pub trait Progress: Send + Sync {
    /// A piece of work begins; `total` is its number of steps, if known. Dropping the task ends it.
    fn task(&self, label: &str, total: Option<u64>) -> Box<dyn Task>;

    /// A file begins to arrive, measured in bytes; otherwise as [`Progress::task`].
    fn transfer(&self, label: &str, total: Option<u64>) -> Box<dyn Task> {
        self.task(label, total)
    }

    /// A remark worth a line of its own.
    fn note(&self, text: &str);
}

/// One piece of work under way.
pub trait Task: Send {
    /// `done` steps are finished; `status` says in a few words how it stands ("loss 2.31").
    fn update(&mut self, done: u64, status: &str);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn task(&self, _: &str, _: Option<u64>) -> Box<dyn Task> {
        Box::new(Self)
    }

    fn note(&self, _: &str) {}
}

impl Task for Silent {
    fn update(&mut self, _: u64, _: &str) {}
}

/// A request to stop, set from elsewhere (Ctrl-C, a server shutting down) and checked by long work
/// between steps. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the work to stop at its next check.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// For use as `stop.check()?` between steps.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once a stop was requested.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The flag itself, for signal handlers that want one.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl From<Arc<AtomicBool>> for Stop {
    fn from(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_request() {
        let stop = Stop::new();
        let other = stop.clone();
        assert!(other.check().is_ok());
        stop.flag().store(true, Ordering::SeqCst);
        assert!(matches!(other.check(), Err(Error::Interrupted)));
    }
}
