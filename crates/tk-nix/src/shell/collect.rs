//! The environments that are kept, and forgetting those that nobody needs.

use super::{
    entry::{EnvironmentEntry, attrs_file, is_json, read_entry},
    files,
    shells::Shells,
};
use crate::Result;
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, collections::BTreeSet, fs, time::Duration};
use tk_store::lease::RootLease;

/// Counts of what [`Shells::collect`] removed, and of what it left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Leases that were over.
    pub leases: usize,
    /// Environments that nobody has a lease of, or whose paths are gone.
    pub environments: usize,
    /// Environments that are left.
    pub kept: usize,
}

impl Shells {
    /// All that are kept, the newest first, each with its leases.
    pub fn list(&self) -> Result<Vec<(EnvironmentEntry, Vec<RootLease>)>> {
        let leases = self.leases.all()?;
        let mut all = Vec::new();
        for file in files::entries(&self.config.cache.join("entries"))? {
            if let Some(entry) = is_json(&file).then(|| read_entry(&file)).flatten() {
                let own = leases.iter().filter(|lease| lease.key == entry.key);
                let own = own.cloned().collect();
                all.push((entry, own));
            }
        }
        all.sort_by_key(|(entry, _)| Reverse(entry.made));
        Ok(all)
    }

    /// Ends the leases that are over, and forgets environments without any or without their paths.
    /// The store's own collection then takes what nothing else keeps.
    pub fn collect(&self) -> Result<Collected> {
        let mut done = Collected {
            leases: self.leases.expire()?,
            ..Collected::default()
        };
        let held: BTreeSet<_> = self
            .leases
            .all()?
            .into_iter()
            .map(|lease| lease.key)
            .collect();
        for file in files::entries(&self.config.cache.join("entries"))? {
            if !is_json(&file) {
                continue;
            }
            match read_entry(&file) {
                Some(entry) if held.contains(&entry.key) && entry.is_there() => done.kept += 1,
                _ => {
                    files::remove(&file)?;
                    for suffix in ["json", "sh"] {
                        files::remove(&attrs_file(&file, suffix))?;
                    }
                    done.environments += 1;
                }
            }
        }
        self.sweep()?;
        Ok(done)
    }

    /// Takes away what processes left that were killed.
    fn sweep(&self) -> Result<()> {
        for folder in ["run", "evaluating"] {
            for left in files::entries(&self.config.cache.join(folder))? {
                let age = fs::symlink_metadata(&left).and_then(|meta| meta.modified());
                let age = age.ok().and_then(|modified| modified.elapsed().ok());
                if age.is_none_or(|age| age < LEFT_FOR) {
                    continue;
                }
                let removed = if left.is_dir() {
                    fs::remove_dir_all(&left)
                } else {
                    fs::remove_file(&left)
                };
                removed.map_err(files::failed("removing", &left))?;
            }
        }
        Ok(())
    }
}

/// How long what a process left is not taken away: it may still be at work.
const LEFT_FOR: Duration = Duration::from_secs(3600);
