//! HTTP/2 to backends: many requests share a connection, and none of them pays for what another one meets.

use std::io::Write;
use std::net::TcpListener;

use h2::Reason;

use crate::support::http2::raw::*;
use crate::support::http2::{Http2, Http2Upstream, Play, run};
use crate::support::prelude::*;

fn conf(upstream: &Http2Upstream) -> Conf {
    Conf::of(&[upstream.url()]).service("http2", "true")
}

#[test]
fn requests_of_both_protocols_share_a_connection_to_the_backend() {
    let upstream = Http2Upstream::start(|_| Play::slow(&[(Duration::from_millis(200), "well")]));
    // Each thread has connections of its own.
    let gateway = conf(&upstream).gateway().env("SERVER_THREADS", 1).start();
    // The first one opens the connection.
    assert_eq!(Request::get("/s/first").send_to(gateway.addr()).status, 200);
    let since = Instant::now();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let gets = (0..50).map(|_| client.get("/s/h2"));
        for answer in futures::future::join_all(gets).await {
            assert_eq!((answer.status, &answer.body[..]), (200, &b"well"[..]));
        }
    });
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "they went side by side"
    );
    assert!(
        upstream.connections() <= 25,
        "{} connections for 51 requests",
        upstream.connections()
    );
    let seen = &upstream.seen()[0];
    assert_eq!(format!("http://{}", seen.authority), upstream.url());
    assert_eq!(
        (&*seen.method, &*seen.target, &*seen.scheme),
        ("GET", "/s/first", "http")
    );
    assert_eq!(seen.headers["x-gateway-forwarded"], "true");
    assert!(
        !seen.headers.contains_key("te"),
        "the client did not say so"
    );
}

#[test]
fn bodies_go_both_ways_over_http2_on_both_sides() {
    let upstream = Http2Upstream::start(|_| Play::Answer {
        status: 200,
        headers: Vec::new(),
        pieces: vec![(Duration::ZERO, noise(1_000_000).into()); 2],
        trailers: Vec::new(),
    });
    let gateway = conf(&upstream).start();
    let (up, down) = (noise(2_000_000), noise(1_000_000).repeat(2));
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let answer = client.fetch(client.request("PUT", "/s/x"), &up).await;
        assert!(answer.unwrap().body == down);
    });
    let request = Request::method("PUT", "/s/x").body(up.clone());
    assert!(
        request.send_to(gateway.addr()).body == down,
        "to an HTTP/1 client"
    );
    for seen in upstream.seen() {
        assert!(seen.is_whole && seen.body == up);
    }
}

#[test]
fn a_slow_request_is_504_in_time_and_its_siblings_do_not_notice() {
    let upstream = Http2Upstream::start(|seen| match &*seen.target {
        "/s/hang" => Play::Hang,
        "/s/trickle" => Play::slow(&[(Duration::from_millis(100), "drop "); 100]),
        _ => Play::slow(&[(Duration::from_millis(700), "well")]),
    });
    let gateway = conf(&upstream)
        .route("timeout", "400ms")
        .top("retry", "{ max_retries: 0 }")
        .and_route("{ path: /long/*, service: s, auth: public, target: /long/*, timeout: 5s }")
        .start();
    Request::get("/long/open").send_to(gateway.addr());
    let over_http1 = || {
        let since = Instant::now();
        let hang = Request::get("/s/hang").send_to(gateway.addr());
        (hang.status, since.elapsed())
    };
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let siblings = futures::future::join_all((0..10).map(|_| client.get("/long/x")));
        let since = Instant::now();
        let hang = async { (client.get("/s/hang").await, since.elapsed()) };
        let trickle = client.fetch(client.request("GET", "/s/trickle"), b"");
        let trickle = async { (trickle.await, since.elapsed()) };
        let (siblings, (hang, hung), (trickle, trickled)) = futures::join!(siblings, hang, trickle);
        assert_eq!(
            (hang.status, &hang.json()["code"]),
            (504, &json!("GATEWAY_TIMEOUT"))
        );
        assert!((380..650).contains(&hung.as_millis()), "{hung:?}");
        assert_eq!(trickle.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
        assert!((380..650).contains(&trickled.as_millis()), "{trickled:?}");
        for sibling in siblings {
            assert_eq!((sibling.status, &sibling.body[..]), (200, &b"well"[..]));
        }
    });
    let (status, took) = over_http1();
    assert_eq!(status, 504);
    assert!((380..650).contains(&took.as_millis()), "{took:?}");
    let resets = || {
        upstream
            .seen()
            .iter()
            .filter(|seen| seen.reset.is_some())
            .count()
    };
    wait_until("the three streams are reset", || resets() == 3);
    // Who asks while another takes a stream of it finds no connection, and opens one: Pingora has it so.
    let connections = upstream.connections();
    assert!(connections < 14, "{connections} for 14 requests");
}

#[test]
fn slow_readers_whose_time_is_over_do_not_cost_the_others_their_connection() {
    const PIECE: usize = 64 << 10;
    let upstream = Http2Upstream::start(|seen| match &*seen.target {
        "/s/large" => Play::Answer {
            status: 200,
            headers: Vec::new(),
            pieces: vec![(Duration::from_millis(1), noise(PIECE).into()); 400],
            trailers: Vec::new(),
        },
        _ => Play::ok("well"),
    });
    let conf = conf(&upstream).route("timeout", "700ms");
    let gateway = conf.gateway().env("SERVER_THREADS", 1).start();
    assert_eq!(Request::get("/s/open").send_to(gateway.addr()).status, 200);
    for turn in 1..=4 {
        let mut slow = Client::to(gateway.addr()).connect();
        slow.send(&Request::get("/s/large").bytes());
        let since = Instant::now();
        while slow.read_up_to(PIECE).len() == PIECE {
            std::thread::sleep(Duration::from_millis(10)); // 6 MB a second, of 26
        }
        assert!(since.elapsed() < Duration::from_secs(4));
        let reset = || upstream.seen().iter().filter(|s| s.reset.is_some()).count();
        wait_until("the stream is reset", || reset() == turn);
        assert_eq!(Request::get("/s/next").send_to(gateway.addr()).status, 200);
    }
    assert_eq!(upstream.connections(), 1, "for all of them");
}

#[test]
fn an_http10_client_gets_a_body_without_a_length_until_the_connection_ends() {
    let upstream = Http2Upstream::start(|seen| match &*seen.target {
        "/s/sized" => Play::Answer {
            status: 200,
            headers: vec![("content-length", "4".to_owned())],
            pieces: vec![(Duration::ZERO, "well".into())],
            trailers: Vec::new(),
        },
        _ => Play::slow(&[
            (Duration::ZERO, "we"),
            (Duration::from_millis(50), "l"),
            (Duration::from_millis(50), "l"),
        ]),
    });
    let gateway = conf(&upstream).start();
    for target in ["/s/pieces", "/s/sized"] {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&Request::get(target).http_1_0().bytes());
        let answer = String::from_utf8(connection.read_to_end()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        assert!(head.contains("x-request-id"), "{head}");
        assert_eq!(body, "well", "{target}");
    }
    let told = gateway.log_lines();
    let told: Vec<&Value> = told.iter().filter(|line| line["level"] == "warn").collect();
    assert!(told.is_empty(), "{told:?}");
}

/// What a client may do behind its request without having taken it back.
#[derive(Clone, Copy, Debug)]
enum Behind {
    End,
    AnotherRequest,
}

#[test]
fn an_attempt_ends_in_time_whatever_its_client_did_behind_the_request() {
    for behind in [Behind::End, Behind::AnotherRequest] {
        let is_first = std::sync::atomic::AtomicBool::new(true);
        let hangs = move || is_first.swap(false, std::sync::atomic::Ordering::SeqCst);
        let hanging = Http2Upstream::start(move |_| match hangs() {
            true => Play::Hang,
            false => Play::ok("well"),
        });
        let gateway = conf(&hanging)
            .top("timeouts", "{ attempt_cap: 300ms }")
            .top("retry", "{ base_delay: 10ms, max_delay: 10ms }")
            .start();
        let since = Instant::now();
        let mut connection = Client::to(gateway.addr()).connect();
        let put = Request::method("PUT", "/s/price");
        connection.send(&put.body("100").bytes());
        wait_until("the first attempt is there", || !hanging.seen().is_empty());
        match behind {
            Behind::End => connection.finish_sending(),
            Behind::AnotherRequest => connection.send(&Request::get("/s/next").bytes()),
        }
        let answer = connection.read_response();
        assert_eq!(
            (answer.status, &answer.body[..]),
            (200, &b"well"[..]),
            "{behind:?}"
        );
        let took = since.elapsed();
        assert!(took < Duration::from_secs(3), "{behind:?}: {took:?}");
        assert!(
            connection.is_closed(),
            "{behind:?}: what came early is sent again"
        );
        assert_eq!(hanging.seen().len(), 2, "{behind:?}");
    }
}

#[test]
fn a_read_whose_client_goes_is_dropped_at_a_shared_connection_as_well() {
    let upstream = Http2Upstream::start(|_| Play::Hang);
    let gateway = conf(&upstream).start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::get("/s/x").bytes());
    wait_until("it is there", || !upstream.seen().is_empty());
    drop(connection);
    wait_until("the stream is reset", || {
        upstream.seen()[0].reset == Some(Reason::CANCEL)
    });
}

#[test]
fn a_backend_that_does_not_take_a_body_is_to_blame() {
    let upstream = Http2Upstream::start(|_| Play::Hang);
    let gateway = conf(&upstream).route("timeout", "400ms").start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let since = Instant::now();
        let body = vec![b'x'; 1_000_000];
        let answer = client
            .fetch(client.request("POST", "/s/x"), &body)
            .await
            .unwrap();
        assert_eq!(answer.status, 504);
        assert!((380..1500).contains(&since.elapsed().as_millis()));
    });
}

#[test]
fn a_client_that_goes_away_is_told_to_the_backend() {
    let upstream = Http2Upstream::start(|_| Play::Hang);
    let gateway = conf(&upstream).start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let (_answer, mut stream) = client.begin(client.request("GET", "/s/x"), false).await;
        while upstream.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.send_reset(Reason::CANCEL);
        while upstream.seen()[0].reset.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(upstream.seen()[0].reset, Some(Reason::CANCEL));
}

#[test]
fn what_was_not_processed_is_sent_again_whatever_it_is() {
    let upstream = Http2Upstream::start(|seen| match seen.headers.get("x-turn") {
        _ if seen.target == "/s/refused" && seen.connection == 1 => Play::Refuse,
        _ => Play::ok("well"),
    });
    let other = Http2Upstream::start(|_| Play::ok("other"));
    let gateway = Conf::of(&[upstream.url(), other.url()])
        .service("http2", "true")
        .start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        for _ in 0..4 {
            let request = client.request("POST", "/s/refused");
            let answer = client.fetch(request, b"payment").await.unwrap();
            assert_eq!((answer.status, &answer.body[..]), (200, &b"other"[..]));
        }
    });
    let bodies: Vec<Vec<u8>> = other.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, vec![b"payment".to_vec(); 4]);
    // What was begun is not: a POST that was reset may have been processed.
    let begun = Http2Upstream::start(|_| Play::Reset(Reason::INTERNAL_ERROR));
    let gateway = conf(&begun).start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let answer = client
            .fetch(client.request("POST", "/s/x"), b"payment")
            .await;
        assert_eq!(answer.unwrap().status, 502);
    });
    assert_eq!(begun.seen().len(), 1);
}

#[test]
fn a_backend_that_goes_away_in_order_costs_no_request() {
    // Each connection takes one request: the next one meets a GOAWAY that does not name it.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let backend = std::thread::spawn(move || {
        for turn in 0..2 {
            let mut raw = Raw::serve(listener.accept().unwrap().0);
            let head = raw.wait("a request", |f| f.kind == HEADERS);
            if turn == 0 {
                let last_stream = [0; 4];
                let goaway = [&last_stream[..], &NO_ERROR.to_be_bytes()].concat();
                raw.frame(&Frame::new(GOAWAY, 0, 0, goaway));
                raw.closes(Duration::from_secs(5));
            } else {
                raw.frame(&Frame::new(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    head.stream,
                    [0x88],
                ));
                raw.closes(Duration::from_secs(1));
            }
        }
    });
    let gateway = Conf::of(&[url]).service("http2", "true").start();
    let response = Request::method("POST", "/s/x")
        .body("payment")
        .send_to(gateway.addr());
    assert_eq!(response.status, 200);
    drop(gateway);
    backend.join().unwrap();
}

#[test]
fn health_is_asked_over_http2_as_well() {
    let upstream = Http2Upstream::start(|_| Play::ok("well"));
    let gateway = conf(&upstream).top("health", "{ interval: 100ms }").start();
    gateway.wait_metric(r#"upstream_healthy_instances{service="s"}"#, |healthy| {
        healthy == 1.0
    });
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    let checked = upstream.checked();
    wait_until("each check has a connection of its own", || {
        upstream.checked() >= checked + 3
    });
    // The one that is being asked on, and the request's.
    wait_until("none of them is kept", || upstream.open() <= 2);
}

#[test]
fn a_connection_whose_request_was_dropped_is_given_back_where_nobody_asks_any_more() {
    let upstream = Http2Upstream::start(|_| Play::Hang);
    let conf = format!(
        "limits: {{ enabled: false }}
health: {{ enabled: false }}
services: {{ s: {{ url: '{}', http2: true }} }}
routes:
- path: /page
  service: s
  auth: public
  methods: [GET]
  timeout: 30s
  aggregate: {{ sources: {{ one: {{ service: s, path: /x }} }} }}
",
        upstream.url()
    );
    let gateway = Gateway::with(&conf).start();
    let mut client = Client::to(gateway.addr()).connect();
    client.send(&Request::get("/page").bytes());
    wait_until("the source is asked", || upstream.seen().len() == 1);
    drop(client);
    wait_until("it is told to the backend", || {
        upstream.seen()[0].reset.is_some()
    });
    // After the 4 s that an idle connection has.
    let closed = within(Duration::from_secs(10), || {
        (upstream.open() == 0).then_some(())
    });
    assert!(closed.is_some(), "{} are open", upstream.open());
}

#[test]
fn a_backend_that_speaks_only_http1_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let backend = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let gateway = Conf::of(&[url])
        .service("http2", "true")
        .top("retry", "{ max_retries: 0 }")
        .start();
    let status = Request::get("/s/x").send_to(gateway.addr()).status;
    assert!(matches!(status, 502 | 503), "{status}");
    backend.join().unwrap();
}

#[test]
fn trailers_come_through_and_te_is_said_only_to_http2_backends() {
    let upstream = Http2Upstream::start(|_| Play::Answer {
        status: 200,
        headers: vec![("trailer", "x-sum".into())],
        pieces: vec![(Duration::ZERO, "well".into())],
        trailers: vec![("x-sum", "1".into())],
    });
    let old = Upstream::start();
    let gateway = conf(&upstream).and_service("old", &old.url(), "").start();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let request = || client.request("GET", "/s/x").header("te", "trailers");
        let answer = client.fetch(request(), b"").await.unwrap();
        assert_eq!(answer.trailers.unwrap()["x-sum"], "1");
        let answer = client.fetch(
            client.request("GET", "/old/x").header("te", "trailers"),
            b"",
        );
        assert_eq!(answer.await.unwrap().status, 200);
    });
    assert_eq!(upstream.seen()[0].headers["te"], "trailers");
    assert_eq!(old.wait_requests(1)[0].header("te"), None);
    assert_eq!(
        Request::get("/s/x").send_to(gateway.addr()).status,
        200,
        "without them"
    );
}

#[test]
fn a_stream_is_cut_when_its_caller_is_revoked_and_its_siblings_go_on() {
    let redis = Redis::start();
    let upstream = Http2Upstream::start(|seen| match &*seen.target {
        "/own/stream" => Play::Answer {
            status: 200,
            headers: vec![("content-type", "text/event-stream".into())],
            pieces: vec![(Duration::from_millis(50), "data: x\n\n".into()); 200],
            trailers: Vec::new(),
        },
        _ => Play::slow(&[(Duration::from_millis(1500), "well")]),
    });
    let gateway = conf(&upstream)
        .top(
            "redis",
            &format!("{{ host: 127.0.0.1, port: {} }}", redis.addr().port()),
        )
        .and_route("{ path: /own/*, service: s, auth: token, timeout: 20s, idle_timeout: 5s }")
        .start();
    let token = token::customer();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        let request = client.request("GET", "/own/stream");
        let request = request.header("authorization", format!("Bearer {token}"));
        let (answer, _) = client.begin(request, true).await;
        let mut body = answer.await.unwrap().into_body();
        assert!(body.data().await.unwrap().is_ok());
        let sibling = tokio::spawn({
            let client = client.clone();
            async move { client.get("/s/sibling").await.status }
        });
        redis.command(&[
            "SET",
            &format!("session:blacklist:{token}"),
            "1",
            "EX",
            "60",
        ]);
        let since = Instant::now();
        let end = loop {
            match body.data().await {
                Some(Ok(data)) => body.flow_control().release_capacity(data.len()).unwrap(),
                Some(Err(e)) => break e.reason(),
                None => panic!("it ended as if it were whole"),
            }
        };
        assert_eq!(end, Some(Reason::INTERNAL_ERROR));
        assert!(since.elapsed() < Duration::from_secs(2));
        assert_eq!(sibling.await.unwrap(), 200);
    });
    wait_until("the backend's stream is reset", || {
        upstream.seen().iter().any(|seen| seen.reset.is_some())
    });
}
