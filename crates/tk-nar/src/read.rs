//! Pumps from slices and blocking readers into the decoder.

use std::io::{self, Read};

use crate::decode::{Decoder, Event};
use crate::error::{NarError, NarErrorKind};

/// The events of an archive in memory, borrowed from it; nothing is allocated for them.
#[derive(Debug, Clone)]
pub struct SliceReader<'a> {
    rest: &'a [u8],
    decoder: Decoder,
}

impl<'a> SliceReader<'a> {
    /// A reader at the start of `archive`.
    pub fn new(archive: &'a [u8]) -> Self {
        Self {
            rest: archive,
            decoder: Decoder::new(),
        }
    }

    /// The next event; `None` after [`Event::End`]. Contents come as one piece a file.
    pub fn next_event(&mut self) -> Result<Option<Event<'a>>, NarError> {
        let input = self.rest;
        let (consumed, raw) = self.decoder.step(input)?;
        self.rest = &input[consumed..];
        match raw {
            // All input was there at once, so no text was put together in the decoder.
            Some(raw) => Ok(Some(raw.bind(input, &[]))),
            None => self.decoder.finish().map(|()| None),
        }
    }

    /// Bytes of the archive taken so far; after the end, its length.
    pub fn offset(&self) -> u64 {
        self.decoder.offset()
    }

    /// What was not taken yet; after the end, what follows the archive.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for SliceReader<'a> {
    type Item = Result<Event<'a>, NarError>;

    /// Ends after [`Event::End`]; an error repeats as [`NarErrorKind::Refused`], or as it was if the input ended early.
    fn next(&mut self) -> Option<Self::Item> {
        self.next_event().transpose()
    }
}

/// The events of an archive read from `R`.
///
/// Never reads a byte behind the root's `)`: it asks only for what the archive is sure to still have. That makes two
/// or three short reads a file, so give it something buffered (`BufReader`, `&[u8]`, `Cursor`) when it reads many.
#[derive(Debug)]
pub struct NarReader<R> {
    source: R,
    pump: Pump,
}

impl<R: Read> NarReader<R> {
    /// A reader of the archive that begins at the next byte of `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            pump: Pump::new(),
        }
    }

    /// The next event; `None` after [`Event::End`]. Interrupted reads are repeated.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>, NarError> {
        let raw = loop {
            match self.pump.step()? {
                ReadStep::Event(raw) => break raw,
                ReadStep::Done => return Ok(None),
                ReadStep::More => {}
            }
            let count = read(&mut self.source, self.pump.space());
            self.pump.filled(count)?;
        };
        Ok(Some(self.pump.bind(raw)))
    }

    /// Bytes of the archive taken so far; after the end, its length.
    pub fn offset(&self) -> u64 {
        self.pump.decoder.offset()
    }

    /// The source, at the first byte behind the archive if [`Event::End`] was given.
    pub fn into_inner(self) -> R {
        self.source
    }
}

/// What a pump from any source shares: a window of read bytes in front of the decoder.
#[derive(Debug)]
pub(crate) struct Pump {
    pub(crate) decoder: Decoder,
    window: Box<[u8]>,
    start: usize,
    end: usize,
    last: usize,
}

pub(crate) enum ReadStep {
    Event(crate::decode::Raw),
    /// Read into [`Pump::space`] and say how much with [`Pump::filled`].
    More,
    Done,
}

impl Pump {
    pub(crate) fn new() -> Self {
        let window = vec![0; WINDOW].into_boxed_slice();
        Self {
            decoder: Decoder::new(),
            window,
            start: 0,
            end: 0,
            last: 0,
        }
    }

    pub(crate) fn step(&mut self) -> Result<ReadStep, NarError> {
        let (consumed, raw) = self.decoder.step(&self.window[self.start..self.end])?;
        self.last = self.start;
        self.start += consumed;
        Ok(match raw {
            Some(raw) => ReadStep::Event(raw),
            None if self.decoder.is_done() => ReadStep::Done,
            None => ReadStep::More,
        })
    }

    /// Where the next bytes go: no more than the archive still has.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        let needed = self.decoder.needed().try_into().unwrap_or(usize::MAX);
        &mut self.window[..needed.clamp(1, WINDOW)]
    }

    pub(crate) fn filled(&mut self, count: io::Result<usize>) -> Result<(), NarError> {
        let offset = self.decoder.offset();
        match count {
            Ok(0) => Err(NarError::new(offset, NarErrorKind::UnexpectedEnd)),
            Ok(count) => {
                (self.start, self.end) = (0, count);
                Ok(())
            }
            Err(error) => Err(NarError::new(offset, NarErrorKind::Read(error))),
        }
    }

    pub(crate) fn bind(&self, raw: crate::decode::Raw) -> Event<'_> {
        raw.bind(&self.window[self.last..self.end], self.decoder.held())
    }
}

pub(crate) fn read(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

const WINDOW: usize = 64 * 1024;
