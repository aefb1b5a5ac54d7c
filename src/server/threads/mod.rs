//! The threads that serve: an event loop each, as nginx's workers have. A connection stays on the thread that it was given
//! to, with its requests and with what they use at a backend and at Redis: nothing that is waited for wakes another thread,
//! and what one thread reads again and again is in its own processor's cache (docs/decisions/0027-a-loop-a-thread.md).

mod aside;
mod pulse;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::future::{Future, pending};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use once_cell::sync::OnceCell;
use pingora_timeout::{ToTimeout, fast_timeout::FastTimeout};
use prometheus::IntGauge;
use tokio::runtime::{Builder, Handle};

use crate::observe::registry::{LoopMetrics, OfLoop};
pub use aside::{LARGE, aside};
pub use pulse::{held_up, is_of_the_loop};

/// Cheap to clone.
#[derive(Clone)]
pub struct Threads(Arc<Shared>);

struct Shared {
    /// One for each loop.
    metrics: Box<[OfLoop]>,
    running: OnceCell<Box<[Loop]>>,
    /// Where the next connection is looked for a place first.
    next: AtomicUsize,
}

struct Loop {
    handle: Handle,
    connections: IntGauge,
}

/// After so many tasks it is looked whether something came from the network, though there are more: tokio's own 61 of them may be
/// TLS handshakes, which take a millisecond each.
const LOOK_EVERY: u32 = 16;

/// Threads of each loop's runtime, for the names that libraries look up: Redis' and an issuer's.
const MOST_LOOKING_UP: usize = 4;

/// A thread of a runtime that has nothing to do stays: where the system has none left, tokio panics unless one lives. (A
/// hundred years: an instant so far away exists.)
pub const FOR_GOOD: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A connection's place on a thread.
struct Seat {
    shared: Arc<Shared>,
    place: usize,
}

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

/// To be called when a runtime begins that keeps its threads [`FOR_GOOD`]: from then on there is one that looks names up.
#[expect(
    clippy::disallowed_methods,
    reason = "the one thread that the others can do without"
)]
pub fn keep_one(runtime: &Handle) {
    drop(runtime.spawn_blocking(|| ()));
}

/// The number of this thread: 1 and up among those that serve, 0 for all others.
pub fn place() -> usize {
    PLACE.get()
}

// === impl Threads ===

impl Threads {
    /// None of them runs yet.
    pub fn new(count: usize, metrics: &LoopMetrics) -> Self {
        Self(Arc::new(Shared {
            metrics: (1..=count.max(1))
                .map(|number| metrics.of(number))
                .collect(),
            running: OnceCell::new(),
            next: AtomicUsize::new(0),
        }))
    }

    /// Starts those that do not run yet, and those that they need. They end with the process.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(&self) -> io::Result<()> {
        // Pingora's timers: their thread comes with the first of them, and must.
        drop(FastTimeout::create(Duration::from_secs(1)).timeout());
        aside::begin()?;
        self.0.loops().map(drop)
    }

    /// Serves a connection on the thread that has the fewest.
    ///
    /// # Errors
    /// As [`Threads::start`].
    pub fn serve(&self, connection: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let loops = self.0.loops()?;
        let first = self.0.next.fetch_add(1, Relaxed);
        let (place, chosen) = (0..loops.len())
            .map(|step| (first.wrapping_add(step)) % loops.len())
            .map(|place| (place, &loops[place]))
            .min_by_key(|(_, thread)| thread.connections.get())
            .expect("there is at least one");
        chosen.connections.inc();
        let seat = Seat {
            shared: self.0.clone(),
            place,
        };
        chosen.handle.spawn(async move {
            connection.await;
            drop(seat);
        });
        Ok(())
    }

    /// Where the thread of this number (from 0; there is no last one) runs its tasks.
    ///
    /// # Errors
    /// As [`Threads::start`].
    pub fn handle(&self, number: usize) -> io::Result<&Handle> {
        let loops = self.0.loops()?;
        Ok(&loops[number % loops.len()].handle)
    }

    /// How many tasks are alive on all of them.
    pub fn tasks(&self) -> usize {
        let loops = self.0.running.get();
        let handles = loops.into_iter().flatten().map(|thread| &thread.handle);
        handles
            .map(|handle| handle.metrics().num_alive_tasks())
            .sum()
    }
}

// === impl Shared ===

impl Shared {
    fn loops(&self) -> io::Result<&[Loop]> {
        let loops = self.running.get_or_try_init(|| {
            let loops = (1..).zip(&self.metrics);
            let started = loops.map(|(number, metrics)| Loop::start(number, metrics));
            started.collect::<io::Result<_>>()
        });
        loops.map(|loops| &**loops)
    }
}

// === impl Loop ===

impl Loop {
    fn start(number: usize, metrics: &OfLoop) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(LOOK_EVERY)
            .max_blocking_threads(MOST_LOOKING_UP)
            .thread_keep_alive(FOR_GOOD)
            .build()?;
        let handle = runtime.handle().clone();
        keep_one(&handle);
        let lag = metrics.lag.clone();
        std::thread::Builder::new()
            .name("front".into())
            .spawn(move || {
                PLACE.set(number);
                // In the queue like all others: what they wait for there is what it measures.
                runtime.spawn(pulse::beat(lag));
                runtime.block_on(pending::<()>());
            })?;
        Ok(Self {
            handle,
            connections: metrics.connections.clone(),
        })
    }
}

// === impl Seat ===

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(loops) = self.shared.running.get() {
            loops[self.place].connections.dec();
        }
    }
}
