//! What comes back: the gateway's own answers, and what it adds to the answers of backends.

pub mod refusal;
pub mod secure_headers;
mod send;

pub use refusal::Refusal;
pub use send::{Answer, answer, preflight, refuse};

use http::header::{CONNECTION, SERVER, UPGRADE};
use http::{HeaderName, HeaderValue};
use pingora::http::ResponseHeader;

/// Takes out of a backend's answer what belongs to its connection with us (RFC 9110, section 7.6.1), and what tells
/// how it is built.
pub fn scrub_response(response: &mut ResponseHeader) {
    if response.headers.contains_key(CONNECTION) {
        let lists: Vec<HeaderValue> = response
            .headers
            .get_all(CONNECTION)
            .iter()
            .cloned()
            .collect();
        for name in lists
            .iter()
            .filter_map(|list| list.to_str().ok())
            .flat_map(|list| list.split(','))
        {
            match HeaderName::try_from(name.trim()) {
                // The framing is not a backend's to take away.
                Ok(name)
                    if name != http::header::CONTENT_LENGTH
                        && name != http::header::TRANSFER_ENCODING =>
                {
                    response.remove_header(&name);
                }
                _ => {}
            }
        }
        response.remove_header(&CONNECTION);
    }
    for name in ["keep-alive", "proxy-connection", "x-powered-by"] {
        response.remove_header(name);
    }
    response.remove_header(&UPGRADE);
    response.remove_header(&SERVER);
}
