//! Backends over TLS: verified, always; with a certificate of our own where they ask for one; and all that holds for
//! backends holds for these.

use crate::support::prelude::*;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

const HERE: &str = "IP:127.0.0.1";

/// How late a busy machine may be.
const LATE: Duration = Duration::from_secs(2);

/// A service behind TLS, and who signed its certificate.
struct World {
    authority: Authority,
    backend: Upstream,
    relay: Relay,
}

impl World {
    #[track_caller]
    fn start() -> Self {
        let (authority, backend) = (Authority::new(), Upstream::start());
        let relay = Relay::tls(backend.addr(), &authority.sign("good", HERE));
        Self {
            authority,
            backend,
            relay,
        }
    }

    /// The service believes this authority.
    fn conf(&self) -> Conf {
        trusting(&self.authority, &[self.relay.url()])
    }
}

fn trusting(authority: &Authority, urls: &[String]) -> Conf {
    Conf::of(urls).service("tls", &format!("{{ ca: '{}' }}", authority.ca()))
}

#[test]
fn a_backend_is_spoken_to_over_tls_on_connections_that_are_kept() {
    let world = World::start();
    let gateway = world.conf().gateway().env("SERVER_THREADS", 1).start();
    for i in 0..50 {
        let request = match i % 3 {
            0 => Request::get("/s/x"),
            1 => Request::post("/s/x").body(noise(100_000)),
            _ => Request::post("/s/x").chunked(vec!["some", "body"]),
        };
        let response = request
            .header("X-Request-ID", &format!("tls-{i}"))
            .send_to(gateway.addr());
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let requests = world.backend.requests();
    assert_eq!(requests.len(), 50);
    assert!(requests.iter().all(|request| request.complete));
    assert_eq!(requests[1].body, noise(100_000));
    assert_eq!(requests[0].header("host"), Some(&*world.relay.name()));
    assert_eq!(requests[0].header("x-forwarded-proto"), Some("http"));
    let line = gateway.access_line("tls-0");
    assert_eq!(line["upstream"], world.relay.name(), "{line}");
    let made = world.relay.connections();
    assert!(made <= 3, "{made} connections for 50 requests");
    let seen = &world.relay.seen()[0];
    // An address is verified, but is no server name (RFC 6066, section 3).
    assert_eq!((&seen.name, seen.has_certificate), (&None, false));
}

#[test]
fn large_answers_and_uploads_pass_byte_for_byte() {
    let world = World::start();
    let answer = noise(3_000_000);
    let body = answer.clone();
    world
        .backend
        .set(move |_| Reply::status(200).body(body.clone()));
    let gateway = world.conf().start();
    let response = Request::post("/s/x")
        .body(noise(5_000_000))
        .send_to(gateway.addr());
    assert_eq!((response.status, response.body == answer), (200, true));
    assert!(world.backend.requests()[0].body == noise(5_000_000));
}

#[test]
fn the_name_that_is_verified_is_sent_and_may_be_another_than_the_hosts() {
    let (authority, backend) = (Authority::new(), Upstream::start());
    let relay = Relay::tls(
        backend.addr(),
        &authority.sign("named", "DNS:tickets.internal"),
    );
    let tls = format!("{{ ca: '{}', name: tickets.internal }}", authority.ca());
    let gateway = Conf::of(&[relay.url()]).service("tls", &tls).start();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    let name = relay.seen()[0].name.clone();
    assert_eq!(name.as_deref(), Some("tickets.internal"));
    let host = backend.requests()[0].header("host").map(str::to_owned);
    assert_eq!(host, Some(relay.name()), "Host says where it is");

    let relay = Relay::tls(backend.addr(), &authority.sign("local", "DNS:localhost"));
    let url = format!("https://localhost:{}", relay.port());
    let gateway = trusting(&authority, &[url]).start();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    assert_eq!(relay.seen()[0].name.as_deref(), Some("localhost"));
}

#[test]
fn what_cannot_be_verified_is_502_with_its_cause_in_the_log_and_is_sent_nothing() {
    let (ours, other) = (Authority::new(), Authority::new());
    let backend = Upstream::start();
    let believing = |authority: &Authority| format!("{{ ca: '{}' }}", authority.ca());
    let named = |name: &str| format!("{{ ca: '{}', name: {name} }}", ours.ca());
    let good = ours.sign("good", HERE);
    for (name, certificate, tls, cause) in [
        // It has the name of ours, and so its signature is what does not fit.
        (
            "another authority",
            other.sign("other", HERE),
            believing(&ours),
            "BadSignature",
        ),
        (
            "the system's roots",
            good.clone(),
            "{}".to_owned(),
            "UnknownIssuer",
        ),
        (
            "another address",
            ours.sign("there", "IP:127.0.0.2"),
            believing(&ours),
            "not valid for name",
        ),
        (
            "another name",
            good.clone(),
            named("tickets.internal"),
            "not valid for name",
        ),
        (
            "a name in the subject alone",
            ours.sign("tickets.internal", HERE),
            named("tickets.internal"),
            "not valid for name",
        ),
        (
            "expired",
            ours.sign_expired("old", HERE),
            believing(&ours),
            "expired",
        ),
    ] {
        let relay = Relay::tls(backend.addr(), &certificate);
        let gateway = Conf::of(&[relay.url()])
            .service("tls", &tls)
            .service("retry", "{ max_retries: 0 }")
            .start();
        for request in [Request::get("/s/x"), Request::post("/s/x").body("money")] {
            let response = request
                .header("X-Request-ID", "bad")
                .send_to(gateway.addr());
            assert_eq!(response.status, 502, "{name}: {}", response.text());
            assert_eq!(response.json()["code"], "BAD_GATEWAY", "{name}");
            assert!(
                !response.text().contains("certificate"),
                "{name}: {}",
                response.text()
            );
        }
        let line = gateway.access_line("bad");
        let err = line["err"].as_str().unwrap_or_default();
        assert!(err.contains(cause), "{name}: {line}");
        wait_until("the handshakes have failed", || relay.faults().len() >= 2);
        assert_eq!(relay.seen(), [], "{name}");
    }
    assert_eq!(backend.heads_seen(), 0);
}

#[test]
fn a_backend_that_does_not_speak_tls_is_not_spoken_to_without() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let said = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 4096];
        let count = stream.read(&mut hello).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        hello[..count].to_vec()
    });
    let gateway = Conf::of(&[url])
        .service("retry", "{ max_retries: 0 }")
        .start();
    let response = Request::post("/s/x").body("money").send_to(gateway.addr());
    assert_eq!(response.status, 502, "{}", response.text());
    let said = said.join().unwrap();
    assert_eq!(said[0], 22, "a TLS handshake, and nothing else: {said:?}");
}

#[test]
fn a_backend_that_asks_for_a_certificate_gets_ours_and_nothing_else_is_good_enough() {
    let (ours, other) = (Authority::new(), Authority::new());
    let backend = Upstream::start();
    let relay = Relay::mutual_tls(backend.addr(), &ours.sign("good", HERE), &ours.ca());
    let with = |identity: Option<&(String, String)>| {
        let identity = identity.map(|(cert, key)| format!(", cert: '{cert}', key: '{key}'"));
        let tls = format!("{{ ca: '{}'{} }}", ours.ca(), identity.unwrap_or_default());
        Conf::of(&[relay.url()]).service("tls", &tls).start()
    };
    let gateway = with(Some(&ours.sign("gateway", "DNS:gateway")));
    for _ in 0..3 {
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    }
    assert!(relay.seen().iter().all(|seen| seen.has_certificate));
    assert_eq!(backend.count(), 3);
    for gateway in [
        with(None),
        with(Some(&other.sign("stranger", "DNS:gateway"))),
    ] {
        let response = Request::post("/s/x")
            .header("X-Request-ID", "stranger")
            .body("money")
            .send_to(gateway.addr());
        assert_eq!(response.status, 502, "{}", response.text());
        let line = gateway.access_line("stranger");
        assert!(line["err"].is_string(), "{line}");
    }
    assert_eq!(backend.heads_seen(), 3);
}

#[test]
fn a_connection_is_not_shared_with_who_believes_or_shows_something_else() {
    let (ours, other) = (Authority::new(), Authority::new());
    let backend = Upstream::start();
    let relay = Relay::tls(
        backend.addr(),
        &ours.sign("good", "IP:127.0.0.1,DNS:localhost"),
    );
    let (cert, key) = ours.sign("gateway", "DNS:gateway");
    let service = |ca: &Authority, more: &str| format!("tls: {{ ca: '{}'{more} }}", ca.ca());
    let gateway = trusting(&ours, &[relay.url()])
        .and_service("t", &relay.url(), &service(&other, ""))
        .and_service("u", &relay.url(), &service(&ours, ", name: other.internal"))
        .and_service(
            "v",
            &relay.url(),
            &service(&ours, &format!(", cert: '{cert}', key: '{key}'")),
        )
        .gateway()
        .env("SERVER_THREADS", 1)
        .start();
    let ask = |target: &str| Request::get(target).send_to(gateway.addr()).status;
    for _ in 0..5 {
        let got = ["/s/x", "/t/x", "/u/x", "/v/x"].map(ask);
        assert_eq!(got, [200, 502, 502, 200]);
    }
    // One of each that may be made, and all that failed.
    assert_eq!(relay.seen().len(), 2);
}

#[test]
fn instances_are_checked_over_tls_and_the_log_says_what_is_wrong() {
    let world = World::start();
    let expired = Relay::tls(
        world.backend.addr(),
        &world.authority.sign_expired("old", HERE),
    );
    let gateway = trusting(&world.authority, &[world.relay.url(), expired.url()])
        .top("health", "{ interval: 200ms }")
        .start();
    gateway.wait_metric(r#"upstream_healthy_instances{service="s"}"#, |n| n == 1.0);
    assert!(world.backend.health_checks() > 0);
    let line = gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|msg| msg.contains("is not healthy"))
    });
    let msg = line["msg"].as_str().unwrap();
    assert!(
        msg.contains(&expired.name()) && msg.contains("expired"),
        "{msg}"
    );
    for _ in 0..10 {
        assert_eq!(
            Request::post("/s/x")
                .body("a")
                .send_to(gateway.addr())
                .status,
            200
        );
    }
    assert_eq!(expired.seen(), []);
}

#[test]
fn what_was_not_sent_is_sent_to_another_instance() {
    let world = World::start();
    let stranger = Authority::new();
    let bad = Relay::tls(world.backend.addr(), &stranger.sign("bad", HERE));
    let gateway = trusting(&world.authority, &[bad.url(), world.relay.url()]).start();
    for i in 0..10 {
        let response = Request::post("/s/x").body("money").send_to(gateway.addr());
        assert_eq!(response.status, 200, "{i}: {}", response.text());
    }
    assert_eq!(world.backend.count(), 10, "each once");
    assert!(!bad.faults().is_empty(), "the other one was tried");
}

#[test]
fn an_instance_that_is_killed_is_503_and_is_taken_again_but_not_with_a_worse_certificate() {
    let World {
        authority,
        backend,
        mut relay,
    } = World::start();
    let gateway = trusting(&authority, &[relay.url()]).start();
    let status = || Request::get("/s/x").send_to(gateway.addr()).status;
    assert_eq!(status(), 200);
    relay.stop();
    wait_until("it is missed", || status() == 503);
    relay.restart();
    wait_until("it is back", || status() == 200);
    relay.stop();
    relay.restart_with(&Authority::new().sign("usurper", HERE));
    let before = backend.heads_seen();
    wait_until("it is not believed", || status() == 502);
    assert_eq!(status(), 502);
    assert_eq!(backend.heads_seen(), before);
}

#[test]
fn the_deadline_cuts_what_hangs_and_what_trickles() {
    let world = World::start();
    let gateway = world.conf().service("timeout", "500ms").start();
    world.backend.set(|_| Reply::hang());
    let start = Instant::now();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 504);
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    world
        .backend
        .set(|_| Reply::trickle(vec![b'x'; 1000], Duration::from_millis(20)));
    let mut connection = Client::to(gateway.addr()).connect();
    let start = Instant::now();
    connection.send(&Request::get("/s/x").bytes());
    let broken = connection.try_read_response();
    assert!(matches!(broken, Err(Broken::Closed { .. })), "{broken:?}");
    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
    wait_until("the connections to the backend are cut", || {
        world.backend.open_connections() == 0
    });
    world.backend.set(|_| Reply::status(200));
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
}

#[test]
fn the_gateways_own_questions_go_over_tls_too() {
    let (authority, users, backend) = (Authority::new(), Upstream::start(), Upstream::start());
    users.set(|_| Reply::json(json!({"id": "u1", "tenant_id": "t1", "role": "admin"})));
    let relay = Relay::tls(users.addr(), &authority.sign("users", HERE));
    let believing = |authority: &Authority| {
        Gateway::with(&format!(
            "limits: {{ enabled: false }}\nhealth: {{ enabled: false }}\nroles: {{ admin: ['*'] }}\n\
             services:\n  auth-service: {{ url: '{}', tls: {{ ca: '{}' }} }}\n  s: {{ url: '{}' }}\n\
             routes: [{{ path: /s/*, service: s, auth: token, permissions: {{ GET: 'x:view' }} }}]\n",
            relay.url(),
            authority.ca(),
            backend.url(),
        ))
        .start()
    };
    let request = Request::get("/s/x").bearer(&Token::user("u1").without("role").hs256());
    let gateway = believing(&authority);
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(users.requests()[0].target, "/internal/users/u1");
    let gateway = believing(&Authority::new());
    assert_eq!(request.send_to(gateway.addr()).status, 503);
    assert_eq!((users.count(), backend.count()), (1, 1));
}

#[test]
fn files_and_names_that_do_not_fit_are_faults_of_the_configuration() {
    let (ours, other) = (Authority::new(), Authority::new());
    let (ca, (cert, key)) = (ours.ca(), ours.sign("one", HERE));
    let (_, foreign_key) = other.sign("two", HERE);
    let noise = TempFile::new(
        "pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let noise = noise.path().display();
    let empty = TempFile::new("pem", "");
    let empty = empty.path().display();
    for (tls, place) in [
        ("{ ca: /nowhere/ca.pem }".to_owned(), "services.s.tls.ca"),
        (format!("{{ ca: '{key}' }}"), "services.s.tls.ca"),
        (format!("{{ ca: '{noise}' }}"), "services.s.tls.ca"),
        (format!("{{ ca: '{empty}' }}"), "services.s.tls.ca"),
        ("{ name: 'a b' }".to_owned(), "services.s.tls.name"),
        ("{ name: '' }".to_owned(), "services.s.tls.name"),
        (format!("{{ cert: '{cert}' }}"), "services.s.tls.key"),
        (format!("{{ key: '{key}' }}"), "services.s.tls.cert"),
        (
            format!("{{ cert: /nowhere, key: '{key}' }}"),
            "services.s.tls.cert",
        ),
        (
            format!("{{ cert: '{cert}', key: /nowhere }}"),
            "services.s.tls.key",
        ),
        (
            format!("{{ cert: '{cert}', key: '{foreign_key}' }}"),
            "services.s.tls",
        ),
        (
            format!("{{ cert: '{key}', key: '{key}' }}"),
            "services.s.tls",
        ),
        (
            format!("{{ cert: '{noise}', key: '{key}' }}"),
            "services.s.tls",
        ),
        (format!("{{ verify: false, ca: '{ca}' }}"), "services.s.tls"),
    ] {
        let conf = Conf::of(&["https://127.0.0.1:1".to_owned()]).service("tls", &tls);
        let exit = conf.gateway().arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "{tls}");
        assert!(exit.stderr.contains(place), "{tls}: {}", exit.stderr);
    }
    for url in ["http://127.0.0.1:1", "unix:/tmp/x.sock"] {
        let conf = Conf::of(&[url.to_owned()]).service("tls", &format!("{{ ca: '{ca}' }}"));
        let exit = conf.gateway().arg("--test").run_to_exit();
        assert!(
            exit.stderr.contains("services.s.tls"),
            "{url}: {}",
            exit.stderr
        );
    }
    let good = format!("{{ ca: '{ca}', cert: '{cert}', key: '{key}', name: x.internal }}");
    let conf = Conf::of(&["https://127.0.0.1:1".to_owned()]).service("tls", &good);
    let exit = conf.gateway().arg("--test").run_to_exit();
    assert_eq!(exit.code, 0, "{}", exit.stderr);
}
