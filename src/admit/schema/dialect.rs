//! How schemas are read: JSON Schema 2020-12, with formats that count, patterns that take linear time, and two keywords.
//!
//! | | |
//! |---|---|
//! | `x-before` | of an object: `{"startDate": "endDate"}`; the one is before the other, where both are there: RFC 3339 times, times without a zone, or dates, which may be the same |
//! | `uniqueItems` | as the standard has it, in a time that no body makes quadratic |
//! | `format: x-email` | an e-mail address, spaces around it or not |
//! | `format: x-phone` | a telephone number as E.164 has it |

use std::cmp::Ordering;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jsonschema::error::ValidationErrorKind;
use jsonschema::paths::Location;
use jsonschema::{Draft, Keyword, PatternOptions, ValidationError, ValidationOptions};
use serde_json::{Map, Number, Value, json};

use super::files::Shelf;

pub const BEFORE: &str = "x-before";

/// Of a compiled pattern, in bytes. A larger one is a fault of its schema.
const LARGEST_PATTERN: usize = 1 << 20;

/// What OpenAPI adds to the formats: they say how a value is kept, not what is right.
const ANNOTATIONS: [&str; 8] = [
    "int32", "int64", "float", "double", "decimal", "password", "byte", "binary",
];

/// How the schemas of this shelf are compiled. `name`: of the file that others are relative to.
pub fn options(shelf: &Shelf, name: &str) -> ValidationOptions<'static> {
    let patterns = PatternOptions::regex()
        .size_limit(LARGEST_PATTERN)
        .dfa_size_limit(LARGEST_PATTERN);
    let options = jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_base_uri(Shelf::uri(name))
        .with_retriever(shelf.clone())
        .with_pattern_options(patterns)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        .with_format("x-email", is_email)
        .with_format("x-phone", is_phone)
        .with_keyword(BEFORE, before)
        .with_keyword("uniqueItems", unique);
    let annotation =
        |options: ValidationOptions<'static>, name| options.with_format(name, |_| true);
    ANNOTATIONS.into_iter().fold(options, annotation)
}

/// What is wrong with a schema, and what to do.
pub fn fault(error: &ValidationError<'_>) -> String {
    match error.kind() {
        ValidationErrorKind::Format { format } if format == "regex" => {
            "the pattern is none that takes linear time: no look-around, no back-references, and not too large".into()
        }
        _ => error.to_string(),
    }
}

/// What a form takes from a hand, and its service trims.
fn is_email(text: &str) -> bool {
    let address = text.trim_matches(' ');
    let Some((local, domain)) = address.rsplit_once('@') else {
        return false;
    };
    let is_local = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~.".contains(&b);
    let is_atom = |atom: &str| !atom.is_empty() && atom.bytes().all(is_local);
    let is_label = |label: &str| {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_plain)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // RFC 5321, section 4.5.3.1, and the forms that people have (section 4.1.2 without quotes and address literals).
    address.len() <= 254
        && local.len() <= 64
        && local.split('.').all(is_atom)
        && domain.contains('.')
        && domain.split('.').all(is_label)
}

/// E.164: a plus, and up to fifteen digits.
fn is_phone(text: &str) -> bool {
    let digits = text.strip_prefix('+').unwrap_or_default();
    (2..=15).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit())
        && !digits.starts_with('0')
}

// === x-before ===

/// Names of members, the earlier one first.
struct Before(Vec<(String, String)>);

fn before<'a>(
    _: &'a Map<String, Value>,
    value: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    let pairs = value.as_object().map(|pairs| {
        let pair = |(early, late): (&String, &Value)| Some((early.clone(), late.as_str()?.into()));
        pairs.iter().map(pair).collect::<Option<Vec<_>>>()
    });
    match pairs.flatten() {
        Some(pairs) if !pairs.is_empty() => Ok(Box::new(Before(pairs))),
        _ => Err(ValidationError::custom(
            "must name pairs of members, as in {\"startDate\": \"endDate\"}",
        )),
    }
}

impl Before {
    /// The first pair that is the wrong way round.
    fn fault(&self, object: &Value) -> Option<&(String, String)> {
        let text = |name: &str| object.get(name)?.as_str();
        let is_wrong = |(early, late): &&(String, String)| {
            let (Some(early), Some(late)) = (text(early), text(late)) else {
                return false; // what is there is judged elsewhere
            };
            is_late(early, late)
        };
        self.0.iter().find(is_wrong)
    }
}

/// Whether the one does not come before the other. What is no time is judged by its format.
fn is_late(early: &str, late: &str) -> bool {
    match (early.parse::<Timestamp>(), late.parse::<Timestamp>()) {
        (Ok(early), Ok(late)) => return early >= late,
        (Err(_), Err(_)) => {}
        _ => return false, // of the one nobody knows where it is
    }
    let is_date = |text: &str| text.len() == "2000-01-01".len();
    match (is_date(early), is_date(late)) {
        (true, true) => is_after::<Date>(early, late, Ordering::is_gt),
        // Without a zone.
        (false, false) => is_after::<DateTime>(early, late, Ordering::is_ge),
        _ => false,
    }
}

fn is_after<T: FromStr + Ord>(early: &str, late: &str, is_it: fn(Ordering) -> bool) -> bool {
    match (early.parse::<T>(), late.parse::<T>()) {
        (Ok(early), Ok(late)) => is_it(early.cmp(&late)),
        _ => false,
    }
}

impl<'i> Keyword<'i> for Before {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        match self.fault(instance) {
            // `Faults` takes it apart; names may hold whatever would separate them.
            Some(pair) => Err(ValidationError::custom(json!(pair).to_string())),
            None => Ok(()),
        }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        self.fault(instance).is_none()
    }
}

// === uniqueItems ===

/// Compares neighbours in order: `n log n`, whatever the elements are. The library hashes them, by keys that are known.
struct Unique;

fn unique<'a>(
    _: &'a Map<String, Value>,
    value: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    match value {
        Value::Bool(true) => Ok(Box::new(Unique)),
        Value::Bool(false) => Ok(Box::new(Anything)),
        _ => Err(ValidationError::custom("must be true or false")),
    }
}

impl<'i> Keyword<'i> for Unique {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        match self.is_valid(instance) {
            true => Ok(()),
            false => Err(ValidationError::custom(
                "must not have the same element twice",
            )),
        }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        let Some(elements) = instance.as_array() else {
            return true;
        };
        let mut sorted: Vec<&Value> = elements.iter().collect();
        sorted.sort_unstable_by(|a, b| order(a, b));
        sorted
            .windows(2)
            .all(|pair| order(pair[0], pair[1]) != Ordering::Equal)
    }
}

/// `uniqueItems: false`
struct Anything;

impl<'i> Keyword<'i> for Anything {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        true
    }
}

/// Some order in which only what is the same is equal: 1 and 1.0 are, as JSON Schema has it.
fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => order_of_numbers(a, b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let pairs = a.iter().zip(b);
            let differs = pairs.map(|(a, b)| order(a, b)).find(|o| o.is_ne());
            differs.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(a), Value::Object(b)) => {
            // Members stand in the order of their names.
            let pairs = a.iter().zip(b);
            let members = |((a, x), (b, y)): ((&String, &Value), (&String, &Value))| {
                a.cmp(b).then_with(|| order(x, y))
            };
            let differs = pairs.map(members).find(|o| o.is_ne());
            differs.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (a, b) => rank(a).cmp(&rank(b)),
    }
}

fn order_of_numbers(a: &Number, b: &Number) -> Ordering {
    let whole = |number: &Number| {
        let (small, large) = (number.as_i64(), number.as_u64());
        small.map(i128::from).or(large.map(i128::from))
    };
    let float = |number: &Number| number.as_f64().unwrap_or_default() + 0.0; // no -0.0
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(a), None) => order_of_kinds(a, float(b)),
        (None, Some(b)) => order_of_kinds(b, float(a)).reverse(),
        (None, None) => float(a).total_cmp(&float(b)),
    }
}

/// A whole number beside a float: exactly, although the float may be beyond it.
fn order_of_kinds(whole: i128, float: f64) -> Ordering {
    let truncated = float.trunc();
    // The conversion keeps within i128, whose ends no JSON integer of ours reaches.
    whole
        .cmp(&(truncated as i128))
        .then_with(|| truncated.total_cmp(&float))
}

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

#[cfg(test)]
mod tests;
