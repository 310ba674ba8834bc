use super::Warning;
use crate::{Error, Result, Store};
use std::{collections::BTreeSet, sync::Arc};
use tk_narinfo::{PathInfo, TrustedKeys};
use tk_path::{StoreDir, StorePath};

/// Caches that the readers of the destination use beside it: what they hold need not be copied.
#[derive(Debug, Clone, Default)]
pub struct Upstreams {
    /// A path with a valid signature by one of these keys is held upstream. Nobody is asked.
    ///
    /// That a key has signed a path says where it was made, not that it is still there.
    pub keys: TrustedKeys,
    /// Caches that are asked, in this order, about the paths that no such signature settles.
    pub caches: Vec<Arc<dyn Store>>,
    /// What happens when one of them cannot be asked.
    pub unanswered: Unanswered,
}

/// What happens when an upstream cache cannot be asked. It never counts as "has it".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unanswered {
    /// Nothing is copied: the error ends the plan.
    #[default]
    Fail,
    /// What that cache may hold is copied, with a warning.
    Copy,
}

/// What upstream caches hold of some paths.
#[derive(Debug, Default)]
pub(super) struct UpstreamPaths {
    pub paths: BTreeSet<StorePath>,
    pub warnings: Vec<Warning>,
}

impl Upstreams {
    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.caches.is_empty()
    }

    /// Which of `infos`, by their signatures or by asking, and of `others`, by asking, are held.
    pub(super) async fn hold<'a>(
        &self,
        dir: &StoreDir,
        infos: impl IntoIterator<Item = &'a PathInfo>,
        others: impl IntoIterator<Item = StorePath>,
    ) -> Result<UpstreamPaths> {
        let mut held = UpstreamPaths::default();
        let mut open: BTreeSet<_> = others.into_iter().collect();
        for info in infos {
            if self.has_signed(dir, info) {
                held.paths.insert(info.path.clone())
            } else {
                open.insert(info.path.clone())
            };
        }
        open.retain(|path| !held.paths.contains(path));
        for cache in &self.caches {
            if open.is_empty() {
                break;
            }
            match ask(&**cache, dir, &open).await {
                Ok(there) => {
                    open.retain(|path| !there.contains(path));
                    held.paths.extend(there);
                }
                Err(error) if self.unanswered == Unanswered::Fail => return Err(error),
                Err(error) => held.warnings.push(Warning::Upstream {
                    store: cache.to_string(),
                    error,
                }),
            }
        }
        Ok(held)
    }

    /// A signature that cannot be checked settles nothing.
    fn has_signed(&self, dir: &StoreDir, info: &PathInfo) -> bool {
        !self.keys.is_empty()
            && info
                .valid_signatures(dir, &self.keys)
                .is_ok_and(|valid| valid > 0)
    }
}

async fn ask(
    cache: &dyn Store,
    dir: &StoreDir,
    paths: &BTreeSet<StorePath>,
) -> Result<BTreeSet<StorePath>> {
    if cache.dir() != dir {
        return Err(Error::StoreDir {
            store: cache.to_string(),
            theirs: cache.dir().to_string(),
            ours: dir.clone(),
        });
    }
    let mut there = cache.valid(paths).await?;
    // No word about paths that nobody asked for.
    there.retain(|path| paths.contains(path));
    Ok(there)
}
