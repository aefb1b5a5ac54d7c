//! The order of the policies is the security model: of two faults of a request, which one is answered?

use crate::support::prelude::*;

#[test]
fn of_two_faults_the_earlier_policy_answers() {
    let (backend, gateway) = start("global: { max: 100000, window: 60s }");
    let large = "x".repeat(2000);
    let evil = |request: Request| request.header("Origin", "https://evil.test");
    let cases = [
        (
            "a bad path, a bad origin",
            evil(Request::get("/a/../b")),
            400,
            "BAD_REQUEST",
        ),
        (
            "a bad path, no route",
            Request::get("//nowhere"),
            400,
            "BAD_REQUEST",
        ),
        (
            "a bad origin, no route",
            evil(Request::get("/nowhere")),
            403,
            "FORBIDDEN",
        ),
        (
            "a bad origin, a bad token",
            evil(post("/write").bearer("a.b.c")),
            403,
            "FORBIDDEN",
        ),
        (
            "no route, a bad token",
            Request::get("/nowhere").bearer("a.b.c"),
            404,
            "NOT_FOUND",
        ),
        (
            "no route, no token",
            Request::get("/nowhere"),
            404,
            "NOT_FOUND",
        ),
        (
            "no route, too large",
            post("/nowhere").body(large.clone()),
            404,
            "NOT_FOUND",
        ),
        (
            "another method, no token",
            Request::get("/write"),
            405,
            "METHOD_NOT_ALLOWED",
        ),
        (
            "another method, too large",
            Request::method("PUT", "/write").body(large.clone()),
            405,
            "METHOD_NOT_ALLOWED",
        ),
        (
            "too large, no token",
            post("/write").body(large.clone()),
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            "too large, a bad token",
            post("/write").bearer("a.b.c").body(large),
            413,
            "PAYLOAD_TOO_LARGE",
        ),
        (
            "no token, a dead service",
            post("/dead"),
            401,
            "AUTH_REQUIRED",
        ),
        (
            "no permission, a dead service",
            post("/dead").bearer(&token::customer()),
            403,
            "FORBIDDEN",
        ),
    ];
    for (what, request, status, code) in cases {
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, status, "{what}");
        assert_eq!(response.json()["code"], code, "{what}");
    }
    assert_eq!(backend.heads_seen(), 0);
    let attempts = r#"authentication_attempts_total{status="failure"}"#;
    assert_eq!(
        gateway.metric(attempts),
        1.0,
        "only one of them came as far as its token"
    );
}

#[test]
fn the_gateways_own_endpoints_ask_for_neither_origin_nor_token() {
    let (_backend, gateway) = start("global: { max: 1, window: 60s }");
    for path in ["/live", "/ready", "/health", "/metrics"] {
        for _ in 0..3 {
            let request = Request::get(path)
                .header("Origin", "https://evil.test")
                .bearer("a.b.c");
            assert_eq!(request.send_to(gateway.addr()).status, 200, "{path}");
        }
        let post = post(path).send_to(gateway.addr());
        assert_eq!(
            (post.status, post.header("Allow")),
            (405, Some("GET, HEAD")),
            "{path}"
        );
    }
}

#[test]
fn a_preflight_needs_a_path_but_no_token_and_spends_nothing() {
    let (backend, gateway) = start("global: { max: 1, window: 60s }");
    let preflight = |path: &str| {
        let request = Request::method("OPTIONS", path).header("Origin", "http://frontend:5173");
        request
            .header("Access-Control-Request-Method", "POST")
            .send_to(gateway.addr())
            .status
    };
    for _ in 0..3 {
        assert_eq!(preflight("/write"), 204);
    }
    assert_eq!(preflight("/nowhere"), 404);
    assert_eq!(backend.heads_seen(), 0);
    assert_eq!(
        Request::get("/public").send_to(gateway.addr()).status,
        200,
        "nothing was spent"
    );
}

#[test]
fn a_bad_token_is_answered_401_when_its_alleged_user_has_nothing_left() {
    let (_backend, gateway) = start("global: { max: 3, window: 60s }");
    let good = Token::user("u1").role("admin").hs256();
    for _ in 0..3 {
        assert_eq!(
            post("/write").bearer(&good).send_to(gateway.addr()).status,
            200
        );
    }
    assert_eq!(
        post("/write").bearer(&good).send_to(gateway.addr()).status,
        429
    );
    let forged = Token::user("u1").role("admin").signed_with("forged");
    assert_eq!(
        post("/write")
            .bearer(&forged)
            .send_to(gateway.addr())
            .status,
        401
    );
    let expired = Token::user("u1").role("admin").expires_in(-60).hs256();
    assert_eq!(
        post("/write")
            .bearer(&expired)
            .send_to(gateway.addr())
            .status,
        401
    );
}

#[test]
fn what_is_refused_before_the_limit_spends_none_of_the_callers() {
    let (backend, gateway) = start("global: { max: 2, window: 60s }");
    let token = token::customer();
    let with = |request: Request| request.bearer(&token).send_to(gateway.addr());
    for _ in 0..3 {
        assert_eq!(with(Request::get("/nowhere")).status, 404);
        assert_eq!(with(Request::get("/write")).status, 405);
        assert_eq!(with(post("/write").body("x".repeat(2000))).status, 413);
        assert_eq!(with(Request::get("/public/../write")).status, 400);
        assert_eq!(with(post("/write")).status, 403);
    }
    for remaining in ["1", "0"] {
        let response = with(Request::get("/read"));
        assert_eq!(
            (response.status, response.header("X-RateLimit-Remaining")),
            (200, Some(remaining))
        );
    }
    assert_eq!(with(Request::get("/read")).status, 429);
    assert_eq!(
        with(post("/write")).status,
        403,
        "forbidden is forbidden, however often it is tried"
    );
    assert_eq!(backend.count(), 2);
}

#[test]
fn a_used_up_limit_answers_before_a_dead_service_does() {
    let (_backend, gateway) = start("global: { max: 1, window: 60s }");
    let admin = token::admin();
    assert_eq!(
        post("/dead").bearer(&admin).send_to(gateway.addr()).status,
        503
    );
    assert_eq!(
        post("/dead").bearer(&admin).send_to(gateway.addr()).status,
        429
    );
}

#[test]
fn the_addresss_own_limit_answers_who_cannot_say_who_he_is() {
    let (_backend, gateway) = start("global: { max: 2, window: 60s }");
    let statuses = [(); 3].map(|()| Request::get("/read").send_to(gateway.addr()).status);
    assert_eq!(statuses, [401, 401, 429]);
    let forged = Token::user("u1").signed_with("forged");
    assert_eq!(
        Request::get("/read")
            .bearer(&forged)
            .send_to(gateway.addr())
            .status,
        429
    );
    let good = Request::get("/read").bearer(&token::customer());
    assert_eq!(
        good.send_to(gateway.addr()).status,
        200,
        "who can is counted by himself"
    );
    assert_eq!(
        Request::get("/nowhere").send_to(gateway.addr()).status,
        404,
        "no route, no limit"
    );
}

fn post(path: &str) -> Request {
    Request::method("POST", path)
}

#[track_caller]
fn start(limits: &str) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let yaml = format!(
        r#"
sizes: {{ body: 1KiB }}
limits: {{ flood: {{ per_second: 100000 }}, {limits} }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
roles: {{ admin: ["*"], customer: ["things:view"] }}
services:
  backend: {{ url: "{}", health: {{ enabled: false }} }}
  dead: {{ url: "http://{}", health: {{ enabled: false }} }}
routes:
  - {{ path: /public, service: backend, auth: public }}
  - {{ path: /read, service: backend, auth: token, permissions: {{ GET: "things:view" }} }}
  - {{ path: /write, service: backend, auth: token, permissions: {{ POST: "things:create" }} }}
  - {{ path: /dead, service: dead, auth: token, permissions: {{ POST: "things:create" }} }}
"#,
        backend.url(),
        refused_addr()
    );
    (backend, Gateway::with(&yaml).start())
}
