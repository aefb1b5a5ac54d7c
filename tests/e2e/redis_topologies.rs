//! Redis behind Sentinels, as a Cluster, over TLS, and for a user with few rights: limits are exact, revocations are
//! followed, and what becomes of its servers costs no request (docs/decisions/0010).

use crate::support::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Redis that is back is taken up within two seconds; one more is for a machine that has other things to do.
const TAKEN_UP: Duration = Duration::from_secs(3);

/// How long a failover may take: it is not the gateway's.
const FAILOVER: Duration = Duration::from_secs(30);

/// How long a revocation may take to be in force.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The JWT_REFRESH_SECRET of gateways here that have one.
const REFRESH_SECRET: &str = "e2e-refresh-secret-0123456789-abcdefghij";

const DECISION: &str = include_str!("../../docs/decisions/0010-redis-topologies.md");

#[test]
fn the_master_that_sentinels_name_is_used_and_its_successor_within_two_seconds() {
    let _alone = alone();
    let password = "password-of-the-sentinels";
    let mut watched = Watched::start(password);
    // One of those that are asked is nobody, and one is silent.
    watched.sentinels[0].freeze();
    let sentinels = format!("{},{}", refused_addr(), watched.addresses());
    let settings = format!("sentinel: {{ password: {password} }}");
    let (_backend, [a, b]) = start(&settings, "", |gateway| {
        gateway
            .env("REDIS_SENTINEL_MASTER", "tickets")
            .env("REDIS_SENTINELS", &sentinels)
            .env("LOG_LEVEL", "debug")
    });
    for gateway in [&a, &b] {
        is_used(gateway);
        assert_eq!(health(gateway)["mode"], "sentinel");
    }
    let revoked = user("revoked");
    watched.servers[0].command(&["SET", "session:revoked:user:revoked", "99999999999"]);
    wait_status("revoked before", &a, &revoked, 401);
    wait_status("revoked before", &b, &revoked, 401);
    assert_eq!(statuses(&a, &of("u1"), 2), [200; 2]);
    assert_eq!(statuses(&b, &of("u1"), 1), [200]);
    let copied = || watched.servers[1].command(&["LINDEX", "rl:user:u1", "0"]) == "3";
    wait_until("the replica knows", copied);

    let loads = [&a, &b].map(load);
    let before = Instant::now();
    watched.servers[0].kill();
    let over = within(FAILOVER, || {
        (1..3)
            .all(|i| watched.named_by(i).is_running())
            .then(Instant::now)
    });
    println!(
        "measured: a failover of {:?}",
        over.map(|over| over - before)
    );
    let over = over.expect("the sentinels name no other master");
    let successor = &watched.servers[1];
    taken_up(
        &[&a, &b],
        |key| successor.command(&["EXISTS", key]) == "1",
        TAKEN_UP,
    );
    println!("measured: taken up {:?} after it", over.elapsed());
    for gateway in [&a, &b] {
        is_used(gateway);
        assert!(gateway.metric(r#"redis_reconnects_total{connection="commands"}"#) > 0.0);
        assert!(gateway.metric(r#"redis_reconnects_total{connection="follower"}"#) > 0.0);
        assert_eq!(
            status(gateway, &revoked),
            401,
            "revoked before the failover"
        );
        let output = gateway.raw_output();
        assert!(!output.contains(password), "{output}");
    }
    for traffic in loads.map(Running::stop) {
        no_request_suffered(&traffic);
    }
    // What was counted before is counted still.
    assert_eq!(statuses(&a, &of("u1"), 2), [200; 2]);
    assert_eq!(statuses(&b, &of("u1"), 1), [429]);
    successor.command(&["SET", "session:revoked:user:late", "99999999999"]);
    wait_status("revoked after", &a, &user("late"), 401);
}

#[test]
fn a_master_that_became_a_replica_is_left_for_the_one_that_sentinels_name() {
    let watched = Watched::start("p");
    let sentinels = watched.addresses();
    let (_backend, [gateway]) = start("sentinel: { password: p }", "", |gateway| {
        gateway
            .env("REDIS_SENTINEL_MASTER", "tickets")
            .env("REDIS_SENTINELS", &sentinels)
    });
    is_used(&gateway);
    // Its connections are not closed, and it answers as before; but it takes no writes.
    let [old, new] = [&watched.servers[0], &watched.servers[1]];
    let nowhere = refused_addr().port().to_string();
    old.command(&["REPLICAOF", "127.0.0.1", &nowhere]);
    wait_until("the commands are away", || {
        statuses(&gateway, &of("u1"), 1);
        health(&gateway)["commands"]["state"] == "away"
    });
    assert!(gateway.metric(r#"redis_commands_failed_total{cause="error"}"#) > 0.0);
    wait_until("it is not followed", || {
        health(&gateway)["follower"]["state"] == "away"
    });
    old.command(&["REPLICAOF", "NO", "ONE"]);
    let counted = |key: &str| old.command(&["EXISTS", key]) == "1";
    taken_up(&[&gateway], counted, TAKEN_UP);

    // The Sentinels themselves change the master while both live.
    watched.sentinels[0].command(&["SENTINEL", "FAILOVER", "tickets"]);
    let over = within(FAILOVER, || {
        (0..3)
            .all(|i| watched.named_by(i).port() == new.port())
            .then_some(())
    });
    assert!(over.is_some(), "the sentinels name no other master");
    let counted = |key: &str| new.command(&["EXISTS", key]) == "1";
    taken_up(&[&gateway], counted, TAKEN_UP);
    wait_until("it is used", || ready(&gateway) == "ok");
}

#[test]
fn on_a_cluster_limits_are_exact_over_all_processes_and_a_caller_has_one_slot() {
    let cluster = Cluster::start();
    let (backend, [a, b]) = start("", "global: { max: 30, window: 60s }", |gateway| {
        gateway.env("REDIS_CLUSTER_NODES", cluster.seed())
    });
    for gateway in [&a, &b] {
        is_used(gateway);
        assert_eq!(health(gateway)["mode"], "cluster");
    }
    let users: Vec<String> = (0..12).map(|i| format!("u{i}")).collect();
    let requests: Vec<Request> = (0..20 * users.len())
        .map(|i| both(&users[i % users.len()]))
        .collect();
    let responses = thread::scope(|scope| {
        let races = [&a, &b].map(|gateway| {
            let (addr, requests) = (gateway.addr(), requests.clone());
            scope.spawn(move || burst(addr, requests, 6))
        });
        races.map(|race| race.join().unwrap()).concat()
    });
    let with = |status| responses.iter().filter(|one| one.status == status).count();
    assert_eq!((with(200), with(429)), (30 * 12, 10 * 12));
    assert_eq!(count(&backend), 30 * 12);
    let mut ports: Vec<u16> = Vec::new();
    for user in &users {
        let [global, search] = ["", ":search"].map(|limit| format!("rl:user:{{{user}}}{limit}"));
        assert_eq!(cluster.command(&["LINDEX", &global, "0"]), "30", "{global}");
        assert_eq!(cluster.command(&["LINDEX", &search, "0"]), "30", "{search}");
        ports.push(cluster.of_key(&global).port());
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3, "they lie on all masters");
    for gateway in [&a, &b] {
        assert_eq!(
            gateway.metric(r#"redis_commands_failed_total{cause="error"}"#),
            0.0
        );
        assert_eq!(
            gateway.metric(r#"redis_commands_failed_total{cause="timeout"}"#),
            0.0
        );
    }

    // The documented way to give somebody a new start, at the right node.
    cluster.command(&["DEL", "rl:user:{u1}"]);
    assert_eq!(statuses(&b, &of("u1"), 1), [200]);
    assert_eq!(statuses(&a, &of("u2"), 1), [429]);
    // Ids that a slot's braces do not go together with.
    for name in ["}u", "a}b{c", "%7Du", "{}"] {
        assert_eq!(both(name).send_to(a.addr()).status, 200, "{name}");
        let next = both(name).send_to(b.addr());
        assert_eq!(number(&next, "X-RateLimit-Remaining"), 28, "{name}");
    }
    // A purchase's two limits are of one caller as well.
    let buy = || {
        Request::post("/buy")
            .bearer(&user("u99"))
            .body(r#"{"eventId":"e1"}"#)
    };
    assert_eq!(buy().send_to(a.addr()).status, 200);
    assert_eq!(cluster.command(&["LINDEX", "rl:ticket:{u99}:e1", "0"]), "1");
    assert_eq!(cluster.command(&["LINDEX", "rl:user:{u99}", "0"]), "1");
    Request::get("/public").send_to(a.addr());
    assert_eq!(cluster.command(&["LINDEX", "rl:ip:{127.0.0.1}", "0"]), "1");
}

#[test]
fn a_master_of_a_cluster_that_dies_costs_no_request_and_what_was_granted_meanwhile_is_spent() {
    let _alone = alone();
    let mut cluster = Cluster::start();
    let doomed = cluster.nodes[0].port();
    // One of those that are asked is nobody, and one is going to die.
    let seeds = format!("{},127.0.0.1:{doomed},{}", refused_addr(), cluster.seed());
    let (_backend, [a, b]) = start(
        "command_timeout: 50ms",
        "global: { max: 1000, window: 60s }",
        |gateway| gateway.env("REDIS_CLUSTER_NODES", &seeds),
    );
    for gateway in [&a, &b] {
        is_used(gateway);
    }
    let victims: Vec<String> = (0..30)
        .map(|i| format!("v{i}"))
        .filter(|name| {
            let key = format!("rl:user:{{{name}}}");
            cluster.of_key(&key).port() == doomed
        })
        .collect();
    let victim = victims
        .first()
        .expect("one of thirty has a slot of the first master");
    let loads = [&a, &b].map(load);
    let before = Instant::now();
    cluster.nodes[0].kill();
    wait_until("the commands are away", || {
        [&a, &b].map(|gateway| health(gateway)["commands"]["state"] == "away") == [true; 2]
    });
    for gateway in [&a, &b] {
        assert_eq!(statuses(gateway, &of(victim), 3), [200; 3]);
        assert_eq!(ready(gateway), "degraded");
    }
    let over = within(FAILOVER, || cluster.has_replaced(0).then(Instant::now));
    let over = over.expect("the cluster does not get whole again");
    println!("measured: a failover of {:?}", over - before);
    let counted = |key: &str| {
        cluster
            .try_of_key(key)
            .is_some_and(|node| node.command(&["EXISTS", key]) == "1")
    };
    taken_up(&[&a, &b], |key| counted(&tagged(key)), TAKEN_UP);
    println!("measured: taken up {:?} after it", over.elapsed());
    for gateway in [&a, &b] {
        wait_until("it is used", || ready(gateway) == "ok");
    }
    for traffic in loads.map(Running::stop) {
        no_request_suffered(&traffic);
    }
    let key = format!("rl:user:{{{victim}}}");
    wait_until("six were spent", || {
        let spent: u32 = cluster.command(&["LINDEX", &key, "0"]).parse().unwrap_or(0);
        (6..=12).contains(&spent)
    });
}

#[test]
fn slots_may_move_while_they_are_used() {
    let cluster = Cluster::start();
    for node in &cluster.nodes {
        grant(node, "of-the-gateway");
    }
    let (_backend, [a, b]) = start("", "global: { max: 6, window: 60s }", |gateway| {
        gateway
            .env("REDIS_CLUSTER_NODES", cluster.seed())
            .env("REDIS_USERNAME", "gateway")
            .env("REDIS_PASSWORD", "of-the-gateway")
    });
    for gateway in [&a, &b] {
        is_used(gateway);
    }
    let key = "rl:user:{u1}";
    assert_eq!(statuses(&a, &of("u1"), 2), [200; 2]);
    let from = cluster.of_key(key);
    let to = &cluster.nodes[(0..3)
        .find(|i| cluster.nodes[*i].port() != from.port())
        .unwrap()];
    let slot = from.command(&["CLUSTER", "KEYSLOT", key]);
    let ids = [from, to].map(|node| node.command(&["CLUSTER", "MYID"]));
    to.command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]]);
    from.command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]);
    assert_eq!(
        statuses(&b, &of("u1"), 1),
        [200],
        "the key has not moved yet"
    );
    let port = to.port().to_string();
    from.command(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    assert_eq!(
        statuses(&a, &of("u1"), 1),
        [200],
        "the key has moved, the slot has not"
    );
    for node in [
        to,
        from,
        &cluster.nodes[0],
        &cluster.nodes[1],
        &cluster.nodes[2],
    ] {
        node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[1]]);
    }
    assert_eq!(statuses(&b, &of("u1"), 3), [200, 200, 429], "six in all");
    assert_eq!(to.command(&["LINDEX", key, "0"]), "6");
}

#[test]
fn revocations_are_followed_on_every_master_of_a_cluster() {
    let mut cluster = Cluster::start();
    // Some are there before the start, on all masters.
    for i in 0..12 {
        let key = format!("session:revoked:user:early{i}");
        cluster.command(&["SET", &key, "99999999999"]);
    }
    let (_backend, [gateway]) = start("", "", |gateway| {
        gateway.env("REDIS_CLUSTER_NODES", cluster.seed())
    });
    is_used(&gateway);
    for i in 0..12 {
        wait_status("early", &gateway, &user(&format!("early{i}")), 401);
    }
    for i in 0..12 {
        let (name, key) = (format!("u{i}"), format!("session:revoked:user:u{i}"));
        assert_eq!(status(&gateway, &user(&name)), 200, "{name}");
        cluster.command(&["SET", &key, "99999999999"]);
        wait_status(&name, &gateway, &user(&name), 401);
    }
    cluster.command(&["DEL", "session:revoked:user:u3"]);
    wait_status("no longer", &gateway, &user("u3"), 200);

    // What is said to be out of date is removed where it lies, whichever node it was said to.
    for i in 0..6 {
        let key = format!("cache:venue:member:v{i}:u1");
        cluster.command(&["SET", &key, "1"]);
        cluster.nodes[i % 3].command(&["PUBLISH", "cache:forget", &key]);
        wait_until(&format!("{key} is gone"), || {
            cluster.command(&["EXISTS", &key]) == "0"
        });
    }

    // While a master is dead what is known holds; and its replica is followed afterwards.
    wait_until("the replicas know", || {
        (3..6).all(|i| {
            let info = cluster.nodes[i].command(&["INFO", "keyspace"]);
            info.contains("keys=")
        })
    });
    cluster.nodes[1].kill();
    wait_until("/ready says so", || ready(&gateway) == "degraded");
    for i in [0, 1, 2, 4, 5] {
        assert_eq!(status(&gateway, &user(&format!("u{i}"))), 401);
    }
    assert_eq!(status(&gateway, &user("u3")), 200);
    assert!(within(FAILOVER, || cluster.has_replaced(1).then_some(())).is_some());
    let back = within(TAKEN_UP, || (ready(&gateway) == "ok").then_some(()));
    assert!(
        back.is_some(),
        "it is not followed again within {TAKEN_UP:?}"
    );
    for i in 20..32 {
        let name = format!("u{i}");
        cluster.command(&[
            "SET",
            &format!("session:revoked:user:{name}"),
            "99999999999",
        ]);
        wait_status(&name, &gateway, &user(&name), 401);
    }
}

#[test]
fn tls_is_verified_and_without_it_the_gateway_goes_on_by_itself() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let redis = tls_server(&ours, "redis", "IP:127.0.0.1", "no");
    let (_backend, [gateway]) = start(&tls(&ours.ca()), "", |gateway| to_tls(gateway, &redis));
    is_used(&gateway);
    assert_eq!(statuses(&gateway, &of("u1"), 1), [200]);
    assert_eq!(redis.command(&["LINDEX", "rl:user:u1", "0"]), "1");
    redis.command(&["SET", "session:revoked:user:u1", "99999999999"]);
    wait_status("revoked", &gateway, &user("u1"), 401);

    // Signed by somebody else, for somebody else, and by nobody that the system knows.
    let other = tls_server(&ours, "other", "DNS:other.example", "no");
    for (what, settings, redis) in [
        ("authority", tls(&theirs.ca()), &redis),
        ("name", tls(&ours.ca()), &other),
        ("roots", "tls: { enabled: true }".to_owned(), &redis),
    ] {
        let (_backend, [gateway]) = start(&settings, "", |gateway| to_tls(gateway, redis));
        let away =
            |line: &Value| line["level"] == "warn" && line["msg"].to_string().contains("away");
        let told = gateway.wait_log(away)["msg"].to_string();
        assert!(told.contains("certificate"), "{what}: {told}");
        assert_eq!(ready(&gateway), "degraded", "{what}");
        assert_eq!(statuses(&gateway, &of("u2"), 3), [200; 3], "{what}");
        assert_eq!(redis.command(&["EXISTS", "rl:user:u2"]), "0", "{what}");
    }
}

/// They are gone when the connections are made anew.
#[test]
fn the_systems_roots_are_read_once() {
    let ours = Authority::new();
    let redis = tls_server(&ours, "redis", "IP:127.0.0.1", "no");
    let roots = TempFile::new("pem", &std::fs::read_to_string(ours.ca()).unwrap());
    let (_backend, [gateway]) = start("tls: { enabled: true }", "", |gateway| {
        to_tls(gateway, &redis).env("SSL_CERT_FILE", roots.path().display())
    });
    is_used(&gateway);
    drop(roots);
    for of_type in ["normal", "pubsub"] {
        redis.command(&["CLIENT", "KILL", "TYPE", of_type]);
    }
    for connection in ["commands", "follower"] {
        let again = format!("redis_reconnects_total{{connection=\"{connection}\"}}");
        gateway.wait_metric(&again, |count| count >= 1.0);
    }
    is_used(&gateway);
    assert_eq!(statuses(&gateway, &of("u1"), 1), [200]);
    assert_eq!(redis.command(&["LINDEX", "rl:user:u1", "0"]), "1");
}

#[test]
fn a_redis_that_asks_for_a_certificate_is_shown_one() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let redis = tls_server(&ours, "redis", "IP:127.0.0.1", "yes");
    let files = |(cert, key): &(String, String)| {
        format!("tls: {{ ca: {}, cert: {cert}, key: {key} }}", ours.ca())
    };
    let good = ours.sign("gateway", "DNS:gateway");
    let (_backend, [gateway]) = start(&files(&good), "", |gateway| to_tls(gateway, &redis));
    is_used(&gateway);
    for settings in [
        tls(&ours.ca()),
        files(&theirs.sign("gateway", "DNS:gateway")),
    ] {
        let (_backend, [gateway]) = start(&settings, "", |gateway| to_tls(gateway, &redis));
        gateway
            .wait_log(|line| line["level"] == "warn" && line["msg"].to_string().contains("away"));
        assert_eq!(ready(&gateway), "degraded", "{settings}");
        assert_eq!(statuses(&gateway, &of("u1"), 3), [200; 3], "{settings}");
    }
    // A key that is not the certificate's is found before anything runs.
    let other = ours.sign("other", "DNS:other");
    let exit = Gateway::with(&yaml(&files(&(good.0, other.1)), "", "http://127.0.0.1:1"))
        .env("REDIS_HOST", "127.0.0.1")
        .arg("--test")
        .run_to_exit();
    assert_eq!(exit.code, 1);
    assert!(
        exit.stderr.contains("redis.tls: `cert` and `key`"),
        "{}",
        exit.stderr
    );
}

#[test]
fn sentinels_and_the_nodes_of_a_cluster_are_spoken_to_over_tls() {
    let authority = Authority::new();
    let mut certificate = authority.server("redis", "IP:127.0.0.1");
    certificate.extend(["--tls-auth-clients", "no"].map(str::to_owned));
    let cluster = Cluster::start_over_tls(&certificate);
    let watched = Watched::start_over_tls("p", &certificate);
    let settings = format!("{}, sentinel: {{ password: p }}", tls(&authority.ca()));
    let (_backend, [named]) = start(&settings, "", |gateway| {
        let gateway = gateway.env("REDIS_SENTINEL_MASTER", "tickets");
        gateway.env("REDIS_SENTINELS", watched.addresses())
    });
    let (_backend, [many]) = start(&tls(&authority.ca()), "", |gateway| {
        gateway.env("REDIS_CLUSTER_NODES", cluster.seed())
    });
    for gateway in [&named, &many] {
        is_used(gateway);
        for name in ["u1", "u2", "u3", "u4"] {
            assert_eq!(statuses(gateway, &both(name), 1), [200], "{name}");
        }
    }
    for name in ["u1", "u2", "u3", "u4"] {
        let key = format!("rl:user:{name}");
        assert_eq!(watched.servers[0].command(&["LINDEX", &key, "0"]), "1");
        assert_eq!(cluster.command(&["LINDEX", &tagged(&key), "0"]), "1");
        let revoked = format!("session:revoked:user:{name}");
        watched.servers[0].command(&["SET", &revoked, "99999999999"]);
        cluster.command(&["SET", &revoked, "99999999999"]);
        wait_status(name, &named, &user(name), 401);
        wait_status(name, &many, &user(name), 401);
    }
    // The same servers, and an authority that did not sign them.
    let (_backend, [apart]) = start(&tls(&Authority::new().ca()), "", |gateway| {
        gateway.env("REDIS_CLUSTER_NODES", cluster.seed())
    });
    apart.wait_log(|line| line["level"] == "warn" && line["msg"].to_string().contains("away"));
    assert_eq!(ready(&apart), "degraded");
    assert_eq!(statuses(&apart, &both("u1"), 1), [200]);
}

#[test]
fn the_documented_rights_are_enough_and_none_is_idle() {
    let password = "password-of-the-gateway";
    let redis = Redis::start();
    let cluster = Cluster::start();
    for server in cluster.nodes.iter().chain([&redis]) {
        grant(server, password);
        // Not those of the tests' own commands.
        server.command(&["CONFIG", "RESETSTAT"]);
    }
    let with_user = |gateway: GatewayBuilder| {
        gateway
            .env("REDIS_USERNAME", "gateway")
            .env("REDIS_PASSWORD", password)
            .env("JWT_REFRESH_SECRET", REFRESH_SECRET)
            .env("LOG_LEVEL", "debug")
    };
    let (_backend, [one]) = start("", "", |gateway| {
        let gateway = gateway.env("REDIS_HOST", "127.0.0.1");
        with_user(gateway.env("REDIS_PORT", redis.port()))
    });
    let (_backend, [many]) = start("", "", |gateway| {
        with_user(gateway.env("REDIS_CLUSTER_NODES", cluster.seed()))
    });
    let watched = Watched::start("p");
    for server in &watched.servers {
        grant(server, password);
    }
    let (_backend, [named]) = start("sentinel: { password: p }", "", |gateway| {
        let gateway = gateway.env("REDIS_SENTINEL_MASTER", "tickets");
        with_user(gateway.env("REDIS_SENTINELS", watched.addresses()))
    });
    for gateway in [&one, &many, &named] {
        is_used(gateway);
    }
    let buy = Request::post("/buy")
        .bearer(&user("u1"))
        .body(r#"{"eventId":"e1"}"#);
    for _ in 0..7 {
        buy.send_to(one.addr());
    }
    // Given back after a while, and one after the other.
    let pay = Request::post("/pay").bearer(&user("u2"));
    assert_eq!(pay.send_to(one.addr()).status, 200);
    wait_until("it is given back", || {
        redis.command(&["EXISTS", "rl:user:u2:payment"]) == "0"
    });
    // Grants that are older than their window are taken out of it.
    wait_until("a window has moved on", || {
        let request = Request::get("/short").bearer(&user("u3"));
        assert_eq!(request.send_to(one.addr()).status, 200);
        redis
            .command(&["INFO", "commandstats"])
            .contains("cmdstat_rpop:")
    });
    redis.command(&["SET", "session:blacklist:x.y.z", "1"]);
    redis.command(&["SET", "session:revoked:user:u9", "99999999999"]);
    wait_status("revoked", &one, &user("u9"), 401);
    for key in ["session:user:u9", "cache:venue:member:v1:u1"] {
        redis.command(&["SET", key, "1"]);
        redis.command(&["PUBLISH", "cache:forget", key]);
        wait_until("it is removed", || redis.command(&["EXISTS", key]) == "0");
    }
    for gateway in [&one, &many] {
        uses_of_callers(gateway);
    }
    assert_eq!(statuses(&many, &both("u1"), 2), [200; 2]);
    let stats = || redis.command(&["INFO", "commandstats"]);
    let mut asked = 0;
    wait_until("answers are looked for in redis", || {
        asked += 1;
        Request::get(&format!("/kept?{asked}")).send_to(one.addr());
        stats().contains("cmdstat_getrange:")
    });
    assert_eq!(Request::post("/kept").send_to(one.addr()).status, 200);
    wait_until("what is out of date is told", || {
        stats().contains("cmdstat_expire:")
    });
    for server in cluster.nodes.iter().chain(&watched.servers).chain([&redis]) {
        assert_eq!(server.command(&["ACL", "LOG"]), "", "something was denied");
    }
    for gateway in [&one, &many, &named] {
        assert_eq!(
            gateway.metric(r#"redis_commands_failed_total{cause="error"}"#),
            0.0
        );
        assert!(!gateway.raw_output().contains(password));
    }
    // What no server was asked for is no right that is needed; what slots on the move need is tried elsewhere.
    let all: Vec<String> = cluster
        .nodes
        .iter()
        .chain(&watched.servers)
        .chain([&redis])
        .map(|server| server.command(&["INFO", "commandstats"]))
        .collect();
    let idle: Vec<&str> = documented_rights()
        .split_whitespace()
        .filter_map(|rule| rule.strip_prefix('+'))
        .filter(|command| *command != "asking")
        .filter(|command| {
            !all.iter()
                .any(|stats| stats.contains(&format!("cmdstat_{command}:")))
        })
        .collect();
    assert!(idle.is_empty(), "{idle:?}");
}

#[test]
fn a_sentinel_needs_a_name_and_an_address() {
    for (variable, value, place) in [
        ("REDIS_SENTINEL_MASTER", "tickets", "redis.sentinel.nodes"),
        (
            "REDIS_SENTINELS",
            "sentinel-1:26379",
            "redis.sentinel.master",
        ),
    ] {
        let exit = Gateway::with(&yaml("", "", "http://127.0.0.1:1"))
            .env(variable, value)
            .arg("--test")
            .run_to_exit();
        assert_eq!(exit.code, 1, "{variable}");
        assert!(exit.stderr.contains(place), "{}", exit.stderr);
    }
}

/// What else stands in Redis: memberships, API keys, refresh families and their end, and writes that run once.
#[track_caller]
fn uses_of_callers(gateway: &Gateway) {
    let of_a_venue = Request::get("/one?venueId=v1").bearer(&user("u5"));
    assert_eq!(of_a_venue.send_to(gateway.addr()).status, 200);
    let key = Request::get("/key").header("X-API-Key", "nobodys");
    assert_eq!(key.send_to(gateway.addr()).status, 401);
    let first = Token::user("u6").claim("type", "refresh");
    let first = first.signed_with(REFRESH_SECRET);
    let refresh = |token: &str| {
        let request = Request::post("/refresh").json(&json!({"refreshToken": token}));
        request.send_to(gateway.addr())
    };
    let pair = refresh(&first);
    assert_eq!(pair.status, 200, "{}", pair.text());
    let access = pair.json()["accessToken"].as_str().unwrap().to_owned();
    let logout = Request::post("/logout").bearer(&access);
    assert_eq!(logout.send_to(gateway.addr()).status, 200);
    let next = pair.json()["refreshToken"].as_str().unwrap().to_owned();
    assert_eq!(refresh(&next).status, 401, "its family has ended");
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let key = format!("write-{}", NEXT.fetch_add(1, Ordering::SeqCst));
    for replayed in [None, Some("true")] {
        let write = Request::post("/once").bearer(&user("u7"));
        let write = write.header("Idempotency-Key", &key).body("1");
        let answer = write.send_to(gateway.addr());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("idempotent-replayed"), replayed);
    }
}

/// What 0010 says that the gateway's user needs.
fn documented_rights() -> &'static str {
    DECISION
        .lines()
        .find_map(|line| line.trim().strip_prefix("ACL SETUSER gateway "))
        .expect("0010 has the line")
}

#[track_caller]
fn grant(server: &Redis, password: &str) {
    let rights = documented_rights().replace("PASSWORD", password);
    let line = ["ACL", "SETUSER", "gateway"].into_iter();
    let words: Vec<&str> = line.chain(rights.split_whitespace()).collect();
    server.command(&words);
}

fn tls_server(authority: &Authority, name: &str, alternative: &str, clients: &str) -> Redis {
    let asks = ["--tls-auth-clients", clients];
    Redis::start_with_tls(&asks, Some(&authority.server(name, alternative)))
}

fn tls(ca: &str) -> String {
    format!("tls: {{ ca: {ca} }}")
}

fn to_tls(gateway: GatewayBuilder, redis: &Redis) -> GatewayBuilder {
    gateway
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", redis.client_port())
}

/// Steady requests of several callers with room enough.
fn load(gateway: &Gateway) -> Running {
    let free = |name: &str| Request::get("/free").bearer(&user(name));
    let requests: Vec<Request> = (0..9).map(|i| free(&format!("load{i}"))).collect();
    let next = move |number: usize| requests[number % 9].clone();
    Load::on(gateway.addr())
        .clients("all", 2, Duration::from_millis(10), next)
        .start()
}

fn no_request_suffered(traffic: &Traffic) {
    println!("measured: {traffic}");
    assert!(traffic.bad().is_empty(), "{traffic}");
    let slowest = traffic.percentile(100.0);
    assert!(slowest < Duration::from_secs(2), "{traffic}");
}

/// Waits until each of them counts in Redis, on all of its connections.
#[track_caller]
fn taken_up(gateways: &[&Gateway], counted: impl Fn(&str) -> bool, limit: Duration) {
    // Which connection a request meets is chance: so many in a row leave none out but once in a thousand times.
    const PROBES: usize = 10;
    let started = Instant::now();
    let mut name = 0;
    for gateway in gateways {
        let mut in_a_row = 0;
        let left = limit.saturating_sub(started.elapsed());
        let came = within(left, || {
            name += 1;
            let user = format!("probe-{}-{name}", gateway.pid());
            assert_eq!(of(&user).send_to(gateway.addr()).status, 200);
            in_a_row = match counted(&format!("rl:user:{user}")) {
                true => in_a_row + 1,
                false => 0,
            };
            (in_a_row == PROBES).then_some(())
        });
        assert!(came.is_some(), "redis is not taken up within {limit:?}");
    }
}

/// The key as it is on a cluster.
fn tagged(key: &str) -> String {
    let user = key.strip_prefix("rl:user:").expect("it is a user's");
    format!("rl:user:{{{user}}}")
}

#[track_caller]
fn is_used(gateway: &Gateway) {
    let used = within(Duration::from_secs(15), || {
        (ready(gateway) == "ok").then_some(())
    });
    assert!(used.is_some(), "redis is not used: {}", health(gateway));
    let health = health(gateway);
    assert_eq!(health["commands"]["state"], "ok");
    assert_eq!(health["follower"]["state"], "ok");
    gateway.wait_metric("redis_up", |up| up == 1.0);
}

#[track_caller]
fn ready(gateway: &Gateway) -> Value {
    let response = Request::get("/ready").send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["checks"]["redis"].clone()
}

/// What /health says of Redis.
#[track_caller]
fn health(gateway: &Gateway) -> Value {
    let response = Request::get("/health").send_to(gateway.addr());
    response.json()["redis"].clone()
}

fn user(name: &str) -> String {
    Token::user(name).hs256()
}

/// A request that meets the global limit.
fn of(name: &str) -> Request {
    Request::get("/one").bearer(&user(name))
}

/// A request that meets two limits.
fn both(name: &str) -> Request {
    Request::get("/both").bearer(&user(name))
}

#[track_caller]
fn statuses(gateway: &Gateway, request: &Request, count: usize) -> Vec<u16> {
    let status = |_| request.send_to(gateway.addr()).status;
    (0..count).map(status).collect()
}

#[track_caller]
fn status(gateway: &Gateway, token: &str) -> u16 {
    let request = Request::get("/free").bearer(token);
    request.send_to(gateway.addr()).status
}

#[track_caller]
fn wait_status(what: &str, gateway: &Gateway, token: &str, wanted: u16) {
    let came = within(AT_ONCE, || (status(gateway, token) == wanted).then_some(()));
    assert!(came.is_some(), "{what}: no {wanted} within {AT_ONCE:?}");
}

fn count(backend: &Upstream) -> usize {
    backend.count()
}

/// Gateways on one backend.
#[track_caller]
fn start<const N: usize>(
    redis: &str,
    limits: &str,
    change: impl Fn(GatewayBuilder) -> GatewayBuilder,
) -> (Upstream, [Gateway; N]) {
    let backend = Upstream::start();
    let yaml = yaml(redis, limits, &backend.url());
    let gateways = std::array::from_fn(|_| change(Gateway::with(&yaml)).start());
    (backend, gateways)
}

/// `limits`: the global limit or that of payments, where it is not one of five.
fn yaml(redis: &str, limits: &str, backend: &str) -> String {
    let global = match limits.starts_with("global") {
        true => limits,
        false => "global: { max: 5, window: 60s }",
    };
    // Requests wait for Redis also on a machine that is busy, but where a test is about that.
    let patient = match redis.contains("command_timeout") {
        true => "",
        false => "command_timeout: 2s,",
    };
    format!(
        r#"
redis: {{ {patient} {redis} }}
limits:
  {global}
  flood: {{ per_second: 100000 }}
  rules:
    search: {{ max: 1000, window: 60s }}
    payment: {{ max: 5, window: 60s, methods: [POST], skip_successes: true }}
    free: {{ max: 100000, window: 60s }}
    short: {{ max: 100000, window: 1s }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
services:
  backend: {{ url: "{backend}", health: {{ enabled: false }} }}
  venue-service: {{ url: "{backend}", health: {{ enabled: false }} }}
routes:
  - {{ path: /one, service: backend, auth: token }}
  - {{ path: /kept, service: backend, auth: public, cache: {{ class: short }} }}
  - {{ path: /both, service: backend, auth: token, limits: [global, search] }}
  - {{ path: /buy, service: backend, auth: token, limits: [global, ticket] }}
  - {{ path: /pay, service: backend, auth: token, limits: [payment] }}
  - {{ path: /free, service: backend, auth: token, limits: [free] }}
  - {{ path: /short, service: backend, auth: token, limits: [short] }}
  - {{ path: /public, service: backend, auth: public }}
  - {{ path: /refresh, service: backend, methods: [POST], auth: public, session: refresh }}
  - {{ path: /logout, service: backend, methods: [POST], auth: token, session: logout }}
  - {{ path: /key, service: backend, auth: token-or-key }}
  - {{ path: /once, service: backend, auth: token, idempotency: required, venues: any, limits: [free] }}
"#
    )
}
