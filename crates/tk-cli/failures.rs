//! What became of single paths, for people and for programs: each cause once.

use crate::{CommandContext, output};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tk_narinfo::Untrusted;
use tk_path::{StoreDir, StorePath};
use tk_store::Error;

/// Says why paths failed: each cause once, with what has it, the first that came first; then how many
/// failed only because what they refer to did.
pub fn tell<'a>(cx: &CommandContext, failed: impl IntoIterator<Item = (&'a StorePath, &'a Error)>) {
    for line in lines(failed) {
        cx.ui.error(line);
    }
}

/// One failure in a report: the path (null if it is about none), the words, and what
/// [`Error::kind`] says, which programs can rely on.
pub fn to_json(dir: &StoreDir, path: &StorePath, error: &Error) -> Value {
    json!({ "path": dir.path(path), "error": line_of(error), "kind": error.kind() })
}

/// The report of a command that failed as a whole.
pub fn whole_to_json(error: &anyhow::Error) -> Value {
    let (line, kind) = (output::plain(&output::line_of(error)), kind_of(error));
    let failed = json!([{ "path": null, "error": line, "kind": kind }]);
    json!({ "error": line, "kind": kind, "failed": failed })
}

/// The error in one line without saying twice which path it is about.
pub fn line_of(error: &Error) -> String {
    let line = match error {
        Error::Untrusted { source, .. } => {
            let cause = std::error::Error::source(source).map(|cause| format!(": {cause}"));
            format!("{source}{}", cause.unwrap_or_default())
        }
        error => error.to_line(),
    };
    output::plain(&line)
}

/// Says why `count` paths are not trusted, of which `why` is about the first.
pub fn untrusted(why: &Untrusted, count: usize) -> String {
    match count {
        1 => why.to_string(),
        count => format!("{}, such as {}", why.of_many(count), why.path),
    }
}

/// What failed for one reason.
struct FailureGroup<'a> {
    first: &'a Error,
    paths: Vec<&'a StorePath>,
}

/// The lines of [`tell`].
pub fn lines<'a>(failed: impl IntoIterator<Item = (&'a StorePath, &'a Error)>) -> Vec<String> {
    let failed: Vec<_> = failed.into_iter().collect();
    let paths: BTreeSet<_> = failed.iter().map(|(path, _)| *path).collect();
    let mut groups: Vec<FailureGroup<'a>> = Vec::new();
    let mut known = BTreeMap::new();
    let mut consequences = 0;
    for (path, error) in failed {
        if let Error::MissingReference { reference, .. } = error
            && reference != path
            && paths.contains(reference)
        {
            consequences += 1;
            continue;
        }
        let place = *known.entry(cause_of(path, error)).or_insert_with(|| {
            groups.push(FailureGroup {
                first: error,
                paths: Vec::new(),
            });
            groups.len() - 1
        });
        groups[place].paths.push(path);
    }
    let mut lines: Vec<_> = groups.iter().map(FailureGroup::line).collect();
    match consequences {
        0 => {}
        1 => lines.push("1 path that refers to such a path was left out".into()),
        n => lines.push(format!("{n} paths that refer to such paths were left out")),
    }
    lines
}

impl FailureGroup<'_> {
    fn line(&self) -> String {
        let count = self.paths.len();
        let line = match self.first {
            Error::Untrusted { source, .. } => untrusted(source, count),
            error => line_of(error),
        };
        let line = match self.first {
            Error::Untrusted { .. } => format!("{line}; to do without: --no-check-sigs"),
            _ => match count {
                1 => line,
                2 => format!("{line}; 1 more path failed for the same reason"),
                n => format!("{line}; {} more paths failed for the same reason", n - 1),
            },
        };
        output::plain(&line)
    }
}

/// What failures that are told as one have in common.
fn cause_of(path: &StorePath, error: &Error) -> String {
    match error {
        // Each is damaged on its own.
        Error::Mismatch { .. } | Error::Malformed { .. } | Error::NotFound { .. } => {
            path.to_string()
        }
        Error::Untrusted { source, .. } => source.of_many(0),
        Error::MissingReference { reference, .. } => reference.to_string(),
        error => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            let words = cause.to_string();
            // A file's name is that of the path, more often than not.
            format!("{} {}", error.kind(), words.replace(path.as_str(), ""))
        }
    }
}

/// The name of the class of an error that ended a command: that of the store's error if there is one.
fn kind_of(error: &anyhow::Error) -> &'static str {
    let kind = error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return Some(error.kind());
        }
        if let Some(failure) = cause.downcast_ref::<tk_nix::NixFailure>() {
            return Some(failure.cause.name());
        }
        if cause.is::<tk_nar::MemberError>() {
            return Some("notFound");
        }
        cause.is::<std::io::Error>().then_some("io")
    });
    kind.unwrap_or("invalid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tk_narinfo::{PathInfo, Policy, SecretKey, TrustedKeys};
    use tk_path::NarHash;

    fn path(n: usize) -> StorePath {
        StorePath::parse(&format!("{n:032}-pkg")).unwrap()
    }

    fn missing(n: usize, reference: usize) -> (StorePath, Error) {
        let error = Error::MissingReference {
            path: path(n),
            reference: path(reference),
            store: "s".into(),
        };
        (path(n), error)
    }

    fn told(failed: &[(StorePath, Error)]) -> Vec<String> {
        lines(failed.iter().map(|(path, error)| (path, error)))
    }

    #[test]
    fn what_follows_is_counted() {
        let mut failed = vec![missing(2, 1), missing(3, 2), missing(1, 9)];
        let expected = [
            format!("{} refers to {}, which is not in s", path(1), path(9)),
            "2 paths that refer to such paths were left out".to_owned(),
        ];
        assert_eq!(told(&failed), expected);
        failed.remove(1);
        let last = "1 path that refers to such a path was left out";
        assert_eq!(told(&failed)[1], last);
    }

    #[test]
    fn one_cause_is_said_once() {
        let io = |n: usize, words: &str| {
            let doing = format!("reading http://h/nar/{n}.nar");
            (
                path(n),
                Error::io(doing, io::Error::other(words.to_owned())),
            )
        };
        let failed = [
            io(1, "HTTP 403"),
            io(2, "HTTP 500"),
            io(3, "HTTP 403"),
            io(4, "HTTP 403"),
        ];
        let expected = [
            "reading http://h/nar/1.nar: HTTP 403; 2 more paths failed for the same reason",
            "reading http://h/nar/2.nar: HTTP 500",
        ];
        assert_eq!(told(&failed), expected);
    }

    #[test]
    fn what_is_not_trusted_is_told_by_key() {
        let keys = ["ci-1", "dev-1"].map(|name| SecretKey::generate(name).unwrap());
        let dir = StoreDir::default();
        let policy = Policy::new(TrustedKeys::from_iter([keys[1].public()]));
        let failed: Vec<_> = (0..40)
            .map(|n| {
                let mut info = PathInfo::new(path(n), NarHash::from_bytes([0; 32]), 1);
                if n > 0 {
                    info.sign(&dir, &keys[0]).unwrap();
                }
                let source = policy.check(&dir, &info).unwrap_err();
                let error = Error::Untrusted {
                    path: path(n),
                    source,
                };
                (path(n), error)
            })
            .collect();
        let expected = [
            format!(
                "{} is not signed, trusted keys: dev-1; to do without: --no-check-sigs",
                path(0)
            ),
            format!(
                "39 paths are signed by ci-1, which is not among the trusted keys dev-1; add it with \
                 --trusted-key, such as {}; to do without: --no-check-sigs",
                path(1)
            ),
        ];
        assert_eq!(told(&failed), expected);
    }
}
