//! An answer that others wait for is read from its backend as fast as that gives it, however slowly the client takes it that
//! happened to ask first; and it is read to its end, although that client has gone. What the client has not taken is kept
//! for it meanwhile, in as much room as the largest answer that the cache keeps.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use pingora::protocols::Stream;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

/// What a request says to its connection. Both are the same task: the atomics only make it `Sync`.
#[derive(Debug, Default)]
pub struct Ahead {
    /// [`WITH`], [`WITHOUT`] or [`AHEAD`].
    state: AtomicU8,
    /// Octets that may be kept for the client.
    room: AtomicUsize,
}

/// The exchange is over when the client is gone.
const WITH: u8 = 0;
/// It is not.
const WITHOUT: u8 = 1;
/// Nor does it wait for the client.
const AHEAD: u8 = 2;

/// For heads and the framing of bodies, beside the octets that are asked for.
const FRAMING: usize = 64 << 10;

// === impl Ahead ===

impl Ahead {
    /// Others may wait for what is asked for: it goes on without its client.
    pub fn outlive_client(&self) {
        self.state.store(WITHOUT, Relaxed);
    }

    /// They do not wait for the client either, which up to so many octets are kept for.
    pub fn run(&self, octets: usize) {
        self.room.store(octets.saturating_add(FRAMING), Relaxed);
        self.state.store(AHEAD, Relaxed);
    }

    /// From now on it is the client's own.
    pub fn end(&self) {
        self.state.store(WITH, Relaxed);
    }

    pub fn outlives_client(&self) -> bool {
        self.state.load(Relaxed) != WITH
    }

    /// How many octets may be kept, if any.
    pub fn room(&self) -> Option<usize> {
        (self.state.load(Relaxed) == AHEAD).then(|| self.room.load(Relaxed))
    }
}

/// What an HTTP/1 client has not taken yet.
#[derive(Debug)]
pub struct Untaken {
    octets: BytesMut,
    /// The client is gone: nothing more is kept for it.
    is_gone: bool,
    /// How long it may take nothing of what is kept.
    patience: Duration,
    /// Since it took something.
    stalled: Option<Pin<Box<Sleep>>>,
}

// === impl Untaken ===

impl Untaken {
    pub fn new(patience: Duration) -> Self {
        Self {
            octets: BytesMut::new(),
            is_gone: false,
            patience,
            stalled: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.octets.is_empty() && !self.is_gone
    }

    /// Takes what is written; at once, as long as there is room.
    pub fn poll_write(
        &mut self,
        room: Option<usize>,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = self.poll_send(stream, cx);
        let Some(room) = room else {
            ready!(sent)?;
            return Pin::new(stream).poll_write(cx, buf);
        };
        if let Poll::Ready(Err(_)) = sent {
            self.is_gone = true;
            self.octets = BytesMut::new();
        }
        if self.is_gone {
            return Poll::Ready(Ok(buf.len()));
        }
        if self.octets.is_empty() {
            match Pin::new(stream).poll_write(cx, buf) {
                Poll::Ready(Err(_)) => self.is_gone = true,
                Poll::Ready(Ok(n)) => return Poll::Ready(Ok(n)),
                Poll::Pending => {}
            }
        }
        let free = room.saturating_sub(self.octets.len()).min(buf.len());
        if self.is_gone {
            return Poll::Ready(Ok(buf.len()));
        }
        if free == 0 && !buf.is_empty() {
            return Poll::Pending; // `poll_send` wakes
        }
        self.octets.extend_from_slice(&buf[..free]);
        Poll::Ready(Ok(free))
    }

    /// Does not wait while there is room.
    pub fn poll_flush(
        &mut self,
        room: Option<usize>,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        match (self.poll_send(stream, cx), room) {
            (Poll::Ready(Ok(())), None) => Pin::new(stream).poll_flush(cx),
            (other, None) => other,
            (Poll::Ready(Ok(())), Some(_)) => {
                let _ = Pin::new(stream).poll_flush(cx)?;
                Poll::Ready(Ok(()))
            }
            (Poll::Ready(Err(_)), Some(_)) => {
                self.is_gone = true;
                self.octets = BytesMut::new();
                Poll::Ready(Ok(()))
            }
            (Poll::Pending, Some(_)) => Poll::Ready(Ok(())),
        }
    }

    /// Sends what there is room for, while nothing else is written.
    pub fn send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) {
        if !self.octets.is_empty() {
            // All is well, whatever came of it: the fetch goes on.
            let _ = self.poll_flush(Some(0), stream, cx);
        }
    }

    /// Sends what was kept.
    fn poll_send(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while !self.octets.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, &self.octets) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => {
                    self.octets.advance(sent);
                    self.stalled = None;
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    let patience = self.patience;
                    let since = || Box::pin(tokio::time::sleep(patience));
                    let stalled = self.stalled.get_or_insert_with(since);
                    ready!(stalled.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
