use rustix::{
    fs::{CWD, Dir, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat},
    io::Errno,
};
use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};
use tk_nar::Encoder;
use tk_path::{Algorithm, Hash, Hasher};
use tk_store::{Error, Result};

/// The open folder `.links`, whose entries are called by what they hold.
pub(crate) struct LinksFolder {
    fd: OwnedFd,
    place: PathBuf,
    /// The inodes of its entries: files that are among them are linked already.
    inodes: RwLock<HashSet<u64>>,
    /// Those of them that were read, and are what their names say.
    whole: RwLock<HashSet<u64>>,
}

impl LinksFolder {
    /// Opens the folder in the store directory `real`, which is open as `store`, and makes it where there is
    /// none.
    pub fn open(store: &OwnedFd, real: &Path) -> Result<Self> {
        let place = real.join(LINKS);
        let open = || {
            match mkdirat(store, LINKS, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let fd = openat(store, LINKS, FOLDER, Mode::empty())?;
            let mut inodes = HashSet::new();
            each_entry(&fd, |_, inode| {
                inodes.insert(inode);
            })?;
            Ok((fd, inodes))
        };
        let opened = open().map_err(|e| Error::io(format!("opening {}", place.display()), e));
        let (fd, inodes) = opened?;
        Ok(LinksFolder {
            fd,
            place,
            inodes: RwLock::new(inodes),
            whole: RwLock::default(),
        })
    }

    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub fn shown_of(&self, entry: &CStr) -> PathBuf {
        self.place.join(&*entry.to_string_lossy())
    }

    /// Whether an entry has this inode.
    pub fn has_inode(&self, inode: u64) -> bool {
        let inodes = self.inodes.read().unwrap_or_else(PoisonError::into_inner);
        inodes.contains(&inode)
    }

    /// Notes that an entry has this inode, and that it is what its name says.
    pub fn note(&self, inode: u64) {
        for set in [&self.inodes, &self.whole] {
            let mut set = set.write().unwrap_or_else(PoisonError::into_inner);
            set.insert(inode);
        }
    }

    /// The names in the folder `fd`, but for those of files that are linked already.
    pub fn unknown_entries(&self, fd: &OwnedFd) -> io::Result<Vec<CString>> {
        let mut names = Vec::new();
        each_entry(fd, |name, inode| {
            if !self.has_inode(inode) {
                names.push(name.to_owned());
            }
        })?;
        Ok(names)
    }

    /// What the entry of the file `name` in `folder` is called.
    pub fn name_of(&self, folder: &OwnedFd, name: &CStr) -> io::Result<CString> {
        let hash = file_hash(folder, name)?;
        Ok(CString::new(entry_name(&hash))?)
    }

    /// Whether the entry, of which `stat` was asked for, is what its name says. It is read once.
    pub fn is_whole(&self, stat: &Stat, entry: &CStr) -> io::Result<bool> {
        let known = self.whole.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&stat.st_ino) {
            return Ok(true);
        }
        drop(known);
        let whole = self.name_of(&self.fd, entry)?.as_c_str() == entry;
        if whole {
            self.note(stat.st_ino);
        }
        Ok(whole)
    }
}

/// The entry's name for a file whose NAR has this hash.
pub(crate) fn entry_name(hash: &Hash) -> String {
    tk_path::nix32::encode(hash.as_bytes())
}

/// The entries of `.links` in the store directory `real`; none if there is no such folder.
pub(crate) fn entries(real: &Path) -> io::Result<Option<(OwnedFd, Vec<CString>)>> {
    let fd = match openat(CWD, real.join(LINKS), FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let mut names = Vec::new();
    each_entry(&fd, |name, _| names.push(name.to_owned()))?;
    names.sort();
    Ok(Some((fd, names)))
}

/// The SHA-256 of the NAR of the file or link `name` in `folder` alone.
pub(crate) fn file_hash(folder: impl AsFd, name: &CStr) -> io::Result<Hash> {
    let folder = folder.as_fd();
    let nar = Encoder::new(HashWriter(Hasher::new(Algorithm::Sha256)));
    let hashed = match openat(folder, name, FILE, Mode::empty()) {
        Ok(fd) => hash_regular(nar, File::from(fd)),
        // A link is not followed.
        Err(Errno::LOOP) => hash_link(nar, folder, name),
        Err(error) => Err(error.into()),
    };
    Ok(hashed?.0.finish())
}

fn hash_regular(mut nar: Encoder<HashWriter>, mut file: File) -> io::Result<HashWriter> {
    let stat = fstat(&file)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is neither a file nor a link"));
    }
    let size = stat.st_size as u64;
    let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
    nar.regular(executable, size).map_err(io::Error::other)?;
    // What is read beyond the size that it has tells that it grows.
    let mut buffer = vec![0; BUFFER.min(size as usize + 1)];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => nar.contents(&buffer[..n]).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    nar.finish().map_err(io::Error::other)
}

fn hash_link(
    mut nar: Encoder<HashWriter>,
    folder: impl AsFd,
    name: &CStr,
) -> io::Result<HashWriter> {
    let target = readlinkat(folder, name, Vec::new())?;
    nar.symlink(target.to_bytes()).map_err(io::Error::other)?;
    nar.finish().map_err(io::Error::other)
}

struct HashWriter(Hasher);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn each_entry(fd: &OwnedFd, mut take: impl FnMut(&CStr, u64)) -> Result<(), Errno> {
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            take(entry.file_name(), entry.ino());
        }
    }
    Ok(())
}

const LINKS: &str = ".links";
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);
/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;
