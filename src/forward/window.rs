//! How many, lately? Counts over a sliding window, by atomics alone: breakers, retry budgets and outlier detection
//! count every attempt here.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::handover::Clock;

/// The window is counted in this many slices, of which the oldest is dropped as a new one begins: a sum covers between
/// nine tenths of the window and all of it.
pub const SLICES: usize = 10;

/// Counts of `K` kinds of things.
///
/// Threads may count while another turns the window: a count that falls into that instant may be lost. Verdicts are
/// made of many.
pub struct Window<const K: usize> {
    epoch: Instant,
    slice_ms: u64,
    /// The number of the latest slice.
    latest: AtomicU64,
    slices: [[AtomicU32; K]; SLICES],
}

impl<const K: usize> Window<K> {
    pub fn new(length: Duration, now: Instant) -> Self {
        Self {
            // A window back: what another process counted has its place.
            epoch: now.checked_sub(length).unwrap_or(now),
            slice_ms: (length.as_millis() as u64 / SLICES as u64).max(1),
            latest: AtomicU64::new(0),
            slices: [const { [const { AtomicU32::new(0) }; K] }; SLICES],
        }
    }

    pub fn add(&self, kind: usize, count: u32, now: Instant) {
        let slice = self.turn(now);
        self.slices[slice][kind].fetch_add(count, Relaxed);
    }

    pub fn sums(&self, now: Instant) -> [u64; K] {
        self.turn(now);
        let mut sums = [0; K];
        for slice in &self.slices {
            for (sum, count) in sums.iter_mut().zip(slice) {
                *sum += u64::from(count.load(Relaxed));
            }
        }
        sums
    }

    pub fn clear(&self) {
        self.slices
            .iter()
            .flatten()
            .for_each(|c| c.store(0, Relaxed));
    }

    /// What each slice counted, and when, for another process.
    pub fn carried(&self, clock: &Clock) -> Vec<(i64, Vec<u32>)> {
        self.turn(clock.here());
        let latest = self.latest.load(Relaxed);
        let slices = (0..SLICES as u64).filter_map(|back| {
            let number = latest.checked_sub(back)?;
            let slice = &self.slices[number as usize % SLICES];
            let counts: Vec<u32> = slice.iter().map(|count| count.load(Relaxed)).collect();
            let at = self.epoch + Duration::from_millis(number * self.slice_ms);
            counts
                .iter()
                .any(|n| *n > 0)
                .then(|| (clock.millis(at), counts))
        });
        slices.collect()
    }

    /// Adds what another process counted.
    pub fn take_over(&self, slices: Vec<(i64, Vec<u32>)>, clock: &Clock) {
        self.turn(clock.here());
        let latest = self.latest.load(Relaxed);
        for (at, counts) in slices {
            let since = |at: Instant| at.checked_duration_since(self.epoch);
            let Some(since) = clock.instant(at).and_then(since) else {
                continue;
            };
            let number = (since.as_millis() as u64 / self.slice_ms).min(latest);
            if latest - number < SLICES as u64 {
                let slice = &self.slices[number as usize % SLICES];
                for (count, carried) in slice.iter().zip(counts) {
                    count.fetch_add(carried, Relaxed);
                }
            }
        }
    }

    /// Empties the slices that lie more than a window back. Returns the place of the latest.
    fn turn(&self, now: Instant) -> usize {
        let since = now.saturating_duration_since(self.epoch);
        let number = (since.as_secs() * 1000 + u64::from(since.subsec_millis())) / self.slice_ms;
        let latest = self.latest.load(Relaxed);
        if number > latest
            && self
                .latest
                .compare_exchange(latest, number, Relaxed, Relaxed)
                .is_ok()
        {
            let passed = (number - latest).min(SLICES as u64);
            for passed in 0..passed {
                let place = (number - passed) as usize % SLICES;
                self.slices[place].iter().for_each(|c| c.store(0, Relaxed));
            }
        }
        number.max(latest) as usize % SLICES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_a_window_back_is_forgotten() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let window = Window::<2>::new(Duration::from_secs(1), start);
        window.add(0, 1, at(0));
        window.add(1, 1, at(450));
        window.add(1, 1, at(999));
        assert_eq!(window.sums(at(999)), [1, 2]);
        assert_eq!(window.sums(at(1000)), [0, 2]);
        assert_eq!(window.sums(at(1450)), [0, 1]);
        assert_eq!(window.sums(at(5000)), [0, 0]);
        window.add(0, 1, at(5000));
        assert_eq!(window.sums(at(4000)), [1, 0], "time does not go back");
        window.clear();
        assert_eq!(window.sums(at(5000)), [0, 0]);
    }
}
