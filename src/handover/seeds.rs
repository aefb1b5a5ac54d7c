//! A seeded hash that the next process can make as well: what is kept by hash alone is found there again.

use std::hash::Hash;

use ahash::RandomState;

/// Nobody outside can aim at what it makes of a name.
#[derive(Debug)]
pub struct Seeded {
    seeds: [u64; 4],
    hasher: RandomState,
}

impl Default for Seeded {
    fn default() -> Self {
        let random = RandomState::new();
        Self::with([0u64, 1, 2, 3].map(|n| random.hash_one(n)))
    }
}

impl Seeded {
    pub fn with(seeds: [u64; 4]) -> Self {
        let [a, b, c, d] = seeds;
        Self {
            seeds,
            hasher: RandomState::with_seeds(a, b, c, d),
        }
    }

    pub fn seeds(&self) -> [u64; 4] {
        self.seeds
    }

    pub fn hash(&self, of: &(impl Hash + ?Sized)) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Two processes that come to the same here come to the same everywhere: the algorithm may differ between versions.
    pub fn proof(&self) -> u64 {
        let (tag, id, rule) = ("rl:user:", "proof", (1u64, 2u64, Some("event")));
        self.hash(&(tag, id))
            ^ self.hash(&rule).rotate_left(1)
            ^ self.hash(&b"bytes"[..]).rotate_left(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seeds_make_the_same_hash_and_others_another() {
        let one = Seeded::default();
        let same = Seeded::with(one.seeds());
        assert_eq!((one.hash("a"), one.proof()), (same.hash("a"), same.proof()));
        assert_ne!(Seeded::default().proof(), one.proof());
    }
}
