//! Repositories of this machine. Mirrors `git.cc`.

use super::{FetchError, FetchOptions, FetchedInput, FetchedTree};
use crate::{
    lock::InputAttrs,
    source::{GitCheckout, InputSourceError, Submodules},
    url::local_path,
};

impl FetchOptions<'_> {
    pub(super) fn git(&self, wanted: &InputAttrs) -> Result<FetchedInput, FetchError> {
        let url = wanted.text("url").unwrap_or_default();
        let unsupported = |what: String| Err(FetchError::Unsupported(what));
        for name in ["lfs", "verifyCommit", "publicKey", "publicKeys"] {
            if wanted.is_set(name) || wanted.text(name).is_some() {
                return unsupported(format!("'{name}' of {url} is not done here"));
            }
        }
        let Some(folder) = local_path(url) else {
            return unsupported(format!(
                "{url} is not on this machine: git is run to read, not to fetch"
            ));
        };
        let checkout = GitCheckout::open(&folder, &self.git)?;
        let is_shallow_wanted = wanted.is_set("shallow");
        let submodules = if wanted.is_set("submodules") {
            Submodules::Mounted
        } else {
            Submodules::Empty
        };
        let is_shallow = checkout.ask_line(&["rev-parse", "--is-shallow-repository"])? == "true";
        if is_shallow && !is_shallow_wanted {
            return unsupported(format!("{url} is a shallow repository: say shallow = true"));
        }
        let mut locked = wanted.clone();
        // Without a wish, the working tree counts, as long as it is clean.
        let of_work_tree = !wanted.has("ref") && !wanted.has("rev") && checkout.has_work_tree();
        let head = head(&checkout);
        if of_work_tree {
            if !checkout.ask(&DIRTY)?.is_empty() {
                return unsupported(format!(
                    "{} has changes that are not committed",
                    folder.display()
                ));
            }
            if let Some(head) = &head {
                locked.set_text("ref", head);
            }
        } else if !locked.has("ref") {
            locked.set_text("ref", head.clone().unwrap_or_else(|| "master".into()));
        }
        if !locked.has("rev") {
            let name = if of_work_tree {
                "HEAD"
            } else {
                locked.text("ref").unwrap_or_default()
            };
            let commit = format!("{name}^{{commit}}");
            let rev = checkout.ask_line(&[
                "rev-parse",
                "--verify",
                "--quiet",
                "--end-of-options",
                &commit,
            ]);
            let rev = rev.map_err(|_| {
                let what = format!("{} has no '{name}'", folder.display());
                InputSourceError::NotAtHand(what)
            })?;
            locked.set_text("rev", rev.lines().last().unwrap_or_default());
        }
        let rev = locked.text("rev").unwrap_or_default().to_owned();
        let mut revision = checkout.revision(&rev, submodules)?;
        locked.set_number(
            "lastModified",
            number(
                &checkout,
                &[
                    "log",
                    "-1",
                    "--no-show-signature",
                    "--format=%ct",
                    &rev,
                    "--",
                ],
            )?,
        );
        if !is_shallow_wanted {
            locked.set_number(
                "revCount",
                number(&checkout, &["rev-list", "--count", &rev, "--"])?,
            );
        }
        if wanted.is_set("exportIgnore") {
            revision.keep_only(&checkout.archive(&rev, &self.scratch)?);
        }
        let is_plain = !wanted.is_set("exportIgnore") && submodules == Submodules::Empty;
        let (hash, tree) = if of_work_tree && is_plain {
            let mut tree = checkout.work_tree()?;
            (tree.nar_hash()?, FetchedTree::WorkTree(tree))
        } else {
            (revision.nar_hash()?, FetchedTree::Revision(revision))
        };
        locked.set_text("narHash", hash.sri());
        Ok(FetchedInput { locked, tree })
    }
}

/// The branch that is checked out, as `refs/heads/main`.
fn head(checkout: &GitCheckout) -> Option<String> {
    checkout.ask_line(&["symbolic-ref", "--quiet", "HEAD"]).ok()
}

fn number(checkout: &GitCheckout, args: &[&str]) -> Result<u64, InputSourceError> {
    let line = checkout.ask_line(args)?;
    let bad = || InputSourceError::Unsupported(format!("git says '{line}' where a number must be"));
    line.parse().map_err(|_| bad())
}

const DIRTY: [&str; 5] = [
    "status",
    "--porcelain",
    "-z",
    "--untracked-files=no",
    "--ignore-submodules=all",
];
