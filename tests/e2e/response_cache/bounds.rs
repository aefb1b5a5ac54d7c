//! The memory tier is as large as it says, whatever is asked for.

use super::{conf, fresh, get, is_hit, stored};
use crate::support::prelude::*;

const MIB: f64 = 1_048_576.0;

/// Answers of 40 KiB.
fn large() -> Upstream {
    let body = "x".repeat(40 << 10);
    Upstream::start_with(move |_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=600")
            .body(body.clone())
    })
}

/// Asks for all of these on one connection.
#[track_caller]
fn ask_all(gateway: &Gateway, requests: impl IntoIterator<Item = Request>) {
    let mut connection = Client::to(gateway.addr()).connect();
    for request in requests {
        assert_eq!(connection.request(&request).status, 200);
    }
}

#[test]
fn ten_times_its_size_goes_through_it_and_what_is_asked_for_often_stays() {
    let _alone = alone();
    let backend = large();
    let gateway = conf(&backend).top("cache", "{ memory: 8MiB }").start();
    let hot = Request::get("/s/hot");
    ask_all(
        &gateway,
        (0..20).map(|i| Request::get(&format!("/s/warm/{i}"))),
    );
    let before = gateway.memory_kb();
    let cold = (0..2000).map(|i| Request::get(&format!("/s/cold/{i}")));
    let mixed = cold.enumerate().flat_map(|(i, cold)| match i % 5 {
        0 => vec![cold, hot.clone()],
        _ => vec![cold],
    });
    ask_all(&gateway, mixed);
    let grown = gateway.memory_kb().saturating_sub(before);
    let kept = gateway.metric("cache_bytes");
    println!("measured: {grown} KiB grown, {kept} bytes kept");
    assert!(kept <= 8.0 * MIB, "{kept}");
    assert!(kept >= 4.0 * MIB, "it is not used: {kept}");
    assert!(grown < 24 << 10, "{grown} KiB for 8 MiB");
    assert!(gateway.metric("cache_evictions_total") >= 1000.0);
    let hot = backend
        .requests()
        .iter()
        .filter(|r| r.path() == "/s/hot")
        .count();
    assert!(
        hot <= 40,
        "what is asked for most was fetched {hot} of 400 times"
    );
    stored(&gateway, &Request::get("/s/last"));
}

#[test]
fn an_answer_over_the_largest_passes_whole_and_is_not_kept() {
    let backend = large();
    let gateway = conf(&backend)
        .top("cache", "{ memory: 8MiB, largest: 20KiB }")
        .start();
    for _ in 0..3 {
        let response = get(&gateway, "/s/x");
        assert_eq!((response.status, response.body.len()), (200, 40 << 10));
        let told = response.header("cache-status").unwrap_or_default();
        assert!(!told.contains("stored"), "{told}");
    }
    assert_eq!(backend.count(), 3);
    backend.set(|_| {
        let chunks = vec!["x".repeat(10 << 10); 4];
        Reply::status(200)
            .header("Cache-Control", "max-age=600")
            .chunked(chunks)
    });
    for _ in 0..3 {
        let response = get(&gateway, "/s/chunked");
        assert_eq!((response.status, response.body.len()), (200, 40 << 10));
    }
    assert_eq!(backend.count(), 6, "nor one that did not say so");
}

#[test]
fn variants_and_long_names_count_too() {
    let _alone = alone();
    let backend = Upstream::start_with(|_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=600")
            .header("Vary", "Accept-Language")
            .header("X-Long", &"x".repeat(1000))
            .body("tiny")
    });
    let gateway = conf(&backend).top("cache", "{ memory: 1MiB }").start();
    ask_all(
        &gateway,
        (0..20).map(|i| Request::get(&format!("/s/warm/{i}"))),
    );
    let before = gateway.memory_kb();
    let long = "y".repeat(1500);
    let variants =
        (0..4000).map(|i| Request::get("/s/x").header("Accept-Language", &format!("l{i}")));
    let names = (0..4000).map(|i| Request::get(&format!("/s/{i}?{long}")));
    ask_all(&gateway, variants.chain(names));
    let grown = gateway.memory_kb().saturating_sub(before);
    let kept = gateway.metric("cache_bytes");
    println!("measured: {grown} KiB grown, {kept} bytes kept");
    assert!(kept <= MIB, "{kept}");
    assert!(grown < 12 << 10, "{grown} KiB for 1 MiB");
}

#[test]
fn with_no_memory_nothing_is_kept() {
    let backend = fresh();
    let gateway = conf(&backend).top("cache", "{ memory: 0B }").start();
    for _ in 0..3 {
        assert!(!is_hit(&get(&gateway, "/s/x")));
    }
    assert_eq!(backend.count(), 3);
}

#[test]
fn a_route_that_says_nothing_of_a_cache_has_none() {
    let backend = fresh();
    let gateway = conf(&backend)
        .and_route("{ path: /plain/*, service: s, auth: public }")
        .start();
    for _ in 0..3 {
        let response = get(&gateway, "/plain/x");
        assert_eq!(response.header("cache-status"), None);
        assert_eq!(response.header("age"), None);
    }
    assert_eq!(backend.count(), 3);
}
