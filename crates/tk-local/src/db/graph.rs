//! All paths of the database and what keeps what, as numbers: for whoever looks at all of them at once.

use super::Database;
use rusqlite::Row;
use std::ops::Range;
use tk_path::{HashPart, StorePath};
use tk_store::{Error, Result};

/// Every row of the database as of one moment. A node is the place of a row in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct StoreGraph {
    ids: Vec<i64>,
    names: Vec<Box<str>>,
    /// The nodes in the order of their names.
    by_name: Vec<u32>,
    /// Bytes of each NAR.
    pub nar_sizes: Vec<u64>,
    /// When each was registered, in seconds since 1970.
    pub times: Vec<u64>,
    /// Where the references of each node begin in `references`; one more at the end.
    starts: Vec<u32>,
    references: Vec<u32>,
    /// What is kept beyond references: (keeper, kept), sorted.
    kept: Vec<(u32, u32)>,
}

/// What keeps a path alive beyond what refers to it (Nix's settings of these names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeepRules {
    /// A live derivation keeps its valid outputs (`keep-outputs`).
    pub outputs: bool,
    /// A live output keeps the derivation that is registered as its deriver (`keep-derivations`).
    pub derivations: bool,
}

impl StoreGraph {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The name in the store directory; for a row that names no path, what it says instead.
    pub fn name(&self, node: u32) -> &str {
        &self.names[node as usize]
    }

    pub fn id(&self, node: u32) -> i64 {
        self.ids[node as usize]
    }

    /// The node of a valid path, by its name in the store directory.
    pub fn find(&self, name: &str) -> Option<u32> {
        let found = self
            .by_name
            .binary_search_by(|node| self.name(*node).cmp(name));
        found.ok().map(|at| self.by_name[at])
    }

    /// The nodes whose paths have this hash part.
    pub fn with_hash(&self, part: &HashPart) -> &[u32] {
        let prefix = part.as_str();
        let start = self
            .by_name
            .partition_point(|node| self.name(*node) < prefix);
        let rest = &self.by_name[start..];
        let end = rest.partition_point(|node| self.name(*node).starts_with(prefix));
        &rest[..end]
    }

    /// The rows that name no store path.
    pub fn unreadable(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes()
            .filter(|node| StorePath::parse(self.name(*node)).is_err())
    }

    pub fn nodes(&self) -> Range<u32> {
        0..self.len() as u32
    }

    /// What `node` refers to, but for itself.
    pub fn references(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.references[self.starts[node] as usize..self.starts[node + 1] as usize]
    }

    /// Every pair of one that keeps another, by a reference or by a rule.
    pub fn edges(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let references = |node| self.references(node).iter().map(move |to| (node, *to));
        self.nodes()
            .flat_map(references)
            .chain(self.kept.iter().copied())
    }

    /// Marks `node`, and all that it keeps, in `marks`.
    pub fn mark(&self, node: u32, marks: &mut [bool]) {
        let mut todo = Vec::new();
        let mut visit = |node: u32, todo: &mut Vec<u32>| {
            if !std::mem::replace(&mut marks[node as usize], true) {
                todo.push(node);
            }
        };
        visit(node, &mut todo);
        while let Some(node) = todo.pop() {
            for to in self.references(node) {
                visit(*to, &mut todo);
            }
            let start = self.kept.partition_point(|(keeper, _)| *keeper < node);
            for (_, to) in self.kept[start..]
                .iter()
                .take_while(|(keeper, _)| *keeper == node)
            {
                visit(*to, &mut todo);
            }
        }
    }

    fn node(&self, id: i64) -> Option<u32> {
        self.ids.binary_search(&id).ok().map(|at| at as u32)
    }
}

impl Database {
    /// Reads all rows as of one moment.
    ///
    /// # Errors
    /// Also when a reference has no row: what it keeps could not be known.
    pub fn graph(&self, keep: KeepRules) -> Result<StoreGraph> {
        let reader = self.readers.take()?;
        let snapshot = self.read(|| super::DbSnapshot::begin(&reader))?;
        let mut graph = StoreGraph::default();
        let prefix = format!("{}/", self.dir);
        let sql = "select id, path, narSize, registrationTime from ValidPaths order by id";
        self.each(&reader, sql, |row| {
            let path = row.get_ref(1)?.as_str()?;
            graph.ids.push(row.get(0)?);
            // What names no store path never has the name of one.
            let name = path.strip_prefix(&prefix);
            graph
                .names
                .push(name.map_or_else(|| format!("?{path}").into(), Into::into));
            graph.nar_sizes.push(unsigned(row.get(2)?));
            graph.times.push(unsigned(row.get(3)?));
            Ok(())
        })?;
        graph.by_name = graph.nodes().collect();
        let names = &graph.names;
        let key = |node: &u32| &names[*node as usize];
        graph.by_name.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        let mut foreign = None;
        // The primary key has them in this order.
        let sql = "select referrer, reference from Refs order by referrer";
        self.each(&reader, sql, |row| {
            let (from, to) = (row.get(0)?, row.get(1)?);
            match (graph.node(from), graph.node(to)) {
                (Some(from), Some(to)) if from == to => {}
                (Some(from), Some(to)) => {
                    graph
                        .starts
                        .resize(from as usize + 1, graph.references.len() as u32);
                    graph.references.push(to);
                }
                _ => foreign = Some((from, to)),
            }
            Ok(())
        })?;
        if let Some((from, to)) = foreign {
            let what = format!("the references in {}", self.file());
            let why = format!("row {from} refers to row {to}, and one of them is not there");
            return Err(Error::malformed(what, why));
        }
        graph
            .starts
            .resize(graph.len() + 1, graph.references.len() as u32);
        let kept = self.kept(&reader, &graph, keep, &prefix)?;
        graph.kept = kept;
        drop(snapshot);
        Ok(graph)
    }

    fn kept(
        &self,
        reader: &super::Connection,
        graph: &StoreGraph,
        keep: KeepRules,
        prefix: &str,
    ) -> Result<Vec<(u32, u32)>> {
        let mut kept = Vec::new();
        let valid = |row: &Row| -> rusqlite::Result<_> {
            let path = row.get_ref(1)?.as_str()?;
            let other = path.strip_prefix(prefix).and_then(|name| graph.find(name));
            Ok(graph.node(row.get(0)?).zip(other))
        };
        if keep.derivations {
            let sql = "select id, deriver from ValidPaths where deriver is not null";
            self.each(reader, sql, |row| {
                kept.extend(valid(row)?);
                Ok(())
            })?;
        }
        if keep.outputs {
            let sql = "select drv, path from DerivationOutputs";
            self.each(reader, sql, |row| {
                kept.extend(valid(row)?);
                Ok(())
            })?;
        }
        kept.sort_unstable();
        Ok(kept)
    }

    fn each(
        &self,
        reader: &super::Connection,
        sql: &str,
        mut take: impl FnMut(&Row) -> rusqlite::Result<()>,
    ) -> Result<()> {
        self.read(|| {
            let mut statement = reader.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                take(row)?;
            }
            Ok(())
        })
    }

    /// Deletes the rows `ids`, in this order and in one transaction. Returns those that are left: others
    /// refer to them, or they were gone already.
    pub fn forget(&self, ids: &[i64]) -> Result<Vec<i64>> {
        self.write(|transaction| {
            let mut left = Vec::new();
            for id in ids {
                let delete = || {
                    let sql = "delete from ValidPaths where id = ?";
                    transaction.prepare_cached(sql)?.execute([id])
                };
                match delete() {
                    Ok(1) => {}
                    Ok(_) => left.push(*id),
                    Err(error)
                        if error.sqlite_error_code()
                            == Some(rusqlite::ErrorCode::ConstraintViolation) =>
                    {
                        left.push(*id);
                    }
                    Err(error) => return self.written(Err(error)),
                }
            }
            Ok(left)
        })
    }
}

fn unsigned(number: Option<i64>) -> u64 {
    number
        .and_then(|number| number.try_into().ok())
        .unwrap_or(0)
}
