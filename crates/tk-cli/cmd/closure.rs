use crate::{
    CommandContext, ExitStatus,
    open::{FromArgs, OpenStore},
    paths::{NamedPaths, PathArgs},
    ui,
};
use anyhow::{Result, ensure};
use std::ffi::OsString;
use tk_path::StorePath;
use tk_store::{
    Closure, ClosureGraph, Error, closure, closure_graph::GraphLanguage, referrers_closure,
};

/// Print all that paths refer to, directly or not, each path after what it refers to
///
/// As nix-store --query --requisites. With --referrers, print all that refers to them instead, for which
/// the store must be able to list its paths. Paths that the store does not have are told on stderr, and
/// the exit status is 1.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("paths", |arg| arg.required_unless_present_any(["stdin", "graph"])))]
pub struct ClosureCommand {
    #[command(flatten)]
    paths: PathArgs,
    #[command(flatten)]
    from: FromArgs,
    /// Print all that refers to the paths, directly or not
    #[arg(long)]
    referrers: bool,
    /// Print a tree of references; what stands in it already, and a path's reference to itself, is
    /// marked with [...]
    #[arg(long, conflicts_with_all = ["referrers", "graph", "json"])]
    tree: bool,
    /// Print a graph for others to draw: dot (the default, for Graphviz) or mermaid
    #[arg(long, value_name = "LANGUAGE", num_args = 0..=1, default_missing_value = "dot", conflicts_with = "json")]
    graph: Option<OsString>,
    /// Print a list as JSON
    #[arg(long)]
    json: bool,
}

impl ClosureCommand {
    /// Runs the command.
    pub async fn run(self, cx: &CommandContext) -> Result<ExitStatus> {
        let mut texts = self.paths.texts()?;
        let language = self.graph.clone().map(|text| language(text, &mut texts));
        ensure!(!texts.is_empty(), "name a store path, or say --stdin");
        let opened = self.from.open(cx, &texts).await?;
        let roots = NamedPaths::find(&opened, &texts).await?.paths;
        let store = opened.store();
        let asked = ui::paths(roots.len());
        let found = async {
            if self.referrers {
                referrers(&opened, &roots).await
            } else {
                Ok(closure(&*store, roots.clone()).await?)
            }
        };
        let found = cx.ui.asking(&asked, found).await?;
        match language {
            Some(language) => {
                let graph = ClosureGraph::new(&found);
                let first = if self.referrers {
                    found.infos.keys().collect::<Vec<_>>()
                } else {
                    roots.iter().collect()
                };
                ui::out_all(graph.drawn(&nodes(&graph, first), language))?;
            }
            None if self.tree => {
                let graph = ClosureGraph::new(&found);
                // As a store says it, not as the file system of this machine has it.
                let shown = |node| store.dir().path(graph.path(node));
                ui::out_all(graph.tree(&nodes(&graph, &roots), shown))?;
            }
            None => {
                let order = found.references_first()?;
                let paths = order.iter().map(|info| store.dir().path(&info.path));
                if self.json {
                    ui::out(serde_json::Value::from_iter(paths))?;
                } else {
                    ui::out_all(paths)?;
                }
            }
        }
        Ok(super::tell_absent(cx, &found, &*store))
    }
}

/// The language that `text` names; another text is the first of the paths, and the language was left out.
fn language(text: OsString, texts: &mut Vec<OsString>) -> GraphLanguage {
    match text.to_str() {
        Some("dot") => GraphLanguage::Dot,
        Some("mermaid") => GraphLanguage::Mermaid,
        _ => {
            texts.insert(0, text);
            GraphLanguage::Dot
        }
    }
}

/// All that refers to `paths`; a store that does not keep track of that lists all that it has.
async fn referrers(opened: &OpenStore, paths: &[StorePath]) -> Result<Closure> {
    if let Some(graph) = opened.abilities().graph {
        match referrers_closure(&*graph, paths.iter().cloned()).await {
            // A cache lists its paths, and keeps track of nothing else.
            Err(Error::Unsupported { .. }) => {}
            found => return Ok(found?),
        }
    }
    let mut listed = opened.all().await?;
    if !listed.unreadable.is_empty() {
        let (name, error) = listed.unreadable.swap_remove(0);
        return Err(anyhow::Error::from(error).context(format!(
            "who refers to the paths is not known while {name} cannot be read"
        )));
    }
    let mut found = listed.closure().leading_to(paths);
    let absent = paths.iter().filter(|path| !found.infos.contains_key(*path));
    found.absent = absent.map(|path| (path.clone(), None)).collect();
    Ok(found)
}

/// The numbers of `paths`.
fn nodes<'a>(graph: &ClosureGraph<'_>, paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<u32> {
    let nodes = paths.into_iter().filter_map(|path| graph.node(path));
    nodes.collect()
}

const EXAMPLES: &str = "\
Examples:
  tk-store closure --store file:///srv/cache /nix/store/…-hello
  tk-store closure --tree /nix/store/…-hello
  tk-store closure --referrers /nix/store/…-hello
  tk-store closure --graph mermaid /nix/store/…-hello";
