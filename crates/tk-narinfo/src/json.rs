//! Path info and narinfo as JSON, in the three versions of Nix's format.
//!
//! | Key | Since | Value |
//! |---|---|---|
//! | `version` | | 1, 2 or 3; missing is 1 |
//! | `storeDir` | | store directory; may be missing in version 1 |
//! | `narHash`, `narSize` | | SRI; bytes, 0 is unknown |
//! | `references` | | full paths in version 1, base names from 2 |
//! | `ca` | | null, text in version 1, `{"hash","method"}` from 2 |
//! | `deriver` | impure | null, or a path as in `references` |
//! | `registrationTime` | impure | null, or seconds since 1970 |
//! | `ultimate` | impure | true or false |
//! | `signatures` | impure | texts, from version 3 `{"keyName","sig"}`; both are read in all versions |
//! | `url`, `compression`, `downloadHash`, `downloadSize` | impure, narinfo | each only if known |
//!
//! Writers sort keys. Readers ignore keys they do not know (`path`, `closureSize`, …), and take any text form of a hash.
//! None of the shapes holds the path itself: in the output of `nix path-info --json` it is the key of an object, except up to
//! Nix 2.18, where a list of entries has it inside ([`nix_2_8`]).
//!
//! | `nix path-info --json` of | shape | of one entry |
//! |---|---|---|
//! | 2.8 | list, absent paths are `{"path","valid":false}` | [`nix_2_8`] of the version 1 value |
//! | 2.26 | object by full path, absent paths are null | [`without_version`] of the version 1 value |
//! | 2.34 | the same | [`path_info_to_json`] or [`narinfo_to_json`], impure |

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use tk_path::{ContentAddress, Encoding, Hash, NarHash, StoreDir, StorePath};

use crate::compression::Compression;
use crate::keys::Signature;
use crate::narinfo::NarInfo;
use crate::path_info::PathInfo;
use crate::text::shown;

/// Version of the JSON format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JsonVersion {
    /// Full paths, content address and signatures as text.
    V1,
    /// Base names, content address as an object.
    V2,
    /// Signatures as objects too.
    V3,
}

impl JsonVersion {
    /// All versions, the oldest first.
    pub const ALL: [JsonVersion; 3] = [JsonVersion::V1, JsonVersion::V2, JsonVersion::V3];

    /// The number in `version`.
    pub const fn number(self) -> u64 {
        match self {
            JsonVersion::V1 => 1,
            JsonVersion::V2 => 2,
            JsonVersion::V3 => 3,
        }
    }
}

/// Which facts to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonFields {
    /// Only what is the same in every store that has the path.
    Pure,
    /// Also what a certain store says: deriver, registration time, signatures, where the NAR is.
    Impure,
}

/// One path info as JSON, without its path.
pub fn path_info_to_json(
    info: &PathInfo,
    dir: &StoreDir,
    version: JsonVersion,
    fields: JsonFields,
) -> Value {
    let path = |path: &StorePath| match version {
        JsonVersion::V1 => dir.path(path),
        _ => path.as_str().to_owned(),
    };
    let mut value = json!({
        "version": version.number(),
        "storeDir": dir.as_str(),
        "narHash": Hash::from(info.nar_hash).to_text(Encoding::Sri),
        "narSize": info.nar_size,
        "references": info.references.iter().map(path).collect::<Vec<_>>(),
        "ca": info.ca.as_ref().map(|ca| content_address_to_json(ca, version)),
    });
    if fields == JsonFields::Impure {
        value["deriver"] = info.deriver.as_ref().map(path).into();
        value["registrationTime"] = Some(info.registration_time).filter(|&t| t != 0).into();
        value["ultimate"] = info.ultimate.into();
        let signatures = info.signatures.iter();
        value["signatures"] = signatures.map(|s| signature_to_json(s, version)).collect();
    }
    value
}

/// One narinfo as JSON, without its path. The pure form is that of its path info.
pub fn narinfo_to_json(
    narinfo: &NarInfo,
    dir: &StoreDir,
    version: JsonVersion,
    fields: JsonFields,
) -> Value {
    let mut value = path_info_to_json(&narinfo.info, dir, version, fields);
    if fields == JsonFields::Impure {
        if !narinfo.url.is_empty() {
            value["url"] = narinfo.url.as_str().into();
        }
        value["compression"] = narinfo.compression.as_str().into();
        if let Some(hash) = &narinfo.file_hash {
            value["downloadHash"] = hash.to_text(Encoding::Sri).into();
        }
        if let Some(size) = narinfo.file_size.filter(|&size| size != 0) {
            value["downloadSize"] = size.into();
        }
    }
    value
}

/// Reads what [`path_info_to_json`] or Nix wrote about `path`, in any version, pure or impure.
///
/// # Errors
/// [`JsonError`] names the key. A `storeDir` other than `dir` is an error.
pub fn path_info_from_json(
    value: &Value,
    dir: &StoreDir,
    path: &StorePath,
) -> Result<PathInfo, JsonError> {
    JsonReader::new(value, dir)?.path_info(path)
}

/// Reads what [`narinfo_to_json`] or Nix wrote about `path`. From the pure form the URL is empty; a missing compression is
/// bzip2, as in a narinfo.
pub fn narinfo_from_json(
    value: &Value,
    dir: &StoreDir,
    path: &StorePath,
) -> Result<NarInfo, JsonError> {
    let reader = JsonReader::new(value, dir)?;
    let url = reader.optional("url", text)?.unwrap_or_default();
    let compression = reader.optional("compression", |v| parse(text(v)?.parse::<Compression>()))?;
    let narinfo = NarInfo::new(
        reader.path_info(path)?,
        url.to_owned(),
        compression.unwrap_or(Compression::Bzip2),
    );
    Ok(NarInfo {
        file_hash: reader.optional("downloadHash", |v| parse(Hash::parse_any(text(v)?, None)))?,
        file_size: reader
            .optional("downloadSize", number)?
            .filter(|&size| size != 0),
        ..narinfo
    })
}

/// The path of an entry that has it inside (`path`; full, or a base name), as in lists of Nix up to 2.18.
pub fn path_inside(value: &Value, dir: &StoreDir) -> Result<Option<StorePath>, JsonError> {
    let read = |value: &Value| {
        let text = text(value)?;
        if text.contains('/') {
            parse(dir.parse(text))
        } else {
            parse(StorePath::parse(text))
        }
    };
    object(value)?
        .get("path")
        .map(|value| read(value).map_err(|what| at("path", what)))
        .transpose()
}

/// A version 1 value of `path` as Nix 2.8 writes it: path inside; no version, store directory and compression; and nothing that
/// is null, empty or false, except `references`.
pub fn nix_2_8(value: Value, dir: &StoreDir, path: &StorePath) -> Value {
    let mut value = without_version(value);
    if let Some(object) = value.as_object_mut() {
        object.remove("compression");
        let empty = [Value::Null, Value::Bool(false), Value::Array(Vec::new())];
        object.retain(|key, value| key == "references" || !empty.contains(value));
        object.insert("path".into(), dir.path(path).into());
    }
    value
}

/// A version 1 value as Nix 2.26 writes it: without `version` and `storeDir`.
pub fn without_version(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.remove("version");
        object.remove("storeDir");
    }
    value
}

/// A content address as JSON: text in version 1, `{"hash","method"}` later.
pub fn content_address_to_json(ca: &ContentAddress, version: JsonVersion) -> Value {
    match version {
        JsonVersion::V1 => ca.to_string().into(),
        _ => json!({ "hash": ca.hash.to_text(Encoding::Sri), "method": ca.method.to_string() }),
    }
}

/// A signature as JSON: text up to version 2, `{"keyName","sig"}` later.
pub fn signature_to_json(signature: &Signature, version: JsonVersion) -> Value {
    match version {
        JsonVersion::V1 | JsonVersion::V2 => signature.to_string().into(),
        JsonVersion::V3 => json!({ "keyName": signature.key_name(), "sig": signature.to_base64() }),
    }
}

/// Reads a signature in either form.
pub fn signature_from_json(value: &Value) -> Result<Signature, JsonError> {
    signature(value).map_err(|what| at("signature", what))
}

/// Why a JSON value is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad {of} JSON{}{key}: {what}", if key.is_empty() { "" } else { ", " })]
pub struct JsonError {
    /// What was to be read, such as `path info`.
    pub of: &'static str,
    /// The key, or `""` if it is about the whole.
    pub key: &'static str,
    /// What is wrong there.
    pub what: String,
}

fn at(key: &'static str, what: String) -> JsonError {
    JsonError {
        of: "path info",
        key,
        what,
    }
}

/// An object being read.
struct JsonReader<'a> {
    object: &'a Map<String, Value>,
    dir: &'a StoreDir,
    version: JsonVersion,
}

impl<'a> JsonReader<'a> {
    fn new(value: &'a Value, dir: &'a StoreDir) -> Result<Self, JsonError> {
        let object = object(value)?;
        let version = match object.get("version") {
            None => JsonVersion::V1,
            Some(value) => JsonVersion::ALL
                .into_iter()
                .find(|v| value.as_u64() == Some(v.number()))
                .ok_or_else(|| at("version", format!("{value} is not 1, 2 or 3")))?,
        };
        let reader = JsonReader {
            object,
            dir,
            version,
        };
        reader.check_store_dir()?;
        Ok(reader)
    }

    fn check_store_dir(&self) -> Result<(), JsonError> {
        match self.optional("storeDir", text)? {
            Some(theirs) if theirs != self.dir.as_str() => {
                let what = format!(
                    "is about the store at {}, not {}",
                    shown(theirs),
                    self.dir.as_str()
                );
                Err(at("storeDir", what))
            }
            None if self.version != JsonVersion::V1 => Err(at("storeDir", "is missing".into())),
            _ => Ok(()),
        }
    }

    fn path_info(&self, path: &StorePath) -> Result<PathInfo, JsonError> {
        let nar_hash = self.required("narHash", |v| parse(NarHash::parse(text(v)?)))?;
        let nar_size = self.required("narSize", number)?;
        Ok(PathInfo {
            references: self.required("references", |v| set(v, |v| self.path(v)))?,
            ca: self.optional("ca", |v| self.content_address(v))?,
            deriver: self.optional("deriver", |v| self.path(v))?,
            registration_time: self.optional("registrationTime", number)?.unwrap_or(0),
            ultimate: self.optional("ultimate", boolean)?.unwrap_or(false),
            signatures: self
                .optional("signatures", |v| set(v, signature))?
                .unwrap_or_default(),
            ..PathInfo::new(path.clone(), nar_hash, nar_size)
        })
    }

    fn required<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&'a Value) -> Result<T, String>,
    ) -> Result<T, JsonError> {
        self.optional(key, read)?
            .ok_or_else(|| at(key, "is missing".into()))
    }

    /// The value of `key`; missing and null are the same.
    fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&'a Value) -> Result<T, String>,
    ) -> Result<Option<T>, JsonError> {
        let value = self.object.get(key).filter(|value| !value.is_null());
        value
            .map(|value| read(value).map_err(|what| at(key, what)))
            .transpose()
    }

    fn path(&self, value: &Value) -> Result<StorePath, String> {
        match self.version {
            JsonVersion::V1 => parse(self.dir.parse(text(value)?)),
            _ => parse(StorePath::parse(text(value)?)),
        }
    }

    fn content_address(&self, value: &Value) -> Result<ContentAddress, String> {
        if self.version == JsonVersion::V1 {
            return parse(text(value)?.parse());
        }
        let part = |key| {
            value
                .get(key)
                .and_then(Value::as_str)
                .ok_or("needs 'hash' and 'method'")
        };
        Ok(ContentAddress {
            method: parse(part("method")?.parse())?,
            hash: parse(Hash::parse_any(part("hash")?, None))?,
        })
    }
}

fn object(value: &Value) -> Result<&Map<String, Value>, JsonError> {
    value
        .as_object()
        .ok_or_else(|| at("", format!("expected an object, got {}", kind(value))))
}

pub(crate) fn signature(value: &Value) -> Result<Signature, String> {
    match value {
        Value::Object(object) => {
            let part = |key| {
                object
                    .get(key)
                    .and_then(Value::as_str)
                    .ok_or("needs 'keyName' and 'sig'")
            };
            parse(Signature::from_parts(part("keyName")?, part("sig")?))
        }
        _ => parse(Signature::parse(text(value)?)),
    }
}

pub(crate) fn set<T: Ord>(
    value: &Value,
    read: impl Fn(&Value) -> Result<T, String>,
) -> Result<BTreeSet<T>, String> {
    let list = value.as_array().ok_or_else(|| expected("a list", value))?;
    list.iter().map(read).collect()
}

pub(crate) fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| expected("a string", value))
}

pub(crate) fn number(value: &Value) -> Result<u64, String> {
    value
        .as_u64()
        .ok_or_else(|| expected("an unsigned integer", value))
}

pub(crate) fn boolean(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| expected("true or false", value))
}

pub(crate) fn expected(what: &str, value: &Value) -> String {
    format!("expected {what}, got {}", kind(value))
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null (is the path absent?)",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "another number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The words of a parser's error, with those of its causes.
pub(crate) fn parse<T, E: std::error::Error>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| {
        let mut words = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            words += &format!(": {error}");
            cause = error.source();
        }
        words
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbitrary::narinfo;
    use proptest::prelude::*;

    const BASE: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-foo";
    const ZERO: &str = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const ZERO_CA: &str = "fixed:r:sha256:0000000000000000000000000000000000000000000000000000";

    fn path() -> StorePath {
        StorePath::parse(BASE).unwrap()
    }

    fn full() -> NarInfo {
        let mut info = PathInfo::new(path(), NarHash::from_bytes([0; 32]), 7);
        info.references.insert(path());
        info.deriver = Some(path());
        info.registration_time = 23423;
        info.ultimate = true;
        info.signatures
            .insert(Signature::parse("k-1:YWJj").unwrap());
        info.ca = Some(ZERO_CA.parse().unwrap());
        NarInfo {
            file_hash: Some(NarHash::from_bytes([0; 32]).into()),
            file_size: Some(5),
            ..NarInfo::new(info, "nar/x.nar.xz".into(), Compression::Xz)
        }
    }

    fn expected(version: JsonVersion) -> Value {
        let v1 = version == JsonVersion::V1;
        let path = if v1 {
            format!("/nix/store/{BASE}")
        } else {
            BASE.into()
        };
        json!({
            "version": version.number(),
            "storeDir": "/nix/store",
            "narHash": ZERO,
            "narSize": 7,
            "references": [path],
            "ca": if v1 { json!(ZERO_CA) } else { json!({"hash": ZERO, "method": "nar"}) },
            "deriver": path,
            "registrationTime": 23423,
            "ultimate": true,
            "signatures": [match version {
                JsonVersion::V3 => json!({"keyName": "k-1", "sig": "YWJj"}),
                _ => json!("k-1:YWJj"),
            }],
            "url": "nar/x.nar.xz",
            "compression": "xz",
            "downloadHash": ZERO,
            "downloadSize": 5,
        })
    }

    #[test]
    fn each_version_has_its_shape() {
        let dir = StoreDir::default();
        for version in JsonVersion::ALL {
            let value = narinfo_to_json(&full(), &dir, version, JsonFields::Impure);
            assert_eq!(value, expected(version));
            assert_eq!(narinfo_from_json(&value, &dir, &path()), Ok(full()));
            let mut pure = expected(version);
            let keys = [
                "version",
                "storeDir",
                "narHash",
                "narSize",
                "references",
                "ca",
            ];
            pure.as_object_mut()
                .unwrap()
                .retain(|key, _| keys.contains(&key.as_str()));
            assert_eq!(
                path_info_to_json(&full().info, &dir, version, JsonFields::Pure),
                pure
            );
            assert_eq!(
                narinfo_to_json(&full(), &dir, version, JsonFields::Pure),
                pure
            );
        }
    }

    #[test]
    fn unknown_facts_are_null_and_empty() {
        let (dir, info) = (
            StoreDir::default(),
            PathInfo::new(path(), NarHash::from_bytes([0; 32]), 0),
        );
        let value = path_info_to_json(&info, &dir, JsonVersion::V3, JsonFields::Impure);
        let expected = json!({
            "version": 3, "storeDir": "/nix/store", "narHash": ZERO, "narSize": 0, "references": [],
            "ca": null, "deriver": null, "registrationTime": null, "ultimate": false, "signatures": [],
        });
        assert_eq!(value, expected);
        assert_eq!(path_info_from_json(&value, &dir, &path()), Ok(info));
    }

    #[test]
    fn readers_are_lenient_where_nix_is() {
        let dir = StoreDir::default();
        // No version is version 1, and needs no store directory; other keys are ignored.
        let mut old = without_version(expected(JsonVersion::V1));
        old["closureSize"] = 5.into();
        assert_eq!(narinfo_from_json(&old, &dir, &path()), Ok(full()));
        for version in JsonVersion::ALL {
            for form in [json!("k-1:YWJj"), json!({"keyName": "k-1", "sig": "YWJj"})] {
                let mut value = expected(version);
                value["signatures"] = json!([form]);
                assert_eq!(narinfo_from_json(&value, &dir, &path()), Ok(full()));
            }
        }
        let mut value = expected(JsonVersion::V1);
        value["narHash"] = format!("sha256:{}", "0".repeat(64)).into();
        assert_eq!(narinfo_from_json(&value, &dir, &path()), Ok(full()));
    }

    #[test]
    fn errors_name_the_key() {
        let dir = StoreDir::default();
        let v3 = JsonVersion::V3;
        for (key, wrong, words) in [
            ("version", json!(4), "version: 4 is not 1, 2 or 3"),
            ("version", json!("3"), "version: \"3\" is not"),
            (
                "storeDir",
                json!("/gnu/store"),
                "storeDir: is about the store at \"/gnu/store\", not /nix/store",
            ),
            ("storeDir", Value::Null, "storeDir: is missing"),
            ("narHash", Value::Null, "narHash: is missing"),
            ("narHash", json!("sha256-x"), "narHash: "),
            (
                "narHash",
                json!("sha1:ak1ymbmsfx7z8kh09jzkr3a4dvkrfjw0"),
                "narHash: ",
            ),
            (
                "narSize",
                json!(-1),
                "narSize: expected an unsigned integer",
            ),
            (
                "narSize",
                json!(1.5),
                "narSize: expected an unsigned integer",
            ),
            (
                "references",
                json!({}),
                "references: expected a list, got an object",
            ),
            (
                "references",
                json!([format!("/nix/store/{BASE}")]),
                "references: ",
            ),
            ("references", json!([1]), "references: expected a string"),
            ("ca", json!(ZERO_CA), "ca: needs 'hash' and 'method'"),
            ("ca", json!({"hash": ZERO, "method": "narwhal"}), "ca: "),
            ("deriver", json!("x"), "deriver: "),
            (
                "registrationTime",
                json!("today"),
                "registrationTime: expected an unsigned integer",
            ),
            ("ultimate", json!(1), "ultimate: expected true or false"),
            ("signatures", json!(["x"]), "signatures: "),
            (
                "signatures",
                json!([{"keyName": "x"}]),
                "signatures: needs 'keyName' and 'sig'",
            ),
            ("url", json!(1), "url: expected a string"),
            (
                "compression",
                json!("arj"),
                "compression: unknown compression \"arj\"",
            ),
            ("downloadHash", json!("x"), "downloadHash: "),
            (
                "downloadSize",
                json!(-5),
                "downloadSize: expected an unsigned integer",
            ),
        ] {
            let mut value = expected(v3);
            value[key] = wrong;
            let error = narinfo_from_json(&value, &dir, &path()).unwrap_err();
            assert_eq!(error.key, key);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("bad path info JSON, {words}")),
                "{error}"
            );
        }
        let error = path_info_from_json(&Value::Null, &dir, &path())
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "bad path info JSON: expected an object, got null (is the path absent?)"
        );
    }

    #[test]
    fn entries_of_old_nix() {
        let dir = StoreDir::default();
        let entry = nix_2_8(expected(JsonVersion::V1), &dir, &path());
        let full_path = format!("/nix/store/{BASE}");
        assert_eq!(entry["path"], full_path.as_str());
        assert_eq!(entry["deriver"], full_path.as_str());
        for absent in ["version", "storeDir", "compression"] {
            assert_eq!(entry.get(absent), None);
        }
        assert_eq!(path_inside(&entry, &dir), Ok(Some(path())));
        let read = narinfo_from_json(&entry, &dir, &path()).unwrap();
        assert_eq!(read.info, full().info);

        let bare = PathInfo::new(path(), NarHash::from_bytes([0; 32]), 7);
        let value = path_info_to_json(&bare, &dir, JsonVersion::V1, JsonFields::Impure);
        let entry = nix_2_8(value, &dir, &path());
        assert_eq!(
            entry,
            json!({"path": full_path, "narHash": ZERO, "narSize": 7, "references": []})
        );

        assert_eq!(path_inside(&json!({"path": BASE}), &dir), Ok(Some(path())));
        assert_eq!(path_inside(&json!({}), &dir), Ok(None));
        assert!(path_inside(&json!({"path": "/nix/store"}), &dir).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(mut narinfo in narinfo(), time in any::<u32>(), ultimate: bool) {
            let dir = StoreDir::default();
            narinfo.info.registration_time = time.into();
            narinfo.info.ultimate = ultimate;
            let path = narinfo.info.path.clone();
            for version in JsonVersion::ALL {
                let value = narinfo_to_json(&narinfo, &dir, version, JsonFields::Impure);
                let text = serde_json::to_string(&value).unwrap();
                let again = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(&narinfo_from_json(&again, &dir, &path).unwrap(), &narinfo);
                prop_assert_eq!(&path_info_from_json(&again, &dir, &path).unwrap(), &narinfo.info);
            }
        }
    }
}
