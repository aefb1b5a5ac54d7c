//! One service of several instances, and the configuration of a gateway in front of it.

use super::gateway::{Gateway, GatewayBuilder};
use super::lock;
use super::upstream::{Recorded, Reply, Upstream};
use super::wait::{SOON, within};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::ops::Index;
use std::sync::{Arc, Mutex};

/// The instances of one service.
pub struct Fleet {
    all: Vec<Upstream>,
}

impl Fleet {
    /// So many instances that answer 200 to everything.
    pub fn of(count: usize) -> Self {
        Self {
            all: (0..count).map(|_| Upstream::start()).collect(),
        }
    }

    /// Every instance answers what `script` says to the number of the instance and the request.
    pub fn set(&self, script: impl Fn(usize, &Recorded) -> Reply + Send + Sync + 'static) {
        let script = Arc::new(script);
        for (instance, upstream) in self.all.iter().enumerate() {
            let script = Arc::clone(&script);
            upstream.set(move |request| script(instance, request));
        }
    }

    /// Every instance answers what `script` says to the request and to how many of the same target came before it,
    /// whichever instance they came to.
    pub fn set_by_turn(&self, script: impl Fn(usize, &Recorded) -> Reply + Send + Sync + 'static) {
        let turns = Turns::default();
        self.set(move |_, request| script(turns.next(request), request));
    }

    /// The first requests of each target get these replies, whichever instances they come to; those behind them 200.
    pub fn answer_in_turn(&self, replies: Vec<Reply>) {
        self.set_by_turn(move |turn, _| replies.get(turn).cloned().unwrap_or_else(well));
    }

    /// As [`Fleet::answer_in_turn`], as soon as the head of a request is there.
    pub fn answer_in_turn_before_body(&self, replies: Vec<Reply>) {
        let turns = Arc::new(Turns::default());
        let replies = Arc::new(replies);
        for upstream in &self.all {
            let (turns, replies) = (Arc::clone(&turns), Arc::clone(&replies));
            upstream.set_before_body(move |request| replies.get(turns.next(request)).cloned());
        }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Upstream> {
        self.all.iter()
    }

    /// The address of an instance, as log and metrics name it.
    pub fn name(&self, instance: usize) -> String {
        self.all[instance].addr().to_string()
    }

    pub fn urls(&self) -> Vec<String> {
        self.all.iter().map(Upstream::url).collect()
    }

    /// How many whole requests each instance has had.
    pub fn counts(&self) -> Vec<usize> {
        self.all.iter().map(Upstream::count).collect()
    }

    /// How many requests each instance has had with or without the end of their bodies.
    pub fn heads(&self) -> Vec<usize> {
        self.all.iter().map(Upstream::heads_seen).collect()
    }

    /// How many requests have come with or without the end of their bodies.
    pub fn heads_seen(&self) -> usize {
        self.heads().iter().sum()
    }

    /// All requests in the order in which they came, each with the number of its instance.
    pub fn requests(&self) -> Vec<(usize, Recorded)> {
        let all = self.all.iter().enumerate();
        let mut requests: Vec<_> = all
            .flat_map(|(i, upstream)| upstream.requests().into_iter().map(move |r| (i, r)))
            .collect();
        requests.sort_by_key(|(_, request)| request.at);
        requests
    }

    /// Those of [`Fleet::requests`] that have this target.
    pub fn requests_to(&self, target: &str) -> Vec<(usize, Recorded)> {
        let mut requests = self.requests();
        requests.retain(|(_, request)| request.target == target);
        requests
    }

    /// How many TCP connections are open by now.
    pub fn open_connections(&self) -> usize {
        self.all.iter().map(Upstream::open_connections).sum()
    }

    /// Waits until `count` heads have come in all.
    #[track_caller]
    pub fn wait_heads(&self, count: usize) {
        let came = within(SOON, || (self.heads_seen() >= count).then_some(()));
        assert!(came.is_some(), "{:?} heads, not {count}", self.heads());
    }

    /// The configuration of a gateway in front of it.
    pub fn conf(&self) -> Conf {
        Conf::of(&self.urls())
    }

    /// The same, where each instance has a weight.
    pub fn weighted_conf(&self, weights: &[u32]) -> Conf {
        assert_eq!(weights.len(), self.len());
        let instances: Vec<String> = self
            .urls()
            .iter()
            .zip(weights)
            .map(|(url, weight)| format!("{{ url: '{url}', weight: {weight} }}"))
            .collect();
        Conf::of_instances(&instances.join(", "))
    }
}

/// Counts the requests of each target.
#[derive(Default)]
struct Turns(Mutex<HashMap<String, usize>>);

impl Turns {
    fn next(&self, request: &Recorded) -> usize {
        let mut turns = lock(&self.0);
        let turn = turns.entry(request.target.clone()).or_default();
        *turn += 1;
        *turn - 1
    }
}

fn well() -> Reply {
    Reply::status(200).body("well")
}

impl Index<usize> for Fleet {
    type Output = Upstream;

    fn index(&self, instance: usize) -> &Upstream {
        &self.all[instance]
    }
}

/// A configuration with the service `s` and the public route `/s/*` to it.
///
/// So that a test sees the one thing that it is about, all else that could answer in place of the service or choose
/// among its instances is off or as simple as can be: no limits, no health checks, no outlier detection, no adaptive
/// concurrency, a breaker that does not open, instances in turns, retries without a noticeable pause and as many as
/// asked for.
#[derive(Clone, Debug)]
pub struct Conf {
    top: BTreeMap<String, String>,
    service: BTreeMap<String, String>,
    route: BTreeMap<String, String>,
    services: String,
    routes: String,
}

impl Conf {
    /// In front of instances at these URLs.
    pub fn of(urls: &[String]) -> Self {
        let instances: Vec<String> = urls
            .iter()
            .map(|url| format!("{{ url: '{url}' }}"))
            .collect();
        Self::of_instances(&instances.join(", "))
    }

    /// In front of instances on these addresses.
    pub fn at(addresses: &[SocketAddr]) -> Self {
        let urls: Vec<String> = addresses.iter().map(|a| format!("http://{a}")).collect();
        Self::of(&urls)
    }

    fn of_instances(instances: &str) -> Self {
        let conf = Self {
            top: BTreeMap::new(),
            service: BTreeMap::new(),
            route: BTreeMap::new(),
            services: String::new(),
            routes: String::new(),
        };
        conf.top(
            "limits",
            "{ enabled: false, flood: { per_second: 100000 } }",
        )
        .top("health", "{ enabled: false }")
        .top("outlier", "{ enabled: false }")
        .top("overload", "{ enabled: false }")
        .top("breaker", "{ volume: 100000 }")
        .top("balance", "{ strategy: round_robin }")
        .top("retry", "{ base_delay: 1ms, budget_min: 100000 }")
        .service("instances", &format!("[{instances}]"))
        .route("path", "/s/*")
        .route("service", "s")
        .route("auth", "public")
    }

    /// Sets or replaces a key of the top level.
    pub fn top(mut self, key: &str, value: &str) -> Self {
        self.top.insert(key.into(), value.into());
        self
    }

    /// Sets or replaces a key of the service `s`.
    pub fn service(mut self, key: &str, value: &str) -> Self {
        self.service.insert(key.into(), value.into());
        self
    }

    /// Sets or replaces a key of the route `/s/*`.
    pub fn route(mut self, key: &str, value: &str) -> Self {
        self.route.insert(key.into(), value.into());
        self
    }

    /// Adds another service with a public route `/NAME/*`.
    pub fn and_service(mut self, name: &str, url: &str, more: &str) -> Self {
        self.services += &format!("  {name}: {{ url: '{url}', {more} }}\n");
        self.and_route(&format!(
            "{{ path: /{name}/*, service: {name}, auth: public }}"
        ))
    }

    /// Adds another route.
    pub fn and_route(mut self, route: &str) -> Self {
        self.routes += &format!("  - {route}\n");
        self
    }

    pub fn yaml(&self) -> String {
        let top: String = self
            .top
            .iter()
            .map(|(k, v)| format!("{k}: {v}\n"))
            .collect();
        format!(
            "{top}services:\n  s: {}\n{}routes:\n  - {}\n{}",
            flow(&self.service),
            self.services,
            flow(&self.route),
            self.routes
        )
    }

    pub fn gateway(&self) -> GatewayBuilder {
        Gateway::with(&self.yaml())
    }

    #[track_caller]
    pub fn start(&self) -> Gateway {
        self.gateway().start()
    }
}

fn flow(keys: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    format!("{{ {} }}", pairs.join(", "))
}
