//! A new process takes the place of the one that serves: nothing is refused, dropped or forgotten; and whatever goes wrong
//! on the way, the old one serves on and says why.

use crate::support::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

const TERM: i32 = 15;
const USR2: i32 = 12;

#[test]
fn no_request_is_lost_while_one_process_follows_the_other() {
    let _alone = alone();
    let upgrades = std::env::var("E2E_UPGRADES").map_or(3, |n| n.parse().unwrap());
    let (_backend, runtime, gateway) = world("");
    let ms = Duration::from_millis;
    let load = Load::on(gateway.addr())
        .clients("kept", 8, ms(2), |i| Request::get(&format!("/s/{i}")))
        .clients("rare", 2, ms(300), |i| Request::get(&format!("/s/{i}")))
        .clients("new", 4, ms(2), |i| {
            Request::get(&format!("/s/{i}")).header("Connection", "close")
        })
        .clients("sent", 2, ms(2), |i| {
            Request::post(&format!("/s/{i}")).body("x".repeat(5_000))
        })
        .start();
    for upgrade in 1..=upgrades {
        let before = load.answered();
        wait_until("there is load", || load.answered() > before + 100);
        let done = runtime.upgrade();
        assert_eq!((done.code, &*done.stderr), (0, ""));
        let pid = gateway.successor(upgrade);
        assert!(
            done.stdout.contains(&format!("process {pid} serves")),
            "{}",
            done.stdout
        );
    }
    let before = load.answered();
    wait_until("there is load", || load.answered() > before + 100);
    let traffic = load.stop();
    assert!(traffic.bad().is_empty(), "{traffic}: {}", traffic.bad());
    println!("{upgrades} upgrades: {traffic}");
    // Each left as soon as it was idle.
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    let pids = gateway.successors();
    for pid in &pids[..upgrades - 1] {
        wait_until("the replaced one has ended", || is_gone(*pid));
    }
    assert!(!is_gone(pids[upgrades - 1]));
}

#[test]
fn what_is_in_flight_is_finished_by_the_old_process_which_then_goes_at_once() {
    let (backend, runtime, gateway) = world("");
    backend.hold();
    let mut client = Client::to(gateway.addr()).connect();
    client.send(&Request::get("/s/held").bytes());
    wait_until("the backend has it", || backend.count() == 1);
    assert_eq!(runtime.upgrade().code, 0);
    assert_eq!(gateway.wait_exit(Duration::from_millis(300)), None);
    backend.release();
    let response = client.read_response();
    assert_eq!(
        (response.status, response.header("connection")),
        (200, Some("close"))
    );
    let answered = Instant::now();
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    let took = answered.elapsed();
    assert!(took < Duration::from_millis(400), "{took:?}");
    assert_eq!(get(&gateway).status, 200);
}

#[test]
fn who_was_replaced_and_is_told_to_end_finishes_what_it_has_and_ends_at_once_the_second_time() {
    for signals in [1, 2] {
        let (backend, runtime, gateway) = world("");
        backend.hold();
        let mut client = Client::to(gateway.addr()).connect();
        client.send(&Request::get("/s/1").bytes());
        backend.wait_requests(1);
        assert_eq!(runtime.upgrade().code, 0);
        gateway.signal(15);
        if signals == 2 {
            wait_until("the old process is gone", || {
                gateway.signal(15);
                gateway.wait_exit(Duration::from_millis(50)) == Some(130)
            });
            continue;
        }
        assert_eq!(gateway.wait_exit(Duration::from_millis(300)), None);
        backend.release();
        assert_eq!(client.read_response().status, 200);
        assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    }
}

#[test]
fn a_request_on_an_idle_connection_is_answered_after_the_upgrade_too() {
    let (_backend, runtime, gateway) = world("");
    let mut client = Client::to(gateway.addr()).connect();
    assert_eq!(client.request(&Request::get("/s/1")).status, 200);
    assert_eq!(runtime.upgrade().code, 0);
    let response = client.request(&Request::get("/s/2"));
    assert_eq!(
        (response.status, response.header("connection")),
        (200, Some("close"))
    );
    assert!(client.is_closed());
}

#[test]
fn ready_says_yes_throughout_an_upgrade() {
    let (_backend, runtime, gateway) = world("");
    let mut probe = Client::to(gateway.addr()).connect();
    assert_eq!(probe.request(&Request::get("/ready")).status, 200);
    assert_eq!(runtime.upgrade().code, 0);
    assert_eq!(
        probe.request(&Request::get("/ready")).status,
        200,
        "on the old connection"
    );
    assert_eq!(Request::get("/ready").send_to(gateway.addr()).status, 200);
    assert_eq!(
        Request::get("/ready")
            .send_to(gateway.private_addr())
            .status,
        200
    );
}

// --- what is known lives on ---

#[test]
fn a_limit_that_is_spent_is_spent_after_the_upgrade_too() {
    let (backend, runtime, gateway) = world("limits: { global: { max: 3, window: 60s } }");
    for _ in 0..2 {
        assert_eq!(get(&gateway).status, 200);
    }
    // The third is under way while its process is replaced.
    backend.hold();
    let mut client = Client::to(gateway.addr()).connect();
    client.send(&Request::get("/s/held").bytes());
    wait_until("the backend has it", || backend.count() == 3);
    assert_eq!(runtime.upgrade().code, 0);
    let refused = get(&gateway);
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(number(&refused, "retry-after") > 50);
    backend.release();
    assert_eq!(client.read_response().status, 200);
}

#[test]
fn what_the_old_process_grants_in_its_last_moments_counts_in_the_new_one() {
    let (_backend, runtime, gateway) = world("limits: { global: { max: 3, window: 60s } }");
    let mut kept = Client::to(gateway.addr()).connect();
    assert_eq!(kept.request(&Request::get("/s/1")).status, 200);
    assert_eq!(runtime.upgrade().code, 0);
    assert_eq!(
        kept.request(&Request::get("/s/2")).status,
        200,
        "still by the old one"
    );
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("the old process has ended"))
    });
    assert_eq!(get(&gateway).status, 200);
    assert_eq!(get(&gateway).status, 429);
}

#[test]
fn an_open_breaker_stays_open_and_an_ejected_instance_out() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let runtime = Runtime::new();
    let gateway = Gateway::with(&format!(
        "health: {{ enabled: false }}
retry: {{ max_retries: 0 }}
outlier: {{ consecutive: 2, ejection: 60s, max_ejection: 60s }}
breaker: {{ volume: 4, reset: 60s }}
services: {{ s: {{ url: '{}' }}, two: {{ url: '{},{}', breaker: {{ volume: 1000 }} }} }}
routes:
  - {{ path: /s/*, service: s, auth: public }}
  - {{ path: /two/*, service: two, auth: public }}
",
        sick.url(),
        sick.url(),
        well.url()
    ));
    let gateway = runtime.of(gateway).start();
    let open = r#"circuit_breaker_state{service="s"}"#;
    let out = r#"upstream_ejected_instances{service="two"}"#;
    for i in 0..40 {
        Request::get("/s/x").send_to(gateway.addr());
        Request::get(&format!("/two/{i}")).send_to(gateway.addr());
    }
    gateway.wait_metric(open, |state| state == 1.0);
    gateway.wait_metric(out, |count| count == 1.0);
    let seen = sick.count();
    assert_eq!(runtime.upgrade().code, 0);
    assert_eq!((gateway.metric(open), gateway.metric(out)), (1.0, 1.0));
    let refused = Request::get("/s/x").send_to(gateway.addr());
    assert_eq!(refused.status, 503);
    assert!((50..=60).contains(&number(&refused, "retry-after")));
    for _ in 0..10 {
        assert_eq!(Request::get("/two/x").send_to(gateway.addr()).status, 200);
    }
    assert_eq!(sick.count(), seen, "nobody had to find out again");
}

#[test]
fn a_token_of_an_issuer_that_is_away_is_verified_after_the_upgrade_too() {
    let pair = KeyPair::p256();
    let issuer = Upstream::start();
    let set = json!({"keys": [pair.jwk("k1")]});
    issuer.set(move |_| Reply::json(set.clone()));
    let backend = Upstream::start();
    let runtime = Runtime::new();
    let gateway = Gateway::with(&format!(
        "services: {{ s: {{ url: '{}' }} }}\nroutes: [{{ path: /s/*, service: s, auth: token }}]",
        backend.url()
    ));
    let gateway = gateway.env("JWT_JWKS_URL", format!("{}/jwks", issuer.url()));
    let gateway = runtime.of(gateway).start();
    let token = pair.sign(&Token::user("u1").kid("k1"));
    let ask = || {
        Request::get("/s/x")
            .bearer(&token)
            .send_to(gateway.addr())
            .status
    };
    wait_until("the keys are known", || ask() == 200);
    issuer.stop();
    for count in 1..=2 {
        assert_eq!(runtime.upgrade().code, 0);
        gateway.successor(count);
        assert_eq!(ask(), 200);
    }
}

#[test]
fn who_logged_out_stays_out_and_refresh_tokens_stay_in_their_order() {
    const SECRET: &str = "e2e-refresh-secret-0123456789-abcdefghij";
    let backend = Upstream::start();
    let runtime = Runtime::new();
    let gateway = Gateway::platform_unchecked()
        .all_services_at(&backend.url())
        .env("JWT_REFRESH_SECRET", SECRET);
    let gateway = runtime.of(gateway).start();
    let (out, first) = (
        Token::user("u1").hs256(),
        Token::user("u2").claim("type", json!("refresh")),
    );
    let refresh = |token: &str| {
        let body = json!({"refreshToken": token});
        Request::post("/api/v1/auth/refresh")
            .json(&body)
            .send_to(gateway.addr())
    };
    let events = |token: &str| {
        Request::get("/api/v1/tickets/x")
            .bearer(token)
            .send_to(gateway.addr())
            .status
    };
    let answer = refresh(&first.signed_with(SECRET));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let second = answer.json()["refreshToken"].as_str().unwrap().to_owned();
    let logout = Request::post("/api/v1/auth/logout")
        .bearer(&out)
        .json(&json!({}));
    assert_eq!(logout.send_to(gateway.addr()).status, 200);
    assert_eq!(events(&out), 401);
    assert_eq!(runtime.upgrade().code, 0);
    gateway.successor(1);
    assert_eq!(events(&out), 401);
    let answer = refresh(&second);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        refresh(&second).status,
        401,
        "it counts once, in both processes together"
    );
}

#[test]
fn what_redis_said_last_holds_in_a_new_process_that_cannot_reach_it() {
    let mut redis = Redis::start();
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let gateway = Gateway::with(&format!(
        "services: {{ s: {{ url: '{}' }} }}\nroutes: [{{ path: /s/*, service: s, auth: token-or-key }}]",
        backend.url()
    ));
    let gateway = gateway
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port());
    let gateway = runtime.of(gateway).start();
    gateway.wait_metric("redis_up", |up| up == 1.0);
    redis.command(&["SET", "apikey:known", r#"{"id": "p", "tenant_id": "t"}"#]);
    let revoked = Token::user("u1").hs256();
    redis.command(&["SET", &format!("session:blacklist:{revoked}"), "1"]);
    let by_key = |key: &str| {
        Request::get("/s/x")
            .header("X-API-Key", key)
            .send_to(gateway.addr())
            .status
    };
    let by_token = |token: &str| {
        Request::get("/s/x")
            .bearer(token)
            .send_to(gateway.addr())
            .status
    };
    wait_until("the key is known", || by_key("known") == 200);
    wait_until("the token is revoked", || by_token(&revoked) == 401);

    assert_eq!(runtime.upgrade().code, 0);
    gateway.successor(1);
    assert_eq!(
        gateway.metric("redis_up"),
        1.0,
        "it is there with the first request"
    );
    assert_eq!((by_key("known"), by_token(&revoked)), (200, 401));

    redis.kill();
    gateway.wait_metric("redis_up", |up| up == 0.0);
    for count in 2..=3 {
        assert_eq!(runtime.upgrade().code, 0);
        gateway.successor(count);
        assert_eq!(
            (by_key("known"), by_token(&revoked)),
            (200, 401),
            "process {count}"
        );
        assert_eq!(by_key("never-asked"), 503);
        assert_eq!(by_token(&token::customer()), 200);
    }
}

// --- what goes wrong ---

#[test]
fn a_binary_that_is_broken_missing_ends_or_hangs_leaves_the_old_process_serving() {
    let (_backend, runtime, gateway) = world("server: { upgrade_timeout: 4s }");
    let cases = [
        ("\u{7f}ELF but garbage", "Exec format error"),
        (
            "#!/bin/sh\necho no such library >&2\nexit 7\n",
            "ended before it was ready (exit status: 7)",
        ),
        (
            "#!/bin/sh\nexec sleep 60\n",
            "took too long before it was ready",
        ),
        (
            "#!/bin/sh\nhead -c 100 /dev/zero >&0\nsleep 60\n",
            "is no frame",
        ),
        (
            "#!/bin/sh\nkill -9 $$\n",
            "ended before it was ready (signal: 9",
        ),
    ];
    for (count, (program, reason)) in cases.into_iter().enumerate() {
        runtime.break_program(program);
        assert_failed(&runtime, &gateway, reason);
        let failed = r#"upgrades_total{outcome="failed"}"#;
        assert_eq!(gateway.metric(failed), count as f64 + 1.0);
    }
    runtime.lose_program();
    assert_failed(&runtime, &gateway, "No such file or directory");
    let files: Vec<_> = std::fs::read_dir(runtime.control().parent().unwrap())
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let left = children_of(gateway.pid());
    assert!(left.is_empty(), "{left:?} were left behind");
    runtime.mend();
    assert_eq!(runtime.upgrade().code, 0, "and one that is good is taken");
    gateway.successor(1);
    assert_eq!(get(&gateway).status, 200);
}

#[test]
fn a_broken_file_leaves_the_old_process_serving_and_every_fault_is_told() {
    let (_backend, runtime, gateway) = world("");
    gateway.rewrite_conf("server: { prot: 1 }\nlimits: { global: { max: 0 } }\n");
    let failed = assert_failed(&runtime, &gateway, "unknown field `prot`");
    assert!(failed.contains("server"), "{failed}");
    gateway.rewrite_conf("services: [");
    assert_failed(&runtime, &gateway, "is not YAML");
}

#[test]
fn a_runtime_directory_that_is_gone_leaves_the_old_process_serving() {
    let (_backend, runtime, gateway) = world("");
    runtime.lose();
    let failed = runtime.upgrade();
    assert_eq!(failed.code, 1);
    assert!(
        failed.stderr.contains("control.sock") && failed.stderr.contains("No such file"),
        "{}",
        failed.stderr
    );
    // Nor does a signal make an heir that could not be asked for anything.
    gateway.signal(USR2);
    gateway.wait_failed_upgrade("no control socket can be made");
    assert_eq!(get(&gateway).status, 200);
    runtime.make();
    gateway.signal(USR2);
    gateway.successor(1);
    assert_eq!(
        runtime.upgrade().code,
        0,
        "the new one is there to be asked"
    );
}

#[test]
fn a_full_disk_leaves_the_old_process_serving() {
    let (_backend, runtime, gateway) = world("");
    let full = runtime.fill();
    gateway.signal(USR2);
    gateway.wait_failed_upgrade("No space left on device");
    assert_eq!(get(&gateway).status, 200);
    drop(full);
    assert_eq!(runtime.upgrade().code, 0);
    gateway.successor(1);
    assert_eq!(get(&gateway).status, 200);
}

#[test]
fn without_a_runtime_directory_it_serves_and_a_signal_upgrades_it() {
    let (_backend, gateway) = {
        let backend = Upstream::start();
        let conf = yaml(&backend, "server: { runtime_dir: /nowhere/at/all }");
        (backend, Gateway::with(&conf).start())
    };
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("no control socket can be made"))
    });
    gateway.signal(USR2);
    gateway.successor(1);
    assert_eq!(get(&gateway).status, 200);
    let mut nowhere = Command::new(env!("CARGO_BIN_EXE_api-gateway"));
    let asked = nowhere.arg("upgrade").env_clear().output().unwrap();
    assert_eq!(asked.status.code(), Some(1));
    let why = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(why.contains("RUNTIME_DIRECTORY"), "{why}");
}

#[test]
fn one_upgrade_at_a_time_and_none_while_the_process_ends() {
    let (backend, runtime, gateway) = world("server: { upgrade_timeout: 20s }");
    runtime.break_program("#!/bin/sh\nexec sleep 60\n");
    let first = runtime.begin("upgrade");
    await_started(&gateway);
    let second = runtime.upgrade();
    assert_eq!(second.code, 1);
    assert!(
        second.stderr.contains("under way already"),
        "{}",
        second.stderr
    );
    assert_eq!(get(&gateway).status, 200);

    // SIGTERM in the midst of it: who was to take over is ended, the request in flight is finished.
    let child = children_of(gateway.pid()).pop().expect("it has a child");
    backend.hold();
    let mut client = Client::to(gateway.addr()).connect();
    client.send(&Request::get("/s/held").bytes());
    wait_until("the backend has it", || backend.count() == 2);
    gateway.signal(TERM);
    let first = first.wait_with_output().unwrap();
    assert_eq!(first.status.code(), Some(1));
    let why = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(why.contains("told to end"), "{why}");
    wait_until("the child is gone", || is_gone(child));
    let third = runtime.upgrade();
    assert_eq!(third.code, 1);
    assert!(third.stderr.contains("about to end"), "{}", third.stderr);
    backend.release();
    assert_eq!(client.read_response().status, 200);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    assert!(!runtime.control().exists(), "nobody answers there any more");
}

#[test]
fn who_waits_in_a_pause_is_served_by_a_process_that_is_told_to_end_meanwhile() {
    let (_backend, runtime, gateway) = world("");
    runtime.break_program(&format!("#!/bin/sh\n{SAYS_READY}\nsleep 3\nexit 7\n"));
    let upgrade = runtime.begin("upgrade");
    await_pause(&gateway);
    let mut waits = Client::to(gateway.addr()).connect();
    waits.send(&Request::get("/s/waits").bytes());
    gateway.signal(TERM);
    let response = waits.read_response();
    assert_eq!(
        (response.status, response.header("connection")),
        (200, Some("close"))
    );
    let upgrade = upgrade.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&upgrade.stderr).into_owned();
    assert!(why.contains("ended before it served"), "{why}");
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn a_signal_to_end_in_a_pause_is_passed_on_to_who_takes_over() {
    let (_backend, runtime, gateway) = world("");
    let told = runtime.control().with_file_name("told");
    runtime.break_program(&format!(
        "#!/bin/sh
trap ': > \"$RUNTIME_DIRECTORY/told\"; exit 0' TERM
{SAYS_READY}
sleep 2
printf 'agw1\\000\\000\\000\\004\\007servingnull' >&0
while :; do sleep 0.1; done
"
    ));
    let upgrade = runtime.begin("upgrade");
    await_pause(&gateway);
    gateway.signal(TERM);
    let upgrade = upgrade.wait_with_output().unwrap();
    assert_eq!(upgrade.status.code(), Some(0));
    wait_until("the new one is told to end", || told.exists());
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn more_sockets_than_one_message_holds_are_handed_over() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let path = runtime.path().join("last.sock");
    // Those that there were keep their queues, and what is added comes beside them.
    let with = |count: usize| {
        let at_any_port = "{ address: '127.0.0.1:0' }, ".repeat(count - 1);
        let last = format!("{{ address: 'unix:{}' }}", path.display());
        yaml(
            &backend,
            &format!("server: {{ listeners: [{at_any_port}{last}] }}"),
        )
    };
    let gateway = runtime.of(Gateway::with(&with(6))).start();
    wait_until("it can be asked", || runtime.control().exists());
    for (upgrade, count) in [(1, 55), (2, 126), (3, 126), (4, 126)] {
        gateway.rewrite_conf(&with(count));
        let done = runtime.upgrade();
        assert_eq!((done.code, &*done.stderr), (0, ""));
        let pid = gateway.successor(upgrade);
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count();
        assert!(
            upgrade < 3 || descriptors > 253,
            "{descriptors} descriptors"
        );
        assert_eq!(get(&gateway).status, 200);
        let mut last = UnixStream::connect(&path).unwrap();
        let request = Request::get("/s/x").header("Connection", "close");
        last.write_all(&request.bytes()).unwrap();
        let mut answer = String::new();
        last.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[test]
fn a_listener_that_is_new_is_bound_and_one_that_is_not_wanted_any_more_closed() {
    let (backend, runtime) = (Upstream::start(), Runtime::new());
    let at = |addr: &str| yaml(&backend, &format!("ops: {{ listen: '{addr}' }}"));
    let gateway = Gateway::with(&at("127.0.0.1:0")).without_env("OPS_LISTEN");
    let gateway = runtime.of(gateway).start();
    let private = |gateway: &Gateway, nth: usize| -> SocketAddr {
        wait_until("it listens", || private_listeners(gateway).len() > nth);
        private_listeners(gateway)[nth]
    };
    let before = private(&gateway, 0);
    assert_eq!(Request::get("/live").send_to(before).status, 200);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = taken.local_addr().unwrap();
    gateway.rewrite_conf(&at(&wanted.to_string()));
    assert_failed(&runtime, &gateway, &format!("cannot listen on {wanted}"));
    assert_eq!(Request::get("/live").send_to(before).status, 200);

    drop(taken);
    assert_eq!(runtime.upgrade().code, 0);
    gateway.successor(1);
    assert_eq!(private(&gateway, 1), wanted);
    assert_eq!(Request::get("/live").send_to(wanted).status, 200);
    assert_eq!(get(&gateway).status, 200);
    wait_until("the other one refuses", || {
        TcpStream::connect(before).is_err()
    });
}

#[test]
fn nobody_but_the_service_and_root_is_answered() {
    let (_backend, runtime, gateway) = world("");
    assert_eq!(mode(&runtime.control()), 0o600);
    for open in [
        runtime.control(),
        runtime.control().parent().unwrap().to_owned(),
        runtime.path().to_owned(),
    ] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut nobody = runtime.command("upgrade");
    let asked = nobody.uid(65534).gid(65534).output();
    // Where the test's own program cannot be read by others it says nothing.
    let asked = asked.expect("the program can be run by others");
    assert_eq!(asked.status.code(), Some(1));
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|m| m.contains("user 65534 is not answered"))
    });
    assert!(gateway.successors().is_empty());
}

// --- the old process is gone in the midst of it: the test plays its part ---

#[test]
fn an_heir_whose_parent_is_gone_before_it_gave_its_sockets_ends() {
    let backend = Upstream::start();
    let (wire, mut heir) = heir(&backend, &hello(1));
    assert_eq!(read_frame(&wire).0, "ready");
    drop(wire);
    assert_eq!(heir.exit_code(), Some(1));
}

#[test]
fn an_heir_that_has_the_sockets_serves_though_its_parent_is_gone() {
    let backend = Upstream::start();
    let (wire, _heir) = heir(&backend, &hello(1));
    assert_eq!(read_frame(&wire).0, "ready");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Client::to(addr).connect();
    waiting.send(&Request::get("/s/waits").bytes());
    send_frame(&wire, "listeners", &keys().to_string(), Some(&listener));
    // Parts from another version: one that is not known, and one that cannot be read.
    send_frame(&wire, "horoscopes", "{}", None);
    send_frame(&wire, "limits", "[1]", None);
    drop((wire, listener));
    assert_eq!(
        waiting.read_response().status,
        200,
        "who came meanwhile is served"
    );
}

#[test]
fn an_heir_that_cannot_take_over_what_has_run_says_so_and_ends() {
    let backend = Upstream::start();
    for writes in [
        json!([1]),
        json!([{"name": "no name", "record": "", "until": 0}]),
    ] {
        let (wire, mut heir) = heir(&backend, &hello(1));
        assert_eq!(read_frame(&wire).0, "ready");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        send_frame(&wire, "listeners", &keys().to_string(), Some(&listener));
        send_frame(&wire, "writes", &writes.to_string(), None);
        let (name, body) = read_frame(&wire);
        assert_eq!(name, "failed");
        let reason = body["reason"].as_str().unwrap();
        assert!(reason.starts_with("`writes` is not taken over"), "{reason}");
        assert_eq!(heir.exit_code(), Some(1));
    }
}

#[test]
fn an_heir_of_another_protocol_says_so_and_ends() {
    let backend = Upstream::start();
    let (wire, mut heir) = heir(&backend, &hello(99));
    let (name, body) = read_frame(&wire);
    assert_eq!(name, "failed");
    assert!(
        body["reason"].as_str().unwrap().contains("protocol 99"),
        "{body}"
    );
    assert_eq!(heir.exit_code(), Some(1));
}

// --- helpers ---

/// A program that says that it is ready: from then on the old process lets nobody in.
const SAYS_READY: &str = r#"printf 'agw1\000\000\000\033\005ready{"wants_revocations":false}' >&0"#;

/// Nobody is let in: who comes waits in the queue.
#[track_caller]
fn await_pause(gateway: &Gateway) {
    wait_until("nobody is let in", || {
        let mut client = TcpStream::connect(gateway.addr()).unwrap();
        client.write_all(&Request::get("/live").bytes()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        client.read(&mut [0]).is_err()
    });
}

fn yaml(backend: &Upstream, more: &str) -> String {
    format!(
        "timeouts: {{ default: 20s }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: public }}]
{more}
",
        backend.url()
    )
}

fn world(more: &str) -> (Upstream, Runtime, Gateway) {
    let backend = Upstream::start();
    let runtime = Runtime::new();
    let more = if more.contains("limits:") {
        more.to_owned()
    } else {
        format!("limits: {{ enabled: false }}\n{more}")
    };
    let gateway = runtime.of(Gateway::with(&yaml(&backend, &more))).start();
    wait_until("it can be asked", || runtime.control().exists());
    (backend, runtime, gateway)
}

fn get(gateway: &Gateway) -> Response {
    Request::get("/s/x").send_to(gateway.addr())
}

/// An upgrade fails for this reason, which the operator and the log are told, and the gateway serves on.
#[track_caller]
fn assert_failed(runtime: &Runtime, gateway: &Gateway, reason: &str) -> String {
    let failed = runtime.upgrade();
    assert_eq!(failed.code, 1, "{reason}: {}", failed.stdout);
    assert!(
        failed.stderr.contains(reason),
        "{reason}: {}",
        failed.stderr
    );
    gateway.wait_failed_upgrade(reason);
    assert_eq!(get(gateway).status, 200);
    assert!(gateway.successors().is_empty());
    failed.stderr
}

fn await_started(gateway: &Gateway) {
    gateway.wait_log(|line| line["msg"] == "upgrade: a new process is started");
}

fn children_of(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<String> = children.collect();
    let pids = children.iter().flat_map(|list| list.split_whitespace());
    pids.map(|pid| pid.parse().unwrap())
        .filter(|pid| !is_gone(*pid))
        .collect()
}

fn private_listeners(gateway: &Gateway) -> Vec<SocketAddr> {
    let lines = gateway.log_lines();
    let private = lines.iter().filter(|line| line["listener"] == "private");
    private
        .filter_map(|line| line["address"].as_str()?.parse().ok())
        .collect()
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub fn keys() -> Value {
    json!([{"name": "main", "wanted": "127.0.0.1:0", "address": "127.0.0.1:65535"}])
}

fn hello(protocol: u32) -> String {
    hello_with(protocol, json!({"more": 1}))
}

pub fn hello_with(protocol: u32, more: Value) -> String {
    let mut hello =
        json!({"protocol": protocol, "version": "0", "listeners": keys(), "has_control": false});
    let more = more.as_object().cloned().unwrap_or_default();
    hello.as_object_mut().unwrap().extend(more);
    hello.to_string()
}

fn heir(backend: &Upstream, hello: &str) -> (UnixStream, Heir) {
    heir_with(backend, hello, &[])
}

/// A gateway that is to take this test's place.
pub fn heir_with(
    backend: &Upstream,
    hello: &str,
    environment: &[(&str, &str)],
) -> (UnixStream, Heir) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let conf = TempFile::new("yaml", &yaml(backend, ""));
    send_frame(&ours, "hello", hello, None);
    let child = Command::new(env!("CARGO_BIN_EXE_api-gateway"))
        .arg("--conf")
        .arg(conf.path())
        .env_clear()
        .envs([
            ("HOST", "127.0.0.1"),
            ("PORT", "0"),
            ("OPS_LISTEN", "127.0.0.1:0"),
            ("JWT_SECRET", token::SECRET),
        ])
        .envs(environment.iter().copied())
        .env("API_GATEWAY_UPGRADE_FROM", std::process::id().to_string())
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // Its configuration is read before its first word.
    let mut first = [0; 1];
    rustix::net::recv(&ours, &mut first, rustix::net::RecvFlags::PEEK).unwrap();
    (ours, Heir(child))
}

/// Killed when dropped.
pub struct Heir(Child);

impl Heir {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    fn exit_code(&mut self) -> Option<i32> {
        within(Duration::from_secs(10), || self.0.try_wait().unwrap())?.code()
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        // Both fail only for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn send_frame(mut wire: &UnixStream, name: &str, body: &str, socket: Option<&TcpListener>) {
    let mut header = b"agw1".to_vec();
    header.extend((body.len() as u32).to_be_bytes());
    header.push(name.len() as u8);
    let mut space = [0; rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let sockets: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
    if !sockets.is_empty() {
        assert!(beside.push(SendAncillaryMessage::ScmRights(&sockets)));
    }
    sendmsg(
        wire,
        &[IoSlice::new(&header)],
        &mut beside,
        SendFlags::empty(),
    )
    .unwrap();
    wire.write_all(name.as_bytes()).unwrap();
    wire.write_all(body.as_bytes()).unwrap();
}

pub fn read_frame(mut wire: &UnixStream) -> (String, Value) {
    let mut header = [0; 9];
    wire.read_exact(&mut header).unwrap();
    let mut name = vec![0; usize::from(header[8])];
    wire.read_exact(&mut name).unwrap();
    let mut body = vec![0; u32::from_be_bytes(header[4..8].try_into().unwrap()) as usize];
    wire.read_exact(&mut body).unwrap();
    (
        String::from_utf8(name).unwrap(),
        serde_json::from_slice(&body).unwrap(),
    )
}
