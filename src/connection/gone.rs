//! Who is told that a client is gone. A request that may change something is finished all the same, and is not; but one that
//! leads to others is, for as long as it listens for that: what only reads among them is of no use to anybody then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pingora_proxy::Session;

use super::{Cut, here};

/// Whether the request at hand listens.
#[derive(Debug, Default)]
pub struct Gone(AtomicBool);

/// Listens until it is dropped.
pub struct Listening(Arc<Cut>);

impl Gone {
    pub fn is_told(&self) -> bool {
        self.0.load(Relaxed)
    }
}

// === impl Listening ===

impl Listening {
    /// From now on `session` tells of it where it is read.
    pub fn begin(session: &mut Session) -> Self {
        session.set_abort_on_close(true);
        let cut = here::cut();
        cut.gone.0.store(true, Relaxed);
        Self(cut)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.gone.0.store(false, Relaxed);
    }
}
