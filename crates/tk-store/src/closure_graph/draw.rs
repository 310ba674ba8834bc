//! Closures as text: trees, and graphs in the languages of those who draw them.

use super::ClosureGraph;
use std::{collections::BTreeSet, iter};

/// A walk over a tree, depth first, with the lines that lead to each node on paper. It does not recurse.
///
/// ```
/// use tk_store::closure_graph::TreeDrawing;
///
/// let mut walk = TreeDrawing::new(["a"]);
/// let mut text = String::new();
/// while let Some(node) = walk.next_node() {
///     text += &format!("{}{node}\n", walk.head());
///     if node == "a" {
///         walk.enter(["b", "c"]);
///     }
/// }
/// assert_eq!(text, "a\n├───b\n└───c\n");
/// ```
#[derive(Debug, Clone)]
pub struct TreeDrawing<N> {
    /// What is still to come, the next one last: its depth, whether it is the last below its parent, and itself.
    open: Vec<(usize, bool, N)>,
    /// For the node at hand and each one above it but the root, whether it is the last below its parent.
    above: Vec<bool>,
}

impl<N> TreeDrawing<N> {
    /// A walk over the trees of `roots`.
    pub fn new(roots: impl IntoIterator<Item = N>) -> Self {
        let mut open: Vec<_> = roots.into_iter().map(|root| (0, true, root)).collect();
        open.reverse();
        TreeDrawing {
            open,
            above: Vec::new(),
        }
    }

    /// Goes on to the next node.
    pub fn next_node(&mut self) -> Option<N> {
        let (depth, last, node) = self.open.pop()?;
        self.above.truncate(depth.saturating_sub(1));
        if depth > 0 {
            self.above.push(last);
        }
        Some(node)
    }

    /// Has `children` of the node at hand come next.
    pub fn enter(&mut self, children: impl IntoIterator<Item = N>) {
        let (depth, first) = (self.above.len() + 1, self.open.len());
        let children = children.into_iter().map(|child| (depth, false, child));
        self.open.extend(children);
        self.open[first..].reverse();
        if let Some((_, last, _)) = self.open.get_mut(first) {
            *last = true;
        }
    }

    /// What stands before the node at hand.
    pub fn head(&self) -> String {
        match self.above.split_last() {
            None => String::new(),
            Some((last, above)) => {
                lines(above)
                    + if *last {
                        "└───"
                    } else {
                        "├───"
                    }
            }
        }
    }

    /// What stands before further lines about the node at hand.
    pub fn tail(&self) -> String {
        lines(&self.above)
    }
}

fn lines(above: &[bool]) -> String {
    let line = |last: &bool| if *last { "    " } else { "│   " };
    above.iter().map(line).collect()
}

/// How a graph is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GraphLanguage {
    /// That of Graphviz, as `nix-store --query --graph` writes it: edges lead from what is needed to what needs it.
    Dot,
    /// A flowchart, in which edges lead from what needs something to what it needs.
    Mermaid,
}

impl ClosureGraph<'_> {
    /// Lines of a tree below each of `roots`, as `nix-store --query --tree` prints it. A path stands below another
    /// one in full only the first time; then, as a reference to itself, it is marked with ` [...]`. What `shown`
    /// gives stands for a path.
    pub fn tree<'b>(
        &'b self,
        roots: &[u32],
        shown: impl Fn(u32) -> String + 'b,
    ) -> impl Iterator<Item = String> + 'b {
        let mut walk = TreeDrawing::new(roots.to_vec());
        let mut done = vec![false; self.len()];
        iter::from_fn(move || {
            let node = walk.next_node()?;
            let again = std::mem::replace(&mut done[node as usize], true);
            let line = walk.head() + &shown(node) + if again { " [...]" } else { "" };
            if !again {
                walk.enter(self.flattened(node));
            }
            Some(line)
        })
    }

    /// What `node` refers to, in an order in which each comes after those of them that it refers to itself: that
    /// makes trees less deep.
    fn flattened(&self, node: u32) -> Vec<u32> {
        let among = self.references(node);
        let mut order = Vec::with_capacity(among.len());
        let mut seen = BTreeSet::new();
        for &root in among {
            let mut stack = vec![(root, true)];
            while let Some((node, entering)) = stack.pop() {
                if !entering {
                    order.push(node);
                } else if seen.insert(node) {
                    stack.push((node, false));
                    let below = self.references(node).iter().rev();
                    let below = below.filter(|node| among.binary_search(node).is_ok());
                    stack.extend(below.map(|node| (*node, true)));
                }
            }
        }
        order
    }

    /// Lines of the graph that `roots` lead to, in `language`. A path's reference to itself is no edge.
    pub fn drawn<'b>(
        &'b self,
        roots: &[u32],
        language: GraphLanguage,
    ) -> impl Iterator<Item = String> + 'b {
        let (first, end) = match language {
            GraphLanguage::Dot => ("digraph G {", Some("}")),
            GraphLanguage::Mermaid => ("flowchart TB", None),
        };
        let mut todo: BTreeSet<u32> = roots.iter().copied().collect();
        let mut seen = vec![false; self.len()];
        let mut colours = COLOURS.iter().cycle();
        let nodes = iter::from_fn(move || {
            let node = loop {
                let node = todo.pop_first()?;
                if !std::mem::replace(&mut seen[node as usize], true) {
                    break node;
                }
            };
            let below = self.references(node).iter().filter(|to| **to != node);
            todo.extend(below.clone());
            let mut text = self.drawn_node(node, language);
            for to in below {
                text += &match language {
                    GraphLanguage::Dot => self.dot_edge(node, *to, &mut colours),
                    GraphLanguage::Mermaid => format!("\n  n{node} --> n{to}"),
                };
            }
            Some(text)
        });
        let first = iter::once(first.to_owned());
        first.chain(nodes).chain(end.map(str::to_owned))
    }

    /// The line of a path itself. Names of store paths have no characters that mean something in either language.
    fn drawn_node(&self, node: u32, language: GraphLanguage) -> String {
        let path = self.path(node);
        let name = path.name();
        match language {
            GraphLanguage::Dot => format!(
                "\"{path}\" [label = \"{name}\", shape = box, style = filled, fillcolor = \"#ff0000\"];"
            ),
            GraphLanguage::Mermaid => format!("  n{node}[\"{name}\"]"),
        }
    }

    fn dot_edge<'c>(
        &self,
        from: u32,
        to: u32,
        colours: &mut impl Iterator<Item = &'c &'static str>,
    ) -> String {
        let (from, to) = (self.path(from), self.path(to));
        let colour = colours.next().copied().unwrap_or_default();
        format!("\n\"{to}\" -> \"{from}\" [color = \"{colour}\"];")
    }
}

/// As Nix's dotgraph.cc has them, one after the other.
const COLOURS: [&str; 6] = ["black", "red", "green", "blue", "magenta", "burlywood"];

#[cfg(test)]
mod tests {
    use crate::{
        ClosureGraph,
        closure_graph::{GraphLanguage, tests::closure_of},
    };

    /// The shapes that real Nix 2.8 to 2.34 print.
    #[test]
    fn trees() {
        let closure = closure_of(&["a cdxa", "c", "d c", "x cd"]);
        let graph = ClosureGraph::new(&closure);
        let lines: Vec<_> = graph
            .tree(&[0, 3], |node| graph.path(node).name().to_owned())
            .collect();
        let expected = "\
a
├───c
├───d
│   └───c [...]
├───x
│   ├───c [...]
│   └───d [...]
└───a [...]
x [...]";
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn what_another_reference_needs_comes_before_it() {
        let closure = closure_of(&["a bcd", "b d", "c", "d c"]);
        let graph = ClosureGraph::new(&closure);
        let lines = graph.tree(&[0], |node| graph.path(node).name().to_owned());
        let lines: Vec<_> = lines.collect();
        let expected = "a\n├───c\n├───d\n│   └───c [...]\n└───b\n    └───d [...]";
        assert_eq!(lines.join("\n"), expected);
    }

    #[test]
    fn graphs() {
        let closure = closure_of(&["a ba", "b"]);
        let graph = ClosureGraph::new(&closure);
        let drawn = |language| graph.drawn(&[0], language).collect::<Vec<_>>().join("\n");
        let (a, b) = (graph.path(0), graph.path(1));
        let shape = "shape = box, style = filled, fillcolor = \"#ff0000\"";
        assert_eq!(
            drawn(GraphLanguage::Dot),
            format!(
                "digraph G {{\n\"{a}\" [label = \"a\", {shape}];\n\"{b}\" -> \"{a}\" [color = \"black\"];\n\
                 \"{b}\" [label = \"b\", {shape}];\n}}"
            )
        );
        assert_eq!(
            drawn(GraphLanguage::Mermaid),
            "flowchart TB\n  n0[\"a\"]\n  n0 --> n1\n  n1[\"b\"]"
        );
    }
}
