//! Members one after the other, and what follows the last.

use std::io::{self, BufRead, Read};

/// Input of which some bytes can be seen before they are read.
pub(super) struct Ahead<R> {
    input: R,
    /// Seen, and to be read before `input`.
    seen: Vec<u8>,
    at: usize,
}

impl<R: BufRead> Ahead<R> {
    pub(super) fn new(input: R) -> Self {
        Ahead {
            input,
            seen: Vec::new(),
            at: 0,
        }
    }

    /// Whether `magic`, a few bytes, comes next.
    pub(super) fn starts_with(&mut self, magic: &[u8]) -> io::Result<bool> {
        self.seen.drain(..self.at);
        self.at = 0;
        let more = magic.len().saturating_sub(self.seen.len());
        let mut more = self.input.by_ref().take(more as u64);
        more.read_to_end(&mut self.seen)?;
        Ok(self.seen.starts_with(magic))
    }

    /// Whether the next two bytes are a header of zlib's format.
    #[cfg(feature = "http")]
    pub(super) fn has_zlib_header(&mut self) -> io::Result<bool> {
        self.starts_with(&[0; 2])?;
        let header = self.seen.first_chunk().copied().map(u16::from_be_bytes);
        Ok(header.is_some_and(|header| header >> 8 & 0xf == 8 && header % 31 == 0))
    }
}

impl<R: BufRead> Read for Ahead<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Ahead<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.seen.len() {
            Ok(&self.seen[self.at..])
        } else {
            self.input.fill_buf()
        }
    }

    fn consume(&mut self, n: usize) {
        if self.at < self.seen.len() {
            self.at += n
        } else {
            self.input.consume(n)
        }
    }
}

/// A decoder of one member, which stops right behind its end.
pub(super) trait MemberDecoder: Read {
    /// The input that holds the compressed bytes.
    type Input: BufRead;
    /// Makes a decoder of the member that begins where `input` stands.
    fn begin(input: Ahead<Self::Input>) -> Self;
    /// The input, where it stopped.
    fn end(self) -> Ahead<Self::Input>;
}

/// Any number of members, at least one. What follows the last and does not begin as one is passed
/// over, as libarchive does: tapes are filled up with zeros.
pub(super) struct Members<M> {
    magic: &'static [u8],
    /// `None` behind the last.
    member: Option<M>,
}

impl<M: MemberDecoder> Members<M> {
    pub(super) fn new(magic: &'static [u8], input: M::Input) -> Self {
        let member = Some(M::begin(Ahead::new(input)));
        Members { magic, member }
    }
}

impl<M: MemberDecoder> Read for Members<M> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member
            && !out.is_empty()
        {
            let n = member.read(out)?;
            if n > 0 {
                return Ok(n);
            }
            let Some(mut input) = self.member.take().map(M::end) else {
                break;
            };
            if input.starts_with(self.magic)? {
                self.member = Some(M::begin(input));
            }
        }
        Ok(0)
    }
}

#[cfg(feature = "gzip")]
impl<R: BufRead> MemberDecoder for flate2::bufread::GzDecoder<Ahead<R>> {
    type Input = R;

    fn begin(input: Ahead<R>) -> Self {
        flate2::bufread::GzDecoder::new(input)
    }

    fn end(self) -> Ahead<R> {
        self.into_inner()
    }
}

#[cfg(feature = "bzip2")]
impl<R: BufRead> MemberDecoder for bzip2::bufread::BzDecoder<Ahead<R>> {
    type Input = R;

    fn begin(input: Ahead<R>) -> Self {
        bzip2::bufread::BzDecoder::new(input)
    }

    fn end(self) -> Ahead<R> {
        self.into_inner()
    }
}
