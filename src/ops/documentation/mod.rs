//! /documentation: the gateway's own OpenAPI document, made of the configuration in force, and Swagger UI to read and to try
//! it (docs/decisions/0026-api-documentation.md).
//!
//! Everybody sees the operations that they may call, and the schemas that these need: with a token or a key those of its
//! holder, else the public ones. With `documentation.operators` an address in `ops.allow` sees all, or those of `?role=`.

mod answers;
mod assets;
mod config;
mod document;
mod inventory;
mod library;
mod operation;
mod own;
mod paths;
mod schemas;
mod serve;
mod subject;
mod viewer;
mod words;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::admit::limits::Rule;
use crate::admit::permissions::{RoleId, Roles};
use crate::policies::Policies;
use crate::route::{Route, Table};
use crate::server::threads::aside;
use assets::etag_of;
pub use config::{DocumentationConfig, Parts, check_host};
use document::{Document, Scope};
use inventory::Inventory;
use viewer::Viewer;

/// The documentation of one configuration.
pub struct Documentation {
    inventory: Inventory,
    /// `documentation.operators`
    shows_operators_all: bool,
    roles: Arc<Roles>,
    admin: Option<RoleId>,
    /// Of who asks for a document.
    limits: Vec<Arc<Rule>>,
    made: MadeBefore,
    policy: HeaderValue,
}

/// Which operations are in a document, bit by bit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct View(Box<[u64]>);

/// Who asks for a document.
struct Asking<'a> {
    viewer: Viewer,
    /// What is for addresses in `ops.allow` is for it.
    is_near: bool,
    host: &'a str,
}

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    Json,
    Yaml,
}

/// A document, as it is sent.
struct Made {
    body: Bytes,
    etag: HeaderValue,
}

/// Documents, by what is in them.
type MadeBefore = Cache<(View, Form), Arc<Made>, InBytes>;

/// What a document weighs that is kept.
#[derive(Clone)]
struct InBytes;

/// A document that is printed.
pub struct Printed {
    pub text: String,
    /// Operations that have no place in it.
    pub left_out: Vec<String>,
}

/// Bytes of documents that are kept: each role sees one, and few callers have permissions of their own.
const MOST_KEPT: u64 = 8 << 20;

/// How many they are, as a rule.
const USUALLY_KEPT: usize = 32;

/// Where it all is.
const PATH: &str = "/documentation";

/// Whether a path is the documentation's.
fn is_at(path: &str) -> bool {
    let below = path.strip_prefix(PATH);
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

// === impl Documentation ===

impl Documentation {
    pub fn is_at(&self, path: &str) -> bool {
        is_at(path)
    }

    /// With every operation of a host, or of all of them.
    pub fn print(&self, table: &Table, host: Option<&str>) -> Printed {
        let (view, scope) = match host {
            Some(host) => (
                self.inventory.view(table, host, true, |_, _| true),
                Scope::Host,
            ),
            None => (self.inventory.view_of_all(), Scope::AllHosts),
        };
        let document = Document::of(&self.inventory, &view, scope);
        Printed {
            text: document.json(),
            left_out: document.left_out,
        }
    }

    /// What is in the document for who asks. `table`: of the same configuration.
    fn view(&self, table: &Table, who: &Asking<'_>) -> View {
        let may_call = |route: &Route, method| who.viewer.may_call(route, method, self.admin);
        (self.inventory).view(table, who.host, who.is_near, may_call)
    }

    fn make(&self, view: &View, form: Form) -> Made {
        let document = Document::of(&self.inventory, view, Scope::Host);
        let text = match form {
            Form::Json => document.json(),
            Form::Yaml => document.yaml(),
        };
        Made {
            etag: etag_of(text.as_bytes()),
            // Without the room that it grew into.
            body: text.into_bytes().into_boxed_slice().into(),
        }
    }
}

/// The document of these policies for a reader: made once for each view, however many ask for it at once, and not on the
/// thread of those who ask, as it takes some milliseconds. `None`: the process ends.
async fn document_of(policies: &Arc<Policies>, view: View, form: Form) -> Option<Arc<Made>> {
    let documentation = policies.documentation.as_ref()?;
    let key = (view, form);
    let guard = match documentation.made.get_value_or_guard_async(&key).await {
        Ok(made) => return Some(made),
        Err(guard) => guard,
    };
    let policies = policies.clone();
    let made = aside(move || {
        let documentation = policies.documentation.as_ref()?;
        Some(Arc::new(documentation.make(&key.0, key.1)))
    });
    let made = made.await??;
    // Where it cannot be kept it is given all the same.
    let _ = guard.insert(made.clone());
    Some(made)
}

// === impl InBytes ===

impl Weighter<(View, Form), Arc<Made>> for InBytes {
    fn weight(&self, (View(bits), _): &(View, Form), made: &Arc<Made>) -> u64 {
        let around = size_of::<Made>() + size_of_val(&**bits);
        (made.body.len() + around) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_in_bytes() {
        let made = MadeBefore::with_weighter(USUALLY_KEPT, MOST_KEPT, InBytes);
        let document = |length: usize| Made {
            body: vec![b'x'; length].into(),
            etag: HeaderValue::from_static("\"x\""),
        };
        let key = |number: u64| (View([number].into()), Form::Json);
        for number in 0..64 {
            made.insert(key(number), Arc::new(document(1 << 20)));
            assert!(made.weight() <= MOST_KEPT);
        }
        assert!(made.len() >= 4, "{} are kept", made.len());
        made.insert(key(64), Arc::new(document(9 << 20)));
        assert!(made.get(&key(64)).is_none() && made.weight() <= MOST_KEPT);
        // Many small ones as well.
        for number in 100..200 {
            made.insert(key(number), Arc::new(document(10)));
        }
        assert!(made.len() > USUALLY_KEPT, "{} are kept", made.len());
    }
}
