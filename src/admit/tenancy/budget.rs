//! How much of bodies is held back at once: bounded for the process, and for each tenant.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// For all bodies that are held, in bytes.
const ALL: usize = 256 << 20;

/// For those of one tenant, and of who shares its place.
const ONE: usize = ALL / 4;

/// Places of tenants, by hash.
const PLACES: usize = 64;

/// What is held.
pub struct Budget {
    all: AtomicUsize,
    tenants: [AtomicUsize; PLACES],
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

impl Budget {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            all: AtomicUsize::new(0),
            tenants: [const { AtomicUsize::new(0) }; PLACES],
            hasher: ahash::RandomState::new(),
        })
    }

    pub fn of(self: &Arc<Self>, tenant: &[u8]) -> Held {
        let place = self.hasher.hash_one(tenant) as usize % PLACES;
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
        let Budget { all, tenants, .. } = &*self.budget;
        self.bytes += bytes;
        let all = all.fetch_add(bytes, Relaxed) + bytes;
        let tenant = tenants[self.place].fetch_add(bytes, Relaxed) + bytes;
        match all > ALL || tenant > ONE {
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
        self.budget.tenants[self.place].fetch_sub(bytes, Relaxed);
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
