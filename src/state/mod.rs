//! What is shared between processes, and what holds while Redis is away.
//!
//! Without `redis.host` everything is kept in this process. With it, revocations are followed in Redis; while it is
//! away the last known set holds and /ready says so (decisions 23 and 33). No request ever waits for Redis.

mod follow;
mod keys;
mod revoked;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::Deserialize;

use crate::config::{Duration, Problems, Secret};
pub use follow::Follow;
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
        }
    }
}

impl RedisConfig {
    pub fn compile(
        self,
        revoked: Arc<Revoked>,
        health: Arc<RedisHealth>,
        problems: &mut Problems,
    ) -> Option<Follow> {
        let Self {
            host,
            port,
            password,
            db,
            connect_timeout,
        } = self;
        if connect_timeout.0.is_zero() {
            problems.add("redis.connect_timeout", "must be longer than nothing");
        }
        let host = host?;
        health.set(RedisState::Away);
        Some(Follow::new(
            host,
            port,
            password,
            db,
            connect_timeout.0,
            revoked,
            health,
        ))
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
