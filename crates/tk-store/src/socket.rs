//! Sockets in the file system, whose names the system limits to 107 bytes.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

/// A name by which a socket can be bound and connected to, however long its path is: of a long one it
/// goes through the open folder, so it is good as long as this lives. Real Nix changes its folder for
/// that, which a program with threads cannot.
#[derive(Debug)]
pub struct SocketName {
    name: PathBuf,
    _folder: Option<OwnedFd>,
}

impl SocketName {
    /// A name for the socket that is, or is to be, at `path`.
    ///
    /// # Errors
    /// When the path is long and its folder cannot be entered, or its last part alone is too long.
    pub fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_NAME {
            let name = path.to_owned();
            return Ok(SocketName {
                name,
                _folder: None,
            });
        }
        let (Some(parent), Some(base)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, parent, flags, Mode::empty())?;
        let name = Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(base);
        if name.as_os_str().as_bytes().len() > MAX_NAME {
            let why = format!("the name of a socket has at most {MAX_NAME} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, why));
        }
        Ok(SocketName {
            name,
            _folder: Some(folder),
        })
    }

    /// The name to give to the system.
    pub fn as_path(&self) -> &Path {
        &self.name
    }
}

/// Bytes of `sun_path`, without the NUL at its end.
const MAX_NAME: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::net::{UnixListener, UnixStream},
    };

    #[test]
    fn long_paths_have_short_names() {
        let top = tempfile::tempdir().unwrap();
        let short = top.path().join("s");
        assert_eq!(SocketName::of(&short).unwrap().as_path(), short);
        let folder = top.path().join("d".repeat(120)).join("e".repeat(120));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("socket");
        let listener = UnixListener::bind(SocketName::of(&path).unwrap().as_path()).unwrap();
        UnixStream::connect(SocketName::of(&path).unwrap().as_path()).unwrap();
        listener.accept().unwrap();
        assert!(path.exists());
        assert!(SocketName::of(&folder.join("s".repeat(100))).is_err());
        assert!(SocketName::of(&folder.join("absent/socket")).is_err());
    }
}
