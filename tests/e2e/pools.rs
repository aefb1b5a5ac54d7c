//! Which instance a request goes to: weights, health, kept connections, and another try where nothing was sent.

use crate::support::prelude::*;
use std::collections::BTreeMap;

#[test]
fn instances_take_turns_by_their_weights() {
    let (heavy, light) = (Upstream::start(), Upstream::start());
    let instances = format!(
        "instances: [{{ url: '{}', weight: 3 }}, {{ url: '{}' }}]",
        heavy.url(),
        light.url()
    );
    let gateway = Gateway::with(&yaml(&instances)).start();
    for i in 0..80 {
        let response = Request::get(&format!("/s/{i}")).send_to(gateway.addr());
        assert_eq!(response.status, 200);
    }
    assert_eq!((heavy.count(), light.count()), (60, 20));
}

#[test]
fn a_url_variable_lists_instances_separated_by_commas() {
    let all: Vec<Upstream> = (0..3).map(|_| Upstream::start()).collect();
    let urls: Vec<String> = all.iter().map(Upstream::url).collect();
    let gateway = Gateway::platform()
        .env("EVENT_SERVICE_URL", urls.join(" , "))
        .start();
    for _ in 0..30 {
        let request = Request::get("/api/v1/events/1").bearer(&token::customer());
        assert_eq!(request.send_to(gateway.addr()).status, 200);
    }
    let counts: Vec<usize> = all.iter().map(Upstream::count).collect();
    assert_eq!(counts.iter().sum::<usize>(), 30);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn an_instance_that_is_unhealthy_from_the_start_gets_not_one_request() {
    let (good, sick) = (Upstream::start(), Upstream::start());
    sick.set_healthy(false);
    let gateway = Gateway::with(&yaml(&urls(&[good.addr(), sick.addr()]))).start();
    for _ in 0..20 {
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    }
    assert_eq!((good.count(), sick.count()), (20, 0));
    assert!(
        sick.health_checks() > 0,
        "it was asked before it was left out"
    );
    gateway.wait_metric(r#"upstream_healthy_instances{service="s"}"#, |n| n == 1.0);
    gateway.wait_metric(r#"upstream_instances{service="s"}"#, |n| n == 2.0);
}

#[test]
fn an_instance_that_falls_ill_is_set_aside_and_taken_back_when_it_recovers() {
    let (steady, moody) = (Upstream::start(), Upstream::start());
    let gateway = Gateway::with(&yaml(&urls(&[steady.addr(), moody.addr()]))).start();
    let healthy = r#"upstream_healthy_instances{service="s"}"#;
    gateway.wait_metric(healthy, |n| n == 2.0);

    moody.set_healthy(false);
    gateway.wait_metric(healthy, |n| n == 1.0);
    let before = moody.count();
    for _ in 0..10 {
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    }
    assert_eq!(moody.count(), before, "requests went to a sick instance");
    gateway.wait_log(|line| said(line, &format!("instance {} is not healthy", moody.addr())));

    moody.set_healthy(true);
    gateway.wait_metric(healthy, |n| n == 2.0);
    for _ in 0..10 {
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    }
    assert_eq!(moody.count(), before + 5);
    gateway.wait_log(|line| said(line, &format!("instance {} is healthy again", moody.addr())));
}

#[test]
fn an_only_instance_that_fails_its_checks_is_asked_all_the_same_and_503_if_it_is_gone() {
    let only = Upstream::start();
    only.set_healthy(false);
    let gateway = Gateway::with(&yaml(&urls(&[only.addr()]))).start();
    gateway.wait_metric(r#"upstream_healthy_instances{service="s"}"#, |n| n == 0.0);
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    only.stop();
    let response = Request::get("/s/x")
        .header("X-Request-ID", "none-1")
        .send_to(gateway.addr());
    assert_unavailable(&response);
    assert_eq!(gateway.access_line("none-1")["code"], "SERVICE_UNAVAILABLE");
    only.restart();
    wait_until("the instance is back", || {
        Request::get("/s/x").send_to(gateway.addr()).status == 200
    });
}

#[test]
fn a_stopped_instance_is_taken_back_after_its_restart() {
    let only = Upstream::start();
    let gateway = Gateway::with(&yaml(&urls(&[only.addr()]))).start();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    only.stop();
    wait_until("it is missed", || {
        Request::get("/s/x").send_to(gateway.addr()).status == 503
    });
    only.restart();
    wait_until("it is back", || {
        Request::get("/s/x").send_to(gateway.addr()).status == 200
    });
}

#[test]
fn health_is_asked_for_at_the_configured_path_and_only_2xx_is_well() {
    for (status, well) in [
        (200, true),
        (204, true),
        (302, false),
        (404, false),
        (500, false),
    ] {
        let backend = Upstream::start_with(move |request| match request.path() {
            "/well?" | "/well" => Reply::status(status),
            _ => Reply::status(200),
        });
        let service = format!(
            "{}, health: {{ path: /well, interval: 200ms }}",
            urls(&[backend.addr()])
        );
        let gateway = Gateway::with(&yaml(&service)).start();
        let counted = within(Duration::from_secs(5), || {
            let healthy = gateway.metric(r#"upstream_healthy_instances{service="s"}"#);
            (healthy == f64::from(u8::from(well))).then_some(())
        });
        assert!(counted.is_some(), "a health check that answers {status}");
        assert_eq!(backend.health_checks(), 0, "the default path was asked");
    }
}

#[test]
fn a_health_check_that_hangs_is_a_failed_one_and_start_up_does_not_wait_for_it() {
    let hanging = Upstream::start_with(|_| Reply::hang());
    let good = Upstream::start();
    let service = format!(
        "{}, health: {{ path: /slow, interval: 200ms, timeout: 300ms }}",
        urls(&[hanging.addr(), good.addr()])
    );
    let gateway = Gateway::with(&yaml(&service)).start();
    gateway.wait_metric(r#"upstream_healthy_instances{service="s"}"#, |n| n == 1.0);
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
}

#[test]
fn connections_to_backends_are_kept_and_used_again() {
    let backend = Upstream::start();
    let service = format!("{}, health: {{ enabled: false }}", urls(&[backend.addr()]));
    let gateway = Gateway::with(&yaml(&service))
        .env("SERVER_THREADS", 1)
        .start();
    for i in 0..100 {
        let request = match i % 3 {
            0 => Request::get("/s/x"),
            1 => Request::post("/s/x").body("some body"),
            _ => Request::post("/s/x").chunked(vec!["some", "body"]),
        };
        assert_eq!(request.send_to(gateway.addr()).status, 200);
    }
    assert_eq!(backend.count(), 100);
    assert!(
        backend.connections() <= 3,
        "{} connections for 100 requests",
        backend.connections()
    );
}

#[test]
fn a_refused_connection_is_tried_at_another_instance_also_for_a_post() {
    let backend = Upstream::start();
    let dead = refused_addr();
    let service = format!(
        "{}, health: {{ enabled: false }}",
        urls(&[backend.addr(), dead])
    );
    let gateway = Gateway::with(&yaml(&service)).start();
    let mut attempts: BTreeMap<u64, usize> = BTreeMap::new();
    for i in 0..10 {
        let id = format!("retry-{i}");
        let body = format!("body {i}");
        let request = Request::post("/s/x")
            .body(body.as_str())
            .header("X-Request-ID", &id);
        assert_eq!(request.send_to(gateway.addr()).status, 200, "{id}");
        let seen = backend.wait_requests(i + 1);
        assert_eq!(seen[i].body, body.as_bytes(), "the body survives the retry");
        let line = gateway.access_line(&id);
        assert_eq!(line["upstream"], backend.addr().to_string());
        *attempts
            .entry(line["attempts"].as_u64().unwrap())
            .or_default() += 1;
    }
    assert_eq!(backend.count(), 10, "each was sent once");
    assert!(attempts.keys().all(|n| [1, 2].contains(n)), "{attempts:?}");
    assert!(attempts.contains_key(&2), "the dead one was never tried");
}

#[test]
fn requests_that_another_instance_has_answered_do_not_open_the_breaker() {
    let backend = Upstream::start();
    let service = format!(
        "{}, health: {{ enabled: false }}, breaker: {{ volume: 10 }}",
        urls(&[backend.addr(), refused_addr()])
    );
    let gateway = Gateway::with(&yaml(&service)).start();
    for i in 0..40 {
        let status = Request::get("/s/x").send_to(gateway.addr()).status;
        assert_eq!(
            status, 200,
            "request {i}: every one before it was answered 200"
        );
    }
}

#[test]
fn with_every_instance_refusing_the_answer_is_503_with_retry_after() {
    let dead: Vec<SocketAddr> = (0..3).map(|_| refused_addr()).collect();
    let service = format!("{}, health: {{ enabled: false }}", urls(&dead));
    let gateway = Gateway::with(&yaml(&service)).start();
    let request = Request::post("/s/x")
        .body("x")
        .header("X-Request-ID", "all-down");
    assert_unavailable(&request.send_to(gateway.addr()));
    let line = gateway.access_line("all-down");
    assert_eq!(
        (&line["attempts"], &line["statusCode"]),
        (&json!(3), &json!(503))
    );
}

#[test]
fn a_name_that_does_not_resolve_is_a_503_and_not_a_failed_start() {
    let service = "url: 'http://no-such-host.invalid:3000'";
    let gateway = Gateway::with(&yaml(service)).start();
    assert_unavailable(&Request::get("/s/x").send_to(gateway.addr()));
    gateway.wait_log(|line| said(line, "`no-such-host.invalid` cannot be resolved"));
}

#[test]
fn a_name_is_sent_as_it_is_configured_in_host() {
    let backend = Upstream::start();
    let port = backend.addr().port();
    let gateway = Gateway::with(&yaml(&format!("url: 'http://localhost:{port}/'"))).start();
    wait_until("the name is resolved to a healthy address", || {
        Request::get("/s/x").send_to(gateway.addr()).status == 200
    });
    let host = format!("localhost:{port}");
    assert_eq!(backend.requests()[0].header("host"), Some(host.as_str()));
}

#[test]
fn urls_that_are_none_are_faults_of_the_configuration() {
    let mut accepted = Vec::new();
    for url in [
        "",
        "backend",
        "backend:3000",
        "//backend:3000",
        "ftp://backend",
        "http://",
        "http://:3000",
        "http://backend:0",
        "http://backend:99999",
        "http://backend:port",
        "http://backend:3000/path",
        "http://backend:3000?x=1",
        "http://backend:3000,",
        "http://one:1,https://two:2",
        "http://back end:3000",
        "http://user:hunter2@backend:3000",
        "ftp://user:hunter2@backend:3000",
        "http://user:hunter2@backend:3000/path",
        "http://user:hunter2@back end:3000",
    ] {
        let service = format!("url: '{url}'");
        let exit = Gateway::with(&yaml(&service)).arg("--test").run_to_exit();
        if exit.code != 1 || !exit.stderr.contains("services.s") {
            accepted.push(url);
        }
        assert!(
            !exit.stderr.contains("hunter2"),
            "a password is printed: {}",
            exit.stderr
        );
    }
    assert_eq!(accepted, [""; 0], "these are no URLs of instances");
    for url in [
        "https://backend",
        "http://[::1]:3000",
        "HTTP://backend:80/",
        "http://10.0.0.1",
    ] {
        let exit = Gateway::with(&yaml(&format!("url: '{url}'")))
            .arg("--test")
            .run_to_exit();
        assert_eq!(exit.code, 0, "`{url}`: {}", exit.stderr);
    }
}

/// A service `s` and a route to it; health is asked for often, instances take turns, and another try is made at once.
fn yaml(service: &str) -> String {
    format!(
        "limits: {{ enabled: false, flood: {{ per_second: 100000 }} }}
health: {{ interval: 500ms }}
breaker: {{ volume: 100000 }}
balance: {{ strategy: round_robin, slow_start: 0s }}
retry: {{ max_retries: 2, base_delay: 1ms }}
services:
  s: {{ {service} }}
routes:
  - {{ path: /s/*, service: s, auth: public }}
"
    )
}

fn urls(addresses: &[SocketAddr]) -> String {
    let urls: Vec<String> = addresses.iter().map(|a| format!("http://{a}")).collect();
    format!("url: '{}'", urls.join(","))
}

#[track_caller]
fn assert_unavailable(response: &Response) {
    assert_eq!(response.status, 503);
    assert_eq!(response.json()["code"], "SERVICE_UNAVAILABLE");
    assert_eq!(response.json()["statusCode"], 503);
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let retry_after: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!(retry_after >= 1);
}

fn said(line: &Value, text: &str) -> bool {
    line["msg"].as_str().is_some_and(|msg| msg.contains(text))
}
