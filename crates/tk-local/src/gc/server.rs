//! The socket to which temporary roots are told while a collection is at work.

use super::fate::Fate;
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    fs::{self, Permissions},
    io::{self, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tk_path::{HashPart, StoreDir};
use tk_store::{Error, Result, SocketName};

/// Answers on `<state>/gc-socket/socket` as long as it exists: to each line, the full path of a new temporary
/// root, with the byte `1`, once the path is safe or gone.
///
/// # Security
/// Every user of the machine may connect. Who says what is no path gets the answer too, as from Nix; who
/// sends lines that are too long, or takes no answers, is hung up on.
pub(super) struct RootServer {
    shared: Arc<SharedFate>,
    /// The thread ends when this is closed.
    wake: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct SharedFate {
    fate: Mutex<Fate>,
    released: Condvar,
    /// When somebody was answered last.
    answered: Mutex<Option<Instant>>,
}

impl RootServer {
    pub fn start(state: &Path, dir: &StoreDir) -> Result<Self> {
        let socket = state.join("gc-socket/socket");
        let failed = |e| Error::io(format!("listening on {}", socket.display()), e);
        let listener = listen(&socket).map_err(failed)?;
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let shared = Arc::new(SharedFate::default());
        let mut answering = Answering {
            shared: shared.clone(),
            dir: dir.clone(),
            listener,
            woken,
            clients: Vec::new(),
        };
        let builder = thread::Builder::new().name("gc-socket".to_owned());
        let thread = builder.spawn(move || answering.run()).map_err(failed)?;
        Ok(RootServer {
            shared,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// What becomes of each path; held until the result is dropped.
    pub fn fate(&self) -> MutexGuard<'_, Fate> {
        self.shared.lock()
    }

    /// Says that all that was condemned is gone.
    pub fn release(&self) {
        self.fate().release();
        self.shared.released.notify_all();
    }
}

impl Drop for RootServer {
    fn drop(&mut self) {
        self.release();
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.wait_for_the_last();
    }
}

impl SharedFate {
    fn lock(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn answered(&self) -> MutexGuard<'_, Option<Instant>> {
        self.answered.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits until whoever was answered has had time to write the path into its file: Nix does it after the
    /// answer, and a collector that begins in between would not know the path.
    fn wait_for_the_last(&self) {
        let last = *self.answered();
        let left = last.and_then(|last| GRACE.checked_sub(last.elapsed()));
        thread::sleep(left.unwrap_or_default());
    }

    /// When this returns, the path is kept or gone.
    fn keep(&self, part: HashPart) {
        let mut fate = self.lock();
        fate.add_temporary(part);
        while fate.is_condemned(&part) {
            fate = self.released.wait(fate).unwrap_or_else(|e| e.into_inner());
        }
    }
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    // Of an earlier collection: `gc.lock` is held, so nobody listens there.
    match fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let name = SocketName::of(socket)?;
    let listener = UnixListener::bind(name.as_path())?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(socket, Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// The thread that answers everybody. It waits with one of them while a batch goes, which does not take long.
struct Answering {
    shared: Arc<SharedFate>,
    dir: StoreDir,
    listener: UnixListener,
    woken: UnixStream,
    clients: Vec<RootClient>,
}

struct RootClient {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Answering {
    fn run(&mut self) {
        while let Ok(ready) = self.wait() {
            let [woken, knocked, clients @ ..] = &*ready else {
                return;
            };
            if *woken {
                return;
            }
            let mut ready = clients.iter();
            let (shared, dir) = (&self.shared, &self.dir);
            self.clients.retain_mut(|client| {
                !ready.next().copied().unwrap_or(false) || client.answer(dir, shared).is_ok()
            });
            if *knocked {
                self.accept();
            }
        }
    }

    /// Which have something to read: the waker, the listener, and each client.
    fn wait(&self) -> io::Result<Vec<bool>> {
        let waited = PollFlags::IN;
        let mut all = vec![
            PollFd::new(&self.woken, waited),
            PollFd::new(&self.listener, waited),
        ];
        all.extend(self.clients.iter().map(|c| PollFd::new(&c.stream, waited)));
        loop {
            match poll(&mut all, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(all.iter().map(|fd| !fd.revents().is_empty()).collect()),
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            // One too many is hung up on: it asks again.
            if self.clients.len() < MOST_CLIENTS && stream.set_nonblocking(true).is_ok() {
                let line = Vec::new();
                self.clients.push(RootClient { stream, line });
            }
        }
    }
}

impl RootClient {
    /// Reads what is there, and answers each line; an error if the client is done or does not keep the rules.
    fn answer(&mut self, dir: &StoreDir, shared: &SharedFate) -> io::Result<()> {
        let mut bytes = [0; MAX_LINE];
        let read = match self.stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        };
        for part in bytes[..read].split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.line.pop_if(|last| *last == b'\n').is_none() {
                break;
            }
            let path = std::str::from_utf8(&self.line).ok();
            if let Some(Ok(path)) = path.map(|path| dir.parse_canonical(path)) {
                shared.keep(path.to_hash_part());
                *shared.answered() = Some(Instant::now());
            }
            self.line.clear();
            self.stream.write_all(b"1")?;
        }
        Ok(())
    }
}

/// Bytes of a line, and of what is read at once.
const MAX_LINE: usize = 4096;
const MOST_CLIENTS: usize = 4096;
const GRACE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use tk_path::StorePath;

    #[test]
    fn clients_are_answered() {
        let state = tempfile::tempdir().unwrap();
        let dir = StoreDir::default();
        let server = RootServer::start(state.path(), &dir).unwrap();
        let socket = state.path().join("gc-socket/socket");
        let path = StorePath::from_digest(&[7; 20], "x").unwrap();
        let mut one = UnixStream::connect(&socket).unwrap();
        let mut two = UnixStream::connect(&socket).unwrap();
        let mut answer = [0; 2];
        // In parts, and several at once; what is no path too.
        two.write_all(b"/nix/sto").unwrap();
        one.write_all(format!("{}\nnonsense\n", dir.path(&path)).as_bytes())
            .unwrap();
        one.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"11");
        assert!(server.fate().is_temporary(&path.to_hash_part()));
        // Who writes without end is hung up on, the others are not.
        let mut long = UnixStream::connect(&socket).unwrap();
        let _ = long.write_all(&[b'x'; 3 * MAX_LINE]);
        assert!(!matches!(long.read(&mut answer), Ok(1..)));
        two.write_all(b"re/x\n").unwrap();
        two.read_exact(&mut answer[..1]).unwrap();
        drop(server);
        assert!(matches!(one.read(&mut answer), Ok(0)));
        assert!(UnixStream::connect(&socket).is_err());
    }

    #[test]
    fn who_wants_what_is_going_waits_until_it_is_gone() {
        let state = tempfile::tempdir().unwrap();
        let dir = StoreDir::default();
        let server = RootServer::start(state.path(), &dir).unwrap();
        let path = StorePath::from_digest(&[7; 20], "x").unwrap();
        assert!(server.fate().condemn_name(Some(path.to_hash_part())));
        let mut client = UnixStream::connect(state.path().join("gc-socket/socket")).unwrap();
        client
            .write_all(format!("{}\n", dir.path(&path)).as_bytes())
            .unwrap();
        client.set_nonblocking(true).unwrap();
        while !server.fate().is_temporary(&path.to_hash_part()) {
            thread::yield_now();
        }
        let mut answer = [0];
        assert!(client.read(&mut answer).is_err());
        server.release();
        client.set_nonblocking(false).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert!(!server.fate().condemn_name(Some(path.to_hash_part())));
    }
}
