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
use quick_cache::sync::Cache;

use crate::admit::limits::Rule;
use crate::admit::permissions::{RoleId, Roles};
use crate::policies::Policies;
use crate::route::{Route, Table};
use crate::server::threads::aside;
use assets::etag_of;
pub use config::{DocumentationConfig, Parts, check_host};
use document::Document;
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
    /// Documents, by what is in them.
    made: Cache<(View, Form), Arc<Made>>,
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

/// Documents that are kept: each role sees one, and few callers have permissions of their own.
const MOST_DOCUMENTS: usize = 32;

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

    /// All of it, for operators.
    pub fn whole(&self, table: &Table) -> String {
        let view = self
            .inventory
            .view(table, self.own_host(), true, |_, _| true);
        Document::of(&self.inventory, &view).json()
    }

    /// Where clients find the gateway, without scheme.
    fn own_host(&self) -> &str {
        let host = self.inventory.head.host.as_deref().unwrap_or_default();
        host.split_once("://").map_or(host, |(_, host)| host)
    }

    /// What is in the document for who asks. `table`: of the same configuration.
    fn view(&self, table: &Table, who: &Asking<'_>) -> View {
        let may_call = |route: &Route, method| who.viewer.may_call(route, method, self.admin);
        (self.inventory).view(table, who.host, who.is_near, may_call)
    }

    fn make(&self, view: &View, form: Form) -> Made {
        let document = Document::of(&self.inventory, view);
        let text = match form {
            Form::Json => document.json(),
            Form::Yaml => document.yaml(),
        };
        Made {
            etag: etag_of(text.as_bytes()),
            body: text.into(),
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
