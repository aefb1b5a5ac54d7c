//! A long time under everything at once: kept and new connections, refusals, clients that go away. Memory stays flat,
//! and nothing is left over: no connection, no descriptor, no task, no thread.
//!
//! `SOAK_SECONDS=600 cargo test --test e2e -- soak::` is the long form.

use crate::support::prelude::*;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

const PARTS: u32 = 12;
const CONNECTIONS: &str = "downstream_connections";
const TASKS: &str = "runtime_tasks";

#[test]
fn memory_stays_flat_and_nothing_is_left_over() {
    let _alone = alone();
    let seconds = std::env::var("SOAK_SECONDS").map_or(6, |text| text.parse().unwrap());
    let part = Duration::from_secs(seconds) / PARTS;
    let backend = Upstream::start_with(|_| Reply::json(json!({"ok": true})));
    let gateway = Gateway::with(&conf(&backend)).start();
    let before = Left::at(&gateway);

    let load = everything(gateway.addr()).start();
    let leavers = Leavers::start(gateway.addr());
    let mut resident = Vec::new();
    for _ in 0..PARTS {
        thread::sleep(part);
        resident.push(gateway.memory_kb());
    }
    let left = leavers.stop();
    let traffic = load.stop();

    let unexpected = traffic.only(|one| match one.lane {
        "refused" => !matches!(one.end, Ok(400 | 401 | 404 | 429)),
        _ => one.end != Ok(200),
    });
    assert!(unexpected.is_empty(), "{unexpected}");
    gateway.wait_metric(CONNECTIONS, |n| n == 0.0);
    gateway.wait_metric(TASKS, |n| n <= before.tasks + 2.0);
    let after = Left::at(&gateway);
    // The pool of idle connections to the backend may have one for each of what was in flight at once.
    assert!(after.fds <= before.fds + 64, "{before:?} then {after:?}");
    assert!(
        after.threads <= before.threads + 2,
        "{before:?} then {after:?}"
    );

    let mut story = String::new();
    for kb in &resident {
        let _ = write!(story, " {:.1}", *kb as f64 / 1024.0);
    }
    println!(
        "{} requests and {left} that were left in {seconds} s; MB:{story}",
        traffic.len()
    );
    let third = resident.len() / 3;
    let (early, late) = (
        resident[third..2 * third].iter().max().unwrap(),
        resident[2 * third..].iter().max().unwrap(),
    );
    let grown = *late as i64 - *early as i64;
    assert!(grown < 6 * 1024, "grown by {grown} kB:{story}");
}

fn conf(backend: &Upstream) -> String {
    format!(
        "services: {{ s: {{ url: '{}' }} }}
limits: {{ enabled: false }}
routes:
  - {{ path: '/public/*', service: s, auth: public }}
  - {{ path: '/s/*', service: s, auth: token }}
",
        backend.url()
    )
}

/// Kept and new connections, bodies, and each kind of refusal.
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

/// What a process holds beside its memory.
#[derive(Debug)]
struct Left {
    fds: usize,
    threads: u64,
    tasks: f64,
}

impl Left {
    fn at(gateway: &Gateway) -> Self {
        Self {
            tasks: gateway.metric(TASKS),
            fds: gateway.open_fds(),
            threads: gateway.threads(),
        }
    }
}

/// Clients that go away: with half a head, half a body, before their answer.
struct Leavers {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Leavers {
    fn start(addr: SocketAddr) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Relaxed) {
                let mut connection = Client::to(addr).connect();
                match number % 4 {
                    0 => connection.send(b"GET /public/x HTTP/1.1\r\nHo"),
                    1 => connection.send(
                        b"POST /public/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
                    ),
                    2 => connection.send(&Request::get("/public/x").bytes()),
                    _ => {}
                }
                if number % 8 < 4 {
                    connection.reset();
                }
                number += 1;
                thread::sleep(Duration::from_millis(5));
            }
            number
        });
        Self { stopping, thread }
    }

    fn stop(self) -> usize {
        self.stopping.store(true, Relaxed);
        self.thread.join().expect("it did not panic")
    }
}
