//! How often, in all processes together? One window in Redis, and what holds while it is away (decisions 20 and 23).

use crate::support::limited::{
    PATIENT, Race, TAKEN_UP, count, of, ready, seen, start, start_apart, start_with, statuses,
    taken_up,
};
use crate::support::prelude::*;
use std::thread;

/// Two seconds, for the tests in which it must pass.
const WINDOW: Duration = Duration::from_secs(2);

#[test]
fn so_many_in_a_row_pass_wherever_they_are_sent() {
    let redis = Redis::start();
    let (backend, [a, b, c]) = start(&redis, "global: { max: 7, window: 60s }");
    let request = of("u1", "/token");
    for (gateway, remaining) in [&a, &b, &c, &a, &a, &c, &b].into_iter().zip((0..7).rev()) {
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, 200);
        assert_eq!(number(&response, "X-RateLimit-Limit"), 7);
        assert_eq!(number(&response, "X-RateLimit-Remaining"), remaining);
        let reset = number(&response, "X-RateLimit-Reset");
        assert!((1..=60).contains(&reset), "{reset}");
    }
    for gateway in [&a, &b, &c] {
        let refused = request.send_to(gateway.addr());
        assert_eq!(refused.status, 429);
        assert_eq!(refused.json()["code"], "RATE_LIMIT_ERROR");
        assert_eq!(number(&refused, "X-RateLimit-Limit"), 7);
        assert_eq!(number(&refused, "X-RateLimit-Remaining"), 0);
        for name in ["Retry-After", "X-RateLimit-Reset"] {
            let seconds = number(&refused, name);
            assert!((1..=60).contains(&seconds), "{name}: {seconds}");
        }
        assert_eq!(
            gateway.metric(r#"rate_limit_hits_total{limit="caller"}"#),
            1.0
        );
    }
    assert_eq!(count(&backend), 7);
}

#[test]
fn processes_that_race_admit_together_exactly_the_limit() {
    let redis = Redis::start();
    let (backend, [a, b]) = start(
        &redis,
        "global: { max: 60, window: 60s }, search: { max: 40, window: 60s }",
    );
    let requests: Vec<Request> = (0..200)
        .map(|i| of("u1", ["/token", "/search"][i % 2]))
        .collect();
    let responses = thread::scope(|scope| {
        let races = [&a, &b].map(|gateway| {
            let (addr, requests) = (gateway.addr(), requests.clone());
            scope.spawn(move || burst(addr, requests, 8))
        });
        races.map(|race| race.join().unwrap()).concat()
    });
    let with = |status: u16| responses.iter().filter(|one| one.status == status).count();
    assert_eq!(
        (with(200), with(429)),
        (60, 340),
        "of both processes together"
    );
    assert_eq!(count(&backend), 60);
    let search = |one: &&Recorded| one.path() == "/search";
    let searches = seen(&backend).iter().filter(search).count();
    assert!(searches <= 40, "{searches}");
}

#[test]
fn no_trailing_window_ever_holds_more_than_the_limit() {
    let _alone = alone();
    let redis = Redis::start();
    let (backend, gateways) = start::<3>(&redis, "global: { max: 20, window: 2s }");
    let race = Race {
        max: 20,
        window: WINDOW,
        per_second: 150.0,
        time: 3 * WINDOW,
    };
    race.run(&backend, &gateways, &of("u1", "/token"));
}

#[test]
fn a_window_passes_for_all_processes_at_once_and_being_refused_does_not_prolong_it() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 2, window: 2s }");
    let request = of("u1", "/token");
    let first = Instant::now();
    let statuses = [&a, &a, &b].map(|gateway| request.send_to(gateway.addr()).status);
    if first.elapsed() < WINDOW {
        assert_eq!(statuses, [200, 200, 429]);
    }
    let passed = within(Duration::from_secs(10), || {
        let (here, there) = (request.send_to(b.addr()), request.send_to(a.addr()));
        let passed = here.status == 200 || there.status == 200;
        passed.then(|| first.elapsed())
    });
    let passed = passed.expect("the window is over, and the caller is refused still");
    assert!(passed >= WINDOW, "too early: {passed:?}");
    assert!(passed < 2 * WINDOW, "too late: {passed:?}");
}

#[test]
fn what_one_limit_refuses_spends_nothing_on_another_in_any_process() {
    let redis = Redis::start();
    let (backend, [a, b]) = start(
        &redis,
        "global: { max: 5, window: 60s }, search: { max: 2, window: 60s }",
    );
    assert_eq!(statuses(&a, &of("u1", "/search"), 3), [200, 200, 429]);
    assert_eq!(statuses(&b, &of("u1", "/search"), 4), [429; 4]);
    assert_eq!(statuses(&b, &of("u1", "/token"), 3), [200; 3]);
    assert_eq!(
        statuses(&a, &of("u1", "/token"), 1),
        [429],
        "five in all, and no refused one among them"
    );
    assert_eq!(count(&backend), 5);

    // The other way round: the global one refuses, the search limit keeps what it has.
    let first = of("u2", "/search").send_to(a.addr());
    assert_eq!(number(&first, "X-RateLimit-Limit"), 2, "the tightest one");
    assert_eq!(number(&first, "X-RateLimit-Remaining"), 1);
    assert_eq!(statuses(&b, &of("u2", "/token"), 4), [200; 4]);
    let refused = of("u2", "/search").send_to(a.addr());
    assert_eq!(refused.status, 429);
    assert_eq!(
        number(&refused, "X-RateLimit-Limit"),
        5,
        "the one that refused"
    );
    assert_eq!(
        statuses(&b, &of("u2", "/search-only"), 2),
        [200, 429],
        "one of two was left"
    );
}

#[test]
fn every_process_tells_the_standing_that_all_of_them_share() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 2, window: 20s }");
    let request = of("u1", "/token");
    let first = number(&request.send_to(a.addr()), "X-RateLimit-Reset");
    assert!((19..=20).contains(&first), "{first}");
    let lower = within(Duration::from_secs(10), || {
        let left = redis.command(&["PTTL", "rl:user:u1"]);
        (left.parse::<i64>().unwrap() < 18_000).then_some(())
    });
    assert!(lower.is_some(), "the key's life gets no shorter");
    let second = request.send_to(b.addr());
    assert_eq!(number(&second, "X-RateLimit-Remaining"), 0);
    let reset = number(&second, "X-RateLimit-Reset");
    assert!(
        reset < first,
        "until the other process' grant is over: {reset}"
    );
    for gateway in [&a, &b] {
        let refused = request.send_to(gateway.addr());
        assert_eq!(refused.status, 429);
        let wait = number(&refused, "Retry-After");
        assert!(wait <= reset && wait + 2 >= reset, "{wait} of {reset}");
    }
}

#[test]
fn all_limits_of_a_request_are_decided_in_one_call() {
    let redis = Redis::start();
    let (_backend, [a]) = start(
        &redis,
        "global: { max: 15, window: 60s }, search: { max: 10, window: 60s }",
    );
    redis.command(&["CONFIG", "RESETSTAT"]);
    let search = statuses(&a, &of("u1", "/search"), 12);
    assert_eq!(search, [[200; 10].as_slice(), &[429; 2]].concat());
    assert_eq!(statuses(&a, &of("u1", "/token"), 8)[5..], [429; 3]);
    assert_eq!(scripts_called(&redis), 20, "one for each request");
}

#[test]
fn limits_are_kept_under_the_documented_keys_that_go_by_themselves() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start_with(
        &redis,
        "global: { max: 50, window: 60s }, search: { max: 50, window: 2s }",
        PATIENT,
        |gateway| gateway.env("TRUSTED_PROXIES", "127.0.0.1/32"),
    );
    redis.command(&["FLUSHALL"]);
    let by_key = |name| Request::get("/either").header("X-API-Key", name);
    let forwarded = Request::get("/public").header("X-Forwarded-For", "192.0.2.1");
    let minute = 50_000..=62_000;
    let seconds = 1..=4_000;
    let cases = [
        (of("u1", "/token"), vec![("rl:user:u1", &minute)]),
        (by_key("partner-key"), vec![("rl:api:partner", &minute)]),
        (Request::get("/public"), vec![("rl:ip:127.0.0.1", &minute)]),
        (forwarded, vec![("rl:ip:192.0.2.1", &minute)]),
        (
            of("u2", "/search-only"),
            vec![("rl:user:u2:search", &seconds)],
        ),
        (
            of("u3", "/search"),
            vec![("rl:user:u3", &minute), ("rl:user:u3:search", &seconds)],
        ),
    ];
    let mut all = 0;
    for (request, keys) in cases {
        assert_eq!(request.send_to(gateway.addr()).status, 200, "{keys:?}");
        for (key, life) in &keys {
            let left: i64 = redis.command(&["PTTL", key]).parse().unwrap();
            assert!(life.contains(&left), "{key} lives for {left} ms");
        }
        all += keys.len();
    }
    // Fewer only when those of two seconds are gone already.
    let size: usize = redis.command(&["DBSIZE"]).parse().unwrap();
    assert!((all - 2..=all).contains(&size), "{size} keys, not {all}");
    wait_until("those of two seconds are gone", || {
        redis.command(&["EXISTS", "rl:user:u2:search", "rl:user:u3:search"]) == "0"
    });
}

#[test]
fn limits_that_are_turned_off_are_not_asked_for() {
    let redis = Redis::start();
    let (_backend, [gateway]) = start_apart(
        &redis,
        "global: { max: 1, window: 60s }",
        PATIENT,
        |gateway| gateway.env("RATE_LIMIT_ENABLED", "false"),
    );
    wait_until("redis is followed", || {
        ready(&gateway)["checks"]["redis"] == "ok"
    });
    assert_eq!(statuses(&gateway, &of("u1", "/search"), 5), [200; 5]);
    assert_eq!(scripts_called(&redis), 0);
    assert_eq!(redis.command(&["DBSIZE"]), "0");
}

#[test]
fn deleting_a_key_resets_its_limit_in_all_processes_at_once() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 3, window: 60s }");
    for reset in [
        ["DEL", "rl:user:u1"].as_slice(),
        &["UNLINK", "rl:user:u1"],
        &["FLUSHALL"],
        &["FLUSHDB"],
    ] {
        let request = of("u1", "/token");
        assert_eq!(statuses(&a, &request, 2), [200; 2], "{reset:?}");
        assert_eq!(statuses(&b, &request, 2), [200, 429], "{reset:?}");
        assert_eq!(statuses(&a, &request, 1), [429], "{reset:?}");
        redis.command(reset);
        let [here, there] = [&a, &b].map(|gateway| {
            let response = request.send_to(gateway.addr());
            assert_eq!(response.status, 200, "{reset:?}");
            number(&response, "X-RateLimit-Remaining")
        });
        assert_eq!((here, there), (2, 1), "{reset:?}");
        redis.command(&["DEL", "rl:user:u1"]);
    }
}

#[test]
fn deleting_one_callers_key_leaves_the_others_theirs() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(
        &redis,
        "global: { max: 2, window: 60s }, search: { max: 1, window: 60s }",
    );
    assert_eq!(statuses(&a, &of("u2", "/token"), 3), [200, 200, 429]);
    assert_eq!(statuses(&a, &of("u1", "/search-only"), 2), [200, 429]);
    assert_eq!(statuses(&a, &of("u1", "/token"), 3), [200, 200, 429]);
    redis.command(&["DEL", "rl:user:u1"]);
    assert_eq!(statuses(&b, &of("u2", "/token"), 1), [429], "another user");
    assert_eq!(
        statuses(&b, &of("u1", "/search-only"), 1),
        [429],
        "another limit"
    );
    assert_eq!(statuses(&b, &of("u1", "/token"), 3), [200, 200, 429]);
}

#[test]
fn a_key_of_another_type_does_no_harm() {
    for_foreign_keys(&[
        ("string", &["SET", "rl:user:string", "1"]),
        ("hash", &["HSET", "rl:user:hash", "field", "1"]),
        ("set", &["SADD", "rl:user:set", "1"]),
        ("sorted", &["ZADD", "rl:user:sorted", "1", "1"]),
        ("stream", &["XADD", "rl:user:stream", "*", "field", "1"]),
    ]);
}

#[test]
fn a_list_that_is_not_ours_does_no_harm() {
    for_foreign_keys(&[
        ("one", &["RPUSH", "rl:user:one", "1"]),
        ("two", &["RPUSH", "rl:user:two", "1", "2"]),
        ("words", &["RPUSH", "rl:user:words", "not", "our", "list"]),
        ("none", &["RPUSH", "rl:user:none", "0", "0", "0"]),
    ]);
}

#[test]
fn while_redis_is_dead_every_process_goes_on_from_what_it_knew() {
    let mut redis = Redis::start();
    let (backend, [a, b]) = start(&redis, "global: { max: 6, window: 60s }");
    let request = of("u1", "/token");
    assert_eq!(statuses(&a, &request, 1), [200]);
    assert_eq!(statuses(&b, &request, 2), [200; 2]);
    redis.kill();
    goes_on_from(&[(&a, 1), (&b, 3)], &request, 6);
    assert_eq!(count(&backend), 3 + 5 + 3);
    for gateway in [&a, &b] {
        is_degraded(gateway);
        assert_eq!(
            statuses(gateway, &of("u2", "/token"), 7)[5..],
            [200, 429],
            "whom it did not know"
        );
    }
}

#[test]
fn while_redis_is_silent_every_process_goes_on_from_what_it_knew() {
    let redis = Redis::start();
    let (backend, [a, b]) = start_with(
        &redis,
        "global: { max: 6, window: 60s }",
        "command_timeout: 300ms",
        |gateway| gateway,
    );
    let request = of("u1", "/token");
    assert_eq!(statuses(&a, &request, 1), [200]);
    assert_eq!(statuses(&b, &request, 2), [200; 2]);
    redis.freeze();
    goes_on_from(&[(&a, 1), (&b, 3)], &request, 6);
    assert_eq!(count(&backend), 3 + 5 + 3);
    for gateway in [&a, &b] {
        is_degraded(gateway);
        assert_eq!(
            statuses(gateway, &of("u2", "/token"), 7)[5..],
            [200, 429],
            "whom it did not know"
        );
    }
    redis.thaw();
}

#[test]
fn refused_by_all_is_refused_by_each_when_redis_goes() {
    let mut redis = Redis::start();
    let (_backend, [a, b]) = start(
        &redis,
        "global: { max: 4, window: 60s }, search: { max: 2, window: 60s }",
    );
    assert_eq!(statuses(&a, &of("u1", "/search"), 2), [200; 2]);
    // A refusal tells as well.
    assert_eq!(statuses(&b, &of("u1", "/search"), 1), [429]);
    redis.kill();
    for gateway in [&a, &b] {
        assert_eq!(statuses(gateway, &of("u1", "/search"), 2), [429; 2]);
        assert_eq!(
            statuses(gateway, &of("u1", "/token"), 3),
            [200, 200, 429],
            "two of four were spent by searching"
        );
    }
}

#[test]
fn a_window_that_began_in_redis_ends_in_time_without_it() {
    let mut redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 3, window: 4s }");
    let window = Duration::from_secs(4);
    let request = of("u1", "/token");
    let first = Instant::now();
    assert_eq!(statuses(&a, &request, 2), [200; 2]);
    assert_eq!(statuses(&b, &request, 1), [200]);
    let spent = Instant::now();
    redis.kill();
    let refused = request.send_to(b.addr());
    if first.elapsed() < window {
        assert_eq!(refused.status, 429);
    }
    let passed = within(Duration::from_secs(12), || {
        (request.send_to(b.addr()).status == 200).then(Instant::now)
    });
    let passed = passed.expect("the window is over, and the caller is refused still");
    assert!(passed - first >= window, "too early: {:?}", passed - first);
    assert!(
        passed - spent < 2 * window,
        "too late: {:?}",
        passed - spent
    );
}

#[test]
fn a_silent_redis_costs_the_first_requests_their_time_and_the_others_nothing() {
    let _alone = alone();
    let redis = Redis::start();
    let (_backend, [gateway]) = start_with(
        &redis,
        "global: { max: 1000000, window: 60s }",
        "",
        |gateway| gateway,
    );
    let load = || {
        let request = of("u1", "/token");
        let pause = Duration::from_millis(5);
        Load::on(gateway.addr()).clients("all", 2, pause, move |_| request.clone())
    };
    let before = load().run_for(Duration::from_secs(1));
    assert!(before.bad().is_empty(), "{before}");
    let running = load().start();
    wait_until("there is load", || running.answered() > 10);
    redis.freeze();
    let frozen = Instant::now();
    thread::sleep(Duration::from_secs(4));
    let during = running.stop().since(frozen);
    assert!(during.bad().is_empty(), "{during}");
    // Whoever waits for Redis waits for 50 ms.
    assert!(during.median() < Duration::from_millis(25), "{during}");
    assert!(
        during.percentile(97.0) < Duration::from_millis(50),
        "{during}"
    );
    assert!(
        during.percentile(100.0) < Duration::from_secs(1),
        "{during}"
    );
    println!("before: {before}; while redis is silent: {during}");
    redis.thaw();
    taken_up(&redis, &[&gateway], TAKEN_UP);
    let after = load().run_for(Duration::from_secs(1));
    assert!(after.bad().is_empty(), "{after}");
    println!("after: {after}");
}

#[test]
fn what_was_granted_while_redis_was_dead_is_spent_when_it_is_back() {
    let mut redis = Redis::start();
    let (_backend, [a, b]) = start(
        &redis,
        "global: { max: 10, window: 60s }, search: { max: 4, window: 60s }",
    );
    let request = of("u1", "/token");
    redis.kill();
    assert_eq!(statuses(&a, &request, 3), [200; 3]);
    assert_eq!(statuses(&b, &request, 2), [200; 2]);
    assert_eq!(statuses(&a, &of("u2", "/search"), 2), [200; 2]);
    assert_eq!(statuses(&b, &of("u2", "/search"), 4), [200; 4]);
    for gateway in [&a, &b] {
        is_degraded(gateway);
    }
    redis.restart();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    let here = request.send_to(a.addr());
    assert_eq!(number(&here, "X-RateLimit-Remaining"), 10 - 5 - 1);
    let there = request.send_to(b.addr());
    assert_eq!(number(&there, "X-RateLimit-Remaining"), 10 - 5 - 2);
    for gateway in [&a, &b] {
        assert_eq!(
            statuses(gateway, &of("u2", "/search"), 1),
            [429],
            "more than there was room for"
        );
        gateway.wait_metric("redis_up", |up| up == 1.0);
        wait_until("/ready says so", || {
            ready(gateway)["checks"]["redis"] == "ok"
        });
    }
    let left = statuses(&b, &of("u2", "/token"), 5);
    assert_eq!(left, [200, 200, 200, 200, 429], "six of ten were spent");
}

#[test]
fn what_was_granted_while_redis_was_silent_is_spent_when_it_is_back() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start_with(
        &redis,
        "global: { max: 30, window: 60s }",
        "command_timeout: 300ms",
        |gateway| gateway,
    );
    let request = of("u1", "/token");
    assert_eq!(statuses(&a, &request, 1), [200]);
    assert_eq!(statuses(&b, &request, 2), [200; 2]);
    redis.freeze();
    assert_eq!(statuses(&a, &request, 6), [200; 6]);
    assert_eq!(statuses(&b, &request, 5), [200; 5]);
    for gateway in [&a, &b] {
        is_degraded(gateway);
    }
    redis.thaw();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    let next = request.send_to(a.addr());
    let spent = 30 - number(&next, "X-RateLimit-Remaining");
    println!("15 were granted, {spent} are spent");
    assert!(spent > 3 + 11, "a double allowance: {spent}");
    // A command that had no answer in time may be carried out all the same.
    assert!(spent <= 15 + 11, "more than twice: {spent}");
    let there = request.send_to(b.addr());
    assert_eq!(30 - number(&there, "X-RateLimit-Remaining"), spent + 1);
    for gateway in [&a, &b] {
        gateway.wait_metric("redis_up", |up| up == 1.0);
    }
}

#[test]
fn one_foreign_key_does_not_keep_redis_from_being_taken_up() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start_with(
        &redis,
        "global: { max: 3, window: 60s }",
        "command_timeout: 300ms",
        |gateway| gateway,
    );
    redis.command(&["RPUSH", "rl:user:foreign", "not", "our", "list"]);
    redis.freeze();
    assert_eq!(statuses(&a, &of("foreign", "/token"), 1), [200]);
    assert_eq!(statuses(&a, &of("u1", "/token"), 2), [200; 2]);
    redis.thaw();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    // The first of the two may be spent twice: it had no answer in time.
    let there = statuses(&b, &of("u1", "/token"), 2);
    assert!(
        [[200, 429], [429; 2]].contains(&[there[0], there[1]]),
        "{there:?}"
    );
}

#[test]
fn without_redis_the_gateway_starts_limits_by_itself_and_takes_it_up_when_it_comes() {
    let mut redis = Redis::start();
    redis.kill();
    let (_backend, [a, b]) = start_apart(
        &redis,
        "global: { max: 5, window: 60s }",
        PATIENT,
        |gateway| gateway,
    );
    for gateway in [&a, &b] {
        assert_eq!(
            statuses(gateway, &of("u1", "/token"), 6),
            [200, 200, 200, 200, 200, 429],
            "each by itself"
        );
        is_degraded(gateway);
    }
    let request = of("u2", "/token");
    assert_eq!(statuses(&a, &request, 2), [200; 2]);
    assert_eq!(statuses(&b, &request, 1), [200]);
    redis.restart();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    assert_eq!(statuses(&b, &request, 1), [200]);
    assert_eq!(statuses(&a, &request, 2), [200, 429], "three were spent");
    assert_eq!(statuses(&b, &of("u1", "/token"), 1), [429]);
    for gateway in [&a, &b] {
        wait_until("/ready says so", || {
            ready(gateway)["checks"]["redis"] == "ok"
        });
    }
}

#[test]
fn redis_may_lose_its_scripts() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 10, window: 60s }");
    let request = of("u1", "/token");
    assert_eq!(statuses(&a, &request, 2), [200; 2]);
    for lost in 1..=2 {
        redis.command(&["SCRIPT", "FLUSH"]);
        assert_eq!(statuses(&a, &request, 1), [200]);
        assert_eq!(statuses(&b, &request, 1), [200]);
        taken_up(&redis, &[&a, &b], TAKEN_UP);
        // One connection may have lost its script after the other had told the journal: it is told again every second.
        let spent = (1 + 3 * lost).to_string();
        wait_until("redis knows of what was granted meanwhile", || {
            redis.command(&["LINDEX", "rl:user:u1", "0"]) == spent
        });
        let next = request.send_to(b.addr());
        let left = number(&next, "X-RateLimit-Remaining");
        assert_eq!(left, 10 - 2 - 3 * lost, "lost {lost} times");
    }
    assert_eq!(statuses(&a, &request, 3), [200, 200, 429]);
    assert_eq!(statuses(&b, &request, 1), [429]);
}

#[test]
fn a_redis_that_is_full_is_as_good_as_away() {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 6, window: 60s }");
    let request = of("u1", "/token");
    assert_eq!(statuses(&a, &request, 1), [200]);
    assert_eq!(statuses(&b, &request, 1), [200]);
    assert_eq!(statuses(&a, &of("last", "/token"), 1), [200]);
    let kept = || redis.command(&["DUMP", "rl:user:last"]);
    let before = kept();
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(statuses(&a, &request, 2), [200; 2]);
    let rest = statuses(&a, &of("u2", "/token"), 7);
    assert_eq!(rest, [200, 200, 200, 200, 200, 200, 429]);
    assert_eq!(statuses(&a, &of("last", "/token"), 1), [200]);
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    // What was granted last is told last.
    let told = within(TAKEN_UP, || (kept() != before).then_some(()));
    assert!(told.is_some(), "what was granted meanwhile is not told");
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    let left = statuses(&b, &request, 3);
    assert_eq!(left, [200, 200, 429], "four were spent");
    assert_eq!(statuses(&b, &of("u2", "/token"), 1), [429]);
}

#[test]
fn nothing_that_becomes_of_redis_fails_a_request() {
    let _alone = alone();
    let mut redis = Redis::start();
    let (_backend, [a, b]) = start_with(
        &redis,
        "global: { max: 100, window: 1s }, search: { max: 30, window: 1s }",
        "",
        |gateway| gateway,
    );
    let load = |gateway: &Gateway| {
        let requests = [of("u1", "/token"), of("u1", "/search"), of("u2", "/search")];
        let next = move |number: usize| requests[number % 3].clone();
        let pause = Duration::from_millis(5);
        Load::on(gateway.addr())
            .clients("all", 2, pause, next)
            .start()
    };
    let running = [load(&a), load(&b)];
    let more = || {
        let before = running.each_ref().map(Running::answered);
        wait_until("the load goes on", || {
            let now = running.iter().zip(before);
            now.clone()
                .all(|(load, before)| load.answered() >= before + 50)
        });
    };
    more();
    redis.command(&["SCRIPT", "FLUSH"]);
    more();
    redis.command(&["FLUSHALL"]);
    more();
    redis.kill();
    more();
    redis.restart();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    more();
    redis.freeze();
    more();
    redis.thaw();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    more();
    taken_up(&redis, &[&a, &b], TAKEN_UP);
    for load in running {
        let traffic = load.stop();
        println!("{traffic}");
        let other = traffic.only(|one| !matches!(one.end, Ok(200 | 429)));
        assert!(other.is_empty(), "{other}");
        assert!(
            traffic.percentile(100.0) < Duration::from_secs(2),
            "{traffic}"
        );
        assert!(!traffic.with_status(200).is_empty(), "{traffic}");
    }
}

/// Whatever is written under the key of a user, the limit holds and the key goes by itself.
#[track_caller]
fn for_foreign_keys(keys: &[(&str, &[&str])]) {
    let redis = Redis::start();
    let (_backend, [a, b]) = start(&redis, "global: { max: 3, window: 60s }");
    for (user, written) in keys {
        redis.command(written);
        let request = of(user, "/token");
        let answers = [&a, &b, &a, &b, &a].map(|gateway| request.send_to(gateway.addr()).status);
        assert_eq!(answers, [200, 200, 200, 429, 429], "{written:?}");
        let left = redis.command(&["PTTL", &format!("rl:user:{user}")]);
        let left: i64 = left.parse().unwrap();
        assert!(left > 0, "{written:?} stays for ever");
    }
}

/// Each of them has this many spent, as far as it knows; it grants what is left, and no more.
#[track_caller]
fn goes_on_from(known: &[(&Gateway, usize)], request: &Request, max: usize) {
    for (which, (gateway, spent)) in known.iter().enumerate() {
        for left in (0..max - spent).rev() {
            let response = request.send_to(gateway.addr());
            assert_eq!(response.status, 200, "gateway {which}: {left} are left");
            assert_eq!(
                number(&response, "X-RateLimit-Remaining"),
                left as u64,
                "gateway {which}"
            );
        }
        let refused = request.send_to(gateway.addr());
        assert_eq!(refused.status, 429, "gateway {which}");
        let seconds = number(&refused, "Retry-After");
        assert!((1..=60).contains(&seconds), "gateway {which}: {seconds}");
    }
}

/// /ready and the metrics say that Redis is away, and the gateway is ready all the same.
#[track_caller]
fn is_degraded(gateway: &Gateway) {
    wait_until("/ready says so", || {
        ready(gateway)["checks"]["redis"] == "degraded"
    });
    gateway.wait_metric("redis_up", |up| up == 0.0);
}

/// How many scripts Redis has been asked to run since it started, or since its last CONFIG RESETSTAT.
fn scripts_called(redis: &Redis) -> usize {
    let stats = redis.command(&["INFO", "commandstats"]);
    let is_script = |name: &str| name.starts_with("eval") || name.starts_with("fcall");
    stats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="))
        .filter(|(name, _)| is_script(name))
        .map(|(_, rest)| rest.split(',').next().unwrap().parse::<usize>().unwrap())
        .sum()
}
