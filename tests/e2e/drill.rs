//! What the runbook tells an operator to type does what it says, and the limits hold under several times their load.
//!
//! `DRILL_SECONDS=60 cargo test --test e2e -- drill::` is the long form.

use crate::support::limited::{self, Race};
use crate::support::prelude::*;
use crate::support::tenancy::knows_redis;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

const RUNBOOK: &str = include_str!("../../docs/contract/tickettoken-api-gateway.md");
const README: &str = include_str!("../../README.md");

const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn three_processes_keep_a_limit_under_five_times_its_load() {
    let _alone = alone();
    let redis = Redis::start();
    let (backend, gateways) = limited::start::<3>(&redis, "global: { max: 100, window: 2s }");
    let seconds = std::env::var("DRILL_SECONDS").map_or(6, |text| text.parse().unwrap());
    let race = Race {
        max: 100,
        window: Duration::from_secs(2),
        per_second: 5.0 * 50.0,
        time: Duration::from_secs(seconds),
    };
    race.run(&backend, &gateways, &limited::of("u1", "/token"));
}

#[test]
fn clear_rate_limits() {
    let drill = Drill::start();
    let search = || Request::get("/api/v1/search/x").bearer(&token::customer());
    for round in 0..2 {
        drill.until_refused(&search, 31);
        drill.until_refused(&|| purchase("e1"), 6);
        drill.clears_all();
        assert_eq!(drill.status(&search()), 200, "round {round}");
        assert_eq!(drill.status(&purchase("e1")), 200, "round {round}");
    }
}

#[test]
fn whatever_event_is_named_the_runbook_line_comes_through() {
    let drill = Drill::start();
    let events = [
        "e 2", "it's", "\"e\"", "a\nb", "$(e)", "*", "é", "-x", "a\\", "a:b",
    ];
    for event in events {
        drill.until_refused(&|| purchase(event), 6);
    }
    drill.clears_all();
    for event in events {
        assert_eq!(drill.status(&purchase(event)), 200, "{event:?}");
    }
}

#[test]
fn give_somebody_a_new_start() {
    let drill = Drill::start();
    let event = || purchase("e7");
    drill.until_refused(&event, 6);
    for documented in [
        "redis-cli DEL rl:user:ID",
        "rl:api:ID",
        "rl:ip:ADDRESS",
        "rl:ticket:USER:EVENT",
    ] {
        assert!(README.contains(documented), "{documented}");
    }
    assert_eq!(drill.shell("redis-cli DEL rl:ticket:u1:e7"), "1");
    assert_eq!(drill.status(&event()), 200);

    let venues = || Request::get("/api/v1/events/x").bearer(&token::customer());
    drill.until_refused(&venues, 101);
    drill.runs(README, "redis-cli DEL rl:user:ID", &[("ID", "u1")]);
    assert_eq!(drill.status(&venues()), 200);

    let public = || Request::get("/api/v1/payments/health");
    drill.until_refused(&public, 101);
    assert_eq!(drill.shell("redis-cli DEL rl:ip:127.0.0.1"), "1");
    assert_eq!(drill.status(&public()), 200);
}

#[test]
fn blacklist_a_token() {
    let drill = Drill::start();
    let (stolen, good) = (Token::user("u1").hs256(), Token::user("u1").hs256());
    let ask = |token: &str| drill.status(&Request::get("/api/v1/events/x").bearer(token));
    assert_eq!([ask(&stolen), ask(&good)], [200, 200]);
    let line = r#"redis-cli SET "session:blacklist:{token}" "1" EX 86400"#;
    drill.runs(RUNBOOK, line, &[("{token}", &stolen)]);
    drill.soon("the token is refused", || ask(&stolen) == 401);
    assert_eq!(ask(&good), 200, "another token of the same user");
    drill.shell(&format!("redis-cli DEL session:blacklist:{stolen}"));
    drill.soon("it is good again", || ask(&stolen) == 200);
    let line = "redis-cli SET session:blacklist:TOKEN 1 EX 86400";
    drill.runs(README, line, &[("TOKEN", &good)]);
    drill.soon("as the README has it", || ask(&good) == 401);
}

#[test]
fn tell_that_a_user_has_changed() {
    let drill = Drill::start();
    let of = |asked: &Recorded, role: &str| {
        let id = asked.target.rsplit('/').next().unwrap();
        Reply::json(json!({"id": id, "tenant_id": "t1", "role": role}))
    };
    let token = Token::user("u1").without("role").hs256();
    let create = || drill.status(&Request::post("/api/v1/events/x").bearer(&token));
    drill.backend.set(move |asked| of(asked, "venue-manager"));
    assert_eq!(create(), 200);
    drill.backend.set(move |asked| of(asked, "customer"));
    assert_eq!(create(), 200, "he is remembered");
    let line = "redis-cli PUBLISH cache:forget session:user:ID";
    assert_eq!(drill.runs(README, line, &[("ID", "u1")]), "1");
    drill.soon("he is asked for again", || create() == 403);
}

#[test]
fn check_the_health() {
    let drill = Drill::start();
    for path in ["health", "ready", "live"] {
        let line = format!("curl http://localhost:3000/{path}");
        let said = drill.runs(RUNBOOK, &line, &[]);
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(said.is_object(), "{line}: {said}");
    }
    let metrics = drill.runs(RUNBOOK, "curl http://localhost:3000/metrics", &[]);
    assert!(metrics.contains("\nhttp_requests_total"), "{metrics}");
    let memory = drill.runs(
        RUNBOOK,
        "curl http://localhost:3000/health | jq '.memory'",
        &[],
    );
    let memory: Value = serde_json::from_str(&memory).unwrap();
    assert!(memory.is_object() || memory.is_number(), "{memory}");
    assert_eq!(drill.runs(RUNBOOK, "redis-cli ping", &[]), "PONG");
}

#[test]
fn check_the_circuit_breakers() {
    let drill = Drill::start();
    let line = "curl http://localhost:3000/health | jq '.circuitBreakers'";
    let states = || -> Value { serde_json::from_str(&drill.runs(RUNBOOK, line, &[])).unwrap() };
    let before = states();
    let names: Vec<&String> = before.as_object().unwrap().keys().collect();
    assert!(names.len() >= 15, "{names:?}");
    drill.backend.set(|_| Reply::status(500));
    for _ in 0..40 {
        drill.status(&Request::post("/api/v1/tickets/validate").bearer(&token::admin()));
    }
    let after = states();
    assert_ne!(after["ticket-service"], before["ticket-service"], "{after}");
    assert_eq!(
        after["payment-service"], before["payment-service"],
        "{after}"
    );
}

#[test]
fn stop_the_service() {
    let drill = Drill::start();
    let pid = drill.gateway.pid().to_string();
    assert_eq!(drill.status(&Request::get("/live")), 200);
    drill.runs(RUNBOOK, "kill -TERM <pid>", &[("<pid>", &pid)]);
    assert_eq!(drill.gateway.wait_exit(Duration::from_secs(10)), Some(0));
}

/// Somebody buys a ticket.
fn purchase(event: &str) -> Request {
    Request::post("/api/v1/tickets/purchase")
        .bearer(&token::customer())
        .json(&json!({"eventId": event, "quantity": 1}))
}

/// The platform on a Redis, and a shell in which `redis-cli` finds it.
struct Drill {
    backend: Upstream,
    gateway: Gateway,
    tools: PathBuf,
    _redis: Redis,
}

impl Drill {
    #[track_caller]
    fn start() -> Self {
        let redis = Redis::start();
        let backend = Upstream::start();
        let gateway = Gateway::platform_unchecked()
            .all_services_at(&backend.url())
            .env("REDIS_HOST", redis.addr().ip())
            .env("REDIS_PORT", redis.port())
            .start();
        knows_redis(&gateway);
        Self {
            backend,
            tools: tools(&redis),
            gateway,
            _redis: redis,
        }
    }

    /// Runs a documented line, with what stands in for these words, and gives what it said.
    #[track_caller]
    fn runs(&self, document: &str, line: &str, words: &[(&str, &str)]) -> String {
        assert!(document.contains(line), "not documented: {line}");
        let address = self.gateway.addr().to_string();
        let mut line = line.replace("localhost:3000", &address);
        for (word, value) in words {
            line = line.replace(word, value);
        }
        self.shell(&line)
    }

    /// The documented line leaves no limit behind.
    #[track_caller]
    fn clears_all(&self) {
        self.runs(
            RUNBOOK,
            r#"redis-cli KEYS "rl:*" | xargs redis-cli DEL"#,
            &[],
        );
        assert_eq!(self.shell(r#"redis-cli KEYS "rl:*""#), "");
    }

    #[track_caller]
    fn shell(&self, line: &str) -> String {
        let path = format!(
            "{}:{}",
            self.tools.display(),
            std::env::var("PATH").unwrap()
        );
        let done = Command::new("bash")
            .args(["-o", "pipefail", "-c", line])
            .env("PATH", path)
            .output()
            .expect("bash can be run");
        let said = String::from_utf8_lossy(&done.stdout).trim_end().to_owned();
        let complaint = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{line}: {said}\n{complaint}");
        said
    }

    fn status(&self, request: &Request) -> u16 {
        request.send_to(self.gateway.addr()).status
    }

    /// Sends it so often that the last one is refused.
    #[track_caller]
    fn until_refused(&self, request: &dyn Fn() -> Request, times: usize) {
        let refused = (0..times).find(|_| self.status(&request()) == 429);
        assert!(refused.is_some(), "{times} of them pass");
    }

    #[track_caller]
    fn soon(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let came = within(AT_ONCE, || condition().then_some(()));
        assert!(came.is_some(), "not within {AT_ONCE:?}: {what}");
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        // Only a folder of the temporary ones stays behind when it cannot be removed.
        let _ = fs::remove_dir_all(&self.tools);
    }
}

/// A folder with a `redis-cli` that asks this server: the documented lines do not name one.
fn tools(redis: &Redis) -> PathBuf {
    let name = format!("gateway-drill-{}-{}", std::process::id(), redis.port());
    let folder = std::env::temp_dir().join(name);
    fs::create_dir(&folder).expect("a folder can be made");
    let tool = folder.join("redis-cli");
    let script = format!(
        "#!/bin/sh\nPATH=${{PATH#*:}}\nexec redis-cli -p {} \"$@\"\n",
        redis.port()
    );
    fs::write(&tool, script).expect("a file can be written");
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).expect("it can be made a program");
    folder
}
