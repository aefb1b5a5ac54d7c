//! Which instances may be chosen: those that pass their checks and were not ejected; or, when too few are left, all of
//! them. Every change makes a new [`View`], so that a request only reads.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora_load_balancing::Backend;
use sha2::{Digest, Sha256};

use super::balance::{Balance, Ring, Turns};
use super::latency::Latency;
use super::names::Instance;
use super::outlier::{Outlier, Reason};
use crate::forward::window::Window;
use crate::observe::registry::ServiceMetrics;

/// One address of a service.
pub struct Member {
    pub address: Address,
    /// It stands on the ring with this: its address, or what stands in for a Unix-domain socket's, of which the ring
    /// knows nothing.
    pub ring_key: SocketAddr,
    /// For the log.
    pub text: Arc<str>,
    pub instance: Arc<Instance>,
    pub in_flight: AtomicU32,
    /// Of those, the ones whose answer has not begun.
    pub unanswered: AtomicU32,
    pub latency: Latency,
    /// [`ANSWERED`], [`FAILED`], [`TIME`] and [`UNTIMED`] of the last seconds.
    pub recent: Window<KINDS>,
    /// Failures since the last good answer.
    pub failures_in_a_row: AtomicU32,
    pub(super) standing: Mutex<Standing>,
}

/// What [`Member::recent`] counts: good answers, failures, the times of the good answers as [`octaves`], and the good answers
/// whose times say nothing.
pub const ANSWERED: usize = 0;
pub const FAILED: usize = 1;
pub const TIME: usize = 2;
pub const UNTIMED: usize = 3;
pub const KINDS: usize = 4;

/// A time as 64ths of octaves of microseconds. Their mean is a geometric one: a single answer that takes a thousand times
/// as long is no reason to call an instance slow.
pub fn octaves(time: Duration) -> u32 {
    (time.as_micros() as f32).max(1.0).log2().mul_add(64.0, 0.5) as u32
}

/// Whether it may be chosen. Read when a view is made, not by requests.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub passes_checks: bool,
    pub ejected_until: Option<Instant>,
    /// How long it was ejected the last time.
    pub last_ejection: Duration,
    returned: Option<Instant>,
}

/// The instances as requests see them.
pub struct View {
    /// Those that may be chosen.
    pub open: Vec<Candidate>,
    pub turns: Turns,
    pub ring: Ring,
    pub census: Census,
    /// Until an ejection or a slow start ends.
    valid_until: Option<Instant>,
}

pub struct Candidate {
    pub member: Arc<Member>,
    /// Its weight, as a share of the average.
    pub weight: f32,
    /// It came back then, and gets its whole share only after a while.
    pub returned: Option<Instant>,
}

/// How many instances there are, and how they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub instances: usize,
    pub healthy: usize,
    pub ejected: usize,
    pub panic: bool,
}

/// A service's instances.
pub struct Members {
    service: Box<str>,
    balance: Balance,
    outlier: Outlier,
    pub(super) all: Mutex<Vec<Arc<Member>>>,
    view: ArcSwap<View>,
    metrics: Arc<ServiceMetrics>,
    /// Others speak for the service now: what still happens here is not shown.
    retired: AtomicBool,
}

/// Over which [`Member::recent`] counts.
const RECENT: Duration = Duration::from_secs(10);

impl Members {
    /// `before`: whose place these take. Instances that stay keep what is known of them.
    pub fn new(
        service: &str,
        balance: Balance,
        outlier: Outlier,
        metrics: Arc<ServiceMetrics>,
        before: Option<&Self>,
    ) -> Self {
        Self {
            service: service.into(),
            view: ArcSwap::from_pointee(View {
                open: Vec::new(),
                turns: Turns::new(&[]),
                ring: None,
                census: Census::default(),
                valid_until: None,
            }),
            balance,
            outlier,
            all: Mutex::new(before.map_or_else(Vec::new, |before| before.all.lock().clone())),
            metrics,
            retired: AtomicBool::new(false),
        }
    }

    /// Until the names are resolved: of those who were there, the ones that are still configured.
    pub fn begin(&self, instances: &[Arc<Instance>]) {
        let all = self.all.lock();
        let is_configured =
            |m: &&Arc<Member>| instances.iter().any(|i| Arc::ptr_eq(i, &m.instance));
        let stay: Vec<Arc<Member>> = all.iter().filter(is_configured).cloned().collect();
        self.publish(&stay, self.balance.ring(&stay), Instant::now());
    }

    /// `is_removed`: nobody takes their place.
    pub fn retire(&self, is_removed: bool) {
        let _all = self.all.lock();
        self.retired.store(true, Relaxed);
        if is_removed {
            self.metrics.observe_census(&Census::default());
        }
    }

    /// Takes over what all checks so far come to.
    pub fn agree_with(&self, passes: impl Fn(&Address) -> bool) {
        let now = Instant::now();
        let all = self.all.lock();
        for member in all.iter() {
            member.standing.lock().checked(passes(&member.address), now);
        }
        self.publish(&all, self.ring(), now);
    }

    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    pub fn outlier(&self) -> &Outlier {
        &self.outlier
    }

    pub fn view(&self, now: Instant) -> arc_swap::Guard<Arc<View>> {
        let view = self.view.load();
        if view.is_valid(now) {
            return view;
        }
        drop(view);
        self.look_again(now);
        self.view.load()
    }

    pub fn census(&self) -> Census {
        self.view(Instant::now()).census
    }

    /// Takes over what discovery found. Who was there already stays as it is.
    pub fn replace(&self, found: &BTreeSet<Backend>, now: Instant) {
        let mut all = self.all.lock();
        let first_time = all.is_empty();
        let before = std::mem::take(&mut *all);
        for backend in found {
            let Some(instance) = backend.ext.get::<Arc<Instance>>() else {
                continue;
            };
            let address = &backend.addr;
            let here: Vec<&Arc<Member>> = before.iter().filter(|m| m.address == *address).collect();
            let known = here.iter().find(|m| Arc::ptr_eq(&m.instance, instance));
            all.push(known.map_or_else(
                || {
                    let returned = (!first_time).then_some(now);
                    let member = Member::new(address.clone(), instance.clone(), returned, now);
                    // Another weight, say, does not make it well.
                    if let Some(before) = here.first() {
                        *member.standing.lock() = *before.standing.lock();
                    }
                    Arc::new(member)
                },
                |known| Arc::clone(known),
            ));
        }
        self.publish(&all, self.balance.ring(&all), now);
    }

    /// What an active check found.
    pub fn set_health(&self, address: &Address, passes_checks: bool) {
        let now = Instant::now();
        let all = self.all.lock();
        if let Some(member) = all.iter().find(|member| member.address == *address) {
            member.standing.lock().checked(passes_checks, now);
        }
        self.publish(&all, self.ring(), now);
    }

    /// Standings have changed.
    pub fn stand_anew(&self, now: Instant) {
        let all = self.all.lock();
        self.publish(&all, self.ring(), now);
    }

    /// Sets an instance aside for a while, unless half of the pool is away already.
    pub fn eject(&self, member: &Arc<Member>, reason: &Reason, now: Instant) {
        let all = self.all.lock();
        let away = all.iter().filter(|m| !m.is_available(now)).count();
        if !member.is_available(now) || (away + 1) * 2 > all.len() {
            return;
        }
        let length = {
            let mut standing = member.standing.lock();
            let length = self.outlier.next_ejection(
                standing.last_ejection,
                standing.returned.map(|returned| now - returned),
            );
            standing.ejected_until = Some(now + length);
            standing.last_ejection = length;
            length
        };
        log::warn!(
            "service {}: instance {} is ejected for {length:?}: {reason}",
            self.service,
            member.text
        );
        self.metrics.ejections.inc();
        self.publish(&all, self.ring(), now);
    }

    /// Compares the instances with each other.
    pub fn judge(&self, now: Instant) {
        let members: Vec<Arc<Member>> = self
            .view(now)
            .open
            .iter()
            .map(|candidate| candidate.member.clone())
            .collect();
        for (member, reason) in self.outlier.judge(&members, now) {
            self.eject(member, &reason, now);
        }
    }

    /// Takes back whose time is over.
    fn look_again(&self, now: Instant) {
        let all = self.all.lock();
        if self.view.load().is_valid(now) {
            return; // another thread was first
        }
        for member in all.iter() {
            let mut standing = member.standing.lock();
            if standing.ejected_until.is_some_and(|until| until <= now) {
                standing.ejected_until = None;
                standing.returned = Some(now);
                // One more failure, and it is out again.
                let probation = self.outlier.consecutive.saturating_sub(1);
                member.failures_in_a_row.store(probation, Relaxed);
                member.recent.clear();
                member.latency.forget();
                log::info!(
                    "service {}: instance {} is taken back",
                    self.service,
                    member.text
                );
            }
        }
        self.publish(&all, self.ring(), now);
    }

    fn ring(&self) -> Ring {
        self.view.load().ring.clone()
    }

    /// Called with `all` locked, so that views follow each other.
    fn publish(&self, all: &[Arc<Member>], ring: Ring, now: Instant) {
        let standings: Vec<Standing> = all.iter().map(|m| *m.standing.lock()).collect();
        let with = |wanted: fn(&Standing) -> bool| standings.iter().filter(|s| wanted(s)).count();
        let available = with(|s| s.passes_checks && s.ejected_until.is_none());
        let panic = !all.is_empty() && self.outlier.panics(available, all.len());
        let census = Census {
            instances: all.len(),
            healthy: with(|s| s.passes_checks),
            ejected: with(|s| s.ejected_until.is_some()),
            panic,
        };
        let chosen: Vec<(&Arc<Member>, &Standing)> = all
            .iter()
            .zip(&standings)
            .filter(|(_, s)| panic || (s.passes_checks && s.ejected_until.is_none()))
            .collect();
        let weights: Vec<usize> = chosen.iter().map(|(m, _)| m.instance.weight).collect();
        let average = weights.iter().sum::<usize>() as f32 / weights.len().max(1) as f32;
        let slow_start = self.balance.slow_start;
        let open: Vec<Candidate> = chosen
            .into_iter()
            .map(|(member, standing)| Candidate {
                member: member.clone(),
                weight: member.instance.weight as f32 / average,
                returned: standing
                    .returned
                    .filter(|returned| !panic && now < *returned + slow_start),
            })
            .collect();
        let valid_until = standings
            .iter()
            .filter_map(|s| s.ejected_until)
            .chain(open.iter().filter_map(|c| Some(c.returned? + slow_start)))
            .min();
        let was = self.view.load().census;
        if !self.retired.load(Relaxed) {
            self.tell(was, census, available);
        }
        let view = View {
            turns: Turns::new(&weights),
            ring,
            open,
            census,
            valid_until,
        };
        self.view.store(Arc::new(view));
    }

    fn tell(&self, was: Census, is: Census, available: usize) {
        let Self { service, .. } = self;
        match (was.panic, is.panic) {
            (false, true) => log::warn!(
                "service {service}: panic: {available} of {} instances are available, all of them are tried",
                is.instances
            ),
            (true, false) => log::info!("service {service}: panic is over"),
            _ => {}
        }
        self.metrics.observe_census(&is);
    }
}

// === impl Standing ===

impl Standing {
    fn checked(&mut self, passes_checks: bool, now: Instant) {
        if passes_checks && !self.passes_checks {
            self.returned = Some(now);
        }
        self.passes_checks = passes_checks;
    }
}

/// The same in every process that has the same configuration.
fn ring_key(address: &Address) -> SocketAddr {
    match address {
        Address::Inet(address) => *address,
        Address::Unix(_) => {
            let digest = Sha256::digest(text_of(address));
            let mut octets = [0; 16];
            octets.copy_from_slice(&digest[..16]);
            // Among the addresses that are nobody's but a site's own (RFC 4193).
            octets[0] = 0xfd;
            SocketAddr::from((octets, 0))
        }
    }
}

/// As the log, the metrics and the configuration name an address.
pub fn text_of(address: &Address) -> String {
    match address {
        Address::Inet(address) => address.to_string(),
        Address::Unix(_) => format!("unix:{address}"),
    }
}

// === impl View ===

impl View {
    fn is_valid(&self, now: Instant) -> bool {
        self.valid_until.is_none_or(|until| now < until)
    }
}

// === impl Member ===

impl Member {
    pub fn new(
        address: Address,
        instance: Arc<Instance>,
        returned: Option<Instant>,
        now: Instant,
    ) -> Self {
        Self {
            text: text_of(&address).into(),
            ring_key: ring_key(&address),
            address,
            instance,
            in_flight: AtomicU32::new(0),
            unanswered: AtomicU32::new(0),
            latency: Latency::default(),
            recent: Window::new(RECENT, now),
            failures_in_a_row: AtomicU32::new(0),
            standing: Mutex::new(Standing {
                passes_checks: true,
                ejected_until: None,
                last_ejection: Duration::ZERO,
                returned,
            }),
        }
    }

    /// Whether a request that was sent at `then` met it in the life that it lives now.
    pub fn is_back_since(&self, then: Instant) -> bool {
        self.standing
            .lock()
            .returned
            .is_none_or(|back| back <= then)
    }

    fn is_available(&self, now: Instant) -> bool {
        let standing = self.standing.lock();
        standing.passes_checks && standing.ejected_until.is_none_or(|until| until <= now)
    }
}
