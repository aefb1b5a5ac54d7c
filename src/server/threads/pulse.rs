//! How late is a loop? Each has a pulse, a task that is due at fixed times. When it comes late, so did everything else on that
//! loop: what was measured meanwhile tells of the loop, and not of the backend that was waited for.

use std::cell::Cell;
use std::time::{Duration, Instant};

use prometheus::Histogram;
use tokio::time::sleep_until;

/// Between two beats. What holds up a loop for longer than this and [`LATE`] is always seen; 50 wake-ups a second are some
/// 0.03 % of a processor.
const PERIOD: Duration = Duration::from_millis(20);

/// A beat that comes so much later than it is due shows a loop that was held up. The timers themselves are exact to a
/// millisecond, and a loop with a hundred connections that all have something to do needs a few for its round.
const LATE: Duration = Duration::from_millis(10);

/// What is known of a thread's loop.
#[derive(Clone, Copy)]
struct Pulse {
    /// When the next beat is.
    due: Instant,
    /// When the last one came that was late.
    late: Option<Instant>,
}

thread_local! {
    static PULSE: Cell<Option<Pulse>> = const { Cell::new(None) };
}

/// Whether this thread's loop was held up in this time, as far as the one that asks can have been kept waiting by it. Never on
/// threads without a loop.
pub fn was_held_up(since: Instant, now: Instant) -> bool {
    PULSE.get().is_some_and(|pulse| pulse.was_late(since, now))
}

/// Beats as long as the loop runs.
pub async fn beat(lag: Histogram) {
    let mut pulse = Pulse {
        due: Instant::now() + PERIOD,
        late: None,
    };
    loop {
        PULSE.set(Some(pulse));
        sleep_until(pulse.due.into()).await;
        let now = Instant::now();
        lag.observe(pulse.comes(now).as_secs_f64());
    }
}

// === impl Pulse ===

impl Pulse {
    /// A beat. Returns how late it is.
    fn comes(&mut self, now: Instant) -> Duration {
        let lag = now.saturating_duration_since(self.due);
        if lag > LATE {
            self.late = Some(now);
        }
        self.due = now + PERIOD;
        lag
    }

    /// A beat that is overdue counts as well: who asks may be ahead of it in the loop's queue.
    fn was_late(&self, since: Instant, now: Instant) -> bool {
        now > self.due + LATE || self.late.is_some_and(|late| since < late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_under_way_when_the_loop_was_late_is_known_for_it() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse {
            due: at(20),
            late: None,
        };
        assert!(!pulse.was_late(at(0), at(29)), "a little late is usual");
        assert!(pulse.was_late(at(0), at(31)), "no beat was there yet");
        assert_eq!(pulse.comes(at(300)), Duration::from_millis(280));
        assert!(pulse.was_late(at(0), at(301)), "it waited as well");
        assert!(pulse.was_late(at(299), at(5000)), "however long it takes");
        assert!(!pulse.was_late(at(301), at(302)), "it began behind that");
        assert_eq!(pulse.comes(at(321)), Duration::from_millis(1));
        assert!(!pulse.was_late(at(301), at(322)));
    }

    #[test]
    fn a_thread_without_a_loop_is_never_late() {
        let now = Instant::now();
        assert!(!was_held_up(now, now + Duration::from_secs(60)));
    }
}
