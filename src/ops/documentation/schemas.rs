//! The schemas of `validate`, as components of one document: every `$ref` leads to one of them.
//!
//! Shown is what JSON Schema 2020-12 has words for, and `x-before`, by which requests are judged. What a schema says to its
//! validator (`$id`, `$schema`, anchors) or to its authors (`$comment`, `x-` of whatever kind) is left out.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::library::Library;
use crate::admit::schema::{BEFORE, Shelf, Source};

/// Schemas by the names that the document calls them by.
pub struct Schemas<'a> {
    library: &'a Library,
    named: BTreeMap<String, Value>,
    /// By where they stand.
    names: BTreeMap<Place, String>,
}

/// A schema's file, and the pointer or the anchor in it.
type Place = (Shelf, String, String);

/// The file that a schema stands in.
struct Here<'a> {
    shelf: &'a Shelf,
    file: &'a str,
}

/// Keywords with a value that is shown as it is: assertions, and annotations for who reads a document. `example` is OpenAPI's.
const VALUES: [&str; 32] = [
    "type",
    "enum",
    "const",
    "multipleOf",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxContains",
    "minContains",
    "maxProperties",
    "minProperties",
    "required",
    "dependentRequired",
    "format",
    "contentEncoding",
    "contentMediaType",
    "title",
    "description",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
    "examples",
    "example",
    BEFORE,
];

const OF_SCHEMAS: [&str; 3] = ["properties", "patternProperties", "dependentSchemas"];

const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];

const SCHEMAS: [&str; 11] = [
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
];

// === impl Schemas ===

impl<'a> Schemas<'a> {
    pub fn of(library: &'a Library) -> Self {
        Self {
            library,
            named: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

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
        let file = self.library.file(here.shelf, here.file);
        let is_whole = file == Some(&source.schema);
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
                value if VALUES.contains(&word) => value.clone(),
                _ => continue,
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
        let root = self.library.file(there.shelf, there.file)?;
        let schema = match place.2.as_str() {
            "" => root,
            pointer if pointer.starts_with('/') => root.pointer(pointer)?,
            anchor => anchored(root, anchor)?,
        };
        let name = self.free_name(&place);
        // Schemas may refer to themselves: it has its name before it is read.
        self.named.insert(name.clone(), Value::Null);
        self.names.insert(place.clone(), name.clone());
        let shown = self.walk(schema, &there);
        self.named.insert(name.clone(), shown);
        Some(name)
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

    fn library(sources: &[&Source]) -> Library {
        let mut library = Library::default();
        sources.iter().for_each(|source| library.take_in(source));
        library
    }

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
        let source = built_in("event-create.json");
        let library = library(&[&source]);
        let mut schemas = Schemas::of(&library);
        schemas.add("time", json!(true)); // the name is taken
        let shown = schemas.show(&source);
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
    fn what_the_standard_has_no_word_for_is_left_out_and_names_of_members_are_no_keywords() {
        let schema = json!({
            "x-before": {"a": "b"},
            "examples": [{"x-a": 1}],
            "properties": {
                "$ref": {"type": "string"},
                "a": {"const": {"$ref": "x"}},
                "x-b": {"type": "integer"},
            },
        });
        let mut written = schema.clone();
        for (pointer, keyword) in [
            ("", "$comment"),
            ("", "x-owner"),
            ("", "externalDocs"),
            ("", "discriminator"),
            ("/properties/x-b", "x-secret"),
            ("/properties/x-b", "$comment"),
        ] {
            let place = written.pointer_mut(pointer).unwrap();
            place[keyword] = "the table at http://inside".into();
        }
        let source = Source {
            shelf: Shelf::built_in(),
            file: "#operation".into(),
            schema: written,
        };
        let library = library(&[&source]);
        assert_eq!(Schemas::of(&library).show(&source), schema);
    }

    #[test]
    fn a_schema_that_refers_to_itself_is_shown_once() {
        let source = built_in("common.json");
        let library = library(&[&source]);
        let mut schemas = Schemas::of(&library);
        schemas.show(&source);
        let before = schemas.named.len();
        schemas.show(&source);
        assert_eq!(schemas.named.len(), before);
    }
}
