//! What is shared between processes, and what holds while Redis is away.
//!
//! Without `redis.host` everything is kept in this process. With it, revocations are followed in Redis, and limits are
//! counted there, in one call a request that has a hard time limit. While it is away the last known set and the process'
//! own windows hold, no request waits for it, and /ready says so (decisions 23 and 33).

mod cache;
mod changes;

mod client;
mod follow;
mod keys;
mod revoked;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use pingora::services::background::BackgroundService;
use redis::ProtocolVersion;
use serde::Deserialize;

use crate::config::{Duration, Problems, Secret};
pub use cache::{Cache, LONGEST_LIFE, Lookups, Memory, Unknown, memory};
pub use changes::Remembers;

use client::Keeper;
pub use client::{Away, Prepare, Redis};
use follow::Follow;
pub use revoked::{Revoked, TokenFacts};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    /// Not set: everything is kept in this process.
    pub host: Option<String>,
    pub port: u16,
    pub password: Option<Secret>,
    pub db: i64,
    pub connect_timeout: Duration,
    /// For one command on the path of a request: after it the request goes on without Redis.
    pub command_timeout: Duration,
}

/// What runs with Redis.
pub struct Connected {
    pub follow: Follow,
    pub commands: Arc<Redis>,
    client: redis::Client,
    connect_timeout: std::time::Duration,
}

/// Whether Redis can be had, for /ready and the metrics.
#[derive(Debug, Default)]
pub struct RedisHealth(AtomicU8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisState {
    /// Not configured.
    Off = 0,
    Away = 1,
    Ok = 2,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            host: None,
            port: 6379,
            password: None,
            db: 0,
            connect_timeout: Duration::secs(5),
            command_timeout: Duration::millis(50),
        }
    }
}

impl RedisConfig {
    pub fn compile(
        self,
        revoked: Arc<Revoked>,
        health: Arc<RedisHealth>,
        connections: usize,
        problems: &mut Problems,
    ) -> Option<Connected> {
        let Self {
            host,
            port,
            password,
            db,
            connect_timeout,
            command_timeout,
        } = self;
        for (name, time) in [
            ("connect_timeout", connect_timeout),
            ("command_timeout", command_timeout),
        ] {
            if time.0.is_zero() {
                problems.add(format!("redis.{name}"), "must be longer than nothing");
            }
        }
        let host = host?;
        health.set(RedisState::Away);
        let client = follow::client(&host, port, password.as_ref(), db, ProtocolVersion::RESP2)
            .inspect_err(|e| problems.add("redis", e.to_string()))
            .ok()?;
        Some(Connected {
            follow: Follow::new(host, port, password, db, connect_timeout.0, revoked, health),
            commands: Arc::new(Redis::new(connections, command_timeout.0)),
            client,
            connect_timeout: connect_timeout.0,
        })
    }
}

impl Connected {
    /// The tasks that run beside the requests.
    pub fn tasks(
        self,
        prepare: Arc<dyn Prepare>,
        memories: Vec<Arc<dyn Remembers>>,
    ) -> [Box<dyn BackgroundService + Send + Sync>; 2] {
        let Self {
            mut follow,
            commands: redis,
            client,
            connect_timeout,
        } = self;
        follow.memories = memories;
        let keeper = Keeper {
            redis,
            client,
            connect_timeout,
            prepare,
        };
        [Box::new(follow), Box::new(keeper)]
    }
}

// === impl RedisHealth ===

impl RedisHealth {
    pub fn get(&self) -> RedisState {
        match self.0.load(Ordering::Relaxed) {
            0 => RedisState::Off,
            1 => RedisState::Away,
            _ => RedisState::Ok,
        }
    }

    fn set(&self, state: RedisState) {
        self.0.store(state as u8, Ordering::Relaxed);
    }
}
