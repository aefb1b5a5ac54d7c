//! Where it is decided who runs a write: in Redis for all processes, else in this one.
//!
//! A run has a lease that ends with its request's deadline, and is not renewed: by then its exchange was cut. A record whose
//! lease is over and that says nothing else is one whose process died: nobody knows what the service has done.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::Keyed;
use super::carried::Carried;
use super::key::{Fingerprint, Name};
use super::lease::{Asked, Lease};
use super::memory::{Bounds, Memory};
use super::record::{Outcome, State};
use crate::state::{Away, Kept, Redis, Settle};

/// The writes of all callers, for as long as the process lives.
pub struct Ledger {
    pub(super) store: Store,
    /// Those that this process is at: it needs to ask nobody about them, and knows of them whatever Redis has forgotten.
    pub(super) running: Mutex<HashMap<Name, Running, ahash::RandomState>>,
    waiting: AtomicUsize,
    /// Another process decides, by another store.
    pub(super) is_closed: AtomicBool,
}

pub(super) enum Store {
    Redis {
        redis: Arc<Redis>,
        kept: Arc<Kept>,
        /// What a process without Redis has handed over, until it is there.
        carried: Mutex<Vec<Carried>>,
        /// The runs among it that go on there: here they are known at once, in Redis once nothing calls them back.
        elsewhere: Mutex<HashMap<Name, Carried, ahash::RandomState>>,
    },
    Memory {
        memory: Mutex<Memory>,
        /// Tells who waits for it that a run has.
        ended: Condvar,
    },
}

/// What came of asking for a write.
pub enum Claim {
    /// It is ours to run.
    Ours(Lease),
    /// Another request is at it. One of this process tells when it has ended.
    Running(Option<watch::Receiver<()>>),
    /// Something else was asked for under its key.
    Reused,
    Ended(Outcome),
}

/// A run of this process.
pub struct Running {
    fingerprint: Fingerprint,
    pub run: Arc<str>,
    end: watch::Receiver<()>,
}

/// A request that waits for another's end.
pub struct Waiting<'a>(&'a Ledger);

/// Bytes of records in the memory of a process. As text for the next process they are half as much again.
const MEMORY: Bounds = Bounds {
    all: 32 << 20,
    each: 4 << 20,
};

/// Ends that Redis was not told of yet.
const MOST_KEPT: usize = 4_000;

/// Requests that wait in one process; who comes on top is told to come again.
const MOST_WAITING: usize = 512;

/// Behind the deadline of a request: for its end to be written, and for clocks that are not quite the same.
const GRACE: Duration = Duration::from_secs(1);

// === impl Ledger ===

impl Ledger {
    pub fn new(redis: Option<Arc<Redis>>) -> Self {
        Self {
            store: match redis {
                Some(redis) => Store::Redis {
                    kept: Arc::new(Kept::new(redis.clone(), MOST_KEPT)),
                    redis,
                    carried: Mutex::default(),
                    elsewhere: Mutex::default(),
                },
                None => Store::Memory {
                    memory: Mutex::new(Memory::new(MEMORY)),
                    ended: Condvar::new(),
                },
            },
            running: Mutex::default(),
            waiting: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Asks for a write. `left`: of the request's time; `life`: how long what is known of the write is kept.
    ///
    /// # Errors
    /// When nobody can tell: Redis is away, or the memory full. Nothing may be sent then.
    pub async fn claim(
        self: &Arc<Self>,
        keyed: &Keyed,
        left: Duration,
        life: Duration,
    ) -> Result<Claim, Away> {
        let Keyed {
            name, fingerprint, ..
        } = keyed;
        if self.is_closed.load(Relaxed) {
            return Err(Away);
        }
        if let Some(other) = self.running.lock().get(name) {
            return Ok(match other.fingerprint == *fingerprint {
                true => Claim::Running(Some(other.end.clone())),
                false => Claim::Reused,
            });
        }
        let asked = Asked::new(keyed, life).ok_or(Away)?;
        let (now, record) = match (self.elsewhere(name), &self.store) {
            (Some(known), _) => known,
            (None, Store::Redis { redis, kept, .. }) => {
                asked.claim_in(redis, kept, left + GRACE).await?
            }
            (None, Store::Memory { memory, .. }) => asked.claim_here(memory, left + GRACE)?,
        };
        if record.is_empty() {
            let (tell, end) = watch::channel(());
            let running = Running {
                fingerprint: *fingerprint,
                run: asked.run.clone(),
                end,
            };
            self.running.lock().insert(*name, running);
            return Ok(Claim::Ours(Lease::new(self.clone(), asked, tell)));
        }
        Ok(match State::read(&record, fingerprint, now) {
            Some(State::Running) => Claim::Running(None),
            Some(State::Ended(outcome)) => Claim::Ended(outcome),
            None => Claim::Reused,
        })
    }

    /// A place among those that wait, unless there are too many.
    pub fn wait(&self) -> Option<Waiting<'_>> {
        let before = self.waiting.fetch_add(1, Relaxed);
        let place = Waiting(self);
        (before < MOST_WAITING).then_some(place)
    }

    /// Tells Redis what it was not told yet, where there is one.
    pub fn settle(&self) -> Option<Settle> {
        self.kept().cloned().map(Settle)
    }

    pub fn kept(&self) -> Option<&Arc<Kept>> {
        match &self.store {
            Store::Redis { kept, .. } => Some(kept),
            Store::Memory { .. } => None,
        }
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
