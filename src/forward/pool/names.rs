//! Where a service's instances are: names, resolved here and never on the path of a request.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use http::{HeaderValue, Uri};
use pingora::protocols::l4::socket::SocketAddr as AnyAddr;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::{Backend, Extensions};
use serde::Deserialize;

use crate::config::Problems;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    pub url: String,
    #[serde(default = "one")]
    pub weight: usize,
}

/// The addresses that the names stand for, and those of the time before: a balancer that has not yet heard of a change
/// still finds what it picked.
pub type Known = ArcSwap<Vec<KnownAddress>>;

#[derive(Clone)]
pub struct KnownAddress {
    pub address: SocketAddr,
    /// For the log.
    pub text: Arc<str>,
    pub instance: Arc<Instance>,
    pub is_current: bool,
}

/// A configured instance. A name that resolves to several addresses is several backends with one of these.
#[derive(Debug)]
pub struct Instance {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub weight: usize,
    /// What `Host` carries to it.
    pub authority: HeaderValue,
    /// Whether the name could be resolved the last time: a change is worth a line in the log.
    pub resolved: AtomicBool,
}

/// Resolves the instances' names. A name that cannot be resolved keeps the addresses that it had.
pub struct Names {
    pub service: Box<str>,
    pub instances: Vec<Arc<Instance>>,
    pub known: Arc<Known>,
}

fn one() -> usize {
    1
}

pub fn compile_instances(
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
