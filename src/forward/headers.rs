//! What the backend sees: an allow-list of what the client sent, and what only we may say (decision 10).
//!
//! Both happen in `upstream_request_filter`, after Pingora has taken out what `Connection` nominated: nobody can name
//! our own headers there and have them removed.

use std::net::IpAddr;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;

use crate::admit::auth::Caller;
use crate::admit::request_id::X_REQUEST_ID;
use crate::route::Route;

/// What we say to the backend about a request.
pub struct Stamps<'a> {
    pub authority: HeaderValue,
    pub request_id: HeaderValue,
    pub client: IpAddr,
    pub caller: Option<&'a Caller>,
    /// `http` or `https`, as the client spoke to us.
    pub scheme: &'static str,
}

/// Removes what may not pass.
pub fn scrub(request: &mut RequestHeader, route: &Route) {
    let passes = |name: &HeaderName| match route.webhook {
        true => passes_on_webhooks(name),
        false => is_ordinary(name.as_str()) || route.forward_headers.contains(name),
    };
    // Names that do not pass, as many as one look can hold: usually a handful, and never more than the head's fields.
    let mut doomed: [Option<HeaderName>; 16] = [const { None }; 16];
    loop {
        let mut count = 0;
        for (place, name) in doomed
            .iter_mut()
            .zip(request.headers.keys().filter(|name| !passes(name)))
        {
            *place = Some(name.clone());
            count += 1;
        }
        for name in doomed[..count].iter_mut().filter_map(Option::take) {
            request.remove_header(&name);
        }
        if count < doomed.len() {
            return;
        }
    }
}

/// Says what only we may say.
pub fn stamp(request: &mut RequestHeader, stamps: Stamps<'_>) -> pingora::Result<()> {
    let Stamps {
        authority,
        request_id,
        client,
        caller,
        scheme,
    } = stamps;
    let client = HeaderValue::try_from(client.to_string()).expect("an address is a header value");
    let asked_host = request.remove_header(&HOST);
    request.insert_header("Host", authority)?;
    request.insert_header(X_REQUEST_ID, request_id)?;
    request.insert_header("X-Gateway-Forwarded", HeaderValue::from_static("true"))?;
    request.insert_header("X-Original-IP", client.clone())?;
    request.insert_header("X-Forwarded-For", client)?;
    request.insert_header("X-Forwarded-Proto", HeaderValue::from_static(scheme))?;
    if let Some(host) = asked_host {
        request.insert_header("X-Forwarded-Host", host)?;
    }
    if let Some(caller) = caller {
        request.insert_header("X-Tenant-ID", caller.tenant.clone())?;
        request.insert_header("X-Tenant-Source", caller.source.header())?;
    }
    Ok(())
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
