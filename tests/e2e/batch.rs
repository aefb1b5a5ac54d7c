//! Several requests in one: each is judged as if it had come by itself, and nothing is got by it that could not be got so.

use crate::support::http2::{Http2, run};
use crate::support::prelude::*;
use crate::support::tenancy::{Platform, audit_lines, owner_of_v1};
use std::net::TcpStream;

const PATH: &str = "/api/v1/batch";

/// `settings` are top-level keys of the configuration.
fn world(settings: &str) -> (Upstream, Gateway) {
    let backend = Upstream::start_with(|request| {
        Reply::json(json!({"target": request.target, "method": request.method}))
            .header("ETag", "\"1\"")
            .header("Set-Cookie", "session=secret")
            .header("X-Total-Count", "7")
    });
    let limits = match settings.contains("limits:") {
        true => "",
        false => "limits: { enabled: false, flood: { per_second: 100000 } }",
    };
    let gateway = Gateway::with(&format!(
        r#"
{limits}
health: {{ enabled: false }}
outlier: {{ enabled: false }}
overload: {{ enabled: false }}
{settings}
roles: {{ admin: ["*"], customer: ["things:view"] }}
services:
  s: {{ url: "{}", retry: {{ max_retries: 0 }} }}
routes:
- {{ path: "/s/*", service: s, auth: token, timeout: 1s }}
- {{ path: "/things/*", service: s, auth: token, permissions: {{ GET: "things:view", POST: "things:edit" }} }}
- {{ path: "/public/*", service: s, auth: public }}
- {{ path: "/hook/*", service: s, auth: public, webhook: true }}
- {{ path: "/events/*", service: s, auth: token, idle_timeout: 5s }}
- {{ path: "/sockets/*", service: s, auth: token, websocket: {{}} }}
- path: "/both/{{id}}"
  service: s
  auth: token
  methods: [GET]
  aggregate: {{ sources: {{ one: {{ service: s, path: "/one/{{id}}" }}, two: {{ service: s, path: "/two/{{id}}" }} }} }}
"#,
        backend.url()
    ));
    (backend, gateway.start())
}

fn get(id: &str, path: &str) -> Value {
    json!({"id": id, "method": "GET", "path": path})
}

fn batch(calls: &[Value]) -> Request {
    Request::post(PATH).json(&json!({ "calls": calls }))
}

/// The results of a batch of this customer.
#[track_caller]
fn results(gateway: &Gateway, calls: &[Value]) -> Vec<Value> {
    let response = batch(calls)
        .bearer(&token::customer())
        .send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    results_of(&response)
}

#[track_caller]
fn results_of(response: &Response) -> Vec<Value> {
    response.json()["results"].as_array().unwrap().clone()
}

fn statuses(results: &[Value]) -> Vec<u64> {
    results
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect()
}

#[test]
fn every_call_has_the_answer_that_it_would_have_by_itself() {
    let (backend, gateway) = world("");
    let calls = [
        get("a", "/s/a?x=1"),
        get("b", "/nowhere"),
        json!({"id": "c", "method": "POST", "path": "/things/1", "body": {}}),
        json!({"id": "d", "method": "PUT", "path": "/both/1"}),
        get("e", "/s/../x"),
        get("f", "/public/p"),
        json!({"id": "g", "method": "HEAD", "path": "/s/h"}),
        get("h", "/both/7"),
        get("i", "/live"),
    ];
    let results = results(&gateway, &calls);
    let ids: Vec<_> = results.iter().map(|result| result["id"].clone()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
    assert_eq!(
        statuses(&results),
        [200, 404, 403, 405, 400, 200, 200, 200, 200]
    );
    assert_eq!(
        results[0]["body"],
        json!({"target": "/s/a?x=1", "method": "GET"})
    );
    assert_eq!(results[1]["body"]["code"], "NOT_FOUND");
    assert_eq!(results[2]["body"]["code"], "FORBIDDEN");
    assert_eq!(results[3]["headers"]["allow"], "GET, HEAD");
    assert_eq!(results[6]["body"], Value::Null);
    assert_eq!(results[7]["body"]["data"]["two"]["target"], "/two/7");
    let headers = &results[0]["headers"];
    assert_eq!(headers["etag"], "\"1\"");
    assert_eq!(headers["x-total-count"], "7");
    assert_eq!(headers["content-type"], "application/json");
    for hidden in [
        "set-cookie",
        "connection",
        "transfer-encoding",
        "content-length",
        "x-frame-options",
        "strict-transport-security",
    ] {
        assert_eq!(headers[hidden], Value::Null, "{hidden}");
    }
    assert_eq!(backend.count(), 5, "what is refused goes nowhere");
}

#[test]
fn a_call_comes_from_its_batchs_client_and_has_its_credentials() {
    let (backend, gateway) =
        world("server: { trusted_proxies: [127.0.0.0/8] }\ntracing: { enabled: true }");
    let calls = [
        json!({"id": "a", "method": "POST", "path": "/s/a", "body": [1], "headers": {"Idempotency-Key": "k1"}}),
        json!({"id": "b", "method": "GET", "path": "/s/b", "headers": {"Accept-Language": "nb"}}),
    ];
    let response = batch(&calls)
        .bearer(&token::customer())
        .header("X-Request-ID", "the-batch")
        .header("X-Forwarded-For", "203.0.113.7")
        .header("X-Forwarded-Proto", "https")
        .header("User-Agent", "app/1")
        .header("Idempotency-Key", "of-the-batch")
        .header("Cookie", "a=b")
        .send_to(gateway.addr());
    assert_eq!(statuses(&results_of(&response)), [200, 200]);
    let mut seen = backend.requests();
    seen.sort_by_key(|request| request.target.clone());
    for request in &seen {
        assert_eq!(request.header("x-original-ip"), Some("203.0.113.7"));
        assert_eq!(request.header("x-forwarded-proto"), Some("https"));
        assert_eq!(request.header("x-tenant-id"), Some("t1"));
        assert_eq!(request.header("user-agent"), Some("app/1"));
        assert_eq!(request.header("accept-encoding"), Some("identity"));
        assert_eq!(request.header("cookie"), None, "no route asks for it");
    }
    assert_eq!(seen[0].json(), json!([1]));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert_eq!(seen[0].header("idempotency-key"), Some("k1"));
    assert_eq!(seen[1].header("idempotency-key"), None);
    assert_eq!(seen[1].header("accept-language"), Some("nb"));
    let ids: Vec<_> = seen
        .iter()
        .map(|request| request.header("x-request-id"))
        .collect();
    assert_eq!(ids, [Some("the-batch.1"), Some("the-batch.2")]);

    let line = gateway.access_line("the-batch");
    assert_eq!(
        (&line["route"], &line["method"], &line["ip"]),
        (&json!(PATH), &json!("POST"), &json!("203.0.113.7"))
    );
    for id in ["the-batch.1", "the-batch.2"] {
        let call = gateway.access_line(id);
        assert_eq!(call["parentRequestId"], "the-batch");
        assert_eq!(call["userId"], "u1");
        assert_eq!(call["ip"], "203.0.113.7");
        assert_eq!(call["route"], "/s/*");
        assert_eq!(call["traceId"], line["traceId"]);
    }
    assert_eq!(gateway.metric("batch_calls_total"), 2.0);
    for series in [
        r#"http_requests_total{method="POST",route="/api/v1/batch",status_code="200"}"#,
        r#"http_requests_total{method="POST",route="/s/*",status_code="200"}"#,
        r#"http_requests_total{method="GET",route="/s/*",status_code="200"}"#,
    ] {
        assert_eq!(gateway.metric(series), 1.0, "{series}");
    }
    let open = r#"http_requests_in_progress{method="POST",route="/api/v1/batch"}"#;
    gateway.wait_metric(open, |open| open == 0.0);
}

#[test]
fn every_call_is_identified_by_itself() {
    let (backend, gateway) = world("");
    let calls = [
        get("a", "/s/a"),
        get("b", "/public/b"),
        get("c", "/metrics"),
    ];
    let anonymous = batch(&calls).send_to(gateway.addr());
    let results = results_of(&anonymous);
    assert_eq!(statuses(&results), [401, 200, 200]);
    assert_eq!(results[0]["body"]["code"], "AUTH_REQUIRED");
    assert!(results[0]["headers"]["www-authenticate"].is_string());
    let expired = Token::user("u1").expires_in(-60).hs256();
    let late = batch(&calls[..1]).bearer(&expired).send_to(gateway.addr());
    assert_eq!(results_of(&late)[0]["body"]["code"], "TOKEN_EXPIRED");
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_batch_does_not_multiply_what_a_caller_may_do() {
    let (backend, gateway) = world("limits: { global: { max: 5, window: 60s } }");
    let calls: Vec<Value> = (0..8).map(|i| get(&i.to_string(), "/s/x")).collect();
    let results = results(&gateway, &calls);
    let mut of = statuses(&results);
    of.sort_unstable();
    assert_eq!(of, [200, 200, 200, 200, 200, 429, 429, 429]);
    let refused = results
        .iter()
        .find(|result| result["status"] == 429)
        .unwrap();
    assert_eq!(refused["body"]["code"], "RATE_LIMIT_ERROR");
    assert!(refused["headers"]["retry-after"].is_string());
    assert_eq!(refused["headers"]["x-ratelimit-limit"], "5");
    assert_eq!(backend.count(), 5);
    let single = Request::get("/s/x").bearer(&token::customer());
    assert_eq!(
        single.send_to(gateway.addr()).status,
        429,
        "the same window"
    );
}

#[test]
fn the_flood_guard_counts_every_call() {
    let (_backend, gateway) =
        world("limits: { global: { max: 100000, window: 60s }, flood: { per_second: 10 } }");
    let calls: Vec<Value> = (0..20).map(|i| get(&i.to_string(), "/nowhere")).collect();
    let results = results(&gateway, &calls);
    let refused = statuses(&results)
        .iter()
        .filter(|status| **status == 429)
        .count();
    assert!(refused >= 8, "{refused}");
}

#[test]
fn failed_authentication_is_counted_for_every_call() {
    let settings = "limits: { global: { max: 100000, window: 60s }, flood: { per_second: 100000 } }
auth: { failures: { max: 5, window: 60s } }";
    for (count, next) in [(4, 401), (5, 429)] {
        let (_backend, gateway) = world(settings);
        let forged =
            |user: &str| Token::user(user).signed_with("another secret, as long as a secret is");
        let calls: Vec<Value> = (0..count).map(|i| get(&i.to_string(), "/s/x")).collect();
        let response = batch(&calls).bearer(&forged("u1")).send_to(gateway.addr());
        assert_eq!(statuses(&results_of(&response)), vec![401; count]);
        let other = Request::get("/s/x").bearer(&forged("u2"));
        assert_eq!(other.send_to(gateway.addr()).status, next, "after {count}");
    }
}

#[test]
fn a_foreign_venue_is_none_in_a_batch_either() {
    let platform = Platform::with_members(&[]);
    let gateway = platform.start("");
    let calls = [
        get("a", "/api/v1/venues/v9"),
        json!({"id": "b", "method": "POST", "path": "/x/1", "body": {"venueId": "v9"}}),
        json!({"id": "c", "method": "GET", "path": "/x/1", "headers": {"X-Venue-ID": "v9"}}),
        json!({"id": "d", "method": "POST", "path": "/x/2", "body": {"venueId": "v1"}}),
        get("e", "/api/v1/venues/v1"),
    ];
    let response = batch(&calls)
        .bearer(&owner_of_v1().hs256())
        .header("X-Request-ID", "venues-batch")
        .header("X-Venue-ID", "v1")
        .send_to(gateway.addr());
    assert_eq!(statuses(&results_of(&response)), [404, 404, 404, 200, 200]);
    assert_eq!(platform.backend.count(), 2);
    wait_until("the audit log has them", || {
        (1..=3).all(|n| audit_lines(&gateway, &format!("venues-batch.{n}")).len() == 1)
    });
}

#[test]
fn some_things_cannot_be_in_a_batch() {
    let (backend, gateway) = world("");
    let calls = [
        json!({"id": "a", "method": "POST", "path": PATH, "body": {"calls": [get("x", "/s/x")]}}),
        json!({"id": "b", "method": "POST", "path": "/hook/1", "body": {}}),
        get("c", "/events/1"),
        get("d", "/api/v1/%62atch"),
    ];
    let results = results(&gateway, &calls);
    assert_eq!(statuses(&results), [400, 400, 400, 400]);
    for result in &results {
        assert_eq!(
            result["body"]["message"],
            "This cannot be called in a batch"
        );
    }
    assert_eq!(backend.heads_seen(), 0);
    backend.set(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n").then_hang()
    });
    let start = Instant::now();
    let results = self::results(&gateway, &[get("a", "/s/stream")]);
    // What it did is done: its status says so.
    assert_eq!(statuses(&results), [200]);
    assert_eq!(
        (&results[0]["truncated"], &results[0]["body"]),
        (&json!(true), &Value::Null)
    );
    assert!(
        start.elapsed() < Duration::from_millis(900),
        "it is not waited for"
    );
    wait_until("the stream is ended", || backend.open_connections() == 0);
}

#[test]
fn a_batch_that_is_none_is_refused_before_anything_is_called() {
    let (backend, gateway) = world("");
    let good = get("a", "/s/a");
    let with = |member: &str, value: Value| {
        let mut call = get("b", "/s/b");
        call[member] = value;
        json!({"calls": [good.clone(), call]})
    };
    let mut connection = Client::to(gateway.addr()).connect();
    for body in [
        json!({}),
        json!([]),
        json!({"calls": []}),
        json!({"calls": [good.clone(), good.clone()]}),
        json!({"calls": (0..21).map(|i| get(&i.to_string(), "/s/x")).collect::<Vec<_>>()}),
        json!({"calls": [good.clone()], "more": 1}),
        with("headers", json!({"Authorization": "Bearer other"})),
        with("headers", json!({"X-Api-Key": "other"})),
        with("headers", json!({"Host": "other.test"})),
        with("headers", json!({"X-Forwarded-For": "203.0.113.1"})),
        with("headers", json!({"X-Tenant-ID": "t2"})),
        with(
            "headers",
            json!({"Upgrade": "websocket", "Connection": "upgrade"}),
        ),
        with("headers", json!({"Transfer-Encoding": "chunked"})),
        with("path", json!("/s/b HTTP/1.1\r\nX-Tenant-ID: t2\r\n")),
        with("path", json!("http://other.test/s")),
        with("method", json!("GET /s/c")),
        with("headers", json!({"Content-Type": "application/grpc"})),
        with("id", json!("a")),
    ] {
        let request = Request::post(PATH).bearer(&token::customer()).json(&body);
        let response = connection.request(&request);
        assert_eq!(response.status, 400, "{body}");
        assert_eq!(response.json()["code"], "BAD_REQUEST", "{body}");
    }
    for (request, status) in [
        (Request::get(PATH), 405),
        (Request::post(PATH).body("{}"), 415),
        (
            Request::post(PATH)
                .header("Content-Type", "text/plain")
                .body("{}"),
            415,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json")
                .header("Content-Encoding", "gzip")
                .body("{}"),
            415,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json")
                .header("Content-Encoding", "identity")
                .header("Content-Encoding", "gzip")
                .body("{}"),
            415,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json; charset=utf-16")
                .body("{}"),
            415,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json")
                .header("Content-Type", "text/plain")
                .body("{}"),
            400,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json")
                .body("{\"calls\":["),
            400,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json")
                .body(b"\xff".to_vec()),
            400,
        ),
        (
            Request::post(PATH)
                .header("Content-Type", "application/json")
                .body("[".repeat(100_000)),
            400,
        ),
        (
            Request::post(PATH)
                .header("Origin", "https://evil.test")
                .json(&json!({"calls": [good.clone()]})),
            403,
        ),
    ] {
        let response = request.bearer(&token::customer()).send_to(gateway.addr());
        assert_eq!(response.status, status, "{}", response.text());
    }
    assert_eq!(backend.heads_seen(), 0);
    let preflight = Request::method("OPTIONS", PATH)
        .header("Origin", "http://frontend:5173")
        .header("Access-Control-Request-Method", "POST");
    assert_eq!(preflight.send_to(gateway.addr()).status, 204);
}

#[test]
fn what_is_too_large_is_refused_or_left_out() {
    let (backend, gateway) = world("batch: { body: 16KiB, answer: 16KiB }");
    let body = json!({"calls": [{"id": "a", "method": "POST", "path": "/s/a", "body": "x".repeat(17 << 10)}]});
    let large = Request::post(PATH).bearer(&token::customer()).json(&body);
    assert_eq!(large.send_to(gateway.addr()).status, 413);
    let text = body.to_string();
    let chunks = text.as_bytes().chunks(1000).map(<[u8]>::to_vec).collect();
    let chunked = Request::post(PATH)
        .bearer(&token::customer())
        .header("Content-Type", "application/json")
        .chunked(chunks);
    assert_eq!(chunked.send_to(gateway.addr()).status, 413);
    assert_eq!(backend.heads_seen(), 0);
    backend.set(|request| match request.path() {
        "/s/large" => Reply::status(201)
            .header("ETag", "\"l\"")
            .body(vec![b'x'; 17 << 10]),
        _ => Reply::status(200).body("y"),
    });
    let results = results(
        &gateway,
        &[
            json!({"id": "a", "method": "POST", "path": "/s/large"}),
            get("b", "/s/small"),
        ],
    );
    assert_eq!(statuses(&results), [201, 200], "what it did is done");
    assert_eq!(results[0]["truncated"], json!(true));
    assert_eq!(results[0]["body"], Value::Null);
    assert_eq!(results[0]["headers"]["etag"], "\"l\"");
    assert_eq!(results[1]["truncated"], Value::Null);
}

#[test]
fn bodies_go_both_ways_as_what_they_are() {
    let (backend, gateway) = world("");
    backend.set(|request| {
        let kind = request
            .header("content-type")
            .unwrap_or("application/octet-stream");
        Reply::status(200)
            .header("Content-Type", kind)
            .body(match request.path() {
                "/s/bytes" => vec![0, 159, 146, 150],
                _ => request.body.clone(),
            })
    });
    let post = |id: &str, path: &str, kind: Option<&str>, body: Value| {
        let mut call = json!({"id": id, "method": "POST", "path": path, "body": body});
        if let Some(kind) = kind {
            call["headers"] = json!({ "Content-Type": kind });
        }
        call
    };
    let long = "é".repeat(60_000);
    let results = results(
        &gateway,
        &[
            post("a", "/s/a", None, json!({"deep": [1, {"x": null}]})),
            post("b", "/s/b", None, json!("text")),
            post("c", "/s/c", Some("text/plain"), json!("line\r\nline")),
            post(
                "d",
                "/s/d",
                Some("application/x-www-form-urlencoded"),
                json!("a=1&b=2"),
            ),
            post("e", "/s/bytes", None, json!(1)),
            post("f", "/s/f", Some("text/plain"), json!(long.clone())),
            post("g", "/s/g", Some("text/plain; charset=utf-8"), Value::Null),
        ],
    );
    assert_eq!(statuses(&results), [200; 7]);
    assert_eq!(results[0]["body"], json!({"deep": [1, {"x": null}]}));
    assert_eq!(results[1]["body"], "text");
    assert_eq!(results[2]["body"], "line\r\nline");
    assert_eq!(results[3]["body"], "a=1&b=2");
    assert_eq!(
        (&results[4]["body"], &results[4]["encoding"]),
        (&json!("AJ+Slg=="), &json!("base64"))
    );
    assert_eq!(results[5]["body"].as_str().map(str::len), Some(long.len()));
    assert_eq!(results[6]["body"], Value::Null);
    let bodies: Vec<_> = backend.requests();
    let text = bodies
        .iter()
        .find(|request| request.path() == "/s/c")
        .unwrap();
    assert_eq!(text.body, b"line\r\nline");
}

#[test]
fn json_goes_both_ways_byte_for_byte() {
    const ODD: &str = r#"{"wei": 100000000000000000000, "b":1.10,  "a":[ ],"a":1}"#;
    let (backend, gateway) = world("");
    backend.set(|request| {
        let body = match request.path() {
            "/s/lone" => br#""\ud800""#.to_vec(),
            "/s/deep" => [b"[".repeat(200), b"]".repeat(200)].concat(),
            "/s/none" => b"no JSON".to_vec(),
            _ => request.body.clone(),
        };
        Reply::status(200)
            .header("Content-Type", "application/json")
            .body(body)
    });
    let body = format!(
        r#"{{"calls": [{{"id":"a","method":"POST","path":"/s/a","body": {ODD} }},
            {{"id":"b","method":"GET","path":"/s/lone"}},
            {{"id":"c","method":"GET","path":"/s/deep"}},
            {{"id":"d","method":"GET","path":"/s/none"}}]}}"#
    );
    let response = Request::post(PATH)
        .bearer(&token::customer())
        .header("Content-Type", "Application/JSON; charset=utf-8")
        .header("Content-Encoding", "Identity")
        .body(body)
        .send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    let sent = backend.requests();
    let sent = sent.iter().find(|request| request.path() == "/s/a");
    assert_eq!(sent.unwrap().body, ODD.as_bytes());
    assert!(response.text().contains(ODD), "{}", response.text());
    // What some parser would refuse is told as a text, and spoils nothing else.
    let results = results_of(&response);
    assert_eq!(results[1]["body"], r#""\ud800""#);
    assert_eq!(results[2]["body"].as_str().map(str::len), Some(400));
    assert_eq!(results[3]["body"], "no JSON");
}

#[test]
fn an_answer_of_many_little_values_takes_no_more_room_than_its_text() {
    let (backend, gateway) = world("batch: { answer: 8MiB, calls: 8 }");
    let values = vec!["{\"\":0}"; 500_000].join(",");
    let text = format!("[{values}]");
    backend.set(move |_| {
        Reply::status(200)
            .header("Content-Type", "application/json")
            .body(text.clone())
    });
    let before = most_memory_kb(&gateway);
    let response = batch(&[get("a", "/s/a"), get("b", "/s/b")])
        .bearer(&token::customer())
        .send_to(gateway.addr());
    assert_eq!(response.status, 200);
    assert!(response.body.len() > 2 * 7 * 500_000);
    let grown = most_memory_kb(&gateway) - before;
    println!("measured: {grown} KiB for two answers of 4 MiB");
    // Built, they would take 600 MiB.
    assert!(grown < 100 << 10, "{grown} KiB");
}

#[test]
fn batches_that_only_announce_a_body_take_no_room_from_others() {
    let (_backend, gateway) = world("batch: { body: 8MiB }");
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 8388608\r\n\r\n{{"
    );
    let mut waiting: Vec<_> = (0..20)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    for client in &mut waiting {
        client.send(head.as_bytes());
    }
    let open = r#"http_requests_in_progress{method="POST",route="/api/v1/batch"}"#;
    gateway.wait_metric(open, |count| count == 20.0);
    assert_eq!(statuses(&results(&gateway, &[get("a", "/s/a")])), [200]);
}

#[test]
fn bodies_of_batches_are_bounded_by_address_and_take_no_room_from_those_that_are_held_back() {
    let (_backend, gateway) = world("batch: { body: 8MiB }\nvalidation: {}");
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 8388608\r\n\r\n"
    );
    let most = vec![b' '; (8 << 20) - 1];
    // 64 MiB for one address, which nine have no room in.
    let mut waiting: Vec<_> = (0..9)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    for client in &mut waiting {
        client.send(head.as_bytes());
        // The one that there is no room for is answered, and may be closed meanwhile.
        let _ = client.try_send(&most);
    }
    gateway.wait_log(|line| line["code"] == "SERVICE_UNAVAILABLE");
    drop(waiting);
    wait_until("the room is given back", || {
        let response = batch(&[get("a", "/s/a")])
            .bearer(&token::customer())
            .send_to(gateway.addr());
        response.status == 200
    });
}

#[test]
fn answers_that_nobody_takes_are_bounded_by_address() {
    let (backend, gateway) = world("batch: { answer: 8MiB, calls: 8 }");
    let text = "x".repeat(7 << 20);
    backend.set(move |_| {
        Reply::status(200)
            .header("Content-Type", "text/plain")
            .body(text.clone())
    });
    let calls = |count: usize| -> Vec<Value> {
        (0..count)
            .map(|i| get(&i.to_string(), "/public/p"))
            .collect()
    };
    let mut slow = Client::to(gateway.addr()).connect();
    slow.send(&batch(&calls(8)).bytes());
    assert_eq!(slow.read_up_to(12), b"HTTP/1.1 200");
    // 56 of 64 MiB are held for it: there is room for one more.
    let truncated = || {
        let results = results(&gateway, &calls(2));
        assert_eq!(statuses(&results), [200, 200]);
        let is_cut = |result: &&Value| result["truncated"] == true && result["body"].is_null();
        results.iter().filter(is_cut).count()
    };
    assert_eq!(truncated(), 1);
    slow.reset();
    wait_until("the room is given back", || truncated() == 0);
}

/// The most that it had resident at any time.
#[track_caller]
fn most_memory_kb(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let words = line.unwrap().split_whitespace().nth(1);
    words.unwrap().parse().unwrap()
}

#[test]
fn calls_run_side_by_side_and_not_too_many_at_once() {
    let (backend, gateway) = world("batch: { at_once: 4 }");
    backend.hold();
    let calls: Vec<Value> = (0..10)
        .map(|i| get(&i.to_string(), &format!("/s/{i}")))
        .collect();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&batch(&calls).bearer(&token::customer()).bytes());
    wait_until("four are under way", || backend.heads_seen() == 4);
    std::thread::sleep(Duration::from_millis(100)); // for a fifth, which must not come
    assert_eq!(backend.heads_seen(), 4);
    backend.release();
    let results = results_of(&connection.read_response());
    let targets: Vec<_> = results
        .iter()
        .map(|result| result["body"]["target"].clone())
        .collect();
    let expected: Vec<Value> = (0..10).map(|i| json!(format!("/s/{i}"))).collect();
    assert_eq!(targets, expected, "in the order of the calls");
    assert_eq!(
        connection
            .request(&batch(&calls[..1]).bearer(&token::customer()))
            .status,
        200
    );
}

#[test]
fn a_call_that_hangs_costs_its_own_time_and_none_more_than_the_batchs() {
    let (backend, gateway) = world("batch: { timeout: 3s }");
    backend.set(|request| match request.path() {
        "/s/hang" | "/things/hang" => Reply::hang(),
        _ => Reply::json(json!(1)),
    });
    let start = Instant::now();
    let of = results(&gateway, &[get("a", "/s/hang"), get("b", "/s/well")]);
    assert_eq!(statuses(&of), [504, 200]);
    assert_eq!(of[0]["body"]["code"], "GATEWAY_TIMEOUT");
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "the route has 1 s"
    );
    let (_backend, gateway) = {
        let (backend, gateway) = world("batch: { timeout: 300ms, at_once: 1 }");
        backend.set(|_| Reply::hang());
        (backend, gateway)
    };
    let start = Instant::now();
    let of = results(&gateway, &[get("a", "/s/hang"), get("b", "/s/later")]);
    assert_eq!(statuses(&of), [504, 504]);
    assert!(start.elapsed() < Duration::from_millis(900));
    assert_eq!(_backend.heads_seen(), 1, "there is no time for the second");
}

#[test]
fn what_fails_at_the_backend_is_told_for_its_call_alone() {
    let (backend, gateway) = world("");
    backend.set(|request| match request.path() {
        "/s/500" => Reply::status(500).body("oops"),
        "/s/reset" => Reply::reset(),
        "/s/cut" => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").then_close(),
        "/s/gzip" => Reply::status(200)
            .header("Content-Encoding", "gzip")
            .header("Content-Type", "application/json")
            .body("{}"),
        "/s/304" => Reply::raw("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n"),
        _ => Reply::status(204),
    });
    let calls = ["500", "reset", "cut", "gzip", "304", "204"];
    let calls = calls.map(|path| get(path, &format!("/s/{path}")));
    let results = results(&gateway, &calls);
    assert_eq!(statuses(&results), [500, 502, 502, 200, 304, 204]);
    assert_eq!(results[0]["body"], "oops");
    assert_eq!(results[1]["body"]["code"], "BAD_GATEWAY");
    assert_eq!(
        (&results[3]["encoding"], &results[3]["body"]),
        (&json!("base64"), &json!("e30="))
    );
}

#[test]
fn a_batch_is_finished_although_its_client_has_gone() {
    let (backend, gateway) = world("");
    backend.hold();
    let post =
        |id: &str| json!({"id": id, "method": "POST", "path": format!("/s/{id}"), "body": 1});
    let mut connection = Client::to(gateway.addr()).connect();
    let request = batch(&[post("a"), post("b")])
        .bearer(&token::customer())
        .header("X-Request-ID", "gone");
    connection.send(&request.bytes());
    wait_until("both are under way", || backend.heads_seen() == 2);
    connection.reset();
    backend.release();
    for id in ["gone.1", "gone.2"] {
        assert_eq!(gateway.access_line(id)["statusCode"], 200);
    }
    gateway.access_line("gone");
}

#[test]
fn over_http2_and_while_the_process_ends_it_is_the_same() {
    let (backend, gateway) = world("");
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let request = client
            .request("POST", PATH)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", token::customer()));
        let body = json!({"calls": [get("a", "/s/a"), {"id": "b", "method": "POST", "path": "/s/b", "body": {"x": 1}}]});
        let answer = client
            .fetch(request, body.to_string().as_bytes())
            .await
            .unwrap();
        assert_eq!(answer.status, 200);
        let results = answer.json()["results"].as_array().unwrap().clone();
        assert_eq!(statuses(&results), [200, 200]);
    });
    backend.hold();
    let mut connection = Client::to(gateway.addr()).connect();
    let calls: Vec<Value> = (0..12)
        .map(|i| get(&i.to_string(), &format!("/s/{i}")))
        .collect();
    connection.send(&batch(&calls).bearer(&token::customer()).bytes());
    wait_until("the first are under way", || backend.heads_seen() == 2 + 8);
    gateway.signal(15);
    wait_until("new connections are refused", || {
        TcpStream::connect(gateway.addr()).is_err()
    });
    backend.release();
    let results = results_of(&connection.read_response());
    assert_eq!(statuses(&results), [200; 12], "those that waited, too");
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)), Some(0));
}

#[test]
fn an_empty_path_takes_no_batches() {
    let (_backend, gateway) = world("batch: { path: \"\" }");
    let response = batch(&[get("a", "/s/a")])
        .bearer(&token::customer())
        .send_to(gateway.addr());
    assert_eq!(response.status, 404);
}
