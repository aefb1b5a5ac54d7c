//! Every operation of a configuration, described once: a document is put together from those that its viewer may see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::Method;
use serde_json::Value;

use super::View;
use super::operation::{self, Parts};
use super::own;
use super::paths::{Parameter, Paths, Shown};
use super::subject::{All, Subject, What};
use crate::admit::auth::AuthRule;
use crate::forward::batch::Batch;
use crate::route::{METHODS, MethodIndex, Route, Table};

/// All that documents are put together from.
pub struct Inventory {
    pub head: Head,
    pub operations: Vec<Operation>,
    /// By kind (`schemas`, `responses`, `headers`) and name.
    pub components: BTreeMap<(&'static str, String), Fragment>,
    /// Which host is asked for makes a difference.
    has_hosts: bool,
}

/// What stands above the operations.
pub struct Head {
    pub title: String,
    pub version: String,
    /// Where clients find the gateway.
    pub host: Option<String>,
    pub aliases: BTreeMap<String, String>,
}

/// A piece of JSON.
pub struct Fragment {
    pub text: String,
    /// The components that it needs.
    pub needs: Vec<(&'static str, String)>,
}

pub struct Operation {
    /// As the document has it.
    pub path: String,
    /// `get`, `post`, …
    pub method: String,
    pub tag: String,
    pub described: Fragment,
    /// `None`: it is no route's, and for everybody.
    route: Option<(Arc<Route>, MethodIndex)>,
    /// Asked for where hosts differ.
    probe: String,
    /// It is for addresses in `ops.allow` (`Some(true)`), or for others.
    nearness: Option<bool>,
}

/// The operations, as they come to be.
struct Making {
    policies: All,
    parts: Parts,
    /// Those that are taken.
    ids: BTreeSet<String>,
    operations: Vec<Operation>,
}

// === impl Inventory ===

impl Inventory {
    pub fn of(table: &Table, batch: Option<&Batch>, policies: All, head: Head) -> Self {
        let mut making = Making {
            policies,
            parts: Parts::default(),
            ids: BTreeSet::new(),
            operations: Vec::new(),
        };
        own::add_schemas(&mut making.parts.schemas);
        let mut paths = Paths::new(table);
        for listed in table.listed() {
            if is_grpc(&listed.route) {
                continue;
            }
            let Some(path) = paths.show(listed) else {
                continue;
            };
            for method in listed
                .methods
                .iter()
                .filter(|method| is_shown(**method, &listed.methods))
            {
                making.add_route(&listed.route, *method, &path);
            }
        }
        if let Some(batch) = batch {
            making.add_batch(batch);
        }
        let Making {
            parts, operations, ..
        } = making;
        let kinds = [
            ("schemas", parts.schemas.into_named()),
            ("responses", parts.answers.into_components()),
            ("headers", own::headers()),
        ];
        let components = kinds.into_iter().flat_map(|(kind, named)| {
            let named = named.into_iter();
            named.map(move |(name, value)| ((kind, name), Fragment::of(&value)))
        });
        Self {
            head,
            operations,
            components: components.collect(),
            has_hosts: table.has_hosts(),
        }
    }

    /// What is in the document of somebody who may call these, and asks this host for it.
    pub fn view(
        &self,
        table: &Table,
        host: &str,
        is_near: bool,
        may_call: impl Fn(&Route, MethodIndex) -> bool,
    ) -> View {
        let mut bits = vec![0; self.operations.len().div_ceil(64)];
        for (place, operation) in self.operations.iter().enumerate() {
            let is_of_host = |route: &Arc<Route>, method| {
                !self.has_hosts || table.leads_to(route, host, method, &operation.probe)
            };
            let is_for_it = operation.nearness.is_none_or(|near| near == is_near);
            let is_seen = match &operation.route {
                None => true,
                Some((route, method)) => {
                    is_for_it && may_call(route, *method) && is_of_host(route, *method)
                }
            };
            bits[place / 64] |= u64::from(is_seen) << (place % 64);
        }
        View(bits.into())
    }

    pub fn seen(&self, View(bits): &View) -> impl Iterator<Item = &Operation> {
        let places = 0..self.operations.len();
        let seen = places.filter(|place| bits[place / 64] >> (place % 64) & 1 == 1);
        seen.map(|place| &self.operations[place])
    }
}

/// A method that an operation is described for: where GET is, HEAD is as well.
fn is_shown(method: MethodIndex, methods: &[MethodIndex]) -> bool {
    METHODS[method.0] != Method::HEAD || !methods.contains(&MethodIndex::GET)
}

/// gRPC's methods are called by its own clients, by paths such as `/seats.v1.Seats/Hold`: OpenAPI has nothing to say of them.
fn is_grpc(route: &Route) -> bool {
    let service = route.template.split('/').nth(1).unwrap_or_default();
    route.service.http2 && service.contains('.')
}

// === impl Making ===

impl Making {
    fn add_route(&mut self, route: &Arc<Route>, method: MethodIndex, path: &Shown) {
        let of = Subject {
            what: What::Route(route),
            method,
            policies: self.policies,
        };
        // To who comes from elsewhere they are something else.
        let nearness: &[Option<bool>] = match route.auth {
            AuthRule::Ops => &[Some(true), Some(false)],
            AuthRule::Public | AuthRule::Token | AuthRule::TokenOrKey => &[None],
        };
        for nearness in nearness {
            self.add(&of, path, *nearness, Some((route.clone(), method)));
        }
    }

    fn add_batch(&mut self, batch: &Batch) {
        let post = METHODS.iter().position(|method| *method == Method::POST);
        let of = Subject {
            what: What::Batch(batch),
            method: MethodIndex(post.unwrap_or_default()),
            policies: self.policies,
        };
        let path = Shown {
            template: batch.path().to_owned(),
            parameters: Vec::<Parameter>::new(),
            probe: batch.path().to_owned(),
        };
        self.add(&of, &path, None, None);
    }

    fn add(
        &mut self,
        of: &Subject<'_>,
        path: &Shown,
        nearness: Option<bool>,
        route: Option<(Arc<Route>, MethodIndex)>,
    ) {
        let tag = operation::tag(&path.template).to_owned();
        let id = self.free_id(operation::id(&METHODS[of.method.0], &path.template));
        let is_near = nearness == Some(true);
        let described = operation::describe(of, path, &tag, &id, is_near, &mut self.parts);
        self.operations.push(Operation {
            path: path.template.clone(),
            method: operation::key(of),
            described: Fragment::of(&described),
            tag,
            route,
            probe: path.probe.clone(),
            nearness,
        });
    }

    /// Each operation has its own.
    fn free_id(&mut self, id: String) -> String {
        let numbered = (2..).map(|number| format!("{id}{number}"));
        let mut ids = std::iter::once(id.clone()).chain(numbered);
        let free = ids.find(|id| !self.ids.contains(id)).unwrap_or(id.clone());
        self.ids.insert(free.clone());
        free
    }
}

// === impl Fragment ===

impl Fragment {
    fn of(value: &Value) -> Self {
        let mut needs = Vec::new();
        references(value, &mut needs);
        needs.sort_unstable();
        needs.dedup();
        Self {
            text: value.to_string(),
            needs,
        }
    }
}

/// The kinds of components that are referred to.
const KINDS: [&str; 3] = ["schemas", "responses", "headers"];

fn references(value: &Value, found: &mut Vec<(&'static str, String)>) {
    match value {
        Value::Object(members) => {
            let to = members.get("$ref").and_then(Value::as_str);
            let to = to.and_then(|to| to.strip_prefix("#/components/")?.split_once('/'));
            if let Some((kind, name)) = to
                && let Some(kind) = KINDS.iter().find(|known| **known == kind)
            {
                found.push((kind, name.to_owned()));
            }
            members
                .values()
                .for_each(|member| references(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}
