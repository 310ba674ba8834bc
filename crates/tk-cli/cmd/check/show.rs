//! What a check prints.

use super::CheckView;
use crate::{CommandContext, interrupt, ui};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{self, IsTerminal};
use tk_cache::checker::{CacheAnswer, CheckedPath, Checker, SignatureTrust, Summary};
use tk_path::StoreDir;

/// Prints the answers as they come; the table of a terminal when all are there.
pub struct CheckPrinter {
    what: CheckView,
    dir: StoreDir,
    /// The URIs of the caches.
    caches: Vec<String>,
    /// The lines of the table.
    table: Option<Vec<Vec<String>>>,
    printed: usize,
    count: Option<ProgressBar>,
}

impl CheckPrinter {
    pub fn new(cx: &CommandContext, checker: &Checker, what: CheckView) -> Self {
        let caches = checker.caches();
        let dir = caches.first().map(|cache| cache.store_dir().clone());
        let table = what == CheckView::All && io::stdout().is_terminal();
        let count = cx.ui.draws().then(counter);
        if let Some(count) = &count {
            cx.ui.attach(count);
        }
        CheckPrinter {
            what,
            dir: dir.unwrap_or_default(),
            caches: caches.iter().map(ToString::to_string).collect(),
            table: table.then(Vec::new),
            printed: 0,
            count,
        }
    }

    /// Prints one path.
    pub fn path(&mut self, checked: &CheckedPath) -> Result<()> {
        if let Some(count) = &self.count {
            count.inc(1);
        }
        let line = match self.what {
            CheckView::Missing if !checked.is_missing() => return Ok(()),
            CheckView::Present if !checked.is_trusted() => return Ok(()),
            CheckView::Missing | CheckView::Present => self.dir.path(&checked.path),
            CheckView::Json => {
                let head = if self.printed == 0 {
                    "{\"paths\":["
                } else {
                    ","
                };
                format!("{head}{}", self.json(checked))
            }
            CheckView::All => {
                let row = self.row(checked);
                match &mut self.table {
                    Some(table) => {
                        table.push(row);
                        return Ok(());
                    }
                    None => row.join("\t"),
                }
            }
        };
        self.printed += 1;
        self.out(line)
    }

    /// Prints what comes behind all.
    pub fn end(&mut self, summary: &Summary) -> Result<()> {
        if let Some(count) = self.count.take() {
            count.finish_and_clear();
        }
        if self.what == CheckView::Json {
            let head = if self.printed == 0 {
                "{\"paths\":["
            } else {
                ""
            };
            return self.out(format!("{head}],\"summary\":{}}}", self.json_sum(summary)));
        }
        for line in self.table.take().map(|t| self.align(t)).unwrap_or_default() {
            self.out(line)?;
        }
        Ok(())
    }

    fn out(&self, line: String) -> Result<()> {
        Ok(match &self.count {
            Some(count) => count.suspend(|| ui::out(line)),
            None => ui::out(line),
        }?)
    }

    /// Path, a word for each cache, sizes; the sizes for people in a table.
    fn row(&self, checked: &CheckedPath) -> Vec<String> {
        let mut row = vec![self.dir.path(&checked.path)];
        row.extend(checked.answers.iter().map(|answer| word(answer).to_owned()));
        let first = checked.first().map(|(_, narinfo, _)| narinfo);
        let sizes = first.map(|narinfo| {
            let nar_size = Some(narinfo.info.nar_size).filter(|&size| size != 0);
            [nar_size, narinfo.file_size].map(|size| match size {
                None => "unknown".to_owned(),
                Some(size) if self.table.is_some() => ui::size(size),
                Some(size) => size.to_string(),
            })
        });
        row.extend(sizes.unwrap_or_else(|| ["-", "-"].map(str::to_owned)));
        row
    }

    /// The rows by path, under a head that names the caches.
    fn align(&self, mut rows: Vec<Vec<String>>) -> Vec<String> {
        rows.sort();
        let mut head = vec!["path".to_owned()];
        head.extend(self.caches.iter().cloned());
        head.extend(["NAR", "download"].map(str::to_owned));
        rows.insert(0, head);
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
        let sizes = widths.len() - 2;
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(i, (cell, &width))| {
                if i >= sizes {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:width$}")
                }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect()
    }

    fn json(&self, checked: &CheckedPath) -> Value {
        let caches = self.caches.iter().zip(&checked.answers);
        let caches: Map<_, _> = caches
            .map(|(uri, answer)| (uri.clone(), said(answer)))
            .collect();
        let status = match (checked.is_present(), checked.is_missing()) {
            (true, _) => "present",
            (_, true) => "absent",
            _ => "notAsked",
        };
        json!({
            "path": self.dir.path(&checked.path),
            "status": status,
            "followed": checked.followed,
            "caches": caches,
        })
    }

    fn json_sum(&self, summary: &Summary) -> Value {
        let caches = self.caches.iter().enumerate().map(|(i, uri)| {
            let of = summary.caches.get(i).cloned().unwrap_or_default();
            let value = json!({
                "present": of.present,
                "absent": of.absent,
                "notAsked": of.not_asked,
                "untrusted": of.untrusted,
                "narSize": of.nar_size,
                "downloadSize": of.download_size,
                "unknownSize": of.unknown_size,
            });
            (uri.clone(), value)
        });
        json!({
            "paths": summary.paths,
            "present": summary.present,
            "absent": summary.missing,
            "notAsked": summary.unknown,
            "untrusted": summary.untrusted,
            "notFollowed": summary.not_followed,
            "narSize": summary.nar_size,
            "downloadSize": summary.download_size,
            "unknownSize": summary.unknown_size,
            "caches": caches.collect::<Map<_, _>>(),
        })
    }
}

fn word(answer: &CacheAnswer) -> &'static str {
    match answer {
        CacheAnswer::Present(_, trust) if trust.is_enough() => "present",
        CacheAnswer::Present(..) => "untrusted",
        CacheAnswer::Absent => "absent",
        CacheAnswer::NotAsked(_) => "error",
    }
}

/// All keys are there for each status, so that nobody has to look whether they are.
fn said(answer: &CacheAnswer) -> Value {
    let nothing = |status, error: Option<String>| {
        json!({
            "status": status, "narSize": null, "downloadSize": null, "url": null,
            "signatures": [], "trusted": null, "error": error,
        })
    };
    match answer {
        CacheAnswer::Absent => nothing("absent", None),
        CacheAnswer::NotAsked(error) => nothing("notAsked", Some(error.to_line())),
        CacheAnswer::Present(narinfo, trust) => {
            let signatures = narinfo.info.signatures.iter().map(ToString::to_string);
            json!({
                "status": "present",
                "narSize": narinfo.info.nar_size,
                "downloadSize": narinfo.file_size,
                "url": Some(&narinfo.url).filter(|url| !url.is_empty()),
                "signatures": signatures.collect::<Vec<_>>(),
                "trusted": (*trust != SignatureTrust::NotChecked).then(|| trust.is_enough()),
                "error": distrust(trust),
            })
        }
    }
}

/// Why a path is not trusted, if it is not.
fn distrust(trust: &SignatureTrust) -> Option<String> {
    match trust {
        SignatureTrust::Untrusted(why) => Some(why.to_string()),
        SignatureTrust::NotChecked | SignatureTrust::Trusted { .. } => None,
    }
}

/// The last line, for people.
pub fn sum(summary: &Summary) -> String {
    let fetch = match (summary.unknown_size, summary.present) {
        (0, _) => ui::size(summary.download_size),
        (unknown, present) if unknown == present => "an unknown size".to_owned(),
        (unknown, _) => format!(
            "{} and {unknown} of unknown size",
            ui::size(summary.download_size)
        ),
    };
    let mut line = format!(
        "{} checked: {} there ({}, {fetch} to fetch), {} missing",
        ui::paths(summary.paths),
        summary.present,
        ui::size(summary.nar_size),
        summary.missing
    );
    if summary.untrusted > 0 {
        line.push_str(&format!(", {} not trusted", summary.untrusted));
    }
    if summary.unknown > 0 {
        line.push_str(&format!(", {} could not be asked", summary.unknown));
    }
    line
}

fn counter() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("check {spinner} {pos} paths, {per_sec}");
    let bar = bar.with_style(style.expect("the template is constant"));
    interrupt::clears(&bar);
    bar
}
