//! Equal files are made one.
//!
//! `<store>/.links/HASH` is a further name of a file with that content: HASH is the SHA-256 of the NAR of
//! the file alone, in nix32, so that the executable bit counts and links have entries too. A file of which
//! there is an entry already is replaced by a further name of that one (`optimise-store.cc`):
//!
//! 1. The file gets the entry's name. If there is one already,
//! 2. `<store>/.tmp-link-…` becomes a further name of the entry, and
//! 3. it is renamed to the file, so that at each moment there is one whole file.
//!
//! Files that their owner may write are left alone: somebody means to. An entry of another size than the
//! file is no good and goes away. Other than Nix, we also read an entry before we trust it, so that a damaged
//! one never takes the place of a whole file.
//!
//! All names are looked up in open folders, never by the whole path: whoever puts another tree in place
//! of the one that is being worked on does not get files of the old one into it.

use crate::{
    LocalStore,
    canonical::CANONICAL_TIMES,
    inner::LocalInner,
    links::LinksFolder,
    lock::OutputLock,
    roots::TempRoots,
    telling::{ACTIVITY, Teller},
};
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, fchmod, fstat, futimens, linkat, openat, renameat,
        statat, unlinkat,
    },
    io::Errno,
};
use std::{
    collections::VecDeque,
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use tk_path::StorePath;
use tk_store::{
    Error, OptimiseReport, Result,
    log::{ActivityType, Level, LogEvent, LogField, LogSink, ResultType},
};

impl LocalStore {
    /// Makes equal files one, as `nix-store --optimise` does, with as many threads as the store may have
    /// jobs. A file that cannot be read is told and counted, and the others go on.
    ///
    /// Safe beside whoever adds, collects or does the same; when it is killed, the store is as whole as it was.
    pub async fn optimise(&self, log: &dyn LogSink) -> Result<OptimiseReport> {
        self.inner().require_writable()?;
        // Paths are rooted only as long as this goes on.
        let roots = self.temp_roots().of_client();
        self.run_telling(log, move |store, teller| {
            let paths = store.db.all_readable()?.0;
            let id = ACTIVITY;
            teller.event(LogEvent::Start {
                id,
                level: Level::Info,
                kind: ActivityType::OPTIMISE,
                text: String::new(),
                fields: Vec::new(),
                parent: 0,
            });
            let report = Optimiser::new(store, teller, roots)?.run(paths.into_iter().collect());
            teller.event(LogEvent::Stop { id });
            report
        })
        .await
    }
}

struct Optimiser<'a> {
    store: &'a LocalInner,
    teller: &'a Teller,
    roots: Arc<TempRoots>,
    /// The store directory.
    real: Arc<OwnedFd>,
    links: LinksFolder,
    todo: Mutex<OptimiseQueue>,
    more: Condvar,
    linked: AtomicU64,
    saved: AtomicU64,
    failed: AtomicU64,
    next_name: AtomicU64,
}

/// What is left to do. Folders first, the deepest of them, so that few are open.
#[derive(Default)]
struct OptimiseQueue {
    folders: Vec<FolderToDo>,
    paths: VecDeque<StorePath>,
    expected: u64,
    /// Threads that may yet find more.
    busy: usize,
}

struct FolderToDo {
    parent: Arc<OwnedFd>,
    name: CString,
    /// Where it is, for people.
    shown: PathBuf,
}

enum OptimiseTask {
    Folder(FolderToDo),
    Path(StorePath),
}

impl<'a> Optimiser<'a> {
    fn new(store: &'a LocalInner, teller: &'a Teller, roots: Arc<TempRoots>) -> Result<Self> {
        let real = &store.config.real;
        let opened = rustix::fs::open(real, FOLDER, Mode::empty());
        let opened = opened.map_err(|e| Error::io(format!("opening {}", real.display()), e))?;
        Ok(Optimiser {
            links: LinksFolder::open(&opened, real)?,
            real: Arc::new(opened),
            store,
            teller,
            roots,
            todo: Mutex::default(),
            more: Condvar::new(),
            linked: AtomicU64::new(0),
            saved: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            next_name: AtomicU64::new(0),
        })
    }

    fn run(&self, paths: VecDeque<StorePath>) -> Result<OptimiseReport> {
        let mut todo = self.todo();
        todo.expected = paths.len() as u64;
        todo.paths = paths;
        drop(todo);
        let work = || {
            while let Some(task) = self.next() {
                let done = self.teller.cancel.check().and_then(|()| match task {
                    OptimiseTask::Path(path) => self.path(&path),
                    OptimiseTask::Folder(folder) => self.folder(folder),
                });
                self.end_task(done.is_err());
                done?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads = self.store.config.jobs.get();
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<()>>| {
                let joined = thread.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let ended: Vec<_> = threads.into_iter().map(join).collect();
            ended.into_iter().collect::<Result<()>>()
        })?;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Ok(OptimiseReport {
            files_linked: count(&self.linked),
            bytes_saved: count(&self.saved),
            failed: count(&self.failed),
        })
    }

    fn next(&self) -> Option<OptimiseTask> {
        let mut todo = self.todo();
        loop {
            let folder = todo.folders.pop().map(OptimiseTask::Folder);
            let task = folder.or_else(|| todo.paths.pop_front().map(OptimiseTask::Path));
            if task.is_some() {
                todo.busy += 1;
                return task;
            }
            if todo.busy == 0 {
                return None;
            }
            todo = self.more.wait(todo).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn end_task(&self, failed: bool) {
        let mut todo = self.todo();
        todo.busy -= 1;
        if failed {
            todo.folders.clear();
            todo.paths.clear();
        }
        drop(todo);
        self.more.notify_all();
    }

    fn todo(&self) -> MutexGuard<'_, OptimiseQueue> {
        self.todo.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn path(&self, path: &StorePath) -> Result<()> {
        let store = self.store;
        // From here on no collector takes it; it may have done so before.
        self.roots
            .add(&store.config.dir, path, &self.teller.cancel)?;
        if !store.is_valid(path)? {
            return Ok(());
        }
        let name = CString::new(path.as_str()).expect("a store path has no NUL");
        let mut top = LinkedFolder {
            fd: self.real.clone(),
            shown: store.config.real.clone(),
            kind: FolderKind::Store,
        };
        self.entry(&mut top, &name);
        let left = self.todo().paths.len() as u64;
        let expected = self.todo().expected;
        let progress = [expected - left, expected, 0, 0];
        let fields = progress.into_iter().map(LogField::Int).collect();
        self.teller.result(ResultType::PROGRESS, fields);
        Ok(())
    }

    /// Everything in a folder; the folders in it are left for whoever has time.
    fn folder(&self, folder: FolderToDo) -> Result<()> {
        let opened = openat(&*folder.parent, &*folder.name, FOLDER, Mode::empty());
        let fd = match opened {
            Ok(fd) => Arc::new(fd),
            Err(error) => {
                self.tell_failed(&folder.shown, error.into());
                return Ok(());
            }
        };
        let mut open = LinkedFolder {
            fd,
            shown: folder.shown,
            kind: FolderKind::Inside { touched: false },
        };
        match self.links.unknown_entries(&open.fd) {
            Ok(names) => names.iter().for_each(|name| self.entry(&mut open, name)),
            Err(error) => self.tell_failed(&open.shown, error),
        }
        if let Err(error) = open.make_canonical() {
            self.tell_failed(&open.shown, error);
        }
        Ok(())
    }

    fn entry(&self, folder: &mut LinkedFolder, name: &CStr) {
        match self.try_entry(folder, name) {
            Ok(()) => {}
            // Somebody has put another tree in its place.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.tell_failed(&folder.shown_of(name), error),
        }
    }

    fn try_entry(&self, folder: &mut LinkedFolder, name: &CStr) -> io::Result<()> {
        let stat = statat(&*folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.todo().folders.push(FolderToDo {
                    parent: folder.fd.clone(),
                    name: name.to_owned(),
                    shown: folder.shown_of(name),
                });
                self.more.notify_one();
                return Ok(());
            }
            FileType::RegularFile if Mode::from_raw_mode(stat.st_mode).contains(Mode::WUSR) => {
                let shown = folder.shown_of(name);
                let words = format!("skipping suspicious writable file '{}'", shown.display());
                self.teller.say(Level::Warn, words);
                return Ok(());
            }
            FileType::RegularFile | FileType::Symlink => {}
            // No path can have such.
            _ => return Ok(()),
        }
        if stat.st_nlink > 1 && self.links.has_inode(stat.st_ino) {
            return Ok(());
        }
        let entry = self.links.name_of(&folder.fd, name)?;
        self.share(folder, name, &stat, &entry)
    }

    /// Makes the file `name` a further name of the entry, or the entry one of the file.
    fn share(
        &self,
        folder: &mut LinkedFolder,
        name: &CStr,
        stat: &Stat,
        entry: &CStr,
    ) -> io::Result<()> {
        let none = AtFlags::empty();
        for _ in 0..ROUNDS {
            match linkat(&*folder.fd, name, self.links.fd(), entry, none) {
                Ok(()) => {
                    self.links.note(stat.st_ino);
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                // On ext4: the folder's index is full. The file stays as it is.
                Err(error @ Errno::NOSPC) => {
                    let shown = folder.shown_of(name);
                    let entry = self.links.shown_of(entry);
                    let (from, to) = (entry.display(), shown.display());
                    let words = format!("cannot link '{from}' to '{to}': {error}");
                    self.teller.say(Level::Info, words);
                    return Ok(());
                }
                Err(Errno::MLINK) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let there = match statat(self.links.fd(), entry, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                there => there?,
            };
            if there.st_ino == stat.st_ino {
                self.links.note(stat.st_ino);
                return Ok(());
            }
            if there.st_size != stat.st_size || !self.links.is_whole(&there, entry)? {
                self.remove_corrupted(entry)?;
                continue;
            }
            match self.replace(folder, name, stat, entry) {
                // A collector has removed the entry, which nobody used.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        Ok(())
    }

    fn remove_corrupted(&self, entry: &CStr) -> io::Result<()> {
        let shown = self.links.shown_of(entry);
        let words = format!("removing corrupted link '{}'", shown.display());
        self.teller.say(Level::Warn, words);
        let advice = "There may be more corrupted paths. You should run \
                      `tk-store verify --check-contents --repair` to fix them all";
        self.teller.say(Level::Warn, advice);
        match unlinkat(self.links.fd(), entry, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Puts a further name of the entry in place of the file.
    fn replace(
        &self,
        folder: &mut LinkedFolder,
        name: &CStr,
        stat: &Stat,
        entry: &CStr,
    ) -> io::Result<()> {
        // Whoever repairs a path that is a file puts another one here, which must stay.
        let _lock = match folder.kind {
            FolderKind::Inside { .. } => None,
            FolderKind::Store => {
                let lock = OutputLock::acquire(&folder.shown_of(name), &self.teller.cancel);
                let lock = lock.map_err(io::Error::other)?;
                let now = statat(&*folder.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if now.st_ino != stat.st_ino {
                    return Ok(());
                }
                Some(lock)
            }
        };
        let none = AtFlags::empty();
        let temporary = loop {
            let temporary = self.temporary_name();
            match linkat(self.links.fd(), entry, &*self.real, &*temporary, none) {
                Ok(()) => break temporary,
                // Of a process that was killed and had the same number.
                Err(Errno::EXIST) => {}
                // More is not possible: so it is often with empty files.
                Err(Errno::MLINK) => {
                    if stat.st_size > 0 {
                        let shown = self.links.shown_of(entry);
                        let words = format!("'{}' has maximum number of links", shown.display());
                        self.teller.say(Level::Info, words);
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        };
        let renamed = folder.rename_into(&self.real, &temporary, name);
        // It is still there if that failed, and if somebody else has linked the file meanwhile.
        let _ = unlinkat(&*self.real, &*temporary, none);
        match renamed {
            // Some file systems find that out only now.
            Err(Errno::MLINK) => return Ok(()),
            renamed => renamed?,
        }
        let bytes = stat.st_size as u64;
        self.linked.fetch_add(1, Ordering::Relaxed);
        self.saved.fetch_add(bytes, Ordering::Relaxed);
        let fields = vec![bytes.into(), LogField::Int(stat.st_blocks as u64)];
        self.teller.result(ResultType::FILE_LINKED, fields);
        Ok(())
    }

    fn temporary_name(&self) -> CString {
        let n = self.next_name.fetch_add(1, Ordering::Relaxed);
        let name = format!(".tmp-link-{}-{n}", process::id());
        CString::new(name).expect("it is made of letters and digits")
    }

    fn tell_failed(&self, shown: &Path, error: io::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let error = Error::io(format!("optimising {}", shown.display()), error);
        self.teller.say(Level::Error, error.to_line());
    }
}

/// A folder in which files are replaced.
struct LinkedFolder {
    fd: Arc<OwnedFd>,
    /// Where it is, for people.
    shown: PathBuf,
    kind: FolderKind,
}

enum FolderKind {
    /// The store directory, whose mode and time are no concern of ours.
    Store,
    /// One in a path; whether it is to be made canonical again.
    Inside { touched: bool },
}

impl LinkedFolder {
    fn shown_of(&self, name: &CStr) -> PathBuf {
        self.shown.join(&*String::from_utf8_lossy(name.to_bytes()))
    }

    /// Renames what is called `temporary` in the folder `from`; whoever is not root must be allowed to for a
    /// moment.
    fn rename_into(&mut self, from: &OwnedFd, temporary: &CStr, name: &CStr) -> Result<(), Errno> {
        let FolderKind::Inside { touched } = &mut self.kind else {
            return renameat(from, temporary, &*self.fd, name);
        };
        *touched = true;
        match renameat(from, temporary, &*self.fd, name) {
            Err(Errno::ACCESS) => {
                let mode = Mode::from_raw_mode(fstat(&*self.fd)?.st_mode);
                fchmod(&*self.fd, mode | Mode::WUSR)?;
                renameat(from, temporary, &*self.fd, name)
            }
            renamed => renamed,
        }
    }

    fn make_canonical(&self) -> io::Result<()> {
        if let FolderKind::Inside { touched: true } = self.kind {
            fchmod(&*self.fd, Mode::from_raw_mode(0o555))?;
            futimens(&*self.fd, &CANONICAL_TIMES)?;
        }
        Ok(())
    }
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// How often an entry may vanish under our hands.
const ROUNDS: u32 = 8;
