//! Where to? A service's instances: found by name, checked for health, chosen in weighted turns.
//!
//! Built on pingora-load-balancing: its selection and health registry, with our discovery (names are resolved here,
//! never on the path of a request) and our rhythm of checks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::{HeaderValue, Uri};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::l4::socket::SocketAddr as AnyAddr;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::{H1UpgradePolicy, HttpPeer};
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::health_check::HealthCheck;
use pingora_load_balancing::selection::RoundRobin;
use pingora_load_balancing::{Backend, Backends, Extensions, LoadBalancer};
use prometheus::IntGaugeVec;
use serde::Deserialize;

use super::breaker::{Breaker, BreakerConfig, BreakerOverrides};
use super::deadline::{NamedTimeouts, TimeoutConfig, Timeouts};
use crate::config::{self, Problems};

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

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    pub url: String,
    #[serde(default = "one")]
    pub weight: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Off: every instance counts as healthy.
    pub enabled: bool,
    pub path: String,
    /// Between two checks, give or take a tenth; while an instance is not healthy, a tenth of it.
    pub interval: config::Duration,
    /// For one check's connection, and for its answer.
    pub timeout: config::Duration,
    /// Checks in a row that make an instance healthy again.
    pub healthy: usize,
    /// Failed checks in a row that set an instance aside.
    pub unhealthy: usize,
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

/// The addresses that the names stand for, and those of the time before: a balancer that has not yet heard of a change
/// still finds what it picked.
type Known = ArcSwap<Vec<KnownAddress>>;

#[derive(Clone)]
struct KnownAddress {
    address: SocketAddr,
    /// For the log.
    text: Arc<str>,
    instance: Arc<Instance>,
    is_current: bool,
}

/// A configured instance. A name that resolves to several addresses is several backends with one of these.
#[derive(Debug)]
struct Instance {
    host: String,
    port: u16,
    tls: bool,
    weight: usize,
    /// What `Host` carries to it.
    authority: HeaderValue,
    /// Whether the name could be resolved the last time: a change is worth a line in the log.
    resolved: AtomicBool,
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

/// Resolves the instances' names. A name that cannot be resolved keeps the addresses that it had.
struct Names {
    service: Box<str>,
    instances: Vec<Arc<Instance>>,
    known: Arc<Known>,
}

/// One `GET` that must be answered with a 2xx.
struct Check {
    service: Box<str>,
    request: RequestHeader,
    tls: bool,
    host: String,
    timeout: Duration,
    healthy: usize,
    unhealthy: usize,
    /// Shared by all services: each one of its own would read the system's certificates again.
    connector: Arc<Connector>,
}

/// The background task that keeps all pools' names and health up to date.
pub struct HealthChecks(Arc<Pools>);

/// An idle connection is given up before Node's default keep-alive of 5 s lets the backend close it under a request.
const IDLE: Duration = Duration::from_secs(4);

/// More candidates than this are not looked at for one request.
const MOST_CANDIDATES: usize = 256;

fn one() -> usize {
    1
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/health".into(),
            interval: config::Duration::secs(30),
            timeout: config::Duration::secs(2),
            healthy: 1,
            unhealthy: 2,
        }
    }
}

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

fn check_health(place: &str, health: &HealthConfig, problems: &mut Problems) {
    let HealthConfig {
        enabled: _,
        path,
        interval,
        timeout,
        healthy,
        unhealthy,
    } = health;
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        problems.add(format!("{place}.path"), "must be a path");
    }
    if *interval < config::Duration::millis(100) {
        problems.add(format!("{place}.interval"), "must be at least 100ms");
    }
    if timeout.0.is_zero() {
        problems.add(format!("{place}.timeout"), "must be longer than nothing");
    }
    if *healthy == 0 || *unhealthy == 0 {
        problems.add(place, "healthy and unhealthy must be at least 1");
    }
}

fn compile_instances(
    place: &str,
    url: Option<String>,
    instances: Vec<InstanceConfig>,
    problems: &mut Problems,
) -> Vec<Arc<Instance>> {
    let listed: Vec<(String, String, usize)> = match (url, instances) {
        (Some(_), instances) if !instances.is_empty() => {
            problems.add(
                place,
                "has both `url` and `instances`; one of them says where the service is",
            );
            return Vec::new();
        }
        (Some(urls), _) => urls
            .split(',')
            .map(|url| (format!("{place}.url"), url.trim().to_owned(), 1))
            .collect(),
        (None, instances) => instances
            .into_iter()
            .enumerate()
            .map(|(i, InstanceConfig { url, weight })| {
                (format!("{place}.instances[{i}]"), url, weight)
            })
            .collect(),
    };
    if listed.is_empty() {
        problems.add(place, "has neither `url` nor `instances`");
    }
    let mut compiled: Vec<Arc<Instance>> = Vec::new();
    for (place, url, weight) in listed {
        if !(1..=1000).contains(&weight) {
            problems.add(format!("{place}.weight"), "must be from 1 to 1000");
        }
        match Instance::parse(&url, weight) {
            Ok(instance)
                if compiled
                    .first()
                    .is_some_and(|first| first.tls != instance.tls) =>
            {
                problems.add(
                    place,
                    "the instances of a service are either all http or all https",
                );
            }
            Ok(instance) => compiled.push(Arc::new(instance)),
            Err(fault) => problems.add(place, fault),
        }
    }
    compiled
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
        base.mul_f64(0.9 + 0.2 * fastrand::f64())
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

// === impl Instance ===

impl Instance {
    fn parse(url: &str, weight: usize) -> Result<Self, String> {
        if url.contains('@') {
            return Err("credentials do not belong in a URL".to_owned());
        }
        let bad = |why: &str| format!("`{url}` is not the URL of an instance: {why}");
        let uri: Uri = url.parse().map_err(|_| bad("write http://host:port"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("write http://host:port")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if authority.host().is_empty() {
            return Err(bad("it has no host"));
        }
        let has_port = !authority.as_str().ends_with(authority.host());
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(bad("its port is not one from 1 to 65535"));
        }
        if !matches!(uri.path_and_query().map(|p| p.as_str()), None | Some("/")) {
            return Err(bad("a path does not belong here, routes have a `target`"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let authority =
            HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the host is not ASCII"))?;
        Ok(Self {
            host,
            port,
            tls,
            weight,
            authority,
            resolved: AtomicBool::new(true),
        })
    }
}

// === impl Names ===

#[async_trait]
impl ServiceDiscovery for Names {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut before: Vec<KnownAddress> = self
            .known
            .load()
            .iter()
            .filter(|known| known.is_current)
            .cloned()
            .collect();
        let mut now: Vec<KnownAddress> = Vec::new();
        for instance in &self.instances {
            match tokio::net::lookup_host((instance.host.as_str(), instance.port)).await {
                Ok(addresses) => {
                    if !instance.resolved.swap(true, Ordering::Relaxed) {
                        log::info!(
                            "service {}: `{}` is resolved again",
                            self.service,
                            instance.host
                        );
                    }
                    now.extend(addresses.map(|address| KnownAddress {
                        address,
                        text: address.to_string().into(),
                        instance: instance.clone(),
                        is_current: true,
                    }));
                }
                Err(e) => {
                    let kept = before
                        .iter()
                        .filter(|known| Arc::ptr_eq(&known.instance, instance));
                    now.extend(kept.cloned());
                    if instance.resolved.swap(false, Ordering::Relaxed) {
                        let (service, host) = (&self.service, &instance.host);
                        log::warn!(
                            "service {service}: `{host}` cannot be resolved, its known addresses stay: {e}"
                        );
                    }
                }
            }
        }
        // One address may stand behind two names; the first of them has it.
        let mut seen = HashSet::new();
        now.retain(|known| seen.insert(known.address));
        let backends = now
            .iter()
            .map(|known| Backend {
                addr: AnyAddr::Inet(known.address),
                weight: known.instance.weight,
                ext: Extensions::new(),
            })
            .collect();
        before.retain(|known| !seen.contains(&known.address));
        before.iter_mut().for_each(|known| known.is_current = false);
        now.append(&mut before);
        self.known.store(Arc::new(now));
        Ok((backends, HashMap::new()))
    }
}

// === impl Check ===

impl Check {
    fn new(
        service: &str,
        instances: &[Arc<Instance>],
        health: &HealthConfig,
        connector: Arc<Connector>,
    ) -> Option<Self> {
        let first = instances.first()?;
        // The path and the authority were checked before.
        let mut request = RequestHeader::build("GET", health.path.as_bytes(), None).ok()?;
        request
            .insert_header("Host", first.authority.clone())
            .ok()?;
        request
            .insert_header(
                "User-Agent",
                concat!("api-gateway/", env!("CARGO_PKG_VERSION"), " (health)"),
            )
            .ok()?;
        Some(Self {
            service: service.into(),
            request,
            tls: first.tls,
            host: first.host.clone(),
            timeout: health.timeout.0,
            healthy: health.healthy,
            unhealthy: health.unhealthy,
            connector,
        })
    }
}

#[async_trait]
impl HealthCheck for Check {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let Some(address) = inet(&target.addr) else {
            return Ok(());
        };
        let sni = if self.tls {
            self.host.clone()
        } else {
            String::new()
        };
        let mut peer = HttpPeer::new(address, self.tls, sni);
        peer.options.connection_timeout = Some(self.timeout);
        peer.options.total_connection_timeout = Some(self.timeout);
        let (mut session, _) = self.connector.get_http_session(&peer).await?;
        session.set_read_timeout(Some(self.timeout));
        session.set_write_timeout(Some(self.timeout));
        session
            .write_request_header(Box::new(self.request.clone()))
            .await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        // The connection is not kept: each check shows that a new one can be made.
        match session.response_header() {
            Some(head) if head.status.is_success() => Ok(()),
            _ => pingora::Error::e_explain(
                pingora::ErrorType::Custom("unhealthy"),
                "the check is not 2xx",
            ),
        }
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let Self { service, .. } = self;
        match healthy {
            true => log::info!(
                "service {service}: instance {} is healthy again",
                target.addr
            ),
            false => log::warn!("service {service}: instance {} is not healthy", target.addr),
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success {
            self.healthy
        } else {
            self.unhealthy
        }
    }
}

// === impl HealthChecks ===

impl HealthChecks {
    pub fn new(pools: Arc<Pools>) -> Self {
        Self(pools)
    }
}

#[async_trait]
impl BackgroundService for HealthChecks {
    async fn start(&self, shutdown: ShutdownWatch) {
        let loops = self.0.by_name.values().cloned().map(|pool| {
            let mut shutdown = shutdown.clone();
            async move {
                loop {
                    tokio::select! {
                        () = tokio::time::sleep(pool.pause()) => pool.look().await,
                        _ = shutdown.changed() => return,
                    }
                }
            }
        });
        futures::future::join_all(loops).await;
    }
}

fn inet(address: &AnyAddr) -> Option<SocketAddr> {
    address.as_inet().copied()
}
