//! What the next process must know of a pool: who was ejected, who fails its checks, and what requests met lately. With that
//! it chooses as this one did, and need not find out at its clients' expense.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Pool;
use super::members::{Member, Members};
use crate::forward::breaker;
use crate::handover::Clock;

/// One service. Times are [`Clock::millis`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Carried {
    pub service: String,
    breaker: breaker::Carried,
    members: Vec<CarriedMember>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedMember {
    address: String,
    passes_checks: bool,
    ejected_until: Option<i64>,
    /// In milliseconds.
    last_ejection: u64,
    failures_in_a_row: u32,
    recent: Vec<(i64, Vec<u32>)>,
    /// The average, in microseconds.
    latency: Option<f32>,
}

impl Pool {
    pub fn carried(&self, clock: &Clock) -> Carried {
        let now_ms = self.clock_ms(clock.here());
        let members = self.members.all();
        Carried {
            service: self.name.to_string(),
            breaker: self.breaker.carried(clock),
            members: members.iter().map(|m| m.carried(clock, now_ms)).collect(),
        }
    }

    /// Goes on from where another process stood. Instances that are not here are passed over.
    pub fn take_over(&self, carried: Carried, clock: &Clock) {
        let Carried {
            service: _,
            breaker,
            members,
        } = carried;
        self.breaker.take_over(breaker, clock);
        let known = self.members.all();
        let now_ms = self.clock_ms(clock.here());
        for carried in members {
            if let Some(member) = known.iter().find(|m| *m.text == *carried.address) {
                member.take_over(carried, clock, now_ms, self.health.enabled);
            }
        }
        self.members.stand_anew(clock.here());
    }
}

impl Members {
    fn all(&self) -> Vec<Arc<Member>> {
        self.all.lock().clone()
    }
}

impl Member {
    fn carried(&self, clock: &Clock, now_ms: u32) -> CarriedMember {
        let standing = *self.standing.lock();
        CarriedMember {
            address: self.text.to_string(),
            passes_checks: standing.passes_checks,
            ejected_until: standing.ejected_until.map(|until| clock.millis(until)),
            last_ejection: standing.last_ejection.as_millis() as u64,
            failures_in_a_row: self.failures_in_a_row.load(Relaxed),
            recent: self.recent.carried(clock),
            latency: self.latency.average(now_ms, false),
        }
    }

    fn take_over(&self, carried: CarriedMember, clock: &Clock, now_ms: u32, is_checked: bool) {
        /// As [`Latency::penalize`](super::latency::Latency::penalize) has it.
        const SLOWEST: f32 = 10_000_000.0;
        let CarriedMember {
            address: _,
            passes_checks,
            ejected_until,
            last_ejection,
            failures_in_a_row,
            recent,
            latency,
        } = carried;
        self.recent.take_over(recent, clock);
        self.failures_in_a_row.store(failures_in_a_row, Relaxed);
        if let Some(micros) = latency.filter(|micros| (1.0..=SLOWEST).contains(micros)) {
            self.latency
                .observe(Duration::from_micros(micros as u64), now_ms);
        }
        let mut standing = self.standing.lock();
        // Our own checks have the last word, and the next of them is near while an instance is not healthy.
        standing.passes_checks &= passes_checks || !is_checked;
        standing.last_ejection = Duration::from_millis(last_ejection);
        standing.ejected_until = ejected_until
            .and_then(|until| clock.instant(until))
            .filter(|until| *until > clock.here());
    }
}
