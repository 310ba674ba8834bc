//! What binary caches answered before, kept on disk for a while.
//!
//! One SQLite file for all caches and processes of a user. An answer is kept as it came, under the
//! cache it came from; a checksum tells a damaged one from a good one, since nothing is synced to
//! the disk.
//!
//! | Table | Columns |
//! |---|---|
//! | caches | id; identity, store_dir (unique); info, info_at (both NULL: not known; info alone: it has none) |
//! | answers | cache, part (primary key); at; kind: 0 absent, 1 present, 2 forgotten; text, checksum |
//! | purged | at |
//!
//! Times are milliseconds since 1970. Nothing that is older than its time to live counts, nor what
//! is from the future: a clock that was set back must not make an answer live on.

mod file;
mod nix;

use crate::{
    objects::{CachedNarInfo, NarInfoCache},
    observer::NetworkObserver,
};
use bytes::Bytes;
use nix::NixCaches;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tk_narinfo::{MAX_CACHE_INFO_BYTES, MAX_NARINFO_BYTES};
use tk_path::{HashPart, StoreDir};
use tk_store::Result;

/// How long answers count, and what else is known on this machine.
#[derive(Clone)]
pub struct DiskCacheConfig {
    /// How long a narinfo counts. Default: 30 days, as Nix.
    pub positive: Duration,
    /// How long "absent" counts. Default: 30 seconds; Nix takes an hour, in which a path that
    /// somebody has pushed is not seen.
    pub negative: Duration,
    /// How long a `nix-cache-info` counts. Default: 7 days, as Nix.
    pub info: Duration,
    /// The folder of Nix's own `binary-cache-v8.sqlite` (or `v7`, `v6`), such as `~/.cache/nix`. What
    /// Nix found present is believed for as long as our own answers; nothing is written there.
    /// Default: none.
    pub nix: Option<PathBuf>,
    /// The most bytes of answers on disk. When there are more, the older half is forgotten.
    /// Default: 256 MiB, about 200,000 narinfos.
    pub max_bytes: u64,
    /// What time it is. Default: the system's clock.
    pub clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Who is told of what people should know though the work goes on. Default: nobody.
    pub observer: Arc<dyn NetworkObserver>,
}

impl Default for DiskCacheConfig {
    fn default() -> Self {
        DiskCacheConfig {
            positive: 30 * DAY,
            negative: Duration::from_secs(30),
            info: 7 * DAY,
            nix: None,
            max_bytes: 256 << 20,
            clock: Arc::new(SystemTime::now),
            observer: Arc::new(()),
        }
    }
}

impl fmt::Debug for DiskCacheConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCacheConfig")
            .field("positive", &self.positive)
            .field("negative", &self.negative)
            .field("info", &self.info)
            .field("nix", &self.nix)
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

/// The answers of all binary caches, in one file that any number of processes may share.
///
/// A process that is killed leaves the file whole. A file that is damaged is emptied, one that is
/// something else is moved aside (`.aside` is appended to its name); neither is an error. Where the
/// file cannot be written, or somebody else has it locked, one warning says so; the lock is waited
/// for once, for two seconds, and from then on nobody waits.
#[derive(Debug)]
pub struct DiskCache {
    path: PathBuf,
    config: DiskCacheConfig,
    connection: Mutex<Connection>,
    nix: Option<NixCaches>,
    /// Whether it was told that something cannot be remembered.
    warned: AtomicBool,
}

impl DiskCache {
    /// Opens the file `path`, and makes it with its folders if it is not there.
    ///
    /// # Errors
    /// When it can neither be opened nor made: the folder cannot be written, the disk is full. A
    /// caller who can do without goes on without.
    pub fn open(path: impl AsRef<Path>, config: DiskCacheConfig) -> Result<Arc<Self>> {
        let path = std::path::absolute(path.as_ref())
            .map_err(|e| tk_store::Error::io("finding the current directory", e))?;
        let connection = Mutex::new(file::open(&path)?);
        let nix = config.nix.as_deref().map(NixCaches::new);
        Ok(Arc::new(DiskCache {
            path,
            config,
            connection,
            nix,
            warned: AtomicBool::new(false),
        }))
    }

    /// What is remembered of one cache.
    ///
    /// `identity` is all that tells this cache from others: endpoint, bucket, prefix, as one text
    /// without settings; for an HTTP cache its URL without a slash at the end. `dir` is the store
    /// directory for which it was asked.
    pub fn of(self: &Arc<Self>, identity: &str, dir: &StoreDir) -> Arc<dyn NarInfoCache> {
        self.since(identity, dir, i64::MIN)
    }

    /// The same, but nothing counts that was remembered before this moment: the cache is asked again,
    /// and its new answers take the place of the old ones.
    pub fn of_now(self: &Arc<Self>, identity: &str, dir: &StoreDir) -> Arc<dyn NarInfoCache> {
        self.since(identity, dir, self.now())
    }

    fn since(
        self: &Arc<Self>,
        identity: &str,
        dir: &StoreDir,
        since: i64,
    ) -> Arc<dyn NarInfoCache> {
        Arc::new(OneCache {
            disk: self.clone(),
            identity: identity.to_owned(),
            dir: dir.clone(),
            since,
        })
    }

    /// Some of what is remembered of one cache and still counts, the newest first, up to `most` of our own
    /// answers and as many of Nix's: which paths it was said to have (`true`) or to lack.
    pub fn sample(&self, identity: &str, dir: &StoreDir, most: u32) -> Vec<(HashPart, bool)> {
        let now = self.now();
        let since = |life| now.saturating_sub(millis(life));
        let (present, absent) = (since(self.config.positive), since(self.config.negative));
        let own = self.with(|connection| {
            let sql = "select part, kind = ?5 from answers, caches where cache = id and identity = ?1 \
                       and store_dir = ?2 and (kind = ?5 and at > ?3 or kind = ?6 and at > ?4) \
                       and at <= ?7 order by at desc limit ?8";
            let mut statement = connection.prepare(sql)?;
            let values = params![identity, dir.as_str(), present, absent, PRESENT, ABSENT, now, most];
            let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<(String, bool)>>>()
        });
        let nix = self
            .nix
            .as_ref()
            .map(|nix| nix.sample(identity, dir, now, most));
        let all = own.into_iter().flatten().chain(nix.into_iter().flatten());
        all.filter_map(|(part, there)| Some((HashPart::parse(&part).ok()?, there)))
            .collect()
    }

    /// Returns the absolute path of the SQLite file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn now(&self) -> i64 {
        let since = (self.config.clock)().duration_since(UNIX_EPOCH);
        millis(since.unwrap_or_default())
    }

    /// Does `work`; `None` if that fails, as if nothing were known. Damage is mended.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Option<T> {
        let mut connection = self.lock();
        match work(&mut connection) {
            Ok(done) => Some(done),
            Err(error) => {
                if file::is_damage(&error) {
                    file::mend(&self.path, &mut connection);
                } else {
                    self.goes_on_without(&connection, &error);
                }
                None
            }
        }
    }

    /// After it could not be written: another process may keep it locked for hours, and each of
    /// thousands of paths would wait for that.
    fn goes_on_without(&self, connection: &Connection, error: &rusqlite::Error) {
        let _ = connection.busy_timeout(Duration::ZERO);
        if !self.warned.swap(true, Ordering::Relaxed) {
            let path = self.path.display();
            let text = format!("what caches say is not remembered in {path}: {error}");
            self.config.observer.warned(&text);
        }
    }

    /// A panic between two statements leaves the connection usable: its transaction is undone.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a cache invents without end does not fill the disk.
    fn make_room(&self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let used: i64 = tx
            .prepare_cached(
                "select (page_count - freelist_count) * page_size \
                 from pragma_page_count, pragma_freelist_count, pragma_page_size",
            )?
            .query_row([], |row| row.get(0))?;
        if u64::try_from(used).unwrap_or(0) <= self.config.max_bytes {
            return Ok(());
        }
        tx.execute(
            "delete from answers where at <= (select at from answers order by at \
             limit 1 offset (select count(*) / 2 from answers))",
            [],
        )?;
        Ok(())
    }

    /// Removes what no longer counts, at most once a day.
    fn purge(&self, tx: &Transaction<'_>, now: i64) -> rusqlite::Result<()> {
        let last: Option<i64> = tx
            .query_row("select at from purged", [], |row| row.get(0))
            .optional()?;
        if last.is_some_and(|last| last <= now && now - last < millis(DAY)) {
            return Ok(());
        }
        let (positive, negative) = (millis(self.config.positive), millis(self.config.negative));
        tx.execute(
            "delete from answers where at > ?1 or at < ?1 - case kind when ?2 then ?3 else ?4 end",
            params![now, ABSENT, negative, positive],
        )?;
        tx.execute(
            "delete from caches where (info_at is null or info_at > ?1 or info_at < ?1 - ?2) \
             and not exists (select 1 from answers where cache = id)",
            params![now, millis(self.config.info)],
        )?;
        tx.execute("delete from purged", [])?;
        tx.execute("insert into purged values (?)", [now])?;
        Ok(())
    }
}

/// One cache's part of a [`DiskCache`].
#[derive(Debug)]
struct OneCache {
    disk: Arc<DiskCache>,
    identity: String,
    dir: StoreDir,
    /// What was heard before this time does not count.
    since: i64,
}

impl OneCache {
    fn counts(&self, at: i64, now: i64, life: Duration) -> bool {
        at >= self.since && at <= now && now.saturating_sub(at) < millis(life)
    }

    /// Under which number the cache goes, if anything is known of it.
    fn id(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        let sql = "select id from caches where identity = ? and store_dir = ?";
        connection
            .prepare_cached(sql)?
            .query_row([&self.identity, self.dir.as_str()], |row| row.get(0))
            .optional()
    }

    fn made_id(&self, connection: &Connection) -> rusqlite::Result<i64> {
        if let Some(id) = self.id(connection)? {
            return Ok(id);
        }
        connection.execute(
            "insert into caches (identity, store_dir) values (?, ?)",
            [&self.identity, self.dir.as_str()],
        )?;
        Ok(connection.last_insert_rowid())
    }

    /// Writes in one transaction; the cache's number is given.
    fn write(&self, work: impl FnOnce(&Transaction<'_>, i64, i64) -> rusqlite::Result<()>) {
        let now = self.disk.now();
        self.disk.with(|connection| {
            // Immediate: a transaction that reads first cannot wait for the lock when it comes to
            // write.
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            self.disk.purge(&tx, now)?;
            self.disk.make_room(&tx)?;
            let id = self.made_id(&tx)?;
            work(&tx, id, now)?;
            tx.commit()
        });
    }

    /// What the file has of `parts`.
    fn rows(&self, parts: &[HashPart], now: i64) -> Option<Vec<Row>> {
        self.disk.with(|connection| {
            // One view of the file for the whole batch, and one lock of it.
            let tx = connection.transaction()?;
            let Some(id) = self.id(&tx)? else {
                return Ok(vec![Row::Nothing; parts.len()]);
            };
            let sql = "select at, kind, text, checksum from answers where cache = ? and part = ?";
            let mut statement = tx.prepare_cached(sql)?;
            let mut look = |part: &HashPart| {
                let mut rows = statement.query(params![id, part.as_str()])?;
                match rows.next()? {
                    Some(row) => self.row(part, row, now),
                    None => Ok(Row::Nothing),
                }
            };
            parts.iter().map(&mut look).collect()
        })
    }

    fn row(&self, part: &HashPart, row: &rusqlite::Row<'_>, now: i64) -> rusqlite::Result<Row> {
        let (at, kind): (i64, i64) = (row.get(0)?, row.get(1)?);
        let config = &self.disk.config;
        let life = match kind {
            ABSENT => config.negative,
            _ => config.positive,
        };
        if !self.counts(at, now, life) {
            return Ok(Row::Nothing);
        }
        let text = row.get_ref(2)?.as_blob_or_null()?.unwrap_or_default();
        if row.get::<_, i64>(3)? != checksum(part, at, kind, text) {
            return Ok(Row::Nothing);
        }
        Ok(match kind {
            ABSENT => Row::Known(CachedNarInfo::Absent),
            PRESENT => Row::Known(CachedNarInfo::Present(Bytes::copy_from_slice(text))),
            _ => Row::Forgotten(at),
        })
    }

    /// Fills in what Nix found present, unless it was forgotten since.
    fn ask_nix(&self, nix: &NixCaches, parts: &[HashPart], rows: &mut [Row], now: i64) {
        let open = rows.iter().enumerate();
        let open = open.filter(|(_, row)| !matches!(row, Row::Known(_)));
        let open: Vec<usize> = open.map(|(i, _)| i).collect();
        if open.is_empty() {
            return;
        }
        let wanted: Vec<_> = open.iter().map(|&i| parts[i]).collect();
        let found = nix.positives(&self.identity, &self.dir, &wanted);
        for (i, found) in open.into_iter().zip(found) {
            let Some((at, text)) = found else { continue };
            // What Nix heard later than that is news, and counts.
            let forgotten = matches!(rows[i], Row::Forgotten(since) if at <= since);
            if !forgotten && self.counts(at, now, self.disk.config.positive) {
                rows[i] = Row::Known(CachedNarInfo::Present(text));
            }
        }
    }
}

impl NarInfoCache for OneCache {
    fn get(&self, parts: &[HashPart]) -> Vec<Option<CachedNarInfo>> {
        let now = self.disk.now();
        let rows = self.rows(parts, now);
        let mut rows = rows.unwrap_or_else(|| vec![Row::Nothing; parts.len()]);
        if let Some(nix) = &self.disk.nix {
            self.ask_nix(nix, parts, &mut rows, now);
        }
        let known = rows.into_iter().map(|row| match row {
            Row::Known(known) => Some(known),
            Row::Forgotten(_) | Row::Nothing => None,
        });
        known.collect()
    }

    fn put(&self, answers: &[(HashPart, Option<Bytes>)]) {
        if answers.is_empty() {
            return;
        }
        self.write(|tx, id, now| {
            let mut statement = tx.prepare_cached(PUT)?;
            for (part, text) in answers {
                let kind = if text.is_some() { PRESENT } else { ABSENT };
                let text = text.as_deref().unwrap_or_default();
                if text.len() <= MAX_NARINFO_BYTES {
                    let sum = checksum(part, now, kind, text);
                    statement.execute(params![id, part.as_str(), now, kind, text, sum])?;
                }
            }
            Ok(())
        });
    }

    /// Nix may remember it too, and wrongly in the same way. So a note is kept in its place that
    /// tells which of Nix's answers are older.
    fn forget(&self, parts: &[HashPart]) {
        if parts.is_empty() {
            return;
        }
        self.write(|tx, id, now| {
            let mut statement = tx.prepare_cached(PUT)?;
            for part in parts {
                let sum = checksum(part, now, FORGOTTEN, &[]);
                let none: &[u8] = &[];
                statement.execute(params![id, part.as_str(), now, FORGOTTEN, none, sum])?;
            }
            Ok(())
        });
    }

    fn cache_info(&self) -> Option<Option<Bytes>> {
        let now = self.disk.now();
        let found = self.disk.with(|connection| {
            let sql = "select info, info_at from caches \
                       where identity = ? and store_dir = ? and info_at is not null";
            let read = |row: &rusqlite::Row<'_>| {
                Ok((row.get::<_, Option<Vec<u8>>>(0)?, row.get::<_, i64>(1)?))
            };
            let mut statement = connection.prepare_cached(sql)?;
            statement
                .query_row([&self.identity, self.dir.as_str()], read)
                .optional()
        });
        let (info, at) = found??;
        self.counts(at, now, self.disk.config.info)
            .then(|| info.map(Bytes::from))
    }

    fn put_cache_info(&self, text: Option<&[u8]>) {
        if text.is_some_and(|text| text.len() > MAX_CACHE_INFO_BYTES) {
            return;
        }
        self.write(|tx, id, now| {
            let sql = "update caches set info = ?, info_at = ? where id = ?";
            tx.execute(sql, params![text, now, id]).map(drop)
        });
    }
}

/// What the file says of a path.
#[derive(Debug, Clone)]
enum Row {
    Nothing,
    Known(CachedNarInfo),
    /// The answer was forgotten at this time, in milliseconds since 1970.
    Forgotten(i64),
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Tells damage by accident. Whoever can write the file can write a fitting one.
fn checksum(part: &HashPart, at: i64, kind: i64, text: &[u8]) -> i64 {
    let mut sum = 0x9e37_79b9_7f4a_7c15_u64 ^ text.len() as u64;
    let mut take = |word: u64| {
        sum = (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        sum ^= sum >> 32;
    };
    take(at as u64);
    take(kind as u64);
    for bytes in [part.as_str().as_bytes(), text] {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            take(u64::from_le_bytes(word.try_into().expect("8 bytes")));
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        take(u64::from_le_bytes(last));
    }
    sum as i64
}

const ABSENT: i64 = 0;
const PRESENT: i64 = 1;
const FORGOTTEN: i64 = 2;

const PUT: &str = "insert or replace into answers (cache, part, at, kind, text, checksum) \
                   values (?, ?, ?, ?, ?, ?)";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
