//! Who is gone: his run is finished as long as there is something to keep, and no longer.

use super::*;
use crate::support::http2::{Http2, run};

/// Longer than any wait of these tests.
const PIECES: usize = 400;
const EVERY: Duration = Duration::from_millis(50);

/// An answer of which nothing is kept, from its head on or once it turns out too large.
fn endless() -> [(&'static str, Reply); 2] {
    let begin = |kind: &str| format!("HTTP/1.1 200 OK\r\n{kind}Transfer-Encoding: chunked\r\n\r\n");
    let events = std::iter::once(begin("Content-Type: text/event-stream\r\n"))
        .chain((0..PIECES).map(|_| "9\r\ndata: 1\n\n\r\n".to_owned()));
    let piece = format!("200\r\n{}\r\n", "x".repeat(0x200));
    let large = std::iter::once(begin("")).chain((0..PIECES).map(|_| piece.clone()));
    [
        ("events", Reply::paced(events, EVERY)),
        ("large", Reply::paced(large, EVERY)),
    ]
}

fn world() -> World {
    World::new(None, 1, |conf| {
        conf.top("idempotency", "{ largest: 1KiB }")
            .top("timeouts", "{ default: 60s }")
    })
}

#[test]
fn once_nothing_is_kept_an_answer_ends_with_its_client() {
    let world = world();
    for (what, reply) in endless() {
        for reset in [true, false] {
            world.backend.set({
                let reply = reply.clone();
                move |_| reply.clone()
            });
            let key = format!("{what}-{reset}");
            let mut connection = Client::to(world.addr(0)).connect();
            connection.send(&pay("u1", &key).bytes());
            assert!(connection.read_up_to(200).starts_with(b"HTTP/1.1 200"));
            match reset {
                true => connection.reset(),
                false => drop(connection),
            }
            wait_until(&format!("{key} has ended"), || {
                world.backend.open_connections() == 0
            });
            let again = pay("u1", &key).send_to(world.addr(0));
            assert_eq!(code(&again), (409, "ANSWER_NOT_KEPT".to_owned()));
        }
    }
    assert_eq!(world.backend.count(), 4);
}

#[test]
fn once_nothing_is_kept_an_answer_ends_with_its_http2_stream() {
    let world = world();
    for (what, reply) in endless() {
        world.backend.set(move |_| reply.clone());
        run(async {
            let (client, _task) = Http2::connect(world.addr(0)).await;
            let request = client
                .request("POST", "/s/pay")
                .header("authorization", format!("Bearer {}", token("u1")))
                .header("content-type", "application/json")
                .header("idempotency-key", what);
            let (answer, mut stream) = client.begin(request, false).await;
            let body = json!({"amount": 100}).to_string();
            stream.send_data(body.into(), true).unwrap();
            let answer = answer.await.unwrap();
            let mut body = answer.into_body();
            assert!(body.data().await.unwrap().is_ok());
            stream.send_reset(h2::Reason::CANCEL);
            drop((body, stream));
            for _ in 0..250 {
                if world.backend.open_connections() == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert_eq!(world.backend.open_connections(), 0, "{what}");
        let again = pay("u1", what).send_to(world.addr(0));
        assert_eq!(code(&again), (409, "ANSWER_NOT_KEPT".to_owned()));
    }
}

#[test]
fn the_time_that_redis_takes_at_the_end_is_not_the_clients() {
    let world = World::new(Some(Redis::start()), 1, |conf| conf.route("timeout", "3s"));
    for (number, reply) in [
        // Its head is with the client before its end is held back.
        Reply::paced(
            ["HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\n", "paid"],
            Duration::from_millis(50),
        ),
        Reply::status(201).body(noise(50_000)),
        Reply::status(204),
    ]
    .into_iter()
    .enumerate()
    {
        world.backend.set(move |_| reply.clone());
        world.backend.hold();
        let key = format!("k{number}");
        let mut connection = Client::to(world.addr(0)).connect();
        let begun = Instant::now();
        connection.send(&pay("u1", &key).bytes());
        world.backend.wait_requests(number + 1);
        // The answer comes right before the deadline, and its end is written down behind it.
        let late = begun + Duration::from_millis(2600);
        std::thread::sleep(late.saturating_duration_since(Instant::now()));
        world.redis().freeze();
        world.backend.release();
        std::thread::sleep(Duration::from_millis(700));
        world.redis().thaw();
        let answer = connection.read_response();
        assert!([201, 204].contains(&answer.status), "{}", answer.text());
        let again = pay("u1", &key).send_to(world.addr(0));
        let what = format!("{key}: {} {}", again.status, again.body.len());
        assert!(is_replay(&again) && again.body == answer.body, "{what}");
    }
}

#[test]
fn an_attempt_that_takes_too_long_is_not_sent_a_second_time_beside_it() {
    let world = World::new(None, 1, |conf| {
        conf.top("timeouts", "{ attempt_cap: 300ms }").top(
            "retry",
            "{ max_retries: 3, base_delay: 1ms, budget_min: 1000 }",
        )
    });
    world.backend.set(|_| Reply::hang());
    let late = pay("u1", "k1").send_to(world.addr(0));
    assert_eq!(late.status, 504, "{}", late.text());
    let again = pay("u1", "k1").send_to(world.addr(0));
    assert_eq!(code(&again), (409, "OUTCOME_UNKNOWN".to_owned()));
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn who_has_filled_his_share_of_the_memory_leaves_the_others_theirs() {
    let world = World::alone();
    let body = noise(200_000);
    world.backend.set({
        let body = body.clone();
        move |_| Reply::status(200).body(body.clone())
    });
    let key = |number: usize| format!("k{number}");
    for number in 0..12 {
        assert_eq!(pay("u1", &key(number)).send_to(world.addr(0)).status, 200);
    }
    // Half of 4 MiB is for answers.
    let kept = |user: &str, number: usize| {
        let again = pay(user, &key(number)).send_to(world.addr(0));
        match again.status {
            200 => is_replay(&again) && again.body == body,
            _ => {
                assert_eq!(code(&again), (409, "ANSWER_NOT_KEPT".to_owned()));
                false
            }
        }
    };
    let mine: Vec<bool> = (0..12).map(|number| kept("u1", number)).collect();
    assert_eq!(
        mine,
        [[true; 6], [true, true, true, true, false, false]].concat()
    );
    assert_eq!(pay("u2", &key(0)).send_to(world.addr(0)).status, 200);
    assert!(kept("u2", 0));
    assert_eq!(world.backend.count(), 13);
}
