use super::{BATCH, FolderCache};
use crate::{blocking, objects::NarInfos};
use futures::{StreamExt, stream, stream::BoxStream};
use std::io;
use tk_narinfo::NarInfo;
use tk_path::StorePath;
use tk_store::{Error, Result};

type Answer = (StorePath, Result<Option<NarInfo>>);

impl NarInfos for FolderCache {
    /// As [`infos`](tk_store::Store::infos): what is at hand goes to one thread, what comes
    /// meanwhile to the next.
    fn narinfos<'a>(&'a self, paths: BoxStream<'a, StorePath>) -> BoxStream<'a, Answer> {
        paths
            .ready_chunks(BATCH)
            .map(|paths| self.read(paths))
            .buffer_unordered(self.0.config.jobs.get())
            .flat_map(stream::iter)
            .boxed()
    }
}

impl FolderCache {
    async fn read(&self, paths: Vec<StorePath>) -> Vec<Answer> {
        let (inner, asked) = (self.0.clone(), paths.clone());
        let look = move |path| (inner.narinfo(&path), path);
        let answers = blocking(move || Ok(asked.into_iter().map(look).collect::<Vec<_>>())).await;
        match answers {
            Ok(answers) => answers.into_iter().map(|(a, path)| (path, a)).collect(),
            Err(error) => {
                // There are no threads any more: the program ends.
                let words = error.to_line();
                let failed = |path| {
                    let error = io::Error::other(words.clone());
                    (path, Err(Error::io(format!("reading {self}"), error)))
                };
                paths.into_iter().map(failed).collect()
            }
        }
    }
}
