//! The writes of a process that has no Redis: bounded, and never by forgetting one that could run a second time.

use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::key::Name;
use super::record::RUNNING;
use crate::state::Away;

pub struct Memory {
    entries: HashMap<Name, Entry, ahash::RandomState>,
    by_end: BTreeSet<(i64, Name)>,
    /// Bytes, and how many there may be.
    used: usize,
    most: usize,
    /// Those that have changed since the next process was told of them all.
    changed: Option<BTreeSet<Name>>,
}

struct Entry {
    record: Bytes,
    /// As [`crate::handover::Clock::millis`].
    until: i64,
}

/// One write, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedWrite {
    name: String,
    record: String,
    until: i64,
}

/// What an entry takes beside its record.
const OVERHEAD: usize = 256;

/// Whether another process takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    No,
    /// It gets ready.
    Perhaps,
    /// It serves, and hears of nothing that begins here.
    Gone,
}

impl Memory {
    /// `most`: bytes.
    pub fn new(most: usize) -> Self {
        Self {
            entries: HashMap::default(),
            by_end: BTreeSet::new(),
            used: 0,
            most,
            changed: None,
        }
    }

    /// The same as claim.lua: the record that is there, or an empty one, and this one is there now.
    ///
    /// # Errors
    /// When there is no room for another write; or the next process knows them all: otherwise both could run one.
    pub fn claim(
        &mut self,
        name: &Name,
        record: String,
        until: i64,
        now: i64,
        leaving: Leaving,
    ) -> Result<Bytes, Away> {
        self.drop_ended(now);
        if leaving == Leaving::No {
            self.changed = None; // an upgrade that has failed
        }
        if let Some(entry) = self.entries.get(name) {
            return Ok(entry.record.clone());
        }
        let next_knows_all = self.changed.is_some() || leaving == Leaving::Gone;
        if next_knows_all || self.used + record.len() + OVERHEAD > self.most {
            return Err(Away);
        }
        self.put(*name, record.into(), until);
        Ok(Bytes::new())
    }

    /// The same as conclude.lua. An answer for which there is no room gives way to `short`, which there always is.
    pub fn conclude(&mut self, name: &Name, run: &str, record: Vec<u8>, short: Vec<u8>, end: i64) {
        let there = self.entries.get(name);
        if !there.is_none_or(|entry| is_of(&entry.record, run)) {
            return;
        }
        let before = self.remove(name);
        if record.is_empty() {
            return;
        }
        // Answers leave room for writes to come.
        let room = (self.most / 4 * 3).max(self.used + before);
        let fits = self.used + record.len() + OVERHEAD <= room;
        self.put(*name, if fits { record } else { short }.into(), end);
    }

    fn put(&mut self, name: Name, record: Bytes, until: i64) {
        self.used += record.len() + OVERHEAD;
        self.by_end.insert((until, name));
        self.entries.insert(name, Entry { record, until });
        self.note(name);
    }

    /// Returns the bytes that it took.
    fn remove(&mut self, name: &Name) -> usize {
        let Some(Entry { record, until }) = self.entries.remove(name) else {
            return 0;
        };
        self.by_end.remove(&(until, *name));
        let took = record.len() + OVERHEAD;
        self.used -= took;
        self.note(*name);
        took
    }

    fn drop_ended(&mut self, now: i64) {
        while let Some((until, name)) = self.by_end.first().copied()
            && until <= now
        {
            self.remove(&name);
        }
    }

    fn note(&mut self, name: Name) {
        if let Some(changed) = &mut self.changed {
            changed.insert(name);
        }
    }

    /// All writes; from now on it is noted which of them change.
    pub fn carried(&mut self) -> Vec<CarriedWrite> {
        self.changed = Some(BTreeSet::new());
        let all = self.entries.iter();
        all.map(|(name, entry)| carried(name, Some(entry)))
            .collect()
    }

    /// Those that have changed since then.
    pub fn carried_changes(&mut self) -> Vec<CarriedWrite> {
        let changed = self.changed.take().unwrap_or_default();
        let changed = changed.iter();
        changed
            .map(|name| carried(name, self.entries.get(name)))
            .collect()
    }

    /// Another process knows them better.
    pub fn take_over(&mut self, writes: Vec<CarriedWrite>) -> usize {
        let mut count = 0;
        for CarriedWrite {
            name,
            record,
            until,
        } in writes
        {
            let name = BASE64_STANDARD.decode(name).ok();
            let name = name.and_then(|name| Name::from_bytes(&name));
            let (Some(name), Ok(record)) = (name, BASE64_STANDARD.decode(record)) else {
                continue;
            };
            // Nothing was done under it: it may run here.
            if record.is_empty() {
                self.remove(&name);
            } else if self.used + record.len() + OVERHEAD <= self.most {
                self.remove(&name);
                self.put(name, record.into(), until);
                count += 1;
            }
        }
        count
    }
}

impl CarriedWrite {
    /// In bytes, about.
    pub fn size(&self) -> usize {
        self.name.len() + self.record.len()
    }
}

fn carried(name: &Name, entry: Option<&Entry>) -> CarriedWrite {
    let record = entry.map(|entry| &entry.record[..]).unwrap_or_default();
    CarriedWrite {
        name: BASE64_STANDARD.encode(name.as_bytes()),
        record: BASE64_STANDARD.encode(record),
        until: entry.map_or(0, |entry| entry.until),
    }
}

/// Whether it says that this run is at it.
fn is_of(record: &[u8], run: &str) -> bool {
    let line = std::str::from_utf8(record).unwrap_or_default();
    let mut words = line.split(' ');
    words.next() == Some(RUNNING) && words.nth(1) == Some(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u8) -> Name {
        Name::from_bytes(&[n; 32]).unwrap()
    }

    fn running(run: &str) -> String {
        format!("running f {run} 9000")
    }

    fn claim(memory: &mut Memory, n: u8, run: &str, now: i64) -> Result<Bytes, Away> {
        memory.claim(&name(n), running(run), now + 1000, now, Leaving::No)
    }

    #[test]
    fn the_first_has_it_until_its_end_and_what_it_says_stays_for_its_life() {
        let mut memory = Memory::new(10_000);
        assert_eq!(claim(&mut memory, 1, "a", 0), Ok(Bytes::new()));
        assert_eq!(claim(&mut memory, 1, "b", 1), Ok(running("a").into()));
        memory.conclude(&name(1), "b", b"done by b".to_vec(), Vec::new(), 5000);
        assert_eq!(claim(&mut memory, 1, "b", 2), Ok(running("a").into()));
        memory.conclude(&name(1), "a", b"done by a".to_vec(), Vec::new(), 5000);
        memory.conclude(&name(1), "a", b"again".to_vec(), Vec::new(), 5000);
        assert_eq!(claim(&mut memory, 1, "b", 4999), Ok("done by a".into()));
        assert_eq!(claim(&mut memory, 1, "b", 5000), Ok(Bytes::new()));
    }

    #[test]
    fn what_was_not_done_may_run_again() {
        let mut memory = Memory::new(10_000);
        claim(&mut memory, 1, "a", 0).unwrap();
        memory.conclude(&name(1), "a", Vec::new(), Vec::new(), 5000);
        assert_eq!(memory.used, 0);
        assert_eq!(claim(&mut memory, 1, "b", 1), Ok(Bytes::new()));
    }

    #[test]
    fn a_full_memory_takes_no_more_and_forgets_none() {
        let mut memory = Memory::new(2 * (OVERHEAD + running("a").len()));
        for n in [1, 2] {
            assert_eq!(claim(&mut memory, n, "a", 0), Ok(Bytes::new()));
        }
        assert_eq!(claim(&mut memory, 3, "a", 1), Err(Away));
        memory.conclude(&name(1), "a", vec![b'x'; 5000], b"short".to_vec(), 9000);
        assert_eq!(claim(&mut memory, 1, "b", 2), Ok("short".into()));
        assert_eq!(claim(&mut memory, 2, "b", 2), Ok(running("a").into()));
        // The time of the second is over.
        assert_eq!(claim(&mut memory, 3, "a", 2000), Ok(Bytes::new()));
        assert_eq!(memory.entries.len(), memory.by_end.len());
    }

    #[test]
    fn the_next_process_knows_all_of_it_and_what_changes_meanwhile() {
        let (mut old, mut new) = (Memory::new(10_000), Memory::new(10_000));
        for n in [1, 2, 3] {
            claim(&mut old, n, "a", 0).unwrap();
        }
        assert_eq!(new.take_over(old.carried()), 3);
        let leaves = old.claim(&name(4), running("a"), 1000, 1, Leaving::Perhaps);
        assert_eq!(leaves, Err(Away), "the new one may be at it");
        let known = old.claim(&name(1), running("b"), 1000, 1, Leaving::Perhaps);
        assert_eq!(known, Ok(running("a").into()));
        assert_eq!(claim(&mut new, 1, "b", 1), Ok(running("a").into()));
        old.conclude(&name(1), "a", b"done \xff".to_vec(), Vec::new(), 5000);
        old.conclude(&name(2), "a", Vec::new(), Vec::new(), 5000);
        assert_eq!(new.take_over(old.carried_changes()), 1);
        let last = old.claim(&name(5), running("a"), 1000, 1, Leaving::Gone);
        assert_eq!(last, Err(Away), "nobody would hear of it");
        let done = Bytes::from_static(b"done \xff");
        assert_eq!(claim(&mut new, 1, "b", 1), Ok(done));
        assert_eq!(claim(&mut new, 2, "b", 1), Ok(Bytes::new()));
        assert_eq!(claim(&mut new, 3, "b", 1), Ok(running("a").into()));
    }
}
