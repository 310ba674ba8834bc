use super::DaemonStore;
use crate::{
    client::{Connection, ConnectionPool},
    worker::{
        UnkeyedPathInfo, WorkerProtocol,
        ops::{Op, QueryPathInfo, QueryPathInfos},
    },
};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tk_narinfo::PathInfo;
use tk_path::StorePath;
use tk_store::{Error, Result, log::LogSink};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

/// The metadata of paths, asked ahead of the answers.
///
/// A task of its own talks to the daemon, and gives the connection back whenever nothing is open:
/// whoever pauses between two answers, and asks the store something else meanwhile, does not wait
/// for a connection that he holds himself. Both queues are bounded by [`OPEN`].
pub(super) struct Infos<'a> {
    store: &'a DaemonStore,
    paths: Option<BoxStream<'a, StorePath>>,
    open: usize,
    task: Option<Task>,
    failed: bool,
}

type DaemonInfoAnswer = Result<(StorePath, Option<PathInfo>)>;

struct Task {
    questions: UnboundedSender<StorePath>,
    answers: UnboundedReceiver<DaemonInfoAnswer>,
    handle: JoinHandle<()>,
}

impl<'a> Infos<'a> {
    pub fn new(store: &'a DaemonStore, paths: BoxStream<'a, StorePath>) -> Self {
        Infos {
            store,
            paths: Some(paths),
            open: 0,
            task: None,
            failed: false,
        }
    }

    /// Hands on what is at hand.
    fn poll_questions(&mut self, context: &mut Context<'_>) {
        while self.open < OPEN {
            let Some(paths) = &mut self.paths else { return };
            match paths.poll_next_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(None) => self.paths = None,
                Poll::Ready(Some(path)) => {
                    self.open += 1;
                    let store = self.store;
                    let task = self.task.get_or_insert_with(|| Task::spawn(store));
                    // Should it have ended, its answers tell.
                    let _ = task.questions.send(path);
                }
            }
        }
    }
}

impl Stream for Infos<'_> {
    type Item = DaemonInfoAnswer;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<DaemonInfoAnswer>> {
        if self.failed {
            return Poll::Ready(None);
        }
        self.poll_questions(context);
        if self.open == 0 {
            return match self.paths {
                Some(_) => Poll::Pending,
                None => Poll::Ready(None),
            };
        }
        let Some(task) = &mut self.task else {
            return Poll::Pending;
        };
        let answer = std::task::ready!(task.answers.poll_recv(context));
        let answer = answer.unwrap_or_else(|| {
            let store = self.store;
            Err(Error::invalid(format!("{store} is not asked any more")))
        });
        self.open -= 1;
        self.failed = matches!(&answer, Err(error) if !matches!(error, Error::Refused { .. }));
        Poll::Ready(Some(answer))
    }
}

impl Task {
    fn spawn(store: &DaemonStore) -> Self {
        let (questions, to_ask) = unbounded_channel();
        let (told, answers) = unbounded_channel();
        let (pool, log) = (store.pool.clone(), store.config.log.clone());
        Task {
            questions,
            answers,
            handle: tokio::spawn(async move {
                if let Err(error) = ask(pool, log, to_ask, &told).await {
                    // Nobody listens: nobody wants to know.
                    let _ = told.send(Err(error));
                }
            }),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Asks all there is to ask, in waves: a connection is held only while something is open.
async fn ask(
    pool: Arc<ConnectionPool<WorkerProtocol>>,
    log: Arc<dyn LogSink>,
    mut questions: UnboundedReceiver<StorePath>,
    told: &UnboundedSender<DaemonInfoAnswer>,
) -> Result<()> {
    while let Some(first) = questions.recv().await {
        let mut connection = pool.get().await?;
        if Op::QueryPathInfos.supported(connection.protocol()) {
            let mut batch = BTreeMap::from([(first, 1)]);
            while let Ok(path) = questions.try_recv() {
                *batch.entry(path).or_default() += 1;
            }
            ask_batch(&mut connection, &*log, batch, told).await?;
            continue;
        }
        let open = &AtomicUsize::new(1);
        let wave = stream::once(async { first }).chain(rest(&mut questions, open));
        let requests = wave.map(|path| (path.clone(), QueryPathInfo { path }));
        let answered = |path: StorePath, answer: Result<Option<UnkeyedPathInfo>>| {
            open.fetch_sub(1, Ordering::Relaxed);
            let answer = answer.map(|info| {
                let info = info.map(|info| info.with_path(path.clone()));
                (path, info)
            });
            let _ = told.send(answer);
        };
        connection.pipeline(requests, &*log, answered).await?;
    }
    Ok(())
}

/// All that is at hand in one request, where the daemon has one for it. Each path comes with how
/// often it was asked about.
async fn ask_batch(
    connection: &mut Connection,
    log: &dyn LogSink,
    mut batch: BTreeMap<StorePath, usize>,
    told: &UnboundedSender<DaemonInfoAnswer>,
) -> Result<()> {
    let tell = |times: usize, answer: &dyn Fn() -> DaemonInfoAnswer| {
        for _ in 0..times {
            let _ = told.send(answer());
        }
    };
    let paths = batch.keys().cloned().collect();
    match connection.call(&QueryPathInfos { paths }, log).await {
        Ok(infos) => {
            for info in infos {
                let times = batch.remove(&info.path).unwrap_or_default();
                tell(times, &|| Ok((info.path.clone(), Some(info.clone()))));
            }
            for (path, times) in batch {
                tell(times, &|| Ok((path.clone(), None)));
            }
        }
        Err(Error::Refused { who, words }) => {
            let refusal = || Error::Refused {
                who: who.clone(),
                words: words.clone(),
            };
            tell(batch.values().sum(), &|| Err(refusal()));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What follows until nothing is open and nothing is to be asked.
fn rest<'a>(
    questions: &'a mut UnboundedReceiver<StorePath>,
    open: &'a AtomicUsize,
) -> impl Stream<Item = StorePath> + 'a {
    stream::poll_fn(move |context| match questions.poll_recv(context) {
        Poll::Pending if open.load(Ordering::Relaxed) == 0 => Poll::Ready(None),
        Poll::Ready(Some(path)) => {
            open.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(path))
        }
        other => other,
    })
}

/// Questions that may be open at once.
const OPEN: usize = crate::client::WINDOW;
