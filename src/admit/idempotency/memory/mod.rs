//! The writes of a process that has no Redis: bounded, in all and for each caller, and never by forgetting one that could run
//! a second time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::carried::{Carried, NotCarried};
use super::key::{Name, Owner};
use super::record;
use crate::state::Away;

pub struct Memory {
    entries: HashMap<Name, Entry, ahash::RandomState>,
    by_end: BTreeSet<(i64, Name)>,
    /// Bytes that the writes of each caller take.
    shares: HashMap<Owner, usize, ahash::RandomState>,
    /// Bytes, and how many there may be.
    used: usize,
    bounds: Bounds,
    /// Another process knows all of it, and nothing begins here: the runs that have ended since and were not told to it.
    handed: Option<BTreeMap<Name, Box<str>>>,
}

/// Bytes. Of both, answers leave a part for writes to come.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub all: usize,
    /// Of one caller.
    pub each: usize,
}

struct Entry {
    record: Bytes,
    /// As [`crate::handover::Clock::millis`].
    until: i64,
    owner: Owner,
}

/// What an entry takes beside its record.
const OVERHEAD: usize = 256;

impl Memory {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            entries: HashMap::default(),
            by_end: BTreeSet::new(),
            shares: HashMap::default(),
            used: 0,
            bounds,
            handed: None,
        }
    }

    /// The same as claim.lua: the record that is there, or an empty one, and this one is there now.
    ///
    /// # Errors
    /// When there is no room for another write, or none for another of its caller; or the next process knows them all:
    /// otherwise both could run one.
    pub fn claim(
        &mut self,
        name: &Name,
        owner: Owner,
        record: String,
        until: i64,
        now: i64,
    ) -> Result<Bytes, Away> {
        self.drop_ended(now);
        if let Some(entry) = self.entries.get(name) {
            return Ok(entry.record.clone());
        }
        let size = record.len() + OVERHEAD;
        let Bounds { all, each } = self.bounds;
        if self.handed.is_some() || self.used + size > all || self.share(owner) + size > each {
            return Err(Away);
        }
        self.put(*name, owner, record.into(), until);
        Ok(Bytes::new())
    }

    /// The same as conclude.lua. An answer for which there is no room gives way to `short`, which there always is.
    pub fn conclude(&mut self, name: &Name, run: &str, record: Bytes, short: Vec<u8>, end: i64) {
        let there = self.entries.get(name);
        if !there.is_none_or(|entry| record::is_of(&entry.record, run)) {
            return;
        }
        let owner = there.map_or(Owner::UNKNOWN, |entry| entry.owner);
        let before = self.remove(name);
        if let Some(handed) = &mut self.handed {
            handed.insert(*name, run.into());
        }
        if record.is_empty() {
            return;
        }
        let size = record.len() + OVERHEAD;
        let Bounds { all, each } = self.bounds;
        let fits = self.used + size <= (all / 4 * 3).max(self.used + before)
            && self.share(owner) + size <= (each / 2).max(self.share(owner) + before);
        let record = if fits { record } else { short.into() };
        self.put(*name, owner, record, end);
    }

    fn share(&self, owner: Owner) -> usize {
        self.shares.get(&owner).copied().unwrap_or_default()
    }

    fn put(&mut self, name: Name, owner: Owner, record: Bytes, until: i64) {
        let takes = record.len() + OVERHEAD;
        self.used += takes;
        *self.shares.entry(owner).or_default() += takes;
        self.by_end.insert((until, name));
        let entry = Entry {
            record,
            until,
            owner,
        };
        self.entries.insert(name, entry);
    }

    /// Returns the bytes that it took.
    fn remove(&mut self, name: &Name) -> usize {
        let Some(entry) = self.entries.remove(name) else {
            return 0;
        };
        self.by_end.remove(&(entry.until, *name));
        let took = entry.record.len() + OVERHEAD;
        self.used -= took;
        let left = self.share(entry.owner) - took;
        match left {
            0 => drop(self.shares.remove(&entry.owner)),
            left => drop(self.shares.insert(entry.owner, left)),
        }
        took
    }

    /// What has had its time is forgotten here, and by itself wherever else it is known.
    fn drop_ended(&mut self, now: i64) {
        while let Some((until, name)) = self.by_end.first().copied()
            && until <= now
        {
            self.remove(&name);
        }
    }
}

/// What the next process knows.
impl Memory {
    /// All writes. From now on none begins here, and it is noted which of them end.
    pub fn hand_over(&mut self) -> Vec<Carried> {
        self.handed = Some(BTreeMap::new());
        let all = self.entries.iter();
        all.map(|(name, entry)| carried(name, Some(entry), None))
            .collect()
    }

    /// There is none: writes begin here again.
    pub fn goes_on(&mut self) {
        self.handed = None;
    }

    /// Whether some have ended that it was not told of.
    pub fn has_ends(&self) -> bool {
        self.handed.as_ref().is_some_and(|ends| !ends.is_empty())
    }

    pub fn take_ends(&mut self) -> Vec<Carried> {
        let ends = self.handed.as_mut().map(std::mem::take).unwrap_or_default();
        ends.into_iter()
            .map(|(name, run)| carried(&name, self.entries.get(&name), Some(run)))
            .collect()
    }

    /// A write as another process had it; or the end of one, which counts here if this is still its run.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn take_over(&mut self, write: Carried) -> Result<(), NotCarried> {
        let Carried {
            name,
            owner,
            record,
            until,
            run,
        } = write;
        if let Some(run) = run {
            let short = record::short(&record);
            self.conclude(&name, &run, record, short, until);
            return Ok(());
        }
        let there = self.entries.get(&name);
        if there.is_some_and(|entry| !record::is_running(&entry.record)) {
            return Ok(()); // what is known here is later
        }
        self.remove(&name);
        if record.is_empty() {
            return Ok(());
        }
        if self.used + record.len() + OVERHEAD > self.bounds.all {
            return Err(NotCarried("there is no room for all of them"));
        }
        self.put(name, owner, record, until);
        Ok(())
    }
}

fn carried(name: &Name, entry: Option<&Entry>, run: Option<Box<str>>) -> Carried {
    Carried {
        name: *name,
        owner: entry.map_or(Owner::UNKNOWN, |entry| entry.owner),
        record: entry.map_or(Bytes::new(), |entry| entry.record.clone()),
        until: entry.map_or(0, |entry| entry.until),
        run,
    }
}

#[cfg(test)]
mod tests;
