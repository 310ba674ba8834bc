//! Keys as the command line takes them: files for secrets, text or files for public ones.

use crate::Context;
use anyhow::{Context as _, Result};
use std::{fs, path::Path};
use tk_narinfo::{Policy, PublicKey, SecretKey, TrustedKeys};

/// The secret key in `file`.
pub fn secret(file: &Path) -> Result<SecretKey> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("reading the secret key {}", file.display()))?;
    let key = SecretKey::parse(text.trim_end());
    key.with_context(|| format!("{} does not hold a secret key", file.display()))
}

/// A public key, given as `name:base64` or as a file that holds it.
pub fn public(text: &str) -> Result<PublicKey> {
    match PublicKey::parse(text) {
        Ok(key) => Ok(key),
        Err(wrong) => match fs::read_to_string(text) {
            Ok(content) => PublicKey::parse(content.trim_end())
                .with_context(|| format!("the file {text} does not hold a public key")),
            Err(_) => Err(wrong).with_context(|| {
                format!("'{text}' is neither a public key (name:base64) nor a file with one")
            }),
        },
    }
}

/// Whom to trust: the keys given, or those of nix.conf, or Nix's default.
pub fn policy(cx: &Context, given: &[String], threshold: usize) -> Result<Policy> {
    let configured;
    let keys: Vec<&str> = if given.is_empty() {
        configured = cx.settings.list("trusted-public-keys");
        configured.unwrap_or_else(|| vec![crate::settings::DEFAULT_TRUSTED_KEY])
    } else {
        given.iter().map(String::as_str).collect()
    };
    let keys: Result<Vec<_>> = keys.into_iter().map(public).collect();
    Ok(Policy {
        keys: TrustedKeys::from_iter(keys?),
        threshold,
    })
}
