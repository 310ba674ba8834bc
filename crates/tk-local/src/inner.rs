//! An open store, as blocking work sees it.

use crate::{
    LocalConfig,
    db::{Database, OpenMode},
    lock::{Cancel, LockKind, lock, open_lock_file},
    place::Nursery,
    roots::TempRoots,
    schema,
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
};
use tk_nar::fs::trees_at_once;
use tk_path::{StorePath, modulo::Modulo};
use tk_store::{Error, Result};

/// What the blocking work shares.
pub(crate) struct LocalInner {
    pub config: LocalConfig,
    pub uri: String,
    pub db: Database,
    /// What stands for derivations in those that need them, so that each is read once.
    pub modulo: Mutex<Modulo>,
    /// Whether the store is made where there is none.
    pub create: bool,
    /// The temporary roots of this process, from which those of clients are made.
    pub roots: Arc<TempRoots>,
    pub swept: AtomicBool,
    pub nursery: Mutex<Option<Arc<Nursery>>>,
    /// Shared as long as the store is open; `None` when it is read only.
    _big_lock: Option<File>,
}

impl LocalInner {
    pub fn real_path(&self, path: &StorePath) -> PathBuf {
        self.config.real.join(path.as_str())
    }

    pub fn open(mut config: LocalConfig, create: bool) -> Result<Arc<LocalInner>> {
        config.jobs = config.jobs.min(trees_at_once());
        let create = create && !config.read_only;
        let file = config.database();
        if !create && !file.exists() {
            let place = config.root.as_ref().unwrap_or(&config.state).display();
            return Err(Error::invalid(format!(
                "there is no Nix store in {place} (no {})",
                file.display()
            )));
        }
        if create {
            create_folders(&config)?;
        }
        let db_dir = config.state.join("db");
        let big_lock = if config.read_only {
            None
        } else {
            Some(big_lock(&db_dir)?)
        };
        let uri = config.to_string();
        // After the big lock was taken (unless read only): it keeps others from upgrading the schema.
        let mut known = schema::check_schema(&db_dir)?;
        // One of several first users makes the database, the others wait for it.
        let making = if known || !create {
            None
        } else {
            Some(lock_folder(&db_dir)?)
        };
        if making.is_some() {
            known = schema::check_schema(&db_dir)?;
        }
        let mode = match (config.read_only, known || !create) {
            (true, _) => OpenMode::ReadOnly,
            (false, true) => OpenMode::ReadWrite(config.durability),
            (false, false) => OpenMode::Create(config.durability),
        };
        let db = Database::open(&file, &config.dir, uri.clone(), mode)?;
        if let OpenMode::Create(_) = mode {
            // Last: whoever finds the schema takes the database for complete.
            schema::write_schema(&db_dir)?;
            reserve(&db_dir.join("reserved"));
        }
        drop(making);
        let mut inner = LocalInner::on(config, db, big_lock);
        inner.create = create;
        Ok(Arc::new(inner))
    }

    /// The store at `config` with the database `db`.
    pub fn on(config: LocalConfig, db: Database, big_lock: Option<File>) -> LocalInner {
        LocalInner {
            modulo: Mutex::new(Modulo::new(config.dir.clone())),
            roots: TempRoots::of(&config.state),
            swept: AtomicBool::new(false),
            nursery: Mutex::default(),
            uri: config.to_string(),
            db,
            config,
            create: false,
            _big_lock: big_lock,
        }
    }
}

/// The folders that Nix expects (`LocalStore::LocalStore`).
pub(crate) fn create_folders(config: &LocalConfig) -> Result<()> {
    let LocalConfig { real, state, .. } = config;
    let in_state = ["db", "temproots", "gcroots/per-user", "profiles/per-user"];
    let folders = in_state.iter().map(|folder| state.join(folder));
    for folder in folders.chain([real.join(".links")]) {
        fs::create_dir_all(&folder)
            .map_err(|e| Error::io(format!("creating the folder {}", folder.display()), e))?;
    }
    Ok(())
}

/// Says to other processes that the store is in use, so that nobody upgrades its schema.
fn big_lock(db_dir: &Path) -> Result<File> {
    let path = db_dir.join("big-lock");
    let file = open_lock_file(&path)?;
    lock(&file, &path, LockKind::Shared, &Cancel::default())?;
    Ok(file)
}

/// Waits until nobody else holds the lock on the folder itself.
fn lock_folder(folder: &Path) -> Result<File> {
    let opened = File::open(folder);
    let file = opened.map_err(|e| Error::io(format!("opening {}", folder.display()), e))?;
    lock(&file, folder, LockKind::Exclusive, &Cancel::default())?;
    Ok(file)
}

/// Space that the collector gives free when the disk is full, so that it can write the database. Without
/// it, on a disk that is nearly full, all else works (as with Nix).
pub(crate) fn reserve(path: &Path) {
    if path.metadata().is_ok_and(|meta| meta.len() == RESERVED) {
        return;
    }
    let write = || {
        let file = open_lock_file(path).map_err(io::Error::other)?;
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&file, flags, 0, RESERVED) {
            Ok(()) => Ok(()),
            // File systems without it: the space is not worth the time to fill it.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(RESERVED),
            Err(error) => Err(error.into()),
        }
    };
    if write().is_err() {
        // A part of it is better used for what is to be stored.
        let _ = fs::remove_file(path);
    }
}

/// In bytes; Nix's default.
const RESERVED: u64 = 8 << 20;
