//! The orderly end: what is in flight is finished, nothing new is begun, and the process is gone at once after that.

use crate::support::prelude::*;
use std::net::TcpStream;

const TERM: i32 = 15;
const INT: i32 = 2;

#[test]
fn what_is_in_flight_is_answered_and_the_process_ends_with_0() {
    for signal in [TERM, INT] {
        let (backend, gateway) = world("20s");
        backend.hold();
        let mut clients = in_flight(&backend, &gateway, 3);
        gateway.signal(signal);
        await_told(&gateway);
        wait_until("new connections are refused", || {
            TcpStream::connect(gateway.addr()).is_err()
        });
        assert_eq!(
            gateway.wait_exit(Duration::from_millis(300)),
            None,
            "it left requests alone"
        );
        backend.release();
        for client in &mut clients {
            let response = client.read_response();
            assert_eq!((response.status, response.text()), (200, r#"{"ok":true}"#));
            assert!(client.is_closed(), "the connection was kept");
        }
        let answered = Instant::now();
        assert_eq!(
            gateway.wait_exit(Duration::from_secs(5)),
            Some(0),
            "signal {signal}"
        );
        assert!(
            answered.elapsed() < Duration::from_secs(3),
            "{:?}",
            answered.elapsed()
        );
        let logged = gateway
            .log_lines()
            .iter()
            .filter(|line| line["context"] == "request")
            .count();
        assert_eq!(logged, 3, "every line is written before the end");
    }
}

#[test]
fn idle_connections_are_closed_at_once_and_do_not_delay_the_end() {
    let (_backend, gateway) = world("20s");
    let mut used = Client::to(gateway.addr()).connect();
    assert_eq!(used.request(&Request::get("/s/x")).status, 200);
    assert!(used.stays_open());
    let mut fresh = Client::to(gateway.addr()).connect();
    gateway.wait_metric("downstream_connections", |n| n == 2.0);
    let start = Instant::now();
    gateway.signal(TERM);
    assert!(used.is_closed() && fresh.is_closed());
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_body_that_is_being_sent_and_one_that_is_being_read_are_finished() {
    let (backend, gateway) = world("20s");
    let body = vec![b'u'; 200_000];
    let request = Request::post("/s/upload").body(body.clone()).bytes();
    let (first, second) = request.split_at(100_000);
    let mut upload = Client::to(gateway.addr()).connect();
    upload.send(first);
    wait_until("the upload has begun", || backend.heads_seen() == 1);
    let answer = vec![b'd'; 8_000_000];
    let sent = answer.clone();
    backend.set(move |_| Reply::status(200).body(sent.clone()));
    let mut download = Client::to(gateway.addr()).connect();
    download.send(&Request::get("/s/download").bytes());
    wait_until("the download has begun", || backend.heads_seen() == 2);
    gateway.signal(TERM);
    await_told(&gateway);
    upload.send(second);
    assert_eq!(upload.read_response().status, 200);
    assert!(
        download.read_response().body == answer,
        "the download was cut"
    );
    assert!(
        backend.requests().iter().any(|seen| seen.body == body),
        "the upload was cut"
    );
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn a_second_signal_of_either_kind_ends_it_at_once() {
    for (first, second) in [(TERM, TERM), (INT, INT), (TERM, INT), (INT, TERM)] {
        let (backend, gateway) = world("20s");
        backend.hold();
        let _clients = in_flight(&backend, &gateway, 1);
        gateway.signal(first);
        await_told(&gateway);
        let start = Instant::now();
        gateway.signal(second);
        let code = gateway.wait_exit(Duration::from_secs(5));
        assert!(
            code.is_some_and(|code| code != 0),
            "signals {first}, {second}: {code:?}"
        );
        gateway.wait_log(|line| {
            line["msg"]
                .as_str()
                .is_some_and(|m| m.contains("told to end again"))
        });
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn what_does_not_end_in_time_is_cut() {
    let (backend, gateway) = world("1s");
    backend.hold();
    let mut clients = in_flight(&backend, &gateway, 2);
    let start = Instant::now();
    gateway.signal(TERM);
    assert_eq!(gateway.wait_exit(Duration::from_secs(8)), Some(0));
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    for client in &mut clients {
        assert!(
            client.try_read_response().is_err(),
            "a cut answer looks complete"
        );
    }
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("still open"))
    });
}

#[test]
fn a_signal_at_once_after_the_start_ends_it_in_order_too() {
    let (_backend, gateway) = world("20s");
    gateway.signal(TERM);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn ready_says_no_before_the_listeners_close() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&format!(
        "limits: {{ enabled: false }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
",
        backend.url()
    ));
    let gateway = gateway.env("DRAIN_DELAY", "700ms").start();
    let start = Instant::now();
    gateway.signal(TERM);
    let ready = || Request::get("/ready").send_to(gateway.addr());
    wait_until("/ready says no", || ready().status == 503);
    while start.elapsed() < Duration::from_millis(500) {
        let response = Request::get("/s/x").send_to(gateway.addr());
        assert_eq!(
            response.status, 200,
            "whoever has not heard of it is served"
        );
        assert_eq!(ready().status, 503);
    }
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(700) && took < Duration::from_millis(1500),
        "{took:?}"
    );
}

#[test]
fn a_second_signal_ends_the_delay_too() {
    let (_backend, gateway) = world("20s, drain_delay: 20s");
    gateway.signal(TERM);
    await_told(&gateway);
    gateway.signal(TERM);
    assert!(
        gateway
            .wait_exit(Duration::from_secs(2))
            .is_some_and(|code| code != 0)
    );
}

#[test]
fn a_request_that_is_on_its_way_when_the_drain_begins_is_answered_and_is_the_last() {
    let (_backend, gateway) = world("20s, keepalive_drain: 3s");
    let mut client = Client::to(gateway.addr()).connect();
    assert_eq!(client.request(&Request::get("/s/1")).status, 200);
    gateway.signal(TERM);
    wait_until("new connections are refused", || {
        TcpStream::connect(gateway.addr()).is_err()
    });
    let response = client.request(&Request::get("/s/2"));
    assert_eq!(
        (response.status, response.header("connection")),
        (200, Some("close"))
    );
    let answered = Instant::now();
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    let took = answered.elapsed();
    println!("ended {took:?} after the last answer");
    assert!(took < Duration::from_millis(200), "{took:?}");
}

fn world(shutdown_timeout: &str) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let gateway = Gateway::with(&format!(
        "server: {{ shutdown_timeout: {shutdown_timeout} }}
timeouts: {{ default: 20s }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
",
        backend.url()
    ));
    (backend, gateway.start())
}

/// So many clients whose requests the backend holds.
fn in_flight(backend: &Upstream, gateway: &Gateway, count: usize) -> Vec<Connection> {
    let clients = (0..count).map(|i| {
        let mut client = Client::to(gateway.addr()).connect();
        client.send(&Request::get(&format!("/s/{i}")).bytes());
        client
    });
    let clients = clients.collect();
    wait_until("the backend has them", || backend.count() == count);
    clients
}

fn await_told(gateway: &Gateway) {
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("told to end"))
    });
}
