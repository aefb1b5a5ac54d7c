//! How a gRPC client is told that it is refused: 200 with a status of gRPC's own in the head, and no body ("trailers-only",
//! gRPC over HTTP/2). Which one follows gRPC's mapping from HTTP, but where HTTP says more than that mapping hears.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::refusal::Parts;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request, or an answer, is of gRPC.
pub fn is_grpc(fields: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let kind = fields.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.get(..GRPC.len()))
        .is_some_and(|begin| begin.eq_ignore_ascii_case(GRPC))
}

/// Puts into `fields` what a gRPC client reads of a refusal.
pub fn stamp(fields: &mut HeaderMap, parts: &Parts) {
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(GRPC_STATUS, HeaderValue::from(status(parts.status)));
    if let Ok(message) = HeaderValue::from_str(&encoded(&parts.message)) {
        fields.insert(GRPC_MESSAGE, message);
    }
}

/// The number of gRPC's status for one of HTTP.
fn status(http: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const DEADLINE_EXCEEDED: u16 = 4;
    const PERMISSION_DENIED: u16 = 7;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match http.as_u16() {
        400 | 500 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 | 405 => UNIMPLEMENTED,
        408 | 504 => DEADLINE_EXCEEDED,
        413 | 414 | 429 | 431 => RESOURCE_EXHAUSTED,
        502 | 503 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// Percent-encoded, but for what is printable.
fn encoded(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for b in message.bytes() {
        match b {
            b' '..=b'~' if b != b'%' => text.push(char::from(b)),
            _ => text.push_str(&format!("%{b:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grpc_is_is_told_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC", true),
            ("application/json", false),
            ("", false),
        ] {
            let fields = HeaderMap::from_iter([(CONTENT_TYPE, kind.parse().unwrap())]);
            assert_eq!(is_grpc(&fields), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(encoded("100 % so\u{e9}\n"), "100 %25 so%C3%A9%0A");
    }
}
