//! One request's dealings with a write: it asks for it, and, if it may run it, says how the run has ended.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use pingora_timeout::timeout;
use redis::Cmd;
use tokio::sync::watch;

use super::Keyed;
use super::key::{Fingerprint, Name, Owner, hex};
use super::ledger::{Ledger, Store};
use super::memory::Memory;
use super::record::{self, Outcome};
use crate::handover::Clock;
use crate::state::{Away, Kept, Redis};

/// The leave to run a write, for this request alone.
pub struct Lease {
    ledger: Arc<Ledger>,
    asked: Asked,
    /// Its going tells who waits.
    _end: watch::Sender<()>,
}

/// What one request asks for.
pub struct Asked {
    name: Name,
    owner: Owner,
    fingerprint: Fingerprint,
    /// Nobody else's.
    pub run: Arc<str>,
    /// How long its end is remembered.
    life: Duration,
}

const CLAIM: &str = include_str!("claim.lua");
const CONCLUDE: &str = include_str!("conclude.lua");

/// In bytes: an end that Redis was not told of is kept with its answer up to this size.
const LONGEST_KEPT: usize = 8 << 10;

/// For who comes back from there to be woken.
const MOMENT: Duration = Duration::from_millis(50);

// === impl Asked ===

impl Asked {
    pub fn new(keyed: &Keyed, life: Duration) -> Option<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).ok()?;
        Some(Self {
            name: keyed.name,
            owner: keyed.owner,
            fingerprint: keyed.fingerprint,
            run: hex(&id).into(),
            life,
        })
    }

    /// Both calls together have the time of one command. A Redis that stalls in between finds the second one late, and
    /// leaves everything as it was.
    pub async fn claim_in(
        &self,
        redis: &Redis,
        kept: &Kept,
        lease: Duration,
    ) -> Result<(i64, Bytes), Away> {
        let (begun, limit) = (Instant::now(), redis.limit());
        let key = self.name.to_string();
        // The other half is for the answer's way.
        let latest = redis.time(&key).await? + limit.as_millis() as u64 / 2;
        let record = record::begun(&self.fingerprint, &self.run);
        let life = self.life.max(lease);
        let command = claim(&self.name, &record, lease, life, latest);
        let left = limit.saturating_sub(begun.elapsed());
        let answer = timeout(left, redis.run::<(i64, Vec<u8>)>(&command)).await;
        match answer {
            Ok(Ok((_, record))) if record == b"late" => Err(Away),
            Ok(Ok((now, record))) => Ok((now, record.into())),
            // It may be taken, and this request will not run it. Said at once, on another connection, this could come before
            // the claim; behind `limit` that is late.
            Ok(Err(Away)) | Err(_) => {
                let forget = conclusion(&self.name, &self.run, &[], self.life);
                kept.keep(forget, limit, self.life);
                Err(Away)
            }
        }
    }

    pub fn claim_here(
        &self,
        memory: &Mutex<Memory>,
        lease: Duration,
    ) -> Result<(i64, Bytes), Away> {
        let clock = Clock::now();
        let end = |after: Duration| clock.here().checked_add(after).map(|at| clock.millis(at));
        let until = end(self.life.max(lease)).ok_or(Away)?;
        let (now, lease) = (clock.millis(clock.here()), end(lease).ok_or(Away)?);
        let record = format!("{}{lease}", record::begun(&self.fingerprint, &self.run));
        let mut memory = memory.lock();
        let there = memory.claim(&self.name, self.owner, record, until, now)?;
        Ok((now, there))
    }

    fn conclusion(&self, record: &[u8]) -> Cmd {
        conclusion(&self.name, &self.run, record, self.life)
    }
}

// === impl Lease ===

impl Lease {
    pub fn new(ledger: Arc<Ledger>, asked: Asked, end: watch::Sender<()>) -> Self {
        Self {
            ledger,
            asked,
            _end: end,
        }
    }

    pub fn name(&self) -> &Name {
        &self.asked.name
    }

    /// How long the end of a run takes at most to be written down, or not to be.
    pub fn to_end(&self) -> Duration {
        match &self.ledger.store {
            // A long one that does not go in is followed by a short one.
            Store::Redis { redis, .. } => redis.limit() * 2 + MOMENT,
            Store::Memory { .. } => Duration::ZERO,
        }
    }

    /// The run has ended, and this is what is known of it. Returns whether it is written down.
    pub async fn conclude(self, outcome: &Outcome) -> bool {
        let record = outcome.write(&self.asked.fingerprint);
        let short = match outcome {
            Outcome::Done(answer) => Outcome::Unkept(answer.status).write(&self.asked.fingerprint),
            Outcome::Unknown | Outcome::Unkept(_) => record.clone(),
        };
        self.end(record, short).await
    }

    /// The service has done nothing: it may run again.
    pub async fn forget(self) -> bool {
        self.end(Vec::new(), Vec::new()).await
    }

    async fn end(self, record: Vec<u8>, short: Vec<u8>) -> bool {
        let asked = &self.asked;
        match &self.ledger.store {
            Store::Redis { redis, kept, .. } => {
                let command = asked.conclusion(&record);
                if record.len() <= LONGEST_KEPT {
                    return kept.write(command, asked.life).await;
                }
                let written = redis.run::<i64>(&command).await.is_ok();
                if !written {
                    kept.write(asked.conclusion(&short), asked.life).await;
                }
                written
            }
            Store::Memory { memory, ended } => {
                let clock = Clock::now();
                let end = clock.here().checked_add(asked.life);
                let end = clock.millis(end.unwrap_or(clock.here()));
                let mut memory = memory.lock();
                memory.conclude(&asked.name, &asked.run, record.into(), short, end);
                drop(memory);
                ended.notify_all();
                true
            }
        }
    }
}

/// Whoever waits for it in this process asks again. If nothing was said of its end, nobody knows it: its lease ends by itself.
impl Drop for Lease {
    fn drop(&mut self) {
        let Asked { name, run, .. } = &self.asked;
        let mut running = self.ledger.running.lock();
        // If it may run again, another request of this process may be at it by now.
        if running.get(name).is_some_and(|other| other.run == *run) {
            running.remove(name);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.asked.name)
    }
}

/// See claim.lua. `begun`: the record, up to the end of the run's time.
pub fn claim(name: &Name, begun: &str, lease: Duration, life: Duration, latest: u64) -> Cmd {
    let mut command = script(CLAIM, &name.to_string());
    command
        .arg(begun)
        .arg(lease.as_millis() as u64)
        .arg(life.as_millis() as u64)
        .arg(latest);
    command
}

/// See conclude.lua.
pub fn conclusion(name: &Name, run: &str, record: &[u8], life: Duration) -> Cmd {
    let mut command = script(CONCLUDE, &name.to_string());
    command.arg(run).arg(record).arg(life.as_millis() as u64);
    command
}

/// Not by digest: so no connection needs to be prepared for it, and writes with a key are few.
fn script(text: &str, key: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(1).arg(key);
    command
}
