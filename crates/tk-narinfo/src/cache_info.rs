//! `nix-cache-info`: what a binary cache says about itself.
//!
//! ```text
//! file = { key ":" value "\n" }
//! ```
//! Values are trimmed; lines without a colon and unknown keys are ignored (libstore's binary-cache-store.cc). Known keys:
//! `StoreDir`, `WantMassQuery` (`1` is yes), `Priority` (an integer, lower is asked first).
//! The last two are only defaults: settings of the user win.

use tk_path::StoreDir;

use crate::text::shown;

/// A `nix-cache-info` larger than this is none: the real ones have a hundred bytes. For whoever fetches the file.
pub const MAX_CACHE_INFO_BYTES: usize = 64 * 1024;

/// The content of `nix-cache-info`. `None` is what the file does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheInfo {
    /// Store directory of the paths in the cache, as written.
    pub store_dir: Option<String>,
    /// Whether the cache is fine with being asked about many paths at once.
    pub want_mass_query: Option<bool>,
    /// Order among caches, lower first.
    pub priority: Option<i32>,
}

impl CacheInfo {
    /// What Nix writes into a new cache: the store directory and nothing else.
    pub fn new(dir: &StoreDir) -> CacheInfo {
        CacheInfo {
            store_dir: Some(dir.as_str().to_owned()),
            ..CacheInfo::default()
        }
    }

    /// Reads the file. Of a repeated key the last line counts, except that all `StoreDir` lines must agree (Nix compares
    /// each with its own store).
    pub fn parse(text: impl AsRef<[u8]>) -> Result<CacheInfo, CacheInfoError> {
        let mut info = CacheInfo::default();
        for (line, text) in (1..).zip(text.as_ref().split(|&b| b == b'\n')) {
            let Some(colon) = memchr::memchr(b':', text) else {
                continue;
            };
            let value = std::str::from_utf8(&text[colon + 1..]).map(|v| v.trim_matches(BLANKS));
            match (&text[..colon], value) {
                (b"StoreDir", Ok(value)) => info.set_store_dir(line, value)?,
                (b"WantMassQuery", value) => info.want_mass_query = Some(value == Ok("1")),
                (b"Priority", Ok(value)) => info.priority = Some(priority(line, value)?),
                (b"StoreDir", Err(_)) => {
                    return Err(CacheInfoError::NotUtf8 {
                        line,
                        key: "StoreDir",
                    });
                }
                (b"Priority", Err(_)) => {
                    return Err(CacheInfoError::NotUtf8 {
                        line,
                        key: "Priority",
                    });
                }
                _ => {}
            }
        }
        Ok(info)
    }

    /// Whether the cache is for stores at `dir`. A file that does not say counts as fitting, as in Nix.
    pub fn check_store_dir(&self, dir: &StoreDir) -> Result<(), CacheInfoError> {
        match &self.store_dir {
            Some(theirs) if theirs != dir.as_str() => Err(CacheInfoError::StoreDir {
                theirs: shown(theirs),
                ours: dir.as_str().to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The file's text: a line for each value that is set.
    pub fn print(&self) -> String {
        let mut text = String::new();
        if let Some(dir) = &self.store_dir {
            text += &format!("StoreDir: {dir}\n");
        }
        if let Some(want) = self.want_mass_query {
            text += &format!("WantMassQuery: {}\n", u8::from(want));
        }
        if let Some(priority) = self.priority {
            text += &format!("Priority: {priority}\n");
        }
        text
    }

    fn set_store_dir(&mut self, line: usize, value: &str) -> Result<(), CacheInfoError> {
        match &self.store_dir {
            Some(before) if before != value => Err(CacheInfoError::TwoStoreDirs { line }),
            _ => {
                self.store_dir = Some(value.to_owned());
                Ok(())
            }
        }
    }
}

/// Why a `nix-cache-info` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheInfoError {
    /// A value is not UTF-8.
    #[error("nix-cache-info line {line}: {key} is not UTF-8")]
    NotUtf8 {
        /// The number of the line, counted from 1.
        line: usize,
        /// The key before the colon.
        key: &'static str,
    },
    /// The priority does not begin with an integer.
    #[error("nix-cache-info line {line}: Priority {value} is not an integer")]
    Priority {
        /// The number of the line, counted from 1.
        line: usize,
        /// The value as it stands there, quoted.
        value: String,
    },
    /// Two lines name different store directories.
    #[error("nix-cache-info line {line}: a second StoreDir differs from the first")]
    TwoStoreDirs {
        /// The number of the second line, counted from 1.
        line: usize,
    },
    /// The cache is for another store directory.
    #[error(
        "this binary cache is for stores at {theirs}, not {ours:?}: its paths cannot be used here"
    )]
    StoreDir {
        /// What the cache says, quoted.
        theirs: String,
        /// The store directory asked for.
        ours: String,
    },
}

/// What Nix's `trim` cuts off.
const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];

/// The integer at the start of `value`. Text behind it is ignored, because Nix reads with `std::stoi`.
fn priority(line: usize, value: &str) -> Result<i32, CacheInfoError> {
    let sign = usize::from(value.starts_with(['+', '-']));
    let digits = value[sign..].bytes().take_while(u8::is_ascii_digit).count();
    value[..sign + digits]
        .parse()
        .map_err(|_| CacheInfoError::Priority {
            line,
            value: shown(value),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_as_nix_does() {
        let info =
            CacheInfo::parse("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n").unwrap();
        assert_eq!(info.store_dir.as_deref(), Some("/nix/store"));
        assert_eq!(
            (info.want_mass_query, info.priority),
            (Some(true), Some(40))
        );

        let odd =
            "StoreDir:/nix/store \r\nno colon\nColour: red\nWantMassQuery: yes\nPriority:\t-7up";
        let info = CacheInfo::parse(odd).unwrap();
        assert_eq!(info.store_dir.as_deref(), Some("/nix/store"));
        assert_eq!(
            (info.want_mass_query, info.priority),
            (Some(false), Some(-7))
        );

        assert_eq!(CacheInfo::parse("").unwrap(), CacheInfo::default());
        assert!(CacheInfo::parse(b"\xff: \xff\nWantMassQuery: \xff\n").is_ok());
    }

    #[test]
    fn damaged_files_name_the_line() {
        for (text, expected) in [
            ("Priority: high\n", "line 1: Priority \"high\""),
            ("\nPriority: \n", "line 2: Priority \"\""),
            ("Priority: 99999999999\n", "line 1: Priority"),
            (
                "StoreDir: /a\n\nStoreDir: /b\n",
                "line 3: a second StoreDir",
            ),
        ] {
            let error = CacheInfo::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(CacheInfo::parse(b"StoreDir: /\xff\n").is_err());
    }

    #[test]
    fn another_store_dir_does_not_fit() {
        let (ours, theirs) = (StoreDir::default(), StoreDir::new("/gnu/store").unwrap());
        assert_eq!(CacheInfo::new(&ours).print(), "StoreDir: /nix/store\n");
        assert_eq!(CacheInfo::new(&ours).check_store_dir(&ours), Ok(()));
        assert_eq!(CacheInfo::default().check_store_dir(&ours), Ok(()));
        let error = CacheInfo::new(&theirs)
            .check_store_dir(&ours)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/gnu/store") && error.contains("/nix/store"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(
            store_dir in proptest::option::of("/[a-z/]{0,20}"),
            want_mass_query in any::<Option<bool>>(),
            priority in any::<Option<i32>>(),
        ) {
            let info = CacheInfo { store_dir, want_mass_query, priority };
            prop_assert_eq!(CacheInfo::parse(info.print()), Ok(info));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = CacheInfo::parse(&bytes);
        }
    }
}
