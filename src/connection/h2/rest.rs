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
        }
    }

    /// `in_h2`: something waits there. `sent`: octets that the kernel has taken, where it does not tell what became of them.
    pub fn look(&mut self, in_h2: bool, sent: u64, times: &Times, now: Instant) -> Look {
        let info = get_tcp_info(self.socket).ok();
        let in_kernel = info
            .as_ref()
            .is_some_and(|info| info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0);
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
            acked: info.map_or(sent, |info| info.tcpi_bytes_acked),
        };
        let socket = self.socket;
        let taking = self.taking.get_or_insert_with(|| Taking::new(socket, rate));
        match taking.judge(Some(sent), now) {
            Ok(()) => Look::Taking,
            Err(TooSlow) => Look::TooSlow,
        }
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
}
