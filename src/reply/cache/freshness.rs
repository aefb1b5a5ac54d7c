//! May an answer be kept, for whom, and how long is it good? (RFC 9111, sections 3 and 4.2.)

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{AGE, CONTENT_RANGE, DATE, EXPIRES, SET_COOKIE};
use http::{HeaderMap, HeaderName, StatusCode};

use super::directives::Answered;
use super::entry::Times;
use super::{LONGEST_LIFE, RouteCache};
use crate::connection::streams;

/// What an answer may be used for.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub times: Times,
    /// Also for other callers of the same tenant.
    pub is_for_all: bool,
    /// How old it was when it came; milliseconds.
    pub age: u64,
}

/// Why an answer is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// The next one will say so again.
    Always(&'static str),
    /// It may be otherwise the next time.
    Now(&'static str),
}

/// How an answer came about.
pub struct Exchange<'a> {
    pub route: &'a RouteCache,
    pub status: StatusCode,
    /// It answers one who has shown credentials.
    pub has_credentials: bool,
    /// Nobody knows whose they are, so that it cannot be kept for them alone.
    pub is_unidentified: bool,
    /// From the request to its head; milliseconds.
    pub took: u64,
    /// Milliseconds since 1970.
    pub now: u64,
}

impl Exchange<'_> {
    /// # Errors
    /// When the answer is not to be kept.
    pub fn judge(&self, fields: &HeaderMap) -> Result<Verdict, NotKept> {
        use NotKept::{Always, Now};
        if !is_understood(self.status) {
            return Err(Now("status"));
        }
        let (says, is_targeted) = Answered::of(fields);
        // The last word, `must-understand` beside it or not.
        if says.no_store {
            return Err(Always("no-store"));
        }
        if says.private {
            return Err(Always("private"));
        }
        if fields.contains_key(SET_COOKIE) {
            return Err(Always("set-cookie"));
        }
        if fields.contains_key(CONTENT_RANGE) || streams::is_events(fields) {
            return Err(Always("type"));
        }
        // Section 3.5.
        let is_permitted = says.public || says.s_maxage.is_there() || says.must_revalidate;
        if self.has_credentials && !is_permitted && !self.route.authorized {
            return Err(Always("authorization"));
        }
        if self.has_credentials && self.is_unidentified && !says.public {
            return Err(Always("credentials"));
        }
        let life = self
            .life(fields, &says, is_targeted)
            .ok_or(Always("no lifetime"))?;
        let has_validator = fields.contains_key(http::header::ETAG)
            || fields.contains_key(http::header::LAST_MODIFIED);
        let life = if says.no_cache { 0 } else { life };
        // What is stale from the beginning is kept only where asking anew is cheaper than asking.
        if life == 0 && !has_validator {
            return Err(Always("stale"));
        }
        Ok(Verdict {
            times: self.times(&says, life),
            is_for_all: says.public,
            age: self.age(fields),
        })
    }

    /// Seconds (section 4.2.1); nothing where neither the answer nor the route names any. There are no heuristics.
    fn life(&self, fields: &HeaderMap, says: &Answered, is_targeted: bool) -> Option<u64> {
        let explicit = says.s_maxage.or_none().or_else(|| says.max_age.or_none());
        let explicit = explicit.or_else(|| match is_targeted {
            true => None,
            false => expires(fields, self.now),
        });
        // Without an own word about it, only what is good in itself.
        let class = || self.route.life.filter(|_| is_good_by_itself(self.status));
        let zero = || says.no_cache.then_some(0);
        let life = explicit.or_else(class).or_else(zero)?;
        Some(life.min(LONGEST_LIFE.as_secs()))
    }

    fn times(&self, says: &Answered, life: u64) -> Times {
        // Sections 5.2.2.2, 5.2.2.4, 5.2.2.8 and 5.2.2.10.
        let never_stale = says.must_revalidate
            || says.proxy_revalidate
            || says.s_maxage.is_there()
            || says.no_cache;
        let limit = LONGEST_LIFE.as_secs();
        let while_revalidate = says.stale_while_revalidate.or_none();
        let if_error = says.stale_if_error.or_none();
        let stale = |given: Option<u64>, usual: u64| match never_stale {
            true => 0,
            false => given.unwrap_or(usual).min(limit) * 1000,
        };
        Times {
            life: life * 1000,
            while_revalidate: stale(while_revalidate, self.route.stale_while_revalidate),
            if_error: stale(if_error, self.route.stale_if_error),
            never_stale,
        }
    }

    /// How old it was when it came; milliseconds (section 4.2.3).
    pub fn age(&self, fields: &HeaderMap) -> u64 {
        let date = date(fields, &DATE).unwrap_or(self.now);
        // A `Date` has whole seconds.
        let apparent = self.now.saturating_sub(date) / 1000 * 1000;
        let told = fields.get(AGE).and_then(|age| {
            let age = age.to_str().ok()?.split(',').next()?.trim();
            let is_number = !age.is_empty() && age.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| {
                age.parse()
                    .unwrap_or(u64::from(u32::MAX))
                    .min(u64::from(u32::MAX))
            })
        });
        apparent.max(told.unwrap_or_default() * 1000 + self.took)
    }
}

/// Final statuses whose meaning for a cache is known here (section 3).
pub fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 302 | 303 | 307 | 308 | 404 | 405 | 410 | 414
    )
}

/// Those that may be kept for the route's time, although they name none.
fn is_good_by_itself(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 300 | 301 | 308)
}

/// Seconds from `Date` to `Expires`; what cannot be read is over (section 5.3).
fn expires(fields: &HeaderMap, now: u64) -> Option<u64> {
    let mut lines = fields.get_all(EXPIRES).iter();
    lines.next()?;
    let until = date(fields, &EXPIRES).filter(|_| lines.next().is_none());
    let made = date(fields, &DATE).unwrap_or(now);
    Some(until.map_or(0, |until| until.saturating_sub(made) / 1000))
}

/// Milliseconds since 1970, of a date in one of the three forms of RFC 9110, section 5.6.7.
pub fn date(fields: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let time: SystemTime = httpdate::parse_http_date(fields.get(name)?.to_str().ok()?).ok()?;
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::{CACHE_CONTROL, ETAG};

    const NOW: u64 = 784_111_777_000; // Sun, 06 Nov 1994 08:49:37 GMT

    fn route() -> RouteCache {
        RouteCache::default()
    }

    fn judged(
        route: &RouteCache,
        has_credentials: bool,
        pairs: &[(HeaderName, &'static str)],
    ) -> Result<Verdict, NotKept> {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            fields.append(name.clone(), HeaderValue::from_static(value));
        }
        let exchange = Exchange {
            route,
            status: StatusCode::OK,
            has_credentials,
            is_unidentified: false,
            took: 0,
            now: NOW,
        };
        exchange.judge(&fields)
    }

    fn life(pairs: &[(HeaderName, &'static str)]) -> Option<u64> {
        Some(judged(&route(), false, pairs).ok()?.times.life / 1000)
    }

    #[test]
    fn lifetimes_come_from_the_first_that_names_one() {
        let date = (DATE, "Sun, 06 Nov 1994 08:49:37 GMT");
        let expires = (EXPIRES, "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(life(&[(CACHE_CONTROL, "max-age=5, s-maxage=7")]), Some(7));
        assert_eq!(
            life(&[(CACHE_CONTROL, "max-age=5"), expires.clone()]),
            Some(5)
        );
        assert_eq!(life(&[date.clone(), expires]), Some(60));
        assert_eq!(life(&[(EXPIRES, "0"), (ETAG, "\"a\"")]), Some(0));
        assert_eq!(
            life(&[(EXPIRES, "0")]),
            None,
            "stale and not to be validated"
        );
        assert_eq!(life(&[date]), None, "no heuristics");
    }

    #[test]
    fn a_class_is_for_answers_that_name_no_time() {
        let route = RouteCache {
            life: Some(60),
            ..route()
        };
        let life = |pairs: &[_]| Some(judged(&route, false, pairs).ok()?.times.life / 1000);
        assert_eq!(life(&[]), Some(60));
        assert_eq!(life(&[(CACHE_CONTROL, "max-age=5")]), Some(5));
        assert_eq!(life(&[(CACHE_CONTROL, "no-cache")]), None);
        assert_eq!(
            life(&[(CACHE_CONTROL, "max-age=x"), (ETAG, "\"a\"")]),
            Some(0)
        );
    }

    #[test]
    fn what_is_for_one_alone_is_not_kept() {
        for fields in [
            &[(CACHE_CONTROL, "max-age=5, private")][..],
            &[(CACHE_CONTROL, "max-age=5, private=\"x\"")],
            &[(CACHE_CONTROL, "no-store")],
            &[(CACHE_CONTROL, "max-age=5"), (SET_COOKIE, "a=b")],
        ] {
            assert!(judged(&route(), false, fields).is_err(), "{fields:?}");
        }
        let plain = [(CACHE_CONTROL, "max-age=5")];
        assert_eq!(
            judged(&route(), true, &plain),
            Err(NotKept::Always("authorization"))
        );
        for permitted in [
            "public, max-age=5",
            "s-maxage=5",
            "max-age=5, must-revalidate",
        ] {
            let verdict = judged(&route(), true, &[(CACHE_CONTROL, permitted)]).unwrap();
            assert_eq!(verdict.is_for_all, permitted.starts_with("public"));
        }
    }

    #[test]
    fn ages_add_up_and_the_larger_of_two_counts() {
        let age = |pairs: &[_]| judged(&route(), false, pairs).unwrap().age / 1000;
        let fresh = (CACHE_CONTROL, "max-age=500");
        let old = (DATE, "Sun, 06 Nov 1994 08:49:07 GMT");
        assert_eq!(age(&[fresh.clone(), old.clone()]), 30);
        assert_eq!(age(&[fresh.clone(), old.clone(), (AGE, "40")]), 40);
        assert_eq!(age(&[fresh.clone(), old, (AGE, "-1")]), 30);
        assert_eq!(
            age(&[fresh, (AGE, "99999999999999999999")]),
            u64::from(u32::MAX)
        );
    }
}
