//! One run of a write with a key: its answer is taken whole, whoever still waits for it, and written down before its last
//! byte goes to the client.
//!
//! Pingora passes an answer on piece by piece, through filters that cannot wait, and gives it up when its client is gone. So
//! the pieces are held back here until the last has come; the connection lets that one out only when [`Cut::release`] is said,
//! and takes a client that is gone for one that reads ([`Cut::finish_anyway`]).

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use pingora::http::ResponseHeader;

use super::lease::Lease;
use super::record::{Answer, Outcome};
use crate::connection::Cut;

pub struct Run {
    /// Until its end is said.
    lease: Option<Lease>,
    cut: Arc<Cut>,
    /// Bytes of an answer that is kept; 0: none is.
    largest: usize,
    /// Attempts that the service may have acted upon.
    sent: u32,
    /// The answer so far, and its body.
    answer: Option<(Answer, BytesMut)>,
}

/// Where the log has it.
const LOG: &str = "api_gateway::admit::idempotency";

/// Lets the last byte out, also when what it waits for comes to nothing.
struct Held(Arc<Cut>);

impl Run {
    pub fn begin(lease: Lease, largest: usize, cut: Arc<Cut>) -> Self {
        cut.finish_anyway();
        Self {
            lease: Some(lease),
            cut,
            largest,
            sent: 0,
            answer: None,
        }
    }

    /// An attempt is about to be sent.
    pub fn sends(&mut self) {
        self.sent += 1;
    }

    /// Its instance has said that it did nothing.
    pub fn was_not_processed(&mut self) {
        self.sent = self.sent.saturating_sub(1);
    }

    /// The answer of an attempt after which another one follows.
    pub fn goes_on(&mut self, head: &ResponseHeader) {
        if super::is_undone(head.status, &head.headers) {
            self.was_not_processed();
        }
    }

    /// The head of the answer that the client gets.
    pub async fn answered(&mut self, head: &ResponseHeader) {
        if super::is_undone(head.status, &head.headers) {
            // It speaks of the last attempt alone: an earlier one may have done it.
            match self.lease.take() {
                Some(lease) if self.sent <= 1 => {
                    lease.forget().await;
                }
                Some(lease) => conclude(lease, Outcome::Unknown).await,
                None => {}
            }
            return;
        }
        let answer = Answer::begin(head.status, &head.headers);
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let size = answer.size().saturating_add(length.unwrap_or(0));
        if size > self.largest || streams(head) {
            self.conclude(Outcome::Unkept(head.status)).await;
        } else if length == Some(0) || has_no_body(head.status) {
            self.conclude(Outcome::Done(answer)).await;
        } else {
            let body = BytesMut::with_capacity(length.unwrap_or(0));
            self.answer = Some((answer, body));
        }
    }

    /// A piece of its body: nothing of it goes on before the last. Returns whether all of it has come.
    pub fn takes(&mut self, piece: &mut Option<Bytes>, is_end: bool) -> bool {
        let Some((answer, body)) = &mut self.answer else {
            return false;
        };
        if let Some(piece) = piece.take() {
            body.extend_from_slice(&piece);
        }
        let fits = answer.size() + body.len() <= self.largest;
        if fits && !is_end {
            return false;
        }
        *piece = self.ends();
        is_end
    }

    /// There is no more of the body to come. Returns it.
    pub fn ends(&mut self) -> Option<Bytes> {
        let (mut answer, body) = self.answer.take()?;
        let body = body.freeze();
        let lease = self.lease.take()?;
        let outcome = if answer.size() + body.len() <= self.largest {
            answer.body = body.clone();
            Outcome::Done(answer)
        } else {
            Outcome::Unkept(answer.status)
        };
        self.cut.hold();
        let held = Held(self.cut.clone());
        tokio::spawn(async move {
            conclude(lease, outcome).await;
            drop(held);
        });
        Some(body)
    }

    /// The request is over; `is_whole`: without an error. What was not said of its run is said now.
    pub async fn settle(mut self, is_whole: bool) {
        self.cut.let_go();
        let answer = self.answer.take();
        match answer {
            // Its head was all of it: only an HTTP/2 backend ends an answer so.
            Some((answer, body)) if is_whole && body.is_empty() => {
                self.conclude(Outcome::Done(answer)).await;
            }
            None if self.sent == 0 => {
                if let Some(lease) = self.lease.take() {
                    lease.forget().await;
                }
            }
            _ => self.conclude(Outcome::Unknown).await,
        }
    }

    async fn conclude(&mut self, outcome: Outcome) {
        if let Some(lease) = self.lease.take() {
            conclude(lease, outcome).await;
        }
    }
}

/// The client gets its answer, whether it could be written down or not: it has come about.
async fn conclude(lease: Lease, outcome: Outcome) {
    let name = *lease.name();
    if outcome == Outcome::Unknown {
        log::warn!(
            target: LOG,
            "{name}: it was sent, and there is no answer: it does not run again before that key is deleted or has ended"
        );
    }
    if !lease.conclude(&outcome).await {
        log::warn!(target: LOG, "{name}: redis does not take the end of a run yet");
    }
}

/// What has no end in sight, or has trailers that a replay would lack.
fn streams(head: &ResponseHeader) -> bool {
    const STREAM: &[u8] = b"text/event-stream";
    let kind = head.headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    let is_stream = kind
        .and_then(|kind| kind.get(..STREAM.len()))
        .is_some_and(|begin| begin.eq_ignore_ascii_case(STREAM));
    is_stream || crate::reply::is_grpc(&head.headers)
}

fn has_no_body(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    )
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.release();
    }
}
