//! HTTP/2 from clients: every request is judged, answered, logged and counted as one over HTTP/1 is, and what befalls one
//! stream does not touch its siblings.

use bytes::Bytes;
use h2::Reason;

use crate::support::http2::raw::*;
use crate::support::http2::{Http2, run, send_all, whole};
use crate::support::prelude::*;

fn series(protocol: &str) -> String {
    format!(r#"downstream_requests_by_protocol_total{{protocol="{protocol}"}}"#)
}

#[test]
fn a_request_over_http2_is_answered_logged_and_counted_as_any() {
    let events = Upstream::start();
    let gateway = Gateway::platform()
        .env("EVENT_SERVICE_URL", events.url())
        .start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let request = client
            .request("GET", "/api/v1/events/42?x=1")
            .header("authorization", format!("Bearer {}", token::customer()))
            .header("x-request-id", "over-h2");
        let answer = client.fetch(request, b"").await.unwrap();
        assert_eq!((answer.status, answer.json()), (200, json!({"ok": true})));
        assert_eq!(answer.header("x-request-id"), Some("over-h2"));
        assert_eq!(answer.header("x-frame-options"), Some("SAMEORIGIN"));
        for hop in ["connection", "transfer-encoding", "keep-alive", "upgrade"] {
            assert_eq!(answer.header(hop), None);
        }
    });
    let [seen] = &events.wait_requests(1)[..] else {
        panic!("one request")
    };
    assert_eq!(seen.target, "/api/v1/events/42?x=1");
    assert_eq!(seen.header("x-tenant-id"), Some("t1"));
    assert_eq!(seen.header("host"), Some(&*events.addr().to_string()));
    assert_eq!(seen.header("x-original-ip"), Some("127.0.0.1"));
    assert_eq!(gateway.access_line("over-h2")["statusCode"], 200);
    gateway.wait_metric(&series("h2"), |count| count == 1.0);

    Request::get("/live").send_to(gateway.addr());
    gateway.wait_metric(&series("http/1.1"), |count| count == 1.0);
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
}

#[test]
fn bodies_of_any_size_go_both_ways_unharmed() {
    let upstream = Upstream::start_with(|request| Reply::status(200).body(request.body.clone()));
    let gateway = Conf::of(&[upstream.url()]).start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        for len in [1, 65_535, 65_536, 3_000_000] {
            let body = noise(len);
            let sized = client
                .request("PUT", "/s/sized")
                .header("content-length", len);
            for request in [sized, client.request("PUT", "/s/unsized")] {
                let answer = client.fetch(request, &body).await.unwrap();
                assert_eq!(answer.status, 200);
                assert!(answer.body == body, "{len}");
            }
        }
    });
}

#[test]
fn an_end_that_comes_by_itself_is_one_end() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        for body in ["", "body"] {
            for method in ["GET", "POST"] {
                let id = format!("{method}-{}", body.len());
                let request = client.request(method, "/s/x").header("x-request-id", &id);
                let (answer, mut stream) = client.begin(request, false).await;
                tokio::time::sleep(Duration::from_millis(20)).await; // the head goes on alone
                for piece in [body, "", ""] {
                    stream
                        .send_data(Bytes::from_static(piece.as_bytes()), false)
                        .unwrap();
                }
                stream.send_data(Bytes::new(), true).unwrap();
                assert_eq!(answer.await.unwrap().status(), 200);
                gateway.access_line(&id); // the connection to the backend is free again
            }
        }
    });
    // All came on one connection: what stood behind one would have been the next one's beginning.
    let seen = upstream.wait_requests(4);
    let bodies: Vec<&[u8]> = seen.iter().map(|request| &request.body[..]).collect();
    assert_eq!(bodies, [&b""[..], b"", b"body", b"body"]);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_short_http1_request_and_a_slow_one_are_not_taken_for_http2() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    for beginning in ["P", "PR", "PRI", "G"] {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(beginning.as_bytes());
        std::thread::sleep(Duration::from_millis(20));
        let rest = format!("{} / HTTP/1.0\r\n\r\n", "X");
        connection.send(rest.as_bytes());
        assert_eq!(connection.read_response().status, 404, "{beginning}");
    }
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n");
    assert_eq!(connection.read_response().status, 505);
}

#[test]
fn http2_can_be_turned_off() {
    let upstream = Upstream::start();
    let conf = Conf::of(&[upstream.url()]).top("server", "{ http2: { enabled: false } }");
    let gateway = conf.start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(PREFACE);
    assert_eq!(connection.read_response().status, 505);
}

#[test]
fn an_upgrade_to_h2c_is_not_made() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let response = Request::get("/s/x")
        .header("Connection", "Upgrade, HTTP2-Settings")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAMAAABkAAQAAP__")
        .send_to(gateway.addr());
    assert_ne!(response.status, 101);
    for seen in upstream.requests() {
        assert_eq!(seen.header("upgrade"), None);
        assert_eq!(seen.header("http2-settings"), None);
    }
}

#[test]
fn a_malformed_head_is_refused_on_its_stream_alone_with_our_answer() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let field = |name, value| [get("/s/x"), vec![(name, value)]].concat();
    let no_authority = get("/s/x")[..3].to_vec();
    let long = format!("/s/{}", "x".repeat(9 << 10));
    let large = "x".repeat(33 << 10);
    let many = [get("/s/x"), vec![("x", "y"); 101]].concat();
    let mut connect = post("/s/x");
    connect[0].1 = "CONNECT";
    let cases: Vec<(Vec<(&str, &str)>, u16)> = vec![
        (field("host", "b"), 400),
        ([field("host", "a"), vec![("host", "a")]].concat(), 400),
        (no_authority.clone(), 400),
        ([no_authority, vec![("host", "a b")]].concat(), 400),
        ([&get("/s/x")[..3], &[(":authority", "a@b")]].concat(), 400),
        ([&get("/s/x")[..3], &[(":authority", "a:x")]].concat(), 400),
        (
            [&[(":scheme", "ftp")], &get("/s/x")[..1], &get("/s/x")[2..]].concat(),
            400,
        ),
        (get("/s/\"x"), 400),
        (get("/s/\u{e9}"), 400),
        (get("*"), 400),
        (get("http://a/s/x"), 400),
        (field("content-length", "+0"), 400),
        (field("x", " y"), 400),
        (field("x", "y "), 400),
        (field("expect", "tea"), 417),
        (get(&long), 414),
        (field("x", &large), 431),
        (many, 431),
    ];
    let mut stream = 1;
    for (fields, status) in &cases {
        raw.frames(&in_pieces(stream, &block(fields)));
        let answer = raw.find(Duration::from_secs(5), |f| {
            f.stream == stream && matches!(f.kind, DATA | RST_STREAM | GOAWAY)
        });
        let answer = answer.unwrap_or_else(|| panic!("no answer to {fields:?}"));
        // What h2 finds malformed first is reset (RFC 9113, section 8.1.1).
        if answer.kind == DATA {
            let json: Value = serde_json::from_slice(&answer.payload).unwrap();
            assert_eq!(json["statusCode"], *status, "{fields:?}");
            gateway.access_line(json["requestId"].as_str().unwrap());
        } else {
            assert_eq!(answer.error(), Some(PROTOCOL_ERROR), "{fields:?}");
            assert_eq!(*status, 400);
        }
        stream += 2;
    }
    raw.frame(&headers(stream, END_STREAM | END_HEADERS, &get("/s/well")));
    let answer = raw.wait("an answer", |f| f.stream == stream && f.kind == HEADERS);
    assert_eq!(answer.status(), Some(200), "the connection goes on");
    assert_eq!(upstream.count(), 1);
    gateway.wait_metric(
        r#"http_requests_total{method="OTHER",route="unmatched",status_code="414"}"#,
        |count| count == 1.0,
    );
}

/// A block in frames that are no larger than a peer may send.
fn in_pieces(stream: u32, block: &[u8]) -> Vec<Frame> {
    let pieces: Vec<&[u8]> = block.chunks(16 << 10).collect();
    let last = pieces.len() - 1;
    let piece = |(i, piece): (usize, &&[u8])| {
        let (kind, flags) = if i == 0 {
            (HEADERS, END_STREAM)
        } else {
            (CONTINUATION, 0)
        };
        let end = if i == last { END_HEADERS } else { 0 };
        Frame::new(kind, flags | end, stream, piece)
    };
    pieces.iter().enumerate().map(piece).collect()
}

#[test]
fn connect_is_refused() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let fields = [(":method", "CONNECT"), (":authority", "a:1")];
    raw.frame(&headers(1, END_HEADERS, &fields));
    let answer = raw.wait("an answer", |f| f.stream == 1 && f.kind == DATA);
    let json: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(json["statusCode"], 405);
    assert!(raw.is_alive());
}

#[test]
fn cookie_crumbs_reach_an_http1_backend_as_one_field() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).route("cookies", "true").start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let request = client.request("GET", "/s/x");
        let request = request.header("cookie", "a=1").header("cookie", "b=2");
        assert_eq!(client.fetch(request, b"").await.unwrap().status, 200);
    });
    assert_eq!(
        upstream.wait_requests(1)[0].header("cookie"),
        Some("a=1; b=2")
    );
}

#[test]
fn the_policies_hold_for_every_stream() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()])
        .route("body_limit", "1KiB")
        .and_route("{ path: /own/*, service: s, auth: token }")
        .start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let refused = client.get("/own/x").await;
        assert_eq!(
            (refused.status, &refused.json()["code"]),
            (401, &json!("AUTH_REQUIRED"))
        );
        assert!(refused.header("www-authenticate").is_some());
        assert_eq!(client.get("/nowhere").await.status, 404);
        assert_eq!(client.get("/s/%2e%2e/x").await.status, 400);

        let announced = client
            .request("POST", "/s/x")
            .header("content-length", 2000);
        let answer = client.fetch(announced, &[b'x'; 2000]).await.unwrap();
        assert_eq!(answer.status, 413);
        let (answer, mut body) = client.begin(client.request("POST", "/s/x"), false).await;
        let _ = send_all(&mut body, Bytes::from(vec![b'x'; 5000]), false).await;
        assert_eq!(answer.await.unwrap().status(), 413, "without an end");

        // A body that names venues is held until it is judged.
        let bearer = format!("Bearer {}", token::customer());
        let foreign = client
            .request("POST", "/own/x")
            .header("authorization", bearer);
        let body = br#"{"venueId":"not-mine"}"#;
        let foreign = foreign
            .header("content-type", "application/json")
            .header("content-length", body.len());
        let answer = client.fetch(foreign, body).await.unwrap();
        assert_eq!(answer.status, 404);
        assert_eq!(client.get("/s/well").await.status, 200);
    });
    let whole = upstream.requests().into_iter().filter(|r| r.complete);
    let targets: Vec<String> = whole.map(|r| r.target).collect();
    assert_eq!(targets, ["/s/well"]);
}

#[test]
fn a_body_that_trickles_is_refused_and_a_stream_of_messages_may_be_silent() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()])
        .top("server", "{ client_timeout: 2s }")
        .service("timeout", "60s")
        .and_route("{ path: /stream/*, service: s, auth: public, idle_timeout: 30s }")
        .start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let (answer, mut body) = client.begin(client.request("POST", "/s/slow"), false).await;
        let trickle = async {
            while body.send_data(Bytes::from_static(b"x"), false).is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let refused = async { whole(answer.await.unwrap()).await.unwrap() };
        let answer = tokio::select! {
            answer = refused => answer,
            () = trickle => panic!("the stream ended without an answer"),
        };
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (408, &json!("REQUEST_TIMEOUT"))
        );
        let call = client
            .request("POST", "/stream/x")
            .header("content-type", "application/grpc");
        let (answer, mut body) = client.begin(call, false).await;
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        // Longer than any gap in an ordinary body may be.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        body.send_data(Bytes::from_static(b"again"), true).unwrap();
        assert_eq!(whole(answer.await.unwrap()).await.unwrap().status, 200);
    });
    let whole = upstream.requests().into_iter().find(|r| r.complete);
    assert_eq!(whole.unwrap().body, b"helloagain");
}

#[test]
fn a_body_that_does_not_come_is_refused_on_its_stream() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()])
        .top("server", "{ client_timeout: 300ms }")
        .start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let (answer, mut body) = client.begin(client.request("POST", "/s/slow"), false).await;
        body.send_data(Bytes::from_static(b"begin"), false).unwrap();
        let answer = whole(answer.await.unwrap()).await.unwrap();
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (408, &json!("REQUEST_TIMEOUT"))
        );
        assert_eq!(client.get("/s/well").await.status, 200);
    });
}

#[test]
fn who_resets_a_read_drops_it_and_who_resets_a_write_does_not() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    upstream.hold();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        for (method, id) in [("GET", "a-read"), ("POST", "a-write")] {
            let request = client.request(method, "/s/x").header("x-request-id", id);
            let (_answer, mut stream) = client.begin(request, false).await;
            stream.send_data(Bytes::new(), true).unwrap();
            tokio::task::yield_now().await;
            upstream_has(&upstream, if id == "a-read" { 1 } else { 2 }).await;
            stream.send_reset(Reason::CANCEL);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert_eq!(gateway.access_line("a-read")["statusCode"], 499);
    assert_eq!(
        gateway.access_lines_of("a-write"),
        0,
        "its answer is awaited"
    );
    upstream.release();
    gateway.access_line("a-write");
}

async fn upstream_has(upstream: &Upstream, count: usize) {
    while upstream.count() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn what_fails_behind_one_stream_leaves_the_connection_open() {
    let upstream = Upstream::start_with(|request| match &*request.target {
        "/s/reset" => Reply::reset(),
        "/s/hang" => Reply::hang(),
        _ => Reply::status(200).body("well"),
    });
    let gateway = Conf::of(&[upstream.url()])
        .route("timeout", "300ms")
        .top("retry", "{ max_retries: 0 }")
        .start();
    run(async {
        let (client, connection) = Http2::connect(gateway.addr()).await;
        let (reset, hang) = (client.get("/s/reset"), client.get("/s/hang"));
        let (reset, hang, well) = futures::join!(reset, hang, client.get("/s/well"));
        assert_eq!((reset.status, hang.status, well.status), (502, 504, 200));
        assert_eq!(client.get("/s/well").await.status, 200);
        assert!(!connection.is_finished());
    });
}

#[test]
fn an_answer_that_breaks_off_is_reset_and_not_ended() {
    let upstream = Upstream::start_with(|_| {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly the beginning";
        Reply::raw(head).then_reset()
    });
    let gateway = Conf::of(&[upstream.url()]).start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let broken = client
            .fetch(client.request("GET", "/s/x"), b"")
            .await
            .unwrap_err();
        assert_eq!(broken.reason(), Some(Reason::INTERNAL_ERROR));
        assert!(broken.is_reset());
    });
}

#[test]
fn a_connection_drains_with_two_goaways_and_loses_nothing() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    upstream.hold();
    let mut raw = Raw::connect(gateway.addr());
    let mut idle = Raw::connect(gateway.addr());
    raw.frame(&headers(1, END_STREAM | END_HEADERS, &get("/s/x")));
    wait_until("the request is there", || upstream.heads_seen() == 1);
    gateway.signal(15);
    let first = raw.wait("a GOAWAY", |f| f.kind == GOAWAY);
    assert_eq!(first.payload[..4], [0x7f, 0xff, 0xff, 0xff]);
    assert_eq!(first.error(), Some(NO_ERROR));
    // It was on its way already.
    raw.frame(&headers(3, END_STREAM | END_HEADERS, &get("/s/y")));
    let ping = raw.wait("a PING", |f| f.kind == PING && f.flags == 0);
    raw.frame(&Frame::new(PING, ACK, 0, &ping.payload));
    let second = raw.wait("the last GOAWAY", |f| f.kind == GOAWAY);
    assert_eq!(second.payload[..4], [0, 0, 0, 3]);
    upstream.release();
    // In whatever order they come.
    let mut answered: Vec<_> = (0..2)
        .map(|_| raw.wait("an answer", |f| f.kind == HEADERS))
        .map(|answer| (answer.stream, answer.status()))
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, [(1, Some(200)), (3, Some(200))]);
    let since = Instant::now();
    assert!(raw.closes(Duration::from_secs(2)));
    assert!(
        idle.closes(Duration::from_secs(2)),
        "it does not answer our PING"
    );
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    assert!(since.elapsed() < Duration::from_secs(2));
}

#[test]
fn idle_connections_and_slow_heads_have_their_time() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()])
        .top(
            "server",
            "{ header_timeout: 300ms, keepalive_timeout: 800ms }",
        )
        .start();
    let took = |raw: &mut Raw, since: Instant| {
        assert!(raw.closes(Duration::from_secs(3)));
        since.elapsed()
    };
    let since = Instant::now();
    let mut silent = Raw::tcp(gateway.addr());
    silent.send(PREFACE);
    assert!(
        (200..700).contains(&took(&mut silent, since).as_millis()),
        "no request"
    );

    let mut idle = Raw::connect(gateway.addr());
    idle.frame(&headers(1, END_STREAM | END_HEADERS, &get("/s/x")));
    idle.wait("an answer", |f| f.kind == HEADERS);
    let since = Instant::now();
    assert_eq!(
        idle.wait("a GOAWAY", |f| f.kind == GOAWAY).error(),
        Some(NO_ERROR)
    );
    assert!(
        (600..1500).contains(&took(&mut idle, since).as_millis()),
        "idle"
    );

    // A header block that trickles, on a connection that has been of use.
    let mut slow = Raw::connect(gateway.addr());
    slow.frame(&headers(1, END_STREAM | END_HEADERS, &get("/s/x")));
    slow.wait("an answer", |f| f.kind == HEADERS);
    let since = Instant::now();
    let whole = headers(3, END_STREAM | END_HEADERS, &get("/s/x")).bytes();
    slow.send(&whole[..10]);
    for octet in &whole[10..50] {
        slow.send(&[*octet]);
        if slow
            .read(Duration::from_millis(50))
            .is_some_and(|f| f.kind == GOAWAY)
        {
            break;
        }
    }
    assert!(
        (200..1000).contains(&since.elapsed().as_millis()),
        "slow head"
    );
    gateway.wait_metric(
        r#"downstream_http2_closed_total{reason="slow_head"}"#,
        |n| n == 1.0,
    );
}

#[test]
fn trailers_of_an_http1_backend_and_interim_answers_do_no_harm() {
    let upstream = Upstream::start_with(|_| {
        Reply::raw(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
              Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\r\n4\r\nwell\r\n0\r\nX-Sum: 1\r\n\r\n",
        )
    });
    let gateway = Conf::of(&[upstream.url()]).start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        for _ in 0..3 {
            let answer = client.get("/s/x").await;
            assert_eq!((answer.status, &answer.body[..]), (200, &b"well"[..]));
            assert_eq!(answer.header("x-hop"), None);
            assert_eq!(answer.header("keep-alive"), None);
        }
    });
}

#[test]
fn a_client_that_awaits_100_continue_is_told() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let fields = [post("/s/x"), vec![("expect", "100-continue")]].concat();
    raw.frame(&headers(1, END_HEADERS, &fields));
    let interim = raw.wait("100", |f| f.stream == 1 && f.kind == HEADERS);
    assert_eq!(interim.flags & END_STREAM, 0);
    raw.frame(&Frame::new(DATA, END_STREAM, 1, b"body"));
    let answer = raw.wait("an answer", |f| f.stream == 1 && f.kind == HEADERS);
    assert_eq!(answer.status(), Some(200));
}

#[test]
fn faults_in_its_configuration_are_named() {
    let exit = Conf::of(&["http://127.0.0.1:1".to_owned()])
        .top("server", "{ http2: { max_streams: 0, window: 1KiB } }")
        .gateway()
        .arg("--test")
        .run_to_exit();
    assert_eq!(exit.code, 1);
    for fault in ["server.http2.max_streams", "server.http2.window"] {
        assert!(exit.stderr.contains(fault), "{}", exit.stderr);
    }
}
