//! The page and its files, byte by byte: headers, codings, conditions, and what the log and the metrics say.

use super::*;
use flate2::read::GzDecoder;
use std::io::Read;

const ROUTES: &str = "routes: [{ path: /things, service: s, auth: public }]";

#[test]
fn the_page_may_run_its_own_scripts_and_ask_its_own_gateway() {
    let gateway = small(ROUTES)
        .env("SWAGGER_HOST", "https://api.test:8443")
        .start();
    let page = Request::get("/documentation").send_to(gateway.addr());
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").unwrap();
    let directives: Vec<&str> = policy.split(';').collect();
    assert!(directives.contains(&"script-src 'self'"), "{policy}");
    assert!(directives.contains(&"default-src 'none'"), "{policy}");
    assert!(
        directives.contains(&"connect-src 'self' https://api.test:8443"),
        "{policy}"
    );
    // Over plain HTTP there is nothing to upgrade to.
    assert!(!policy.contains("upgrade-insecure-requests"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    // It is shown in no frame, by whichever field a browser goes.
    assert!(directives.contains(&"frame-ancestors 'none'"), "{policy}");
    for path in [
        "/documentation",
        "/documentation/json",
        "/documentation/static/page.js",
    ] {
        let response = Request::get(path).send_to(gateway.addr());
        assert_eq!(
            response.headers_named("x-frame-options"),
            ["DENY"],
            "{path}"
        );
    }
    let other = Request::get("/live").send_to(gateway.addr());
    assert!(
        other
            .header("content-security-policy")
            .unwrap()
            .contains("upgrade-insecure-requests")
    );

    let links = page
        .text()
        .split('"')
        .filter(|text| text.starts_with("documentation/"));
    let links: Vec<&str> = links.collect();
    assert_eq!(links.len(), 5, "{links:?}");
    for link in links {
        let file = Request::get(&format!("/{link}")).send_to(gateway.addr());
        assert_eq!(file.status, 200, "{link}");
        assert_eq!(
            file.header("cache-control"),
            Some("public, max-age=3600"),
            "{link}"
        );
    }
    let slash = Request::get("/documentation/").send_to(gateway.addr());
    assert_eq!(
        (slash.status, slash.header("location")),
        (308, Some("../documentation"))
    );
    let document = document(&gateway);
    assert_eq!(document["servers"][1]["url"], "https://api.test:8443");
}

#[test]
fn a_public_host_is_told_by_the_pages_own_scheme_and_a_name_of_the_inside_not_at_all() {
    for (host, told, source) in [
        // As documented, and by default.
        ("api-gateway:3000", None, ""),
        ("https://gateway", None, ""),
        ("", None, ""),
        ("api.test:8443", Some("//api.test:8443"), " api.test:8443"),
        ("http://api.test", Some("//api.test"), " api.test"),
        (
            "https://api.test",
            Some("https://api.test"),
            " https://api.test",
        ),
    ] {
        let gateway = small(ROUTES)
            .env("SWAGGER_HOST", host)
            .env("TRUSTED_PROXIES", "127.0.0.1/32")
            .start();
        for scheme in ["http", "https"] {
            let get = |path: &str| {
                let request = Request::get(path).header("X-Forwarded-For", "203.0.113.9");
                let request = request.header("X-Forwarded-Proto", scheme);
                request.send_to(gateway.addr())
            };
            let page = get("/documentation");
            let policy = page.header("content-security-policy").unwrap();
            let expected = format!("connect-src 'self'{source}");
            assert!(
                policy.split(';').any(|part| part == expected),
                "{host}: {policy}"
            );
            let servers = get("/documentation/json").json()["servers"].clone();
            assert_eq!(servers[0]["url"], "/", "{host}");
            assert_eq!(servers[1]["url"].as_str(), told, "{host}");
            assert!(
                !format!("{policy}{servers}").contains("http:"),
                "{host} over {scheme}"
            );
        }
    }
}

#[test]
fn files_are_sent_packed_to_who_can_unpack_them() {
    let gateway = small(ROUTES).start();
    let get = |coding: &str| {
        let request = Request::get("/documentation/static/swagger-ui-bundle.js");
        request
            .header("Accept-Encoding", coding)
            .send_to(gateway.addr())
    };
    let plain = get("identity");
    assert_eq!(
        plain.header("content-type"),
        Some("text/javascript; charset=utf-8")
    );
    assert_eq!(plain.header("content-encoding"), None);
    assert!(plain.body.len() > 1_000_000);
    let packed = get("br, gzip");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert!(packed.body.len() < plain.body.len() / 3);
    let mut unpacked = Vec::new();
    GzDecoder::new(&*packed.body)
        .read_to_end(&mut unpacked)
        .unwrap();
    assert!(unpacked == plain.body);
    for response in [&plain, &packed] {
        let vary = response.headers_named("vary").join(", ");
        assert!(
            vary.to_ascii_lowercase().contains("accept-encoding"),
            "{vary}"
        );
    }
    assert_ne!(packed.header("etag"), plain.header("etag"));
}

#[test]
fn what_a_client_has_already_is_not_sent_again() {
    let gateway = small(ROUTES).start();
    let paths = [
        "/documentation",
        "/documentation/json",
        "/documentation/yaml",
        "/documentation/static/page.js",
        "/documentation/static/swagger-ui.css",
    ];
    let mut connection = Client::to(gateway.addr()).connect();
    for path in paths {
        let first = connection.request(&Request::get(path));
        let etag = first.header("etag").unwrap().to_owned();
        assert!(
            etag.starts_with('"') && !first.body.is_empty(),
            "{path}: {etag}"
        );
        let again = connection.request(&Request::get(path).header("If-None-Match", &etag));
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        assert_eq!(again.header("etag"), Some(&*etag), "{path}");
        let other = connection.request(&Request::get(path).header("If-None-Match", "\"x\""));
        assert_eq!(other.status, 200, "{path}");
        let head = connection.request(&Request::method("HEAD", path));
        let length = first.body.len().to_string();
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some(&*length)),
            "{path}"
        );
    }
    let json = connection.request(&Request::get("/documentation/json"));
    assert_eq!(json.header("cache-control"), Some("private, no-cache"));
    let vary = json.headers_named("vary").join(", ");
    assert!(vary.contains("Authorization"), "{vary}");
}

#[test]
fn other_methods_and_other_pages_are_refused() {
    let gateway = small(ROUTES).start();
    for path in [
        "/documentation",
        "/documentation/json",
        "/documentation/static/page.js",
    ] {
        let response = Request::post(path).send_to(gateway.addr());
        assert_eq!(
            (response.status, response.header("allow")),
            (405, Some("GET, HEAD")),
            "{path}"
        );
    }
    for path in [
        "/documentation/x",
        "/documentation/json/",
        "/documentation/static/",
        "/documentation/static/build.rs",
        "/documentationx",
        "/Documentation",
    ] {
        assert_eq!(
            Request::get(path).send_to(gateway.addr()).status,
            404,
            "{path}"
        );
    }
    let climb = Request::get("/documentation/static/../json").send_to(gateway.addr());
    assert_eq!(climb.status, 400);
    let private = Request::get("/documentation").send_to(gateway.private_addr());
    assert_eq!(private.status, 404, "it is for the port that is tried");
}

#[test]
fn pages_of_other_origins_do_not_read_it() {
    let gateway = small(&format!(
        "cors: {{ allowed_origins: ['https://app.test'] }}\n{ROUTES}"
    ))
    .start();
    let get = |origin: &str| {
        let request = Request::get("/documentation/json").header("Origin", origin);
        request.send_to(gateway.addr())
    };
    assert_eq!(get("https://evil.test").status, 403);
    let known = get("https://app.test");
    assert_eq!(known.status, 200);
    assert_eq!(
        known.header("access-control-allow-origin"),
        Some("https://app.test")
    );
    let preflight = Request::method("OPTIONS", "/documentation/json")
        .header("Origin", "https://app.test")
        .header("Access-Control-Request-Method", "GET")
        .send_to(gateway.addr());
    assert_eq!(preflight.status, 204);
}

#[test]
fn log_and_metrics_call_all_of_it_by_one_name() {
    let gateway = small(ROUTES).start();
    for (number, path) in [
        "/documentation",
        "/documentation/json",
        "/documentation/static/page.css",
    ]
    .iter()
    .enumerate()
    {
        let id = format!("page-{number}");
        Request::get(path)
            .header("X-Request-ID", &id)
            .send_to(gateway.addr());
        let line = gateway.access_line(&id);
        assert_eq!(
            (&line["route"], &line["statusCode"]),
            (&json!("/documentation"), &json!(200)),
            "{line}"
        );
    }
    let series = r#"http_requests_total{method="GET",route="/documentation",status_code="200"}"#;
    gateway.wait_metric(series, |count| count == 3.0);
}
