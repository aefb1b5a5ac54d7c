//! More than a service can do: who is answered, who is told to come back, and that nobody is while there is room.

use crate::support::prelude::*;
use std::collections::VecDeque;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

#[test]
fn at_three_times_the_capacity_the_important_is_answered_the_rest_shed_and_goodput_kept() {
    let _alone = alone();
    let backend = Upstream::start_with(Workers::new(WORKERS, SERVICE_TIME).script());
    let gateway = start(&backend);
    let peak = Load::on(gateway.addr())
        .clients("low", WORKERS, Duration::ZERO, get("/low"))
        .run_for(Duration::from_secs(1));
    assert!(peak.bad().is_empty(), "at the peak: {peak}");
    let peak_rate = peak.len() as f64 / measured_for(&peak);

    let capacity = WORKERS as f64 / SERVICE_TIME.as_secs_f64();
    let load = Load::on(gateway.addr())
        .per_second("high", 0.6 * capacity, 24, get("/high"))
        .per_second("low", 2.4 * capacity, 120, get("/low"))
        .start();
    let start = Instant::now();
    thread::sleep(WARM_UP);
    let warm = Instant::now();
    thread::sleep(Duration::from_secs(3));
    let limit = gateway.metric(r#"concurrency_limit{service="s"}"#);
    let traffic = load.stop();
    let measured = traffic.since(warm);
    let (high, low) = (measured.lane("high"), measured.lane("low"));
    let goodput = measured.good().len() as f64 / measured_for(&measured);
    let shed = low.with_status(503);
    println!(
        "measured: peak {peak_rate}/s, goodput {goodput}/s ({:.1} %), offered {:.0}/s of capacity {capacity}/s, \
         limit {limit}; high: {high}; low: {low}; shed: {shed}; warm-up of {:?}: {}",
        100.0 * goodput / peak_rate,
        measured.len() as f64 / measured_for(&measured),
        warm - start,
        traffic.only(|one| one.sent < warm),
    );
    assert!(high.success() >= 0.99, "high: {high}");
    assert!(goodput >= 0.9 * peak_rate, "{goodput}/s of {peak_rate}/s");
    assert!(shed.len() > low.len() / 3, "low: {low}");
    assert_eq!(shed.len() + low.good().len(), low.len(), "low: {low}");
    assert!(shed.exchanges.iter().all(|one| one.retry_after));
    assert!(shed.median() < Duration::from_millis(20), "shed: {shed}");
    assert!(
        shed.exchanges.iter().all(|one| one.kept),
        "a shed client lost its connection"
    );
    let counted = ["high", "normal", "low"].map(|priority| shed_of(&gateway, priority));
    let all_shed = ["high", "low"].map(|lane| traffic.lane(lane).with_status(503).len() as f64);
    assert_eq!(counted, [all_shed[0], 0.0, all_shed[1]]);
    assert!(
        measured.len() as f64 / measured_for(&measured) > 2.5 * capacity,
        "the load was not made: {measured}"
    );

    let after = Load::on(gateway.addr())
        .per_second("low", 0.4 * capacity, 16, get("/low"))
        .run_for(Duration::from_millis(1500));
    assert!(after.bad().is_empty(), "when it was over: {after}");
}

#[test]
fn one_tenant_cannot_starve_another() {
    let _alone = alone();
    let backend = Upstream::start_with(Workers::new(WORKERS, SERVICE_TIME).script());
    let gateway = start(&backend);
    let capacity = WORKERS as f64 / SERVICE_TIME.as_secs_f64();
    let before = Load::on(gateway.addr())
        .per_second("sale", 0.4 * capacity, 16, of_tenant("sale"))
        .per_second("quiet", 0.1 * capacity, 8, of_tenant("quiet"))
        .run_for(Duration::from_secs(1));
    assert!(before.bad().is_empty(), "before the sale: {before}");
    let load = Load::on(gateway.addr())
        .per_second("sale", 5.0 * capacity, 240, of_tenant("sale"))
        .per_second("quiet", 0.1 * capacity, 8, of_tenant("quiet"))
        .start();
    thread::sleep(WARM_UP);
    let warm = Instant::now();
    thread::sleep(Duration::from_millis(3500));
    let traffic = load.stop();
    let measured = traffic.since(warm);
    let (sale, quiet) = (measured.lane("sale"), measured.lane("quiet"));
    println!("measured: sale: {sale}; quiet: {quiet}; all of it: {traffic}");
    assert!(quiet.success() >= 0.99, "quiet: {quiet}");
    assert!(!sale.with_status(503).is_empty(), "sale: {sale}");
    assert!(
        sale.good().len() as f64 / measured_for(&sale) > 0.6 * capacity,
        "what the others leave is theirs: {sale}"
    );
    assert!(
        sale.len() as f64 / measured_for(&sale) > 3.5 * capacity,
        "the load was not made: {sale}"
    );
}

#[test]
fn who_is_started_into_an_overload_finds_the_limit_too() {
    let _alone = alone();
    let capacity = WORKERS as f64 / SERVICE_TIME.as_secs_f64();
    // A machine that is kept busy by others for half a second at the wrong time answers late whatever the limit is: a start is
    // given two more. One that never finds the limit fails all three.
    let found = (0..3).any(|_| {
        let goodput = goodput_of_a_start(5.0 * capacity);
        println!("measured: {goodput}/s of {capacity}/s");
        goodput >= 0.8 * capacity
    });
    assert!(found, "no start of three had 80 % of {capacity}/s");
}

/// What a gateway answers well, per second, that finds so many requests per second waiting for it when it starts.
fn goodput_of_a_start(per_second: f64) -> f64 {
    let backend = Upstream::start_with(Workers::new(WORKERS, SERVICE_TIME).script());
    let gateway = start(&backend);
    let load = Load::on(gateway.addr())
        .per_second("normal", per_second, 160, get("/normal"))
        .start();
    thread::sleep(WARM_UP);
    let warm = Instant::now();
    thread::sleep(Duration::from_millis(1500));
    let limit = gateway.metric(r#"concurrency_limit{service="s"}"#);
    let traffic = load.stop();
    let measured = traffic.since(warm);
    println!("measured: limit {limit}: {measured}; all: {traffic}");
    measured.good().len() as f64 / measured_for(&measured)
}

#[test]
fn with_little_to_do_nothing_is_shed() {
    let _alone = alone();
    let backend = Upstream::start_with(Workers::new(WORKERS, Duration::from_millis(5)).script());
    let gateway = start(&backend);
    let steady = Load::on(gateway.addr())
        .clients("low", 2, Duration::from_millis(10), get("/low"))
        .run_for(Duration::from_secs(1));
    assert!(steady.bad().is_empty(), "{steady}");
    for round in 0..8 {
        let requests: Vec<Request> = (0..WORKERS).map(get("/low")).collect();
        let answers = burst(gateway.addr(), requests, WORKERS);
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200; WORKERS], "burst {round} out of silence");
    }
    assert_eq!(
        ["high", "normal", "low"].map(|priority| shed_of(&gateway, priority)),
        [0.0; 3]
    );
    gateway.wait_metric(r#"concurrency_in_flight{service="s"}"#, |n| n == 0.0);
}

#[test]
fn a_slow_backend_that_has_room_is_not_taken_for_an_overloaded_one() {
    let _alone = alone();
    let backend = Upstream::start_with(|_| slow(400));
    let gateway = start(&backend);
    let load = Load::on(gateway.addr())
        .clients("low", 24, Duration::ZERO, get("/slow"))
        .start();
    thread::sleep(Duration::from_millis(1500));
    let traffic = load.stop();
    assert!(traffic.bad().is_empty(), "from the start: {traffic}");

    backend.set(|_| slow(20));
    let quick = Load::on(gateway.addr())
        .clients("low", 20, Duration::from_millis(10), get("/slow"))
        .run_for(Duration::from_secs(1));
    backend.set(|_| slow(300));
    let slower = Load::on(gateway.addr())
        .clients("low", 20, Duration::from_millis(10), get("/slow"))
        .run_for(Duration::from_secs(2));
    println!("measured: slow: {traffic}; quick: {quick}; slower: {slower}");
    assert!(quick.bad().is_empty(), "while it was quick: {quick}");
    assert!(slower.bad().is_empty(), "when it became slower: {slower}");
}

#[test]
fn a_service_that_is_slower_for_good_is_not_kept_small_for_ever() {
    let _alone = alone();
    let backend = Upstream::start_with(|_| slow(20));
    let gateway = start(&backend);
    let load = Load::on(gateway.addr())
        .clients("low", 90, Duration::from_millis(60), get("/slow"))
        .start();
    thread::sleep(Duration::from_secs(1));
    backend.set(|_| slow(300));
    // That it is not a queue, and that less at once makes it no quicker, has to be found out.
    thread::sleep(Duration::from_secs(6));
    let settled = Instant::now();
    thread::sleep(Duration::from_millis(1500));
    let limit = gateway.metric(r#"concurrency_limit{service="s"}"#);
    let traffic = load.stop();
    let measured = traffic.since(settled);
    println!("measured: limit {limit}: {measured}; all: {traffic}");
    assert!(measured.bad().is_empty(), "limit {limit}: {measured}");
}

#[test]
fn quick_and_slow_routes_of_one_service_do_not_shed_each_other() {
    let _alone = alone();
    let backend = Upstream::start_with(|request| match request.path() {
        "/slow" => slow(500),
        _ => slow(2),
    });
    let gateway = start(&backend);
    let traffic = Load::on(gateway.addr())
        .clients("quick", 3, Duration::from_millis(5), get("/quick"))
        .clients("slow", 12, Duration::from_millis(5), get("/slow"))
        .run_for(Duration::from_millis(2500));
    println!("measured: {traffic}");
    assert!(traffic.lane("quick").len() > 200, "{traffic}");
    assert!(traffic.bad().is_empty(), "{traffic}");
}

/// A backend that can do WORKERS / SERVICE_TIME = 200 requests a second.
const WORKERS: usize = 8;
const SERVICE_TIME: Duration = Duration::from_millis(40);

/// Until a limit that nobody has set is found.
const WARM_UP: Duration = Duration::from_millis(2500);

/// So many workers that each take a request from the one queue, first come, first served.
struct Workers {
    service_time: Duration,
    state: Mutex<Crew>,
}

struct Crew {
    free: usize,
    waiting: VecDeque<Sender<()>>,
}

impl Workers {
    fn new(workers: usize, service_time: Duration) -> Arc<Self> {
        let (free, waiting) = (workers, VecDeque::new());
        Arc::new(Self {
            service_time,
            state: Mutex::new(Crew { free, waiting }),
        })
    }

    fn script(self: Arc<Self>) -> impl Fn(&Recorded) -> Reply + Send + Sync + 'static {
        move |_| {
            self.work();
            Reply::json(json!({"done": true}))
        }
    }

    fn work(&self) {
        let turn = {
            let mut crew = self.state.lock().unwrap();
            if crew.free > 0 {
                crew.free -= 1;
                None
            } else {
                let (given, turn) = channel();
                crew.waiting.push_back(given);
                Some(turn)
            }
        };
        if let Some(turn) = turn {
            turn.recv().expect("every turn comes");
        }
        thread::sleep(self.service_time);
        let mut crew = self.state.lock().unwrap();
        match crew.waiting.pop_front() {
            Some(next) => next.send(()).expect("who waits, waits"),
            None => crew.free += 1,
        }
    }
}

fn slow(ms: u64) -> Reply {
    Reply::status(200).delay(Duration::from_millis(ms))
}

fn get(target: &'static str) -> impl Fn(usize) -> Request + Send + Sync + 'static {
    move |_| Request::get(target)
}

fn of_tenant(tenant: &str) -> impl Fn(usize) -> Request + Send + Sync + 'static {
    let user = format!("user-of-{tenant}");
    let request = Request::get("/tenant").bearer(&Token::user(&user).tenant(tenant).hs256());
    move |_| request.clone()
}

/// From the first request to the last, in seconds.
fn measured_for(traffic: &Traffic) -> f64 {
    let sent = |one: Option<&Exchange>| one.expect("there was traffic").sent;
    let (first, last) = (traffic.exchanges.first(), traffic.exchanges.last());
    (sent(last) - sent(first)).as_secs_f64()
}

fn shed_of(gateway: &Gateway, priority: &str) -> f64 {
    gateway.metric(&format!(
        "requests_shed_total{{priority=\"{priority}\",service=\"s\"}}"
    ))
}

/// A service with routes of every priority. Those to the workers have less time than it takes to do
/// what all the clients ask for at once: who lets them all wait answers none of them.
fn start(backend: &Upstream) -> Gateway {
    let conf = format!(
        "limits: {{ enabled: false, flood: {{ per_second: 1000000 }} }}
health: {{ enabled: false }}
overload: {{ enabled: true }}
services:
  s: {{ url: '{}' }}
routes:
  - {{ path: /high, service: s, auth: public, timeout: 500ms, priority: high }}
  - {{ path: /low, service: s, auth: public, timeout: 500ms, priority: low }}
  - {{ path: /normal, service: s, auth: public, timeout: 500ms }}
  - {{ path: /tenant, service: s, auth: token, timeout: 1s }}
  - {{ path: /quick, service: s, auth: public, timeout: 2s }}
  - {{ path: /slow, service: s, auth: public, timeout: 2s }}
",
        backend.url()
    );
    Gateway::with(&conf).start()
}
