//! Derivations on their way in.
//!
//! A path whose name ends in `.drv` must be a derivation that states the outputs which follow from
//! it (Nix's `LocalStore::registerValidPaths`): its outputs are found again by name, and nobody should be
//! able to put somebody else's path there. The derivations that it needs must be valid.

use crate::{LocalConfig, db::KnownOutputs, inner::LocalInner};
use rustix::fs::{Mode, OFlags, open};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    sync::Arc,
};
use tk_narinfo::PathInfo;
use tk_path::{
    Derivation, DerivationKind, OutputName, StorePath,
    modulo::{DerivationSourceError, LoadError, Modulo},
};
use tk_store::{
    Error, Result,
    derivation::{MAX_DERIVATION_BYTES, parse},
};

impl LocalInner {
    /// The outputs of the derivations among `infos`, whose content is in its place, as far as
    /// they are known; and those that must not be registered.
    pub fn outputs_of(&self, infos: &[PathInfo]) -> (KnownOutputs, Vec<(StorePath, Error)>) {
        let (mut outputs, mut failed) = (KnownOutputs::new(), Vec::new());
        let mut group: BTreeSet<_> = infos.iter().map(|info| &info.path).collect();
        for path in infos.iter().map(|info| &info.path) {
            if !path.is_derivation() {
                continue;
            }
            match self.checked_outputs(path, &group) {
                Ok(checked) => drop(outputs.insert(path.clone(), checked)),
                Err(error) => {
                    group.remove(path);
                    failed.push((path.clone(), error));
                    // What was learned of this group may be wrong.
                    *self.modulo() = Modulo::new(self.config.dir.clone());
                }
            }
        }
        (outputs, failed)
    }

    /// The derivation at `path`, which need not be valid.
    pub fn derivation(&self, path: &StorePath) -> Result<Derivation> {
        Self::derivation_in(&self.config, path)
    }

    /// The same, where there is no database.
    pub fn derivation_in(config: &LocalConfig, path: &StorePath) -> Result<Derivation> {
        let real = config.real.join(path.as_str());
        let reading = |e: io::Error| Error::io(format!("reading {}", real.display()), e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(&real, flags, Mode::empty()).map_err(|e| reading(e.into()))?;
        let mut text = Vec::new();
        let limit = MAX_DERIVATION_BYTES as u64 + 1;
        let read = File::from(file).take(limit).read_to_end(&mut text);
        read.map_err(reading)?;
        parse(&config.dir, path, &text, &config.to_string())
    }

    /// The known outputs of the derivation at `path`, which may need others of `group`.
    pub(crate) fn checked_outputs(
        &self,
        path: &StorePath,
        group: &BTreeSet<&StorePath>,
    ) -> Result<BTreeMap<OutputName, StorePath>> {
        let drv = self.derivation(path)?;
        let malformed = |error| Error::malformed(self.config.dir.path(path), error);
        let mut modulo = self.modulo();
        // Other kinds of outputs do not depend on other derivations.
        if let DerivationKind::InputAddressed | DerivationKind::Deferred =
            drv.kind().map_err(malformed)?
        {
            self.load_inputs(&mut modulo, path, &drv, group)?;
        }
        drv.check_outputs(&modulo).map_err(malformed)?;
        let mut outputs = BTreeMap::new();
        for (name, output) in &drv.outputs {
            let known = output.path(&self.config.dir, &drv.name, name);
            let known = known.map_err(|e| Error::malformed(self.config.dir.path(path), e))?;
            outputs.extend(known.map(|known| (name.clone(), known)));
        }
        Ok(outputs)
    }

    /// Makes known what stands for the derivations that `drv` needs.
    fn load_inputs(
        &self,
        modulo: &mut Modulo,
        path: &StorePath,
        drv: &Derivation,
        group: &BTreeSet<&StorePath>,
    ) -> Result<()> {
        let get = |input: &StorePath| -> Result<Arc<Derivation>, DerivationSourceError> {
            if !group.contains(input) && !self.is_valid(input)? {
                let store = self.uri.clone();
                let path = input.clone();
                return Err(Error::NotFound { path, store }.into());
            }
            Ok(Arc::new(self.derivation(input)?))
        };
        modulo.load(drv, get).map_err(|error| match error {
            LoadError::Derivation(error) => Error::malformed(self.config.dir.path(path), error),
            LoadError::Get {
                path: input,
                source,
            } => match source.downcast::<Error>() {
                Ok(error) if matches!(*error, Error::NotFound { .. }) => self.missing(path, &input),
                Ok(error) => *error,
                Err(error) => Error::malformed(self.config.dir.path(&input), error),
            },
        })
    }

    fn modulo(&self) -> std::sync::MutexGuard<'_, Modulo> {
        self.modulo.lock().unwrap_or_else(|e| e.into_inner())
    }
}
