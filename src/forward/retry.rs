//! Once more? Which failures are worth another attempt, when, and how many a service is asked for in all.
//!
//! Why a budget and not only a number of retries? A number bounds what one request costs. When a whole service fails,
//! every request fails, and three retries each are four times the load on what is down already. The budget bounds the
//! retries by the requests (decision 25).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::window::Window;
use crate::config::{self, Problems};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// Attempts after the first.
    pub max_retries: u32,
    /// Before an instance is asked again: a random time up to this, doubled with each retry.
    pub base_delay: config::Duration,
    pub max_delay: config::Duration,
    /// Retries of the last 10 s, as a share of the requests.
    pub budget_percent: u32,
    /// So many in 10 s are allowed however few requests there are.
    pub budget_min: u32,
}

/// The compiled rules, and the budget.
pub struct Retry {
    max_retries: u32,
    base_delay: Duration,
    max_delay: Duration,
    budget_percent: u64,
    budget_min: u64,
    /// [`REQUESTS`] and [`RETRIES`]; it outlives the rules.
    spent: Arc<Window<2>>,
}

/// Why an attempt ended without a good answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nothing was sent.
    Connect,
    /// A kept connection had been closed by the instance meanwhile: that is nobody's fault.
    Stale,
    /// The instance has said that it did nothing: it is going away, or had too many streams (RFC 9113, section 8.7).
    NotProcessed,
    /// The connection broke before the answer's head, or that was no head.
    Reset,
    Timeout,
    Status(StatusCode),
}

/// What is known of the request whose attempt failed.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub failure: Failure,
    pub repeatable: Repeatable,
    /// Retries so far.
    pub retries: u32,
    /// An instance is left that it did not try.
    pub elsewhere: bool,
    /// Of its deadline.
    pub left: Duration,
}

/// Whether it may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeatable {
    Never,
    /// Once the attempt has ended: it has an Idempotency-Key. Behind a time-out the first instance may be at work still, and
    /// the second would work beside it, whatever either knows of keys.
    Ended,
    /// Its method is idempotent.
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    No,
    /// It would be worth it, but the budget is spent.
    Denied,
    /// After this time.
    Again(Duration),
}

const REQUESTS: usize = 0;
const RETRIES: usize = 1;

/// What the budget looks back on.
const WINDOW: Duration = Duration::from_secs(10);

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            base_delay: config::Duration::secs(1),
            max_delay: config::Duration::secs(30),
            budget_percent: 20,
            budget_min: 10,
        }
    }
}

impl RetryConfig {
    /// `before`: whose place it takes; what was spent there is spent.
    pub fn compile(self, place: &str, before: Option<&Retry>, problems: &mut Problems) -> Retry {
        let Self {
            max_retries,
            base_delay,
            max_delay,
            budget_percent,
            budget_min,
        } = self;
        if max_retries > MOST_RETRIES {
            problems.add(
                format!("{place}.max_retries"),
                format!("must be from 0 to {MOST_RETRIES}"),
            );
        }
        if max_delay < base_delay {
            problems.add(
                format!("{place}.max_delay"),
                "must not be shorter than `base_delay`",
            );
        }
        if budget_percent > 100 {
            problems.add(format!("{place}.budget_percent"), "must be from 0 to 100");
        }
        Retry {
            max_retries,
            base_delay: base_delay.0,
            max_delay: max_delay.0,
            budget_percent: budget_percent.into(),
            budget_min: budget_min.into(),
            spent: before.map_or_else(
                || Arc::new(Window::new(WINDOW, Instant::now())),
                |before| before.spent.clone(),
            ),
        }
    }
}

/// Pingora's own last stop stands above it: `max_retries` of its configuration.
pub const MOST_RETRIES: u32 = 10;

// === impl Retry ===

impl Retry {
    /// A request is sent for the first time: it earns its share of the budget.
    pub fn earn(&self, now: Instant) {
        self.spent.add(REQUESTS, 1, now);
    }

    /// Whether there is another attempt. If there is, the budget has paid for it.
    pub fn decide(&self, case: &Case, now: Instant) -> Decision {
        let worth_it = match case.failure {
            Failure::Connect | Failure::NotProcessed => true,
            Failure::Timeout => case.repeatable == Repeatable::Always,
            Failure::Stale | Failure::Reset => case.repeatable != Repeatable::Never,
            Failure::Status(status) => case.repeatable != Repeatable::Never && is_passing(status),
        };
        if !worth_it || case.retries >= self.max_retries || case.left.is_zero() {
            return Decision::No;
        }
        let [requests, retries] = self.spent.sums(now);
        if retries >= self.budget_min.max(requests * self.budget_percent / 100) {
            return Decision::Denied;
        }
        self.spent.add(RETRIES, 1, now);
        // A stale connection says nothing about who closed it, and one that goes away has a successor; to ask somebody else needs no
        // patience.
        let is_nothing = match case.failure {
            Failure::Stale => true,
            Failure::NotProcessed => case.retries == 0,
            _ => false,
        };
        Decision::Again(if is_nothing || case.elsewhere {
            Duration::ZERO
        } else {
            self.back_off(case.retries, case.left)
        })
    }

    /// "Full jitter" (Brooker, "Exponential Backoff And Jitter"): anything up to the doubled delay, so that those who failed
    /// together do not come back together. Half of what is left of the deadline is kept for the attempt itself.
    fn back_off(&self, retries: u32, left: Duration) -> Duration {
        let doubled = self.base_delay.saturating_mul(1 << retries.min(16));
        doubled
            .min(self.max_delay)
            .min(left / 2)
            .mul_f64(fastrand::f64())
    }
}

/// Whether the same request may be answered otherwise the next time. 501, 505 and 511 will stay what they are.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() && !matches!(status.as_u16(), 501 | 505 | 511)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Connect => f.write_str("connect"),
            Failure::NotProcessed => f.write_str("refused"),
            Failure::Stale | Failure::Reset => f.write_str("reset"),
            Failure::Timeout => f.write_str("timeout"),
            Failure::Status(status) => f.write_str(status.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case {
        failure: Failure::Reset,
        repeatable: Repeatable::Always,
        retries: 0,
        elsewhere: true,
        left: Duration::from_secs(8),
    };

    fn retry() -> Retry {
        RetryConfig::default().compile("retry", None, &mut Problems::default())
    }

    #[test]
    fn the_budget_is_a_share_of_the_requests_or_the_least() {
        let (retry, now) = (retry(), Instant::now());
        let again = |n: usize| (0..n).all(|_| retry.decide(&CASE, now) != Decision::Denied);
        assert!(again(10));
        assert_eq!(retry.decide(&CASE, now), Decision::Denied);
        (0..100).for_each(|_| retry.earn(now));
        assert!(again(10), "20 for 100 requests");
        assert_eq!(retry.decide(&CASE, now), Decision::Denied);
        let later = now + WINDOW;
        assert_ne!(retry.decide(&CASE, later), Decision::Denied);
    }

    #[test]
    fn back_off_is_full_jitter_and_leaves_half_of_the_time() {
        let retry = retry();
        for (retries, left, most) in [(0, 60, 1.0), (2, 60, 4.0), (9, 600, 30.0), (2, 3, 1.5)] {
            let delays: Vec<f64> = (0..1000)
                .map(|_| retry.back_off(retries, Duration::from_secs(left)))
                .map(|delay| delay.as_secs_f64())
                .collect();
            assert!(delays.iter().all(|d| *d <= most));
            assert!(delays.iter().any(|d| *d > most * 0.9), "up to {most}");
            assert!(delays.iter().any(|d| *d < most * 0.1));
        }
    }

    #[test]
    fn the_same_instance_is_asked_again_only_after_a_while() {
        let same = Case {
            elsewhere: false,
            ..CASE
        };
        let (retry, now) = (retry(), Instant::now());
        assert_eq!(retry.decide(&CASE, now), Decision::Again(Duration::ZERO));
        assert!(matches!(
            retry.decide(&same, now),
            Decision::Again(delay) if !delay.is_zero()
        ));
    }
    #[test]
    fn a_time_out_is_mended_only_where_two_do_the_same_as_one() {
        let (retry, now) = (retry(), Instant::now());
        let again = |failure, repeatable| {
            let case = Case {
                failure,
                repeatable,
                ..CASE
            };
            retry.decide(&case, now) != Decision::No
        };
        let (timeout, status) = (Failure::Timeout, Failure::Status(StatusCode::BAD_GATEWAY));
        for failure in [Failure::Reset, Failure::Stale, timeout, status] {
            assert!(again(failure, Repeatable::Always), "{failure}");
            assert_eq!(
                again(failure, Repeatable::Ended),
                failure != timeout,
                "{failure}"
            );
            assert!(!again(failure, Repeatable::Never), "{failure}");
        }
    }
}
