//! The cache through a reload, and beside a service that is out.

use super::{conf, fresh, get, is_hit, stored, text};
use crate::support::prelude::*;

#[track_caller]
fn reload(gateway: &Gateway) -> Value {
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

#[test]
fn what_is_stored_outlives_a_reload() {
    let backend = fresh();
    let conf = conf(&backend);
    let gateway = conf.start();
    text(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    gateway.rewrite_conf(
        &conf
            .and_route("{ path: /new, service: s, auth: public }")
            .yaml(),
    );
    reload(&gateway);
    assert!(is_hit(&get(&gateway, "/s/x")));
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_route_that_is_cached_no_more_serves_nothing_that_is_stored() {
    let backend = fresh();
    let gateway = conf(&backend).start();
    text(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    let without = Conf::of(&[backend.url()]).top("cache", "{ memory: 64MiB }");
    gateway.rewrite_conf(&without.yaml());
    reload(&gateway);
    assert_eq!(text(&gateway, "/s/x"), "answer 2");
    assert_eq!(text(&gateway, "/s/x"), "answer 3");
}

#[test]
fn a_route_that_needs_a_token_now_serves_nobody_what_was_public() {
    let backend = fresh();
    let conf = conf(&backend);
    let gateway = conf.start();
    text(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    gateway.rewrite_conf(&conf.route("auth", "token").yaml());
    reload(&gateway);
    assert_eq!(get(&gateway, "/s/x").status, 401);
    let user = Request::get("/s/x").bearer(&token::customer());
    assert_eq!(user.send_to(gateway.addr()).text(), "answer 2");
}

#[test]
fn a_route_that_leads_elsewhere_now_serves_nothing_of_the_old_service() {
    let (old, new) = (fresh(), Upstream::start());
    let gateway = conf(&old).start();
    text(&gateway, "/s/x");
    stored(&gateway, &Request::get("/s/x"));
    let elsewhere = conf(&old)
        .and_service("other", &new.url(), "")
        .route("service", "other");
    gateway.rewrite_conf(&elsewhere.yaml());
    reload(&gateway);
    assert_eq!(text(&gateway, "/s/x"), r#"{"ok":true}"#);
}

#[test]
fn another_size_needs_a_restart_and_is_named() {
    let backend = fresh();
    let conf = conf(&backend);
    let gateway = conf.start();
    text(&gateway, "/s/x");
    gateway.rewrite_conf(&conf.top("cache", "{ memory: 2MiB }").yaml());
    let told = reload(&gateway);
    assert_eq!(told["needsRestart"], json!(["cache.memory"]));
    assert!(is_hit(&get(&gateway, "/s/x")));
}

#[test]
fn a_reload_in_the_middle_of_a_fetch_changes_nothing_for_those_who_wait() {
    let backend = fresh();
    let conf = conf(&backend);
    let gateway = conf.start();
    backend.hold();
    let mut clients: Vec<Connection> = (0..5)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    for client in &mut clients {
        client.send(&Request::get("/s/x").bytes());
    }
    wait_until("the backend is asked", || backend.heads_seen() == 1);
    gateway.rewrite_conf(
        &conf
            .and_route("{ path: /new, service: s, auth: public }")
            .yaml(),
    );
    reload(&gateway);
    backend.release();
    for client in &mut clients {
        assert_eq!(client.read_response().text(), "answer 1");
    }
    assert!(is_hit(&stored(&gateway, &Request::get("/s/x"))));
    assert_eq!(backend.count(), 1);
}

#[test]
fn an_open_breaker_is_an_error_that_stale_if_error_covers() {
    let backend = super::saying("max-age=1, stale-if-error=600");
    let gateway = conf(&backend)
        .top("breaker", "{ volume: 4, reset: 600s }")
        .start();
    text(&gateway, "/s/x");
    let stale = Instant::now() + Duration::from_millis(2100);
    backend.set(|_| Reply::status(500));
    let open = || get(&gateway, "/s/unknown").status == 503;
    wait_until("the breaker is open", open);
    let asked = backend.count();
    // Time is what the answer has to get old.
    std::thread::sleep(stale.saturating_duration_since(Instant::now()));
    let response = get(&gateway, "/s/x");
    assert_eq!((response.status, response.text()), (200, "answer 1"));
    assert!(number(&response, "age") >= 2);
    assert_eq!(
        get(&gateway, "/s/unknown").status,
        503,
        "what is not stored is 503"
    );
    assert_eq!(backend.count(), asked, "nobody was asked");
}

#[test]
fn a_backend_that_refuses_is_an_error_that_stale_if_error_covers() {
    let backend = super::saying("max-age=1, stale-if-error=600");
    let gateway = conf(&backend).start();
    text(&gateway, "/s/x");
    backend.stop();
    std::thread::sleep(Duration::from_millis(2100));
    let response = get(&gateway, "/s/x");
    assert_eq!((response.status, response.text()), (200, "answer 1"));
}

#[test]
fn many_who_find_it_stale_ask_once_behind_it() {
    let backend = super::saying("max-age=1, stale-while-revalidate=600");
    let gateway = conf(&backend).start();
    text(&gateway, "/s/x");
    std::thread::sleep(Duration::from_millis(2100));
    backend.hold();
    let responses = burst(gateway.addr(), vec![Request::get("/s/x"); 50], 25);
    assert!(
        responses
            .iter()
            .all(|response| response.text() == "answer 1")
    );
    wait_until("it is asked behind them", || backend.heads_seen() == 2);
    backend.release();
    wait_until("the new one is served", || {
        text(&gateway, "/s/x") == "answer 2"
    });
    assert_eq!(backend.count(), 2);
}

#[test]
fn what_is_asked_behind_a_stale_answer_spends_nobodys_limit() {
    let backend = super::saying("public, max-age=1, stale-while-revalidate=600");
    let gateway = conf(&backend)
        .route("auth", "token")
        .top(
            "limits",
            "{ global: { max: 3, window: 60s }, flood: { per_second: 100000 } }",
        )
        .start();
    let request = Request::get("/s/x").bearer(&token::customer());
    request.send_to(gateway.addr());
    std::thread::sleep(Duration::from_millis(2100));
    let stale = request.send_to(gateway.addr());
    assert_eq!((stale.status, stale.text()), (200, "answer 1"));
    let behind = &backend.wait_requests(2)[1];
    assert_eq!(
        behind.header("x-tenant-id"),
        Some("t1"),
        "it speaks for the caller"
    );
    let last = request.send_to(gateway.addr());
    assert_eq!(
        (last.status, number(&last, "X-RateLimit-Remaining")),
        (200, 0)
    );
}

#[test]
fn a_service_that_hangs_behind_stale_answers_opens_its_breaker() {
    let backend = super::saying("max-age=1, stale-while-revalidate=600");
    let gateway = conf(&backend)
        .service("breaker", "{ volume: 1, reset: 60s }")
        .service("timeout", "300ms")
        .start();
    text(&gateway, "/s/x");
    std::thread::sleep(Duration::from_millis(2100));
    backend.hold();
    assert_eq!(text(&gateway, "/s/x"), "answer 1");
    let state = "circuit_breaker_state{service=\"s\"}";
    gateway.wait_metric(state, |state| state == 1.0);
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|text| text.starts_with("circuit breaker open: s"))
    });
    assert_eq!(text(&gateway, "/s/x"), "answer 1");
    backend.release();
}
