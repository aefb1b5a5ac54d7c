//! The schemas of `validate`, as components of one document: every `$ref` leads to one of them.
//!
//! What a schema says of itself to its validator (`$id`, `$schema`, anchors, comments) is left out, keywords of our own
//! (`x-before`) stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::admit::schema::{Shelf, Source};

/// Schemas by the names that the document calls them by.
#[derive(Default)]
pub struct Schemas {
    named: BTreeMap<String, Value>,
    /// By where they stand.
    names: BTreeMap<Place, String>,
    files: BTreeMap<(Shelf, String), Option<Arc<Value>>>,
}

/// A schema's file, and the pointer or the anchor in it.
type Place = (Shelf, String, String);

/// The file that a schema stands in.
struct Here<'a> {
    shelf: &'a Shelf,
    file: &'a str,
}

/// What is for the validator alone.
const LEFT_OUT: [&str; 10] = [
    "$schema",
    "$id",
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$vocabulary",
    "$comment",
    "$defs",
    "definitions",
    "$recursiveRef",
];

const OF_SCHEMAS: [&str; 4] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "$defs",
];

const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];

const SCHEMAS: [&str; 12] = [
    "items",
    "contains",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "if",
    "then",
    "else",
    "not",
    "contentSchema",
    "additionalItems",
];

// === impl Schemas ===

impl Schemas {
    /// One of the gateway's own.
    pub fn add(&mut self, name: &str, schema: Value) {
        self.named.insert(name.to_owned(), schema);
    }

    pub fn into_named(self) -> BTreeMap<String, Value> {
        self.named
    }

    /// A schema, as it stands in the document: a reference, where it is a whole file.
    pub fn show(&mut self, source: &Source) -> Value {
        let here = Here {
            shelf: &source.shelf,
            file: &source.file,
        };
        let is_whole = self.file(&here).is_some_and(|file| *file == source.schema);
        match is_whole.then(|| self.name(&here, "")).flatten() {
            Some(name) => reference(&name),
            None => self.walk(&source.schema, &here),
        }
    }

    fn walk(&mut self, schema: &Value, here: &Here<'_>) -> Value {
        let Value::Object(keywords) = schema else {
            return schema.clone();
        };
        let mut shown = Map::new();
        for (keyword, value) in keywords {
            let word = keyword.as_str();
            let value = match value {
                Value::String(to) if word == "$ref" => match self.name(here, to) {
                    Some(name) => reference(&name)["$ref"].take(),
                    None => continue,
                },
                _ if LEFT_OUT.contains(&word) || word == "$ref" => continue,
                Value::Object(schemas) if OF_SCHEMAS.contains(&word) => {
                    let schemas = schemas.iter();
                    let schemas =
                        schemas.map(|(name, schema)| (name.clone(), self.walk(schema, here)));
                    Value::Object(schemas.collect())
                }
                Value::Array(schemas) if LISTS.contains(&word) => schemas
                    .iter()
                    .map(|schema| self.walk(schema, here))
                    .collect(),
                schema if SCHEMAS.contains(&word) => self.walk(schema, here),
                value => value.clone(),
            };
            shown.insert(keyword.clone(), value);
        }
        Value::Object(shown)
    }

    /// What the document calls the schema that `to` leads to; `None` where nothing is there.
    fn name(&mut self, here: &Here<'_>, to: &str) -> Option<String> {
        let (file, rest) = Shelf::follow(here.file, to)?;
        let place = (here.shelf.clone(), file, rest);
        if let Some(name) = self.names.get(&place) {
            return Some(name.clone());
        }
        let there = Here {
            shelf: here.shelf,
            file: &place.1,
        };
        let root = self.file(&there)?;
        let schema = match place.2.as_str() {
            "" => &*root,
            pointer if pointer.starts_with('/') => root.pointer(pointer)?,
            anchor => anchored(&root, anchor)?,
        };
        let name = self.free_name(&place);
        // Schemas may refer to themselves: it has its name before it is read.
        self.named.insert(name.clone(), Value::Null);
        self.names.insert(place.clone(), name.clone());
        let shown = self.walk(schema, &there);
        self.named.insert(name.clone(), shown);
        Some(name)
    }

    fn file(&mut self, here: &Here<'_>) -> Option<Arc<Value>> {
        let key = (here.shelf.clone(), here.file.to_owned());
        let read = || here.shelf.read(here.file).ok().map(Arc::new);
        self.files.entry(key).or_insert_with(read).clone()
    }

    /// The last part of where it stands; with what is before it, if that is taken.
    fn free_name(&self, (_, file, rest): &Place) -> String {
        let stem = file.rsplit('/').next().unwrap_or(file);
        let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
        let last = rest.rsplit('/').next().unwrap_or_default();
        let short = plain(if last.is_empty() { stem } else { last });
        let long = plain(&format!("{stem}.{last}"));
        let numbered = (2..).map(|number| format!("{long}.{number}"));
        let mut names = [short, long.clone()].into_iter().chain(numbered);
        let free = names.find(|name| !self.named.contains_key(name));
        free.unwrap_or(long)
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Letters, digits, dots, dashes and underscores are a component's name.
fn plain(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = name
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    if name.is_empty() {
        "schema".into()
    } else {
        name
    }
}

fn anchored<'v>(value: &'v Value, anchor: &str) -> Option<&'v Value> {
    match value {
        Value::Object(members) if members.get("$anchor").is_some_and(|name| name == anchor) => {
            Some(value)
        }
        Value::Object(members) => members.values().find_map(|member| anchored(member, anchor)),
        Value::Array(items) => items.iter().find_map(|item| anchored(item, anchor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in(file: &str) -> Source {
        let shelf = Shelf::built_in();
        let schema = shelf.read(file).unwrap();
        Source {
            shelf,
            file: file.into(),
            schema,
        }
    }

    #[test]
    fn every_reference_leads_to_a_component() {
        let mut schemas = Schemas::default();
        schemas.add("time", json!(true)); // the name is taken
        let shown = schemas.show(&built_in("event-create.json"));
        assert_eq!(shown, json!({"$ref": "#/components/schemas/event-create"}));
        let named = schemas.into_named();
        assert_eq!(
            named["event-create"]["$ref"],
            "#/components/schemas/event-update"
        );
        assert!(named.contains_key("common.time"), "{:?}", named.keys());
        let text = Value::from_iter(named.clone()).to_string();
        for reference in text.split(r##""$ref":""##).skip(1) {
            let to = reference.split('"').next().unwrap();
            let name = to.strip_prefix("#/components/schemas/").unwrap();
            assert!(named.contains_key(name), "{to}");
        }
        assert!(
            !text.contains("$defs") && !text.contains("$schema"),
            "{text}"
        );
    }

    #[test]
    fn keywords_of_our_own_stay_and_names_of_members_are_no_keywords() {
        let mut schemas = Schemas::default();
        let schema = json!({
            "$comment": "for us",
            "x-before": {"a": "b"},
            "properties": {"$ref": {"type": "string"}, "a": {"const": {"$ref": "x"}}},
        });
        let source = Source {
            shelf: Shelf::built_in(),
            file: "#operation".into(),
            schema: schema.clone(),
        };
        let mut expected = schema;
        expected.as_object_mut().unwrap().remove("$comment");
        assert_eq!(schemas.show(&source), expected);
    }

    #[test]
    fn a_schema_that_refers_to_itself_is_shown_once() {
        let mut schemas = Schemas::default();
        let source = built_in("common.json");
        schemas.show(&source);
        let before = schemas.named.len();
        schemas.show(&source);
        assert_eq!(schemas.named.len(), before);
    }
}
