//! The golden data: files made by real Nix and by other implementations, in a folder of the shape
//! that `tests/vectors/data/README.md` describes. Files are found by folder and name pattern, never by a list of names.

use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// A folder of golden data.
pub struct Vectors {
    root: PathBuf,
}

/// One file of it.
pub struct Golden {
    /// Its path below the folder, with `/`.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Vectors {
    /// The folder `$TK_VECTORS`, or else the one that every clone has, `tests/vectors/data`.
    ///
    /// # Panics
    /// When it is not a folder: a slip in its name must not pass for a test.
    pub fn find() -> Self {
        let root = match env::var_os("TK_VECTORS").filter(|dir| !dir.is_empty()) {
            Some(dir) => PathBuf::from(dir),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/data"),
        };
        assert!(
            root.is_dir(),
            "TK_VECTORS={} is not a folder",
            root.display()
        );
        Vectors { root }
    }

    /// Where `name` is, be it there or not.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The files directly in `folder` whose name ends in `suffix`, by name.
    pub fn files(&self, folder: &str, suffix: &str) -> Vec<Golden> {
        let mut found = Vec::new();
        collect(&self.root.join(folder), folder, suffix, false, &mut found);
        found
    }

    /// The files anywhere below `folder` whose name ends in `suffix`, by name.
    pub fn below(&self, folder: &str, suffix: &str) -> Vec<Golden> {
        let mut found = Vec::new();
        collect(&self.root.join(folder), folder, suffix, true, &mut found);
        found
    }

    /// One file of JSON, if it is there.
    pub fn json(&self, name: &str) -> Option<Value> {
        let text = fs::read_to_string(self.root.join(name)).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}")))
    }

    /// The items of a file that is a JSON array; none if there is no such file.
    pub fn items(&self, name: &str) -> Vec<Value> {
        match self.json(name) {
            Some(Value::Array(items)) => items,
            Some(_) => panic!("{name} is not an array"),
            None => Vec::new(),
        }
    }
}

impl Golden {
    /// The name of the file without its folder.
    pub fn base(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// Its content as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Its content as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

fn collect(dir: &Path, name: &str, suffix: &str, deep: bool, found: &mut Vec<Golden>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut entries: Vec<_> = entries.map(|entry| entry.expect("readable")).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let base = entry.file_name().to_string_lossy().into_owned();
        let name = if name.is_empty() {
            base.clone()
        } else {
            format!("{name}/{base}")
        };
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() && deep {
            collect(&entry.path(), &name, suffix, deep, found);
        } else if kind.is_file() && base.ends_with(suffix) {
            let bytes = fs::read(entry.path()).unwrap_or_else(|e| panic!("{name}: {e}"));
            found.push(Golden { name, bytes });
        }
    }
}
