//! The files that schemas stand in, and refer to, as they were when the configuration was read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::admit::schema::{Shelf, Source};

/// A document is made without reading any file.
#[derive(Default)]
pub struct Library(BTreeMap<(Shelf, String), Option<Arc<Value>>>);

impl Library {
    /// Reads what the schema refers to, and what that does.
    pub fn take_in(&mut self, source: &Source) {
        self.read(&source.shelf, &source.file);
        self.follow(&source.shelf, &source.file, &source.schema);
    }

    fn read(&mut self, shelf: &Shelf, file: &str) {
        let key = (shelf.clone(), file.to_owned());
        if self.0.contains_key(&key) {
            return;
        }
        let content = shelf.read(file).ok().map(Arc::new);
        // Files may refer to each other.
        self.0.insert(key, content.clone());
        if let Some(content) = content {
            self.follow(shelf, file, &content);
        }
    }

    fn follow(&mut self, shelf: &Shelf, file: &str, value: &Value) {
        match value {
            Value::Object(members) => {
                let to = members.get("$ref").and_then(Value::as_str);
                if let Some((to, _)) = to.and_then(|to| Shelf::follow(file, to)) {
                    self.read(shelf, &to);
                }
                let members = members.values();
                members.for_each(|member| self.follow(shelf, file, member));
            }
            Value::Array(items) => items.iter().for_each(|item| self.follow(shelf, file, item)),
            _ => {}
        }
    }

    pub fn file(&self, shelf: &Shelf, file: &str) -> Option<&Value> {
        let key = (shelf.clone(), file.to_owned());
        self.0.get(&key)?.as_deref()
    }
}
