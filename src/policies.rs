//! What requests are judged by: all that a configuration compiles to and a reload replaces, as one snapshot.
//!
//! A request takes the snapshot that is in force when its head has come and keeps it to its end, so that all its phases
//! see one configuration, whatever is put in force meanwhile (docs/decisions/0016-reload.md).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::admit::address::TrustedProxies;
use crate::admit::auth::Auth;
use crate::admit::cors::Cors;
use crate::admit::limits::Limits;
use crate::admit::permissions::RoleId;
use crate::admit::size::HeadLimits;
use crate::admit::tenancy::Tenancy;
use crate::ops::Ops;
use crate::reply::secure_headers::SecureHeaders;
use crate::route::Table;

/// A compiled configuration.
pub struct Policies {
    pub head: HeadLimits,
    pub times: Times,
    pub trusted: TrustedProxies,
    pub ops: Arc<Ops>,
    /// The role that `auth: ops` routes ask for outside `ops.allow` (decision 28).
    pub admin: Option<RoleId>,
    pub limits: Limits,
    pub cors: Cors,
    pub table: Table,
    pub auth: Auth,
    pub tenancy: Tenancy,
    pub secure_headers: SecureHeaders,
    pub tracing: bool,
}

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From a head's first byte to its last.
    pub header: Duration,
    /// From one request to the next.
    pub idle: Duration,
    /// Between two pieces of a request body, and to take a piece of an answer.
    pub patience: Duration,
}

/// The snapshot in force: [`ArcSwap::load_full`] for who keeps it, [`ArcSwap::load`] for a look.
pub type InForce = Arc<ArcSwap<Policies>>;
