use super::DaemonStore;
use crate::worker::ops::{QuerySubstitutablePathInfos, QuerySubstitutablePaths, QueryValidPaths};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use tk_path::{ContentAddress, StorePath};
use tk_store::{Result, SubstitutablePathInfo, Substitute, log::LogSink};

#[async_trait]
impl Substitute for DaemonStore {
    /// Daemons before 1.27 fetch nothing here.
    async fn valid_or_fetched(
        &self,
        paths: &BTreeSet<StorePath>,
        log: &dyn LogSink,
    ) -> Result<BTreeSet<StorePath>> {
        let request = QueryValidPaths {
            paths: paths.clone(),
            substitute: true,
        };
        let mut connection = self.connection().await?;
        let mut valid = connection.call_slowly(&request, log).await?;
        valid.retain(|path| paths.contains(path));
        Ok(valid)
    }

    async fn substitutable_paths(
        &self,
        paths: &BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>> {
        let paths = paths.clone();
        self.call(&QuerySubstitutablePaths { paths }).await
    }

    async fn substitutable_infos(
        &self,
        paths: &BTreeMap<StorePath, Option<ContentAddress>>,
    ) -> Result<BTreeMap<StorePath, SubstitutablePathInfo>> {
        let paths = paths.clone();
        self.call(&QuerySubstitutablePathInfos { paths }).await
    }
}
