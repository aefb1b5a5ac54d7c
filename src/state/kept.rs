//! Writes that must come about: while Redis is away they are kept, and done when it is back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
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
    writes: Mutex<VecDeque<Write>>,
    /// The oldest give way.
    most: usize,
    more: Notify,
}

struct Write {
    command: Cmd,
    /// Then what it says is over.
    until: Instant,
}

/// A write, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedWrite {
    arguments: Vec<String>,
    /// As [`Clock::millis`].
    until: i64,
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
        }
    }

    /// Writes now, within a command's time, or later: returns which. `life`: how long what is written matters.
    pub async fn write(&self, command: Cmd, life: Duration) -> bool {
        if self.redis.run::<redis::Value>(&command).await.is_ok() {
            return true;
        }
        let now = Instant::now();
        let until = now.checked_add(life).unwrap_or(now);
        let mut writes = self.writes.lock();
        if writes.len() >= self.most {
            writes.pop_front();
            log::warn!("redis is away for too long: what was to be written there is given up");
        }
        writes.push_back(Write { command, until });
        drop(writes);
        self.more.notify_one();
        false
    }

    /// What Redis has not heard of, for the next process: written twice is as good as once.
    pub fn carried(&self, clock: &Clock) -> Vec<CarriedWrite> {
        let writes = self.writes.lock();
        let carried = writes.iter().filter_map(|write| {
            let arguments = write.command.args_iter().map(|argument| match argument {
                redis::Arg::Simple(text) => String::from_utf8(text.to_vec()).ok(),
                _ => None,
            });
            Some(CarriedWrite {
                arguments: arguments.collect::<Option<_>>()?,
                until: clock.millis(write.until),
            })
        });
        carried.collect()
    }

    pub fn take_over(&self, carried: Vec<CarriedWrite>, clock: &Clock) -> usize {
        let mut writes = self.writes.lock();
        let before = writes.len();
        for CarriedWrite { arguments, until } in carried {
            if let Some(until) = clock.instant(until).filter(|_| writes.len() < self.most) {
                let mut command = Cmd::new();
                command.arg(arguments);
                writes.push_back(Write { command, until });
            }
        }
        let count = writes.len() - before;
        drop(writes);
        self.more.notify_one();
        count
    }

    async fn settle(&self) {
        while let Some(write) = self.take() {
            if write.until <= Instant::now() {
                continue;
            }
            if self
                .redis
                .run::<redis::Value>(&write.command)
                .await
                .is_err()
            {
                // Behind the others: what Redis refuses for itself must not keep them.
                self.writes.lock().push_back(write);
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    fn take(&self) -> Option<Write> {
        self.writes.lock().pop_front()
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
