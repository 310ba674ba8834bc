//! What git has of a folder: evaluation of a flake sees those files and no others, and the commit.
//!
//! ```text
//! .git  = the folder of git's files, or a file "gitdir: FOLDER"; FOLDER/commondir leads to that of all worktrees
//! HEAD  = COMMIT | "ref: " NAME;  NAME is a file with COMMIT, or a line "COMMIT NAME" of packed-refs
//! index = "DIRC", version u32 (2 to 4), count u32, entries, extensions (name[4], size u32, …), checksum
//! entry = times, device, inode (24 bytes), mode u32, owner, size (12 bytes), object (20 bytes; 32 with SHA-256),
//!         flags u16, further flags u16 (from version 3 on, if flags & 0x4000), name
//! name  = up to version 3: NUL-terminated, with NULs up to a multiple of 8 bytes of the entry;
//!         version 4: a number (how many bytes of the name before do not count), then the rest, NUL-terminated
//! ```
//! Numbers are big-endian. An index in another form (split in two) is told as such, never taken for an
//! empty one.

use super::files;
use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

/// A folder that git looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    /// The files of git that are this folder's own.
    git: PathBuf,
    /// Those that it shares with other worktrees.
    common: PathBuf,
}

/// A file that git has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TrackedFile {
    /// Where it lies in the folder.
    pub(super) path: PathBuf,
    /// Whether it is another repository, whose files are its own.
    pub(super) is_submodule: bool,
}

/// The commit that is checked out, and what says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckedOut {
    /// Its name, or something else that changes with it.
    pub(super) commit: String,
    /// Files of git whose state tells whether it is another one now; they may not be there.
    pub(super) marks: Vec<PathBuf>,
}

impl Repository {
    /// That of `tree`, if it is one.
    pub(super) fn of(tree: &Path) -> Option<Repository> {
        let place = tree.join(".git");
        let git = if place.is_dir() {
            place
        } else {
            let text = text(&place).ok()?;
            tree.join(text.strip_prefix("gitdir: ")?.trim_end())
        };
        let common = text(&git.join("commondir"));
        let common = common.map_or_else(|_| git.clone(), |text| git.join(text.trim_end()));
        Some(Repository { git, common })
    }

    /// The file of the index.
    pub(super) fn index(&self) -> PathBuf {
        self.git.join("index")
    }

    /// The files that git has, added ones too; none without an index. `None` if it is in a form that
    /// is not known.
    pub(super) fn tracked(&self) -> io::Result<Option<Vec<TrackedFile>>> {
        match files::read(&self.index(), MAX_INDEX)? {
            Some(bytes) => Ok(OBJECTS.iter().find_map(|object| entries(&bytes, *object))),
            None => Ok(Some(Vec::new())),
        }
    }

    /// The commit that is checked out.
    pub(super) fn checked_out(&self) -> CheckedOut {
        let (head, packed) = (self.git.join("HEAD"), self.common.join("packed-refs"));
        let mut marks = vec![head.clone()];
        let mut commit = text(&head).unwrap_or_default();
        for _ in 0..MAX_LINKS {
            let Some(name) = commit.strip_prefix("ref: ") else {
                break;
            };
            let name = name.trim_end().to_owned();
            let file = self.common.join(&name);
            let known = text(&file).ok().or_else(|| self.packed(&packed, &name));
            marks.push(file);
            match known {
                Some(known) => commit = known,
                // There is no commit yet, or refs are in tables.
                None => {
                    let tables = self.common.join("reftable/tables.list");
                    commit = format!("{name} {}", text(&tables).unwrap_or_default());
                    marks.push(tables);
                    break;
                }
            }
        }
        marks.push(packed);
        CheckedOut {
            commit: commit.trim_end().to_owned(),
            marks,
        }
    }

    fn packed(&self, file: &Path, name: &str) -> Option<String> {
        let bytes = files::read(file, MAX_PACKED).ok()??;
        let text = String::from_utf8_lossy(&bytes);
        let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.find_map(|(commit, of)| (of == name).then(|| commit.to_owned()))
    }
}

fn text(file: &Path) -> io::Result<String> {
    let bytes = files::read(file, MAX_TEXT)?.ok_or(io::ErrorKind::NotFound)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The entries of an index whose objects have names of `object` bytes.
fn entries(index: &[u8], object: usize) -> Option<Vec<TrackedFile>> {
    let number = |at: usize| -> Option<usize> {
        let bytes = index.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    };
    let version = number(4)?;
    if !index.starts_with(b"DIRC") || !(2..=4).contains(&version) {
        return None;
    }
    let (mut at, mut all, mut name) = (12, Vec::new(), Vec::new());
    for _ in 0..number(8)? {
        let mode = number(at + 24)?;
        if !MODES.contains(&mode) {
            return None;
        }
        let flags = at + 40 + object;
        let is_extended = index.get(flags)? & 0x40 != 0;
        let begin = flags + if is_extended { 4 } else { 2 };
        let begin = match version {
            4 => {
                // Version 4 leaves out what a name has in common with the name before it.
                let (left_out, begin) = varint(index, begin)?;
                name.truncate(name.len().checked_sub(left_out)?);
                begin
            }
            _ => {
                name.clear();
                begin
            }
        };
        let rest = index.get(begin..)?;
        let length = rest.iter().position(|byte| *byte == 0)?;
        name.extend_from_slice(&rest[..length]);
        at = match version {
            4 => begin + length + 1,
            // Older versions pad an entry with 1 to 8 zero bytes, to a length that is a multiple of 8.
            _ => at + ((begin - at + length + 8) & !7),
        };
        let path = PathBuf::from(OsStr::from_bytes(&name));
        let is_inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        // A folder that is left out of a sparse checkout is not there.
        if mode != SPARSE && path.components().all(is_inside) {
            let is_submodule = mode == SUBMODULE;
            all.push(TrackedFile { path, is_submodule });
        }
    }
    while at + 8 + object <= index.len() {
        // The other half of it is in another file.
        if index.get(at..at + 4)? == b"link" {
            return None;
        }
        at = at.checked_add(8)?.checked_add(number(at + 4)?)?;
    }
    Some(all)
}

/// A number of version 4, and where it ends.
fn varint(bytes: &[u8], mut at: usize) -> Option<(usize, usize)> {
    let mut value = 0_usize;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        value = value.checked_mul(128)? + usize::from(byte & 127);
        if byte & 128 == 0 {
            return Some((value, at));
        }
        value += 1;
    }
}

const SUBMODULE: usize = 0o160_000;
const SPARSE: usize = 0o040_000;
/// Modes of entries: a file, one that can be run, a link, and those above.
const MODES: [usize; 5] = [0o100_644, 0o100_755, 0o120_000, SUBMODULE, SPARSE];
/// Bytes of the names of objects.
const OBJECTS: [usize; 2] = [20, 32];
/// Bytes of an index: that of a repository of a million files.
const MAX_INDEX: u64 = 256 << 20;
/// The largest file of packed refs that is read, in bytes.
const MAX_PACKED: u64 = 64 << 20;
/// Bytes of other files of git.
const MAX_TEXT: u64 = 64 << 10;
/// Names that lead to other names.
const MAX_LINKS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, process::Command};

    /// Runs git in `folder`; `None` if there is no git here.
    fn git(folder: &Path, args: &[&str]) -> Option<String> {
        let mut run = Command::new("git");
        run.current_dir(folder).args([
            "-c",
            "user.name=x",
            "-c",
            "user.email=a@b",
            "-c",
            "init.defaultBranch=main",
        ]);
        run.env_remove("GIT_DIR").env_remove("GIT_INDEX_FILE");
        let done = run.args(args).output().ok()?;
        assert!(done.status.success(), "{args:?}: {done:?}");
        Some(String::from_utf8(done.stdout).unwrap().trim().to_owned())
    }

    fn names(repository: &Repository) -> Option<Vec<String>> {
        let tracked = repository.tracked().unwrap()?;
        let names = tracked.iter().map(|file| file.path.display().to_string());
        Some(names.collect())
    }

    #[test]
    fn what_git_writes() {
        for format in ["sha1", "sha256"] {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path();
            assert_eq!(Repository::of(root), None);
            let init = ["init", "-q", "--object-format", format];
            if git(root, &init).is_none() {
                return;
            }
            let repository = Repository::of(root).unwrap();
            assert_eq!(names(&repository), Some(vec![]), "there is no index yet");
            fs::create_dir(root.join("sub")).unwrap();
            for name in [
                "a.nix",
                "sub/é.nix",
                "sub/a name",
                "sub/abcdefgh",
                "untracked",
            ] {
                fs::write(root.join(name), "1").unwrap();
            }
            git(root, &["add", "sub"]);
            git(root, &["add", "-N", "a.nix"]);
            let all = ["a.nix", "sub/a name", "sub/abcdefgh", "sub/é.nix"];
            for version in ["2", "4"] {
                git(root, &["update-index", "--index-version", version]);
                assert_eq!(names(&repository).unwrap(), all, "version {version}");
            }
            let unborn = repository.checked_out();
            git(root, &["commit", "-q", "-m", "1", "sub"]);
            let first = git(root, &["rev-parse", "HEAD"]).unwrap();
            assert_ne!(unborn, repository.checked_out());
            assert_eq!(repository.checked_out().commit, first);
            git(root, &["pack-refs", "--all"]);
            assert_eq!(repository.checked_out().commit, first, "packed");
            git(root, &["checkout", "-q", "--detach"]);
            assert_eq!(repository.checked_out().commit, first, "without a branch");

            let other = root.join("other");
            git(root, &["worktree", "add", "-q", "other", "-b", "branch"]);
            git(&other, &["rm", "-q", "sub/a name"]);
            git(&other, &["commit", "-q", "-m", "2"]);
            let worktree = Repository::of(&other).unwrap();
            let second = git(&other, &["rev-parse", "HEAD"]).unwrap();
            assert_eq!(worktree.checked_out().commit, second);
            assert_eq!(names(&worktree).unwrap(), &all[2..]);
            assert_eq!(names(&repository).unwrap(), all);
            git(root, &["update-index", "--split-index"]);
            assert_eq!(names(&repository), None, "it is not taken for an empty one");
        }
    }

    #[test]
    fn what_is_no_index() {
        let folder = tempfile::tempdir().unwrap();
        let git = folder.path().join(".git");
        fs::create_dir(&git).unwrap();
        let repository = Repository::of(folder.path()).unwrap();
        let header = b"DIRC\0\0\0\x02\0\0\0\x01";
        let mut outside = header.to_vec();
        outside.extend([0; 24]);
        outside.extend(0o100_644_u32.to_be_bytes());
        outside.extend([0; 12 + 20 + 2]);
        outside.extend(b"../x\0\0\0\0");
        for (bytes, known) in [
            (&b""[..], false),
            (b"DIRC\0\0\0\x05\0\0\0\0", false),
            (header, false),
            (b"DIRC\0\0\0\x02\xff\xff\xff\xff", false),
            (&outside, true),
        ] {
            fs::write(repository.index(), bytes).unwrap();
            let found = repository.tracked().unwrap();
            assert_eq!(found, known.then(Vec::new), "{bytes:?}");
        }
    }
}
