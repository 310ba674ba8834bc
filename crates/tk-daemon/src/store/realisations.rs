use super::DaemonStore;
use crate::worker::{
    features,
    ops::{FoundRealisation, QueryRealisation, RegisterDrvOutput},
};
use async_trait::async_trait;
use tk_narinfo::realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy};
use tk_store::{Realisations, Result, SigCheck};

impl DaemonStore {
    /// Whether the daemon knows realisations in the new form; it knows one of the two.
    async fn has_build_trace(&self) -> Result<bool> {
        let connection = self.connection().await?;
        Ok(connection.protocol().has(features::REALISATION_WITH_PATH))
    }

    async fn require_form(&self, new: bool) -> Result<()> {
        match (self.has_build_trace().await?, new) {
            (true, false) => Err(self.unsupported(
                "keeps realisations by the path of their derivation, not by its hash",
            )),
            (false, true) => Err(self.unsupported(
                "keeps realisations by the hash of their derivation, not by its path",
            )),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Realisations for DaemonStore {
    async fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        self.require_form(true).await?;
        match self.call(&QueryRealisation::New(id.clone())).await? {
            FoundRealisation::New(found) => Ok(found),
            FoundRealisation::Legacy(_) | FoundRealisation::Paths(_) => Ok(None),
        }
    }

    async fn register(&self, realisation: &Realisation, check: &SigCheck) -> Result<()> {
        self.require_form(true).await?;
        check.check_realisation(realisation)?;
        let request = RegisterDrvOutput::New(realisation.clone());
        self.call(&request).await
    }

    async fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        self.require_form(false).await?;
        Ok(
            match self.call(&QueryRealisation::Legacy(id.clone())).await? {
                FoundRealisation::Legacy(found) => found.into_iter().find(|found| found.id == *id),
                FoundRealisation::Paths(paths) => {
                    let path = paths.into_iter().next();
                    path.map(|path| legacy::LegacyRealisation::new(id.clone(), path))
                }
                FoundRealisation::New(_) => None,
            },
        )
    }

    async fn register_legacy(
        &self,
        realisation: &legacy::LegacyRealisation,
        check: &SigCheck,
    ) -> Result<()> {
        self.require_form(false).await?;
        check.check_legacy_realisation(realisation)?;
        let request = RegisterDrvOutput::Legacy(realisation.clone());
        self.call(&request).await
    }
}
