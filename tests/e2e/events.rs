//! Event streams: each event at once, an end when it has to be, and no more of them than are allowed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use crate::support::prelude::*;
use crate::support::websocket::took;

const TERM: i32 = 15;

const EVENTS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn an_event_is_relayed_at_once() {
    const COUNT: usize = 500;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let gateway = Conf::at(&[backend]).route("idle_timeout", "60s").start();
    let (written, stamps) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(EVENTS.as_bytes()).unwrap();
        for i in 0..COUNT {
            thread::sleep(Duration::from_millis(4));
            let event = format!("data: {i:06}\n\n");
            written.send(Instant::now()).unwrap();
            write!(stream, "{:x}\r\n{event}\r\n", event.len()).unwrap();
        }
        stream.write_all(b"0\r\n\r\n").unwrap();
    });
    let mut client = TcpStream::connect(gateway.addr()).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    client
        .write_all(&Request::get("/s/events").bytes())
        .unwrap();
    let mut seen = Vec::new();
    let mut delays = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with(b"0\r\n\r\n") {
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0, "it ends early");
        let now = Instant::now();
        seen.extend_from_slice(&buffer[..n]);
        let events = seen.windows(7).filter(|w| w == b"data: 0").count();
        while delays.len() < events {
            delays.push(now - stamps.recv().unwrap());
        }
    }
    assert_eq!(delays.len(), COUNT);
    delays.sort();
    let (median, p99) = (delays[COUNT / 2], delays[COUNT * 99 / 100]);
    println!("from the backend's write to the client's read: p50 {median:?}, p99 {p99:?}");
    assert!(median < Duration::from_millis(5), "{median:?}");
    assert!(p99 < Duration::from_millis(50), "{p99:?}: something waits");
}

#[test]
fn a_process_that_drains_ends_what_streams_after_the_grace_but_no_download() {
    let fleet = streaming();
    let gateway = fleet
        .conf()
        .top("streams", "{ drain_grace: 500ms }")
        .and_route("{ path: /idle/*, service: s, auth: public, idle_timeout: 20s }")
        .start();
    let mut events = open(&gateway, "/s/events", "");
    let mut rows = open(&gateway, "/idle/rows", "");
    let mut download = Client::to(gateway.addr()).connect();
    download.send(&Request::get("/idle/download").bytes());
    wait_until("it has begun", || fleet.heads_seen() == 3);
    let told = Instant::now();
    gateway.signal(TERM);
    for stream in [&mut events, &mut rows] {
        let rest = stream.read_to_end();
        took(
            "the end",
            told,
            Duration::from_millis(450),
            Duration::from_secs(2),
        );
        assert!(
            !rest.ends_with(b"0\r\n\r\n"),
            "it looks whole, and nobody would come back"
        );
    }
    assert_eq!(download.read_response().body.len(), 200);
    assert_eq!(gateway.wait_exit(Duration::from_secs(2)), Some(0));
    let line = gateway.wait_log(|line| line["route"] == "/s/*");
    assert!(
        line["err"].to_string().contains("the process ends"),
        "{line}"
    );
}

#[test]
fn nobody_has_more_open_than_is_allowed_whatever_the_client_says_it_wants() {
    let fleet = streaming();
    let gateway = fleet
        .conf()
        .top("streams", "{ per_user: 2 }")
        .route("auth", "token")
        .start();
    let ask = |accept: Option<&str>| {
        let request = Request::get("/s/events").bearer(&token::customer());
        accept
            .into_iter()
            .fold(request, |r, accept| r.header("Accept", accept))
    };
    let _first = open_with(&gateway, &ask(Some("text/event-stream")));
    let second = open_with(&gateway, &ask(None));
    gateway.wait_metric(r#"streams_open{kind="events"}"#, |n| n == 2.0);
    let seen = fleet.heads_seen();
    let announced = ask(Some("text/html, Text/Event-Stream")).send_to(gateway.addr());
    assert_eq!(announced.status, 429);
    assert_eq!(number(&announced, "Retry-After"), 1);
    assert_eq!(fleet.heads_seen(), seen, "it is not even asked for");
    assert_eq!(
        ask(None).send_to(gateway.addr()).status,
        429,
        "found out by its answer"
    );
    let other = Request::get("/s/short").bearer(&token::customer());
    assert_eq!(
        other.send_to(gateway.addr()).status,
        200,
        "what does not stream is not counted"
    );
    drop(second);
    gateway.wait_metric(r#"streams_open{kind="events"}"#, |n| n == 1.0);
    let short = Request::get("/s/short")
        .bearer(&token::customer())
        .header("Accept", "text/event-stream");
    for _ in 0..5 {
        assert_eq!(
            short.send_to(gateway.addr()).status,
            200,
            "the place is given back"
        );
    }
    let _third = open_with(&gateway, &ask(None));
}

#[test]
fn a_stream_ends_when_its_callers_token_is_over_and_when_its_key_is_changed() {
    let redis = Redis::start();
    let fleet = streaming();
    let gateway = fleet
        .conf()
        .route("auth", "token-or-key")
        .gateway()
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .start();
    wait_until("redis is followed", || {
        Request::get("/ready").send_to(gateway.addr()).json()["checks"]["redis"] == "ok"
    });
    let key = "ttk_0123456789";
    let digest = {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(key.as_bytes());
        digest
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
    };
    let name = format!("apikey:sha256:{digest}");
    let record = |more: &str| format!(r#"{{"id":"p","tenant_id":"t1"{more}}}"#);
    let by_key = || Request::get("/s/events").header("X-API-Key", key);
    let by_key_with = |more: &str, id: &str| {
        redis.command(&["SET", &name, &record(more)]);
        wait_until("the key is good", || {
            Request::get("/s/short")
                .header("X-API-Key", key)
                .send_to(gateway.addr())
                .status
                == 200
        });
        open_with(&gateway, &by_key().header("X-Request-ID", id))
    };
    let mut deleted = by_key_with("", "deleted");
    redis.command(&["DEL", &name]);
    assert!(deleted.is_closed());
    assert!(
        !deleted.read_to_end().ends_with(b"0\r\n\r\n"),
        "it ends as if whole"
    );
    let line = gateway.access_line("deleted");
    assert!(
        line["err"].to_string().contains("API key was changed"),
        "{line}"
    );
    let mut inactive = by_key_with("", "inactive");
    redis.command(&["SET", &name, &record(r#","active":false"#)]);
    assert!(inactive.is_closed());
    let mut venues = by_key_with("", "venues");
    redis.command(&["SET", &name, &record(r#","venues":["v1"]"#)]);
    assert!(venues.is_closed());
    // `api-gateway key create --overlap` only says when the older key ends.
    let mut overlapped = by_key_with("", "overlapped");
    let started = Instant::now();
    let soon = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 2;
    redis.command(&["SET", &name, &record(&format!(r#","expires_at":{soon}"#))]);
    assert!(overlapped.stays_open(), "until then it is good");
    assert!(overlapped.is_closed());
    took(
        "its life",
        started,
        Duration::from_millis(500),
        Duration::from_secs(4),
    );
    assert!(
        gateway.access_line("overlapped")["err"]
            .to_string()
            .contains("expired")
    );

    let started = Instant::now();
    // Tokens count five seconds longer than they say.
    let over = Token::user("u1").expires_in(-3).hs256();
    let mut bearer = open_with(&gateway, &Request::get("/s/events").bearer(&over));
    assert!(bearer.is_closed());
    took(
        "its life",
        started,
        Duration::from_millis(500),
        Duration::from_secs(4),
    );
}

/// A service whose streams do not end by themselves.
fn streaming() -> Fleet {
    let fleet = Fleet::of(1);
    fleet.set(|_, request| {
        let piece = "9\r\ndata: x\n\n\r\n";
        match request.path() {
            "/s/events" => Reply::raw(format!("{EVENTS}{piece}")).then_hang(),
            "/idle/rows" => Reply::raw(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{piece}"
            ))
            .then_hang(),
            "/idle/download" => {
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n".to_owned();
                let pieces = std::iter::repeat_n("x".repeat(10), 20);
                Reply::paced(
                    std::iter::once(head).chain(pieces),
                    Duration::from_millis(50),
                )
            }
            _ => Reply::status(200).body("short"),
        }
    });
    fleet
}

#[track_caller]
fn open(gateway: &Gateway, target: &str, id: &str) -> Connection {
    let request = Request::get(target);
    open_with(
        gateway,
        &if id.is_empty() {
            request
        } else {
            request.header("X-Request-ID", id)
        },
    )
}

/// A stream whose first piece has come.
#[track_caller]
fn open_with(gateway: &Gateway, request: &Request) -> Connection {
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&request.bytes());
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("data") {
        let byte = connection.read_up_to(1);
        assert!(!byte.is_empty(), "{}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
    assert!(
        seen.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&seen)
    );
    connection
}
