//! Twins: many requests with one key at the same time, in one process and over several, also when one of these is killed
//! or replaced. The backend's own record says how often it ran.

use super::*;
use std::collections::BTreeMap;
use std::thread;

const KILL: i32 = 9;

/// How a twin ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// With this answer.
    Answer(u16, Vec<u8>),
    /// With this refusal.
    Code(u16, String),
    Broken,
}

#[test]
fn a_hundred_twins_in_one_process_have_one_effect_and_one_answer() {
    for world in World::both() {
        world.backend.hold();
        let ends = thread::scope(|scope| {
            let twins = scope.spawn(|| twins(&world, "k1", 100));
            world.backend.wait_requests(1);
            wait_connections(&world, 100);
            world.backend.release();
            twins.join().unwrap()
        });
        assert_eq!(world.backend.count(), 1);
        let [(End::Answer(201, _), 100)] = &counted(&ends)[..] else {
            panic!("{:?}", counted(&ends));
        };
        assert_eq!(
            (world.results("run"), world.results("replayed")),
            (1.0, 99.0)
        );
    }
}

/// As often as E2E_RACES says.
#[test]
fn race_after_race_over_three_processes_has_one_effect() {
    let races = number_of("E2E_RACES", 60);
    let world = World::shared(3);
    let next = AtomicUsize::new(1);
    world.backend.set(move |_| {
        let number = next.fetch_add(1, Ordering::SeqCst);
        // From before all twins are there to long after it.
        let delay = Duration::from_millis(number as u64 * 7 % 50);
        Reply::status(201)
            .body(format!("order {number}"))
            .delay(delay)
    });
    for race in 0..races {
        let ends = twins(&world, &format!("race-{race}"), 24);
        assert_eq!(world.backend.count(), race + 1, "{:?}", counted(&ends));
        let [(End::Answer(201, _), 24)] = &counted(&ends)[..] else {
            panic!("race {race}: {:?}", counted(&ends));
        };
    }
}

/// As often as E2E_KILLS says.
#[test]
fn a_process_that_is_killed_in_the_middle_leaves_one_effect() {
    for round in 0..number_of("E2E_KILLS", 2) {
        for kill_the_runner in [true, false] {
            let world = World::new(Some(Redis::start()), 3, |conf| conf.route("timeout", "4s"));
            world.backend.hold();
            let ends = thread::scope(|scope| {
                let twins = scope.spawn(|| twins(&world, "k1", 100));
                world.backend.wait_requests(1);
                wait_connections(&world, 100);
                let runs = |gateway: &&Gateway| {
                    let run = r#"idempotency_requests_total{result="run"}"#;
                    (gateway.metric(run) == 1.0) == kill_the_runner
                };
                let victim = world.gateways.iter().find(runs).unwrap();
                victim.signal(KILL);
                assert_eq!(victim.wait_exit(Duration::from_secs(5)), Some(128 + KILL));
                world.backend.release();
                twins.join().unwrap()
            });
            assert_eq!(world.backend.count(), 1, "{:?}", counted(&ends));
            let counted = counted(&ends);
            println!("round {round}, the runner was killed: {kill_the_runner}: {counted:?}");
            let answers = counted
                .iter()
                .filter(|(end, _)| matches!(end, End::Answer(..)))
                .count();
            let expected = |end: &End| match end {
                End::Answer(status, _) => *status == 201,
                End::Broken => true,
                End::Code(409, code) => {
                    // The latter is for who came a second behind the first.
                    kill_the_runner && ["REQUEST_IN_PROGRESS", "OUTCOME_UNKNOWN"].contains(&&**code)
                }
                End::Code(..) => false,
            };
            assert!(counted.iter().all(|(end, _)| expected(end)), "{counted:?}");
            assert_eq!(answers, usize::from(!kill_the_runner), "{counted:?}");
            let broken = counted.iter().find(|(end, _)| *end == End::Broken);
            let broken = broken.map_or(0, |(_, count)| *count);
            assert!(
                broken <= 34,
                "those of the one that was killed: {counted:?}"
            );
            // Later ones hear how it is.
            let alive: Vec<&Gateway> = world
                .gateways
                .iter()
                .filter(|g| g.wait_exit(Duration::ZERO).is_none())
                .collect();
            assert_eq!(alive.len(), 2);
            for gateway in alive {
                let told = within(Duration::from_secs(10), || {
                    let told = pay("u1", "k1").send_to(gateway.addr());
                    (told.status == 201 || code(&told).1 == "OUTCOME_UNKNOWN").then_some(told)
                });
                let told = told.expect("it is told");
                assert_eq!(told.status == 201, !kill_the_runner);
            }
            assert_eq!(world.backend.count(), 1);
        }
    }
}

#[test]
fn an_answer_is_in_redis_before_its_client_has_it() {
    let world = World::shared(1);
    for size in [0, 10, 100_000] {
        for turn in 0..20 {
            world
                .backend
                .set(move |_| Reply::status(200).body(noise(size)));
            let key = format!("k{size}-{turn}");
            let before = world.keys();
            assert_eq!(pay("u1", &key).send_to(world.addr(0)).status, 200);
            let fresh = world.keys().into_iter().find(|key| !before.contains(key));
            let record = world
                .redis()
                .command(&["GET", &fresh.expect("it is there")]);
            assert!(record.starts_with("done "), "{}", &record[..60]);
        }
    }
}

/// A batch with one payment.
fn batch(key: &str) -> Request {
    let call = json!({
        "id": "a", "method": "POST", "path": "/s/pay", "body": {"amount": 100},
        "headers": {"Idempotency-Key": key},
    });
    Request::post("/api/v1/batch")
        .bearer(&token("u1"))
        .json(&json!({ "calls": [call] }))
}

#[test]
fn the_end_of_a_batchs_call_is_in_redis_before_the_client_has_it() {
    const AWAY: Duration = Duration::from_millis(500);
    let world = World::shared(1);
    for size in [0, 10, 100_000] {
        world
            .backend
            .set(move |_| Reply::status(200).body(noise(size)));
        let key = format!("k{size}");
        let (before, ran) = (world.keys(), world.backend.count());
        world.backend.hold();
        let mut client = Client::to(world.addr(0)).connect();
        client.send(&batch(&key).bytes());
        world.backend.wait_requests(ran + 1);
        world.redis().freeze();
        world.backend.release();
        let thawed = thread::scope(|scope| {
            let thaws = scope.spawn(|| {
                thread::sleep(AWAY);
                let at = Instant::now();
                world.redis().thaw();
                at
            });
            let response = client.read_response();
            let told = Instant::now();
            assert_eq!(response.json()["results"][0]["status"], 200);
            told.checked_duration_since(thaws.join().unwrap())
        });
        assert!(thawed.is_some(), "{size}: told before it was written down");
        let fresh = world.keys().into_iter().find(|key| !before.contains(key));
        let record = world
            .redis()
            .command(&["GET", &fresh.expect("it is there")]);
        assert!(record.starts_with("done "), "{}", &record[..60]);
    }
}

#[test]
fn a_write_is_the_same_by_itself_and_in_a_batch() {
    let world = World::alone();
    let first = pay("u1", "k1").send_to(world.addr(0));
    let result = batch("k1").send_to(world.addr(0)).json()["results"][0].clone();
    assert_eq!(result["headers"]["idempotent-replayed"], "true", "{result}");
    assert_eq!(
        (&result["status"], &result["body"]),
        (&json!(201), &first.json())
    );
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn a_call_that_ends_behind_its_batch_is_told_to_the_log() {
    let world = World::new(Some(Redis::start()), 1, |conf| {
        conf.top("batch", "{ timeout: 300ms }")
    });
    world.redis().freeze();
    let late = batch("k1")
        .header("X-Request-ID", "late")
        .send_to(world.addr(0));
    let result = late.json()["results"][0].clone();
    assert_eq!(
        result["status"], 504,
        "Redis may take longer than the batch"
    );
    let gateway = &world.gateways[0];
    assert_eq!(gateway.access_lines_of("late.1"), 0);
    let line = gateway.access_line("late.1");
    assert_eq!(line["parentRequestId"], "late");
    world.redis().thaw();
    assert_eq!(world.backend.count(), 0);
}

#[test]
fn an_answer_comes_again_from_processes_that_began_later() {
    let mut world = World::shared(2);
    let first = pay("u1", "k1").send_to(world.addr(0));
    world.gateways.clear();
    world.start_another();
    let again = pay("u1", "k1").send_to(world.addr(0));
    assert!(is_replay(&again) && again.body == first.body);
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn without_redis_a_new_process_takes_over_what_has_run_and_what_runs() {
    let backend = Upstream::start();
    numbered(&backend);
    let runtime = Runtime::new();
    let conf = Conf::of(&[backend.url()])
        .route("auth", "token")
        .route("idempotency", "optional");
    let gateway = runtime.of(conf.gateway()).start();
    wait_until("it can be asked", || runtime.control().exists());
    let first = pay("u1", "k1").send_to(gateway.addr());
    backend.hold();
    let mut running = Client::to(gateway.addr()).connect();
    running.send(&pay("u1", "k2").bytes());
    backend.wait_requests(2);
    assert_eq!(runtime.upgrade().code, 0);
    let again = pay("u1", "k1").send_to(gateway.addr());
    assert!(is_replay(&again) && again.body == first.body);
    thread::scope(|scope| {
        let twin = scope.spawn(|| pay("u1", "k2").send_to(gateway.addr()));
        // The old process is at it still, and tells the new one at its end.
        assert_eq!(gateway.wait_exit(Duration::from_millis(200)), None);
        backend.release();
        let answer = running.read_response();
        let twin = twin.join().unwrap();
        assert!(is_replay(&twin), "{} {}", twin.status, twin.text());
        assert_eq!(twin.body, answer.body);
    });
    assert_eq!(backend.count(), 2);
}

/// So many twins at once, over all processes in turns.
fn twins(world: &World, key: &str, count: usize) -> Vec<End> {
    let twin = pay("u1", key).bytes();
    thread::scope(|scope| {
        let twins: Vec<_> = (0..count)
            .map(|turn| {
                let (addr, twin) = (world.addr(turn), &twin);
                scope.spawn(move || {
                    let mut connection =
                        Client::to(addr).patience(Duration::from_secs(30)).connect();
                    connection.send(twin);
                    match connection.try_read_response() {
                        Err(_) => End::Broken,
                        Ok(answer) if answer.status < 400 => {
                            End::Answer(answer.status, answer.body)
                        }
                        Ok(refused) => {
                            let (status, code) = code(&refused);
                            End::Code(status, code)
                        }
                    }
                })
            })
            .collect();
        twins.into_iter().map(|twin| twin.join().unwrap()).collect()
    })
}

fn counted(ends: &[End]) -> Vec<(End, usize)> {
    let mut counted: BTreeMap<End, usize> = BTreeMap::new();
    for end in ends {
        *counted.entry(end.clone()).or_default() += 1;
    }
    counted.into_iter().collect()
}

/// Waits until so many clients are connected in all.
#[track_caller]
fn wait_connections(world: &World, count: usize) {
    wait_until("all twins are there", || {
        let open = world
            .gateways
            .iter()
            .map(|g| g.metric("downstream_connections"));
        open.sum::<f64>() >= count as f64
    });
}

fn number_of(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |number| number.parse().unwrap())
}
