//! The gateway's own schemas and header fields, which operations refer to.

use std::collections::BTreeMap;

use http::Method;
use serde_json::{Value, json};

use super::schemas::Schemas;

/// `components.headers`
pub fn headers() -> BTreeMap<String, Value> {
    let of = |name: &str, kind: &str, description: &str| {
        let header = json!({ "description": description, "schema": { "type": kind } });
        (name.to_owned(), header)
    };
    BTreeMap::from([
        of("X-Request-ID", "string", "What the log calls the request"),
        of(
            "X-RateLimit-Limit",
            "integer",
            "Of the tightest limit: requests in its window",
        ),
        of(
            "X-RateLimit-Remaining",
            "integer",
            "How many of them are left",
        ),
        of(
            "X-RateLimit-Reset",
            "integer",
            "Seconds until there are all again",
        ),
        of(
            "Retry-After",
            "integer",
            "Seconds until another try makes sense",
        ),
        of("WWW-Authenticate", "string", "The challenge (RFC 6750)"),
        of("Cache-Status", "string", "What the cache did (RFC 9211)"),
        of(
            "Age",
            "integer",
            "Seconds since the service gave the answer (RFC 9111)",
        ),
        of(
            "Idempotent-Replayed",
            "string",
            "`true`: the answer was given before, to the same write",
        ),
    ])
}

/// The gateway's own schemas.
pub fn add_schemas(schemas: &mut Schemas) {
    schemas.add(
        "Error",
        json!({
            "description": "What the gateway says when it does not pass a request on",
            "type": "object",
            "required": ["statusCode", "error", "message", "code", "requestId", "timestamp"],
            "properties": {
                "statusCode": { "type": "integer" },
                "error": { "type": "string", "description": "The status in words" },
                "message": { "type": "string", "description": "For people; it may change" },
                "code": { "type": "string", "description": "For programs; it does not change" },
                "details": { "description": "More, where there is more to say" },
                "requestId": { "type": "string" },
                "timestamp": { "type": "string", "format": "date-time" },
            },
        }),
    );
    schemas.add(
        "ValidationDetails",
        json!({
            "type": "object",
            "required": ["field", "message", "errors", "more"],
            "properties": {
                "field": { "type": ["string", "null"], "description": "Of the first fault" },
                "message": { "type": ["string", "null"], "description": "Of the first fault" },
                "errors": { "type": "array", "items": {
                    "type": "object",
                    "required": ["in", "pointer", "message"],
                    "properties": {
                        "in": { "enum": ["path", "query", "header", "body"] },
                        "pointer": { "type": "string", "description": "A JSON pointer (RFC 6901)" },
                        "message": { "type": "string" },
                    },
                } },
                "more": { "type": "boolean", "description": "There are further faults" },
            },
        }),
    );
    schemas.add(
        "SourceError",
        json!({
            "description": "Why a source is missing",
            "type": "object",
            "required": ["source", "statusCode", "error", "message", "code"],
            "properties": {
                "source": { "type": "string" },
                "statusCode": { "type": "integer" },
                "error": { "type": ["string", "null"] },
                "message": { "type": "string" },
                "code": { "type": "string" },
            },
        }),
    );
    schemas.add("AggregateMeta", json!({
        "type": "object",
        "required": ["requestId", "timestamp", "partial", "sources"],
        "properties": {
            "requestId": { "type": "string" },
            "timestamp": { "type": "string", "format": "date-time" },
            "partial": { "type": "boolean", "description": "Something is missing: `errors` says what" },
            "sources": { "type": "object", "additionalProperties": { "enum": ["ok", "fallback", "failed"] } },
        },
    }));
    schemas.add(
        "Tokens",
        json!({
            "type": "object",
            "required": ["accessToken", "refreshToken"],
            "properties": {
                "accessToken": { "type": "string" },
                "refreshToken": { "type": "string" },
            },
        }),
    );
    schemas.add(
        "RefreshRequest",
        json!({
            "type": "object",
            "required": ["refreshToken"],
            "properties": { "refreshToken": { "type": "string" } },
        }),
    );
    schemas.add("BatchResults", json!({
        "type": "object",
        "required": ["results"],
        "properties": { "results": { "type": "array", "items": {
            "type": "object",
            "required": ["id", "status", "headers", "body"],
            "properties": {
                "id": { "type": "string" },
                "status": { "type": "integer" },
                "headers": { "type": "object", "additionalProperties": { "type": "string" } },
                "body": { "description": "JSON as it is, other text as a string" },
                "encoding": { "const": "base64", "description": "The body is neither" },
                "truncated": { "const": true, "description": "The answer was too large, and its body is left out" },
            },
        } } },
    }));
}

/// The body of a batch of at most so many calls.
pub fn batch_request(most: usize) -> Value {
    let methods = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let methods: Vec<&str> = methods.iter().map(Method::as_str).collect();
    json!({
        "type": "object",
        "required": ["calls"],
        "additionalProperties": false,
        "properties": { "calls": { "type": "array", "minItems": 1, "maxItems": most, "items": {
            "type": "object",
            "required": ["id", "method", "path"],
            "additionalProperties": false,
            "properties": {
                "id": { "type": "string", "minLength": 1, "maxLength": 64 },
                "method": { "enum": methods },
                "path": { "type": "string", "description": "With the query, as in /api/v1/events?page=2" },
                "headers": { "type": "object", "additionalProperties": { "type": "string" } },
                "body": {},
            },
        } } },
    })
}
