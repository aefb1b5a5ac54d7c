//! The limit that follows the latency, in the manner of Netflix' "concurrency-limits" (Gradient2): while answers take
//! as long as usual, the limit grows; when they take longer, it falls by as much.
//!
//! Latency is compared with the usual one of the same route and method, as a ratio, averaged over all of them: a
//! service whose slow routes are asked for more often has not become slower.
//!
//! But longer than usual need not mean a queue: a dependency may have become slow, or a cache cold. Less load would not
//! help then, it would only be refused. So before a low limit is believed it is tried out: the load is taken back to
//! 40 %, and if answers do not come faster for it, they take as long as they take, and that is usual from now on.

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
        self.most_in_flight.fetch_max(in_flight, Relaxed);
        let samples = self.samples.fetch_add(1, Relaxed) + 1;
        let length = since.saturating_sub(self.began.load(Relaxed));
        // Half a round of what may be in flight: what an earlier change has led to must show before the next.
        if samples < (limit / 2).clamp(SAMPLES, MOST_SAMPLES) || length < WINDOW_MS {
            return None;
        }
        // Another thread is at it: this sample is in its window, or in the next.
        let mut state = self.state.try_lock()?;
        // The experiment looks at whole rounds.
        if state.phase != Phase::Watching && samples < limit.min(2 * MOST_SAMPLES) {
            return None;
        }
        let (mean, most) = self.take_window(since);
        state.step(mean, most, since);
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
        }
        None
    }

    /// Ends the window. Returns its mean excess, and the most in flight.
    fn take_window(&self, since: u64) -> (f32, f32) {
        self.began.store(since, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::{BinaryHeap, VecDeque};

    /// A service on a clock of its own. Requests that find no room wait here for up to a second.
    struct Simulation {
        gradient: Gradient,
        baseline: Baseline,
        limit: u32,
        /// 0: as many as come.
        workers: usize,
        random: fastrand::Rng,
    }

    /// What a second of it came to.
    #[derive(Clone, Copy, Default)]
    struct Second {
        offered: u32,
        answered: u32,
        limit: u32,
    }

    impl Simulation {
        fn with_workers(workers: usize) -> Self {
            Self {
                gradient: Gradient::new(Instant::now()),
                baseline: Baseline::default(),
                limit: INITIAL,
                workers,
                random: fastrand::Rng::with_seed(1),
            }
        }

        /// `time`: microseconds for an answer that comes at a second, by a random number from 0 to 1.
        fn run(
            mut self,
            seconds: u64,
            rate: impl Fn(u64) -> u64,
            time: impl Fn(u64, f64) -> u64,
        ) -> Vec<Second> {
            let mut result = vec![Second::default(); seconds as usize];
            // What happens when: an arrival, or the end of the work on what was sent at a time.
            let mut events = BinaryHeap::from([Reverse((0u64, None::<u64>))]);
            let (mut waiting, mut queued) = (VecDeque::new(), VecDeque::new());
            let (mut in_flight, mut busy) = (0u32, 0);
            while let Some(Reverse((now, event))) = events.pop() {
                let second = now / 1_000_000;
                let Some(row) = result.get_mut(second as usize) else {
                    break;
                };
                match event {
                    None => {
                        row.offered += 1;
                        waiting.push_back(now);
                        let gap = -self.random.f64().max(1e-9).ln() * 1e6 / rate(second) as f64;
                        events.push(Reverse((now + gap as u64 + 1, None)));
                    }
                    Some(sent) => {
                        row.answered += 1;
                        busy -= 1;
                        let clock = self.gradient.epoch + Duration::from_micros(now);
                        let took = Duration::from_micros(now - sent);
                        let changed = self.gradient.observe(
                            &self.baseline,
                            Some(took),
                            in_flight,
                            self.limit,
                            clock,
                        );
                        self.limit = changed.unwrap_or(self.limit);
                        in_flight -= 1;
                    }
                }
                while in_flight < self.limit
                    && let Some(came) = waiting.pop_front()
                {
                    if now - came <= 1_000_000 {
                        in_flight += 1;
                        queued.push_back(now);
                    }
                }
                while (self.workers == 0 || busy < self.workers)
                    && let Some(sent) = queued.pop_front()
                {
                    busy += 1;
                    let end = now + time(second, self.random.f64());
                    events.push(Reverse((end, Some(sent))));
                }
                row.limit = self.limit;
            }
            result
        }
    }

    /// Of what was offered from second `from` to `to`, in percent.
    fn answered(seconds: &[Second], from: usize, to: usize) -> u32 {
        let sum = |what: fn(&Second) -> u32| seconds[from..to].iter().map(what).sum::<u32>();
        sum(|s| s.answered) * 100 / sum(|s| s.offered)
    }

    /// Between half and one and a half times as long.
    fn around(micros: u64, random: f64) -> u64 {
        (micros as f64 * (0.5 + random)) as u64
    }

    #[test]
    fn three_times_too_much_keeps_a_service_busy_and_its_queue_short() {
        for (workers, micros) in [(4, 20_000), (20, 20_000), (20, 500_000), (300, 50_000)] {
            let capacity = workers as u64 * 1_000_000 / micros;
            let rate = |second| {
                if second < 20 {
                    capacity * 8 / 10
                } else {
                    capacity * 3
                }
            };
            let simulation = Simulation::with_workers(workers);
            let seconds = simulation.run(60, rate, |_, random| around(micros, random));
            assert!(
                answered(&seconds, 2, 20) >= 99,
                "{workers} x {micros}: at ease"
            );
            let done: u32 = seconds[25..].iter().map(|s| s.answered).sum();
            let goodput = u64::from(done) * 100 / (35 * capacity);
            assert!(goodput >= 88, "{workers} x {micros}: {goodput} %");
            let worst = seconds[25..].iter().map(|s| s.limit).max().unwrap();
            let most = (workers as u32 * 6).max(30);
            assert!(worst <= most, "{workers} x {micros}: a limit of {worst}");
        }
    }

    #[test]
    fn a_service_without_a_queue_is_left_alone_however_its_latency_varies() {
        type Time = fn(u64, f64) -> u64;
        let cases: [(&str, u64, Time); 4] = [
            (
                "a cache",
                1000,
                |_, r| if r < 0.5 { 5_000 } else { 200_000 },
            ),
            ("a long tail", 2000, |_, r| (5_000.0 / (1.001 - r)) as u64),
            ("a dependency that becomes slow", 200, |second, r| {
                around(if second < 20 { 200_000 } else { 800_000 }, r)
            }),
            ("quick refusals for a while", 600, |second, r| {
                let quick = (20..25).contains(&second) && r < 0.9;
                if quick { 2_000 } else { around(150_000, r) }
            }),
        ];
        for (name, rate, time) in cases {
            let seconds = Simulation::with_workers(0).run(90, |_| rate, time);
            for (from, to, least) in [(3, 20, 95), (20, 30, 70), (30, 60, 97), (60, 90, 97)] {
                let share = answered(&seconds, from, to);
                assert!(share >= least, "{name}: {share} % from second {from} on");
            }
        }
    }

    #[test]
    fn a_baseline_that_was_learned_in_a_queue_is_mended() {
        // From the first moment on, three times too much.
        let simulation = Simulation::with_workers(20);
        let seconds = simulation.run(120, |_| 3000, |_, random| around(20_000, random));
        let late = seconds[90..].iter().map(|s| s.limit).max().unwrap();
        assert!(late <= 150, "{late}");
    }

    #[test]
    fn what_is_not_used_is_not_taken_away() {
        let simulation = Simulation::with_workers(0);
        let slower = |second, random| around(if second < 10 { 10_000 } else { 100_000 }, random);
        let seconds = simulation.run(30, |_| 30, slower);
        assert!(seconds.iter().all(|second| second.limit >= INITIAL));
    }
    #[test]
    fn answers_without_a_time_change_nothing_but_end_an_experiment() {
        let (gradient, baseline) = (Gradient::new(Instant::now()), Baseline::default());
        let at = |ms| gradient.epoch + Duration::from_millis(ms);
        let mut limit = INITIAL;
        let mut observe = |took, in_flight, ms| {
            let changed = gradient.observe(&baseline, took, in_flight, limit, at(ms));
            limit = changed.unwrap_or(limit);
            limit
        };
        for ms in 0..1000 {
            assert_eq!(observe(None, 50, ms), INITIAL);
        }
        let mut ms = 1000;
        while gradient.state.lock().phase == Phase::Watching {
            let slower = Duration::from_millis(if ms < 3000 { 2 } else { 40 });
            observe(Some(slower), limit_of(&gradient), ms);
            ms += 1;
            assert!(ms < 60_000, "an experiment is made");
        }
        let low = observe(None, 0, ms);
        assert!(!gradient.is_draining.load(Relaxed), "nothing is in flight");
        assert_eq!(observe(None, 0, ms + 9_000), low);
        assert!(observe(None, 0, ms + 11_000) >= INITIAL, "nothing is known");
    }

    fn limit_of(gradient: &Gradient) -> u32 {
        gradient.state.lock().effective()
    }
}
