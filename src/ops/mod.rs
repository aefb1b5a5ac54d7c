//! What is asked of the gateway itself: is it alive, is it ready, how is it, how much of what.
//!
//! The same answers stand on the main port, where details are for `ops.allow` only, and on the private listener.

pub mod documentation;
mod private;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{Bytes, Problems};
use crate::forward::breaker::State;
use crate::forward::pool::{Census, Pools};
use crate::observe::access_log::Logger;
use crate::observe::registry::{HttpMetrics, Metrics, RouteMetrics};
use crate::reply::Answer;
use crate::server::threads::{Threads, aside};
use crate::server::{Life, Process};
use crate::state::{RedisHealth, RedisState};
pub use private::Private;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpsConfig {
    /// The private listener; empty: none.
    pub listen: String,
    /// Who sees details and metrics on the main port.
    pub allow: Vec<IpNet>,
    pub metrics: bool,
    pub ready: ReadyConfig,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadyConfig {
    pub breakers: Breakers,
    /// Resident memory over this: not ready.
    pub memory: Bytes,
}

/// How many open breakers make the gateway not ready (decision 29).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Breakers {
    #[default]
    All,
    Any,
}

/// The gateway's own paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Live,
    Ready,
    Health,
    Metrics,
    /// And what is below it; where that is off, it is a path like any other.
    Documentation,
}

/// Answers for the gateway.
pub struct Ops {
    pub listen: Option<SocketAddr>,
    allow: Vec<IpNet>,
    metrics_enabled: bool,
    ready_breakers: Breakers,
    memory_limit: u64,
    life: Arc<Life>,
    pools: Arc<Pools>,
    redis: Arc<RedisHealth>,
    metrics: Arc<Metrics>,
    logger: Arc<Logger>,
    threads: Threads,
    route_metrics: [RouteMetrics; ENDPOINTS.len()],
}

const ENDPOINTS: [(&str, Endpoint); 5] = [
    ("/live", Endpoint::Live),
    ("/ready", Endpoint::Ready),
    ("/health", Endpoint::Health),
    ("/metrics", Endpoint::Metrics),
    ("/documentation", Endpoint::Documentation),
];

const JSON: &str = "application/json; charset=utf-8";

impl Default for OpsConfig {
    fn default() -> Self {
        let networks = [
            "127.0.0.0/8",
            "::1/128",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "fc00::/7",
        ];
        Self {
            listen: "127.0.0.1:9464".into(),
            allow: networks
                .iter()
                .map(|n| n.parse().expect("these are networks"))
                .collect(),
            metrics: true,
            ready: ReadyConfig::default(),
        }
    }
}

impl Default for ReadyConfig {
    fn default() -> Self {
        Self {
            breakers: Breakers::All,
            memory: Bytes::mib(1024),
        }
    }
}

impl OpsConfig {
    pub fn compile(self, process: &Process, pools: Arc<Pools>, problems: &mut Problems) -> Ops {
        let Self {
            listen,
            allow,
            metrics: metrics_enabled,
            ready,
        } = self;
        let ReadyConfig { breakers, memory } = ready;
        let listen = match listen.as_str() {
            "" => None,
            text => text
                .parse::<SocketAddr>()
                .inspect_err(|_| {
                    problems.add(
                        "ops.listen",
                        format!("`{text}` is not an address such as 127.0.0.1:9464"),
                    )
                })
                .ok(),
        };
        if memory < Bytes::mib(16) {
            problems.add("ops.ready.memory", "must be at least 16MiB");
        }
        let http: &Arc<HttpMetrics> = &process.metrics.http;
        Ops {
            listen,
            allow,
            metrics_enabled,
            ready_breakers: breakers,
            memory_limit: memory.0,
            life: process.life.clone(),
            route_metrics: ENDPOINTS.map(|(path, _)| http.route(path)),
            pools,
            redis: process.redis_health.clone(),
            metrics: process.metrics.clone(),
            logger: process.logger.clone(),
            threads: process.threads.clone(),
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// But for the documentation, which knows its paths itself.
    pub fn at(path: &str) -> Option<Self> {
        ENDPOINTS[..Self::Documentation as usize]
            .iter()
            .find_map(|(at, endpoint)| (*at == path).then_some(*endpoint))
    }

    pub fn path(self) -> &'static str {
        ENDPOINTS[self as usize].0
    }

    /// Probes come every few seconds and say nothing in a log; a look at the metrics is logged.
    pub fn is_logged(self) -> bool {
        matches!(self, Endpoint::Metrics | Endpoint::Documentation)
    }
}

// === impl Ops ===

impl Ops {
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow.iter().any(|network| network.contains(&address))
    }

    pub fn route_metrics(&self, endpoint: Endpoint) -> &RouteMetrics {
        &self.route_metrics[endpoint as usize]
    }

    /// The answer, in full for those who may see it; `None` where there is none for them.
    pub async fn answer(&self, endpoint: Endpoint, in_full: bool) -> Option<Answer> {
        match endpoint {
            Endpoint::Live => Some(answer(StatusCode::OK, &json!({"status": "alive"}))),
            Endpoint::Ready => Some(self.ready()),
            Endpoint::Health => Some(self.health(in_full)),
            Endpoint::Metrics if in_full && self.metrics_enabled => Some(self.metrics().await),
            Endpoint::Metrics | Endpoint::Documentation => None,
        }
    }

    fn ready(&self) -> Answer {
        let memory_ok = memory().is_none_or(|memory| memory.resident <= self.memory_limit);
        let breakers: Vec<(&str, State)> = self
            .pools
            .iter()
            .map(|p| (&*p.name, p.breaker.state()))
            .collect();
        let open = breakers
            .iter()
            .filter(|(_, state)| *state == State::Open)
            .count();
        let breakers_ok = match self.ready_breakers {
            Breakers::All => open == 0 || open < breakers.len(),
            Breakers::Any => open == 0,
        };
        let draining = self.life.is_told();
        let is_ready = memory_ok && breakers_ok && !draining;
        let mut checks = Map::new();
        checks.insert(
            "memory".into(),
            if memory_ok { "ok" } else { "over the limit" }.into(),
        );
        if draining {
            checks.insert("draining".into(), true.into());
        }
        match self.redis.get() {
            RedisState::Off => {}
            RedisState::Ok => drop(checks.insert("redis".into(), "ok".into())),
            RedisState::Away => drop(checks.insert("redis".into(), "degraded".into())),
        }
        let breakers: Map<String, Value> = breakers
            .into_iter()
            .map(|(service, state)| {
                let text = match state {
                    State::Closed => "ok",
                    State::Open => "open",
                    State::HalfOpen => "half-open",
                };
                (service.to_owned(), text.into())
            })
            .collect();
        checks.insert("circuitBreakers".into(), breakers.into());
        let (status, text) = if is_ready {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready")
        };
        answer(status, &json!({"status": text, "checks": checks}))
    }

    fn health(&self, in_full: bool) -> Answer {
        let mut body =
            json!({ "status": "ok", "timestamp": format!("{:.3}", jiff::Timestamp::now()) });
        if let Some(body) = body.as_object_mut().filter(|_| in_full) {
            let memory = memory().unwrap_or_default();
            body.insert("uptime".into(), self.life.lasts().as_secs().into());
            // `heapUsed` is what the old gateway's dashboards read; here it is the resident set.
            body.insert(
                "memory".into(),
                json!({"heapUsed": memory.resident, "rss": memory.resident, "virtual": memory.total}),
            );
            body.insert("pid".into(), std::process::id().into());
            body.insert("version".into(), env!("CARGO_PKG_VERSION").into());
            let breakers: Map<String, Value> = self
                .pools
                .iter()
                .map(|pool| (pool.name.to_string(), pool.breaker.describe()))
                .collect();
            body.insert("circuitBreakers".into(), breakers.into());
            if let Some(redis) = self.redis.describe() {
                body.insert("redis".into(), redis);
            }
            let pools: Map<String, Value> = self
                .pools
                .iter()
                .map(|pool| {
                    let Census {
                        instances,
                        healthy,
                        ejected,
                        panic,
                    } = pool.census();
                    let entry = json!({
                        "instances": instances, "healthy": healthy, "ejected": ejected, "panic": panic,
                    });
                    (pool.name.to_string(), entry)
                })
                .collect();
            body.insert("pools".into(), pools.into());
        }
        answer(StatusCode::OK, &body)
    }

    async fn metrics(&self) -> Answer {
        self.pools.iter().for_each(|pool| pool.observe_now());
        self.metrics.observe_now(
            self.logger.dropped(),
            self.redis.is_followed(),
            self.threads.tasks(),
        );
        let metrics = self.metrics.clone();
        // Thousands of series with many routes, in which some requests of this thread would find theirs.
        let Some(text) = aside(move || metrics.render()).await else {
            return answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({"status": "error"}),
            );
        };
        Answer::new(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            text,
        )
    }
}

fn answer(status: StatusCode, body: &Value) -> Answer {
    Answer::new(status, JSON, body.to_string())
}

/// In bytes.
#[derive(Default)]
struct Memory {
    total: u64,
    resident: u64,
}

/// `/proc/self/statm` counts pages (proc(5)), of 4 KiB on the machines that this runs on.
fn memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split(' ').map_while(|field| field.parse::<u64>().ok());
    Some(Memory {
        total: pages.next()? << 12,
        resident: pages.next()? << 12,
    })
}
