//! One run of nix: its log as events, its output within bounds, and an end for all that it started.

use crate::{
    Cause, Exit, Nix, NixFailure, Result,
    events::{self, ErrorMessage},
};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    io,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tk_daemon::client::{BuildLogs, BuildTail};
use tk_store::log::{Level, LogEvent, LogSink, strip_ansi};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// What nix is to be run with. The arguments that every run needs (features, settings, the log's
/// format) are added.
#[derive(Debug, Clone)]
pub struct Invocation {
    args: Vec<OsString>,
    folder: Option<PathBuf>,
    env: Vec<(OsString, Option<OsString>)>,
    timeout: Option<Duration>,
}

impl Invocation {
    /// The command `command` of nix, such as `["flake", "metadata"]`.
    pub fn new<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Self {
        Invocation {
            args: command.into_iter().map(|s| s.as_ref().into()).collect(),
            folder: None,
            env: Vec::new(),
            timeout: None,
        }
    }

    /// With this argument too.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().into());
        self
    }

    /// With these arguments too.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.args.extend(args);
        self
    }

    /// In this folder, in which relative references begin.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// With this variable in the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (name.as_ref().into(), Some(value.as_ref().into()));
        self.env.push(pair);
        self
    }

    /// Without this variable in the environment.
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), None));
        self
    }

    /// Ended after so long, whatever is usual.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// A run that ended by itself.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How the process ended: by an exit status or by a signal.
    pub exit: Exit,
    /// All that nix wrote to stdout, not decoded.
    pub stdout: Vec<u8>,
    /// The errors that nix wrote, in order.
    pub errors: Vec<ErrorMessage>,
    /// The last lines of stderr that were messages, without colours.
    pub tail: Vec<String>,
    /// The builds that it started, with their last lines.
    pub builds: Vec<BuildTail>,
    /// How long it took.
    pub duration: Duration,
}

impl Nix {
    /// Runs nix to its end. What it logs goes to `log` as it is written.
    ///
    /// Dropping the future ends nix and all that it started.
    ///
    /// # Errors
    /// [`Cause::NoNix`], [`Cause::TimedOut`], [`Cause::OutputLimit`]; and whatever made it end with
    /// a status other than 0.
    pub async fn run(&self, what: Invocation, log: &dyn LogSink) -> Result<Finished> {
        let done = self.run_to_end(what, log).await?;
        if done.exit.is_success() {
            Ok(done)
        } else {
            Err(NixFailure::of_nix(&done))
        }
    }

    /// As [`Nix::run`], with the end of it left to the caller.
    pub async fn run_to_end(&self, what: Invocation, log: &dyn LogSink) -> Result<Finished> {
        let _turn = self.turn().await;
        let limit = what.timeout.or(self.config().timeout);
        let begun = Instant::now();
        let mut command = self.command(&what.args);
        command.stdin(Stdio::null());
        for (name, value) in what.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(folder) = what.folder {
            command.current_dir(folder);
        }
        let mut group = ProcessGroup::start(&mut command).map_err(|e| self.not_started(&e))?;
        let (stdout, stderr) = (group.child.stdout.take(), group.child.stderr.take());
        let builds = BuildLogs::with(LINES, |event| log.event(event));
        let most = self.config().max_output;
        let work = async {
            // Both pipes are read at once: a child that fills one while only the other is read would wait
            // forever.
            let (stdout, said) = tokio::try_join!(all(stdout, most), async {
                Ok(listen(stderr, &builds).await)
            })?;
            let status = group.child.wait().await;
            let status = status.map_err(|e| self.not_started(&e))?;
            Ok::<_, NixFailure>((stdout, said, status))
        };
        let finished = match limit {
            None => work.await,
            Some(limit) => timeout(limit, work)
                .await
                .unwrap_or_else(|_| Err(NixFailure::timed_out(limit))),
        };
        let (stdout, said, status) = finished?;
        group.ended = true;
        Ok(Finished {
            exit: Exit::of(status),
            stdout,
            errors: said.errors,
            tail: said.tail.into(),
            builds: builds.builds(),
            duration: begun.elapsed(),
        })
    }

    fn not_started(&self, error: &io::Error) -> NixFailure {
        let program = self.config().program.display();
        NixFailure::new(Cause::NoNix, format!("cannot run {program}: {error}"))
    }
}

/// A child in a group of processes of its own, which ends when this is dropped.
pub(crate) struct ProcessGroup {
    pub(crate) child: Child,
    pub(crate) ended: bool,
}

impl ProcessGroup {
    /// Starts `command` with pipes for its stdout and stderr.
    pub(crate) fn start(command: &mut Command) -> io::Result<ProcessGroup> {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        Ok(ProcessGroup {
            child,
            ended: false,
        })
    }

    fn pid(&self) -> Option<Pid> {
        // Unknown once it has been waited for: then the number may be somebody else's.
        let id = i32::try_from(self.child.id()?).ok()?;
        Pid::from_raw(id)
    }
}

impl Drop for ProcessGroup {
    /// Asks all of them to end, so that nix ends its builders; who is still there after [`GRACE`] is
    /// killed.
    fn drop(&mut self) {
        let Some(pid) = self.pid().filter(|_| !self.ended) else {
            return;
        };
        // A group that is gone is what is wanted.
        let _ = kill_process_group(pid, Signal::TERM);
        let ending = Ending::of(pid);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(ending.wait());
        }
    }
}

/// How many groups of processes were asked to end and have not yet. A program that gives up waits
/// for this to be 0 before it ends, so that nix can end its builders.
pub fn ending() -> usize {
    ENDING.load(Ordering::Relaxed)
}

static ENDING: AtomicUsize = AtomicUsize::new(0);

/// A group that was asked to end. It is killed when this is dropped: after a while, or when the
/// runtime ends before.
struct Ending(Pid);

impl Ending {
    fn of(pid: Pid) -> Self {
        ENDING.fetch_add(1, Ordering::Relaxed);
        Ending(pid)
    }

    async fn wait(self) {
        let begun = Instant::now();
        // Once it is gone its number may be another's, so that nothing is killed then.
        while begun.elapsed() < GRACE {
            tokio::time::sleep(LOOK).await;
            if test_kill_process_group(self.0).is_err() {
                return self.forget();
            }
        }
    }

    fn forget(self) {
        ENDING.fetch_sub(1, Ordering::Relaxed);
        std::mem::forget(self);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        ENDING.fetch_sub(1, Ordering::Relaxed);
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// All that comes, up to `most` bytes.
async fn all(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return Ok(bytes) };
    let read = pipe.take(most + 1).read_to_end(&mut bytes).await;
    read.map_err(|e| NixFailure::new(Cause::Other, format!("reading what nix printed: {e}")))?;
    if bytes.len() as u64 > most {
        let words = format!("nix printed more than {most} bytes");
        return Err(NixFailure::new(Cause::OutputLimit, words));
    }
    Ok(bytes)
}

/// What was read from stderr.
#[derive(Default)]
struct Said {
    errors: Vec<ErrorMessage>,
    tail: VecDeque<String>,
}

async fn listen(pipe: Option<impl AsyncRead + Unpin>, log: &dyn LogSink) -> Said {
    let mut said = Said::default();
    let Some(pipe) = pipe else { return said };
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    while next_line(&mut pipe, &mut line).await {
        let text = String::from_utf8_lossy(&line);
        let parsed = events::parse(text.trim_end_matches(['\n', '\r']));
        if let LogEvent::Message { level, text } = &parsed.event
            && *level <= Level::Info
        {
            said.tail.push_back(strip_ansi(text).into_owned());
            if said.tail.len() > LINES {
                said.tail.pop_front();
            }
        }
        said.errors
            .extend(parsed.error.filter(|_| said.errors.len() < ERRORS));
        log.event(parsed.event);
    }
    said
}

/// Whether there was a line; of a long one the beginning is kept.
async fn next_line(pipe: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> bool {
    line.clear();
    let mut any = false;
    loop {
        let Ok(bytes) = pipe.fill_buf().await else {
            return any;
        };
        if bytes.is_empty() {
            return any;
        }
        any = true;
        let end = bytes.iter().position(|b| *b == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        let room = events::MAX_LINE.saturating_sub(line.len());
        line.extend_from_slice(&bytes[..taken.min(room)]);
        pipe.consume(taken);
        if end.is_some() {
            return true;
        }
    }
}

/// How long a group has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(3);
/// How often it is looked whether a group is gone.
const LOOK: Duration = Duration::from_millis(20);
/// Last lines that are kept, of nix and of each builder.
const LINES: usize = 25;
/// Errors that are kept.
const ERRORS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_lines_are_cut_and_the_next_is_whole() {
        let mut text = vec![b'x'; 3 * events::MAX_LINE];
        text.extend_from_slice(b"\nnext\nlast");
        let mut pipe = BufReader::new(&text[..]);
        let mut line = Vec::new();
        assert!(next_line(&mut pipe, &mut line).await);
        assert_eq!(line.len(), events::MAX_LINE);
        for expected in ["next\n", "last"] {
            assert!(next_line(&mut pipe, &mut line).await);
            assert_eq!(line, expected.as_bytes());
        }
        assert!(!next_line(&mut pipe, &mut line).await);
    }

    #[tokio::test]
    async fn output_is_bounded() {
        assert_eq!(all(Some(&b"12345"[..]), 5).await.unwrap(), b"12345");
        let failure = all(Some(&b"123456"[..]), 5).await.unwrap_err();
        assert_eq!(failure.cause, Cause::OutputLimit);
    }
}
