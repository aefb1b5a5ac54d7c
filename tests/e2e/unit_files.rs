//! conf/api-gateway.service: systemd finds no fault in it, it is hardened, and the gateway lives within it: in the time,
//! with the descriptors and with the system calls that it grants.

use crate::support::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

const UNIT: &str = include_str!("../../conf/api-gateway.service");
const REFERENCE: &str = include_str!("../../conf/gateway.yaml");

/// What `systemd-analyze security` may find at most, from 0 (nothing is exposed) to 100. One of them is for
/// `sched_setscheduler`, by which a reload yields to requests (real-time policies stay out of reach).
const EXPOSURE: u32 = 17;

#[test]
fn systemd_finds_no_fault_in_the_unit() {
    // The unit with the binary that is here, in a folder of its own: a unit's name is its file's.
    let folder = std::env::temp_dir().join(format!("gateway-e2e-unit-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let unit = folder.join("api-gateway.service");
    let binary = env!("CARGO_BIN_EXE_api-gateway");
    fs::write(&unit, UNIT.replace("/usr/local/bin/api-gateway", binary)).unwrap();

    let verified = systemd_analyze(&["verify", "--man=no", unit.to_str().unwrap()]);
    let threshold = format!("--threshold={EXPOSURE}");
    let secured = systemd_analyze(&[
        "security",
        "--offline=true",
        &threshold,
        unit.to_str().unwrap(),
    ]);
    fs::remove_dir_all(&folder).unwrap();

    assert!(verified.status.success(), "{}", text(&verified));
    assert!(
        !text(&verified).contains("api-gateway.service"),
        "{}",
        text(&verified)
    );
    let report = text(&secured);
    assert!(report.contains("Overall exposure level"), "{report}");
    assert!(
        secured.status.success(),
        "more exposed than {EXPOSURE}: {report}"
    );
}

#[test]
fn the_unit_leaves_the_gateway_the_time_and_the_descriptors_that_it_needs() {
    let number = |key: &str| {
        value_of(key)
            .parse::<u64>()
            .unwrap_or_else(|e| panic!("{key}: {e}"))
    };
    let drain = seconds("server.shutdown_timeout", 30) + seconds("server.drain_delay", 0);
    assert!(
        number("TimeoutStopSec") >= drain + 5,
        "a drain takes up to {drain} s"
    );
    assert!(number("TimeoutStartSec") > seconds("server.upgrade_timeout", 60));
    let most = reference("server.connections.max").map_or(20_000, |max| max.as_u64().unwrap());
    let kept = reference("server.upstream_connections")
        .unwrap()
        .as_u64()
        .unwrap();
    assert!(
        number("LimitNOFILE") > 2 * most + 8 * kept,
        "client, backend, and what is kept"
    );

    assert_eq!(
        (value_of("Type"), value_of("NotifyAccess")),
        ("notify", "all")
    );
    assert_eq!(value_of("RuntimeDirectoryMode"), "0700");
    assert_eq!(value_of("DynamicUser"), "yes");
    assert_eq!(value_of("CapabilityBoundingSet"), "CAP_NET_BIND_SERVICE");
    // All three run the same binary with the same file.
    let start = value_of("ExecStart");
    assert_eq!(value_of("ExecStartPre"), format!("{start} --test"));
    assert_eq!(value_of("ExecReload"), format!("{start} upgrade"));
}

/// strace refuses what the filter would refuse, in the same way, and tells it.
#[test]
fn the_gateway_starts_serves_and_ends_within_the_units_system_call_filter() {
    let allowed = allowed_calls();
    assert!(allowed.len() > 200, "{allowed:?}");
    let (backend, redis) = (Upstream::start(), Redis::start());
    let conf = format!(
        "redis: {{ host: 127.0.0.1, port: {} }}
services: {{ s: {{ url: '{}' }} }}
routes: [{{ path: /s/*, service: s, auth: token }}]
",
        redis.port(),
        backend.url()
    );
    let trace = TempFile::new("strace", "");
    // `?`: names that this machine does not know. Memory is looked at as well, for MemoryDenyWriteExecute.
    let list = |names: &mut dyn Iterator<Item = &String>| {
        names
            .map(|name| format!("?{name}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let memory = ["mmap", "mprotect", "pkey_mprotect", "shmat"];
    let told = list(
        &mut allowed
            .iter()
            .filter(|name| !memory.contains(&name.as_str())),
    );
    let gateway = Gateway::with(&conf)
        .under(&[
            "strace",
            "--follow-forks",
            "--seccomp-bpf",
            "--output",
            trace.path().to_str().unwrap(),
            &format!("--trace=!{told}"),
            &format!("--inject=!{}:error=EPERM", list(&mut allowed.iter())),
        ])
        .start();
    let traced = Traced::of(&gateway);

    gateway.wait_metric("redis_up", |up| up == 1.0);
    for _ in 0..20 {
        let request = Request::post("/s/x")
            .bearer(&token::customer())
            .body("{\"a\":1}");
        assert_eq!(request.send_to(gateway.addr()).status, 200);
    }
    for path in ["/health", "/ready", "/live"] {
        let answer = Request::get(path).send_to(gateway.private_addr());
        assert_eq!(answer.status, 200, "{path}");
    }
    let reload = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(reload.status, 200, "{}", reload.text());
    assert!(gateway.metrics().contains("process_open_fds"));
    traced.signal("TERM");
    assert_eq!(
        gateway.wait_exit(Duration::from_secs(20)),
        Some(0),
        "{}",
        gateway.raw_output()
    );

    let trace = fs::read_to_string(trace.path()).unwrap();
    assert!(trace.contains("mmap("), "strace has told nothing: {trace}");
    let refused: Vec<_> = trace
        .lines()
        .filter(|line| line.contains("(INJECTED)"))
        .collect();
    assert!(refused.is_empty(), "outside SystemCallFilter: {refused:#?}");
    let is_writable_code = |line: &&str| {
        line.contains("PROT_EXEC") && (line.contains("PROT_WRITE") || line.contains("mprotect("))
    };
    let code: Vec<_> = trace.lines().filter(is_writable_code).collect();
    assert!(code.is_empty(), "against MemoryDenyWriteExecute: {code:#?}");
}

/// The gateway below strace; ended with the test, as strace would leave it alone.
struct Traced(String);

impl Traced {
    fn of(strace: &Gateway) -> Self {
        let pid = strace.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        Self(children.trim().to_owned())
    }

    fn signal(&self, signal: &str) -> bool {
        let sent = Command::new("kill").args(["-s", signal, &self.0]).output();
        sent.unwrap().status.success()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.signal("KILL");
        }
    }
}

/// What the unit's filter leaves: `SystemCallFilter=` adds names and sets, with `~` it takes them away.
fn allowed_calls() -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in values_of("SystemCallFilter") {
        let (list, takes_away) = match line.strip_prefix('~') {
            Some(list) => (list, true),
            None => (line, false),
        };
        for name in list.split_whitespace() {
            for call in calls_of(name) {
                match takes_away {
                    true => allowed.remove(&call),
                    false => allowed.insert(call),
                };
            }
        }
    }
    allowed
}

fn calls_of(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let listed = systemd_analyze(&["syscall-filter", name]);
    assert!(listed.status.success(), "{}", text(&listed));
    let text = text(&listed);
    let names = text
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    names.flat_map(calls_of).collect()
}

#[track_caller]
fn systemd_analyze(arguments: &[&str]) -> Output {
    let run = Command::new("systemd-analyze")
        .args(arguments)
        .env("SYSTEMD_COLORS", "0")
        .output();
    run.expect("systemd-analyze is there: scripts/test.sh installs it")
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

fn values_of(key: &str) -> impl Iterator<Item = &'static str> {
    let lines = UNIT.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
}

#[track_caller]
fn value_of(key: &str) -> &'static str {
    let values: Vec<_> = values_of(key).collect();
    let [value] = values[..] else {
        panic!("{key} stands {} times in the unit", values.len())
    };
    value
}

/// A value of the reference, where the key is there.
fn reference(path: &str) -> Option<serde_yaml::Value> {
    let reference: serde_yaml::Value = serde_yaml::from_str(REFERENCE).unwrap();
    path.split('.')
        .try_fold(reference, |value, key| value.get(key).cloned())
}

fn seconds(path: &str, default: u64) -> u64 {
    let Some(value) = reference(path) else {
        return default;
    };
    let value = value
        .as_str()
        .unwrap_or_else(|| panic!("{path} is no time"))
        .to_owned();
    let number = value.trim_end_matches('s').parse();
    number.unwrap_or_else(|e| panic!("{path} is {value}, not in seconds: {e}"))
}
