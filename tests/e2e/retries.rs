//! Another try: for which requests, after which failures, where, when, and how often; and what the client, the log and
//! the metrics are told of it.

use crate::support::prelude::*;
use std::collections::BTreeSet;

const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH"];

/// The most of a body that is kept to be sent again.
const KEPT: usize = 64 * 1024;

/// A failure of the first attempt.
struct Failure {
    name: &'static str,
    reply: Reply,
    /// What an idempotent request is sent again for.
    retried: bool,
    /// What the client gets when it is not sent again.
    status: u16,
    /// What the log calls it.
    cause: &'static str,
}

#[test]
fn what_is_tried_again_follows_the_table_of_methods_and_failures() {
    let failures = failures();
    let fleet = Fleet::of(2);
    let replies: Vec<Reply> = failures.iter().map(|f| f.reply.clone()).collect();
    fleet.set_by_turn(move |turn, request| match turn {
        0 => replies[index_in(request.path())].clone(),
        _ => Reply::status(200).body("well"),
    });
    let gateway = fleet
        .conf()
        .top("timeouts", "{ attempt_cap: 700ms }")
        .route("methods", "[GET, POST, PUT, PATCH, DELETE, OPTIONS]")
        .start();

    let mut cells = Vec::new();
    for method in METHODS {
        for key in [false, true] {
            for (i, failure) in failures.iter().enumerate() {
                let target = format!("/s/{i}?{method}-{key}");
                let id = format!("cell-{i}-{method}-{key}");
                let mut request = Request::method(method, &target).header("X-Request-ID", &id);
                if key {
                    request = request.header("Idempotency-Key", &id);
                }
                if ["PUT", "POST", "PATCH"].contains(&method) {
                    request = request.body("once or twice");
                }
                // Behind a time-out the first instance may be at work still, whatever a key says.
                let safe_to_repeat =
                    !["POST", "PATCH"].contains(&method) || (key && failure.cause != "timeout");
                cells.push((request, target, id, failure, safe_to_repeat));
            }
        }
    }
    let requests = cells.iter().map(|cell| cell.0.clone()).collect();
    let responses = burst(gateway.addr(), requests, 8);
    for ((request, target, id, failure, safe_to_repeat), response) in cells.iter().zip(responses) {
        let what = format!("{} {id}", failure.name);
        let again = failure.retried && *safe_to_repeat;
        let sent = fleet.requests_to(target);
        assert_eq!(sent.len(), if again { 2 } else { 1 }, "{what}: times sent");
        let line = gateway.access_line(id);
        assert_eq!(line["attempts"], sent.len(), "{what}: {line}");
        if again {
            assert_eq!(response.status, 200, "{what}");
            assert_ne!(sent[0].0, sent[1].0, "{what}: the same instance again");
            let told = format!("{} {}", fleet.name(sent[0].0), failure.cause);
            assert_eq!(line["retries"], told, "{what}");
            assert_eq!(line["upstream"], fleet.name(sent[1].0), "{what}");
            assert_eq!(sent[0].1.body, sent[1].1.body, "{what}: {request:?}");
        } else {
            assert_eq!(response.status, failure.status, "{what}");
            assert_eq!(line["retries"], Value::Null, "{what}");
        }
    }
}

#[test]
fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let fleet = Fleet::of(1);
    let dead = refused_addr();
    let gateway = Conf::at(&[fleet[0].addr(), dead])
        .route("methods", "[GET, POST, PUT, PATCH, DELETE, OPTIONS]")
        .start();
    for method in METHODS {
        let mut told = Vec::new();
        for turn in 0..2 {
            let id = format!("refused-{method}-{turn}");
            let mut request =
                Request::method(method, &format!("/s/{id}")).header("X-Request-ID", &id);
            if ["PUT", "POST", "PATCH"].contains(&method) {
                request = request.body("once");
            }
            assert_eq!(request.send_to(gateway.addr()).status, 200, "{id}");
            assert_eq!(fleet.requests_to(&format!("/s/{id}")).len(), 1, "{id}");
            told.push(gateway.access_line(&id)["retries"].clone());
        }
        let refused = json!(format!("{dead} connect"));
        assert!(
            told.contains(&refused),
            "{method}: neither of two turns met the dead instance: {told:?}"
        );
    }
    let refused = METHODS.len() as f64;
    assert_eq!(gateway.metric(&attempts("connect")), refused);
    assert_eq!(gateway.metric(&retries("connect")), refused);
    assert_eq!(gateway.metric(&attempts("success")), 2.0 * refused);
}

#[test]
fn an_answer_that_has_begun_is_never_tried_again() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    let cuts = [
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").then_close(),
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc").then_reset(),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .then_close(),
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"),
    ];
    for (i, cut) in cuts.into_iter().enumerate() {
        // The head is on its way to the client before the body breaks.
        fleet.answer_in_turn(vec![cut.clone()]);
        let target = format!("/s/cut-{i}");
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&Request::get(&target).bytes());
        match connection.try_read_response() {
            Err(Broken::Closed { received }) => {
                assert!(received.starts_with(b"HTTP/1.1 200"), "{cut:?}");
            }
            other => panic!("{cut:?} does not look cut: {other:?}"),
        }
        assert_eq!(fleet.requests_to(&target).len(), 1, "{cut:?}");
    }
}

#[test]
fn a_body_of_up_to_64_kib_is_sent_again_byte_for_byte() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    for length in [0, 1, 1000, KEPT - 1, KEPT] {
        let body = noise(length);
        for failing in [Reply::reset(), Reply::status(503).body("later")] {
            fleet.answer_in_turn(vec![failing]);
            for chunked in [false, true] {
                // The turns are counted by target.
                let target = format!("/s/{length}?{chunked}");
                let response = put(&target, &body, chunked).send_to(gateway.addr());
                assert_eq!(response.status, 200, "{length} bytes, {chunked}");
                let sent = last(&fleet.requests_to(&target), 2);
                for (_, attempt) in &sent {
                    assert!(
                        attempt.complete && attempt.body == body,
                        "{length}, {chunked}"
                    );
                }
                assert_ne!(sent[0].0, sent[1].0);
            }
        }
    }
}

#[test]
fn a_body_that_is_cut_by_a_reset_in_its_middle_is_sent_again_from_its_start() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    let body = noise(60_000);
    for read in [1, 1_000, 40_000] {
        fleet.answer_in_turn_before_body(vec![Reply::reset_after(read)]);
        for chunked in [false, true] {
            let target = format!("/s/{read}?{chunked}");
            let before = fleet.heads_seen();
            let whole = put(&target, &body, chunked);
            let (bytes, head) = (whole.bytes(), whole.head_bytes().len());
            let mut connection = Client::to(gateway.addr()).connect();
            // The rest follows when the first instance is gone: the gateway is in the middle of the upload.
            let (sent, rest) = bytes.split_at(head + read + 2_000);
            connection.send(sent);
            wait_until("the first instance has reset", || {
                !fleet.requests_to(&target).is_empty()
            });
            connection.send(rest);
            let response = connection.read_response();
            assert_eq!(response.status, 200, "{read} bytes read, {chunked}");
            assert_eq!(fleet.heads_seen(), before + 2);
            let sent = fleet.requests_to(&target);
            assert!(
                !sent[0].1.complete,
                "{read}, {chunked}: the first had it whole"
            );
            assert!(
                sent[1].1.complete && sent[1].1.body == body,
                "{read}, {chunked}"
            );
        }
    }
}

#[test]
fn an_answer_that_comes_before_the_body_has_been_sent_is_tried_again_with_the_whole_body() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    let body = noise(50_000);
    let early = [Reply::status(503), Reply::status(503).then_close()];
    for (i, early) in early.into_iter().enumerate() {
        fleet.answer_in_turn_before_body(vec![early]);
        for chunked in [false, true] {
            let target = format!("/s/early-{i}-{chunked}");
            let before = fleet.heads_seen();
            let bytes = put(&target, &body, chunked).bytes();
            let (sent, rest) = bytes.split_at(bytes.len() / 2);
            let mut connection = Client::to(gateway.addr()).connect();
            connection.send(sent);
            fleet.wait_heads(before + 1);
            connection.send(rest);
            assert_eq!(connection.read_response().status, 200, "{target}");
            let sent = fleet.requests_to(&target);
            let whole = &sent.last().unwrap().1;
            assert!(whole.complete && whole.body == body, "{target}");
            assert_eq!(fleet.heads_seen(), before + 2, "{target}");
        }
    }
}

#[test]
fn an_interim_answer_is_none_and_another_try_may_follow_it() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
    let broken = [
        Reply::raw(hint).then_reset(),
        Reply::raw(format!("{hint}HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")),
    ];
    for (i, reply) in broken.into_iter().enumerate() {
        fleet.answer_in_turn(vec![reply]);
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&Request::get(&format!("/s/{i}")).bytes());
        let answer = loop {
            let response = connection.read_response();
            if response.status >= 200 {
                break response;
            }
        };
        assert_eq!((answer.status, answer.text()), (200, "well"), "{i}");
    }
}

#[test]
fn a_post_that_is_cut_in_its_middle_is_sent_again_only_with_a_key() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    for key in [false, true] {
        fleet.answer_in_turn_before_body(vec![Reply::reset_after(500)]);
        let target = format!("/s/{key}");
        let mut request = Request::post(&target);
        if key {
            request = request.header("Idempotency-Key", "order-1");
        }
        let request = request.body(noise(2_000));
        let mut connection = Client::to(gateway.addr()).connect();
        let bytes = request.bytes();
        let (sent, rest) = bytes.split_at(bytes.len() - 1_000);
        connection.send(sent);
        wait_until("the first instance has reset", || {
            !fleet.requests_to(&target).is_empty()
        });
        connection.send(rest);
        let expected = if key { (200, 2) } else { (502, 1) };
        let status = connection.read_response().status;
        assert_eq!((status, fleet.requests_to(&target).len()), expected);
    }
}

#[test]
fn a_longer_body_is_not_sent_again() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    for length in [KEPT + 1, 200_000] {
        let body = noise(length);
        let replies = [
            (Reply::reset(), 502),
            (Reply::status(503).body("later"), 503),
        ];
        for (reply, status) in replies {
            fleet.answer_in_turn(vec![reply]);
            for chunked in [false, true] {
                let target = format!("/s/{length}?{chunked}-{status}");
                let response = put(&target, &body, chunked).send_to(gateway.addr());
                assert_eq!(response.status, status, "{length} bytes, {chunked}");
                assert_eq!(
                    fleet.requests_to(&target).len(),
                    1,
                    "{length} bytes, {chunked}"
                );
            }
        }
    }
}

#[test]
fn a_client_that_waits_for_100_is_told_once_to_go_on_though_the_body_is_sent_twice() {
    let fleet = Fleet::of(2);
    fleet.answer_in_turn(vec![Reply::status(503)]);
    let gateway = fleet.conf().start();
    let mut connection = Client::to(gateway.addr()).connect();
    let request = Request::method("PUT", "/s/x")
        .header("Expect", "100-continue")
        .body("patience");
    connection.send(&request.head_bytes());
    assert_eq!(connection.read_response().status, 100);
    connection.send(b"patience");
    assert_eq!(connection.read_response().status, 200);
    let sent = fleet.requests_to("/s/x");
    assert_eq!(sent.len(), 2);
    assert!(
        sent.iter()
            .all(|(_, r)| r.complete && r.body == b"patience")
    );
}

#[test]
fn the_last_answer_passes_as_it_is() {
    let fleet = Fleet::of(3);
    fleet.set_by_turn(|turn, _| {
        Reply::status(503)
            .header("X-Turn", &turn.to_string())
            .header("Retry-After", "77")
            .body(format!("answer {turn}"))
    });
    let gateway = fleet
        .conf()
        .top("retry", "{ max_retries: 2, base_delay: 1ms }")
        .start();
    let response = Request::get("/s/x").send_to(gateway.addr());
    assert_eq!((response.status, response.text()), (503, "answer 2"));
    assert_eq!(response.header("x-turn"), Some("2"));
    assert_eq!(response.header("retry-after"), Some("77"));
}

#[test]
fn the_body_of_an_answer_that_is_given_up_is_not_waited_for() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().route("timeout", "8s").start();
    let endless = [
        Reply::raw("HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nabc").then_hang(),
        Reply::raw("HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").then_hang(),
        Reply::raw("HTTP/1.1 503 X\r\n\r\nabc").then_hang(),
        Reply::status(503).body(vec![b'x'; 5_000_000]),
    ];
    for (i, reply) in endless.into_iter().enumerate() {
        fleet.answer_in_turn(vec![reply]);
        let start = Instant::now();
        let response = Request::get(&format!("/s/{i}")).send_to(gateway.addr());
        assert_eq!((response.status, response.text()), (200, "well"), "{i}");
        let took = start.elapsed();
        assert!(took < Duration::from_secs(4), "{i}: it took {took:?}");
    }
    wait_until("the hanging connections are closed", || {
        fleet.open_connections() <= 2
    });
}

#[test]
fn no_instance_is_tried_twice_while_another_is_left_whatever_the_strategy() {
    let strategies = [
        "strategy: round_robin",
        "strategy: random",
        "strategy: least_connections",
        "strategy: peak_ewma",
        "strategy: consistent_hash, hash_on: user",
    ];
    for strategy in strategies {
        let fleet = Fleet::of(3);
        fleet.set(|_, _| Reply::status(500));
        let gateway = fleet
            .conf()
            .top("balance", &format!("{{ {strategy} }}"))
            .top(
                "retry",
                "{ max_retries: 4, base_delay: 1ms, budget_min: 100000 }",
            )
            .start();
        for i in 0..10 {
            let target = format!("/s/{i}");
            assert_eq!(Request::get(&target).send_to(gateway.addr()).status, 500);
            let sent: Vec<usize> = fleet.requests_to(&target).iter().map(|(i, _)| *i).collect();
            assert_eq!(sent.len(), 5, "{strategy}: then again those it had tried");
            let first: BTreeSet<_> = sent[..3].iter().collect();
            assert_eq!(first.len(), 3, "{strategy}: {sent:?}");
        }
    }
}

#[test]
fn an_untried_instance_is_asked_at_once_and_only_a_tried_one_after_a_pause() {
    let fleet = Fleet::of(3);
    let gateway = fleet
        .conf()
        .top(
            "retry",
            "{ max_retries: 2, base_delay: 60s, max_delay: 60s }",
        )
        .route("timeout", "30s")
        .start();
    fleet.answer_in_turn(vec![Reply::status(503), Reply::reset()]);
    let start = Instant::now();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

#[test]
fn pauses_are_random_and_grow_twofold() {
    let gaps = gaps_of_three_retries("{ max_retries: 3, base_delay: 200ms, budget_min: 100000 }");
    for (gaps, limit) in gaps.iter().zip([200, 400, 800].map(Duration::from_millis)) {
        // Each of the first two is missed by chance once in a million runs.
        let (least, most) = (gaps[0], gaps[19]);
        assert!(least < limit / 2, "{gaps:?}: no jitter up to {limit:?}");
        assert!(most > limit / 2, "{gaps:?}: no pause up to {limit:?}");
        assert!(gaps[17] < limit + NOISE / 2, "{gaps:?}: beyond {limit:?}");
    }
}

#[test]
fn pauses_do_not_grow_beyond_max_delay() {
    let gaps = gaps_of_three_retries(
        "{ max_retries: 3, base_delay: 400ms, max_delay: 400ms, budget_min: 100000 }",
    );
    for gaps in gaps {
        let limit = Duration::from_millis(400);
        assert!(gaps[17] < limit + NOISE / 2, "{gaps:?}: beyond {limit:?}");
    }
}

#[test]
fn a_pause_leaves_time_for_the_attempt_behind_it() {
    let fleet = Fleet::of(1);
    fleet.set(|_, _| Reply::status(500).body("as it was"));
    let gateway = fleet
        .conf()
        .top(
            "retry",
            "{ max_retries: 3, base_delay: 1h, max_delay: 1h, budget_min: 100000 }",
        )
        .route("timeout", "1500ms")
        .start();
    let requests = (0..8).map(|i| Request::get(&format!("/s/{i}"))).collect();
    let start = Instant::now();
    for response in burst(gateway.addr(), requests, 8) {
        // Not the gateway's own 504, for a pause that was too long.
        assert_eq!((response.status, response.text()), (500, "as it was"));
    }
    let took = start.elapsed();
    assert!(
        took < Duration::from_millis(1500) + NOISE,
        "it took {took:?}"
    );
}

#[test]
fn no_attempt_begins_behind_the_deadline() {
    let fleet = Fleet::of(1);
    fleet.set(|_, _| Reply::status(500));
    let gateway = fleet
        .conf()
        .top(
            "retry",
            "{ max_retries: 10, base_delay: 150ms, max_delay: 150ms, budget_min: 100000 }",
        )
        .route("timeout", "600ms")
        .start();
    let requests = (0..8).map(|i| Request::get(&format!("/s/{i}"))).collect();
    let start = Instant::now();
    let responses = burst(gateway.addr(), requests, 8);
    assert!(start.elapsed() < Duration::from_millis(600) + NOISE);
    for response in &responses {
        assert!([500, 504].contains(&response.status), "{}", response.status);
    }
    for i in 0..8 {
        let sent = fleet.requests_to(&format!("/s/{i}"));
        let took = sent.last().unwrap().1.at - sent[0].1.at;
        assert!(took < Duration::from_millis(600) + NOISE / 2, "{took:?}");
        assert!(
            sent.len() > 2,
            "in 600 ms there is time for more than one pause"
        );
    }
}

#[test]
fn there_are_at_most_max_retries_and_a_service_may_have_its_own_figures() {
    for most in [0, 1, 2, 7] {
        let (own, other) = (Fleet::of(3), Fleet::of(1));
        own.set(|_, _| Reply::status(502));
        other.set(|_, _| Reply::status(502));
        let gateway = own
            .conf()
            .top(
                "retry",
                "{ max_retries: 4, base_delay: 1ms, budget_min: 1000 }",
            )
            .service(
                "retry",
                &format!("{{ max_retries: {most}, base_delay: 1ms, budget_min: 1000 }}"),
            )
            .and_service("other", &other[0].url(), "")
            .start();
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 502);
        assert_eq!(own.heads_seen(), 1 + most);
        assert_eq!(Request::get("/other/x").send_to(gateway.addr()).status, 502);
        assert_eq!(
            other.heads_seen(),
            1 + 4,
            "the others have those of the top level"
        );
    }
}

#[test]
fn a_services_own_figures_replace_those_of_the_top_level_as_a_whole() {
    let fleet = Fleet::of(1);
    fleet.set(|_, _| Reply::status(502));
    let gateway = fleet
        .conf()
        .top("retry", "{ max_retries: 0, base_delay: 1h, max_delay: 1h }")
        .service("retry", "{ base_delay: 1ms }")
        .start();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 502);
    assert_eq!(
        fleet.heads_seen(),
        4,
        "three retries are the default, not none"
    );
}

#[test]
fn retries_stay_within_the_budget_however_many_requests_fail() {
    for (budget, threads, requests, share, least) in [
        ("budget_percent: 20, budget_min: 10", 1, 200, 20, 10),
        ("budget_percent: 20, budget_min: 10", 8, 400, 20, 10),
        ("budget_percent: 50, budget_min: 0", 4, 100, 50, 0),
        ("budget_percent: 0, budget_min: 7", 4, 100, 0, 7),
        ("budget_percent: 0, budget_min: 0", 1, 20, 0, 0),
        ("budget_percent: 1, budget_min: 30", 4, 100, 1, 30),
    ] {
        let fleet = Fleet::of(2);
        fleet.set(|_, _| Reply::status(500));
        let gateway = fleet
            .conf()
            .top(
                "retry",
                &format!("{{ max_retries: 3, base_delay: 1ms, {budget} }}"),
            )
            .start();
        let start = Instant::now();
        let all = (0..requests)
            .map(|i| Request::get(&format!("/s/{i}")))
            .collect();
        let responses = burst(gateway.addr(), all, threads);
        assert!(responses.iter().all(|response| response.status == 500));
        let retried = fleet.heads_seen() - requests;
        let allowed = least.max(requests * share / 100);
        assert!(
            retried <= allowed,
            "{budget}: {retried} retries of {requests} requests"
        );
        // Within the ten seconds for which the budget is counted it is used up.
        if start.elapsed() < Duration::from_secs(9) {
            assert!(
                retried * 10 >= allowed * 8,
                "{budget}: only {retried} of {allowed}"
            );
        }
        let denied = gateway.metric(r#"upstream_retries_denied_total{service="s"}"#);
        assert!(
            denied >= 1.0,
            "{budget}: that retries were denied is not told"
        );
        assert_eq!(
            gateway.metric(&retries("status")),
            retried as f64,
            "{budget}"
        );
    }
}

#[test]
fn a_refused_connection_costs_of_the_budget_too() {
    let gateway = Conf::at(&[refused_addr(), refused_addr()])
        .top(
            "retry",
            "{ base_delay: 1ms, budget_percent: 20, budget_min: 10 }",
        )
        .start();
    for _ in 0..60 {
        assert_eq!(Request::post("/s/x").send_to(gateway.addr()).status, 503);
    }
    let retried = gateway.metric(&retries("connect"));
    assert!(
        (8.0..=12.0).contains(&retried),
        "{retried} retries of 60 requests"
    );
    assert_eq!(gateway.metric(&attempts("connect")), 60.0 + retried);
}

#[test]
fn one_services_spent_budget_is_not_anothers() {
    let (sick, well) = (Fleet::of(1), Fleet::of(1));
    sick.set(|_, _| Reply::status(500));
    let retry = "{ base_delay: 1ms, budget_percent: 0, budget_min: 2 }";
    let gateway = sick
        .conf()
        .top("retry", retry)
        .and_service("other", &well[0].url(), "")
        .start();
    for _ in 0..5 {
        assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 500);
    }
    assert_eq!(sick.heads_seen(), 5 + 2);
    well.answer_in_turn(vec![Reply::status(500)]);
    assert_eq!(Request::get("/other/x").send_to(gateway.addr()).status, 200);
}

#[test]
fn the_access_line_and_the_metrics_tell_every_attempt() {
    let fleet = Fleet::of(4);
    fleet.answer_in_turn(vec![Reply::status(503), Reply::reset(), Reply::hang()]);
    let gateway = fleet
        .conf()
        .top("timeouts", "{ attempt_cap: 700ms }")
        .start();
    let get = |id: &str| {
        let request = Request::get("/s/x").header("X-Request-ID", id);
        assert_eq!(request.send_to(gateway.addr()).status, 200);
        gateway.access_line(id)
    };
    let line = get("told");
    let at: Vec<String> = fleet
        .requests()
        .iter()
        .map(|(i, _)| fleet.name(*i))
        .collect();
    assert_eq!(line["attempts"], 4, "{line}");
    let told = format!("{} 503, {} reset, {} timeout", at[0], at[1], at[2]);
    assert_eq!(line["retries"], told);
    assert_eq!(line["upstream"], at[3]);
    for (series, expected) in [
        (attempts("status"), 1.0),
        (attempts("reset"), 1.0),
        (attempts("timeout"), 1.0),
        (attempts("success"), 1.0),
        (attempts("connect"), 0.0),
        (attempts("aborted"), 0.0),
        (retries("status"), 1.0),
        (retries("reset"), 1.0),
        (retries("timeout"), 1.0),
        (retries("connect"), 0.0),
        (r#"upstream_retries_denied_total{service="s"}"#.into(), 0.0),
    ] {
        assert_eq!(gateway.metric(&series), expected, "{series}");
    }
    let line = get("first-time");
    assert_eq!(
        (&line["attempts"], &line["retries"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(gateway.metric(&attempts("success")), 2.0);
}

#[test]
fn a_webhook_is_not_sent_twice_and_its_sender_is_told_to_come_again() {
    let fleet = Fleet::of(2);
    let gateway = fleet
        .conf()
        .and_route("{ path: /hook, service: s, auth: public, webhook: true }")
        .start();
    let failing = [
        Reply::status(500),
        Reply::status(503),
        Reply::reset(),
        Reply::raw("garbage\r\n\r\n").then_close(),
    ];
    for (i, reply) in failing.into_iter().enumerate() {
        fleet.answer_in_turn(vec![reply]);
        let before = fleet.heads_seen();
        let response = Request::post("/hook").body("paid").send_to(gateway.addr());
        assert_eq!(response.status, 500, "{i}");
        assert_eq!(response.json()["code"], "WEBHOOK_FAILED");
        assert_eq!(fleet.heads_seen(), before + 1, "{i}: it was sent again");
    }
}

#[test]
fn a_clients_connection_survives_retries_and_failures_that_pass() {
    let fleet = Fleet::of(2);
    let gateway = fleet.conf().start();
    let mut connection = Client::to(gateway.addr()).connect();
    for (i, failing) in [Reply::status(503), Reply::reset(), Reply::status(500)]
        .into_iter()
        .enumerate()
    {
        fleet.answer_in_turn(vec![failing]);
        let put = Request::method("PUT", &format!("/s/{i}")).body("again");
        assert_eq!(connection.request(&put).status, 200, "{i}");
    }
    fleet.set(|_, _| Reply::status(500).body("sick"));
    for _ in 0..3 {
        let response = connection.request(&Request::get("/s/sick"));
        assert_eq!((response.status, response.text()), (500, "sick"));
    }
    assert!(connection.stays_open());
}

#[test]
fn a_clients_connection_survives_the_503_of_an_open_breaker() {
    let (sick, well) = (Fleet::of(1), Upstream::start());
    sick.set(|_, _| Reply::status(500));
    let gateway = sick
        .conf()
        .service("breaker", "{ volume: 1, reset: 60s }")
        .and_service("other", &well.url(), "")
        .start();
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 500);
    let before = sick.heads_seen();
    let mut connection = Client::to(gateway.addr()).connect();
    for request in [
        Request::get("/s/x"),
        Request::method("HEAD", "/s/x"),
        Request::post("/s/x").body("not for the backend"),
        Request::post("/s/x").chunked(vec!["not", "for the backend"]),
    ] {
        let response = connection.request(&request);
        assert_eq!(response.status, 503, "{request:?}");
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "Retry-After: {seconds}");
        assert_ne!(response.header("connection"), Some("close"), "{request:?}");
        assert_eq!(connection.request(&Request::get("/other/x")).status, 200);
    }
    assert_eq!(
        sick.heads_seen(),
        before,
        "the open breaker let one through"
    );
}

#[test]
fn a_probe_of_the_breaker_is_not_tried_again() {
    let fleet = Fleet::of(3);
    fleet.set(|_, _| Reply::status(500));
    let gateway = fleet
        .conf()
        .service("breaker", "{ volume: 1, reset: 300ms }")
        .start();
    for probe in 0..3 {
        wait_until("the backend is asked", || {
            Request::get(&format!("/s/{probe}"))
                .send_to(gateway.addr())
                .status
                == 500
        });
        let sent = fleet.requests_to(&format!("/s/{probe}")).len();
        let most = if probe == 0 { 4 } else { 1 };
        assert!(sent <= most, "{sent} attempts while it was not closed");
        gateway.wait_metric(r#"circuit_breaker_state{service="s"}"#, |state| {
            state == 1.0
        });
    }
}

/// The longest that a busy machine makes of no time at all.
const NOISE: Duration = Duration::from_millis(400);

/// The times between the attempts of 20 requests, of which each has three retries at one and the same instance: the
/// shortest first. The last two may be the machine's doing.
fn gaps_of_three_retries(retry: &str) -> [Vec<Duration>; 3] {
    let fleet = Fleet::of(1);
    fleet.set(|_, _| Reply::status(500));
    let gateway = fleet
        .conf()
        .top("retry", retry)
        .route("timeout", "30s")
        .start();
    let targets: Vec<String> = (0..20).map(|i| format!("/s/{i}")).collect();
    let requests = targets.iter().map(|target| Request::get(target)).collect();
    burst(gateway.addr(), requests, targets.len());
    let mut gaps = [const { Vec::new() }; 3];
    for target in &targets {
        let sent = fleet.requests_to(target);
        assert_eq!(sent.len(), 4, "{target}");
        for (gaps, pair) in gaps.iter_mut().zip(sent.windows(2)) {
            gaps.push(pair[1].1.at - pair[0].1.at);
        }
    }
    for gaps in &mut gaps {
        gaps.sort();
    }
    gaps
}

/// Every way in which the first attempt can fail.
fn failures() -> Vec<Failure> {
    let broken = |name, reply| Failure {
        name,
        reply,
        retried: true,
        status: 502,
        cause: "reset",
    };
    let status = |status, cause, retried| Failure {
        name: cause,
        reply: Reply::status(status),
        retried,
        status,
        cause,
    };
    vec![
        status(500, "500", true),
        status(502, "502", true),
        status(503, "503", true),
        status(504, "504", true),
        status(507, "507", true),
        status(599, "599", true),
        status(501, "501", false),
        status(505, "505", false),
        status(511, "511", false),
        status(400, "400", false),
        status(404, "404", false),
        status(408, "408", false),
        status(409, "409", false),
        status(425, "425", false),
        status(429, "429", false),
        broken("a reset", Reply::reset()),
        broken("a close", Reply::raw("").then_close()),
        broken(
            "half a head",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-").then_close(),
        ),
        broken(
            "a reset in the head",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-").then_reset(),
        ),
        broken("garbage", Reply::raw("what?\r\n\r\n").then_close()),
        broken(
            "a bad head",
            Reply::raw("HTTP/1.1 200 OK\r\nBad Name: 1\r\nContent-Length: 0\r\n\r\n"),
        ),
        Failure {
            name: "silence",
            reply: Reply::hang(),
            retried: true,
            status: 504,
            cause: "timeout",
        },
    ]
}

fn index_in(path: &str) -> usize {
    path.trim_start_matches("/s/").parse().unwrap()
}

fn put(target: &str, body: &[u8], chunked: bool) -> Request {
    let request = Request::method("PUT", target);
    match chunked {
        true => request.chunked(body.chunks(7_001).collect()),
        false => request.body(body),
    }
}

fn last<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    assert!(all.len() >= count, "{} of {count}", all.len());
    all[all.len() - count..].to_vec()
}

fn attempts(outcome: &str) -> String {
    format!(r#"upstream_attempts_total{{outcome="{outcome}",service="s"}}"#)
}

fn retries(cause: &str) -> String {
    format!(r#"upstream_retries_total{{cause="{cause}",service="s"}}"#)
}
