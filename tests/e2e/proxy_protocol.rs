//! The PROXY protocol: whose connection it is, who is believed, and what becomes of the others.

use crate::support::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

const V1: &[u8] = b"PROXY TCP4 8.8.4.4 192.0.2.2 56324 443\r\n";

#[test]
fn the_declared_client_is_the_client_for_backends_logs_and_limits() {
    let world = World::trusting("127.0.0.0/8", "");
    let v2 = v2(
        0x21,
        0x11,
        &[9, 9, 9, 9, 192, 0, 2, 2, 0xdc, 4, 1, 187, 4, 0, 1, 0],
    );
    let mut v6 = vec![0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    v6.extend([0; 20]);
    let v6 = v2_of(0x21, &v6);
    let mapped = b"PROXY TCP6 ::ffff:8.8.4.4 ::1 1 2\r\n".to_vec();
    for (i, (header, client)) in [
        (V1.to_vec(), "8.8.4.4"),
        (v2, "9.9.9.9"),
        (v6, "2001:db8::5"),
        (mapped, "8.8.4.4"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("proxy-{i}");
        let request = Request::get("/s/x")
            .header("X-Forwarded-For", "10.0.0.1")
            .header("X-Request-ID", &id);
        // At one stroke, and byte by byte.
        let whole = [header.clone(), request.bytes()].concat();
        let mut connection = Client::to(world.proxied).connect();
        connection.send(&whole);
        assert_eq!(connection.read_response().status, 200, "{client}");
        assert_eq!(
            connection.request(&request).status,
            200,
            "{client}: kept alive"
        );
        let mut slow = Client::to(world.proxied).connect();
        for byte in &header {
            slow.send(&[*byte]);
        }
        assert_eq!(slow.request(&request).status, 200, "{client}");
        for seen in &world.backend.wait_requests(3 * i + 3)[3 * i..] {
            assert_eq!(seen.header("x-forwarded-for"), Some(client));
            assert_eq!(seen.header("x-original-ip"), Some(client));
        }
        assert_eq!(world.gateway.access_line(&id)["ip"], client);
    }
}

#[test]
fn what_is_for_the_proxys_network_is_not_for_its_clients() {
    let world = World::trusting("127.0.0.0/8", "");
    let metrics = Request::get("/metrics").bytes();
    for (header, status) in [
        (V1.to_vec(), 403),
        (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n".to_vec(), 200),
        // Nobody has said whose it is: not the proxy's.
        (b"PROXY UNKNOWN\r\n".to_vec(), 403),
        (v2(0x20, 0x00, &[]), 403),
        (v2(0x21, 0x00, &[]), 403),
        (v2(0x21, 0x31, &[0; 216]), 403),
    ] {
        let mut connection = Client::to(world.proxied).connect();
        connection.send(&header);
        connection.send(&metrics);
        let response = connection.read_response();
        assert_eq!(response.status, status, "{}", header.escape_ascii());
    }
}

#[test]
fn what_does_not_begin_with_a_good_header_is_closed_unheard() {
    let world = World::trusting("127.0.0.0/8", "header_timeout: 500ms");
    let request = Request::get("/s/x").bytes();
    let bad: [&[u8]; 7] = [
        b"",
        b"PROXY TCP4 8.8.4.4\r\n",
        b"PROXY TCP4 08.8.4.4 1.1.1.1 1 2\r\n",
        b"PROXY UDP4 8.8.4.4 1.1.1.1 1 2\r\n",
        &[b'P'; 4000],
        b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for header in bad {
        let mut connection = Client::to(world.proxied).connect();
        connection.send(header);
        connection.send(&request);
        assert!(
            connection.read_to_end().is_empty(),
            "{}",
            header.escape_ascii()
        );
    }
    for begin in [
        &b""[..],
        b"PROXY TCP4 8.8.4.4 ",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c1234",
    ] {
        let start = Instant::now();
        let mut late = Client::to(world.proxied).connect();
        late.send(begin);
        assert!(late.is_closed(), "{}", begin.escape_ascii());
        assert!(
            start.elapsed() > Duration::from_millis(400),
            "{:?}",
            start.elapsed()
        );
    }
    assert_eq!(world.backend.count(), 0);
    let refused = r#"downstream_connections_refused_total{reason="proxy_header"}"#;
    world.gateway.wait_metric(refused, |count| count == 10.0);
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 0.0);
    let lines = refusals(&world.gateway, "proxy_header");
    // Ten of them in two seconds, a line a second.
    assert!((1..=4).contains(&lines), "{lines} lines");
}

#[test]
fn nobody_is_believed_who_is_not_trusted() {
    let world = World::trusting("10.0.0.0/8", "");
    // It is reset as soon as it is accepted, for which some clients are not ready yet.
    match TcpStream::connect(world.proxied) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        Ok(stream) => {
            let mut connection = Connection::over(Wire::Plain(stream), Duration::from_secs(5));
            connection.send(V1);
            connection.send(&Request::get("/s/x").bytes());
            assert!(connection.read_to_end().is_empty());
        }
    }
    let refused = r#"downstream_connections_refused_total{reason="proxy_header"}"#;
    world.gateway.wait_metric(refused, |count| count == 1.0);
    assert_eq!(world.backend.count(), 0);

    // On a listener that is not marked it is a malformed request, whoever sends it.
    let world = World::trusting("127.0.0.0/8", "");
    let mut connection = Client::to(world.gateway.addr()).connect();
    connection.send(V1);
    assert_eq!(connection.read_response().status, 400);

    let nobody = "server: { listeners: [{ address: '127.0.0.1:0', proxy_protocol: true }] }";
    let exit = Gateway::with(nobody).arg("--test").run_to_exit();
    assert_eq!(exit.code, 1);
    let told = "server.listeners[0].proxy_protocol: nobody is believed";
    assert!(exit.stderr.contains(told), "{}", exit.stderr);
}

#[test]
fn who_is_believed_and_for_how_long_is_what_a_reload_says() {
    let caps = "connections: { per_address: 2 }";
    let world = World::trusting("10.0.0.0/8", caps);
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 0.0);
    let _held = [(); 2].map(|()| Client::to(world.gateway.addr()).connect());
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 2.0);
    let is_believed = || is_answered(world.proxied, V1);
    let is_let_in = || is_answered(world.gateway.addr(), b"");
    assert!(!is_believed() && !is_let_in());
    for (network, is_trusted) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        world.reload(network, &format!("header_timeout: 300ms\n  {caps}"));
        assert_eq!(is_believed(), is_trusted, "{network}");
        assert_eq!(is_let_in(), is_trusted, "{network}: it carries many");
        if is_trusted {
            let start = Instant::now();
            assert!(Client::to(world.proxied).connect().is_closed());
            assert!(start.elapsed() < Duration::from_secs(3), "it is waited for");
        }
    }
}

#[test]
fn the_header_comes_before_tls() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("a", "DNS:a.test");
    let backend = Upstream::start();
    let gateway = Gateway::with(&format!(
        "server:
  trusted_proxies: [127.0.0.0/8]
  listeners: [{{ address: '127.0.0.1:0', protocol: https, proxy_protocol: true }}]
tls: {{ certificates: [{{ certificate: '{cert}', key: '{key}' }}] }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
",
        backend.url()
    ));
    let gateway = gateway.start();
    let client = TlsClient::new(&authority.ca(), "a.test");
    let mut tcp = TcpStream::connect(gateway.listener("https")).unwrap();
    tcp.write_all(V1).unwrap();
    let mut connection = client
        .shake_hands(tcp)
        .expect("TLS begins behind the header");
    assert_eq!(connection.request(&Request::get("/s/x")).status, 200);
    let seen = &backend.wait_requests(1)[0];
    assert_eq!(seen.header("x-forwarded-for"), Some("8.8.4.4"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert!(
        client.try_connect(gateway.listener("https")).is_err(),
        "no header"
    );
}

#[test]
fn the_cap_of_an_address_is_that_of_the_declared_one() {
    let world = World::trusting("127.0.0.0/8", "connections: { per_address: 2 }");
    let open = |client: &str| {
        let mut connection = Client::to(world.proxied).connect();
        connection.send(format!("PROXY TCP4 {client} 1.1.1.1 1 2\r\n").as_bytes());
        connection.send(&Request::get("/s/x").bytes());
        let served = connection.try_read_response().is_ok();
        served.then_some(connection)
    };
    let held = [open("8.8.8.1"), open("8.8.8.1")];
    assert!(held.iter().all(Option::is_some));
    assert!(open("8.8.8.1").is_none(), "its third");
    assert!(
        open("8.8.8.2").is_some(),
        "another client of the same proxy"
    );
    drop(held);
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 0.0);
    assert!(open("8.8.8.1").is_some(), "its others have ended");
}

struct World {
    backend: Upstream,
    gateway: Gateway,
    /// The listener that asks for a header.
    proxied: SocketAddr,
}

impl World {
    fn trusting(network: &str, server: &str) -> Self {
        let backend = Upstream::start();
        let gateway = Gateway::with(&conf(&backend, network, server)).start();
        let proxied = gateway.listener("http");
        Self {
            backend,
            gateway,
            proxied,
        }
    }

    #[track_caller]
    fn reload(&self, network: &str, server: &str) {
        self.gateway
            .rewrite_conf(&conf(&self.backend, network, server));
        let response = Request::post("/reload").send_to(self.gateway.private_addr());
        assert_eq!(response.status, 200, "{}", response.text());
    }
}

fn conf(backend: &Upstream, network: &str, server: &str) -> String {
    format!(
        "server:
  trusted_proxies: [{network}]
  listeners: [{{ address: '127.0.0.1:0', proxy_protocol: true }}]
  {server}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
",
        backend.url()
    )
}

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend(rest);
    header
}

fn v2_of(command: u8, addresses: &[u8]) -> Vec<u8> {
    v2(command, 0x21, addresses)
}

/// Whether a request behind these bytes is answered. A reset may come at once.
fn is_answered(addr: SocketAddr, before: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr) else {
        return false;
    };
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).unwrap();
    let request = Request::get("/s/x").bytes();
    let sent = stream.write_all(&[before, &request].concat());
    let mut first = [0; 12];
    let read = sent.and_then(|()| stream.read_exact(&mut first));
    read.is_ok_and(|()| &first == b"HTTP/1.1 200")
}

fn refusals(gateway: &Gateway, reason: &str) -> usize {
    let lines = gateway.log_lines();
    let is_refusal = |line: &&Value| line["msg"] == "refused" && line["reason"] == reason;
    lines.iter().filter(is_refusal).count()
}
