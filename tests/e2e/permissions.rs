//! May this caller do it? Roles, the token's own list, wildcards, ownership, and what belongs to operators
//! (decisions 17 and 28).

use crate::support::prelude::*;

/// The roles that `admin` and `venue-owner` are not named with: these two may do everything.
const OPERATIONS: [(&str, &str, &str); 50] = [
    (
        "GET",
        "/api/v1/venues/1",
        "venue-manager box-office customer",
    ),
    (
        "HEAD",
        "/api/v1/venues/1",
        "venue-manager box-office customer",
    ),
    ("POST", "/api/v1/venues", ""),
    ("PUT", "/api/v1/venues/1", "venue-manager"),
    ("PATCH", "/api/v1/venues/1", "venue-manager"),
    ("DELETE", "/api/v1/venues/1", ""),
    (
        "GET",
        "/api/v1/events/1",
        "venue-manager box-office customer",
    ),
    (
        "GET",
        "/api/v1/event/1",
        "venue-manager box-office customer",
    ),
    ("POST", "/api/v1/events", "venue-manager"),
    ("PUT", "/api/v1/events/1", "venue-manager"),
    ("DELETE", "/api/v1/events/1", "venue-manager"),
    ("DELETE", "/api/v1/event/1", "venue-manager"),
    (
        "GET",
        "/api/v1/tickets/1",
        "venue-manager box-office customer",
    ),
    ("POST", "/api/v1/tickets", "venue-manager"),
    ("PUT", "/api/v1/tickets/1", "venue-manager customer"),
    ("DELETE", "/api/v1/tickets/1", ""),
    ("POST", "/api/v1/tickets/purchase", "box-office customer"),
    ("POST", "/api/v1/ticket/purchase", "box-office customer"),
    (
        "POST",
        "/api/v1/tickets/validate",
        "venue-manager box-office door-staff",
    ),
    (
        "POST",
        "/api/v1/tickets/1/validate",
        "venue-manager box-office door-staff",
    ),
    ("GET", "/api/v1/payments/1", "box-office customer"),
    ("POST", "/api/v1/payments", "box-office customer"),
    ("POST", "/api/v1/payments/process", "box-office customer"),
    ("PUT", "/api/v1/payments/1", ""),
    ("DELETE", "/api/v1/payments/1", ""),
    (
        "GET",
        "/api/v1/search/events",
        "venue-manager box-office customer",
    ),
    (
        "POST",
        "/api/v1/search/events",
        "venue-manager box-office customer",
    ),
    ("GET", "/api/v1/marketplace/1", "venue-manager customer"),
    ("POST", "/api/v1/marketplace", "customer"),
    ("PUT", "/api/v1/marketplace/1", "customer"),
    ("DELETE", "/api/v1/marketplace/1", "customer"),
    ("GET", "/api/v1/notifications", "venue-manager customer"),
    ("POST", "/api/v1/notifications", "venue-manager"),
    ("PUT", "/api/v1/notifications/1", "venue-manager customer"),
    ("GET", "/api/v1/compliance/1", "venue-manager"),
    ("POST", "/api/v1/compliance", ""),
    (
        "GET",
        "/api/v1/queue/1",
        "venue-manager box-office customer",
    ),
    ("POST", "/api/v1/queue/1", "venue-manager customer"),
    ("DELETE", "/api/v1/queue/1", "venue-manager"),
    ("GET", "/api/v1/analytics/1", "venue-manager"),
    ("GET", "/api/v1/files/1", "venue-manager customer"),
    ("POST", "/api/v1/files", "venue-manager"),
    ("GET", "/api/v1/monitoring/1", ""),
    ("GET", "/api/v1/integrations/1", "venue-manager"),
    ("POST", "/api/v1/integrations", ""),
    ("POST", "/api/v1/nft/mint", ""),
    ("GET", "/api/v1/nft/1", "customer"),
    (
        "PUT",
        "/api/v1/auth/me",
        "venue-manager box-office door-staff customer",
    ),
    (
        "GET",
        "/api/v1/auth/me",
        "venue-manager box-office door-staff customer",
    ),
    (
        "POST",
        "/api/v1/auth/logout",
        "venue-manager box-office door-staff customer",
    ),
];

#[test]
fn each_role_may_do_what_is_documented_and_nothing_else() {
    let backend = Upstream::start();
    let gateway = platform(&backend);
    let roles = [
        "admin",
        "venue-owner",
        "venue-manager",
        "box-office",
        "door-staff",
        "customer",
    ];
    let mut forwarded = 0;
    for role in roles {
        let token = Token::user("u1").role(role).claim("venueId", "1").hs256();
        for (method, path, allowed) in OPERATIONS {
            let may = matches!(role, "admin" | "venue-owner")
                || allowed.split(' ').any(|other| other == role);
            let response = Request::method(method, path).bearer(&token);
            let response = Client::to(gateway.addr()).connect().request(&response);
            let expected = if may { 200 } else { 403 };
            assert_eq!(response.status, expected, "{role}: {method} {path}");
            forwarded += usize::from(may);
            assert_eq!(backend.heads_seen(), forwarded, "{role}: {method} {path}");
        }
    }
}

#[test]
fn a_role_that_is_unknown_or_missing_grants_nothing() {
    let backend = Upstream::start_with(|request| match request.path() {
        "/internal/users/u1" => Reply::json(json!({"id": "u1", "tenant_id": "t1"})),
        _ => Reply::json(json!({"ok": true})),
    });
    let gateway = platform(&backend);
    let t = || Token::user("u1");
    let tokens = [
        ("no role", t().without("role").hs256()),
        ("null", t().claim("role", json!(null)).hs256()),
        ("empty", t().role("").hs256()),
        ("unknown", t().role("superuser").hs256()),
        ("other letters", t().role("Admin").hs256()),
        ("a blank behind", t().role("admin ").hs256()),
        ("two in one", t().role("admin,customer").hs256()),
        ("a wildcard", t().role("*").hs256()),
        (
            "roles, which is no claim of ours",
            t().claim("roles", json!(["admin"])).without("role").hs256(),
        ),
    ];
    for (what, token) in tokens {
        let status = |method: &str, path: &str| {
            let request = Request::method(method, path).bearer(&token);
            request.send_to(gateway.addr()).status
        };
        assert_eq!(status("GET", "/api/v1/events/1"), 403, "{what}");
        assert_eq!(status("PUT", "/api/v1/auth/me"), 403, "{what}");
        assert_eq!(
            status("GET", "/api/v1/auth/me"),
            200,
            "{what}: it needs no permission"
        );
    }
    let list = t().claim("role", json!(["admin"])).hs256();
    let response = Request::get("/api/v1/events/1")
        .bearer(&list)
        .send_to(gateway.addr());
    assert_eq!(
        response.status, 401,
        "a role that is a list makes the token invalid"
    );
}

#[test]
fn the_tokens_own_list_counts_beside_its_role() {
    let backend = Upstream::start();
    let gateway = platform(&backend);
    let cases: [(&[&str], &str, &str, u16); 13] = [
        (&["events:create"], "POST", "/api/v1/events", 200),
        (&["events:create"], "DELETE", "/api/v1/events/1", 403),
        (&["events:*"], "DELETE", "/api/v1/events/1", 200),
        (&["events:*"], "POST", "/api/v1/venues", 403),
        (&["*"], "POST", "/api/v1/nft/mint", 200),
        (&["event:*"], "POST", "/api/v1/events", 403),
        (&["events"], "POST", "/api/v1/events", 403),
        (&["*:*"], "POST", "/api/v1/events", 403),
        (&["*:create"], "POST", "/api/v1/events", 403),
        (&["Events:Create"], "POST", "/api/v1/events", 403),
        (&["events:view-own"], "GET", "/api/v1/events/1", 403),
        (&["tickets:view-own"], "GET", "/api/v1/tickets/1", 200),
        (&["tickets:*-own"], "GET", "/api/v1/tickets/1", 403),
    ];
    for (permissions, method, path, status) in cases {
        let token = Token::user("u1").without("role");
        let token = token.claim("permissions", json!(permissions)).hs256();
        let response = Request::method(method, path)
            .bearer(&token)
            .send_to(gateway.addr());
        assert_eq!(response.status, status, "{permissions:?}: {method} {path}");
    }
    let token = Token::user("u1")
        .claim("permissions", json!(["events:create"]))
        .hs256();
    for (method, path) in [("POST", "/api/v1/events"), ("GET", "/api/v1/events/1")] {
        let response = Request::method(method, path)
            .bearer(&token)
            .send_to(gateway.addr());
        assert_eq!(
            response.status, 200,
            "a customer with a permission more: {method} {path}"
        );
    }
}

#[test]
fn a_refused_caller_is_told_so_and_the_refusal_is_audited() {
    let backend = Upstream::start();
    let gateway = platform(&backend);
    let request = Request::method("DELETE", "/api/v1/events/1").bearer(&token::customer());
    let response = request
        .header("X-Request-ID", "refused-1")
        .send_to(gateway.addr());
    assert_eq!(response.status, 403);
    let body = response.json();
    assert_eq!(
        (&body["code"], &body["error"]),
        (&json!("FORBIDDEN"), &json!("Forbidden"))
    );
    assert_eq!(body["message"], "Insufficient permissions");
    assert_eq!(response.header("WWW-Authenticate"), None);
    let audit =
        gateway.wait_log(|line| line["context"] == "audit" && line["requestId"] == "refused-1");
    assert_eq!(audit["event"], "authorization_failed");
    assert_eq!(
        (&audit["userId"], &audit["ip"]),
        (&json!("u1"), &json!("127.0.0.1"))
    );
    assert_eq!(gateway.access_line("refused-1")["userId"], "u1");
}

#[test]
fn own_reaches_as_far_as_the_callers_id_in_the_path() {
    let (backend, gateway) = custom("127.0.0.0/8");
    let status = |id: &str, path: &str| {
        let token = Token::user(id).claim("venues", json!(["u1", "u2"])).hs256();
        Request::get(path)
            .bearer(&token)
            .send_to(gateway.addr())
            .status
    };
    for (id, path, expected) in [
        ("u1", "/users/u1/orders", 200),
        ("u1", "/users/u1/orders/7", 200),
        ("u1", "/users/%75%31/orders", 200),
        ("u1", "/users/u2/orders", 403),
        ("u1", "/users/U1/orders", 403),
        ("u1", "/users/u1;x/orders", 403),
        ("u1", "/users/u11/orders", 403),
        ("u1", "/users/u/orders", 403),
        ("u1", "/users/*/orders", 403),
        ("u1", "/users/u2/orders/u1", 403),
        ("u1", "/users/u2/orders?user=u1", 403),
        ("u1", "/venues/u2/users/u1", 200),
        ("u1", "/venues/u1/users/u2", 403),
        ("u1", "/mine", 200),
        ("u1", "/nobodys", 403),
    ] {
        assert_eq!(status(id, path), expected, "{id} at {path}");
    }
    let admin = Request::get("/users/u1/orders").bearer(&token::admin());
    assert_eq!(admin.send_to(gateway.addr()).status, 200);
    assert_eq!(backend.count(), 6);
}

#[test]
fn an_own_id_is_recognized_however_the_path_encodes_it() {
    let (_backend, gateway) = custom("127.0.0.0/8");
    for (id, segment) in [
        ("auth0|7", "auth0%7C7"),
        ("auth0|7", "auth0%7c7"),
        ("me@home.test", "me@home.test"),
        ("me@home.test", "me%40home.test"),
        ("a+b", "a%2Bb"),
        ("100%", "100%25"),
    ] {
        let request = Request::get(&format!("/users/{segment}/orders"));
        let response = request
            .bearer(&Token::user(id).hs256())
            .send_to(gateway.addr());
        assert_eq!(response.status, 200, "{id} at {segment}");
    }
}

#[test]
fn what_is_for_operators_is_public_for_their_addresses_only() {
    let (backend, gateway) = custom("10.0.0.0/8");
    let from = |address: &str| Request::get("/ops").header("X-Forwarded-For", address);
    let send = |request: Request| request.send_to(gateway.addr()).status;
    assert_eq!(send(from("10.1.2.3")), 200, "an operator");
    assert_eq!(send(from("192.0.2.1")), 401, "a stranger");
    assert_eq!(
        send(Request::get("/ops")),
        401,
        "loopback, which is outside here"
    );
    assert_eq!(
        send(from("10.1.2.3, 192.0.2.1")),
        401,
        "a stranger who says so"
    );
    assert_eq!(
        send(from("192.0.2.1").bearer(&token::customer())),
        403,
        "a customer"
    );
    assert_eq!(send(from("192.0.2.1").bearer("a.b.c")), 401, "a bad token");
    assert_eq!(
        send(from("192.0.2.1").bearer(&token::admin())),
        200,
        "an admin"
    );
    assert_eq!(
        send(from("10.1.2.3").bearer("a.b.c")),
        200,
        "an operator's token is not asked for"
    );
    assert_eq!(backend.count(), 3);

    let own = |path: &str, address: &str| {
        let request = Request::get(path).header("X-Forwarded-For", address);
        request.send_to(gateway.addr())
    };
    assert_eq!(own("/metrics", "192.0.2.1").status, 403);
    assert_eq!(own("/metrics", "10.1.2.3").status, 200);
    assert_eq!(own("/health", "192.0.2.1").json()["pid"], json!(null));
    assert!(own("/health", "10.1.2.3").json()["pid"].is_number());
}

#[test]
fn of_all_roles_only_admin_reads_metrics_from_elsewhere() {
    let (backend, gateway) = custom("10.0.0.0/8");
    let owner = Token::user("o1").role("venue-owner").hs256();
    let response = Request::get("/ops").bearer(&owner).send_to(gateway.addr());
    assert_eq!(
        response.status, 403,
        "decision 28: the admin role is needed"
    );
    assert_eq!(backend.count(), 0);
}

#[track_caller]
fn platform(backend: &Upstream) -> Gateway {
    let gateway = Gateway::platform().env("RATE_LIMIT_ENABLED", "false");
    gateway.all_services_at(&backend.url()).start()
}

/// Routes that show an owner in each way, behind a trusted proxy on the loopback.
#[track_caller]
fn custom(ops_allow: &str) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let yaml = format!(
        r#"
server: {{ trusted_proxies: [127.0.0.1/32] }}
ops: {{ allow: ["{ops_allow}"] }}
limits: {{ enabled: false }}
roles: {{ admin: ["*"], venue-owner: ["*"], customer: ["orders:view-own"] }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes:
  - path: /users/{{user}}/orders/*
    service: backend
    auth: token
    permissions: {{ GET: "orders:view" }}
    owner: "{{user}}"
  - path: /venues/{{venue}}/users/{{user}}
    service: backend
    auth: token
    permissions: {{ GET: "orders:view" }}
    owner: "{{user}}"
  - {{ path: /mine, service: backend, auth: token, permissions: {{ GET: "orders:view" }}, owner: service }}
  - {{ path: /nobodys, service: backend, auth: token, permissions: {{ GET: "orders:view" }} }}
  - {{ path: /ops, service: backend, auth: ops }}
"#,
        backend.url()
    );
    (backend, Gateway::with(&yaml).start())
}
