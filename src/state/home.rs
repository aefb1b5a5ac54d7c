//! The runtime that requests run on. What they talk to at each turn runs there as well: a word to another runtime wakes
//! another thread, and its answer wakes this one.
//!
//! It is found with the first connection from a client. That is our own: `server::listen` tries whether the port answers
//! before anybody is told of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::runtime::Handle;
use tokio::sync::watch;

#[derive(Clone)]
pub struct Home(Arc<Inner>);

struct Inner {
    is_known: AtomicBool,
    runtime: watch::Sender<Option<Handle>>,
}

impl Default for Home {
    fn default() -> Self {
        Self(Arc::new(Inner {
            is_known: AtomicBool::new(false),
            runtime: watch::Sender::new(None),
        }))
    }
}

impl Home {
    /// It is here.
    pub fn is_here(&self) {
        let Inner { is_known, runtime } = &*self.0;
        if !is_known.load(Relaxed) && !is_known.swap(true, Relaxed) {
            runtime.send_replace(Some(Handle::current()));
        }
    }

    /// Waits until it is known.
    pub async fn found(&self) -> Handle {
        let mut runtime = self.0.runtime.subscribe();
        match runtime.wait_for(Option::is_some).await {
            Ok(found) => found.clone().unwrap_or_else(Handle::current),
            Err(_) => Handle::current(),
        }
    }
}
