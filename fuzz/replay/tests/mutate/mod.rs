//! Mutations of seeds, the same in every run.

/// An endless row of mutations.
pub struct Mutations<'a> {
    seeds: &'a [Vec<u8>],
    state: u64,
}

impl<'a> Mutations<'a> {
    /// Mutations of `seeds`.
    pub fn of(seeds: &'a [Vec<u8>]) -> Self {
        let state = 0x9E37_79B9_7F4A_7C15;
        Mutations { seeds, state }
    }

    /// The next one.
    pub fn next(&mut self) -> Vec<u8> {
        let seed = self.below(self.seeds.len());
        let mut input = self.seeds[seed].clone();
        for _ in 0..=self.below(MOST) {
            self.change(&mut input);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.byte(),
            2 => input.insert(at, self.byte()),
            3 => input.truncate(at),
            4 => drop(input.drain(at..self.end(at, input.len()))),
            // A piece once more: counts and nesting grow.
            5 => {
                let piece = input[at..self.end(at, input.len())].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            // A piece of another seed.
            6 => {
                let other = &self.seeds[self.below(self.seeds.len())];
                let from = self.below(other.len() + 1);
                let piece = other[from..self.end(from, other.len())].to_vec();
                input.splice(at..at, piece);
            }
            // A number of 64 bits, as lengths and counts are.
            _ => {
                let number = EDGES[self.below(EDGES.len())].to_le_bytes();
                let end = input.len().min(at + number.len());
                input.splice(at..end, number);
            }
        }
    }

    fn end(&mut self, from: usize, length: usize) -> usize {
        let most = (length - from).min(LONGEST);
        from + self.below(most + 1)
    }

    fn byte(&mut self) -> u8 {
        match self.below(3) {
            0 => WORDS[self.below(WORDS.len())],
            _ => self.below(256) as u8,
        }
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as usize % limit.max(1)
    }
}

/// Changes of one input, at the most.
const MOST: usize = 8;
/// Bytes that are moved at once.
const LONGEST: usize = 64;
/// What formats here are made of.
const WORDS: &[u8] = b"\0\n\r\t \"'#%&()*+,-./:;<=>?@[\\]^_{|}~0123456789";
const EDGES: &[u64] = &[
    0,
    1,
    7,
    8,
    255,
    1 << 16,
    (1 << 31) - 1,
    1 << 32,
    1 << 60,
    u64::MAX - 7,
    u64::MAX,
];
