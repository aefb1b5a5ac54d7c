//! gRPC through the gateway, with gRPC's own client and server (tests/grpc/peer.py, on its C core).

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::prelude::*;

/// Debian's Python has the Debian package python3-grpcio, which scripts/test.sh installs.
const PYTHON: &str = "/usr/bin/python3";
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grpc/peer.py");

/// A running gRPC server. Ends when dropped: its input ends.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let mut child = Command::new(PYTHON)
            .args([PEER, "serve"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is there");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut line)
            .expect("it says its port");
        let port = line
            .trim()
            .parse()
            .expect("a port: is python3-grpcio there?");
        Self { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gateway(server: &Server) -> Gateway {
    conf(server.port).start()
}

fn conf(port: u16) -> Conf {
    Conf::of(&[format!("http://127.0.0.1:{port}")])
        .service("http2", "true")
        .and_route("{ path: /test.Echo/*, service: s, auth: public, timeout: 2s }")
        .and_route("{ path: /test.Own/*, service: s, auth: token }")
        .and_route("{ path: /test.Limited/*, service: s, auth: public, limits: [few] }")
        .top(
            "limits",
            "{ global: { max: 100000 }, rules: { few: { max: 1, window: 60s } } }",
        )
}

/// What came of a call.
#[track_caller]
fn call(gateway: &Gateway, name: &str) -> Value {
    let port = gateway.addr().port().to_string();
    let output = Command::new(PYTHON)
        .args([PEER, "call", &port, name])
        .output()
        .expect("python3 is there");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        let said = String::from_utf8_lossy(&output.stderr);
        panic!("{name}: {e}: {said}\n{}", gateway.raw_output())
    })
}

#[test]
fn unary_calls_come_through_with_metadata_and_trailers() {
    let server = Server::start();
    let gateway = gateway(&server);
    let result = call(&gateway, "Unary");
    assert_eq!(
        (&result["code"], &result["length"]),
        (&json!("OK"), &json!(300_000))
    );
    assert_eq!(result["trailing"]["x-trailing"], "kept");
    assert_eq!(result["seen"]["grpc-custom"], "1");
    assert_eq!(result["seen"]["x-gateway-forwarded"], "true");
    assert!(result["seen"]["x-request-deadline"].is_string());
}

#[test]
fn all_kinds_of_streams_come_through() {
    let server = Server::start();
    let gateway = gateway(&server);
    let expected: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    assert_eq!(
        call(&gateway, "ServerStream"),
        json!({"messages": expected})
    );
    assert_eq!(
        call(&gateway, "ClientStream"),
        json!({"message": expected.join(",")})
    );
    let bidi = call(&gateway, "Bidi");
    assert_eq!(bidi, json!({"messages": 200, "last": "MESSAGE 199"}));
}

#[test]
fn errors_of_the_backend_come_through_and_hurt_nobody() {
    let server = Server::start();
    let gateway = gateway(&server);
    let fail = call(&gateway, "Fail");
    assert_eq!(fail["code"], "FAILED_PRECONDITION");
    assert_eq!(fail["details"], "not \u{fc} now %");
    assert_eq!(
        call(&gateway, "Many"),
        json!({"OK": 200, "FAILED_PRECONDITION": 100})
    );
}

#[test]
fn deadlines_end_calls_on_time() {
    let server = Server::start();
    let gateway = gateway(&server);
    let ours = call(&gateway, "Slow");
    assert_eq!(ours["code"], "DEADLINE_EXCEEDED");
    let took = ours["took"].as_f64().unwrap();
    assert!((1.9..2.8).contains(&took), "{took} s, not the route's 2 s");
    let theirs = call(&gateway, "Deadline");
    assert_eq!(theirs["code"], "DEADLINE_EXCEEDED");
    assert!(theirs["took"].as_f64().unwrap() < 1.5);
    assert_eq!(call(&gateway, "Cancel"), json!({"cancelled": true}));
    // Who cancels means it: the backend is told, and nothing is in flight any more.
    gateway.wait_metric(
        r#"http_requests_in_progress{method="POST",route="/test.Echo/*"}"#,
        |n| n == 0.0,
    );
    gateway.wait_log(|line| line["statusCode"] == 499);
}

#[test]
fn refusals_are_told_as_grpc_has_them_and_logged_as_what_they_are() {
    let server = Server::start();
    let gateway = gateway(&server);
    let code = |name| call(&gateway, name)["code"].clone();
    assert_eq!(code("test.Own/Fail"), "UNAUTHENTICATED");
    assert_eq!(code("test.Unknown/Nowhere"), "UNIMPLEMENTED");
    code("test.Limited/Fail");
    let limited = call(&gateway, "test.Limited/Fail");
    assert_eq!(limited["code"], "RESOURCE_EXHAUSTED");
    assert_eq!(limited["details"], "Rate limit exceeded");
    for status in [401, 404, 429] {
        gateway.wait_log(|line| line["context"] == "request" && line["statusCode"] == status);
    }
    drop(server);
    assert_eq!(code("Fail"), "UNAVAILABLE");
}
