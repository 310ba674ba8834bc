//! Where two NARs differ, read from two stores at once in bounded memory.

use crate::{Error, NarStream, Result};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use tk_nar::{Comparer, Comparison, Decoder, Side};
use tk_path::{Algorithm, Hasher, NarHash};

/// The result of [`compare`]: the differences, and the hashes of both NARs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Where the two differ: every difference is counted, the first ones are kept.
    pub found: Comparison,
    /// What their NAR hashes are, left and right: of the bytes, whatever metadata says.
    pub hashes: [NarHash; 2],
}

/// Compares two NARs, each with the name that it has in errors. Up to `limit` differences are kept, all are counted.
/// Both are read to their ends.
///
/// # Errors
/// [`Error::Malformed`] when one of them is no NAR; and what the streams give.
pub async fn compare(nars: [(String, NarStream); 2], limit: usize) -> Result<Compared> {
    let mut comparer = Comparer::new(limit);
    let mut halves = nars.map(|(name, nar)| Half::new(name, nar));
    while let Some(side) = comparer.wanted() {
        halves[side as usize].feed(side, &mut comparer).await?;
    }
    let [left, right] = halves;
    Ok(Compared {
        hashes: [left.end().await?, right.end().await?],
        found: comparer.finish(),
    })
}

struct Half {
    name: String,
    nar: NarStream,
    decoder: Decoder,
    chunk: Bytes,
    hasher: Hasher,
}

impl Half {
    fn new(name: String, nar: NarStream) -> Self {
        Half {
            name,
            nar,
            decoder: Decoder::new(),
            chunk: Bytes::new(),
            hasher: Hasher::new(Algorithm::Sha256),
        }
    }

    /// Gives the next event to `comparer`.
    async fn feed(&mut self, side: Side, comparer: &mut Comparer) -> Result<()> {
        loop {
            let fed = self.decoder.feed(&self.chunk);
            let fed = fed.map_err(|e| Error::malformed(self.name.as_str(), e))?;
            let consumed = fed.consumed;
            let given = fed.event.map(|event| comparer.push(side, event)).is_some();
            self.chunk.advance(consumed);
            if given {
                return Ok(());
            }
            match self.nar.next().await {
                Some(chunk) => self.chunk = chunk?,
                None => return self.complete(),
            }
            self.hasher.update(&self.chunk);
        }
    }

    fn complete(&self) -> Result<()> {
        let done = self.decoder.finish();
        done.map_err(|e| Error::malformed(self.name.as_str(), e))
    }

    /// The hash of all of it, once nothing follows.
    async fn end(mut self) -> Result<NarHash> {
        self.complete()?;
        while self.chunk.is_empty() {
            match self.nar.next().await {
                Some(chunk) => self.chunk = chunk?,
                None => {
                    let hash = NarHash::try_from(self.hasher.finish());
                    return Ok(hash.expect("sha256 was asked for"));
                }
            }
        }
        Err(Error::malformed(self.name, "it goes on behind its end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::file_nar as nar;

    /// In chunks of `size` bytes.
    fn stream(nar: &[u8], size: usize) -> NarStream {
        let chunks: Vec<_> = nar
            .chunks(size)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        futures::stream::iter(chunks).boxed()
    }

    async fn compared(left: &[u8], right: &[u8], size: usize) -> Result<Compared> {
        let half = |name: &str, nar, size| (name.to_owned(), stream(nar, size));
        compare([half("left", left, size), half("right", right, 4096)], 5).await
    }

    #[tokio::test]
    async fn whatever_the_chunks() {
        let (left, right) = (nar(b"built at 12:00:01\n"), nar(b"built at 12:00:02\n"));
        for size in [1, 7, 8, 64, 1000] {
            let same = compared(&left, &left, size).await.unwrap();
            assert!(same.found.is_same());
            assert_eq!(same.hashes, [NarHash::digest(&left); 2]);
            let other = compared(&left, &right, size).await.unwrap();
            assert_eq!(other.found.count, 1);
            assert!(other.found.differences[0].to_string().contains("byte 16"));
            let hashes = [NarHash::digest(&left), NarHash::digest(&right)];
            assert_eq!(other.hashes, hashes);
        }
    }

    #[tokio::test]
    async fn what_is_no_nar() {
        let good = nar(b"good");
        let longer = [&good[..], b"more"].concat();
        for (bad, words) in [
            (&good[..good.len() - 1], "unexpected end"),
            (b"<html>", "unexpected end"),
            (&longer, "behind its end"),
            (b"<html>not a NAR at all</html>", "not a Nix archive"),
        ] {
            for size in [1, 1000] {
                let error = compared(bad, &good, size).await.unwrap_err().to_line();
                assert!(error.contains(words), "{error}");
                assert!(error.contains("left"), "{error}");
            }
        }
    }
}
