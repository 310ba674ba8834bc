//! The database: rows to metadata and back.
//!
//! | Column of ValidPaths | Text |
//! |---|---|
//! | path, deriver | whole paths, with the store directory |
//! | hash | `sha256:` and hex; nix32 and base64 are read too |
//! | registrationTime | seconds since 1970 |
//! | narSize, deriver, sigs, ca | NULL for 0, none, none, none |
//! | ultimate | NULL for no |
//! | sigs | joined by blanks |
//!
//! References stand in Refs, as pairs of ids; the outputs of derivations, as far as their paths are
//! known, in DerivationOutputs. All functions block.

pub(crate) mod graph;
mod realisations;
mod upkeep;

pub(crate) use upkeep::LoadedContent;

use crate::{
    Durability,
    schema::{self, sql_error},
};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::Metadata,
    num::NonZeroUsize,
    ops::Deref,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{HashPart, NarHash, OutputName, StoreDir, StorePath};
use tk_store::{Error, Result};

/// An open database. Readers never wait for a writer.
#[derive(Debug)]
pub(crate) struct Database {
    readers: Readers,
    writer: Option<Mutex<(Connection, FileIdentity)>>,
    recent: RecentInfos,
    /// The one that was opened.
    opened: FileIdentity,
    file: PathBuf,
    dir: StoreDir,
    /// The store's URI, for errors.
    store: String,
}

/// How [`Database::open`] opens the file; `Create` makes the file and its tables if they are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    ReadOnly,
    ReadWrite(Durability),
    Create(Durability),
}

impl Database {
    /// Opens the database `file` of the store that is called `store`.
    pub fn open(file: &Path, dir: &StoreDir, store: String, mode: OpenMode) -> Result<Self> {
        let identity = || FileIdentity::of(file);
        let writer = match mode {
            OpenMode::ReadOnly => None,
            OpenMode::ReadWrite(durability) => {
                let writer = schema::open(file, false, durability)?;
                Some(Mutex::new((writer, identity()?)))
            }
            OpenMode::Create(durability) => {
                let mut writer = schema::open(file, true, durability)?;
                schema::create_tables(&mut writer, file)?;
                Some(Mutex::new((writer, identity()?)))
            }
        };
        let readers = Readers::new(file, mode);
        // Whether it can be read is to be known now.
        drop(readers.take()?);
        Ok(Database {
            readers,
            writer,
            recent: RecentInfos::new(file),
            opened: identity()?,
            file: file.to_owned(),
            dir: dir.clone(),
            store,
        })
    }

    /// Whether the file that was opened is the one that is there.
    pub fn is_that_of_before(&self) -> bool {
        FileIdentity::of(&self.file).is_ok_and(|there| there == self.opened)
    }

    /// The metadata of `path`, if it is valid.
    pub fn info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        let reader = self.readers.take()?;
        let snapshot = self.read(|| DbSnapshot::begin(&reader))?;
        let info = self.info_from(&reader, path, &mut PathsByRow::new());
        drop(snapshot);
        info
    }

    /// The metadata of each of `paths`, as of one moment. What is wrong with one row concerns
    /// its path only.
    pub fn infos(&self, paths: &[StorePath]) -> Result<Vec<InfoAnswer>> {
        let stamp = if paths.len() <= FEW {
            self.recent.stamp()
        } else {
            None
        };
        if let Some(stamp) = stamp
            && let Some(infos) = self.recent.get(stamp, paths)
        {
            return Ok(infos);
        }
        let reader = self.readers.take()?;
        let snapshot = self.read(|| DbSnapshot::begin(&reader))?;
        let mut known = PathsByRow::new();
        let mut one = |path: &StorePath| {
            let info = self.info_from(&reader, path, &mut known)?;
            Ok((path.clone(), info))
        };
        let infos: Vec<_> = paths.iter().map(&mut one).collect();
        drop(snapshot);
        if let Some(stamp) = stamp {
            let found = infos.iter().flatten();
            let found = found.filter_map(|(_, info)| info.clone());
            self.recent.put(stamp, found);
        }
        Ok(infos)
    }

    /// Whether `path` is valid.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool> {
        if let Some(stamp) = self.recent.stamp()
            && self.recent.has(stamp, path)
        {
            return Ok(true);
        }
        let reader = self.readers.take()?;
        Ok(self.read(|| self.id_of(&reader, path))?.is_some())
    }

    /// The subset of `paths` that is valid.
    pub fn valid<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeSet<StorePath>> {
        let reader = self.readers.take()?;
        let snapshot = self.read(|| DbSnapshot::begin(&reader))?;
        let mut valid = BTreeSet::new();
        for path in paths {
            if self.read(|| self.id_of(&reader, path))?.is_some() {
                valid.insert(path.clone());
            }
        }
        drop(snapshot);
        Ok(valid)
    }

    /// The valid path that begins with `part`.
    pub fn find(&self, part: &HashPart) -> Result<Option<StorePath>> {
        let prefix = format!("{}/{}", self.dir, part.as_str());
        let reader = self.readers.take()?;
        let found: Option<String> = self.read(|| {
            let sql = "select path from ValidPaths where path >= ? limit 1";
            let mut statement = reader.prepare_cached(sql)?;
            statement.query_row([&prefix], |row| row.get(0)).optional()
        })?;
        match found {
            Some(found) if found.starts_with(&prefix) => self.parse(&found, "a path").map(Some),
            _ => Ok(None),
        }
    }

    /// Returns every valid path; a row that names no path is an error.
    pub fn all(&self) -> Result<BTreeSet<StorePath>> {
        self.paths("select path from ValidPaths", [])
    }

    /// The same, going on past names that are none; those are errors.
    pub fn all_readable(&self) -> Result<ReadablePaths> {
        let reader = self.readers.take()?;
        let texts: Vec<String> = self.read(|| {
            let mut statement = reader.prepare_cached("select path from ValidPaths")?;
            statement.query_map([], |row| row.get(0))?.collect()
        })?;
        let (mut paths, mut bad) = (BTreeSet::new(), Vec::new());
        for text in texts {
            match self.parse(&text, "a path") {
                Ok(path) => drop(paths.insert(path)),
                Err(error) => bad.push((text, error)),
            }
        }
        Ok((paths, bad))
    }

    /// The valid paths that refer to `path`.
    pub fn referrers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let sql = "select path from Refs join ValidPaths on referrer = id \
                   where reference = (select id from ValidPaths where path = ?)";
        self.paths(sql, [self.dir.path(path)])
    }

    /// The valid derivations that have `path` as an output.
    pub fn derivers(&self, path: &StorePath) -> Result<BTreeSet<StorePath>> {
        let sql = "select v.path from DerivationOutputs d join ValidPaths v on d.drv = v.id \
                   where d.path = ?";
        self.paths(sql, [self.dir.path(path)])
    }

    /// The outputs of the derivation `drv` whose paths are known.
    pub fn outputs(&self, drv: &StorePath) -> Result<BTreeMap<OutputName, StorePath>> {
        let reader = self.readers.take()?;
        let rows: Vec<(String, String)> = self.read(|| {
            let sql = "select d.id, d.path from DerivationOutputs d join ValidPaths v \
                       on d.drv = v.id where v.path = ?";
            let mut statement = reader.prepare_cached(sql)?;
            let pair = |row: &Row| Ok((row.get(0)?, row.get(1)?));
            statement.query_map([self.dir.path(drv)], pair)?.collect()
        })?;
        let what = format!("an output of {drv}");
        let parse = |(name, path): (String, String)| {
            let name = OutputName::parse(&name);
            let name =
                name.map_err(|e| Error::malformed(format!("{what} in {}", self.file()), e))?;
            Ok((name, self.parse(&path, &what)?))
        };
        rows.into_iter().map(parse).collect()
    }

    /// Makes `infos` valid, all of them or none. They may refer to each other in any order.
    /// `outputs` are those of the derivations among them.
    ///
    /// A path that is valid already has its metadata replaced, and its references added to.
    ///
    /// # Errors
    /// [`Error::MissingReference`] if one refers to a path that is not valid; [`Error::Invalid`]
    /// if they refer to each other in a circle.
    pub fn register(&self, infos: &[PathInfo], outputs: &KnownOutputs) -> Result<()> {
        check(infos)?;
        self.write(|transaction| {
            // All rows first: references are stored by id, and these paths may refer to each other in any
            // order.
            let mut ids = BTreeMap::new();
            for info in infos {
                let id = self.write_row(transaction, info);
                ids.insert(&info.path, self.written(id)?);
            }
            for info in infos {
                let id = ids[&info.path];
                self.write_references(transaction, info, id)?;
                for (name, path) in outputs.get(&info.path).into_iter().flatten() {
                    self.written(self.write_output(transaction, id, name, path))?;
                }
            }
            Ok(())
        })
    }

    /// Adds signatures to those of each path; the paths that are absent.
    pub fn add_signatures(
        &self,
        new: &BTreeMap<StorePath, BTreeSet<Signature>>,
    ) -> Result<BTreeSet<StorePath>> {
        self.write(|transaction| {
            let (mut absent, mut known) = (BTreeSet::new(), PathsByRow::new());
            for (path, new) in new {
                let Some(mut info) = self.info_from(transaction, path, &mut known)? else {
                    absent.insert(path.clone());
                    continue;
                };
                info.signatures.extend(new.iter().cloned());
                let update = || {
                    let sql = "update ValidPaths set sigs = ? where path = ?";
                    let values = params![signatures(&info), self.dir.path(path)];
                    transaction.prepare_cached(sql)?.execute(values)
                };
                self.written(update())?;
            }
            Ok(absent)
        })
    }

    fn id_of(&self, connection: &Connection, path: &StorePath) -> rusqlite::Result<Option<i64>> {
        let sql = "select id from ValidPaths where path = ?";
        let mut statement = connection.prepare_cached(sql)?;
        statement
            .query_row([self.dir.path(path)], |row| row.get(0))
            .optional()
    }

    fn info_from(
        &self,
        connection: &Connection,
        path: &StorePath,
        known: &mut PathsByRow,
    ) -> Result<Option<PathInfo>> {
        let full = self.dir.path(path);
        let row = self.read(|| {
            let sql = "select id, hash, registrationTime, deriver, narSize, ultimate, sigs, ca \
                       from ValidPaths where path = ?";
            let mut statement = connection.prepare_cached(sql)?;
            let info = |row: &Row| Ok(self.info_of_row(path, row));
            statement.query_row([&full], info).optional()
        })?;
        let Some(row) = row else { return Ok(None) };
        let malformed =
            |why| Error::malformed(format!("the row of {full} in {}", self.file()), why);
        let (id, mut info) = row.map_err(malformed)?;
        known.insert(id, path.clone());
        let mut wrong = None;
        self.read(|| {
            let mut statement = connection.prepare_cached(REFERENCES)?;
            let mut rows = statement.query([id])?;
            while let Some(row) = rows.next()? {
                match self.reference(row, &full, known) {
                    Ok(reference) => drop(info.references.insert(reference)),
                    Err(error) => wrong = wrong.take().or(Some(error)),
                }
            }
            Ok(())
        })?;
        wrong.map_or(Ok(Some(info)), Err)
    }

    /// The path in a row of what `referrer` refers to.
    fn reference(&self, row: &Row, referrer: &str, known: &mut PathsByRow) -> Result<StorePath> {
        let what = || format!("a reference of {referrer}");
        let read = || -> rusqlite::Result<_> {
            Ok((row.get::<_, i64>(0)?, row.get_ref(1)?.as_str_or_null()?))
        };
        let (id, path) = self.read(read)?;
        if let Some(known) = known.get(&id) {
            return Ok(known.clone());
        }
        let path = path.ok_or_else(|| {
            Error::malformed(
                format!("{} in {}", what(), self.file()),
                format!("there is no row {id}"),
            )
        })?;
        let path = self.parse(path, &what())?;
        known.insert(id, path.clone());
        Ok(path)
    }

    /// The id and the metadata, without references, that `row` holds.
    fn info_of_row(&self, path: &StorePath, row: &Row) -> Result<(i64, PathInfo), BadRow> {
        let hash: String = column(row, 1, "hash")?;
        let hash = NarHash::parse(&hash).map_err(|e| bad("hash", e))?;
        let size: Option<i64> = column(row, 4, "narSize")?;
        let size = u64::try_from(size.unwrap_or(0)).map_err(|e| bad("narSize", e))?;
        let mut info = PathInfo::new(path.clone(), hash, size);
        let time: i64 = column(row, 2, "registrationTime")?;
        info.registration_time = u64::try_from(time).map_err(|e| bad("registrationTime", e))?;
        if let Some(deriver) = column::<Option<String>>(row, 3, "deriver")? {
            let deriver = self.dir.parse_canonical(&deriver);
            info.deriver = Some(deriver.map_err(|e| bad("deriver", e))?);
        }
        info.ultimate = column::<Option<i64>>(row, 5, "ultimate")? == Some(1);
        for signature in column::<Option<String>>(row, 6, "sigs")?
            .iter()
            .flat_map(|s| s.split(' '))
        {
            // Nix takes any text for one: what nobody can verify does not make the others worthless.
            info.signatures.extend(signature.parse());
        }
        if let Some(ca) = column::<Option<String>>(row, 7, "ca")?.filter(|ca| !ca.is_empty()) {
            info.ca = Some(ca.parse().map_err(|e| bad("ca", e))?);
        }
        Ok((column(row, 0, "id")?, info))
    }

    fn write_row(&self, transaction: &Transaction, info: &PathInfo) -> rusqlite::Result<i64> {
        let path = self.dir.path(&info.path);
        let size = (info.nar_size != 0).then_some(info.nar_size as i64);
        let ultimate = info.ultimate.then_some(1);
        let ca = info.ca.as_ref().map(ToString::to_string);
        let (hash, sigs) = (format!("sha256:{}", info.nar_hash.hex()), signatures(info));
        if let Some(id) = self.id_of(transaction, &info.path)? {
            let sql = "update ValidPaths set narSize = ?, hash = ?, ultimate = ?, sigs = ?, ca = ? \
                       where id = ?";
            let values = params![size, hash, ultimate, sigs, ca, id];
            transaction.prepare_cached(sql)?.execute(values)?;
            // What it referred to before is not what was signed now. (Nix keeps both.)
            let sql = "delete from Refs where referrer = ?";
            transaction.prepare_cached(sql)?.execute([id])?;
            return Ok(id);
        }
        let sql = "insert into ValidPaths \
                   (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) \
                   values (?, ?, ?, ?, ?, ?, ?, ?)";
        let time = match info.registration_time {
            0 => now(),
            time => time as i64,
        };
        let deriver = info.deriver.as_ref().map(|deriver| self.dir.path(deriver));
        let values = params![path, hash, time, deriver, size, ultimate, sigs, ca];
        transaction.prepare_cached(sql)?.insert(values)
    }

    fn write_references(&self, transaction: &Transaction, info: &PathInfo, id: i64) -> Result<()> {
        for reference in &info.references {
            let Some(reference) = self.written(self.id_of(transaction, reference))? else {
                return Err(Error::MissingReference {
                    path: info.path.clone(),
                    reference: reference.clone(),
                    store: self.store.clone(),
                });
            };
            let insert = || {
                let sql = "insert or replace into Refs (referrer, reference) values (?, ?)";
                transaction.prepare_cached(sql)?.execute([id, reference])
            };
            self.written(insert())?;
        }
        Ok(())
    }

    fn write_output(
        &self,
        transaction: &Transaction,
        drv: i64,
        name: &OutputName,
        path: &StorePath,
    ) -> rusqlite::Result<usize> {
        let sql = "insert or replace into DerivationOutputs (drv, id, path) values (?, ?, ?)";
        let values = params![drv, name.as_str(), self.dir.path(path)];
        transaction.prepare_cached(sql)?.execute(values)
    }

    fn paths(&self, sql: &str, values: impl rusqlite::Params) -> Result<BTreeSet<StorePath>> {
        let reader = self.readers.take()?;
        let paths: Vec<String> = self.read(|| {
            let mut statement = reader.prepare_cached(sql)?;
            statement.query_map(values, |row| row.get(0))?.collect()
        })?;
        paths
            .iter()
            .map(|path| self.parse(path, "a path"))
            .collect()
    }

    fn parse(&self, path: &str, what: &str) -> Result<StorePath> {
        let parsed = self.dir.parse_canonical(path);
        parsed.map_err(|e| Error::malformed(format!("{what} in {}", self.file()), e))
    }

    /// Runs `work` in a transaction, again and again while another process is in the way.
    fn write<T>(&self, mut work: impl FnMut(&Transaction) -> Result<T>) -> Result<T> {
        let Some(writer) = &self.writer else {
            return Err(Error::Unsupported {
                store: self.store.clone(),
                what: "is open for reading only".to_owned(),
            });
        };
        let mut writer = writer.lock().unwrap_or_else(|e| e.into_inner());
        let there = FileIdentity::of(&self.file)?;
        // Somebody put another database there: what went to the old file would be lost.
        if writer.1 != there {
            *writer = (self.readers.mode.open(&self.file)?, there);
        }
        let writer = &mut writer.0;
        let mut attempts = 0;
        loop {
            attempts += 1;
            // Takes the right to write at once: a transaction that reads first could be turned down when
            // it writes.
            let begun = writer.transaction_with_behavior(TransactionBehavior::Immediate);
            let outcome = match begun {
                Err(error) => Err(error),
                // Dropped without a commit, it is rolled back.
                Ok(transaction) => {
                    let value = work(&transaction)?;
                    transaction.commit().map(|()| value)
                }
            };
            match outcome {
                Ok(value) => return Ok(value),
                Err(error) if is_busy(&error) && attempts < ATTEMPTS => std::thread::sleep(PAUSE),
                Err(error) => return self.written(Err(error)),
            }
        }
    }

    fn read<T>(&self, work: impl FnOnce() -> rusqlite::Result<T>) -> Result<T> {
        work().map_err(|e| sql_error(&self.file, "reading", e))
    }

    fn written<T>(&self, result: rusqlite::Result<T>) -> Result<T> {
        result.map_err(|e| sql_error(&self.file, "writing", e))
    }

    fn file(&self) -> impl std::fmt::Display + '_ {
        self.file.display()
    }
}

/// What was read a moment ago: good as long as nobody has written since.
///
/// Whoever writes a database with a journal writes the journal, and whoever has none the database itself: as long as
/// both files bear the times that they had, what was read from them is still so. Times are coarse, and a
/// writer needs a moment between writing and letting others see it: so nothing is kept while the last change is
/// younger than [`SETTLED`]. That a path is absent is never kept.
#[derive(Debug)]
struct RecentInfos {
    database: PathBuf,
    journal: PathBuf,
    infos: Mutex<(Option<Stamp>, HashMap<StorePath, PathInfo>)>,
}

/// Which files they are, how long, and when they were written last: of the database and of its journal.
type Stamp = [(FileIdentity, u64, SystemTime); 2];

impl RecentInfos {
    fn new(database: &Path) -> Self {
        let mut journal = database.as_os_str().to_owned();
        journal.push("-wal");
        RecentInfos {
            database: database.to_owned(),
            journal: journal.into(),
            infos: Mutex::default(),
        }
    }

    /// What the files look like; `None` if they were written just now, or cannot be looked at.
    fn stamp(&self) -> Option<Stamp> {
        let of = |file: &Path| {
            let meta = file.metadata().ok()?;
            Some((FileIdentity::from(&meta), meta.len(), meta.modified().ok()?))
        };
        let stamp = [of(&self.database)?, of(&self.journal)?];
        let newest = stamp[0].2.max(stamp[1].2);
        // Of the future, it is no good either.
        let age = SystemTime::now().duration_since(newest).ok()?;
        (age >= SETTLED).then_some(stamp)
    }

    /// All of `paths`, in order, if all are here.
    fn get(&self, stamp: Stamp, paths: &[StorePath]) -> Option<Vec<InfoAnswer>> {
        let infos = self.lock();
        let known = |path: &StorePath| {
            let info = infos.1.get(path)?.clone();
            Some(Ok((path.clone(), Some(info))))
        };
        if infos.0 != Some(stamp) {
            return None;
        }
        paths.iter().map(known).collect()
    }

    fn has(&self, stamp: Stamp, path: &StorePath) -> bool {
        let infos = self.lock();
        infos.0 == Some(stamp) && infos.1.contains_key(path)
    }

    fn put(&self, stamp: Stamp, new: impl Iterator<Item = PathInfo>) {
        let mut infos = self.lock();
        if infos.0 != Some(stamp) || infos.1.len() >= MOST_RECENT {
            *infos = (Some(stamp), HashMap::new());
        }
        infos.1.extend(new.map(|info| (info.path.clone(), info)));
    }

    fn lock(&self) -> MutexGuard<'_, (Option<Stamp>, HashMap<StorePath, PathInfo>)> {
        self.infos.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Connections that read: as many as there are threads that ask, up to a few.
#[derive(Debug)]
struct Readers {
    file: PathBuf,
    mode: OpenMode,
    state: Mutex<ReadersState>,
    freed: Condvar,
    most: usize,
}

#[derive(Debug, Default)]
struct ReadersState {
    idle: Vec<Connection>,
    /// Those that are idle, and those that are in use.
    open: usize,
    /// Threads that wait for one: to wake nobody costs a system call too.
    waiting: usize,
    /// The file that they are open on.
    file: Option<FileIdentity>,
}

impl Readers {
    fn new(file: &Path, mode: OpenMode) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Readers {
            file: file.to_owned(),
            mode,
            state: Mutex::default(),
            freed: Condvar::new(),
            most: (2 * processors).min(MOST_READERS),
        }
    }

    /// A connection to the file that is there now: who replaced it does not want answers from the old one.
    fn take(&self) -> Result<DbReader<'_>> {
        let there = FileIdentity::of(&self.file)?;
        let mut state = self.lock();
        if state.file != Some(there) {
            state.open -= state.idle.len();
            state.idle.clear();
            state.file = Some(there);
        }
        while state.idle.is_empty() && state.open >= self.most {
            state.waiting += 1;
            state = self.freed.wait(state).unwrap_or_else(|e| e.into_inner());
            state.waiting -= 1;
        }
        let idle = state.idle.pop();
        state.open += usize::from(idle.is_none());
        drop(state);
        // From here on it is counted, whatever comes of it.
        let mut reader = DbReader {
            connection: idle,
            file: there,
            readers: self,
        };
        if reader.connection.is_none() {
            reader.connection = Some(self.mode.open(&self.file)?);
        }
        Ok(reader)
    }

    fn lock(&self) -> MutexGuard<'_, ReadersState> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A connection on loan.
struct DbReader<'a> {
    /// Some, unless it could not be opened.
    connection: Option<Connection>,
    file: FileIdentity,
    readers: &'a Readers,
}

impl Deref for DbReader<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("lent open")
    }
}

impl Drop for DbReader<'_> {
    fn drop(&mut self) {
        let mut state = self.readers.lock();
        match self.connection.take() {
            Some(connection) if state.file == Some(self.file) => state.idle.push(connection),
            _ => state.open -= 1,
        }
        let wake = state.waiting > 0;
        drop(state);
        if wake {
            self.readers.freed.notify_one();
        }
    }
}

impl OpenMode {
    /// Another connection to a database that is there.
    fn open(self, file: &Path) -> Result<Connection> {
        match self {
            OpenMode::ReadOnly => schema::open_read_only(file),
            OpenMode::ReadWrite(durability) | OpenMode::Create(durability) => {
                schema::open(file, false, durability)
            }
        }
    }
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(file: &Path) -> Result<Self> {
        let meta = file.metadata().map_err(|e| {
            Error::io(
                format!("looking at the store database {}", file.display()),
                e,
            )
        })?;
        Ok(FileIdentity::from(&meta))
    }
}

impl From<&Metadata> for FileIdentity {
    fn from(meta: &Metadata) -> Self {
        FileIdentity {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

/// One moment, to which all that is read belongs until this is dropped.
struct DbSnapshot<'a>(&'a Connection);

impl<'a> DbSnapshot<'a> {
    fn begin(connection: &'a Connection) -> rusqlite::Result<Self> {
        connection.prepare_cached("begin")?.execute([])?;
        Ok(DbSnapshot(connection))
    }
}

impl Drop for DbSnapshot<'_> {
    fn drop(&mut self) {
        // Nothing was written that could be lost.
        let end = self.0.prepare_cached("commit");
        let _ = end.and_then(|mut end| end.execute([]));
    }
}

/// What SQLite would take, and nobody could use: numbers that turn negative, and circles of
/// references, which could not be deleted again.
fn check(infos: &[PathInfo]) -> Result<()> {
    for info in infos {
        let largest = info.nar_size.max(info.registration_time);
        if i64::try_from(largest).is_err() {
            return Err(Error::invalid(format!(
                "{}: {largest} is too large",
                info.path
            )));
        }
    }
    let closure = tk_store::Closure {
        infos: infos
            .iter()
            .map(|info| (info.path.clone(), info.clone()))
            .collect(),
        ..Default::default()
    };
    closure.references_first().map(drop)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    let busy = [
        ErrorCode::DatabaseBusy,
        ErrorCode::DatabaseLocked,
        ErrorCode::FileLockingProtocolFailed,
    ];
    error
        .sqlite_error_code()
        .is_some_and(|code| busy.contains(&code))
}

fn signatures(info: &PathInfo) -> Option<String> {
    let signatures: Vec<_> = info.signatures.iter().map(ToString::to_string).collect();
    (!signatures.is_empty()).then(|| signatures.join(" "))
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() as i64)
}

/// What a path refers to; a reference without a row is a fault of the database.
const REFERENCES: &str =
    "select reference, path from Refs left join ValidPaths on id = reference where referrer = ?";

/// The outputs of derivations whose paths are known.
pub(crate) type KnownOutputs = BTreeMap<StorePath, BTreeMap<OutputName, StorePath>>;

/// Paths by the number of their row: in a closure the same are referred to again and again.
type PathsByRow = HashMap<i64, StorePath>;

/// A path that was asked about, with its metadata if it is valid.
pub type InfoAnswer = Result<(StorePath, Option<PathInfo>)>;

/// The valid paths, and the names in the database that are not store paths, each with why.
pub type ReadablePaths = (BTreeSet<StorePath>, Vec<(String, Error)>);

/// What is wrong with one column.
type BadRow = Box<dyn std::error::Error + Send + Sync>;

fn column<T: rusqlite::types::FromSql>(row: &Row, at: usize, name: &str) -> Result<T, BadRow> {
    row.get(at).map_err(|e| bad(name, e))
}

fn bad(column: &str, error: impl std::fmt::Display) -> BadRow {
    format!("column {column}: {error}").into()
}

/// Paths that are asked about together and looked for among the recent ones: more come from whoever asks for all.
const FEW: usize = 8;
/// Paths that are kept, some hundred bytes each.
const MOST_RECENT: usize = 4096;
const SETTLED: Duration = Duration::from_secs(5);
/// Each has two files open, and a cache.
const MOST_READERS: usize = 8;
/// Together with SQLite's own waiting.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::StatementStatus;
    use tk_narinfo::SecretKey;
    use tk_path::{Algorithm, Hash};

    impl Database {
        fn add(&self, infos: &[PathInfo]) -> Result<()> {
            self.register(infos, &KnownOutputs::new())
        }
    }

    struct Fixture {
        db: Database,
        folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("db.sqlite");
            let mode = OpenMode::Create(Durability::default());
            let dir = StoreDir::default();
            let db = Database::open(&file, &dir, "local".to_owned(), mode).unwrap();
            Fixture { db, folder }
        }

        /// As somebody else who writes the database.
        fn execute(&self, sql: &str) {
            let other = Connection::open(self.folder.path().join("db.sqlite")).unwrap();
            other.execute_batch(sql).unwrap();
        }
    }

    fn path(n: u8) -> StorePath {
        StorePath::from_digest(&[n; 20], &format!("path-{n}")).unwrap()
    }

    fn info(n: u8, references: impl IntoIterator<Item = u8>) -> PathInfo {
        let hash = NarHash::try_from(Hash::digest(Algorithm::Sha256, &[n])).unwrap();
        let mut info = PathInfo::new(path(n), hash, 100 + u64::from(n));
        info.references = references.into_iter().map(path).collect();
        info.registration_time = 1_700_000_000;
        info
    }

    fn full(n: u8) -> String {
        StoreDir::default().path(&path(n))
    }

    #[test]
    fn what_is_registered_comes_back() {
        let Fixture { db, .. } = &Fixture::new();
        let key = SecretKey::generate("k-1").unwrap();
        let mut all = info(2, [1, 2]);
        all.deriver = Some(StorePath::from_digest(&[3; 20], "x.drv").unwrap());
        all.ultimate = true;
        all.sign(&StoreDir::default(), &key).unwrap();
        all.ca = Some(
            "fixed:sha1:00000000000000000000000000000000"
                .parse()
                .unwrap(),
        );
        // The one that is referred to comes last.
        db.add(&[all.clone(), info(1, [])]).unwrap();
        assert_eq!(db.info(&path(2)).unwrap(), Some(all.clone()));
        assert_eq!(db.info(&path(1)).unwrap(), Some(info(1, [])));
        assert_eq!(db.info(&path(3)).unwrap(), None);
        assert_eq!(
            db.valid(&[path(1), path(3)]).unwrap(),
            BTreeSet::from([path(1)])
        );
        assert_eq!(db.all().unwrap(), BTreeSet::from([path(1), path(2)]));
        assert_eq!(db.referrers(&path(1)).unwrap(), BTreeSet::from([path(2)]));
        assert_eq!(db.referrers(&path(2)).unwrap(), BTreeSet::from([path(2)]));
        assert_eq!(db.referrers(&path(3)).unwrap(), BTreeSet::new());
        assert_eq!(db.find(&path(2).to_hash_part()).unwrap(), Some(path(2)));
        assert_eq!(db.find(&path(3).to_hash_part()).unwrap(), None);
    }

    #[test]
    fn a_statement_is_compiled_once() {
        let Fixture { db, .. } = &Fixture::new();
        db.add(&[info(1, []), info(2, [1]), info(3, [2])]).unwrap();
        let found = db.infos(&[path(1), path(2), path(3)]).unwrap();
        assert!(found.iter().all(Result::is_ok));
        let reader = db.readers.take().unwrap();
        let statement = reader.prepare_cached(REFERENCES).unwrap();
        assert!(statement.get_status(StatementStatus::Run) >= 3);
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }

    #[test]
    fn a_database_that_was_replaced_is_the_one_that_is_read_and_written() {
        let (old, new) = (Fixture::new(), Fixture::new());
        old.db.add(&[info(1, [])]).unwrap();
        new.db.add(&[info(2, [])]).unwrap();
        assert_eq!(old.db.all().unwrap(), BTreeSet::from([path(1)]));
        let file = |fixture: &Fixture| fixture.folder.path().join("db.sqlite");
        // What is in the journal only would be lost.
        new.execute("pragma wal_checkpoint(truncate)");
        for of_the_old in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(old.folder.path().join(format!("db.sqlite{of_the_old}")));
        }
        std::fs::rename(file(&new), file(&old)).unwrap();
        assert_eq!(old.db.all().unwrap(), BTreeSet::from([path(2)]));
        old.db.add(&[info(3, [2])]).unwrap();
        assert_eq!(
            old.db.referrers(&path(2)).unwrap(),
            BTreeSet::from([path(3)])
        );
        std::fs::remove_file(file(&old)).unwrap();
        let error = old.db.all().unwrap_err().to_line();
        assert!(error.contains("db.sqlite"), "{error}");
    }

    #[test]
    fn what_is_no_signature_is_passed_over() {
        let fixture = Fixture::new();
        let mut signed = info(1, []);
        let key = SecretKey::generate("k-1").unwrap();
        signed.sign(&StoreDir::default(), &key).unwrap();
        fixture.db.add(std::slice::from_ref(&signed)).unwrap();
        fixture.execute("update ValidPaths set sigs = 'junk ' || sigs || ' :: k-1:%%'");
        assert_eq!(fixture.db.info(&path(1)).unwrap(), Some(signed));
    }

    #[test]
    fn what_was_read_is_good_until_somebody_writes() {
        let fixture = Fixture::new();
        let db = &fixture.db;
        db.add(&[info(1, []), info(2, [1])]).unwrap();
        let file = |suffix: &str| fixture.folder.path().join(format!("db.sqlite{suffix}"));
        let age = || {
            for suffix in ["", "-wal"] {
                let file = std::fs::File::options().append(true).open(file(suffix));
                let long_ago = SystemTime::now() - Duration::from_secs(3600);
                file.unwrap().set_modified(long_ago).unwrap();
            }
        };
        let ask = |n: u8| db.infos(&[path(n)]).unwrap().remove(0).unwrap().1;
        let kept = || db.recent.lock().1.len();
        assert_eq!(ask(2), Some(info(2, [1])));
        assert_eq!(kept(), 0, "it was written just now");
        age();
        assert_eq!((ask(2), ask(3)), (Some(info(2, [1])), None));
        assert_eq!(kept(), 1, "what is absent is not kept");
        // Nobody notices a change that leaves no trace: so it is asked no more.
        assert_eq!(ask(2), Some(info(2, [1])));
        assert!(db.is_valid(&path(2)).unwrap());
        fixture.execute("delete from Refs; delete from ValidPaths where id = 2");
        assert_eq!(ask(2), None);
        assert!(!db.is_valid(&path(2)).unwrap());
        age();
        assert_eq!(ask(2), None);
        assert_eq!(ask(1), Some(info(1, [])));
        db.add(&[info(2, [1])]).unwrap();
        assert_eq!(ask(2), Some(info(2, [1])));
    }

    #[test]
    fn many_ask_at_once() {
        let fixture = Fixture::new();
        fixture.db.add(&[info(1, []), info(2, [1])]).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..32 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        assert_eq!(fixture.db.info(&path(2)).unwrap(), Some(info(2, [1])));
                    }
                });
            }
        });
        assert!(fixture.db.readers.lock().open <= MOST_READERS);
    }

    #[test]
    fn registering_again_replaces_the_metadata() {
        let Fixture { db, .. } = &Fixture::new();
        db.add(&[info(1, []), info(2, [1])]).unwrap();
        let mut again = info(1, []);
        again.nar_size = 0;
        again.ultimate = true;
        db.add(std::slice::from_ref(&again)).unwrap();
        assert_eq!(db.info(&path(1)).unwrap(), Some(again));
        assert_eq!(db.referrers(&path(1)).unwrap().len(), 1);
    }

    #[test]
    fn all_or_nothing() {
        let Fixture { db, .. } = &Fixture::new();
        let missing = db.add(&[info(1, []), info(2, [1, 9])]).unwrap_err();
        let Error::MissingReference {
            path: of,
            reference,
            ..
        } = missing
        else {
            panic!("{missing}");
        };
        assert_eq!((of, reference), (path(2), path(9)));
        let circle = db.add(&[info(1, [2]), info(2, [1])]).unwrap_err();
        assert!(matches!(circle, Error::Invalid { .. }), "{circle}");
        let mut large = info(1, []);
        large.nar_size = u64::MAX;
        assert!(db.add(&[large]).is_err());
        assert_eq!(db.all().unwrap(), BTreeSet::new());
    }

    #[test]
    fn signatures_are_joined() {
        let Fixture { db, .. } = &Fixture::new();
        let sign = |name: &str| {
            let mut info = info(1, []);
            info.sign(&StoreDir::default(), &SecretKey::generate(name).unwrap())
                .unwrap();
            info
        };
        let (one, two) = (sign("a"), sign("b"));
        db.add(std::slice::from_ref(&one)).unwrap();
        for _ in 0..2 {
            let new = [
                (path(1), two.signatures.clone()),
                (path(2), two.signatures.clone()),
            ];
            let absent = db.add_signatures(&new.into()).unwrap();
            assert_eq!(absent, [path(2)].into());
        }
        let both = one.signatures.union(&two.signatures).cloned().collect();
        assert_eq!(db.info(&path(1)).unwrap().unwrap().signatures, both);
    }

    #[test]
    fn derivers_come_from_outputs() {
        let fixture = Fixture::new();
        fixture.db.add(&[info(1, []), info(2, [])]).unwrap();
        let insert = "insert into DerivationOutputs select id, 'out'";
        fixture.execute(&format!("{insert}, '{}' from ValidPaths", full(7)));
        let derivers = fixture.db.derivers(&path(7)).unwrap();
        assert_eq!(derivers, BTreeSet::from([path(1), path(2)]));
        assert!(fixture.db.derivers(&path(8)).unwrap().is_empty());
    }

    #[test]
    fn odd_rows_are_named() {
        for (column, value, words) in [
            ("hash", "'sha256:12'", "hash"),
            ("hash", "'md5:d41d8cd98f00b204e9800998ecf8427e'", "hash"),
            ("hash", "x'00ff'", "hash"),
            ("hash", "''", "hash"),
            ("narSize", "-1", "narSize"),
            ("narSize", "'many'", "narSize"),
            ("narSize", "1.5", "narSize"),
            ("registrationTime", "-5", "registrationTime"),
            ("registrationTime", "'soon'", "registrationTime"),
            ("deriver", "''", "deriver"),
            (
                "deriver",
                "'/elsewhere/00000000000000000000000000000000-x.drv'",
                "deriver",
            ),
            ("ultimate", "'yes'", "ultimate"),
            ("ca", "'fixed:what:ever'", "ca"),
            ("ca", "x'c3'", "ca"),
        ] {
            let fixture = Fixture::new();
            fixture.db.add(&[info(1, []), info(2, [])]).unwrap();
            let of = full(1);
            fixture.execute(&format!(
                "update ValidPaths set {column} = {value} where path = '{of}'"
            ));
            let line = fixture.db.info(&path(1)).unwrap_err().to_line();
            assert!(
                line.contains(&of) && line.contains(words),
                "{column} = {value}: {line}"
            );
            // Its neighbour is not concerned.
            let infos = fixture.db.infos(&[path(1), path(2), path(3)]).unwrap();
            assert!(
                matches!(infos[..], [Err(_), Ok((_, Some(_))), Ok((_, None))]),
                "{infos:?}"
            );
        }
    }

    #[test]
    fn odd_values_that_nix_takes() {
        let nix32 = info(1, []).nar_hash.to_string();
        for (column, value) in [
            ("hash", format!("'{nix32}'")),
            ("ca", "''".to_owned()),
            ("sigs", "''".to_owned()),
            ("ultimate", "0".to_owned()),
        ] {
            let fixture = Fixture::new();
            fixture.db.add(&[info(1, [])]).unwrap();
            fixture.execute(&format!("update ValidPaths set {column} = {value}"));
            assert_eq!(
                fixture.db.info(&path(1)).unwrap(),
                Some(info(1, [])),
                "{column}"
            );
        }
    }

    #[test]
    fn odd_references_are_named() {
        let fixture = Fixture::new();
        fixture.db.add(&[info(1, []), info(2, [1])]).unwrap();
        fixture.execute(&format!(
            "update ValidPaths set path = 'x' where path = '{}'",
            full(1)
        ));
        let line = fixture.db.info(&path(2)).unwrap_err().to_line();
        assert!(
            line.contains("a reference of") && line.contains(&full(2)),
            "{line}"
        );
        assert!(fixture.db.all().is_err());
        assert!(fixture.db.find(&path(1).to_hash_part()).unwrap().is_none());
    }

    #[test]
    fn references_to_nowhere_are_named() {
        let fixture = Fixture::new();
        fixture.db.add(&[info(1, [])]).unwrap();
        fixture.execute("pragma foreign_keys = off; insert into Refs values (1, 77)");
        let line = fixture.db.info(&path(1)).unwrap_err().to_line();
        assert!(
            line.contains(&full(1)) && line.contains("no row 77"),
            "{line}"
        );
    }

    #[test]
    fn a_database_without_tables_is_an_error() {
        let fixture = Fixture::new();
        fixture.execute("drop table Refs");
        fixture.db.add(&[info(1, [])]).unwrap();
        assert!(fixture.db.info(&path(1)).is_err());
    }

    #[test]
    fn read_only_is_not_written() {
        let fixture = Fixture::new();
        fixture.db.add(&[info(1, [])]).unwrap();
        let file = fixture.folder.path().join("db.sqlite");
        let dir = StoreDir::default();
        // With a journal beside it, and without one.
        for _ in 0..2 {
            let name = "local".to_owned();
            let db = Database::open(&file, &dir, name, OpenMode::ReadOnly).unwrap();
            assert!(db.info(&path(1)).unwrap().is_some());
            let refused = db.add(&[info(2, [])]).unwrap_err();
            assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
            fixture.execute("pragma wal_checkpoint(truncate)");
        }
    }

    #[test]
    fn writers_wait_for_each_other() {
        let fixture = Fixture::new();
        let file = fixture.folder.path().join("db.sqlite");
        std::thread::scope(|scope| {
            for n in 0..4 {
                let file = &file;
                scope.spawn(move || {
                    let mode = OpenMode::ReadWrite(Durability::default());
                    let dir = StoreDir::default();
                    let db = Database::open(file, &dir, "local".to_owned(), mode).unwrap();
                    for i in 0..20 {
                        db.add(&[info(n * 20 + i, [])]).unwrap();
                    }
                });
            }
        });
        assert_eq!(fixture.db.all().unwrap().len(), 80);
    }

    proptest! {
        // Each case makes a database.
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_metadata_comes_back(
            size in 0..=i64::MAX as u64,
            time in 1..=i64::MAX as u64,
            ultimate: bool,
            hash: [u8; 32],
            references in prop::collection::btree_set(0..20u8, 0..20),
        ) {
            let Fixture { db, .. } = &Fixture::new();
            db.add(&(0..20).map(|n| info(n, [])).collect::<Vec<_>>()).unwrap();
            let mut given = info(30, references);
            given.nar_hash = NarHash::from_bytes(hash);
            given.nar_size = size;
            given.registration_time = time;
            given.ultimate = ultimate;
            db.add(std::slice::from_ref(&given)).unwrap();
            prop_assert_eq!(db.info(&given.path).unwrap(), Some(given));
        }
    }
}
