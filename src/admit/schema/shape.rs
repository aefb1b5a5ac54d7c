//! Paths, queries and header fields are texts: what a schema takes for a number is read as one, and exactly so.
//!
//! What cannot be read as its schema says stays the text that it is, and the schema says what is wrong with it.

use serde_json::{Number, Value};

use super::reference::{Place, follow};

/// How the texts under one name are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    one: Types,
    /// The elements, where the schema takes a list.
    list: Option<Types>,
    /// A list stands in one text, between commas.
    commas: bool,
}

/// What a schema takes, of what a text can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Types {
    text: bool,
    integer: bool,
    number: bool,
    boolean: bool,
    list: bool,
}

/// Schemas that refer to schemas that refer to …: what is deeper is not looked at, and stays text.
pub const DEEPEST: usize = 16;

/// Of a number, in bytes.
const LONGEST_NUMBER: usize = 32;

const ANYTHING: Types = Types {
    text: true,
    integer: true,
    number: true,
    boolean: true,
    list: true,
};

const NOTHING: Types = Types {
    text: false,
    integer: false,
    number: false,
    boolean: false,
    list: false,
};

// === impl Shape ===

impl Shape {
    /// Of what a schema of this place takes. `commas`: its lists stand in one text.
    pub fn of(schema: &Value, place: Place<'_>, commas: bool) -> Self {
        let types = Types::of(schema, place, DEEPEST);
        let items = || {
            let items = find(schema, "items", place, DEEPEST, &|items, place| {
                Types::of(items, place, DEEPEST)
            });
            items.unwrap_or(ANYTHING)
        };
        Self {
            one: types,
            list: types.list.then(items),
            commas,
        }
    }

    /// Texts under a name of which the schema says nothing.
    pub const UNKNOWN: Self = Self {
        one: ANYTHING,
        list: Some(ANYTHING),
        commas: false,
    };

    pub fn has_commas(self) -> bool {
        self.commas && self.list.is_some()
    }

    /// Whether the schema takes anything that a text can say.
    pub fn is_readable(self) -> bool {
        self.one != NOTHING
    }

    pub fn read(self, texts: &[&str]) -> Value {
        let only_lists = Types {
            list: true,
            ..NOTHING
        };
        match (self.list, texts) {
            (Some(element), [text]) if self.commas && self.one != ANYTHING => {
                Value::Array(text.split(',').map(|text| element.read(text)).collect())
            }
            (Some(element), texts) if texts.len() != 1 || self.one == only_lists => {
                Value::Array(texts.iter().map(|text| element.read(text)).collect())
            }
            (_, [text]) => self.one.read(text),
            // No schema takes it that takes no list.
            (_, texts) => Value::Array(texts.iter().map(|text| Value::from(*text)).collect()),
        }
    }
}

// === impl Types ===

impl Types {
    fn of(schema: &Value, place: Place<'_>, depth: usize) -> Self {
        let Some(members) = schema.as_object().filter(|_| depth > 0) else {
            return match schema {
                Value::Bool(false) => NOTHING,
                _ => ANYTHING,
            };
        };
        let mut types = ANYTHING;
        match members.get("type") {
            Some(Value::String(name)) => types = types.and(Self::named(name)),
            Some(Value::Array(names)) => {
                let names = names.iter().filter_map(Value::as_str);
                types = types.and(names.map(Self::named).fold(NOTHING, Self::or));
            }
            _ => {}
        }
        if let Some(value) = members.get("const") {
            types = types.and(Self::of_value(value));
        }
        if let Some(Value::Array(values)) = members.get("enum") {
            types = types.and(values.iter().map(Self::of_value).fold(NOTHING, Self::or));
        }
        place.note(schema);
        let of = |schema: &Value| Self::of(schema, place, depth - 1);
        if let Some(Value::String(to)) = members.get("$ref") {
            let referred = follow(to, place, |schema, place| {
                Self::of(schema, place, depth - 1)
            });
            types = types.and(referred.unwrap_or(ANYTHING));
        }
        if let Some(Value::Array(all)) = members.get("allOf") {
            types = all.iter().map(of).fold(types, Self::and);
        }
        for some in ["anyOf", "oneOf"] {
            if let Some(Value::Array(some)) = members.get(some) {
                types = types.and(some.iter().map(of).fold(NOTHING, Self::or));
            }
        }
        types
    }

    fn named(name: &str) -> Self {
        match name {
            "string" => Self {
                text: true,
                ..NOTHING
            },
            "integer" => Self {
                integer: true,
                ..NOTHING
            },
            "number" => Self {
                integer: true,
                number: true,
                ..NOTHING
            },
            "boolean" => Self {
                boolean: true,
                ..NOTHING
            },
            "array" => Self {
                list: true,
                ..NOTHING
            },
            _ => NOTHING,
        }
    }

    fn of_value(value: &Value) -> Self {
        Self::named(match value {
            Value::String(_) => "string",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::Bool(_) => "boolean",
            Value::Array(_) => "array",
            _ => "",
        })
    }

    fn and(self, other: Self) -> Self {
        Self {
            text: self.text && other.text,
            integer: self.integer && other.integer,
            number: self.number && other.number,
            boolean: self.boolean && other.boolean,
            list: self.list && other.list,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            text: self.text || other.text,
            integer: self.integer || other.integer,
            number: self.number || other.number,
            boolean: self.boolean || other.boolean,
            list: self.list || other.list,
        }
    }

    /// A text stays one wherever one is taken.
    fn read(self, text: &str) -> Value {
        let number = || number_of(text, self.number);
        match text {
            _ if self.text => Value::from(text),
            "true" if self.boolean => Value::Bool(true),
            "false" if self.boolean => Value::Bool(false),
            _ if self.integer => number().map_or_else(|| text.into(), Value::Number),
            _ => Value::from(text),
        }
    }
}

/// A number as JSON has it; without a point and an exponent, unless it may be `any`.
fn number_of(text: &str, any: bool) -> Option<Number> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_whole = digits.bytes().all(|b| b.is_ascii_digit());
    // JSON would take spaces around it.
    let begins = digits.starts_with(|c: char| c.is_ascii_digit());
    let ends = digits.ends_with(|c: char| c.is_ascii_digit());
    if !(begins && ends && text.len() <= LONGEST_NUMBER && (is_whole || any)) {
        return None;
    }
    let number: Number = serde_json::from_str(text).ok()?;
    (!is_whole || !number.is_f64()).then_some(number)
}

/// What a schema has under a keyword, itself or in what it is made of.
fn find<T>(
    schema: &Value,
    keyword: &str,
    place: Place<'_>,
    depth: usize,
    look: &dyn Fn(&Value, Place<'_>) -> T,
) -> Option<T> {
    let members = schema.as_object().filter(|_| depth > 0)?;
    place.note(schema);
    if let Some(found) = members.get(keyword) {
        return Some(look(found, place));
    }
    if let Some(Value::String(to)) = members.get("$ref") {
        let within =
            |schema: &Value, place: Place<'_>| find(schema, keyword, place, depth - 1, look);
        if let Some(found) = follow(to, place, within).flatten() {
            return Some(found);
        }
    }
    let parts = ["allOf", "anyOf", "oneOf"]
        .iter()
        .filter_map(|some| members.get(*some)?.as_array());
    parts
        .flatten()
        .find_map(|part| find(part, keyword, place, depth - 1, look))
}

/// The members that a schema of an object names, itself and in what it is made of.
pub fn members(
    schema: &Value,
    place: Place<'_>,
    depth: usize,
    found: &mut dyn FnMut(&str, &Value, Place<'_>),
) {
    let Some(keywords) = schema.as_object().filter(|_| depth > 0) else {
        return;
    };
    place.note(schema);
    if let Some(Value::Object(named)) = keywords.get("properties") {
        for (name, schema) in named {
            found(name, schema, place);
        }
    }
    if let Some(Value::String(to)) = keywords.get("$ref") {
        let _ = follow(to, place, |schema, place| {
            members(schema, place, depth - 1, found);
        });
    }
    let parts = ["allOf", "anyOf", "oneOf"]
        .iter()
        .filter_map(|some| keywords.get(*some)?.as_array());
    for part in parts.flatten() {
        members(part, place, depth - 1, found);
    }
}

/// The members that an object must have, by the schema itself and all that it is made of.
pub fn required(schema: &Value, place: Place<'_>, depth: usize, found: &mut Vec<String>) {
    let Some(keywords) = schema.as_object().filter(|_| depth > 0) else {
        return;
    };
    if let Some(Value::Array(names)) = keywords.get("required") {
        found.extend(names.iter().filter_map(Value::as_str).map(str::to_owned));
    }
    if let Some(Value::String(to)) = keywords.get("$ref") {
        let _ = follow(to, place, |schema, place| {
            required(schema, place, depth - 1, found);
        });
    }
    let parts = keywords.get("allOf").and_then(Value::as_array);
    for part in parts.into_iter().flatten() {
        required(part, place, depth - 1, found);
    }
}

#[cfg(test)]
mod tests;
