//! What outputs turned out to be that only building tells: asked of the store of the user, and told to
//! it.
//!
//! Stores up to Nix 2.34 know that by a hash of the derivation, later ones by its path. It is told of the
//! derivation and of what it became when its inputs were known, as Nix itself notes both. Real
//! daemons of 2.8, 2.26 and 2.34 take it (`RegisterDrvOutput`) of any user, also of one they do not trust,
//! when the path is there: they build nothing then. Content that refers to itself does not travel
//! between 2.8 and later ones, which hash it differently.

use std::{collections::BTreeMap, sync::Arc};
use tk_narinfo::{
    SecretKey,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::{
    Algorithm, BasicDerivation, Derivation, DerivationKind, Hash, Inputs, OutputName, StoreDir,
    StorePath, modulo::Modulo,
};
use tk_store::{
    Abilities, Error, Realisations, Result, SigCheck,
    derivation::{self, legacy_hash},
};
use tokio::sync::Mutex;

/// The hashes of derivations that were needed so far.
pub struct Realised(Mutex<Modulo>);

/// An output and what is said of it, in both forms.
struct RealisationClaim<'a> {
    drv: &'a StorePath,
    hash: Option<Hash>,
    output: &'a OutputName,
    is: &'a StorePath,
}

impl Realised {
    pub fn new(dir: StoreDir) -> Self {
        Realised(Mutex::new(Modulo::for_realisations(dir)))
    }

    /// Whether `local` keeps what outputs turned out to be, in one form or the other.
    pub async fn are_kept(local: &Abilities) -> Result<bool> {
        let Some(realisations) = &local.realisations else {
            return Ok(false);
        };
        let nothing = Hash::digest(Algorithm::Sha256, b"");
        let id = legacy::LegacyDrvOutput {
            hash: nothing,
            output: OutputName::out(),
        };
        match realisations.legacy_realisation(&id).await {
            Err(Error::Unsupported { .. }) => {}
            answer => return answer.map(|_| true),
        }
        let drv = StorePath::from_digest(&[0; 20], "nothing.drv");
        let id = DrvOutput {
            drv: drv.map_err(|e| Error::invalid(e.to_string()))?,
            output: OutputName::out(),
        };
        match realisations.realisation(&id).await {
            Err(Error::Unsupported { .. }) => Ok(false),
            answer => answer.map(|_| true),
        }
    }

    /// What the outputs of `drv` are, as far as `local` knows by the hash.
    pub async fn find(
        &self,
        local: &Abilities,
        drv: &Derivation,
    ) -> Result<BTreeMap<OutputName, StorePath>> {
        let mut found = BTreeMap::new();
        let Some(realisations) = &local.realisations else {
            return Ok(found);
        };
        let Some(hash) = self.hash(local, drv).await? else {
            return Ok(found);
        };
        for output in drv.outputs.keys() {
            let id = legacy::LegacyDrvOutput {
                hash,
                output: output.clone(),
            };
            match realisations.legacy_realisation(&id).await {
                Ok(Some(known)) => found.insert(output.clone(), known.out_path),
                Ok(None) => None,
                Err(Error::Unsupported { .. }) => break,
                Err(error) => return Err(error),
            };
        }
        Ok(found)
    }

    /// Tells `local` that the outputs of `drv`, which became `basic`, are these; they are there. `sign` signs
    /// it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when `local` does not keep such things.
    pub async fn tell(
        &self,
        local: &Abilities,
        sign: &[Arc<SecretKey>],
        (path, drv, basic): (&StorePath, &Derivation, &BasicDerivation),
        outputs: &BTreeMap<OutputName, StorePath>,
    ) -> Result<()> {
        let Some(realisations) = &local.realisations else {
            return Err(local.unsupported("keeps no realisations"));
        };
        let dir = local.store.dir();
        let wrong = |error| Error::malformed(format!("the derivation {path}"), error);
        let resolved = with_sources(basic);
        let resolved_path = resolved.path(dir).map_err(wrong)?;
        let hashes = [
            self.hash(local, drv).await?,
            self.hash(local, &resolved).await?,
        ];
        for (drv, hash) in [path, &resolved_path].into_iter().zip(hashes) {
            for (output, is) in outputs {
                let claim = RealisationClaim {
                    drv,
                    hash,
                    output,
                    is,
                };
                claim.tell(&**realisations, sign).await?;
            }
        }
        Ok(())
    }

    /// Passes on to `to` what `from` says that the outputs of `drv` are, which is read from `local` and has
    /// such outputs or not, if `check` is satisfied. Without anything to say, or somebody who keeps it, nothing is done.
    pub async fn pass_on(
        &self,
        local: &Abilities,
        from: &Abilities,
        to: &Abilities,
        drv: &StorePath,
        check: &SigCheck,
    ) -> Result<()> {
        let file = derivation::read(&*local.store, drv).await?;
        let (Some(from), Some(to)) = (&from.realisations, &to.realisations) else {
            return Ok(());
        };
        let is_floating = matches!(file.kind(), Ok(DerivationKind::Floating(_)));
        let hash = if is_floating {
            self.hash(local, &file).await?
        } else {
            return Ok(());
        };
        for output in file.outputs.keys() {
            let (legacy, id) = (
                hash,
                DrvOutput {
                    drv: drv.clone(),
                    output: output.clone(),
                },
            );
            // Some stores name an output by the derivation's hash, others by its path; both forms are passed
            // on.
            if let Some(hash) = legacy {
                let output = output.clone();
                let legacy_id = legacy::LegacyDrvOutput { hash, output };
                let known = from.legacy_realisation(&legacy_id).await;
                if let Some(known) = unless_unsupported(known)?.flatten() {
                    unless_refused(to.register_legacy(&known, check).await)?;
                }
            }
            if let Some(value) = unless_unsupported(from.realisation(&id).await)?.flatten() {
                let known = Realisation { id, value };
                unless_refused(to.register(&known, check).await)?;
            }
        }
        Ok(())
    }

    async fn hash(&self, local: &Abilities, drv: &Derivation) -> Result<Option<Hash>> {
        legacy_hash(&mut *self.0.lock().await, drv, &*local.store).await
    }
}

/// Who is not told builds it.
fn unless_refused(told: Result<()>) -> Result<()> {
    match told {
        Err(Error::Untrusted { .. } | Error::Refused { .. } | Error::Unsupported { .. }) => Ok(()),
        told => told,
    }
}

/// `None` if it is the form that a store does not know.
fn unless_unsupported<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Err(Error::Unsupported { .. }) => Ok(None),
        answer => answer.map(Some),
    }
}

impl RealisationClaim<'_> {
    /// Tells it in the form that the store knows.
    async fn tell(&self, to: &dyn Realisations, sign: &[Arc<SecretKey>]) -> Result<()> {
        if let Some(hash) = self.hash {
            let output = self.output.clone();
            let id = legacy::LegacyDrvOutput { hash, output };
            let mut realisation = legacy::LegacyRealisation::new(id, self.is.clone());
            for key in sign {
                realisation.sign(key);
            }
            match to.register_legacy(&realisation, &SigCheck::Skip).await {
                Err(Error::Unsupported { .. }) => {}
                told => return told,
            }
        }
        let mut realisation = Realisation {
            id: DrvOutput {
                drv: self.drv.clone(),
                output: self.output.clone(),
            },
            value: UnkeyedRealisation::new(self.is.clone()),
        };
        for key in sign {
            realisation.sign(key);
        }
        to.register(&realisation, &SigCheck::Skip).await
    }
}

/// The same as one that could have other derivations as inputs.
fn with_sources(basic: &BasicDerivation) -> Derivation {
    Derivation {
        name: basic.name.clone(),
        outputs: basic.outputs.clone(),
        inputs: Inputs {
            srcs: basic.inputs.clone(),
            drvs: BTreeMap::new(),
        },
        platform: basic.platform.clone(),
        builder: basic.builder.clone(),
        args: basic.args.clone(),
        env: basic.env.clone(),
    }
}
