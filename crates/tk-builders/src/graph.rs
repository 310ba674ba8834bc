//! Which derivations have to be built, and what each waits for.

use crate::{Needs, realised::Realised};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tk_path::{
    Derivation, DerivationKind, DerivedPath, OutputName, OutputsSpec, SingleDerivedPath, StorePath,
};
use tk_store::{Abilities, Error, Result, derivation};

/// What has to be built, by derivation.
#[derive(Debug, Default)]
pub struct BuildGraph {
    pub nodes: BTreeMap<StorePath, BuildNode>,
    /// Outputs whose paths are known: also of what is there already.
    pub known: HashMap<(StorePath, OutputName), StorePath>,
    /// Every derivation that was looked at.
    drvs: HashMap<StorePath, Derivation>,
    lacking: BTreeSet<StorePath>,
}

/// A derivation to build.
#[derive(Debug)]
pub struct BuildNode {
    pub drv: Derivation,
    /// Outputs that somebody wants.
    pub wanted: BTreeSet<OutputName>,
    /// Derivations to be built before.
    pub waits_for: BTreeSet<StorePath>,
}

impl BuildGraph {
    /// What has to be built for `paths`, as the store is now, where `lacking` counts as absent.
    pub async fn of(
        local: &Abilities,
        realised: &Realised,
        paths: &[DerivedPath],
        lacking: &BTreeSet<StorePath>,
    ) -> Result<BuildGraph> {
        let mut graph = BuildGraph {
            lacking: lacking.clone(),
            ..BuildGraph::default()
        };
        let mut wanted: BTreeMap<StorePath, BTreeSet<OutputName>> = BTreeMap::new();
        let mut wave: BTreeMap<StorePath, OutputsSpec> = BTreeMap::new();
        for path in paths {
            if let DerivedPath::Built { drv, outputs } = path {
                want(&mut wave, static_path(drv)?, outputs);
            }
        }
        while !wave.is_empty() {
            graph.read(local, wave.keys()).await?;
            let mut new = BTreeMap::new();
            for (drv, spec) in wave {
                let names = graph.names(&drv, &spec)?;
                let before = wanted.entry(drv.clone()).or_default();
                // Only outputs that were not wanted before go on, so that the walk ends even where
                // derivations form a cycle.
                let more: BTreeSet<_> = names.difference(before).cloned().collect();
                before.extend(more.iter().cloned());
                if !more.is_empty() {
                    new.insert(drv, more);
                }
            }
            wave = graph.wave(local, realised, new, &wanted).await?;
        }
        graph.link();
        Ok(graph)
    }

    /// The outputs of `drv` that `spec` means.
    pub fn names(&self, drv: &StorePath, spec: &OutputsSpec) -> Result<BTreeSet<OutputName>> {
        let file = &self.drvs[drv];
        match spec {
            OutputsSpec::All => Ok(file.outputs.keys().cloned().collect()),
            OutputsSpec::Names(names) => {
                match names.iter().find(|name| !file.outputs.contains_key(*name)) {
                    Some(name) => Err(Error::invalid(format!("{drv} has no output '{name}'"))),
                    None => Ok(names.clone()),
                }
            }
        }
    }

    /// Reads the derivations that were not read yet, several at once.
    async fn read(
        &mut self,
        local: &Abilities,
        paths: impl Iterator<Item = &StorePath>,
    ) -> Result<()> {
        let new: Vec<_> = paths
            .filter(|p| !self.drvs.contains_key(*p))
            .cloned()
            .collect();
        if self.drvs.len() + new.len() > MAX_DERIVATIONS {
            let what = format!("these are more than {MAX_DERIVATIONS} derivations to build");
            return Err(Error::invalid(what));
        }
        let store = &local.store;
        let read = stream::iter(new).map(|path| async move {
            let drv = derivation::read(&**store, &path).await?;
            Ok::<_, Error>((path, drv))
        });
        let mut read = read.buffer_unordered(AT_ONCE);
        while let Some((path, drv)) = read.try_next().await? {
            self.drvs.insert(path, drv);
        }
        Ok(())
    }

    /// Makes nodes of those that lack an output, and gives what these need.
    async fn wave(
        &mut self,
        local: &Abilities,
        realised: &Realised,
        new: BTreeMap<StorePath, BTreeSet<OutputName>>,
        wanted: &BTreeMap<StorePath, BTreeSet<OutputName>>,
    ) -> Result<BTreeMap<StorePath, OutputsSpec>> {
        for (drv, names) in &new {
            self.find_outputs(local, realised, drv, names).await?;
        }
        let outputs = new.iter().flat_map(|(drv, names)| {
            let known = |name: &OutputName| self.known.get(&(drv.clone(), name.clone())).cloned();
            names.iter().filter_map(known)
        });
        let valid = local.store.valid(&outputs.collect()).await?;
        let mut next = BTreeMap::new();
        for (drv, names) in new {
            let there = |name: &OutputName| {
                let path = self.known.get(&(drv.clone(), name.clone()));
                path.is_some_and(|path| valid.contains(path) && !self.lacking.contains(path))
            };
            if names.iter().all(there) {
                continue;
            }
            let file = &self.drvs[&drv];
            // A node that is there already has asked for its inputs; only its outputs become more.
            if !self.nodes.contains_key(&drv) {
                for (input, node) in &file.inputs.drvs {
                    if !node.dynamic.is_empty() {
                        return Err(dynamic(&drv));
                    }
                    let spec = OutputsSpec::Names(node.outputs.clone());
                    want(&mut next, input.clone(), &spec);
                }
            }
            let node = BuildNode {
                drv: file.clone(),
                wanted: wanted[&drv].clone(),
                waits_for: BTreeSet::new(),
            };
            self.nodes.insert(drv, node);
        }
        Ok(next)
    }

    /// Finds the paths of outputs: from the derivation or, where it does not tell, from the store.
    async fn find_outputs(
        &mut self,
        local: &Abilities,
        realised: &Realised,
        drv: &StorePath,
        names: &BTreeSet<OutputName>,
    ) -> Result<()> {
        let file = &self.drvs[drv];
        let mut asked = None;
        for name in names {
            let path = file.outputs[name].path(local.store.dir(), &file.name, name);
            let mut path = path.map_err(|e| Error::malformed(drv.to_string(), e))?;
            if path.is_none() {
                if asked.is_none() {
                    asked = Some(output_map(local, realised, drv, file).await?);
                }
                path = asked.as_ref().and_then(|map| map.get(name)?.clone());
            }
            if let Some(path) = path {
                self.known.insert((drv.clone(), name.clone()), path);
            }
        }
        Ok(())
    }

    fn link(&mut self) {
        let all: BTreeSet<_> = self.nodes.keys().cloned().collect();
        for node in self.nodes.values_mut() {
            let inputs = node.drv.inputs.drvs.keys();
            node.waits_for = inputs.filter(|path| all.contains(*path)).cloned().collect();
        }
    }
}

impl BuildNode {
    /// What a machine must have for it when its inputs are known, as Nix finds it.
    pub fn needs(&self) -> Needs {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut features: BTreeSet<String> = match self.drv.structured_attrs() {
            Some(attributes) => {
                let attributes = serde_json::from_slice(attributes).unwrap_or(Value::Null);
                let names = attributes[FEATURES].as_array().cloned().unwrap_or_default();
                let names = names.iter().filter_map(Value::as_str);
                names.map(str::to_owned).collect()
            }
            None => {
                let value = self.drv.env.get(FEATURES.as_bytes());
                let value = value.map(|value| text(value)).unwrap_or_default();
                value.split_whitespace().map(str::to_owned).collect()
            }
        };
        if matches!(
            self.drv.kind(),
            Ok(DerivationKind::Floating(_) | DerivationKind::Impure(_))
        ) {
            features.insert("ca-derivations".into());
        }
        Needs {
            system: text(&self.drv.platform),
            features,
        }
    }

    /// Whether its outputs may differ each time.
    pub fn is_impure(&self) -> bool {
        matches!(self.drv.kind(), Ok(DerivationKind::Impure(_)))
    }

    /// Whether the paths of its outputs are known before it is built.
    pub fn is_known(&self) -> bool {
        matches!(
            self.drv.kind(),
            Ok(DerivationKind::InputAddressed | DerivationKind::Fixed)
        )
    }
}

/// The path, if nothing is to be built for it.
pub fn opaque(path: &DerivedPath) -> Option<&StorePath> {
    match path {
        DerivedPath::Opaque(path) => Some(path),
        DerivedPath::Built { .. } => None,
    }
}

/// The derivation, if it is not itself an output.
pub fn static_path(drv: &SingleDerivedPath) -> Result<StorePath> {
    match drv {
        SingleDerivedPath::Opaque(path) => Ok(path.clone()),
        SingleDerivedPath::Built { .. } => Err(dynamic(drv.base())),
    }
}

/// The outputs of `drv`, whose file is `file`, as far as the store knows them.
async fn output_map(
    local: &Abilities,
    realised: &Realised,
    drv: &StorePath,
    file: &Derivation,
) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
    let mut map = local.output_map(drv).await?;
    let impure = matches!(file.kind(), Ok(DerivationKind::Impure(_)));
    if !impure && map.values().any(Option::is_none) {
        let found = realised.find(local, file).await?;
        map.extend(found.into_iter().map(|(name, path)| (name, Some(path))));
    }
    Ok(map)
}

fn want(wave: &mut BTreeMap<StorePath, OutputsSpec>, drv: StorePath, spec: &OutputsSpec) {
    let wanted = match wave.get(&drv) {
        Some(before) => before.union(spec),
        None => spec.clone(),
    };
    wave.insert(drv, wanted);
}

fn dynamic(drv: &StorePath) -> Error {
    Error::invalid(format!(
        "{drv} has to do with derivations that are themselves built, which are not built on other machines"
    ))
}

const FEATURES: &str = "requiredSystemFeatures";
/// Derivations that are read at once.
const AT_ONCE: usize = 8;
/// Some times what the largest closures have.
const MAX_DERIVATIONS: usize = 200_000;
