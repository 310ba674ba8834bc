//! Finding store paths inside data: references, and the hash of something that contains its own path.
//!
//! A reference is an occurrence of the 32 digits of a hash part anywhere in the NAR, names and link targets
//! included. [`RefScanner`] looks for many at once, [`RefLocator`] tells where they are; [`SelfRefHasher`] looks for one
//! and takes it out. All take the data in pieces of any size. Mirrors `references.cc`.

use memchr::memmem::Finder;

use crate::{Algorithm, Hash, HashPart, Hasher};

/// Finds which of many hash parts occur in a stream.
///
/// Most bytes are never looked at. An occurrence is 32 bytes long, so of 27 neighbouring places where it could start
/// each one covers the same block of 6 bytes: if that block is in no candidate, all 27 are ruled out at once. The
/// blocks of all candidates are kept in a bitmap. So the speed does not depend on what the data is, text or digits or
/// random bytes, and hardly on the number of candidates, until the bitmap outgrows the processor's cache (from some
/// ten thousand on).
#[derive(Debug, Clone)]
pub struct RefScanner {
    needles: Needles,
    found: Vec<bool>,
    /// Distinct candidates that were not seen yet; with none left there is nothing to do.
    missing: usize,
    border: Border,
}

impl RefScanner {
    /// A scanner for these candidates; their order gives them their indices. A candidate may come twice.
    pub fn new(candidates: impl IntoIterator<Item = HashPart>) -> RefScanner {
        let needles = Needles::new(candidates.into_iter().collect());
        RefScanner {
            found: vec![false; needles.parts.len()],
            missing: needles.distinct,
            border: Border::default(),
            needles,
        }
    }

    /// Looks through the next piece of the stream. Nothing of it is copied but 31 bytes at its ends.
    pub fn feed(&mut self, data: &[u8]) {
        if self.missing == 0 {
            return;
        }
        let (joint, len) = self.border.joint(data);
        self.search(&joint[..len]);
        self.search(data);
        self.border.keep(data);
    }

    /// The indices of the candidates that occurred so far, in order.
    pub fn found(&self) -> impl Iterator<Item = usize> {
        let seen = self.found.iter().enumerate();
        seen.filter(|(_, found)| **found).map(|(i, _)| i)
    }

    fn search(&mut self, data: &[u8]) {
        let (needles, found, missing) = (&self.needles, &mut self.found, &mut self.missing);
        needles.search(data, |index, _| {
            if !found[index] {
                *missing -= 1;
                let mut same = Some(index);
                while let Some(i) = same {
                    found[i] = true;
                    same = needles.next_same[i];
                }
            }
        });
    }
}

/// Finds every place where one of many hash parts occurs in a stream, as fast as [`RefScanner`] finds out whether.
#[derive(Debug, Clone)]
pub struct RefLocator {
    needles: Needles,
    border: Border,
    /// Bytes of the stream so far.
    bytes: u64,
}

impl RefLocator {
    /// A locator for these candidates; their order gives them their indices.
    pub fn new(candidates: impl IntoIterator<Item = HashPart>) -> RefLocator {
        RefLocator {
            needles: Needles::new(candidates.into_iter().collect()),
            border: Border::default(),
            bytes: 0,
        }
    }

    /// Looks through the next piece of the stream. Calls `hit` for each occurrence that ends in it, in their order: with
    /// the candidate's index (of equal ones the first) and with where the occurrence begins, in bytes from the start.
    pub fn feed(&mut self, data: &[u8], mut hit: impl FnMut(usize, u64)) {
        let (joint, len) = self.border.joint(data);
        let carried = self.bytes - self.border.len as u64;
        let crossing = |index, at| hit(index, carried + at as u64);
        self.needles.search(&joint[..len], crossing);
        let start = self.bytes;
        let within = |index, at| hit(index, start + at as u64);
        self.needles.search(data, within);
        self.border.keep(data);
        self.bytes += data.len() as u64;
    }

    /// Forgets the stream: what comes next is the start of another one.
    pub fn restart(&mut self) {
        self.border = Border::default();
        self.bytes = 0;
    }
}

/// Hashes data that contains the hash part of its own store path: the hash "modulo self".
///
/// Each occurrence is hashed as 32 NUL bytes; at the end `|` and its decimal offset in the data are appended for each,
/// in order. Occurrences do not overlap; the first one wins. Memory grows by 8 bytes per occurrence.
///
/// Nix 2.17 to 2.34 forgot the offsets, so what they made content-addressed has the hash of
/// [`SelfRefHasher::finish_without_offsets`]; who checks a path must accept both.
#[derive(Debug, Clone)]
pub struct SelfRefHasher {
    finder: Finder<'static>,
    hasher: Hasher,
    border: Border,
    /// Where the own hash part was found, in bytes from the start.
    offsets: Vec<u64>,
}

impl SelfRefHasher {
    /// A hasher that treats `itself` as the own hash part.
    pub fn new(algorithm: Algorithm, itself: &HashPart) -> SelfRefHasher {
        SelfRefHasher {
            finder: Finder::new(itself.as_bytes()).into_owned(),
            hasher: Hasher::new(algorithm),
            border: Border::default(),
            offsets: Vec::new(),
        }
    }

    /// Takes in the next piece of the data.
    pub fn update(&mut self, data: &[u8]) {
        let (joint, len) = self.border.joint(data);
        let carried = self.border.len;
        let rest = match self.finder.find(&joint[..len]) {
            Some(at) => {
                self.replace(&joint[..at]);
                // An occurrence is longer than what is carried, so it ends inside `data`.
                &data[at + LEN - carried..]
            }
            None if data.len() < LEN - 1 => {
                let sure = len.saturating_sub(LEN - 1);
                self.hasher.update(&joint[..sure]);
                return self.border.keep(data);
            }
            None => {
                self.hasher.update(&joint[..carried]);
                data
            }
        };
        self.border = Border::default();
        self.update_alone(rest);
    }

    /// The number of bytes seen so far.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes() + self.border.len as u64
    }

    /// Where the own hash part was found so far, in bytes from the start.
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// The hash modulo self of all that was seen, as Nix up to 2.16 and from 2.35 on has it.
    pub fn finish(mut self) -> Hash {
        self.hasher.update(self.border.bytes());
        self.border = Border::default();
        for offset in &self.offsets {
            self.hasher.update(format!("|{offset}").as_bytes());
        }
        self.hasher.finish()
    }

    /// The hash modulo self as Nix 2.17 to 2.34 has it. Data with the own hash part and the same data with NULs there
    /// are not told apart.
    pub fn finish_without_offsets(mut self) -> Hash {
        self.offsets.clear();
        self.finish()
    }

    /// Takes in data with nothing carried over.
    fn update_alone(&mut self, mut data: &[u8]) {
        while let Some(at) = self.finder.find(data) {
            self.replace(&data[..at]);
            data = &data[at + LEN..];
        }
        let (sure, open) = data.split_at(data.len().saturating_sub(LEN - 1));
        self.hasher.update(sure);
        self.border.keep(open);
    }

    /// Hashes what stands before an occurrence, and NULs in its place.
    fn replace(&mut self, before: &[u8]) {
        self.hasher.update(before);
        self.offsets.push(self.hasher.bytes());
        self.hasher.update(&[0; LEN]);
    }
}

/// The candidates, made ready for searching.
#[derive(Debug, Clone)]
struct Needles {
    parts: Vec<HashPart>,
    /// The next candidate with the same digits.
    next_same: Vec<Option<usize>>,
    distinct: usize,
    /// Every block of every candidate.
    blocks: Bitmap,
    /// The first eight bytes of every candidate.
    heads: Bitmap,
    /// Open addressing by all bytes, as many candidates may begin alike; [`FREE`] or an index into `parts`.
    slots: Vec<usize>,
}

impl Needles {
    fn new(parts: Vec<HashPart>) -> Needles {
        let mut needles = Needles {
            next_same: vec![None; parts.len()],
            distinct: 0,
            blocks: Bitmap::new(parts.len() * STRIDE),
            heads: Bitmap::new(parts.len()),
            slots: vec![FREE; (parts.len() * 2 + 1).next_power_of_two()],
            parts,
        };
        for index in 0..needles.parts.len() {
            needles.insert(index);
        }
        needles
    }

    fn insert(&mut self, index: usize) {
        let part = *self.parts[index].as_bytes();
        let slot = self.slot(&part);
        if let Some(first) = self.at(slot) {
            self.next_same[index] = self.next_same[first].replace(index);
            return;
        }
        self.slots[slot] = index;
        self.distinct += 1;
        self.heads.set(word(&part, 0));
        // Blocks are read by the eight bytes up to their end, and the first one ends at byte 6.
        let mut padded = [0; LEN + 2];
        padded[2..].copy_from_slice(&part);
        for end in 8..=padded.len() {
            self.blocks.set(block(&padded, end));
        }
    }

    /// Calls `hit` with a candidate and the place for each of its occurrences in `data`, in order; of equal candidates
    /// the first.
    fn search(&self, data: &[u8], mut hit: impl FnMut(usize, usize)) {
        let (mut at, mut texty) = (0, 0u32);
        while let Some(row) = data.get(at..).and_then(|d| d.first_chunk::<ROW>()) {
            // Binary data shows in the bits that all digits share; that is cheaper than the bitmap, which text needs.
            if texty == 0 && !row_like_digits(row) {
                at += ROW_STRIDE;
                continue;
            }
            texty = texty.checked_sub(1).unwrap_or(TEXT_ROWS);
            let known = [0, 1, 2, 3].map(|i| self.blocks.has(block(row, LEN + i * STRIDE)));
            if known[0] | known[1] | known[2] | known[3] {
                for (i, _) in known.iter().enumerate().filter(|(_, known)| **known) {
                    self.look_around(data, at + i * STRIDE, &mut hit);
                }
            }
            at += ROW_STRIDE;
        }
        while at + LEN <= data.len() {
            if self.blocks.has(block(data, at + LEN)) {
                self.look_around(data, at, &mut hit);
            }
            at += STRIDE;
        }
    }

    /// Looks at all places that cover the block at the end of the window at `at`, which is a candidate's. 26 bytes of
    /// an occurrence are around that block, so the block before it or the one after it is a candidate's, too.
    fn look_around(&self, data: &[u8], at: usize, hit: &mut impl FnMut(usize, usize)) {
        let near = |end| end > data.len() || self.blocks.has(block(data, end));
        if near(at + LEN - BLOCK) || near(at + LEN + BLOCK) {
            let end = (at + STRIDE).min(data.len() - LEN + 1);
            (at..end)
                .filter_map(|start| Some((self.starts_at(data, start)?, start)))
                .for_each(|(index, start)| hit(index, start));
        }
    }

    fn starts_at(&self, data: &[u8], start: usize) -> Option<usize> {
        if !self.heads.has(word(data, start)) {
            return None;
        }
        let part = data.get(start..)?.first_chunk()?;
        self.at(self.slot(part))
    }

    /// The slot that holds `part`, or the free one where it would go.
    fn slot(&self, part: &[u8; LEN]) -> usize {
        let mask = self.slots.len() - 1;
        let all = [0, 8, 16, 24].map(|at| word(part, at));
        let all = all.into_iter().fold(0, |all, word| mix(all ^ word));
        let mut slot = (all >> 32) as usize & mask;
        while self
            .at(slot)
            .is_some_and(|i| self.parts[i].as_bytes() != part)
        {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn at(&self, slot: usize) -> Option<usize> {
        Some(self.slots[slot]).filter(|&index| index != FREE)
    }
}

/// A set of numbers that may say yes for some that are not in it.
#[derive(Debug, Clone)]
struct Bitmap {
    words: Vec<u64>,
    shift: u32,
}

impl Bitmap {
    fn new(members: usize) -> Bitmap {
        let roomy = (members * ROOMY).min(CACHED_BITS);
        let bits = roomy.max(members * SPARSE).clamp(MIN_BITS, MAX_BITS);
        let bits = bits.next_power_of_two();
        Bitmap {
            words: vec![0; bits / 64],
            shift: 64 - bits.trailing_zeros(),
        }
    }

    fn set(&mut self, value: u64) {
        let bit = mix(value) >> self.shift;
        self.words[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    #[inline(always)]
    fn has(&self, value: u64) -> bool {
        let bit = mix(value) >> self.shift;
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }
}

/// The end of what was seen, where an occurrence may have begun: at most 31 bytes.
#[derive(Debug, Clone, Default)]
struct Border {
    tail: [u8; LEN - 1],
    len: usize,
}

impl Border {
    fn bytes(&self) -> &[u8] {
        &self.tail[..self.len]
    }

    /// What was kept with the start of `data` behind it: all occurrences that cross the border, and none that lies
    /// in `data` alone.
    fn joint(&self, data: &[u8]) -> ([u8; 2 * (LEN - 1)], usize) {
        let mut joint = [0; 2 * (LEN - 1)];
        let head = &data[..data.len().min(LEN - 1)];
        let len = self.len + head.len();
        joint[..self.len].copy_from_slice(self.bytes());
        joint[self.len..len].copy_from_slice(head);
        (joint, len)
    }

    fn keep(&mut self, data: &[u8]) {
        if data.len() < self.tail.len() {
            let (joint, len) = self.joint(data);
            self.len = len.min(self.tail.len());
            self.tail[..self.len].copy_from_slice(&joint[len - self.len..len]);
        } else {
            self.tail.copy_from_slice(&data[data.len() - (LEN - 1)..]);
            self.len = self.tail.len();
        }
    }
}

/// Eight bytes from `at` on.
#[inline(always)]
fn word(data: &[u8], at: usize) -> u64 {
    let bytes = data.get(at..).and_then(|d| d.first_chunk());
    u64::from_le_bytes(*bytes.unwrap_or(&[0; 8]))
}

/// The block that ends at `end`, which must be 8 or more.
#[inline(always)]
fn block(data: &[u8], end: usize) -> u64 {
    word(data, end - 8) >> (64 - 8 * BLOCK)
}

/// Whether any of the row's blocks has the bits that all nix32 digits have: bit 5 and not bit 7, in each byte.
#[inline(always)]
fn row_like_digits(row: &[u8; ROW]) -> bool {
    let differs = |i| block(row, LEN + i * STRIDE) & 0xa0a0_a0a0_a0a0 ^ 0x2020_2020_2020;
    (differs(0) == 0) | (differs(1) == 0) | (differs(2) == 0) | (differs(3) == 0)
}

/// Spreads a number over the upper bits. Fixed, so data can be made that is slow to search, though only by what a
/// table look-up per byte takes.
#[inline(always)]
fn mix(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

const LEN: usize = HashPart::LEN;
/// Bytes of a block: enough for far more different blocks than candidates have.
const BLOCK: usize = 6;
/// The number of places of a block in a hash part, and so of the windows that one look rules out.
const STRIDE: usize = LEN - BLOCK + 1;
/// How far four looks lead, and the bytes they need.
const ROW_STRIDE: usize = 4 * STRIDE;
const ROW: usize = LEN + 3 * STRIDE;
/// Rows that are taken for text after one that looks like it: changing one's mind is what costs time.
const TEXT_ROWS: u32 = 16;
/// Bits in a [`Bitmap`] per member: so many at least, against false alarms, and so many while it stays below
/// [`CACHED_BITS`] and therefore in the second-level cache.
const SPARSE: usize = 16;
const ROOMY: usize = 64;
const CACHED_BITS: usize = 1 << 21;
const MIN_BITS: usize = 1 << 10;
/// Most bits in a bitmap: 4 MiB.
const MAX_BITS: usize = 1 << 25;
const FREE: usize = usize::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix32::ALPHABET;
    use proptest::prelude::*;

    fn part(text: &str) -> HashPart {
        HashPart::parse(text).expect("hash part")
    }

    fn scan<'a>(parts: &[HashPart], pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<usize> {
        let mut scanner = RefScanner::new(parts.iter().copied());
        pieces.into_iter().for_each(|p| scanner.feed(p));
        scanner.found().collect()
    }

    fn contains(data: &[u8], part: &HashPart) -> bool {
        data.windows(LEN).any(|w| w == part.as_bytes())
    }

    fn naive(parts: &[HashPart], data: &[u8]) -> Vec<usize> {
        (0..parts.len())
            .filter(|&i| contains(data, &parts[i]))
            .collect()
    }

    #[test]
    fn finds_at_every_place_and_split() {
        let parts = [part(A), part(B)];
        for (before, after) in [(0, 0), (1, 0), (6, 3), (40, 0), (95, 33), (130, 200)] {
            let data = [&vec![b'x'; before], A.as_bytes(), &vec![b'z'; after]].concat();
            for split in 0..=data.len() {
                let (a, b) = data.split_at(split);
                assert_eq!(scan(&parts, [a, b]), [0], "{before} {after} {split}");
            }
            assert_eq!(scan(&parts, data.chunks(1)), [0]);
            assert_eq!(
                scan(&parts, [&data[..before + 31], &data[before + 32..]]),
                [0; 0]
            );
        }
    }

    #[test]
    fn overlapping_and_equal_candidates() {
        let run = ALPHABET.repeat(3);
        let parts: Vec<_> = (0..40)
            .map(|i| HashPart::from_ascii(&run[i..i + LEN]).expect("digits"))
            .collect();
        assert_eq!(scan(&parts, [&run[..71]]), (0..40).collect::<Vec<_>>());
        assert_eq!(scan(&parts, [&run[..33]]), [0, 1, 32, 33]);
        assert_eq!(
            scan(&[part(A), part(A), part(A)], [A.as_bytes()]),
            [0, 1, 2]
        );
        assert_eq!(scan(&[], [A.as_bytes()]), [0; 0]);
    }

    /// Candidates that differ in their last digits only.
    #[test]
    fn candidates_that_begin_alike() {
        // 24 bits are five digits.
        let last = |n: u32| crate::nix32::encode(&n.to_be_bytes()[1..]);
        let text = |n| format!("{}{}", &A[..LEN - 5], last(n));
        let parts: Vec<_> = (0..5000).map(|n| part(&text(n))).collect();
        let wanted = [7, 8, 4096, 4999];
        let data = wanted.map(|n| text(n as u32)).join(" ");
        assert_eq!(scan(&parts, [data.as_bytes()]), wanted);
    }

    /// Data of few letters and whole or broken hash parts, so that near misses abound.
    fn hay() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            prop::collection::vec(prop::sample::select(b"01e ".to_vec()), 0..40),
            prop::collection::vec(any::<u8>(), 0..90),
            (0..32usize, 0..=32usize).prop_map(|(a, b)| A.as_bytes()[a.min(b)..b].to_vec()),
            Just(B.as_bytes().to_vec()),
            Just(ZEROS.as_bytes().to_vec()),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    fn cut<'a>(data: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut ends: Vec<_> = cuts.iter().map(|c| c % (data.len() + 1)).collect();
        ends.extend([0, data.len()]);
        ends.sort_unstable();
        ends.windows(2).map(|w| &data[w[0]..w[1]]).collect()
    }

    proptest! {
        #[test]
        fn same_as_naive(data in hay(), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
            let mut parts = vec![part(A), part(B), part(ZEROS)];
            // Whatever the data itself offers is a candidate, too, with one that is off by its last digit.
            for run in data.windows(LEN).step_by(7) {
                if let Ok(found) = HashPart::from_ascii(run) {
                    let mut other = *found.as_bytes();
                    other[LEN - 1] = b'z';
                    parts.extend([found, HashPart::from_ascii(&other).expect("digits")]);
                }
            }
            prop_assert_eq!(scan(&parts, cut(&data, &cuts)), naive(&parts, &data));
        }

        #[test]
        fn every_place(data in hay(), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
            let parts = [part(A), part(B), part(ZEROS)];
            let mut locator = RefLocator::new(parts);
            // What was seen of another stream does not count.
            locator.feed(&A.as_bytes()[..20], |_, _| ());
            locator.restart();
            let mut places = Vec::new();
            for piece in cut(&data, &cuts) {
                locator.feed(piece, |index, at| places.push((at as usize, index)));
            }
            let windows = data.windows(LEN).enumerate();
            let index = |run: &[u8]| parts.iter().position(|part| run == part.as_bytes());
            let naive: Vec<_> = windows.filter_map(|(at, run)| Some((at, index(run)?))).collect();
            prop_assert_eq!(places, naive);
        }

        #[test]
        fn finds_among_thousands(
            digests in prop::collection::vec(any::<[u8; 20]>(), 1..400),
            picks in prop::collection::vec((any::<prop::sample::Index>(), 0..70usize), 0..20),
            digits: bool,
        ) {
            let parts: Vec<_> = digests.iter().map(HashPart::from_digest).collect();
            let mut data = Vec::new();
            for (pick, gap) in picks {
                let filler = parts[0].as_bytes().iter().rev().cycle();
                data.extend(filler.map(|&b| if digits { b } else { b'u' }).take(gap));
                data.extend(pick.get(&parts).as_bytes());
            }
            prop_assert_eq!(scan(&parts, [&data[..]]), naive(&parts, &data));
        }

        #[test]
        fn modulo_self(data in hay(), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
            for own in [A, B, ZEROS] {
                let mut hasher = SelfRefHasher::new(Algorithm::Sha256, &part(own));
                cut(&data, &cuts).into_iter().for_each(|p| hasher.update(p));
                prop_assert_eq!(hasher.bytes(), data.len() as u64);
                prop_assert_eq!(hasher.finish(), modulo(&data, own));
            }
        }
    }

    /// The definition, on data in one piece.
    fn modulo(data: &[u8], own: &str) -> Hash {
        let (mut data, mut at, mut ends) = (data.to_vec(), 0, String::new());
        while at + LEN <= data.len() {
            if &data[at..at + LEN] == own.as_bytes() {
                data[at..at + LEN].fill(0);
                ends += &format!("|{at}");
            }
            at += 1;
        }
        Hash::digest(Algorithm::Sha256, &[&data, ends.as_bytes()].concat())
    }

    /// What `nix store make-content-addressed` of 2.8 and of 2.34 make of the same path.
    #[test]
    fn modulo_self_as_nix() {
        let own = "vkhqnb3bhcbhf56j35w8ns31g4ab0kqc";
        let out = format!("/nix/store/{own}-selfy");
        let content = format!("1-{out}-{out}/x\nyy{out}\n");
        let words = [
            "nix-archive-1",
            "(",
            "type",
            "regular",
            "contents",
            &content,
            ")",
        ];
        let mut hasher = SelfRefHasher::new(Algorithm::Sha256, &part(own));
        for word in words {
            hasher.update(&(word.len() as u64).to_le_bytes());
            hasher.update(word.as_bytes());
            hasher.update(&[0; 8][..word.len().next_multiple_of(8) - word.len()]);
        }
        assert_eq!(hasher.offsets(), [109, 159, 213]);
        let (new, old) = (hasher.clone().finish(), hasher.finish_without_offsets());
        assert_eq!(
            new.to_string(),
            format!(
                "sha256:{}",
                "0b1djxb27s605sgds9vw5cm9kzdqpq06yhz3c5zznv0rkddiy6kn"
            )
        );
        assert_eq!(
            old.to_string(),
            format!(
                "sha256:{}",
                "1dk55421sb19nd2zmg46nw6xcnp5p6pbv77y3ybgvm7bk5l061b8"
            )
        );
    }

    #[test]
    fn modulo_self_known() {
        let data = format!("a{A}b");
        let mut hasher = SelfRefHasher::new(Algorithm::Sha256, &part(A));
        data.as_bytes().chunks(3).for_each(|p| hasher.update(p));
        let plain = [b"a".as_slice(), &[0; 32], b"b|1"].concat();
        assert_eq!(hasher.finish(), Hash::digest(Algorithm::Sha256, &plain));
    }

    const A: &str = "dc04vv14dak1c1r48qa0m23vr9jy8sm0";
    const B: &str = "zc842j0rz61mjsp3h3wp5ly71ak6qgdn";
    const ZEROS: &str = "00000000000000000000000000000000";
}
