//! How late is a loop? Each has a pulse, a task that is due at fixed times. When it comes late, so did everything else on that
//! loop: what was measured meanwhile tells of the loop, and not of the backend that was waited for.

use std::cell::Cell;
use std::time::{Duration, Instant};

use prometheus::Histogram;
use tokio::task::yield_now;
use tokio::time::sleep_until;

/// Between two beats. What holds up a loop for longer than this and [`LATE`] is always seen; 50 wake-ups a second are some
/// 0.03 % of a processor.
const PERIOD: Duration = Duration::from_millis(20);

/// A beat that comes so much later than it is due shows a loop that was held up. The timers themselves are exact to a
/// millisecond, and a loop with a hundred connections that all have something to do needs a few for its round.
const LATE: Duration = Duration::from_millis(10);

/// The part of a time that may be the loop's own.
const MOST_OF_IT: u32 = 4;

/// What is known of a thread's loop.
#[derive(Clone, Copy)]
struct Pulse {
    /// When the next beat is.
    due: Instant,
    /// By how much those were late that were, together.
    late: Duration,
    /// How long the loop took for all else that had something to do, at the last two beats.
    rounds: [Duration; 2],
}

thread_local! {
    static PULSE: Cell<Option<Pulse>> = const { Cell::new(None) };
}

/// For how long this thread's loop has been held up, so far. Nothing on threads without a loop.
pub fn held_up(now: Instant) -> Duration {
    PULSE
        .get()
        .map_or(Duration::ZERO, |pulse| pulse.held_up(now))
}

/// Whether so long a time tells of the loop, which was held up for so long in it: what takes seconds is not quick because its
/// loop was late for some milliseconds. What waits for a backend waits for a round or two of a busy loop in any case, before it
/// is sent and when its answer is there.
pub fn is_of_the_loop(took: Duration, held_up: Duration) -> bool {
    let round = PULSE.get().map_or(Duration::ZERO, |pulse| pulse.round());
    held_up.max(round) > took / MOST_OF_IT
}

/// Beats as long as the loop runs.
pub async fn beat(lag: Histogram) {
    let mut pulse = Pulse {
        due: Instant::now() + PERIOD,
        late: Duration::ZERO,
        rounds: [Duration::ZERO; 2],
    };
    loop {
        PULSE.set(Some(pulse));
        sleep_until(pulse.due.into()).await;
        let now = Instant::now();
        lag.observe(pulse.comes(now).as_secs_f64());
        PULSE.set(Some(pulse));
        // It comes again behind all that is ready, and what has become so meanwhile.
        yield_now().await;
        pulse.rounds = [pulse.rounds[1], now.elapsed()];
    }
}

// === impl Pulse ===

impl Pulse {
    /// A beat. Returns how late it is.
    fn comes(&mut self, now: Instant) -> Duration {
        let lag = now.saturating_duration_since(self.due);
        if lag > LATE {
            self.late += lag;
        }
        self.due = now + PERIOD;
        lag
    }

    fn round(&self) -> Duration {
        self.rounds[0].max(self.rounds[1])
    }

    /// A beat that is overdue counts as well: who asks may be ahead of it in the loop's queue.
    fn held_up(&self, now: Instant) -> Duration {
        let overdue = now.saturating_duration_since(self.due);
        self.late
            + if overdue > LATE {
                overdue
            } else {
                Duration::ZERO
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_under_way_when_the_loop_was_late_is_known_for_it() {
        let start = Instant::now();
        let (at, ms) = (
            |ms| start + Duration::from_millis(ms),
            Duration::from_millis,
        );
        let mut pulse = Pulse {
            due: at(20),
            late: Duration::ZERO,
            rounds: [Duration::ZERO; 2],
        };
        assert_eq!(pulse.held_up(at(29)), ms(0), "a little late is usual");
        assert_eq!(pulse.held_up(at(31)), ms(11), "no beat was there yet");
        assert_eq!(pulse.comes(at(300)), ms(280));
        assert_eq!(pulse.held_up(at(301)), ms(280), "it waited as well");
        assert_eq!(pulse.comes(at(321)), ms(1));
        assert_eq!(pulse.held_up(at(322)), ms(280));
    }

    #[test]
    fn what_takes_long_by_itself_is_not_of_the_loop() {
        let ms = Duration::from_millis;
        assert!(is_of_the_loop(ms(300), ms(280)));
        assert!(is_of_the_loop(ms(40), ms(11)));
        assert!(!is_of_the_loop(ms(5000), ms(280)));
        assert!(!is_of_the_loop(ms(1), ms(0)) && !is_of_the_loop(ms(0), ms(0)));
    }

    #[tokio::test]
    async fn what_takes_a_few_rounds_of_a_busy_loop_is_of_the_loop() {
        let ms = Duration::from_millis;
        let options = prometheus::HistogramOpts::new("lag", "of this test");
        tokio::spawn(beat(Histogram::with_opts(options).unwrap()));
        // Four tasks that are always ready, and take a millisecond each.
        for _ in 0..4 {
            tokio::spawn(async {
                loop {
                    std::thread::sleep(Duration::from_millis(1));
                    yield_now().await;
                }
            });
        }
        tokio::time::sleep(ms(100)).await;
        assert!(is_of_the_loop(ms(10), ms(0)));
        assert!(!is_of_the_loop(ms(60_000), ms(0)));
    }

    #[test]
    fn a_thread_without_a_loop_is_never_late() {
        assert_eq!(
            held_up(Instant::now() + Duration::from_secs(60)),
            Duration::ZERO
        );
    }
}
