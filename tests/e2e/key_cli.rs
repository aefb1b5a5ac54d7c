//! `api-gateway key`: what an operator does with API keys, against a real Redis and a running gateway.

use crate::support::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::process::{Command, Stdio};
use std::thread;

const YEAR: i64 = 365 * 86_400;

#[test]
fn a_created_key_is_printed_once_stored_by_its_digest_and_works_at_once() {
    let redis = Redis::start();
    let (backend, gateway) = start(&redis);
    let made = key(
        &redis,
        &[
            "create",
            "--id",
            "partner-1",
            "--tenant",
            "t1",
            "--permission",
            "events:view",
            "--permission",
            "tickets:*",
            "--venue",
            "v1",
            "--venue",
            "v2",
            "--tier",
            "standard",
        ],
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    let key = made.stdout.clone();
    redis.command(&["CONFIG", "RESETSTAT"]);
    assert_eq!(status(&gateway, &key), 200, "at once");
    let stats = redis.command(&["INFO", "commandstats"]);
    assert!(
        stats.contains("cmdstat_get:calls=1,"),
        "one of ours is not named to redis in plain: {stats}"
    );
    assert_eq!(
        backend.wait_requests(1)[0].header("x-tenant-id"),
        Some("t1")
    );

    let body = key.strip_prefix("ttk_").unwrap();
    assert!(
        body.len() == 43 && body.bytes().all(|b| b.is_ascii_alphanumeric()),
        "{body}"
    );
    assert!(made.stderr.contains(&fingerprint(&key)), "{}", made.stderr);
    assert!(!made.stderr.contains(&key), "{}", made.stderr);

    assert_eq!(redis.command(&["EXISTS", &format!("apikey:{key}")]), "0");
    assert_eq!(redis.command(&["EXISTS", "lock:apikey:partner-1"]), "0");
    let record: Value = serde_json::from_str(&redis.command(&["GET", &hashed(&key)])).unwrap();
    let expires = record["expires_at"].as_str().unwrap();
    let wanted = json!({
        "id": "partner-1", "tenant_id": "t1", "venues": ["v1", "v2"], "permissions": ["events:view", "tickets:*"],
        "tier": "standard", "active": true, "expires_at": expires,
    });
    assert_eq!(record, wanted);
    let left: i64 = redis.command(&["TTL", &hashed(&key)]).parse().unwrap();
    assert!((YEAR - 60..=YEAR).contains(&left), "365 days: {left}");
    assert!(
        expires.ends_with('Z') && made.stderr.contains(expires),
        "{}",
        made.stderr
    );
}

#[test]
fn a_key_that_was_unknown_a_moment_ago_is_known_when_it_is_created() {
    let redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    let first = created(&redis, "partner-1", &[]);
    assert_eq!(status(&gateway, &first), 200);
    revoke_ok(&redis, &["--id", "partner-1"]);
    wait_until("it is refused", || status(&gateway, &first) == 401);
    let second = created(&redis, "partner-1", &[]);
    assert_ne!(first, second);
    assert_eq!(status(&gateway, &second), 200);
    assert_eq!(status(&gateway, &first), 401);
}

#[test]
fn a_key_is_changed_for_another_without_a_gap() {
    let redis = Redis::start();
    let (_backend, gateway) = start(&redis);
    let older = created(&redis, "partner-1", &[]);
    let both = key(
        &redis,
        &[
            "create",
            "--id",
            "partner-1",
            "--tenant",
            "t1",
            "--permission",
            "*",
            "--overlap",
            "3s",
        ],
    );
    assert_eq!(both.code, 0, "{}", both.stderr);
    assert!(
        both.stderr.contains(&fingerprint(&older)),
        "{}",
        both.stderr
    );
    let newer = both.stdout;
    assert_eq!(
        (status(&gateway, &older), status(&gateway, &newer)),
        (200, 200)
    );
    let left: i64 = redis.command(&["TTL", &hashed(&older)]).parse().unwrap();
    assert!((0..=3).contains(&left), "{left}");
    let third = key(&redis, &["create", "--id", "partner-1", "--tenant", "t1"]);
    assert_eq!(third.code, 1, "two are live");
    wait_until("the older one ends", || status(&gateway, &older) == 401);
    assert_eq!(status(&gateway, &newer), 200);
    let left: i64 = redis.command(&["TTL", &hashed(&newer)]).parse().unwrap();
    assert!(left > YEAR - 60, "the newer one keeps its own end: {left}");
    created(&redis, "partner-1", &[]);
}

#[test]
fn an_overlap_shortens_and_never_lengthens_and_keeps_what_others_wrote() {
    let redis = Redis::start();
    let short = created(&redis, "short", &["--expires-in", "1h"]);
    let made = key(
        &redis,
        &[
            "create",
            "--id",
            "short",
            "--tenant",
            "t1",
            "--overlap",
            "7d",
        ],
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    assert!(made.stderr.contains("anyway"), "{}", made.stderr);
    let left: i64 = redis.command(&["TTL", &hashed(&short)]).parse().unwrap();
    assert!((3500..=3600).contains(&left), "{left}");

    let record = json!({"id": "old", "tenant_id": "t1", "note": {"by": "the old gateway"}});
    redis.command(&["SET", "apikey:plain-key", &record.to_string()]);
    let made = key(
        &redis,
        &[
            "create",
            "--id",
            "old",
            "--tenant",
            "t1",
            "--overlap",
            "24h",
        ],
    );
    assert_eq!(made.code, 0, "{}", made.stderr);
    let left: i64 = redis.command(&["TTL", "apikey:plain-key"]).parse().unwrap();
    assert!((86_300..=86_400).contains(&left), "{left}");
    let kept: Value = serde_json::from_str(&redis.command(&["GET", "apikey:plain-key"])).unwrap();
    assert_eq!(kept["note"], record["note"]);
    assert!(kept["expires_at"].is_string(), "{kept}");
}

#[test]
fn an_id_has_two_live_keys_at_most_and_one_tenant() {
    let redis = Redis::start();
    let (first, second) = (created(&redis, "p", &[]), created(&redis, "p", &[]));
    let size = redis.command(&["DBSIZE"]);
    let third = key(
        &redis,
        &["create", "--id", "p", "--tenant", "t1", "--overlap", "1h"],
    );
    assert_eq!((third.code, third.stdout.as_str()), (1, ""));
    for part in [
        &*fingerprint(&first),
        &*fingerprint(&second),
        "key revoke --fingerprint",
    ] {
        assert!(third.stderr.contains(part), "{part}: {}", third.stderr);
    }
    assert_eq!(redis.command(&["DBSIZE"]), size, "nothing is left behind");

    created(&redis, "q", &[]);
    let elsewhere = key(&redis, &["create", "--id", "q", "--tenant", "t2"]);
    assert_eq!((elsewhere.code, elsewhere.stdout.as_str()), (1, ""));
    assert!(elsewhere.stderr.contains("t1"), "{}", elsewhere.stderr);

    // One that lets nobody in does not count.
    let inactive = json!({"id": "p", "tenant_id": "t1", "active": false}).to_string();
    redis.command(&["SET", &hashed(&first), &inactive]);
    created(&redis, "p", &[]);
}

#[test]
fn operators_who_create_at_the_same_time_do_not_get_around_it() {
    let redis = Redis::start();
    // All have come as far as they may before the first of them writes.
    redis.command(&["CLIENT", "PAUSE", "1000", "WRITE"]);
    let exits: Vec<Exit> = thread::scope(|scope| {
        let create = || key(&redis, &["create", "--id", "p", "--tenant", "t1"]);
        let running: Vec<_> = (0..6).map(|_| scope.spawn(create)).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let made = exits.iter().filter(|exit| exit.code == 0).count();
    assert!((1..=2).contains(&made), "{exits:?}");
    for refused in exits.iter().filter(|exit| exit.code != 0) {
        assert!(refused.stdout.is_empty(), "{refused:?}");
    }
    assert_eq!(listed(&redis, &[]).len(), made);
}

#[test]
fn a_revoked_key_is_refused_within_a_tenth_of_a_second() {
    let redis = Redis::start();
    let (backend, gateway) = start(&redis);
    let doomed = created(&redis, "p", &[]);
    let bystander = created(&redis, "q", &[]);
    assert_eq!(
        (status(&gateway, &doomed), status(&gateway, &bystander)),
        (200, 200)
    );
    let revoked = key(&redis, &["revoke", "--fingerprint", &fingerprint(&doomed)]);
    let since = Instant::now();
    wait_until("it is refused", || status(&gateway, &doomed) == 401);
    assert!(
        since.elapsed() < Duration::from_millis(100),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(
        (revoked.code, revoked.stdout.as_str()),
        (0, ""),
        "{}",
        revoked.stderr
    );
    for part in ["revoked", "p (tenant t1", &fingerprint(&doomed)] {
        assert!(
            revoked.stderr.contains(part),
            "the audit line: {}",
            revoked.stderr
        );
    }
    assert!(!revoked.stderr.contains(&doomed));
    let seen = backend.count();
    assert_eq!(status(&gateway, &doomed), 401);
    assert_eq!(backend.count(), seen);
    assert_eq!(status(&gateway, &bystander), 200);
}

#[test]
fn revoking_takes_exactly_what_was_named() {
    let redis = Redis::start();
    let (first, second) = (created(&redis, "p", &[]), created(&redis, "p", &[]));
    created(&redis, "q", &[]);
    let refused = |flags: &[&str]| {
        let exit = key(&redis, &[&["revoke"], flags].concat());
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (1, ""),
            "{flags:?}: {}",
            exit.stderr
        );
        exit.stderr
    };
    let ambiguous = refused(&["--id", "p"]);
    for part in [&*fingerprint(&first), &*fingerprint(&second), "--all"] {
        assert!(ambiguous.contains(part), "{part}: {ambiguous}");
    }
    assert!(refused(&["--id", "nobody"]).contains("key list"));
    assert!(refused(&["--id", "nobody", "--all"]).contains("key list"));
    assert!(refused(&["--fingerprint", "0123456789abcdef"]).contains("key list"));
    assert_eq!(listed(&redis, &[]).len(), 3, "nothing was revoked so far");

    revoke_ok(
        &redis,
        &["--fingerprint", &sha256(&first)[..8].to_uppercase()],
    );
    assert_eq!(
        redis.command(&["EXISTS", &hashed(&first), &hashed(&second)]),
        "1"
    );
    created(&redis, "p", &[]);
    revoke_ok(&redis, &["--id", "p", "--all"]);
    let left = listed(&redis, &[]);
    assert_eq!((left.len(), &left[0]["id"]), (1, &json!("q")));

    // Also what no gateway accepts can be taken away, and keys in plain.
    redis.command(&[
        "SET",
        "apikey:plain-key",
        &json!({"id": "r", "tenant_id": "t"}).to_string(),
    ]);
    redis.command(&["SET", "apikey:broken-key", "nonsense"]);
    revoke_ok(&redis, &["--id", "r"]);
    revoke_ok(&redis, &["--fingerprint", &sha256("broken-key")[..12]]);
    assert_eq!(
        redis.command(&["EXISTS", "apikey:plain-key", "apikey:broken-key"]),
        "0"
    );
}

#[test]
fn the_list_shows_every_key_but_never_the_key() {
    let redis = Redis::start();
    let good = created(&redis, "p", &["--venue", "v1", "--tier", "premium"]);
    redis.command(&[
        "SET",
        "apikey:plain-key",
        &json!({"id": "a", "tenant_id": "t0"}).to_string(),
    ]);
    redis.command(&[
        "SET",
        "apikey:off-key",
        &json!({"id": "b", "tenant_id": "t0", "active": false}).to_string(),
    ]);
    redis.command(&[
        "SET",
        "apikey:old-key",
        &json!({"id": "c", "tenant_id": "t0", "expires_at": 1}).to_string(),
    ]);
    redis.command(&[
        "SET",
        "apikey:broken-key",
        r#"{"id": "secret-in-a-record"}"#,
    ]);
    redis.command(&["RPUSH", "apikey:list-key", "x"]);
    redis.command(&[
        "SET",
        &format!("apikey:sha256:{}", sha256("upper-key").to_uppercase()),
        r#"{"id":"u","tenant_id":"t0"}"#,
    ]);
    // Enough that one step of the scan does not find all, and others between them.
    for i in 0..1500 {
        redis.command(&["SET", &format!("rl:user:{i}"), "1"]);
    }
    let list = listed(&redis, &[]);
    let states: Vec<(&str, &str)> = list
        .iter()
        .map(|key| {
            (
                key["id"].as_str().unwrap_or("-"),
                key["state"].as_str().unwrap(),
            )
        })
        .collect();
    let faulty = ("-", "faulty");
    let wanted = [
        faulty,
        faulty,
        faulty,
        ("a", "live"),
        ("b", "inactive"),
        ("c", "expired"),
        ("p", "live"),
    ];
    assert_eq!(states, wanted);
    let last = list.last().unwrap();
    assert_eq!(last["fingerprint"], fingerprint(&good));
    assert_eq!(
        (&last["form"], &last["tenant_id"], &last["tier"]),
        (&json!("hashed"), &json!("t1"), &json!("premium"))
    );
    assert_eq!(
        (&last["venues"], &last["permissions"]),
        (&json!(["v1"]), &json!(["*"]))
    );
    assert_eq!(
        (&last["active"], last["expires_at"].is_string()),
        (&json!(true), true)
    );
    assert_eq!(list[3]["form"], "plain");
    assert_eq!(list[3]["fingerprint"], sha256("plain-key")[..12]);
    assert!(
        list[..3].iter().all(|key| key["fault"].is_string()),
        "{list:?}"
    );

    let only = listed(&redis, &["--tenant", "t1"]);
    assert_eq!((only.len(), &only[0]["id"]), (1, &json!("p")));
    let text = key(&redis, &["list"]);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""));
    let rows: Vec<&str> = text.stdout.lines().collect();
    assert_eq!(rows.len(), 8, "{}", text.stdout);
    assert!(rows[0].starts_with("FINGERPRINT "), "{}", rows[0]);
    for part in [
        &*fingerprint(&good),
        "hashed",
        "live",
        "t1",
        "p",
        "premium",
        "v1",
        "*",
    ] {
        assert!(
            rows[7].split_whitespace().any(|word| word == part),
            "{part}: {}",
            rows[7]
        );
    }
    let json = key(&redis, &["list", "--json"]).stdout;
    for secret in [
        &*good,
        "plain-key",
        "off-key",
        "old-key",
        "broken-key",
        "secret-in-a-record",
    ] {
        assert!(
            !text.stdout.contains(secret) && !json.contains(secret),
            "{secret}"
        );
    }
}

#[test]
fn an_empty_list_is_a_list() {
    let redis = Redis::start();
    assert_eq!(key(&redis, &["list", "--json"]).stdout, "[]");
    let text = key(&redis, &["list"]).stdout;
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn the_configuration_is_the_server_s() {
    let redis = Redis::start_with_password("redis-password");
    let conf = format!(
        "redis: {{ host: 127.0.0.1, port: {}, password: redis-password, db: 0 }}\n",
        redis.port()
    );
    let by_file = Gateway::with(&conf)
        .arg("key")
        .arg("list")
        .arg("--json")
        .run_to_exit();
    assert_eq!(
        (by_file.code, by_file.stdout.as_str()),
        (0, "[]"),
        "{}",
        by_file.stderr
    );
    let file = TempFile::new("yaml", &conf);
    let behind = Gateway::platform()
        .arg("key")
        .arg("list")
        .arg("--json")
        .arg("--conf")
        .arg(file.path().display());
    assert_eq!(behind.run_to_exit().code, 0, "--conf may stand behind");
    let wins = Gateway::with(&conf)
        .env("REDIS_PASSWORD", "wrong-password")
        .arg("key")
        .arg("list")
        .run_to_exit();
    assert_eq!((wins.code, wins.stdout.as_str()), (1, ""));
    assert!(wins.stderr.contains("REDIS_HOST"), "{}", wins.stderr);
    assert!(!wins.stderr.contains("wrong-password") && !wins.stderr.contains("redis-password"));
    let faulty = Gateway::with("redis: { hots: x }\nsizes: { body: many }\n")
        .arg("key")
        .arg("list")
        .run_to_exit();
    assert_eq!(faulty.code, 1);
    assert!(
        faulty.stderr.contains("redis") && faulty.stderr.contains("sizes.body"),
        "{}",
        faulty.stderr
    );
}

#[test]
fn every_fault_says_what_to_do() {
    let mut redis = Redis::start();
    let not_configured = Gateway::platform().arg("key").arg("list").run_to_exit();
    assert_eq!(not_configured.code, 1);
    assert!(
        not_configured.stderr.contains("REDIS_HOST")
            && not_configured.stderr.contains("auth.api_keys")
    );
    let good = ["create", "--id", "p", "--tenant", "t1"];
    for (flags, told) in [
        (&["create", "--tenant", "t1"][..], "--id"),
        (&["create", "--id", "p"], "--tenant"),
        (&["create", "--id", "a b", "--tenant", "t1"], "A-Z"),
        (&["create", "--id", "a:b", "--tenant", "t1"], "A-Z"),
        (&["create", "--id", "", "--tenant", "t1"], "--id"),
        (&["create", "--id", "p", "--tenant", "t 1"], "visible ASCII"),
        (
            &[&good[..], &["--permission", "events"]].concat(),
            "resource:action",
        ),
        (
            &[&good[..], &["--permission", "tickets:view-own"]].concat(),
            "grant `tickets:view`",
        ),
        (
            &[&good[..], &["--venue", "v\u{e9}"]].concat(),
            "visible ASCII",
        ),
        (&[&good[..], &["--tier", "gold"]].concat(), "premium"),
        (
            &[&good[..], &["--expires-in", "never"]].concat(),
            "duration",
        ),
        (
            &[&good[..], &["--expires-in", "0s"]].concat(),
            "1s to 3650d",
        ),
        (
            &[&good[..], &["--expires-in", "4000d"]].concat(),
            "1s to 3650d",
        ),
        (
            &[&good[..], &["--overlap", "500ms"]].concat(),
            "1s to 3650d",
        ),
        (&["revoke"], "--id"),
        (&["revoke", "--all"], "--id"),
        (
            &["revoke", "--id", "p", "--fingerprint", "0123456789"],
            "cannot be used with",
        ),
        (&["revoke", "--fingerprint", "0123456"], "8 to 64"),
        (&["revoke", "--fingerprint", "not-hex-digits"], "8 to 64"),
        (&["list", "--id", "p"], "--id"),
        (&["rename"], "rename"),
        (&[], "create"),
        (&["list", "--test"], "--test"),
    ] {
        let exit = key(&redis, flags);
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (2, ""),
            "{flags:?}: {}",
            exit.stderr
        );
        assert!(exit.stderr.contains(told), "{flags:?}: {}", exit.stderr);
    }
    for before in ["--test", "--check-live", "--print-config"] {
        let exit = Gateway::platform()
            .arg(before)
            .arg("key")
            .arg("list")
            .run_to_exit();
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (2, ""),
            "{before}: {}",
            exit.stderr
        );
    }
    assert_eq!(redis.command(&["DBSIZE"]), "0", "nothing was stored");

    redis.command(&["SET", "lock:apikey:p", "1", "EX", "30"]);
    let locked = key(&redis, &good);
    assert_eq!((locked.code, locked.stdout.as_str()), (1, ""));
    assert!(locked.stderr.contains("try again"), "{}", locked.stderr);
    assert_eq!(
        redis.command(&["EXISTS", "lock:apikey:p"]),
        "1",
        "it is somebody else's"
    );

    redis.kill();
    for flags in [&good[..], &["list"], &["revoke", "--id", "p"]] {
        let exit = key(&redis, flags);
        assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{flags:?}");
        assert!(
            exit.stderr.contains("REDIS_HOST"),
            "{flags:?}: {}",
            exit.stderr
        );
    }
}

#[test]
fn a_key_that_nobody_could_read_is_taken_back() {
    let redis = Redis::start();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = Command::new(env!("CARGO_BIN_EXE_api-gateway"))
        .args(["key", "create", "--id", "p", "--tenant", "t1"])
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", redis.port().to_string())
        .stdin(Stdio::null())
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("removed again"), "{said}");
    assert_eq!(redis.command(&["DBSIZE"]), "0");
}

#[test]
fn the_help_is_true() {
    let redis = Redis::start();
    let help = |flags: &[&str]| {
        let exit = key(&redis, &[flags, &["--help"]].concat());
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""), "{flags:?}");
        exit.stdout
    };
    for (of, flags) in [
        (
            &[][..],
            &[
                "create",
                "list",
                "revoke",
                "--conf",
                "REDIS_HOST",
                "Exit status",
            ][..],
        ),
        (
            &["create"],
            &[
                "--id",
                "--tenant",
                "--permission",
                "--venue",
                "--tier",
                "--expires-in",
                "365d",
                "--overlap",
                "free",
            ],
        ),
        (&["list"], &["--tenant", "--json"]),
        (&["revoke"], &["--id", "--all", "--fingerprint"]),
    ] {
        let text = help(of);
        for flag in flags {
            assert!(text.contains(flag), "{of:?} {flag}: {text}");
        }
    }
    let all = Gateway::platform().arg("--help").run_to_exit();
    assert!(all.stdout.contains("key"), "{}", all.stdout);
}

/// `api-gateway key …` with the Redis of the test.
#[track_caller]
fn key(redis: &Redis, flags: &[&str]) -> Exit {
    let start = Gateway::platform()
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .arg("key");
    flags
        .iter()
        .fold(start, |command, flag| command.arg(flag))
        .run_to_exit()
}

/// A new key of the tenant t1 that may do everything.
#[track_caller]
fn created(redis: &Redis, id: &str, flags: &[&str]) -> String {
    let all = [
        &["create", "--id", id, "--tenant", "t1", "--permission", "*"],
        flags,
    ]
    .concat();
    let exit = key(redis, &all);
    assert_eq!(exit.code, 0, "{}", exit.stderr);
    exit.stdout
}

#[track_caller]
fn revoke_ok(redis: &Redis, flags: &[&str]) {
    let exit = key(redis, &[&["revoke"], flags].concat());
    assert_eq!(
        (exit.code, exit.stdout.as_str()),
        (0, ""),
        "{}",
        exit.stderr
    );
}

#[track_caller]
fn listed(redis: &Redis, flags: &[&str]) -> Vec<Value> {
    let exit = key(redis, &[&["list", "--json"], flags].concat());
    assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
    serde_json::from_str(&exit.stdout).unwrap()
}

#[track_caller]
fn status(gateway: &Gateway, key: &str) -> u16 {
    let request = Request::get("/events").header("X-API-Key", key);
    request.send_to(gateway.addr()).status
}

fn hashed(key: &str) -> String {
    format!("apikey:sha256:{}", sha256(key))
}

fn fingerprint(key: &str) -> String {
    sha256(key)[..12].to_owned()
}

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A gateway that finds keys in Redis: it has seen an unknown one, and knows that it is none.
#[track_caller]
fn start(redis: &Redis) -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let yaml = format!(
        r#"
limits: {{ enabled: false }}
auth: {{ failures: {{ max: 100000, window: 60s }} }}
services: {{ backend: {{ url: "{}", health: {{ enabled: false }} }} }}
routes: [{{ path: /events, service: backend, auth: token-or-key, permissions: {{ GET: "events:view" }} }}]
"#,
        backend.url()
    );
    let gateway = Gateway::with(&yaml)
        .env("SERVER_THREADS", 1)
        .env("REDIS_HOST", redis.addr().ip())
        .env("REDIS_PORT", redis.port())
        .start();
    gateway.wait_metric("redis_up", |up| up == 1.0);
    wait_until("it has found redis", || status(&gateway, "unknown") == 401);
    (backend, gateway)
}
