//! A line that would be written again and again: once a second at most, and then it says for how many it stands.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// When times began to be counted.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[derive(Default)]
pub struct Seldom {
    /// The millisecond after the start from which on the next line may be written.
    next: AtomicU64,
    /// Since the last line.
    count: AtomicU64,
}

impl Seldom {
    pub const fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }

    /// It has happened once more. How often since the last line, when it is time for one.
    pub fn again(&self) -> Option<u64> {
        self.again_at(START.elapsed().as_millis() as u64)
    }

    fn again_at(&self, now: u64) -> Option<u64> {
        self.count.fetch_add(1, Relaxed);
        let next = self.next.load(Relaxed);
        let is_time = now >= next
            && (self.next)
                .compare_exchange(next, now + 1000, Relaxed, Relaxed)
                .is_ok();
        is_time.then(|| self.count.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_second_stands_for_all_since_the_last_one() {
        let seldom = Seldom::new();
        assert_eq!(seldom.again_at(5), Some(1));
        assert_eq!([seldom.again_at(5), seldom.again_at(1004)], [None; 2]);
        assert_eq!(seldom.again_at(1005), Some(3));
        assert_eq!(seldom.again_at(9000), Some(1));
    }
}
