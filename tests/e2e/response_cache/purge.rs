//! What is taken out of the cache: by operators, and by writes; in every process within a second.

use super::{conf, fresh, get, is_hit, on, purge, stored, text};
use crate::support::prelude::*;

const SOON: Duration = Duration::from_secs(1);

fn tagged(backend: &Upstream) -> Conf {
    conf(backend)
        .route("path", "'/s/{kind}/{event}'")
        .route("cache", "{ tags: ['all', 'event:{event}'] }")
        .and_route(
            "{ path: '/buy/{event}', service: s, auth: public, invalidates: ['event:{event}'] }",
        )
}

#[track_caller]
fn fill(gateway: &Gateway, paths: &[&str]) {
    for path in paths {
        get(gateway, path);
        stored(gateway, &Request::get(path));
    }
}

/// The same as [`purge`], for something that was there.
#[track_caller]
fn purge_all(gateway: &Gateway, what: &Value) {
    assert!(purge(gateway, what) > 0, "{what}: nothing was there");
}

/// Which of these are there still.
fn there<'a>(gateway: &Gateway, paths: &[&'a str]) -> Vec<&'a str> {
    let only = |path: &&&str| {
        let request = Request::get(path).header("Cache-Control", "only-if-cached");
        request.send_to(gateway.addr()).status == 200
    };
    paths.iter().filter(only).copied().collect()
}

const PATHS: [&str; 4] = ["/s/a/1", "/s/a/2", "/s/b/1", "/s/b/2"];

#[test]
fn an_operator_purges_by_key_by_prefix_and_by_tag() {
    let backend = fresh();
    let gateway = tagged(&backend).start();
    fill(&gateway, &PATHS);
    assert_eq!(purge(&gateway, &json!({"key": "/s/a/1"})), 1);
    assert_eq!(there(&gateway, &PATHS), ["/s/a/2", "/s/b/1", "/s/b/2"]);
    assert_eq!(purge(&gateway, &json!({"key": "/s/a/1"})), 0, "it is gone");
    fill(&gateway, &PATHS);
    assert_eq!(purge(&gateway, &json!({"prefix": "/s/a/"})), 2);
    assert_eq!(there(&gateway, &PATHS), ["/s/b/1", "/s/b/2"]);
    fill(&gateway, &PATHS);
    assert_eq!(purge(&gateway, &json!({"tag": "event:1"})), 2);
    assert_eq!(there(&gateway, &PATHS), ["/s/a/2", "/s/b/2"]);
    assert_eq!(purge(&gateway, &json!({"tag": "event:9"})), 0);
    assert_eq!(purge(&gateway, &json!({"tag": "all"})), 2);
    assert!(there(&gateway, &PATHS).is_empty());
    assert!(gateway.metric("cache_purges_total") >= 4.0);
}

#[test]
fn a_purge_of_one_tenant_leaves_the_others_theirs() {
    let backend = super::saying("public, max-age=60");
    let gateway = tagged(&backend).route("auth", "token").start();
    let of = |tenant| Request::get("/s/a/1").bearer(&Token::user("ann").tenant(tenant).hs256());
    for tenant in ["t1", "t2"] {
        of(tenant).send_to(gateway.addr());
        stored(&gateway, &of(tenant));
    }
    assert_eq!(
        purge(&gateway, &json!({"tag": "event:1", "tenant": "t1"})),
        1
    );
    assert!(!is_hit(&of("t1").send_to(gateway.addr())));
    assert!(is_hit(&of("t2").send_to(gateway.addr())));
    assert!(
        purge(&gateway, &json!({"key": "/s/a/1"})) >= 1,
        "of every tenant"
    );
    assert!(!is_hit(&of("t2").send_to(gateway.addr())));
}

#[test]
fn only_the_private_listener_purges_and_only_what_it_understands() {
    let backend = fresh();
    let gateway = tagged(&backend).start();
    fill(&gateway, &PATHS[..1]);
    let main = Request::post("/cache/purge")
        .json(&json!({"tag": "all"}))
        .send_to(gateway.addr());
    assert_eq!(main.status, 404);
    for body in [
        "",
        "{}",
        "no json",
        "[]",
        r#"{"key": 1}"#,
        r#"{"key": "/s/a/1", "tag": "all"}"#,
        r#"{"kye": "/s/a/1"}"#,
    ] {
        let response = Request::post("/cache/purge")
            .header("Content-Type", "application/json")
            .body(body)
            .send_to(gateway.private_addr());
        assert!(
            (400..500).contains(&response.status),
            "{body}: {}",
            response.status
        );
    }
    let huge = Request::post("/cache/purge")
        .json(&json!({"key": "x".repeat(1 << 20)}))
        .send_to(gateway.private_addr());
    assert!((400..500).contains(&huge.status), "{}", huge.status);
    let asked = Request::get("/cache/purge").send_to(gateway.private_addr());
    assert!([404, 405].contains(&asked.status), "{}", asked.status);
    assert_eq!(there(&gateway, &PATHS[..1]), ["/s/a/1"]);
}

#[test]
fn a_successful_write_takes_away_what_its_route_names() {
    let backend = fresh();
    let gateway = tagged(&backend).start();
    fill(&gateway, &PATHS);
    assert_eq!(Request::post("/buy/1").send_to(gateway.addr()).status, 200);
    assert_eq!(there(&gateway, &PATHS), ["/s/a/2", "/s/b/2"]);
    backend.set(|_| Reply::status(409));
    assert_eq!(Request::post("/buy/2").send_to(gateway.addr()).status, 409);
    assert_eq!(
        there(&gateway, &PATHS),
        ["/s/a/2", "/s/b/2"],
        "nothing was bought"
    );
}

#[test]
fn what_one_process_purges_or_a_write_invalidates_is_gone_in_the_other_within_a_second() {
    let redis = Redis::start();
    let backend = fresh();
    let conf = tagged(&backend);
    let [a, b] = [on(&redis, &conf).start(), on(&redis, &conf).start()];
    [&a, &b].into_iter().for_each(super::knows_redis);
    type Change = fn(&Gateway);
    let changes: [(&str, Change); 5] = [
        ("key", |a| purge_all(a, &json!({"key": "/s/a/1"}))),
        ("prefix", |a| purge_all(a, &json!({"prefix": "/s/a"}))),
        ("tag", |a| purge_all(a, &json!({"tag": "event:1"}))),
        ("what a write names", |a| {
            drop(Request::post("/buy/1").send_to(a.addr()))
        }),
        ("the target of a write", |a| {
            drop(Request::post("/s/a/1").send_to(a.addr()))
        }),
    ];
    for (case, change) in changes {
        fill(&a, &["/s/a/1"]);
        fill(&b, &["/s/a/1"]);
        let old = text(&b, "/s/a/1");
        change(&a);
        let gone = within(SOON, || (text(&b, "/s/a/1") != old).then_some(()));
        assert!(gone.is_some(), "{case}: the other process serves it still");
        assert_ne!(text(&a, "/s/a/1"), old, "{case}: it came back from Redis");
    }
}

#[test]
fn a_purge_while_the_answer_is_on_its_way_is_not_undone_by_it() {
    let backend = fresh();
    let gateway = tagged(&backend).start();
    backend.hold();
    let mut client = Client::to(gateway.addr()).connect();
    client.send(&Request::get("/s/a/1").bytes());
    wait_until("the backend is asked", || backend.heads_seen() == 1);
    purge(&gateway, &json!({"tag": "event:1"}));
    backend.release();
    assert_eq!(client.read_response().text(), "answer 1");
    assert_eq!(
        text(&gateway, "/s/a/1"),
        "answer 2",
        "what is older than the purge was stored"
    );
}
