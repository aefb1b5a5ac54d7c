//! Every metric, under its documented name, labels and buckets. Label values come from the configuration, never from
//! a request: a route is its template, a method one of seven or `OTHER`, and a path without a route is `unmatched`.

mod cache;
mod http;
mod loops;
mod redis;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::admit::auth::api_key::Lookups;
use crate::connection::Requests;
use crate::forward::pool::Census;
use crate::forward::retry::Failure;
pub use cache::CacheMetrics;
pub use http::{HttpMetrics, InProgress, MethodMetrics, RouteMetrics};
pub use loops::{LoopMetrics, OfLoop};
pub use redis::RedisMetrics;

/// The route label of a path that has none.
pub const UNMATCHED: &str = "unmatched";

/// The metrics of a process.
pub struct Metrics {
    registry: Registry,
    pub http: Arc<HttpMetrics>,
    /// Authentication attempts by outcome: success or failure.
    pub authentication_attempts: IntCounterVec,
    /// Refresh tokens that were presented to the gateway, by what came of it.
    pub token_refreshes: IntCounterVec,
    /// Requests refused with 429, by what they exceeded.
    pub rate_limit_hits: IntCounterVec,
    /// Venues that requests named, by who knew whether they are the caller's.
    pub venue_checks: IntCounterVec,
    /// Requests that did not look as they must, by route and what became of them.
    pub validation_failures: IntCounterVec,
    /// Requests with an Idempotency-Key, or that need one, by what came of it.
    pub idempotency_requests: IntCounterVec,
    /// What other services were asked about callers, by where the answer came from.
    pub lookups: IntCounterVec,
    /// Sources that aggregates were made of, by what came of asking them.
    pub aggregate_sources: IntCounterVec,
    /// Requests that came in batches.
    pub batch_calls: IntCounter,
    /// Look-ups of API keys in Redis and in the memory of it, by outcome.
    api_key_lookups: IntCounterVec,
    /// Reloads of the configuration, by what came of them: reloaded or failed.
    pub reloads: IntCounterVec,
    pub connections: IntGauge,
    /// Requests by the protocol that their clients spoke.
    requests_by_protocol: IntCounterVec,
    /// HTTP/2 connections that were ended for what their clients did on them.
    pub http2_closed: IntCounterVec,
    /// Open WebSockets, event streams and other answers that stream.
    pub streams_open: IntGaugeVec,
    /// Attempts to put a new process in the place of this one, by outcome.
    pub upgrades: IntCounterVec,
    /// Connections that were closed before a request was read, by reason.
    pub connections_refused: IntCounterVec,
    /// TLS handshakes with clients, by outcome.
    pub tls_handshakes: IntCounterVec,
    pub certificate_not_after: IntGauge,
    log_lines_dropped: IntGauge,
    tasks: IntGauge,
    pub loops: LoopMetrics,
    redis_up: IntGauge,
    pub redis: RedisMetrics,
    pub cache: CacheMetrics,
    services: ServiceMetricsVec,
    build_info: Gauge,
}

/// What is counted for each service.
struct ServiceMetricsVec {
    breaker: IntGaugeVec,
    attempts: IntCounterVec,
    retries: IntCounterVec,
    retries_denied: IntCounterVec,
    instances: IntGaugeVec,
    healthy_instances: IntGaugeVec,
    ejected_instances: IntGaugeVec,
    ejections: IntCounterVec,
    panic: IntGaugeVec,
    concurrency_limit: IntGaugeVec,
    concurrency: IntGaugeVec,
    shed: IntCounterVec,
}

/// One service's metrics, with labels resolved.
pub struct ServiceMetrics {
    /// 0 closed, 1 open, 2 half-open.
    pub breaker: IntGauge,
    attempts: [IntCounter; OUTCOMES.len()],
    retries: [IntCounter; CAUSES.len()],
    pub retries_denied: IntCounter,
    instances: IntGauge,
    healthy_instances: IntGauge,
    ejected_instances: IntGauge,
    pub ejections: IntCounter,
    panic: IntGauge,
    pub concurrency_limit: IntGauge,
    pub concurrency: IntGauge,
    /// By priority.
    pub shed: [IntCounter; PRIORITIES.len()],
}

/// How an attempt at an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    Connect = 0,
    Reset = 1,
    Timeout = 2,
    Status = 3,
    Success = 4,
    /// The client gave up, or was the cause.
    Aborted = 5,
}

const OUTCOMES: [&str; 6] = [
    "connect", "reset", "timeout", "status", "success", "aborted",
];

/// The outcomes that a retry can have as its cause: the first of [`OUTCOMES`].
const CAUSES: [&str; 4] = ["connect", "reset", "timeout", "status"];

const PRIORITIES: [&str; 3] = ["high", "normal", "low"];

impl Metrics {
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let metrics = Self {
            http: Arc::new(HttpMetrics::new(&registry)?),
            authentication_attempts: counters(
                &registry,
                "authentication_attempts_total",
                "Authentication attempts by outcome",
                &["status"],
            )?,
            upgrades: counters(
                &registry,
                "upgrades_total",
                "Attempts to put a new process in the place of this one, by outcome",
                &["outcome"],
            )?,
            token_refreshes: counters(
                &registry,
                "token_refreshes_total",
                "Refresh tokens presented to the gateway, by what came of it",
                &["outcome"],
            )?,
            rate_limit_hits: counters(
                &registry,
                "rate_limit_hits_total",
                "Requests refused with 429, by what they exceeded",
                &["limit"],
            )?,
            venue_checks: counters(
                &registry,
                "venue_checks_total",
                "Venues that requests named, by who knew whether they are the caller's",
                &["outcome"],
            )?,
            validation_failures: counters(
                &registry,
                "validation_failures_total",
                "Requests that did not look as their route's schemas have it",
                &["route", "mode"],
            )?,
            idempotency_requests: counters(
                &registry,
                "idempotency_requests_total",
                "Requests with an Idempotency-Key, or that need one, by what came of it",
                &["result"],
            )?,
            lookups: counters(
                &registry,
                "lookups_total",
                "Questions about users and memberships, by where the answer came from",
                &["what", "outcome"],
            )?,
            aggregate_sources: counters(
                &registry,
                "aggregate_sources_total",
                "Sources that aggregates asked, by what came of it",
                &["aggregate", "source", "result"],
            )?,
            batch_calls: registered(
                &registry,
                IntCounter::new("batch_calls_total", "Requests that came in batches")?,
            )?,
            api_key_lookups: counters(
                &registry,
                "api_key_lookups_total",
                "API keys looked up: hit remembered, miss found in redis, unknown no such key, away redis cannot tell",
                &["outcome"],
            )?,
            reloads: counters(
                &registry,
                "config_reloads_total",
                "Reloads of the configuration, by what came of them: reloaded or failed",
                &["outcome"],
            )?,
            connections: registered(
                &registry,
                IntGauge::new("downstream_connections", "Open connections from clients")?,
            )?,
            requests_by_protocol: counters(
                &registry,
                "downstream_requests_by_protocol_total",
                "Requests by the protocol that they came in, or became",
                &["protocol"],
            )?,
            http2_closed: counters(
                &registry,
                "downstream_http2_closed_total",
                "HTTP/2 connections that were ended for what their clients did on them",
                &["reason"],
            )?,
            streams_open: gauges(
                &registry,
                "streams_open",
                "Open WebSockets, event streams and other answers that stream",
                &["kind"],
            )?,
            connections_refused: counters(
                &registry,
                "downstream_connections_refused_total",
                "Connections from clients closed before a request was read, by reason",
                &["reason"],
            )?,
            tls_handshakes: counters(
                &registry,
                "downstream_tls_handshakes_total",
                "TLS handshakes with clients, by outcome",
                &["outcome"],
            )?,
            certificate_not_after: registered(
                &registry,
                IntGauge::new(
                    "tls_certificate_not_after_seconds",
                    "When the first of our certificates ends, in seconds since 1970; 0 without any",
                )?,
            )?,
            tasks: registered(
                &registry,
                IntGauge::new(
                    "runtime_tasks",
                    "Tasks of the runtime that serves requests: connections, streams of HTTP/2, and what they wait for",
                )?,
            )?,
            loops: LoopMetrics::new(&registry)?,
            log_lines_dropped: registered(
                &registry,
                IntGauge::new(
                    "log_lines_dropped",
                    "Log lines dropped since the start because the writer could not keep up",
                )?,
            )?,
            redis_up: registered(
                &registry,
                IntGauge::new(
                    "redis_up",
                    "1 when redis answers, 0 when it is away or not configured",
                )?,
            )?,
            redis: RedisMetrics::new(&registry)?,
            cache: CacheMetrics::new(&registry)?,
            services: ServiceMetricsVec::new(&registry)?,
            build_info: registered(
                &registry,
                Gauge::with_opts(
                    Opts::new(
                        "api_gateway_build_info",
                        "Always 1; the labels tell the build",
                    )
                    .const_label("version", env!("CARGO_PKG_VERSION")),
                )?,
            )?,
            registry,
        };
        metrics.build_info.set(1.0);
        for limit in ["address", "authentication", "caller", "streams"] {
            metrics.rate_limit_hits.with_label_values(&[limit]);
        }
        for outcome in ["reloaded", "failed"] {
            metrics.reloads.with_label_values(&[outcome]);
        }
        metrics.registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        Ok(metrics)
    }

    pub fn requests(&self) -> Requests {
        let of = |protocol| self.requests_by_protocol.with_label_values(&[protocol]);
        Requests {
            http1: of("http/1.1"),
            http2: of("h2"),
        }
    }

    /// Requests that became a WebSocket.
    pub fn websockets(&self) -> IntCounter {
        self.requests_by_protocol.with_label_values(&["websocket"])
    }

    pub fn api_key_lookups(&self) -> Lookups {
        let outcome = |outcome| self.api_key_lookups.with_label_values(&[outcome]);
        Lookups {
            hit: outcome("hit"),
            miss: outcome("miss"),
            unknown: outcome("unknown"),
            away: outcome("away"),
        }
    }

    /// The metrics of one service.
    pub fn service(&self, name: &str) -> ServiceMetrics {
        self.services.resolve(name)
    }

    /// Takes over what is only worth counting when somebody looks.
    pub fn observe_now(&self, lines_dropped: u64, redis_up: bool, tasks: usize) {
        self.tasks.set(tasks as i64);
        self.log_lines_dropped.set(lines_dropped as i64);
        self.redis_up.set(i64::from(redis_up));
    }

    /// The Prometheus text format, version 0.0.4.
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(16 << 10);
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            log::error!("the metrics cannot be rendered: {e}");
        }
        text
    }
}

fn registered<T: Collector + Clone + 'static>(
    registry: &Registry,
    metric: T,
) -> prometheus::Result<T> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> prometheus::Result<HistogramVec> {
    registered(
        registry,
        HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        )?,
    )
}

// === impl ServiceMetrics ===

impl ServiceMetricsVec {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| gauges(registry, name, help, &["service"]);
        let counter = |name, help| counters(registry, name, help, &["service"]);
        Ok(Self {
            breaker: gauge(
                "circuit_breaker_state",
                "State of a service's circuit breaker: 0 closed, 1 open, 2 half-open",
            )?,
            attempts: counters(
                registry,
                "upstream_attempts_total",
                "Requests sent to instances of a service, by how they ended",
                &["service", "outcome"],
            )?,
            retries: counters(
                registry,
                "upstream_retries_total",
                "Attempts that followed a failed one, by why that failed",
                &["service", "cause"],
            )?,
            retries_denied: counter(
                "upstream_retries_denied_total",
                "Retries that were not made because the service's budget was spent",
            )?,
            instances: gauge("upstream_instances", "Known instances of a service")?,
            healthy_instances: gauge(
                "upstream_healthy_instances",
                "Instances of a service that pass their checks",
            )?,
            ejected_instances: gauge(
                "upstream_ejected_instances",
                "Instances of a service that are set aside for what requests met",
            )?,
            ejections: counter(
                "upstream_ejections_total",
                "Times that an instance of a service was ejected",
            )?,
            panic: gauge(
                "upstream_panic",
                "1 while too few instances of a service are available, and all are tried",
            )?,
            concurrency_limit: gauge(
                "concurrency_limit",
                "Requests that a service may have in flight, as measured",
            )?,
            concurrency: gauge(
                "concurrency_in_flight",
                "Requests that a service has in flight",
            )?,
            shed: counters(
                registry,
                "requests_shed_total",
                "Requests refused because a service had enough to do",
                &["service", "priority"],
            )?,
        })
    }

    fn resolve(&self, service: &str) -> ServiceMetrics {
        let gauge = |gauges: &IntGaugeVec| gauges.with_label_values(&[service]);
        let counter = |counters: &IntCounterVec| counters.with_label_values(&[service]);
        let by = |counters: &IntCounterVec, label| counters.with_label_values(&[service, label]);
        ServiceMetrics {
            breaker: gauge(&self.breaker),
            attempts: OUTCOMES.map(|outcome| by(&self.attempts, outcome)),
            retries: CAUSES.map(|cause| by(&self.retries, cause)),
            retries_denied: counter(&self.retries_denied),
            instances: gauge(&self.instances),
            healthy_instances: gauge(&self.healthy_instances),
            ejected_instances: gauge(&self.ejected_instances),
            ejections: counter(&self.ejections),
            panic: gauge(&self.panic),
            concurrency_limit: gauge(&self.concurrency_limit),
            concurrency: gauge(&self.concurrency),
            shed: PRIORITIES.map(|priority| by(&self.shed, priority)),
        }
    }
}

impl ServiceMetrics {
    pub fn attempt(&self, outcome: AttemptOutcome) {
        self.attempts[outcome as usize].inc();
    }

    pub fn retried(&self, cause: Failure) {
        self.retries[AttemptOutcome::from(cause) as usize].inc();
    }

    pub fn observe_census(&self, census: &Census) {
        self.instances.set(census.instances as i64);
        self.healthy_instances.set(census.healthy as i64);
        self.ejected_instances.set(census.ejected as i64);
        self.panic.set(i64::from(census.panic));
    }
}

impl From<Failure> for AttemptOutcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connect => AttemptOutcome::Connect,
            Failure::Stale | Failure::NotProcessed | Failure::Reset => AttemptOutcome::Reset,
            Failure::Timeout => AttemptOutcome::Timeout,
            Failure::Status(_) => AttemptOutcome::Status,
        }
    }
}
