use crate::log::{escape_controls, join_lines};
use tk_narinfo::Untrusted;
use tk_path::{StoreDir, StorePath};

/// The result of everything that asks or changes a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store could not do what was asked, grouped by who is at fault.
///
/// That a path is absent is no error where it was asked whether it is there; "could not ask" is
/// always an error and never "absent".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other side's bytes break the format: a narinfo, a NAR, a database.
    #[error("{what} is malformed")]
    Malformed {
        /// Which object, and where it came from.
        what: String,
        /// What is wrong with it, with the place if known.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The other side understood and said no.
    #[error("{who} refused: {}", join_lines(words))]
    Refused {
        /// Who said no, such as the store's URI.
        who: String,
        /// Its own words, which may be several lines.
        words: String,
    },
    /// The path's signatures do not satisfy the policy of the destination.
    #[error("{path} is not trusted")]
    Untrusted {
        /// The path that was turned down.
        path: StorePath,
        /// Which signatures and keys there are.
        source: Untrusted,
    },
    /// Content is not what its metadata says.
    #[error("{what} mismatch for {path} from {from}: its metadata says {expected}, got {actual}")]
    Mismatch {
        /// What differs: `NAR hash`, `NAR size`, `file hash`.
        what: &'static str,
        /// The path whose content differs.
        path: StorePath,
        /// Where the content came from.
        from: String,
        /// What the metadata promises.
        expected: String,
        /// What the content is.
        actual: String,
    },
    /// The path is not in the store, where it was needed.
    #[error("{path} is not in {store}")]
    NotFound {
        /// The path that is absent.
        path: StorePath,
        /// The store that does not have it.
        store: String,
    },
    /// A path cannot be added because something it refers to is not there.
    #[error("{path} refers to {reference}, which is not in {store}")]
    MissingReference {
        /// The path that was to be added.
        path: StorePath,
        /// What it refers to.
        reference: StorePath,
        /// The store that lacks the reference.
        store: String,
    },
    /// The two stores keep their paths in different directories, so nothing can move between them.
    #[error("{store} holds paths of {theirs}, not of {ours}")]
    StoreDir {
        /// The store that differs.
        store: String,
        /// The store directory that this store has.
        theirs: String,
        /// The directory that was expected.
        ours: StoreDir,
    },
    /// The store cannot do that.
    #[error("{store} {what}")]
    Unsupported {
        /// The URI of the store.
        store: String,
        /// What it cannot do, as the end of a sentence: `cannot be written to`.
        what: String,
    },
    /// What was asked for makes no sense, whatever the store.
    #[error("{what}")]
    Invalid {
        /// The sentence to show.
        what: String,
    },
    /// The operating system or the network said no.
    #[error("{doing}")]
    Io {
        /// What was being done, with the file's or server's name: `writing /c/nar/x.nar`.
        doing: String,
        /// The reason that the system or the network gave.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] with what was being done.
    pub fn io(doing: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Error::Io {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// An [`Error::Malformed`] about `what`.
    pub fn malformed(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Error::Malformed {
            what: what.into(),
            source: source.into(),
        }
    }

    /// An [`Error::Invalid`] with a whole sentence.
    pub fn invalid(what: impl Into<String>) -> Self {
        Error::Invalid { what: what.into() }
    }

    /// The name of the error's class in reports, which stays the same whatever the words: `malformed`,
    /// `refused`, `untrusted`, `mismatch`, `notFound`, `missingReference`, `storeDir`, `unsupported`,
    /// `invalid` or `io`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Error::Malformed { .. } => "malformed",
            Error::Refused { .. } => "refused",
            Error::Untrusted { .. } => "untrusted",
            Error::Mismatch { .. } => "mismatch",
            Error::NotFound { .. } => "notFound",
            Error::MissingReference { .. } => "missingReference",
            Error::StoreDir { .. } => "storeDir",
            Error::Unsupported { .. } => "unsupported",
            Error::Invalid { .. } => "invalid",
            Error::Io { .. } => "io",
        }
    }

    /// The same error for each of `keys`, where it ended a question about all of them.
    pub fn for_each<K, T>(self, keys: impl IntoIterator<Item = K>) -> Vec<(K, Result<T>)> {
        let same = |key| (key, Err(self.duplicate()));
        keys.into_iter().map(same).collect()
    }

    /// The same error, with its sources as text.
    fn duplicate(&self) -> Error {
        match self {
            Error::Malformed { what, source } => Error::malformed(what, source.to_string()),
            Error::Refused { who, words } => Error::Refused {
                who: who.clone(),
                words: words.clone(),
            },
            Error::Untrusted { path, source } => Error::Untrusted {
                path: path.clone(),
                source: source.clone(),
            },
            Error::Mismatch {
                what,
                path,
                from,
                expected,
                actual,
            } => Error::Mismatch {
                what,
                path: path.clone(),
                from: from.clone(),
                expected: expected.clone(),
                actual: actual.clone(),
            },
            Error::NotFound { path, store } => Error::NotFound {
                path: path.clone(),
                store: store.clone(),
            },
            Error::MissingReference {
                path,
                reference,
                store,
            } => Error::MissingReference {
                path: path.clone(),
                reference: reference.clone(),
                store: store.clone(),
            },
            Error::StoreDir {
                store,
                theirs,
                ours,
            } => Error::StoreDir {
                store: store.clone(),
                theirs: theirs.clone(),
                ours: ours.clone(),
            },
            Error::Unsupported { store, what } => Error::Unsupported {
                store: store.clone(),
                what: what.clone(),
            },
            Error::Invalid { what } => Error::invalid(what),
            Error::Io { doing, source } => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                Error::io(doing, source)
            }
        }
    }

    /// The error and all its sources in one line, joined by `: `, with what others said in it escaped
    /// ([`escape_controls`]).
    pub fn to_line(&self) -> String {
        error_line(self)
    }
}

/// Any error and all its sources in one line, as [`Error::to_line`].
pub fn error_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    escape_controls(&line).into_owned()
}
