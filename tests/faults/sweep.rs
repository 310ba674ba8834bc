//! A job with a fault at each of its steps.

use super::{
    steps::{Fault, Kind, ON_PURPOSE, Steps},
    support::report,
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tk_store::Error;

/// A job whose stores may break.
#[async_trait]
pub trait Job: Sync {
    /// As the table calls it.
    fn name(&self) -> String;

    /// An empty folder for one run.
    fn room(&self) -> TempDir {
        room()
    }

    /// Makes what the job begins with in `folder`, which is empty.
    async fn prepare(&self, folder: &Path);

    /// Does the job, whose stores take `steps`.
    async fn run(&self, folder: &Path, steps: &Arc<Steps>) -> Outcome;

    /// What must hold at any time.
    async fn invariant(&self, folder: &Path) -> Result<(), String>;

    /// Whether an error tells what was wrong.
    fn tells(&self, kind: Kind, line: &str) -> bool {
        match kind {
            Kind::Fail | Kind::Gone => line.contains(ON_PURPOSE),
            Kind::Stall | Kind::Cut | Kind::Reorder => !line.is_empty(),
        }
    }

    /// All that is in the places that the job writes to.
    async fn result(&self, folder: &Path) -> BTreeMap<String, String>;
}

/// What a job says of itself.
#[derive(Debug)]
pub enum Outcome {
    /// Everything is as it should be.
    Done,
    /// For these reasons it is not.
    Failed(Vec<Error>),
    /// It said what is not so, in these words.
    Lied(String),
}

impl From<Result<(), Vec<Error>>> for Outcome {
    fn from(result: Result<(), Vec<Error>>) -> Self {
        match result {
            Ok(()) => Outcome::Done,
            Err(errors) => Outcome::Failed(errors),
        }
    }
}

/// Sweeps over `job`, and adds what was done to the table of the report.
///
/// # Panics
/// When something did not hold.
pub fn holds(job: &dyn Job) {
    let counts = sweep(job, &Kind::ALL, LONGEST).unwrap_or_else(|words| panic!("{words}"));
    let mut line = format!("  {:<34}", job.name());
    for (kind, count) in counts {
        let _ = write!(line, " {kind:?} {count}").map(|()| line.push(','));
    }
    report(TABLE, &format!("{}\n", line.trim_end_matches(',')));
}

/// Runs `job` with each of `kinds` at each of its steps; how many steps there were. What did not
/// hold is an error. Nothing may go on for longer than `longest`.
pub fn sweep(
    job: &dyn Job,
    kinds: &[Kind],
    longest: Duration,
) -> Result<Vec<(Kind, usize)>, String> {
    let bounds = Bounds { job, longest };
    let whole = bounds.undisturbed()?;
    let mut counts = Vec::new();
    for &kind in kinds {
        let mut at = 0;
        while bounds
            .disturbed(Fault { kind, at }, &whole)
            .map_err(|words| format!("{}, {kind:?} at step {at}: {words}", job.name()))?
        {
            at += 1;
        }
        counts.push((kind, at));
    }
    Ok(counts)
}

/// A job, and how long it may take.
struct Bounds<'a> {
    job: &'a dyn Job,
    longest: Duration,
}

type Content = BTreeMap<String, String>;

impl Bounds<'_> {
    /// What the job gives when nothing goes wrong.
    fn undisturbed(&self) -> Result<Content, String> {
        let folder = self.job.room();
        self.on_a_runtime(async {
            self.job.prepare(folder.path()).await;
            self.again(folder.path()).await
        })?
    }

    /// The job with `fault`, and then without; whether it came to the fault.
    fn disturbed(&self, fault: Fault, whole: &Content) -> Result<bool, String> {
        let folder = self.job.room();
        let steps = Steps::with(fault);
        self.on_a_runtime(self.job.prepare(folder.path()))?;
        // On a runtime of its own: after its end nothing of the job is at work.
        let outcome = self.on_a_runtime(async {
            tokio::select! {
                outcome = self.job.run(folder.path(), &steps) => Some(outcome),
                () = steps.stalled() => None,
            }
        })?;
        self.on_a_runtime(async {
            if let Some(outcome) = outcome {
                self.judge(fault, outcome, folder.path(), whole).await?;
            }
            self.job.invariant(folder.path()).await?;
            let there = self.again(folder.path()).await?;
            self.settled(folder.path(), there, whole).await
        })??;
        Ok(steps.hit())
    }

    async fn judge(
        &self,
        fault: Fault,
        outcome: Outcome,
        folder: &Path,
        whole: &Content,
    ) -> Result<(), String> {
        match outcome {
            Outcome::Done => same(
                "it said that all is well",
                &self.job.result(folder).await,
                whole,
            ),
            Outcome::Lied(words) => Err(words),
            Outcome::Failed(errors) => {
                let lines: Vec<_> = errors.iter().map(Error::to_line).collect();
                let tells = |line: &String| self.job.tells(fault.kind, line);
                if lines.iter().any(tells) {
                    Ok(())
                } else {
                    Err(format!("the errors do not tell the reason: {lines:?}"))
                }
            }
        }
    }

    /// The job once more without a fault: what it gives.
    async fn again(&self, folder: &Path) -> Result<Content, String> {
        match self.job.run(folder, &Steps::without_fault()).await {
            Outcome::Done => self.job.invariant(folder).await?,
            other => return Err(format!("without a fault: {other:?}")),
        }
        Ok(self.job.result(folder).await)
    }

    /// Whether what is there is all in the end: threads that pack are not waited for by those who
    /// give a job up, and may still be busy removing what they began.
    async fn settled(
        &self,
        folder: &Path,
        mut there: Content,
        whole: &Content,
    ) -> Result<(), String> {
        let begun = Instant::now();
        while there != *whole && begun.elapsed() < self.longest / 4 {
            tokio::time::sleep(PAUSE).await;
            there = self.job.result(folder).await;
        }
        same("done again", &there, whole)
    }

    /// Runs `work` and waits for all threads that it started.
    fn on_a_runtime<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().expect("a runtime");
        let done = runtime.block_on(async { tokio::time::timeout(self.longest, work).await });
        let ended = Instant::now();
        runtime.shutdown_timeout(self.longest);
        if ended.elapsed() >= self.longest {
            return Err("a thread goes on after the job has ended".to_owned());
        }
        done.map_err(|_| "it does not come to an end".to_owned())
    }
}

/// Whether `there` is `whole`; if not, what differs first.
pub fn same(when: &str, there: &Content, whole: &Content) -> Result<(), String> {
    let all = there.keys().chain(whole.keys());
    let differs = all
        .clone()
        .find(|name| there.get(*name) != whole.get(*name));
    match differs {
        None => Ok(()),
        Some(name) => {
            let (is, should) = (there.get(name), whole.get(name));
            Err(format!(
                "{when}, but {name} is {is:?} instead of {should:?}"
            ))
        }
    }
}

/// An empty folder, in memory where that can be.
pub fn room() -> TempDir {
    let memory = TempDir::with_prefix_in("tk-faults-", "/dev/shm");
    memory
        .or_else(|_| TempDir::new())
        .expect("a temporary folder")
}

/// What shows that something hangs, not that it is slow.
pub const LONGEST: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(5);

/// The name of the table in the report.
pub const TABLE: &str = "Faults: steps of each job at which each kind was injected";
