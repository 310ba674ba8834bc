//! What Nix remembers in its own `binary-cache-v6.sqlite` (2.4 to 2.26), `-v7` and `-v8`.
//!
//! Read only, and so that nothing in the folder changes: SQLite would make the files of its log
//! (`-wal`, `-shm`) even for a reader. Nix removes the log when its last process ends, and then the
//! file alone is read as it lies there; should a log have appeared meanwhile, nothing was known.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tk_narinfo::NarInfo;
use tk_path::{HashPart, StoreDir};

/// The files of Nix in one folder.
#[derive(Debug)]
pub struct NixCaches {
    files: Vec<PathBuf>,
}

/// When Nix heard it, in milliseconds since 1970, and the narinfo as a text.
pub type Positive = (i64, Bytes);

impl NixCaches {
    /// Those of `folder`; they need not be there.
    pub fn new(folder: &Path) -> Self {
        NixCaches {
            files: NAMES.iter().map(|name| folder.join(name)).collect(),
        }
    }

    /// What the cache at `url` has of `parts`, in their order.
    ///
    /// Only HTTP caches: Nix's key of a bucket leaves out the endpoint, so that two services with
    /// a bucket of the same name are one to it.
    pub fn positives(
        &self,
        url: &str,
        dir: &StoreDir,
        parts: &[HashPart],
    ) -> Vec<Option<Positive>> {
        let mut found = vec![None; parts.len()];
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return found;
        }
        for file in &self.files {
            let open: Vec<_> = (0..parts.len()).filter(|&i| found[i].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let wanted: Vec<_> = open.iter().map(|&i| &parts[i]).collect();
            let answers = read(file, url, dir, &wanted).unwrap_or_default();
            for (i, answer) in open.into_iter().zip(answers) {
                found[i] = answer;
            }
        }
        found
    }

    /// Hash parts of paths that Nix remembers of the cache at `url` and still believes by its own defaults,
    /// the newest first, up to `most` of a file; with each, whether it is said to be there. `now` is in
    /// milliseconds since 1970.
    pub fn sample(&self, url: &str, dir: &StoreDir, now: i64, most: u32) -> Vec<(String, bool)> {
        let files = self.files.iter();
        files
            .filter_map(|file| {
                let connection = open(file, &Trace::of(file)?).ok()?;
                some_of(&connection, url, dir, now / 1000, most).ok()
            })
            .flatten()
            .collect()
    }
}

fn some_of(
    connection: &Connection,
    url: &str,
    dir: &StoreDir,
    now: i64,
    most: u32,
) -> rusqlite::Result<Vec<(String, bool)>> {
    let mut statement = connection.prepare(
        "select hashPart, present from NARs, BinaryCaches where cache = id and BinaryCaches.url = ?1 \
         and storeDir = ?2 and NARs.timestamp > ?3 - case present when 1 then ?4 else ?5 end \
         order by NARs.timestamp desc limit ?6",
    )?;
    let values = params![url, dir.as_str(), now, POSITIVE, NEGATIVE, most];
    let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// `None` if the file is not there, or cannot be read now, or is something else.
fn read(
    file: &Path,
    url: &str,
    dir: &StoreDir,
    parts: &[&HashPart],
) -> Option<Vec<Option<Positive>>> {
    let before = Trace::of(file)?;
    let connection = open(file, &before).ok()?;
    let found = look(&connection, url, dir, parts).ok()?;
    drop(connection);
    let undisturbed = before.log || Trace::of(file)? == before;
    undisturbed.then_some(found)
}

/// Whether somebody has written: any writer makes a log before it touches the file.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    log: bool,
    changed: SystemTime,
    bytes: u64,
}

impl Trace {
    fn of(file: &Path) -> Option<Self> {
        let metadata = fs::metadata(file).ok()?;
        let mut log = file.as_os_str().to_owned();
        log.push("-wal");
        Some(Trace {
            log: fs::symlink_metadata(log).is_ok(),
            changed: metadata.modified().ok()?,
            bytes: metadata.len(),
        })
    }
}

fn open(file: &Path, trace: &Trace) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let path = file.to_str().ok_or(rusqlite::Error::InvalidQuery)?;
    let path = utf8_percent_encode(path, NOT_IN_URIS);
    let how = if trace.log {
        "mode=ro&readonly_shm=1"
    } else {
        "immutable=1"
    };
    let connection = Connection::open_with_flags(format!("file:{path}?{how}"), flags)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

fn look(
    connection: &Connection,
    url: &str,
    dir: &StoreDir,
    parts: &[&HashPart],
) -> rusqlite::Result<Vec<Option<Positive>>> {
    let tx = connection.unchecked_transaction()?;
    let sql = "select id from BinaryCaches where url = ? and storeDir = ?";
    let cache: Option<i64> = tx
        .query_row(sql, [url, dir.as_str()], |row| row.get(0))
        .optional()?;
    let Some(cache) = cache else {
        return Ok(vec![None; parts.len()]);
    };
    let mut statement = tx.prepare(
        "select timestamp, namePart, url, compression, fileHash, fileSize, narHash, narSize, \
         refs, deriver, sigs, ca from NARs where cache = ? and hashPart = ? and present = 1",
    )?;
    let mut one = |part: &HashPart| {
        let mut rows = statement.query(params![cache, part.as_str()])?;
        match rows.next()? {
            Some(row) => positive(part, dir, row),
            None => Ok(None),
        }
    };
    parts.iter().map(|part| one(part)).collect()
}

/// The row as a narinfo; `None` if it is none.
fn positive(part: &HashPart, dir: &StoreDir, row: &Row<'_>) -> rusqlite::Result<Option<Positive>> {
    let at: i64 = row.get::<_, i64>(0)?.saturating_mul(1000);
    let text = |column| row.get::<_, Option<String>>(column);
    // What is negative is no size, and then this is no narinfo.
    let number = |column| row.get::<_, Option<i64>>(column);
    let name = text(1)?.unwrap_or_default();
    let mut fields = vec![("StorePath", format!("{dir}/{}-{name}", part.as_str()))];
    fields.extend(text(2)?.map(|url| ("URL", url)));
    fields.extend(text(3)?.map(|name| ("Compression", name)));
    fields.extend(filled(text(4)?).map(|hash| ("FileHash", hash)));
    let size = number(5)?.filter(|&size| size != 0);
    fields.extend(size.map(|size| ("FileSize", size.to_string())));
    fields.extend(text(6)?.map(|hash| ("NarHash", hash)));
    fields.extend(number(7)?.map(|size| ("NarSize", size.to_string())));
    fields.push(("References", text(8)?.unwrap_or_default()));
    fields.extend(filled(text(9)?).map(|deriver| ("Deriver", deriver)));
    let signatures = text(10)?.unwrap_or_default();
    let signatures = signatures.split_whitespace();
    fields.extend(signatures.map(|signature| ("Sig", signature.to_owned())));
    fields.extend(filled(text(11)?).map(|ca| ("CA", ca)));
    Ok(print(&fields)
        .filter(|text| is_about(dir, part, text))
        .map(|text| (at, text.into())))
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// A value with a line break would become two fields.
fn print(fields: &[(&str, String)]) -> Option<String> {
    let mut text = String::with_capacity(1024);
    for (key, value) in fields {
        if value.contains('\n') {
            return None;
        }
        let _ = writeln!(text, "{key}: {value}");
    }
    Some(text)
}

fn is_about(dir: &StoreDir, part: &HashPart, text: &str) -> bool {
    NarInfo::parse(dir, text).is_ok_and(|narinfo| narinfo.expect(part).is_ok())
}

/// The newest form first. They are alike in what is read here.
const NAMES: [&str; 3] = [
    "binary-cache-v8.sqlite",
    "binary-cache-v7.sqlite",
    "binary-cache-v6.sqlite",
];

/// Seconds for which Nix believes that a cache has a path, and that it lacks one.
const POSITIVE: i64 = 30 * 24 * 3600;
const NEGATIVE: i64 = 3600;
/// Whoever holds Nix's file for longer has it for himself.
const PATIENCE: Duration = Duration::from_millis(100);

const NOT_IN_URIS: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'%').add(b'?');
