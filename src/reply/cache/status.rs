//! `Cache-Status`: how the cache handled a request (RFC 9211).

use http::header::AGE;
use http::{HeaderMap, HeaderName, HeaderValue};
use once_cell::sync::Lazy;
use pingora_cache::{CachePhase, HttpCache};

use super::entry::{Head, unix_millis};
use super::{Cached, Kept};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// As this cache calls itself.
const NAME: &str = "api-gateway";

/// What became of requests, for their count: in the order of [`CacheMetrics::requests`].
///
/// [`CacheMetrics::requests`]: crate::observe::registry::CacheMetrics::requests
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Hit = 0,
    Stale = 1,
    Revalidated = 2,
    Miss = 3,
    Bypass = 4,
}

/// Fields of hits, by their seconds: most were made before.
struct Made(Vec<HeaderValue>);

static AGES: Lazy<Made> = Lazy::new(|| Made::of(|seconds| seconds.to_string()));
static HITS: Lazy<Made> = Lazy::new(|| Made::of(|seconds| format!("{NAME}; hit; ttl={seconds}")));

/// That of the longest class, as it is documented.
const MOST_MADE: u64 = 3600;

impl Made {
    fn of(text: impl Fn(u64) -> String) -> Self {
        let value =
            |seconds| HeaderValue::try_from(text(seconds)).expect("numbers are a header value");
        // A clone of a shared value costs a count; that of a fresh one would first have to make it shared.
        let shared = |value: &HeaderValue| drop(value.clone());
        Self((0..=MOST_MADE).map(value).inspect(shared).collect())
    }

    fn at(&self, seconds: i64) -> Option<HeaderValue> {
        self.0.get(usize::try_from(seconds).ok()?).cloned()
    }
}

/// It was answered from what is kept.
pub fn hit(fields: &mut HeaderMap, head: &Head, now: u64, detail: Option<&str>) {
    let ttl = head.left(now).div_euclid(1000);
    let made = HITS.at(ttl).filter(|_| detail.is_none());
    match (made, detail) {
        (Some(made), _) => drop(fields.append(CACHE_STATUS, made)),
        (None, None) => put(fields, &format!("{NAME}; hit; ttl={ttl}")),
        (None, Some(detail)) => put(fields, &format!("{NAME}; hit; ttl={ttl}; detail={detail}")),
    }
}

/// It did not end before Pingora's cache began.
pub fn forwarded(
    fields: &mut HeaderMap,
    cached: &Cached,
    head: Option<&Head>,
    cache: &HttpCache,
) -> Outcome {
    use CachePhase as P;
    let (text, outcome) = match (cache.phase(), head) {
        (P::Hit | P::Stale | P::StaleUpdating, Some(head)) if cached.stands_in => {
            hit(fields, head, unix_millis(), Some("stale-if-error"));
            return Outcome::Stale;
        }
        // It stood in Redis.
        (P::Hit, Some(head)) if cache.lock_duration().is_none() => {
            hit(fields, head, unix_millis(), None);
            return Outcome::Hit;
        }
        // Another one had asked for it.
        (P::Hit | P::Stale | P::StaleUpdating, _) => {
            (format!("{NAME}; fwd=miss; collapsed"), Outcome::Hit)
        }
        (P::Revalidated | P::RevalidatedNoCache(_), _) => (
            format!("{NAME}; fwd=stale; fwd-status=304"),
            Outcome::Revalidated,
        ),
        (P::Expired, _) => (
            format!("{NAME}; fwd=stale{}", stored(cached)),
            Outcome::Miss,
        ),
        _ if cached.wanted.is_none() => (format!("{NAME}; fwd=request"), Outcome::Bypass),
        _ => {
            let why = if cached.has_others {
                "vary-miss"
            } else {
                "uri-miss"
            };
            (
                format!("{NAME}; fwd={why}{}", stored(cached)),
                Outcome::Miss,
            )
        }
    };
    put(fields, &text);
    outcome
}

fn stored(cached: &Cached) -> &'static str {
    match cached.kept {
        Kept::Yes => "; stored",
        Kept::Unknown | Kept::No(_) => "",
    }
}

/// Behind those of the caches before us (section 2).
fn put(fields: &mut HeaderMap, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        fields.append(CACHE_STATUS, value);
    }
}

pub fn age(fields: &mut HeaderMap, head: &Head, now: u64) {
    let seconds = head.age(now) / 1000;
    let made = AGES.at(i64::try_from(seconds).unwrap_or(i64::MAX));
    fields.insert(AGE, made.unwrap_or_else(|| seconds.into()));
}
