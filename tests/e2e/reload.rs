//! Another configuration without a restart: what asks for it, what it changes, and what lives on.

use crate::support::prelude::*;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;

#[test]
fn a_new_route_answers_a_removed_one_does_not_and_the_change_is_told() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a", "/b"])).start();
    assert_eq!(
        [get(&gateway, "/a").status, get(&gateway, "/c").status],
        [200, 404]
    );

    gateway.rewrite_conf(&yaml(&backend, "sizes: { body: 1MiB }", &["/b", "/c"]));
    assert_eq!(get(&gateway, "/c").status, 404, "nobody has said so yet");
    let told = reload(&gateway);
    let expected = json!([
        "sizes.body: changed",
        "routes[1]: added",
        "routes[0]: removed"
    ]);
    assert_eq!(
        told,
        json!({"status": "reloaded", "changes": expected, "needsRestart": []})
    );
    for (path, status) in [("/a", 404), ("/b", 200), ("/c", 200)] {
        assert_eq!(get(&gateway, path).status, status, "{path}");
    }
    let line = gateway.wait_log(|line| line["msg"] == "reloaded");
    assert_eq!(
        (&line["context"], &line["level"]),
        (&json!("reload"), &json!("info"))
    );
    assert_eq!(
        (&line["changes"], &line["needsRestart"]),
        (&expected, &json!([]))
    );
    assert_eq!(gateway.metric(RELOADED), 1.0);

    let nothing = reload(&gateway);
    assert_eq!(nothing["changes"], json!([]), "the file is the same");
}

#[test]
fn a_faulty_file_changes_nothing_and_every_fault_is_told() {
    let backend = Upstream::start();
    let good = yaml(
        &backend,
        "limits: { global: { max: 100, window: 60s } }",
        &["/a"],
    );
    let gateway = Gateway::with(&good).start();
    let bad = good
        .replace("max: 100", "max: 0")
        .replace("/a, service: s", "/a, service: nobody")
        .replace(
            "routes:",
            "server: { header_timeout: 0s, port: 1 }\nroutes:",
        );
    gateway.rewrite_conf(&bad);
    let faults = [
        "server.header_timeout: must be longer than nothing",
        "limits.global.max: must be at least 1",
        "routes[0].service: there is no service `nobody`",
    ];
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.status, 422);
    assert_eq!(response.json()["status"], "failed");
    assert_eq!(sorted(&response.json()["faults"]), sorted(&json!(faults)));
    let line = gateway.wait_log(|line| line["context"] == "reload");
    assert_eq!(line["msg"], "reload failed, nothing has changed");
    assert_eq!(line["level"], "error");
    assert_eq!(sorted(&line["faults"]), sorted(&json!(faults)));

    // What is no configuration at all, and what is not there.
    gateway.rewrite_conf("routes: [ }");
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.status, 422);
    gateway.rewrite_conf("unknown: 1\nsizes: { body: many }");
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.json()["faults"].as_array().unwrap().len(), 2);

    assert_eq!(gateway.metric(FAILED), 3.0);
    assert_eq!(gateway.metric(RELOADED), 0.0);
    let answer = get(&gateway, "/a");
    assert_eq!(
        (answer.status, answer.header("x-ratelimit-limit")),
        (200, Some("100"))
    );
    gateway.rewrite_conf(&good);
    assert_eq!(
        reload(&gateway)["changes"],
        json!([]),
        "nothing has changed"
    );
}

#[test]
fn sighup_reloads_and_a_faulty_file_is_told_in_the_log() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a"])).start();
    gateway.rewrite_conf(&yaml(&backend, "", &["/a", "/b"]));
    gateway.signal(SIGHUP);
    wait_until("/b is there", || get(&gateway, "/b").status == 200);
    gateway.rewrite_conf("nonsense: true");
    gateway.signal(SIGHUP);
    let line = gateway.wait_log(|line| line["msg"] == "reload failed, nothing has changed");
    assert!(
        line["faults"][0].as_str().unwrap().contains("nonsense"),
        "{line}"
    );
    assert_eq!(get(&gateway, "/b").status, 200);
}

#[test]
fn a_watched_file_is_reloaded_when_its_content_changes_also_behind_a_link_that_is_swapped() {
    let backend = Upstream::start();
    let watched = "server: { watch: true }";
    let dir = TempDir::new();
    // As Kubernetes mounts a ConfigMap: file -> ..data/file, ..data -> a directory of this version.
    let version = |name: &str, yaml: &str| {
        fs::create_dir(dir.0.join(name)).unwrap();
        fs::write(dir.0.join(name).join("gateway.yaml"), yaml).unwrap();
        symlink(name, dir.0.join("..data_tmp")).unwrap();
        fs::rename(dir.0.join("..data_tmp"), dir.0.join("..data")).unwrap();
    };
    version("v1", &yaml(&backend, watched, &["/a"]));
    symlink("..data/gateway.yaml", dir.0.join("gateway.yaml")).unwrap();
    let gateway = Gateway::platform()
        .arg("--conf")
        .arg(dir.0.join("gateway.yaml").display())
        .start();

    version("v2", &yaml(&backend, watched, &["/a", "/b"]));
    wait_until("/b is there", || get(&gateway, "/b").status == 200);
    // The same content anew is no change: the next one that counts is the second.
    version("v3", &yaml(&backend, watched, &["/a", "/b"]));
    version("v4", "half: written");
    gateway.wait_log(|line| line["msg"] == "reload failed, nothing has changed");
    version("v5", &yaml(&backend, "", &["/a", "/b", "/c"]));
    wait_until("/c is there", || get(&gateway, "/c").status == 200);
    assert_eq!(
        (gateway.metric(RELOADED), gateway.metric(FAILED)),
        (2.0, 1.0)
    );

    // It has been told not to watch any more.
    version("v6", &yaml(&backend, "", &["/a"]));
    assert_eq!(
        reload(&gateway)["changes"],
        json!(["routes[1]: removed", "routes[2]: removed"])
    );
    assert_eq!(gateway.metric(RELOADED), 3.0);
}

#[test]
fn only_a_post_on_the_private_listener_reloads_and_none_that_a_page_has_sent() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a"])).start();
    let private = gateway.private_addr();
    let get = Request::get("/reload").send_to(private);
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    let page = Request::post("/reload").header("Origin", "http://localhost:8080");
    assert_eq!(page.send_to(private).status, 403);
    assert_eq!(Request::post("/reload").send_to(gateway.addr()).status, 404);
    let post = Request::post("/ready").send_to(private);
    assert_eq!(
        (post.status, post.header("allow")),
        (405, Some("GET, HEAD"))
    );
    assert_eq!(
        (gateway.metric(RELOADED), gateway.metric(FAILED)),
        (0.0, 0.0)
    );
}

#[test]
fn a_changed_limit_is_in_force_at_once_and_what_was_spent_stays_spent() {
    let backend = Upstream::start();
    let limit = |max: u32, more: &str| {
        let limits = format!("limits: {{ global: {{ max: {max}, window: 60s }}{more} }}");
        yaml(&backend, &limits, &["/a"])
    };
    let gateway = Gateway::with(&limit(10, "")).start();
    for left in ["9", "8", "7"] {
        assert_eq!(
            get(&gateway, "/a").header("x-ratelimit-remaining"),
            Some(left)
        );
    }
    // Another limit before it, by name, does not take its place.
    gateway.rewrite_conf(&limit(5, ", rules: { another: { max: 1, window: 1s } }"));
    let changes = reload(&gateway)["changes"].clone();
    let expected = ["limits.global.max: changed", "limits.rules.another: added"];
    assert_eq!(sorted(&changes), sorted(&json!(expected)));
    for left in ["1", "0"] {
        let answer = get(&gateway, "/a");
        assert_eq!(answer.header("x-ratelimit-limit"), Some("5"));
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(left));
    }
    assert_eq!(get(&gateway, "/a").status, 429);
    gateway.rewrite_conf(&limit(6, ""));
    reload(&gateway);
    assert_eq!([200, 429], [(); 2].map(|()| get(&gateway, "/a").status));
}

#[test]
fn an_open_breaker_stays_open_whatever_else_changes_of_its_service() {
    let (sick, well) = (
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let conf = |service: &str| {
        let service = format!("{{ url: '{}', {service} }}", sick.url());
        yaml_of(
            &format!("s: {service}\n  t: {{ url: '{}' }}", well.url()),
            "",
            &["/a"],
        )
    };
    let gateway = Gateway::with(&conf("breaker: { volume: 2, reset: 60s }")).start();
    for _ in 0..2 {
        assert_eq!(get(&gateway, "/a").status, 500);
    }
    let gauge = r#"circuit_breaker_state{service="s"}"#;
    gateway.wait_metric(gauge, |state| state == 1.0);
    let seen = sick.count();
    for changed in [
        "breaker: { volume: 2, reset: 60s }, timeout: 3s",
        "breaker: { volume: 2, reset: 60s }, retry: { max_retries: 0 }",
        "breaker: { volume: 50, reset: 50s, window: 20s }",
    ] {
        gateway.rewrite_conf(&conf(changed));
        reload(&gateway);
        assert_eq!(gateway.metric(gauge), 1.0, "{changed}");
        assert_eq!(get(&gateway, "/a").status, 503, "{changed}");
    }
    assert_eq!(sick.count(), seen, "the backend was touched");
    // And closes as it would have: by a probe, after the new time.
    sick.set(|_| Reply::status(200));
    gateway.rewrite_conf(&conf("breaker: { reset: 100ms }"));
    reload(&gateway);
    wait_until("a probe closes it", || get(&gateway, "/a").status == 200);
    assert_eq!(gateway.metric(gauge), 0.0);

    gateway.rewrite_conf(&yaml(&well, "", &["/a"]));
    reload(&gateway);
    assert_eq!(get(&gateway, "/a").status, 200, "elsewhere");
}

#[test]
fn connections_stay_open_on_both_sides() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a"])).start();
    let mut client = Client::to(gateway.addr()).connect();
    assert_eq!(client.request(&Request::get("/a")).status, 200);
    for i in 0..5 {
        gateway.rewrite_conf(&yaml(
            &backend,
            &format!("sizes: {{ body: {i}MiB }}"),
            &["/a"],
        ));
        reload(&gateway);
        assert_eq!(client.request(&Request::get("/a")).status, 200);
    }
    assert_eq!(
        backend.connections(),
        1,
        "one connection has carried all of it"
    );
}

#[test]
fn an_instance_that_stays_keeps_its_standing_and_a_new_one_is_looked_at_first() {
    let all = [(); 4].map(|()| Upstream::start());
    let [well, sick, new, new_sick] = &all;
    let conf = |instances: &[&Upstream], more: &str| {
        let urls: Vec<String> = instances.iter().map(|instance| instance.url()).collect();
        let health = "health: { interval: 60s, timeout: 1s }, retry: { max_retries: 0 }";
        let service = format!("s: {{ url: '{}', {health}{more} }}", urls.join(","));
        yaml_of(&service, "", &["/a"])
    };
    for sick in [sick, new_sick] {
        sick.set_healthy(false);
        sick.set(|_| Reply::status(500));
    }
    let gateway = Gateway::with(&conf(&[well, sick], "")).start();
    let healthy = r#"upstream_healthy_instances{service="s"}"#;
    assert_eq!(gateway.metric(healthy), 1.0);
    let looks = sick.health_checks();

    // What is unchanged is not looked at anew.
    gateway.rewrite_conf(&conf(&[well, sick], ", timeout: 3s"));
    reload(&gateway);
    assert_eq!(sick.health_checks(), looks);

    gateway.rewrite_conf(&conf(&[well, sick, new, new_sick], ""));
    let told = reload(&gateway);
    assert_eq!(
        told["changes"],
        json!(["services.s: changed (url, timeout)"])
    );
    let pool = &pools(&gateway)["s"];
    assert_eq!(
        (&pool["instances"], &pool["healthy"]),
        (&json!(4), &json!(2))
    );
    for _ in 0..40 {
        assert_eq!(get(&gateway, "/a").status, 200);
    }
    assert_eq!((sick.count(), new_sick.count()), (0, 0));
    assert_eq!(well.count() + new.count(), 40);

    // Whoever is gone is gone, and what is shown of the service is of those who are left.
    gateway.rewrite_conf(&conf(&[new], ""));
    reload(&gateway);
    let before = new.count();
    assert_eq!([(); 5].map(|()| get(&gateway, "/a").status), [200; 5]);
    assert_eq!(new.count() - before, 5);
    assert_eq!(gateway.metric(healthy), 1.0);
}

#[test]
fn an_ejected_instance_stays_ejected_when_another_comes() {
    let (well, sick, new) = (
        Upstream::start(),
        Upstream::start_with(|_| Reply::status(500)),
        Upstream::start(),
    );
    let conf = |instances: &[&Upstream]| {
        let urls: Vec<String> = instances.iter().map(|instance| instance.url()).collect();
        let outlier = "outlier: { consecutive: 2, ejection: 60s }, retry: { max_retries: 0 }";
        let strategy = "balance: { strategy: round_robin }, health: { enabled: false }";
        let breaker = "breaker: { volume: 1000 }";
        let service = format!(
            "s: {{ url: '{}', {outlier}, {strategy}, {breaker} }}",
            urls.join(",")
        );
        yaml_of(&service, "", &["/a"])
    };
    let gateway = Gateway::with(&conf(&[&well, &sick])).start();
    let ejected = r#"upstream_ejected_instances{service="s"}"#;
    wait_until("it is ejected", || {
        get(&gateway, "/a");
        gateway.metric(ejected) == 1.0
    });
    let seen = sick.count();
    gateway.rewrite_conf(&conf(&[&well, &sick, &new]));
    reload(&gateway);
    assert_eq!(gateway.metric(ejected), 1.0);
    for _ in 0..20 {
        assert_eq!(get(&gateway, "/a").status, 200);
    }
    assert_eq!(sick.count(), seen, "it was asked again");
}

#[test]
fn frequent_reloads_do_not_keep_health_checks_from_running() {
    let backend = Upstream::start();
    let service = format!(
        "s: {{ url: '{}', health: {{ interval: 1s }} }}",
        backend.url()
    );
    let gateway = Gateway::with(&yaml_of(&service, "", &["/a"])).start();
    let looks = backend.health_checks();
    let mut turn = 0;
    let more = within(Duration::from_secs(10), || {
        turn += 1;
        let sizes = format!("sizes: {{ body: {turn}MiB }}");
        gateway.rewrite_conf(&yaml_of(&service, &sizes, &["/a"]));
        reload(&gateway);
        (backend.health_checks() >= looks + 3).then_some(())
    });
    assert!(
        more.is_some(),
        "{} checks in {turn} reloads",
        backend.health_checks() - looks
    );
}

#[test]
fn what_needs_a_restart_is_named_each_time_and_the_running_value_stays_in_force() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a"])).start();
    let more = "server: { threads: 7, upstream_connections: 9, client_timeout: 29s }\n\
                redis: { db: 1 }\nlog: { slow_request: 5s }\nservice_name: other\n\
                limits: { max_keys: 2000, global: { max: 7, window: 60s } }";
    gateway.rewrite_conf(&yaml(&backend, more, &["/a"]));
    let named = json!([
        "service_name",
        "server.threads",
        "server.upstream_connections",
        "log.slow_request",
        "redis.db",
        "limits.max_keys",
    ]);
    let told = reload(&gateway);
    let changes = [
        "server.client_timeout: changed",
        "limits.global.max: changed",
    ];
    assert_eq!(sorted(&told["changes"]), sorted(&json!(changes)));
    assert_eq!(sorted(&told["needsRestart"]), sorted(&named));
    assert_eq!(get(&gateway, "/a").header("x-ratelimit-limit"), Some("7"));
    let line = gateway.wait_log(|line| line["msg"] == "reloaded");
    assert_eq!(line["service"], "api-gateway", "it goes by its old name");
    assert_eq!(line["needsRestart"], told["needsRestart"]);
    let again = reload(&gateway);
    assert_eq!(again["changes"], json!([]));
    assert_eq!(
        again["needsRestart"], told["needsRestart"],
        "until there was one"
    );
}

#[test]
fn a_request_under_way_ends_by_what_it_began_with() {
    let (old, new) = (Upstream::start(), Upstream::start());
    let csp = |value: &str| format!("secure_headers: {{ content_security_policy: {value} }}");
    let gateway = Gateway::with(&yaml(&old, &csp("old"), &["/a"])).start();
    old.hold();
    let addr = gateway.addr();
    let under_way = thread::spawn(move || {
        let request = Request::get("/a").header("X-Request-ID", "under-way");
        request.send_to(addr)
    });
    wait_until("it is at the backend", || old.heads_seen() == 1);
    gateway.rewrite_conf(&yaml(&new, &csp("new"), &["/b"]));
    reload(&gateway);
    let other = get(&gateway, "/b");
    assert_eq!(other.status, 200);
    assert_eq!(other.header("content-security-policy"), Some("new"));
    assert_eq!(get(&gateway, "/a").status, 404);
    old.release();
    let answer = under_way.join().unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-security-policy"), Some("old"));
    assert_eq!(gateway.access_line("under-way")["route"], "/a");
    assert_eq!((old.count(), new.count()), (1, 1));
}

#[test]
fn refusals_before_there_is_a_request_follow_the_snapshot_as_well() {
    let backend = Upstream::start();
    let conf = |headers: &str| {
        let more = format!(
            "sizes: {{ headers: {headers}, uri: 1KiB }}\nsecure_headers: {{ content_security_policy: '{headers}' }}"
        );
        yaml(&backend, &more, &["/a"])
    };
    let gateway = Gateway::with(&conf("8KiB")).start();
    let large = Request::get("/a").header("X-Large", &"x".repeat(3000));
    assert_eq!(large.send_to(gateway.addr()).status, 200);
    gateway.rewrite_conf(&conf("2KiB"));
    reload(&gateway);
    let refused = large.send_to(gateway.addr());
    assert_eq!(refused.status, 431);
    assert_eq!(refused.header("content-security-policy"), Some("2KiB"));
}

#[test]
fn keys_are_read_anew_and_what_they_verified_does_not_outlive_them() {
    let backend = Upstream::start();
    let (first, second) = (KeyPair::rsa(), KeyPair::p256());
    let file = TempFile::new("pem", &first.public_pem);
    let jwt = format!(
        "auth: {{ jwt: {{ public_key: {} }} }}",
        file.path().display()
    );
    let conf = yaml(&backend, &jwt, &["/a"]).replace("auth: public", "auth: token");
    let gateway = Gateway::with(&conf).start();
    let status = |token: &str| {
        let request = Request::get("/a").bearer(token);
        request.send_to(gateway.addr()).status
    };
    let (of_first, of_second) = (
        first.sign(&Token::user("u1")),
        second.sign(&Token::user("u2")),
    );
    assert_eq!([status(&of_first), status(&of_second)], [200, 401]);
    file.rewrite(&second.public_pem);
    assert_eq!(
        [status(&of_first), status(&of_second)],
        [200, 401],
        "not yet"
    );
    let told = reload(&gateway);
    assert_eq!(told["changes"], json!(["auth.jwt.public_key: changed"]));
    assert_eq!([status(&of_first), status(&of_second)], [401, 200]);
    file.rewrite("nonsense");
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.status, 422);
    assert_eq!([status(&of_first), status(&of_second)], [401, 200]);
}

#[test]
fn roles_take_effect_for_tokens_that_were_seen_before() {
    let backend = Upstream::start();
    let conf = |roles: &str| {
        let route = "auth: token, permissions: { GET: 'a:view' }";
        yaml(&backend, &format!("roles: {roles}"), &["/a"]).replace("auth: public", route)
    };
    let gateway = Gateway::with(&conf("{ customer: ['a:view'] }")).start();
    let token = token::customer();
    let status = || {
        Request::get("/a")
            .bearer(&token)
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(), 200);
    // Its number is another one now.
    for (roles, expected) in [
        ("{ admin: ['*'], customer: ['a:view'] }", 200),
        ("{ admin: ['*'], customer: ['b:view'] }", 403),
        ("{ admin: ['*'] }", 403),
        ("{ customer: ['a:view'] }", 200),
    ] {
        gateway.rewrite_conf(&conf(roles));
        reload(&gateway);
        assert_eq!(status(), expected, "{roles}");
    }
}

#[test]
fn api_keys_of_the_file_come_and_go() {
    let backend = Upstream::start();
    let conf = |key: &str| {
        let digest: String = Sha256::digest(key)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let keys = format!(
            "auth: {{ api_keys: {{ p: {{ sha256: '{digest}', tenant_id: t, permissions: ['*'] }} }} }}"
        );
        yaml(&backend, &keys, &["/a"]).replace("auth: public", "auth: token-or-key")
    };
    let gateway = Gateway::with(&conf("one")).start();
    let status = |key: &str| {
        let request = Request::get("/a").header("X-API-Key", key);
        request.send_to(gateway.addr()).status
    };
    assert_eq!([status("one"), status("two")], [200, 401]);
    gateway.rewrite_conf(&conf("two"));
    assert_eq!(
        reload(&gateway)["changes"],
        json!(["auth.api_keys.p: changed (sha256)"])
    );
    assert_eq!([status("one"), status("two")], [401, 200]);
}

#[test]
fn a_key_set_is_fetched_before_it_counts_and_not_again_while_its_place_is_the_same() {
    let backend = Upstream::start();
    let pair = KeyPair::p256();
    let keys = json!({"keys": [pair.jwk("k")]});
    let issuer = Upstream::start_with(move |_| Reply::json(keys.clone()));
    let conf = |more: &str| yaml(&backend, more, &["/a"]).replace("auth: public", "auth: token");
    let gateway = Gateway::with(&conf("")).start();
    let token = pair.sign(&Token::user("u1").kid("k"));
    let status = || {
        Request::get("/a")
            .bearer(&token)
            .send_to(gateway.addr())
            .status
    };
    assert_eq!(status(), 401);
    let jwks = format!("auth: {{ jwt: {{ jwks_url: '{}/jwks' }} }}", issuer.url());
    gateway.rewrite_conf(&conf(&jwks));
    reload(&gateway);
    assert!(issuer.count() >= 1, "nobody has asked the issuer");
    // What was unknown is verified anew; and an issuer that is away is not missed.
    assert_eq!(status(), 200);
    wait_until("its own rhythm has begun", || issuer.count() == 2);
    for i in 1..5 {
        gateway.rewrite_conf(&conf(&format!("{jwks}\nsizes: {{ body: {i}MiB }}")));
        reload(&gateway);
        assert_eq!(status(), 200);
    }
    assert_eq!(issuer.count(), 2);
}

#[test]
fn what_was_revoked_stays_revoked_and_streams_of_before_are_cut_by_what_is_revoked_after() {
    const REFRESH_SECRET: &str = "a-secret-for-refresh-tokens-of-the-reloads";
    let backend = Upstream::start_with(|request| {
        match request.path() {
        "/events" => Reply::raw(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .then_hang(),
        _ => Reply::status(200),
    }
    });
    let conf = |turn: usize| {
        let routes = [
            "  - { path: /events, service: s, auth: token }\n",
            "  - { path: /logout, service: s, auth: token, session: logout, methods: [POST] }\n",
            "  - { path: /refresh, service: s, auth: public, session: refresh, methods: [POST] }\n",
        ];
        yaml(&backend, &format!("sizes: {{ body: {turn}MiB }}"), &["/a"]) + &routes.concat()
    };
    let gateway = Gateway::with(&conf(1))
        .env("JWT_REFRESH_SECRET", REFRESH_SECRET)
        .start();
    let turn = |turn: usize| {
        gateway.rewrite_conf(&conf(turn));
        assert_eq!(reload(&gateway)["changes"], json!(["sizes.body: changed"]));
    };
    let status = |request: Request| request.send_to(gateway.addr()).status;
    let (mine, other) = (Token::user("u1").hs256(), Token::user("u2").hs256());
    let mut streams = [&mine, &other].map(|token| {
        let mut stream = Client::to(gateway.addr()).connect();
        stream.send(&Request::get("/events").bearer(token).bytes());
        assert_eq!(stream.read_up_to(12), b"HTTP/1.1 200");
        stream
    });
    let refresh = Token::user("u3")
        .claim("type", "refresh")
        .signed_with(REFRESH_SECRET);
    let refresh = || Request::post("/refresh").json(&json!({"refreshToken": refresh}));
    assert_eq!(status(refresh()), 200);

    turn(2);
    assert!(streams.iter_mut().all(Connection::stays_open));
    let logout = Request::post("/logout")
        .bearer(&mine)
        .header("Content-Length", "0");
    assert_eq!(status(logout), 200);
    assert!(streams[0].is_closed() && streams[1].stays_open());
    assert_eq!(status(refresh()), 401, "it was used before the reload");
    turn(3);
    let events = Request::get("/events").bearer(&mine);
    assert_eq!(status(events), 401, "it was revoked before the reload");
}

#[test]
fn a_process_that_is_ending_does_not_reload() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a"])).start();
    backend.hold();
    let addr = gateway.addr();
    let under_way = thread::spawn(move || Request::get("/a").send_to(addr).status);
    wait_until("it is at the backend", || backend.heads_seen() == 1);
    gateway.signal(15);
    gateway.wait_log(|line| {
        line["msg"]
            .as_str()
            .is_some_and(|msg| msg.starts_with("told to end"))
    });
    gateway.rewrite_conf(&yaml(&backend, "", &["/b"]));
    gateway.signal(SIGHUP);
    backend.release();
    assert_eq!(under_way.join().unwrap(), 200);
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
    assert!(
        gateway
            .log_lines()
            .iter()
            .all(|line| line["msg"] != "reloaded")
    );
}

#[test]
fn reloads_that_are_asked_for_at_once_follow_each_other() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend, "", &["/a"])).start();
    gateway.rewrite_conf(&yaml(&backend, "", &["/a", "/b"]));
    let private = gateway.private_addr();
    let asked = || thread::spawn(move || Request::post("/reload").send_to(private));
    let told: Vec<Response> = [(); 20]
        .map(|()| asked())
        .map(|answer| answer.join().unwrap())
        .into();
    assert!(told.iter().all(|answer| answer.status == 200));
    let changes = |answer: &&Response| answer.json()["changes"] != json!([]);
    assert_eq!(
        told.iter().filter(changes).count(),
        1,
        "the first has changed it all"
    );
    assert_eq!(gateway.metric(RELOADED), 20.0);
}

#[test]
fn a_hundred_reloads_under_load_fail_no_request_and_leave_nothing_behind() {
    let _alone = alone();
    let (first, second) = (Upstream::start(), Upstream::start());
    let conf = |turn: usize| {
        let instances = match turn % 3 {
            0 => first.url(),
            _ => format!("{},{}", first.url(), second.url()),
        };
        let changing = format!(
            "s: {{ url: '{instances}', retry: {{ max_retries: {} }} }}",
            turn % 2
        );
        let kept = format!("kept: {{ url: '{}' }}", first.url());
        let limits = format!(
            "limits: {{ flood: {{ per_second: 100000 }}, global: {{ max: {}, window: 60s }} }}",
            100_000 + turn
        );
        let mut routes = vec!["/a", "/b"];
        routes.extend(turn.is_multiple_of(2).then_some("/c"));
        yaml_of(&format!("{changing}\n  {kept}"), &limits, &routes)
    };
    let gateway = Gateway::with(&conf(0)).start();
    let load = |path: &'static str| move |_: usize| Request::get(path);
    let close = |_: usize| Request::get("/b").header("Connection", "close");
    let running = Load::on(gateway.addr())
        .per_second("kept", 150.0, 4, load("/a"))
        .per_second("new", 50.0, 4, close)
        .start();
    let reload_all = |turns: std::ops::Range<usize>| {
        for turn in turns {
            gateway.rewrite_conf(&conf(turn));
            reload(&gateway);
        }
    };
    reload_all(1..51);
    let (memory, files, threads) = (gateway.memory_kb(), gateway.open_fds(), gateway.threads());
    reload_all(51..151);
    let traffic = running.stop();
    assert!(traffic.bad().is_empty(), "{}", traffic.bad());
    assert!(traffic.len() > 100, "{traffic}");
    assert_eq!(gateway.metric(RELOADED), 150.0);
    let grown = gateway.memory_kb().saturating_sub(memory);
    assert!(grown < 10 << 10, "{grown} KiB more after a hundred reloads");
    assert!(gateway.open_fds() < files + 20, "{files} files before");
    assert!(gateway.threads() < threads + 10, "{threads} threads before");
}

const SIGHUP: i32 = 1;
const RELOADED: &str = r#"config_reloads_total{outcome="reloaded"}"#;
const FAILED: &str = r#"config_reloads_total{outcome="failed"}"#;

/// One service, `s`, with public routes; nothing is checked.
fn yaml(backend: &Upstream, more: &str, routes: &[&str]) -> String {
    let service = format!(
        "s: {{ url: '{}', health: {{ enabled: false }} }}",
        backend.url()
    );
    yaml_of(&service, more, routes)
}

fn yaml_of(services: &str, more: &str, routes: &[&str]) -> String {
    let routes: Vec<String> = routes
        .iter()
        .map(|path| format!("  - {{ path: {path}, service: s, auth: public }}\n"))
        .collect();
    format!(
        "{more}\nservices:\n  {services}\nroutes:\n{}",
        routes.concat()
    )
}

/// Reloads and returns what it tells.
#[track_caller]
fn reload(gateway: &Gateway) -> Value {
    let response = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn get(gateway: &Gateway, target: &str) -> Response {
    Request::get(target).send_to(gateway.addr())
}

fn pools(gateway: &Gateway) -> Value {
    let health = Request::get("/health").send_to(gateway.private_addr());
    health.json()["pools"].clone()
}

/// The texts of a list, in an order that says nothing.
fn sorted(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("a list");
    let mut texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    texts.sort_unstable();
    texts
}

/// A directory that is there until it is dropped.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> Self {
        let file = TempFile::new("dir", "");
        let path = file.path().to_owned();
        drop(file);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}
