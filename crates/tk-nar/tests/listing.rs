//! Listings, their JSON, and random access.

mod common;

use std::io::{Cursor, Read, Seek, SeekFrom};

use common::{Tree, sample, tree};
use proptest::prelude::*;
use tk_nar::grammar::MAX_DEPTH;
use tk_nar::{Index, Listing, ListingBuilder, ListingNode, ListingStyle, MemberError};

fn shop() -> Tree {
    Tree::directory([
        ("a", Tree::file(b"hi")),
        ("bin", Tree::Link(b"sub/bin".into())),
        ("loop", Tree::Link(b"loop".into())),
        ("out", Tree::Link(b"../x".into())),
        ("root", Tree::Link(b"/a".into())),
        (
            "sub",
            Tree::directory([
                (
                    "bin",
                    Tree::directory([(
                        "x",
                        Tree::File {
                            executable: true,
                            contents: b"#!".into(),
                        },
                    )]),
                ),
                ("q\"\\\u{8}\n\t\u{1}ü", Tree::Link(b"../a".into())),
            ]),
        ),
        ("zero", Tree::file(b"")),
    ])
}

#[test]
fn json_is_what_nix_writes() {
    let listing = Listing::read(&*shop().nar()).expect("valid");
    // As written by `nix copy --to file:…?write-nar-listing=true` of 2.34 for such a tree.
    let sparse = r#"{"root":{"entries":{"a":{"narOffset":232,"size":2,"type":"regular"},"bin":{"target":"sub/bin","type":"symlink"},"loop":{"target":"loop","type":"symlink"},"out":{"target":"../x","type":"symlink"},"root":{"target":"/a","type":"symlink"},"sub":{"entries":{"bin":{"entries":{"x":{"executable":true,"narOffset":1496,"size":2,"type":"regular"}},"type":"directory"},"q\"\\\b\n\t\u0001ü":{"target":"../a","type":"symlink"}},"type":"directory"},"zero":{"narOffset":1952,"size":0,"type":"regular"}},"type":"directory"},"version":1}"#;
    assert_eq!(listing.to_json_as(ListingStyle::Sparse), sparse);
    let current = sparse.replace("{\"narOffset\"", "{\"executable\":false,\"narOffset\"");
    assert_eq!(listing.to_json(), current);
    for text in [sparse, &current] {
        assert_eq!(Listing::from_json(text).expect("it is a listing"), listing);
    }
}

#[test]
fn listings_of_other_versions_are_read() {
    let old = r#"{"version":1,"root":{"type":"directory","entries":{"a":{"type":"regular","size":2,"executable":true,"narOffset":0},"b":{}}}}"#;
    let listing = Listing::from_json(old).expect("it is a listing");
    let a = ListingNode::Regular {
        size: Some(2),
        executable: true,
        nar_offset: None,
    };
    assert_eq!(listing.find(b"a"), Some(&a));
    assert_eq!(listing.find(b"b"), Some(&ListingNode::Unlisted));
    assert_eq!(
        listing.to_json(),
        r#"{"root":{"entries":{"a":{"executable":true,"size":2,"type":"regular"},"b":{}},"type":"directory"},"version":1}"#
    );
}

#[test]
fn the_deepest_archive_has_a_listing_that_reads_back() {
    let deepest = (1..MAX_DEPTH).fold(Tree::file(b"x"), |tree, _| Tree::directory([("d", tree)]));
    let listing = Listing::read(&*deepest.nar()).expect("valid");
    let back = Listing::from_json(&listing.to_json()).expect("it is a listing");
    assert_eq!(back, listing);
}

#[test]
fn names_that_are_no_utf8_are_shown_as_such() {
    let listing =
        Listing::read(&*Tree::Directory([(b"a\xff".to_vec(), Tree::file(b""))].into()).nar())
            .expect("valid");
    assert!(!listing.is_utf8());
    assert!(listing.to_json().contains("\"a\u{fffd}\":{"));
    assert!(Listing::read(&*shop().nar()).expect("valid").is_utf8());
}

#[test]
fn find_does_not_follow_links_and_resolve_does() {
    let listing = Listing::read(&*shop().nar()).expect("valid");
    for path in ["", "/", ".", "sub/bin/x", "/sub//bin/./x/"] {
        assert!(listing.find(path.as_bytes()).is_some(), "{path}");
    }
    for path in ["bin/x", "sub/../a", "a/b", "..", "nope"] {
        assert!(listing.find(path.as_bytes()).is_none(), "{path}");
    }
    for path in [
        "bin/x",
        "sub/../a",
        "sub/q\"\\\u{8}\n\t\u{1}ü",
        "sub/bin/../../bin/x",
    ] {
        assert!(
            matches!(
                listing.resolve(path.as_bytes()),
                Some(ListingNode::Regular { .. })
            ),
            "{path}"
        );
    }
    for path in ["loop", "loop/x", "out", "root", "..", "sub/../..", "a/.."] {
        let found = listing.resolve(path.as_bytes());
        assert!(found.is_none() || path == "a/..", "{path}: {found:?}");
    }
}

/// Counts the bytes that are read.
struct Counting<R>(R, u64);

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(into)?;
        self.1 += count as u64;
        Ok(count)
    }
}

impl<R: Seek> Seek for Counting<R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

#[test]
fn members_are_read_without_the_rest() {
    let big = vec![7; 10_000_000];
    let tree = Tree::directory([
        ("a", Tree::file(&big)),
        ("m", Tree::file(b"needle")),
        ("z", Tree::file(&big)),
    ]);
    let mut source = Cursor::new([b"before".as_slice(), &tree.nar(), b"behind"].concat());
    source.set_position(6);
    let mut index = Index::open(Counting(source, 0)).expect("valid");
    let mut text = String::new();
    let mut member = index.read("m").expect("it is there");
    assert_eq!(member.size(), 6);
    member.read_to_string(&mut text).expect("it can be read");
    assert_eq!(text, "needle");
    assert!(matches!(index.read(""), Err(MemberError::NotAFile(_))));
    assert!(matches!(index.read("n"), Err(MemberError::Missing(_))));
    let listing = index.listing().clone();
    let source = index.into_inner();
    assert!(source.1 < 400_000, "{} bytes were read", source.1);

    let Counting(mut source, _) = source;
    source.set_position(6);
    let mut index = Index::with_listing(Counting(source, 0), listing).expect("it can seek");
    text.clear();
    index
        .read("/m")
        .expect("it is there")
        .read_to_string(&mut text)
        .expect("it can be read");
    assert_eq!((text.as_str(), index.into_inner().1), ("needle", 6));
}

#[test]
fn resolved_members_are_read_and_wrong_listings_end() {
    let nar = shop().nar();
    let mut index = Index::open(Cursor::new(&nar)).expect("valid");
    assert!(matches!(index.read("bin/x"), Err(MemberError::Missing(_))));
    let mut text = String::new();
    index
        .read_resolved("bin/x")
        .expect("it is there")
        .read_to_string(&mut text)
        .expect("it can be read");
    assert_eq!(text, "#!");

    for (offset, size) in [(nar.len() as u64 - 1, 5), (u64::MAX, 1), (1 << 62, 1)] {
        let root = ListingNode::Regular {
            size: Some(size),
            executable: false,
            nar_offset: Some(offset),
        };
        let mut index =
            Index::with_listing(Cursor::new(&nar), Listing { root }).expect("it can seek");
        let read = index
            .read("")
            .map_err(drop)
            .and_then(|mut member| member.read_to_string(&mut text).map_err(drop));
        assert!(read.is_err(), "{offset}");
    }
}

#[test]
fn walk_goes_in_archive_order() {
    let listing = Listing::read(&*sample().nar()).expect("valid");
    let offsets: Vec<u64> = listing
        .walk()
        .filter_map(|(_, node)| match node {
            ListingNode::Regular { nar_offset, .. } => *nar_offset,
            _ => None,
        })
        .collect();
    assert!(offsets.is_sorted() && offsets.len() == 9, "{offsets:?}");
    assert_eq!(listing.walk().count(), 15);
}

proptest! {
    #[test]
    fn builder_reader_and_index_agree(tree in tree(), cut in 1_usize..50) {
        let nar = tree.nar();
        let listing = Listing::read(&*nar).expect("valid");
        let mut builder = ListingBuilder::new();
        for piece in nar.chunks(cut) {
            builder.feed(piece).expect("valid");
        }
        prop_assert_eq!(&builder.finish().expect("complete"), &listing);
        let index = Index::open(Cursor::new(&nar)).expect("valid");
        prop_assert_eq!(index.listing(), &listing);
        for (path, node) in listing.walk() {
            prop_assert_eq!(listing.find(&path), Some(node));
        }
        if listing.is_utf8() {
            prop_assert_eq!(Listing::from_json(&listing.to_json()).expect("a listing"), listing);
        }
    }
}
