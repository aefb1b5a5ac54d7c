//! How long: one budget for a whole request, spent by every attempt; what is cut when it is over, and what the backend
//! is told of it.

use crate::support::prelude::*;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// The budget of the route of most tests.
const BUDGET: Duration = Duration::from_millis(600);

/// How late a busy machine may be. Alone it is within 50 ms.
const LATE: Duration = Duration::from_millis(400);

#[test]
fn a_head_that_does_not_come_is_504_at_the_deadline() {
    let (fleet, gateway) = world();
    for (i, silent) in silent_heads().into_iter().enumerate() {
        fleet.set(move |_, _| silent.clone());
        for method in ["GET", "POST"] {
            let id = format!("silent-{i}-{method}");
            let mut connection = Client::to(gateway.addr()).connect();
            let request = Request::method(method, "/s/x")
                .header("X-Request-ID", &id)
                .header("Content-Length", "0");
            let start = Instant::now();
            let response = connection.request(&request);
            assert_on_time(start, BUDGET, &id);
            assert_timeout(&response, &id);
            assert_connection_is_as_announced(&mut connection, &response);
            let line = gateway.access_line(&id);
            assert_eq!(line["code"], "GATEWAY_TIMEOUT", "{line}");
            assert_eq!(
                line["attempts"], 1,
                "behind the deadline it is not tried again"
            );
        }
        wait_until("the upstream's connections are cut", || {
            fleet.open_connections() == 0
        });
    }
}

#[test]
fn a_body_that_trickles_is_cut_at_the_deadline_and_does_not_look_complete() {
    let (fleet, gateway) = world();
    let chunked = |every| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        let chunks = std::iter::repeat_n("1\r\nx\r\n".to_owned(), 50);
        Reply::paced(
            std::iter::once(head).chain(chunks),
            Duration::from_millis(every),
        )
    };
    let to_the_end = |every| {
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
        let bytes = std::iter::repeat_n("x", 50);
        Reply::paced(
            std::iter::once(head).chain(bytes),
            Duration::from_millis(every),
        )
    };
    let mut replies = Vec::new();
    for every in [70, 250, 1000] {
        replies.push((
            every,
            Reply::trickle(vec![b'x'; 50], Duration::from_millis(every)),
        ));
        if every < 600 {
            replies.push((every, chunked(every)));
            replies.push((every, to_the_end(every)));
        }
    }
    replies.push((
        0,
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").then_hang(),
    ));
    for (every, reply) in replies {
        let what = format!("every {every} ms: {reply:?}");
        fleet.set(move |_, _| reply.clone());
        let mut connection = Client::to(gateway.addr()).connect();
        let start = Instant::now();
        connection.send(&Request::get("/s/x").bytes());
        match connection.try_read_response() {
            Err(Broken::Closed { received }) => {
                assert!(
                    received.starts_with(b"HTTP/1.1 200"),
                    "{what}: {received:?}"
                );
                assert!(
                    !received.ends_with(b"0\r\n\r\n"),
                    "{what}: it ends as if whole"
                );
            }
            // What has no length of its own can be told to be cut only by a RST.
            Ok(response) => assert!(!response.chunked, "{what} looks complete: {response:?}"),
            other => panic!("{what} does not look cut: {other:?}"),
        }
        assert_on_time(start, BUDGET, &what);
        wait_until("the upstream's connections are cut", || {
            fleet.open_connections() == 0
        });
    }
}

#[test]
fn an_upload_that_the_backend_does_not_read_is_504_at_the_deadline() {
    let (fleet, gateway) = world();
    fleet[0].set_before_body(|_| Some(Reply::hang()));
    let descriptors = gateway.open_fds();
    let mut connection = Client::to(gateway.addr()).connect();
    let request = Request::post("/s/x")
        .header("X-Request-ID", "unread")
        .body(vec![b'a'; 9_000_000]);
    let start = Instant::now();
    let sender = connection.send_meanwhile(request.bytes());
    let response = connection.read_response();
    assert_on_time(start, BUDGET, "an upload that is not read");
    assert_timeout(&response, "unread");
    drop(connection);
    sender.join().unwrap();
    // A backend that does not read does not see the end of it; that the gateway is done with it shows here.
    wait_until("neither connection is left", || {
        gateway.open_fds() <= descriptors
    });
    assert!(!fleet.requests()[0].1.complete);
}

#[test]
fn a_client_that_does_not_read_its_answer_holds_no_backend_beyond_the_deadline() {
    let (fleet, gateway) = world();
    fleet.set(|_, _| Reply::status(200).body(vec![b'x'; 30_000_000]));
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&Request::get("/s/x").bytes());
    let start = Instant::now();
    fleet.wait_heads(1);
    wait_until("the upstream's connection is cut", || {
        fleet.open_connections() == 0
    });
    assert_on_time(start, BUDGET, "an answer that nobody reads");
    assert!(connection.try_read_response().is_err(), "it looks complete");
}

#[test]
fn a_client_may_want_its_answer_sooner_but_gets_no_more_time() {
    let (fleet, gateway) = world();
    fleet.set(|_, _| Reply::hang());
    let sooner = Duration::from_millis(250);
    for (wanted, budget) in [
        (sooner, sooner),
        (BUDGET * 3, BUDGET),
        (Duration::from_secs(86_400 * 365), BUDGET),
    ] {
        let start = Instant::now();
        let response = Request::get("/s/x")
            .header("X-Request-Deadline", &unix_ms_in(wanted).to_string())
            .send_to(gateway.addr());
        assert_eq!(response.json()["code"], "GATEWAY_TIMEOUT", "{wanted:?}");
        assert_on_time(start, budget, &format!("wanted in {wanted:?}"));
    }
}

#[test]
fn a_deadline_that_is_over_is_504_with_nothing_forwarded() {
    let (fleet, gateway) = world();
    let mut connection = Client::to(gateway.addr()).connect();
    for over in [0, 1, unix_ms_in(Duration::ZERO) - 1000] {
        let start = Instant::now();
        let response = connection.request(
            &Request::get("/s/x")
                .header("X-Request-ID", "over")
                .header("X-Request-Deadline", &over.to_string()),
        );
        assert_timeout(&response, "over");
        assert!(start.elapsed() < LATE, "it waited {:?}", start.elapsed());
        if response.header("connection").is_some() {
            connection = Client::to(gateway.addr()).connect();
        }
    }
    assert_eq!(fleet.heads_seen(), 0, "it was forwarded");
}

#[test]
fn a_deadline_that_is_no_number_is_400() {
    let (fleet, gateway) = world();
    let soon = unix_ms_in(BUDGET);
    for wrong in [
        "",
        "soon",
        "-1",
        "+5",
        "1.5",
        "1e13",
        "0x10",
        "12 34",
        "1,2",
        "99999999999999999999999999",
        &format!("{soon}ms"),
        &format!("{soon}, {soon}"),
    ] {
        let response = Request::get("/s/x")
            .header("X-Request-Deadline", wrong)
            .send_to(gateway.addr());
        assert_eq!(response.status, 400, "`{wrong}`");
    }
    let twice = Request::get("/s/x")
        .header("X-Request-Deadline", &soon.to_string())
        .header("X-Request-Deadline", &(soon + 1).to_string());
    assert_eq!(twice.send_to(gateway.addr()).status, 400, "two of them");
    assert_eq!(fleet.heads_seen(), 0, "it was forwarded");
}

#[test]
fn the_backend_is_told_the_deadline_that_holds() {
    let (fleet, gateway) = world();
    let told = |wanted: Option<u64>| {
        let before = fleet.heads_seen();
        let (earliest, request) = (unix_ms_in(BUDGET), Request::get("/s/x"));
        let request = match wanted {
            Some(wanted) => request.header("X-Request-Deadline", &wanted.to_string()),
            None => request,
        };
        assert_eq!(request.send_to(gateway.addr()).status, 200);
        let latest = unix_ms_in(BUDGET);
        let (_, seen) = fleet.requests().remove(before);
        let told = seen.header("x-request-deadline").expect("it is told");
        (earliest, told.parse::<u64>().expect("a number"), latest)
    };
    // Clocks are read in whole milliseconds, and more than once.
    let (earliest, of_route, latest) = told(None);
    assert!(
        (earliest - 5..=latest + 5).contains(&of_route),
        "{of_route}"
    );
    let sooner = unix_ms_in(BUDGET) - 200;
    let (_, kept, _) = told(Some(sooner));
    assert!(
        (sooner - 2..=sooner + 2).contains(&kept),
        "{sooner} became {kept}"
    );
    let (earliest, shortened, latest) = told(Some(unix_ms_in(BUDGET * 100)));
    assert!(
        (earliest - 5..=latest + 5).contains(&shortened),
        "{shortened}"
    );
}

#[test]
fn all_attempts_share_one_deadline_and_the_backends_are_told_the_same() {
    let fleet = Fleet::of(4);
    fleet.set(|_, _| Reply::status(503).delay(Duration::from_millis(250)));
    let gateway = fleet.conf().route("timeout", "600ms").start();
    let start = Instant::now();
    let response = Request::get("/s/x")
        .header("X-Request-ID", "shared")
        .send_to(gateway.addr());
    assert_on_time(start, BUDGET, "three attempts");
    assert_timeout(&response, "shared");
    wait_until("the last attempt is seen", || fleet.heads_seen() == 3);
    let told: Vec<_> = fleet
        .requests()
        .iter()
        .map(|(_, seen)| seen.header("x-request-deadline").unwrap().parse::<u64>())
        .map(|told| told.expect("a number"))
        .collect();
    // The same moment, though it is read off two clocks anew each time.
    assert!(told.iter().all(|t| t.abs_diff(told[0]) <= 5), "{told:?}");
}

#[test]
fn an_attempt_that_takes_too_long_to_begin_its_answer_gives_way_to_another_instance() {
    let cap = Duration::from_millis(300);
    for silent in silent_heads() {
        let fleet = Fleet::of(2);
        let gateway = fleet
            .conf()
            .top("timeouts", "{ attempt_cap: 300ms }")
            .route("timeout", "20s")
            .start();
        fleet.answer_in_turn(vec![silent.clone()]);
        let start = Instant::now();
        let response = Request::get("/s/x").send_to(gateway.addr());
        assert_eq!(
            (response.status, response.text()),
            (200, "well"),
            "{silent:?}"
        );
        assert_on_time(start, cap, "the second attempt");
        wait_until("the first attempt's connection is cut", || {
            fleet.open_connections() <= 1
        });

        fleet.answer_in_turn(vec![silent.clone()]);
        let start = Instant::now();
        let response = Request::post("/s/x")
            .header("X-Request-ID", "capped")
            .send_to(gateway.addr());
        assert_timeout(&response, "capped");
        assert_on_time(start, cap, "a POST's only attempt");
    }
}

#[test]
fn the_cap_of_an_attempt_is_for_its_head_alone() {
    let fleet = Fleet::of(1);
    let gateway = fleet
        .conf()
        .top("timeouts", "{ attempt_cap: 300ms }")
        .route("timeout", "20s")
        .start();
    for reply in [
        Reply::trickle(vec![b'x'; 10], Duration::from_millis(100)),
        Reply::trickle(vec![b'x'; 2], Duration::from_millis(600)),
    ] {
        fleet.set(move |_, _| reply.clone());
        let response = Request::get("/s/x").send_to(gateway.addr());
        assert_eq!(response.status, 200, "the body has the whole time");
    }
}

#[test]
fn the_cap_of_an_attempt_does_not_count_the_time_that_the_client_takes_to_send() {
    let fleet = Fleet::of(2);
    let gateway = fleet
        .conf()
        .top("timeouts", "{ attempt_cap: 400ms }")
        .route("timeout", "20s")
        .start();
    let request = Request::method("PUT", "/s/x").body("0123456789");
    let mut connection = Client::to(gateway.addr()).connect();
    connection.send(&request.head_bytes());
    for piece in [b"01234", b"56789"] {
        thread::sleep(Duration::from_millis(600));
        connection.send(piece);
    }
    assert_eq!(connection.read_response().status, 200);
    assert_eq!(
        fleet.heads_seen(),
        1,
        "it was taken for the instance's time"
    );

    // From the end of the request on it counts.
    fleet.answer_in_turn(vec![Reply::hang()]);
    let request = Request::method("PUT", "/s/y").body("0123456789");
    connection.send(&request.head_bytes());
    thread::sleep(Duration::from_millis(600));
    let start = Instant::now();
    connection.send(b"0123456789");
    assert_eq!(connection.read_response().text(), "well");
    assert_on_time(start, Duration::from_millis(400), "the second attempt");
}

#[test]
fn each_request_of_a_connection_has_its_own_deadline() {
    let fleet = Fleet::of(1);
    fleet.set(|_, request| match request.path() {
        "/s/hang" | "/long/hang" => Reply::hang(),
        "/long/slow" => Reply::status(200).delay(Duration::from_millis(1200)),
        _ => Reply::status(200),
    });
    let gateway = fleet
        .conf()
        .route("timeout", "600ms")
        .and_route("{ path: /long/*, service: s, auth: public, timeout: 1800ms }")
        .start();
    let mut connection = Client::to(gateway.addr()).connect();
    // The later deadline first, the earlier one first, and each after one that was never met.
    for (path, status, time) in [
        ("/long/x", 200, 0),
        ("/s/x", 200, 0),
        ("/long/slow", 200, 1200),
        ("/s/hang", 504, 600),
        ("/long/x", 200, 0),
        ("/s/hang", 504, 600),
        ("/s/x", 200, 0),
        ("/long/hang", 504, 1800),
    ] {
        let start = Instant::now();
        let response = connection.request(&Request::get(path));
        assert_eq!(response.status, status, "{path}");
        assert_on_time(start, Duration::from_millis(time), path);
        if response.header("connection") == Some("close") {
            connection = Client::to(gateway.addr()).connect();
        }
    }
}

#[test]
fn a_kept_connection_to_a_backend_outlives_the_deadlines_of_its_requests() {
    let fleet = Fleet::of(1);
    let gateway = fleet
        .conf()
        .route("timeout", "300ms")
        .gateway()
        .env("SERVER_THREADS", 1)
        .start();
    let mut connection = Client::to(gateway.addr()).connect();
    for _ in 0..3 {
        assert_eq!(connection.request(&Request::get("/s/x")).status, 200);
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(fleet[0].connections(), 1, "it was cut while it was idle");
}

#[test]
fn a_streaming_route_lasts_as_long_as_pieces_come() {
    let (fleet, gateway) = streaming_world();
    let pieces = 16;
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let events = std::iter::repeat_n("9\r\ndata: x\n\n\r\n", pieces);
    let reply = Reply::paced(
        std::iter::once(head).chain(events).chain(["0\r\n\r\n"]),
        Duration::from_millis(100),
    );
    fleet.set(move |_, _| reply.clone());
    let mut connection = Client::to(gateway.addr()).connect();
    let start = Instant::now();
    connection.send(&Request::get("/s/events").bytes());
    // A piece arrives when it was sent and not with the last one.
    let first = connection.read_up_to(head.len() / 2);
    assert!(first.starts_with(b"HTTP/1.1 200"));
    assert!(
        start.elapsed() < Duration::from_millis(1200),
        "it was held back"
    );
    let rest = connection.read_to_end_of_chunks();
    assert!(start.elapsed() >= Duration::from_millis(1600));
    let text = String::from_utf8_lossy(&rest).into_owned();
    assert_eq!(text.matches("data: x").count(), pieces, "{text}");
    assert!(connection.stays_open(), "it is kept for the next request");
    fleet.set(|_, _| Reply::status(200));
    assert_eq!(connection.request(&Request::get("/s/x")).status, 200);
}

#[test]
fn a_streaming_route_is_cut_when_no_piece_comes_for_its_idle_timeout() {
    let (fleet, gateway) = streaming_world();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let events = std::iter::repeat_n("9\r\ndata: x\n\n\r\n", 6);
    let reply = Reply::paced(
        std::iter::once(head).chain(events),
        Duration::from_millis(150),
    );
    fleet.set(move |_, _| reply.clone().then_hang());
    let mut connection = Client::to(gateway.addr()).connect();
    let start = Instant::now();
    connection.send(&Request::get("/s/events").bytes());
    match connection.try_read_response() {
        Err(Broken::Closed { received }) => {
            let text = String::from_utf8_lossy(&received).into_owned();
            assert_eq!(text.matches("data: x").count(), 6, "{text}");
            assert!(!text.ends_with("0\r\n\r\n"), "it ends as if whole: {text}");
        }
        other => panic!("it does not look cut: {other:?}"),
    }
    assert_on_time(
        start,
        Duration::from_millis(7 * 150 + 600),
        "the last piece",
    );
    wait_until("the upstream's connection is cut", || {
        fleet.open_connections() == 0
    });
}

#[test]
fn a_streaming_routes_head_has_the_routes_time() {
    let (fleet, gateway) = streaming_world();
    for silent in silent_heads() {
        fleet.set(move |_, _| silent.clone());
        let start = Instant::now();
        let response = Request::get("/s/x")
            .header("X-Request-ID", "no-head")
            .send_to(gateway.addr());
        assert_timeout(&response, "no-head");
        assert_on_time(start, Duration::from_millis(500), "a stream's head");
    }
}

#[test]
fn a_pause_between_attempts_is_cut_by_the_deadline_too() {
    let fleet = Fleet::of(1);
    // Each attempt leaves so little time that the next one is cut in its middle.
    fleet.set_by_turn(|turn, _| match turn {
        0 => Reply::status(503).delay(Duration::from_millis(500)),
        _ => Reply::hang(),
    });
    let gateway = fleet.conf().route("timeout", "600ms").start();
    let start = Instant::now();
    let response = Request::get("/s/x")
        .header("X-Request-ID", "late")
        .send_to(gateway.addr());
    assert_on_time(start, BUDGET, "the second attempt");
    assert_timeout(&response, "late");
}

#[test]
fn many_requests_are_each_cut_at_their_own_deadline() {
    let (fleet, gateway) = world();
    fleet.set(|_, _| Reply::trickle(vec![b'x'; 50], Duration::from_millis(90)));
    let addr = gateway.addr();
    let late: Vec<Duration> = thread::scope(|scope| {
        let all: Vec<_> = (0..16)
            .map(|i| {
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(20 * i));
                    let mut connection = Client::to(addr).connect();
                    let start = Instant::now();
                    connection.send(&Request::get("/s/x").bytes());
                    assert!(connection.try_read_response().is_err());
                    start.elapsed().saturating_sub(BUDGET)
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(late.iter().all(|late| *late < LATE), "{late:?}");
}

/// One instance behind a route of 600 ms.
fn world() -> (Fleet, Gateway) {
    let fleet = Fleet::of(1);
    let gateway = fleet.conf().route("timeout", "600ms").start();
    (fleet, gateway)
}

/// The same, streaming: 500 ms for the head, and then 600 ms for each piece.
fn streaming_world() -> (Fleet, Gateway) {
    let fleet = Fleet::of(1);
    let conf = fleet.conf().route("timeout", "500ms");
    let gateway = conf.route("idle_timeout", "600ms").start();
    (fleet, gateway)
}

/// Heads that never come, or not in time.
fn silent_heads() -> Vec<Reply> {
    let head = b"HTTP/1.1 200 OK\r\nX-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nContent-Length: 0\r\n\r\n";
    vec![
        Reply::hang(),
        Reply::raw("HTTP/1.1 200 OK\r\nX: ").then_hang(),
        Reply::paced(
            head.iter().map(|byte| vec![*byte]),
            Duration::from_millis(30),
        ),
        Reply::paced(
            head.iter().map(|byte| vec![*byte]),
            Duration::from_millis(200),
        ),
    ]
}

/// Not before the deadline (but for a clock's tick) and not long behind it.
#[track_caller]
fn assert_on_time(start: Instant, budget: Duration, what: &str) {
    let took = start.elapsed();
    let tick = Duration::from_millis(10);
    assert!(took + tick >= budget, "{what}: {took:?} of {budget:?} only");
    assert!(
        took < budget + LATE,
        "{what}: {took:?} in place of {budget:?}"
    );
}

#[track_caller]
fn assert_timeout(response: &Response, id: &str) {
    assert_eq!(response.status, 504, "{id}");
    let body = response.json();
    assert_eq!(body["code"], "GATEWAY_TIMEOUT", "{id}");
    assert_eq!(body["requestId"], id);
}

/// A connection that is said to be closed is, and any other carries a next request.
#[track_caller]
fn assert_connection_is_as_announced(connection: &mut Connection, response: &Response) {
    if response.header("connection") == Some("close") {
        assert!(connection.is_closed(), "it was to be closed");
    } else {
        let next = connection.request(&Request::get("/nowhere"));
        assert_eq!(next.status, 404, "it was to be kept");
    }
}

fn unix_ms_in(time: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    (now + time).as_millis() as u64
}
