use std::error::Error;
use tk_store::reference::ReferenceError;

/// Why a store could not be opened, or why something that says how could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The URI names no store, or has a setting that cannot be. The caller's mistake.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// What was asked for makes no sense, whatever the store.
    #[error("{0}")]
    Invalid(String),
    /// The store could not do what opening it takes.
    #[error(transparent)]
    Store(#[from] tk_store::Error),
    /// What was being done, and what came of it.
    #[error("{doing}")]
    While {
        /// What was being done: `cannot open the store file:///cache`.
        doing: String,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl OpenError {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        OpenError::Invalid(what.into())
    }

    /// The error as it stands among the causes of another: that of the store itself, where there is one, so
    /// that its class can be found.
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        match self {
            OpenError::Reference(error) => error.into(),
            OpenError::Store(error) => error.into(),
            other => other.into(),
        }
    }

    /// The error and all its causes in one line, joined by `: `, with what others said in it escaped.
    pub fn to_line(&self) -> String {
        tk_store::error_line(self)
    }
}

/// Says what was being done when something failed.
pub(crate) trait InContext<T> {
    fn in_context(self, doing: impl FnOnce() -> String) -> Result<T, OpenError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> InContext<T> for Result<T, E> {
    fn in_context(self, doing: impl FnOnce() -> String) -> Result<T, OpenError> {
        self.map_err(|error| OpenError::While {
            doing: doing(),
            source: error.into(),
        })
    }
}
