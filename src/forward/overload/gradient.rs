//! The limit that follows the latency, in the manner of Netflix' "concurrency-limits" (Gradient2): while answers take
//! as long as usual, the limit grows; when they take longer, it falls by as much.
//!
//! Latency is compared with the usual one of the same route and method, as a ratio, averaged over all of them: a
//! service whose slow routes are asked for more often has not become slower.
//!
//! But longer than usual need not mean a queue: a dependency may have become slow, or a cache cold. Less load would not
//! help then, it would only be refused. So before a low limit is believed it is tried out: the load is taken back to
//! 40 %, and if answers do not come faster for it, they take as long as they take, and that is usual from now on.
//!
//! Where the gateway itself is late, most answers say nothing of the service; what says something then is slow by far. While
//! those are few the limit gives way to what comes: to refuse for want of knowledge would protect nobody.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A service's limit.
pub struct Gradient {
    epoch: Instant,
    /// When the window under way began, and when the last answer came, in milliseconds after `epoch`.
    began: AtomicU64,
    last: AtomicU64,
    samples: AtomicU32,
    /// Answers beside them whose time says nothing.
    voids: AtomicU32,
    /// Of the samples' excess, in 1024ths of an octave.
    excess: AtomicI64,
    most_in_flight: AtomicU32,
    /// [`Phase::Draining`], for those who do not take the lock.
    is_draining: AtomicBool,
    state: Mutex<State>,
}

struct State {
    limit: f32,
    phase: Phase,
    /// By how many octaves answers take longer than their baselines, for no fault of ours.
    offset: f32,
    /// The last limit at which answers took as long as usual.
    good: f32,
    /// Since when the limit is reached in every window.
    full_since: u64,
    /// The last window was slow: one alone may be a hiccup, of either side.
    was_slow: bool,
}

/// The experiment of a lower load.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Watching,
    /// Until what was sent before is answered. With the octaves before it.
    Draining(f32),
    /// One round, of what was sent meanwhile.
    Skipping(f32),
    Measuring(f32),
}

/// How long a route's answers usually take, as the logarithm to base 2 of microseconds: two `f32`, the baseline and
/// the recent average. 0: nothing is known.
#[derive(Debug, Default)]
pub struct Baseline(AtomicU64);

/// Of every service at first, and at least of one that was quiet.
pub const INITIAL: u32 = 50;
const LEAST: f32 = 8.0;
const MOST: f32 = 10_000.0;

/// A window takes at least so long, and so many samples.
const WINDOW_MS: u64 = 100;
const SAMPLES: u32 = 16;
const MOST_SAMPLES: u32 = 500;

/// After so long without an answer what was known is old.
const QUIET_MS: u64 = 10_000;

/// Answers may take so many times their usual time: half of what is in flight waits, and the service is never idle.
const TOLERANCE: f32 = 2.0;

/// By so much it grows in a window of which nothing is known.
const UNKNOWN: f32 = 1.25;

/// Up to here there is no sign of a queue, and the limit grows fast.
const UNTOUCHED: f32 = 1.25;

/// The experiment is made when the limit has fallen to half of what was good, and when it was reached for so long.
const FULL_MS: u64 = 10_000;
const EXPERIMENT: f32 = 0.4;

/// So many octaves faster the answers must be for it: a queue of our making would have shortened by 1.3.
const FASTER: f32 = 0.4;

impl Gradient {
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            began: AtomicU64::new(0),
            last: AtomicU64::new(0),
            samples: AtomicU32::new(0),
            voids: AtomicU32::new(0),
            excess: AtomicI64::new(0),
            most_in_flight: AtomicU32::new(0),
            is_draining: AtomicBool::new(false),
            state: Mutex::new(State {
                limit: INITIAL as f32,
                phase: Phase::Watching,
                offset: 0.0,
                good: INITIAL as f32,
                full_since: 0,
                was_slow: false,
            }),
        }
    }

    /// An answer took so long, where that says something of the service; `in_flight` and `limit` are as they are now. Returns
    /// the limit when it is to change.
    pub fn observe(
        &self,
        baseline: &Baseline,
        took: Option<Duration>,
        in_flight: u32,
        limit: u32,
        now: Instant,
    ) -> Option<u32> {
        let since = now.saturating_duration_since(self.epoch).as_millis() as u64;
        let Some(took) = took else {
            return self.pass_over(in_flight, limit, since);
        };
        // Far from the limit nothing waits on the service for our sake; at the least limit, no less is possible.
        let idle = in_flight * 4 <= limit || in_flight <= LEAST as u32;
        let excess = baseline.learn(took, idle).clamp(-6.0, 6.0);
        if since.saturating_sub(self.last.swap(since, Relaxed)) > QUIET_MS {
            return self.begin_anew(since, limit);
        }
        if self.is_draining.load(Relaxed) {
            self.drained(in_flight, limit, since);
            return None;
        }
        self.excess.fetch_add((excess * 1024.0) as i64, Relaxed);
        self.samples.fetch_add(1, Relaxed);
        self.look(in_flight, limit, since)
    }

    /// Ends the window if it is long enough.
    fn look(&self, in_flight: u32, limit: u32, since: u64) -> Option<u32> {
        self.most_in_flight.fetch_max(in_flight, Relaxed);
        let (samples, voids) = (self.samples.load(Relaxed), self.voids.load(Relaxed));
        let length = since.saturating_sub(self.began.load(Relaxed));
        // Half a round of what may be in flight: what an earlier change has led to must show before the next.
        if samples + voids < (limit / 2).clamp(SAMPLES, MOST_SAMPLES) || length < WINDOW_MS {
            return None;
        }
        // Another thread is at it: this sample is in its window, or in the next.
        let mut state = self.state.try_lock()?;
        // The experiment looks at whole rounds.
        if state.phase != Phase::Watching && samples < limit.min(2 * MOST_SAMPLES) {
            return None;
        }
        let (mean, most) = self.take_window(since);
        match state.phase == Phase::Watching && voids > samples {
            true => state.give_way(most, since),
            false => state.step(mean, most, since),
        }
        let draining = matches!(state.phase, Phase::Draining(_));
        self.is_draining.store(draining, Relaxed);
        let effective = state.effective();
        (effective != limit).then_some(effective)
    }

    /// An answer whose time says nothing. What waits for requests to end goes on, and no experiment lasts for as long as such
    /// answers come.
    fn pass_over(&self, in_flight: u32, limit: u32, since: u64) -> Option<u32> {
        if since.saturating_sub(self.last.load(Relaxed)) > QUIET_MS {
            self.last.store(since, Relaxed);
            // A limit that was learnt stays.
            if self.state.lock().phase != Phase::Watching {
                return self.begin_anew(since, limit);
            }
        }
        if self.is_draining.load(Relaxed) {
            self.drained(in_flight, limit, since);
            return None;
        }
        self.voids.fetch_add(1, Relaxed);
        self.look(in_flight, limit, since)
    }

    /// Ends the window. Returns its mean excess, and the most in flight.
    fn take_window(&self, since: u64) -> (f32, f32) {
        self.began.store(since, Relaxed);
        self.voids.store(0, Relaxed);
        let samples = self.samples.swap(0, Relaxed).max(1);
        let mean = self.excess.swap(0, Relaxed) as f32 / 1024.0 / samples as f32;
        (mean, self.most_in_flight.swap(0, Relaxed) as f32)
    }

    fn drained(&self, in_flight: u32, limit: u32, since: u64) {
        if in_flight <= limit
            && let Some(mut state) = self.state.try_lock()
            && let Phase::Draining(before) = state.phase
        {
            state.phase = Phase::Skipping(before);
            self.take_window(since);
            self.is_draining.store(false, Relaxed);
        }
    }

    fn begin_anew(&self, since: u64, limit: u32) -> Option<u32> {
        let mut state = self.state.lock();
        state.limit = state.limit.max(INITIAL as f32);
        (state.good, state.phase, state.full_since) = (state.limit, Phase::Watching, since);
        self.is_draining.store(false, Relaxed);
        self.take_window(since);
        let effective = state.effective();
        (effective != limit).then_some(effective)
    }
}

impl State {
    fn effective(&self) -> u32 {
        match self.phase {
            Phase::Watching => self.limit as u32,
            _ => (self.limit * EXPERIMENT).max(LEAST) as u32,
        }
    }

    /// A window is over, in which answers took `mean` octaves longer than their baselines, and at most `most` were in
    /// flight.
    fn step(&mut self, mean: f32, most: f32, since: u64) {
        match self.phase {
            Phase::Watching => self.watch(mean, most, since),
            Phase::Draining(_) => {}
            Phase::Skipping(before) => self.phase = Phase::Measuring(before),
            Phase::Measuring(before) => {
                if mean > before - FASTER {
                    self.offset = mean.max(0.0);
                    self.limit = self.limit.max(self.good);
                }
                (self.good, self.phase, self.full_since) = (self.limit, Phase::Watching, since);
            }
        }
    }

    /// A window of which nothing is known is over: no experiment is begun, for nothing could be measured.
    fn give_way(&mut self, most: f32, since: u64) {
        if most * 2.0 >= self.limit {
            self.limit = (self.limit * UNKNOWN).clamp(LEAST, MOST);
        }
        (self.was_slow, self.full_since) = (false, since);
    }

    fn watch(&mut self, mean: f32, most: f32, since: u64) {
        if mean < self.offset {
            self.offset += (mean.max(0.0) - self.offset) / 8.0;
        }
        let ratio = (mean - self.offset).exp2();
        let limit = self.limit;
        let headroom = limit.sqrt();
        let is_used = most * 2.0 >= limit;
        let was_slow = std::mem::replace(&mut self.was_slow, ratio > TOLERANCE);
        if ratio > TOLERANCE && !was_slow {
            return;
        }
        if ratio > TOLERANCE && is_used {
            let wanted = limit * (TOLERANCE / ratio).max(0.5) + headroom;
            let in_a_hurry = ratio > TOLERANCE * TOLERANCE;
            self.limit = if in_a_hurry {
                wanted.min(limit)
            } else {
                (limit + wanted) / 2.0
            };
        } else if ratio <= UNTOUCHED && is_used {
            self.limit = limit * 2.0;
        } else if ratio <= TOLERANCE && is_used {
            self.limit = limit + headroom;
        } else if ratio <= TOLERANCE && limit < INITIAL as f32 {
            self.limit = (limit + headroom).min(INITIAL as f32);
        }
        self.limit = self.limit.clamp(LEAST, MOST);
        if ratio <= TOLERANCE {
            self.good = self.good.max(self.limit);
        }
        let is_full = most + 1.0 >= limit;
        if !is_full {
            self.full_since = since;
        } else if self.limit * 2.0 <= self.good || since - self.full_since > FULL_MS {
            self.full_since = since;
            self.phase = Phase::Draining(mean);
        }
    }
}

// === impl Baseline ===

impl Baseline {
    /// Takes over a sample. Returns by how many octaves it exceeds the baseline.
    ///
    /// The baseline falls with the recent average, and rises to it slowly, while nothing waits. Two threads at once: one
    /// of their samples counts.
    fn learn(&self, took: Duration, idle: bool) -> f32 {
        const RECENT: f32 = 1.0 / 32.0;
        const RISE: f32 = 1.0 / 256.0;
        let sample = (took.as_micros() as f32).max(2.0).log2();
        let packed = self.0.load(Relaxed);
        let (mut base, mut recent) = match packed {
            0 => (sample, sample),
            _ => (
                f32::from_bits((packed >> 32) as u32),
                f32::from_bits(packed as u32),
            ),
        };
        recent += (sample - recent) * RECENT;
        if recent < base {
            base = recent;
        } else if idle {
            base += (recent - base) * RISE;
        }
        let packed = u64::from(base.to_bits()) << 32 | u64::from(recent.to_bits());
        self.0.store(packed, Relaxed);
        sample - base
    }
}
