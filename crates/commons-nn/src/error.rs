//! The error of this crate: which file, which field, at which byte, why, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong when reading, writing, finding or using models and data.
///
/// Large payloads are boxed so that `Result<T>` stays small.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file whose content is not what its format demands.
    #[error(transparent)]
    Malformed(Box<Malformed>),
    /// The operating system refused a file operation.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// File or folder concerned.
        path: PathBuf,
        /// What was attempted, as a verb phrase ("open", "rename into place").
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A model or data name that no source could supply.
    #[error(transparent)]
    Unresolved(Box<Unresolved>),
    /// A request that cannot be honoured: a wrong argument, shape or configuration value.
    #[error("{subject}: {reason}{}", Remedy(remedy))]
    Invalid {
        /// Argument, field or tensor concerned.
        subject: String,
        /// What is wrong with it.
        reason: String,
        /// What to do; may be empty.
        remedy: String,
    },
    /// The tensor engine failed.
    #[error(transparent)]
    Tensor(#[from] Box<candle_core::Error>),
    /// The base crate failed.
    #[error(transparent)]
    Core(Box<commons_core::Error>),
}

/// Where and why the content of a file is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The file (or the name given to an in-memory buffer).
    pub file: PathBuf,
    /// Tensor, metadata key, column or field concerned, when one is known.
    pub item: Option<String>,
    /// Where in the file, when known.
    pub place: Option<Place>,
    /// What is wrong.
    pub reason: String,
    /// What the user can do about it; may be empty.
    pub remedy: String,
}

/// A position in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Byte offset from the start of the file.
    Byte(u64),
    /// Line number, counted from one.
    Line(u64),
    /// Data row, counted from one, not counting a header.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(n) => write!(f, "byte {n}"),
            Self::Line(n) => write!(f, "line {n}"),
            Self::Row(n) => write!(f, "row {n}"),
        }
    }
}

struct Remedy<'a>(&'a str);

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(item) = &self.item {
            write!(f, ": {item}")?;
        }
        if let Some(place) = &self.place {
            write!(f, " at {place}")?;
        }
        write!(f, ": {}{}", self.reason, Remedy(&self.remedy))
    }
}

impl std::error::Error for Malformed {}

/// A name that could not be resolved, with every place that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// The name asked for.
    pub name: String,
    /// Each place tried, in order, with the reason it failed.
    pub attempts: Vec<(String, String)>,
    /// What the user can do about it.
    pub remedy: String,
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot find `{}`{}", self.name, Remedy(&self.remedy))?;
        for (place, reason) in &self.attempts {
            write!(f, "\n  {place}: {reason}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unresolved {}

impl Error {
    /// A fault in the content of `file`; refine it with [`Error::item`], [`Error::at`] and
    /// [`Error::remedy`].
    pub fn malformed(file: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Malformed(Box::new(Malformed {
            file: file.as_ref().to_path_buf(),
            item: None,
            place: None,
            reason: reason.into(),
            remedy: String::new(),
        }))
    }

    /// A request that cannot be honoured.
    pub fn invalid(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), reason: reason.into(), remedy: String::new() }
    }

    /// A configuration field (of `config.json`, of a run) whose value cannot be used.
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::invalid(format!("`{}`", field.into()), reason)
    }

    /// A weight whose sharing plan or shape does not hold together.
    pub fn plan(weight: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::invalid(format!("weight `{}`", weight.into()), reason)
    }

    /// A weight that is neither stored nor made.
    pub fn missing_weight(weight: impl Into<String>) -> Self {
        Self::plan(weight, "is missing").remedy("the checkpoint does not fit the configuration")
    }

    /// This error inside the tensor engine's, for closures that must return the latter.
    pub fn into_tensor_error(self) -> candle_core::Error {
        match self {
            Self::Tensor(error) => *error,
            other => candle_core::Error::wrap(other),
        }
    }

    /// A refused file operation; `action` is a verb phrase.
    pub fn io(path: impl AsRef<Path>, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), action, source }
    }

    /// Names the tensor, key or column concerned. No effect on other kinds of error.
    #[must_use]
    pub fn item(mut self, item: impl Into<String>) -> Self {
        if let Self::Malformed(fault) = &mut self {
            fault.item = Some(item.into());
        }
        self
    }

    /// Names the position concerned. No effect on other kinds of error.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        if let Self::Malformed(fault) = &mut self {
            fault.place = Some(place);
        }
        self
    }

    /// Says what the user can do. No effect on kinds that carry no remedy.
    #[must_use]
    pub fn remedy(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Malformed(fault) => fault.remedy = text.into(),
            Self::Unresolved(fault) => fault.remedy = text.into(),
            Self::Invalid { remedy, .. } => *remedy = text.into(),
            _ => {}
        }
        self
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(Box::new(error))
    }
}

impl From<commons_core::Error> for Error {
    fn from(error: commons_core::Error) -> Self {
        Self::Core(Box::new(error))
    }
}

impl From<Error> for commons_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(error) => *error,
            Error::Io { path, action, source } => Self::io(action, path)(source),
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_file_item_place_reason_and_remedy() {
        let error = Error::malformed("a/b.safetensors", "ends early")
            .item("tensor `w`")
            .at(Place::Byte(17))
            .remedy("download it again");
        assert_eq!(
            error.to_string(),
            "a/b.safetensors: tensor `w` at byte 17: ends early (download it again)"
        );
    }

    #[test]
    fn unresolved_lists_every_attempt() {
        let error = Error::Unresolved(Box::new(Unresolved {
            name: "m".into(),
            attempts: vec![("cache".into(), "absent".into()), ("hub".into(), "timed out".into())],
            remedy: String::new(),
        }));
        assert_eq!(error.to_string(), "cannot find `m`\n  cache: absent\n  hub: timed out");
    }
}
