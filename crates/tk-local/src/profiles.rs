//! Profiles and their generations, and deleting old ones as `nix-collect-garbage` does (`profiles.cc`).
//!
//! ```text
//! <folder>/NAME          ->  NAME-N-link     the profile: a link whose text has "link" in it
//! <folder>/NAME-N-link   ->  a store path    its generation N, made at the link's mtime
//! <folder>/NAME.lock                         held by whoever changes the profile
//! ```
//! Folders below a folder of profiles are treated too, links to folders are not followed.

use crate::{
    LocalConfig,
    found_roots::is_gone,
    gcroots::clean,
    lock::{Cancel, OutputLock},
};
use rustix::fs::{Access, access};
use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_store::{Error, Result};

/// One generation of a profile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct ProfileGeneration {
    /// The profile that it belongs to.
    pub profile: PathBuf,
    /// Its number in that profile.
    pub number: u32,
    /// The link that keeps it.
    pub link: PathBuf,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// Whether the profile leads to it now.
    pub is_current: bool,
}

/// Which generations of each profile [`delete_old_generations`] takes; never the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldGenerations {
    /// All, those newer than the current one too: after a rollback they are old.
    AllButCurrent,
    /// Those that were not in use any more at this moment, in seconds since 1970: the newest one that is
    /// older was still in use then, and stays.
    OlderThan(i64),
}

impl OldGenerations {
    /// Reads `14d`, days before `now`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else, less than a day too, in the words of Nix.
    pub fn older_than(days: &str, now: SystemTime) -> Result<Self> {
        let number = days.strip_suffix('d').and_then(|n| n.parse::<i32>().ok());
        let Some(number) = number.filter(|days| *days > 0) else {
            return Err(Error::invalid(format!(
                "invalid number of days specifier '{days}', expected something like '14d'"
            )));
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        Ok(OldGenerations::OlderThan(now - i64::from(number) * DAY))
    }

    /// Those of `all`, which are sorted by number.
    fn of(self, all: Vec<ProfileGeneration>) -> Vec<ProfileGeneration> {
        let mut old: Vec<_> = match self {
            OldGenerations::AllButCurrent => all,
            OldGenerations::OlderThan(time) => {
                let is_older = |generation: &ProfileGeneration| generation.created < time;
                let used_then = all.iter().rposition(is_older);
                let before = all.into_iter().take(used_then.unwrap_or(0));
                // Of clocks that were set back: Nix gives up here.
                before.filter(is_older).collect()
            }
        };
        old.retain(|generation| !generation.is_current);
        old
    }
}

/// What is to be done with old generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationAction {
    /// They are told; nothing is written.
    Tell,
    /// They are deleted.
    Delete,
}

impl LocalConfig {
    /// The folders whose profiles are treated when old generations are deleted. For the system's own store
    /// also, as with newer versions of Nix, those of the user whose home is `home` and whose state is in
    /// `state_home` (`~/.local/state`; `None` for root, whose profiles lie in the store's own folder).
    pub fn profile_folders(&self, home: Option<&Path>, state_home: Option<&Path>) -> Vec<PathBuf> {
        let mut folders = vec![self.state.join("profiles")];
        if self.root.is_none() {
            folders.extend(state_home.map(|state| state.join("nix/profiles")));
            let default = home.and_then(|home| {
                let profile = fs::read_link(home.join(".nix-profile")).ok()?;
                clean(&home.join(profile)).parent().map(Path::to_owned)
            });
            folders.extend(default);
        }
        folders.sort();
        folders.dedup();
        folders
    }
}

/// The profiles in `folders` and the folders in them, as far as this user may change them. Folders that are
/// not there, or that he may not read, have none.
pub fn profiles(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = folders.to_vec();
    while let Some(folder) = left.pop() {
        if access(&folder, Access::READ_OK).is_err() {
            continue;
        }
        let is_writable = access(&folder, Access::WRITE_OK).is_ok();
        let entries = folder.read_dir().map_err(reading(&folder))?;
        for entry in entries {
            let entry = entry.map_err(reading(&folder))?;
            let kind = entry.file_type().map_err(reading(&folder))?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_symlink() && is_writable && names_link(&entry.path()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The generations of the profile at `profile` by number; none if it is no profile.
pub fn generations(profile: &Path) -> Result<Vec<ProfileGeneration>> {
    let (Some(folder), Some(name)) = (profile.parent(), profile.file_name()) else {
        return Ok(Vec::new());
    };
    let current = current_number(profile, folder, name.as_bytes());
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(reading(folder))? {
        let entry = entry.map_err(reading(folder))?;
        let entry_name = entry.file_name();
        let Some(number) = number_of(name.as_bytes(), entry_name.as_bytes()) else {
            continue;
        };
        // Others with the number are on the way to become it, or somebody's own.
        let exact = [name.as_bytes(), format!("-{number}-link").as_bytes()].concat();
        let meta = match entry.metadata() {
            Err(error) if is_gone(&error) => continue,
            meta => meta.map_err(reading(&entry.path()))?,
        };
        if entry_name.as_bytes() == exact && meta.is_symlink() {
            found.push(ProfileGeneration {
                profile: profile.to_owned(),
                number,
                link: entry.path(),
                created: meta.mtime(),
                is_current: current == Some(number),
            });
        }
    }
    found.sort_by_key(|generation| generation.number);
    Ok(found)
}

/// Deletes, or tells, the generations that `which` takes of all [`profiles`] in `folders`; returns them.
/// Nothing leaves the store by this: its next collection takes what these alone kept.
///
/// Each profile is locked meanwhile as Nix locks it. Blocks.
///
/// # Errors
/// When a folder cannot be read or a link not removed: what was deleted before stays deleted.
pub fn delete_old_generations(
    folders: &[PathBuf],
    which: OldGenerations,
    action: GenerationAction,
) -> Result<Vec<ProfileGeneration>> {
    let mut all = Vec::new();
    for profile in profiles(folders)? {
        let _lock = match action {
            GenerationAction::Tell => None,
            GenerationAction::Delete => Some(OutputLock::acquire(&profile, &Cancel::default())?),
        };
        let old = which.of(generations(&profile)?);
        if action == GenerationAction::Delete {
            for generation in &old {
                remove(&generation.link)?;
            }
        }
        all.extend(old);
    }
    Ok(all)
}

/// Whether `profile` is a link to a link by its text, which is how Nix knows profiles.
fn names_link(profile: &Path) -> bool {
    let text = fs::read_link(profile).unwrap_or_default();
    memchr::memmem::find(text.as_os_str().as_bytes(), b"link").is_some()
}

/// The generation that `profile` leads to. Beyond Nix, also if its text has the folder's name in it.
fn current_number(profile: &Path, folder: &Path, name: &[u8]) -> Option<u32> {
    let text = fs::read_link(profile).ok()?;
    let place = clean(&folder.join(&text));
    let is_here = place.parent() == Some(&*clean(folder));
    number_of(name, place.file_name()?.as_bytes()).filter(|_| is_here)
}

/// N of `NAME-N-link`, whatever follows (`parseName`).
fn number_of(name: &[u8], entry: &[u8]) -> Option<u32> {
    let rest = entry.strip_prefix(name)?.strip_prefix(b"-")?;
    let end = memchr::memmem::find(rest, b"-link")?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

fn remove(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let doing = format!("removing the generation {}", link.display());
            Err(Error::io(doing, error))
        }
        _ => Ok(()),
    }
}

fn reading(place: &Path) -> impl Fn(io::Error) -> Error {
    let doing = format!("looking for generations in {}", place.display());
    move |error| Error::io(doing.clone(), error)
}

/// In seconds.
const DAY: i64 = 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn numbers(of: &[ProfileGeneration]) -> Vec<u32> {
        of.iter().map(|generation| generation.number).collect()
    }

    #[test]
    fn days_are_read_as_nix_reads_them() {
        let now = UNIX_EPOCH + Duration::from_secs(100 * 24 * 3600);
        let read = |text| OldGenerations::older_than(text, now).ok();
        assert_eq!(read("30d"), Some(OldGenerations::OlderThan(70 * DAY)));
        for wrong in ["0d", "-1d", "1", "d", "1w", "", "1.5d", "99999999999d"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn generations_that_are_old() {
        let created = [10, 20, 30, 5, 40];
        let all = |current| {
            let all = created
                .iter()
                .zip(1..)
                .map(|(&created, number)| ProfileGeneration {
                    profile: "p".into(),
                    number,
                    link: "l".into(),
                    created,
                    is_current: number == current,
                });
            all.collect::<Vec<_>>()
        };
        let old = |which: OldGenerations, current| numbers(&which.of(all(current)));
        assert_eq!(old(OldGenerations::AllButCurrent, 3), [1, 2, 4, 5]);
        assert_eq!(old(OldGenerations::AllButCurrent, 9), [1, 2, 3, 4, 5]);
        for (time, current, expected) in [
            (5, 5, &[][..]),
            (6, 5, &[]),
            (21, 5, &[1, 2]),
            (31, 5, &[1, 2, 3]),
            (41, 5, &[1, 2, 3, 4]),
            (41, 2, &[1, 3, 4]),
        ] {
            assert_eq!(old(OldGenerations::OlderThan(time), current), expected);
        }
    }

    #[test]
    fn profiles_in_folders() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("profiles");
        let mut config = LocalConfig::chroot(folder.path());
        config.state = folder.path().to_owned();
        let user = root.join("per-user/me");
        fs::create_dir_all(&user).unwrap();
        let absolute = user.join("q-2-link");
        for (link, text) in [
            (root.join("p"), "p-2-link"),
            (root.join("p-1-link"), "/nix/store/one"),
            (root.join("p-2-link"), "/nix/store/two"),
            (root.join("p-2-link.tmp-1"), "/nix/store/two"),
            (root.join("p-03-link"), "/nix/store/three"),
            (root.join("p-x-1-link"), "/nix/store/other"),
            (root.join("plain"), "/nix/store/plain"),
            (user.join("q"), absolute.to_str().unwrap()),
            (user.join("q-1-link"), "/nix/store/one"),
            (absolute.clone(), "/nix/store/two"),
            (root.join("elsewhere"), "/"),
        ] {
            symlink(text, link).unwrap();
        }
        let folders = config.profile_folders(Some(folder.path()), Some(folder.path()));
        assert_eq!(
            folders,
            std::slice::from_ref(&root),
            "no store of the system"
        );
        assert_eq!(
            profiles(&folders).unwrap(),
            [root.join("p"), user.join("q")]
        );
        let which = OldGenerations::AllButCurrent;
        let told = delete_old_generations(&folders, which, GenerationAction::Tell).unwrap();
        assert_eq!(numbers(&told), [1, 1]);
        assert!(told.iter().all(|old| old.link.is_symlink()));
        let deleted = delete_old_generations(&folders, which, GenerationAction::Delete).unwrap();
        assert_eq!(deleted, told);
        assert!(told.iter().all(|old| !old.link.is_symlink()));
        assert_eq!(numbers(&generations(&root.join("p")).unwrap()), [2]);
        assert_eq!(user.read_dir().unwrap().count(), 2, "no lock is left");
    }
}
