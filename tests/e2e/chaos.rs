//! Instances that die, freeze, reset, refuse, drag, babble and flap under constant load: what clients saw of it.

use crate::support::prelude::*;
use std::collections::BTreeMap;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

#[test]
fn instances_killed_and_restarted_again_and_again_cost_no_read_and_only_the_writes_in_their_hands()
{
    let _alone = alone();
    let pool: Vec<Instance> = (0..3).map(|_| Instance::start()).collect();
    let addresses: Vec<SocketAddr> = pool.iter().map(Instance::addr).collect();
    let gateway = Gateway::with(&yaml(&urls(&addresses), "")).start();
    let load = reads_and_writes(&gateway, "?demo-delay-ms=20").start();
    let mut kills = Vec::new();
    for instance in pool.iter().cycle().take(9) {
        await_more(&load, 80);
        kills.push(instance.kill());
        await_more(&load, 80);
        instance.restart();
    }
    await_more(&load, 80);
    let traffic = load.stop();
    println!("measured: {traffic}");
    assert!(retries(&gateway, "s") > 0.0, "no kill met a request");
    let (reads, writes) = (traffic.lane("read"), traffic.lane("write"));
    assert!(reads.bad().is_empty(), "{reads}");
    for failed in &writes.bad().exchanges {
        let in_its_hands = |(before, after): &(Instant, Instant)| {
            failed.sent <= *after && failed.ended() >= *before
        };
        assert!(
            kills.iter().any(in_its_hands),
            "a write failed while no instance died: {failed:?}; {writes}"
        );
    }
    let seen = pool.iter().flat_map(Instance::requests);
    assert_none_twice(seen.filter(|request| request.starts_with("POST ")));
}

#[test]
fn a_frozen_instance_costs_a_read_one_attempt_and_no_more() {
    let _alone = alone();
    let pool: Vec<Instance> = (0..3).map(|_| Instance::start()).collect();
    let addresses: Vec<SocketAddr> = pool.iter().map(Instance::addr).collect();
    let more = "timeouts: { attempt_cap: 300ms }";
    let gateway = Gateway::with(&yaml(&urls(&addresses), more)).start();
    let load = reads_and_writes(&gateway, "?demo-delay-ms=2").start();
    let mut frozen = Vec::new();
    for instance in &pool {
        await_more(&load, 200);
        let start = Instant::now();
        instance.freeze();
        // Longer than an attempt, so that what an attempt may take is what ends it.
        thread::sleep(Duration::from_secs(1));
        instance.thaw();
        frozen.push((start, Instant::now()));
    }
    let traffic = load.stop();
    println!("measured: {traffic}");
    let timeouts = attempts_that_ended(&gateway, "s", "timeout");
    assert!(timeouts > 0.0, "no freeze met a request");
    let (reads, writes) = (traffic.lane("read"), traffic.lane("write"));
    assert!(reads.bad().is_empty(), "{reads}");
    assert!(reads.percentile(100.0) < Duration::from_secs(2), "{reads}");
    for failed in &writes.bad().exchanges {
        assert_eq!(failed.end, Ok(504), "{writes}");
        let meanwhile =
            |(start, end): &(Instant, Instant)| failed.sent <= *end && failed.ended() >= *start;
        assert!(
            frozen.iter().any(meanwhile),
            "a write failed while no instance was frozen: {failed:?}; {writes}"
        );
    }
    let seen = pool.iter().flat_map(Instance::requests);
    assert_none_twice(seen.filter(|request| request.starts_with("POST ")));
}

#[test]
fn one_of_three_that_resets_babbles_fails_or_hangs_costs_no_read_and_no_write_is_sent_twice() {
    let _alone = alone();
    let faults = [
        ("reset", Reply::reset()),
        ("garbage", Reply::raw("220 mail ESMTP\r\n\r\n").then_close()),
        (
            "half a head",
            Reply::raw("HTTP/1.1 200 OK\r\nX-").then_close(),
        ),
        ("500", Reply::status(500)),
        ("silence", Reply::hang()),
    ];
    for (name, fault) in faults {
        let pool = [Upstream::start(), Upstream::start(), Upstream::start()];
        let addresses: Vec<SocketAddr> = pool.iter().map(Upstream::addr).collect();
        let more = "timeouts: { attempt_cap: 300ms }";
        let gateway = Gateway::with(&yaml(&urls(&addresses), more)).start();
        let load = reads_and_writes(&gateway, "")
            .clients("put", 1, PAUSE, |n| {
                Request::method("PUT", &format!("/s/put/{n}")).body(body_of(n))
            })
            .start();
        let [sick, _, _] = &pool;
        await_more(&load, 80);
        let healthy_before = sick.count();
        sick.set(move |_| fault.clone());
        wait_until("the fault meets a request", || {
            sick.count() > healthy_before
        });
        await_more(&load, 250);
        sick.set(|_| Reply::json(json!({"ok": true})));
        await_more(&load, 80);
        let traffic = load.stop();
        println!("measured: {name}: {traffic}");
        for idempotent in ["read", "put"] {
            let lane = traffic.lane(idempotent);
            assert!(lane.bad().is_empty(), "{name}: {lane}");
        }
        let failed = traffic.lane("write").bad();
        assert!(
            failed.len() <= posts(sick).count(),
            "{name}: more writes failed than the sick instance has seen: {failed}"
        );
        assert_none_twice(pool.iter().flat_map(posts));
        let bodies = pool.iter().flat_map(Upstream::requests);
        for put in bodies.filter(|request| request.method == "PUT") {
            let number = put.target.rsplit('/').next().unwrap().parse().unwrap();
            assert_eq!(put.body, body_of(number), "{name}: {}", put.target);
        }
    }
}

#[test]
fn an_instance_that_failed_for_a_moment_is_used_again_once_it_is_taken_back() {
    let _alone = alone();
    let pool = [Upstream::start(), Upstream::start(), Upstream::start()];
    let addresses: Vec<SocketAddr> = pool.iter().map(Upstream::addr).collect();
    let more = "outlier: { consecutive: 3, ejection: 500ms }";
    let gateway = Gateway::with(&yaml(&urls(&addresses), more)).start();
    let load = reads_and_writes(&gateway, "").start();
    let [sick, _, _] = &pool;
    await_more(&load, 80);
    sick.set(|_| Reply::status(500).delay(Duration::from_millis(50)));
    let about_it = |line: &Value, what: &str| {
        let text = line["msg"].as_str().unwrap_or_default();
        text.contains(&sick.addr().to_string()) && text.contains(what)
    };
    gateway.wait_log(|line| about_it(line, "is ejected"));
    sick.set(|_| Reply::json(json!({"ok": true})));
    gateway.wait_log(|line| about_it(line, "is taken back"));
    let (back, before) = (Instant::now(), sick.count());
    let used = within(Duration::from_secs(2), || {
        (sick.count() > before).then_some(())
    });
    let took = back.elapsed();
    let traffic = load.stop();
    println!("measured: used again after {took:?}: {traffic}");
    assert!(used.is_some(), "taken back, it was not used for 2 s");
}

#[test]
fn one_of_three_that_refuses_costs_neither_reads_nor_writes_and_is_soon_left_alone() {
    let _alone = alone();
    let pool = [Upstream::start(), Upstream::start()];
    let addresses = [pool[0].addr(), refused_addr(), pool[1].addr()];
    let service = format!("{}, health: {{ enabled: false }}", urls(&addresses));
    let gateway = Gateway::with(&yaml(&service, "")).start();
    let load = reads_and_writes(&gateway, "").start();
    await_more(&load, 1000);
    let traffic = load.stop();
    println!("measured: {traffic}");
    assert!(traffic.bad().is_empty(), "{traffic}");
    let refused = attempts_that_ended(&gateway, "s", "connect");
    assert!(
        (1.0..=100.0).contains(&refused),
        "{refused} of {} requests were tried where nobody listens",
        traffic.len()
    );
    assert_none_twice(pool.iter().flat_map(posts));
}

#[test]
fn one_of_five_that_becomes_ten_times_slower_is_left_under_5_percent_of_the_requests_within_5_s() {
    let _alone = alone();
    for more in ["", "outlier: { enabled: false }"] {
        let pool: Vec<Upstream> = (0..5)
            .map(|_| Upstream::start_with(answer_in(10)))
            .collect();
        let addresses: Vec<SocketAddr> = pool.iter().map(Upstream::addr).collect();
        let gateway = Gateway::with(&yaml(&urls(&addresses), more)).start();
        let load = Load::on(gateway.addr())
            .clients("read", 10, Duration::ZERO, |n| {
                Request::get(&format!("/s/{n}"))
            })
            .start();
        await_more(&load, 500);
        let slow = &pool[0];
        assert!(slow.count() >= 25, "it had its share while it was well");
        let share = || {
            let (before, all_before) = (slow.count(), load.answered());
            await_more(&load, 300);
            (slow.count() - before) as f64 / (load.answered() - all_before) as f64
        };
        slow.set(answer_in(100));
        let became_slow = Instant::now();
        let left = within(Duration::from_secs(5), || {
            Some(share()).filter(|share| *share < 0.05)
        });
        let took = became_slow.elapsed();
        let left = left.unwrap_or_else(|| panic!("{more}: it still has {}", share()));
        let (before, all_before) = (slow.count(), load.answered());
        await_more(&load, 600);
        let stays = (slow.count() - before) as f64 / (load.answered() - all_before) as f64;
        let traffic = load.stop();
        println!("measured: {more}: share {left} after {took:?}, then {stays}; {traffic}");
        assert!(stays < 0.05, "{more}: its share grew again, to {stays}");
        assert!(traffic.bad().is_empty(), "{more}: {traffic}");
    }
}

#[test]
fn an_instance_that_flaps_costs_nobody_an_answer() {
    let _alone = alone();
    let pool = [Upstream::start(), Upstream::start(), Upstream::start()];
    let addresses: Vec<SocketAddr> = pool.iter().map(Upstream::addr).collect();
    let service = format!(
        "{}, health: {{ interval: 100ms, unhealthy: 1 }}",
        urls(&addresses)
    );
    let gateway = Gateway::with(&yaml(&service, "")).start();
    let load = reads_and_writes(&gateway, "").start();
    let [moody, _, _] = &pool;
    let healthy = r#"upstream_healthy_instances{service="s"}"#;
    for _ in 0..8 {
        moody.set_healthy(false);
        gateway.wait_metric(healthy, |n| n == 2.0);
        await_more(&load, 20);
        moody.set_healthy(true);
        gateway.wait_metric(healthy, |n| n == 3.0);
        await_more(&load, 20);
    }
    let traffic = load.stop();
    println!("measured: {traffic}");
    assert!(traffic.bad().is_empty(), "{traffic}");
    assert_none_twice(pool.iter().flat_map(posts));
}

#[test]
fn checks_that_fail_everywhere_at_once_cost_nobody_an_answer() {
    let _alone = alone();
    let pool = [Upstream::start(), Upstream::start(), Upstream::start()];
    let addresses: Vec<SocketAddr> = pool.iter().map(Upstream::addr).collect();
    let service = format!("{}, health: {{ interval: 100ms }}", urls(&addresses));
    let gateway = Gateway::with(&yaml(&service, "")).start();
    let load = reads_and_writes(&gateway, "").start();
    let panic = r#"upstream_panic{service="s"}"#;
    await_more(&load, 50);
    assert_eq!(gateway.metric(panic), 0.0);
    pool.iter().for_each(|instance| instance.set_healthy(false));
    gateway.wait_metric(panic, |on| on == 1.0);
    await_more(&load, 200);
    pool.iter().for_each(|instance| instance.set_healthy(true));
    gateway.wait_metric(panic, |on| on == 0.0);
    let traffic = load.stop();
    println!("measured: {traffic}");
    assert!(traffic.bad().is_empty(), "{traffic}");
}

#[test]
fn a_service_that_is_out_altogether_gets_a_fifth_more_than_its_load_at_most_and_harms_no_other() {
    let _alone = alone();
    let failing: Vec<Upstream> = (0..2)
        .map(|_| Upstream::start_with(|_| Reply::status(500)))
        .collect();
    let hanging: Vec<Upstream> = (0..2)
        .map(|_| Upstream::start_with(|_| Reply::hang()))
        .collect();
    let other = Upstream::start();
    let conf = format!(
        "limits: {{ enabled: false, flood: {{ per_second: 1000000 }} }}
health: {{ enabled: false }}
# Nothing but the budget shall hold the retries back.
breaker: {{ volume: 1000000 }}
overload: {{ enabled: false }}
retry: {{ base_delay: 5ms }}
timeouts: {{ attempt_cap: 100ms }}
services:
  refusing: {{ {} }}
  failing: {{ {} }}
  hanging: {{ {} }}
  other: {{ url: '{}' }}
routes:
  - {{ path: /refusing/*, service: refusing, auth: public, timeout: 1s }}
  - {{ path: /failing/*, service: failing, auth: public, timeout: 1s }}
  - {{ path: /hanging/*, service: hanging, auth: public, timeout: 1s }}
  - {{ path: /other/*, service: other, auth: public, timeout: 1s }}
",
        urls(&[refused_addr(), refused_addr()]),
        urls(&[failing[0].addr(), failing[1].addr()]),
        urls(&[hanging[0].addr(), hanging[1].addr()]),
        other.url(),
    );
    let gateway = Gateway::with(&conf).start();
    let others = || {
        Load::on(gateway.addr())
            .per_second("other", 100.0, 8, |n| Request::get(&format!("/other/{n}")))
    };
    let before = others().run_for(Duration::from_secs(1));
    assert!(before.bad().is_empty(), "{before}");
    let mut memory = None;
    for (service, status) in [("refusing", 503), ("failing", 500), ("hanging", 504)] {
        let target = format!("/{service}/x");
        let traffic = others()
            .per_second("dead", 400.0, 48, move |_| Request::get(&target))
            .run_for(Duration::from_millis(1800));
        let (dead, others) = (traffic.lane("dead"), traffic.lane("other"));
        let attempts = [
            "connect", "reset", "timeout", "status", "aborted", "success",
        ]
        .map(|outcome| attempts_that_ended(&gateway, service, outcome))
        .iter()
        .sum::<f64>();
        let more = attempts / dead.len() as f64;
        println!(
            "measured: {service}: {attempts} attempts, {more} each; {traffic}; before {before}"
        );
        // On a busy machine an attempt at the others may take its 100 ms, too.
        let as_expected = dead.with_status(status).len();
        assert!(dead.good().is_empty(), "{dead}");
        assert!(as_expected * 100 >= dead.len() * 95, "{dead}");
        assert!(
            retries(&gateway, service) > 0.0,
            "{service}: nothing was tried again"
        );
        assert!(
            denied(&gateway, service) > 0.0,
            "{service}: the budget held nothing back"
        );
        // The smallest budget is 10 retries in 10 s.
        let allowed = 1.2 * dead.len() as f64 + 10.0;
        assert!(
            attempts <= allowed,
            "{service}: {attempts} attempts of {allowed}"
        );
        assert!(
            attempts >= dead.len() as f64,
            "{service}: {attempts} attempts are counted"
        );
        assert!(others.bad().is_empty(), "beside {service}: {others}");
        let sane = (before.percentile(99.0) * 5).max(Duration::from_millis(150));
        assert!(
            others.percentile(99.0) <= sane,
            "beside {service}: {others}; before: {before}"
        );
        // Once everything that is made at first use has been made.
        let known = *memory.get_or_insert_with(|| gateway.memory_kb());
        assert!(
            gateway.memory_kb() <= known + 16 * 1024,
            "{service}: from {known} kB"
        );
    }
    let seen = |pool: &[Upstream]| pool.iter().map(Upstream::heads_seen).sum::<usize>() as f64;
    for (service, pool) in [("failing", &failing), ("hanging", &hanging)] {
        let counted = ["timeout", "status", "reset"]
            .map(|outcome| attempts_that_ended(&gateway, service, outcome));
        assert_eq!(
            seen(pool),
            counted.iter().sum::<f64>(),
            "{service} {counted:?}"
        );
    }
}

#[test]
fn behind_an_open_breaker_answers_come_at_once_and_a_hanging_backend_sees_its_probes_alone() {
    let _alone = alone();
    let reset = Duration::from_millis(500);
    for probes in [1, 3] {
        let hanging = Upstream::start_with(|_| Reply::hang());
        let service = format!(
            "{}, health: {{ enabled: false }}, breaker: {{ volume: 10, reset: 500ms, probes: {probes} }}",
            urls(&[hanging.addr()])
        );
        let gateway = Gateway::with(&yaml_with_timeout(&service, "", "400ms")).start();
        let load = Load::on(gateway.addr())
            .clients("read", 16, Duration::from_millis(10), |n| {
                Request::get(&format!("/s/{n}"))
            })
            .start();
        gateway.wait_metric(r#"circuit_breaker_state{service="s"}"#, |state| {
            state == 1.0
        });
        let opened = Instant::now();
        wait_until("what was in flight has run out of time", || {
            hanging.open_connections() <= probes
        });
        let known = hanging.heads_seen();
        // Each client's first, and one more of those whose failures opened it.
        let before_it_opened = 16 + 10 + probes;
        assert!(known <= before_it_opened, "{known} before it opened");
        let mut most_at_once = 0;
        within(4 * reset, || {
            most_at_once = most_at_once.max(hanging.open_connections());
            None::<()>
        });
        let (seen, open_for) = (hanging.heads_seen() - known, opened.elapsed());
        let traffic = load.stop();
        let rejected = traffic.since(opened).with_status(503);
        println!(
            "measured: {probes} probes: {seen} seen in {open_for:?}; rejected: {rejected}; {traffic}"
        );
        let periods = (open_for.as_secs_f64() / reset.as_secs_f64()).ceil() as usize;
        assert!(
            (1..=probes * periods).contains(&seen),
            "{seen} requests reached the backend in {open_for:?}"
        );
        assert!(
            (1..=probes).contains(&most_at_once),
            "{most_at_once} probes at once"
        );
        assert!(rejected.len() > 500, "{traffic}");
        assert!(rejected.median() < Duration::from_millis(5), "{rejected}");
        assert!(rejected.exchanges.iter().all(|one| one.retry_after));
        assert!(
            traffic.since(opened).len() - rejected.len() <= 16 + seen,
            "others than probes waited: {traffic}"
        );
        assert!(
            rejected.exchanges.iter().all(|one| one.kept),
            "a rejected client lost its connection"
        );
    }
}

#[test]
fn clients_in_a_hurry_do_not_open_the_breaker_for_the_others() {
    let slow = Upstream::start_with(answer_in(50));
    let service = format!("{}, health: {{ enabled: false }}", urls(&[slow.addr()]));
    let gateway = Gateway::with(&yaml(&service, "")).start();
    for _ in 0..30 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let deadline = (since_epoch + Duration::from_millis(15)).as_millis();
        let hurried = Request::get("/s/x").header("X-Request-Deadline", &deadline.to_string());
        assert_eq!(hurried.send_to(gateway.addr()).status, 504);
    }
    let patient = Request::get("/s/x").send_to(gateway.addr());
    assert_eq!(patient.status, 200, "{}", patient.text());
}

/// The pause of a client before it asks again: the machine is not for this test alone.
const PAUSE: Duration = Duration::from_millis(5);

/// Six clients that read and two that write, each request with a target of its own.
fn reads_and_writes(gateway: &Gateway, query: &'static str) -> Load {
    Load::on(gateway.addr())
        .clients("read", 6, PAUSE, move |n| {
            Request::get(&format!("/s/read/{n}{query}"))
        })
        .clients("write", 2, PAUSE, move |n| {
            Request::post(&format!("/s/write/{n}{query}")).body(body_of(n))
        })
}

fn body_of(number: usize) -> Vec<u8> {
    format!("the body of {number} ").repeat(100).into_bytes()
}

fn answer_in(ms: u64) -> impl Fn(&Recorded) -> Reply + Send + Sync + 'static {
    move |_| Reply::status(200).delay(Duration::from_millis(ms))
}

/// Waits until the load has got so many more answers.
#[track_caller]
fn await_more(load: &Running, count: usize) {
    let enough = load.answered() + count;
    let come = within(Duration::from_secs(10), || {
        (load.answered() >= enough).then_some(())
    });
    assert!(come.is_some(), "{} answers of {enough}", load.answered());
}

fn posts(upstream: &Upstream) -> impl Iterator<Item = String> {
    let requests = upstream.requests().into_iter();
    let posts = requests.filter(|request| request.method == "POST");
    posts.map(|request| request.target)
}

#[track_caller]
fn assert_none_twice(requests: impl Iterator<Item = String>) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    requests.for_each(|request| *seen.entry(request).or_default() += 1);
    assert!(!seen.is_empty(), "no instance was asked");
    seen.retain(|_, count| *count > 1);
    assert!(seen.is_empty(), "sent more than once: {seen:?}");
}

fn attempts_that_ended(gateway: &Gateway, service: &str, outcome: &str) -> f64 {
    gateway.metric(&format!(
        "upstream_attempts_total{{outcome=\"{outcome}\",service=\"{service}\"}}"
    ))
}

fn retries(gateway: &Gateway, service: &str) -> f64 {
    let of_cause =
        |cause| format!("upstream_retries_total{{cause=\"{cause}\",service=\"{service}\"}}");
    let causes = ["connect", "reset", "timeout", "status"];
    causes
        .map(|cause| gateway.metric(&of_cause(cause)))
        .iter()
        .sum()
}

fn denied(gateway: &Gateway, service: &str) -> f64 {
    gateway.metric(&format!(
        "upstream_retries_denied_total{{service=\"{service}\"}}"
    ))
}

/// A service `s` and a route to it. Health is asked for often, and who is ejected is back soon.
fn yaml(service: &str, more: &str) -> String {
    yaml_with_timeout(service, more, "5s")
}

fn yaml_with_timeout(service: &str, more: &str, timeout: &str) -> String {
    let outlier = match more.contains("outlier:") {
        true => "",
        false => "outlier: { ejection: 500ms }",
    };
    format!(
        "limits: {{ enabled: false, flood: {{ per_second: 1000000 }} }}
health: {{ interval: 300ms, timeout: 300ms }}
{outlier}
{more}
services:
  s: {{ {service} }}
routes:
  - {{ path: /s/*, service: s, auth: public, timeout: {timeout} }}
"
    )
}

fn urls(addresses: &[SocketAddr]) -> String {
    let urls: Vec<String> = addresses.iter().map(|a| format!("http://{a}")).collect();
    format!("url: '{}'", urls.join(","))
}
