//! What an operation answers: the service's own answers, the gateway's, and each refusal of the table that its requests can
//! come to.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::subject::Subject;
use crate::admit::auth::AuthRule;
use crate::admit::idempotency::{IdempotencyRule, NotRun};
use crate::admit::limits::Exceeded;
use crate::forward::aggregate::Aggregate;
use crate::reply::Refusal;
use crate::reply::refusal::Parts;

/// The components that answers are made of.
#[derive(Default)]
pub struct Answers {
    /// By status and codes.
    refusals: BTreeMap<String, Value>,
}

const MALFORMED: &str =
    "A path, a header field or a body cannot be read, or could be read in two ways";

/// One of each that an operation may be refused with; what a request meets before its path is looked at is told in the
/// description of the whole.
fn samples() -> Vec<Refusal> {
    vec![
        Refusal::BadBody(MALFORMED),
        Refusal::NotRun(NotRun::NoKey),
        Refusal::AuthRequired,
        Refusal::InvalidToken,
        Refusal::TokenExpired,
        Refusal::Forbidden("The caller, or its page's origin, may not do this"),
        Refusal::NotFound,
        Refusal::RequestTimeout,
        Refusal::NotRun(NotRun::InProgress),
        Refusal::NotRun(NotRun::Unknown),
        Refusal::NotRun(NotRun::Unkept(http::StatusCode::OK)),
        Refusal::PayloadTooLarge,
        Refusal::UnsupportedMediaType,
        Refusal::Invalid(Box::default()),
        Refusal::NotRun(NotRun::Reused),
        Refusal::WebSocketVersion,
        Refusal::RateLimited(Exceeded::after_ms(0, 0)),
        Refusal::WebhookFailed,
        Refusal::Internal,
        Refusal::BadGateway,
        Refusal::CannotTell,
        Refusal::Unavailable {
            service: "…".into(),
            retry_after_secs: 1,
        },
        Refusal::GatewayTimeout,
        Refusal::NotCached,
    ]
}

/// Whether a request for this can be answered so. A new row of the table has to be thought of here, and in [`samples`].
fn is_possible(refusal: &Refusal, of: &Subject<'_>) -> bool {
    let is_public = of.auth() == AuthRule::Public;
    let is_webhook = of.is_webhook();
    let idempotency = of.idempotency();
    let is_aggregate = of.aggregate().is_some();
    // What a source says of who asks is the answer.
    let depends = |aggregate: &Aggregate| aggregate.sources().any(|(_, is_required)| is_required);
    let depends = of.aggregate().is_some_and(depends);
    let is_asked = of.is_forwarded() || is_aggregate;
    let refreshes = of.refreshes();
    match refusal {
        Refusal::BadBody(_)
        | Refusal::Forbidden(_)
        | Refusal::RateLimited(_)
        | Refusal::Internal
        // Content may come with any method.
        | Refusal::PayloadTooLarge => true,
        Refusal::AuthRequired => !is_public,
        Refusal::InvalidToken => !is_public || refreshes || depends,
        Refusal::TokenExpired => !is_public || refreshes,
        Refusal::NotFound => of.is_confined() || depends,
        Refusal::RequestTimeout => of.is_forwarded() || of.is_read() || of.has_body(),
        Refusal::UnsupportedMediaType => of.is_read() || of.is_batch(),
        Refusal::Invalid(_) => of.is_validated(),
        Refusal::WebSocketVersion => of.websocket().is_some(),
        Refusal::NotRun(NotRun::NoKey) => idempotency == Some(IdempotencyRule::Required),
        Refusal::NotRun(_) => idempotency.is_some(),
        Refusal::WebhookFailed => is_webhook,
        Refusal::BadGateway | Refusal::GatewayTimeout => is_asked && !is_webhook,
        Refusal::Unavailable { .. } => (is_asked && !is_webhook) || refreshes || of.is_batch(),
        Refusal::CannotTell => !is_public,
        Refusal::NotCached => of.cache().is_some(),
        // The same as others to a client, or nothing that an operation of the document is answered with.
        Refusal::Malformed(_)
        | Refusal::BadPath(_)
        | Refusal::BadHeader(_)
        | Refusal::BadQuery(_)
        | Refusal::AmbiguousVenue(_)
        | Refusal::NotInABatch
        | Refusal::ForeignVenue { .. }
        | Refusal::ForeignTenant(_)
        | Refusal::MethodNotAllowed(_)
        | Refusal::Misdirected
        | Refusal::UriTooLong
        | Refusal::ExpectationFailed
        | Refusal::HeadersTooLarge
        | Refusal::VersionNotSupported
        | Refusal::TooManyStreams
        | Refusal::Overloaded(_) => false,
    }
}

// === impl Answers ===

impl Answers {
    pub fn into_components(self) -> BTreeMap<String, Value> {
        self.refusals
    }

    /// `responses` of an operation.
    pub fn of(&mut self, of: &Subject<'_>) -> Value {
        let mut responses = Map::new();
        let (status, good) = good(of);
        responses.insert(status.into(), good);
        if of.websocket().is_some() {
            let opened = json!({ "description": "It is a WebSocket from here on" });
            responses.insert("101".into(), opened);
        }
        if of.is_forwarded() {
            let other = json!({ "description": "Any other answer of the service, passed on" });
            responses.insert("default".into(), other);
        }
        let mut by_status: BTreeMap<u16, Vec<Refusal>> = BTreeMap::new();
        for refusal in samples()
            .into_iter()
            .filter(|refusal| is_possible(refusal, of))
        {
            let status = refusal.parts().status.as_u16();
            by_status.entry(status).or_default().push(refusal);
        }
        for (status, refusals) in by_status {
            let name = self.component(status, &refusals);
            let to = json!({ "$ref": format!("#/components/responses/{name}") });
            responses.insert(status.to_string(), to);
        }
        Value::Object(responses)
    }

    fn component(&mut self, status: u16, refusals: &[Refusal]) -> String {
        let mut codes: Vec<&str> = refusals
            .iter()
            .map(|refusal| refusal.parts().code)
            .collect();
        codes.dedup();
        let name = format!("{status}-{}", codes.join("."));
        self.refusals
            .entry(name.clone())
            .or_insert_with(|| refused(status, &codes, refusals));
        name
    }
}

/// The answer to a request that goes well.
fn good(of: &Subject<'_>) -> (&'static str, Value) {
    let mut headers = Map::new();
    let mut add = |name: &str| drop(headers.insert(name.to_owned(), header(name)));
    add("X-Request-ID");
    if of.is_limited() {
        RATES.iter().for_each(|name| add(name));
    }
    if of.cache().is_some() {
        add("Cache-Status");
        add("Age");
    }
    if of.idempotency().is_some() {
        add("Idempotent-Replayed");
    }
    let (status, description, schema) = match () {
        () if of.is_batch() => (
            "200",
            "What came of each call",
            Some(schema("BatchResults")),
        ),
        () if of.refreshes() => ("200", "New tokens", Some(schema("Tokens"))),
        () => match of.aggregate() {
            Some(sources) => ("200", "What the sources say", Some(aggregate(sources))),
            None => ("2XX", "The service's answer", None),
        },
    };
    let mut answer = json!({ "description": description, "headers": headers });
    if let Some(schema) = schema {
        answer["content"] = json!({ "application/json": { "schema": schema } });
    }
    (status, answer)
}

const RATES: [&str; 3] = [
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
];

fn refused(status: u16, codes: &[&str], refusals: &[Refusal]) -> Value {
    let lines: Vec<String> = refusals
        .iter()
        .map(|refusal| {
            let Parts { code, message, .. } = refusal.parts();
            format!("`{code}`: {message}")
        })
        .collect();
    let mut headers = Map::new();
    let mut add = |name: &str| drop(headers.insert(name.to_owned(), header(name)));
    add("X-Request-ID");
    if refusals
        .iter()
        .any(|refusal| refusal.retry_after_secs().is_some())
    {
        add("Retry-After");
    }
    if refusals.iter().any(|refusal| refusal.challenge().is_some()) {
        add("WWW-Authenticate");
    }
    if status == 429 {
        RATES.iter().for_each(|name| add(name));
    }
    let is_about = json!({ "statusCode": { "const": status }, "code": { "enum": codes } });
    let mut schema = json!({
        "allOf": [{ "$ref": "#/components/schemas/Error" }],
        "properties": is_about,
    });
    if refusals
        .iter()
        .any(|refusal| matches!(refusal, Refusal::Invalid(_)))
    {
        schema["properties"]["details"] =
            json!({ "$ref": "#/components/schemas/ValidationDetails" });
    }
    json!({
        "description": lines.join("; "),
        "headers": headers,
        "content": { "application/json": { "schema": schema } },
    })
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn header(name: &str) -> Value {
    json!({ "$ref": format!("#/components/headers/{name}") })
}

fn aggregate(of: &Aggregate) -> Value {
    let (mut members, mut required) = (Map::new(), Vec::new());
    for (name, _) in of.sources() {
        members.insert(name.to_owned(), json!(true));
        required.push(name);
    }
    json!({
        "type": "object",
        "required": ["data", "errors", "meta"],
        "properties": {
            "data": { "type": "object", "properties": members, "required": required },
            "errors": { "type": "array", "items": { "$ref": "#/components/schemas/SourceError" } },
            "meta": { "$ref": "#/components/schemas/AggregateMeta" },
        },
    })
}
