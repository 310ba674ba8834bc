//! Git objects: the hash of a file or a tree as git has it.
//!
//! ```text
//! blob  = "blob " length NUL bytes
//! tree  = "tree " length NUL { entry }
//! entry = mode " " name NUL hash          mode in octal, hash as raw bytes
//! mode  = "40000" directory | "100755" executable | "100644" regular | "120000" symbolic link
//! ```
//! Lengths are decimal. Entries stand in the order of their names, where the name of a directory counts as if it
//! ended in `/`. A link is the blob of its target. Unlike git itself, a directory without files is a tree, too.
//! Mirrors `git.cc`.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Algorithm, Hash, Hasher};

/// What an entry of a tree is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GitMode {
    /// A directory: a tree object, mode 40000.
    Directory,
    /// An executable file: a blob, mode 100755.
    Executable,
    /// A file that is not executable: a blob, mode 100644.
    Regular,
    /// A blob that is the target of a link, 120000.
    Symlink,
}

impl GitMode {
    /// All modes, in the order of their declaration.
    pub const ALL: [GitMode; 4] = [
        GitMode::Directory,
        GitMode::Executable,
        GitMode::Regular,
        GitMode::Symlink,
    ];

    /// Returns the octal digits that stand for the mode in a tree object.
    pub const fn digits(self) -> &'static str {
        match self {
            GitMode::Directory => "40000",
            GitMode::Executable => "100755",
            GitMode::Regular => "100644",
            GitMode::Symlink => "120000",
        }
    }
}

/// A tree object: its entries by name, in git's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitTree {
    /// By [`sort_key`], which is the name, or the name with a slash behind it.
    entries: BTreeMap<Vec<u8>, (GitMode, Hash)>,
}

impl GitTree {
    /// A tree without entries.
    pub fn new() -> GitTree {
        GitTree::default()
    }

    /// Adds an entry. The name must not be empty, `.` or `..`, have no `/` and no NUL, and be new.
    pub fn insert(&mut self, name: &[u8], mode: GitMode, hash: Hash) -> Result<(), GitError> {
        check_name(name).map_err(GitError::Entry)?;
        let other = [GitMode::Directory, GitMode::Regular]
            .map(|mode| sort_key(name, mode))
            .iter()
            .any(|key| self.entries.contains_key(key));
        if other {
            return Err(GitError::Entry("two entries have the same name"));
        }
        self.entries.insert(sort_key(name, mode), (mode, hash));
        Ok(())
    }

    /// The entries: name, mode, hash.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], GitMode, Hash)> {
        self.entries.iter().map(|(key, &(mode, hash))| {
            let name = key.strip_suffix(b"/").unwrap_or(key);
            (name, mode, hash)
        })
    }

    /// The object, header included.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, mode, hash) in self.entries() {
            body.extend_from_slice(mode.digits().as_bytes());
            body.push(b' ');
            body.extend_from_slice(name);
            body.push(0);
            body.extend_from_slice(hash.as_bytes());
        }
        [header("tree", body.len() as u64).as_slice(), &body].concat()
    }

    /// Reads an object, header included, whose hashes are of `algorithm`. Entries out of order are an error, so that
    /// encoding gives the same bytes back.
    pub fn decode(object: &[u8], algorithm: Algorithm) -> Result<GitTree, GitError> {
        check_algorithm(algorithm)?;
        let mut input = GitTreeInput { object, offset: 0 };
        input.header("tree")?;
        let mut tree = GitTree::new();
        while input.offset < object.len() {
            let start = input.offset;
            let (name, mode, hash) = input.entry(algorithm)?;
            let key = sort_key(name, mode);
            if tree
                .entries
                .last_key_value()
                .is_some_and(|(last, _)| *last >= key)
            {
                return Err(input.error_at(start, "its entries are not in order"));
            }
            tree.insert(name, mode, hash)
                .map_err(|_| input.error_at(start, "two entries have the same name"))?;
        }
        Ok(tree)
    }

    /// The hash of the object.
    pub fn hash(&self, algorithm: Algorithm) -> Result<Hash, GitError> {
        check_algorithm(algorithm)?;
        Ok(Hash::digest(algorithm, &self.encode()))
    }
}

/// What stands before the bytes of a blob of this length.
pub fn blob_header(len: u64) -> Vec<u8> {
    header("blob", len)
}

/// The hash of the blob with this content.
pub fn hash_blob(content: &[u8], algorithm: Algorithm) -> Result<Hash, GitError> {
    check_algorithm(algorithm)?;
    let mut hasher = Hasher::new(algorithm);
    hasher.update(&blob_header(content.len() as u64));
    hasher.update(content);
    Ok(hasher.finish())
}

/// Why there is no git hash.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// Git does not have this algorithm.
    #[error("git hashes with sha1 or sha256, not {0}")]
    Algorithm(Algorithm),
    /// A tree object that is not right.
    #[error("bad git tree at byte {offset}: {why}")]
    Tree {
        /// Where in the object.
        offset: usize,
        /// What is wrong at that byte.
        why: &'static str,
    },
    /// An entry that a tree cannot have.
    #[error("cannot be put into a git tree: {0}")]
    Entry(&'static str),
}

/// What a name is sorted by.
fn sort_key(name: &[u8], mode: GitMode) -> Vec<u8> {
    let slash = if mode == GitMode::Directory { "/" } else { "" };
    [name, slash.as_bytes()].concat()
}

/// A tree object while it is read.
struct GitTreeInput<'a> {
    object: &'a [u8],
    offset: usize,
}

impl<'a> GitTreeInput<'a> {
    fn header(&mut self, kind: &str) -> Result<(), GitError> {
        let rest = self.until(0, "its header does not end")?;
        let body = (self.object.len() - self.offset) as u64;
        if header(kind, body).strip_suffix(b"\0") != Some(rest) {
            return Err(self.error_at(
                0,
                "its header is not \"tree\" with the length of what follows",
            ));
        }
        Ok(())
    }

    fn entry(&mut self, algorithm: Algorithm) -> Result<(&'a [u8], GitMode, Hash), GitError> {
        let start = self.offset;
        let digits = self.until(b' ', "an entry has no mode")?;
        let mode = GitMode::ALL
            .into_iter()
            .find(|m| m.digits().as_bytes() == digits)
            .ok_or_else(|| self.error_at(start, "an entry has an unknown mode"))?;
        let start = self.offset;
        let name = self.until(0, "the name of an entry does not end")?;
        check_name(name).map_err(|why| self.error_at(start, why))?;
        let hash = self
            .object
            .get(self.offset..self.offset + algorithm.size())
            .and_then(|bytes| Hash::new(algorithm, bytes).ok())
            .ok_or_else(|| self.error_at(self.offset, "it ends inside a hash"))?;
        self.offset += algorithm.size();
        Ok((name, mode, hash))
    }

    /// The bytes up to `end`, which is skipped.
    fn until(&mut self, end: u8, why: &'static str) -> Result<&'a [u8], GitError> {
        let rest = &self.object[self.offset..];
        let len = rest.iter().position(|&b| b == end);
        let len = len.ok_or_else(|| self.error_at(self.offset, why))?;
        self.offset += len + 1;
        Ok(&rest[..len])
    }

    fn error_at(&self, offset: usize, why: &'static str) -> GitError {
        GitError::Tree { offset, why }
    }
}

impl fmt::Display for GitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.digits())
    }
}

fn header(kind: &str, len: u64) -> Vec<u8> {
    format!("{kind} {len}\0").into_bytes()
}

fn check_algorithm(algorithm: Algorithm) -> Result<(), GitError> {
    match algorithm {
        Algorithm::Sha1 | Algorithm::Sha256 => Ok(()),
        other => Err(GitError::Algorithm(other)),
    }
}

fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("an entry has an empty name"),
        b"." | b".." => Err("an entry is named . or .."),
        _ if name.iter().any(|b| matches!(b, b'/' | 0)) => {
            Err("the name of an entry has a / or NUL")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(hash: Hash) -> String {
        hash.digits(crate::Encoding::Base16)
    }

    #[test]
    fn blobs() {
        let hash = |content: &[u8]| hex(hash_blob(content, Algorithm::Sha1).expect("sha1"));
        // What `git hash-object` says.
        assert_eq!(hash(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(hash(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert!(hash_blob(b"", Algorithm::Sha512).is_err());
    }

    #[test]
    fn trees() {
        assert_eq!(
            hex(GitTree::new().hash(Algorithm::Sha1).expect("sha1")),
            EMPTY_TREE
        );
        for (algorithm, expected) in [
            (Algorithm::Sha1, WRITE_TREE),
            (Algorithm::Sha256, WRITE_TREE_256),
        ] {
            let blob = |content: &[u8]| hash_blob(content, algorithm).expect("hash");
            let insert = |tree: &mut GitTree, name: &[u8], mode, hash| {
                tree.insert(name, mode, hash).expect("an entry");
            };
            let mut foo = GitTree::new();
            insert(&mut foo, b"x", GitMode::Regular, blob(b"hello\n"));
            let foo = foo.hash(algorithm).expect("hash");
            let mut top = GitTree::new();
            insert(&mut top, b"foo", GitMode::Directory, foo);
            insert(&mut top, b"foo.c", GitMode::Executable, blob(b""));
            insert(&mut top, b"link", GitMode::Symlink, blob(b"foo.c"));
            // What `git write-tree` says.
            assert_eq!(hex(top.hash(algorithm).expect("hash")), expected);
        }
    }

    #[test]
    fn bad_objects() {
        let hash = [7; 20];
        let object = |entries: &[&[u8]]| {
            let body = entries.iter().map(|e| [e, hash.as_slice()].concat());
            let body = body.collect::<Vec<_>>().concat();
            [header("tree", body.len() as u64), body].concat()
        };
        let cases: [(&[&[u8]], &str); 8] = [
            (&[b"40000 b\0", b"40000 a\0"], "not in order"),
            (&[b"100644 a\0", b"100644 a\0"], "not in order"),
            (&[b"100644 a\0", b"40000 a\0"], "same name"),
            (&[b"040000 a\0"], "unknown mode"),
            (&[b"100644 a/b\0"], "/ or NUL"),
            (&[b"100644 ..\0"], ". or .."),
            (&[b"100644 \0"], "empty name"),
            (&[b"100644 a\0\0"], "no mode"),
        ];
        for (entries, why) in cases {
            let error = GitTree::decode(&object(entries), Algorithm::Sha1);
            let error = error.expect_err(why).to_string();
            assert!(error.contains(why), "{error} / {why}");
        }
        let good = object(&[b"100644 a\0", b"40000 b\0"]);
        assert!(GitTree::decode(&good, Algorithm::Sha1).is_ok());
        for end in 0..good.len() {
            assert!(
                GitTree::decode(&good[..end], Algorithm::Sha1).is_err(),
                "cut at {end}"
            );
        }
        assert!(GitTree::decode(&good, Algorithm::Md5).is_err());
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b"a.0-\xff".to_vec()), 1..4)
    }

    proptest! {
        #[test]
        fn there_and_back(entries: Vec<(bool, [u8; 32])>, names in prop::collection::vec(names(), 0..20)) {
            let mut tree = GitTree::new();
            for (name, (dir, bytes)) in names.iter().zip(entries) {
                let mode = if dir { GitMode::Directory } else { GitMode::Symlink };
                // Fails for a repeated or reserved name.
                let _ = tree.insert(name, mode, Hash::new(Algorithm::Sha256, &bytes).expect("size"));
            }
            let object = tree.encode();
            prop_assert_eq!(GitTree::decode(&object, Algorithm::Sha256).expect("decodes"), tree);
        }

        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let body = [header("tree", bytes.len() as u64), bytes].concat();
            if let Ok(tree) = GitTree::decode(&body, Algorithm::Sha1) {
                prop_assert_eq!(tree.encode(), body);
            }
        }
    }

    const EMPTY_TREE: &str = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
    const WRITE_TREE: &str = "ffc1065e347a36e45943af0a301203268a7c5528";
    const WRITE_TREE_256: &str = "93191c9d9e9ff49f4b24a799d68250658742e48ac88260865b410cc20c0efd4b";
}
