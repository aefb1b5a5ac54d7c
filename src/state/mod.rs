//! What is shared between processes, and what holds while Redis is away.
//!
//! Where no Redis is configured everything is kept in this process. With it, revocations are followed in Redis, limits are
//! counted there, in one call a request that has a hard time limit, and API keys, refresh families and what other services
//! know of users stand there. While it is away the last known set and the process' own windows hold, no request waits for
//! it, and /ready says so (decisions 23 and 33). Ids of users, keys and venues are unique over tenants, but where a value
//! says whose it is.

mod cache;
mod changes;
mod client;
mod cluster;
mod config;
mod connect;
mod connection;
mod follow;
mod health;
mod kept;
mod keys;
mod own;
mod revoked;
mod tls;
mod topology;
mod watch;

use std::sync::Arc;

use pingora::services::background::BackgroundService;

pub use cache::{Cache, LONGEST_LIFE, Lookups, Memory, Unknown, memory};
pub use changes::Remembers;

use crate::server::threads::Threads;
use client::Keeper;
pub use client::{Away, Prepare, Redis};
pub use config::RedisConfig;
pub use connect::Operator;
pub use connection::Connection;
use follow::Follow;
pub use health::{RedisHealth, RedisState};
pub use kept::{Kept, Settle};
pub use keys::{
    API_KEY_DIGESTS, API_KEY_LOCK, API_KEYS, CACHE_INVALID, CACHE_PURGE, CACHES, Family,
    blacklisted, cache_prefix, chosen_key_part, idempotency_key, key_part,
};
pub use revoked::{Revoked, TokenFacts, signed_part};

/// What runs with Redis.
pub struct Connected {
    follow: Follow,
    pub commands: Arc<Redis>,
}

impl Connected {
    /// The tasks that run beside the requests.
    pub fn tasks(
        self,
        prepare: Arc<dyn Prepare>,
        memories: Vec<Arc<dyn Remembers>>,
        threads: Threads,
    ) -> [Box<dyn BackgroundService + Send + Sync>; 2] {
        let Self {
            mut follow,
            commands: redis,
        } = self;
        follow.memories = memories;
        [
            Box::new(follow),
            Box::new(Keeper {
                redis,
                prepare,
                threads,
            }),
        ]
    }
}
