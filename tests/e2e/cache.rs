//! Answers that are kept: who gets them, for how long, and what takes them back. RFC 9111 row by row is beside this.

use crate::support::http2::{self, Http2};
use crate::support::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

/// As the backend of `start` answers: a body that says how often it was asked.
fn counting(fields: &'static [(&'static str, &'static str)]) -> (Upstream, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let backend = Upstream::start_with(move |_| {
        let n = counter.fetch_add(1, SeqCst) + 1;
        let reply = Reply::status(200).header("Content-Type", "text/plain");
        let reply = fields
            .iter()
            .fold(reply, |reply, (name, value)| reply.header(name, value));
        reply.body(format!("answer {n}"))
    });
    (backend, count)
}

fn yaml(backend: &Upstream) -> String {
    format!(
        "
services:
  s: {{ url: {}, health: {{ enabled: false }}, retry: {{ max_retries: 0 }}, breaker: {{ volume: 3, reset: 60s }} }}
limits: {{ global: {{ max: 100000 }}, flood: {{ per_second: 100000 }} }}
routes:
  - {{ path: /open/*, service: s, auth: public, cache: {{}} }}
  - {{ path: /plain/*, service: s, auth: public }}
  - {{ path: /mine/*, service: s, auth: token, cache: {{ authorized: true, class: short }} }}
  - path: /things/{{thing}}
    service: s
    auth: public
    cache: {{ class: medium, tags: [things, 'thing:{{thing}}'], stale_if_error: 60s, stale_while_revalidate: 60s }}
    invalidates: ['thing:{{thing}}']
  - {{ path: '/lists/{{thing}}', service: s, auth: public, cache: {{ class: medium, tags: ['thing:{{thing}}'] }} }}
",
        backend.url()
    )
}

fn start(backend: &Upstream) -> Gateway {
    Gateway::with(&yaml(backend)).start()
}

fn get(gateway: &Gateway, target: &str) -> Response {
    Request::get(target).send_to(gateway.addr())
}

#[track_caller]
fn assert_status(response: &Response, expected: &str) {
    assert_eq!(response.header("Cache-Status"), Some(expected));
}

#[test]
fn an_answer_is_given_again_with_its_age_and_headers_of_the_request_at_hand() {
    let (backend, count) = counting(&[
        ("Cache-Control", "max-age=60"),
        ("Age", "10"),
        ("X-Request-ID", "the-backends"),
        ("Access-Control-Allow-Origin", "*"),
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
    ]);
    let gateway = start(&backend);
    let first = get(&gateway, "/open/a");
    assert_status(&first, "api-gateway; fwd=uri-miss; stored");
    let again = Request::get("/open/a").header("X-Request-ID", "second");
    let again = again.send_to(gateway.addr());
    assert_eq!((again.status, again.text()), (200, "answer 1"));
    assert!(
        again
            .header("Cache-Status")
            .unwrap()
            .starts_with("api-gateway; hit; ttl=")
    );
    assert!(number(&again, "Age") >= 10);
    assert_eq!(again.headers_named("X-Request-ID"), ["second"]);
    assert_eq!(again.header("X-Hop"), None);
    assert_eq!(again.header("Access-Control-Allow-Origin"), None);
    assert_eq!(again.header("X-Content-Type-Options"), Some("nosniff"));
    assert!(again.header("X-RateLimit-Remaining").is_some());
    assert_eq!(count.load(SeqCst), 1);
    let other = get(&gateway, "/open/a?x=1");
    assert_eq!(other.text(), "answer 2", "another query is another target");
    assert_eq!(gateway.metric(r#"cache_requests_total{result="hit"}"#), 1.0);
    assert!(gateway.metric("cache_bytes") > 0.0);
}

#[test]
fn a_route_without_a_cache_keeps_nothing_and_says_nothing() {
    let (backend, count) = counting(&[("Cache-Control", "max-age=60")]);
    let gateway = start(&backend);
    for _ in 0..2 {
        assert_eq!(get(&gateway, "/plain/a").header("Cache-Status"), None);
    }
    assert_eq!(count.load(SeqCst), 2);
}

#[test]
fn callers_have_their_own_answers_unless_the_backend_says_public() {
    let backend = Upstream::start_with(|seen| {
        let who = seen.header("authorization").unwrap().len();
        let reply =
            Reply::status(200).body(format!("{} {who}", seen.header("x-tenant-id").unwrap()));
        match seen.path() {
            "/mine/public" => reply.header("Cache-Control", "public, max-age=60"),
            _ => reply,
        }
    });
    let gateway = start(&backend);
    let of = |user: &str, tenant: &str, path: &str| {
        let token = Token::user(user).tenant(tenant).hs256();
        Request::get(path).bearer(&token).send_to(gateway.addr())
    };
    for (path, expected) in [("/mine/own", 3), ("/mine/public", 2)] {
        let before = backend.count();
        for _ in 0..2 {
            for (user, tenant) in [("u1", "t1"), ("u2", "t1"), ("u3", "t2")] {
                let answer = of(user, tenant, path);
                assert!(
                    answer.text().starts_with(tenant),
                    "{path}: {}",
                    answer.text()
                );
            }
        }
        assert_eq!(backend.count() - before, expected, "{path}");
    }
}

#[test]
fn a_hit_is_given_only_after_all_policies() {
    let (_backend, count, gateway) = {
        let (backend, count) = counting(&[]);
        let gateway = start(&backend);
        (backend, count, gateway)
    };
    let token = Token::user("u1").hs256();
    let request = Request::get("/mine/a").bearer(&token);
    for _ in 0..2 {
        assert_eq!(request.send_to(gateway.addr()).text(), "answer 1");
    }
    assert_eq!(get(&gateway, "/mine/a").status, 401);
    assert_eq!(count.load(SeqCst), 1);
}

#[test]
fn conditions_ranges_and_head_are_answered_from_what_is_kept() {
    let (backend, count) = counting(&[("Cache-Control", "max-age=60"), ("ETag", "\"v1\"")]);
    let gateway = start(&backend);
    let ask = |name: &str, value: &str| {
        let request = Request::get("/open/a").header(name, value);
        request.send_to(gateway.addr())
    };
    assert_eq!(get(&gateway, "/open/a").status, 200);
    let same = ask("If-None-Match", "W/\"v1\"");
    assert_eq!((same.status, same.text()), (304, ""));
    assert_eq!(same.header("ETag"), Some("\"v1\""));
    assert_eq!(ask("If-None-Match", "\"v2\"").status, 200);
    let part = ask("Range", "bytes=0-5");
    assert_eq!((part.status, part.text()), (206, "answer"));
    assert_eq!(part.header("Content-Range"), Some("bytes 0-5/8"));
    let none = ask("Range", "bytes=99-");
    assert_eq!(
        (none.status, none.header("Content-Range")),
        (416, Some("bytes */8"))
    );
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(b"HEAD /open/a HTTP/1.1\r\nHost: a\r\n\r\n");
    let _ = count;
    let head = connection.read_head_response();
    assert_eq!(head.status, 200);
    assert_eq!(backend.count(), 2, "the HEAD came to another host");
}

#[test]
fn a_head_that_misses_brings_the_answer_for_the_gets_behind_it() {
    let (backend, _) = counting(&[("Cache-Control", "max-age=60")]);
    let gateway = start(&backend);
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::method("HEAD", "/open/a").bytes());
    let head = connection.read_head_response();
    assert_eq!(
        (head.status, head.header("Content-Length")),
        (200, Some("8"))
    );
    assert_eq!(get(&gateway, "/open/a").text(), "answer 1");
    assert_eq!(backend.requests()[0].method, "GET");
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_thousand_who_miss_at_once_are_one_request_to_the_backend() {
    let _alone = alone();
    let (backend, count) = counting(&[("Cache-Control", "max-age=60")]);
    let gateway = start(&backend);
    backend.hold();
    let mut connections: Vec<_> = (0..1000)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    let request = Request::get("/open/a").bytes();
    connections
        .iter_mut()
        .for_each(|connection| connection.send(&request));
    backend.wait_requests(1);
    backend.release();
    for connection in &mut connections {
        let answer = connection.read_response();
        assert_eq!((answer.status, answer.text()), (200, "answer 1"));
    }
    assert_eq!(count.load(SeqCst), 1);
}

#[test]
fn who_waits_for_what_is_not_kept_goes_at_once_and_not_one_after_the_other() {
    let backend = Upstream::start_with(|_| {
        let reply = Reply::status(200).header("Cache-Control", "no-store");
        reply.body("x").delay(Duration::from_millis(300))
    });
    let gateway = start(&backend);
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(get(&gateway, "/open/a").status, 200));
        }
    });
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(backend.count(), 20);
}

/// What a client does with the answer that it was the first to ask for.
fn others_are_served_although_the_first(ends: impl FnOnce(Connection)) {
    let body = vec![b'x'; 900 << 10];
    let backend = Upstream::start_with(move |_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=60")
            .body(body.clone())
    });
    let gateway = start(&backend);
    backend.hold();
    let mut first = Client::to(gateway.addr()).connect();
    first.send(&Request::get("/open/a").bytes());
    backend.wait_requests(1);
    let others: Vec<_> = (0..4)
        .map(|_| {
            let mut other = Client::to(gateway.addr()).connect();
            other.send(&Request::get("/open/a").bytes());
            other
        })
        .collect();
    ends(first);
    backend.release();
    for mut other in others {
        let answer = other.read_response();
        assert_eq!((answer.status, answer.body.len()), (200, 900 << 10));
    }
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_slow_client_that_was_first_does_not_hold_the_others() {
    let (kept, waiting) = std::sync::mpsc::channel();
    others_are_served_although_the_first(|first| kept.send(first).unwrap());
    drop(waiting);
}

#[test]
fn a_client_that_was_first_and_goes_away_does_not_end_the_fetch_for_the_others() {
    others_are_served_although_the_first(drop);
    others_are_served_although_the_first(Connection::reset);
}

#[test]
fn a_stale_answer_stands_in_while_the_backend_fails_and_while_its_breaker_is_open() {
    let failing = Arc::new(AtomicUsize::new(0));
    let fails = failing.clone();
    let backend = Upstream::start_with(move |_| match fails.load(SeqCst) {
        0 => Reply::status(200)
            .header("Cache-Control", "max-age=0")
            .header("ETag", "\"a\"")
            .body("good"),
        _ => Reply::status(500),
    });
    let yaml = yaml(&backend).replace("stale_while_revalidate: 60s", "stale_while_revalidate: 0s");
    let gateway = Gateway::with(&yaml).start();
    assert_eq!(get(&gateway, "/things/a").text(), "good");
    failing.store(1, SeqCst);
    let stale = get(&gateway, "/things/a");
    assert_eq!((stale.status, stale.text()), (200, "good"));
    assert!(
        stale
            .header("Cache-Status")
            .unwrap()
            .ends_with("detail=stale-if-error")
    );
    for i in 0..5 {
        get(&gateway, &format!("/plain/{i}"));
    }
    let open = get(&gateway, "/plain/x");
    assert_eq!(open.status, 503, "the breaker is open");
    let before = backend.count();
    let stale = get(&gateway, "/things/a");
    assert_eq!((stale.status, stale.text()), (200, "good"));
    assert!(
        stale
            .header("Cache-Status")
            .unwrap()
            .ends_with("detail=stale-if-error")
    );
    assert!(stale.header("Age").is_some());
    assert_eq!(backend.count(), before);
    assert_eq!(
        get(&gateway, "/things/other").status,
        503,
        "of others nothing is kept"
    );
}

#[test]
fn a_stale_answer_is_given_at_once_and_asked_for_anew_behind_it() {
    let (backend, count) = counting(&[("Cache-Control", "max-age=0"), ("ETag", "\"a\"")]);
    let gateway = start(&backend);
    assert_eq!(get(&gateway, "/things/a").text(), "answer 1");
    backend.hold();
    for _ in 0..5 {
        let stale = get(&gateway, "/things/a");
        assert_eq!(stale.text(), "answer 1");
        assert!(
            stale
                .header("Cache-Status")
                .unwrap()
                .ends_with("detail=stale-while-revalidate")
        );
    }
    let seen = backend.wait_requests(2);
    assert_eq!(seen[1].header("if-none-match"), Some("\"a\""));
    assert_eq!(backend.count(), 2, "one asks for all of them");
    backend.release();
    wait_until("what was asked for is given", || {
        get(&gateway, "/things/a").text() != "answer 1"
    });
    assert!(count.load(SeqCst) >= 2);
    assert_eq!(
        gateway.metric(r#"cache_requests_total{result="miss"}"#),
        1.0,
        "no client asked for it"
    );
}

#[test]
fn a_write_puts_its_target_its_tags_and_what_its_answer_names_out_of_date() {
    let backend = Upstream::start_with(|seen| match (&*seen.method, seen.path()) {
        ("POST", "/things/fails") => Reply::status(500),
        ("POST", "/things/b") => Reply::status(201).header("Location", "/things/c"),
        ("POST", _) => Reply::status(200),
        _ => Reply::status(200).body("x"),
    });
    let gateway = start(&backend);
    let kept = |target: &str| {
        let before = backend.count();
        assert_eq!(get(&gateway, target).status, 200);
        backend.count() == before
    };
    let all = [
        "/things/a",
        "/things/a?x=1",
        "/lists/a",
        "/things/b",
        "/things/c",
        "/things/d",
        "/things/fails",
    ];
    all.iter().for_each(|target| assert!(!kept(target)));
    all.iter()
        .for_each(|target| assert!(kept(target), "{target}"));
    for path in ["/things/a", "/things/b", "/things/fails"] {
        Request::post(path).send_to(gateway.addr());
    }
    for (target, expected) in all
        .iter()
        .zip([false, false, false, false, false, true, true])
    {
        assert_eq!(kept(target), expected, "{target}");
    }
}

#[test]
fn operators_forget_by_key_prefix_and_tag() {
    let (backend, _) = counting(&[]);
    let gateway = Gateway::with(&yaml(&backend))
        .env("OPS_LISTEN", "127.0.0.1:0")
        .start();
    let purge = |order: Value| {
        let request = Request::post("/cache/purge").json(&order);
        let answer = request.send_to(gateway.private_addr());
        (answer.status, answer.json()["purged"].clone())
    };
    let fill = || ["a", "b", "c"].map(|thing| get(&gateway, &format!("/things/{thing}")));
    fill();
    for (order, count) in [
        (json!({"key": "/things/a"}), 1),
        (json!({"tag": "thing:b"}), 1),
        (json!({"tag": "things"}), 3),
        (json!({"prefix": "/things/"}), 3),
        (json!({"prefix": "/things/", "tenant": "t1"}), 0),
    ] {
        fill();
        assert_eq!(purge(order.clone()), (200, json!(count)), "{order}");
    }
    for bad in [
        json!({}),
        json!({"key": "/a", "tag": "b"}),
        json!({"prefix": "a"}),
        json!({"what": 1}),
    ] {
        assert_eq!(purge(bad.clone()).0, 400, "{bad}");
    }
    assert_eq!(
        Request::get("/cache/purge")
            .send_to(gateway.private_addr())
            .status,
        405
    );
    let page = Request::post("/cache/purge")
        .header("Origin", "http://a")
        .json(&json!({"tag": "a"}));
    assert_eq!(page.send_to(gateway.private_addr()).status, 403);
}

#[test]
fn what_another_configuration_kept_is_not_used_by_a_route_that_has_changed() {
    let (backend, _) = counting(&[]);
    let gateway = start(&backend);
    let text = |target: &str| get(&gateway, target).text().to_owned();
    let before = (text("/things/a"), text("/lists/a"));
    assert_eq!((text("/things/a"), text("/lists/a")), before);
    let changed = yaml(&backend).replace(
        "cache: { class: medium, tags: [things",
        "cache: { class: long, tags: [things",
    );
    gateway.rewrite_conf(&changed);
    gateway.signal(1);
    gateway.wait_log(|line| line["msg"] == "reloaded");
    assert_eq!(text("/lists/a"), before.1, "the reload kept it");
    assert_ne!(text("/things/a"), before.0);
}

#[test]
fn only_if_cached_and_the_other_wishes_of_clients_are_heard() {
    let (backend, count) = counting(&[("Cache-Control", "max-age=60"), ("Age", "30")]);
    let gateway = start(&backend);
    let ask = |directives: &str| {
        let request = Request::get("/open/a").header("Cache-Control", directives);
        request.send_to(gateway.addr())
    };
    let none = ask("only-if-cached");
    assert_eq!(
        (none.status, none.json()["code"].as_str()),
        (504, Some("NOT_CACHED"))
    );
    assert_eq!(ask("max-age=100").text(), "answer 1");
    assert_eq!(ask("only-if-cached").text(), "answer 1");
    assert_eq!(ask("max-age=100, min-fresh=10").text(), "answer 1");
    assert_eq!(ask("max-age=5").text(), "answer 2");
    assert_eq!(ask("min-fresh=50").text(), "answer 3");
    assert_eq!(ask("no-cache").text(), "answer 4");
    assert_eq!(ask("no-store").text(), "answer 5");
    assert_eq!(
        ask("max-age=100").text(),
        "answer 4",
        "what was asked for with no-store is not kept"
    );
    assert_eq!(count.load(SeqCst), 5);
}

#[test]
fn what_is_larger_than_may_be_kept_is_passed_on_whole() {
    let body = vec![b'x'; 3 << 20];
    let sized = body.clone();
    let backend = Upstream::start_with(move |seen| {
        let reply = Reply::status(200).header("Cache-Control", "max-age=60");
        match seen.path() {
            "/open/chunked" => reply.chunked(sized.chunks(100_000).map(<[u8]>::to_vec).collect()),
            _ => reply.body(sized.clone()),
        }
    });
    let gateway = start(&backend);
    for target in ["/open/sized", "/open/chunked"] {
        for _ in 0..3 {
            let answer = get(&gateway, target);
            assert_eq!(
                (answer.status, answer.body.len()),
                (200, body.len()),
                "{target}"
            );
        }
    }
    assert_eq!(backend.count(), 6);
    assert_eq!(gateway.metric("cache_bytes"), 0.0);
}

/// Two gateways with one Redis, once both may use what is in it.
fn two(backend: &Upstream, redis: &Redis) -> [Gateway; 2] {
    let gateways = [1, 2].map(|_| {
        Gateway::with(&yaml(backend))
            .env("REDIS_HOST", "127.0.0.1")
            .env("REDIS_PORT", redis.port())
            .env("OPS_LISTEN", "127.0.0.1:0")
            .start()
    });
    for (i, gateway) in gateways.iter().enumerate() {
        let mut tried = 0;
        wait_until("answers stand in redis", || {
            tried += 1;
            get(gateway, &format!("/things/first-{i}-{tried}"));
            within(Duration::from_millis(200), || in_redis(redis).pop()).is_some()
        });
        for key in in_redis(redis) {
            redis.command(&["DEL", &key]);
        }
    }
    gateways
}

fn in_redis(redis: &Redis) -> Vec<String> {
    let all = "return table.concat(redis.call('KEYS', ARGV[1]), ' ')";
    let keys = redis.command(&["EVAL", all, "0", "cache:s:*"]);
    keys.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn what_one_process_kept_another_gives_and_what_one_puts_out_of_date_is_so_for_all() {
    let redis = Redis::start();
    let (backend, _) = counting(&[]);
    let [first, second] = two(&backend, &redis);
    let text = |gateway: &Gateway, target: &str| get(gateway, target).text().to_owned();
    let kept = text(&first, "/things/a");
    wait_until("it stands in redis", || !in_redis(&redis).is_empty());
    assert_eq!(text(&second, "/things/a"), kept);
    let began = Instant::now();
    assert_eq!(
        Request::post("/things/a").send_to(second.addr()).status,
        200
    );
    wait_until("the first has heard of it", || {
        text(&first, "/things/a") != kept
    });
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let next = text(&first, "/things/a");
    let order = Request::post("/cache/purge").json(&json!({"prefix": "/things/"}));
    assert_eq!(order.send_to(second.private_addr()).status, 200);
    wait_until("the first has heard of that", || {
        text(&first, "/things/a") != next
    });
    drop(second);
    let third = two(&backend, &redis);
    assert_ne!(
        text(&third[0], "/things/a"),
        kept,
        "who comes later reads it"
    );
}

#[test]
fn a_value_that_others_have_put_there_is_a_miss() {
    let redis = Redis::start();
    let (backend, _) = counting(&[]);
    let [first, second] = two(&backend, &redis);
    get(&first, "/things/a");
    get(&first, "/things/b");
    wait_until("they stand in redis", || in_redis(&redis).len() == 2);
    let keys = in_redis(&redis);
    let before = backend.count();
    redis.command(&["COPY", &keys[0], &keys[1], "REPLACE"]);
    redis.command(&["SET", &keys[0], "agc1\u{1}nonsense"]);
    for target in ["/things/a", "/things/b"] {
        let answer = get(&second, target);
        assert_eq!(answer.status, 200);
    }
    let asked = backend.requests().split_off(before);
    assert!(
        asked.len() >= 2,
        "one value of nonsense, one of another key: {}",
        asked.len()
    );
}

#[test]
fn while_redis_is_away_nothing_waits_and_memory_goes_on() {
    let mut redis = Redis::start();
    let (backend, _) = counting(&[]);
    let [first, _second] = two(&backend, &redis);
    let kept = get(&first, "/things/a").text().to_owned();
    redis.kill();
    let began = Instant::now();
    for i in 0..20 {
        assert_eq!(get(&first, "/things/a").text(), kept);
        assert_eq!(get(&first, &format!("/things/new-{i}")).status, 200);
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_stream_that_was_first_and_does_not_read_or_ends_does_not_hold_the_others() {
    for goes in [false, true] {
        let body = vec![b'x'; 900 << 10];
        let backend = Upstream::start_with(move |_| {
            let reply = Reply::status(200).header("Cache-Control", "max-age=60");
            reply.body(body.clone())
        });
        let gateway = start(&backend);
        backend.hold();
        http2::run(async {
            let (client, connection) = Http2::connect(gateway.addr()).await;
            let first = client.begin(client.request("GET", "/open/a"), true).await;
            while backend.count() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if goes {
                connection.abort();
                let _ = connection.await;
            }
            let host = gateway.addr().to_string();
            let request = Request::get("/open/a").host(&host);
            let mut others: Vec<_> = (0..3)
                .map(|_| Client::to(gateway.addr()).connect())
                .collect();
            for other in &mut others {
                other.send(&request.bytes());
            }
            backend.release();
            for other in &mut others {
                let answer = other.read_response();
                assert_eq!((answer.status, answer.body.len()), (200, 900 << 10));
            }
            drop(first);
        });
        assert_eq!(backend.count(), 1, "goes: {goes}");
    }
}
