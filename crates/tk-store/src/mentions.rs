//! Where in the files of a path its references stand.

use crate::{Error, NarStream, Result};
use futures::StreamExt;
use std::fmt;
use tk_nar::{Decoder, Event};
use tk_path::{HashPart, scan::RefLocator};

/// A file or link in which a hash part stands. `Display` tells it as `nix why-depends --precise` does, with a dot for each
/// byte that is no printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// Where in the NAR: parts joined by `/`; empty is the root itself. Not necessarily UTF-8.
    pub file: Vec<u8>,
    /// What it stands in.
    pub place: MentionPlace,
}

/// What a hash part stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MentionPlace {
    /// A file's contents.
    Contents {
        /// Where in the file the hash part begins the first time, in bytes.
        offset: u64,
        /// The hash part with up to [`MARGIN`] bytes on both sides.
        text: Vec<u8>,
    },
    /// A link, which leads to this target.
    Link(Vec<u8>),
}

impl Mention {
    /// What is around the hash part, or the link's target: text with dots for what is no printable ASCII.
    pub fn text(&self) -> String {
        let (MentionPlace::Contents { text: bytes, .. } | MentionPlace::Link(bytes)) = &self.place;
        let shown = |byte: &u8| match byte {
            b' '..=b'~' => *byte as char,
            _ => '.',
        };
        bytes.iter().map(shown).collect()
    }
}

impl fmt::Display for Mention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root: &[u8] = b"/";
        let file = if self.file.is_empty() {
            root
        } else {
            &self.file
        };
        f.write_str(&String::from_utf8_lossy(file))?;
        match self.place {
            MentionPlace::Contents { .. } => write!(f, ": …{}…", self.text()),
            MentionPlace::Link(_) => write!(f, " -> {}", self.text()),
        }
    }
}

/// Finds the files and links in which `parts` stand, for each of them in the order of the NAR: a file once, with the first
/// place. For each up to `limit`; the NAR, which `name` tells in errors, is read no further than that. Names of files are
/// not looked at, although they make references too.
///
/// Memory is bounded by the limit, and does not depend on how long files are.
///
/// # Errors
/// [`Error::Malformed`] when it is no NAR; and what the stream gives.
pub async fn find_mentions(
    name: &str,
    mut nar: NarStream,
    parts: &[HashPart],
    limit: usize,
) -> Result<Vec<Vec<Mention>>> {
    let mut scan = MentionScan::new(parts, limit);
    let mut decoder = Decoder::new();
    while let Some(chunk) = nar.next().await {
        let chunk = chunk?;
        let mut rest = &chunk[..];
        loop {
            let fed = decoder.feed(rest).map_err(|e| Error::malformed(name, e))?;
            rest = &rest[fed.consumed..];
            match fed.event {
                Some(event) => scan.take(event),
                None => break,
            }
        }
        if scan.is_full() {
            return Ok(scan.found);
        }
    }
    decoder.finish().map_err(|e| Error::malformed(name, e))?;
    Ok(scan.found)
}

/// What was seen of a NAR so far.
#[derive(Debug)]
struct MentionScan {
    locator: RefLocator,
    limit: usize,
    found: Vec<Vec<Mention>>,
    /// The file at hand, and where the names of the entries of each open directory begin in it.
    file: Vec<u8>,
    levels: Vec<usize>,
    /// The last bytes of its contents that are needed in front of a hash part.
    history: Vec<u8>,
    /// Bytes of its contents so far.
    bytes: u64,
    /// The parts that were found in it, each with whether more bytes behind it are wanted.
    here: Vec<(usize, bool)>,
}

impl MentionScan {
    fn new(parts: &[HashPart], limit: usize) -> Self {
        MentionScan {
            locator: RefLocator::new(parts.iter().copied()),
            limit,
            found: vec![Vec::new(); parts.len()],
            file: Vec::new(),
            levels: Vec::new(),
            history: Vec::new(),
            bytes: 0,
            here: Vec::new(),
        }
    }

    /// Whether nothing that follows is wanted.
    fn is_full(&self) -> bool {
        let open = self.here.iter().any(|(_, wanted)| *wanted);
        !open && self.found.iter().all(|found| found.len() >= self.limit)
    }

    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Directory => self.levels.push(self.file.len()),
            Event::Entry { name } => {
                self.leave();
                if !self.file.is_empty() {
                    self.file.push(b'/');
                }
                self.file.extend_from_slice(name);
            }
            Event::LeaveDirectory => {
                self.leave();
                self.levels.pop();
            }
            Event::Regular { .. } => {
                self.locator.restart();
                self.history.clear();
                self.bytes = 0;
            }
            Event::Contents(piece) => self.contents(piece),
            Event::EndRegular => self.here.clear(),
            Event::Symlink { target } => self.link(target),
            Event::End => {}
        }
    }

    /// Back to the innermost directory.
    fn leave(&mut self) {
        let end = self.levels.last().copied();
        self.file.truncate(end.unwrap_or(0));
    }

    fn contents(&mut self, piece: &[u8]) {
        self.complete(piece);
        let mut hits = Vec::new();
        let here = &self.here;
        self.locator.feed(piece, |part, at| {
            let known = |(other, _): &(usize, _)| *other == part;
            if !here.iter().any(known) && !hits.iter().any(|(other, _)| *other == part) {
                hits.push((part, at));
            }
        });
        for (part, at) in hits {
            let wanted = self.found[part].len() < self.limit && self.note(part, at, piece);
            self.here.push((part, wanted));
        }
        self.bytes += piece.len() as u64;
        let kept = piece.len().saturating_sub(HISTORY);
        self.history.extend_from_slice(&piece[kept..]);
        let old = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..old);
    }

    /// Notes that `part` begins at `offset`, which is in `piece` or shortly before it; whether bytes behind it are
    /// still to come.
    fn note(&mut self, part: usize, offset: u64, piece: &[u8]) -> bool {
        let base = self.bytes - self.history.len() as u64;
        let start = offset.saturating_sub(MARGIN as u64).max(base);
        let bytes = self.history.iter().chain(piece);
        let length = (offset - start) as usize + HashPart::LEN + MARGIN;
        let text: Vec<u8> = bytes
            .skip((start - base) as usize)
            .take(length)
            .copied()
            .collect();
        let wanted = text.len() < length;
        self.found[part].push(Mention {
            file: self.file.clone(),
            place: MentionPlace::Contents { offset, text },
        });
        wanted
    }

    /// Adds what follows to the texts that lack it.
    fn complete(&mut self, piece: &[u8]) {
        for (part, wanted) in self.here.iter_mut().filter(|(_, wanted)| *wanted) {
            let last = self.found[*part]
                .last_mut()
                .map(|mention| &mut mention.place);
            if let Some(MentionPlace::Contents { offset, text }) = last {
                let length = (*offset).min(MARGIN as u64) as usize + HashPart::LEN + MARGIN;
                let lacking = length - text.len();
                text.extend_from_slice(&piece[..lacking.min(piece.len())]);
                *wanted = text.len() < length;
            }
        }
    }

    fn link(&mut self, target: &[u8]) {
        self.locator.restart();
        let (found, file, limit) = (&mut self.found, &self.file, self.limit);
        let mention = Mention {
            file: file.clone(),
            place: MentionPlace::Link(target.to_vec()),
        };
        self.locator.feed(target, |part, _| {
            let again = found[part].last() == Some(&mention);
            if !again && found[part].len() < limit {
                found[part].push(mention.clone());
            }
        });
    }
}

/// Bytes that are told before and behind a hash part, as in Nix's `why-depends`.
pub const MARGIN: usize = 32;
/// Bytes before a piece in which a hash part that ends in it may begin, and those told before that.
const HISTORY: usize = MARGIN + HashPart::LEN - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures::stream;
    use tk_nar::Encoder;

    const A: &str = "n5wkd9frr45pa74if5gpz9j7mifg27fh";
    const B: &str = "x74lrw1kd9kfqyllfb1vqw3v20x6177x";

    /// A folder with files and links.
    fn nar() -> Vec<u8> {
        let long = "l".repeat(100);
        let mut encoder = Encoder::new(Vec::new());
        encoder.directory().unwrap();
        let mut file = |name: &str, contents: &str| {
            encoder.entry(name.as_bytes()).unwrap();
            encoder.file(false, contents.as_bytes()).unwrap();
        };
        file("a", &format!("{long}{A}{long}{A}"));
        file("b", &format!("é\n{B}-x {A}\t"));
        file("c", "nothing");
        encoder.entry(b"d").unwrap();
        encoder.directory().unwrap();
        encoder.entry(b"e").unwrap();
        encoder.symlink(format!("/s/{A}-x/{A}").as_bytes()).unwrap();
        encoder.leave().unwrap();
        encoder.entry(b"f").unwrap();
        encoder.file(true, B.as_bytes()).unwrap();
        encoder.leave().unwrap();
        encoder.finish().unwrap()
    }

    async fn found(size: usize, limit: usize) -> Vec<Vec<String>> {
        let nar = nar();
        let chunks: Vec<_> = nar.chunks(size).map(Bytes::copy_from_slice).collect();
        let nar = stream::iter(chunks.into_iter().map(Ok)).boxed();
        let parts = [A, B].map(|text| HashPart::parse(text).unwrap());
        let found = find_mentions("x", nar, &parts, limit).await.unwrap();
        let shown = |all: Vec<Mention>| all.iter().map(ToString::to_string).collect();
        found.into_iter().map(shown).collect()
    }

    #[tokio::test]
    async fn files_and_links() {
        let margin = "l".repeat(MARGIN);
        let a = [
            format!("a: …{margin}{A}{margin}…"),
            format!("b: …{}-x {A}.…", &B[3..]),
            format!("d/e -> /s/{A}-x/{A}"),
        ];
        let b = [format!("b: …...{B}-x {}…", &A[..29]), format!("f: …{B}…")];
        for size in [1, 7, 31, 64, 100, 1 << 20] {
            assert_eq!(found(size, 10).await, [a.to_vec(), b.to_vec()], "{size}");
            let first = [a[..1].to_vec(), b[..1].to_vec()];
            assert_eq!(found(size, 1).await, first, "{size}");
        }
    }

    #[tokio::test]
    async fn a_nar_that_ends_early() {
        let nar = nar();
        let parts = [HashPart::parse(A).unwrap()];
        let cut = |end| crate::nar::from_bytes(Bytes::copy_from_slice(&nar[..end]));
        let error = find_mentions("it", cut(nar.len() - 8), &parts, 10).await;
        assert!(error.unwrap_err().to_line().contains("it"));
        // What is wanted was found before.
        let found = find_mentions("it", cut(600), &parts, 1).await.unwrap();
        assert_eq!(found[0].len(), 1);
    }
}
