//! What a store is, for `store info`.

use super::Opened;
use anyhow::Result;
use std::time::{Duration, Instant};
use tk_daemon::worker::Trust;
use tk_path::StoreDir;

/// What can be said of a store itself; `None` where its kind has no such thing, or does not tell.
#[derive(Debug)]
pub struct Info {
    pub url: String,
    pub kind: &'static str,
    pub dir: StoreDir,
    /// Of the Nix at the other end.
    pub version: Option<String>,
    /// Its name and version.
    pub protocol: Option<String>,
    /// Those of the protocol that both ends have.
    pub features: Option<Vec<String>>,
    /// Whether the other end trusts us.
    pub trusted: Option<bool>,
    pub writable: Option<bool>,
    pub priority: Option<i32>,
    pub want_mass_query: Option<bool>,
    /// The time of the shortest question and its answer, of what is not on this machine.
    pub latency: Option<Duration>,
}

impl Opened {
    /// Asks the store what it is.
    pub async fn info(&self) -> Result<Info> {
        let store = self.store();
        let mut info = Info {
            url: store.to_string(),
            kind: "",
            dir: store.dir().clone(),
            version: None,
            protocol: None,
            features: None,
            trusted: None,
            writable: None,
            priority: None,
            want_mass_query: None,
            latency: None,
        };
        match self {
            Opened::Several(..) | Opened::Absent(_) => info.kind = "several stores",
            Opened::Local(local) => {
                info.kind = "local";
                info.writable = Some(!local.config().read_only);
                info.trusted = Some(true);
            }
            Opened::Cache(cache) => {
                info.kind = "binary cache";
                let said = cache.cache_info().await?;
                info.priority = said.priority;
                info.want_mass_query = said.want_mass_query;
                if cache.folder().is_none() {
                    let start = Instant::now();
                    cache.read_cache_info().await?;
                    info.latency = Some(start.elapsed());
                }
            }
            Opened::Daemon(daemon) => {
                let said = daemon.server_info().await?;
                info.kind = "daemon";
                info.version = said.nix_version;
                info.protocol = Some(format!("worker {}", said.version));
                info.features = Some(said.features.iter().map(str::to_owned).collect());
                info.trusted = said.trust.map(|trust| trust == Trust::Trusted);
                info.latency = Some(said.latency);
                return Ok(info);
            }
            Opened::Serve(serve) => {
                let said = serve.server_info().await?;
                info.kind = "ssh";
                info.protocol = Some(format!("serve 2.{}", said.minor));
                info.latency = Some(said.latency);
                return Ok(info);
            }
        }
        Ok(info)
    }
}
