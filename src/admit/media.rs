//! In what form is a body? What its fields say: type, character set and coding.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use crate::reply::Refusal;

/// A body's type, in lower case and without parameters. Its text can be read: it has no coding, and is UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub struct Media {
    /// `None`: nothing is said.
    pub essence: Option<String>,
}

impl Media {
    /// # Errors
    /// When the body is in a form that hides what it says.
    pub fn of(fields: &HeaderMap) -> Result<Self, Refusal> {
        let mut codings = fields.get_all(CONTENT_ENCODING).iter();
        if codings.any(|coding| !is(coding, "identity")) {
            return Err(Refusal::UnsupportedMediaType);
        }
        let mut types = fields.get_all(CONTENT_TYPE).iter();
        let Some(given) = types.next() else {
            return Ok(Self { essence: None });
        };
        if types.next().is_some() {
            return Err(Refusal::BadBody("There is more than one Content-Type"));
        }
        let text = given.to_str().map_err(|_| Refusal::UnsupportedMediaType)?;
        let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
        let essence = parts.next().filter(|essence| !essence.is_empty());
        match parts.all(|parameter| is_readable(&parameter)) {
            true => Ok(Self { essence }),
            false => Err(Refusal::UnsupportedMediaType),
        }
    }
}

pub const JSON: &str = "application/json";

/// Whether it is JSON, or a format made of it (RFC 6839, section 3.1).
pub fn is_json(essence: &str) -> bool {
    essence == JSON || essence.ends_with("+json")
}

/// Whether a Content-Type is that of JSON, whatever parameters it has.
pub fn says_json(kind: &HeaderValue) -> bool {
    let text = kind.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    is_json(&essence.to_ascii_lowercase())
}

fn is(value: &HeaderValue, text: &str) -> bool {
    value
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(text.as_bytes())
}

/// A parameter of a type, in lower case: texts in other character sets are not read.
fn is_readable(parameter: &str) -> bool {
    let Some(charset) = parameter.strip_prefix("charset") else {
        return true;
    };
    let name = charset.trim_matches([' ', '\t', '=', '"']);
    matches!(name, "utf-8" | "utf8" | "us-ascii")
}
