//! How slowly may a client go? A body that trickles in keeps a connection, a slot and often a backend busy for hours, as
//! does an answer that is taken a byte at a time; no single gap of either is long.
//!
//! What arrives is judged in [`Pace`] by the time that was spent waiting for the client, and by no other: while a backend
//! does not take what there is, or we do not read for another reason, nobody waits for the client. It costs two looks at
//! the clock for a wait, and no timer: the longest gap is Pingora's read time-out.
//!
//! What is sent is judged by what the client's machine has acknowledged ([`Taking`]): how much of it fits into the
//! kernel's buffer says nothing about who reads it. The connection's one timer looks now and then while an answer is
//! under way, and costs an ordinary one nothing.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};
use pingora::protocols::l4::ext::{TCP_INFO, get_tcp_info};

/// So much must move within a window.
#[derive(Clone, Copy, Debug)]
pub struct MinRate {
    /// Bytes in a whole window.
    least: u64,
    window: Duration,
}

/// What came of a request's body, over the last window of waiting for it.
#[derive(Debug)]
pub struct Pace {
    rate: MinRate,
    /// A read waits since then.
    since: Option<Instant>,
    /// How long reads have waited in all.
    waited: Duration,
    /// Bytes of the last slices; that of the slice at hand has the number [`Pace::slice`] in turn.
    slices: [u64; SLICES + 1],
    slice: u64,
}

/// The body came slower than it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSlow;

/// Whether a client takes what is sent to it.
#[derive(Debug)]
pub struct Taking {
    socket: RawFd,
    rate: MinRate,
    /// It has something to take.
    owes: Option<Owed>,
}

/// Octets of an answer, counted from the connection's first one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Given to the kernel.
    pub written: u64,
    /// Known to be with the client's machine.
    pub acked: u64,
}

/// What there was for a client to take at a moment.
#[derive(Clone, Copy, Debug)]
struct Owed {
    since: Instant,
    then: Sent,
}

/// Over which a rate is an average; shorter where no gap may be so long.
const WINDOW: Duration = Duration::from_secs(10);

/// Parts of a window in which it slides.
const SLICES: usize = 10;

// === impl MinRate ===

impl MinRate {
    /// `per_second` bytes; 0: any. `patience`: the longest gap.
    pub fn new(per_second: u64, patience: Duration) -> Option<Self> {
        let window = WINDOW.min(patience);
        let least = u128::from(per_second) * window.as_millis() / 1000;
        (least > 0).then_some(Self {
            least: u64::try_from(least).unwrap_or(u64::MAX),
            window,
        })
    }

    /// A gap that is too slow by itself.
    pub fn window(self) -> Duration {
        self.window
    }

    /// How long so many bytes may take.
    pub fn time_for(self, bytes: u64) -> Duration {
        let windows = u128::from(bytes) * self.window.as_millis() / u128::from(self.least);
        Duration::from_millis(u64::try_from(windows).unwrap_or(u64::MAX))
    }

    fn slice(self) -> Duration {
        self.window / SLICES as u32
    }
}

// === impl Pace ===

impl Pace {
    pub fn new(rate: MinRate) -> Self {
        Self {
            rate,
            since: None,
            waited: Duration::ZERO,
            slices: [0; SLICES + 1],
            slice: 0,
        }
    }

    /// A read finds nothing, and waits for the client.
    ///
    /// # Errors
    /// When there was too little already by the time at which it was last waited for.
    pub fn waits(&mut self) -> Result<(), TooSlow> {
        if self.since.is_none() {
            self.judge()?;
            self.since = Some(Instant::now());
        }
        Ok(())
    }

    /// Nobody reads at the moment. The time until now counts.
    pub fn pauses(&mut self) {
        if let Some(since) = self.since.take() {
            self.count(since.elapsed(), 0);
        }
    }

    /// # Errors
    /// When that is too little for the time that it took.
    pub fn arrived(&mut self, bytes: usize) -> Result<(), TooSlow> {
        let waited = self.since.take().map(|since| since.elapsed());
        self.count(waited.unwrap_or_default(), bytes as u64);
        self.judge()
    }

    fn count(&mut self, waited: Duration, bytes: u64) {
        const PLACES: u64 = SLICES as u64 + 1;
        self.waited += waited;
        let now = (self.waited.as_nanos() / self.rate.slice().as_nanos()) as u64;
        for slice in (self.slice + 1..=now).rev().take(PLACES as usize) {
            self.slices[(slice % PLACES) as usize] = 0;
        }
        self.slice = now;
        self.slices[(now % PLACES) as usize] += bytes;
    }

    fn judge(&self) -> Result<(), TooSlow> {
        let is_long = self.waited >= self.rate.window;
        match is_long && self.slices.iter().sum::<u64>() < self.rate.least {
            true => Err(TooSlow),
            false => Ok(()),
        }
    }
}

// === impl Sent ===

impl Sent {
    pub fn of(info: &TCP_INFO) -> Self {
        Self {
            // What was sent again is in the first number twice.
            written: info.tcpi_bytes_sent.saturating_sub(info.tcpi_bytes_retrans)
                + u64::from(info.tcpi_notsent_bytes),
            acked: info.tcpi_bytes_acked,
        }
    }
}

// === impl Taking ===

impl Taking {
    pub fn new(socket: RawFd, rate: MinRate) -> Self {
        Self {
            socket,
            rate,
            owes: None,
        }
    }

    /// Ends the connection. Pingora, which waits to write, finds it closed.
    pub fn give_up(&self) {
        // It fails only for what is over already.
        let _ = shutdown(self.socket, Shutdown::Both);
    }

    /// Looks at the client's end.
    ///
    /// # Errors
    /// When it took too little of what there was for it. Otherwise, when to look again.
    pub fn look(&mut self, now: Instant) -> Result<Instant, TooSlow> {
        let again = now + self.rate.window / 2;
        // A connection that is not TCP has the gap between two pieces alone.
        let Ok(info) = get_tcp_info(self.socket) else {
            return Ok(again);
        };
        let has_something = info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0;
        let sent = has_something.then(|| Sent::of(&info));
        self.judge(sent, now)?;
        Ok(again)
    }

    /// `sent`: to a client that has something to take.
    ///
    /// # Errors
    /// When it takes that too slowly.
    pub(super) fn judge(&mut self, sent: Option<Sent>, now: Instant) -> Result<(), TooSlow> {
        let Some(sent) = sent else {
            self.owes = None;
            return Ok(());
        };
        let Owed { since, then } = *self.owes.get_or_insert(Owed {
            since: now,
            then: sent,
        });
        // What it has to take now is newer than all that there was then: behind a backend that gives small pieces, and
        // at the end of a long way, there is always some.
        let has_taken_all = sent.acked >= then.written;
        if !has_taken_all && now.saturating_duration_since(since) < self.rate.window {
            return Ok(());
        }
        self.owes = Some(Owed {
            since: now,
            then: sent,
        });
        match has_taken_all || sent.acked.saturating_sub(then.acked) >= self.rate.least {
            true => Ok(()),
            false => Err(TooSlow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate() -> MinRate {
        MinRate::new(1000, Duration::from_secs(30)).unwrap()
    }

    /// So many bytes, after so long a wait.
    fn came(pace: &mut Pace, waited: Duration, bytes: u64) -> Result<(), TooSlow> {
        pace.count(waited, bytes);
        pace.judge()
    }

    #[test]
    fn a_body_may_be_slow_for_less_than_a_window() {
        let mut pace = Pace::new(rate());
        for _ in 0..9 {
            assert_eq!(came(&mut pace, SECOND, 1), Ok(()));
        }
        assert_eq!(came(&mut pace, SECOND, 1), Err(TooSlow));
    }

    #[test]
    fn the_rate_is_kept_in_every_window_not_on_the_whole() {
        let mut pace = Pace::new(rate());
        assert_eq!(came(&mut pace, SECOND, 1_000_000), Ok(()));
        let slow = (1..100).find(|_| came(&mut pace, SECOND, 1).is_err());
        assert!(slow.is_some_and(|at| (10..=11).contains(&at)), "{slow:?}");
    }

    #[test]
    fn the_time_for_so_many_bytes_is_that_of_the_rate() {
        assert_eq!(rate().time_for(5000), SECOND * 5);
        assert_eq!(rate().time_for(0), Duration::ZERO);
        assert!(rate().time_for(u64::MAX) > SECOND * 1_000_000);
    }

    #[test]
    fn who_keeps_the_rate_is_never_refused() {
        for (step, bytes) in [(SECOND, 1000), (SECOND / 100, 10), (SECOND * 9, 9000)] {
            let mut pace = Pace::new(rate());
            for _ in 0..5000 {
                assert_eq!(came(&mut pace, step, bytes), Ok(()), "{bytes} in {step:?}");
            }
        }
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        let mut pace = Pace::new(rate());
        for _ in 0..1000 {
            assert_eq!(came(&mut pace, Duration::ZERO, 1), Ok(()));
        }
        pace.pauses();
        assert_eq!(pace.arrived(1), Ok(()));
        assert_eq!(pace.waited, Duration::ZERO);
    }

    #[test]
    fn a_wait_that_is_broken_off_counts() {
        let quick = MinRate::new(1000, Duration::from_millis(20)).unwrap();
        let mut pace = Pace::new(quick);
        let start = Instant::now();
        let slow = loop {
            match pace.waits() {
                Ok(()) => {}
                slow => break slow,
            }
            std::thread::sleep(Duration::from_millis(1));
            pace.pauses();
            assert!(start.elapsed() < SECOND * 10, "it is never too slow");
        };
        assert_eq!(slow, Err(TooSlow));
        assert_eq!(pace.arrived(1), Err(TooSlow));
    }

    #[test]
    fn a_gap_longer_than_the_window_empties_it() {
        let mut pace = Pace::new(rate());
        assert_eq!(came(&mut pace, SECOND, 1_000_000), Ok(()));
        assert_eq!(came(&mut pace, SECOND * 100, 1), Err(TooSlow));
    }

    #[test]
    fn no_rate_is_none_and_the_window_is_no_longer_than_a_gap_may_be() {
        assert!(MinRate::new(0, SECOND).is_none());
        let short = MinRate::new(1024, SECOND * 2).unwrap();
        assert_eq!((short.least, short.window()), (2048, SECOND * 2));
        assert_eq!(rate().window(), WINDOW);
    }

    #[test]
    fn a_client_is_judged_by_what_it_acknowledges_while_it_has_something_to_take() {
        let start = Instant::now();
        let at = |seconds| start + SECOND * seconds;
        let much = |acked| {
            Some(Sent {
                written: 1_000_000,
                acked,
            })
        };
        let mut taking = Taking::new(-1, rate());
        assert_eq!(taking.judge(much(0), at(0)), Ok(()));
        assert_eq!(taking.judge(much(10_000), at(10)), Ok(()), "just enough");
        assert_eq!(taking.judge(None, at(15)), Ok(()), "it has all there is");
        assert_eq!(taking.judge(much(10_000), at(20)), Ok(()));
        assert_eq!(taking.judge(much(10_001), at(25)), Ok(()));
        assert_eq!(taking.judge(much(19_999), at(30)), Err(TooSlow));
    }

    #[test]
    fn a_client_that_takes_the_little_there_is_is_prompt_however_long_its_way() {
        let start = Instant::now();
        let mut taking = Taking::new(-1, rate());
        for look in 0..100 {
            // 20 octets are on their way whenever one looks, and others each time.
            let (written, acked) = (look * 100 + 20, look * 100);
            let now = start + SECOND * 5 * look as u32;
            assert_eq!(taking.judge(Some(Sent { written, acked }), now), Ok(()));
        }
        let (written, acked) = (9_920, 9_901);
        let behind = Some(Sent { written, acked });
        let late = |seconds: u32| start + SECOND * (495 + seconds);
        assert_eq!(taking.judge(behind, late(5)), Ok(()));
        assert_eq!(
            taking.judge(behind, late(10)),
            Err(TooSlow),
            "it takes no more"
        );
    }

    #[test]
    fn what_is_no_tcp_connection_is_not_judged() {
        let mut taking = Taking::new(-1, rate());
        let now = Instant::now();
        assert_eq!(taking.look(now), Ok(now + WINDOW / 2));
    }
}
