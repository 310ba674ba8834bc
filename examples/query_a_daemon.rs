//! Asks a daemon about a path: how large it is with all that it refers to.
//!
//!     cargo run --example query_a_daemon -- /nix/var/nix/daemon-socket/socket /nix/store/HASH-NAME

use std::{path::Path, sync::Arc};
use tk_daemon::{DaemonConfig, DaemonStore, UnixTransport};
use tk_store::{Result, Store, StoreExt, closure};

/// Returns what there is to say of `path`.
pub async fn query(socket: &Path, path: &str) -> Result<String> {
    let config = DaemonConfig::new(format!("unix://{}", socket.display()));
    let daemon = DaemonStore::new(Arc::new(UnixTransport::new(socket)), config);
    let Ok(path) = daemon.dir().parse(path) else {
        return Ok(format!("{path} is not a store path"));
    };
    // An error is never an answer: `None` means that the daemon does not have the path.
    let Some(info) = daemon.info(&path).await? else {
        return Ok(format!("{daemon} does not have {path}"));
    };
    let whole = closure(&daemon, [path]).await?;
    let size: u64 = whole.infos.values().map(|info| info.nar_size).sum();
    let (name, paths) = (info.path.name(), whole.infos.len());
    Ok(format!(
        "{name}: {} bytes; {paths} paths with {size} bytes in all",
        info.nar_size
    ))
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, socket, path] = &arguments[..] else {
        panic!("two arguments are wanted: SOCKET PATH");
    };
    println!("{}", query(Path::new(socket), path).await?);
    Ok(())
}
