//! `streams` in the YAML.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Duration as Time, Problems};
use crate::connection::cut::TO_CLOSE;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamsConfig {
    /// Open at once of one caller; 0: any number.
    pub per_user: u32,
    /// For open streams when the process drains.
    pub drain_grace: Time,
}

/// What holds for all streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    pub(super) per_user: u32,
    pub(super) drain_grace: Duration,
}

impl Default for StreamsConfig {
    fn default() -> Self {
        Self {
            per_user: 20,
            drain_grace: Time::secs(5),
        }
    }
}

impl StreamsConfig {
    /// `shutdown_timeout`: when all that is open is cut. WebSockets are told before that.
    pub fn compile(self, shutdown_timeout: Duration, problems: &mut Problems) -> StreamLimits {
        let Self {
            per_user,
            drain_grace,
        } = self;
        if drain_grace.0 > LONGEST_GRACE {
            problems.add("streams.drain_grace", "must not be longer than an hour");
        }
        StreamLimits {
            per_user,
            drain_grace: drain_grace
                .0
                .min(shutdown_timeout.saturating_sub(TO_CLOSE + TO_CLOSE / 2)),
        }
    }
}

const LONGEST_GRACE: Duration = Duration::from_secs(3600);
