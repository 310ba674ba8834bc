//! The names of realisations up to Nix 2.34.

use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_path::{
    Derivation, Hash, StorePath,
    modulo::{LoadError, Modulo},
};
use tk_store::{Error, Result, Store, derivation};

/// The hash in the names of the realisations of `drv`; `None` if it has none. Input derivations that
/// `modulo` (a [`Modulo::for_realisations`]) does not know are read from `store`.
pub async fn legacy_hash(
    modulo: &mut Modulo,
    drv: &Derivation,
    store: &dyn Store,
) -> Result<Option<Hash>> {
    let mut known: BTreeMap<StorePath, Arc<Derivation>> = BTreeMap::new();
    let mut wave: BTreeSet<StorePath> = modulo.missing(drv).cloned().collect();
    while !wave.is_empty() {
        if known.len() + wave.len() > MAX_CLOSURE {
            let words = format!("{} needs more than {MAX_CLOSURE} derivations", drv.name);
            return Err(Error::invalid(words));
        }
        let read = stream::iter(wave).map(|path| async move {
            let read = derivation::read(store, &path).await?;
            Ok::<_, Error>((path, Arc::new(read)))
        });
        let read: Vec<_> = read.buffer_unordered(AT_ONCE).try_collect().await?;
        let inputs = read.iter().flat_map(|(_, drv)| modulo.missing(drv));
        wave = inputs.cloned().collect();
        known.extend(read);
        wave.retain(|path| !known.contains_key(path));
    }
    let wrong = |error: LoadError| Error::malformed(format!("the inputs of {}", drv.name), error);
    let loaded = modulo.load(drv, |path| {
        let found = known.get(path).cloned();
        found.ok_or_else(|| format!("{path} was not read").into())
    });
    loaded.map_err(wrong)?;
    modulo
        .realisation_hash(drv)
        .map_err(|error| wrong(error.into()))
}

/// Derivations that are read for one name.
const MAX_CLOSURE: usize = 100_000;
/// Derivations that are read at once.
const AT_ONCE: usize = 8;
