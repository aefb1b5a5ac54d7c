//! What another service knows, remembered in two tiers: in this process, and in Redis for all of them.
//!
//! Many who want to know the same at once ask once. Who changes what is remembered says so on the channel
//! [`super::keys::FORGET`]; an answer that was on its way then is not remembered.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec};
use quick_cache::UnitWeighter;
use quick_cache::sync::Cache as Bounded;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Redis, Remembers};
use crate::observe::logging::unix_millis;

/// A bounded memory: the least used gives way.
pub type Memory<K, T> = Bounded<K, T, UnitWeighter, ahash::RandomState>;

pub fn memory<K: Eq + Hash, T: Clone>(capacity: usize) -> Memory<K, T> {
    Bounded::with(
        capacity,
        capacity as u64,
        UnitWeighter,
        ahash::RandomState::new(),
        Default::default(),
    )
}

/// Answers by their key in Redis.
pub struct Cache<T> {
    memory: Memory<String, Entry<T>>,
    /// What its keys begin with.
    prefix: &'static str,
    redis: Option<Arc<Redis>>,
    /// Each rises when one of its keys is forgotten.
    generations: Box<[AtomicU64]>,
    hasher: ahash::RandomState,
    /// Unix seconds: what was put into Redis before may have been called back unheard. 0: nothing was missed.
    trusted_since: AtomicU64,
    /// Redis was heard once.
    was_heard: AtomicBool,
    lookups: Lookups,
}

/// `lookups_total{what, outcome}`.
pub struct Lookups {
    memory: IntCounter,
    redis: IntCounter,
    asked: IntCounter,
    failed: IntCounter,
}

/// It cannot be found out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

struct Entry<T> {
    outcome: Result<Arc<T>, Unknown>,
    until: Instant,
}

/// What stands in Redis.
#[derive(Serialize, Deserialize)]
struct Stored<T> {
    /// Unix seconds: when it was stored, and until when any tier remembers it.
    since: u64,
    until: u64,
    #[serde(flatten)]
    known: T,
}

/// So many that a change of one key seldom looks like one of another.
const GENERATIONS: usize = 1024;

/// No owner has it in its name.
const BETWEEN: char = '\n';

/// That it cannot be found out is remembered for those who are waiting already.
const LIFE_OF_UNKNOWN: Duration = Duration::from_millis(200);

/// How often somebody waits anew for another's answer that was no use.
const PATIENCE: usize = 4;

impl<T: Serialize + DeserializeOwned + Send + Sync> Cache<T> {
    pub fn new(
        capacity: usize,
        prefix: &'static str,
        redis: Option<Arc<Redis>>,
        lookups: Lookups,
    ) -> Self {
        Self {
            prefix,
            memory: memory(capacity),
            redis,
            generations: (0..GENERATIONS).map(|_| AtomicU64::new(0)).collect(),
            hasher: ahash::RandomState::new(),
            trusted_since: AtomicU64::new(0),
            was_heard: AtomicBool::new(false),
            lookups,
        }
    }

    /// What stands under `key`, if `is_it`: two things may have one name. Else what `ask` finds out, and for how long that
    /// may be remembered. What is `owner`'s disturbs nobody else.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub async fn get(
        &self,
        owner: &str,
        key: &str,
        is_it: impl Fn(&T) -> bool,
        ask: impl AsyncFnOnce() -> Result<(T, Duration), Unknown>,
    ) -> Result<Arc<T>, Unknown> {
        let place = format!("{owner}{BETWEEN}{key}");
        for _ in 0..PATIENCE {
            let fresh = |entry: &Entry<T>| {
                entry.until > Instant::now() && entry.outcome.as_deref().is_ok_and(&is_it)
            };
            match self.memory.get_value_or_guard_async(place.as_str()).await {
                Ok(entry) if fresh(&entry) => {
                    self.lookups.memory.inc();
                    return entry.outcome;
                }
                Ok(entry) if entry.outcome.is_err() && entry.until > Instant::now() => {
                    return Err(Unknown);
                }
                Ok(_) => drop(self.memory.remove_if(place.as_str(), |entry| !fresh(entry))),
                Err(guard) => {
                    let generation = self.generation(key).load(Ordering::SeqCst);
                    let entry = self.find(key, &is_it, ask, generation).await;
                    let outcome = entry.outcome.clone();
                    if self.generation(key).load(Ordering::SeqCst) == generation {
                        let _ = guard.insert(entry);
                    }
                    // Who forgot it in between has not seen it.
                    if self.generation(key).load(Ordering::SeqCst) != generation {
                        self.memory.remove(place.as_str());
                    }
                    return outcome;
                }
            }
        }
        Err(Unknown)
    }

    async fn find(
        &self,
        key: &str,
        is_it: impl Fn(&T) -> bool,
        ask: impl AsyncFnOnce() -> Result<(T, Duration), Unknown>,
        generation: u64,
    ) -> Entry<T> {
        if let Some(entry) = self.recall(key, is_it).await {
            self.lookups.redis.inc();
            return entry;
        }
        let Ok((known, life)) = ask().await else {
            self.lookups.failed.inc();
            return Entry {
                outcome: Err(Unknown),
                until: Instant::now() + LIFE_OF_UNKNOWN,
            };
        };
        self.lookups.asked.inc();
        let since = unix_now();
        let stored = Stored {
            since,
            until: since + life.as_secs(),
            known,
        };
        self.store(key, &stored, life, generation).await;
        Entry {
            outcome: Ok(Arc::new(stored.known)),
            until: Instant::now() + life,
        }
    }

    async fn recall(&self, key: &str, is_it: impl Fn(&T) -> bool) -> Option<Entry<T>> {
        let redis = self.redis.as_ref()?;
        let text: Option<Vec<u8>> = redis.run(redis::cmd("GET").arg(key)).await.ok()?;
        // What others have put there is no answer of ours.
        let Stored {
            since,
            until,
            known,
        } = serde_json::from_slice(&text?).ok()?;
        if since <= self.trusted_since.load(Ordering::SeqCst) {
            return None;
        }
        let left = Duration::from_secs(until.checked_sub(unix_now())?);
        let is_fresh = !left.is_zero() && left <= LONGEST_LIFE && is_it(&known);
        is_fresh.then(|| Entry {
            outcome: Ok(Arc::new(known)),
            until: Instant::now() + left,
        })
    }

    async fn store(&self, key: &str, stored: &Stored<T>, life: Duration, generation: u64) {
        let (Some(redis), Ok(text)) = (&self.redis, serde_json::to_vec(stored)) else {
            return;
        };
        let mut set = redis::cmd("SET");
        set.arg(key).arg(text).arg("EX").arg(life.as_secs().max(1));
        let _: Result<(), _> = redis.run(&set).await;
        // Who forgot it meanwhile came before us; and what has had no answer may come about later.
        if self.generation(key).load(Ordering::SeqCst) != generation {
            let _: Result<(), _> = redis.run(redis::cmd("DEL").arg(key)).await;
        }
    }
}

/// No answer is remembered for longer.
pub const LONGEST_LIFE: Duration = Duration::from_secs(86_400);

impl<T> Cache<T> {
    /// That of a key, and of some others.
    fn generation(&self, key: impl AsRef<[u8]>) -> &AtomicU64 {
        let hash = self.hasher.hash_one(key.as_ref());
        &self.generations[hash as usize % GENERATIONS]
    }
}

impl<T: Send + Sync> Remembers for Cache<T> {
    fn forget(&self, key: &[u8]) {
        if !key.starts_with(self.prefix.as_bytes()) {
            return;
        }
        self.generation(key).fetch_add(1, Ordering::SeqCst);
        // Whoever's it is.
        let is_other = |place: &String| match place.split_once(BETWEEN) {
            Some((_, known)) => known.as_bytes() != key,
            None => false,
        };
        self.memory.retain(|place, _| is_other(place));
    }

    fn forget_all(&self) {
        for generation in &self.generations {
            generation.fetch_add(1, Ordering::SeqCst);
        }
        if self.was_heard.swap(true, Ordering::SeqCst) {
            self.trusted_since.store(unix_now(), Ordering::SeqCst);
        }
        self.memory.clear();
    }
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self {
            outcome: self.outcome.clone(),
            until: self.until,
        }
    }
}

// === impl Lookups ===

impl Lookups {
    pub fn of(what: &str, all: &IntCounterVec) -> Self {
        let outcome = |outcome| all.with_label_values(&[what, outcome]);
        Self {
            memory: outcome("memory"),
            redis: outcome("redis"),
            asked: outcome("asked"),
            failed: outcome("failed"),
        }
    }
}

fn unix_now() -> u64 {
    unix_millis() / 1000
}
