//! What processes tell each other of what is out of date: by clocks that differ, while one of them is away, and at its end.

use super::{conf, fresh, get, is_hit, knows_redis, on, purge, stored, text};
use crate::support::prelude::*;
use std::net::TcpStream;
use std::time::SystemTime;

const TERM: i32 = 15;

/// Of the follower, as Redis hears it.
const LISTENS: &str = "SUBSCRIBE";

/// More than any clock may be behind.
const SKEW: Duration = Duration::from_secs(2);

fn tagged(backend: &Upstream) -> Conf {
    conf(backend)
        .route("path", "'/s/{kind}/{event}'")
        .route("cache", "{ tags: ['event:{event}'] }")
        .top("redis", "{ command_timeout: 5s }")
}

fn through(between: &Between, conf: &Conf) -> Gateway {
    let (ip, port) = (between.addr().ip(), between.addr().port());
    let gateway = conf.gateway().env("REDIS_HOST", ip).env("REDIS_PORT", port);
    let gateway = gateway.start();
    knows_redis(&gateway);
    gateway
}

#[track_caller]
fn keep(gateway: &Gateway, path: &str) {
    get(gateway, path);
    stored(gateway, &Request::get(path));
}

/// Microseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_micros() as u64
}

/// A purge by this prefix, as it stands in Redis.
fn everything_at(prefix: &str) -> String {
    json!({"tenant": null, "prefix": prefix}).to_string()
}

#[test]
fn what_was_said_while_nobody_listened_holds_although_the_clock_there_was_behind() {
    let redis = Redis::start();
    let between = Between::start(redis.addr());
    let backend = fresh();
    let conf = conf(&backend).top("redis", "{ command_timeout: 5s }");
    let gateway = through(&between, &conf);
    for path in ["/s/behind", "/s/ahead", "/s/before"] {
        keep(&gateway, path);
    }
    let asked = now();
    let old: Vec<_> = ["/s/behind", "/s/ahead"]
        .map(|path| text(&gateway, path))
        .into();
    let skew = SKEW.as_micros() as u64;
    for (prefix, at) in [
        // Said now by a clock that is behind.
        ("/s/behind", asked - skew * 3 / 4),
        ("/s/ahead", asked + skew * 3 / 4),
        // Longer ago than any clock is behind.
        ("/s/before", asked - 2 * skew),
    ] {
        redis.command(&[
            "HSET",
            "cache:invalid",
            &everything_at(prefix),
            &at.to_string(),
        ]);
    }
    assert!(
        is_hit(&get(&gateway, "/s/behind")),
        "it has not heard of it"
    );
    between.cut(LISTENS);
    for (path, old) in ["/s/behind", "/s/ahead"].iter().zip(&old) {
        wait_until(&format!("{path} is asked for anew"), || {
            text(&gateway, path) != *old
        });
    }
    assert!(
        is_hit(&get(&gateway, "/s/before")),
        "it was kept after that"
    );
    for path in ["/s/behind", "/s/ahead"] {
        // Nothing is out of date for ever: twice the clocks' difference at most.
        let again = within(3 * SKEW, || is_hit(&get(&gateway, path)).then_some(()));
        assert!(again.is_some(), "{path} is not kept any more");
    }
}

#[test]
fn what_is_said_while_what_was_said_is_read_is_read_before_the_tier_is_trusted() {
    const OLD: usize = 20;
    let redis = Redis::start();
    let between = Between::start(redis.addr());
    let backend = fresh();
    let conf = conf(&backend).top("redis", "{ command_timeout: 5s }");
    let teller = on(&redis, &conf).start();
    knows_redis(&teller);
    let reader = through(&between, &conf);
    for number in 0..OLD {
        text(&teller, &format!("/s/{number}"));
    }
    wait_until("all are in Redis", || {
        let keys = redis.command(&["KEYS", "cache:*:*"]);
        keys.split_whitespace().count() >= OLD
    });
    assert!(is_hit(&get(&reader, "/s/0")), "they share what is kept");
    let follows = || {
        let lines = reader.log_lines();
        let said = |line: &&Value| {
            line["msg"]
                .as_str()
                .is_some_and(|m| m.contains("are followed"))
        };
        lines.iter().filter(said).count()
    };
    let (reads, before) = (between.said("HGETALL"), follows());
    between.hold_answers("HGETALL");
    between.cut(LISTENS);
    wait_until("it is read", || between.held() == 1);
    between.cut(LISTENS);
    purge(&teller, &json!({"prefix": "/s/"}));
    wait_until("it listens again", || follows() == before + 2);
    between.release();
    wait_until("it is read anew", || between.said("HGETALL") == reads + 2);
    for number in 1..OLD {
        let response = get(&reader, &format!("/s/{number}"));
        assert!(!is_hit(&response), "{number}: {}", response.text());
    }
    assert_eq!(backend.count(), 2 * OLD - 1);
    between.release_all();
    let other = on(&redis, &conf).start();
    knows_redis(&other);
    let mut tries = 0..;
    wait_until("the tier is trusted again", || {
        let path = format!("/s/new/{}", tries.next().unwrap_or_default());
        text(&other, &path);
        is_hit(&get(&reader, &path))
    });
}

#[test]
fn another_process_may_say_something_in_the_same_microsecond() {
    let redis = Redis::start();
    let backend = fresh();
    let gateway = on(&redis, &tagged(&backend)).start();
    knows_redis(&gateway);
    for path in ["/s/a/1", "/s/b/2"] {
        keep(&gateway, path);
    }
    purge(&gateway, &json!({"tag": "event:1"}));
    let words = || redis.command(&["HVALS", "cache:invalid"]);
    wait_until("it is told", || !words().is_empty());
    let at: u64 = words().parse().expect("one word");
    let kept = get(&gateway, "/s/b/2");
    assert!(is_hit(&kept), "that was another");
    let word = json!({"at": at, "prefix": {"tenant": null, "prefix": "/s/b"}}).to_string();
    redis.command(&["PUBLISH", "cache:purge", &word]);
    wait_until("it is asked for anew", || {
        text(&gateway, "/s/b/2") != kept.text()
    });
}

#[test]
fn what_was_put_out_of_date_right_before_the_end_of_a_process_reaches_the_others() {
    let redis = Redis::start();
    let between = Between::start(redis.addr());
    let backend = fresh();
    let conf = tagged(&backend).and_route(
        "{ path: '/buy/{event}', service: s, auth: public, invalidates: ['event:{event}'] }",
    );
    let other = on(&redis, &conf).start();
    knows_redis(&other);
    type Change = fn(&Gateway);
    let changes: [(&str, Change); 2] = [
        ("a purge", |gateway| {
            let _ = purge(gateway, &json!({"key": "/s/a/1"}));
        }),
        ("a write", |gateway| {
            let bought = Request::post("/buy/1").send_to(gateway.addr());
            assert_eq!(bought.status, 200);
        }),
    ];
    for (what, change) in changes {
        let ends = through(&between, &conf);
        keep(&other, "/s/a/1");
        let old = text(&other, "/s/a/1");
        between.hold_commands("HSET");
        change(&ends);
        wait_until("it is being told", || between.held() == 1);
        ends.signal(TERM);
        wait_until("new connections are refused", || {
            TcpStream::connect(ends.addr()).is_err()
        });
        let exit = ends.wait_exit(Duration::from_millis(300));
        assert_eq!(
            exit, None,
            "{what}: the process ended before Redis had heard of it"
        );
        between.release_all();
        assert_eq!(ends.wait_exit(Duration::from_secs(10)), Some(0), "{what}");
        wait_until("the other process has heard of it", || {
            text(&other, "/s/a/1") != old
        });
        assert!(
            !redis.command(&["HVALS", "cache:invalid"]).is_empty(),
            "{what}"
        );
    }
}

#[test]
fn words_that_redis_never_hears_are_counted_at_the_end() {
    let mut redis = Redis::start();
    let backend = fresh();
    let gateway = on(&redis, &tagged(&backend)).start();
    knows_redis(&gateway);
    redis.kill();
    wait_until("it is noticed", || gateway.metric("redis_up") == 0.0);
    purge(&gateway, &json!({"key": "/s/a/1"}));
    gateway.signal(TERM);
    // A field, how long it stays, and the message.
    gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.contains("3 ends of writes, revocations and words on what is out of date")
    });
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)), Some(0));
}
