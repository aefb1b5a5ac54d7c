//! A connection as h2 reads and writes it: what was read of it before comes first, a [`Meter`] follows, and it ends only when
//! its client has ended its side as well.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::FAULTS;
use super::meter::{Meter, PONG, Signs};
use super::outgoing::Outgoing;
use crate::connection::LINGER_BYTES;

pub struct Wire {
    stream: Stream,
    /// What was read before it was known to be HTTP/2.
    first: BytesMut,
    meter: Meter,
    outgoing: Outgoing,
    signs: Arc<Signs>,
    /// The answer to the PING behind our GOAWAY, which h2 is not to have yet.
    pong: Option<[u8; PONG]>,
    /// Octets that came when nothing was awaited any more.
    discarded: usize,
}

impl Wire {
    pub fn new(stream: Stream, first: BytesMut, signs: Arc<Signs>) -> Self {
        Self {
            stream,
            first,
            meter: Meter::new(),
            outgoing: Outgoing::default(),
            signs,
            pong: None,
            discarded: 0,
        }
    }
}

impl Wire {
    /// Takes the first answer to a PING out of what was read behind `before`, once we leave. Returns whether there was one.
    fn keep_pong(&mut self, buf: &mut ReadBuf<'_>, before: usize) -> bool {
        let may_keep =
            self.signs.is_leaving() && self.pong.is_none() && !self.signs.may_have_pong();
        let Some(at) = self.meter.pong().filter(|_| may_keep) else {
            return false;
        };
        let (at, end) = (before + at, before + at + PONG);
        let filled = buf.filled_mut();
        let mut pong = [0; PONG];
        pong.copy_from_slice(&filled[at..end]);
        filled.copy_within(end.., at);
        let left = filled.len() - PONG;
        buf.set_filled(left);
        self.pong = Some(pong);
        self.signs.pong_came();
        true
    }

    /// Puts it between two frames when its time has come.
    fn give_pong(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let may_give = self.signs.may_have_pong() && self.meter.is_between_frames();
        let Some(pong) = self.pong.take_if(|_| may_give && buf.remaining() >= PONG) else {
            return false;
        };
        buf.put_slice(&pong);
        true
    }

    /// The first so many of these octets were sent.
    fn has_sent(&mut self, octets: usize, bufs: &[io::IoSlice<'_>]) {
        self.meter.sent(octets);
        let mut left = octets;
        for buf in bufs {
            let here = left.min(buf.len());
            self.signs.sent(self.outgoing.write(&buf[..here]));
            left -= here;
        }
    }

    /// Ready when the client has ended its side. A client that reads an answer sends frames meanwhile: closed under them, the
    /// connection would be reset, and what is on its way would be lost. [`Signs::give_up`] bounds it.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scrap = [0; 1024];
        while self.discarded <= LINGER_BYTES && !self.signs.has_given_up() {
            let mut buf = ReadBuf::new(&mut scrap);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                break;
            }
            self.discarded += buf.filled().len();
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Nothing more is wanted of it, or not yet: its connection finds the sign when h2 waits.
        if this.signs.flood().is_some() || this.signs.faults() > FAULTS as u32 {
            return Poll::Pending;
        }
        if this.meter.is_turn_over() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.give_pong(buf) {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.first.is_empty() {
                ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            } else {
                let here = this.first.len().min(buf.remaining());
                buf.put_slice(&this.first[..here]);
                this.first.advance(here);
            }
            this.meter.read(&buf.filled()[before..], &this.signs);
            // Nothing left would look like the end.
            if !this.keep_pong(buf, before) || buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        this.has_sent(sent, &[io::IoSlice::new(buf)]);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        this.has_sent(sent, bufs);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.signs.is_closing() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            this.signs.closes();
        }
        this.poll_end(cx).map(Ok)
    }
}
