use super::{CacheAnswer, CheckedPath, Checker, StoreInfos};
use crate::objects::NarInfos;
use futures::{
    Stream, StreamExt,
    stream::{BoxStream, SelectAll, select_all},
};
use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tk_narinfo::NarInfo;
use tk_path::StorePath;
use tk_store::{Error, Result};
use tokio::sync::mpsc;

/// The answers of one check, as they are complete.
pub fn run<'a>(
    checker: &'a Checker,
    paths: BoxStream<'a, StorePath>,
) -> BoxStream<'a, CheckedPath> {
    let run = CheckRun::new(checker, paths);
    futures::stream::unfold(run, async |mut run| {
        let checked = run.next().await?;
        Some((checked, run))
    })
    .boxed()
}

/// A check under way.
struct CheckRun<'a> {
    checker: &'a Checker,
    input: Option<BoxStream<'a, StorePath>>,
    /// Every path that was ever wanted.
    seen: HashSet<StorePath>,
    /// Those that wait for room.
    waiting: VecDeque<StorePath>,
    open: HashMap<StorePath, OpenPath>,
    /// Paths that are only known from references.
    discovered: usize,
    /// A channel to each cache, and behind them to the store with the references, if there is one.
    questions: Vec<mpsc::UnboundedSender<StorePath>>,
    replies: SelectAll<BoxStream<'a, Reply>>,
    /// Complete, and not yet handed out.
    done: VecDeque<CheckedPath>,
}

/// A path that was asked about.
struct OpenPath {
    answers: Vec<Option<CacheAnswer>>,
    references: ReferenceSource,
    followed: bool,
}

/// Where the references of a path come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReferenceSource {
    /// From nobody, or from the caches.
    Caches,
    /// The store with the references has not answered.
    Awaited,
    /// It has, and knows them.
    Known,
}

enum Reply {
    /// Who answers, as a place in `questions`.
    From(usize, StorePath, Result<Option<Box<NarInfo>>>),
    /// That one will not answer any more.
    End(usize),
}

enum CheckEvent {
    Input(StorePath),
    InputEnd,
    Reply(Reply),
}

impl<'a> CheckRun<'a> {
    fn new(checker: &'a Checker, input: BoxStream<'a, StorePath>) -> Self {
        let mut questions = Vec::new();
        let mut replies = Vec::new();
        for who in 0..checker.caches.len() + usize::from(checker.reference_store().is_some()) {
            // Needs no bound of its own: the window limits how many paths are open.
            let (question, asked) = mpsc::unbounded_channel();
            questions.push(question);
            let asked = futures::stream::unfold(asked, async |mut asked| {
                let path = asked.recv().await?;
                Some((path, asked))
            });
            let said = checker.narinfos(who, asked.boxed());
            let end = futures::stream::once(async move { Reply::End(who) });
            replies.push(said.chain(end).boxed());
        }
        CheckRun {
            checker,
            input: Some(input),
            seen: HashSet::new(),
            waiting: VecDeque::new(),
            open: HashMap::new(),
            discovered: 0,
            questions,
            replies: select_all(replies),
            done: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Option<CheckedPath> {
        loop {
            if let Some(done) = self.done.pop_front() {
                return Some(done);
            }
            while self.has_room()
                && let Some(path) = self.waiting.pop_front()
            {
                self.ask(path);
            }
            // Where nobody is left to ask, a path is complete as soon as it is asked about.
            if !self.done.is_empty() {
                continue;
            }
            if self.open.is_empty() && self.input.is_none() {
                return None;
            }
            match poll_fn(|cx| self.poll(cx)).await {
                CheckEvent::Input(path) => self.want(path),
                CheckEvent::InputEnd => self.input = None,
                CheckEvent::Reply(Reply::From(who, path, answer)) => self.take(who, path, answer),
                CheckEvent::Reply(Reply::End(who)) => self.give_up(who),
            }
        }
    }

    /// Answers first: they make room.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CheckEvent> {
        if let Poll::Ready(Some(reply)) = self.replies.poll_next_unpin(cx) {
            return Poll::Ready(CheckEvent::Reply(reply));
        }
        let room = self.has_room();
        let Some(input) = self.input.as_mut().filter(|_| room) else {
            return Poll::Pending;
        };
        Pin::new(input).poll_next(cx).map(|path| match path {
            Some(path) => CheckEvent::Input(path),
            None => CheckEvent::InputEnd,
        })
    }

    fn has_room(&self) -> bool {
        self.open.len() < self.checker.window.get()
    }

    fn want(&mut self, path: StorePath) {
        if self.seen.insert(path.clone()) {
            self.waiting.push_back(path);
        }
    }

    fn ask(&mut self, path: StorePath) {
        let caches = self.checker.caches.len();
        let mut open = OpenPath {
            answers: (0..caches).map(|_| None).collect(),
            references: match self.checker.reference_store() {
                Some(_) => ReferenceSource::Awaited,
                None => ReferenceSource::Caches,
            },
            followed: !self.checker.closure,
        };
        for (who, question) in self.questions.iter().enumerate() {
            if question.send(path.clone()).is_ok() {
                continue;
            }
            match open.answers.get_mut(who) {
                Some(answer) => *answer = Some(CacheAnswer::NotAsked(self.gone(who))),
                None => open.references = ReferenceSource::Caches,
            }
        }
        self.open.insert(path.clone(), open);
        self.complete(path);
    }

    fn take(&mut self, who: usize, path: StorePath, answer: Result<Option<Box<NarInfo>>>) {
        // What nobody asked for, or a second answer, is no answer.
        let Some(open) = self.open.get_mut(&path) else {
            return;
        };
        let mut references = None;
        match open.answers.get_mut(who) {
            Some(Some(_)) => return,
            Some(slot) => {
                let answer = self.checker.answer(who, answer);
                if let CacheAnswer::Present(narinfo, _) = &answer {
                    references = Some(narinfo.info.references.clone());
                }
                *slot = Some(answer);
                references = references.filter(|_| open.references == ReferenceSource::Caches);
            }
            None if open.references != ReferenceSource::Awaited => return,
            None => match answer {
                Ok(Some(info)) => {
                    open.references = ReferenceSource::Known;
                    references = Some(info.info.references);
                }
                Ok(None) | Err(_) => {
                    open.references = ReferenceSource::Caches;
                    references = open.said_references();
                }
            },
        }
        if let Some(references) = references
            && self.checker.closure
        {
            open.followed = true;
            let known = self.seen.len();
            references.into_iter().for_each(|path| self.want(path));
            self.discovered += self.seen.len() - known;
            if self.discovered > self.checker.most_paths {
                return self.give_up_endless(path);
            }
        }
        self.complete(path);
    }

    /// A closure that comes to more paths than there are is invented. Nothing more is asked, and the
    /// last path is where it is told.
    fn give_up_endless(&mut self, path: StorePath) {
        let checker = self.checker;
        let error = |cache: &Arc<dyn NarInfos>| {
            let why = format!("it comes to more than {} paths", checker.most_paths);
            let what = format!("the closure that {cache} and the others tell of");
            CacheAnswer::NotAsked(Error::malformed(what, why))
        };
        self.input = None;
        self.waiting.clear();
        self.open.clear();
        self.done.push_back(CheckedPath {
            path,
            answers: checker.caches.iter().map(error).collect(),
            followed: false,
        });
    }

    /// A cache that stops answering leaves its questions open.
    fn give_up(&mut self, who: usize) {
        let open: Vec<StorePath> = self.open.keys().cloned().collect();
        // From now on sending to it fails.
        self.questions[who] = mpsc::unbounded_channel().0;
        for path in open {
            self.take(who, path, Err(self.gone(who)));
        }
    }

    fn gone(&self, who: usize) -> Error {
        let who = self.checker.caches.get(who);
        Error::Refused {
            who: who.map_or_else(String::new, ToString::to_string),
            words: "questions about paths were left unanswered".to_owned(),
        }
    }

    /// Hands the path out if everybody has answered.
    fn complete(&mut self, path: StorePath) {
        let Some(open) = self.open.get(&path) else {
            return;
        };
        if open.references == ReferenceSource::Awaited || open.answers.iter().any(Option::is_none) {
            return;
        }
        let open = self.open.remove(&path).expect("it was there");
        self.done.push_back(CheckedPath {
            path,
            answers: open.answers.into_iter().flatten().collect(),
            followed: open.followed,
        });
    }
}

impl OpenPath {
    /// The references that the caches have told so far; `None` if none of them has the path.
    fn said_references(&self) -> Option<BTreeSet<StorePath>> {
        let said = self
            .answers
            .iter()
            .flatten()
            .filter_map(|answer| match answer {
                CacheAnswer::Present(narinfo, _) => Some(&narinfo.info.references),
                _ => None,
            });
        said.fold(None, |all, some| {
            let mut all = all.unwrap_or_else(BTreeSet::new);
            all.extend(some.iter().cloned());
            Some(all)
        })
    }
}

impl Checker {
    /// The store with the references, if they are wanted.
    fn reference_store(&self) -> Option<&dyn tk_store::Store> {
        self.references.as_deref().filter(|_| self.closure)
    }

    /// The answers of a cache, or of the store with the references, which comes behind them.
    fn narinfos<'a>(&'a self, who: usize, paths: BoxStream<'a, StorePath>) -> BoxStream<'a, Reply> {
        let said = match (self.caches.get(who), self.reference_store()) {
            (Some(cache), _) => cache.narinfos(paths),
            (None, Some(store)) => StoreInfos::ask(store, paths),
            (None, None) => futures::stream::empty().boxed(),
        };
        said.map(move |(path, answer)| Reply::From(who, path, answer.map(|a| a.map(Box::new))))
            .boxed()
    }

    fn answer(&self, cache: usize, answer: Result<Option<Box<NarInfo>>>) -> CacheAnswer {
        match answer {
            Ok(None) => CacheAnswer::Absent,
            Err(error) => CacheAnswer::NotAsked(error),
            Ok(Some(narinfo)) => {
                let trust = self.judge(self.caches[cache].store_dir(), &narinfo);
                CacheAnswer::Present(narinfo, trust)
            }
        }
    }
}
