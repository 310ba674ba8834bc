//! What is registered, as the text of `nix-store --dump-db` and `--load-db` (`store-api.cc`).
//!
//! Records without anything between them, a value on each line, each ended by a newline:
//!
//! ```text
//! path                 with the store directory
//! NAR hash             sha256, hex digits (nix32 and base64 are read too)
//! NAR size             bytes, decimal
//! deriver              with the store directory, or nothing
//! number of references decimal
//! reference            so many of them
//! ```
//!
//! It says nothing of signatures, content addresses and times. No line is longer than [`MAX_LINE`]; what has
//! no newline was cut off.

use crate::{Error, Result};
use std::{
    collections::BTreeSet,
    fmt::Write,
    io::{self, BufRead, Read},
};
use tk_narinfo::PathInfo;
use tk_path::{Algorithm, Hash, NarHash, StoreDir, StorePath};

/// The record of `info`, with the newline that ends it.
pub fn registration_text(dir: &StoreDir, info: &PathInfo) -> String {
    let mut text = String::new();
    let deriver = info.deriver.as_ref().map(|deriver| dir.path(deriver));
    let written = writeln!(
        text,
        "{}\n{}\n{}\n{}\n{}",
        dir.display(&info.path),
        info.nar_hash.hex(),
        info.nar_size,
        deriver.unwrap_or_default(),
        info.references.len()
    );
    written.expect("a String takes all");
    for reference in &info.references {
        text += &dir.path(reference);
        text.push('\n');
    }
    text
}

/// Reads records, one at a time. Ends after the first error, which names the line.
#[derive(Debug)]
pub struct RegistrationReader<R> {
    dir: StoreDir,
    input: R,
    line: u64,
    over: bool,
}

impl<R: BufRead> RegistrationReader<R> {
    /// Reads the records of a store of the directory `dir` from `input`.
    pub fn new(dir: &StoreDir, input: R) -> Self {
        RegistrationReader {
            dir: dir.clone(),
            input,
            line: 0,
            over: false,
        }
    }

    fn record(&mut self) -> Result<Option<PathInfo>> {
        let Some(path) = self.line()? else {
            return Ok(None);
        };
        let path = self.path(&path)?;
        let hash = self.required()?;
        let hash = Hash::parse_any(&hash, Some(Algorithm::Sha256)).map_err(|e| self.bad(e))?;
        let hash = NarHash::try_from(hash).map_err(|e| self.bad(e))?;
        let size = self.number()?;
        let mut info = PathInfo::new(path, hash, size);
        let deriver = self.required()?;
        if !deriver.is_empty() {
            info.deriver = Some(self.path(&deriver)?);
        }
        let mut references = BTreeSet::new();
        for _ in 0..self.number()? {
            let reference = self.required()?;
            references.insert(self.path(&reference)?);
        }
        info.references = references;
        Ok(Some(info))
    }

    fn path(&self, text: &str) -> Result<StorePath> {
        self.dir.parse_canonical(text).map_err(|e| self.bad(e))
    }

    fn number(&mut self) -> Result<u64> {
        let text = self.required()?;
        text.parse().map_err(|e| self.bad(e))
    }

    fn required(&mut self) -> Result<String> {
        match self.line()? {
            Some(line) => Ok(line),
            None => Err(self.bad("the text ends within a record")),
        }
    }

    /// The next line without its newline; `None` at the end.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.input).take(MAX_LINE);
        let read = limited.read_until(b'\n', &mut line);
        read.map_err(|e| Error::io("reading a dump of a database", e))?;
        if line.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        if line.pop() != Some(b'\n') {
            let why = if line.len() as u64 + 1 == MAX_LINE {
                "it is too long"
            } else {
                "it is cut off"
            };
            return Err(self.bad(why));
        }
        String::from_utf8(line).map(Some).map_err(|e| self.bad(e))
    }

    fn bad(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::malformed(format!("line {} of a dump of a database", self.line), why)
    }
}

impl<R: BufRead> Iterator for RegistrationReader<R> {
    type Item = Result<PathInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let record = self.record();
        self.over = !matches!(record, Ok(Some(_)));
        record.transpose()
    }
}

impl<R: io::BufRead> std::iter::FusedIterator for RegistrationReader<R> {}

/// Bytes of a line: a store directory and a name are far shorter.
const MAX_LINE: u64 = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<PathInfo>> {
        RegistrationReader::new(&StoreDir::default(), text.as_bytes()).collect()
    }

    fn sample() -> PathInfo {
        let path = |n: u8| StorePath::from_digest(&[n; 20], "x").unwrap();
        let mut info = PathInfo::new(path(1), NarHash::digest(b"x"), 120);
        info.deriver = Some(StorePath::from_digest(&[3; 20], "x.drv").unwrap());
        info.references = [path(1), path(2)].into();
        info
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = StoreDir::default();
        let mut bare = sample();
        bare.deriver = None;
        bare.references.clear();
        let infos = vec![sample(), bare, sample()];
        let text: String = infos.iter().map(|i| registration_text(&dir, i)).collect();
        assert_eq!(text.lines().count(), 7 + 5 + 7);
        assert_eq!(read(&text).unwrap(), infos);
        assert_eq!(read("").unwrap(), []);
        let digits = sample().nar_hash.to_string();
        let digits = digits.trim_start_matches("sha256:");
        let nix32 = text.replace(&sample().nar_hash.hex(), digits);
        assert_eq!(read(&nix32).unwrap(), infos);
    }

    #[test]
    fn what_is_cut_off_or_wrong_is_an_error() {
        let text = registration_text(&StoreDir::default(), &sample());
        for end in 1..text.len() {
            assert!(read(&text[..end]).is_err(), "{:?}", &text[..end]);
        }
        for (from, to) in [
            ("/nix/store/", "/gnu/store/"),
            ("\n120\n", "\n-1\n"),
            ("\n2\n", "\n18446744073709551615\n"),
            ("\n2\n", "\n1\n"),
            ("\n2\n", "\ntwo\n"),
            ("-x\n", "-x\n\n"),
        ] {
            let wrong = text.replacen(from, to, 1);
            assert_ne!(wrong, text);
            let error = read(&wrong).unwrap_err().to_line();
            assert!(error.contains("of a dump of a database"), "{error}");
        }
        let long = format!("/nix/store/{}\n", "x".repeat(MAX_LINE as usize));
        assert!(read(&long).unwrap_err().to_line().contains("too long"));
    }
}
