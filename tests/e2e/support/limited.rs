//! Several gateways that count their limits in one Redis, and races between them.

use super::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Redis that is back is taken up within two seconds; one more is for a machine that has other things to do.
pub const TAKEN_UP: Duration = Duration::from_secs(3);

/// Requests wait for Redis also on a machine that is busy: for tests that are about other things than the wait.
pub const PATIENT: &str = "command_timeout: 2s";

/// Load on all gateways at once, far above a limit.
pub struct Race {
    pub max: usize,
    pub window: Duration,
    /// Requests in all.
    pub per_second: f64,
    pub time: Duration,
}

impl Race {
    /// Every request is answered 200 or 429; the service had each of the former once and none of the latter; and no
    /// window of its log, wherever it begins, holds more than the limit.
    #[track_caller]
    pub fn run<const N: usize>(
        &self,
        backend: &Upstream,
        gateways: &[Gateway; N],
        request: &Request,
    ) {
        const LANES: [&str; 3] = ["a", "b", "c"];
        const CLIENTS: usize = 8;
        let rate = self.per_second / N as f64;
        let loads: Vec<Running> = gateways
            .iter()
            .zip(LANES)
            .map(|(gateway, lane)| {
                let request = request.clone();
                let named = move |number| {
                    let name = format!("{lane}-{number}");
                    request.clone().header("X-Request-ID", &name)
                };
                Load::on(gateway.addr())
                    .per_second(lane, rate, CLIENTS, named)
                    .start()
            })
            .collect();
        thread::sleep(self.time);
        let traffics: Vec<Traffic> = loads.into_iter().map(Running::stop).collect();

        let mut sent: HashMap<String, Instant> = HashMap::new();
        let mut granted: HashSet<String> = HashSet::new();
        for exchange in traffics.iter().flat_map(|traffic| &traffic.exchanges) {
            let name = format!("{}-{}", exchange.lane, exchange.number);
            match exchange.end {
                Ok(200) => drop(granted.insert(name.clone())),
                Ok(429) => {}
                ref other => panic!("{name}: {other:?}"),
            }
            sent.insert(name, exchange.sent);
        }
        // A request was granted between the moment it was sent and the moment the service had it.
        let mut admitted: Vec<(Instant, Instant)> = Vec::new();
        for request in seen(backend) {
            let name = request.header("x-request-id").unwrap();
            let sent = sent.get(name);
            let sent = sent.unwrap_or_else(|| panic!("{name} has no answer"));
            assert!(granted.remove(name), "{name} was refused, or came twice");
            admitted.push((*sent, request.at));
        }
        assert!(granted.is_empty(), "granted, and lost: {granted:?}");
        for many in admitted.windows(self.max + 1) {
            let first = many.iter().map(|(sent, _)| *sent).min().unwrap();
            let last = many.iter().map(|(_, came)| *came).max().unwrap();
            let took = last - first;
            assert!(took >= self.window, "{} within {took:?}", many.len());
        }
        let windows = self.time.as_secs_f64() / self.window.as_secs_f64();
        let most = self.max as f64 * (windows + 1.0);
        let admitted = admitted.len() as f64;
        let wanted = self.per_second * self.time.as_secs_f64();
        println!("{} sent, {admitted} admitted", sent.len());
        assert!(sent.len() as f64 >= 0.7 * wanted, "no race: {}", sent.len());
        assert!(
            (0.6 * most..=most).contains(&admitted),
            "{admitted} in {windows} windows of {}",
            self.max
        );
    }
}

/// Waits until each of them counts in Redis, on all of its connections.
#[track_caller]
pub fn taken_up(redis: &Redis, gateways: &[&Gateway], limit: Duration) {
    // Which connection a request meets is chance: so many in a row leave none out but once in a thousand times.
    const PROBES: usize = 10;
    let started = Instant::now();
    for gateway in gateways {
        let mut in_a_row = 0;
        let left = limit.saturating_sub(started.elapsed());
        let came = within(left, || {
            let name = unique("probe");
            let response = of(&name, "/probe").send_to(gateway.addr());
            assert_eq!(response.status, 200);
            let counted = redis.command(&["EXISTS", &format!("rl:user:{name}:probe")]) == "1";
            in_a_row = if counted { in_a_row + 1 } else { 0 };
            (in_a_row == PROBES).then_some(())
        });
        assert!(came.is_some(), "redis is not taken up within {limit:?}");
    }
}

/// The requests that came to the backend but for those of [`taken_up`].
pub fn seen(backend: &Upstream) -> Vec<Recorded> {
    let mut requests = backend.requests();
    requests.retain(|request| request.path() != "/probe");
    requests
}

pub fn count(backend: &Upstream) -> usize {
    seen(backend).len()
}

/// A name that nobody had before.
pub fn unique(of_what: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{of_what}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A request of this user.
pub fn of(user: &str, path: &str) -> Request {
    Request::get(path).bearer(&Token::user(user).hs256())
}

/// How so many requests in a row end.
#[track_caller]
pub fn statuses(gateway: &Gateway, request: &Request, count: usize) -> Vec<u16> {
    let status = |_| request.send_to(gateway.addr()).status;
    (0..count).map(status).collect()
}

/// What `/ready` says, which is 200 whatever becomes of Redis.
#[track_caller]
pub fn ready(gateway: &Gateway) -> Value {
    let response = Request::get("/ready").send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

pub fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
pub fn start<const N: usize>(redis: &Redis, limits: &str) -> (Upstream, [Gateway; N]) {
    start_with(redis, limits, PATIENT, |gateway| gateway)
}

/// Gateways on one backend, all of which count in Redis.
#[track_caller]
pub fn start_with<const N: usize>(
    redis: &Redis,
    limits: &str,
    settings: &str,
    change: impl Fn(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, [Gateway; N]) {
    let (backend, gateways) = start_apart(redis, limits, settings, change);
    taken_up(redis, &gateways.each_ref(), Duration::from_secs(10));
    (backend, gateways)
}

/// Gateways that may not have found Redis yet.
#[track_caller]
pub fn start_apart<const N: usize>(
    redis: &Redis,
    limits: &str,
    settings: &str,
    change: impl Fn(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, [Gateway; N]) {
    let backend = Upstream::start();
    let (global, search) = limits
        .split_once(", search: ")
        .unwrap_or((limits, "{ max: 100000, window: 60s }"));
    let yaml = format!(
        r#"
redis: {{ {settings} }}
limits:
  {global}
  flood: {{ per_second: 100000 }}
  rules:
    search: {search}
    probe: {{ max: 100000, window: 60s }}
auth:
  failures: {{ max: 100000, window: 60s }}
  api_keys:
    partner: {{ sha256: {}, tenant_id: t9, permissions: ["*"] }}
services:
  backend: {{ url: "{}", health: {{ enabled: false }} }}
routes:
  - {{ path: /token, service: backend, auth: token }}
  - {{ path: /either, service: backend, auth: token-or-key }}
  - {{ path: /public, service: backend, auth: public }}
  - {{ path: /search, service: backend, auth: token, limits: [global, search] }}
  - {{ path: /search-only, service: backend, auth: token, limits: [search] }}
  - {{ path: /probe, service: backend, auth: token, limits: [probe] }}
"#,
        sha256("partner-key"),
        backend.url(),
    );
    let gateways = std::array::from_fn(|_| {
        let gateway = Gateway::with(&yaml)
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port());
        change(gateway).start()
    });
    (backend, gateways)
}
