//! A TOML file whose values know their lines.

use super::scan::line_of;
use crate::{flake_facts::FlakeReason, text::LineStarts};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// A TOML file and what it says.
pub struct TomlFile {
    name: String,
    root: TomlNode,
}

/// A value, and the line that it or its key is in.
struct TomlNode {
    line: usize,
    what: TomlKind,
}

enum TomlKind {
    Text(String),
    Truth(bool),
    Array(Vec<TomlNode>),
    Table(BTreeMap<String, TomlNode>),
    /// A number or a date.
    Other,
}

/// A value in a TOML file.
#[derive(Clone, Copy)]
pub struct TomlValue<'a> {
    file: &'a TomlFile,
    node: &'a TomlNode,
}

impl TomlFile {
    /// Reads `text`; an error is the line and what is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, (usize, String)> {
        let parsed = DeTable::parse(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            (line_of(text, start), error.message().replace('\n', ", "))
        })?;
        let lines = LineStarts::of(text);
        Ok(TomlFile {
            name: name.to_owned(),
            root: TomlNode {
                line: 1,
                what: lines.table(parsed.get_ref()),
            },
        })
    }

    /// The value behind `keys`, which dots join.
    pub fn get(&self, keys: &str) -> Option<TomlValue<'_>> {
        self.root().get(keys)
    }

    /// The whole file.
    pub fn root(&self) -> TomlValue<'_> {
        TomlValue {
            file: self,
            node: &self.root,
        }
    }

    /// The string behind `keys`.
    pub fn string(&self, keys: &str) -> Option<&str> {
        self.get(keys)?.string()
    }

    /// That the file says something behind `keys`, with its line where it does.
    pub fn reason(&self, keys: &str) -> FlakeReason {
        FlakeReason::new(&self.name, keys, self.get(keys).map(TomlValue::line))
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<'a> TomlValue<'a> {
    /// The value behind `keys`, which dots join.
    pub fn get(self, keys: &str) -> Option<TomlValue<'a>> {
        keys.split('.').try_fold(self, |value, key| {
            let TomlKind::Table(table) = &value.node.what else {
                return None;
            };
            table.get(key).map(|node| value.at(node))
        })
    }

    fn at(self, node: &'a TomlNode) -> TomlValue<'a> {
        TomlValue {
            file: self.file,
            node,
        }
    }

    /// The line, from 1.
    pub fn line(self) -> usize {
        self.node.line
    }

    /// That it is there, as `key`.
    pub fn reason(self, key: impl Into<String>) -> FlakeReason {
        FlakeReason::new(&self.file.name, key, self.line())
    }

    /// Its text, if it is a string.
    pub fn string(self) -> Option<&'a str> {
        match &self.node.what {
            TomlKind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is `true`.
    pub fn is_true(self) -> bool {
        matches!(self.node.what, TomlKind::Truth(true))
    }

    /// The keys of a table and its values.
    pub fn entries(self) -> impl Iterator<Item = (&'a str, TomlValue<'a>)> {
        let table = match &self.node.what {
            TomlKind::Table(table) => Some(table),
            _ => None,
        };
        let entries = table.into_iter().flatten();
        entries.map(move |(key, node)| (key.as_str(), self.at(node)))
    }

    /// The elements of an array.
    pub fn elements(self) -> impl Iterator<Item = TomlValue<'a>> {
        let array = match &self.node.what {
            TomlKind::Array(array) => array.as_slice(),
            _ => &[],
        };
        array.iter().map(move |node| self.at(node))
    }

    /// The strings of an array.
    pub fn strings(self) -> impl Iterator<Item = (&'a str, TomlValue<'a>)> {
        self.elements()
            .filter_map(|value| Some((value.string()?, value)))
    }
}

impl LineStarts {
    fn table(&self, table: &DeTable<'_>) -> TomlKind {
        let entries = table.iter().map(|(key, value)| {
            let node = TomlNode {
                line: self.line(key.span().start),
                what: self.toml_value(value.get_ref()),
            };
            (key.get_ref().to_string(), node)
        });
        TomlKind::Table(entries.collect())
    }

    /// The parser has bounded the depth.
    fn toml_value(&self, value: &DeValue<'_>) -> TomlKind {
        match value {
            DeValue::String(text) => TomlKind::Text(text.to_string()),
            DeValue::Boolean(truth) => TomlKind::Truth(*truth),
            DeValue::Table(table) => self.table(table),
            DeValue::Array(array) => {
                let elements = array.iter().map(|element| TomlNode {
                    line: self.line(element.span().start),
                    what: self.toml_value(element.get_ref()),
                });
                TomlKind::Array(elements.collect())
            }
            _ => TomlKind::Other,
        }
    }
}
