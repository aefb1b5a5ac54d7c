//! What one process tells the next of writes: each as it is, or that a run of one has ended. They come as text (JSON), and go
//! into the memory of the next one, or, where that has a Redis, there: a run that goes on is claimed for its run, so that its
//! end finds it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::future;
use futures::stream::{self, StreamExt as _};
use pingora_timeout::timeout;
use redis::Cmd;
use serde::{Deserialize, Serialize};

use super::key::{Name, Owner};
use super::ledger::{Ledger, Store};
use super::{lease, record};
use crate::handover::Clock;
use crate::state::Redis;

/// One write, for the next process.
#[derive(Clone)]
pub struct Carried {
    pub name: Name,
    pub owner: Owner,
    /// Empty: nothing was done under it, it may run again.
    pub record: Bytes,
    /// As [`Clock::millis`].
    pub until: i64,
    /// What it says is the end of this run.
    pub run: Option<Box<str>>,
}

/// The same as text.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedWrite {
    name: String,
    record: String,
    until: i64,
    #[serde(default)]
    owner: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<Box<str>>,
}

/// Why a write cannot be taken over.
#[derive(Debug)]
pub struct NotCarried(pub &'static str);

/// What a process that has no Redis calls its store.
pub const IN_MEMORY: &str = "memory";

/// For Redis to take what a process without it has handed over: the clients of both wait meanwhile.
const TO_CARRY: Duration = Duration::from_secs(4);

/// The same of what runs there, while the old process waits to be heard (a second, `handover::giver`).
const TO_SETTLE: Duration = Duration::from_millis(500);

/// Of these, so many at once, and the pause before those that it did not take are tried again.
const AT_ONCE: usize = 8;
const AGAIN: Duration = Duration::from_millis(50);

/// Bytes of a page of them, about.
const PAGE: usize = 1 << 20;

/// That nothing was done is not known for any time: for Redis to hear of it.
const UNDONE: Duration = Duration::from_secs(3600);

/// Milliseconds: that somebody waits for the answer so long is as good as for ever.
const ALWAYS: u64 = 1 << 52;

// === impl Ledger ===

/// What the next process is told, and what this one was.
impl Ledger {
    /// Where it is decided: two processes that say the same here decide together, or one hands all over to the other.
    pub fn place(&self) -> String {
        match &self.store {
            Store::Redis { redis, .. } => redis.identity(),
            Store::Memory { .. } => IN_MEMORY.to_owned(),
        }
    }

    /// All writes that this process keeps itself, in pages. From now on it begins none.
    pub fn hand_over(&self) -> Vec<Vec<CarriedWrite>> {
        match &self.store {
            // What Redis was not told of the process before this one.
            Store::Redis { elsewhere, .. } => pages(elsewhere.lock().values().cloned().collect()),
            Store::Memory { memory, .. } => pages(memory.lock().hand_over()),
        }
    }

    /// Nobody has taken them: it begins some again.
    pub fn goes_on(&self) {
        if let Store::Memory { memory, .. } = &self.store {
            memory.lock().goes_on();
        }
    }

    /// Those that have ended since they were handed over, or since the last time.
    pub fn take_ends(&self) -> Vec<Vec<CarriedWrite>> {
        match &self.store {
            Store::Redis { .. } => Vec::new(),
            Store::Memory { memory, .. } => pages(memory.lock().take_ends()),
        }
    }

    /// Blocks until there are such. `false`: there never are, Redis is told.
    pub fn until_one_ends(&self) -> bool {
        let Store::Memory { memory, ended } = &self.store else {
            return false;
        };
        let mut memory = memory.lock();
        while !memory.has_ends() {
            ended.wait(&mut memory);
        }
        true
    }

    /// What another process knows of writes, or that one of them has ended.
    ///
    /// # Errors
    /// When not all of it can be known here.
    pub fn take_over(&self, writes: Vec<CarriedWrite>) -> Result<usize, NotCarried> {
        let count = writes.len();
        for write in writes {
            let write = write.read()?;
            match &self.store {
                Store::Memory { memory, .. } => memory.lock().take_over(write)?,
                Store::Redis {
                    kept, elsewhere, ..
                } if write.run.is_some() => {
                    let mut elsewhere = elsewhere.lock();
                    if write.record.is_empty() {
                        elsewhere.remove(&write.name);
                    } else if let Some(known) = elsewhere.get_mut(&write.name) {
                        // Redis may not know that it ran: until it does its end is known here.
                        *known = write.clone();
                    }
                    drop(elsewhere);
                    if let Some((command, life)) = write.command(&Clock::now()) {
                        kept.keep(command, Duration::ZERO, life);
                    }
                }
                Store::Redis { carried, .. } => carried.lock().push(write),
            }
        }
        if let Store::Memory { ended, .. } = &self.store {
            ended.notify_all();
        }
        Ok(count)
    }

    /// Puts into Redis what has ended in the process without it that hands over. That stays true whatever comes of the
    /// upgrade; what runs there stays with this process until [`Ledger::settle_elsewhere`].
    ///
    /// # Errors
    /// When Redis does not take all of it in time.
    pub async fn settle_carried(&self) -> Result<(), NotCarried> {
        let Store::Redis {
            redis,
            carried,
            elsewhere,
            ..
        } = &self.store
        else {
            return Ok(());
        };
        let writes = std::mem::take(&mut *carried.lock());
        let is_running = |write: &Carried| record::is_running(&write.record);
        let (running, ended): (Vec<_>, Vec<_>) = writes.into_iter().partition(is_running);
        elsewhere
            .lock()
            .extend(running.into_iter().map(|write| (write.name, write)));
        put(redis, &ended, TO_CARRY).await
    }

    /// The process that has handed over begins no more, and will not again: what runs there is said to Redis, so that its
    /// end is told to all who ask there.
    ///
    /// # Errors
    /// When Redis does not take all of it in time: until it does it is known here, and nowhere else.
    pub async fn settle_elsewhere(&self) -> Result<(), NotCarried> {
        let Store::Redis {
            redis,
            kept,
            elsewhere,
            ..
        } = &self.store
        else {
            return Ok(());
        };
        let known: Vec<Carried> = elsewhere.lock().values().cloned().collect();
        let put = put(redis, &known, TO_SETTLE).await;
        let mut elsewhere = elsewhere.lock();
        // What has turned out to be undone meanwhile may have been told before it was said to run.
        let undone = known
            .iter()
            .filter(|write| !elsewhere.contains_key(&write.name));
        for (command, life) in undone.filter_map(Carried::taken_back) {
            kept.keep(command, Duration::ZERO, life);
        }
        put?;
        elsewhere.clear();
        Ok(())
    }

    /// The same, until Redis has taken all of it.
    pub async fn go_on_settling(&self) {
        while self.settle_elsewhere().await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The time, and the record of a write that runs in the process which has handed it over.
    pub(super) fn elsewhere(&self, name: &Name) -> Option<(i64, Bytes)> {
        let Store::Redis { elsewhere, .. } = &self.store else {
            return None;
        };
        let elsewhere = elsewhere.lock();
        let write = elsewhere.get(name)?;
        let clock = Clock::now();
        let now = clock.millis(clock.here());
        (write.until > now).then(|| (now, write.record.clone()))
    }

    /// Another process decides by another store. Until [`Ledger::open`] this one refuses.
    pub fn close(&self) {
        self.is_closed.store(true, Relaxed);
    }

    pub fn open(&self) {
        self.is_closed.store(false, Relaxed);
    }
}

/// # Errors
/// When Redis does not take all of these in time.
async fn put(redis: &Redis, writes: &[Carried], limit: Duration) -> Result<(), NotCarried> {
    let clock = Clock::now();
    let commands = writes.iter().filter_map(|write| write.command(&clock));
    let mut left: Vec<_> = commands.map(|(command, _)| command).collect();
    let put = async {
        while !left.is_empty() {
            let tried = stream::iter(std::mem::take(&mut left)).map(|command| async {
                let is_there = redis.run::<redis::Value>(&command).await.is_ok();
                (!is_there).then_some(command)
            });
            let tried = tried.buffer_unordered(AT_ONCE);
            left = tried.filter_map(future::ready).collect().await;
            if !left.is_empty() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    let put = timeout(limit, put).await;
    put.map_err(|_| NotCarried("redis does not take them"))
}

fn pages(writes: Vec<Carried>) -> Vec<Vec<CarriedWrite>> {
    let mut pages: Vec<Vec<CarriedWrite>> = Vec::new();
    let mut size = PAGE;
    for write in writes {
        let write = write.write();
        size += write.size();
        if size >= PAGE {
            pages.push(Vec::new());
            size = write.size();
        }
        pages.last_mut().expect("one was made").push(write);
    }
    pages
}

// === impl Carried ===

impl Carried {
    pub fn write(&self) -> CarriedWrite {
        CarriedWrite {
            name: BASE64_STANDARD.encode(self.name.as_bytes()),
            record: BASE64_STANDARD.encode(&self.record),
            until: self.until,
            owner: self.owner.0,
            run: self.run.clone(),
        }
    }

    /// What makes Redis know it, and for how long that matters. `None`: it has had its time.
    pub fn command(&self, clock: &Clock) -> Option<(Cmd, Duration)> {
        let left = |until: i64| {
            let until = clock.instant(until)?;
            Some(until.saturating_duration_since(clock.here()))
        };
        let life = left(self.until).filter(|life| life.as_millis() > 0);
        if let Some(run) = &self.run {
            let life = life.or(self.record.is_empty().then_some(UNDONE))?;
            let command = lease::conclusion(&self.name, run, &self.record, life);
            return Some((command, life));
        }
        let life = life?;
        let command = match record::running_until(&self.record) {
            Some((begun, until)) => {
                let lease = left(until).unwrap_or_default();
                lease::claim(&self.name, begun, lease, life, ALWAYS)
            }
            None => {
                let mut set = redis::cmd("SET");
                set.arg(self.name.to_string())
                    .arg(&*self.record)
                    .arg("NX")
                    .arg("PX")
                    .arg(life.as_millis() as u64);
                set
            }
        };
        Some((command, life))
    }

    /// What makes Redis forget that it runs.
    fn taken_back(&self) -> Option<(Cmd, Duration)> {
        let run = record::run_of(&self.record)?;
        Some((lease::conclusion(&self.name, run, &[], UNDONE), UNDONE))
    }
}

// === impl CarriedWrite ===

impl CarriedWrite {
    /// # Errors
    /// When it is none.
    pub fn read(self) -> Result<Carried, NotCarried> {
        let Self {
            name,
            record,
            until,
            owner,
            run,
        } = self;
        let read = |text| BASE64_STANDARD.decode(text).ok();
        let name = read(name).and_then(|name| Name::from_bytes(&name));
        let (Some(name), Some(record)) = (name, read(record)) else {
            return Err(NotCarried("one of them cannot be read"));
        };
        Ok(Carried {
            name,
            owner: Owner(owner),
            record: record.into(),
            until,
            run,
        })
    }

    /// In bytes, about.
    pub fn size(&self) -> usize {
        self.name.len() + self.record.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderMap;

    use super::super::key::Fingerprint;
    use super::*;

    #[tokio::test]
    async fn a_run_that_turns_out_to_be_undone_while_it_is_told_is_taken_back() {
        let ledger = Ledger::new(Some(Arc::new(Redis::that_is_away())));
        let name = Name::from_bytes(&[1; 32]).unwrap();
        let clock = Clock::now();
        let until = clock.millis(clock.here() + Duration::from_secs(60));
        let fingerprint = Fingerprint::of(&name, &HeaderMap::new(), b"1");
        let begun = record::begun(&fingerprint, "ab12");
        let runs = Carried {
            name,
            owner: Owner(1),
            record: format!("{begun}{until}").into(),
            until,
            run: None,
        };
        let undone = Carried {
            record: Bytes::new(),
            run: Some("ab12".into()),
            ..runs.clone()
        };
        assert_eq!(ledger.take_over(vec![runs.write()]).unwrap(), 1);
        ledger.settle_carried().await.unwrap();
        assert!(ledger.elsewhere(&name).is_some());
        let ends = async {
            tokio::task::yield_now().await;
            ledger.take_over(vec![undone.write()]).unwrap();
        };
        let (told, ()) = tokio::join!(ledger.settle_elsewhere(), ends);
        assert!(told.is_err() && ledger.elsewhere(&name).is_none());
        // Its end, and once more behind what may have been told.
        assert_eq!(ledger.kept().unwrap().count(), 2);
        assert_eq!(record::run_of(&runs.record), Some("ab12"));
    }
}
