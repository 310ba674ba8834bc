//! Looks at all that counts.

use super::{
    snapshot::{FileState, InputItem, InputKind, InputsSnapshot, is_gone},
    trees::{Extent, Trees},
};
use crate::{
    Cause, NixFailure, Result,
    shell::{
        files,
        git::{Repository, TrackedFile},
        mentions::Mentions,
    },
};
use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    time::SystemTime,
};
use tk_path::{Algorithm, Encoding, Hasher};

impl InputsSnapshot {
    /// Looks at `trees`. What is as `old` says is not read again.
    pub fn take(trees: &Trees, old: Option<&InputsSnapshot>) -> Result<InputsSnapshot> {
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
    let hash = hasher.finish().digits(Encoding::Base16);
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

/// Endings of the files that evaluation commonly reads.
pub(super) const READ: &[&str] = &["nix", "toml", "json", "lock", "yaml", "yml"];
/// Folders of version control.
const CONTROL: &[&str] = &[".git", ".hg", ".jj"];
/// Folders that are not looked into unless code names them: they are large, and change all the time.
const SKIPPED: &[&str] = &[".direnv", "target", "node_modules", "outputs"];
/// Files and folders that are watched for one environment.
const MAX_ITEMS: usize = 200_000;
/// Files and folders of a file's folder that are looked at; of a larger one less is watched.
pub(super) const MAX_OWN: usize = 20_000;
