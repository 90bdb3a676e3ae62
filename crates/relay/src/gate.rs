//! How much a peer may send before it is known. A WebSocket buffers a whole frame before anybody can look at its length,
//! and its cap has to be that of clients that are logged in; this one lies below it, on the bytes of the connection.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::BYTES_BEFORE_LOGIN;

/// Counts nothing.
const OPEN: usize = usize::MAX;

/// What a connection may still send; open until [`Gate::arm`].
pub(crate) struct Gate(AtomicUsize);

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(OPEN)))
    }

    /// From now on [`BYTES_BEFORE_LOGIN`] bytes may come, and what one read brings past them.
    pub(crate) fn arm(&self) {
        self.0.store(BYTES_BEFORE_LOGIN, Ordering::Release);
    }

    /// The peer is known.
    pub(crate) fn open(&self) {
        self.0.store(OPEN, Ordering::Release);
    }

    fn count(&self, bytes: usize) {
        let less = |left: usize| (left != OPEN).then(|| left.saturating_sub(bytes));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }
}

/// A stream behind a gate.
pub(crate) struct Gated<S> {
    stream: S,
    gate: Arc<Gate>,
}

impl<S> Gated<S> {
    pub(crate) fn new(stream: S, gate: Arc<Gate>) -> Self {
        Self { stream, gate }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.gate.0.load(Ordering::Acquire) == 0 {
            return Poll::Ready(Err(io::Error::other("too big: the peer has to log in first")));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.gate.count(buf.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn an_armed_gate_lets_its_bytes_through_and_then_no_more_until_it_opens() {
        let gate = Gate::new();
        let bytes = vec![7_u8; 4 * BYTES_BEFORE_LOGIN];
        let mut stream = Gated::new(&bytes[..], gate.clone());
        let mut most = vec![0; BYTES_BEFORE_LOGIN];
        stream.read_exact(&mut most).await.unwrap();
        gate.arm();
        stream.read_exact(&mut most).await.unwrap();
        assert!(stream.read_u8().await.is_err(), "one more");
        gate.open();
        assert_eq!(stream.read_u8().await.unwrap(), 7);
    }
}
