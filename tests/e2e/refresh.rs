//! A refresh token for a new pair, once: rotation, families, and what a token that comes again costs (decision 16).

use crate::support::prelude::*;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

/// The JWT_REFRESH_SECRET of most gateways here.
const SECRET: &str = "e2e-refresh-secret-0123456789-abcdefghij";

/// Longer than it takes a revocation to reach every process.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Redis that is back is taken up within two seconds; more is for a machine that has other things to do.
const TAKEN_UP: Duration = Duration::from_secs(8);

/// Requests wait for Redis also on a machine that is busy: for tests that are about other things than the wait.
const PATIENT: &str = "command_timeout: 2s";

#[test]
fn a_refresh_token_becomes_a_pair_that_works() {
    let (backend, gateway) = start_alone(|gateway| {
        gateway
            .env("JWT_EXPIRES_IN", "2h")
            .env("JWT_REFRESH_EXPIRY", "3d")
    });
    let first = refresh_token("u1")
        .role("venue-manager")
        .tenant("t7")
        .claim("permissions", json!(["tickets:print"]))
        .claim("venueId", "v1")
        .claim("venues", json!(["v1", "v2"]));
    let response = post(&first.signed_with(SECRET))
        .header("User-Agent", "a browser \"of mine\"")
        .header("X-Request-ID", "refreshes")
        .send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(
        response.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(response.header("x-request-id"), Some("refreshes"));
    let members: BTreeSet<String> = response
        .json()
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(
        members,
        ["accessToken", "refreshToken"].map(String::from).into(),
        "exactly the documented ones"
    );
    assert_eq!(backend.heads_seen(), 0, "nothing is forwarded");

    let pair = Pair::of(&response);
    let (access, refresh) = (pair.access_claims(), pair.refresh_claims());
    let given = first.claims();
    for claims in [&access, &refresh] {
        for name in [
            "sub",
            "email",
            "role",
            "permissions",
            "tenant_id",
            "venueId",
            "venues",
            "iss",
        ] {
            assert_eq!(claims[name], given[name], "{name} in {claims}");
        }
        assert!(
            claims["jti"].as_str().is_some_and(|id| id.len() == 32),
            "{claims}"
        );
        assert_ne!(claims["jti"], given["jti"]);
    }
    assert_eq!(access["type"], "access");
    assert_eq!(refresh["type"], "refresh");
    assert_ne!(access["jti"], refresh["jti"]);
    assert!(
        access["family"]
            .as_str()
            .is_some_and(|name| name.len() == 32)
    );
    assert_eq!(access["family"], refresh["family"]);
    let life = |claims: &Value| claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(life(&access), 2 * 3600);
    assert_eq!(life(&refresh), 3 * 86_400);
    let age = access["iat"].as_i64().unwrap() - given["iat"].as_i64().unwrap();
    assert!((0..60).contains(&age), "it is issued now");

    assert_eq!(status(&gateway, &pair.access), 200);
    let seen = backend.requests().pop().unwrap();
    assert_eq!(seen.header("x-user-id"), None, "identity has its own names");
    assert_eq!(seen.header("x-tenant-id"), Some("t7"));
    assert_eq!(
        status(&gateway, &pair.refresh),
        401,
        "a refresh token is no access token"
    );
    let family = access["family"].as_str().unwrap();
    let line = gateway.wait_log(|line| line["event"] == "token_refreshed");
    assert_eq!(line["context"], "audit");
    assert_eq!(line["severity"], "low");
    assert_eq!(line["requestId"], "refreshes");
    assert_eq!(line["userId"], "u1");
    assert_eq!(line["tenantId"], "t7");
    assert_eq!(line["family"], family);
    assert_eq!(line["ip"], "127.0.0.1");
    assert_eq!(line["userAgent"], "a browser \"of mine\"");
    assert_eq!(refreshes(&gateway, "success"), 1.0);
}

#[test]
fn a_family_goes_on_from_process_to_process() {
    let redis = Redis::start();
    let (_backend, gateways) = start::<3>(&redis, PATIENT);
    let mut token = refresh_token("u1").signed_with(SECRET);
    let mut families = BTreeSet::new();
    for round in 0..9 {
        let gateway = &gateways[round % 3];
        let pair = pair(gateway, &token);
        families.insert(pair.family());
        for gateway in &gateways {
            assert_eq!(status(gateway, &pair.access), 200, "round {round}");
        }
        token = pair.refresh;
    }
    assert_eq!(families.len(), 1, "{families:?}");
    let family = families.pop_first().unwrap();
    let left: i64 = redis
        .command(&["TTL", &format!("refresh:{family}")])
        .parse()
        .unwrap();
    let week = 7 * 86_400;
    assert!((week - 60..week + 60).contains(&left), "{left}");
    assert_eq!(redis.command(&["DBSIZE"]), "1", "one key for a family");
}

#[test]
fn tokens_of_auth_service_begin_a_family_of_their_own_or_the_one_they_name() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, PATIENT);
    let named = refresh_token("u1").claim("family", "family-of-auth-service");
    let named = pair(&a, &named.signed_with(SECRET));
    assert_eq!(named.family(), "family-of-auth-service");
    assert_eq!(
        redis.command(&["EXISTS", "refresh:family-of-auth-service"]),
        "1"
    );

    let without_jti = refresh_token("u2").without("jti").signed_with(SECRET);
    let derived = pair(&a, &without_jti).family();
    let response = post(&without_jti).send_to(b.addr());
    assert_refused(&response, "INVALID_TOKEN");
    let line = b.wait_log(|line| line["event"] == "refresh_token_reused");
    assert_eq!(line["family"], *derived, "the same in every process");

    let two = ["u3", "u3"].map(|user| pair(&a, &refresh_token(user).signed_with(SECRET)));
    assert_ne!(two[0].family(), two[1].family(), "two logins of one user");
    let silent = refresh_token("u4")
        .without("role")
        .without("email")
        .without("iat");
    let claims = pair(&a, &silent.signed_with(SECRET)).access_claims();
    assert!(
        claims.get("role").is_none() && claims.get("email").is_none(),
        "{claims}"
    );
    let by_id = refresh_token("x").without("sub").claim("id", "u5");
    let claims = pair(&a, &by_id.signed_with(SECRET)).access_claims();
    assert_eq!((claims.get("sub"), &claims["id"]), (None, &json!("u5")));
}

#[test]
fn a_token_that_comes_again_ends_its_family_and_the_access_tokens_of_it() {
    let redis = Redis::start();
    let (_backend, gateways) = start::<3>(&redis, PATIENT);
    let [a, b, c] = &gateways;
    let first = refresh_token("u1").signed_with(SECRET);
    let stranger = pair(c, &refresh_token("u1").signed_with(SECRET));
    let second = pair(a, &first);
    let third = pair(b, &second.refresh);
    assert_eq!(
        status(c, &second.access),
        200,
        "it lives as long as its family"
    );

    let response = post(&second.refresh)
        .header("X-Request-ID", "thief")
        .header("User-Agent", &"x".repeat(2000))
        .send_to(c.addr());
    assert_refused(&response, "INVALID_TOKEN");
    for gateway in &gateways {
        for access in [&second.access, &third.access] {
            wait_status("access tokens of the family", gateway, access, 401);
        }
        for refresh in [&first, &second.refresh, &third.refresh] {
            assert_refused(&post(refresh).send_to(gateway.addr()), "INVALID_TOKEN");
        }
        assert_eq!(
            status(gateway, &stranger.access),
            200,
            "another login of the user"
        );
    }
    pair(a, &stranger.refresh);

    let line = c.wait_log(|line| line["event"] == "refresh_token_reused");
    assert_eq!(line["severity"], "critical");
    assert_eq!(line["requestId"], "thief");
    assert_eq!(line["userId"], "u1");
    assert_eq!(line["tenantId"], "t1");
    assert_eq!(line["family"], *third.family());
    assert_eq!(line["userAgent"].as_str().unwrap().len(), 256, "bounded");
    assert_eq!(refreshes(c, "reused"), 1.0);
    assert!(refreshes(a, "revoked") >= 3.0);
    let twice =
        |line: &Value| line["event"] == "authentication_failed" && line["requestId"] == "thief";
    assert!(!c.log_lines().iter().any(twice), "it has its own event");

    let family = third.family();
    let record: i64 = redis
        .command(&["TTL", &format!("refresh:{family}")])
        .parse()
        .unwrap();
    assert!(
        record > 7 * 86_400 - 60,
        "no token of it outlives this: {record}"
    );
    let key = format!("session:revoked:family:{{refresh:{family}}}");
    let revoked: i64 = redis.command(&["TTL", &key]).parse().unwrap();
    assert!((86_400 - 60..86_400 + 60).contains(&revoked), "{revoked}");
}

#[test]
fn a_token_that_comes_again_ends_its_family_without_redis_too() {
    let (_backend, gateway) = start_alone(|gateway| gateway);
    let first = refresh_token("u1").signed_with(SECRET);
    let second = pair(&gateway, &first);
    let third = pair(&gateway, &second.refresh);
    assert_eq!(status(&gateway, &third.access), 200);
    assert_refused(&post(&first).send_to(gateway.addr()), "INVALID_TOKEN");
    assert_eq!(status(&gateway, &second.access), 401);
    assert_eq!(status(&gateway, &third.access), 401);
    assert_refused(
        &post(&third.refresh).send_to(gateway.addr()),
        "INVALID_TOKEN",
    );
    pair(&gateway, &refresh_token("u1").signed_with(SECRET));

    // Another process knows nothing of what this one has rotated, and does not guess.
    let (_backend, other) = start_alone(|gateway| gateway);
    let fourth = pair(&gateway, &refresh_token("u2").signed_with(SECRET));
    assert_refused(
        &post(&fourth.refresh).send_to(other.addr()),
        "INVALID_TOKEN",
    );
    assert_eq!(refreshes(&other, "unknown"), 1.0);
    pair(&gateway, &fourth.refresh);
}

#[test]
fn of_one_token_at_several_processes_at_the_same_instant_never_two_pairs_live() {
    const ROUNDS: usize = 60;
    let redis = Redis::start();
    let (_backend, gateways) = start::<3>(&redis, PATIENT);
    let mut lone_winners = 0;
    for round in 0..ROUNDS {
        let mut token = refresh_token("u1").signed_with(SECRET);
        // Every second round races for a token that a gateway has minted.
        if round % 2 == 1 {
            token = pair(&gateways[0], &token).refresh;
        }
        let racers = 2 + round % 2;
        let responses = race(&gateways[..racers], &token);
        let pairs: Vec<Pair> = responses
            .iter()
            .filter(|response| response.status == 200)
            .map(Pair::of)
            .collect();
        assert!(pairs.len() <= 1, "round {round}: {} pairs", pairs.len());
        for response in responses.iter().filter(|response| response.status != 200) {
            assert_refused(response, "INVALID_TOKEN");
        }
        // All but one came with a used token: the family has ended, and what the winner has is worth nothing.
        for pair in &pairs {
            lone_winners += 1;
            for gateway in &gateways {
                wait_status("the winner's access token", gateway, &pair.access, 401);
                let response = post(&pair.refresh).send_to(gateway.addr());
                assert_refused(&response, "INVALID_TOKEN");
            }
        }
    }
    assert_eq!(lone_winners, ROUNDS, "in each round exactly one came first");
}

#[test]
fn of_one_token_in_many_requests_to_one_process_without_redis_one_wins() {
    let (_backend, gateway) = start_alone(|gateway| gateway);
    for _ in 0..20 {
        let token = refresh_token("u1").signed_with(SECRET);
        let responses = burst(gateway.addr(), vec![post(&token); 6], 6);
        let pairs: Vec<Pair> = responses
            .iter()
            .filter(|response| response.status == 200)
            .map(Pair::of)
            .collect();
        assert_eq!(pairs.len(), 1);
        assert_eq!(status(&gateway, &pairs[0].access), 401);
        assert_refused(
            &post(&pairs[0].refresh).send_to(gateway.addr()),
            "INVALID_TOKEN",
        );
    }
}

#[test]
fn what_is_no_refresh_token_of_ours_is_refused() {
    let redis = Redis::start();
    let (backend, [gateway]) = start(&redis, PATIENT);
    let token = || refresh_token("u1");
    let rotated = || token().claim("rotation", 1).claim("family", "f1");
    let secret = |token: Token| token.signed_with(SECRET);
    let cases = [
        ("another secret", token().hs256()),
        ("an access token", secret(token().claim("type", "access"))),
        ("no type", secret(token().without("type"))),
        ("unsigned", token().unsigned_none()),
        ("HS512", token().sign(Algorithm::HS512, SECRET)),
        ("another issuer", secret(token().claim("iss", "somebody"))),
        (
            "two issuers",
            secret(token().claim("iss", json!([token::ISSUER]))),
        ),
        ("no issuer", secret(token().without("iss"))),
        ("no expiry", secret(token().without("exp"))),
        ("no tenant", secret(token().without("tenant_id"))),
        ("an empty tenant", secret(token().tenant(""))),
        ("a tenant of two lines", secret(token().tenant("a\nb"))),
        ("nobody", secret(token().without("sub"))),
        ("a number for a name", secret(token().claim("sub", 7))),
        ("not yet", secret(token().claim("nbf", 99_999_999_999_i64))),
        (
            "venues of another type",
            secret(token().claim("venues", "v1")),
        ),
        (
            "a family that is no name",
            secret(token().claim("family", "a}b")),
        ),
        (
            "rotated, of no family",
            secret(token().claim("rotation", 1)),
        ),
        ("rotated, without an id", secret(rotated().without("jti"))),
        ("rotated, of a family that nobody knows", secret(rotated())),
        (
            "a critical extension",
            secret(token().with_header(json!({"crit": ["x"], "x": 1}))),
        ),
        (
            "too long",
            secret(token().claim("email", "x".repeat(10_000))),
        ),
        ("no token", "nonsense".to_owned()),
        ("nothing", String::new()),
    ];
    let count = cases.len();
    for (what, token) in cases {
        let response = post(&token).send_to(gateway.addr());
        assert_eq!(response.status, 401, "{what}: {}", response.text());
        assert_refused(&response, "INVALID_TOKEN");
    }
    let expired = post(&secret(token().expires_in(-60))).send_to(gateway.addr());
    assert_refused(&expired, "TOKEN_EXPIRED");
    pair(&gateway, &secret(token().expires_in(-2)));
    for reason in ["invalid", "expired", "unknown"] {
        let line =
            gateway.wait_log(|line| line["event"] == "refresh_failed" && line["reason"] == reason);
        assert_eq!(line["severity"], "medium");
    }
    assert_eq!(refreshes(&gateway, "invalid"), (count - 1) as f64);
    assert_eq!(refreshes(&gateway, "unknown"), 2.0, "and one at the start");
    assert_eq!(refreshes(&gateway, "expired"), 1.0);
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn a_body_that_could_be_read_in_two_ways_is_refused() {
    let (_backend, gateway) = start_alone(|gateway| gateway);
    let token = refresh_token("u1").signed_with(SECRET);
    let good = format!(r#"{{"refreshToken":"{token}"}}"#);
    let json = |body: &str| {
        Request::post("/auth/refresh")
            .header("Content-Type", "application/json")
            .body(body)
    };
    let bare = || Request::post("/auth/refresh").body(good.as_str());
    let cases = [
        (
            "twice",
            json(&format!(
                r#"{{"refreshToken":"{token}","refreshToken":"x"}}"#
            )),
        ),
        ("a number", json(r#"{"refreshToken":1}"#)),
        ("null", json(r#"{"refreshToken":null}"#)),
        (
            "another name",
            json(&good.replace("refreshToken", "refresh_token")),
        ),
        ("a list", json(&format!(r#"["{token}"]"#))),
        ("nothing", json("")),
        ("no JSON", json(&format!("refreshToken={token}"))),
        ("something behind it", json(&format!("{good} {{}}"))),
        ("no type", bare()),
        (
            "a form",
            bare().header("Content-Type", "application/x-www-form-urlencoded"),
        ),
        ("text", bare().header("Content-Type", "text/plain")),
        (
            "two types",
            json(&good).header("Content-Type", "text/plain"),
        ),
        ("coded", json(&good).header("Content-Encoding", "gzip")),
    ];
    for (what, request) in cases {
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, 400, "{what}: {}", response.text());
        assert_eq!(response.json()["code"], "BAD_REQUEST", "{what}");
    }
    let large = format!(
        r#"{{"x":"{}","refreshToken":"{token}"}}"#,
        "x".repeat(16 << 10)
    );
    assert_eq!(json(&large).send_to(gateway.addr()).status, 413);
    let chunks = large.as_bytes().chunks(1000).map(<[u8]>::to_vec).collect();
    let chunked = Request::post("/auth/refresh").header("Content-Type", "application/json");
    assert_eq!(
        chunked
            .clone()
            .chunked(chunks)
            .send_to(gateway.addr())
            .status,
        413
    );
    assert_eq!(
        Request::get("/auth/refresh").send_to(gateway.addr()).status,
        405
    );

    // None of these has used it.
    let spaced = format!(" {{ \"device\": [1], \"refreshToken\" : \"{token}\" }} ");
    let chunks = spaced.as_bytes().chunks(7).map(<[u8]>::to_vec).collect();
    let request = Request::post("/auth/refresh")
        .header("Content-Type", "Application/JSON; charset=utf-8")
        .chunked(chunks);
    let mut connection = Client::to(gateway.addr()).connect();
    let pair = Pair::of(&connection.request(&request));
    let next = connection.request(&post(&pair.refresh));
    assert_eq!(next.status, 200, "the connection is kept");
}

#[test]
fn an_address_that_fails_too_often_has_to_wait_also_with_a_good_token() {
    let backend = Upstream::start();
    let conf = yaml(&backend, "").replace("max: 100000, window: 60s", "max: 4, window: 60s");
    let gateway = Gateway::with(&conf)
        .env("JWT_REFRESH_SECRET", SECRET)
        .start();
    for i in 0..4 {
        let bad = refresh_token(&format!("u{i}")).hs256();
        assert_refused(&post(&bad).send_to(gateway.addr()), "INVALID_TOKEN");
    }
    let good = refresh_token("u1").signed_with(SECRET);
    let response = post(&good).send_to(gateway.addr());
    assert_eq!(response.status, 429);
    assert!((1..=60).contains(&number(&response, "Retry-After")));
    assert_eq!(
        gateway.metric(r#"rate_limit_hits_total{limit="authentication"}"#),
        1.0
    );
    assert_eq!(refreshes(&gateway, "success"), 0.0);
    let unknown = Token::user("u9").signed_with("another-secret-0123456789-0123456789");
    assert_eq!(status(&gateway, &unknown), 429, "it is one guard for both");
}

#[test]
fn a_refresh_spends_the_limits_of_its_address() {
    let backend = Upstream::start();
    let conf = yaml(&backend, "").replace(
        "limits: { enabled: false }",
        "limits: { global: { max: 2, window: 60s } }",
    );
    let gateway = Gateway::with(&conf)
        .env("JWT_REFRESH_SECRET", SECRET)
        .start();
    let first = post(&refresh_token("u1").signed_with(SECRET)).send_to(gateway.addr());
    assert_eq!(first.status, 200);
    assert_eq!(number(&first, "X-RateLimit-Limit"), 2);
    assert_eq!(number(&first, "X-RateLimit-Remaining"), 1);
    let refused = post("nonsense").send_to(gateway.addr());
    assert_eq!(number(&refused, "X-RateLimit-Remaining"), 0);
    let good = refresh_token("u2").signed_with(SECRET);
    assert_eq!(post(&good).send_to(gateway.addr()).status, 429);
}

#[test]
fn a_refresh_token_that_was_revoked_is_refused() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis, PATIENT);
    let in_an_hour = "99999999999";
    let tokens: [String; 5] = std::array::from_fn(|n| {
        refresh_token(&format!("u{n}"))
            .tenant(&format!("t{n}"))
            .claim("jti", format!("j{n}"))
            .claim("family", format!("f{n}"))
            .signed_with(SECRET)
    });
    let keys = [
        (format!("session:blacklist:{}", tokens[0]), "1"),
        ("session:revoked:jti:j1".to_owned(), "1"),
        ("session:revoked:user:u2".to_owned(), in_an_hour),
        ("session:revoked:tenant:t3".to_owned(), in_an_hour),
        ("session:revoked:family:f4".to_owned(), "1"),
    ];
    for (n, (key, value)) in keys.iter().enumerate() {
        redis.command(&["SET", key, value]);
        // What is pushed later is pushed behind it.
        let mark = Token::user("mark")
            .claim("jti", format!("mark-{n}"))
            .hs256();
        redis.command(&["SET", &format!("session:blacklist:{mark}"), "1"]);
        wait_status("the revocation is known", &gateway, &mark, 401);
        assert_refused(&post(&tokens[n]).send_to(gateway.addr()), "INVALID_TOKEN");
        redis.command(&["DEL", key, &format!("session:blacklist:{mark}")]);
        wait_status("it is known to be gone", &gateway, &mark, 200);
        pair(&gateway, &tokens[n]);
    }
    assert_eq!(refreshes(&gateway, "revoked"), keys.len() as f64);
}

#[test]
fn while_redis_is_away_there_is_no_pair() {
    let mut redis = Redis::start();
    let (backend, [gateway]) = start(&redis, "");
    let fresh = refresh_token("u1").signed_with(SECRET);
    let known = within(SOON, || {
        let response = post(&refresh_token("u2").signed_with(SECRET)).send_to(gateway.addr());
        (response.status == 200).then(|| Pair::of(&response))
    });
    let known = known.expect("a pair");
    redis.kill();
    for token in [&fresh, &known.refresh, &fresh] {
        let begun = Instant::now();
        let response = post(token).send_to(gateway.addr());
        assert_unavailable(&response);
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
    }
    assert_eq!(
        status(&gateway, &known.access),
        200,
        "access tokens are good still"
    );
    assert_eq!(refreshes(&gateway, "unavailable"), 3.0);
    let line = gateway.wait_log(|line| line["reason"] == "unavailable");
    assert_eq!(
        (&line["event"], &line["userId"]),
        (&json!("refresh_failed"), &json!("u1"))
    );

    redis.restart();
    let response = wait_for_answer(&gateway, &fresh);
    assert_eq!(response.status, 200, "it was not used: {}", response.text());
    let response = wait_for_answer(&gateway, &known.refresh);
    assert_refused(&response, "INVALID_TOKEN");
    assert_eq!(
        refreshes(&gateway, "unknown"),
        2.0,
        "one at the start; redis has lost what it knew of the family"
    );
    assert_eq!(backend.heads_seen(), 1);
}

#[test]
fn a_token_that_a_silent_redis_did_not_answer_for_is_not_used() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "");
    let first = refresh_token("u1").signed_with(SECRET);
    let first = wait_for_answer(&a, &first);
    let first = Pair::of(&first);
    for _ in 0..3 {
        redis.freeze();
        for gateway in [&a, &b, &a] {
            assert_unavailable(&post(&first.refresh).send_to(gateway.addr()));
        }
        redis.thaw();
        wait_until("redis has done what it was told meanwhile", || {
            redis.command(&["PING"]) == "PONG"
        });
    }
    let response = wait_for_answer(&b, &first.refresh);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        status(&a, &first.access),
        200,
        "nothing was taken for a theft"
    );
}

#[test]
fn a_rotation_that_redis_hears_of_too_late_does_not_happen() {
    let redis = Redis::start();
    let wire = SlowWire::to(redis.addr());
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, ""))
        .env("JWT_REFRESH_SECRET", SECRET)
        .env("REDIS_HOST", wire.addr.ip())
        .env("REDIS_PORT", wire.addr.port())
        .start();
    let first = wait_for_answer(&gateway, &refresh_token("u1").signed_with(SECRET));
    let first = Pair::of(&first);
    let record = format!("refresh:{}", first.family());
    let current = redis.command(&["GET", &record]);
    wire.is_slow.store(true, SeqCst);
    assert_unavailable(&post(&first.refresh).send_to(gateway.addr()));
    wait_until("redis has heard of it", || wire.delayed.load(SeqCst) == 1);
    wire.is_slow.store(false, SeqCst);
    redis.command(&["PING"]);
    assert_eq!(redis.command(&["GET", &record]), current);
    let response = wait_for_answer(&gateway, &first.refresh);
    assert_eq!(response.status, 200, "{}", response.text());
}

#[test]
fn a_key_of_another_program_ends_nothing_and_begins_nothing() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis, PATIENT);
    let token = refresh_token("u1")
        .claim("family", "f1")
        .signed_with(SECRET);
    redis.command(&["LPUSH", "refresh:f1", "x"]);
    assert_unavailable(&post(&token).send_to(gateway.addr()));
    assert_eq!(redis.command(&["LLEN", "refresh:f1"]), "1");
    redis.command(&["DEL", "refresh:f1"]);
    pair(&gateway, &token);
}

#[test]
fn a_family_is_known_for_as_long_as_its_longest_token_lives() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis, PATIENT);
    let month = 30 * 86_400;
    let token = refresh_token("u1").claim("family", "f1").expires_in(month);
    let token = token.signed_with(SECRET);
    let second = pair(&gateway, &token);
    let third = pair(&gateway, &second.refresh);
    assert_refused(&post(&token).send_to(gateway.addr()), "INVALID_TOKEN");
    let left: i64 = redis.command(&["TTL", "refresh:f1"]).parse().unwrap();
    assert!((month - 60..=month + 60).contains(&left), "{left}");
    assert_refused(
        &post(&third.refresh).send_to(gateway.addr()),
        "INVALID_TOKEN",
    );
}

#[test]
fn who_answers_is_said_by_the_mode() {
    let backend = Upstream::start();
    let answered_here = |gateway: GatewayBuilder, secret: &str| {
        let gateway = gateway.start();
        let seen = backend.count();
        let response = post(&refresh_token("u1").signed_with(secret)).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{}", response.text());
        let here = response.json().get("accessToken").is_some();
        assert_eq!(backend.count() - seen, usize::from(!here));
        here
    };
    let gateway = |mode: &str| {
        let conf = yaml(&backend, "");
        Gateway::with(&conf.replace("auth: {", &format!("auth: {{ refresh: {{ {mode} }},")))
    };
    let with_secret = |mode| gateway(mode).env("JWT_REFRESH_SECRET", SECRET);
    assert!(
        !answered_here(gateway(""), SECRET),
        "auto, without the secret"
    );
    assert!(answered_here(with_secret(""), SECRET), "auto, with it");
    assert!(!answered_here(with_secret("mode: proxy"), SECRET));
    assert!(answered_here(with_secret("mode: gateway"), SECRET));
    assert!(
        answered_here(gateway("mode: gateway"), token::SECRET),
        "its default"
    );

    let pair = KeyPair::p256();
    let of_another = with_secret("").without_env("JWT_SECRET");
    let of_another = of_another.env("JWT_PUBLIC_KEY", &pair.public_pem);
    assert!(
        !answered_here(of_another, SECRET),
        "it cannot sign access tokens"
    );
    let gateway = with_secret("mode: gateway").without_env("JWT_SECRET");
    let exit = gateway
        .env("JWT_PUBLIC_KEY", &pair.public_pem)
        .run_to_exit();
    assert_eq!(exit.code, 1);
    assert!(exit.stderr.contains("auth.refresh.mode"), "{}", exit.stderr);

    let access = "another-access-secret-0123456789-abcdefg";
    let gateway = with_secret("").env("JWT_ACCESS_SECRET", access).start();
    let minted = Pair::of(&post(&refresh_token("u1").signed_with(SECRET)).send_to(gateway.addr()));
    assert_eq!(
        status(&gateway, &minted.access),
        200,
        "signed with the access secret"
    );
}

#[test]
fn the_platforms_refresh_route_is_the_gateways_when_it_has_the_secret() {
    let backend = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .all_services_at(&backend.url())
        .env("JWT_REFRESH_SECRET", SECRET)
        .start();
    let body = json!({"refreshToken": refresh_token("u1").signed_with(SECRET)});
    let response = Request::post("/api/v1/auth/refresh")
        .json(&body)
        .send_to(gateway.addr());
    let access = Pair::of(&response).access;
    let me = Request::get("/api/v1/auth/me").bearer(&access);
    assert_eq!(me.send_to(gateway.addr()).status, 200);
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_route_that_cannot_be_what_it_says_is_a_fault() {
    let backend = Upstream::start();
    for (route, fault) in [
        (
            "auth: token, methods: [POST], session: refresh",
            "`refresh` needs",
        ),
        (
            "auth: public, methods: [POST, PUT], session: refresh",
            "`refresh` needs",
        ),
        ("auth: public, session: refresh", "`refresh` needs"),
        (
            "auth: public, methods: [POST], session: logout",
            "`logout` needs",
        ),
        (
            "auth: token-or-key, methods: [POST], session: logout",
            "`logout` needs",
        ),
        ("auth: token, session: login", "login"),
    ] {
        let conf = yaml(&backend, "") + &format!("  - {{ path: /x, service: backend, {route} }}\n");
        let exit = Gateway::with(&conf).arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "{route}");
        assert!(exit.stderr.contains("session"), "{route}: {}", exit.stderr);
        assert!(exit.stderr.contains(fault), "{route}: {}", exit.stderr);
    }
    for lives in [
        "access_life: 1ms",
        "access_life: 2d, refresh_life: 1d",
        "refresh_life: 99999d",
    ] {
        let conf =
            yaml(&backend, "").replace("auth: {", &format!("auth: {{ refresh: {{ {lives} }},"));
        let exit = Gateway::with(&conf).arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "{lives}");
        assert!(
            exit.stderr.contains("auth.refresh"),
            "{lives}: {}",
            exit.stderr
        );
    }
}

#[test]
fn no_token_shows_in_the_output() {
    let redis = Redis::start();
    let (_backend, [gateway]) =
        start_with(&redis, PATIENT, |gateway| gateway.env("LOG_LEVEL", "debug"));
    let first = refresh_token("u1").signed_with(SECRET);
    let second = pair(&gateway, &first);
    status(&gateway, &second.access);
    post(&first).send_to(gateway.addr());
    gateway.wait_log(|line| line["event"] == "refresh_token_reused");
    let said = gateway.raw_output() + &gateway.metrics();
    for token in [&first, &second.access, &second.refresh] {
        for part in token.split('.').skip(1) {
            assert!(!said.contains(part), "{part} is in the output");
        }
    }
    assert!(!said.contains(SECRET));
}

const SOON: Duration = Duration::from_secs(5);

/// Lies between a gateway and Redis, and holds rotations back for longer than anybody waits for them.
struct SlowWire {
    addr: SocketAddr,
    is_slow: Arc<AtomicBool>,
    /// Rotations that were held back, and have arrived.
    delayed: Arc<AtomicUsize>,
}

impl SlowWire {
    #[track_caller]
    fn to(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self {
            addr: listener.local_addr().unwrap(),
            is_slow: Arc::default(),
            delayed: Arc::default(),
        };
        let (is_slow, delayed) = (wire.is_slow.clone(), wire.delayed.clone());
        thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                let Ok(there) = TcpStream::connect(redis) else {
                    return;
                };
                let (mut answers, mut back) =
                    (there.try_clone().unwrap(), here.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut answers, &mut back));
                let (is_slow, delayed) = (is_slow.clone(), delayed.clone());
                thread::spawn(move || pass_on(here, there, &is_slow, &delayed));
            }
        });
        wire
    }
}

fn pass_on(mut here: TcpStream, mut there: TcpStream, is_slow: &AtomicBool, delayed: &AtomicUsize) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(count @ 1..) = here.read(&mut buffer) {
        let piece = &buffer[..count];
        let is_rotation = String::from_utf8_lossy(piece).contains("return 'rotated'");
        let is_held = is_rotation && is_slow.load(SeqCst);
        if is_held {
            thread::sleep(Duration::from_millis(300));
        }
        if there.write_all(piece).is_err() {
            break;
        }
        if is_held {
            delayed.fetch_add(1, SeqCst);
        }
    }
    // Either may be closed already.
    let _ = there.shutdown(Shutdown::Write);
}

/// What a refresh gives.
struct Pair {
    access: String,
    refresh: String,
}

impl Pair {
    #[track_caller]
    fn of(response: &Response) -> Self {
        assert_eq!(response.status, 200, "{}", response.text());
        let body = response.json();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        Self {
            access: text("accessToken"),
            refresh: text("refreshToken"),
        }
    }

    fn access_claims(&self) -> Value {
        token::claims_of(&self.access)
    }

    fn refresh_claims(&self) -> Value {
        token::claims_of(&self.refresh)
    }

    fn family(&self) -> String {
        self.refresh_claims()["family"].as_str().unwrap().to_owned()
    }
}

/// As auth-service mints them at a login.
fn refresh_token(user: &str) -> Token {
    Token::user(user).claim("type", "refresh")
}

fn post(token: &str) -> Request {
    Request::post("/auth/refresh").json(&json!({"refreshToken": token}))
}

#[track_caller]
fn pair(gateway: &Gateway, token: &str) -> Pair {
    Pair::of(&post(token).send_to(gateway.addr()))
}

/// The token at each of these, at the same instant.
fn race(gateways: &[Gateway], token: &str) -> Vec<Response> {
    let start = Barrier::new(gateways.len());
    thread::scope(|scope| {
        let racers: Vec<_> = gateways
            .iter()
            .map(|gateway| {
                let (start, request) = (&start, post(token));
                let mut connection = Client::to(gateway.addr()).connect();
                scope.spawn(move || {
                    start.wait();
                    connection.request(&request)
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .collect()
    })
}

/// The first answer of a gateway that has Redis again.
#[track_caller]
fn wait_for_answer(gateway: &Gateway, token: &str) -> Response {
    let answer = within(TAKEN_UP, || {
        let response = post(token).send_to(gateway.addr());
        (response.status != 503).then_some(response)
    });
    answer.expect("redis is taken up again")
}

#[track_caller]
fn assert_refused(response: &Response, code: &str) {
    assert_eq!(response.status, 401, "{}", response.text());
    assert_eq!(response.json()["code"], code);
    assert!(response.header("WWW-Authenticate").is_some());
    assert_eq!(response.header("cache-control"), Some("no-store"));
}

#[track_caller]
fn assert_unavailable(response: &Response) {
    assert_eq!(response.status, 503, "{}", response.text());
    assert_eq!(response.json()["code"], "SERVICE_UNAVAILABLE");
    assert!(number(response, "Retry-After") >= 1);
}

#[track_caller]
fn status(gateway: &Gateway, token: &str) -> u16 {
    Request::get("/")
        .bearer(token)
        .send_to(gateway.addr())
        .status
}

#[track_caller]
fn wait_status(what: &str, gateway: &Gateway, token: &str, wanted: u16) {
    let came = within(AT_ONCE, || (status(gateway, token) == wanted).then_some(()));
    assert!(came.is_some(), "{what}: no {wanted} within {AT_ONCE:?}");
}

fn refreshes(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!(r#"token_refreshes_total{{outcome="{outcome}"}}"#))
}

#[track_caller]
fn start_alone(change: impl FnOnce(GatewayBuilder) -> GatewayBuilder) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "")).env("JWT_REFRESH_SECRET", SECRET);
    (backend, change(gateway).start())
}

#[track_caller]
fn start<const N: usize>(redis: &Redis, keys: &str) -> (Upstream, [Gateway; N]) {
    start_with(redis, keys, |gateway| gateway)
}

#[track_caller]
fn start_with<const N: usize>(
    redis: &Redis,
    keys: &str,
    change: impl Fn(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, [Gateway; N]) {
    let backend = Upstream::start();
    let gateways = std::array::from_fn(|_| {
        let gateway = Gateway::with(&yaml(&backend, keys))
            .env("JWT_REFRESH_SECRET", SECRET)
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port());
        change(gateway).start()
    });
    for gateway in &gateways {
        wait_until("redis is followed", || gateway.metric("redis_up") == 1.0);
        // Commands have connections of their own.
        let nobody = refresh_token("x")
            .claim("rotation", 1)
            .claim("family", "nobody");
        wait_for_answer(gateway, &nobody.signed_with(SECRET));
    }
    (backend, gateways)
}

fn yaml(backend: &Upstream, redis: &str) -> String {
    format!(
        r#"
limits: {{ enabled: false }}
redis: {{ {redis} }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes:
  - {{ path: /auth/refresh, service: backend, methods: [POST], auth: public, session: refresh }}
  - {{ path: "/*", service: backend, auth: token }}
"#,
        backend.url()
    )
}
