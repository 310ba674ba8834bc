//! What an evaluation depends on, and whether any of it changed.
//!
//! Of a flake's own tree, and of the folder of a file, those files count that evaluation commonly reads
//! ([`READ`]), and those that the code can mean that was evaluated (see `mentions`); of local inputs and of what the
//! caller names the whole trees; and all that nix said it read (see `told`): each file of Nix code with
//! the files beside it that count in the same way, and what was copied to the store. Of a flake in a
//! repository evaluation sees nothing but what git has, and the commit (see `git`).
//!
//! All that is looked at is noted with its state (size, times, inode); as long as the states are the same nothing is
//! read. Like git, a file that changed moments before it was noted is read again, since a further
//! change may leave its times the same.

use super::{
    eval_reads::EvalReads,
    files,
    git::{Repository, TrackedFile},
    mentions::{self, Mentions},
};
use crate::{Cause, InstallableSource, NixFailure, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Component, Path, PathBuf},
    time::{Duration, SystemTime},
};
use tk_path::{Algorithm, Hasher, StoreDir};

/// Where a flake comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FlakePlace {
    /// A folder of this machine.
    Local(LocalFlake),
    /// Somewhere else: what is behind the reference may change unless it is `pinned`.
    Far {
        /// Whether it names content.
        pinned: bool,
    },
}

/// A flake in a folder of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalFlake {
    /// The folder of flake.nix.
    pub(super) flake: PathBuf,
    /// The folder that evaluation sees: of a git repository all.
    pub(super) tree: PathBuf,
    /// Whether it sees only what git has of that.
    pub(super) is_tracked: bool,
}

impl LocalFlake {
    /// Where flake.nix lies in the tree.
    pub(super) fn file(&self) -> PathBuf {
        let folder = self.flake.strip_prefix(&self.tree);
        folder.unwrap_or(Path::new("")).join("flake.nix")
    }
}

impl FlakePlace {
    /// Where `reference` leads, as Nix reads it, beginning in `folder`.
    pub(super) fn of(reference: &str, folder: &Path) -> Result<FlakePlace> {
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
            return Ok(FlakePlace::Far { pinned });
        }
        let path = folder.join(path);
        let tree = path.canonicalize().map_err(|error| {
            let words = format!("there is no flake {}: {error}", path.display());
            NixFailure::new(Cause::Misused, words)
        })?;
        let is_path = base.starts_with("path:");
        let flake = match query.get("dir") {
            Some(dir) => tree.join(dir),
            None if is_path || git.is_some() => tree.clone(),
            None => upwards(&tree, "flake.nix").unwrap_or_else(|| tree.clone()),
        };
        let repository = upwards(&flake, ".git").filter(|_| !is_path);
        let is_tracked = repository.is_some();
        let own = if is_path && flake.starts_with(&tree) {
            tree
        } else {
            flake.clone()
        };
        let tree = repository.unwrap_or(own);
        Ok(FlakePlace::Local(LocalFlake {
            flake,
            tree,
            is_tracked,
        }))
    }
}

/// Where a file of Nix code lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FilePlace {
    /// On this machine: the file or the folder of a default.nix, links resolved.
    Local(PathBuf),
    /// In the search path: `<nixpkgs>`.
    Searched,
    /// At an address, such as `https://` or `channel:`.
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
            NixFailure::new(Cause::Misused, words)
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
    /// Trees of which only what git has is seen.
    repositories: BTreeMap<PathBuf, Repository>,
    /// Files of these that were evaluated.
    evaluated: BTreeSet<PathBuf>,
    /// What the code mentions that was evaluated in a root.
    mentions: BTreeMap<PathBuf, Mentions>,
    /// What evaluation can see beyond its own trees.
    view: View,
}

/// What evaluation can see, and nix tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Whether files of the machine can be read that are in no tree of its own.
    pub(super) sees_machine: bool,
    /// Whether nix tells of what is copied to the store through a filter.
    pub(super) tells_filtered: bool,
    /// Folders of the store, whose files stay what they are.
    pub(super) stores: Vec<PathBuf>,
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
    /// All files, however many there are.
    All,
}

impl Trees {
    /// None yet; the folders in `left_out` are never looked into.
    pub(super) fn new(left_out: Vec<PathBuf>, view: View) -> Trees {
        Trees {
            left_out,
            view,
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

    /// With what nix said it read.
    pub(super) fn add_told(&mut self, told: &EvalReads) {
        let own: Vec<_> = self.roots.keys().cloned().collect();
        let mut room = MAX_TEXT;
        for file in &told.files {
            let folder = file.parent().unwrap_or(file);
            let roots = own.iter().filter(|own| folder.starts_with(own));
            let mut roots: Vec<_> = roots.cloned().collect();
            let is_own = !roots.is_empty();
            if !is_own {
                self.at_least(folder.to_owned(), Extent::Beside);
                roots.push(folder.to_owned());
            }
            // Whether git has it still is for the tree to say.
            if self.is_tracked(file) {
                self.evaluated.insert(file.clone());
            } else {
                self.at_least(file.clone(), Extent::All)
            }
            let code = files::read(file, room).ok().flatten().unwrap_or_default();
            room -= code.len() as u64;
            let code = String::from_utf8_lossy(&code);
            for root in roots {
                self.mention(root, &code);
            }
            if self.view.sees_machine && (is_own || told.files.len() < FEW_FILES) {
                self.add_written(folder, &code, &own);
            }
        }
        for path in &told.copied {
            // What was a file and is gone counts as one.
            let extent = if path.is_dir() {
                Extent::Copied
            } else {
                Extent::All
            };
            self.at_least(path.clone(), extent);
        }
    }

    fn is_tracked(&self, path: &Path) -> bool {
        let mut trees = self.repositories.keys();
        trees.any(|tree| path.starts_with(tree))
    }

    fn mention(&mut self, root: PathBuf, code: &str) {
        let mentions = self.mentions.entry(root).or_default();
        mentions.add(code, self.view.tells_filtered);
    }

    /// With what the paths lead to that are written in `code`, in `folder`.
    fn add_written(&mut self, folder: &Path, code: &str, own: &[PathBuf]) {
        for text in mentions::paths(code).take(MAX_WRITTEN) {
            let path = without_dots(&folder.join(text));
            let mut known = own.iter().chain(&self.view.stores);
            let is_known = known.any(|known| path.starts_with(known));
            let is_volatile = VOLATILE.iter().any(|folder| path.starts_with(folder));
            if path == folder || is_known || is_volatile {
                continue;
            }
            match fs::metadata(&path) {
                Ok(meta) if !meta.is_dir() && meta.len() > MAX_WRITTEN_FILE => {}
                // Anything can begin with the name of a folder of the system.
                Ok(meta) if meta.is_dir() && text.starts_with('/') => {}
                Ok(meta) if meta.is_dir() => {
                    self.at_least(path.clone(), Extent::Beside);
                    self.mention(path, code);
                }
                _ => {
                    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
                    self.at_least(real, Extent::All);
                    self.at_least(path, Extent::All);
                }
            }
        }
    }

    fn at_least(&mut self, path: PathBuf, extent: Extent) {
        let at = self.roots.entry(path).or_insert(extent);
        *at = extent.max(*at);
    }

    /// With the own tree of a flake, and the local inputs that flake.nix and flake.lock name.
    pub(super) fn add_flake(&mut self, local: &LocalFlake) -> Result<()> {
        let (flake, tree) = (&local.flake, &local.tree);
        self.roots.entry(tree.to_owned()).or_insert(Extent::Code);
        let repository = local.is_tracked.then(|| Repository::of(tree));
        if let Some(repository) = repository.flatten() {
            self.repositories.insert(tree.to_owned(), repository);
        }
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
            match self.is_tracked(&path) {
                _ if path == *tree || path == *flake => {}
                true => self.at_least(path, Extent::Copied),
                false => self.add(path),
            }
        }
        Ok(())
    }
}

/// `path` without `.` and `..`, as Nix reads it.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
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
pub(super) struct InputsSnapshot {
    items: BTreeMap<PathBuf, InputItem>,
    /// What nix said it read, which is among the items.
    #[serde(default)]
    pub(super) told: EvalReads,
    /// Whether there was too much of something to watch all of it.
    #[serde(default)]
    pub(super) partial: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct InputItem {
    /// `None` if it had changed moments before.
    state: Option<FileState>,
    what: InputKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum InputKind {
    Absent,
    Folder,
    /// A file of git, of which the state counts alone: what it says is noted elsewhere.
    Mark,
    /// One that is not there.
    NoMark,
    /// The commit that is checked out.
    Commit(String),
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
struct FileState(u64, u32, u64, u64, i64, i64);

impl FileState {
    fn of(meta: &Metadata) -> FileState {
        let nanos = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
        FileState(
            meta.size(),
            meta.mode(),
            meta.ino(),
            meta.dev(),
            nanos(meta.mtime(), meta.mtime_nsec()),
            nanos(meta.ctime(), meta.ctime_nsec()),
        )
    }

    /// The state, if it is so old that no further change can have left it the same.
    fn settled(self, now: i64) -> Option<FileState> {
        (now - self.newest() > SETTLED.as_nanos() as i64).then_some(self)
    }

    fn newest(self) -> i64 {
        self.4.max(self.5)
    }
}

impl InputsSnapshot {
    /// Looks at `trees`. What is as `old` says is not read again.
    pub(super) fn take(trees: &Trees, old: Option<&InputsSnapshot>) -> Result<InputsSnapshot> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut walk = InputsWalk {
            trees,
            old,
            mentions: &Mentions::default(),
            new: InputsSnapshot::default(),
            now: now.map_or(0, |now| now.as_nanos() as i64),
            most: usize::MAX,
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
        let files = files.filter(|(_, item)| {
            !matches!(
                item.what,
                InputKind::Folder | InputKind::Other | InputKind::NoMark
            )
        });
        files.map(|(path, _)| path.as_path())
    }

    /// Whether a file that is neither in `before` nor in `left_out` may have changed after `moment`.
    pub(super) fn has_new_since(
        &self,
        before: &InputsSnapshot,
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
            Ok(meta) => FileState::of(&meta).newest() >= moment,
            Err(_) => self.items[path].what != InputKind::Absent,
        })
    }

    /// Whether nothing changed since, as far as states tell.
    pub(super) fn holds(&self) -> bool {
        !self.items.is_empty()
            && self.items.iter().all(|(path, item)| {
                match (fs::symlink_metadata(path), &item.what) {
                    (Err(e), InputKind::Absent | InputKind::NoMark) => is_gone(&e),
                    (Ok(meta), _) => item.state == Some(FileState::of(&meta)),
                    (Err(_), _) => false,
                }
            })
    }

    /// The digest of the content.
    pub(super) fn digest(&self) -> String {
        let parts = self.items.iter().filter_map(|(path, item)| {
            let (kind, hash) = match &item.what {
                InputKind::Folder | InputKind::Mark | InputKind::NoMark => return None,
                InputKind::Absent => ("absent", ""),
                InputKind::Commit(commit) => ("commit", commit.as_str()),
                InputKind::Executable(hash) => ("executable", hash.as_str()),
                InputKind::File(hash) => ("file", hash.as_str()),
                InputKind::Link(hash) => ("link", hash.as_str()),
                InputKind::Other => ("other", ""),
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
    pub(super) fn is_kept_in(&self, other: &InputsSnapshot, left_out: &[PathBuf]) -> bool {
        let counts = |kind: &InputKind| {
            !matches!(
                kind,
                InputKind::Folder | InputKind::Mark | InputKind::NoMark
            )
        };
        let mine = self.items.iter();
        let mut mine = mine.filter(|(path, item)| counts(&item.what) && !left_out.contains(path));
        mine.all(|(path, item)| other.items.get(path).is_some_and(|o| o.what == item.what))
    }
}

struct InputsWalk<'a> {
    trees: &'a Trees,
    old: Option<&'a InputsSnapshot>,
    /// What the code of the present root mentions.
    mentions: &'a Mentions,
    new: InputsSnapshot,
    now: i64,
    /// Files and folders that may be seen.
    most: usize,
    seen: usize,
}

impl InputsWalk<'_> {
    fn root(&mut self, root: &Path, extent: Extent) -> Result<()> {
        let (most, less) = match extent {
            Extent::Beside | Extent::All => (usize::MAX, None),
            Extent::Own => (MAX_OWN, Some(Extent::Beside)),
            Extent::Code => (usize::MAX, Some(Extent::Beside)),
            Extent::Copied => (MAX_OWN, Some(Extent::Own)),
        };
        let nothing = Mentions::default();
        let mut walk = InputsWalk {
            trees: self.trees,
            old: self.old,
            mentions: self.trees.mentions.get(root).unwrap_or(&nothing),
            new: InputsSnapshot::default(),
            now: self.now,
            most,
            seen: 0,
        };
        match (walk.begin(root, extent), less) {
            (Ok(()), _) => self.new.items.append(&mut walk.new.items),
            (Err(_), Some(less)) if walk.seen > most || walk.new.items.len() > MAX_ITEMS => {
                self.new.partial = true;
                return self.root(root, less);
            }
            (Err(failure), _) => return Err(failure),
        }
        if self.new.items.len() > MAX_ITEMS {
            Err(too_many(MAX_ITEMS, root))
        } else {
            Ok(())
        }
    }

    fn begin(&mut self, root: &Path, extent: Extent) -> Result<()> {
        let mut repositories = self.trees.repositories.iter();
        let of_root = repositories.find(|(tree, _)| root.starts_with(tree));
        let is_seen_by_git = matches!(extent, Extent::Code | Extent::Copied);
        if let Some((tree, repository)) = of_root.filter(|_| is_seen_by_git) {
            self.checked_out(repository)?;
            let index = repository.index();
            match repository
                .tracked()
                .map_err(files::failed("reading", &index))?
            {
                Some(all) => return self.tracked(tree, &all, root, extent),
                // Then all of the folder may be seen, and what is seen changes with the index.
                None => self.visit(&index, Extent::All, true)?,
            }
        }
        self.visit(root, extent, true)
    }

    /// Notes the commit, and what tells that there is another one, or that git has other files.
    fn checked_out(&mut self, repository: &Repository) -> Result<()> {
        let checked_out = repository.checked_out();
        let (index, mut marks) = (repository.index(), checked_out.marks.into_iter());
        let commit = marks
            .next()
            .map(|head| (head, InputKind::Commit(checked_out.commit)));
        let marks = marks.chain([index]).map(|mark| (mark, InputKind::Mark));
        for (path, kind) in commit.into_iter().chain(marks) {
            match fs::symlink_metadata(&path) {
                Ok(meta) => self.note(&path, FileState::of(&meta).settled(self.now), kind)?,
                Err(e) if is_gone(&e) => self.note(&path, None, InputKind::NoMark)?,
                Err(e) => return Err(files::failed("looking at", &path)(e)),
            }
        }
        Ok(())
    }

    /// Visits what git has of `root`.
    fn tracked(
        &mut self,
        tree: &Path,
        all: &[TrackedFile],
        root: &Path,
        extent: Extent,
    ) -> Result<()> {
        for file in all {
            let path = tree.join(&file.path);
            if path.starts_with(root) && (file.is_submodule || self.counts(&path, extent)) {
                self.visit(&path, extent, false)?;
            }
        }
        Ok(())
    }

    /// Whether a file counts.
    fn counts(&self, path: &Path, extent: Extent) -> bool {
        extent > Extent::Code
            || is_code(path)
            || self.trees.evaluated.contains(path)
            || self.mentions.is_named(path.file_name().unwrap_or_default())
    }

    /// Whether a folder is looked into.
    fn is_entered(&self, path: &Path, extent: Extent) -> bool {
        let name = path.file_name().unwrap_or_default();
        let is_skipped = match extent {
            Extent::Copied | Extent::All => false,
            // In the home folder of a user programs keep what is theirs.
            Extent::Own => is_skipped(name) || is_hidden(path),
            Extent::Beside | Extent::Code => is_skipped(name),
        };
        !is_skipped || self.mentions.is_named(name)
    }

    fn visit(&mut self, path: &Path, extent: Extent, is_root: bool) -> Result<()> {
        let meta = match fs::symlink_metadata(path) {
            Ok(meta) => meta,
            Err(e) if is_gone(&e) => {
                return if is_root {
                    self.note(path, None, InputKind::Absent)
                } else {
                    Ok(())
                };
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return self.note(path, None, InputKind::Other);
            }
            Err(e) => return Err(files::failed("looking at", path)(e)),
        };
        let state = FileState::of(&meta).settled(self.now);
        self.count(path)?;
        if meta.is_dir() {
            let is_beside = extent == Extent::Beside && !self.mentions.is_all();
            let is_left_out = self.trees.left_out.iter().any(|out| out == path);
            if is_left_out || !is_root && (is_beside || !self.is_entered(path, extent)) {
                return Ok(());
            }
            // Whoever lists folders sees the names of folders, too.
            let kind = if self.mentions.is_all() {
                InputKind::Other
            } else {
                InputKind::Folder
            };
            self.note(path, state, kind)?;
            return if extent == Extent::Beside && !is_root {
                Ok(())
            } else {
                self.folder(path, extent)
            };
        }
        // Any code has that word, and builds make such links all the time.
        let is_result = meta.is_symlink() && is_skipped(path.file_name().unwrap_or_default());
        if !is_root && (is_result && extent <= Extent::Code || !self.counts(path, extent)) {
            return Ok(());
        }
        let old = self.old.and_then(|old| old.items.get(path));
        let old = old.filter(|old| state.is_some() && old.state == state);
        let kind = match old {
            Some(old) => old.what.clone(),
            // Nor can nix read it; permissions are a part of the state.
            None => match content(path, &meta) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => InputKind::Other,
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
            // Nor does Nix look at what version control keeps for itself.
            let name = entry.file_name().unwrap_or_default();
            if !CONTROL.iter().any(|control| name == *control) {
                self.visit(&entry, extent, false)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, state: Option<FileState>, what: InputKind) -> Result<()> {
        self.new
            .items
            .insert(path.to_owned(), InputItem { state, what });
        if self.new.items.len() > MAX_ITEMS {
            return Err(too_many(MAX_ITEMS, path));
        }
        Ok(())
    }

    /// Counts what is seen, watched or not, where there is a bound for it.
    fn count(&mut self, path: &Path) -> Result<()> {
        self.seen += 1;
        if self.seen > self.most {
            Err(too_many(self.most, path))
        } else {
            Ok(())
        }
    }
}

/// Whether it says that something is not there: a part of its path may be a file now.
fn is_gone(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    kinds.contains(&error.kind())
}

fn too_many(most: usize, last: &Path) -> NixFailure {
    let words = format!(
        "there are more than {most} files to watch, the last is {}",
        last.display()
    );
    NixFailure::new(Cause::Misused, words)
}

fn content(path: &Path, meta: &Metadata) -> io::Result<InputKind> {
    if meta.is_symlink() {
        let target = fs::read_link(path)?;
        return Ok(InputKind::Link(files::digest([target
            .as_os_str()
            .as_bytes()])));
    }
    if !meta.is_file() {
        return Ok(InputKind::Other);
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
        0 => InputKind::File(hash),
        _ => InputKind::Executable(hash),
    })
}

fn is_skipped(name: &OsStr) -> bool {
    let result = name.as_bytes().strip_prefix(b"result");
    SKIPPED.iter().any(|skipped| name == *skipped)
        || result.is_some_and(|rest| rest.is_empty() || rest[0] == b'-')
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
pub(super) fn location(source: &InstallableSource, folder: &Path) -> Result<String> {
    Ok(match source {
        InstallableSource::Flake(reference) => match FlakePlace::of(reference, folder)? {
            FlakePlace::Local(local) => local.flake.to_string_lossy().into_owned(),
            FlakePlace::Far { .. } => reference.clone(),
        },
        InstallableSource::File(file) => match FilePlace::of(file, folder)? {
            FilePlace::Local(place) => place.to_string_lossy().into_owned(),
            _ => file.to_string_lossy().into_owned(),
        },
        // Code may name files by where it is evaluated.
        InstallableSource::Expr(code) => format!("{}: {code}", folder.display()),
        InstallableSource::Store(path) => path.display(&StoreDir::default()).to_string(),
    })
}

/// Endings of the files that evaluation commonly reads.
pub(super) const READ: &[&str] = &["nix", "toml", "json", "lock", "yaml", "yml"];
/// Folders of version control.
const CONTROL: &[&str] = &[".git", ".hg", ".jj"];
/// Folders that are not looked into unless code names them: they are large, and change all the time.
const SKIPPED: &[&str] = &[".direnv", "target", "node_modules", "outputs"];
/// Bytes of the code that is searched for names.
const MAX_TEXT: u64 = 64 << 20;
/// Files of Nix code up to which the paths count that are written in those of others.
const FEW_FILES: usize = 500;
/// Paths that are written in one file.
const MAX_WRITTEN: usize = 1000;
/// Bytes of a file that is written in code by its path.
const MAX_WRITTEN_FILE: u64 = 64 << 20;
/// Folders in which files are another each time.
const VOLATILE: [&str; 3] = ["/proc", "/sys", "/dev"];
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
        trees.add_flake(&local(folder, folder, false)).unwrap();
        trees
    }

    fn local(flake: &Path, tree: &Path, is_tracked: bool) -> LocalFlake {
        LocalFlake {
            flake: flake.into(),
            tree: tree.into(),
            is_tracked,
        }
    }

    #[test]
    fn places() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let sub = root.join("a/b");
        fs::create_dir_all(&sub).unwrap();
        fs::write(root.join("flake.nix"), "").unwrap();
        let place = |flake: &Path, tree: &Path, is_tracked| {
            FlakePlace::Local(local(flake, tree, is_tracked))
        };
        let found = |text: &str| FlakePlace::of(text, &sub).unwrap();
        assert_eq!(found("."), place(&root, &root, false), "flake.nix is above");
        assert_eq!(found("path:."), place(&sub, &sub, false));
        let with_dir = format!("path:{}?dir=a/b", root.display());
        assert_eq!(found(&with_dir), place(&sub, &root, false));
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(sub.join("flake.nix"), "").unwrap();
        assert_eq!(
            found("."),
            place(&sub, &root, true),
            "a repository is seen whole"
        );
        assert_eq!(
            found(&format!("git+file://{}", root.display())),
            place(&root, &root, true)
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
            assert_eq!(found(&text), FlakePlace::Far { pinned }, "{text}");
        }
        assert!(FlakePlace::of("./nowhere", &sub).is_err());
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
        let mut trees = Trees::new(vec![root.join("own/left")], View::default());
        trees.add_own(root.join("own"));
        let mut told = EvalReads::default();
        told.files.insert(root.join("far/a.nix"));
        told.copied.insert(root.join("copied"));
        trees.add_told(&told);
        let take = || InputsSnapshot::take(&trees, None).unwrap();
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
        let before = InputsSnapshot::take(&trees, None).unwrap();
        assert!(before.partial);
        write(&root.join("a.nix"), "2");
        let after = InputsSnapshot::take(&trees, None).unwrap();
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
        let after = InputsSnapshot::take(&trees, None).unwrap();
        let lock = [root.join("flake.lock")];
        let none = InputsSnapshot::default();
        assert!(after.has_new_since(&none, begun, &lock));
        assert!(!after.has_new_since(&after, begun, &lock), "it was known");
        let later = begun + Duration::from_secs(60);
        assert!(!after.has_new_since(&none, later, &lock));
        fs::remove_file(root.join("a.nix")).unwrap();
        let after = InputsSnapshot::take(&trees, None).unwrap();
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
        let first = InputsSnapshot::take(&of(root), None).unwrap();
        let digest =
            |old: &InputsSnapshot| InputsSnapshot::take(&of(root), Some(old)).unwrap().digest();
        assert_eq!(digest(&first), first.digest());
        for (name, counts) in [
            ("main.rs", false),
            ("target/x.nix", false),
            ("result-1", false),
            ("nix/x.nix", true),
            ("Cargo.lock", true),
            ("flake.nix", true),
        ] {
            let before = InputsSnapshot::take(&of(root), None).unwrap();
            write(&root.join(name), "2");
            assert_eq!(digest(&before) != before.digest(), counts, "{name}");
        }
        let before = InputsSnapshot::take(&of(root), None).unwrap();
        fs::remove_file(root.join("nix/x.nix")).unwrap();
        assert_ne!(digest(&before), before.digest());
    }

    #[test]
    fn what_has_just_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("flake.nix");
        write(&file, "1");
        let first = InputsSnapshot::take(&of(folder.path()), None).unwrap();
        assert!(!first.holds(), "it may change again in the same tick");
        fs::write(&file, "2").unwrap();
        let second = InputsSnapshot::take(&of(folder.path()), Some(&first)).unwrap();
        assert_ne!(first.digest(), second.digest());
    }

    #[test]
    fn whole_trees_count() {
        let folder = tempfile::tempdir().unwrap();
        let (flake, input) = (folder.path().join("flake"), folder.path().join("input"));
        fs::create_dir_all(&flake).unwrap();
        let text = format!("{{ inputs.i.url = \"path:{}\"; }}", input.display());
        write(&flake.join("flake.nix"), &text);
        let absent = InputsSnapshot::take(&of(&flake), None).unwrap();
        fs::create_dir_all(&input).unwrap();
        write(&input.join("data.txt"), "1");
        let there = InputsSnapshot::take(&of(&flake), Some(&absent)).unwrap();
        assert_ne!(there.digest(), absent.digest());
        write(&input.join("data.txt"), "22");
        let changed = InputsSnapshot::take(&of(&flake), Some(&there)).unwrap();
        assert_ne!(there.digest(), changed.digest());
    }
}
