//! The frame format of LZ4, version 1.
//!
//! ```text
//! input     = 1*(frame / skippable / old-frame)
//! skippable = (0x184D2A50 ..= 0x184D2A5F) length *OCTET   ; length bytes, of no meaning
//! frame     = 0x184D2204 flags block-size [content-size] header-sum *block end [content-sum]
//! flags     = OCTET        ; bits 7-6: 01; 5: blocks stand alone; 4: block sums; 3: content size;
//!                          ; 2: content sum; 1: zero; 0: a dictionary (refused)
//! block-size = OCTET       ; bits 6-4: 4 to 7 for 64 KiB, 256 KiB, 1 MiB, 4 MiB; the others: zero
//! header-sum = OCTET       ; bits 15-8 of the XXH32 of flags to content-size
//! block     = length data [block-sum]    ; length: top bit set if the data is not packed
//! end       = 0x00000000
//! old-frame = 0x184C2102 *(length data)  ; up to the next frame or the end of the input
//! ```
//!
//! Numbers are little endian: 8 bytes in `content-size`, 4 elsewhere; sums are XXH32 with seed 0, of
//! a block as it stands there and of the content unpacked. A block, packed or not, has no more than
//! `block-size` bytes. Blocks that do not stand alone refer to up to [`HISTORY`] bytes before them.
//! The frames of old have no end mark: they can be cut off unseen between two blocks, each of which
//! stands alone and has up to [`OLD_BLOCK`] bytes unpacked. `lz4 -l` writes them, Nix only reads
//! them.
//!
//! What is done here is the frames; lz4_flex unpacks blocks. Its own reader of frames takes input
//! that stops between two blocks for complete.

use super::{invalid, trailing, truncated};
use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use std::hash::Hasher;
use std::io::{self, BufRead, Read};
use std::ops::Range;
use twox_hash::XxHash32;

/// Reads frames to the end of the input. Holds one block, packed and unpacked (4 MiB each at most, 8
/// MiB of old ones), and its history.
pub(super) struct Lz4Reader<R> {
    input: R,
    /// The frame that the input stands in.
    frame: Option<Frame>,
    /// A frame was seen.
    begun: bool,
    packed: Vec<u8>,
    /// The history, and behind it the block.
    out: Vec<u8>,
    /// What of `out` is not given away yet.
    ready: Range<usize>,
}

impl<R: BufRead> Lz4Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Lz4Reader {
            input,
            frame: None,
            begun: false,
            packed: Vec::new(),
            out: Vec::new(),
            ready: 0..0,
        }
    }

    /// Makes something ready; not so at the end of the input.
    fn advance(&mut self) -> io::Result<()> {
        while self.ready.is_empty() {
            match self.frame.take() {
                Some(frame) => self.frame = self.block(frame)?,
                None if self.begun && self.at_end()? => return Ok(()),
                None => {
                    let magic = self.number()?;
                    self.frame = self.header(magic)?;
                }
            }
        }
        Ok(())
    }

    /// Reads the start of a frame behind its `magic`. `None`: the frame was a skippable one.
    fn header(&mut self, magic: u32) -> io::Result<Option<Frame>> {
        match magic {
            MAGIC => {}
            OLD_MAGIC => {
                self.begun = true;
                self.ready = 0..0;
                return Ok(Some(Frame {
                    flags: ALONE,
                    block: OLD_BLOCK,
                    old: true,
                    rest: None,
                    sum: XxHash32::with_seed(0),
                }));
            }
            SKIPPABLE_FIRST..=SKIPPABLE_LAST => {
                let length = u64::from(self.number()?);
                let skipped = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
                self.begun = true;
                return if skipped < length {
                    Err(truncated())
                } else {
                    Ok(None)
                };
            }
            _ if self.begun => return Err(trailing()),
            _ => return Err(invalid("not an lz4 frame")),
        }
        self.begun = true;
        let mut header = [0; 10];
        self.exact(&mut header[..2])?;
        let [flags, size, ..] = header;
        if flags >> 6 != 1 || flags & RESERVED != 0 || size & 0x8f != 0 || size >> 4 < 4 {
            return Err(invalid("unknown variant of an lz4 frame"));
        }
        if flags & DICTIONARY != 0 {
            return Err(invalid("lz4 frame with a dictionary"));
        }
        let length = if flags & CONTENT_SIZE != 0 { 10 } else { 2 };
        self.exact(&mut header[2..length])?;
        let mut sum = [0];
        self.exact(&mut sum)?;
        if sum[0] != (XxHash32::oneshot(0, &header[..length]) >> 8) as u8 {
            return Err(invalid("checksum mismatch in the header of an lz4 frame"));
        }
        let content = header[2..].first_chunk().copied().map(u64::from_le_bytes);
        self.ready = 0..0;
        Ok(Some(Frame {
            flags,
            block: 1 << (8 + 2 * (size >> 4)),
            old: false,
            rest: content.filter(|_| flags & CONTENT_SIZE != 0),
            sum: XxHash32::with_seed(0),
        }))
    }

    /// Reads a block, or what stands behind the last: then the frame is gone.
    fn block(&mut self, mut frame: Frame) -> io::Result<Option<Frame>> {
        if frame.old && self.at_end()? {
            return Ok(None);
        }
        let length = self.number()?;
        if frame.old && is_magic(length) {
            return self.header(length);
        }
        if length == 0 && !frame.old {
            return self.end(frame);
        }
        let stored = !frame.old && length & STORED != 0;
        let length = if stored { length & !STORED } else { length } as usize;
        if length > frame.most_packed() {
            return Err(invalid("lz4 block larger than its frame allows"));
        }
        self.packed.clear();
        self.input
            .by_ref()
            .take(length as u64)
            .read_to_end(&mut self.packed)?;
        if self.packed.len() < length {
            return Err(truncated());
        }
        if frame.flags & BLOCK_SUMS != 0 && self.number()? != XxHash32::oneshot(0, &self.packed) {
            return Err(invalid("checksum mismatch in an lz4 block"));
        }
        let start = self.keep_history(&frame);
        let length = self.unpack(start, stored, frame.block)?;
        self.ready = start..start + length;
        frame.take(&self.out[self.ready.clone()])?;
        Ok(Some(frame))
    }

    /// Moves what the next block may refer to to the front of `out`; says where that block goes.
    fn keep_history(&mut self, frame: &Frame) -> usize {
        let mut kept = 0;
        if frame.flags & ALONE == 0 {
            let end = self.ready.end;
            kept = end.min(HISTORY);
            self.out.copy_within(end - kept..end, 0);
        }
        if self.out.len() < HISTORY + frame.block {
            self.out.resize(HISTORY + frame.block, 0);
        }
        kept
    }

    fn unpack(&mut self, start: usize, stored: bool, most: usize) -> io::Result<usize> {
        let (history, out) = self.out.split_at_mut(start);
        if stored {
            out[..self.packed.len()].copy_from_slice(&self.packed);
            return Ok(self.packed.len());
        }
        let out = &mut out[..most];
        let unpacked = if history.is_empty() {
            decompress_into(&self.packed, out)
        } else {
            decompress_into_with_dict(&self.packed, out, history)
        };
        unpacked.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn end(&mut self, frame: Frame) -> io::Result<Option<Frame>> {
        if frame.rest.is_some_and(|rest| rest != 0) {
            return Err(invalid("lz4 frame shorter than it says"));
        }
        if frame.flags & CONTENT_SUM != 0 && u64::from(self.number()?) != frame.sum.finish() {
            return Err(invalid("checksum mismatch in an lz4 frame"));
        }
        Ok(None)
    }

    fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => truncated(),
                _ => error,
            })
    }
}

impl<R: BufRead> Read for Lz4Reader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        self.advance()?;
        let n = (&self.out[self.ready.clone()]).read(out)?;
        self.ready.start += n;
        Ok(n)
    }
}

/// A frame that is being read.
struct Frame {
    flags: u8,
    /// Whether it is one of old.
    old: bool,
    /// Bytes a block may have.
    block: usize,
    /// Bytes of content to come, if the header said how many there are.
    rest: Option<u64>,
    sum: XxHash32,
}

impl Frame {
    /// Bytes of a block as it stands there. Those of old are packed also where that makes them larger.
    fn most_packed(&self) -> usize {
        if self.old {
            self.block + self.block / 255 + 16
        } else {
            self.block
        }
    }

    /// Takes note of a piece of content.
    fn take(&mut self, content: &[u8]) -> io::Result<()> {
        if let Some(rest) = &mut self.rest {
            *rest = rest
                .checked_sub(content.len() as u64)
                .ok_or_else(|| invalid("lz4 frame longer than it says"))?;
        }
        if self.flags & CONTENT_SUM != 0 {
            self.sum.write(content);
        }
        Ok(())
    }
}

fn is_magic(number: u32) -> bool {
    matches!(number, MAGIC | OLD_MAGIC | SKIPPABLE_FIRST..=SKIPPABLE_LAST)
}

const MAGIC: u32 = 0x184D_2204;
const OLD_MAGIC: u32 = 0x184C_2102;
const SKIPPABLE_FIRST: u32 = 0x184D_2A50;
const SKIPPABLE_LAST: u32 = 0x184D_2A5F;

const ALONE: u8 = 1 << 5;
const BLOCK_SUMS: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_SUM: u8 = 1 << 2;
const RESERVED: u8 = 1 << 1;
const DICTIONARY: u8 = 1;

/// In the length of a block: it is not packed.
const STORED: u32 = 1 << 31;

/// Bytes of a block in a frame of old, unpacked.
const OLD_BLOCK: usize = 8 << 20;

/// How far back a block may refer, in bytes.
const HISTORY: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::super::tests::{Short, decode, hex, sample, small_nar};
    use super::*;
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    use proptest::prelude::*;
    use std::io::{BufReader, Write};
    use tk_narinfo::Compression::Lz4;

    /// The NAR of a file `hi`, as Nix 2.34 packs it.
    const NIX: &str = "04224d186470b95f000000220d000100f2026e69782d617263686976652d31000000011700230028\
        08001304080040747970650b0010070500c1000000726567756c617200080e00b00000636f6e7465\
        6e7473020d00510000006869070005500080290000000000000000000000471a9d84";

    fn pack(info: FrameInfo, input: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(input).unwrap();
        encoder.finish().unwrap()
    }

    fn info() -> FrameInfo {
        FrameInfo::new().block_size(BlockSize::Max64KB)
    }

    /// Frames with all that a header can ask for.
    fn variants(size: usize) -> Vec<FrameInfo> {
        let mut variants = Vec::new();
        for mode in [BlockMode::Independent, BlockMode::Linked] {
            for block in [
                BlockSize::Max64KB,
                BlockSize::Max256KB,
                BlockSize::Max1MB,
                BlockSize::Max4MB,
            ] {
                for bits in 0..8 {
                    let info = FrameInfo::new().block_mode(mode).block_size(block);
                    let info = info.block_checksums(bits & 1 != 0);
                    let info = info.content_checksum(bits & 2 != 0);
                    variants.push(info.content_size((bits & 4 != 0).then_some(size as u64)));
                }
            }
        }
        variants
    }

    #[test]
    fn what_nix_writes() {
        let (nix, nar) = (hex(NIX), small_nar(b"hi"));
        assert_eq!(decode(Lz4, &nix[..]).unwrap(), nar);
        let short = BufReader::with_capacity(1, Short(&nix));
        assert_eq!(decode(Lz4, short).unwrap(), nar);
        let twice = decode(Lz4, &nix.repeat(2)[..]).unwrap();
        assert_eq!(twice, nar.repeat(2));
    }

    #[test]
    fn every_variant() {
        for size in [0, 1, 65_536, 700_001] {
            // What repeats itself goes back over block borders.
            let mut input = sample(size.min(60_000)).repeat(size / 60_000 + 1);
            input.truncate(size);
            for info in variants(size) {
                let packed = pack(info.clone(), &input);
                assert!(
                    decode(Lz4, &packed[..]).unwrap() == input,
                    "{size} in {info:?}"
                );
            }
        }
    }

    #[test]
    fn frames_of_all_kinds_follow_each_other() {
        let input = sample(300_000);
        let skippable = b"\x5f\x2a\x4d\x18\x03\0\0\0abc";
        let mut all = skippable.to_vec();
        let variants = variants(input.len());
        for info in variants.iter().rev() {
            all.extend(pack(info.clone(), &input));
            all.extend(skippable);
        }
        assert!(decode(Lz4, &all[..]).unwrap() == input.repeat(variants.len()));
        let error = decode(Lz4, &all[..all.len() - 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let blocks = pack(info().content_checksum(true), &sample(66_000));
        let empty_block = b"\x04\x22\x4d\x18\x60\x40\x82\0\0\0\x80\0\0\0\0";
        assert_eq!(decode(Lz4, &empty_block[..]).unwrap(), b"");
        for packed in [&hex(NIX)[..], empty_block, &blocks] {
            for cut in (0..packed.len()).filter(|cut| packed.len() < 200 || cut % 97 < 12) {
                let error = decode(Lz4, &packed[..cut]).unwrap_err();
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof,
                    "cut at {cut}: {error}"
                );
            }
        }
        // Between two blocks.
        let first = u32::from_le_bytes(blocks[7..11].try_into().unwrap()) & !STORED;
        let error = decode(Lz4, &blocks[..11 + first as usize]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn no_changed_byte_changes_the_content() {
        let nix = hex(NIX);
        for at in 0..nix.len() {
            let mut changed = nix.clone();
            changed[at] ^= 0x10;
            // Zeros may come from here or from there.
            if let Ok(got) = decode(Lz4, &changed[..]) {
                assert_eq!(got, small_nar(b"hi"), "byte {at}");
            }
        }
        let sum = nix.len() - 1;
        let changed = [&nix[..sum], &[!nix[sum]]].concat();
        let error = decode(Lz4, &changed[..]).unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }

    /// As `lz4 -l` packs `a`, and 9 MB of zeros.
    #[test]
    fn frames_of_old() {
        let a = b"\x02\x21\x4c\x18\x02\0\0\0\x10a";
        assert_eq!(decode(Lz4, &a[..]).unwrap(), b"a");
        assert_eq!(decode(Lz4, &b"\x02\x21\x4c\x18"[..]).unwrap(), b"");
        let short = BufReader::with_capacity(1, Short(a));
        assert_eq!(decode(Lz4, short).unwrap(), b"a");
        // They follow each other, and all others.
        let nix = hex(NIX);
        let skippable = b"\x5f\x2a\x4d\x18\x03\0\0\0abc";
        let all = [&a[..], a, &nix, skippable, a, &nix].concat();
        let nar = small_nar(b"hi");
        let got = decode(Lz4, &all[..]).unwrap();
        assert_eq!(got, [b"aa", &nar[..], b"a", &nar].concat());
        // Two blocks, of which the first is as large as they get.
        let zeros = vec![0; OLD_BLOCK];
        let mut large = OLD_MAGIC.to_le_bytes().to_vec();
        for block in [&zeros[..], b"end"] {
            let packed = lz4_flex::block::compress(block);
            large.extend((packed.len() as u32).to_le_bytes());
            large.extend(packed);
        }
        assert!(decode(Lz4, &large[..]).unwrap() == [&zeros[..], b"end"].concat());
        for cut in 5..a.len() {
            let error = decode(Lz4, &a[..cut]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_refused() {
        let nix = hex(NIX);
        let large_old = b"\x02\x21\x4c\x18\xff\xff\xff\x7f";
        let large = b"\x04\x22\x4d\x18\x60\x40\x82\x01\0\x01\0";
        let dictionary = b"\x04\x22\x4d\x18\x61\x40\0\0\0\0\0\0\0\0\0";
        for (input, says) in [
            (&b"garbage"[..], "not an lz4 frame"),
            (large_old, "larger than its frame"),
            (large, "larger than its frame"),
            (dictionary, "dictionary"),
            (&[&nix[..], b"garbage"].concat(), "behind the end"),
        ] {
            let error = decode(Lz4, input).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(says), "{error}");
        }
        // Bytes too few for a magic number.
        assert!(decode(Lz4, &[&nix[..], b"x"].concat()[..]).is_err());
        for (says, other) in [("shorter", 3), ("longer", 1)] {
            let mut packed = pack(info().content_size(Some(2)), b"hi");
            packed[6] = other;
            packed[14] = (XxHash32::oneshot(0, &packed[4..14]) >> 8) as u8;
            let error = decode(Lz4, &packed[..]).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_bytes_come_back(
            bytes in proptest::collection::vec(0u8..4, 0..200_000),
            linked: bool,
            piece in 1usize..9_000,
        ) {
            let mode = if linked { BlockMode::Linked } else { BlockMode::Independent };
            let packed = pack(info().block_mode(mode), &bytes);
            let input = BufReader::with_capacity(piece, &packed[..]);
            prop_assert!(decode(Lz4, input).unwrap() == bytes);
        }

        #[test]
        fn any_blocks_are_an_answer(
            linked: bool,
            blocks in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 1..400), 0..8),
        ) {
            let start = if linked { [0x40, 0x40, 0xc0] } else { [0x60, 0x40, 0x82] };
            let mut packed = [&MAGIC.to_le_bytes()[..], &start].concat();
            for block in blocks {
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed.extend([0; 4]);
            if let Err(error) = decode(Lz4, &packed[..]) {
                prop_assert!(!error.to_string().contains("header"), "{}", error);
            }
        }
    }
}
