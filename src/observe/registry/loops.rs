//! What is counted of the event loops, by their numbers: as many as there are threads that serve.

use prometheus::{Histogram, HistogramVec, IntGauge, IntGaugeVec, Registry};

use super::{gauges, histograms};

pub struct LoopMetrics {
    lag: HistogramVec,
    connections: IntGaugeVec,
}

/// One loop's, with labels resolved.
pub struct OfLoop {
    pub lag: Histogram,
    pub connections: IntGauge,
}

/// Seconds. Timers are exact to a millisecond, so that a loop with nothing to do is that late.
const BUCKETS: [f64; 8] = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0];

impl LoopMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            lag: histograms(
                registry,
                "event_loop_lag_seconds",
                "How late a thread that serves comes to what is due, looked at 50 times a second",
                &["loop"],
                &BUCKETS,
            )?,
            connections: gauges(
                registry,
                "event_loop_connections",
                "Connections from clients by the thread that serves them",
                &["loop"],
            )?,
        })
    }

    /// `number`: from 1.
    pub fn of(&self, number: usize) -> OfLoop {
        let number = number.to_string();
        OfLoop {
            lag: self.lag.with_label_values(&[&number]),
            connections: self.connections.with_label_values(&[&number]),
        }
    }
}
