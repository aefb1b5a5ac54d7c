//! The path of a source: what stands in it, and where the rest comes from.
//!
//! A value stands for one segment, or for the value of a query parameter, and is percent-encoded as such. What another
//! source has answered is text that nobody has judged: the whole path is judged like a client's (decision 8) before it is
//! asked for.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;

use super::shape::Path;
use crate::admit::auth::Caller;
use crate::admit::head::is_target;
use crate::admit::path::normalize;
use crate::route::parameter_named;

/// A path with places to be filled.
#[derive(Debug, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(Box<str>),
    /// A parameter of the route's path, by its place there.
    Parameter(usize),
    CallerId,
    CallerTenant,
    /// Of the answer of the source at this place.
    Answer(usize, Path),
}

/// What the places are named after.
pub struct Names<'a> {
    /// The route's path.
    pub path: &'a str,
    pub sources: &'a [String],
}

/// What the places are filled with.
pub struct Values<'a> {
    /// In the one spelling of a path.
    pub parameters: &'a [Box<str>],
    pub caller: Option<&'a Caller>,
    /// Of the source at this place.
    pub answer: &'a dyn Fn(usize) -> Option<&'a Value>,
}

/// There is no such value, or none that may stand in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

/// What stands in a segment, or in the value of a query parameter, as it is.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Of one value, in bytes.
const LONGEST: usize = 256;

impl Template {
    /// # Errors
    /// In words for the operator.
    pub fn compile(text: &str, names: &Names<'_>) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("must begin with a slash".into());
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        let mut in_query = false;
        while let Some(open) = rest.find('{') {
            let (before, after) = rest.split_at(open);
            let Some((name, behind)) = after[1..].split_once('}') else {
                return Err("a `{` is not closed".into());
            };
            in_query |= before.contains('?');
            let ends = behind.is_empty() || behind.starts_with(['/', '?', '&']);
            let begins = match in_query {
                false => before.ends_with('/'),
                true => before.ends_with('='),
            };
            if !ends || !begins {
                return Err(format!(
                    "`{{{name}}}` must be a whole segment, or the whole value of a query parameter"
                ));
            }
            pieces.push(Piece::Text(before.into()));
            pieces.push(names.piece(name)?);
            rest = behind;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        let template = Self { pieces };
        let example: String = template.example();
        let path = example.split('?').next().unwrap_or_default();
        if !is_target(example.as_bytes()) || normalize(path).is_err() {
            return Err("is not a path as it is sent: encode what is reserved".into());
        }
        Ok(template)
    }

    /// With a word in every place.
    fn example(&self) -> String {
        let pieces = self.pieces.iter().map(|piece| match piece {
            Piece::Text(text) => &**text,
            _ => "x",
        });
        pieces.collect()
    }

    /// The sources whose answers are needed.
    pub fn needs(&self) -> impl Iterator<Item = usize> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Answer(source, _) => Some(*source),
            _ => None,
        })
    }

    pub fn needs_caller(&self) -> bool {
        self.needs_user() || self.pieces.contains(&Piece::CallerTenant)
    }

    /// Whether it asks for the id of who asks.
    pub fn needs_user(&self) -> bool {
        self.pieces.contains(&Piece::CallerId)
    }

    /// # Errors
    /// When a value is missing, or would change which path it is.
    pub fn fill(&self, values: &Values<'_>) -> Result<String, Unfit> {
        let mut path = String::with_capacity(64);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => path.push_str(text),
                Piece::Parameter(place) => {
                    let segment = values.parameters.get(*place).ok_or(Unfit)?;
                    let text = percent_decode_str(segment).decode_utf8();
                    push(&mut path, &text.map_err(|_| Unfit)?)?;
                }
                Piece::CallerId => push(&mut path, &values.caller.ok_or(Unfit)?.id)?,
                Piece::CallerTenant => {
                    let tenant = values.caller.ok_or(Unfit)?.tenant.to_str();
                    push(&mut path, tenant.map_err(|_| Unfit)?)?;
                }
                Piece::Answer(source, at) => {
                    match at.find((values.answer)(*source).ok_or(Unfit)?) {
                        Some(Value::String(text)) => push(&mut path, text)?,
                        Some(Value::Number(number)) => {
                            write!(path, "{number}").map_err(|_| Unfit)?
                        }
                        _ => return Err(Unfit),
                    }
                }
            }
        }
        let bare = path.split('?').next().unwrap_or_default();
        match normalize(bare) {
            Ok(_) => Ok(path),
            Err(_) => Err(Unfit),
        }
    }
}

fn push(path: &mut String, value: &str) -> Result<(), Unfit> {
    // Some servers strip `;…` before they resolve dots.
    let is_dots = matches!(value.split(';').next(), Some("." | ".."));
    if value.is_empty() || is_dots || value.len() > LONGEST || value.chars().any(char::is_control) {
        return Err(Unfit);
    }
    path.extend(utf8_percent_encode(value, UNRESERVED));
    Ok(())
}

// === impl Names ===

impl Names<'_> {
    fn piece(&self, name: &str) -> Result<Piece, String> {
        match name {
            "caller.id" => return Ok(Piece::CallerId),
            "caller.tenant" => return Ok(Piece::CallerTenant),
            _ => {}
        }
        let Some((source, at)) = name.split_once('.') else {
            return parameter_named(self.path, name).map(Piece::Parameter).ok_or_else(|| {
                format!("the route's path has no parameter `{name}`; a source's answer is `{name}.member`")
            });
        };
        let place = self.sources.iter().position(|other| other == source);
        let place = place.ok_or_else(|| format!("there is no source `{source}`"))?;
        Ok(Piece::Answer(place, Path::compile(at)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compile(text: &str) -> Result<Template, String> {
        let sources = ["event".to_owned()];
        let path = "/api/v1/events/{event}/x/{other}";
        Template::compile(
            text,
            &Names {
                path,
                sources: &sources,
            },
        )
    }

    fn filled(text: &str, parameter: &str, answer: Value) -> Result<String, Unfit> {
        let parameters = [parameter.into(), "o".into()];
        compile(text).unwrap().fill(&Values {
            parameters: &parameters,
            caller: None,
            answer: &|_| Some(&answer),
        })
    }

    #[test]
    fn places_are_filled_as_one_segment() {
        for (parameter, expected) in [
            ("e1", "/events/e1/venue"),
            ("a%20b", "/events/a%20b/venue"),
            ("a&b=c", "/events/a%26b%3Dc/venue"),
            ("caf%C3%A9", "/events/caf%C3%A9/venue"),
        ] {
            let path = filled("/events/{event}/venue", parameter, Value::Null);
            assert_eq!(path.as_deref(), Ok(expected));
        }
        let answer = json!({"data": {"ids": [7, "v 1"]}});
        let path = filled("/v/{event.data.ids.0}", "e", answer.clone());
        assert_eq!(path.as_deref(), Ok("/v/7"));
        let path = filled("/v?id={event.data.ids.1}&x=1", "e", answer);
        assert_eq!(path.as_deref(), Ok("/v?id=v%201&x=1"));
    }

    #[test]
    fn what_would_change_the_path_does_not_fit() {
        for value in [
            json!(""),
            json!("."),
            json!(".."),
            json!("..;x"),
            json!("a/b"),
            json!("../admin"),
            json!("%2e%2e"),
            json!("a\\b"),
            json!("a\u{0}"),
            json!("a\r\nHost: x"),
            json!("x".repeat(LONGEST + 1)),
            json!(null),
            json!(true),
            json!(["a"]),
            json!({"a": "b"}),
        ] {
            let answer = json!({"v": value});
            assert_eq!(
                filled("/v/{event.v}", "e", answer.clone()),
                Err(Unfit),
                "{answer}"
            );
        }
        assert_eq!(filled("/v/{event.missing}", "e", json!({})), Err(Unfit));
        assert_eq!(filled("/v/{event.missing}", "e", json!([])), Err(Unfit));
    }

    #[test]
    fn faults_are_told_apart() {
        for (text, word) in [
            ("v", "slash"),
            ("/v/{event", "closed"),
            ("/v/{nobody}", "no parameter"),
            ("/v/{venue.id}", "no source"),
            ("/v/a{event}", "whole segment"),
            ("/v/{event}b", "whole segment"),
            ("/v?{event}", "whole segment"),
            ("/v/{event.}", "empty"),
            ("/v/../x", "as it is sent"),
            ("/v w", "as it is sent"),
        ] {
            let fault = compile(text).unwrap_err();
            assert!(fault.contains(word), "{text}: {fault}");
        }
    }
}
