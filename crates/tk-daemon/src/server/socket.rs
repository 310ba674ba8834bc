//! A socket whose thread waits in the kernel for the next request, and in the runtime within one.
//!
//! Between two requests there is nothing else to wait for. To wait there through the runtime costs two more
//! system calls and the waking of another thread, several times what a short question to a database does.

use rustix::{
    buffer::spare_capacity,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use std::{
    hint, io,
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    thread,
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// One end of a connection. Clones are one, for the two directions.
#[derive(Debug, Clone)]
pub(super) struct Socket(Arc<SocketInner>);

#[derive(Debug)]
struct SocketInner {
    stream: Arc<UnixStream>,
    state: Mutex<SocketState>,
}

#[derive(Debug, Default)]
struct SocketState {
    /// The same socket, where the runtime looks after it: as long as somebody waits there. It is in blocking
    /// mode otherwise.
    registered: Option<tokio::net::UnixStream>,
    /// Came, and was not read yet.
    buffer: Vec<u8>,
    taken: usize,
    /// Waits that begin with sleeping, since nothing came while this looked.
    unlucky: u32,
}

impl Socket {
    /// The end of `stream`, which is in blocking mode.
    pub fn new(stream: Arc<UnixStream>) -> Self {
        Socket(Arc::new(SocketInner {
            stream,
            state: Mutex::default(),
        }))
    }

    /// Waits on this thread until something comes, or the connection ends; either is seen by the next reading.
    pub fn wait(&self) {
        let mut state = self.lock();
        // Or each request would wake the runtime as well.
        if state.registered.take().is_some() {
            let _ = self.0.stream.set_nonblocking(false);
        }
        if state.taken == state.buffer.len() && !state.look(&self.0.stream) {
            // What is wrong with it is found again by who reads.
            let _ = state.fill(&self.0.stream, RecvFlags::empty());
        }
    }

    fn lock(&self) -> MutexGuard<'_, SocketState> {
        // Each change is a whole one.
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl SocketState {
    /// Looks for the next request without sleeping; whether it came, or the connection ended.
    fn look(&mut self, stream: &UnixStream) -> bool {
        if self.unlucky > 0 {
            self.unlucky -= 1;
            return false;
        }
        let Some(_processor) = PROCESSORS.take() else {
            return false;
        };
        let start = Instant::now();
        loop {
            match self.fill(stream, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) if start.elapsed() < LOOK => hint::spin_loop(),
                Err(Errno::AGAIN) => {
                    self.unlucky = UNLUCKY;
                    return false;
                }
                _ => return true,
            }
        }
    }

    /// Receives into the empty buffer; the number of bytes, 0 at the end.
    fn fill(&mut self, stream: &UnixStream, flags: RecvFlags) -> Result<usize, Errno> {
        self.buffer.clear();
        self.taken = 0;
        self.buffer.reserve(BUFFER);
        loop {
            match recv(stream, spare_capacity(&mut self.buffer), flags) {
                Err(Errno::INTR) => {}
                // The two numbers differ for datagrams only.
                received => return received.map(|(taken, _)| taken),
            }
        }
    }

    /// Ready once the runtime saw that there may be more to do.
    fn poll_ready(
        &mut self,
        stream: &UnixStream,
        context: &mut Context<'_>,
        interest: Interest,
    ) -> Poll<io::Result<()>> {
        let registered = match &mut self.registered {
            Some(registered) => registered,
            none => {
                stream.set_nonblocking(true)?;
                none.insert(tokio::net::UnixStream::from_std(stream.try_clone()?)?)
            }
        };
        if interest.is_readable() {
            ready!(registered.poll_read_ready(context))?
        } else {
            ready!(registered.poll_write_ready(context))?
        }
        // What was seen is used up. It is tried again before the next wait, so nothing that came since is missed.
        let blocked = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = registered.try_io(interest, blocked);
        Poll::Ready(Ok(()))
    }
}

/// The processors that may be used for looking: half of all, for the clients need the others.
static PROCESSORS: LazyLock<LookingProcessors> = LazyLock::new(|| LookingProcessors {
    looking: AtomicUsize::new(0),
    most: thread::available_parallelism().map_or(0, |all| all.get() / 2),
});

struct LookingProcessors {
    looking: AtomicUsize,
    most: usize,
}

impl LookingProcessors {
    /// One of them, if one is free.
    fn take(&self) -> Option<LookingProcessor<'_>> {
        let more = |looking: usize| (looking < self.most).then(|| looking + 1);
        let taken = self.looking.fetch_update(Relaxed, Relaxed, more);
        // Made only where it was taken: it is given back when it goes away.
        taken.ok().map(|_| LookingProcessor(self))
    }
}

/// A processor that is used for looking.
struct LookingProcessor<'a>(&'a LookingProcessors);

impl Drop for LookingProcessor<'_> {
    fn drop(&mut self) {
        self.0.looking.fetch_sub(1, Relaxed);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        while state.taken == state.buffer.len() {
            match state.fill(&self.0.stream, RecvFlags::DONTWAIT) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    ready!(state.poll_ready(&self.0.stream, context, Interest::READABLE))?;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        let waiting = &state.buffer[state.taken..];
        let length = waiting.len().min(out.remaining());
        out.put_slice(&waiting[..length]);
        state.taken += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match send(
                &self.0.stream,
                bytes,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => return Poll::Ready(Ok(sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut state = self.lock();
                    ready!(state.poll_ready(&self.0.stream, context, Interest::WRITABLE))?;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.stream.shutdown(Shutdown::Write))
    }
}

/// Bytes that are received at once.
const BUFFER: usize = 32 << 10;

/// How long it is looked for the next request: about what a quick client takes to read an answer and to ask again.
const LOOK: Duration = Duration::from_micros(60);

/// Waits without looking, after it was in vain.
const UNLUCKY: u32 = 30;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn waiting_in_the_kernel_and_in_the_runtime_take_turns() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(Arc::new(ours));
        let peer = std::thread::spawn(move || {
            for round in 0..100_u8 {
                theirs.write_all(&[round; 3]).unwrap();
                let mut echo = [0; 3];
                theirs.read_exact(&mut echo).unwrap();
                assert_eq!(echo, [round; 3]);
            }
        });
        for round in 0..100_u8 {
            if round % 2 == 0 {
                socket.wait();
            }
            let mut piece = [0; 3];
            socket.read_exact(&mut piece).await.unwrap();
            assert_eq!(piece, [round; 3]);
            socket.write_all(&piece).await.unwrap();
        }
        peer.join().unwrap();
        socket.wait();
        assert_eq!(socket.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn more_than_the_kernel_keeps_goes_both_ways() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut socket = Socket::new(Arc::new(ours));
        let sent: Vec<u8> = (0..3 << 20).map(|i| (i / 7) as u8).collect();
        let expected = sent.clone();
        let peer = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            theirs.read_exact(&mut got).unwrap();
            assert!(got == expected);
            theirs.write_all(&got).unwrap();
        });
        socket.write_all(&sent).await.unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        peer.join().unwrap();
        assert!(got == sent);
    }

    #[test]
    fn who_finds_no_processor_gives_none_back() {
        let two = LookingProcessors {
            looking: AtomicUsize::new(0),
            most: 2,
        };
        let held = [two.take().unwrap(), two.take().unwrap()];
        for _ in 0..3 {
            assert!(two.take().is_none());
        }
        drop(held);
        assert_eq!(two.looking.load(Relaxed), 0);
        assert!(two.take().is_some());
    }
}
