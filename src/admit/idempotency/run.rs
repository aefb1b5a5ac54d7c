//! One run of a write with a key: its answer is taken whole, whoever still waits for it, and written down before its last
//! byte goes to the client.
//!
//! Pingora passes an answer on piece by piece, through filters that cannot wait, and gives it up when its client is gone. So
//! the pieces are held back here until the last has come; the connection lets that one out only when what [`Cut::hold`] gave
//! is dropped, and takes a client that is gone for one that reads ([`Cut::finish_anyway`]).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use pingora::http::ResponseHeader;
use tokio::runtime::Handle;

use super::lease::Lease;
use super::record::{Answer, Outcome};
use crate::admit::size::content_length;
use crate::connection::{Cut, streams};

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

    /// For the client to take a piece of the answer: that is not written while its end is being kept.
    pub fn patience(&self, patience: Duration) -> Duration {
        let to_end = self.lease.as_ref().map(Lease::to_end);
        patience.max(to_end.unwrap_or_default())
    }

    /// The head of the answer that the client gets.
    pub async fn answered(&mut self, head: &ResponseHeader) {
        if super::is_undone(head.status, &head.headers) {
            // It speaks of the last attempt alone: an earlier one may have done it.
            self.end(match self.sent {
                0 | 1 => None,
                _ => Some(Outcome::Unknown),
            })
            .await;
            return self.cut.let_go();
        }
        let answer = Answer::begin(head.status, &head.headers);
        let length = content_length(&head.headers);
        let length = length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        let size = answer.size().saturating_add(length.unwrap_or(0));
        if size > self.largest || streams(head) {
            self.end(Some(Outcome::Unkept(head.status))).await;
            // Nothing is left to be kept: what streams is its client's alone.
            self.cut.let_go();
        } else if length == Some(0) || has_no_body(head.status) {
            self.cut.disarm(); // all of it is here
            self.end(Some(Outcome::Done(answer))).await;
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
        *piece = self.passes_on(!is_end);
        is_end
    }

    /// There is no more of the body to come. Returns it.
    pub fn ends(&mut self) -> Option<Bytes> {
        self.passes_on(false)
    }

    /// What has come of the body goes to the client once the end of the run is written down.
    fn passes_on(&mut self, more_comes: bool) -> Option<Bytes> {
        let (mut answer, body) = self.answer.take()?;
        let body = body.freeze();
        let lease = self.lease.take()?;
        let outcome = if answer.size() + body.len() <= self.largest {
            answer.body = body.clone();
            Outcome::Done(answer)
        } else {
            Outcome::Unkept(answer.status)
        };
        // What is still to come is the client's alone.
        let held = self.cut.hold(!more_comes);
        tokio::spawn(async move {
            conclude(lease, outcome).await;
            drop(held);
        });
        Some(body)
    }

    /// The request is over; `is_whole`: without an error. What was not said of its run is said now.
    pub async fn settle(mut self, is_whole: bool) {
        // A call of a batch has no connection that keeps its end back: nobody hears of it before this has returned.
        poll_fn(|cx| self.cut.poll_held(cx)).await;
        self.cut.let_go();
        let answer = self.answer.take();
        let outcome = match answer {
            // Its head was all of it: only an HTTP/2 backend ends an answer so.
            Some((answer, body)) if is_whole && body.is_empty() => Some(Outcome::Done(answer)),
            None if self.sent == 0 => None,
            _ => Some(Outcome::Unknown),
        };
        self.end(outcome).await;
    }

    /// Says how the run has ended; `None`: nothing was done. Whoever waits for that may be dropped: it is said all the same.
    async fn end(&mut self, outcome: Option<Outcome>) {
        if let Some(lease) = self.lease.take() {
            // It does not fail.
            let _ = tokio::spawn(end(lease, outcome)).await;
        }
    }
}

impl Drop for Run {
    /// Whoever ran it was dropped in the midst of it.
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else {
            return;
        };
        self.cut.let_go();
        let outcome = (self.sent > 0).then_some(Outcome::Unknown);
        // Without a runtime the process ends: the lease does, too.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(end(lease, outcome));
        }
    }
}

async fn end(lease: Lease, outcome: Option<Outcome>) {
    match outcome {
        Some(outcome) => conclude(lease, outcome).await,
        None => drop(lease.forget().await),
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
    streams::is_events(&head.headers) || crate::reply::is_grpc(&head.headers)
}

fn has_no_body(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    )
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::Keyed;
    use super::super::key::{Fingerprint, Name, Owner};
    use super::super::ledger::{Claim, Ledger};
    use super::*;

    async fn claim(ledger: &Arc<Ledger>, name: u8) -> Claim {
        let name = Name::from_bytes(&[name; 32]).unwrap();
        let keyed = Keyed {
            name,
            owner: Owner(1),
            fingerprint: Fingerprint::of(&name, &http::HeaderMap::new(), b"1"),
        };
        let minute = Duration::from_secs(60);
        ledger.claim(&keyed, minute, minute).await.unwrap()
    }

    #[test]
    fn a_run_that_is_dropped_says_what_is_known_of_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let ledger = Arc::new(Ledger::new(None));
        runtime.block_on(async {
            for (name, sent) in [(1, 0), (2, 1)] {
                let Claim::Ours(lease) = claim(&ledger, name).await else {
                    panic!("it is new");
                };
                let cut = Cut::new(Instant::now());
                let mut run = Run::begin(lease, 1000, cut.clone());
                (0..sent).for_each(|_| run.sends());
                drop(run);
                assert!(!cut.is_finished_anyway());
                tokio::task::yield_now().await;
            }
            assert!(matches!(claim(&ledger, 1).await, Claim::Ours(_)));
            let known = claim(&ledger, 2).await;
            assert!(matches!(known, Claim::Ended(Outcome::Unknown)));
        });
    }
}
