//! Whatever a daemon says, each question of a client comes to an end, and no path is told of that was not
//! asked for.
#![no_main]

use futures::StreamExt;
use libfuzzer_sys::fuzz_target;
use std::{collections::BTreeSet, fmt, io::Cursor, sync::Arc, time::Duration};
use tk_daemon::{
    DaemonConfig, DaemonStore,
    client::{Channel, Transport},
};
use tk_path::StorePath;
use tk_store::{Result, Store};

fuzz_target!(|input: &[u8]| {
    let Some((first, said)) = input.split_first() else {
        return;
    };
    let mut config = DaemonConfig::new("unix://");
    config.max_connections = 1;
    let transport = Arc::new(Said(said.to_vec()));
    let store = DaemonStore::new(transport, config);
    let path = |digit: &str| StorePath::parse(&format!("{}-x", digit.repeat(32))).expect("a path");
    let asked = BTreeSet::from([path("0"), path("1")]);
    let work = async {
        match first % 4 {
            0 => {
                if let Ok(valid) = store.valid(&asked).await {
                    assert!(valid.is_subset(&asked), "{valid:?}");
                }
            }
            1 => {
                let paths = futures::stream::iter(asked.clone()).boxed();
                let told: Vec<_> = store.infos(paths).collect().await;
                assert!(told.len() <= asked.len(), "{told:?}");
                for (path, info) in told.into_iter().flatten() {
                    assert!(asked.contains(&path), "{path}");
                    assert!(info.is_none_or(|info| info.path == path), "{path}");
                }
            }
            2 => {
                if let Ok(nar) = store.nar(&path("0")).await {
                    nar.for_each(async |chunk| drop(chunk)).await;
                }
            }
            _ => drop(store.server_info().await),
        }
    };
    tk_fuzz::wait(async {
        let ended = tokio::time::timeout(Duration::from_secs(10), work).await;
        ended.expect("it ends with the daemon");
    });
});

/// A daemon that says this and hangs up.
#[derive(Debug)]
struct Said(Vec<u8>);

#[async_trait::async_trait]
impl Transport for Said {
    async fn connect(&self) -> Result<Channel> {
        let reader = Cursor::new(self.0.clone());
        Ok(Channel::new(reader, tokio::io::sink()))
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a daemon of the fuzzer")
    }
}
