use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long the other side may be silent; can be changed while somebody waits. Clones are one.
///
/// A change counts from the next time that the one who waits is polled.
#[derive(Debug, Clone, Default)]
pub(crate) struct SilenceLimit(Arc<AtomicU64>);

impl SilenceLimit {
    /// `None` is for ever.
    pub fn set(&self, limit: Option<Duration>) {
        let millis = limit.map_or(0, |limit| {
            limit.as_millis().clamp(1, u64::MAX.into()) as u64
        });
        self.0.store(millis, Ordering::Relaxed);
    }

    /// Returns the limit that was set last; `None` is for ever, which is the default.
    pub fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }
}

/// The error after `limit` without a sign of life.
pub(crate) fn silence(limit: Option<Duration>) -> io::Error {
    let seconds = limit.unwrap_or_default().as_secs_f32();
    let text = format!("no sign of life for {seconds} s");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] when nothing moves for too long.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    inner: T,
    patience: SilenceLimit,
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<T> Timed<T> {
    pub fn new(inner: T, patience: SilenceLimit) -> Self {
        Timed {
            inner,
            patience,
            sleep: None,
            waiting: false,
        }
    }

    /// To be called when the stream has nothing: whether it had nothing for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some(limit) = self.patience.get() else {
            self.waiting = false;
            return Poll::Pending;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        ready!(sleep.as_mut().poll(context));
        self.waiting = false;
        Poll::Ready(silence(Some(limit)))
    }

    fn watch<V>(
        &mut self,
        context: &mut Context<'_>,
        moved: Poll<io::Result<V>>,
    ) -> Poll<io::Result<V>> {
        match moved {
            Poll::Ready(moved) => {
                self.waiting = false;
                Poll::Ready(moved)
            }
            Poll::Pending => self.poll_silence(context).map(Err),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Timed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_read(context, out);
        self.watch(context, moved)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Timed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.watch(context, moved)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_flush(context);
        self.watch(context, moved)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.inner).poll_shutdown(context);
        self.watch(context, moved)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.watch(context, moved)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn silence_is_an_error_and_slowness_is_none() {
        let (ours, mut theirs) = duplex(8);
        let patience = SilenceLimit::default();
        patience.set(Some(Duration::from_secs(10)));
        let mut timed = Timed::new(ours, patience.clone());
        let drip = tokio::spawn(async move {
            for byte in 0..5 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                theirs.write_all(&[byte]).await.unwrap();
            }
            theirs
        });
        let mut bytes = [0; 5];
        timed.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, [0, 1, 2, 3, 4]);
        let error = timed.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Nobody takes what is written.
        let error = timed.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(drip.await.unwrap());
        assert_eq!(timed.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_waits() {
        let (ours, theirs) = duplex(8);
        let mut timed = Timed::new(ours, SilenceLimit::default());
        let waited = tokio::time::timeout(Duration::from_secs(100_000), timed.read_u8()).await;
        assert!(waited.is_err());
        drop(theirs);
    }
}
