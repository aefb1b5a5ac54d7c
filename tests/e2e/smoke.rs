//! A real request goes all the way.

use crate::support::prelude::*;

#[test]
fn a_request_with_a_token_reaches_its_service_and_is_answered_counted_and_logged() {
    let events = Upstream::start();
    let gateway = Gateway::platform()
        .env("EVENT_SERVICE_URL", events.url())
        .start();

    let request = Request::get("/api/v1/events/42?x=1").bearer(&token::customer());
    let response = request
        .header("X-Request-ID", "smoke-1")
        .send_to(gateway.addr());

    assert_eq!(
        (response.status, response.json()),
        (200, json!({"ok": true}))
    );
    assert_eq!(response.header("X-Request-ID"), Some("smoke-1"));
    let [seen] = &events.wait_requests(1)[..] else {
        panic!("one request")
    };
    assert_eq!(seen.target, "/api/v1/events/42?x=1");
    assert_eq!(seen.header("x-tenant-id"), Some("t1"));
    let line = gateway.access_line("smoke-1");
    assert_eq!(line["statusCode"], 200);
    let series =
        r#"http_requests_total{method="GET",route="/api/v1/events/{event}",status_code="200"}"#;
    gateway.wait_metric(series, |count| count == 1.0);
}
