//! Which refresh tokens are current, where there is no Redis: bounded, and never by forgetting a family that lives.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::families::{Presented, Verdict};
use crate::admit::auth::token::unix_now;
use crate::state::{Away, Family};

/// The families of one process.
pub struct Memory {
    records: HashMap<Family, Record, ahash::RandomState>,
    /// Records that there may be.
    most: usize,
    swept: Option<Instant>,
    /// Those that have changed since the next process was told of them all.
    changed: Option<Vec<Family>>,
}

/// A family, for the next process.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedFamily {
    name: String,
    current: Option<Box<str>>,
    until: i64,
}

struct Record {
    /// `None`: the family has ended.
    current: Option<Box<str>>,
    /// Unix seconds.
    until: i64,
}

/// A full memory is looked through for what has ended so often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Memory {
    pub fn new(most: usize) -> Self {
        Self {
            records: HashMap::default(),
            most,
            swept: None,
            changed: None,
        }
    }

    /// All families; from now on it is noted which of them change.
    pub fn carried(&mut self) -> Vec<CarriedFamily> {
        self.changed = Some(Vec::new());
        let now = unix_now();
        let live = self.records.iter().filter(|(_, record)| record.until > now);
        live.map(carried).collect()
    }

    /// Those that have changed since then.
    pub fn carried_changes(&mut self) -> Vec<CarriedFamily> {
        let changed = self.changed.take().unwrap_or_default();
        let known = changed
            .iter()
            .filter_map(|family| self.records.get_key_value(family));
        known.map(carried).collect()
    }

    /// Another process knows them better.
    pub fn take_over(&mut self, families: Vec<CarriedFamily>) -> usize {
        let mut count = 0;
        for CarriedFamily {
            name,
            current,
            until,
        } in families
        {
            let Some(family) = Family::named(&name) else {
                continue;
            };
            // One that has ended here does not begin again.
            let has_ended = self
                .records
                .get(&family)
                .is_some_and(|r| r.current.is_none());
            let is_known = self.records.contains_key(&family);
            if !has_ended && (is_known || self.records.len() < self.most) {
                self.records.insert(family, Record { current, until });
                count += 1;
            }
        }
        count
    }

    fn note(&mut self, family: &Family) {
        if let Some(changed) = self
            .changed
            .as_mut()
            .filter(|changed| changed.len() < self.most)
        {
            changed.push(family.clone());
        }
    }

    /// The same as rotate.lua.
    pub fn rotate(
        &mut self,
        token: &Presented<'_>,
        next: &str,
        until: i64,
    ) -> Result<Verdict, Away> {
        self.note(token.family);
        let now = unix_now();
        let successor = Some(next.into());
        let Some(record) = self.records.get_mut(token.family).filter(|r| r.until > now) else {
            if token.id.is_some() {
                return Ok(Verdict::Unknown);
            }
            self.make_room(now)?;
            let current = successor;
            self.records
                .insert(token.family.clone(), Record { current, until });
            return Ok(Verdict::Rotated);
        };
        let Some(current) = &record.current else {
            return Ok(Verdict::Dead);
        };
        let is_current = token.id == Some(&**current);
        record.current = successor.filter(|_| is_current);
        record.until = record.until.max(until);
        match is_current {
            true => Ok(Verdict::Rotated),
            false => Ok(Verdict::Reused),
        }
    }

    pub fn end(&mut self, family: &Family, until: i64) {
        self.note(family);
        let until = self
            .records
            .get(family)
            .map_or(until, |r| r.until.max(until));
        // What does not fit is unknown, and so are its tokens; but one that no gateway minted may begin it anew.
        if self.records.contains_key(family) || self.make_room(unix_now()).is_ok() {
            let current = None;
            self.records
                .insert(family.clone(), Record { current, until });
        }
    }

    fn make_room(&mut self, now: i64) -> Result<(), Away> {
        let swept = self.swept.is_some_and(|at| at.elapsed() < SWEEP_EVERY);
        if self.records.len() >= self.most && !swept {
            self.records.retain(|_, record| record.until > now);
            self.swept = Some(Instant::now());
        }
        match self.records.len() < self.most {
            true => Ok(()),
            false => Err(Away),
        }
    }
}

fn carried((family, record): (&Family, &Record)) -> CarriedFamily {
    CarriedFamily {
        name: family.name().to_owned(),
        current: record.current.clone(),
        until: record.until,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (Memory, Family, i64) {
        let family = Family::named("f1").unwrap();
        (Memory::new(2), family, unix_now() + 100)
    }

    fn token<'a>(family: &'a Family, id: Option<&'a str>) -> Presented<'a> {
        let expires = unix_now() + 100;
        Presented {
            family,
            id,
            expires,
        }
    }

    #[test]
    fn a_family_goes_from_one_token_to_the_next_and_ends_when_one_comes_again() {
        let (mut memory, family, until) = memory();
        let mut rotate = |id, next| memory.rotate(&token(&family, id), next, until);
        assert_eq!(rotate(Some("a"), "b"), Ok(Verdict::Unknown));
        assert_eq!(rotate(None, "a"), Ok(Verdict::Rotated));
        assert_eq!(rotate(Some("a"), "b"), Ok(Verdict::Rotated));
        assert_eq!(rotate(Some("a"), "c"), Ok(Verdict::Reused));
        assert_eq!(rotate(Some("b"), "c"), Ok(Verdict::Dead));
        assert_eq!(rotate(None, "c"), Ok(Verdict::Dead));
    }

    #[test]
    fn the_first_token_begins_a_family_once() {
        let (mut memory, family, until) = memory();
        let mut rotate = |id, next| memory.rotate(&token(&family, id), next, until);
        assert_eq!(rotate(None, "a"), Ok(Verdict::Rotated));
        assert_eq!(rotate(None, "b"), Ok(Verdict::Reused));
        assert_eq!(rotate(Some("a"), "b"), Ok(Verdict::Dead));
    }

    #[test]
    fn a_family_that_was_ended_does_not_begin() {
        let (mut memory, family, until) = memory();
        memory.end(&family, until);
        let verdict = memory.rotate(&token(&family, None), "a", until);
        assert_eq!(verdict, Ok(Verdict::Dead));
    }

    #[test]
    fn a_full_memory_forgets_no_family_and_begins_none() {
        let (mut memory, family, until) = memory();
        let [second, third] = ["f2", "f3"].map(|name| Family::named(name).unwrap());
        let ended = unix_now() - 1;
        for (family, until) in [(&family, until), (&second, ended)] {
            let verdict = memory.rotate(&token(family, None), "a", until);
            assert_eq!(verdict, Ok(Verdict::Rotated));
        }
        let begins = memory.rotate(&token(&third, None), "a", until);
        assert_eq!(begins, Ok(Verdict::Rotated), "the second one has ended");
        let begins = memory.rotate(&token(&second, None), "a", until);
        assert_eq!(begins, Err(Away));
        let goes_on = memory.rotate(&token(&family, Some("a")), "b", until);
        assert_eq!(goes_on, Ok(Verdict::Rotated));
    }

    #[test]
    fn the_next_process_goes_on_with_every_family_and_hears_of_those_that_changed_meanwhile() {
        let (mut old, family, until) = memory();
        let (mut new, ..) = memory();
        let ended = Family::named("f2").unwrap();
        old.rotate(&token(&family, None), "a", until).unwrap();
        assert_eq!(new.take_over(old.carried()), 1);
        old.rotate(&token(&family, Some("a")), "b", until).unwrap();
        old.end(&ended, until);
        assert_eq!(new.take_over(old.carried_changes()), 2);
        let verdict = new.rotate(&token(&family, Some("b")), "c", until);
        assert_eq!(verdict, Ok(Verdict::Rotated));
        let verdict = new.rotate(&token(&ended, None), "a", until);
        assert_eq!(verdict, Ok(Verdict::Dead));
    }
}
