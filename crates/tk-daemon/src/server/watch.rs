//! A reader that can be asked, while nobody reads, whether the other side has gone.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};

/// What bytes are read from; its [`HangupWatch`] may read ahead of it.
pub(super) struct Watched<R>(Arc<Mutex<WatchInner<R>>>);

/// Sees the end of what [`Watched`] reads.
pub(super) struct HangupWatch<R>(Arc<Mutex<WatchInner<R>>>);

struct WatchInner<R> {
    source: R,
    /// Read ahead by the watch, from `start` to `end`.
    ahead: Vec<u8>,
    start: usize,
    end: usize,
}

/// A reader and its watch. Both are for one task: they share one waker of the source.
pub(super) fn watched<R: AsyncRead + Unpin>(source: R) -> (Watched<R>, HangupWatch<R>) {
    let inner = Arc::new(Mutex::new(WatchInner {
        source,
        ahead: Vec::new(),
        start: 0,
        end: 0,
    }));
    (Watched(inner.clone()), HangupWatch(inner))
}

impl<R: AsyncRead + Unpin> HangupWatch<R> {
    /// Waits until the other side has gone. What it sends meanwhile is kept up to a limit; behind
    /// that, its end is not seen. The task is woken for what is kept: the reader may wait for it.
    pub async fn gone(&self) {
        poll_fn(|cx| {
            let mut inner = lock(&self.0);
            loop {
                if inner.end == AHEAD {
                    return Poll::Pending;
                }
                match inner.poll_ahead(cx) {
                    // The reader may have looked just before the bytes came. They are taken now, so the
                    // source wakes nobody for them any more.
                    Poll::Ready(Ok(n)) if n > 0 => cx.waker().wake_by_ref(),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

impl<R: AsyncRead + Unpin> WatchInner<R> {
    /// Reads behind what is there; the number of bytes, 0 at the end.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        // Those who only ask what is answered at once need none.
        self.ahead.resize(AHEAD, 0);
        let mut space = ReadBuf::new(&mut self.ahead[self.end..]);
        let read = Pin::new(&mut self.source).poll_read(cx, &mut space);
        let n = space.filled().len();
        self.end += n;
        read.map_ok(|()| n)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.start == inner.end {
            return Pin::new(&mut inner.source).poll_read(cx, out);
        }
        let n = out.remaining().min(inner.end - inner.start);
        let start = inner.start;
        out.put_slice(&inner.ahead[start..start + n]);
        inner.start += n;
        Poll::Ready(Ok(()))
    }
}

fn lock<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    // Reading has no half-done state that a panic could leave.
    inner.lock().unwrap_or_else(|e| e.into_inner())
}

/// Bytes that may be read ahead: a few requests.
const AHEAD: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn nothing_read_ahead_is_lost() {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let (mut reader, watch) = watched(server);
        assert!(watch.gone().now_or_never().is_none());
        client.write_all(b"one ").await.unwrap();
        assert!(watch.gone().now_or_never().is_none());
        client.write_all(b"two").await.unwrap();
        let mut piece = [0; 2];
        reader.read_exact(&mut piece).await.unwrap();
        assert!(watch.gone().now_or_never().is_none());
        drop(client);
        watch.gone().await;
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).await.unwrap();
        assert_eq!([&piece[..], &rest].concat(), b"one two");
    }

    const LIMIT: Duration = Duration::from_secs(10);

    /// Has bytes from the second look on, and wakes nobody: somebody takes them before the kernel tells.
    struct Late {
        looks: u32,
    }

    impl AsyncRead for Late {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.looks += 1;
            if self.looks != 2 {
                return Poll::Pending;
            }
            out.put_slice(b"late");
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_for_what_the_watch_takes() {
        let (mut reader, watch) = watched(Late { looks: 0 });
        let mut taken = [0; 4];
        let both = async {
            tokio::select! {
                biased;
                read = reader.read_exact(&mut taken) => drop(read.unwrap()),
                () = watch.gone() => panic!("it has not gone"),
            }
        };
        // Ended, not polled once more, when nobody wakes it.
        tokio::select! {
            biased;
            () = tokio::time::sleep(LIMIT) => panic!("nobody woke it"),
            () = both => {}
        }
        assert_eq!(&taken, b"late");
    }

    #[tokio::test]
    async fn what_is_read_ahead_has_a_limit() {
        let (mut client, server) = tokio::io::duplex(4 * AHEAD);
        let (mut reader, watch) = watched(server);
        let sent: Vec<u8> = (0..2 * AHEAD).map(|i| i as u8).collect();
        client.write_all(&sent).await.unwrap();
        drop(client);
        assert!(watch.gone().now_or_never().is_none());
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == sent);
    }
}
