//! For how long a client has kept the server waiting.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one client does: nothing at all between two requests, or nothing that the server waits for within one.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// In milliseconds after [`START`]; 0 if it is the client that waits.
    since: AtomicU64,
    idle: AtomicBool,
}

impl Activity {
    /// The server begins to wait, or has got what it waited for.
    pub fn set_waiting(&self, waiting: bool) {
        let was = self.since.load(Ordering::Relaxed) != 0;
        if was != waiting {
            let now = || START.elapsed().as_millis() as u64 + 1;
            let since = if waiting { now() } else { 0 };
            self.since.store(since, Ordering::Relaxed);
        }
    }

    /// No request is under way, or one is.
    pub fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Relaxed);
        self.set_waiting(idle);
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed)
    }

    /// For how long the server has waited; `None` if it does not.
    pub fn silence(&self) -> Option<Duration> {
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            since => {
                let since = Duration::from_millis(since - 1);
                Some(START.elapsed().saturating_sub(since))
            }
        }
    }
}

/// A stream whose other end is noted down when it keeps its reader or writer waiting.
#[derive(Debug)]
pub(super) struct Noted<T> {
    inner: T,
    activity: Arc<Activity>,
}

impl<T> Noted<T> {
    pub fn new(inner: T, activity: Arc<Activity>) -> Self {
        Noted { inner, activity }
    }

    fn note<V>(&self, moved: Poll<V>) -> Poll<V> {
        self.activity.set_waiting(moved.is_pending());
        moved
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Noted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_read(context, out);
        self.note(moved)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Noted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.note(moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_flush(context);
        self.note(moved)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn only_the_other_ends_silence_counts() {
        let (ours, mut theirs) = duplex(4);
        let activity = Arc::<Activity>::default();
        let mut noted = Noted::new(ours, activity.clone());
        assert_eq!(activity.silence(), None);
        assert!(noted.read_u8().now_or_never().is_none());
        assert!(activity.silence().is_some());
        theirs.write_all(&[1]).await.unwrap();
        assert_eq!(noted.read_u8().await.unwrap(), 1);
        assert_eq!(activity.silence(), None);
        assert!(noted.write_all(&[0; 5]).now_or_never().is_none());
        assert!(activity.silence().is_some());
        activity.set_idle(false);
        assert_eq!(activity.silence(), None);
    }
}
