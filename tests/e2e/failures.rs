//! Dead, slow, broken and lying backends, and clients that go away: what is answered, logged, and never done twice.

use crate::support::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn each_fault_of_a_backend_has_its_documented_answer() {
    let world = World::start("timeout: 1s");
    let cases: &[(&str, Reply, u16, &str)] = &[
        (
            "resets before an answer",
            Reply::reset(),
            502,
            "BAD_GATEWAY",
        ),
        (
            "closes before an answer",
            Reply::raw("").then_close(),
            502,
            "BAD_GATEWAY",
        ),
        (
            "closes in the head",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-").then_close(),
            502,
            "BAD_GATEWAY",
        ),
        (
            "is no HTTP",
            Reply::raw("220 mail.example.com ESMTP\r\n\r\n").then_close(),
            502,
            "BAD_GATEWAY",
        ),
        (
            "is binary",
            Reply::raw(vec![0x16, 3, 1, 2, 0, 1, 0, 0, 0xff, 0xfe, 13, 10, 13, 10]).then_close(),
            502,
            "BAD_GATEWAY",
        ),
        (
            "has a bad status",
            Reply::raw("HTTP/1.1 99999 X\r\nContent-Length: 0\r\n\r\n"),
            502,
            "BAD_GATEWAY",
        ),
        (
            "has a bad field name",
            Reply::raw("HTTP/1.1 200 OK\r\nBad Name: 1\r\nContent-Length: 0\r\n\r\n"),
            502,
            "BAD_GATEWAY",
        ),
        (
            "has two lengths",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde"),
            502,
            "BAD_GATEWAY",
        ),
        (
            "has a bad length",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
            502,
            "BAD_GATEWAY",
        ),
        (
            "switches unasked",
            Reply::raw(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
            )
            .then_echo(),
            502,
            "BAD_GATEWAY",
        ),
        ("hangs", Reply::hang(), 504, "GATEWAY_TIMEOUT"),
        (
            "hangs in the head",
            Reply::raw("HTTP/1.1 200 OK\r\nX: ").then_hang(),
            504,
            "GATEWAY_TIMEOUT",
        ),
    ];
    for (i, (name, reply, status, code)) in cases.iter().enumerate() {
        let reply = reply.clone();
        world.backend.set(move |_| reply.clone());
        let before = world.backend.count();
        let id = format!("fault-{i}");
        let request = Request::post("/s/x")
            .body("once")
            .header("X-Request-ID", &id);
        let response = request.send_to(world.gateway.addr());
        assert_eq!(
            response.status,
            *status,
            "a backend that {name}: {}",
            response.text()
        );
        assert_documented_error(&response, *status, code, &id);
        let line = world.gateway.access_line(&id);
        assert_eq!(
            (&line["statusCode"], &line["code"]),
            (&json!(status), &json!(code)),
            "{name}"
        );
        assert_eq!(
            world.backend.count(),
            before + 1,
            "{name}: a POST was sent again"
        );
    }
    world.backend.set(|_| Reply::json(json!({"ok": true})));
    assert_eq!(
        Request::get("/s/x").send_to(world.gateway.addr()).status,
        200,
        "and it goes on"
    );
}

#[test]
fn a_conflicting_length_and_coding_of_an_answer_never_desynchronizes_the_connection() {
    let world = World::start("timeout: 1s");
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                    HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled";
    world.backend.set(move |_| Reply::raw(smuggled));
    let mut connection = Client::to(world.gateway.addr()).connect();
    let first = connection.request(&Request::get("/s/x"));
    assert!(
        first.status == 502 || first.body == b"abc",
        "{} {:?}",
        first.status,
        first.text()
    );
    world.backend.set(|_| Reply::status(200).body("honest"));
    for _ in 0..3 {
        let response = Request::get("/s/y").send_to(world.gateway.addr());
        assert_eq!(
            response.text(),
            "honest",
            "left-over bytes answered another request"
        );
    }
}

#[test]
fn bytes_behind_an_answer_never_answer_the_next_request() {
    let world = World::start("timeout: 1s");
    world.backend.set(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    });
    for _ in 0..5 {
        let response = Request::post("/s/x")
            .body("a")
            .send_to(world.gateway.addr());
        assert!(
            response.text() == "ok" || response.status == 502,
            "{} {:?}",
            response.status,
            response.text()
        );
    }
}

#[test]
fn a_body_that_trickles_beyond_the_routes_time_is_cut_and_not_completed() {
    let world = World::start("timeout: 500ms");
    for reply in [
        Reply::trickle(vec![b'x'; 400], Duration::from_millis(20)),
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").then_hang(),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").then_hang(),
        Reply::raw("HTTP/1.1 200 OK\r\n\r\nabc").then_hang(),
    ] {
        world.backend.set(move |_| reply.clone());
        let start = Instant::now();
        assert_cut(&world, "/s/x");
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(3),
            "the whole time was 500 ms, it took {took:?}"
        );
    }
}

#[test]
fn an_answer_that_is_cut_in_the_middle_does_not_look_complete() {
    let world = World::start("timeout: 5s");
    for reply in [
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").then_close(),
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").then_reset(),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .then_close(),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nabc").then_close(),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .then_reset(),
    ] {
        world.backend.set(move |_| reply.clone());
        assert_cut(&world, "/s/x");
    }
    world.backend.set(|_| Reply::status(200).body("whole"));
    assert_eq!(
        Request::get("/s/x").send_to(world.gateway.addr()).text(),
        "whole"
    );
}

#[test]
fn an_idempotent_request_on_a_connection_that_the_backend_had_closed_is_sent_again() {
    let world = World::start("timeout: 5s");
    for round in 0..5 {
        // The next request on the kept connection meets a close that nobody announced.
        let met = Arc::new(AtomicUsize::new(0));
        world.backend.set(|_| Reply::status(200).body("first"));
        assert_eq!(
            Request::get("/s/a").send_to(world.gateway.addr()).text(),
            "first"
        );
        let counter = Arc::clone(&met);
        world
            .backend
            .set(move |_| match counter.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::raw("").then_close(),
                _ => Reply::status(200).body("second"),
            });
        let id = format!("stale-{round}");
        let request = Request::get("/s/b").header("X-Request-ID", &id);
        let response = request.send_to(world.gateway.addr());
        assert_eq!((response.status, response.text()), (200, "second"));
        assert_eq!(met.load(Ordering::SeqCst), 2);
        assert_eq!(world.gateway.access_line(&id)["attempts"], 2);
    }
}

#[test]
fn a_post_whose_bytes_went_out_is_never_sent_twice() {
    let world = World::start("timeout: 5s");
    assert_eq!(
        Request::get("/s/a").send_to(world.gateway.addr()).status,
        200
    );
    for reply in [Reply::reset(), Reply::raw("").then_close()] {
        for body in ["", "pay 100"] {
            world.backend.set(|_| Reply::status(200));
            assert_eq!(
                Request::get("/s/warm").send_to(world.gateway.addr()).status,
                200
            );
            let reply = reply.clone();
            world.backend.set(move |_| reply.clone());
            let before = world.backend.heads_seen();
            let response = Request::post("/s/pay")
                .body(body)
                .send_to(world.gateway.addr());
            assert_eq!(response.status, 502);
            assert_eq!(
                world.backend.heads_seen(),
                before + 1,
                "sent twice: {body:?}"
            );
        }
    }
}

#[test]
fn a_client_that_goes_away_is_499_in_the_log_and_leaves_nothing_behind() {
    let world = World::start("timeout: 20s");
    world.backend.hold();
    let gone = |id: &str| {
        let before = world.backend.heads_seen();
        let mut connection = Client::to(world.gateway.addr()).connect();
        connection.send(&Request::get("/s/x").header("X-Request-ID", id).bytes());
        wait_until("the backend has it", || world.backend.heads_seen() > before);
        drop(connection);
        assert_eq!(world.gateway.access_line(id)["statusCode"], 499, "{id}");
    };
    gone("warm-up");
    wait_until("its connections are closed", || {
        world.backend.open_connections() <= 1
    });
    let descriptors = world.gateway.open_fds();
    for i in 0..30 {
        gone(&format!("gone-{i}"));
    }
    wait_until("no descriptors are left behind", || {
        world.gateway.open_fds() <= descriptors + 2
    });
    let series = r#"http_requests_in_progress{method="GET",route="/s/*"}"#;
    world.gateway.wait_metric(series, |n| n == 0.0);
    let series = r#"circuit_breaker_state{service="s"}"#;
    assert_eq!(
        world.gateway.metric(series),
        0.0,
        "clients that go away are no failures"
    );
    world.backend.release();
    assert_eq!(
        Request::get("/s/x").send_to(world.gateway.addr()).status,
        200
    );
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_its_body_or_of_the_answer_leaves_nothing_behind() {
    let world = World::start("timeout: 20s");
    let mut connection = Client::to(world.gateway.addr()).connect();
    let request = Request::post("/s/x")
        .body(vec![b'a'; 100_000])
        .header("X-Request-ID", "half-body");
    connection.send(&request.bytes()[..50_000]);
    wait_until("the backend has the head", || {
        world.backend.heads_seen() == 1
    });
    drop(connection);
    assert_eq!(world.gateway.access_line("half-body")["statusCode"], 499);

    world
        .backend
        .set(|_| Reply::status(200).body(vec![b'b'; 20_000_000]));
    let mut connection = Client::to(world.gateway.addr()).connect();
    connection.send(
        &Request::get("/s/x")
            .header("X-Request-ID", "half-answer")
            .bytes(),
    );
    assert_eq!(connection.read_up_to(1000).len(), 1000);
    drop(connection);
    let line = world.gateway.access_line("half-answer");
    assert!(
        line["err"].is_string(),
        "that it was cut shows in the log: {line}"
    );
    world
        .gateway
        .wait_metric("downstream_connections", |n| n == 0.0);
    wait_until("the backend's connections end", || {
        world.backend.open_connections() <= 1
    });
}

#[test]
fn a_client_that_does_not_send_its_body_is_its_own_fault_and_not_the_services() {
    let world = World::start("timeout: 500ms, breaker: { volume: 4, reset: 60s }");
    let request = Request::post("/s/slow").header("Content-Length", "10");
    let mut slow: Vec<Connection> = (0..6)
        .map(|i| {
            let mut connection = Client::to(world.gateway.addr()).connect();
            let id = format!("slow-{i}");
            connection.send(&request.clone().header("X-Request-ID", &id).bytes());
            connection
        })
        .collect();
    for connection in &mut slow {
        let status = connection.read_response().status;
        assert!([408, 504].contains(&status), "{status}");
    }
    let state = world
        .gateway
        .metric(r#"circuit_breaker_state{service="s"}"#);
    assert_eq!(
        state, 0.0,
        "six clients that sent no body have opened the breaker for everybody"
    );
    assert_eq!(
        Request::get("/s/x").send_to(world.gateway.addr()).status,
        200
    );
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let world = World::start("timeout: 5s");
    world
        .backend
        .set_before_body(|_| Some(Reply::status(413).body("too much for me").then_close()));
    let mut connection = Client::to(world.gateway.addr()).connect();
    let request = Request::post("/s/x").body(vec![b'a'; 3_000_000]);
    connection.send(&request.bytes());
    let response = connection.read_response();
    assert_eq!((response.status, response.text()), (413, "too much for me"));
}

struct World {
    backend: Upstream,
    gateway: Gateway,
}

impl World {
    fn start(service: &str) -> Self {
        let backend = Upstream::start();
        let gateway = Gateway::with(&yaml(&backend.url(), service)).start();
        Self { backend, gateway }
    }
}

fn yaml(url: &str, service: &str) -> String {
    format!(
        "limits: {{ enabled: false, flood: {{ per_second: 100000 }} }}
health: {{ enabled: false }}
breaker: {{ volume: 100000 }}
retry: {{ base_delay: 1ms }}
services:
  s: {{ url: '{url}', {service} }}
routes:
  - {{ path: /s/*, service: s, auth: public }}
"
    )
}

#[track_caller]
fn assert_documented_error(response: &Response, status: u16, code: &str, id: &str) {
    let body = response.json();
    assert_eq!(body["statusCode"], status);
    assert_eq!(body["code"], code);
    assert_eq!(body["requestId"], id);
    for text in ["error", "message", "timestamp"] {
        assert!(
            body[text].as_str().is_some_and(|t| !t.is_empty()),
            "{text} in {body}"
        );
    }
    assert_eq!(response.header("x-request-id"), Some(id));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(
        response.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(response.header("retry-after"), None);
}

/// The answer begins, and ends as broken as the backend's.
#[track_caller]
fn assert_cut(world: &World, target: &str) {
    let mut connection = Client::to(world.gateway.addr()).connect();
    connection.send(&Request::get(target).bytes());
    match connection.try_read_response() {
        Err(Broken::Closed { received }) => {
            assert!(
                received.starts_with(b"HTTP/1.1 200"),
                "{:?}",
                String::from_utf8_lossy(&received)
            )
        }
        Err(broken) => panic!("{broken}"),
        Ok(response) => {
            let text = String::from_utf8_lossy(&response.raw_head).into_owned();
            assert_eq!(
                response.status,
                502,
                "it looks complete: {text}{:?}",
                response.text()
            )
        }
    }
}
