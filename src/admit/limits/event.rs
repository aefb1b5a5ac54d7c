//! Which event is it about? The ticket limit counts by user and event, and the event stands in the body (decision 31).
//!
//! The body is read before anything is forwarded, and Pingora sends it on from its own buffer. What hides the event (a
//! second name of the same spelling, another coding, something that is no JSON) is refused: otherwise it would be a way
//! to be counted elsewhere.

use std::fmt;

use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use serde::Deserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::reply::Refusal;

/// The names by which clients say the event.
const NAMES: [&str; 2] = ["eventId", "event_id"];

/// What requests without an event are counted on.
const NONE: &str = "-";

/// Longer is no id.
const LONGEST_ID: usize = 128;

/// Finds the event that a request is about, in its body.
///
/// # Errors
/// When it cannot be told.
pub fn find(fields: &HeaderMap, body: &[u8]) -> Result<Box<str>, Refusal> {
    if fields.contains_key(CONTENT_ENCODING) {
        return Err(HIDDEN);
    }
    event_of(body)
}

const HIDDEN: Refusal = Refusal::BadBody("The body must be a JSON object that names one event");

fn event_of(body: &[u8]) -> Result<Box<str>, Refusal> {
    if body.is_empty() {
        return Ok(NONE.into());
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let found = json.deserialize_map(Finder).map_err(|_| HIDDEN)?;
    json.end().map_err(|_| HIDDEN)?;
    match found {
        None => Ok(NONE.into()),
        Some(id) if !id.is_empty() && id.len() <= LONGEST_ID => Ok(id.into()),
        Some(_) => Err(HIDDEN),
    }
}

/// Looks at the names of an object, as they are when their escapes are read.
struct Finder;

impl<'de> Visitor<'de> for Finder {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that names one event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = object.next_key::<String>()? {
            if !NAMES.iter().any(|wanted| name.eq_ignore_ascii_case(wanted)) {
                object.next_value::<IgnoredAny>()?;
                continue;
            }
            let id = match object.next_value::<serde_json::Value>()? {
                serde_json::Value::String(id) => id,
                serde_json::Value::Number(id) => id.to_string(),
                _ => return Err(serde::de::Error::custom("an event's id is a text")),
            };
            if found.replace(id).is_some() {
                return Err(serde::de::Error::custom("two events are named"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_is_found_or_the_body_refused() {
        for (body, event) in [
            ("", "-"),
            ("{}", "-"),
            (r#"{"quantity":2}"#, "-"),
            (
                r#"{"quantity":2,"eventId":"e1","more":[{"eventId":"e2"}]}"#,
                "e1",
            ),
            (r#"{"event_id":42}"#, "42"),
            (r#"{"\u0065ventId":"e1"}"#, "e1"),
        ] {
            assert_eq!(event_of(body.as_bytes()).as_deref(), Ok(event), "{body}");
        }
        for body in [
            r#"{"eventId":"e1","eventId":"e2"}"#,
            r#"{"eventId":"e1","event_id":"e1"}"#,
            r#"{"eventId":"e1","EventID":"e2"}"#,
            r#"{"eventId":"e1","\u0065ventId":"e2"}"#,
            r#"{"eventId":["e1"]}"#,
            r#"{"eventId":null}"#,
            r#"{"eventId":""}"#,
            r#"[{"eventId":"e1"}]"#,
            r#"{"eventId":"e1"} {"eventId":"e2"}"#,
            "eventId=e1",
            "{",
        ] {
            assert_eq!(event_of(body.as_bytes()), Err(HIDDEN), "{body}");
        }
    }
}
