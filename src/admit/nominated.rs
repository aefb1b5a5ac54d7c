//! What belongs to the client's connection alone: fields that `Connection` nominates (RFC 9110, section 7.6.1).
//!
//! They are removed before any policy reads them. Otherwise the cache would keep by a field what the backend answered
//! without it, because Pingora removes them only on the way there.

use http::header::CONNECTION;
use http::{HeaderMap, HeaderName};
use pingora_proxy::Session;

use crate::reply::Refusal;

/// What policies have to read, or what says where the body ends, whatever `Connection` says.
pub const NEEDED: [&str; 14] = [
    "authorization",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "idempotency-key",
    "origin",
    "transfer-encoding",
    "via",
    "x-api-key",
    "x-request-deadline",
    "x-venue-id",
];

/// # Errors
/// When a field is nominated that is not the connection's.
pub fn remove(session: &mut Session) -> Result<(), Refusal> {
    let nominated = of(&session.req_header().headers)?;
    for name in nominated {
        session.req_header_mut().remove_header(&name);
    }
    Ok(())
}

/// Nothing is allocated for the usual words.
pub fn of(fields: &HeaderMap) -> Result<Vec<HeaderName>, Refusal> {
    let mut nominated = Vec::new();
    for line in fields.get_all(CONNECTION) {
        let words = line
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii);
        for word in words.filter(|word| !is_usual(word)) {
            let Ok(name) = HeaderName::from_bytes(word) else {
                continue; // no field has it
            };
            if NEEDED.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-") {
                return Err(Refusal::Malformed(
                    "Connection names a field that is not the connection's",
                ));
            }
            nominated.push(name);
        }
    }
    Ok(nominated)
}

fn is_usual(word: &[u8]) -> bool {
    let usual: [&[u8]; 6] = [
        b"close",
        b"keep-alive",
        b"upgrade",
        b"te",
        b"trailer",
        b"http2-settings",
    ];
    usual.iter().any(|known| word.eq_ignore_ascii_case(known))
}
