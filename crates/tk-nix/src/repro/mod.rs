//! Whether a build gives the same again.
//!
//! - [`check`] builds a derivation again and compares, file by file and byte by byte.
//! - [`compare_stores`] builds nothing: it asks caches and other stores whether they hold the same.
//! - [`audit`] tells what makes a build depend on more than what it declares.
//!
//! The answer of the first two is a [`ReproVerdict`] for each output, of the last one a list of [`Finding`]s.
//!
//! # How something is built again
//! Outputs whose paths are known before building are built in the check mode of the daemon (as
//! `nix-build --check`). It compares by NAR hash and stops at the first output that differs; with
//! `keep-failed` it leaves the second result beside the first as `<path>.check`, which is read there. What
//! of several outputs was not compared is told as such.
//!
//! In that mode Nix (2.8 to 2.34) takes a content-addressed derivation for unchanged whatever it gives.
//! So these are built again as another derivation that differs only in one source more, which the
//! builder does not look at; its outputs are paths of the store as any others.

mod audit;
mod check;
mod findings;
mod flake_lock;
mod stores;

pub use audit::{audit, audit_derivation, audit_settings};
pub use check::{CheckOptions, check};
pub use findings::{Finding, Severity};
pub use flake_lock::audit_flake;
pub use stores::{WantedOutput, compare_stores, wanted};

use serde_json::{Value, json};
use tk_nar::{Difference, DifferenceKind, Side};
use tk_narinfo::PathInfo;
use tk_path::NarHash;
use tk_store::Compared;

pub use tk_nar::compare::MAX_DIFFERENCES;

/// Whether all copies of one output are the same.
#[derive(Debug, Clone, PartialEq)]
pub struct ReproVerdict {
    /// The derivation, if it is known: a whole path.
    pub drv_path: Option<String>,
    /// The output's name, if it is known.
    pub output: Option<String>,
    /// The output: a whole path. Of content-addressed ones that of the first copy.
    pub path: Option<String>,
    /// Whether they are; `None` if that could not be found out.
    pub reproducible: Option<bool>,
    /// What was compared, in the order in which it was built or asked.
    pub copies: Vec<Instance>,
    /// Which two of the copies `differences` are between.
    pub compared: Option<[usize; 2]>,
    /// Where they differ, up to the limit, in the order of the NAR.
    pub differences: Vec<Difference>,
    /// How many differences there are altogether.
    pub count: u64,
    /// What else is to be known, as a sentence.
    pub note: Option<String>,
}

/// One build of an output, or what one store has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Which: `build 1`, or the URI of a store.
    pub from: String,
    /// What is known of it.
    pub state: InstanceState,
}

/// What is known of a [`Instance`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceState {
    /// The output is there, and its NAR hash is known.
    Present {
        /// Where: a whole path.
        path: String,
        /// The SHA-256 hash of its NAR.
        nar_hash: NarHash,
    },
    /// The store said that it does not have it.
    Absent,
    /// It could not be asked, or cannot be read; the reason in one line.
    Unknown(String),
}

impl ReproVerdict {
    fn new(drv_path: Option<String>, output: Option<String>) -> Self {
        ReproVerdict {
            drv_path,
            output,
            path: None,
            reproducible: None,
            copies: Vec::new(),
            compared: None,
            differences: Vec::new(),
            count: 0,
            note: None,
        }
    }

    /// The name for people: `/nix/store/…-hello.drv^out`, or the path.
    pub fn name(&self) -> String {
        match (&self.drv_path, &self.output, &self.path) {
            (Some(drv), Some(output), _) => format!("{drv}^{output}"),
            (_, _, Some(path)) => path.clone(),
            _ => "an output".into(),
        }
    }

    /// All of it, with keys in camelCase; what is not known is null.
    ///
    /// A difference has `path` (`""` is the output itself), `kind` (`contents`, `type`, `executable`, `target`,
    /// `onlyIn`), `offset` (of contents only), `left` and `right`: bytes of contents as text in which all but
    /// printable ASCII is escaped as in Rust, types, yes or no, targets; null where a side has nothing.
    pub fn to_json(&self) -> Value {
        let hash = |copy: &Instance| match &copy.state {
            InstanceState::Present { nar_hash, .. } => Some(nar_hash.sri()),
            _ => None,
        };
        json!({
            "drvPath": self.drv_path,
            "output": self.output,
            "path": self.path,
            "reproducible": self.reproducible,
            "narHashes": self.copies.iter().map(hash).collect::<Vec<_>>(),
            "copies": self.copies.iter().map(Instance::to_json).collect::<Vec<_>>(),
            "compared": self.compared,
            "differences": self.differences.iter().map(difference_json).collect::<Vec<_>>(),
            "differenceCount": self.count,
            "note": self.note,
        })
    }

    /// Notes where the copies `which` differ.
    fn differ(&mut self, which: [usize; 2], compared: Compared) {
        self.compared = Some(which);
        self.count = compared.found.count;
        self.differences = compared.found.differences;
    }
}

impl Instance {
    fn present(from: impl Into<String>, path: String, nar_hash: NarHash) -> Self {
        Instance {
            from: from.into(),
            state: InstanceState::Present { path, nar_hash },
        }
    }

    fn to_json(&self) -> Value {
        let (state, path, hash, why) = match &self.state {
            InstanceState::Present { path, nar_hash } => {
                ("present", Some(path), Some(nar_hash.sri()), None)
            }
            InstanceState::Absent => ("absent", None, None, None),
            InstanceState::Unknown(why) => ("unknown", None, None, Some(why)),
        };
        json!({ "from": self.from, "state": state, "path": path, "narHash": hash, "why": why })
    }
}

/// One difference between two NARs as JSON, see [`ReproVerdict::to_json`].
pub fn difference_json(difference: &Difference) -> Value {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (kind, offset, [left, right]) = match &difference.kind {
        DifferenceKind::Contents {
            offset, excerpts, ..
        } => {
            let both = excerpts.each_ref().map(|bytes| json!(text(bytes)));
            ("contents", Some(*offset), both)
        }
        DifferenceKind::Type(both) => ("type", None, both.map(|node| json!(node.name()))),
        DifferenceKind::Executable(both) => ("executable", None, both.map(Value::from)),
        DifferenceKind::Target(both) => {
            let both = both.each_ref().map(|target| json!(lossy(target)));
            ("target", None, both)
        }
        DifferenceKind::OnlyIn(Side::Left, node) => {
            ("onlyIn", None, [json!(node.name()), Value::Null])
        }
        DifferenceKind::OnlyIn(Side::Right, node) => {
            ("onlyIn", None, [Value::Null, json!(node.name())])
        }
    };
    let mut value = json!({
        "path": lossy(&difference.path), "kind": kind, "offset": offset, "left": left, "right": right,
    });
    if let DifferenceKind::Contents { sizes, .. } = &difference.kind {
        value["sizes"] = json!(sizes);
    }
    value
}

/// The error that the NAR of `info` from `from` is not what its metadata says.
fn mismatch(info: &PathInfo, from: &str, actual: NarHash) -> tk_store::Error {
    tk_store::Error::Mismatch {
        what: "NAR hash",
        path: info.path.clone(),
        from: from.to_owned(),
        expected: info.nar_hash.to_string(),
        actual: actual.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tk_nar::NodeType;

    #[test]
    fn differences_in_json() {
        for (kind, expected) in [
            (
                DifferenceKind::Contents {
                    offset: 3,
                    sizes: [5, 4],
                    excerpts: [b"4\n".to_vec(), b"\xff".to_vec()],
                },
                r#"{"kind":"contents","left":"4\\n","offset":3,"path":"a/b","right":"\\xff","sizes":[5,4]}"#,
            ),
            (
                DifferenceKind::Executable([true, false]),
                r#"{"kind":"executable","left":true,"offset":null,"path":"a/b","right":false}"#,
            ),
            (
                DifferenceKind::OnlyIn(Side::Right, NodeType::Directory),
                r#"{"kind":"onlyIn","left":null,"offset":null,"path":"a/b","right":"directory"}"#,
            ),
        ] {
            let path = b"a/b".to_vec();
            let found: Value = difference_json(&Difference { path, kind });
            let expected: Value = serde_json::from_str(expected).unwrap();
            assert_eq!(found, expected);
        }
    }
}
