//! Tokens that are called back through Redis, and what holds while Redis is away (decisions 15, 23 and 33).

use crate::support::prelude::*;

/// How long a revocation may take to be in force.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn a_revoked_token_is_refused_at_once_and_good_again_when_the_key_is_gone() {
    let redis = Redis::start();
    let (backend, gateway) = start(&redis);
    let victim = Token::user("u1").tenant("t1").claim("jti", "j1").hs256();
    let bystander = Token::user("u2").tenant("t2").claim("jti", "j2").hs256();
    let in_an_hour = (unix_now() + 3600).to_string();
    let keys = [
        (format!("session:blacklist:{victim}"), "1"),
        ("session:revoked:jti:j1".to_owned(), "1"),
        ("session:revoked:user:u1".to_owned(), in_an_hour.as_str()),
        ("session:revoked:tenant:t1".to_owned(), in_an_hour.as_str()),
        ("session:revoked:user:u1".to_owned(), "logout everywhere"),
    ];
    for (key, value) in keys {
        assert_eq!(status(&gateway, &victim), 200, "{key}");
        redis.command(&["SET", &key, value]);
        wait_status(&key, &gateway, &victim, 401);
        let response = Request::get("/").bearer(&victim).send_to(gateway.addr());
        assert_eq!(response.json()["code"], "INVALID_TOKEN", "{key}");
        assert!(response.header("WWW-Authenticate").is_some(), "{key}");
        assert_eq!(status(&gateway, &bystander), 200, "{key}");
        redis.command(&["DEL", &key]);
        wait_status(&key, &gateway, &victim, 200);
    }
    let seen = backend.count();
    redis.command(&["SET", "session:revoked:jti:j1", "1"]);
    wait_status("jti", &gateway, &victim, 401);
    let passed = backend.count();
    assert_eq!(status(&gateway, &victim), 401);
    assert_eq!(
        backend.count(),
        passed,
        "nothing refused reaches the backend"
    );
    assert!(passed >= seen);
}

#[test]
fn a_user_or_a_tenant_is_revoked_up_to_a_time() {
    let redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    let now = unix_now();
    let token = |issued: i64| Token::user("u1").tenant("t1").claim("iat", issued).hs256();
    let (old, new) = (token(now - 100), token(now - 50));
    let silent = Token::user("u1").tenant("t1").without("iat").hs256();
    for key in ["session:revoked:user:u1", "session:revoked:tenant:t1"] {
        redis.command(&["SET", key, &(now - 50).to_string()]);
        wait_status(key, &gateway, &old, 401);
        assert_eq!(status(&gateway, &new), 200, "{key}: issued at that second");
        assert_eq!(
            status(&gateway, &silent),
            401,
            "{key}: it does not say when it was issued"
        );
        redis.command(&["SET", key, &now.to_string()]);
        wait_status(key, &gateway, &new, 401);
        redis.command(&["DEL", key]);
        wait_status(key, &gateway, &silent, 200);
    }
}

#[test]
fn what_was_revoked_before_the_start_is_revoked() {
    let redis = Redis::start();
    let tokens: Vec<String> = (0..4)
        .map(|i| {
            let token = Token::user(&format!("u{i}")).tenant(&format!("t{i}"));
            token.claim("jti", format!("j{i}")).hs256()
        })
        .collect();
    redis.command(&[
        "SET",
        &format!("session:blacklist:{}", tokens[0]),
        "1",
        "EX",
        "3600",
    ]);
    redis.command(&["SET", "session:revoked:jti:j1", "1"]);
    redis.command(&["SET", "session:revoked:user:u2", "99999999999"]);
    redis.command(&["SET", "session:revoked:tenant:t3", "99999999999"]);
    for i in 0..2500 {
        redis.command(&["SET", &format!("session:user:{i}"), "{}"]);
    }
    let (_backend, gateway) = start(&redis);
    for (what, token) in ["blacklist", "jti", "user", "tenant"].iter().zip(&tokens) {
        wait_status(what, &gateway, token, 401);
    }
    assert_eq!(status(&gateway, &token::customer()), 200);
}

#[test]
fn an_entry_that_runs_out_or_is_flushed_revokes_no_more() {
    let redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    let token = token::customer();
    let key = format!("session:blacklist:{token}");
    redis.command(&["SET", &key, "1", "PX", "4000"]);
    wait_status("before it runs out", &gateway, &token, 401);
    wait_status_within(
        Duration::from_secs(12),
        "it has run out",
        &gateway,
        &token,
        200,
    );
    redis.command(&["SET", &key, "1"]);
    wait_status("for good", &gateway, &token, 401);
    redis.command(&["FLUSHALL"]);
    wait_status("flushed", &gateway, &token, 200);
}

#[test]
fn an_entry_of_another_type_revokes_and_does_not_stop_the_others() {
    let redis = Redis::start();
    let (first, second, third) = (user("u1"), user("u2"), user("u3"));
    // The blacklist asks whether the key exists, not what it holds.
    redis.command(&["SADD", &format!("session:blacklist:{first}"), "1"]);
    redis.command(&["SET", &format!("session:blacklist:{second}"), "1"]);
    let (_backend, gateway) = start_with(&redis, |gateway| gateway);
    wait_status("a string, found at the start", &gateway, &second, 401);
    wait_status("a set, found at the start", &gateway, &first, 401);
    redis.command(&["LPUSH", "session:revoked:user:u3", "1"]);
    wait_status("a list, written later", &gateway, &third, 401);
    redis.command(&["HSET", "session:revoked:nonsense", "a", "b"]);
    redis.command(&["DEL", &format!("session:blacklist:{second}")]);
    wait_status("gone", &gateway, &second, 200);
    assert_eq!(ready(&gateway)["checks"]["redis"], "ok");
}

#[test]
fn a_revoked_token_cannot_be_spelled_anew() {
    let redis = Redis::start();
    let pair = KeyPair::p256();
    let (_backend, gateway) = start_with(&redis, |gateway| {
        gateway.env("JWT_PUBLIC_KEY", &pair.public_pem)
    });
    wait_until("redis is followed", || {
        ready(&gateway)["checks"]["redis"] == "ok"
    });
    let token = pair.sign(&Token::user("u1"));
    redis.command(&["SET", &format!("session:blacklist:{token}"), "1"]);
    wait_status("as it was issued", &gateway, &token, 401);
    // Of every ECDSA signature (r, s) there is a second one that is as good: (r, n - s).
    let twin = with_twin_signature(&token);
    assert_ne!(twin, token);
    assert_eq!(
        status(&gateway, &twin),
        401,
        "the same token with its signature's twin"
    );
}

#[test]
fn the_documented_command_is_in_force_in_three_processes_within_100_ms() {
    let redis = Redis::start();
    let backend = Upstream::start();
    let gateways: [Gateway; 3] = std::array::from_fn(|_| {
        let gateway = Gateway::with(&yaml(&backend))
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port());
        gateway.start()
    });
    for gateway in &gateways {
        wait_until("redis is followed", || {
            ready(gateway)["checks"]["redis"] == "ok"
        });
    }
    let mut took: Vec<Duration> = Vec::new();
    for round in 0..15 {
        let token = user(&format!("u{round}"));
        let request = Request::get("/").bearer(&token);
        let mut connections = gateways.each_ref().map(|gateway| {
            let mut connection = Client::to(gateway.addr()).connect();
            assert_eq!(connection.request(&request).status, 200);
            connection
        });
        let key = format!("session:blacklist:{token}");
        assert_eq!(redis.command(&["SET", &key, "1", "EX", "60"]), "OK");
        let written = Instant::now();
        for connection in &mut connections {
            let refused = within(AT_ONCE, || {
                (connection.request(&request).status == 401).then_some(())
            });
            assert!(refused.is_some(), "never");
        }
        took.push(written.elapsed());
    }
    took.sort();
    println!("from the SET's answer to the refusal by all three: {took:?}");
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(median <= Duration::from_millis(100), "{took:?}");
    assert!(worst <= Duration::from_millis(250), "{took:?}");
}

#[test]
fn what_revokes_a_token_cuts_its_open_streams_in_every_process() {
    let redis = Redis::start();
    let (fleet, gateways) = streaming::<2>(&redis);
    let in_an_hour = (unix_now() + 3600).to_string();
    let tokens: [String; 5] = std::array::from_fn(|n| {
        Token::user(&format!("u{n}"))
            .tenant(&format!("t{n}"))
            .claim("jti", format!("j{n}"))
            .claim("family", format!("f{n}"))
            .hs256()
    });
    let keys = [
        (format!("session:blacklist:{}", tokens[0]), "1"),
        ("session:revoked:jti:j1".to_owned(), "1"),
        ("session:revoked:user:u2".to_owned(), &in_an_hour),
        ("session:revoked:tenant:t3".to_owned(), &in_an_hour),
        ("session:revoked:family:f4".to_owned(), "1"),
    ];
    let mut took = Vec::new();
    for (n, (key, value)) in keys.iter().enumerate() {
        let token = &tokens[n];
        for target in [
            "/idle/quiet",
            "/idle/flowing",
            "/events/quiet",
            "/idle/to-the-end",
        ] {
            let id = |i: usize| format!("{n}-{i}-{}", target.replace('/', "-"));
            let mut victims: Vec<Connection> = gateways
                .iter()
                .enumerate()
                .map(|(i, gateway)| open_stream(gateway, target, token, &id(i)))
                .collect();
            let mut bystander = open_stream(&gateways[0], target, &token::customer(), "stays");
            redis.command(&["SET", key, value]);
            let written = Instant::now();
            for victim in &mut victims {
                assert!(victim.is_closed(), "{key} {target}");
                took.push(written.elapsed());
                let received = victim.read_to_end();
                assert!(!received.ends_with(b"0\r\n\r\n"), "it ends as if whole");
            }
            assert!(bystander.stays_open(), "{key} {target}: somebody else's");
            for (i, gateway) in gateways.iter().enumerate() {
                let line = gateway.access_line(&id(i));
                let why = line["err"].as_str().unwrap_or_default();
                assert!(why.contains("the caller's token was revoked"), "{line}");
                assert_eq!(line["statusCode"], 200, "{line}");
            }
            drop(bystander);
            redis.command(&["DEL", key]);
            wait_status("it is good again", &gateways[0], token, 200);
            wait_status("it is good again", &gateways[1], token, 200);
        }
    }
    wait_until("the upstream's connections are cut", || {
        fleet.open_connections() <= 2
    });
    took.sort();
    println!("from the SET's answer to the cut: {took:?}");
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    assert!(median <= Duration::from_millis(100), "{took:?}");
    assert!(worst <= Duration::from_millis(400), "{took:?}");
    let ejected = gateways[0].metric(r#"upstream_ejections_total{service="s"}"#);
    assert_eq!(ejected, 0.0, "no instance is to blame");
}

#[test]
fn a_stream_is_cut_by_what_was_written_while_redis_could_not_be_heard() {
    let mut redis = Redis::start();
    let (_fleet, [gateway]) = streaming(&redis);
    let token = user("u1");
    let mut victim = open_stream(&gateway, "/idle/quiet", &token, "victim");
    redis.kill();
    wait_until("/ready says so", || {
        ready(&gateway)["checks"]["redis"] == "degraded"
    });
    assert!(victim.stays_open());
    redis.restart();
    redis.command(&["SET", &format!("session:blacklist:{token}"), "1"]);
    assert!(victim.is_closed(), "the full read found it");
}

#[test]
fn a_connection_whose_stream_has_ended_is_not_cut_for_its_next_request() {
    let redis = Redis::start();
    let (_fleet, [gateway]) = streaming(&redis);
    let (streams, goes_on) = (user("u1"), user("u2"));
    let mut connection = Client::to(gateway.addr()).connect();
    let short = Request::get("/idle/short").bearer(&streams);
    assert_eq!(connection.request(&short).status, 200);
    connection.send(
        &Request::get("/idle/quiet")
            .bearer(&goes_on)
            .header("X-Request-ID", "goes-on")
            .bytes(),
    );
    assert!(connection.read_up_to(12).starts_with(b"HTTP/1.1 200"));
    redis.command(&["SET", &format!("session:blacklist:{streams}"), "1"]);
    wait_status("the first one's", &gateway, &streams, 401);
    assert!(connection.stays_open(), "it is another's stream by now");
    redis.command(&["SET", &format!("session:blacklist:{goes_on}"), "1"]);
    assert!(connection.is_closed());
}

#[test]
fn answers_that_do_not_stream_are_finished() {
    let redis = Redis::start();
    let (_fleet, [gateway]) = streaming(&redis);
    let token = user("u1");
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::get("/s/slow").bearer(&token).bytes());
    assert!(connection.read_up_to(12).starts_with(b"HTTP/1.1 200"));
    redis.command(&["SET", &format!("session:blacklist:{token}"), "1"]);
    wait_status("revoked", &gateway, &token, 401);
    let rest = connection.read_to_end_of_chunks();
    assert!(rest.ends_with(b"0\r\n\r\n"), "it is whole");
}

#[test]
fn while_redis_is_away_the_last_known_set_holds_and_nothing_else_changes() {
    let mut redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    let (revoked, good) = (user("u1"), user("u2"));
    redis.command(&["SET", &format!("session:blacklist:{revoked}"), "1"]);
    wait_status("revoked", &gateway, &revoked, 401);
    assert_eq!(ready(&gateway)["checks"]["redis"], "ok");
    gateway.wait_metric("redis_up", |up| up == 1.0);

    redis.kill();
    wait_until("/ready says so", || {
        ready(&gateway)["checks"]["redis"] == "degraded"
    });
    gateway.wait_metric("redis_up", |up| up == 0.0);
    gateway.wait_log(|line| line["level"] == "warn" && line["msg"].to_string().contains("away"));
    let before = Instant::now();
    for i in 0..20 {
        assert_eq!(status(&gateway, &revoked), 401);
        assert_eq!(status(&gateway, &good), 200);
        assert_eq!(
            status(&gateway, &user(&format!("new-{i}"))),
            200,
            "never seen before"
        );
    }
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );

    redis.restart();
    let late = user("u3");
    redis.command(&["SET", &format!("session:blacklist:{late}"), "1"]);
    wait_until("/ready says so", || {
        ready(&gateway)["checks"]["redis"] == "ok"
    });
    wait_status("written before it was taken up again", &gateway, &late, 401);
    wait_status("forgotten by redis", &gateway, &revoked, 200);
    redis.command(&["SET", "session:revoked:user:u2", "nonsense"]);
    wait_status("written afterwards", &gateway, &good, 401);
}

#[test]
fn a_redis_that_is_silent_is_away() {
    let redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    let revoked = user("u1");
    redis.command(&["SET", &format!("session:blacklist:{revoked}"), "1"]);
    wait_status("revoked", &gateway, &revoked, 401);
    redis.freeze();
    let noticed = within(Duration::from_secs(10), || {
        assert_eq!(status(&gateway, &revoked), 401);
        assert_eq!(status(&gateway, &token::customer()), 200);
        (ready(&gateway)["checks"]["redis"] == "degraded").then_some(())
    });
    assert!(noticed.is_some(), "nobody noticed that redis is silent");
    redis.thaw();
    let noticed = within(Duration::from_secs(15), || {
        (ready(&gateway)["checks"]["redis"] == "ok").then_some(())
    });
    assert!(noticed.is_some(), "nobody noticed that redis is back");
    assert_eq!(status(&gateway, &revoked), 401);
}

#[test]
fn the_gateway_starts_while_redis_is_away_and_takes_it_up_when_it_comes() {
    let mut redis = Redis::start();
    redis.kill();
    let (_backend, gateway) = start_with(&redis, |gateway| gateway);
    let token = token::customer();
    assert_eq!(
        status(&gateway, &token),
        200,
        "nothing is known to be revoked"
    );
    assert_eq!(ready(&gateway)["checks"]["redis"], "degraded");
    gateway.wait_log(|line| line["level"] == "warn" && line["msg"].to_string().contains("redis"));
    redis.restart();
    redis.command(&["SET", &format!("session:blacklist:{token}"), "1"]);
    wait_status_within(
        Duration::from_secs(5),
        "redis is here",
        &gateway,
        &token,
        401,
    );
    wait_until("commands have their connections, too", || {
        ready(&gateway)["checks"]["redis"] == "ok"
    });
}

#[test]
fn where_it_is_asked_for_no_token_counts_before_revocations_were_read() {
    let mut redis = Redis::start();
    redis.kill();
    let backend = Upstream::start();
    let refuse = "auth: { revocation: { unknown: refuse },";
    let gateway = Gateway::with(&yaml(&backend).replace("auth: {", refuse))
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .start();
    let token = token::customer();
    let response = Request::get("/").bearer(&token).send_to(gateway.addr());
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(response.header("Retry-After").is_some());
    assert_eq!(backend.count(), 0);
    redis.restart();
    wait_status_within(Duration::from_secs(8), "it was read", &gateway, &token, 200);
    redis.kill();
    wait_until("redis is away again", || {
        ready(&gateway)["checks"]["redis"] == "degraded"
    });
    assert_eq!(status(&gateway, &token), 200, "the last known set holds");
}

#[test]
fn a_stream_is_cut_also_while_the_gateway_drains() {
    let redis = Redis::start();
    let (_fleet, [gateway]) = streaming::<1>(&redis);
    let token = Token::user("u1").claim("jti", "drains").hs256();
    let mut stream = open_stream(&gateway, "/idle/quiet", &token, "drains");
    gateway.signal(15);
    gateway.wait_log(|line| line["msg"].to_string().contains("told to end"));
    assert!(stream.stays_open(), "it is finished in peace");
    redis.command(&["SET", "session:revoked:jti:drains", "1"]);
    assert!(stream.is_closed(), "it is not");
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)), Some(0));
}

#[test]
fn without_redis_in_the_configuration_nothing_is_said_of_it() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend)).start();
    assert_eq!(status(&gateway, &token::customer()), 200);
    assert_eq!(ready(&gateway)["checks"]["redis"], json!(null));
}

#[test]
fn the_password_of_redis_is_used_and_never_shown() {
    let password = "redis-password-that-nobody-may-see";
    let redis = Redis::start_with_password(password);
    let token = token::customer();
    redis.command(&["SET", &format!("session:blacklist:{token}"), "1"]);
    let (_backend, gateway) = start_with(&redis, |gateway| {
        gateway
            .env("REDIS_PASSWORD", password)
            .env("LOG_LEVEL", "debug")
    });
    wait_status("with the password", &gateway, &token, 401);
    assert!(!gateway.raw_output().contains(password));

    let wrong = "another-password-that-nobody-may-see";
    let (_backend, gateway) = start_with(&redis, |gateway| {
        gateway
            .env("REDIS_PASSWORD", wrong)
            .env("LOG_LEVEL", "debug")
    });
    gateway.wait_log(|line| line["level"] == "warn" && line["msg"].to_string().contains("away"));
    assert_eq!(ready(&gateway)["checks"]["redis"], "degraded");
    assert_eq!(status(&gateway, &user("u2")), 200);
    assert!(!gateway.raw_output().contains(wrong));
}

#[test]
fn revocations_are_read_from_the_configured_database() {
    let redis = Redis::start();
    let (_backend, gateway) = start_with(&redis, |gateway| gateway.env("REDIS_DB", 3));
    wait_until("it is followed", || {
        ready(&gateway)["checks"]["redis"] == "ok"
    });
    let (here, elsewhere) = (user("u1"), user("u2"));
    redis.command(&["SET", &format!("session:blacklist:{elsewhere}"), "1"]);
    // MOVE is the only way to write into database 3 without a connection that stays.
    redis.command(&["SET", &format!("session:blacklist:{here}"), "1"]);
    redis.command(&["MOVE", &format!("session:blacklist:{here}"), "3"]);
    wait_status("in database 3", &gateway, &here, 401);
    assert_eq!(status(&gateway, &elsewhere), 200, "in database 0");
}

fn user(id: &str) -> String {
    Token::user(id).hs256()
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
    wait_status_within(AT_ONCE, what, gateway, token, wanted);
}

#[track_caller]
fn wait_status_within(limit: Duration, what: &str, gateway: &Gateway, token: &str, wanted: u16) {
    let came = within(limit, || (status(gateway, token) == wanted).then_some(()));
    assert!(came.is_some(), "{what}: no {wanted} within {limit:?}");
}

/// What `/ready` says, which is 200 whatever becomes of Redis.
#[track_caller]
fn ready(gateway: &Gateway) -> Value {
    let response = Request::get("/ready").send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn unix_now() -> i64 {
    let claims = Token::user("x").claims();
    claims["iat"].as_i64().unwrap()
}

#[track_caller]
fn start(redis: &Redis) -> (Upstream, Gateway) {
    let (backend, gateway) = start_with(redis, |gateway| gateway);
    wait_until("redis is followed", || {
        ready(&gateway)["checks"]["redis"] == "ok"
    });
    (backend, gateway)
}

#[track_caller]
fn start_with(
    redis: &Redis,
    change: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend))
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port());
    (backend, change(gateway).start())
}

/// Gateways in front of a service that streams: by its route under `/idle`, by its type under `/events`.
#[track_caller]
fn streaming<const N: usize>(redis: &Redis) -> (Fleet, [Gateway; N]) {
    let fleet = Fleet::of(1);
    fleet.set(|_, request| {
        let head = |fields| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        let chunked = head("Transfer-Encoding: chunked");
        let events =
            head("Content-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked");
        let piece = || "9\r\ndata: x\n\n\r\n".to_owned();
        let every = Duration::from_millis(30);
        match request.path() {
            "/idle/quiet" => Reply::raw(chunked + &piece()).then_hang(),
            "/events/quiet" => Reply::raw(events + &piece()).then_hang(),
            "/idle/to-the-end" => Reply::raw(head("Connection: close") + "data").then_hang(),
            "/idle/flowing" => {
                let pieces = std::iter::repeat_with(piece).take(1000);
                Reply::paced(std::iter::once(chunked).chain(pieces), every).then_hang()
            }
            "/s/slow" => {
                let pieces = std::iter::repeat_with(piece).take(20);
                let end = std::iter::once("0\r\n\r\n".to_owned());
                Reply::paced(std::iter::once(chunked).chain(pieces).chain(end), every)
            }
            _ => Reply::status(200).body("short"),
        }
    });
    let conf = fleet
        .conf()
        .route("auth", "token")
        .and_route("{ path: /idle/*, service: s, auth: token, idle_timeout: 60s }")
        .and_route("{ path: /events/*, service: s, auth: token, timeout: 60s }")
        .and_route("{ path: /, service: s, auth: token }");
    let gateways = std::array::from_fn(|_| {
        let gateway = conf.gateway();
        let gateway = gateway.env("REDIS_HOST", redis.addr().ip());
        gateway.env("REDIS_PORT", redis.port()).start()
    });
    for gateway in &gateways {
        wait_until("redis is followed", || {
            ready(gateway)["checks"]["redis"] == "ok"
        });
    }
    (fleet, gateways)
}

/// A stream whose head and first piece have come.
#[track_caller]
fn open_stream(gateway: &Gateway, target: &str, token: &str, id: &str) -> Connection {
    let mut connection = Client::to(gateway.addr()).connect();
    let request = Request::get(target).bearer(token);
    connection.send(&request.header("X-Request-ID", id).bytes());
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("data") {
        let byte = connection.read_up_to(1);
        assert!(!byte.is_empty(), "{}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
    assert!(seen.starts_with(b"HTTP/1.1 200"));
    connection
}

fn yaml(backend: &Upstream) -> String {
    format!(
        r#"
limits: {{ enabled: false }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes: [{{ path: "/*", service: backend, auth: token }}]
"#,
        backend.url()
    )
}

/// The token with `n - s` in place of the `s` of its ES256 signature.
fn with_twin_signature(token: &str) -> String {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
        0x25, 0x51,
    ];
    let (message, signature) = token.rsplit_once('.').unwrap();
    let mut signature = token::from_base64url(signature);
    let mut borrow = 0;
    for (s, n) in signature[32..].iter_mut().zip(ORDER).rev() {
        let difference = i16::from(n) - i16::from(*s) - borrow;
        borrow = i16::from(difference < 0);
        *s = difference.rem_euclid(256) as u8;
    }
    format!("{message}.{}", token::base64url(signature))
}
