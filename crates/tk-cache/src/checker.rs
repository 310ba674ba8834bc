//! Which caches have which paths: any number of both, asked all at once.

mod run;
mod store_infos;
mod summary;
mod unreachable;

pub use store_infos::StoreInfos;
pub use summary::{CacheSummary, Summary};
pub use unreachable::UnreachableCache;

use crate::objects::NarInfos;
use futures::{Stream, stream::BoxStream};
use std::{num::NonZeroUsize, sync::Arc};
use tk_narinfo::{NarInfo, Policy, Untrusted};
use tk_path::{StoreDir, StorePath};
use tk_store::{Error, Store, closure::MAX_CLOSURE_PATHS};

/// Asks caches about paths, or about whole closures.
///
/// All caches are asked at the same time and about many paths at once, and each path is answered
/// for as soon as every cache has. That a cache does not have a path is only what it said in so
/// many words; whatever else happened is [`CacheAnswer::NotAsked`], with the reason.
///
#[cfg_attr(feature = "http", doc = "```no_run")]
#[cfg_attr(not(feature = "http"), doc = "```ignore")]
/// use futures::{StreamExt, stream};
/// use std::sync::Arc;
/// use tk_cache::http::{HttpConfig, HttpObjects};
/// use tk_cache::{BinaryCache, BinaryCacheConfig, checker::Checker};
/// # async fn example(path: tk_path::StorePath) -> Result<(), Box<dyn std::error::Error>> {
/// let place = HttpObjects::open(HttpConfig::new("https://cache.nixos.org".parse()?))?;
/// let cache = BinaryCache::open(Arc::new(place), BinaryCacheConfig::default()).await?;
/// let checker = Checker::new(vec![Arc::new(cache)]).closure(true);
/// let mut answers = checker.check(stream::iter([path]));
/// while let Some(checked) = answers.next().await {
///     if !checked.is_present() {
///         println!("{} is not there", checked.path);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Checker {
    caches: Vec<Arc<dyn NarInfos>>,
    closure: bool,
    policy: Option<Arc<Policy>>,
    window: NonZeroUsize,
    most_paths: usize,
    references: Option<Arc<dyn Store>>,
}

impl Checker {
    /// A check of these caches, in the order in which one would fetch from them. Answers are in
    /// this order as well.
    pub fn new(caches: Vec<Arc<dyn NarInfos>>) -> Self {
        Checker {
            caches,
            closure: false,
            policy: None,
            window: WINDOW,
            most_paths: MAX_CLOSURE_PATHS,
            references: None,
        }
    }

    /// Whether to check all that the paths refer to as well. Default: no.
    ///
    /// What a path refers to is what the caches say. Of a path that none of them has it is not
    /// known: see [`CheckedPath::followed`], and [`Checker::references_from`].
    pub fn closure(mut self, closure: bool) -> Self {
        self.closure = closure;
        self
    }

    /// Takes the references from `store`, such as the local one, for paths that it has. Then the
    /// questions need not wait for answers, and the closure is whole whatever the caches lack.
    pub fn references_from(mut self, store: Arc<dyn Store>) -> Self {
        self.references = Some(store);
        self
    }

    /// Checks the signatures of what is present. Default: not checked, [`SignatureTrust::NotChecked`].
    ///
    /// What is not trusted is present all the same; the verdict is beside it.
    pub fn trust(mut self, policy: impl Into<Arc<Policy>>) -> Self {
        self.policy = Some(policy.into());
        self
    }

    /// How many paths may be asked about at once, which bounds the memory: each takes a few KiB a
    /// cache. Default: 1,024. Each cache has a limit of its own for requests under way.
    pub fn window(mut self, paths: NonZeroUsize) -> Self {
        self.window = paths;
        self
    }

    /// How many paths a closure may come to beside those that were asked for. One with more is taken for
    /// invented: the check ends, and its last answer says so. Default: [`MAX_CLOSURE_PATHS`].
    pub fn most_paths(mut self, paths: usize) -> Self {
        self.most_paths = paths;
        self
    }

    /// The caches, in the order of [`CheckedPath::answers`].
    pub fn caches(&self) -> &[Arc<dyn NarInfos>] {
        &self.caches
    }

    /// One answer for each path, in no order, each path once. `paths` is read as there is room.
    pub fn check<'a>(
        &'a self,
        paths: impl Stream<Item = StorePath> + Send + 'a,
    ) -> BoxStream<'a, CheckedPath> {
        run::run(self, Box::pin(paths))
    }

    fn judge(&self, dir: &StoreDir, narinfo: &NarInfo) -> SignatureTrust {
        let Some(policy) = &self.policy else {
            return SignatureTrust::NotChecked;
        };
        let valid = narinfo.info.valid_signatures(dir, &policy.keys);
        let signatures = valid.unwrap_or(0);
        if signatures >= policy.threshold {
            return SignatureTrust::Trusted { signatures };
        }
        match policy.check(dir, &narinfo.info) {
            Ok(()) => SignatureTrust::Trusted { signatures },
            Err(why) => SignatureTrust::Untrusted(Box::new(why)),
        }
    }
}

/// What became of one path.
#[derive(Debug)]
pub struct CheckedPath {
    /// The path that was asked about, or that the closure led to.
    pub path: StorePath,
    /// What each cache said, in the order of the caches.
    pub answers: Vec<CacheAnswer>,
    /// Whether it is known what the path refers to, so that the closure goes on behind it. Always
    /// true where no closure was asked for.
    pub followed: bool,
}

impl CheckedPath {
    /// Whether at least one cache has it.
    pub fn is_present(&self) -> bool {
        self.first().is_some()
    }

    /// Whether every cache said that it is absent.
    pub fn is_missing(&self) -> bool {
        self.answers
            .iter()
            .all(|a| matches!(a, CacheAnswer::Absent))
    }

    /// Whether this cannot be told: none is known to have it, and not all could be asked.
    pub fn is_unknown(&self) -> bool {
        !self.is_present() && !self.is_missing()
    }

    /// The first cache that has it: its place among the caches, its narinfo, and what that is
    /// worth.
    pub fn first(&self) -> Option<(usize, &NarInfo, &SignatureTrust)> {
        let answers = self.answers.iter().enumerate();
        answers
            .filter_map(|(i, answer)| match answer {
                CacheAnswer::Present(narinfo, trust) => Some((i, &**narinfo, trust)),
                CacheAnswer::Absent | CacheAnswer::NotAsked(_) => None,
            })
            .next()
    }

    /// Whether a cache has it whose word is enough: as [`CheckedPath::is_present`] where signatures
    /// are not checked.
    pub fn is_trusted(&self) -> bool {
        let trusted = |answer: &CacheAnswer| matches!(answer, CacheAnswer::Present(_, trust) if trust.is_enough());
        self.answers.iter().any(trusted)
    }
}

/// What one cache said about one path.
#[derive(Debug)]
pub enum CacheAnswer {
    /// The cache has the path: its narinfo, and what the signatures on that are worth.
    Present(Box<NarInfo>, SignatureTrust),
    /// It said that it does not have it.
    Absent,
    /// It could not be asked, or gave no answer that makes sense.
    NotAsked(Error),
}

/// What the signatures on a narinfo are worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureTrust {
    /// Nobody wanted to know.
    NotChecked,
    /// As good as the policy demands.
    Trusted {
        /// Trusted keys that have signed it. 0 where a content address makes the path, or where
        /// the policy demands nothing.
        signatures: usize,
    },
    /// The signatures do not meet the policy, for the reason given.
    Untrusted(Box<Untrusted>),
}

impl SignatureTrust {
    /// Whether nothing speaks against it.
    pub fn is_enough(&self) -> bool {
        !matches!(self, SignatureTrust::Untrusted(_))
    }
}

const WINDOW: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
