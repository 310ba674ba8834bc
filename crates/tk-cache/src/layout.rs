//! The names of what is in a binary cache, relative to the cache.
//!
//! ```text
//! nix-cache-info          what the cache says about itself
//! <hash part>.narinfo     metadata of a path; names its NAR
//! <hash part>.ls          what is in its NAR, as JSON
//! nar/<file hash>.nar.zst the NAR; the name is free, the narinfo's URL decides
//! nar/<NAR hash>-<encoding>.nar.zst  the same, where the name must be known before the bytes
//! debuginfo/<build id>.debug  which NAR holds debug symbols, as JSON
//! log/<derivation>        a build log
//! build-trace-v2/<derivation>/<output>.doi    what an output turned out to be, as JSON
//! realisations/sha256:<hex>!<output>.doi      the same, for Nix up to 2.34
//! ```
//! Hash parts and hashes are nix32.

use tk_narinfo::{
    CacheInfo, Compression, NarInfo,
    realisation::{DrvOutput, legacy},
};
use tk_path::{Encoding, Hash, HashPart, NarHash, StoreDir, StorePath};

/// The name of [`CacheInfo`].
pub const CACHE_INFO: &str = "nix-cache-info";

/// The folder of the NARs that Nix and this crate write.
pub const NAR_FOLDER: &str = "nar";

/// The metadata of the path that starts with `part`.
pub fn narinfo(part: &HashPart) -> String {
    format!("{}{NARINFO}", part.as_str())
}

/// The name of a packed NAR that is known before its bytes are.
///
/// `encoding` says how it was packed ([`Compressor::encoding`](crate::compress::Compressor)): the
/// same name is always the same bytes, so that whoever uploads it again changes nothing for those
/// who read it.
pub fn nar(hash: &NarHash, compression: Compression, encoding: &str) -> String {
    let url = NarInfo::url_for(&(*hash).into(), compression);
    if encoding.is_empty() {
        return url;
    }
    let digest = NarHash::digest(encoding.as_bytes());
    let id = Hash::from(digest).digits(Encoding::Nix32);
    let (digits, suffix) = url.split_once('.').unwrap_or((&url, "nar"));
    format!("{digits}-{}.{suffix}", &id[..ENCODING_DIGITS])
}

/// The listing of the path that starts with `part`.
pub fn listing(part: &HashPart) -> String {
    format!("{}.ls", part.as_str())
}

/// The folder of the build logs.
pub const LOG_FOLDER: &str = "log";

/// The folder of the index of debug symbols.
pub const DEBUG_FOLDER: &str = "debuginfo";

/// The build log of the derivation `drv`.
pub fn log(drv: &StorePath) -> String {
    format!("{LOG_FOLDER}/{drv}")
}

/// What the output `id` turned out to be. The file holds the value without its key.
pub fn realisation(id: &DrvOutput) -> String {
    format!("build-trace-v2/{}/{}.doi", id.drv, id.output)
}

/// The same in the older form; the file holds all.
pub fn legacy_realisation(id: &legacy::LegacyDrvOutput) -> String {
    format!("realisations/{id}.doi")
}

/// The hash part of which `name` is the narinfo; `None` if it is something else.
pub fn part_of_narinfo(name: &str) -> Option<HashPart> {
    HashPart::parse(name.strip_suffix(NARINFO)?).ok()
}

/// The media type that Nix gives an object of this name.
pub fn mime_type(name: &str) -> &'static str {
    match name {
        CACHE_INFO => "text/x-nix-cache-info",
        _ if name.ends_with(NARINFO) => "text/x-nix-narinfo",
        _ if name.starts_with("log/") => "text/plain; charset=utf-8",
        _ if name.starts_with("nar/") => "application/x-nix-nar",
        _ => "application/json",
    }
}

/// `url` as a path inside of the cache.
///
/// A folder has no servers: the URL is a path, taken as it stands (`%20` is no blank), as in
/// Nix's local-binary-cache-store.cc.
///
/// # Errors
/// When it leads out of the cache, or would in some reader: absolute, another scheme, `.` and `..`.
pub fn path_of_url(url: &str) -> Result<&str, UrlError> {
    let fault = |why| {
        Err(UrlError {
            url: url.to_owned(),
            why,
        })
    };
    if url.starts_with('/') {
        return fault("is absolute");
    }
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if scheme.is_some_and(|s| {
        s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    }) {
        return fault("is on another server");
    }
    if url.contains('\0') {
        return fault("holds a NUL");
    }
    if url.split('/').any(|step| matches!(step, "." | "..")) {
        return fault("has '.' or '..' in it");
    }
    if url.is_empty() || url.ends_with('/') {
        return fault("names no file");
    }
    Ok(url)
}

/// A URL that does not belong into the narinfo of a folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its URL {url:?} {why}, where a file inside of the cache is needed")]
pub struct UrlError {
    url: String,
    why: &'static str,
}

/// What a new cache says about itself: what Nix writes, and what else is `Some`.
pub(crate) fn cache_info(
    dir: &StoreDir,
    want_mass_query: Option<bool>,
    priority: Option<i32>,
) -> CacheInfo {
    CacheInfo {
        want_mass_query,
        priority,
        ..CacheInfo::new(dir)
    }
}

const NARINFO: &str = ".narinfo";

/// The text of a narinfo that was read, with the fields that are unknown here.
pub(crate) fn narinfo_text(narinfo: &NarInfo, dir: &StoreDir) -> String {
    let mut text = narinfo.print(dir);
    for (key, value) in &narinfo.extra {
        text.push_str(&format!("{key}: {value}\n"));
    }
    text
}

/// Five bits each: enough to tell the few ways of packing one NAR apart.
const ENCODING_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use tk_path::OutputName;

    const PART: &str = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q";

    #[test]
    fn names_are_those_of_nix() {
        let part = HashPart::parse(PART).unwrap();
        assert_eq!(narinfo(&part), format!("{PART}.narinfo"));
        assert_eq!(listing(&part), format!("{PART}.ls"));
        assert_eq!(part_of_narinfo(&narinfo(&part)), Some(part));
        for name in [
            "nix-cache-info",
            "nar",
            ".narinfo",
            "x.narinfo",
            &listing(&part),
        ] {
            assert_eq!(part_of_narinfo(name), None, "{name}");
        }
        let drv = StorePath::parse(&format!("{PART}-foo.drv")).unwrap();
        assert_eq!(log(&drv), format!("log/{PART}-foo.drv"));
        let id = DrvOutput {
            drv,
            output: OutputName::out(),
        };
        assert_eq!(
            realisation(&id),
            format!("build-trace-v2/{PART}-foo.drv/out.doi")
        );
        let id = format!("sha256:{}!out", "0".repeat(64));
        assert_eq!(
            legacy_realisation(&id.parse().unwrap()),
            format!("realisations/{id}.doi")
        );
    }

    #[test]
    fn nars_are_named_by_hash_and_encoding() {
        let hash = NarHash::digest(b"nar");
        let plain = nar(&hash, Compression::None, "");
        let digits = Hash::from(hash).digits(Encoding::Nix32);
        assert_eq!(plain, format!("nar/{digits}.nar"));
        let one = nar(&hash, Compression::Zstd, "zstd level 3");
        let other = nar(&hash, Compression::Zstd, "zstd level 4");
        assert_ne!(one, other);
        for name in [one, other] {
            assert!(name.starts_with(&format!("nar/{digits}-")), "{name}");
            assert!(name.ends_with(".nar.zst"), "{name}");
            assert_eq!(path_of_url(&name).unwrap(), name);
        }
    }

    #[test]
    fn media_types_are_those_of_nix() {
        for (name, mime) in [
            ("nix-cache-info", "text/x-nix-cache-info"),
            ("x.narinfo", "text/x-nix-narinfo"),
            ("nar/x.nar.xz", "application/x-nix-nar"),
            ("x.ls", "application/json"),
            ("log/x.drv", "text/plain; charset=utf-8"),
            ("build-trace-v2/x.drv/out.doi", "application/json"),
        ] {
            assert_eq!(mime_type(name), mime, "{name}");
        }
    }

    #[test]
    fn urls_stay_inside() {
        for url in [
            "nar/x.nar",
            "x.nar",
            "nar/a%2e%2e/x",
            "nar/q.nar?a=://b",
            "nar/..x",
            "nar//x",
        ] {
            assert_eq!(path_of_url(url).unwrap(), url);
        }
        for url in [
            "",
            "/etc/passwd",
            "../../etc/passwd",
            "nar/../../etc/passwd",
            "nar/..",
            "./nar/x",
            "nar/",
            "file:///etc/passwd",
            "https://example.org/nar/x.nar",
            "nar/x\0",
        ] {
            let error = path_of_url(url).unwrap_err().to_string();
            assert!(error.contains(&format!("{url:?}")), "{error}");
        }
    }
}
