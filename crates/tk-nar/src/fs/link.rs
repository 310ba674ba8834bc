use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Makes the link `place` to `target` at once: readers see what was there or the new link, nothing
/// between. Only a link is replaced, and only one whose text `may_replace` lets go; a file or a folder
/// stays even if it appears meanwhile. What a process left behind that was killed here is swept.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when something else is there.
pub fn replace_link(
    place: &Path,
    target: &Path,
    may_replace: impl Fn(&Path) -> bool,
) -> io::Result<()> {
    match symlink(target, place) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let is_ours = |link: &Path| fs::read_link(link).is_ok_and(|text| may_replace(&text));
    let refused = || {
        let why = "something else is there, which is not a link to replace";
        io::Error::new(io::ErrorKind::AlreadyExists, why)
    };
    if !is_ours(place) {
        return Err(refused());
    }
    let folder = match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // Whoever replaces a link here waits. Who may not read the folder goes on without.
    let lock = File::open(folder).ok();
    if let Some(lock) = &lock {
        let _ = flock(lock, FlockOperation::LockExclusive);
    }
    let aside = beside(folder, place);
    if aside.is_symlink() {
        fs::remove_file(&aside)?;
    }
    symlink(target, &aside)?;
    // An exchange lets the old link be checked after it was taken away: a check before leaves time for
    // others.
    let exchange = || renameat_with(CWD, &aside, CWD, place, RenameFlags::EXCHANGE);
    let replaced = match exchange() {
        Ok(()) if is_ours(&aside) => Ok(()),
        // Somebody was faster.
        Ok(()) => exchange().map_err(io::Error::from).and(Err(refused())),
        // It is gone, or the file system cannot do that.
        Err(_) if place.symlink_metadata().is_err() || is_ours(place) => {
            return fs::rename(&aside, place).inspect_err(|_| drop(fs::remove_file(&aside)));
        }
        Err(_) => Err(refused()),
    };
    if aside.is_symlink() {
        fs::remove_file(&aside)?;
    }
    replaced
}

/// The one name in `folder` for a link that is to be at `place`.
fn beside(folder: &Path, place: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(place.file_name().unwrap_or_default());
    name.push(".new-link");
    folder.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_that_may_go_are_replaced() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("result");
        let ours = |text: &Path| text.starts_with("/nix/store");
        let make = |target: &str| replace_link(&place, Path::new(target), ours);
        let count = || fs::read_dir(top.path()).unwrap().count();
        make("/nix/store/a").unwrap();
        // A process was killed.
        symlink("/nix/store/old", top.path().join(".result.new-link")).unwrap();
        make("/nix/store/b").unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("/nix/store/b"));
        assert_eq!(count(), 1);
        fs::remove_file(&place).unwrap();
        let refused = |made: io::Result<()>| {
            assert_eq!(made.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(count(), 1);
        };
        symlink("/etc/passwd", &place).unwrap();
        refused(make("/nix/store/c"));
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("/etc/passwd"));
        fs::remove_file(&place).unwrap();
        fs::write(&place, "mine").unwrap();
        refused(make("/nix/store/c"));
        assert_eq!(fs::read(&place).unwrap(), b"mine");
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        refused(make("/nix/store/c"));
        assert!(place.is_dir());
    }

    #[test]
    fn many_at_once_end_with_one_link() {
        let top = tempfile::tempdir().unwrap();
        let place = top.path().join("result");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let place = &place;
                let target = format!("/nix/store/{n}");
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace_link(place, target.as_ref(), |_| true).unwrap();
                    }
                });
            }
        });
        assert!(place.is_symlink());
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 1);
    }
}
