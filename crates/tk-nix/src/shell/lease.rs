//! Leases: roots that go by themselves.
//!
//! ```text
//! leases/ID/lease.json = {"owner": {"name": TEXT} | {"process": {"pid": N, "start": N}},
//!                         "ttl": SECONDS, "key": KEY, "paths": [STOREPATH…]}
//! leases/ID/N          = link to the Nth path, registered with the store as an indirect root
//! ```
//! A lease begins anew whenever lease.json is touched, and ends `ttl` later; that of a process ends with
//! it. `start` is when the process began, in ticks since boot, so that
//! a number that is used again is not taken for it.

use super::files::{self, Lock};
use crate::{Cause, NixFailure, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tk_store::Roots;

/// For whom an environment is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Owner {
    /// Whoever goes by this name.
    Name(String),
    /// A process, with which the lease ends.
    Process {
        /// The number of the process.
        pid: u32,
        /// When it began, in ticks since boot.
        start: u64,
    },
}

impl Owner {
    /// The process `pid`; `None` if there is none.
    pub fn process(pid: u32) -> Option<Owner> {
        Some(Owner::Process {
            pid,
            start: start_of(pid)?,
        })
    }

    fn is_gone(&self) -> bool {
        match self {
            Owner::Name(_) => false,
            Owner::Process { pid, start } => start_of(*pid) != Some(*start),
        }
    }
}

/// How long an environment is kept, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseOptions {
    /// The owner, for whom the environment is kept.
    pub owner: Owner,
    /// How long after its last use.
    pub ttl: Duration,
}

impl Default for LeaseOptions {
    /// A week, for whoever uses it.
    fn default() -> Self {
        LeaseOptions {
            owner: Owner::Name("shared".into()),
            ttl: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// A lease as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvironmentLease {
    /// The owner, for whom the environment is kept.
    pub owner: Owner,
    /// Seconds that it lasts after the last use.
    pub ttl: u64,
    /// The key of the environment that it keeps.
    pub key: String,
    /// What it keeps: whole paths of the store.
    pub paths: Vec<String>,
    /// When it ends, in seconds since 1970.
    #[serde(default)]
    pub expires: u64,
}

/// The folder of all leases.
#[derive(Debug, Clone)]
pub(super) struct Leases {
    folder: PathBuf,
}

impl Leases {
    pub(super) fn at(state: &Path) -> Leases {
        Leases {
            folder: state.join("leases"),
        }
    }

    fn place(&self, key: &str, owner: &Owner) -> PathBuf {
        let owner = match owner {
            Owner::Name(name) => format!("name {name}"),
            Owner::Process { pid, start } => format!("process {pid} {start}"),
        };
        self.folder.join(&files::digest([key, &owner])[..32])
    }

    /// Begins the lease anew that keeps `links` for its owner; whether there is one. No store is
    /// asked.
    pub(super) fn renew(
        &self,
        key: &str,
        links: &[PathBuf],
        options: &LeaseOptions,
    ) -> Result<bool> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        let place = self.place(key, &options.owner);
        let file = place.join(NAME);
        let Some(lease) = read(&file) else {
            return Ok(false);
        };
        let keeps = |(n, target): (usize, &PathBuf)| {
            fs::read_link(place.join(n.to_string())).is_ok_and(|link| link == *target)
        };
        if lease.ttl != options.ttl.as_secs() || !links.iter().enumerate().all(keeps) {
            return Ok(false);
        }
        let touched = File::options()
            .append(true)
            .open(&file)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Ok(touched.is_ok())
    }

    /// Makes the lease of `options.owner` for the environment `key`, with links to `links`, which are
    /// the places of `paths`.
    pub(super) async fn begin(
        &self,
        key: &str,
        paths: &[String],
        links: &[PathBuf],
        options: &LeaseOptions,
        roots: &dyn Roots,
    ) -> Result<()> {
        let place = self.place(key, &options.owner);
        let lease = EnvironmentLease {
            owner: options.owner.clone(),
            ttl: options.ttl.as_secs(),
            key: key.to_owned(),
            paths: paths.to_vec(),
            expires: 0,
        };
        let text = serde_json::to_vec(&lease);
        let text = text.map_err(|e| NixFailure::new(Cause::Other, e.to_string()))?;
        let mut all = Vec::new();
        {
            let _lock = self.lock(FlockOperation::LockExclusive)?;
            files::make_folder(&place)?;
            for (n, target) in links.iter().enumerate() {
                let link = place.join(n.to_string());
                // The new link is renamed into its place, so that at no time the root is missing.
                let new = files::unique(&link);
                let made = symlink(target, &new).and_then(|()| fs::rename(&new, &link));
                made.map_err(files::failed("making the link", &link))?;
                all.push(link);
            }
            // This file comes last: a folder without it counts as one whose making was cut off.
            files::replace(&place.join(NAME), &text)?;
        }
        for link in all {
            let link = std::path::absolute(&link).map_err(files::failed("finding", &link))?;
            roots.add_indirect_root(&link).await?;
        }
        Ok(())
    }

    /// Ends those that are over; how many. The store finds dead links by itself.
    pub(super) fn expire(&self) -> Result<usize> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let now = files::now();
        let mut ended = 0;
        for place in self.places()? {
            let over = match read(&place.join(NAME)) {
                // Whoever made it did not come to an end: with the lock, nobody is making it.
                None => true,
                Some(lease) => lease.expires <= now || lease.owner.is_gone(),
            };
            if over {
                fs::remove_dir_all(&place).map_err(files::failed("removing", &place))?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// All that there are.
    pub(super) fn all(&self) -> Result<Vec<EnvironmentLease>> {
        let places = self.places()?;
        Ok(places.iter().filter_map(|p| read(&p.join(NAME))).collect())
    }

    fn places(&self) -> Result<Vec<PathBuf>> {
        let mut places = files::entries(&self.folder)?;
        places.retain(|place| place.is_dir());
        Ok(places)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock> {
        Lock::short(&self.folder.join(".lock"), operation)
    }
}

fn read(file: &Path) -> Option<EnvironmentLease> {
    let bytes = files::read(file, MAX_FILE).ok()??;
    let mut lease: EnvironmentLease = serde_json::from_slice(&bytes).ok()?;
    let begun = fs::metadata(file).ok()?.modified().ok()?;
    let begun = begun.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    lease.expires = begun.as_secs().saturating_add(lease.ttl);
    Some(lease)
}

/// When a process began; `None` if there is none, or nothing but its status is left. Where nothing tells, all of them began at 0.
fn start_of(pid: u32) -> Option<u64> {
    if !Path::new("/proc/self/stat").exists() {
        return Some(0);
    }
    let bytes = files::read(Path::new(&format!("/proc/{pid}/stat")), 4096).ok()??;
    let text = String::from_utf8_lossy(&bytes);
    // The name before it may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let is_alive = !matches!(fields.next()?, "Z" | "X");
    let start = fields.nth(18)?.parse().ok()?;
    is_alive.then_some(start)
}

const NAME: &str = "lease.json";
/// Bytes of a lease.
const MAX_FILE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes() {
        let own = Owner::process(std::process::id()).unwrap();
        assert!(!own.is_gone());
        assert!(Owner::process(u32::MAX).is_none());
        if let Owner::Process { pid, start } = own {
            let other = Owner::Process {
                pid,
                start: start + 1,
            };
            assert!(other.is_gone(), "another one with the same number");
        }
    }

    #[test]
    fn leases_end() {
        let folder = tempfile::tempdir().unwrap();
        let leases = Leases::at(folder.path());
        let gone = Owner::Process { pid: 1, start: 1 };
        let hour = Duration::from_secs(3600);
        for (owner, age, ends) in [
            (Owner::Name("a".into()), Duration::ZERO, false),
            (Owner::Name("b".into()), 25 * hour, true),
            (gone, Duration::ZERO, true),
            (Owner::process(std::process::id()).unwrap(), 2 * hour, false),
        ] {
            let lease = EnvironmentLease {
                owner: owner.clone(),
                ttl: 24 * 3600,
                key: "k".into(),
                paths: Vec::new(),
                expires: 0,
            };
            let place = leases.place("k", &owner);
            files::replace(&place.join(NAME), &serde_json::to_vec(&lease).unwrap()).unwrap();
            let file = File::options().append(true).open(place.join(NAME)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
            assert_eq!(leases.expire().unwrap() == 1, ends, "{owner:?} {age:?}");
        }
    }
}
