//! TLS with clients: what is agreed on in the handshake, whose certificate is shown, and what backends learn of it.

use crate::support::prelude::*;
use rustls::ProtocolVersion;
use rustls::version::{TLS12, TLS13};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

const HSTS: &str = "max-age=15552000; includeSubDomains";

#[test]
fn a_request_over_tls_is_https_for_its_service_and_its_client() {
    let (world, client) = World::usual();
    let request = Request::get("/s/x")
        .header("X-Forwarded-Proto", "http")
        .header("X-Client-Cert-Subject", "CN=admin")
        .header("X-Request-ID", "tls-1");
    let response = client.send(&request, world.https);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("Strict-Transport-Security"), Some(HSTS));
    let seen = &world.backend.wait_requests(1)[0];
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-client-cert-subject"), None);
    assert_eq!(world.gateway.access_line("tls-1")["ip"], "127.0.0.1");

    let plain = Request::get("/s/x").send_to(world.gateway.addr());
    assert_eq!(plain.header("Strict-Transport-Security"), None);
    let seen = &world.backend.wait_requests(2)[1];
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    let done = r#"downstream_tls_handshakes_total{outcome="success"}"#;
    world.gateway.wait_metric(done, |count| count == 1.0);
}

#[test]
fn hsts_is_on_every_answer_over_tls_also_on_refusals_and_in_place_of_a_backends() {
    let (world, client) = World::usual();
    world
        .backend
        .set(|_| Reply::status(200).header("Strict-Transport-Security", "max-age=0"));
    let mut malformed = client.connect(world.https);
    malformed.send(b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n");
    for (name, status, response) in [
        (
            "proxied",
            200,
            client.send(&Request::get("/s/x"), world.https),
        ),
        (
            "refused",
            404,
            client.send(&Request::get("/nowhere"), world.https),
        ),
        ("own", 200, client.send(&Request::get("/live"), world.https)),
        ("malformed", 400, malformed.read_response()),
    ] {
        assert_eq!(response.status, status, "{name}");
        let hsts = response.header("Strict-Transport-Security");
        assert_eq!(hsts, Some(HSTS), "{name}");
    }
    let plain = Request::get("/s/x").send_to(world.gateway.addr());
    assert_eq!(
        plain.header("Strict-Transport-Security"),
        None,
        "a backend's own"
    );
}

#[test]
fn a_trusted_proxy_says_how_its_client_came() {
    let authority = Authority::new();
    let world = World::with(&authority, "", "trusted_proxies: [127.0.0.0/8]");
    let client = TlsClient::new(&authority.ca(), "a.test");
    for (over_tls, said, scheme) in [
        (true, Some("http"), "http"),
        (true, Some("https"), "https"),
        (true, None, "https"),
        (false, Some("https"), "https"),
        (false, None, "http"),
    ] {
        let mut request = Request::get("/s/x").header("X-Forwarded-For", "8.8.8.8");
        if let Some(said) = said {
            request = request.header("X-Forwarded-Proto", said);
        }
        let response = match over_tls {
            true => client.send(&request, world.https),
            false => request.send_to(world.gateway.addr()),
        };
        let case = format!("TLS {over_tls}, said {said:?}");
        let seen = world.backend.requests().pop().unwrap();
        assert_eq!(seen.header("x-forwarded-proto"), Some(scheme), "{case}");
        let hsts = response.header("Strict-Transport-Security");
        assert_eq!(hsts.is_some(), scheme == "https", "{case}");
    }
}

#[test]
fn bodies_pass_byte_for_byte_in_both_directions() {
    let (world, client) = World::usual();
    let body = noise(3_000_000);
    let answer = body.clone();
    world
        .backend
        .set(move |_| Reply::status(200).body(answer.clone()));
    let mut connection = client.connect(world.https);
    for round in 0..2 {
        let upload = Request::post("/s/x").body(body.clone());
        let response = connection.request(&upload);
        assert_eq!(response.status, 200, "round {round}");
        assert!(
            response.body == body,
            "round {round}: the answer has changed"
        );
        assert!(
            world.backend.wait_requests(round + 1)[round].body == body,
            "round {round}: the body has changed"
        );
    }
}

#[test]
fn what_changes_something_is_finished_for_a_client_that_ends_without_a_farewell() {
    let (world, client) = World::usual();
    world.backend.hold();
    let mut connection = client.connect(world.https);
    connection.send(&Request::post("/s/pay").body("1 EUR").bytes());
    wait_until("the backend has it", || world.backend.count() == 1);
    let socket = connection.wire().socket();
    socket.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(50));
    world.backend.release();
    assert_eq!(connection.read_response().status, 200);
}

#[test]
fn versions_1_2_and_1_3_are_spoken_and_older_ones_are_not() {
    let authority = Authority::new();
    let world = World::with(&authority, "", "");
    let of = |version| TlsClient::of_version(&authority.ca(), "a.test", version);
    let agreed = |version| of(version).connect(world.https).wire().version();
    assert_eq!(agreed(&TLS12), ProtocolVersion::TLSv1_2);
    assert_eq!(agreed(&TLS13), ProtocolVersion::TLSv1_3);
    for (flag, is_spoken) in [("-tls1", false), ("-tls1_1", false), ("-tls1_2", true)] {
        // Without its own security level the client is the one that would go lower.
        let arguments = ["-cipher", "ALL:@SECLEVEL=0", flag];
        assert_eq!(openssl_client(world.https, &arguments), is_spoken, "{flag}");
    }
    let failed = r#"downstream_tls_handshakes_total{outcome="failed"}"#;
    world.gateway.wait_metric(failed, |count| count == 2.0);

    let strict = World::with(&authority, "min_version: '1.3'", "");
    assert!(of(&TLS12).try_connect(strict.https).is_err());
    of(&TLS13).connect(strict.https);
}

#[test]
fn the_certificate_is_chosen_by_name() {
    let authority = Authority::new();
    let pairs = [
        authority.sign("first", "DNS:a.test"),
        authority.sign("second", "DNS:b.test,DNS:*.c.test"),
        authority.sign("third", "DNS:own.c.test,IP:127.0.0.1"),
    ];
    let world = World::of(&pairs, "", "");
    for (name, expected) in [
        ("a.test", 0),
        ("b.test", 1),
        ("B.TEST", 1),
        ("x.c.test", 1),
        ("own.c.test", 2),
        // Clients name no addresses, so that it is shown the default, and does not believe it.
        ("127.0.0.1", 9),
        ("unknown.test", 9),
        ("x.y.c.test", 9),
    ] {
        let client = TlsClient::new(&authority.ca(), name);
        match (client.try_connect(world.https), pairs.get(expected)) {
            (Ok(connection), Some((file, _))) => {
                assert_eq!(connection.wire().certificate(), der(file), "{name}");
            }
            (Err(_), None) => {}
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[test]
fn http_1_1_is_agreed_on_and_what_is_not_served_is_not() {
    let (world, client) = World::usual();
    for (offered, agreed) in [
        (&[][..], None),
        (&["http/1.1"], Some("http/1.1")),
        (&["spdy/3", "http/1.1"], Some("http/1.1")),
    ] {
        let mut connection = client.clone().offering(offered).connect(world.https);
        assert_eq!(connection.wire().protocol(), agreed, "{offered:?}");
        assert_eq!(connection.request(&Request::get("/s/x")).status, 200);
    }
    let other = client.offering(&["spdy/3"]);
    assert!(other.try_connect(world.https).is_err());
}

#[test]
fn twenty_renewals_under_load_fail_no_handshake() {
    let authority = Authority::new();
    let pair = authority.sign("one", "DNS:a.test");
    let world = World::of(std::slice::from_ref(&pair), "", "");
    let (stop, good) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failures: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        // A client of its own: nothing is resumed.
                        let client = TlsClient::new(&authority.ca(), "a.test");
                        match client.try_connect(world.https) {
                            Ok(mut connection) => {
                                let response = connection.request(&Request::get("/s/x"));
                                assert_eq!(response.status, 200);
                                good.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => failures.push(error.to_string()),
                        }
                    }
                    failures
                })
            })
            .collect();
        let client = TlsClient::new(&authority.ca(), "a.test");
        for round in 0..20 {
            // The key is written before its certificate: for a moment they do not fit.
            authority.sign("one", "DNS:a.test");
            let new = der(&pair.0);
            wait_until(&format!("certificate {round} is shown"), || {
                client.connect(world.https).wire().certificate() == new
            });
        }
        stop.store(true, Ordering::Relaxed);
        let ended = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap());
        ended.collect()
    });
    let good = good.into_inner();
    println!(
        "{good} handshakes over 20 renewals, {} failed",
        failures.len()
    );
    assert!(good > 200, "{good}");
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn a_faulty_renewal_leaves_the_old_certificate_in_force_and_says_why() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("one", "DNS:a.test");
    let world = World::of(&[(cert.clone(), key.clone())], "", "");
    let client = TlsClient::new(&authority.ca(), "a.test");
    let old = der(&cert);
    let (other_cert, other_key) = authority.sign("other", "DNS:a.test");
    let good = std::fs::read(&cert).unwrap();
    let faults = |said: &str| {
        let lines = world.gateway.log_lines();
        let lines = lines.iter().filter(|line| line["context"] == "tls");
        lines
            .filter(|line| line["err"].as_str().is_some_and(|err| err.contains(said)))
            .count()
    };
    for (content, said) in [
        (std::fs::read(&other_cert).unwrap(), "does not fit"),
        (
            good[..good.len() / 2].to_vec(),
            "does not hold a certificate",
        ),
        (Vec::new(), "does not hold a certificate in PEM"),
    ] {
        let before = faults(said);
        std::fs::write(&cert, content).unwrap();
        wait_until(said, || faults(said) > before);
        assert_eq!(client.connect(world.https).wire().certificate(), old);
    }
    std::fs::remove_file(&key).unwrap();
    wait_until("the key is missed", || faults("cannot be read") > 0);
    assert_eq!(client.connect(world.https).wire().certificate(), old);

    std::fs::copy(&other_cert, &cert).unwrap();
    std::fs::copy(&other_key, &key).unwrap();
    let new = der(&other_cert);
    wait_until("the new one is shown", || {
        client.connect(world.https).wire().certificate() == new
    });
}

#[test]
fn a_clients_certificate_is_told_to_its_service() {
    let authority = Authority::new();
    let tls = format!("client: {{ mode: optional, ca: '{}' }}", authority.ca());
    let world = World::with(&authority, &tls, "");
    let hostile = "/C=DE/O=A, B\\+C/OU=a\r\nX-Tenant-ID: t2/CN=#1 Lu\u{10d}i\u{107} ";
    for (subject, told) in [
        ("/CN=partner-1", Some("CN=partner-1")),
        (
            "/C=DE/O=Partner/CN=p.test",
            Some("CN=p.test,O=Partner,C=DE"),
        ),
        ("/DC=test/DC=p/UID=7", Some("UID=7,DC=p,DC=test")),
        (
            hostile,
            Some(r"CN=\#1 Lu\C4\8Di\C4\87\ ,OU=a\0D\0AX-Tenant-ID: t2,O=A\, B\+C,C=DE"),
        ),
        (
            "/emailAddress=a@b.test",
            Some("1.2.840.113549.1.9.1=a@b.test"),
        ),
        ("/", None),
    ] {
        let pair = authority.sign_as("client", subject, "DNS:client.test");
        let client = TlsClient::with_certificate(&authority.ca(), "a.test", &pair);
        for path in ["/s/x", "/hook/x"] {
            let request = Request::get(path)
                .header("X-Client-Cert-Subject", "CN=admin")
                .header("X_Client_Cert_Subject", "CN=admin")
                .header("X-Client-Cert-Verify", "SUCCESS")
                .header("Connection", "X-Client-Cert-Subject");
            assert_eq!(client.send(&request, world.https).status, 200, "{subject}");
            let seen = world.backend.requests().pop().unwrap();
            assert_eq!(
                seen.header("x-client-cert-subject"),
                told,
                "{subject} {path}"
            );
            for forged in ["x_client_cert_subject", "x-client-cert-verify"] {
                assert_eq!(seen.header(forged), None, "{subject} {path}");
            }
        }
    }
    let nobody = TlsClient::new(&authority.ca(), "a.test");
    let forged = Request::get("/hook/x").header("X-Client-Cert-Subject", "CN=admin");
    for response in [
        nobody.send(&forged, world.https),
        forged.send_to(world.gateway.addr()),
    ] {
        assert_eq!(response.status, 200);
        let seen = world.backend.requests().pop().unwrap();
        assert_eq!(seen.header("x-client-cert-subject"), None);
    }
}

#[test]
fn a_certificate_of_strangers_is_no_certificate_and_required_means_it() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let ours = authority.sign("client", "DNS:client.test");
    let theirs = strangers.sign("client", "DNS:client.test");
    for (mode, without) in [("optional", true), ("required", false)] {
        let tls = format!("client: {{ mode: {mode}, ca: '{}' }}", authority.ca());
        let world = World::with(&authority, &tls, "");
        let is_served = |client: TlsClient| {
            // With TLS 1.3 a client learns that it was refused when it reads.
            let mut connection = client.try_connect(world.https).ok()?;
            connection.send(&Request::get("/s/x").bytes());
            let response = connection.try_read_response().ok()?;
            Some(response.status == 200)
        };
        let shows = |pair| TlsClient::with_certificate(&authority.ca(), "a.test", pair);
        assert_eq!(is_served(shows(&ours)), Some(true), "{mode}");
        assert_eq!(is_served(shows(&theirs)), None, "{mode}");
        let nobody = TlsClient::new(&authority.ca(), "a.test");
        assert_eq!(is_served(nobody), without.then_some(true), "{mode}");
        let refused = r#"downstream_connections_refused_total{reason="tls"}"#;
        let expected = if without { 1.0 } else { 2.0 };
        world
            .gateway
            .wait_metric(refused, |count| count == expected);
    }
}

#[test]
fn sessions_are_resumed_but_not_those_of_clients_with_certificates() {
    let authority = Authority::new();
    let pair = authority.sign("client", "DNS:client.test");
    let tls = format!("client: {{ mode: optional, ca: '{}' }}", authority.ca());
    let (open, asks) = (
        World::with(&authority, "", ""),
        World::with(&authority, &tls, ""),
    );
    let of = |version| TlsClient::of_version(&authority.ca(), "a.test", version);
    let shows = TlsClient::with_certificate(&authority.ca(), "a.test", &pair);
    for (name, client, world, resumes) in [
        ("1.3", of(&TLS13), &open, true),
        ("1.2", of(&TLS12), &open, true),
        ("1.3 without one", of(&TLS13), &asks, false),
        ("1.2 without one", of(&TLS12), &asks, false),
        ("with one", shows, &asks, false),
    ] {
        let mut first = client.connect(world.https);
        // A ticket of 1.3 comes behind the handshake.
        assert_eq!(first.request(&Request::get("/s/x")).status, 200, "{name}");
        let mut second = client.connect(world.https);
        assert_eq!(second.wire().is_resumed(), resumes, "{name}");
        assert_eq!(second.request(&Request::get("/s/x")).status, 200, "{name}");
    }
}

#[test]
fn plain_http_at_a_tls_port_is_told_so() {
    let (world, _) = World::usual();
    let mut connection = Client::to(world.https).connect();
    let response = connection.request(&Request::get("/s/x"));
    assert_eq!(response.status, 400);
    assert!(response.text().contains("TLS"), "{}", response.text());
    assert!(connection.is_closed());
    assert_eq!(world.backend.count(), 0);
    let mut noise = Client::to(world.https).connect();
    noise.send(b"\x80\x2e\x01\x00\x02 this is SSL 2, or nothing at all");
    assert!(noise.is_closed());
    for (outcome, count) in [("plaintext", 1.0), ("failed", 1.0)] {
        let series = format!(r#"downstream_tls_handshakes_total{{outcome="{outcome}"}}"#);
        world.gateway.wait_metric(&series, |seen| seen == count);
    }
    world.gateway.wait_log(|line| {
        line["context"] == "connection" && line["msg"] == "refused" && line["reason"] == "tls"
    });
}

#[test]
fn a_handshake_that_does_not_end_is_ended() {
    let authority = Authority::new();
    let world = World::with(&authority, "handshake_timeout: 300ms", "");
    let mut hello = hello_of(&authority);
    let half = hello.split_off(hello.len() / 2);
    for sent in [&b""[..], &hello] {
        let start = Instant::now();
        let mut connection = Client::to(world.https).connect();
        connection.send(sent);
        assert!(connection.is_closed(), "{} bytes", sent.len());
        let took = start.elapsed();
        let limit = Duration::from_millis(280)..Duration::from_secs(2);
        assert!(limit.contains(&took), "{took:?}");
    }
    assert!(!half.is_empty());
    let late = r#"downstream_tls_handshakes_total{outcome="timeout"}"#;
    world.gateway.wait_metric(late, |count| count == 2.0);
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 0.0);
}

#[test]
fn a_handshake_under_way_is_finished_at_the_end_and_does_not_hold_it_up() {
    let (world, client) = World::usual();
    let (silent, slow) = (
        Client::to(world.https).connect(),
        TcpStream::connect(world.https).unwrap(),
    );
    world
        .gateway
        .wait_metric("downstream_connections", |open| open == 2.0);
    let start = Instant::now();
    world.gateway.signal(15);
    wait_until("new connections are refused", || {
        TcpStream::connect(world.https).is_err()
    });
    // It was accepted, and so it is not turned away.
    client.shake_hands(slow).expect("the handshake is finished");
    assert_eq!(world.gateway.wait_exit(Duration::from_secs(5)), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    drop(silent);
}

#[test]
fn the_main_listener_can_be_https_and_its_certificate_come_from_the_environment() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("one", "DNS:a.test");
    let gateway = Gateway::platform()
        .env("SERVER_PROTOCOL", "https")
        .env("TLS_CERTIFICATE", cert)
        .env("TLS_KEY", key)
        .start();
    let client = TlsClient::new(&authority.ca(), "a.test");
    let response = client.send(&Request::get("/live"), gateway.addr());
    assert_eq!(response.status, 200);
    let alive = Gateway::platform()
        .env("SERVER_PROTOCOL", "https")
        .env("OPS_LISTEN", gateway.private_addr())
        .arg("--check-live")
        .run_to_exit();
    assert_eq!(alive.code, 0, "{}", alive.stderr);
    let not_after = gateway.metric("tls_certificate_not_after_seconds");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((now..now + 100_000.0).contains(&not_after), "{not_after}");
}

#[test]
fn every_fault_of_certificates_is_told_with_its_place() {
    let authority = Authority::new();
    let (cert, key) = authority.sign("one", "DNS:a.test");
    let (_, other) = authority.sign("other", "DNS:a.test");
    let yaml = format!(
        "server:
  protocol: https
  listeners: [{{ address: '127.0.0.1:0', protocol: https }}, {{ address: nowhere }}]
tls:
  handshake_timeout: 0s
  certificates:
    - {{ certificate: /nowhere/cert.pem, key: '{key}' }}
    - {{ certificate: '{cert}', key: '{other}' }}
    - {{ certificate: '{key}', key: '{key}' }}
    - {{ certificate: '{cert}', key: '{cert}' }}
  client: {{ mode: required }}
"
    );
    let exit = Gateway::with(&yaml).arg("--test").run_to_exit();
    assert_eq!(exit.code, 1);
    for told in [
        "server.listeners[1].address: `nowhere` is not an address",
        "tls.handshake_timeout: must be longer",
        "tls.certificates[0].certificate: `/nowhere/cert.pem` cannot be read",
        "tls.certificates[1]: `key` does not fit",
        "tls.certificates[2].certificate: ",
        "tls.certificates[3].key: ",
        "tls.client.ca: name the file",
    ] {
        assert!(exit.stderr.contains(told), "{told}: {}", exit.stderr);
    }
    assert!(!exit.stderr.contains("BEGIN"), "{}", exit.stderr);

    let without = Gateway::with("server: { protocol: https }")
        .arg("--test")
        .run_to_exit();
    assert!(
        without
            .stderr
            .contains("server.protocol: `https` needs a certificate")
    );
}

/// A gateway with an https listener beside the main one, and a service behind it.
struct World {
    backend: Upstream,
    gateway: Gateway,
    https: SocketAddr,
}

impl World {
    /// With one certificate, of `a.test`, and a client that believes it.
    fn usual() -> (Self, TlsClient) {
        let authority = Authority::new();
        let world = Self::with(&authority, "", "");
        (world, TlsClient::new(&authority.ca(), "a.test"))
    }

    fn with(authority: &Authority, tls: &str, server: &str) -> Self {
        Self::of(&[authority.sign("a", "DNS:a.test")], tls, server)
    }

    fn of(pairs: &[(String, String)], tls: &str, server: &str) -> Self {
        let backend = Upstream::start();
        let certificates: String = pairs
            .iter()
            .map(|(cert, key)| format!("    - {{ certificate: '{cert}', key: '{key}' }}\n"))
            .collect();
        let yaml = format!(
            "server:
  listeners: [{{ address: '127.0.0.1:0', protocol: https }}]
  {server}
tls:
  {tls}
  certificates:
{certificates}
limits: {{ enabled: false }}
services: {{ s: {{ url: '{}' }} }}
routes:
  - {{ path: /s/*, service: s, auth: public }}
  - {{ path: /hook/*, service: s, auth: public, webhook: true }}
",
            backend.url()
        );
        let gateway = Gateway::with(&yaml).start();
        let https = gateway.listener("https");
        Self {
            backend,
            gateway,
            https,
        }
    }
}

/// Whether `openssl s_client` comes to an agreement.
fn openssl_client(addr: SocketAddr, arguments: &[&str]) -> bool {
    let output = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &addr.to_string(),
            "-servername",
            "a.test",
        ])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the tests need the openssl command");
    let said = String::from_utf8_lossy(&output.stdout);
    said.contains("New, TLSv1") && !said.contains("Cipher is (NONE)")
}

/// The first bytes that a client sends.
fn hello_of(authority: &Authority) -> Vec<u8> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let client = TlsClient::new(&authority.ca(), "a.test");
    let shaking = thread::spawn(move || client.try_connect(addr).map(drop));
    let (mut stream, _) = listener.accept().unwrap();
    let mut hello = vec![0; 4096];
    let len = stream.read(&mut hello).unwrap();
    hello.truncate(len);
    let _ = stream.write_all(b"that is enough");
    drop(stream);
    assert!(shaking.join().unwrap().is_err());
    hello
}

/// The first certificate in a PEM file.
fn der(file: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let mut certificates = rustls::pki_types::CertificateDer::pem_file_iter(file).unwrap();
    certificates.next().unwrap().unwrap().to_vec()
}
