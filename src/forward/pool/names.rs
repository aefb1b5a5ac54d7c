//! Where a service's instances are: names, resolved here and never on the path of a request.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderValue, Uri};
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr as AnyAddr;
use pingora::upstreams::peer::HttpPeer;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::{Backend, Extensions};
use serde::{Deserialize, Serialize};

use crate::config::Problems;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    pub url: String,
    #[serde(default = "one")]
    pub weight: usize,
}

/// A configured instance. A name that resolves to several addresses is several backends with one of these.
#[derive(Debug)]
pub struct Instance {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub http2: bool,
    pub weight: usize,
    /// What `Host` carries to it.
    pub authority: HeaderValue,
    /// Whether the name could be resolved the last time: a change is worth a line in the log.
    pub resolved: AtomicBool,
}

/// Resolves the instances' names. A name that cannot be resolved keeps the addresses that it had.
pub struct Names {
    service: Box<str>,
    instances: Vec<Arc<Instance>>,
    known: Arc<Known>,
}

/// Where the instances were the last time.
pub type Known = Mutex<Vec<(SocketAddr, Arc<Instance>)>>;

fn one() -> usize {
    1
}

pub fn compile_instances(
    place: &str,
    url: Option<String>,
    instances: Vec<InstanceConfig>,
    http2: bool,
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
        match Instance::parse(&url, weight, http2) {
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

// === impl Instance ===

impl Instance {
    fn parse(url: &str, weight: usize, http2: bool) -> Result<Self, String> {
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
            http2,
            weight,
            authority,
            resolved: AtomicBool::new(true),
        })
    }
}

impl Instance {
    /// Whether the file says the same of both. How services are reached beside this is compared before.
    pub fn is_same(&self, other: &Self) -> bool {
        let Self {
            host,
            port,
            tls,
            http2,
            weight,
            authority,
            resolved: _,
        } = self;
        let same_place = *host == other.host && *port == other.port && *tls == other.tls;
        let same_place = same_place && *http2 == other.http2;
        same_place && *weight == other.weight && *authority == other.authority
    }

    /// The instance at one of its addresses. A certificate must be for its name.
    pub fn peer(&self, address: SocketAddr) -> HttpPeer {
        let sni = match self.tls {
            true => self.host.clone(),
            false => String::new(),
        };
        let mut peer = HttpPeer::new(address, self.tls, sni);
        if self.http2 {
            speak_http2(&mut peer);
        }
        peer
    }
}

/// One connection for many requests at once, each with its own share of the window: who does not read its answer does not
/// hold up the others.
fn speak_http2(peer: &mut HttpPeer) {
    const STREAMS: usize = 128;
    const WINDOW: u32 = 128 << 10;
    /// A backend that is gone without a word is found out by its silence; Pingora then waits 5 s for the answer.
    const PING: Duration = Duration::from_secs(10);
    let options = &mut peer.options;
    options.set_http_version(2, 2);
    options.max_h2_streams = STREAMS;
    options.h2_stream_window_size = Some(WINDOW);
    options.h2_connection_window_size = Some(WINDOW * STREAMS as u32);
    options.h2_ping_interval = Some(PING);
}

// === impl Names ===

impl Names {
    pub fn new(service: &str, instances: Vec<Arc<Instance>>, known: Arc<Known>) -> Self {
        Self {
            service: service.into(),
            instances,
            known,
        }
    }

    fn resolved(&self, instance: &Instance) {
        if !instance.resolved.swap(true, Ordering::Relaxed) {
            let (service, host) = (&self.service, &instance.host);
            log::info!("service {service}: `{host}` is resolved again");
        }
    }

    fn not_resolved(&self, instance: &Instance, e: &std::io::Error) {
        if instance.resolved.swap(false, Ordering::Relaxed) {
            let (service, host) = (&self.service, &instance.host);
            log::warn!(
                "service {service}: `{host}` cannot be resolved, its known addresses stay: {e}"
            );
        }
    }
}

#[async_trait]
impl ServiceDiscovery for Names {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let before = self.known.lock().clone();
        let mut now: Vec<(SocketAddr, Arc<Instance>)> = Vec::new();
        for instance in &self.instances {
            match tokio::net::lookup_host((instance.host.as_str(), instance.port)).await {
                Ok(addresses) => {
                    self.resolved(instance);
                    now.extend(addresses.map(|address| (address, instance.clone())));
                }
                Err(e) => {
                    self.not_resolved(instance, &e);
                    let kept = before.iter().filter(|(_, of)| Arc::ptr_eq(of, instance));
                    now.extend(kept.cloned());
                }
            }
        }
        // One address may stand behind two names; the first of them has it.
        let mut seen = HashSet::new();
        now.retain(|(address, _)| seen.insert(*address));
        let backends = now
            .iter()
            .map(|(address, instance)| {
                let mut ext = Extensions::new();
                ext.insert(instance.clone());
                Backend {
                    addr: AnyAddr::Inet(*address),
                    weight: instance.weight,
                    ext,
                }
            })
            .collect();
        *self.known.lock() = now;
        Ok((backends, HashMap::new()))
    }
}
