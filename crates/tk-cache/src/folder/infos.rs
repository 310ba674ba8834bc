use super::{BATCH, FolderCache};
use crate::{blocking, objects::NarInfos};
use futures::{StreamExt, stream, stream::BoxStream};
use std::io;
use tk_narinfo::NarInfo;
use tk_path::{HashPart, StorePath};
use tk_store::{Error, Result};

type Answer<K> = (K, Result<Option<NarInfo>>);

impl NarInfos for FolderCache {
    fn narinfos<'a>(&'a self, paths: BoxStream<'a, StorePath>) -> BoxStream<'a, Answer<StorePath>> {
        // As Nix, a narinfo with the same hash part and another name is no answer.
        let about = |(path, found): Answer<StorePath>| {
            let found = found.map(|found| found.filter(|narinfo| narinfo.info.path == path));
            (path, found)
        };
        let found = self.by_parts(paths, StorePath::to_hash_part);
        found.map(about).boxed()
    }
}

impl FolderCache {
    /// As [`infos`](tk_store::Store::infos): what is at hand goes to one thread, what comes
    /// meanwhile to the next.
    pub(super) fn by_parts<'a, K: Send + 'a>(
        &'a self,
        keys: BoxStream<'a, K>,
        part: fn(&K) -> HashPart,
    ) -> BoxStream<'a, Answer<K>> {
        keys.ready_chunks(BATCH)
            .map(move |keys| self.read(keys, part))
            .buffer_unordered(self.0.config.jobs.get())
            .flat_map(stream::iter)
            .boxed()
    }

    async fn read<K: Send>(&self, keys: Vec<K>, part: fn(&K) -> HashPart) -> Vec<Answer<K>> {
        let (inner, parts) = (self.0.clone(), keys.iter().map(part).collect::<Vec<_>>());
        let look = move |part: HashPart| inner.narinfo_of_part(&part);
        let answers = blocking(move || Ok(parts.into_iter().map(look).collect::<Vec<_>>())).await;
        match answers {
            Ok(answers) => keys.into_iter().zip(answers).collect(),
            Err(error) => {
                // There are no threads any more: the program ends.
                let words = error.to_line();
                let failed = |key| {
                    let error = io::Error::other(words.clone());
                    (key, Err(Error::io(format!("reading {self}"), error)))
                };
                keys.into_iter().map(failed).collect()
            }
        }
    }
}
