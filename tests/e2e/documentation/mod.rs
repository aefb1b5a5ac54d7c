//! /documentation: a document of the configuration in force, in which everybody finds what they may call, and Swagger UI.

mod browser;
mod configuration;
mod document;
mod names;
mod page;
mod truth;
mod viewers;

use crate::support::prelude::*;
use std::collections::BTreeSet;

pub const REFERENCE: &str = include_str!("../../../conf/gateway.yaml");

/// An operation of a document.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: String,
    pub path: String,
    pub value: Value,
}

/// What aggregates are made of as well.
pub fn backend() -> Upstream {
    Upstream::start_with(|_| Reply::json(json!({"from": "the backend"})))
}

/// The platform, with every service at one backend, in a stage in which the documentation is on.
pub fn platform(backend: &Upstream) -> GatewayBuilder {
    let checked = "enabled: true\n  path: /health";
    let platform = REFERENCE
        .replace(checked, "enabled: false\n  path: /health")
        .replace("operators: null", "operators: true");
    Gateway::with(&platform)
        .all_services_at(&backend.url())
        .env("ORDER_SERVICE_URL", backend.url())
        .env("NODE_ENV", "staging")
        .env("RATE_LIMIT_GLOBAL_MAX", 100_000)
        .env("LIMITS_FLOOD_MAX", 100_000)
}

/// A few routes, in a stage in which the documentation is on.
pub fn small(routes: &str) -> GatewayBuilder {
    let operators = match routes.contains("documentation: {") {
        true => "",
        false => "documentation: { operators: true }",
    };
    let yaml = format!(
        "
health: {{ enabled: false }}
services: {{ s: {{ url: 'http://127.0.0.1:1' }}, g: {{ url: 'http://127.0.0.1:2', http2: true }} }}
roles: {{ admin: ['*'], customer: ['things:view'] }}
{operators}
{routes}"
    );
    Gateway::with(&yaml).env("NODE_ENV", "staging")
}

#[track_caller]
pub fn document(gateway: &Gateway) -> Value {
    document_of(gateway, Request::get("/documentation/json"))
}

#[track_caller]
pub fn document_of(gateway: &Gateway, request: Request) -> Value {
    let response = request.send_to(gateway.addr());
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

pub fn operations(document: &Value) -> Vec<Operation> {
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, value) in item.as_object().unwrap() {
            operations.push(Operation {
                method: method.to_ascii_uppercase(),
                path: path.clone(),
                value: value.clone(),
            });
        }
    }
    operations
}

/// `METHOD path` of each.
pub fn names(document: &Value) -> BTreeSet<String> {
    operations(document).iter().map(Operation::name).collect()
}

impl Operation {
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// A request for it, with something for each parameter of its path.
    pub fn request(&self) -> Request {
        let mut target = self.path.clone();
        for parameter in self.value["parameters"].as_array().into_iter().flatten() {
            if parameter["in"] != "path" {
                continue;
            }
            let name = parameter["name"].as_str().unwrap();
            let value = match name {
                // The dashboard is its own user's.
                "user" => "u1",
                _ if parameter["x-slashes"] == true => "x/y",
                _ => "x",
            };
            target = target.replace(&format!("{{{name}}}"), value);
        }
        assert!(
            !target.contains('{'),
            "a parameter is not described: {}",
            self.name()
        );
        let request = Request::method(&self.method, &target);
        match self.value.get("requestBody") {
            Some(_) => request.json(&json!({"eventId": "e1"})),
            None => request,
        }
    }

    /// Whether it can be called without credentials.
    pub fn is_open(&self) -> bool {
        let ways = self.value["security"].as_array().unwrap();
        ways.is_empty() || ways.iter().any(|way| way.as_object().unwrap().is_empty())
    }
}
