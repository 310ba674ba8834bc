//! The file of the disk cache: made, recognised, and mended.

use rusqlite::{
    Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, config::DbConfig,
};
use rustix::fs::{FlockOperation, flock};
use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tk_store::{Error, Result};

/// Opens the file at `path`, whatever is there.
pub fn open(path: &Path) -> Result<Connection> {
    if let Some(folder) = path.parent() {
        // What private caches have is nobody else's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|e| Error::io(format!("making the folder {}", folder.display()), e))?;
    }
    let doing = |error: rusqlite::Error| {
        let doing = format!("opening the narinfo cache {}", path.display());
        Error::io(doing, io::Error::other(error))
    };
    let mut connection = connect(path).map_err(doing)?;
    match prepare(&mut connection) {
        Ok(true) => return Ok(connection),
        Ok(false) => {}
        Err(error) if is_damage(&error) => {}
        Err(error) => return Err(doing(error)),
    }
    mend(path, &mut connection);
    match prepare(&mut connection) {
        Ok(true) => Ok(connection),
        Ok(false) => Err(Error::io(
            format!("opening the narinfo cache {}", path.display()),
            io::Error::other("it is a database of another program"),
        )),
        Err(error) => Err(doing(error)),
    }
}

/// Whether `error` tells that the file is not what it should be, rather than busy or out of reach.
pub fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => matches!(
            error.code,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
        ),
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => true,
        _ => false,
    }
}

/// Empties a file of ours that is damaged, and moves aside what is none of ours. Afterwards
/// `connection` is on the file that is there then.
pub fn mend(path: &Path, connection: &mut Connection) {
    // One process at a time, or the second would empty or move away what the first has mended.
    let Ok(lock) = File::create(beside(path, ".lock")) else {
        return;
    };
    if flock(&lock, FlockOperation::LockExclusive).is_err() {
        return;
    }
    let Ok(fresh) = connect(path) else { return };
    *connection = fresh;
    match prepare(connection).and_then(|ours| Ok(ours && is_whole(connection)?)) {
        Ok(true) => return,
        Err(error) if !is_damage(&error) => return,
        _ => {}
    }
    if is_ours(path) && empty(connection).is_ok() {
        return;
    }
    if move_aside(path).is_ok()
        && let Ok(mut fresh) = connect(path)
        && prepare(&mut fresh).is_ok()
    {
        *connection = fresh;
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

/// Makes the tables if the file is new; false if it belongs to somebody else.
fn prepare(connection: &mut Connection) -> rusqlite::Result<bool> {
    if let Some(ours) = recognise(connection)? {
        if ours {
            settings(connection)?;
        }
        return Ok(ours);
    }
    settings(connection)?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Again: another process may have been quicker.
    if recognise(&tx)?.is_none() {
        create(&tx)?;
    }
    tx.commit()?;
    Ok(true)
}

fn create(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute_batch(TABLES)?;
    tx.pragma_update(None, "application_id", APPLICATION)?;
    tx.pragma_update(None, "user_version", VERSION)
}

/// Whether the file is ours; `None` if it is empty.
fn recognise(connection: &Connection) -> rusqlite::Result<Option<bool>> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    if number("application_id")? == APPLICATION {
        return Ok(Some(number("user_version")? == VERSION));
    }
    let tables = "select count(*) from sqlite_schema";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
    Ok((tables > 0).then_some(false))
}

fn settings(connection: &Connection) -> rusqlite::Result<()> {
    // Another process may be at this very step: then the file is in this mode soon, or will be
    // when it is opened the next time.
    match connection.pragma_update(None, "journal_mode", "wal") {
        Ok(()) => {}
        Err(error) if is_damage(&error) => return Err(error),
        Err(_) => {}
    }
    // What a failure of the power destroys is asked again.
    connection.pragma_update(None, "synchronous", "off")
}

fn is_whole(connection: &Connection) -> rusqlite::Result<bool> {
    let words: String = connection.query_row("pragma integrity_check(1)", [], |row| row.get(0))?;
    Ok(words == "ok")
}

/// Whether the file on disk has our mark, as far as it can be read at all.
fn is_ours(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let mut header = [0; 72];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
    let application = i32::from_be_bytes(header[68..72].try_into().expect("4 bytes"));
    read.is_ok() && header.starts_with(MAGIC) && application == APPLICATION
}

/// Makes the database empty where it stands. Others that have it open follow, which they would
/// not if the file went away under them.
fn empty(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, true)?;
    let emptied = connection.execute_batch("vacuum");
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_RESET_DATABASE, false)?;
    emptied?;
    if prepare(connection)? {
        Ok(())
    } else {
        Err(rusqlite::Error::InvalidQuery)
    }
}

/// With its log, which must never be found beside a new file.
fn move_aside(path: &Path) -> io::Result<()> {
    let aside = beside(path, ".aside");
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(beside(path, suffix), beside(&aside, suffix)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// How long a process waits for others that write.
const PATIENCE: Duration = Duration::from_secs(2);

const MAGIC: &[u8] = b"SQLite format 3\0";

/// "tkni": what the file is, in SQLite's header.
const APPLICATION: i32 = 0x746b_6e69;

const VERSION: i32 = 1;

const TABLES: &str = "\
    create table caches (
        id integer primary key,
        identity text not null,
        store_dir text not null,
        info blob,
        info_at integer,
        unique (identity, store_dir)
    );
    create table answers (
        cache integer not null,
        part text not null,
        at integer not null,
        kind integer not null,
        text blob not null,
        checksum integer not null,
        primary key (cache, part)
    );
    create table purged (at integer not null);";
