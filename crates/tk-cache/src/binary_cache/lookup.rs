//! What a cache says of paths: from memory as far as it goes, else in one wave of requests.

use super::CacheInner;
use crate::{
    CacheWarning, blocking, layout,
    objects::{CachedNarInfo, NarInfoCache},
};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};
use tk_narinfo::{MAX_NARINFO_BYTES, NarInfo, PathInfo};
use tk_path::{Algorithm, Hash, HashPart, StorePath};
use tk_store::{Error, Result};

/// Says what the cache has of each of `keys`, as it arrives; `part` is what to ask for.
///
/// Only what makes sense is remembered: a page that answers in the place of a cache, or a narinfo
/// that is being written, must not count for a month.
pub(super) fn narinfos<'a, K: Send + Sync + 'a>(
    cache: &'a Arc<CacheInner>,
    keys: BoxStream<'a, K>,
    part: fn(&K) -> HashPart,
) -> BoxStream<'a, (K, Result<Option<NarInfo>>)> {
    let parallel = cache.objects.parallel();
    let Some(known) = cache.known() else {
        let look = move |keys: Vec<K>| async move {
            let found = cache.fetch_each(keys.iter().map(part).collect()).await;
            stream::iter(keys.into_iter().zip(found))
        };
        // What is at hand goes to one thread; what comes meanwhile to the next.
        let batches = keys.ready_chunks(cache.objects.batch()).map(look);
        return batches.buffer_unordered(parallel).flatten().boxed();
    };
    let remembered = {
        let known = known.clone();
        // What is at hand is looked up together.
        let batches = keys.ready_chunks(BATCH);
        batches.then(move |batch| remembered(known.clone(), batch, part))
    };
    let answers = remembered
        .flat_map(stream::iter)
        .map(move |(key, known)| async move {
            let part = part(&key);
            if let Some(found) = known.and_then(|known| cache.recall(&part, known)) {
                return (key, Ok(found), None);
            }
            match cache.ask(&part).await {
                Ok(text) => {
                    let found = text.as_ref().map(|text| cache.parse(&part, text));
                    let found = found.transpose();
                    let note = found.is_ok().then_some((part, text));
                    (key, found, note)
                }
                Err(error) => (key, Err(error), None),
            }
        })
        .buffer_unordered(parallel);
    remembering(known, answers.boxed()).boxed()
}

/// What was asked, the answer, and what is to be remembered of it.
type AskedNarInfo<K> = (K, Result<Option<NarInfo>>, Option<Note>);

/// The text of a narinfo, or `None` for "absent".
type Note = (HashPart, Option<Bytes>);

/// What is known of each of `keys`.
async fn remembered<K>(
    known: Arc<dyn NarInfoCache>,
    keys: Vec<K>,
    part: fn(&K) -> HashPart,
) -> Vec<(K, Option<CachedNarInfo>)> {
    let parts: Vec<_> = keys.iter().map(part).collect();
    let found = blocking(move || Ok(known.get(&parts))).await;
    // What cannot be remembered is asked.
    let mut found = found.unwrap_or_default().into_iter();
    let known = |key| (key, found.next().flatten());
    keys.into_iter().map(known).collect()
}

/// Passes answers on and, beside that, remembers what the cache said just now. Ends when all of it
/// is remembered; who drops it before waits for that.
fn remembering<'a, K: Send + 'a>(
    known: Arc<dyn NarInfoCache>,
    answers: BoxStream<'a, AskedNarInfo<K>>,
) -> impl Stream<Item = (K, Result<Option<NarInfo>>)> + Send + 'a {
    let waiting = Arc::new(WaitingNotes {
        known,
        answers: Mutex::default(),
        turn: Mutex::default(),
    });
    let mut notes = Notes {
        waiting,
        writing: None,
    };
    let mut answers = answers.ready_chunks(BATCH).fuse();
    let noted = stream::poll_fn(move |cx| {
        notes.write(cx);
        if notes.is_full() {
            return Poll::Pending;
        }
        match answers.poll_next_unpin(cx) {
            Poll::Ready(Some(mut batch)) => {
                notes.take(&mut batch);
                notes.write(cx);
                Poll::Ready(Some(batch))
            }
            Poll::Ready(None) if notes.writing.is_none() => Poll::Ready(None),
            _ => Poll::Pending,
        }
    });
    noted.flat_map(|batch| stream::iter(batch.into_iter().map(|(key, found, _)| (key, found))))
}

/// What is to be remembered. What comes while some of it is written goes together: each time costs
/// a transaction.
struct Notes {
    waiting: Arc<WaitingNotes>,
    writing: Option<BoxFuture<'static, Result<()>>>,
}

struct WaitingNotes {
    known: Arc<dyn NarInfoCache>,
    answers: Mutex<Vec<Note>>,
    /// Held by whoever writes.
    turn: Mutex<()>,
}

impl WaitingNotes {
    fn write(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = mem::take(&mut *self.answers());
        if !fresh.is_empty() {
            self.known.put(&fresh);
        }
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Note>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    fn take<K>(&mut self, answers: &mut [AskedNarInfo<K>]) {
        let notes = answers.iter_mut().filter_map(|(_, _, note)| note.take());
        self.waiting.answers().extend(notes);
    }

    fn is_full(&self) -> bool {
        let answers = self.waiting.answers();
        let texts = answers.iter().flat_map(|(_, text)| text);
        let bytes: usize = texts.map(Bytes::len).sum();
        answers.len() >= MOST_WAITING || bytes >= MOST_WAITING_BYTES
    }

    /// Goes on, as far as it does without waiting.
    fn write(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some(writing) = &mut self.writing
                && writing.poll_unpin(cx).is_pending()
            {
                return;
            }
            self.writing = None;
            if self.waiting.answers().is_empty() {
                return;
            }
            let waiting = self.waiting.clone();
            let put = move || {
                waiting.write();
                Ok(())
            };
            self.writing = Some(blocking(put).boxed());
        }
    }
}

/// Who has all the answers that it wants goes away, and with it perhaps the process.
impl Drop for Notes {
    fn drop(&mut self) {
        self.waiting.write();
    }
}

impl CacheInner {
    /// The text of the narinfo of the path that starts with `part`, from the cache itself.
    async fn ask(&self, part: &HashPart) -> Result<Option<Bytes>> {
        self.objects
            .read(&layout::narinfo(part), MAX_NARINFO_BYTES)
            .await
    }

    /// What is remembered of `part`, which whoever watches is told; `None` if that makes no sense, and
    /// has to be asked again.
    fn recall(&self, part: &HashPart, known: CachedNarInfo) -> Option<Option<NarInfo>> {
        let found = match known {
            CachedNarInfo::Absent => None,
            CachedNarInfo::Present(text) => Some(self.parse(part, &text).ok()?),
        };
        let name = layout::narinfo(part);
        let observer = &self.config.observer;
        observer.remembered(self, &name, found.is_some());
        Some(found)
    }

    pub(super) fn parse(&self, part: &HashPart, text: &[u8]) -> Result<NarInfo> {
        let malformed = |e| Error::malformed(self.objects.place(&layout::narinfo(part)), e);
        let narinfo = NarInfo::parse(&self.config.store_dir, text).map_err(malformed)?;
        narinfo.expect(part).map_err(malformed)?;
        Ok(narinfo)
    }

    /// The narinfo of the path that starts with `part`, as it is now.
    pub(super) async fn fetch(&self, part: &HashPart) -> Result<Option<NarInfo>> {
        let text = self.ask(part).await?;
        text.map(|text| self.parse(part, &text)).transpose()
    }

    /// The same for each of `parts`, in their order. What is read together is parsed by the thread that reads.
    async fn fetch_each(self: &Arc<Self>, parts: Vec<HashPart>) -> Vec<Result<Option<NarInfo>>> {
        let names = parts.iter().map(layout::narinfo).collect();
        let count = parts.len();
        let found: Vec<_> = (0..count).map(|_| Ok(None)).collect();
        let found = Arc::new(Mutex::new(found));
        let (cache, parsed) = (self.clone(), found.clone());
        let parse = move |place: usize, text: Result<Option<&[u8]>>| {
            let text = text.map(|text| text.map(|text| cache.parse(&parts[place], text)));
            let mut parsed = parsed.lock().unwrap_or_else(PoisonError::into_inner);
            parsed[place] = text.and_then(Option::transpose);
        };
        let read = self
            .objects
            .read_each(names, MAX_NARINFO_BYTES, Box::new(parse));
        if let Err(error) = read.await {
            let all = error.for_each(0..count).into_iter();
            return all.map(|(_, result)| result).collect();
        }
        mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, from memory if it is known.
    pub(super) async fn narinfo_of_part(
        self: &Arc<Self>,
        part: &HashPart,
    ) -> Result<Option<NarInfo>> {
        let one = stream::iter([*part]).boxed();
        let mut answers = narinfos(self, one, |part| *part);
        let answer = answers.next().await;
        // To the end, for what is new is remembered then.
        while answers.next().await.is_some() {}
        answer.map_or(Ok(None), |(_, found)| found)
    }

    /// What is there now of `paths`, with the narinfo of each. A broken one counts as absent.
    ///
    /// # Errors
    /// Also when something else answers in the place of the cache.
    pub(super) async fn present(
        self: &Arc<Self>,
        paths: BTreeSet<StorePath>,
    ) -> Result<BTreeMap<StorePath, Option<PathInfo>>> {
        let paths: Vec<_> = paths.into_iter().collect();
        let look = |paths: &[StorePath]| {
            let paths = paths.to_vec();
            async move {
                let parts = paths.iter().map(StorePath::to_hash_part).collect();
                let found = self.fetch_each(parts).await;
                stream::iter(paths.into_iter().zip(found))
            }
        };
        let mut answers = stream::iter(paths.chunks(self.objects.batch()).map(look))
            .buffer_unordered(self.objects.parallel())
            .flatten();
        let mut present = BTreeMap::new();
        let mut is_cache = false;
        while let Some((path, found)) = answers.next().await {
            match found {
                Ok(Some(narinfo)) if narinfo.info.path == path => {
                    present.insert(path, Some(narinfo.info));
                }
                Ok(_) => {}
                Err(error @ Error::Malformed { .. }) => {
                    if !is_cache {
                        self.require_absences().await?;
                        is_cache = true;
                    }
                    self.config.warnings.tell(|| CacheWarning::BrokenNarInfo {
                        path,
                        store: self.to_string(),
                        error,
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(present)
    }

    /// That the cache says of something that nobody can have that it is absent. Parked domains,
    /// sign-in pages and consoles answer everything with a page.
    async fn require_absences(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = format!("{self} {:?}", now.unwrap_or_default());
        let nobody = Hash::digest(Algorithm::Sha256, seed.as_bytes()).compress(20);
        let nobody: [u8; 20] = nobody.try_into().unwrap_or_default();
        let name = layout::narinfo(&HashPart::from_digest(&nobody));
        match self.objects.read(&name, MAX_NARINFO_BYTES).await? {
            None => Ok(()),
            Some(_) => Err(Error::Refused {
                who: self.to_string(),
                words: "it answers also for a path that nobody can have, and not with a narinfo: \
                        no binary cache is there, but a page, such as a sign-in or that of a \
                        parked domain"
                    .to_owned(),
            }),
        }
    }
}

/// Narinfos that are looked up in memory together.
const BATCH: usize = 512;

/// Answers that wait to be remembered, before no more are taken.
const MOST_WAITING: usize = 4 * BATCH;

/// The same in bytes.
const MOST_WAITING_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::mpsc::{Receiver, channel},
        time::Duration,
    };

    /// Remembers only when it is let.
    #[derive(Debug)]
    struct Slow {
        go: Mutex<Receiver<()>>,
        puts: Mutex<Vec<usize>>,
    }

    impl NarInfoCache for Slow {
        fn get(&self, parts: &[HashPart]) -> Vec<Option<CachedNarInfo>> {
            vec![None; parts.len()]
        }

        fn put(&self, answers: &[(HashPart, Option<Bytes>)]) {
            self.go.lock().unwrap().recv().unwrap();
            self.puts.lock().unwrap().push(answers.len());
        }

        fn forget(&self, _: &[HashPart]) {}

        fn cache_info(&self) -> Option<Option<Bytes>> {
            None
        }

        fn put_cache_info(&self, _: Option<&[u8]>) {}
    }

    #[tokio::test]
    async fn answers_do_not_wait_for_the_memory_but_the_end_does() {
        let (go, wait) = channel();
        let known = Arc::new(Slow {
            go: Mutex::new(wait),
            puts: Mutex::default(),
        });
        let path = |n: usize| -> StorePath { format!("{n:032}-a").parse().unwrap() };
        // One at a time, as they come; the last is not fresh.
        let answers = stream::iter(0..10).then(move |n| async move {
            tokio::task::yield_now().await;
            let path = path(n);
            let note = (n < 9).then(|| (path.to_hash_part(), None));
            (path, Ok(None), note)
        });
        let mut passed = std::pin::pin!(remembering(known.clone(), answers.boxed()));
        for n in 0..10 {
            assert_eq!(passed.next().await.unwrap().0, path(n));
        }
        let end = tokio::time::timeout(Duration::from_millis(50), passed.next());
        assert!(end.await.is_err(), "not all is remembered");
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert!(passed.next().await.is_none());
        let puts = known.puts.lock().unwrap();
        assert!(
            puts.len() <= 2 && puts.iter().sum::<usize>() == 9,
            "{puts:?}"
        );
    }

    #[tokio::test]
    async fn who_goes_away_early_has_all_remembered() {
        let (go, wait) = channel();
        let known = Arc::new(Slow {
            go: Mutex::new(wait),
            puts: Mutex::default(),
        });
        let path = |n: usize| -> StorePath { format!("{n:032}-a").parse().unwrap() };
        let answers = stream::iter(0..10).map(move |n| {
            let path = path(n);
            let note = (path.to_hash_part(), None);
            (path, Ok(None), Some(note))
        });
        let mut passed = Box::pin(remembering(known.clone(), answers.boxed()));
        for n in 0..10 {
            assert_eq!(passed.next().await.unwrap().0, path(n));
        }
        for _ in 0..2 {
            go.send(()).unwrap();
        }
        drop(passed);
        assert_eq!(known.puts.lock().unwrap().iter().sum::<usize>(), 10);
    }
}
