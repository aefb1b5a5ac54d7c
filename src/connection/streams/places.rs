//! How many streams has this caller open? Exact, however many ask at once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::admit::auth::{Caller, Source};

/// Who is counted; no more of them than there are places taken.
#[derive(Default)]
pub struct Places {
    taken: Mutex<HashMap<Holder, u32, ahash::RandomState>>,
}

/// A caller, or an address where nobody was identified.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Holder {
    Caller(Source, Box<str>),
    Address(IpAddr),
}

/// One of a caller's places, given back on drop.
pub struct Place {
    /// `None`: they are not counted.
    held: Option<(Arc<Places>, Holder)>,
}

/// The caller has as many streams open as it may.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyStreams;

impl Places {
    /// `most`: 0 is any number.
    ///
    /// # Errors
    /// When the caller has none left.
    pub fn take(self: &Arc<Self>, holder: Holder, most: u32) -> Result<Place, TooManyStreams> {
        if most == 0 {
            return Ok(Place { held: None });
        }
        let mut taken = self.taken.lock();
        let count = taken.entry(holder.clone()).or_default();
        if *count >= most {
            return Err(TooManyStreams);
        }
        *count += 1;
        Ok(Place {
            held: Some((self.clone(), holder)),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((places, holder)) = self.held.take() else {
            return;
        };
        if let Entry::Occupied(mut entry) = places.taken.lock().entry(holder) {
            match *entry.get() {
                ..=1 => drop(entry.remove()),
                count => *entry.get_mut() = count - 1,
            }
        }
    }
}

impl Holder {
    pub fn of(caller: Option<&Caller>, client: IpAddr) -> Self {
        match caller {
            Some(caller) => Self::Caller(caller.source, caller.id.clone()),
            None => Self::Address(client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_places_than_there_are_and_each_comes_back() {
        let places = Arc::new(Places::default());
        let holder = |id: &str| Holder::Caller(Source::Jwt, id.into());
        let first = places.take(holder("a"), 2).ok();
        let second = places.take(holder("a"), 2).ok();
        assert!(first.is_some() && second.is_some());
        assert!(places.take(holder("a"), 2).is_err());
        assert!(places.take(holder("b"), 2).is_ok());
        assert!(
            places
                .take(Holder::Caller(Source::ApiKey, "a".into()), 2)
                .is_ok()
        );
        drop(first);
        let third = places.take(holder("a"), 2);
        assert!(third.is_ok());
        drop((second, third));
        assert!(places.taken.lock().is_empty(), "nothing is left of them");
    }

    #[test]
    fn many_at_once_get_no_more() {
        let places = Arc::new(Places::default());
        let holder = || Holder::Address(IpAddr::from([127, 0, 0, 1]));
        let take_ten = || -> Vec<Place> {
            (0..10)
                .filter_map(|_| places.take(holder(), 20).ok())
                .collect()
        };
        let held: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8).map(|_| scope.spawn(take_ten)).collect();
            let held: Vec<_> = takers
                .into_iter()
                .map(|taker| taker.join().unwrap())
                .collect();
            held.iter().map(Vec::len).sum()
        });
        assert_eq!(held, 20);
    }
}
