//! API keys in Redis: what a record may say, how a change of it reaches every process, and what holds while Redis is away
//! (decisions 19, 20 and 23).

use crate::support::prelude::*;
use sha2::{Digest, Sha256};
use std::time::{SystemTime, UNIX_EPOCH};

#[test]
fn a_key_in_redis_identifies_its_holder_by_its_digest_or_in_plain() {
    let redis = Redis::start();
    let (backend, [gateway]) = start(&redis);
    store(
        &redis,
        "key-1",
        json!({"id": "partner-1", "tenant_id": "tenant-1", "permissions": ["events:view"]}),
    );
    let plain = json!({"id": "partner-2", "tenant_id": "tenant-2", "permissions": ["events:*"]});
    redis.command(&["SET", "apikey:key-2", &plain.to_string()]);
    for (i, key) in ["key-1", "key-2"].into_iter().enumerate() {
        let number = i + 1;
        let id = format!("by-key-{number}");
        let response = request(key)
            .header("X-Request-ID", &id)
            .send_to(gateway.addr());
        assert_eq!(response.status, 200, "{}", response.text());
        let seen = &backend.wait_requests(number)[i];
        assert_eq!(
            seen.headers_named("x-tenant-id"),
            [format!("tenant-{number}")]
        );
        assert_eq!(seen.headers_named("x-tenant-source"), ["api-key"]);
        let line = gateway.access_line(&id);
        assert_eq!(line["userId"], format!("partner-{number}"));
        assert_eq!(line["tenantId"], format!("tenant-{number}"));
    }
    assert_eq!(status(&gateway, "key-3"), 401, "unknown");
}

#[test]
fn the_yaml_wins_over_redis_and_the_digest_over_the_plain_key() {
    let redis = Redis::start();
    let (backend, [gateway]) = start(&redis);
    store(
        &redis,
        "in-the-yaml",
        json!({"id": "p", "tenant_id": "of-redis"}),
    );
    store(&redis, "twice", json!({"id": "p", "tenant_id": "hashed"}));
    let plain = json!({"id": "p", "tenant_id": "plain"}).to_string();
    redis.command(&["SET", "apikey:twice", &plain]);
    for (i, (key, tenant)) in [("in-the-yaml", "of-the-yaml"), ("twice", "hashed")]
        .into_iter()
        .enumerate()
    {
        let open = Request::get("/open").header("X-API-Key", key);
        assert_eq!(open.send_to(gateway.addr()).status, 200, "{key}");
        assert_eq!(
            backend.wait_requests(i + 1)[i].header("x-tenant-id"),
            Some(tenant)
        );
    }
    // The plain one cannot stand in for a hashed one that is taken back by being made inactive.
    store(
        &redis,
        "twice",
        json!({"id": "p", "tenant_id": "hashed", "active": false}),
    );
    wait_until("it is refused", || status(&gateway, "twice") == 401);
}

#[test]
fn every_member_of_a_record_counts() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    let (past, future) = (unix_now() - 5, unix_now() + 3600);
    let may = json!(["events:view"]);
    let cases = [
        (
            "active",
            json!({"permissions": may, "active": true}),
            200,
            "",
        ),
        (
            "inactive",
            json!({"permissions": may, "active": false}),
            401,
            "INVALID_TOKEN",
        ),
        ("no permission", json!({}), 403, "FORBIDDEN"),
        (
            "another permission",
            json!({"permissions": ["events:create"]}),
            403,
            "FORBIDDEN",
        ),
        ("a wildcard", json!({"permissions": ["events:*"]}), 200, ""),
        (
            "only its own",
            json!({"permissions": ["events:view-own"]}),
            403,
            "FORBIDDEN",
        ),
        (
            "past, unix",
            json!({"permissions": may, "expires_at": past}),
            401,
            "TOKEN_EXPIRED",
        ),
        (
            "past, text",
            json!({"permissions": may, "expires_at": "2020-01-01T00:00:00Z"}),
            401,
            "TOKEN_EXPIRED",
        ),
        (
            "future, unix",
            json!({"permissions": may, "expires_at": future}),
            200,
            "",
        ),
        (
            "future, text",
            json!({"permissions": may, "expires_at": "2999-01-01T00:00:00+01:00"}),
            200,
            "",
        ),
        (
            "no expiry",
            json!({"permissions": may, "expires_at": null}),
            200,
            "",
        ),
        (
            "a tier",
            json!({"permissions": may, "tier": "premium"}),
            200,
            "",
        ),
        (
            "venues",
            json!({"permissions": may, "venues": ["v1"]}),
            200,
            "",
        ),
        (
            "all venues",
            json!({"permissions": may, "venues": ["*"]}),
            200,
            "",
        ),
        (
            "more members",
            json!({"permissions": may, "name": "P", "scopes": {"a": 1}}),
            200,
            "",
        ),
    ];
    for (what, mut record, wanted, code) in cases {
        record["id"] = "p".into();
        record["tenant_id"] = "t".into();
        store(&redis, &what_key(what), record);
        let response = request(&what_key(what)).send_to(gateway.addr());
        assert_eq!(response.status, wanted, "{what}: {}", response.text());
        if wanted != 200 {
            assert_eq!(response.json()["code"], code, "{what}");
        }
        assert_eq!(
            response.header("WWW-Authenticate").is_some(),
            wanted == 401,
            "{what}"
        );
    }
}

#[test]
fn a_record_with_a_fault_is_no_key_and_a_warning_says_why_but_not_which_key() {
    let redis = Redis::start();
    let (backend, [gateway]) = start(&redis);
    let faults = [
        ("no id", r#"{"tenant_id": "t"}"#, "`id`"),
        ("no tenant", r#"{"id": "p"}"#, "`tenant_id`"),
        ("a number as id", r#"{"id": 1, "tenant_id": "t"}"#, "`id`"),
        (
            "an empty tenant",
            r#"{"id": "p", "tenant_id": ""}"#,
            "`tenant_id`",
        ),
        (
            "a header in the tenant",
            r#"{"id": "p", "tenant_id": "t\r\nX: y"}"#,
            "`tenant_id`",
        ),
        (
            "an id twice",
            r#"{"id": "p", "id": "q", "tenant_id": "t"}"#,
            "once",
        ),
        (
            "a text as active",
            r#"{"id": "p", "tenant_id": "t", "active": "yes"}"#,
            "`active`",
        ),
        (
            "an unknown tier",
            r#"{"id": "p", "tenant_id": "t", "tier": "gold"}"#,
            "`tier`",
        ),
        (
            "a text as venues",
            r#"{"id": "p", "tenant_id": "t", "venues": "*"}"#,
            "`venues`",
        ),
        (
            "no permission",
            r#"{"id": "p", "tenant_id": "t", "permissions": ["*", "all"]}"#,
            "`permissions`",
        ),
        (
            "milliseconds",
            r#"{"id": "p", "tenant_id": "t", "expires_at": 1900000000000}"#,
            "`expires_at`",
        ),
        (
            "no time",
            r#"{"id": "p", "tenant_id": "t", "expires_at": "tomorrow"}"#,
            "`expires_at`",
        ),
        ("no object", r#"["p", "t"]"#, "object"),
        ("no JSON", "1", "object"),
    ];
    for (what, record, named) in faults {
        let key = format!("secret-{}", what_key(what));
        redis.command(&["SET", &hashed(&key), record]);
        let response = request(&key).send_to(gateway.addr());
        assert_eq!(response.status, 401, "{what}: {}", response.text());
        assert_eq!(response.json()["code"], "INVALID_TOKEN", "{what}");
        let fingerprint = &sha256(&key)[..8];
        gateway.wait_log(|line| {
            let said = line["msg"].to_string();
            line["level"] == "warn" && said.contains(fingerprint) && said.contains(named)
        });
    }
    assert_eq!(backend.count(), 0);
    let said = gateway.raw_output();
    assert!(!said.contains("secret-"), "no key is in the log");
    assert!(
        !said.contains(&sha256("secret-no-id")),
        "nor is a whole digest"
    );
}

#[test]
fn a_digest_at_rest_is_no_credential() {
    let redis = Redis::start();
    let (backend, [gateway]) = start(&redis);
    store(&redis, "good", whole());
    let digest = sha256("good");
    redis.command(&["CONFIG", "RESETSTAT"]);
    for thief in [
        format!("sha256:{digest}"),
        digest.clone(),
        format!("SHA256:{digest}"),
        format!(":{digest}"),
    ] {
        assert_eq!(status(&gateway, &thief), 401, "{thief}");
    }
    // Those that could be a key are asked for, under both of their names.
    assert_eq!(gets(&redis), 6);
    assert_eq!(backend.count(), 0);
    assert_eq!(status(&gateway, "good"), 200);
}

#[test]
fn what_cannot_be_a_key_is_not_looked_up() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    redis.command(&["SET", "apikey:with space", &whole().to_string()]);
    redis.command(&["SET", "apikey:", &whole().to_string()]);
    store(&redis, "with space", whole());
    store(&redis, "", whole());
    redis.command(&["CONFIG", "RESETSTAT"]);
    let long = "k".repeat(257);
    for key in ["", "with space", "with\ttab", "caf\u{e9}", &long] {
        assert_eq!(status(&gateway, key), 401, "{key:?}");
    }
    let twice = request("one").header("X-API-Key", "two");
    assert_eq!(twice.send_to(gateway.addr()).status, 401, "two keys");
    let same_twice = request("one").header("X-API-Key", "one");
    assert_eq!(
        same_twice.send_to(gateway.addr()).status,
        401,
        "the same key twice"
    );
    assert_eq!(gets(&redis), 0);
    assert_eq!(status(&gateway, &"k".repeat(256)), 401);
    assert_eq!(gets(&redis), 2, "256 characters may be a key");
}

#[test]
fn keys_of_one_id_share_its_limits_which_its_tier_multiplies() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis);
    let tiers = [("free", 2), ("standard", 10), ("premium", 20)];
    for (tier, max) in tiers {
        let [first, second] = ["first", "second"].map(|key| format!("{key}-{tier}"));
        let record = json!({"id": tier, "tenant_id": "t", "permissions": ["*"], "tier": tier});
        store(&redis, &first, record.clone());
        store(&redis, &second, record);
        let ask = |i: u32| {
            let (gateway, key) = if i.is_multiple_of(2) {
                (&a, &first)
            } else {
                (&b, &second)
            };
            Request::get("/limited")
                .header("X-API-Key", key)
                .send_to(gateway.addr())
        };
        for i in 0..max {
            let response = ask(i);
            assert_eq!(response.status, 200, "{tier} {i}");
            assert_eq!(
                number(&response, "X-RateLimit-Limit"),
                u64::from(max),
                "{tier}"
            );
        }
        assert_eq!([ask(0).status, ask(1).status], [429, 429], "{tier}");
        let counted = redis.command(&["EXISTS", &format!("rl:api:{tier}:few")]);
        assert_eq!(counted, "1", "{tier}");
    }
}

#[test]
fn a_key_that_is_remembered_ends_at_its_time() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    let mut record = whole();
    let ends = unix_now() + 3;
    record["expires_at"] = ends.into();
    store(&redis, "key", record);
    heard(&redis, &gateway);
    assert_eq!(status(&gateway, "key"), 200);
    redis.command(&["CONFIG", "RESETSTAT"]);
    let refused = within(Duration::from_secs(6), || {
        let response = request("key").send_to(gateway.addr());
        (response.status != 200).then_some(response)
    });
    let refused = refused.expect("it ends");
    assert!(unix_now() >= ends, "not before its time");
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (401, &json!("TOKEN_EXPIRED"))
    );
    assert_eq!(gets(&redis), 0, "nobody had to ask for it");
}

#[test]
fn a_change_holds_in_every_process_within_a_tenth_of_a_second() {
    let redis = Redis::start();
    let (_backend, gateways) = start::<2>(&redis);
    let mut taken = Vec::new();
    let mut changed = |what: &str, key: &str, command: &[&str], wanted: u16| {
        for gateway in &gateways {
            assert_ne!(status(gateway, key), wanted, "{what}: before");
        }
        redis.command(command);
        let since = Instant::now();
        for gateway in &gateways {
            wait_until(what, || status(gateway, key) == wanted);
        }
        taken.push(since.elapsed());
    };
    let good = whole().to_string();
    let inactive = json!({"id": "p", "tenant_id": "t", "active": false}).to_string();
    let helpless = json!({"id": "p", "tenant_id": "t"}).to_string();
    for round in 0..3 {
        let key = format!("key-{round}");
        for name in [hashed(&key), format!("apikey:{key}")] {
            changed("created", &key, &["SET", &name, &good], 200);
            changed("inactive", &key, &["SET", &name, &inactive], 401);
            changed("active again", &key, &["SET", &name, &good], 200);
            changed("less permitted", &key, &["SET", &name, &helpless], 403);
            changed("good again", &key, &["SET", &name, &good], 200);
            changed("revoked", &key, &["DEL", &name], 401);
        }
    }
    store(&redis, "last", whole());
    changed("flushed", "last", &["FLUSHALL"], 401);
    taken.sort();
    // One that another process kept from running says nothing of the gateway.
    let most = taken[taken.len() * 9 / 10];
    assert!(most < Duration::from_millis(100), "{taken:?}");
}

#[test]
fn a_hundred_requests_with_the_same_key_ask_redis_once() {
    let redis = Redis::start();
    let (_backend, [gateway]) =
        start_with(&redis, |yaml| yaml + "redis: { command_timeout: 4s }\n");
    store(&redis, "good", whole());
    heard(&redis, &gateway);
    for (key, wanted) in [("unknown", 401), ("good", 200)] {
        redis.command(&["CONFIG", "RESETSTAT"]);
        // None of them has an answer before all have asked.
        redis.command(&["CLIENT", "PAUSE", "700", "ALL"]);
        let asked = burst(gateway.addr(), vec![request(key); 100], 100);
        assert!(
            asked.iter().all(|response| response.status == wanted),
            "{key}"
        );
        assert_eq!(gets(&redis), 2, "{key}: its digest and its plain name");
        for _ in 0..10 {
            assert_eq!(status(&gateway, key), wanted);
        }
        assert_eq!(gets(&redis), 2, "{key}: it is remembered");
    }
}

#[test]
fn while_redis_is_away_the_known_keys_hold_and_the_others_cannot_be_told() {
    let mut redis = Redis::start();
    let (backend, [gateway]) = start(&redis);
    store(&redis, "known", whole());
    store(&redis, "never-asked", whole());
    heard(&redis, &gateway);
    assert_eq!(status(&gateway, "known"), 200);
    redis.kill();
    gateway.wait_metric("redis_up", |up| up == 0.0);
    let before = backend.count();
    let since = Instant::now();
    for i in 0..20 {
        assert_eq!(status(&gateway, "known"), 200);
        assert_eq!(status(&gateway, "in-the-yaml"), 403, "found, and may not");
        for key in ["never-asked", &format!("guess-{i}")] {
            let response = request(key).send_to(gateway.addr());
            assert_eq!(response.status, 503, "{}", response.text());
            assert_eq!(response.json()["code"], "SERVICE_UNAVAILABLE");
            assert_eq!(response.json()["error"], "Service Unavailable");
            assert!(number(&response, "Retry-After") >= 1);
            assert!(response.header("WWW-Authenticate").is_none());
        }
    }
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "nobody waits: {:?}",
        since.elapsed()
    );
    assert_eq!(backend.count() - before, 20, "of the known key");
    let tokens = Request::get("/events").bearer(&token::customer());
    assert_eq!(
        tokens.send_to(gateway.addr()).status,
        200,
        "tokens need no look-up"
    );

    redis.restart();
    store(&redis, "new", whole());
    wait_until("it is back", || status(&gateway, "new") == 200);
    wait_until("what redis has lost is no key any more", || {
        status(&gateway, "known") == 401
    });
}

#[test]
fn a_redis_that_is_silent_costs_a_look_up_no_more_than_the_limit() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    store(&redis, "known", whole());
    heard(&redis, &gateway);
    assert_eq!(status(&gateway, "known"), 200);
    redis.freeze();
    let since = Instant::now();
    for i in 0..40 {
        assert_eq!(status(&gateway, "known"), 200);
        assert_eq!(status(&gateway, &format!("guess-{i}")), 503);
    }
    // Each of the connections may cost its 50 ms once, and once more each time when it is tried anew.
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "{:?}",
        since.elapsed()
    );
    redis.thaw();
    let back = within(Duration::from_secs(10), || {
        (status(&gateway, "guess-0") == 401).then_some(())
    });
    assert!(back.is_some(), "it is taken up again");
    assert_eq!(status(&gateway, "known"), 200);
}

#[test]
fn a_change_that_was_missed_is_made_up_for() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    store(&redis, "kept", whole());
    store(&redis, "revoked", whole());
    heard(&redis, &gateway);
    for key in ["kept", "revoked"] {
        assert_eq!(status(&gateway, key), 200, "{key}");
    }
    let before = gateway.metric(r#"api_key_lookups_total{outcome="miss"}"#);
    // Whose connections are gone hears nothing, and takes a second to come back.
    for kind in ["normal", "pubsub"] {
        redis.command(&["CLIENT", "KILL", "TYPE", kind]);
    }
    redis.command(&["DEL", &hashed("revoked")]);
    wait_until("the revocation is noticed", || {
        assert_eq!(status(&gateway, "kept"), 200, "it holds throughout");
        status(&gateway, "revoked") == 401
    });
    wait_until("the other is asked for anew", || {
        assert_eq!(status(&gateway, "kept"), 200);
        gateway.metric(r#"api_key_lookups_total{outcome="miss"}"#) > before
    });
}

#[test]
fn without_redis_only_the_yaml_has_keys() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend)).start();
    let response = request("unknown").send_to(gateway.addr());
    assert_eq!(response.status, 401);
    assert_eq!(response.json()["code"], "INVALID_TOKEN");
    assert_eq!(status(&gateway, "in-the-yaml"), 403);
}

#[test]
fn a_key_and_a_token_are_of_one_tenant_and_both_allow_it() {
    let redis = Redis::start();
    let (backend, [gateway]) = start(&redis);
    let of = |tenant: &str, permissions: &[&str]| json!({"id": "p", "tenant_id": tenant, "permissions": permissions});
    store(&redis, "ours", of("t1", &["events:view"]));
    store(&redis, "theirs", of("t2", &["*"]));
    store(&redis, "helpless", of("t1", &[]));
    let both = |key: &str, token: &str| request(key).bearer(token).send_to(gateway.addr());
    let customer = token::customer();
    let cases = [
        ("both allow it", "ours", &customer, 200, ""),
        (
            "the key is another tenant's",
            "theirs",
            &customer,
            403,
            "FORBIDDEN",
        ),
        ("the key may not", "helpless", &customer, 403, "FORBIDDEN"),
        (
            "the user may not",
            "ours",
            &Token::user("u1").role("nobody").hs256(),
            403,
            "FORBIDDEN",
        ),
        (
            "the key is unknown",
            "nonsense",
            &customer,
            401,
            "INVALID_TOKEN",
        ),
        (
            "the token is none",
            "ours",
            &"a.b.c".to_owned(),
            401,
            "INVALID_TOKEN",
        ),
        (
            "an admin's tenant is another",
            "theirs",
            &token::admin(),
            403,
            "FORBIDDEN",
        ),
    ];
    for (what, key, token, wanted, code) in cases {
        let response = both(key, token);
        assert_eq!(response.status, wanted, "{what}: {}", response.text());
        if wanted != 200 {
            assert_eq!(response.json()["code"], code, "{what}");
        }
    }
    let seen = backend.wait_requests(1);
    assert_eq!(
        (seen.len(), seen[0].header("x-tenant-source")),
        (1, Some("jwt"))
    );
    assert_eq!(seen[0].header("x-tenant-id"), Some("t1"));
}

#[test]
fn nothing_is_a_key_s_own() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    // Its id is that of a user, whose data it would read.
    let record = json!({"id": "u1", "tenant_id": "t1", "permissions": ["tickets:view-own"]});
    store(&redis, "key", record);
    for path in ["/users/u1", "/mine"] {
        let by_key = Request::get(path).header("X-API-Key", "key");
        assert_eq!(by_key.send_to(gateway.addr()).status, 403, "{path}");
        let by_token = Request::get(path).bearer(&token::customer());
        assert_eq!(by_token.send_to(gateway.addr()).status, 200, "{path}");
    }
}

#[test]
fn who_guesses_costs_redis_nothing_after_a_while() {
    let redis = Redis::start();
    // One more for the fence.
    let few = |yaml: String| yaml.replace("failures: { max: 100000", "failures: { max: 5");
    let (_backend, [gateway]) = start_with(&redis, few);
    store(&redis, "known", whole());
    store(&redis, "new", whole());
    heard(&redis, &gateway);
    assert_eq!(status(&gateway, "known"), 200);
    redis.command(&["CONFIG", "RESETSTAT"]);
    for i in 0..4 {
        assert_eq!(status(&gateway, &format!("guess-{i}")), 401);
    }
    assert_eq!(gets(&redis), 8);
    for i in 4..30 {
        let refused = request(&format!("guess-{i}")).send_to(gateway.addr());
        assert_eq!(refused.status, 429);
        assert!(number(&refused, "Retry-After") >= 1);
    }
    assert_eq!(
        status(&gateway, "guess-0"),
        429,
        "also one that is known to be none"
    );
    assert_eq!(status(&gateway, "new"), 429, "nor is a good one asked for");
    assert_eq!(status(&gateway, "known"), 200, "what is remembered passes");
    assert_eq!(gets(&redis), 8);
}

#[test]
fn partners_reach_what_is_theirs_on_the_platform_and_nothing_of_users() {
    let redis = Redis::start();
    let backend = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .all_services_at(&backend.url())
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .start();
    gateway.wait_metric("redis_up", |up| up == 1.0);
    store(
        &redis,
        "key",
        json!({"id": "p", "tenant_id": "t", "venues": ["v1"], "permissions": ["*"], "tier": "premium"}),
    );
    let send = |method: &str, path: &str| {
        let request = Request::method(method, path).header("X-API-Key", "key");
        request.send_to(gateway.addr())
    };
    wait_until("keys are found", || {
        send("GET", "/api/v1/events/1").status == 200
    });
    for (method, path) in [
        ("GET", "/api/v1/venues/v1"),
        ("POST", "/api/v1/events"),
        ("GET", "/api/v1/event/1"),
        ("GET", "/api/v1/tickets/1"),
        ("POST", "/api/v1/tickets/validate"),
        ("POST", "/api/v1/tickets/1/validate"),
        ("GET", "/api/v1/search/events"),
        ("GET", "/api/v1/analytics/sales"),
        ("GET", "/api/v1/marketplace/listings"),
        ("GET", "/api/v1/integrations/1"),
    ] {
        assert_eq!(send(method, path).status, 200, "{method} {path}");
    }
    for (method, path) in [
        ("GET", "/api/v1/auth/me"),
        ("POST", "/api/v1/auth/logout"),
        ("POST", "/api/v1/tickets/purchase"),
        ("POST", "/api/v1/payments/process"),
        ("GET", "/api/v1/payments/1"),
        ("GET", "/api/v1/notifications/1"),
        ("GET", "/api/v1/compliance/1"),
        ("GET", "/api/v1/queue/1"),
        ("GET", "/api/v1/files/1"),
        ("GET", "/api/v1/monitoring/1"),
        ("GET", "/api/v1/nft/1"),
    ] {
        let response = send(method, path);
        assert_eq!(response.status, 401, "{method} {path}");
        assert_eq!(response.json()["code"], "AUTH_REQUIRED", "{method} {path}");
    }
}

#[test]
fn look_ups_are_counted_by_their_outcome() {
    let mut redis = Redis::start();
    let (_backend, [gateway]) = start(&redis);
    store(&redis, "key", whole());
    heard(&redis, &gateway);
    let counts = || {
        ["hit", "miss", "unknown", "away"].map(|outcome| {
            gateway.metric(&format!("api_key_lookups_total{{outcome=\"{outcome}\"}}"))
        })
    };
    let ask = |key: &str, wanted: [f64; 4]| {
        let before = counts();
        status(&gateway, key);
        let after = counts();
        let risen: [f64; 4] = std::array::from_fn(|i| after[i] - before[i]);
        assert_eq!(risen, wanted, "{key}");
    };
    ask("key", [0.0, 1.0, 0.0, 0.0]);
    ask("key", [1.0, 0.0, 0.0, 0.0]);
    ask("guess", [0.0, 0.0, 1.0, 0.0]);
    ask("guess", [0.0, 0.0, 1.0, 0.0]);
    ask("in-the-yaml", [0.0; 4]);
    redis.kill();
    gateway.wait_metric("redis_up", |up| up == 0.0);
    ask("key", [1.0, 0.0, 0.0, 0.0]);
    ask("another", [0.0, 0.0, 0.0, 1.0]);
}

fn request(key: &str) -> Request {
    Request::get("/events").header("X-API-Key", key)
}

#[track_caller]
fn status(gateway: &Gateway, key: &str) -> u16 {
    request(key).send_to(gateway.addr()).status
}

/// A record with which a key may do what [`request`] asks for.
fn whole() -> Value {
    json!({"id": "p", "tenant_id": "t", "permissions": ["events:view"]})
}

#[track_caller]
fn store(redis: &Redis, key: &str, record: Value) {
    redis.command(&["SET", &hashed(key), &record.to_string()]);
}

/// Waits until the gateway has heard of everything that was written so far: what it asks for from now on is remembered.
#[track_caller]
fn heard(redis: &Redis, gateway: &Gateway) {
    store(redis, "fence", whole());
    wait_until("the fence is a key", || status(gateway, "fence") == 200);
    redis.command(&["DEL", &hashed("fence")]);
    wait_until("the fence is none", || status(gateway, "fence") == 401);
}

fn hashed(key: &str) -> String {
    format!("apikey:sha256:{}", sha256(key))
}

fn what_key(what: &str) -> String {
    what.replace([' ', ','], "-")
}

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many GETs Redis has answered since its last CONFIG RESETSTAT.
#[track_caller]
fn gets(redis: &Redis) -> usize {
    let stats = redis.command(&["INFO", "commandstats"]);
    let calls = |line: &str| {
        let rest = line.strip_prefix("cmdstat_get:calls=")?;
        rest.split(',').next()?.parse().ok()
    };
    stats.lines().find_map(calls).unwrap_or(0)
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs().try_into().unwrap()
}

#[track_caller]
fn start<const N: usize>(redis: &Redis) -> (Upstream, [Gateway; N]) {
    start_with(redis, |yaml| yaml)
}

/// Gateways on one backend, all of which find keys in Redis. The backend has seen nothing yet.
#[track_caller]
fn start_with<const N: usize>(
    redis: &Redis,
    edit: impl Fn(String) -> String,
) -> (Upstream, [Gateway; N]) {
    // Which connection a request meets is chance: so many in a row leave none out but once in a thousand times.
    const PROBES: usize = 10;
    let backend = Upstream::start();
    let gateways = std::array::from_fn(|_| {
        let gateway = Gateway::with(&edit(yaml(&backend)))
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port())
            .start();
        gateway.wait_metric("redis_up", |up| up == 1.0);
        let mut in_a_row = 0;
        let mut tried = 0;
        wait_until("every connection has found redis", || {
            let key = format!("probe-{tried}");
            tried += 1;
            store(redis, &key, json!({"id": "probe", "tenant_id": "t"}));
            // Found, and not permitted: nothing comes to the backend, and nobody has failed.
            in_a_row = if status(&gateway, &key) == 403 {
                in_a_row + 1
            } else {
                0
            };
            redis.command(&["DEL", &hashed(&key)]);
            in_a_row == PROBES
        });
        gateway
    });
    (backend, gateways)
}

fn yaml(backend: &Upstream) -> String {
    format!(
        r#"
limits:
  flood: {{ per_second: 100000 }}
  rules: {{ few: {{ max: 2, window: 60s }} }}
auth:
  failures: {{ max: 100000, window: 60s }}
  api_keys:
    of-the-yaml: {{ sha256: {}, tenant_id: of-the-yaml, permissions: [] }}
roles: {{ admin: ["*"], customer: ["events:view", "tickets:view-own"] }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes:
  - {{ path: /events, service: backend, auth: token-or-key, permissions: {{ GET: "events:view" }}, limits: [] }}
  - {{ path: /open, service: backend, auth: token-or-key, limits: [] }}
  - {{ path: /limited, service: backend, auth: token-or-key, limits: [few] }}
  - path: /users/{{user}}
    service: backend
    auth: token-or-key
    permissions: {{ GET: "tickets:view" }}
    owner: "{{user}}"
    limits: []
  - path: /mine
    service: backend
    auth: token-or-key
    permissions: {{ GET: "tickets:view" }}
    owner: service
    limits: []
"#,
        sha256("in-the-yaml"),
        backend.url()
    )
}
