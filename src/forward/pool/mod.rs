//! Where to? A service's instances: found by name, checked for health, watched for outliers, and chosen.
//!
//! Built on pingora-load-balancing: its backends, health registry and hash ring, with our discovery (names are resolved
//! here, never on the path of a request), our rhythm of checks and our own choice, which knows what is in flight.

mod attempt;
mod balance;
mod carried;
mod health;
mod latency;
mod members;
mod names;
mod outlier;
mod parts;
mod settings;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pingora::connectors::http::Connector;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora_load_balancing::Backends;
use serde::{Deserialize, Serialize};

use super::breaker::{Breaker, BreakerOverrides};
use super::deadline::{NamedTimeouts, TimeoutConfig, Timeouts};
use super::overload::{Baseline, Limiter, OverloadConfig};
use super::retry::{Retry, RetryConfig};
use crate::config::Problems;
use crate::observe::registry::ServiceMetrics;
use crate::policies::Task;
pub use attempt::Attempt;
pub use balance::{Affinity, BalanceConfig};
pub use carried::Carried;
pub use health::HealthConfig;
use health::{Check, check_health, keep_up};
pub use members::Census;
use members::Members;
pub use names::InstanceConfig;
use names::{Instance, Known, Names, compile_instances};
pub use outlier::OutlierConfig;
pub use parts::{Connectors, Defaults, Parts};
use settings::Settings;
pub use tls::TlsConfig;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// One instance, or several separated by commas. `{SERVICE_NAME}_URL` in the environment wins.
    pub url: Option<String>,
    /// Instances with weights, instead of `url`.
    pub instances: Vec<InstanceConfig>,
    /// For `https` instances.
    pub tls: Option<TlsConfig>,
    /// The whole time for an answer, for routes that name none.
    pub timeout: Option<TimeoutConfig>,
    pub breaker: BreakerOverrides,
    pub retry: Option<RetryConfig>,
    pub balance: Option<BalanceConfig>,
    pub outlier: Option<OutlierConfig>,
    pub health: Option<HealthConfig>,
    pub overload: Option<OverloadConfig>,
    /// HTTP/2 to the instances: by ALPN over TLS, else by prior knowledge.
    pub http2: bool,
}

/// All services by name.
pub struct Pools {
    by_name: BTreeMap<String, Arc<Pool>>,
    /// The time that a service names for its routes.
    service_timeouts: BTreeMap<String, TimeoutConfig>,
    timeouts: NamedTimeouts,
    /// For what the gateway itself asks services.
    connector: Arc<Connector>,
}

/// One service.
pub struct Pool {
    pub name: Box<str>,
    pub breaker: Arc<Breaker>,
    pub retry: Retry,
    pub limiter: Arc<Limiter>,
    pub metrics: Arc<ServiceMetrics>,
    /// Of what the gateway itself asks it.
    pub baseline: Arc<Baseline>,
    /// Requests share connections to the instances.
    pub http2: bool,
    members: Arc<Members>,
    backends: Backends,
    /// How often all instances were checked.
    rounds: AtomicUsize,
    health: HealthConfig,
    epoch: Instant,
    instances: Vec<Arc<Instance>>,
    known: Arc<Known>,
    settings: Settings,
}

/// No instance is known.
#[derive(Debug, PartialEq, Eq)]
pub struct NoInstance;

impl Pools {
    pub fn compile(
        services: BTreeMap<String, ServiceConfig>,
        timeouts: NamedTimeouts,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Self {
        let mut pools = Self {
            by_name: BTreeMap::new(),
            service_timeouts: BTreeMap::new(),
            timeouts,
            connector: parts.connectors.questions.clone(),
        };
        parts.defaults.check(problems);
        for (name, mut config) in services {
            if let Some(timeout) = config.timeout.take() {
                let place = format!("services.{name}");
                pools.timeouts.resolve(&place, Some(&timeout), problems);
                pools.service_timeouts.insert(name.clone(), timeout);
            }
            let settings = Settings::of(&config, &parts.defaults);
            let before = parts.before.and_then(|before| before.get(&name));
            let pool = match before.filter(|before| before.settings == settings) {
                Some(unchanged) => unchanged.clone(),
                None => {
                    let before = before.map(|before| &**before);
                    Arc::new(Pool::compile(
                        &name, config, settings, before, parts, problems,
                    ))
                }
            };
            pools.by_name.insert(name, pool);
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
    /// the first request. What `before` has already has been looked at.
    pub async fn first_look(&self, before: Option<&Self>, limit: Duration) {
        let new = self
            .iter()
            .filter(|pool| !before.is_some_and(|before| before.has(pool)));
        let looks = new.map(|pool| pool.first_look());
        let _ = tokio::time::timeout(limit, futures::future::join_all(looks)).await;
    }

    /// What keeps the names and the health of each up to date.
    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        self.iter().map(|pool| Task::of(pool, keep_up))
    }

    /// `next` are in force now.
    pub fn retire(&self, next: &Self) {
        for pool in self.iter().filter(|pool| !next.has(pool)) {
            let is_removed = next.get(&pool.name).is_none();
            pool.members.retire(is_removed);
            if is_removed {
                let metrics = &pool.metrics;
                for gauge in [
                    &metrics.breaker,
                    &metrics.concurrency_limit,
                    &metrics.concurrency,
                ] {
                    gauge.set(0);
                }
            }
        }
    }

    fn has(&self, pool: &Arc<Pool>) -> bool {
        self.get(&pool.name)
            .is_some_and(|other| Arc::ptr_eq(pool, other))
    }
}

// === impl Pool ===

impl Pool {
    /// `before`: whose place it takes. Its breaker, its limit, its retry budget and what is known of its instances live on.
    fn compile(
        name: &str,
        config: ServiceConfig,
        settings: Settings,
        before: Option<&Self>,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Self {
        let defaults = &parts.defaults;
        let metrics = Arc::new(parts.metrics.service(name));
        let place = format!("services.{name}");
        let ServiceConfig {
            url,
            instances,
            tls,
            timeout: _, // `Pools::compile` took it
            breaker,
            retry,
            balance,
            outlier,
            health,
            overload,
            http2,
        } = config;
        let tls = tls.map(|tls| tls.compile(&format!("{place}.tls"), problems));
        let mut instances = compile_instances(&place, url, instances, tls, http2, problems);
        if let Some(before) = before.filter(|before| settings.reaches_as(&before.settings)) {
            before.lend_instances(&mut instances);
        }
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
        let spent = before.map(|before| &before.retry);
        let retry = match retry {
            Some(own) => own.compile(&format!("{place}.retry"), spent, problems),
            None => defaults.retry.clone().compile("retry", spent, &mut told),
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
        let predecessors = before.map(|before| &*before.members);
        let members = Members::new(name, balance, outlier, metrics.clone(), predecessors);
        let members = Arc::new(members);
        let known = before.map_or_else(Vec::new, |before| before.known.lock().clone());
        let known = Arc::new(Known::new(known));
        let check = Check::new(name, &health, &parts.connectors.checks, &members);
        let names = Names::new(name, instances.clone(), known.clone());
        let mut backends = Backends::new(Box::new(names));
        if let Some(check) = check.filter(|_| health.enabled) {
            backends.set_health_check(Box::new(check));
        }
        Self {
            name: name.into(),
            breaker: Arc::new(breaker.build(
                name,
                metrics.breaker.clone(),
                before.map(|before| &*before.breaker),
            )),
            retry,
            limiter: match before.filter(|before| before.limiter.is_enabled() == overload.enabled) {
                Some(before) => before.limiter.clone(),
                None => Arc::new(overload.compile(metrics.clone())),
            },
            metrics,
            baseline: before.map_or_else(Arc::default, |before| before.baseline.clone()),
            http2,
            members,
            backends,
            rounds: AtomicUsize::new(0),
            health,
            // What members remember counts from there.
            epoch: before.map_or_else(Instant::now, |before| before.epoch),
            instances,
            known,
            settings,
        }
    }

    /// Puts those in that are the same: they carry what is known of them.
    fn lend_instances(&self, instances: &mut [Arc<Instance>]) {
        for instance in instances {
            if let Some(same) = self.instances.iter().find(|i| i.is_same(instance)) {
                *instance = same.clone();
            }
        }
    }

    /// Begins an attempt at the instance whose turn it is: none of `tried`, while another may be chosen.
    ///
    /// # Errors
    /// When no instance is known.
    pub fn attempt(
        self: &Arc<Self>,
        tried: &[Address],
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
    pub fn has_another(&self, tried: &[Address], now: Instant) -> bool {
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
        self.members.begin(&self.instances);
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
        if !self.health.enabled {
            return self.members.agree_with(|_| true);
        }
        self.backends.run_health_check(true).await;
        // Before that an instance counts as its predecessor did, which these checks know nothing of.
        if self.rounds.fetch_add(1, Relaxed) + 1 >= self.health.unhealthy {
            let all = self.backends.get_backend();
            let failing: Vec<&Address> = all
                .iter()
                .filter(|backend| !self.backends.ready(backend))
                .map(|backend| &backend.addr)
                .collect();
            self.members
                .agree_with(|address| !failing.contains(&address));
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
