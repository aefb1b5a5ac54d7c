//! The body of POST /auth/refresh: `{"refreshToken": "…"}`. What could be read in two ways is refused.

use std::fmt;

use http::HeaderMap;
use serde::Deserializer;
use serde::de::{Error, MapAccess, Visitor};

use crate::admit::media::{self, Media};
use crate::reply::Refusal;

/// In bytes.
pub const LARGEST: usize = 16 << 10;

const NO_JSON: Refusal = Refusal::BadBody("The body must be JSON, without a coding");
const NO_TOKEN: Refusal =
    Refusal::BadBody("The body must be a JSON object with one refreshToken, a string");

/// # Errors
/// When the body is announced as something else.
pub fn check_fields(fields: &HeaderMap) -> Result<(), Refusal> {
    match Media::of(fields) {
        Ok(media) if media.essence.as_deref() == Some(media::JSON) => Ok(()),
        _ => Err(NO_JSON),
    }
}

/// The token in it.
///
/// # Errors
/// When it is not exactly one.
pub fn token_of(body: &[u8]) -> Result<String, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let token = json.deserialize_map(Finder).map_err(|_| NO_TOKEN)?;
    json.end().map_err(|_| NO_TOKEN)?;
    token.ok_or(NO_TOKEN)
}

struct Finder;

impl<'de> Visitor<'de> for Finder {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one refreshToken")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = object.next_key::<String>()? {
            if name != "refreshToken" {
                // Read, not skipped: skipping takes what is no text for one.
                object.next_value::<serde_json::Value>()?;
            } else if found.replace(object.next_value::<String>()?).is_some() {
                return Err(Error::custom("two tokens"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_or_the_body_refused() {
        for body in [
            r#"{"refreshToken":"a.b.c"}"#,
            r#" { "device": {"refreshToken": 1}, "\u0072efreshToken" : "a.b.c" } "#,
        ] {
            assert_eq!(token_of(body.as_bytes()).as_deref(), Ok("a.b.c"), "{body}");
        }
        let no_text = b"{\"a\":\"\xff\",\"refreshToken\":\"a.b.c\"}";
        assert_eq!(token_of(no_text), Err(NO_TOKEN));
        for body in [
            "",
            "{}",
            r#"{"a":"\ud800","refreshToken":"a.b.c"}"#,
            "null",
            r#""a.b.c""#,
            r#"["a.b.c"]"#,
            r#"{"refreshToken":null}"#,
            r#"{"refreshToken":1}"#,
            r#"{"refreshToken":["a.b.c"]}"#,
            r#"{"refreshtoken":"a.b.c"}"#,
            r#"{"refreshToken":"a.b.c","refreshToken":"a.b.c"}"#,
            r#"{"refreshToken":"a.b.c","\u0072efreshToken":"d.e.f"}"#,
            r#"{"refreshToken":"a.b.c"} {}"#,
            r#"{"refreshToken":"a.b.c""#,
            "refreshToken=a.b.c",
        ] {
            assert_eq!(token_of(body.as_bytes()), Err(NO_TOKEN), "{body}");
        }
    }
}
