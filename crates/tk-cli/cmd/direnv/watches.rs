//! The files that direnv watches, told without a process of direnv's own.
//!
//! ```text
//! DIRENV_WATCHES = base64url (padded) of zlib of [{"Path": …, "Modtime": seconds, "Exists": bool}…]
//! ```
//! as direnv 2.32 was seen to write it, and reads it back; other versions have the keys in small letters. A file that is
//! not there has the time 0; a link has the later one of its own and its target's.

use data_encoding::BASE64URL;
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use serde_json::{Map, Value, json};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// The value that `old` becomes with `files`. `None` if that is in no form that is known: then direnv must be
/// asked to watch.
pub fn with_files(old: &str, files: &[PathBuf]) -> Option<String> {
    let mut packed = Vec::new();
    let bytes = BASE64URL.decode(old.as_bytes()).ok()?;
    let mut zlib = ZlibDecoder::new(&bytes[..]).take(MOST);
    zlib.read_to_end(&mut packed).ok()?;
    let Value::Array(mut watched) = serde_json::from_slice(&packed).ok()? else {
        return None;
    };
    // Of direnv's own .envrc, which is always watched.
    let keys = keys_of(watched.first()?)?;
    for file in files {
        let path = file.to_str()?;
        watched.retain(|one| one[keys[0]] != path);
        watched.push(of_file(file, path, keys));
    }
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(&serde_json::to_vec(&watched).ok()?).ok()?;
    Some(BASE64URL.encode(&zlib.finish().ok()?))
}

fn keys_of(one: &Value) -> Option<[&'static str; 3]> {
    let known = [["Path", "Modtime", "Exists"], ["path", "modtime", "exists"]];
    let map = one.as_object().filter(|map| map.len() == 3)?;
    known
        .into_iter()
        .find(|keys| keys.iter().all(|key| map.contains_key(*key)))
}

fn of_file(file: &Path, path: &str, keys: [&str; 3]) -> Value {
    let times = [fs::symlink_metadata(file), fs::metadata(file)];
    let times = times
        .into_iter()
        .flatten()
        .filter_map(|meta| meta.modified().ok());
    let time: Option<SystemTime> = times.max();
    let seconds = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let seconds = seconds.map_or(0, |seconds| seconds.as_secs());
    let values = [json!(path), json!(seconds), json!(file.exists())];
    let pairs = keys.map(str::to_owned).into_iter().zip(values);
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// Bytes of the list.
const MOST: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(value: &Value) -> String {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(value.to_string().as_bytes()).unwrap();
        BASE64URL.encode(&zlib.finish().unwrap())
    }

    fn unpacked(text: &str) -> Value {
        let bytes = BASE64URL.decode(text.as_bytes()).unwrap();
        serde_json::from_reader(ZlibDecoder::new(&bytes[..])).unwrap()
    }

    #[test]
    fn files_are_added_in_the_form_that_there_is() {
        let absent = PathBuf::from("/nowhere/x");
        for [path, time, there] in [["Path", "Modtime", "Exists"], ["path", "modtime", "exists"]] {
            let own = json!({path: "/p/.envrc", time: 7, there: true});
            let old = json!([own, {path: "/nowhere/x", time: 9, there: true}]);
            let new = with_files(&packed(&old), std::slice::from_ref(&absent)).unwrap();
            let expected = json!([own, {path: "/nowhere/x", time: 0, there: false}]);
            assert_eq!(unpacked(&new), expected);
        }
        for old in [
            "",
            "x",
            "eJw",
            &packed(&json!({})),
            &packed(&json!([])),
            &packed(&json!([{"a": 1}])),
        ] {
            assert_eq!(with_files(old, &[]), None, "{old}");
        }
    }
}
