//! An answer that is kept: its head as it goes out, what decides whose it is and how long it is good, and its body.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::header::{
    AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, TE, TRAILER,
    TRANSFER_ENCODING, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::invalid::{Place, Whereabouts, unix_micros};
use crate::admit::request_id::X_REQUEST_ID;
use crate::reply;

/// What is kept of an answer beside its body.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: StatusCode,
    /// Without what belongs to the connection or to the request that it answered.
    pub fields: HeaderMap,
    /// What the request said in the fields that `Vary` names.
    pub vary: Box<[Varied]>,
    /// When it was asked for, as [`super::invalid::Invalid::now`] has it.
    pub since: u64,
    /// When it came; milliseconds since 1970.
    pub at: u64,
    /// How old it was then; milliseconds.
    pub age: u64,
    pub times: Times,
    pub is_for_all: bool,
    pub whose: Whose,
}

/// How long it is good, from its making; milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub life: u64,
    pub while_revalidate: u64,
    pub if_error: u64,
    /// It is never used stale, whoever would take it.
    pub never_stale: bool,
}

/// Where it was asked for, for invalidations.
#[derive(Clone, Debug, Default)]
pub struct Whose {
    pub tenant: Box<[u8]>,
    /// The client's path and query.
    pub path: Box<str>,
    /// Those at the service.
    pub target: Box<str>,
    pub places: Box<[Place]>,
}

/// A field of the request that chose it, and what that said; nothing: it was not there.
pub type Varied = (HeaderName, Option<Box<[u8]>>);

#[derive(Debug)]
pub struct Entry {
    pub head: Head,
    pub body: Bytes,
    /// Until when somebody is asking for it anew; milliseconds since 1970.
    revalidated_until: AtomicU64,
}

/// Beside the octets of an entry: its allocations, and its place in the table.
const OVERHEAD: usize = 512;

/// What a field takes beside its octets.
const FIELD: usize = 96;

// === impl Entry ===

impl Entry {
    pub fn new(mut head: Head, body: Bytes) -> Self {
        // Room for what is stamped on each copy, so that none has to be made anew for it.
        head.fields.reserve(reply::STAMPS);
        Self {
            head,
            body,
            revalidated_until: AtomicU64::new(0),
        }
    }

    /// How many octets it takes.
    pub fn weight(&self) -> usize {
        let Head {
            fields,
            vary,
            whose,
            ..
        } = &self.head;
        let fields: usize = fields
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + FIELD)
            .sum();
        let varied: usize = vary
            .iter()
            .map(|(_, value)| FIELD + value.as_ref().map_or(0, |value| value.len()))
            .sum();
        let whose =
            whose.tenant.len() + whose.path.len() + whose.target.len() + 2 * whose.places.len();
        OVERHEAD + fields + varied + whose + self.body.len()
    }

    /// Whether its asker is the one that asks for it anew; for the next `patience` nobody else is.
    pub fn begin_revalidation(&self, now: u64, patience: u64) -> bool {
        let until = self.revalidated_until.load(Relaxed);
        until <= now
            && self
                .revalidated_until
                .compare_exchange(until, now + patience, Relaxed, Relaxed)
                .is_ok()
    }
}

// === impl Head ===

impl Head {
    /// Milliseconds (RFC 9111, section 4.2.3).
    pub fn age(&self, now: u64) -> u64 {
        self.age + now.saturating_sub(self.at)
    }

    /// For how long it is fresh; milliseconds, below nothing when it was.
    pub fn left(&self, now: u64) -> i64 {
        let (life, age) = (self.times.life, self.age(now));
        i64::try_from(life).unwrap_or(i64::MAX) - i64::try_from(age).unwrap_or(i64::MAX)
    }

    pub fn whereabouts(&self) -> Whereabouts<'_> {
        Whereabouts {
            tenant: &self.whose.tenant,
            path: &self.whose.path,
            target: &self.whose.target,
        }
    }

    /// Whether it is an answer to a request with these fields (RFC 9111, section 4.1).
    pub fn is_for(&self, request: &HeaderMap) -> bool {
        self.vary
            .iter()
            .all(|(name, value)| says(request, name, value.as_deref()))
    }
}

/// Whether that is what a request says in a field. Most say it as it was said before.
fn says(request: &HeaderMap, name: &HeaderName, before: Option<&[u8]>) -> bool {
    let mut lines = request.get_all(name).iter();
    match (lines.next(), lines.next(), before) {
        (None, ..) => before.is_none(),
        (Some(_), _, None) => false,
        (Some(line), None, Some(before)) if line.as_bytes() == before => true,
        (Some(_), _, Some(before)) => said(request, name).is_some_and(|said| *said == *before),
    }
}

/// What a request says in a field, its lines put together and without space around its commas; nothing when it is not there.
pub fn said(request: &HeaderMap, name: &HeaderName) -> Option<Box<[u8]>> {
    let mut lines = request.get_all(name).iter().peekable();
    lines.peek()?;
    let mut text = Vec::new();
    for line in lines {
        for part in line.as_bytes().split(|b| *b == b',') {
            let part = part.trim_ascii();
            if part.is_empty() {
                continue;
            }
            if !text.is_empty() {
                text.push(b',');
            }
            text.extend_from_slice(part);
        }
    }
    Some(text.into())
}

/// The fields that `Vary` names, with what the request says in them; nothing where no later request is the same.
pub fn varied(answer: &HeaderMap, request: &HeaderMap) -> Option<Box<[Varied]>> {
    /// An answer that depends on more is kept for nobody.
    const MOST: usize = 16;
    let mut varied: Vec<Varied> = Vec::new();
    for line in answer.get_all(VARY) {
        for name in line.to_str().ok()?.split(',') {
            let name = name.trim();
            if name.is_empty() {
                continue;
            }
            // `*` is no name: then it depends on what no request says.
            let name = HeaderName::try_from(name).ok().filter(|name| name != "*")?;
            if is_ours(name.as_str()) {
                return None;
            }
            if !varied.iter().any(|(known, _)| *known == name) {
                let said = said(request, &name);
                varied.push((name, said));
            }
        }
    }
    (varied.len() <= MOST).then(|| varied.into())
}

/// A field that we say to backends, whatever the request says in it: a later one cannot be compared.
fn is_ours(name: &str) -> bool {
    matches!(
        name,
        "x-forwarded-for"
            | "x-original-ip"
            | "x-request-id"
            | "x-request-deadline"
            | "x-tenant-source"
            | "x-client-cert-subject"
            | "traceparent"
    )
}

/// Takes out of an answer what is not for keeping (RFC 9111, section 3.1), or is stamped anew on each.
pub fn scrub(fields: &mut HeaderMap) {
    reply::scrub(fields);
    for name in [
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        AGE,
        X_REQUEST_ID,
    ] {
        fields.remove(name);
    }
    for name in [
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ] {
        fields.remove(name);
    }
}

/// Brings a kept head up to date with what a 304 says (RFC 9111, sections 3.2 and 4.3.4). `false`: it speaks of another one.
pub fn refresh(kept: &mut HeaderMap, not_modified: &HeaderMap) -> bool {
    let strong = |etag: &&HeaderValue| !etag.as_bytes().starts_with(b"W/");
    if let Some(etag) = not_modified.get(ETAG).filter(strong)
        && kept.get(ETAG).is_some_and(|known| known != etag)
    {
        return false;
    }
    let mut news = not_modified.clone();
    scrub(&mut news);
    for name in [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE] {
        news.remove(name);
    }
    for name in news.keys() {
        kept.remove(name);
    }
    for (name, value) in &news {
        kept.append(name.clone(), value.clone());
    }
    true
}

pub fn unix_millis() -> u64 {
    unix_micros() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::{ACCEPT, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_TYPE};

    fn fields(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            fields.append(name.clone(), HeaderValue::from_static(value));
        }
        fields
    }

    #[test]
    fn variants_are_told_by_what_requests_say_and_not_by_how_they_spell_it() {
        let answer = fields(&[(VARY, "Accept, accept-language"), (VARY, "accept")]);
        let request = fields(&[(ACCEPT, "a , b"), (ACCEPT, "c")]);
        let varied = varied(&answer, &request).unwrap();
        assert_eq!(varied.len(), 2);
        let same = fields(&[(ACCEPT, "a,b,c")]);
        let is_for = |request: &HeaderMap| {
            varied
                .iter()
                .all(|(name, value)| said(request, name).as_deref() == value.as_deref())
        };
        assert!(is_for(&same));
        assert!(!is_for(&fields(&[
            (ACCEPT, "a,b,c"),
            (ACCEPT_LANGUAGE, "")
        ])));
        assert!(!is_for(&fields(&[(ACCEPT, "b,a,c")])));
    }

    #[test]
    fn what_varies_with_anything_is_for_nobody_else() {
        for line in ["*", "accept, *", "not a name", "X-Forwarded-For"] {
            let mut answer = HeaderMap::new();
            answer.insert(VARY, HeaderValue::from_str(line).unwrap());
            assert_eq!(varied(&answer, &HeaderMap::new()), None, "{line}");
        }
    }

    #[test]
    fn a_304_renews_every_field_but_those_of_the_body() {
        let mut kept = fields(&[
            (ETAG, "\"1\""),
            (CONTENT_LENGTH, "5"),
            (CONTENT_TYPE, "a/b"),
            (CACHE_CONTROL, "max-age=1"),
        ]);
        let news = fields(&[
            (ETAG, "\"1\""),
            (CONTENT_LENGTH, "0"),
            (CACHE_CONTROL, "max-age=9"),
            (CACHE_CONTROL, "public"),
        ]);
        assert!(refresh(&mut kept, &news));
        assert_eq!(kept[CONTENT_LENGTH], "5");
        assert_eq!(kept[CONTENT_TYPE], "a/b");
        let lines: Vec<_> = kept.get_all(CACHE_CONTROL).iter().collect();
        assert_eq!(lines, ["max-age=9", "public"]);
        assert!(!refresh(&mut kept, &fields(&[(ETAG, "\"2\"")])));
        assert!(refresh(&mut kept, &fields(&[(ETAG, "W/\"2\"")])));
    }
}
