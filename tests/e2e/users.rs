//! Who is it that a token speaks of? Asked of auth-service where the token does not say, and remembered (decision 14).

use crate::support::prelude::*;
use crate::support::tenancy::{Platform, audit_lines, fresh_id, knows_redis, owner_of_v1};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A breaker that never speaks, for tests in which auth-service fails on purpose.
const NO_BREAKER: &str = "breaker: { volume: 100000 }";

/// How long a process may take to hear that something changed.
const HEARD: Duration = Duration::from_millis(100);

#[test]
fn a_token_that_says_no_role_is_completed_where_it_matters() {
    let platform = Platform::with_members(&[]);
    knows(
        &platform,
        json!({"role": "customer", "venues": ["v5"], "venueId": "v6"}),
    );
    let gateway = platform.start("");
    let token = nameless("u1");
    let status = |request: Request| request.bearer(&token).send_to(gateway.addr()).status;
    assert_eq!(status(Request::get("/x/y")), 200);
    assert_eq!(platform.auth.count(), 0, "nothing depends on who it is");
    assert_eq!(status(view()), 200);
    assert_eq!(
        status(Request::post("/things/x")),
        403,
        "a customer may only view"
    );
    assert_eq!(
        status(Request::get("/x/y?venueId=v5")),
        200,
        "his by auth-service"
    );
    assert_eq!(status(Request::get("/x/y?venueId=v6")), 200, "his default");
    assert_eq!(platform.auth.count(), 1, "and then he is known");
    assert_eq!(platform.venues.count(), 0);
    assert_eq!(status(Request::get("/x/y?venueId=v7")), 404);
    // Somebody else, whose first question is about a venue.
    let request = Request::get("/x/y?venueId=v5").bearer(&nameless("u2"));
    assert_eq!(request.send_to(gateway.addr()).status, 200);
    assert_eq!(platform.auth.count(), 2);
    let series = |outcome: &str| format!(r#"lookups_total{{outcome="{outcome}",what="user"}}"#);
    assert_eq!(gateway.metric(&series("asked")), 2.0);
    assert!(gateway.metric(&series("memory")) >= 3.0);
}

#[test]
fn a_token_that_says_enough_is_believed() {
    let platform = Platform::with_members(&[]);
    let gateway = platform.start("");
    for (token, status) in [
        (Token::user("u1"), 200),
        (Token::user("u1").role("nobody"), 403),
        (
            Token::user("u1")
                .without("role")
                .claim("permissions", json!(["things:view"])),
            200,
        ),
        (
            Token::user("u1")
                .without("role")
                .claim("permissions", json!(["other:view"])),
            403,
        ),
        (
            Token::user("u1")
                .without("role")
                .claim("permissions", json!([])),
            403,
        ),
    ] {
        let response = view().bearer(&token.hs256()).send_to(gateway.addr());
        assert_eq!(response.status, status, "{}", token.claims());
    }
    assert_eq!(platform.auth.count(), 0);
}

#[test]
fn nobody_is_asked_for_a_token_that_is_none() {
    let platform = Platform::with_members(&[]);
    knows(&platform, json!({"role": "admin"}));
    let gateway =
        platform.start("auth: { users: { lookup: true }, failures: { max: 1000, window: 60s } }");
    let bare = Token::user("u1").without("role");
    for token in [
        bare.signed_with("another-secret-another-secret-another"),
        bare.unsigned_none(),
        bare.clone().expires_in(-100).hs256(),
        bare.clone().without("tenant_id").hs256(),
        bare.clone().claim("iss", "x").hs256(),
        bare.clone().claim("type", "refresh").hs256(),
        "a.b.c".into(),
    ] {
        assert_eq!(view().bearer(&token).send_to(gateway.addr()).status, 401);
    }
    assert_eq!(view().send_to(gateway.addr()).status, 401);
    assert_eq!(
        Request::get("/nowhere")
            .bearer(&bare.hs256())
            .send_to(gateway.addr())
            .status,
        404
    );
    assert_eq!(platform.auth.count(), 0);
}

#[test]
fn the_internal_request_says_for_whom_it_is_and_nothing_of_the_clients() {
    let platform = Platform::with_members(&["t7 v1 u1"]);
    knows(&platform, json!({"tenant_id": "t7", "role": "customer"}));
    let gateway = platform.start("tracing: { enabled: true }");
    let before = unix_millis();
    let id = fresh_id();
    let response = Request::get("/things/x?venueId=v1&secret=s1")
        .bearer(&Token::user("u1").tenant("t7").without("role").hs256())
        .header("X-Request-ID", &id)
        .header("X-API-Key", "a-key")
        .header("X-Tenant-ID", "t9")
        .header("X-Gateway-Forwarded", "false")
        .header("X-Internal-Service", "me")
        .header("Cookie", "a=b")
        .header("User-Agent", "the client's")
        .header("Accept-Language", "de")
        .header("If-None-Match", "\"x\"")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        .send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    let user = platform.auth.requests();
    let member = platform.venues.requests();
    assert_eq!((user.len(), member.len()), (1, 1));
    for (asked, target, upstream) in [
        (&user[0], "/internal/users/u1", &platform.auth),
        (
            &member[0],
            "/internal/venues/v1/members/u1",
            &platform.venues,
        ),
    ] {
        assert_eq!(
            (&*asked.method, &*asked.target, &*asked.version),
            ("GET", target, "HTTP/1.1")
        );
        let value = |name: &str| {
            asked
                .header(name)
                .unwrap_or_else(|| panic!("no {name}: {asked:?}"))
        };
        assert_eq!(value("Host"), upstream.addr().to_string());
        assert_eq!(value("X-Request-ID"), id);
        assert_eq!(value("X-Tenant-ID"), "t7");
        assert_eq!(value("X-Tenant-Source"), "jwt");
        assert_eq!(value("X-Gateway-Forwarded"), "true");
        let trace = value("traceparent");
        assert!(
            trace.starts_with("00-0af7651916cd43dd8448eb211c80319c-"),
            "{trace}"
        );
        let deadline: u128 = value("X-Request-Deadline").parse().unwrap();
        assert!(
            (before + 1..=unix_millis() + 2000).contains(&deadline),
            "{deadline}"
        );
        let known = [
            "host",
            "x-request-id",
            "x-tenant-id",
            "x-tenant-source",
            "x-gateway-forwarded",
            "x-request-deadline",
            "traceparent",
        ];
        // What any client of HTTP may say of itself.
        let harmless = ["accept", "user-agent", "connection", "accept-encoding"];
        for (name, value) in &asked.headers {
            let name = name.to_ascii_lowercase();
            assert!(
                known.contains(&&*name) || harmless.contains(&&*name),
                "{name}: {value}"
            );
            for secret in [
                "the client's",
                "a-key",
                "Bearer",
                "eyJ",
                "a=b",
                "s1",
                "t9",
                "de",
            ] {
                assert!(
                    known.contains(&&*name) || !value.contains(secret),
                    "{name}: {value}"
                );
            }
        }
        assert!(asked.body.is_empty());
    }
    let id = fresh_id();
    let plain = Platform::with_members(&[]);
    knows(&plain, json!({"role": "customer"}));
    let gateway = plain.start("");
    let request = view().bearer(&nameless("u1")).header("X-Request-ID", &id);
    assert_eq!(request.send_to(gateway.addr()).status, 200);
    assert_eq!(
        plain.auth.requests()[0].header_count("traceparent"),
        0,
        "tracing is off"
    );
}

#[test]
fn whatever_a_user_is_called_it_stays_one_segment() {
    let platform = Platform::with_members(&[]);
    platform.auth.set(|_| Reply::status(404));
    let gateway = platform.start("auth: { failures: { max: 100000, window: 60s } }");
    let names = [
        ("a/b", Some("a%2Fb")),
        ("a b", Some("a%20b")),
        ("a?b=c", Some("a%3Fb%3Dc")),
        ("a#b", Some("a%23b")),
        ("a%2fb", Some("a%252fb")),
        ("ü", Some("%C3%BC")),
        ("a\r\nX-Tenant-ID: t2", None),
        ("a\u{0}b", None),
        ("../admin", None),
        ("..", None),
        (".", None),
        ("%2e%2e", None),
        ("a\\b", None),
        ("user-1_x~y.z", Some("user-1_x~y.z")),
        ("auth0|5f7c", Some("auth0%7C5f7c")),
        ("me@example.test", None),
    ];
    for (name, segment) in names {
        let before = platform.auth.count();
        let status = view()
            .bearer(&nameless(name))
            .send_to(gateway.addr())
            .status;
        assert_eq!(status, 401, "{name:?}");
        let asked = platform.auth.requests().split_off(before);
        for asked in &asked {
            let target = asked.target.strip_prefix("/internal/users/");
            let target = target.unwrap_or_else(|| panic!("{name:?}: {}", asked.target));
            let decoded = target.to_ascii_lowercase().replace("%2e", ".");
            assert!(!matches!(&*decoded, "" | "." | ".."), "{name:?}: {target}");
            assert!(
                !target.contains(['/', '?', '#', '\\']),
                "{name:?}: {target}"
            );
            assert_eq!(asked.headers_named("X-Tenant-ID"), ["t1"]);
        }
        let targets: Vec<&str> = asked.iter().map(|one| one.target.as_str()).collect();
        let wanted = segment.map(|segment| format!("/internal/users/{segment}"));
        match (wanted, targets.as_slice()) {
            // Who is called so has no good token.
            (_, []) => {}
            (Some(wanted), [target]) => assert!(target.eq_ignore_ascii_case(&wanted), "{target}"),
            (None, [_]) => {}
            (_, many) => panic!("{name:?}: {many:?}"),
        }
    }
    assert!(platform.auth.count() >= 5);
}

#[test]
fn with_lookup_every_user_is_asked_for_and_the_answer_wins() {
    let platform = Platform::with_members(&[]);
    knows(
        &platform,
        json!({"role": "customer", "permissions": ["things:edit"], "venues": ["v5"]}),
    );
    let gateway = platform.start("auth: { users: { lookup: true } }");
    let admin = Token::user("u1")
        .role("admin")
        .claim("permissions", json!(["*"]))
        .claim("venues", json!(["v1"]))
        .claim("venueId", "v2");
    let status = |request: Request| {
        request
            .bearer(&admin.hs256())
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(Request::get("/x/y")), 200);
    assert_eq!(
        platform.auth.count(),
        1,
        "for every token, whatever the route asks"
    );
    assert_eq!(status(Request::get("/x/y?venueId=v5")), 200);
    for venue in ["v1", "v2", "v9"] {
        let request = Request::get(&format!("/x/y?venueId={venue}"));
        assert_eq!(status(request), 404, "{venue}: no admin any more");
    }
    assert_eq!(status(view()), 200, "by the role");
    assert_eq!(
        status(Request::post("/things/x")),
        200,
        "by the permissions"
    );

    knows(&platform, json!({"role": "customer", "permissions": []}));
    let other = Token::user("u2")
        .role("admin")
        .claim("permissions", json!(["*"]))
        .hs256();
    let request = Request::post("/things/x").bearer(&other);
    assert_eq!(request.send_to(gateway.addr()).status, 403);
}

#[test]
fn who_is_unknown_inactive_or_of_another_tenant_has_no_good_token() {
    let platform = Platform::with_members(&["t1 v1 u1"]);
    let gateway =
        platform.start("auth: { users: { life: 1s }, failures: { max: 100000, window: 60s } }");
    let replies = [
        ("unknown", Value::Null),
        ("inactive", json!({"role": "admin", "active": false})),
        (
            "another tenant's",
            json!({"role": "admin", "tenant_id": "t2"}),
        ),
        (
            "of a tenant of a longer name",
            json!({"role": "admin", "tenant_id": "t1x"}),
        ),
        ("of no tenant", json!({"role": "admin", "tenant_id": ""})),
    ];
    for (number, (what, reply)) in replies.into_iter().enumerate() {
        platform.auth.set(move |asked| match &reply {
            Value::Null => Reply::status(404),
            fields => user(asked, fields),
        });
        let name = format!("u-{number}");
        for request in [view(), Request::get("/x/y?venueId=v1")] {
            let id = fresh_id();
            let request = request.bearer(&nameless(&name)).header("X-Request-ID", &id);
            let response = request.send_to(gateway.addr());
            assert_eq!(response.status, 401, "{what}");
            assert_eq!(response.json()["code"], "INVALID_TOKEN", "{what}");
            assert!(response.header("WWW-Authenticate").is_some(), "{what}");
            gateway.access_line(&id);
            let lines = audit_lines(&gateway, &id);
            assert_eq!(lines.len(), 1, "{what}: {lines:?}");
            assert_eq!(lines[0]["event"], "authentication_failed", "{what}");
        }
    }
    assert_eq!(platform.backend.heads_seen(), 0);
    assert_eq!(platform.venues.count(), 0);
}

#[test]
fn an_answer_that_is_none_is_503_and_never_a_yes() {
    let platform = Platform::with_members(&[]);
    let good = json!({"id": "u1", "tenant_id": "t1", "role": "admin", "permissions": ["*"], "active": true});
    let large =
        json!({"id": "u1", "tenant_id": "t1", "role": "admin", "filler": "x".repeat(70_000)});
    let text = |body: &str| {
        Reply::status(200)
            .header("Content-Type", "application/json")
            .body(body)
    };
    let user = |fields: Value| {
        let mut user = good.clone();
        for (name, value) in fields.as_object().unwrap() {
            user[name] = value.clone();
        }
        Reply::json(user)
    };
    let replies = vec![
        ("500", Reply::status(500)),
        ("502", Reply::status(502)),
        ("401", Reply::status(401)),
        ("403", Reply::status(403)),
        ("400", Reply::status(400)),
        ("429", Reply::status(429)),
        ("204", Reply::status(204)),
        ("201 with a user", Reply::status(201).body(good.to_string())),
        ("203 with a user", Reply::status(203).body(good.to_string())),
        ("206 with a user", Reply::status(206).body(good.to_string())),
        ("302", Reply::status(302).header("Location", "/internal/users/a1")),
        ("an empty body", text("")),
        ("no JSON", text("<html>")),
        ("a list", Reply::json(json!([good]))),
        ("a text", text("\"admin\"")),
        ("null", text("null")),
        ("without a tenant", Reply::json(json!({"id": "u1", "role": "admin"}))),
        ("a tenant of null", Reply::json(json!({"id": "u1", "tenant_id": null, "role": "admin"}))),
        ("a tenant that is a number", Reply::json(json!({"id": "u1", "tenant_id": 1, "role": "admin"}))),
        ("a role that is a list", user(json!({"role": ["admin"]}))),
        ("permissions that are a text", user(json!({"permissions": "*"}))),
        ("active as a text", user(json!({"active": "false"}))),
        ("two tenants", text(r#"{"id":"u1","tenant_id":"t2","tenant_id":"t1","role":"admin"}"#)),
        ("two documents", text(r#"{"id":"u1","tenant_id":"t1","role":"admin"} {}"#)),
        ("half a document", text(r#"{"id":"u1","tenant_id":"t1","role":"admin""#)),
        ("more than 64 KiB", Reply::json(large.clone())),
        (
            "more than 64 KiB in chunks",
            Reply::status(200).chunked(large.to_string().as_bytes().chunks(1000).map(<[u8]>::to_vec).collect()),
        ),
        (
            "cut",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"tenant_id\":\"t1\",\"role\":\"admin\"}").then_close(),
        ),
        (
            "cut in chunks",
            Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n22\r\n{\"tenant_id\":\"t1\",\"role\":\"admin\"}\r\n").then_close(),
        ),
        ("garbage", Reply::raw("hello\r\n\r\n").then_close()),
        ("a reset", Reply::reset()),
        ("somebody else", user(json!({"id": "a1", "role": "admin"}))),
    ];
    for (what, reply) in replies {
        platform.auth.set(move |_| reply.clone());
        let gateway = platform.start(NO_BREAKER);
        for request in [view(), Request::get("/x/y?venueId=v1")] {
            let response = request.bearer(&nameless("u1")).send_to(gateway.addr());
            if what == "somebody else" {
                assert!([401, 503].contains(&response.status), "{}", response.status);
                continue;
            }
            assert_eq!(response.status, 503, "{what}");
            assert_eq!(response.json()["code"], "SERVICE_UNAVAILABLE", "{what}");
            let message = "Service unavailable: auth-service";
            assert_eq!(response.json()["message"], message, "{what}");
            assert!(number(&response, "Retry-After") >= 1, "{what}");
        }
        let failed = gateway.metric(r#"lookups_total{outcome="failed",what="user"}"#);
        assert!(failed >= 1.0 || what == "somebody else", "{what}");
        let other = view().bearer(&Token::user("u3").hs256());
        assert_eq!(
            other.send_to(gateway.addr()).status,
            200,
            "{what}: who says his role"
        );
    }
    assert!(
        platform
            .backend
            .requests()
            .iter()
            .all(|one| one.path() == "/things/x")
    );
}

#[test]
fn an_interim_answer_is_not_the_answer() {
    let platform = Platform::with_members(&[]);
    let body = json!({"id": "u1", "tenant_id": "t1", "role": "customer"}).to_string();
    let user = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let no = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
    ] {
        let gateway = platform.start(NO_BREAKER);
        let said = Reply::raw(format!("{interim}{interim}{user}"));
        platform.auth.set(move |_| said.clone());
        let said = Reply::raw(format!("{interim}{no}"));
        platform.venues.set(move |_| said.clone());
        for _ in 0..2 {
            let response = view().bearer(&nameless("u1")).send_to(gateway.addr());
            assert_eq!(response.status, 200, "{interim}");
            let venue = Request::get("/x/y?venueId=v3").bearer(&token::customer());
            assert_eq!(venue.send_to(gateway.addr()).status, 404, "{interim}");
        }
        assert!(!gateway.raw_output().contains("panicked"), "{interim}");
    }
}

#[test]
fn what_stands_behind_an_answer_is_not_the_next_one() {
    let platform = Platform::with_members(&[]);
    let yes = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let token = Token::user("u1").hs256();
    for answer in [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ] {
        let gateway = platform.start(NO_BREAKER);
        let said = Reply::raw(format!("{answer}{yes}"));
        platform
            .venues
            .set(move |asked| match asked.target.contains("/w0/") {
                true => said.clone(),
                false => Reply::status(404),
            });
        for venue in ["w0", "w1", "w2", "w3"] {
            let request = Request::get(&format!("/x/y?venueId={venue}")).bearer(&token);
            let status = request.send_to(gateway.addr()).status;
            assert!(
                [404, 503].contains(&status),
                "{answer}: {status} for {venue}"
            );
        }
        assert!(!gateway.raw_output().contains("panicked"), "{answer}");
    }
    assert_eq!(platform.backend.heads_seen(), 0);
}

#[test]
fn without_auth_service_a_token_without_role_has_none() {
    let platform = Platform::with_members(&[]);
    let gateway = Gateway::with(&platform.yaml(&[], &[], "")).start();
    let status = |request: Request| {
        request
            .bearer(&nameless("u1"))
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(view()), 403);
    assert_eq!(status(Request::get("/x/y")), 200);
    assert_eq!(status(Request::get("/x/y?venueId=v1")), 404);
}

#[test]
fn fifty_at_once_ask_once() {
    let platform = Platform::with_members(&["t1 v3 u2"]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start("");
    platform.auth.hold();
    platform.venues.hold();
    let users: Vec<Request> = (0..50).map(|_| view().bearer(&nameless("u1"))).collect();
    let member = Token::user("u2").hs256();
    let members: Vec<Request> = (0..50)
        .map(|i| match i % 2 {
            0 => Request::get("/x/y?venueId=v3"),
            _ => Request::post("/x/y").json(&json!({"venueId": "v3"})),
        })
        .map(|request| request.bearer(&member))
        .collect();
    let addr = gateway.addr();
    let answers = thread::scope(|scope| {
        let bursts = [users, members].map(|all| scope.spawn(move || burst(addr, all, 50)));
        platform.auth.wait_requests(1);
        platform.venues.wait_requests(1);
        // All of them are under way: the gateway counts them.
        wait_until("a hundred are under way", || under_way(&gateway) >= 100.0);
        assert_eq!(
            (platform.auth.heads_seen(), platform.venues.heads_seen()),
            (1, 1)
        );
        platform.auth.release();
        platform.venues.release();
        bursts.map(|burst| burst.join().unwrap()).concat()
    });
    assert_eq!(answers.len(), 100);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(
        (platform.auth.heads_seen(), platform.venues.heads_seen()),
        (1, 1)
    );
    assert_eq!(platform.backend.count(), 100);
}

#[test]
fn fifty_at_once_share_a_failure_and_the_next_one_asks_anew() {
    let platform = Platform::with_members(&[]);
    platform.auth.set(|_| Reply::status(403));
    let gateway = platform.start(NO_BREAKER);
    platform.auth.hold();
    let users: Vec<Request> = (0..50).map(|_| view().bearer(&nameless("u1"))).collect();
    let addr = gateway.addr();
    let answers = thread::scope(|scope| {
        let sent = scope.spawn(|| burst(addr, users, 50));
        wait_until("fifty are under way", || under_way(&gateway) >= 50.0);
        platform.auth.release();
        sent.join().unwrap()
    });
    assert!(answers.iter().all(|answer| answer.status == 503));
    assert!(
        platform.auth.heads_seen() <= 3,
        "{}",
        platform.auth.heads_seen()
    );
    knows(&platform, json!({"role": "customer"}));
    let next = view().bearer(&nameless("u1"));
    let asked_anew = within(Duration::from_secs(1), || {
        (next.send_to(gateway.addr()).status == 200).then_some(())
    });
    assert!(asked_anew.is_some(), "a failure is remembered");
}

#[test]
fn two_of_the_same_id_in_two_tenants_do_not_share_a_question() {
    let redis = Redis::start();
    let platform = Platform::with_members(&[]);
    platform
        .auth
        .set(|asked| match asked.header("X-Tenant-ID") {
            Some("t1") => user(asked, &json!({"role": "customer"})),
            _ => user(asked, &json!({"tenant_id": "t2", "role": "admin"})),
        });
    let gateway = platform.start_on(&redis, "");
    platform.auth.hold();
    let of = |tenant: &str| Token::user("u1").tenant(tenant).without("role").hs256();
    let edit = |tenant: &str| Request::post("/things/x").bearer(&of(tenant));
    let requests: Vec<Request> = (0..40).map(|i| edit(["t1", "t2"][i % 2])).collect();
    let addr = gateway.addr();
    let answers = thread::scope(|scope| {
        let sent = scope.spawn(|| burst(addr, requests, 40));
        platform.auth.wait_requests(2);
        wait_until("forty are under way", || under_way(&gateway) >= 40.0);
        platform.auth.release();
        sent.join().unwrap()
    });
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.status, [403, 200][number % 2], "{number}");
    }
    // One after the other: who came last has the key in Redis, and the other one is not taken for him.
    for _ in 0..3 {
        assert_eq!(edit("t1").send_to(addr).status, 403);
        assert_eq!(edit("t2").send_to(addr).status, 200);
        redis.command(&["PUBLISH", "cache:forget", "session:user:u1"]);
    }
}

#[test]
fn what_one_process_has_asked_another_reads_from_redis() {
    let redis = Redis::start();
    let platform = Platform::with_members(&[]);
    knows(&platform, json!({"role": "customer", "venues": ["v5"]}));
    let [a, b] = [0, 1].map(|_| platform.start_on(&redis, ""));
    for gateway in [&a, &b, &a, &b] {
        assert_eq!(
            view()
                .bearer(&nameless("u1"))
                .send_to(gateway.addr())
                .status,
            200
        );
        let venue = Request::get("/x/y?venueId=v5").bearer(&nameless("u1"));
        assert_eq!(venue.send_to(gateway.addr()).status, 200);
    }
    assert_eq!(platform.auth.count(), 1);
    assert_eq!(
        a.metric(r#"lookups_total{outcome="asked",what="user"}"#),
        1.0
    );
    assert_eq!(
        b.metric(r#"lookups_total{outcome="redis",what="user"}"#),
        1.0
    );
    let value: Value = serde_json::from_str(&redis.command(&["GET", "session:user:u1"])).unwrap();
    assert_eq!(value["tenant_id"], "t1");
    let left: i64 = redis.command(&["TTL", "session:user:u1"]).parse().unwrap();
    assert!((800..=900).contains(&left), "{left}");
    let keys = redis.command(&["DBSIZE"]);
    assert_eq!(keys, "1", "nothing else was written");
}

#[test]
fn a_user_is_asked_for_again_when_his_time_is_over() {
    let redis = Redis::start();
    let platform = Platform::with_members(&["t1 v3 u1"]);
    knows(&platform, json!({"role": "customer"}));
    let settings = "auth: { users: { life: 1s } }\ntenancy: { life: 1s, life_of_no: 1s }";
    let gateway = platform.start_on(&redis, settings);
    let started = Instant::now();
    let status = |request: Request| {
        request
            .bearer(&nameless("u1"))
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(
        [status(view()), status(Request::get("/x/y?venueId=v3"))],
        [200, 200]
    );
    for key in ["session:user:u1", "cache:venue:member:v3:u1"] {
        let left: i64 = redis.command(&["PTTL", key]).parse().unwrap();
        assert!(left <= 1000 && left != -1, "{key}: {left}");
    }
    platform.auth.set(|_| Reply::status(404));
    let forgotten = within(Duration::from_secs(5), || {
        (status(view()) == 401).then(|| started.elapsed())
    });
    let forgotten = forgotten.expect("he is remembered for ever");
    assert!(forgotten >= Duration::from_millis(900), "{forgotten:?}");
    // What was read from Redis is not remembered for its whole life once more.
    assert!(forgotten < Duration::from_millis(1900), "{forgotten:?}");

    // The same for a venue: from yes to no.
    knows(&platform, json!({"role": "customer"}));
    platform.venues.set(|_| Reply::status(404));
    let gone = within(Duration::from_secs(5), || {
        let token = Token::user("u1").hs256();
        let request = Request::get("/x/y?venueId=v3").bearer(&token);
        (request.send_to(gateway.addr()).status == 404).then_some(())
    });
    assert!(gone.is_some(), "a membership is remembered for ever");
}

#[test]
fn what_is_read_from_redis_lives_no_longer_than_it_does_there() {
    let redis = Redis::start();
    let platform = Platform::with_members(&["t1 v3 u1"]);
    let [a, b] = [0, 1].map(|_| platform.start_on(&redis, "tenancy: { life: 3s }"));
    let status = |gateway: &Gateway| {
        let request = Request::get("/x/y?venueId=v3").bearer(&Token::user("u1").hs256());
        request.send_to(gateway.addr()).status
    };
    let asked = Instant::now();
    assert_eq!(status(&a), 200);
    platform.venues.set(|_| Reply::status(404));
    wait_until("the key is about to go", || {
        redis
            .command(&["PTTL", "cache:venue:member:v3:u1"])
            .parse::<i64>()
            .unwrap()
            < 1000
    });
    status(&b);
    let gone = within(Duration::from_secs(10), || {
        (status(&b) == 404).then(|| asked.elapsed())
    });
    let gone = gone.expect("for ever");
    assert!(
        gone < Duration::from_millis(4200),
        "two lives one after the other: {gone:?}"
    );
}

#[test]
fn every_process_forgets_within_a_tenth_of_a_second() {
    let _alone = alone();
    let redis = Redis::start();
    let platform = Platform::with_members(&[]);
    let gateways = [0, 1, 2].map(|_| platform.start_on(&redis, ""));
    let (good, bad) = (Arc::new(AtomicUsize::new(0)), 1);
    let state = Arc::clone(&good);
    platform
        .auth
        .set(move |asked| match state.load(Ordering::SeqCst) {
            0 => user(asked, &json!({"role": "customer"})),
            _ => user(asked, &json!({"role": "customer", "active": false})),
        });
    let state = Arc::clone(&good);
    platform
        .venues
        .set(move |_| match state.load(Ordering::SeqCst) {
            0 => Reply::status(200),
            _ => Reply::status(404),
        });
    let user = || view().bearer(&nameless("u1"));
    let member = || Request::get("/x/y?venueId=v3").bearer(&Token::user("u2").hs256());
    for (key, request, refused) in [
        ("session:user:u1", user(), 401),
        ("cache:venue:member:v3:u2", member(), 404),
    ] {
        for round in 0..5 {
            good.store(0, Ordering::SeqCst);
            redis.command(&["PUBLISH", "cache:forget", key]);
            for gateway in &gateways {
                let well = within(Duration::from_secs(2), || {
                    (request.send_to(gateway.addr()).status == 200).then_some(())
                });
                assert!(well.is_some(), "{key}, round {round}");
                assert_eq!(request.send_to(gateway.addr()).status, 200);
            }
            good.store(bad, Ordering::SeqCst);
            let told = Instant::now();
            let heard = redis.command(&["PUBLISH", "cache:forget", key]);
            assert_eq!(heard, "3", "every process listens");
            thread::scope(|scope| {
                for gateway in &gateways {
                    let request = &request;
                    scope.spawn(move || {
                        let gone = within(Duration::from_secs(2), || {
                            (request.send_to(gateway.addr()).status == refused)
                                .then(|| told.elapsed())
                        });
                        let gone = gone.unwrap_or_else(|| panic!("{key} is not forgotten"));
                        assert!(gone < HEARD, "{key}, round {round}: {gone:?}");
                    });
                }
            });
        }
    }
    redis.command(&["SET", "session:user:u9", "x"]);
    redis.command(&["SET", "rl:user:u9", "x"]);
    redis.command(&["PUBLISH", "cache:forget", "session:user:u9"]);
    redis.command(&["PUBLISH", "cache:forget", "rl:user:u9"]);
    wait_until("the key is removed", || {
        redis.command(&["EXISTS", "session:user:u9"]) == "0"
    });
    assert_eq!(
        redis.command(&["EXISTS", "rl:user:u9"]),
        "1",
        "only caches can be told to go"
    );
}

#[test]
fn an_answer_on_its_way_when_its_user_is_forgotten_is_not_remembered() {
    let redis = Redis::start();
    let platform = Platform::with_members(&[]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start_on(&redis, "");
    let status = |name: &str| {
        view()
            .bearer(&nameless(name))
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status("known"), 200);
    platform.auth.hold();
    let addr = gateway.addr();
    let ask = |name: &str| {
        let mut connection = Client::to(addr).connect();
        connection.send(&view().bearer(&nameless(name)).bytes());
        connection
    };
    let mut first = ask("u1");
    platform.auth.wait_requests(2);
    // What is under way is an answer of before the change.
    redis.command(&["PUBLISH", "cache:forget", "session:user:u1"]);
    redis.command(&["PUBLISH", "cache:forget", "session:user:known"]);
    // Both are heard in order: when the second is forgotten, so is the first.
    let mut others = Vec::new();
    let heard = within(Duration::from_secs(3), || {
        others.push(ask("known"));
        thread::sleep(Duration::from_millis(20));
        let targets = platform.auth.requests();
        (targets
            .iter()
            .filter(|one| one.target.ends_with("/known"))
            .count()
            > 1)
        .then_some(())
    });
    assert!(heard.is_some());
    platform.auth.release();
    first.read_response();
    others
        .iter_mut()
        .for_each(|other| drop(other.read_response()));
    platform.auth.set(|_| Reply::status(404));
    assert_eq!(status("u1"), 401, "the answer of before was kept");
}

#[test]
fn changes_of_others_do_not_make_those_who_wait_ask_one_by_one() {
    let redis = Redis::start();
    let platform = Platform::with_members(&[]);
    platform
        .auth
        .set(|asked| user(asked, &json!({"role": "customer"})).delay(Duration::from_millis(50)));
    let gateway = platform.start_on(&redis, "");
    let users: Vec<Request> = (0..50).map(|_| view().bearer(&nameless("u1"))).collect();
    let addr = gateway.addr();
    let answers = thread::scope(|scope| {
        let sent = scope.spawn(|| burst(addr, users, 50));
        // Somebody imports users.
        while !sent.is_finished() {
            redis.command(&["PUBLISH", "cache:forget", "session:user:somebody-else"]);
        }
        sent.join().unwrap()
    });
    assert!(answers.iter().all(|answer| answer.status == 200));
    let asked = platform.auth.count();
    assert!(asked <= 10, "{asked} questions about one user");
}

#[test]
fn what_stands_in_redis_for_another_tenant_or_in_another_form_is_asked_anew() {
    let redis = Redis::start();
    let platform = Platform::with_members(&[]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start_on(&redis, "");
    let until = unix_millis() / 1000 + 500;
    let poison = [
        r#"{"id":"ID","tenant_id":"t2","role":"admin","permissions":["*"],"since":1,"until":UNTIL}"#,
        r#"{"id":"u1","tenant_id":"t1","role":"admin","since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","role":"admin","since":1,"until":UNTIL}"#,
        r#"{"id":"ID","role":"admin","since":1,"until":UNTIL}"#,
        r#"{"id":"ID","tenant_id":null,"role":"admin","since":1,"until":UNTIL}"#,
        r#"{"id":"ID","tenant_id":["t1"],"role":"admin","since":1,"until":UNTIL}"#,
        r#"{"id":"ID","tenant_id":"","role":"admin","since":1,"until":UNTIL}"#,
        r#"{"id":"ID","tenant_id":"t1","role":["admin"],"since":1,"until":UNTIL}"#,
        r#"{"id":"ID","tenant_id":"t1","permissions":"*","since":1,"until":UNTIL}"#,
        r#"{"id":"ID","tenant_id":"t2","tenant_id":"t1","role":"admin","since":1,"until":UNTIL}"#,
        r#"[{"id":"ID","tenant_id":"t1","role":"admin","since":1,"until":UNTIL}]"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin","since":1,"until":UNTIL} x"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin","since":1,"until":UNTIL"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin"}"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin","since":1,"until":1}"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin","until":99999999999}"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin","until":-1}"#,
        r#"{"id":"ID","tenant_id":"t1","role":"admin","until":18446744073709551615}"#,
        "admin",
        "",
        "null",
    ];
    for (number, value) in poison.iter().enumerate() {
        let name = format!("u-{number}");
        let value = value
            .replace("ID", &name)
            .replace("UNTIL", &until.to_string());
        redis.command(&["SET", &format!("session:user:{name}"), &value]);
        let edit = Request::post("/things/x").bearer(&nameless(&name));
        assert_eq!(edit.send_to(gateway.addr()).status, 403, "{value}");
        assert_eq!(platform.auth.count(), number + 1, "{value}");
    }
    // The form in which it would be believed.
    let good = r#"{"id":"good","tenant_id":"t1","role":"admin","since":1,"until":UNTIL}"#;
    let good = good.replace("UNTIL", &until.to_string());
    redis.command(&["SET", "session:user:good", &good]);
    let edit = Request::post("/things/x").bearer(&nameless("good"));
    assert_eq!(edit.send_to(gateway.addr()).status, 200);
    redis.command(&["RPUSH", "session:user:list", "x"]);
    assert_eq!(
        view()
            .bearer(&nameless("list"))
            .send_to(gateway.addr())
            .status,
        200
    );
    let longest = redis.command(&["TTL", "session:user:u-0"]);
    assert!(
        longest.parse::<i64>().unwrap() > 0,
        "what was put right goes by itself"
    );
}

#[test]
fn while_redis_is_away_a_process_goes_on_from_its_own_memory() {
    let mut redis = Redis::start();
    let platform = Platform::with_members(&["t1 v3 u1"]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start_on(&redis, "");
    let status = |name: &str| {
        view()
            .bearer(&nameless(name))
            .send_to(gateway.addr())
            .status
    };
    let venue = || {
        let request = Request::get("/x/y?venueId=v3").bearer(&Token::user("u1").hs256());
        request.send_to(gateway.addr()).status
    };
    assert_eq!([status("u1"), venue()], [200, 200]);
    redis.kill();
    wait_until("/ready says so", || redis_state(&gateway) == "degraded");
    let asked = (platform.auth.count(), platform.venues.count());
    let before = Instant::now();
    for _ in 0..20 {
        assert_eq!([status("u1"), venue()], [200, 200]);
    }
    assert_eq!(
        (platform.auth.count(), platform.venues.count()),
        asked,
        "he is known"
    );
    assert_eq!([status("u2"), status("u2"), status("u3")], [200; 3]);
    assert_eq!(platform.auth.count(), asked.0 + 2, "once each");
    assert!(
        before.elapsed() < Duration::from_secs(3),
        "{:?}",
        before.elapsed()
    );
    redis.restart();
    knows_redis(&gateway);
    let kept = within(Duration::from_secs(5), || {
        assert_eq!(status("u4"), 200);
        redis.command(&["PUBLISH", "cache:forget", "session:user:u4"]);
        assert_eq!(status("u5"), 200);
        (redis.command(&["EXISTS", "session:user:u5"]) == "1")
            .then_some(())
            .or_else(|| {
                redis.command(&["PUBLISH", "cache:forget", "session:user:u5"]);
                None
            })
    });
    assert!(kept.is_some(), "it is not written again");
}

#[test]
fn what_was_changed_while_redis_was_away_is_not_remembered_from_before() {
    let mut redis = Redis::start();
    let platform = Platform::with_members(&[]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start_on(&redis, "");
    let status = || {
        view()
            .bearer(&nameless("u1"))
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(), 200);
    redis.kill();
    wait_until("/ready says so", || redis_state(&gateway) == "degraded");
    // Whoever changed him now could tell nobody.
    platform.auth.set(|_| Reply::status(404));
    redis.restart();
    let heard = within(Duration::from_secs(5), || (status() == 401).then_some(()));
    assert!(heard.is_some(), "what was missed is remembered still");
}

#[test]
fn a_redis_that_is_silent_costs_no_request_more_than_a_moment() {
    let _alone = alone();
    let redis = Redis::start();
    let platform = Platform::with_members(&["t1 v3 u1"]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start_on(&redis, "");
    assert_eq!(
        view()
            .bearer(&nameless("u0"))
            .send_to(gateway.addr())
            .status,
        200
    );
    redis.freeze();
    for number in 0..40 {
        let before = Instant::now();
        let name = format!("u{}", number / 2);
        assert_eq!(
            view()
                .bearer(&nameless(&name))
                .send_to(gateway.addr())
                .status,
            200
        );
        let request = Request::get("/x/y?venueId=v3").bearer(&Token::user("u1").hs256());
        assert_eq!(request.send_to(gateway.addr()).status, 200);
        let took = before.elapsed();
        assert!(took < Duration::from_millis(600), "{number}: {took:?}");
    }
    redis.thaw();
    knows_redis(&gateway);
    assert_eq!(
        view()
            .bearer(&nameless("u0"))
            .send_to(gateway.addr())
            .status,
        200
    );
}

#[test]
fn a_service_that_hangs_costs_its_time_out_then_the_breaker_opens_and_others_do_not_notice() {
    let platform = Platform::with_members(&[]);
    platform.auth.set(|_| Reply::hang());
    platform.venues.set(|_| Reply::hang());
    let settings = "auth: { users: { timeout: 400ms } }\n\
        tenancy: { timeout: 400ms }\n\
        breaker: { volume: 4, error_percent: 50, reset: 60s }";
    let gateway = platform.start(settings);
    for (what, service) in [("user", "auth-service"), ("member", "venue-service")] {
        let ask = |number: usize| {
            let request = match what {
                "user" => view().bearer(&nameless(&format!("u{number}"))),
                _ => Request::get(&format!("/x/y?venueId=w{number}")).bearer(&token::customer()),
            };
            let before = Instant::now();
            let response = request.send_to(gateway.addr());
            assert_eq!(response.status, 503, "{what} {number}");
            assert_eq!(
                response.json()["message"],
                format!("Service unavailable: {service}")
            );
            assert!(number_of_seconds(&response) >= 1);
            before.elapsed()
        };
        let first = ask(0);
        assert!(
            (350..1400).contains(&first.as_millis()),
            "{what}: {first:?}"
        );
        let opened = (1..20)
            .map(ask)
            .position(|took| took < Duration::from_millis(100));
        let opened = opened.unwrap_or_else(|| panic!("{what}: the breaker never opens"));
        println!("{what}: at once from the {}th on", opened + 2);
        for number in 100..110 {
            let took = ask(number);
            assert!(took < Duration::from_millis(100), "{what}: {took:?}");
        }
        assert_eq!(
            gateway.metric(&format!(r#"circuit_breaker_state{{service="{service}"}}"#)),
            1.0
        );
    }
    let owner = owner_of_v1().hs256();
    for request in [
        view(),
        Request::get("/x/y?venueId=v1"),
        Request::get("/api/v1/venues/v2"),
    ] {
        let before = Instant::now();
        assert_eq!(request.bearer(&owner).send_to(gateway.addr()).status, 200);
        assert!(before.elapsed() < Duration::from_millis(300));
    }
}

#[test]
fn the_clients_own_deadline_holds_for_questions_too() {
    let platform = Platform::with_members(&[]);
    platform.auth.set(|_| Reply::hang());
    let gateway = platform.start("auth: { users: { timeout: 5s } }");
    let deadline = (unix_millis() + 500).to_string();
    let before = Instant::now();
    let request = view()
        .bearer(&nameless("u1"))
        .header("X-Request-Deadline", &deadline);
    let status = request.send_to(gateway.addr()).status;
    assert!([503, 504].contains(&status), "{status}");
    assert!(
        before.elapsed() < Duration::from_millis(1500),
        "{:?}",
        before.elapsed()
    );
}

#[test]
fn an_instance_that_fails_is_not_the_last_that_is_asked() {
    let platform = Platform::with_members(&[]);
    let good = |asked: &Recorded| user(asked, &json!({"role": "customer"}));
    let bad: Vec<(&str, Reply)> = vec![
        ("503", Reply::status(503)),
        ("500", Reply::status(500)),
        ("a reset", Reply::reset()),
        ("closed", Reply::raw("").then_close()),
    ];
    for (what, reply) in bad {
        let fleet = [
            Upstream::start_with(move |_| reply.clone()),
            Upstream::start_with(good),
        ];
        let urls: Vec<String> = fleet.iter().map(Upstream::url).collect();
        let yaml = platform.yaml(
            &urls,
            &[],
            &format!("{NO_BREAKER}\nretry: {{ budget_min: 1000 }}"),
        );
        let gateway = Gateway::with(&yaml).start();
        for number in 0..10 {
            let request = view().bearer(&nameless(&format!("u{number}")));
            assert_eq!(
                request.send_to(gateway.addr()).status,
                200,
                "{what} {number}"
            );
        }
        assert!(
            fleet[0].heads_seen() > 0,
            "{what}: nobody asked the bad one"
        );
        assert_eq!(fleet[1].count(), 10, "{what}");
    }
    let fleet = Upstream::start_with(good);
    let urls = [format!("http://{}", refused_addr()), fleet.url()];
    let gateway = Gateway::with(&platform.yaml(&urls, &[], NO_BREAKER)).start();
    for number in 0..10 {
        let request = view().bearer(&nameless(&format!("u{number}")));
        assert_eq!(
            request.send_to(gateway.addr()).status,
            200,
            "refused {number}"
        );
    }
    let nobody = [format!("http://{}", refused_addr())];
    let gateway = Gateway::with(&platform.yaml(&nobody, &[], NO_BREAKER)).start();
    assert_eq!(
        view()
            .bearer(&nameless("u1"))
            .send_to(gateway.addr())
            .status,
        503
    );
}

#[test]
fn who_asked_first_may_go_away_without_harm_to_those_who_wait() {
    let platform = Platform::with_members(&[]);
    knows(&platform, json!({"role": "customer"}));
    let gateway = platform.start("");
    platform.auth.hold();
    let ask = || {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&view().bearer(&nameless("u1")).bytes());
        connection
    };
    let first = ask();
    platform.auth.wait_requests(1);
    let mut others: Vec<Connection> = (0..10).map(|_| ask()).collect();
    wait_until("all are under way", || under_way(&gateway) >= 11.0);
    first.reset();
    // Long enough for the gateway to see that it went.
    wait_until("the first is over, or goes on without its client", || {
        under_way(&gateway) < 11.0
            || view()
                .bearer(&token::customer())
                .send_to(gateway.addr())
                .status
                == 200
    });
    platform.auth.release();
    for other in &mut others {
        assert_eq!(other.read_response().status, 200);
    }
    assert!(
        platform.auth.heads_seen() <= 2,
        "{}",
        platform.auth.heads_seen()
    );
    let asked = platform.auth.heads_seen();
    assert_eq!(
        view()
            .bearer(&nameless("u1"))
            .send_to(gateway.addr())
            .status,
        200
    );
    assert_eq!(platform.auth.heads_seen(), asked, "and he is remembered");
}

#[test]
fn so_many_users_are_asked_for_as_there_are_and_memory_stays_bounded() {
    let platform = Platform::with_members(&[]);
    knows(
        &platform,
        json!({"role": "customer", "venues": ["v1", "v2", "v3"]}),
    );
    let gateway = platform.start("");
    let before = gateway.memory_kb();
    let requests: Vec<Request> = (0..3000)
        .map(|number| view().bearer(&nameless(&format!("{}-{number}", "u".repeat(200)))))
        .collect();
    let answers = burst(gateway.addr(), requests, 8);
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(platform.auth.count(), 3000);
    let grown = gateway.memory_kb().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for 3000 users");
}

/// A token of this user that says neither role nor permissions.
fn nameless(user: &str) -> String {
    Token::user(user).without("role").hs256()
}

/// A request that needs `things:view`.
fn view() -> Request {
    Request::get("/things/x")
}

/// What auth-service says of the user that it was asked for, of the tenant `t1` and with these fields.
fn user(asked: &Recorded, fields: &Value) -> Reply {
    let id = asked.target.rsplit('/').next().unwrap();
    let mut user = json!({"id": id, "tenant_id": "t1", "active": true});
    for (name, value) in fields.as_object().unwrap() {
        user[name] = value.clone();
    }
    Reply::json(user)
}

/// auth-service says this of everybody.
fn knows(platform: &Platform, fields: Value) {
    platform.auth.set(move |asked| user(asked, &fields));
}

/// How many requests the gateway has in its hands.
fn under_way(gateway: &Gateway) -> f64 {
    let metrics = gateway.metrics();
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("http_requests_in_progress{"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn redis_state(gateway: &Gateway) -> Value {
    let ready = Request::get("/ready").send_to(gateway.addr());
    ready.json()["checks"]["redis"].clone()
}

fn number_of_seconds(response: &Response) -> u64 {
    number(response, "Retry-After")
}

fn unix_millis() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_millis()
}
