//! Keys in files and in texts. Whatever is given where, no error repeats a secret key.

use crate::error::{InContext, OpenError};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};
use tk_narinfo::{PublicKey, SecretKey};

/// The secret key in `file`.
///
/// # Errors
/// When the file cannot be read, or does not hold a secret key.
pub fn read_secret_key(file: &Path) -> Result<SecretKey, OpenError> {
    let text = File::open(file).and_then(|mut file| read_key(&mut file));
    let text = text.in_context(|| format!("reading the secret key {}", file.display()))?;
    SecretKey::parse(text.trim())
        .in_context(|| format!("{} does not hold a secret key", file.display()))
}

/// Fails where a secret key stands in place of the name of its file, without repeating it.
///
/// # Errors
/// That alone.
pub fn refuse_secret(file: &Path) -> Result<(), OpenError> {
    if !looks_secret(&file.to_string_lossy()) || file.exists() {
        return Ok(());
    }
    Err(OpenError::invalid(
        "a file that holds the secret key is wanted here, and the key itself was given, which others can \
         see in the list of processes; write it into a file, or hand it over in a variable: \
         --sign-key-env NAME",
    ))
}

/// A public key, given as `name:base64` or as a file that holds it.
///
/// # Errors
/// When it is neither.
pub fn read_public_key(text: &str) -> Result<PublicKey, OpenError> {
    let wrong = match PublicKey::parse(text) {
        Ok(key) => return Ok(key),
        Err(wrong) => wrong,
    };
    if SecretKey::parse(text).is_ok() {
        return Err(OpenError::invalid(
            "a public key is wanted here, and a secret one was given; keep it to yourself, and give \
             what tk-store key public prints for it",
        ));
    }
    match File::open(text).and_then(|mut file| read_key(&mut file)) {
        Ok(content) => PublicKey::parse(content.trim_end())
            .in_context(|| format!("the file {text} does not hold a public key")),
        Err(_) if looks_secret(text) => {
            let name = text.split_once(':').map_or("", |(name, _)| name);
            Err(wrong).in_context(|| format!("'{name}:…' is not a public key (name:base64)"))
        }
        Err(_) => Err(wrong).in_context(|| {
            format!("'{text}' is neither a public key (name:base64) nor a file with one")
        }),
    }
}

/// Whether the text may be a secret, or a part of one: more base64 than a public key has, or than
/// anybody writes where no name stands before.
pub fn looks_secret(text: &str) -> bool {
    let text = text.trim();
    let (name, digits) = text.split_once(':').unwrap_or(("", text));
    let most = if name.is_empty() { 40 } else { 45 };
    digits.len() >= most && digits.trim_end().chars().all(is_base64) && !text.starts_with('/')
}

/// Whether base64 has the character.
pub fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')
}

/// The text of a key; of what is longer than any key only the beginning.
///
/// # Errors
/// When it cannot be read.
pub fn read_key(from: &mut impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(LONGEST_KEY).read_to_string(&mut text)?;
    Ok(text)
}

/// Bytes of a file that holds one key.
const LONGEST_KEY: u64 = 64 << 10;
