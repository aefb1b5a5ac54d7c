//! Clients that go away: a read is dropped, what changes something is finished, and nobody else pays for it.

use crate::support::prelude::*;
use std::thread;

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Gone {
    Closed,
    Reset,
}

const WAYS: [Gone; 2] = [Gone::Closed, Gone::Reset];

#[test]
fn a_read_whose_client_goes_is_dropped_at_the_backend_at_once() {
    let world = World::start();
    for way in WAYS {
        for method in ["GET", "HEAD"] {
            let id = format!("{method}-{way:?}");
            world.fleet.set(|_, _| Reply::hang());
            world.send_and_go(&Request::method(method, "/s/x"), &id, way);
            wait_until("the backend's connection is closed", || {
                world.fleet.open_connections() == 0
            });
            let line = world.gateway.access_line(&id);
            assert_eq!(line["statusCode"], 499, "{line}");
            assert_eq!(line["attempts"], 1, "{line}");
        }
    }
    let aborted = r#"upstream_attempts_total{outcome="aborted",service="s"}"#;
    world.gateway.wait_metric(aborted, |n| n == 4.0);
}

#[test]
fn a_read_whose_client_goes_in_the_middle_of_its_answer_is_dropped_too() {
    let world = World::start();
    for way in WAYS {
        // In chunks: what has a length may be held back until it is whole.
        let head = "HTTP/1.1 200 OK
Transfer-Encoding: chunked

";
        let pieces = std::iter::once(head).chain(std::iter::repeat_n(
            "1
x
", 1000,
        ));
        let reply = Reply::paced(pieces, Duration::from_millis(20));
        world.fleet.set(move |_, _| reply.clone());
        let mut connection = Client::to(world.gateway.addr()).connect();
        connection.send(&Request::get("/s/x").bytes());
        let head = connection.read_up_to(17);
        assert!(head.starts_with(b"HTTP/1.1 200"));
        way.go(connection);
        wait_until("the backend's connection is closed", || {
            world.fleet.open_connections() == 0
        });
    }
}

#[test]
fn what_changes_something_is_finished_although_its_client_is_gone() {
    let world = World::start();
    let success = r#"upstream_attempts_total{outcome="success",service="s"}"#;
    let mut finished = 0.0;
    for way in WAYS {
        for (method, chunked) in [
            ("POST", false),
            ("POST", true),
            ("PUT", false),
            ("DELETE", false),
        ] {
            let id = format!("{method}-{way:?}-{chunked}");
            world.fleet.set(|_, _| Reply::json(json!({"paid": true})));
            world.fleet[0].hold();
            let request = Request::method(method, "/s/pay");
            let request = match (method, chunked) {
                ("DELETE", _) => request,
                (_, true) => request.chunked(vec!["pay ", "100"]),
                (_, false) => request.body("pay 100"),
            };
            let before = world.fleet[0].count();
            world.send_and_go(&request, &id, way);
            let seen = world.fleet[0].wait_requests(before + 1).remove(before);
            assert!(seen.complete, "{id}");
            // Had the gateway dropped it, it would do so now, long before its answer.
            let open = world.fleet.open_connections();
            assert!(open >= 1, "{id}: the upstream call is dropped");
            thread::sleep(Duration::from_millis(150));
            assert_eq!(world.fleet.open_connections(), open, "{id}: it is dropped");
            assert_eq!(world.gateway.metric(success), finished, "{id}: too early");
            world.fleet[0].release();
            finished += 1.0;
            world.gateway.wait_metric(success, |n| n == finished);
            let line = world.gateway.access_line(&id);
            let status = line["statusCode"].as_u64().unwrap();
            assert!([200, 499].contains(&status), "{line}");
            assert_eq!(line["attempts"], 1, "{line}");
        }
    }
}

#[test]
fn the_whole_answer_to_a_client_that_is_gone_is_taken() {
    let world = World::start();
    // More than all buffers on the way hold: its end is written only if somebody reads.
    world
        .fleet
        .set(|_, _| Reply::status(200).body(vec![b'x'; 8_000_000]));
    world.fleet[0].hold();
    for way in WAYS {
        let id = format!("large-{way:?}");
        world.send_and_go(&Request::post("/s/pay").body("pay 100"), &id, way);
    }
    world.fleet[0].release();
    let success = r#"upstream_attempts_total{outcome="success",service="s"}"#;
    world.gateway.wait_metric(success, |n| n == 2.0);
    // The connections end or are idle: the gateway waits for nothing.
    world.gateway.wait_metric(
        r#"http_requests_in_progress{method="POST",route="/s/*"}"#,
        |n| n == 0.0,
    );
    world
        .gateway
        .wait_metric("downstream_connections", |n| n == 0.0);
}

#[test]
fn what_is_finished_for_a_client_that_is_gone_still_has_its_deadline() {
    let world = World::of(1, |conf| conf.route("timeout", "500ms"));
    world.fleet.set(|_, _| Reply::hang());
    world.send_and_go(
        &Request::post("/s/pay").body("pay 100"),
        "late",
        Gone::Closed,
    );
    let start = Instant::now();
    wait_until("the backend's connection is cut", || {
        world.fleet.open_connections() == 0
    });
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(250),
        "it was dropped after {took:?}"
    );
    world.gateway.access_line("late");
}

#[test]
fn an_upload_that_its_client_breaks_off_never_looks_complete() {
    let world = World::start();
    let body = noise(100_000);
    for way in WAYS {
        for method in ["POST", "PUT"] {
            for chunked in [false, true] {
                let id = format!("half-{method}-{way:?}-{chunked}");
                let request = Request::method(method, "/s/up").header("X-Request-ID", &id);
                let request = match chunked {
                    true => request.chunked(body.chunks(10_000).collect()),
                    false => request.body(body.clone()),
                };
                let before = world.fleet.heads_seen();
                let mut connection = Client::to(world.gateway.addr()).connect();
                connection.send(&request.bytes()[..50_000]);
                world.fleet.wait_heads(before + 1);
                way.go(connection);
                let seen = world.fleet[0].wait_requests(before + 1).remove(before);
                assert!(!seen.complete, "{id}: a half body was delivered as a whole");
                assert_eq!(world.fleet.heads_seen(), before + 1, "{id}: sent again");
                let status = world.gateway.access_line(&id)["statusCode"].clone();
                assert_eq!(status, 499, "{id}");
            }
        }
    }
}

#[test]
fn clients_that_go_count_neither_for_the_breaker_nor_against_the_instance() {
    let world = World::of(2, |conf| {
        conf.service("breaker", "{ volume: 2, reset: 60s }")
            .top("outlier", "{ consecutive: 2, ejection: 60s }")
    });
    world.fleet.set(|_, _| Reply::hang());
    for i in 0..10 {
        let way = WAYS[i % 2];
        let id = format!("gone-{i}");
        world.send_and_go(&Request::get("/s/x"), &id, way);
        world.gateway.access_line(&id);
    }
    for i in 0..6 {
        let id = format!("half-{i}");
        let before = world.fleet.heads_seen();
        let mut connection = Client::to(world.gateway.addr()).connect();
        let request = Request::post("/s/x")
            .header("X-Request-ID", &id)
            .body("0123456789");
        connection.send(&request.head_bytes());
        connection.send(b"01234");
        world.fleet.wait_heads(before + 1);
        WAYS[i % 2].go(connection);
        world.gateway.access_line(&id);
    }
    for series in [
        r#"circuit_breaker_state{service="s"}"#,
        r#"upstream_ejections_total{service="s"}"#,
        r#"upstream_retries_total{cause="reset",service="s"}"#,
    ] {
        assert_eq!(world.gateway.metric(series), 0.0, "{series}");
    }
    world.fleet.set(|_, _| Reply::status(200));
    for _ in 0..4 {
        let response = Request::get("/s/x").send_to(world.gateway.addr());
        assert_eq!(response.status, 200);
    }
    assert!(world.fleet.counts().iter().all(|count| *count > 0));
}

#[test]
fn a_failure_after_its_client_has_gone_still_counts() {
    let world = World::of(1, |conf| {
        conf.service("breaker", "{ volume: 4, reset: 60s }")
    });
    world.fleet.set(|_, _| Reply::status(500));
    world.fleet.iter().for_each(Upstream::hold);
    for i in 0..4 {
        let request = Request::post("/s/pay").body("pay 100");
        world.send_and_go(&request, &format!("gone-{i}"), WAYS[i % 2]);
    }
    world.fleet.iter().for_each(Upstream::release);
    let state = r#"circuit_breaker_state{service="s"}"#;
    world.gateway.wait_metric(state, |state| state == 1.0);
}

#[test]
fn nothing_more_is_tried_for_a_client_that_went_during_a_pause() {
    let world = World::of(1, |conf| {
        conf.top(
            "retry",
            "{ max_retries: 3, base_delay: 25s, max_delay: 25s, budget_min: 1000 }",
        )
        .route("timeout", "30s")
    });
    world.fleet.set(|_, _| Reply::status(500));
    let gone: Vec<String> = (0..6).map(|i| format!("paused-{i}")).collect();
    for id in &gone {
        let before = world.fleet[0].count();
        world.send_and_go(&Request::get("/s/x"), id, Gone::Closed);
        world.fleet[0].wait_requests(before + 1);
    }
    // The end of a pause comes within these seconds for a few at the most.
    let mut tried = 0;
    for id in &gone {
        let line = world.gateway.access_line(id);
        assert_eq!(line["statusCode"], 499, "{line}");
        tried += world.gateway.access_lines_of(id);
    }
    assert_eq!(tried, gone.len());
    assert!(
        world.fleet[0].count() <= gone.len() + 3,
        "{:?}",
        world.fleet.counts()
    );
}

struct World {
    fleet: Fleet,
    gateway: Gateway,
}

impl World {
    /// One instance.
    fn start() -> Self {
        Self::of(1, |conf| conf)
    }

    fn of(instances: usize, change: impl FnOnce(Conf) -> Conf) -> Self {
        let fleet = Fleet::of(instances);
        let gateway = change(fleet.conf().route("timeout", "20s")).start();
        Self { fleet, gateway }
    }

    /// Sends the request, and goes when a backend has it.
    #[track_caller]
    fn send_and_go(&self, request: &Request, id: &str, way: Gone) {
        let before = self.fleet.heads_seen();
        let mut connection = Client::to(self.gateway.addr()).connect();
        connection.send(&request.clone().header("X-Request-ID", id).bytes());
        self.fleet.wait_heads(before + 1);
        way.go(connection);
    }
}

impl Gone {
    fn go(self, connection: Connection) {
        match self {
            Self::Closed => drop(connection),
            Self::Reset => connection.reset(),
        }
    }
}
