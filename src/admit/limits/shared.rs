//! One window for all processes: a request's limits are decided together, in one call to Redis.
//!
//! While Redis is away each process goes on by itself, from what it was told last, and keeps a journal of what it grants.
//! Before a connection that is back is used, the journal is told to Redis: what was granted meanwhile is spent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use redis::{Cmd, RedisResult};
use serde::{Deserialize, Serialize};

use super::window::{Ask, Mark, step_ms};
use crate::handover::Clock;
use crate::state::{Away, Connection, Prepare, Redis};

/// What Redis decided about one request.
pub struct Decision {
    pub granted: bool,
    /// It was one too many of a limit that blocks.
    pub block_began: bool,
    /// For each limit, in the order of the asks.
    pub usage: Vec<Usage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used: u32,
    /// Until the oldest grant leaves the window; 0 when there is none.
    pub leaves_in_ms: u32,
}

/// The windows in Redis.
#[derive(Clone)]
pub struct Shared {
    redis: Arc<Redis>,
    books: Arc<Books>,
}

/// What connections are prepared with.
#[derive(Default)]
pub struct Books {
    scripts: OnceCell<Scripts>,
    journal: Mutex<VecDeque<Grant>>,
}

/// The digests by which Redis knows the scripts.
struct Scripts {
    spend: String,
    forgive: String,
}

/// One request, granted while Redis was away.
struct Grant {
    limits: Vec<(String, Ask)>,
    when: Instant,
}

/// A grant that Redis was not told of, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// As [`Clock::millis`].
    when: i64,
    /// Key, most, window and block (milliseconds).
    limits: Vec<(String, u32, u64, u64)>,
}

const SPEND: &str = include_str!("shared.lua");
const FORGIVE: &str = include_str!("forgive.lua");

/// Grants that the journal remembers; the oldest give way.
const LONGEST_JOURNAL: usize = 100_000;

/// Grants that are told to Redis in one go.
const CHUNK: usize = 500;

impl Shared {
    pub fn new(redis: Arc<Redis>, books: Arc<Books>) -> Self {
        Self { redis, books }
    }

    /// Spends one on every limit, or on none.
    ///
    /// # Errors
    /// When Redis is away.
    pub async fn spend(&self, limits: &[(String, Ask)]) -> Result<Decision, Away> {
        let scripts = self.books.scripts.get().ok_or(Away)?;
        let answer: Vec<u64> = self.redis.run(&command(&scripts.spend, limits)).await?;
        let usage: Vec<Usage> = answer
            .get(1..)
            .unwrap_or_default()
            .chunks_exact(2)
            .map(|pair| Usage {
                used: u32::try_from(pair[0]).unwrap_or(u32::MAX),
                leaves_in_ms: u32::try_from(pair[1]).unwrap_or(u32::MAX),
            })
            .collect();
        if usage.len() != limits.len() {
            return Err(Away);
        }
        Ok(Decision {
            granted: answer.first() == Some(&1),
            block_began: answer.first() == Some(&2),
            usage,
        })
    }

    /// All keys of one caller must lie in one slot.
    pub fn has_slots(&self) -> bool {
        self.redis.has_slots()
    }

    /// Takes a grant back from each of these, when there is time for it: nobody waits.
    pub fn forgive(&self, mut keys: Vec<String>) {
        keys.retain(|key| !self.books.strike(key));
        if keys.is_empty() {
            return;
        }
        let Some(scripts) = self.books.scripts.get() else {
            return;
        };
        let mut command = redis::cmd("EVALSHA");
        command.arg(&scripts.forgive).arg(keys.len()).arg(keys);
        let redis = self.redis.clone();
        tokio::spawn(async move {
            // Not taken back, it leaves with its window.
            let _: Result<(), Away> = redis.run(&command).await;
        });
    }

    /// A request was granted without Redis.
    pub fn note(&self, limits: Vec<(String, Ask)>, when: Instant) {
        let mut journal = self.books.journal.lock();
        if journal.len() >= LONGEST_JOURNAL {
            journal.pop_front();
        }
        journal.push_back(Grant { limits, when });
    }
}

fn command(script: &str, limits: &[(String, Ask)]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script).arg(limits.len());
    for (key, _) in limits {
        command.arg(key);
    }
    for (_, ask) in limits {
        let window = ask.window.as_millis() as u64;
        let block = ask.block.as_millis() as u64;
        command
            .arg(ask.max)
            .arg(window)
            .arg(step_ms(ask))
            .arg(block);
    }
    command
}

// === impl Books ===

impl Books {
    /// Takes the newest grant of a key out of the journal, if Redis has not been told of one.
    fn strike(&self, key: &str) -> bool {
        let mut journal = self.journal.lock();
        journal.iter_mut().rev().any(|grant| {
            let place = grant.limits.iter().position(|(of, _)| of == key);
            place.map(|place| grant.limits.remove(place)).is_some()
        })
    }

    /// What Redis was not told of, up to now or after the mark.
    pub fn carried(&self, clock: &Clock, after: Option<Mark>) -> Vec<Told> {
        let journal = self.journal.lock();
        let told = journal.iter().map(|grant| Told {
            when: clock.millis(grant.when),
            limits: grant.limits.iter().map(carried).collect(),
        });
        told.filter(|told| after.is_none_or(|mark| mark.is_before(told.when)))
            .collect()
    }

    /// The next process tells Redis of what came up to the mark.
    pub fn leave(&self, clock: &Clock, mark: Mark) {
        let mut journal = self.journal.lock();
        journal.retain(|grant| mark.is_before(clock.millis(grant.when)));
    }

    pub fn take_over(&self, told: Vec<Told>, clock: &Clock) -> usize {
        let mut journal = self.journal.lock();
        let before = journal.len();
        for Told { when, limits } in told {
            let limits = limits.into_iter().map(taken_over).collect();
            if let Some(when) = clock
                .instant(when)
                .filter(|_| journal.len() < LONGEST_JOURNAL)
            {
                journal.push_back(Grant { limits, when });
            }
        }
        journal.len() - before
    }

    /// Tells Redis what was granted without it. What it has no room for is as good as told.
    async fn settle(&self, script: &str, redis: &mut Connection) -> RedisResult<()> {
        loop {
            let untold = Untold::next(self);
            if untold.chunk.is_empty() {
                return Ok(());
            }
            let mut commands = Vec::new();
            let fresh = |grant: &Grant, ask: &Ask| grant.when.elapsed() < ask.window;
            for grant in &untold.chunk {
                // Each by itself: one that is used up must not keep the others from being spent.
                for limit in grant.limits.iter().filter(|(_, ask)| fresh(grant, ask)) {
                    commands.push(command(script, std::slice::from_ref(limit)));
                }
            }
            let answers = redis.each(commands).await?;
            // What one key meets must not keep the others, and this connection, from being used.
            if answers.iter().flat_map(|a| a.as_ref().err()).any(will_pass) {
                return Ok(());
            }
            untold.was_told();
        }
    }
}

fn carried((key, ask): &(String, Ask)) -> (String, u32, u64, u64) {
    let millis = |time: Duration| time.as_millis() as u64;
    (key.clone(), ask.max, millis(ask.window), millis(ask.block))
}

fn taken_over((key, max, window, block): (String, u32, u64, u64)) -> (String, Ask) {
    let ask = Ask {
        key: 0, // only Redis is told of it
        max,
        window: Duration::from_millis(window),
        block: Duration::from_millis(block),
    };
    (key, ask)
}

/// Of a Cluster, every master gets it.
async fn load(script: &str, redis: &mut Connection) -> RedisResult<String> {
    redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(script)
        .query_async(redis)
        .await
}

/// A part of the journal on its way to Redis. What ends that way early, an error or the end of our patience, puts it back:
/// better told twice than not at all.
struct Untold<'a> {
    books: &'a Books,
    chunk: Vec<Grant>,
}

impl<'a> Untold<'a> {
    fn next(books: &'a Books) -> Self {
        let mut journal = books.journal.lock();
        let length = journal.len().min(CHUNK);
        let chunk = journal.drain(..length).collect();
        Self { books, chunk }
    }

    fn was_told(mut self) {
        self.chunk.clear();
    }
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        let mut journal = self.books.journal.lock();
        for grant in self.chunk.drain(..).rev() {
            journal.push_front(grant);
        }
    }
}

/// Redis is full, read-only or busy, or has lost its scripts: that is no matter of the command.
fn will_pass(error: &redis::RedisError) -> bool {
    matches!(
        error.code(),
        Some(
            "NOSCRIPT"
                | "OOM"
                | "READONLY"
                | "BUSY"
                | "LOADING"
                | "MISCONF"
                | "MASTERDOWN"
                | "CLUSTERDOWN"
                | "MOVED"
                | "ASK"
                | "TRYAGAIN"
        )
    )
}

#[async_trait]
impl Prepare for Books {
    async fn prepare(&self, redis: &mut Connection) -> RedisResult<()> {
        let spend = load(SPEND, redis).await?;
        let forgive = load(FORGIVE, redis).await?;
        self.settle(&spend, redis).await?;
        // The same for every connection.
        let _ = self.scripts.set(Scripts { spend, forgive });
        Ok(())
    }

    /// What was granted while the journal was being told.
    async fn prepared(&self, redis: &mut Connection) -> RedisResult<()> {
        redis.ping().await?;
        match self.scripts.get() {
            Some(scripts) => self.settle(&scripts.spend, redis).await,
            None => Ok(()),
        }
    }
}
