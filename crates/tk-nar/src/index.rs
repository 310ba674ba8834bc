//! Random access: members of an archive are read by seeking to them.

use std::io::{self, Read, Seek, SeekFrom};

use crate::decode::{Decoder, Event};
use crate::error::{NarError, NarErrorKind};
use crate::listing::{Listing, ListingNode, TreeBuilder};
use crate::read;

/// An archive one can seek in, with the places of all its members.
///
/// # Security
/// Opening checks the grammar of everything but the contents, which it passes over. Nothing verifies a hash: members
/// are what the file says.
#[derive(Debug)]
pub struct Index<R> {
    source: R,
    /// Where the archive begins in `source`.
    base: u64,
    listing: Listing,
}

/// Why a member could not be read from an [`Index`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// The archive has no such member, or a symlink stands in the way.
    #[error("the archive has no member '{}'", .0.escape_ascii())]
    Missing(Vec<u8>),
    /// The member is a directory or a symlink.
    #[error("the member '{}' is not a regular file", .0.escape_ascii())]
    NotAFile(Vec<u8>),
    /// The index was made from a listing that does not say where the member is.
    #[error("the listing does not say where the member '{}' is", .0.escape_ascii())]
    NoOffset(Vec<u8>),
    /// Seeking in the source of the archive failed.
    #[error("cannot seek in the archive")]
    Io(#[from] io::Error),
}

impl<R: Read + Seek> Index<R> {
    /// Walks over the archive that begins at the source's position, seeking over contents of more than 64 KiB.
    pub fn open(mut source: R) -> Result<Self, NarError> {
        let io = |error| NarError::new(0, NarErrorKind::Read(error));
        let base = source.stream_position().map_err(io)?;
        let end = source.seek(SeekFrom::End(0)).map_err(io)?;
        source.seek(SeekFrom::Start(base)).map_err(io)?;
        let listing = walk(&mut source, end.saturating_sub(base))?;
        Ok(Self {
            source,
            base,
            listing,
        })
    }

    /// Takes the places from a listing that came with the archive, without reading the archive. A wrong listing gives
    /// wrong bytes; what it gives is never beyond the source's end.
    pub fn with_listing(mut source: R, listing: Listing) -> io::Result<Self> {
        let base = source.stream_position()?;
        Ok(Self {
            source,
            base,
            listing,
        })
    }

    /// What is in the archive.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// The contents of the regular file at `path` (see [`Listing::find`]), without reading anything else. Symlinks are
    /// not followed: see [`Index::read_resolved`].
    pub fn read(&mut self, path: impl AsRef<[u8]>) -> Result<MemberReader<'_, R>, MemberError> {
        let path = path.as_ref();
        let place = place(self.listing.find(path), path)?;
        self.member(place)
    }

    /// [`Index::read`] with symlinks followed inside the archive (see [`Listing::resolve`]).
    pub fn read_resolved(
        &mut self,
        path: impl AsRef<[u8]>,
    ) -> Result<MemberReader<'_, R>, MemberError> {
        let path = path.as_ref();
        let place = place(self.listing.resolve(path), path)?;
        self.member(place)
    }

    /// The source, at an undefined position.
    pub fn into_inner(self) -> R {
        self.source
    }

    fn member(&mut self, (offset, size): (u64, u64)) -> Result<MemberReader<'_, R>, MemberError> {
        let start = self
            .base
            .checked_add(offset)
            .ok_or(io::ErrorKind::UnexpectedEof)
            .map_err(io::Error::from)?;
        self.source.seek(SeekFrom::Start(start))?;
        Ok(MemberReader {
            source: &mut self.source,
            size,
            left: size,
        })
    }
}

/// The contents of one member; reads end where the member ends. A source that ends earlier is an `UnexpectedEof` error.
#[derive(Debug)]
pub struct MemberReader<'a, R> {
    source: &'a mut R,
    size: u64,
    left: u64,
}

impl<R> MemberReader<'_, R> {
    /// Bytes of the whole member.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl<R: Read> Read for MemberReader<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(self.left.try_into().unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut into[..most])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive ends inside this member",
            ));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Lists the archive of at most `length` bytes at the source's position.
fn walk(source: &mut (impl Read + Seek), length: u64) -> Result<Listing, NarError> {
    let mut decoder = Decoder::new();
    let mut tree = TreeBuilder::default();
    let mut window = vec![0; WINDOW];
    let mut filled = 0;
    let mut start = 0;
    loop {
        let fed = decoder.feed(&window[start..filled])?;
        start += fed.consumed;
        match fed.event {
            Some(Event::End) => return Ok(tree.into_listing()),
            Some(event) => tree.take(event),
            None => {
                skip(source, &mut decoder, length)?;
                let count = read::read(source, &mut window);
                filled = count
                    .map_err(|error| NarError::new(decoder.offset(), NarErrorKind::Read(error)))?;
                start = 0;
                if filled == 0 {
                    return Err(NarError::new(decoder.offset(), NarErrorKind::UnexpectedEnd));
                }
            }
        }
    }
}

/// Seeks over contents that are long enough for a seek to pay. A claim beyond the source's end is a truncated archive.
fn skip(source: &mut impl Seek, decoder: &mut Decoder, length: u64) -> Result<(), NarError> {
    let offset = decoder.offset();
    let left = decoder.contents_left().unwrap_or(0);
    if left > length.saturating_sub(offset) {
        return Err(NarError::new(
            length.max(offset),
            NarErrorKind::UnexpectedEnd,
        ));
    }
    if left > WINDOW as u64 {
        let io = |error| NarError::new(offset, NarErrorKind::Read(error));
        source.seek(SeekFrom::Current(left as i64)).map_err(io)?;
        decoder.skip_contents(left);
    }
    Ok(())
}

fn place(node: Option<&ListingNode>, path: &[u8]) -> Result<(u64, u64), MemberError> {
    match node {
        None => Err(MemberError::Missing(path.to_vec())),
        Some(ListingNode::Regular {
            size: Some(size),
            nar_offset: Some(offset),
            ..
        }) => Ok((*offset, *size)),
        Some(ListingNode::Regular { .. }) => Err(MemberError::NoOffset(path.to_vec())),
        Some(_) => Err(MemberError::NotAFile(path.to_vec())),
    }
}

const WINDOW: usize = 64 * 1024;
