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

mod realisations;

use crate::{Durability, schema};
use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_narinfo::{PathInfo, Signature};
use tk_path::{HashPart, NarHash, OutputName, StoreDir, StorePath};
use tk_store::{Error, Result};

/// An open database. Readers never wait for a writer.
#[derive(Debug)]
pub(crate) struct Database {
    reader: Mutex<Connection>,
    writer: Option<Mutex<Connection>>,
    file: PathBuf,
    dir: StoreDir,
    /// The store's URI, for errors.
    store: String,
}

/// How [`Database::open`] opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    ReadOnly,
    ReadWrite(Durability),
    Create(Durability),
}

impl Database {
    /// Opens the database `file` of the store that is called `store`.
    pub fn open(file: &Path, dir: &StoreDir, store: String, mode: Mode) -> Result<Self> {
        let (reader, writer) = match mode {
            Mode::ReadOnly => (schema::open_read_only(file)?, None),
            Mode::ReadWrite(durability) => {
                let writer = schema::open(file, false, durability)?;
                (schema::open(file, false, durability)?, Some(writer))
            }
            Mode::Create(durability) => {
                let mut writer = schema::open(file, true, durability)?;
                schema::create_tables(&mut writer, file)?;
                (schema::open(file, false, durability)?, Some(writer))
            }
        };
        Ok(Database {
            reader: Mutex::new(reader),
            writer: writer.map(Mutex::new),
            file: file.to_owned(),
            dir: dir.clone(),
            store,
        })
    }

    /// The metadata of `path`, if it is valid.
    pub fn info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        self.info_from(&self.reader(), path, &mut Known::new())
    }

    /// The metadata of each of `paths`, as of one moment. What is wrong with one row concerns
    /// its path only.
    pub fn infos(&self, paths: &[StorePath]) -> Vec<Result<(StorePath, Option<PathInfo>)>> {
        let reader = self.reader();
        let snapshot = reader.unchecked_transaction();
        let mut known = Known::new();
        let mut one = |path: &StorePath| {
            let info = self.info_from(&reader, path, &mut known)?;
            Ok((path.clone(), info))
        };
        let infos = paths.iter().map(&mut one).collect();
        drop(snapshot);
        infos
    }

    /// The subset of `paths` that is valid.
    pub fn valid<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeSet<StorePath>> {
        let reader = self.reader();
        let snapshot = reader.unchecked_transaction();
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
        let reader = self.reader();
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

    /// All valid paths.
    pub fn all(&self) -> Result<BTreeSet<StorePath>> {
        self.paths("select path from ValidPaths", [])
    }

    /// The same, going on past names that are none; those are errors.
    pub fn all_readable(&self) -> Result<(BTreeSet<StorePath>, Vec<(String, Error)>)> {
        let reader = self.reader();
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
        let reader = self.reader();
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
    pub fn register(&self, infos: &[PathInfo], outputs: &Outputs) -> Result<()> {
        check(infos)?;
        self.write(|transaction| {
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

    /// Adds signatures to those of `path`.
    pub fn add_signatures(&self, path: &StorePath, new: &BTreeSet<Signature>) -> Result<()> {
        self.write(|transaction| {
            let Some(mut info) = self.info_from(transaction, path, &mut Known::new())? else {
                return Err(Error::NotFound {
                    path: path.clone(),
                    store: self.store.clone(),
                });
            };
            info.signatures.extend(new.iter().cloned());
            let update = || {
                let sql = "update ValidPaths set sigs = ? where path = ?";
                let values = params![signatures(&info), self.dir.path(path)];
                transaction.prepare_cached(sql)?.execute(values)
            };
            self.written(update())?;
            Ok(())
        })
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(|e| e.into_inner())
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
        known: &mut Known,
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
        let references: Vec<i64> = self.read(|| {
            let sql = "select reference from Refs where referrer = ?";
            let mut statement = connection.prepare_cached(sql)?;
            statement.query_map([id], |row| row.get(0))?.collect()
        })?;
        for reference in references {
            let reference = match known.get(&reference) {
                Some(known) => known.clone(),
                None => self.path_of(connection, reference, &full, known)?,
            };
            info.references.insert(reference);
        }
        Ok(Some(info))
    }

    /// The path with the number `id`, to which `referrer` refers.
    fn path_of(
        &self,
        connection: &Connection,
        id: i64,
        referrer: &str,
        known: &mut Known,
    ) -> Result<StorePath> {
        let path: Option<String> = self.read(|| {
            let sql = "select path from ValidPaths where id = ?";
            let mut statement = connection.prepare_cached(sql)?;
            statement.query_row([id], |row| row.get(0)).optional()
        })?;
        let what = format!("a reference of {referrer}");
        let path = path.ok_or_else(|| {
            Error::malformed(
                format!("{what} in {}", self.file()),
                format!("there is no row {id}"),
            )
        })?;
        let path = self.parse(&path, &what)?;
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
            if !signature.is_empty() {
                info.signatures
                    .insert(signature.parse().map_err(|e| bad("sigs", e))?);
            }
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
        let reader = self.reader();
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
        let mut attempts = 0;
        loop {
            attempts += 1;
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

/// An error of SQLite about `file`, with whose fault it is.
pub(crate) fn sql_error(file: &Path, doing: &str, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => None,
        Some(ErrorCode::DiskFull) => Some(io::ErrorKind::StorageFull),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            Some(io::ErrorKind::PermissionDenied)
        }
        Some(_) => Some(io::ErrorKind::Other),
        // Not SQLite's: a value of another type than the column should have.
        None => None,
    };
    match kind {
        None => Error::malformed(format!("the store database {}", file.display()), error),
        Some(kind) => {
            let doing = format!("{doing} the store database {}", file.display());
            Error::io(doing, io::Error::new(kind, error))
        }
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

/// The outputs of derivations whose paths are known.
pub(crate) type Outputs = BTreeMap<StorePath, BTreeMap<OutputName, StorePath>>;

/// Paths by the number of their row: in a closure the same are referred to again and again.
type Known = HashMap<i64, StorePath>;

/// What is wrong with one column.
type BadRow = Box<dyn std::error::Error + Send + Sync>;

fn column<T: rusqlite::types::FromSql>(row: &Row, at: usize, name: &str) -> Result<T, BadRow> {
    row.get(at).map_err(|e| bad(name, e))
}

fn bad(column: &str, error: impl std::fmt::Display) -> BadRow {
    format!("column {column}: {error}").into()
}

/// Together with SQLite's own waiting.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tk_narinfo::SecretKey;
    use tk_path::{Algorithm, Hash};

    impl Database {
        fn add(&self, infos: &[PathInfo]) -> Result<()> {
            self.register(infos, &Outputs::new())
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
            let mode = Mode::Create(Durability::default());
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
            db.add_signatures(&path(1), &two.signatures).unwrap();
        }
        let both = one.signatures.union(&two.signatures).cloned().collect();
        assert_eq!(db.info(&path(1)).unwrap().unwrap().signatures, both);
        let absent = db.add_signatures(&path(2), &both).unwrap_err();
        assert!(matches!(absent, Error::NotFound { .. }), "{absent}");
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
            ("sigs", "'no-colon'", "sigs"),
            ("sigs", "7", "sigs"),
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
            let infos = fixture.db.infos(&[path(1), path(2), path(3)]);
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
            let db = Database::open(&file, &dir, name, Mode::ReadOnly).unwrap();
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
                    let mode = Mode::ReadWrite(Durability::default());
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
