//! A document: the operations that its viewer may see, in the order of the configuration, and what they need.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::View;
use super::inventory::{Head, Inventory, Operation};

pub struct Document<'a> {
    inventory: &'a Inventory,
    operations: Vec<&'a Operation>,
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
    pub fn of(inventory: &'a Inventory, view: &View) -> Self {
        Self {
            inventory,
            operations: inventory.seen(view).collect(),
        }
    }

    pub fn json(&self) -> String {
        let mut text = String::with_capacity(64 << 10);
        text.push_str(r#"{"openapi":"3.1.0","info":"#);
        let Head {
            title,
            version,
            host,
            aliases,
        } = &self.inventory.head;
        let info = json!({ "title": title, "version": version, "description": DESCRIPTION });
        let mut servers =
            vec![json!({ "url": "/", "description": "Where this document comes from" })];
        servers.extend(host.iter().map(|host| json!({ "url": host })));
        push(&mut text, &info);
        text.push_str(r#","servers":"#);
        push(&mut text, &servers.into());
        if !aliases.is_empty() {
            text.push_str(r#","x-aliases":"#);
            push(&mut text, &json!(aliases));
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

    fn tags(&self) -> Value {
        let mut known = BTreeSet::new();
        let tags = self.operations.iter().map(|operation| &operation.tag);
        tags.filter(|tag| known.insert(tag.as_str()))
            .map(|tag| json!({ "name": tag }))
            .collect()
    }

    fn push_paths(&self, text: &mut String) {
        let mut known = BTreeSet::new();
        for operation in &self.operations {
            let path = &operation.path;
            if !known.insert(path) {
                continue;
            }
            push_key(text, path);
            text.push('{');
            let mut methods = BTreeSet::new();
            for operation in self.operations.iter().filter(|other| other.path == *path) {
                if methods.insert(&operation.method) {
                    push_key(text, &operation.method);
                    text.push_str(&operation.described.text);
                }
            }
            text.push('}');
        }
    }

    /// What the operations need, and what that needs.
    fn push_components(&self, text: &mut String) {
        let components = &self.inventory.components;
        let mut needed = BTreeSet::new();
        let of_operations = self.operations.iter().map(|operation| &operation.described);
        let mut waiting: Vec<_> = of_operations.flat_map(|fragment| &fragment.needs).collect();
        // Everybody reads of it in the description.
        let error = ("schemas", "Error".to_owned());
        waiting.push(&error);
        while let Some(next) = waiting.pop() {
            if needed.insert(next)
                && let Some(fragment) = components.get(next)
            {
                waiting.extend(&fragment.needs);
            }
        }
        let mut kind = "";
        for (name, fragment) in components.iter().filter(|(name, _)| needed.contains(name)) {
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
