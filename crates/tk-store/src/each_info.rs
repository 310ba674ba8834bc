//! Metadata of many paths from a store whose errors do not say which path they are about.

use crate::{Error, Result, Store, StoreExt};
use futures::{StreamExt, stream, stream::BoxStream};
use std::collections::BTreeSet;
use tk_narinfo::PathInfo;
use tk_path::StorePath;

type EachInfoAnswer = (StorePath, Result<Option<PathInfo>>);

/// Asks in batches of what is at hand.
pub(crate) fn ask<'a, S: Store + ?Sized>(
    store: &'a S,
    paths: BoxStream<'a, StorePath>,
) -> BoxStream<'a, EachInfoAnswer> {
    let batches = paths.ready_chunks(BATCH);
    let answers = batches.map(move |batch| ask_batch(store, batch));
    answers
        .buffer_unordered(BATCHES)
        .flat_map(stream::iter)
        .boxed()
}

/// What the batch left unanswered is asked one by one.
async fn ask_batch<S: Store + ?Sized>(store: &S, batch: Vec<StorePath>) -> Vec<EachInfoAnswer> {
    let mut open: BTreeSet<_> = batch.iter().cloned().collect();
    let mut answers = Vec::with_capacity(batch.len());
    let mut infos = store.infos(stream::iter(batch).boxed());
    while let Some(info) = infos.next().await {
        if let Ok((path, info)) = info
            && open.remove(&path)
        {
            answers.push((path, Ok(info)));
        }
    }
    drop(infos);
    let answered = !answers.is_empty();
    let mut failures = 0;
    let mut last = None;
    for path in open {
        // A store that is out of reach is not tried for each of a thousand paths.
        let out_of_reach = !answered && failures >= TRIES;
        if let Some(words) = last.as_ref().filter(|_| out_of_reach) {
            let error = Error::Refused {
                who: store.to_string(),
                words: String::clone(words),
            };
            answers.push((path, Err(error)));
            continue;
        }
        let info = store.info(&path).await;
        match &info {
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                last = Some(error.to_line());
            }
        }
        answers.push((path, info));
    }
    answers
}

/// Paths asked about in one stream.
const BATCH: usize = 256;

/// Such streams at once.
const BATCHES: usize = 4;

/// Failures in a row after which a store is taken to be out of reach.
pub(crate) const TRIES: usize = 3;
