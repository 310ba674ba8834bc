use super::{
    InputSourceError, open_file,
    tree::{SourceContents, SourceNode},
};
use std::{fs::File, io::Read, path::Path};
use tk_nar::fs::{Dump, DumpError, DumpOptions};
use tk_path::{Algorithm, Hasher, NarHash};

/// The hash of the NAR of the file or folder at `path`.
pub(crate) fn folder_hash(path: &Path) -> Result<NarHash, InputSourceError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for chunk in Dump::new(path, &DumpOptions::default()).map_err(of_dump)? {
        hasher.update(chunk.map_err(of_dump)?.as_ref());
    }
    let hash = NarHash::try_from(hasher.finish());
    hash.map_err(|e| InputSourceError::Unsupported(e.to_string()))
}

/// The hash of the NAR of a file with the content of the one at `path`, whatever its mode is.
pub(crate) fn flat_hash(path: &Path) -> Result<NarHash, InputSourceError> {
    flat_hash_of(open_file(path)?)
}

/// The same of an open file.
pub(crate) fn flat_hash_of(file: File) -> Result<NarHash, InputSourceError> {
    let node = SourceNode::File {
        executable: false,
        content: (),
    };
    node.nar_hash(&mut OneFile(file))
}

struct OneFile(File);

impl SourceContents<()> for OneFile {
    fn open<'a>(&'a mut self, (): &'a ()) -> Result<(u64, Box<dyn Read + 'a>), InputSourceError> {
        let metadata = self.0.metadata();
        let metadata = metadata.map_err(|e| InputSourceError::failed("reading a file", e))?;
        Ok((metadata.len(), Box::new(&self.0)))
    }
}

fn of_dump(error: DumpError) -> InputSourceError {
    match error {
        DumpError::Io {
            doing,
            path,
            source,
        } => InputSourceError::of(doing, &path, source),
        DumpError::Changed { .. } => {
            let source = std::io::Error::other(error.to_string());
            InputSourceError::failed("reading it", source)
        }
        other => InputSourceError::Unsupported(other.to_string()),
    }
}
