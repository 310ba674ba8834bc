//! The programs of `examples/`, each run.

#[path = "../examples/query_a_daemon.rs"]
#[allow(dead_code, reason = "a program's main")]
mod query_a_daemon;
#[path = "../examples/write_a_store.rs"]
mod write_a_store;

use crate::support::made;
use query_a_daemon::query;
use std::{future::pending, sync::Arc};
use tempfile::TempDir;
use tk_daemon::server::{Server, ServerConfig, bind};
use tk_local::{LocalConfig, LocalStore};
use tk_store::{Error, MemoryStore, SigCheck, Store, StoreExt, nar};
use write_a_store::LimitedStore;

#[test]
fn write_a_store() {
    write_a_store::main();
}

#[tokio::test]
async fn a_written_store_has_its_limit() {
    let store = LimitedStore(MemoryStore::default(), 1000);
    for (name, size, fits) in [("small", 100, true), ("large", 2000, false)] {
        let (info, content) = made::sample(name, &vec![1; size]);
        let path = info.path.clone();
        let added = store
            .add_one(info, nar::from_bytes(content), &SigCheck::Skip.into())
            .await;
        assert_eq!(store.info(&path).await.unwrap().is_some(), fits);
        assert!(
            fits || matches!(added, Err(Error::Invalid { .. })),
            "{added:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn query_a_daemon() {
    let folder = TempDir::new().unwrap();
    let config = LocalConfig::chroot(folder.path());
    let store = LocalStore::open(config).await.unwrap();
    let (info, content) = made::sample("asked", b"content");
    let path = store.dir().path(&info.path);
    let size = info.nar_size;
    store
        .add_one(info, nar::from_bytes(content), &SigCheck::Skip.into())
        .await
        .unwrap();
    let socket = folder.path().join("socket");
    let (listener, _file) = bind(&socket, 0o600).await.unwrap();
    let server = Server::new(Arc::new(store).abilities(), ServerConfig::default());
    let absent = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-absent";
    let asking = async {
        let said = query(&socket, &path).await.unwrap();
        assert_eq!(
            said,
            format!("asked: {size} bytes; 1 paths with {size} bytes in all")
        );
        let said = query(&socket, absent).await.unwrap();
        assert!(said.contains("does not have"), "{said}");
        assert!(query(&folder.path().join("nothing"), absent).await.is_err());
    };
    tokio::select! {
        () = asking => {}
        () = server.listen(vec![listener], pending()) => panic!("the server ended"),
    }
}
