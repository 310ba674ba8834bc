use std::{fmt, sync::Arc};
use tk_path::StorePath;
use tk_store::Error;

/// Who is told what is wrong in a cache without standing in the way. Default: nobody.
///
/// Called from any thread; it must not block.
#[derive(Clone, Default)]
pub struct CacheWarnings(Option<Arc<dyn Fn(CacheWarning) + Send + Sync>>);

impl CacheWarnings {
    /// Each warning goes to `sink`.
    pub fn to(sink: impl Fn(CacheWarning) + Send + Sync + 'static) -> Self {
        CacheWarnings(Some(Arc::new(sink)))
    }

    pub(crate) fn tell(&self, warning: impl FnOnce() -> CacheWarning) {
        if let Some(sink) = &self.0 {
            sink(warning());
        }
    }
}

impl fmt::Debug for CacheWarnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "told" } else { "not told" })
    }
}

/// What is wrong in a cache, and what was done about it.
#[derive(Debug)]
#[non_exhaustive]
pub enum CacheWarning {
    /// A narinfo that is none counts as absent.
    BrokenNarInfo {
        /// The path that was asked for.
        path: StorePath,
        /// The URI of the cache that has the narinfo.
        store: String,
        /// What is wrong with the narinfo.
        error: Error,
    },
    /// A packed NAR is not the file that its narinfo describes. Its content is checked by the NAR
    /// hash all the same.
    PackedFile {
        /// What differs: the hash or the size of the packed file, with the values.
        error: Error,
    },
    /// No listing is written, for the names in the tree are not UTF-8, which JSON cannot hold.
    NoListing {
        /// The path that gets no listing.
        path: StorePath,
        /// The URI of the cache that the path is written to.
        store: String,
    },
}

impl CacheWarning {
    /// Warnings of one kind have one name: whoever shows them can leave out the hundredth.
    pub fn kind(&self) -> &'static str {
        match self {
            CacheWarning::BrokenNarInfo { .. } => "broken-narinfo",
            CacheWarning::PackedFile { .. } => "packed-file",
            CacheWarning::NoListing { .. } => "no-listing",
        }
    }
}

/// One line, with the reason.
impl fmt::Display for CacheWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheWarning::BrokenNarInfo { path, store, error } => {
                let why = error.to_line();
                write!(
                    f,
                    "{store} has a broken narinfo of {path}, which counts as absent: {why}"
                )
            }
            CacheWarning::PackedFile { error } => write!(
                f,
                "{}; the content is checked by its NAR hash all the same",
                error.to_line()
            ),
            CacheWarning::NoListing { path, store } => write!(
                f,
                "no listing of {path} is written to {store}: it has names that are not UTF-8"
            ),
        }
    }
}
