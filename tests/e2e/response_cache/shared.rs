//! The second tier, in Redis: what processes share, and what holds while it is away or lies.

use super::{conf, fresh, get, is_hit, knows_redis, on, stored, text};
use crate::support::prelude::*;

/// More than one command's 50 ms, on a busy machine; less than any waiting for a connection.
const LIMIT: Duration = Duration::from_millis(500);

#[track_caller]
fn pair(redis: &Redis, backend: &Upstream) -> [Gateway; 2] {
    let conf = conf(backend).top("redis", "{ command_timeout: 2s }");
    let gateways = [on(redis, &conf).start(), on(redis, &conf).start()];
    gateways.iter().for_each(knows_redis);
    gateways
}

fn cached_keys(redis: &Redis) -> Vec<String> {
    let keys = redis.command(&[
        "EVAL",
        "return table.concat(redis.call('KEYS','cache:*:*'),' ')",
        "0",
    ]);
    keys.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn what_one_process_has_fetched_another_serves() {
    let redis = Redis::start();
    let backend = fresh();
    let [a, b] = pair(&redis, &backend);
    assert_eq!(text(&a, "/s/x"), "answer 1");
    wait_until("it is in Redis", || !cached_keys(&redis).is_empty());
    let hit = get(&b, "/s/x");
    assert_eq!(hit.text(), "answer 1");
    assert!(is_hit(&hit));
    assert!(number(&hit, "age") < 20);
    assert_eq!(backend.count(), 1);
    drop(b);
    let conf = conf(&backend);
    let c = on(&redis, &conf).start();
    knows_redis(&c);
    assert_eq!(
        text(&c, "/s/x"),
        "answer 1",
        "one that was started later, too"
    );
    for key in cached_keys(&redis) {
        let left: i64 = redis.command(&["TTL", &key]).parse().unwrap();
        assert!((1..=3600).contains(&left), "{key} lives for {left} s");
    }
}

#[test]
fn who_wants_only_what_is_kept_is_given_what_another_process_keeps() {
    let redis = Redis::start();
    let backend = fresh();
    let [a, b] = pair(&redis, &backend);
    let only = |path: &str, more: &str| {
        let asked = format!("only-if-cached{more}");
        Request::get(path).header("Cache-Control", &asked)
    };
    text(&a, "/s/x");
    wait_until("it is in Redis", || !cached_keys(&redis).is_empty());
    assert_eq!(only("/s/other", "").send_to(b.addr()).status, 504);
    let too_old = only("/s/x", ", min-fresh=600").send_to(b.addr());
    assert_eq!(too_old.status, 504, "{}", too_old.text());
    drop(b);
    let conf = conf(&backend);
    let c = on(&redis, &conf).start();
    knows_redis(&c);
    let kept = within(LIMIT * 10, || {
        let kept = only("/s/x", "").send_to(c.addr());
        (kept.status == 200).then_some(kept)
    });
    let kept = kept.expect("it is asked for in Redis, too");
    assert!(is_hit(&kept), "{:?}", kept.headers_named("cache-status"));
    assert_eq!(kept.text(), "answer 1");
    redis.freeze();
    let began = Instant::now();
    assert_eq!(only("/s/y", "").send_to(c.addr()).status, 504);
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    redis.thaw();
    assert_eq!(backend.count(), 1, "it is never asked");
}

#[test]
fn what_says_it_is_fresh_for_ages_does_not_stay_in_redis_for_ever() {
    let redis = Redis::start();
    let backend = super::saying("max-age=99999999999");
    let [a, _b] = pair(&redis, &backend);
    text(&a, "/s/x");
    wait_until("it is in Redis", || !cached_keys(&redis).is_empty());
    for key in cached_keys(&redis) {
        let left: i64 = redis.command(&["TTL", &key]).parse().unwrap();
        assert!(left > 0, "{key} has no end");
    }
}

#[test]
fn what_another_process_puts_out_of_date_is_so_although_its_clock_is_behind() {
    let redis = Redis::start();
    let backend = fresh();
    let gateway = on(&redis, &conf(&backend)).start();
    knows_redis(&gateway);
    get(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    assert_eq!(backend.count(), 1);
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    // There it is not yet as late as it was here when this was asked for.
    let at = (now - Duration::from_secs(60)).as_micros() as u64;
    let message = json!({"at": at, "prefix": {"tenant": null, "prefix": "/s/"}}).to_string();
    wait_until("it is asked for anew", || {
        redis.command(&["PUBLISH", "cache:purge", &message]);
        !is_hit(&get(&gateway, "/s/x"))
    });
    assert_eq!(
        text(&gateway, "/s/y"),
        format!("answer {}", backend.count())
    );
}

#[test]
fn without_redis_hits_go_on_misses_do_not_wait_and_it_is_taken_up_again() {
    let mut redis = Redis::start();
    let backend = fresh();
    let conf = conf(&backend);
    let gateway = on(&redis, &conf).start();
    knows_redis(&gateway);
    get(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    redis.kill();
    for number in 0..20 {
        let began = Instant::now();
        assert!(is_hit(&get(&gateway, "/s/x")));
        assert_eq!(get(&gateway, &format!("/s/{number}")).status, 200);
        assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    }
    redis.restart();
    let back = within(Duration::from_secs(10), || {
        get(&gateway, &format!("/s/again/{}", backend.count()));
        (!cached_keys(&redis).is_empty()).then_some(())
    });
    assert!(back.is_some(), "nothing is stored in Redis again");
}

#[test]
fn a_frozen_redis_costs_no_request_more_than_its_time_out() {
    let redis = Redis::start();
    let backend = fresh();
    let conf = conf(&backend);
    let gateway = on(&redis, &conf).start();
    knows_redis(&gateway);
    get(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    redis.freeze();
    let began = Instant::now();
    for number in 0..40 {
        let each = Instant::now();
        assert!(is_hit(&get(&gateway, "/s/x")));
        assert_eq!(get(&gateway, &format!("/s/{number}")).status, 200);
        assert!(each.elapsed() < LIMIT, "{:?}", each.elapsed());
    }
    let took = began.elapsed();
    redis.thaw();
    println!("measured: 80 requests beside a frozen Redis took {took:?}");
    assert!(
        took < Duration::from_secs(2),
        "{took:?}: they wait each time"
    );
}

#[test]
fn a_purge_that_redis_did_not_hear_is_not_undone_when_it_is_back() {
    let mut redis = Redis::start();
    let backend = fresh();
    let [a, b] = pair(&redis, &backend);
    get(&a, "/s/x");
    stored(&b, &Request::get("/s/x"));
    redis.kill();
    wait_until("it is noticed", || a.metric("redis_up") == 0.0);
    let before = text(&a, "/s/x");
    super::purge(&a, &json!({"key": "/s/x"}));
    assert_ne!(text(&a, "/s/x"), before, "here it is gone at once");
    redis.restart();
    knows_redis(&a);
    assert_ne!(text(&a, "/s/x"), before);
}

#[test]
fn a_hostile_value_in_redis_is_a_miss_and_never_an_answer() {
    type Attack = fn(&Redis, &str, &str);
    let attacks: [(&str, Attack); 9] = [
        ("no value of ours", |redis, key, _| {
            redis.command(&["SET", key, "HTTP/1.1 200 OK\r\n\r\nevil"]);
        }),
        ("nothing", |redis, key, _| {
            drop(redis.command(&["SET", key, ""]))
        }),
        ("another type", |redis, key, _| {
            redis.command(&["DEL", key]);
            redis.command(&["RPUSH", key, "evil"]);
        }),
        ("a hash", |redis, key, _| {
            redis.command(&["DEL", key]);
            redis.command(&["HSET", key, "head", "evil"]);
        }),
        ("another answer under this key", |redis, key, other| {
            redis.command(&["COPY", other, key, "REPLACE"]);
        }),
        ("more at the end", |redis, key, _| {
            drop(redis.command(&["APPEND", key, "evil"]))
        }),
        ("another beginning", |redis, key, _| {
            redis.command(&["SETRANGE", key, "0", "evil-evil-evil-evil-evil"]);
        }),
        ("a hole", |redis, key, _| {
            let length: usize = redis.command(&["STRLEN", key]).parse().unwrap();
            redis.command(&["SETRANGE", key, &(length + (4 << 20)).to_string(), "x"]);
        }),
        ("lengths of all ones", |redis, key, _| {
            redis.command(&["SETRANGE", key, "4", &"~".repeat(64)]);
        }),
    ];
    for (case, attack) in attacks {
        let redis = Redis::start();
        let backend = Upstream::start_with(|request| {
            Reply::status(200)
                .header("Cache-Control", "max-age=60")
                .body(format!("of {}", request.path()))
        });
        let [a, b] = pair(&redis, &backend);
        text(&a, "/s/other");
        wait_until("it is in Redis", || !cached_keys(&redis).is_empty());
        let others = cached_keys(&redis);
        text(&a, "/s/x");
        let new = || -> Vec<String> {
            let mut keys = cached_keys(&redis);
            keys.retain(|key| !others.contains(key) && redis.command(&["TYPE", key]) == "string");
            keys
        };
        wait_until("both are in Redis", || !new().is_empty());
        let other = others
            .iter()
            .find(|key| redis.command(&["TYPE", key]) == "string");
        let other = other.expect("an answer is a string");
        for key in new() {
            attack(&redis, &key, other);
        }
        let response = get(&b, "/s/x");
        assert_eq!(
            (response.status, response.text()),
            (200, "of /s/x"),
            "{case}"
        );
        assert_eq!(
            response.header("cache-control"),
            Some("max-age=60"),
            "{case}"
        );
        assert_eq!(text(&b, "/s/x"), "of /s/x", "{case}");
        assert_eq!(text(&a, "/s/x"), "of /s/x", "{case}");
    }
}

#[test]
fn the_keys_are_the_documented_ones() {
    let redis = Redis::start();
    let backend = Upstream::start_with(|_| {
        Reply::json(json!({"ok": true})).header("Cache-Control", "public, max-age=60")
    });
    let gateway = Gateway::platform_unchecked()
        .all_services_at(&backend.url())
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .start();
    knows_redis(&gateway);
    for (path, prefix) in [
        ("/api/v1/events/1", "cache:event:"),
        ("/api/v1/venues/search", "cache:venue:"),
        ("/api/v1/tickets/1", "cache:ticket:"),
    ] {
        let response = Request::get(path)
            .bearer(&token::admin())
            .send_to(gateway.addr());
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        let stored = || {
            cached_keys(&redis)
                .iter()
                .any(|key| key.starts_with(prefix))
        };
        wait_until(prefix, stored);
    }
}
