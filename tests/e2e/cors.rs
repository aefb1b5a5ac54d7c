//! Which pages may call us, and what their browsers are told: on preflights, on answers of backends and on our own.

use crate::support::prelude::*;

const APP: &str = "https://app.example";

#[test]
fn a_preflight_of_a_known_origin_is_answered_here_without_a_token() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    for (path, method) in [
        ("/closed/x", "DELETE"),
        ("/open/x", "PUT"),
        ("/get-only", "GET"),
    ] {
        let mut connection = Client::to(gateway.addr()).connect();
        let response = connection.request(&preflight(path, APP, method));
        assert_eq!((response.status, response.body.len()), (204, 0), "{path}");
        assert_eq!(
            response.header("Content-Length"),
            None,
            "a 204 has none (RFC 9110, 8.6)"
        );
        assert_eq!(
            response.header("Access-Control-Allow-Origin"),
            Some(APP),
            "{path}"
        );
        assert_eq!(
            response.header("Access-Control-Allow-Credentials"),
            Some("true"),
            "{path}"
        );
        assert_eq!(
            response.header("Access-Control-Max-Age"),
            Some("120"),
            "{path}"
        );
        let methods = list(&response, "Access-Control-Allow-Methods");
        assert_eq!(
            methods,
            ["get", "post", "put", "patch", "delete", "options"],
            "{path}"
        );
        let headers = list(&response, "Access-Control-Allow-Headers");
        for name in [
            "authorization",
            "content-type",
            "x-api-key",
            "x-venue-id",
            "x-tenant-id",
            "idempotency-key",
            "x-request-id",
        ] {
            assert!(
                headers.iter().any(|known| known == name),
                "{name} is not in {headers:?}"
            );
        }
        assert!(
            list(&response, "Vary").contains(&"origin".to_owned()),
            "{path}"
        );
        assert_eq!(response.header("X-Content-Type-Options"), Some("nosniff"));
        assert!(response.header("X-Request-ID").is_some());
        let next = connection.request(&Request::get("/open/x"));
        assert_eq!(next.status, 200, "the connection goes on");
    }
    assert!(echo.requests().iter().all(|seen| seen.method == "GET"));
}

#[test]
fn a_preflight_of_an_unknown_origin_is_403_and_of_an_unknown_path_404() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    let stranger = preflight("/open/x", "https://evil.example", "GET").send_to(gateway.addr());
    assert_eq!(
        (stranger.status, stranger.json()["code"].as_str()),
        (403, Some("FORBIDDEN"))
    );
    assert_no_permission(&stranger, "a preflight of a stranger");
    let nowhere = preflight("/nowhere", APP, "GET").send_to(gateway.addr());
    assert_eq!(
        (nowhere.status, nowhere.json()["code"].as_str()),
        (404, Some("NOT_FOUND"))
    );
    assert_eq!(
        nowhere.header("Access-Control-Allow-Origin"),
        Some(APP),
        "so that the page can read it"
    );
    let bad_path = preflight("/open/../x", APP, "GET").send_to(gateway.addr());
    assert_eq!(bad_path.status, 400);

    let no_preflight = Request::method("OPTIONS", "/open/x").header("Origin", APP);
    assert_eq!(
        no_preflight.send_to(gateway.addr()).status,
        405,
        "no method was asked for"
    );
    assert_eq!(echo.heads_seen(), 0);
}

#[test]
fn an_unknown_origin_is_refused_before_anything_is_forwarded() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    for origin in [
        "https://evil.example",
        "https://app.example.evil.test",
        "https://evilapp.example",
        "https://app.example:444",
        "http://app.example",
        "app.example",
        "null",
        "",
        "*",
        "https://app.example/",
        "https://app.example,https://x",
        "http://localhost:5173",
        "http://127.0.0.1",
        "https://sub.app.example",
        "file://",
        "http://gateway.test.evil",
        "https://user@app.example",
    ] {
        let request = Request::post("/open/x")
            .header("Origin", origin)
            .body("hello");
        let response = request.send_to(gateway.addr());
        assert_eq!(
            (response.status, response.json()["code"].as_str()),
            (403, Some("FORBIDDEN")),
            "{origin:?}"
        );
        assert_no_permission(&response, origin);
    }
    let twice = Request::get("/open/x")
        .header("Origin", APP)
        .header("Origin", "https://evil.example");
    assert_eq!(twice.send_to(gateway.addr()).status, 403);
    let twice = Request::get("/open/x")
        .header("Origin", APP)
        .header("Origin", APP);
    assert_eq!(twice.send_to(gateway.addr()).status, 403);
    assert_eq!(echo.heads_seen(), 0);
}

#[test]
fn answers_to_a_known_origin_say_what_its_page_may_see() {
    let echo = Upstream::start_with(|_| Reply::json(json!({})).header("Vary", "Accept-Encoding"));
    let gateway = Gateway::with(&yaml(&echo)).start();
    for (name, request, status) in [
        ("a backend's answer", Request::get("/open/x"), 200),
        ("401", Request::get("/closed/x"), 401),
        ("404", Request::get("/nowhere"), 404),
        ("405", Request::post("/get-only"), 405),
        (
            "413",
            Request::post("/open/x").header("Content-Length", "99999999999"),
            413,
        ),
        ("502", Request::get("/broken"), 503),
    ] {
        let response = request.header("Origin", APP).send_to(gateway.addr());
        assert_eq!(response.status, status, "{name}");
        assert_eq!(
            response.header("Access-Control-Allow-Origin"),
            Some(APP),
            "{name}"
        );
        assert_eq!(
            response.header("Access-Control-Allow-Credentials"),
            Some("true"),
            "{name}"
        );
        let exposed = list(&response, "Access-Control-Expose-Headers");
        for header in [
            "x-request-id",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "retry-after",
            "location",
        ] {
            assert!(
                exposed.iter().any(|known| known == header),
                "{name}: {header} is not in {exposed:?}"
            );
        }
        let vary = list(&response, "Vary");
        assert!(vary.contains(&"origin".to_owned()), "{name}: {vary:?}");
        assert_eq!(
            vary.contains(&"accept-encoding".to_owned()),
            status == 200,
            "{name}: {vary:?}"
        );
    }
    assert!(
        echo.requests()
            .iter()
            .all(|seen| seen.header("Origin").is_none())
    );
}

#[test]
fn a_request_without_an_origin_passes_and_its_answer_varies_all_the_same() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    let response = Request::get("/open/x").send_to(gateway.addr());
    assert_eq!(response.status, 200);
    assert_no_permission(&response, "no origin");
    assert!(
        list(&response, "Vary").contains(&"origin".to_owned()),
        "a cache must not give it to a page"
    );
}

#[test]
fn the_origin_of_the_gateway_itself_passes() {
    let echo = Upstream::start();
    let gateway = Gateway::with(&yaml(&echo)).start();
    let post = |origin: &str| {
        Request::post("/open/x")
            .header("Origin", origin)
            .body("x")
            .send_to(gateway.addr())
    };
    assert_eq!(post("http://gateway.test").status, 200);
    assert_eq!(post("http://gateway.test:81").status, 403);
    assert_eq!(
        post("HTTPS://APP.EXAMPLE").status,
        200,
        "scheme and host have no case"
    );
}

#[test]
fn a_backends_own_cors_headers_give_way() {
    let echo = Upstream::start_with(|_| {
        Reply::json(json!({}))
            .header("Access-Control-Allow-Origin", "*")
            .header("Access-Control-Allow-Credentials", "false")
            .header("Access-Control-Expose-Headers", "X-Secret")
            .header("Access-Control-Allow-Methods", "*")
            .header("Access-Control-Allow-Headers", "*")
            .header("Access-Control-Max-Age", "86400")
            .header("Access-Control-Allow-Private-Network", "true")
    });
    let gateway = Gateway::with(&yaml(&echo)).start();
    let page = Request::get("/open/x")
        .header("Origin", APP)
        .send_to(gateway.addr());
    assert_eq!(page.header("Access-Control-Allow-Origin"), Some(APP));
    assert_eq!(
        page.header("Access-Control-Allow-Credentials"),
        Some("true")
    );
    assert!(!list(&page, "Access-Control-Expose-Headers").contains(&"x-secret".to_owned()));
    let server = Request::get("/open/x").send_to(gateway.addr());
    for (name, response) in [("a page", &page), ("no page", &server)] {
        for header in [
            "Access-Control-Allow-Methods",
            "Access-Control-Allow-Headers",
            "Access-Control-Max-Age",
            "Access-Control-Allow-Private-Network",
        ] {
            assert_eq!(response.header(header), None, "{name}: one place decides");
        }
    }
    assert_no_permission(&server, "no origin");
}

#[test]
fn development_allows_every_localhost_and_the_list_comes_from_the_environment() {
    let echo = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .env("NODE_ENV", "development")
        .env(
            "ALLOWED_ORIGINS",
            "https://one.example, https://two.example",
        )
        .env("PAYMENT_SERVICE_URL", echo.url())
        .start();
    let status = |origin: &str| {
        Request::get("/api/v1/payments/health")
            .header("Origin", origin)
            .send_to(gateway.addr())
            .status
    };
    for good in [
        "http://localhost",
        "http://localhost:5173",
        "https://localhost:3000",
        "http://127.0.0.1:8080",
        "http://[::1]:3000",
        "https://one.example",
        "https://two.example",
    ] {
        assert_eq!(status(good), 200, "{good}");
    }
    for bad in [
        "http://localhost.evil.test",
        "http://localhost@evil.test",
        "http://localhost:80@evil.test",
        "http://127.0.0.1.evil",
        "http://127.0.0.1:80.evil",
        "http://frontend:5173",
        "null",
        "http://evil.test#localhost",
        "http://[::1].evil",
        "http://[::1]evil",
    ] {
        assert_eq!(status(bad), 403, "{bad}");
    }
}

#[test]
fn the_documented_origins_are_the_default() {
    let echo = Upstream::start();
    let gateway = Gateway::platform_unchecked()
        .env("PAYMENT_SERVICE_URL", echo.url())
        .start();
    for (origin, status) in [
        ("http://frontend:5173", 200),
        ("http://api-gateway:3000", 200),
        ("http://localhost:3000", 403),
    ] {
        let request = Request::get("/api/v1/payments/health").header("Origin", origin);
        assert_eq!(request.send_to(gateway.addr()).status, status, "{origin}");
    }
}

fn preflight(path: &str, origin: &str, method: &str) -> Request {
    Request::method("OPTIONS", path)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", method)
        .header(
            "Access-Control-Request-Headers",
            "authorization,content-type",
        )
}

#[track_caller]
fn assert_no_permission(response: &Response, name: &str) {
    for header in [
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Credentials",
        "Access-Control-Expose-Headers",
    ] {
        assert_eq!(response.header(header), None, "{name}");
    }
}

/// The entries of a list, in lower case.
fn list(response: &Response, name: &str) -> Vec<String> {
    let values = response.headers_named(name);
    let entries = values.iter().flat_map(|value| value.split(','));
    entries
        .map(|entry| entry.trim().to_ascii_lowercase())
        .collect()
}

fn yaml(echo: &Upstream) -> String {
    format!(
        "health: {{ enabled: false }}
services:
  echo: {{ url: {} }}
  gone: {{ url: 'http://{}' }}
cors: {{ allowed_origins: ['{APP}'], max_age: 120s }}
routes:
  - {{ path: /open/*, service: echo, auth: public, limits: [] }}
  - {{ path: /closed/*, service: echo, auth: token, limits: [] }}
  - {{ path: /get-only, service: echo, methods: [GET], auth: public, limits: [] }}
  - {{ path: /broken, service: gone, auth: public, limits: [] }}
",
        echo.url(),
        refused_addr()
    )
}
