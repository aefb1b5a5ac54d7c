//! Where the schemas are that others refer to. The library resolves references by itself; who reads texts by a schema's types
//! has to look at the same ones, or say that it does not understand them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::Value;

use super::files::Shelf;

/// A schema, and the file that it stands in: what it refers to is relative to that.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub shelf: &'a Shelf,
    pub file: &'a str,
    pub root: &'a Value,
    pub lost: &'a Lost,
}

/// What is not understood on the way: a text that stands for something else would be refused with every request.
#[derive(Debug, Default)]
pub struct Lost(RefCell<BTreeSet<String>>);

/// Keywords that say where other schemas are, and that are not followed here.
const NOT_FOLLOWED: [&str; 2] = ["$dynamicRef", "$recursiveRef"];

/// What the schema that `to` refers to is; one that leads nowhere is noted.
pub fn follow<T>(
    to: &str,
    place: Place<'_>,
    look: impl FnOnce(&Value, Place<'_>) -> T,
) -> Option<T> {
    let looked = match Shelf::follow(place.file, to) {
        None => None,
        Some((file, pointer)) if file == place.file => {
            place.root.pointer(&pointer).map(|found| look(found, place))
        }
        // What an `$id` makes it relative to is no file of ours.
        Some(_) if place.root.get("$id").is_some() => None,
        Some((file, pointer)) => place.shelf.read(&file).ok().and_then(|root| {
            let there = Place {
                file: &file,
                root: &root,
                ..place
            };
            root.pointer(&pointer).map(|found| look(found, there))
        }),
    };
    if looked.is_none() {
        let fault =
            "leads to nothing that is read here: name a file of the folder, and a JSON pointer";
        place.lost.add(format!("`$ref: {to}` {fault}"));
    }
    looked
}

// === impl Lost ===

impl Lost {
    fn add(&self, what: String) {
        self.0.borrow_mut().insert(what);
    }

    /// In words for the operator.
    pub fn faults(self) -> impl Iterator<Item = String> {
        self.0.into_inner().into_iter()
    }
}

// === impl Place ===

impl Place<'_> {
    /// Notes what a schema says that is not understood here.
    pub fn note(self, schema: &Value) {
        for keyword in NOT_FOLLOWED {
            if schema.get(keyword).is_some() {
                let fault = "is not followed where texts are read: name what is meant with `$ref`";
                self.lost.add(format!("`{keyword}` {fault}"));
            }
        }
        // Its own references would be relative to that.
        if schema.get("$id").is_some() && !std::ptr::eq(schema, self.root) {
            let fault = "`$id` within a file is not followed where texts are read";
            self.lost.add(fault.to_owned());
        }
    }
}
