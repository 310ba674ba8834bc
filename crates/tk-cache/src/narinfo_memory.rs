//! What a cache said a moment ago, in this process.

use crate::objects::{CachedNarInfo, NarInfoCache};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tk_path::HashPart;

/// Remembers narinfos for a while, so that a job that reads the metadata of a path and then its NAR
/// asks for the narinfo once. It remembers no absences: those who wait for a path ask again and again.
#[derive(Debug, Default)]
pub(crate) struct NarInfoMemory(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    narinfos: HashMap<HashPart, (Bytes, Instant)>,
    /// The sum of the lengths of all remembered texts, in bytes.
    bytes: usize,
}

impl NarInfoMemory {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NarInfoCache for NarInfoMemory {
    fn get(&self, parts: &[HashPart]) -> Vec<Option<CachedNarInfo>> {
        let remembered = self.lock();
        let recent = |part| {
            let (text, since) = remembered.narinfos.get(part)?;
            (since.elapsed() < LIFETIME).then(|| CachedNarInfo::Present(text.clone()))
        };
        parts.iter().map(recent).collect()
    }

    fn put(&self, answers: &[(HashPart, Option<Bytes>)]) {
        let (mut remembered, now) = (self.lock(), Instant::now());
        for (part, text) in answers {
            remembered.forget(part);
            let Some(text) = text else { continue };
            if remembered.bytes + text.len() > MOST_BYTES {
                // Those that were used up go with those that will be wanted: they are asked for again.
                *remembered = Remembered::default();
            }
            remembered.bytes += text.len();
            remembered.narinfos.insert(*part, (text.clone(), now));
        }
    }

    fn forget(&self, parts: &[HashPart]) {
        let mut remembered = self.lock();
        for part in parts {
            remembered.forget(part);
        }
    }

    fn cache_info(&self) -> Option<Option<Bytes>> {
        None
    }

    fn put_cache_info(&self, _: Option<&[u8]>) {}
}

impl Remembered {
    fn forget(&mut self, part: &HashPart) {
        if let Some((text, _)) = self.narinfos.remove(part) {
            self.bytes -= text.len();
        }
    }
}

/// Longer than most jobs take from a path's metadata to its NAR.
const LIFETIME: Duration = Duration::from_secs(600);

/// Of all texts; about 20,000 of them.
const MOST_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_a_limit_and_no_absences() {
        let memory = NarInfoMemory::default();
        let part = |n: usize| HashPart::parse(&format!("{n:032}")).unwrap();
        memory.put(&[(part(0), None), (part(1), Some(Bytes::from("one")))]);
        let known = memory.get(&[part(0), part(1)]);
        assert_eq!(
            known,
            [None, Some(CachedNarInfo::Present(Bytes::from("one")))]
        );
        memory.forget(&[part(1)]);
        assert_eq!(memory.get(&[part(1)]), [None]);
        let large = Bytes::from(vec![b'x'; MOST_BYTES / 10]);
        for n in 0..100 {
            memory.put(&[(part(n), Some(large.clone()))]);
            let remembered = memory.lock();
            let held: usize = remembered
                .narinfos
                .values()
                .map(|(text, _)| text.len())
                .sum();
            assert_eq!(held, remembered.bytes);
            assert!(held <= MOST_BYTES);
        }
        assert!(memory.get(&[part(99)])[0].is_some());
    }
}
