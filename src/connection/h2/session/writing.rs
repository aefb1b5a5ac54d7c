//! How an answer's body goes out: as the client makes room for it, or, where others wait for the answer, ahead of that.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_timeout::timeout;

use super::{Session, broken, no_head, over};

impl Session {
    /// Waits until some octets may be sent.
    async fn room(&mut self, wanted: usize) -> Result<usize> {
        // Pingora does not read while it writes.
        self.body.pauses();
        let (cut, writer) = (&self.cut, &mut self.writer);
        let writer = writer.as_mut().ok_or_else(no_head)?;
        writer.reserve_capacity(wanted);
        if writer.capacity() > 0 {
            return Ok(writer.capacity());
        }
        let room = poll_fn(|cx| {
            // Also where only the backend's socket was shut down: who takes an octet now and then would never meet the end.
            if cut.was_shut_down() {
                return Poll::Ready(Err(over()));
            }
            match writer.poll_capacity(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(0))) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(Some(Ok(room))) => Poll::Ready(Ok(room)),
                Poll::Ready(Some(Err(e))) => Poll::Ready(Err(broken(e, ErrorType::WriteError))),
                Poll::Ready(None) => Poll::Ready(Error::e_explain(
                    ErrorType::WriteError,
                    "the stream is closed",
                )),
            }
        });
        match self.times.write {
            None => room.await,
            Some(limit) => timeout(limit, room).await.unwrap_or_else(|_| {
                Error::e_explain(ErrorType::WriteTimedout, "the client does not read")
            }),
        }
    }

    /// Sends what is kept for the client, and then this.
    pub(super) async fn send_all(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.send_behind().await?;
        self.send(data, end).await
    }

    /// Sends what is kept for the client.
    pub(super) async fn send_behind(&mut self) -> Result<()> {
        while let Some(data) = self.behind.pop_front() {
            self.send(data, false).await?;
        }
        Ok(())
    }

    /// Sends a piece of the answer as the client makes room for it.
    async fn send(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        while !data.is_empty() && !self.ended {
            let room = self.room(data.len()).await?;
            let piece = data.split_to(room.min(data.len()));
            let is_last = end && data.is_empty();
            self.send_piece(piece, is_last)?;
        }
        Ok(())
    }

    fn send_piece(&mut self, piece: Bytes, is_last: bool) -> Result<()> {
        let len = piece.len();
        let writer = self.writer.as_mut().ok_or_else(no_head)?;
        writer
            .send_data(piece, is_last)
            .or_err(ErrorType::WriteError, "the answer's body is not sent")?;
        self.sent += len;
        self.ended = is_last;
        Ok(())
    }

    /// Sends what there is room for, while nothing else is written; for a client that has reset the stream nothing is kept.
    pub(super) fn poll_behind(&mut self, cx: &mut Context<'_>) {
        if self.behind.is_empty() || self.cut.ahead.room().is_none() {
            return;
        }
        if self.is_reset {
            self.behind = VecDeque::new();
            return;
        }
        self.send_ahead();
        while let (false, Some(writer)) = (self.behind.is_empty(), &mut self.writer) {
            let Poll::Ready(Some(Ok(1..))) = writer.poll_capacity(cx) else {
                return;
            };
            self.send_ahead();
        }
    }

    /// Sends what there is room for. That a client has gone shows at the end.
    pub(super) fn send_ahead(&mut self) {
        while let Some(mut data) = self.behind.pop_front() {
            let Some(writer) = &mut self.writer else {
                return self.behind.push_front(data);
            };
            writer.reserve_capacity(data.len());
            let room = writer.capacity().min(data.len());
            let piece = data.split_to(room);
            let is_sent = piece.is_empty() || self.send_piece(piece, false).is_ok();
            if !is_sent || !data.is_empty() {
                return self.behind.push_front(data);
            }
        }
    }
}
