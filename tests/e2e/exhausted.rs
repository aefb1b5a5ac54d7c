//! What the system has no more of: threads, descriptors, room for what is waited for. The process lives on, serves what it can, and
//! says so without filling its log. One that cannot accept any more ends.

use crate::support::prelude::*;
use socket2::{Domain, Socket, Type};
use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// Limits of threads do not bind root.
const AS_NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
];

#[test]
fn without_another_thread_everything_is_answered() {
    let item = |i| json!({"id": i, "name": "n".repeat(100)});
    let large: Vec<Value> = (0..4000).map(item).collect();
    let large = json!({ "data": large });
    let text = large.to_string();
    let backend = Upstream::start_with(move |_| Reply::json(json!({})).body(text.clone()));
    let redis = Redis::start();
    let authority = Authority::new();
    let (cert, key) = authority.sign("a", "DNS:a.test");
    let url = by_name(&backend);
    let conf = |timeout: &str| {
        format!(
            "limits: {{ enabled: false, flood: {{ per_second: 1000000 }} }}
health: {{ enabled: false }}
documentation: {{ operators: true }}
batch: {{ answer: 2MiB }}
server:
  threads: 2
  watch: true
  listeners: [{{ address: '127.0.0.1:0', protocol: https }}]
tls: {{ certificates: [{{ certificate: '{cert}', key: '{key}' }}] }}
services: {{ s: {{ url: '{url}', timeout: {timeout} }} }}
routes:
- {{ path: /large, service: s, auth: public }}
- path: /page
  service: s
  auth: public
  methods: [GET]
  aggregate: {{ largest: 2MiB, sources: {{ whole: {{ service: s, path: /large, required: true }} }} }}
"
        )
    };
    for file in [&cert, &key] {
        make_readable(file);
    }
    let gateway = Gateway::with(&conf("30s"))
        .env("NODE_ENV", "staging")
        .env("REDIS_HOST", "localhost")
        .env("REDIS_PORT", redis.client_port())
        .under(&AS_NOBODY)
        .start();
    let https = gateway.listener("https");
    let tls = TlsClient::new(&authority.ca(), "a.test");
    assert_eq!(tls.send(&Request::get("/live"), https).status, 200);
    let ready = || Request::get("/ready").send_to(gateway.addr()).json();
    wait_until("redis is used", || ready()["checks"]["redis"] == "ok");
    // A runtime's thread that has had nothing to do for ten seconds would have ended.
    std::thread::sleep(Duration::from_secs(11));
    limit(&gateway, &AS_NOBODY, "--nproc=1");

    let reloaded = r#"config_reloads_total{outcome="reloaded"}"#;
    for _ in 0..2 {
        assert!(gateway.metrics().contains("process_open_fds"));
        let page = Request::get("/page").send_to(gateway.addr());
        assert_eq!(page.status, 200, "{}", page.text());
        assert_eq!(page.json()["data"]["whole"], large);
        let calls = json!({"calls": [{"id": "a", "method": "GET", "path": "/large"}]});
        let batch = Request::post("/api/v1/batch").json(&calls);
        let batch = batch.send_to(gateway.addr());
        assert_eq!(batch.json()["results"][0]["body"], large);
        let document = Request::get("/documentation/json").send_to(gateway.addr());
        assert_eq!(document.status, 200, "{}", document.text());
        let reload = Request::post("/reload").send_to(gateway.private_addr());
        assert_eq!(reload.status, 200, "{}", reload.text());
    }
    let before = gateway.metric(reloaded);
    gateway.rewrite_conf(&conf("31s"));
    gateway.wait_metric(reloaded, |count| count > before);
    authority.sign("a", "DNS:a.test");
    gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.starts_with("the certificates have changed")
    });

    // Each loop, and what is none, looks the name up again.
    let reconnects = r#"redis_reconnects_total{connection="commands"}"#;
    let before = gateway.metric(reconnects);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    gateway.wait_metric(reconnects, |count| count >= before + 3.0);
    gateway.wait_metric("redis_up", |up| up == 1.0);

    const USR2: i32 = 12;
    gateway.signal(USR2);
    let failed = gateway.wait_log(|line| line["msg"] == "upgrade failed, this process serves on");
    assert_eq!(failed["reason"], "no thread can be started", "none can be");
    assert_eq!(Request::get("/large").send_to(gateway.addr()).status, 200);
    assert!(!gateway.raw_output().contains("panicked"));
    const TERM: i32 = 15;
    gateway.signal(TERM);
    assert_eq!(gateway.wait_exit(Duration::from_secs(20)), Some(0));
}

#[test]
fn without_another_thread_a_loop_finds_an_issuer_that_it_never_asked_before() {
    let pairs = [KeyPair::p256(), KeyPair::p256()];
    let keys = [pairs[0].jwk("old"), pairs[1].jwk("new")];
    let issuer = Upstream::start();
    let publish = |keys: &[Value]| {
        let set = json!({ "keys": keys });
        issuer.set(move |_| Reply::json(set.clone()));
    };
    publish(&keys[..1]);
    let backend = Upstream::start();
    let auth = format!(
        "auth: {{ jwt: {{ jwks_url: '{}/jwks', jwks_refresh: 300s }} }}",
        by_name(&issuer)
    );
    let gateway = Gateway::with(&yaml(&backend.url(), &auth)).under(&AS_NOBODY);
    let gateway = gateway.start();
    gateway.wait_log(|line| line["msg"] == "the issuer's key set has 1 keys");
    limit(&gateway, &AS_NOBODY, "--nproc=1");

    publish(&keys);
    let token = pairs[1].sign(&Token::user("u1").kid("new"));
    let get = Request::get("/t/x").bearer(&token);
    assert_eq!(get.send_to(gateway.addr()).status, 200);
    assert_eq!(issuer.count(), 2);
}

#[test]
fn without_another_thread_a_reload_finds_the_first_service_that_has_a_name() {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend.url(), "")).under(&AS_NOBODY);
    let gateway = gateway.start();
    limit(&gateway, &AS_NOBODY, "--nproc=1");
    gateway.rewrite_conf(&yaml(&by_name(&backend), ""));
    let reload = Request::post("/reload").send_to(gateway.private_addr());
    assert_eq!(reload.status, 200, "{}", reload.text());
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
}

#[test]
fn without_descriptors_who_is_there_is_served_and_the_log_has_a_line_a_second() {
    let (_backend, gateway) = world();
    let mut kept = Client::to(gateway.addr()).connect();
    assert_eq!(kept.request(&Request::get("/s/x")).status, 200);
    // No number is free below it.
    limit(&gateway, &[], "--nofile=3:");
    // In all queues.
    let clients: Vec<TcpStream> = (1..=64).map(|host| from(host, gateway.addr())).collect();
    let told = || {
        let lines = gateway.log_lines().into_iter();
        let told = lines.filter(|line| line["msg"] == "a connection cannot be accepted");
        told.collect::<Vec<_>>()
    };
    wait_until("it is told three times", || told().len() >= 3);
    assert_eq!(kept.request(&Request::get("/s/x")).status, 200);
    limit(&gateway, &[], "--nofile=1024:");
    for client in clients {
        let mut client = Connection::over(Wire::Plain(client), Duration::from_secs(10));
        assert_eq!(client.request(&Request::get("/s/x")).status, 200);
    }
    let told = told();
    let field = |line: &Value, name: &str| line[name].as_u64().unwrap();
    for pair in told.windows(2) {
        let apart = field(&pair[1], "time") - field(&pair[0], "time");
        assert!(apart >= 990, "{told:#?}");
        assert!(field(&pair[1], "count") > 1, "{told:#?}");
    }
    assert_eq!(told[0]["context"], "connection");
    let why = told[0]["err"].as_str().unwrap();
    assert!(why.contains("os error 24"), "EMFILE: {why}");
}

#[test]
fn a_connection_that_cannot_be_waited_for_is_counted_told_and_ended() {
    let (_backend, gateway) = world();
    let strace = Strace::attach(&gateway, "--inject=epoll_ctl:error=ENOSPC");
    for _ in 0..3 {
        assert!(Client::to(gateway.addr()).connect().is_closed());
    }
    let told = gateway.wait_log(|line| line["msg"] == "refused");
    assert_eq!(
        (&told["context"], &told["reason"]),
        (&json!("connection"), &json!("resources"))
    );
    let why = told["err"].as_str().unwrap();
    assert!(why.contains("os error 28"), "ENOSPC: {why}");
    strace.detach();
    let refused = r#"downstream_connections_refused_total{reason="resources"}"#;
    gateway.wait_metric(refused, |count| count == 3.0);
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
    assert_eq!(Request::get("/s/x").send_to(gateway.addr()).status, 200);
}

/// What accepts panics at an address of a family that does not exist. (A release build ends at a panic in any case.)
#[test]
fn a_process_that_does_not_accept_any_more_ends_and_says_so() {
    let (_backend, gateway) = world();
    let _strace = Strace::attach(&gateway, "--inject=accept4:poke_exit=@arg2=ffff");
    let _client = from(1, gateway.addr());
    let code = gateway.wait_exit(Duration::from_secs(10));
    assert_eq!(code, Some(1), "{}", gateway.raw_output());
    gateway.wait_log(|line| {
        let message = line["msg"].as_str().unwrap_or_default();
        message.starts_with("`accept` does not accept any more")
            && message.ends_with("; the process ends")
    });
}

fn world() -> (Upstream, Gateway) {
    let backend = Upstream::start();
    let gateway = Gateway::with(&yaml(&backend.url(), "")).start();
    (backend, gateway)
}

/// One loop.
fn yaml(service: &str, settings: &str) -> String {
    format!(
        "limits: {{ enabled: false, flood: {{ per_second: 1000000 }} }}
health: {{ enabled: false }}
server: {{ threads: 1 }}
{settings}
services: {{ s: {{ url: '{service}' }} }}
routes:
- {{ path: /s/*, service: s, auth: public }}
- {{ path: /t/*, service: s, auth: token }}"
    )
}

/// Its name is looked up.
fn by_name(upstream: &Upstream) -> String {
    upstream.url().replace("127.0.0.1", "localhost")
}

/// A client of 127.0.0.`host`.
fn from(host: u8, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let own = SocketAddr::from(([127, 0, 0, host], 0));
    socket.bind(&own.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// From now on it has no more of this: an option of prlimit(1), which runs as the user that the process has.
#[track_caller]
fn limit(gateway: &Gateway, user: &[&str], resource: &str) {
    let pid = gateway.pid().to_string();
    let words = [user, &["prlimit", "--pid", &pid, resource]].concat();
    let limited = Command::new(words[0]).args(&words[1..]).status();
    assert!(limited.unwrap().success(), "{words:?}");
}

fn make_readable(file: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
}

/// What the process asks of the kernel is interfered with, until this is detached or dropped.
struct Strace {
    child: Child,
    pid: u32,
}

impl Strace {
    #[track_caller]
    fn attach(gateway: &Gateway, inject: &str) -> Self {
        let pid = gateway.pid();
        let child = Command::new("strace")
            .args([
                "--follow-forks",
                "--quiet=all",
                "--output=/dev/null",
                inject,
            ])
            .args(["--attach", &pid.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("the tests need the strace command");
        let strace = Self { child, pid };
        let tracer = strace.child.id();
        wait_until("strace is attached", || {
            strace.tracers().iter().all(|by| *by == tracer)
        });
        strace
    }

    /// Of each thread; 0: nobody.
    fn tracers(&self) -> Vec<u32> {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else {
            return Vec::new();
        };
        let status = threads.filter_map(|thread| {
            let status = fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
            let by = status.lines().find_map(|l| l.strip_prefix("TracerPid:"));
            by?.trim().parse().ok()
        });
        status.collect()
    }

    #[track_caller]
    fn detach(self) {
        let mut kill = Command::new("kill");
        kill.arg(self.child.id().to_string());
        assert!(kill.status().unwrap().success());
        wait_until("strace is detached", || {
            self.tracers().iter().all(|by| *by == 0)
        });
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
