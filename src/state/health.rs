//! How it is with Redis: what /ready, /health and the metrics say of it.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Whether Redis can be had.
#[derive(Debug, Default)]
pub struct RedisHealth {
    /// Not set: not configured.
    mode: OnceCell<&'static str>,
    pub(super) commands: Part,
    pub(super) follower: Part,
}

/// One use of Redis: the commands of requests, or what is followed.
#[derive(Debug, Default)]
pub struct Part {
    state: AtomicU8,
    /// In milliseconds since 1970.
    since: AtomicI64,
    turn: Mutex<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisState {
    /// Not configured.
    Off = 0,
    Away = 1,
    Ok = 2,
}

impl RedisHealth {
    /// What is worst of all that Redis is used for.
    pub fn get(&self) -> RedisState {
        match (self.commands.get(), self.follower.get()) {
            (RedisState::Off, _) | (_, RedisState::Off) => RedisState::Off,
            (RedisState::Ok, RedisState::Ok) => RedisState::Ok,
            _ => RedisState::Away,
        }
    }

    /// Whether what others change is followed.
    pub fn is_followed(&self) -> bool {
        self.follower.get() == RedisState::Ok
    }

    /// For /health; nothing where Redis is not configured.
    pub fn describe(&self) -> Option<Value> {
        let mode = self.mode.get()?;
        Some(json!({
            "mode": mode,
            "commands": self.commands.describe(),
            "follower": self.follower.describe(),
        }))
    }

    pub(super) fn begin(&self, mode: &'static str) {
        // It is compiled once.
        let _ = self.mode.set(mode);
        self.commands.set(|| RedisState::Away);
        self.follower.set(|| RedisState::Away);
    }
}

// === impl Part ===

impl Part {
    pub(super) fn get(&self) -> RedisState {
        match self.state.load(Ordering::Relaxed) {
            0 => RedisState::Off,
            1 => RedisState::Away,
            _ => RedisState::Ok,
        }
    }

    /// `look` says how it is. Who looks later says it later, too: what several tasks see in turn does not stay at what the
    /// first of them saw.
    pub(super) fn set(&self, look: impl FnOnce() -> RedisState) {
        let _turn = self.turn.lock();
        let state = look();
        if self.state.swap(state as u8, Ordering::Relaxed) != state as u8 {
            let now = jiff::Timestamp::now().as_millisecond();
            self.since.store(now, Ordering::Relaxed);
        }
    }

    fn describe(&self) -> Value {
        let state = match self.get() {
            RedisState::Off => "off",
            RedisState::Away => "away",
            RedisState::Ok => "ok",
        };
        let since = jiff::Timestamp::from_millisecond(self.since.load(Ordering::Relaxed));
        let since = since.map_or_else(|_| String::new(), |since| format!("{since:.3}"));
        json!({ "state": state, "since": since })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn what_two_see_at_once_is_what_is_so_in_the_end() {
        const ROUNDS: usize = 5_000;
        let part = Part::default();
        let up = [AtomicBool::new(false), AtomicBool::new(false)];
        let look = || {
            let up = up.iter().all(|one| one.load(Ordering::Relaxed));
            // Held up, now and then, between what it saw and what it says.
            thread::yield_now();
            match up {
                true => RedisState::Ok,
                false => RedisState::Away,
            }
        };
        let round = Barrier::new(2);
        let one = |own: &AtomicBool| {
            for _ in 0..ROUNDS {
                for (is_up, state) in [(true, RedisState::Ok), (false, RedisState::Away)] {
                    round.wait();
                    own.store(is_up, Ordering::Relaxed);
                    part.set(look);
                    round.wait();
                    assert_eq!(part.get(), state);
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| one(&up[0]));
            one(&up[1]);
        });
    }
}
