//! An operation of an OpenAPI 3.1 document: its parameters and its request bodies, as rules.
//!
//! Parameters have their default styles (`form` in the query, also not exploded, `simple` elsewhere), and are no objects.
//! What is not understood is a fault of the configuration: a rule that is left out would let everything through.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use serde_json::{Map, Value, json};

use super::dialect;
use super::files::{FileName, Shelf};
use super::reference::{Lost, Place};
use super::rules::{Content, Kind, PathRule, Rules, Schema, Texts};
use super::shape::Shape;
use super::source::Source;
use crate::admit::media;
use crate::config::Problems;
use crate::route::parameter_named;

/// A document, and where faults of it are told.
struct Document<'a> {
    shelf: Shelf,
    file: String,
    root: Value,
    place: &'a str,
    named: &'a FileName,
    problems: &'a mut Problems,
}

/// A part of it: what stands there, and where that is.
type Found<'d> = (String, &'d Value);

/// A parameter, as it is read.
struct Parameter {
    /// Where its schema stands.
    pointer: String,
    shape: Shape,
    is_required: bool,
}

/// References to references to …
const MOST_STEPS: usize = 16;

/// The parameters of one part of the request, by name.
type Parameters = BTreeMap<String, Parameter>;

/// Adds to `rules` what an operation says. `path`: the route's.
pub fn compile(
    named: &FileName,
    operation: &str,
    place: &str,
    path: &str,
    rules: &mut Rules,
    problems: &mut Problems,
) {
    match named.read() {
        Err(fault) => problems.add(format!("{place}.openapi"), fault),
        Ok((shelf, file, root)) => {
            let mut document = Document {
                shelf,
                file,
                root,
                place,
                named,
                problems,
            };
            document.compile(operation, path, rules);
        }
    }
}

impl Document<'_> {
    fn fault(&mut self, pointer: &str, fault: &str) {
        self.problems.add(
            format!("{}.openapi", self.place),
            format!("{}#{pointer}: {fault}", self.named),
        );
    }

    fn compile(&mut self, operation: &str, path: &str, rules: &mut Rules) {
        let root = std::mem::take(&mut self.root);
        let version = root.get("openapi").and_then(Value::as_str);
        if !version.is_some_and(|version| version.starts_with("3.1.")) {
            self.fault("/openapi", "must be 3.1");
        }
        let dialect = root.get("jsonSchemaDialect").and_then(Value::as_str);
        if dialect.is_some_and(|dialect| !KNOWN_DIALECTS.contains(&dialect)) {
            self.fault(
                "/jsonSchemaDialect",
                "must be that of OpenAPI 3.1, or 2020-12",
            );
        }
        let schemas = root
            .pointer("/components/schemas")
            .and_then(Value::as_object);
        for (name, schema) in schemas.into_iter().flatten() {
            self.check(&format!("/components/schemas/{}", escaped(name)), schema);
        }
        let Some((item, method)) = find(&root, operation) else {
            let fault = format!("there is no operation `{operation}`");
            self.problems
                .add(format!("{}.operation", self.place), fault);
            return;
        };
        let (pointer, item) = item;
        let lists = [
            (format!("{pointer}/parameters"), item.get("parameters")),
            (
                format!("{pointer}/{method}/parameters"),
                item[method].get("parameters"),
            ),
        ];
        let [mut in_path, mut in_query, mut in_header] = [const { Parameters::new() }; 3];
        for (pointer, list) in &lists {
            let list = list.and_then(Value::as_array).into_iter().flatten();
            for (i, parameter) in list.enumerate() {
                let found = (format!("{pointer}/{i}"), parameter);
                let Some((pointer, parameter)) = self.resolve(&root, found) else {
                    continue;
                };
                let name = parameter["name"].as_str().unwrap_or_default().to_owned();
                let (known, name) = match parameter["in"].as_str() {
                    Some("path") => (&mut in_path, name),
                    Some("query") => (&mut in_query, name),
                    Some("header") => (&mut in_header, name.to_ascii_lowercase()),
                    _ => {
                        self.fault(&pointer, "`in` must be path, query or header");
                        continue;
                    }
                };
                if let Some(read) = self.parameter(&root, &pointer, parameter) {
                    known.insert(name, read);
                }
            }
        }
        // As OpenAPI has it, these are none.
        in_header.retain(|name, _| {
            ![ACCEPT, CONTENT_TYPE, AUTHORIZATION]
                .iter()
                .any(|field| *field == **name)
        });
        if let Some(name) = in_header
            .keys()
            .find(|n| HeaderName::try_from(&***n).is_err())
        {
            let fault = format!("`{name}` is no header name");
            self.fault(&pointer, &fault);
        }
        if let Some(name) = in_path
            .keys()
            .find(|name| parameter_named(path, name).is_none())
        {
            let fault = format!("the route's path has no parameter {{{name}}}");
            self.fault(&pointer, &fault);
        }
        rules.path = self.object(&in_path).map(|schema| PathRule {
            schema,
            parameters: in_path
                .iter()
                .filter_map(|(name, read)| {
                    Some((parameter_named(path, name)?, (**name).into(), read.shape))
                })
                .collect(),
        });
        let shapes = |parameters: &Parameters| {
            let shape = |(name, read): (&String, &Parameter)| ((**name).into(), read.shape);
            parameters.iter().map(shape).collect()
        };
        rules.query = self.object(&in_query).map(|schema| Texts {
            schema,
            shapes: shapes(&in_query),
        });
        rules.headers = self.object(&in_header).map(|schema| Texts {
            schema,
            shapes: shapes(&in_header),
        });
        let body = item[method].get("requestBody");
        let body = body.map(|body| (format!("{pointer}/{method}/requestBody"), body));
        rules.body = body
            .and_then(|found| self.resolve(&root, found))
            .and_then(|(pointer, body)| self.content(&pointer, body));
    }

    /// Follows `$ref` within the document.
    fn resolve<'d>(&mut self, root: &'d Value, found: Found<'d>) -> Option<Found<'d>> {
        let (mut pointer, mut value) = found;
        for _ in 0..MOST_STEPS {
            let Some(to) = value.get("$ref").and_then(Value::as_str) else {
                return Some((pointer, value));
            };
            let there = to.strip_prefix('#').and_then(|to| {
                let to = percent_encoding::percent_decode_str(to)
                    .decode_utf8()
                    .ok()?;
                Some((to.to_string(), root.pointer(&to)?))
            });
            let Some(there) = there else {
                let fault = format!("`{to}` is nothing in this document");
                self.fault(&pointer, &fault);
                return None;
            };
            (pointer, value) = there;
        }
        self.fault(&pointer, "refers to itself");
        None
    }

    fn parameter(&mut self, root: &Value, pointer: &str, parameter: &Value) -> Option<Parameter> {
        let is_query = parameter["in"] == "query";
        let usual = if is_query { "form" } else { "simple" };
        let style = parameter.get("style").map(|style| style.as_str());
        if style.is_some_and(|style| style != Some(usual)) {
            let fault = format!("only `style: {usual}` is read here");
            self.fault(pointer, &fault);
            return None;
        }
        let Some(schema) = parameter.get("schema") else {
            self.fault(pointer, "a parameter has a `schema` here, not `content`");
            return None;
        };
        let explodes = parameter.get("explode").and_then(Value::as_bool);
        let lost = Lost::default();
        let place = Place {
            shelf: &self.shelf,
            file: &self.file,
            root,
            lost: &lost,
        };
        // What is simple has its commas, exploded or not.
        let shape = Shape::of(schema, place, !(is_query && explodes.unwrap_or(true)));
        let pointer = format!("{pointer}/schema");
        for fault in lost.faults() {
            self.fault(&pointer, &fault);
        }
        if !shape.is_readable() {
            self.fault(&pointer, "takes nothing that can be written as a text");
            return None;
        }
        self.check(&pointer, schema);
        Some(Parameter {
            pointer,
            shape,
            is_required: parameter["required"] == true,
        })
    }

    /// What the specification of schemas says of one.
    fn check(&mut self, pointer: &str, schema: &Value) {
        if let Err(error) = jsonschema::draft202012::meta::validate(schema) {
            let pointer = format!("{pointer}{}", error.instance_path());
            self.fault(&pointer, &dialect::fault(&error));
        }
    }

    /// One schema for all of these.
    fn object(&mut self, parameters: &Parameters) -> Option<Schema> {
        if parameters.is_empty() {
            return None;
        }
        let to = |read: &Parameter| json!({"$ref": self.address(&read.pointer)});
        let members: Map<String, Value> = parameters
            .iter()
            .map(|(name, read)| (name.clone(), to(read)))
            .collect();
        let required = parameters.iter().filter(|(_, read)| read.is_required);
        let required: Vec<&String> = required.map(|(name, _)| name).collect();
        self.schema(&json!({"properties": members, "required": required}))
    }

    fn content(&mut self, pointer: &str, body: &Value) -> Option<Content> {
        let kinds = body["content"].as_object().cloned().unwrap_or_default();
        if kinds.is_empty() {
            self.fault(pointer, "`content` names no media type");
        }
        let mut compiled = Vec::new();
        for (name, media) in &kinds {
            let pointer = format!("{pointer}/content/{}", escaped(name));
            let kind = Kind::of(&name.to_ascii_lowercase());
            let schema = match media.get("schema").filter(|_| kind.may_be_json()) {
                None => json!(true),
                Some(schema) => {
                    let pointer = format!("{pointer}/schema");
                    self.check(&pointer, schema);
                    json!({"$ref": self.address(&pointer)})
                }
            };
            compiled.push((kind, Arc::new(self.schema(&schema)?)));
        }
        compiled.sort_by_key(|(kind, _)| kind.width());
        Some(Content {
            is_required: body["required"] == true,
            kinds: compiled,
        })
    }

    fn schema(&mut self, schema: &Value) -> Option<Schema> {
        // It stands beside the document, under a name that no file has.
        const NAME: &str = "#operation";
        match dialect::options(&self.shelf, NAME).build(schema) {
            Ok(validator) => Some(Schema {
                validator,
                source: Source {
                    shelf: self.shelf.clone(),
                    file: NAME.into(),
                    schema: schema.clone(),
                },
            }),
            Err(error) => {
                let fault = dialect::fault(&error);
                self.fault("", &fault);
                None
            }
        }
    }

    fn address(&self, pointer: &str) -> String {
        format!("{}#{}", Shelf::uri(&self.file), Shelf::encoded(pointer))
    }
}

const KNOWN_DIALECTS: [&str; 2] = [
    "https://spec.openapis.org/oas/3.1/dialect/base",
    "https://json-schema.org/draft/2020-12/schema",
];

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The path item with this operation, and its method.
fn find<'d>(root: &'d Value, operation: &str) -> Option<(Found<'d>, &'static str)> {
    let paths = root.get("paths")?.as_object()?;
    paths.iter().find_map(|(path, item)| {
        let is_it = |method: &&&str| item[**method]["operationId"] == operation;
        let method = METHODS.iter().find(is_it)?;
        Some(((format!("/paths/{}", escaped(path)), item), *method))
    })
}

/// As a segment of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

// === impl Kind ===

impl Kind {
    fn of(name: &str) -> Self {
        let essence = name.split(';').next().unwrap_or_default().trim();
        match essence.split_once('/') {
            Some(("*", "*")) => Self::Any,
            Some((family, "*")) => Self::Family(format!("{family}/").into()),
            _ => Self::Exactly(essence.into()),
        }
    }

    fn may_be_json(&self) -> bool {
        match self {
            Self::Exactly(essence) => media::is_json(essence),
            Self::Json | Self::Family(_) | Self::Any => true,
        }
    }

    /// The most specific one decides.
    fn width(&self) -> u8 {
        match self {
            Self::Exactly(_) => 0,
            Self::Json => 1,
            Self::Family(_) => 2,
            Self::Any => 3,
        }
    }
}
