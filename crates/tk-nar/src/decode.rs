//! The state machine that all readers pump. It is pushed bytes and gives events; see [`crate::grammar`] for the rules.

use std::ops::Range;

use crate::error::{NarError, NarErrorKind as Kind};
use crate::grammar::{self, MAX_DEPTH, MAX_MAGIC, MAX_NAME, MAX_TAG, MAX_TARGET};

/// One step through an archive. Texts are borrowed from the fed bytes, or from the decoder where they arrived in pieces.
///
/// A node is `Directory (Entry node)* LeaveDirectory`, `Regular Contents* EndRegular`, or `Symlink`. The root node is
/// followed by `End`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A directory begins; its entries follow, up to `LeaveDirectory`.
    Directory,
    /// The next node is the entry of this name in the innermost directory. The name is valid and in order.
    Entry {
        /// 1 to 255 bytes, any but `/` and NUL; not necessarily UTF-8.
        name: &'a [u8],
    },
    /// The innermost directory is complete.
    LeaveDirectory,
    /// A regular file begins. `size` is a claim: do not allocate it.
    Regular {
        /// Whether the file is executable.
        executable: bool,
        /// Bytes of contents that follow.
        size: u64,
        /// Bytes from the start of the archive to the first byte of contents.
        offset: u64,
    },
    /// The next piece of the contents; never empty. A slice that holds all contents gives one piece.
    Contents(&'a [u8]),
    /// All contents came and were padded and closed as they should be.
    EndRegular,
    /// A whole symlink; nothing of it follows.
    Symlink {
        /// 1 to 4095 bytes without NUL; nothing else is known about it.
        target: &'a [u8],
    },
    /// The archive is complete; what follows in the input does not belong to it.
    End,
}

/// What [`Decoder::feed`] made of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed<'a> {
    /// Bytes taken from the front of the input; feed the rest next.
    pub consumed: usize,
    /// `None` if all input was taken and more is needed (or the archive is complete).
    pub event: Option<Event<'a>>,
}

/// A decoder of one archive, pushed bytes by its caller.
///
/// # Security
/// The input may be hostile. The decoder neither recurses nor allocates from a claim: it holds at most one short string
/// (4104 bytes) and the last name of each open directory (64 × 255 bytes). Events come before the archive is known to
/// be well-formed to its end, and nothing here verifies a hash: treat what was seen as unverified until the caller has
/// compared one.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: DecoderState,
    /// Bytes of the archive up to the start of the word at hand.
    offset: u64,
    /// A word that came in pieces.
    held: Vec<u8>,
    /// The held word was handed out and is to be dropped.
    spent: bool,
    executable: bool,
    /// For each open directory, where its last name begins in `names`.
    levels: Vec<usize>,
    names: Vec<u8>,
}

impl Decoder {
    /// A decoder at the first byte of an archive.
    pub fn new() -> Self {
        Self {
            state: DecoderState::Magic,
            offset: 0,
            held: Vec::new(),
            spent: false,
            executable: false,
            levels: Vec::new(),
            names: Vec::new(),
        }
    }

    /// Takes bytes from the front of `input` up to and including the next event. Call again with what was not consumed;
    /// an empty input is fine and can still give an event. After an error only [`NarErrorKind::Refused`] follows.
    ///
    /// [`NarErrorKind::Refused`]: crate::NarErrorKind::Refused
    pub fn feed<'a>(&'a mut self, input: &'a [u8]) -> Result<Fed<'a>, NarError> {
        let (consumed, raw) = self.step(input)?;
        let event = raw.map(|raw| raw.bind(input, &self.held));
        Ok(Fed { consumed, event })
    }

    /// Bytes of the archive taken so far.
    pub fn offset(&self) -> u64 {
        self.offset + self.partial().len() as u64
    }

    /// Whether the archive is complete and [`Event::End`] was given.
    pub fn is_done(&self) -> bool {
        self.state == DecoderState::Done
    }

    /// A lower bound on the bytes still missing from the archive; 0 only once its last byte was taken. Whoever reads no
    /// more than this never reads behind the archive.
    pub fn needed(&self) -> u64 {
        if self.state == DecoderState::Refused {
            return 0;
        }
        let held = self.partial().len() as u64;
        let word = match self.partial().first_chunk() {
            Some(length) => {
                let length = u64::from_le_bytes(*length);
                (8 + length + grammar::padding(length) as u64).saturating_sub(held)
            }
            None => 0,
        };
        self.least().saturating_sub(held).max(word)
    }

    /// How many bytes of contents come next; `None` outside of contents.
    pub fn contents_left(&self) -> Option<u64> {
        match self.state {
            DecoderState::Contents { left } => Some(left),
            _ => None,
        }
    }

    /// Passes over up to `count` bytes of contents that the caller skipped in its source; returns how many that are.
    pub fn skip_contents(&mut self, count: u64) -> u64 {
        let DecoderState::Contents { left } = &mut self.state else {
            return 0;
        };
        // Far beyond any real source, and far from where an offset would overflow.
        let count = count
            .min(*left)
            .min((u64::MAX >> 1).saturating_sub(self.offset));
        *left -= count;
        self.offset += count;
        count
    }

    /// The error for an input that stops here; `Ok` if the archive is complete.
    pub fn finish(&self) -> Result<(), NarError> {
        match self.state {
            DecoderState::End | DecoderState::Done => Ok(()),
            DecoderState::Refused => Err(NarError::new(self.offset, Kind::Refused)),
            _ => Err(NarError::new(self.offset(), Kind::UnexpectedEnd)),
        }
    }

    pub(crate) fn held(&self) -> &[u8] {
        &self.held
    }

    pub(crate) fn step(&mut self, input: &[u8]) -> Result<(usize, Option<Raw>), NarError> {
        let result = self.advance(input);
        if result.is_err() {
            self.state = DecoderState::Refused;
        }
        result
    }

    fn partial(&self) -> &[u8] {
        if self.spent { &[] } else { &self.held }
    }

    fn advance(&mut self, input: &[u8]) -> Result<(usize, Option<Raw>), NarError> {
        let mut at = 0;
        loop {
            let event = match self.state {
                DecoderState::Contents { left: 0 } => {
                    self.state = DecoderState::Padding {
                        left: self.pad_of_contents(),
                    };
                    continue;
                }
                DecoderState::Contents { left } => {
                    let piece =
                        at..at + (input.len() - at).min(left.try_into().unwrap_or(usize::MAX));
                    if piece.is_empty() {
                        return Ok((at, None));
                    }
                    at = piece.end;
                    self.skip_contents(piece.len() as u64);
                    Some(Raw::Contents(piece))
                }
                DecoderState::Padding { left } => {
                    let zeros = left.min(input.len() - at);
                    self.expect_zeros(&input[at..at + zeros], self.offset)?;
                    at += zeros;
                    self.offset += zeros as u64;
                    self.state = match left - zeros {
                        0 => DecoderState::CloseRegular,
                        left => DecoderState::Padding { left },
                    };
                    if zeros < left {
                        return Ok((at, None));
                    }
                    None
                }
                DecoderState::Size => match self.size(input, &mut at) {
                    Some(size) => Some(self.regular(size)),
                    None => return Ok((at, None)),
                },
                DecoderState::End => {
                    self.state = DecoderState::Done;
                    Some(Raw::End)
                }
                DecoderState::Done => return Ok((at, None)),
                DecoderState::Refused => return Err(NarError::new(self.offset, Kind::Refused)),
                _ => {
                    if self.skip_constant(input, &mut at) {
                        continue;
                    }
                    let start = self.offset;
                    match self.word(input, &mut at)? {
                        Some(text) => self.accept(text, input, start)?,
                        None => return Ok((at, None)),
                    }
                }
            };
            if event.is_some() {
                return Ok((at, event));
            }
        }
    }

    /// Passes over words that nearly always follow each other and stand whole in the input, in one comparison.
    fn skip_constant(&mut self, input: &[u8], at: &mut usize) -> bool {
        let (words, next): (&[u8], _) = match self.state {
            DecoderState::AfterEntry => (&grammar::CLOSE_ENTRY_NAME, DecoderState::Name),
            DecoderState::NextEntry => (&grammar::ENTRY_NAME, DecoderState::Name),
            DecoderState::NodeTag if self.levels.len() < MAX_DEPTH => {
                (&grammar::NODE_IN_ENTRY, DecoderState::Kind)
            }
            DecoderState::Kind => (&grammar::REGULAR_CONTENTS, DecoderState::Size),
            _ => return false,
        };
        if !self.partial().is_empty() || !input[*at..].starts_with(words) {
            return false;
        }
        *at += words.len();
        self.offset += words.len() as u64;
        self.executable = false;
        self.state = next;
        true
    }

    /// The next string with its length checked, once it and its padding are there in full.
    fn word(&mut self, input: &[u8], at: &mut usize) -> Result<Option<DecodedText>, NarError> {
        let rest = &input[*at..];
        if self.partial().is_empty()
            && let Some(length) = rest.first_chunk()
        {
            let length = self.checked(u64::from_le_bytes(*length))?;
            let whole = 8 + length + grammar::padding(length as u64);
            if rest.len() >= whole {
                self.expect_zeros(&rest[8 + length..whole], self.offset + 8 + length as u64)?;
                let start = *at + 8;
                *at += whole;
                self.offset += whole as u64;
                return Ok(Some(DecodedText::Input(start..start + length)));
            }
        }
        self.hold(input, at)
    }

    /// [`Decoder::word`] for a string that does not stand whole in the input.
    fn hold(&mut self, input: &[u8], at: &mut usize) -> Result<Option<DecodedText>, NarError> {
        if std::mem::take(&mut self.spent) {
            self.held.clear();
        }
        if !self.fill_to(8, input, at) {
            return Ok(None);
        }
        let length = self
            .held
            .first_chunk()
            .map_or(0, |length| u64::from_le_bytes(*length));
        let length = self.checked(length)?;
        let whole = 8 + length + grammar::padding(length as u64);
        if !self.fill_to(whole, input, at) {
            return Ok(None);
        }
        self.expect_zeros(&self.held[8 + length..], self.offset + 8 + length as u64)?;
        self.offset += whole as u64;
        self.spent = true;
        Ok(Some(DecodedText::Held(8..8 + length)))
    }

    fn fill_to(&mut self, count: usize, input: &[u8], at: &mut usize) -> bool {
        let missing = count.saturating_sub(self.held.len());
        let taken = missing.min(input.len() - *at);
        self.held.extend_from_slice(&input[*at..*at + taken]);
        *at += taken;
        taken == missing
    }

    fn size(&mut self, input: &[u8], at: &mut usize) -> Option<u64> {
        if std::mem::take(&mut self.spent) {
            self.held.clear();
        }
        if !self.fill_to(8, input, at) {
            return None;
        }
        self.offset += 8;
        self.spent = true;
        self.held
            .first_chunk()
            .map(|size| u64::from_le_bytes(*size))
    }

    fn regular(&mut self, size: u64) -> Raw {
        self.state = DecoderState::Contents { left: size };
        Raw::Regular {
            executable: self.executable,
            size,
            offset: self.offset,
        }
    }

    /// Contents start at a multiple of 8, so the place where they end tells the padding.
    fn pad_of_contents(&self) -> usize {
        grammar::padding(self.offset)
    }

    fn checked(&self, length: u64) -> Result<usize, NarError> {
        let (what, limit) = match self.state {
            DecoderState::Magic => ("the magic string", MAX_MAGIC),
            DecoderState::Name => ("a name", MAX_NAME),
            DecoderState::Target => ("a link target", MAX_TARGET),
            _ => ("a tag", MAX_TAG),
        };
        match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(length),
            _ if self.state == DecoderState::Magic => {
                Err(NarError::new(self.offset, Kind::NotAnArchive))
            }
            _ => Err(NarError::new(
                self.offset,
                Kind::TooLong {
                    what,
                    length,
                    limit,
                },
            )),
        }
    }

    fn expect_zeros(&self, bytes: &[u8], offset: u64) -> Result<(), NarError> {
        match bytes.iter().position(|&byte| byte != 0) {
            Some(at) => Err(NarError::new(offset + at as u64, Kind::Padding)),
            None => Ok(()),
        }
    }

    /// Moves on over one whole word that begins at `start`.
    fn accept(
        &mut self,
        text: DecodedText,
        input: &[u8],
        start: u64,
    ) -> Result<Option<Raw>, NarError> {
        let held = std::mem::take(&mut self.held);
        let result = self.accept_word(text.get(input, &held), &text, start);
        self.held = held;
        result
    }

    fn accept_word(
        &mut self,
        word: &[u8],
        text: &DecodedText,
        start: u64,
    ) -> Result<Option<Raw>, NarError> {
        let unexpected = |expected| {
            let found = word.to_vec();
            Err(NarError::new(
                start,
                Kind::UnexpectedTag { expected, found },
            ))
        };
        let mut event = None;
        self.state = match (self.state, word) {
            (DecoderState::Magic, grammar::MAGIC_TEXT) => DecoderState::Open,
            (DecoderState::Magic, _) => return Err(NarError::new(start, Kind::NotAnArchive)),
            (DecoderState::Open, b"(") if self.levels.len() >= MAX_DEPTH => {
                return Err(NarError::new(start, Kind::TooDeep));
            }
            (DecoderState::Open, b"(") => DecoderState::TypeTag,
            (DecoderState::Open, _) => return unexpected("'('"),
            (DecoderState::TypeTag, b"type") => DecoderState::Kind,
            (DecoderState::TypeTag, _) => return unexpected("'type'"),
            (DecoderState::Kind, b"regular") => DecoderState::FileTag,
            (DecoderState::Kind, b"symlink") => DecoderState::TargetTag,
            (DecoderState::Kind, b"directory") => {
                self.levels.push(self.names.len());
                event = Some(Raw::Directory);
                DecoderState::NextEntry
            }
            (DecoderState::Kind, _) => return unexpected("'regular', 'symlink' or 'directory'"),
            (DecoderState::FileTag, b"executable") => DecoderState::Marker,
            (DecoderState::FileTag, b"contents") => {
                self.executable = false;
                DecoderState::Size
            }
            (DecoderState::FileTag, _) => return unexpected("'executable' or 'contents'"),
            (DecoderState::Marker, b"") => DecoderState::ContentsTag,
            (DecoderState::Marker, _) => return Err(NarError::new(start, Kind::Marker)),
            (DecoderState::ContentsTag, b"contents") => {
                self.executable = true;
                DecoderState::Size
            }
            (DecoderState::ContentsTag, _) => return unexpected("'contents'"),
            (DecoderState::TargetTag, b"target") => DecoderState::Target,
            (DecoderState::TargetTag, _) => return unexpected("'target'"),
            (DecoderState::Target, target) => {
                if let Some(why) = grammar::target_fault(target) {
                    return Err(NarError::new(start, Kind::Target { why }));
                }
                event = Some(Raw::Symlink(text.clone()));
                DecoderState::CloseSymlink
            }
            (DecoderState::CloseRegular, b")") => {
                event = Some(Raw::EndRegular);
                self.after_node()
            }
            (DecoderState::CloseSymlink, b")") => self.after_node(),
            (DecoderState::NextEntry, b"entry") => DecoderState::EntryOpen,
            (DecoderState::NextEntry, b")") => {
                self.names.truncate(self.levels.pop().unwrap_or(0));
                event = Some(Raw::LeaveDirectory);
                self.after_node()
            }
            (DecoderState::NextEntry, _) => return unexpected("'entry' or ')'"),
            (DecoderState::EntryOpen, b"(") => DecoderState::NameTag,
            (DecoderState::EntryOpen, _) => return unexpected("'('"),
            (DecoderState::NameTag, b"name") => DecoderState::Name,
            (DecoderState::NameTag, _) => return unexpected("'name'"),
            (DecoderState::Name, name) => {
                self.check_name(name, start)?;
                event = Some(Raw::Entry(text.clone()));
                DecoderState::NodeTag
            }
            (DecoderState::NodeTag, b"node") => DecoderState::Open,
            (DecoderState::NodeTag, _) => return unexpected("'node'"),
            (DecoderState::AfterEntry, b")") => DecoderState::NextEntry,
            (
                DecoderState::CloseRegular | DecoderState::CloseSymlink | DecoderState::AfterEntry,
                _,
            ) => {
                return unexpected("')'");
            }
            (state, _) => state,
        };
        Ok(event)
    }

    fn after_node(&self) -> DecoderState {
        if self.levels.is_empty() {
            DecoderState::End
        } else {
            DecoderState::AfterEntry
        }
    }

    fn check_name(&mut self, name: &[u8], start: u64) -> Result<(), NarError> {
        if let Some(why) = grammar::name_fault(name) {
            return Err(NarError::new(
                start,
                Kind::Name {
                    name: name.to_vec(),
                    why,
                },
            ));
        }
        let level = self.levels.last().copied().unwrap_or(0);
        let previous = &self.names[level..];
        // No name is empty, so the empty one stands for "none yet".
        if name <= previous {
            let (name, previous) = (name.to_vec(), previous.to_vec());
            return Err(NarError::new(start, Kind::Order { name, previous }));
        }
        self.names.truncate(level);
        self.names.extend_from_slice(name);
        Ok(())
    }

    /// The shortest rest of an archive from the start of the word at hand.
    fn least(&self) -> u64 {
        let levels = self.levels.len() as u64;
        // Behind a node: the entry's and the directory's `)` for each directory around it.
        let after = 32 * levels;
        let kind = 40 + after;
        let size = 24 + after;
        let name = 16 + 48 + kind;
        match self.state {
            DecoderState::Magic => 24 + 32 + kind,
            DecoderState::Open => 32 + kind,
            DecoderState::TypeTag => 16 + kind,
            DecoderState::Kind => kind,
            DecoderState::FileTag | DecoderState::ContentsTag => 16 + size,
            DecoderState::Marker => 24 + size,
            DecoderState::Size => size,
            DecoderState::Contents { left } => left.saturating_add(16 + after),
            DecoderState::Padding { left } => left as u64 + 16 + after,
            DecoderState::TargetTag => 48 + after,
            DecoderState::Target => 32 + after,
            DecoderState::CloseRegular | DecoderState::CloseSymlink => 16 + after,
            DecoderState::NextEntry => 32 * levels - 16,
            DecoderState::AfterEntry => 32 * levels,
            DecoderState::EntryOpen => 32 + name,
            DecoderState::NameTag => 16 + name,
            DecoderState::Name => name,
            DecoderState::NodeTag => 48 + kind,
            DecoderState::End | DecoderState::Done | DecoderState::Refused => 0,
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks that what is fed to it is one complete archive and nothing else.
#[derive(Debug, Clone, Default)]
pub struct Validator {
    decoder: Decoder,
}

impl Validator {
    /// A validator at the first byte of an archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes of the archive. Bytes behind its end are an error.
    pub fn feed(&mut self, input: &[u8]) -> Result<(), NarError> {
        feed_all(&mut self.decoder, input, |_| Ok(()))
    }

    /// The length of the archive in bytes; an error if it is not complete.
    pub fn finish(self) -> Result<u64, NarError> {
        self.decoder.finish()?;
        Ok(self.decoder.offset())
    }
}

/// Feeds all of `input` and gives every event to `take`; bytes behind the archive are an error.
pub(crate) fn feed_all<E: From<NarError>>(
    decoder: &mut Decoder,
    mut input: &[u8],
    mut take: impl FnMut(Event<'_>) -> Result<(), E>,
) -> Result<(), E> {
    loop {
        let fed = decoder.feed(input)?;
        input = &input[fed.consumed..];
        match fed.event {
            Some(event) => take(event)?,
            None if input.is_empty() => return Ok(()),
            None => return Err(NarError::new(decoder.offset(), Kind::Trailing).into()),
        }
    }
}

/// An event whose texts are places in the input or in the decoder, so that a pump can hold it while it moves bytes.
#[derive(Debug)]
pub(crate) enum Raw {
    Directory,
    Entry(DecodedText),
    LeaveDirectory,
    Regular {
        executable: bool,
        size: u64,
        offset: u64,
    },
    Contents(Range<usize>),
    EndRegular,
    Symlink(DecodedText),
    End,
}

impl Raw {
    pub(crate) fn bind<'a>(self, input: &'a [u8], held: &'a [u8]) -> Event<'a> {
        match self {
            Raw::Directory => Event::Directory,
            Raw::Entry(text) => Event::Entry {
                name: text.get(input, held),
            },
            Raw::LeaveDirectory => Event::LeaveDirectory,
            Raw::Regular {
                executable,
                size,
                offset,
            } => Event::Regular {
                executable,
                size,
                offset,
            },
            Raw::Contents(piece) => Event::Contents(&input[piece]),
            Raw::EndRegular => Event::EndRegular,
            Raw::Symlink(text) => Event::Symlink {
                target: text.get(input, held),
            },
            Raw::End => Event::End,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum DecodedText {
    Input(Range<usize>),
    Held(Range<usize>),
}

impl DecodedText {
    fn get<'a>(&self, input: &'a [u8], held: &'a [u8]) -> &'a [u8] {
        match self {
            DecodedText::Input(place) => &input[place.clone()],
            DecodedText::Held(place) => &held[place.clone()],
        }
    }
}

/// Which word comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DecoderState {
    Magic,
    Open,
    TypeTag,
    Kind,
    FileTag,
    Marker,
    ContentsTag,
    Size,
    Contents {
        left: u64,
    },
    Padding {
        left: usize,
    },
    CloseRegular,
    TargetTag,
    Target,
    CloseSymlink,
    NextEntry,
    EntryOpen,
    NameTag,
    Name,
    NodeTag,
    AfterEntry,
    /// The root is closed, `Event::End` is still to be given.
    End,
    Done,
    Refused,
}
