//! What an evaluation depends on, and whether any of it changed.
//!
//! Of a flake's own tree, and of the folder of a file, the files count that evaluation commonly reads
//! ([`READ`]), of local inputs and of what the caller names the whole trees. Of a file that is no flake
//! all counts too that nix said it read (see `told`): each file of Nix code with the files beside it that
//! are commonly read, and what was copied to the store. All that is looked at is noted with its state (size,
//! times, inode); as long as the states are the same nothing is read. Like git, a file that changed
//! moments before it was noted is read again, since a further change may leave its times the same.

use super::{files, told::Told};
use crate::{Cause, Failure, Result, Source};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tk_path::{Algorithm, Hasher, StoreDir};

/// Where a flake comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A folder of this machine.
    Local {
        /// The folder of flake.nix.
        flake: PathBuf,
        /// The folder that evaluation sees: of a git repository all.
        tree: PathBuf,
    },
    /// Somewhere else: what is behind the reference may change unless it is `pinned`.
    Far {
        /// Whether it names content.
        pinned: bool,
    },
}

impl Place {
    /// Where `reference` leads, as Nix reads it, beginning in `folder`.
    pub(super) fn of(reference: &str, folder: &Path) -> Result<Place> {
        let (base, query) = reference.split_once('?').unwrap_or((reference, ""));
        let query: BTreeMap<_, _> = query.split('&').filter_map(|p| p.split_once('=')).collect();
        let git = base.strip_prefix("git+file:");
        let path = match (git, base.strip_prefix("path:")) {
            (Some(rest), _) => rest.strip_prefix("//").unwrap_or(rest),
            (_, Some(rest)) => rest,
            _ if base.is_empty() || base.starts_with(['.', '/']) => base,
            _ => "",
        };
        let is_local = !path.is_empty() || base.is_empty();
        let pinned = is_pinned(base, &query);
        // A branch or a commit is not what lies in the folder.
        if !is_local || query.contains_key("rev") || query.contains_key("ref") {
            return Ok(Place::Far { pinned });
        }
        let path = folder.join(path);
        let tree = path.canonicalize().map_err(|error| {
            let words = format!("there is no flake {}: {error}", path.display());
            Failure::new(Cause::Misused, words)
        })?;
        let is_path = base.starts_with("path:");
        let flake = match query.get("dir") {
            Some(dir) => tree.join(dir),
            None if is_path || git.is_some() => tree.clone(),
            None => upwards(&tree, "flake.nix").unwrap_or_else(|| tree.clone()),
        };
        let repository = upwards(&flake, ".git").filter(|_| !is_path);
        let tree = repository.unwrap_or(match flake.starts_with(&tree) {
            true if is_path => tree,
            _ => flake.clone(),
        });
        Ok(Place::Local { flake, tree })
    }
}

/// Where a file of Nix code lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FilePlace {
    /// On this machine: the file or the folder of a default.nix, links resolved.
    Local(PathBuf),
    /// In the search path: `<nixpkgs>`.
    Searched,
    /// At an address.
    Far,
}

impl FilePlace {
    /// Where `file` leads, as Nix reads it, beginning in `folder`.
    pub(super) fn of(file: &Path, folder: &Path) -> Result<FilePlace> {
        let text = file.to_string_lossy();
        if text.starts_with('<') && text.ends_with('>') {
            return Ok(FilePlace::Searched);
        }
        if is_address(&text) {
            return Ok(FilePlace::Far);
        }
        let place = folder.join(file).canonicalize().map_err(|error| {
            let words = format!("there is no file {}: {error}", file.display());
            Failure::new(Cause::Misused, words)
        })?;
        Ok(FilePlace::Local(place))
    }
}

/// Whether Nix takes `text` for an address where a path could be.
fn is_address(text: &str) -> bool {
    text.contains("://") || text.starts_with("channel:") || text.starts_with("flake:")
}

/// Where the places of a search path such as `nixpkgs=/a:/b` lead now, links resolved, and whether
/// there are addresses among them.
pub(super) fn search_path(text: &str, folder: &Path) -> (Vec<PathBuf>, bool) {
    let places = text.split(':').map(|part| match part.split_once('=') {
        Some((_, place)) => place,
        None => part,
    });
    let far = text.contains("://") || places.clone().any(|p| ["channel", "flake"].contains(&p));
    // The rest of an address.
    let places = places.filter(|place| !place.is_empty() && !place.starts_with("//"));
    let places = places.filter_map(|place| folder.join(place).canonicalize().ok());
    (places.collect(), far)
}

/// The folder that holds `name`: `folder` or the nearest one that it lies in.
fn upwards(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut all = folder.ancestors();
    all.find(|folder| folder.join(name).exists())
        .map(Path::to_owned)
}

fn is_pinned(base: &str, query: &BTreeMap<&str, &str>) -> bool {
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    query.get("rev").is_some_and(|rev| is_commit(rev))
        || query.contains_key("narHash")
        || base.rsplit('/').next().is_some_and(is_commit)
}

/// Trees that are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trees {
    roots: BTreeMap<PathBuf, Extent>,
    /// Folders that are not looked into, wherever they are.
    left_out: Vec<PathBuf>,
}

/// How much of a tree counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// Files that evaluation commonly reads, in the folder itself.
    Beside,
    /// The same in the folders in it too, but for hidden ones, if they are not too many.
    Own,
    /// Files that evaluation commonly reads.
    Code,
    /// All, if it is not too much.
    Copied,
    /// All.
    All,
}

impl Trees {
    /// None yet; the folders in `left_out` are never looked into.
    pub(super) fn without(left_out: Vec<PathBuf>) -> Trees {
        Trees {
            left_out,
            ..Trees::default()
        }
    }

    /// With all of `path`, a file or a folder.
    pub(super) fn add(&mut self, path: PathBuf) {
        self.roots.insert(path, Extent::All);
    }

    /// With the folder of a file of Nix code.
    pub(super) fn add_own(&mut self, folder: PathBuf) {
        self.at_least(folder, Extent::Own);
    }

    /// With what nix said it read; but of what was added before, a folder that was copied adds nothing.
    pub(super) fn add_told(&mut self, told: &Told) {
        let own: Vec<_> = self.roots.keys().cloned().collect();
        for file in &told.files {
            let folder = file.parent().unwrap_or(file);
            if !own.iter().any(|own| folder.starts_with(own)) {
                self.at_least(folder.to_owned(), Extent::Beside);
            }
            self.at_least(file.clone(), Extent::All);
        }
        for path in &told.copied {
            // What was a file and is gone counts as one.
            if !path.is_dir() {
                self.at_least(path.clone(), Extent::All);
            } else if !own.iter().any(|own| own.starts_with(path)) {
                self.at_least(path.clone(), Extent::Copied);
            }
        }
    }

    fn at_least(&mut self, path: PathBuf, extent: Extent) {
        let at = self.roots.entry(path).or_insert(extent);
        *at = extent.max(*at);
    }

    /// With the own tree of a flake, and the local inputs that flake.nix and flake.lock name.
    pub(super) fn add_flake(&mut self, flake: &Path, tree: &Path) -> Result<()> {
        self.roots.entry(tree.to_owned()).or_insert(Extent::Code);
        let mut inputs = BTreeSet::new();
        for name in ["flake.nix", "flake.lock"] {
            let file = flake.join(name);
            let bytes = files::read(&file, MAX_FLAKE).map_err(files::failed("reading", &file))?;
            // Relative ones lie in the tree, or in another that is named from the flake's folder.
            local_inputs(
                &String::from_utf8_lossy(&bytes.unwrap_or_default()),
                &mut inputs,
            );
        }
        for input in inputs {
            let path = flake.join(&input);
            let path = path.canonicalize().unwrap_or(path);
            if path != tree && path != flake {
                self.add(path);
            }
        }
        Ok(())
    }
}

/// Folders that a text names as inputs: `path:…`, `git+file:…`, and the `path` of a lock's nodes.
/// One too many makes an evaluation too many at worst.
fn local_inputs(text: &str, found: &mut BTreeSet<String>) {
    for mark in ["path:", "git+file:"] {
        for (at, _) in text.match_indices(mark) {
            let rest = &text[at + mark.len()..];
            let end = rest.find(|c: char| c.is_whitespace() || "\"';?#".contains(c));
            let path = &rest[..end.unwrap_or(rest.len())];
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.is_empty() && found.len() < MAX_INPUTS {
                found.insert(path.to_owned());
            }
        }
    }
    let parts: Vec<_> = text.split('"').collect();
    for pair in parts.windows(2) {
        let before = pair[0].trim_end().strip_suffix('=').unwrap_or_default();
        let is_url = before.trim_end().ends_with("url") || before.trim_end().ends_with("path");
        if is_url && pair[1].starts_with('.') && found.len() < MAX_INPUTS {
            found.insert(pair[1].to_owned());
        }
    }
    let Ok(lock) = serde_json::from_str::<serde_json::Value>(text) else {
        return;
    };
    for node in lock["nodes"].as_object().into_iter().flatten() {
        let locked = &node.1["locked"];
        if let Some(path) = locked["path"].as_str().filter(|_| locked["type"] == "path") {
            found.insert(path.to_owned());
        }
    }
}

/// All that was looked at, in one state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    items: BTreeMap<PathBuf, Item>,
    /// What nix said it read, which is among the items.
    #[serde(default)]
    pub(super) told: Told,
    /// Whether there was too much of something to watch all of it.
    #[serde(default)]
    pub(super) partial: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    /// `None` if it had changed moments before.
    state: Option<State>,
    what: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kind {
    Absent,
    Folder,
    /// The hash of its content.
    File(String),
    /// The same of one that can be run.
    Executable(String),
    /// The hash of where it leads.
    Link(String),
    Other,
}

/// What changes when a file does: size, mode, inode, device, and nanoseconds of mtime and ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State(u64, u32, u64, u64, i64, i64);

impl State {
    fn of(meta: &Metadata) -> State {
        let nanos = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
        State(
            meta.size(),
            meta.mode(),
            meta.ino(),
            meta.dev(),
            nanos(meta.mtime(), meta.mtime_nsec()),
            nanos(meta.ctime(), meta.ctime_nsec()),
        )
    }

    /// The state, if it is so old that no further change can have left it the same.
    fn settled(self, now: i64) -> Option<State> {
        (now - self.newest() > SETTLED.as_nanos() as i64).then_some(self)
    }

    fn newest(self) -> i64 {
        self.4.max(self.5)
    }
}

impl Snapshot {
    /// Looks at `trees`. What is as `old` says is not read again.
    pub(super) fn take(trees: &Trees, old: Option<&Snapshot>) -> Result<Snapshot> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut walk = Walk {
            trees,
            old,
            new: Snapshot::default(),
            now: now.map_or(0, |now| now.as_nanos() as i64),
            most: MAX_ITEMS,
            seen: 0,
        };
        for (root, extent) in &trees.roots {
            walk.root(root, *extent)?;
        }
        Ok(walk.new)
    }

    /// The files, those too that are not there; not folders.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let files = self.items.iter();
        let files = files.filter(|(_, item)| !matches!(item.what, Kind::Folder | Kind::Other));
        files.map(|(path, _)| path.as_path())
    }

    /// Whether a file that is neither in `before` nor in `left_out` may have changed after `moment`.
    pub(super) fn has_new_since(
        &self,
        before: &Snapshot,
        moment: SystemTime,
        left_out: &[PathBuf],
    ) -> bool {
        let moment = moment.duration_since(SystemTime::UNIX_EPOCH);
        let moment = moment.map_or(0, |moment| moment.as_nanos() as i64) - TICK.as_nanos() as i64;
        let mut new = self.files().filter(|path| {
            let is_known = before.items.contains_key(*path);
            !is_known && !left_out.iter().any(|out| out == path)
        });
        new.any(|path| match fs::symlink_metadata(path) {
            Ok(meta) => State::of(&meta).newest() >= moment,
            Err(_) => self.items[path].what != Kind::Absent,
        })
    }

    /// Whether nothing changed since, as far as states tell.
    pub(super) fn holds(&self) -> bool {
        !self.items.is_empty()
            && self.items.iter().all(|(path, item)| {
                match (fs::symlink_metadata(path), &item.what) {
                    (Err(e), Kind::Absent) => e.kind() == io::ErrorKind::NotFound,
                    (Ok(meta), _) => item.state == Some(State::of(&meta)),
                    (Err(_), _) => false,
                }
            })
    }

    /// The digest of the content.
    pub(super) fn digest(&self) -> String {
        let parts = self.items.iter().filter_map(|(path, item)| {
            let (kind, hash) = match &item.what {
                Kind::Folder => return None,
                Kind::Absent => ("absent", ""),
                Kind::Executable(hash) => ("executable", hash.as_str()),
                Kind::File(hash) => ("file", hash.as_str()),
                Kind::Link(hash) => ("link", hash.as_str()),
                Kind::Other => ("other", ""),
            };
            Some([
                path.as_os_str().as_bytes(),
                kind.as_bytes(),
                hash.as_bytes(),
            ])
        });
        files::digest(parts.flatten())
    }

    /// What of it is in `other` too, and the same there.
    pub(super) fn is_kept_in(&self, other: &Snapshot, left_out: &[PathBuf]) -> bool {
        let mut mine = self
            .items
            .iter()
            .filter(|(path, _)| !left_out.contains(path));
        mine.all(|(path, item)| other.items.get(path).is_some_and(|o| o.what == item.what))
    }
}

struct Walk<'a> {
    trees: &'a Trees,
    old: Option<&'a Snapshot>,
    new: Snapshot,
    now: i64,
    /// Files and folders that may be seen.
    most: usize,
    seen: usize,
}

impl Walk<'_> {
    fn root(&mut self, root: &Path, extent: Extent) -> Result<()> {
        let less = match extent {
            Extent::Own => Some(Extent::Beside),
            Extent::Copied => None,
            extent => return self.visit(root, extent, true),
        };
        let mut walk = Walk {
            trees: self.trees,
            old: self.old,
            new: Snapshot::default(),
            now: self.now,
            most: MAX_OWN,
            seen: 0,
        };
        match walk.visit(root, extent, true) {
            Ok(()) => self.new.items.append(&mut walk.new.items),
            Err(_) if walk.seen > walk.most => {
                self.new.partial = true;
                if let Some(less) = less {
                    self.visit(root, less, true)?;
                }
            }
            Err(failure) => return Err(failure),
        }
        Ok(())
    }

    fn visit(&mut self, path: &Path, extent: Extent, is_root: bool) -> Result<()> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return match is_root {
                    true => self.note(path, None, Kind::Absent),
                    false => Ok(()),
                };
            }
            Err(e) => return Err(files::failed("looking at", path)(e)),
        };
        let state = State::of(&meta).settled(self.now);
        self.count(path)?;
        if meta.is_dir() {
            // In the home folder of a user programs keep what is theirs.
            if extent == Extent::Own && !is_root && is_hidden(path) {
                return Ok(());
            }
            let is_beside = extent == Extent::Beside && !is_root;
            if is_beside || self.trees.left_out.iter().any(|out| out == path) {
                return Ok(());
            }
            self.note(path, state, Kind::Folder)?;
            return self.folder(path, extent);
        }
        if extent <= Extent::Code && !is_root && !is_code(path) {
            return Ok(());
        }
        let old = self.old.and_then(|old| old.items.get(path));
        let old = old.filter(|old| state.is_some() && old.state == state);
        let kind = match old {
            Some(old) => old.what.clone(),
            // Nor can nix read it; permissions are a part of the state.
            None => match content(path, &meta) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Kind::Other,
                kind => kind.map_err(files::failed("reading", path))?,
            },
        };
        self.note(path, state, kind)
    }

    fn folder(&mut self, path: &Path, extent: Extent) -> Result<()> {
        let entries = match fs::read_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            _ => files::entries(path)?,
        };
        for entry in entries {
            let name = entry.file_name().unwrap_or_default();
            if !is_skipped(name, extent) {
                self.visit(&entry, extent, false)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, state: Option<State>, what: Kind) -> Result<()> {
        self.new.items.insert(path.to_owned(), Item { state, what });
        if self.new.items.len() > MAX_ITEMS {
            return Err(too_many(MAX_ITEMS, path));
        }
        Ok(())
    }

    /// Counts what is seen, watched or not, where there is a bound for it.
    fn count(&mut self, path: &Path) -> Result<()> {
        self.seen += 1;
        match self.seen > self.most && self.most < MAX_ITEMS {
            true => Err(too_many(self.most, path)),
            false => Ok(()),
        }
    }
}

fn too_many(most: usize, last: &Path) -> Failure {
    let words = format!(
        "there are more than {most} files to watch, the last is {}",
        last.display()
    );
    Failure::new(Cause::Misused, words)
}

fn content(path: &Path, meta: &Metadata) -> io::Result<Kind> {
    if meta.is_symlink() {
        let target = fs::read_link(path)?;
        return Ok(Kind::Link(files::digest([target.as_os_str().as_bytes()])));
    }
    if !meta.is_file() {
        return Ok(Kind::Other);
    }
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    let hash = files::hex(hasher.finish().as_bytes());
    Ok(match meta.mode() & 0o111 {
        0 => Kind::File(hash),
        _ => Kind::Executable(hash),
    })
}

fn is_skipped(name: &OsStr, extent: Extent) -> bool {
    match extent {
        Extent::Copied | Extent::All => name == ".git",
        Extent::Beside | Extent::Own | Extent::Code => {
            let result = name.as_bytes().strip_prefix(b"result");
            SKIPPED.iter().any(|skipped| name == *skipped)
                || result.is_some_and(|rest| rest.is_empty() || rest[0] == b'-')
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().starts_with(b".")
}

fn is_code(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| READ.contains(&extension))
}

/// What a consent is bound to: the folder in which a flake lies, the file, the path of the store; of what
/// lies elsewhere how it was named.
pub(super) fn location(source: &Source, folder: &Path) -> Result<String> {
    Ok(match source {
        Source::Flake(reference) => match Place::of(reference, folder)? {
            Place::Local { flake, .. } => flake.to_string_lossy().into_owned(),
            Place::Far { .. } => reference.clone(),
        },
        Source::File(file) => match FilePlace::of(file, folder)? {
            FilePlace::Local(place) => place.to_string_lossy().into_owned(),
            _ => file.to_string_lossy().into_owned(),
        },
        // Code may name files by where it is evaluated.
        Source::Expr(code) => format!("{}: {code}", folder.display()),
        Source::Store(path) => path.display(&StoreDir::default()).to_string(),
    })
}

/// Endings of the files that evaluation commonly reads.
pub(super) const READ: &[&str] = &["nix", "toml", "json", "lock", "yaml", "yml"];
/// Names in a flake's own tree that no evaluation should read.
const SKIPPED: &[&str] = &[
    ".git",
    ".hg",
    ".jj",
    ".direnv",
    "target",
    "node_modules",
    "outputs",
];
/// Files and folders that are watched for one environment.
const MAX_ITEMS: usize = 200_000;
/// Files and folders of a file's folder that are looked at; of a larger one less is watched.
const MAX_OWN: usize = 20_000;
/// Bytes of a flake.nix or flake.lock.
const MAX_FLAKE: u64 = 16 << 20;
/// Local inputs of a flake.
const MAX_INPUTS: usize = 1000;
/// How old a change must be for the next one to show: clocks of file systems tick this slowly.
const SETTLED: Duration = Duration::from_secs(2);
/// How far the times that a file system notes may be behind the clock.
const TICK: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::FileTimes;

    /// Makes the file as if it had been there for long; ctime is what it is.
    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        file.set_times(FileTimes::new().set_modified(old)).unwrap();
    }

    fn of(folder: &Path) -> Trees {
        let mut trees = Trees::default();
        trees.add_flake(folder, folder).unwrap();
        trees
    }

    #[test]
    fn places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let sub = root.join("a/b");
        fs::create_dir_all(&sub).unwrap();
        fs::write(root.join("flake.nix"), "").unwrap();
        let local = |flake: &Path, tree: &Path| Place::Local {
            flake: flake.into(),
            tree: tree.into(),
        };
        let found = |text: &str| Place::of(text, &sub).unwrap();
        assert_eq!(found("."), local(&root, &root), "flake.nix is above");
        assert_eq!(found("path:."), local(&sub, &sub));
        let with_dir = format!("path:{}?dir=a/b", root.display());
        assert_eq!(found(&with_dir), local(&sub, &root));
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(sub.join("flake.nix"), "").unwrap();
        assert_eq!(found("."), local(&sub, &root), "a repository is seen whole");
        assert_eq!(
            found(&format!("git+file://{}", root.display())),
            local(&root, &root)
        );
        let commit = "0123456789012345678901234567890123456789";
        for (text, pinned) in [
            ("nixpkgs".to_owned(), false),
            ("github:a/b".to_owned(), false),
            (format!("github:a/b/{commit}"), true),
            (format!("git+https://x/y?rev={commit}"), true),
            ("https://x/y.tar.gz?narHash=sha256-x".to_owned(), true),
            (format!("git+file://{}?ref=main", root.display()), false),
        ] {
            assert_eq!(found(&text), Place::Far { pinned }, "{text}");
        }
        assert!(Place::of("./nowhere", &sub).is_err());
    }

    #[test]
    fn places_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(root.join("real/shell.nix"), "").unwrap();
        std::os::unix::fs::symlink("real/shell.nix", root.join("link.nix")).unwrap();
        std::os::unix::fs::symlink("real", root.join("folder")).unwrap();
        let file = FilePlace::Local(root.join("real/shell.nix"));
        for (text, place) in [
            ("link.nix", file.clone()),
            ("./folder/shell.nix", file),
            ("folder", FilePlace::Local(root.join("real"))),
            ("<nixpkgs>", FilePlace::Searched),
            ("channel:nixos-unstable", FilePlace::Far),
            ("https://x/y.tar.gz", FilePlace::Far),
        ] {
            let found = FilePlace::of(Path::new(text), &root).unwrap();
            assert_eq!(found, place, "{text}");
        }
        assert!(FilePlace::of(Path::new("nowhere.nix"), &root).is_err());

        for (text, places, far) in [
            ("folder", &["real"][..], false),
            ("a=folder:b=nowhere:real", &["real", "real"], false),
            ("nixpkgs=https://x/y.tar.gz:a=folder", &["real"], true),
            ("nixpkgs=channel:nixos-unstable", &[], true),
            ("nixpkgs=flake:nixpkgs", &[], true),
            ("", &[], false),
        ] {
            let places: Vec<_> = places.iter().map(|place| root.join(place)).collect();
            assert_eq!(search_path(text, &root), (places, far), "{text}");
        }
    }

    #[test]
    fn what_was_told_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["own/sub", "own/.hidden", "far/sub", "copied/sub", "left"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        write(&root.join("far/a.nix"), "1");
        let mut trees = Trees::without(vec![root.join("own/left")]);
        trees.add_own(root.join("own"));
        let mut told = Told::default();
        told.files.insert(root.join("far/a.nix"));
        told.copied.insert(root.join("copied"));
        // It holds what is watched already.
        told.copied.insert(root.to_owned());
        trees.add_told(&told);
        let take = || Snapshot::take(&trees, None).unwrap();
        fs::create_dir_all(root.join("own/left")).unwrap();
        for (name, counts) in [
            ("far/a.nix", true),
            ("far/data.json", true),
            ("far/main.c", false),
            ("far/sub/b.nix", false),
            ("own/sub/b.nix", true),
            ("own/sub/main.c", false),
            ("own/.hidden/b.nix", false),
            ("own/left/b.nix", false),
            ("copied/sub/main.c", true),
            ("left/b.nix", false),
        ] {
            let before = take();
            write(&root.join(name), "2");
            assert_eq!(take().digest() != before.digest(), counts, "{name}");
            assert!(!take().partial);
        }
        let before = take();
        fs::remove_file(root.join("far/a.nix")).unwrap();
        assert_ne!(take().digest(), before.digest());
    }

    #[test]
    fn too_much_is_not_all_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let many = root.join("many");
        fs::create_dir_all(&many).unwrap();
        for n in 0..=MAX_OWN {
            File::create(many.join(n.to_string())).unwrap();
        }
        let mut trees = Trees::default();
        trees.add_own(root.to_owned());
        write(&root.join("a.nix"), "1");
        let before = Snapshot::take(&trees, None).unwrap();
        assert!(before.partial);
        write(&root.join("a.nix"), "2");
        let after = Snapshot::take(&trees, None).unwrap();
        assert_ne!(after.digest(), before.digest(), "the folder itself is");
    }

    #[test]
    fn new_files_are_suspected() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let begun = SystemTime::now();
        write(&root.join("a.nix"), "1");
        write(&root.join("flake.lock"), "1");
        let mut trees = Trees::default();
        trees.add_own(root.to_owned());
        let after = Snapshot::take(&trees, None).unwrap();
        let lock = [root.join("flake.lock")];
        let none = Snapshot::default();
        assert!(after.has_new_since(&none, begun, &lock));
        assert!(!after.has_new_since(&after, begun, &lock), "it was known");
        let later = begun + Duration::from_secs(60);
        assert!(!after.has_new_since(&none, later, &lock));
        fs::remove_file(root.join("a.nix")).unwrap();
        let after = Snapshot::take(&trees, None).unwrap();
        assert!(!after.has_new_since(&none, begun, &lock), "a lock is");
    }

    #[test]
    fn local_inputs_are_found() {
        let mut found = BTreeSet::new();
        local_inputs(
            r#"{ inputs.a.url = "path:/abs?x=1"; inputs.b.url = "git+file:///repo"; c = path:./rel; inputs.d.url = "../up"; e = "./no"; }"#,
            &mut found,
        );
        local_inputs(
            r#"{"nodes":{"e":{"locked":{"type":"path","path":"/locked"}},"f":{"locked":{"type":"github","path":"no"}}}}"#,
            &mut found,
        );
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        assert_eq!(found, ["../up", "./rel", "/abs", "/locked", "/repo"]);
    }

    #[test]
    fn what_counts_changes_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("target")).unwrap();
        fs::create_dir_all(root.join("nix")).unwrap();
        write(&root.join("flake.nix"), "1");
        let first = Snapshot::take(&of(root), None).unwrap();
        let digest = |old: &Snapshot| Snapshot::take(&of(root), Some(old)).unwrap().digest();
        assert_eq!(digest(&first), first.digest());
        for (name, counts) in [
            ("main.rs", false),
            ("target/x.nix", false),
            ("result-1", false),
            ("nix/x.nix", true),
            ("Cargo.lock", true),
            ("flake.nix", true),
        ] {
            let before = Snapshot::take(&of(root), None).unwrap();
            write(&root.join(name), "2");
            assert_eq!(digest(&before) != before.digest(), counts, "{name}");
        }
        let before = Snapshot::take(&of(root), None).unwrap();
        fs::remove_file(root.join("nix/x.nix")).unwrap();
        assert_ne!(digest(&before), before.digest());
    }

    #[test]
    fn what_has_just_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flake.nix");
        write(&file, "1");
        let first = Snapshot::take(&of(folder.path()), None).unwrap();
        assert!(!first.holds(), "it may change again in the same tick");
        fs::write(&file, "2").unwrap();
        let second = Snapshot::take(&of(folder.path()), Some(&first)).unwrap();
        assert_ne!(first.digest(), second.digest());
    }

    #[test]
    fn whole_trees_count() {
        let folder = tempfile::tempdir().unwrap();
        let (flake, input) = (folder.path().join("flake"), folder.path().join("input"));
        fs::create_dir_all(&flake).unwrap();
        let text = format!("{{ inputs.i.url = \"path:{}\"; }}", input.display());
        write(&flake.join("flake.nix"), &text);
        let absent = Snapshot::take(&of(&flake), None).unwrap();
        fs::create_dir_all(&input).unwrap();
        write(&input.join("data.txt"), "1");
        let there = Snapshot::take(&of(&flake), Some(&absent)).unwrap();
        assert_ne!(there.digest(), absent.digest());
        write(&input.join("data.txt"), "22");
        let changed = Snapshot::take(&of(&flake), Some(&there)).unwrap();
        assert_ne!(there.digest(), changed.digest());
    }
}
