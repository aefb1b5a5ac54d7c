//! Who sees what: the operations that they may call, and nothing of the others.

use super::*;
use sha2::{Digest, Sha256};

/// An API key, and a partner's list of permissions.
const KEY: &str = "partner-key-0123456789";

fn start(backend: &Upstream) -> Gateway {
    let digest: String = Sha256::digest(KEY)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let key = format!(
        "api_keys: {{ partner: {{ sha256: {digest}, tenant_id: t1, permissions: [events:view, 'tickets:*'] }} }}"
    );
    let reference = REFERENCE
        .replace("operators: null", "operators: true")
        .replace("api_keys: {}", &key)
        .replace(
            "enabled: true\n  path: /health",
            "enabled: false\n  path: /health",
        );
    Gateway::with(&reference)
        .all_services_at(&backend.url())
        .env("ORDER_SERVICE_URL", backend.url())
        .env("NODE_ENV", "staging")
        .env("RATE_LIMIT_GLOBAL_MAX", 100_000)
        .env("LIMITS_FLOOD_MAX", 100_000)
        .env("TRUSTED_PROXIES", "127.0.0.1/32")
        .start()
}

/// As somebody at an address that is not in `ops.allow`.
fn from_outside(request: Request) -> Request {
    request.header("X-Forwarded-For", "203.0.113.9")
}

type Sign = fn(Request) -> Request;

#[test]
fn everybody_sees_exactly_what_they_may_call() {
    let backend = backend();
    let gateway = start(&backend);
    let all = operations(&document(&gateway));
    let viewers: [(&str, Sign); 7] = [
        ("nobody", |request| request),
        ("a customer", |request| request.bearer(&token::customer())),
        ("a manager", |request| {
            request.bearer(&Token::user("u1").role("venue-manager").hs256())
        }),
        ("the door", |request| {
            request.bearer(&Token::user("u1").role("door-staff").hs256())
        }),
        ("a token with a list of its own", |request| {
            let token = Token::user("u1").without("role");
            request.bearer(
                &token
                    .claim("permissions", json!(["nft:view-own", "events:*"]))
                    .hs256(),
            )
        }),
        ("a partner", |request| request.header("X-API-Key", KEY)),
        ("an admin", |request| request.bearer(&token::admin())),
    ];
    let mut seen = Vec::new();
    for (who, sign) in viewers {
        let asked = from_outside(Request::get("/documentation/json"));
        let shown = names(&document_of(&gateway, sign(asked)));
        for operation in &all {
            let request = sign(from_outside(operation.request()));
            let status = request.send_to(gateway.addr()).status;
            let may = !matches!(status, 401 | 403);
            let is_shown = shown.contains(&operation.name());
            assert_eq!(is_shown, may, "{who}: {}: {status}", operation.name());
        }
        seen.push((who, shown.len()));
    }
    let counts: Vec<usize> = seen.iter().map(|(_, count)| *count).collect();
    assert!(
        counts[0] < counts[3] && counts[3] < counts[1] && counts[2] < counts[6],
        "{seen:?}"
    );
    assert_eq!(counts[6], all.len(), "{seen:?}");
}

#[test]
fn a_role_is_looked_at_from_an_address_of_operators_alone() {
    let backend = backend();
    let gateway = start(&backend);
    let customer = Request::get("/documentation/json").bearer(&token::customer());
    let customer = document_of(&gateway, from_outside(customer));
    let role = |name: &str| Request::get(&format!("/documentation/json?role={name}"));
    assert_eq!(document_of(&gateway, role("customer")), customer);
    let both = role("customer").bearer("a.b.c").send_to(gateway.addr());
    assert_eq!(
        (both.status, &both.json()["code"]),
        (400, &json!("BAD_REQUEST"))
    );

    let refused = from_outside(role("admin")).send_to(gateway.addr());
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (403, &json!("FORBIDDEN"))
    );
    let unknown = role("nobody").send_to(gateway.addr());
    assert_eq!(
        (unknown.status, &unknown.json()["code"]),
        (400, &json!("BAD_REQUEST"))
    );
}

#[test]
fn what_others_may_call_leaves_no_trace() {
    let backend = backend();
    let gateway = start(&backend);
    let asked = |request: Request| document_of(&gateway, from_outside(request));
    let customer = asked(Request::get("/documentation/json").bearer(&token::customer()));
    let schemas = customer["components"]["schemas"].as_object().unwrap();
    for hidden in [
        "venue-create",
        "venue-update",
        "event-create",
        "ticket-validate",
    ] {
        assert!(!schemas.contains_key(hidden), "{hidden}");
    }
    assert!(schemas.contains_key("ticket-purchase"));
    let text = customer.to_string();
    for hidden in [
        "/api/v1/payments/metrics",
        "monitoring:view",
        "compliance:view",
        "venues:create",
    ] {
        assert!(!text.contains(hidden), "{hidden}");
    }
    let public = asked(Request::get("/documentation/json"));
    assert!(
        operations(&public).iter().all(Operation::is_open),
        "{:?}",
        names(&public)
    );
    assert!(names(&public).contains("POST /api/v1/auth/login"));
    // To an operator here they are open, to an admin elsewhere they are not.
    let metrics =
        |document: &Value| document["paths"]["/api/v1/search/metrics"]["get"]["security"].clone();
    assert_eq!(metrics(&document(&gateway)), json!([{}, {"bearer": []}]));
    let admin = asked(Request::get("/documentation/json").bearer(&token::admin()));
    assert_eq!(metrics(&admin), json!([{"bearer": []}]));
}

#[test]
fn credentials_that_are_not_good_are_refused_and_counted() {
    let backend = backend();
    let gateway = start(&backend);
    let get = || Request::get("/documentation/json");
    for (what, request, code) in [
        (
            "no token",
            get().header("Authorization", "Basic x"),
            "AUTH_REQUIRED",
        ),
        ("a forged one", get().bearer("a.b.c"), "INVALID_TOKEN"),
        (
            "an old one",
            get().bearer(&Token::user("u1").expires_in(-60).hs256()),
            "TOKEN_EXPIRED",
        ),
        (
            "no such key",
            get().header("X-API-Key", "nobody-knows-this-key"),
            "INVALID_TOKEN",
        ),
    ] {
        let response = request.send_to(gateway.addr());
        assert_eq!(
            (response.status, &response.json()["code"]),
            (401, &json!(code)),
            "{what}"
        );
        assert!(response.header("www-authenticate").is_some(), "{what}");
    }
    let attempts = r#"authentication_attempts_total{status="failure"}"#;
    assert_eq!(gateway.metric(attempts), 4.0);
    let other = Token::user("u1").tenant("t2").hs256();
    let both = get()
        .header("X-API-Key", KEY)
        .bearer(&other)
        .send_to(gateway.addr());
    assert_eq!(both.status, 403, "the key is another tenant's");
}

#[test]
fn who_asks_too_often_waits() {
    let gateway = small(
        "
limits: { global: { max: 3, window: 60s } }
routes: [{ path: /things, service: s, auth: public }]
",
    )
    .start();
    let get = |path: &str| Request::get(path).send_to(gateway.addr());
    for (path, left) in [
        ("/documentation", "2"),
        ("/documentation/static/page.css", "1"),
        ("/documentation/json", "0"),
    ] {
        let response = get(path);
        assert_eq!(
            response.header("x-ratelimit-remaining"),
            Some(left),
            "{path}"
        );
    }
    let refused = get("/documentation/json");
    assert_eq!(
        (refused.status, &refused.json()["code"]),
        (429, &json!("RATE_LIMIT_ERROR"))
    );
    // As for any public path, the address pays for all of it.
    let refused = [
        "/documentation",
        "/documentation/",
        "/documentation/static/page.js",
        "/documentation/static/swagger-ui-bundle.js",
    ];
    for path in refused {
        let response = get(path);
        assert_eq!(response.status, 429, "{path}");
        assert!(response.header("retry-after").is_some(), "{path}");
    }
}

#[test]
fn operators_see_all_only_where_the_file_says_so_and_never_for_others() {
    let routes = "cors: { allowed_origins: ['https://app.test'] }\nroutes: [{ path: /things, service: s, auth: token }]";
    let get = || Request::get("/documentation/json");
    let sees = |gateway: &Gateway, request: Request| {
        document_of(gateway, request)["paths"]["/things"].is_object()
    };
    let told = small(routes).start();
    assert!(sees(&told, get()));
    for (name, value) in [
        ("Origin", "https://app.test"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1"),
        ("Via", "1.1 proxy"),
    ] {
        assert!(!sees(&told, get().header(name, value)), "{name}");
    }
    let own = format!("http://{}", told.addr());
    let own = get().host(&told.addr().to_string()).header("Origin", &own);
    assert!(sees(&told, own));

    let usual = small(&format!("documentation: {{ title: x }}\n{routes}")).start();
    assert!(!sees(&usual, get()));
    let role = Request::get("/documentation/json?role=admin").send_to(usual.addr());
    assert_eq!(role.status, 403);
}

#[test]
fn a_call_of_a_batch_has_no_more_time_than_its_batch() {
    let auth = Upstream::start_with(|asked| {
        let id = asked.target.rsplit('/').next().unwrap();
        Reply::json(json!({"id": id, "tenant_id": "t1", "active": true, "role": "customer"}))
    });
    let gateway = Gateway::with(&format!(
        "
health: {{ enabled: false }}
services: {{ s: {{ url: 'http://127.0.0.1:1' }}, auth-service: {{ url: '{}' }} }}
roles: {{ customer: ['things:view'] }}
auth: {{ users: {{ timeout: 4s }} }}
batch: {{ timeout: 1s }}
routes: [{{ path: /things, service: s, auth: token }}]
",
        auth.url()
    ))
    .env("NODE_ENV", "staging")
    .start();
    let left = |request: Request| {
        let before = unix_millis();
        let response = request.send_to(gateway.addr());
        assert_eq!(response.status, 200, "{}", response.text());
        let asked = auth.requests().pop().expect("auth-service was asked");
        let until = asked.header("x-request-deadline").unwrap();
        until.parse::<u128>().unwrap() - before
    };
    let nameless = |user: &str| Token::user(user).without("role").hs256();
    let alone = left(Request::get("/documentation/json").bearer(&nameless("u1")));
    assert!(alone > 3_000, "{alone} ms");
    let call = json!({"id": "a", "method": "GET", "path": "/documentation/json"});
    let batch = Request::post("/api/v1/batch").json(&json!({"calls": [call]}));
    let within = left(batch.bearer(&nameless("u2")));
    assert!(within < 2_000, "{within} ms");
    assert_eq!(auth.count(), 2);
}

fn unix_millis() -> u128 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_millis()
}
