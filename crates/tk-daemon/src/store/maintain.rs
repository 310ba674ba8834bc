use super::DaemonStore;
use crate::worker::ops::{OptimiseStore, VerifyStore};
use async_trait::async_trait;
use tk_store::{Maintain, Result, log::LogSink};

#[async_trait]
impl Maintain for DaemonStore {
    async fn optimise(&self, log: &dyn LogSink) -> Result<()> {
        self.call_logged(&OptimiseStore {}, log).await.map(drop)
    }

    async fn verify(&self, contents: bool, repair: bool, log: &dyn LogSink) -> Result<bool> {
        let request = VerifyStore {
            check_contents: contents,
            repair,
        };
        self.call_logged(&request, log).await
    }
}
