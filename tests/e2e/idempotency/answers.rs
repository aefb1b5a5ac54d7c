//! What comes of a key: one run, its answer again, or a refusal that says why.

use super::*;
use crate::support::http2::{Http2, Http2Upstream, Play, run};

#[test]
fn a_write_runs_once_and_its_answer_comes_again_byte_for_byte() {
    for world in World::both() {
        let first = pay("u1", "k1")
            .header("X-Request-ID", "first")
            .send_to(world.addr(0));
        assert_eq!(first.status, 201, "{}", first.text());
        assert!(!is_replay(&first));
        assert_eq!(first.header("set-cookie"), Some("session=1"));
        for (turn, key) in ["k1", "\"k1\"", "k1"].into_iter().enumerate() {
            let again = pay("u1", key)
                .header("X-Request-ID", "again")
                .send_to(world.addr(turn + 1));
            assert_eq!(again.status, 201, "{}", again.text());
            assert!(is_replay(&again));
            assert_eq!(again.body, first.body);
            for name in [
                "content-type",
                "location",
                "x-order",
                "content-length",
                "cache-control",
            ] {
                assert_eq!(
                    again.header(name),
                    first.header(name).or(Some("no-store")),
                    "{name}"
                );
            }
            assert_eq!(again.header("x-request-id"), Some("again"));
            assert_eq!(again.header("set-cookie"), None);
            assert!(again.header("strict-transport-security").is_none());
            assert_eq!(again.header("x-content-type-options"), Some("nosniff"));
        }
        assert_eq!(world.backend.count(), 1);
        let seen = world.backend.requests().remove(0);
        assert_eq!(seen.header("idempotency-key"), Some("k1"));
        assert_eq!(
            (world.results("run"), world.results("replayed")),
            (1.0, 3.0)
        );
    }
}

#[test]
fn every_kind_of_answer_is_kept() {
    for world in World::both() {
        let replies = [
            Reply::status(204).header("X-Kind", "nothing"),
            Reply::status(200).header("X-Kind", "empty"),
            Reply::status(200)
                .header("X-Kind", "chunks")
                .chunked(vec!["{\"a\"", ": ", "1}"]),
            Reply::status(200)
                .header("X-Kind", "no chunk")
                .chunked(Vec::<&str>::new()),
            Reply::raw("HTTP/1.1 200 OK\r\nX-Kind: to the end\r\n\r\nall of it").then_close(),
            Reply::status(200)
                .header("X-Kind", "large")
                .body(noise(200_000)),
            Reply::status(302)
                .header("X-Kind", "found")
                .header("Location", "/s/there"),
            Reply::status(404).header("X-Kind", "not found").body("no"),
            Reply::status(500)
                .header("X-Kind", "broken")
                .body("\0\n\r\n\x7f"),
            Reply::status(503).header("X-Kind", "down").body("down"),
        ];
        for (number, reply) in replies.into_iter().enumerate() {
            let before = world.backend.count();
            world.backend.set(move |_| reply.clone());
            let key = format!("k{number}");
            let [first, again] = [0, 1].map(|turn| pay("u1", &key).send_to(world.addr(turn)));
            let kind = first.header("x-kind").unwrap().to_owned();
            assert!(is_replay(&again), "{kind}");
            assert_eq!(again.status, first.status, "{kind}");
            assert_eq!(again.body, first.body, "{kind}");
            assert_eq!(again.header("x-kind"), Some(&*kind));
            assert_eq!(world.backend.count(), before + 1, "{kind}");
        }
    }
}

#[test]
fn without_a_key_a_write_runs_each_time_or_where_one_is_required_not_at_all() {
    let world = World::alone();
    let without = |target: &str| Request::post(target).bearer(&token("u1")).body("1");
    for _ in 0..2 {
        assert_eq!(without("/s/pay").send_to(world.addr(0)).status, 201);
    }
    // A read is one however often it is asked.
    for _ in 0..2 {
        let read = Request::get("/s/pay").bearer(&token("u1"));
        let read = read
            .header("Idempotency-Key", "a, b")
            .send_to(world.addr(0));
        assert_eq!((read.status, is_replay(&read)), (201, false));
    }
    assert_eq!(world.backend.count(), 4);
    let world = World::new(None, 1, |conf| conf.route("idempotency", "required"));
    let refused = without("/s/pay").send_to(world.addr(0));
    assert_eq!(code(&refused), (400, "IDEMPOTENCY_KEY_REQUIRED".to_owned()));
    assert_eq!(world.backend.heads_seen(), 0);
    assert_eq!(pay("u1", "k1").send_to(world.addr(0)).status, 201);
    assert_eq!(
        Request::get("/s/x")
            .bearer(&token("u1"))
            .send_to(world.addr(0))
            .status,
        201
    );
    assert_eq!(world.results("refused"), 1.0);
}

#[test]
fn what_is_no_key_is_refused() {
    let world = World::alone();
    let long = "x".repeat(256);
    for key in [
        "",
        "\"\"",
        "a b",
        "a,b",
        "a;p=1",
        "\"a\";p=1",
        "\"a",
        "a\"b",
        &long,
    ] {
        let refused = pay("u1", key).send_to(world.addr(0));
        assert_eq!(code(&refused), (400, "BAD_REQUEST".to_owned()), "{key:?}");
    }
    let twice = pay("u1", "k1")
        .header("Idempotency-Key", "k1")
        .send_to(world.addr(0));
    assert_eq!(twice.status, 400);
    assert_eq!(world.backend.heads_seen(), 0);
    assert_eq!(world.results("refused"), 10.0);
}

#[test]
fn a_key_is_its_callers_for_one_method_and_target_and_stands_for_one_body() {
    for world in World::both() {
        assert_eq!(pay("u1", "k1").send_to(world.addr(0)).status, 201);
        let of_u1 = || {
            Request::post("/s/pay")
                .bearer(&token("u1"))
                .header("Idempotency-Key", "k1")
        };
        for (what, other) in [
            ("body", of_u1().json(&json!({"amount": 101}))),
            (
                "spelling",
                of_u1()
                    .header("Content-Type", "application/json")
                    .body(r#"{"amount": 100}"#),
            ),
            (
                "kind",
                of_u1()
                    .header("Content-Type", "application/json; charset=utf-8")
                    .body(r#"{"amount":100}"#),
            ),
            (
                "no body",
                of_u1().header("Content-Type", "application/json").body(""),
            ),
        ] {
            let refused = other.send_to(world.addr(1));
            let expected = (422, "IDEMPOTENCY_KEY_REUSED".to_owned());
            assert_eq!(code(&refused), expected, "another {what}");
        }
        assert_eq!(world.backend.count(), 1);
        let amount = json!({"amount": 100});
        let mine = |request: Request| request.header("Idempotency-Key", "k1").json(&amount);
        let of_tenant = Token::user("u1").tenant("t2").hs256();
        let others = [
            mine(Request::post("/s/pay?x=1").bearer(&token("u1"))),
            mine(Request::post("/s/pay/2").bearer(&token("u1"))),
            mine(Request::method("PUT", "/s/pay").bearer(&token("u1"))),
            mine(Request::post("/s/pay").bearer(&token("u2"))),
            mine(Request::post("/s/pay").bearer(&of_tenant)),
        ];
        for (number, other) in others.iter().enumerate() {
            let ran = other.send_to(world.addr(1));
            assert_eq!((ran.status, is_replay(&ran)), (201, false), "{number}");
            assert_eq!(world.backend.count(), number + 2, "another's answer");
            assert!(is_replay(&other.send_to(world.addr(0))));
        }
        assert_eq!(world.results("reused"), 4.0);
    }
}

#[test]
fn no_key_and_no_id_stands_in_redis() {
    let world = World::shared(1);
    assert_eq!(
        pay("user-one", "key-one").send_to(world.addr(0)).status,
        201
    );
    let [key] = &world.keys()[..] else {
        panic!("{:?}", world.keys());
    };
    let digest = key.strip_prefix("idem:").unwrap();
    assert!(
        digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()),
        "{key}"
    );
    let record = world.redis().command(&["GET", key]);
    assert!(
        !record.contains("user-one") && !record.contains("key-one"),
        "{record}"
    );
    let left: i64 = world.redis().command(&["TTL", key]).parse().unwrap();
    assert!((86_300..=86_400).contains(&left), "{left}");
}

#[test]
fn a_key_ends_with_its_life() {
    for redis in [None, Some(Redis::start())] {
        let world = World::new(redis, 1, |conf| conf.top("idempotency", "{ life: 1s }"));
        let begun = Instant::now();
        assert_eq!(pay("u1", "k1").send_to(world.addr(0)).status, 201);
        if begun.elapsed() < Duration::from_millis(500) {
            assert!(is_replay(&pay("u1", "k1").send_to(world.addr(0))));
        }
        wait_until("it runs again", || {
            !is_replay(&pay("u1", "k1").send_to(world.addr(0)))
        });
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert_eq!(world.backend.count(), 2);
    }
}

#[test]
fn every_policy_is_asked_before_an_answer_comes_again() {
    let world = World::new(Some(Redis::start()), 1, |conf| {
        conf.top(
            "limits",
            "{ global: { max: 6, window: 60s }, flood: { per_second: 100000 } }",
        )
    });
    let own = Token::user("u1").claim("venues", json!(["v1"])).hs256();
    let at = |token: &str, venue: &str| {
        Request::post("/s/pay")
            .bearer(token)
            .header("X-Venue-ID", venue)
            .header("Idempotency-Key", "k1")
            .json(&json!({"amount": 100}))
            .send_to(world.addr(0))
    };
    assert_eq!(at(&own, "v1").status, 201);
    assert!(is_replay(&at(&own, "v1")));
    // The token does not say v1 any more.
    let other = Token::user("u1").claim("venues", json!(["v2"])).hs256();
    assert_eq!(at(&other, "v1").status, 404);
    // Another venue is another request.
    assert_eq!(code(&at(&other, "v2")).0, 422);
    world
        .redis()
        .command(&["SET", &format!("session:blacklist:{own}"), "1"]);
    wait_until("it is revoked", || at(&own, "v1").status == 401);
    let statuses: Vec<u16> = (0..3).map(|_| at(&other, "v2").status).collect();
    assert!(statuses.ends_with(&[429]), "{statuses:?}");
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn a_body_that_a_key_cannot_stand_for_is_refused() {
    // Of what is no JSON, bodies of this route are judged only where venues do not matter.
    let world = World::new(None, 1, |conf| conf.route("venues", "any"));
    let most = 64 << 10;
    for chunked in [false, true] {
        let request = |size: usize| {
            let body = noise(size);
            let request = Request::post("/s/pay")
                .bearer(&token("u1"))
                .header("Idempotency-Key", &format!("k{size}{chunked}"));
            match chunked {
                true => request.chunked(body.chunks(10_000).collect()),
                false => request.body(body),
            }
        };
        let ran = request(most).send_to(world.addr(0));
        assert_eq!(ran.status, 201, "{chunked}");
        assert!(is_replay(&request(most).send_to(world.addr(0))));
        let seen = world.backend.requests().pop().unwrap();
        assert_eq!(seen.body, noise(most), "all of it was sent on");
        let before = world.backend.heads_seen();
        assert_eq!(code(&request(most + 1).send_to(world.addr(0))).0, 413);
        assert_eq!(world.backend.heads_seen(), before);
    }
    // Without a key nothing has changed.
    let large = Request::post("/s/pay")
        .bearer(&token("u1"))
        .body(noise(most + 1));
    assert_eq!(large.send_to(world.addr(0)).status, 201);
}

#[test]
fn an_answer_that_is_not_kept_is_told_of_and_the_write_does_not_run_again() {
    for redis in [None, Some(Redis::start())] {
        let world = World::new(redis, 1, |conf| {
            conf.top("idempotency", "{ largest: 10KiB }")
        });
        let large = noise(30_000);
        let replies = [
            Reply::status(200).body(large.clone()),
            Reply::status(200).chunked(large.chunks(4_000).map(<[u8]>::to_vec).collect()),
            Reply::status(200)
                .header("Content-Type", "text/event-stream")
                .chunked(vec!["data: 1\n\n"]),
        ];
        for (number, reply) in replies.into_iter().enumerate() {
            let before = world.backend.count();
            world.backend.set(move |_| reply.clone());
            let key = format!("k{number}");
            let first = pay("u1", &key).send_to(world.addr(0));
            assert_eq!(first.status, 200);
            assert!(
                first.body == large || first.body == b"data: 1\n\n",
                "it is whole"
            );
            let again = pay("u1", &key).send_to(world.addr(0));
            assert_eq!(code(&again), (409, "ANSWER_NOT_KEPT".to_owned()));
            assert!(again.text().contains("200"), "{}", again.text());
            assert_eq!(world.backend.count(), before + 1);
        }
        assert_eq!(world.results("unkept"), 3.0);
    }
}

#[test]
fn a_payment_that_comes_again_well_is_given_back_to_its_limit() {
    let world = World::new(None, 1, |conf| {
        let payment = "{ max: 2, window: 1h, methods: [POST], skip_successes: true }";
        let rules = format!("rules: {{ payment: {payment} }}");
        conf.top(
            "limits",
            &format!("{{ flood: {{ per_second: 100000 }}, {rules} }}"),
        )
        .route("limits", "[payment]")
    });
    for turn in 0..5 {
        let response = pay("u1", "k1").send_to(world.addr(0));
        assert_eq!((response.status, is_replay(&response)), (201, turn > 0));
    }
}

#[test]
fn a_write_over_http2_is_the_same_as_one_over_http1() {
    for world in World::both() {
        run(async {
            let (client, _task) = Http2::connect(world.addr(0)).await;
            let body = json!({"amount": 100}).to_string();
            let request = |key: &str| {
                client
                    .request("POST", "/s/pay")
                    .header("authorization", format!("Bearer {}", token("u1")))
                    .header("content-type", "application/json")
                    .header("idempotency-key", key)
            };
            let first = client.fetch(request("k1"), body.as_bytes()).await.unwrap();
            assert_eq!(
                (first.status, first.header("idempotent-replayed")),
                (201, None)
            );
            let again = client.fetch(request("k1"), body.as_bytes()).await.unwrap();
            assert_eq!(again.header("idempotent-replayed"), Some("true"));
            assert_eq!((again.status, &again.body), (201, &first.body));
            let over_http1 = pay("u1", "k1").send_to(world.addr(1));
            assert!(is_replay(&over_http1));
            assert_eq!(over_http1.body, first.body);
            assert_eq!(world.backend.count(), 1);
            // Twins on one connection.
            world.backend.hold();
            let twins = (0..8).map(|_| client.fetch(request("k2"), body.as_bytes()));
            let twins = futures::future::join_all(twins);
            let release = async {
                while world.backend.count() < 2 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                world.backend.release();
            };
            let (answers, ()) = futures::join!(twins, release);
            let bodies: Vec<Vec<u8>> = answers.into_iter().map(|a| a.unwrap().body).collect();
            assert!(bodies.iter().all(|body| *body == bodies[0]), "one answer");
            assert_eq!(world.backend.count(), 2);
        });
    }
}

#[test]
fn an_http2_backends_answer_is_kept_with_and_without_a_body_or_trailers() {
    run(async {
        let answer = |status, pieces: Vec<&'static str>, trailers| Play::Answer {
            status,
            headers: vec![("x-kind", "h2".to_owned())],
            pieces: pieces
                .into_iter()
                .map(|piece| (Duration::ZERO, piece.into()))
                .collect(),
            trailers,
        };
        for (number, play) in [
            answer(200, vec!["a", "b"], vec![]),
            answer(200, vec![], vec![]),
            answer(200, vec!["a"], vec![("x-sum", "1".to_owned())]),
        ]
        .into_iter()
        .enumerate()
        {
            let backend = Http2Upstream::start(move |_| play.clone());
            let conf = Conf::of(&[backend.url()])
                .service("http2", "true")
                .route("auth", "token")
                .route("idempotency", "optional");
            let gateway = conf.start();
            let [first, again] = [0, 1].map(|_| pay("u1", "k1").send_to(gateway.addr()));
            assert_eq!((first.status, is_replay(&first)), (200, false), "{number}");
            assert!(is_replay(&again), "{number}");
            assert_eq!(again.body, first.body, "{number}");
            assert_eq!(backend.seen().len(), 1, "{number}");
        }
    });
}
