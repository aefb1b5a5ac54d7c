//! A configuration as a tree of plain values, with every default in its place: what two of them differ in is what the one
//! does otherwise, however it is written.
//!
//! No secret stands in it, only a mark by which this process, and no other, tells it from another.

use once_cell::sync::Lazy;
use serde::{Serialize, Serializer};
use serde_yaml::Value;

use super::File;

/// A whole configuration as a tree. Its values are compared, not shown.
#[derive(Clone, PartialEq)]
pub struct Tree(pub(super) Value);

impl Tree {
    pub fn of(file: &File) -> Self {
        Self(tree(file))
    }
}

/// A part of a configuration as a tree.
pub fn tree(config: &impl Serialize) -> Value {
    // Every type of ours can be one.
    serde_yaml::to_value(config).unwrap_or_default()
}

/// For keys that name a file: what it holds counts as well. A key may also hold the text itself.
pub fn with_content<S: Serializer>(file: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    let content = file.as_ref().map(|file| match std::fs::read(file) {
        Ok(content) => (mark(file.as_bytes()), mark(&content)),
        Err(_) => (mark(file.as_bytes()), 0),
    });
    content.serialize(to)
}

/// A seeded hash: outside of this process it says nothing.
pub(super) fn mark(bytes: &[u8]) -> u64 {
    static SEED: Lazy<ahash::RandomState> = Lazy::new(ahash::RandomState::new);
    SEED.hash_one(bytes)
}
