//! The circuit breaker of each service: when it opens, what it answers, how it closes again.

use crate::support::prelude::*;
use std::thread;

#[test]
fn it_opens_at_threshold_and_volume_answers_at_once_and_closes_after_a_good_probe() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let gateway = Gateway::with(&yaml("volume: 4, reset: 1s", &sick, &well)).start();
    for i in 0..4 {
        assert_eq!(
            gateway.metric(&gauge("s")),
            0.0,
            "closed before failure {i}"
        );
        assert_eq!(get(&gateway, "/s/x").status, 500);
    }
    let opened = Instant::now();
    gateway.wait_metric(&gauge("s"), |state| state == 1.0);

    let response = Request::get("/s/x")
        .header("X-Request-ID", "open-1")
        .send_to(gateway.addr());
    assert_eq!(
        (response.status, &response.json()["code"]),
        (503, &json!("SERVICE_UNAVAILABLE"))
    );
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(sick.count(), 4, "the backend was touched");
    let line = gateway.access_line("open-1");
    assert_eq!(line["code"], "SERVICE_UNAVAILABLE");
    assert_eq!(
        get(&gateway, "/other/x").status,
        200,
        "another service is unaffected"
    );
    assert_eq!(gateway.metric(&gauge("other")), 0.0);
    let health = Request::get("/health")
        .send_to(gateway.private_addr())
        .json();
    assert_eq!(health["circuitBreakers"]["s"]["state"], "OPEN");
    assert_eq!(health["circuitBreakers"]["s"]["stats"]["failures"], 4);
    assert!(health["circuitBreakers"]["s"]["stats"]["rejects"].as_u64() >= Some(1));
    assert_eq!(health["circuitBreakers"]["other"]["state"], "CLOSED");

    sick.set(|_| Reply::status(200));
    wait_until("a probe closes it", || get(&gateway, "/s/x").status == 200);
    assert!(
        opened.elapsed() >= Duration::from_millis(900),
        "it probed before its time"
    );
    assert_eq!(gateway.metric(&gauge("s")), 0.0);
    for event in ["open", "halfOpen", "close"] {
        let text = format!("circuit breaker {event}: s");
        gateway.wait_log(|line| line["msg"].as_str().is_some_and(|m| m.starts_with(&text)));
    }
}

#[test]
fn half_open_it_lets_one_probe_through_and_a_failed_one_opens_it_again() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let gateway = Gateway::with(&yaml("volume: 1, reset: 500ms", &sick, &well)).start();
    assert_eq!(get(&gateway, "/s/x").status, 500);
    sick.hold();
    let addr = gateway.addr();
    let probe = thread::spawn(move || {
        loop {
            match Request::get("/s/probe").send_to(addr).status {
                503 => thread::yield_now(),
                other => return other,
            }
        }
    });
    wait_until("a probe is let through", || sick.heads_seen() == 2);
    gateway.wait_metric(&gauge("s"), |state| state == 2.0);
    let health = Request::get("/health")
        .send_to(gateway.private_addr())
        .json();
    assert_eq!(health["circuitBreakers"]["s"]["state"], "HALF_OPEN");
    for _ in 0..5 {
        let response = get(&gateway, "/s/x");
        assert_eq!(
            response.status, 503,
            "a second request passed beside the probe"
        );
        assert_eq!(response.header("retry-after"), Some("1"));
    }
    assert_eq!(sick.heads_seen(), 2);
    sick.release();
    assert_eq!(probe.join().unwrap(), 500);
    gateway.wait_metric(&gauge("s"), |state| state == 1.0);
    assert_eq!(get(&gateway, "/s/x").status, 503, "open for another while");
}

#[test]
fn a_probe_whose_client_goes_away_does_not_leave_it_half_open_for_ever() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let gateway = Gateway::with(&yaml("volume: 1, reset: 300ms", &sick, &well)).start();
    assert_eq!(get(&gateway, "/s/x").status, 500);
    sick.hold();
    wait_until("a probe is let through", || {
        let mut probe = Client::to(gateway.addr()).connect();
        probe.send(&Request::get("/s/probe").bytes());
        within(Duration::from_millis(1500), || {
            (sick.heads_seen() == 2).then_some(())
        })
        .is_some()
    });
    sick.set(|_| Reply::status(200));
    sick.release();
    wait_until("it closes", || get(&gateway, "/s/x").status == 200);
    gateway.wait_metric(&gauge("s"), |state| state == 0.0);
}

#[test]
fn bodies_that_no_policy_reads_may_probe() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let small = vec![b'x'; 40 << 10];
    let large = vec![b'x'; 200 << 10];
    for body in [small, large] {
        sick.set(|_| Reply::status(500));
        let gateway = Gateway::with(&yaml("volume: 1, reset: 300ms", &sick, &well)).start();
        let post = || {
            let request = Request::post("/s/x").body(body.clone());
            request.send_to(gateway.addr()).status
        };
        assert_eq!(post(), 500);
        gateway.wait_metric(&gauge("s"), |state| state == 1.0);
        sick.set(|_| Reply::status(200));
        wait_until("a probe closes it", || post() == 200);
        assert_eq!(
            sick.requests().last().unwrap().body,
            body,
            "what the backend saw"
        );
        gateway.wait_metric(&gauge("s"), |state| state == 0.0);
    }
}

#[test]
fn a_probe_is_awaited_as_a_whole() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let gateway = Gateway::with(&yaml("volume: 1, reset: 300ms", &sick, &well)).start();
    assert_eq!(get(&gateway, "/s/x").status, 500);
    gateway.wait_metric(&gauge("s"), |state| state == 1.0);
    let health = || {
        Request::get("/health")
            .send_to(gateway.private_addr())
            .json()
    };
    wait_until("it would let a probe through", || {
        health()["circuitBreakers"]["s"]["state"] == "HALF_OPEN"
    });
    sick.set(|_| Reply::status(200));
    let mut slow = Client::to(gateway.addr()).connect();
    slow.send(b"POST /s/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab");
    let open = r#"http_requests_in_progress{method="POST",route="/s/*"}"#;
    gateway.wait_metric(open, |n| n == 1.0);
    assert_eq!(
        get(&gateway, "/s/x").status,
        200,
        "it keeps the place of nobody"
    );
    slow.send(b"cde");
    assert_eq!(slow.read_response().status, 200);
    assert_eq!(sick.requests().last().unwrap().body, b"abcde");
}

#[test]
fn what_counts_as_a_failure_is_5xx_time_outs_and_broken_connections_only() {
    let counted = [
        ("500", Reply::status(500)),
        ("503", Reply::status(503)),
        ("a reset", Reply::reset()),
        ("garbage", Reply::raw("what?\r\n\r\n").then_close()),
        ("a time-out", Reply::hang()),
    ];
    let harmless = [400, 401, 404, 409, 422, 429, 499].map(Reply::status);
    for (name, reply) in counted {
        let (sick, well) = (Upstream::start(), Upstream::start());
        let conf = yaml("volume: 4, reset: 60s", &sick, &well);
        let gateway = Gateway::with(&conf.replace("# SERVICE", "timeout: 300ms")).start();
        for answer in harmless.clone() {
            sick.set(move |_| answer.clone());
            let status = Request::post("/s/x").send_to(gateway.addr()).status;
            assert!((400..500).contains(&status));
        }
        assert_eq!(gateway.metric(&gauge("s")), 0.0, "4xx has opened it");
        // Seven good ends are known by now: so many failures make half.
        sick.set(move |_| reply.clone());
        for i in 0..7 {
            assert_eq!(
                gateway.metric(&gauge("s")),
                0.0,
                "{name}: closed before failure {i}"
            );
            assert!(Request::post("/s/x").send_to(gateway.addr()).status >= 500);
        }
        gateway.wait_metric(&gauge("s"), |state| state == 1.0);
    }
}

#[test]
fn a_refused_connection_counts_and_an_open_breaker_is_told_to_the_second() {
    let well = Upstream::start();
    let conf = yaml("volume: 2, reset: 60s", &well, &well).replacen(
        &well.url(),
        &format!("http://{}", refused_addr()),
        1,
    );
    let gateway = Gateway::with(&conf).start();
    for _ in 0..2 {
        assert_eq!(get(&gateway, "/s/x").header("retry-after"), Some("1"));
    }
    gateway.wait_metric(&gauge("s"), |state| state == 1.0);
    let seconds: u64 = get(&gateway, "/s/x")
        .header("retry-after")
        .unwrap()
        .parse()
        .unwrap();
    assert!((50..=60).contains(&seconds), "Retry-After: {seconds}");
}

#[test]
fn its_variables_win_over_the_file_for_every_service() {
    for (volume, reset, threshold) in [("2", "60000", "50"), ("3", "90000", "100")] {
        let (sick, well) = (
            Upstream::start_with(|_| Reply::status(500)),
            Upstream::start(),
        );
        let conf = yaml("volume: 50, reset: 7s, error_percent: 1", &sick, &well);
        let gateway = Gateway::with(&conf)
            .env("CIRCUIT_BREAKER_VOLUME_THRESHOLD", volume)
            .env("CIRCUIT_BREAKER_RESET_TIMEOUT", reset)
            .env("CIRCUIT_BREAKER_ERROR_THRESHOLD", threshold)
            .start();
        for i in 0..volume.parse().unwrap() {
            assert_eq!(
                gateway.metric(&gauge("s")),
                0.0,
                "closed before failure {i}"
            );
            assert_eq!(get(&gateway, "/s/x").status, 500);
        }
        gateway.wait_metric(&gauge("s"), |state| state == 1.0);
        let seconds: u64 = get(&gateway, "/s/x")
            .header("retry-after")
            .unwrap()
            .parse()
            .unwrap();
        let reset = reset.parse::<u64>().unwrap() / 1000;
        assert!(
            (reset - 10..=reset).contains(&seconds),
            "Retry-After: {seconds} of {reset}"
        );
    }
}

#[test]
fn a_time_out_set_in_the_environment_caps_every_attempt_also_of_routes_with_their_own() {
    let (slow, well) = (Upstream::start_with(|_| Reply::hang()), Upstream::start());
    let conf = yaml("volume: 100", &slow, &well).replace("# SERVICE", "timeout: 60s");
    let gateway = Gateway::with(&conf)
        .env("CIRCUIT_BREAKER_TIMEOUT", 300)
        .start();
    let start = Instant::now();
    assert_eq!(get(&gateway, "/s/x").status, 504);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn the_platforms_breakers_have_the_documented_volumes() {
    let (events, orders) = (failing(), failing());
    let gateway = Gateway::platform()
        .env("EVENT_SERVICE_URL", events.url())
        .env("COMPLIANCE_SERVICE_URL", orders.url())
        .start();
    let cases = [
        ("events", "event-service", 20, 60),
        ("compliance", "compliance-service", 10, 30),
    ];
    for (prefix, service, volume, reset) in cases {
        let post = || {
            // Not tried again, so that each is one failure.
            Request::post(&format!("/api/v1/{prefix}/1"))
                .bearer(&token::admin())
                .send_to(gateway.addr())
        };
        for i in 0..volume {
            assert_eq!(post().status, 500, "{service}: request {i}");
        }
        let response = post();
        assert_eq!(response.status, 503, "{service}");
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!(
            (reset - 15..=reset).contains(&seconds),
            "{service}: Retry-After {seconds}"
        );
    }
}

fn failing() -> Upstream {
    Upstream::start_with(|_| Reply::status(500))
}

/// Services `s`, with this breaker, and `other`; nothing is tried again, so that each request is one failure. `# SERVICE` stands where further keys of `s` may go.
fn yaml(breaker: &str, s: &Upstream, other: &Upstream) -> String {
    format!(
        "limits: {{ enabled: false, flood: {{ per_second: 100000 }} }}
health: {{ enabled: false }}
timeouts: {{ default: 5s }}
retry: {{ max_retries: 0 }}
services:
  s:
    url: {}
    breaker: {{ {breaker} }}
    # SERVICE
  other: {{ url: '{}' }}
routes:
  - {{ path: /s/*, service: s, auth: public }}
  - {{ path: /other/*, service: other, auth: public }}
",
        s.url(),
        other.url()
    )
}

fn gauge(service: &str) -> String {
    format!("circuit_breaker_state{{service=\"{service}\"}}")
}

fn get(gateway: &Gateway, target: &str) -> Response {
    Request::get(target).send_to(gateway.addr())
}
