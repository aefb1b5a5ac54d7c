//! What comes back: one form for every refusal, the same headers on every answer, one id for every request, and
//! connections that live on where it is safe.

use crate::support::prelude::*;

#[test]
fn every_refusal_has_the_documented_body_and_headers() {
    let echo = Upstream::start_with(misbehave);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let spend = Request::get("/once").header("X-Request-ID", "first");
    assert_eq!(spend.send_to(gateway.addr()).status, 200);
    for (name, request, status, error, code) in refusals() {
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, status, "{name}: {}", response.text());
        assert_eq!(response.reason, error, "{name}");
        let body = response.json();
        let mut keys: Vec<&str> = body
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "code",
                "error",
                "message",
                "requestId",
                "statusCode",
                "timestamp"
            ],
            "{name}"
        );
        assert_eq!(body["statusCode"], status, "{name}");
        assert_eq!(body["error"], error, "{name}");
        assert_eq!(body["code"], code, "{name}");
        assert!(!body["message"].as_str().unwrap().is_empty(), "{name}");
        assert_eq!(
            body["requestId"],
            response.header("X-Request-ID").unwrap(),
            "{name}"
        );
        let timestamp: jiff::Timestamp = body["timestamp"].as_str().unwrap().parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(timestamp);
        assert!(age.as_secs().abs() < 60, "{name}: {timestamp}");
        assert!(
            body["timestamp"].as_str().unwrap().ends_with('Z'),
            "{name}: RFC 3339 in UTC"
        );
        assert_eq!(
            response.header("Content-Type"),
            Some("application/json; charset=utf-8"),
            "{name}"
        );
        assert_eq!(response.header("Cache-Control"), Some("no-store"), "{name}");
        assert_eq!(
            response.header("WWW-Authenticate").is_some(),
            status == 401,
            "{name}"
        );
        assert_eq!(response.header("Allow").is_some(), status == 405, "{name}");
        let wait = response
            .header("Retry-After")
            .map(|wait| wait.parse::<u32>().unwrap());
        assert_eq!(
            wait.is_some_and(|wait| wait >= 1),
            matches!(status, 429 | 503),
            "{name}"
        );
        assert_secure(&response, name);
        let line = gateway.access_line(response.header("X-Request-ID").unwrap());
        assert_eq!(
            (&line["statusCode"], &line["code"]),
            (&json!(status), &json!(code)),
            "{name}"
        );
        assert_leaks_nothing(&response, &echo, name);
    }
}

#[test]
fn every_answer_has_the_security_headers_once_also_a_backends_with_its_own() {
    let echo = Upstream::start_with(|seen| {
        let status = seen.path().rsplit('/').next().unwrap().parse().unwrap();
        Reply::status(status)
            .header("X-Frame-Options", "ALLOWALL")
            .header("x-content-type-options", "none")
            .header("Content-Security-Policy", "default-src *")
            .header("Strict-Transport-Security", "max-age=0")
            .header("X-XSS-Protection", "0")
            .header("X-Powered-By", "Express")
            .header("Server", "nginx/1.2")
            .header("X-Request-ID", "the-backends-own")
            .header("Connection", "X-Hop")
            .header("X-Hop", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Cache-Control", "max-age=60")
    });
    let gateway = Gateway::with(&yaml(&echo)).start();
    for status in [200, 201, 204, 301, 304, 400, 404, 422, 500, 503] {
        let request = Request::get(&format!("/open/{status}")).header("X-Request-ID", "mine");
        let response = request.send_to(gateway.addr());
        let name = format!("a backend's {status}");
        assert_eq!(response.status, status, "{name}: passes through unchanged");
        assert_secure(&response, &name);
        assert_eq!(response.header("X-Request-ID"), Some("mine"), "{name}");
        assert_eq!(
            response.header("Cache-Control"),
            Some("max-age=60"),
            "{name}"
        );
        for header in ["X-Powered-By", "Server", "X-Hop", "Keep-Alive"] {
            assert_eq!(response.header(header), None, "{name}");
        }
    }
    for path in ["/live", "/ready", "/health", "/metrics"] {
        let response = Request::get(path).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{path}");
        assert_secure(&response, path);
    }
}

#[test]
fn the_documented_security_headers_have_the_documented_values() {
    let echo = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .env("PAYMENT_SERVICE_URL", echo.url())
        .start();
    let policy = "default-src 'self';style-src 'self' 'unsafe-inline';script-src 'self';img-src 'self' data: https:;\
                  base-uri 'self';font-src 'self' https: data:;form-action 'self';frame-ancestors 'self';\
                  object-src 'none';script-src-attr 'none';upgrade-insecure-requests";
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"malformed\r\n\r\n");
    for (name, response) in [
        (
            "proxied",
            Request::get("/api/v1/payments/health").send_to(gateway.addr()),
        ),
        ("refused", Request::get("/nowhere").send_to(gateway.addr())),
        ("malformed", connection.read_response()),
    ] {
        let header = |header| {
            response
                .header(header)
                .map(|value| value.replace("; ", ";").replace(" base-uri", "base-uri"))
        };
        assert_eq!(
            header("Content-Security-Policy").as_deref(),
            Some(policy),
            "{name}"
        );
        assert_eq!(
            header("Strict-Transport-Security"),
            None,
            "{name}: over TLS only (`tls.rs`)"
        );
    }
}

#[test]
fn a_head_request_is_refused_without_a_body_and_the_connection_goes_on() {
    let echo = Upstream::start_with(misbehave);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let mut connection = Client::to(gateway.addr()).connect();
    for (path, status) in [
        ("/closed/x", 401),
        ("/nowhere", 404),
        ("/open/../x", 400),
        ("/post-only", 405),
        ("/live", 200),
    ] {
        let get = Request::get(path).send_to(gateway.addr());
        let head = connection.request(&Request::method("HEAD", path));
        assert_eq!(head.status, status, "{path}");
        let length: usize = head.header("Content-Length").unwrap().parse().unwrap();
        assert!(
            length > 0 && length.abs_diff(get.body.len()) < 8,
            "{path}: {length}, of GET {}",
            get.body.len()
        );
        assert_eq!(
            head.header("Content-Type"),
            get.header("Content-Type"),
            "{path}"
        );
    }
    let next = connection.request(&Request::get("/open/x"));
    assert_eq!(
        next.json(),
        json!({"ok": true}),
        "nothing was left on the connection"
    );

    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"HEAD /open/x HTTP/1.1\r\nHost: a b\r\n\r\n");
    let answer = connection.read_to_end();
    assert!(
        answer.starts_with(b"HTTP/1.1 400 ") && answer.ends_with(b"\r\n\r\n"),
        "no body for a malformed HEAD"
    );
}

#[test]
fn a_refusal_keeps_the_connection_with_and_without_a_small_body() {
    let echo = Upstream::start_with(misbehave);
    let gateway = Gateway::with(&yaml(&echo)).start();
    assert_eq!(Request::get("/once").send_to(gateway.addr()).status, 200);
    let small = vec![b'a'; 2000];
    let mut connection = Client::to(gateway.addr()).connect();
    for (path, status) in [
        ("/closed/x", 401),
        ("/forbidden", 403),
        ("/nowhere", 404),
        ("/get-only", 405),
        ("/once", 429),
    ] {
        for (name, request) in [
            ("no body", Request::post(path)),
            ("a length", Request::post(path).body(small.clone())),
            (
                "chunks",
                Request::post(path).chunked(vec![&small[..], b"more"]),
            ),
        ] {
            let request = match path {
                "/forbidden" => request.bearer(&token::customer()),
                _ => request,
            };
            let response = connection.request(&request);
            assert_eq!(response.status, status, "{path} with {name}");
            assert_ne!(
                response.header("Connection"),
                Some("close"),
                "{path} with {name}"
            );
            assert!(connection.stays_open(), "{path} with {name}");
        }
    }
    assert_eq!(
        connection.request(&Request::get("/open/x")).status,
        200,
        "the same connection"
    );
}

#[test]
fn a_refused_body_that_comes_late_or_is_large_does_not_cost_the_answer() {
    let echo = Upstream::start_with(misbehave);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let large = Request::post("/closed/x").body(vec![b'a'; 4 << 20]);
    let response = large.send_to(gateway.addr());
    assert_eq!(
        (response.status, response.json()["code"].as_str()),
        (401, Some("AUTH_REQUIRED"))
    );
    // A body that never comes: the answer does not wait for it for long.
    let mut connection = Client::to(gateway.addr()).connect();
    let start = Instant::now();
    let response = connection.request(&Request::post("/closed/x").header("Content-Length", "10"));
    assert_eq!(response.status, 401);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    // What follows is the body still, never a request.
    connection.send(b"0123456789");
    connection.send(&Request::get("/open/next").bytes());
    if let Ok(next) = connection.try_read_response() {
        assert_eq!(next.status, 200);
    }
    assert!(
        echo.requests()
            .iter()
            .all(|seen| seen.target == "/open/next")
    );
}

#[test]
fn an_http_1_0_client_never_gets_chunks() {
    let echo = Upstream::start_with(|_| Reply::status(200).chunked(vec!["he", "llo"]));
    let gateway = Gateway::with(&yaml(&echo)).start();
    let mut connection = Client::to(gateway.addr()).connect();
    let response = connection.request(&Request::get("/open/x").http_1_0());
    assert_eq!(response.header("Transfer-Encoding"), None, "RFC 9112, 6.1");
    assert_eq!(response.text(), "hello");
    let modern = Request::get("/open/x").send_to(gateway.addr());
    assert_eq!((modern.chunked, modern.text()), (true, "hello"));
}

#[test]
fn the_request_id_is_kept_or_replaced_and_is_the_same_everywhere() {
    let echo = Upstream::start_with(misbehave);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let longest = "x".repeat(128);
    for id in ["a", "abc.DEF_1-2", longest.as_str()] {
        assert_eq!(id_everywhere(&gateway, &echo, &[id]), id);
    }
    let too_long = "x".repeat(129);
    let mut replaced = std::collections::HashSet::new();
    for ids in [
        &[][..],
        &[""],
        &["a b"],
        &["a\"b"],
        &["a,b"],
        &["a/b"],
        &["a{b}"],
        &["\u{e9}"],
        &["a", "a"],
        &["a", "b"],
        &["${jndi:ldap://x}"],
        &[too_long.as_str()],
    ] {
        let id = id_everywhere(&gateway, &echo, ids);
        assert!(!ids.contains(&id.as_str()), "{ids:?}");
        assert!(id.starts_with("req_") && id.len() > 16, "{ids:?}: {id}");
        assert!(replaced.insert(id), "{ids:?}: not unique");
    }
}

/// Sends a request that is forwarded and one that is refused; the id of the first, which was the same at the backend,
/// in the answer and in the log. The second has it in its body too.
#[track_caller]
fn id_everywhere(gateway: &Gateway, echo: &Upstream, ids: &[&str]) -> String {
    let with_ids = |request: Request| {
        ids.iter()
            .fold(request, |request, id| request.header("X-Request-ID", id))
    };
    let response = with_ids(Request::get("/open/x")).send_to(gateway.addr());
    assert_eq!(response.status, 200, "{ids:?}");
    let id = response.header("X-Request-ID").unwrap().to_owned();
    let seen = echo.requests().pop().unwrap();
    assert_eq!(seen.header("X-Request-ID"), Some(id.as_str()), "{ids:?}");
    assert_eq!(gateway.access_line(&id)["statusCode"], 200, "{ids:?}");

    let refused = with_ids(Request::get("/closed/x")).send_to(gateway.addr());
    let refused_id = refused.header("X-Request-ID").unwrap();
    assert_eq!(refused.json()["requestId"], refused_id, "{ids:?}");
    let audited = |line: &Value| line["context"] == "audit" && line["requestId"] == refused_id;
    assert_eq!(
        gateway.wait_log(audited)["event"],
        "authentication_failed",
        "{ids:?}"
    );
    if ids == [id.as_str()] {
        assert_eq!(refused_id, id);
    }
    id
}

/// A refusal of each kind: name, request, status, reason, code.
fn refusals() -> Vec<(&'static str, Request, u16, &'static str, &'static str)> {
    let get = Request::get;
    let expired = Token::user("u1").expires_in(-60).hs256();
    vec![
        (
            "a bad path",
            get("/open/../x"),
            400,
            "Bad Request",
            "BAD_REQUEST",
        ),
        (
            "a bad head",
            get("/open/x").header("Host", "b"),
            400,
            "Bad Request",
            "BAD_REQUEST",
        ),
        (
            "no token",
            get("/closed/x"),
            401,
            "Unauthorized",
            "AUTH_REQUIRED",
        ),
        (
            "a bad token",
            get("/closed/x").bearer("a.b.c"),
            401,
            "Unauthorized",
            "INVALID_TOKEN",
        ),
        (
            "an old token",
            get("/closed/x").bearer(&expired),
            401,
            "Unauthorized",
            "TOKEN_EXPIRED",
        ),
        (
            "no permission",
            get("/forbidden").bearer(&token::customer()),
            403,
            "Forbidden",
            "FORBIDDEN",
        ),
        (
            "a strange origin",
            get("/open/x").header("Origin", "https://evil.test"),
            403,
            "Forbidden",
            "FORBIDDEN",
        ),
        ("no route", get("/nowhere"), 404, "Not Found", "NOT_FOUND"),
        (
            "no such method",
            get("/post-only"),
            405,
            "Method Not Allowed",
            "METHOD_NOT_ALLOWED",
        ),
        (
            "too large",
            Request::post("/open/x").body(vec![b'a'; 5000]),
            413,
            "Payload Too Large",
            "PAYLOAD_TOO_LARGE",
        ),
        (
            "a long target",
            get(&format!("/{}", "a".repeat(9000))),
            414,
            "URI Too Long",
            "URI_TOO_LONG",
        ),
        (
            "an expectation",
            get("/open/x").header("Expect", "x"),
            417,
            "Expectation Failed",
            "EXPECTATION_FAILED",
        ),
        (
            "too often",
            get("/once"),
            429,
            "Too Many Requests",
            "RATE_LIMIT_ERROR",
        ),
        (
            "a large head",
            get("/open/x").header("X", &"a".repeat(40_000)),
            431,
            "Request Header Fields Too Large",
            "HEADERS_TOO_LARGE",
        ),
        (
            "a failed webhook",
            Request::post("/hook/500"),
            500,
            "Internal Server Error",
            "WEBHOOK_FAILED",
        ),
        (
            "no answer",
            get("/open/reset"),
            502,
            "Bad Gateway",
            "BAD_GATEWAY",
        ),
        (
            "nonsense",
            get("/open/nonsense"),
            502,
            "Bad Gateway",
            "BAD_GATEWAY",
        ),
        (
            "nobody there",
            get("/gone"),
            503,
            "Service Unavailable",
            "SERVICE_UNAVAILABLE",
        ),
        (
            "too slow",
            get("/slow/hang"),
            504,
            "Gateway Timeout",
            "GATEWAY_TIMEOUT",
        ),
    ]
}

fn misbehave(seen: &Recorded) -> Reply {
    match seen.path().rsplit('/').next() {
        Some("reset") => Reply::reset(),
        Some("hang") => Reply::hang(),
        Some("nonsense") => Reply::raw("nonsense\r\n\r\n").then_close(),
        Some("500") => Reply::status(500),
        _ => Reply::json(json!({"ok": true})),
    }
}

#[track_caller]
fn assert_secure(response: &Response, name: &str) {
    assert_eq!(
        response.header("X-Content-Type-Options"),
        Some("nosniff"),
        "{name}"
    );
    assert_eq!(
        response.header("X-Frame-Options"),
        Some("SAMEORIGIN"),
        "{name}"
    );
    assert_eq!(
        response.header("X-XSS-Protection"),
        Some("1; mode=block"),
        "{name}"
    );
    let hsts = response.header("Strict-Transport-Security");
    assert_eq!(hsts, None, "{name}: over TLS only (RFC 6797, 7.2)");
    let policy = response.header("Content-Security-Policy");
    assert!(
        policy.is_some_and(|policy| policy.contains("default-src 'self'")),
        "{name}: {policy:?}"
    );
    assert!(response.header("X-Request-ID").is_some(), "{name}");
    assert!(response.header("Date").is_some(), "{name}: RFC 9110, 6.6.1");
}

/// An answer of ours names no address and no library.
#[track_caller]
fn assert_leaks_nothing(response: &Response, echo: &Upstream, name: &str) {
    let all = [&response.raw_head[..], &response.body].concat();
    let all = String::from_utf8(all).unwrap().to_lowercase();
    for secret in [
        echo.addr().to_string().as_str(),
        "127.0.0.1",
        "pingora",
        "src/",
        ".rs",
    ] {
        assert!(!all.contains(secret), "{name}: {secret} in {all}");
    }
}

fn yaml(echo: &Upstream) -> String {
    format!(
        "health: {{ enabled: false }}
services:
  echo: {{ url: {}, breaker: {{ volume: 1000 }} }}
  gone: {{ url: 'http://{}' }}
sizes: {{ body: 4KiB }}
limits: {{ rules: {{ once: {{ max: 1, window: 600s }} }} }}
routes:
  - {{ path: /open/*, service: echo, auth: public, limits: [] }}
  - {{ path: /closed/*, service: echo, auth: token, limits: [], body_limit: 8MiB }}
  - {{ path: /forbidden, service: echo, auth: token, limits: [], permissions: {{ '*': 'never:ever' }} }}
  - {{ path: /once, service: echo, auth: public, limits: [once] }}
  - {{ path: /get-only, service: echo, methods: [GET], auth: public, limits: [] }}
  - {{ path: /post-only, service: echo, methods: [POST], auth: public, limits: [] }}
  - {{ path: /slow/*, service: echo, auth: public, limits: [], timeout: 300ms }}
  - {{ path: /hook/*, service: echo, auth: public, limits: [], webhook: true }}
  - {{ path: /gone, service: gone, auth: public, limits: [] }}
",
        echo.url(),
        refused_addr()
    )
}
