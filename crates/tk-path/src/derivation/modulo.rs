//! Hashes modulo fixed outputs, and the output paths that follow from them.
//!
//! The path of an input-addressed output depends on everything that goes into it, apart from *how* fixed content was
//! obtained. All hashes are sha256:
//!
//! ```text
//! fixed output        hash of "fixed:out:" method+algo ":" hex ":" full path
//! floating, impure,   none: its dependants' paths are not known either ("deferred"), nor those of a
//!   deferred            derivation with dynamic inputs
//! otherwise           hash of the file with each input derivation's path replaced by its hash in hex;
//!                       inputs with one hash become one, with the outputs of all; sorted by hash
//! path of an output   "output:" name, with the hash of the same file without output paths, and with
//!                       the variables that are named like outputs set to nothing
//! ```
//! The hash that dependants use is thus another than the one that makes the derivation's own paths.
//! Mirrors `derivation/modulo.cc`.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::sync::Arc;

use super::aterm::{HashedInputs, print};
use super::{
    Derivation, DerivationError, DerivationErrorKind as Kind, DerivationInputs, DerivationKind,
    DerivationOutput, InputOutputs,
};
use crate::{Algorithm, Encoding, Hash, OutputName, StoreDir, StorePath};

/// What is known of input derivations: each one is hashed once, whatever depends on it.
///
/// A derivation can be asked about when all its inputs are known: either [`load`](Modulo::load) fetches them, or the
/// caller does, with [`missing`](Modulo::missing) and [`add`](Modulo::add). A known derivation takes some 200 bytes.
#[derive(Debug, Clone)]
pub struct Modulo {
    dir: StoreDir,
    known: HashMap<StorePath, KnownHashes>,
    /// Whether what is only known after building has a hash too.
    floating: bool,
}

/// What stands for a derivation in those that depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashModulo {
    /// Its only output has fixed content; this stands for that.
    Fixed(Hash),
    /// This stands for the whole.
    Whole(Hash),
    /// Nothing does before it is built.
    Deferred,
}

#[derive(Debug, Clone)]
struct KnownHashes {
    hash: HashModulo,
    /// Sorted; empty if the hash is deferred, because then nobody asks.
    outputs: Box<[OutputName]>,
}

impl Modulo {
    /// Nothing is known yet of the derivations of the store at `dir`.
    pub fn new(dir: StoreDir) -> Modulo {
        Modulo {
            dir,
            known: HashMap::new(),
            floating: false,
        }
    }

    /// As [`Modulo::new`], but with hashes for derivations whose output paths only building tells, too: those by which
    /// Nix up to 2.34 names realisations, see [`Modulo::realisation_hash`]. They make no output paths.
    pub fn for_realisations(dir: StoreDir) -> Modulo {
        Modulo {
            floating: true,
            ..Modulo::new(dir)
        }
    }

    /// The hash in the names of `drv`'s realisations up to Nix 2.34; `None` if it has none, as with dynamic inputs.
    /// What is [`missing`](Modulo::missing) must be known before, to a [`Modulo::for_realisations`].
    pub fn realisation_hash<I: DerivationInputs>(
        &self,
        drv: &Derivation<I>,
    ) -> Result<Option<Hash>, DerivationError> {
        match drv.kind()? {
            DerivationKind::Fixed => match self.fixed(drv)? {
                HashModulo::Fixed(hash) => Ok(Some(hash)),
                _ => Ok(None),
            },
            _ => self.whole(drv, true),
        }
    }

    /// Returns the store directory that the paths of the derivations are in.
    pub fn dir(&self) -> &StoreDir {
        &self.dir
    }

    /// The input derivations that must be known before `drv` is asked about, and are not. None for one whose content
    /// is fixed or floating: nothing depends on how that is made.
    pub fn missing<'a, I: DerivationInputs>(
        &'a self,
        drv: &'a Derivation<I>,
    ) -> impl Iterator<Item = &'a StorePath> {
        let by_inputs = match drv.kind() {
            Ok(DerivationKind::InputAddressed | DerivationKind::Deferred) => true,
            Ok(DerivationKind::Floating(_)) => self.floating,
            _ => false,
        };
        let inputs = drv.inputs.drvs().keys().filter(move |_| by_inputs);
        inputs.filter(|path| !self.known.contains_key(path))
    }

    /// Makes `drv` known as the derivation at `path`; that this is its path is not checked. What is
    /// [`missing`](Modulo::missing) must be known before.
    pub fn add(&mut self, path: StorePath, drv: &Derivation) -> Result<(), DerivationError> {
        let hash = self.hash(drv)?;
        let outputs = match hash {
            HashModulo::Deferred => Box::default(),
            _ => drv.outputs.keys().cloned().collect(),
        };
        self.known.insert(path, KnownHashes { hash, outputs });
        Ok(())
    }

    /// Makes all inputs of `drv` known that matter, and theirs, however deep. `get` gives the derivation at a path, and
    /// is asked once for each one that is not known. Paths are not checked against content.
    pub fn load<I: DerivationInputs>(
        &mut self,
        drv: &Derivation<I>,
        mut get: impl FnMut(&StorePath) -> Result<Arc<Derivation>, DerivationSourceError>,
    ) -> Result<(), LoadError> {
        let mut todo: Vec<StorePath> = self.missing(drv).cloned().collect();
        let mut open: HashMap<StorePath, Arc<Derivation>> = HashMap::new();
        // A path stays on the stack until its inputs, which are pushed above it, are known.
        while let Some(path) = todo.pop() {
            if self.known.contains_key(&path) {
                continue;
            }
            if let Some(drv) = open.remove(&path) {
                if let Some(input) = self.missing(&drv).next() {
                    let cycle = drv.error(Kind::Cycle(input.clone()));
                    return Err(LoadError::Derivation(cycle));
                }
                self.add(path, &drv)?;
                continue;
            }
            let drv = get(&path).map_err(|source| {
                let path = path.clone();
                LoadError::Get { path, source }
            })?;
            todo.push(path.clone());
            todo.extend(self.missing(&drv).cloned());
            open.insert(path, drv);
        }
        Ok(())
    }

    /// What stands for `drv` in derivations that depend on it.
    pub fn hash<I: DerivationInputs>(
        &self,
        drv: &Derivation<I>,
    ) -> Result<HashModulo, DerivationError> {
        match drv.kind()? {
            DerivationKind::Fixed => self.fixed(drv),
            DerivationKind::Floating(_) | DerivationKind::Deferred if !self.floating => {
                Ok(HashModulo::Deferred)
            }
            DerivationKind::Impure(_) => Ok(HashModulo::Deferred),
            _ => Ok(match self.whole(drv, false)? {
                Some(hash) => HashModulo::Whole(hash),
                None => HashModulo::Deferred,
            }),
        }
    }

    /// The paths of all outputs: what follows from the derivation, not what it states. `None` for what only building
    /// tells.
    pub fn output_paths<I: DerivationInputs>(
        &self,
        drv: &Derivation<I>,
    ) -> Result<BTreeMap<OutputName, Option<StorePath>>, DerivationError> {
        let hash = match drv.kind()? {
            DerivationKind::InputAddressed | DerivationKind::Deferred => self.whole(drv, true)?,
            _ => None,
        };
        let path = |(name, output): (&OutputName, &DerivationOutput)| {
            let path = match (output, &hash) {
                (DerivationOutput::InputAddressed(_) | DerivationOutput::Deferred, hash) => hash
                    .map(|hash| self.output_path(drv, name, &hash))
                    .transpose()?,
                (output, _) => output
                    .path(&self.dir, &drv.name, name)
                    .map_err(|error| drv.error((name.clone(), error)))?,
            };
            Ok((name.clone(), path))
        };
        drv.outputs.iter().map(path).collect()
    }

    fn output_path<I>(
        &self,
        drv: &Derivation<I>,
        name: &OutputName,
        hash: &Hash,
    ) -> Result<StorePath, DerivationError> {
        self.dir
            .make_path(&format!("output:{name}"), hash, &name.path_name(&drv.name))
            .map_err(|error| drv.error(error))
    }

    fn fixed<I>(&self, drv: &Derivation<I>) -> Result<HashModulo, DerivationError> {
        let Some((name, output)) = drv.outputs.first_key_value() else {
            return Ok(HashModulo::Deferred);
        };
        let [path, method, hash] = output
            .to_strings(&self.dir, &drv.name, name)
            .map_err(|error| drv.error((name.clone(), error)))?;
        let text = format!("fixed:out:{method}:{hash}:{path}");
        let hash = Hash::digest(Algorithm::Sha256, text.as_bytes());
        Ok(HashModulo::Fixed(hash))
    }

    /// The hash of the file without input derivations, or `None` when one of them has none.
    fn whole<I: DerivationInputs>(
        &self,
        drv: &Derivation<I>,
        masked: bool,
    ) -> Result<Option<Hash>, DerivationError> {
        let mut inputs = HashedInputs::new();
        for (path, node) in drv.inputs.drvs() {
            let Some(hash) = self.input(drv, path, node)? else {
                return Ok(None);
            };
            let outputs = inputs.entry(hash.digits(Encoding::Base16)).or_default();
            outputs.extend(&node.outputs);
        }
        let file = print(drv, &self.dir, Some(&inputs), masked)?;
        Ok(Some(Hash::digest(Algorithm::Sha256, &file)))
    }

    fn input<I>(
        &self,
        drv: &Derivation<I>,
        path: &StorePath,
        node: &InputOutputs,
    ) -> Result<Option<Hash>, DerivationError> {
        if !node.dynamic.is_empty() {
            return Ok(None);
        }
        let known = self.known.get(path);
        let known = known.ok_or_else(|| drv.error(Kind::UnknownInput(path.clone())))?;
        let hash = match known.hash {
            HashModulo::Fixed(hash) | HashModulo::Whole(hash) => hash,
            HashModulo::Deferred => return Ok(None),
        };
        let missing = |name: &&OutputName| known.outputs.binary_search(name).is_err();
        match node.outputs.iter().find(missing) {
            None => Ok(Some(hash)),
            Some(name) => Err(drv.error(Kind::NoSuchOutput(path.clone(), name.clone()))),
        }
    }
}

/// Input derivations that could not be made known.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// One could not be got.
    #[error("cannot get the derivation {path}")]
    Get {
        /// The derivation that could not be got.
        path: StorePath,
        /// Why, as the caller said.
        source: DerivationSourceError,
    },
    /// One of the derivations is wrong in itself.
    #[error("{0}")]
    Derivation(#[from] DerivationError),
}

/// Whatever the caller's way of getting derivations fails with.
pub type DerivationSourceError = Box<dyn Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Inputs;

    fn drv(name: &str, inputs: &[&StorePath]) -> Derivation {
        let needed = InputOutputs {
            outputs: [OutputName::out()].into(),
            ..InputOutputs::default()
        };
        let drvs = inputs.iter().map(|path| ((*path).clone(), needed.clone()));
        Derivation {
            name: name.into(),
            outputs: [(OutputName::out(), DerivationOutput::Deferred)].into(),
            inputs: Inputs {
                drvs: drvs.collect(),
                ..Inputs::default()
            },
            platform: "p".into(),
            builder: "b".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// A chain in which each one needs the two before it.
    fn chain(length: usize) -> Vec<(StorePath, Arc<Derivation>)> {
        let mut modulo = Modulo::new(StoreDir::default());
        let mut chain: Vec<(StorePath, Arc<Derivation>)> = Vec::new();
        for index in 0..length {
            let before = chain.iter().rev().take(2);
            let before: Vec<_> = before.map(|(path, _)| path).collect();
            let mut drv = drv(&format!("n{index}"), &before);
            drv.fill_outputs(&modulo).expect("filled in");
            let path = drv.path(modulo.dir()).expect("path");
            modulo.add(path.clone(), &drv).expect("known");
            chain.push((path, Arc::new(drv)));
        }
        chain
    }

    #[test]
    fn every_input_is_asked_for_once_however_deep() {
        let chain = chain(3000);
        let all: HashMap<_, _> = chain.iter().cloned().collect();
        let mut asked = Vec::new();
        let mut modulo = Modulo::new(StoreDir::default());
        let (_, last) = &chain[chain.len() - 1];
        let load = modulo.load(last, |path| {
            asked.push(path.clone());
            all.get(path).cloned().ok_or_else(|| "unknown".into())
        });
        load.expect("all are there");
        assert_eq!(asked.len(), chain.len() - 1);
        last.check_outputs(&modulo).expect("right");
        let known = |path: &StorePath| Err(format!("asked again for {path}").into());
        modulo.load(last, known).expect("all are known");
    }

    #[test]
    fn how_fixed_content_is_made_does_not_matter() {
        let (a, b, c) = (path("a.drv"), path("b.drv"), path("c"));
        let mut fixed = filled(&[&b]);
        let content = DerivationOutput::Fixed(crate::ContentAddress {
            method: crate::Method::Flat,
            hash: Hash::digest(Algorithm::Sha512, b"content"),
        });
        fixed.outputs.insert(OutputName::out(), content);
        let fixed = Arc::new(fixed);
        let mut modulo = Modulo::new(StoreDir::default());
        let get = |path: &StorePath| {
            if *path == a {
                Ok(fixed.clone())
            } else {
                Err("must not be asked for".into())
            }
        };
        let mut one = filled(&[&a]);
        modulo.load(&one, get).expect("one input is enough");
        let paths = modulo.output_paths(&one);
        // Another way to the same content, and the order of both.
        modulo.add(c.clone(), &fixed).expect("known");
        one.inputs.drvs = filled(&[&c]).inputs.drvs;
        assert_eq!(modulo.output_paths(&one), paths);
        one.inputs.drvs = filled(&[&c, &a]).inputs.drvs;
        assert_eq!(modulo.output_paths(&one), paths);
    }

    #[test]
    fn inputs_that_cannot_be_made_known() {
        let (a, b) = (path("a.drv"), path("b.drv"));
        let all = [
            (a.clone(), Arc::new(drv("a", &[&b]))),
            (b.clone(), Arc::new(drv("b", &[&a]))),
        ];
        let all: HashMap<_, _> = all.into();
        let mut modulo = Modulo::new(StoreDir::default());
        let error = modulo.load(&drv("x", &[&a]), |path| Ok(all[path].clone()));
        let error = error.expect_err("a cycle").to_string();
        assert!(error.contains("needs itself"), "{error}");
        let itself = [(a.clone(), Arc::new(drv("a", &[&a])))];
        let itself: HashMap<_, _> = itself.into();
        let error = modulo.load(&drv("x", &[&a]), |path| Ok(itself[path].clone()));
        assert!(error.is_err());
        let error = modulo.load(&drv("x", &[&a]), |_| Err("gone".into()));
        assert_eq!(
            error.expect_err("not there").to_string(),
            format!("cannot get the derivation {a}")
        );
        let error = modulo.hash(&filled(&[&b])).expect_err("not known");
        assert_eq!(error.kind(), &Kind::UnknownInput(b.clone()));
        modulo.add(a.clone(), &filled(&[])).expect("known");
        let mut other = filled(&[&a]);
        let dev = OutputName::parse("dev").expect("name");
        let needed = other.inputs.drvs.get_mut(&a).expect("input");
        needed.outputs.insert(dev.clone());
        let error = modulo.hash(&other).expect_err("no such output");
        assert_eq!(error.kind(), &Kind::NoSuchOutput(a, dev));
    }

    /// Input-addressed, at some path.
    fn filled(inputs: &[&StorePath]) -> Derivation {
        let mut drv = drv("x", inputs);
        let output = DerivationOutput::InputAddressed(path("x"));
        drv.outputs.insert(OutputName::out(), output);
        drv
    }

    fn path(name: &str) -> StorePath {
        StorePath::from_digest(&[7; 20], name).expect("path")
    }
}
