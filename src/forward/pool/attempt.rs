//! One request at one instance: what the balancing, the outlier detection and the metrics learn from it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::HeaderValue;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};

use super::Pool;
use super::members::{ANSWERED, FAILED, Member, TIME, UNTIMED, octaves};
use super::outlier::Reason;
use crate::forward::retry::Failure;
use crate::observe::registry::AttemptOutcome;
use crate::server::threads;

/// Counts as in flight until it is dropped. Dropped before its end was told, it was given up: that is nobody's fault.
pub struct Attempt {
    pub member: Arc<Member>,
    pool: Arc<Pool>,
    since: Instant,
    /// For how long the loop had been held up by then.
    held_up: Duration,
    told: bool,
}

/// An idle connection is given up before Node's default keep-alive of 5 s lets the backend close it under a request.
const IDLE: Duration = Duration::from_secs(4);

impl Attempt {
    pub(super) fn new(member: Arc<Member>, pool: Arc<Pool>, now: Instant) -> Self {
        member.in_flight.fetch_add(1, Relaxed);
        member.unanswered.fetch_add(1, Relaxed);
        Self {
            member,
            pool,
            since: now,
            held_up: threads::held_up(now),
            told: false,
        }
    }

    pub fn authority(&self) -> HeaderValue {
        self.member.instance.authority.clone()
    }

    /// The peer to send the request to. Only the connection has a time-out here: [`crate::connection::Cut`] has the rest.
    pub fn peer(&self, connect: Duration) -> Box<HttpPeer> {
        let mut peer = Box::new(self.member.instance.peer(&self.member.address));
        let options = &mut peer.options;
        options.connection_timeout = Some(connect);
        options.total_connection_timeout = Some(connect);
        options.idle_timeout = Some(IDLE);
        options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Deny;
        peer
    }

    /// The peer where the connection is shared: then time-outs of Pingora's stand behind [`crate::connection::Cut`], which
    /// is not heard while a backend does not take a body.
    pub fn shared_peer(&self, connect: Duration, patience: Duration) -> Box<HttpPeer> {
        /// That ours is first.
        const LATER: Duration = Duration::from_millis(250);
        let mut peer = self.peer(connect);
        peer.options.read_timeout = Some(patience + LATER);
        peer.options.write_timeout = Some(patience + LATER);
        peer
    }

    /// From now on the instance is at work.
    pub fn begins(&mut self, now: Instant) {
        self.since = now;
        self.held_up = threads::held_up(now);
    }

    /// For how long it has been at work.
    pub fn lasts(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// As [`Attempt::lasts`], where that says something of the instance: `None` when much of it is this thread's own delay.
    pub fn took(&self, now: Instant) -> Option<Duration> {
        let (took, held_up) = (self.lasts(now), threads::held_up(now));
        let held_up = held_up.saturating_sub(self.held_up);
        (!threads::is_of_the_loop(took, held_up)).then_some(took)
    }

    /// The head of a good answer has come. Returns how long it took.
    pub fn answered(&mut self, now: Instant) -> Option<Duration> {
        let took = self.took(now);
        let member = &self.member;
        if member.failures_in_a_row.load(Relaxed) != 0 {
            member.failures_in_a_row.store(0, Relaxed);
        }
        member.recent.add(ANSWERED, 1, now);
        match took {
            Some(took) => {
                member.latency.observe(took, self.pool.clock_ms(now));
                member.recent.add(TIME, octaves(took), now);
            }
            None => member.recent.add(UNTIMED, 1, now),
        }
        self.tell(AttemptOutcome::Success);
        took
    }

    /// It failed, and the instance is to blame.
    pub fn failed(&mut self, failure: Failure, now: Instant) {
        self.tell(failure.into());
        if matches!(failure, Failure::Stale | Failure::NotProcessed) {
            return;
        }
        let member = &self.member;
        member.recent.add(FAILED, 1, now);
        if !member.is_back_since(self.since) {
            return; // it was ejected for that already
        }
        let in_a_row = member.failures_in_a_row.fetch_add(1, Relaxed) + 1;
        // One failure is no reason to look elsewhere, and sixteen times the latency is reason enough.
        if (2..=5).contains(&in_a_row) {
            member.latency.penalize(self.pool.clock_ms(now));
        }
        let members = &self.pool.members;
        if members.outlier().is_too_many(in_a_row) {
            members.eject(member, &Reason::InARow(in_a_row), now);
        }
    }

    fn tell(&mut self, outcome: AttemptOutcome) {
        if !std::mem::replace(&mut self.told, true) {
            self.member.unanswered.fetch_sub(1, Relaxed);
            self.pool.metrics.attempt(outcome);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Relaxed);
        self.tell(AttemptOutcome::Aborted);
    }
}
