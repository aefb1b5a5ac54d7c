//! From host, path and method to a service: every documented route on the platform's own configuration, one spelling of
//! a path, and routes that are added by YAML alone.

use crate::support::prelude::*;

/// Method, path, service, and what the service is asked for. Without a token.
const PUBLIC: &[(&str, &str, &str, &str)] = &[
    ("POST", "/api/v1/auth/login", "AUTH", "/auth/login"),
    ("POST", "/api/v1/auth/register", "AUTH", "/auth/register"),
    ("POST", "/api/v1/auth/refresh", "AUTH", "/auth/refresh"),
    (
        "POST",
        "/api/v1/auth/forgot-password",
        "AUTH",
        "/auth/forgot-password",
    ),
    (
        "POST",
        "/api/v1/auth/reset-password",
        "AUTH",
        "/auth/reset-password",
    ),
    (
        "POST",
        "/api/v1/auth/verify-email?token=1",
        "AUTH",
        "/auth/verify-email?token=1",
    ),
    (
        "POST",
        "/api/v1/payments/webhooks/stripe",
        "PAYMENT",
        "/api/v1/payments/webhooks/stripe",
    ),
    (
        "GET",
        "/api/v1/payments/webhooks/a/b",
        "PAYMENT",
        "/api/v1/payments/webhooks/a/b",
    ),
    (
        "POST",
        "/api/v1/webhooks/stripe",
        "PAYMENT",
        "/api/v1/webhooks/stripe",
    ),
    (
        "POST",
        "/api/v1/webhooks/square",
        "PAYMENT",
        "/api/v1/webhooks/square",
    ),
    (
        "GET",
        "/api/v1/webhooks/paypal?hub=1",
        "PAYMENT",
        "/api/v1/webhooks/paypal?hub=1",
    ),
    (
        "PUT",
        "/api/v1/webhooks/paypal/x",
        "PAYMENT",
        "/api/v1/webhooks/paypal/x",
    ),
    ("GET", "/api/v1/search/health", "SEARCH", "/api/v1/health"),
    ("GET", "/api/v1/search/metrics", "SEARCH", "/api/v1/metrics"),
];

/// The same, with the token of an admin.
const CLOSED: &[(&str, &str, &str, &str)] = &[
    ("GET", "/api/v1/auth/me", "AUTH", "/auth/me"),
    ("PUT", "/api/v1/auth/me", "AUTH", "/auth/me"),
    ("POST", "/api/v1/auth/logout", "AUTH", "/auth/logout"),
    (
        "POST",
        "/api/v1/auth/change-password",
        "AUTH",
        "/auth/change-password",
    ),
    (
        "DELETE",
        "/api/v1/auth/sessions/7?all=1",
        "AUTH",
        "/auth/sessions/7?all=1",
    ),
    ("GET", "/api/v1/auth", "AUTH", "/auth"),
    (
        "POST",
        "/api/v1/tickets/purchase",
        "TICKET",
        "/api/v1/tickets/purchase",
    ),
    (
        "POST",
        "/api/v1/tickets/7/validate",
        "TICKET",
        "/api/v1/tickets/7/validate",
    ),
    (
        "POST",
        "/api/v1/payments/process",
        "PAYMENT",
        "/api/v1/payments/process",
    ),
    ("GET", "/api/v1/search", "SEARCH", "/api/v1"),
    (
        "GET",
        "/api/v1/search/events?q=x",
        "SEARCH",
        "/api/v1/events?q=x",
    ),
    ("POST", "/api/v1/search/a/b", "SEARCH", "/api/v1/a/b"),
    ("POST", "/api/v1/nft/mint", "MINTING", "/api/v1/nft/mint"),
    ("GET", "/api/v1/nft/7", "MINTING", "/api/v1/nft/7"),
    ("GET", "/api/v1/event", "EVENT", "/api/v1/events"),
    (
        "GET",
        "/api/v1/event/7?x=1",
        "EVENT",
        "/api/v1/events/7?x=1",
    ),
    (
        "POST",
        "/api/v1/ticket/purchase",
        "TICKET",
        "/api/v1/tickets/purchase",
    ),
    (
        "PATCH",
        "/api/v1/ticket/7/x",
        "TICKET",
        "/api/v1/tickets/7/x",
    ),
    (
        "POST",
        "/api/v1/ticket/7/validate",
        "TICKET",
        "/api/v1/tickets/7/validate",
    ),
];

/// Prefixes that are forwarded as they are, the methods that they answer, and whether their service's own health and
/// metrics are public.
const PREFIXES: &[(&str, &str, &str, bool)] = &[
    (
        "/api/v1/venues",
        "VENUE",
        "GET POST PUT PATCH DELETE",
        false,
    ),
    (
        "/api/v1/events",
        "EVENT",
        "GET POST PUT PATCH DELETE",
        false,
    ),
    (
        "/api/v1/tickets",
        "TICKET",
        "GET POST PUT PATCH DELETE",
        false,
    ),
    (
        "/api/v1/payments",
        "PAYMENT",
        "GET POST PUT PATCH DELETE",
        true,
    ),
    (
        "/api/v1/marketplace",
        "MARKETPLACE",
        "GET POST PUT PATCH DELETE",
        true,
    ),
    (
        "/api/v1/notifications",
        "NOTIFICATION",
        "GET POST PUT PATCH DELETE",
        true,
    ),
    (
        "/api/v1/compliance",
        "COMPLIANCE",
        "GET POST PUT PATCH DELETE",
        true,
    ),
    ("/api/v1/queue", "QUEUE", "GET POST PUT PATCH DELETE", true),
    ("/api/v1/analytics", "ANALYTICS", "GET POST", true),
    ("/api/v1/files", "FILE", "GET POST PUT PATCH DELETE", true),
    ("/api/v1/monitoring", "MONITORING", "GET", true),
    (
        "/api/v1/integrations",
        "INTEGRATION",
        "GET POST PUT PATCH DELETE",
        true,
    ),
];

#[test]
fn every_documented_path_reaches_its_service_under_the_documented_target() {
    let (backends, gateway) = platform();
    let admin = token::admin();
    for (routes, is_public) in [(PUBLIC, true), (CLOSED, false)] {
        for (method, path, service, target) in routes {
            let request = Request::method(method, path);
            let request = match is_public {
                // One of its own: a logout ends it.
                false => request.bearer(&token::admin()),
                true => request,
            };
            assert_reaches(
                &gateway,
                &backends,
                request,
                &format!("{method} {path}"),
                service,
                target,
            );
        }
    }
    for (prefix, service, methods, own_health) in PREFIXES {
        for method in methods.split(' ') {
            for path in [
                prefix.to_string(),
                format!("{prefix}/"),
                format!("{prefix}/7/x?page=1"),
            ] {
                let request = Request::method(method, &path).bearer(&admin);
                assert_reaches(
                    &gateway,
                    &backends,
                    request,
                    &format!("{method} {path}"),
                    service,
                    &path,
                );
            }
        }
        for path in [format!("{prefix}/health"), format!("{prefix}/metrics")] {
            let request = Request::get(&path);
            match own_health {
                true => assert_reaches(&gateway, &backends, request, &path, service, &path),
                false => assert_eq!(request.send_to(gateway.addr()).status, 401, "{path}"),
            }
        }
    }
}

#[test]
fn paths_that_only_look_like_a_public_or_a_known_one_are_not() {
    let (backends, gateway) = platform();
    let cases: &[(&str, &str, u16)] = &[
        ("POST", "/api/v1/auth/loginx", 401),
        ("POST", "/api/v1/auth/login/", 404),
        ("POST", "/api/v1/auth/login/x", 401),
        ("POST", "/api/v1/auth/Login", 404),
        ("POST", "/api/v1/auth/login;a=b", 401),
        ("POST", "/api/v1/auth/login%20", 401),
        ("POST", "/api/v1/payments/webhooksx", 401),
        ("GET", "/api/v1/payments/health/x", 401),
        ("GET", "/api/v1/payments/Health", 404),
        ("GET", "/api/v1/search/anything", 401),
        ("GET", "/api/v1/search", 401),
        ("GET", "/api/v1/venuesx", 404),
        ("GET", "/api/v1/webhook/x", 404),
        ("GET", "/api/v1/Events", 404),
        ("GET", "/api/v2/events", 404),
        ("GET", "/api/v1/orders", 404),
        ("GET", "/api/v1/", 404),
        ("GET", "/api", 404),
        ("GET", "/", 404),
        ("GET", "/events", 404),
        ("GET", "/auth/login", 404),
        ("GET", "/healthz", 404),
        ("GET", "/health/", 404),
        ("GET", "/metrics/x", 404),
        ("GET", "/internal/venues/1/members/2", 404),
    ];
    for (method, path, status) in cases {
        let response = Request::method(method, path).send_to(gateway.addr());
        assert_eq!(
            response.status,
            *status,
            "{method} {path}: {}",
            response.text()
        );
        let code = if *status == 404 {
            "NOT_FOUND"
        } else {
            "AUTH_REQUIRED"
        };
        assert_eq!(response.json()["code"], code, "{method} {path}");
    }
    assert!(backends.iter().all(|backend| backend.heads_seen() == 0));
    let unmatched = r#"http_requests_total{method="GET",route="unmatched",status_code="404"}"#;
    let expected = cases
        .iter()
        .filter(|case| case.0 == "GET" && case.2 == 404)
        .count();
    gateway.wait_metric(unmatched, |count| count == expected as f64);
}

#[test]
fn a_method_that_a_path_lacks_is_405_and_says_which_it_has() {
    let (backends, gateway) = platform();
    let cases: &[(&str, &str, &str)] = &[
        ("GET", "/api/v1/auth/login", "POST"),
        ("HEAD", "/api/v1/auth/login", "POST"),
        ("PUT", "/api/v1/auth/login", "POST"),
        ("GET", "/api/v1/webhooks/stripe", "POST"),
        ("DELETE", "/api/v1/auth/me", "GET, HEAD, PUT"),
        ("GET", "/api/v1/tickets/purchase", "POST"),
        ("GET", "/api/v1/ticket/purchase", "POST"),
        ("DELETE", "/api/v1/search/x", "GET, HEAD, POST"),
        ("POST", "/api/v1/payments/health", "GET, HEAD"),
        (
            "PROPFIND",
            "/api/v1/events",
            "GET, HEAD, POST, PUT, PATCH, DELETE",
        ),
        (
            "get",
            "/api/v1/events",
            "GET, HEAD, POST, PUT, PATCH, DELETE",
        ),
        ("OPTIONS", "/api/v1/auth/login", "POST"),
        ("POST", "/live", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
    ];
    for (method, path, allow) in cases {
        let mut connection = Client::to(gateway.addr()).connect();
        let response = connection.request(&Request::method(method, path));
        assert_eq!(response.status, 405, "{method} {path}");
        assert_eq!(response.header("Allow"), Some(*allow), "{method} {path}");
        if *method != "HEAD" {
            assert_eq!(
                response.json()["code"],
                "METHOD_NOT_ALLOWED",
                "{method} {path}"
            );
        }
        assert_eq!(
            connection.request(&Request::get("/live")).status,
            200,
            "{method} {path}: kept alive"
        );
    }
    assert!(backends.iter().all(|backend| backend.heads_seen() == 0));
}

#[test]
fn head_comes_with_get_and_is_forwarded_as_head() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo, "")).start();
    let mut connection = Client::to(gateway.addr()).connect();
    let response = connection.request(&Request::method("HEAD", "/open/x"));
    assert_eq!(
        (response.status, response.header("Content-Length")),
        (200, Some("11"))
    );
    let next = connection.request(&Request::get("/open/y"));
    assert_eq!(
        next.json(),
        json!({"ok": true}),
        "no body was left on the connection"
    );
    assert_eq!(echo.requests()[0].method, "HEAD");
}

#[test]
fn a_path_that_components_could_read_differently_is_refused_and_not_forwarded() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo, "")).start();
    for path in [
        "/open/..",
        "/open/.",
        "/open/../closed",
        "/open/x/../y",
        "/open/./x",
        "/../open/x",
        "/open/x/..",
        "/open/%2e%2e/closed",
        "/open/%2E%2e/x",
        "/open/.%2e/x",
        "/open/%2e/x",
        "/open/..%2fclosed",
        "/open%2fx",
        "/open/x%2Fy",
        "/open/x%5cy",
        "/open/x%5Cy",
        "/open/..\\closed",
        "/open\\x",
        "//open/x",
        "/open//x",
        "/open/x//",
        "//gateway.test/open/x",
        "/open/%2e%2e%2fx",
        "/open/x%00",
        "/open/%00/x",
        "/open/x%0a",
        "/open/x%0d%0aX:y",
        "/open/x%7f",
        "/open/%252e%252e/closed",
        "/open/x%252fy",
        "/open/x%255cy",
        "/open/x%2500",
        "/open/x%25252f",
        "/open/..;/closed",
        "/open/..;a=b/closed",
        "/open/.;/x",
        "/open/%2e%2e;/x",
        "/open/x%",
        "/open/x%2",
        "/open/x%zz",
        "/open/%u002e%u002e/x",
        "/open/x%%32%66",
        "/%6fpen/%2e%2e/closed",
        "/open/..?a=b",
        "/open/x//?a=b",
        "/live/../open/x",
        "/open/../live",
        "*",
    ] {
        let method = if path == "*" { "OPTIONS" } else { "GET" };
        let mut connection = Client::to(gateway.addr()).connect();
        let response = connection.request(&Request::method(method, path));
        assert_eq!(response.status, 400, "{path}: {}", response.text());
        assert_eq!(response.json()["code"], "BAD_REQUEST", "{path}");
        let id = response.header("X-Request-ID").unwrap();
        assert_eq!(gateway.access_line(id)["route"], "unmatched", "{path}");
    }
    assert_eq!(echo.heads_seen(), 0, "{:?}", echo.requests());
}

#[test]
fn a_path_is_matched_and_forwarded_in_its_one_spelling_and_the_query_byte_for_byte() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo, "")).start();
    for (sent, seen) in [
        ("/open/a", "/open/a"),
        ("/%6fpen/%61", "/open/a"),
        ("/open/%7Euser/%2Dx%5Fy", "/open/~user/-x_y"),
        ("/open/caf%c3%a9", "/open/caf%C3%A9"),
        ("/open/a%20b%3fc%23d", "/open/a%20b%3Fc%23d"),
        ("/open/100%25", "/open/100%25"),
        ("/open/a%3bb", "/open/a%3Bb"),
        ("/open/a;b=c,d", "/open/a;b=c,d"),
        ("/open/...", "/open/..."),
        ("/open/.well-known/a..b", "/open/.well-known/a..b"),
        ("/open/", "/open/"),
        ("/open?", "/open?"),
        ("/%6fpen/a?", "/open/a?"),
        ("/%6fpen/a?%61=%2e%2e/../%2f", "/open/a?%61=%2e%2e/../%2f"),
        (
            "/open/a?b=//c\\&d=%00&&=?x+y%zz",
            "/open/a?b=//c\\&d=%00&&=?x+y%zz",
        ),
        ("/mapped/%61/%62?c=%64", "/there/b/a?c=%64"),
    ] {
        let response = Request::get(sent).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{sent}: {}", response.text());
        assert_eq!(echo.requests().pop().unwrap().target, seen, "{sent}");
    }
    let response = Request::get("/%63losed/x").send_to(gateway.addr());
    assert_eq!(
        response.status, 401,
        "another spelling is no way round a token"
    );
}

#[test]
fn hosts_are_exact_before_wildcards_before_all_in_any_case_and_with_any_port() {
    let echo = Upstream::start();
    let routes = "
  - { path: /h, target: /exact, hosts: [a.example.com], service: echo, auth: public }
  - { path: /h, target: /wild, hosts: ['*.example.com'], service: echo, auth: public }
  - { path: /h, target: /deep, hosts: ['*.b.example.com'], service: echo, auth: public }
  - { path: /h, target: /all, service: echo, auth: public }
  - { path: /only, hosts: [one.test], service: echo, auth: public }
";
    let gateway = Gateway::with(&yaml(&echo, routes)).start();
    for (host, target) in [
        ("a.example.com", "/exact"),
        ("A.Example.COM:8080", "/exact"),
        ("c.example.com", "/wild"),
        ("c.b.example.com", "/deep"),
        ("x.a.example.com", "/wild"),
        ("example.com", "/all"),
        ("notexample.com", "/all"),
        ("a.example.com.evil.test", "/all"),
        ("[::1]:80", "/all"),
    ] {
        let response = Request::get("/h").host(host).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{host}");
        let seen = echo.requests().pop().unwrap();
        assert_eq!(seen.target, target, "{host}");
        assert_eq!(
            seen.header("Host"),
            Some(echo.addr().to_string().as_str()),
            "{host}"
        );
    }
    let get = |host: &str| {
        Request::get("/only")
            .host(host)
            .send_to(gateway.addr())
            .status
    };
    assert_eq!((get("one.test"), get("two.test")), (200, 404));
    let trailing_dot = Request::get("/only")
        .host("one.test.")
        .send_to(gateway.addr());
    assert_eq!(
        trailing_dot.status, 200,
        "the root's dot names the same host"
    );
}

#[test]
fn a_service_and_its_route_are_added_by_yaml_alone_with_a_variable_of_its_own() {
    let (elsewhere, here) = (Upstream::start(), Upstream::start());
    let yaml = format!(
        "health: {{ enabled: false }}
services: {{ seat-map-service: {{ url: {} }} }}
routes:
  - {{ path: '/seats/{{venue}}/rows/{{row}}', target: '/v2/{{row}}/of/{{venue}}', service: seat-map-service, auth: public }}
  - {{ path: /seats/*, service: seat-map-service, auth: token }}
",
        elsewhere.url()
    );
    let gateway = Gateway::with(&yaml)
        .env("SEAT_MAP_SERVICE_URL", here.url())
        .start();
    let response = Request::get("/seats/7/rows/a%20b?x").send_to(gateway.addr());
    assert_eq!(response.status, 200);
    assert_eq!(here.wait_requests(1)[0].target, "/v2/a%20b/of/7?x");
    assert_eq!(elsewhere.count(), 0, "the variable wins over the file");
    assert_eq!(
        Request::get("/seats/7/rows").send_to(gateway.addr()).status,
        401
    );
    let series =
        r#"http_requests_total{method="GET",route="/seats/{venue}/rows/{row}",status_code="200"}"#;
    gateway.wait_metric(series, |count| count == 1.0);
    drop(gateway);

    let gateway = Gateway::with(&yaml).start();
    assert_eq!(
        Request::get("/seats/7/rows/1")
            .send_to(gateway.addr())
            .status,
        200
    );
    assert_eq!(elsewhere.count(), 1, "without it the file holds");
}

#[track_caller]
fn assert_reaches(
    gateway: &Gateway,
    backends: &[Upstream],
    request: Request,
    name: &str,
    service: &str,
    target: &str,
) {
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{name}: {}", response.text());
    let at = SERVICES.iter().position(|known| *known == service).unwrap();
    let told = response.json();
    assert_eq!(told["service"], service, "{name}");
    assert_eq!(told["target"], target, "{name}");
    assert_eq!(told["host"], backends[at].addr().to_string(), "{name}");
}

/// The platform's own configuration, each service at a backend of its own that tells what it was asked.
fn platform() -> (Vec<Upstream>, Gateway) {
    let tell = |service: &'static str| {
        move |seen: &Recorded| {
            Reply::json(
                json!({"service": service, "target": seen.target, "host": seen.header("Host")}),
            )
        }
    };
    let backends: Vec<Upstream> = SERVICES
        .iter()
        .map(|service| Upstream::start_with(tell(service)))
        .collect();
    let mut gateway = Gateway::platform_unchecked()
        .env("RATE_LIMIT_ENABLED", "false")
        .env("LIMITS_FLOOD_MAX", 100_000);
    for (service, backend) in SERVICES.iter().zip(&backends) {
        gateway = gateway.env(&format!("{service}_SERVICE_URL"), backend.url());
    }
    (backends, gateway.start())
}

fn yaml(echo: &Upstream, routes: &str) -> String {
    format!(
        "health: {{ enabled: false }}
services: {{ echo: {{ url: {} }} }}
routes:
  - {{ path: /open/*, service: echo, auth: public, limits: [] }}
  - {{ path: /closed/*, service: echo, auth: token, limits: [] }}
  - {{ path: '/mapped/{{a}}/{{b}}', target: '/there/{{b}}/{{a}}', service: echo, auth: public, limits: [] }}
{routes}",
        echo.url()
    )
}
