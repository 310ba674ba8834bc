//! The steps of a job, and what becomes of one of them.

use futures::{FutureExt, StreamExt, stream::BoxStream};
use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tk_store::{Error, Result};
use tokio::sync::Notify;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One step fails; those after it would succeed.
    Fail,
    /// From this step on nothing succeeds.
    Gone,
    /// The step never ends: who waits for it gives the job up.
    Stall,
    /// What comes in a row ends here, as if that were all.
    Cut,
    /// What comes in a row comes in another order from here on.
    Reorder,
}

impl Kind {
    pub const ALL: [Kind; 5] = [
        Kind::Fail,
        Kind::Gone,
        Kind::Stall,
        Kind::Cut,
        Kind::Reorder,
    ];
}

/// `kind` goes wrong at step `at`, from 0 on.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub kind: Kind,
    pub at: usize,
}

/// Counts the steps of all that takes part in a job: each call of a store, each answer to it, each
/// item of a stream and its end.
#[derive(Debug, Default)]
pub struct Steps {
    fault: Option<Fault>,
    taken: AtomicUsize,
    hit: AtomicBool,
    stalled: Notify,
}

impl Steps {
    /// Steps of which none goes wrong.
    pub fn without_fault() -> Arc<Self> {
        Arc::default()
    }

    pub fn with(fault: Fault) -> Arc<Self> {
        Arc::new(Steps {
            fault: Some(fault),
            ..Steps::default()
        })
    }

    /// Whether the job came to its fault.
    pub fn hit(&self) -> bool {
        self.hit.load(Ordering::SeqCst)
    }

    /// Comes when a step stalls.
    pub async fn stalled(&self) {
        self.stalled.notified().await;
    }

    /// A step that gives nothing but its success. There is nothing in it to cut or to reorder.
    pub async fn step(&self, what: &str) -> Result<()> {
        match self.take() {
            Some(Kind::Fail | Kind::Gone) => Err(broken(what)),
            Some(Kind::Stall) => self.stall().await,
            Some(Kind::Cut | Kind::Reorder) | None => Ok(()),
        }
    }

    /// `items`, each of which is a step, and so is their end.
    pub fn each<'a, T: Send + 'a>(
        self: &Arc<Self>,
        what: &'static str,
        swap: Swap,
        items: BoxStream<'a, Result<T>>,
    ) -> BoxStream<'a, Result<T>> {
        let row = Row {
            steps: self.clone(),
            what,
            swap,
            items: items.fuse().boxed(),
            held: None,
            ended: false,
        };
        futures::stream::unfold(row, |mut row| async {
            row.next().await.map(|item| (item, row))
        })
        .boxed()
    }

    /// What goes wrong with the next step, if anything.
    pub fn take(&self) -> Option<Kind> {
        let n = self.taken.fetch_add(1, Ordering::SeqCst);
        let Fault { kind, at } = self.fault?;
        let mine = n == at || (n > at && kind == Kind::Gone);
        self.hit.fetch_or(mine, Ordering::SeqCst);
        mine.then_some(kind)
    }

    async fn stall<T>(&self) -> T {
        self.stalled.notify_one();
        pending().await
    }
}

/// When two items of a stream may be swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The second comes whether or not the first is taken.
    Always,
    /// Who asks may need the first to ask for the second: only if both are at hand.
    AtHand,
}

struct Row<'a, T> {
    steps: Arc<Steps>,
    what: &'static str,
    swap: Swap,
    items: BoxStream<'a, Result<T>>,
    held: Option<Result<T>>,
    ended: bool,
}

impl<T> Row<'_, T> {
    async fn next(&mut self) -> Option<Result<T>> {
        if self.ended {
            return None;
        }
        match self.steps.take() {
            None => self.following().await,
            Some(Kind::Fail | Kind::Gone) => {
                self.ended = true;
                Some(Err(broken(self.what)))
            }
            Some(Kind::Stall) => self.steps.stall().await,
            Some(Kind::Cut) => None,
            Some(Kind::Reorder) => self.swapped().await,
        }
    }

    async fn following(&mut self) -> Option<Result<T>> {
        match self.held.take() {
            Some(held) => Some(held),
            None => self.items.next().await,
        }
    }

    async fn swapped(&mut self) -> Option<Result<T>> {
        let first = self.items.next().await?;
        let second = match self.swap {
            Swap::Always => self.items.next().await,
            Swap::AtHand => self.items.next().now_or_never().flatten(),
        };
        match second {
            Some(second) => {
                self.held = Some(first);
                Some(second)
            }
            None => Some(first),
        }
    }
}

/// The error of a step that fails.
fn broken(what: &str) -> Error {
    let source = io::Error::new(io::ErrorKind::ConnectionReset, ON_PURPOSE);
    Error::io(what, source)
}

/// What errors that were made here say.
pub const ON_PURPOSE: &str = "broken on purpose";
