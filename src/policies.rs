//! What requests are judged by: all that a configuration compiles to and a reload replaces, as one snapshot.
//!
//! A request takes the snapshot that is in force when its head has come and keeps it to its end, so that all its phases
//! see one configuration, whatever is put in force meanwhile (docs/decisions/0016-reload.md).

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, join};

use crate::admit::address::TrustedProxies;
use crate::admit::auth::Auth;
use crate::admit::budget::Rooms;
use crate::admit::cors::Cors;
use crate::admit::idempotency::Idempotency;
use crate::admit::limits::Limits;
use crate::admit::permissions::RoleId;
use crate::admit::size::HeadLimits;
use crate::admit::tenancy::Tenancy;
use crate::connection::MinRate;
use crate::connection::h2::Http2;
use crate::forward::batch::Batch;
use crate::forward::pool::Pools;
use crate::ops::Ops;
use crate::ops::documentation::Documentation;
use crate::reply::cache::Caching;
use crate::reply::secure_headers::SecureHeaders;
use crate::route::Table;

/// A compiled configuration.
pub struct Policies {
    pub head: HeadLimits,
    pub times: Times,
    pub trusted: TrustedProxies,
    pub pools: Arc<Pools>,
    pub ops: Ops,
    /// The role that `auth: ops` routes ask for outside `ops.allow` (decision 28).
    pub admin: Option<RoleId>,
    pub limits: Limits,
    pub cors: Cors,
    pub table: Table,
    /// `None`: batches are not taken.
    pub batch: Option<Batch>,
    /// Some requests lead to requests of our own.
    pub has_inner_requests: bool,
    pub auth: Auth,
    pub tenancy: Tenancy,
    /// For what is held in memory.
    pub rooms: Rooms,
    pub idempotency: Idempotency,
    pub secure_headers: SecureHeaders,
    /// `None`: nothing is kept.
    pub caching: Option<Caching>,
    /// `None`: there is none.
    pub documentation: Option<Documentation>,
    pub tracing: bool,
    /// `None`: HTTP/2 is not spoken to clients.
    pub http2: Option<Http2>,
    /// Some backends are spoken to on connections that requests share.
    pub shares_upstreams: bool,
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
    /// Of bodies, both ways.
    pub rate: Option<MinRate>,
    /// While the process drains, for the next request on a connection: one may be on its way.
    pub drain: Duration,
}

impl Times {
    /// Between two pieces of a request body: one that is too slow by itself need not be waited for any longer.
    pub fn longest_gap(&self) -> Duration {
        let window = self.rate.map(MinRate::window);
        window.unwrap_or(self.patience).min(self.patience)
    }

    /// For so many bytes of an answer that is here, and that its client only has to take; nothing: as long as it likes.
    pub fn time_to_take(&self, bytes: usize) -> Option<Duration> {
        let rate = self.rate?;
        Some(self.patience.saturating_add(rate.time_for(bytes as u64)))
    }
}

/// What runs beside the requests for as long as a part of a snapshot is in force; a part that the next snapshot shares
/// goes on with it.
pub struct Task {
    /// The address of the part, which the work keeps alive.
    pub part: usize,
    pub work: BoxFuture<'static, ()>,
}

/// The snapshot in force: [`ArcSwap::load_full`] for who keeps it, [`ArcSwap::load`] for a look.
pub type InForce = Arc<ArcSwap<Policies>>;

// === impl Policies ===

impl Policies {
    /// What can be found out before these take the place of `before`, within `limit`.
    pub async fn first_look(&self, before: &Self, limit: Duration) {
        let pools = self.pools.first_look(Some(&before.pools), limit);
        let keys = tokio::time::timeout(limit, self.auth.first_look());
        let _ = join(pools, keys).await;
    }

    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        self.pools.tasks().chain(self.auth.tasks())
    }
}

// === impl Task ===

impl Task {
    pub fn of<T, W>(part: &Arc<T>, work: fn(Arc<T>) -> W) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        Self {
            part: Arc::as_ptr(part).addr(),
            work: Box::pin(work(part.clone())),
        }
    }
}
