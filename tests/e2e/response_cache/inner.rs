//! Requests of the gateway's own before what is kept: calls of a batch, sources of an aggregate; and writes that were made
//! before.

use super::{conf, fresh, is_hit, stored};
use crate::support::prelude::*;

fn batch(calls: &[(&str, &str)]) -> Request {
    let calls: Vec<Value> = calls
        .iter()
        .map(|(method, path)| json!({"id": path, "method": method, "path": path}))
        .collect();
    Request::post("/api/v1/batch").json(&json!({ "calls": calls }))
}

#[track_caller]
fn results(gateway: &Gateway, request: &Request) -> Vec<Value> {
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["results"].as_array().unwrap().clone()
}

fn of_hit(result: &Value) -> bool {
    let told = result["headers"]["cache-status"].as_str();
    told.is_some_and(|told| told.contains("; hit"))
}

#[test]
fn a_call_of_a_batch_is_a_hit_the_second_time_and_its_callers_rights_are_judged() {
    let backend = fresh_for_all();
    let gateway = conf(&backend)
        .route("auth", "token")
        .route("permissions", "{ '*': 'things:view' }")
        .top("roles", "{ customer: ['things:view'], door-staff: [] }")
        .start();
    let ann = Token::user("ann").hs256();
    let request = batch(&[("GET", "/s/x")]).bearer(&ann);
    assert!(!of_hit(&results(&gateway, &request)[0]));
    let by_itself = Request::get("/s/x").bearer(&ann);
    assert_eq!(stored(&gateway, &by_itself).text(), "answer 1");
    for request in [
        &request,
        &batch(&[("GET", "/s/x")]).bearer(&Token::user("bob").hs256()),
    ] {
        let result = results(&gateway, request)[0].clone();
        assert!(of_hit(&result), "{result}");
        assert_eq!(result["body"], "answer 1");
        assert!(result["headers"]["age"].is_string());
    }
    let staff = Token::user("eve").role("door-staff").hs256();
    for (request, status) in [
        (batch(&[("GET", "/s/x")]), 401),
        (batch(&[("GET", "/s/x")]).bearer(&staff), 403),
    ] {
        let result = results(&gateway, &request)[0].clone();
        assert_eq!(result["status"], status);
        assert!(!result.to_string().contains("answer"), "{result}");
    }
    assert_eq!(backend.count(), 1);
    // A write in a batch puts out of date what it changes.
    assert_eq!(
        results(&gateway, &batch(&[("PUT", "/s/x")]).bearer(&ann))[0]["status"],
        200
    );
    assert!(!is_hit(&by_itself.send_to(gateway.addr())));
}

/// `answer N` to everybody.
fn fresh_for_all() -> Upstream {
    super::saying("public, max-age=60")
}

#[test]
fn a_write_that_is_answered_again_changes_nothing_and_puts_nothing_out_of_date() {
    let backend = fresh();
    let gateway = conf(&backend)
        .route("auth", "token-or-key")
        .route("cache", "{ authorized: true }")
        .route("idempotency", "optional")
        .start();
    let ann = Token::user("ann").hs256();
    let reads = Request::get("/s/x").bearer(&ann);
    let write = Request::post("/s/x")
        .bearer(&ann)
        .header("Idempotency-Key", "k1")
        .body("1");
    reads.send_to(gateway.addr());
    stored(&gateway, &reads);
    assert_eq!(write.send_to(gateway.addr()).text(), "answer 2");
    let anew = reads.send_to(gateway.addr());
    assert_eq!(
        (is_hit(&anew), anew.text()),
        (false, "answer 3"),
        "it was changed"
    );
    stored(&gateway, &reads);
    let again = write.send_to(gateway.addr());
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    let kept = reads.send_to(gateway.addr());
    assert_eq!((is_hit(&kept), kept.text()), (true, "answer 3"));
    assert_eq!(backend.count(), 3);
}

/// `/page/{id}`, made of what `one` and `two` say.
fn pages(one: &Upstream, two: &Upstream, of_route: &str, of_one: &str) -> Conf {
    conf(one)
        .and_service("two", &two.url(), "retry: { max_retries: 0 }")
        .and_route(&format!(
            "{{ path: '/page/{{id}}', service: s, auth: token, methods: [GET] {of_route}, aggregate: {{ sources: {{ \
             one: {{ service: s, path: '/one/{{id}}', required: true {of_one} }}, \
             two: {{ service: two, path: '/two/{{id}}' }} }} }} }}"
        ))
        .and_route("{ path: '/write/{id}', service: s, auth: token, invalidates: ['one:{id}'] }")
}

/// Says who asks, and how often it was asked.
fn naming(cache_control: &'static str) -> Upstream {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    Upstream::start_with(move |request| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        let of = request.header("authorization").unwrap_or_default();
        Reply::json(json!({"turn": turn, "of": of})).header("Cache-Control", cache_control)
    })
}

#[track_caller]
fn page(gateway: &Gateway, who: &Token, id: &str) -> Value {
    let request = Request::get(&format!("/page/{id}")).bearer(&who.hs256());
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["data"].clone()
}

/// Asks until the source `one` is not asked any more.
#[track_caller]
fn kept(gateway: &Gateway, one: &Upstream, who: &Token, id: &str) -> Value {
    let found = within(Duration::from_secs(5), || {
        let before = one.count();
        let data = page(gateway, who, id);
        (one.count() == before).then_some(data)
    });
    found.expect("what the source says is kept")
}

#[test]
fn a_source_that_is_cached_is_asked_once_and_others_each_time() {
    let (one, two) = (naming("public, max-age=60"), naming("public, max-age=60"));
    let gateway = pages(&one, &two, "", ", cache: { tags: ['one:{id}'] }").start();
    let (ann, bob) = (Token::user("ann"), Token::user("bob"));
    assert_eq!(page(&gateway, &ann, "1")["one"]["turn"], 1);
    let second = kept(&gateway, &one, &ann, "1");
    assert_eq!(second["one"]["turn"], 1);
    assert_ne!(second["two"]["turn"], 1, "this one is not cached");
    assert_eq!(page(&gateway, &bob, "1")["one"]["turn"], 1, "it is public");
    assert_eq!(one.count(), 1);
    assert_eq!(page(&gateway, &ann, "2")["one"]["turn"], 2, "another path");
    let other = Token::user("ann").tenant("t2");
    assert_eq!(
        page(&gateway, &other, "1")["one"]["turn"],
        3,
        "another tenant"
    );
    // What a write or an operator says is out of date is asked for again.
    let before = kept(&gateway, &one, &ann, "1")["one"]["turn"].clone();
    let write = Request::post("/write/1").bearer(&ann.hs256()).body("1");
    assert_eq!(write.send_to(gateway.addr()).status, 200);
    assert_ne!(page(&gateway, &ann, "1")["one"]["turn"], before);
    let before = kept(&gateway, &one, &ann, "1")["one"]["turn"].clone();
    assert!(super::purge(&gateway, &json!({"tag": "one:1"})) > 0);
    assert_ne!(page(&gateway, &ann, "1")["one"]["turn"], before);
    // And by a client that wants it from the service.
    let asked = one.count();
    let anew = Request::get("/page/2")
        .bearer(&ann.hs256())
        .header("Cache-Control", "no-cache");
    assert_eq!(anew.send_to(gateway.addr()).status, 200);
    assert_eq!(one.count(), asked + 1);
    gateway.wait_metric(r#"cache_requests_total{result="hit"}"#, |hits| hits >= 2.0);
}

#[test]
fn no_caller_is_told_by_a_cached_source_what_another_was() {
    for control in ["s-maxage=60", "private, max-age=60", "max-age=60"] {
        let (one, two) = (naming(control), naming("no-store"));
        let gateway = pages(&one, &two, ", cache: { authorized: true }", "").start();
        let callers = [
            Token::user("ann"),
            Token::user("bob"),
            Token::user("ann").tenant("t2"),
            Token::user("ann").role("admin"),
        ];
        for _ in 0..3 {
            for who in &callers {
                let of = page(&gateway, who, "1")["one"]["of"].clone();
                let claims = token::claims_of(of.as_str().unwrap().split_at(7).1);
                let theirs = token::claims_of(&who.hs256());
                for claim in ["sub", "tenantId", "tenant_id", "role"] {
                    assert_eq!(claims[claim], theirs[claim], "{control}");
                }
            }
        }
        if control == "max-age=60" {
            // As the route says of its sources: each for its own caller.
            assert_eq!(one.count(), callers.len());
        }
    }
}

#[test]
fn a_cached_source_is_not_told_to_who_has_no_permission_for_it() {
    let (one, two) = (naming("public, max-age=60"), naming("no-store"));
    let gateway = pages(&one, &two, "", ", cache: {}, permission: 'one:view'")
        .top("roles", "{ seller: ['one:view'], customer: [] }")
        .start();
    let seller = Token::user("ann").role("seller");
    page(&gateway, &seller, "1");
    kept(&gateway, &one, &seller, "1");
    let refused = Request::get("/page/1")
        .bearer(&Token::user("bob").hs256())
        .send_to(gateway.addr());
    assert_eq!(refused.status, 403);
    assert!(!refused.text().contains("turn"));
}

#[test]
fn a_stale_source_is_asked_for_anew_behind_its_aggregate() {
    let one = naming("public, max-age=1, stale-while-revalidate=60");
    let two = naming("no-store");
    let gateway = pages(&one, &two, "", ", cache: {}").start();
    let ann = Token::user("ann");
    page(&gateway, &ann, "1");
    kept(&gateway, &one, &ann, "1");
    let renewed = within(Duration::from_secs(5), || {
        let turn = page(&gateway, &ann, "1")["one"]["turn"].as_u64();
        (turn > Some(1)).then_some(())
    });
    assert!(renewed.is_some(), "it stays stale");
}
