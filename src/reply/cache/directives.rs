//! What `Cache-Control` says (RFC 9111, section 5.2), in requests and in answers, and in the field that is meant for caches
//! such as this one alone (RFC 9213). What cannot be read makes an answer stale, never fresh.

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName};

/// Of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answered {
    pub no_store: bool,
    /// Also where it names fields only: nothing in it is for others then.
    pub private: bool,
    /// Also where it names fields only.
    pub no_cache: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub max_age: Seconds,
    pub s_maxage: Seconds,
    pub stale_while_revalidate: Seconds,
    pub stale_if_error: Seconds,
}

/// Of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub no_store: bool,
    pub no_cache: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u64>,
    pub min_fresh: Option<u64>,
    /// `Some(u64::MAX)`: however stale.
    pub max_stale: Option<u64>,
}

/// A directive's number of seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seconds {
    #[default]
    Absent,
    /// It stands there, and cannot be read, or twice and not the same.
    Unreadable,
    Is(u64),
}

/// For caches in front of the backend, before all others (RFC 9213, section 3.1).
const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What is larger counts as this (RFC 9111, section 1.2.2).
const MOST_SECONDS: u64 = 1 << 31;

// === impl Answered ===

impl Answered {
    /// What holds for this cache, and whether that is the targeted field, which `Expires` gives way to.
    pub fn of(fields: &HeaderMap) -> (Self, bool) {
        match Self::targeted(fields) {
            Some(targeted) => (targeted, true),
            None => (Self::read(fields, &CACHE_CONTROL), false),
        }
    }

    /// One that is empty or not well-formed is as none (RFC 9213, section 2.1).
    fn targeted(fields: &HeaderMap) -> Option<Self> {
        fields.get(CDN_CACHE_CONTROL)?;
        let mut is_well_formed = true;
        let mut count = 0;
        each(fields, &CDN_CACHE_CONTROL, |name, value| {
            count += 1;
            let is_key =
                |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'*');
            is_well_formed &= !name.is_empty() && name.bytes().all(is_key);
            is_well_formed &= value.is_none_or(|value| !value.is_empty());
        });
        (is_well_formed && count > 0).then(|| Self::read(fields, &CDN_CACHE_CONTROL))
    }

    fn read(fields: &HeaderMap, field: &HeaderName) -> Self {
        let mut all = Self::default();
        each(fields, field, |name, value| {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            match name {
                _ if is("no-store") => all.no_store = true,
                _ if is("private") => all.private = true,
                _ if is("no-cache") => all.no_cache = true,
                _ if is("public") => all.public = true,
                _ if is("must-revalidate") => all.must_revalidate = true,
                _ if is("proxy-revalidate") => all.proxy_revalidate = true,
                _ if is("max-age") => all.max_age.take(value),
                _ if is("s-maxage") => all.s_maxage.take(value),
                _ if is("stale-while-revalidate") => all.stale_while_revalidate.take(value),
                _ if is("stale-if-error") => all.stale_if_error.take(value),
                _ => {} // unknown ones are ignored (section 5.2.3)
            }
        });
        all
    }
}

// === impl Asked ===

impl Asked {
    pub fn of(fields: &HeaderMap) -> Self {
        let mut all = Self::default();
        if !fields.contains_key(CACHE_CONTROL) {
            // Of old clients (section 5.4).
            each(fields, &PRAGMA, |name, _| {
                all.no_cache |= name.eq_ignore_ascii_case("no-cache");
            });
            return all;
        }
        each(fields, &CACHE_CONTROL, |name, value| {
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            match name {
                _ if is("no-store") => all.no_store = true,
                _ if is("no-cache") => all.no_cache = true,
                _ if is("only-if-cached") => all.only_if_cached = true,
                // What cannot be read asks for the most.
                _ if is("max-age") => all.max_age = Some(seconds(value).unwrap_or(0)),
                _ if is("min-fresh") => {
                    all.min_fresh = Some(seconds(value).unwrap_or(MOST_SECONDS))
                }
                _ if is("max-stale") && value.is_none() => all.max_stale = Some(u64::MAX),
                _ if is("max-stale") => all.max_stale = seconds(value),
                _ => {}
            }
        });
        all
    }
}

// === impl Seconds ===

impl Seconds {
    pub fn is_there(self) -> bool {
        self != Self::Absent
    }

    /// What cannot be read is no time at all.
    pub fn or_none(self) -> Option<u64> {
        match self {
            Self::Absent => None,
            Self::Unreadable => Some(0),
            Self::Is(seconds) => Some(seconds),
        }
    }

    fn take(&mut self, value: Option<&str>) {
        let new = seconds(value).map_or(Self::Unreadable, Self::Is);
        *self = match *self {
            Self::Absent => new,
            same if same == new => same,
            _ => Self::Unreadable,
        };
    }
}

fn seconds(value: Option<&str>) -> Option<u64> {
    let value = value?;
    let is_number = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| value.parse().unwrap_or(MOST_SECONDS).min(MOST_SECONDS))
}

/// Each directive of all lines of a field, with its value, which may be quoted.
fn each<'a>(
    fields: &'a HeaderMap,
    field: &HeaderName,
    mut tell: impl FnMut(&'a str, Option<&'a str>),
) {
    for line in fields.get_all(field) {
        // What is no text is no directive that we know; the others on its line are lost with it.
        let mut rest = line.to_str().unwrap_or("no-store");
        while !rest.is_empty() {
            let Some(end) = end_of(rest) else {
                // What stands behind a quote that nobody closes cannot be told.
                tell("no-store", None);
                break;
            };
            let directive = rest[..end].trim_matches(is_space);
            rest = rest.get(end + 1..).unwrap_or_default();
            match directive.split_once('=') {
                None if directive.is_empty() => {}
                None => tell(directive, None),
                Some((name, value)) => {
                    let (name, value) = (name.trim_matches(is_space), value.trim_matches(is_space));
                    let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
                    tell(name, Some(inner.unwrap_or(value)));
                }
            }
        }
    }
}

fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

/// Where the next comma stands that is not in quotes, or the end; nothing within quotes that do not end.
fn end_of(list: &str) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, b) in list.bytes().enumerate() {
        match b {
            _ if std::mem::take(&mut is_escaped) => {}
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    (!is_quoted).then_some(list.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn answered(lines: &[&'static str]) -> Answered {
        let mut fields = HeaderMap::new();
        for line in lines {
            fields.append(CACHE_CONTROL, HeaderValue::from_static(line));
        }
        Answered::of(&fields).0
    }

    #[test]
    fn directives_are_read_in_any_case_over_lines_quoted_and_with_unknown_ones_between() {
        let read = answered(&[
            "Max-Age=\"60\" , x=\"a, no-store\",PUBLIC",
            ",, s-maxage = 5",
        ]);
        let expected = Answered {
            max_age: Seconds::Is(60),
            s_maxage: Seconds::Is(5),
            public: true,
            ..Answered::default()
        };
        assert_eq!(read, expected);
        assert!(answered(&["private=\"x-a, x-b\""]).private);
        assert!(answered(&["no-cache=\"set-cookie\""]).no_cache);
    }

    #[test]
    fn a_number_that_cannot_be_read_is_no_freshness() {
        for line in [
            "max-age",
            "max-age=",
            "max-age=-1",
            "max-age=1.5",
            "max-age=a",
            "max-age=1, max-age=2",
        ] {
            assert_eq!(answered(&[line]).max_age, Seconds::Unreadable, "{line}");
        }
        assert_eq!(answered(&["max-age=1, max-age=1"]).max_age, Seconds::Is(1));
        let huge = answered(&["max-age=99999999999999999999999"]).max_age;
        assert_eq!(huge, Seconds::Is(MOST_SECONDS));
    }

    #[test]
    fn the_targeted_field_wins_unless_it_is_empty_or_malformed() {
        for (targeted, expected) in [
            ("max-age=5", Seconds::Is(5)),
            ("", Seconds::Is(60)),
            ("max age=5", Seconds::Is(60)),
        ] {
            let mut fields = HeaderMap::new();
            fields.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
            fields.insert(CDN_CACHE_CONTROL, HeaderValue::from_static(targeted));
            assert_eq!(Answered::of(&fields).0.max_age, expected, "{targeted}");
        }
    }

    #[test]
    fn requests_say_what_they_take() {
        let mut fields = HeaderMap::new();
        fields.insert(PRAGMA, HeaderValue::from_static("no-cache"));
        assert!(Asked::of(&fields).no_cache);
        let line = "max-stale, min-fresh=5, only-if-cached, max-age=x";
        fields.insert(CACHE_CONTROL, HeaderValue::from_static(line));
        let expected = Asked {
            only_if_cached: true,
            max_age: Some(0),
            min_fresh: Some(5),
            max_stale: Some(u64::MAX),
            ..Asked::default()
        };
        assert_eq!(Asked::of(&fields), expected);
    }
}
