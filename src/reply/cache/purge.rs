//! `POST /cache/purge` on the private listener: what operators want forgotten.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Caching;
use super::store::Purge;

/// What may be asked for: one of the three, and whose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    key: Option<String>,
    prefix: Option<String>,
    tag: Option<String>,
    tenant: Option<String>,
}

/// Longest order.
pub const LARGEST: usize = 16 << 10;

/// Carries an order out. With the status and the body of its answer.
pub fn purge(caching: Option<&Caching>, order: &[u8]) -> (StatusCode, Value) {
    let fault = |why: &str| {
        (
            StatusCode::BAD_REQUEST,
            json!({"status": "failed", "faults": [why]}),
        )
    };
    let Ok(Order {
        key,
        prefix,
        tag,
        tenant,
    }) = serde_json::from_slice(order)
    else {
        return fault("the body is not {\"key\" | \"prefix\" | \"tag\": text, \"tenant\"?: text}");
    };
    let purge = match (&key, &prefix, &tag) {
        (Some(key), None, None) => Purge::Key(key),
        (None, Some(prefix), None) if prefix.starts_with('/') => Purge::Prefix(prefix),
        (None, Some(_), None) => return fault("a prefix begins with a slash"),
        (None, None, Some(tag)) => Purge::Tag(tag),
        _ => return fault("one of key, prefix and tag is needed"),
    };
    let Some(caching) = caching else {
        return (StatusCode::OK, json!({"purged": 0}));
    };
    let purged = caching
        .store
        .purge(tenant.as_deref().map(str::as_bytes), &purge);
    (StatusCode::OK, json!({"purged": purged}))
}
