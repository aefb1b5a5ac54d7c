//! Which refresh token of a family is the current one? Whoever presents another has a copy, or was robbed of it: the family
//! ends, and its access tokens with it (decision 16).
//!
//! With Redis this is decided there, in one call. Without, in this process, which forgets it when it ends: then its tokens
//! are refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora_timeout::timeout;
use redis::Cmd;

use super::memory::{CarriedFamily, Memory};
use crate::admit::auth::keys::LEEWAY;
use crate::admit::auth::token::unix_now;
use crate::state::{Away, Family, Kept, Redis, Revoked, Settle};

/// How long tokens live.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    pub access: Duration,
    pub refresh: Duration,
}

/// A refresh token whose signature holds.
pub struct Presented<'a> {
    pub family: &'a Family,
    /// Of a token that a gateway minted.
    pub id: Option<&'a str>,
    /// Unix seconds.
    pub expires: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was the current one, or the first; now its successor is.
    Rotated,
    /// It was not: the family has ended.
    Reused,
    /// The family had ended before.
    Dead,
    /// A gateway minted it, and nobody knows of its family: what was known is lost.
    Unknown,
}

/// The families of all users.
pub struct Families {
    lives: Lives,
    store: Arc<Store>,
    revoked: Arc<Revoked>,
}

/// Where it is decided; as long as the process lives.
pub enum Store {
    Redis { redis: Arc<Redis>, kept: Arc<Kept> },
    Memory(Mutex<Memory>),
}

const ROTATE: &str = include_str!("rotate.lua");
const KILL: &str = include_str!("kill.lua");

/// Revocations that Redis was not told of yet. One is about as large as a token.
const MOST_KEPT: usize = 50_000;

/// Families that a process without Redis knows. When there are more no family begins, rather than one being forgotten.
const MOST: usize = 1_000_000;

// === impl Store ===

impl Store {
    pub fn new(redis: Option<Arc<Redis>>) -> Self {
        match redis {
            Some(redis) => Self::Redis {
                kept: Arc::new(Kept::new(redis.clone(), MOST_KEPT)),
                redis,
            },
            None => Self::Memory(Mutex::new(Memory::new(MOST))),
        }
    }

    /// All families that this process keeps itself, or those that have changed since they were asked for: for the next one.
    pub fn carried(&self, only_changes: bool) -> Vec<CarriedFamily> {
        match self {
            Self::Redis { .. } => Vec::new(),
            Self::Memory(memory) if only_changes => memory.lock().carried_changes(),
            Self::Memory(memory) => memory.lock().carried(),
        }
    }

    pub fn take_over(&self, families: Vec<CarriedFamily>) -> usize {
        match self {
            Self::Redis { .. } => 0,
            Self::Memory(memory) => memory.lock().take_over(families),
        }
    }

    /// Tells Redis what it was not told yet, where there is one.
    pub fn settle(&self) -> Option<Settle> {
        self.kept().cloned().map(Settle)
    }

    pub fn kept(&self) -> Option<&Arc<Kept>> {
        match self {
            Self::Redis { kept, .. } => Some(kept),
            Self::Memory(_) => None,
        }
    }
}

// === impl Families ===

impl Families {
    pub fn new(lives: Lives, store: Arc<Store>, revoked: Arc<Revoked>) -> Self {
        Self {
            lives,
            store,
            revoked,
        }
    }

    /// Puts the successor, whose id is `next`, in the place of the presented token, if that is the current one.
    ///
    /// # Errors
    /// When nobody can tell: Redis is away, or the memory full. Nothing has changed then; but for an answer of Redis'
    /// that was lost on its way, after which the token counts as used.
    pub async fn rotate(&self, token: &Presented<'_>, next: &str) -> Result<Verdict, Away> {
        let verdict = match &*self.store {
            Store::Redis { redis, .. } => self.rotate_in(redis, token, next).await?,
            Store::Memory(memory) => {
                let until = unix_now().saturating_add(self.record_life(token).as_secs() as i64);
                memory.lock().rotate(token, next, until)?
            }
        };
        if verdict == Verdict::Reused {
            self.revoke_here(token.family);
        }
        Ok(verdict)
    }

    /// Ends a family. Where Redis is away it ends in this process at once, and there later.
    pub async fn kill(&self, family: &Family) {
        self.revoke_here(family);
        let refresh = with_leeway(self.lives.refresh);
        match &*self.store {
            Store::Redis { kept, .. } => {
                let mut command = script(KILL, family);
                command
                    .arg(refresh.as_millis() as u64)
                    .arg(with_leeway(self.lives.access).as_millis() as u64);
                kept.write(command, refresh).await;
            }
            Store::Memory(memory) => {
                let until = unix_now().saturating_add(refresh.as_secs() as i64);
                memory.lock().end(family, until);
            }
        }
    }

    pub fn revoked(&self) -> &Arc<Revoked> {
        &self.revoked
    }

    pub fn lives(&self) -> Lives {
        self.lives
    }

    /// What is to be written in Redis for good, where there is one.
    pub fn kept(&self) -> Option<&Arc<Kept>> {
        self.store.kept()
    }

    /// Both calls together have the time of one command. A Redis that stalls in between finds the second one late, and
    /// leaves everything as it was: the client may come again with the same token.
    async fn rotate_in(
        &self,
        redis: &Redis,
        token: &Presented<'_>,
        next: &str,
    ) -> Result<Verdict, Away> {
        let (begun, limit) = (Instant::now(), redis.limit());
        let time = redis.time(token.family.key()).await?;
        // The other half is for the answer's way.
        let latest = time + limit.as_millis() as u64 / 2;
        let mut command = script(ROTATE, token.family);
        command
            .arg(token.id.unwrap_or_default())
            .arg(next)
            .arg(self.record_life(token).as_millis() as u64)
            .arg(with_leeway(self.lives.access).as_millis() as u64)
            .arg(latest);
        let left = limit.saturating_sub(begun.elapsed());
        let answer: String = timeout(left, redis.run(&command))
            .await
            .map_err(|_| Away)??;
        match &*answer {
            "rotated" => Ok(Verdict::Rotated),
            "reused" => Ok(Verdict::Reused),
            "dead" => Ok(Verdict::Dead),
            "lost" => Ok(Verdict::Unknown),
            _ => Err(Away),
        }
    }

    /// As long as any token of the family could live: the presented one, and one that is minted now.
    fn record_life(&self, token: &Presented<'_>) -> Duration {
        let left = token.expires.saturating_sub(unix_now()).max(0) as u64;
        with_leeway(self.lives.refresh.max(Duration::from_secs(left)))
    }

    fn revoke_here(&self, family: &Family) {
        let now = unix_now();
        let life = with_leeway(self.lives.access).as_secs() as i64;
        self.revoked
            .revoke_family(family, now.saturating_add(life), now);
    }
}

/// One call about both keys of a family, which are in the same slot of a cluster. Not by digest: it is rare, and so no
/// connection needs to be prepared for it.
fn script(text: &str, family: &Family) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command
        .arg(text)
        .arg(2)
        .arg(family.key())
        .arg(family.revocation_key());
    command
}

/// A token counts for so long, and one second for the rounding of its times. More than a hundred years is no life.
fn with_leeway(life: Duration) -> Duration {
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    life.min(LONGEST) + Duration::from_secs(LEEWAY + 1)
}
