//! API keys in Redis: asked for once, remembered until somebody changes them, and for what holds while Redis is away.
//!
//! Redis pushes every change under `apikey:`; a look-up that was under way when its key changed is not remembered. After
//! a time in which changes may have been missed, what is remembered is asked for anew, and is the last known until then.

mod carried;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire},
};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, join};
use parking_lot::Mutex;
use prometheus::IntCounter;

use super::{ApiKey, Digest, Given, Record, digest_of, may_be_plain};
use crate::admit::auth::{AuthError, Caller};
use crate::state::{API_KEY_DIGESTS, API_KEYS, Away, Memory, Redis, Remembers, memory};

/// How long a key is believed without being asked for again: the documented `API_KEY` life.
const LIFE: Duration = Duration::from_secs(86_400);

/// How long it is remembered that there is no such key.
const UNKNOWN_LIFE: Duration = Duration::from_secs(10);

/// Keys that are remembered.
const KEYS: usize = 10_000;

/// Unknown ones that are: a memory of their own, so that a guesser cannot push the good ones out.
const UNKNOWN_KEYS: usize = 10_000;

/// The keys in Redis, and what this process remembers of them.
pub struct StoredKeys {
    redis: Arc<Redis>,
    found: Memory<Digest, Found>,
    unknown: Memory<Digest, Instant>,
    /// Held for every write to the memories too: a change and an answer that crosses it come one after the other.
    pending: Mutex<Pending>,
    /// How often changes may have been missed.
    era: AtomicU64,
    lookups: Lookups,
}

/// `api_key_lookups_total{outcome}`.
pub struct Lookups {
    pub hit: IntCounter,
    pub miss: IntCounter,
    pub unknown: IntCounter,
    pub away: IntCounter,
}

#[derive(Clone)]
struct Found {
    key: ApiKey,
    since: Instant,
    era: u64,
}

/// The look-ups under way: whoever asks for the same key meanwhile waits for the same answer.
#[derive(Default)]
struct Pending {
    by_digest: HashMap<Digest, (Ticket, Answer), ahash::RandomState>,
    next: u64,
}

/// Tells a look-up from a later one of the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket(u64);

type Answer = Shared<BoxFuture<'static, Outcome>>;

#[derive(Clone, Debug)]
enum Outcome {
    Found(ApiKey),
    Unknown,
    Away,
}

impl StoredKeys {
    pub fn new(redis: Arc<Redis>, lookups: Lookups) -> Self {
        Self {
            redis,
            found: memory(KEYS),
            unknown: memory(UNKNOWN_KEYS),
            pending: Mutex::default(),
            era: AtomicU64::new(0),
            lookups,
        }
    }

    /// The holder of a key that is remembered, as a key or as none.
    pub(super) fn recall(&self, digest: &Digest) -> Option<Result<Arc<Caller>, AuthError>> {
        if let Some(found) = self.found.get(digest) {
            if found.era != self.era.load(Acquire) || !found.is_fresh() {
                return None;
            }
            self.lookups.hit.inc();
            return Some(found.key.holder());
        }
        let since = self.unknown.get(digest)?;
        if since.elapsed() >= UNKNOWN_LIFE {
            return None;
        }
        self.lookups.unknown.inc();
        Some(Err(AuthError::Invalid))
    }

    /// Asks Redis, or waits for the answer to somebody who asks already.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        given: &Given<'_>,
    ) -> Result<Arc<Caller>, AuthError> {
        let answer = {
            let mut pending = self.pending.lock();
            // Between recalling it and now an answer may have come.
            if let Some(known) = self.recall(&given.digest) {
                return known;
            }
            match pending.by_digest.get(&given.digest) {
                Some((_, answer)) => answer.clone(),
                None => self.ask(&mut pending, given),
            }
        };
        let outcome = answer.await;
        match outcome {
            Outcome::Found(key) => {
                self.lookups.miss.inc();
                key.holder()
            }
            Outcome::Unknown => {
                self.lookups.unknown.inc();
                Err(AuthError::Invalid)
            }
            Outcome::Away => match self.found.get(&given.digest).filter(Found::is_fresh) {
                Some(last_known) => {
                    self.lookups.hit.inc();
                    last_known.key.holder()
                }
                None => {
                    self.lookups.away.inc();
                    Err(AuthError::CannotTell)
                }
            },
        }
    }

    /// A task of its own: who asked first may go away before the answer comes.
    fn ask(self: &Arc<Self>, pending: &mut Pending, given: &Given<'_>) -> Answer {
        let (this, digest) = (self.clone(), given.digest);
        let hashed = format!("{API_KEY_DIGESTS}{digest}");
        let plain = may_be_plain(given.key).then(|| [API_KEYS.as_bytes(), given.key].concat());
        pending.begin(digest, |ticket| {
            let asking = tokio::spawn(async move {
                let outcome = this
                    .read(&digest, hashed.as_bytes(), plain.as_deref())
                    .await;
                this.settle(digest, ticket, &outcome);
                outcome
            });
            asking
                .map(|ended| ended.unwrap_or(Outcome::Away))
                .boxed()
                .shared()
        })
    }

    /// Two commands, not one for both: on a cluster the keys live on different nodes.
    async fn read(&self, digest: &Digest, hashed: &[u8], plain: Option<&[u8]>) -> Outcome {
        let plain = async {
            match plain {
                Some(plain) => self.get(plain).await,
                None => Ok(None),
            }
        };
        let value = match join(self.get(hashed), plain).await {
            (Ok(Some(hashed)), _) => hashed,
            (Ok(None), Ok(Some(plain))) => plain,
            (Ok(None), Ok(None)) => return Outcome::Unknown,
            (Err(Away), _) | (Ok(None), Err(Away)) => return Outcome::Away,
        };
        match Record::parse(&value) {
            Ok(record) => record.into_key().map_or(Outcome::Unknown, Outcome::Found),
            Err(fault) => {
                log::warn!("the API key {digest:.8}… is refused for its record in redis: {fault}");
                Outcome::Unknown
            }
        }
    }

    async fn get(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Away> {
        self.redis.run(redis::cmd("GET").arg(name)).await
    }

    /// Remembers what a look-up came to, unless its key has changed since it began.
    fn settle(&self, digest: Digest, ticket: Ticket, outcome: &Outcome) {
        let mut pending = self.pending.lock();
        if !pending.end(&digest, ticket) {
            return;
        }
        match outcome {
            Outcome::Found(key) => {
                let found = Found {
                    key: key.clone(),
                    since: Instant::now(),
                    era: self.era.load(Acquire),
                };
                self.unknown.remove(&digest);
                self.found.insert(digest, found);
            }
            Outcome::Unknown => {
                self.found.remove(&digest);
                self.unknown.insert(digest, Instant::now());
            }
            Outcome::Away => {}
        }
    }
}

impl Remembers for StoredKeys {
    fn forget(&self, key: &[u8]) {
        let Some(digest) = digest_of(key) else {
            return;
        };
        let mut pending = self.pending.lock();
        pending.by_digest.remove(&digest);
        self.found.remove(&digest);
        self.unknown.remove(&digest);
    }

    fn forget_all(&self) {
        let mut pending = self.pending.lock();
        pending.by_digest.clear();
        self.era.fetch_add(1, AcqRel);
        self.unknown.clear();
    }
}

// === impl Pending ===

impl Pending {
    fn begin(&mut self, digest: Digest, asking: impl FnOnce(Ticket) -> Answer) -> Answer {
        let ticket = Ticket(self.next);
        self.next += 1;
        let answer = asking(ticket);
        self.by_digest.insert(digest, (ticket, answer.clone()));
        answer
    }

    /// Whether the look-up was still under way: a change of its key ends it before its answer comes.
    fn end(&mut self, digest: &Digest, ticket: Ticket) -> bool {
        let is_this = self
            .by_digest
            .get(digest)
            .is_some_and(|(other, _)| *other == ticket);
        if is_this {
            self.by_digest.remove(digest);
        }
        is_this
    }
}

// === impl Found ===

impl Found {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < LIFE
    }
}
