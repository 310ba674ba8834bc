use crate::{CommandContext, ExitStatus, open::FromArgs, paths::NamedPaths, ui};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{collections::HashMap, ffi::OsString};
use tk_store::{
    Closure, ClosureGraph, Store, closure,
    closure_graph::{DependencyChains, TreeDrawing},
    mentions::{Mention, MentionPlace, find_mentions},
};

/// Tell why a path depends on another one: the chain of references between them
///
/// As nix why-depends. Prints a shortest chain, or with --all every reference on any chain, each path's
/// own only once. The exit status is 1 if the first path does not depend on the second.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct WhyDepends {
    /// The path that depends
    #[arg(value_name = "STOREPATH")]
    path: OsString,
    /// The path that it depends on
    #[arg(value_name = "DEPENDENCY")]
    dependency: OsString,
    #[command(flatten)]
    from: FromArgs,
    /// Print all chains as a tree, the shortest first
    #[arg(long, short)]
    all: bool,
    /// Print in which file each reference stands, with what is around it; the first file, or with
    /// --all every one
    #[arg(long)]
    precise: bool,
    /// Print an object: path, dependency, depends, chain (a shortest one), and references: from, to,
    /// and with --precise found (file, and offset and text, or target)
    #[arg(long)]
    json: bool,
}

impl WhyDepends {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let texts = [self.path.clone(), self.dependency.clone()];
        let opened = self.from.open(cx, &texts).await?;
        let (from, _) = NamedPaths::one(&opened, &self.path).await?;
        let (to, _) = NamedPaths::one(&opened, &self.dependency).await?;
        let store = opened.store();
        let asked = closure(&*store, [from.clone()]);
        let found = cx.ui.asking(from.as_str(), asked).await?;
        if !found.infos.contains_key(&from) {
            return Ok(super::tell_absent(cx, &found, &*store).max(ExitStatus::Failed));
        }
        let graph = ClosureGraph::new(&found);
        let start = graph.node(&from).context("the closure lacks its root")?;
        let chains = graph.node(&to);
        let chains = chains.and_then(|to| DependencyChains::find(&graph, start, to));
        let (from, to) = (store.dir().path(&from), store.dir().path(&to));
        let mut told = TellChains {
            options: &self,
            cx,
            store: &*store,
            graph: &graph,
            references: Vec::new(),
        };
        if let Some(chains) = &chains {
            told.walk(start, chains).await?;
        } else {
            tell_gaps(cx, &found);
            cx.ui.error(format_args!("{from} does not depend on {to}"));
        }
        if self.json {
            let chain = chains.as_ref().map(DependencyChains::shortest);
            let chain = chain.into_iter().flatten();
            let chain: Vec<_> = chain.map(|node| told.name(node)).collect();
            ui::out(json!({
                "path": from,
                "dependency": to,
                "depends": chains.is_some(),
                "chain": chain,
                "references": told.references,
            }))?;
        }
        Ok(match chains {
            Some(_) => ExitStatus::Yes,
            None if found.absent.is_empty() => ExitStatus::No,
            // What is not there may lead on.
            None => ExitStatus::Failed,
        })
    }
}

/// Says what the store lacks, which may refer to anything.
fn tell_gaps(cx: &CommandContext, found: &Closure) {
    for (path, referrer) in &found.absent {
        let who = referrer.iter().map(|path| format!("; {path} refers to it"));
        let who: String = who.collect();
        cx.ui
            .warn(format_args!("what {path} refers to is not known{who}"));
    }
}

/// Prints references as they are found, or keeps them for JSON.
struct TellChains<'a> {
    options: &'a WhyDepends,
    cx: &'a CommandContext,
    store: &'a dyn Store,
    graph: &'a ClosureGraph<'a>,
    references: Vec<Value>,
}

impl TellChains<'_> {
    async fn walk(&mut self, start: u32, chains: &DependencyChains<'_>) -> Result<()> {
        let mut walk = TreeDrawing::new([(start, start)]);
        let mut seen = vec![false; self.graph.len()];
        let mut mentions: HashMap<(u32, u32), Vec<Mention>> = HashMap::new();
        let mut root = true;
        while let Some((parent, node)) = walk.next_node() {
            let found = mentions.remove(&(parent, node));
            if self.options.json && !root {
                self.keep(parent, node, found);
            } else if !self.options.json {
                self.print(&walk, node, found, root)?;
            }
            root = false;
            if std::mem::replace(&mut seen[node as usize], true) {
                continue;
            }
            let mut next = chains.onwards(node);
            if !self.options.all {
                next.truncate(1);
            }
            if self.options.precise && !next.is_empty() {
                let found = self.mentions(node, &next).await?;
                let found = next.iter().map(|to| (node, *to)).zip(found);
                mentions.extend(found);
            }
            walk.enter(next.into_iter().map(|to| (node, to)));
        }
        Ok(())
    }

    /// Where in the files of `node` each of `to` stands.
    async fn mentions(&self, node: u32, to: &[u32]) -> Result<Vec<Vec<Mention>>> {
        let path = self.graph.path(node);
        let parts: Vec<_> = to
            .iter()
            .map(|to| self.graph.path(*to).to_hash_part())
            .collect();
        let limit = if self.options.all { MAX_MENTIONS } else { 1 };
        let name = format!("the NAR of {path} from {}", self.store);
        let nar = self.store.nar(path).await?;
        let work = find_mentions(&name, nar, &parts, limit);
        let found = self.cx.ui.asking(path.as_str(), work).await?;
        for (to, _) in to
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.len() >= MAX_MENTIONS)
        {
            let to = self.graph.path(*to);
            self.cx.ui.warn(format_args!(
                "only the first {MAX_MENTIONS} files of {path} that mention {to} are told"
            ));
        }
        Ok(found)
    }

    fn print(
        &self,
        walk: &TreeDrawing<(u32, u32)>,
        node: u32,
        found: Option<Vec<Mention>>,
        root: bool,
    ) -> Result<()> {
        let name = self.name(node);
        if root || !self.options.precise {
            ui::out(walk.head() + &name)?;
            return Ok(());
        }
        let mut head = walk.head();
        for mention in found.into_iter().flatten() {
            ui::out(format_args!("{head}{mention}"))?;
            head = walk.tail();
        }
        ui::out(format_args!("{}→ {name}", walk.tail()))?;
        Ok(())
    }

    fn keep(&mut self, from: u32, to: u32, found: Option<Vec<Mention>>) {
        let mut reference = json!({ "from": self.name(from), "to": self.name(to) });
        if let Some(found) = found {
            reference["found"] = found.iter().map(mention).collect();
        }
        self.references.push(reference);
    }

    fn name(&self, node: u32) -> String {
        self.store.dir().path(self.graph.path(node))
    }
}

fn mention(mention: &Mention) -> Value {
    let file = String::from_utf8_lossy(&mention.file);
    match &mention.place {
        MentionPlace::Contents { offset, .. } => {
            json!({ "file": file, "offset": offset, "text": mention.text() })
        }
        MentionPlace::Link(target) => {
            json!({ "file": file, "target": String::from_utf8_lossy(target) })
        }
    }
}

/// Files that are told for one reference.
const MAX_MENTIONS: usize = 10_000;

const EXAMPLES: &str = "\
Examples:
  tk-store why-depends /nix/store/…-hello /nix/store/…-hello
  tk-store why-depends --precise ./result /nix/store/…-hello
  tk-store why-depends --all --json ./result /nix/store/…-hello | jq -r '.references[].from'";
