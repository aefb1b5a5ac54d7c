//! A document: the operations that its viewer may see, in the order of the configuration, and what they need. All of its
//! names come from what is in it: what somebody may not see leaves no gap and no number.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::View;
use super::inventory::{Head, Inventory};
use super::operation::{self, Parts};
use super::own;
use super::paths;
use super::schemas::Schemas;

pub struct Document<'a> {
    head: &'a Head,
    operations: Vec<Described>,
    /// By kind (`schemas`, `responses`, `headers`) and name.
    components: BTreeMap<Name, Fragment>,
    /// Where another host's operation has their place.
    pub left_out: Vec<String>,
}

/// A component's kind and name.
type Name = (&'static str, String);

struct Described {
    path: String,
    /// `get`, `post`, …
    method: String,
    tag: String,
    text: Fragment,
}

/// A piece of JSON.
struct Fragment {
    text: String,
    /// The components that it needs.
    needs: Vec<Name>,
}

/// What a document is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What the host that is asked answers.
    Host,
    /// Every operation says whose it is.
    AllHosts,
}

const DESCRIPTION: &str = "API documentation for TicketToken platform

Every answer carries `X-Request-ID`; a request may bring its own. What the gateway does not pass on it answers with an \
`Error`, whose `code` does not change. Before it looks at the path it may answer 400, 408, 414 `URI_TOO_LONG`, 417 \
`EXPECTATION_FAILED`, 421 `MISDIRECTED_REQUEST`, 431 `HEADERS_TOO_LARGE`, 505 `HTTP_VERSION_NOT_SUPPORTED`, and 429 to an \
address that sends too much.

`X-Request-Deadline` (milliseconds since 1970) shortens the time for an answer. Limits are those of a user, an API key \
or, for nobody in particular, an address; keys of the tiers `standard` and `premium` have 5 and 10 times as much. Where \
GET is answered, HEAD is as well.

Only what you may call is listed: authorize, and the list follows.";

// === impl Document ===

impl<'a> Document<'a> {
    /// Depends on nothing but what it is given, and waits for nothing.
    pub fn of(inventory: &'a Inventory, view: &View, scope: Scope) -> Self {
        let seen = inventory.seen(view);
        let reaches: Vec<_> = seen.iter().map(|operation| &*operation.reach).collect();
        let mut parts = Parts::new(Schemas::of(&inventory.library));
        own::add_schemas(&mut parts.schemas);
        let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
        let (mut operations, mut left_out) = (Vec::with_capacity(seen.len()), Vec::new());
        for (operation, path) in seen.iter().zip(paths::spell(&reaches)) {
            let of = inventory.subject(operation);
            let method = operation::key(&of);
            if !places.insert((path.template.clone(), method.clone())) {
                let hosts = operation.hosts.join(", ");
                let method = method.to_ascii_uppercase();
                left_out.push(format!("{method} {} of {hosts}", path.template));
                continue;
            }
            let tag = operation::tag(&path.template).to_owned();
            let id = free_id(operation::id(&method, &path.template), &mut ids);
            let mut described = operation::describe(&of, &path, &tag, &id, &mut parts);
            if scope == Scope::AllHosts && !operation.hosts.is_empty() {
                described["servers"] = operation.hosts.iter().map(|host| server(host)).collect();
            }
            operations.push(Described {
                text: Fragment::of(&described),
                path: path.template,
                method,
                tag,
            });
        }
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
            head: &inventory.head,
            operations,
            components: components.collect(),
            left_out,
        }
    }

    pub fn json(&self) -> String {
        let mut text = String::with_capacity(64 << 10);
        text.push_str(r#"{"openapi":"3.1.0","info":"#);
        let Head {
            title,
            version,
            host,
            aliases: _, // some of them
        } = self.head;
        let info = json!({ "title": title, "version": version, "description": DESCRIPTION });
        let mut servers =
            vec![json!({ "url": "/", "description": "Where this document comes from" })];
        servers.extend(host.iter().map(|host| json!({ "url": host })));
        push(&mut text, &info);
        text.push_str(r#","servers":"#);
        push(&mut text, &servers.into());
        let aliases = self.aliases();
        if !aliases.is_empty() {
            text.push_str(r#","x-aliases":"#);
            push(&mut text, &aliases.into());
        }
        text.push_str(r#","tags":"#);
        push(&mut text, &self.tags());
        text.push_str(r#","paths":{"#);
        self.push_paths(&mut text);
        text.push_str(r#"},"components":{"securitySchemes":"#);
        push(&mut text, &credentials());
        self.push_components(&mut text);
        text.push_str("}}");
        text
    }

    /// The same.
    pub fn yaml(&self) -> String {
        // JSON is YAML, and keeps its order.
        let value = serde_yaml::from_str::<serde_yaml::Value>(&self.json());
        let text = value.and_then(|value| serde_yaml::to_string(&value));
        text.expect("what was JSON can be written as YAML")
    }

    /// Those of paths that are in it.
    fn aliases(&self) -> Map<String, Value> {
        let is_of = |path: &str, original: &str| {
            let rest = path.strip_prefix(original);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let aliases = self.head.aliases.iter().filter(|(_, original)| {
            let mut operations = self.operations.iter();
            operations.any(|operation| is_of(&operation.path, original))
        });
        aliases
            .map(|(alias, original)| (alias.clone(), original.as_str().into()))
            .collect()
    }

    fn tags(&self) -> Value {
        let mut known = BTreeSet::new();
        let tags = self.operations.iter().map(|operation| &operation.tag);
        tags.filter(|tag| known.insert(tag.as_str()))
            .map(|tag| json!({ "name": tag }))
            .collect()
    }

    fn push_paths(&self, text: &mut String) {
        let mut known = BTreeSet::new();
        for Described { path, .. } in &self.operations {
            if !known.insert(path) {
                continue;
            }
            push_key(text, path);
            text.push('{');
            for operation in self.operations.iter().filter(|other| other.path == *path) {
                push_key(text, &operation.method);
                text.push_str(&operation.text.text);
            }
            text.push('}');
        }
    }

    /// What the operations need, and what that needs.
    fn push_components(&self, text: &mut String) {
        let mut needed = BTreeSet::new();
        let of_operations = self.operations.iter().map(|operation| &operation.text);
        let mut waiting: Vec<_> = of_operations.flat_map(|fragment| &fragment.needs).collect();
        // Everybody reads of it in the description.
        let error = ("schemas", "Error".to_owned());
        waiting.push(&error);
        while let Some(next) = waiting.pop() {
            if needed.insert(next)
                && let Some(fragment) = self.components.get(next)
            {
                waiting.extend(&fragment.needs);
            }
        }
        let mut kind = "";
        let components = self.components.iter();
        for (name, fragment) in components.filter(|(name, _)| needed.contains(name)) {
            if name.0 != kind {
                if !kind.is_empty() {
                    text.push('}');
                }
                kind = name.0;
                push_key(text, kind);
                text.push('{');
            }
            push_key(text, &name.1);
            text.push_str(&fragment.text);
        }
        if !kind.is_empty() {
            text.push('}');
        }
    }
}

/// Each operation has its own.
fn free_id(id: String, ids: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{id}{number}"));
    let mut candidates = std::iter::once(id.clone()).chain(numbered);
    let free = candidates.find(|id| !ids.contains(id)).unwrap_or(id);
    ids.insert(free.clone());
    free
}

/// Where a route's host is, by the scheme with which the document is read.
fn server(host: &str) -> Value {
    match host.strip_prefix('*') {
        None => json!({ "url": format!("//{host}") }),
        Some(rest) => json!({
            "url": format!("//{{name}}{rest}"),
            "variables": { "name": { "default": "www" } },
        }),
    }
}

/// `components.securitySchemes`
fn credentials() -> Value {
    json!({
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token",
        },
        "apiKey": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
    })
}

fn push(text: &mut String, value: &Value) {
    text.push_str(&value.to_string());
}

/// With the comma before it, unless it is the first.
fn push_key(text: &mut String, key: &str) {
    if !text.ends_with('{') {
        text.push(',');
    }
    push(text, &key.into());
    text.push(':');
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

fn references(value: &Value, found: &mut Vec<Name>) {
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
