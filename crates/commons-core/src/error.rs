//! Errors that say what is wrong, where, and what to do about it.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that goes wrong here or in a crate built on this one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read, write, rename or list something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "rename".
        action: Cow<'static, str>,
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file was read but its content is wrong.
    #[error("{}{}: {problem}; {remedy}", path.display(), at(field))]
    File {
        /// The file.
        path: PathBuf,
        /// Field, tensor, line or byte offset in it; empty if the whole file is meant.
        field: String,
        /// What is wrong.
        problem: String,
        /// What the user can do.
        remedy: Cow<'static, str>,
    },
    /// A setting is unknown or has a wrong value.
    #[error("{source_name}: {field}: {problem}; {remedy}")]
    Config {
        /// Where the setting came from: a file name, a recipe, `--set`.
        source_name: String,
        /// Path of the setting, as in `model.layers[0].rank`.
        field: String,
        /// What is wrong.
        problem: String,
        /// What the user can do.
        remedy: Cow<'static, str>,
    },
    /// A function was called with an unusable value.
    #[error("{name}: {problem}; {remedy}")]
    Argument {
        /// The parameter.
        name: Cow<'static, str>,
        /// What is wrong with it.
        problem: String,
        /// What to pass instead.
        remedy: Cow<'static, str>,
    },
    /// An experiment ended without evidence for some of its claims.
    #[error(
        "{slug}: no evidence for {claims}; record each claim's metric (and baseline), or say why it cannot be compared"
    )]
    NoEvidence {
        /// The method.
        slug: String,
        /// The claims and the missing metrics.
        claims: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Another error, with what was being done when it came.
    #[error("{context}")]
    Context {
        /// What was being done.
        context: String,
        /// The error itself.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An error of another library, passed on as it is.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// Who has to act on an error; command lines turn it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Bad input, file content, setting or argument: the caller's to correct.
    Usage,
    /// Stopped on request.
    Interrupted,
    /// Everything else.
    Failure,
}

impl Error {
    /// An [`Error::Io`], for use with `map_err`.
    pub fn io(
        action: impl Into<Cow<'static, str>>,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let (action, path) = (action.into(), path.as_ref().to_owned());
        move |source| Self::Io { action, path, source }
    }

    /// An [`Error::File`]; `field` may be empty.
    pub fn file(
        path: impl AsRef<Path>,
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::File {
            path: path.as_ref().to_owned(),
            field: field.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// An [`Error::Config`].
    pub fn config(
        source_name: impl Into<String>,
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Config {
            source_name: source_name.into(),
            field: field.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// An [`Error::Argument`].
    pub fn argument(
        name: impl Into<Cow<'static, str>>,
        problem: impl Into<String>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Argument { name: name.into(), problem: problem.into(), remedy: remedy.into() }
    }

    /// Passes on an error of another library. One of ours inside comes out unchanged.
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        match error.into().downcast::<Self>() {
            Ok(own) => *own,
            Err(error) => Self::Other(error),
        }
    }

    /// Adds what was being done.
    #[must_use]
    pub fn context(self, context: impl Into<String>) -> Self {
        Self::Context { context: context.into(), source: Box::new(self) }
    }

    /// Who has to act on it. Context is looked through.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File { .. } | Self::Config { .. } | Self::Argument { .. } => ErrorKind::Usage,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::Usage,
            Self::Interrupted => ErrorKind::Interrupted,
            Self::Context { source, .. } => {
                source.downcast_ref::<Self>().map_or(ErrorKind::Failure, Self::kind)
            }
            Self::Io { .. } | Self::NoEvidence { .. } | Self::Other(_) => ErrorKind::Failure,
        }
    }
}

fn at(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(": {field}") }
}

/// Adds what was being done to any error.
pub trait Context<T> {
    /// Wraps the error, if there is one, in an [`Error::Context`].
    ///
    /// # Errors
    /// The one it was given, wrapped.
    fn context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T>
    for std::result::Result<T, E>
{
    fn context<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| Error::Context { context: context().into(), source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_place_and_remedy() {
        let error =
            Error::file("a/b.json", "claims[0].low", "is above high", "run the recipe again");
        assert_eq!(
            error.to_string(),
            "a/b.json: claims[0].low: is above high; run the recipe again"
        );
        let error = Error::file("a/b.json", "", "is empty", "delete it");
        assert_eq!(error.to_string(), "a/b.json: is empty; delete it");
    }

    #[test]
    fn kind_looks_through_context() {
        let inner = Error::argument("rank", "is 0", "use 1 or more");
        let outer: Result<()> = Err(inner).context(|| "building the adapter");
        assert_eq!(outer.unwrap_err().kind(), ErrorKind::Usage);
        assert_eq!(Error::Interrupted.context("training").kind(), ErrorKind::Interrupted);
        assert_eq!(Error::other("no").kind(), ErrorKind::Failure);
    }

    #[test]
    fn own_errors_survive_a_box() {
        let boxed: Box<dyn std::error::Error + Send + Sync> = Box::new(Error::Interrupted);
        assert!(matches!(Error::other(boxed), Error::Interrupted));
    }
}
