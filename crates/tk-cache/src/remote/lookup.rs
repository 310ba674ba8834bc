//! What a cache says of paths: from memory as far as it goes, else in one wave of requests.

use super::Inner;
use crate::{
    blocking, layout,
    objects::{Known, NarInfoCache},
};
use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream,
};
use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tk_narinfo::{MAX_NARINFO_BYTES, NarInfo};
use tk_path::{HashPart, StorePath};
use tk_store::{Error, Result};

/// See [`NarInfos::narinfos`](crate::objects::NarInfos::narinfos).
pub(super) fn narinfos<'a>(
    cache: &'a Inner,
    paths: BoxStream<'a, StorePath>,
) -> BoxStream<'a, (StorePath, Result<Option<NarInfo>>)> {
    let parallel = cache.objects.parallel();
    let look = move |path: StorePath| async move {
        let found = cache.ask(&path.to_hash_part()).await;
        (path, found)
    };
    let Some(known) = cache.known() else {
        let asked = paths.map(look).buffer_unordered(parallel);
        return asked.map(|(path, text)| cache.answer(path, text)).boxed();
    };
    let remembered = {
        let known = known.clone();
        // What is at hand is looked up together.
        let batches = paths.ready_chunks(BATCH);
        batches.then(move |batch| remembered(known.clone(), batch))
    };
    let answers = remembered
        .flat_map(stream::iter)
        .map(move |(path, known)| async move {
            match known {
                Some(known) => {
                    let text = cache.remembered(&path.to_hash_part(), known);
                    (path, Ok(text), false)
                }
                None => {
                    let (path, text) = look(path).await;
                    (path, text, true)
                }
            }
        })
        .buffer_unordered(parallel);
    let answers = remembering(known, answers.boxed());
    answers.map(|(path, text)| cache.answer(path, text)).boxed()
}

/// A path, what the cache said of it, and whether it said so just now.
type Asked = (StorePath, Result<Option<Bytes>>, bool);

/// What is known of each of `paths`.
async fn remembered(
    known: Arc<dyn NarInfoCache>,
    paths: Vec<StorePath>,
) -> Vec<(StorePath, Option<Known>)> {
    let parts: Vec<_> = paths.iter().map(StorePath::to_hash_part).collect();
    let found = blocking(move || Ok(known.get(&parts))).await;
    // What cannot be remembered is asked.
    let mut found = found.unwrap_or_default().into_iter();
    let known = |path| (path, found.next().flatten());
    paths.into_iter().map(known).collect()
}

/// Passes answers on and, beside that, remembers what the cache said just now. Ends when all of it
/// is remembered; who drops it before waits for that.
fn remembering(
    known: Arc<dyn NarInfoCache>,
    answers: BoxStream<'_, Asked>,
) -> impl Stream<Item = (StorePath, Result<Option<Bytes>>)> + Send {
    let waiting = Arc::new(Waiting {
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
        if notes.waiting.answers().len() >= MOST_WAITING {
            return Poll::Pending;
        }
        match answers.poll_next_unpin(cx) {
            Poll::Ready(Some(batch)) => {
                notes.take(&batch);
                notes.write(cx);
                Poll::Ready(Some(batch))
            }
            Poll::Ready(None) if notes.writing.is_none() => Poll::Ready(None),
            _ => Poll::Pending,
        }
    });
    noted.flat_map(|batch| stream::iter(batch.into_iter().map(|(path, text, _)| (path, text))))
}

/// What is to be remembered. What comes while some of it is written goes together: each time costs
/// a transaction.
struct Notes {
    waiting: Arc<Waiting>,
    writing: Option<BoxFuture<'static, Result<()>>>,
}

struct Waiting {
    known: Arc<dyn NarInfoCache>,
    answers: Mutex<Vec<(HashPart, Option<Bytes>)>>,
    /// Held by whoever writes.
    turn: Mutex<()>,
}

impl Waiting {
    fn write(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = mem::take(&mut *self.answers());
        if !fresh.is_empty() {
            self.known.put(&fresh);
        }
    }

    fn answers(&self) -> MutexGuard<'_, Vec<(HashPart, Option<Bytes>)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    fn take(&mut self, answers: &[Asked]) {
        let fresh = |(path, text, fresh): &Asked| match text {
            Ok(text) if *fresh => Some((path.to_hash_part(), text.clone())),
            _ => None,
        };
        let fresh = answers.iter().filter_map(fresh);
        self.waiting.answers().extend(fresh);
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

impl Inner {
    /// The text of a narinfo that is known, if there is one; whoever watches is told of it.
    fn remembered(&self, part: &HashPart, known: Known) -> Option<Bytes> {
        let text = match known {
            Known::Present(text) => Some(text),
            Known::Absent => None,
        };
        let name = layout::narinfo(part);
        let observer = &self.config.observer;
        observer.remembered(self, &name, text.is_some());
        text
    }

    /// The text of the narinfo of the path that starts with `part`, from the cache itself.
    async fn ask(&self, part: &HashPart) -> Result<Option<Bytes>> {
        self.objects
            .read(&layout::narinfo(part), MAX_NARINFO_BYTES)
            .await
    }

    /// What `text` says of `path`. As Nix, a narinfo with the same hash part and another name is
    /// no answer.
    fn answer(
        &self,
        path: StorePath,
        text: Result<Option<Bytes>>,
    ) -> (StorePath, Result<Option<NarInfo>>) {
        let parse = |text: Bytes| self.parse(&path.to_hash_part(), &text);
        let found = text.and_then(|text| text.map(parse).transpose());
        let found = found.map(|found| found.filter(|narinfo| narinfo.info.path == path));
        (path, found)
    }

    pub(super) fn parse(&self, part: &HashPart, text: &[u8]) -> Result<NarInfo> {
        let malformed = |e| Error::malformed(format!("{self}/{}", layout::narinfo(part)), e);
        let narinfo = NarInfo::parse(&self.config.store_dir, text).map_err(malformed)?;
        narinfo.expect(part).map_err(malformed)?;
        Ok(narinfo)
    }

    /// The narinfo of the path that starts with `part`, as it is now.
    pub(super) async fn fetch(&self, part: &HashPart) -> Result<Option<NarInfo>> {
        let text = self.ask(part).await?;
        text.map(|text| self.parse(part, &text)).transpose()
    }

    /// The same, from memory if it is known.
    pub(super) async fn narinfo_of_part(&self, part: &HashPart) -> Result<Option<NarInfo>> {
        let Some(known) = self.known() else {
            return self.fetch(part).await;
        };
        let (memory, key) = (known.clone(), *part);
        let remembered = blocking(move || Ok(memory.get(&[key]).pop().flatten())).await?;
        let text = match remembered {
            Some(known) => self.remembered(part, known),
            None => {
                let text = self.ask(part).await?;
                let fresh = [(*part, text.clone())];
                let put = move || {
                    known.put(&fresh);
                    Ok(())
                };
                let _ = blocking(put).await;
                text
            }
        };
        text.map(|text| self.parse(part, &text)).transpose()
    }

    pub(super) async fn valid(&self, paths: BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>> {
        let look = |path: StorePath| async move {
            let name = layout::narinfo(&path.to_hash_part());
            let found = self.objects.look(&name).await?;
            Ok(found.map(|_| path))
        };
        stream::iter(paths)
            .map(look)
            .buffer_unordered(self.objects.parallel())
            .try_filter_map(|path| async move { Ok(path) })
            .try_collect()
            .await
    }
}

/// Narinfos that are looked up in memory together.
const BATCH: usize = 512;

/// Answers that wait to be remembered, before no more are taken.
const MOST_WAITING: usize = 4 * BATCH;

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
        fn get(&self, parts: &[HashPart]) -> Vec<Option<Known>> {
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
            (path(n), Ok(None), n < 9)
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
        let answers = stream::iter(0..10).map(move |n| (path(n), Ok(None), true));
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
