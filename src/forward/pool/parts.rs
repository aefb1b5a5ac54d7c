//! What services are compiled with.

use std::sync::Arc;

use pingora::connectors::http::Connector;

use super::health::check_health;
use super::{BalanceConfig, HealthConfig, OutlierConfig, Pools};
use crate::config::Problems;
use crate::forward::breaker::BreakerConfig;
use crate::forward::overload::OverloadConfig;
use crate::forward::retry::RetryConfig;
use crate::observe::registry::Metrics;

/// What holds for services that do not say otherwise.
pub struct Defaults {
    pub breaker: BreakerConfig,
    pub retry: RetryConfig,
    pub balance: BalanceConfig,
    pub outlier: OutlierConfig,
    pub health: HealthConfig,
    pub overload: OverloadConfig,
}

/// What services are compiled with.
pub struct Parts<'a> {
    pub defaults: Defaults,
    pub metrics: &'a Metrics,
    pub connectors: &'a Connectors,
    /// Those in force.
    pub before: Option<&'a Pools>,
}

/// What connects for the gateway itself, as long as the process lives. One for all services: each would read the system's
/// certificates.
pub struct Connectors {
    pub(super) questions: Arc<Connector>,
    /// Of their own: a check shows that a new connection can be made.
    pub(super) checks: Arc<Connector>,
}

// === impl Defaults ===

impl Defaults {
    /// Each fault once, however many services share it.
    pub(super) fn check(&self, problems: &mut Problems) {
        self.breaker.check("breaker", problems);
        check_health("health", &self.health, problems);
        self.retry.clone().compile("retry", None, problems);
        self.balance.clone().compile("balance", problems);
        self.outlier.clone().compile("outlier", problems);
    }
}

// === impl Connectors ===

impl Connectors {
    pub fn new() -> Self {
        let connector = || Arc::new(Connector::new(None));
        Self {
            questions: connector(),
            checks: connector(),
        }
    }
}
