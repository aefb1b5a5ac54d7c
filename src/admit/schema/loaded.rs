//! A JSON Schema file that a route names, and the rule that becomes of it.

use http::HeaderName;
use serde_json::Value;

use super::dialect;
use super::files::{FileName, Shelf};
use super::reference::{Lost, Place};
use super::rules::{PathRule, Schema, Texts};
use super::shape::{self, DEEPEST, Shape};
use super::source::Source;
use crate::config::Problems;
use crate::route::parameter_named;

/// A schema that was read, and where it stands.
pub struct Loaded {
    /// In the configuration.
    place: String,
    /// What operators call it.
    named: String,
    shelf: Shelf,
    file: String,
    schema: Value,
}

impl Loaded {
    pub fn read(file: &FileName, place: &str, problems: &mut Problems) -> Option<Self> {
        let read = file.read();
        match read {
            Ok((shelf, name, schema)) => Some(Self {
                place: place.to_owned(),
                named: file.to_string(),
                shelf,
                file: name,
                schema,
            }),
            Err(fault) => {
                problems.add(place, fault);
                None
            }
        }
    }

    fn fault(&self, pointer: &str, fault: &str, problems: &mut Problems) {
        problems.add(&*self.place, format!("{}#{pointer}: {fault}", self.named));
    }

    pub fn schema(&self, problems: &mut Problems) -> Option<Schema> {
        const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
        let draft = self.schema.get("$schema").and_then(Value::as_str);
        if draft.is_some_and(|draft| draft.trim_end_matches('#') != DRAFT) {
            self.fault("/$schema", &format!("must be {DRAFT}"), problems);
            return None;
        }
        match dialect::options(&self.shelf, &self.file).build(&self.schema) {
            Ok(validator) => Some(Schema {
                validator,
                source: Source {
                    shelf: self.shelf.clone(),
                    file: self.file.clone(),
                    schema: self.schema.clone(),
                },
            }),
            Err(error) => {
                let pointer = error.instance_path().as_str().to_owned();
                self.fault(&pointer, &dialect::fault(&error), problems);
                None
            }
        }
    }

    /// What the schema says of each name.
    fn shapes(&self, problems: &mut Problems) -> Vec<(Box<str>, Shape)> {
        let lost = Lost::default();
        let place = Place {
            shelf: &self.shelf,
            file: &self.file,
            root: &self.schema,
            lost: &lost,
        };
        let mut shapes: Vec<(Box<str>, Shape)> = Vec::new();
        let mut unreadable: Vec<String> = Vec::new();
        shape::members(&self.schema, place, DEEPEST, &mut |name, schema, place| {
            let shape = Shape::of(schema, place, false);
            if !shape.is_readable() {
                unreadable.push(name.to_owned());
            }
            shapes.push((name.into(), shape));
        });
        for fault in lost.faults() {
            self.fault("", &fault, problems);
        }
        for name in unreadable {
            let fault = format!("`{name}` takes nothing that can be written as a text");
            self.fault("", &fault, problems);
        }
        shapes
    }

    pub fn texts(&self, are_fields: bool, problems: &mut Problems) -> Option<Texts> {
        let shapes = self.shapes(problems);
        for (name, _) in shapes.iter().filter(|_| are_fields) {
            let has_capitals = name.bytes().any(|b| b.is_ascii_uppercase());
            let is_field = HeaderName::try_from(&**name).is_ok() && !has_capitals;
            if !is_field {
                let fault = format!("`{name}` is no header name in lower case");
                self.fault("", &fault, problems);
            }
        }
        Some(Texts {
            schema: self.schema(problems)?,
            shapes,
        })
    }

    pub fn path_rule(&self, path: &str, problems: &mut Problems) -> Option<PathRule> {
        let mut parameters = Vec::new();
        for (name, shape) in self.shapes(problems) {
            match parameter_named(path, &name) {
                Some(index) => parameters.push((index, name, shape)),
                None => {
                    let fault = format!("the route's path has no parameter {{{name}}}");
                    self.fault("", &fault, problems);
                }
            }
        }
        Some(PathRule {
            schema: self.schema(problems)?,
            parameters,
        })
    }
}
