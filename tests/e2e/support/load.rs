//! Constant load while a test does its worst to the backends: many clients on kept connections, and
//! what became of every request.

use super::client::{Broken, Client, Connection, Request, Response};
use super::lock;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Held by whoever makes load, so that two of them never measure each other.
static MACHINE: Mutex<()> = Mutex::new(());

/// Waits until no other test makes load, and keeps the others from it until this is dropped.
pub fn alone() -> MutexGuard<'static, ()> {
    lock(&MACHINE)
}

/// Load about to be made.
pub struct Load {
    addr: SocketAddr,
    lanes: Vec<Lane>,
}

type Maker = Arc<dyn Fn(usize) -> Request + Send + Sync>;

/// Requests of one kind.
struct Lane {
    name: &'static str,
    clients: usize,
    pace: Pace,
    request: Maker,
}

#[derive(Clone, Copy)]
enum Pace {
    /// The pause between an answer and the next request.
    Closed(Duration),
    /// The time between two requests of one client, whenever the answer comes.
    Open(Duration),
}

impl Load {
    pub fn on(addr: SocketAddr) -> Self {
        let lanes = Vec::new();
        Self { addr, lanes }
    }

    /// So many clients that each ask again a `pause` after their answer. `request` is told the
    /// number of the request within the lane.
    pub fn clients(
        self,
        lane: &'static str,
        clients: usize,
        pause: Duration,
        request: impl Fn(usize) -> Request + Send + Sync + 'static,
    ) -> Self {
        self.lane(lane, clients, Pace::Closed(pause), request)
    }

    /// So many requests a second by the clock and not by the answers, as long as one of so many
    /// clients has none to wait for; what they are late they catch up with.
    pub fn per_second(
        self,
        lane: &'static str,
        rate: f64,
        clients: usize,
        request: impl Fn(usize) -> Request + Send + Sync + 'static,
    ) -> Self {
        let each = Duration::from_secs_f64(clients as f64 / rate);
        self.lane(lane, clients, Pace::Open(each), request)
    }

    /// Starts it: it goes on until [`Running::stop`].
    pub fn start(self) -> Running {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for lane in self.lanes {
            let number = Arc::new(AtomicUsize::new(0));
            for client in 0..lane.clients {
                let mut client = LoadClient {
                    addr: self.addr,
                    lane: lane.name,
                    pace: lane.pace,
                    // Spread over the time between two requests of one client.
                    phase: client as f64 / lane.clients as f64,
                    request: Arc::clone(&lane.request),
                    number: Arc::clone(&number),
                    shared: Arc::clone(&shared),
                    connection: None,
                };
                threads.push(thread::spawn(move || client.run()));
            }
        }
        Running { shared, threads }
    }

    /// The load of this long a time.
    pub fn run_for(self, time: Duration) -> Traffic {
        let running = self.start();
        thread::sleep(time);
        running.stop()
    }

    fn lane(
        mut self,
        name: &'static str,
        clients: usize,
        pace: Pace,
        request: impl Fn(usize) -> Request + Send + Sync + 'static,
    ) -> Self {
        self.lanes.push(Lane {
            name,
            clients,
            pace,
            request: Arc::new(request),
        });
        self
    }
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    answered: AtomicUsize,
}

struct LoadClient {
    addr: SocketAddr,
    lane: &'static str,
    pace: Pace,
    phase: f64,
    request: Maker,
    number: Arc<AtomicUsize>,
    shared: Arc<Shared>,
    connection: Option<Connection>,
}

impl LoadClient {
    fn run(&mut self) -> Vec<Exchange> {
        let (Pace::Closed(step) | Pace::Open(step)) = self.pace;
        let mut due = Instant::now() + step.mul_f64(self.phase);
        let mut exchanges = Vec::new();
        loop {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.shared.stopping.load(Relaxed) {
                return exchanges;
            }
            exchanges.push(self.exchange());
            self.shared.answered.fetch_add(1, Relaxed);
            due = match self.pace {
                Pace::Closed(pause) => Instant::now() + pause,
                Pace::Open(every) => due + every,
            };
        }
    }

    fn exchange(&mut self) -> Exchange {
        let number = self.number.fetch_add(1, Relaxed);
        let request = (self.request)(number);
        let connection = self.connection.take();
        let mut connection = connection.unwrap_or_else(|| Client::to(self.addr).connect());
        let sent = Instant::now();
        connection.send(&request.bytes());
        let answer = connection.try_read_response();
        let took = sent.elapsed();
        let kept = answer.as_ref().is_ok_and(stays_open);
        self.connection = kept.then_some(connection);
        Exchange {
            lane: self.lane,
            number,
            sent,
            took,
            kept,
            retry_after: answer.as_ref().is_ok_and(has_retry_after),
            end: answer.map(|answer| answer.status).map_err(broken),
        }
    }
}

fn stays_open(answer: &Response) -> bool {
    answer.header("connection") != Some("close")
}

fn has_retry_after(answer: &Response) -> bool {
    let seconds = answer.header("retry-after").map(str::parse::<u32>);
    matches!(seconds, Some(Ok(1..)))
}

fn broken(why: Broken) -> String {
    why.to_string()
}

/// Load that is being made. Stopped when dropped.
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Exchange>>>,
}

impl Running {
    /// How many requests have ended by now.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Relaxed)
    }

    /// Stops it, and waits for the last answers.
    #[track_caller]
    pub fn stop(mut self) -> Traffic {
        self.shared.stopping.store(true, Relaxed);
        let mut exchanges = Vec::new();
        for thread in self.threads.drain(..) {
            exchanges.extend(thread.join().expect("no client of the load panicked"));
        }
        exchanges.sort_by_key(|exchange| exchange.sent);
        Traffic { exchanges }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
    }
}

/// A request, and what became of it.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub lane: &'static str,
    /// Within its lane, as the maker of the request was told.
    pub number: usize,
    pub sent: Instant,
    /// Until the last byte of the answer.
    pub took: Duration,
    /// The status, or how the answer broke.
    pub end: Result<u16, String>,
    /// Whether the answer leaves the connection open.
    pub kept: bool,
    /// Whether it has a Retry-After of whole seconds, at least one.
    pub retry_after: bool,
}

impl Exchange {
    pub fn is_ok(&self) -> bool {
        matches!(self.end, Ok(200..=299))
    }

    /// When the last byte of the answer was there.
    pub fn ended(&self) -> Instant {
        self.sent + self.took
    }
}

/// What became of the requests, in the order in which they were sent.
#[derive(Clone)]
pub struct Traffic {
    pub exchanges: Vec<Exchange>,
}

impl Traffic {
    /// The part that these exchanges are.
    pub fn only(&self, wanted: impl Fn(&Exchange) -> bool) -> Self {
        let wanted = self.exchanges.iter().filter(|exchange| wanted(exchange));
        Self {
            exchanges: wanted.cloned().collect(),
        }
    }

    pub fn lane(&self, lane: &str) -> Self {
        self.only(|exchange| exchange.lane == lane)
    }

    /// What was sent at this moment or later.
    pub fn since(&self, moment: Instant) -> Self {
        self.only(|exchange| exchange.sent >= moment)
    }

    pub fn with_status(&self, status: u16) -> Self {
        self.only(|exchange| exchange.end == Ok(status))
    }

    pub fn good(&self) -> Self {
        self.only(Exchange::is_ok)
    }

    /// All but [`Traffic::good`].
    pub fn bad(&self) -> Self {
        self.only(|exchange| !exchange.is_ok())
    }

    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// The share of the good ones; of none at all: 0.
    pub fn success(&self) -> f64 {
        self.good().len() as f64 / self.len().max(1) as f64
    }

    #[track_caller]
    pub fn median(&self) -> Duration {
        self.percentile(50.0)
    }

    /// So many percent took this long or less.
    #[track_caller]
    pub fn percentile(&self, percent: f64) -> Duration {
        let mut times: Vec<_> = self.exchanges.iter().map(|one| one.took).collect();
        times.sort();
        let rank = (times.len() as f64 * percent / 100.0).ceil() as usize;
        let at = rank.clamp(1, times.len().max(1)) - 1;
        *times.get(at).expect("there was traffic")
    }
}

impl fmt::Display for Traffic {
    /// How many ended how, and how long they took.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ends: BTreeMap<(&str, String), usize> = BTreeMap::new();
        for exchange in &self.exchanges {
            let end = match &exchange.end {
                Ok(status) => status.to_string(),
                Err(why) => why.clone(),
            };
            *ends.entry((exchange.lane, end)).or_default() += 1;
        }
        write!(out, "{} requests", self.len())?;
        for ((lane, end), count) in &ends {
            write!(out, ", {lane} {end}: {count}")?;
        }
        if !self.is_empty() {
            let (half, most, all) = (self.median(), self.percentile(99.0), self.percentile(100.0));
            write!(out, "; median {half:?}, p99 {most:?}, longest {all:?}")?;
        }
        Ok(())
    }
}
