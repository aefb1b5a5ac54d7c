//! What the operator wrote: YAML, environment, built-in defaults, in rising order of who wins, from right to left.
//!
//! Each room owns its part of the file, beside the type that it builds; this root only composes them.

mod bounds;
mod diff;
mod environment;
mod load;
mod problems;
mod tree;
mod units;

pub use bounds::{check as check_yaml, contents};
pub use diff::Diff;
pub use environment::Environment;
#[cfg(any(fuzzing, test))]
pub use load::parse;
pub use load::{REFERENCE, Source, load, load_again};
pub use problems::Problems;
pub use tree::{Tree, tree, with_content, with_file};
pub use units::{Bytes, Duration, Secret};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::admit::auth::AuthConfig;
use crate::admit::cors::CorsConfig;
use crate::admit::idempotency::IdempotencyConfig;
use crate::admit::limits::LimitsConfig;
use crate::admit::permissions::RoleConfig;
use crate::admit::schema;
use crate::admit::size::SizeConfig;
use crate::admit::tenancy::TenancyConfig;
use crate::connection::streams::StreamsConfig;
use crate::forward::batch::BatchConfig;
use crate::forward::breaker::BreakerConfig;
use crate::forward::deadline::TimeoutsConfig;
use crate::forward::overload::OverloadConfig;
use crate::forward::pool::{BalanceConfig, HealthConfig, OutlierConfig, ServiceConfig};
use crate::forward::retry::RetryConfig;
use crate::listen::tls::TlsConfig;
use crate::observe::{LogConfig, TracingConfig};
use crate::ops::OpsConfig;
use crate::ops::documentation::DocumentationConfig;
use crate::reply::cache::CacheConfig;
use crate::reply::secure_headers::SecureHeadersConfig;
use crate::route::RouteConfig;
use crate::server::ServerConfig;
use crate::state::RedisConfig;

/// A whole configuration file.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub environment: Stage,
    pub service_name: ServiceName,
    pub server: ServerConfig,
    pub tls: TlsConfig,
    pub ops: OpsConfig,
    pub log: LogConfig,
    pub tracing: TracingConfig,
    pub redis: RedisConfig,
    pub cache: CacheConfig,
    pub sizes: SizeConfig,
    pub cors: CorsConfig,
    pub secure_headers: SecureHeadersConfig,
    pub auth: AuthConfig,
    pub tenancy: TenancyConfig,
    pub roles: BTreeMap<String, RoleConfig>,
    pub limits: LimitsConfig,
    pub validation: schema::LimitsConfig,
    pub idempotency: IdempotencyConfig,
    pub streams: StreamsConfig,
    pub timeouts: TimeoutsConfig,
    pub breaker: BreakerConfig,
    pub retry: RetryConfig,
    pub balance: BalanceConfig,
    pub outlier: OutlierConfig,
    pub health: HealthConfig,
    pub overload: OverloadConfig,
    pub services: BTreeMap<String, ServiceConfig>,
    pub aliases: BTreeMap<String, String>,
    pub routes: Vec<RouteConfig>,
    pub batch: BatchConfig,
    pub documentation: DocumentationConfig,
}

/// Where the gateway runs: it decides how strict start-up is, and how logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    #[default]
    Development,
    Staging,
    Production,
}

/// What this service calls itself in its log.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ServiceName(pub String);

impl Default for ServiceName {
    fn default() -> Self {
        Self("api-gateway".into())
    }
}
