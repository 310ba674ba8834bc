//! How two derivations differ, in words and as JSON.

use crate::{CommandContext, ExitStatus, ui};
use anyhow::Result;
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};
use std::collections::BTreeSet;
use tk_path::{StoreDir, StorePath};
use tk_store::{DerivationChange, DerivationDiff, Store, diff_derivations};

/// Prints how the derivations `pair` differ, and those that they are built from.
pub async fn tell(
    cx: &CommandContext,
    store: &dyn Store,
    pair: [StorePath; 2],
    as_json: bool,
) -> Result<ExitStatus> {
    let asked = diff_derivations(store, pair);
    let diffs = cx.ui.asking("two derivations", asked).await?;
    let words = DiffWords { dir: store.dir() };
    if as_json {
        let pairs = diffs.iter().map(|diff| words.json(diff));
        ui::out(Value::from_iter(pairs))?;
    } else {
        for (i, diff) in diffs.iter().enumerate() {
            if i > 0 {
                ui::out("")?;
            }
            ui::out_all(words.lines(diff))?;
        }
    }
    Ok(if diffs.is_empty() {
        ExitStatus::Yes
    } else {
        ExitStatus::No
    })
}

struct DiffWords<'a> {
    dir: &'a StoreDir,
}

impl DiffWords<'_> {
    fn lines(&self, diff: &DerivationDiff) -> Vec<String> {
        let [before, after] = diff.pair.each_ref().map(|path| self.dir.path(path));
        let mut lines = vec![format!("- {before}"), format!("+ {after}")];
        for change in &diff.changes {
            lines.push(format!("  {}", self.heading(change)));
            for line in self.details(change) {
                lines.push(format!("    {line}"));
            }
        }
        lines
    }

    fn heading(&self, change: &DerivationChange) -> String {
        match change {
            DerivationChange::Input([(before, _), (after, _)]) if before == after => {
                format!("other outputs of the input {} are used", before.name())
            }
            DerivationChange::Input([(before, _), _]) => {
                format!("the input {} differs", before.name())
            }
            DerivationChange::Inputs(name, _) => format!("the inputs named {name} differ"),
            DerivationChange::Sources(name, _) => format!("the source {name} differs"),
            DerivationChange::Platform(_) => "the platform differs".into(),
            DerivationChange::Builder(_) => "the builder differs".into(),
            DerivationChange::Arguments(_) => "the arguments differ".into(),
            DerivationChange::Variable(name, _) => {
                format!("the variable {} differs", String::from_utf8_lossy(name))
            }
            DerivationChange::Output(name, _) => format!("the output {name} differs"),
        }
    }

    /// Lines that begin with `-`, `+` or a blank.
    fn details(&self, change: &DerivationChange) -> Vec<String> {
        match change {
            DerivationChange::Input([(before, from), (after, to)]) => {
                let mut lines = Vec::new();
                if before != after {
                    lines.push(format!("- {}", self.dir.path(before)));
                    lines.push(format!("+ {}", self.dir.path(after)));
                }
                if from != to {
                    let [from, to] = [from, to].map(|names| Vec::from_iter(names.clone()));
                    lines.push(format!("- outputs: {}", from.join(", ")));
                    lines.push(format!("+ outputs: {}", to.join(", ")));
                }
                lines
            }
            DerivationChange::Inputs(_, sets) | DerivationChange::Sources(_, sets) => {
                let sides = sets.iter().zip(["-", "+"]);
                let lines = sides.flat_map(|(set, sign)| {
                    let paths = set.iter().map(|path| self.dir.path(path));
                    paths.map(move |path| format!("{sign} {path}"))
                });
                lines.collect()
            }
            DerivationChange::Platform(texts) | DerivationChange::Builder(texts) => {
                line_changes(&texts.each_ref().map(|text| lossy(text)))
            }
            DerivationChange::Arguments(lists) => {
                let texts = lists.each_ref().map(|list| {
                    let lines = list.iter().map(|arg| lossy(arg));
                    lines.collect::<Vec<_>>().join("\n")
                });
                line_changes(&texts)
            }
            DerivationChange::Variable(_, values) => both_or_one(values, |value| lossy(value)),
            DerivationChange::Output(_, outputs) => both_or_one(outputs, |texts| texts.join(" ")),
        }
    }

    fn json(&self, diff: &DerivationDiff) -> Value {
        let [before, after] = diff.pair.each_ref().map(|path| self.dir.path(path));
        let changes: Vec<_> = diff
            .changes
            .iter()
            .map(|change| self.change(change))
            .collect();
        json!({ "before": before, "after": after, "changes": changes })
    }

    fn change(&self, change: &DerivationChange) -> Value {
        let texts = |kind: &str, texts: &[Vec<u8>; 2]| json!({ "kind": kind, "before": lossy(&texts[0]), "after": lossy(&texts[1]) });
        let sets = |kind: &str, name: &str, sets: &[BTreeSet<StorePath>; 2]| {
            let [before, after] = sets.each_ref().map(|set| {
                let paths = set.iter().map(|path| self.dir.path(path));
                paths.collect::<Vec<_>>()
            });
            json!({ "kind": kind, "name": name, "before": before, "after": after })
        };
        match change {
            DerivationChange::Input(both) => {
                let [before, after] = both.each_ref().map(
                    |(path, outputs)| json!({ "path": self.dir.path(path), "outputs": outputs }),
                );
                json!({ "kind": "input", "name": both[0].0.name(), "before": before, "after": after })
            }
            DerivationChange::Inputs(name, both) => sets("inputs", name, both),
            DerivationChange::Sources(name, both) => sets("sources", name, both),
            DerivationChange::Platform(both) => texts("system", both),
            DerivationChange::Builder(both) => texts("builder", both),
            DerivationChange::Arguments(both) => {
                let [before, after] = both.each_ref().map(|args| {
                    let args = args.iter().map(|arg| lossy(arg));
                    args.collect::<Vec<_>>()
                });
                json!({ "kind": "args", "before": before, "after": after })
            }
            DerivationChange::Variable(name, both) => {
                let [before, after] = both
                    .each_ref()
                    .map(|value| value.as_ref().map(|value| lossy(value)));
                json!({ "kind": "env", "name": lossy(name), "before": before, "after": after })
            }
            DerivationChange::Output(name, [before, after]) => {
                json!({ "kind": "output", "name": name, "before": before, "after": after })
            }
        }
    }
}

/// Lines of what both have; where one has nothing, of what the other has.
fn both_or_one<T>(sides: &[Option<T>; 2], shown: impl Fn(&T) -> String) -> Vec<String> {
    let one = |sign: &str, text: String| {
        let lines = text.split('\n').map(|line| format!("{sign} {line}"));
        lines.collect()
    };
    match sides {
        [Some(before), Some(after)] => line_changes(&[shown(before), shown(after)]),
        [Some(before), None] => one("-", shown(before)),
        [None, Some(after)] => one("+", shown(after)),
        [None, None] => Vec::new(),
    }
}

/// The lines that differ, with one around them.
fn line_changes(texts: &[String; 2]) -> Vec<String> {
    let diff = TextDiff::from_lines(&texts[0], &texts[1]);
    let groups = diff.grouped_ops(1);
    let changes = groups.iter().flatten().flat_map(|op| diff.iter_changes(op));
    let line = |change: similar::Change<&str>| {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        format!("{sign} {}", change.value().trim_end_matches('\n'))
    };
    changes.map(line).collect()
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}
