//! What a client sends on its stream behind the head: piece by piece, not too slowly, and kept for another attempt.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use pingora::{Error, ErrorType, Result};

use super::session::broken;
use crate::connection::pace::{MinRate, Pace, TooSlow};

pub struct Body {
    stream: RecvStream,
    /// Its last octet was read.
    has_ended: bool,
    received: usize,
    again: Option<Again>,
    pace: Option<Pace>,
}

/// What was read of it, for another attempt, and for what a policy read before the first.
#[derive(Default)]
struct Again {
    kept: BytesMut,
    is_truncated: bool,
}

/// As Pingora has it for HTTP/1: what policies read beforehand is sent on from here.
const MOST: usize = 64 << 10;

impl Body {
    /// `rate`: of a body that is not a stream of messages, which come when there are some.
    pub fn new(stream: RecvStream, rate: Option<MinRate>) -> Self {
        Self {
            has_ended: false,
            received: 0,
            again: None,
            pace: rate.filter(|_| !stream.is_end_stream()).map(Pace::new),
            stream,
        }
    }

    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        // An empty frame is no piece of a body: Pingora would write it to an HTTP/1 backend as the chunk that ends it, and the
        // end behind it once more, in front of the next request. h2 bounds how many there may be.
        loop {
            let Poll::Ready(data) = self.stream.poll_data(cx) else {
                return match self.pace.as_mut().map_or(Ok(()), Pace::waits) {
                    Ok(()) => Poll::Pending,
                    Err(TooSlow) => Poll::Ready(Err(too_slow())),
                };
            };
            match data {
                None => return Poll::Ready(Ok(None)),
                Some(Err(e)) => return Poll::Ready(Err(broken(e, ErrorType::ReadError))),
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(self.in_time(data).map(Some)),
            }
        }
    }

    fn in_time(&mut self, data: Bytes) -> Result<Bytes> {
        match self.pace.as_mut().map(|pace| pace.arrived(data.len())) {
            Some(Err(TooSlow)) if !self.stream.is_end_stream() => Err(too_slow()),
            _ => Ok(data),
        }
    }

    /// What was read is on its way: the client may send as much again.
    pub fn took(&mut self, piece: Option<&Bytes>) {
        let Some(data) = piece else {
            self.has_ended = true;
            return;
        };
        self.received += data.len();
        if let Some(again) = &mut self.again {
            again.keep(data);
        }
        // It only fails for a stream that is closed: the next read says so.
        let _ = self.stream.flow_control().release_capacity(data.len());
    }

    /// Nobody reads: nobody waits for the client.
    pub fn pauses(&mut self) {
        if let Some(pace) = &mut self.pace {
            pace.pauses();
        }
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended || self.stream.is_end_stream()
    }

    /// Nothing has come, and nothing will.
    pub fn is_nothing(&self) -> bool {
        self.received == 0 && self.stream.is_end_stream()
    }

    pub fn received(&self) -> usize {
        self.received
    }

    pub fn keep(&mut self) {
        self.again.get_or_insert_default();
    }

    pub fn is_truncated(&self) -> bool {
        self.again.as_ref().is_some_and(|again| again.is_truncated)
    }

    pub fn kept(&self) -> Option<Bytes> {
        self.again.as_ref()?.whole()
    }
}

fn too_slow() -> Box<Error> {
    Error::explain(ErrorType::ReadTimedout, "the body came too slowly").into_down()
}

// === impl Again ===

impl Again {
    fn keep(&mut self, data: &[u8]) {
        self.is_truncated |= self.kept.len() + data.len() > MOST;
        match self.is_truncated {
            true => self.kept = BytesMut::new(),
            false => self.kept.extend_from_slice(data),
        }
    }

    fn whole(&self) -> Option<Bytes> {
        let is_whole = !self.is_truncated && !self.kept.is_empty();
        is_whole.then(|| Bytes::copy_from_slice(&self.kept))
    }
}
