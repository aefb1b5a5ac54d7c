//! What is out of date in one process is so in all: it is written down in Redis, where processes read it that come later or
//! were away, and told to those who listen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::LONGEST_LIFE;
use super::invalid::{Place, SKEW, unix_micros};
use super::store::Store;
use crate::state::{CACHE_INVALID, CACHE_PURGE, Kept, Redis, RedisHealth, Remembers};

pub struct Told {
    redis: Arc<Redis>,
    kept: Arc<Kept>,
    health: Arc<RedisHealth>,
    /// What stands in Redis was read since the connection was last lost.
    is_read: AtomicBool,
    /// How often that was lost.
    lost: AtomicU64,
    /// What others say is heard.
    hears: AtomicBool,
    read: Notify,
    /// Marks of what this process said, the latest last: it hears that, too. Of the whole text: two processes may well say
    /// something in the same microsecond.
    said: Mutex<VecDeque<u64>>,
    marks: ahash::RandomState,
}

/// What was said to be out of date, and when; microseconds since 1970.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub at: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    pub tenant: Option<String>,
    pub prefix: String,
}

/// A store that hears of what other processes say.
pub struct Listens {
    pub store: Arc<Store>,
    pub told: Arc<Told>,
}

/// Reads what was said while nobody listened.
pub struct CatchUp(pub Arc<Listens>);

/// What is written down outlives all that it puts out of date.
const LIFE: Duration = Duration::from_secs(LONGEST_LIFE.as_secs() + 3600);

/// More is not read: everything is out of date then.
const MOST: usize = 1 << 18;

/// Microseconds: a clock that is further ahead is wrong, and would put everything out of date for so long.
const LATEST: u64 = 60_000_000;

/// Between two tries to read it.
const AGAIN: Duration = Duration::from_millis(100);

/// What was said so many times ago has come back long since; otherwise it costs a fetch.
const MOST_SAID: usize = 1024;

/// Longest message that is listened to.
const LONGEST: usize = 64 << 10;

impl Told {
    /// What Redis was not told of yet.
    pub fn kept(&self) -> &Arc<Kept> {
        &self.kept
    }

    pub fn new(redis: Arc<Redis>, kept: Arc<Kept>, health: Arc<RedisHealth>) -> Self {
        Self {
            redis,
            kept,
            health,
            is_read: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            hears: AtomicBool::new(false),
            read: Notify::new(),
            said: Mutex::default(),
            marks: ahash::RandomState::new(),
        }
    }

    /// Whether all that was said anywhere is known here.
    pub fn knows_all(&self) -> bool {
        self.is_read.load(SeqCst) && self.hears.load(SeqCst) && self.health.is_followed()
    }

    /// Tells the other processes, now or when Redis is back.
    pub fn tell(self: &Arc<Self>, message: Message) {
        let Ok(text) = serde_json::to_vec(&message) else {
            return;
        };
        self.note_said(&text);
        let mut write = redis::cmd("HSET");
        write.arg(CACHE_INVALID);
        for place in &message.places {
            write.arg(place).arg(message.at);
        }
        if let Some(prefix) = &message.prefix {
            let Ok(field) = serde_json::to_string(prefix) else {
                return;
            };
            write.arg(field).arg(message.at);
        }
        let mut expire = redis::cmd("EXPIRE");
        expire.arg(CACHE_INVALID).arg(LIFE.as_secs());
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(CACHE_PURGE).arg(text);
        let (kept, held) = (self.kept.clone(), self.kept.hold());
        tokio::spawn(async move {
            let _held = held;
            kept.write(write, LIFE).await;
            kept.write(expire, LIFE).await;
            kept.write(publish, LIFE).await;
        });
    }
}

impl Told {
    fn note_said(&self, text: &[u8]) {
        let mark = self.marks.hash_one(text);
        let mut said = self.said.lock();
        if said.len() >= MOST_SAID {
            said.pop_front();
        }
        said.push_back(mark);
    }

    fn has_said(&self, text: &[u8]) -> bool {
        self.said.lock().contains(&self.marks.hash_one(text))
    }
}

// === impl Listens ===

impl Listens {
    fn hear(&self, message: Message) {
        let at = message.at.min(unix_micros() + LATEST);
        for place in message.places {
            self.store.invalid.tag(place, at);
        }
        if let Some(Prefix { tenant, prefix }) = message.prefix {
            let tenant = tenant.as_deref().map(str::as_bytes);
            self.store.invalid.prefix(tenant, &prefix, at);
        }
    }

    async fn read(&self) -> bool {
        let told = &self.told;
        let fields: Result<Vec<(String, u64)>, _> = told
            .redis
            .run(redis::cmd("HGETALL").arg(CACHE_INVALID))
            .await;
        let Ok(fields) = fields else {
            return false;
        };
        if fields.len() > MOST {
            self.store.doubt_all();
        }
        let oldest = unix_micros().saturating_sub(LIFE.as_micros() as u64);
        for (field, at) in fields.into_iter().take(MOST).filter(|(_, at)| *at > oldest) {
            let (places, prefix) = match field.parse() {
                Ok(place) => (vec![place], None),
                Err(_) => (Vec::new(), serde_json::from_str(&field).ok()),
            };
            // When that was here nobody knows any more: the clock there may have been behind by so much.
            let at = at.saturating_add(SKEW);
            self.hear(Message { at, places, prefix });
        }
        true
    }
}

impl Remembers for Listens {
    fn forget(&self, _: &[u8]) {}

    fn forget_all(&self) {
        self.told.lost.fetch_add(1, SeqCst);
        self.told.is_read.store(false, SeqCst);
        self.told.read.notify_one();
    }

    fn hears_purges(&self, hears: bool) {
        self.told.hears.store(hears, SeqCst);
    }

    fn purge(&self, message: &[u8]) {
        // What was said here holds since then.
        if message.len() > LONGEST || self.told.has_said(message) {
            return;
        }
        let Ok(mut message) = serde_json::from_slice::<Message>(message) else {
            return;
        };
        // The clock there may be behind: nothing that was asked for here before now shows what was changed there.
        message.at = message.at.max(self.store.invalid.now());
        self.hear(message);
    }
}

#[async_trait]
impl BackgroundService for CatchUp {
    async fn start(&self, _: ShutdownWatch) {
        let Self(listens) = self;
        loop {
            listens.told.read.notified().await;
            let before = listens.told.lost.load(SeqCst);
            while !listens.read().await {
                tokio::time::sleep(AGAIN).await;
            }
            listens.told.is_read.store(true, SeqCst);
            // What was said since then is read anew: this loop was told.
            if listens.told.lost.load(SeqCst) != before {
                listens.told.is_read.store(false, SeqCst);
            }
        }
    }
}
