//! What is still on its way to a client when all its answers are made: some of it waits for room in the client's windows,
//! some lies in the kernel. Until the client has it the connection is not at rest, and closing it would take it away.

use std::os::fd::RawFd;
use std::time::Instant;

use pingora::protocols::l4::ext::get_tcp_info;

use crate::connection::pace::{MinRate, Sent, Taking, TooSlow};
use crate::policies::Times;

pub struct Rest {
    socket: RawFd,
    /// There was something at the last look.
    taking: Option<Taking>,
    answers: Answers,
}

/// How far the client has taken its answers. What else is sent to it, such as the answers to its PINGs, is no progress:
/// who asks for that all the time would never be done.
#[derive(Debug, Default)]
struct Answers {
    /// Their octets at the last look.
    sent: Option<u64>,
    /// What the kernel had been given then, from its beginning on: they are in it.
    until: u64,
    /// What was acknowledged at the last look, of whatever.
    acked: u64,
    /// Of these octets; never more than there are.
    taken: u64,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The client has everything.
    AllTaken,
    /// It has not, and goes on taking it.
    Taking,
    TooSlow,
}

impl Rest {
    pub fn new(socket: RawFd) -> Self {
        Self {
            socket,
            taking: None,
            answers: Answers::default(),
        }
    }

    /// `in_h2`: something waits there. `answers`: their octets that the kernel has taken.
    pub fn look(&mut self, in_h2: bool, answers: u64, times: &Times, now: Instant) -> Look {
        // One that is not TCP does not tell what became of what it has taken.
        let kernel = get_tcp_info(self.socket).ok().map(|info| Kernel {
            is_empty: info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0,
            sent: Sent::of(&info),
        });
        let in_kernel = self.answers.follow(answers, kernel);
        if !in_h2 && !in_kernel {
            self.taking = None;
            return Look::AllTaken;
        }
        // Without a rate any octet within the longest gap is enough.
        let rate = times.rate.or_else(|| MinRate::new(1, times.patience));
        let Some(rate) = rate else {
            return Look::TooSlow;
        };
        let sent = Sent {
            written: u64::MAX, // there is more to come until all is taken
            acked: self.answers.taken,
        };
        let socket = self.socket;
        let taking = self.taking.get_or_insert_with(|| Taking::new(socket, rate));
        match taking.judge(Some(sent), now) {
            Ok(()) => Look::Taking,
            Err(TooSlow) => Look::TooSlow,
        }
    }
}

/// What the kernel says of a connection.
struct Kernel {
    is_empty: bool,
    sent: Sent,
}

// === impl Answers ===

impl Answers {
    /// Whether some of them are in the kernel, not acknowledged yet.
    fn follow(&mut self, sent: u64, kernel: Option<Kernel>) -> bool {
        let Some(Kernel {
            is_empty,
            sent: Sent { written, acked },
        }) = kernel
        else {
            self.taken = sent;
            return false;
        };
        if self.sent != Some(sent) {
            self.sent = Some(sent);
            self.until = written;
        }
        let more = acked.saturating_sub(self.acked);
        self.acked = acked;
        self.taken = sent.min(self.taken + more);
        !is_empty && acked < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn times(per_second: u64) -> Times {
        let patience = SECOND * 5;
        Times {
            header: SECOND,
            idle: SECOND,
            patience,
            rate: MinRate::new(per_second, patience),
            drain: SECOND,
        }
    }

    #[test]
    fn who_takes_what_is_left_is_waited_for_and_who_does_not_is_not() {
        let start = Instant::now();
        for (rate, enough) in [(1000, 5000), (0, 5)] {
            let (times, mut rest) = (times(rate), Rest::new(-1));
            assert_eq!(rest.look(true, 0, &times, start), Look::Taking);
            let at = |seconds| start + SECOND * seconds;
            assert_eq!(rest.look(true, enough, &times, at(5)), Look::Taking);
            assert_eq!(rest.look(true, enough, &times, at(9)), Look::Taking);
            assert_eq!(rest.look(true, enough, &times, at(10)), Look::TooSlow);
            assert_eq!(rest.look(false, enough, &times, at(11)), Look::AllTaken);
        }
    }

    /// `written` and `acked` by the kernel, of which `answers` are such.
    fn follow(answers: &mut Answers, sent: u64, written: u64, acked: u64) -> (bool, u64) {
        let kernel = Kernel {
            is_empty: written == acked,
            sent: Sent { written, acked },
        };
        let in_kernel = answers.follow(sent, Some(kernel));
        (in_kernel, answers.taken)
    }

    #[test]
    fn who_asks_for_pings_takes_no_answer_with_them() {
        let mut answers = Answers::default();
        assert_eq!(follow(&mut answers, 1000, 1100, 500), (true, 500));
        assert_eq!(follow(&mut answers, 1000, 1500, 1200), (false, 1000));
        for pings in 1..5 {
            let written = 1500 + 17 * pings;
            let seen = follow(&mut answers, 1000, written, written - 17);
            assert_eq!(seen, (false, 1000), "all of it was there long before");
        }
        // And what is new is waited for.
        assert_eq!(follow(&mut answers, 1200, 1800, 1600), (true, 1049));
        assert_eq!(follow(&mut answers, 1200, 1800, 1800), (false, 1200));
    }
}
