use crate::lock::{Cancel, LockKind, is_at, lock, open_lock_file, try_lock};
use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tk_path::{StoreDir, StorePath};
use tk_store::{Error, Result, SocketName};

/// Paths that this process uses and that must not be collected while it lives.
///
/// They stand in `<state>/temproots/<pid>`, each ended by a NUL, in a file that is locked as long
/// as the process lives (`gc.cc`). There is one such file per process and state folder, however
/// many stores are opened; and one more for each client of a server, `<pid>-<number>`, which goes
/// with the client. (Collectors read the number at the beginning of the name, and no further.)
#[derive(Debug)]
pub(crate) struct TempRoots {
    state: PathBuf,
    /// Of the name of its file, behind the number.
    suffix: String,
    inner: Mutex<TempRootsInner>,
}

#[derive(Debug, Default)]
struct TempRootsInner {
    file: Option<(PathBuf, File)>,
    collector: Option<UnixStream>,
    /// What stands in the file, each path as a number: with its key, nobody finds two that have the same.
    known: HashSet<u128>,
    key: RandomState,
    /// The length of the file in bytes, which is limited by [`MAX_BYTES`].
    bytes: u64,
}

impl TempRoots {
    /// The temporary roots of this process in the folder `state`.
    pub fn of(state: &Path) -> Arc<Self> {
        let state = state.canonicalize().unwrap_or_else(|_| state.to_owned());
        let mut all = registry();
        if let Some(roots) = all.get(&state).and_then(Weak::upgrade) {
            return roots;
        }
        let roots = Arc::new(TempRoots {
            state: state.clone(),
            suffix: String::new(),
            inner: Mutex::default(),
        });
        all.insert(state, Arc::downgrade(&roots));
        roots
    }

    /// The temporary roots of one client of this process: they end when this is dropped.
    pub fn of_client(&self) -> Arc<Self> {
        let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
        Arc::new(TempRoots {
            state: self.state.clone(),
            suffix: format!("-{number}"),
            inner: Mutex::default(),
        })
    }

    /// Makes `path` a root. When this returns, no collector will delete the path: neither one
    /// that begins later nor one that is at work now. It may have been deleted before.
    pub fn add(&self, dir: &StoreDir, path: &StorePath, cancel: &Cancel) -> Result<()> {
        self.add_all(dir, [path], cancel)
    }

    /// The same for several.
    pub fn add_all<'a>(
        &self,
        dir: &StoreDir,
        paths: impl IntoIterator<Item = &'a StorePath>,
        cancel: &Cancel,
    ) -> Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        inner.create(&self.state, &self.suffix)?;
        let (mut numbers, mut lines) = (HashSet::new(), Vec::new());
        for path in paths {
            let number = inner.number(path);
            if !inner.known.contains(&number) && numbers.insert(number) {
                lines.push(dir.path(path));
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        // First to the file, where the next collector finds them: between the answer of one that ends and a line
        // that is written after it, another one could begin. (Nix writes last.)
        inner.record(&lines)?;
        loop {
            cancel.check()?;
            // If nobody holds the lock alone, whoever takes it from now on reads the file. A collector at work
            // may have read it already, so it has to be told.
            if try_gc_lock(&self.state)?.is_some() {
                break;
            }
            let mut lines = lines.iter();
            match lines.try_for_each(|full| inner.tell_collector(&self.state, full)) {
                Ok(()) => break,
                // It has just begun, or has just ended.
                Err(_) => {
                    inner.collector = None;
                    std::thread::sleep(PAUSE);
                }
            }
        }
        inner.known.extend(numbers);
        Ok(())
    }
}

impl Drop for TempRoots {
    fn drop(&mut self) {
        let _all = registry();
        let inner = self.inner.get_mut().unwrap_or_else(|e| e.into_inner());
        if let Some((path, file)) = &inner.file
            && is_at(file, path)
        {
            // A file that stays is removed by the next collector.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl TempRootsInner {
    fn number(&self, path: &StorePath) -> u128 {
        let half = |n: u8| u128::from(self.key.hash_one((n, path)));
        half(0) << 64 | half(1)
    }

    /// Creates and locks the file, unless it is there.
    fn create(&mut self, state: &Path, suffix: &str) -> Result<()> {
        if let Some((path, file)) = &self.file {
            if is_at(file, path) {
                return Ok(());
            }
            // The store was made anew: these were of the old one.
            self.known.clear();
            self.bytes = 0;
        }
        let _all = registry();
        let path = own_file(&state.join("temproots"), suffix)?;
        // `own_file` found nobody who holds a file of this name: what is there is of a dead process.
        let file = loop {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(
                        format!("removing the stale {}", path.display()),
                        e,
                    ));
                }
                _ => {}
            }
            let file = open_lock_file(&path)?;
            lock(&file, &path, LockKind::Exclusive, &Cancel::default())?;
            // A collector that saw the file before its lock has removed it, and marked it.
            let meta = file.metadata();
            let meta = meta.map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
            if meta.size() == 0 && is_at(&file, &path) {
                break file;
            }
        };
        self.file = Some((path, file));
        Ok(())
    }

    /// Tells the collector at work, which answers when it is not about to delete the path.
    fn tell_collector(&mut self, state: &Path, full: &str) -> io::Result<()> {
        if self.collector.is_none() {
            let socket = state.join("gc-socket/socket");
            let name = SocketName::of(&socket)?;
            self.collector = Some(UnixStream::connect(name.as_path())?);
        }
        let socket = self.collector.as_mut().expect("it was connected above");
        socket.write_all(format!("{full}\n").as_bytes())?;
        let mut answer = [0];
        socket.read_exact(&mut answer)?;
        match answer {
            [b'1'] => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn record(&mut self, lines: &[String]) -> Result<()> {
        let (path, file) = self.file.as_mut().expect("it was created before");
        let text: String = lines.iter().flat_map(|full| [full, "\0"]).collect();
        let bytes = text.len() as u64;
        if self.bytes + bytes > MAX_BYTES {
            return Err(Error::invalid(format!(
                "{} is full: there are too many temporary roots",
                path.display()
            )));
        }
        self.bytes += bytes;
        file.write_all(text.as_bytes())
            .map_err(|e| Error::io(format!("writing {}", path.display()), e))
    }
}

/// The collector's lock, shared, unless a collector is at work. It is held until the result is dropped.
fn try_gc_lock(state: &Path) -> Result<Option<File>> {
    let path = state.join("gc.lock");
    let file = open_lock_file(&path)?;
    let taken = try_lock(&file, LockKind::Shared);
    let taken = taken.map_err(|e| Error::io(format!("locking {}", path.display()), e))?;
    Ok(taken.then_some(file))
}

/// The file that is named after this process, or after a number that no process has, if somebody in
/// another container with the same number holds it. To all versions of Nix each number will do.
fn own_file(folder: &Path, suffix: &str) -> Result<PathBuf> {
    let own = u64::from(std::process::id());
    for round in 0..ROUNDS {
        let number = own + round * MORE_THAN_PROCESSES;
        let path = folder.join(format!("{number}{suffix}"));
        let free = match File::open(&path) {
            Ok(file) => try_lock(&file, LockKind::Exclusive),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(e),
        };
        if free.map_err(|e| Error::io(format!("looking at {}", path.display()), e))? {
            return Ok(path);
        }
    }
    Err(Error::invalid(format!(
        "all files in {} for the roots of process {own} are in use",
        folder.display()
    )))
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(|e| e.into_inner())
}

type Registry = BTreeMap<PathBuf, Weak<TempRoots>>;

static REGISTRY: Mutex<Registry> = Mutex::new(BTreeMap::new());
static CLIENTS: AtomicU64 = AtomicU64::new(1);

/// What one client, or one process, may write: a closure of a million paths.
const MAX_BYTES: u64 = 128 << 20;

const PAUSE: Duration = Duration::from_millis(100);
/// The largest number of a process, and one (`PID_MAX_LIMIT`).
const MORE_THAN_PROCESSES: u64 = 1 << 22;
/// So that the largest name is a number that Nix can read.
const ROUNDS: u64 = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::BufRead, os::unix::net::UnixListener};

    fn path(name: &str) -> StorePath {
        StorePath::from_digest(&[1; 20], name).unwrap()
    }

    fn state() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("temproots")).unwrap();
        let file = dir.path().join(format!("temproots/{}", std::process::id()));
        (dir, file)
    }

    fn add(roots: &TempRoots, name: &str) -> Result<()> {
        roots.add(&StoreDir::default(), &path(name), &Cancel::default())
    }

    #[test]
    fn one_file_for_all_stores_of_a_process() {
        let (state, file) = state();
        std::fs::write(&file, "of a dead process that had our number").unwrap();
        let (one, two) = (TempRoots::of(state.path()), TempRoots::of(state.path()));
        add(&one, "a").unwrap();
        add(&two, "b").unwrap();
        add(&two, "a").unwrap();
        let dir = StoreDir::default();
        let expected = format!("{}\0{}\0", dir.path(&path("a")), dir.path(&path("b")));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
        let other = File::open(&file).unwrap();
        assert!(!try_lock(&other, LockKind::Shared).unwrap());
        drop(one);
        assert!(file.exists());
        drop(two);
        assert!(!file.exists());
    }

    #[test]
    fn roots_of_a_client_end_with_it() {
        let (state, file) = state();
        let process = TempRoots::of(state.path());
        add(&process, "a").unwrap();
        let (one, two) = (process.of_client(), process.of_client());
        add(&one, "a").unwrap();
        add(&two, "b").unwrap();
        let names = || {
            let entries = file.parent().unwrap().read_dir().unwrap();
            let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        let pid = std::process::id().to_string();
        assert_eq!(names().len(), 3);
        // As std::stoi reads them, which Nix's collector uses.
        let number = |name: &String| name.split('-').next() == Some(&pid);
        assert!(names().iter().all(number), "{:?}", names());
        drop(one);
        assert_eq!(names().len(), 2);
        drop(two);
        assert_eq!(names(), [pid]);
    }

    #[test]
    fn a_collector_at_work_is_told() {
        let (state, file) = state();
        let gc = open_lock_file(&state.path().join("gc.lock")).unwrap();
        assert!(try_lock(&gc, LockKind::Exclusive).unwrap());
        let roots = TempRoots::of(state.path());
        let adding = std::thread::spawn({
            let roots = roots.clone();
            move || add(&roots, "a").and_then(|()| add(&roots, "b"))
        });
        // The collector takes its time to open the socket, and hangs up on the first client.
        std::thread::sleep(Duration::from_millis(50));
        std::fs::create_dir(state.path().join("gc-socket")).unwrap();
        let listener = UnixListener::bind(state.path().join("gc-socket/socket")).unwrap();
        drop(listener.accept().unwrap());
        let (client, _) = listener.accept().unwrap();
        let mut lines = io::BufReader::new(client.try_clone().unwrap()).lines();
        for name in ["a", "b"] {
            let told = lines.next().unwrap().unwrap();
            assert_eq!(told, StoreDir::default().path(&path(name)));
            (&client).write_all(b"1").unwrap();
        }
        adding.join().unwrap().unwrap();
        assert_eq!(
            std::fs::read(&file)
                .unwrap()
                .iter()
                .filter(|b| **b == 0)
                .count(),
            2
        );
    }

    #[test]
    fn waiting_for_a_collector_can_be_cancelled() {
        let (state, _) = state();
        let gc = open_lock_file(&state.path().join("gc.lock")).unwrap();
        assert!(try_lock(&gc, LockKind::Exclusive).unwrap());
        let roots = TempRoots::of(state.path());
        let cancel = Cancel::default();
        drop(cancel.on_drop());
        assert!(
            roots
                .add(&StoreDir::default(), &path("a"), &cancel)
                .is_err()
        );
    }

    #[test]
    fn a_state_folder_that_is_missing_is_named() {
        let roots = TempRoots::of(Path::new("/nonexistent/state"));
        let line = add(&roots, "a").unwrap_err().to_line();
        assert!(line.contains("/nonexistent/state"), "{line}");
    }
}
