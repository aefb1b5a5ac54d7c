//! What came of the calls: `{"results": [{"id", "status", "headers", "body"}, …]}`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT_RANGES, AGE, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION,
    CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, LAST_MODIFIED, LINK, LOCATION, RETRY_AFTER,
    VARY, WARNING, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::{Map, Value, json};

use crate::forward::aggregate::is_json;
use crate::inner::{Fault, Reply};
use crate::reply::Refusal;

/// What of an answer's fields is the client's business. Not `Set-Cookie`: what a browser keeps from scripts would stand in
/// a text that scripts read.
const SHOWN: [HeaderName; 21] = [
    ACCEPT_RANGES,
    AGE,
    ALLOW,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_LOCATION,
    CONTENT_RANGE,
    CONTENT_TYPE,
    DATE,
    ETAG,
    EXPIRES,
    LAST_MODIFIED,
    LINK,
    LOCATION,
    RETRY_AFTER,
    VARY,
    WARNING,
    WWW_AUTHENTICATE,
    HeaderName::from_static("cache-status"),
    HeaderName::from_static("idempotent-replayed"),
];

/// Of those that begin with `x-`, these are about the page that an answer is, and it is none here.
const OF_PAGES: [&str; 6] = [
    "x-content-type-options",
    "x-dns-prefetch-control",
    "x-download-options",
    "x-frame-options",
    "x-permitted-cross-domain-policies",
    "x-xss-protection",
];

/// What is told of a call that has no answer.
pub fn refusal(fault: Fault) -> Refusal {
    match fault {
        Fault::Broken => Refusal::BadGateway,
        Fault::Endless => Refusal::NotInABatch,
        Fault::Late => Refusal::GatewayTimeout,
    }
}

/// The result of one call; `request_id` is the call's.
pub fn result(id: &str, reply: Result<Reply, Refusal>, request_id: &str) -> Value {
    match reply {
        Ok(reply) => of_reply(id, reply),
        Err(refusal) => {
            let body: Value = serde_json::from_slice(&refusal.body(request_id)).unwrap_or_default();
            let headers = json!({ "content-type": "application/json; charset=utf-8" });
            json!({
                "id": id,
                "status": refusal.parts().status.as_u16(),
                "headers": headers,
                "body": body,
            })
        }
    }
}

fn of_reply(id: &str, reply: Reply) -> Value {
    let mut result = Map::new();
    result.insert("id".into(), id.into());
    result.insert("status".into(), reply.status.as_u16().into());
    result.insert("headers".into(), headers(&reply.fields).into());
    if reply.too_large {
        // What it did is done; that cannot be told by another status.
        result.insert("truncated".into(), true.into());
    }
    let (body, is_coded) = content(&reply);
    if is_coded {
        result.insert("encoding".into(), "base64".into());
    }
    result.insert("body".into(), body);
    result.into()
}

/// The fields, with those that are there more than once as one list (RFC 9110, section 5.3).
fn headers(fields: &HeaderMap) -> Map<String, Value> {
    let mut shown = Map::new();
    for name in fields.keys() {
        let text = name.as_str();
        let is_shown =
            SHOWN.contains(name) || (text.starts_with("x-") && !OF_PAGES.contains(&text));
        if is_shown {
            let values = fields.get_all(name).iter();
            let values: Vec<_> = values
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            shown.insert(text.to_owned(), values.join(", ").into());
        }
    }
    shown
}

/// JSON as it is, other text as a string, and what is neither in base64.
fn content(reply: &Reply) -> (Value, bool) {
    let is_empty = reply.body.is_empty() || reply.status == StatusCode::NO_CONTENT;
    if reply.too_large || is_empty {
        return (Value::Null, false);
    }
    let is_plain = !reply.fields.contains_key(CONTENT_ENCODING);
    let kind = reply.fields.get(CONTENT_TYPE);
    if is_plain
        && kind.is_some_and(|kind| is_json(kind.as_bytes()))
        && let Ok(value) = serde_json::from_slice(&reply.body)
    {
        return (value, false);
    }
    match std::str::from_utf8(&reply.body) {
        Ok(text) if is_plain => (text.into(), false),
        _ => (STANDARD.encode(&reply.body).into(), true),
    }
}

/// # Errors
/// Never, as far as JSON goes.
pub fn write(results: Vec<Value>) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(&json!({ "results": results })).map_err(|_| Refusal::Internal)
}
