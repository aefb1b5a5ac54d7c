//! What the backend sees: an allow-list of what the client sent, and what only we may say (decision 10).
//!
//! Both happen in `upstream_request_filter`, after Pingora has taken out what `Connection` nominated: nobody can name
//! our own headers there and have them removed.

use http::header::{CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use http::request::Parts as ReqParts;
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::RequestHeader;

use crate::admit::auth::Caller;
use crate::admit::request_id::X_REQUEST_ID;
use crate::admit::websocket::Handshake;
use crate::forward::deadline::{Deadline, X_REQUEST_DEADLINE};
use crate::observe::trace::Trace;
use crate::route::Route;

/// What we say to the backend about a request.
pub struct Stamps<'a> {
    pub authority: HeaderValue,
    pub request_id: HeaderValue,
    /// The client's address.
    pub client: HeaderValue,
    pub caller: Option<&'a Caller>,
    /// `http` or `https`, as the client spoke to us.
    pub scheme: &'static str,
    /// Whose certificate the client has shown.
    pub client_subject: Option<HeaderValue>,
    pub trace: Option<&'a Trace>,
    pub deadline: Deadline,
    /// The client said so.
    pub takes_trailers: bool,
    /// The request asks for a WebSocket.
    pub handshake: Option<&'a Handshake>,
}

pub const X_GATEWAY_FORWARDED: HeaderName = HeaderName::from_static("x-gateway-forwarded");
const X_ORIGINAL_IP: HeaderName = HeaderName::from_static("x-original-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
pub const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
pub const X_TENANT_SOURCE: HeaderName = HeaderName::from_static("x-tenant-source");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Most that [`rewrite`] adds.
const STAMPS: usize = 11;

/// Takes out what may not pass and puts in what only we may say.
///
/// Done on the bare map: in Pingora's own header each field would be kept twice, once more for the case of its name.
pub fn rewrite(request: &mut RequestHeader, route: &Route, stamps: Stamps<'_>) {
    let mut parts: ReqParts = std::mem::replace(request, RequestHeader::from(nothing())).into();
    let fields = &mut parts.headers;
    while let Some(name) = fields.keys().find(|name| !passes(name, route)).cloned() {
        fields.remove(name);
    }
    fields.reserve(STAMPS);
    // Only over HTTP/2 do trailers come back whole; gRPC backends insist on being told (RFC 9113, section 8.2.2).
    if stamps.takes_trailers && route.service.http2 {
        fields.insert(TE, HeaderValue::from_static("trailers"));
    }
    stamp(fields, stamps);
    *request = RequestHeader::from(parts);
}

fn passes(name: &HeaderName, route: &Route) -> bool {
    match route.webhook {
        true => passes_on_webhooks(name),
        false => {
            is_ordinary(name.as_str())
                || route.forward_headers.contains(name)
                || (route.service.http2 && name.as_str().starts_with("grpc-"))
        }
    }
}

/// Whether a client that speaks HTTP/2 has said that it takes trailers.
pub fn takes_trailers(fields: &HeaderMap) -> bool {
    fields.get(TE).is_some_and(|te| te == "trailers")
}

fn stamp(fields: &mut HeaderMap, stamps: Stamps<'_>) {
    let Stamps {
        authority,
        request_id,
        client,
        caller,
        scheme,
        client_subject,
        trace,
        deadline,
        takes_trailers: _, // for `rewrite`
        handshake,
    } = stamps;
    fields.insert(HOST, authority);
    fields.insert(X_REQUEST_ID, request_id);
    fields.insert(X_GATEWAY_FORWARDED, HeaderValue::from_static("true"));
    fields.insert(X_ORIGINAL_IP, client.clone());
    fields.insert(X_FORWARDED_FOR, client);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    fields.insert(X_REQUEST_DEADLINE, deadline.header());
    if let Some(caller) = caller {
        fields.insert(X_TENANT_ID, caller.tenant.clone());
        fields.insert(X_TENANT_SOURCE, caller.source.header());
    }
    if let Some(subject) = client_subject {
        fields.insert(X_CLIENT_CERT_SUBJECT, subject);
    }
    if let Some(trace) = trace {
        fields.insert(TRACEPARENT, trace.header());
    }
    if let Some(handshake) = handshake {
        handshake.stamp_request(fields);
    }
}

/// Stands in a request's place while it is written anew.
fn nothing() -> ReqParts {
    http::Request::new(()).into_parts().0
}

/// Whether a route may ask for this header: never for one that speaks for us, or that belongs to the connection.
pub fn may_be_forwarded(name: &HeaderName) -> bool {
    passes_on_webhooks(name)
        && *name != HOST
        && *name != TRANSFER_ENCODING
        && *name != CONTENT_LENGTH
}

/// The documented request headers, and the ordinary ones that a backend needs.
fn is_ordinary(name: &str) -> bool {
    match name {
        "accept"
        | "authorization"
        | "user-agent"
        | "x-api-key"
        | "idempotency-key"
        | "cache-control"
        | "range"
        | "if-match"
        | "if-none-match"
        | "if-modified-since"
        | "if-unmodified-since"
        | "if-range"
        | "traceparent"
        | "tracestate"
        | "x-venue-id"
        | "host" => true,
        _ => {
            ["content-", "accept-", "x-device-"]
                .iter()
                .any(|p| name.starts_with(p))
                && !name.contains('_')
        }
    }
}

/// Webhooks keep everything but what is blocked: their signatures may cover any of it.
fn passes_on_webhooks(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Some servers read `_` as `-`: a second spelling of a blocked name.
    if name.contains('_') {
        return false;
    }
    let blocked = [
        "x-internal-",
        "x-tenant-",
        "x-gateway-",
        "x-original-",
        "x-user-",
        "x-forwarded-",
        "x-client-cert",
    ];
    !blocked.iter().any(|prefix| name.starts_with(prefix))
        && !matches!(
            name,
            "x-admin-token"
                | "x-privileged"
                | "x-real-ip"
                | "forwarded"
                | "connection"
                | "expect"
                | "cookie"
                | "proxy-authorization"
                | "proxy-connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "upgrade"
                | "x-request-deadline"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_headers_are_few() {
        for name in [
            "accept",
            "accept-language",
            "content-type",
            "content-encoding",
            "if-none-match",
            "x-device-id",
        ] {
            assert!(is_ordinary(name), "{name}");
        }
        for name in [
            "cookie",
            "x-tenant-id",
            "x-forwarded-for",
            "x-internal-key",
            "origin",
            "referer",
            "x-anything",
        ] {
            assert!(!is_ordinary(name), "{name}");
        }
    }

    #[test]
    fn nothing_that_speaks_for_us_is_ever_forwarded() {
        for name in [
            "x-tenant-id",
            "x-internal-service",
            "x-admin-token",
            "x-user-id",
            "x_tenant_id",
            "x-client-cert-subject",
            "x-client-cert",
            "host",
            "te",
        ] {
            assert!(!may_be_forwarded(&name.parse().unwrap()), "{name}");
        }
        for name in [
            "stripe-signature",
            "paypal-transmission-id",
            "x-square-hmacsha256-signature",
            "x-request-id",
        ] {
            assert!(may_be_forwarded(&name.parse().unwrap()), "{name}");
        }
    }
}
