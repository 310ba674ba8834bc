//! The index of debug symbols: which NAR holds those of a build id, for debuggers
//! (`debuginfo/<build id>.debug`, as Nix's binary-cache-store.cc writes it).

use crate::layout::DEBUG_FOLDER;
use serde_json::json;
use tk_nar::{Listing, ListingNode};

/// The objects that stand for the symbols in a tree: their names and contents. `url` is that of
/// the NAR.
pub(crate) fn index(listing: &Listing, url: &str) -> Vec<(String, String)> {
    let Some(ListingNode::Directory(folders)) = listing.find(FOLDER) else {
        return Vec::new();
    };
    let mut objects = Vec::new();
    for (begin, folder) in folders {
        let ListingNode::Directory(files) = folder else {
            continue;
        };
        for (rest, file) in files {
            let Some((begin, rest)) = build_id(begin, rest) else {
                continue;
            };
            if matches!(file, ListingNode::Regular { .. }) {
                let name = format!("{DEBUG_FOLDER}/{begin}{rest}{SUFFIX}");
                let member = format!("lib/debug/.build-id/{begin}/{rest}{SUFFIX}");
                let content = json!({ "archive": format!("../{url}"), "member": member });
                objects.push((name, content.to_string()));
            }
        }
    }
    objects
}

/// The two parts of a build id, 2 and 38 hex digits.
fn build_id<'a>(begin: &'a [u8], rest: &'a [u8]) -> Option<(&'a str, &'a str)> {
    let hex = |text: &[u8]| text.iter().all(|b| b"0123456789abcdef".contains(b));
    let begin = std::str::from_utf8(begin).ok()?;
    let rest = std::str::from_utf8(rest).ok()?.strip_suffix(SUFFIX)?;
    let fits =
        begin.len() == 2 && rest.len() == 38 && hex(begin.as_bytes()) && hex(rest.as_bytes());
    fits.then_some((begin, rest))
}

const FOLDER: &[u8] = b"lib/debug/.build-id";
const SUFFIX: &str = ".debug";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_found_by_build_id() {
        let rest = "0123456789abcdef0123456789abcdef012345";
        let file = |name: &str| format!(r#""{name}":{{"type":"regular","size":1}}"#);
        let listing = format!(
            r#"{{"version":1,"root":{{"type":"directory","entries":{{"lib":{{"type":"directory","entries":{{
            "debug":{{"type":"directory","entries":{{".build-id":{{"type":"directory","entries":{{
            "ab":{{"type":"directory","entries":{{{},{},{},"{rest}.link":{{"type":"symlink","target":"x"}}}}}},
            "xyz":{{"type":"directory","entries":{{{}}}}},"file":{{"type":"regular","size":1}}
            }}}}}}}}}}}}}}}}}}"#,
            file(&format!("{rest}.debug")),
            file(&format!("{rest}.sup")),
            file("short.debug"),
            file(&format!("{rest}.debug")),
        );
        let listing = Listing::from_json(&listing).unwrap();
        let found = index(&listing, "nar/x.nar.zst");
        let content = format!(
            r#"{{"archive":"../nar/x.nar.zst","member":"lib/debug/.build-id/ab/{rest}.debug"}}"#
        );
        assert_eq!(found, [(format!("debuginfo/ab{rest}.debug"), content)]);
        let plain = Listing::from_json(r#"{"version":1,"root":{"type":"regular","size":1}}"#);
        assert_eq!(index(&plain.unwrap(), "nar/x.nar"), []);
    }
}
