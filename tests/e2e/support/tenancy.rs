//! A platform of two tenants: a service, auth-service, venue-service, and what is said of the requests that none of
//! them may see.

use super::client::{Request, Response};
use super::gateway::{Gateway, GatewayBuilder};
use super::redis::Redis;
use super::token::Token;
use super::upstream::{Recorded, Reply, Upstream};
use super::wait::{SOON, within};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Backends of a platform. `venues` says yes to members and 404 to others; `auth` knows nobody until a test says so.
pub struct Platform {
    pub backend: Upstream,
    pub auth: Upstream,
    pub venues: Upstream,
}

impl Platform {
    /// `members` are lines of `tenant venue user`.
    pub fn with_members(members: &[&str]) -> Self {
        let members: BTreeSet<String> = members.iter().map(|&line| line.to_owned()).collect();
        Self {
            backend: Upstream::start(),
            auth: Upstream::start_with(|_| Reply::status(404)),
            venues: Upstream::start_with(move |request| membership(&members, request)),
        }
    }

    /// One gateway in front of it. `settings` are top-level keys of the configuration.
    #[track_caller]
    pub fn start(&self, settings: &str) -> Gateway {
        self.gateway(settings).start()
    }

    /// The same, with this Redis, once it is found.
    #[track_caller]
    pub fn start_on(&self, redis: &Redis, settings: &str) -> Gateway {
        let gateway = self
            .gateway(settings)
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port())
            .start();
        knows_redis(&gateway);
        gateway
    }

    pub fn gateway(&self, settings: &str) -> GatewayBuilder {
        Gateway::with(&self.yaml(&[self.auth.url()], &[self.venues.url()], settings))
    }

    /// The configuration, with these instances of auth-service and venue-service; an empty list: no such service.
    pub fn yaml(&self, auth: &[String], venues: &[String], settings: &str) -> String {
        format!(
            r#"
limits: {{ enabled: false, flood: {{ per_second: 100000 }} }}
health: {{ enabled: false }}
outlier: {{ enabled: false }}
overload: {{ enabled: false }}
balance: {{ strategy: round_robin }}
{settings}
roles:
  admin: ["*"]
  venue-owner: ["*"]
  customer: ["things:view"]
aliases:
  /api/v1/event: /api/v1/events
services:
  s: {{ url: "{backend}", retry: {{ max_retries: 0 }} }}
{auth}{venues}routes:
  - {{ path: "/x/*", service: s, auth: token }}
  - {{ path: "/api/v1/venues/*", service: s, auth: token }}
  - {{ path: /api/v1/venues/search, service: s, auth: token }}
  - {{ path: "/api/v1/events/*", service: s, auth: token }}
  - {{ path: "/p/{{venueId}}/x", service: s, auth: token }}
  - {{ path: "/q/{{venue_id}}", service: s, auth: token }}
  - {{ path: "/r/{{venue}}", service: s, auth: token }}
  - {{ path: "/mine/{{id}}", target: "/api/v1/venues/{{id}}", service: s, auth: token }}
  - {{ path: "/head/*", service: s, auth: token, venues: head }}
  - {{ path: "/any/*", service: s, auth: token, venues: any }}
  - {{ path: "/cookie/*", service: s, auth: token, cookies: true }}
  - {{ path: "/fields/*", service: s, auth: token, forward_headers: [X-Venue, X-Target-Venue-ID, X-Filter] }}
  - {{ path: "/key/*", service: s, auth: token-or-key }}
  - {{ path: "/public/*", service: s, auth: public }}
  - {{ path: "/hook/*", service: s, auth: public, webhook: true }}
  - {{ path: "/things/*", service: s, auth: token, permissions: {{ GET: "things:view", POST: "things:edit" }} }}
"#,
            backend = self.backend.url(),
            auth = service("auth-service", auth),
            venues = service("venue-service", venues),
        )
    }
}

fn service(name: &str, urls: &[String]) -> String {
    if urls.is_empty() {
        return String::new();
    }
    let instances: Vec<String> = urls.iter().map(|u| format!("{{ url: \"{u}\" }}")).collect();
    format!(
        "  {name}: {{ instances: [{}], retry: {{ max_retries: 2, base_delay: 1ms, max_delay: 5ms }} }}\n",
        instances.join(", ")
    )
}

/// What venue-service says: 200 to who is a member in the tenant that the request speaks for.
fn membership(members: &BTreeSet<String>, request: &Recorded) -> Reply {
    let segments: Vec<&str> = request.target.split('/').collect();
    let &["", "internal", "venues", venue, "members", user] = segments.as_slice() else {
        return Reply::status(400);
    };
    let tenant = request.header("X-Tenant-ID").unwrap_or_default();
    match members.contains(&format!("{tenant} {venue} {user}")) {
        true => Reply::json(json!({"role": "manager"})),
        false => Reply::status(404),
    }
}

/// Waits until the gateway has a connection that serves requests.
#[track_caller]
pub fn knows_redis(gateway: &Gateway) {
    let ready = || Request::get("/ready").send_to(gateway.addr()).json();
    let known = within(SOON, || (ready()["checks"]["redis"] == "ok").then_some(()));
    assert!(
        known.is_some(),
        "redis is not found; {}",
        gateway.raw_output()
    );
}

/// `u1` of `t1`, whose token names the venues `v1` (its default) and `v2`.
pub fn owner_of_v1() -> Token {
    Token::user("u1")
        .claim("venueId", "v1")
        .claim("venues", json!(["v1", "v2"]))
}

/// A request id that nobody had before.
pub fn fresh_id() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("try-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The audit lines of a request by now.
#[track_caller]
pub fn audit_lines(gateway: &Gateway, request_id: &str) -> Vec<Value> {
    let mut lines = gateway.log_lines();
    lines.retain(|line| line["context"] == "audit" && line["requestId"] == request_id);
    lines
}

/// The body of a refusal without what differs from one to the next.
#[track_caller]
pub fn bare(response: &Response, request_id: &str) -> String {
    let text = response.text().replace(request_id, "ID");
    let (before, _) = text
        .split_once(r#","timestamp":"#)
        .unwrap_or_else(|| panic!("no refusal of ours: {text}"));
    before.to_owned()
}
