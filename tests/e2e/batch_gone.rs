//! A batch whose client goes: each of its calls is what it would be by itself. What reads ends at once, also at a backend
//! whose connections are shared; what may change something is finished, and made if it was not yet.

use crate::support::http2::{Http2, Http2Upstream, Play, run};
use crate::support::prelude::*;

const PATH: &str = "/api/v1/batch";

/// For the backend to see it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Much longer than that.
const LONG: Duration = Duration::from_secs(20);

fn conf(url: &str, service: &str, more: &str) -> String {
    format!(
        "limits: {{ enabled: false }}
health: {{ enabled: false }}
outlier: {{ enabled: false }}
overload: {{ enabled: false }}
batch: {{ at_once: 2 }}
timeouts: {{ default: 20s }}
services: {{ s: {{ url: '{url}', retry: {{ max_retries: 0 }}, {service} }} {more} }}
routes:
- {{ path: '/s/*', service: s, auth: public }}
"
    )
}

fn call(id: &str, method: &str) -> Value {
    json!({"id": id, "method": method, "path": format!("/s/{id}")})
}

fn batch(id: &str, calls: &[Value]) -> Request {
    Request::post(PATH)
        .header("X-Request-ID", id)
        .json(&json!({ "calls": calls }))
}

/// Reads hang, and what changes something takes a while.
fn backend() -> Upstream {
    Upstream::start_with(|request| match request.method.as_str() {
        "GET" | "HEAD" => Reply::hang(),
        _ => Reply::json(json!({"done": true})).delay(Duration::from_millis(400)),
    })
}

fn targets(backend: &Upstream) -> Vec<String> {
    let mut targets: Vec<_> = backend
        .requests()
        .into_iter()
        .map(|request| request.target)
        .collect();
    targets.sort();
    targets
}

/// Sends a batch over HTTP/2, and resets its stream or drops the whole connection once `began`.
fn go_over_http2(
    addr: SocketAddr,
    id: &str,
    calls: &[Value],
    resets: bool,
    began: impl Fn() -> bool,
) {
    run(async {
        let (client, task) = Http2::connect(addr).await;
        let request = client
            .request("POST", PATH)
            .header("content-type", "application/json")
            .header("x-request-id", id);
        let (_answer, mut stream) = client.begin(request, false).await;
        let body = json!({ "calls": calls }).to_string();
        stream.send_data(body.into(), true).unwrap();
        while !began() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match resets {
            true => {
                stream.send_reset(h2::Reason::CANCEL);
                // It is sent by the connection's task.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false => task.abort(),
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Closed,
    Reset,
    Stream,
    Http2Closed,
}

const WAYS: [Way; 4] = [Way::Closed, Way::Reset, Way::Stream, Way::Http2Closed];

impl Way {
    /// Sends a batch, and goes once `began`. When.
    #[track_caller]
    fn go(self, gateway: &Gateway, id: &str, calls: &[Value], began: impl Fn() -> bool) -> Instant {
        if let Self::Stream | Self::Http2Closed = self {
            go_over_http2(
                gateway.addr(),
                id,
                calls,
                matches!(self, Self::Stream),
                began,
            );
            return Instant::now();
        }
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&batch(id, calls).bytes());
        wait_until("it is under way", began);
        match self {
            Self::Reset => connection.reset(),
            _ => drop(connection),
        }
        Instant::now()
    }
}

#[test]
fn reads_end_at_once_at_a_backend_of_http1() {
    let backend = backend();
    // Beside a service on shared connections the client's own is guarded in another way.
    let shared = format!(", h: {{ url: 'http://{}', http2: true }}", refused_addr());
    for more in ["", &shared] {
        let gateway = Gateway::with(&conf(&backend.url(), "", more)).start();
        for way in WAYS {
            let id = format!("{way:?}");
            let before = backend.heads_seen();
            let calls = [call("a", "GET"), call("b", "HEAD"), call("c", "GET")];
            let gone = way.go(&gateway, &id, &calls, || backend.heads_seen() == before + 2);
            let ended = within(AT_ONCE, || (backend.open_connections() == 0).then_some(()));
            assert!(ended.is_some(), "{way:?} {more}: they go on");
            println!(
                "measured: {way:?}: the backend's connections ended after {:?}",
                gone.elapsed()
            );
            for number in 1..=2 {
                let line = gateway.access_line(&format!("{id}.{number}"));
                assert_eq!(line["statusCode"], 499, "{way:?}: {line}");
            }
            let line = gateway.access_line(&id);
            assert_eq!(line["statusCode"], 499, "{way:?}: {line}");
            assert_eq!(
                backend.heads_seen(),
                before + 2,
                "{way:?}: the third is not begun"
            );
        }
    }
}

#[test]
fn reads_end_at_once_on_a_connection_that_others_share() {
    let upstream = Http2Upstream::start(|_| Play::Hang);
    let gateway = Gateway::with(&conf(&upstream.url(), "http2: true", "")).start();
    for way in WAYS {
        let before = upstream.seen().len();
        let calls = [call("a", "GET"), call("b", "HEAD")];
        let gone = way.go(&gateway, &format!("{way:?}"), &calls, || {
            upstream.seen().len() == before + 2
        });
        let reset = within(AT_ONCE, || {
            let seen = upstream.seen();
            seen[before..]
                .iter()
                .all(|seen| seen.reset.is_some())
                .then_some(())
        });
        assert!(reset.is_some(), "{way:?}: {:?}", upstream.seen());
        println!(
            "measured: {way:?}: the backend's streams were reset after {:?}",
            gone.elapsed()
        );
    }
    assert_eq!(
        upstream.connections(),
        upstream.open(),
        "no connection is lost by it"
    );
    // After the 4 s that an idle connection has.
    let closed = within(Duration::from_secs(10), || {
        (upstream.open() == 0).then_some(())
    });
    assert!(closed.is_some(), "{} are open", upstream.open());
}

#[test]
fn what_may_change_something_is_finished_beside_reads_that_end() {
    let backend = backend();
    let gateway = Gateway::with(&conf(&backend.url(), "", "")).start();
    for way in WAYS {
        let id = format!("{way:?}");
        let before = backend.count();
        let calls = [
            call("read", "GET"),
            call("first", "POST"),
            call("unread", "GET"),
            call("second", "DELETE"),
            call("third", "PUT"),
        ];
        way.go(&gateway, &id, &calls, || backend.heads_seen() == before + 2);
        for (number, status) in [(1, 499), (2, 200), (4, 200), (5, 200)] {
            let line = gateway.access_line(&format!("{id}.{number}"));
            assert_eq!(line["statusCode"], status, "{way:?}: {line}");
        }
        gateway.access_line(&id);
        let made = targets(&backend).split_off(before);
        assert_eq!(backend.count(), before + 4, "{way:?}: {made:?}");
        assert!(!targets(&backend).contains(&"/s/unread".to_owned()));
    }
}

#[test]
fn who_has_only_ended_his_side_hears_what_was_changed() {
    let backend = backend();
    let gateway = Gateway::with(&conf(&backend.url(), "", "")).start();
    let mut connection = Client::to(gateway.addr()).patience(LONG).connect();
    let calls = [call("read", "GET"), call("write", "POST")];
    connection.send(&batch("half", &calls).bytes());
    wait_until("both are under way", || backend.heads_seen() == 2);
    connection.finish_sending();
    let answer = connection.read_response();
    assert_eq!(answer.status, 200);
    let results = answer.json()["results"].as_array().unwrap().clone();
    let told: Vec<_> = results
        .iter()
        .map(|result| (&result["id"], &result["status"]))
        .collect();
    assert_eq!(told, [(&json!("write"), &json!(200))]);
    // A client that is there has all of them, and its connection stays.
    backend.set(|_| Reply::json(json!({"done": true})));
    let mut connection = Client::to(gateway.addr()).connect();
    for _ in 0..2 {
        let answer = connection.request(&batch("there", &calls));
        assert_eq!(answer.json()["results"].as_array().unwrap().len(), 2);
    }
}
