//! What this process has revoked itself. It holds until the tokens end by themselves, also where Redis does not know of it:
//! it is away, or there is none.

use std::collections::{BTreeSet, HashMap};

use super::keys::Family;

/// Tokens and families by seeded hash, with the time (unix seconds) at which they end.
#[derive(Debug, Default)]
pub struct Own {
    until: HashMap<u64, i64, ahash::RandomState>,
    by_time: BTreeSet<(i64, u64)>,
    hasher: ahash::RandomState,
}

/// More are not remembered: those that end first give way.
const MOST: usize = 1_000_000;

impl Own {
    /// `signed`: the token without its signature.
    pub fn add_token(&mut self, signed: &[u8], until: i64, now: i64) {
        self.add(self.hasher.hash_one(signed), until, now);
    }

    pub fn add_family(&mut self, family: &Family, until: i64, now: i64) {
        self.add(self.hasher.hash_one(family), until, now);
    }

    pub fn has_token(&self, signed: &[u8]) -> bool {
        !self.until.is_empty() && self.until.contains_key(&self.hasher.hash_one(signed))
    }

    pub fn has_family(&self, family: &Family) -> bool {
        !self.until.is_empty() && self.until.contains_key(&self.hasher.hash_one(family))
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    fn add(&mut self, hash: u64, until: i64, now: i64) {
        while let Some((time, first)) = self.by_time.first().copied()
            && (time < now || self.until.len() >= MOST)
        {
            self.by_time.pop_first();
            self.until.remove(&first);
        }
        let until = match self.until.get(&hash) {
            Some(known) if *known >= until => return,
            Some(known) => {
                self.by_time.remove(&(*known, hash));
                until
            }
            None => until,
        };
        self.until.insert(hash, until);
        self.by_time.insert((until, hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_makes_room_and_what_is_said_twice_holds_for_the_longer_time() {
        let mut own = Own::default();
        let family = Family::named("f1").unwrap();
        own.add_token(b"a", 10, 0);
        own.add_family(&family, 20, 0);
        own.add_token(b"a", 5, 0);
        own.add_token(b"b", 30, 10);
        assert!(own.has_token(b"a") && own.has_family(&family));
        own.add_family(&family, 40, 11);
        assert!(!own.has_token(b"a"), "it has ended");
        own.add_token(b"c", 50, 35);
        assert!(own.has_family(&family) && !own.has_token(b"b"));
        assert_eq!(own.until.len(), own.by_time.len());
    }
}
