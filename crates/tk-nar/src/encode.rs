//! Writes archives, and only well-formed ones.

use std::io::{self, Write};

use crate::grammar::{self, MAX_DEPTH, WordSink};

/// Writes one archive, node by node, into `W`.
///
/// What is written is checked as a decoder would check it: order and validity of names, declared sizes, depth. After
/// any failure the encoder is poisoned: every further call fails, so that a half-written archive cannot look finished.
/// `W` gets many small writes: give it something buffered.
///
/// ```
/// let mut nar = tk_nar::Encoder::new(Vec::new());
/// nar.directory()?;
/// nar.entry(b"hello")?;
/// nar.file(false, b"world")?;
/// nar.leave()?;
/// let bytes = nar.finish()?;
/// # assert_eq!(tk_nar::SliceReader::new(&bytes).count(), 7);
/// # Ok::<(), tk_nar::EncodeError>(())
/// ```
#[derive(Debug)]
pub struct Encoder<W> {
    out: W,
    place: EncoderPlace,
    /// For each open directory, its last name.
    levels: Vec<Vec<u8>>,
    scratch: Vec<u8>,
    written: u64,
}

/// Why an [`Encoder`] refused a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The call does not fit what was written before; the caller's fault.
    #[error("cannot write {call} here: {why}")]
    Misplaced {
        /// What the caller wanted to write, such as `a directory` or `contents`.
        call: &'static str,
        /// Why it cannot be written at this place.
        why: &'static str,
    },
    /// A name that no directory entry can have.
    #[error("the name '{}' {why}", .name.escape_ascii())]
    Name {
        /// The name that was refused.
        name: Vec<u8>,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Names of a directory must be strictly increasing.
    #[error("the name '{}' follows '{}': names are not sorted", .name.escape_ascii(), .previous.escape_ascii())]
    Order {
        /// The name that is not greater than the one before it.
        name: Vec<u8>,
        /// The name of the entry before it.
        previous: Vec<u8>,
    },
    /// A target that no symlink can have.
    #[error("a link target {why}")]
    Target {
        /// What is wrong with it.
        why: &'static str,
    },
    /// More contents than declared, or a file closed before all of them came.
    #[error("a file declared with {declared} bytes got {got}")]
    Size {
        /// The size that the file was declared with, in bytes.
        declared: u64,
        /// How many bytes of contents came.
        got: u64,
    },
    /// More than 64 nodes inside each other.
    #[error("nodes are nested more than 64 deep")]
    TooDeep,
    /// A call before this one failed.
    #[error("writing this archive failed before")]
    Poisoned,
    /// The writer that takes the archive failed.
    #[error("cannot write the archive")]
    Io(#[from] io::Error),
}

impl<W: Write> Encoder<W> {
    /// An encoder of one archive; nothing is written yet.
    pub fn new(out: W) -> Self {
        Self {
            out,
            place: EncoderPlace::Start,
            levels: Vec::new(),
            scratch: Vec::new(),
            written: 0,
        }
    }

    /// Begins a directory: the root, or the node of the last entry.
    pub fn directory(&mut self) -> Result<(), EncodeError> {
        self.guard(|nar| {
            nar.begin_node("a directory")?;
            nar.scratch.put(&grammar::DIRECTORY);
            nar.levels.push(Vec::new());
            nar.place = EncoderPlace::Directory;
            nar.flush_scratch()
        })
    }

    /// Begins an entry of the innermost directory; its node must follow.
    pub fn entry(&mut self, name: &[u8]) -> Result<(), EncodeError> {
        self.guard(|nar| {
            nar.check_name(name)?;
            nar.scratch.put(&grammar::ENTRY_NAME);
            nar.scratch.put_string(name);
            nar.scratch.put(&grammar::NODE_IN_ENTRY[..16]);
            nar.place = EncoderPlace::Node;
            nar.flush_scratch()
        })
    }

    /// Ends the innermost directory.
    pub fn leave(&mut self) -> Result<(), EncodeError> {
        self.guard(|nar| {
            if nar.place != EncoderPlace::Directory || nar.levels.pop().is_none() {
                return Err(misplaced("the end of a directory", "no directory is open"));
            }
            nar.end_node()
        })
    }

    /// Begins a regular file of exactly `size` bytes; [`Encoder::contents`] must bring them.
    pub fn regular(&mut self, executable: bool, size: u64) -> Result<(), EncodeError> {
        self.guard(|nar| {
            nar.begin_node("a file")?;
            nar.scratch.put_regular(executable, size);
            nar.flush_scratch()?;
            nar.place = EncoderPlace::Contents { size, got: 0 };
            nar.end_contents_if_complete()
        })
    }

    /// The next piece of the contents; the file ends by itself once all came.
    pub fn contents(&mut self, piece: &[u8]) -> Result<(), EncodeError> {
        if piece.is_empty() && self.place != EncoderPlace::Poisoned {
            return Ok(());
        }
        self.guard(|nar| {
            let EncoderPlace::Contents { size, got } = nar.place else {
                return Err(misplaced(
                    "contents",
                    "no file is open or it has all its bytes",
                ));
            };
            let got = got.saturating_add(piece.len() as u64);
            if got > size {
                return Err(EncodeError::Size {
                    declared: size,
                    got,
                });
            }
            nar.write(piece)?;
            nar.place = EncoderPlace::Contents { size, got };
            nar.end_contents_if_complete()
        })
    }

    /// A whole regular file.
    pub fn file(&mut self, executable: bool, contents: &[u8]) -> Result<(), EncodeError> {
        self.regular(executable, contents.len() as u64)?;
        self.contents(contents)
    }

    /// Writes a whole symlink to `target`.
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), EncodeError> {
        self.guard(|nar| {
            if let Some(why) = grammar::target_fault(target) {
                return Err(EncodeError::Target { why });
            }
            nar.begin_node("a symlink")?;
            nar.scratch.put_symlink(target);
            nar.end_node()
        })
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// `W`, flushed, once the root node is complete; an error if it is not.
    pub fn finish(mut self) -> Result<W, EncodeError> {
        self.guard(|nar| match nar.place {
            EncoderPlace::End => Ok(nar.out.flush()?),
            EncoderPlace::Contents { size, got } => Err(EncodeError::Size {
                declared: size,
                got,
            }),
            _ => Err(misplaced("the end", "the root node is not complete")),
        })?;
        Ok(self.out)
    }

    fn guard(
        &mut self,
        call: impl FnOnce(&mut Self) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        if self.place == EncoderPlace::Poisoned {
            return Err(EncodeError::Poisoned);
        }
        let result = call(self);
        if result.is_err() {
            self.place = EncoderPlace::Poisoned;
        }
        result
    }

    fn begin_node(&mut self, call: &'static str) -> Result<(), EncodeError> {
        match self.place {
            EncoderPlace::Start => self.scratch.put(&grammar::MAGIC),
            EncoderPlace::Node if self.levels.len() >= MAX_DEPTH => {
                return Err(EncodeError::TooDeep);
            }
            EncoderPlace::Node => {}
            EncoderPlace::Directory => {
                return Err(misplaced(call, "a directory needs an entry first"));
            }
            EncoderPlace::Contents { size, got } => {
                return Err(EncodeError::Size {
                    declared: size,
                    got,
                });
            }
            EncoderPlace::End | EncoderPlace::Poisoned => {
                return Err(misplaced(call, "the archive is complete"));
            }
        }
        self.scratch.put(&grammar::NODE_BEGIN);
        Ok(())
    }

    fn check_name(&mut self, name: &[u8]) -> Result<(), EncodeError> {
        let last = match (self.place, self.levels.last_mut()) {
            (EncoderPlace::Directory, Some(last)) => last,
            (EncoderPlace::Contents { size, got }, _) => {
                return Err(EncodeError::Size {
                    declared: size,
                    got,
                });
            }
            _ => return Err(misplaced("an entry", "no directory is open for one")),
        };
        if let Some(why) = grammar::name_fault(name) {
            return Err(EncodeError::Name {
                name: name.to_vec(),
                why,
            });
        }
        if name <= last.as_slice() {
            return Err(EncodeError::Order {
                name: name.to_vec(),
                previous: last.clone(),
            });
        }
        last.clear();
        last.extend_from_slice(name);
        Ok(())
    }

    fn end_contents_if_complete(&mut self) -> Result<(), EncodeError> {
        match self.place {
            EncoderPlace::Contents { size, got } if size == got => {
                self.scratch.put_padding(size);
                self.end_node()
            }
            _ => Ok(()),
        }
    }

    fn end_node(&mut self) -> Result<(), EncodeError> {
        let in_directory = !self.levels.is_empty();
        self.scratch.put(if in_directory {
            &grammar::CLOSE_BOTH
        } else {
            &grammar::CLOSE
        });
        self.place = if in_directory {
            EncoderPlace::Directory
        } else {
            EncoderPlace::End
        };
        self.flush_scratch()
    }

    fn flush_scratch(&mut self) -> Result<(), EncodeError> {
        let scratch = std::mem::take(&mut self.scratch);
        let result = self.write(&scratch);
        self.scratch = scratch;
        self.scratch.clear();
        result
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EncoderPlace {
    Start,
    Directory,
    /// An entry has its name and waits for its node.
    Node,
    Contents {
        size: u64,
        got: u64,
    },
    End,
    Poisoned,
}

fn misplaced(call: &'static str, why: &'static str) -> EncodeError {
    EncodeError::Misplaced { call, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Call = fn(&mut Encoder<Vec<u8>>) -> Result<(), EncodeError>;

    #[test]
    fn what_does_not_fit_is_refused_and_poisons() {
        let cases: &[(&str, &[Call])] = &[
            ("entry without directory", &[|n| n.entry(b"a")]),
            ("leave without directory", &[|n| n.leave()]),
            ("contents without file", &[|n| n.contents(b"x")]),
            ("second root", &[|n| n.symlink(b"t"), |n| n.symlink(b"t")]),
            (
                "node without entry",
                &[|n| n.directory(), |n| n.directory()],
            ),
            (
                "entry without node",
                &[|n| n.directory(), |n| n.entry(b"a"), |n| n.entry(b"b")],
            ),
            (
                "leave before node",
                &[|n| n.directory(), |n| n.entry(b"a"), |n| n.leave()],
            ),
            (
                "same name",
                &[
                    |n| n.directory(),
                    |n| n.entry(b"a"),
                    |n| n.symlink(b"t"),
                    |n| n.entry(b"a"),
                ],
            ),
            (
                "lesser name",
                &[
                    |n| n.directory(),
                    |n| n.entry(b"b"),
                    |n| n.symlink(b"t"),
                    |n| n.entry(b"a"),
                ],
            ),
            ("bad name", &[|n| n.directory(), |n| n.entry(b"..")]),
            ("empty target", &[|n| n.symlink(b"")]),
            ("long target", &[|n| n.symlink(&[b't'; 4096])]),
            (
                "too many bytes",
                &[|n| n.regular(false, 2), |n| n.contents(b"abc")],
            ),
            (
                "bytes behind the end of a file",
                &[|n| n.file(false, b""), |n| n.contents(b"abc")],
            ),
            (
                "file not complete",
                &[
                    |n| n.directory(),
                    |n| n.entry(b"a"),
                    |n| n.regular(true, 2),
                    |n| n.leave(),
                ],
            ),
        ];
        for (name, calls) in cases {
            let mut nar = Encoder::new(Vec::new());
            let (last, before) = calls.split_last().expect("there is a call");
            for call in before.iter() {
                call(&mut nar).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            last(&mut nar).expect_err(name);
            assert!(
                matches!(nar.symlink(b"t"), Err(EncodeError::Poisoned)),
                "{name}"
            );
            assert!(
                matches!(nar.contents(b""), Err(EncodeError::Poisoned)),
                "{name}"
            );
            assert!(matches!(nar.finish(), Err(EncodeError::Poisoned)), "{name}");
        }
    }

    #[test]
    fn an_unfinished_archive_does_not_finish() {
        assert!(Encoder::new(Vec::new()).finish().is_err());
        let mut nar = Encoder::new(Vec::new());
        nar.regular(false, 1).expect("fits");
        assert!(matches!(
            nar.finish(),
            Err(EncodeError::Size {
                declared: 1,
                got: 0
            })
        ));
    }

    #[test]
    fn sixty_four_nodes_are_the_limit() {
        let mut nar = Encoder::new(Vec::new());
        for _ in 1..MAX_DEPTH {
            nar.directory().expect("fits");
            nar.entry(b"d").expect("fits");
        }
        nar.directory().expect("the 64th");
        nar.entry(b"d").expect("fits");
        assert!(matches!(nar.symlink(b"t"), Err(EncodeError::TooDeep)));
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_failed_write_poisons() {
        let mut nar = Encoder::new(Full);
        assert!(matches!(nar.directory(), Err(EncodeError::Io(_))));
        assert!(matches!(nar.leave(), Err(EncodeError::Poisoned)));
    }
}
