//! What looking after a store writes.

use super::Database;
use rusqlite::{OptionalExtension, Transaction, params};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};
use tk_narinfo::PathInfo;
use tk_path::{NarHash, OutputName, StorePath};
use tk_store::{Error, Result};

impl Database {
    /// Makes `path` invalid, unless another valid path refers to it. Says whether it is invalid now.
    pub fn invalidate(&self, path: &StorePath) -> Result<bool> {
        self.write(|transaction| {
            let Some(id) = self.written(self.id_of(transaction, path))? else {
                return Ok(true);
            };
            let delete = || {
                let sql =
                    "select 1 from Refs where reference = ? and referrer != reference limit 1";
                let mut referrer = transaction.prepare_cached(sql)?;
                if referrer.query_row([id], |_| Ok(())).optional()?.is_some() {
                    return Ok(false);
                }
                let sql = "delete from ValidPaths where id = ?";
                transaction.prepare_cached(sql)?.execute([id])?;
                Ok(true)
            };
            self.written(delete())
        })
    }

    /// Completes what old versions of Nix did not write.
    pub fn set_content(&self, path: &StorePath, hash: &NarHash, size: u64) -> Result<()> {
        self.write(|transaction| {
            let update = || {
                let sql = "update ValidPaths set hash = ?, narSize = ? where path = ?";
                let hash = format!("sha256:{}", hash.hex());
                let values = params![hash, size as i64, self.dir.path(path)];
                transaction.prepare_cached(sql)?.execute(values)
            };
            self.written(update()).map(drop)
        })
    }

    /// Registers `records`, in any order, all or none; how many are new, and how many are registered already.
    /// Those stay as they are. Memory grows with the number of references, not with the text.
    ///
    /// # Errors
    /// Also when a path is registered with another hash, refers to what is not there, or to itself in a
    /// circle.
    pub fn load(
        &self,
        records: &mut dyn Iterator<Item = Result<PathInfo>>,
        source: &dyn LoadedContent,
    ) -> Result<(u64, u64)> {
        let mut begun = false;
        self.write(|transaction| {
            if std::mem::replace(&mut begun, true) {
                // The records are gone.
                let busy = io::Error::from(io::ErrorKind::ResourceBusy);
                return Err(Error::io("registering what was read", busy));
            }
            self.load_in(transaction, records, source)
        })
    }

    fn load_in(
        &self,
        transaction: &Transaction,
        records: &mut dyn Iterator<Item = Result<PathInfo>>,
        source: &dyn LoadedContent,
    ) -> Result<(u64, u64)> {
        let (mut new, mut kept) = (0, 0);
        let mut derivations = BTreeMap::new();
        self.written(transaction.execute_batch(BEGIN_LOAD))?;
        for info in records {
            let info = info?;
            if self.is_registered(transaction, &info)? {
                kept += 1;
                continue;
            }
            if i64::try_from(info.nar_size).is_err() {
                let (path, size) = (self.dir.path(&info.path), info.nar_size);
                return Err(Error::invalid(format!("{path}: {size} is too large")));
            }
            source.vouch(&info)?;
            let id = self.written(self.write_row(transaction, &info))?;
            for reference in &info.references {
                let insert = || {
                    let sql = "insert into temp.LoadedRefs (referrer, reference) values (?, ?)";
                    let values = params![id, self.dir.path(reference)];
                    transaction.prepare_cached(sql)?.execute(values)
                };
                self.written(insert())?;
            }
            if info.path.is_derivation() {
                derivations.insert(info.path, id);
            }
            new += 1;
        }
        self.link_loaded(transaction)?;
        let group: BTreeSet<_> = derivations.keys().collect();
        for (path, id) in &derivations {
            for (name, output) in source.outputs(path, &group)? {
                self.written(self.write_output(transaction, *id, &name, &output))?;
            }
        }
        self.written(transaction.execute_batch("drop table temp.LoadedRefs"))?;
        Ok((new, kept))
    }

    /// Closes the database, with all that was written in the one file.
    pub fn close_whole(self) -> Result<()> {
        // Whoever has it open is in the way.
        self.readers.lock().idle.clear();
        if let Some(writer) = &self.writer {
            let writer = writer.lock().unwrap_or_else(|e| e.into_inner());
            let one_file = || {
                writer
                    .0
                    .pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()))
            };
            self.written(one_file())?;
        }
        Ok(())
    }

    /// Whether there is a row already, which must be of the same content.
    fn is_registered(&self, transaction: &Transaction, info: &PathInfo) -> Result<bool> {
        let known = self.info_from(transaction, &info.path, &mut Default::default())?;
        let Some(known) = known else { return Ok(false) };
        if known.nar_hash == info.nar_hash {
            return Ok(true);
        }
        Err(Error::Mismatch {
            what: "registered NAR hash",
            path: info.path.clone(),
            from: self.store.clone(),
            expected: info.nar_hash.to_string(),
            actual: known.nar_hash.to_string(),
        })
    }

    /// Makes references of what was loaded, once all rows are there.
    fn link_loaded(&self, transaction: &Transaction) -> Result<()> {
        let absent = || {
            let sql = "select v.path, l.reference from temp.LoadedRefs l \
                       join ValidPaths v on v.id = l.referrer \
                       where l.reference not in (select path from ValidPaths) limit 1";
            let pair =
                |row: &rusqlite::Row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
            transaction.query_row(sql, [], pair).optional()
        };
        if let Some((path, reference)) = self.written(absent())? {
            return Err(Error::MissingReference {
                path: self.parse(&path, "a path")?,
                reference: self.parse(&reference, "a reference")?,
                store: self.store.clone(),
            });
        }
        let link = || {
            transaction.execute_batch(LINK_LOADED)?;
            // What was there before refers to nothing that is new.
            let sql = "select r.referrer, r.reference from Refs r \
                       join (select distinct referrer from temp.LoadedRefs) l on r.referrer = l.referrer \
                       where r.referrer != r.reference";
            let mut statement = transaction.prepare(sql)?;
            let pair = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?));
            statement.query_map([], pair)?.collect()
        };
        let edges: Vec<(i64, i64)> = self.written(link())?;
        let Some(row) = row_in_circle(edges) else {
            return Ok(());
        };
        let sql = "select path from ValidPaths where id = ?";
        let path: String = self.written(transaction.query_row(sql, [row], |row| row.get(0)))?;
        Err(Error::invalid(format!(
            "{path} refers to itself through others: nothing could ever delete it"
        )))
    }
}

/// What is known of the content of paths that are loaded.
pub(crate) trait LoadedContent {
    /// An error if the content of `info` may not become valid.
    fn vouch(&self, info: &PathInfo) -> Result<()>;

    /// The known outputs of the derivation `path`, which may need others of `group`.
    fn outputs(
        &self,
        path: &StorePath,
        group: &BTreeSet<&StorePath>,
    ) -> Result<BTreeMap<OutputName, StorePath>>;
}

/// A row that refers to itself through others, given which refers to which.
fn row_in_circle(mut edges: Vec<(i64, i64)>) -> Option<i64> {
    edges.sort_unstable();
    let mut referrers_left = BTreeMap::<i64, usize>::new();
    for (referrer, reference) in &edges {
        referrers_left.entry(*referrer).or_default();
        *referrers_left.entry(*reference).or_default() += 1;
    }
    let free = referrers_left.iter().filter(|(_, left)| **left == 0);
    let mut free: Vec<_> = free.map(|(row, _)| *row).collect();
    while let Some(row) = free.pop() {
        referrers_left.remove(&row);
        let first = edges.partition_point(|(referrer, _)| *referrer < row);
        let own = edges[first..]
            .iter()
            .take_while(|(referrer, _)| *referrer == row);
        for (_, reference) in own {
            if let Some(left) = referrers_left.get_mut(reference) {
                *left -= 1;
                if *left == 0 {
                    free.push(*reference);
                }
            }
        }
    }
    referrers_left.into_keys().next()
}

/// References by name, until all rows are there. SQLite keeps what is large in a file.
const BEGIN_LOAD: &str = "\
drop table if exists temp.LoadedRefs;
create temp table LoadedRefs (referrer integer not null, reference text not null);";
const LINK_LOADED: &str = "\
insert or ignore into Refs (referrer, reference)
    select l.referrer, v.id from temp.LoadedRefs l join ValidPaths v on v.path = l.reference;";
