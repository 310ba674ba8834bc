//! The tables, and how a database is opened.
//!
//! `<state>/db/schema` holds the number of the schema as text, `10`. Schema 10 has been the
//! newest since Nix 2.0; what came after is noted in the table SchemaMigrations and adds tables
//! (`ca-derivations`) or drops an index (`IndexReferrer`, which repeats the primary key), neither of
//! which matters to the statements used here. A fresh database is as Nix 2.34 makes it.

use rusqlite::{
    Connection, ErrorCode, FileControl, OpenFlags, TransactionBehavior, config::DbConfig,
};
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};
use tk_store::{Error, Result};

use crate::Durability;

/// The only schema that is read and written.
pub(crate) const SCHEMA: u32 = 10;

/// Checks `<db>/schema` in the folder `db`; false if there is none, so that the store is new.
pub(crate) fn check_schema(db: &Path) -> Result<bool> {
    match schema_number(db)? {
        None => Ok(false),
        Some(SCHEMA) => Ok(true),
        Some(number) => Err(unknown_schema(db, number)),
    }
}

/// An error if a newer program made the database in `db`, which is not ours to replace. A schema that nobody
/// can read is none.
pub(crate) fn refuse_newer_schema(db: &Path) -> Result<()> {
    match schema_number(db) {
        Ok(Some(number)) if number > SCHEMA => Err(unknown_schema(db, number)),
        Ok(_) | Err(Error::Malformed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn schema_number(db: &Path) -> Result<Option<u32>> {
    let path = db.join("schema");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    let number = text.trim().parse().map_err(|_| {
        let shown: String = text.chars().take(40).collect();
        Error::malformed(
            path.display().to_string(),
            format!("{shown:?} is not a number"),
        )
    })?;
    Ok(Some(number))
}

fn unknown_schema(db: &Path, number: u32) -> Error {
    let advice = match number {
        ..SCHEMA => {
            "older than this program can read; open the store once with Nix 2, \
                      which upgrades it"
        }
        _ => "newer than this program knows; use a newer tk-store",
    };
    Error::Unsupported {
        store: format!("the store database in {}", db.display()),
        what: format!("has schema {number}, {advice} (schema {SCHEMA} is needed)"),
    }
}

/// Writes what was committed into the one file, as far as that can be done with a database that may be
/// damaged. Nobody else may have it open.
pub(crate) fn write_back_journal(file: &Path) {
    // Beside an empty file SQLite would remove the journal.
    if file.metadata().map_or(0, |meta| meta.len()) == 0 {
        return;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let _ = Connection::open_with_flags(file, flags).and_then(|connection| {
        connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))
    });
}

/// Writes `<db>/schema`, whole or not at all. One process at a time.
pub(crate) fn write_schema(db: &Path) -> Result<()> {
    let path = db.join("schema");
    let temporary = db.join("schema.new");
    let write = || {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(SCHEMA.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

/// Makes the tables that are missing, all or none.
pub(crate) fn create_tables(connection: &mut Connection, file: &Path) -> Result<()> {
    let create = |connection: &mut Connection| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(TABLES)?;
        transaction.commit()
    };
    create(connection).map_err(|e| sql_error(file, "creating the tables of", e))
}

/// Opens the database for reading and writing, with Nix's settings.
pub(crate) fn open(file: &Path, create: bool, durability: Durability) -> Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let open = || {
        let connection = Connection::open_with_flags(file, flags)?;
        prepare(&connection)?;
        let synchronous = match durability {
            Durability::Nothing => "off",
            Durability::Database | Durability::Content => "normal",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |r| r.get(0))?;
        if mode != "wal" {
            connection.pragma_update(None, "journal_mode", "wal")?;
        }
        connection.pragma_update(None, "journal_size_limit", JOURNAL_SIZE_LIMIT)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        // Who may read the database but not write its folder could not make the file again.
        connection.file_control(Some(c"main"), FileControl::PersistWal(&mut 1))?;
        Ok(connection)
    };
    open().map_err(|e| sql_error(file, "opening", e))
}

/// Opens the database for reading only.
///
/// Without a journal beside it nobody writes it, and it is opened in a way that needs no right
/// to write locks; otherwise what is in the journal must be read too.
pub(crate) fn open_read_only(file: &Path) -> Result<Connection> {
    let mut journal = file.as_os_str().to_owned();
    journal.push("-wal");
    let journal = PathBuf::from(journal);
    let immutable = u8::from(journal.metadata().map_or(0, |meta| meta.len()) == 0);
    let uri = format!("file:{}?immutable={immutable}", escape(file));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let open = || {
        let connection = Connection::open_with_flags(&uri, flags)?;
        prepare(&connection)?;
        // Nothing is read before it is asked for: find out now whether it is a database.
        connection.query_row("select count(*) from ValidPaths where id = 0", [], |_| {
            Ok(())
        })?;
        Ok(connection)
    };
    open().map_err(|e| sql_error(file, "opening", e))
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Or SQLite compiles a statement with an outer join again for each new value, to see whether that value
    // makes another plan better: three quarters of the time of a question about a path.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "foreign_keys", true)
}

/// A file name in a `file:` URI of SQLite.
fn escape(file: &Path) -> String {
    let text = file.to_string_lossy();
    text.replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23")
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

/// As Nix: another process may be collecting garbage for long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// SQLite cuts its journal down to this length, in bytes; so large a value means never, as in Nix.
const JOURNAL_SIZE_LIMIT: i64 = 1 << 40;
const CHECKPOINT_PAGES: i64 = 40_000;
const STATEMENTS: usize = 32;

/// Nix's tables; the comments are part of what the database keeps.
const TABLES: &str = r#"
create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null, -- base16 representation
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer, -- null implies "false"
    sigs             text, -- space-separated
    ca               text -- if not null, an assertion that the path is content-addressed; see ValidPathInfo
);

create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);

create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);

create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;

create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null, -- symbolic output id, usually "out"
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);

create index if not exists IndexDerivationOutputs on DerivationOutputs(path);

create table if not exists SchemaMigrations (migration text primary key not null);
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!check_schema(dir.path()).unwrap());
        for (text, expected) in [
            ("10", Ok(true)),
            ("10\n", Ok(true)),
            ("9", Err("has schema 9, older")),
            ("7", Err("has schema 7, older")),
            ("11", Err("has schema 11, newer")),
            ("", Err("is not a number")),
            ("ten", Err("is not a number")),
            ("-1", Err("is not a number")),
        ] {
            fs::write(dir.path().join("schema"), text).unwrap();
            match (check_schema(dir.path()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(words)) => {
                    assert!(error.to_line().contains(words), "{}", error.to_line());
                }
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
        write_schema(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("schema")).unwrap(), b"10");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn tables_may_be_there_already() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a?b#c%d.sqlite");
        let mut connection = open(&file, true, Durability::default()).unwrap();
        create_tables(&mut connection, &file).unwrap();
        create_tables(&mut connection, &file).unwrap();
        let mode = |name| {
            connection
                .pragma_query_value(None, name, |r| r.get::<_, String>(0))
                .unwrap()
        };
        assert_eq!(mode("journal_mode"), "wal");
        drop(connection);
        let journal = dir.path().join("a?b#c%d.sqlite-wal");
        assert_eq!(
            journal.metadata().unwrap().len(),
            0,
            "the journal must stay, empty"
        );
        open_read_only(&file).unwrap();
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("db.sqlite");
        for (content, words) in [
            (None, "unable to open database file"),
            (
                Some("certainly not a database, but long enough to be looked at"),
                "not a database",
            ),
        ] {
            if let Some(content) = content {
                fs::write(&file, content).unwrap();
            }
            for result in [
                open(&file, false, Durability::default()),
                open_read_only(&file),
            ] {
                let line = result.unwrap_err().to_line();
                assert!(line.contains("db.sqlite") && line.contains(words), "{line}");
            }
        }
    }
}
