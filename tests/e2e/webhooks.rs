//! Webhooks: the bytes and headers that a signature covers arrive as they were sent, and a failure makes the sender
//! try again.

use crate::support::prelude::*;
use std::io::Write;
use std::process::{Command, Stdio};

const LIMIT: usize = 10 * 1024 * 1024;

const TARGETS: [&str; 3] = [
    "/api/v1/webhooks/stripe",
    "/api/v1/webhooks/square/events",
    "/api/v1/payments/webhooks/paypal",
];

#[test]
fn bodies_arrive_byte_for_byte_at_the_same_path_without_a_token() {
    let (payments, gateway) = platform();
    for length in [0, 1, 1000, 64 * 1024 + 1, 1024 * 1024, LIMIT] {
        let body = noise(length);
        for target in TARGETS {
            for chunked in [false, true] {
                let target = format!("{target}?a=%41&b=c+d");
                let what = format!("{length} bytes to {target}, chunked: {chunked}");
                let before = payments.count();
                let request = Request::post(&target)
                    .header("Content-Type", "application/json; charset=utf-8");
                let request = match chunked {
                    true => request.chunked(body.chunks(60_001).collect()),
                    false => request.body(body.clone()),
                };
                assert_eq!(request.send_to(gateway.addr()).status, 200, "{what}");
                let seen = payments.wait_requests(before + 1).remove(before);
                assert!(
                    seen.complete && seen.body == body,
                    "{what}: the bytes differ"
                );
                assert_eq!(
                    (seen.method.as_str(), seen.target.as_str()),
                    ("POST", target.as_str())
                );
                let content_type = seen.header("content-type");
                assert_eq!(
                    content_type,
                    Some("application/json; charset=utf-8"),
                    "{what}"
                );
                if !chunked {
                    let length = length.to_string();
                    assert_eq!(
                        seen.headers_named("content-length"),
                        [length.as_str()],
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_body_over_the_limit_is_413_and_never_looks_complete_to_the_backend() {
    let (payments, gateway) = platform();
    let body = noise(LIMIT + 1);
    for target in TARGETS {
        let announced = Request::post(target).body(body.clone());
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&announced.head_bytes());
        let response = connection.read_response();
        assert_eq!(
            (response.status, &response.json()["code"]),
            (413, &json!("PAYLOAD_TOO_LARGE"))
        );

        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(
            &Request::post(target)
                .chunked(body.chunks(100_000).collect())
                .bytes(),
        );
        let response = connection.read_response();
        assert_eq!(response.status, 413, "{target}, chunked");
    }
    wait_until("the backend's connections end", || {
        payments.open_connections() <= 1
    });
    assert!(
        payments.requests().iter().all(|seen| !seen.complete),
        "an oversized body was delivered"
    );
}

#[test]
fn encoded_and_invalid_text_is_left_alone() {
    let (payments, gateway) = platform();
    let bodies: [(&str, Vec<u8>); 4] = [
        ("invalid UTF-8", b"{\"name\": \"\xff\xfe\xc3\x28\"}".to_vec()),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\x4c\x4a\x06\x00\xc2\x41\x24\x35\x03\x00\x00\x00".to_vec()),
        ("odd JSON", b"  {\"a\" :1.0 , \"a\":1e0}\r\n\r\n".to_vec()),
        ("NULs and line breaks", b"\0\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (i, (name, body)) in bodies.iter().enumerate() {
        let request = Request::post(TARGETS[0])
            .header("Content-Encoding", "gzip")
            .header("Accept-Encoding", "gzip");
        let response = request.body(body.clone()).send_to(gateway.addr());
        assert_eq!(response.status, 200, "{name}");
        let seen = &payments.wait_requests(i + 1)[i];
        assert_eq!(seen.body, *body, "{name}");
        assert_eq!(seen.header("content-encoding"), Some("gzip"), "{name}");
    }
}

#[test]
fn signature_headers_pass_with_their_exact_values() {
    let (payments, gateway) = platform();
    let headers = [
        (
            "Stripe-Signature",
            "t=1492774577,v1=5257a869e7ecebeda32affa62cdca3fa51cad7e77a0e56ff536d0ce8e108d8bd,v0=6f",
        ),
        ("STRIPE-WEBHOOK-ID", "we_1MgKE2LkdIwHu7ixZ6YgT5xs"),
        (
            "PayPal-Transmission-Id",
            "69cd13f0-d67a-11e5-baa3-778b53f4ae55",
        ),
        (
            "PAYPAL-TRANSMISSION-SIG",
            "lmI95Jx3Y9nhR5SJWlHVIWpg4AgFk7n9bCHSRxbrd8A9zrhdu2rMyFrmz+Zjh3s3boXB07VXCXUZy/UFzUlnGJn0wDugt7FlSvdKeIJenLRemUxYCPVoEZzg9VFNqOa48gMkvF+XTpxBeUx/kWy6B5cp7GkT2+pOowfRK7OaynuxUoKW3JcMWw272VKjLTtTAShncla7tGF+55rxyt2KNZIIqxNMJ48RDZheGU5w1npu9dZHnPgTXB9iomeVRoD8O/jhRpnKsGrDschyNdkeh81BJJMH4Ctc6lnCCquoP/GzCzz33MMsNdid7vL/NIWaCsekQpW26FpWPi/tfj8nLA==",
        ),
        (
            "paypal-cert-url",
            "https://api.paypal.com/v1/notifications/certs/CERT-360caa42",
        ),
        (
            "X-Square-HmacSha256-Signature",
            "jtlO3rg2jD7i+MOwDoU2eWvKgYQ=  ",
        ),
        ("x-square-signature", "\ta b\tc"),
        ("X-Hub-Signature", "sha1=caf\u{e9}"),
        ("X-Custom", ""),
    ];
    for (i, target) in TARGETS.iter().enumerate() {
        let request = headers
            .iter()
            .fold(Request::post(target), |r, (n, v)| r.header(n, v));
        let request = request
            .header("X-Twice", "one")
            .header("X-Twice", "two")
            .body("{}");
        assert_eq!(request.send_to(gateway.addr()).status, 200);
        let seen = &payments.wait_requests(i + 1)[i];
        for (name, value) in headers {
            assert_eq!(
                seen.headers_named(name),
                [value.trim_matches([' ', '\t'])],
                "{name} on {target}"
            );
        }
        assert_eq!(seen.headers_named("x-twice"), ["one", "two"]);
    }
}

#[test]
fn a_stripe_signature_over_the_body_verifies_behind_the_gateway() {
    let (payments, gateway) = platform();
    payments.set(|request| {
        let header = request.header("stripe-signature").unwrap_or_default();
        let (time, signature) = header.split_once(",v1=").unwrap_or_default();
        let time = time.trim_start_matches("t=").as_bytes();
        let signed = [time, b".", &request.body].concat();
        Reply::status(if stripe_hmac(&signed) == signature {
            200
        } else {
            400
        })
    });
    for (body, tampered) in [
        (noise(3000), false),
        (b"{\"id\": \"evt_1\"}\n".to_vec(), false),
        (b"{}".to_vec(), true),
    ] {
        let signature = stripe_hmac(&[b"1700000000.", body.as_slice()].concat());
        let sent = if tampered { b"{ }".to_vec() } else { body };
        let request = Request::post(TARGETS[0])
            .header("Stripe-Signature", &format!("t=1700000000,v1={signature}"));
        let expected = if tampered { 400 } else { 200 };
        assert_eq!(request.body(sent).send_to(gateway.addr()).status, expected);
    }
}

#[test]
fn webhooks_are_not_limited_and_do_not_spend_their_addresss_limit() {
    let payments = Upstream::start();
    let gateway = Gateway::platform()
        .env("PAYMENT_SERVICE_URL", payments.url())
        .env("RATE_LIMIT_GLOBAL_MAX", 2)
        .start();
    for i in 0..20 {
        let response = Request::post(TARGETS[i % 3])
            .body("{}")
            .send_to(gateway.addr());
        assert_eq!(response.status, 200, "webhook {i}");
        assert_eq!(response.header("x-ratelimit-limit"), None);
    }
    let open = || {
        Request::get("/api/v1/payments/health")
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(
        [open(), open(), open()],
        [200, 200, 429],
        "the limit itself is on"
    );
}

#[test]
fn what_fails_at_the_backend_answers_500_so_that_the_sender_tries_again() {
    let payments = Upstream::start();
    let gateway = Gateway::platform()
        .env("PAYMENT_SERVICE_URL", payments.url())
        .env("CIRCUIT_BREAKER_VOLUME_THRESHOLD", 100_000)
        .env("CIRCUIT_BREAKER_TIMEOUT", 400)
        .start();
    let failures = [
        ("500", Reply::status(500).body("secret stack trace")),
        ("503", Reply::status(503).header("Retry-After", "77")),
        ("504", Reply::status(504)),
        ("a reset", Reply::reset()),
        ("garbage", Reply::raw("nope\r\n\r\n").then_close()),
        (
            "an unasked 101",
            Reply::raw("HTTP/1.1 101 Switching Protocols\r\n\r\n").then_close(),
        ),
        ("a time-out", Reply::hang()),
    ];
    for (i, (name, reply)) in failures.into_iter().enumerate() {
        payments.set(move |_| reply.clone());
        for target in TARGETS {
            let id = format!("hook-{i}-{}", target.len());
            let before = payments.count();
            let response = Request::post(target)
                .header("X-Request-ID", &id)
                .body("{}")
                .send_to(gateway.addr());
            assert_webhook_failed(&response, &format!("{name} at {target}"));
            assert_eq!(payments.count(), before + 1, "{name}: delivered once");
            assert_eq!(gateway.access_line(&id)["code"], "WEBHOOK_FAILED");
        }
    }
    payments.stop();
    let response = Request::post(TARGETS[0]).body("{}").send_to(gateway.addr());
    assert_webhook_failed(&response, "a refused connection");
}

#[test]
fn an_open_breaker_and_a_sick_backend_answer_500_too() {
    let payments = Upstream::start_with(|_| Reply::status(500));
    let gateway = Gateway::platform()
        .env("PAYMENT_SERVICE_URL", payments.url())
        .env("CIRCUIT_BREAKER_VOLUME_THRESHOLD", 1)
        .start();
    for _ in 0..3 {
        let response = Request::post(TARGETS[0]).body("{}").send_to(gateway.addr());
        assert_webhook_failed(&response, "an open breaker");
    }
    assert_eq!(payments.count(), 1);
    payments.set_healthy(false);
    let gateway = Gateway::platform()
        .env("PAYMENT_SERVICE_URL", payments.url())
        .start();
    let response = Request::post(TARGETS[0]).body("{}").send_to(gateway.addr());
    assert_webhook_failed(&response, "no healthy instance");
    assert_eq!(payments.count(), 2, "the only one is asked all the same");
}

#[test]
fn a_backends_4xx_and_its_2xx_and_3xx_pass() {
    let (payments, gateway) = platform();
    for status in [200, 202, 204, 302, 400, 401, 404, 409, 410, 422, 429] {
        payments.set(move |_| Reply::status(status).header("X-Own", "1"));
        for target in TARGETS {
            let response = Request::post(target).body("{}").send_to(gateway.addr());
            assert_eq!(
                (response.status, response.header("x-own")),
                (status, Some("1")),
                "{target}"
            );
        }
    }
}

#[test]
fn methods_other_than_post_pass_on_generic_webhooks_and_are_405_on_stripes() {
    let (payments, gateway) = platform();
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let response = Request::method(method, TARGETS[0]).send_to(gateway.addr());
        assert_eq!(
            (response.status, response.header("allow")),
            (405, Some("POST")),
            "{method}"
        );
        assert_eq!(payments.count(), 0, "{method}");
    }
    let verify = "/api/v1/webhooks/provider?hub.mode=subscribe&hub.challenge=123";
    assert_eq!(Request::get(verify).send_to(gateway.addr()).status, 200);
    assert_eq!(payments.wait_requests(1)[0].target, verify);
    assert_eq!(
        Request::method("PUT", TARGETS[2])
            .send_to(gateway.addr())
            .status,
        200
    );
}

fn platform() -> (Upstream, Gateway) {
    let payments = Upstream::start();
    let gateway = Gateway::platform()
        .env("PAYMENT_SERVICE_URL", payments.url())
        .start();
    (payments, gateway)
}

#[track_caller]
fn assert_webhook_failed(response: &Response, what: &str) {
    assert_eq!(response.status, 500, "{what}");
    assert_eq!(response.json()["code"], "WEBHOOK_FAILED", "{what}");
    assert_eq!(response.header("cache-control"), Some("no-store"), "{what}");
}

/// `openssl dgst -sha256 -hmac`, as Stripe signs.
fn stripe_hmac(message: &[u8]) -> String {
    let mut child = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", "whsec_test"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message).unwrap();
    let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    output.trim().rsplit(' ').next().unwrap().to_owned()
}
