//! Where to? A service's instances: found by name, checked for health, chosen in weighted turns.
//!
//! Built on pingora-load-balancing: its selection and health registry, with our discovery (names are resolved here,
//! never on the path of a request) and our rhythm of checks.

mod health;
mod names;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use pingora::connectors::http::Connector;
use pingora::protocols::l4::socket::SocketAddr as AnyAddr;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, Backends, LoadBalancer};
use prometheus::IntGaugeVec;
use serde::Deserialize;

use super::breaker::{Breaker, BreakerConfig, BreakerOverrides};
use super::deadline::{NamedTimeouts, TimeoutConfig, Timeouts};
use crate::config::Problems;
use health::{Check, check_health};
pub use health::{HealthChecks, HealthConfig};
pub use names::InstanceConfig;
use names::{Instance, Known, KnownAddress, Names, compile_instances};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// One instance, or several separated by commas. `{SERVICE_NAME}_URL` in the environment wins.
    pub url: Option<String>,
    /// Instances with weights, instead of `url`.
    pub instances: Vec<InstanceConfig>,
    /// The whole time for an answer, for routes that name none.
    pub timeout: Option<TimeoutConfig>,
    pub breaker: BreakerOverrides,
    pub health: Option<HealthConfig>,
}

/// All services by name.
pub struct Pools {
    by_name: BTreeMap<String, Arc<Pool>>,
    /// The time that a service names for its routes.
    service_timeouts: BTreeMap<String, TimeoutConfig>,
    timeouts: NamedTimeouts,
}

/// One service.
pub struct Pool {
    pub name: Box<str>,
    pub breaker: Arc<Breaker>,
    instances: LoadBalancer<RoundRobin>,
    known: Arc<Known>,
    health: HealthConfig,
}

/// The instance that a request goes to.
#[derive(Clone, Debug)]
pub struct Picked {
    pub address: SocketAddr,
    pub address_text: Arc<str>,
    instance: Arc<Instance>,
}

/// No instance is healthy, or none is known.
#[derive(Debug, PartialEq, Eq)]
pub struct NoHealthyInstance;

/// An idle connection is given up before Node's default keep-alive of 5 s lets the backend close it under a request.
const IDLE: Duration = Duration::from_secs(4);

/// More candidates than this are not looked at for one request.
const MOST_CANDIDATES: usize = 256;

impl Pools {
    pub fn compile(
        services: BTreeMap<String, ServiceConfig>,
        timeouts: NamedTimeouts,
        breaker: &BreakerConfig,
        health: &HealthConfig,
        breaker_state: &IntGaugeVec,
        problems: &mut Problems,
    ) -> Self {
        let mut pools = Self {
            by_name: BTreeMap::new(),
            service_timeouts: BTreeMap::new(),
            timeouts,
        };
        check_health("health", health, problems);
        let connector = Arc::new(Connector::new(None));
        for (name, config) in services {
            let place = format!("services.{name}");
            let ServiceConfig {
                url,
                instances,
                timeout,
                breaker: overrides,
                health: own_health,
            } = config;
            let instances = compile_instances(&place, url, instances, problems);
            let breaker = breaker.overridden_by(overrides).compile(
                &format!("{place}.breaker"),
                &name,
                breaker_state.with_label_values(&[&name]),
                problems,
            );
            if let Some(own) = &own_health {
                check_health(&format!("{place}.health"), own, problems);
            }
            if let Some(timeout) = timeout {
                pools.timeouts.resolve(&place, Some(&timeout), problems);
                pools.service_timeouts.insert(name.clone(), timeout);
            }
            let health = own_health.unwrap_or_else(|| health.clone());
            let pool = Pool::new(&name, instances, breaker, health, &connector);
            pools.by_name.insert(name, Arc::new(pool));
        }
        pools
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Pool>> {
        self.by_name.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.by_name.values()
    }

    /// The times of a route of `service`.
    pub fn timeouts(
        &self,
        place: &str,
        service: &str,
        own: Option<TimeoutConfig>,
        problems: &mut Problems,
    ) -> Option<Timeouts> {
        self.timeouts.resolve(
            place,
            own.as_ref().or_else(|| self.service_timeouts.get(service)),
            problems,
        )
    }

    /// Resolves every name and checks every instance once, at most for `limit`: the verdicts that can be had before
    /// the first request.
    pub async fn first_look(&self, limit: Duration) {
        let all = self.by_name.values().map(|pool| pool.first_look());
        let _ = tokio::time::timeout(limit, futures::future::join_all(all)).await;
    }
}

// === impl Pool ===

impl Pool {
    fn new(
        name: &str,
        instances: Vec<Arc<Instance>>,
        breaker: Breaker,
        health: HealthConfig,
        connector: &Arc<Connector>,
    ) -> Self {
        let known = Arc::new(Known::default());
        let check =
            Check::new(name, &instances, &health, connector.clone()).filter(|_| health.enabled);
        let names = Names {
            service: name.into(),
            instances,
            known: known.clone(),
        };
        let mut backends = Backends::new(Box::new(names));
        if let Some(check) = check {
            backends.set_health_check(Box::new(check));
        }
        let instances = LoadBalancer::from_backends(backends);
        Self {
            name: name.into(),
            breaker: Arc::new(breaker),
            instances,
            known,
            health,
        }
    }

    /// The instance whose turn it is, among those that are healthy and not in `tried`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pick(&self, tried: &[SocketAddr]) -> Result<Picked, NoHealthyInstance> {
        let address = self.choose(tried).ok_or(NoHealthyInstance)?;
        let known = self.known.load();
        let found = known.iter().find(|known| known.address == address);
        let KnownAddress { text, instance, .. } = found.ok_or(NoHealthyInstance)?.clone();
        Ok(Picked {
            address,
            address_text: text,
            instance,
        })
    }

    fn choose(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let backends = self.instances.backends();
        let all = backends.get_backend();
        let may = |backend: &Backend, healthy: bool| {
            healthy && inet(&backend.addr).is_some_and(|address| !tried.contains(&address))
        };
        // Most services have one instance, and nothing to choose.
        if let (Some(only), 1) = (all.first(), all.len()) {
            return inet(&only.addr).filter(|_| may(only, backends.ready(only)));
        }
        let chosen = self.instances.select_with(b"", MOST_CANDIDATES, may)?;
        inet(&chosen.addr)
    }

    /// Whether an instance is left that `tried` does not name.
    pub fn has_another(&self, tried: &[SocketAddr]) -> bool {
        let backends = self.instances.backends();
        backends
            .get_backend()
            .iter()
            .any(|b| backends.ready(b) && inet(&b.addr).is_some_and(|a| !tried.contains(&a)))
    }

    /// Instances in all, and those that are healthy.
    pub fn census(&self) -> (usize, usize) {
        let backends = self.instances.backends();
        let all = backends.get_backend();
        (all.len(), all.iter().filter(|b| backends.ready(b)).count())
    }

    /// As many checks as a verdict needs.
    async fn first_look(&self) {
        self.look().await;
        for _ in 1..self.health.unhealthy {
            if self.health.enabled {
                self.instances.backends().run_health_check(true).await;
            }
        }
    }

    /// Resolves the names and, where checks are on, checks every instance.
    async fn look(&self) {
        if let Err(e) = self.instances.update().await {
            log::warn!("service {}: {e}", self.name);
        }
        if self.health.enabled {
            self.instances.backends().run_health_check(true).await;
        }
    }

    /// Until the next look: jittered, so that many gateways do not check in step.
    fn pause(&self) -> Duration {
        let (all, healthy) = self.census();
        let interval = self.health.interval.0;
        let base = if all > 0 && healthy == all {
            interval
        } else {
            (interval / 10).max(Duration::from_millis(100))
        };
        jittered(base)
    }
}

// === impl Picked ===

impl Picked {
    pub fn authority(&self) -> HeaderValue {
        self.instance.authority.clone()
    }

    /// The peer for one attempt. `left` is what remains of the request's budget.
    pub fn peer(&self, timeouts: &Timeouts, left: Duration) -> Box<HttpPeer> {
        let Instance { host, tls, .. } = &*self.instance;
        let sni = if *tls { host.clone() } else { String::new() };
        let mut peer = Box::new(HttpPeer::new(self.address, *tls, sni));
        let options = &mut peer.options;
        options.connection_timeout = Some(timeouts.connect.min(left));
        options.total_connection_timeout = Some(timeouts.connect.min(left));
        options.read_timeout = Some(timeouts.attempt.min(left));
        options.write_timeout = Some(timeouts.attempt.min(left));
        options.idle_timeout = Some(IDLE);
        options.http_upstream_request_policy.h1_upgrade = H1UpgradePolicy::Deny;
        peer
    }
}

fn inet(address: &AnyAddr) -> Option<SocketAddr> {
    address.as_inet().copied()
}

/// Give or take a tenth.
fn jittered(base: Duration) -> Duration {
    base.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_keep_their_interval_but_not_each_others_step() {
        let interval = HealthConfig::default().interval.0;
        assert_eq!(interval, Duration::from_secs(30));
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(interval)).collect();
        let tenth = interval / 10;
        assert!(
            pauses
                .iter()
                .all(|p| (interval - tenth..=interval + tenth).contains(p))
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
