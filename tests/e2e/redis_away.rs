//! A network that drops every packet to Redis: no request waits for it, and it is taken up again by itself.

use crate::support::prelude::*;

/// Redis that is back is taken up within two seconds; one more is for a machine that has other things to do.
const TAKEN_UP: Duration = Duration::from_secs(3);

/// What a command may take.
const LIMIT: Duration = Duration::from_millis(50);

#[test]
fn a_network_that_drops_all_packets_costs_one_moment_and_no_more() {
    let _alone = alone();
    let redis = Redis::start();
    let (_backend, gateway) = start_with(&redis, |gateway| gateway.env("SERVER_THREADS", 2));
    let counted = || redis.command(&["EXISTS", "rl:user:before"]) == "1";
    assert_eq!(status(&gateway, "before"), 200);
    wait_until("it is counted in redis", counted);
    let load = load(&gateway);
    let more = |count: usize| {
        let before = load.answered();
        let came = within(Duration::from_secs(30), || {
            (load.answered() >= before + count).then_some(())
        });
        assert!(came.is_some(), "the load does not go on");
    };
    more(1000);
    let began = Instant::now();
    let hole = BlackHole::at(redis.port());
    more(3000);
    assert_eq!(ready(&gateway), "degraded");
    let health = health(&gateway);
    assert_eq!(health["mode"], "server");
    assert_eq!(health["commands"]["state"], "away");
    let since: jiff::Timestamp = health["commands"]["since"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let elapsed = jiff::Timestamp::now().duration_since(since).unsigned_abs();
    assert!(
        elapsed <= began.elapsed() + Duration::from_millis(10),
        "{elapsed:?}"
    );
    let late = gateway.metric(r#"redis_commands_failed_total{cause="timeout"}"#);
    assert!(late >= 1.0);
    let ended = Instant::now();
    drop(hole);
    let back = within(TAKEN_UP, || (ready(&gateway) == "ok").then_some(()));
    assert!(back.is_some(), "redis is not taken up within {TAKEN_UP:?}");
    println!(
        "measured: taken up {:?} after the packets came through",
        ended.elapsed()
    );
    more(1000);
    let traffic = load.stop();

    println!("measured: {traffic}");
    let meanwhile = traffic.only(|one| one.sent >= began && one.sent < ended);
    println!("measured: {late} commands waited in vain; meanwhile {meanwhile}");
    assert!(traffic.bad().is_empty(), "{traffic}");
    assert!(meanwhile.len() >= 3000);
    assert!(meanwhile.percentile(99.0) < LIMIT, "{meanwhile}");
    // One of each client, on each of the connections.
    assert!(late <= 8.0 * 2.0, "{late} commands waited");
    wait_until("what was granted meanwhile is told to redis", || {
        let spent = redis.command(&["LINDEX", "rl:user:u1", "0"]);
        spent
            .parse::<usize>()
            .is_ok_and(|spent| spent >= traffic.len())
    });
}

#[test]
fn a_revocation_holds_while_all_packets_are_dropped_and_what_came_meanwhile_is_read_afterwards() {
    let redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    redis.command(&["SET", "session:revoked:user:early", "99999999999"]);
    wait_until("it is revoked", || status(&gateway, "early") == 401);
    let hole = BlackHole::at(redis.port());
    let noticed = within(Duration::from_secs(10), || {
        assert_eq!(status(&gateway, "early"), 401);
        (gateway.metric("redis_up") == 0.0).then_some(())
    });
    assert!(
        noticed.is_some(),
        "nobody noticed that no packet comes through"
    );
    drop(hole);
    redis.command(&["SET", "session:revoked:user:late", "99999999999"]);
    let read = within(TAKEN_UP, || (status(&gateway, "late") == 401).then_some(()));
    assert!(read.is_some(), "what was written meanwhile is not read");
    assert_eq!(status(&gateway, "early"), 401);
    assert!(gateway.metric(r#"redis_reconnects_total{connection="follower"}"#) >= 1.0);
}

#[test]
fn a_node_of_a_cluster_that_no_packet_reaches_keeps_nobody_away_while_it_is_a_replica() {
    let cluster = Cluster::start();
    let addresses: Vec<String> = cluster
        .nodes
        .iter()
        .map(|node| node.addr().to_string())
        .collect();
    let backend = Upstream::start();
    let replica = BlackHole::at(cluster.nodes[3].port());
    // It is among those that are asked.
    let gateway = Gateway::with(&yaml(&backend))
        .env("REDIS_CLUSTER_NODES", addresses[3..].join(","))
        .start();
    wait_until("the cluster is used", || ready(&gateway) == "ok");
    drop(replica);

    // Nodes speak to each other at other ports: nobody takes the master's place.
    let master = BlackHole::at(cluster.nodes[0].port());
    let noticed = within(Duration::from_secs(10), || {
        assert_eq!(status(&gateway, "u1"), 200);
        (health(&gateway)["commands"]["state"] == "away").then_some(())
    });
    assert!(
        noticed.is_some(),
        "nobody noticed that a master is not reached"
    );
    assert_eq!(ready(&gateway), "degraded");
    drop(master);
    let back = within(TAKEN_UP, || (ready(&gateway) == "ok").then_some(()));
    assert!(
        back.is_some(),
        "the cluster is not taken up within {TAKEN_UP:?}"
    );
    assert_eq!(status(&gateway, "u2"), 200);
    wait_until("it is counted in the cluster", || {
        cluster.command(&["EXISTS", "rl:user:{u2}"]) == "1"
    });
}

#[test]
fn without_redis_nothing_is_said_of_it() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend)).start();
    assert_eq!(health(&gateway), Value::Null);
    assert_eq!(ready(&gateway), Value::Null);
}

fn load(gateway: &Gateway) -> Running {
    let request = of("u1");
    Load::on(gateway.addr())
        .per_second("all", 400.0, 8, move |_| request.clone())
        .start()
}

fn of(user: &str) -> Request {
    Request::get("/").bearer(&Token::user(user).hs256())
}

#[track_caller]
fn status(gateway: &Gateway, user: &str) -> u16 {
    of(user).send_to(gateway.addr()).status
}

#[track_caller]
fn ready(gateway: &Gateway) -> Value {
    let response = Request::get("/ready").send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["checks"]["redis"].clone()
}

#[track_caller]
fn health(gateway: &Gateway) -> Value {
    let response = Request::get("/health").send_to(gateway.addr());
    response.json()["redis"].clone()
}

#[track_caller]
fn start(redis: &Redis) -> (Upstream, Gateway) {
    start_with(redis, |gateway| gateway)
}

#[track_caller]
fn start_with(
    redis: &Redis,
    change: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend))
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port());
    let gateway = change(gateway).start();
    wait_until("redis is used", || ready(&gateway) == "ok");
    (backend, gateway)
}

fn yaml(backend: &Upstream) -> String {
    format!(
        r#"
limits: {{ global: {{ max: 1000000, window: 600s }}, flood: {{ per_second: 100000 }} }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes: [{{ path: "/*", service: backend, auth: token }}]
"#,
        backend.url()
    )
}
