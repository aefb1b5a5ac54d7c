//! Which instance: each strategy's shares, affinity, and the slow start of those that come back.

use crate::support::prelude::*;
use std::collections::BTreeMap;

#[test]
fn turns_are_exact_by_weight_one_by_one_and_all_at_once() {
    for weights in [[1, 1, 1], [1, 2, 3], [5, 1, 1]] {
        let fleet = Fleet::of(3);
        let gateway = weighted(&fleet, &weights, "strategy: round_robin").start();
        let rounds = 12;
        let sum: u32 = weights.iter().sum();
        let exact = |times: u32| weights.map(|weight| (weight * times) as usize);
        one_by_one(&gateway, (rounds * sum) as usize);
        assert_eq!(fleet.counts(), exact(rounds), "{weights:?}, one by one");
        at_once(&gateway, (rounds * sum) as usize);
        assert_eq!(fleet.counts(), exact(2 * rounds), "{weights:?}, at once");
    }
}

#[test]
fn turns_by_weight_are_mixed() {
    let fleet = Fleet::of(2);
    let gateway = weighted(&fleet, &[3, 2], "strategy: round_robin").start();
    one_by_one(&gateway, 20);
    let turns: Vec<usize> = fleet.requests().iter().map(|(i, _)| *i).collect();
    for five in turns.windows(5) {
        let heavy = five.iter().filter(|i| **i == 0).count();
        assert_eq!(heavy, 3, "{turns:?}");
    }
}

#[test]
fn chance_follows_the_weights() {
    for weights in [[1, 1, 1], [1, 2, 3]] {
        let fleet = Fleet::of(3);
        let gateway = weighted(&fleet, &weights, "strategy: random").start();
        one_by_one(&gateway, 300);
        at_once(&gateway, 300);
        assert_shares(&fleet, &weights, 600);
        let turns: Vec<usize> = fleet.requests().iter().map(|(i, _)| *i).collect();
        let repeated = turns.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(
            repeated > 60,
            "{repeated} repetitions: these are turns and not chance"
        );
    }
}

#[test]
fn the_fewest_connections_for_their_weight_get_the_next_request() {
    for (weights, expected) in [([1, 1, 1], [4, 4, 4]), ([1, 2, 3], [2, 4, 6])] {
        let fleet = Fleet::of(3);
        let gateway = weighted(&fleet, &weights, "strategy: least_connections").start();
        assert_eq!(
            held(&fleet, &gateway, 12, Request::get),
            expected,
            "{weights:?}"
        );
    }
}

#[test]
fn idle_instances_share_what_comes_one_by_one_although_all_have_the_fewest_connections() {
    let fleet = Fleet::of(3);
    let gateway = weighted(&fleet, &[1, 1, 1], "strategy: least_connections").start();
    one_by_one(&gateway, 90);
    let counts = fleet.counts();
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
}

#[test]
fn a_busy_instance_gets_nothing_while_others_are_idle() {
    for strategy in ["least_connections", "peak_ewma"] {
        let fleet = Fleet::of(3);
        fleet.set(|_, request| match request.path() {
            "/s/long" => Reply::hang(),
            _ => Reply::status(200),
        });
        let gateway = weighted(&fleet, &[1, 1, 1], &format!("strategy: {strategy}")).start();
        let mut long = Client::to(gateway.addr()).connect();
        long.send(&Request::get("/s/long").bytes());
        fleet.wait_heads(1);
        let busy = fleet.heads().iter().position(|heads| *heads == 1).unwrap();
        one_by_one(&gateway, 40);
        let heads = fleet.heads();
        // Two choices may both fall on what is busy only where they may be the same.
        assert_eq!(heads[busy], 1, "{strategy}: {heads:?}, and {busy} was busy");
    }
}

#[test]
fn the_default_spreads_over_equal_instances() {
    let fleet = Fleet::of(3);
    // So long that what a busy machine adds does not make one of them the slow one.
    fleet.set(|_, _| Reply::status(200).delay(Duration::from_millis(40)));
    let gateway = fleet.conf().top("balance", "{}").start();
    one_by_one(&gateway, 45);
    let serial = fleet.counts();
    assert!(
        serial.iter().all(|count| *count >= 3),
        "one by one: {serial:?}"
    );
    at_once(&gateway, 240);
    let all = fleet.counts();
    assert!(
        serial
            .iter()
            .zip(&all)
            .all(|(serial, all)| all - serial >= 24),
        "at once: {serial:?} to {all:?}"
    );
}

#[test]
fn the_default_follows_the_weights() {
    let fleet = Fleet::of(2);
    fleet.set(|_, _| Reply::status(200).delay(Duration::from_millis(5)));
    let gateway = weighted(&fleet, &[1, 5], "slow_start: 10s").start();
    at_once(&gateway, 300);
    let counts = fleet.counts();
    assert!(counts[1] > counts[0] * 3 / 2, "weights 1 and 5: {counts:?}");
}

#[test]
fn the_default_avoids_an_instance_that_is_slow() {
    let fleet = Fleet::of(4);
    fleet.set(|instance, _| {
        Reply::status(200).delay(Duration::from_millis(if instance == 2 { 150 } else { 5 }))
    });
    // As it is where nobody names a strategy.
    let gateway = fleet.conf().top("balance", "{}").start();
    at_once(&gateway, 80);
    let before = fleet.counts();
    at_once(&gateway, 400);
    let slow = fleet.counts()[2] - before[2];
    assert!(
        slow * 20 < 400,
        "the slow one got {slow} of 400: {:?}",
        fleet.counts()
    );
}

#[test]
fn the_default_takes_an_instance_back_that_is_fast_again() {
    let fleet = Fleet::of(2);
    fleet.set(|instance, _| {
        Reply::status(200).delay(Duration::from_millis(if instance == 0 { 200 } else { 5 }))
    });
    let gateway = fleet.conf().top("balance", "{}").start();
    at_once(&gateway, 100);
    fleet.set(|_, _| Reply::status(200).delay(Duration::from_millis(5)));
    let back = within(Duration::from_secs(15), || {
        let before = fleet.counts();
        at_once(&gateway, 40);
        (fleet.counts()[0] - before[0] >= 10).then_some(())
    });
    assert!(
        back.is_some(),
        "it is not asked any more: {:?}",
        fleet.counts()
    );
}

#[test]
fn a_user_keeps_their_instance() {
    let fleet = Fleet::of(3);
    let gateway = weighted(
        &fleet,
        &[1, 1, 1],
        "strategy: consistent_hash, hash_on: user",
    )
    .route("auth", "token")
    .start();
    let mut connection = Client::to(gateway.addr()).connect();
    for user in 0..60 {
        // Two tokens of the same user are the same user.
        for _ in 0..2 {
            let token = Token::user(&format!("user-{user}")).hs256();
            let request = Request::get(&format!("/s/{user}")).bearer(&token);
            assert_eq!(connection.request(&request).status, 200);
        }
    }
    let homes = homes(&fleet);
    assert_eq!(homes.len(), 60);
    assert_spread(&homes, 3, 60);
}

#[test]
fn a_header_or_a_cookie_keeps_its_instance_and_who_has_none_is_known_by_address() {
    let cases = [
        ("header:X-Device-Id", "X-Device-Id", "device-#"),
        (
            "cookie:session",
            "Cookie",
            "theme=dark; session=s#; lang=de",
        ),
    ];
    for (hash_on, header, value) in cases {
        let fleet = Fleet::of(3);
        let balance = format!("strategy: consistent_hash, hash_on: '{hash_on}'");
        let gateway = weighted(&fleet, &[1, 1, 1], &balance).start();
        let mut connection = Client::to(gateway.addr()).connect();
        for key in 0..60 {
            for _ in 0..3 {
                let request = Request::get(&format!("/s/{key}"))
                    .header(header, &value.replace('#', &key.to_string()));
                assert_eq!(connection.request(&request).status, 200);
            }
        }
        let homes = homes(&fleet);
        assert_spread(&homes, 3, 60);

        let before = fleet.counts();
        one_by_one(&gateway, 12);
        let grown: Vec<usize> = fleet
            .counts()
            .iter()
            .zip(&before)
            .map(|(n, b)| n - b)
            .collect();
        assert!(
            grown.contains(&12),
            "{hash_on}: one address, several homes: {grown:?}"
        );
    }
}

#[test]
fn a_weight_draws_more_keys() {
    let fleet = Fleet::of(2);
    let gateway = weighted(
        &fleet,
        &[1, 4],
        "strategy: consistent_hash, hash_on: 'header:X-Device-Id'",
    )
    .start();
    let mut connection = Client::to(gateway.addr()).connect();
    for key in 0..200 {
        get_as(&mut connection, key);
    }
    let counts = fleet.counts();
    assert!(counts[1] > counts[0] * 2, "weights 1 and 4: {counts:?}");
    assert!(counts[0] > 10, "weights 1 and 4: {counts:?}");
}

#[test]
fn the_death_of_an_instance_moves_its_keys_alone_and_its_return_moves_them_back() {
    let fleet = Fleet::of(4);
    let balance = "strategy: consistent_hash, hash_on: 'header:X-Device-Id', slow_start: 0s";
    let gateway = weighted(&fleet, &[1; 4], balance)
        .top("health", "{ interval: 500ms }")
        .start();
    let healthy = r#"upstream_healthy_instances{service="s"}"#;
    gateway.wait_metric(healthy, |n| n == 4.0);
    let now = || {
        let before = fleet.counts();
        let mut connection = Client::to(gateway.addr()).connect();
        let mut homes = BTreeMap::new();
        for key in 0..80 {
            let counts = fleet.counts();
            get_as(&mut connection, key);
            let home = (0..4).find(|i| fleet.counts()[*i] > counts[*i]).unwrap();
            homes.insert(key, home);
        }
        assert_eq!(
            fleet.counts().iter().sum::<usize>(),
            before.iter().sum::<usize>() + 80
        );
        homes
    };
    let all_there = now();
    fleet[1].stop();
    // At once, by another try, and then because it is known to be dead.
    for when in ["at once", "when it is known"] {
        if when != "at once" {
            gateway.wait_metric(healthy, |n| n == 3.0);
        }
        let without = now();
        let mut heirs = BTreeMap::<usize, usize>::new();
        for (key, home) in &all_there {
            match home {
                1 => *heirs.entry(without[key]).or_default() += 1,
                home => assert_eq!(*home, without[key], "{when}: key {key} has moved"),
            }
        }
        // Those that are tried again take what looks best, and the others what is next on the ring.
        assert!(
            heirs.len() > 1 || when == "at once",
            "all keys of the dead one went to one: {heirs:?}"
        );
        assert!(!heirs.contains_key(&1));
    }
    fleet[1].restart();
    gateway.wait_metric(healthy, |n| n == 4.0);
    assert_eq!(now(), all_there, "the keys have not all come back");
}

#[test]
fn two_requests_at_the_same_time_are_not_so_much_load_that_their_key_moves() {
    for instances in [2, 5] {
        let fleet = Fleet::of(instances);
        let gateway = fleet
            .conf()
            .top(
                "balance",
                "{ strategy: consistent_hash, hash_on: 'header:X-Device-Id' }",
            )
            .start();
        let counts = held(&fleet, &gateway, 2, |target| {
            Request::get(target).header("X-Device-Id", "same")
        });
        assert!(counts.contains(&2), "{counts:?}");
    }
}

#[test]
fn a_hot_key_does_not_fill_its_instance_beyond_a_quarter_more_than_its_share() {
    let fleet = Fleet::of(3);
    let balance = "strategy: consistent_hash, hash_on: 'header:X-Device-Id'";
    let gateway = weighted(&fleet, &[1, 1, 1], balance).start();
    let counts = held(&fleet, &gateway, 24, |target| {
        Request::get(target).header("X-Device-Id", "hot")
    });
    let most = *counts.iter().max().unwrap();
    // 1.25 x 24 / 3 is 10.
    assert!((8..=10).contains(&most), "{counts:?}");
}

#[test]
fn an_instance_that_comes_back_gets_little_at_first() {
    for strategy in ["round_robin", "random", "least_connections"] {
        let (fleet, gateway) = after_a_comeback(&format!("strategy: {strategy}, slow_start: 120s"));
        let before = fleet.counts();
        one_by_one(&gateway, 200);
        let back = fleet.counts()[1] - before[1];
        assert!(
            back <= 66,
            "{strategy}: {back} of 200 within the first of 120 s"
        );
    }
}

#[test]
fn an_instance_that_comes_back_gets_little_at_first_although_it_is_the_faster_one() {
    let (fleet, gateway) = after_a_comeback("strategy: peak_ewma, slow_start: 120s");
    // An idle instance looks fast, and one whose caches are cold is not so for long.
    fleet.set(|instance, _| Reply::status(200).delay(Duration::from_millis([40, 10][instance])));
    one_by_one(&gateway, 10);
    let before = fleet.counts();
    one_by_one(&gateway, 60);
    let back = fleet.counts()[1] - before[1];
    assert!(back <= 27, "{back} of 60 within the first of 120 s");
}

#[test]
fn an_instance_that_comes_back_has_its_share_when_its_slow_start_is_over() {
    for slow_start in ["0s", "1s"] {
        let balance = format!("strategy: round_robin, slow_start: {slow_start}");
        let (fleet, gateway) = after_a_comeback(&balance);
        let whole = within(SLOW_START_LIMIT, || {
            let before = fleet.counts();
            one_by_one(&gateway, 20);
            (fleet.counts()[1] - before[1] == 10).then_some(())
        });
        assert!(
            whole.is_some(),
            "{slow_start}: its share does not become whole"
        );
    }
}

#[test]
fn no_instance_starts_slowly_when_the_gateway_starts() {
    let fleet = Fleet::of(3);
    let gateway = weighted(
        &fleet,
        &[1, 1, 1],
        "strategy: round_robin, slow_start: 600s",
    )
    .top("health", "{ interval: 500ms }")
    .start();
    gateway.wait_metric(r#"upstream_healthy_instances{service="s"}"#, |n| n == 3.0);
    let before = fleet.counts();
    one_by_one(&gateway, 60);
    let grown: Vec<usize> = fleet
        .counts()
        .iter()
        .zip(&before)
        .map(|(n, b)| n - b)
        .collect();
    assert_eq!(grown, [20, 20, 20]);
}

#[test]
fn a_service_may_have_its_own_strategy() {
    let (own, other) = (Fleet::of(2), Fleet::of(1));
    let gateway = own
        .conf()
        .top("balance", "{ strategy: round_robin }")
        .service(
            "balance",
            "{ strategy: consistent_hash, hash_on: 'header:X-Device-Id' }",
        )
        .and_service("other", &other[0].url(), "")
        .start();
    let mut connection = Client::to(gateway.addr()).connect();
    for _ in 0..10 {
        get_as(&mut connection, 7);
    }
    assert!(own.counts().contains(&10), "{:?}", own.counts());
}

#[test]
fn an_impossible_balance_is_a_fault_of_the_configuration() {
    for (balance, place) in [
        ("strategy: fastest", "balance"),
        ("strategy: 1", "balance"),
        ("strategy: round_robin, hash_on: user", "balance.hash_on"),
        ("hash_on: user", "balance.hash_on"),
        (
            "strategy: consistent_hash, hash_on: body",
            "balance.hash_on",
        ),
        (
            "strategy: consistent_hash, hash_on: 'header:'",
            "balance.hash_on",
        ),
        (
            "strategy: consistent_hash, hash_on: 'header:a b'",
            "balance.hash_on",
        ),
        (
            "strategy: consistent_hash, hash_on: 'cookie:'",
            "balance.hash_on",
        ),
        (
            "strategy: consistent_hash, hash_on: 'cookie:a=b'",
            "balance.hash_on",
        ),
        ("slow_start: 10", "balance.slow_start"),
        ("no_such_key: 1", "balance"),
    ] {
        for at_service in [false, true] {
            let conf = Conf::at(&[refused_addr(), refused_addr()]);
            let balance = format!("{{ {balance} }}");
            let (conf, place) = match at_service {
                false => (conf.top("balance", &balance), place.to_owned()),
                true => (
                    conf.service("balance", &balance),
                    format!("services.s.{place}"),
                ),
            };
            let exit = conf.gateway().arg("--test").run_to_exit();
            assert_eq!(exit.code, 1, "{balance} is accepted");
            assert!(exit.stderr.contains(&place), "{balance}: {}", exit.stderr);
        }
    }
}

const SLOW_START_LIMIT: Duration = Duration::from_secs(8);

fn weighted(fleet: &Fleet, weights: &[u32], balance: &str) -> Conf {
    let conf = fleet.weighted_conf(weights);
    conf.top("balance", &format!("{{ {balance} }}"))
}

#[track_caller]
fn one_by_one(gateway: &Gateway, count: usize) {
    let mut connection = Client::to(gateway.addr()).connect();
    for i in 0..count {
        let response = connection.request(&Request::get(&format!("/s/{i}")));
        assert_eq!(response.status, 200);
    }
}

#[track_caller]
fn at_once(gateway: &Gateway, count: usize) {
    let requests = (0..count)
        .map(|i| Request::get(&format!("/s/{i}")))
        .collect();
    for response in burst(gateway.addr(), requests, 8) {
        assert_eq!(response.status, 200);
    }
}

#[track_caller]
fn get_as(connection: &mut Connection, key: usize) {
    let request =
        Request::get(&format!("/s/{key}")).header("X-Device-Id", &format!("device-{key}"));
    assert_eq!(connection.request(&request).status, 200);
}

/// How many each instance has when so many requests are in flight at the same time, of which each came when all before
/// it had arrived.
fn held(
    fleet: &Fleet,
    gateway: &Gateway,
    count: usize,
    request: impl Fn(&str) -> Request,
) -> Vec<usize> {
    let before = fleet.heads();
    fleet.iter().for_each(Upstream::hold);
    let mut waiting = Vec::new();
    for i in 0..count {
        let mut connection = Client::to(gateway.addr()).connect();
        connection.send(&request(&format!("/s/{i}")).bytes());
        waiting.push(connection);
        fleet.wait_heads(before.iter().sum::<usize>() + i + 1);
    }
    let counts = fleet
        .heads()
        .iter()
        .zip(before)
        .map(|(n, b)| n - b)
        .collect();
    fleet.iter().for_each(Upstream::release);
    for mut connection in waiting {
        assert_eq!(connection.read_response().status, 200);
    }
    counts
}

/// Which instance each target has; panics where one has several.
#[track_caller]
fn homes(fleet: &Fleet) -> BTreeMap<String, usize> {
    let mut homes = BTreeMap::new();
    for (instance, request) in fleet.requests() {
        let home = *homes.entry(request.target.clone()).or_insert(instance);
        assert_eq!(home, instance, "{} has moved", request.target);
    }
    homes
}

/// No instance has less than half or more than twice its share of the keys.
#[track_caller]
fn assert_spread(homes: &BTreeMap<String, usize>, instances: usize, keys: usize) {
    for instance in 0..instances {
        let count = homes.values().filter(|home| **home == instance).count();
        let share = keys / instances;
        assert!(
            (share / 2..=share * 2).contains(&count),
            "{instance} has {count} of {keys}"
        );
    }
}

/// Within five standard deviations of what the weights say.
#[track_caller]
fn assert_shares(fleet: &Fleet, weights: &[u32], all: usize) {
    let sum: u32 = weights.iter().sum();
    for (count, weight) in fleet.counts().iter().zip(weights) {
        let p = f64::from(*weight) / f64::from(sum);
        let expected = all as f64 * p;
        let deviation = (expected * (1.0 - p)).sqrt();
        let off = (*count as f64 - expected).abs();
        assert!(off < 5.0 * deviation, "{:?} by {weights:?}", fleet.counts());
    }
}

/// Two instances, of which the second has been ill and is well again just now.
fn after_a_comeback(balance: &str) -> (Fleet, Gateway) {
    let fleet = Fleet::of(2);
    let gateway = weighted(&fleet, &[1, 1], balance)
        .top("health", "{ interval: 500ms }")
        .start();
    let healthy = r#"upstream_healthy_instances{service="s"}"#;
    gateway.wait_metric(healthy, |n| n == 2.0);
    // So that all are known to be equally fast.
    one_by_one(&gateway, 20);
    fleet[1].set_healthy(false);
    gateway.wait_metric(healthy, |n| n == 1.0);
    fleet[1].set_healthy(true);
    gateway.wait_metric(healthy, |n| n == 2.0);
    (fleet, gateway)
}
