//! Trees as values: generated, written to disk, packed.

use proptest::{
    collection::vec,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof},
    sample::select,
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::OsStr,
    fmt,
    fs::{self, Permissions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
};
use tk_nar::Encoder;

/// A file, a link or a folder.
#[derive(Clone, PartialEq)]
pub enum Node {
    /// Its permissions, of which Nix sees only whether the owner may run it, and its contents.
    File(u32, Vec<u8>),
    /// Its target.
    Link(Vec<u8>),
    /// By name.
    Folder(BTreeMap<Vec<u8>, Node>),
}

/// What stands at the end of a path: a file, a link or an empty folder.
type Leaf = Node;

impl Node {
    /// A file that cannot be run.
    pub fn text(contents: impl Into<Vec<u8>>) -> Node {
        Node::File(0o644, contents.into())
    }

    /// Nodes in it, itself included.
    pub fn count(&self) -> usize {
        match self {
            Node::Folder(entries) => 1 + entries.values().map(Node::count).sum::<usize>(),
            _ => 1,
        }
    }

    /// Makes it at `path`.
    pub fn write(&self, path: &Path) {
        match self {
            Node::File(mode, contents) => {
                fs::write(path, contents).expect("writable");
                fs::set_permissions(path, Permissions::from_mode(*mode)).expect("owned");
            }
            Node::Link(target) => symlink(OsStr::from_bytes(target), path).expect("writable"),
            Node::Folder(entries) => {
                fs::create_dir(path).expect("writable");
                for (name, node) in entries {
                    node.write(&path.join(OsStr::from_bytes(name)));
                }
            }
        }
    }

    /// Its NAR.
    pub fn nar(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        self.encode(&mut encoder);
        encoder.finish().expect("complete")
    }

    fn encode(&self, nar: &mut Encoder<impl Write>) {
        match self {
            Node::File(mode, contents) => nar.file(mode & 0o100 != 0, contents).expect("a file"),
            Node::Link(target) => nar.symlink(target).expect("a link"),
            Node::Folder(entries) => {
                nar.directory().expect("a folder");
                for (name, node) in entries {
                    nar.entry(name).expect("sorted");
                    node.encode(nar);
                }
                nar.leave().expect("a folder");
            }
        }
    }

    /// Puts `leaf` at `path`, unless something that is no folder is in the way.
    fn insert(&mut self, path: &[Vec<u8>], leaf: Leaf) {
        let (Node::Folder(entries), [name, rest @ ..]) = (self, path) else {
            return;
        };
        match (entries.entry(name.clone()), rest) {
            (Entry::Vacant(place), []) => drop(place.insert(leaf)),
            (place, _) => place
                .or_insert_with(|| Node::Folder(BTreeMap::new()))
                .insert(rest, leaf),
        }
    }
}

/// Long contents are cut.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::File(mode, contents) => {
                let (size, shown) = (contents.len(), &contents[..contents.len().min(SHOWN)]);
                write!(f, "{mode:o} {size} bytes \"{}\"", shown.escape_ascii())
            }
            Node::Link(target) => write!(f, "-> \"{}\"", target.escape_ascii()),
            Node::Folder(entries) => {
                let entries = entries.iter();
                let shown = entries.map(|(name, node)| (name.escape_ascii().to_string(), node));
                f.debug_map().entries(shown).finish()
            }
        }
    }
}

/// Trees of up to ten leaves, or one leaf alone.
pub fn node() -> impl Strategy<Value = Node> {
    let path = prop_oneof![
        12 => vec(name(), 0..6),
        1 => vec(Just(b"d".to_vec()), 20..DEEP),
    ];
    vec((path, leaf()), 1..10).prop_map(|leaves| {
        let mut leaves = leaves.into_iter().peekable();
        if let Some((_, leaf)) = leaves.next_if(|(path, _)| path.is_empty()) {
            return leaf;
        }
        let mut root = Node::Folder(BTreeMap::new());
        leaves.for_each(|(path, leaf)| root.insert(&path, leaf));
        root
    })
}

fn leaf() -> impl Strategy<Value = Leaf> {
    let modes = vec![0o644, 0o755, 0o600, 0o700, 0o654, 0o444, 0o555, 0o500];
    prop_oneof![
        5 => (select(modes), contents()).prop_map(|(mode, contents)| Node::File(mode, contents)),
        2 => target().prop_map(Node::Link),
        1 => Just(Node::Folder(BTreeMap::new())),
    ]
}

/// Sizes around those where padding, blocks and buffers end.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![
        8 => select(vec![0, 1, 7, 8, 9, 15, 16, 17]),
        4 => 0..300usize,
        2 => select(vec![4095, 4096, 4097]),
        1 => select(vec![65_535, 65_536, 65_537]),
    ];
    (size, any::<u8>()).prop_map(|(size, fill)| {
        let byte = |n: usize| (n * 31 / 7) as u8 ^ fill;
        (0..size).map(byte).collect()
    })
}

/// Names that sort and look alike, and such as few programs expect.
fn name() -> BoxedStrategy<Vec<u8>> {
    let alike = [
        "a", "A", "b", "B", "a.b", "a-", "a0", "ab", "aB", "a ", "a~", "a+", "Ab",
    ];
    let odd: [&[u8]; 14] = [
        b" ",
        b"\n",
        b"-rf",
        b"...",
        b"..a",
        b".a",
        b"\\",
        b"\"$(x)`",
        b"\xff\xfe",
        b"\x01\x7f",
        "\u{e9}".as_bytes(),
        "e\u{301}".as_bytes(),
        b"a~nix~case~hack~1",
        b"nix-archive-1",
    ];
    let legal = |name: &Vec<u8>| name != b"." && name != b"..";
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'x' } else { byte });
    prop_oneof![
        6 => select(alike.map(|name| name.as_bytes().to_vec()).to_vec()),
        2 => select(odd.map(<[u8]>::to_vec).to_vec()),
        2 => vec(byte, 1..9).prop_filter("a name", legal),
        1 => (250..=255usize).prop_map(|len| vec![b'x'; len]),
    ]
    .boxed()
}

/// Targets that lead nowhere, out of the tree, in circles, to odd names.
fn target() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "a",
        ".",
        "..",
        "/",
        "//x//",
        "../../..",
        "no where",
        "a/./b/",
        "/etc/passwd",
    ];
    let byte = any::<u8>().prop_map(|byte| if byte == 0 { b'/' } else { byte });
    prop_oneof![
        6 => select(known.map(|target| target.as_bytes().to_vec()).to_vec()),
        3 => vec(byte, 1..20),
        1 => select(vec![255usize, 256, 4094, 4095]).prop_map(|len| vec![b't'; len]),
    ]
}

/// In messages, in bytes.
const SHOWN: usize = 200;
/// Folders in each other. Nix 2.26 crashes when it adds more than about 50: the stack of its
/// coroutine ends.
const DEEP: usize = 40;
