//! What becomes of a realisation when the store has one of the same output already.

use crate::{Error, Result};
use std::fmt::Display;
use tk_narinfo::realisation::{Realisation, legacy};

/// `new` with the signatures of `known`.
///
/// # Errors
/// [`Error::Refused`] when the two contradict each other, as Nix does
/// (`LocalStore::registerDrvOutput`).
pub fn merge(
    store: &dyn Display,
    known: Option<&Realisation>,
    new: &Realisation,
) -> Result<Realisation> {
    let mut merged = new.clone();
    let Some(known) = known else {
        return Ok(merged);
    };
    if !known.is_compatible(new) {
        let id = format!("{}^{}", new.id.drv, new.id.output);
        return Err(contradiction(
            store,
            &id,
            &known.value.out_path,
            &new.value.out_path,
        ));
    }
    let signatures = known.value.signatures.iter().cloned();
    merged.value.signatures.extend(signatures);
    Ok(merged)
}

/// The same in the older form. What it was built from stays as it is known.
pub fn merge_legacy(
    store: &dyn Display,
    known: Option<&legacy::LegacyRealisation>,
    new: &legacy::LegacyRealisation,
) -> Result<legacy::LegacyRealisation> {
    let Some(known) = known else {
        return Ok(new.clone());
    };
    if !known.is_compatible(new) {
        let id = new.id.to_string();
        return Err(contradiction(store, &id, &known.out_path, &new.out_path));
    }
    let mut merged = known.clone();
    merged.signatures.extend(new.signatures.iter().cloned());
    Ok(merged)
}

fn contradiction(store: &dyn Display, id: &str, known: &dyn Display, new: &dyn Display) -> Error {
    Error::Refused {
        who: store.to_string(),
        words: format!("{id} is known to be {known}, not {new}"),
    }
}
