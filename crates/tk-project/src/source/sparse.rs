//! Files with holes, as GNU tar packs them with `--sparse`. Mirrors libarchive, with which Nix reads them.
//!
//! ```text
//! old    = header of kind 'S' with 4 parts { block with 21 parts } data
//!          part = OFFSET SIZE                   12 octal digits or bytes each; byte 482 of the header and byte 504
//!          of a block say whether a block follows
//! 0.0    = GNU.sparse.size { GNU.sparse.offset GNU.sparse.numbytes }         attributes of pax
//! 0.1    = GNU.sparse.name GNU.sparse.size GNU.sparse.map = OFFSET "," SIZE { "," OFFSET "," SIZE }
//! 1.0    = GNU.sparse.major = 1, GNU.sparse.name, GNU.sparse.realsize; the map stands in front of the data:
//!          COUNT LF { OFFSET LF SIZE LF }, and zeros up to a multiple of 512 bytes
//! ```
//! Numbers are decimal where nothing else is said. The parts stand behind one another in the data.

use super::archive::{ArchivePart, ArchiveSpanReader};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};
use tar::{Entry, EntryType, GnuExtSparseHeader, GnuSparseHeader};

/// A file with holes.
#[derive(Debug, Clone, Default)]
pub(crate) struct SparseFile {
    /// Its name, where the entry has one that stands for it.
    pub(super) name: Option<Vec<u8>>,
    /// What is no hole, in its order.
    pub(super) parts: Arc<Vec<ArchivePart>>,
    /// Bytes, with the holes.
    pub(super) size: u64,
}

impl SparseFile {
    /// What `entry` of the archive `file` is, if it is a file with holes. Of at most `most` parts.
    pub(super) fn of<R: Read>(
        entry: &mut Entry<'_, R>,
        file: &File,
        most: usize,
    ) -> io::Result<Option<SparseFile>> {
        let mut map = SparseMap {
            start: entry.raw_file_position(),
            data: entry.header().entry_size()?,
            most,
            numbers: Vec::new(),
        };
        let mut found = SparseFile::default();
        if entry.header().entry_type() == EntryType::GNUSparse {
            let gnu = entry.header().as_gnu().ok_or_else(|| bad("a header"))?;
            map.old(&gnu.sparse)?;
            if gnu.is_extended() {
                map.blocks(file)?;
            }
            found.size = gnu.real_size()?;
        } else {
            map.data = entry.size();
            let Some(has_map) = pax(entry, &mut found, &mut map)? else {
                return Ok(None);
            };
            if has_map {
                map.in_data(file)?;
            }
        }
        found.parts = Arc::new(map.parts(found.size)?);
        Ok(Some(found))
    }
}

/// Reads the attributes; `None` if none is of a file with holes, else whether the map stands in the data.
fn pax<R: Read>(
    entry: &mut Entry<'_, R>,
    found: &mut SparseFile,
    map: &mut SparseMap,
) -> io::Result<Option<bool>> {
    let (mut is_sparse, mut has_map) = (false, false);
    for attribute in entry.pax_extensions()?.into_iter().flatten() {
        let attribute = attribute?;
        let value = attribute.value_bytes();
        let Some(key) = attribute.key_bytes().strip_prefix(b"GNU.sparse.") else {
            continue;
        };
        is_sparse = true;
        match key {
            b"name" => found.name = Some(value.to_vec()),
            b"size" | b"realsize" => found.size = number(value)?,
            b"offset" | b"numbytes" => map.add(number(value)?)?,
            b"map" if value.is_empty() => (),
            b"map" => {
                for part in value.split(|byte| *byte == b',') {
                    map.add(number(part)?)?;
                }
            }
            b"major" => has_map = number(value)? == 1,
            _ => (),
        }
    }
    Ok(is_sparse.then_some(has_map))
}

/// Offsets and sizes, and where the data begin.
struct SparseMap {
    start: u64,
    /// Bytes of data.
    data: u64,
    /// Parts that may be there.
    most: usize,
    numbers: Vec<u64>,
}

impl SparseMap {
    fn add(&mut self, number: u64) -> io::Result<()> {
        if self.numbers.len() / 2 > self.most {
            return Err(bad("too many parts"));
        }
        self.numbers.push(number);
        Ok(())
    }

    fn old(&mut self, parts: &[GnuSparseHeader]) -> io::Result<()> {
        for part in parts.iter().filter(|part| !part.is_empty()) {
            self.add(part.offset()?)?;
            self.add(part.length()?)?;
        }
        Ok(())
    }

    /// Blocks behind the header, which are no data.
    fn blocks(&mut self, file: &File) -> io::Result<()> {
        let mut block = GnuExtSparseHeader::new();
        loop {
            file.read_exact_at(block.as_mut_bytes(), self.start)?;
            self.start += BLOCK;
            self.old(&block.sparse)?;
            if !block.is_extended() {
                return Ok(());
            }
        }
    }

    /// The map in front of the data.
    fn in_data(&mut self, file: &File) -> io::Result<()> {
        let whole = [ArchivePart {
            at: 0,
            offset: self.start,
            size: self.data,
        }];
        let mut lines = BufReader::new(ArchiveSpanReader::new(file, &whole, self.data));
        let mut length = 0;
        let mut next = || -> io::Result<u64> {
            let mut line = Vec::new();
            lines
                .by_ref()
                .take(MAX_DIGITS)
                .read_until(b'\n', &mut line)?;
            length += line.len() as u64;
            number(
                line.strip_suffix(b"\n")
                    .ok_or_else(|| bad("a map without an end"))?,
            )
        };
        let count = next()?;
        for _ in 0..count {
            self.add(next()?)?;
            self.add(next()?)?;
        }
        let length = length.next_multiple_of(BLOCK);
        self.start += length;
        self.data = self.data.checked_sub(length).ok_or_else(|| bad("a map"))?;
        Ok(())
    }

    /// The parts of a file of `size` bytes.
    fn parts(&self, size: u64) -> io::Result<Vec<ArchivePart>> {
        let (mut parts, mut end, mut read) = (Vec::new(), 0, 0_u64);
        for pair in self.numbers.chunks(2) {
            let [at, length] = *pair else {
                return Err(bad("half a part"));
            };
            let is_behind = at >= end;
            end = at.checked_add(length).ok_or_else(|| bad("a part"))?;
            if !is_behind || end > size || length > self.data - read {
                return Err(bad("parts that do not fit"));
            }
            if length > 0 {
                parts.push(ArchivePart {
                    at,
                    offset: self.start + read,
                    size: length,
                });
            }
            read += length;
        }
        Ok(parts)
    }
}

fn number(digits: &[u8]) -> io::Result<u64> {
    let text = str::from_utf8(digits).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| bad("something that is no number"))
}

fn bad(what: &str) -> io::Error {
    io::Error::other(format!("a file with holes has {what}"))
}

/// Bytes of a block of an archive.
const BLOCK: u64 = 512;
/// More bytes than a line of a map may have.
const MAX_DIGITS: u64 = 32;
