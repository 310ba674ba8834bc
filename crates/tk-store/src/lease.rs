//! Leases: roots that go by themselves.
//!
//! ```text
//! leases/ID/lease.json = {"owner": {"name": TEXT} | {"process": {"pid": N, "start": N, "system": TEXT?}}
//!                                | {"link": {"place": TEXT, "target": TEXT}},
//!                         "ttl": SECONDS, "key": KEY, "paths": [STOREPATH…]}
//! leases/ID/N          = link to the Nth path as the store names it, registered as an indirect root
//! ```
//! A lease begins anew whenever lease.json is touched, and ends `ttl` later; that of a process or of a link ends
//! with it. `start` is when the process began, in ticks since boot, so that a number that is used again is not taken
//! for it. `system` is where the number means something: the boot and the namespace. Who looks from elsewhere,
//! or at a lease without it, cannot tell, and lets the lease last its time.
//!
//! The store knows nothing of leases but their links, so they work through any daemon. A collector of ours asks
//! [`LeaseFinder::of_link`] and takes a link whose lease is over for none; one of Nix keeps its path until the
//! folder is gone, which [`Leases::expire`] sees to.
//!
//! # Security
//! A collector reads lease.json of folders that others own: it is a plain file of bounded size or it is none,
//! and decides about the link beside it alone.

use crate::{Error, Result, Roots};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
    process::{Pid, test_kill_process},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_nar::fs::replace_link;
use tk_path::{Algorithm, Encoding, Hasher};

/// For whom paths are kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LeaseOwner {
    /// Whoever goes by this name.
    Name(String),
    /// A process, with which the lease ends.
    Process {
        /// The number of the process.
        pid: u32,
        /// When it began, in ticks since boot.
        start: u64,
        /// The boot and the namespace in which it has that number; `None` in leases of before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        system: Option<String>,
    },
    /// A link elsewhere, as long as it leads where it does: for a link that no store knows as a root.
    Link {
        /// Where it is.
        place: PathBuf,
        /// Its text.
        target: PathBuf,
    },
}

impl LeaseOwner {
    /// The process `pid` of this system; `None` if there is none.
    pub fn process(pid: u32) -> Option<LeaseOwner> {
        let start = match start_of(pid) {
            ProcessStart::At(start) => start,
            ProcessStart::Unknown => 0,
            ProcessStart::Gone => return None,
        };
        let system = system();
        Some(LeaseOwner::Process { pid, start, system })
    }

    /// Whether it is known that there will never be this owner again.
    fn is_gone(&self) -> bool {
        match self {
            LeaseOwner::Process { pid, start, system } if system.is_some() => {
                let is_over = match start_of(*pid) {
                    ProcessStart::At(now) => now != *start && *start != 0,
                    ProcessStart::Gone => true,
                    ProcessStart::Unknown => false,
                };
                is_over && *system == self::system()
            }
            LeaseOwner::Link { place, target } => match fs::read_link(place) {
                Ok(text) => text != *target,
                // It is no link, or not there.
                Err(error) => matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                ),
            },
            _ => false,
        }
    }

    /// What stands for it in the name of the folder.
    fn tag(&self) -> String {
        match self {
            LeaseOwner::Name(name) => format!("name {name}"),
            LeaseOwner::Process { pid, start, .. } => format!("process {pid} {start}"),
            LeaseOwner::Link { place, .. } => format!("link {}", place.display()),
        }
    }
}

impl fmt::Display for LeaseOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeaseOwner::Name(name) => f.write_str(name),
            LeaseOwner::Process { pid, .. } => write!(f, "process {pid}"),
            LeaseOwner::Link { place, .. } => write!(f, "the link {}", place.display()),
        }
    }
}

/// How long paths are kept, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseOptions {
    /// The owner, for whom the paths are kept.
    pub owner: LeaseOwner,
    /// How long after their last use.
    pub ttl: Duration,
}

impl Default for LeaseOptions {
    /// A week, for whoever uses it.
    fn default() -> Self {
        LeaseOptions {
            owner: LeaseOwner::Name("shared".into()),
            ttl: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// A lease as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootLease {
    /// The owner, for whom the paths are kept.
    pub owner: LeaseOwner,
    /// Seconds that it lasts after the last use.
    pub ttl: u64,
    /// What it is for, such as the key of an environment: an owner has one lease for each.
    pub key: String,
    /// What it keeps: whole paths of the store.
    pub paths: Vec<String>,
    /// When it ends, in seconds since 1970.
    #[serde(default)]
    pub expires: u64,
    /// The name of its folder, by which it is released.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
}

impl RootLease {
    /// The lease that the root at `link` belongs to; `None` if it is no link of a lease.
    ///
    /// # Errors
    /// When it could not be read.
    pub fn of_link(link: &Path) -> io::Result<Option<RootLease>> {
        folder_of(link).map_or(Ok(None), read)
    }

    /// Whether its time is over, or its owner gone.
    pub fn is_over(&self) -> bool {
        self.expires <= now() || self.owner.is_gone()
    }
}

/// Finds the leases of many links, and reads each once: a lease of many paths has a link for each of them.
#[derive(Debug, Default)]
pub struct LeaseFinder(HashMap<PathBuf, Option<RootLease>>);

impl LeaseFinder {
    /// As [`RootLease::of_link`], by what was read first.
    ///
    /// # Errors
    /// When it could not be read; it is read again for the next link then.
    pub fn of_link(&mut self, link: &Path) -> io::Result<Option<&RootLease>> {
        let Some(folder) = folder_of(link) else {
            return Ok(None);
        };
        if !self.0.contains_key(folder) {
            self.0.insert(folder.to_owned(), read(folder)?);
        }
        Ok(self.0[folder].as_ref())
    }
}

/// The folder of the lease that a link with this name belongs to.
fn folder_of(link: &Path) -> Option<&Path> {
    let name = link.file_name()?.to_str()?;
    let folder = link.parent()?;
    let is_link = name.bytes().all(|b| b.is_ascii_digit());
    let above = folder.parent()?.file_name()?;
    (is_link && above == FOLDER).then_some(folder)
}

/// The folder of all leases of a user.
#[derive(Debug, Clone)]
pub struct Leases {
    folder: PathBuf,
}

impl Leases {
    /// The leases in the folder `leases` of `state`, which need not be there.
    pub fn at(state: &Path) -> Leases {
        Leases {
            folder: state.join(FOLDER),
        }
    }

    fn id(key: &str, owner: &LeaseOwner) -> String {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for part in [key, &owner.tag()] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish().digits(Encoding::Base16)[..32].to_owned()
    }

    /// Begins the lease anew that keeps `paths` for its owner; whether there is one that lasts. No store
    /// is asked.
    pub fn renew(&self, key: &str, paths: &[String], options: &LeaseOptions) -> Result<bool> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let place = self.folder.join(Self::id(key, &options.owner));
        let Ok(Some(lease)) = read(&place) else {
            return Ok(false);
        };
        let keeps = |(n, target): (usize, &String)| {
            fs::read_link(place.join(n.to_string())).is_ok_and(|link| link.as_os_str() == &**target)
        };
        // Of one that ends about now a collector may be taking the roots.
        let lasts = lease.expires > now().saturating_add(ABOUT_NOW.min(lease.ttl / 2));
        if !lasts || lease.ttl != options.ttl.as_secs() || !paths.iter().enumerate().all(keeps) {
            return Ok(false);
        }
        let touched = File::options()
            .append(true)
            .open(place.join(NAME))
            .and_then(|file| file.set_modified(SystemTime::now()));
        Ok(touched.is_ok())
    }

    /// Makes the lease of `options.owner` for `key` with `paths`, whole paths as the store `roots` names them.
    /// Returns its id.
    pub async fn begin(
        &self,
        key: &str,
        paths: &[String],
        options: &LeaseOptions,
        roots: &dyn Roots,
    ) -> Result<String> {
        let id = Self::id(key, &options.owner);
        let place = self.folder.join(&id);
        let lease = RootLease {
            owner: options.owner.clone(),
            ttl: options.ttl.as_secs(),
            key: key.to_owned(),
            paths: paths.to_vec(),
            expires: 0,
            id: String::new(),
        };
        for link in self.make(&place, &lease)? {
            let link = std::path::absolute(&link).map_err(failed("finding", &link))?;
            roots.add_indirect_root(&link).await?;
        }
        Ok(id)
    }

    /// Makes the folder of `lease`; the links in it.
    fn make(&self, place: &Path, lease: &RootLease) -> Result<Vec<PathBuf>> {
        let text = serde_json::to_vec(lease).map_err(|e| Error::invalid(e.to_string()))?;
        if text.len() as u64 > MAX_FILE {
            let many = lease.paths.len();
            return Err(Error::invalid(format!(
                "{many} paths are too many for one lease"
            )));
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        make_folder(place)?;
        let mut made = Vec::new();
        for (n, target) in lease.paths.iter().enumerate() {
            let link = place.join(n.to_string());
            // In one step, so that at no time the root is missing.
            replace_link(&link, target.as_ref(), |_| true)
                .map_err(failed("making the link", &link))?;
            made.push(link);
        }
        // This file comes last: a folder without it counts as one whose making was cut off.
        let file = place.join(NAME);
        write(&file, &text).map_err(failed("writing", &file))?;
        Ok(made)
    }

    /// Ends those that are over; how many. The store finds dead links by itself.
    pub fn expire(&self) -> Result<usize> {
        // Whoever made a folder without a file did not come to an end: with the lock, nobody is making it.
        let is_over = |lease: Option<&RootLease>| lease.is_none_or(RootLease::is_over);
        Ok(self.end(is_over)?.len())
    }

    /// Ends those that `which` takes, of the whole ones; returns them.
    pub fn release(&self, which: impl Fn(&RootLease) -> bool) -> Result<Vec<RootLease>> {
        self.end(|lease| lease.is_some_and(&which))
            .map(|ended| ended.into_iter().flatten().collect())
    }

    fn end(&self, which: impl Fn(Option<&RootLease>) -> bool) -> Result<Vec<Option<RootLease>>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let mut ended = Vec::new();
        for place in self.places()? {
            let lease = read(&place).map_err(failed("reading", &place.join(NAME)))?;
            if which(lease.as_ref()) {
                fs::remove_dir_all(&place).map_err(failed("removing", &place))?;
                ended.push(lease);
            }
        }
        Ok(ended)
    }

    /// All that there are; those that cannot be read are left out.
    pub fn all(&self) -> Result<Vec<RootLease>> {
        let places = self.places()?;
        let leases = places.iter().filter_map(|place| read(place).ok()?);
        Ok(leases.collect())
    }

    fn places(&self) -> Result<BTreeSet<PathBuf>> {
        let reading = failed("reading the folder", &self.folder);
        let list = || {
            let entries = match fs::read_dir(&self.folder) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
                entries => entries?,
            };
            let mut places = BTreeSet::new();
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    places.insert(entry.path());
                }
            }
            Ok(places)
        };
        list().map_err(reading)
    }

    /// Waits for the lock, which is held for moments only, in one of the two blocking operations.
    fn lock(&self, operation: FlockOperation) -> Result<File> {
        make_folder(&self.folder)?;
        let path = self.folder.join(".lock");
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(failed("opening the lock", &path))?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("locking", &path)(error.into())),
            }
        }
    }
}

/// The lease in `folder`; `None` if there is none, or something that is no lease.
fn read(folder: &Path) -> io::Result<Option<RootLease>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(folder.join(NAME), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Ok(None);
    }
    let Ok(mut lease) = serde_json::from_slice::<RootLease>(&bytes) else {
        return Ok(None);
    };
    let begun = meta.modified()?.duration_since(UNIX_EPOCH);
    lease.expires = begun.map_or(0, |b| b.as_secs()).saturating_add(lease.ttl);
    let id = folder.file_name().unwrap_or_default();
    lease.id = id.to_string_lossy().into_owned();
    Ok(Some(lease))
}

/// Makes `bytes` the content of `file` in one step; whoever writes holds the lock.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&new)?.write_all(bytes)?;
    fs::rename(new, file)
}

/// The folder `path` and those it lies in, for this user alone.
fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("making the folder", path))
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let doing = format!("{doing} {}", path.display());
    move |error| Error::io(doing, error)
}

/// In seconds since 1970; 0 if the clock is set to before that.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// When a process began.
enum ProcessStart {
    /// In ticks since boot.
    At(u64),
    /// There is none, or nothing but its status is left.
    Gone,
    /// There is one, and nothing tells more: there is no /proc, or it hides the processes of others.
    Unknown,
}

fn start_of(pid: u32) -> ProcessStart {
    let told = fs::read(format!("/proc/{pid}/stat")).ok();
    if let Some(start) = told.and_then(|text| start_in(&String::from_utf8_lossy(&text))) {
        return start;
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match pid.map(test_kill_process) {
        None | Some(Err(Errno::SRCH)) => ProcessStart::Gone,
        Some(_) => ProcessStart::Unknown,
    }
}

/// What the `stat` file of a process says (`proc_pid_stat(5)`, fields 3 and 22).
fn start_in(text: &str) -> Option<ProcessStart> {
    // The name before it may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return Some(ProcessStart::Gone);
    }
    Some(ProcessStart::At(fields.nth(18)?.parse().ok()?))
}

/// Where the number of a process means something: this boot, this namespace.
fn system() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

const FOLDER: &str = "leases";
const NAME: &str = "lease.json";
/// Bytes of a lease.
const MAX_FILE: u64 = 1 << 20;
/// Seconds that a renewal may take.
const ABOUT_NOW: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn system_owner(pid: u32, start: u64, system: Option<String>) -> LeaseOwner {
        LeaseOwner::Process { pid, start, system }
    }

    #[test]
    fn processes() {
        let own = LeaseOwner::process(std::process::id()).unwrap();
        assert!(!own.is_gone());
        assert!(LeaseOwner::process(u32::MAX).is_none());
        let LeaseOwner::Process { pid, start, system } = own else {
            unreachable!()
        };
        let other = system_owner(pid, start + 1, system);
        assert!(other.is_gone(), "another one with the same number");
        for elsewhere in [None, Some("another boot".to_owned())] {
            assert!(
                !system_owner(pid, start + 1, elsewhere).is_gone(),
                "nobody can tell"
            );
        }
    }

    #[test]
    fn leases_end() {
        let folder = tempfile::tempdir().unwrap();
        let leases = Leases::at(folder.path());
        let gone = system_owner(1, 1, system());
        let hour = Duration::from_secs(3600);
        for (owner, age, ends) in [
            (LeaseOwner::Name("a".into()), Duration::ZERO, false),
            (LeaseOwner::Name("b".into()), 25 * hour, true),
            (gone, Duration::ZERO, true),
            (system_owner(1, 1, None), Duration::ZERO, false),
            (
                LeaseOwner::process(std::process::id()).unwrap(),
                2 * hour,
                false,
            ),
        ] {
            let lease = RootLease {
                owner: owner.clone(),
                ttl: 24 * 3600,
                key: "k".into(),
                paths: vec!["/nix/store/x".into()],
                expires: 0,
                id: String::new(),
            };
            let place = leases.folder.join(Leases::id("k", &owner));
            let links = leases.make(&place, &lease).unwrap();
            let file = File::options().append(true).open(place.join(NAME)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
            let found = RootLease::of_link(&links[0]).unwrap().unwrap();
            assert_eq!((&found.owner, found.is_over()), (&owner, ends));
            let mut options = LeaseOptions::default();
            (options.owner, options.ttl) = (owner.clone(), 24 * hour);
            if age > 24 * hour {
                assert!(!leases.renew("k", &lease.paths, &options).unwrap());
            }
            assert_eq!(leases.expire().unwrap() == 1, ends, "{owner:?} {age:?}");
        }
        let of_a = |lease: &RootLease| lease.owner == LeaseOwner::Name("a".into());
        assert_eq!(leases.release(of_a).unwrap().len(), 1);
        assert_eq!(leases.all().unwrap().len(), 2);
    }

    #[test]
    fn a_lease_for_a_link_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let (place, target) = (
            folder.path().join("result"),
            PathBuf::from("/r/nix/store/x"),
        );
        let owner = LeaseOwner::Link {
            place: place.clone(),
            target: target.clone(),
        };
        assert!(owner.is_gone());
        std::os::unix::fs::symlink(&target, &place).unwrap();
        assert!(!owner.is_gone());
        replace_link(&place, Path::new("/r/nix/store/y"), |_| true).unwrap();
        assert!(owner.is_gone());
    }

    #[test]
    fn only_links_of_leases_have_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("leases/x");
        fs::create_dir_all(&place).unwrap();
        let lease = |link: &str| RootLease::of_link(&folder.path().join(link)).unwrap();
        assert_eq!(lease("leases/x/0"), None, "there is no file");
        let text = r#"{"owner":{"process":{"pid":1,"start":2}},"ttl":5,"key":"k","paths":[]}"#;
        fs::write(place.join(NAME), text).unwrap();
        let found = lease("leases/x/0").unwrap();
        assert_eq!((found.owner, found.ttl), (system_owner(1, 2, None), 5));
        for other in ["leases/x/a", "leases/x", "leases/y/0", "x/0"] {
            assert_eq!(lease(other), None, "{other}");
        }
        fs::remove_file(place.join(NAME)).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            place.join(NAME),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        assert_eq!(
            lease("leases/x/0"),
            None,
            "no waiting for somebody to write"
        );
    }
}
