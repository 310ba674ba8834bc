//! Malformed archives: an error at the right byte, nothing made, nothing allocated.

mod common;

use std::fs;

use common::Tree;
use tk_nar::fs::{UnpackError, UnpackOptions, unpack};
use tk_nar::{Index, Listing, NarError, NarErrorKind, SliceReader};

/// Words of an archive, with lengths and padding.
fn words(texts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for text in texts {
        out.extend_from_slice(&(text.len() as u64).to_le_bytes());
        out.extend_from_slice(text);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// An archive of a directory with these words in it.
fn directory(texts: &[&[u8]]) -> Vec<u8> {
    let begin: &[&[u8]] = &[b"nix-archive-1", b"(", b"type", b"directory"];
    words(&[begin, texts].concat())
}

fn entry(name: &[u8]) -> Vec<&[u8]> {
    vec![
        b"entry", b"(", b"name", name, b"node", b"(", b"type", b"symlink", b"target", b"t", b")",
        b")",
    ]
}

fn fault(nar: &[u8]) -> NarError {
    let by_slice = SliceReader::new(nar)
        .find_map(Result::err)
        .expect("the archive is malformed");
    let by_read = Listing::read(nar).expect_err("the archive is malformed");
    assert_eq!(by_slice.to_string(), by_read.to_string());
    let by_index = Index::open(std::io::Cursor::new(nar)).expect_err("the archive is malformed");
    assert_eq!(by_slice.to_string(), by_index.to_string());
    by_slice
}

#[test]
fn malformed_archives_tell_the_byte() {
    let root: &[&[u8]] = &[b"nix-archive-1", b"(", b"type"];
    let long = vec![b'a'; 256];
    let target = vec![b't'; 4096];
    let cases: Vec<(&str, Vec<u8>, u64, &str)> = vec![
        (
            "other magic",
            words(&[b"nix-archive-2"]),
            0,
            "not a Nix archive",
        ),
        (
            "long magic",
            words(&[b"nix-archive-1000"]),
            0,
            "not a Nix archive",
        ),
        (
            "gzip",
            b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0".to_vec(),
            0,
            "not a Nix archive",
        ),
        (
            "no node",
            words(&[b"nix-archive-1", b"x"]),
            24,
            "expected '('",
        ),
        (
            "long tag",
            words(&[b"nix-archive-1", &[b'('; 33]]),
            24,
            "33 bytes long, the limit is 32",
        ),
        (
            "unknown kind",
            words(&[root, &[b"socket"]].concat()),
            56,
            "found 'socket'",
        ),
        (
            "no contents",
            words(&[root, &[b"regular", b")"]].concat()),
            72,
            "expected 'executable' or 'contents'",
        ),
        (
            "marker with value",
            words(&[root, &[b"regular", b"executable", b"x"]].concat()),
            96,
            "marker",
        ),
        (
            "marker twice",
            words(&[root, &[b"regular", b"executable", b"", b"executable"]].concat()),
            104,
            "expected 'contents'",
        ),
        (
            "empty target",
            words(&[root, &[b"symlink", b"target", b""]].concat()),
            88,
            "a link target is empty",
        ),
        (
            "NUL in target",
            words(&[root, &[b"symlink", b"target", b"a\0b"]].concat()),
            88,
            "NUL",
        ),
        (
            "long target",
            words(&[root, &[b"symlink", b"target", &target]].concat()),
            88,
            "the limit is 4095",
        ),
        ("empty name", directory(&entry(b"")), 128, "is empty"),
        ("dot", directory(&entry(b".")), 128, "means a folder"),
        ("dot dot", directory(&entry(b"..")), 128, "means a folder"),
        ("slash", directory(&entry(b"a/b")), 128, "slash"),
        ("absolute", directory(&entry(b"/etc")), 128, "slash"),
        ("NUL", directory(&entry(b"a\0")), 128, "NUL"),
        (
            "long name",
            directory(&entry(&long)),
            128,
            "the limit is 255",
        ),
        (
            "same name twice",
            directory(&[entry(b"a"), entry(b"a")].concat()),
            320,
            "not sorted",
        ),
        (
            "unsorted",
            directory(&[entry(b"b"), entry(b"a")].concat()),
            320,
            "not sorted",
        ),
        (
            "a prefix later",
            directory(&[entry(b"ab"), entry(b"a")].concat()),
            320,
            "not sorted",
        ),
        (
            "signed order",
            directory(&[entry(b"\xff"), entry(b"a")].concat()),
            320,
            "not sorted",
        ),
    ];
    for (name, nar, offset, text) in cases {
        let error = fault(&nar);
        assert_eq!(error.offset, offset, "{name}: {error}");
        assert!(error.to_string().contains(text), "{name}: {error}");
    }
}

#[test]
fn claims_are_not_believed() {
    for size in [1 << 63, u64::MAX, u64::MAX - 7, 1 << 40] {
        let mut nar = words(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
        nar.extend_from_slice(&u64::to_le_bytes(size));
        nar.extend_from_slice(b"only these");
        let error = fault(&nar);
        assert!(error.is_unexpected_end());
        assert_eq!(error.offset, nar.len() as u64);
    }
    for size in [33, 1 << 32, 1 << 63, u64::MAX] {
        let mut nar = words(&[b"nix-archive-1"]);
        nar.extend_from_slice(&u64::to_le_bytes(size));
        let error = fault(&nar);
        assert_eq!(error.offset, 24);
        assert!(matches!(error.kind, NarErrorKind::TooLong { length, .. } if length == size));
    }
}

#[test]
fn padding_is_zero_everywhere() {
    let nar = Tree::directory([
        ("abc", Tree::file(b"12345")),
        ("d", Tree::Link(b"t".into())),
    ])
    .nar();
    let text = |at: usize| {
        nar[at..]
            .first_chunk::<8>()
            .is_some_and(|text| text.contains(&b'a'))
    };
    assert!((0..nar.len()).any(text));
    // Any byte of padding, found by what a decoder says of it, is refused at its own place.
    let refused = (0..nar.len())
        .filter(|&at| {
            let mut nar = nar.clone();
            nar[at] |= 0x10;
            let error = SliceReader::new(&nar).find_map(Result::err);
            error.is_some_and(|error| {
                matches!(error.kind, NarErrorKind::Padding) && error.offset == at as u64
            })
        })
        .count();
    // 3 after the magic, 3 after "12345", 5 after "abc", 7 after each of "d" and "t", and those of the tags.
    let tags = [
        "entry",
        "name",
        "node",
        "type",
        "directory",
        "regular",
        "target",
        "symlink",
        "(",
        ")",
    ];
    let padding: usize = nar_words(&nar)
        .iter()
        .map(|length| length.next_multiple_of(8) - length)
        .sum();
    assert_eq!(refused, padding);
    assert!(padding > tags.len());
}

/// The lengths of all strings and contents of an archive.
fn nar_words(nar: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut at = 0;
    while let Some(length) = nar[at..].first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        lengths.push(length);
        at += 8 + length.next_multiple_of(8);
    }
    lengths
}

#[test]
fn depth_is_limited() {
    let mut nar = words(&[b"nix-archive-1"]);
    for _ in 0..10_000 {
        nar.extend(words(&[
            b"(",
            b"type",
            b"directory",
            b"entry",
            b"(",
            b"name",
            b"a",
            b"node",
        ]));
    }
    let error = fault(&nar);
    assert!(matches!(error.kind, NarErrorKind::TooDeep), "{error}");
    // 64 nodes of 136 bytes each stand before the one that is too deep.
    assert_eq!(error.offset, 24 + 64 * 136);

    let mut tree = Tree::file(b"deep");
    for _ in 1..64 {
        tree = Tree::directory([("a", tree)]);
    }
    Listing::read(&*tree.nar()).expect("64 nodes are allowed");
}

#[test]
fn a_link_cannot_be_walked_through() {
    let home = tempfile::tempdir().expect("a folder");
    let outside = home.path().join("outside");
    fs::create_dir(&outside).expect("a folder");
    let link: Vec<&[u8]> = vec![
        b"entry",
        b"(",
        b"name",
        b"a",
        b"node",
        b"(",
        b"type",
        b"symlink",
        b"target",
        b"../outside",
        b")",
        b")",
    ];
    let through: Vec<&[u8]> = vec![
        b"entry",
        b"(",
        b"name",
        b"a",
        b"node",
        b"(",
        b"type",
        b"directory",
        b"entry",
        b"(",
        b"name",
        b"evil",
        b"node",
        b"(",
        b"type",
        b"regular",
        b"contents",
        b"x",
        b")",
        b")",
        b")",
        b")",
        b")",
    ];
    let nar = directory(&[link, through].concat());
    let dest = home.path().join("dest");
    let error = unpack(&*nar, &dest, &UnpackOptions::default()).expect_err("the name comes twice");
    assert!(
        matches!(
            error,
            UnpackError::Nar(NarError {
                kind: NarErrorKind::Order { .. },
                ..
            })
        ),
        "{error}"
    );
    assert!(!dest.exists());
    assert_eq!(fs::read_dir(&outside).expect("it is there").count(), 0);
}

#[test]
fn truncated_archives_leave_nothing() {
    let home = tempfile::tempdir().expect("a folder");
    let nar = Tree::directory([
        ("a", Tree::file(b"abc")),
        ("b", Tree::directory([("c", Tree::Link(b"t".into()))])),
    ])
    .nar();
    for end in 0..nar.len() {
        let dest = home.path().join(format!("dest-{end}"));
        match unpack(&nar[..end], &dest, &UnpackOptions::default()) {
            Err(UnpackError::Nar(error)) => {
                assert!(error.is_unexpected_end());
                assert_eq!(error.offset, end as u64);
            }
            other => panic!("{end}: {other:?}"),
        }
        assert!(
            fs::symlink_metadata(&dest).is_err(),
            "{end}: something was left"
        );
    }
}

#[test]
fn listings_of_wrong_shape_are_refused() {
    let deep = format!(
        "{{\"version\":1,\"root\":{}{}{}}}",
        "{\"type\":\"directory\",\"entries\":{\"a\":".repeat(64),
        "{}",
        "}}".repeat(64)
    );
    for text in [
        "",
        "[]",
        "{}",
        r#"{"version":2,"root":{"type":"symlink","target":"x"}}"#,
        r#"{"version":1}"#,
        r#"{"version":1,"root":{"type":"fifo"}}"#,
        r#"{"version":1,"root":{"type":"symlink"}}"#,
        r#"{"version":1,"root":{"type":"directory"}}"#,
        r#"{"version":1,"root":{"type":"directory","entries":{"..":{}}}}"#,
        r#"{"version":1,"root":{"type":"directory","entries":{"a/b":{}}}}"#,
        r#"{"version":1,"root":{"type":"regular","size":-1}}"#,
        r#"{"version":1,"root":{"type":"regular","executable":1}}"#,
        &deep,
        &"[".repeat(100_000),
    ] {
        Listing::from_json(text).expect_err(text);
    }
}
