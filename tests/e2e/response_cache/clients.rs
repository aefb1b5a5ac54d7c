//! Who is answered from what is kept, by what protocol and with what in their hands: HTTP/2, certificates.

use super::{conf, fresh, get, is_hit, stored};
use crate::support::http2::{Answer, Http2, Http2Upstream, Play, run, whole};
use crate::support::prelude::*;
use bytes::Bytes;

/// Ten octets, with a validator.
fn ten() -> Upstream {
    Upstream::start_with(|_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=60")
            .header("ETag", "\"ten\"")
            .body("0123456789")
    })
}

/// Of the same host, over HTTP/1.1.
fn as_http2_asks(gateway: &Gateway) -> Request {
    Request::get("/s/x").host(&gateway.addr().to_string())
}

fn told(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or_default()
}

#[test]
fn over_http2_a_hit_is_what_it_is_over_http1() {
    let backend = ten();
    let gateway = conf(&backend).start();
    let over_http1 = as_http2_asks(&gateway);
    over_http1.send_to(gateway.addr());
    stored(&gateway, &over_http1);
    run(async {
        let (client, _task) = Http2::connect(gateway.addr()).await;
        let with = |method: &str, name: &str, value: &str| {
            client.request(method, "/s/x").header(name, value)
        };
        for (request, status, body, length) in [
            (with("GET", "x-any", "1"), 200, "0123456789", Some("10")),
            (with("HEAD", "x-any", "1"), 200, "", Some("10")),
            (with("GET", "range", "bytes=2-4"), 206, "234", Some("3")),
            (with("GET", "range", "bytes=90-"), 416, "", Some("0")),
            (with("GET", "if-none-match", "\"ten\""), 304, "", None),
            (with("HEAD", "if-none-match", "\"ten\""), 304, "", None),
        ] {
            let answer = client.fetch(request, b"").await.unwrap();
            assert_eq!((answer.status, &*answer.body), (status, body.as_bytes()));
            assert_eq!(answer.header("content-length"), length, "{status}");
            assert!(told(&answer).contains("hit"), "{}", told(&answer));
            assert_eq!(answer.header("etag"), Some("\"ten\""));
            assert!(answer.header("age").is_some());
            for field in ["connection", "transfer-encoding", "keep-alive"] {
                assert_eq!(answer.header(field), None, "{field}");
            }
        }
        let part = with("GET", "range", "bytes=2-4");
        let part = client.fetch(part, b"").await.unwrap();
        assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
        // A hit does not end the connection, nor the other way round.
        let others = (0..20).map(|_| client.get("/s/x"));
        for answer in futures_util::future::join_all(others).await {
            assert_eq!((answer.status, &*answer.body), (200, &b"0123456789"[..]));
        }
    });
    assert_eq!(backend.count(), 1);
}

#[test]
fn what_http2_has_brought_is_kept_for_http1_and_trailers_are_not() {
    let backend = Http2Upstream::start(|_| Play::Answer {
        status: 200,
        headers: vec![("cache-control", "max-age=60".to_owned())],
        pieces: vec![
            (Duration::ZERO, Bytes::from_static(b"01234")),
            (Duration::from_millis(50), Bytes::from_static(b"56789")),
        ],
        trailers: vec![("x-digest", "of-ten".to_owned())],
    });
    let gateway = Conf::of(&[backend.url()])
        .top("cache", "{ memory: 64MiB }")
        .service("http2", "true")
        .route("cache", "{}")
        .start();
    run(async {
        let (client, _task) = Http2::connect(gateway.addr()).await;
        let asks = || client.request("GET", "/s/x").header("te", "trailers");
        let miss = client.fetch(asks(), b"").await.unwrap();
        assert_eq!((miss.status, &*miss.body), (200, &b"0123456789"[..]));
        let trailer = miss.trailers.as_ref().and_then(|all| all.get("x-digest"));
        assert_eq!(trailer.map(|value| value.as_bytes()), Some(&b"of-ten"[..]));
        stored(&gateway, &as_http2_asks(&gateway));
        let hit = client.fetch(asks(), b"").await.unwrap();
        assert_eq!((hit.status, &*hit.body), (200, &b"0123456789"[..]));
        assert!(told(&hit).contains("hit"));
        assert_eq!(
            hit.trailers, None,
            "they may be dropped (RFC 9110, section 6.5.1)"
        );
        assert_eq!(hit.header("content-length"), Some("10"));
    });
    let hit = as_http2_asks(&gateway).send_to(gateway.addr());
    assert!(is_hit(&hit));
    assert_eq!(hit.text(), "0123456789");
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn trailers_come_behind_what_was_kept_for_a_client_that_takes_nothing() {
    const LENGTH: usize = 100 << 10;
    let backend = Http2Upstream::start(|_| Play::Answer {
        status: 200,
        headers: vec![("cache-control", "max-age=60".to_owned())],
        pieces: vec![(Duration::ZERO, Bytes::from(vec![b'x'; LENGTH]))],
        trailers: vec![("x-digest", "of-all".to_owned())],
    });
    let gateway = Conf::of(&[backend.url()])
        .top("cache", "{ memory: 64MiB }")
        .service("http2", "true")
        .route("cache", "{}")
        .start();
    run(async {
        let mut narrow = h2::client::Builder::new();
        narrow.initial_window_size(1000);
        let (client, _task) = Http2::connect_with(gateway.addr(), &narrow).await;
        let request = client.request("GET", "/s/x").header("te", "trailers");
        let (answer, _) = client.begin(request, true).await;
        let answer = answer.await.expect("a head");
        // The fetch is over, and most of it waits for its client.
        stored(&gateway, &as_http2_asks(&gateway));
        let answer = whole(answer).await.expect("the rest");
        assert_eq!((answer.status, answer.body.len()), (200, LENGTH));
        let trailer = answer.trailers.as_ref().and_then(|all| all.get("x-digest"));
        assert_eq!(trailer.map(|value| value.as_bytes()), Some(&b"of-all"[..]));
    });
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn who_shows_a_certificate_is_who_is_answered() {
    let authority = Authority::new();
    for (control, is_for_all) in [("s-maxage=60", false), ("public, max-age=60", true)] {
        let backend = Upstream::start_with(move |request| {
            let subject = request.header("x-client-cert-subject").unwrap_or("nobody");
            Reply::status(200)
                .header("Cache-Control", control)
                .body(subject.to_owned())
        });
        let (cert, key) = authority.sign("a", "DNS:a.test");
        let gateway = conf(&backend)
            .top(
                "server",
                "{ listeners: [{ address: '127.0.0.1:0', protocol: https }] }",
            )
            .top(
                "tls",
                &format!(
                    "{{ client: {{ mode: optional, ca: '{}' }}, certificates: [{{ certificate: '{cert}', key: '{key}' }}] }}",
                    authority.ca()
                ),
            )
            .start();
        let https = gateway.listener("https");
        let shows = |name: &str| {
            let pair = authority.sign_as("client", &format!("/CN={name}"), "DNS:client.test");
            TlsClient::with_certificate(&authority.ca(), "a.test", &pair)
        };
        let clients = [
            ("CN=ann", shows("ann")),
            ("CN=bob", shows("bob")),
            ("nobody", TlsClient::new(&authority.ca(), "a.test")),
        ];
        let request = Request::get("/s/x").header("X-Client-Cert-Subject", "CN=ann");
        for round in 0..3 {
            for (name, client) in &clients {
                let answer = client.send(&request, https);
                let expected = if is_for_all { "CN=ann" } else { name };
                assert_eq!(answer.text(), expected, "{control}");
                if round == 2 {
                    assert!(is_hit(&answer), "{control}: {name}");
                }
            }
        }
        assert_eq!(backend.count(), if is_for_all { 1 } else { clients.len() });
        // Not over TLS it is another scheme, and nobody.
        assert_eq!(request.send_to(gateway.addr()).text(), "nobody");
    }
}

#[test]
fn what_is_kept_in_memory_does_not_go_on_to_the_next_process() {
    let backend = fresh();
    let runtime = Runtime::new();
    let gateway = runtime.of(conf(&backend).gateway()).start();
    wait_until("it can be asked", || runtime.control().exists());
    get(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    assert_eq!(runtime.upgrade().code, 0);
    let miss = get(&gateway, "/s/x");
    assert_eq!((miss.text(), is_hit(&miss)), ("answer 2", false));
    assert_eq!(stored(&gateway, &Request::get("/s/x")).text(), "answer 2");
}
