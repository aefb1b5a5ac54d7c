//! A logout that auth-service grants: the token, and the family that it names, count nowhere any more (decision 15).

use crate::support::prelude::*;

const REFRESH_SECRET: &str = "e2e-refresh-secret-0123456789-abcdefghij";

const AT_ONCE: Duration = Duration::from_secs(2);

const TAKEN_UP: Duration = Duration::from_secs(8);

const PATIENT: &str = "command_timeout: 2s";

#[test]
fn a_logout_revokes_the_token_in_every_process_for_the_rest_of_its_life() {
    let redis = Redis::start();
    let (backend, [a, b, c]) = start(&redis, PATIENT);
    let token = Token::user("u1").tenant("t7").expires_in(600).hs256();
    let bystander = Token::user("u1").hs256();
    let response = logout(&token)
        .header("X-Request-ID", "leaves")
        .header("User-Agent", "a browser")
        .send_to(a.addr());
    assert_eq!((response.status, response.text()), (200, r#"{"ok":true}"#));
    assert_eq!(backend.requests()[0].path(), "/auth/logout");
    let key = format!("session:blacklist:{token}");
    assert_eq!(
        redis.command(&["GET", &key]),
        "1",
        "written before the answer"
    );
    let life: i64 = redis.command(&["TTL", &key]).parse().unwrap();
    assert!((550..=606).contains(&life), "{life}");
    assert_eq!(status(&a, &token), 401, "here at once");
    for gateway in [&b, &c] {
        wait_status("in another process", gateway, &token, 401);
    }
    for gateway in [&a, &b, &c] {
        assert_eq!(
            status(gateway, &bystander),
            200,
            "another token of the user"
        );
    }
    let line = a.wait_log(|line| line["event"] == "logout");
    assert_eq!(
        (&line["context"], &line["severity"]),
        (&json!("audit"), &json!("low"))
    );
    assert_eq!(
        (&line["userId"], &line["tenantId"]),
        (&json!("u1"), &json!("t7"))
    );
    assert_eq!(
        (&line["requestId"], &line["userAgent"]),
        (&json!("leaves"), &json!("a browser"))
    );
    assert!(!a.raw_output().contains(token.split('.').nth(1).unwrap()));
}

#[test]
fn a_logout_ends_the_family_that_the_token_names() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, PATIENT);
    let (first, other) = (login(&a, "u1"), login(&a, "u1"));
    let second = refresh(&b, &first.1);
    assert_eq!(logout(&second.0).send_to(a.addr()).status, 200);
    for gateway in [&a, &b] {
        for access in [&first.0, &second.0] {
            wait_status("of the family", gateway, access, 401);
        }
        assert_eq!(status(gateway, &other.0), 200, "another login");
        assert_eq!(refresh_status(gateway, &second.1), 401);
    }
    refresh(&b, &other.1);
}

#[test]
fn a_logout_ends_the_login_whose_refresh_token_it_brings() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, PATIENT);
    // As auth-service mints them: the access token names no family.
    let minted = |user: &str| {
        Token::user(user)
            .claim("type", "refresh")
            .signed_with(REFRESH_SECRET)
    };
    let access = Token::user("u1").hs256();
    let (own, foreign) = (minted("u1"), minted("u2"));
    let body = |token: &str| json!({"refreshToken": token});
    let leave = |token: &str, body: Value| Request::post("/auth/logout").bearer(token).json(&body);
    let with_foreign = leave(&Token::user("u1").hs256(), body(&foreign));
    assert_eq!(with_foreign.send_to(a.addr()).status, 200);
    assert_eq!(refresh_status(&b, &foreign), 200, "another user's stays");
    let with_own = leave(&access, body(&own));
    assert_eq!(with_own.send_to(a.addr()).status, 200);
    for gateway in [&a, &b] {
        assert_eq!(refresh_status(gateway, &own), 401, "its login has ended");
    }
}

#[test]
fn what_auth_service_does_not_grant_changes_nothing() {
    let redis = Redis::start();
    let (backend, [a]) = start(&redis, PATIENT);
    let (access, refresh_token) = login(&a, "u1");
    let keys = redis.command(&["DBSIZE"]);
    for status_of_service in [302, 400, 401, 404, 500, 503] {
        backend.set(move |request| match request.path() {
            "/auth/logout" => Reply::status(status_of_service),
            _ => Reply::status(200),
        });
        let response = logout(&access).send_to(a.addr());
        assert_eq!(response.status, status_of_service);
        assert_eq!(status(&a, &access), 200, "{status_of_service}");
        assert_eq!(redis.command(&["DBSIZE"]), keys, "{status_of_service}");
    }
    assert_eq!(logout("a.b.c").send_to(a.addr()).status, 401);
    assert_eq!(redis.command(&["DBSIZE"]), keys);
    refresh(&a, &refresh_token);
    assert!(!a.log_lines().iter().any(|line| line["event"] == "logout"));
    backend.set(|_| Reply::status(204));
    assert_eq!(logout(&access).send_to(a.addr()).status, 204);
    assert_eq!(status(&a, &access), 401);
}

#[test]
fn while_redis_is_away_a_logout_holds_here_and_is_told_to_redis_when_it_is_back() {
    let mut redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "");
    let (access, refresh_token) = login(&a, "u1");
    let plain = Token::user("u2").hs256();
    redis.kill();
    for token in [&access, &plain] {
        let begun = Instant::now();
        assert_eq!(logout(token).send_to(a.addr()).status, 200);
        assert!(
            begun.elapsed() < Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(status(&a, token), 401, "at once");
        assert_eq!(status(&b, token), 200, "nobody could tell it");
    }
    redis.restart();
    for token in [&access, &plain] {
        let key = format!("session:blacklist:{token}");
        let told = within(TAKEN_UP, || {
            (redis.command(&["EXISTS", &key]) == "1").then_some(())
        });
        assert!(told.is_some(), "redis was not told");
        let life: i64 = redis.command(&["TTL", &key]).parse().unwrap();
        let left = token::claims_of(token)["exp"].as_i64().unwrap() - now();
        assert!((left - 60..=left + 60).contains(&life), "{life} of {left}");
        let refused = within(TAKEN_UP, || (status(&b, token) == 401).then_some(()));
        assert!(refused.is_some(), "the other process has not heard of it");
        assert_eq!(status(&a, token), 401, "all the time");
    }
    let refused = within(TAKEN_UP, || match refresh_status(&b, &refresh_token) {
        503 => None,
        status => Some(status),
    });
    assert_eq!(refused, Some(401), "its family has ended");
}

#[test]
fn a_silent_redis_does_not_hold_a_logout_up() {
    let redis = Redis::start();
    let (_backend, [a]) = start(&redis, "");
    let token = Token::user("u1").hs256();
    redis.freeze();
    let begun = Instant::now();
    assert_eq!(logout(&token).send_to(a.addr()).status, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(status(&a, &token), 401);
    redis.thaw();
    let key = format!("session:blacklist:{token}");
    let told = within(TAKEN_UP, || {
        (redis.command(&["EXISTS", &key]) == "1").then_some(())
    });
    assert!(told.is_some(), "redis was not told");
}

#[test]
fn without_redis_a_logout_holds_in_its_process() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, ""))
        .env("JWT_REFRESH_SECRET", REFRESH_SECRET)
        .start();
    let (access, refresh_token) = login(&gateway, "u1");
    let other = login(&gateway, "u1");
    assert_eq!(logout(&access).send_to(gateway.addr()).status, 200);
    assert_eq!(status(&gateway, &access), 401);
    assert_eq!(refresh_status(&gateway, &refresh_token), 401);
    assert_eq!(status(&gateway, &other.0), 200);
    refresh(&gateway, &other.1);
}

#[test]
fn a_logout_cuts_what_is_open_for_its_token_and_its_family() {
    let redis = Redis::start();
    let (shared_backend, [a, b]) = start(&redis, PATIENT);
    let lone_backend = Upstream::start();
    let alone = Gateway::with(&yaml(&lone_backend, ""))
        .env("JWT_REFRESH_SECRET", REFRESH_SECRET)
        .start();
    for (backend, here, there) in [(&shared_backend, &a, &b), (&lone_backend, &alone, &alone)] {
        backend.set(|request| match request.path() {
            "/events" => Reply::raw(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .then_hang(),
            _ => Reply::status(200),
        });
        let (access, refresh_token) = login(here, "u1");
        let later = refresh(here, &refresh_token);
        let mut streams = [(here, &access), (there, &access), (there, &later.0)]
            .map(|(gateway, token)| open_stream(gateway, token));
        let mut other = open_stream(here, &login(here, "u1").0);
        assert_eq!(logout(&access).send_to(here.addr()).status, 200);
        for stream in &mut streams {
            assert!(stream.is_closed());
        }
        assert!(other.stays_open(), "another login");
    }
}

#[test]
fn the_platforms_logout_is_one() {
    let backend = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .all_services_at(&backend.url())
        .start();
    let token = token::customer();
    let me = || {
        Request::get("/api/v1/auth/me")
            .bearer(&token)
            .send_to(gateway.addr())
    };
    assert_eq!(me().status, 200);
    let logout = Request::post("/api/v1/auth/logout").bearer(&token);
    assert_eq!(logout.send_to(gateway.addr()).status, 200);
    assert_eq!(me().status, 401);
}

/// A stream whose head has come.
#[track_caller]
fn open_stream(gateway: &Gateway, token: &str) -> Connection {
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::get("/events").bearer(token).bytes());
    assert_eq!(connection.read_up_to(12), b"HTTP/1.1 200");
    connection
}

fn now() -> i64 {
    Token::user("x").claims()["iat"].as_i64().unwrap()
}

fn logout(token: &str) -> Request {
    Request::post("/auth/logout")
        .bearer(token)
        .header("Content-Length", "0")
}

/// An access token and a refresh token of a new family.
#[track_caller]
fn login(gateway: &Gateway, user: &str) -> (String, String) {
    let token = Token::user(user).claim("type", "refresh");
    refresh(gateway, &token.signed_with(REFRESH_SECRET))
}

#[track_caller]
fn refresh(gateway: &Gateway, token: &str) -> (String, String) {
    let response = within(TAKEN_UP, || {
        let response = send_refresh(gateway, token);
        (response.status != 503).then_some(response)
    });
    let response = response.expect("redis is there");
    assert_eq!(response.status, 200, "{}", response.text());
    let body = response.json();
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    (text("accessToken"), text("refreshToken"))
}

fn refresh_status(gateway: &Gateway, token: &str) -> u16 {
    send_refresh(gateway, token).status
}

fn send_refresh(gateway: &Gateway, token: &str) -> Response {
    Request::post("/auth/refresh")
        .json(&json!({"refreshToken": token}))
        .send_to(gateway.addr())
}

#[track_caller]
fn status(gateway: &Gateway, token: &str) -> u16 {
    Request::get("/")
        .bearer(token)
        .send_to(gateway.addr())
        .status
}

#[track_caller]
fn wait_status(what: &str, gateway: &Gateway, token: &str, wanted: u16) {
    let came = within(AT_ONCE, || (status(gateway, token) == wanted).then_some(()));
    assert!(came.is_some(), "{what}: no {wanted} within {AT_ONCE:?}");
}

#[track_caller]
fn start<const N: usize>(redis: &Redis, keys: &str) -> (Upstream, [Gateway; N]) {
    let backend = Upstream::start();
    let gateways = std::array::from_fn(|_| {
        Gateway::with(&yaml(&backend, keys))
            .env("JWT_REFRESH_SECRET", REFRESH_SECRET)
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port())
            .start()
    });
    for gateway in &gateways {
        wait_until("redis is followed", || gateway.metric("redis_up") == 1.0);
        // Commands have connections of their own.
        let unknown = Token::user("x")
            .claim("type", "refresh")
            .claim("rotation", 1);
        let unknown = unknown
            .claim("family", "unknown")
            .signed_with(REFRESH_SECRET);
        wait_until("commands are answered", || {
            refresh_status(gateway, &unknown) == 401
        });
    }
    (backend, gateways)
}

fn yaml(backend: &Upstream, redis: &str) -> String {
    format!(
        r#"
limits: {{ enabled: false }}
redis: {{ {redis} }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
retry: {{ max_retries: 0 }}
breaker: {{ volume: 100000 }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }}, outlier: {{ enabled: false }} }} }}
routes:
  - {{ path: /auth/refresh, service: backend, methods: [POST], auth: public, session: refresh }}
  - {{ path: /auth/logout, service: backend, methods: [POST], auth: token, session: logout }}
  - {{ path: "/*", service: backend, auth: token }}
"#,
        backend.url()
    )
}
