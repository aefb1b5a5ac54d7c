//! How often? Exact windows per caller, the flood guard, and the guard against guessing (decisions 20 to 22, 31).

use crate::support::prelude::*;
use sha2::{Digest, Sha256};

#[test]
fn exactly_so_many_pass_and_the_next_is_told_when_to_come_back() {
    let (backend, gateway) = start("global: { max: 5, window: 60s }");
    let request = Request::get("/token").bearer(&token::customer());
    for remaining in ["4", "3", "2", "1", "0"] {
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, 200);
        assert_eq!(response.header("X-RateLimit-Limit"), Some("5"));
        assert_eq!(response.header("X-RateLimit-Remaining"), Some(remaining));
        let reset = number(&response, "X-RateLimit-Reset");
        assert!((1..=60).contains(&reset), "{reset}");
    }
    let refused = request
        .header("X-Request-ID", "over-1")
        .send_to(gateway.addr());
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["code"], "RATE_LIMIT_ERROR");
    assert_eq!(refused.header("X-RateLimit-Limit"), Some("5"));
    assert_eq!(refused.header("X-RateLimit-Remaining"), Some("0"));
    for name in ["Retry-After", "X-RateLimit-Reset"] {
        let seconds = number(&refused, name);
        assert!((1..=60).contains(&seconds), "{name}: {seconds}");
    }
    assert_eq!(backend.count(), 5);

    let audit =
        gateway.wait_log(|line| line["context"] == "audit" && line["requestId"] == "over-1");
    assert_eq!(audit["event"], "rate_limit_exceeded");
    assert_eq!(
        (&audit["type"], &audit["severity"]),
        (&json!("security"), &json!("medium"))
    );
    assert_eq!(
        (&audit["userId"], &audit["ip"]),
        (&json!("u1"), &json!("127.0.0.1"))
    );
    assert_eq!(
        gateway.metric(r#"rate_limit_hits_total{limit="caller"}"#),
        1.0
    );
    assert_eq!(gateway.access_line("over-1")["code"], "RATE_LIMIT_ERROR");
}

#[test]
fn users_keys_and_addresses_each_have_their_own() {
    let (_backend, gateway) = start("global: { max: 2, window: 60s }");
    // The user has the key's name, and the address's, which must not be mistaken for either.
    let callers = [
        (
            "u1",
            Request::get("/token").bearer(&Token::user("u1").hs256()),
        ),
        (
            "u2 at the same address",
            Request::get("/token").bearer(&Token::user("u2").hs256()),
        ),
        (
            "a user called partner",
            Request::get("/token").bearer(&Token::user("partner").hs256()),
        ),
        (
            "a user called 127.0.0.1",
            Request::get("/token").bearer(&Token::user("127.0.0.1").hs256()),
        ),
        (
            "the key partner",
            Request::get("/either").header("X-API-Key", "partner-key"),
        ),
        (
            "another key",
            Request::get("/either").header("X-API-Key", "other-key"),
        ),
        ("nobody", Request::get("/public")),
    ];
    for (who, request) in callers {
        let statuses = [(); 3].map(|()| request.send_to(gateway.addr()).status);
        assert_eq!(statuses, [200, 200, 429], "{who}");
    }
    let again = Request::get("/token").bearer(&Token::user("u1").role("admin").hs256());
    assert_eq!(
        again.send_to(gateway.addr()).status,
        429,
        "another token of u1"
    );
    let both = Request::get("/either").header("X-API-Key", "partner-key");
    let both = both.bearer(&Token::user("u3").tenant("t9").hs256());
    assert_eq!(
        both.send_to(gateway.addr()).status,
        200,
        "the token names the caller"
    );
}

#[test]
fn a_forged_token_counts_on_the_address_and_not_on_its_user() {
    let (backend, gateway) = start("global: { max: 2, window: 60s }");
    let forged = |i: usize| {
        let token = Token::user("u1").claim("n", i).signed_with("forged");
        Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr())
    };
    let statuses: Vec<u16> = (0..3).map(|i| forged(i).status).collect();
    assert_eq!(statuses, [401, 401, 429]);
    assert_eq!(
        Request::get("/public").send_to(gateway.addr()).status,
        429,
        "the same address"
    );
    assert_eq!(
        Request::get("/token").send_to(gateway.addr()).status,
        429,
        "no token at all"
    );

    let real = Request::get("/token").bearer(&Token::user("u1").hs256());
    for remaining in ["1", "0"] {
        let response = real.send_to(gateway.addr());
        assert_eq!(response.header("X-RateLimit-Remaining"), Some(remaining));
    }
    assert_eq!(backend.count(), 2);
}

#[test]
fn limits_add_up_and_what_one_refuses_spends_nothing_on_the_other() {
    let (backend, gateway) =
        start("global: { max: 5, window: 60s }\n  rules: { search: { max: 2, window: 60s } }");
    let token = token::customer();
    let send = |path: &str| Request::get(path).bearer(&token).send_to(gateway.addr());
    let search: Vec<u16> = (0..6).map(|_| send("/search").status).collect();
    assert_eq!(search, [200, 200, 429, 429, 429, 429]);
    let plain: Vec<u16> = (0..4).map(|_| send("/token").status).collect();
    assert_eq!(
        plain,
        [200, 200, 200, 429],
        "five in all, and no refused one among them"
    );
    assert_eq!(backend.count(), 5);

    // The other way round: the global one refuses, the search limit keeps what it has.
    let other = Token::user("u2").hs256();
    let send = |path: &str| Request::get(path).bearer(&other).send_to(gateway.addr());
    let first = send("/search");
    assert_eq!(
        first.header("X-RateLimit-Limit"),
        Some("2"),
        "the tightest one is shown"
    );
    assert_eq!(first.header("X-RateLimit-Remaining"), Some("1"));
    for _ in 0..4 {
        assert_eq!(send("/token").status, 200);
    }
    assert_eq!(send("/search").status, 429);
    assert_eq!(send("/search-only").status, 200, "one of two was left");
    assert_eq!(send("/search-only").status, 429);
}

#[test]
fn the_answer_names_the_limit_that_was_exceeded() {
    let (_backend, gateway) =
        start("global: { max: 4, window: 60s }\n  rules: { search: { max: 3, window: 60s } }");
    let token = token::customer();
    for _ in 0..4 {
        Request::get("/token")
            .bearer(&token)
            .send_to(gateway.addr());
    }
    let refused = Request::get("/search")
        .bearer(&token)
        .send_to(gateway.addr());
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.header("X-RateLimit-Limit"),
        Some("4"),
        "the global one, not the search's"
    );
}

#[test]
fn every_answer_that_was_counted_says_what_is_left() {
    let (backend, gateway) = start("global: { max: 50, window: 60s }");
    let customer = || Request::get("/token").bearer(&token::customer());
    backend.set(|request| match request.header("x-device-id") {
        Some(_) => Reply::status(500),
        None => Reply::json(json!({})),
    });
    let cases = [
        ("200", customer(), 200),
        (
            "a HEAD",
            Request::method("HEAD", "/token").bearer(&token::customer()),
            200,
        ),
        (
            "the backend's 500",
            customer().header("X-Device-ID", "x"),
            500,
        ),
        (
            "a token route's 401",
            Request::get("/token").bearer("a.b.c"),
            401,
        ),
        (
            "our 503",
            Request::get("/dead").bearer(&token::customer()),
            503,
        ),
    ];
    let mut silent = Vec::new();
    for (what, request, status) in cases {
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, status, "{what}");
        match response.header("X-RateLimit-Limit") {
            Some("50") => assert!(number(&response, "X-RateLimit-Remaining") < 50, "{what}"),
            _ => silent.push(what),
        }
    }
    assert!(
        silent.is_empty(),
        "counted, and without X-RateLimit headers: {silent:?}"
    );
}

#[test]
fn without_trusted_proxies_nobody_chooses_the_own_address() {
    let (_backend, gateway) = start("global: { max: 2, window: 60s }");
    let statuses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| {
        let request = Request::get("/public").header("X-Forwarded-For", address);
        let request = request
            .header("X-Real-IP", address)
            .header("Forwarded", &format!("for={address}"));
        request.send_to(gateway.addr()).status
    });
    assert_eq!(statuses, [200, 200, 429]);
}

#[test]
fn behind_a_trusted_proxy_the_forwarded_address_counts() {
    let (backend, gateway) = start_with("global: { max: 1, window: 60s }", |gateway| {
        gateway.env("TRUSTED_PROXIES", "127.0.0.0/8, 10.0.0.0/8")
    });
    let send = |lines: &[&str]| {
        let request = Request::get("/public");
        let request = lines
            .iter()
            .fold(request, |r, line| r.header("X-Forwarded-For", line));
        request.send_to(gateway.addr()).status
    };
    let cases: [(&[&str], &str); 9] = [
        (&["192.0.2.1"], "192.0.2.1"),
        (&["203.0.113.9, 192.0.2.2"], "192.0.2.2"),
        (&["192.0.2.3, 10.0.0.1"], "192.0.2.3"),
        (
            &["203.0.113.9", "192.0.2.4,10.0.0.1", "10.0.0.2"],
            "192.0.2.4",
        ),
        (&["192.0.2.5:4711"], "192.0.2.5"),
        (&["[2001:db8::1]:443"], "2001:db8::1"),
        (&["::ffff:192.0.2.6"], "192.0.2.6"),
        (&["[2001:db8:0:1::2]"], "2001:db8:0:1::2"),
        (&["192.0.2.7, unknown, 10.0.0.3"], "0.0.0.0"),
    ];
    for (i, (lines, address)) in cases.into_iter().enumerate() {
        assert_eq!(send(lines), 200, "{lines:?}");
        let seen = &backend.wait_requests(i + 1)[i];
        assert_eq!(seen.header("x-original-ip"), Some(address), "{lines:?}");
        assert_eq!(send(&[address]), 429, "{lines:?} was counted on {address}");
    }
    assert_eq!(send(&[]), 200, "the proxy itself");
    assert_eq!(send(&["nonsense"]), 429, "0.0.0.0 again, and not the proxy");
}

#[test]
fn limits_can_be_turned_off() {
    let (_backend, gateway) = start_with(
        "global: { max: 1, window: 60s }\n  flood: { per_second: 1 }",
        |gateway| gateway.env("RATE_LIMIT_ENABLED", "false"),
    );
    for _ in 0..20 {
        let response = Request::get("/public").send_to(gateway.addr());
        assert_eq!(response.status, 200);
        assert!(response.headers_named("X-RateLimit-Limit").is_empty());
    }
}

#[test]
fn the_environment_sets_the_global_limit() {
    let (_backend, gateway) = start_with("global: { max: 50, window: 60s }", |gateway| {
        let gateway = gateway.env("RATE_LIMIT_GLOBAL_MAX", 2);
        gateway.env("RATE_LIMIT_GLOBAL_WINDOW", 5_000)
    });
    let responses = [(); 3].map(|()| Request::get("/public").send_to(gateway.addr()));
    let statuses = responses.each_ref().map(|response| response.status);
    assert_eq!(statuses, [200, 200, 429]);
    assert!(
        number(&responses[2], "Retry-After") <= 5,
        "{:?}",
        responses[2].headers
    );
}

#[test]
fn a_window_passes_and_being_refused_does_not_prolong_it() {
    let (_backend, gateway) = start("global: { max: 3, window: 2s }");
    let request = Request::get("/token").bearer(&token::customer());
    let first = Instant::now();
    let statuses = [(); 4].map(|()| request.send_to(gateway.addr()).status);
    if first.elapsed() < Duration::from_secs(2) {
        assert_eq!(statuses, [200, 200, 200, 429]);
    }
    let passed = within(Duration::from_secs(10), || {
        (request.send_to(gateway.addr()).status == 200).then(Instant::now)
    });
    let passed = passed.expect("the window is over, and the caller is refused still");
    assert!(
        passed.duration_since(first) >= Duration::from_secs(2),
        "too early"
    );
}

#[test]
fn racing_requests_are_counted_exactly() {
    let (backend, gateway) =
        start("global: { max: 60, window: 60s }\n  rules: { search: { max: 40, window: 60s } }");
    let token = token::customer();
    let request = |i: usize| {
        let path = ["/token", "/search"][i % 2];
        (path, Request::get(path).bearer(&token))
    };
    let (paths, requests): (Vec<_>, Vec<_>) = (0..300).map(request).unzip();
    let responses = burst(gateway.addr(), requests, 16);
    let granted = |wanted: &str| {
        let both = paths.iter().zip(&responses);
        both.filter(|(path, response)| **path == wanted && response.status == 200)
            .count()
    };
    assert_eq!(granted("/token") + granted("/search"), 60);
    assert!(granted("/search") <= 40, "{}", granted("/search"));
    assert_eq!(backend.count(), 60);
    let refused = responses
        .iter()
        .filter(|response| response.status == 429)
        .count();
    assert_eq!(refused, 240);
    assert_eq!(
        gateway.metric(r#"rate_limit_hits_total{limit="caller"}"#),
        240.0
    );
}

#[test]
fn a_flood_from_one_address_is_stopped_before_anything_else() {
    let (backend, gateway) = start_with(
        "flood: { per_second: 5 }\n  global: { max: 100000, window: 60s }",
        |gateway| gateway.env("TRUSTED_PROXIES", "127.0.0.1/32"),
    );
    let good = token::customer();
    let flood = |i: usize| {
        let request = match i % 3 {
            0 => Request::get("/token").bearer(&good),
            1 => Request::get("/a/../b"),
            _ => Request::get("/nowhere"),
        };
        request.header("X-Forwarded-For", "192.0.2.1")
    };
    let responses = burst(gateway.addr(), (0..90).map(flood).collect(), 4);
    let refused: Vec<_> = responses
        .iter()
        .filter(|response| response.status == 429)
        .collect();
    assert!(!refused.is_empty());
    for (i, response) in responses.iter().enumerate() {
        let own = [200, 400, 404][i % 3];
        assert!(
            [own, 429].contains(&response.status),
            "{i}: {}",
            response.status
        );
    }
    for response in &refused {
        assert_eq!(response.header("Retry-After"), Some("1"));
    }
    let hits = gateway.metric(r#"rate_limit_hits_total{limit="address"}"#);
    assert_eq!(hits, refused.len() as f64);
    assert!(backend.count() <= 30);
    let other = Request::get("/token")
        .bearer(&good)
        .header("X-Forwarded-For", "192.0.2.2");
    assert_eq!(other.send_to(gateway.addr()).status, 200, "another address");
    wait_until("the flood is forgotten", || {
        flood(0).send_to(gateway.addr()).status == 200
    });
}

#[test]
fn who_guesses_tokens_is_told_to_wait_before_another_one_is_looked_at() {
    let (backend, gateway) = start_with("global: { max: 100000, window: 60s }", |gateway| {
        gateway.env("TRUSTED_PROXIES", "127.0.0.1/32")
    });
    let send = |token: &str, address: &str| {
        let request = Request::get("/token")
            .bearer(token)
            .header("X-Forwarded-For", address);
        request.send_to(gateway.addr())
    };
    let known = Token::user("known").hs256();
    assert_eq!(send(&known, "192.0.2.1").status, 200);
    let bad = |i: usize| Token::user("u1").claim("n", i).signed_with("forged");
    for i in 0..4 {
        assert_eq!(send(&bad(i), "192.0.2.1").status, 401, "guess {i}");
    }
    let unseen = Token::user("u2").hs256();
    for (what, token) in [
        ("another guess", &bad(5)),
        ("a good one, unseen yet", &unseen),
    ] {
        let refused = send(token, "192.0.2.1");
        assert_eq!(refused.status, 429, "{what}");
        assert_eq!(refused.json()["code"], "RATE_LIMIT_ERROR");
        assert!(
            (1..=60).contains(&number(&refused, "Retry-After")),
            "{what}"
        );
    }
    assert_eq!(
        send(&known, "192.0.2.1").status,
        200,
        "a token that is known to be good"
    );
    assert_eq!(
        send(&unseen, "192.0.2.2").status,
        200,
        "from another address"
    );
    assert_eq!(send(&unseen, "192.0.2.1").status, 200, "known by now");
    let nobody = Request::get("/token").header("X-Forwarded-For", "192.0.2.1");
    assert_eq!(
        nobody.send_to(gateway.addr()).status,
        401,
        "no token is no guess"
    );
    assert_eq!(backend.count(), 4);
}

#[test]
fn whoever_only_forgets_the_token_or_lets_it_expire_does_not_guess() {
    let (_backend, gateway) = start("global: { max: 100000, window: 60s }");
    for i in 0..10 {
        let expired = Token::user("u1").claim("n", i).expires_in(-60).hs256();
        assert_eq!(
            Request::get("/token")
                .bearer(&expired)
                .send_to(gateway.addr())
                .status,
            401
        );
        assert_eq!(Request::get("/token").send_to(gateway.addr()).status, 401);
    }
    let good = Request::get("/token").bearer(&token::customer());
    assert_eq!(good.send_to(gateway.addr()).status, 200);
}

#[test]
fn who_guesses_api_keys_is_told_to_wait_as_well() {
    let (_backend, gateway) = start("global: { max: 100000, window: 60s }");
    let send = |key: &str| {
        let request = Request::get("/either").header("X-API-Key", key);
        request.send_to(gateway.addr()).status
    };
    for i in 0..4 {
        assert_eq!(send(&format!("guess-{i}")), 401);
    }
    assert_eq!(send("partner-key"), 200, "a good key still passes");
    assert_eq!(
        send("guess-5"),
        429,
        "decision 21: failed authentication is limited by address"
    );
}

#[test]
fn every_429_is_among_the_hits() {
    let (_backend, gateway) = start("global: { max: 100000, window: 60s }");
    for i in 0..10 {
        let guess = Token::user("u1").claim("n", i).signed_with("forged");
        Request::get("/token")
            .bearer(&guess)
            .send_to(gateway.addr());
    }
    let answered = r#"http_requests_total{method="GET",route="/token",status_code="429"}"#;
    gateway.wait_metric(answered, |count| count == 6.0);
    let metrics = gateway.metrics();
    let hits = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("rate_limit_hits_total{"));
    let hits: f64 = hits
        .map(|line| line.split(' ').next_back().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(
        hits, 6.0,
        "rate_limit_hits_total counts requests refused with 429"
    );
}

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn failed_payments_are_five_an_hour_and_those_that_succeed_are_not_counted() {
    let redis = Redis::start();
    for shared in [false, true] {
        let payments = Upstream::start();
        let gateway = Gateway::platform().env("PAYMENT_SERVICE_URL", payments.url());
        let gateway = match shared {
            true => gateway
                .env("REDIS_HOST", "127.0.0.1")
                .env("REDIS_PORT", redis.port()),
            false => gateway,
        };
        let gateway = gateway.start();
        if shared {
            gateway.wait_metric("redis_up", |up| up == 1.0);
        }
        let pay = |user: &str, status: u16| {
            payments.set(move |_| Reply::status(status));
            Request::post("/api/v1/payments/process")
                .bearer(&Token::user(user).role("customer").hs256())
                .body("{}")
                .send_to(gateway.addr())
        };
        for _ in 0..8 {
            assert_eq!(pay("u1", 201).status, 201, "shared: {shared}");
        }
        // What is given back to Redis is given back beside the answers.
        wait_until("the successes are given back", || {
            pay("u1", 200).header("X-RateLimit-Remaining") == Some("4")
        });
        for i in 0..5 {
            assert_eq!(pay("u1", 402).status, 402, "shared: {shared}: failure {i}");
        }
        let refused = pay("u1", 201);
        assert_eq!(refused.status, 429, "shared: {shared}");
        assert_eq!(refused.header("X-RateLimit-Limit"), Some("5"));
        assert!((3500..=3600).contains(&number(&refused, "Retry-After")));
        assert_eq!(pay("u2", 201).status, 201, "another user");
        let looked = Request::get("/api/v1/payments/1")
            .bearer(&Token::user("u1").role("customer").hs256())
            .send_to(gateway.addr());
        assert_eq!(looked.status, 201, "who only looks does not pay");
        let hook = Request::post("/api/v1/payments/webhooks/x").body("{}");
        assert_eq!(hook.send_to(gateway.addr()).status, 201);
    }
}

#[test]
fn purchases_are_limited_by_user_and_event_and_who_exceeds_that_is_kept_out() {
    let redis = Redis::start();
    for shared in [false, true] {
        let (tickets, gateway) = box_office(shared.then_some(&redis), 3, 2000, 4000);
        let buy = |user: &str, event: &str| {
            purchase(user)
                .body(format!(r#"{{"eventId":"{event}","quantity":2}}"#))
                .send_to(gateway.addr())
        };
        for remaining in ["2", "1", "0"] {
            let response = buy("u1", "e1");
            assert_eq!(response.status, 200, "shared: {shared}");
            assert_eq!(response.header("X-RateLimit-Remaining"), Some(remaining));
        }
        let sent = Instant::now();
        let refused = buy("u1", "e1");
        assert_eq!(refused.status, 429, "shared: {shared}");
        assert_eq!(refused.header("X-RateLimit-Limit"), Some("3"));
        let seconds = number(&refused, "Retry-After");
        assert!((4..=5).contains(&seconds), "kept out for {seconds} s");
        let audit = gateway.wait_log(|line| line["event"] == "bot_detected");
        assert_eq!(audit["userId"], "u1");
        assert_eq!(audit["severity"], "high");
        assert_eq!(buy("u1", "e2").status, 200, "another event");
        assert_eq!(buy("u2", "e1").status, 200, "another user");
        assert_eq!(buy("u1", "e1").status, 429);
        let looked = Request::get("/api/v1/tickets/1").bearer(&Token::user("u1").hs256());
        assert_eq!(looked.send_to(gateway.addr()).status, 200);
        let detected = |line: &Value| line["event"] == "bot_detected";
        assert_eq!(
            gateway.log_lines().iter().filter(|l| detected(l)).count(),
            1
        );
        if shared {
            let key = "rl:ticket:u1:e1";
            let left: i64 = redis.command(&["PTTL", key]).trim().parse().unwrap();
            assert!((1..=5000).contains(&left), "{left} ms");
            redis.command(&["DEL", key]);
            assert_eq!(buy("u1", "e1").status, 200, "as the runbook has it");
        } else {
            wait_until("the block is over", || buy("u1", "e1").status == 200);
            let kept_out = sent.elapsed();
            assert!(kept_out > Duration::from_millis(3900), "{kept_out:?}");
        }
        let seen = tickets.requests();
        let bought = seen.iter().filter(|request| request.method == "POST");
        assert!(bought.clone().count() >= 6);
        for request in bought {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(body["quantity"], 2, "the body came as it was");
        }
        redis.command(&["FLUSHALL"]);
    }
}

#[test]
fn a_purchase_cannot_hide_its_event() {
    let (tickets, gateway) = box_office(None, 100, 60_000, 60_000);
    for body in [
        r#"{"eventId":"e1","eventId":"e2"}"#,
        r#"{"eventId":"e1","\u0065ventId":"e2"}"#,
        r#"[{"eventId":"e1"}]"#,
        r#"{"eventId":{"id":"e1"}}"#,
        "eventId=e1",
    ] {
        let response = purchase("u1").body(body).send_to(gateway.addr());
        assert_eq!(response.status, 400, "{body}");
        assert_eq!(response.json()["code"], "BAD_REQUEST");
    }
    let zipped = purchase("u1").header("Content-Encoding", "gzip").body("x");
    assert_eq!(zipped.send_to(gateway.addr()).status, 400);
    let large = format!(r#"{{"eventId":"e1","note":"{}"}}"#, "x".repeat(64 << 10));
    assert_eq!(
        purchase("u1").body(large).send_to(gateway.addr()).status,
        413
    );
    assert_eq!(tickets.count(), 0, "nothing of these was forwarded");

    let body = format!(r#"{{"eventId":"e1","note":"{}"}}"#, "x".repeat(60_000));
    let chunked = purchase("u1").chunked(body.as_bytes().chunks(7000).collect());
    assert_eq!(chunked.send_to(gateway.addr()).status, 200);
    let waiting = purchase("u1")
        .header("Expect", "100-continue")
        .body(body.clone());
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&waiting.head_bytes());
    assert_eq!(connection.read_response().status, 100);
    connection.send(body.as_bytes());
    assert_eq!(connection.read_response().status, 200, "and no second 100");
    assert_eq!(
        purchase("u1").send_to(gateway.addr()).status,
        200,
        "no body"
    );
    let bodies: Vec<Vec<u8>> = tickets.requests().into_iter().map(|r| r.body).collect();
    assert_eq!(bodies, [body.as_bytes(), body.as_bytes(), b""]);
}

#[test]
fn a_keys_tier_multiplies_its_limits() {
    let backend = Upstream::start();
    let tiers = [
        ("plain", "", 2),
        ("free", "free", 2),
        ("standard", "standard", 10),
        ("premium", "premium", 20),
    ];
    let keys: Vec<String> = tiers
        .iter()
        .map(|(name, tier, _)| {
            let tier = match *tier {
                "" => String::new(),
                tier => format!(", tier: {tier}"),
            };
            format!(
                "{name}: {{ sha256: {}, tenant_id: t, permissions: []{tier} }}",
                sha256(name)
            )
        })
        .collect();
    let gateway = Gateway::with(&format!(
        "auth: {{ api_keys: {{ {} }} }}
limits: {{ global: {{ max: 2, window: 60s }} }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /x, service: s, auth: token-or-key }}]",
        keys.join(", "),
        backend.url()
    ))
    .start();
    for (name, _, max) in tiers {
        let ask = || {
            Request::get("/x")
                .header("X-API-Key", name)
                .send_to(gateway.addr())
        };
        for _ in 0..max {
            assert_eq!(ask().status, 200, "{name}");
        }
        let refused = ask();
        assert_eq!(refused.status, 429, "{name}");
        assert_eq!(refused.header("X-RateLimit-Limit"), Some(&*max.to_string()));
    }
}

fn purchase(user: &str) -> Request {
    Request::post("/api/v1/tickets/purchase").bearer(&Token::user(user).role("admin").hs256())
}

/// The platform with a ticket service, and this ticket limit: requests, and milliseconds of its window and block.
fn box_office(redis: Option<&Redis>, max: u32, window: u32, block: u32) -> (Upstream, Gateway) {
    let tickets = Upstream::start();
    let mut gateway = Gateway::platform()
        .env("TICKET_SERVICE_URL", tickets.url())
        .env("RATE_LIMIT_TICKET_MAX", max)
        .env("RATE_LIMIT_TICKET_WINDOW", window)
        .env("RATE_LIMIT_TICKET_BLOCK", block);
    if let Some(redis) = redis {
        gateway = gateway
            .env("REDIS_HOST", "127.0.0.1")
            .env("REDIS_PORT", redis.port());
    }
    let gateway = gateway.start();
    if redis.is_some() {
        gateway.wait_metric("redis_up", |up| up == 1.0);
    }
    (tickets, gateway)
}

#[track_caller]
fn start(limits: &str) -> (Upstream, Gateway) {
    start_with(limits, |gateway| gateway)
}

/// A gateway with these limits, and four failed authentications a minute.
#[track_caller]
fn start_with(
    limits: &str,
    change: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let flood = match limits.contains("flood:") {
        true => "",
        false => "flood: { per_second: 100000 }",
    };
    let rules = match limits.contains("rules:") {
        true => "",
        false => "rules: { search: { max: 100000, window: 60s } }",
    };
    let yaml = format!(
        r#"
limits:
  {limits}
  {flood}
  {rules}
auth:
  failures: {{ max: 4, window: 60s }}
  api_keys:
    partner: {{ sha256: {}, tenant_id: t9, permissions: ["*"] }}
    other: {{ sha256: {}, tenant_id: t9, permissions: ["*"] }}
services:
  backend: {{ url: "{}", health: {{ enabled: false }} }}
  dead: {{ url: "http://{}", health: {{ enabled: false }} }}
routes:
  - {{ path: /token, service: backend, auth: token }}
  - {{ path: /dead, service: dead, auth: token }}
  - {{ path: /either, service: backend, auth: token-or-key }}
  - {{ path: /public, service: backend, auth: public }}
  - {{ path: /search, service: backend, auth: token, limits: [global, search] }}
  - {{ path: /search-only, service: backend, auth: token, limits: [search] }}
"#,
        sha256("partner-key"),
        sha256("other-key"),
        backend.url(),
        refused_addr()
    );
    (backend, change(Gateway::with(&yaml)).start())
}
