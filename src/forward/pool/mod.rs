//! Where to? A service's instances: found by name, checked for health, watched for outliers, and chosen.
//!
//! Built on pingora-load-balancing: its backends, health registry and hash ring, with our discovery (names are resolved
//! here, never on the path of a request), our rhythm of checks and our own choice, which knows what is in flight.

mod attempt;
mod balance;
mod health;
mod latency;
mod members;
mod names;
mod outlier;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::connectors::http::Connector;
use pingora::protocols::l4::socket::SocketAddr as AnyAddr;
use pingora_load_balancing::Backends;
use serde::Deserialize;

use super::breaker::{Breaker, BreakerConfig, BreakerOverrides};
use super::deadline::{NamedTimeouts, TimeoutConfig, Timeouts};
use super::overload::{Limiter, OverloadConfig};
use super::retry::{Retry, RetryConfig};
use crate::config::Problems;
use crate::observe::registry::{Metrics, ServiceMetrics};
pub use attempt::Attempt;
pub use balance::{Affinity, BalanceConfig};
use health::{Check, check_health};
pub use health::{HealthChecks, HealthConfig};
pub use members::Census;
use members::Members;
pub use names::InstanceConfig;
use names::{Names, compile_instances};
pub use outlier::OutlierConfig;

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
    pub retry: Option<RetryConfig>,
    pub balance: Option<BalanceConfig>,
    pub outlier: Option<OutlierConfig>,
    pub health: Option<HealthConfig>,
    pub overload: Option<OverloadConfig>,
}

/// What holds for services that do not say otherwise.
pub struct Defaults {
    pub breaker: BreakerConfig,
    pub retry: RetryConfig,
    pub balance: BalanceConfig,
    pub outlier: OutlierConfig,
    pub health: HealthConfig,
    pub overload: OverloadConfig,
}

/// All services by name.
pub struct Pools {
    by_name: BTreeMap<String, Arc<Pool>>,
    /// The time that a service names for its routes.
    service_timeouts: BTreeMap<String, TimeoutConfig>,
    timeouts: NamedTimeouts,
    /// For what the gateway itself asks services. One for all: each would read the system's certificates.
    connector: Arc<Connector>,
}

/// One service.
pub struct Pool {
    pub name: Box<str>,
    pub breaker: Arc<Breaker>,
    pub retry: Retry,
    pub limiter: Arc<Limiter>,
    pub metrics: Arc<ServiceMetrics>,
    members: Arc<Members>,
    backends: Backends,
    health: HealthConfig,
    epoch: Instant,
}

/// No instance is known.
#[derive(Debug, PartialEq, Eq)]
pub struct NoInstance;

impl Pools {
    pub fn compile(
        services: BTreeMap<String, ServiceConfig>,
        timeouts: NamedTimeouts,
        defaults: &Defaults,
        metrics: &Metrics,
        problems: &mut Problems,
    ) -> Self {
        let mut pools = Self {
            by_name: BTreeMap::new(),
            service_timeouts: BTreeMap::new(),
            timeouts,
            connector: Arc::new(Connector::new(None)),
        };
        defaults.check(problems);
        // Of their own: a check shows that a new connection can be made.
        let checks = Arc::new(Connector::new(None));
        for (name, mut config) in services {
            if let Some(timeout) = config.timeout.take() {
                let place = format!("services.{name}");
                pools.timeouts.resolve(&place, Some(&timeout), problems);
                pools.service_timeouts.insert(name.clone(), timeout);
            }
            let metrics = Arc::new(metrics.service(&name));
            let pool = Pool::compile(&name, config, defaults, metrics, &checks, problems);
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

    pub fn connector(&self) -> Arc<Connector> {
        self.connector.clone()
    }

    /// To connect to an instance.
    pub fn connect_timeout(&self) -> Duration {
        self.timeouts.connect()
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

impl Defaults {
    /// Each fault once, however many services share it.
    fn check(&self, problems: &mut Problems) {
        self.breaker.check("breaker", problems);
        check_health("health", &self.health, problems);
        self.retry.clone().compile("retry", problems);
        self.balance.clone().compile("balance", problems);
        self.outlier.clone().compile("outlier", problems);
    }
}

// === impl Pool ===

impl Pool {
    fn compile(
        name: &str,
        config: ServiceConfig,
        defaults: &Defaults,
        metrics: Arc<ServiceMetrics>,
        connector: &Arc<Connector>,
        problems: &mut Problems,
    ) -> Self {
        let place = format!("services.{name}");
        let ServiceConfig {
            url,
            instances,
            timeout: _, // `Pools::compile` took it
            breaker,
            retry,
            balance,
            outlier,
            health,
            overload,
        } = config;
        let instances = compile_instances(&place, url, instances, problems);
        let has_own = breaker != BreakerOverrides::default();
        let breaker = defaults.breaker.overridden_by(breaker);
        if has_own {
            breaker.check(&format!("{place}.breaker"), problems);
        }
        if let Some(own) = &health {
            check_health(&format!("{place}.health"), own, problems);
        }
        // The defaults' own faults were told already.
        let mut told = Problems::default();
        let retry = match retry {
            Some(own) => own.compile(&format!("{place}.retry"), problems),
            None => defaults.retry.clone().compile("retry", &mut told),
        };
        let balance = match balance {
            Some(own) => own.compile(&format!("{place}.balance"), problems),
            None => defaults.balance.clone().compile("balance", &mut told),
        };
        let outlier = match outlier {
            Some(own) => own.compile(&format!("{place}.outlier"), problems),
            None => defaults.outlier.clone().compile("outlier", &mut told),
        };
        let overload = overload.unwrap_or_else(|| defaults.overload.clone());
        let health = health.unwrap_or_else(|| defaults.health.clone());
        let members = Arc::new(Members::new(name, balance, outlier, metrics.clone()));
        let check = Check::new(name, &health, connector, &members);
        let mut backends = Backends::new(Box::new(Names::new(name, instances)));
        if let Some(check) = check.filter(|_| health.enabled) {
            backends.set_health_check(Box::new(check));
        }
        Self {
            name: name.into(),
            breaker: Arc::new(breaker.build(name, metrics.breaker.clone())),
            retry,
            limiter: Arc::new(overload.compile(metrics.clone())),
            metrics,
            members,
            backends,
            health,
            epoch: Instant::now(),
        }
    }

    /// Begins an attempt at the instance whose turn it is: none of `tried`, while another may be chosen.
    ///
    /// # Errors
    /// When no instance is known.
    pub fn attempt(
        self: &Arc<Self>,
        tried: &[SocketAddr],
        affinity: &Affinity<'_>,
        now: Instant,
    ) -> Result<Attempt, NoInstance> {
        let (view, balance) = (self.members.view(now), self.members.balance());
        let now_ms = self.clock_ms(now);
        let another = match tried {
            [] => None,
            tried => balance.choose_another(&view, tried, now, now_ms),
        };
        let member = another
            .or_else(|| balance.choose(&view, affinity, now, now_ms))
            .ok_or(NoInstance)?;
        Ok(Attempt::new(member, self.clone(), now))
    }

    /// Whether an instance is left that may be chosen and that `tried` does not name.
    pub fn has_another(&self, tried: &[SocketAddr], now: Instant) -> bool {
        let view = self.members.view(now);
        view.open
            .iter()
            .any(|candidate| !tried.contains(&candidate.member.address))
    }

    pub fn census(&self) -> Census {
        self.members.census()
    }

    /// Brings those gauges up to date that change by time alone, or too often to be told each time.
    pub fn observe_now(&self) {
        self.breaker.state();
        self.members.census();
        self.metrics
            .concurrency
            .set(i64::from(self.limiter.in_flight()));
    }

    /// Milliseconds since this pool was made; 49 days are enough for what they are compared with.
    fn clock_ms(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.epoch);
        (since.as_secs() as u32)
            .wrapping_mul(1000)
            .wrapping_add(since.subsec_millis())
    }

    /// As many checks as a verdict needs.
    async fn first_look(&self) {
        self.look().await;
        for _ in 1..self.health.unhealthy {
            self.check().await;
        }
    }

    /// Resolves the names and, where checks are on, checks every instance.
    async fn look(&self) {
        let found = self.backends.update(|found| {
            self.members.replace(&found, Instant::now());
        });
        if let Err(e) = found.await {
            log::warn!("service {}: {e}", self.name);
        }
        self.check().await;
    }

    async fn check(&self) {
        if self.health.enabled {
            self.backends.run_health_check(true).await;
        }
    }

    /// Until the next look: jittered, so that many gateways do not check in step.
    fn pause(&self) -> Duration {
        let census = self.census();
        let interval = self.health.interval.0;
        let base = if census.instances > 0 && census.healthy == census.instances {
            interval
        } else {
            (interval / 10).max(Duration::from_millis(100))
        };
        jittered(base)
    }

    /// Compares the instances with each other, once a second.
    async fn judge(&self) {
        const INTERVAL: Duration = Duration::from_secs(1);
        tokio::time::sleep(INTERVAL).await;
        self.members.judge(Instant::now());
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
