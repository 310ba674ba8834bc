//! Attributes that stand twice in Nix code: rnix takes them, and Nix refuses the file.
//!
//! Sets of one name are joined as the parser of Nix 2.8 does it: `a.b = 1; a = { c = 2; };` is one set, and
//! `a = { b.c = 1; }; a = { b.d = 2; };`, which newer ones take, is refused. Names that are computed are left to
//! evaluation.

use crate::nix_literal::{attribute, names};
use rnix::{
    SyntaxKind, SyntaxNode,
    ast::{self, Entry, Expr, HasEntry},
};
use rowan::ast::AstNode;
use std::collections::BTreeMap;

/// The first attribute below `root` that is there already: the byte where it stands, and its path.
pub(crate) fn repeated_attribute(root: &SyntaxNode) -> Option<(usize, String)> {
    root.descendants().find_map(|node| {
        let attributes = match node.kind() {
            // The entry that it is the value of joins it.
            SyntaxKind::NODE_ATTR_SET if is_value(&node) => return None,
            SyntaxKind::NODE_ATTR_SET => ast::AttrSet::cast(node).map(|set| joined(&set)),
            SyntaxKind::NODE_LET_IN => ast::LetIn::cast(node).map(|set| joined(&set)),
            SyntaxKind::NODE_LEGACY_LET => ast::LegacyLet::cast(node).map(|set| joined(&set)),
            _ => None,
        };
        attributes?.err()
    })
}

/// What is behind a name.
enum NamedAttribute {
    Set(NamedAttributes),
    Value,
}

type NamedAttributes = BTreeMap<String, NamedAttribute>;
type RepeatedAttribute = (usize, String);

fn is_value(set: &SyntaxNode) -> bool {
    let mut above = set.ancestors().skip(1).map(|node| node.kind());
    above.find(|kind| *kind != SyntaxKind::NODE_PAREN) == Some(SyntaxKind::NODE_ATTRPATH_VALUE)
}

fn joined(set: &impl HasEntry) -> Result<NamedAttributes, RepeatedAttribute> {
    let mut all = NamedAttributes::new();
    for entry in set.entries() {
        let at = usize::from(entry.syntax().text_range().start());
        let repeated = |name| (at, name);
        match entry {
            Entry::Inherit(inherit) => {
                for name in inherit.attrs().filter_map(|name| attribute(&name)) {
                    join(&mut all, &[name], NamedAttribute::Value).map_err(repeated)?;
                }
            }
            Entry::AttrpathValue(pair) => {
                let value = match pair.value().and_then(without_brackets) {
                    Some(Expr::AttrSet(set)) => NamedAttribute::Set(joined(&set)?),
                    _ => NamedAttribute::Value,
                };
                if let Some(path) = pair.attrpath().and_then(|path| names(&path)) {
                    join(&mut all, &path, value).map_err(repeated)?;
                }
            }
        }
    }
    Ok(all)
}

fn without_brackets(expr: Expr) -> Option<Expr> {
    match expr {
        Expr::Paren(paren) => without_brackets(paren.expr()?),
        other => Some(other),
    }
}

/// Puts `value` behind `path`; an error is the path that is there already.
fn join(all: &mut NamedAttributes, path: &[String], value: NamedAttribute) -> Result<(), String> {
    let [name, rest @ ..] = path else {
        return Ok(());
    };
    let repeated = |name: &String| Err(name.clone());
    if rest.is_empty() {
        match (all.get_mut(name), value) {
            (None, value) => {
                all.insert(name.clone(), value);
            }
            (Some(NamedAttribute::Set(there)), NamedAttribute::Set(new)) => {
                for (below, value) in new {
                    if there.contains_key(&below) {
                        return repeated(&format!("{name}.{below}"));
                    }
                    there.insert(below, value);
                }
            }
            _ => return repeated(name),
        }
        return Ok(());
    }
    let inner = all.entry(name.clone());
    match inner.or_insert_with(|| NamedAttribute::Set(NamedAttributes::new())) {
        NamedAttribute::Set(inner) => {
            join(inner, rest, value).map_err(|below| format!("{name}.{below}"))
        }
        NamedAttribute::Value => repeated(name),
    }
}
