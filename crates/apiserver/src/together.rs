//! What becomes ready together goes out together.
//!
//! Each stream of an HTTP/2 connection is a task, and each wakes the one task that writes. The
//! executor runs a task that was just woken before those that wait already, and h2 flushes every
//! frame of more than a few bytes by itself: an event for two hundred watches of one client would be
//! two hundred TLS records and two hundred calls of the system. So the task that writes lets everybody
//! who is ready go first, and what it writes goes out when it has nothing more to write.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf};

/// Bytes that are collected before they are written in any case: what one TLS record holds (RFC 8446,
/// section 5.1).
const RECORD_BYTES: usize = 16 * 1024;

/// A stream that whoever writes into it cannot flush: the [`Together`] of its connection does. Clones
/// are the same stream.
pub(crate) struct Collected<S>(Arc<Mutex<BufWriter<S>>>);

impl<S: AsyncWrite> Collected<S> {
    pub(crate) fn new(stream: S) -> Self {
        Collected(Arc::new(Mutex::new(BufWriter::with_capacity(
            RECORD_BYTES,
            stream,
        ))))
    }
}

impl<S> Clone for Collected<S> {
    fn clone(&self) -> Self {
        Collected(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Collected<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Collected<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.lock()).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.lock()).poll_shutdown(context)
    }
}

/// A connection over a [`Collected`] stream, if there is one: polled after the tasks that were ready
/// when it was woken, and flushed once it has written what they gave it.
pub(crate) struct Together<C, S> {
    connection: C,
    stream: Option<Collected<S>>,
    /// Whether the others had their turn since the last poll.
    waited: bool,
}

impl<C, S> Together<C, S> {
    pub(crate) fn new(connection: C, stream: Option<Collected<S>>) -> Self {
        Together {
            connection,
            stream,
            waited: false,
        }
    }

    pub(crate) fn get_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<C: Future + Unpin, S: AsyncWrite + Unpin> Future for Together<C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let this = &mut *self;
        let Some(stream) = &this.stream else {
            return Pin::new(&mut this.connection).poll(context);
        };
        this.waited = !this.waited;
        if this.waited {
            // A task that wakes itself goes to the end of the queue.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut this.connection).poll(context);
        if polled.is_pending() {
            // If it does not go out now, this task is woken when it can; if it never will, the
            // connection sees that when it reads.
            let _ = Pin::new(&mut *stream.0.lock()).poll_flush(context);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A connection that writes a letter for each message, and flushes after each, as h2 does.
    async fn letters(
        mut stream: Collected<tokio::io::DuplexStream>,
        mut messages: tokio::sync::mpsc::UnboundedReceiver<()>,
    ) -> io::Result<()> {
        while messages.recv().await.is_some() {
            stream.write_all(b"x").await?;
            stream.flush().await?;
        }
        stream.shutdown().await
    }

    #[test]
    fn what_many_tasks_give_at_once_arrives_in_one_piece() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let pieces = runtime.block_on(async {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            let stream = Collected::new(near);
            let connection = Box::pin(letters(stream.clone(), receiver));
            tokio::spawn(async move {
                // In one poll, so that all are ready before any of them runs.
                for _ in 0..100 {
                    let sender = sender.clone();
                    tokio::spawn(async move { sender.send(()).is_ok() });
                }
                drop(sender);
                Together::new(connection, Some(stream)).await
            });
            let reading = tokio::spawn(async move {
                let (mut pieces, mut buffer) = (Vec::new(), [0; 1000]);
                while let Ok(length @ 1..) = far.read(&mut buffer).await {
                    pieces.push(length);
                }
                pieces
            });
            reading.await.expect("a reader")
        });
        assert_eq!(pieces, [100]);
    }

    #[tokio::test]
    async fn what_is_written_goes_out_without_an_end() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let stream = Collected::new(near);
        let connection = Box::pin(letters(stream.clone(), receiver));
        tokio::spawn(Together::new(connection, Some(stream)));
        for _ in 0..3 {
            sender.send(()).expect("a connection");
            let letter = tokio::time::timeout(Duration::from_secs(10), far.read_u8());
            let letter = letter.await.expect("it goes out");
            assert_eq!(letter.expect("a letter"), b'x');
        }
    }

    #[tokio::test]
    async fn who_reads_slowly_gets_everything() {
        let (near, mut far) = tokio::io::duplex(7);
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let stream = Collected::new(near);
        let connection = Box::pin(letters(stream.clone(), receiver));
        let serving = tokio::spawn(Together::new(connection, Some(stream)));
        for _ in 0..100_000 {
            sender.send(()).expect("a connection");
        }
        drop(sender);
        let mut all = Vec::new();
        far.read_to_end(&mut all).await.expect("the rest");
        assert_eq!(all.len(), 100_000);
        serving.await.expect("an end").expect("a good end");
    }
}
