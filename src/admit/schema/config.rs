//! Validation as YAML writes it.

use std::path::Path;
use std::sync::Arc;

use http::Method;
use prometheus::IntCounterVec;
use serde::{Deserialize, Serialize};

use super::files::FileName;
use super::loaded::Loaded;
use super::openapi;
use super::rules::{Content, Kind, Limits, Mode, Rules, Validation};
use crate::admit::auth::refresh::SessionStep;
use crate::admit::json::Bounds;
use crate::config::Problems;
use crate::route::{METHODS, MethodIndex};

/// `validation`: for all routes.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Objects and lists within each other.
    pub depth: usize,
    /// Members and elements of a document.
    pub values: usize,
    /// Faults that a client is told of.
    pub faults: usize,
}

/// `validate` of a route.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    #[serde(rename = "GET")]
    get: Option<RulesConfig>,
    #[serde(rename = "POST")]
    post: Option<RulesConfig>,
    #[serde(rename = "PUT")]
    put: Option<RulesConfig>,
    #[serde(rename = "PATCH")]
    patch: Option<RulesConfig>,
    #[serde(rename = "DELETE")]
    delete: Option<RulesConfig>,
    /// For the others.
    #[serde(rename = "*")]
    others: Option<RulesConfig>,
    mode: Mode,
}

/// What the requests with one method must look like.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RulesConfig {
    body: Option<FileName>,
    /// A request may come without a body.
    body_optional: bool,
    query: Option<FileName>,
    path: Option<FileName>,
    headers: Option<FileName>,
    /// In place of the others: an operation of an OpenAPI document.
    openapi: Option<FileName>,
    /// Its `operationId`.
    operation: Option<String>,
}

/// The route whose requests are meant.
pub struct Subject<'a> {
    pub path: &'a str,
    pub methods: &'a [MethodIndex],
    pub session: Option<SessionStep>,
}

/// What validation is compiled with.
pub struct Parts<'a> {
    pub limits: Limits,
    /// By route and mode.
    pub failures: &'a IntCounterVec,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            depth: 32,
            values: 10_000,
            faults: 20,
        }
    }
}

impl LimitsConfig {
    pub fn compile(self, problems: &mut Problems) -> Limits {
        let Self {
            depth,
            values,
            faults,
        } = self;
        for (key, value, most) in [
            ("depth", depth, 100), // the JSON reader's own bound is 128
            ("values", values, 1_000_000),
            ("faults", faults, 100),
        ] {
            if !(1..=most).contains(&value) {
                problems.add(
                    format!("validation.{key}"),
                    format!("must be from 1 to {most}"),
                );
            }
        }
        Limits {
            bounds: Bounds { depth, values },
            faults,
        }
    }
}

type Named<'a> = [(Method, &'a mut Option<RulesConfig>); 5];

// === impl ValidationConfig ===

impl ValidationConfig {
    /// The rules by their methods, and those of the others.
    fn rules(&mut self) -> (Named<'_>, &mut Option<RulesConfig>) {
        let Self {
            get,
            post,
            put,
            patch,
            delete,
            others,
            mode: _,
        } = self;
        let named = [
            (Method::GET, get),
            (Method::POST, post),
            (Method::PUT, put),
            (Method::PATCH, patch),
            (Method::DELETE, delete),
        ];
        (named, others)
    }

    /// Names of files are relative to this folder.
    pub fn stand_in(&mut self, folder: Option<&Arc<Path>>) {
        let (named, others) = self.rules();
        let all = named.into_iter().map(|(_, rules)| rules).chain([others]);
        for rules in all.flatten() {
            rules.stand_in(folder);
        }
    }

    pub fn compile(
        mut self,
        place: &str,
        subject: &Subject<'_>,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Box<Validation> {
        let place = format!("{place}.validate");
        let mode = self.mode;
        let (named, others) = self.rules();
        let mut by_method = [const { None }; METHODS.len()];
        let mut is_named = [false; METHODS.len()];
        for (method, rules) in named {
            let Some(rules) = rules.take() else {
                continue;
            };
            let place = format!("{place}.{method}");
            let Some(index) = MethodIndex::of(&method).filter(|i| subject.methods.contains(i))
            else {
                problems.add(place, format!("the route does not answer {method}"));
                continue;
            };
            let compiled = rules.compile(&place, &method, subject, parts, problems);
            if method == Method::GET {
                // It brings HEAD with it.
                is_named[HEAD] = true;
                by_method[HEAD].clone_from(&compiled);
            }
            is_named[index.0] = true;
            by_method[index.0] = compiled;
        }
        if let Some(rules) = others.take() {
            let place = format!("{place}.*");
            let left = subject.methods.iter().filter(|index| !is_named[index.0]);
            let left: Vec<&MethodIndex> = left.collect();
            match left.first() {
                None => problems.add(place, "every method of the route has rules of its own"),
                Some(first) => {
                    let method = &METHODS[first.0];
                    let compiled = rules.compile(&place, method, subject, parts, problems);
                    left.iter()
                        .for_each(|index| by_method[index.0].clone_from(&compiled));
                }
            }
        }
        let mode_name = match mode {
            Mode::Enforce => "enforce",
            Mode::ReportOnly => "report-only",
        };
        Box::new(Validation {
            by_method,
            mode,
            failures: parts.failures.with_label_values(&[subject.path, mode_name]),
        })
    }
}

/// Its place in per-method tables.
const HEAD: usize = 1;

// === impl RulesConfig ===

impl RulesConfig {
    /// A file that is left out here is not found.
    fn stand_in(&mut self, folder: Option<&Arc<Path>>) {
        let files = [
            &mut self.body,
            &mut self.query,
            &mut self.path,
            &mut self.headers,
            &mut self.openapi,
        ];
        for file in files.into_iter().flatten() {
            file.stand_in(folder.cloned());
        }
    }

    fn compile(
        self,
        place: &str,
        method: &Method,
        subject: &Subject<'_>,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Option<Arc<Rules>> {
        let faults_before = problems.len();
        let Self {
            body,
            body_optional,
            query,
            path,
            headers,
            openapi,
            operation,
        } = self;
        let has_files = [&body, &query, &path, &headers].iter().any(|f| f.is_some());
        let mut rules = Rules {
            path: None,
            query: None,
            headers: None,
            body: None,
            limits: parts.limits,
        };
        match (openapi, operation) {
            (Some(file), Some(operation)) if !has_files && !body_optional => {
                openapi::compile(&file, &operation, place, subject.path, &mut rules, problems);
            }
            (None, None) if has_files => {
                let load = |key: &str, file: Option<FileName>, problems: &mut Problems| {
                    Loaded::read(&file?, &format!("{place}.{key}"), problems)
                };
                let body = load("body", body, problems).and_then(|loaded| loaded.schema(problems));
                rules.body = body.map(|schema| Content {
                    is_required: !body_optional,
                    kinds: vec![(Kind::Json, Arc::new(schema))],
                });
                rules.query =
                    load("query", query, problems).and_then(|loaded| loaded.texts(false, problems));
                rules.headers = load("headers", headers, problems)
                    .and_then(|loaded| loaded.texts(true, problems));
                rules.path = load("path", path, problems)
                    .and_then(|loaded| loaded.path_rule(subject.path, problems));
            }
            _ => problems.add(
                place,
                "names `openapi` and `operation`, or some of `body`, `query`, `path` and `headers`",
            ),
        }
        if rules.body.is_some() && matches!(*method, Method::GET | Method::HEAD) {
            problems.add(format!("{place}.body"), format!("a {method} has no body"));
        }
        if rules.body.is_some() && subject.session == Some(SessionStep::Refresh) {
            problems.add(
                format!("{place}.body"),
                "a route with `session: refresh` looks at its body itself",
            );
        }
        (problems.len() == faults_before).then(|| Arc::new(rules))
    }
}
