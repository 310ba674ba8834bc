//! The search for roots, exactly as Nix's collector searches (`findRoots` of `gc.cc`).
//!
//! - Links are read byte by byte: a text that leads into the store another way (relative, or with a doubled
//!   slash) makes no root. Beyond Nix, the folder where the content really lies counts as the store too: the
//!   links and processes of a store in a folder of its own are of no use otherwise.
//! - One link may stand between: gcroots → link → store path. Folders are entered, links to folders are not.
//! - A link of a [lease](tk_store::lease) that is over is none, where Nix does not know leases.
//! - What could not be looked at is told, where Nix goes on: it may have been a root.
use crate::{
    LocalConfig,
    gcroots::clean,
    inner::LocalInner,
    lock::{LockKind, is_at, try_lock},
    runtime_roots,
};
use rustix::io::Errno;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};
use tk_path::StorePath;
use tk_store::{
    Error, Result, Root,
    lease::{LeaseFinder, RootLease},
};

/// What a search for roots found.
#[derive(Debug, Default)]
pub(crate) struct FoundRoots {
    /// What links, files and running processes keep. Not all of these paths are valid.
    pub roots: BTreeSet<Root>,
    /// What processes hold by their files of temporary roots. A collector spares each path that has the
    /// hash part of one of these, as Nix does.
    pub temporary: BTreeSet<Root>,
    /// What is of no use any more: see [`LocalInner::remove_stale_roots`].
    pub stale: Vec<StaleRoot>,
    /// What could not be looked at, of which anything may be alive. See [`FoundRoots::require_known`].
    pub unknown: Vec<Error>,
    /// How many processes this user may not look into, those of other users above all. Nix passes over
    /// them, and a user who is not root would never collect anything otherwise: whoever collects tells it.
    pub hidden_processes: usize,
}

impl FoundRoots {
    /// The error to fail with before anything is deleted, if there may be roots that are not known.
    pub fn require_known(&self) -> Result<()> {
        let Some(first) = self.unknown.first() else {
            return Ok(());
        };
        let more = match self.unknown.len() {
            1 => String::new(),
            all => format!(" (and {} more places)", all - 1),
        };
        Err(Error::invalid(format!(
            "not all roots can be known, so nothing is deleted: {}{more}",
            first.to_line()
        )))
    }

    /// The paths that are kept, temporary roots with them.
    pub fn targets(&self) -> BTreeSet<&StorePath> {
        let all = self.roots.iter().chain(&self.temporary);
        all.map(|root| &root.target).collect()
    }
}

/// What a search for roots found to be of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StaleRoot {
    /// A link in `gcroots/auto` to a place where there is nothing.
    AutoLink {
        /// The link itself.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A link in `gcroots/auto` to one whose lease is over.
    Lease {
        /// The link itself.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A file of temporary roots that nobody holds.
    TempRoots(PathBuf),
}

impl fmt::Display for StaleRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StaleRoot::AutoLink { link, target } => {
                let (link, target) = (link.display(), target.display());
                write!(f, "stale link from '{link}' to '{target}'")
            }
            StaleRoot::Lease { link, target } => {
                let (link, target) = (link.display(), target.display());
                write!(f, "link from '{link}' to '{target}', whose lease is over")
            }
            StaleRoot::TempRoots(file) => {
                write!(f, "stale temporary roots file '{}'", file.display())
            }
        }
    }
}

impl LocalInner {
    /// Finds all roots. Nothing is changed.
    ///
    /// Temporary roots come first: who ends after a link was made for a path of his is seen in one of the two
    /// places. A collector holds `gc.lock` and serves the socket before it asks.
    pub fn find_roots(&self) -> FoundRoots {
        self.find_roots_with(Path::new("/proc"))
    }

    fn find_roots_with(&self, processes: &Path) -> FoundRoots {
        let state = &self.config.state;
        let mut search = RootSearch::new(&self.config);
        search.temporary(&state.join("temproots"));
        for folder in ["gcroots", "profiles"] {
            search.links(&state.join(folder), &state.join("gcroots/auto"));
        }
        runtime_roots::find(&mut search, processes);
        search.found
    }

    /// Removes of `stale` what is still of no use, and returns that. For collections, not for those who only
    /// look.
    pub fn remove_stale_roots<'a>(&self, stale: &'a [StaleRoot]) -> Result<Vec<&'a StaleRoot>> {
        let mut removed = Vec::new();
        for root in stale {
            let done = match root {
                StaleRoot::AutoLink { link, target } => {
                    let is_stale = || target.symlink_metadata().is_err_and(|e| is_gone(&e));
                    remove_auto_link(link, target, is_stale)
                }
                StaleRoot::Lease { link, target } => {
                    remove_auto_link(link, target, || is_over(target).unwrap_or(false))
                }
                StaleRoot::TempRoots(file) => remove_temp_roots(file),
            };
            if done.map_err(|e| Error::io(format!("removing the {root}"), e))? {
                removed.push(root);
            }
        }
        Ok(removed)
    }
}

/// A search under way.
pub(crate) struct RootSearch {
    pub folders: StoreFolders,
    pub found: FoundRoots,
    leases: LeaseFinder,
}

impl RootSearch {
    pub fn new(config: &LocalConfig) -> Self {
        RootSearch {
            folders: StoreFolders::of(config),
            found: FoundRoots::default(),
            leases: LeaseFinder::default(),
        }
    }

    /// The text of the link at `place` leads to `text`: a root if that is in the store.
    pub fn leads_to(&mut self, place: &Path, text: &OsStr) {
        if let Some(target) = self.folders.path(text.as_bytes()) {
            self.found.roots.insert(root(place, target));
        }
    }

    /// What `place` keeps is not known.
    pub fn unknown(&mut self, place: &Path, error: io::Error) {
        let doing = format!("looking for roots in {}", place.display());
        self.found.unknown.push(Error::io(doing, error));
    }

    /// `None` for what is gone meanwhile; who may not look tells it.
    fn there<T>(&mut self, place: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if is_gone(&error) => None,
            Err(error) => {
                self.unknown(place, error);
                None
            }
        }
    }

    /// All links and files below `folder`, which must be there: a search without it finds nothing to keep.
    fn links(&mut self, folder: &Path, auto: &Path) {
        let is_folder = folder.symlink_metadata().map(|meta| meta.is_dir());
        match is_folder {
            Ok(true) => {}
            Ok(false) => return self.unknown(folder, io::ErrorKind::NotADirectory.into()),
            Err(error) => return self.unknown(folder, error),
        }
        let mut left = vec![folder.to_owned()];
        while let Some(folder) = left.pop() {
            let Some(entries) = self.there(&folder, folder.read_dir()) else {
                continue;
            };
            for entry in entries {
                let kind = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
                match self.there(&folder, kind) {
                    Some((place, kind)) if kind.is_dir() => left.push(place),
                    Some((place, kind)) if kind.is_symlink() => self.link(&place, auto),
                    Some((place, kind)) if kind.is_file() => self.file(&place),
                    _ => {}
                }
            }
        }
    }

    /// A link into the store, or to a link into the store.
    fn link(&mut self, link: &Path, auto: &Path) {
        let Some(text) = self.there(link, fs::read_link(link)) else {
            return;
        };
        if self.folders.hold(text.as_os_str().as_bytes()) {
            return self.leads_to(link, text.as_os_str());
        }
        let target = clean(&link.parent().unwrap_or(link).join(text));
        match target.symlink_metadata() {
            Ok(kind) if kind.is_symlink() => {
                let lease = if link.starts_with(auto) {
                    self.leases.of_link(&target)
                } else {
                    Ok(None)
                };
                match lease.map(|lease| lease.is_some_and(RootLease::is_over)) {
                    Ok(true) => {
                        let link = link.to_owned();
                        return self.found.stale.push(StaleRoot::Lease { link, target });
                    }
                    Ok(false) => {}
                    // It keeps its path as any other link then.
                    Err(error) => self.unknown(&target, error),
                }
                if let Some(text) = self.there(&target, fs::read_link(&target)) {
                    self.leads_to(&target, text.as_os_str());
                }
            }
            Ok(_) => {}
            Err(error) if is_gone(&error) => {
                if link.starts_with(auto) {
                    let link = link.to_owned();
                    self.found.stale.push(StaleRoot::AutoLink { link, target });
                }
            }
            Err(error) => self.unknown(&target, error),
        }
    }

    /// A file that is named as a path.
    fn file(&mut self, place: &Path) {
        let name = place.file_name().and_then(OsStr::to_str);
        if let Some(Ok(target)) = name.map(StorePath::parse) {
            self.found.roots.insert(root(place, target));
        }
    }

    /// What processes hold while they live.
    fn temporary(&mut self, folder: &Path) {
        let entries = match folder.read_dir() {
            Ok(entries) => entries,
            Err(error) => return self.unknown(folder, error),
        };
        for entry in entries {
            let name = self.there(folder, entry.map(|entry| entry.file_name()));
            // Hidden files keep the folder in packages, and the like.
            if let Some(name) = name.filter(|name| !name.as_bytes().starts_with(b".")) {
                self.temporary_of(&folder.join(&name), &name.to_string_lossy());
            }
        }
    }

    fn temporary_of(&mut self, path: &Path, name: &str) {
        let content = File::open(path).and_then(read_if_held);
        let Some(content) = self.there(path, content) else {
            return;
        };
        let digits = name.len() - name.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let Some(content) = content else {
            // What is named after no process was made by nobody we know.
            if digits > 0 {
                let stale = StaleRoot::TempRoots(path.to_owned());
                self.found.stale.push(stale);
            }
            return;
        };
        // As `std::stoi` reads it: our clients have `PID-NUMBER`.
        let owner = if digits > 0 { &name[..digits] } else { name };
        for path in content.split(|byte| *byte == 0) {
            if let Some(target) = self.folders.path(path) {
                let link = format!("{{temp:{owner}}}");
                self.found.temporary.insert(Root { link, target });
            }
        }
    }
}

/// The folders whose entries are store paths, each with its slash: that of the store's own name, and where its
/// content really lies.
pub(crate) struct StoreFolders(BTreeSet<Vec<u8>>);

impl StoreFolders {
    pub fn of(config: &LocalConfig) -> Self {
        let dir = Path::new(config.dir.as_str());
        let real = config.real.clone();
        // Processes show it without links.
        let resolved = real.canonicalize().ok();
        let all = [Some(dir.to_owned()), Some(real), resolved].into_iter();
        let all = all.flatten().map(|folder| {
            let mut folder = folder.into_os_string().into_encoded_bytes();
            folder.push(b'/');
            folder
        });
        StoreFolders(all.collect())
    }

    /// Each folder with its slash.
    pub fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Whether `text` is the name of something in the store, a path or not.
    pub fn hold(&self, text: &[u8]) -> bool {
        self.inside(text).is_some()
    }

    /// The store path in which `text` lies.
    pub fn path(&self, text: &[u8]) -> Option<StorePath> {
        let name = self.inside(text)?.split(|byte| *byte == b'/').next()?;
        StorePath::parse(std::str::from_utf8(name).ok()?).ok()
    }

    fn inside<'a>(&self, text: &'a [u8]) -> Option<&'a [u8]> {
        self.each().find_map(|folder| text.strip_prefix(folder))
    }
}

pub(crate) fn root(place: &Path, target: StorePath) -> Root {
    let link = place.to_string_lossy().into_owned();
    Root { link, target }
}

/// Whether what was asked about is not there any more, a process too.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    // A text that goes in circles, or is too long, leads nowhere for everybody.
    let nowhere = [Errno::SRCH, Errno::LOOP, Errno::NAMETOOLONG];
    matches!(error.kind(), NotADirectory | NotFound)
        || nowhere
            .map(|errno| Some(errno.raw_os_error()))
            .contains(&error.raw_os_error())
}

/// What is in a file of temporary roots; `None` if nobody holds it.
fn read_if_held(file: File) -> io::Result<Option<Vec<u8>>> {
    if try_lock(&file, LockKind::Shared)? {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(MOST_TEMP_ROOTS + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MOST_TEMP_ROOTS {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(Some(content))
}

/// Whether the link at `place` is one of a lease that is over.
fn is_over(place: &Path) -> io::Result<bool> {
    Ok(RootLease::of_link(place)?.is_some_and(|lease| lease.is_over()))
}

/// Removes `link`, which leads to `target`, if it is still stale; whether it did.
fn remove_auto_link(link: &Path, target: &Path, is_stale: impl Fn() -> bool) -> io::Result<bool> {
    let text = fs::read_link(link);
    let leads_there = |text: &PathBuf| clean(&link.parent().unwrap_or(link).join(text)) == target;
    let Some(text) = text.ok().filter(leads_there) else {
        return Ok(false);
    };
    if !is_stale() {
        return Ok(false);
    }
    match fs::remove_file(link) {
        Err(error) if is_gone(&error) => return Ok(false),
        removed => removed?,
    }
    // Who makes a root makes the place first, and then this link: it may have been the new one.
    if is_stale() {
        return Ok(true);
    }
    match std::os::unix::fs::symlink(text, link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(false),
    }
}

/// Removes the file at `path` if nobody holds it; whether it did.
fn remove_temp_roots(path: &Path) -> io::Result<bool> {
    let mut file = match File::options().read(true).write(true).open(path) {
        Err(error) if is_gone(&error) => return Ok(false),
        file => file?,
    };
    if !try_lock(&file, LockKind::Exclusive)? || !is_at(&file, path) {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Err(error) if is_gone(&error) => return Ok(false),
        removed => removed?,
    }
    // For who opened it before, and waits for the lock.
    file.write_all(b"d")?;
    Ok(true)
}

/// Bytes of a file of temporary roots that are read; ours do not grow as long.
const MOST_TEMP_ROOTS: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LocalConfig;
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        sync::Arc,
    };

    fn store(folder: &Path) -> Arc<LocalInner> {
        LocalInner::open(LocalConfig::chroot(folder.join("r")), true).unwrap()
    }

    fn path(name: &str) -> StorePath {
        StorePath::from_digest(&[7; 20], name).unwrap()
    }

    /// A folder such as /proc, with one process that is nobody's.
    fn processes(folder: &Path) -> PathBuf {
        let _ = fs::remove_dir_all(folder.join("proc"));
        let process = folder.join("proc/1");
        fs::create_dir_all(process.join("fd")).unwrap();
        symlink("1", folder.join("proc/self")).unwrap();
        for file in ["maps", "environ"] {
            fs::write(process.join(file), "").unwrap();
        }
        folder.join("proc")
    }

    #[test]
    fn links_are_read_as_nix_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let gcroots = store.config.state.join("gcroots");
        let at = |name: &str| folder.path().join(name);
        let full = |name: &str| store.config.dir.path(&path(name));
        fs::create_dir_all(gcroots.join(".hidden/deep")).unwrap();
        fs::create_dir(at("folder")).unwrap();
        symlink(full("of-folder"), at("folder/in")).unwrap();
        symlink(full("outer"), at("outer")).unwrap();
        let relative = format!("../../store/{}", path("relative"));
        for (link, text) in [
            (gcroots.join("direct"), full("direct")),
            (gcroots.join(".hidden/deep/.one"), full("hidden")),
            (gcroots.join("into"), full("into") + "/../x"),
            (gcroots.join("outer"), "../../../../../outer".into()),
            (at("link"), full("indirect")),
            (
                gcroots.join("indirect"),
                format!("{}//x/../link", folder.path().display()),
            ),
            // None of these is a root.
            (at("two"), at("link").to_str().unwrap().into()),
            (gcroots.join("two"), at("two").to_str().unwrap().into()),
            (gcroots.join("relative"), relative),
            (
                gcroots.join("doubled"),
                full("doubled").replace("/store", "//store"),
            ),
            (
                gcroots.join("doubled2"),
                full("doubled").replace("/store", "/store/"),
            ),
            (
                gcroots.join("folder"),
                at("folder").to_str().unwrap().into(),
            ),
            (gcroots.join("nowhere"), "/nowhere".into()),
        ] {
            symlink(text, link).unwrap();
        }
        fs::write(gcroots.join(path("file").as_str()), "").unwrap();
        fs::write(gcroots.join("other"), "").unwrap();
        let found = store.find_roots_with(&processes(folder.path()));
        let mut found_paths: Vec<_> = found.targets().into_iter().map(|p| p.name()).collect();
        found_paths.sort_unstable();
        assert_eq!(
            found_paths,
            ["direct", "file", "hidden", "indirect", "into", "outer"]
        );
        assert!(
            found.require_known().is_ok() && found.stale.is_empty(),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_stale_goes_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let state = &store.config.state;
        let (result, back) = (folder.path().join("result"), folder.path().join("back"));
        for link in [&result, &back] {
            store.add_indirect_root(link).unwrap();
        }
        for name in ["77777", ".hidden", "name"] {
            fs::write(state.join("temproots").join(name), "x").unwrap();
        }
        let found = store.find_roots_with(&processes(folder.path()));
        assert_eq!(found.stale.len(), 3, "{found:?}");
        assert_eq!(state.join("gcroots/auto").read_dir().unwrap().count(), 2);
        symlink(store.config.dir.path(&path("back")), &back).unwrap();
        let held = File::open(state.join("temproots/77777")).unwrap();
        assert!(try_lock(&held, LockKind::Exclusive).unwrap());
        let removed = store.remove_stale_roots(&found.stale).unwrap();
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(removed[0].to_string().contains("/result'"), "{removed:?}");
        drop(held);
        let found = store.find_roots_with(&processes(folder.path()));
        assert_eq!(found.targets(), [&path("back")].into());
        assert_eq!(store.remove_stale_roots(&found.stale).unwrap().len(), 1);
        assert_eq!(state.join("temproots").read_dir().unwrap().count(), 2);
    }

    #[test]
    fn a_lease_that_is_over_keeps_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let proc = processes(folder.path());
        let place = folder.path().join("leases/x");
        fs::create_dir_all(&place).unwrap();
        symlink(store.config.dir.path(&path("leased")), place.join("0")).unwrap();
        store.add_indirect_root(&place.join("0")).unwrap();
        let write = |ttl: u64| {
            let text = r#"{"owner":{"name":"me"},"key":"k","paths":[],"ttl":"#;
            fs::write(place.join("lease.json"), format!("{text}{ttl}}}")).unwrap();
        };
        for (ttl, kept) in [(3600, 1), (0, 0)] {
            write(ttl);
            let found = store.find_roots_with(&proc);
            assert_eq!((found.targets().len(), found.stale.len()), (kept, 1 - kept));
            assert!(found.require_known().is_ok(), "{found:?}");
        }
        let found = store.find_roots_with(&proc);
        write(3600);
        assert!(
            store.remove_stale_roots(&found.stale).unwrap().is_empty(),
            "renewed"
        );
        assert_eq!(store.find_roots_with(&proc).targets().len(), 1);
        write(0);
        assert_eq!(store.remove_stale_roots(&found.stale).unwrap().len(), 1);
        assert!(
            place.join("0").is_symlink(),
            "others' folders are left alone"
        );
    }

    #[test]
    fn temporary_roots_last_as_long_as_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let dir = &store.config.dir;
        let mut held = Vec::new();
        for name in ["123", "124-5", "oddly"] {
            let file = store.config.state.join("temproots").join(name);
            fs::write(&file, format!("{}\0no path\0", dir.path(&path(name)))).unwrap();
            let file = File::open(file).unwrap();
            assert!(try_lock(&file, LockKind::Exclusive).unwrap());
            held.push(file);
        }
        let found = store.find_roots_with(&processes(folder.path()));
        let links: Vec<_> = found.temporary.iter().map(|r| r.link.as_str()).collect();
        assert_eq!(links, ["{temp:123}", "{temp:124}", "{temp:oddly}"]);
        drop(held);
        let found = store.find_roots_with(&processes(folder.path()));
        assert!(found.temporary.is_empty(), "{found:?}");
    }

    #[test]
    fn what_cannot_be_looked_at_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let proc = processes(folder.path());
        let state = &store.config.state;
        let refused = |proc: &Path| {
            let found = store.find_roots_with(proc);
            found.require_known().unwrap_err().to_line()
        };
        let line = refused(Path::new("/nonexistent"));
        assert!(
            line.contains("nothing is deleted") && line.contains("/nonexistent"),
            "{line}"
        );
        // As a mount point where nothing is mounted.
        fs::create_dir(folder.path().join("empty")).unwrap();
        assert!(refused(&folder.path().join("empty")).contains("/empty"));
        for name in ["gcroots", "profiles", "temproots"] {
            let (place, aside) = (state.join(name), state.join("aside"));
            fs::rename(&place, &aside).unwrap();
            assert!(refused(&proc).contains(&format!("/{name}")));
            if name != "temproots" {
                symlink(&aside, &place).unwrap();
                assert!(refused(&proc).contains(&format!("/{name}")), "a link to it");
                fs::remove_file(&place).unwrap();
            }
            fs::rename(&aside, &place).unwrap();
        }
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        symlink(&two, &one).unwrap();
        symlink(&one, &two).unwrap();
        symlink(one.join("x"), state.join("gcroots/loop")).unwrap();
        assert!(store.find_roots_with(&proc).require_known().is_ok());
        if rustix::process::geteuid().is_root() {
            return;
        }
        let closed = state.join("gcroots/closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        assert!(refused(&proc).contains("/closed"));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    }
}
