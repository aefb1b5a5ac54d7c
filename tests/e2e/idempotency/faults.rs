//! What fails on the way: a write that was surely not done may run again, and one that may have been done never does.

use super::*;
use crate::support::http2::{Http2, run};

fn unknown() -> (u16, String) {
    (409, "OUTCOME_UNKNOWN".to_owned())
}

#[test]
fn what_was_not_sent_may_run_again() {
    for redis in [None, Some(Redis::start())] {
        let mut world = World::new(redis, 1, |conf| {
            conf.top("breaker", "{ volume: 4, reset: 1s }")
        });
        world.backend.stop();
        for _ in 0..4 {
            let refused = pay("u1", "k1").send_to(world.addr(0));
            assert_eq!(refused.status, 503, "no connection: {}", refused.text());
        }
        let state = world.gateways[0].metric(r#"circuit_breaker_state{service="s"}"#);
        assert_eq!(state, 1.0, "and now the breaker is open");
        assert_eq!(pay("u1", "k1").send_to(world.addr(0)).status, 503);
        world.backend.restart();
        numbered(&world.backend);
        wait_until("it runs", || {
            pay("u1", "k1").send_to(world.addr(0)).status == 201
        });
        assert!(is_replay(&pay("u1", "k1").send_to(world.addr(0))));
        assert_eq!(world.backend.count(), 1);
        assert_eq!(world.results("unknown"), 0.0);
        // A backend that says that it did nothing, and when to come again.
        let undone = [
            Reply::status(429).body("slower"),
            Reply::status(503).header("Retry-After", "1").body("later"),
        ];
        for (number, reply) in undone.into_iter().enumerate() {
            let key = format!("undone-{number}");
            world.backend.set(move |_| reply.clone());
            let first = pay("u1", &key).send_to(world.addr(0));
            assert!([429, 503].contains(&first.status) && !first.body.is_empty());
            numbered(&world.backend);
            let again = pay("u1", &key).send_to(world.addr(0));
            assert_eq!((again.status, is_replay(&again)), (201, false));
        }
        world.gateways.clear();
    }
}

#[test]
fn what_was_sent_and_has_no_answer_never_runs_again_by_itself() {
    for redis in [None, Some(Redis::start())] {
        let world = World::new(redis, 1, |conf| conf.route("timeout", "700ms"));
        let no_answers = [
            (Reply::reset(), 502),
            (Reply::raw("no HTTP at all\r\n\r\n").then_close(), 502),
            (Reply::hang(), 504),
        ];
        for (number, (reply, status)) in no_answers.into_iter().enumerate() {
            world.backend.set(move |_| reply.clone());
            let key = format!("k{number}");
            let before = world.backend.count();
            assert_eq!(pay("u1", &key).send_to(world.addr(0)).status, status);
            numbered(&world.backend);
            for _ in 0..3 {
                let again = pay("u1", &key).send_to(world.addr(0));
                assert_eq!(code(&again), unknown());
                assert_eq!(again.header("retry-after"), None, "waiting does not help");
            }
            assert_eq!(world.backend.count(), before + 1);
            let line = world.gateways[0].wait_log(|line| line["context"] == "idempotency");
            assert!(line["msg"].as_str().unwrap().starts_with("idem:"), "{line}");
        }
        // An answer that breaks off is none.
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
        world.backend.set(move |_| Reply::raw(half).then_close());
        let mut connection = Client::to(world.addr(0)).connect();
        connection.send(&pay("u1", "half").bytes());
        assert!(connection.try_read_response().is_err());
        assert_eq!(code(&pay("u1", "half").send_to(world.addr(0))), unknown());
        // Until the operator, who knows what has happened, ends it.
        if world.redis.is_some() {
            let keys = world.keys();
            assert_eq!(keys.len(), 4);
            for key in keys {
                world.redis().command(&["DEL", &key]);
            }
            numbered(&world.backend);
            assert_eq!(pay("u1", "half").send_to(world.addr(0)).status, 201);
        }
    }
}

#[test]
fn retries_stay_inside_one_run() {
    let world = World::new(None, 1, |conf| {
        conf.top(
            "retry",
            "{ max_retries: 3, base_delay: 1ms, budget_min: 1000 }",
        )
    });
    let turn = AtomicUsize::new(0);
    world
        .backend
        .set(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::status(500),
            1 => Reply::reset(),
            _ => Reply::status(201).body("paid"),
        });
    let first = pay("u1", "k1").send_to(world.addr(0));
    assert_eq!((first.status, first.text()), (201, "paid"));
    assert!(is_replay(&pay("u1", "k1").send_to(world.addr(0))));
    let keys: Vec<String> = world
        .backend
        .requests()
        .iter()
        .map(|r| r.header("idempotency-key").unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["k1"; 3], "the service can tell as well");
    assert_eq!(world.results("run"), 1.0);
}

#[test]
fn a_refusal_behind_an_attempt_that_may_have_run_does_not_free_the_key() {
    let world = World::new(None, 1, |conf| {
        conf.top(
            "retry",
            "{ max_retries: 1, base_delay: 1ms, budget_min: 1000 }",
        )
    });
    let too_many = || Reply::status(429).header("retry-after", "1");
    let turn = AtomicUsize::new(0);
    world
        .backend
        .set(move |_| match turn.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::reset(),
            _ => too_many(),
        });
    assert_eq!(pay("u1", "k1").send_to(world.addr(0)).status, 429);
    let again = pay("u1", "k1").send_to(world.addr(0));
    assert_eq!(code(&again), unknown());
    assert_eq!(world.backend.requests().len(), 2);
    // Where nothing else was sent, it is free.
    assert_eq!(pay("u1", "k2").send_to(world.addr(0)).status, 429);
    assert_eq!(pay("u1", "k2").send_to(world.addr(0)).status, 429);
    assert_eq!(world.backend.requests().len(), 4);
}

#[test]
fn the_answer_is_kept_although_nobody_takes_it() {
    let pieces = [
        "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n",
        "3\r\none\r\n",
        "3\r\ntwo\r\n",
        "0\r\n\r\n",
    ];
    for world in World::both() {
        for (number, (reset, in_body)) in
            [(false, false), (true, false), (false, true), (true, true)]
                .into_iter()
                .enumerate()
        {
            let key = format!("k{number}");
            let reply = Reply::paced(pieces, Duration::from_millis(60));
            world.backend.set(move |_| reply.clone());
            world.backend.hold();
            let before = world.backend.count();
            let mut connection = Client::to(world.addr(0)).connect();
            connection.send(&pay("u1", &key).bytes());
            world.backend.wait_requests(before + 1);
            if in_body {
                world.backend.release();
                assert!(connection.read_up_to(12).starts_with(b"HTTP/1.1 201"));
            }
            match reset {
                true => connection.reset(),
                false => drop(connection),
            }
            world.backend.release();
            // Waits for its end, in this process or from another one.
            let again = pay("u1", &key).send_to(world.addr(1));
            assert_eq!(
                (again.status, again.text(), is_replay(&again)),
                (201, "onetwo", true)
            );
            assert_eq!(world.backend.count(), before + 1, "{key}");
        }
    }
}

#[test]
fn the_answer_is_kept_although_its_http2_stream_was_reset() {
    let world = World::alone();
    for in_body in [false, true] {
        let key = format!("k{in_body}");
        let reply = Reply::paced(
            [
                "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n",
                "3\r\none\r\n",
                "3\r\ntwo\r\n",
                "0\r\n\r\n",
            ],
            Duration::from_millis(60),
        );
        world.backend.set(move |_| reply.clone());
        world.backend.hold();
        let before = world.backend.count();
        run(async {
            let (client, _task) = Http2::connect(world.addr(0)).await;
            let request = client
                .request("POST", "/s/pay")
                .header("authorization", format!("Bearer {}", token("u1")))
                .header("content-type", "application/json")
                .header("idempotency-key", &key);
            let (answer, mut stream) = client.begin(request, false).await;
            let body = json!({"amount": 100}).to_string();
            stream.send_data(body.into(), true).unwrap();
            while world.backend.count() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if in_body {
                world.backend.release();
                let answer = answer.await.unwrap();
                assert_eq!(answer.status(), 201);
                stream.send_reset(h2::Reason::CANCEL);
                drop(answer);
            } else {
                stream.send_reset(h2::Reason::CANCEL);
                drop(answer);
            }
            drop(stream);
            client.get("/s/x").await;
        });
        world.backend.release();
        let again = pay("u1", &key).send_to(world.addr(0));
        assert_eq!(
            (again.status, again.text(), is_replay(&again)),
            (201, "onetwo", true)
        );
        let paid = world
            .backend
            .requests()
            .iter()
            .filter(|r| r.header("idempotency-key") == Some(&*key))
            .count();
        assert_eq!(paid, 1, "{key}");
    }
}

#[test]
fn who_has_waited_in_vain_is_told_when_to_come_again() {
    for world in World::both() {
        world.backend.hold();
        let mut first = Client::to(world.addr(0)).connect();
        first.send(&pay("u1", "k1").bytes());
        world.backend.wait_requests(1);
        for turn in [0, 1] {
            let begun = Instant::now();
            let soon = std::time::SystemTime::now() + Duration::from_millis(600);
            let soon = soon
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_millis();
            let twin = pay("u1", "k1").header("X-Request-Deadline", &soon.to_string());
            let told = twin.send_to(world.addr(turn));
            assert_eq!(code(&told), (409, "REQUEST_IN_PROGRESS".to_owned()));
            assert_eq!(told.header("retry-after"), Some("1"));
            assert!(begun.elapsed() >= Duration::from_millis(400), "it did wait");
        }
        world.backend.release();
        assert_eq!(first.read_response().status, 201);
        assert!(is_replay(&pay("u1", "k1").send_to(world.addr(1))));
        assert_eq!(world.backend.count(), 1);
        assert_eq!(world.results("in_progress"), 2.0);
    }
}

#[test]
fn while_redis_is_away_no_write_with_a_key_runs_and_every_other_does() {
    let mut world = World::new(Some(Redis::start()), 2, |conf| conf.top("redis", "{}"));
    for freeze in [true, false] {
        let runs = |world: &World, key: &str| {
            let came = within(TAKEN_UP, || {
                let answers = [0, 1].map(|turn| pay("u1", key).send_to(world.addr(turn)).status);
                (answers == [201; 2]).then_some(())
            });
            assert!(came.is_some(), "{key} does not run");
        };
        runs(&world, &format!("before-{freeze}"));
        match freeze {
            true => world.redis().freeze(),
            false => world.redis.as_mut().unwrap().kill(),
        }
        let before = world.backend.count();
        let key = format!("away-{freeze}");
        for turn in 0..4 {
            let refused = pay("u1", &key).send_to(world.addr(turn));
            assert_eq!(code(&refused), (503, "SERVICE_UNAVAILABLE".to_owned()));
            assert_eq!(refused.header("retry-after"), Some("1"));
        }
        assert_eq!(world.backend.count(), before);
        let keyless = Request::post("/s/pay").bearer(&token("u1")).body("1");
        assert_eq!(keyless.send_to(world.addr(0)).status, 201);
        match freeze {
            true => world.redis().thaw(),
            false => world.redis.as_mut().unwrap().restart(),
        }
        // What was asked for meanwhile was not taken by anybody.
        runs(&world, &key);
        assert_eq!(world.backend.count(), before + 2);
    }
}

#[test]
fn an_answer_that_comes_while_redis_is_away_is_kept_when_it_is_back() {
    let mut world = World::new(Some(Redis::start()), 2, |conf| conf.top("redis", "{}"));
    for freeze in [true, false] {
        let key = format!("k-{freeze}");
        world.backend.hold();
        let before = world.backend.count();
        let mut first = Client::to(world.addr(0)).connect();
        // The first try may meet a Redis that was not taken up again.
        let sent = within(TAKEN_UP, || {
            first.send(&pay("u1", &key).bytes());
            let came = within(Duration::from_millis(500), || {
                (world.backend.count() > before).then_some(())
            });
            if came.is_none() {
                assert_eq!(first.read_response().status, 503);
            }
            came
        });
        assert!(sent.is_some());
        match freeze {
            true => world.redis().freeze(),
            false => world.redis.as_mut().unwrap().kill(),
        }
        world.backend.release();
        let answer = first.read_response();
        assert_eq!(answer.status, 201, "it has come about, and is told");
        for turn in [0, 1] {
            assert_eq!(pay("u1", &key).send_to(world.addr(turn)).status, 503);
        }
        match freeze {
            true => world.redis().thaw(),
            false => world.redis.as_mut().unwrap().restart(),
        }
        let written = within(TAKEN_UP, || {
            let keys = world.keys();
            let done = |key: &String| world.redis().command(&["GET", key]).starts_with("done ");
            keys.iter()
                .all(done)
                .then_some(())
                .filter(|()| !keys.is_empty())
        });
        assert!(written.is_some(), "the answer is not kept");
        let again = within(TAKEN_UP, || {
            let again = pay("u1", &key).send_to(world.addr(1));
            (again.status == 201).then_some(again)
        });
        let again = again.expect("it comes again");
        assert!(is_replay(&again) && again.body == answer.body);
        assert_eq!(world.backend.count(), before + 1);
    }
}
