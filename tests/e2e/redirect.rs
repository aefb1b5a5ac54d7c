//! A listener that sends its clients to https, and where it does not.

use crate::support::prelude::*;

#[test]
fn every_request_is_sent_to_the_same_place_over_https() {
    let (gateway, redirect) = world("");
    for (host, target, location) in [
        ("a.test", "/", "https://a.test/"),
        ("a.test:80", "/x?y=1&z=%20", "https://a.test/x?y=1&z=%20"),
        ("A.Test", "/x", "https://A.Test/x"),
        ("any.b.test", "/live", "https://any.b.test/live"),
        ("127.0.0.1:3080", "/metrics", "https://127.0.0.1/metrics"),
        ("[::1]:3080", "/x", "https://[::1]/x"),
        ("a.test", "//evil.test/x", "https://a.test//evil.test/x"),
        ("a.test", "/\\evil.test", "https://a.test/\\evil.test"),
        ("a.test", "/@evil.test", "https://a.test/@evil.test"),
        ("a.test", "http://a.test/abs?q", "https://a.test/abs?q"),
    ] {
        let mut connection = Client::to(redirect).connect();
        let response = connection.request(&Request::get(target).host(host));
        let case = format!("{host} {target}");
        assert_eq!(response.status, 308, "{case}");
        assert_eq!(response.header("Location"), Some(location), "{case}");
        assert_eq!(response.header("Strict-Transport-Security"), None, "{case}");
        assert_eq!(
            response.header("X-Content-Type-Options"),
            Some("nosniff"),
            "{case}"
        );
        assert!(connection.is_closed(), "{case}");
    }
    let body = vec![b'x'; 100_000];
    let upload = Request::post("/upload").host("a.test").body(body);
    assert_eq!(upload.send_to(redirect).status, 308, "a body is not read");
    let all = Request::method("OPTIONS", "*")
        .host("a.test")
        .send_to(redirect);
    assert_eq!(all.header("Location"), Some("https://a.test/"));
    let id = all.header("X-Request-ID").unwrap().to_owned();
    let line = gateway.access_line(&id);
    assert_eq!(
        (&line["statusCode"], &line["method"]),
        (&json!(308), &json!("OPTIONS"))
    );
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
}

#[test]
fn nobody_is_sent_to_a_host_that_is_not_ours() {
    let (_gateway, redirect) = world("");
    for host in [
        "evil.test",
        "a.test.evil.test",
        "x.y.b.test",
        "b.test",
        "8.8.8.8",
    ] {
        let response = Request::get("/x").host(host).send_to(redirect);
        assert_eq!(response.status, 421, "{host}");
        assert_eq!(response.json()["code"], "MISDIRECTED_REQUEST");
        assert_eq!(response.header("Location"), None, "{host}");
    }
    for head in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test/@evil.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: evil.test\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET evil.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET /\r\nX: y HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ] {
        let mut connection = Client::to(redirect).connect();
        connection.send(head);
        let response = connection.read_response();
        let name = String::from_utf8_lossy(head);
        assert_eq!(response.status, 400, "{name}");
        assert_eq!(response.header("Location"), None, "{name}");
    }
}

#[test]
fn another_port_is_named_and_without_certificates_every_host_is_ours() {
    let gateway = Gateway::with(
        "server: { protocol: redirect, redirect_port: 3443 }
services: { s: { url: 'http://127.0.0.1:9' } }
routes: [{ path: /s/*, service: s, auth: public }]
",
    );
    let gateway = gateway.start();
    let response = Request::get("/x")
        .host("any.test:3000")
        .send_to(gateway.addr());
    assert_eq!(response.header("Location"), Some("https://any.test:3443/x"));
    // The private listener answers probes.
    assert_eq!(
        Request::get("/live").send_to(gateway.private_addr()).status,
        200
    );
}

#[test]
fn a_client_that_says_nothing_is_not_waited_for() {
    let (gateway, redirect) = world("header_timeout: 300ms");
    let mut silent = Client::to(redirect).connect();
    assert!(silent.is_closed());
    let mut slow = Client::to(redirect).connect();
    slow.send(b"GET / HTTP/1.1\r\n");
    assert_eq!(slow.read_response().status, 408);
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
}

/// A gateway with a certificate, and its redirecting listener.
fn world(server: &str) -> (Gateway, SocketAddr) {
    let authority = Authority::new();
    let names = "DNS:a.test,DNS:*.b.test,IP:127.0.0.1,IP:::1";
    let (cert, key) = authority.sign("a", names);
    let gateway = Gateway::with(&format!(
        "server:
  listeners: [{{ address: '127.0.0.1:0', protocol: redirect }}]
  {server}
tls: {{ certificates: [{{ certificate: '{cert}', key: '{key}' }}] }}
services: {{ s: {{ url: 'http://127.0.0.1:9' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
"
    ));
    let gateway = gateway.start();
    let redirect = gateway.listener("redirect");
    (gateway, redirect)
}
