//! What decides whether an answer is kept, for how long, and how much of it a client gets: however it is spelled, nothing
//! private is kept, and no octet is sent that was not asked for.

use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::reply::cache::parts::{Answered, Asked, Exchange, Part, is_not_modified, part};
use crate::reply::cache::{LONGEST_LIFE, RouteCache};

const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Lines of `Cache-Control`, in the case and in as many lines as somebody likes. Where a plain reader finds `no-store` or
/// `private` nothing is kept, and nothing for longer than a day.
pub fn cache_control(input: &[u8]) {
    let mut fields = HeaderMap::new();
    for line in input.split(|b| *b == b'\n') {
        let Ok(value) = HeaderValue::from_bytes(line) else {
            return;
        };
        fields.append(CACHE_CONTROL, value);
    }
    let (says, is_targeted) = Answered::of(&fields);
    assert!(!is_targeted);
    let kept = judge(&fields);
    if let Some(life) = kept {
        assert!(life <= LONGEST_LIFE.as_millis() as u64);
        assert!(!says.no_store && !says.private);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if text.is_ascii() && !text.contains('"') {
        let shouted = one_line(&text.to_ascii_uppercase().replace('\n', ", "));
        assert_eq!(Answered::of(&shouted).0, says, "in one line, shouted");
        assert_eq!(wants(&shouted), wants(&fields));
        let mut words = text.split([',', '\n']).map(name_of);
        assert!(kept.is_none() || !words.any(|word| word == "no-store" || word == "private"));
    }
    // Whatever stands before, the last word counts.
    fields.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    assert!(Answered::of(&fields).0.no_store && Asked::of(&fields).no_store);
    assert_eq!(judge(&fields), None);
    // And so it does where it is said to caches such as this one.
    fields.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=60"),
    );
    fields.insert(CDN_CACHE_CONTROL, HeaderValue::from_static("no-store"));
    assert_eq!(judge(&fields), None);
}

fn name_of(directive: &str) -> String {
    let name = directive.split('=').next().unwrap_or_default();
    name.trim_matches([' ', '\t']).to_ascii_lowercase()
}

fn one_line(text: &str) -> HeaderMap {
    let value = HeaderValue::from_str(text).expect("each line of it is one");
    HeaderMap::from_iter([(CACHE_CONTROL, value)])
}

/// Everything that a request asks for.
fn wants(fields: &HeaderMap) -> [Option<u64>; 6] {
    let Asked {
        no_store,
        no_cache,
        only_if_cached,
        max_age,
        min_fresh,
        max_stale,
    } = Asked::of(fields);
    let flag = |is: bool| is.then_some(1);
    [
        flag(no_store),
        flag(no_cache),
        flag(only_if_cached),
        max_age,
        min_fresh,
        max_stale,
    ]
}

/// For how long it is kept, if it is; milliseconds.
fn judge(fields: &HeaderMap) -> Option<u64> {
    let exchange = Exchange {
        route: &RouteCache::default(),
        status: StatusCode::OK,
        has_credentials: false,
        is_unidentified: false,
        took: 0,
        now: 784_111_777_000,
    };
    exchange
        .judge(fields)
        .ok()
        .map(|verdict| verdict.times.life)
}

/// Lines: `Range`, `If-Range`, `If-None-Match`, and the answer's `ETag`; the first byte is the answer's length. What is
/// given lies within the answer and is what was asked for, and who is told that nothing has changed has named its tag.
pub fn conditional(input: &[u8]) {
    let Some((length, lines)) = input.split_first() else {
        return;
    };
    let length = usize::from(*length);
    let mut lines = lines.split(|b| *b == b'\n').map(HeaderValue::from_bytes);
    let (mut request, mut answer) = (HeaderMap::new(), HeaderMap::new());
    for name in [RANGE, IF_RANGE, IF_NONE_MATCH, ETAG] {
        if let Some(Ok(value)) = lines
            .next()
            .filter(|v| v.as_ref().is_ok_and(|v| !v.is_empty()))
        {
            match name == ETAG {
                true => answer.insert(name, value),
                false => request.insert(name, value),
            };
        }
    }
    let tag = answer
        .get(ETAG)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    if is_not_modified(&request, StatusCode::OK, &answer) {
        let named = request
            .get(IF_NONE_MATCH)
            .expect("nothing else was asked")
            .as_bytes();
        let opaque = tag.strip_prefix(b"W/").unwrap_or(tag);
        let is_there = memchr::memmem::find(named, opaque).is_some() && !opaque.is_empty();
        assert!(is_there || named.trim_ascii() == b"*");
    }
    let well_formed = tag.len() >= 2 && tag.starts_with(b"\"") && tag.ends_with(b"\"");
    if well_formed && !tag[1..tag.len() - 1].contains(&b'"') {
        let list = [b"W/\"a,b\" ,", tag].concat();
        let list = HeaderValue::from_bytes(&list).expect("its parts are");
        let named = HeaderMap::from_iter([(IF_NONE_MATCH, list)]);
        assert!(is_not_modified(&named, StatusCode::OK, &answer));
        assert!(!is_not_modified(&named, StatusCode::NOT_FOUND, &answer));
    }
    let given = part(&request, StatusCode::OK, &answer, length);
    assert_eq!(
        part(&request, StatusCode::NOT_FOUND, &answer, length),
        Part::Whole
    );
    if given == Part::Whole {
        return;
    }
    if let Some(condition) = request.get(IF_RANGE) {
        assert_eq!(Some(condition), answer.get(ETAG), "it is of another one");
    }
    let asked = request.get(RANGE).and_then(|range| range.to_str().ok());
    let asked = asked
        .and_then(|range| range.split_once('='))
        .expect("a range")
        .1;
    let (first, last) = asked.trim().split_once('-').expect("a range");
    let number = |text: &str| text.parse::<u128>().ok();
    let (length, given) = match given {
        Part::Some(given) => (length as u128, given.start as u128..given.end as u128),
        _ => (length as u128, 0..0),
    };
    let expected = match (number(first), number(last)) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
        (Some(first), None) => first..length,
        (None, Some(count)) => length.saturating_sub(count)..length,
        (None, None) => return, // longer than any number here
    };
    assert_eq!(given.is_empty(), expected.is_empty());
    assert!(
        given.is_empty() || given == expected,
        "{given:?} is not {expected:?}"
    );
}
