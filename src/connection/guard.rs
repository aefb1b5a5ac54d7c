//! A connection while a request is served that needs care: the framing of a chunked body is checked on its way to
//! Pingora, a body must not come too slowly, a client that resets the connection does not take back what it has asked
//! for, what becomes a WebSocket is followed, and an exchange ends from here where it cannot at its backend's socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::{SslDigest, TlsRef};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Cut;
use super::ahead::Untaken;
use super::pace::{MinRate, Pace, TooSlow};
use super::websocket::{Link, Relay};
use crate::admit::chunks::{ChunkFault, ChunkReader};
use crate::admit::head::Head;

/// Reads fail with [`io::ErrorKind::InvalidData`] once the framing is broken, and with [`io::ErrorKind::TimedOut`] once
/// the body has come too slowly.
#[derive(Debug)]
pub struct Guard {
    stream: Stream,
    body: Body,
    pace: Option<Pace>,
    /// A reset counts as the end of what the client sends: within a body that is an error still, behind it the request
    /// goes on, as it does for a client that only ended its side.
    survives_reset: bool,
    /// Where backends are spoken to on connections that requests share.
    cut: Option<Arc<Cut>>,
    /// Where something is changed: its answer may have to be held, or finished for nobody.
    answer: Option<Arc<Cut>>,
    /// Where answers are kept: what the client has not taken of one that others wait for.
    ahead: Option<(Arc<Cut>, Untaken)>,
    /// The client asks for another protocol.
    relay: Option<Relay>,
    /// What came behind the request.
    behind: Behind,
}

/// Pingora stops reading once it has seen something behind a request, and would not hear that the exchange is over. So
/// where that is told by reading it does not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Nothing,
    /// The client has ended its side. What it has asked for is done all the same.
    End,
    /// The next request. It is not kept.
    More,
}

/// What a request needs beside its connection.
pub struct Needs {
    /// It has followed what was read of it already.
    pub body: Body,
    pub rate: Option<MinRate>,
    pub survives_reset: bool,
    pub cut: Option<Arc<Cut>>,
    pub answer: Option<Arc<Cut>>,
    /// Its answer may be one that others wait for.
    pub ahead: Option<(Arc<Cut>, Duration)>,
    pub relay: Option<Relay>,
}

/// What is to come of a request's body.
#[derive(Debug)]
pub enum Body {
    Sized { left: u64 },
    Chunked(ChunkReader),
}

impl Guard {
    pub fn wrap(stream: Stream, needs: Needs) -> Stream {
        let Needs {
            body,
            rate,
            survives_reset,
            cut,
            answer,
            ahead,
            relay,
        } = needs;
        let is_whole = body.is_whole();
        if is_whole && !survives_reset && cut.is_none() && ahead.is_none() && relay.is_none() {
            return stream;
        }
        Box::new(Self {
            stream,
            body,
            pace: rate.filter(|_| !is_whole).map(Pace::new),
            survives_reset,
            cut,
            answer,
            ahead: ahead
                .filter(|_| relay.is_none())
                .map(|(cut, patience)| (cut, Untaken::new(patience))),
            relay,
            behind: Behind::Nothing,
        })
    }

    /// Where a WebSocket can begin: what is known of it.
    pub fn link(stream: &Stream) -> Option<&Arc<Link>> {
        let guard = stream.as_any().downcast_ref::<Self>()?;
        guard.relay.as_ref().map(Relay::link)
    }

    /// The connection itself, once the request is over, and whether it ends with it: some of the next one came and was not
    /// kept, or of the answer.
    pub fn unwrap(stream: Stream) -> (Stream, bool) {
        if !stream.as_any().is::<Self>() {
            return (stream, false);
        }
        match stream.into_any().downcast::<Self>() {
            // Pingora has flushed it. What is kept all the same for a client is lost: then nothing comes behind it.
            Ok(guard) => {
                let ends = guard.behind == Behind::More || guard.keeps_something();
                (guard.stream, ends)
            }
            Err(_) => unreachable!("it was looked at just now"),
        }
    }
}

impl Guard {
    /// # Errors
    /// When the exchange is over, and has to end here.
    fn ask_cut(&self) -> io::Result<()> {
        match self.cut.as_ref().is_some_and(|cut| cut.is_over_here()) {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(()),
        }
    }

    fn begin_write(&mut self) -> io::Result<()> {
        self.pauses();
        self.ask_cut()
    }

    /// For its client, of an answer that others waited for.
    fn keeps_something(&self) -> bool {
        let kept = self.ahead.as_ref().map(|(_, kept)| kept);
        kept.is_some_and(|kept| !kept.is_empty())
    }

    /// Whether what comes now stands behind the request, and is not for Pingora.
    fn holds_back(&self) -> bool {
        self.cut.is_some() && self.relay.is_none() && self.body.is_whole()
    }

    /// Follows what has come. Nothing is waited for behind the end.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<()> {
        let well_formed = self.body.read(bytes);
        well_formed.map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault.0))?;
        if self.body.is_whole() {
            self.pace = None;
        }
        match &mut self.pace {
            Some(pace) => Ok(pace.arrived(bytes.len())?),
            None => Ok(()),
        }
    }

    /// Pingora does not read while it writes.
    fn pauses(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.pauses();
        }
    }

    fn poll_held(&self, cx: &Context<'_>) -> Poll<()> {
        let answer = self.answer.as_ref();
        answer.map_or(Poll::Ready(()), |cut| cut.poll_held(cx))
    }

    /// Nobody is there to take it, and it is to go on all the same.
    fn is_finished_anyway(&self) -> bool {
        let answer = self.answer.as_ref();
        self.body.is_whole() && answer.is_some_and(|cut| cut.is_finished_anyway())
    }

    fn or_to_nobody<T>(&self, done: Poll<io::Result<T>>, all: T) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(Err(_)) if self.is_finished_anyway() => Poll::Ready(Ok(all)),
            done => done,
        }
    }
}

impl From<TooSlow> for io::Error {
    fn from(TooSlow: TooSlow) -> Self {
        // As the log has it.
        Self::new(io::ErrorKind::TimedOut, "the body came too slowly")
    }
}

// === impl Body ===

impl Body {
    /// All of it.
    pub fn of(head: &Head) -> Self {
        match head.chunked {
            true => Self::Chunked(ChunkReader::default()),
            false => Self::Sized { left: head.length },
        }
    }

    /// # Errors
    /// When the framing is broken.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), ChunkFault> {
        match self {
            Self::Sized { left } => {
                *left = left.saturating_sub(bytes.len() as u64);
                Ok(())
            }
            Self::Chunked(chunks) => chunks.read(bytes),
        }
    }

    fn is_whole(&self) -> bool {
        match self {
            Self::Sized { left } => *left == 0,
            Self::Chunked(chunks) => chunks.is_at_end(),
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ask_cut()?;
        if let Self {
            stream,
            ahead: Some((cut, kept)),
            ..
        } = &mut *self
            && cut.ahead.room().is_some()
        {
            // What there is room for now goes out, although nothing more is written.
            kept.send(stream, cx);
        }
        if self.behind != Behind::Nothing {
            return Poll::Pending; // the moment wakes the task
        }
        let Self { stream, relay, .. } = &mut *self;
        if let Some(relay) = relay
            && let Some(read) = relay.poll_read(stream, cx, buf)
        {
            return read;
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, buf) else {
            return match self.pace.as_mut().map_or(Ok(()), Pace::waits) {
                Ok(()) => Poll::Pending,
                Err(slow) => Poll::Ready(Err(slow.into())),
            };
        };
        let ahead = self.ahead.as_ref();
        let outlives = ahead.is_some_and(|(cut, _)| cut.ahead.outlives_client());
        match read {
            // With TLS an end without a farewell is an error too (RFC 8446, section 6.1).
            Err(e)
                if (self.survives_reset && self.is_finished_anyway())
                    || ((self.survives_reset || outlives)
                        && matches!(
                            e.kind(),
                            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
                        )) => {}
            other => other?,
        }
        if let Some(relay) = self.relay.as_ref().filter(|_| buf.filled().len() > before) {
            relay.has_read()?;
        }
        if self.holds_back() {
            self.behind = match buf.filled().len() == before {
                true => Behind::End,
                false => Behind::More,
            };
            // A client that only reads is gone, and Pingora is to know; so is one whose going is listened for.
            let is_told = self.cut.as_ref().is_some_and(|cut| cut.gone.is_told());
            let survives = self.survives_reset && !is_told;
            if self.behind == Behind::More || survives || outlives {
                buf.set_filled(before);
                return Poll::Pending;
            }
        }
        Poll::Ready(self.follow(&buf.filled()[before..]))
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.poll_held(cx).is_pending() {
            return Poll::Pending;
        }
        self.begin_write()?;
        let Self {
            stream,
            relay,
            ahead,
            ..
        } = &mut *self;
        let written = match (relay, ahead) {
            (Some(relay), _) => relay.poll_write(stream, cx, buf),
            (None, Some((cut, kept))) => kept.poll_write(cut.ahead.room(), stream, cx, buf),
            (None, None) => Pin::new(stream).poll_write(cx, buf),
        };
        self.or_to_nobody(written, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream,
            relay,
            ahead,
            ..
        } = &mut *self;
        let flushed = match (relay, ahead) {
            (Some(relay), _) => relay.poll_flush(stream, cx),
            (None, Some((cut, kept))) => kept.poll_flush(cut.ahead.room(), stream, cx),
            (None, None) => Pin::new(stream).poll_flush(cx),
        };
        self.or_to_nobody(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.relay.is_some() || self.ahead.is_some() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[], |buf| buf));
        }
        if self.poll_held(cx).is_pending() {
            return Poll::Pending;
        }
        self.begin_write()?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.or_to_nobody(written, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.relay.is_none() && self.ahead.is_none() && self.stream.is_write_vectored()
    }
}

// === what Pingora asks of a connection: the inner one knows ===

#[async_trait]
impl Shutdown for Guard {
    async fn shutdown(&mut self) {
        if let Some(relay) = &mut self.relay {
            relay.shutdown(&mut self.stream).await;
        }
        self.stream.shutdown().await;
    }
}

#[async_trait]
impl Peek for Guard {}

impl UniqueID for Guard {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for Guard {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for Guard {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for Guard {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }
}

impl GetSocketDigest for Guard {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }
}
