//! Hostile and malformed requests: refused in the documented form, logged and counted once, and nothing of them reaches
//! a backend. Where one message ends and the next begins is never a backend's guess.

use crate::support::prelude::*;

const HEAD: &str = "Host: gateway.test\r\n";

/// What is not HTTP, by name: the bytes, and the status that they earn.
fn malformed_heads() -> Vec<(&'static str, Vec<u8>, u16)> {
    let with = |line: &str, fields: &str| format!("{line}\r\n{HEAD}{fields}\r\n").into_bytes();
    let get = |fields: &str| with("GET /open/x HTTP/1.1", fields);
    let post = |fields: &str| with("POST /open/x HTTP/1.1", fields);
    let line = |line: &str| with(line, "");
    let raw = |text: &[u8]| text.to_vec();
    vec![
        // The request line
        ("no version", raw(b"GET /open/x\r\n\r\n"), 400),
        ("HTTP/0.9", raw(b"GET /\r\n"), 400),
        (
            "HTTP/0.9 in so many words",
            line("GET /open/x HTTP/0.9"),
            505,
        ),
        ("HTTP/2.0 in the line", line("GET /open/x HTTP/2.0"), 505),
        ("HTTP/1.2", line("GET /open/x HTTP/1.2"), 505),
        ("lower case version", line("GET /open/x http/1.1"), 400),
        ("two spaces", line("GET  /open/x HTTP/1.1"), 400),
        ("a tab for a space", line("GET\t/open/x HTTP/1.1"), 400),
        ("a space at the end", line("GET /open/x HTTP/1.1 "), 400),
        ("a space in the target", line("GET /open/a b HTTP/1.1"), 400),
        (
            "a space before the method",
            line(" GET /open/x HTTP/1.1"),
            400,
        ),
        (
            "two empty lines before",
            raw(b"\r\n\r\nGET /open/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n"),
            400,
        ),
        (
            "a method that is no token",
            line("G@T /open/x HTTP/1.1"),
            400,
        ),
        (
            "a very long method",
            line(&format!("{} /open/x HTTP/1.1", "G".repeat(40))),
            400,
        ),
        ("a fragment", line("GET /open/x#y HTTP/1.1"), 400),
        ("NUL in the target", line("GET /open/x\0 HTTP/1.1"), 400),
        (
            "8-bit in the target",
            with("GET /open/\u{e9} HTTP/1.1", ""),
            400,
        ),
        ("`*` with GET", line("GET * HTTP/1.1"), 400),
        ("no leading slash", line("GET open/x HTTP/1.1"), 400),
        (
            "authority-form with GET",
            line("GET gateway.test:80 HTTP/1.1"),
            400,
        ),
        (
            "absolute-form of another host",
            line("GET http://other.test/open/x HTTP/1.1"),
            400,
        ),
        (
            "absolute-form with a user",
            line("GET http://u@gateway.test/open/x HTTP/1.1"),
            400,
        ),
        (
            "absolute-form of another port",
            line("GET http://gateway.test:81/open/x HTTP/1.1"),
            400,
        ),
        (
            "absolute-form of ftp",
            line("GET ftp://gateway.test/open/x HTTP/1.1"),
            400,
        ),
        ("CONNECT", line("CONNECT gateway.test:443 HTTP/1.1"), 405),
        // Line ends
        (
            "bare LF",
            raw(b"GET /open/x HTTP/1.1\nHost: gateway.test\n\n"),
            400,
        ),
        (
            "one bare LF",
            raw(b"GET /open/x HTTP/1.1\r\nHost: gateway.test\nX: y\r\n\r\n"),
            400,
        ),
        (
            "a bare LF at the end",
            raw(b"GET /open/x HTTP/1.1\r\nHost: gateway.test\r\n\n"),
            400,
        ),
        ("a lone CR in a value", get("X: a\rb\r\n"), 400),
        ("CR CR LF", get("X: a\r\r\n"), 400),
        (
            "a lone CR in the request line",
            line("GET /open/x\r HTTP/1.1"),
            400,
        ),
        // Fields
        ("obs-fold", get("X: a\r\n b\r\n"), 400),
        ("obs-fold with a tab", get("X: a\r\n\tb\r\n"), 400),
        (
            "a folded first field",
            raw(b"GET /open/x HTTP/1.1\r\n Host: gateway.test\r\n\r\n"),
            400,
        ),
        ("a space before the colon", get("X-A : b\r\n"), 400),
        ("a tab before the colon", get("X-A\t: b\r\n"), 400),
        ("no colon", get("X-A\r\n"), 400),
        ("an empty name", get(": b\r\n"), 400),
        ("a name with a bracket", get("X[A]: b\r\n"), 400),
        ("an 8-bit name", get("X-\u{e9}: b\r\n"), 400),
        ("NUL in a name", get("X-\0A: b\r\n"), 400),
        ("NUL in a value", get("X-A: b\0c\r\n"), 400),
        ("a control in a value", get("X-A: b\u{1}c\r\n"), 400),
        ("DEL in a value", get("X-A: b\u{7f}c\r\n"), 400),
        // Host
        ("no Host", raw(b"GET /open/x HTTP/1.1\r\nX: y\r\n\r\n"), 400),
        ("two Hosts", get("Host: gateway.test\r\n"), 400),
        ("two other Hosts", get("hOST: other.test\r\n"), 400),
        (
            "an empty Host",
            raw(b"GET /open/x HTTP/1.1\r\nHost:\r\n\r\n"),
            400,
        ),
        (
            "a Host with a space",
            raw(b"GET /open/x HTTP/1.1\r\nHost: a b\r\n\r\n"),
            400,
        ),
        (
            "a Host with a path",
            raw(b"GET /open/x HTTP/1.1\r\nHost: a/b\r\n\r\n"),
            400,
        ),
        (
            "a Host with a query",
            raw(b"GET /open/x HTTP/1.1\r\nHost: a?b\r\n\r\n"),
            400,
        ),
        (
            "a list of Hosts",
            raw(b"GET /open/x HTTP/1.1\r\nHost: a, b\r\n\r\n"),
            400,
        ),
        (
            "a Host with a user",
            raw(b"GET /open/x HTTP/1.1\r\nHost: u@a\r\n\r\n"),
            400,
        ),
        (
            "a Host with quotes",
            raw(b"GET /open/x HTTP/1.1\r\nHost: \"a\"\r\n\r\n"),
            400,
        ),
        (
            "a Host with a bad port",
            raw(b"GET /open/x HTTP/1.1\r\nHost: a:8x\r\n\r\n"),
            400,
        ),
        (
            "a Host with an unclosed bracket",
            raw(b"GET /open/x HTTP/1.1\r\nHost: [::1\r\n\r\n"),
            400,
        ),
        (
            "an 8-bit Host",
            raw(b"GET /open/x HTTP/1.1\r\nHost: \xe9\r\n\r\n"),
            400,
        ),
        // Lengths
        (
            "CL and TE",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
            400,
        ),
        (
            "TE and CL",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
            400,
        ),
        (
            "two equal lengths",
            post("Content-Length: 4\r\nContent-Length: 4\r\n"),
            400,
        ),
        (
            "two different lengths",
            post("Content-Length: 4\r\nContent-Length: 5\r\n"),
            400,
        ),
        ("a list of lengths", post("Content-Length: 4, 4\r\n"), 400),
        ("a length with a plus", post("Content-Length: +4\r\n"), 400),
        ("a length with a minus", post("Content-Length: -4\r\n"), 400),
        ("a hexadecimal length", post("Content-Length: 0x4\r\n"), 400),
        ("an empty length", post("Content-Length: \r\n"), 400),
        (
            "a length with a space",
            post("Content-Length: 4 4\r\n"),
            400,
        ),
        (
            "a length past 64 bits",
            post("Content-Length: 18446744073709551620\r\n"),
            400,
        ),
        ("another coding", post("Transfer-Encoding: gzip\r\n"), 400),
        ("identity", post("Transfer-Encoding: identity\r\n"), 400),
        (
            "a coding before chunked",
            post("Transfer-Encoding: gzip, chunked\r\n"),
            400,
        ),
        (
            "chunked twice",
            post("Transfer-Encoding: chunked, chunked\r\n"),
            400,
        ),
        (
            "chunked in two fields",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            400,
        ),
        (
            "chunked, misspelled",
            post("Transfer-Encoding: xchunked\r\n"),
            400,
        ),
        (
            "chunked with a vertical tab",
            post("Transfer-Encoding: \u{b}chunked\r\n"),
            400,
        ),
        (
            "chunked with a parameter",
            post("Transfer-Encoding: chunked;q=1\r\n"),
            400,
        ),
        (
            "chunked in HTTP/1.0",
            with("POST /open/x HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
            400,
        ),
        // Other protocols
        (
            "a TLS hello",
            raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
            400,
        ),
        ("SSH", raw(b"SSH-2.0-OpenSSH_9.6\r\n"), 400),
        (
            "a PROXY protocol line",
            raw(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n\r\n"),
            400,
        ),
        ("NULs", vec![0; 64], 400),
    ]
}

#[test]
fn what_is_not_http_is_refused_in_the_documented_form_and_reaches_no_backend() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    let heads = malformed_heads();
    let mut by_status = std::collections::BTreeMap::<u16, usize>::new();
    for (name, bytes, status) in &heads {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(bytes);
        let response = connection.read_response();
        assert_eq!(response.status, *status, "{name}: {}", response.text());
        assert_refusal(name, &response);
        assert_eq!(response.header("Connection"), Some("close"), "{name}");
        assert!(connection.is_closed(), "{name}");
        let id = response.header("X-Request-ID").unwrap();
        let line = gateway.access_line(id);
        assert_eq!(line["statusCode"], *status, "{name}");
        assert_eq!(line["route"], "unmatched", "{name}");
        assert_eq!(line["ip"], "127.0.0.1", "{name}");
        assert_eq!(gateway.access_lines_of(id), 1, "{name}");
        *by_status.entry(*status).or_default() += 1;
    }
    for (status, count) in by_status {
        let series = format!(
            r#"http_requests_total{{method="OTHER",route="unmatched",status_code="{status}"}}"#
        );
        gateway.wait_metric(&series, |value| value == count as f64);
    }
    assert_eq!(echo.heads_seen(), 0, "{:?}", echo.requests());
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
}

#[test]
fn a_target_that_only_the_second_parser_dislikes_has_the_documented_answer_too() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let mut faults = Vec::new();
    for byte in (0x21..0x7f).map(char::from) {
        for target in [format!("/open/a{byte}b"), format!("/open/x?a{byte}b")] {
            let response = Request::get(&target).send_to(gateway.addr());
            match (response.status, response.body.is_empty()) {
                (200, false) if response.json()["target"] == *target => {}
                (400, false) => assert_refusal(&target, &response),
                (status, _) => faults.push(format!("{target}: {status} {:?}", response.text())),
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn trace_is_not_allowed_and_says_what_is() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    let response = Request::method("TRACE", "/open/x").send_to(gateway.addr());
    assert_eq!(response.status, 405);
    assert_refusal("TRACE", &response);
    let allow = response.header("Allow").unwrap();
    assert_eq!(allow, "GET, HEAD, POST, PUT, PATCH, DELETE");
    let connect = b"CONNECT gateway.test:443 HTTP/1.1\r\nHost: gateway.test:443\r\n\r\n";
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(connect);
    let response = connection.read_response();
    assert!(response.header("Allow").unwrap().contains("GET"));
    assert_eq!(response.json()["code"], "METHOD_NOT_ALLOWED");
    assert_eq!(echo.heads_seen(), 0);
}

#[test]
fn an_absolute_target_of_our_own_host_is_forwarded_in_origin_form() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    for target in [
        "http://gateway.test/open/x?a=http://b/c",
        "HTTPS://GATEWAY.TEST/open/x?a=http://b/c",
    ] {
        let response = Request::get(target).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{target}: {}", response.text());
        assert_eq!(
            response.json()["target"],
            "/open/x?a=http://b/c",
            "{target}"
        );
    }
    let response = Request::get("http://gateway.test/open/../closed/x").send_to(gateway.addr());
    assert_eq!(response.status, 400, "its path is judged like any other");
    let response = Request::get("http://gateway.test/closed/x").send_to(gateway.addr());
    assert_eq!(response.status, 401, "its path has its route");
    assert_eq!(echo.count(), 2);
}

#[test]
fn a_head_may_arrive_byte_by_byte_and_http_1_0_is_served() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let mut connection = Client::to(gateway.addr()).connect();
    for byte in Request::post("/open/x").body("hello").bytes() {
        connection.send(&[byte]);
    }
    let response = connection.read_response();
    assert_eq!(
        (response.status, response.json()["body"].as_str()),
        (200, Some("hello"))
    );

    let old = Request::get("/open/old").http_1_0().without_host();
    let mut connection = Client::to(gateway.addr()).connect();
    let response = connection.request(&old);
    assert_eq!(response.status, 200);
    assert!(connection.is_closed(), "HTTP/1.0 does not persist unasked");
    assert_eq!(echo.wait_requests(2)[1].version, "HTTP/1.1");
}

#[test]
fn a_slow_head_is_answered_408_and_an_idle_connection_is_closed_in_silence() {
    let echo = Upstream::start();
    let slow = "server: { header_timeout: 500ms, keepalive_timeout: 1s, client_timeout: 500ms }";
    let gateway = Gateway::with(&format!("{slow}\n{}", yaml(&echo))).start();

    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"GET /open/x HTTP/1.1\r\nHost: gate");
    let response = connection.read_response();
    assert_eq!(
        (response.status, response.header("Connection")),
        (408, Some("close"))
    );
    assert_refusal("a slow head", &response);
    assert!(connection.is_closed());

    let mut idle = Client::to(gateway.addr()).connect();
    assert_eq!(
        idle.read_to_end(),
        b"",
        "nothing was asked, nothing is answered"
    );

    let mut kept = Client::to(gateway.addr()).connect();
    assert_eq!(kept.request(&Request::get("/open/x")).status, 200);
    assert_eq!(kept.read_to_end(), b"", "idle after a request");

    let mut body = Client::to(gateway.addr()).connect();
    body.send(b"POST /open/y HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 9\r\n\r\nhalf");
    let response = body.read_response();
    assert_eq!(response.status, 408, "a body that stops is not waited for");
    assert_refusal("a slow body", &response);
    assert!(body.is_closed());
    assert!(
        echo.requests()
            .iter()
            .all(|seen| seen.complete == (seen.target == "/open/x"))
    );
}

#[test]
fn a_trickled_head_is_bounded_as_a_whole_not_by_each_byte() {
    let echo = Upstream::start();
    let slow = "server: { header_timeout: 500ms }";
    let gateway = Gateway::with(&format!("{slow}\n{}", yaml(&echo))).start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"GET /open/x HTTP/1.1\r\nX: ");
    let start = Instant::now();
    let answered = within(Duration::from_secs(8), || {
        let sent = connection.try_send(b"a");
        (sent.is_err() || !connection.stays_open()).then_some(())
    });
    assert!(
        answered.is_some(),
        "still reading after {:?}",
        start.elapsed()
    );
    let answer = String::from_utf8(connection.read_to_end()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn an_upgrade_is_not_a_tunnel() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    for protocol in ["websocket", "h2c", "TLS/1.0", "foo"] {
        let upgrade = Request::get("/open/x")
            .header("Connection", "Upgrade, HTTP2-Settings")
            .header("Upgrade", protocol)
            .header("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Sec-WebSocket-Version", "13");
        let mut connection = Client::to(gateway.addr()).connect();
        assert_eq!(connection.request(&upgrade).status, 200, "{protocol}");
        let second = connection.request(&Request::get("/closed/x"));
        assert_eq!(
            second.status, 401,
            "{protocol}: every request meets its policy"
        );
    }
    for seen in echo.requests() {
        assert_eq!(
            (seen.header("Upgrade"), seen.header("HTTP2-Settings")),
            (None, None)
        );
        assert_ne!(
            seen.header("Connection").map(str::to_lowercase).as_deref(),
            Some("upgrade")
        );
    }
    let closed = Request::get("/closed/x")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket");
    assert_eq!(closed.send_to(gateway.addr()).status, 401);

    echo.set(|_| {
        Reply::raw(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .then_echo()
    });
    for request in [
        Request::get("/open/asked")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket"),
        Request::get("/open/unasked"),
    ] {
        let mut connection = Client::to(gateway.addr()).connect();
        let response = connection.request(&request);
        assert_eq!(response.status, 502, "a 101 opens no tunnel");
        assert_refusal("101", &response);
    }
}

#[test]
fn what_a_client_nominates_in_connection_takes_away_neither_our_headers_nor_the_framing() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let nominations = [
        "x-tenant-id",
        "x-tenant-source, x-original-ip, x-gateway-forwarded",
        "X-Request-ID",
        "host",
        "content-length",
        "transfer-encoding",
        "close, x-tenant-id",
        "keep-alive, x-forwarded-for, x-forwarded-proto",
    ];
    for (i, nominated) in nominations.iter().enumerate() {
        for chunked in [false, true] {
            let request = Request::post(&format!("/closed/{i}"))
                .bearer(&token::customer())
                .header("Connection", nominated)
                .header("X-Request-ID", "mine");
            let request = match chunked {
                true => request.chunked(vec!["hello"]),
                false => request.body("hello"),
            };
            let response = request.send_to(gateway.addr());
            if response.status == 400 {
                continue; // a nomination of the framing may be refused outright
            }
            assert_eq!(
                response.status,
                200,
                "{nominated} {chunked}: {}",
                response.text()
            );
            let seen = echo.requests().pop().unwrap();
            let name = format!("{nominated}, chunked: {chunked}");
            assert_eq!(seen.body, b"hello", "{name}");
            assert_eq!(seen.header("X-Tenant-ID"), Some("t1"), "{name}");
            assert_eq!(seen.header("X-Tenant-Source"), Some("jwt"), "{name}");
            assert_eq!(seen.header("X-Gateway-Forwarded"), Some("true"), "{name}");
            assert_eq!(seen.header("X-Original-IP"), Some("127.0.0.1"), "{name}");
            assert_eq!(seen.header("X-Forwarded-For"), Some("127.0.0.1"), "{name}");
            assert_eq!(seen.header("X-Request-ID"), Some("mine"), "{name}");
            assert_eq!(
                seen.header("Host"),
                Some(echo.addr().to_string().as_str()),
                "{name}"
            );
        }
    }
    assert!(echo.requests().iter().all(|seen| seen.complete));
}

#[test]
fn a_body_is_never_read_as_the_next_request() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let inner = "GET /open/smuggled HTTP/1.1\r\nHost: gateway.test\r\n\r\n";
    let carriers = [
        ("a length", Request::post("/open/a").body(inner)),
        ("chunks", Request::post("/open/a").chunked(vec![inner])),
        ("GET with a body", Request::get("/open/a").body(inner)),
        ("404", Request::post("/nowhere").body(inner)),
        ("401", Request::post("/closed/a").body(inner)),
        (
            "401 with chunks",
            Request::post("/closed/a").chunked(vec![inner]),
        ),
        ("405", Request::method("TRACE", "/open/a").body(inner)),
        ("400", Request::post("/open/../a").body(inner)),
        ("an endpoint of our own", Request::get("/live").body(inner)),
        ("HEAD", Request::method("HEAD", "/open/a").body(inner)),
    ];
    for (name, carrier) in carriers {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&carrier.bytes());
        match name {
            "HEAD" => connection.read_head_response(),
            _ => connection.read_response(),
        };
        connection.send(
            &Request::get("/open/next")
                .header("X-Request-ID", name)
                .bytes(),
        );
        // The connection is either closed, or the next answer is that of the next request.
        if let Ok(next) = connection.try_read_response() {
            assert_eq!(next.json()["target"], "/open/next", "{name}");
        }
    }
    let smuggled = |seen: &Recorded| seen.target.contains("smuggled");
    assert!(
        !echo.requests().iter().any(smuggled),
        "{:?}",
        echo.requests()
    );
}

#[test]
fn pipelined_requests_are_answered_in_order_or_the_connection_is_closed_after_a_whole_answer() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let first = [
        Request::get("/open/1"),
        Request::post("/open/1").body("hello"),
        Request::post("/open/1").chunked(vec!["hello"]),
    ];
    for first in first {
        let mut connection = Client::to(gateway.addr()).connect();
        let mut bytes = first.bytes();
        bytes.extend(Request::get("/open/2").bytes());
        bytes.extend(Request::get("/open/3").bytes());
        connection.send(&bytes);
        let mut answered = 0;
        while answered < 3 {
            let Ok(response) = connection.try_read_response() else {
                break;
            };
            answered += 1;
            assert_eq!(response.status, 200);
            assert_eq!(response.json()["target"], format!("/open/{answered}"));
        }
        assert!(answered >= 1, "the first request is answered");
    }
}

#[test]
fn what_comes_while_an_answer_is_awaited_does_not_take_the_answer_away() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    for (name, extra) in [
        (
            "a pipelined request",
            &b"GET /open/2 HTTP/1.1\r\nHost: gateway.test\r\n\r\n"[..],
        ),
        ("an empty line, as old clients send", b"\r\n"),
    ] {
        let before = echo.count();
        echo.hold();
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&Request::post("/open/payment").body("hello").bytes());
        echo.wait_requests(before + 1);
        connection.send(extra);
        assert!(connection.stays_open(), "{name}");
        echo.release();
        let response = connection.try_read_response();
        let response = response.unwrap_or_else(|broken| panic!("{name}: {broken}"));
        assert_eq!(
            (response.status, response.json()["target"].as_str()),
            (200, Some("/open/payment")),
            "{name}"
        );
    }
}

#[test]
fn garbage_behind_a_request_is_refused_by_itself() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let mut connection = Client::to(gateway.addr()).connect();
    assert_eq!(connection.request(&Request::get("/open/1")).status, 200);
    connection.send(b"\x00\x01garbage\r\n\r\n");
    let response = connection.read_response();
    assert_eq!(
        (response.status, response.header("Connection")),
        (400, Some("close"))
    );
    assert_refusal("garbage", &response);
    assert!(connection.is_closed());

    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"GET /open/2 HTTP/1.1\r\nHost: gateway.test\r\n\r\n\x00garbage");
    let response = connection.read_response();
    assert_eq!(
        (response.status, response.json()["target"].as_str()),
        (200, Some("/open/2"))
    );
    assert_eq!(echo.count(), 2);
}

/// Bodies whose framing is broken or ambiguous, by name. None of them is a complete body.
const BROKEN_CHUNKS: &[(&str, &[u8])] = &[
    ("an empty chunk size", b"5\r\nhello\r\n\r\n\r\n"),
    ("an empty chunk size at once", b"\r\n\r\n"),
    (
        "an empty chunk size with an extension",
        b"5\r\nhello\r\n;x\r\n\r\n",
    ),
    ("no hexadecimal number", b"5\r\nhello\r\nxyz\r\n\r\n"),
    ("0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("a plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("a minus", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("a space before the size", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("no CRLF behind the data", b"5\r\nhello0\r\n\r\n"),
    ("data longer than the size", b"4\r\nhello\r\n0\r\n\r\n"),
    ("LF behind the data", b"5\r\nhello\n0\r\n\r\n"),
    ("LF behind the size", b"5\nhello\r\n0\r\n\r\n"),
    ("CR alone behind the size", b"5\rhello\r\n0\r\n\r\n"),
    ("LF in an extension", b"5;a\nhello\r\n0\r\n\r\n"),
    ("NUL in an extension", b"5;a\0b\r\nhello\r\n0\r\n\r\n"),
    ("CR in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    (
        "a size past 64 bits",
        b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "the largest size",
        b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "the largest signed size",
        b"7fffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a trailer without a colon",
        b"5\r\nhello\r\n0\r\nnonsense\r\n\r\n",
    ),
    ("a trailer with NUL", b"5\r\nhello\r\n0\r\nX: a\0b\r\n\r\n"),
    (
        "a trailer that ends with LF",
        b"5\r\nhello\r\n0\r\nX: a\n\r\n",
    ),
];

#[test]
fn a_backend_never_sees_a_body_with_broken_framing_as_complete() {
    let echo = Upstream::start_with(tell);
    let patience = "server: { client_timeout: 1s }";
    let gateway = Gateway::with(&format!("{patience}\n{}", yaml(&echo))).start();
    let mut faults = Vec::new();
    for (i, (name, body)) in BROKEN_CHUNKS.iter().enumerate() {
        for split in [false, true] {
            let mut connection = Client::to(gateway.addr()).connect();
            let head = chunked_head(&format!("/open/{i}"));
            match split {
                true => {
                    connection.send(&head);
                    body.iter().for_each(|byte| connection.send(&[*byte]));
                }
                false => connection.send(&[&head, *body].concat()),
            }
            match connection.try_read_response() {
                Ok(response) if (400..500).contains(&response.status) => {
                    assert_refusal(name, &response);
                }
                Ok(response) => faults.push(format!("{name}, split {split}: {}", response.status)),
                Err(broken) => faults.push(format!("{name}, split {split}: {broken}")),
            }
        }
    }
    for seen in echo.requests().iter().filter(|seen| seen.complete) {
        let at: usize = seen.target["/open/".len()..].parse().unwrap();
        let name = BROKEN_CHUNKS[at].0;
        faults.push(format!(
            "{name}: complete at the backend with {:?}",
            String::from_utf8_lossy(&seen.body)
        ));
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_body_that_is_cut_short_is_not_complete_at_the_backend() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    let cut: [(&str, &[u8]); 7] = [
        ("in a chunk", b"5\r\nhel"),
        ("behind a chunk", b"5\r\nhello\r\n"),
        ("before CRLF", b"5\r\nhello"),
        ("in a size", b"5"),
        ("behind 0", b"5\r\nhello\r\n0"),
        ("before the last CRLF", b"5\r\nhello\r\n0\r\n"),
        ("in a trailer", b"5\r\nhello\r\n0\r\nX: y\r\n"),
    ];
    for (name, body) in cut {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&[&chunked_head("/open/cut"), body].concat());
        connection.finish_sending();
        let answer = connection.read_to_end();
        assert!(
            !answer.starts_with(b"HTTP/1.1 2"),
            "{name}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    let mut connection = Client::to(gateway.addr()).connect();
    connection
        .send(b"POST /open/cut HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 9\r\n\r\nhalf");
    connection.finish_sending();
    assert!(!connection.read_to_end().starts_with(b"HTTP/1.1 2"));
    wait_until("the backend has seen the ends of all bodies", || {
        echo.count() == echo.heads_seen()
    });
    assert!(
        echo.requests().iter().all(|seen| !seen.complete),
        "{:#?}",
        echo.requests()
    );
}

#[test]
fn a_client_that_only_ends_its_sending_side_has_its_answer() {
    let echo = Upstream::start_with(tell);
    let gateway = Gateway::with(&yaml(&echo)).start();
    echo.hold();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::post("/open/payment").body("hello").bytes());
    connection.finish_sending();
    echo.wait_requests(1);
    assert!(
        connection.stays_open(),
        "a payment on its way is not aborted by a FIN"
    );
    echo.release();
    let response = connection.read_response();
    assert_eq!(
        (response.status, response.json()["body"].as_str()),
        (200, Some("hello"))
    );
}

#[test]
fn thousands_of_mutated_requests_leave_the_gateway_serving() {
    let echo = Upstream::start();
    let quick = "server: { header_timeout: 200ms, client_timeout: 200ms }\nlimits: { flood: { per_second: 1000000 } }";
    let gateway = Gateway::with(&format!("{quick}\n{}", yaml(&echo))).start();
    let seed = fuzz_seed();
    println!("FUZZ_SEED={seed}");
    let until = Instant::now() + Duration::from_secs(6);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (addr, mut random) = (gateway.addr(), Random(seed ^ (thread << 32) | 1));
            scope.spawn(move || {
                for _ in 0..1000 {
                    if Instant::now() > until {
                        break;
                    }
                    let mut connection = Client::to(addr).connect();
                    connection.send(&mutated(&mut random));
                    connection.finish_sending();
                    let answer = connection.read_to_end();
                    assert!(
                        answer.is_empty() || answer.starts_with(b"HTTP/1.1 "),
                        "FUZZ_SEED={seed}: {}",
                        String::from_utf8_lossy(&answer)
                    );
                }
            });
        }
    });
    assert_eq!(
        Request::get("/open/x").send_to(gateway.addr()).status,
        200,
        "FUZZ_SEED={seed}"
    );
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
    let output = gateway.raw_output();
    assert!(!output.contains("panicked"), "FUZZ_SEED={seed}: {output}");
    gateway.log_lines(); // every line is JSON still, whatever was in the requests
}

/// FUZZ_SEED, to see a failure again; else another one each time.
#[expect(clippy::disallowed_methods, reason = "the variable of this test")]
fn fuzz_seed() -> u64 {
    let now = || {
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_nanos() as u64
    };
    std::env::var("FUZZ_SEED").map_or_else(|_| now(), |seed| seed.parse().unwrap())
}

/// A good request with a few bytes changed, taken out, doubled, or put in.
fn mutated(random: &mut Random) -> Vec<u8> {
    let seeds: [&[u8]; 5] = [
        b"GET /open/x?a=b HTTP/1.1\r\nHost: gateway.test\r\nAccept: */*\r\n\r\n",
        b"POST /open/x HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /open/x HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"POST /open/x HTTP/1.1\r\nHost: gateway.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        b"GET http://gateway.test/open/%61/x HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\nCookie: a=b\r\n\r\n",
    ];
    const SPICE: &[&[u8]] = &[
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b":",
        b" ",
        b"\t",
        b"%",
        b"%2e",
        b"/",
        b"..",
        b"\x80",
        b"\xff",
        b"0",
        b"-1",
        b";",
        b",",
        b"HTTP/1.0",
        b"Host: a\r\n",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Upgrade: h2c\r\n",
        b"Connection: host\r\n",
        b"ffffffffffffffff\r\n",
    ];
    let mut bytes = seeds[random.below(seeds.len())].to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len().max(1));
        match random.below(5) {
            _ if bytes.is_empty() => break,
            0 => bytes[at] = random.below(256) as u8,
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, bytes[at]),
            3 => bytes.truncate(at + 1),
            _ => drop(bytes.splice(at..at, SPICE[random.below(SPICE.len())].iter().copied())),
        }
    }
    bytes
}

/// Xorshift: the same seed gives the same requests.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

fn chunked_head(target: &str) -> Vec<u8> {
    format!("POST {target} HTTP/1.1\r\nHost: gateway.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .into_bytes()
}

/// The documented error body, and the headers of every answer.
#[track_caller]
fn assert_refusal(name: &str, response: &Response) {
    let body = response.json();
    assert_eq!(body["statusCode"], response.status, "{name}");
    let id = response.header("X-Request-ID").expect(name);
    assert_eq!(body["requestId"], id, "{name}");
    for key in ["error", "message", "code"] {
        assert!(
            body[key].as_str().is_some_and(|text| !text.is_empty()),
            "{name}: {key} of {body}"
        );
    }
    let timestamp = body["timestamp"].as_str().unwrap();
    assert!(
        timestamp.parse::<jiff::Timestamp>().is_ok(),
        "{name}: {timestamp}"
    );
    assert_eq!(response.header("Cache-Control"), Some("no-store"), "{name}");
    assert_eq!(
        response.header("Content-Type"),
        Some("application/json; charset=utf-8"),
        "{name}"
    );
    assert_eq!(
        response.header("X-Content-Type-Options"),
        Some("nosniff"),
        "{name}"
    );
    assert_eq!(
        response.header("X-Frame-Options"),
        Some("SAMEORIGIN"),
        "{name}"
    );
    assert_eq!(
        response.header("X-XSS-Protection"),
        Some("1; mode=block"),
        "{name}"
    );
    assert!(
        response.header("Strict-Transport-Security").is_none(),
        "{name}"
    );
    assert!(
        response.header("Content-Security-Policy").is_some(),
        "{name}"
    );
}

/// Answers with what has come.
fn tell(seen: &Recorded) -> Reply {
    Reply::json(json!({"target": seen.target, "body": String::from_utf8_lossy(&seen.body)}))
}

fn yaml(echo: &Upstream) -> String {
    format!(
        "health: {{ enabled: false }}
services: {{ echo: {{ url: {} }} }}
routes:
  - {{ path: /open/*, service: echo, auth: public, limits: [] }}
  - {{ path: /closed/*, service: echo, auth: token, limits: [] }}
",
        echo.url()
    )
}
