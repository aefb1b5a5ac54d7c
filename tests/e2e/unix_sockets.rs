//! Backends at Unix-domain sockets: all that holds for backends holds for these.

use crate::support::prelude::*;

/// How late a busy machine may be.
const LATE: Duration = Duration::from_secs(2);

#[test]
fn a_service_at_a_socket_is_spoken_to_on_connections_that_are_kept() {
    let backend = Upstream::start();
    let relay = Relay::unix(backend.addr());
    let gateway = Conf::of(&[relay.url()])
        .gateway()
        .env("SERVER_THREADS", 1)
        .start();
    for i in 0..50 {
        let request = match i % 2 {
            0 => Request::get("/s/x"),
            _ => Request::post("/s/x").body(noise(100_000)),
        };
        let request = request.header("X-Request-ID", &format!("unix-{i}"));
        assert_eq!(request.send_to(gateway.addr()).status, 200);
    }
    let requests = backend.requests();
    assert_eq!(requests.len(), 50);
    assert_eq!(requests[1].body, noise(100_000));
    // A path is no host (RFC 9110, section 7.2).
    assert_eq!(requests[0].header("host"), Some("localhost"));
    let line = gateway.access_line("unix-0");
    assert_eq!(line["upstream"], relay.name(), "{line}");
    let made = relay.connections();
    assert!(made <= 3, "{made} connections for 50 requests");
}

#[test]
fn its_variable_may_name_sockets_beside_addresses() {
    let (one, two) = (Upstream::start(), Upstream::start());
    let relay = Relay::unix(one.addr());
    let gateway = Conf::of(&["http://127.0.0.1:1".to_owned()])
        .gateway()
        .env("S_URL", format!("{},{}", relay.url(), two.url()))
        .start();
    for _ in 0..10 {
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    }
    assert_eq!((one.count(), two.count()), (5, 5));
}

#[test]
fn health_is_asked_for_over_the_socket_and_what_went_away_is_taken_back() {
    let backend = Upstream::start();
    let relay = Relay::unix(backend.addr());
    let gateway = Conf::of(&[relay.url()])
        .top("health", "{ interval: 200ms }")
        .start();
    let healthy = r#"upstream_healthy_instances{service="s"}"#;
    let status = || Request::get("/s/x").send_to(gateway.addr()).status;
    gateway.wait_metric(healthy, |n| n == 1.0);
    assert!(backend.health_checks() > 0);
    assert_eq!(status(), 200);
    relay.stop();
    gateway.wait_metric(healthy, |n| n == 0.0);
    assert_eq!(status(), 503);
    let line = gateway.wait_log(|line| {
        let msg = line["msg"].as_str();
        msg.is_some_and(|msg| msg.contains("is not healthy"))
    });
    assert!(
        line["msg"].as_str().unwrap().contains(&relay.name()),
        "{line}"
    );
    relay.restart();
    gateway.wait_metric(healthy, |n| n == 1.0);
    assert_eq!(status(), 200);
}

#[test]
fn what_was_not_sent_is_sent_to_another_instance() {
    let backend = Upstream::start();
    let relay = Relay::unix(backend.addr());
    let gone = format!(
        "unix:{}",
        std::env::temp_dir().join("e2e-nobody.sock").display()
    );
    let gateway = Conf::of(&[gone, relay.url()]).start();
    for i in 0..10 {
        let response = Request::post("/s/x").body("money").send_to(gateway.addr());
        assert_eq!(response.status, 200, "{i}: {}", response.text());
    }
    assert_eq!(backend.count(), 10, "each once");
    let retries = r#"upstream_retries_total{cause="connect",service="s"}"#;
    assert!(gateway.metric(retries) > 0.0, "{}", gateway.metrics());
}

#[test]
fn sockets_stand_on_the_ring_and_are_ejected_like_others() {
    let backends: Vec<Upstream> = (0..3).map(|_| Upstream::start()).collect();
    let relays: Vec<Relay> = backends.iter().map(|b| Relay::unix(b.addr())).collect();
    let urls: Vec<String> = relays.iter().map(Relay::url).collect();
    let gateway = Conf::of(&urls)
        .top(
            "balance",
            "{ strategy: consistent_hash, hash_on: 'header:X-Device-ID' }",
        )
        .top("outlier", "{ consecutive: 2, ejection: 60s }")
        .start();
    let ask = |i: usize| {
        let request = Request::get("/s/x").header("X-Device-ID", &format!("device-{i}"));
        request.send_to(gateway.addr()).status
    };
    for i in 0..60 {
        assert_eq!(ask(i / 2), 200);
    }
    let counts: Vec<usize> = backends.iter().map(Upstream::count).collect();
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert!(counts.iter().all(|count| count % 2 == 0), "{counts:?}");
    backends[0].set(|_| Reply::status(500));
    for i in 0..60 {
        ask(i);
    }
    gateway.wait_metric(r#"upstream_ejected_instances{service="s"}"#, |n| n == 1.0);
}

#[test]
fn the_deadline_cuts_what_hangs_and_what_trickles() {
    let backend = Upstream::start();
    let relay = Relay::unix(backend.addr());
    let gateway = Conf::of(&[relay.url()]).service("timeout", "500ms").start();
    backend.set(|_| Reply::hang());
    let start = Instant::now();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 504);
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    backend.set(|_| Reply::trickle(vec![b'x'; 1000], Duration::from_millis(20)));
    let mut connection = Client::to(gateway.addr()).connect();
    let start = Instant::now();
    connection.send(&Request::get("/s/x").bytes());
    let broken = connection.try_read_response();
    assert!(matches!(broken, Err(Broken::Closed { .. })), "{broken:?}");
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    wait_until("the connections to the backend are cut", || {
        backend.open_connections() == 0
    });
    backend.set(|_| Reply::status(200));
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
}

#[test]
fn the_gateways_own_questions_go_to_sockets_too() {
    let (users, backend) = (Upstream::start(), Upstream::start());
    users.set(|_| Reply::json(json!({"id": "u1", "tenant_id": "t1", "role": "admin"})));
    let relay = Relay::unix(users.addr());
    let gateway = Gateway::with(&format!(
        "limits: {{ enabled: false }}\nhealth: {{ enabled: false }}\nroles: {{ admin: ['*'] }}\n\
         services:\n  auth-service: {{ url: '{}' }}\n  s: {{ url: '{}' }}\n\
         routes: [{{ path: /s/*, service: s, auth: token, permissions: {{ GET: 'x:view' }} }}]\n",
        relay.url(),
        backend.url(),
    ))
    .start();
    let request = Request::get("/s/x").bearer(&Token::user("u1").without("role").hs256());
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(users.requests()[0].target, "/internal/users/u1");
}

#[test]
fn what_is_no_socket_is_a_fault_of_the_configuration() {
    let long = format!("unix:/{}", "x".repeat(120));
    for url in [
        "unix:",
        "unix:x.sock",
        "unix://x.sock",
        "unix:./x.sock",
        &long,
    ] {
        let conf = Conf::of(&[url.to_owned()]);
        let exit = conf.gateway().arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "{url}");
        assert!(
            exit.stderr.contains("services.s.instances[0]"),
            "{url}: {}",
            exit.stderr
        );
    }
}
