use crate::{
    LocalStore,
    db::LoadedContent,
    inner::LocalInner,
    lock::{LockKind, try_lock},
    verify::collector_lock,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead},
};
use tk_narinfo::PathInfo;
use tk_path::{OutputName, StorePath};
use tk_store::{Error, RegistrationReader, Result};

/// What [`LocalStore::load_db`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Paths that are valid now and were not before.
    pub registered: u64,
    /// Paths that were valid already, and stay as they are.
    pub kept: u64,
}

impl LocalStore {
    /// Registers what `text` says, as `nix-store --load-db` does: all of it or nothing. What the text is, is
    /// told at [`RegistrationReader`].
    ///
    /// Content is not read, but must be there. What is registered already keeps its signatures, its content
    /// address and its time, which the text says nothing of and Nix takes away.
    ///
    /// # Errors
    /// Also when the text says another hash than the one that is registered.
    pub async fn load_db(&self, text: impl BufRead + Send + 'static) -> Result<LoadReport> {
        self.inner().require_writable()?;
        let load = move |store: &LocalInner, teller: &crate::telling::Teller| {
            // What is not valid yet is garbage to a collector.
            let _lock = collector_lock(store, teller)?;
            let records = RegistrationReader::new(&store.config.dir, text);
            let mut records = records.map(|record| {
                teller.cancel.check()?;
                record
            });
            let (registered, kept) = store.db.load(&mut records, store)?;
            Ok(LoadReport { registered, kept })
        };
        self.run_telling(&(), load).await
    }
}

impl LoadedContent for LocalInner {
    /// The content must be there, and nobody may be at work on it.
    fn vouch(&self, info: &PathInfo) -> Result<()> {
        let real = self.real_path(&info.path);
        if let Err(error) = real.symlink_metadata() {
            let doing = format!("looking for the content of {}", real.display());
            return Err(Error::io(doing, error));
        }
        let lock = self.config.real.join(format!("{}.lock", info.path));
        let busy = match File::open(&lock) {
            Ok(file) => !try_lock(&file, LockKind::Shared).unwrap_or(false),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if busy {
            return Err(Error::invalid(format!(
                "{} is being made by somebody at this moment",
                real.display()
            )));
        }
        Ok(())
    }

    fn outputs(
        &self,
        path: &StorePath,
        group: &BTreeSet<&StorePath>,
    ) -> Result<BTreeMap<OutputName, StorePath>> {
        self.checked_outputs(path, group)
    }
}
