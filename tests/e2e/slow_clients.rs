//! Clients that take their time, with what they send or with what they are sent: bounded by rate, each for itself, and
//! no matter to the others.

use crate::support::prelude::*;
use socket2::{Domain, Socket, Type};
use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// How late a busy machine may be.
const LATE: Duration = Duration::from_secs(4);

/// Bodies are judged over two seconds.
fn hasty(backend: &Upstream) -> Conf {
    Conf::of(&[backend.url()])
        .top("server", "{ client_timeout: 2s }")
        .service("timeout", "60s")
}

#[test]
fn a_body_that_trickles_is_408_and_never_complete_at_the_backend() {
    let backend = Upstream::start();
    let gateway = hasty(&backend).start();
    for (framing, piece) in [
        ("Content-Length: 1000", "x"),
        ("Transfer-Encoding: chunked", "1\r\nx\r\n"),
    ] {
        for method in ["POST", "PUT", "GET"] {
            let id = format!("{method}-{}", &framing[..7]);
            let mut connection = Client::to(gateway.addr()).connect();
            let head = format!(
                "{method} /s/x HTTP/1.1\r\nHost: gateway.test\r\nX-Request-ID: {id}\r\n{framing}\r\n\r\n"
            );
            connection.send(head.as_bytes());
            let start = Instant::now();
            let trickle = connection.trickle(piece, Duration::from_millis(100));
            let response = connection.read_response();
            let took = start.elapsed();
            assert_eq!(response.status, 408, "{id}: {}", response.text());
            assert_eq!(response.json()["code"], "REQUEST_TIMEOUT", "{id}");
            assert_eq!(response.header("connection"), Some("close"), "{id}");
            let window = Duration::from_secs(2);
            assert!(took >= window && took < window + LATE, "{id}: {took:?}");
            assert!(connection.is_closed(), "{id}");
            trickle.join().unwrap();
            let line = gateway.access_line(&id);
            assert_eq!(line["code"], "REQUEST_TIMEOUT", "{line}");
        }
    }
    assert!(backend.requests().iter().all(|request| !request.complete));
    let breaker = gateway.metric(r#"circuit_breaker_state{service="s"}"#);
    assert_eq!(breaker, 0.0, "nobody at the service is to blame");
}

#[test]
fn a_body_that_stops_is_408_after_the_longest_gap() {
    let backend = Upstream::start();
    let gateway = hasty(&backend).start();
    let mut connection = Client::to(gateway.addr()).connect();
    let request = Request::post("/s/x").header("Content-Length", "100000");
    connection.send(&[request.bytes(), vec![b'x'; 50_000]].concat());
    let start = Instant::now();
    assert_eq!(connection.read_response().status, 408);
    assert!(start.elapsed() < Duration::from_secs(2) + LATE);
    assert!(connection.is_closed());
}

#[test]
fn a_body_that_a_policy_reads_has_the_same_rate() {
    let backend = Upstream::start();
    let platform = include_str!("../../conf/gateway.yaml");
    let hasty = platform.replace("client_timeout: 30s", "client_timeout: 2s");
    let gateway = Gateway::with(&hasty.replace(
        "enabled: true\n  path: /health",
        "enabled: false\n  path: /health",
    ))
    .all_services_at(&backend.url())
    .start();
    let mut connection = Client::to(gateway.addr()).connect();
    let purchase = Request::post("/api/v1/tickets/purchase")
        .bearer(&token::customer())
        .header("Content-Type", "application/json")
        .header("Content-Length", "1000");
    connection.send(&purchase.bytes());
    let start = Instant::now();
    let trickle = connection.trickle(" ", Duration::from_millis(100));
    assert_eq!(connection.read_response().status, 408);
    assert!(start.elapsed() < Duration::from_secs(2) + LATE);
    assert!(connection.is_closed());
    trickle.join().unwrap();
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn a_refused_body_is_not_waited_for() {
    let backend = Upstream::start();
    let gateway = hasty(&backend).route("auth", "token").start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(
        &Request::post("/s/x")
            .header("Content-Length", "1000")
            .bytes(),
    );
    let start = Instant::now();
    let trickle = connection.trickle("x", Duration::from_millis(100));
    assert_eq!(connection.read_response().status, 401);
    assert!(connection.is_closed());
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    trickle.join().unwrap();
}

#[test]
fn a_body_that_keeps_the_rate_may_take_as_long_as_its_route_has() {
    let backend = Upstream::start();
    let gateway = hasty(&backend).start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(
        &Request::post("/s/x")
            .header("Content-Length", "16000")
            .bytes(),
    );
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(600));
        connection.send(&[b'x'; 1600]);
    }
    let response = connection.read_response();
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(backend.requests()[0].body.len(), 16000);
}

#[test]
fn any_rate_is_good_enough_where_none_is_asked_for() {
    let backend = Upstream::start();
    let server = "{ client_timeout: 2s, min_body_rate: 0B }";
    let gateway = hasty(&backend).top("server", server).start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::post("/s/x").header("Content-Length", "30").bytes());
    let trickle = connection.trickle("x", Duration::from_millis(200));
    assert_eq!(connection.read_response().status, 200);
    drop(connection);
    trickle.join().unwrap();
}

#[test]
fn time_in_which_the_backend_does_not_read_is_not_the_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    const SIZE: usize = 30_000_000;
    let backend = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // Longer than any gap may be, and longer than the window, twice.
        let mut buffer = vec![0; 64 << 10];
        let mut read = 0;
        for _ in 0..2 {
            read += stream.read(&mut buffer).unwrap();
            thread::sleep(Duration::from_secs(4));
        }
        while read < SIZE {
            read += stream.read(&mut buffer).unwrap();
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        // Until the gateway has it.
        let _ = stream.read(&mut buffer);
    });
    let gateway = Conf::of(&[url])
        .top("server", "{ client_timeout: 2s, min_body_rate: 100KiB }")
        .top("sizes", "{ body: 100MiB }")
        .service("timeout", "60s")
        .start();
    let mut connection = Client::to(gateway.addr())
        .patience(Duration::from_secs(30))
        .connect();
    connection.send(
        &Request::post("/s/x")
            .header("Content-Length", &SIZE.to_string())
            .bytes(),
    );
    let sender = connection.send_meanwhile(vec![b'x'; SIZE]);
    let response = connection.read_response();
    assert_eq!(response.status, 200, "{}", response.text());
    sender.join().unwrap();
    drop(connection);
    backend.join().unwrap();
}

#[test]
fn a_body_that_comes_too_slowly_beside_its_answer_ends_both() {
    let backend = Upstream::start();
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let pieces = std::iter::repeat_n(b"1\r\ny\r\n".to_vec(), 400);
    let answer: Vec<Vec<u8>> = std::iter::once(head).chain(pieces).collect();
    backend.set_before_body(move |_| Some(Reply::paced(answer.clone(), Duration::from_millis(50))));
    let gateway = hasty(&backend).start();
    for (id, piece) in [("trickles", "x"), ("is-silent", "")] {
        let mut connection = Client::to(gateway.addr()).connect();
        let post = Request::post("/s/x")
            .header("X-Request-ID", id)
            .header("Content-Length", "1000");
        connection.send(&post.bytes());
        let start = Instant::now();
        let every = Duration::from_millis(100);
        let trickle = (!piece.is_empty()).then(|| connection.trickle(piece, every));
        let answer = connection.read_to_end();
        let took = start.elapsed();
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{id}");
        assert!(took < Duration::from_secs(2) + LATE, "{id}: {took:?}");
        let line = gateway.access_line(id);
        let why = line["err"].to_string();
        assert!(why.contains("the body came too slowly"), "{line}");
        drop(connection);
        trickle.map_or(Ok(()), thread::JoinHandle::join).unwrap();
    }
}

#[test]
fn time_in_which_the_client_takes_its_answer_is_no_time_in_which_its_body_is_awaited() {
    const SIZE: usize = 30_000_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let backend = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut answer = format!("{head}{SIZE:x}\r\n").into_bytes();
        answer.extend(vec![b'y'; SIZE]);
        stream.write_all(&answer).unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"end") {
            let mut some = [0; 4096];
            let n = stream.read(&mut some).unwrap();
            assert!(n > 0, "the request broke off");
            request.extend_from_slice(&some[..n]);
        }
        stream.write_all(b"\r\n0\r\n\r\n").unwrap();
        // Until the gateway has it.
        let _ = stream.read(&mut [0]);
    });
    let gateway = Conf::of(&[url])
        .top("server", "{ client_timeout: 2s }")
        .service("timeout", "60s")
        .start();
    let mut connection = taker(gateway.addr());
    let post = Request::post("/s/x").header("Content-Length", "7").bytes();
    connection.send(&[post, b"the".to_vec()].concat());
    // For longer than the window of the body there is always something that it has still to take.
    const BITE: usize = 300_000;
    const BITES: usize = 40;
    for _ in 0..BITES {
        assert_eq!(connection.read_up_to(BITE).len(), BITE);
        thread::sleep(Duration::from_millis(100));
    }
    connection.send(b" ");
    let begun = connection.read_up_to(SIZE - BITES * BITE);
    assert_eq!(begun.len(), SIZE - BITES * BITE, "it was broken off");
    connection.send(b"end");
    let rest = connection.read_to_end_of_chunks();
    assert!(rest.ends_with(b"0\r\n\r\n"));
    drop(connection);
    backend.join().unwrap();
}

#[test]
fn a_client_that_takes_all_there_is_is_not_slow_however_little_that_is() {
    let backend = Upstream::start();
    const PIECES: usize = 4000;
    backend.set(|_| {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let pieces = std::iter::repeat_n(b"1\r\ny\r\n".to_vec(), PIECES);
        let all = std::iter::once(head).chain(pieces);
        // They come more often than a machine acknowledges whose application reads later: there is always one on its
        // way, as there is at the end of a long way.
        let every = Duration::from_millis(2);
        Reply::paced(all.chain([b"0\r\n\r\n".to_vec()]), every)
    });
    let server = "{ client_timeout: 2s, min_body_rate: 10KiB }";
    let gateway = hasty(&backend).top("server", server).start();
    let mut connection = Client::to(gateway.addr()).connect();
    let get = Request::get("/s/x").header("X-Request-ID", "prompt");
    connection.send(&get.bytes());
    within(Duration::from_secs(30), || {
        (gateway.access_lines_of("prompt") > 0).then_some(())
    });
    assert_eq!(gateway.access_line("prompt")["err"], Value::Null);
    assert_eq!(connection.read_response().body.len(), PIECES);
}

#[test]
fn an_answer_that_is_taken_too_slowly_is_broken_off_and_frees_its_backend() {
    let backend = Upstream::start();
    backend.set(|_| Reply::status(200).body(vec![b'x'; 30_000_000]));
    // The gap alone would be a minute.
    let gateway = Conf::of(&[backend.url()])
        .top("server", "{ client_timeout: 60s }")
        .service("timeout", "120s")
        .start();
    let mut stream = narrow(gateway.addr());
    let request = Request::get("/s/x").header("X-Request-ID", "slow-reader");
    stream.write_all(&request.bytes()).unwrap();
    let start = Instant::now();
    let ended = sip_until_it_ends(
        &mut stream,
        Duration::from_millis(100),
        Duration::from_secs(40),
    );
    assert!(ended.is_some(), "it was held for {:?}", start.elapsed());
    let line = gateway.access_line("slow-reader");
    assert_eq!(
        line["err"], "Downstream WriteTimedout: the client took its answer too slowly",
        "{line}"
    );
    wait_until("the backend is free", || backend.open_connections() == 0);
    let took = line["responseTime"].as_f64().unwrap_or_default() / 1000.0;
    assert!((10.0..25.0).contains(&took), "{took} s: {line}");
}

#[test]
fn an_answer_that_the_backend_gives_slowly_is_not_its_clients_fault() {
    let backend = Upstream::start();
    backend.set(|_| Reply::trickle(vec![b'x'; 40], Duration::from_millis(200)));
    let gateway = hasty(&backend).start();
    let client = Client::to(gateway.addr()).patience(Duration::from_secs(20));
    let response = client.connect().request(&Request::get("/s/x"));
    assert_eq!((response.status, response.body.len()), (200, 40));
}

#[test]
fn a_thousand_slow_clients_are_no_matter_to_another_and_are_gone_in_time() {
    let _alone = alone();
    let slow = slow_clients();
    let backend = Upstream::start();
    backend.set(|request| match request.path() {
        "/s/large" => Reply::status(200).body(vec![b'x'; 3_000_000]),
        _ => Reply::status(200).body("ok"),
    });
    let gateway = Conf::of(&[backend.url()])
        .top(
            "server",
            "{ header_timeout: 12s, client_timeout: 12s, connections: { per_address: 0 } }",
        )
        .service("timeout", "60s")
        .start();
    let addr = gateway.addr();
    // Those that it was awaited with are gone.
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
    let (before, connections) = (
        gateway.memory_kb(),
        gateway.metric("downstream_connections"),
    );
    let load = || {
        let pause = Duration::from_millis(2);
        Load::on(addr).clients("quick", 1, pause, |_| Request::get("/s/x"))
    };
    let without = load().run_for(Duration::from_secs(2));
    let held: Vec<Slow> = (0..slow).map(|i| Slow::connect(i, addr)).collect();
    wait_until("all of them are held", || {
        gateway.metric("downstream_connections") >= connections + slow as f64
    });
    let has_begun = within(Duration::from_secs(20), || {
        let memory = gateway.memory_kb();
        thread::sleep(Duration::from_millis(500));
        (gateway.memory_kb() < memory + 500).then_some(())
    });
    assert!(has_begun.is_some(), "its memory grows on and on");
    let driver = thread::spawn(move || drive(held, addr, Duration::from_secs(60)));
    let during = load().run_for(Duration::from_secs(4));
    let (with, open) = (
        gateway.memory_kb(),
        gateway.metric("downstream_connections"),
    );
    let last = driver.join().unwrap();
    eprintln!(
        "without: {without}\nbeside {slow} slow ones: {during}\n\
         memory: {before} kB, {with} kB with them; the last was gone after {last:?}"
    );
    assert!(open >= connections + slow as f64, "{open} were held still");
    assert!(during.bad().is_empty(), "{during}");
    let p99 = during.percentile(99.0);
    assert!(p99 < Duration::from_millis(20), "p99 {p99:?}: {during}");
    assert!(
        last < Duration::from_secs(20),
        "the last was gone after {last:?}"
    );
    gateway.wait_metric("downstream_connections", |open| open <= connections + 2.0);
    assert_eq!(gateway.metric(r#"circuit_breaker_state{service="s"}"#), 0.0);
}

/// `CAPACITY_IDLE=10000 CAPACITY_BUSY=2000 E2E_GATEWAY_BIN=target/release/api-gateway cargo test --release` is the long
/// form; the bound on memory is that of the long form, with its share for fewer.
#[test]
fn idle_and_busy_connections_cost_little() {
    let _alone = alone();
    let of =
        |name: &str, usual: usize| std::env::var(name).map_or(usual, |text| text.parse().unwrap());
    let (idle, busy) = (of("CAPACITY_IDLE", 500), of("CAPACITY_BUSY", 100));
    let backend = Upstream::start();
    backend.set(|_| Reply::status(200).body(vec![b'x'; 20_000]));
    let gateway = Conf::of(&[backend.url()])
        .top(
            "server",
            "{ keepalive_timeout: 600s, connections: { per_address: 0 } }",
        )
        .service("timeout", "120s")
        .start();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    let empty = gateway.memory_kb();
    let client = Client::to(gateway.addr()).patience(Duration::from_secs(60));
    let mut resting: Vec<Connection> = (0..idle).map(|_| client.connect()).collect();
    for connection in &mut resting {
        assert_eq!(connection.request(&Request::get("/live")).status, 200);
    }
    let with_idle = gateway.memory_kb();
    backend.hold();
    let mut working: Vec<Connection> = (0..busy)
        .map(|i| {
            let mut connection = client.connect();
            connection.send(&match i % 2 {
                0 => Request::get("/s/x").bytes(),
                _ => Request::post("/s/x").body(vec![b'x'; 16_000]).bytes(),
            });
            connection
        })
        .collect();
    let asked = within(Duration::from_secs(60), || {
        (backend.count() > busy).then_some(())
    });
    assert!(asked.is_some(), "{} of {busy}", backend.count());
    let with_both = gateway.memory_kb();
    backend.release();
    for connection in &mut working {
        let response = connection.read_response();
        assert_eq!((response.status, response.body.len()), (200, 20_000));
    }
    let answered = gateway.memory_kb();
    eprintln!(
        "{empty} kB empty, {with_idle} kB with {idle} idle, {with_both} kB with {busy} busy ones too, {answered} kB when these are answered: {:.1} kB idle, {:.1} kB busy",
        (with_idle - empty) as f64 / idle as f64,
        (with_both - with_idle) as f64 / busy as f64,
    );
    let most = with_both.max(answered) - empty;
    let allowed = idle as u64 * 12 + busy as u64 * 125;
    assert!(
        most < allowed,
        "{most} kB for them, {allowed} kB are allowed"
    );
    for connection in &mut resting {
        assert_eq!(connection.request(&Request::get("/live")).status, 200);
    }
}

/// A client into whose buffer not all of a large answer fits.
fn taker(addr: SocketAddr) -> Connection {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(128 << 10).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    Connection::over(Wire::Plain(socket.into()), Duration::from_secs(10))
}

/// A connection into whose buffer little fits.
fn narrow(addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}

/// Takes a byte each time. How long until the connection ended.
fn sip_until_it_ends(stream: &mut TcpStream, every: Duration, limit: Duration) -> Option<Duration> {
    stream.set_read_timeout(Some(limit)).unwrap();
    let start = Instant::now();
    while start.elapsed() < limit {
        // What the kernel holds stays readable behind the end.
        let peer = stream.peer_addr().unwrap();
        let port = stream.local_addr().unwrap().port();
        if !matches!(stream.read(&mut [0]), Ok(1)) || !held_by(peer).contains(&port) {
            return Some(start.elapsed());
        }
        thread::sleep(every);
    }
    None
}

fn slow_clients() -> usize {
    std::env::var("SLOW_CLIENTS").map_or(1000, |text| text.parse().unwrap())
}

/// One slow client: of heads, of bodies, or of reads.
struct Slow {
    stream: TcpStream,
    /// What it sends again and again; nothing: it reads.
    piece: &'static [u8],
    port: u16,
    is_over: bool,
}

impl Slow {
    fn connect(number: usize, addr: SocketAddr) -> Self {
        let stream = narrow(addr);
        let (begin, piece): (&[u8], &[u8]) = match number % 3 {
            0 => (b"GET /s/x HTTP/1.1\r\nHost: gateway.test\r\nX-Slow: ", b"a"),
            1 => (
                b"POST /s/x HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 100000\r\n\r\n",
                b"x",
            ),
            _ => (b"GET /s/large HTTP/1.1\r\nHost: gateway.test\r\n\r\n", b""),
        };
        (&stream).write_all(begin).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self {
            port: stream.local_addr().unwrap().port(),
            stream,
            piece,
            is_over: false,
        }
    }

    /// A byte more.
    fn step(&mut self) {
        let mut byte = [0];
        let read = match self.piece {
            [] => (&self.stream).read(&mut byte),
            // An answer is one that says that it was too slow.
            piece => {
                (&self.stream)
                    .write(piece)
                    .and_then(|_| match (&self.stream).read(&mut byte) {
                        Ok(_) => Ok(0),
                        other => other,
                    })
            }
        };
        self.is_over = match read {
            Ok(count) => count == 0,
            Err(e) => e.kind() != ErrorKind::WouldBlock,
        };
    }
}

/// Until the gateway holds none of them any more, and how long that was.
fn drive(mut slow: Vec<Slow>, gateway: SocketAddr, limit: Duration) -> Duration {
    let start = Instant::now();
    let mut last = Duration::ZERO;
    while !slow.is_empty() && start.elapsed() < limit {
        thread::sleep(Duration::from_millis(300));
        let held = held_by(gateway);
        for one in &mut slow {
            one.step();
            one.is_over |= !held.contains(&one.port);
        }
        let before = slow.len();
        slow.retain(|one| !one.is_over);
        if slow.len() < before {
            last = start.elapsed();
        }
    }
    assert!(slow.is_empty(), "{} are held still", slow.len());
    last
}

/// The ports of the clients whose connections a server holds open.
fn held_by(server: SocketAddr) -> HashSet<u16> {
    const ESTABLISHED: &str = "01";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let server = format!(":{:04X}", server.port());
    let port = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_held = words.get(1)?.ends_with(&server) && words.get(3) == Some(&ESTABLISHED);
        let port = words.get(2)?.rsplit(':').next()?;
        is_held.then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().filter_map(port).collect()
}
