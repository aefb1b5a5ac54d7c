//! What is counted of Redis.

use prometheus::{IntCounter, Registry};

use super::counters;

/// With labels resolved.
pub struct RedisMetrics {
    /// Redis said no, or the connection was lost.
    pub commands_refused: IntCounter,
    /// There was no answer in time.
    pub commands_late: IntCounter,
    pub command_reconnects: IntCounter,
    pub follower_reconnects: IntCounter,
}

impl RedisMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let failed = counters(
            registry,
            "redis_commands_failed_total",
            "Commands of requests that redis did not carry out, by why: error or timeout",
            &["cause"],
        )?;
        let reconnects = counters(
            registry,
            "redis_reconnects_total",
            "Tries to have a lost connection to redis again, by what it is for: commands or follower",
            &["connection"],
        )?;
        Ok(Self {
            commands_refused: failed.with_label_values(&["error"]),
            commands_late: failed.with_label_values(&["timeout"]),
            command_reconnects: reconnects.with_label_values(&["commands"]),
            follower_reconnects: reconnects.with_label_values(&["follower"]),
        })
    }
}
