//! The issuer's key set: fetched in the background, once more for a key that is not known yet, and kept when the
//! issuer is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use jsonwebtoken::jwk::JwkSet;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::fetch::Fetch;
use super::keys::{VerifyingKey, keys_of_set};

/// A token with an unknown `kid` may cause one fetch in this time, whoever sends how many of them.
const REFETCH_AT_MOST_EVERY: Duration = Duration::from_secs(10);

/// How long a failed fetch waits for its next try.
const RETRY: Duration = Duration::from_secs(5);

pub struct Jwks {
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

/// The background task that keeps the set fresh.
pub struct JwksRefresh(Arc<Jwks>);

// === impl Jwks ===

impl Jwks {
    pub fn new(url: &str, every: Duration, issuer: String) -> Result<Self, String> {
        if every < Duration::from_secs(1) {
            return Err("auth.jwt.jwks_refresh must be at least 1s".into());
        }
        Ok(Self {
            fetch: Fetch::new(url)?,
            issuer,
            every,
            current: ArcSwap::default(),
            generation: AtomicU64::new(0),
            last_fetch: tokio::sync::Mutex::new(None),
        })
    }

    pub fn current(&self) -> Arc<KeySet> {
        self.current.load_full()
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
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

// === impl JwksRefresh ===

impl JwksRefresh {
    pub(super) fn new(jwks: Arc<Jwks>) -> Self {
        Self(jwks)
    }
}

#[async_trait]
impl BackgroundService for JwksRefresh {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        loop {
            let turn = self.0.last_fetch.lock().await;
            let outcome = self.0.refresh().await;
            drop(turn);
            let wait = match outcome {
                Ok(()) => self.0.every,
                Err(()) => RETRY.min(self.0.every),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = shutdown.changed() => return,
            }
        }
    }
}
