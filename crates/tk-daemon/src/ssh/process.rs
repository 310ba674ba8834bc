//! A process of ssh as a connection.

use super::{HostKey, SshConfig, SshHost, SshStderr, command};
use crate::client::Channel;
use futures::future::BoxFuture;
use rustix::io::ioctl_fionread;
use std::{
    fmt,
    io::{self, Write},
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};
use tempfile::NamedTempFile;
use tk_store::{
    Error, Result,
    log::{Level, LogEvent, join_lines},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::{broadcast, mpsc, oneshot, watch},
    time::timeout,
};

/// Keeps ssh running: the [`guard`](Channel::guard) of its channel.
#[derive(Debug, Clone)]
pub struct SshGuard(Arc<Process>);

impl SshGuard {
    /// The lines that ssh and the far end write to stderr from now on. None come if they are not
    /// collected. Who is slow misses some.
    pub fn lines(&self) -> broadcast::Receiver<String> {
        self.0.stderr.lines.subscribe()
    }

    /// Returns when all lines that were on this machine before have been told: what the far end
    /// writes before a reply is, when the reply is.
    pub async fn caught_up(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.stderr.asked.send(done).is_ok() {
            // Also an end of the collecting is an answer.
            let _ = wait.await;
        }
    }
}

/// Starts ssh. The process ends when the channel and all its parts are dropped.
pub(super) async fn start(config: &SshConfig) -> Result<Channel> {
    let known_hosts = match config.host_key.clone() {
        Some(key) => Some(write_known_hosts(key, config.host.clone()).await?),
        None => None,
    };
    let file = known_hosts.as_ref().map(NamedTempFile::path);
    let (program, arguments) = command::to_start(config, file);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(match config.stderr {
            SshStderr::Inherit => Stdio::inherit(),
            _ => Stdio::piped(),
        })
        .kill_on_drop(true);
    let doing = || format!("starting {} to reach {}", program.display(), config.host);
    let mut child = command.spawn().map_err(|e| Error::io(doing(), e))?;
    let (asked, asks) = mpsc::unbounded_channel();
    let stderr = Stderr::new(asked);
    if let Some(pipe) = child.stderr.take() {
        tokio::spawn(collect(pipe, config.stderr.clone(), stderr.clone(), asks));
    } else {
        stderr.ended.send_replace(true);
    }
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let process = Arc::new(Process {
        what: what_runs(config),
        child: tokio::sync::Mutex::new(child),
        stderr,
        _known_hosts: known_hosts,
    });
    let (Some(stdin), Some(stdout)) = (stdin, stdout) else {
        return Err(Error::io(doing(), io::Error::other("it has no pipes")));
    };
    let end = || End::Not(process.clone());
    let (reader, writer) = (SshReader(stdout, end()), SshWriter(stdin, end()));
    Ok(Channel::new(reader, writer).with_guard(SshGuard(process)))
}

fn what_runs(config: &SshConfig) -> String {
    if config.host.is_this_machine() {
        format!("{} on this machine", command::remote_command(config))
    } else {
        format!("ssh to {}", config.host)
    }
}

async fn write_known_hosts(key: HostKey, host: SshHost) -> Result<NamedTempFile> {
    let write = move || {
        let mut file = NamedTempFile::with_prefix("known-hosts-")?;
        file.write_all(key.known_hosts(&host).as_bytes())?;
        Ok(file)
    };
    let written = tokio::task::spawn_blocking(write).await;
    let written = written
        .map_err(io::Error::other)
        .and_then(|written| written);
    written.map_err(|e| Error::io("writing the host key to a temporary file", e))
}

struct Process {
    /// The subject of a sentence about it.
    what: String,
    child: tokio::sync::Mutex<Child>,
    stderr: Arc<Stderr>,
    /// Deleted with the process.
    _known_hosts: Option<NamedTempFile>,
}

impl Process {
    /// The error for a connection that ended: what became of ssh, and what it said.
    async fn obituary(self: Arc<Self>) -> io::Error {
        let wait = async { self.child.lock().await.wait().await };
        let status = timeout(GRACE, wait).await;
        // A master of shared connections may hold stderr for ever.
        let mut ended = self.stderr.ended.subscribe();
        let _ = timeout(LAST_WORDS, ended.wait_for(|ended| *ended)).await;
        let fate = match status {
            Ok(Ok(status)) => fate(status),
            Ok(Err(_)) | Err(_) => "closed the connection".to_owned(),
        };
        let words = self.stderr.words();
        let colon = if words.is_empty() { "" } else { ": " };
        let text = format!("{} {fate}{colon}{words}", self.what);
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }
}

fn fate(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// What was written to stderr.
struct Stderr {
    /// The last bytes of it.
    tail: Mutex<Vec<u8>>,
    ended: watch::Sender<bool>,
    lines: broadcast::Sender<String>,
    /// Who wants to know when what is in the pipe has been told.
    asked: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

impl Stderr {
    fn new(asked: mpsc::UnboundedSender<oneshot::Sender<()>>) -> Arc<Self> {
        Arc::new(Stderr {
            tail: Mutex::default(),
            ended: watch::Sender::new(false),
            lines: broadcast::Sender::new(LINES),
            asked,
        })
    }

    fn keep(&self, bytes: &[u8]) {
        let mut tail = self.tail.lock().unwrap_or_else(|e| e.into_inner());
        tail.extend_from_slice(bytes);
        if tail.len() > 2 * TAIL {
            let old = tail.len() - TAIL;
            tail.drain(..old);
        }
    }

    /// The last of it, in one line.
    fn words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(|e| e.into_inner());
        let last = &tail[tail.len().saturating_sub(TAIL)..];
        join_lines(&String::from_utf8_lossy(last))
    }
}

async fn collect(
    mut pipe: ChildStderr,
    kind: SshStderr,
    stderr: Arc<Stderr>,
    mut asks: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
) {
    let mut bytes = vec![0; TAIL];
    let mut line = Vec::new();
    // With the bytes that were in the pipe when they asked.
    let mut waiting: Vec<(oneshot::Sender<()>, u64)> = Vec::new();
    loop {
        for (done, _) in waiting.extract_if(.., |(_, left)| *left == 0) {
            // Who asked may be gone.
            let _ = done.send(());
        }
        let read = tokio::select! {
            read = pipe.read(&mut bytes) => read,
            Some(done) = asks.recv() => {
                waiting.push((done, ioctl_fionread(&pipe).unwrap_or(0)));
                continue;
            }
        };
        let Ok(n @ 1..) = read else { break };
        for (_, left) in &mut waiting {
            *left = left.saturating_sub(n as u64);
        }
        stderr.keep(&bytes[..n]);
        for piece in bytes[..n].split_inclusive(|b| *b == b'\n') {
            let room = LINE - line.len();
            line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                tell(&mut line, &kind, &stderr);
            }
        }
    }
    if !line.is_empty() {
        tell(&mut line, &kind, &stderr);
    }
    stderr.ended.send_replace(true);
}

fn tell(line: &mut Vec<u8>, kind: &SshStderr, stderr: &Stderr) {
    let text = String::from_utf8_lossy(line).trim_end().to_owned();
    line.clear();
    if let SshStderr::Log(sink) = kind {
        sink.event(LogEvent::message(Level::Info, text.clone()));
    }
    // Nobody may listen.
    let _ = stderr.lines.send(text);
}

/// Whether a connection has ended, and why.
enum End {
    Not(Arc<Process>),
    Finding(BoxFuture<'static, io::Error>),
    Told,
}

impl End {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if let End::Not(process) = self {
            *self = End::Finding(Box::pin(process.clone().obituary()));
        }
        let End::Finding(finding) = self else {
            return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
        };
        let error = ready!(finding.as_mut().poll(context));
        *self = End::Told;
        Poll::Ready(error)
    }
}

/// ssh's stdout. Its end is an error: no protocol ends by itself at the server's side.
struct SshReader(ChildStdout, End);

impl AsyncRead for SshReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if matches!(self.1, End::Not(_)) {
            let before = out.filled().len();
            let read = ready!(Pin::new(&mut self.0).poll_read(context, out));
            if read.is_err() || out.filled().len() > before || out.remaining() == 0 {
                return Poll::Ready(read);
            }
        }
        self.1.poll(context).map(Err)
    }
}

/// ssh's stdin. A broken pipe tells why it broke.
struct SshWriter(ChildStdin, End);

impl SshWriter {
    fn explain<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.1.poll(context).map(Err)
            }
            written => written,
        }
    }
}

impl AsyncWrite for SshWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        self.explain(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.0).poll_flush(context);
        self.explain(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write_vectored(context, bytes);
        self.explain(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// How long ssh has to end after it closed its stdout.
const GRACE: Duration = Duration::from_secs(2);
/// How long its stderr may take to end after that.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Bytes of stderr that are kept.
const TAIL: usize = 4096;
/// Bytes of a line of stderr; what is beyond is dropped.
const LINE: usize = 8192;
/// Lines that wait for a slow listener.
const LINES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    /// However busy the machine is, the log of what a reply is about comes with it.
    #[tokio::test]
    async fn lines_before_a_reply_have_been_told_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let ssh = folder.path().join("ssh");
        // As much as a pipe holds, so that nobody has to read for the reply to come.
        let told = folder.path().join("told");
        let script = format!(
            "#!/bin/sh\nyes 'said before the reply, in a line of some length' | head -n 900 >&2; >{}; cat",
            told.display()
        );
        fs::write(&ssh, script).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = SshConfig::serve(SshHost::parse("nowhere").unwrap());
        config.ssh = ssh;
        for _ in 0..10 {
            let channel = start(&config).await.unwrap();
            let guard = channel.guard.unwrap();
            let guard: &SshGuard = guard.downcast_ref().unwrap();
            let mut lines = guard.lines();
            // So that all of it is there at once, with nobody collecting meanwhile.
            while fs::remove_file(&told).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
            guard.caught_up().await;
            assert_eq!(std::iter::from_fn(|| lines.try_recv().ok()).count(), 900);
        }
    }
}
