//! What came of the calls: `{"results": [{"id", "status", "headers", "body"}, …]}`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT_RANGES, AGE, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LOCATION,
    CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, EXPIRES, LAST_MODIFIED, LINK, LOCATION, RETRY_AFTER,
    VARY, WARNING, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::admit::json::is_well_formed;
use crate::admit::media::says_json;
use crate::inner::{Fault, Reply};
use crate::reply::Refusal;
use crate::server::threads::{LARGE, aside};

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
        Fault::Late => Refusal::GatewayTimeout,
    }
}

/// What came of one call, in the order in which people read it.
#[derive(Serialize)]
pub struct CallResult {
    id: String,
    status: u16,
    headers: BTreeMap<String, String>,
    /// There is more of its body than is told. What it did is done: its status stays.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
    body: Option<Content>,
}

/// The body of an answer.
#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    /// JSON as it stands there: nothing is built of it.
    Json(Box<RawValue>),
    Text(String),
}

#[derive(Serialize)]
struct Results {
    results: Vec<CallResult>,
}

/// The result of one call; `request_id` is the call's.
pub async fn result(id: String, reply: Result<Reply, Refusal>, request_id: &str) -> CallResult {
    let reply = match reply {
        Ok(reply) if reply.body.len() > LARGE => {
            let read = aside({
                let id = id.clone();
                move || of_reply(id, reply)
            });
            match read.await {
                Some(result) => return result,
                None => Err(Refusal::Internal),
            }
        }
        reply => reply,
    };
    match reply {
        Ok(reply) => of_reply(id, reply),
        Err(refusal) => CallResult {
            id,
            status: refusal.parts().status.as_u16(),
            headers: BTreeMap::from([(
                CONTENT_TYPE.as_str().to_owned(),
                "application/json; charset=utf-8".to_owned(),
            )]),
            truncated: false,
            encoding: None,
            body: String::from_utf8(refusal.body(request_id))
                .ok()
                .and_then(json),
        },
    }
}

fn of_reply(id: String, reply: Reply) -> CallResult {
    let Reply {
        status,
        fields,
        body,
        is_cut,
    } = reply;
    let (body, is_coded) = match is_cut || body.is_empty() || status == StatusCode::NO_CONTENT {
        true => (None, false),
        false => content(&fields, body),
    };
    CallResult {
        id,
        status: status.as_u16(),
        headers: headers(&fields),
        truncated: is_cut,
        encoding: is_coded.then_some("base64"),
        body,
    }
}

/// The fields, with those that are there more than once as one list (RFC 9110, section 5.3).
fn headers(fields: &HeaderMap) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for name in fields.keys() {
        let text = name.as_str();
        let is_shown =
            SHOWN.contains(name) || (text.starts_with("x-") && !OF_PAGES.contains(&text));
        if is_shown {
            let values = fields.get_all(name).iter();
            let values: Vec<_> = values
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            shown.insert(text.to_owned(), values.join(", "));
        }
    }
    shown
}

/// JSON as it is, other text as a string, and what is neither in base64. JSON that some parser would refuse is text: it
/// must not spoil the other results.
fn content(fields: &HeaderMap, body: Vec<u8>) -> (Option<Content>, bool) {
    let is_plain = !fields.contains_key(CONTENT_ENCODING);
    let is_json =
        is_plain && fields.get(CONTENT_TYPE).is_some_and(says_json) && is_well_formed(&body);
    match String::from_utf8(body) {
        Ok(text) if is_json => (json(text), false),
        Ok(text) if is_plain => (Some(Content::Text(text)), false),
        Ok(text) => (Some(Content::Text(STANDARD.encode(text))), true),
        Err(other) => (Some(Content::Text(STANDARD.encode(other.as_bytes()))), true),
    }
}

fn json(text: String) -> Option<Content> {
    RawValue::from_string(text).ok().map(Content::Json)
}

/// # Errors
/// Never, as far as JSON goes.
pub async fn write(results: Vec<CallResult>) -> Result<Vec<u8>, Refusal> {
    let size: usize = results.iter().map(CallResult::size).sum();
    let written = match size {
        ..=LARGE => serde_json::to_vec(&Results { results }),
        _ => aside(move || serde_json::to_vec(&Results { results }))
            .await
            .ok_or(Refusal::Internal)?,
    };
    written.map_err(|_| Refusal::Internal)
}

// === impl CallResult ===

impl CallResult {
    /// Bytes, most of which are the body's.
    fn size(&self) -> usize {
        match &self.body {
            Some(Content::Json(text)) => text.get().len(),
            Some(Content::Text(text)) => text.len(),
            None => 0,
        }
    }
}
