//! Where a service's instances are: Unix-domain sockets, and names, which are resolved here and never on the path of a
//! request.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::net::SocketAddr as SocketPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderValue, Uri};
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::upstreams::peer::{HttpPeer, PeerOptions, Scheme};
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::{Backend, Extensions};
use serde::{Deserialize, Serialize};

use super::tls::{Tls, is_name};
use crate::config::Problems;
use crate::server::threads;

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
    place: Place,
    tls: Option<Verified>,
    pub http2: bool,
    pub weight: usize,
    /// What `Host` carries to it.
    pub authority: HeaderValue,
    /// Whether the name could be resolved the last time: a change is worth a line in the log.
    resolved: AtomicBool,
}

#[derive(Debug, PartialEq)]
enum Place {
    Host {
        name: String,
        port: u16,
    },
    /// A Unix-domain socket, which needs no resolving.
    Socket(Address),
}

/// Its certificate must be for this name.
#[derive(Debug)]
struct Verified {
    name: Box<str>,
    tls: Arc<Tls>,
}

/// Resolves the instances' names. A name that cannot be resolved keeps the addresses that it had.
pub struct Names {
    service: Box<str>,
    instances: Vec<Arc<Instance>>,
    known: Arc<Known>,
}

/// Where the instances were the last time.
pub type Known = Mutex<Vec<(Address, Arc<Instance>)>>;

const FORMS: &str = "write http://host:port, https://host:port or unix:/path";

fn one() -> usize {
    1
}

pub fn compile_instances(
    place: &str,
    url: Option<String>,
    instances: Vec<InstanceConfig>,
    tls: Option<Tls>,
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
    let is_for_nothing = tls.is_some();
    let tls = Arc::new(tls.unwrap_or_default());
    let mut compiled: Vec<Arc<Instance>> = Vec::new();
    for (place, url, weight) in listed {
        if !(1..=1000).contains(&weight) {
            problems.add(format!("{place}.weight"), "must be from 1 to 1000");
        }
        match Instance::parse(&url, weight, &tls, http2) {
            Ok(instance)
                if compiled
                    .first()
                    .is_some_and(|first| first.is_tls() != instance.is_tls()) =>
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
    if is_for_nothing && compiled.iter().any(|instance| !instance.is_tls()) {
        problems.add(
            format!("{place}.tls"),
            "is for https instances, and this service has none",
        );
    }
    compiled
}

// === impl Instance ===

impl Instance {
    fn parse(url: &str, weight: usize, tls: &Arc<Tls>, http2: bool) -> Result<Self, String> {
        if let Some(path) = url.strip_prefix("unix:") {
            return Self::at_socket(path, weight, http2);
        }
        if url.contains('@') {
            return Err("credentials do not belong in a URL".to_owned());
        }
        let bad = |why: &str| format!("`{url}` is not the URL of an instance: {why}");
        let uri: Uri = url.parse().map_err(|_| bad(FORMS))?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad(FORMS)),
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
        let name = authority.host().trim_matches(['[', ']']).to_owned();
        let verified = Verified {
            name: tls.name_for(&name),
            tls: tls.clone(),
        };
        if is_tls && !is_name(&verified.name) {
            return Err(bad("no certificate can be for its host"));
        }
        let port = authority.port_u16();
        let port = port.unwrap_or(if is_tls { 443 } else { 80 });
        let authority =
            HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the host is not ASCII"))?;
        Ok(Self {
            place: Place::Host { name, port },
            tls: is_tls.then_some(verified),
            http2,
            weight,
            authority,
            resolved: AtomicBool::new(true),
        })
    }

    fn at_socket(path: &str, weight: usize, http2: bool) -> Result<Self, String> {
        let bad = |why: &str| format!("`unix:{path}` is not a Unix-domain socket: {why}");
        if !path.starts_with('/') || path.starts_with("//") {
            return Err(bad("write unix:/path/to/its.sock"));
        }
        let path = SocketPath::from_pathname(path).map_err(|e| bad(&e.to_string()))?;
        Ok(Self {
            place: Place::Socket(Address::Unix(path)),
            tls: None,
            http2,
            weight,
            // As other clients of such sockets have it: a path is no host.
            authority: HeaderValue::from_static("localhost"),
            resolved: AtomicBool::new(true),
        })
    }
}

impl Instance {
    /// Whether the file says the same of both. How services are reached beside this is compared before.
    pub fn is_same(&self, other: &Self) -> bool {
        let Self {
            place,
            tls,
            http2: _,
            weight,
            authority,
            resolved: _,
        } = self;
        let same_place = *place == other.place && tls.is_some() == other.tls.is_some();
        same_place && *weight == other.weight && *authority == other.authority
    }

    /// The instance at one of its addresses: the one place where a connection to a backend is described.
    pub fn peer(&self, address: &Address) -> HttpPeer {
        let mut peer = HttpPeer {
            _address: address.clone(),
            scheme: Scheme::from_tls_bool(self.is_tls()),
            sni: String::new(),
            proxy: None,
            client_cert_key: None,
            group_key: 0,
            options: PeerOptions::new(),
        };
        if let Some(Verified { name, tls }) = &self.tls {
            peer.sni.push_str(name);
            tls.equip(&mut peer);
        }
        if self.http2 {
            speak_http2(&mut peer);
        }
        // A connection is used again by the thread that opened it: there its events come.
        peer.group_key = peer.group_key.wrapping_add(threads::place() as u64);
        peer
    }

    fn is_tls(&self) -> bool {
        self.tls.is_some()
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

    /// The addresses of one instance, or those it had when they cannot be found.
    async fn addresses_of(
        &self,
        instance: &Arc<Instance>,
        before: &[(Address, Arc<Instance>)],
    ) -> Vec<Address> {
        let (name, port) = match &instance.place {
            Place::Host { name, port } => (name.as_str(), *port),
            Place::Socket(address) => return vec![address.clone()],
        };
        let service = &self.service;
        match tokio::net::lookup_host((name, port)).await {
            Ok(addresses) => {
                if !instance.resolved.swap(true, Ordering::Relaxed) {
                    log::info!("service {service}: `{name}` is resolved again");
                }
                addresses.map(Address::Inet).collect()
            }
            Err(e) => {
                if instance.resolved.swap(false, Ordering::Relaxed) {
                    log::warn!(
                        "service {service}: `{name}` cannot be resolved, its known addresses stay: {e}"
                    );
                }
                let kept = before.iter().filter(|(_, of)| Arc::ptr_eq(of, instance));
                kept.map(|(address, _)| address.clone()).collect()
            }
        }
    }
}

#[async_trait]
impl ServiceDiscovery for Names {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let before = self.known.lock().clone();
        let mut now: Vec<(Address, Arc<Instance>)> = Vec::new();
        for instance in &self.instances {
            let addresses = self.addresses_of(instance, &before).await;
            now.extend(addresses.into_iter().map(|a| (a, instance.clone())));
        }
        // One address may stand behind two names; the first of them has it.
        let mut seen = HashSet::new();
        now.retain(|(address, _)| seen.insert(address.clone()));
        let backends = now
            .iter()
            .map(|(address, instance)| {
                let mut ext = Extensions::new();
                ext.insert(instance.clone());
                Backend {
                    addr: address.clone(),
                    weight: instance.weight,
                    ext,
                }
            })
            .collect();
        *self.known.lock() = now;
        Ok((backends, HashMap::new()))
    }
}
