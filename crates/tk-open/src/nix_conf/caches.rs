//! Caches in a nix.conf, for nix to fetch from.
//!
//! ```text
//! ours  = "# tk-store cache: " URL "\n"
//!         [ "extra-substituters = " URL "\n" ] [ "extra-trusted-public-keys = " KEY "\n" ]
//! ```
//! What is ours stands at the end of the file and only adds: it holds whatever the user's own lines
//! say, and takes nothing from them. What the file already says is not said again. All other bytes stay as
//! they are.
//!
//! The file is replaced at once (written beside it and renamed), keeps its mode, and if it is a link
//! that stays and its target is replaced. Two processes that change it wait for each other.

use super::read::{Assignment, canonical, is_absent, parse, read, words};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tk_narinfo::PublicKey;
use tk_store::{Error, Result};

/// What a file says of caches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caches {
    /// URLs, in the order in which they stand.
    pub substituters: Vec<String>,
    /// Keys as they are written.
    pub keys: Vec<String>,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file that was looked at, without links.
    pub file: PathBuf,
    /// Whether it is another now.
    pub changed: bool,
}

/// Makes nix fetch from the cache `url` by the nix.conf at `path`, which is made if it is not there,
/// and trust `key`. A file that already says so is not touched.
///
/// # Errors
/// [`Error::Invalid`] for a URL that cannot stand there and for a file that nix would not
/// read.
pub fn add(path: &Path, url: &str, key: Option<&PublicKey>) -> Result<Change> {
    let key = key.map(ToString::to_string);
    for word in [Some(url), key.as_deref()].into_iter().flatten() {
        if word.is_empty()
            || word.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
        {
            let what =
                format!("'{word}' cannot stand in nix.conf, where blanks and '#' end a word");
            return Err(Error::invalid(what));
        }
    }
    change(path, |text, file| {
        let said = Caches::read(text, file)?;
        let has_url = said.has(url);
        let has_key = key.as_ref().is_none_or(|key| said.keys.contains(key));
        if has_url && has_key {
            return Ok(None);
        }
        let mut new = text.to_owned();
        if !new.is_empty() && !new.ends_with(b"\n") {
            new.push(b'\n');
        }
        new.extend(format!("{MARK}{url}\n").bytes());
        if !has_url {
            new.extend(format!("extra-substituters = {url}\n").bytes());
        }
        if let Some(key) = key.as_ref().filter(|_| !has_key) {
            new.extend(format!("extra-trusted-public-keys = {key}\n").bytes());
        }
        Ok(Some(new))
    })
}

/// Takes out of the nix.conf at `path` what [`add`] wrote for the cache `url`. What the user wrote
/// stays.
pub fn remove(path: &Path, url: &str) -> Result<Change> {
    change(path, |text, _| {
        let mut new = Vec::with_capacity(text.len());
        let mut ours = false;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let words = String::from_utf8_lossy(line);
            let words = words.trim_end();
            ours = match words.strip_prefix(MARK) {
                Some(other) => same(other, url),
                None => ours && OURS.iter().any(|begin| words.starts_with(begin)),
            };
            if !ours {
                new.extend_from_slice(line);
            }
        }
        Ok((new != text).then_some(new))
    })
}

impl Caches {
    /// What the file at `path` says, with those that it includes; of one that is not there, nothing.
    pub fn of_file(path: &Path) -> Result<Caches> {
        let text = read_if_there(path)?.unwrap_or_default();
        Caches::read(&text, path)
    }

    /// Whether `url` is among the caches, with whatever parameters.
    pub fn has(&self, url: &str) -> bool {
        self.substituters.iter().any(|other| same(other, url))
    }

    fn read(text: &[u8], path: &Path) -> Result<Caches> {
        let mut caches = Caches::default();
        for Assignment { name, value } in parse(text, path)?.unwrap_or_default() {
            let Some((name, extra)) = canonical(&name) else {
                continue;
            };
            let list = match name {
                "substituters" => &mut caches.substituters,
                "trusted-public-keys" => &mut caches.keys,
                _ => continue,
            };
            if !extra {
                list.clear();
            }
            let words = words(&value).map(|word| String::from_utf8_lossy(word).into_owned());
            list.extend(words);
        }
        Ok(caches)
    }
}

/// Whether two URLs are of one cache.
fn same(one: &str, other: &str) -> bool {
    let bare = |url: &str| {
        let url = url.split('?').next().unwrap_or_default();
        url.trim_end_matches('/').to_owned()
    };
    bare(one) == bare(other)
}

/// Replaces the file by what `edit` makes of its text; `None` leaves it alone.
fn change(
    path: &Path,
    edit: impl FnOnce(&[u8], &Path) -> Result<Option<Vec<u8>>>,
) -> Result<Change> {
    let file = target(path)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let changing = |e: io::Error| Error::io(format!("changing {}", file.display()), e);
    fs::create_dir_all(folder).map_err(changing)?;
    // Held until this is done.
    let lock = File::open(folder).map_err(changing)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| changing(e.into()))?;
    let old = read_if_there(&file)?;
    let new = edit(old.as_deref().unwrap_or_default(), &file)?;
    let changed = new.is_some();
    if let Some(new) = new {
        replace(&file, &new).map_err(changing)?;
    }
    Ok(Change { file, changed })
}

/// Where the links at `path` end, whether or not something is there.
fn target(path: &Path) -> Result<PathBuf> {
    let doing = |e: io::Error| Error::io(format!("looking at {}", path.display()), e);
    let mut file = std::path::absolute(path).map_err(doing)?;
    for _ in 0..MAX_LINKS {
        match fs::read_link(&file) {
            Ok(next) => file = file.parent().unwrap_or(Path::new("/")).join(next),
            // Not a link, or nothing there yet.
            Err(_) => return Ok(file),
        }
    }
    Err(doing(io::Error::other("it is a link that leads to itself")))
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}

/// Puts `text` at `file` at once, with the mode and the owner of what was there.
fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    let mode = fs::Permissions::from_mode(0o644);
    sweep(folder);
    let mut new = tempfile::Builder::new();
    let mut new = new.prefix(ASIDE).permissions(mode).tempfile_in(folder)?;
    match fs::metadata(file) {
        Ok(old) => {
            let made = new.as_file();
            let now = made.metadata()?;
            if (old.uid(), old.gid()) != (now.uid(), now.gid()) {
                std::os::unix::fs::fchown(made, Some(old.uid()), Some(old.gid()))?;
            }
            made.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    new.write_all(text)?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

/// Removes what others left who were killed while they wrote; whoever writes now holds the lock.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(ASIDE) {
            // It is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Begins the name of a file that takes the place of another.
const ASIDE: &str = ".nix.conf-tk-store-";
const MARK: &str = "# tk-store cache: ";
const OURS: [&str; 2] = ["extra-substituters = ", "extra-trusted-public-keys = "];
const MAX_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const URL: &str = "https://cache.example.org";

    fn key(name: &str) -> PublicKey {
        PublicKey::new(name, [7; 32])
    }

    #[test]
    fn the_users_lines_stay_and_ours_come_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nix.conf");
        let own = "# mine\r\nsubstituters = https://a  # why\n\n!include nothing\nextra-substituters = https://b\n\
                   cores = 4";
        fs::write(&file, own).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let key = key("k-1");
        assert!(add(&file, URL, Some(&key)).unwrap().changed);
        let text = fs::read_to_string(&file).unwrap();
        let expected = format!(
            "{own}\n# tk-store cache: {URL}\nextra-substituters = {URL}\nextra-trusted-public-keys = {key}\n"
        );
        assert_eq!(text, expected);
        let before = fs::metadata(&file).unwrap();
        assert_eq!(before.mode() & 0o777, 0o640);
        assert!(!add(&file, URL, Some(&key)).unwrap().changed);
        let after = fs::metadata(&file).unwrap();
        assert_eq!(
            (before.ino(), before.mtime_nsec()),
            (after.ino(), after.mtime_nsec())
        );
        let said = Caches::of_file(&file).unwrap();
        assert_eq!(said.substituters, ["https://a", "https://b", URL]);
        assert_eq!(said.keys, [key.to_string()]);

        assert!(remove(&file, URL).unwrap().changed);
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{own}\n"));
        assert!(!remove(&file, URL).unwrap().changed);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        // Somebody was killed here.
        fs::write(folder.path().join(format!("{ASIDE}x")), "half").unwrap();
        add(&file, URL, None).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_said_is_not_said_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nix.conf");
        let key = key("k-1");
        fs::write(
            folder.path().join("more"),
            format!("binary-caches = {URL}/?priority=3\n"),
        )
        .unwrap();
        fs::write(&file, "include more\n").unwrap();
        add(&file, URL, Some(&key)).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("extra-substituters"), "{text}");
        assert!(text.contains("extra-trusted-public-keys = k-1:"), "{text}");
        // A line behind ours takes the cache away again.
        fs::write(&file, format!("{text}substituters = https://other\n")).unwrap();
        assert!(add(&file, URL, Some(&key)).unwrap().changed);
        assert!(Caches::of_file(&file).unwrap().has(URL));
        fs::write(&file, "include absent\n").unwrap();
        assert!(add(&file, URL, None).is_err());
        // What nix would not read, and what it would not take after the change.
        for text in ["include nix.conf\n", "cores=4\n"] {
            fs::write(&file, text).unwrap();
            assert!(add(&file, URL, None).is_err());
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        for url in ["", "https://a b", "https://a#b", "https://a\nbuilders = x"] {
            assert!(
                matches!(add(&file, url, None), Err(Error::Invalid { .. })),
                "{url}"
            );
        }
    }

    #[test]
    fn links_stay_links() {
        let folder = tempfile::tempdir().unwrap();
        let (link, real) = (
            folder.path().join("conf/nix.conf"),
            folder.path().join("dotfiles/real"),
        );
        fs::create_dir(folder.path().join("conf")).unwrap();
        symlink("../dotfiles/real", &link).unwrap();
        for _ in 0..2 {
            add(&link, URL, None).unwrap();
            assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
            assert!(Caches::of_file(&real).unwrap().has(URL));
        }
        symlink("loop", folder.path().join("loop")).unwrap();
        assert!(add(&folder.path().join("loop"), URL, None).is_err());
    }

    proptest! {
        #[test]
        fn other_bytes_stay(own in "([a-z]{1,5} = [a-z=\t ]{0,9}\n| *#[a-z=]{0,9}\n|\n){0,8}") {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("nix.conf");
            fs::write(&file, &own).unwrap();
            add(&file, URL, None).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            prop_assert!(text.starts_with(&own));
            remove(&file, URL).unwrap();
            let text = fs::read_to_string(&file).unwrap();
            prop_assert_eq!(text.trim_end_matches('\n'), own.trim_end_matches('\n'));
        }
    }
}
