//! `cache_*`: what is counted of the response cache.

use prometheus::{IntCounter, IntGauge, Registry};

use super::{counters, registered};

/// `cache_*`.
#[derive(Clone)]
pub struct CacheMetrics {
    /// Requests on routes with a cache, by what became of them.
    pub requests: [IntCounter; RESULTS.len()],
    /// What the memory tier holds.
    pub bytes: IntGauge,
    pub evictions: IntCounter,
    pub purges: IntCounter,
    pub over_budget: IntCounter,
}

/// The values of the label `result`.
const RESULTS: [&str; 5] = ["hit", "stale", "revalidated", "miss", "bypass"];

impl CacheMetrics {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let requests = counters(
            registry,
            "cache_requests_total",
            "Requests on routes with a cache, by what became of them",
            &["result"],
        )?;
        Ok(Self {
            requests: RESULTS.map(|result| requests.with_label_values(&[result])),
            bytes: registered(
                registry,
                IntGauge::new("cache_bytes", "Octets of answers that are kept in memory")?,
            )?,
            evictions: registered(
                registry,
                IntCounter::new(
                    "cache_evictions_total",
                    "Answers that gave way to others in memory",
                )?,
            )?,
            purges: registered(
                registry,
                IntCounter::new("cache_purges_total", "Orders to forget answers")?,
            )?,
            over_budget: registered(
                registry,
                IntCounter::new(
                    "cache_fills_over_budget_total",
                    "Answers that were passed on and not kept, for too much was on its way at once",
                )?,
            )?,
        })
    }
}
