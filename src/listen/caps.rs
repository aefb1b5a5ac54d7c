//! How many connections are open: in all, and of one client's address.
//!
//! A connection counts from the moment when it is accepted, so that what is in its handshake is bounded as well. One too
//! many is reset before anything is read of it: it costs neither a task nor a descriptor, and leaves nothing behind in
//! the kernel.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::observe::access_log::Logger;
use crate::observe::seldom::Seldom;
use crate::policies::InForce;

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Max = 0,
    PerAddress = 1,
    /// Its PROXY header is missing, malformed, late, or from somebody who is not trusted.
    ProxyHeader = 2,
    /// Its TLS handshake failed.
    Tls = 3,
    /// The system has no room for it: descriptors, or memory.
    Resources = 4,
}

const REASONS: [&str; 5] = ["max", "per_address", "proxy_header", "tls", "resources"];

/// Counts what is open.
pub struct Caps {
    open: IntGauge,
    max: i64,
    per_address: Option<Addresses>,
    /// Connections of the proxies that are trusted carry many clients.
    in_force: InForce,
    pub refusals: Refusals,
}

/// A connection that is counted, for as long as this lives.
pub struct Visit {
    caps: Arc<Caps>,
    address: Option<Key>,
}

/// Open connections by address. Never more entries than connections.
struct Addresses {
    max: u32,
    hasher: ahash::RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = std::collections::HashMap<Key, u32, ahash::RandomState>;

const SHARDS: usize = 32;

/// Whom a client's address stands for: with IPv6 a customer has a whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    V4(u32),
    V6(u64),
}

/// Counts refused connections, and says so once a second at most for each reason.
pub struct Refusals {
    counters: [IntCounter; REASONS.len()],
    logged: [Seldom; REASONS.len()],
    logger: Arc<Logger>,
}

// === impl Caps ===

impl Caps {
    /// `per_address`: 0 is no limit.
    pub fn new(
        open: IntGauge,
        max: u32,
        per_address: u32,
        in_force: InForce,
        refusals: Refusals,
    ) -> Self {
        Self {
            open,
            max: i64::from(max),
            per_address: (per_address > 0).then(|| Addresses::new(per_address)),
            in_force,
            refusals,
        }
    }

    /// Counts a connection.
    ///
    /// # Errors
    /// When as many are open as may be.
    pub fn enter(self: &Arc<Self>) -> Result<Visit, Reason> {
        // Counted first: of two that come at once for the last place none may get in, but never both.
        self.open.inc();
        let visit = Visit {
            caps: self.clone(),
            address: None,
        };
        if self.open.get() > self.max {
            return Err(Reason::Max);
        }
        Ok(visit)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let policies = self.in_force.load();
        policies.trusted.trusts(address.to_canonical())
    }
}

impl Visit {
    /// From now on it counts for this client as well.
    ///
    /// # Errors
    /// When as many of its address are open as may be.
    pub fn is_of(&mut self, client: IpAddr) -> Result<(), Reason> {
        let Some(addresses) = &self.caps.per_address else {
            return Ok(());
        };
        if self.address.is_some() || self.caps.trusts(client) {
            return Ok(());
        }
        let key = Key::of(client);
        if !addresses.enter(key) {
            return Err(Reason::PerAddress);
        }
        self.address = Some(key);
        Ok(())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let (Some(key), Some(addresses)) = (self.address, &self.caps.per_address) {
            addresses.leave(key);
        }
        self.caps.open.dec();
    }
}

// === impl Addresses ===

impl Addresses {
    fn new(max: u32) -> Self {
        Self {
            max,
            hasher: ahash::RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    fn enter(&self, key: Key) -> bool {
        let mut shard = self.shard(key).lock();
        let open = shard.entry(key).or_insert(0);
        let fits = *open < self.max;
        *open += u32::from(fits);
        fits
    }

    fn leave(&self, key: Key) {
        let mut shard = self.shard(key).lock();
        if let Some(open) = shard.get_mut(&key) {
            *open -= 1;
            if *open == 0 {
                shard.remove(&key);
            }
        }
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        // The upper bits: the map of the shard goes by the lower ones.
        &self.shards[(self.hasher.hash_one(key) >> 32) as usize % SHARDS]
    }
}

impl Key {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

// === impl Refusals ===

impl Refusals {
    pub fn new(counters: &IntCounterVec, logger: Arc<Logger>) -> Self {
        Self {
            counters: REASONS.map(|reason| counters.with_label_values(&[reason])),
            logged: Default::default(),
            logger,
        }
    }

    /// `client`: as far as it is known. `why`: what there is to say beside the reason.
    pub fn note(&self, reason: Reason, client: Option<IpAddr>, why: Option<&str>) {
        self.counters[reason as usize].inc();
        let Some(count) = self.logged[reason as usize].again() else {
            return;
        };
        self.logger.write(log::Level::Warn, |line| {
            line.text("context", "connection");
            line.text("reason", REASONS[reason as usize]);
            if let Some(client) = client {
                line.display("ip", &client);
            }
            line.optional("err", why);
            line.number("count", count);
            line.text("msg", "refused");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use crate::observe::sink::Sink;
    use prometheus::Opts;

    fn caps(max: u32, per_address: u32) -> Arc<Caps> {
        let settings = crate::observe::LogConfig::default().compile(
            crate::config::Stage::Production,
            "test".into(),
            &mut crate::config::Problems::default(),
        );
        let sink = Sink::open(Some("/dev/null".as_ref())).unwrap();
        let counters = IntCounterVec::new(Opts::new("refused", "refused"), &["reason"]).unwrap();
        let refusals = Refusals::new(&counters, Arc::new(Logger::new(&settings, sink)));
        let compiled = fuzz::compiled(
            "server: { trusted_proxies: [10.9.0.0/16] }
services: { s: { url: 'http://a:1' } }
routes: [{ path: /a, service: s, auth: public }]",
        );
        let policies = compiled.unwrap().into_policies();
        let in_force = Arc::new(arc_swap::ArcSwap::from_pointee(policies));
        let open = IntGauge::new("open", "open").unwrap();
        Arc::new(Caps::new(open, max, per_address, in_force, refusals))
    }

    fn visit(caps: &Arc<Caps>, address: &str) -> Result<Visit, Reason> {
        let mut visit = caps.enter()?;
        visit.is_of(address.parse().unwrap())?;
        Ok(visit)
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let caps = caps(2, 0);
        let first = visit(&caps, "1.1.1.1").unwrap_or_else(|_| panic!("there is room"));
        let _second = visit(&caps, "1.1.1.1").unwrap_or_else(|_| panic!("there is room"));
        assert_eq!(visit(&caps, "2.2.2.2").err(), Some(Reason::Max));
        assert_eq!(caps.open.get(), 2, "a refused one is not counted");
        drop(first);
        assert!(visit(&caps, "2.2.2.2").is_ok());
    }

    #[test]
    fn one_address_has_its_share_whatever_way_it_is_written() {
        let caps = caps(100, 2);
        let held = [visit(&caps, "1.1.1.1"), visit(&caps, "::ffff:1.1.1.1")];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(visit(&caps, "1.1.1.1").err(), Some(Reason::PerAddress));
        assert!(visit(&caps, "1.1.1.2").is_ok(), "others are not meant");
        assert_eq!(caps.open.get(), 2);
        drop(held);
        assert!(visit(&caps, "1.1.1.1").is_ok());
        let addresses = caps.per_address.as_ref().unwrap();
        assert!(addresses.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn a_customers_ipv6_network_counts_as_one() {
        let caps = caps(100, 1);
        let _held = visit(&caps, "2001:db8:0:1::1");
        assert_eq!(
            visit(&caps, "2001:db8:0:1:ffff::9").err(),
            Some(Reason::PerAddress)
        );
        assert!(visit(&caps, "2001:db8:0:2::1").is_ok());
    }

    #[test]
    fn a_trusted_proxy_is_not_counted_by_its_address() {
        let caps = caps(3, 1);
        let held: Vec<_> = (0..3).map(|_| visit(&caps, "10.9.0.1")).collect();
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(visit(&caps, "10.9.0.1").err(), Some(Reason::Max));
    }
}
