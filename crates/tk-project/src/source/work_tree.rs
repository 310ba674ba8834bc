use super::{
    ArchiveTree, InputSourceError, MAX_ENTRIES,
    git::keep,
    tree::{SourceContents, SourceNode},
};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};
use tk_path::NarHash;

/// Those files of a working tree that git has, as they are there.
#[derive(Debug)]
pub(crate) struct WorkTree {
    pub(crate) root: SourceNode<WorkContent>,
    pub(crate) contents: WorkFiles,
}

/// A file on disk, or the target of a link.
#[derive(Debug)]
pub(crate) enum WorkContent {
    File(PathBuf),
    Target(Vec<u8>),
}

#[derive(Debug)]
pub(crate) struct WorkFiles;

impl WorkTree {
    /// Of `names` in `folder` what is there. No link is followed to find one.
    pub(crate) fn read(
        folder: &Path,
        names: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<WorkTree, InputSourceError> {
        let mut root = BTreeMap::new();
        let mut folders = BTreeMap::new();
        for (count, name) in names.into_iter().enumerate() {
            if count > MAX_ENTRIES {
                let what = format!("git has more than {MAX_ENTRIES} files there");
                return Err(InputSourceError::Unsupported(what));
            }
            let parts: Vec<_> = name.split(|byte| *byte == b'/').collect();
            if parts.len() <= 64
                && is_below_folders(folder, &parts, &mut folders)
                && let Some(node) = node(&folder.join(OsStr::from_bytes(&name)))?
            {
                put(&mut root, &parts, node);
            }
        }
        Ok(WorkTree {
            root: SourceNode::Folder(root),
            contents: WorkFiles,
        })
    }

    /// Takes out what is not in `archive`.
    pub(crate) fn keep_only(&mut self, archive: &ArchiveTree) {
        keep(&mut self.root, &archive.root);
    }

    pub(crate) fn nar_hash(&mut self) -> Result<NarHash, InputSourceError> {
        self.root.nar_hash(&mut self.contents)
    }
}

/// Whether what `parts` lie in are folders, and not links to such.
fn is_below_folders(folder: &Path, parts: &[&[u8]], known: &mut BTreeMap<PathBuf, bool>) -> bool {
    let mut place = folder.to_owned();
    parts[..parts.len() - 1].iter().all(|part| {
        place.push(OsStr::from_bytes(part));
        let is_folder = || fs::symlink_metadata(&place).is_ok_and(|found| found.is_dir());
        *known.entry(place.clone()).or_insert_with(is_folder)
    })
}

fn node(path: &Path) -> Result<Option<SourceNode<WorkContent>>, InputSourceError> {
    let of = |e| InputSourceError::of("reading", path, e);
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(of)?,
    };
    Ok(if found.is_symlink() {
        let target = fs::read_link(path).map_err(of)?;
        let target = target.as_os_str().as_bytes().to_vec();
        Some(SourceNode::Link(WorkContent::Target(target)))
    } else if found.is_file() {
        Some(SourceNode::File {
            executable: found.permissions().mode() & 0o100 != 0,
            content: WorkContent::File(path.to_owned()),
        })
    } else {
        None
    })
}

fn put(
    folder: &mut BTreeMap<Vec<u8>, SourceNode<WorkContent>>,
    parts: &[&[u8]],
    node: SourceNode<WorkContent>,
) {
    let [name, rest @ ..] = parts else { return };
    if rest.is_empty() {
        folder.insert(name.to_vec(), node);
        return;
    }
    let below = folder
        .entry(name.to_vec())
        .or_insert_with(SourceNode::empty);
    if let SourceNode::Folder(below) = below {
        put(below, rest, node);
    }
}

impl SourceContents<WorkContent> for WorkFiles {
    fn open<'a>(
        &'a mut self,
        content: &'a WorkContent,
    ) -> Result<(u64, Box<dyn Read + 'a>), InputSourceError> {
        match content {
            WorkContent::Target(target) => Ok((target.len() as u64, Box::new(&target[..]))),
            WorkContent::File(path) => {
                let of = |e| InputSourceError::failed(format!("reading {}", path.display()), e);
                let file = File::open(path).map_err(of)?;
                let size = file.metadata().map_err(of)?.len();
                Ok((size, Box::new(file)))
            }
        }
    }
}
