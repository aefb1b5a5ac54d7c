//! The issuer's key set: fetched in the background, once more for a key that is not known yet, and kept when the
//! issuer is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jsonwebtoken::jwk::JwkSet;
use serde::{Deserialize, Serialize};

use super::fetch::Fetch;
use super::keys::{VerifyingKey, keys_of_set};

/// A token with an unknown `kid` may cause one fetch in this time, whoever sends how many of them.
const REFETCH_AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// How long a failed fetch waits for its next try.
const RETRY: Duration = Duration::from_secs(5);

pub struct Jwks {
    url: String,
    fetch: Fetch,
    issuer: String,
    every: Duration,
    current: ArcSwap<KeySet>,
    generation: AtomicU64,
    last_fetch: tokio::sync::Mutex<Option<Instant>>,
}

/// The keys of one answer of the issuer's.
#[derive(Default)]
pub struct KeySet {
    pub keys: Vec<VerifyingKey>,
    /// Counts the answers that differed, from 1.
    pub generation: u64,
    raw: Vec<u8>,
}

/// An issuer's set, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedKeys {
    url: String,
    /// As the issuer sent it: public keys.
    set: String,
}

// === impl Jwks ===

impl Jwks {
    pub fn new(url: String, every: Duration, issuer: String) -> Result<Self, String> {
        if every < Duration::from_secs(1) {
            return Err("auth.jwt.jwks_refresh must be at least 1s".into());
        }
        Ok(Self {
            fetch: Fetch::new(&url)?,
            url,
            issuer,
            every,
            current: ArcSwap::default(),
            generation: AtomicU64::new(0),
            last_fetch: tokio::sync::Mutex::new(None),
        })
    }

    pub fn is_of(&self, url: &str, every: Duration, issuer: &str) -> bool {
        self.url == url && self.every == every && self.issuer == issuer
    }

    /// Fetches the set if nobody has yet.
    pub async fn first_look(&self) {
        let mut last_fetch = self.last_fetch.lock().await;
        if self.generation() == 0 {
            *last_fetch = Some(Instant::now());
            let _ = self.refresh().await;
        }
    }

    pub fn current(&self) -> Arc<KeySet> {
        self.current.load_full()
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The set that is known; nothing before one is.
    pub fn carried(&self) -> Option<CarriedKeys> {
        let set = String::from_utf8(self.current().raw.clone()).ok()?;
        (!set.is_empty()).then(|| CarriedKeys {
            url: self.url.clone(),
            set,
        })
    }

    /// Begins with the set that another process knew, while the issuer has not answered: it may be away.
    ///
    /// # Errors
    /// When it is another issuer's, or no set.
    pub fn take_over(&self, carried: CarriedKeys) -> Result<usize, &'static str> {
        if carried.url != self.url {
            return Err("they are of another issuer");
        }
        // What the issuer has said to this process is fresher.
        if self.generation() != 0 {
            return Ok(0);
        }
        match self.adopt(carried.set.into_bytes()) {
            Ok(()) => Ok(self.current().keys.len()),
            Err(()) => Err("they are no key set"),
        }
    }

    /// The set that holds `kid`, after one fetch when today's does not; whoever asks meanwhile waits for that one.
    pub async fn with_key(&self, kid: &str) -> Arc<KeySet> {
        let has_it = |set: &KeySet| set.keys.iter().any(|key| key.kid.as_deref() == Some(kid));
        let set = self.current();
        if has_it(&set) {
            return set;
        }
        let mut last_fetch = self.last_fetch.lock().await;
        if !has_it(&self.current())
            && last_fetch.is_none_or(|at| at.elapsed() >= REFETCH_AT_MOST_EVERY)
        {
            *last_fetch = Some(Instant::now());
            let _ = self.refresh().await;
        }
        self.current()
    }

    /// Fetches the set; whoever holds `last_fetch` may. Whatever goes wrong, today's keys stay.
    async fn refresh(&self) -> Result<(), ()> {
        let body = match self.fetch.get().await {
            Ok(body) => body,
            Err(why) => {
                log::warn!("the issuer's key set cannot be fetched, the known keys stay: {why}");
                return Err(());
            }
        };
        self.adopt(body)
    }

    /// Puts an answer of the issuer's in force.
    fn adopt(&self, body: Vec<u8>) -> Result<(), ()> {
        if self.current.load().raw == body {
            return Ok(());
        }
        let set = match serde_json::from_slice::<JwkSet>(&body) {
            Ok(set) => keys_of_set(&set, &self.issuer),
            Err(e) => {
                log::warn!("the issuer's answer is not a key set, the known keys stay: {e}");
                return Err(());
            }
        };
        if set.is_empty() {
            log::warn!("the issuer's key set holds no key for signatures, the known keys stay");
            return Err(());
        }
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        log::info!("the issuer's key set has {} keys", set.len());
        self.current.store(Arc::new(KeySet {
            keys: set,
            generation,
            raw: body,
        }));
        self.generation.store(generation, Ordering::Release);
        Ok(())
    }
}

/// Keeps the set fresh, for as long as it is in force.
pub async fn keep_fresh(jwks: Arc<Jwks>) {
    loop {
        let turn = jwks.last_fetch.lock().await;
        let outcome = jwks.refresh().await;
        drop(turn);
        let wait = match outcome {
            Ok(()) => jwks.every,
            Err(()) => RETRY.min(jwks.every),
        };
        tokio::time::sleep(wait).await;
    }
}
