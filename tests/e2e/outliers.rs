//! Instances that answer their checks and fail at their work: set aside for a growing time, never too many of them,
//! and what is done when too few are left.

use crate::support::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

#[test]
fn failures_in_a_row_eject_an_instance_for_all_to_see() {
    let fleet = Fleet::of(3);
    let gateway = fleet
        .conf()
        .top("outlier", "{ consecutive: 5, ejection: 60s }")
        .start();
    fleet.set(|instance, _| Reply::status(if instance == 1 { 500 } else { 200 }));
    // A POST is not tried again: each is one attempt.
    post(&gateway, 60);
    let counts = fleet.counts();
    assert_eq!(counts[1], 5, "{counts:?}");
    let told = format!(
        "service s: instance {} is ejected for 60s: 5 failures in a row",
        fleet.name(1)
    );
    gateway.wait_log(|line| line["msg"] == told);
    gateway.wait_metric(&series("upstream_ejections_total"), |n| n == 1.0);
    gateway.wait_metric(&series("upstream_ejected_instances"), |n| n == 1.0);
    assert_eq!(gateway.metric(&series("upstream_instances")), 3.0);
    assert_eq!(gateway.metric(&series("upstream_panic")), 0.0);
    let pool = pool(&gateway);
    assert_eq!(
        (&pool["instances"], &pool["ejected"], &pool["panic"]),
        (&json!(3), &json!(1), &json!(false)),
        "{pool}"
    );
}

#[test]
fn every_kind_of_failure_counts_and_4xx_are_none() {
    let failures = [
        ("500", Reply::status(500)),
        ("a reset", Reply::reset()),
        ("a close", Reply::raw("").then_close()),
        ("garbage", Reply::raw("what?\r\n\r\n").then_close()),
        ("silence", Reply::hang()),
    ];
    for (name, reply) in failures {
        let fleet = Fleet::of(3);
        let gateway = fleet
            .conf()
            .top("outlier", "{ consecutive: 3, ejection: 60s }")
            .route("timeout", "400ms")
            .start();
        let bad = reply.clone();
        fleet.set(move |instance, _| match instance {
            0 => Reply::status(404),
            1 => bad.clone(),
            _ => Reply::status(429),
        });
        post(&gateway, 20);
        assert_eq!(fleet.heads()[1], 3, "{name}");
        gateway.wait_metric(&series("upstream_ejected_instances"), |n| n == 1.0);
    }
}

#[test]
fn an_instance_that_refuses_is_ejected_too() {
    let fleet = Fleet::of(2);
    let dead = refused_addr();
    let gateway = Conf::at(&[fleet[0].addr(), dead, fleet[1].addr()])
        .top("outlier", "{ consecutive: 3, ejection: 60s }")
        .start();
    for i in 0..30 {
        let status = Request::post("/s/x").send_to(gateway.addr()).status;
        assert_eq!(status, 200, "request {i}");
    }
    let told = format!("instance {dead} is ejected");
    gateway.wait_log(|line| line["msg"].as_str().is_some_and(|msg| msg.contains(&told)));
    let refused = r#"upstream_attempts_total{outcome="connect",service="s"}"#;
    assert_eq!(gateway.metric(refused), 3.0);
}

#[test]
fn a_good_answer_in_between_begins_the_count_anew() {
    let fleet = Fleet::of(2);
    let gateway = fleet
        .conf()
        .top("outlier", "{ consecutive: 4, ejection: 60s }")
        .start();
    // Three bad ones, a good one, and so on: never four in a row, over less than what a rate is told from.
    let turns = AtomicUsize::new(0);
    fleet[1].set(move |_| {
        let turn = turns.fetch_add(1, SeqCst);
        Reply::status(if turn % 4 == 3 { 200 } else { 500 })
    });
    post(&gateway, 14);
    assert_eq!(fleet.counts(), [7, 7]);
    assert_eq!(gateway.metric(&series("upstream_ejections_total")), 0.0);
}

#[test]
fn an_ejected_instance_is_taken_back_by_itself_and_ejected_for_longer_each_time() {
    let fleet = Fleet::of(2);
    let gateway = fleet
        .conf()
        .top(
            "outlier",
            "{ consecutive: 3, ejection: 300ms, max_ejection: 1s }",
        )
        .start();
    fleet[0].set(|_| Reply::status(500));
    let name = fleet.name(0);
    // Each ejection needs failures, and each return is without any request.
    for round in 1..=4 {
        let ejected = within(Duration::from_secs(10), || {
            post(&gateway, 2);
            (gateway.metric(&series("upstream_ejections_total")) >= f64::from(round)).then_some(())
        });
        assert!(ejected.is_some(), "it is not ejected a {round}. time");
        gateway.wait_metric(&series("upstream_ejected_instances"), |n| n == 0.0);
    }
    let times = |wanted: &str| -> Vec<u64> {
        let wanted = format!("instance {name} is {wanted}");
        let lines = gateway.log_lines();
        let told = lines.iter().filter(|line| {
            line["msg"]
                .as_str()
                .is_some_and(|msg| msg.contains(&wanted))
        });
        told.map(|line| line["time"].as_u64().unwrap()).collect()
    };
    wait_until("its four returns are told", || {
        times("taken back").len() >= 4
    });
    let spans: Vec<u64> = times("ejected")
        .iter()
        .zip(times("taken back"))
        .map(|(out, back)| back - out)
        .collect();
    // Doubled each time, and capped at a second.
    for (span, ejection) in spans.iter().zip([300, 600, 1000, 1000]) {
        assert!((ejection - 20..ejection + 900).contains(span), "{spans:?}");
    }
    fleet[0].set(|_| Reply::status(200));
    let before = fleet.counts()[0];
    wait_until("it has work again", || {
        post(&gateway, 2);
        fleet.counts()[0] > before + 4
    });
}

#[test]
fn an_instance_that_is_taken_back_starts_slowly() {
    let fleet = Fleet::of(2);
    let gateway = fleet
        .conf()
        .top("balance", "{ strategy: round_robin, slow_start: 120s }")
        .top("outlier", "{ consecutive: 3, ejection: 200ms }")
        .start();
    fleet[0].set(|_| Reply::status(500));
    post(&gateway, 6);
    gateway.wait_metric(&series("upstream_ejections_total"), |n| n == 1.0);
    fleet[0].set(|_| Reply::status(200));
    gateway.wait_metric(&series("upstream_ejected_instances"), |n| n == 0.0);
    let before = fleet.counts();
    post(&gateway, 100);
    let back = fleet.counts()[0] - before[0];
    assert!(back <= 25, "{back} of 100 within the first of 120 s");
}

#[test]
fn never_more_than_half_of_a_pool_is_ejected() {
    for (instances, most) in [(1, 0.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)] {
        let fleet = Fleet::of(instances);
        fleet.set(|_, _| Reply::status(500));
        let gateway = fleet
            .conf()
            .top("outlier", "{ consecutive: 2, ejection: 60s }")
            .start();
        post(&gateway, 10 * instances);
        assert_eq!(
            gateway.metric(&series("upstream_ejected_instances")),
            most,
            "of {instances}"
        );
        let before = fleet.counts();
        post(&gateway, 4 * instances);
        let grown = fleet
            .counts()
            .iter()
            .zip(&before)
            .filter(|(n, b)| n > b)
            .count();
        assert_eq!(
            grown as f64,
            instances as f64 - most,
            "of {instances} these are asked still"
        );
    }
}

#[test]
fn an_instance_with_an_outlying_error_rate_is_ejected() {
    let fleet = Fleet::of(5);
    let gateway = fleet
        .conf()
        .top("outlier", "{ consecutive: 100000, ejection: 60s }")
        .start();
    let turns = AtomicUsize::new(0);
    // All take as long, so that a stall of the machine makes none of them the slow one.
    fleet.set(move |instance, _| {
        let bad = instance == 3 && turns.fetch_add(1, SeqCst).is_multiple_of(2);
        Reply::status(if bad { 500 } else { 200 }).delay(Duration::from_millis(30))
    });
    assert_only_this_is_ejected(&gateway, &fleet, 3);
}

#[test]
fn an_instance_with_an_outlying_latency_is_ejected() {
    let fleet = Fleet::of(5);
    let gateway = fleet
        .conf()
        .top("outlier", "{ consecutive: 100000, ejection: 60s }")
        .start();
    fleet.set(|instance, _| {
        Reply::status(200).delay(Duration::from_millis(if instance == 2 { 250 } else { 10 }))
    });
    assert_only_this_is_ejected(&gateway, &fleet, 2);
}

#[test]
fn instances_that_are_equally_bad_are_no_outliers() {
    let fleet = Fleet::of(4);
    let gateway = fleet
        .conf()
        .top("outlier", "{ consecutive: 100000, ejection: 60s }")
        .start();
    let turns = AtomicUsize::new(0);
    fleet.set(move |_, _| {
        let turn = turns.fetch_add(1, SeqCst);
        // In fours, so that the turns of the instances do not make one of them the bad one.
        Reply::status(if turn / 4 % 2 == 1 { 200 } else { 500 }).delay(Duration::from_millis(5))
    });
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        post(&gateway, 40);
    }
    assert_eq!(gateway.metric(&series("upstream_ejections_total")), 0.0);
}

#[test]
fn it_can_be_turned_off_and_a_service_may_have_its_own() {
    let (s, other) = (Fleet::of(2), Fleet::of(2));
    for fleet in [&s, &other] {
        fleet.set(|instance, _| Reply::status(if instance == 0 { 500 } else { 200 }));
    }
    let pair = format!("{},{}", other[0].url(), other[1].url());
    let gateway = s
        .conf()
        .top("outlier", "{ enabled: false }")
        .service("outlier", "{ consecutive: 2, ejection: 60s }")
        .and_service("other", &pair, "")
        .start();
    for path in ["/s/x", "/other/x"] {
        for _ in 0..20 {
            Request::post(path).send_to(gateway.addr());
        }
    }
    assert_eq!(s.counts()[0], 2, "its own detection is on");
    assert_eq!(other.counts(), [10, 10], "the others' is off");
}

#[test]
fn when_no_instance_passes_its_checks_all_are_tried_and_it_is_told() {
    let fleet = Fleet::of(3);
    fleet
        .iter()
        .for_each(|instance| instance.set_healthy(false));
    let gateway = fleet.conf().top("health", "{ interval: 500ms }").start();
    gateway.wait_metric(&series("upstream_healthy_instances"), |n| n == 0.0);
    for i in 0..12 {
        let status = Request::get("/s/x").send_to(gateway.addr()).status;
        assert_eq!(status, 200, "request {i}");
    }
    assert_eq!(fleet.counts(), [4, 4, 4]);
    gateway.wait_metric(&series("upstream_panic"), |n| n == 1.0);
    let told = "service s: panic: 0 of 3 instances are available, all of them are tried";
    gateway.wait_log(|line| line["msg"] == told && line["level"] == "warn");
    let described = pool(&gateway);
    assert_eq!(
        (
            &described["instances"],
            &described["healthy"],
            &described["panic"]
        ),
        (&json!(3), &json!(0), &json!(true)),
        "{described}"
    );

    fleet[1].set_healthy(true);
    gateway.wait_metric(&series("upstream_panic"), |n| n == 0.0);
    gateway.wait_log(|line| line["msg"] == "service s: panic is over");
    let before = fleet.counts();
    post(&gateway, 6);
    assert_eq!(fleet.counts(), [before[0], before[1] + 6, before[2]]);
    assert_eq!(pool(&gateway)["panic"], false);
}

#[test]
fn fewer_than_the_configured_share_is_panic_too_and_that_share_itself_is_not() {
    for (well, panic) in [(5, false), (4, true)] {
        let fleet = Fleet::of(10);
        for instance in well..10 {
            fleet[instance].set_healthy(false);
        }
        let gateway = fleet
            .conf()
            .top("health", "{ interval: 500ms }")
            .top("outlier", "{ panic_percent: 50 }")
            .start();
        gateway.wait_metric(&series("upstream_healthy_instances"), |n| n == well as f64);
        for _ in 0..40 {
            assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
        }
        let asked = fleet.counts().iter().filter(|count| **count > 0).count();
        assert_eq!(
            asked,
            if panic { 10 } else { well },
            "{well} of 10 are well"
        );
        let expected = f64::from(u8::from(panic));
        assert_eq!(
            gateway.metric(&series("upstream_panic")),
            expected,
            "{well} of 10"
        );
    }
}

#[test]
fn instances_that_fail_their_checks_and_their_work_are_503_or_what_they_say() {
    let fleet = Fleet::of(2);
    fleet
        .iter()
        .for_each(|instance| instance.set_healthy(false));
    fleet.set(|_, _| Reply::status(503).body("as it was"));
    let gateway = fleet.conf().top("health", "{ interval: 500ms }").start();
    let response = Request::post("/s/x").send_to(gateway.addr());
    assert_eq!((response.status, response.text()), (503, "as it was"));
    fleet.iter().for_each(Upstream::stop);
    let response = Request::post("/s/x").send_to(gateway.addr());
    assert_eq!(response.json()["code"], "SERVICE_UNAVAILABLE");
    assert!(response.header("retry-after").is_some());
}

#[test]
fn impossible_figures_are_faults_of_the_configuration() {
    for (key, value) in [
        ("outlier", "{ consecutive: 0 }"),
        ("outlier", "{ ejection: 0s }"),
        ("outlier", "{ ejection: 10s, max_ejection: 5s }"),
        ("outlier", "{ panic_percent: 101 }"),
        ("retry", "{ base_delay: 1 }"),
        ("retry", "{ max_retries: -1 }"),
        ("retry", "{ budget_percent: -1 }"),
        ("breaker", "{ probes: 0 }"),
        ("overload", "{ enabled: maybe }"),
    ] {
        let conf = Conf::at(&[refused_addr()]).top(key, value);
        let exit = conf.gateway().arg("--test").run_to_exit();
        assert_eq!(exit.code, 1, "{key}: {value} is accepted");
        assert!(exit.stderr.contains(key), "{key}: {value}: {}", exit.stderr);
    }
}

/// Sends POSTs, of which each is one attempt however it ends, one by one.
fn post(gateway: &Gateway, count: usize) {
    for i in 0..count {
        Request::post(&format!("/s/{i}")).send_to(gateway.addr());
    }
}

/// Under steady requests this instance is ejected, and none beside it.
#[track_caller]
fn assert_only_this_is_ejected(gateway: &Gateway, fleet: &Fleet, instance: usize) {
    let addr = gateway.addr();
    let ejected = within(Duration::from_secs(40), || {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    let mut connection = Client::to(addr).connect();
                    for i in 0..15 {
                        connection.request(&Request::post(&format!("/s/{i}")));
                    }
                });
            }
        });
        (gateway.metric(&series("upstream_ejected_instances")) >= 1.0).then_some(())
    });
    assert!(ejected.is_some(), "it is not ejected: {:?}", fleet.counts());
    let mut named = BTreeMap::new();
    for line in gateway.log_lines() {
        let msg = line["msg"].as_str().unwrap_or_default().to_owned();
        if msg.contains("is ejected") {
            let name = (0..fleet.len()).find(|i| msg.contains(&fleet.name(*i)));
            named.insert(name, msg);
        }
    }
    assert_eq!(
        named.keys().collect::<Vec<_>>(),
        [&Some(instance)],
        "{named:?}"
    );
}

fn pool(gateway: &Gateway) -> Value {
    let health = Request::get("/health").send_to(gateway.private_addr());
    health.json()["pools"]["s"].clone()
}

fn series(name: &str) -> String {
    format!(r#"{name}{{service="s"}}"#)
}
