//! May this page's origin call us? Preflights are answered here; other requests of an unknown origin are refused,
//! as the documentation has it. Requests without `Origin` (mobile apps, servers) pass.
//!
//! The verdict falls in `request_filter`; [`Cors::stamp`] is its other side, on the answer.

use std::collections::HashSet;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::config::{Problems, Stage};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE, OPTIONS");
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static(
    "Accept, Accept-Language, Authorization, Cache-Control, Content-Language, Content-Type, Idempotency-Key, \
     If-Match, If-Modified-Since, If-None-Match, If-Unmodified-Since, Range, Traceparent, X-API-Key, X-Request-ID, \
     X-Request-Deadline, X-Requested-With, X-Tenant-ID, X-Venue-ID",
);
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "X-Request-ID, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After, Location, ETag",
);

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CorsConfig {
    /// Whole origins, as browsers send them: `https://app.example.com`.
    pub allowed_origins: Vec<String>,
    /// How long a browser may remember a preflight.
    pub max_age: crate::config::Duration,
}

pub struct Cors {
    allowed: HashSet<String>,
    allow_localhost: bool,
    max_age: HeaderValue,
}

/// What a request says of where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// No `Origin`: not a browser, or a same-origin GET.
    #[default]
    None,
    /// An origin that may call us.
    Allowed(HeaderValue),
}

#[derive(Debug, PartialEq, Eq)]
pub struct OriginNotAllowed;

impl Default for CorsConfig {
    fn default() -> Self {
        Self {
            allowed_origins: vec![
                "http://api-gateway:3000".into(),
                "http://frontend:5173".into(),
            ],
            max_age: crate::config::Duration::secs(600),
        }
    }
}

impl CorsConfig {
    pub fn compile(self, stage: Stage, problems: &mut Problems) -> Cors {
        let Self {
            allowed_origins,
            max_age,
        } = self;
        for (i, origin) in allowed_origins.iter().enumerate() {
            check_origin(&format!("cors.allowed_origins[{i}]"), origin, problems);
        }
        Cors {
            allowed: allowed_origins
                .into_iter()
                .map(|o| o.to_ascii_lowercase())
                .collect(),
            allow_localhost: stage == Stage::Development,
            max_age: HeaderValue::from(max_age.0.as_secs()),
        }
    }
}

impl Cors {
    /// # Errors
    /// When the request names an origin that is not on the list, or several.
    pub fn check(&self, headers: &HeaderMap, scheme: &str) -> Result<Origin, OriginNotAllowed> {
        let Some(origin) = headers.get(ORIGIN) else {
            return Ok(Origin::None);
        };
        let is_alone = headers.get_all(ORIGIN).iter().nth(1).is_none();
        let text = origin.to_str().map_err(|_| OriginNotAllowed)?;
        let known = self.allowed.contains(text)
            || self.allowed.contains(&text.to_ascii_lowercase())
            || is_same_origin(scheme, headers)
            || (self.allow_localhost && is_localhost(text));
        if known && is_alone {
            Ok(Origin::Allowed(origin.clone()))
        } else {
            Err(OriginNotAllowed)
        }
    }

    /// Whether the request only asks for permission (Fetch standard, "CORS-preflight request").
    pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        method == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// What a preflight is answered with, on top of [`Cors::stamp`].
    pub fn stamp_preflight(&self, fields: &mut HeaderMap) {
        fields.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        fields.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
        fields.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
    }

    /// Marks an answer for the page. What a backend says on the matter was taken out: one place decides.
    pub fn stamp(origin: &Origin, fields: &mut HeaderMap) {
        fields.append(VARY, ORIGIN_NAME);
        if let Origin::Allowed(origin) = origin {
            fields.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            fields.insert(
                ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
            fields.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        }
    }
}

/// Whether an entry of the configuration is one whole origin.
pub fn check_origin(place: &str, origin: &str, problems: &mut Problems) {
    match origin.split_once("://") {
        _ if origin == "*" || origin == "null" => problems.add(
            place,
            "credentials are allowed, so each origin must be named",
        ),
        Some(("http" | "https", host)) if !host.is_empty() && !host.contains('/') => {}
        _ => problems.add(
            place,
            format!("`{origin}` is not an origin such as https://app.example.com"),
        ),
    }
}

/// Answers differ by origin, and caches must know it.
const ORIGIN_NAME: HeaderValue = HeaderValue::from_static("Origin");

/// Whether `Origin` is where the request was sent.
pub fn is_same_origin(scheme: &str, headers: &HeaderMap) -> bool {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin = origin.unwrap_or_default();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    match (host, origin.split_once("://")) {
        (Some(host), Some((given, origin))) => {
            given.eq_ignore_ascii_case(scheme) && origin.eq_ignore_ascii_case(host)
        }
        _ => false,
    }
}

fn is_localhost(origin: &str) -> bool {
    let Some((_, host)) = origin.split_once("://") else {
        return false;
    };
    let ports = ["localhost", "127.0.0.1", "[::1]"]
        .into_iter()
        .filter_map(|name| host.strip_prefix(name));
    ports.into_iter().any(|port| match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stage: Stage, origins: &[&str]) -> Result<Origin, OriginNotAllowed> {
        let config = CorsConfig {
            allowed_origins: vec!["https://app.example".into()],
            ..Default::default()
        };
        let cors = config.compile(stage, &mut Problems::default());
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "api.example".parse().unwrap());
        for origin in origins {
            headers.append(ORIGIN, origin.parse().unwrap());
        }
        cors.check(&headers, "https")
    }

    #[test]
    fn origins_are_whole_names() {
        use Stage::{Development, Production};
        assert_eq!(check(Production, &[]), Ok(Origin::None));
        assert!(check(Production, &["https://app.example"]).is_ok());
        assert!(
            check(Production, &["https://api.example"]).is_ok(),
            "the same origin"
        );
        for bad in [
            "https://app.example.evil",
            "https://evil-app.example",
            "null",
            "http://localhost:5173",
            "app.example",
        ] {
            assert_eq!(check(Production, &[bad]), Err(OriginNotAllowed), "{bad}");
        }
        assert_eq!(
            check(Production, &["https://app.example", "https://app.example"]),
            Err(OriginNotAllowed)
        );
        for good in [
            "http://localhost:5173",
            "https://127.0.0.1",
            "http://[::1]:3000",
        ] {
            assert!(check(Development, &[good]).is_ok(), "{good}");
        }
        assert_eq!(
            check(Development, &["http://localhost.evil"]),
            Err(OriginNotAllowed)
        );
    }
}
