//! Slots of machines that build for others: who holds one may build there. Shared between
//! processes, and with Nix itself where the folder is that of its state (`current-load`).
//!
//! ```text
//! FOLDER/<URI, every "/" a "_">-<number, from 0 on>     a file; who locks it (flock) has the slot
//! ```
//! A lock ends with its process, however that dies. A name that a file cannot have is
//! shortened to its hash.

use crate::Machine;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};
use tk_path::{Algorithm, Encoding, Hash};

/// The slots that are noted in one folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    folder: PathBuf,
}

/// A slot, held until this is dropped.
#[derive(Debug)]
pub struct BuildSlot {
    _file: File,
}

impl Slots {
    /// Those in `folder`, which is made when a slot is taken.
    pub fn new(folder: impl Into<PathBuf>) -> Slots {
        Slots {
            folder: folder.into(),
        }
    }

    /// A free slot of `machine`, if there is one, and how many others are held.
    pub fn take(&self, machine: &Machine) -> io::Result<(Option<BuildSlot>, u32)> {
        fs::create_dir_all(&self.folder)?;
        let (mut slot, mut held) = (None, 0);
        for number in 0..machine.max_jobs.min(MAX_SLOTS) {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let file = options.mode(0o600).open(self.file(machine, number))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if slot.is_none() => slot = Some(BuildSlot { _file: file }),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => held += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((slot, held))
    }

    /// How many slots of `machine` nobody holds. Asking makes no files.
    pub fn free(&self, machine: &Machine) -> io::Result<u32> {
        let mut free = 0;
        for number in 0..machine.max_jobs.min(MAX_SLOTS) {
            free += match File::open(self.file(machine, number)) {
                Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
                    Ok(()) => 1,
                    Err(Errno::WOULDBLOCK) => 0,
                    Err(error) => return Err(error.into()),
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => 1,
                Err(error) => return Err(error),
            };
        }
        Ok(free)
    }

    fn file(&self, machine: &Machine, number: u32) -> PathBuf {
        let mut name = machine.uri.replace('/', "_");
        if name.len() > MAX_NAME {
            name = Hash::digest(Algorithm::Sha256, name.as_bytes()).digits(Encoding::Base16);
        }
        self.folder.join(format!("{name}-{number}"))
    }
}

/// Slots of a machine that are looked at, whatever it says it can build at once.
pub const MAX_SLOTS: u32 = 1024;
/// Bytes of a name, which has 255 with its number.
const MAX_NAME: usize = 240;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_held_once() {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots::new(folder.path().join("current-load"));
        let mut machine = Machine::new("ssh-ng://a", []);
        machine.max_jobs = 2;
        assert_eq!(slots.free(&machine).unwrap(), 2);
        assert!(!folder.path().join("current-load").exists());
        let (one, held) = slots.take(&machine).unwrap();
        assert!(one.is_some() && held == 0);
        let (two, held) = slots.take(&machine).unwrap();
        assert!(two.is_some() && held == 1);
        let (three, held) = slots.take(&machine).unwrap();
        assert!(three.is_none() && held == 2);
        assert_eq!(slots.free(&machine).unwrap(), 0);
        drop(one);
        assert_eq!(slots.free(&machine).unwrap(), 1);
        assert!(slots.take(&machine).unwrap().0.is_some());
        // As Nix names them.
        assert!(folder.path().join("current-load/ssh-ng:__a-1").exists());
        machine.uri = format!("ssh://{}", "a".repeat(300));
        assert!(slots.take(&machine).unwrap().0.is_some());
    }
}
