//! The format of compress(1), `.Z`: LZW.
//!
//! ```text
//! input  = 0x1f 0x9d flags *group [last]
//! flags  = OCTET          ; bit 7: there is a clear code; 6-5: zero; 4-0: the most bits, 9 to 16
//! group  = 8code          ; so as many bytes as a code has bits
//! last   = 1*7code        ; and bits up to a whole byte
//! ```
//!
//! Bits are taken from the lowest of a byte up, codes from their lowest bit up. Codes have 9 bits
//! at first. A code below 256 stands for that byte; 256, if there is a clear code, for none; the
//! others, from 257 or 256 on, for the strings of a table: each code but the first after a start
//! adds the string of the code before it and the first byte of its own, until 2^(most bits) codes
//! have a meaning. A code may be the one that it adds. As soon as the code of the next string would
//! not fit, codes get one bit more, up to the most bits (10 if these are 9, as in the program that
//! the format is from); at a clear code the table is emptied and codes have 9 bits again; both
//! times the rest of the group stands for nothing.
//!
//! There is neither an end mark nor a length nor a sum. Of input that was cut off it can be seen
//! only that the header is not whole, or that bytes are left which do not make a code.
//!
//! # Security
//! The table has at most [`ENTRIES`] strings, none longer than that; all takes 256 KiB.

use super::{invalid, truncated};
use std::io::{self, BufRead, Read};

/// Reads one stream, to the end of the input.
pub(super) struct LzwReader<R> {
    codes: Codes<R>,
    table: Option<Table>,
    /// The string of the last code, at the end of this.
    string: Vec<u8>,
    /// Where that starts which is not given away yet.
    ready: usize,
}

impl<R: BufRead> LzwReader<R> {
    pub(super) fn new(input: R) -> Self {
        LzwReader {
            codes: Codes {
                input,
                width: FIRST_WIDTH,
                group: [0; GROUP],
                len: 0,
                next: 8,
            },
            table: None,
            string: vec![0; ENTRIES],
            ready: ENTRIES,
        }
    }

    /// Makes the string of the next code ready. False: there is none.
    fn advance(&mut self) -> io::Result<bool> {
        let table = match &mut self.table {
            Some(table) => table,
            None => self.table.insert(Table::new(self.codes.header()?)),
        };
        loop {
            let Some(code) = self.codes.next()? else {
                return Ok(false);
            };
            if table.clears && code == CLEAR {
                table.clear();
                self.codes.restart(FIRST_WIDTH);
                continue;
            }
            self.ready = table.string(code, &mut self.string)?;
            if table.outgrows(self.codes.width) {
                self.codes.restart(self.codes.width + 1);
            }
            return Ok(true);
        }
    }
}

impl<R: BufRead> Read for LzwReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut given = 0;
        while given < out.len() {
            if self.ready == ENTRIES && !self.advance()? {
                break;
            }
            let n = (ENTRIES - self.ready).min(out.len() - given);
            out[given..given + n].copy_from_slice(&self.string[self.ready..self.ready + n]);
            self.ready += n;
            given += n;
        }
        Ok(given)
    }
}

/// The codes of an input.
struct Codes<R> {
    input: R,
    width: u32, // bits
    /// A group, and zeros enough to take four bytes anywhere in it.
    group: [u8; GROUP],
    /// Bytes of the group; fewer than `width` at the end of the input.
    len: usize,
    /// Which of its codes comes next; 8: none.
    next: u32,
}

impl<R: BufRead> Codes<R> {
    fn header(&mut self) -> io::Result<u8> {
        let mut header = [0; 3];
        if self.fill(&mut header)? < header.len() {
            return Err(truncated());
        }
        match header {
            [0x1f, 0x9d, flags] if flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1f)) => {
                Ok(flags)
            }
            [0x1f, 0x9d, _] => Err(invalid("unknown variant of compress data")),
            _ => Err(invalid("not compress data")),
        }
    }

    /// `None`: the input ends.
    fn next(&mut self) -> io::Result<Option<u16>> {
        if self.next == 8 {
            let mut group = [0; GROUP];
            self.len = self.fill(&mut group[..self.width as usize])?;
            self.group = group;
            self.next = 0;
        }
        let start = self.next * self.width;
        let left = 8 * self.len as u32 - start;
        if left < self.width {
            // A code takes whole bytes only as far as it has bits for them.
            return if left < 8 { Ok(None) } else { Err(truncated()) };
        }
        self.next += 1;
        let bytes = self.group[start as usize / 8..].first_chunk().copied();
        let bits = u32::from_le_bytes(bytes.unwrap_or_default()) >> (start % 8);
        Ok(Some((bits & ((1 << self.width) - 1)) as u16))
    }

    /// Drops the rest of the group; what follows has `width`.
    fn restart(&mut self, width: u32) {
        self.width = width;
        self.next = 8;
    }

    /// Reads until `bytes` are full or the input ends; says how many there are.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut n = 0;
        while n < bytes.len() {
            match self.input.read(&mut bytes[n..]) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(n)
    }
}

/// The strings. That of a code is the string of `before` and then `last`, where `before` is a lower
/// code or a byte.
struct Table {
    before: Vec<u16>,
    last: Vec<u8>,
    /// The code that is added next: all below it have a meaning.
    next: usize,
    /// How many codes there can be.
    most: usize,
    /// There is a clear code.
    clears: bool,
    /// The code before, and the first byte of its string.
    previous: Option<(u16, u8)>,
}

impl Table {
    fn new(flags: u8) -> Table {
        let mut table = Table {
            before: vec![0; ENTRIES],
            last: vec![0; ENTRIES],
            next: 0,
            most: 1 << (flags & 0x1f),
            clears: flags & 0x80 != 0,
            previous: None,
        };
        table.clear();
        table
    }

    fn clear(&mut self) {
        self.next = usize::from(CLEAR) + usize::from(self.clears);
        self.previous = None;
    }

    /// Whether the next string asks for wider codes than these.
    fn outgrows(&self, width: u32) -> bool {
        let full = self.next == self.most && width > FIRST_WIDTH;
        !full && self.next >> width != 0
    }

    /// Writes the string of a code to the end of `out`, which has room for any, and adds the string
    /// that the code brings. Says where the string starts.
    fn string(&mut self, code: u16, out: &mut [u8]) -> io::Result<usize> {
        let adds = self.previous.filter(|_| self.next < self.most);
        let (mut at, mut rest) = (out.len(), code);
        if usize::from(code) >= self.next {
            // The string that this code adds: the one before, and again its first byte.
            let Some((previous, first)) = adds.filter(|_| usize::from(code) == self.next) else {
                return Err(invalid("compress data with a code that has no meaning yet"));
            };
            at -= 1;
            out[at] = first;
            rest = previous;
        }
        while rest > 0xff {
            at -= 1;
            out[at] = self.last[usize::from(rest)];
            rest = self.before[usize::from(rest)];
        }
        at -= 1;
        out[at] = rest as u8;
        if let Some((previous, _)) = adds {
            self.before[self.next] = previous;
            self.last[self.next] = out[at];
            self.next += 1;
        }
        self.previous = Some((code, out[at]));
        Ok(at)
    }
}

/// How many codes there are of the most bits that a code may have.
const ENTRIES: usize = 1 << 16;
const CLEAR: u16 = 256;
const FIRST_WIDTH: u32 = 9; // bits

/// The bytes of the largest group, and three.
const GROUP: usize = 16 + 3;

#[cfg(test)]
mod tests {
    use super::super::tests::{Short, decode, hex, sample, small_nar};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::io::BufReader;
    use tk_narinfo::Compression::Compress;

    /// The NAR of a file `hi`, as Nix 2.34 packs it.
    const NIX: &str = "1f9d900d00081c08c04d1a3c2dc2c81983268d9d322d620c0c4070208a8a0209600440270f9c3204\
        0f6c9453e64c1d360a0120d838e68d1b3a655ece11b0b121468a18536c04";

    /// The same of a file of a hundred times `ab`, which has codes that stand for what they add.
    const NIX_REPEATING: &str = "1f9d900d00081c08c04d1a3c2dc2c81983268d9d322d620c0c4070208a8a0209600440270f9c3204\
        0f6c9453e64c1d360a0120d838e68d1b3a655ece41b6318c189b386feaccc973a7cf9e407f0a0d4a\
        74a8d1a2488f2a4dca74a9d3a63929624cb111";

    /// Packs as the grammar says. With a clear code the table is cleared `patience` codes after it
    /// is full.
    struct Encoder {
        flags: u8,
        patience: usize,
        out: Vec<u8>,
        group: Vec<u16>,
        width: u32,
    }

    impl Encoder {
        fn pack(flags: u8, patience: usize, input: &[u8]) -> Vec<u8> {
            let (out, group) = (vec![0x1f, 0x9d, flags], Vec::new());
            let mut encoder = Encoder {
                flags,
                patience,
                out,
                group,
                width: 9,
            };
            encoder.codes(input);
            encoder.flush();
            let unused = encoder
                .out
                .iter()
                .rev()
                .take_while(|byte| **byte == 0xee)
                .count();
            encoder.out.truncate(encoder.out.len() - unused);
            encoder.out
        }

        fn codes(&mut self, input: &[u8]) {
            let clears = self.flags & 0x80 != 0;
            let (first, most) = (256 + u32::from(clears), 1 << (self.flags & 0x1f));
            let mut table = HashMap::new();
            // One behind, as a reader has it.
            let (mut known, mut started, mut full_for) = (first, false, 0);
            let mut rest = input.iter().copied().peekable();
            while let Some(byte) = rest.next() {
                let mut code = u16::from(byte);
                while let Some(longer) = rest.peek().and_then(|next| table.get(&(code, *next))) {
                    code = *longer;
                    rest.next();
                }
                self.code(code);
                known += u32::from(started && known < most);
                started = true;
                let next = first + table.len() as u32;
                if let Some(byte) = rest.peek().filter(|_| next < most) {
                    table.insert((code, *byte), next as u16);
                }
                if known > (1 << self.width) - 1 && (known < most || self.width == 9) {
                    self.flush();
                    self.width += 1;
                }
                full_for += usize::from(known == most);
                if clears && full_for > self.patience {
                    self.code(256);
                    self.flush();
                    table.clear();
                    (known, started, full_for, self.width) = (first, false, 0, 9);
                }
            }
        }

        fn code(&mut self, code: u16) {
            self.group.push(code);
            if self.group.len() == 8 {
                self.flush();
            }
        }

        /// Writes a group; what it does not use of its bytes is 0xee.
        fn flush(&mut self) {
            if self.group.is_empty() {
                return;
            }
            let used = (self.group.len() * self.width as usize).div_ceil(8);
            let mut bits = 0u128;
            for (i, code) in self.group.drain(..).enumerate() {
                bits |= u128::from(code) << (i as u32 * self.width);
            }
            self.out.extend(&bits.to_le_bytes()[..used]);
            self.out
                .resize(self.out.len() + self.width as usize - used, 0xee);
        }
    }

    const FLAGS: [u8; 16] = [
        0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
        0x10,
    ];

    #[test]
    fn what_nix_writes() {
        for (packed, content) in [(NIX, b"hi".to_vec()), (NIX_REPEATING, b"ab".repeat(100))] {
            let (packed, nar) = (hex(packed), small_nar(&content));
            assert_eq!(decode(Compress, &packed[..]).unwrap(), nar);
            let short = BufReader::with_capacity(1, Short(&packed));
            assert_eq!(decode(Compress, short).unwrap(), nar);
            // The encoder that the other tests rely on does the same.
            assert_eq!(Encoder::pack(0x90, 0, &nar), packed);
        }
    }

    #[test]
    fn every_width() {
        let input = [sample(400_000), b"ab".repeat(100_000), vec![0; 300_000]].concat();
        for flags in FLAGS {
            for patience in [0, 3, 1_000] {
                let packed = Encoder::pack(flags, patience, &input);
                let got = decode(Compress, &packed[..]).unwrap();
                assert!(got == input, "flags {flags:#x}, {patience}");
            }
        }
    }

    #[test]
    fn the_longest_string_fits() {
        // Every code one byte longer than the one before; too much to read as a stream.
        let mut table = Table::new(0x10);
        table.last.fill(b'x');
        table.before = (0..=u16::MAX).map(|code| code.saturating_sub(1)).collect();
        table.before[256] = u16::from(b'x');
        (table.next, table.previous) = (0xffff, Some((0xfffe, b'x')));
        let mut out = vec![0; ENTRIES];
        for _ in 0..2 {
            let start = table.string(0xffff, &mut out).unwrap();
            assert_eq!(out[start..], vec![b'x'; 65_281]);
        }
        assert_eq!(table.next, ENTRIES);
    }

    #[test]
    fn what_is_refused() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        for (input, kind) in [
            ("", UnexpectedEof),
            ("1f", UnexpectedEof),
            ("1f9d", UnexpectedEof),
            ("1f8b90", InvalidData),
            ("1f9d88", InvalidData),
            ("1f9d91", InvalidData),
            ("1f9db0", InvalidData),
            ("1f9dd0", InvalidData),
            // 257 at the start; 258 behind a byte; 257 behind a clear code.
            ("1f9d900101", InvalidData),
            ("1f9d90610402", InvalidData),
            ("1f9d906100020000000000000101", InvalidData),
            // Half a code.
            ("1f9d9061", UnexpectedEof),
        ] {
            let error = decode(Compress, &hex(input)[..]).unwrap_err();
            assert_eq!(error.kind(), kind, "{input}: {error}");
        }
        assert_eq!(decode(Compress, &hex("1f9d90")[..]).unwrap(), b"");
        assert_eq!(decode(Compress, &hex("1f9d906100")[..]).unwrap(), b"a");
    }

    /// What the grammar cannot tell: the caller has to.
    #[test]
    fn a_truncation_is_a_prefix_or_an_error() {
        let (packed, nar) = (hex(NIX), small_nar(b"hi"));
        for cut in 3..packed.len() {
            match decode(Compress, &packed[..cut]) {
                Ok(got) => assert!(got.len() < nar.len() && nar.starts_with(&got), "{cut}"),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_bytes_come_back(
            bytes in proptest::collection::vec(0u8..8, 0..60_000),
            which in 0..FLAGS.len(),
            patience in 0usize..20,
            piece in 1usize..9_000,
        ) {
            let packed = Encoder::pack(FLAGS[which], patience, &bytes);
            let input = BufReader::with_capacity(piece, &packed[..]);
            prop_assert!(decode(Compress, input).unwrap() == bytes);
        }

        #[test]
        fn any_codes_are_an_answer(
            codes in proptest::collection::vec(any::<u8>(), 0..4_000),
            which in 0..FLAGS.len(),
        ) {
            let packed = [&[0x1f, 0x9d, FLAGS[which]], &codes[..]].concat();
            let _ = decode(Compress, &packed[..]);
        }

        #[test]
        fn a_changed_bit_is_an_answer(
            bytes in proptest::collection::vec(0u8..8, 1..20_000),
            which in 0..FLAGS.len(),
            at in any::<proptest::sample::Index>(),
        ) {
            let mut packed = Encoder::pack(FLAGS[which], 5, &bytes);
            let at = 3 + at.index(packed.len() - 3);
            packed[at] ^= 0x04;
            let _ = decode(Compress, &packed[..]);
        }
    }
}
