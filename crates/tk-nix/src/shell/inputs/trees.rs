//! Which trees count, and how much of each.

use crate::Result;
use crate::shell::{
    eval_reads::EvalReads,
    files,
    git::Repository,
    mentions::{self, Mentions},
    place::LocalFlake,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

/// Trees that are looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trees {
    pub(super) roots: BTreeMap<PathBuf, Extent>,
    /// Folders that are not looked into, wherever they are.
    pub(super) left_out: Vec<PathBuf>,
    /// Trees of which only what git has is seen.
    pub(super) repositories: BTreeMap<PathBuf, Repository>,
    /// Files of these that were evaluated.
    pub(super) evaluated: BTreeSet<PathBuf>,
    /// What the code mentions that was evaluated in a root.
    pub(super) mentions: BTreeMap<PathBuf, Mentions>,
    /// What evaluation can see beyond its own trees.
    view: View,
}

/// What evaluation can see, and nix tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Whether files of the machine can be read that are in no tree of its own.
    pub sees_machine: bool,
    /// Whether nix tells of what is copied to the store through a filter.
    pub tells_filtered: bool,
    /// Folders of the store, whose files stay what they are.
    pub stores: Vec<PathBuf>,
}

/// How much of a tree counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
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
    pub fn new(left_out: Vec<PathBuf>, view: View) -> Trees {
        Trees {
            left_out,
            view,
            ..Trees::default()
        }
    }

    /// With all of `path`, a file or a folder.
    pub fn add(&mut self, path: PathBuf) {
        self.roots.insert(path, Extent::All);
    }

    /// With the folder of a file of Nix code.
    pub fn add_own(&mut self, folder: PathBuf) {
        self.at_least(folder, Extent::Own);
    }

    /// With what nix said it read.
    pub fn add_told(&mut self, told: &EvalReads) {
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
    pub fn add_flake(&mut self, local: &LocalFlake) -> Result<()> {
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
/// Bytes of a flake.nix or flake.lock.
const MAX_FLAKE: u64 = 16 << 20;
/// Local inputs of a flake.
const MAX_INPUTS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

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
}
