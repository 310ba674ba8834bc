//! The names of the compressions a narinfo may state.
//!
//! The list is Nix's (the names libarchive gives its filters, plus `none` and `br`). A name says how the
//! file behind a narinfo's `URL` is packed; whether it can be unpacked is the matter of whoever reads that file.

use std::fmt;
use std::str::FromStr;

/// How a NAR in a binary cache is packed. `Display` and `FromStr` use Nix's names (`none`, `br`, `bzip2`, …).
///
/// There is no default: Nix packs new NARs with xz, and takes a narinfo *without* the field as bzip2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // each variant is the format of that name
pub enum Compression {
    None,
    Br,
    Bzip2,
    Compress,
    Grzip,
    Gzip,
    Lrzip,
    Lz4,
    Lzip,
    Lzma,
    Lzop,
    Xz,
    Zstd,
}

impl Compression {
    /// All of them, in the order of their names.
    pub const ALL: [Compression; 13] = [
        Compression::None,
        Compression::Br,
        Compression::Bzip2,
        Compression::Compress,
        Compression::Grzip,
        Compression::Gzip,
        Compression::Lrzip,
        Compression::Lz4,
        Compression::Lzip,
        Compression::Lzma,
        Compression::Lzop,
        Compression::Xz,
        Compression::Zstd,
    ];

    /// Nix's name, as it stands in a narinfo.
    pub const fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Br => "br",
            Compression::Bzip2 => "bzip2",
            Compression::Compress => "compress",
            Compression::Grzip => "grzip",
            Compression::Gzip => "gzip",
            Compression::Lrzip => "lrzip",
            Compression::Lz4 => "lz4",
            Compression::Lzip => "lzip",
            Compression::Lzma => "lzma",
            Compression::Lzop => "lzop",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
        }
    }

    /// What Nix puts behind `.nar` in the name of a packed NAR, dot included; `""` for those without one.
    ///
    /// Gzip has none in Nix, so this is for making names and says nothing about reading them.
    pub const fn extension(self) -> &'static str {
        match self {
            Compression::Br => ".br",
            Compression::Bzip2 => ".bz2",
            Compression::Lz4 => ".lz4",
            Compression::Lzip => ".lzip",
            Compression::Xz => ".xz",
            Compression::Zstd => ".zst",
            _ => "",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Compression {
    type Err = UnknownCompression;

    /// Exactly Nix's names. The empty string is none of them: what it means depends on where it stands.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Compression::ALL
            .into_iter()
            .find(|c| c.as_str() == name)
            .ok_or_else(|| UnknownCompression(crate::text::shown(name)))
    }
}

/// A compression name Nix does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown compression {0}; Nix knows none, br, bzip2, gzip, lz4, xz, zstd and a few older ones"
)]
pub struct UnknownCompression(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for c in Compression::ALL {
            assert_eq!(c.to_string().parse(), Ok(c));
        }
    }

    #[test]
    fn extensions_are_those_of_nix() {
        let with: Vec<_> = Compression::ALL
            .iter()
            .filter(|c| !c.extension().is_empty())
            .map(|c| format!("{c}{}", c.extension()))
            .collect();
        assert_eq!(
            with,
            [
                "br.br",
                "bzip2.bz2",
                "lz4.lz4",
                "lzip.lzip",
                "xz.xz",
                "zstd.zst"
            ]
        );
    }

    #[test]
    fn other_names_are_refused() {
        for name in ["", "XZ", "xz ", "brotli", "zst", "identity"] {
            assert!(name.parse::<Compression>().is_err(), "{name:?}");
        }
    }
}
