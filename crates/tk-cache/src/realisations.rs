//! What outputs turned out to be, as objects of a cache: JSON in both forms.

use std::error::Error as StdError;
use tk_narinfo::realisation::{DrvOutput, Realisation, UnkeyedRealisation, legacy};
use tk_store::{Error, Result};

/// What the object called `name` says of `id`. The name is the key; some writers repeat it inside.
pub(crate) fn parse(id: &DrvOutput, name: &str, text: &[u8]) -> Result<UnkeyedRealisation> {
    let value = json(name, text)?;
    if value.get("key").is_none() {
        return UnkeyedRealisation::from_json(&value).map_err(|e| Error::malformed(name, e));
    }
    let read = Realisation::from_json(&value).map_err(|e| Error::malformed(name, e))?;
    if read.id == *id {
        Ok(read.value)
    } else {
        Err(another_output(name))
    }
}

/// The same in the older form.
pub(crate) fn parse_legacy(
    id: &legacy::LegacyDrvOutput,
    name: &str,
    text: &[u8],
) -> Result<legacy::LegacyRealisation> {
    let value = json(name, text)?;
    let read =
        legacy::LegacyRealisation::from_json(&value).map_err(|e| Error::malformed(name, e))?;
    if read.id == *id {
        Ok(read)
    } else {
        Err(another_output(name))
    }
}

fn json(name: &str, text: &[u8]) -> Result<serde_json::Value> {
    serde_json::from_slice(text).map_err(|e| Error::malformed(name, e))
}

fn another_output(name: &str) -> Error {
    let why: Box<dyn StdError + Send + Sync> = "it is about another output".into();
    Error::malformed(name, why)
}

/// Those in use have some hundred bytes.
pub(crate) const MAX_REALISATION_BYTES: usize = 1 << 20;
