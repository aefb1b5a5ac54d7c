//! Is it worth trying? A circuit breaker per service: when too many of the latest requests failed, the next ones are
//! answered at once, until a probe shows that the service is back.
//!
//! Time-outs, connection errors and 5xx count as failures; a service's 4xx and a client that goes away do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::IntGauge;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::window::Window;
use crate::config::{self, Problems};
use crate::handover::Clock;

#[derive(Clone, Debug, Deserialize, Serialize)]
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
    /// Requests in flight while it is half-open.
    pub probes: u32,
}

/// What a service's own YAML changes of the defaults.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerOverrides {
    pub error_percent: Option<u32>,
    pub volume: Option<u32>,
    pub reset: Option<config::Duration>,
    pub window: Option<config::Duration>,
    pub probes: Option<u32>,
}

/// One service's breaker. While it is closed, requests meet nothing but atomics.
///
/// Its rules are those of one configuration, its standing outlives them: a service that is known to be down stays known.
pub struct Breaker {
    service: Box<str>,
    error_percent: u32,
    volume: u32,
    reset: Duration,
    probes: u32,
    window: Arc<Window<2>>,
    /// What the window counts over.
    window_length: Duration,
    standing: Arc<Standing>,
}

/// What holds whichever rules are in force.
struct Standing {
    /// [`State`]; changed under the lock of `inner` only.
    state: AtomicU8,
    /// How often it has opened: what was sent before says nothing about the time after.
    generation: AtomicU32,
    rejected: AtomicU64,
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
    /// A failure that the documentation names by itself.
    Timeout,
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
    generation: u32,
    probe: Probe,
    told: bool,
}

/// Whether a request is to see if the service is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    None,
    /// At hand as a whole, in one of the places.
    Whole,
    /// Still on its way: beside those, so that its client's pace keeps nobody's place.
    Coming,
}

/// What the next process must know of one.
#[derive(Debug, Serialize, Deserialize)]
pub struct Carried {
    /// When it opened, while it is not closed.
    opened: Option<i64>,
    recent: Vec<(i64, Vec<u32>)>,
}

struct Inner {
    opened: Instant,
    probes_in_flight: u32,
    /// When one that was not at hand as a whole was let through.
    coming: Option<Instant>,
}

/// The kinds that the window counts.
const SUCCESS: usize = 0;
const FAILURE: usize = 1;

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            error_percent: 50,
            volume: 10,
            reset: config::Duration::secs(30),
            // As Opossum's `rollingCountTimeout` has it.
            window: config::Duration::secs(10),
            probes: 1,
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
            probes,
        } = overrides;
        Self {
            error_percent: error_percent.unwrap_or(self.error_percent),
            volume: volume.unwrap_or(self.volume),
            reset: reset.unwrap_or(self.reset),
            window: window.unwrap_or(self.window),
            probes: probes.unwrap_or(self.probes),
        }
    }

    pub fn check(&self, place: &str, problems: &mut Problems) {
        let Self {
            error_percent,
            volume,
            reset,
            window,
            probes,
        } = self;
        if !(1..=100).contains(error_percent) {
            problems.add(format!("{place}.error_percent"), "must be from 1 to 100");
        }
        if *volume == 0 {
            problems.add(format!("{place}.volume"), "must be at least 1");
        }
        if reset.0.is_zero() {
            problems.add(format!("{place}.reset"), "must be longer than nothing");
        }
        if *window < config::Duration::millis(100) {
            problems.add(format!("{place}.window"), "must be at least 100ms");
        }
        if *probes == 0 {
            problems.add(format!("{place}.probes"), "must be at least 1");
        }
    }

    /// `before`: the one whose place it takes, and whose standing it keeps.
    pub fn build(self, service: &str, gauge: IntGauge, before: Option<&Breaker>) -> Breaker {
        let Self {
            error_percent,
            volume,
            reset,
            window: config::Duration(window),
            probes,
        } = self;
        let now = Instant::now();
        let same_window = before.filter(|before| before.window_length == window);
        Breaker {
            service: service.into(),
            error_percent,
            volume,
            reset: reset.0,
            probes,
            window: same_window.map_or_else(
                || Arc::new(Window::new(window, now)),
                |before| before.window.clone(),
            ),
            window_length: window,
            standing: before.map_or_else(
                || Arc::new(Standing::closed(gauge, now)),
                |before| before.standing.clone(),
            ),
        }
    }
}

impl From<BreakerConfig> for BreakerOverrides {
    /// All of them.
    fn from(config: BreakerConfig) -> Self {
        let BreakerConfig {
            error_percent,
            volume,
            reset,
            window,
            probes,
        } = config;
        Self {
            error_percent: Some(error_percent),
            volume: Some(volume),
            reset: Some(reset),
            window: Some(window),
            probes: Some(probes),
        }
    }
}

// === impl Standing ===

impl Standing {
    fn closed(gauge: IntGauge, now: Instant) -> Self {
        gauge.set(State::Closed as i64);
        Self {
            state: AtomicU8::new(State::Closed as u8),
            generation: AtomicU32::new(0),
            rejected: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                opened: now,
                probes_in_flight: 0,
                coming: None,
            }),
            gauge,
        }
    }
}

// === impl Breaker ===

impl Breaker {
    /// Asks to send a request. `may_probe`: it is at hand as a whole, so that it does not keep the place of a probe. Others
    /// probe only where none of those told anything for another `reset`, and one in each.
    ///
    /// # Errors
    /// While it is open, and while its probes are under way.
    pub fn admit(self: &Arc<Self>, now: Instant, may_probe: bool) -> Result<Permit, Rejected> {
        let probe = match self.load() {
            State::Closed => Probe::None,
            _ => self.probe(now, may_probe)?,
        };
        Ok(Permit {
            breaker: self.clone(),
            generation: self.standing.generation.load(Relaxed),
            probe,
            told: false,
        })
    }

    /// Whether it stands in nobody's way.
    pub fn is_closed(&self) -> bool {
        self.load() == State::Closed
    }

    /// Whether a request that is at hand as a whole would be a probe.
    pub fn wants_probes(&self) -> bool {
        !self.is_closed()
            && self.state() == State::HalfOpen
            && self.standing.inner.lock().probes_in_flight < self.probes
    }

    /// Whether the request is a probe, or needs none any more.
    fn probe(&self, now: Instant, may_probe: bool) -> Result<Probe, Rejected> {
        let mut inner = self.standing.inner.lock();
        self.half_open_if_due(&inner, now);
        let retry_after = match self.load() {
            State::Closed => return Ok(Probe::None),
            State::HalfOpen if may_probe && inner.probes_in_flight < self.probes => {
                inner.probes_in_flight += 1;
                return Ok(Probe::Whole);
            }
            State::HalfOpen if !may_probe && self.may_come(&inner, now) => {
                inner.coming = Some(now);
                return Ok(Probe::Coming);
            }
            State::HalfOpen => Duration::from_secs(1),
            State::Open => self
                .reset
                .saturating_sub(now.saturating_duration_since(inner.opened)),
        };
        drop(inner);
        self.standing.rejected.fetch_add(1, Relaxed);
        log::debug!("circuit breaker reject: {}", self.service);
        Err(Rejected { retry_after })
    }

    fn may_come(&self, inner: &Inner, now: Instant) -> bool {
        let since = |then| now.saturating_duration_since(then);
        since(inner.opened) >= self.reset.saturating_mul(2)
            && inner.coming.is_none_or(|last| since(last) >= self.reset)
    }

    /// An open one whose time is over is half-open, also when no request comes: a gateway that is out of rotation for its
    /// breakers would get none.
    pub fn state(&self) -> State {
        self.half_open_if_due(&self.standing.inner.lock(), Instant::now());
        self.load()
    }

    fn half_open_if_due(&self, inner: &Inner, now: Instant) {
        let open_for = now.saturating_duration_since(inner.opened);
        if self.load() == State::Open && open_for >= self.reset {
            self.change(State::HalfOpen, now);
        }
    }

    /// The documented entry of /health.
    pub fn describe(&self) -> serde_json::Value {
        let state = self.state();
        let [successes, failures] = self.window.sums(Instant::now());
        json!({
            "state": match state {
                State::Closed => "CLOSED",
                State::Open => "OPEN",
                State::HalfOpen => "HALF_OPEN",
            },
            "stats": { "successes": successes, "failures": failures, "rejects": self.standing.rejected.load(Relaxed) },
        })
    }

    pub fn carried(&self, clock: &Clock) -> Carried {
        let inner = self.standing.inner.lock();
        Carried {
            opened: (self.load() != State::Closed).then(|| clock.millis(inner.opened)),
            recent: self.window.carried(clock),
        }
    }

    /// Goes on where another process stood. A probe that it has under way is not ours: one that was half-open probes anew.
    pub fn take_over(&self, carried: Carried, clock: &Clock) {
        let Carried { opened, recent } = carried;
        self.window.take_over(recent, clock);
        let mut inner = self.standing.inner.lock();
        if let Some(opened) = opened
            && self.load() == State::Closed
        {
            // Longer ago than this process can tell: its time is over.
            inner.opened = clock.instant(opened).unwrap_or(inner.opened);
            self.change(State::Open, clock.here());
        }
    }

    fn end(&self, generation: u32, probe: Probe, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Failure => log::debug!("circuit breaker failure: {}", self.service),
            Outcome::Timeout => log::debug!("circuit breaker timeout: {}", self.service),
            Outcome::Success | Outcome::Unknown => {}
        }
        if probe != Probe::None {
            self.end_probe(probe, outcome, now);
        } else if self.load() == State::Closed
            && generation == self.standing.generation.load(Relaxed)
        {
            self.count(outcome, now);
        }
    }

    fn end_probe(&self, probe: Probe, outcome: Outcome, now: Instant) {
        let mut inner = self.standing.inner.lock();
        if probe == Probe::Whole {
            inner.probes_in_flight = inner.probes_in_flight.saturating_sub(1);
        }
        // Another probe may have decided already.
        match outcome {
            _ if self.load() != State::HalfOpen => {}
            Outcome::Success => {
                self.window.clear();
                self.change(State::Closed, now);
            }
            Outcome::Failure | Outcome::Timeout => {
                inner.opened = now;
                self.change(State::Open, now);
            }
            Outcome::Unknown => {}
        }
    }

    fn count(&self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Unknown => return,
            Outcome::Success => return self.window.add(SUCCESS, 1, now),
            Outcome::Failure | Outcome::Timeout => self.window.add(FAILURE, 1, now),
        }
        let [successes, failures] = self.window.sums(now);
        let requests = successes + failures;
        let too_many = failures * 100 >= requests * u64::from(self.error_percent);
        if requests >= u64::from(self.volume) && too_many {
            let mut inner = self.standing.inner.lock();
            if self.load() == State::Closed {
                inner.opened = now;
                self.change(State::Open, now);
            }
        }
    }

    fn load(&self) -> State {
        match self.standing.state.load(Relaxed) {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        }
    }

    /// Called with `inner` locked.
    fn change(&self, state: State, now: Instant) {
        self.standing.state.store(state as u8, Relaxed);
        self.standing.gauge.set(state as i64);
        let service = &self.service;
        match state {
            State::Open => {
                self.standing.generation.fetch_add(1, Relaxed);
                let [successes, failures] = self.window.sums(now);
                log::warn!(
                    "circuit breaker open: {service}: {failures} of {} requests failed",
                    successes + failures
                );
            }
            State::HalfOpen => log::info!("circuit breaker halfOpen: {service}: testing recovery"),
            State::Closed => log::info!("circuit breaker close: {service}: recovered"),
        }
    }
}

// === impl Permit ===

impl Permit {
    /// Let through to see whether the service is back.
    pub fn is_probe(&self) -> bool {
        self.probe != Probe::None
    }

    pub fn end(mut self, outcome: Outcome) {
        self.told = true;
        self.breaker.end(self.generation, self.probe, outcome);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.told {
            self.breaker
                .end(self.generation, self.probe, Outcome::Unknown);
        }
    }
}

#[cfg(test)]
mod tests;
