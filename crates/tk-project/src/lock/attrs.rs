//! What an input is, as flake.lock has it: attributes by name.

use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};
use tk_path::{ContentAddress, Method, NarHash, References, StoreDir, StorePath};

/// The value of an attribute of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttrValue {
    /// A text, such as a URL or a hash.
    Text(String),
    /// A number, as `revCount` and `lastModified` (seconds since 1970) are.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

impl fmt::Display for AttrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttrValue::Text(text) => f.write_str(text),
            AttrValue::Number(number) => number.fmt(f),
            AttrValue::Flag(flag) => flag.fmt(f),
        }
    }
}

/// The attributes of an input, such as `{ type = "path"; path = "/a"; }`. They may come from others: nothing is
/// known of their values but their types.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputAttrs(BTreeMap<String, AttrValue>);

impl InputAttrs {
    /// Those of the given kind (`path`, `git`, …), with nothing else.
    pub fn of_kind(kind: &str) -> InputAttrs {
        let mut attrs = InputAttrs::default();
        attrs.set_text("type", kind);
        attrs
    }

    /// Reads an object of JSON.
    ///
    /// # Errors
    /// With the reason, if it is something else or a value is no text, no natural number and no boolean.
    pub fn from_json(value: &Value) -> Result<InputAttrs, String> {
        let Value::Object(object) = value else {
            return Err("the attributes of an input are not an object".into());
        };
        let mut attrs = BTreeMap::new();
        for (name, value) in object {
            let value = match value {
                Value::String(text) => AttrValue::Text(text.clone()),
                Value::Bool(flag) => AttrValue::Flag(*flag),
                Value::Number(number) if number.as_u64().is_some() => {
                    AttrValue::Number(number.as_u64().unwrap_or_default())
                }
                _ => {
                    return Err(format!(
                        "the attribute '{name}' is no text, no natural number and no boolean"
                    ));
                }
            };
            attrs.insert(name.clone(), value);
        }
        Ok(InputAttrs(attrs))
    }

    /// An object of JSON.
    pub fn to_json(&self) -> Value {
        let entries = self.0.iter().map(|(name, value)| {
            let value = match value {
                AttrValue::Text(text) => text.as_str().into(),
                AttrValue::Number(number) => (*number).into(),
                AttrValue::Flag(flag) => (*flag).into(),
            };
            (name.clone(), value)
        });
        Value::Object(entries.collect::<Map<_, _>>())
    }

    /// The kind of input: `path`, `git`, `github`, … Nothing if that is not said.
    pub fn kind(&self) -> &str {
        self.text("type").unwrap_or_default()
    }

    /// What `name` is; `None` if it is not there.
    pub fn get(&self, name: &str) -> Option<&AttrValue> {
        self.0.get(name)
    }

    /// Its `narHash`; `None` if there is none, or something else.
    pub(crate) fn nar_hash(&self) -> Option<NarHash> {
        NarHash::parse(self.text("narHash")?).ok()
    }

    /// Where a store of `dir` has it: the path follows from its narHash.
    pub(crate) fn store_path(&self, dir: &StoreDir) -> Option<StorePath> {
        let ca = ContentAddress {
            method: Method::Nar,
            hash: self.nar_hash()?.into(),
        };
        let name = self.text("name").unwrap_or("source");
        dir.path_of_content(name, &ca, &References::default()).ok()
    }

    /// The text `name`; `None` if there is none, or something else.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(AttrValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The number `name`; `None` if there is none, or something else.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name) {
            Some(AttrValue::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// Whether `name` is there and true.
    pub fn is_set(&self, name: &str) -> bool {
        self.0.get(name) == Some(&AttrValue::Flag(true))
    }

    /// Whether there is such an attribute.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Sets the text `name`.
    pub fn set_text(&mut self, name: &str, value: impl Into<String>) {
        self.set(name, AttrValue::Text(value.into()));
    }

    /// Sets the number `name`.
    pub fn set_number(&mut self, name: &str, value: u64) {
        self.set(name, AttrValue::Number(value));
    }

    /// Sets the attribute `name` to `value`.
    pub fn set(&mut self, name: &str, value: AttrValue) {
        self.0.insert(name.to_owned(), value);
    }

    /// Takes `name` away.
    pub fn remove(&mut self, name: &str) -> Option<AttrValue> {
        self.0.remove(name)
    }

    /// The names and values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &AttrValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}
