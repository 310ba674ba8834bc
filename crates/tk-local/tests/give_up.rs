//! Who gives up waiting for a source that is silent leaves nothing at work, and nothing locked.

mod common;

use common::{Sample, add_all, open, sample};
use futures::{FutureExt, StreamExt, stream};
use std::{future::Future, task::Poll, time::Duration};
use tk_local::LocalStore;
use tk_path::{Algorithm, Method, References};
use tk_store::{AddContent, NarStream, SigCheck, Store};
use tokio::{runtime::Runtime, sync::mpsc};

#[test]
fn adding_a_path() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, sample) = (open(dir.path()).await, sample("path", b"content"));
        let (nar, begun) = silent(&sample);
        let item = Ok((sample.info.clone(), nar));
        let options = SigCheck::Skip.into();
        let adding = store.add(stream::iter([item]).boxed(), &options);
        give_up(adding, begun).await;
        free_again(&store, &sample).await;
    });
}

#[test]
fn adding_content() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, sample) = (open(dir.path()).await, sample("path", b"content"));
        let (nar, begun) = silent(&sample);
        let (method, algorithm) = (Method::Nar, Algorithm::Sha256);
        let none = References::default();
        let adding = store.add_content("content", method, algorithm, &none, nar);
        give_up(adding, begun).await;
        free_again(&store, &sample).await;
    });
}

/// Runs a test; should it fail, then without waiting for the thread that should have ended.
fn run(test: impl Future<Output = ()>) {
    struct Impatient(Option<Runtime>);
    impl Drop for Impatient {
        fn drop(&mut self) {
            self.0
                .take()
                .into_iter()
                .for_each(Runtime::shutdown_background);
        }
    }
    let runtime = Impatient(Some(Runtime::new().unwrap()));
    runtime.0.as_ref().unwrap().block_on(test);
}

/// Half of the NAR, and then nothing for ever; and what tells that it came so far. The thread that
/// reads holds the sender: it closes when the NAR is dropped.
fn silent(sample: &Sample) -> (NarStream, mpsc::Receiver<()>) {
    let (tell, begun) = mpsc::channel(1);
    let half = sample.nar.slice(..sample.nar.len() / 2);
    let rest = stream::once(async move {
        tell.send(()).await.unwrap();
        let _held = tell;
        std::future::pending().await
    });
    (stream::iter([Ok(half)]).chain(rest).boxed(), begun)
}

/// Drops `work` when its source has become silent; comes back when nobody reads the source.
async fn give_up<T>(work: impl Future<Output = T>, mut begun: mpsc::Receiver<()>) {
    {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            assert!(work.poll_unpin(cx).is_pending(), "it cannot be complete");
            match begun.poll_recv(cx) {
                Poll::Ready(Some(())) => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(60), begun.recv());
    let ended = ended.await.expect("a thread still waits for the source");
    assert_eq!(ended, None);
}

async fn free_again(store: &LocalStore, sample: &Sample) {
    let sample = Sample {
        info: sample.info.clone(),
        nar: sample.nar.clone(),
    };
    let samples = [sample];
    let again = tokio::time::timeout(Duration::from_secs(60), add_all(store, &samples));
    again.await.expect("the path is still locked");
}
