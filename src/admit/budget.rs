//! How much is held in memory of bodies and of answers at once: bounded for the process, and for each of those they are held
//! for. What nobody is identified for has bounds of its own: it takes no room from who is.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::limits::counted;

/// For all that is held of one kind, in bytes.
const ALL: usize = 256 << 20;

/// For what is held for one tenant or address, and for who shares its place.
const ONE: usize = ALL / 4;

/// Of tenants or addresses, by hash.
const PLACES: usize = 64;

/// Room for what is held, by kind.
#[derive(Clone)]
pub struct Rooms {
    /// Bodies that are held back until they are judged, by tenant.
    pub bodies: Arc<Budget>,
    /// Bodies of batches, by address: nobody is identified yet.
    pub batches: Arc<Budget>,
    /// Answers that are made here, until they are taken, by address: a tenant has many clients, and one may be slow.
    pub answers: Arc<Budget>,
}

/// What is held of one kind.
pub struct Budget {
    all: AtomicUsize,
    places: [AtomicUsize; PLACES],
    hasher: ahash::RandomState,
}

/// A part of it, given back when it is dropped.
pub struct Held {
    budget: Arc<Budget>,
    place: usize,
    bytes: usize,
}

/// There is no room for more.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

// === impl Rooms ===

impl Rooms {
    pub fn new() -> Self {
        Self {
            bodies: Budget::new(),
            batches: Budget::new(),
            answers: Budget::new(),
        }
    }
}

// === impl Budget ===

impl Budget {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            all: AtomicUsize::new(0),
            places: [const { AtomicUsize::new(0) }; PLACES],
            hasher: ahash::RandomState::new(),
        })
    }

    /// For who is seen by this address.
    pub fn of_client(self: &Arc<Self>, client: IpAddr) -> Held {
        match counted(client) {
            IpAddr::V4(address) => self.of(&address.octets()),
            IpAddr::V6(address) => self.of(&address.octets()),
        }
    }

    pub fn of(self: &Arc<Self>, name: &[u8]) -> Held {
        let place = self.hasher.hash_one(name) as usize % PLACES;
        Held {
            budget: self.clone(),
            place,
            bytes: 0,
        }
    }
}

// === impl Held ===

impl Held {
    /// # Errors
    /// When so many bytes more are too many.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let Budget { all, places, .. } = &*self.budget;
        self.bytes += bytes;
        let all = all.fetch_add(bytes, Relaxed) + bytes;
        let one = places[self.place].fetch_add(bytes, Relaxed) + bytes;
        match all > ALL || one > ONE {
            true => Err(Full),
            false => Ok(()),
        }
    }
}

impl Held {
    /// Gives all of it back.
    pub fn clear(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.budget.all.fetch_sub(bytes, Relaxed);
        self.budget.places[self.place].fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_subscriber_is_one_client() {
        let budget = Budget::new();
        let of = |text: &str| budget.of_client(text.parse().unwrap());
        let mut one = of("2001:db8::1");
        assert_eq!(one.grow(ONE), Ok(()));
        assert_eq!(of("2001:db8::2:1").grow(1), Err(Full));
    }

    #[test]
    fn one_tenant_has_its_share_and_gives_it_back() {
        let budget = Budget::new();
        let mut mine = budget.of(b"t1");
        assert_eq!(mine.grow(ONE), Ok(()));
        assert_eq!(budget.of(b"t1").grow(1), Err(Full));
        let others = (0..200).map(|i: u32| budget.of(&i.to_le_bytes()));
        assert!(
            others
                .map(|mut other| other.grow(1))
                .filter(Result::is_ok)
                .count()
                > 100
        );
        drop(mine);
        assert_eq!(budget.of(b"t1").grow(ONE), Ok(()));
        assert_eq!(budget.all.load(Relaxed), 0);
    }
}
