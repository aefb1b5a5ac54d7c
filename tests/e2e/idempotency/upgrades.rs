//! What the next process knows of writes: all that have run, those that run still as soon as they end, and, where it asks another
//! store, who may begin what.

use super::*;
use std::thread;

const TERM: i32 = 15;

/// An heir that says that it is ready, and is gone before it serves.
const GONE: &str = "#!/bin/sh
printf 'agw1\\000\\000\\000\\033\\005ready{\"wants_revocations\":false}' >&0
sleep 0.3
exit 3
";

#[test]
fn a_write_that_ends_in_the_old_process_is_known_in_the_new_one_while_the_old_one_lives() {
    let lived = Lived::begin("{}");
    let Lived {
        backend,
        runtime,
        gateway,
        ..
    } = &lived;
    backend.hold();
    let mut running = Client::to(gateway.addr()).connect();
    running.send(&pay("u1", "k1").bytes());
    backend.wait_requests(1);
    assert_eq!(runtime.upgrade().code, 0);
    thread::scope(|scope| {
        let twin = scope.spawn(|| pay("u1", "k1").send_to(gateway.addr()));
        backend.release();
        let answer = running.read_response();
        let twin = twin.join().unwrap();
        assert_eq!(gateway.wait_exit(Duration::ZERO), None, "it drains still");
        assert!(is_replay(&twin), "{} {}", twin.status, twin.text());
        assert_eq!(twin.body, answer.body);
    });
    assert_eq!(backend.count(), 1);
    lived.ends();
}

#[test]
fn after_an_upgrade_that_failed_half_way_writes_begin_also_while_the_next_one_gets_ready() {
    let lived = Lived::begin("{}");
    let Lived {
        runtime, gateway, ..
    } = &lived;
    let first = pay("u1", "k1").send_to(gateway.addr());
    runtime.break_program(GONE);
    let failed = runtime.upgrade();
    assert!(
        failed.stderr.contains("before it served"),
        "{}",
        failed.stderr
    );
    runtime.break_program("#!/bin/sh\nexec sleep 60\n");
    let mut asked = runtime.begin("upgrade");
    wait_until("the next one is started", || {
        let lines = gateway.log_lines();
        let started = |line: &&Value| line["msg"] == "upgrade: a new process is started";
        lines.iter().filter(started).count() == 2
    });
    let ran = pay("u1", "k2").send_to(gateway.addr());
    assert_eq!(
        (ran.status, is_replay(&ran)),
        (201, false),
        "{}",
        ran.text()
    );
    let again = pay("u1", "k1").send_to(gateway.addr());
    assert!(is_replay(&again) && again.body == first.body);
    let _ = asked.kill();
    let _ = asked.wait();
}

#[test]
fn a_process_that_begins_with_redis_knows_what_ran_without() {
    let redis = Redis::start();
    let lived = Lived::begin("{}");
    let Lived {
        backend,
        runtime,
        gateway,
        ..
    } = &lived;
    let first = pay("u1", "k1").send_to(gateway.addr());
    let latin = &b"caf\xe9 \0\xff"[..];
    backend.set(move |_| Reply::status(200).body(latin));
    assert_eq!(pay("u1", "k2").send_to(gateway.addr()).body, latin);
    backend.set(|_| Reply::reset());
    assert_eq!(pay("u1", "k3").send_to(gateway.addr()).status, 502);
    numbered(backend);
    backend.hold();
    let mut running = Client::to(gateway.addr()).connect();
    running.send(&pay("u1", "k4").bytes());
    backend.wait_requests(4);
    gateway.rewrite_conf(&lived.conf.clone().top("redis", &at(&redis)).yaml());
    assert_eq!(runtime.upgrade().code, 0);
    let again = pay("u1", "k1").send_to(gateway.addr());
    assert!(is_replay(&again) && again.body == first.body);
    let again = pay("u1", "k2").send_to(gateway.addr());
    assert!(is_replay(&again) && again.body == latin);
    let unknown = pay("u1", "k3").send_to(gateway.addr());
    assert_eq!(code(&unknown), (409, "OUTCOME_UNKNOWN".to_owned()));
    thread::scope(|scope| {
        let twin = scope.spawn(|| pay("u1", "k4").send_to(gateway.addr()));
        backend.release();
        let answer = running.read_response();
        let twin = twin.join().unwrap();
        assert!(is_replay(&twin), "{} {}", twin.status, twin.text());
        assert_eq!(twin.body, answer.body);
    });
    assert_eq!(backend.count(), 4);
    let keys = redis.command(&["KEYS", "idem:*"]);
    assert_eq!(keys.split_whitespace().count(), 4, "{keys}");
    lived.ends();
}

#[test]
fn a_redis_that_does_not_take_what_ran_leaves_the_old_process_serving() {
    let nobody = refused_addr();
    let lived = Lived::begin("{}");
    let Lived {
        runtime, gateway, ..
    } = &lived;
    let first = pay("u1", "k1").send_to(gateway.addr());
    let nobody = format!("{{ host: {}, port: {} }}", nobody.ip(), nobody.port());
    gateway.rewrite_conf(&lived.conf.clone().top("redis", &nobody).yaml());
    let failed = runtime.upgrade();
    assert!(
        failed.stderr.contains("redis does not take them"),
        "{}",
        failed.stderr
    );
    let again = pay("u1", "k1").send_to(gateway.addr());
    assert!(is_replay(&again) && again.body == first.body);
    assert_eq!(pay("u1", "k2").send_to(gateway.addr()).status, 201);
}

#[test]
fn an_upgrade_that_fails_half_way_leaves_no_run_in_redis_that_nobody_ends() {
    let redis = Redis::start();
    let lived = Lived::begin("{}");
    let Lived {
        backend,
        runtime,
        gateway,
        ..
    } = &lived;
    // More than Redis will have room for, beside what is small.
    let large = "x".repeat(200 << 10);
    backend.set(move |_| Reply::status(201).body(large.clone()));
    for number in 0..8 {
        let ran = pay("u1", &format!("large-{number}")).send_to(gateway.addr());
        assert_eq!(ran.status, 201, "{}", ran.text());
    }
    numbered(backend);
    backend.hold();
    let mut running = Client::to(gateway.addr()).connect();
    running.send(&pay("u1", "k1").bytes());
    backend.wait_requests(9);
    let room = used_memory(&redis) + (1000 << 10);
    redis.command(&["CONFIG", "SET", "maxmemory", &room.to_string()]);
    gateway.rewrite_conf(&lived.conf.clone().top("redis", &at(&redis)).yaml());
    let failed = runtime.upgrade();
    assert!(
        failed.stderr.contains("redis does not take them"),
        "{}",
        failed.stderr
    );
    let keys = redis.command(&["KEYS", "idem:*"]);
    assert!(!keys.is_empty(), "some of it went in");
    for key in keys.split_whitespace() {
        let word = redis.command(&["GETRANGE", key, "0", "6"]);
        assert_ne!(word, "running", "{key}");
    }
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    backend.release();
    let answer = running.read_response();
    assert_eq!(answer.status, 201);
    assert_eq!(runtime.upgrade().code, 0);
    let again = pay("u1", "k1").send_to(gateway.addr());
    assert!(is_replay(&again), "{} {}", again.status, again.text());
    assert_eq!(again.body, answer.body);
    assert_eq!(backend.count(), 9);
    lived.ends();
}

/// In bytes.
fn used_memory(redis: &Redis) -> usize {
    let info = redis.command(&["INFO", "memory"]);
    let used = info.split_once("used_memory:").expect("it says so").1;
    let used = used.split_whitespace().next().unwrap_or_default();
    used.parse().expect("a number")
}

#[test]
fn while_the_old_process_asks_another_store_the_new_one_begins_no_write_with_a_key() {
    let (one, other) = (Redis::start(), Redis::start());
    for then in [at(&other), "{}".to_owned()] {
        let lived = Lived::begin(&at(&one));
        let Lived {
            backend,
            runtime,
            gateway,
            ..
        } = &lived;
        gateway.wait_metric("redis_up", |up| up == 1.0);
        let mut kept = Client::to(gateway.addr()).connect();
        assert_eq!(kept.request(&pay("u1", "k1")).status, 201);
        gateway.rewrite_conf(&lived.conf.clone().top("redis", &then).yaml());
        assert_eq!(runtime.upgrade().code, 0);
        let before = backend.count();
        for key in ["k1", "k2"] {
            let refused = pay("u1", key).send_to(gateway.addr());
            assert_eq!(code(&refused), (503, "SERVICE_UNAVAILABLE".to_owned()));
            assert_eq!(refused.header("retry-after"), Some("1"));
        }
        let keyless = Request::post("/s/pay").bearer(&token("u1")).body("1");
        assert_eq!(keyless.send_to(gateway.addr()).status, 201);
        assert_eq!(backend.count(), before + 1);
        lived.ends();
        wait_until("it runs", || {
            pay("u1", "k2").send_to(gateway.addr()).status == 201
        });
        assert!(is_replay(&pay("u1", "k2").send_to(gateway.addr())));
        one.command(&["FLUSHALL"]);
    }
}

#[test]
fn an_answer_that_is_no_text_is_handed_over_while_redis_is_away() {
    // It comes back with what it had.
    let disk = Runtime::new();
    let folder = disk.path().to_str().unwrap();
    let kept = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut redis = Redis::start_as(&[&kept[..], &["--dir", folder]].concat());
    let lived = Lived::begin(&at(&redis));
    let Lived {
        backend,
        runtime,
        gateway,
        ..
    } = &lived;
    gateway.wait_metric("redis_up", |up| up == 1.0);
    let latin = &b"caf\xe9 \0\x1f\x8b\xff"[..];
    backend.set(move |_| Reply::status(201).body(latin));
    backend.hold();
    let mut running = Client::to(gateway.addr()).connect();
    running.send(&pay("u1", "k1").bytes());
    backend.wait_requests(1);
    redis.kill();
    gateway.wait_metric("redis_up", |up| up == 0.0);
    backend.release();
    assert_eq!(running.read_response().body, latin);
    assert_eq!(runtime.upgrade().code, 0);
    lived.ends();
    redis.restart();
    let again = within(TAKEN_UP, || {
        let again = pay("u1", "k1").send_to(gateway.addr());
        (again.status == 201).then_some(again)
    });
    let again = again.expect("redis is taken up again");
    assert!(is_replay(&again) && again.body == latin);
    assert_eq!(backend.count(), 1);
}

#[test]
fn a_process_that_ends_while_redis_is_away_says_how_much_is_lost() {
    let mut world = World::shared(1);
    world.backend.hold();
    let mut running = Client::to(world.addr(0)).connect();
    running.send(&pay("u1", "k1").bytes());
    world.backend.wait_requests(1);
    world.redis.as_mut().unwrap().kill();
    world.gateways[0].wait_metric("redis_up", |up| up == 0.0);
    world.backend.release();
    assert_eq!(running.read_response().status, 201);
    world.gateways[0].signal(TERM);
    world.gateways[0].wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.contains("1 ends of writes, revocations")
    });
}

#[test]
fn the_end_of_a_run_that_redis_does_not_know_of_is_known_to_the_new_process() {
    let mut redis = Redis::start();
    let (lived, mut running) = away(&mut redis);
    let Lived {
        backend, gateway, ..
    } = &lived;
    backend.release();
    let answer = running.read_response();
    assert_eq!(answer.status, 201);
    let known = || {
        let again = pay("u1", "k1").send_to(gateway.addr());
        (again.status == 201).then_some(again)
    };
    let again = within(TAKEN_UP, known).expect("its end is known, although Redis is away");
    assert!(is_replay(&again) && again.body == answer.body);
    redis.restart();
    wait_until("Redis is told", || !idem_keys(&redis).is_empty());
    let again = within(TAKEN_UP, known).expect("and there");
    assert!(is_replay(&again) && again.body == answer.body);
    assert_eq!(backend.count(), 1);
    lived.ends();
}

#[test]
fn redis_is_told_of_runs_that_it_missed_as_soon_as_it_is_back() {
    let mut redis = Redis::start();
    let (lived, mut running) = away(&mut redis);
    redis.restart();
    assert_eq!(word_of_the_run(&redis), "running");
    let other = lived.conf.clone().top("redis", &at(&redis)).start();
    other.wait_metric("redis_up", |up| up == 1.0);
    thread::scope(|scope| {
        let twin = scope.spawn(|| pay("u1", "k1").send_to(other.addr()));
        other.wait_metric(
            r#"http_requests_in_progress{method="POST",route="/s/*"}"#,
            |count| count == 1.0,
        );
        lived.backend.release();
        let answer = running.read_response();
        let twin = twin.join().unwrap();
        assert!(is_replay(&twin), "{} {}", twin.status, twin.text());
        assert_eq!(twin.body, answer.body);
    });
    assert_eq!(lived.backend.count(), 1);
    lived.ends();
}

#[test]
fn a_run_that_redis_has_missed_is_known_to_the_process_after_the_next() {
    let mut redis = Redis::start();
    let (lived, _running) = away(&mut redis);
    let first = lived.gateway.successor(1);
    assert_eq!(lived.runtime.upgrade().code, 0);
    wait_until("the one in between is gone", || is_gone(first));
    let soon = std::time::SystemTime::now() + Duration::from_secs(2);
    let soon = soon.duration_since(std::time::UNIX_EPOCH).unwrap();
    let twin = pay("u1", "k1").header("X-Request-Deadline", &soon.as_millis().to_string());
    let known = twin.send_to(lived.gateway.addr());
    assert_eq!(code(&known), (409, "REQUEST_IN_PROGRESS".to_owned()));
    redis.restart();
    assert_eq!(word_of_the_run(&redis), "running");
    assert_eq!(lived.backend.count(), 1);
}

/// How what is known of the only write begins, once Redis is told.
#[track_caller]
fn word_of_the_run(redis: &Redis) -> String {
    let key = within(TAKEN_UP, || idem_keys(redis).pop()).expect("Redis is told");
    redis.command(&["GETRANGE", &key, "0", "6"])
}

/// A gateway that was upgraded from memory to this Redis while that was away, and a payment that runs there still.
#[track_caller]
fn away(redis: &mut Redis) -> (Lived, Connection) {
    let lived = Lived::begin("{}");
    let Lived {
        backend,
        runtime,
        gateway,
        ..
    } = &lived;
    backend.hold();
    let mut running = Client::to(gateway.addr()).connect();
    running.send(&pay("u1", "k1").bytes());
    backend.wait_requests(1);
    gateway.rewrite_conf(&lived.conf.clone().top("redis", &at(redis)).yaml());
    redis.kill();
    assert_eq!(runtime.upgrade().code, 0);
    gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.contains("known to this process alone")
    });
    (lived, running)
}

fn idem_keys(redis: &Redis) -> Vec<String> {
    let keys = redis.command(&["KEYS", "idem:*"]);
    keys.split_whitespace().map(str::to_owned).collect()
}

/// A gateway that is to be replaced, with a second service: what is asked there keeps the old process alive.
struct Lived {
    backend: Upstream,
    other: Upstream,
    _held: Connection,
    runtime: Runtime,
    gateway: Gateway,
    conf: Conf,
}

impl Lived {
    fn begin(redis: &str) -> Self {
        let (backend, other) = (Upstream::start(), Upstream::start());
        numbered(&backend);
        let conf = Conf::of(&[backend.url()])
            .route("auth", "token")
            .route("idempotency", "optional")
            .top("redis", redis)
            .top("retry", "{ max_retries: 0 }")
            .top("timeouts", "{ default: 25s }")
            .and_service("other", &other.url(), "");
        let runtime = Runtime::new();
        let gateway = runtime.of(conf.gateway()).start();
        wait_until("it can be asked", || runtime.control().exists());
        other.hold();
        let mut held = Client::to(gateway.addr()).connect();
        held.send(&Request::get("/other/x").bytes());
        other.wait_requests(1);
        Self {
            backend,
            other,
            _held: held,
            runtime,
            gateway,
            conf,
        }
    }

    /// Lets the old process go.
    #[track_caller]
    fn ends(&self) {
        assert_eq!(self.gateway.wait_exit(Duration::ZERO), None);
        self.other.release();
        let exit = self.gateway.wait_exit(Duration::from_secs(10));
        assert_eq!(exit, Some(0));
    }
}

fn at(redis: &Redis) -> String {
    let (host, port) = (redis.addr().ip(), redis.port());
    format!("{{ host: {host}, port: {port}, command_timeout: 2s }}")
}
