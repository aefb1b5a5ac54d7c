//! How fast is an instance? A moving average that jumps to a peak at once and comes down slowly, after Finagle's
//! "Peak EWMA": what is slow is left alone at once, and tried again only bit by bit.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Microseconds, of the answers' heads.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

/// After this time without an observation the average has fallen to a third (1/e). Finagle's default is 10 s; half of
/// it, because one slow answer keeps an instance out of most choices until it is forgotten.
const DECAY_MS: f32 = 5_000.0;

impl Latency {
    /// `now_ms` counts from any moment, the same for all calls.
    pub fn observe(&self, sample: Duration, now_ms: u32) {
        let sample = (sample.as_micros() as f32).max(1.0);
        let (average, since) = self.load(now_ms);
        let average = match average {
            Some(average) if sample < average => {
                let old = (-since / DECAY_MS).exp();
                average * old + sample * (1.0 - old)
            }
            _ => sample,
        };
        self.store(average, now_ms);
    }

    /// A failure is no measure of time, but a reason to look elsewhere.
    pub fn penalize(&self, now_ms: u32) {
        /// Beside an instance that answers in a millisecond, 20 failures weigh like a second.
        const FACTOR: f32 = 2.0;
        const LEAST: f32 = 1_000.0;
        const MOST: f32 = 10_000_000.0;
        let average = self.load(now_ms).0.unwrap_or(LEAST);
        self.store((average * FACTOR).clamp(LEAST, MOST), now_ms);
    }

    /// The average, in microseconds, as it has decayed by now; `None` before the first observation. While an answer is
    /// awaited nothing is forgotten: who does not answer at all must not look better and better.
    pub fn average(&self, now_ms: u32, is_awaited: bool) -> Option<f32> {
        let (average, since) = self.load(now_ms);
        let kept = match is_awaited {
            true => 1.0,
            false => (-since / DECAY_MS).exp(),
        };
        average.map(|average| average * kept)
    }

    /// Nothing is known any more.
    pub fn forget(&self) {
        self.0.store(0, Relaxed);
    }

    fn load(&self, now_ms: u32) -> (Option<f32>, f32) {
        let packed = self.0.load(Relaxed);
        let average = f32::from_bits((packed >> 32) as u32);
        // The clock wraps after 49 days; two threads may see it a little apart.
        let since = now_ms.wrapping_sub(packed as u32);
        let since = if since > u32::MAX / 2 { 0 } else { since };
        ((average > 0.0).then_some(average), since as f32)
    }

    /// Two threads at once: one of their observations counts.
    fn store(&self, average: f32, now_ms: u32) {
        let packed = u64::from(average.to_bits()) << 32 | u64::from(now_ms);
        self.0.store(packed, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_jumps_to_a_peak_and_comes_down_slowly() {
        let latency = Latency::default();
        let ms = Duration::from_millis;
        assert_eq!(latency.average(0, false), None);
        latency.observe(ms(2), 0);
        latency.observe(ms(50), 1);
        assert_eq!(
            latency.average(1, false),
            Some(50_000.0),
            "a peak counts at once"
        );
        latency.observe(ms(2), 2);
        assert!(
            latency.average(2, false) > Some(49_000.0),
            "one good answer does not"
        );
        assert_eq!(latency.average(7_000, true), latency.average(2, true));
        let later = latency.average(2 + 5_000, false).unwrap();
        assert!((18_000.0..19_000.0).contains(&later), "{later}");
    }

    #[test]
    fn failures_make_it_worse_and_worse_up_to_a_bound() {
        let latency = Latency::default();
        latency.observe(Duration::from_millis(2), 0);
        latency.penalize(0);
        assert_eq!(latency.average(0, false), Some(4_000.0));
        (0..100).for_each(|_| latency.penalize(0));
        assert_eq!(latency.average(0, false), Some(10_000_000.0));
    }
}
