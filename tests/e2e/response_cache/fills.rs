//! One fetch for many: who waits for it, and what becomes of them when it fails or its client goes.

use super::{conf, fresh, get};
use crate::support::prelude::*;
use std::collections::HashSet;
use std::io::Write;
use std::net::TcpStream;
use std::thread;

fn wide(backend: &Upstream) -> Conf {
    conf(backend).top("server", "{ connections: { per_address: 0 } }")
}

#[test]
fn a_thousand_concurrent_misses_are_one_request_at_the_backend() {
    const CLIENTS: usize = 1000;
    let _alone = alone();
    let backend = fresh();
    let gateway = wide(&backend).start();
    backend.hold();
    let mut clients: Vec<Connection> = (0..CLIENTS)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    let request = Request::get("/s/x").bytes();
    clients.iter_mut().for_each(|client| client.send(&request));
    backend_has(&backend, 1);
    // Every other head has been read when its client has nothing left to be acknowledged.
    wait_until("all are read", || all_taken(&clients));
    backend.release();
    for client in &mut clients {
        let response = client.read_response();
        assert_eq!((response.status, response.text()), (200, "answer 1"));
    }
    assert_eq!(backend.count(), 1);
}

#[test]
fn those_who_waited_for_what_is_not_stored_do_not_queue_one_behind_the_other() {
    const CLIENTS: usize = 40;
    const EACH: Duration = Duration::from_millis(300);
    let _alone = alone();
    let backend = Upstream::start_with(|_| {
        Reply::json(json!({"ok": true}))
            .header("Cache-Control", "no-store")
            .delay(EACH)
    });
    let gateway = wide(&backend).start();
    let began = Instant::now();
    let responses = burst(gateway.addr(), vec![Request::get("/s/x"); CLIENTS], CLIENTS);
    let took = began.elapsed();
    assert!(responses.iter().all(|response| response.status == 200));
    assert_eq!(backend.count(), CLIENTS, "each has its own");
    assert!(took < EACH * 10, "{took:?} for {CLIENTS}");
}

#[test]
fn a_client_that_goes_away_does_not_end_the_fetch_for_the_others() {
    let backend = Upstream::start_with(|_| {
        let head =
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 20\r\n\r\n01234";
        Reply::paced(
            [head, "56789", "abcde", "fghij"],
            Duration::from_millis(300),
        )
    });
    let gateway = conf(&backend).start();
    let mut first = Client::to(gateway.addr()).connect();
    first.send(&Request::get("/s/x").bytes());
    backend_has(&backend, 1);
    let others: Vec<_> = (0..5)
        .map(|_| {
            let mut client = Client::to(gateway.addr()).connect();
            client.send(&Request::get("/s/x").bytes());
            client
        })
        .collect();
    first.read_up_to(20); // it has begun
    first.reset();
    for mut client in others {
        let response = client.read_response();
        assert_eq!(response.text(), "0123456789abcdefghij");
    }
    assert!(backend.count() <= 2, "{}", backend.count());
    let late = get(&gateway, "/s/x");
    assert_eq!(late.text(), "0123456789abcdefghij");
}

#[test]
fn a_client_that_does_not_read_does_not_keep_the_others_from_the_answer() {
    let body = "x".repeat(900 << 10);
    let whole = body.clone();
    let backend = Upstream::start_with(move |_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=60")
            .body(body.clone())
    });
    let gateway = conf(&backend).start();
    let lazy = lazy(gateway.addr(), "/s/x");
    backend_has(&backend, 1);
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(get(&gateway, "/s/x").text(), whole);
    }
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    drop(lazy);
}

/// A client for which the kernel takes as little as it can, and that asks for this.
fn lazy(addr: SocketAddr, path: &str) -> TcpStream {
    let lazy = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    lazy.set_recv_buffer_size(4096).unwrap();
    lazy.connect(&addr.into()).unwrap();
    let mut lazy = TcpStream::from(lazy);
    lazy.write_all(&Request::get(path).bytes()).unwrap();
    lazy
}

/// Answers of these many octets that may be kept.
fn of_size(size: usize) -> Upstream {
    let body = "x".repeat(size);
    Upstream::start_with(move |_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=60")
            .body(body.clone())
    })
}

#[test]
fn what_clients_do_not_take_is_held_for_a_few_of_them_and_no_more() {
    const CLIENTS: usize = 20;
    let _alone = alone();
    let backend = of_size(8 << 20);
    let gateway = wide(&backend)
        .top("cache", "{ memory: 32MiB, largest: 8MiB }")
        .service("timeout", "60s")
        .start();
    let before = gateway.memory_kb();
    let ask = |number| lazy(gateway.addr(), &format!("/s/{number}"));
    let lazy: Vec<_> = (0..CLIENTS).map(ask).collect();
    backend_has(&backend, CLIENTS);
    // It fills meanwhile.
    thread::sleep(Duration::from_secs(2));
    let grown = gateway.memory_kb().saturating_sub(before) >> 10;
    println!("measured: {grown} MiB for {CLIENTS} clients that take nothing of 8 MiB each");
    assert!(grown < 64, "{grown} MiB");
    let declined = gateway.metric("cache_fills_over_budget_total");
    assert!(declined >= (CLIENTS / 2) as f64, "{declined} are not kept");
    let said = gateway.raw_output();
    assert!(!said.contains("too much is being kept"), "{said}");
    drop(lazy);
    // What they had is free again.
    let again = within(Duration::from_secs(10), || {
        let response = get(&gateway, "/s/again");
        super::is_hit(&response).then_some(response.body.len())
    });
    assert_eq!(again, Some(8 << 20));
}

#[test]
fn a_fetch_that_breaks_leaves_nothing_and_the_next_one_is_whole() {
    let backend = Upstream::start_with(|_| {
        Reply::raw(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 20\r\n\r\n01234",
        )
        .delay(Duration::from_millis(200))
        .then_reset()
    });
    let gateway = conf(&backend).start();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let mut client = Client::to(gateway.addr()).connect();
            client.send(&Request::get("/s/x").bytes());
            client
        })
        .collect();
    for mut client in waiting {
        match client.try_read_response() {
            Ok(response) => assert!(response.status >= 500, "{}", response.status),
            Err(broken) => drop(broken),
        }
    }
    backend.set(|_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=60")
            .body("whole")
    });
    assert_eq!(get(&gateway, "/s/x").text(), "whole");
}

#[test]
fn different_answers_are_fetched_at_the_same_time() {
    let backend = fresh();
    let gateway = conf(&backend).start();
    backend.hold();
    let gateway = &gateway;
    thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || assert_eq!(get(gateway, &format!("/s/{number}")).status, 200));
        }
        backend_has(&backend, 8);
        backend.release();
    });
}

/// Waits until so many heads are there, although their answers are held.
#[track_caller]
fn backend_has(backend: &Upstream, heads: usize) {
    wait_until("the backend is asked", || backend.heads_seen() >= heads);
}

/// Whether the gateway has read all that these have sent: nothing waits in the sockets of its side.
fn all_taken(clients: &[Connection]) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("sockets are listed");
    // A line has the local address, the remote one, the state, and the queues, `sent:received`.
    let taken: HashSet<u16> = sockets
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (_, port) = words.get(2)?.split_once(':')?;
            let is_empty = words.get(4)?.ends_with(":00000000");
            is_empty.then(|| u16::from_str_radix(port, 16).ok())?
        })
        .collect();
    clients
        .iter()
        .all(|client| taken.contains(&client.local_addr().port()))
}
