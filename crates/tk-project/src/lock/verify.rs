//! Whether what flake.lock pins is what is at hand.
//!
//! Locks of Nix 2.8 and of later versions may state different hashes for one source: 2.8 takes a revision of git as
//! `git archive` gives it, later versions take its files as they are, or those of the working tree. A source that has
//! the hash in any of these forms is the one that is meant.

use super::{FlakeLock, InputAttrs, InputPath, LockEdge, LockedInput};
use crate::source::{
    ArchiveTree, GitCheckout, InputSourceError, Submodules, flat_hash, folder_hash,
};
use futures::TryStreamExt;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use tk_path::{Algorithm, Hasher, NarHash, StoreDir, StorePath};
use tk_store::{Error, Store, StoreExt};

/// What became of an input that was looked at.
#[derive(Debug)]
#[non_exhaustive]
pub enum InputVerdict {
    /// What is at this place has the hash that the lock states.
    Verified {
        /// Where it was found.
        place: String,
    },
    /// What is at this place is not what the lock pins.
    Tampered {
        /// Where it was found.
        place: String,
        /// The hash of what is there, in the form of Nix 2.26 and later.
        found: NarHash,
    },
    /// There is nothing at hand that could be compared, or no hash to compare it with.
    Unverifiable {
        /// Why nobody can tell.
        why: String,
    },
    /// It is at hand, but could not be read: nothing is known of it.
    NotRead(InputSourceError),
}

/// An input, and what became of it.
#[derive(Debug)]
pub struct VerifiedInput<'a> {
    /// The first name that leads to it.
    pub path: InputPath,
    /// Its key in the lock.
    pub node: &'a str,
    /// What the lock says of it.
    pub pin: &'a LockedInput,
    /// The hash that the lock states; `None` if it states none, or something else.
    pub locked: Option<NarHash>,
    /// What became of it.
    pub verdict: InputVerdict,
}

/// Where sources are looked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// The folder of the flake, for paths relative to it.
    pub folder: PathBuf,
    /// A folder for temporary files, such as unpacked archives. Default: `/tmp`.
    pub scratch: PathBuf,
    /// The program git. Default: that of the path.
    pub git: PathBuf,
    /// The directory of the store, whose paths are looked for on disk. Default: `/nix/store`.
    pub store_dir: StoreDir,
}

impl VerifyOptions {
    /// The defaults for the flake in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> VerifyOptions {
        VerifyOptions {
            folder: folder.into(),
            scratch: "/tmp".into(),
            git: "git".into(),
            store_dir: StoreDir::default(),
        }
    }
}

impl FlakeLock {
    /// Looks at each pinned input once, without any network. Blocks.
    pub fn verify<'a>(
        &'a self,
        options: &'a VerifyOptions,
    ) -> impl Iterator<Item = VerifiedInput<'a>> {
        let mut seen = BTreeSet::new();
        let inputs = self.graph().inputs.into_iter();
        inputs.filter_map(move |input| {
            let (LockEdge::Node(node), Some(pin)) = (input.edge, input.pin) else {
                return None;
            };
            seen.insert(node.as_str()).then(|| {
                let locked = pin.locked.text("narHash").map(NarHash::parse);
                let verdict = match &locked {
                    None => no_hash(pin),
                    Some(Err(error)) => InputVerdict::Unverifiable {
                        why: format!("its narHash is none: {error}"),
                    },
                    Some(Ok(hash)) => verify(pin, *hash, input.path.0.len(), options),
                };
                VerifiedInput {
                    path: input.path,
                    node,
                    pin,
                    locked: locked.and_then(Result::ok),
                    verdict,
                }
            })
        })
    }
}

impl LockedInput {
    /// Where a store of `dir` has it: the path follows from its narHash.
    pub fn store_path(&self, dir: &StoreDir) -> Option<StorePath> {
        self.locked.store_path(dir)
    }

    /// Whether `store` has what the lock pins; `None` if the store has nothing at its path.
    ///
    /// # Errors
    /// If the store could not be asked.
    pub async fn verify_in(&self, store: &dyn Store) -> Result<Option<InputVerdict>, Error> {
        let (Some(path), Some(locked)) =
            (self.store_path(store.dir()), self.locked.text("narHash"))
        else {
            return Ok(None);
        };
        let Some(info) = store.info(&path).await? else {
            return Ok(None);
        };
        let place = format!("{path} in {store}");
        let Ok(locked) = NarHash::parse(locked) else {
            return Ok(None);
        };
        // What is said of it, first: it costs nothing.
        let mut found = info.nar_hash;
        if found == locked {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut nar = store.nar(&path).await?;
            while let Some(chunk) = nar.try_next().await? {
                hasher.update(&chunk);
            }
            found =
                NarHash::try_from(hasher.finish()).map_err(|e| Error::invalid(e.to_string()))?;
        }
        Ok(Some(judge(place, found, locked)))
    }
}

fn judge(place: String, found: NarHash, locked: NarHash) -> InputVerdict {
    if found == locked {
        InputVerdict::Verified { place }
    } else {
        InputVerdict::Tampered { place, found }
    }
}

fn no_hash(pin: &LockedInput) -> InputVerdict {
    let why = match &pin.parent {
        Some(parent) if parent.0.is_empty() => "it is a folder of the flake itself".to_owned(),
        Some(parent) => format!("it is a folder of the input {parent}"),
        None => "flake.lock has no narHash of it".to_owned(),
    };
    InputVerdict::Unverifiable { why }
}

/// `level` is how many inputs it is away from the flake.
fn verify(
    pin: &LockedInput,
    locked: NarHash,
    level: usize,
    options: &VerifyOptions,
) -> InputVerdict {
    let search = SourceSearch {
        attrs: &pin.locked,
        locked,
        is_direct: level == 1,
        options,
    };
    let here = search.verdict();
    // What lies elsewhere may lie in the store, too.
    if matches!(
        &here,
        Ok(InputVerdict::Unverifiable { .. }) | Err(InputSourceError::NotAtHand(_))
    ) && let Some(verdict) = search.in_store(pin)
    {
        return verdict;
    }
    match here {
        Ok(verdict) => verdict,
        Err(error @ InputSourceError::Failed { .. }) => InputVerdict::NotRead(error),
        Err(error) => InputVerdict::Unverifiable {
            why: error.to_string(),
        },
    }
}

struct SourceSearch<'a> {
    attrs: &'a InputAttrs,
    locked: NarHash,
    is_direct: bool,
    options: &'a VerifyOptions,
}

type Judged = Result<InputVerdict, InputSourceError>;

impl SourceSearch<'_> {
    fn verdict(&self) -> Judged {
        match self.attrs.kind() {
            "path" => self.path(),
            "git" => self.git(),
            "tarball" => self.tarball(),
            "file" => {
                let file = self.file()?;
                Ok(judge(shown(&file), flat_hash(&file)?, self.locked))
            }
            "github" | "gitlab" | "sourcehut" | "hg" | "indirect" => {
                Err(elsewhere(&self.attrs.to_url()))
            }
            kind => Err(InputSourceError::Unsupported(format!(
                "inputs of the kind '{kind}' are not known"
            ))),
        }
    }

    fn path(&self) -> Judged {
        let path = Path::new(self.attrs.text("path").unwrap_or_default());
        if path.is_absolute() {
            return Ok(judge(shown(path), folder_hash(path)?, self.locked));
        }
        // As 2.8 locks folders of the flake itself.
        if !self.is_direct {
            let what = format!("{} is relative to another input", path.display());
            return Err(InputSourceError::NotAtHand(what));
        }
        let path = self.options.folder.join(path);
        let found = folder_hash(&path)?;
        let is_in_git = path.ancestors().any(|above| above.join(".git").exists());
        if found != self.locked && is_in_git {
            let what = format!("{} counts only as far as git has it", path.display());
            return Err(InputSourceError::Unsupported(what));
        }
        Ok(judge(shown(&path), found, self.locked))
    }

    fn git(&self) -> Judged {
        let folder = self.file()?;
        let checkout = GitCheckout::open(&folder, &self.options.git)?;
        let Some(rev) = self.attrs.text("rev") else {
            let place = format!("the working tree {}", folder.display());
            if self.attrs.is_set("exportIgnore") {
                let what = "exportIgnore of a tree with changes is not done here";
                return Err(InputSourceError::Unsupported(what.into()));
            }
            let mut tree = checkout.work_tree(self.submodules(), &self.options.scratch)?;
            return Ok(judge(place, tree.nar_hash()?, self.locked));
        };
        let scratch = &self.options.scratch;
        let place = format!("{rev} of {}", folder.display());
        let is_ignoring = self.attrs.is_set("exportIgnore");
        let mut revision = checkout.revision(rev, self.submodules())?;
        if is_ignoring {
            revision.keep_only(&checkout.archive(rev, scratch)?);
        }
        let found = revision.nar_hash()?;
        if found == self.locked
            || (revision.has_submodules && revision.without_mounts().nar_hash()? == self.locked)
            || checkout.archive(rev, scratch)?.nar_hash()? == self.locked
        {
            return self.judge_numbers(&checkout, rev, place);
        }
        // Nix hashes a clean working tree as it is, with the line ends that git gives it.
        if checkout.has_work_tree()
            && checkout
                .ask_line(&["rev-parse", "HEAD"])
                .is_ok_and(|head| head == rev)
            && !checkout.is_dirty(self.submodules(), scratch)?
        {
            let mut tree = checkout.work_tree(self.submodules(), scratch)?;
            if is_ignoring {
                tree.keep_only(&checkout.archive(rev, scratch)?);
            }
            if tree.nar_hash()? == self.locked {
                let place = format!("the clean working tree {}", folder.display());
                return self.judge_numbers(&checkout, rev, place);
            }
        }
        let unread = if self.attrs.is_set("lfs") {
            Some("files of LFS are not looked at")
        } else if is_ignoring && self.submodules() == Submodules::Mounted {
            Some("exportIgnore and submodules at once are not done here")
        } else {
            None
        };
        if let Some(unread) = unread {
            let what = format!("it has another hash, but {unread}");
            return Err(InputSourceError::Unsupported(what));
        }
        Ok(InputVerdict::Tampered { place, found })
    }

    fn submodules(&self) -> Submodules {
        if self.attrs.is_set("submodules") {
            Submodules::Mounted
        } else {
            Submodules::Empty
        }
    }

    /// The content is what the lock states; Nix refuses it if what is said of the commit is not true.
    fn judge_numbers(&self, checkout: &GitCheckout, rev: &str, place: String) -> Judged {
        let mut numbers = vec![("lastModified", checkout.last_modified(rev)?)];
        if self.attrs.has("revCount") && !checkout.is_shallow()? {
            numbers.push(("revCount", checkout.rev_count(rev)?));
        }
        for (name, number) in numbers {
            if let Some(locked) = self.attrs.number(name)
                && locked != number
            {
                let place = format!("{place} (its {name} is {number}, not {locked})");
                let found = self.locked;
                return Ok(InputVerdict::Tampered { place, found });
            }
        }
        Ok(InputVerdict::Verified { place })
    }

    fn tarball(&self) -> Judged {
        let file = self.file()?;
        let mut archive = ArchiveTree::open(&file, &self.options.scratch)?;
        let found = archive.nar_hash()?;
        let is_form_of_2_8 =
            found != self.locked && archive.single_file_hash()? == Some(self.locked);
        if is_form_of_2_8 {
            return Ok(InputVerdict::Verified {
                place: shown(&file),
            });
        }
        Ok(judge(shown(&file), found, self.locked))
    }

    /// Where its `url` leads on this machine.
    fn file(&self) -> Result<PathBuf, InputSourceError> {
        let url = self.attrs.text("url").unwrap_or_default();
        crate::url::local_path(url).ok_or_else(|| elsewhere(url))
    }

    /// The path in the store on disk, if it is there.
    fn in_store(&self, pin: &LockedInput) -> Option<InputVerdict> {
        let path = self
            .options
            .store_dir
            .path(&pin.store_path(&self.options.store_dir)?);
        match folder_hash(Path::new(&path)) {
            Ok(found) => Some(judge(path, found, self.locked)),
            Err(InputSourceError::NotAtHand(_)) => None,
            Err(error) => Some(InputVerdict::NotRead(error)),
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn elsewhere(url: &str) -> InputSourceError {
    InputSourceError::NotAtHand(format!("{url} is not on this machine"))
}
