//! Every policy is asked before a hit is served: what is stored is nobody's right.

use super::{conf, on, stored};
use crate::support::prelude::*;

#[test]
fn who_may_not_ask_the_backend_may_not_ask_the_cache() {
    let backend = super::saying("public, max-age=60");
    let gateway = conf(&backend)
        .route("auth", "token")
        .route("methods", "[GET, POST]")
        .route("permissions", "{ GET: 'things:view', POST: 'things:view' }")
        .top(
            "roles",
            "{ customer: ['things:view'], door-staff: ['doors:open'] }",
        )
        .start();
    let good = Request::get("/s/x").bearer(&Token::user("ann").hs256());
    good.send_to(gateway.addr());
    stored(&gateway, &good);
    let asked = backend.count();
    let expired = Token::user("ann").expires_in(-60).hs256();
    let forged = Token::user("ann").signed_with("another-secret-of-at-least-32-characters");
    let staff = Token::user("eve").role("door-staff").hs256();
    for (case, status, request) in [
        ("no token", 401, Request::get("/s/x")),
        (
            "an expired token",
            401,
            Request::get("/s/x").bearer(&expired),
        ),
        ("a forged token", 401, Request::get("/s/x").bearer(&forged)),
        ("no permission", 403, Request::get("/s/x").bearer(&staff)),
        (
            "no such method",
            405,
            Request::method("DELETE", "/s/x").bearer(&Token::user("ann").hs256()),
        ),
    ] {
        let refused = request.send_to(gateway.addr());
        assert_eq!(refused.status, status, "{case}");
        assert!(!refused.text().contains("answer"), "{case}");
    }
    assert_eq!(backend.count(), asked);
    assert!(
        super::is_hit(&good.send_to(gateway.addr())),
        "it is there still"
    );
}

#[test]
fn a_foreign_venue_is_404_although_its_answer_is_stored() {
    let backend = super::saying("public, max-age=60");
    let gateway = conf(&backend)
        .route("path", "'/s/{venueId}'")
        .route("auth", "token")
        .start();
    let member = Token::user("ann").claim("venueId", "v1").hs256();
    let stranger = Token::user("bob").claim("venueId", "v2").hs256();
    let good = Request::get("/s/v1").bearer(&member);
    good.send_to(gateway.addr());
    stored(&gateway, &good);
    let asked = backend.count();
    let refused = Request::get("/s/v1")
        .bearer(&stranger)
        .send_to(gateway.addr());
    assert!(
        [403, 404, 503].contains(&refused.status),
        "{}",
        refused.status
    );
    assert!(!refused.text().contains("answer"));
    assert_eq!(backend.count(), asked);
}

#[test]
fn a_revoked_token_gets_401_where_it_had_a_hit() {
    let redis = Redis::start();
    let backend = super::saying("s-maxage=60");
    let gateway = on(&redis, &conf(&backend).route("auth", "token")).start();
    super::knows_redis(&gateway);
    let token = Token::user("ann").claim("jti", "j1").hs256();
    let request = Request::get("/s/x").bearer(&token);
    request.send_to(gateway.addr());
    stored(&gateway, &request);
    redis.command(&["SET", "session:revoked:jti:j1", "1"]);
    wait_until("it is revoked", || {
        request.send_to(gateway.addr()).status == 401
    });
    let asked = backend.count();
    assert_eq!(request.send_to(gateway.addr()).status, 401);
    assert_eq!(backend.count(), asked);
}

#[test]
fn hits_count_for_the_limit_and_an_exhausted_one_refuses_them() {
    let backend = super::saying("public, max-age=60");
    let gateway = conf(&backend)
        .route("auth", "token")
        .top(
            "limits",
            "{ global: { max: 5, window: 60s }, flood: { per_second: 100000 } }",
        )
        .start();
    let of = |user| Request::get("/s/x").bearer(&Token::user(user).hs256());
    let ann = of("ann");
    for remaining in (0..5).rev() {
        let response = ann.send_to(gateway.addr());
        assert_eq!(response.status, 200);
        assert_eq!(number(&response, "X-RateLimit-Remaining"), remaining);
    }
    let refused = ann.send_to(gateway.addr());
    assert_eq!(refused.status, 429);
    assert!(!refused.text().contains("answer"));
    let other = of("bob").send_to(gateway.addr());
    assert_eq!(
        number(&other, "X-RateLimit-Remaining"),
        4,
        "its own, on a hit"
    );
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_hit_has_an_access_line_and_the_security_headers_of_any_answer() {
    let backend = super::fresh();
    let gateway = conf(&backend).start();
    let miss = super::get(&gateway, "/s/x");
    let hit = stored(
        &gateway,
        &Request::get("/s/x").header("X-Request-ID", "hit-1"),
    );
    for name in [
        "x-content-type-options",
        "content-security-policy",
        "x-frame-options",
    ] {
        assert_eq!(hit.header(name), miss.header(name), "{name}");
        assert!(hit.header(name).is_some(), "{name}");
    }
    let line = gateway.access_line("hit-1");
    assert_eq!(
        line["statusCode"].as_u64().or(line["status"].as_u64()),
        Some(200),
        "{line}"
    );
    gateway.wait_metric(r#"cache_requests_total{result="hit"}"#, |hits| hits >= 1.0);
}
