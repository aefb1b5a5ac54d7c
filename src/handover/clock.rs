//! A moment that another process understands: milliseconds of the machine's own clock, which neither a restart nor a
//! correction of the time of day changes. It is the clock of [`Instant`], which itself cannot be passed on.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Both readings of one moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    here: Instant,
    millis: i64,
}

impl Clock {
    pub fn now() -> Self {
        let here = Instant::now();
        let time = clock_gettime(ClockId::Monotonic);
        let millis = time.tv_sec.saturating_mul(1000) + time.tv_nsec / 1_000_000;
        Self { here, millis }
    }

    pub fn here(&self) -> Instant {
        self.here
    }

    pub fn millis(&self, at: Instant) -> i64 {
        let after = at.saturating_duration_since(self.here).as_millis() as i64;
        let before = self.here.saturating_duration_since(at).as_millis() as i64;
        self.millis.saturating_add(after).saturating_sub(before)
    }

    /// `None`: that lies further back, or ahead, than this process can tell.
    pub fn instant(&self, millis: i64) -> Option<Instant> {
        let apart = Duration::from_millis(millis.abs_diff(self.millis));
        match millis >= self.millis {
            true => self.here.checked_add(apart),
            false => self.here.checked_sub(apart),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_in_both_readings() {
        let (one, other) = (Clock::now(), Clock::now());
        for apart in [-1500, 0, 90_000] {
            let at = one.instant(one.millis + apart).unwrap();
            let there = other.instant(one.millis(at)).unwrap();
            let error = at.max(there) - at.min(there);
            assert!(error <= Duration::from_millis(2), "{error:?}");
        }
    }
}
