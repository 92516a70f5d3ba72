//! Errors of this crate.

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while outcomes are shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option or an input that the method cannot work with.
    #[error("{field}: {reason}")]
    Config {
        /// Option, column, row or property concerned.
        field: String,
        /// What is wrong and what would work.
        reason: String,
    },
    /// Stopped on request.
    #[error("interrupted")]
    Interrupted,
    /// Evidence, files.
    #[error(transparent)]
    Core(#[from] commons_core::Error),
}

impl Error {
    /// An option or input that cannot be used.
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { field: field.into(), reason: reason.into() }
    }
}

impl From<Error> for commons_core::Error {
    /// What an experiment ends with: errors of the evidence and interruptions come out as they are.
    fn from(error: Error) -> Self {
        match error {
            Error::Interrupted => Self::Interrupted,
            Error::Core(error) => error,
            other => Self::other(other),
        }
    }
}
