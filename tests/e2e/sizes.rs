//! How large a request may be: bodies by what they announce and by what comes, heads while they are read, and what
//! happens to those who ask first (`Expect: 100-continue`).

use crate::support::prelude::*;

#[test]
fn an_announced_body_over_the_limit_is_413_before_anything_is_forwarded() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    for (path, limit) in [
        ("/open/x", 1024),
        ("/wide/x", 4096),
        ("/narrow/x", 10),
        ("/none/x", 0),
    ] {
        let exact = Request::post(path)
            .body(vec![b'a'; limit])
            .send_to(gateway.addr());
        assert_eq!(
            (exact.status, exact.json()["length"].as_u64()),
            (200, Some(limit as u64)),
            "{path}"
        );
        let before = echo.heads_seen();
        let over = Request::post(path)
            .body(vec![b'a'; limit + 1])
            .send_to(gateway.addr());
        assert_413(&over, path);
        let huge = Request::post(path).header("Content-Length", "999999999999999999");
        assert_413(&huge.send_to(gateway.addr()), path);
        assert_eq!(echo.heads_seen(), before, "{path}");
    }
}

#[test]
fn a_chunked_body_is_cut_off_at_the_limit_and_never_complete_at_the_backend() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    for (path, limit) in [("/open/x", 1024), ("/narrow/x", 10)] {
        let halves = vec![vec![b'a'; limit / 2], vec![b'a'; limit - limit / 2]];
        let exact = Request::post(path).chunked(halves).send_to(gateway.addr());
        assert_eq!(
            (exact.status, exact.json()["length"].as_u64()),
            (200, Some(limit as u64)),
            "{path}"
        );
        for chunks in [
            vec![vec![b'a'; limit], vec![b'b'; 1]],
            vec![vec![b'a'; limit + 1]],
            vec![b"a".to_vec(); limit + 1],
            vec![vec![b'a'; 300_000]],
        ] {
            let mut connection = Client::to(gateway.addr()).connect();
            connection.send(&Request::post(path).chunked(chunks).bytes());
            let over = connection.read_response();
            assert_413(&over, path);
            assert_eq!(over.header("Connection"), Some("close"), "{path}");
            assert!(connection.is_closed(), "{path}");
        }
    }
    wait_until("every body has ended at the backend", || {
        echo.count() == echo.heads_seen()
    });
    for seen in echo.requests() {
        let limit = if seen.target == "/open/x" { 1024 } else { 10 };
        assert!(
            seen.body.len() <= limit,
            "{}: {} bytes",
            seen.target,
            seen.body.len()
        );
        assert_eq!(
            seen.complete,
            seen.body.len() == limit
                && !seen.body.contains(&b'b')
                && seen.raw.ends_with(b"0\r\n\r\n")
        );
    }
    let complete = echo.requests().iter().filter(|seen| seen.complete).count();
    assert_eq!(complete, 2, "the two of the exact length");
    assert_eq!(Request::get("/open/x").send_to(gateway.addr()).status, 200);
}

#[test]
fn an_endless_chunked_body_is_answered_while_the_client_still_sends() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection
        .send(b"POST /open/x HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    connection.send(&[&b"800\r\n"[..], &[b'a'; 2048], b"\r\n"].concat());
    assert_413(&connection.read_response(), "an endless body");
    assert!(connection.is_closed());
}

#[test]
fn the_platform_limits_bodies_to_ten_mebibytes() {
    let events = Upstream::start_with(tell);
    let gateway = Gateway::platform_unchecked()
        .env("PAYMENT_SERVICE_URL", events.url())
        .start();
    let limit = 10 * 1024 * 1024;
    let exact = Request::post("/api/v1/webhooks/square")
        .body(vec![b'a'; limit])
        .send_to(gateway.addr());
    assert_eq!(
        (exact.status, exact.json()["length"].as_u64()),
        (200, Some(limit as u64))
    );
    let over =
        Request::post("/api/v1/webhooks/square").header("Content-Length", &(limit + 1).to_string());
    assert_413(&over.send_to(gateway.addr()), "10 MiB and a byte");
    assert_eq!(events.heads_seen(), 1);
}

#[test]
fn a_head_has_its_limits_in_bytes_fields_and_target_and_what_just_fits_passes() {
    let echo = Upstream::start_with(tell);
    let small = "sizes: { headers: 2KiB, header_fields: 10, uri: 1KiB, body: 1KiB }";
    let gateway = Gateway::with(&yaml(&echo).replace("sizes: { body: 1KiB }", small)).start();
    let head_of = |length: usize| {
        let empty = Request::get("/open/x")
            .header("X-Pad", "")
            .head_bytes()
            .len();
        Request::get("/open/x").header("X-Pad", &"p".repeat(length - empty))
    };
    // Host is a field as well.
    let fields = |count| {
        (1..count).fold(Request::get("/open/x"), |request, i| {
            request.header(&format!("X-{i}"), "y")
        })
    };
    let target = |length: usize| Request::get(&format!("/open/{}", "t".repeat(length - 6)));
    let query = |length: usize| Request::get(&format!("/open/x?{}", "q".repeat(length - 8)));
    assert_eq!(head_of(2048).head_bytes().len(), 2048);
    for (name, request, status, code) in [
        ("bytes that fit", head_of(2048), 200, ""),
        ("a byte more", head_of(2049), 431, "HEADERS_TOO_LARGE"),
        (
            "many bytes more",
            head_of(200_000),
            431,
            "HEADERS_TOO_LARGE",
        ),
        ("fields that fit", fields(10), 200, ""),
        ("a field more", fields(11), 431, "HEADERS_TOO_LARGE"),
        ("many fields more", fields(150), 431, "HEADERS_TOO_LARGE"),
        ("a target that fits", target(1024), 200, ""),
        ("a longer target", target(1025), 414, "URI_TOO_LONG"),
        ("a query that fits", query(1024), 200, ""),
        ("a longer query", query(1025), 414, "URI_TOO_LONG"),
        ("a very long query", query(100_000), 414, "URI_TOO_LONG"),
    ] {
        let mut connection = Client::to(gateway.addr()).connect();
        let response = connection.request(&request);
        assert_eq!(response.status, status, "{name}");
        if status != 200 {
            assert_eq!(response.json()["code"], code, "{name}");
            assert_eq!(response.header("Connection"), Some("close"), "{name}");
            assert!(connection.is_closed(), "{name}");
            let id = response.header("X-Request-ID").unwrap();
            assert_eq!(gateway.access_line(id)["route"], "unmatched", "{name}");
        }
    }
    assert_eq!(echo.heads_seen(), 4);
}

#[test]
fn the_platform_allows_32_kib_100_fields_and_8_kib_of_target() {
    let echo = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .env("PAYMENT_SERVICE_URL", echo.url())
        .start();
    let base = |target: &str| Request::get(target);
    let health = "/api/v1/payments/health";
    let empty = base(health).header("X-Pad", "").head_bytes().len();
    let padded = |length: usize| base(health).header("X-Pad", &"p".repeat(length - empty));
    let fields = |count| {
        (1..count).fold(base(health), |request, i| {
            request.header(&format!("X-{i}"), "y")
        })
    };
    let target = |length: usize| {
        base(&format!(
            "{health}?{}",
            "q".repeat(length - health.len() - 1)
        ))
    };
    for (name, request, status) in [
        ("32 KiB", padded(32 * 1024), 200),
        ("32 KiB and a byte", padded(32 * 1024 + 1), 431),
        ("100 fields", fields(100), 200),
        ("101 fields", fields(101), 431),
        ("8 KiB of target", target(8 * 1024), 200),
        ("8 KiB and a byte of target", target(8 * 1024 + 1), 414),
    ] {
        assert_eq!(request.send_to(gateway.addr()).status, status, "{name}");
    }
}

#[test]
fn expect_100_continue_gets_its_100_and_then_its_answer() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let request = |path: &str| Request::post(path).header("Expect", "100-continue");
    for (expected, request) in [
        (5, request("/open/x").body("hello")),
        (5, request("/open/x").chunked(vec!["he", "llo"])),
        (
            5,
            Request::post("/open/x")
                .header("expect", "100-Continue")
                .body("hello"),
        ),
    ] {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&request.head_bytes());
        let interim = connection.read_response();
        assert_eq!(
            (interim.status, interim.headers.len()),
            (100, 0),
            "{interim:?}"
        );
        connection.send(&request.bytes()[request.head_bytes().len()..]);
        let response = connection.read_response();
        assert_eq!(
            (response.status, response.json()["length"].as_u64()),
            (200, Some(expected))
        );
        let next = connection.request(&Request::get("/open/next"));
        assert_eq!(next.status, 200, "the connection goes on");
    }
    let impatient = request("/open/x").body("hello");
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&impatient.bytes());
    let mut response = connection.read_response();
    if response.status == 100 {
        response = connection.read_response();
    }
    assert_eq!(
        (response.status, response.json()["length"].as_u64()),
        (200, Some(5))
    );
}

#[test]
fn who_asks_before_sending_a_body_that_is_refused_gets_the_answer_and_no_100() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let before = echo.heads_seen();
    for (path, length, status) in [
        ("/open/x", 1025, 413),
        ("/closed/x", 5, 401),
        ("/nowhere", 5, 404),
        ("/open/../x", 5, 400),
    ] {
        let request = Request::post(path)
            .header("Expect", "100-continue")
            .header("Content-Length", &length.to_string());
        let mut connection = Client::to(gateway.addr()).connect();
        let response = connection.request(&request);
        assert_eq!(response.status, status, "{path}");
        // The client may now send the body or a new request: only closing is unambiguous (RFC 9110, 10.1.1).
        let body = vec![b'a'; length];
        connection.send(&body);
        connection.send(&Request::get("/open/next").bytes());
        if let Ok(next) = connection.try_read_response() {
            assert_eq!(
                (next.status, next.json()["target"].as_str()),
                (200, Some("/open/next")),
                "{path}"
            );
        }
    }
    let refused = echo
        .requests()
        .iter()
        .filter(|seen| seen.target != "/open/next")
        .count();
    assert_eq!((refused, before), (0, 0));
}

#[test]
fn another_expectation_is_417() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    for expectation in ["200-ok", "100-continue, 200-ok", "", "100-continue=x"] {
        let request = Request::post("/open/x")
            .header("Expect", expectation)
            .body("hello");
        let response = request.send_to(gateway.addr());
        assert_eq!(
            (response.status, response.reason.as_str()),
            (417, "Expectation Failed"),
            "{expectation:?}"
        );
        assert_eq!(response.json()["code"], "EXPECTATION_FAILED");
    }
    assert_eq!(echo.heads_seen(), 0);
}

#[test]
fn http_1_0_does_not_get_a_100() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let request = Request::post("/open/x")
        .http_1_0()
        .header("Expect", "100-continue")
        .body("hello");
    let response = request.send_to(gateway.addr());
    assert_eq!(
        response.status, 200,
        "RFC 9110, 10.1.1: ignored in HTTP/1.0"
    );
}

#[track_caller]
fn assert_413(response: &Response, name: &str) {
    assert_eq!(response.status, 413, "{name}: {}", response.text());
    assert_eq!(response.json()["code"], "PAYLOAD_TOO_LARGE", "{name}");
    assert_eq!(
        response.header("X-Content-Type-Options"),
        Some("nosniff"),
        "{name}"
    );
}

/// Answers with the length of what has come.
fn tell(seen: &Recorded) -> Reply {
    Reply::json(json!({"target": seen.target, "length": seen.body.len()}))
}

fn yaml(echo: &Upstream) -> String {
    format!(
        "health: {{ enabled: false }}
services: {{ echo: {{ url: {} }} }}
sizes: {{ body: 1KiB }}
routes:
  - {{ path: /open/*, service: echo, auth: public, limits: [] }}
  - {{ path: /closed/*, service: echo, auth: token, limits: [] }}
  - {{ path: /wide/*, service: echo, auth: public, limits: [], body_limit: 4KiB }}
  - {{ path: /narrow/*, service: echo, auth: public, limits: [], body_limit: 10B }}
  - {{ path: /none/*, service: echo, auth: public, limits: [], body_limit: 0B }}
",
        echo.url()
    )
}
