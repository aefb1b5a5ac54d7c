//! A long time under everything at once: HTTP/1, TLS, HTTP/2 on both sides, WebSockets, event streams, refusals, clients
//! that go away; and meanwhile the configuration changes, and one process follows the other. Nothing fails, memory stays
//! flat, and nothing is left over: no connection, no descriptor, no task, no thread, no process.
//!
//! `SOAK_SECONDS=600 cargo test --test e2e -- soak::` is the long form.

mod lanes;

use std::fmt::Write as _;
use std::fs;
use std::thread;

use crate::support::http2::{Http2Upstream, Play};
use crate::support::prelude::*;
use crate::support::websocket::Chat;
use lanes::{Doors, Lanes};

/// Looks at the memory of each of the two processes.
const LOOKS: u32 = 12;

/// After so many of them it has what it needs.
const WARM: usize = 4;

const CONNECTIONS: &str = "downstream_connections";
const TASKS: &str = "runtime_tasks";
const RELOADS: &str = r#"config_reloads_total{outcome="reloaded"}"#;

#[test]
fn memory_stays_flat_and_nothing_is_left_over() {
    let _alone = alone();
    let seconds = std::env::var("SOAK_SECONDS").map_or(12, |text| text.parse().unwrap());
    let backend = Upstream::start_with(answer);
    let (chat, other) = (
        Chat::start(),
        Http2Upstream::start(|_| Play::ok("over HTTP/2")),
    );
    let authority = Authority::new();
    let pair = authority.sign("a", "DNS:a.test");
    // Port 0 would be another one for the second process.
    let https = refused_addr();
    let conf = |timeout| conf(&backend, &chat, &other, (https, &pair), timeout);
    let runtime = Runtime::new();
    let gateway = runtime.of(Gateway::with(&conf("30s"))).start();
    let doors = Doors {
        plain: gateway.addr(),
        https,
        client: TlsClient::new(&authority.ca(), "a.test"),
    };
    gateway.wait_metric(CONNECTIONS, |n| n == 0.0);
    let first = Process(gateway.pid());
    let before = first.left(&gateway);

    let load = everything(gateway.addr()).start();
    let lanes = Lanes::start(&doors);
    let look = |process: &Process| {
        let looks = (0..LOOKS).map(|number| {
            thread::sleep(Duration::from_secs(seconds) / 2 / LOOKS);
            gateway.rewrite_conf(&conf(["30s", "31s"][number as usize % 2]));
            let reload = Request::post("/reload").send_to(gateway.private_addr());
            assert_eq!(reload.status, 200, "{}", reload.text());
            process.resident_kb()
        });
        looks.collect::<Vec<u64>>()
    };
    let resident = look(&first);
    let done = runtime.upgrade();
    assert_eq!((done.code, &*done.stderr), (0, ""));
    let second = Process(gateway.successor(1));
    // Whatever it held of its clients it has let go.
    assert_eq!(gateway.wait_exit(Duration::from_secs(10)), Some(0));
    let resident = [resident, look(&second)];
    let reloads = gateway.metric(RELOADS);
    let visits = lanes.stop();
    let traffic = load.stop();

    let unexpected = traffic.only(|one| match one.lane {
        "refused" => !matches!(one.end, Ok(400 | 401 | 404 | 429)),
        _ => one.end != Ok(200),
    });
    assert!(unexpected.is_empty(), "{unexpected}");
    assert!(reloads >= f64::from(LOOKS), "{reloads} reloads");
    gateway.wait_metric(CONNECTIONS, |n| n == 0.0);
    for kind in ["websocket", "events", "other"] {
        let open = format!(r#"streams_open{{kind="{kind}"}}"#);
        gateway.wait_metric(&open, |n| n == 0.0);
    }
    gateway.wait_metric(TASKS, |n| n <= before.tasks + 4.0);
    let after = second.left(&gateway);
    // Idle connections to its backends, that of HTTP/2 among them, are what it may have more.
    let idle = backend.open_connections() + 4;
    assert!(after.fds <= before.fds + idle, "{before:?} then {after:?}");
    // That of the reloads, and those beside the loops, but for the one that is always there, until ten seconds after the last look.
    let more = after.threads.saturating_sub(before.threads);
    println!("{more} threads more");
    assert!(more <= 1 + 3, "{before:?} then {after:?}");

    println!("{traffic}\n{visits:?}, {} reloads", reloads * 2.0);
    for (done, (lane, count)) in visits.iter().map(|visit| (visit.1 > 0, visit)) {
        assert!(done, "{lane}: {count}");
    }
    for resident in &resident {
        let (grown, story) = grown(resident);
        println!("grown by {grown} kB in {} s; MB:{story}", seconds / 2);
        assert!(grown < 6 * 1024, "grown by {grown} kB:{story}");
    }
}

/// By how much memory grows from the first look at a warm process to the last, as a straight line has it that lies closest to all
/// of them: one peak makes no slope. With how it went.
fn grown(resident: &[u64]) -> (i64, String) {
    let mut story = String::new();
    for kb in resident {
        let _ = write!(story, " {:.1}", *kb as f64 / 1024.0);
    }
    let warm: Vec<f64> = resident[WARM..].iter().map(|kb| *kb as f64).collect();
    let middle = (warm.len() - 1) as f64 / 2.0;
    let mean = warm.iter().sum::<f64>() / warm.len() as f64;
    let steps = warm
        .iter()
        .enumerate()
        .map(|(i, kb)| (i as f64 - middle, kb - mean));
    let (over, under) = steps.fold((0.0, 0.0), |(over, under), (x, y)| {
        (over + x * y, under + x * x)
    });
    ((over / under * middle * 2.0) as i64, story)
}

fn conf(
    backend: &Upstream,
    chat: &Chat,
    other: &Http2Upstream,
    (https, (cert, key)): (SocketAddr, &(String, String)),
    timeout: &str,
) -> String {
    format!(
        "server:
  listeners: [{{ address: '{https}', protocol: https }}]
tls: {{ certificates: [{{ certificate: '{cert}', key: '{key}' }}] }}
services:
  s: {{ url: '{}', timeout: {timeout} }}
  c: {{ url: 'http://{}' }}
  h: {{ url: '{}', http2: true }}
health: {{ enabled: false }}
limits: {{ enabled: false }}
auth: {{ failures: {{ max: 1000000, window: 60s }} }}
streams: {{ per_user: 0, drain_grace: 1s }}
routes:
  - {{ path: '/public/*', service: s, auth: public }}
  - {{ path: '/s/*', service: s, auth: token }}
  - {{ path: '/events/*', service: s, auth: public, idle_timeout: 20s }}
  - {{ path: '/ws/*', service: c, auth: public, websocket: {{}} }}
  - {{ path: '/h/*', service: h, auth: public }}
",
        backend.url(),
        chat.addr(),
        other.url(),
    )
}

fn answer(request: &Recorded) -> Reply {
    if !request.path().starts_with("/events") {
        return Reply::json(json!({"ok": true}));
    }
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let events = std::iter::repeat_n("9\r\ndata: x\n\n\r\n", 10);
    let pieces = std::iter::once(head).chain(events).chain(["0\r\n\r\n"]);
    Reply::paced(pieces, Duration::from_millis(20))
}

/// Kept and new connections, bodies, both kinds of backends, and each kind of refusal.
fn everything(addr: SocketAddr) -> Load {
    let token = token::customer();
    let pause = Duration::from_millis(4);
    Load::on(addr)
        .clients("kept", 4, pause, move |n| {
            Request::get(&format!("/s/{n}")).bearer(&token)
        })
        .clients("new", 4, pause, |n| {
            Request::get(&format!("/public/{n}")).header("Connection", "close")
        })
        .clients("over HTTP/2", 2, pause, |n| {
            Request::get(&format!("/h/{n}"))
        })
        .clients("bodies", 2, pause, |n| {
            Request::post("/public/x").body(noise(n % 40_000))
        })
        .clients("chunks", 2, pause, |n| {
            Request::post("/public/x").chunked(vec![noise(n % 1000); 3])
        })
        .clients("refused", 3, pause, |n| match n % 4 {
            0 => Request::get("/s/x"),
            1 => Request::get("/nowhere"),
            2 => Request::get("/s/../x"),
            _ => Request::get("/s/x").bearer(&format!("no.{n}.token")),
        })
}

/// One of the two, by its id.
struct Process(u32);

/// What a process holds beside its memory.
#[derive(Debug)]
struct Left {
    fds: usize,
    threads: u64,
    tasks: f64,
}

impl Process {
    fn resident_kb(&self) -> u64 {
        self.of_status("VmRSS:")
    }

    /// `gateway`: while this is the process that serves.
    fn left(&self, gateway: &Gateway) -> Left {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.0));
        Left {
            tasks: gateway.metric(TASKS),
            fds: fds.expect("it runs").count(),
            threads: self.of_status("Threads:"),
        }
    }

    fn of_status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).expect("it runs");
        let value = status.lines().find_map(|line| line.strip_prefix(field));
        let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {field} in {status}"))
    }
}
