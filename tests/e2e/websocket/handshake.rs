//! What a request must be and bring before its connection becomes a WebSocket, and what its backend must answer.

use super::*;

#[test]
fn a_handshake_meets_every_policy_of_its_route() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .top("limits", "{ global: { max: 5, window: 60s } }")
        .top("roles", "{ customer: ['chat:view'], guest: [] }")
        .top("cors", "{ allowed_origins: ['https://app.example'] }")
        .route("auth", "token")
        .route("permissions", "{ GET: 'chat:view' }")
        .route("path", "'/s/venues/{venue}/chat'")
        .start();
    let target = "/s/venues/v1/chat";
    let user = |id: &str| Token::user(id).claim("venueId", "v1");
    let bearer = |token: Token| format!("Bearer {}", token.hs256());
    type Case = (&'static str, &'static str, Vec<(&'static str, String)>, u16);
    let refused: &[Case] = &[
        ("nobody", target, vec![], 401),
        (
            "noise",
            target,
            vec![("Authorization", "Bearer x".into())],
            401,
        ),
        (
            "over",
            target,
            vec![("Authorization", bearer(user("u1").expires_in(-60)))],
            401,
        ),
        (
            "no permission",
            target,
            vec![("Authorization", bearer(user("u2").role("guest")))],
            403,
        ),
        (
            "another's venue",
            "/s/venues/v2/chat",
            vec![("Authorization", bearer(user("u3")))],
            404,
        ),
        (
            "no route",
            "/nowhere",
            vec![("Authorization", bearer(user("u4")))],
            404,
        ),
        (
            "another page",
            target,
            vec![
                ("Authorization", bearer(user("u5"))),
                ("Origin", "https://evil.example".into()),
            ],
            403,
        ),
        (
            "a deadline that is none",
            target,
            vec![
                ("Authorization", bearer(user("u6"))),
                ("X-Request-Deadline", "soon".into()),
            ],
            400,
        ),
    ];
    for (what, target, fields, status) in refused {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(
            try_open(gateway.addr(), target, &fields).err(),
            Some(*status),
            "{what}"
        );
    }
    assert!(
        chat.visits().is_empty(),
        "nothing refused reaches the backend"
    );

    let good = bearer(user("u7"));
    let fields = [
        ("Authorization", good.as_str()),
        ("Origin", "https://app.example"),
    ];
    let mut first = open(gateway.addr(), target, &fields);
    for _ in 0..20 {
        echoes(&mut first, "a limit is spent once, and not by messages");
    }
    for _ in 0..4 {
        let mut other = open(gateway.addr(), target, &fields[..1]);
        echoes(&mut other, "a client that is no browser names no origin");
    }
    let sixth = try_open(gateway.addr(), target, &fields).err();
    assert_eq!(sixth, Some(429), "five are allowed");
    assert_eq!(chat.visits().len(), 5);
}

#[test]
fn the_backend_is_asked_what_was_asked_and_told_who_asks() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .route("auth", "token")
        .route("target", "/chats/*")
        .start();
    let token = token::customer();
    let authorization = format!("Bearer {token}");
    let fields = [
        ("Authorization", authorization.as_str()),
        ("Sec-WebSocket-Protocol", "chat.v0, chat.v1"),
        (
            "Sec-WebSocket-Extensions",
            "x-other, permessage-deflate; client_max_window_bits",
        ),
        ("X-Request-ID", "asks"),
        ("X-Tenant-ID", "another"),
        ("Cookie", "a=b"),
    ];
    let (mut socket, answer) = try_open(gateway.addr(), "/s/room?x=1", &fields).unwrap();
    let answered = |name| {
        answer
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    assert_eq!(answered("sec-websocket-protocol"), Some("chat.v1"));
    assert_eq!(answered("x-request-id"), Some("asks"));
    assert_eq!(
        answered("sec-websocket-extensions"),
        None,
        "the backend knows none"
    );
    echoes(&mut socket, "hello");
    let visit = chat.wait_visit(0, |_| true);
    for (name, value) in [
        ("Upgrade", Some("websocket")),
        ("Connection", Some("Upgrade")),
        ("Sec-WebSocket-Version", Some("13")),
        ("Sec-WebSocket-Protocol", Some("chat.v0, chat.v1")),
        (
            "Sec-WebSocket-Extensions",
            Some("permessage-deflate; client_max_window_bits"),
        ),
        ("Authorization", Some(authorization.as_str())),
        ("X-Tenant-ID", Some("t1")),
        ("X-Tenant-Source", Some("jwt")),
        ("X-Request-ID", Some("asks")),
        ("X-Gateway-Forwarded", Some("true")),
        ("Cookie", None),
    ] {
        assert_eq!(visit.header(name), value, "{name}");
    }
    assert_eq!(visit.path, "/chats/room");
}

#[test]
fn a_token_among_the_protocols_lets_in_and_is_told_to_nobody() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .route("auth", "token")
        .gateway()
        .env("LOG_LEVEL", "debug")
        .start();
    let token = token::customer();
    for (i, (offered, forwarded, chosen)) in [
        (format!("bearer, {token}"), None, "bearer"),
        (
            format!("chat.v1, bearer, {token}"),
            Some("chat.v1"),
            "chat.v1",
        ),
        (format!("bearer,{token},other"), Some("other"), "bearer"),
    ]
    .into_iter()
    .enumerate()
    {
        let fields = [("Sec-WebSocket-Protocol", offered.as_str())];
        let (mut socket, answer) = try_open(gateway.addr(), "/s/a", &fields).unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], chosen);
        echoes(&mut socket, "hello");
        let visit = chat.wait_visit(i, |_| true);
        assert_eq!(visit.header("Sec-WebSocket-Protocol"), forwarded);
        assert_eq!(
            visit.header("X-Tenant-ID"),
            Some("t1"),
            "it is known who asks"
        );
        let heard = format!("{:?}", visit.headers);
        assert!(!heard.contains(&token), "{heard}");
    }
    let wrong = format!("bearer, {token}x");
    let fields = [("Sec-WebSocket-Protocol", wrong.as_str())];
    assert_eq!(try_open(gateway.addr(), "/s/a", &fields).err(), Some(401));
    let foreign = [fields[0], ("Origin", "https://evil.example")];
    assert_eq!(try_open(gateway.addr(), "/s/a", &foreign).err(), Some(403));
    // The one that is in the documented place counts.
    let both = [
        ("Authorization", "Bearer x"),
        ("Sec-WebSocket-Protocol", &*format!("bearer, {token}")),
    ];
    assert_eq!(try_open(gateway.addr(), "/s/a", &both).err(), Some(401));
    // An ordinary request has no token there.
    let plain = Request::get("/s/a").header("Sec-WebSocket-Protocol", &format!("bearer, {token}"));
    assert_eq!(plain.send_to(gateway.addr()).status, 401);
    gateway.wait_log(|line| line["statusCode"] == 401 && line["headers"].is_object());
    let signature = token.rsplit('.').next().unwrap();
    assert!(
        !gateway.raw_output().contains(signature),
        "a token is in the log"
    );
}

#[test]
fn a_route_names_the_pages_that_may_ask_it() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .top("cors", "{ allowed_origins: ['https://app.example'] }")
        .route("websocket", "{ origins: ['https://Chat.example'] }")
        .and_route("{ path: /none/*, service: s, auth: public, websocket: { origins: [] } }")
        .and_route("{ path: /cors/*, service: s, auth: public, websocket: {} }")
        .start();
    let verdict =
        |target: &str, origin: &str| try_open(gateway.addr(), target, &[("Origin", origin)]).err();
    for (target, origin, status) in [
        ("/s/a", "https://chat.example", None),
        ("/s/a", "https://app.example", Some(403)),
        ("/s/a", "https://chat.example.evil", Some(403)),
        ("/s/a", "null", Some(403)),
        ("/none/a", "https://app.example", Some(403)),
        ("/cors/a", "https://app.example", None),
        ("/cors/a", "https://chat.example", Some(403)),
        ("/cors/a", "http://localhost", Some(403)),
    ] {
        assert_eq!(verdict(target, origin), status, "{origin} at {target}");
    }
    let twice = [
        ("Origin", "https://chat.example"),
        ("Origin", "https://chat.example"),
    ];
    assert_eq!(try_open(gateway.addr(), "/s/a", &twice).err(), Some(403));
    assert!(
        try_open(gateway.addr(), "/none/a", &[]).is_ok(),
        "no browser"
    );
    // For all that is no handshake the list of `cors` holds.
    let plain = Request::get("/s/a").header("Origin", "https://chat.example");
    assert_eq!(plain.send_to(gateway.addr()).status, 403);
}

#[test]
fn what_is_not_the_handshake_of_rfc_6455_is_refused_by_us() {
    let backend = Upstream::start();
    let gateway = Conf::at(&[backend.addr()]).route("websocket", "{}").start();
    let whole = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", KEY),
    ];
    let with = |name: &str, value: Option<&str>| {
        let fields = whole.iter().filter(|(n, _)| *n != name);
        let request = fields.fold(Request::get("/s/a"), |r, (n, v)| r.header(n, v));
        value
            .into_iter()
            .fold(request, |r, value| r.header(name, value))
    };
    let every = || whole.iter().copied();
    let of = |request: Request| every().fold(request, |r, (n, v)| r.header(n, v));
    for (what, request, status) in [
        ("h2c", with("Upgrade", Some("h2c")), 400),
        (
            "two protocols",
            with("Upgrade", Some("websocket, foo")),
            400,
        ),
        (
            "twice",
            of(Request::get("/s/a").header("Upgrade", "h2c")),
            400,
        ),
        ("no Connection", with("Connection", None), 400),
        (
            "another Connection",
            with("Connection", Some("keep-alive")),
            400,
        ),
        ("no key", with("Sec-WebSocket-Key", None), 400),
        ("a short key", with("Sec-WebSocket-Key", Some("AAAA")), 400),
        ("no version", with("Sec-WebSocket-Version", None), 400),
        (
            "an old version",
            with("Sec-WebSocket-Version", Some("8")),
            426,
        ),
        (
            "several versions",
            with("Sec-WebSocket-Version", Some("13, 8")),
            426,
        ),
        ("HTTP/1.0", of(Request::get("/s/a")).http_1_0(), 400),
        ("a POST", of(Request::post("/s/a")), 400),
        ("a body", of(Request::get("/s/a")).body("x"), 400),
        (
            "a chunked body",
            of(Request::get("/s/a")).chunked(vec!["x"]),
            400,
        ),
    ] {
        let answer = request.send_to(gateway.addr());
        assert_eq!(answer.status, status, "{what}");
        assert!(
            answer.json()["code"].is_string(),
            "{what}: the documented body"
        );
        if status == 426 {
            assert_eq!(answer.header("Sec-WebSocket-Version"), Some("13"));
            assert_eq!(answer.header("Upgrade"), Some("websocket"));
        }
    }
    let early = [&handshake("/s/a").bytes()[..], &client_frame(0x81, b"hi")].concat();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&early);
    assert_eq!(
        connection.read_response().status,
        400,
        "frames before the answer"
    );
    assert!(connection.is_closed());
    // Without an Upgrade the route is like any other.
    assert_eq!(Request::get("/s/a").send_to(gateway.addr()).status, 200);
    assert_eq!(backend.count(), 1);
    for seen in backend.requests() {
        assert_eq!(seen.header("Sec-WebSocket-Protocol"), None);
    }
}

#[test]
fn frames_that_come_before_the_answer_open_nothing() {
    let slow = Upstream::start_with(|_| {
        Reply::raw(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        ))
        .then_echo()
        .delay(Duration::from_millis(200))
    });
    let gateway = Conf::at(&[slow.addr()]).route("websocket", "{}").start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&handshake("/s/a").bytes());
    wait_until("the backend has it", || slow.count() == 1);
    connection.send(&client_frame(0x81, b"hi"));
    assert_eq!(connection.read_response().status, 400);
    assert!(connection.is_closed());
}

/// A backend may have answered before Pingora has forwarded that the request has no body.
#[test]
fn a_backend_that_answers_at_once_is_heard() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat).top("streams", "{ per_user: 0 }").start();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for i in 0..100 {
                    let mut socket = open(gateway.addr(), "/s/a", &[]);
                    echoes(&mut socket, &format!("{i}"));
                }
            });
        }
    });
}

#[test]
fn a_101_that_agrees_to_something_else_opens_no_tunnel() {
    let backend = Upstream::start();
    let gateway = Conf::at(&[backend.addr()])
        .route("websocket", "{ protocols: [chat] }")
        .and_route("{ path: /plain/*, service: s, auth: public }")
        .start();
    let answer = |fields: &str| {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n");
        backend.set(move |_| Reply::raw(head.clone()).then_echo());
    };
    let good =
        format!("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}");
    let asks = |target: &str| {
        let offers = handshake(target).header("Sec-WebSocket-Protocol", "chat, other");
        offers
            .header("Sec-WebSocket-Extensions", "x-other")
            .send_to(gateway.addr())
    };
    answer(&good);
    let opened = asks("/s/a");
    assert_eq!(
        (opened.status, opened.header("Upgrade")),
        (101, Some("websocket"))
    );
    assert_eq!(opened.header("Connection"), Some("Upgrade"));
    for bad in [
        good.replace("websocket", "h2c"),
        good.replace("Connection: Upgrade", "Connection: close"),
        good.replace(ACCEPT, "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        "Connection: Upgrade\r\nUpgrade: websocket".to_owned(),
        format!("{good}\r\nSec-WebSocket-Protocol: other"),
        format!("{good}\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: chat"),
        format!("{good}\r\nSec-WebSocket-Extensions: permessage-deflate"),
        format!("{good}\r\nSec-WebSocket-Extensions: x-other"),
    ] {
        answer(&bad);
        assert_eq!(asks("/s/a").status, 502, "{bad}");
    }
    answer(&good);
    assert_eq!(
        Request::get("/s/a").send_to(gateway.addr()).status,
        502,
        "not asked for"
    );
    assert_eq!(asks("/plain/a").status, 502, "a route without WebSockets");
    let refused = || Reply::status(403).body("not here");
    backend.set(move |_| refused());
    let mut connection = Client::to(gateway.addr()).connect();
    let answer = connection.request(&handshake("/s/a"));
    assert_eq!(
        (answer.status, answer.text()),
        (403, "not here"),
        "the backend's own refusal"
    );
    assert_eq!(answer.header("Connection"), Some("close"), "and it is told");
    assert!(connection.is_closed());
}

#[test]
fn faulty_settings_are_named() {
    let yaml = Conf::at(&[refused_addr()])
        .top("streams", "{ per_user: -1 }")
        .route("websocket", "{ origins: ['*'], idle_timeout: 0s, max_frame: 100B, protocols: [bearer, 'a b'] }")
        .and_route("{ path: /p/*, service: s, auth: public, methods: [POST], webhook: true, websocket: {} }")
        .yaml();
    let said = Gateway::with(&yaml).arg("--test").run_to_exit();
    assert_eq!(said.code, 1, "{said:?}");
    let text = format!("{said:?}");
    assert!(text.contains("streams.per_user"), "{text}");
    let yaml = yaml.replace("per_user: -1", "per_user: 1");
    let text = format!("{:?}", Gateway::with(&yaml).arg("--test").run_to_exit());
    for place in [
        "routes[0].websocket.origins[0]",
        "routes[0].websocket.idle_timeout",
        "routes[0].websocket.max_frame",
        "routes[0].websocket.protocols[0]",
        "routes[0].websocket.protocols[1]",
        "routes[1].websocket",
    ] {
        assert!(text.contains(place), "{place}: {text}");
    }
}

#[test]
fn a_backend_that_does_not_answer_the_handshake_has_the_routes_time() {
    let hung = Upstream::start_with(|_| Reply::hang());
    let gateway = Conf::at(&[hung.addr()])
        .top("retry", "{ max_retries: 0 }")
        .route("websocket", "{}")
        .route("timeout", "300ms")
        .start();
    let started = Instant::now();
    assert_eq!(try_open(gateway.addr(), "/s/a", &[]).err(), Some(504));
    let (least, most) = (Duration::from_millis(250), Duration::from_secs(2));
    took("the answer", started, least, most);
    let refused = Conf::at(&[refused_addr()]).route("websocket", "{}").start();
    assert_eq!(try_open(refused.addr(), "/s/a", &[]).err(), Some(503));
}

#[test]
fn a_client_that_gives_up_its_handshake_is_no_fault_of_the_backend() {
    let hung = Upstream::start_with(|_| Reply::hang());
    let gateway = Conf::at(&[hung.addr()]).route("websocket", "{}").start();
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&handshake("/s/a").header("X-Request-ID", "gives-up").bytes());
    wait_until("the backend has it", || hung.count() == 1);
    drop(connection);
    assert_eq!(gateway.access_line("gives-up")["statusCode"], 499);
    wait_until("no connection is left", || hung.open_connections() == 0);
    let aborted = gateway.metric(r#"upstream_attempts_total{outcome="aborted",service="s"}"#);
    assert_eq!(aborted, 1.0);
}

#[test]
fn only_a_handshake_waits_for_its_routes_origins() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .top("cors", "{ allowed_origins: ['https://app.example'] }")
        .start();
    for (method, target) in [
        ("OPTIONS", "/s/a"),
        ("POST", "/nowhere"),
        ("DELETE", "/s/a"),
    ] {
        let response = Request::method(method, target)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Origin", "https://evil.example")
            .header("Access-Control-Request-Method", "GET")
            .send_to(gateway.addr());
        assert_eq!(response.status, 403, "{method} {target}");
    }
}
