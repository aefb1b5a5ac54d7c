//! What operators see: the log, the metrics, the trace of a request.

pub mod access_log;
pub mod audit;
mod ended;
pub mod logging;
pub mod redact;
pub mod registry;
pub mod seldom;
pub mod sink;
pub mod trace;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Duration, Problems, Stage};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Default: debug in development, info otherwise (decision 34).
    pub level: Option<Level>,
    /// Default: pretty in development, JSON otherwise.
    pub format: Option<Format>,
    /// Default: standard output.
    pub file: Option<PathBuf>,
    /// A request that takes longer has a line of its own.
    pub slow_request: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Pino's `fatal` and `error` are one here.
    #[serde(alias = "fatal")]
    Error,
    Warn,
    Info,
    #[serde(alias = "trace")]
    Debug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Json,
    Pretty,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// Continue a client's W3C trace, or begin one, towards the backends and in the log.
    pub enabled: bool,
}

/// How the log is written.
#[derive(Clone, Debug)]
pub struct LogSettings {
    pub level: Level,
    pub format: Format,
    pub file: Option<PathBuf>,
    pub slow_request: std::time::Duration,
    pub service_name: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: None,
            format: None,
            file: None,
            slow_request: Duration::secs(1),
        }
    }
}

impl LogConfig {
    pub fn compile(
        self,
        stage: Stage,
        service_name: String,
        problems: &mut Problems,
    ) -> LogSettings {
        let Self {
            level,
            format,
            file,
            slow_request,
        } = self;
        if slow_request.0.is_zero() {
            problems.add("log.slow_request", "must be longer than nothing");
        }
        let (stage_level, stage_format) = match stage {
            Stage::Development => (Level::Debug, Format::Pretty),
            Stage::Staging | Stage::Production => (Level::Info, Format::Json),
        };
        LogSettings {
            level: level.unwrap_or(stage_level),
            format: format.unwrap_or(stage_format),
            file,
            slow_request: slow_request.0,
            service_name,
        }
    }
}
