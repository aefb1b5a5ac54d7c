//! What the gateway says of itself: alive, ready, healthy, measured; on the main port and on the private listener.

use crate::support::prelude::*;

const JSON: &str = "application/json; charset=utf-8";

#[test]
fn live_ready_and_health_have_the_documented_shapes_on_both_listeners() {
    let gateway = Gateway::platform().start();
    for addr in [gateway.addr(), gateway.private_addr()] {
        let get = |path: &str| Request::get(path).send_to(addr);
        let live = get("/live");
        assert_eq!(
            (live.status, live.json()),
            (200, json!({"status": "alive"}))
        );

        let ready = get("/ready");
        assert_eq!(
            (ready.status, &ready.json()["status"]),
            (200, &json!("ready"))
        );
        let checks = &ready.json()["checks"];
        assert_eq!(checks["memory"], "ok");
        assert_eq!(checks["circuitBreakers"]["auth-service"], "ok");
        assert_eq!(checks["circuitBreakers"].as_object().unwrap().len(), 19);

        let health = get("/health");
        let body = health.json();
        assert_eq!((health.status, &body["status"]), (200, &json!("ok")));
        assert_eq!(body["pid"], gateway.pid());
        assert_eq!(body["version"], env!("CARGO_PKG_VERSION"));
        assert!(body["uptime"].is_u64() && body["memory"]["heapUsed"].as_u64() > Some(1_000_000));
        let venue = &body["circuitBreakers"]["venue-service"];
        assert_eq!(venue["state"], "CLOSED");
        assert_eq!(
            venue["stats"],
            json!({"successes": 0, "failures": 0, "rejects": 0})
        );
        let time = body["timestamp"].as_str().unwrap();
        assert!(
            time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
            "{time}"
        );
        for response in [&live, &ready, &health] {
            assert_eq!(response.header("content-type"), Some(JSON));
            assert_eq!(response.header("cache-control"), Some("no-store"));
        }
        let metrics = get("/metrics");
        assert_eq!(
            metrics.header("content-type"),
            Some("text/plain; version=0.0.4; charset=utf-8")
        );
        assert!(
            metrics
                .text()
                .contains("\n# TYPE http_requests_total counter\n")
        );
    }
}

#[test]
fn head_get_and_no_other_method_is_answered() {
    let gateway = Gateway::platform().start();
    for addr in [gateway.addr(), gateway.private_addr()] {
        let mut connection = Client::to(addr).connect();
        for path in ["/live", "/ready", "/health", "/metrics"] {
            let response = connection.request(&Request::method("HEAD", path));
            assert_eq!(response.status, 200, "HEAD {path}");
            let length: usize = response.header("content-length").unwrap().parse().unwrap();
            assert!(length > 10, "HEAD {path} says {length}");
        }
        for path in ["/live", "/ready", "/health", "/metrics"] {
            for method in ["POST", "PUT", "DELETE", "PATCH"] {
                let response = Request::method(method, path).send_to(addr);
                assert_eq!(response.status, 405, "{method} {path} at {addr}");
            }
        }
        for path in [
            "/",
            "/live/",
            "/livex",
            "/LIVE",
            "/health/x",
            "/admin",
            "/api/v1/events",
        ] {
            let status = Request::get(path).send_to(gateway.private_addr()).status;
            assert_eq!(status, 404, "{path} on the private listener");
        }
    }
    let response = Request::post("/live").send_to(gateway.addr());
    assert_eq!(response.header("allow"), Some("GET, HEAD"));
    assert_eq!(
        Request::get("/live?x=1").send_to(gateway.addr()).status,
        200
    );
}

#[test]
fn details_and_metrics_are_only_for_addresses_in_ops_allow() {
    let gateway = Gateway::platform()
        .env("TRUSTED_PROXIES", "127.0.0.1/32")
        .start();
    let get = |path: &str, from: &str| {
        Request::get(path)
            .header("X-Forwarded-For", from)
            .send_to(gateway.addr())
    };
    for outside in [
        "203.0.113.9",
        "172.32.0.1",
        "11.0.0.1",
        "2001:db8::1",
        "::ffff:203.0.113.9",
    ] {
        let health = get("/health", outside).json();
        let mut keys: Vec<&String> = health.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["status", "timestamp"], "{outside}");
        let metrics = get("/metrics", outside);
        assert_eq!(
            (metrics.status, &metrics.json()["code"]),
            (403, &json!("FORBIDDEN")),
            "{outside}"
        );
        assert_eq!(get("/live", outside).status, 200);
        assert_eq!(get("/ready", outside).status, 200);
    }
    for inside in [
        "127.0.0.1",
        "10.9.8.7",
        "172.31.255.255",
        "192.168.1.1",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(
            get("/health", inside).json()["circuitBreakers"].is_object(),
            "{inside}"
        );
        assert_eq!(get("/metrics", inside).status, 200, "{inside}");
    }
    // What an untrusted client says of itself counts for nothing.
    let gateway = Gateway::with(&conf("ops: { allow: [10.0.0.0/8] }")).start();
    let request = Request::get("/metrics").header("X-Forwarded-For", "10.0.0.1");
    assert_eq!(request.send_to(gateway.addr()).status, 403);
    assert_eq!(
        Request::get("/metrics")
            .send_to(gateway.private_addr())
            .status,
        200
    );
}

#[test]
fn metrics_can_be_turned_off() {
    let gateway = Gateway::platform().env("ENABLE_METRICS", "false").start();
    for addr in [gateway.addr(), gateway.private_addr()] {
        assert_eq!(Request::get("/metrics").send_to(addr).status, 404);
        assert_eq!(Request::get("/health").send_to(addr).status, 200);
    }
}

#[test]
fn backends_metrics_are_public_inside_and_for_admins_outside() {
    let payments = Upstream::start();
    let gateway = Gateway::platform()
        .env("PAYMENT_SERVICE_URL", payments.url())
        .env("TRUSTED_PROXIES", "127.0.0.1/32")
        .start();
    let get = |from: &str, token: Option<String>| {
        let request = Request::get("/api/v1/payments/metrics").header("X-Forwarded-For", from);
        let request = token.iter().fold(request, |r, token| r.bearer(token));
        request.send_to(gateway.addr()).status
    };
    assert_eq!(get("10.1.1.1", None), 200);
    assert_eq!(get("203.0.113.9", None), 401);
    assert_eq!(get("203.0.113.9", Some(token::customer())), 403);
    assert_eq!(get("203.0.113.9", Some(token::admin())), 200);
    assert_eq!(payments.count(), 2);
}

#[test]
fn one_open_breaker_leaves_it_ready_unless_any_is_asked_for_and_all_open_do_not() {
    for (breakers, one_open, all_open) in [("all", 200, 503), ("any", 503, 503)] {
        let (a, b) = (failing(), failing());
        let gateway = Gateway::with(&two_services(breakers, "60s", &a, &b)).start();
        let ready = || Request::get("/ready").send_to(gateway.addr());
        assert_eq!(ready().status, 200, "{breakers}: none open");
        assert_eq!(Request::get("/a/x").send_to(gateway.addr()).status, 500);
        assert_eq!(ready().status, one_open, "{breakers}: one open");
        let checks = &ready().json()["checks"]["circuitBreakers"];
        assert_eq!((&checks["a"], &checks["b"]), (&json!("open"), &json!("ok")));
        assert_eq!(Request::get("/b/x").send_to(gateway.addr()).status, 500);
        let response = ready();
        assert_eq!(response.status, all_open, "{breakers}: all open");
        assert_eq!(response.json()["status"], "not ready");
        assert_eq!(Request::get("/live").send_to(gateway.addr()).status, 200);
        assert_eq!(Request::get("/health").send_to(gateway.addr()).status, 200);
    }
}

#[test]
fn a_gateway_that_is_not_ready_for_its_breakers_is_ready_when_they_may_be_probed() {
    // Out of rotation it gets no request, so no request can be what ends this.
    let (a, b) = (failing(), failing());
    let gateway = Gateway::with(&two_services("all", "500ms", &a, &b)).start();
    for target in ["/a/x", "/b/x"] {
        assert_eq!(Request::get(target).send_to(gateway.addr()).status, 500);
    }
    wait_until("it is ready again without a request", || {
        Request::get("/ready").send_to(gateway.addr()).status == 200
    });
}

#[test]
fn over_the_memory_limit_it_is_not_ready() {
    let gateway = Gateway::with(&conf("ops: { ready: { memory: 16MiB } }")).start();
    let over = gateway.memory_kb() > 16 * 1024;
    let response = Request::get("/ready").send_to(gateway.addr());
    let expected = if over {
        (503, "over the limit")
    } else {
        (200, "ok")
    };
    assert_eq!(response.status, expected.0, "{} KiB", gateway.memory_kb());
    assert_eq!(response.json()["checks"]["memory"], expected.1);
}

#[test]
fn while_it_drains_it_is_not_ready_but_alive() {
    let gateway = Gateway::platform().start();
    let mut probes: Vec<Connection> = (0..2)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    for (probe, path) in probes.iter_mut().zip(["/ready", "/live"]) {
        probe.send(format!("GET {path} HTTP/1.1\r\nHost: g\r\n").as_bytes());
    }
    gateway.wait_metric("downstream_connections", |n| n == 2.0);
    gateway.signal(15);
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("told to end"))
    });
    let answers: Vec<Response> = probes
        .iter_mut()
        .map(|probe| {
            probe.send(b"\r\n");
            probe.read_response()
        })
        .collect();
    assert_eq!(
        (answers[0].status, &answers[0].json()["status"]),
        (503, &json!("not ready"))
    );
    assert_eq!(answers[1].status, 200);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn redis_that_is_configured_and_away_shows_as_degraded_and_not_as_unready() {
    let gateway = Gateway::platform()
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", refused_addr().port())
        .start();
    let response = Request::get("/ready").send_to(gateway.addr());
    assert_eq!(
        (response.status, &response.json()["checks"]["redis"]),
        (200, &json!("degraded"))
    );
    assert_eq!(gateway.metric("redis_up"), 0.0);
}

/// These settings, and the one route that there must be.
fn conf(settings: &str) -> String {
    format!(
        "{settings}
services: {{ s: {{ url: 'http://127.0.0.1:1' }} }}
routes: [{{ path: /s, service: s, auth: public }}]
"
    )
}

fn failing() -> Upstream {
    Upstream::start_with(|_| Reply::status(500))
}

fn two_services(breakers: &str, reset: &str, a: &Upstream, b: &Upstream) -> String {
    format!(
        "ops: {{ ready: {{ breakers: {breakers} }} }}
health: {{ enabled: false }}
breaker: {{ volume: 1, reset: {reset} }}
services: {{ a: {{ url: '{}' }}, b: {{ url: '{}' }} }}
routes:
  - {{ path: /a/*, service: a, auth: public }}
  - {{ path: /b/*, service: b, auth: public }}
",
        a.url(),
        b.url()
    )
}
