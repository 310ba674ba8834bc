//! Where two archives differ, file by file.
//!
//! Both archives name their entries in the same order, so that one walk over both finds every entry that only one of
//! them has; what such an entry holds is passed over. Of two files with different contents the first byte that differs is
//! told, with a few bytes that follow it on both sides.

use std::cmp::Ordering;
use std::fmt;

use crate::decode::Event;

/// Differences that are kept, where the caller wants no other number.
pub const MAX_DIFFERENCES: usize = 100;
/// Bytes of contents that are kept of each side, from the first that differs.
pub const EXCERPT: usize = 16;

/// Compares two archives by their events. The caller pumps: it asks which side is [`wanted`](Comparer::wanted) and
/// gives that side's next event, until neither is.
///
/// ```
/// use tk_nar::{Comparer, Encoder, Side, SliceReader};
///
/// # fn file(contents: &[u8]) -> Result<Vec<u8>, tk_nar::EncodeError> {
/// #     let mut encoder = Encoder::new(Vec::new());
/// #     encoder.file(false, contents)?;
/// #     encoder.finish()
/// # }
/// let (left, right) = (file(b"at 10:14")?, file(b"at 10:15")?);
/// let (mut left, mut right) = (SliceReader::new(&left), SliceReader::new(&right));
/// let mut comparer = Comparer::new(10);
/// while let Some(side) = comparer.wanted() {
///     let event = match side {
///         Side::Left => left.next_event()?,
///         Side::Right => right.next_event()?,
///     };
///     comparer.push(side, event.expect("archives end with an event"));
/// }
/// let found = comparer.finish();
/// assert_eq!(found.differences[0].to_string(), "the contents differ from byte 7 on: \"4\" and \"5\" (8 and 8 bytes)");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Security
/// Archives may be hostile. Beside the differences, of which there are as many as the caller wants and which hold names
/// and link targets, this holds at most one event a side; contents in it are as long as the pieces that were pushed.
#[derive(Debug)]
pub struct Comparer {
    limit: usize,
    sides: [PendingEvents; 2],
    path: Vec<u8>,
    /// For each open directory, where the names of its entries begin in `path`.
    levels: Vec<usize>,
    file: Option<Files>,
    found: Comparison,
    done: bool,
}

/// The differences between two archives, as [`Comparer::finish`] gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// The differences, in the order of the archives, up to the limit.
    pub differences: Vec<Difference>,
    /// How many there are altogether.
    pub count: u64,
}

impl Comparison {
    /// Whether the archives are the same.
    pub fn is_same(&self) -> bool {
        self.count == 0
    }
}

/// One difference between two archives. `Display` tells it without the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, from the root of the archive, parts joined by `/`; empty is the root itself. Not necessarily UTF-8.
    pub path: Vec<u8>,
    /// What differs at that path.
    pub kind: DifferenceKind,
}

/// The ways in which two archives can differ at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceKind {
    /// The contents of a file.
    Contents {
        /// The first byte that differs, from 0; the end of the shorter one if it is the beginning of the other.
        offset: u64,
        /// Sizes in bytes, left and right.
        sizes: [u64; 2],
        /// Up to [`EXCERPT`] bytes from `offset` on, left and right.
        excerpts: [Vec<u8>; 2],
    },
    /// One is a file and the other a directory, or the like: left and right.
    Type([NodeType; 2]),
    /// The executable bit: left and right.
    Executable([bool; 2]),
    /// The target of a symlink: left and right.
    Target([Vec<u8>; 2]),
    /// Only one of them has an entry of that name.
    OnlyIn(Side, NodeType),
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeType {
    /// A regular file, executable or not.
    Regular,
    /// A directory with its entries.
    Directory,
    /// A symlink, which is never followed.
    Symlink,
}

/// One of the two archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first archive, whose values stand first in pairs.
    Left = 0,
    /// The second archive, whose values stand second in pairs.
    Right = 1,
}

impl Comparer {
    /// A comparer that keeps `limit` differences, and counts the others.
    pub fn new(limit: usize) -> Self {
        Comparer {
            limit,
            sides: Default::default(),
            path: Vec::new(),
            levels: Vec::new(),
            file: None,
            found: Comparison::default(),
            done: false,
        }
    }

    /// The side whose next event is wanted; `None` when both archives are complete.
    pub fn wanted(&self) -> Option<Side> {
        let empty = |side: &Side| self.sides[*side as usize].head == Head::None;
        [Side::Left, Side::Right]
            .into_iter()
            .find(|side| !self.done && empty(side))
    }

    /// Takes the next event of `side`, which must be the one that is wanted.
    pub fn push(&mut self, side: Side, event: Event<'_>) {
        if let Some(node) = self.sides[side as usize].take(event) {
            // Only of an entry that the other side does not have.
            self.differ(DifferenceKind::OnlyIn(side, node));
            self.leave();
        }
        let full = |side: &PendingEvents| side.head != Head::None;
        while !self.done && self.sides.iter().all(full) {
            self.step();
        }
    }

    /// What was found. Meaningful when neither side is wanted any more.
    pub fn finish(self) -> Comparison {
        self.found
    }

    /// Compares what stands at the head of both sides, and moves on at least one of them.
    fn step(&mut self) {
        if self.file.is_some() {
            return self.contents();
        }
        let [left, right] = &self.sides;
        match (left.head, right.head) {
            (Head::End, Head::End) => self.done = true,
            (Head::Entry, Head::Entry) => match left.text.cmp(&right.text) {
                Ordering::Equal => {
                    self.enter(Side::Left);
                    self.consume_both();
                }
                Ordering::Less => self.only_in(Side::Left),
                Ordering::Greater => self.only_in(Side::Right),
            },
            (Head::Entry, _) => self.only_in(Side::Left),
            (_, Head::Entry) => self.only_in(Side::Right),
            (Head::Leave, Head::Leave) => {
                self.levels.pop();
                self.leave();
                self.consume_both();
            }
            (Head::Node(a), Head::Node(b)) if a != b => {
                self.differ(DifferenceKind::Type([a, b]));
                self.leave();
                self.sides.iter_mut().for_each(PendingEvents::skip_node);
            }
            (Head::Node(NodeType::Directory), _) => {
                self.levels.push(self.path.len());
                self.consume_both();
            }
            (Head::Node(NodeType::Symlink), _) => self.symlinks(),
            (Head::Node(NodeType::Regular), _) => self.files(),
            // No decoder gives such events; there is nothing to compare.
            _ => self.done = true,
        }
    }

    fn symlinks(&mut self) {
        let [left, right] = &self.sides;
        if left.text != right.text {
            let targets = [left.text.clone(), right.text.clone()];
            self.differ(DifferenceKind::Target(targets));
        }
        self.leave();
        self.consume_both();
    }

    fn files(&mut self) {
        let executable = self.sides.each_ref().map(|side| side.executable);
        if executable[0] != executable[1] {
            self.differ(DifferenceKind::Executable(executable));
        }
        self.file = Some(Files {
            sizes: self.sides.each_ref().map(|side| side.size),
            offset: 0,
            differ: None,
        });
        self.consume_both();
    }

    /// Compares as much of the contents as both sides have; behind the first difference they go on by themselves.
    fn contents(&mut self) {
        let heads = self.sides.each_ref().map(|side| side.head);
        if heads == [Head::EndRegular; 2] {
            self.file = None;
            self.leave();
            return self.consume_both();
        }
        let Some(file) = &mut self.file else { return };
        if file.differ.is_none() {
            let [left, right] = self.sides.each_ref().map(PendingEvents::contents);
            let both = left.len().min(right.len());
            let equal = common(&left[..both], &right[..both]);
            file.offset += equal as u64;
            let at_end = heads.contains(&Head::EndRegular);
            if equal == both && !at_end {
                self.sides.iter_mut().for_each(|side| side.advance(both));
                return;
            }
            self.sides.iter_mut().for_each(|side| side.advance(equal));
            let (offset, sizes) = (file.offset, file.sizes);
            file.differ = Some(self.found.differences.len());
            self.differ(DifferenceKind::Contents {
                offset,
                sizes,
                excerpts: Default::default(),
            });
        }
        self.excerpts();
    }

    /// Passes over the contents that are there, and keeps the first of them.
    fn excerpts(&mut self) {
        let index = self.file.as_ref().and_then(|file| file.differ);
        let kept = index.and_then(|index| self.found.differences.get_mut(index));
        let mut excerpts = match kept.map(|difference| &mut difference.kind) {
            Some(DifferenceKind::Contents { excerpts, .. }) => Some(excerpts),
            _ => None,
        };
        for (i, side) in self.sides.iter_mut().enumerate() {
            let contents = side.contents();
            if let Some(excerpts) = &mut excerpts {
                let room = EXCERPT - excerpts[i].len();
                excerpts[i].extend_from_slice(&contents[..contents.len().min(room)]);
            }
            let length = contents.len();
            side.advance(length);
        }
    }

    fn only_in(&mut self, side: Side) {
        self.enter(side);
        self.sides[side as usize].skip_entry();
    }

    /// Goes on to the entry that stands at the head of `side`.
    fn enter(&mut self, side: Side) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&self.sides[side as usize].text);
    }

    /// Back from a node to the directory around it.
    fn leave(&mut self) {
        self.path.truncate(self.levels.last().copied().unwrap_or(0));
    }

    fn consume_both(&mut self) {
        self.sides.iter_mut().for_each(PendingEvents::consume);
    }

    fn differ(&mut self, kind: DifferenceKind) {
        self.found.count += 1;
        if self.found.differences.len() < self.limit {
            let path = self.path.clone();
            self.found.differences.push(Difference { path, kind });
        }
    }
}

impl Difference {
    /// The path for people: text, with what is no printable text escaped.
    pub fn shown_path(&self) -> String {
        shown(&self.path)
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DifferenceKind::Contents {
                offset,
                sizes: [left_size, right_size],
                excerpts: [left, right],
            } => write!(
                f,
                "the contents differ from byte {offset} on: \"{}\" and \"{}\" ({left_size} and {right_size} bytes)",
                left.escape_ascii(),
                right.escape_ascii()
            ),
            DifferenceKind::Type([left, right]) => write!(f, "it is a {left}, and a {right}"),
            DifferenceKind::Executable([left, _]) => {
                let side = if *left { Side::Left } else { Side::Right };
                write!(f, "it is executable only {side}")
            }
            DifferenceKind::Target([left, right]) => {
                write!(
                    f,
                    "the link leads to {}, and to {}",
                    shown(left),
                    shown(right)
                )
            }
            DifferenceKind::OnlyIn(side, node) => write!(f, "the {node} is only {side}"),
        }
    }
}

impl NodeType {
    /// The word for it in listings: `regular`, `directory`, `symlink`.
    pub const fn name(self) -> &'static str {
        match self {
            NodeType::Regular => "regular",
            NodeType::Directory => "directory",
            NodeType::Symlink => "symlink",
        }
    }
}

impl fmt::Display for NodeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeType::Regular => "file",
            NodeType::Directory => "directory",
            NodeType::Symlink => "symlink",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Left => "in the first",
            Side::Right => "in the second",
        })
    }
}

/// Two files whose contents are being compared.
#[derive(Debug)]
struct Files {
    sizes: [u64; 2],
    /// Bytes that are equal.
    offset: u64,
    /// Which difference it is, once one was found; beyond the limit nobody has it.
    differ: Option<usize>,
}

/// What one side gave and is not compared yet.
#[derive(Debug, Default)]
struct PendingEvents {
    head: Head,
    /// The name, the target, or the contents.
    text: Vec<u8>,
    /// Bytes of contents that are compared already.
    done: usize,
    executable: bool,
    size: u64,
    skip: Skip,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Head {
    #[default]
    None,
    Node(NodeType),
    Entry,
    Leave,
    Contents,
    EndRegular,
    End,
}

/// What is passed over.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Skip {
    #[default]
    Nothing,
    /// The node that comes next; it is told what it is.
    Entry,
    /// The rest of a node in which so many directories are open, a file counting as one.
    Rest(usize),
}

impl PendingEvents {
    /// Takes an event; the type of the node if it is the one that only this side has.
    fn take(&mut self, event: Event<'_>) -> Option<NodeType> {
        let (head, text): (_, &[u8]) = match event {
            Event::Directory => (Head::Node(NodeType::Directory), b""),
            Event::Regular {
                executable, size, ..
            } => {
                (self.executable, self.size) = (executable, size);
                (Head::Node(NodeType::Regular), b"")
            }
            Event::Symlink { target } => (Head::Node(NodeType::Symlink), target),
            Event::Entry { name } => (Head::Entry, name),
            Event::LeaveDirectory => (Head::Leave, b""),
            Event::Contents(piece) => (Head::Contents, piece),
            Event::EndRegular => (Head::EndRegular, b""),
            Event::End => (Head::End, b""),
        };
        if self.skip != Skip::Nothing {
            return self.pass(head);
        }
        self.head = head;
        self.done = 0;
        self.text.clear();
        self.text.extend_from_slice(text);
        None
    }

    /// Passes over `head`; the type of the node if it is the first of what is skipped.
    fn pass(&mut self, head: Head) -> Option<NodeType> {
        let open = match self.skip {
            Skip::Rest(open) => open,
            _ => 0,
        };
        let open = match head {
            Head::Node(NodeType::Directory | NodeType::Regular) => open + 1,
            Head::Leave | Head::EndRegular => open.saturating_sub(1),
            _ => open,
        };
        let first = match (self.skip, head) {
            (Skip::Entry, Head::Node(node)) => Some(node),
            _ => None,
        };
        self.skip = match open {
            0 => Skip::Nothing,
            open => Skip::Rest(open),
        };
        first
    }

    fn skip_entry(&mut self) {
        self.head = Head::None;
        self.skip = Skip::Entry;
    }

    /// Passes over the node at the head.
    fn skip_node(&mut self) {
        let head = self.head;
        self.skip = Skip::Nothing;
        self.pass(head);
        self.head = Head::None;
    }

    fn consume(&mut self) {
        self.head = Head::None;
    }

    fn contents(&self) -> &[u8] {
        match self.head {
            Head::Contents => &self.text[self.done..],
            _ => &[],
        }
    }

    /// Passes over `count` bytes of contents.
    fn advance(&mut self, count: usize) {
        self.done += count;
        if self.head == Head::Contents && self.done == self.text.len() {
            self.head = Head::None;
        }
    }
}

/// How many bytes are equal from the beginning.
fn common(left: &[u8], right: &[u8]) -> usize {
    // In blocks, which the machine compares many bytes at once.
    let blocks = left.chunks_exact(BLOCK).zip(right.chunks_exact(BLOCK));
    let equal = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    let rest = left[equal..].iter().zip(&right[equal..]);
    equal + rest.take_while(|(a, b)| a == b).count()
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

const BLOCK: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, NarReader, SliceReader};
    use std::io::Read;

    /// Bytes one to seven at a time.
    struct Short<'a>(&'a [u8], usize);

    impl Read for Short<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1 % 7 + 1;
            let count = self.1.min(out.len());
            self.0.read(&mut out[..count])
        }
    }

    fn compare_with(left: &[u8], right: &[u8], limit: usize) -> Comparison {
        let mut readers = [
            NarReader::new(Short(left, 0)),
            NarReader::new(Short(right, 3)),
        ];
        let mut comparer = Comparer::new(limit);
        while let Some(side) = comparer.wanted() {
            let event = readers[side as usize].next_event().unwrap();
            comparer.push(side, event.expect("an event"));
        }
        let short = comparer.finish();
        let mut readers = [SliceReader::new(left), SliceReader::new(right)];
        let mut comparer = Comparer::new(limit);
        while let Some(side) = comparer.wanted() {
            let event = readers[side as usize].next_event().unwrap();
            comparer.push(side, event.expect("an event"));
        }
        assert!(readers.iter().all(|reader| reader.rest().is_empty()));
        let whole = comparer.finish();
        assert_eq!(whole, short, "however the bytes arrive");
        whole
    }

    fn found(left: &[u8], right: &[u8]) -> Vec<String> {
        let found = compare_with(left, right, MAX_DIFFERENCES);
        assert_eq!(found.count, found.differences.len() as u64);
        let told = found.differences.iter();
        told.map(|d| format!("{}: {d}", d.shown_path())).collect()
    }

    /// A tree: lines `name = contents`, `name * contents` (executable), `name > target`, `name {`, `}`.
    fn nar(tree: &str) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        encoder.directory().unwrap();
        for line in tree.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line == "}" {
                encoder.leave().unwrap();
                continue;
            }
            let (name, rest) = line.split_once(' ').unwrap();
            encoder.entry(name.as_bytes()).unwrap();
            let value = rest.get(2..).unwrap_or_default().as_bytes();
            match rest.as_bytes()[0] {
                b'=' => encoder.file(false, value),
                b'*' => encoder.file(true, value),
                b'>' => encoder.symlink(value),
                _ => encoder.directory(),
            }
            .unwrap();
        }
        encoder.leave().unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_kind() {
        let base = "bin {\n run * #!/bin/sh\n }\n link > run\n log = a 12:01 b\n z = end";
        for (changed, told) in [
            (
                ("12:01", "12:02"),
                "log: the contents differ from byte 6 on: \"1 b\" and \"2 b\" (9 and 9 bytes)",
            ),
            (
                ("run *", "run ="),
                "bin/run: it is executable only in the first",
            ),
            (
                ("> run", "> walk"),
                "link: the link leads to run, and to walk",
            ),
            (
                ("z = end", "z = ending"),
                "z: the contents differ from byte 3 on: \"\" and \"ing\" (3 and 6 bytes)",
            ),
            (
                ("z = end", "z ="),
                "z: the contents differ from byte 0 on: \"end\" and \"\" (3 and 0 bytes)",
            ),
            (
                ("link > run", "link = run"),
                "link: it is a symlink, and a file",
            ),
            (
                ("bin {\n run * #!/bin/sh\n }", "bin = x"),
                "bin: it is a directory, and a file",
            ),
            (("link > run", ""), "link: the symlink is only in the first"),
            (("z = end", ""), "z: the file is only in the first"),
            (
                (
                    "link > run",
                    "link > run\n lisp {\n a {\n b = c\n }\n d > e\n }",
                ),
                "lisp: the directory is only in the second",
            ),
        ] {
            let other = base.replace(changed.0, changed.1);
            assert_ne!(other, base);
            assert_eq!(found(&nar(base), &nar(&other)), [told]);
        }
        assert_eq!(found(&nar(base), &nar(base)), [""; 0]);
    }

    #[test]
    fn all_of_them_in_order() {
        let left = nar("a {\n b = 1\n c = 2\n }\n d = 3\n e {\n f > g\n }\n h = same");
        let right = nar("a {\n b = 9\n cc = 2\n }\n e = x\n h = same\n i = 1");
        let told = [
            "a/b: the contents differ from byte 0 on: \"1\" and \"9\" (1 and 1 bytes)",
            "a/c: the file is only in the first",
            "a/cc: the file is only in the second",
            "d: the file is only in the first",
            "e: it is a directory, and a file",
            "i: the file is only in the second",
        ];
        assert_eq!(found(&left, &right), told);
        for limit in 0..told.len() {
            let some = compare_with(&left, &right, limit);
            assert_eq!(some.count, 6);
            assert_eq!(some.differences.len(), limit);
            assert!(!some.is_same());
        }
    }

    #[test]
    fn roots_that_are_no_directories() {
        let file = |executable, contents: &[u8]| {
            let mut encoder = Encoder::new(Vec::new());
            encoder.file(executable, contents).unwrap();
            encoder.finish().unwrap()
        };
        let told =
            ": the contents differ from byte 1 on: \"\\x00\\n\" and \"\\xff\\n\" (3 and 3 bytes)";
        assert_eq!(
            found(&file(false, b"a\0\n"), &file(false, b"a\xff\n")),
            [told]
        );
        let told = [
            ": it is executable only in the second".to_owned(),
            ": the contents differ from byte 0 on: \"a\" and \"b\" (1 and 1 bytes)".to_owned(),
        ];
        assert_eq!(found(&file(false, b"a"), &file(true, b"b")), told);
        assert_eq!(
            found(&nar("a = b"), &file(false, b"")),
            [": it is a directory, and a file"]
        );
    }

    #[test]
    fn long_contents() {
        let mut bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let file = |contents: &[u8]| {
            let mut encoder = Encoder::new(Vec::new());
            encoder.file(false, contents).unwrap();
            encoder.finish().unwrap()
        };
        let before = file(&bytes);
        for at in [0, 63, 64, 65, 70_001, bytes.len() - 1] {
            bytes[at] ^= 1;
            let found = compare_with(&before, &file(&bytes), 1);
            bytes[at] ^= 1;
            let DifferenceKind::Contents {
                offset, excerpts, ..
            } = &found.differences[0].kind
            else {
                panic!("{found:?}");
            };
            assert_eq!(*offset, at as u64);
            let kept = EXCERPT.min(bytes.len() - at);
            assert_eq!(excerpts[0], bytes[at..at + kept]);
            assert_eq!(excerpts[1].len(), kept);
        }
    }
}
