//! One operation, as the document describes it: who may, with what, how often, for how long, and what comes back.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answers::Answers;
use super::own;
use super::paths::Shown;
use super::schemas::Schemas;
use super::subject::Subject;
use super::words;
use crate::admit::auth::AuthRule;
use crate::admit::idempotency::IdempotencyRule;
use crate::admit::limits::Rule;
use crate::admit::schema::Parameter;
use crate::route::METHODS;

/// What operations are put together from.
pub struct Parts<'a> {
    pub schemas: Schemas<'a>,
    pub answers: Answers,
}

impl<'a> Parts<'a> {
    pub fn new(schemas: Schemas<'a>) -> Self {
        Self {
            schemas,
            answers: Answers::default(),
        }
    }
}

/// As OpenAPI calls its credentials.
fn security(of: &Subject<'_>) -> Value {
    match of.auth() {
        _ if of.is_batch() => json!([{}, { "bearer": [] }, { "apiKey": [] }]),
        AuthRule::Public => json!([]),
        AuthRule::Token => json!([{ "bearer": [] }]),
        AuthRule::TokenOrKey => json!([{ "bearer": [] }, { "apiKey": [] }]),
        AuthRule::Ops if of.is_near => json!([{}, { "bearer": [] }]),
        AuthRule::Ops => json!([{ "bearer": [] }]),
    }
}

/// `tag`: what it stands under; `id`: its name.
pub fn describe(
    of: &Subject<'_>,
    path: &Shown,
    tag: &str,
    id: &str,
    parts: &mut Parts<'_>,
) -> Value {
    let mut operation = json!({
        "operationId": id,
        "tags": [tag],
        "summary": words::summary(of),
        "description": words::description(of),
        "security": security(of),
        "responses": parts.answers.of(of),
    });
    let parameters = parameters(of, path, &mut parts.schemas);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = body(of, &mut parts.schemas) {
        operation["requestBody"] = body;
    }
    if let Value::Object(members) = &mut operation {
        members.extend(extensions(of));
    }
    operation
}

fn parameters(of: &Subject<'_>, path: &Shown, schemas: &mut Schemas<'_>) -> Vec<Value> {
    let ruled = of.rules().map_or_else(Vec::new, |rules| rules.parameters());
    let mut shown = Vec::new();
    for parameter in &path.parameters {
        let is_it = |ruled: &&Parameter| {
            ruled.part == "path" && parameter.own.as_ref() == Some(&ruled.name)
        };
        let schema = match ruled.iter().find(is_it) {
            Some(ruled) => schemas.show(&ruled.source),
            None => json!({ "type": "string", "minLength": 1 }),
        };
        let mut value = json!({
            "name": parameter.name, "in": "path", "required": true, "schema": schema,
        });
        if parameter.may_have_slashes {
            value["description"] = "The rest of the path, in which slashes may be".into();
            value["x-slashes"] = true.into();
        }
        shown.push(value);
    }
    let needs_key = of.idempotency() == Some(IdempotencyRule::Required);
    for parameter in ruled.iter().filter(|parameter| parameter.part != "path") {
        let mut value = json!({
            "name": parameter.name,
            "in": parameter.part,
            "required": parameter.is_required || (is_key(parameter) && needs_key),
            "schema": schemas.show(&parameter.source),
        });
        if parameter.has_commas && parameter.part == "query" {
            value["explode"] = false.into();
        }
        shown.push(value);
    }
    if of.idempotency().is_some() && !ruled.iter().any(is_key) {
        shown.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "required": needs_key,
            "description": "What tells this write from every other one of the caller",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255 },
        }));
    }
    shown
}

/// Whether a schema speaks of it; names of fields are in lower case there.
fn is_key(parameter: &Parameter) -> bool {
    parameter.part == "header" && parameter.name == "idempotency-key"
}

fn body(of: &Subject<'_>, schemas: &mut Schemas<'_>) -> Option<Value> {
    if let Some(batch) = of.batch() {
        let schema = own::batch_request(batch.most);
        return Some(json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        }));
    }
    if of.refreshes() {
        let schema = json!({ "$ref": "#/components/schemas/RefreshRequest" });
        return Some(json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        }));
    }
    if let Some(bodies) = of.rules().and_then(|rules| rules.bodies()) {
        let sources = bodies.sources.into_iter();
        let content: Map<String, Value> = sources
            .map(|(kind, source)| {
                let range = match kind.strip_suffix('/') {
                    Some(_) => format!("{kind}*"),
                    None => kind.to_owned(),
                };
                (range, json!({ "schema": schemas.show(source) }))
            })
            .collect();
        return Some(json!({ "required": bodies.is_required, "content": content }));
    }
    // What the service takes is the service's matter.
    of.has_body().then(|| {
        let mut content = json!({ "application/json": {} });
        if of.is_webhook() || !of.is_read() {
            content["application/octet-stream"] = json!({});
        }
        json!({ "required": false, "content": content })
    })
}

/// What OpenAPI has no words for, for programs.
fn extensions(of: &Subject<'_>) -> Map<String, Value> {
    let mut added = Map::new();
    let mut add = |name: &str, value: Value| drop(added.insert(name.to_owned(), value));
    let budget = u64::try_from(of.budget().as_millis()).unwrap_or(u64::MAX);
    add("x-timeout-ms", budget.into());
    if of.has_body() {
        add("x-body-limit", of.largest_body().into());
        if let Some(keyed) = of.largest_keyed_body() {
            add("x-keyed-body-limit", keyed.into());
        }
    }
    let limits: Vec<Value> = of.limits().map(limit_of).collect();
    if !limits.is_empty() {
        add("x-ratelimit", limits.into());
    }
    if let Some(rule) = of.idempotency() {
        add(
            "x-idempotency",
            serde_json::to_value(rule).unwrap_or_default(),
        );
    }
    if let Some(cache) = of.cache() {
        let life = json!({
            "ttl": cache.life,
            "staleWhileRevalidate": cache.stale_while_revalidate,
            "staleIfError": cache.stale_if_error,
        });
        add("x-cache", life);
    }
    if let Some(websocket) = of.websocket() {
        add("x-websocket", json!({ "protocols": websocket.protocols }));
    }
    if let Some(mode) = of.mode().filter(|_| of.rules().is_some()) {
        add(
            "x-validation",
            serde_json::to_value(mode).unwrap_or_default(),
        );
    }
    let Some(route) = of.route() else {
        return added;
    };
    if let Some(required) = route.permission(of.method) {
        add("x-permission", required.permission().into());
    }
    if route.owner_only {
        add("x-owner-only", true.into());
    }
    if route.webhook {
        add("x-webhook", true.into());
    }
    added
}

fn limit_of(rule: &Rule) -> Value {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let mut limit = json!({
        "name": if rule.name.is_empty() { "global" } else { &*rule.name },
        "max": rule.max,
        "windowMs": millis(rule.window),
    });
    if !rule.block.is_zero() {
        limit["blockMs"] = millis(rule.block).into();
    }
    if rule.skip_successes {
        limit["countsFailures"] = true.into();
    }
    if rule.per_event {
        limit["perEvent"] = true.into();
    }
    limit
}

/// The segment that tells what a path is about: neither `api` nor a version.
pub fn tag(template: &str) -> &str {
    let is_version = |segment: &str| {
        let number = segment.strip_prefix('v').unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    };
    let mut segments = template.split('/').filter(|segment| !segment.is_empty());
    let telling = segments
        .find(|segment| *segment != "api" && !is_version(segment) && !segment.starts_with('{'));
    telling.unwrap_or("other")
}

/// As in `getApiV1VenuesVenue`.
pub fn id(method: &str, template: &str) -> String {
    let words = template.split(|c: char| !c.is_ascii_alphanumeric());
    let mut id = method.to_owned();
    for word in words.filter(|word| !word.is_empty()) {
        let (first, rest) = word.split_at(1);
        id.push_str(&first.to_ascii_uppercase());
        id.push_str(rest);
    }
    id
}

/// What OpenAPI calls the method.
pub fn key(of: &Subject<'_>) -> String {
    METHODS[of.method.0].as_str().to_ascii_lowercase()
}
