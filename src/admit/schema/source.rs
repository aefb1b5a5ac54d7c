//! What a compiled schema was made of: the API documentation shows it.

use serde_json::Value;

use super::files::Shelf;
use super::reference::{Lost, Place};
use super::rules::{Kind, Rules, Texts};
use super::shape::{self, DEEPEST, Shape};

/// A schema as it was written, and where it stands.
#[derive(Clone, Debug)]
pub struct Source {
    pub shelf: Shelf,
    /// What it refers to is relative to this one.
    pub file: String,
    pub schema: Value,
}

/// What a route's rules say of one parameter of a request.
pub struct Parameter {
    /// As OpenAPI calls it: `path`, `query` or `header`.
    pub part: &'static str,
    pub name: String,
    pub is_required: bool,
    /// A list stands in one text, between commas.
    pub has_commas: bool,
    pub source: Source,
}

/// What they say of its body.
pub struct Bodies<'a> {
    pub is_required: bool,
    /// By media type.
    pub sources: Vec<(&'a str, &'a Source)>,
}

// === impl Rules ===

impl Rules {
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        if let Some(rule) = &self.path {
            let shapes = rule
                .parameters
                .iter()
                .map(|(_, name, shape)| (name, *shape));
            rule.schema
                .source
                .parameters("path", shapes, &mut parameters);
        }
        for (part, texts) in [("query", &self.query), ("header", &self.headers)] {
            if let Some(Texts { schema, shapes }) = texts {
                let shapes = shapes.iter().map(|(name, shape)| (name, *shape));
                schema.source.parameters(part, shapes, &mut parameters);
            }
        }
        parameters
    }

    pub fn bodies(&self) -> Option<Bodies<'_>> {
        let content = self.body.as_ref()?;
        let sources = content.kinds.iter();
        let sources = sources.map(|(kind, schema)| (kind.range(), &schema.source));
        Some(Bodies {
            is_required: content.is_required,
            sources: sources.collect(),
        })
    }
}

// === impl Kind ===

impl Kind {
    /// As OpenAPI has it.
    fn range(&self) -> &str {
        match self {
            Self::Json => "application/json",
            Self::Exactly(name) | Self::Family(name) => name,
            Self::Any => "*/*",
        }
    }
}

// === impl Source ===

impl Source {
    /// The members of an object's schema, each as a parameter.
    fn parameters<'s>(
        &self,
        part: &'static str,
        shapes: impl Iterator<Item = (&'s Box<str>, Shape)>,
        found: &mut Vec<Parameter>,
    ) {
        // What leads nowhere was a fault when this was compiled.
        let lost = Lost::default();
        let place = Place {
            shelf: &self.shelf,
            file: &self.file,
            root: &self.schema,
            lost: &lost,
        };
        let lists: Vec<&str> = shapes
            .filter(|(_, shape)| shape.has_commas())
            .map(|(name, _)| &**name)
            .collect();
        let mut required = Vec::new();
        shape::required(&self.schema, place, DEEPEST, &mut required);
        let first = found.len();
        shape::members(&self.schema, place, DEEPEST, &mut |name, schema, place| {
            if found[first..].iter().any(|known| known.name == name) {
                return;
            }
            found.push(Parameter {
                part,
                name: name.to_owned(),
                is_required: required.iter().any(|required| required == name),
                has_commas: lists.contains(&name),
                source: Self {
                    shelf: self.shelf.clone(),
                    file: place.file.to_owned(),
                    schema: schema.clone(),
                },
            });
        });
    }
}
