//! What is out of date: a bounded table of when each tag was last said to be. An answer holds while none of its tags was
//! said to be out of date since it was asked for; so answers that are still on their way are met as well, and an
//! invalidation costs the same however many answers it concerns.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use sha2::{Digest, Sha256};

/// Times are microseconds since 1970, and no two of one process are the same.
pub struct Invalid {
    last: AtomicU64,
    /// When what falls on this place was last said to be out of date.
    places: Box<[AtomicU64]>,
    /// All that was asked for before.
    all: AtomicU64,
    prefixes: RwLock<VecDeque<Prefix>>,
    /// When the latest prefix was added.
    latest_prefix: AtomicU64,
}

/// A place in the table: of a tag, and of whatever else falls there. The same in every process.
pub type Place = u16;

/// What a purge by prefix said.
#[derive(Clone, Debug)]
struct Prefix {
    at: u64,
    tenant: Option<Box<[u8]>>,
    prefix: Box<str>,
}

/// Whose, and where it was asked for: what a prefix looks at.
pub struct Whereabouts<'a> {
    pub tenant: &'a [u8],
    pub path: &'a str,
    pub target: &'a str,
}

/// So many that two tags seldom share one. Sharing costs a fetch.
const PLACES: usize = 1 << 16;

/// Clocks of processes differ by less.
pub const SKEW: u64 = 2_000_000;

/// More purges by prefix than this at once, and everything is out of date.
const MOST_PREFIXES: usize = 64;

// === impl Invalid ===

impl Default for Invalid {
    fn default() -> Self {
        Self {
            last: AtomicU64::new(0),
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            all: AtomicU64::new(0),
            prefixes: RwLock::default(),
            latest_prefix: AtomicU64::new(0),
        }
    }
}

impl Invalid {
    /// A moment after all those that were given out before.
    pub fn now(&self) -> u64 {
        let now = unix_micros();
        let next = |last: u64| Some(now.max(last + 1));
        match self.last.fetch_update(SeqCst, SeqCst, next) {
            Ok(last) | Err(last) => now.max(last + 1),
        }
    }

    /// Whether nothing that was asked for at `since` was said to be out of date.
    pub fn is_good(&self, since: u64, places: &[Place], whereabouts: &Whereabouts<'_>) -> bool {
        self.all.load(SeqCst) < since
            && places
                .iter()
                .all(|place| self.places[usize::from(*place)].load(SeqCst) < since)
            && (self.latest_prefix.load(SeqCst) < since || !self.is_purged(since, whereabouts))
    }

    fn is_purged(&self, since: u64, whereabouts: &Whereabouts<'_>) -> bool {
        let prefixes = self.prefixes.read();
        let mut since_then = prefixes.iter().filter(|prefix| prefix.at >= since);
        since_then.any(|prefix| covers(prefix.tenant.as_deref(), &prefix.prefix, whereabouts))
    }

    pub fn tag(&self, place: Place, at: u64) {
        self.places[usize::from(place)].fetch_max(at, SeqCst);
    }

    pub fn prefix(&self, tenant: Option<&[u8]>, prefix: &str, at: u64) {
        let mut prefixes = self.prefixes.write();
        if prefixes.len() >= MOST_PREFIXES
            && let Some(oldest) = prefixes.pop_front()
        {
            self.all.fetch_max(oldest.at, SeqCst);
        }
        prefixes.push_back(Prefix {
            at,
            tenant: tenant.map(Into::into),
            prefix: prefix.into(),
        });
        self.latest_prefix.fetch_max(at, SeqCst);
    }

    pub fn all(&self, at: u64) {
        self.all.fetch_max(at, SeqCst);
    }
}

pub fn covers(tenant: Option<&[u8]>, prefix: &str, whereabouts: &Whereabouts<'_>) -> bool {
    tenant.is_none_or(|tenant| tenant == whereabouts.tenant)
        && (whereabouts.path.starts_with(prefix) || whereabouts.target.starts_with(prefix))
}

/// Where a tag falls; `tenant`: `None` for that of all tenants together.
pub fn place(tenant: Option<&[u8]>, kind: Kind, text: &str) -> Place {
    let mut digest = Sha256::new();
    digest.update([kind as u8, u8::from(tenant.is_some())]);
    let tenant = tenant.unwrap_or_default();
    digest.update((tenant.len() as u64).to_be_bytes());
    digest.update(tenant);
    digest.update(text);
    let digest = digest.finalize();
    Place::from_be_bytes([digest[0], digest[1]])
}

/// What a place is of.
#[derive(Clone, Copy)]
pub enum Kind {
    Tag = 1,
    /// A path, the client's or the service's, without its query.
    Path = 2,
}

pub fn unix_micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Whereabouts<'_> {
        Whereabouts {
            tenant: b"t1",
            path,
            target: path,
        }
    }

    #[test]
    fn what_was_asked_for_before_is_out_of_date_and_what_is_asked_for_after_is_not() {
        let invalid = Invalid::default();
        let place = place(Some(b"t1"), Kind::Tag, "event:1");
        let before = invalid.now();
        invalid.tag(place, invalid.now());
        let after = invalid.now();
        assert!(!invalid.is_good(before, &[7, place], &at("/a")));
        assert!(invalid.is_good(before, &[place ^ 1], &at("/a")));
        assert!(invalid.is_good(after, &[place], &at("/a")));
    }

    #[test]
    fn a_prefix_is_of_its_tenant_and_too_many_of_them_are_all() {
        let invalid = Invalid::default();
        let before = invalid.now();
        invalid.prefix(Some(b"t2"), "/a", invalid.now());
        assert!(invalid.is_good(before, &[], &at("/a/b")));
        invalid.prefix(Some(b"t1"), "/a", invalid.now());
        assert!(!invalid.is_good(before, &[], &at("/a/b")));
        assert!(invalid.is_good(before, &[], &at("/b")));
        for i in 0..MOST_PREFIXES {
            invalid.prefix(None, &format!("/other/{i}"), invalid.now());
        }
        assert!(!invalid.is_good(before, &[], &at("/b")));
        assert!(invalid.is_good(invalid.now(), &[], &at("/b")));
    }
}
