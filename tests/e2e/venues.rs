//! Nobody reaches another tenant's or venue's data, however it is asked for, and everybody reaches his own (decision 18).

mod attempts;
mod legitimate;

use crate::support::limited::sha256;
use crate::support::prelude::*;
use crate::support::tenancy::{Platform, audit_lines, bare, fresh_id, owner_of_v1};
use attempts::{Attempt, Verdict};
use std::collections::{HashMap, HashSet};

/// `u1` of `t1` has `v1` and `v2` by his token and `v3` and `7` by venue-service; `v9` is of `t2`, where somebody is
/// called `u1` too.
const MEMBERS: [&str; 4] = ["t1 v3 u1", "t1 7 u1", "t2 v9 u9", "t2 v9 u1"];

#[test]
fn no_attempt_at_a_foreign_venue_reaches_the_service() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    let attempts = attempts::all();
    assert!(attempts.len() >= 80, "{}", attempts.len());
    all_fail(
        &platform,
        &gateway,
        attempts,
        "venue_access_denied",
        |request| request.bearer(&token),
    );
    // What venue-service was asked is what the gateway means, whatever a venue is called.
    for asked in platform.venues.requests() {
        is_internal(&asked, "t1");
        let segments: Vec<&str> = asked.target.split('/').collect();
        let &["", "internal", "venues", venue, "members", "u1"] = segments.as_slice() else {
            panic!("venue-service was asked {:?}", asked.target);
        };
        let dots = venue.to_ascii_lowercase().replace("%2e", ".");
        assert!(!matches!(&*dots, "" | "." | ".."), "{:?}", asked.target);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@".contains(&b);
        assert!(venue.bytes().all(plain), "{:?}", asked.target);
    }
}

#[test]
fn no_attempt_at_what_other_readers_would_read_reaches_the_service() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    all_fail(
        &platform,
        &gateway,
        attempts::readers(),
        "venue_access_denied",
        |request| request.bearer(&token),
    );
}

#[test]
fn no_attempt_succeeds_with_redis_and_from_memory() {
    let redis = Redis::start();
    let platform = Platform::with_members(&MEMBERS);
    let gateways = [0, 1].map(|_| platform.start_on(&redis, ""));
    let token = owner_of_v1().hs256();
    for gateway in [&gateways[0], &gateways[0], &gateways[1]] {
        all_fail(
            &platform,
            gateway,
            attempts::all(),
            "venue_access_denied",
            |request| request.bearer(&token),
        );
    }
}

#[test]
fn everything_legitimate_passes_byte_for_byte() {
    let platform = Platform::with_members(&MEMBERS);
    platform
        .backend
        .set(|request| Reply::status(200).body(request.body.clone()));
    let gateway = platform.start("");
    // What the service would get without a gateway.
    let direct = Upstream::start();
    let token = owner_of_v1().hs256();
    let requests = legitimate::all();
    assert!(requests.len() >= 30, "{}", requests.len());
    let mut faults = Vec::new();
    for (what, request) in requests {
        let id = fresh_id();
        let request = request.bearer(&token).header("X-Request-ID", &id);
        request.send_to(direct.addr());
        let response = request.send_to(gateway.addr());
        if response.status != 200 {
            faults.push(format!("{what}: {} {}", response.status, response.text()));
            continue;
        }
        let wanted = direct.requests().pop().unwrap();
        let Some(came) = sent_on(&platform, &id).pop() else {
            faults.push(format!("{what}: it did not come"));
            continue;
        };
        let rewritten = wanted.target.starts_with("/mine/") || wanted.target.contains("/event/");
        if !came.complete
            || came.method != wanted.method
            || (came.target != wanted.target && !rewritten)
            || came.body != wanted.body
            || came.header("Content-Type") != wanted.header("Content-Type")
            || came.headers_named("X-Venue-ID") != wanted.headers_named("X-Venue-ID")
        {
            faults.push(format!("{what}: {} {} came", came.method, came.target));
        }
        if wanted.method != "HEAD" && response.body != wanted.body {
            faults.push(format!("{what}: the answer was changed"));
        }
        if !audit_lines(&gateway, &id).is_empty() {
            faults.push(format!("{what}: an audit line"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_foreign_venue_one_that_does_not_exist_and_no_route_are_answered_alike() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    let bodies: HashSet<String> = [
        Request::get("/nowhere"),
        Request::get("/api/v1/venues/v9"),
        Request::get("/api/v1/venues/no-such-venue"),
        Request::get("/x/y?venueId=v9"),
        Request::get("/x/y").header("X-Venue-ID", "v9"),
        Request::post("/x/y").json(&json!({"venueId": "v9"})),
        Request::post("/x/y").json(&json!({"venueId": "no-such-venue"})),
    ]
    .into_iter()
    .map(|request| {
        let id = fresh_id();
        let request = request.bearer(&token).header("X-Request-ID", &id);
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, 404);
        assert_eq!(response.json()["code"], "NOT_FOUND");
        assert_eq!(response.json()["message"], "Resource not found");
        assert_eq!(
            response.header("Content-Type"),
            Some("application/json; charset=utf-8")
        );
        bare(&response, &id)
    })
    .collect();
    assert_eq!(bodies.len(), 1, "{bodies:#?}");
    assert_eq!(platform.backend.heads_seen(), 0);
}

#[test]
fn an_api_key_has_the_venues_that_it_lists_and_no_others() {
    let platform = Platform::with_members(&["t1 v9 partner", "t1 v2 partner", "t1 v9 u1"]);
    let keys = [
        ("partner", r#"["v1"]"#),
        ("all", r#"["v1", "v2", "v7", "v9"]"#),
        ("none", "[]"),
    ];
    let keys: String = keys
        .map(|(name, venues)| {
            let digest = sha256(&format!("{name}-key"));
            format!("    {name}: {{ sha256: {digest}, tenant_id: t1, permissions: [\"*\"], venues: {venues} }}\n")
        })
        .concat();
    let gateway = platform.start(&format!("auth:\n  api_keys:\n{keys}"));
    let with = |key: &str, request: Request| request.header("X-API-Key", &format!("{key}-key"));
    let naming = |venue: &str| {
        [
            Request::get(&format!("/key/venues/{venue}")),
            Request::get(&format!("/key/x?venueId={venue}")),
            Request::get("/key/x").header("X-Venue-ID", venue),
            Request::post("/key/x").json(&json!({"a": [{"venueId": venue}]})),
        ]
    };
    let attempts = ["v9", "v2", "*"].iter().flat_map(|venue| naming(venue));
    let attempts = attempts.chain(naming("v9")).map(|request| Attempt {
        what: String::from_utf8(request.bytes()).unwrap(),
        request,
        verdict: Verdict::Stranger,
    });
    all_fail(
        &platform,
        &gateway,
        attempts.collect(),
        "cross_venue_api_access",
        |request| with("partner", request),
    );
    for request in naming("v1") {
        assert_eq!(
            with("none", request.clone()).send_to(gateway.addr()).status,
            404
        );
        assert_eq!(
            with("partner", request.clone())
                .send_to(gateway.addr())
                .status,
            200
        );
        assert_eq!(with("all", request).send_to(gateway.addr()).status, 200);
    }
    for request in naming("v9") {
        assert_eq!(with("all", request).send_to(gateway.addr()).status, 200);
    }
    assert_eq!(platform.venues.count(), 0, "nobody is asked for a key");

    // A key beside a token: both must have the venue.
    let owner = owner_of_v1().hs256();
    let both = |key: &str, venue: &str| {
        let requests = naming(venue).map(|request| with(key, request).bearer(&owner));
        requests.map(|request| request.send_to(gateway.addr()).status)
    };
    assert_eq!(both("partner", "v1"), [200; 4]);
    assert_eq!(both("partner", "v2"), [404; 4], "the token's only");
    assert_eq!(both("none", "v1"), [404; 4], "the token's only");
    assert_eq!(both("all", "v7"), [404; 4], "the key's only");
}

#[test]
fn the_request_after_a_refused_one_is_judged_by_itself() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    let own = |number: usize| {
        Request::post(&format!("/x/own?n={number}"))
            .bearer(&token)
            .json(&json!({"venueId": "v1"}))
    };
    let mut number = 0;
    let mut connection = Client::to(gateway.addr()).connect();
    for Attempt { what, request, .. } in attempts::all() {
        let bytes = request.bearer(&token).bytes();
        let is_head = bytes.starts_with(b"HEAD ");
        let sending = connection.send_meanwhile(bytes);
        let refused = match is_head {
            true => connection.read_head_response(),
            false => connection.read_response(),
        };
        assert!(
            (400..416).contains(&refused.status),
            "{what}: {}",
            refused.status
        );
        let says_close = refused.header("Connection") == Some("close");
        if says_close || refused.version == "HTTP/1.0" {
            connection = Client::to(gateway.addr()).connect();
        }
        sending.join().unwrap();
        number += 1;
        connection.send(&own(number).bytes());
        let passed = connection.try_read_response();
        let passed = passed.unwrap_or_else(|broken| panic!("after {what}: {broken}"));
        assert_eq!(passed.status, 200, "after {what}");
    }
    let seen = platform.backend.requests();
    let complete: Vec<&Recorded> = seen.iter().filter(|one| one.complete).collect();
    assert_eq!(complete.len(), number);
    assert!(complete.iter().all(|one| one.path() == "/x/own"));
}

#[test]
fn the_body_of_a_refused_request_is_never_read_as_a_request() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    let inner = Request::get("/x/smuggled").bearer(&token).bytes();
    for size in [inner.len(), 60_000, 70_000, 300_000] {
        let mut body = b"{\"a\":\"".to_vec();
        body.resize(size.max(inner.len() + 6) - inner.len(), b'x');
        body.extend(&inner);
        for request in [
            Request::post("/api/v1/venues/v9"),
            Request::post("/x/y?venueId=v9"),
            Request::post("/x/y?venueId=v1&venueId=v9"),
            Request::post("/x/y").header("X-Venue-ID", "v9"),
            Request::post("/x/y").header("Content-Encoding", "gzip"),
            Request::post("/x/y").header("Content-Type", "multipart/form-data"),
            Request::post("/x/y").header("Content-Type", "application/json"),
        ] {
            for request in [
                request.clone().body(body.clone()),
                request.chunked(vec![&body]),
            ] {
                let mut connection = Client::to(gateway.addr()).connect();
                let sending = connection.send_meanwhile(request.bearer(&token).bytes());
                let refused = connection.read_response();
                assert!((400..416).contains(&refused.status), "{}", refused.status);
                sending.join().unwrap();
                connection.finish_sending();
                let rest = connection.read_to_end();
                assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
            }
        }
    }
    let seen = platform.backend.requests();
    let bytes = seen.iter().find(|one| one.complete || !one.body.is_empty());
    assert!(bytes.is_none(), "{bytes:?}");
}

#[test]
fn nothing_of_a_body_is_sent_before_its_end_has_come() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    for (venue, status) in [("v1", 200), ("v9", 404)] {
        let body = format!(
            r#"{{"filler":"{}","venueId":"{venue}"}}"#,
            "z".repeat(200_000)
        );
        let typed = Request::post("/x/slow")
            .bearer(&token)
            .header("Content-Type", "application/json");
        for request in [
            typed.clone().body(body.clone()),
            typed.chunked(body.as_bytes().chunks(5000).collect()),
        ] {
            let before = platform.backend.requests().len();
            let bytes = request.bytes();
            let (most, last) = bytes.split_at(bytes.len() - 20);
            let mut connection = Client::to(gateway.addr()).connect();
            connection.send(most);
            // As long as it takes for another request to go all the way.
            for _ in 0..20 {
                let other = Request::get("/x/other").bearer(&token);
                assert_eq!(other.send_to(gateway.addr()).status, 200);
            }
            assert!(connection.stays_open());
            // What was begun and refused before may be noted only now.
            let seen = platform.backend.requests().split_off(before);
            let is_nothing = |one: &Recorded| !one.complete && one.body.is_empty();
            let foreign = seen
                .iter()
                .find(|one| one.path() != "/x/other" && !is_nothing(one));
            assert!(foreign.is_none(), "{venue}: {foreign:?}");
            connection.send(last);
            assert_eq!(connection.read_response().status, status);
        }
    }
    wait_until("what was begun is over", || {
        platform.backend.open_connections() <= 4
    });
    for slow in platform
        .backend
        .requests()
        .iter()
        .filter(|one| one.path() == "/x/slow")
    {
        let text = String::from_utf8_lossy(&slow.body);
        assert!(slow.complete || slow.body.is_empty());
        assert!(!text.contains("v9"));
    }
    assert_eq!(complete(&platform, "/x/slow"), 2);
}

#[test]
fn a_venue_that_comes_byte_by_byte_is_the_same_venue() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    for (venue, status) in [("v9", 404), ("v1", 200)] {
        let json = Request::post("/x/bytes")
            .bearer(&token)
            .json(&json!({"venueId": venue}));
        let query = Request::get(&format!("/x/bytes?venueId={venue}")).bearer(&token);
        for request in [json, query] {
            let mut connection = Client::to(gateway.addr()).connect();
            for byte in request.bytes() {
                connection.send(&[byte]);
            }
            assert_eq!(connection.read_response().status, status);
        }
    }
    assert_eq!(platform.backend.heads_seen(), 2);
}

#[test]
fn a_foreign_body_reaches_no_instance_at_a_retry_either() {
    let platform = Platform::with_members(&MEMBERS);
    let fleet = Fleet::of(3);
    fleet.set(|_, request| match request.method.as_str() {
        "GET" => Reply::status(200),
        _ => Reply::status(503),
    });
    fleet
        .iter()
        .take(2)
        .for_each(|one| one.set_before_body(|_| Some(Reply::reset())));
    let urls: Vec<String> = fleet
        .urls()
        .iter()
        .map(|url| format!("{{ url: \"{url}\" }}"))
        .collect();
    let yaml = platform.yaml(&[], &[platform.venues.url()], "").replace(
        &format!(
            "url: \"{}\", retry: {{ max_retries: 0 }}",
            platform.backend.url()
        ),
        &format!(
            "instances: [{}], retry: {{ max_retries: 3, base_delay: 1ms, budget_min: 1000 }}",
            urls.join(", ")
        ),
    );
    assert!(yaml.contains(&urls[2]));
    let gateway = Gateway::with(&yaml).start();
    let token = owner_of_v1().hs256();
    for (venue, size) in [("v9", 10), ("v9", 70_000), ("v9", 500_000), ("v1", 70_000)] {
        let body = format!(r#"{{"filler":"{}","venueId":"{venue}"}}"#, "z".repeat(size));
        for method in ["POST", "PUT"] {
            let request = Request::method(method, &format!("/x/{venue}"))
                .bearer(&token)
                .header("Idempotency-Key", "k1")
                .header("Content-Type", "application/json");
            for request in [
                request.clone().body(body.clone()),
                request.chunked(body.as_bytes().chunks(5000).collect()),
            ] {
                let status = request.send_to(gateway.addr()).status;
                match venue {
                    // What cannot be sent again has failed before it was whole.
                    "v9" => assert!(
                        [404, 502, 503].contains(&status),
                        "{method} {size}: {status}"
                    ),
                    _ => assert_ne!(status, 404, "{method} {size}"),
                }
            }
        }
    }
    for (instance, request) in fleet.requests() {
        let foreign = request.path() == "/x/v9";
        assert!(
            !foreign || (!request.complete && request.body.is_empty()),
            "instance {instance}: {} bytes",
            request.body.len()
        );
        assert!(foreign || !String::from_utf8_lossy(&request.body).contains("v9"));
    }
}

#[test]
fn who_has_the_same_id_in_another_tenant_is_somebody_else() {
    let redis = Redis::start();
    let platform = Platform::with_members(&MEMBERS);
    let gateways = [0, 1].map(|_| platform.start_on(&redis, ""));
    let own = Token::user("u1").tenant("t2").hs256();
    let other = Token::user("u1").tenant("t1").hs256();
    let status = |gateway: &Gateway, token: &str| {
        let request = Request::get("/x/y?venueId=v9").bearer(token);
        request.send_to(gateway.addr()).status
    };
    for round in 0..3 {
        for gateway in &gateways {
            assert_eq!(status(gateway, &own), 200, "round {round}");
            assert_eq!(status(gateway, &other), 404, "round {round}");
            assert_eq!(status(gateway, &other), 404, "round {round}");
            assert_eq!(status(gateway, &own), 200, "round {round}");
        }
        redis.command(&["DEL", "cache:venue:member:v9:u1"]);
    }
    for asked in platform.venues.requests() {
        let tenant = asked.header("X-Tenant-ID").unwrap();
        assert!(["t1", "t2"].contains(&tenant));
    }
}

#[test]
fn names_with_colons_do_not_become_each_other() {
    let redis = Redis::start();
    // Each of the first is a member; the others would have the same key without being one.
    let platform = Platform::with_members(&["t1 a%3Ab c", "t1 a c%3Ad", "t1 x y"]);
    let gateway = platform.start_on(&redis, "");
    let status = |venue: &str, user: &str| {
        let request =
            Request::get(&format!("/x/y?venueId={venue}")).bearer(&Token::user(user).hs256());
        request.send_to(gateway.addr()).status
    };
    let is_raw = platform.venues.count();
    assert_eq!(is_raw, 0);
    for _ in 0..2 {
        let first = [status("a:b", "c"), status("a", "b:c")];
        assert_eq!(first[1], 404, "the key of a:b and c");
        assert!([200, 404].contains(&first[0]));
        let second = [status("a", "c:d"), status("a:c", "d")];
        assert_eq!(second[1], 404, "the key of a and c:d");
        assert_eq!(status("x", "y"), 200);
        assert_eq!(status("x:y", ""), 401);
    }
    // The other way round: a yes for (a, b:c) is none for (a:b, c).
    let platform = Platform::with_members(&["t1 a b:c", "t1 a b%3Ac", "t1 a b%3ac"]);
    let gateway = platform.start_on(&redis, "");
    redis.command(&["FLUSHALL"]);
    let status = |venue: &str, user: &str| {
        let request =
            Request::get(&format!("/x/y?venueId={venue}")).bearer(&Token::user(user).hs256());
        request.send_to(gateway.addr()).status
    };
    for _ in 0..3 {
        assert_eq!(status("a", "b:c"), 200);
        assert_eq!(status("a:b", "c"), 404);
    }
}

#[test]
fn what_stands_in_redis_for_others_or_in_another_form_is_not_believed() {
    let redis = Redis::start();
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start_on(&redis, "");
    let poison = [
        r#"{"tenant_id":"t2","venue":"V","user":"u1","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"v1","user":"u1","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u9","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","user":"u1","member":true,"since":1,"until":UNTIL}"#,
        r#"{"venue":"V","user":"u1","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":null,"venue":"V","user":"u1","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":"true","since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":1,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","since":1,"until":UNTIL}"#,
        r#"[{"tenant_id":"t1","venue":"V","user":"u1","member":true,"since":1,"until":UNTIL}]"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":true,"since":1,"until":UNTIL} x"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":true,"since":1,"until":UNTIL"#,
        r#"{"tenant_id":"t2","tenant_id":"t1","venue":"V","user":"u1","member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":false,"member":true,"since":1,"until":UNTIL}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":true}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":true,"since":1,"until":1}"#,
        r#"{"tenant_id":"t1","venue":"V","user":"u1","member":true,"until":99999999999}"#,
        "true",
        "1",
        "yes",
        "",
        "\u{0}\u{ff}",
        "null",
    ];
    let token = Token::user("u1").hs256();
    let status = |venue: &str| {
        let request = Request::get(&format!("/x/y?venueId={venue}")).bearer(&token);
        request.send_to(gateway.addr()).status
    };
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let until = (since.unwrap().as_secs() + 200).to_string();
    for (number, value) in poison.iter().enumerate() {
        let venue = format!("w{number}");
        let value = value
            .replace("\"V\"", &format!("\"{venue}\""))
            .replace("UNTIL", &until);
        redis.command(&["SET", &format!("cache:venue:member:{venue}:u1"), &value]);
        assert_eq!(status(&venue), 404, "{value}");
        assert_eq!(platform.venues.count(), number + 1, "{value}");
    }
    for (venue, foreign) in [
        (
            "list",
            ["RPUSH", "cache:venue:member:list:u1", "true"].as_slice(),
        ),
        (
            "hash",
            &["HSET", "cache:venue:member:hash:u1", "member", "true"],
        ),
        ("set", &["SADD", "cache:venue:member:set:u1", "u1"]),
    ] {
        redis.command(foreign);
        assert_eq!(status(venue), 404, "{foreign:?}");
    }
    // The form in which it would be believed.
    let good =
        r#"{"tenant_id":"t1","venue":"good","user":"u1","member":true,"since":1,"until":UNTIL}"#;
    let good = good.replace("UNTIL", &until);
    redis.command(&["SET", "cache:venue:member:good:u1", &good]);
    assert_eq!(status("good"), 200);
    let huge = format!("{}{good}", " ".repeat(5 << 20));
    redis.command(&["SET", "cache:venue:member:huge:u1", &huge]);
    assert_eq!(status("huge"), 404);
    assert_eq!(status("good"), 200);
}

#[test]
fn membership_is_asked_once_remembered_and_written_with_a_life() {
    let redis = Redis::start();
    let platform = Platform::with_members(&MEMBERS);
    let [a, b] = [0, 1].map(|_| platform.start_on(&redis, ""));
    let token = Token::user("u1").hs256();
    let status = |gateway: &Gateway, venue: &str| {
        let request = Request::get(&format!("/x/y?venueId={venue}")).bearer(&token);
        request.send_to(gateway.addr()).status
    };
    for gateway in [&a, &b, &a, &b] {
        assert_eq!(status(gateway, "v3"), 200);
        assert_eq!(status(gateway, "v9"), 404);
    }
    assert_eq!(platform.venues.count(), 2, "each once, for both processes");
    for (venue, member, life) in [("v3", true, 200..=300), ("v9", false, 30..=60)] {
        let key = format!("cache:venue:member:{venue}:u1");
        let value: Value = serde_json::from_str(&redis.command(&["GET", &key])).unwrap();
        for (name, wanted) in [
            ("tenant_id", json!("t1")),
            ("venue", json!(venue)),
            ("user", json!("u1")),
            ("member", json!(member)),
        ] {
            assert_eq!(value[name], wanted, "{value}");
        }
        let left: i64 = redis.command(&["TTL", &key]).parse().unwrap();
        assert!(life.contains(&left), "{venue}: {left}");
    }
    let outcomes = [("asked", 2.0), ("redis", 0.0)];
    for (outcome, count) in outcomes {
        let series = format!(r#"lookups_total{{outcome="{outcome}",what="member"}}"#);
        assert_eq!(a.metric(&series), count, "{series}");
    }
    assert_eq!(
        b.metric(r#"lookups_total{outcome="redis",what="member"}"#),
        2.0
    );
    assert_eq!(
        a.metric(r#"lookups_total{outcome="memory",what="member"}"#),
        2.0
    );
}

#[test]
fn what_cannot_be_found_out_is_503_and_never_a_yes() {
    let platform = Platform::with_members(&MEMBERS);
    let replies: Vec<(&str, Reply)> = vec![
        ("500", Reply::status(500)),
        ("503", Reply::status(503)),
        ("401", Reply::status(401)),
        ("403", Reply::status(403)),
        ("400", Reply::status(400)),
        ("429", Reply::status(429)),
        ("204", Reply::status(204)),
        ("201", Reply::status(201)),
        ("302", Reply::status(302).header("Location", "/yes")),
        ("a reset", Reply::reset()),
        ("garbage", Reply::raw("hello\r\n\r\n").then_close()),
        (
            "half a head",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-").then_close(),
        ),
    ];
    for (what, reply) in replies {
        platform.venues.set(move |_| reply.clone());
        let gateway = platform.start("breaker: { volume: 100000 }");
        let token = Token::user("u1").hs256();
        for request in [
            Request::get("/x/y?venueId=v3"),
            Request::get("/api/v1/venues/v3"),
            Request::get("/x/y").header("X-Venue-ID", "v3"),
            Request::post("/x/y").json(&json!({"venueId": "v3"})),
        ] {
            let response = request.bearer(&token).send_to(gateway.addr());
            assert_eq!(response.status, 503, "{what}");
            assert_eq!(response.json()["code"], "SERVICE_UNAVAILABLE", "{what}");
            assert_eq!(
                response.json()["message"],
                "Service unavailable: venue-service"
            );
            assert!(number(&response, "Retry-After") >= 1, "{what}");
        }
        assert_eq!(
            gateway.metric(r#"venue_checks_total{outcome="unknown"}"#),
            4.0
        );
        let claimed = Request::get("/x/y?venueId=v1").bearer(&owner_of_v1().hs256());
        assert_eq!(claimed.send_to(gateway.addr()).status, 200, "{what}");
    }
    assert!(
        platform
            .backend
            .requests()
            .iter()
            .all(|one| one.target.ends_with("=v1"))
    );
}

#[test]
fn without_venue_service_a_venue_that_the_claims_do_not_name_is_not_found() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = Gateway::with(&platform.yaml(&[], &[], "")).start();
    let status = |venue: &str| {
        let request = Request::get(&format!("/x/y?venueId={venue}")).bearer(&owner_of_v1().hs256());
        request.send_to(gateway.addr()).status
    };
    assert_eq!(
        [status("v1"), status("v2"), status("v3"), status("v9")],
        [200, 200, 404, 404]
    );
}

#[test]
fn only_an_admin_crosses_venues() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let of = |role: &str| {
        Token::user("x")
            .role(role)
            .claim("venues", json!(["v1"]))
            .hs256()
    };
    for (role, status) in [
        ("admin", 200),
        ("venue-owner", 404),
        ("customer", 404),
        ("Admin", 404),
        ("nobody", 404),
    ] {
        for request in [
            Request::get("/api/v1/venues/v9"),
            Request::get("/x/y?venueId=v9"),
            Request::get("/x/y").header("X-Venue-ID", "v9"),
            Request::post("/x/y").json(&json!({"venueId": "v9"})),
        ] {
            let response = request.bearer(&of(role)).send_to(gateway.addr());
            assert_eq!(response.status, status, "{role}");
        }
    }
    let ambiguous = Request::get("/x/y?venueId=v8&venueId=v9").bearer(&of("admin"));
    assert_eq!(ambiguous.send_to(gateway.addr()).status, 400);
    let seen = platform.backend.requests();
    assert!(
        seen.iter()
            .all(|one| one.header("X-Tenant-ID") == Some("t1")),
        "the tenant stays"
    );
    let tenant = Request::post("/x/y").json(&json!({"tenantId": "t2"}));
    let response = tenant.bearer(&of("admin")).send_to(gateway.addr());
    assert_eq!(response.status, 404, "another tenant's");
    // What could be read in two ways hides no tenant either.
    let padding = "x".repeat(100_000);
    for request in [
        Request::get("/x/y?venueId=a&venueId=b&tenantId=t2"),
        Request::get("/x/tenants/t2?venueId=a&venueId=b"),
        Request::post("/x/y").json(&json!({"tenantId": "t2", "venueId": ["a"]})),
        Request::post("/x/y").json(&json!({"pad": padding, "tenantId": "t2", "venueId": ["a"]})),
        Request::post("/x/y")
            .header("Content-Type", "application/xml")
            .body("<tenantId>t2</tenantId>"),
    ] {
        let status = request.bearer(&of("admin")).send_to(gateway.addr()).status;
        assert!(matches!(status, 400 | 415), "{status}");
    }
}

#[test]
fn a_cookie_that_is_forwarded_may_name_an_own_venue() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = Token::user("x").claim("venues", json!(["v1"])).hs256();
    for (cookie, status) in [
        ("a=1; venueId=v1; b=2", 200),
        ("a=1; venueId=v9", 404),
        ("venueId=v1; venueId=v9", 400),
    ] {
        let request = Request::get("/cookie/x").header("Cookie", cookie);
        let response = request.bearer(&token).send_to(gateway.addr());
        assert_eq!(response.status, status, "{cookie}");
    }
}

#[test]
fn on_routes_without_a_caller_nothing_is_looked_at() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    for path in ["/public", "/hook"] {
        let request = Request::post(&format!("{path}/venues/v9?venueId=v8&venueId=v9"))
            .header("Content-Type", "application/json")
            .header("Content-Encoding", "gzip")
            .body("{\"venueId\":");
        assert_eq!(request.send_to(gateway.addr()).status, 200, "{path}");
    }
    assert_eq!(platform.backend.requests()[0].body, b"{\"venueId\":");
    assert_eq!(platform.venues.count(), 0);
}

#[test]
fn the_earlier_policies_answer_first() {
    let platform = Platform::with_members(&MEMBERS);
    let settings = "limits: { flood: { per_second: 100000 }, global: { max: 2, window: 60s } }";
    let yaml = platform.yaml(&[], &[platform.venues.url()], "");
    let yaml = yaml.replace(
        "limits: { enabled: false, flood: { per_second: 100000 } }",
        settings,
    );
    assert!(yaml.contains(settings));
    let gateway = Gateway::with(&yaml).start();
    let foreign = || Request::get("/things/x?venueId=v9&venueId=v8");
    let status = |request: Request| request.send_to(gateway.addr()).status;
    let of = |user: &str| Token::user(user).hs256();
    assert_eq!(status(foreign()), 401, "authentication");
    let edit = Request::post("/things/x?venueId=v9").bearer(&of("u1"));
    assert_eq!(status(edit), 403, "permission");
    let got = [0; 3].map(|_| status(foreign().bearer(&of("u2"))));
    assert_eq!(got, [400, 400, 429], "limits");
    let got = [0; 3].map(|_| status(Request::get("/things/venues/v9").bearer(&of("u3"))));
    assert_eq!(got, [404, 404, 429], "limits");
    assert_eq!(platform.backend.heads_seen(), 0);
}

#[test]
fn a_body_beyond_the_limit_is_413_wherever_the_venue_stands() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("sizes: { body: 100KiB }");
    let token = owner_of_v1().hs256();
    for venue in ["v1", "v9"] {
        let body = format!(
            r#"{{"filler":"{}","venueId":"{venue}"}}"#,
            "z".repeat(150 << 10)
        );
        let request = Request::post("/x/y")
            .bearer(&token)
            .header("Content-Type", "application/json");
        for request in [
            request.clone().body(body.clone()),
            request.chunked(body.as_bytes().chunks(9000).collect()),
        ] {
            let mut connection = Client::to(gateway.addr()).connect();
            let sending = connection.send_meanwhile(request.bytes());
            assert_eq!(connection.read_response().status, 413);
            drop(connection);
            sending.join().unwrap();
        }
    }
    let seen = platform.backend.requests();
    assert!(seen.iter().all(|one| !one.complete && one.body.is_empty()));
}

#[test]
fn no_body_keeps_a_thread_busy() {
    let _alone = alone();
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    let many = |part: fn(usize) -> String, between: &str| -> String {
        let parts: Vec<String> = (0..200_000).map(part).collect();
        parts.join(between)
    };
    let names = many(|i| format!("\"a{i}venueId\":null"), ",");
    let own = many(|i| format!("\"a{i}venueId\":\"v1\""), ",");
    let objects = many(|i| format!("{{\"venueId\":\"v{}\"}}", 1 + i % 2), ",");
    let texts = many(|_| "\"[[[[[[[[[[1\"".into(), ",");
    let bodies = [
        ("application/json", format!("{{{names}}}")),
        ("application/json", format!("{{{own}}}")),
        ("application/json", format!("[{objects}]")),
        ("application/json", format!("[{texts}]")),
        (
            "application/x-www-form-urlencoded",
            many(|i| format!("a{i}venueId="), "&"),
        ),
        (
            "application/x-www-form-urlencoded",
            many(|i| format!("venueIds[{i}]=v1"), "&"),
        ),
    ];
    for (content_type, body) in bodies {
        let what = body[..40].to_owned();
        let request = Request::post("/x/y")
            .bearer(&token)
            .header("Content-Type", content_type)
            .body(body);
        let before = Instant::now();
        let mut connection = Client::to(gateway.addr()).connect();
        let sending = connection.send_meanwhile(request.bytes());
        let status = connection.read_response().status;
        let took = before.elapsed();
        drop(connection);
        sending.join().unwrap();
        assert!([200, 400].contains(&status), "{what}: {status}");
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
    }
}

#[test]
fn who_waits_for_100_continue_is_refused_without_it_where_the_head_says_enough() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let token = owner_of_v1().hs256();
    let waiting = |target: &str, venue: &str| {
        Request::post(target)
            .bearer(&token)
            .header("Expect", "100-continue")
            .json(&json!({"venueId": venue}))
    };
    for target in ["/api/v1/venues/v9", "/x/y?venueId=v9"] {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&waiting(target, "v1").head_bytes());
        assert_eq!(connection.read_response().status, 404, "{target}");
    }
    for (venue, filler, status, seen) in [
        ("v9", 0, 404, 0),
        ("v1", 0, 200, 1),
        ("v9", 200_000, 404, 1),
        ("v1", 200_000, 200, 2),
    ] {
        let body = json!({"filler": "z".repeat(filler), "venueId": venue});
        let request = Request::post("/x/y")
            .bearer(&token)
            .header("Expect", "100-continue")
            .json(&body);
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&request.head_bytes());
        assert_eq!(connection.read_response().status, 100);
        connection.send(&request.bytes()[request.head_bytes().len()..]);
        assert_eq!(connection.read_response().status, status);
        assert_eq!(complete(&platform, "/x/y"), seen);
    }
}

#[test]
fn no_other_spelling_of_a_tenant_or_a_venue_reaches_the_service() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let names = [
        "X_Venue_ID",
        "X-Venue_ID",
        "X_VENUE_ID",
        "Venue-ID",
        "X-VenueId",
        "X-Venue",
        "X-Venues",
        "X-Target-Venue-ID",
        "X-Original-Venue-ID",
        "X-Forwarded-Venue-ID",
        "X-Tenant-ID",
        "X_Tenant_ID",
        "X-Tenant",
        "X-User-ID",
        "X-User-Venue",
        "X-Internal-Venue",
        "X-Gateway-Venue",
        "Cookie",
        "X-HTTP-Method-Override",
        "X-Original-URL",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
    ];
    for name in names {
        let request = Request::get("/x/y")
            .bearer(&owner_of_v1().hs256())
            .header(name, "venueId=foreign-v9");
        let status = request.send_to(gateway.addr()).status;
        assert!([200, 400, 404].contains(&status), "{name}: {status}");
    }
    let trailer = [
        Request::post("/x/y")
            .bearer(&owner_of_v1().hs256())
            .header("Transfer-Encoding", "chunked")
            .header("Trailer", "X-Venue-ID")
            .bytes(),
        b"2\r\n{}\r\n0\r\nX-Venue-ID: foreign-v9\r\nX-Tenant-ID: t2\r\n\r\n".to_vec(),
    ]
    .concat();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&trailer);
    let status = connection.read_response().status;
    assert!([200, 400].contains(&status), "{status}");
    for seen in platform.backend.requests() {
        let raw = String::from_utf8_lossy(&seen.raw);
        assert!(!raw.contains("foreign-v9"), "{raw}");
        assert_eq!(seen.headers_named("X-Tenant-ID"), ["t1"]);
        assert!(seen.trailers.is_empty());
    }
}

#[test]
fn a_nominated_header_cannot_make_the_service_see_another_venue() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    for nominated in [
        "X-Venue-ID",
        "X-Tenant-ID",
        "Content-Type",
        "Content-Length, X-Tenant-Source",
    ] {
        let request = Request::post("/x/y")
            .bearer(&owner_of_v1().hs256())
            .header("Connection", &format!("keep-alive, {nominated}"))
            .header("X-Venue-ID", "v1")
            .json(&json!({"venueId": "v1"}));
        let response = request.send_to(gateway.addr());
        assert!(
            [200, 400].contains(&response.status),
            "{nominated}: {}",
            response.status
        );
    }
    for seen in platform.backend.requests() {
        assert_eq!(seen.headers_named("X-Tenant-ID"), ["t1"]);
        assert_eq!(seen.headers_named("X-Tenant-Source"), ["jwt"]);
        assert!(matches!(seen.header("X-Venue-ID"), None | Some("v1")));
    }
}

#[test]
fn the_log_says_which_venue_was_meant() {
    let platform = Platform::with_members(&MEMBERS);
    let gateway = platform.start("");
    let own = owner_of_v1().hs256();
    let cases = [
        (Request::get("/x/y"), json!("v1")),
        (Request::get("/x/y").header("X-Venue-ID", "v2"), json!("v2")),
        (
            Request::get("/x/y?venueId=v2").header("X-Venue-ID", "v1"),
            json!("v2"),
        ),
        (Request::get("/api/v1/venues/v2?venueId=v1"), json!("v2")),
        (
            Request::post("/x/y")
                .header("X-Venue-ID", "v1")
                .json(&json!({"venueId": "v2"})),
            json!("v2"),
        ),
        (
            Request::post("/x/y?venueId=v3").json(&json!({"venueId": "v2"})),
            json!("v3"),
        ),
        (Request::get("/x/y?venueId=v9"), json!("v9")),
    ];
    for (request, venue) in cases {
        let id = fresh_id();
        let what = String::from_utf8(request.bytes()).unwrap();
        request
            .bearer(&own)
            .header("X-Request-ID", &id)
            .send_to(gateway.addr());
        assert_eq!(gateway.access_line(&id)["venueId"], venue, "{what}");
    }
    let id = fresh_id();
    let nobody = Request::get("/public/x").header("X-Request-ID", &id);
    nobody.send_to(gateway.addr());
    assert_eq!(gateway.access_line(&id)["venueId"], json!(null));
    let evil = "v9\"}\n{\"context\":\"audit\"";
    let id = fresh_id();
    let request = Request::post("/x/y").json(&json!({"venueId": evil}));
    request
        .bearer(&own)
        .header("X-Request-ID", &id)
        .send_to(gateway.addr());
    // Each line is parsed: what is said cannot become a line of its own.
    assert_eq!(gateway.access_line(&id)["venueId"], evil);
    for (outcome, least) in [("stranger", 2.0), ("member", 1.0)] {
        let series = format!(r#"venue_checks_total{{outcome="{outcome}"}}"#);
        assert!(gateway.metric(&series) >= least, "{series}");
    }
    assert!(gateway.metric(r#"venue_checks_total{outcome="claim"}"#) >= 5.0);
}

/// Sends each of them, and looks at the status, the service, and the audit line.
#[track_caller]
fn all_fail(
    platform: &Platform,
    gateway: &Gateway,
    attempts: Vec<Attempt>,
    denied: &str,
    with_credential: impl Fn(Request) -> Request,
) {
    let mut faults = Vec::new();
    let id = fresh_id();
    let nowhere = Request::get("/nowhere").header("X-Request-ID", &id);
    let no_route = bare(&nowhere.send_to(gateway.addr()), &id);
    let mut sent = Vec::new();
    for Attempt {
        what,
        request,
        verdict,
    } in attempts
    {
        let id = fresh_id();
        let request = with_credential(request).header("X-Request-ID", &id);
        let response = exchange(gateway, &request);
        let allowed: &[u16] = match verdict {
            Verdict::Stranger | Verdict::Tenant => &[404],
            Verdict::Ambiguous => &[400],
            Verdict::Either => &[400, 404],
            Verdict::Unsupported => &[415],
            Verdict::Unclear => &[400, 404, 415],
        };
        let status = response.status;
        if !allowed.contains(&status) {
            faults.push(format!("{what}: {status}, not {verdict:?}"));
        }
        let has_body = !request.bytes().starts_with(b"HEAD ");
        let code = match status {
            _ if !has_body => None,
            400 => Some("BAD_REQUEST"),
            415 => Some("UNSUPPORTED_MEDIA_TYPE"),
            _ => None,
        };
        if code.is_some_and(|code| response.json()["code"] != code) {
            faults.push(format!("{what}: {}", response.text()));
        }
        if status == 404 && has_body && bare(&response, &id) != no_route {
            faults.push(format!("{what}: {}", response.text()));
        }
        let denied = match verdict {
            Verdict::Tenant => "cross_tenant_access",
            _ => denied,
        };
        sent.push((id, what, status, denied));
    }
    if let Some((last, ..)) = sent.last() {
        gateway.access_line(last);
    }
    let mut audits: HashMap<String, Vec<Value>> = HashMap::new();
    let mut accesses: HashSet<String> = HashSet::new();
    for line in gateway.log_lines() {
        let id = line["requestId"].as_str().unwrap_or_default().to_owned();
        match line["context"].as_str() {
            Some("audit") => audits.entry(id).or_default().push(line),
            Some("request") => drop(accesses.insert(id)),
            _ => {}
        }
    }
    for (id, what, status, denied) in &sent {
        let lines = audits.remove(id).unwrap_or_default();
        faults.extend(audit_fault(&lines, *status, denied).map(|why| format!("{what}: {why}")));
        if !accesses.contains(id) {
            faults.push(format!("{what}: no access line"));
        }
    }
    let ids: HashMap<&str, &str> = sent.iter().map(|(id, what, ..)| (&**id, &**what)).collect();
    wait_until("every request is over at the service", || {
        platform.backend.requests().len() == platform.backend.heads_seen()
    });
    for seen in platform.backend.requests() {
        let id = seen.header("X-Request-ID").unwrap_or_default();
        if let Some(what) = ids
            .get(id)
            .filter(|_| seen.complete || !seen.body.is_empty())
        {
            faults.push(format!(
                "{what}: LEAKED: {} {}, {} bytes",
                seen.method,
                seen.target,
                seen.body.len()
            ));
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// What is wrong with what was said of a request that was answered so.
fn audit_fault(lines: &[Value], status: u16, denied: &str) -> Option<String> {
    let (event, severity) = match status {
        404 if denied == "venue_access_denied" => (denied, "high"),
        404 => (denied, "critical"),
        400 | 415 => ("malformed_request", "medium"),
        _ => return None,
    };
    let [line] = lines else {
        return Some(format!("{} audit lines", lines.len()));
    };
    if line["event"] != event || line["severity"] != severity || line["type"] != "security" {
        return Some(line.to_string());
    }
    let named = ["requestId", "ip", "method", "url"]
        .iter()
        .all(|field| line[*field].is_string());
    let of_venue = status == 404 && denied != "cross_tenant_access";
    let known = status != 404 || line["userId"].is_string();
    if !named || !known || (of_venue && !line["venueId"].is_string()) {
        return Some(line.to_string());
    }
    None
}

/// Sends it meanwhile: who refuses need not read a body to its end.
#[track_caller]
fn exchange(gateway: &Gateway, request: &Request) -> Response {
    let mut connection = Client::to(gateway.addr()).connect();
    let bytes = request.bytes();
    let is_head = bytes.starts_with(b"HEAD ");
    let sending = connection.send_meanwhile(bytes);
    let response = match is_head {
        true => connection.read_head_response(),
        false => connection.read_response(),
    };
    drop(connection);
    sending.join().unwrap();
    response
}

/// An internal request speaks for the tenant, and carries nothing that a client said of itself.
#[track_caller]
fn is_internal(asked: &Recorded, tenant: &str) {
    assert_eq!(asked.method, "GET");
    assert_eq!(asked.headers_named("X-Tenant-ID"), [tenant], "{asked:?}");
    assert_eq!(asked.headers_named("X-Tenant-Source"), ["jwt"], "{asked:?}");
    assert_eq!(
        asked.headers_named("X-Gateway-Forwarded"),
        ["true"],
        "{asked:?}"
    );
    for name in [
        "Authorization",
        "X-API-Key",
        "Cookie",
        "X-Venue-ID",
        "Content-Type",
        "Content-Length",
    ] {
        assert_eq!(asked.header_count(name), 0, "{asked:?}");
    }
    assert!(asked.body.is_empty());
}

fn sent_on(platform: &Platform, id: &str) -> Vec<Recorded> {
    let mut requests = platform.backend.requests();
    requests.retain(|one| one.header("X-Request-ID") == Some(id));
    requests
}

fn complete(platform: &Platform, path: &str) -> usize {
    let requests = platform.backend.requests();
    let these = requests
        .iter()
        .filter(|one| one.complete && one.path() == path);
    these.count()
}
