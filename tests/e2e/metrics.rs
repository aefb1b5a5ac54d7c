//! Every documented metric, with its name, labels and buckets; and that a client cannot make new series.

use crate::support::prelude::*;

#[test]
fn each_documented_metric_is_there_with_its_type_labels_and_buckets() {
    let (_backend, gateway) = world();
    let request = Request::post("/open/x").body("12345");
    assert_eq!(request.send_to(gateway.addr()).status, 200);
    let total = r#"http_requests_total{method="POST",route="/open/*",status_code="200"}"#;
    gateway.wait_metric(total, |n| n == 1.0);
    let text = gateway.metrics();
    for (name, kind) in [
        ("http_request_duration_seconds", "histogram"),
        ("http_requests_total", "counter"),
        ("http_requests_in_progress", "gauge"),
        ("http_request_size_bytes", "histogram"),
        ("http_response_size_bytes", "histogram"),
        ("authentication_attempts_total", "counter"),
        ("circuit_breaker_state", "gauge"),
        ("rate_limit_hits_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_open_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        assert!(
            text.contains(&format!("\n# TYPE {name} {kind}\n")),
            "{name} is no {kind}"
        );
        assert!(
            text.contains(&format!("\n# HELP {name} "))
                || text.starts_with(&format!("# HELP {name} "))
        );
    }
    let labels = r#"method="POST",route="/open/*""#;
    let with_status = format!(r#"{labels},status_code="200""#);
    let buckets = |name: &str, labels: &str| -> Vec<String> {
        let start = format!("{name}_bucket{{{labels},le=\"");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&start));
        lines
            .filter_map(|rest| rest.split('"').next())
            .map(str::to_owned)
            .collect()
    };
    let seconds = ["0.01", "0.05", "0.1", "0.5", "1", "2", "5", "+Inf"];
    let bytes = ["100", "1000", "10000", "100000", "1000000", "+Inf"];
    assert_eq!(
        buckets("http_request_duration_seconds", &with_status),
        seconds
    );
    assert_eq!(buckets("http_request_size_bytes", labels), bytes);
    assert_eq!(buckets("http_response_size_bytes", labels), bytes);
    assert_eq!(
        gateway.metric(&format!("http_request_size_bytes_sum{{{labels}}}")),
        5.0
    );
    let answered = r#"{"ok":true}"#.len() as f64;
    assert_eq!(
        gateway.metric(&format!("http_response_size_bytes_sum{{{labels}}}")),
        answered
    );
    assert_eq!(
        gateway.metric(&format!(
            "http_request_duration_seconds_count{{{with_status}}}"
        )),
        1.0
    );
}

#[test]
fn a_slow_answer_falls_into_the_bucket_of_its_time() {
    let (backend, gateway) = world();
    backend.set(|_| Reply::status(200).delay(Duration::from_millis(120)));
    assert_eq!(Request::get("/open/x").send_to(gateway.addr()).status, 200);
    let series = |le: &str| {
        format!(
            r#"http_request_duration_seconds_bucket{{method="GET",route="/open/*",status_code="200",le="{le}"}}"#
        )
    };
    gateway.wait_metric(&series("+Inf"), |n| n == 1.0);
    assert_eq!(gateway.metric(&series("0.1")), 0.0);
}

#[test]
fn requests_in_progress_go_up_and_come_back_to_nothing_however_they_end() {
    let (backend, gateway) = world();
    let series = r#"http_requests_in_progress{method="GET",route="/open/*"}"#;
    backend.hold();
    let mut clients: Vec<Connection> = (0..5)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    for client in &mut clients {
        client.send(&Request::get("/open/x").bytes());
    }
    gateway.wait_metric(series, |n| n == 5.0);
    clients.truncate(3);
    gateway.wait_metric(series, |n| n == 3.0);
    backend.set(|_| Reply::reset());
    backend.release();
    for client in &mut clients {
        client.read_response();
    }
    gateway.wait_metric(series, |n| n == 0.0);
    let gone = r#"http_requests_total{method="GET",route="/open/*",status_code="499"}"#;
    gateway.wait_metric(gone, |n| n == 2.0);
}

#[test]
fn authentication_and_limits_are_counted() {
    let (_backend, gateway) = world();
    let get = |token: &str| {
        Request::get("/token/x")
            .bearer(token)
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(get(&token::customer()), 200);
    assert_eq!(
        get(&Token::user("u1").signed_with("another-secret-of-enough-characters")),
        401
    );
    assert_eq!(get(&Token::user("u1").expires_in(-60).hs256()), 401);
    assert_eq!(Request::get("/token/x").send_to(gateway.addr()).status, 401);
    let attempts = |status: &str| format!("authentication_attempts_total{{status=\"{status}\"}}");
    gateway.wait_metric(&attempts("success"), |n| n == 1.0);
    gateway.wait_metric(&attempts("failure"), |n| n >= 2.0);
    let hits = |limit: &str| gateway.metric(&format!("rate_limit_hits_total{{limit=\"{limit}\"}}"));
    assert_eq!(hits("caller"), 0.0);
    let limited = || Request::get("/limited/x").send_to(gateway.addr()).status;
    assert_eq!([limited(), limited(), limited()], [200, 429, 429]);
    assert_eq!(hits("caller"), 2.0);
    let refused = r#"http_requests_total{method="GET",route="/limited/*",status_code="429"}"#;
    gateway.wait_metric(refused, |n| n == 2.0);
}

#[test]
fn no_client_can_make_new_series() {
    let (backend, gateway) = world();
    backend.set(|_| Reply::status(200));
    let count = || {
        gateway
            .metrics()
            .lines()
            .filter(|line| line.starts_with("http_"))
            .count()
    };
    let send = |i: usize| {
        let at = |method: &str, path: &str| {
            Request::method(method, &format!("/{path}/{i}?q={i}"))
                .header("Connection", "close")
                .send_to(gateway.addr());
        };
        at("GET", "nowhere");
        at("GET", "open");
        at(&format!("ODD{i}"), "nowhere");
        at(&format!("ODD{i}"), "open");
        at("get", "open");
        let garbage = format!("G\u{1}T /{i} HTTP/1.1\r\n\r\n");
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(garbage.as_bytes());
        connection.read_response();
    };
    let answered = || {
        let text = gateway.metrics();
        let totals = text
            .lines()
            .filter(|line| line.starts_with("http_requests_total{"));
        totals
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .sum::<usize>()
    };
    send(0);
    wait_until("the first six are counted", || answered() == 6);
    let before = count();
    for i in 1..200 {
        send(i);
    }
    wait_until("all are counted", || answered() == 1200);
    for (method, route, status) in [("GET", "unmatched", 404), ("OTHER", "unmatched", 400)] {
        let series = format!(
            r#"http_requests_total{{method="{method}",route="{route}",status_code="{status}"}}"#
        );
        assert_eq!(gateway.metric(&series), 200.0, "{series}");
    }
    assert_eq!(count(), before, "{}", gateway.metrics());
    assert!(!gateway.metrics().contains("ODD"));
}

#[test]
fn the_route_label_is_the_template_also_for_refusals_and_aliases() {
    let events = Upstream::start();
    let gateway = Gateway::platform()
        .env("EVENT_SERVICE_URL", events.url())
        .start();
    let get = |path: &str| {
        Request::get(path)
            .bearer(&token::customer())
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(
        [
            get("/api/v1/events/1/x"),
            get("/api/v1/event/2/x"),
            get("/api/v1/events/1/x/y")
        ],
        [200; 3]
    );
    assert_eq!(
        Request::get("/api/v1/events/3/x")
            .send_to(gateway.addr())
            .status,
        401
    );
    let total = |status: u16| {
        format!(
            r#"http_requests_total{{method="GET",route="/api/v1/events/*",status_code="{status}"}}"#
        )
    };
    gateway.wait_metric(&total(200), |n| n == 3.0);
    gateway.wait_metric(&total(401), |n| n == 1.0);
    assert_eq!(Request::get("/live").send_to(gateway.addr()).status, 200);
    gateway.wait_metric(
        r#"http_requests_total{method="GET",route="/live",status_code="200"}"#,
        |n| n >= 1.0,
    );
}

fn world() -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let gateway = Gateway::with(&format!(
        "limits:
  flood: {{ per_second: 100000 }}
  global: {{ max: 100000, window: 60s }}
  rules: {{ tight: {{ max: 1, window: 60s }} }}
breaker: {{ volume: 100000 }}
services: {{ s: {{ url: '{}' }} }}
routes:
  - {{ path: /open/*, service: s, auth: public }}
  - {{ path: /token/*, service: s, auth: token }}
  - {{ path: /limited/*, service: s, auth: public, limits: [tight] }}
",
        backend.url()
    ));
    (backend, gateway.start())
}
