//! What this process has revoked itself. It holds until the tokens end by themselves, also where Redis does not know of it:
//! it is away, or there is none.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::keys::Family;
use crate::handover::Seeded;

/// Tokens and families by seeded hash, with the time (unix seconds) at which they end.
#[derive(Debug, Default)]
pub struct Own {
    until: HashMap<u64, i64, ahash::RandomState>,
    by_time: BTreeSet<(i64, u64)>,
    seeded: Seeded,
}

/// Some of it, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct OwnPage {
    seeds: [u64; 4],
    /// [`Seeded::proof`]
    proof: u64,
    /// Hashes, and until when (unix seconds).
    until: Vec<(u64, i64)>,
}

/// About a quarter of a megabyte.
const PAGE: usize = 8_000;

/// More are not remembered: those that end first give way.
const MOST: usize = 1_000_000;

impl Own {
    /// `signed`: the token without its signature.
    pub fn add_token(&mut self, signed: &[u8], until: i64, now: i64) {
        self.add(self.seeded.hash(signed), until, now);
    }

    pub fn add_family(&mut self, family: &Family, until: i64, now: i64) {
        self.add(self.seeded.hash(family), until, now);
    }

    pub fn has_token(&self, signed: &[u8]) -> bool {
        !self.until.is_empty() && self.until.contains_key(&self.seeded.hash(signed))
    }

    pub fn has_family(&self, family: &Family) -> bool {
        !self.until.is_empty() && self.until.contains_key(&self.seeded.hash(family))
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// All of it; what ends last comes first. There is a page also of nothing: by its seeds the next process knows what is
    /// added later.
    pub fn carried(&self) -> Vec<OwnPage> {
        let all: Vec<_> = self
            .by_time
            .iter()
            .rev()
            .map(|(until, hash)| (*hash, *until))
            .collect();
        let page = |until: &[(u64, i64)]| OwnPage {
            seeds: self.seeded.seeds(),
            proof: self.seeded.proof(),
            until: until.to_vec(),
        };
        match all.is_empty() {
            true => vec![page(&[])],
            false => all.chunks(PAGE).map(page).collect(),
        }
    }

    /// Adds what another process has revoked.
    ///
    /// # Errors
    /// When its hashes are none here.
    pub fn take_over(&mut self, page: OwnPage, now: i64) -> Result<usize, &'static str> {
        if self.is_empty() {
            self.seeded = Seeded::with(page.seeds);
        }
        if self.seeded.seeds() != page.seeds || self.seeded.proof() != page.proof {
            return Err("its hashes are made in another way");
        }
        let count = page.until.len();
        for (hash, until) in page.until {
            self.add(hash, until, now);
        }
        Ok(count)
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
