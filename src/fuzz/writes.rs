//! Batches, the keys of writes, documents, and fields that `Connection` nominates: what is let through says the same to a
//! plainer reader.

use std::collections::BTreeSet;

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use serde_json::Value;

use crate::admit::idempotency::Key;
use crate::admit::json::{self, Bounds};
use crate::admit::nominated;
use crate::admit::size::HeadLimits;
use crate::forward::batch::request::{self, Behind, Call};

const MOST_CALLS: usize = 3;

/// The calls are those that a plain reader of JSON finds, each has the credentials of the batch and no other, and on the
/// wire httparse reads the same request in it.
pub fn batch(input: &[u8]) {
    let mut head = RequestHeader::build("POST", b"/api/v1/batch", None).expect("it is good");
    for (name, value) in [("host", "api.test"), ("authorization", "Bearer t")] {
        head.insert_header(name, value).expect("both are good");
    }
    let limits = HeadLimits {
        head: 8 << 10,
        target: 2 << 10,
        fields: 30,
    };
    let behind = Behind {
        head: &head,
        request_id: "req_1",
        limits: &limits,
        most: MOST_CALLS,
    };
    let Ok(calls) = request::read(input, &behind) else {
        return;
    };
    assert!((1..=MOST_CALLS).contains(&calls.len()));
    let ids: BTreeSet<_> = calls.iter().map(|call| &call.id).collect();
    assert_eq!(ids.len(), calls.len(), "two have one id");
    calls.iter().for_each(is_one_request);
    // Members that are passed on unread may hold what this reader does not take, as `1e999`.
    let Ok(plain) = serde_json::from_slice::<Value>(input) else {
        return;
    };
    let said = plain["calls"].as_array().expect("a list");
    assert_eq!(said.len(), calls.len());
    for (call, said) in calls.iter().zip(said) {
        assert_eq!(said["id"], call.id.as_str());
        assert_eq!(said["method"], call.head.method.as_str());
        let body = call.body.as_deref();
        let is_text = body.and_then(|body| std::str::from_utf8(body).ok());
        let is_same = match &said["body"] {
            Value::Null => body.is_none() || body == Some(b"null"),
            Value::String(text) if is_text == Some(text) => true,
            value => body.is_some_and(|body| is_value(body, value)),
        };
        assert!(is_same, "{body:?} is not {}", said["body"]);
    }
}

fn is_value(text: &[u8], value: &Value) -> bool {
    serde_json::from_slice::<Value>(text).is_ok_and(|read| read == *value)
}

fn is_one_request(call: &Call) {
    let fields = &call.head.headers;
    let only = |name| {
        let mut lines = fields.get_all(name).iter();
        (lines.next(), lines.next())
    };
    assert_eq!(
        only(HOST),
        (Some(&HeaderValue::from_static("api.test")), None)
    );
    let credentials = HeaderValue::from_static("Bearer t");
    assert_eq!(only(AUTHORIZATION), (Some(&credentials), None));
    for name in [
        "cookie",
        "x-api-key",
        "connection",
        "transfer-encoding",
        "x-forwarded-for",
    ] {
        assert!(!fields.contains_key(name), "{name}");
    }
    if let Some(length) = fields.get(CONTENT_LENGTH) {
        let body = call.body.as_ref().map_or(0, |body| body.len());
        assert_eq!(length, &body.to_string());
    } else {
        assert_eq!(call.body, None);
    }
    let target = call
        .head
        .uri
        .path_and_query()
        .expect("it has a path")
        .as_str();
    let raw = crate::inner::raw(&call.head, target);
    let mut theirs = [httparse::EMPTY_HEADER; 64];
    let mut theirs = httparse::Request::new(&mut theirs);
    assert_eq!(
        theirs.parse(&raw),
        Ok(httparse::Status::Complete(raw.len()))
    );
    assert_eq!(theirs.method, Some(call.head.method.as_str()));
    assert_eq!(theirs.path, Some(target));
    assert_eq!(theirs.headers.len(), fields.len());
}

/// A key has two spellings, and who writes neither is refused, as is who writes two.
pub fn idempotency_key(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let read = |values: &[&HeaderValue]| {
        let mut fields = HeaderMap::new();
        for value in values {
            fields.append("idempotency-key", (*value).clone());
        }
        Key::read(&fields).map(|key| key.expect("there is a field"))
    };
    assert!(read(&[&value, &value]).is_err(), "of two none is taken");
    let is_bare = |b: &u8| b.is_ascii_graphic() && !b"\",;\\".contains(b);
    let is_token = (1..=255).contains(&input.len()) && input.iter().all(is_bare);
    let key = match read(&[&value]) {
        Ok(key) => key,
        Err(_) => return assert!(!is_token, "a token is refused"),
    };
    let octets = key.as_bytes();
    assert!((1..=255).contains(&octets.len()));
    assert!(octets.iter().all(|b| matches!(b, b' '..=b'~')));
    assert!(is_token || input.starts_with(b"\""), "it is neither");
    assert!(!is_token || octets == input);
    let escaped: Vec<u8> = octets
        .iter()
        .flat_map(|b| match b {
            b'"' | b'\\' => vec![b'\\', *b],
            _ => vec![*b],
        })
        .collect();
    let quoted = [b"\"", &escaped[..], b"\""].concat();
    let quoted = HeaderValue::from_bytes(&quoted).expect("it is of the visible ones");
    assert_eq!(read(&[&quoted]), Ok(key), "both spellings are one");
}

/// A document is within its bounds, and is what a plain reader reads.
pub fn document(input: &[u8]) {
    const BOUNDS: Bounds = Bounds {
        depth: 6,
        values: 40,
    };
    // By this name the plain reader reads a text in a text. Ours takes it for a name, and has no more to be compared with.
    if memchr::memmem::find(input, b"$serde_json::private").is_some() {
        return;
    }
    let plain = serde_json::from_slice::<Value>(input);
    assert_eq!(json::is_well_formed(input), plain.is_ok());
    if BOUNDS.check(input).is_ok() {
        assert!(BOUNDS.check_size(input).is_ok(), "it is less strict");
    }
    if let (Ok(plain), Ok(())) = (&plain, BOUNDS.check_size(input)) {
        let (depth, values) = extent(plain);
        assert!(depth <= BOUNDS.depth && values <= BOUNDS.values);
    }
    let Ok(document) = json::read(input, BOUNDS) else {
        return;
    };
    assert_eq!(plain.ok().as_ref(), Some(&document));
    assert!(!has_nul(&document), "some readers end there");
}

/// Objects and lists within each other, and members and elements in all.
fn extent(value: &Value) -> (usize, usize) {
    let inner: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => return (0, 0),
    };
    let extents = inner.iter().map(|value| extent(value));
    let (depth, values) = extents.fold((0, 0), |all, one| (all.0.max(one.0), all.1 + one.1));
    (depth + 1, values + inner.len())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(list) => list.iter().any(has_nul),
        Value::Object(members) => {
            let mut members = members.iter();
            members.any(|(name, value)| name.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}

/// A line is a `Connection`. What it names is gone; and it is refused exactly when it names what a policy has to read.
pub fn nominated(input: &[u8]) {
    const POLICIES_READ: [&str; 8] = [
        "authorization",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "transfer-encoding",
        "x-api-key",
        "x-venue-id",
    ];
    const USUAL: [&str; 6] = [
        "close",
        "keep-alive",
        "upgrade",
        "te",
        "trailer",
        "http2-settings",
    ];
    let mut fields = HeaderMap::new();
    for line in input.split(|b| *b == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            fields.append(CONNECTION, value);
        }
    }
    let lines = fields.get_all(CONNECTION).iter();
    let text: Vec<_> = lines
        .map(|line| String::from_utf8_lossy(line.as_bytes()))
        .collect();
    let text = text.join(",").to_ascii_lowercase();
    let words: BTreeSet<&str> = text.split(',').map(|word| word.trim_ascii()).collect();
    let is_name = |word: &&&str| HeaderName::from_bytes(word.as_bytes()).is_ok();
    let among = |list: &[&str]| {
        let is_there = |word: &&str| list.contains(word) || word.starts_with("x-forwarded-");
        words.iter().filter(is_name).any(is_there)
    };
    let Ok(names) = nominated::of(&fields) else {
        return assert!(among(&nominated::NEEDED), "nothing is needed of that");
    };
    assert!(!among(&POLICIES_READ), "a policy reads it, and it goes");
    for word in words.iter().filter(|word| !USUAL.contains(*word)) {
        if let Ok(name) = HeaderName::from_bytes(word.as_bytes()) {
            assert!(names.contains(&name), "{name} stays");
        }
    }
    for name in &names {
        assert!(words.contains(name.as_str()), "{name} was not named");
    }
}
