//! What comes back: the gateway's own answers, and what it adds to the answers of backends.

pub mod cache;
pub mod grpc;
pub mod refusal;
pub mod secure_headers;
mod send;

pub use cache::is_up_to_date as is_not_modified;
pub use grpc::is_grpc;
pub use refusal::Refusal;
pub use send::{
    Answer, answer, begin_for_http10, in_time, preflight, refuse, replay, stamp, tell_to_continue,
};

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts as RespParts;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::ResponseHeader;

/// Most fields that are added to a backend's answer.
pub const STAMPS: usize = 16;

/// Changes the fields of an answer in place, without the second map in which Pingora keeps the case of their names:
/// names are case-insensitive (RFC 9110, section 5.1).
pub fn rewrite(response: &mut ResponseHeader, change: impl FnOnce(&mut HeaderMap)) {
    let reason = response
        .get_reason_phrase()
        .filter(|reason| Some(*reason) != response.status.canonical_reason());
    let reason = reason.map(str::to_owned);
    let nothing = ResponseHeader::from(http::Response::new(()).into_parts().0);
    let mut parts: RespParts = std::mem::replace(response, nothing).into();
    parts.headers.reserve(STAMPS);
    change(&mut parts.headers);
    *response = ResponseHeader::from(parts);
    if let Some(reason) = reason {
        // It was a reason phrase before.
        let _ = response.set_reason_phrase(Some(&reason));
    }
}

/// Takes out of a backend's answer what belongs to its connection with us (RFC 9110, section 7.6.1), what tells how it
/// is built, and what it says to pages of other origins, which is ours to say.
pub fn scrub(fields: &mut HeaderMap) {
    if fields.contains_key(CONNECTION) {
        let lists: Vec<HeaderValue> = fields.get_all(CONNECTION).iter().cloned().collect();
        let names = lists
            .iter()
            .filter_map(|list| list.to_str().ok())
            .flat_map(|list| list.split(','));
        for name in names.filter_map(|name| HeaderName::try_from(name.trim()).ok()) {
            // The framing is not a backend's to take away.
            if name != CONTENT_LENGTH && name != TRANSFER_ENCODING {
                fields.remove(name);
            }
        }
        fields.remove(CONNECTION);
    }
    while let Some(name) = fields
        .keys()
        .find(|name| is_not_for_clients(name.as_str()))
        .cloned()
    {
        fields.remove(name);
    }
}

fn is_not_for_clients(name: &str) -> bool {
    matches!(
        name,
        "keep-alive" | "proxy-connection" | "upgrade" | "server" | "x-powered-by"
    ) || name.starts_with("access-control-")
}
