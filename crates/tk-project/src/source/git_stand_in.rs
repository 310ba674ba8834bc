//! A repository that stands in for another one, without its configuration.

use super::{GitCheckout, InputSourceError};
use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The objects, names and index of a repository, and of its configuration only how lines end and what modes mean.
///
/// # Security
/// Git runs the commands that a configuration names where it converts content: filters, hooks, monitors. The
/// configuration here names none, and nobody else's is read.
pub(super) struct GitStandIn {
    dir: TempDir,
    objects: PathBuf,
    index: PathBuf,
    settings: Vec<String>,
}

impl GitStandIn {
    /// One for `checkout`, in `scratch`.
    pub(super) fn of(
        checkout: &GitCheckout,
        scratch: &Path,
    ) -> Result<GitStandIn, InputSourceError> {
        let failed = |e| InputSourceError::failed("making a repository beside another one", e);
        let dir = TempDir::with_prefix_in(".tk-store-git-", scratch).map_err(failed)?;
        let index = inner_path(checkout, "index")?;
        let attributes = inner_path(checkout, "info/attributes")?;
        let stand_in = GitStandIn {
            objects: inner_path(checkout, "objects")?,
            settings: settings(checkout)?,
            index,
            dir,
        };
        stand_in.fill(checkout, &attributes).map_err(failed)??;
        Ok(stand_in)
    }

    fn fill(
        &self,
        checkout: &GitCheckout,
        attributes: &Path,
    ) -> io::Result<Result<(), InputSourceError>> {
        let dir = self.dir.path();
        for folder in ["refs", "objects", "info"] {
            fs::create_dir(dir.join(folder))?;
        }
        let names = ["for-each-ref", "--format=%(objectname) %(refname)"];
        let asked = checkout.ask(&names).and_then(|names| {
            let format = checkout.ask_line(&["rev-parse", "--show-object-format"])?;
            Ok((names, format))
        });
        let (names, format) = match asked {
            Ok(asked) => asked,
            Err(error) => return Ok(Err(error)),
        };
        fs::write(dir.join("packed-refs"), names)?;
        let head = checkout.ask_line(&["symbolic-ref", "--quiet", "HEAD"]);
        let head = head.map(|name| format!("ref: {name}\n"));
        let head = head.or_else(|_| checkout.ask_line(&["rev-parse", "--verify", "HEAD"]));
        let head = head.unwrap_or_else(|_| "ref: refs/heads/none\n".into());
        fs::write(dir.join("HEAD"), head)?;
        let config = if format == "sha1" {
            "[core]\nrepositoryFormatVersion = 0\nbare = true\n".to_owned()
        } else {
            format!(
                "[core]\nrepositoryFormatVersion = 1\nbare = true\n[extensions]\nobjectFormat = {format}\n"
            )
        };
        fs::write(dir.join("config"), config)?;
        if attributes.metadata().is_ok_and(|found| found.is_file()) {
            fs::copy(attributes, dir.join("info/attributes"))?;
        }
        // The larger parts of an index that is split.
        let beside = self.index.parent().unwrap_or(Path::new("/"));
        for entry in fs::read_dir(beside)? {
            let name = entry?.file_name();
            if name.as_bytes().starts_with(b"sharedindex.") {
                symlink(beside.join(&name), dir.join(&name))?;
            }
        }
        Ok(Ok(()))
    }

    /// Makes `command` of git one that is run here.
    pub(super) fn lead(&self, command: &mut Command) {
        command
            .env("GIT_DIR", self.dir.path())
            .env("GIT_OBJECT_DIRECTORY", &self.objects)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        for name in ["GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_CONFIG"] {
            command.env_remove(name);
        }
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
    }

    /// The same for one that looks at the working tree, too, which is in the folder where it is run.
    pub(super) fn lead_with_work_tree(&self, command: &mut Command) {
        self.lead(command);
        command
            .env("GIT_INDEX_FILE", &self.index)
            .env("GIT_WORK_TREE", ".");
    }
}

/// Where the repository has `name`.
fn inner_path(checkout: &GitCheckout, name: &str) -> Result<PathBuf, InputSourceError> {
    let said = checkout.ask(&["rev-parse", "--git-path", name])?;
    let said = said.strip_suffix(b"\n").unwrap_or(&said);
    let path = checkout.folder.join(OsStr::from_bytes(said));
    let of = |e| InputSourceError::failed(format!("looking at {}", path.display()), e);
    std::path::absolute(&path).map_err(of)
}

/// What of the configuration says how content is compared, and runs nothing.
fn settings(checkout: &GitCheckout) -> Result<Vec<String>, InputSourceError> {
    // Git says no where there is none.
    let Ok(said) = checkout.ask(&["config", "-z", "--get-regexp", HARMLESS]) else {
        return Ok(Vec::new());
    };
    let settings = said.split(|byte| *byte == 0).filter(|one| !one.is_empty());
    let settings = settings.map(|one| String::from_utf8_lossy(one).replacen('\n', "=", 1));
    Ok(settings.collect())
}

const HARMLESS: &str = "^core\\.(autocrlf|eol|filemode|symlinks|ignorecase)$";
