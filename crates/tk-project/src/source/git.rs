//! What git has: trees from its objects, and from the folder that it looks after.
//!
//! ```text
//! request = NAME LF                        to `git cat-file --batch`
//! answer  = HASH " " KIND " " SIZE LF bytes LF | NAME " missing" LF
//! tree    = { MODE " " NAME NUL HASH }     MODE in octal, HASH as raw bytes
//! ```

use super::{
    ArchiveTree, InputSourceError, MAX_ENTRIES, SingleFolder,
    git_stand_in::GitStandIn,
    tree::{SourceContents, SourceNode},
    work_tree::WorkTree,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};
use tk_path::NarHash;

/// A folder that git looks after, or a bare repository.
#[derive(Debug, Clone)]
pub(crate) struct GitCheckout {
    /// Where it is.
    pub(crate) folder: PathBuf,
    /// The files of git.
    git_dir: PathBuf,
    /// The git program.
    program: PathBuf,
}

/// What stands in a tree where another repository is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Submodules {
    /// An empty folder.
    Empty,
    /// What the other repository has.
    Mounted,
}

/// A revision, as a tree of names of objects.
#[derive(Debug)]
pub(crate) struct GitRevision {
    root: SourceNode<GitBlob>,
    /// The repositories that its objects are in.
    repositories: Vec<GitCheckout>,
    /// Whether other repositories are mounted in it.
    pub(crate) has_submodules: bool,
}

/// A working tree, or that of a repository in it.
struct GitPart {
    checkout: GitCheckout,
    /// Where it is mounted.
    place: Vec<u8>,
    /// The commit that the outer one means.
    rev: Option<String>,
    files: BTreeSet<Vec<u8>>,
}

/// An object with content.
#[derive(Debug, Clone)]
pub(crate) struct GitBlob {
    repository: usize,
    name: String,
}

impl GitCheckout {
    /// That in `folder`; `program` is git.
    pub(crate) fn open(folder: &Path, program: &Path) -> Result<GitCheckout, InputSourceError> {
        let of = |e| InputSourceError::of("looking at", folder, e);
        let is_folder = folder.metadata().map_err(of)?.is_dir();
        let inner = folder.join(".git");
        let git_dir = if inner.symlink_metadata().is_ok() {
            inner
        } else if is_folder && folder.join("HEAD").is_file() && folder.join("objects").is_dir() {
            folder.to_owned()
        } else {
            let what = format!("{} is no repository of git", folder.display());
            return Err(InputSourceError::NotAtHand(what));
        };
        let checkout = GitCheckout {
            folder: folder.to_owned(),
            git_dir,
            program: program.to_owned(),
        };
        // Git reads no repository that somebody else owns, and none that is broken.
        match checkout.ask(&["rev-parse", "--git-dir"]) {
            Err(error @ InputSourceError::Failed { .. }) => {
                Err(InputSourceError::NotAtHand(error.to_string()))
            }
            said => said.map(|_| checkout),
        }
    }

    /// Whether it has files beside those of git.
    pub(crate) fn has_work_tree(&self) -> bool {
        self.git_dir != self.folder
    }

    /// The revision `rev`, a name of a commit in hexadecimal digits.
    pub(crate) fn revision(
        &self,
        rev: &str,
        submodules: Submodules,
    ) -> Result<GitRevision, InputSourceError> {
        let is_name = matches!(rev.len(), 40 | 64) && rev.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_name {
            return Err(InputSourceError::Unsupported(format!(
                "'{rev}' is no name of a commit"
            )));
        }
        let mut repositories = vec![self.clone()];
        let mut has_submodules = false;
        let mut root = SourceNode::empty();
        let mut open = vec![(0, Vec::new(), rev.to_ascii_lowercase())];
        // One round for each level of repositories in one another.
        while let Some((repository, place, rev)) = open.pop() {
            let here = repositories[repository].clone();
            let mut reader = GitTreeReader::new(&here, repository)?;
            let (tree, links) = reader.tree(&rev)?;
            has_submodules |= !links.is_empty();
            mount(&mut root, &place, tree);
            if submodules == Submodules::Empty {
                continue;
            }
            for (path, rev) in links {
                if repositories.len() > MAX_REPOSITORIES {
                    let what = format!("it has more than {MAX_REPOSITORIES} repositories in it");
                    return Err(InputSourceError::Unsupported(what));
                }
                repositories.push(here.submodule(&path)?);
                let place = place.iter().cloned().chain(split(&path)).collect();
                open.push((repositories.len() - 1, place, rev));
            }
        }
        Ok(GitRevision {
            root,
            repositories,
            has_submodules,
        })
    }

    /// The repository that is mounted at `path` of this one.
    fn submodule(&self, path: &[u8]) -> Result<GitCheckout, InputSourceError> {
        let path = Path::new(OsStr::from_bytes(path));
        let places = [
            self.folder.join(path),
            self.git_dir.join("modules").join(path),
        ];
        let found = places
            .iter()
            .find_map(|place| GitCheckout::open(place, &self.program).ok());
        found.ok_or_else(|| {
            let (path, folder) = (path.display(), self.folder.display());
            InputSourceError::NotAtHand(format!("the submodule {path} of {folder} is not here"))
        })
    }

    /// What `git archive` makes of the revision: the form of Nix 2.8.
    pub(crate) fn archive(
        &self,
        rev: &str,
        scratch: &Path,
    ) -> Result<ArchiveTree, InputSourceError> {
        let stand_in = GitStandIn::of(self, scratch)?;
        let mut command = self.command_in_folder();
        stand_in.lead(&mut command);
        command.args(["archive", "--format=tar", rev]);
        let mut child = self.spawn(command.stdin(Stdio::null()))?;
        let output = child.stdout.take().expect("it is piped");
        let tree = ArchiveTree::read(output, scratch, SingleFolder::IsInTheTree);
        let ended = child
            .wait()
            .map_err(|e| InputSourceError::failed("waiting for git", e))?;
        if !ended.success() {
            let what = format!("making an archive of {}", self.folder.display());
            return Err(InputSourceError::failed(
                what,
                io::Error::other(format!("git ended with {ended}")),
            ));
        }
        tree
    }

    /// The files that git has, as they are in the working tree.
    pub(crate) fn work_tree(
        &self,
        submodules: Submodules,
        scratch: &Path,
    ) -> Result<WorkTree, InputSourceError> {
        let mut names = BTreeSet::new();
        for part in self.parts(submodules, scratch)? {
            names.extend(part.files.into_iter().map(|file| join(&part.place, &file)));
        }
        WorkTree::read(&self.folder, names)
    }

    /// Whether the working tree is not what its commit has: something is changed, staged or not there.
    pub(crate) fn is_dirty(
        &self,
        submodules: Submodules,
        scratch: &Path,
    ) -> Result<bool, InputSourceError> {
        for part in self.parts(submodules, scratch)? {
            let stand_in = GitStandIn::of(&part.checkout, scratch)?;
            let mut command = part.checkout.command_in_folder();
            stand_in.lead_with_work_tree(&mut command);
            let is_absent = |file: &Vec<u8>| {
                let place = part.checkout.folder.join(OsStr::from_bytes(file));
                place.symlink_metadata().is_err()
            };
            let head = part.checkout.ask_line(&["rev-parse", "--verify", "HEAD"]);
            let is_another = part.rev.is_some_and(|rev| head.ok() != Some(rev));
            if is_another
                || !part.checkout.answer(command, &DIRTY)?.is_empty()
                || part.files.iter().any(is_absent)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The working tree, and those of the repositories in it.
    fn parts(
        &self,
        submodules: Submodules,
        scratch: &Path,
    ) -> Result<Vec<GitPart>, InputSourceError> {
        let mut done = Vec::new();
        let mut open = vec![(self.clone(), Vec::new(), None)];
        while let Some((checkout, place, rev)) = open.pop() {
            if done.len() > MAX_REPOSITORIES {
                let what = format!("it has more than {MAX_REPOSITORIES} repositories in it");
                return Err(InputSourceError::Unsupported(what));
            }
            let stand_in = GitStandIn::of(&checkout, scratch)?;
            let mut command = checkout.command_in_folder();
            stand_in.lead_with_work_tree(&mut command);
            let listed = checkout.answer(command, &["ls-files", "-z", "--stage"])?;
            let mut files = BTreeSet::new();
            for line in listed.split(|byte| *byte == 0) {
                let Some(tab) = line.iter().position(|byte| *byte == b'\t') else {
                    continue;
                };
                let (entry, name) = (&line[..tab], &line[tab + 1..]);
                if !entry.starts_with(SUBMODULE) {
                    files.insert(name.to_vec());
                } else if submodules == Submodules::Mounted {
                    let folder = checkout.folder.join(OsStr::from_bytes(name));
                    let inner = GitCheckout::open(&folder, &self.program)?;
                    let rev = entry.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
                    let rev = String::from_utf8_lossy(rev).into_owned();
                    open.push((inner, join(&place, name), Some(rev)));
                }
            }
            done.push(GitPart {
                checkout,
                place,
                rev,
                files,
            });
        }
        Ok(done)
    }

    /// What git says to `args`.
    ///
    /// # Errors
    /// If it fails; its words are in the error.
    pub(crate) fn ask(&self, args: &[&str]) -> Result<Vec<u8>, InputSourceError> {
        self.answer(self.command_in_folder(), args)
    }

    fn answer(&self, mut command: Command, args: &[&str]) -> Result<Vec<u8>, InputSourceError> {
        let output = command
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        let output = output.map_err(|e| self.cannot_run(e))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or("it failed").to_owned();
        let doing = format!("git {} in {}", args[0], self.folder.display());
        Err(InputSourceError::failed(doing, io::Error::other(words)))
    }

    /// As [`GitCheckout::ask`], as a line of text.
    pub(crate) fn ask_line(&self, args: &[&str]) -> Result<String, InputSourceError> {
        let output = self.ask(args)?;
        Ok(String::from_utf8_lossy(&output).trim_end().to_owned())
    }

    /// When the commit `rev` was made; seconds since 1970.
    pub(crate) fn last_modified(&self, rev: &str) -> Result<u64, InputSourceError> {
        self.ask_number(&[
            "log",
            "-1",
            "--no-show-signature",
            "--format=%ct",
            rev,
            "--",
        ])
    }

    /// How many commits led to `rev`, itself counted.
    pub(crate) fn rev_count(&self, rev: &str) -> Result<u64, InputSourceError> {
        self.ask_number(&["rev-list", "--count", rev, "--"])
    }

    /// Whether older commits are not here.
    pub(crate) fn is_shallow(&self) -> Result<bool, InputSourceError> {
        Ok(self.ask_line(&["rev-parse", "--is-shallow-repository"])? == "true")
    }

    fn ask_number(&self, args: &[&str]) -> Result<u64, InputSourceError> {
        let line = self.ask_line(args)?;
        let what = || format!("git says '{line}' where a number must be");
        line.parse()
            .map_err(|_| InputSourceError::Unsupported(what()))
    }

    /// Git, which is to read here and to fetch nothing.
    fn command_in_folder(&self) -> Command {
        let mut command = Command::new(&self.program);
        for name in FOREIGN {
            command.env_remove(name);
        }
        command
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ALLOW_PROTOCOL", "")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .args(["--no-pager", "--no-optional-locks", "-C"])
            .arg(&self.folder);
        // No repository around this one.
        let real = self.folder.canonicalize();
        if let Some(above) = real.as_ref().ok().and_then(|real| real.parent()) {
            command.env("GIT_CEILING_DIRECTORIES", above);
        }
        for setting in NOTHING_RUNS {
            command.args(["-c", setting]);
        }
        command
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, InputSourceError> {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        child.map_err(|e| self.cannot_run(e))
    }

    fn cannot_run(&self, error: io::Error) -> InputSourceError {
        let program = self.program.display();
        if error.kind() == io::ErrorKind::NotFound {
            InputSourceError::NotAtHand(format!("there is no {program} to read its objects"))
        } else {
            InputSourceError::failed(format!("running {program}"), error)
        }
    }
}

impl GitRevision {
    /// The hash of its NAR.
    pub(crate) fn nar_hash(&self) -> Result<NarHash, InputSourceError> {
        self.with_blobs(&self.root, |blobs| self.root.nar_hash(blobs))
    }

    /// The same without the empty folders of other repositories: what Nix sees of a working tree.
    pub(crate) fn without_mounts(&self) -> GitRevision {
        let mut root = self.root.clone();
        drop_empty(&mut root);
        GitRevision {
            root,
            repositories: self.repositories.clone(),
            has_submodules: false,
        }
    }

    /// Takes out what is not in `archive`.
    pub(crate) fn keep_only(&mut self, archive: &ArchiveTree) {
        keep(&mut self.root, &archive.root);
    }

    /// The file at `path`, of at most `max` bytes.
    pub(crate) fn read_file(
        &self,
        path: &str,
        max: u64,
    ) -> Result<Option<Vec<u8>>, InputSourceError> {
        let Some(file @ SourceNode::File { .. }) = self.root.find(path) else {
            return Ok(None);
        };
        self.with_blobs(file, |blobs| file.read("", max, blobs))
    }

    /// Calls `read` with the contents of `node`, which are asked for ahead of it.
    fn with_blobs<T>(
        &self,
        node: &SourceNode<GitBlob>,
        read: impl FnOnce(&mut GitBlobs) -> Result<T, InputSourceError>,
    ) -> Result<T, InputSourceError> {
        let mut wanted = vec![String::new(); self.repositories.len()];
        node.contents(&mut |blob| {
            wanted[blob.repository].push_str(&blob.name);
            wanted[blob.repository].push('\n');
        });
        std::thread::scope(|scope| {
            let mut batches = Vec::new();
            for (repository, wanted) in self.repositories.iter().zip(wanted) {
                let (batch, mut input) = GitBatch::start(repository, &["--buffer"])?;
                // Git that ends early closes its end.
                scope.spawn(move || input.write_all(wanted.as_bytes()));
                batches.push(batch);
            }
            read(&mut GitBlobs(batches))
        })
    }
}

/// `git cat-file --batch`, which answers in the order in which it is asked.
struct GitBatch {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Whether the end of the answer before is still to be read.
    is_behind_answer: bool,
}

impl Drop for GitBatch {
    fn drop(&mut self) {
        // It may wait for us to read, and who asks it for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl GitBatch {
    fn start(
        repository: &GitCheckout,
        options: &[&str],
    ) -> Result<(GitBatch, ChildStdin), InputSourceError> {
        let mut command = repository.command_in_folder();
        command.args(["cat-file", "--batch"]).args(options);
        let mut child = repository.spawn(command.stdin(Stdio::piped()))?;
        let input = child.stdin.take().expect("it is piped");
        let output = child.stdout.take().expect("it is piped");
        let batch = GitBatch {
            child,
            output: BufReader::with_capacity(BUFFER, output),
            is_behind_answer: false,
        };
        Ok((batch, input))
    }

    /// The kind and the bytes of the next object.
    fn next(
        &mut self,
    ) -> Result<(String, String, io::Take<&mut BufReader<ChildStdout>>), InputSourceError> {
        let failed = |e| InputSourceError::failed("reading objects of git", e);
        if std::mem::replace(&mut self.is_behind_answer, true) {
            let mut end = [0];
            self.output.read_exact(&mut end).map_err(failed)?;
        }
        let mut line = Vec::new();
        self.output
            .by_ref()
            .take(MAX_HEADER)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split_whitespace();
        let (name, kind, size) = (words.next(), words.next(), words.next());
        let Some(name) = name else {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        };
        let size = size.and_then(|size| size.parse().ok());
        let (Some(kind), Some(size)) = (kind, size) else {
            return Err(InputSourceError::NotAtHand(format!(
                "its object {name} is not here"
            )));
        };
        let (name, kind) = (name.to_owned(), kind.to_owned());
        Ok((name, kind, self.output.by_ref().take(size)))
    }
}

struct GitBlobs(Vec<GitBatch>);

impl SourceContents<GitBlob> for GitBlobs {
    fn open<'a>(
        &'a mut self,
        blob: &'a GitBlob,
    ) -> Result<(u64, Box<dyn Read + 'a>), InputSourceError> {
        let (_, kind, bytes) = self.0[blob.repository].next()?;
        if kind != "blob" {
            let what = format!("its object {} is a {kind}, not a file", blob.name);
            return Err(InputSourceError::Unsupported(what));
        }
        Ok((bytes.limit(), Box::new(bytes)))
    }
}

/// Reads trees level by level, so that git is asked about many at once.
struct GitTreeReader {
    repository: usize,
    batch: GitBatch,
    input: ChildStdin,
}

/// Paths of other repositories, and the commits that are meant.
type GitLinks = Vec<(Vec<u8>, String)>;

/// The paths of trees that are equally deep, and the entries of each.
type GitLevel = (Vec<Vec<u8>>, Vec<Vec<GitTreeEntry>>);

/// An entry of a tree.
struct GitTreeEntry {
    mode: Vec<u8>,
    name: Vec<u8>,
    object: String,
}

impl GitTreeReader {
    fn new(checkout: &GitCheckout, repository: usize) -> Result<GitTreeReader, InputSourceError> {
        let (batch, input) = GitBatch::start(checkout, &[])?;
        Ok(GitTreeReader {
            repository,
            batch,
            input,
        })
    }

    /// The tree of `rev`, and which other repositories are mounted in it.
    fn tree(&mut self, rev: &str) -> Result<(SourceNode<GitBlob>, GitLinks), InputSourceError> {
        let top = self.trees(&[format!("{rev}^{{tree}}")], rev.len() / 2)?;
        let mut levels = vec![(vec![Vec::new()], top)];
        let mut count = 0;
        // Each level: the paths of its trees, and their entries.
        while let Some((paths, trees)) = levels.last() {
            let mut below = (Vec::new(), Vec::new());
            for (path, entries) in paths.iter().zip(trees) {
                count += entries.len();
                for entry in entries.iter().filter(|entry| entry.mode == FOLDER) {
                    below.0.push(join(path, &entry.name));
                    below.1.push(entry.object.clone());
                }
            }
            if count > MAX_ENTRIES {
                let what = format!("it has more than {MAX_ENTRIES} entries");
                return Err(InputSourceError::Unsupported(what));
            }
            if below.0.is_empty() {
                break;
            }
            if levels.len() > MAX_DEPTH {
                let what = format!("it is nested more than {MAX_DEPTH} deep");
                return Err(InputSourceError::Unsupported(what));
            }
            let trees = self.trees(&below.1, rev.len() / 2)?;
            levels.push((below.0, trees));
        }
        self.assemble(levels)
    }

    /// The entries of each of these trees.
    fn trees(
        &mut self,
        names: &[String],
        hash: usize,
    ) -> Result<Vec<Vec<GitTreeEntry>>, InputSourceError> {
        let (batch, input) = (&mut self.batch, &mut self.input);
        std::thread::scope(|scope| {
            let wanted = names.join("\n") + "\n";
            scope.spawn(move || {
                input
                    .write_all(wanted.as_bytes())
                    .and_then(|()| input.flush())
            });
            let read = names.iter().map(|_| {
                let (name, kind, bytes) = batch.next()?;
                let mut tree = Vec::new();
                if kind != "tree" || bytes.limit() > MAX_TREE {
                    let what = format!(
                        "its object {name} is a {kind} of {} bytes, not a tree",
                        bytes.limit()
                    );
                    return Err(InputSourceError::Unsupported(what));
                }
                let mut bytes = bytes;
                let read = bytes.read_to_end(&mut tree);
                read.map_err(|e| InputSourceError::failed("reading objects of git", e))?;
                let bad =
                    || InputSourceError::Unsupported(format!("its object {name} is a broken tree"));
                entries(&tree, hash).ok_or_else(bad)
            });
            let read = read.collect::<Result<Vec<_>, _>>();
            if read.is_err() {
                // Who still asks it would wait for ever.
                let _ = batch.child.kill();
            }
            read
        })
    }

    /// One tree of the levels, from the deepest up.
    fn assemble(
        &self,
        mut levels: Vec<GitLevel>,
    ) -> Result<(SourceNode<GitBlob>, GitLinks), InputSourceError> {
        let mut links = Vec::new();
        // The folders of the level below, in the order in which they are met.
        let mut below: std::vec::IntoIter<SourceNode<GitBlob>> = Vec::new().into_iter();
        while let Some((paths, trees)) = levels.pop() {
            let mut here = Vec::new();
            for (path, tree) in paths.iter().zip(trees) {
                let mut folder = BTreeMap::new();
                for entry in tree {
                    let content = GitBlob {
                        repository: self.repository,
                        name: entry.object,
                    };
                    let node = match entry.mode.as_slice() {
                        FOLDER => below.next().expect("each folder has a tree"),
                        LINK => SourceNode::Link(content),
                        SUBMODULE => {
                            links.push((join(path, &entry.name), content.name));
                            SourceNode::empty()
                        }
                        mode => SourceNode::File {
                            executable: mode == EXECUTABLE,
                            content,
                        },
                    };
                    folder.insert(entry.name, node);
                }
                here.push(SourceNode::Folder(folder));
            }
            below = here.into_iter();
        }
        let root = below.next().expect("the top is a level");
        Ok((root, links))
    }
}

/// The entries of a tree object; `None` if it is none, or an entry is of an unknown kind.
fn entries(mut tree: &[u8], hash: usize) -> Option<Vec<GitTreeEntry>> {
    let mut entries = Vec::new();
    while !tree.is_empty() {
        let blank = tree.iter().position(|byte| *byte == b' ')?;
        let end = blank + tree[blank..].iter().position(|byte| *byte == 0)?;
        let object = tree.get(end + 1..end + 1 + hash)?;
        let mode = tree[..blank].to_vec();
        if !matches!(mode.as_slice(), FOLDER | LINK | SUBMODULE | EXECUTABLE)
            && !mode.starts_with(b"100")
        {
            return None;
        }
        entries.push(GitTreeEntry {
            mode,
            name: tree[blank + 1..end].to_vec(),
            object: object.iter().map(|byte| format!("{byte:02x}")).collect(),
        });
        tree = &tree[end + 1 + hash..];
    }
    Some(entries)
}

/// Puts `tree` at `place`, where there is a folder.
fn mount(root: &mut SourceNode<GitBlob>, place: &[Vec<u8>], tree: SourceNode<GitBlob>) {
    let mut node = root;
    for name in place {
        let SourceNode::Folder(entries) = node else {
            return;
        };
        node = entries
            .entry(name.clone())
            .or_insert_with(SourceNode::empty);
    }
    *node = tree;
}

/// Takes out of `node` what is not in `other`, too.
pub(super) fn keep<N, C>(node: &mut SourceNode<N>, other: &SourceNode<C>) {
    if let (SourceNode::Folder(entries), SourceNode::Folder(others)) = (node, other) {
        entries.retain(|name, _| others.contains_key(name));
        for (name, node) in entries {
            keep(node, &others[name]);
        }
    }
}

/// Takes folders without anything out; git itself has none.
fn drop_empty(node: &mut SourceNode<GitBlob>) {
    let SourceNode::Folder(entries) = node else {
        return;
    };
    entries.retain(|_, node| {
        drop_empty(node);
        !matches!(node, SourceNode::Folder(entries) if entries.is_empty())
    });
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
    [path, slash, name].concat()
}

fn split(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').map(<[u8]>::to_vec)
}

const DIRTY: [&str; 5] = [
    "status",
    "--porcelain",
    "-z",
    "--untracked-files=no",
    "--ignore-submodules=all",
];
const FOLDER: &[u8] = b"40000";
const EXECUTABLE: &[u8] = b"100755";
const LINK: &[u8] = b"120000";
const SUBMODULE: &[u8] = b"160000";
const BUFFER: usize = 256 << 10;
/// Bytes of what stands in front of an object.
const MAX_HEADER: u64 = 1024;
/// Bytes of a tree.
const MAX_TREE: u64 = 256 << 20;
/// As in a NAR.
const MAX_DEPTH: usize = 64;
/// Repositories in one another.
const MAX_REPOSITORIES: usize = 1000;
/// What a configuration could say to run something.
const NOTHING_RUNS: [&str; 9] = [
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.askPass=",
    "protocol.allow=never",
    "safe.bareRepository=all",
    "log.showSignature=false",
    "gpg.program=false",
    "gpg.ssh.program=false",
    "gpg.x509.program=false",
];
/// What would lead git elsewhere.
const FOREIGN: [&str; 14] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_ATTR_SOURCE",
    "GIT_CONFIG",
    "GIT_ASKPASS",
    "SSH_ASKPASS",
    "GIT_SSH_COMMAND",
    "GIT_EXTERNAL_DIFF",
    "GIT_SHALLOW_FILE",
];
