//! What a cache says of paths: from memory as far as it goes, else in one wave of requests.

use super::Inner;
use crate::{
    blocking, layout,
    objects::{Known, NarInfoCache},
};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use std::{collections::BTreeSet, sync::Arc};
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
                Some(Known::Present(text)) => (path, Ok(Some(text)), false),
                Some(Known::Absent) => (path, Ok(None), false),
                None => {
                    let (path, text) = look(path).await;
                    (path, text, true)
                }
            }
        })
        .buffer_unordered(parallel)
        .ready_chunks(BATCH)
        .then(move |answers| remember(known.clone(), answers))
        .flat_map(stream::iter);
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

/// Remembers what the cache said, and passes it on.
async fn remember(
    known: Arc<dyn NarInfoCache>,
    answers: Vec<Asked>,
) -> Vec<(StorePath, Result<Option<Bytes>>)> {
    let fresh = |(path, text, fresh): &Asked| match text {
        Ok(text) if *fresh => Some((path.to_hash_part(), text.clone())),
        _ => None,
    };
    let fresh: Vec<_> = answers.iter().filter_map(fresh).collect();
    if !fresh.is_empty() {
        let put = move || {
            known.put(&fresh);
            Ok(())
        };
        let _ = blocking(put).await;
    }
    let answer = |(path, text, _)| (path, text);
    answers.into_iter().map(answer).collect()
}

impl Inner {
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
            Some(Known::Present(text)) => Some(text),
            Some(Known::Absent) => None,
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
