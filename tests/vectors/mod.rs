//! Golden data in both directions, each kind with a table of how many ran.

mod build_result;
mod derivation;
mod derived_path;
mod git;
mod hash;
mod nar;
mod narinfo;
mod path_info;
mod protocol;
mod realisation;
mod reference;
mod signature;
mod store_path;

use serde_json::Value;

/// A text of a JSON object.
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// The bytes that hex digits spell; blanks and line ends between them do not count.
fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("digits");
        u8::from_str_radix(pair, 16).unwrap_or_else(|e| panic!("{pair:?}: {e}"))
    };
    digits.chunks(2).map(pair).collect()
}

/// Turns an error into the text that a failed case shows.
fn say(error: impl std::fmt::Display) -> String {
    error.to_string()
}
