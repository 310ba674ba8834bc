//! Derivations as stores hold them: files whose names end in `.drv`.

use crate::{Error, Realisations, Result, Store};
use futures::StreamExt;
use std::collections::BTreeMap;
use tk_nar::{Decoder, Event};
use tk_narinfo::realisation::DrvOutput;
use tk_path::{Derivation, OutputName, StoreDir, StorePath};

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
                Some(_) => return Err(malformed("it is no file".to_owned())),
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
        return Err(Error::invalid(format!("{path} is no derivation")));
    };
    Derivation::parse_aterm(dir, name, file).map_err(|e| Error::malformed(what(), e))
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
        let known = match (known, realisations) {
            (None, Some(realisations)) => realised(realisations, path, output).await?,
            (known, _) => known,
        };
        outputs.insert(output.clone(), known);
    }
    Ok(outputs)
}

async fn realised(
    realisations: &dyn Realisations,
    drv: &StorePath,
    output: &OutputName,
) -> Result<Option<StorePath>> {
    let id = DrvOutput {
        drv: drv.clone(),
        output: output.clone(),
    };
    match realisations.realisation(&id).await {
        Ok(found) => Ok(found.map(|found| found.out_path)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn too_large(size: u64) -> String {
    format!("it has {size} bytes, where a derivation has at most {MAX_DERIVATION_BYTES}")
}
