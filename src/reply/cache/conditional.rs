//! Conditions and ranges of a request, asked against an answer that is kept (RFC 9110, sections 13 and 14).

use std::ops::Range;

use http::header::{
    CONTENT_LENGTH, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::freshness::date;

/// What a `Range` comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Some(Range<usize>),
    /// None of it is there.
    None,
}

/// A request that only its backend can judge (RFC 9111, section 4.3.2).
pub fn is_for_origin(request: &HeaderMap) -> bool {
    request.contains_key(IF_MATCH) || request.contains_key(IF_UNMODIFIED_SINCE)
}

/// Whether the client has this already.
pub fn is_not_modified(request: &HeaderMap, status: StatusCode, answer: &HeaderMap) -> bool {
    if status != StatusCode::OK {
        return false;
    }
    if request.contains_key(IF_NONE_MATCH) {
        // It alone decides (RFC 9110, section 13.2.2).
        let mut lines = request.get_all(IF_NONE_MATCH).iter();
        return lines.any(|line| names(line, answer.get(ETAG)));
    }
    let Some(since) = date(request, &IF_MODIFIED_SINCE) else {
        return false;
    };
    let changed = date(answer, &LAST_MODIFIED).or_else(|| date(answer, &DATE));
    changed.is_some_and(|changed| changed <= since)
}

/// Whether a list of entity tags has this one, weakly compared.
fn names(list: &HeaderValue, etag: Option<&HeaderValue>) -> bool {
    let opaque = |tag: &'_ [u8]| -> Vec<u8> { tag.strip_prefix(b"W/").unwrap_or(tag).to_vec() };
    let mut rest = list.as_bytes().trim_ascii();
    if rest == b"*" {
        return true;
    }
    let Some(etag) = etag.map(|etag| opaque(etag.as_bytes())) else {
        return false;
    };
    while !rest.is_empty() {
        rest = rest.strip_prefix(b"W/").unwrap_or(rest);
        let Some(inner) = rest.strip_prefix(b"\"") else {
            return false;
        };
        let Some(end) = memchr::memchr(b'"', inner) else {
            return false;
        };
        if rest[..end + 2] == *etag {
            return true;
        }
        let behind = inner[end + 1..].trim_ascii_start();
        rest = behind.strip_prefix(b",").unwrap_or(b"").trim_ascii_start();
    }
    false
}

/// One range is answered; of several the whole is, which is allowed (RFC 9110, section 14.2).
pub fn part(request: &HeaderMap, status: StatusCode, answer: &HeaderMap, length: usize) -> Part {
    let Some(range) = request.get(RANGE) else {
        return Part::Whole;
    };
    if status != StatusCode::OK || !is_of_this(request, answer) {
        return Part::Whole;
    }
    range
        .to_str()
        .map_or(Part::Whole, |range| parse(range, length))
}

/// `If-Range`, strongly compared (RFC 9110, section 13.1.5).
fn is_of_this(request: &HeaderMap, answer: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else {
        return true;
    };
    match condition.as_bytes() {
        [b'"', ..] => answer.get(ETAG) == Some(condition),
        [b'W', b'/', ..] => false,
        _ => {
            let (modified, made) = (date(answer, &LAST_MODIFIED), date(answer, &DATE));
            let is_strong = match (modified, made) {
                // It is strong when it is clearly before the answer was made (section 8.8.2.2).
                (Some(modified), Some(made)) => modified + 1000 <= made,
                _ => false,
            };
            is_strong && date(request, &IF_RANGE) == modified
        }
    }
}

fn parse(range: &str, length: usize) -> Part {
    let Some((unit, set)) = range.split_once('=') else {
        return Part::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Part::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Part::Whole;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = |text: &str| text.parse().unwrap_or(usize::MAX);
    match (is_number(first), is_number(last)) {
        (true, true) if exceeds(first, last) => Part::Whole, // not well-formed
        (true, true) | (true, false) if !last.is_empty() && !is_number(last) => Part::Whole,
        (true, _) if number(first) >= length => Part::None,
        (true, true) => Part::Some(number(first)..number(last).saturating_add(1).min(length)),
        (true, false) => Part::Some(number(first)..length),
        (false, true) if first.is_empty() => match number(last).min(length) {
            0 => Part::None,
            count => Part::Some(length - count..length),
        },
        _ => Part::Whole,
    }
}

/// Whether a number is more than another, however many digits they have.
fn exceeds(one: &str, other: &str) -> bool {
    let (one, other) = (one.trim_start_matches('0'), other.trim_start_matches('0'));
    (one.len(), one) > (other.len(), other)
}

/// A 304 says what the 200 would have, but what is about its body (RFC 9110, section 15.4.5).
pub fn strip_for_304(fields: &mut HeaderMap) {
    fields.remove(CONTENT_LENGTH);
    for name in [
        "content-type",
        "content-encoding",
        "content-language",
        "content-range",
        "transfer-encoding",
    ] {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn fields(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn an_entity_tag_decides_before_a_date_does() {
        let answer = fields(&[
            (ETAG, "\"a,b\""),
            (LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ]);
        let same = (IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:37 GMT");
        for (condition, expected) in [
            ("\"a,b\"", true),
            ("W/\"a,b\"", true),
            ("\"x\", W/\"a,b\"", true),
            ("*", true),
            ("\"x\"", false),
            ("a,b", false),
        ] {
            let request = fields(&[(IF_NONE_MATCH, condition), same.clone()]);
            assert_eq!(
                is_not_modified(&request, StatusCode::OK, &answer),
                expected,
                "{condition}"
            );
        }
        assert!(is_not_modified(&fields(&[same]), StatusCode::OK, &answer));
        let before = fields(&[(IF_MODIFIED_SINCE, "Sun, 06 Nov 1994 08:49:36 GMT")]);
        assert!(!is_not_modified(&before, StatusCode::OK, &answer));
        assert!(!is_not_modified(
            &fields(&[(IF_MODIFIED_SINCE, "x")]),
            StatusCode::OK,
            &answer
        ));
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for (range, expected) in [
            ("bytes=0-4", Part::Some(0..5)),
            ("Bytes=5-", Part::Some(5..10)),
            ("bytes=-3", Part::Some(7..10)),
            ("bytes=-30", Part::Some(0..10)),
            ("bytes=8-99", Part::Some(8..10)),
            ("bytes=10-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=4-2", Part::Whole),
            ("bytes=1-x", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("bytes=99999999999999999999999-", Part::None),
            (
                "bytes=99999999999999999999999-0099999999999999999999999",
                Part::None,
            ),
            (
                "bytes=99999999999999999999999-99999999999999999999998",
                Part::Whole,
            ),
            ("bytes=099999999999999999999999-1", Part::Whole),
        ] {
            assert_eq!(parse(range, 10), expected, "{range}");
        }
    }

    #[test]
    fn if_range_wants_a_strong_validator_that_is_the_same() {
        let answer = fields(&[
            (ETAG, "\"a\""),
            (LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (DATE, "Sun, 06 Nov 1994 08:59:37 GMT"),
        ]);
        for (condition, expected) in [
            ("\"a\"", true),
            ("\"b\"", false),
            ("W/\"a\"", false),
            ("Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("Sun, 06 Nov 1994 08:49:38 GMT", false),
        ] {
            assert_eq!(
                is_of_this(&fields(&[(IF_RANGE, condition)]), &answer),
                expected,
                "{condition}"
            );
        }
    }
}
