//! The in-memory store passes the suite that every store must pass.

use tk_path::StoreDir;
use tk_store::{MemoryStore, conformance};

#[tokio::test]
async fn memory_store_conforms() {
    conformance::run(|| async { MemoryStore::default() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_store_of_another_directory_conforms() {
    let dir = StoreDir::new("/opt/store").unwrap();
    conformance::run(|| async { MemoryStore::new(dir.clone()) }).await;
}

#[tokio::test]
async fn memory_store_knows_the_graph_and_realisations() {
    conformance::run_graph(|| async { MemoryStore::default() }).await;
    conformance::run_realisations(|| async { MemoryStore::default() }).await;
    conformance::run_legacy_realisations(|| async { MemoryStore::default() }).await;
}
