//! No caller ever sees what another was answered, unless the backend calls it public, and never across tenants.

use super::{conf, on};
use crate::support::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;

/// A caller, and what the backend knows it by.
#[derive(Clone)]
struct Caller {
    tenant: &'static str,
    name: &'static str,
    credential: (&'static str, String),
}

impl Caller {
    fn user(name: &'static str, tenant: &'static str) -> Self {
        Self::with_token(name, tenant, Token::user(name).tenant(tenant))
    }

    fn with_token(name: &'static str, tenant: &'static str, token: Token) -> Self {
        let credential = ("Authorization", format!("Bearer {}", token.hs256()));
        Self {
            tenant,
            name,
            credential,
        }
    }

    fn key(name: &'static str, tenant: &'static str, key: &str) -> Self {
        Self {
            tenant,
            name,
            credential: ("X-API-Key", key.to_owned()),
        }
    }

    fn get(&self, path: &str) -> Request {
        Request::get(path).header(self.credential.0, &self.credential.1)
    }
}

/// What `Connection` nominates does not reach the backend: its answer must not be kept as that field's variant.
#[test]
fn what_connection_nominates_chooses_no_variant() {
    let backend = Upstream::start_with(|request| {
        let language = request
            .header("accept-language")
            .unwrap_or("none")
            .to_owned();
        Reply::json(json!({ "language": language }))
            .header("Cache-Control", "public, max-age=60")
            .header("Vary", "Accept-Language")
    });
    let gateway = conf(&backend).start();
    let german = || Request::get("/s/x").header("Accept-Language", "de");
    for connection in ["accept-language", "keep-alive, Accept-Language"] {
        let poison = german()
            .header("Connection", connection)
            .send_to(gateway.addr());
        assert_eq!(poison.json()["language"], "none");
    }
    let clean = german().send_to(gateway.addr());
    assert_eq!(clean.json()["language"], "de");
    let before = backend.count();
    for name in [
        "authorization",
        "x-api-key",
        "X-Forwarded-For",
        "host",
        "x-venue-id",
    ] {
        let refused = german().header("Connection", name).send_to(gateway.addr());
        assert_eq!((refused.status, backend.count()), (400, before), "{name}");
    }
}

/// The backend may answer by the venue without saying so in `Vary`.
#[test]
fn each_venue_has_its_own_answers() {
    let backend = Upstream::start_with(|request| {
        let venue = request.header("x-venue-id").unwrap_or("none").to_owned();
        Reply::json(json!({ "venue": venue })).header("Cache-Control", "public, max-age=60")
    });
    let gateway = conf(&backend).start();
    for _ in 0..2 {
        for venue in ["v1", "v2"] {
            let request = Request::get("/s/x").header("X-Venue-ID", venue);
            assert_eq!(request.send_to(gateway.addr()).json()["venue"], venue);
        }
        assert_eq!(
            Request::get("/s/x").send_to(gateway.addr()).json()["venue"],
            "none"
        );
    }
}

/// On HTTP/2 a body needs no field that says so: what it was answered is for nobody else, whoever sends it on HTTP/1.
#[test]
fn an_answer_to_a_get_with_a_body_is_given_to_nobody_who_sends_none() {
    use crate::support::http2::raw::{DATA, END_HEADERS, END_STREAM, Frame, Raw, get, headers};
    let backend = Upstream::start_with(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        Reply::json(json!({ "body": body })).header("Cache-Control", "public, max-age=60")
    });
    let gateway = conf(&backend).start();
    let mut raw = Raw::connect(gateway.addr());
    raw.frames(&[
        headers(1, END_HEADERS, &get("/s/x")),
        Frame::new(DATA, END_STREAM, 1, b"poison"),
    ]);
    let answer = raw.wait("an answer", |f| f.kind == DATA && f.stream == 1);
    assert_eq!(answer.payload, br#"{"body":"poison"}"#);
    let plain = Request::get("/s/x").host("a").send_to(gateway.addr());
    assert_eq!(plain.json(), json!({"body": ""}));
    let again = Request::get("/s/x").host("a").body("poison");
    assert_eq!(
        again.send_to(gateway.addr()).json(),
        json!({"body": "poison"})
    );
}

/// Users of two tenants, some with names that run into one another, and holders of keys that are named like users.
fn callers() -> Vec<Caller> {
    vec![
        Caller::user("ann", "t1"),
        Caller::user("bob", "t1"),
        Caller::user("ann", "t2"),
        Caller::user("n", "t1an"),
        Caller::user("t1:ann", "t"),
        Caller::user("ann", "t:t1"),
        Caller::user("1/ann", "t"),
        Caller::key("ann", "t1", "key-of-t1"),
        Caller::key("ann", "t2", "key-of-t2"),
    ]
}

/// Says who asks, and how answers to it may be kept.
fn mirror(cache_control: &'static str) -> Upstream {
    Upstream::start_with(move |request| {
        let said = |name| request.header(name).unwrap_or_default().to_owned();
        Reply::json(json!({
            "tenant": said("x-tenant-id"),
            "credential": format!("{}{}", said("authorization"), said("x-api-key")),
        }))
        .header("Cache-Control", cache_control)
    })
}

fn token_conf(backend: &Upstream) -> Conf {
    let digest = |key: &str| -> String {
        let digest = Sha256::digest(key);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let key = |tenant: &str| {
        let digest = digest(&format!("key-of-{tenant}"));
        format!("{{ sha256: {digest}, tenant_id: {tenant}, permissions: ['*'] }}")
    };
    // Two keys of one id cannot stand in the file: the second tenant's is named apart.
    let keys = format!(
        "{{ api_keys: {{ ann: {}, ann2: {} }} }}",
        key("t1"),
        key("t2")
    );
    conf(backend)
        .route("auth", "token-or-key")
        .top("auth", &keys)
}

#[test]
fn no_caller_sees_what_another_was_answered() {
    let callers = callers();
    for control in [
        "s-maxage=60",
        "max-age=60, must-revalidate",
        "private, max-age=60",
        "max-age=60",
        "s-maxage=60, stale-while-revalidate=60, stale-if-error=60",
    ] {
        let backend = mirror(control);
        let gateway = token_conf(&backend).start();
        for _ in 0..3 {
            for caller in &callers {
                let answer = caller.get("/s/x").send_to(gateway.addr()).json();
                assert_eq!(answer["tenant"], caller.tenant, "{control}");
                assert_eq!(answer["credential"], caller.credential.1, "{control}");
            }
        }
    }
}

#[test]
fn what_is_public_stays_within_its_tenant() {
    let backend = mirror("public, max-age=60");
    let gateway = token_conf(&backend).start();
    for _ in 0..3 {
        for caller in callers() {
            let answer = caller.get("/s/x").send_to(gateway.addr()).json();
            assert_eq!(answer["tenant"], caller.tenant, "{}", caller.name);
        }
    }
    let tenants: HashSet<&str> = callers().iter().map(|caller| caller.tenant).collect();
    assert_eq!(backend.count(), tenants.len(), "one for each tenant");
}

#[test]
fn under_load_from_all_of_them_no_answer_goes_to_another() {
    const ROUNDS: usize = 60;
    let _alone = alone();
    let backend = mirror("s-maxage=1");
    let redis = Redis::start();
    let conf = token_conf(&backend);
    let gateways = [on(&redis, &conf).start(), on(&redis, &conf).start()];
    gateways.iter().for_each(super::knows_redis);
    let hits = Mutex::new(0);
    thread::scope(|scope| {
        for (number, caller) in callers().into_iter().enumerate() {
            let (gateways, hits) = (&gateways, &hits);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let path = format!("/s/{}", round % 3);
                    let gateway = &gateways[(round + number) % 2];
                    let response = caller.get(&path).send_to(gateway.addr());
                    let answer = response.json();
                    assert_eq!(answer["tenant"], caller.tenant);
                    assert_eq!(answer["credential"], caller.credential.1);
                    if super::is_hit(&response) {
                        *hits.lock().unwrap() += 1;
                    }
                }
            });
        }
    });
    assert!(*hits.lock().unwrap() > ROUNDS, "nothing came from a cache");
}

#[test]
fn the_same_user_with_another_role_is_another_caller() {
    let backend = mirror("s-maxage=60");
    let gateway = token_conf(&backend).start();
    let of_role = |role: &str| Token::user("ann").tenant("t1").role(role);
    for role in ["admin", "customer", "admin", "customer"] {
        let caller = Caller::with_token("ann", "t1", of_role(role));
        let answer = caller.get("/s/x").send_to(gateway.addr()).json();
        let claims = token::claims_of(answer["credential"].as_str().unwrap().split_at(7).1);
        assert_eq!(claims["role"], role);
    }
}

#[test]
fn a_token_with_a_key_beside_it_is_another_caller_than_the_token_alone() {
    let backend = mirror("s-maxage=60");
    let gateway = token_conf(&backend).start();
    let alone = Caller::user("ann", "t1").get("/s/x");
    let both = alone.clone().header("X-API-Key", "key-of-t1");
    for request in [&alone, &both, &alone, &both] {
        let answer = request.send_to(gateway.addr()).json();
        let with_key = answer["credential"]
            .as_str()
            .unwrap()
            .ends_with("key-of-t1");
        assert_eq!(with_key, request.bytes() == both.bytes());
    }
}

#[test]
fn what_a_route_keeps_without_leave_it_keeps_for_its_caller_alone() {
    let backend = mirror("max-age=60");
    let gateway = token_conf(&backend)
        .route("cache", "{ authorized: true }")
        .start();
    let callers = callers();
    for _ in 0..3 {
        for caller in &callers {
            let answer = caller.get("/s/x").send_to(gateway.addr()).json();
            assert_eq!(answer["credential"], caller.credential.1);
        }
    }
    assert_eq!(backend.count(), callers.len(), "each was kept");
}

#[test]
fn what_is_stored_on_a_public_route_tells_nothing_of_who_asked_first() {
    let backend = Upstream::start_with(|_| {
        Reply::json(json!({"ok": true}))
            .header("Cache-Control", "max-age=60")
            .header("X-Request-ID", "of-the-backend")
            .header("X-RateLimit-Remaining", "7")
            .header("Access-Control-Allow-Origin", "http://first.test")
    });
    let gateway = conf(&backend)
        .top(
            "cors",
            "{ allowed_origins: ['http://first.test', 'http://second.test'] }",
        )
        .start();
    let ask = |origin: &str, id: &str| {
        Request::get("/s/x")
            .header("Origin", origin)
            .header("X-Request-ID", id)
    };
    ask("http://first.test", "first").send_to(gateway.addr());
    let hit = super::stored(&gateway, &ask("http://second.test", "second"));
    assert_eq!(hit.header("x-request-id"), Some("second"));
    assert_eq!(
        hit.header("access-control-allow-origin"),
        Some("http://second.test")
    );
    assert_eq!(hit.header("x-ratelimit-remaining"), None);
    let without = super::stored(
        &gateway,
        &Request::get("/s/x").header("X-Request-ID", "third"),
    );
    assert_eq!(without.header("access-control-allow-origin"), None);
    assert_eq!(without.header("x-request-id"), Some("third"));
}
