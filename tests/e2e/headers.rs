//! What a backend sees of a request, and what a client sees of an answer: allow-lists, stamps, exact bytes.

use crate::support::prelude::*;

/// Nobody but the gateway may say these to a backend (the documented list, and decision 10's families).
const BLOCKED: &[&str] = &[
    "x-internal-service",
    "x-internal-signature",
    "x-internal-key",
    "x-internal-anything",
    "x-admin-token",
    "x-privileged",
    "x-tenant-name",
    "x-tenant-anything",
    "x-gateway-secret",
    "x-original-url",
    "x-user-id",
    "x-user-role",
    "x-forwarded-server",
    "x-real-ip",
    "forwarded",
    "proxy-authorization",
    "keep-alive",
    "te",
    "cookie",
];

/// A name that only the gateway says, and what it says.
const STAMPED: &[(&str, &str)] = &[
    ("x-tenant-id", "t1"),
    ("x-tenant-source", "jwt"),
    ("x-gateway-forwarded", "true"),
    ("x-original-ip", "127.0.0.1"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-forwarded-proto", "http"),
];

#[test]
fn what_only_the_gateway_may_say_is_never_taken_from_a_client_in_any_spelling() {
    let world = World::start();
    let names = BLOCKED.iter().copied();
    for name in names.chain(STAMPED.iter().map(|(name, _)| *name)) {
        for spelling in spellings(name) {
            for target in ["/token/x", "/hook/x"] {
                let request = Request::post(target).bearer(&token::customer());
                let request = request
                    .header(&spelling, "forged")
                    .header(&spelling, "twice");
                let seen = world.seen(request);
                let forged = seen.headers.iter().filter(|(candidate, value)| {
                    candidate.replace('_', "-").eq_ignore_ascii_case(name)
                        && (value.contains("forged") || value.contains("twice"))
                });
                assert_eq!(
                    forged.count(),
                    0,
                    "{spelling} on {target}: {:?}",
                    seen.headers
                );
            }
        }
    }
}

#[test]
fn the_callers_identity_and_origin_are_stamped_once_each() {
    let world = World::start();
    let mut request = Request::get("/token/x").bearer(&token::customer());
    for (name, _) in STAMPED {
        request = request
            .header(name, "forged")
            .header(&name.to_uppercase(), "forged too");
    }
    let seen = world.seen(request);
    for (name, value) in STAMPED {
        assert_eq!(seen.headers_named(name), [*value], "{name}");
    }
    let authority = world.backend.addr().to_string();
    assert_eq!(seen.headers_named("host"), [authority.as_str()]);
    assert_eq!(seen.header_count("x-request-id"), 1);

    let nobody = world.seen(Request::get("/open/x").bearer(&token::customer()));
    for name in ["x-tenant-id", "x-tenant-source"] {
        assert_eq!(
            nobody.headers_named(name),
            [""; 0],
            "nobody is identified on a public route"
        );
    }
    assert_eq!(nobody.header("x-gateway-forwarded"), Some("true"));
}

#[test]
fn headers_that_connection_nominates_cannot_take_the_gateways_own_away() {
    let world = World::start();
    for connection in [
        "x-tenant-id",
        "X-Tenant-ID, X-Tenant-Source",
        "close, x-tenant-id",
        "keep-alive, x-gateway-forwarded, x-original-ip",
        "x-request-id",
        "x-forwarded-for",
        "host",
        "content-length",
        "authorization",
    ] {
        let before = world.backend.count();
        let request = Request::post("/token/x")
            .bearer(&token::customer())
            .body("abc");
        let response = request
            .header("Connection", connection)
            .send_to(world.gateway.addr());
        if (400..500).contains(&response.status) {
            assert_eq!(
                world.backend.count(),
                before,
                "{connection}: refused, and forwarded"
            );
            continue;
        }
        assert_eq!(response.status, 200, "Connection: {connection}");
        let seen = world.backend.wait_requests(before + 1).remove(before);
        for (name, value) in STAMPED {
            assert_eq!(
                seen.headers_named(name),
                [*value],
                "Connection: {connection}"
            );
        }
        assert_eq!(
            seen.header_count("x-request-id"),
            1,
            "Connection: {connection}"
        );
        let authority = world.backend.addr().to_string();
        assert_eq!(
            seen.header("host"),
            Some(authority.as_str()),
            "Connection: {connection}"
        );
        assert_eq!(seen.body, b"abc", "Connection: {connection}");
    }
}

#[test]
fn the_documented_and_the_ordinary_headers_pass_and_others_do_not() {
    let world = World::start();
    let passing = [
        ("Accept", "text/html;q=0.8, */*"),
        ("Accept-Language", "pt-BR"),
        ("Accept-Encoding", "br"),
        ("Content-Type", "text/weird; x=\"y\""),
        ("Content-Language", "de"),
        ("X-API-Key", "key-1"),
        ("Idempotency-Key", "idem 1"),
        ("If-None-Match", "W/\"abc\""),
        ("If-Modified-Since", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("If-Match", "\"x\""),
        ("Range", "bytes=0-3"),
        ("Cache-Control", "no-cache"),
        ("User-Agent", "test/1"),
        (
            "Traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        ("Tracestate", "a=b"),
        ("X-Venue-ID", "v1"),
        ("X-Device-ID", "d1"),
    ];
    let request = passing
        .iter()
        .fold(Request::get("/open/x"), |r, (n, v)| r.header(n, v));
    let seen = world.seen(request);
    for (name, value) in passing {
        assert_eq!(seen.headers_named(name), [value], "{name}");
    }

    let dropped = [
        "Cookie",
        "Origin-Agent",
        "Referer",
        "X-Anything",
        "X-Debug",
        "accept_x",
    ];
    let request = dropped
        .iter()
        .fold(Request::get("/open/x"), |r, name| r.header(name, "1"));
    let seen = world.seen(request);
    for name in dropped {
        assert_eq!(seen.header_count(name), 0, "{name} was forwarded");
    }
}

#[test]
fn a_route_may_ask_for_cookies_and_for_headers_of_its_own() {
    let world = World::start();
    let request = Request::get("/special/x").header("Cookie", "sid=1; a=b");
    let request = request.header("X-Partner", "p1").header("X-Other", "no");
    let seen = world.seen(request);
    assert_eq!(seen.header("cookie"), Some("sid=1; a=b"));
    assert_eq!(seen.header("x-partner"), Some("p1"));
    assert_eq!(seen.header("x-other"), None);
    for name in ["X-Tenant-ID", "X-Forwarded-For", "Host", "TE", "x_partner_"] {
        let yaml = yaml("127.0.0.1:1").replace("[X-Partner]", &format!("[{name}]"));
        let exit = Gateway::with(&yaml).arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "forward_headers: [{name}] must be refused");
        assert!(
            exit.stderr.contains("forward_headers[0]"),
            "{}",
            exit.stderr
        );
    }
}

#[test]
fn what_belongs_to_the_backends_connection_or_tells_how_it_is_built_stays_behind() {
    let world = World::start();
    world.backend.set(|_| {
        Reply::status(200)
            .header("Connection", "X-Hop, keep-alive")
            .header("Connection", "x-hop-two")
            .header("X-Hop", "1")
            .header("X-Hop-Two", "1")
            .header("Keep-Alive", "timeout=5")
            .header("Proxy-Connection", "keep-alive")
            .header("Upgrade", "h2c")
            .header("Server", "nginx/1.0")
            .header("X-Powered-By", "Express")
            .header("x-powered-by", "PHP")
            .header("Set-Cookie", "a=1")
            .header("Set-Cookie", "b=2")
            .header("ETag", "\"x\"")
            .header("X-Own", "kept")
            .body("hello")
    });
    let response = Request::get("/open/x").send_to(world.gateway.addr());
    for name in [
        "x-hop",
        "x-hop-two",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "server",
        "x-powered-by",
    ] {
        assert_eq!(response.headers_named(name), [""; 0], "{name}");
    }
    assert_eq!(response.headers_named("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(response.header("etag"), Some("\"x\""));
    assert_eq!(response.header("x-own"), Some("kept"));
    assert_eq!(response.body, b"hello");
}

#[test]
fn a_backend_cannot_nominate_the_framing_or_the_gateways_own_answer_headers() {
    let world = World::start();
    world.backend.set(|_| {
        Reply::status(200)
            .header(
                "Connection",
                "content-length, x-request-id, x-frame-options",
            )
            .header("X-Request-ID", "forged")
            .header("X-Frame-Options", "ALLOWALL")
            .body("hello")
    });
    let mut connection = Client::to(world.gateway.addr()).connect();
    for id in ["a-1", "a-2"] {
        let request = Request::get("/open/x").header("X-Request-ID", id);
        let response = connection.request(&request);
        assert_eq!(response.body, b"hello");
        assert_eq!(response.header("x-request-id"), Some(id));
        assert_eq!(response.header("x-frame-options"), Some("SAMEORIGIN"));
    }
}

#[test]
fn a_backends_own_answers_of_any_status_pass_unchanged() {
    let world = World::start();
    world.backend.set(|request| {
        let status = request.target.rsplit('/').next().unwrap().parse().unwrap();
        let reply = Reply::status(status).header("X-Which", "backend");
        let reply = reply.header("Content-Type", "text/x-own");
        reply.body(format!("own {status}"))
    });
    for status in [
        200, 201, 202, 203, 206, 301, 302, 303, 307, 400, 401, 402, 403, 404, 405, 409, 418, 422,
        429, 451, 499, 500, 501, 502, 503, 504, 505, 507, 511, 599,
    ] {
        let response = Request::post(&format!("/open/{status}")).send_to(world.gateway.addr());
        assert_eq!(response.status, status);
        assert_eq!(response.text(), format!("own {status}"));
        assert_eq!(response.header("x-which"), Some("backend"), "{status}");
        assert_eq!(
            response.header("content-type"),
            Some("text/x-own"),
            "{status}"
        );
        assert_eq!(response.header("cache-control"), None, "{status}");
        assert_eq!(response.header("retry-after"), None, "{status}");
        assert!(response.header("x-request-id").is_some(), "{status}");
    }
}

#[test]
fn bodies_of_any_length_and_framing_arrive_byte_for_byte_both_ways() {
    let world = World::start();
    world.backend.set(|request| {
        let reply = Reply::status(200);
        match request.path().ends_with("/chunked") {
            true => reply.chunked(request.body.chunks(9_999).collect::<Vec<_>>()),
            false => reply.body(request.body.clone()),
        }
    });
    for length in [0, 1, 1000, 65_537, 5_000_000] {
        let body = noise(length);
        for (target, request_chunked) in [
            ("/open/sized", false),
            ("/open/chunked", false),
            ("/open/sized", true),
            ("/open/chunked", true),
        ] {
            let request = Request::post(target);
            let request = match request_chunked {
                true => request.chunked(body.chunks(7_777).collect()),
                false => request.body(body.clone()),
            };
            let what = format!("{length} bytes to {target}, chunked request: {request_chunked}");
            let before = world.backend.count();
            let mut connection = Client::to(world.gateway.addr()).connect();
            let (sending, bytes) = (&mut connection, request.bytes());
            sending.send(&bytes);
            let response = connection.read_response();
            assert_eq!(response.status, 200, "{what}");
            let seen = world.backend.wait_requests(before + 1).remove(before);
            assert!(
                seen.complete && seen.body == body,
                "{what}: the backend got other bytes"
            );
            assert!(response.body == body, "{what}: the client got other bytes");
        }
    }
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    let world = World::start();
    world.backend.set(|request| match request.path() {
        "/open/204" => Reply::status(204).header("X-A", "1"),
        "/open/304" => Reply::status(304).header("ETag", "\"e\""),
        _ => Reply::status(200).body("four"),
    });
    let mut connection = Client::to(world.gateway.addr()).connect();
    for _ in 0..3 {
        let response = connection.request(&Request::get("/open/204"));
        assert_eq!((response.status, response.body.len()), (204, 0));
        let response =
            connection.request(&Request::get("/open/304").header("If-None-Match", "\"e\""));
        assert_eq!(
            (response.status, response.header("etag")),
            (304, Some("\"e\""))
        );
        let response = connection.request(&Request::method("HEAD", "/open/x"));
        assert_eq!(
            (response.status, response.header("content-length")),
            (200, Some("4"))
        );
        let response = connection.request(&Request::get("/open/x"));
        assert_eq!((response.status, response.text()), (200, "four"));
    }
}

#[test]
fn trailers_interim_answers_reasons_and_close_delimited_bodies_do_no_harm() {
    let world = World::start();
    world.backend.set(|request| match request.path() {
        "/open/trailers" => Reply::raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
        ),
        "/open/early" => Reply::raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        ),
        "/open/reason" => Reply::raw("HTTP/1.1 200 Quite Fine\r\nContent-Length: 3\r\n\r\nabc"),
        "/open/no-reason" => Reply::raw("HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabc"),
        "/open/close" => Reply::raw("HTTP/1.1 200 OK\r\n\r\nabc").then_close(),
        "/open/1.0" => Reply::raw("HTTP/1.0 200 OK\r\n\r\nabc").then_close(),
        _ => Reply::status(200).body("abc"),
    });
    for target in ["trailers", "early", "reason", "no-reason", "close", "1.0"] {
        let mut connection = Client::to(world.gateway.addr()).connect();
        let mut response = connection.request(&Request::get(&format!("/open/{target}")));
        while response.status / 100 == 1 {
            response = connection.read_response();
        }
        assert_eq!(
            (response.status, response.body.as_slice()),
            (200, &b"abc"[..]),
            "{target}"
        );
        if target == "reason" {
            assert_eq!(response.reason, "Quite Fine");
        }
    }
    let mut connection = Client::to(world.gateway.addr()).connect();
    let head = "POST /open/x HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\nTrailer: X-Tenant-ID\r\n\r\n";
    connection.send(format!("{head}3\r\nabc\r\n0\r\nX-Tenant-ID: forged\r\n\r\n").as_bytes());
    let response = connection.read_response();
    if response.status == 200 {
        let seen = world.backend.requests().pop().unwrap();
        assert_eq!(seen.body, b"abc");
        assert!(
            !seen
                .trailers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case("x-tenant-id")),
            "a trailer is a header by another door: {:?}",
            seen.trailers
        );
    } else {
        assert_eq!(response.status, 400);
    }
}

#[test]
fn a_trusted_proxy_names_the_client_and_its_scheme() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend.addr().to_string()))
        .env("TRUSTED_PROXIES", "127.0.0.1/32,10.0.0.0/8")
        .start();
    let request = Request::get("/open/x")
        .header("X-Forwarded-For", "198.51.100.66, 203.0.113.9, 10.1.2.3")
        .header("X-Forwarded-Proto", "https")
        .host("api.example.com");
    assert_eq!(request.send_to(gateway.addr()).status, 200);
    let seen = backend.wait_requests(1).remove(0);
    assert_eq!(seen.header("x-original-ip"), Some("203.0.113.9"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    // Whatever host a client chooses must not end up in a link that a backend writes.
    assert_eq!(seen.header("x-forwarded-host"), None);
    let forwarded = seen.header("x-forwarded-for").unwrap_or_default();
    assert!(
        !forwarded.contains("198.51.100.66"),
        "an unverified entry passed: {forwarded}"
    );
}

struct World {
    backend: Upstream,
    gateway: Gateway,
}

impl World {
    fn start() -> Self {
        let backend = Upstream::start();
        let gateway = Gateway::with(&yaml(&backend.addr().to_string())).start();
        Self { backend, gateway }
    }

    /// What the backend saw of this request, which must be answered 200.
    #[track_caller]
    fn seen(&self, request: Request) -> Recorded {
        let before = self.backend.count();
        let response = request.send_to(self.gateway.addr());
        assert_eq!(response.status, 200, "{request:?}");
        self.backend.wait_requests(before + 1).remove(before)
    }
}

fn yaml(backend: &str) -> String {
    format!(
        "services: {{ s: {{ url: 'http://{backend}', breaker: {{ volume: 100000 }} }} }}
limits: {{ enabled: false, flood: {{ per_second: 100000 }} }}
routes:
  - {{ path: /open/*, service: s, auth: public }}
  - {{ path: /token/*, service: s, auth: token }}
  - {{ path: /hook/*, service: s, auth: public, webhook: true }}
  - {{ path: /special/*, service: s, auth: public, cookies: true, forward_headers: [X-Partner] }}
"
    )
}

fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![name.to_owned(), name.to_uppercase()];
    if name.contains('-') {
        all.push(name.replace('-', "_"));
        all.push(name.replacen('-', "_", 1));
    }
    all
}

/// Bytes of every value, the same at each run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}
