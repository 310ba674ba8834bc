use std::{
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// The text of `file`, if that is there and has at most `max` bytes.
///
/// # Errors
/// If it cannot be read, is larger, is no file, or is not UTF-8.
pub fn read_bounded(file: &Path, max: u64) -> io::Result<Option<String>> {
    // To open a pipe would wait for who writes to it.
    match file.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => {
            if !found?.is_file() {
                return Err(io::Error::other("it is not a file"));
            }
        }
    }
    let opened = File::open(file)?;
    let mut text = String::new();
    opened.take(max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max {
        return Err(io::Error::other(format!("it has more than {max} bytes")));
    }
    Ok(Some(text))
}

/// Makes `text` the content of `file` in one step: a reader sees the old or the new, and what fails leaves the
/// old. A file that was there keeps its mode.
///
/// # Errors
/// If it cannot be written, or something that is no file is there.
pub fn write_whole(file: &Path, text: &str) -> io::Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mode = match fs::symlink_metadata(file) {
        Ok(there) if !there.is_file() => {
            return Err(io::Error::other("what is there is no plain file"));
        }
        Ok(there) => Some(there.permissions()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut aside = tempfile::Builder::new();
    let aside = aside
        .prefix(".tk-store-")
        .permissions(Permissions::from_mode(0o666));
    let mut aside = aside.tempfile_in(folder)?;
    aside.write_all(text.as_bytes())?;
    if let Some(mode) = mode {
        aside.as_file().set_permissions(mode)?;
    }
    aside.as_file().sync_all()?;
    aside.persist(file)?;
    Ok(())
}
