//! The bytes of a WebSocket as they go by on the client's side, with what is put between its frames when it has to end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::frames::{self, Fault, Frames, Rest, Rules, Side};
use super::{Link, Terms, Why};

/// Beside the stream of a connection that asked to become a WebSocket.
#[derive(Debug)]
pub struct Relay {
    link: Arc<Link>,
    /// What there is still to say of the end of a body that is awaited: see [`Link::ask`].
    end: &'static [u8],
    /// Once it has become one.
    open: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    /// How much of the end of the answer's head has been seen; the frames come behind it.
    head: usize,
    /// From the client.
    incoming: Way,
    /// To the client.
    outgoing: Way,
    /// The client has ended its side.
    client_gone: bool,
    /// Both sides are being told.
    why: Option<Why>,
}

/// One direction.
#[derive(Debug)]
struct Way {
    frames: Frames,
    /// A header that is not whole yet. None of it has passed.
    held: Vec<u8>,
    /// To be written before anything else: such a header, whole, or a Close of ours.
    staged: Vec<u8>,
    /// A Close of ours was put in.
    told: bool,
    /// Its own Close has passed.
    has_closed: bool,
    /// Nobody knows where its next frame begins.
    lost: bool,
}

/// For what is put into a read at most: a header that was held back and a byte behind it, or a Close of ours.
const LEAST_ROOM: usize = 64;

const END_OF_HEAD: &[u8; 4] = b"\r\n\r\n";

/// At the very end: for the Close to be taken, and for the client to end its side, so that it can read it.
const LAST_WRITE: Duration = Duration::from_millis(100);
const LINGER: Duration = Duration::from_millis(500);

// === impl Relay ===

impl Relay {
    /// `early`: something stands behind the request already.
    pub fn new(early: bool) -> Self {
        let link = Link::default();
        link.is_early.store(early, SeqCst);
        Self {
            link: Arc::new(link),
            end: b"0\r\n\r\n",
            open: None,
        }
    }

    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The client sent something. Before the answer to a handshake that is too early.
    ///
    /// # Errors
    /// While it is awaited.
    pub fn has_read(&self) -> io::Result<()> {
        self.link.is_early.store(true, SeqCst);
        match self.link.is_awaited() {
            true => Err(io::ErrorKind::InvalidData.into()),
            false => Ok(()),
        }
    }

    /// `None`: it is no WebSocket yet, or never will be.
    pub fn poll_read(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Option<Poll<io::Result<()>>> {
        if self.link.is_declined() && !self.end.is_empty() {
            let (now, later) = self.end.split_at(self.end.len().min(buf.remaining()));
            buf.put_slice(now);
            self.end = later;
            return Some(Poll::Ready(Ok(())));
        }
        let (open, link, terms) = self.opened()?;
        Some(open.read(link, terms, stream, cx, buf))
    }

    pub fn poll_write(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.opened() {
            Some((open, link, terms)) => open.write(link, terms, stream, cx, data),
            None => Pin::new(stream).poll_write(cx, data),
        }
    }

    pub fn poll_flush(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(open) = &mut self.open {
            ready!(open.outgoing.drain(stream, cx))?;
        }
        Pin::new(stream).poll_flush(cx)
    }

    /// The last moment in which the client can be told why it ends, where it was not told before.
    pub async fn shutdown(&mut self, stream: &mut Stream) {
        let Some((open, link, terms)) = self.opened() else {
            return;
        };
        open.look(terms);
        let Some(why) = open.why else {
            return;
        };
        open.stage_close(why, link);
        let staged = std::mem::take(&mut open.outgoing.staged);
        let told = async {
            stream.write_all(&staged).await?;
            stream.flush().await?;
            stream.shutdown().await
        };
        // What it still sends is read: a reset would take the Close away from it.
        if let Ok(Ok(())) = tokio::time::timeout(LAST_WRITE, told).await
            && !open.client_gone
        {
            let mut scrap = [0; 4096];
            let ends = async { while stream.read(&mut scrap).await.is_ok_and(|n| n > 0) {} };
            let _ = tokio::time::timeout(LINGER, ends).await;
        }
    }

    fn opened(&mut self) -> Option<(&mut Open, &Link, &Terms)> {
        let terms = self.link.terms.get()?;
        let open = self.open.get_or_insert_with(|| Box::new(Open::new(terms)));
        Some((open, &self.link, terms))
    }
}

// === impl Open ===

impl Open {
    fn new(terms: &Terms) -> Self {
        let way = |of| {
            Way::new(Rules {
                of,
                deflate: terms.deflate,
                largest: terms.max_frame,
            })
        };
        Self {
            head: 0,
            incoming: way(Side::Client),
            outgoing: way(Side::Server),
            client_gone: false,
            why: None,
        }
    }

    /// From the client to the backend. Nothing read is the end.
    fn read(
        &mut self,
        link: &Link,
        terms: &Terms,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() < LEAST_ROOM {
            return Poll::Ready(Err(io::Error::other("the buffer is too small for a frame")));
        }
        loop {
            self.look(terms);
            if terms.cut.was_shut_down() {
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = self.why {
                self.tell_client(why, link, stream, cx)?;
                if self.incoming.can_be_told() {
                    let (code, reason) = why.close(Side::Server);
                    buf.put_slice(&frames::close(
                        code,
                        reason,
                        Some(fastrand::u32(..).to_ne_bytes()),
                    ));
                    self.incoming.told = true;
                    return Poll::Ready(Ok(()));
                }
                if self.is_over() {
                    return Poll::Ready(Ok(()));
                }
            }
            let before = buf.filled().len();
            buf.put_slice(&self.incoming.held);
            let start = buf.filled().len();
            let polled = Pin::new(&mut *stream).poll_read(cx, buf);
            let end = buf.filled().len();
            if !matches!(polled, Poll::Ready(Ok(()))) || end == start {
                buf.set_filled(before);
                self.client_gone |= polled.is_ready();
                return polled;
            }
            link.received.fetch_add((end - start) as u64, Relaxed);
            let fault = {
                let (passed, fault) = self.incoming.take_in(&buf.filled()[before..], self.why);
                buf.set_filled(before + passed);
                fault
            };
            if let Some(code) = self.incoming.frames.closed() {
                link.note_close(code);
            }
            match fault {
                Some(fault) => self.fail(Side::Client, fault, terms),
                None => self.is_alive(terms),
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// From the backend to the client.
    fn write(
        &mut self,
        link: &Link,
        terms: &Terms,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.head < END_OF_HEAD.len() {
            return self.write_head(stream, cx, data);
        }
        self.look(terms);
        if terms.cut.was_shut_down() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        ready!(self.outgoing.drain(stream, cx))?;
        if let Some(why) = self.why {
            self.tell_client(why, link, stream, cx)?;
        }
        if self.outgoing.told || self.outgoing.lost || self.outgoing.frames.closed().is_some() {
            self.outgoing.swallow(data);
            return Poll::Ready(Ok(data.len()));
        }
        if !self.outgoing.held.is_empty() {
            return Poll::Ready(Ok(self.complete_header(data, link, terms)));
        }
        let mut after = self.outgoing.frames;
        let (mut passed, fault) = after.walk(data, Rest::Hold);
        let left = self.outgoing.frames.left();
        if self.why.is_some() && left > 0 {
            // The frame at hand, and no other.
            passed = passed.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if passed == 0 {
            match fault {
                Some(fault) => self.fail(Side::Server, fault, terms),
                None => self.outgoing.held.extend_from_slice(data),
            }
            return Poll::Ready(Ok(data.len()));
        }
        let n = ready!(Pin::new(stream).poll_write(cx, &data[..passed]))?;
        self.outgoing.frames.walk(&data[..n], Rest::Pass);
        self.has_sent(n, link, terms);
        Poll::Ready(Ok(n))
    }

    /// The answer's own head, and those of informational answers before it.
    fn write_head(
        &mut self,
        stream: &mut Stream,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut seen = self.head;
        let mut end = 0;
        while end < data.len() && seen < END_OF_HEAD.len() {
            seen = match data[end] {
                b if b == END_OF_HEAD[seen] => seen + 1,
                b'\r' => 1,
                _ => 0,
            };
            end += 1;
        }
        let n = ready!(Pin::new(stream).poll_write(cx, &data[..end]))?;
        self.head = data[..n].iter().fold(self.head, |seen, &b| match b {
            b if b == END_OF_HEAD[seen] => seen + 1,
            b'\r' => 1,
            _ => 0,
        });
        Poll::Ready(Ok(n))
    }

    /// Takes what is missing of the header that was held back, and lets it pass. Returns how much that was.
    fn complete_header(&mut self, data: &[u8], link: &Link, terms: &Terms) -> usize {
        let way = &mut self.outgoing;
        for (i, byte) in data.iter().enumerate() {
            way.held.push(*byte);
            let mut after = way.frames;
            let (passed, fault) = after.walk(&way.held, Rest::Hold);
            if let Some(fault) = fault {
                self.fail(Side::Server, fault, terms);
                return data.len();
            }
            if passed > 0 {
                way.frames = after;
                way.staged.append(&mut way.held);
                self.has_sent(passed, link, terms);
                return i + 1;
            }
        }
        data.len()
    }

    fn has_sent(&mut self, n: usize, link: &Link, terms: &Terms) {
        link.sent.fetch_add(n as u64, Relaxed);
        if let Some(code) = self.outgoing.frames.closed() {
            self.outgoing.has_closed = true;
            link.note_close(code);
        }
        self.is_alive(terms);
    }

    fn is_alive(&self, terms: &Terms) {
        if self.why.is_none() {
            terms.cut.move_to(Instant::now() + terms.idle);
        }
    }

    /// Whether somebody else has ended it.
    fn look(&mut self, terms: &Terms) {
        if self.why.is_none() {
            self.why = terms.cut.ordered().map(Why::End);
        }
    }

    fn fail(&mut self, of: Side, fault: Fault, terms: &Terms) {
        self.way(of).lost = true;
        if self.why.is_none() {
            self.why = Some(Why::Fault(of, fault));
            terms.cut.close();
        }
    }

    fn way(&mut self, of: Side) -> &mut Way {
        match of {
            Side::Client => &mut self.incoming,
            Side::Server => &mut self.outgoing,
        }
    }

    /// Says to the client that it ends, as soon as no frame is under way.
    fn tell_client(
        &mut self,
        why: Why,
        link: &Link,
        stream: &mut Stream,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        self.stage_close(why, link);
        if self.outgoing.told
            && let Poll::Ready(outcome) = self.outgoing.drain(stream, cx)
        {
            outcome?;
            if let Poll::Ready(outcome) = Pin::new(stream).poll_flush(cx) {
                outcome?;
            }
        }
        Ok(())
    }

    fn stage_close(&mut self, why: Why, link: &Link) {
        if self.head == END_OF_HEAD.len() && self.outgoing.can_be_told() {
            let (code, reason) = why.close(Side::Client);
            link.note_close(code);
            self.outgoing
                .staged
                .extend(frames::close(code, reason, None));
            self.outgoing.told = true;
        }
    }

    /// Both sides were told, and both have answered.
    fn is_over(&self) -> bool {
        let is_told = |way: &Way| way.told || way.has_closed;
        is_told(&self.incoming)
            && is_told(&self.outgoing)
            && self.incoming.frames.closed().is_some()
            && self.outgoing.frames.closed().is_some()
            && self.outgoing.staged.is_empty()
    }
}

// === impl Way ===

impl Way {
    fn new(rules: Rules) -> Self {
        Self {
            frames: Frames::new(rules),
            held: Vec::new(),
            staged: Vec::new(),
            told: false,
            has_closed: false,
            lost: false,
        }
    }

    /// Whether a Close of ours may be put in now. What is held of a header will never pass.
    fn can_be_told(&self) -> bool {
        !self.told && !self.has_closed && self.staged.is_empty() && self.frames.is_between()
    }

    /// What was read, with what was held before it. Returns how much of it passes.
    fn take_in(&mut self, data: &[u8], why: Option<Why>) -> (usize, Option<Fault>) {
        self.held.clear();
        if self.lost {
            return (0, None);
        }
        let left = self.frames.left();
        let was_closed = self.frames.closed().is_some();
        let (passed, fault) = self.frames.walk(data, Rest::Hold);
        if fault.is_none() && self.frames.closed().is_none() {
            self.held.extend_from_slice(&data[passed..]);
        }
        let closes = !was_closed && self.frames.closed().is_some();
        if why.is_none() {
            self.has_closed |= closes;
            return (passed, fault);
        }
        // The frame at hand, and no other: the rest is only looked at for its Close.
        self.lost |= fault.is_some();
        let left = if self.told { 0 } else { left };
        (
            passed.min(usize::try_from(left).unwrap_or(usize::MAX)),
            None,
        )
    }

    /// What comes after a Close does not pass; but the answer to one of ours is waited for.
    fn swallow(&mut self, data: &[u8]) {
        let (_, fault) = match self.held.is_empty() {
            true => self.take_in(data, None),
            false => self.take_in(&[&self.held[..], data].concat(), None),
        };
        self.lost |= fault.is_some();
    }

    fn drain(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.staged.is_empty() {
            let n = ready!(Pin::new(&mut *stream).poll_write(cx, &self.staged))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.staged.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
