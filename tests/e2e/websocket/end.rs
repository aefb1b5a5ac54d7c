//! How a WebSocket ends: by itself, and when it has to.

use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::*;

const TERM: i32 = 15;

#[test]
fn the_ends_close_it_themselves_and_the_log_says_how() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat).route("auth", "token").start();
    let token = token::customer();
    let by = |id: &str| {
        [
            ("Authorization".to_owned(), format!("Bearer {token}")),
            ("X-Request-ID".to_owned(), id.to_owned()),
        ]
    };
    let started = Instant::now();
    let fields = by("orderly");
    let fields: Vec<(&str, &str)> = fields
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    let mut socket = open(gateway.addr(), "/s/a", &fields);
    gateway.wait_metric(r#"streams_open{kind="websocket"}"#, |n| n == 1.0);
    echoes(&mut socket, "hello");
    let close = CloseFrame {
        code: 4001.into(),
        reason: "enough".into(),
    };
    socket.close(Some(close)).unwrap();
    assert_eq!(closed_with(&mut socket), 4001);
    chat.wait_visit(0, |visit| visit.close == Some(4001) && visit.over);
    let line = gateway.access_line("orderly");
    for (field, value) in [
        ("protocol", json!("websocket")),
        ("closeCode", json!(4001)),
        ("statusCode", json!(101)),
        ("userId", json!("u1")),
        ("upstreamService", json!("s")),
        // A text frame of five bytes, and a Close of eight; a client's have a mask of four.
        ("requestBytes", json!(6 + 5 + 6 + 8)),
        ("responseBytes", json!(2 + 5 + 2 + 8)),
        ("err", Value::Null),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    let told = line["responseTime"].as_f64().unwrap();
    assert!(told <= started.elapsed().as_secs_f64() * 1000.0, "{line}");

    let mut gone = open(
        gateway.addr(),
        "/s/a",
        &[(fields[0].0, fields[0].1), ("X-Request-ID", "gone")],
    );
    echoes(&mut gone, "hello");
    drop(gone);
    chat.wait_visit(1, |visit| visit.over && visit.close.is_none());
    assert_eq!(gateway.access_line("gone")["closeCode"], 1006);
    gateway.wait_metric(r#"streams_open{kind="websocket"}"#, |n| n == 0.0);
    let opened = gateway.metric(r#"downstream_requests_by_protocol_total{protocol="websocket"}"#);
    assert_eq!(opened, 2.0);
    let other = gateway.metric(r#"downstream_requests_by_protocol_total{protocol="http/1.1"}"#);
    assert_eq!(other, 0.0, "each counts once");
    let series = r#"http_requests_total{method="GET",route="/s/*",status_code="101"}"#;
    assert_eq!(gateway.metric(series), 2.0);
}

#[test]
fn a_process_that_drains_tells_both_ends_after_the_grace_and_exits() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .top("streams", "{ drain_grace: 500ms }")
        .start();
    let mut sockets: Vec<Socket> = (0..10).map(|_| open(gateway.addr(), "/s/a", &[])).collect();
    for socket in &mut sockets {
        echoes(socket, "before");
    }
    let told = Instant::now();
    gateway.signal(TERM);
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("told to end"))
    });
    echoes(&mut sockets[0], "within the grace");
    for socket in &mut sockets {
        assert_eq!(closed_with(socket), 1001);
    }
    took(
        "the Close",
        told,
        Duration::from_millis(450),
        Duration::from_secs(2),
    );
    for i in 0..sockets.len() {
        chat.wait_visit(i, |visit| visit.close == Some(1001) && visit.over);
    }
    assert_eq!(gateway.wait_exit(Duration::from_secs(2)), Some(0));
    took(
        "all of it",
        told,
        Duration::from_millis(450),
        Duration::from_secs(3),
    );
}

#[test]
fn a_grace_that_a_reload_makes_longer_still_ends_before_the_process() {
    let chat = Chat::start();
    let conf = |shutdown: &str, grace: &str| {
        in_front_of(&chat)
            .top("server", &format!("{{ shutdown_timeout: {shutdown} }}"))
            .top("streams", &format!("{{ drain_grace: {grace} }}"))
    };
    let gateway = conf("3s", "100ms").start();
    gateway.rewrite_conf(&conf("60s", "30s").yaml());
    let told = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(
        (&told.json()["changes"], &told.json()["needsRestart"]),
        (
            &json!(["streams.drain_grace: changed"]),
            &json!(["server.shutdown_timeout"])
        )
    );
    let mut socket = open(gateway.addr(), "/s/a", &[]);
    echoes(&mut socket, "before");
    gateway.signal(TERM);
    assert_eq!(closed_with(&mut socket), 1001);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn ends_that_do_not_answer_do_not_hold_up_the_exit() {
    let hung = Upstream::start_with(|_| {
        Reply::raw(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        ))
        .then_hang()
    });
    let gateway = Conf::at(&[hung.addr()])
        .top("streams", "{ drain_grace: 100ms }")
        .route("websocket", "{}")
        .start();
    let mut connection = open_raw(gateway.addr(), "/s/a");
    let told = Instant::now();
    gateway.signal(TERM);
    assert_eq!(read_close(&mut connection), 1001);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    took(
        "the exit",
        told,
        Duration::from_secs(1),
        Duration::from_secs(3),
    );
}

#[test]
fn a_close_of_ours_never_stands_within_a_frame() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .top("streams", "{ drain_grace: 0s }")
        .start();
    let mut connection = open_raw(gateway.addr(), "/s/a");
    let payload = noise(10_000);
    let frame = client_frame(0x82, &payload);
    let (first, rest) = frame.split_at(5_000);
    connection.send(first);
    chat.wait_visit(0, |_| true);
    gateway.signal(TERM);
    assert_eq!(
        read_close(&mut connection),
        1001,
        "no frame is under way to the client"
    );
    // What follows the frame at hand is for nobody.
    connection.send(
        &[
            rest,
            &client_frame(0x82, b"too late"),
            &client_frame(0x88, &[3, 233]),
        ]
        .concat(),
    );
    let visit = chat.wait_visit(0, |visit| visit.over);
    assert_eq!(visit.close, Some(1001));
    assert!(
        visit.messages == [payload],
        "the frame at hand is whole, and the last"
    );
    assert!(connection.is_closed());
    assert_eq!(gateway.wait_exit(Duration::from_secs(3)), Some(0));
}

#[test]
fn a_revoked_user_and_a_changed_key_are_told_so() {
    let redis = Redis::start();
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .route("auth", "token-or-key")
        .gateway()
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .start();
    wait_until("redis is followed", || {
        Request::get("/ready").send_to(gateway.addr()).json()["checks"]["redis"] == "ok"
    });
    let token = Token::user("u1").hs256();
    let record = |permission: &str| {
        format!(r#"{{"id":"partner","tenant_id":"t1","permissions":["{permission}"]}}"#)
    };
    redis.command(&["SET", "apikey:plain-key", &record("a:view")]);
    let mut bystander = open_as(gateway.addr(), "/s/a", &Token::user("u2").hs256());
    let mut holds = open(gateway.addr(), "/s/a", &[("X-API-Key", "plain-key")]);
    let mut bears = open_as(gateway.addr(), "/s/a", &token);
    let by_protocol = format!("bearer, {token}");
    let mut in_protocol = open(
        gateway.addr(),
        "/s/a",
        &[("Sec-WebSocket-Protocol", &by_protocol)],
    );
    let mut both = open(
        gateway.addr(),
        "/s/a",
        &[
            (
                "Authorization",
                &format!("Bearer {}", Token::user("u3").hs256()),
            ),
            ("X-API-Key", "plain-key"),
        ],
    );
    redis.command(&["SET", &format!("session:blacklist:{token}"), "1"]);
    assert_eq!(closed_with(&mut bears), 1008);
    assert_eq!(closed_with(&mut in_protocol), 1008);
    // The same record once more changes nothing.
    redis.command(&["SET", "apikey:plain-key", &record("a:view")]);
    for socket in [&mut holds, &mut both, &mut bystander] {
        for _ in 0..50 {
            echoes(socket, "still here");
        }
    }
    redis.command(&["SET", "apikey:plain-key", &record("b:view")]);
    assert_eq!(closed_with(&mut holds), 1008, "its permissions are others");
    assert_eq!(closed_with(&mut both), 1008, "both must allow it");
    let mut again = open(gateway.addr(), "/s/a", &[("X-API-Key", "plain-key")]);
    redis.command(&["DEL", "apikey:plain-key"]);
    assert_eq!(closed_with(&mut again), 1008, "it is gone");
    echoes(&mut bystander, "still here");
    for i in 1..=5 {
        chat.wait_visit(i, |visit| visit.close == Some(1008) && visit.over);
    }
}

#[test]
fn a_socket_ends_when_its_callers_credentials_are_over() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat).route("auth", "token").start();
    // Tokens count five seconds longer than they say.
    let started = Instant::now();
    let mut short = open_as(
        gateway.addr(),
        "/s/a",
        &Token::user("u1").expires_in(-3).hs256(),
    );
    let mut long = open_as(gateway.addr(), "/s/a", &token::customer());
    let sender = std::thread::spawn(move || {
        let mut flows = 0;
        loop {
            if short.send(Message::text("flows")).is_err() {
                return (flows, None);
            }
            match short.read() {
                Ok(Message::Close(close)) => {
                    return (flows, close.map(|close| u16::from(close.code)));
                }
                Ok(_) => flows += 1,
                Err(Error::ConnectionClosed) => return (flows, None),
                Err(error) => panic!("{error}"),
            }
        }
    });
    let (flows, code) = sender.join().unwrap();
    assert_eq!(code, Some(1008), "after {flows} messages");
    took(
        "its life",
        started,
        Duration::from_millis(500),
        Duration::from_secs(4),
    );
    echoes(&mut long, "still here");
}

#[test]
fn a_socket_on_which_nothing_flows_ends_and_a_ping_keeps_it() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .route("websocket", "{ idle_timeout: 600ms }")
        .start();
    let mut quiet = open(gateway.addr(), "/s/quiet", &[]);
    let mut pinged = open(gateway.addr(), "/s/pinged", &[]);
    let started = Instant::now();
    let pinger = std::thread::spawn(move || {
        while started.elapsed() < Duration::from_millis(1500) {
            pinged.send(Message::Ping(b"?"[..].into())).unwrap();
            assert!(pinged.read().unwrap().is_pong());
            std::thread::sleep(Duration::from_millis(100));
        }
        echoes(&mut pinged, "still here");
    });
    assert_eq!(closed_with(&mut quiet), 1001);
    took(
        "it",
        started,
        Duration::from_millis(500),
        Duration::from_secs(2),
    );
    pinger.join().unwrap();
    let quiet = chat
        .visits()
        .into_iter()
        .find(|visit| visit.path == "/s/quiet")
        .unwrap();
    assert_eq!(quiet.close, Some(1001));
}

#[test]
fn a_budget_for_answers_does_not_end_it() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat).route("timeout", "300ms").start();
    let mut socket = open(gateway.addr(), "/s/a", &[]);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(900) {
        echoes(&mut socket, "still here");
    }
}

#[test]
fn nobody_has_more_open_than_is_allowed() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .top("streams", "{ per_user: 3 }")
        .route("auth", "token")
        .and_route("{ path: /open/*, service: s, auth: public, websocket: {} }")
        .start();
    let authorization = |id: &str| format!("Bearer {}", Token::user(id).hs256());
    let u1 = authorization("u1");
    let tries = |count: usize| -> Vec<Result<Socket, u16>> {
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..count)
                .map(|_| {
                    scope.spawn(|| {
                        let fields = [("Authorization", u1.as_str())];
                        try_open(gateway.addr(), "/s/a", &fields).map(|(socket, _)| socket)
                    })
                })
                .collect();
            asking
                .into_iter()
                .map(|asked| asked.join().unwrap())
                .collect()
        })
    };
    for round in 0..3 {
        let outcomes = tries(12);
        let open = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(open, 3, "round {round}");
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Ok(_) | Err(429)))
        );
        let u2 = authorization("u2");
        assert!(try_open(gateway.addr(), "/s/a", &[("Authorization", u2.as_str())]).is_ok());
        drop(outcomes);
        gateway.wait_metric(r#"streams_open{kind="websocket"}"#, |n| n == 0.0);
    }
    let refused = {
        let _held: Vec<Socket> = tries(3).into_iter().flatten().collect();
        handshake("/s/a")
            .header("Authorization", &u1)
            .send_to(gateway.addr())
    };
    assert_eq!(refused.json()["code"], "RATE_LIMIT_ERROR");
    assert_eq!(number(&refused, "Retry-After"), 1);
    let held: Vec<Socket> = (0..3)
        .map(|_| open(gateway.addr(), "/open/a", &[]))
        .collect();
    assert_eq!(
        try_open(gateway.addr(), "/open/a", &[]).err(),
        Some(429),
        "of an address"
    );
    assert!(gateway.metric(r#"rate_limit_hits_total{limit="streams"}"#) > 0.0);
    drop(held);
}

#[test]
fn a_backend_of_a_shared_pool_may_be_silent_for_longer_than_its_route_has() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .service("http2", "true")
        .route("timeout", "400ms")
        .start();
    let mut mute = open(gateway.addr(), "/s/mute", &[]);
    let mut idle = open(gateway.addr(), "/s/a", &[]);
    let since = Instant::now();
    let mut sent = 0;
    // Three times the route's time, and the quarter of a second that Pingora's own time-out is behind it.
    while since.elapsed() < Duration::from_millis(1500) {
        mute.send(Message::text("still there")).unwrap();
        sent += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    chat.wait_visit(0, |visit| visit.messages.len() == sent && !visit.over);
    echoes(&mut idle, "hello");
    idle.close(None).unwrap();
    assert_eq!(closed_with(&mut idle), 1005);
}
