//! What a batch asks for. All of it is read, and found to be requests, before the first call is made.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HOST, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use http::{HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::admit::head::{HeadReader, Progress};
use crate::admit::json::{Bounds, NoDocument};
use crate::admit::media::says_json;
use crate::admit::request_id::X_REQUEST_ID;
use crate::admit::size::HeadLimits;
use crate::admit::tenancy::X_VENUE_ID;
use crate::inner;
use crate::reply::{self, Refusal};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody<'b> {
    #[serde(borrow)]
    calls: Vec<CallBody<'b>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallBody<'b> {
    id: String,
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// As it stands there: nothing is built of it.
    #[serde(borrow, default)]
    body: Option<&'b RawValue>,
}

/// One request of a batch.
pub struct Call {
    pub id: String,
    pub head: RequestHeader,
    pub body: Option<Bytes>,
}

impl Call {
    /// Nobody needs it once its client is gone (RFC 9110, section 9.2.1).
    pub fn only_reads(&self) -> bool {
        self.head.method.is_safe()
    }
}

/// What a call is made of beside what it says itself.
pub struct Behind<'a> {
    pub head: &'a RequestHeader,
    pub request_id: &'a str,
    pub limits: &'a HeadLimits,
    pub most: usize,
}

/// What a call may say in fields of its own. Who is asking, and from where, is the batch's to say.
const ALLOWED: [HeaderName; 12] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    CACHE_CONTROL,
    CONTENT_TYPE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    RANGE,
    IF_RANGE,
    HeaderName::from_static("idempotency-key"),
    X_VENUE_ID,
];

/// Looked at before it is read.
const BOUNDS: Bounds = Bounds {
    depth: 40,
    values: 20_000,
};

/// Characters of a call's id.
const LONGEST_ID: usize = 64;

/// As of any request's (decision 11).
const LONGEST_REQUEST_ID: usize = 128;

const NOT_HTTP: Refusal = Refusal::BadBody("A call is not a well-formed HTTP request");

/// The calls of a batch.
///
/// # Errors
/// When one of them is no request: then none is made.
pub fn read(body: &[u8], behind: &Behind<'_>) -> Result<Vec<Call>, Refusal> {
    let checked = BOUNDS.check_size(body);
    checked.map_err(|NoDocument(why)| Refusal::BadBody(why))?;
    let BatchBody { calls } = serde_json::from_slice(body).map_err(|_| {
        Refusal::BadBody(
            "The body must be {\"calls\": [{\"id\", \"method\", \"path\", \"headers\", \"body\"}, …]}",
        )
    })?;
    if calls.is_empty() || calls.len() > behind.most {
        return Err(Refusal::BadBody("There are no calls, or too many"));
    }
    let mut ids = BTreeSet::new();
    for CallBody { id, .. } in &calls {
        if id.is_empty() || id.chars().count() > LONGEST_ID || !ids.insert(id.as_str()) {
            return Err(Refusal::BadBody(
                "Every call has an id of its own, of at most 64 characters",
            ));
        }
    }
    let numbered = calls.into_iter().enumerate();
    numbered
        .map(|(number, call)| call.compile(number + 1, behind))
        .collect()
}

impl CallBody<'_> {
    fn compile(self, number: usize, behind: &Behind<'_>) -> Result<Call, Refusal> {
        let Self {
            id,
            method,
            path,
            headers,
            body,
        } = self;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| NOT_HTTP)?;
        // Not in absolute form, and not `*`.
        if !path.starts_with('/') {
            return Err(NOT_HTTP);
        }
        let put = |head: &mut RequestHeader, name: HeaderName, value: HeaderValue| {
            head.insert_header(name, value).map_err(|_| NOT_HTTP)
        };
        let mut head = inner::head(behind.head, &method, &path, []).ok_or(NOT_HTTP)?;
        // HTTP/1.0 needs none, and routes of all hosts are found without.
        if !head.headers.contains_key(HOST) {
            put(&mut head, HOST, HeaderValue::from_static("none"))?;
        }
        for (name, value) in headers {
            let name = HeaderName::try_from(name.as_str()).map_err(|_| NOT_HTTP)?;
            if !ALLOWED.contains(&name) && !name.as_str().starts_with("x-device-") {
                return Err(Refusal::BadBody("A call has a header that it may not set"));
            }
            // In another case it would be there twice.
            if head.headers.contains_key(&name) {
                return Err(NOT_HTTP);
            }
            let value = HeaderValue::try_from(value).map_err(|_| NOT_HTTP)?;
            put(&mut head, name, value)?;
        }
        if reply::is_grpc(&head.headers) {
            return Err(Refusal::BadBody("gRPC cannot be called in a batch"));
        }
        let body = content(body, &mut head)?;
        // Of these a body is expected, and that there is none is said (RFC 9110, section 8.6).
        let has_content = matches!(method, Method::POST | Method::PUT | Method::PATCH);
        if body.is_some() || has_content {
            let length = body.as_ref().map_or(0, Bytes::len);
            put(&mut head, CONTENT_LENGTH, HeaderValue::from(length))?;
        }
        let request_id = format!("{}.{number}", behind.request_id);
        if request_id.len() <= LONGEST_REQUEST_ID {
            let value = HeaderValue::try_from(request_id).map_err(|_| NOT_HTTP)?;
            put(&mut head, X_REQUEST_ID, value)?;
        }
        judge(&head, &path, behind.limits)?;
        Ok(Call { id, head, body })
    }
}

/// The bytes of a call's body: JSON as it stands there, and a string of another type as the text that it is.
fn content(body: Option<&RawValue>, head: &mut RequestHeader) -> Result<Option<Bytes>, Refusal> {
    let Some(body) = body.map(RawValue::get) else {
        return Ok(None);
    };
    let kind = head.headers.get(CONTENT_TYPE);
    if body.starts_with('"') && kind.is_some_and(|kind| !says_json(kind)) {
        let text: String = serde_json::from_str(body)
            .map_err(|_| Refusal::BadBody("The body of a call is no text of Unicode"))?;
        return Ok(Some(text.into()));
    }
    if kind.is_none() {
        let json = HeaderValue::from_static("application/json");
        // There is room: a head has at most a hundred fields.
        let _ = head.insert_header(CONTENT_TYPE, json);
    }
    Ok(Some(Bytes::copy_from_slice(body.as_bytes())))
}

/// Reads the head as if it had come by itself.
fn judge(head: &RequestHeader, path: &str, limits: &HeadLimits) -> Result<(), Refusal> {
    let raw = inner::raw(head, path);
    match HeadReader::default().read(&raw, limits) {
        Ok(Progress::Complete(read)) if read.len == raw.len() => Ok(()),
        // The connection is the batch's, and stays: it is its body that is at fault.
        _ => Err(NOT_HTTP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::size::SizeConfig;
    use crate::config::Problems;
    use serde_json::{Value, json};

    fn read_calls(body: &Value) -> Result<Vec<Call>, Refusal> {
        read_text(&body.to_string())
    }

    fn read_text(body: &str) -> Result<Vec<Call>, Refusal> {
        let (limits, _) = SizeConfig::default().compile(&mut Problems::default());
        let mut head = RequestHeader::build("POST", b"/api/v1/batch", None).unwrap();
        for (name, value) in [
            ("host", "api.test"),
            ("authorization", "Bearer t"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-venue-id", "v9"),
        ] {
            head.insert_header(name, value).unwrap();
        }
        let behind = Behind {
            head: &head,
            request_id: "req_1",
            limits: &limits,
            most: 3,
        };
        read(body.as_bytes(), &behind)
    }

    fn one(call: &Value) -> Result<Call, Refusal> {
        let calls = read_calls(&json!({ "calls": [call] }))?;
        Ok(calls.into_iter().next().unwrap())
    }

    #[test]
    fn a_call_has_its_batchs_credentials_and_its_own_fields() {
        let call = one(&json!({
            "id": "a", "method": "POST", "path": "/x?y=1",
            "headers": {"If-Match": "\"1\""}, "body": {"k": 1},
        }))
        .unwrap_or_else(|refusal| panic!("{refusal:?}"));
        assert_eq!(call.body.as_deref(), Some(&b"{\"k\":1}"[..]));
        let fields = &call.head.headers;
        for (name, value) in [
            ("host", Some("api.test")),
            ("authorization", Some("Bearer t")),
            ("if-match", Some("\"1\"")),
            ("content-type", Some("application/json")),
            ("content-length", Some("7")),
            ("x-request-id", Some("req_1.1")),
            ("x-forwarded-for", None),
            ("x-venue-id", None),
        ] {
            let found = fields.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(found, value, "{name}");
        }
    }

    #[test]
    fn json_is_sent_byte_for_byte() {
        for body in [
            r#"{"b" : 1, "a":[1,  2]}"#,
            r#"{"wei":100000000000000000000,"e":1E+2,"a":1,"a":2}"#,
            r#""t\u0065xt""#,
            "0",
        ] {
            let text = format!(
                r#"{{"calls":[{{"id":"a","method":"POST","path":"/x","body": {body} }}]}}"#
            );
            let calls = read_text(&text).unwrap_or_else(|refusal| panic!("{refusal:?}"));
            assert_eq!(calls[0].body.as_deref(), Some(body.as_bytes()));
        }
        let none = r#"{"calls":[{"id":"a","method":"POST","path":"/x","body":null}]}"#;
        let calls = read_text(none).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        assert_eq!(calls[0].body, None);
    }

    #[test]
    fn text_that_is_no_json_is_sent_as_it_is() {
        let call = json!({
            "id": "a", "method": "POST", "path": "/x",
            "headers": {"Content-Type": "text/plain"}, "body": "a\r\nb",
        });
        let call = one(&call).unwrap_or_else(|refusal| panic!("{refusal:?}"));
        assert_eq!(call.body.as_deref(), Some(&b"a\r\nb"[..]));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = json!({"id": "a", "method": "GET", "path": "/x"});
        assert!(one(&good).is_ok());
        for (member, value) in [
            ("id", json!("")),
            ("id", json!("x".repeat(65))),
            ("id", json!(7)),
            ("method", json!("")),
            ("method", json!("GE T")),
            ("method", json!("GET /admin HTTP/1.1\r\nX:")),
            ("method", json!("CONNECT")),
            ("path", json!("")),
            ("path", json!("*")),
            ("path", json!("http://other.test/x")),
            ("path", json!("/x y")),
            ("path", json!("/x\r\nHost: other")),
            ("path", json!("/x#y")),
            ("path", json!("/é")),
            ("path", json!("/x".repeat(5000))),
            ("headers", json!({"Authorization": "Bearer other"})),
            ("headers", json!({"X-API-Key": "other"})),
            ("headers", json!({"Host": "other"})),
            ("headers", json!({"Cookie": "a=b"})),
            ("headers", json!({"X-Forwarded-For": "1.1.1.1"})),
            ("headers", json!({"X-Request-ID": "mine"})),
            ("headers", json!({"Content-Length": "3"})),
            ("headers", json!({"Transfer-Encoding": "chunked"})),
            ("headers", json!({"Content-Encoding": "gzip"})),
            ("headers", json!({"Connection": "upgrade"})),
            ("headers", json!({"Upgrade": "websocket"})),
            ("headers", json!({"Accept": "a\r\nHost: b"})),
            ("headers", json!({"Accept": "a", "accept": "b"})),
            ("headers", json!({"Accept": ["a"]})),
            ("headers", json!({"Content-Type": "application/grpc"})),
            ("more", json!(1)),
        ] {
            let mut call = good.clone();
            call[member] = value;
            assert!(one(&call).is_err(), "{call}");
        }
        let calls = |count: usize| {
            let call = |id: usize| json!({"id": id.to_string(), "method": "GET", "path": "/"});
            json!({"calls": (0..count).map(call).collect::<Vec<_>>()})
        };
        for (batch, is_good) in [
            (calls(0), false),
            (calls(1), true),
            (calls(3), true),
            (calls(4), false),
            (json!({"calls": [good.clone(), good]}), false),
            (json!([]), false),
            (json!({}), false),
        ] {
            assert_eq!(read_calls(&batch).is_ok(), is_good, "{batch}");
        }
    }
}
