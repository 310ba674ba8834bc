use super::DaemonStore;
use crate::worker::ops::{
    CollectGarbage as Collect, Op, QueryAllValidPaths, QueryDerivationOutputMap,
    QueryDerivationOutputNames, QueryDerivationOutputs, QueryReferrers, QueryValidDerivers,
};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use tk_path::{OutputName, StorePath};
use tk_store::{Error, GarbageCollector, GcOptions, GcReport, Graph, Result, log::LogSink};

#[async_trait]
impl Graph for DaemonStore {
    async fn all_paths(&self) -> Result<BTreeSet<StorePath>> {
        self.call(&QueryAllValidPaths {}).await
    }

    async fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        self.call(&QueryReferrers { path: path.clone() }).await
    }

    async fn valid_derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        self.call(&QueryValidDerivers { path: path.clone() }).await
    }

    async fn output_map(&self, drv: &StorePath) -> Result<BTreeMap<OutputName, Option<StorePath>>> {
        let mut connection = self.connection().await?;
        let path = drv.clone();
        let answer = if Op::QueryDerivationOutputMap.supported(connection.protocol()) {
            let request = QueryDerivationOutputMap { path };
            connection.call(&request, self.log()).await
        } else {
            let names = QueryDerivationOutputNames { path: path.clone() };
            match connection.call(&names, self.log()).await {
                Err(error) => Err(error),
                Ok(names) => {
                    let outputs = QueryDerivationOutputs { path };
                    let outputs = connection.call(&outputs, self.log()).await?;
                    Ok(by_name(drv, names, &outputs))
                }
            }
        };
        drop(connection);
        match answer {
            Ok(outputs) => Ok(outputs),
            Err(error) => Err(self.or_not_found(error, drv).await),
        }
    }
}

#[async_trait]
impl GarbageCollector for DaemonStore {
    async fn collect_garbage(&self, options: &GcOptions, log: &dyn LogSink) -> Result<GcReport> {
        if options.skip_live || options.keep_newer_than.is_some() {
            return Err(Error::Unsupported {
                store: self.to_string(),
                what: "collects garbage only as a whole, whatever its age".to_owned(),
            });
        }
        self.call_logged(&Collect::from(options.clone()), log).await
    }
}

/// Which of `outputs` each name is: paths are named after the derivation and the output.
fn by_name(
    drv: &StorePath,
    names: BTreeSet<OutputName>,
    outputs: &BTreeSet<StorePath>,
) -> BTreeMap<OutputName, Option<StorePath>> {
    let drv = drv.name().strip_suffix(".drv").unwrap_or(drv.name());
    let find = |name: OutputName| {
        let wanted = name.path_name(drv);
        let path = outputs.iter().find(|path| path.name() == wanted).cloned();
        (name, path)
    };
    names.into_iter().map(find).collect()
}
