//! What the task of a client's connection has for the phases of its requests: Pingora hands nothing on to them.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use super::Cut;
use crate::policies::Policies;

tokio::task_local! {
    static HERE: Here;
}

/// Of one connection, or of one stream of an HTTP/2 connection.
pub struct Here {
    cut: Arc<Cut>,
    /// Of the request that is about to begin.
    policies: Cell<Option<Arc<Policies>>>,
}

impl Here {
    pub fn new(cut: Arc<Cut>, policies: Option<Arc<Policies>>) -> Self {
        Self {
            cut,
            policies: Cell::new(policies),
        }
    }

    /// Runs `requests`, which find it. Not `async`: that would hold them twice, for each connection.
    pub fn scope<F: Future>(self, requests: F) -> impl Future<Output = F::Output> {
        HERE.scope(self, requests)
    }
}

/// The connection's own, or one that nobody looks at.
pub fn cut() -> Arc<Cut> {
    HERE.try_with(|here| here.cut.clone())
        .unwrap_or_else(|_| Cut::new(Instant::now()))
}

/// The next request is judged by these: its head was.
pub fn hand_on(policies: Arc<Policies>) {
    // Without a connection there is no next request.
    let _ = HERE.try_with(|here| here.policies.set(Some(policies)));
}

/// What the head of the request that begins now was judged by. Taken: no idle connection keeps a snapshot.
pub fn take_policies() -> Option<Arc<Policies>> {
    HERE.try_with(|here| here.policies.take()).ok().flatten()
}
