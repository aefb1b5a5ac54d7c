//! What was answered before is answered again (RFC 9111): a shared cache for GET and HEAD on routes that say so, after all
//! policies (docs/decisions/0022-response-cache.md).
//!
//! Fresh answers are given by [`serve`], before Pingora's cache has begun; who misses goes on to that, whose state machine
//! lets one ask for all, asks for stale answers anew, and gives them where there is no new one. `freshness` decides what
//! may be kept and for whom, `key` what tells one answer from another, `invalid` what is out of date.

mod alone;
mod conditional;
mod config;
mod directives;
mod entry;
mod freshness;
mod invalid;
mod invalidate;
mod key;
mod phases;
pub mod purge;
mod serve;
mod status;
mod storage;
mod store;
mod tier;
mod told;
mod wanted;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use pingora_cache::NoCacheReason;

pub use conditional::is_not_modified as is_up_to_date;
pub use config::{About, CacheConfig, Classes, RouteCacheConfig, Tag, compile_tags, fingerprint};
pub use invalidate::by_answer as invalidate;
pub use phases::{
    asks, begin, is_not_modified, judge_answer, judge_found, key_of, note_answer, range, release,
    stamp, stand_in, stands_in,
};
pub use serve::answer;
pub use store::Store;
pub use tier::Tier;
pub use told::{CatchUp, Listens, Told};

use directives::Asked;
use entry::Entry;
use wanted::Wanted;

/// What decides, for who tries it on whatever bytes come.
#[cfg(any(fuzzing, test))]
pub mod parts {
    pub use super::conditional::{Part, is_not_modified, part};
    pub use super::directives::{Answered, Asked};
    pub use super::freshness::Exchange;
}

/// The cache, for the policies in force.
pub struct Caching {
    pub store: Arc<Store>,
    /// One answer's octets.
    pub largest: usize,
}

/// What a route says of its answers. Times are seconds.
#[derive(Debug, Default)]
pub struct RouteCache {
    /// Of those that name none.
    pub life: Option<u64>,
    authorized: bool,
    pub stale_while_revalidate: u64,
    pub stale_if_error: u64,
    tags: Box<[Tag]>,
    /// Of its keys in Redis.
    prefix: Box<str>,
    /// Of all that decides what is kept: what was kept by another configuration is not found.
    fingerprint: u64,
}

/// A request that the cache has to do with.
pub struct Cached {
    /// Nothing: it goes on without the cache.
    wanted: Option<Arc<Wanted>>,
    asked: Asked,
    /// What its backend says of an answer that is kept.
    not_modified: Option<HeaderMap>,
    /// When the backend was asked.
    sent: Option<Instant>,
    /// Why the answer is not kept, or that it is.
    kept: Kept,
    /// A stale answer stands in for one that nobody gives.
    stands_in: bool,
    /// Answers are kept of what it asks for, to requests that said something else.
    has_others: bool,
    largest: usize,
    /// Its client was answered already: [`crate::inner::revalidation`].
    pub is_behind: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Unknown,
    Yes,
    No(NoCacheReason),
}

/// Nothing is kept for longer.
pub const LONGEST_LIFE: Duration = Duration::from_secs(86_400);

// === impl RouteCache ===

impl RouteCache {
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

// === impl Cached ===

impl Cached {
    fn of(wanted: Wanted, asked: Asked, largest: usize) -> Box<Self> {
        Box::new(Self {
            wanted: Some(Arc::new(wanted)),
            largest,
            ..*Self::without(asked)
        })
    }

    /// Goes on without the cache, as the client asks for it.
    fn without(asked: Asked) -> Box<Self> {
        Box::new(Self {
            wanted: None,
            asked,
            not_modified: None,
            sent: None,
            kept: Kept::Unknown,
            stands_in: false,
            has_others: false,
            largest: 0,
            is_behind: false,
        })
    }
}

/// Whether a stale answer may be given while it is asked for anew (RFC 5861, section 3).
fn suits_meanwhile(entry: &Entry, asked: &Asked, now: u64) -> bool {
    let head = &entry.head;
    let left = head.left(now);
    let is_picky = asked.no_cache || asked.max_age.is_some() || asked.min_fresh.is_some();
    left <= 0
        && left.unsigned_abs() < head.times.while_revalidate
        && !is_picky
        && !head.times.never_stale
}

/// Whether an answer satisfies what the request asks of its age (RFC 9111, section 5.2.1).
fn suits(entry: &Entry, asked: &Asked, now: u64) -> bool {
    let head = &entry.head;
    let (left, age) = (head.left(now), head.age(now));
    let millis = |seconds: u64| seconds.saturating_mul(1000);
    if asked.no_cache || asked.max_age.is_some_and(|most| age > millis(most)) {
        return false;
    }
    if left > 0 {
        return asked
            .min_fresh
            .is_none_or(|least| left.unsigned_abs() >= millis(least));
    }
    let is_taken = asked
        .max_stale
        .is_some_and(|most| left.unsigned_abs() <= millis(most));
    is_taken && !head.times.never_stale
}
