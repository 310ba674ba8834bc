//! Whatever a client of the worker protocol says, the server comes to an end when the client hangs up; and
//! without trust nothing is in the store afterwards that does not prove itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::{io::Cursor, sync::Arc, time::Duration};
use tk_daemon::{
    server::{Server, ServerConfig},
    worker::Trust,
};
use tk_store::{Abilities, Graph, MemoryStore, Store, StoreExt};

fuzz_target!(|input: &[u8]| {
    let Some((first, said)) = input.split_first() else {
        return;
    };
    let trust = match first % 2 {
        0 => Trust::Trusted,
        _ => Trust::NotTrusted,
    };
    tk_fuzz::wait(async {
        let store = Arc::new(MemoryStore::default());
        let abilities = Abilities {
            content: Some(store.clone()),
            signatures: Some(store.clone()),
            graph: Some(store.clone()),
            ..Abilities::of(store.clone())
        };
        let server = Server::new(abilities, ServerConfig::default());
        let client = Cursor::new(said.to_vec());
        let served = server.serve(client, tokio::io::sink(), trust);
        let ended = tokio::time::timeout(Duration::from_secs(10), served).await;
        let _ = ended.expect("it ends with the client");
        if trust == Trust::NotTrusted {
            for path in store.all_paths().await.expect("memory") {
                let info = store.info(&path).await.expect("memory").expect("listed");
                assert!(info.is_content_addressed(store.dir()), "{path}");
            }
        }
    });
});
