//! Is it HTTP? The head of an HTTP/2 request, before anything else is made of it: the same judgement as `head.rs` has for
//! HTTP/1, so that everything behind may rely on one reading whichever way a request came.
//!
//! h2 has reset by then what RFC 9113, section 8, calls malformed and it looks at: field names that are no lower-case
//! tokens, control characters in values, connection-specific fields, `te` other than `trailers`, pseudo-header fields that
//! are missing, doubled, unknown or late, a `content-length` that the body does not keep.

use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri};

use super::head::HeadFault::{self, Malformed};
use super::head::{is_authority, is_target};
use super::size::HeadLimits;

/// The size of a header list up to which h2 hands a request on, by its own count of 32 octets a field (RFC 9113, section
/// 6.5.2): twice what is accepted, so that what is over our limit has our answer. What is larger still has h2's bare 431.
pub fn list_size(limits: &HeadLimits) -> u32 {
    (2 * limits.head + 64 * limits.fields) as u32
}

/// Makes of a head what an HTTP/1 request would have been read as: a target in origin form, and one `Host`.
///
/// # Errors
/// When it is none that may go on.
pub fn judge(mut head: Parts, limits: &HeadLimits) -> Result<Parts, HeadFault> {
    if head.method == Method::CONNECT {
        return Err(HeadFault::Connect);
    }
    if head.method.as_str().len() > 32 {
        return Err(Malformed("the method is not a token"));
    }
    let target = head.uri.path_and_query().map_or("", |path| path.as_str());
    if target.len() > limits.target {
        return Err(HeadFault::TargetTooLong);
    }
    check_size(&head, target, limits)?;
    if !is_target(target.as_bytes()) {
        return Err(Malformed(
            "the target holds a character that must be percent-encoded",
        ));
    }
    let is_path = target.starts_with('/') || (target == "*" && head.method == Method::OPTIONS);
    if !is_path {
        return Err(Malformed("the target is not a path"));
    }
    if !matches!(head.uri.scheme_str(), None | Some("http" | "https")) {
        return Err(Malformed("the scheme is neither http nor https"));
    }
    let host = host(&head.uri, &head.headers)?;
    check_fields(&head.headers)?;
    join_cookies(&mut head.headers);
    head.headers.insert(HOST, host);
    let mut origin = http::uri::Parts::default();
    origin.path_and_query = head.uri.into_parts().path_and_query;
    head.uri = Uri::from_parts(origin).map_err(|_| Malformed("the target is not a path"))?;
    Ok(head)
}

/// As large as an HTTP/1 head with the same content.
fn check_size(head: &Parts, target: &str, limits: &HeadLimits) -> Result<(), HeadFault> {
    let (mut size, mut fields) = (head.method.as_str().len() + target.len() + 12, 0);
    if let Some(authority) = head.uri.authority() {
        size += authority.as_str().len() + 8;
        fields += 1;
    }
    for (name, value) in &head.headers {
        size += name.as_str().len() + value.len() + 4;
        // Clients may split cookies as they like (RFC 9113, section 8.2.3): all of them are one field.
        fields += usize::from(name != COOKIE);
        if is_space(value.as_bytes().first()) || is_space(value.as_bytes().last()) {
            return Err(Malformed("a header value begins or ends with a space"));
        }
    }
    fields += usize::from(head.headers.contains_key(COOKIE));
    match size > limits.head || fields > limits.fields {
        true => Err(HeadFault::TooLarge),
        false => Ok(()),
    }
}

fn is_space(octet: Option<&u8>) -> bool {
    matches!(octet, Some(b' ' | b'\t'))
}

/// The one host that the request is for: `:authority` and `Host` must agree (RFC 9113, section 8.3.1).
fn host(uri: &Uri, fields: &HeaderMap) -> Result<HeaderValue, HeadFault> {
    let mut hosts = fields.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(Malformed("there is more than one Host"));
    }
    let named = match (uri.authority(), host) {
        (None, None) => return Err(Malformed("there is neither :authority nor Host")),
        (None, Some(host)) => host.clone(),
        (Some(authority), host) => {
            let authority = authority.as_str();
            let agrees =
                |host: &HeaderValue| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes());
            if !host.is_none_or(agrees) {
                return Err(Malformed("Host names another host than :authority does"));
            }
            HeaderValue::from_str(authority).map_err(|_| Malformed("Host is not a host"))?
        }
    };
    match is_authority(named.as_bytes()) {
        true => Ok(named),
        false => Err(Malformed("Host is not a host")),
    }
}

fn check_fields(fields: &HeaderMap) -> Result<(), HeadFault> {
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Malformed("Content-Length is not a number"));
        }
        if lengths.next().is_some() {
            return Err(Malformed("there is more than one Content-Length"));
        }
    }
    let mut expects = fields.get_all(EXPECT).iter();
    match expects.all(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        true => Ok(()),
        false => Err(HeadFault::Expectation),
    }
}

/// One field of what came as several (RFC 9113, section 8.2.3): HTTP/1 knows only one.
fn join_cookies(fields: &mut HeaderMap) {
    if fields.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = fields
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    // They were header values each, and so they are together.
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        fields.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LIMITS: HeadLimits = HeadLimits {
        head: 4 << 10,
        target: 1 << 10,
        fields: 10,
    };

    fn judged(uri: &str, fields: &[(&str, &str)]) -> Result<Parts, HeadFault> {
        let request = Request::builder().method("GET").uri(uri);
        let request = fields.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        judge(request.body(()).unwrap().into_parts().0, &LIMITS)
    }

    #[test]
    fn a_good_head_has_one_host_and_a_path() {
        for (uri, fields) in [
            ("https://a:1/p?q=1", &[][..]),
            ("https://a:1/p?q=1", &[("host", "A:1")]),
            ("/p?q=1", &[("host", "a:1")]),
        ] {
            let head = judged(uri, fields).unwrap();
            assert_eq!(head.uri, "/p?q=1");
            assert_eq!(head.headers[HOST], "a:1");
        }
    }

    #[test]
    fn what_readers_would_take_for_different_things_is_refused() {
        for (uri, fields) in [
            ("/p", &[][..]),
            ("https://a/p", &[("host", "b")]),
            ("/p", &[("host", "a"), ("host", "a")]),
            ("/p", &[("host", "a, b")]),
            ("https://u@a/p", &[]),
            ("ftp://a/p", &[]),
            ("https://a/p", &[("content-length", "+1")]),
            (
                "https://a/p",
                &[("content-length", "1"), ("content-length", "1")],
            ),
            ("https://a/p", &[("x", " y")]),
            ("https://a/p", &[("x", "y\t")]),
        ] {
            let judged = judged(uri, fields);
            assert!(matches!(judged, Err(Malformed(_))), "{uri} {fields:?}");
        }
    }

    #[test]
    fn sizes_are_those_of_http_1() {
        let long = format!("https://a/{}", "x".repeat(1 << 10));
        assert_eq!(judged(&long, &[]).unwrap_err(), HeadFault::TargetTooLong);
        let large = "x".repeat(4 << 10);
        let fault = judged("https://a/", &[("x", &large)]).unwrap_err();
        assert_eq!(fault, HeadFault::TooLarge);
        let fault = judged("https://a/", &[("x", "y"); 10]).unwrap_err();
        assert_eq!(fault, HeadFault::TooLarge);
        assert!(judged("https://a/", &[("x", "y"); 9]).is_ok());
        assert!(judged("https://a/", &[("cookie", "a=1"); 50]).is_ok());
    }

    #[test]
    fn cookie_crumbs_are_one_field() {
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        let head = judged("https://a/", &crumbs).unwrap();
        let cookies: Vec<_> = head.headers.get_all(COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3"]);
    }
}
