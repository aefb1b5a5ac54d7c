//! What is wrong with a request: where, and what would be right. No value that the client sent is in it.

use std::fmt::Write;

use jsonschema::ValidationError;
use jsonschema::error::{TypeKind, ValidationErrorKind as Kind};
use serde::Serialize;

use super::dialect::BEFORE;
use crate::reply::Refusal;

/// Where in a request something stands; what OpenAPI calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Path,
    Query,
    Header,
    Body,
}

/// Faults in the order in which they were found: no more than are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    list: Vec<Fault>,
    /// There are further ones.
    more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Fault {
    #[serde(rename = "in")]
    part: Part,
    /// A JSON pointer (RFC 6901).
    pointer: String,
    message: String,
}

/// What a client is told, in the order in which people read it.
#[derive(Serialize)]
struct Details<'a> {
    field: Option<String>,
    message: Option<&'a str>,
    errors: &'a [Fault],
    /// There are faults that are not told.
    more: bool,
}

/// Of a pointer, in bytes: names in it are the client's.
const LONGEST_POINTER: usize = 256;

/// Of a message, in bytes: a schema may list a thousand words.
const LONGEST_MESSAGE: usize = 256;

// === impl Part ===

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
            Self::Body => "body",
        }
    }
}

// === impl Faults ===

impl Faults {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// # Errors
    /// When there are some.
    pub fn verdict(self) -> Result<(), Refusal> {
        match self.list.is_empty() {
            true => Ok(()),
            false => Err(Refusal::Invalid(Box::new(self))),
        }
    }

    pub(super) fn add_missing_body(&mut self, most: usize) {
        self.push(Part::Body, String::new(), "is required".into(), most);
    }

    /// Adds what a schema has found; false: there are `most`, and no more need be found.
    pub(super) fn add(&mut self, part: Part, error: &ValidationError<'_>, most: usize) -> bool {
        let mut pointer = error.instance_path().as_str().to_owned();
        match error.kind() {
            // What is missing is named where it should be.
            Kind::Required { property } => {
                push_segment(&mut pointer, property.as_str().unwrap_or_default());
                self.push(part, pointer, "is required".into(), most);
            }
            Kind::AdditionalProperties { unexpected }
            | Kind::UnevaluatedProperties { unexpected } => {
                for name in unexpected.iter().take(most + 1) {
                    let mut pointer = pointer.clone();
                    push_segment(&mut pointer, name);
                    self.push(part, pointer, "is not known here".into(), most);
                }
            }
            Kind::Custom { keyword, message } if keyword == BEFORE => {
                let pair: (String, String) = serde_json::from_str(message).unwrap_or_default();
                let (early, late) = pair;
                push_segment(&mut pointer, &early);
                self.push(part, pointer, format!("must be before {late}"), most);
            }
            kind => self.push(part, pointer, message_of(kind), most),
        }
        !self.more
    }

    fn push(&mut self, part: Part, mut pointer: String, mut message: String, most: usize) {
        if self.list.len() >= most {
            self.more = true;
            return;
        }
        cut(&mut pointer, LONGEST_POINTER);
        cut(&mut message, LONGEST_MESSAGE);
        self.list.push(Fault {
            part,
            pointer,
            message,
        });
    }

    /// The documented `details`, as JSON: field and message are those of the first fault.
    pub fn details(&self) -> String {
        let first = self.list.first();
        let details = Details {
            field: first.map(Fault::field),
            message: first.map(|fault| &*fault.message),
            errors: &self.list,
            more: self.more,
        };
        // Texts and numbers: there is nothing that could fail.
        serde_json::to_string(&details).unwrap_or_default()
    }

    /// For the log: where, and not what.
    pub fn places(&self) -> Vec<String> {
        let place = |fault: &Fault| format!("{}:{}", fault.part.name(), fault.pointer);
        self.list.iter().map(place).collect()
    }
}

impl Fault {
    /// As people write it: `items.0.price`; the part of the request where the whole of it is meant.
    fn field(&self) -> String {
        let names = self.pointer.split('/').skip(1);
        let names: Vec<String> = names
            .map(|name| name.replace("~1", "/").replace("~0", "~"))
            .collect();
        match names.is_empty() {
            true => self.part.name().to_owned(),
            false => names.join("."),
        }
    }
}

fn push_segment(pointer: &mut String, name: &str) {
    pointer.push('/');
    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
}

/// Cuts a text between two characters.
fn cut(text: &mut String, most: usize) {
    const CUT: &str = "…";
    if text.len() > most {
        let mut end = most - CUT.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(CUT);
    }
}

/// What would be right, in words that come from the schema alone.
fn message_of(kind: &Kind) -> String {
    match kind {
        Kind::Type { kind } => format!("must be {}", types(kind)),
        Kind::Format { format } => format!("must be a valid {}", format.trim_start_matches("x-")),
        Kind::Enum { options } => format!("must be one of {options}"),
        Kind::Constant { expected_value } => format!("must be {expected_value}"),
        Kind::Pattern { pattern } => format!("must match the pattern {pattern}"),
        Kind::MinLength { limit } => format!("must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("must have at most {limit} characters"),
        Kind::MinItems { limit } => format!("must have at least {limit} elements"),
        Kind::MaxItems { limit } => format!("must have at most {limit} elements"),
        Kind::AdditionalItems { limit } => format!("must have at most {limit} elements"),
        Kind::MinProperties { limit } => format!("must have at least {limit} members"),
        Kind::MaxProperties { limit } => format!("must have at most {limit} members"),
        Kind::Minimum { limit } => format!("must be {limit} or more"),
        Kind::Maximum { limit } => format!("must be {limit} or less"),
        Kind::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        Kind::MultipleOf { multiple_of } => format!("must be a multiple of {multiple_of}"),
        Kind::UniqueItems => "must not have the same element twice".into(),
        Kind::Contains => "lacks an element of the kind that is needed".into(),
        Kind::PropertyNames { .. } => "has a member whose name is not allowed".into(),
        Kind::AnyOf { .. } | Kind::OneOfNotValid { .. } => "has none of the forms allowed".into(),
        Kind::OneOfMultipleValid { .. } => "has more than one of the forms allowed".into(),
        Kind::UnevaluatedItems { .. } => "has more elements than are known here".into(),
        Kind::Custom { message, .. } => message.clone(),
        Kind::FalseSchema => "is not allowed".into(),
        _ => "is not valid".into(),
    }
}

fn types(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(one) => with_article(one.as_str()),
        TypeKind::Multiple(several) => {
            let mut names = String::new();
            for one in several.iter() {
                let or = if names.is_empty() { "" } else { " or " };
                // A String takes whatever is written to it.
                let _ = write!(names, "{or}{}", with_article(one.as_str()));
            }
            names
        }
    }
}

fn with_article(name: &str) -> String {
    match name {
        "null" => "null".into(),
        "array" | "integer" | "object" => format!("an {name}"),
        name => format!("a {name}"),
    }
}
