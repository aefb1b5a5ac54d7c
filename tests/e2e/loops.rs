//! An event loop a thread: connections are spread over them, what takes long on one does not hold up its others, and a loop that
//! was held up does not hold that against a backend.

use crate::support::prelude::*;
use std::fs;
use std::path::PathBuf;

#[test]
fn connections_of_one_address_are_spread_over_the_threads() {
    let backend = Upstream::start();
    let gateway = start(&[&backend], 2);
    let served = |number| gateway.metric(&connections_of(number));
    let mut clients: Vec<Connection> = (0..8)
        .map(|_| Client::to(gateway.addr()).connect())
        .collect();
    for client in &mut clients {
        client.send(&Request::get("/x").bytes());
        assert_eq!(client.read_response().status, 200);
    }
    assert_eq!([served(1), served(2)], [4.0, 4.0]);
    drop(clients);
    for number in [1, 2] {
        gateway.wait_metric(&connections_of(number), |open| open == 0.0);
    }
    let beats = |number| format!("event_loop_lag_seconds_count{{loop=\"{number}\"}}");
    for number in [1, 2] {
        let before = gateway.metric(&beats(number));
        gateway.wait_metric(&beats(number), |now| now > before);
    }
    assert!(
        !gateway.metrics().contains("loop=\"3\""),
        "there are two threads"
    );
}

#[test]
fn redis_has_a_connection_for_each_loop_and_one_for_what_is_none() {
    let (backend, redis) = (Upstream::start(), Redis::start());
    let gateway = Gateway::with(&yaml(&[&backend], 2))
        .env("REDIS_HOST", "127.0.0.1")
        .env("REDIS_PORT", redis.client_port())
        .start();
    let ready = || Request::get("/ready").send_to(gateway.addr()).json();
    wait_until("redis is used", || ready()["checks"]["redis"] == "ok");
    let clients = redis.command(&["CLIENT", "LIST"]);
    let clients: Vec<&str> = clients.lines().collect();
    // One of them follows what changes, in RESP3.
    let of_commands = |line: &&&str| line.contains("resp=2") && !line.contains("cmd=client|list");
    assert_eq!(
        clients.iter().filter(of_commands).count(),
        3,
        "{clients:#?}"
    );
}

/// The process is stopped while an answer comes. That looks to its loops as if they had been held up by what they do.
#[test]
fn an_instance_is_not_slow_because_the_loop_was() {
    let _alone = alone();
    let slow = |_: &Recorded| Reply::status(200).delay(Duration::from_millis(40));
    let (one, other) = (Upstream::start_with(slow), Upstream::start_with(slow));
    let gateway = start(&[&one, &other], 1);
    let get = || Request::get("/x").send_to(gateway.addr()).status;
    while one.count() < 3 || other.count() < 3 {
        assert_eq!(get(), 200);
    }
    let before = one.count();
    [&one, &other].iter().for_each(|backend| backend.hold());
    let all = before + other.count();
    let mut client = Client::to(gateway.addr()).connect();
    client.send(&Request::get("/x").bytes());
    wait_until("a backend is asked", || one.count() + other.count() > all);
    gateway.signal(STOP);
    [&one, &other].iter().for_each(|backend| backend.release());
    std::thread::sleep(Duration::from_millis(800));
    gateway.signal(CONT);
    assert_eq!(client.read_response().status, 200);
    let of_lag = |what: &str| format!("event_loop_lag_seconds_{what}");
    let late = gateway.metric(&of_lag("bucket{loop=\"1\",le=\"0.5\"}"));
    gateway.wait_metric(&of_lag("count{loop=\"1\"}"), |all| all > late);

    // By a latency of 800 ms it would not be its turn for 15 s.
    let stalled = if one.count() > before { &one } else { &other };
    let before = stalled.count();
    let asked = (1..=100).find(|_| {
        assert_eq!(get(), 200);
        stalled.count() > before
    });
    println!("measured: its turn comes with request {asked:?}");
    assert!(asked.is_some(), "nothing more is sent there");
}

#[test]
fn large_answers_are_read_and_written_whole() {
    let item = |i| json!({"id": i, "name": "n".repeat(100)});
    let large: Vec<Value> = (0..4000).map(item).collect();
    let large = json!({"data": large});
    let text = large.to_string();
    assert!(text.len() > 256 << 10);
    let backend = Upstream::start_with(move |request| match request.path() {
        "/broken" => Reply::json(json!({})).body(format!("{text}}}")),
        "/small" => Reply::json(json!({"small": true})),
        _ => Reply::json(json!({})).body(text.clone()),
    });
    let conf = format!(
        "{COMMON}
batch: {{ answer: 2MiB }}
services: {{ s: {{ url: '{url}' }} }}
routes:
- {{ path: /large, service: s, auth: public }}
- path: /page
  service: s
  auth: public
  methods: [GET]
  aggregate:
    largest: 2MiB
    sources:
      whole: {{ service: s, path: /large, required: true }}
      part: {{ service: s, path: /large, part: data.0 }}
      broken: {{ service: s, path: /broken }}
      small: {{ service: s, path: /small }}
",
        url = backend.url()
    );
    let gateway = Gateway::with(&conf).start();
    let page = Request::get("/page").send_to(gateway.addr());
    assert_eq!(page.status, 200, "{}", page.text());
    let page: Value = serde_json::from_str(page.text()).unwrap();
    assert_eq!(page["data"]["whole"], large);
    assert_eq!(page["data"]["part"], large["data"][0]);
    assert_eq!(page["data"]["small"], json!({"small": true}));
    assert_eq!(page["meta"]["sources"]["broken"], "failed");

    let calls = json!({"calls": [
        {"id": "a", "method": "GET", "path": "/large"},
        {"id": "b", "method": "GET", "path": "/nowhere"},
    ]});
    let batch = Request::post("/api/v1/batch").json(&calls);
    let batch = batch.send_to(gateway.addr());
    assert_eq!(batch.status, 200, "{}", batch.text());
    let batch: Value = serde_json::from_str(batch.text()).unwrap();
    assert_eq!(batch["results"][0]["body"], large);
    assert_eq!(batch["results"][1]["status"], 404);
}

/// After each piece of work a thread beside the loops waits for the next one.
#[test]
fn what_takes_long_is_done_beside_the_loop() {
    let large = json!({"data": "x".repeat(200 << 10)});
    let text = large.to_string();
    let backend = Upstream::start_with(move |_| Reply::json(json!({})).body(text.clone()));
    let conf = format!(
        "{COMMON}
documentation: {{ operators: true }}
batch: {{ answer: 1MiB }}
services: {{ s: {{ url: '{url}' }} }}
routes:
- {{ path: /large, service: s, auth: public }}
- path: /page
  service: s
  auth: public
  methods: [GET]
  aggregate: {{ largest: 1MiB, sources: {{ one: {{ service: s, path: /large, required: true }} }} }}
",
        url = backend.url()
    );
    let gateway = Gateway::with(&conf).env("NODE_ENV", "staging").start();
    let calls = json!({"calls": [{"id": "a", "method": "GET", "path": "/large"}]});
    let (main, private) = (gateway.addr(), gateway.private_addr());
    let asked = [
        ("read, then written", 2, Request::get("/page"), main),
        (
            "read, then written",
            2,
            Request::post("/api/v1/batch").json(&calls),
            main,
        ),
        ("made", 1, Request::get("/documentation/json"), main),
        ("written", 1, Request::get("/metrics"), private),
    ];
    for (what, works, request, addr) in asked {
        let before = rests(gateway.pid());
        let answer = request.send_to(addr);
        assert_eq!(answer.status, 200, "{}", answer.text());
        wait_until(&format!("it is {what} beside the loop"), || {
            rests(gateway.pid()) >= before + works
        });
    }
    let before = rests(gateway.pid());
    let kept = Request::get("/documentation/json").send_to(main);
    assert_eq!(kept.status, 200);
    assert_eq!(rests(gateway.pid()), before, "it is made already");
}

/// How often the threads beside the loops have laid down their work.
fn rests(pid: u32) -> u64 {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    let beside = threads.filter(|thread| read(thread.join("comm")).trim() == "aside");
    let rests = beside.map(|thread| {
        let status = read(thread.join("status"));
        let field = |line: &str| {
            line.strip_prefix("voluntary_ctxt_switches:")?
                .trim()
                .parse()
                .ok()
        };
        status.lines().find_map(field).unwrap_or(0)
    });
    rests.sum()
}

const STOP: i32 = 19;
const CONT: i32 = 18;

const COMMON: &str = "limits: { enabled: false, flood: { per_second: 1000000 } }
health: { enabled: false }";

fn connections_of(number: usize) -> String {
    format!("event_loop_connections{{loop=\"{number}\"}}")
}

fn start(backends: &[&Upstream], threads: usize) -> Gateway {
    Gateway::with(&yaml(backends, threads)).start()
}

fn yaml(backends: &[&Upstream], threads: usize) -> String {
    let urls: Vec<String> = backends.iter().map(|backend| backend.url()).collect();
    let urls = urls.join(",");
    format!(
        "{COMMON}
server: {{ threads: {threads} }}
services: {{ s: {{ url: '{urls}' }} }}
routes: [{{ path: /x, service: s, auth: public }}]"
    )
}
