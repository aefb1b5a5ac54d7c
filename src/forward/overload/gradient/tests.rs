//! Services with and without queues, with steady and wild latencies, on a clock of their own.

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
    /// How late the gateway is, in microseconds: what took less than four times that says nothing.
    lag: u64,
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
            lag: 0,
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
                    let took =
                        (now - sent > 4 * self.lag).then_some(Duration::from_micros(now - sent));
                    let changed =
                        self.gradient
                            .observe(&self.baseline, took, in_flight, self.limit, clock);
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
fn a_gateway_that_is_late_itself_gives_way_but_not_to_what_is_slow_by_far() {
    // 500 at a time, of which nothing is known but that the gateway is late.
    let mut simulation = Simulation::with_workers(0);
    simulation.lag = 10_000;
    let seconds = simulation.run(20, |_| 25_000, |_, random| around(20_000, random));
    let share = answered(&seconds, 2, 20);
    assert!(share >= 99, "{share} %");

    // Three times too much for a service that is slow, as far as can be told.
    let mut simulation = Simulation::with_workers(20);
    simulation.lag = 10_000;
    let rate = |second| if second < 20 { 800 } else { 3000 };
    let seconds = simulation.run(60, rate, |_, random| around(20_000, random));
    let done: u32 = seconds[25..].iter().map(|s| s.answered).sum();
    assert!(done * 100 / (35 * 1000) >= 88, "{done}");
    let worst = seconds[25..].iter().map(|s| s.limit).max().unwrap();
    assert!(worst <= 200, "a limit of {worst}");
}

#[test]
fn answers_without_a_time_change_nothing_that_is_not_used_but_end_an_experiment() {
    let (gradient, baseline) = (Gradient::new(Instant::now()), Baseline::default());
    let at = |ms| gradient.epoch + Duration::from_millis(ms);
    let mut limit = INITIAL;
    let mut observe = |took, in_flight, ms| {
        let changed = gradient.observe(&baseline, took, in_flight, limit, at(ms));
        limit = changed.unwrap_or(limit);
        limit
    };
    for ms in 0..1000 {
        assert_eq!(observe(None, 20, ms), INITIAL);
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
