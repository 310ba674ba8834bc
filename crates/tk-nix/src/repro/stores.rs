//! Whether several stores hold the same, without building.

use super::{Instance, InstanceState, ReproVerdict, mismatch};
use crate::{Cause, NixFailure, Result, Target};
use futures::{StreamExt, future::join_all, stream};
use std::sync::Arc;
use tk_narinfo::{
    PathInfo,
    realisation::{DrvOutput, legacy},
};
use tk_path::{Derivation, DerivedPath, SingleDerivedPath, StoreDir, StorePath};
use tk_store::{Abilities, Compared, Error, Store, StoreExt, compare, derivation};

/// One output to be compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedOutput {
    /// The derivation and the output's name, if it was named so.
    pub output: Option<DrvOutput>,
    /// The path, where it is known without asking.
    pub path: Option<StorePath>,
    /// The older name of the output among realisations, where it is needed and could be reckoned.
    pub legacy: Option<legacy::LegacyDrvOutput>,
}

/// What `target` names. Its derivation is read from the first of `stores` that has it; a path needs
/// none.
///
/// # Errors
/// [`Cause::Misused`] when none has it, or it has no such output.
pub async fn wanted(target: &Target, stores: &[Abilities]) -> Result<Vec<WantedOutput>> {
    let (drv_path, spec) = match &target.path {
        DerivedPath::Opaque(path) => {
            return Ok(vec![WantedOutput {
                output: None,
                path: Some(path.clone()),
                legacy: None,
            }]);
        }
        DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs,
        } => (drv, outputs),
        DerivedPath::Built { .. } => {
            let words = "a derivation that is itself built cannot be compared; name what it is";
            return Err(NixFailure::new(Cause::Misused, words));
        }
    };
    let (store, drv) = read(drv_path, stores).await?;
    let mut all = Vec::new();
    for (output, how) in drv.outputs.iter().filter(|(name, _)| spec.contains(name)) {
        let path = how.path(store.dir(), &drv.name, output);
        let path = path.map_err(|e| NixFailure::new(Cause::Misused, e.to_string()))?;
        all.push(WantedOutput {
            output: Some(DrvOutput {
                drv: drv_path.clone(),
                output: output.clone(),
            }),
            path,
            legacy: None,
        });
    }
    if let tk_path::OutputsSpec::Names(names) = spec
        && let Some(name) = names.iter().find(|name| !drv.outputs.contains_key(*name))
    {
        let words = format!("{drv_path} has no output {name}");
        return Err(NixFailure::new(Cause::Misused, words));
    }
    if all.iter().any(|wanted| wanted.path.is_none()) {
        // Where it cannot be reckoned, stores that know the newer names can still answer.
        let hash = derivation::legacy_hash_if_there(&drv, &*store).await;
        let hash = hash.ok().flatten();
        for wanted in &mut all {
            let output = wanted.output.as_ref().map(|id| id.output.clone());
            wanted.legacy = hash
                .zip(output)
                .map(|(hash, output)| legacy::LegacyDrvOutput { hash, output });
        }
    }
    Ok(all)
}

/// Asks each of `stores`, all at once, for each of `wanted`. They are the same if all stores have them
/// with one NAR hash, and different if two hashes differ or one store lacks what another has; where they
/// differ, the first two that do are read and compared. Up to `limit` differences are kept of each.
pub async fn compare_stores(
    wanted: &[WantedOutput],
    stores: &[Abilities],
    limit: usize,
) -> Vec<ReproVerdict> {
    let verdicts = wanted
        .iter()
        .map(|wanted| compare_one(wanted, stores, limit));
    stream::iter(verdicts).buffered(AT_ONCE).collect().await
}

async fn compare_one(wanted: &WantedOutput, stores: &[Abilities], limit: usize) -> ReproVerdict {
    let found = join_all(stores.iter().map(|store| look_up(wanted, store))).await;
    let dir = stores.first().map(|store| store.store.dir().clone());
    let dir = dir.unwrap_or_default();
    let output = wanted.output.as_ref();
    let mut verdict = ReproVerdict::new(
        output.map(|id| dir.path(&id.drv)),
        output.map(|id| id.output.to_string()),
    );
    let copies = stores.iter().zip(&found);
    verdict.copies = copies
        .map(|(store, found)| copy(&dir, store.store.to_string(), found))
        .collect();
    let present: Vec<(usize, &PathInfo)> = found
        .iter()
        .enumerate()
        .filter_map(|(i, found)| Some((i, found.as_ref().ok()?.as_ref()?)))
        .collect();
    let path = wanted.path.clone();
    let path = path.or_else(|| present.first().map(|(_, info)| info.path.clone()));
    verdict.path = path.map(|path| dir.path(&path));
    let unknown = found.iter().any(Result::is_err);
    let Some((first, rest)) = present.split_first() else {
        verdict.reproducible = (!unknown).then_some(false);
        verdict.note = Some("no store that could be asked has it".into());
        return verdict;
    };
    let other = rest
        .iter()
        .find(|(_, info)| info.nar_hash != first.1.nar_hash);
    let Some(other) = other else {
        let absent = found.iter().any(|found| matches!(found, Ok(None)));
        verdict.reproducible = match (absent, unknown) {
            (true, _) => Some(false),
            (false, true) => None,
            (false, false) => Some(true),
        };
        return verdict;
    };
    verdict.reproducible = Some(false);
    let sides = [*first, *other].map(|(i, info)| (&*stores[i].store, info));
    match compare_nars(sides, limit).await {
        Ok(compared) => verdict.differ([first.0, other.0], compared),
        Err(error) => verdict.note = Some(error.to_line()),
    }
    verdict
}

fn copy(dir: &StoreDir, from: String, found: &tk_store::Result<Option<PathInfo>>) -> Instance {
    match found {
        Ok(Some(info)) => Instance::present(from, dir.path(&info.path), info.nar_hash),
        Ok(None) => Instance {
            from,
            state: InstanceState::Absent,
        },
        Err(error) => Instance {
            from,
            state: InstanceState::Unknown(error.to_line()),
        },
    }
}

/// What `store` has of it; `None` if it has nothing.
async fn look_up(wanted: &WantedOutput, store: &Abilities) -> tk_store::Result<Option<PathInfo>> {
    let path = match (&wanted.path, &wanted.output) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(id)) => realised(id, wanted.legacy.as_ref(), store).await?,
        (None, None) => None,
    };
    match path {
        Some(path) => store.store.info(&path).await,
        None => Ok(None),
    }
}

/// What the output turned out to be in `store`, in whatever way it knows.
async fn realised(
    id: &DrvOutput,
    old: Option<&legacy::LegacyDrvOutput>,
    store: &Abilities,
) -> tk_store::Result<Option<StorePath>> {
    let mut asked = false;
    if let Some(graph) = &store.graph {
        match graph.output_map(&id.drv).await {
            Ok(mut outputs) => match outputs.remove(&id.output).flatten() {
                Some(path) => return Ok(Some(path)),
                None => asked = true,
            },
            Err(Error::NotFound { .. }) => (),
            // Daemons refuse to talk of derivations that they do not have.
            Err(Error::Refused { .. }) => (),
            Err(error) => return Err(error),
        }
    }
    if let Some(realisations) = &store.realisations {
        match realisations.realisation(id).await {
            Ok(Some(found)) => return Ok(Some(found.out_path)),
            Ok(None) => asked = true,
            Err(Error::Unsupported { .. }) => (),
            Err(error) => return Err(error),
        }
        if let Some(old) = old {
            match realisations.legacy_realisation(old).await {
                Ok(Some(found)) => return Ok(Some(found.out_path)),
                Ok(None) => asked = true,
                Err(Error::Unsupported { .. }) => (),
                Err(error) => return Err(error),
            }
        }
    }
    if asked {
        Ok(None)
    } else {
        Err(store.unsupported("cannot tell what the outputs of derivations turned out to be"))
    }
}

async fn compare_nars(
    sides: [(&dyn Store, &PathInfo); 2],
    limit: usize,
) -> tk_store::Result<Compared> {
    let [(left, a), (right, b)] = sides;
    let nars = [
        (format!("{} from {left}", a.path), left.nar(&a.path).await?),
        (
            format!("{} from {right}", b.path),
            right.nar(&b.path).await?,
        ),
    ];
    let compared = compare(nars, limit).await?;
    for ((store, info), actual) in sides.into_iter().zip(compared.hashes) {
        if info.nar_hash != actual {
            return Err(mismatch(info, &store.to_string(), actual));
        }
    }
    Ok(compared)
}

/// The derivation, and a store that has it.
async fn read(path: &StorePath, stores: &[Abilities]) -> Result<(Arc<dyn Store>, Derivation)> {
    let mut why = None;
    for store in stores.iter().map(|abilities| &abilities.store) {
        match derivation::read(&**store, path).await {
            Ok(drv) => return Ok((store.clone(), drv)),
            Err(Error::NotFound { .. }) => (),
            Err(error) => why = why.or(Some(error)),
        }
    }
    Err(match why {
        Some(error) => error.into(),
        None => {
            let words = format!(
                "none of the stores has the derivation {path}; name one that has with --store, \
                 or name the output's path"
            );
            NixFailure::new(Cause::Misused, words)
        }
    })
}

/// Outputs that are compared at once.
const AT_ONCE: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_nar::Encoder;
    use tk_path::{NarHash, OutputName};
    use tk_store::{MemoryStore, SigCheck, nar};

    async fn store(content: Option<&[u8]>) -> (Abilities, StorePath) {
        let path = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-x").unwrap();
        let store = MemoryStore::new(StoreDir::default());
        if let Some(content) = content {
            let mut encoder = Encoder::new(Vec::new());
            encoder.file(false, content).unwrap();
            let file = encoder.finish().unwrap();
            let info = PathInfo::new(path.clone(), NarHash::digest(&file), file.len() as u64);
            let options = SigCheck::Skip.into();
            store
                .add_one(info, nar::from_bytes(file), &options)
                .await
                .unwrap();
        }
        (Abilities::of(Arc::new(store)), path)
    }

    #[tokio::test]
    async fn paths_in_stores() {
        for (contents, same, differences) in [
            ([Some(&b"a"[..]), Some(b"a"), Some(b"a")], true, 0),
            ([Some(b"a"), Some(b"a"), Some(b"b")], false, 1),
            ([Some(b"a"), Some(b"a"), None], false, 0),
            ([None, None, None], false, 0),
        ] {
            let mut stores = Vec::new();
            let mut target = None;
            for content in contents {
                let (store, path) = store(content).await;
                stores.push(store);
                target = Some(Target::of(DerivedPath::Opaque(path)));
            }
            let wanted = wanted(&target.unwrap(), &stores).await.unwrap();
            let verdicts = compare_stores(&wanted, &stores, 10).await;
            assert_eq!(verdicts[0].reproducible, Some(same), "{contents:?}");
            assert_eq!(verdicts[0].count, differences);
            assert_eq!(verdicts[0].compared, (differences > 0).then_some([0, 2]));
            let known = verdicts[0].to_json()["narHashes"].as_array().unwrap().len();
            assert_eq!(known, 3);
        }
    }

    #[tokio::test]
    async fn a_derivation_that_nobody_has() {
        let (store, _) = store(None).await;
        let drv = StorePath::parse("0123456789abcdfghijklmnpqrsvwxyz-x.drv").unwrap();
        let target = Target::of(DerivedPath::Built {
            drv: SingleDerivedPath::Opaque(drv),
            outputs: tk_path::OutputsSpec::one(OutputName::out()),
        });
        let failure = wanted(&target, &[store]).await.unwrap_err();
        assert_eq!(failure.cause, Cause::Misused);
        assert!(failure.message.contains("none of the stores"), "{failure}");
    }
}
