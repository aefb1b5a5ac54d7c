//! What the log says of a request, and what it never says.

use crate::support::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU16, Ordering};

/// The documented fields, in the spellings that clients and frameworks use.
const SECRET_PARAMETERS: &[&str] = &[
    "password",
    "PASSWORD",
    "Password",
    "authorization",
    "cookie",
    "creditCard",
    "credit_card",
    "credit-card",
    "CREDITCARD",
    "cvv",
    "ssn",
    "user.password",
    "user[password]",
    "user%5Bpassword%5D",
    "user[0][password]",
    "p%61ssword",
    "%70%61%73%73word",
    "password[]",
    "password%5B%5D",
    "password[0]",
    "token",
    "access_token",
    "api_key",
];

#[test]
fn a_request_has_one_line_with_the_documented_fields() {
    let world = World::start("info", "");
    let request = Request::post("/s/a?x=1").bearer(
        &Token::user("u7")
            .tenant("t9")
            .claim("venueId", "v5")
            .hs256(),
    );
    let request = request
        .header("X-Request-ID", "one-1")
        .header("X-Venue-ID", "v5")
        .body("12345");
    assert_eq!(request.send_to(world.gateway.addr()).status, 200);
    let line = world.gateway.access_line("one-1");
    let expected = json!({
        "level": "info", "service": "api-gateway", "context": "request", "requestId": "one-1", "venueId": "v5",
        "userId": "u7", "tenantId": "t9", "method": "POST", "url": "/s/a?x=1", "ip": "127.0.0.1",
        "route": "/s/*", "upstreamService": "s", "upstream": world.backend.addr().to_string(), "attempts": 1,
        "statusCode": 200, "requestBytes": 5, "responseBytes": 11, "msg": "POST /s/a?x=1 - 200",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&line[name], value, "{name} in {line}");
    }
    assert!(line["time"].as_u64() > Some(1_600_000_000_000), "{line}");
    assert!(line["responseTime"].as_f64() > Some(0.0), "{line}");
    assert!(
        line["headers"].is_null() && line["traceId"].is_null() && line["code"].is_null(),
        "{line}"
    );
}

#[test]
fn every_request_has_exactly_one_line_at_the_level_of_its_status() {
    let world = World::start("info", "");
    world.backend.set(|request| match request.path() {
        "/o/404" => Reply::status(404),
        "/o/500" => Reply::status(500),
        "/o/reset" => Reply::reset(),
        _ => Reply::status(200),
    });
    let cases = [
        ("/o/x", 200, "info"),
        ("/o/404", 404, "warn"),
        ("/o/500", 500, "error"),
        ("/o/reset", 502, "error"),
        ("/s/x", 401, "warn"),
        ("/nowhere", 404, "warn"),
        ("/o/%2e%2e/x", 400, "warn"),
        ("/metrics", 200, "info"),
    ];
    for (i, (target, status, level)) in cases.iter().enumerate() {
        let id = format!("level-{i}");
        let request = Request::get(target).header("X-Request-ID", &id);
        let response = request.send_to(world.gateway.addr());
        assert_eq!(response.status, *status, "{target}");
        let line = world.gateway.access_line(&id);
        assert_eq!(
            (&line["statusCode"], &line["level"]),
            (&json!(status), &json!(level)),
            "{target}"
        );
        assert_eq!(line["url"], *target);
    }
    world.sentinel();
    for (i, (target, ..)) in cases.iter().enumerate() {
        assert_eq!(
            world.gateway.access_lines_of(&format!("level-{i}")),
            1,
            "{target}"
        );
    }
}

#[test]
fn probes_are_not_logged() {
    let world = World::start("debug", "");
    for path in ["/health", "/ready", "/live", "/health?x=1"] {
        let request = Request::get(path).header("X-Request-ID", "probe-1");
        assert_eq!(request.send_to(world.gateway.addr()).status, 200);
    }
    world.sentinel();
    assert_eq!(world.gateway.access_lines_of("probe-1"), 0);
}

#[test]
fn a_malformed_request_has_a_line_and_an_audit_line_with_the_id_of_its_answer() {
    let world = World::start("info", "");
    let mut connection = Client::to(world.gateway.addr()).connect();
    connection.send(
        b"GET /o/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let response = connection.read_response();
    assert_eq!(response.status, 400);
    let id = response.header("x-request-id").unwrap();
    let line = world.gateway.access_line(id);
    assert_eq!(
        (&line["statusCode"], &line["code"]),
        (&json!(400), &json!("BAD_REQUEST"))
    );
    assert_eq!(audit(&world, id)["event"], "malformed_request");
}

#[test]
fn security_events_have_documented_audit_lines() {
    let world = World::start("info", "");
    let forged = Token::user("u1").signed_with("another-secret-of-enough-characters");
    let expired = Token::user("u1").expires_in(-60).hs256();
    let customer = token::customer();
    let cases = [
        ("/s/x", None, 401, "authentication_failed", "low", None),
        (
            "/s/x",
            Some(&forged),
            401,
            "authentication_failed",
            "medium",
            None,
        ),
        (
            "/s/x",
            Some(&expired),
            401,
            "authentication_failed",
            "low",
            None,
        ),
        (
            "/admin/x",
            Some(&customer),
            403,
            "authorization_failed",
            "medium",
            Some("u1"),
        ),
        ("/o/a/../b", None, 400, "malformed_request", "medium", None),
        (
            "/limited/x",
            None,
            429,
            "rate_limit_exceeded",
            "medium",
            None,
        ),
    ];
    assert_eq!(
        Request::get("/limited/x")
            .send_to(world.gateway.addr())
            .status,
        200
    );
    for (i, (target, token, status, event, severity, user)) in cases.into_iter().enumerate() {
        let id = format!("audit-{i}");
        let request = Request::get(target).header("X-Request-ID", &id);
        let request = token.iter().fold(request, |r, token| r.bearer(token));
        assert_eq!(
            request.send_to(world.gateway.addr()).status,
            status,
            "{target}"
        );
        let line = audit(&world, &id);
        assert_eq!(line["level"], "warn");
        assert_eq!(
            (&line["type"], &line["ip"]),
            (&json!("security"), &json!("127.0.0.1"))
        );
        assert_eq!(
            (&line["event"], &line["severity"]),
            (&json!(event), &json!(severity)),
            "{target}"
        );
        assert_eq!(line["userId"], json!(user), "{target}");
        assert_eq!(line["url"], target);
    }
}

#[test]
fn a_slow_request_has_a_line_of_its_own_and_a_fast_one_has_not() {
    let world = World::start("info", "log: { slow_request: 1s }");
    world.backend.set(|request| match request.path() {
        "/o/slow" => Reply::status(200).delay(Duration::from_millis(1100)),
        _ => Reply::status(200),
    });
    for target in ["/o/slow?password=hunter2", "/o/fast"] {
        assert_eq!(
            Request::get(target).send_to(world.gateway.addr()).status,
            200
        );
    }
    let line = world
        .gateway
        .wait_log(|line| line["metric"] == "slow_request");
    assert_eq!(
        (&line["level"], &line["context"]),
        (&json!("warn"), &json!("performance"))
    );
    assert_eq!(line["url"], "/o/slow?password=[REDACTED]");
    assert!(line["responseTime"].as_f64() >= Some(1100.0), "{line}");
    world.sentinel();
    let lines = world.gateway.log_lines();
    let slow: Vec<&Value> = lines
        .iter()
        .filter(|line| line["metric"] == "slow_request")
        .collect();
    assert!(slow.iter().all(|line| line["url"] != "/o/fast"), "{slow:?}");
}

#[test]
fn secrets_in_the_query_are_never_logged_however_they_are_spelled() {
    let world = World::start("debug", "log: { slow_request: 1ms }");
    world
        .backend
        .set(|_| Reply::status(200).delay(Duration::from_millis(5)));
    for (i, name) in SECRET_PARAMETERS.iter().enumerate() {
        for target in ["/o/x", "/s/x", "/nowhere"] {
            let id = format!("query-{i}-{}", target.len());
            let target = format!("{target}?a=1&{name}=hunter2-{i}&b=2");
            Request::get(&target)
                .header("X-Request-ID", &id)
                .send_to(world.gateway.addr());
            world.gateway.access_line(&id);
        }
    }
    world.sentinel();
    let output = world.gateway.raw_output();
    let leaked: BTreeSet<&str> = SECRET_PARAMETERS
        .iter()
        .enumerate()
        .filter(|(i, _)| {
            output.contains(&format!("hunter2-{i}&")) || output.contains(&format!("hunter2-{i}\""))
        })
        .map(|(_, name)| *name)
        .collect();
    assert!(leaked.is_empty(), "logged: {leaked:?}");
    assert!(
        output.contains("?a=1&password=[REDACTED]&b=2"),
        "the rest of the query stays"
    );
}

#[test]
fn secrets_in_headers_are_never_logged_and_other_headers_are_at_debug_only() {
    for (level, logged) in [("debug", true), ("info", false)] {
        let world = World::start(level, "");
        let request = Request::get("/o/x")
            .header("X-Request-ID", "headers-1")
            .header("Authorization", "Bearer hunter2")
            .header("COOKIE", "sid=hunter2")
            .header("Cookie", "sid=hunter2")
            .header("X-API-Key", "hunter2")
            .header("Proxy-Authorization", "Basic hunter2")
            .header("Password", "hunter2")
            .header("Credit-Card", "hunter2")
            .header("CVV", "hunter2")
            .header("SSN", "hunter2")
            .header("Stripe-Signature", "hunter2")
            .header("X-Plain", "visible");
        request.send_to(world.gateway.addr());
        let line = world.gateway.access_line("headers-1");
        assert!(
            !world.gateway.raw_output().contains("hunter2"),
            "{}",
            world.gateway.raw_output()
        );
        assert_eq!(
            line["headers"]["x-plain"] == "visible",
            logged,
            "{level}: {line}"
        );
        if logged {
            assert_eq!(line["headers"]["authorization"], "[REDACTED]");
        }
    }
}

#[test]
fn nothing_that_a_client_sends_can_forge_a_line_or_break_its_json() {
    let world = World::start("debug", "");
    let attacks = [
        "/o/a%0a{\"level\":\"info\",\"msg\":\"forged\"}",
        "/o/%0d%0aforged",
        "/o/\"},{\"forged\":\"1",
        "/o/back\\slash",
        "/o/%22quote",
        "/o/x?q=\"},{\"forged\":\"1",
        "/o/x?q=%0a%0dforged",
        "/o/x?q=\\u000aforged\\",
        "/o/\u{1b}[31mred",
        "/o/\u{9b}31mred",
        "/o/x?q=caf\u{e9}",
    ];
    for (i, target) in attacks.iter().enumerate() {
        let id = format!("forge-{i}");
        let request = Request::get(target)
            .header("X-Request-ID", &id)
            .header("X-Venue-ID", "v\"},{\"forged\":1");
        let request = request
            .header("X-Odd", "\u{9b}31m \"quoted\\ \t tab")
            .header("User-Agent", "\u{85}\u{2028}");
        let response = request.send_to(world.gateway.addr());
        let id = response.header("x-request-id");
        let id = id.unwrap_or_else(|| panic!("{target}: {:?}", response.raw_head));
        world.gateway.access_line(id);
    }
    for id in ["a\"b", "a b", "a{b}", &"a".repeat(129)] {
        let request = Request::get("/o/x").header("X-Request-ID", id);
        let given = request.send_to(world.gateway.addr());
        assert_ne!(
            given.header("x-request-id"),
            Some(id),
            "an id like that is replaced"
        );
    }
    world.sentinel();
    // `log_lines` panics at a line that is no JSON.
    for line in world.gateway.log_lines() {
        assert!(
            line["forged"].is_null() && line["msg"] != "forged",
            "{line}"
        );
        assert!(line["level"].is_string() && line["time"].is_u64(), "{line}");
    }
}

#[test]
fn whatever_byte_a_target_holds_its_answer_is_the_gateways_own_and_is_logged() {
    let world = World::start("info", "");
    let mut strange = Vec::new();
    for byte in 1..=255_u8 {
        for place in ["/o/a", "/o/a?q="] {
            let mut connection = Client::to(world.gateway.addr()).connect();
            let mut bytes = format!("GET {place}").into_bytes();
            bytes.push(byte);
            bytes.extend_from_slice(b"b HTTP/1.1\r\nHost: g\r\n\r\n");
            connection.send(&bytes);
            let response = connection.read_response();
            match response.header("x-request-id") {
                Some(id) => drop(world.gateway.access_line(id)),
                None => strange.push(format!("{place}{:?} ", char::from(byte))),
            }
        }
    }
    assert!(
        strange.is_empty(),
        "answered by somebody else, unlogged and uncounted: {strange:?}"
    );
}

#[test]
fn the_pretty_form_is_for_people_and_cannot_be_forged_either() {
    let port = quiet_port();
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, ""))
        .env("PORT", port)
        .env("NODE_ENV", "development")
        .without_env("LOG_FORMAT")
        .without_env("LOG_LEVEL")
        .spawn();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    await_listening(addr, &gateway);
    let request = Request::get("/o/pretty?password=hunter2").header("X-Request-ID", "pretty-1");
    let request = request
        .header("X-Odd", "\u{9b}31mred\u{85}next")
        .header("X-Plain", "shown-at-debug");
    assert_eq!(request.send_to(addr).status, 200);
    wait_until("it is logged", || gateway.raw_output().contains("pretty-1"));
    let output = gateway.raw_output();
    let line = output
        .lines()
        .find(|line| line.contains("pretty-1"))
        .unwrap();
    assert!(
        line.contains("GET /o/pretty?password=[REDACTED] - 200"),
        "{line}"
    );
    assert!(line.contains("\u{1b}[32mINFO\u{1b}[0m"), "colours: {line}");
    assert!(
        line.contains("shown-at-debug"),
        "debug is the default in development: {line}"
    );
    assert!(
        !line.contains(['\u{9b}', '\u{85}']),
        "control characters reach the terminal: {line:?}"
    );
    assert!(serde_json::from_str::<Value>(line).is_err());
}

#[test]
fn the_level_decides_which_lines_are_written() {
    for (level, ok, warning, error) in [
        ("debug", true, true, true),
        ("info", true, true, true),
        ("warn", false, true, true),
        ("error", false, false, true),
    ] {
        let port = quiet_port();
        let backend = Upstream::start_with(|request| match request.path() {
            "/o/500" => Reply::status(500),
            _ => Reply::status(200),
        });
        let gateway = Gateway::with(&yaml(&backend, ""))
            .env("PORT", port)
            .env("LOG_LEVEL", level)
            .spawn();
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        await_listening(addr, &gateway);
        for (target, id) in [
            ("/o/x", "lv-ok"),
            ("/nowhere", "lv-warn"),
            ("/o/500", "lv-err"),
        ] {
            Request::get(target)
                .header("X-Request-ID", id)
                .send_to(addr);
        }
        for (id, written) in [("lv-ok", ok), ("lv-warn", warning), ("lv-err", error)] {
            if written {
                gateway.access_line(id);
            }
        }
        let seen = ["lv-ok", "lv-warn", "lv-err"].map(|id| gateway.access_lines_of(id) == 1);
        assert_eq!(seen, [ok, warning, error], "LOG_LEVEL={level}");
    }
}

#[test]
fn the_log_may_go_to_a_file() {
    let file = TempFile::new("log", "an older line\n");
    let port = quiet_port();
    let backend = Upstream::start();
    let conf = yaml(
        &backend,
        &format!("log: {{ file: '{}' }}", file.path().display()),
    );
    let gateway = Gateway::with(&conf).env("PORT", port).spawn();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    await_listening(addr, &gateway);
    Request::get("/o/x")
        .header("X-Request-ID", "file-1")
        .send_to(addr);
    let read = || fs::read_to_string(file.path()).unwrap();
    wait_until("it is in the file", || {
        read().contains("\"requestId\":\"file-1\"")
    });
    assert!(
        read().starts_with("an older line\n"),
        "the file is appended to"
    );
    assert!(
        gateway.log_lines().is_empty(),
        "and nothing is on standard output"
    );

    let conf = yaml(&backend, "log: { file: /nonexistent/x.log }");
    let exit = Gateway::with(&conf).run_to_exit();
    assert_eq!(exit.code, 1);
    assert!(
        exit.stderr.contains("the log cannot be opened"),
        "{}",
        exit.stderr
    );
}

#[test]
fn a_trace_is_continued_or_begun_when_tracing_is_on() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, ""))
        .env("ENABLE_TRACING", "true")
        .start();
    let send = |id: &str, traceparents: &[&str]| {
        let request = Request::get("/o/x").header("X-Request-ID", id);
        let request = traceparents
            .iter()
            .fold(request, |r, t| r.header("traceparent", t));
        assert_eq!(request.send_to(gateway.addr()).status, 200);
        let logged = gateway.access_line(id)["traceId"]
            .as_str()
            .unwrap()
            .to_owned();
        let sent = backend
            .requests()
            .pop()
            .unwrap()
            .header("traceparent")
            .unwrap()
            .to_owned();
        assert_eq!(
            sent.split('-').nth(1),
            Some(logged.as_str()),
            "{id}: the log and the backend agree"
        );
        (logged, sent)
    };
    let (logged, sent) = send("trace-1", &[&given]);
    assert_eq!(logged, TRACE);
    assert!(
        sent != given && sent.ends_with("-01"),
        "a span of its own: {sent}"
    );
    let mut begun = BTreeSet::new();
    for (i, bad) in [&[][..], &["garbage"], &[&given, &given], &["00-0-0-0"]]
        .into_iter()
        .enumerate()
    {
        let (logged, _) = send(&format!("trace-bad-{i}"), bad);
        assert!(logged != TRACE && logged.len() == 32, "{bad:?}");
        begun.insert(logged);
    }
    assert_eq!(begun.len(), 4, "each has a trace of its own");
}

struct World {
    backend: Upstream,
    gateway: Gateway,
}

impl World {
    fn start(level: &str, more: &str) -> Self {
        let backend = Upstream::start();
        let gateway = Gateway::with(&yaml(&backend, more))
            .env("LOG_LEVEL", level)
            .start();
        Self { backend, gateway }
    }

    /// Waits until all that was to be logged before is in the log.
    #[track_caller]
    fn sentinel(&self) {
        Request::get("/nowhere")
            .header("X-Request-ID", "sentinel")
            .send_to(self.gateway.addr());
        self.gateway.access_line("sentinel");
    }
}

#[track_caller]
fn audit(world: &World, id: &str) -> Value {
    world
        .gateway
        .wait_log(|line| line["context"] == "audit" && line["requestId"] == id)
}

fn yaml(backend: &Upstream, more: &str) -> String {
    format!(
        "{more}
limits:
  flood: {{ per_second: 100000 }}
  global: {{ max: 100000, window: 60s }}
  rules: {{ tight: {{ max: 1, window: 60s }} }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
health: {{ enabled: false }}
roles: {{ admin: ['*'], customer: ['events:view'] }}
breaker: {{ volume: 100000 }}
services: {{ s: {{ url: '{}' }} }}
routes:
  - {{ path: /o/*, service: s, auth: public }}
  - {{ path: /s/*, service: s, auth: token }}
  - {{ path: /admin/*, service: s, auth: token, permissions: {{ GET: 'things:manage' }} }}
  - {{ path: /limited/*, service: s, auth: public, limits: [tight] }}
",
        backend.url()
    )
}

/// A free port outside the range from which the kernel gives ports away, for gateways that cannot tell theirs.
fn quiet_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn await_listening(addr: SocketAddr, gateway: &Gateway) {
    let listening = within(Duration::from_secs(20), || {
        std::net::TcpStream::connect(addr).ok()
    });
    assert!(listening.is_some(), "{}", gateway.raw_output());
}
