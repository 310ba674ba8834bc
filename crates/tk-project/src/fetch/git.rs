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
        let mut locked = wanted.clone();
        // Without a wish, the working tree counts, as long as it is clean.
        let of_work_tree = !wanted.has("ref") && !wanted.has("rev") && checkout.has_work_tree();
        let is_shallow = checkout.is_shallow()?;
        if is_shallow && !is_shallow_wanted && !of_work_tree {
            return unsupported(format!("{url} is a shallow repository: say shallow = true"));
        }
        let is_ignoring = wanted.is_set("exportIgnore");
        if is_ignoring && submodules == Submodules::Mounted {
            return unsupported(format!(
                "exportIgnore and submodules of {url} at once are not done here"
            ));
        }
        let head = head(&checkout);
        if of_work_tree {
            if checkout.is_dirty(submodules, &self.scratch)? {
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
        locked.set_number("lastModified", checkout.last_modified(&rev)?);
        if !is_shallow_wanted {
            locked.set_number("revCount", checkout.rev_count(&rev)?);
        }
        let archive = is_ignoring.then(|| checkout.archive(&rev, &self.scratch));
        let archive = archive.transpose()?;
        let (hash, tree) = if of_work_tree {
            let mut tree = checkout.work_tree(submodules, &self.scratch)?;
            archive.iter().for_each(|archive| tree.keep_only(archive));
            (tree.nar_hash()?, FetchedTree::WorkTree(tree))
        } else {
            let mut revision = checkout.revision(&rev, submodules)?;
            archive.iter().for_each(|kept| revision.keep_only(kept));
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
