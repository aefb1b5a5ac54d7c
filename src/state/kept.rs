//! Writes that must come about: while Redis is away they are kept, and done when it is back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use redis::Cmd;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::client::Redis;
use crate::handover::Clock;

/// The writes that Redis has not heard of yet.
pub struct Kept {
    redis: Arc<Redis>,
    writes: Mutex<VecDeque<Arc<Write>>>,
    /// The oldest give way.
    most: usize,
    more: Notify,
    /// Cloned by who is about to write.
    held: Arc<()>,
}

/// A write is under way, or about to be: the process does not end meanwhile.
pub struct Held {
    _by: Arc<()>,
}

struct Write {
    command: Cmd,
    /// Not before.
    from: Instant,
    /// Then what it says is over.
    until: Instant,
}

/// A write, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedWrite {
    arguments: Vec<Argument>,
    /// As [`Clock::millis`]; 0: at once.
    #[serde(default)]
    from: i64,
    until: i64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Argument {
    Text(String),
    /// What is none: a kept answer may be any octets.
    Octets {
        base64: String,
    },
}

/// Between two tries. While Redis is away a try costs nothing.
const AGAIN: Duration = Duration::from_millis(100);

impl Kept {
    pub fn new(redis: Arc<Redis>, most: usize) -> Self {
        Self {
            redis,
            most,
            writes: Mutex::default(),
            more: Notify::new(),
            held: Arc::default(),
        }
    }

    /// For tasks that nobody waits for: the end of the process does, for a while.
    pub fn hold(&self) -> Held {
        Held {
            _by: self.held.clone(),
        }
    }

    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.held) > 1
    }

    /// Writes now, within a command's time, or later: returns which. `life`: how long what is written matters.
    pub async fn write(&self, command: Cmd, life: Duration) -> bool {
        if self.redis.run::<redis::Value>(&command).await.is_ok() {
            return true;
        }
        self.keep(command, Duration::ZERO, life);
        false
    }

    /// Writes when so much time has passed, if Redis is there then.
    pub fn keep(&self, command: Cmd, after: Duration, life: Duration) {
        let now = Instant::now();
        let at = |after| now.checked_add(after).unwrap_or(now);
        let write = Write {
            command,
            from: at(after),
            until: at(life),
        };
        let mut writes = self.writes.lock();
        if writes.len() >= self.most {
            writes.pop_front();
            log::warn!("redis is away for too long: what was to be written there is given up");
        }
        writes.push_back(Arc::new(write));
        drop(writes);
        self.more.notify_one();
    }

    /// How many Redis has not heard of.
    pub fn count(&self) -> usize {
        self.writes.lock().len()
    }

    /// What Redis has not heard of, for the next process: written twice is as good as once.
    pub fn carried(&self, clock: &Clock) -> Vec<CarriedWrite> {
        let writes = self.writes.lock();
        let carried = writes.iter().map(|write| CarriedWrite {
            arguments: write.command.args_iter().map(Argument::of).collect(),
            from: clock.millis(write.from),
            until: clock.millis(write.until),
        });
        carried.collect()
    }

    /// Returns how many were taken: all, unless there are too many or some cannot be read.
    pub fn take_over(&self, carried: Vec<CarriedWrite>, clock: &Clock) -> usize {
        let mut writes = self.writes.lock();
        let before = writes.len();
        for write in carried {
            if let Some(write) = write.read(clock).filter(|_| writes.len() < self.most) {
                writes.push_back(Arc::new(write));
            }
        }
        let count = writes.len() - before;
        drop(writes);
        self.more.notify_one();
        count
    }

    /// Nothing leaves the list before Redis has heard of it: what is carried meanwhile is all of it.
    async fn settle(&self) {
        while let Some(write) = self.first() {
            let now = Instant::now();
            let is_settled = write.until <= now
                || (write.from <= now
                    && self.redis.run::<redis::Value>(&write.command).await.is_ok());
            self.pass(&write, is_settled);
            if !is_settled {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Goes on to the next one.
    fn pass(&self, write: &Arc<Write>, is_settled: bool) {
        let mut writes = self.writes.lock();
        // It may have given way to others.
        if writes
            .front()
            .is_some_and(|first| Arc::ptr_eq(first, write))
        {
            writes.pop_front();
            if !is_settled {
                // Behind the others: what Redis refuses for itself must not keep them.
                writes.push_back(write.clone());
            }
        }
    }

    fn first(&self) -> Option<Arc<Write>> {
        self.writes.lock().front().cloned()
    }
}

// === impl CarriedWrite ===

impl CarriedWrite {
    fn read(self, clock: &Clock) -> Option<Write> {
        let Self {
            arguments,
            from,
            until,
        } = self;
        let mut command = Cmd::new();
        for argument in arguments {
            match argument {
                Argument::Text(text) => command.arg(text),
                Argument::Octets { base64 } => command.arg(BASE64_STANDARD.decode(base64).ok()?),
            };
        }
        Some(Write {
            command,
            // What lies too far back to be told is past.
            from: clock.instant(from).unwrap_or(clock.here()),
            until: clock.instant(until)?,
        })
    }
}

impl Argument {
    fn of(argument: redis::Arg<&[u8]>) -> Self {
        let redis::Arg::Simple(octets) = argument else {
            return Self::Text("0".to_owned()); // a cursor: no write has one
        };
        match std::str::from_utf8(octets) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Octets {
                base64: BASE64_STANDARD.encode(octets),
            },
        }
    }
}

/// The background task.
pub struct Settle(pub Arc<Kept>);

#[async_trait]
impl BackgroundService for Settle {
    /// Until the process ends: what is in flight may log out as well.
    async fn start(&self, _: ShutdownWatch) {
        loop {
            self.0.more.notified().await;
            self.0.settle().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept::new(Arc::new(Redis::that_is_away()), 10)
    }

    #[test]
    fn it_is_held_until_the_last_has_written() {
        let kept = kept();
        assert!(!kept.is_held());
        let (one, other) = (kept.hold(), kept.hold());
        drop(one);
        assert!(kept.is_held());
        drop(other);
        assert!(!kept.is_held());
    }

    #[test]
    fn what_is_no_text_is_carried_as_it_is() {
        let (old, new, clock) = (kept(), kept(), Clock::now());
        let mut command = redis::cmd("SET");
        command.arg("k").arg(&b"caf\xe9 \0\x1f\x8b"[..]);
        let packed = command.get_packed_command();
        old.keep(command, Duration::ZERO, Duration::from_secs(60));
        let text = serde_json::to_string(&old.carried(&clock)).unwrap();
        assert_eq!(old.count(), 1, "it is here until Redis has it");
        assert_eq!(
            new.take_over(serde_json::from_str(&text).unwrap(), &clock),
            1
        );
        let taken = new.first().unwrap();
        assert_eq!(taken.command.get_packed_command(), packed);
        // As older versions have it.
        let until = clock.millis(clock.here() + Duration::from_secs(60));
        let older = format!(r#"[{{"arguments": ["DEL", "k"], "until": {until}}}]"#);
        let older = serde_json::from_str(&older).unwrap();
        assert_eq!(new.take_over(older, &clock), 1);
    }
}
