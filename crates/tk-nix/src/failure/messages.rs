//! What nix says only in prose. Texts differ from version to version; what is looked for here was
//! written by 2.8, 2.26 or 2.34.

use super::{Cause, Exit};
use std::borrow::Cow;
use tk_store::log::UNTRUSTED_WORDS;

/// What nix itself says in `text`, without the lines of a builder that it quotes: those say anything.
pub(super) fn own(text: &str) -> Cow<'_, str> {
    if !text.contains("log lines:") {
        return Cow::Borrowed(text);
    }
    let lines = text.lines();
    let own = lines.filter(|line| !line.trim_start().starts_with('>'));
    Cow::Owned(own.collect::<Vec<_>>().join("\n"))
}

/// Why a builder may have failed that ended with a status other than 0, by its last lines; `fixed` if
/// its output is, since only then it may be meant to ask a server.
pub(super) fn likely<'a>(lines: impl IntoIterator<Item = &'a str>, fixed: bool) -> Option<Cause> {
    let causes = [(Cause::NoSpace, NO_SPACE), (Cause::Network, OFFLINE)];
    let mut found = lines.into_iter().filter_map(|line| {
        let cause = causes
            .iter()
            .find(|(_, words)| words.iter().any(|word| line.contains(word)));
        cause.map(|(cause, _)| cause.clone())
    });
    found.find(|cause| fixed || *cause != Cause::Network)
}

/// The likely cause of what `text` tells, which is nix's own words without colours.
pub(super) fn cause(text: &str) -> Cause {
    if let Some(cause) = attribute(text).or_else(|| hash_mismatch(text)) {
        return cause;
    }
    if let Some(output) = missing_output(text) {
        return Cause::MissingOutput { output };
    }
    let known = TABLE
        .iter()
        .find(|(_, words)| words.iter().any(|word| text.contains(word)));
    match known {
        Some((cause, _)) => cause.clone(),
        None if exit(text).is_some() => Cause::Builder,
        None => Cause::Other,
    }
}

/// The first that fits counts.
const TABLE: &[(Cause, &[&str])] = &[
    (
        Cause::Dependency,
        &[
            "dependencies of derivation",
            "dependency failed",
            "dependencies failed",
        ],
    ),
    (
        Cause::TimedOut,
        &["timed out after", "timed out;", "of silence"],
    ),
    (Cause::LogLimit, &["killed after writing more than"]),
    (Cause::NotDeterministic, &["may not be deterministic"]),
    (Cause::NoSpace, NO_SPACE),
    (Cause::Network, OFFLINE),
    (
        Cause::Network,
        &[
            "unable to download",
            "cannot connect to",
            "failed to start SSH connection",
        ],
    ),
    (
        Cause::Sandbox,
        &[
            "sandbox",
            "unable to start build process",
            "cannot unshare",
            "setting up a private mount namespace",
            "setting up the build environment",
        ],
    ),
    (
        Cause::NoBuilder,
        &["required to build", "Required system", "platform mismatch"],
    ),
    (Cause::Untrusted, UNTRUSTED_WORDS),
    (
        Cause::OutputRejected,
        &[
            "is not allowed to refer to",
            "is not allowed to have references",
            "suspicious ownership",
            "forbidden path",
        ],
    ),
    (
        Cause::Misused,
        &[
            "is not a valid flake reference",
            "unrecognised flag",
            "is not a valid URL",
            "does not contain a 'flake.nix'",
            "experimental Nix feature",
            "does not have the output",
            "does not have wanted outputs",
            "No such file or directory",
        ],
    ),
];

/// Words of the system, which builders have too.
const NO_SPACE: &[&str] = &["No space left on device", "Disk quota exceeded"];
const OFFLINE: &[&str] = &[
    "Could not resolve host",
    "Couldn't resolve host",
    "Temporary failure in name resolution",
    "Connection refused",
    "Connection reset",
    "Network is unreachable",
];

/// The derivation that a text about a build names first: a whole path.
pub(super) fn derivation(text: &str) -> Option<String> {
    let quoted = text.split(['\'', '"']).skip(1).step_by(2);
    let mut paths = quoted.filter(|word| word.starts_with('/') && word.ends_with(".drv"));
    paths.next().map(str::to_owned)
}

/// How the builder ended: `failed with exit code N`, `failed due to signal N`.
pub(super) fn exit(text: &str) -> Option<Exit> {
    let number = |after: &str| {
        let rest = text.split_once(after)?.1;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    let code = number("failed with exit code ").map(Exit::Code);
    code.or_else(|| number("failed due to signal ").map(Exit::Signal))
}

fn hash_mismatch(text: &str) -> Option<Cause> {
    if !text.contains("hash mismatch") {
        return None;
    }
    let after = |word: &str| {
        let rest = text.split_once(word)?.1.trim_start();
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let hash = rest[..end].trim_matches(['\'', '"', ',', ';', '.']);
        (!hash.is_empty()).then(|| hash.to_owned())
    };
    let expected = after("specified:").or_else(|| after("wanted:"))?;
    let actual = after("got:")?;
    Some(Cause::HashMismatch { expected, actual })
}

fn missing_output(text: &str) -> Option<String> {
    let rest = text
        .split_once("failed to produce output path for output '")?
        .1;
    Some(rest.split_once('\'')?.0.to_owned())
}

fn attribute(text: &str) -> Option<Cause> {
    let list = text.split_once("does not provide attribute ").map(|t| t.1);
    // The last of the list is the attribute as it was asked for.
    let of_flake = list.and_then(|list| quoted(list).last());
    let of_set = || {
        let missing = text.contains("in selection path") || text.contains("' missing");
        let rest = text.split_once("attribute '").filter(|_| missing)?.1;
        Some(rest.split_once('\'')?.0)
    };
    let attribute = of_flake.or_else(of_set)?.to_owned();
    let near = text.split_once("Did you mean ").map(|(_, rest)| {
        let end = rest.find('?').unwrap_or(rest.len());
        let names = rest[..end].trim_start_matches("one of ");
        let names = names.split(|c: char| c == ',' || c.is_whitespace());
        let names = names.filter(|name| !name.is_empty() && *name != "or");
        names.map(str::to_owned).collect()
    });
    Some(Cause::MissingAttribute {
        attribute,
        near: near.unwrap_or_default(),
    })
}

/// What stands between single quotes, on the first line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    let line = text.lines().next().unwrap_or_default();
    let pieces: Vec<_> = line.split('\'').collect();
    let count = pieces.len();
    let inner = pieces.into_iter().enumerate();
    inner.filter_map(move |(i, piece)| (i % 2 == 1 && i + 1 < count).then_some(piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mismatch(expected: &str, actual: &str) -> Cause {
        Cause::HashMismatch {
            expected: expected.into(),
            actual: actual.into(),
        }
    }

    fn missing(attribute: &str, near: &[&str]) -> Cause {
        Cause::MissingAttribute {
            attribute: attribute.into(),
            near: near.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    /// Texts of 2.8, 2.26 and 2.34.
    #[test]
    fn texts_of_real_nix() {
        let output = |name: &str| Cause::MissingOutput {
            output: name.into(),
        };
        for (text, expected) in [
            (
                "builder for '/nix/store/a-x.drv' failed with exit code 3;\nlast 2 log lines:\n> line one",
                Cause::Builder,
            ),
            (
                "Cannot build '/nix/store/a-x.drv'.\nReason: builder failed with exit code 3.\nOutput paths:",
                Cause::Builder,
            ),
            (
                "builder for '/nix/store/a-x.drv' failed due to signal 9 (Killed)",
                Cause::Builder,
            ),
            (
                "1 dependencies of derivation '/nix/store/a-x.drv' failed to build",
                Cause::Dependency,
            ),
            (
                "Cannot build '/nix/store/a-x.drv'.\nReason: 1 dependency failed.\nOutput paths:",
                Cause::Dependency,
            ),
            (
                "hash mismatch in fixed-output derivation '/nix/store/a-x.drv':\n  specified: sha256-AAA=\n     got:    sha256-BBB=",
                mismatch("sha256-AAA=", "sha256-BBB="),
            ),
            (
                "builder for '/nix/store/a-x.drv' failed to produce output path for output 'out' at '/nix/store/b-x'",
                output("out"),
            ),
            (
                "flake 'path:.' does not provide attribute 'packages.x86_64-linux.nosuch', 'legacyPackages.x86_64-linux.nosuch' or 'nosuch'",
                missing("nosuch", &[]),
            ),
            (
                "flake 'path:.' does not provide attribute 'packages.x86_64-linux.helo', 'legacyPackages.x86_64-linux.helo' or 'helo'\n       Did you mean one of hello, hallo or help?",
                missing("helo", &["hello", "hallo", "help"]),
            ),
            (
                "attribute 'helo' in selection path 'helo' not found\n       Did you mean hello?",
                missing("helo", &["hello"]),
            ),
            ("attribute 'x' missing", missing("x", &[])),
            (
                "building of '/nix/store/a-x.drv^out' timed out after 2 seconds of silence",
                Cause::TimedOut,
            ),
            ("writing to file: No space left on device", Cause::NoSpace),
            (
                "getting attributes of path \"/usr/bin/bash-static\": No such file or directory; while setting up the build environment",
                Cause::Sandbox,
            ),
            (
                "unable to download 'http://x': Could not resolve host: x",
                Cause::Network,
            ),
            ("no such luck", Cause::Other),
        ] {
            assert_eq!(cause(text), expected, "{text}");
        }
    }

    #[test]
    fn lines_of_builders_are_not_the_words_of_nix() {
        let quoted = "builder for '/nix/store/a-x.drv' failed with exit code 3;\n       last 2 log lines:\n       \
                      > Connection refused in the sandbox\n       > hash mismatch: No such file or directory\n       \
                      For full logs, run:\n         nix log /nix/store/a-x.drv";
        assert_eq!(cause(&own(quoted)), Cause::Builder);
        let plain = "> is not a valid URL";
        assert_eq!(cause(&own(plain)), Cause::Misused);

        let full = ["one", "cc: No space left on device", "two"];
        let offline = ["curl: (6) Could not resolve host: x"];
        let both = [offline[0], full[1]];
        for (lines, fixed, expected) in [
            (&full[..], false, Some(Cause::NoSpace)),
            (&offline, true, Some(Cause::Network)),
            // Without a fixed output there is no network, or should be none.
            (&offline, false, None),
            (&both, false, Some(Cause::NoSpace)),
            (&["all is well"], true, None),
        ] {
            assert_eq!(likely(lines.iter().copied(), fixed), expected, "{lines:?}");
        }
    }

    #[test]
    fn derivations_and_exits() {
        let text = "builder for '/nix/store/a-x.drv' failed with exit code 37;\nlast";
        assert_eq!(derivation(text).as_deref(), Some("/nix/store/a-x.drv"));
        assert_eq!(exit(text), Some(Exit::Code(37)));
        let text = "Reason: builder failed due to signal 9 (Killed).";
        assert_eq!(
            (derivation(text), exit(text)),
            (None, Some(Exit::Signal(9)))
        );
        assert_eq!(derivation("it's '/nix/store/a' and 'b.drv'"), None);
    }
}
