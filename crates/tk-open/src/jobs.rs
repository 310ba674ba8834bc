//! What programs do most often with stores that are open.

use crate::OpenStore;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};
use tk_nar::fs::{Dump, DumpError, DumpOptions};
use tk_narinfo::{Policy, SecretKey};
use tk_path::{Algorithm, Hash, Hasher, Method, StorePath};
use tk_store::{
    Abilities, MemoryStore, Result, SigCheck, Store, TreeStore,
    copy::{CopyOptions, CopyReport, plan, sign_present},
};

/// Puts `paths` and all they refer to into a binary cache, signed with `keys` and with those that the cache
/// signs with by itself. What is there already is signed, too, and not sent again.
///
/// Returns what was copied, and in `failed` what could not be, path by path.
///
/// # Errors
/// What ended the whole copy: a path that `from` lacks, a store that cannot be asked.
pub async fn push(
    from: &OpenStore,
    cache: &OpenStore,
    paths: impl IntoIterator<Item = StorePath>,
    keys: &[Arc<SecretKey>],
) -> Result<CopyReport> {
    let (to, roots) = (&cache.abilities(), paths.into_iter().collect());
    copy(&from.store(), to, &roots, &signing(cache, keys)).await
}

/// Puts a file or folder into a binary cache, straight from where it lies, and returns its store path. Its
/// name in the store is `name`. It is read twice: a folder that changes in between is refused.
///
/// # Errors
/// When it cannot be read, or put there.
pub async fn push_folder(
    folder: impl Into<PathBuf>,
    name: &str,
    cache: &OpenStore,
    keys: &[Arc<SecretKey>],
) -> Result<StorePath> {
    let behind = MemoryStore::named(cache.store().dir().clone(), "folders");
    let mut trees = TreeStore::new(Arc::new(behind));
    let (how, dump) = ((Method::Nar, Algorithm::Sha256), DumpOptions::default());
    let info = trees.read(folder.into(), dump, name, how, Arc::new(()));
    let path = info.await?.path;
    let (trees, roots): (Arc<dyn Store>, _) = (Arc::new(trees), [path.clone()].into());
    let report = copy(&trees, &cache.abilities(), &roots, &signing(cache, keys)).await?;
    match report.failed.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(path),
    }
}

/// Fetches `paths` and all they refer to into the store `to`, as far as it lacks them. `trust` says who must
/// have signed what is not content-addressed ([`OpenSettings::trusted_keys`](crate::OpenSettings::trusted_keys) has Nix's answer).
///
/// Returns what was copied, and in `failed` what could not be, path by path. Nothing becomes visible in `to`
/// before its signatures and its hash are checked.
///
/// # Errors
/// As [`push`].
pub async fn pull(
    from: &OpenStore,
    to: &OpenStore,
    paths: impl IntoIterator<Item = StorePath>,
    trust: Arc<Policy>,
) -> Result<CopyReport> {
    let check = SigCheck::Require(trust);
    let from = from.clone().preferring(&check);
    let roots = paths.into_iter().collect();
    copy(
        &from.store(),
        &to.abilities(),
        &roots,
        &CopyOptions::new(check),
    )
    .await
}

/// The hash of the NAR of a file, folder or link: with SHA-256 what `nix hash path` prints. Blocks, and needs
/// no runtime; it reads on threads of its own.
///
/// # Errors
/// When something in it cannot be read, or cannot be in a NAR.
pub fn nar_hash(path: &Path, algorithm: Algorithm) -> Result<Hash, DumpError> {
    let mut hasher = Hasher::new(algorithm);
    for chunk in Dump::new(path, &DumpOptions::default())? {
        hasher.update(chunk?.as_ref());
    }
    Ok(hasher.finish())
}

/// How a cache is filled: it takes what it is given, signed with `keys` and its own.
fn signing(cache: &OpenStore, keys: &[Arc<SecretKey>]) -> CopyOptions {
    let mut options = CopyOptions::new(SigCheck::Skip);
    options.sign = keys.iter().chain(cache.signing_keys()).cloned().collect();
    options
}

/// Copies what `to` lacks of `roots` and all they refer to, and signs there what it has.
pub(crate) async fn copy(
    from: &Arc<dyn Store>,
    to: &Abilities,
    roots: &BTreeSet<StorePath>,
    options: &CopyOptions,
) -> Result<CopyReport> {
    let plan = plan(&**from, &*to.store, roots, options).await?;
    let signatures = plan.signatures.clone();
    let mut report = plan.run(from, &*to.store, Arc::new(())).await?;
    sign_present(to, signatures, &mut report).await;
    Ok(report)
}
