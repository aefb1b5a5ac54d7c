//! What a client may do on an HTTP/2 connection only so often: each attack ends its own connection, costs little, and
//! another client is served meanwhile.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::support::http2::raw::*;
use crate::support::http2::{Http2, run};
use crate::support::prelude::*;

/// Another client's requests while `attack` goes on: all are answered, and none waits for long.
fn others_are_served_during<T>(addr: SocketAddr, attack: impl FnOnce() -> T) -> T {
    const WORST: Duration = Duration::from_millis(500);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            run(async {
                let (client, _) = Http2::connect(addr).await;
                let mut worst = Duration::ZERO;
                loop {
                    let since = Instant::now();
                    assert_eq!(client.get("/s/well").await.status, 200);
                    worst = worst.max(since.elapsed());
                    if is_over.load(Relaxed) {
                        return worst;
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        });
        let outcome = attack();
        is_over.store(true, Relaxed);
        let worst = others.join().expect("the others are served");
        assert!(worst < WORST, "another client waited {worst:?}");
        outcome
    })
}

/// Sends `frames` until the connection is ended, and says with which error; none when it was closed without a word.
fn until_it_ends(
    raw: &mut Raw,
    mut frames: impl FnMut(u32) -> Vec<Frame>,
    most: u32,
) -> Option<u32> {
    for round in 0..most {
        if !raw.frames(&frames(round)) {
            break;
        }
    }
    let goaway = raw.find(Duration::from_secs(5), |f| f.kind == GOAWAY);
    assert!(
        raw.closes(Duration::from_secs(5)),
        "the connection is open still"
    );
    goaway.and_then(|frame| frame.error())
}

fn closed(reason: &str) -> String {
    format!(r#"downstream_http2_closed_total{{reason="{reason}"}}"#)
}

fn calm_or_silence(error: Option<u32>) {
    // The GOAWAY may be lost to the reset that answers what was sent behind it.
    assert!(matches!(error, None | Some(ENHANCE_YOUR_CALM)), "{error:?}");
}

#[test]
fn rapid_reset_ends_its_connection_before_it_reaches_many_backends() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let attack = |round: u32| {
        let stream = 2 * round + 1;
        vec![
            headers(stream, END_STREAM | END_HEADERS, &get("/s/reset")),
            Frame::new(RST_STREAM, 0, stream, CANCEL.to_be_bytes()),
        ]
    };
    let error =
        others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, attack, 10_000));
    calm_or_silence(error);
    let reached = upstream
        .requests()
        .iter()
        .filter(|r| r.target == "/s/reset")
        .count();
    assert!(reached <= 400, "{reached} of 10,000 reached the backend");
    let ended = || gateway.metric(&closed("resets")) + gateway.metric(&closed("excess"));
    wait_until("its end is counted", || ended() == 1.0);
    gateway.wait_log(|line| line["context"] == "connection" && line["msg"] == "closed");
}

#[test]
fn floods_of_control_frames_end_their_connection() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let window = |_| Frame::new(WINDOW_UPDATE, 0, 0, 1u32.to_be_bytes());
    let floods: [(&str, &dyn Fn(u32) -> Frame); 5] = [
        ("control_frames", &|_| Frame::new(PING, 0, 0, b"01234567")),
        ("control_frames", &|_| Frame::new(SETTINGS, 0, 0, [])),
        ("control_frames", &|_| {
            Frame::new(PRIORITY, 0, 1, [0, 0, 0, 0, 1])
        }),
        ("control_frames", &|_| Frame::new(0x77, 0, 0, b"unknown")),
        ("window_updates", &window),
    ];
    for (number, (reason, frame)) in floods.iter().enumerate() {
        let mut raw = Raw::connect(gateway.addr());
        let before = gateway.metric(&closed(reason));
        let flood = |_| (0..100).map(frame).collect();
        let error =
            others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, flood, 1000));
        calm_or_silence(error);
        gateway.wait_metric(&closed(reason), |count| count == before + 1.0);
        assert!(number < floods.len());
    }
}

#[test]
fn a_flood_of_continuations_ends_its_connection() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    raw.frame(&Frame::new(HEADERS, END_STREAM, 1, block(&get("/s/x"))));
    let (memory, flood) = (gateway.memory_kb(), |_| {
        let field = block(&[("x", "y")]);
        vec![Frame::new(CONTINUATION, 0, 1, field); 100]
    });
    others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, flood, 1000));
    assert!(gateway.memory_kb() < memory + (8 << 10));

    // The same without a single octet.
    let mut raw = Raw::connect(gateway.addr());
    raw.frame(&Frame::new(HEADERS, END_STREAM, 1, block(&get("/s/x"))));
    let flood = |_| vec![Frame::new(CONTINUATION, 0, 1, []); 100];
    others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, flood, 1000));
    gateway.wait_metric(&closed("excess"), |count| count >= 1.0);
}

#[test]
fn a_header_bomb_is_refused_and_takes_no_room() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    // 3,000 octets in the dynamic table once, then an octet each time that they are repeated.
    let big = "x".repeat(3000);
    let mut bomb = block(&get("/s/x"));
    bomb.extend(indexed_literal("x-bomb", &big));
    bomb.extend(vec![0x80 | 62; 10_000]);
    let memory = gateway.memory_kb();
    let ended = others_are_served_during(gateway.addr(), || {
        for stream in 0..20 {
            raw.frame(&Frame::new(
                HEADERS,
                END_STREAM | END_HEADERS,
                2 * stream + 1,
                &bomb,
            ));
        }
        raw.find(Duration::from_secs(5), |f| {
            f.kind == GOAWAY || f.kind == RST_STREAM || f.kind == HEADERS
        })
    });
    assert!(ended.is_some() || raw.is_closed());
    let grown = gateway.memory_kb().saturating_sub(memory);
    assert!(grown < 16 << 10, "{grown} KiB more for 600 MB of headers");
}

#[test]
fn more_streams_than_allowed_are_refused() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()])
        .top("server", "{ http2: { max_streams: 100 } }")
        .start();
    upstream.hold();
    let mut raw = Raw::connect(gateway.addr());
    for stream in 0..1000 {
        let request = headers(2 * stream + 1, END_STREAM | END_HEADERS, &get("/s/x"));
        raw.frame(&request);
    }
    let refused = raw.find(Duration::from_secs(5), |f| {
        matches!(f.kind, RST_STREAM | GOAWAY)
    });
    let error = refused.and_then(|frame| frame.error());
    assert!(
        matches!(error, Some(REFUSED_STREAM | ENHANCE_YOUR_CALM)),
        "{error:?}"
    );
    assert!(upstream.heads_seen() <= 100);
    upstream.release();
    run(async {
        let (client, _) = Http2::connect(gateway.addr()).await;
        assert_eq!(client.get("/s/well").await.status, 200);
    });
}

#[test]
fn a_flood_of_empty_data_ends_its_connection() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    raw.frame(&headers(1, END_HEADERS, &post("/s/x")));
    let flood = |_| vec![Frame::new(DATA, 0, 1, []); 100];
    let error = others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, flood, 1000));
    calm_or_silence(error);
    gateway.wait_metric(&closed("excess"), |count| count == 1.0);
}

#[test]
fn requests_that_are_none_end_their_connection_after_a_while() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let bad = [get("/s/x"), vec![("host", "b")]].concat();
    let attack = |round| vec![headers(2 * round + 1, END_STREAM | END_HEADERS, &bad)];
    let error = others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, attack, 1000));
    // First it is told to ask no more.
    assert!(
        matches!(error, None | Some(NO_ERROR | ENHANCE_YOUR_CALM)),
        "{error:?}"
    );
    // Where they come faster than they are answered, it is their number that is too much.
    let ended = || gateway.metric(&closed("malformed")) + gateway.metric(&closed("excess"));
    wait_until("it is counted", || ended() == 1.0);
}

#[test]
fn requests_that_are_none_do_not_take_the_others_on_their_connection_with_them() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    upstream.hold();
    let mut raw = Raw::connect(gateway.addr());
    raw.frame(&headers(
        1,
        END_STREAM | END_HEADERS,
        &get("/s/another-user"),
    ));
    wait_until("the request is there", || upstream.heads_seen() == 1);
    let bad = [get("/s/x"), vec![("host", "b")]].concat();
    let mut stream = 3;
    // One after the other: their number is what is too much, not their speed.
    while stream < 200 {
        raw.frame(&headers(stream, END_STREAM | END_HEADERS, &bad));
        let answer = raw.wait("an answer", |f| {
            f.kind == GOAWAY || (f.stream == stream && f.kind == HEADERS)
        });
        if answer.kind == GOAWAY {
            assert_eq!(answer.error(), Some(NO_ERROR));
            break;
        }
        stream += 2;
    }
    assert!((120..200).contains(&stream), "{stream}");
    raw.frame(&headers(
        stream + 2,
        END_STREAM | END_HEADERS,
        &get("/s/late"),
    ));
    let refused = raw.wait("a refusal", |f| {
        f.kind == RST_STREAM && f.stream == stream + 2
    });
    assert_eq!(refused.error(), Some(REFUSED_STREAM));
    upstream.release();
    let answer = raw.wait("the other user's answer", |f| {
        f.kind == HEADERS && f.stream == 1
    });
    assert_eq!(answer.status(), Some(200));
    assert!(raw.closes(Duration::from_secs(3)));
    gateway.wait_metric(&closed("malformed"), |count| count == 1.0);
    assert_eq!(upstream.count(), 1);
}

#[test]
fn streams_that_break_the_protocol_do_not_take_the_others_on_their_connection_with_them() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    upstream.hold();
    let mut raw = Raw::connect(gateway.addr());
    let another = headers(1, END_STREAM | END_HEADERS, &get("/s/another-user"));
    raw.frame(&another);
    wait_until("the request is there", || upstream.heads_seen() == 1);
    // h2 resets it.
    let bad = [get("/s/x"), vec![("connection", "close")]].concat();
    let mut stream = 3;
    while stream < 200 {
        raw.frame(&headers(stream, END_STREAM | END_HEADERS, &bad));
        let answer = raw.wait("an answer", |f| {
            f.kind == GOAWAY || (f.stream == stream && f.kind == RST_STREAM)
        });
        if answer.kind == GOAWAY {
            assert_eq!(answer.error(), Some(NO_ERROR), "the client is told");
            break;
        }
        assert_eq!(answer.error(), Some(PROTOCOL_ERROR));
        stream += 2;
    }
    assert!((120..200).contains(&stream), "{stream}");
    upstream.release();
    let answer = raw.wait("the other user's answer", |f| {
        f.kind == HEADERS && f.stream == 1
    });
    assert_eq!(answer.status(), Some(200));
    assert!(raw.closes(Duration::from_secs(3)));
    gateway.wait_metric(&closed("excess"), |count| count == 1.0);
}

#[test]
fn a_flood_of_streams_that_break_the_protocol_ends_its_connection() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let bad = [get("/s/x"), vec![("connection", "close")]].concat();
    let memory = gateway.memory_kb();
    let attack = |round: u32| -> Vec<Frame> {
        let streams = (0..200).map(|at| 2 * (200 * round + at) + 1);
        streams
            .map(|stream| headers(stream, END_STREAM | END_HEADERS, &bad))
            .collect()
    };
    let error = others_are_served_during(gateway.addr(), || until_it_ends(&mut raw, attack, 1000));
    assert!(
        matches!(error, None | Some(NO_ERROR | ENHANCE_YOUR_CALM)),
        "{error:?}"
    );
    gateway.wait_metric(&closed("excess"), |count| count == 1.0);
    let grown = gateway.memory_kb().saturating_sub(memory);
    assert!(grown < 24 << 10, "{grown} KiB");
}

#[test]
fn who_takes_an_answer_of_our_own_octet_by_octet_is_not_waited_for() {
    let body = "x".repeat(2000);
    let upstream = Upstream::start_with(move |_| {
        Reply::status(200)
            .header("Cache-Control", "max-age=60")
            .body(body.clone())
    });
    let gateway = Conf::of(&[upstream.url()])
        .top("server", "{ client_timeout: 1s }")
        .route("cache", "{}")
        .start();
    let is_hit = || {
        let kept = Request::get("/s/kept").host("a"); // as `get` has it
        let response = kept.send_to(gateway.addr());
        let status = response.header("cache-status").unwrap_or_default();
        status.contains("hit")
    };
    wait_until("it is kept", is_hit);
    for target in ["/nowhere", "/s/kept"] {
        let mut raw = Raw::connect_with(gateway.addr(), &setting(4, 0));
        raw.frame(&headers(1, END_STREAM | END_HEADERS, &get(target)));
        raw.wait("a head", |f| f.kind == HEADERS && f.stream == 1);
        let (since, mut ended) = (Instant::now(), None);
        while ended.is_none() && since.elapsed() < Duration::from_secs(20) {
            raw.frame(&Frame::new(WINDOW_UPDATE, 0, 1, 1u32.to_be_bytes()));
            ended = raw.find(Duration::from_millis(300), |f| f.kind == RST_STREAM);
        }
        let took = since.elapsed();
        assert!(ended.is_some(), "{target} goes on");
        assert!(took < Duration::from_secs(8), "{target}: {took:?}");
        assert!(raw.is_alive(), "its connection goes on");
    }
}

#[test]
fn a_few_requests_that_are_none_now_and_then_end_nothing() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    let bad = [get("/s/x"), vec![("host", "b")]].concat();
    for number in 0..66 {
        if number >= 64 {
            std::thread::sleep(Duration::from_millis(1100)); // what one more needs
        }
        let stream = 2 * number + 1;
        raw.frame(&headers(stream, END_STREAM | END_HEADERS, &bad));
        raw.wait("an answer", |f| f.kind == HEADERS && f.stream == stream);
    }
    raw.frame(&headers(201, END_STREAM | END_HEADERS, &get("/s/well")));
    let answer = raw.wait("an answer", |f| f.kind == HEADERS && f.stream == 201);
    assert_eq!(answer.status(), Some(200));
    assert_eq!(gateway.metric(&closed("malformed")), 0.0);
}

#[test]
fn a_client_that_never_reads_holds_little_and_not_for_long() {
    let upstream = Upstream::start_with(|_| Reply::status(200).body(vec![b'x'; 2 << 20]));
    let gateway = Conf::of(&[upstream.url()])
        .top("server", "{ client_timeout: 1s, keepalive_timeout: 1s }")
        .start();
    let memory = gateway.memory_kb();
    // Windows as large as can be, and none at all: what is sent is held up by TCP, or by HTTP/2.
    for window in [0x7fff_ffff, 0] {
        let settings = setting(4, window);
        let mut raws: Vec<Raw> = (0..4)
            .map(|_| Raw::connect_with(gateway.addr(), &settings))
            .collect();
        for raw in &mut raws {
            raw.small_receive_buffer();
            raw.frame(&Frame::new(
                WINDOW_UPDATE,
                0,
                0,
                0x7fff_0000_u32.to_be_bytes(),
            ));
            for stream in 0..50 {
                let request = headers(2 * stream + 1, END_STREAM | END_HEADERS, &get("/s/x"));
                raw.frame(&request);
            }
        }
        let grown = || gateway.memory_kb().saturating_sub(memory);
        std::thread::sleep(Duration::from_millis(500)); // it fills meanwhile
        assert!(
            grown() < 160 << 10, // Pingora holds some pieces of 64 KiB for each
            "{} KiB for 200 answers of 2 MiB",
            grown()
        );
        gateway.wait_metric("downstream_connections", |open| open == 0.0);
    }
}
