//! A lost or corrupt database is made anew.
//!
//! Each path in the store directory is read once. It becomes valid only if something vouches for it, the
//! first of these that does:
//!
//! 1. *A narinfo* of a cache, which a trusted key has signed or whose content address makes the path: its
//!    NAR hash is that of the content.
//! 2. *A dump* of the lost database: the same.
//! 3. *Its own name*, when that follows from the content: what was added by its content, and derivations.
//! 4. *Nothing but itself*, if that is asked for: the hash is what it is, and references are what is found
//!    by scanning. Everything in it must have the modes and times that a store gives last, so that what
//!    was never finished is told apart.
//!
//! What somebody vouches for with other content was damaged, and is left out; so is all that refers to
//! what is left out. The new database is made beside the old one and put in its place at once; the old
//! one keeps its content under another name.

use crate::{
    LocalConfig, LocalStore, canonical,
    db::{Database, OpenMode},
    inner::{LocalInner, create_folders},
    lock::{LockKind, open_lock_file, try_lock},
    place::is_nursery,
    schema,
    telling::{Teller, in_parallel, telling},
    verify::{ContentError, each_chunk, names_in},
};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};
use tk_narinfo::PathInfo;
use tk_path::{
    Algorithm, ContentAddress, Hasher, Method, NarHash, References, StorePath, scan::RefScanner,
};
use tk_store::{
    ContentHasher, Error, NarCheck, Result, SigCheck, Store,
    log::{Level, LogEvent, LogSink},
};

/// From what [`LocalStore::recover`] may make a database.
#[derive(Debug)]
#[non_exhaustive]
pub struct RecoverOptions {
    /// What a dump of the lost database said.
    pub dump: Vec<PathInfo>,
    /// Caches and other stores that may know the paths, the first first.
    pub from: Vec<Arc<dyn Store>>,
    /// What their words must satisfy.
    pub check: SigCheck,
    /// Whether paths vouch for themselves.
    pub scan: ScanPaths,
    /// Whether the database is replaced.
    pub write: RecoverWrite,
}

impl RecoverOptions {
    /// Nothing but what content-addressed paths say of themselves; others must satisfy `check`.
    pub fn new(check: SigCheck) -> Self {
        RecoverOptions {
            dump: Vec::new(),
            from: Vec::new(),
            check,
            scan: ScanPaths::No,
            write: RecoverWrite::Replace,
        }
    }
}

/// Whether a path that nobody knows becomes valid as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScanPaths {
    /// It is left out.
    #[default]
    No,
    /// It is hashed, and searched for references.
    Yes,
}

/// Whether [`LocalStore::recover`] changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoverWrite {
    /// It only says what it would do. Whether derivations state the right outputs is not looked at.
    DryRun,
    /// The database is replaced.
    Replace,
}

/// What [`LocalStore::recover`] found, or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverReport {
    /// The paths that are valid now, each with what vouches for it.
    pub recovered: BTreeMap<StorePath, PathTruth>,
    /// What lies in the store directory and is not valid, each with why.
    pub left_out: BTreeMap<StorePath, String>,
    /// Where the old database is, if there was one.
    pub old: Option<PathBuf>,
}

/// What vouches for the content of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathTruth {
    /// What this store says of it, which is trusted.
    Narinfo {
        /// The store's URI.
        store: String,
    },
    /// The dump of the lost database.
    Dump,
    /// Its name, which follows from its content.
    ContentAddress,
    /// Nothing but itself.
    Scanned,
}

impl PathTruth {
    /// The name in reports, which stays.
    pub const fn name(&self) -> &'static str {
        match self {
            PathTruth::Narinfo { .. } => "narinfo",
            PathTruth::Dump => "dump",
            PathTruth::ContentAddress => "contentAddress",
            PathTruth::Scanned => "scanned",
        }
    }
}

impl LocalStore {
    /// Makes the database of the store at `config` anew, from what lies in the store directory and from what
    /// others know of it.
    ///
    /// What the lost database alone knew is gone: realisations, and when paths were registered.
    ///
    /// # Errors
    /// When another process has the store open; then nothing is changed, as with every other error.
    ///
    /// # Security
    /// With [`ScanPaths::Yes`] whoever could write the store directory decides what is valid.
    pub async fn recover(
        config: LocalConfig,
        options: RecoverOptions,
        log: &dyn LogSink,
    ) -> Result<RecoverReport> {
        if config.read_only {
            return Err(Error::invalid(
                "a database that is only read cannot be replaced",
            ));
        }
        let (scan, write) = (options.scan, options.write);
        let (paths, lock) = {
            let config = config.clone();
            telling(log, move |_| begin(&config, write)).await?
        };
        let mut claims = Claims::new();
        for store in &options.from {
            claim_from(&**store, &paths, &options.check, &mut claims, log).await?;
        }
        for info in options.dump {
            if paths.contains(&info.path) {
                let claims = claims.entry(info.path.clone()).or_default();
                claims.push((info, PathTruth::Dump));
            }
        }
        let recover = move |teller: &Teller| {
            let _lock = lock;
            let recovery = Recovery {
                config: &config,
                teller,
                paths: paths.into_iter().collect(),
                claims,
                scan,
            };
            recovery.run(write)
        };
        telling(log, recover).await
    }
}

/// What is to be judged; and the lock, which keeps others from adding more until the end, if the database is
/// to be replaced.
fn begin(config: &LocalConfig, write: RecoverWrite) -> Result<(BTreeSet<StorePath>, Option<File>)> {
    // A store directory that is not there, or not mounted, is not made.
    names_in(&config.real)?;
    let db = config.state.join("db");
    let lock = match write {
        RecoverWrite::DryRun => None,
        RecoverWrite::Replace => {
            create_folders(config)?;
            Some(lock_out_others(&db)?)
        }
    };
    schema::refuse_newer_schema(&db)?;
    Ok((paths_in(config)?, lock))
}

/// What others say of paths, what counts most first.
type Claims = BTreeMap<StorePath, Vec<(PathInfo, PathTruth)>>;

/// What `store` says of `paths` and is trusted to say.
///
/// # Errors
/// When it answers nothing but errors. Else what it cannot say of a path is only told.
async fn claim_from(
    store: &dyn Store,
    paths: &BTreeSet<StorePath>,
    check: &SigCheck,
    claims: &mut Claims,
    log: &dyn LogSink,
) -> Result<()> {
    let truth = PathTruth::Narinfo {
        store: store.to_string(),
    };
    let warn = |error: Error| log.event(LogEvent::message(Level::Warn, error.to_line()));
    let (mut answered, mut failed) = (false, Vec::new());
    let mut infos = store.each_info(stream::iter(paths.iter().cloned()).boxed());
    while let Some((path, info)) = infos.next().await {
        answered |= info.is_ok();
        match info {
            Ok(Some(info)) => match check.check(store.dir(), &info) {
                Ok(()) => claims.entry(path).or_default().push((info, truth.clone())),
                Err(error) => warn(error),
            },
            Ok(None) => {}
            Err(error) => failed.push(error),
        }
    }
    if !answered && let Some(error) = failed.pop() {
        return Err(error);
    }
    failed.into_iter().for_each(warn);
    Ok(())
}

/// The paths that lie in the store directory, whatever is in them.
fn paths_in(config: &LocalConfig) -> Result<BTreeSet<StorePath>> {
    let names = names_in(&config.real)?;
    // They have the hash part of a path, and would be taken for what others refer to.
    let beside_a_path = |name: &str| {
        let mut suffixes = BESIDE_PATHS.iter();
        suffixes.any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|path| names.contains(path))
        })
    };
    let content = names.iter().filter(|name| {
        !is_nursery(name) && !beside_a_path(name) && !is_lock_file(&config.real.join(name))
    });
    Ok(content
        .filter_map(|name| StorePath::parse(name).ok())
        .collect())
}

/// Whether a process that was killed left this file: one that is finished cannot be written.
fn is_lock_file(real: &Path) -> bool {
    real.extension()
        .is_some_and(|extension| extension == "lock")
        && real.symlink_metadata().is_ok_and(|meta| {
            meta.is_file() && meta.len() == 0 && meta.permissions().mode() & 0o200 != 0
        })
}

/// What Nix puts beside a path while it makes it: its lock, the second result of a check, and what a build
/// sees as its root.
const BESIDE_PATHS: [&str; 3] = [".lock", ".check", ".chroot"];

struct Recovery<'a> {
    config: &'a LocalConfig,
    teller: &'a Teller,
    paths: Vec<StorePath>,
    claims: Claims,
    scan: ScanPaths,
}

/// What may become of a path: valid with this, or left out for a reason.
type Verdict = Result<(PathInfo, PathTruth), String>;

impl Recovery<'_> {
    fn run(self, write: RecoverWrite) -> Result<RecoverReport> {
        let db = self.config.state.join("db");
        let mut report = RecoverReport::default();
        let mut valid = BTreeMap::new();
        for (path, verdict) in self.verdicts()? {
            match verdict {
                Ok(found) => drop(valid.insert(path, found)),
                Err(why) => drop(report.left_out.insert(path, why)),
            }
        }
        leave_out_referrers(&mut valid, &mut report.left_out);
        if write == RecoverWrite::Replace {
            let new = NewDatabase::create(self.config, &db)?;
            new.fill(&mut valid, &mut report.left_out)?;
            report.old = new.put_in_place(&db)?;
        }
        for (path, why) in &report.left_out {
            let words = format!("{path} stays invalid: {why}");
            self.teller.say(Level::Warn, words);
        }
        let truths = valid.into_iter().map(|(path, (_, truth))| (path, truth));
        report.recovered = truths.collect();
        Ok(report)
    }

    fn verdicts(&self) -> Result<Vec<(StorePath, Verdict)>> {
        let parts = self.paths.iter().map(StorePath::to_hash_part);
        let scanner = RefScanner::new(parts);
        let (jobs, cancel) = (self.config.jobs, &self.teller.cancel);
        let all = in_parallel(jobs, self.paths.len(), cancel, |at| {
            let path = &self.paths[at];
            let judged = self.judge(path, &scanner);
            Some((path.clone(), judged))
        })?;
        Ok(all.into_iter().map(|(_, judged)| judged).collect())
    }

    fn judge(&self, path: &StorePath, scanner: &RefScanner) -> Verdict {
        let content = self.read(path, scanner)?;
        let claims = self.claims.get(path).map(Vec::as_slice).unwrap_or_default();
        let fits = |info: &PathInfo| info.nar_hash == content.hash && self.address_holds(info);
        if let Some((info, truth)) = claims.iter().find(|(info, _)| fits(info)) {
            let mut info = info.clone();
            info.nar_size = content.size;
            info.registration_time = 0;
            info.ultimate = false;
            // A dump does not say it, and it can be found out.
            if info.ca.is_none()
                && let Some((ca, references)) = self.address(path, &content)
                && references == info.references
            {
                info.ca = Some(ca);
            }
            return Ok((info, truth.clone()));
        }
        let mut info = PathInfo::new(path.clone(), content.hash, content.size);
        if let Some((ca, references)) = self.address(path, &content) {
            info.ca = Some(ca);
            info.references = references;
            return Ok((info, PathTruth::ContentAddress));
        }
        if let Some((claimed, _)) = claims.first() {
            let (claimed, actual) = (claimed.nar_hash, content.hash);
            if claimed == actual {
                return Err("its content is not what its content address says".to_owned());
            }
            return Err(format!(
                "was modified! expected hash '{claimed}', got '{actual}'"
            ));
        }
        if self.scan == ScanPaths::No {
            return Err("nobody knows it".to_owned());
        }
        match canonical::deviation(&self.config.real.join(path.as_str())) {
            Ok(None) => {}
            Ok(Some(wrong)) => return Err(format!("it was never finished, or changed: {wrong}")),
            Err(error) => return Err(error.to_line()),
        }
        info.references = content.references;
        Ok((info, PathTruth::Scanned))
    }

    /// Whether the content address of `info`, if it has one, is that of the path and of what lies there. It
    /// takes the place of a signature, so nobody may have stated it for other content.
    fn address_holds(&self, info: &PathInfo) -> bool {
        if info.ca.is_none() {
            return true;
        }
        if !info.is_content_addressed(&self.config.dir) {
            return false;
        }
        let mut claimed = info.clone();
        // It is counted, not believed.
        claimed.nar_size = 0;
        let mut check = NarCheck::new(&claimed, "the store");
        let mut holds = true;
        let real = self.config.real.join(info.path.as_str());
        let read = each_chunk(&real, self.teller, |chunk| {
            holds = holds && check.update(chunk).is_ok();
        });
        read.is_ok() && holds && check.finish().is_ok()
    }

    fn read(&self, path: &StorePath, scanner: &RefScanner) -> Result<FoundContent, String> {
        let real = self.config.real.join(path.as_str());
        let meta = real.symlink_metadata().map_err(|e| e.to_string())?;
        // Only a file that does not run can be addressed by its bytes.
        let plain = meta.is_file() && meta.permissions().mode() & 0o100 == 0;
        let mut flat = if plain {
            ContentHasher::new(Method::Flat, Algorithm::Sha256).ok()
        } else {
            None
        };
        let (mut hasher, mut scanner) = (Hasher::new(Algorithm::Sha256), scanner.clone());
        let read = each_chunk(&real, self.teller, |chunk| {
            hasher.update(chunk);
            scanner.feed(chunk);
            if flat
                .as_mut()
                .is_some_and(|flat| flat.update(chunk).is_err())
            {
                flat = None;
            }
        });
        read.map_err(|error| match error {
            ContentError::NoArchive(error) => error,
            ContentError::Other(error) => error.to_line(),
        })?;
        let size = hasher.bytes();
        let none = References::default();
        let flat = flat.and_then(|flat| flat.finish(&self.config.dir, path.name(), &none).ok());
        Ok(FoundContent {
            hash: NarHash::try_from(hasher.finish()).expect("sha256 was asked for"),
            size,
            flat: flat.and_then(|info| info.ca),
            references: scanner.found().map(|at| self.paths[at].clone()).collect(),
        })
    }

    /// The content address that makes the path, with the references that it takes.
    fn address(
        &self,
        path: &StorePath,
        content: &FoundContent,
    ) -> Option<(ContentAddress, BTreeSet<StorePath>)> {
        let whole = ContentAddress {
            method: Method::Nar,
            hash: content.hash.into(),
        };
        let text = content.flat.map(|flat| ContentAddress {
            method: Method::Text,
            ..flat
        });
        let sets = [
            Some(BTreeSet::new()),
            Some(content.references.clone()),
            self.inputs(path),
        ];
        let addresses = [Some(whole), content.flat, text];
        for others in sets.into_iter().flatten() {
            let references = References {
                others,
                itself: false,
            };
            for ca in addresses.iter().flatten() {
                let made = self
                    .config
                    .dir
                    .path_of_content(path.name(), ca, &references);
                if made.is_ok_and(|made| made == *path) {
                    return Some((*ca, references.others));
                }
            }
        }
        None
    }

    /// What a derivation refers to: its text names its outputs too.
    fn inputs(&self, path: &StorePath) -> Option<BTreeSet<StorePath>> {
        if !path.is_derivation() {
            return None;
        }
        let drv = LocalInner::derivation_in(self.config, path).ok()?;
        let mut inputs = drv.inputs.srcs.clone();
        inputs.extend(drv.inputs.drvs.keys().cloned());
        Some(inputs)
    }
}

/// What a path turned out to hold.
struct FoundContent {
    hash: NarHash,
    /// Bytes of its NAR.
    size: u64,
    /// Its address as a file, if it is one.
    flat: Option<ContentAddress>,
    /// Which of the paths are named in it.
    references: BTreeSet<StorePath>,
}

/// Leaves out what refers to what is not valid, and circles.
fn leave_out_referrers(
    valid: &mut BTreeMap<StorePath, (PathInfo, PathTruth)>,
    left_out: &mut BTreeMap<StorePath, String>,
) {
    let mut left = BTreeMap::new();
    let mut referrers = BTreeMap::<StorePath, Vec<StorePath>>::new();
    let mut ready = Vec::new();
    for (path, (info, _)) in &*valid {
        let others = info.references.iter().filter(|other| *other != path);
        left.insert(path.clone(), others.clone().count());
        for other in others {
            referrers
                .entry(other.clone())
                .or_default()
                .push(path.clone());
        }
        if left[path] == 0 {
            ready.push(path.clone());
        }
    }
    while let Some(path) = ready.pop() {
        left.remove(&path);
        for referrer in referrers.get(&path).into_iter().flatten() {
            if let Some(waits) = left.get_mut(referrer) {
                *waits -= 1;
                if *waits == 0 {
                    ready.push(referrer.clone());
                }
            }
        }
    }
    for path in left.into_keys() {
        if let Some((info, _)) = valid.remove(&path) {
            let mut references = info.references.iter();
            let why = match references.find(|other| left_out.contains_key(other)) {
                Some(other) => format!("it refers to {other}, which is not valid"),
                None => "it refers to what is not valid".to_owned(),
            };
            left_out.insert(path, why);
        }
    }
}

/// A database that has no name yet. What is there when it is dropped goes away.
struct NewDatabase {
    store: Option<LocalInner>,
    folder: PathBuf,
}

impl NewDatabase {
    /// Makes it beside the old one.
    fn create(config: &LocalConfig, db: &Path) -> Result<Self> {
        let folder = db.join("recover");
        // Of a process that was killed: nobody else is at work here.
        let made = match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir(&folder),
        };
        made.map_err(|e| Error::io(format!("creating {}", folder.display()), e))?;
        let mut new = NewDatabase {
            store: None,
            folder,
        };
        let mode = OpenMode::Create(config.durability);
        let database = Database::open(&new.file(), &config.dir, config.to_string(), mode)?;
        new.store = Some(LocalInner::on(config.clone(), database, None));
        Ok(new)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("db.sqlite")
    }

    /// Registers what is valid. Derivations that are none are left out, with what refers to them.
    fn fill(
        &self,
        valid: &mut BTreeMap<StorePath, (PathInfo, PathTruth)>,
        left_out: &mut BTreeMap<StorePath, String>,
    ) -> Result<()> {
        let store = self
            .store
            .as_ref()
            .expect("it is open until it has its place");
        loop {
            let drvs = valid.iter().filter(|(path, _)| path.is_derivation());
            let drvs: Vec<_> = drvs.map(|(_, (info, _))| info.clone()).collect();
            let (_, failed) = store.outputs_of(&drvs);
            if failed.is_empty() {
                break;
            }
            for (path, error) in failed {
                valid.remove(&path);
                left_out.insert(path, error.to_line());
            }
            leave_out_referrers(valid, left_out);
        }
        let mut records = valid.values().map(|(info, _)| Ok(info.clone()));
        store.db.load(&mut records, store).map(drop)
    }

    /// Gives the database its name; returns the one that the old one has now, if there was one.
    ///
    /// At each moment there is a whole database, the old or the new one. The journal of the old one is
    /// written into it and goes first: beside the new one it would damage that.
    fn put_in_place(mut self, db: &Path) -> Result<Option<PathBuf>> {
        let store = self.store.take().expect("it is open until now");
        store.db.close_whole()?;
        let file = db.join("db.sqlite");
        schema::write_back_journal(&file);
        let put = || {
            File::open(self.file())?.sync_all()?;
            let old = keep_old(&file)?;
            // It tells of tables that the new one does not have.
            match fs::remove_file(db.join("ca-schema")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::rename(self.file(), &file)?;
            File::open(db)?.sync_all()?;
            Ok(old)
        };
        let put: io::Result<_> = put();
        let put = put.map_err(|e| Error::io(format!("replacing {}", file.display()), e))?;
        schema::write_schema(db)?;
        Ok(put)
    }
}

impl Drop for NewDatabase {
    fn drop(&mut self) {
        self.store = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Gives the old database another name beside its own, and its journal nothing but that; the journal also if
/// there is no database any more.
fn keep_old(file: &Path) -> io::Result<Option<PathBuf>> {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let with = |suffix: &str| -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    };
    let old = format!(".old-{}", since.as_millis());
    let was_there = match fs::hard_link(file, with(&old)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        linked => linked.map(|()| true)?,
    };
    for journal in ["-wal", "-shm", "-journal"] {
        match fs::rename(with(journal), with(&(old.clone() + journal))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(was_there.then(|| with(&old)))
}

/// The lock that every user of the store shares, alone.
fn lock_out_others(db: &Path) -> Result<File> {
    let path = db.join("big-lock");
    let file = open_lock_file(&path)?;
    let taken = try_lock(&file, LockKind::Exclusive);
    if taken.map_err(|e| Error::io(format!("locking {}", path.display()), e))? {
        return Ok(file);
    }
    Err(Error::invalid(format!(
        "the store is in use: another process holds {}; end it (such as the nix-daemon) and try again",
        path.display()
    )))
}
