//! Derivations as stores hold them: files whose names end in `.drv`.

use crate::{AddContent, Error, Realisations, Result, Store, nar};
use futures::{StreamExt, TryStreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tk_nar::{Decoder, Encoder, Event};
use tk_narinfo::realisation::{DrvOutput, legacy};
use tk_path::{
    Algorithm, Derivation, Hash, Method, OutputName, References, StoreDir, StorePath,
    modulo::{LoadError, Modulo},
};

/// Derivations above this size are refused, in bytes. The largest in use have some hundred KiB.
pub const MAX_DERIVATION_BYTES: usize = 64 << 20;

/// The derivation at `path` in `store`.
///
/// # Errors
/// [`Error::NotFound`] when it is absent, [`Error::Malformed`] when it is no derivation.
pub async fn read(store: &dyn Store, path: &StorePath) -> Result<Derivation> {
    let from = store.to_string();
    let malformed = |why: String| Error::malformed(format!("{path} from {from}"), why);
    let mut nar = store.nar(path).await?;
    let mut decoder = Decoder::new();
    let mut file = Vec::new();
    while let Some(chunk) = nar.next().await {
        let chunk = chunk?;
        let mut rest = &chunk[..];
        loop {
            let fed = decoder.feed(rest).map_err(|e| malformed(e.to_string()))?;
            rest = &rest[fed.consumed..];
            match fed.event {
                Some(Event::Contents(piece)) => file.extend_from_slice(piece),
                Some(Event::Regular { size, .. }) if size > MAX_DERIVATION_BYTES as u64 => {
                    return Err(malformed(too_large(size)));
                }
                Some(Event::Regular { .. } | Event::EndRegular | Event::End) => {}
                Some(_) => return Err(malformed("it is not a file".to_owned())),
                None if rest.is_empty() => break,
                None => return Err(malformed("its NAR goes on behind its end".to_owned())),
            }
        }
    }
    decoder.finish().map_err(|e| malformed(e.to_string()))?;
    parse(store.dir(), path, &file, &from)
}

/// The derivation `file`, which is at `path` in the store `from`.
pub fn parse(dir: &StoreDir, path: &StorePath, file: &[u8], from: &str) -> Result<Derivation> {
    let what = || format!("{path} from {from}");
    if file.len() > MAX_DERIVATION_BYTES {
        return Err(Error::malformed(what(), too_large(file.len() as u64)));
    }
    let Some(name) = path.name().strip_suffix(".drv") else {
        return Err(Error::invalid(format!("{path} is not a derivation")));
    };
    Derivation::parse_aterm(dir, name, file).map_err(|e| Error::malformed(what(), e))
}

/// Adds the derivation `drv` as a file to `store`, and returns its path. What it is built from must be there. Whether its
/// outputs are what they must be is for [`Derivation::check_outputs`] to say.
///
/// # Errors
/// [`Error::Invalid`] when it has no file, as with a quote in its platform.
pub async fn add(store: &dyn AddContent, drv: &Derivation) -> Result<StorePath> {
    let invalid = |error: &dyn std::error::Error| Error::invalid(error.to_string());
    let dir = store.dir();
    let path = drv.path(dir).map_err(|e| invalid(&e))?;
    let file = drv.to_aterm(dir).map_err(|e| invalid(&e))?;
    let mut encoder = Encoder::new(Vec::new());
    encoder.file(false, &file).map_err(|e| invalid(&e))?;
    let file = encoder.finish().map_err(|e| invalid(&e))?;
    let mut needed = References::default();
    needed.others.extend(drv.inputs.srcs.iter().cloned());
    needed.others.extend(drv.inputs.drvs.keys().cloned());
    let file = nar::from_bytes(file);
    let info = store.add_content(path.name(), Method::Text, Algorithm::Sha256, &needed, file);
    Ok(info.await?.path)
}

/// The outputs of the derivation `path`, with the paths that can be told from its file or are in
/// `realisations`.
pub async fn output_map(
    store: &dyn Store,
    path: &StorePath,
    realisations: Option<&dyn Realisations>,
) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
    let drv = read(store, path).await?;
    let mut outputs = BTreeMap::new();
    for (output, how) in &drv.outputs {
        let known = how.path(store.dir(), &drv.name, output);
        let known = known.map_err(|e| Error::malformed(path.to_string(), e))?;
        outputs.insert(output.clone(), known);
    }
    if let Some(realisations) = realisations {
        fill_in(store, path, &drv, realisations, &mut outputs).await?;
    }
    Ok(outputs)
}

/// Looks in `realisations`, in both forms, for those `outputs` of the derivation `drv` at `path`
/// that are not known yet.
pub async fn fill_in(
    store: &dyn Store,
    path: &StorePath,
    drv: &Derivation,
    realisations: &dyn Realisations,
    outputs: &mut BTreeMap<OutputName, Option<StorePath>>,
) -> Result<()> {
    for (output, known) in outputs.iter_mut().filter(|(_, known)| known.is_none()) {
        let id = DrvOutput {
            drv: path.clone(),
            output: output.clone(),
        };
        let found = if_known(realisations.realisation(&id).await)?;
        *known = found.map(|found| found.out_path);
    }
    if outputs.values().all(Option::is_some) {
        return Ok(());
    }
    let Some(hash) = legacy_hash_if_there(drv, store).await? else {
        return Ok(());
    };
    for (output, known) in outputs.iter_mut().filter(|(_, known)| known.is_none()) {
        let id = legacy::LegacyDrvOutput {
            hash,
            output: output.clone(),
        };
        let found = if_known(realisations.legacy_realisation(&id).await)?;
        *known = found.map(|found| found.out_path);
    }
    Ok(())
}

/// [`legacy_hash`], or `None` where a derivation that it depends on is not in `store`.
pub async fn legacy_hash_if_there(drv: &Derivation, store: &dyn Store) -> Result<Option<Hash>> {
    let mut modulo = Modulo::for_realisations(store.dir().clone());
    match legacy_hash(&mut modulo, drv, store).await {
        Err(Error::NotFound { .. }) => Ok(None),
        hash => hash,
    }
}

/// The hash in the names that Nix up to 2.34 has for the realisations of `drv`; `None` if it has none.
/// Input derivations that `modulo` (a [`Modulo::for_realisations`]) does not know are read from `store`.
///
/// # Errors
/// [`Error::NotFound`] when one of them is not there.
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
        let reads = stream::iter(wave).map(|path| async move {
            let read = read(store, &path).await?;
            Ok::<_, Error>((path, Arc::new(read)))
        });
        let found: Vec<_> = reads.buffer_unordered(AT_ONCE).try_collect().await?;
        let inputs = found.iter().flat_map(|(_, drv)| modulo.missing(drv));
        wave = inputs.cloned().collect();
        known.extend(found);
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

/// A form of realisations that a store does not know holds nothing.
pub(crate) fn if_known<T>(answer: Result<Option<T>>) -> Result<Option<T>> {
    match answer {
        Err(Error::Unsupported { .. }) => Ok(None),
        answer => answer,
    }
}

fn too_large(size: u64) -> String {
    format!("it has {size} bytes, where a derivation has at most {MAX_DERIVATION_BYTES}")
}

/// Derivations that are read for one name.
const MAX_CLOSURE: usize = 100_000;
/// Derivations that are read at once.
const AT_ONCE: usize = 8;
