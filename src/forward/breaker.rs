//! Is it worth trying? A circuit breaker per service: when too many of the latest requests failed, the next ones are
//! answered at once, until a probe shows that the service is back.
//!
//! Time-outs, connection errors and 5xx count as failures; a service's 4xx and a client that goes away do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use serde::Deserialize;
use serde_json::json;

use crate::config::{self, Problems};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Share of failed requests that opens it, in percent.
    pub error_percent: u32,
    /// Requests in the window before it may open.
    pub volume: u32,
    /// How long it stays open before it probes.
    pub reset: config::Duration,
    /// The time over which requests are counted.
    pub window: config::Duration,
}

/// What a service's own YAML changes of the defaults.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerOverrides {
    pub error_percent: Option<u32>,
    pub volume: Option<u32>,
    pub reset: Option<config::Duration>,
    pub window: Option<config::Duration>,
}

/// One service's breaker.
pub struct Breaker {
    service: Box<str>,
    error_percent: u32,
    volume: u32,
    reset: Duration,
    slice: Duration,
    epoch: Instant,
    inner: Mutex<Inner>,
    gauge: IntGauge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed = 0,
    Open = 1,
    HalfOpen = 2,
}

/// How a request that was let through ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
    /// Says nothing about the service: the client went away, or nothing was sent.
    Unknown,
}

/// The breaker is open.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected {
    pub retry_after: Duration,
}

/// The right to send one request. Its end must be told with [`Permit::end`]; dropped untold it counts as unknown.
pub struct Permit {
    breaker: Arc<Breaker>,
    probe: bool,
    told: bool,
}

/// The window is counted in this many slices, of which the oldest is dropped as a new one begins.
const SLICES: usize = 10;

struct Inner {
    state: State,
    opened: Instant,
    probe_in_flight: bool,
    slices: [Counts; SLICES],
    slice: u64,
    rejected: u64,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    successes: u32,
    failures: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            error_percent: 50,
            volume: 10,
            reset: config::Duration::secs(30),
            // As Opossum's `rollingCountTimeout` has it.
            window: config::Duration::secs(10),
        }
    }
}

impl BreakerConfig {
    pub fn overridden_by(&self, overrides: BreakerOverrides) -> Self {
        let BreakerOverrides {
            error_percent,
            volume,
            reset,
            window,
        } = overrides;
        Self {
            error_percent: error_percent.unwrap_or(self.error_percent),
            volume: volume.unwrap_or(self.volume),
            reset: reset.unwrap_or(self.reset),
            window: window.unwrap_or(self.window),
        }
    }

    pub fn compile(
        self,
        place: &str,
        service: &str,
        gauge: IntGauge,
        problems: &mut Problems,
    ) -> Breaker {
        let Self {
            error_percent,
            volume,
            reset,
            window,
        } = self;
        if !(1..=100).contains(&error_percent) {
            problems.add(format!("{place}.error_percent"), "must be from 1 to 100");
        }
        if volume == 0 {
            problems.add(format!("{place}.volume"), "must be at least 1");
        }
        if reset.0.is_zero() {
            problems.add(format!("{place}.reset"), "must be longer than nothing");
        }
        if window < config::Duration::millis(100) {
            problems.add(format!("{place}.window"), "must be at least 100ms");
        }
        gauge.set(State::Closed as i64);
        let now = Instant::now();
        Breaker {
            service: service.into(),
            error_percent,
            volume,
            reset: reset.0,
            slice: (window.0 / SLICES as u32).max(Duration::from_millis(1)),
            epoch: now,
            inner: Mutex::new(Inner {
                state: State::Closed,
                opened: now,
                probe_in_flight: false,
                slices: Default::default(),
                slice: 0,
                rejected: 0,
            }),
            gauge,
        }
    }
}

// === impl Breaker ===

impl Breaker {
    /// Asks to send a request.
    ///
    /// # Errors
    /// While it is open, and while its one probe is under way.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Permit, Rejected> {
        let mut inner = self.inner.lock();
        let probe = match inner.state {
            State::Closed => false,
            State::Open => {
                let open_for = now.saturating_duration_since(inner.opened);
                if open_for < self.reset {
                    inner.rejected += 1;
                    return Err(Rejected {
                        retry_after: self.reset - open_for,
                    });
                }
                self.change(&mut inner, State::HalfOpen, now);
                inner.probe_in_flight = true;
                true
            }
            State::HalfOpen if inner.probe_in_flight => {
                inner.rejected += 1;
                return Err(Rejected {
                    retry_after: Duration::from_secs(1),
                });
            }
            State::HalfOpen => {
                inner.probe_in_flight = true;
                true
            }
        };
        Ok(Permit {
            breaker: self.clone(),
            probe,
            told: false,
        })
    }

    /// An open one whose time is over is half-open, also when no request comes: a gateway that is out of rotation for its
    /// breakers would get none.
    pub fn state(&self) -> State {
        let mut inner = self.inner.lock();
        self.half_open_if_due(&mut inner, Instant::now());
        inner.state
    }

    fn half_open_if_due(&self, inner: &mut Inner, now: Instant) {
        let open_for = now.saturating_duration_since(inner.opened);
        if inner.state == State::Open && open_for >= self.reset {
            self.change(inner, State::HalfOpen, now);
        }
    }

    /// The documented entry of /health.
    pub fn describe(&self) -> serde_json::Value {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        self.half_open_if_due(&mut inner, now);
        self.turn(&mut inner, now);
        let Counts {
            successes,
            failures,
        } = inner.sum();
        json!({
            "state": match inner.state {
                State::Closed => "CLOSED",
                State::Open => "OPEN",
                State::HalfOpen => "HALF_OPEN",
            },
            "stats": { "successes": successes, "failures": failures, "rejects": inner.rejected },
        })
    }

    fn end(&self, probe: bool, outcome: Outcome) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        if probe {
            inner.probe_in_flight = false;
            match outcome {
                Outcome::Success => {
                    inner.slices = Default::default();
                    self.change(&mut inner, State::Closed, now);
                }
                Outcome::Failure => self.change(&mut inner, State::Open, now),
                Outcome::Unknown => {}
            }
            return;
        }
        if inner.state != State::Closed {
            return; // sent before it opened: it was counted out already
        }
        self.turn(&mut inner, now);
        let slice = inner.slice as usize % SLICES;
        match outcome {
            Outcome::Success => inner.slices[slice].successes += 1,
            Outcome::Failure => inner.slices[slice].failures += 1,
            Outcome::Unknown => return,
        }
        let Counts {
            successes,
            failures,
        } = inner.sum();
        let requests = u64::from(successes) + u64::from(failures);
        let too_many = u64::from(failures) * 100 >= requests * u64::from(self.error_percent);
        if outcome == Outcome::Failure && requests >= u64::from(self.volume) && too_many {
            self.change(&mut inner, State::Open, now);
        }
    }

    /// Clears the slices that lie more than a window back.
    fn turn(&self, inner: &mut Inner, now: Instant) {
        let current =
            (now.saturating_duration_since(self.epoch).as_nanos() / self.slice.as_nanos()) as u64;
        let passed = current.saturating_sub(inner.slice).min(SLICES as u64);
        for i in 1..=passed {
            inner.slices[(inner.slice + i) as usize % SLICES] = Counts::default();
        }
        if passed == SLICES as u64 {
            inner.slices = Default::default();
        }
        inner.slice = inner.slice.max(current);
    }

    fn change(&self, inner: &mut Inner, state: State, now: Instant) {
        inner.state = state;
        if state == State::Open {
            inner.opened = now;
        }
        self.gauge.set(state as i64);
        let Counts {
            successes,
            failures,
        } = inner.sum();
        let service = &self.service;
        match state {
            State::Open => log::warn!(
                "circuit breaker open: {service}: {failures} of {} requests failed",
                successes + failures
            ),
            State::HalfOpen => log::info!("circuit breaker halfOpen: {service}: testing recovery"),
            State::Closed => log::info!("circuit breaker close: {service}: recovered"),
        }
    }
}

impl Inner {
    fn sum(&self) -> Counts {
        self.slices
            .iter()
            .fold(Counts::default(), |sum, slice| Counts {
                successes: sum.successes.saturating_add(slice.successes),
                failures: sum.failures.saturating_add(slice.failures),
            })
    }
}

// === impl Permit ===

impl Permit {
    pub fn end(mut self, outcome: Outcome) {
        self.told = true;
        self.breaker.end(self.probe, outcome);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            self.breaker.end(self.probe, Outcome::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(volume: u32, reset_ms: u64) -> Arc<Breaker> {
        let config = BreakerConfig {
            volume,
            reset: config::Duration::millis(reset_ms),
            ..Default::default()
        };
        let gauge = IntGauge::new("state", "state").unwrap();
        Arc::new(config.compile("breaker", "s", gauge, &mut Problems::default()))
    }

    fn send(breaker: &Arc<Breaker>, outcome: Outcome) {
        breaker
            .admit(Instant::now())
            .unwrap_or_else(|_| panic!("it is open"))
            .end(outcome);
    }

    #[test]
    fn it_opens_at_the_threshold_and_not_before_the_volume() {
        let breaker = breaker(4, 60_000);
        for outcome in [Outcome::Failure, Outcome::Success, Outcome::Failure] {
            send(&breaker, outcome);
            assert_eq!(breaker.state(), State::Closed);
        }
        send(&breaker, Outcome::Unknown);
        assert_eq!(breaker.state(), State::Closed, "unknown ends do not count");
        send(&breaker, Outcome::Failure);
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.gauge.get(), 1);
        let rejected = breaker.admit(Instant::now()).err().unwrap();
        assert!(
            rejected.retry_after <= Duration::from_secs(60)
                && rejected.retry_after > Duration::from_secs(59)
        );
    }

    #[test]
    fn one_probe_at_a_time_decides_what_follows() {
        let breaker = breaker(1, 50);
        send(&breaker, Outcome::Failure);
        let later = Instant::now() + Duration::from_millis(60);
        let probe = breaker.admit(later).ok().unwrap();
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(breaker.admit(later).is_err(), "the probe is under way");
        probe.end(Outcome::Failure);
        assert_eq!(breaker.state(), State::Open);
        let probe = breaker
            .admit(later + Duration::from_millis(60))
            .ok()
            .unwrap();
        drop(probe); // the client went away: the next request probes
        breaker.admit(later).ok().unwrap().end(Outcome::Success);
        assert_eq!(breaker.state(), State::Closed);
        assert_eq!(breaker.gauge.get(), 0);
    }
}
