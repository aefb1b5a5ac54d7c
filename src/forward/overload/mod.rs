//! How much at once? Each service has as many requests in flight as it answers without slowing down, found by
//! measuring; what is more waits a moment or is refused at once, the least important first, and no tenant can take the
//! room of the others.
//!
//! Why not a number in the configuration? The right one changes with every release of the service. And why here,
//! before the service? What waits in its own queue is served in the order of arrival, and long after its client has
//! gone.

mod gradient;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::observe::registry::ServiceMetrics;
pub use gradient::Baseline;
use gradient::Gradient;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OverloadConfig {
    pub enabled: bool,
}

/// How much a route matters, when not everything can be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Checkout, and webhooks.
    High,
    /// Scanning at the door.
    #[default]
    Normal,
    /// Browsing.
    Low,
}

/// One service's limit.
pub struct Limiter {
    enabled: bool,
    in_flight: AtomicU32,
    /// Written by `gradient`.
    limit: AtomicU32,
    gradient: Gradient,
    waiting: AtomicU32,
    queues: Mutex<Queues>,
    /// What each has in flight, or waiting for it.
    tenants: Box<[AtomicU32; TENANTS]>,
    /// How many of `tenants` have something.
    active: AtomicU32,
    metrics: Arc<ServiceMetrics>,
}

/// A tenant's place among the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant(usize);

/// The right to have a request in flight, until it is dropped.
pub struct Slot {
    share: Share,
}

/// One that a tenant has in flight, or waiting.
struct Share {
    limiter: Arc<Limiter>,
    tenant: Tenant,
}

/// There is no room for the request.
#[derive(Debug, PartialEq, Eq)]
pub struct Shed;

/// Tenants are counted by a hash of their names: two that share a place share their room.
const TENANTS: usize = 512;

/// Nobody waits for longer than this: who is not served by then had better try again.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The order in which those who wait are served, best first:
/// 0: the tenant has less than a quarter of its fair share in flight, whatever the request is;
/// then by priority, and within it those first whose tenant is below its fair share.
type Rank = usize;
const RANKS: usize = 7;

/// A low priority from a tenant that has its share does not wait.
const LAST_TO_WAIT: Rank = RANKS - 2;

type Queues = [VecDeque<Waiting>; RANKS];

struct Waiting {
    share: Share,
    turn: oneshot::Sender<Slot>,
}

/// So many may always wait, however low the limit is.
const LEAST_QUEUE: u32 = 16;

impl Default for OverloadConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl OverloadConfig {
    pub fn compile(self, metrics: Arc<ServiceMetrics>) -> Limiter {
        let Self { enabled } = self;
        metrics.concurrency_limit.set(i64::from(gradient::INITIAL));
        Limiter {
            enabled,
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(gradient::INITIAL),
            gradient: Gradient::new(Instant::now()),
            waiting: AtomicU32::new(0),
            queues: Mutex::default(),
            tenants: Box::new([const { AtomicU32::new(0) }; TENANTS]),
            active: AtomicU32::new(0),
            metrics,
        }
    }
}

// === impl Limiter ===

impl Limiter {
    /// Room for one request, if there is some now.
    pub fn enter(self: &Arc<Self>, tenant: Tenant) -> Option<Slot> {
        if !self.enabled {
            return Some(self.enter_anyway(tenant));
        }
        let free = self.waiting.load(SeqCst) == 0 && self.take();
        free.then(|| Share::new(self, tenant).into())
    }

    /// Room for one that is bounded elsewhere: a breaker's probe, or a request that was let in before.
    pub fn enter_anyway(self: &Arc<Self>, tenant: Tenant) -> Slot {
        self.in_flight.fetch_add(1, SeqCst);
        Share::new(self, tenant).into()
    }

    /// Waits for room, at most for as long as `patience`.
    ///
    /// # Errors
    /// When there will be none, or others go first.
    pub async fn wait(
        self: &Arc<Self>,
        priority: Priority,
        tenant: Tenant,
        patience: Duration,
    ) -> Result<Slot, Shed> {
        let Some(mut turn) = self.queue_up(self.rank(priority, tenant), tenant) else {
            return Err(self.shed(priority));
        };
        // Who is pushed out of the queue hears of it by the channel's end.
        let slot = match tokio::time::timeout(patience.min(LONGEST_WAIT), &mut turn).await {
            Ok(slot) => slot.ok(),
            Err(_) => {
                turn.close();
                turn.try_recv().ok()
            }
        };
        slot.ok_or_else(|| self.shed(priority))
    }

    /// An answer came after `took`, where that says something of the service, on a route with this `baseline`.
    pub fn observe(self: &Arc<Self>, baseline: &Baseline, took: Option<Duration>, now: Instant) {
        if !self.enabled {
            return;
        }
        let in_flight = self.in_flight.load(Relaxed);
        let limit = self.limit.load(Relaxed);
        if let Some(limit) = self.gradient.observe(baseline, took, in_flight, limit, now) {
            self.limit.store(limit, SeqCst);
            self.metrics.concurrency_limit.set(i64::from(limit));
            self.serve_who_waits();
        }
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    fn take(&self) -> bool {
        if self.in_flight.fetch_add(1, SeqCst) < self.limit.load(SeqCst) {
            return true;
        }
        self.in_flight.fetch_sub(1, SeqCst);
        false
    }

    fn rank(&self, priority: Priority, tenant: Tenant) -> Rank {
        let share = self.limit.load(Relaxed) / self.active.load(Relaxed).max(1);
        match self.tenants[tenant.0].load(Relaxed) {
            few if few * 4 < share => 0,
            some => 1 + 2 * priority as usize + usize::from(some >= share),
        }
    }

    /// The place where the slot will arrive; `None` when the request cannot wait.
    fn queue_up(self: &Arc<Self>, rank: Rank, tenant: Tenant) -> Option<oneshot::Receiver<Slot>> {
        let (turn, receiver) = oneshot::channel();
        let share = Share::new(self, tenant);
        let mut queues = self.queues.lock();
        // Counted before the last look at what is free: who leaves after that look will look here.
        self.waiting.fetch_add(1, SeqCst);
        queues[rank].push_back(Waiting { share, turn });
        let refused = self.serve(&mut queues);
        let too_many = self.waiting.load(SeqCst) > self.limit.load(Relaxed).max(LEAST_QUEUE);
        let mut may_wait = true;
        if too_many || rank > LAST_TO_WAIT {
            // The last of the worst goes: it may be this one.
            let worst = if too_many { RANKS - 1 } else { rank };
            let last = (rank..=worst)
                .rev()
                .find_map(|rank| Some((rank, queues[rank].pop_back()?)));
            if let Some((of, _)) = last {
                self.waiting.fetch_sub(1, SeqCst);
                may_wait = of != rank;
            }
        }
        drop(queues);
        drop(refused);
        (may_wait || !receiver.is_empty()).then_some(receiver)
    }

    fn serve_who_waits(self: &Arc<Self>) {
        if self.waiting.load(SeqCst) > 0 {
            let refused = self.serve(&mut self.queues.lock());
            drop(refused);
        }
    }

    /// Gives what is free to those who wait. Returns the slots of those who gave up at that very moment: to drop one asks
    /// for the queues again, which the caller must have let go of by then.
    fn serve(&self, queues: &mut Queues) -> Vec<Slot> {
        let mut refused = Vec::new();
        while self.waiting.load(SeqCst) > 0 && self.take() {
            let Some(Waiting { share, turn }) = queues.iter_mut().find_map(VecDeque::pop_front)
            else {
                self.in_flight.fetch_sub(1, SeqCst);
                break;
            };
            self.waiting.fetch_sub(1, SeqCst);
            if turn.is_closed() {
                self.in_flight.fetch_sub(1, SeqCst);
            } else if let Err(slot) = turn.send(share.into()) {
                refused.push(slot);
            }
        }
        refused
    }

    fn shed(&self, priority: Priority) -> Shed {
        self.metrics.shed[priority as usize].inc();
        Shed
    }
}

// === impl Share ===

impl Share {
    fn new(limiter: &Arc<Limiter>, tenant: Tenant) -> Self {
        if limiter.tenants[tenant.0].fetch_add(1, Relaxed) == 0 {
            limiter.active.fetch_add(1, Relaxed);
        }
        Self {
            limiter: limiter.clone(),
            tenant,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let limiter = &self.limiter;
        if limiter.tenants[self.tenant.0].fetch_sub(1, Relaxed) == 1 {
            limiter.active.fetch_sub(1, Relaxed);
        }
    }
}

// === impl Slot ===

/// For what is counted in flight already.
impl From<Share> for Slot {
    fn from(share: Share) -> Self {
        Self { share }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.share.limiter.in_flight.fetch_sub(1, SeqCst);
        self.share.limiter.serve_who_waits();
    }
}

// === impl Tenant ===

impl Tenant {
    /// Nobody in particular is a tenant too, of no name.
    pub fn named(name: &[u8]) -> Self {
        static SEED: OnceCell<ahash::RandomState> = OnceCell::new();
        let hash = SEED.get_or_init(ahash::RandomState::new).hash_one(name);
        Self(hash as usize % TENANTS)
    }
}
