use super::{
    Server, ServerEvent, SocketPeer,
    clients::{AdmittedClient, Clients, NewClient},
    session::Seat,
    socket::Socket,
};
use crate::worker::Trust;
use futures::{StreamExt, stream::FuturesUnordered};
use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tk_store::{Error, Result, SocketName, own_thread};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Handle,
    sync::watch,
    time::{sleep, timeout},
};

/// A socket at `path` that everybody can connect to whom `mode` lets, such as 0o666. What a dead
/// server left there is replaced in one step. The name lasts as long as the second result.
///
/// # Errors
/// When somebody answers at `path`, when something else than a socket is there, or when the folder
/// cannot be written.
pub async fn bind(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile)> {
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
    // In a folder of its own, which nobody else can look into: nobody connects before the mode is right.
    let folder = beside(path);
    let temporary = folder.join("s");
    let left_over = || {
        let _ = fs::remove_file(&temporary);
        let _ = fs::remove_dir(&folder);
    };
    // The name has the number of this process in it, and a dead process may have had the same.
    left_over();
    let make = || {
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let name = SocketName::of(&temporary)?;
        let listener = UnixListener::bind(name.as_path())?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: identity(&temporary)?,
        };
        fs::rename(&temporary, path)?;
        Ok((listener, file))
    };
    let made = make();
    left_over();
    made.map_err(doing)
}

/// The name of a listening socket. Dropping it removes the name, unless somebody else's socket has it by now.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Which file it is, whatever its name: device, number, and when it was made, since numbers are used again.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
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
        let clients = Clients::new(self.config.max_connections, self.config.idle_limit);
        let _end = StopOnDrop(clients.clone());
        tokio::pin!(stop);
        loop {
            while let Some(admitted) = clients.admit() {
                self.start(admitted, stopping.clone());
            }
            // How long somebody was silent changes without any event, so while others wait it is looked
            // at again.
            let crowded = clients.make_room();
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = clients.left.notified() => {}
                () = sleep(RETRY), if crowded => {}
                accepted = accept(&listeners) => match accepted {
                    Ok(stream) => self.arrived(stream, &clients),
                    Err(error) => {
                        self.not_accepted(&error.to_string());
                        // Out of file descriptors, perhaps: time helps, a loop does not.
                        sleep(RETRY).await;
                    }
                }
            }
        }
        drop(listeners);
        let _ = stopped.send(true);
        // The channel reaches connections that are tasks. Threads that wait in their socket hear nothing
        // of it: those are ended through the socket.
        clients.stop();
        let all_left = async {
            while clients.count() > 0 {
                clients.left.notified().await;
            }
        };
        tokio::pin!(all_left);
        if timeout(self.config.grace, &mut all_left).await.is_err() {
            clients.end();
            let _ = timeout(RETRY, all_left).await;
        }
    }

    fn arrived(&self, stream: UnixStream, clients: &Clients) {
        // Without credentials nobody is trusted.
        let peer = SocketPeer::of(&stream).ok();
        let trusted = peer.is_some_and(|peer| self.config.trust.trusts(&peer));
        let blocking = stream.into_std().and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        match blocking {
            Ok(stream) => {
                let arrived = NewClient {
                    stream,
                    peer,
                    trusted,
                };
                if !clients.arrive(arrived) {
                    let who = peer.map_or_else(|| "somebody".into(), |p| format!("user {}", p.uid));
                    self.not_accepted(&format!("too many connections of {who} wait"));
                }
            }
            Err(error) => self.not_accepted(&error.to_string()),
        }
    }

    /// Serves the connection on a thread of its own, or as a task where there are no more threads.
    fn start(&self, admitted: AdmittedClient, stopping: watch::Receiver<bool>) {
        let runtime = Handle::current();
        // Shared, since a closure is lost when its thread cannot be started, and the client would be with
        // it.
        let work = Arc::new(Mutex::new(Some((admitted, stopping))));
        let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(|e| e.into_inner()).take();
        let (server, given) = (self.clone(), work.clone());
        let thread = std::thread::Builder::new().name("connection".to_owned());
        let thread = thread.spawn(move || {
            if let Some((admitted, stopping)) = take(&given) {
                own_thread::enter(|| {
                    runtime.block_on(Box::pin(server.connection(admitted, true, stopping)));
                });
            }
        });
        if thread.is_err()
            && let Some((admitted, stopping)) = take(&work)
        {
            let server = self.clone();
            tokio::spawn(async move { server.connection(admitted, false, stopping).await });
        }
    }

    async fn connection(
        &self,
        admitted: AdmittedClient,
        own_thread: bool,
        stopping: watch::Receiver<bool>,
    ) {
        let trust = if admitted.trusted {
            Trust::Trusted
        } else {
            Trust::NotTrusted
        };
        let socket = Socket::new(admitted.stream.clone());
        let seat = Seat {
            admitted,
            socket: own_thread.then(|| socket.clone()),
        };
        // The observer was told how it ended.
        let _ = self
            .serve_until(socket.clone(), socket, trust, Some(seat), stopping)
            .await;
    }

    fn not_accepted(&self, error: &str) {
        let event = ServerEvent::NotAccepted { error };
        self.config.observer.event(0, event);
    }
}

/// Threads of connections do not end with a future that is dropped.
struct StopOnDrop(Arc<Clients>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.end();
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
        let (first, file) = bind(&path, 0o666).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let error = bind(&path, 0o666).await.unwrap_err().to_line();
        assert!(error.ends_with("another server answers there"), "{error}");
        drop(first);
        assert!(path.exists());
        let (_listener, second) = bind(&path, 0o600).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "no temporary name is left");
        drop(file);
        assert!(path.exists(), "the name is another one's by now");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_path_may_be_longer_than_the_name_of_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("socket");
        let (first, _file) = bind(&path, 0o666).await.unwrap();
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
