use super::{Peer, Server, ServerEvent};
use crate::worker::Trust;
use futures::{StreamExt, stream::FuturesUnordered};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tk_store::{Error, Result, SocketName};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// A socket at `path` that everybody can connect to whom `mode` lets, such as 0o666. What a dead
/// server left there is replaced in one step.
///
/// # Errors
/// When somebody answers at `path`, when something else than a socket is there, or when the folder
/// cannot be written.
pub async fn bind(path: &Path, mode: u32) -> Result<UnixListener> {
    let doing = |e| Error::io(format!("listening at {}", path.display()), e);
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(doing(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            let why = "something else than a socket is there";
            return Err(doing(io::Error::new(io::ErrorKind::AlreadyExists, why)));
        }
        Ok(_) => {
            // A full queue of a living server does not refuse, it lets wait.
            let name = SocketName::of(path).map_err(doing)?;
            let answer = timeout(ANSWER, UnixStream::connect(name.as_path())).await;
            if !matches!(&answer, Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused) {
                let why = "another server answers there";
                return Err(doing(io::Error::new(io::ErrorKind::AddrInUse, why)));
            }
        }
    }
    let temporary = beside(path);
    let _ = fs::remove_file(&temporary);
    let name = SocketName::of(&temporary).map_err(doing)?;
    let bound = UnixListener::bind(name.as_path()).and_then(|listener| {
        fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
        fs::rename(&temporary, path)?;
        Ok(listener)
    });
    bound.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        doing(e)
    })
}

/// A name in the same folder that no other process takes. Names of sockets are short.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(std::process::id().to_string());
    path.with_file_name(name)
}

impl Server {
    /// Serves everybody who connects, until `stop` is done. Then no more connections are taken,
    /// idle ones are closed, and running requests have [`ServerConfig::grace`].
    ///
    /// [`ServerConfig::grace`]: super::ServerConfig::grace
    pub async fn listen(&self, listeners: Vec<UnixListener>, stop: impl Future<Output = ()>) {
        let (stopped, stopping) = watch::channel(false);
        let room = Arc::new(Semaphore::new(self.config.max_connections.max(1)));
        let mut connections = JoinSet::new();
        tokio::pin!(stop);
        let mut number = 0;
        loop {
            let accept = async {
                // The semaphore is never closed.
                let place = room.clone().acquire_owned().await.ok();
                (accept(&listeners).await, place)
            };
            let (accepted, place) = tokio::select! {
                biased;
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept => accepted,
            };
            match accepted {
                Ok(stream) => {
                    number += 1;
                    let (server, stopping) = (self.clone(), stopping.clone());
                    connections.spawn(async move {
                        server.connection(stream, number, stopping).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    let error = error.to_string();
                    let event = ServerEvent::NotAccepted { error: &error };
                    self.config.observer.event(0, event);
                    // Out of file descriptors, perhaps: time helps, a loop does not.
                    sleep(RETRY).await;
                }
            }
        }
        drop(listeners);
        let _ = stopped.send(true);
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(self.config.grace, all).await;
        connections.shutdown().await;
    }

    async fn connection(&self, stream: UnixStream, number: u64, stopping: watch::Receiver<bool>) {
        // Without credentials nobody is trusted.
        let peer = Peer::of(&stream).ok();
        let trust = match peer.is_some_and(|peer| self.config.trust.trusts(&peer)) {
            true => Trust::Trusted,
            false => Trust::NotTrusted,
        };
        let (reader, writer) = stream.into_split();
        // The observer was told how it ended.
        let _ = self
            .serve_until(reader, writer, trust, (number, peer), stopping)
            .await;
    }
}

async fn accept(listeners: &[UnixListener]) -> io::Result<UnixStream> {
    let mut any: FuturesUnordered<_> = listeners.iter().map(UnixListener::accept).collect();
    match any.next().await {
        Some(accepted) => accepted.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// How long somebody who listens has to answer.
const ANSWER: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = bind(&path, 0o666).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let error = bind(&path, 0o666).await.unwrap_err().to_line();
        assert!(error.ends_with("another server answers there"), "{error}");
        drop(first);
        assert!(path.exists());
        let _second = bind(&path, 0o600).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "no temporary name is left");
    }

    #[tokio::test]
    async fn a_path_may_be_longer_than_the_name_of_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("socket");
        let first = bind(&path, 0o666).await.unwrap();
        let error = bind(&path, 0o666).await.unwrap_err().to_line();
        assert!(error.ends_with("another server answers there"), "{error}");
        drop(first);
        let _second = bind(&path, 0o600).await.unwrap();
        let name = SocketName::of(&path).unwrap();
        UnixStream::connect(name.as_path()).await.unwrap();
    }

    #[tokio::test]
    async fn files_and_missing_folders_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = bind(&file, 0o666).await.unwrap_err().to_line();
        assert!(error.contains("something else than a socket"), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(bind(&folder.path().join("no/socket"), 0o666).await.is_err());
    }
}
