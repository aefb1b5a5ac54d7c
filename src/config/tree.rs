//! A configuration as a tree of plain values, with every default in its place: what two of them differ in is what the one
//! does otherwise, however it is written.
//!
//! No secret stands in it, only a mark by which this process, and no other, tells it from another.

use std::path::Path;

use once_cell::sync::Lazy;
use serde::{Serialize, Serializer};
use serde_yaml::Value;
use zeroize::Zeroizing;

use super::{File, bounds};

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
pub fn with_content<P: AsRef<Path>, S: Serializer>(
    file: &Option<P>,
    to: S,
) -> Result<S::Ok, S::Error> {
    file.as_ref().map(marks).serialize(to)
}

/// The same for a key that must name one.
pub fn with_file<P: AsRef<Path>, S: Serializer>(file: &P, to: S) -> Result<S::Ok, S::Error> {
    marks(file).serialize(to)
}

/// Of its name, and of what it holds.
fn marks(file: impl AsRef<Path>) -> (u64, u64) {
    let file = file.as_ref();
    let content = bounds::contents(file).map(Zeroizing::new);
    (
        mark(file.as_os_str().as_encoded_bytes()),
        content.map_or(0, |content| mark(&content)),
    )
}

/// A seeded hash: outside of this process it says nothing.
pub(super) fn mark(bytes: &[u8]) -> u64 {
    static SEED: Lazy<ahash::RandomState> = Lazy::new(ahash::RandomState::new);
    SEED.hash_one(bytes)
}
