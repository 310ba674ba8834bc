//! What of a Nix file can be read without running it: texts, numbers, booleans, paths, and sets of such. All else is
//! kept with its line, for whoever needs it.

use crate::nix_literal::on_large_stack;
use rnix::ast::{self, AstToken, Attr, Entry, Expr, HasEntry, InterpolPart, LiteralKind};
use rowan::ast::AstNode as _;
use std::collections::BTreeMap;

/// A value, and the line where it begins.
#[derive(Debug, Clone)]
pub(super) struct NixLiteral {
    pub(super) line: usize,
    pub(super) value: LiteralValue,
}

#[derive(Debug, Clone)]
pub(super) enum LiteralValue {
    Set(BTreeMap<String, NixLiteral>),
    Text(String),
    Flag(bool),
    Number(u64),
    /// As it is written, relative to the file.
    Path(String),
    /// A function, with the names that it takes.
    Function(Vec<String>),
    /// Something else; what it is.
    Other(&'static str),
}

/// Reads one Nix file, and knows its lines.
pub(super) struct LiteralReader<'a> {
    text: &'a str,
}

/// A line, and what is wrong there.
pub(super) type LiteralFault = (usize, String);

impl LiteralReader<'_> {
    /// The value of the whole file.
    pub(super) fn read(text: &str) -> Result<NixLiteral, LiteralFault> {
        on_large_stack(text, LiteralReader::read_bounded)?
    }

    fn read_bounded(text: &str) -> Result<NixLiteral, LiteralFault> {
        let reader = LiteralReader { text };
        let parsed = rnix::Root::parse(text);
        if let Some(error) = parsed.errors().first() {
            let at = place_of(error).unwrap_or(text.trim_end().len());
            return Err((reader.line(at), "this is not Nix".into()));
        }
        match parsed.tree().expr() {
            Some(expr) => reader.expr(&expr, 0),
            None => Err((1, "it is empty".into())),
        }
    }

    fn expr(&self, expr: &Expr, depth: usize) -> Result<NixLiteral, LiteralFault> {
        let line = self.line(expr.syntax().text_range().start().into());
        if depth > MAX_DEPTH {
            return Err((line, "it is nested too deep".into()));
        }
        let value = match expr {
            Expr::Paren(paren) => match paren.expr() {
                Some(inner) => return self.expr(&inner, depth + 1),
                None => LiteralValue::Other("an empty expression"),
            },
            Expr::AttrSet(set) => LiteralValue::Set(self.set(set, depth)?),
            Expr::Str(text) => text_of(text),
            Expr::Literal(literal) => match literal.kind() {
                LiteralKind::Uri(uri) => LiteralValue::Text(uri.syntax().text().to_owned()),
                LiteralKind::Integer(number) => match number.syntax().text().parse() {
                    Ok(number) => LiteralValue::Number(number),
                    Err(_) => LiteralValue::Other("a number that is too large"),
                },
                LiteralKind::Float(_) => LiteralValue::Other("a broken number"),
            },
            Expr::Ident(name) => match name.to_string().as_str() {
                "true" => LiteralValue::Flag(true),
                "false" => LiteralValue::Flag(false),
                _ => LiteralValue::Other("a variable"),
            },
            Expr::PathRel(path) => match path.parts()[..] {
                [InterpolPart::Literal(_)] => LiteralValue::Path(path.to_string()),
                _ => LiteralValue::Other("a path that is put together"),
            },
            Expr::Lambda(lambda) => LiteralValue::Function(arguments(lambda)),
            Expr::Apply(_) => LiteralValue::Other("a call"),
            Expr::LetIn(_) => LiteralValue::Other("a let"),
            Expr::List(_) => LiteralValue::Other("a list"),
            Expr::BinOp(_) | Expr::UnaryOp(_) => LiteralValue::Other("an operation"),
            Expr::Select(_) => LiteralValue::Other("an attribute of something"),
            Expr::IfElse(_) => LiteralValue::Other("an if"),
            Expr::With(_) => LiteralValue::Other("a with"),
            _ => LiteralValue::Other("an expression"),
        };
        Ok(NixLiteral { line, value })
    }

    fn set(
        &self,
        set: &ast::AttrSet,
        depth: usize,
    ) -> Result<BTreeMap<String, NixLiteral>, LiteralFault> {
        let mut out = BTreeMap::new();
        for entry in set.entries() {
            let line = self.line(entry.syntax().text_range().start().into());
            match entry {
                Entry::Inherit(inherit) => {
                    for attr in inherit.attrs() {
                        let value = LiteralValue::Other("inherited");
                        let name =
                            name_of(&attr).ok_or((line, "a name is put together".to_owned()))?;
                        put(&mut out, &[name], NixLiteral { line, value }, line)?;
                    }
                }
                Entry::AttrpathValue(pair) => {
                    let names = pair
                        .attrpath()
                        .into_iter()
                        .flat_map(|path| path.attrs().collect::<Vec<_>>());
                    let names: Option<Vec<_>> = names.map(|attr| name_of(&attr)).collect();
                    let names = names.ok_or((line, "a name is put together".to_owned()))?;
                    let Some(value) = pair.value() else { continue };
                    let value = self.expr(&value, depth + 1)?;
                    put(&mut out, &names, value, line)?;
                }
            }
        }
        Ok(out)
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text[..at.min(self.text.len())].matches('\n').count()
    }
}

/// Puts `value` into `set`; sets of one name are joined, as Nix does.
fn put(
    set: &mut BTreeMap<String, NixLiteral>,
    names: &[String],
    value: NixLiteral,
    line: usize,
) -> Result<(), LiteralFault> {
    let [name, rest @ ..] = names else {
        return Ok(());
    };
    if rest.is_empty() {
        let twice = || (line, format!("the attribute '{name}' stands there twice"));
        match (set.get_mut(name).map(|there| &mut there.value), value.value) {
            (None, found) => {
                set.insert(
                    name.clone(),
                    NixLiteral {
                        line: value.line,
                        value: found,
                    },
                );
                Ok(())
            }
            (Some(LiteralValue::Set(there)), LiteralValue::Set(new)) => {
                for (name, value) in new {
                    let line = value.line;
                    put(there, &[name], value, line)?;
                }
                Ok(())
            }
            _ => Err(twice()),
        }
    } else {
        let inner = set.entry(name.clone()).or_insert_with(|| NixLiteral {
            line,
            value: LiteralValue::Set(BTreeMap::new()),
        });
        match &mut inner.value {
            LiteralValue::Set(inner) => put(inner, rest, value, line),
            _ => Err((line, format!("the attribute '{name}' stands there twice"))),
        }
    }
}

fn name_of(attr: &Attr) -> Option<String> {
    match attr {
        Attr::Ident(ident) => Some(ident.to_string()),
        Attr::Str(text) => match text_of(text) {
            LiteralValue::Text(text) => Some(text),
            _ => None,
        },
        Attr::Dynamic(_) => None,
    }
}

fn text_of(text: &ast::Str) -> LiteralValue {
    let mut out = String::new();
    for part in text.normalized_parts() {
        match part {
            InterpolPart::Literal(literal) => out.push_str(&literal),
            InterpolPart::Interpolation(_) => {
                return LiteralValue::Other("a text that is put together");
            }
        }
    }
    LiteralValue::Text(out)
}

fn arguments(lambda: &ast::Lambda) -> Vec<String> {
    match lambda.param() {
        Some(ast::Param::Pattern(pattern)) => {
            let names = pattern.pat_entries().filter_map(|entry| entry.ident());
            names.map(|name| name.to_string()).collect()
        }
        _ => Vec::new(),
    }
}

/// Where it is; nothing where the file ends too early.
fn place_of(error: &rnix::ParseError) -> Option<usize> {
    use rnix::ParseError::*;
    match error {
        Unexpected(range) | UnexpectedExtra(range) | UnexpectedWanted(_, range, _) => Some(range),
        UnexpectedDoubleBind(range) | DuplicatedArgs(range, _) => Some(range),
        _ => None,
    }
    .map(|range| range.start().into())
}

const MAX_DEPTH: usize = 100;
