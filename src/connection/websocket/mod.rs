//! A connection that becomes a WebSocket: what passes between its client and its backend, as bytes, once both have agreed.
//!
//! Pingora carries the bytes. Here they go by on the client's side, untouched, and only the headers of the frames are
//! followed: so a frame that is none, or is too large, does not pass; and when the connection has to end, both sides are
//! told so by a Close of their own between two frames, and get a moment to answer it (RFC 6455, section 7).

pub mod frames;
mod relay;

use std::sync::atomic::{
    AtomicBool, AtomicU16, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::TRANSFER_ENCODING;
use pingora_proxy::Session;

use super::cut::{Cut, End};
use frames::{ABNORMAL, Fault, Side};
pub(super) use relay::Relay;

/// What the phases of the handshake and the connection tell each other.
#[derive(Debug, Default)]
pub struct Link {
    /// Set once: from then on there are frames.
    terms: OnceLock<Terms>,
    /// The backend is asked.
    asked: AtomicBool,
    /// It does not become one.
    declined: AtomicBool,
    /// The client sent something before it was answered.
    is_early: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
    /// The status code of the first Close; 0: there was none yet.
    code: AtomicU16,
}

/// What was agreed on, and what the route allows.
#[derive(Debug)]
pub struct Terms {
    pub deflate: bool,
    /// Bytes of a frame's payload.
    pub max_frame: u64,
    /// After so long without a byte from either side it ends.
    pub idle: Duration,
    pub cut: Arc<Cut>,
}

/// Why both sides are told that it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    End(End),
    /// Whose frame it was.
    Fault(Side, Fault),
}

impl Link {
    /// A backend is asked.
    ///
    /// Pingora forwards that a request has no body, and takes that for the end of the connection when the backend's 101 was
    /// there before. So it is told of a body that is to come, and finds out that it is empty when there is no 101.
    pub fn ask(&self, session: &mut Session) {
        let framing = |session: &mut Session, chunked: bool| {
            let request = session.as_downstream_mut().req_header_mut();
            match chunked {
                true => drop(request.insert_header(TRANSFER_ENCODING, "chunked")),
                false => drop(request.remove_header(&TRANSFER_ENCODING)),
            }
        };
        framing(session, true);
        // It looks at the fields once.
        session.as_mut().is_body_done();
        framing(session, false);
        // The whole exchange has its deadline.
        session.set_read_timeout(None);
        self.asked.store(true, Relaxed);
    }

    /// It does not become a WebSocket.
    pub fn decline(&self) {
        if self.is_asked() && self.terms.get().is_none() {
            self.declined.store(true, Relaxed);
        }
    }

    pub fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    fn is_declined(&self) -> bool {
        self.declined.load(Relaxed)
    }

    /// Nobody knows yet whether it becomes one.
    fn is_awaited(&self) -> bool {
        self.is_asked() && !self.is_declined() && self.terms.get().is_none()
    }

    /// From the answer's head on, what passes are frames.
    pub fn open(&self, terms: Terms) {
        // There is one answer with 101, and this belongs to it.
        let _ = self.terms.set(terms);
    }

    pub fn is_open(&self) -> bool {
        self.terms.get().is_some()
    }

    /// Whether the client sent more than its request before it was answered. Nobody knows who would read that.
    pub fn is_early(&self) -> bool {
        self.is_early.load(SeqCst)
    }

    /// Bytes of frames from the client.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Bytes of frames to the client.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The status code of the first Close that passed, or was told.
    pub fn close_code(&self) -> u16 {
        match self.code.load(Relaxed) {
            0 => ABNORMAL,
            code => code,
        }
    }

    fn note_close(&self, code: u16) {
        // The first one says why.
        let _ = self.code.compare_exchange(0, code, Relaxed, Relaxed);
    }
}

impl Why {
    /// The status code and the reason for the one of the two.
    fn close(self, to: Side) -> (u16, &'static str) {
        match self {
            Why::End(End::Draining) => (1001, "the gateway restarts"),
            Why::End(End::Idle) => (1001, "idle"),
            Why::End(End::Revoked | End::KeyChanged) => (1008, "the credentials were revoked"),
            Why::End(End::Expired) => (1008, "the credentials have expired"),
            Why::Fault(of, fault) if of == to => match fault {
                Fault::Protocol => (1002, "no WebSocket frame"),
                Fault::TooLarge => (1009, "the frame is too large"),
            },
            // To the backend its client is gone; to the client its backend has failed.
            Why::Fault(Side::Client, _) => (1001, "the client failed"),
            Why::Fault(Side::Server, _) => (1011, "the backend failed"),
        }
    }
}
