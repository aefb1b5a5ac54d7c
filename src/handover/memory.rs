//! What a restart would lose: it is written down for the next process in named parts, the most important first and in all
//! no more than [`MOST`]; a part that the next process cannot read is passed over there.
//!
//! Verified tokens are not among them. The next process verifies each once, with the issuers' keys that it is given: it may
//! judge otherwise, and so no token leaves this one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::Clock;
use super::wire::{Broken, Frame};
use crate::admit::auth::api_key::StoredKeys;
use crate::admit::auth::refresh::Store;
use crate::admit::auth::unix_now;
use crate::admit::idempotency::{Ledger, NotCarried};
use crate::admit::limits::{Books, Failures, Mark, Page, Spent, Windows};
use crate::policies::InForce;
use crate::state::{Kept, Revoked};

/// The rooms that remember.
#[derive(Clone)]
pub struct Memory {
    pub limits: Arc<Spent>,
    pub failures: Arc<Failures>,
    pub books: Arc<Books>,
    /// The services, and the issuer's keys.
    pub in_force: InForce,
    pub revoked: Arc<Revoked>,
    pub families: Arc<Store>,
    pub ledger: Arc<Ledger>,
    /// What Redis was not told yet of answers that are out of date.
    pub stale: Option<Arc<Kept>>,
    pub api_keys: Option<Arc<StoredKeys>>,
}

/// Bytes, in all.
const MOST: usize = 64 << 20;

/// Entries of a list that one part holds.
const CHUNK: usize = 1_000;

const REVOKED_HERE: &str = "revoked-here";
const FAMILIES: &str = "families";
const WRITES: &str = "writes";
const UNWRITTEN: &str = "unwritten";
const REVOCATIONS: &str = "revocations";
const SERVICES: &str = "services";
const KEY_SET: &str = "key-set";
const API_KEYS: &str = "api-keys";
const JOURNAL: &str = "journal";
const FAILURES: &str = "failures";
const LIMITS: &str = "limits";

/// Parts, ready to be sent.
#[derive(Default)]
pub struct Parcel {
    pub parts: Vec<(&'static str, Vec<u8>)>,
    size: usize,
    /// How many parts of each kind did not fit.
    left_out: BTreeMap<&'static str, usize>,
}

/// How much of what was taken over.
#[derive(Debug, Default)]
pub struct Taken(BTreeMap<String, usize>);

impl Memory {
    /// All of it. `revocations`: the next process has not read them itself.
    pub fn all(&self, clock: &Clock, revocations: bool) -> Parcel {
        let mut parcel = Parcel::default();
        parcel.each(WRITES, self.ledger.hand_over());
        parcel.each(REVOKED_HERE, self.revoked.carried());
        parcel.chunks(FAMILIES, self.families.carried(false));
        parcel.chunks(UNWRITTEN, self.unwritten(clock));
        if revocations && !self.revoked.is_unread() {
            // All of them or none: a part of the last known set would pass for the whole.
            parcel.each(REVOCATIONS, [self.revoked.carried_keys()]);
        }
        let policies = self.in_force.load();
        parcel.each(
            SERVICES,
            policies.pools.iter().map(|pool| [pool.carried(clock)]),
        );
        parcel.each(
            KEY_SET,
            policies
                .auth
                .jwks()
                .into_iter()
                .filter_map(|jwks| jwks.carried()),
        );
        if let Some(keys) = &self.api_keys {
            parcel.chunks(API_KEYS, keys.carried(clock));
        }
        parcel.chunks(JOURNAL, self.books.carried(clock, None));
        parcel.each(FAILURES, self.failures.windows().carried(clock, None));
        parcel.each(LIMITS, self.limits.windows().carried(clock, None));
        parcel
    }

    /// What was added behind the mark, by requests that were under way.
    pub fn since(&self, mark: Mark, clock: &Clock) -> Parcel {
        let mut parcel = self.ends();
        parcel.each(REVOKED_HERE, self.revoked.carried());
        parcel.chunks(FAMILIES, self.families.carried(true));
        parcel.chunks(UNWRITTEN, self.unwritten(clock));
        parcel.chunks(JOURNAL, self.books.carried(clock, Some(mark)));
        parcel.each(FAILURES, self.failures.windows().carried(clock, Some(mark)));
        parcel.each(LIMITS, self.limits.windows().carried(clock, Some(mark)));
        parcel
    }

    /// The writes that have ended since the next process was told of them all, or since the last time.
    pub fn ends(&self) -> Parcel {
        let mut parcel = Parcel::default();
        parcel.each(WRITES, self.ledger.take_ends());
        parcel
    }

    /// What came up to the mark is the next process' own now.
    pub fn leave(&self, mark: Mark, clock: &Clock) {
        self.books.leave(clock, mark);
    }

    /// There is no next process.
    pub fn goes_on(&self) {
        self.ledger.goes_on();
    }

    /// Whether it must not serve without this part.
    pub fn needs(&self, name: &str) -> bool {
        name == WRITES
    }

    /// How much Redis was not told of, where there is one.
    pub fn count_unwritten(&self) -> usize {
        self.kept().map(|kept| kept.count()).sum()
    }

    /// Something is being written to Redis that no client waits for.
    pub fn is_writing(&self) -> bool {
        self.kept().any(|kept| kept.is_held())
    }

    /// Reads one part.
    ///
    /// # Errors
    /// Why it means nothing here. That is no reason to stop.
    pub fn take_over(&self, frame: &Frame, taken: &mut Taken) -> Result<(), String> {
        let clock = &Clock::now();
        let unreadable = |e: Broken| e.to_string();
        let count = match &*frame.name {
            REVOKED_HERE => self
                .revoked
                .take_over(frame.parse().map_err(unreadable)?, unix_now())?,
            FAMILIES => self.families.take_over(frame.parse().map_err(unreadable)?),
            WRITES => self
                .ledger
                .take_over(frame.parse().map_err(unreadable)?)
                .map_err(|NotCarried(why)| why)?,
            UNWRITTEN => match self.families.kept() {
                Some(kept) => kept.take_over(frame.parse().map_err(unreadable)?, clock),
                None => 0,
            },
            REVOCATIONS => self
                .revoked
                .take_over_keys(frame.parse().map_err(unreadable)?),
            SERVICES => self.take_over_services(frame, clock)?,
            KEY_SET => match self.in_force.load().auth.jwks() {
                Some(jwks) => jwks.take_over(frame.parse().map_err(unreadable)?)?,
                None => 0,
            },
            API_KEYS => match &self.api_keys {
                Some(keys) => keys.take_over(frame.parse().map_err(unreadable)?, clock),
                None => 0,
            },
            JOURNAL => self
                .books
                .take_over(frame.parse().map_err(unreadable)?, clock),
            FAILURES => take_over_page(self.failures.windows(), frame, clock)?,
            LIMITS => take_over_page(self.limits.windows(), frame, clock)?,
            _ => return Err("nothing here has that name".to_owned()),
        };
        *taken.0.entry(frame.name.clone()).or_default() += count;
        Ok(())
    }

    fn unwritten(&self, clock: &Clock) -> Vec<impl Serialize> {
        self.kept().flat_map(|kept| kept.carried(clock)).collect()
    }

    fn kept(&self) -> impl Iterator<Item = &Arc<Kept>> {
        let kept = [
            self.families.kept(),
            self.ledger.kept(),
            self.stale.as_ref(),
        ];
        kept.into_iter().flatten()
    }

    fn take_over_services(&self, frame: &Frame, clock: &Clock) -> Result<usize, String> {
        let services: Vec<crate::forward::pool::Carried> =
            frame.parse().map_err(|e| e.to_string())?;
        let policies = self.in_force.load();
        let mut count = 0;
        for carried in services {
            if let Some(pool) = policies.pools.get(&carried.service) {
                pool.take_over(carried, clock);
                count += 1;
            }
        }
        Ok(count)
    }
}

fn take_over_page(windows: &Windows, frame: &Frame, clock: &Clock) -> Result<usize, String> {
    let page: Page = frame.parse().map_err(|e| e.to_string())?;
    Ok(windows.take_over(page, clock)?)
}

// === impl Parcel ===

impl Parcel {
    fn each(&mut self, name: &'static str, parts: impl IntoIterator<Item = impl Serialize>) {
        for part in parts {
            self.put(name, &part);
        }
    }

    fn chunks(&mut self, name: &'static str, entries: Vec<impl Serialize>) {
        for chunk in entries.chunks(CHUNK) {
            self.put(name, &chunk);
        }
    }

    fn put(&mut self, name: &'static str, part: &impl Serialize) {
        // What does not fit is not written down to find that out: the parts of one kind are of a size.
        if self.left_out.contains_key(name) {
            *self.left_out.entry(name).or_default() += 1;
            return;
        }
        match serde_json::to_vec(part) {
            Ok(body) if self.size + body.len() <= MOST => {
                self.size += body.len();
                self.parts.push((name, body));
            }
            _ => *self.left_out.entry(name).or_default() += 1,
        }
    }

    /// Whether some of the writes that have run did not fit.
    pub fn lacks_writes(&self) -> bool {
        self.left_out.contains_key(WRITES)
    }

    /// What did not fit, if anything.
    pub fn left_out(&self) -> Option<String> {
        let kinds: Vec<String> = self
            .left_out
            .iter()
            .map(|(name, parts)| format!("{name} ({parts} parts)"))
            .collect();
        (!kinds.is_empty()).then(|| kinds.join(", "))
    }
}

// === impl Taken ===

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = self.0.iter().filter(|(_, count)| **count > 0).peekable();
        if counts.peek().is_none() {
            return f.write_str("nothing");
        }
        for (i, (name, count)) in counts.enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}: {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_do_not_fit_are_missed() {
        let mut parcel = Parcel {
            size: MOST - 10,
            ..Parcel::default()
        };
        parcel.each(LIMITS, ["this is more than ten"]);
        assert!(parcel.left_out().is_some() && !parcel.lacks_writes());
        parcel.each(WRITES, ["a", "this is more than ten", "b"]);
        assert!(parcel.lacks_writes());
        assert_eq!(parcel.parts.len(), 1, "a part of them is none");
    }
}
