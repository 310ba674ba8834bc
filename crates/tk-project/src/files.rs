use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The text of `file`, if that is there and has at most `max` bytes.
///
/// # Errors
/// If it cannot be read, is larger, is no file, or is not UTF-8.
pub fn read_bounded(file: &Path, max: u64) -> io::Result<Option<String>> {
    let opened = match File::open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    opened.take(max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max {
        return Err(io::Error::other(format!("it has more than {max} bytes")));
    }
    Ok(Some(text))
}
