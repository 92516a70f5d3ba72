//! What went wrong, for the person at the terminal: place, reason, remedy, and an exit code.

use std::fmt;
use std::io::{self, Write};

use commons_core::ErrorKind;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

/// Result with this crate's [`Failure`].
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Exit codes of every verb.
pub mod exit {
    /// Something failed that was not the caller's doing.
    pub const FAILED: u8 = 1;
    /// Wrong usage or bad input.
    pub const USAGE: u8 = 2;
    /// A claim was measured and not met, and `--strict` was given.
    pub const CLAIM_NOT_MET: u8 = 3;
    /// Stopped by the user.
    pub const INTERRUPTED: u8 = 130;
}

/// A verb that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    message: String,
    causes: Vec<String>,
    help: Option<String>,
}

impl Failure {
    /// Bad input: names the place and what is wrong with it.
    pub fn usage(place: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Usage, format!("{place}: {problem}"))
    }

    /// Not the caller's doing.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failure, message.into())
    }

    /// Stopped on request; `resume` is the command that goes on, if there is one.
    pub fn interrupted(resume: Option<String>) -> Self {
        let failure = Self::new(ErrorKind::Interrupted, "interrupted".into());
        match resume {
            Some(command) => failure.help(format!("go on with: {command}")),
            None => failure,
        }
    }

    fn new(kind: ErrorKind, message: String) -> Self {
        Self { kind, message, causes: Vec::new(), help: None }
    }

    /// What the user can do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        let help = help.into();
        self.help = (!help.is_empty()).then_some(help);
        self
    }

    /// Puts what was being done before the message.
    pub fn during(mut self, doing: impl fmt::Display) -> Self {
        if self.kind != ErrorKind::Interrupted {
            let cause = std::mem::replace(&mut self.message, doing.to_string());
            self.causes.insert(0, cause);
        }
        self
    }

    /// Whether the user stopped it.
    pub fn is_interrupted(&self) -> bool {
        self.kind == ErrorKind::Interrupted
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self.kind {
            ErrorKind::Usage => exit::USAGE,
            ErrorKind::Interrupted => exit::INTERRUPTED,
            ErrorKind::Failure => exit::FAILED,
        }
    }

    /// Writes the report to standard error.
    pub fn report(&self, color: bool, width: usize) {
        let mut theme =
            if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        if self.is_interrupted() {
            theme.characters.error = "■".into();
        }
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width).with_links(false);
        let mut text = String::new();
        if handler.render_report(&mut text, self).is_err() {
            text = format!("error: {self}\n");
        }
        // Nothing is left to tell if standard error is closed.
        let _ = io::stderr().write_all(text.trim_start_matches('\n').as_bytes());
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes.iter().try_for_each(|cause| write!(f, "\n{cause}"))
    }
}

impl std::error::Error for Failure {}

impl Diagnostic for Failure {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// Adds what was being done.
pub trait During<T> {
    /// Puts `doing` before the message of the failure, if there is one.
    fn during(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Failure>> During<T> for std::result::Result<T, E> {
    fn during(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.into().during(doing()))
    }
}

impl From<commons_core::Error> for Failure {
    fn from(error: commons_core::Error) -> Self {
        use commons_core::Error as E;
        let kind = error.kind();
        match error {
            E::File { path, field, problem, remedy } => {
                let place = path.display().to_string();
                let place = if field.is_empty() { place } else { format!("{place}: {field}") };
                Self::usage(place, problem).help(remedy)
            }
            E::Config { source_name, field, problem, remedy } => {
                Self::usage(format!("{source_name}: {field}"), problem).help(remedy)
            }
            E::Argument { name, problem, remedy } => Self::usage(name, problem).help(remedy),
            E::Context { context, source } => match source.downcast::<E>() {
                Ok(inner) => Self::from(*inner).during(context),
                Err(other) => Self::new(kind, chain(&*other)).during(context),
            },
            E::Other(source) => match source.downcast::<commons_nn::Error>() {
                Ok(inner) => Self::from(*inner),
                Err(other) => match other.downcast::<commons_weights::Error>() {
                    Ok(inner) => Self::from(*inner),
                    Err(other) => match other.downcast::<commons_society::Error>() {
                        Ok(inner) => Self::from(*inner),
                        Err(other) => Self::new(kind, chain(&*other)),
                    },
                },
            },
            E::Interrupted => Self::interrupted(None),
            other => Self::new(kind, chain(&other)),
        }
    }
}

impl From<commons_nn::Error> for Failure {
    fn from(error: commons_nn::Error) -> Self {
        use commons_nn::Error as E;
        match error {
            E::Malformed(mut fault) => {
                let remedy = std::mem::take(&mut fault.remedy);
                Self::new(ErrorKind::Usage, fault.to_string()).help(remedy)
            }
            E::Unresolved(mut fault) => {
                let remedy = std::mem::take(&mut fault.remedy);
                let mut failure =
                    Self::usage(format!("`{}`", fault.name), "cannot be found").help(remedy);
                failure.causes =
                    fault.attempts.iter().map(|(at, why)| format!("{at}: {why}")).collect();
                failure
            }
            E::Invalid { subject, reason, remedy } => Self::usage(subject, reason).help(remedy),
            E::Core(error) => (*error).into(),
            E::Io { path, action, source } if source.kind() == io::ErrorKind::NotFound => {
                Self::usage(path.display(), format!("{action}: no such file or folder"))
            }
            other => Self::failed(chain(&other)),
        }
    }
}

impl From<commons_society::Error> for Failure {
    fn from(error: commons_society::Error) -> Self {
        use commons_society::Error as E;
        match error {
            E::Config { field, reason } => Self::usage(field, reason),
            E::Interrupted => Self::interrupted(None),
            E::Core(error) => error.into(),
            other => Self::failed(chain(&other)),
        }
    }
}

impl From<commons_weights::Error> for Failure {
    fn from(error: commons_weights::Error) -> Self {
        use commons_weights::Error as E;
        match error {
            E::Config { field, reason } => Self::usage(field, reason),
            E::Interrupted => Self::interrupted(None),
            E::Nn(error) => error.into(),
            E::Core(error) => error.into(),
            other => Self::failed(chain(&other)),
        }
    }
}

impl From<commons_ops::Error> for Failure {
    fn from(error: commons_ops::Error) -> Self {
        Self::failed(chain(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // A reader that went away (`commons list | head`) is no failure; see `output`.
        Self::failed(format!("cannot write the result: {error}"))
    }
}

/// An error and its causes, one a line, causes that only repeat left out.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let line = cause.to_string();
        if !text.contains(&line) {
            text = format!("{text}\n{line}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_become_codes() {
        assert_eq!(Failure::usage("a", "b").code(), 2);
        assert_eq!(Failure::failed("a").code(), 1);
        assert_eq!(Failure::interrupted(None).code(), 130);
        let core = commons_core::Error::argument("rank", "is 0", "use 1");
        let failure = Failure::from(core);
        assert_eq!((failure.code(), failure.help.as_deref()), (2, Some("use 1")));
    }

    #[test]
    fn errors_of_lower_crates_come_out_of_their_wrapping() {
        let inner = commons_nn::Error::malformed("m.gguf", "ends early").remedy("get it again");
        let core = commons_core::Error::other(inner).context("loading the teacher");
        let failure = Failure::from(core);
        assert_eq!(failure.code(), 2, "{failure}");
        assert_eq!(failure.to_string(), "loading the teacher\nm.gguf: ends early");
        assert_eq!(failure.help.as_deref(), Some("get it again"));
    }
}
