//! Realisations in the database, where it has tables for them.
//!
//! | Table | Columns |
//! |---|---|
//! | BuildTraceV3 (Nix from 2.35) | drvPath (base name), outputName, outputPath (whole path), signatures |
//! | Realisations (up to 2.34) | id, drvPath (`sha256:<hex>`), outputName, outputPath (number of a row of ValidPaths), signatures |
//! | RealisationsRefs (up to 2.34) | referrer, realisationReference: rows of Realisations |
//!
//! Signatures are joined by blanks. Nix makes the tables when `ca-derivations` is on, and nobody else does.

use super::Database;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::{
    Signature,
    realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy},
};
use tk_path::StorePath;
use tk_store::{
    Error, Result,
    realisations::{merge, merge_legacy},
};

impl Database {
    /// What the output `id` turned out to be.
    pub fn realisation(&self, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let reader = self.readers.take()?;
        self.require_table(&reader, TRACE, "the realisations of Nix from 2.35 on")?;
        self.trace(&reader, id)
    }

    /// Keeps `realisation`, see [`tk_store::Realisations::register`].
    pub fn register_realisation(&self, new: &Realisation) -> Result<()> {
        self.write(|transaction| {
            self.require_table(transaction, TRACE, "the realisations of Nix from 2.35 on")?;
            let known = self.trace(transaction, &new.id)?;
            let id = new.id.clone();
            let known = known.map(|value| Realisation { id, value });
            let merged = merge(&self.store, known.as_ref(), new)?;
            let (drv, output) = (new.id.drv.as_str(), new.id.output.as_str());
            let sigs = joined(&merged.value.signatures);
            let path = self.dir.path(&merged.value.out_path);
            let write = || match known {
                Some(_) => {
                    let sql = "update BuildTraceV3 set signatures = ? \
                               where drvPath = ? and outputName = ?";
                    transaction.execute(sql, params![sigs, drv, output])
                }
                None => {
                    let sql = "insert into BuildTraceV3 (drvPath, outputName, outputPath, signatures) \
                               values (?, ?, ?, ?)";
                    transaction.execute(sql, params![drv, output, path, sigs])
                }
            };
            self.written(write()).map(drop)
        })
    }

    /// The same in the older form.
    pub fn legacy_realisation(
        &self,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<legacy::LegacyRealisation>> {
        let reader = self.readers.take()?;
        self.require_table(&reader, LEGACY, "the realisations of Nix up to 2.34")?;
        Ok(self.legacy(&reader, id)?.map(|(_, found)| found))
    }

    /// The same in the older form.
    pub fn register_legacy_realisation(&self, new: &legacy::LegacyRealisation) -> Result<()> {
        self.write(|transaction| {
            self.require_table(transaction, LEGACY, "the realisations of Nix up to 2.34")?;
            let known = self.legacy(transaction, &new.id)?;
            let realisation = known.as_ref().map(|(_, realisation)| realisation);
            let merged = merge_legacy(&self.store, realisation, new)?;
            let sigs = joined(&merged.signatures);
            if let Some((row, _)) = known {
                let sql = "update Realisations set signatures = ? where id = ?";
                return self
                    .written(transaction.execute(sql, params![sigs, row]))
                    .map(drop);
            }
            let row = self.insert_legacy(transaction, new, sigs)?;
            for (id, path) in &new.dependent {
                self.insert_dependent(transaction, row, id, path)?;
            }
            Ok(())
        })
    }

    fn trace(&self, connection: &Connection, id: &DrvOutput) -> Result<Option<UnkeyedRealisation>> {
        let row: Option<(String, Option<String>)> = self.read(|| {
            let sql = "select outputPath, signatures from BuildTraceV3 \
                       where drvPath = ? and outputName = ?";
            let mut statement = connection.prepare_cached(sql)?;
            let values = [id.drv.as_str(), id.output.as_str()];
            let pair = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?));
            statement.query_row(values, pair).optional()
        })?;
        let Some((path, sigs)) = row else {
            return Ok(None);
        };
        let what = format!("the realisation of {}^{}", id.drv, id.output);
        Ok(Some(UnkeyedRealisation {
            out_path: self.parse(&path, &what)?,
            signatures: Self::split(sigs),
        }))
    }

    /// The number of its row, and the realisation.
    fn legacy(
        &self,
        connection: &Connection,
        id: &legacy::LegacyDrvOutput,
    ) -> Result<Option<(i64, legacy::LegacyRealisation)>> {
        let row: Option<(i64, String, Option<String>)> = self.read(|| {
            let sql = "select r.id, v.path, r.signatures from Realisations r \
                       join ValidPaths v on v.id = r.outputPath \
                       where r.drvPath = ? and r.outputName = ?";
            let mut statement = connection.prepare_cached(sql)?;
            let values = [hash(id), id.output.to_string()];
            let three = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            statement.query_row(values, three).optional()
        })?;
        let Some((row, path, sigs)) = row else {
            return Ok(None);
        };
        let what = format!("the realisation of {id}");
        let realisation = legacy::LegacyRealisation {
            signatures: Self::split(sigs),
            dependent: self.dependent(connection, row, &what)?,
            ..legacy::LegacyRealisation::new(id.clone(), self.parse(&path, &what)?)
        };
        Ok(Some((row, realisation)))
    }

    fn dependent(
        &self,
        connection: &Connection,
        row: i64,
        what: &str,
    ) -> Result<BTreeMap<legacy::LegacyDrvOutput, StorePath>> {
        let rows: Vec<(String, String, String)> = self.read(|| {
            let sql = "select r.drvPath, r.outputName, v.path from RealisationsRefs f \
                       join Realisations r on r.id = f.realisationReference \
                       join ValidPaths v on v.id = r.outputPath where f.referrer = ?";
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([row], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
            rows.collect()
        })?;
        let parse = |(hash, output, path): (String, String, String)| {
            let id = legacy::LegacyDrvOutput::parse(&format!("{hash}!{output}"));
            let id = id.map_err(|e| Error::malformed(format!("{what} in {}", self.file()), e))?;
            Ok((id, self.parse(&path, what)?))
        };
        rows.into_iter().map(parse).collect()
    }

    fn insert_legacy(
        &self,
        transaction: &Transaction,
        new: &legacy::LegacyRealisation,
        sigs: String,
    ) -> Result<i64> {
        let Some(path) = self.written(self.id_of(transaction, &new.out_path))? else {
            return Err(Error::NotFound {
                path: new.out_path.clone(),
                store: self.store.clone(),
            });
        };
        let insert = || {
            let sql = "insert into Realisations (drvPath, outputName, outputPath, signatures) \
                       values (?, ?, ?, ?)";
            let values = params![hash(&new.id), new.id.output.as_str(), path, sigs];
            transaction.prepare_cached(sql)?.insert(values)
        };
        self.written(insert())
    }

    fn insert_dependent(
        &self,
        transaction: &Transaction,
        row: i64,
        id: &legacy::LegacyDrvOutput,
        path: &StorePath,
    ) -> Result<()> {
        let needed = match self.legacy(transaction, id)? {
            Some((needed, known)) if known.out_path == *path => needed,
            _ => {
                let words = format!("{id} is not known to be {path}, which the realisation needs");
                let who = self.store.clone();
                return Err(Error::Refused { who, words });
            }
        };
        let sql = "insert into RealisationsRefs (referrer, realisationReference) values (?, ?)";
        self.written(transaction.execute(sql, [row, needed]))
            .map(drop)
    }

    fn require_table(&self, connection: &Connection, table: &str, what: &str) -> Result<()> {
        let there = self.read(|| {
            let sql = "select 1 from sqlite_master where type = 'table' and name = ?";
            let mut statement = connection.prepare_cached(sql)?;
            statement.exists([table])
        })?;
        if there {
            Ok(())
        } else {
            Err(Error::Unsupported {
                store: self.store.clone(),
                what: format!("has no table for {what}"),
            })
        }
    }

    /// What is no signature is passed over: Nix takes any text for one.
    fn split(sigs: Option<String>) -> BTreeSet<Signature> {
        let sigs = sigs.unwrap_or_default();
        sigs.split(' ').flat_map(str::parse).collect()
    }
}

/// The table's name of what an output is an output of.
fn hash(id: &legacy::LegacyDrvOutput) -> String {
    id.hash.to_text(tk_path::Encoding::Base16)
}

/// Empty, not NULL, without signatures, as Nix writes it.
fn joined(signatures: &BTreeSet<Signature>) -> String {
    let signatures: Vec<_> = signatures.iter().map(ToString::to_string).collect();
    signatures.join(" ")
}

const TRACE: &str = "BuildTraceV3";
const LEGACY: &str = "Realisations";
