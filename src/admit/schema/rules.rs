//! The compiled rules of a route, and how a request is held against them.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use jsonschema::Validator;
use percent_encoding::percent_decode_str;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::faults::{Faults, Part};
use super::shape::Shape;
use super::source::Source;
use crate::admit::body::Body;
use crate::admit::json::{Bounds, NoDocument};
use crate::admit::media::{self, Media};
use crate::reply::Refusal;
use crate::route::{METHODS, MethodIndex};

/// What the requests of a route must look like.
pub struct Validation {
    pub(super) by_method: [Option<Arc<Rules>>; METHODS.len()],
    pub mode: Mode,
    /// `validation_failures_total`
    pub failures: IntCounter,
}

/// What becomes of a request that does not look as it must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    #[default]
    Enforce,
    /// It goes on; the log and a counter tell of it.
    ReportOnly,
}

/// What requests with one method must look like.
pub struct Rules {
    pub(super) path: Option<PathRule>,
    pub(super) query: Option<Texts>,
    pub(super) headers: Option<Texts>,
    pub(super) body: Option<Content>,
    pub(super) limits: Limits,
}

/// How much is read, and told.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bounds: Bounds,
    /// Faults of one request.
    pub faults: usize,
}

/// The parameters of a path, by their place among the route's.
pub struct PathRule {
    pub(super) schema: Schema,
    pub(super) parameters: Vec<(usize, Box<str>, Shape)>,
}

/// What stands in a request as texts with names.
pub struct Texts {
    pub(super) schema: Schema,
    pub(super) shapes: Vec<(Box<str>, Shape)>,
}

/// The bodies that are accepted.
pub struct Content {
    pub(super) is_required: bool,
    /// The most specific first.
    pub(super) kinds: Vec<(Kind, Arc<Schema>)>,
}

/// A range of media types.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// `application/json`, and formats made of it.
    Json,
    Exactly(Box<str>),
    /// With the slash: `application/`.
    Family(Box<str>),
    Any,
}

/// A compiled schema.
pub struct Schema {
    pub(super) validator: Validator,
    pub(super) source: Source,
}

/// What the body of one request must look like.
#[derive(Clone)]
pub struct BodyRule {
    schema: Arc<Schema>,
    is_required: bool,
    limits: Limits,
    mode: Mode,
}

// === impl Validation ===

impl Validation {
    pub fn rules(&self, method: MethodIndex) -> Option<&Arc<Rules>> {
        self.by_method[method.0].as_ref()
    }
}

// === impl Rules ===

impl Rules {
    /// Whether the values of the path's parameters must be kept.
    pub fn asks_for_path(&self) -> bool {
        self.path.is_some()
    }

    /// The bounds of the document that a body is read as; `None`: it is not read.
    pub fn document_bounds(&self) -> Option<Bounds> {
        self.body.as_ref().map(|_| self.limits.bounds)
    }

    /// What is wrong with all but the body. `path`: the values of the route's parameters as they stand there.
    pub fn check_head(&self, path: &[Box<str>], query: &str, fields: &HeaderMap) -> Faults {
        let mut faults = Faults::default();
        let most = self.limits.faults;
        if let Some(rule) = &self.path {
            let value = rule.read(path);
            rule.schema.check(Part::Path, &value, most, &mut faults);
        }
        if let Some(texts) = &self.query {
            let value = texts.read_query(query);
            texts.schema.check(Part::Query, &value, most, &mut faults);
        }
        if let Some(texts) = &self.headers {
            let value = texts.read_fields(fields);
            texts.schema.check(Part::Header, &value, most, &mut faults);
        }
        faults
    }
}

// === impl PathRule ===

impl PathRule {
    fn read(&self, path: &[Box<str>]) -> Value {
        let members = self.parameters.iter().filter_map(|(at, name, shape)| {
            let text = percent_decode_str(path.get(*at)?).decode_utf8_lossy();
            Some((String::from(&**name), shape.read(&[&text])))
        });
        Value::Object(members.collect())
    }
}

// === impl Texts ===

impl Texts {
    /// All parameters: also those that the schema does not name, which it may refuse.
    fn read_query(&self, query: &str) -> Value {
        let mut by_name: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            by_name.entry(name).or_default().push(value);
        }
        let members = by_name.into_iter().map(|(name, values)| {
            let values: Vec<&str> = values.iter().map(|value| &**value).collect();
            let value = self.shape(&name).read(&values);
            (name.into_owned(), value)
        });
        Value::Object(members.collect())
    }

    /// Only those that the schema names: a request has many others.
    fn read_fields(&self, fields: &HeaderMap) -> Value {
        let mut members = Map::new();
        for (name, shape) in &self.shapes {
            let Ok(field) = HeaderName::try_from(&**name) else {
                continue;
            };
            let values = fields.get_all(field).iter();
            let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
            let values: Vec<_> = values.collect();
            if !values.is_empty() {
                let values: Vec<&str> = values.iter().map(|value| value.trim()).collect();
                members.insert(String::from(&**name), shape.read(&values));
            }
        }
        Value::Object(members)
    }

    fn shape(&self, name: &str) -> Shape {
        let known = self.shapes.iter().find(|(known, _)| **known == *name);
        known.map_or(Shape::UNKNOWN, |(_, shape)| *shape)
    }
}

// === impl Content ===

impl Content {
    /// What a body that is announced like this must look like; `None`: it is accepted as it is.
    ///
    /// # Errors
    /// When no such body is accepted.
    fn schema_for(&self, fields: &HeaderMap) -> Result<Option<&Arc<Schema>>, Refusal> {
        // What is said to be nothing is JSON, or refused as none.
        let essence = Media::of(fields)?.essence;
        let essence = essence.unwrap_or_else(|| media::JSON.to_owned());
        let is_json = media::is_json(&essence);
        let covers = |(kind, _): &&(Kind, _)| match kind {
            Kind::Json => is_json,
            Kind::Exactly(kind) => **kind == *essence,
            Kind::Family(family) => essence.starts_with(&**family),
            Kind::Any => true,
        };
        let covered = self.kinds.iter().find(covers);
        let (_, schema) = covered.ok_or(Refusal::UnsupportedMediaType)?;
        Ok(is_json.then_some(schema))
    }

    /// # Errors
    /// As [`Content::schema_for`].
    pub fn rule_for(
        &self,
        fields: &HeaderMap,
        limits: Limits,
        mode: Mode,
    ) -> Result<Option<BodyRule>, Refusal> {
        let rule = |schema: &Arc<Schema>| BodyRule {
            schema: schema.clone(),
            is_required: self.is_required,
            limits,
            mode,
        };
        Ok(self.schema_for(fields)?.map(rule))
    }

    /// # Errors
    /// When there must be a body.
    pub fn check_missing(&self, mut faults: Faults, limits: Limits) -> Result<(), Refusal> {
        if self.is_required {
            faults.add_missing_body(limits.faults);
        }
        faults.verdict()
    }
}

// === impl BodyRule ===

impl BodyRule {
    pub fn bounds(&self) -> Bounds {
        self.limits.bounds
    }

    pub fn only_reports(&self) -> bool {
        self.mode == Mode::ReportOnly
    }

    /// `faults`: what was found before.
    ///
    /// # Errors
    /// When the request does not look as it must.
    pub fn check(&self, body: &mut Body, mut faults: Faults) -> Result<(), Refusal> {
        if body.is_empty() {
            if self.is_required {
                faults.add_missing_body(self.limits.faults);
            }
            return faults.verdict();
        }
        match body.document(self.limits.bounds) {
            Err(NoDocument(why)) => Err(Refusal::BadBody(why)),
            Ok(value) => {
                let most = self.limits.faults;
                self.schema.check(Part::Body, value, most, &mut faults);
                faults.verdict()
            }
        }
    }
}

// === impl Schema ===

impl Schema {
    fn check(&self, part: Part, value: &Value, most: usize, faults: &mut Faults) {
        // Most are, and it costs less to find out.
        if self.validator.is_valid(value) {
            return;
        }
        for error in self.validator.iter_errors(value) {
            if !faults.add(part, &error, most) {
                return;
            }
        }
    }
}
