//! Every operation of a configuration: a document is made of those that its viewer may see, and of nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;

use super::View;
use super::library::Library;
use super::paths::{Paths, Reach};
use super::subject::{All, Batching, Subject, What};
use crate::admit::auth::AuthRule;
use crate::admit::schema::Rules;
use crate::forward::batch::Batch;
use crate::route::{METHODS, MethodIndex, Route, Table};

/// All that documents are made of.
pub struct Inventory {
    pub head: Head,
    /// The files that schemas refer to, as they were when the configuration was read.
    pub library: Library,
    operations: Vec<Operation>,
    policies: All,
    /// Which host is asked for makes a difference.
    pub has_hosts: bool,
}

/// What stands above the operations.
pub struct Head {
    pub title: String,
    pub version: String,
    /// Where clients find the gateway: `//host`, or with a scheme.
    pub host: Option<String>,
    pub aliases: BTreeMap<String, String>,
}

pub struct Operation {
    of: Of,
    method: MethodIndex,
    pub reach: Arc<Reach>,
    /// Those that it is for; empty: all.
    pub hosts: Arc<[String]>,
    /// It is for addresses in `ops.allow` (`Some(true)`), or for others.
    nearness: Option<bool>,
}

enum Of {
    Route(Arc<Route>),
    /// It is no route's, and for everybody.
    Batch(Batching),
}

// === impl Inventory ===

impl Inventory {
    pub fn of(table: &Table, batch: Option<&Batch>, policies: All, head: Head) -> Self {
        let mut operations = Vec::new();
        let mut library = Library::default();
        let paths = Paths::new(table);
        for listed in table.listed() {
            let Some(reach) = paths.reach(listed).filter(|_| !is_grpc(&listed.route)) else {
                continue;
            };
            let (reach, hosts) = (Arc::new(reach), Arc::from(&*listed.hosts));
            let methods = listed.methods.iter().copied();
            for method in methods.filter(|method| is_shown(*method, &listed.methods)) {
                if let Some(rules) = listed.route.rules(method) {
                    take_in(rules, &mut library);
                }
                // To who comes from elsewhere they are something else.
                let nearness: &[Option<bool>] = match listed.route.auth {
                    AuthRule::Ops => &[Some(true), Some(false)],
                    AuthRule::Public | AuthRule::Token | AuthRule::TokenOrKey => &[None],
                };
                operations.extend(nearness.iter().map(|nearness| Operation {
                    of: Of::Route(listed.route.clone()),
                    method,
                    reach: reach.clone(),
                    hosts: Arc::clone(&hosts),
                    nearness: *nearness,
                }));
            }
        }
        let post = METHODS.iter().position(|method| *method == Method::POST);
        operations.extend(batch.map(|batch| Operation {
            of: Of::Batch(Batching::of(batch)),
            method: MethodIndex(post.unwrap_or_default()),
            reach: Arc::new(Reach::at(batch.path())),
            hosts: Arc::default(),
            nearness: None,
        }));
        Self {
            head,
            library,
            operations,
            policies,
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
        self.view_of(|operation| {
            let Of::Route(route) = &operation.of else {
                return true;
            };
            let method = operation.method;
            let is_for_it = operation.nearness.is_none_or(|near| near == is_near);
            let is_of_host =
                || !self.has_hosts || table.leads_to(route, host, method, &operation.reach.probe);
            is_for_it && may_call(route, method) && is_of_host()
        })
    }

    /// What is in the document of all hosts together.
    pub fn view_of_all(&self) -> View {
        self.view_of(|operation| operation.nearness != Some(false))
    }

    fn view_of(&self, is_seen: impl Fn(&Operation) -> bool) -> View {
        let mut bits = vec![0; self.operations.len().div_ceil(64)];
        for (place, operation) in self.operations.iter().enumerate() {
            bits[place / 64] |= u64::from(is_seen(operation)) << (place % 64);
        }
        View(bits.into())
    }

    pub fn seen(&self, View(bits): &View) -> Vec<&Operation> {
        let places = 0..self.operations.len();
        let seen = places.filter(|place| bits[place / 64] >> (place % 64) & 1 == 1);
        seen.map(|place| &self.operations[place]).collect()
    }

    pub fn subject<'a>(&self, operation: &'a Operation) -> Subject<'a> {
        Subject {
            what: match &operation.of {
                Of::Route(route) => What::Route(route),
                Of::Batch(batch) => What::Batch(batch),
            },
            method: operation.method,
            policies: self.policies,
            is_near: operation.nearness == Some(true),
        }
    }
}

/// Reads what its schemas refer to.
fn take_in(rules: &Rules, library: &mut Library) {
    for parameter in rules.parameters() {
        library.take_in(&parameter.source);
    }
    for (_, source) in rules.bodies().into_iter().flat_map(|bodies| bodies.sources) {
        library.take_in(source);
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
