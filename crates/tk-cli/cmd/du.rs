use crate::{
    CommandContext, ExitStatus,
    open::FromArgs,
    paths::{NamedPaths, PathArgs, required},
    ui,
};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::{cmp::Reverse, path::PathBuf};
use tk_store::{
    ClosureGraph, Store, closure,
    closure_graph::{ClosureSizes, TreeDrawing, Treemap},
};

/// Tell what paths and all that they refer to weigh: each path alone, with all that it needs, and what is there only
/// for its sake
///
/// Prints four columns for each path of the closure: the size of its NAR, that of its closure, its added size, and the
/// path; the largest added size first. The added size is what would go if the path alone were dropped: its own
/// size, and that of all that nothing else in the closure needs. Sizes are bytes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, disable_help_flag = true, mut_arg("paths", required))]
pub struct Du {
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    from: FromArgs,
    /// Print a tree in which each path is below the one that keeps it: the nearest path through which all ways to it
    /// lead. The added size of a path is its own size and the added sizes below it
    #[arg(long, conflicts_with = "json")]
    tree: bool,
    /// Print sizes for people, as 1.2 MiB
    #[arg(long, short = 'h')]
    human_readable: bool,
    /// Print an object: narSize of all, and paths with path, narSize, closureSize, addedSize and keptBy (null where
    /// nothing but the arguments keeps it)
    #[arg(long)]
    json: bool,
    /// Also write a picture to FILE, as SVG: nested tiles as large as added sizes
    #[arg(long, value_name = "FILE")]
    treemap: Option<PathBuf>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Du {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let texts = self.paths.texts()?;
        let opened = self.from.open(cx, &texts).await?;
        let roots = NamedPaths::find(&opened, &texts).await?.paths;
        let store = opened.store();
        let asked = ui::paths(roots.len());
        let asked = cx.ui.asking(&asked, closure(&*store, roots.clone()));
        let found = asked.await?;
        let graph = ClosureGraph::new(&found);
        let roots: Vec<u32> = roots.iter().filter_map(|path| graph.node(path)).collect();
        let weighed = WeighedClosure {
            sizes: ClosureSizes::of(&graph, &roots)?,
            store: &*store,
            graph: &graph,
            human_readable: self.human_readable,
        };
        let there = (0..graph.len() as u32).filter(|node| graph.info(*node).is_some());
        let rows = weighed.largest_first(there.collect());
        if self.json {
            let paths = rows.iter().map(|node| weighed.json(*node));
            let paths = Value::from_iter(paths);
            ui::out(json!({ "narSize": found.nar_size(), "paths": paths }))?;
        } else if self.tree {
            weighed.print_tree(&rows)?;
        } else {
            let line = |node: &u32| weighed.columns(*node) + &weighed.name(*node);
            ui::out_all(rows.iter().map(line))?;
        }
        if let Some(file) = &self.treemap {
            tk_project::write_whole(file, &weighed.picture())
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let total = ui::size(found.nar_size());
        let paths = ui::paths(found.infos.len());
        cx.ui.say(format_args!("{paths}, {total} in all"));
        Ok(super::tell_absent(cx, &found, &*store))
    }
}

/// A closure with its sizes, and how they are shown.
struct WeighedClosure<'a> {
    sizes: ClosureSizes,
    store: &'a dyn Store,
    graph: &'a ClosureGraph<'a>,
    human_readable: bool,
}

impl WeighedClosure<'_> {
    fn largest_first(&self, mut nodes: Vec<u32>) -> Vec<u32> {
        let sizes = &self.sizes;
        nodes.sort_by_key(|node| {
            let node = *node as usize;
            Reverse((sizes.added[node], sizes.closure[node]))
        });
        nodes
    }

    fn print_tree(&self, rows: &[u32]) -> Result<()> {
        let mut below = vec![Vec::new(); self.graph.len()];
        let mut roots = Vec::new();
        // In the order of the rows, the largest first.
        for &node in rows {
            match self.sizes.keeper[node as usize] {
                Some(keeper) => below[keeper as usize].push(node),
                None => roots.push(node),
            }
        }
        let mut walk = TreeDrawing::new(roots);
        let lines = std::iter::from_fn(|| {
            let node = walk.next_node()?;
            let line = self.columns(node) + &walk.head() + &self.name(node);
            walk.enter(std::mem::take(&mut below[node as usize]));
            Some(line)
        });
        Ok(ui::out_all(lines)?)
    }

    fn picture(&self) -> String {
        Treemap::new(&self.sizes, PICTURE).to_svg(self.graph, |node| {
            let [own, closure, added] = [&self.sizes.own, &self.sizes.closure, &self.sizes.added]
                .map(|sizes| ui::size(sizes[node as usize]));
            let name = self.graph.path(node).name();
            format!("{name}: {own}, closure {closure}, added {added}")
        })
    }

    fn columns(&self, node: u32) -> String {
        let node = node as usize;
        let sizes = [&self.sizes.own, &self.sizes.closure, &self.sizes.added];
        let column = |sizes: &Vec<u64>| {
            if self.human_readable {
                format!("{:>12}\t", ui::size(sizes[node]))
            } else {
                format!("{:>12}\t", sizes[node])
            }
        };
        sizes.into_iter().map(column).collect()
    }

    fn json(&self, node: u32) -> Value {
        let at = node as usize;
        json!({
            "path": self.name(node),
            "narSize": self.sizes.own[at],
            "closureSize": self.sizes.closure[at],
            "addedSize": self.sizes.added[at],
            "keptBy": self.sizes.keeper[at].map(|keeper| self.name(keeper)),
        })
    }

    fn name(&self, node: u32) -> String {
        self.store.dir().path(self.graph.path(node))
    }
}

/// Pixels, wide and high.
const PICTURE: [f64; 2] = [1600.0, 1000.0];

const EXAMPLES: &str = "\
Examples:
  tk-store du -h ./result
  tk-store du --tree --store file:///srv/cache /nix/store/…-hello
  tk-store du --treemap sizes.svg ./result
  tk-store du --json ./result | jq -r '.paths[] | select(.addedSize > 1e8).path'";
