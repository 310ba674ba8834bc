//! What flake.nix says of its inputs, as far as it is literal: sets by name, with the lines.

use crate::nix_literal::{LiteralCode, LiteralEntry, LiteralNode};
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
    Other(String),
}

/// A line, and what is wrong there.
pub(super) type LiteralFault = (usize, String);

impl NixLiteral {
    /// What `node` is.
    pub(super) fn of(node: LiteralNode) -> Result<NixLiteral, LiteralFault> {
        let other = |what: &str| LiteralValue::Other(what.to_owned());
        let value = match node.value {
            LiteralCode::String(text) => LiteralValue::Text(text),
            LiteralCode::Integer(number) => match number.try_into() {
                Ok(number) => LiteralValue::Number(number),
                Err(_) => other("a number below 0"),
            },
            LiteralCode::Name(path) => match path.join(".").as_str() {
                "true" => LiteralValue::Flag(true),
                "false" => LiteralValue::Flag(false),
                name => LiteralValue::Other(format!("the variable {name}")),
            },
            LiteralCode::Set(entries) | LiteralCode::RecSet(entries) => {
                LiteralValue::Set(set(entries)?)
            }
            LiteralCode::Path(path) => LiteralValue::Path(path),
            LiteralCode::Function(function) => {
                let arguments = function.arguments.into_iter();
                LiteralValue::Function(arguments.map(|argument| argument.name).collect())
            }
            LiteralCode::Call(..) => other("a call"),
            LiteralCode::Let(..) => other("a let"),
            LiteralCode::List(_) => other("a list"),
            LiteralCode::Concat(..) => other("an operation"),
            LiteralCode::With(..) => other("a with"),
            LiteralCode::Other(text) => LiteralValue::Other(format!("`{text}`")),
        };
        Ok(NixLiteral {
            line: node.line,
            value,
        })
    }
}

fn set(entries: Vec<LiteralEntry>) -> Result<BTreeMap<String, NixLiteral>, LiteralFault> {
    let mut found = BTreeMap::new();
    for LiteralEntry { line, path, value } in entries {
        if path.is_empty() {
            return Err((line, "a name is put together".to_owned()));
        }
        put(&mut found, &path, NixLiteral::of(value)?, line)?;
    }
    Ok(found)
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
