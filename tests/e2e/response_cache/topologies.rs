//! The second tier behind Sentinels and in a Cluster.

use super::{conf, fresh, get, is_hit, knows_redis, text};
use crate::support::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long a failover may take: it is not the gateway's.
const FAILOVER: Duration = Duration::from_secs(30);

#[track_caller]
fn pair(conf: &Conf, at: impl Fn(GatewayBuilder) -> GatewayBuilder) -> [Gateway; 2] {
    let gateways = [at(conf.gateway()).start(), at(conf.gateway()).start()];
    gateways.iter().for_each(knows_redis);
    gateways
}

/// Whether one process fetches, and the other serves from the tier, which has so many keys.
#[track_caller]
fn shares(a: &Gateway, b: &Gateway, path: &str, keys: impl Fn() -> usize) -> bool {
    let before = keys();
    let fetched = text(a, path);
    let limit = Duration::from_millis(500);
    if within(limit, || (keys() > before).then_some(())).is_none() {
        return false;
    }
    let hit = get(b, path);
    is_hit(&hit) && hit.text() == fetched
}

/// The path of something that both have, as soon as they share what this server keeps for them.
#[track_caller]
fn shared_by(a: &Gateway, b: &Gateway, redis: &Redis) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let path = within(Duration::from_secs(10), || {
        let path = format!("/s/shared/{}", NEXT.fetch_add(1, Ordering::Relaxed));
        shares(a, b, &path, || keys_of(redis)).then_some(path)
    });
    path.expect("the tier is taken up")
}

fn keys_of(redis: &Redis) -> usize {
    let keys = redis.command(&["KEYS", "cache:*:*"]);
    keys.split_whitespace().count()
}

#[test]
fn in_a_cluster_answers_lie_on_all_masters_and_a_purge_reaches_every_process() {
    let cluster = Cluster::start();
    let backend = fresh();
    let conf = conf(&backend)
        .route("cache", "{ tags: [things] }")
        .top("redis", "{ command_timeout: 2s }");
    let [a, b] = pair(&conf, |gateway| {
        gateway.env("REDIS_CLUSTER_NODES", cluster.seed())
    });
    let keys = || cluster.nodes[..3].iter().map(keys_of).sum();
    // Neither trusts the cluster before it has read what is out of date there.
    let mut tries = 0..;
    wait_until("both share what is kept", || {
        let path = format!("/s/first/{}", tries.next().unwrap_or_default());
        shares(&a, &b, &path, keys)
    });
    let before = backend.count();
    for number in 0..12 {
        assert!(shares(&a, &b, &format!("/s/{number}"), keys), "{number}");
    }
    assert_eq!(backend.count() - before, 12, "each was asked for once");
    let is_used = |master: &Redis| keys_of(master) > 0;
    assert!(
        cluster.nodes[..3].iter().all(is_used),
        "they lie on all masters"
    );
    let before = text(&b, "/s/3");
    super::purge(&a, &json!({"tag": "things"}));
    wait_until("the other process has heard of it", || {
        text(&b, "/s/3") != before
    });
    for gateway in [&a, &b] {
        let failed = gateway.metric(r#"redis_commands_failed_total{cause="error"}"#);
        assert_eq!(failed, 0.0);
    }
}

#[test]
fn a_failover_costs_no_answer_and_what_was_kept_is_kept_by_the_successor() {
    let _alone = alone();
    let mut watched = Watched::start("p");
    let backend = fresh();
    let conf = conf(&backend).top(
        "redis",
        "{ command_timeout: 200ms, sentinel: { password: p } }",
    );
    let sentinels = watched.addresses();
    let at = |gateway: GatewayBuilder| {
        gateway
            .env("REDIS_SENTINEL_MASTER", "tickets")
            .env("REDIS_SENTINELS", &sentinels)
    };
    let [a, b] = pair(&conf, at);
    let path = shared_by(&a, &b, &watched.servers[0]);
    let kept = text(&a, &path);
    wait_until("the replica knows", || {
        keys_of(&watched.servers[1]) == keys_of(&watched.servers[0])
    });
    watched.servers[0].kill();
    let mut number = 0;
    let over = within(FAILOVER, || {
        number += 1;
        // Hits go on from memory, and misses do without the tier.
        assert!(is_hit(&get(&a, &path)));
        assert_eq!(get(&a, &format!("/s/meanwhile/{number}")).status, 200);
        (1..3)
            .all(|i| watched.named_by(i).is_running())
            .then_some(())
    });
    assert!(over.is_some(), "the sentinels name no other master");
    shared_by(&a, &b, &watched.servers[1]);
    // What the old one had is there still, for a process that has nothing in memory.
    let c = at(conf.gateway()).start();
    knows_redis(&c);
    shared_by(&a, &c, &watched.servers[1]);
    assert_eq!(text(&c, &path), kept);
}
