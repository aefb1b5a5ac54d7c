//! The runtime that requests run on. What they talk to at each turn runs there as well: a word to another runtime wakes
//! another thread, and its answer wakes this one.
//!
//! It is found when the service starts that listens for clients.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

#[derive(Clone, Default)]
pub struct Home(Arc<watch::Sender<Option<Handle>>>);

impl Home {
    /// It is here.
    pub fn is_here(&self) {
        self.0.send_replace(Some(Handle::current()));
    }

    /// How many tasks are alive there.
    pub fn tasks(&self) -> usize {
        let home = self.0.borrow();
        home.as_ref()
            .map_or(0, |home| home.metrics().num_alive_tasks())
    }

    /// Waits until it is known.
    pub async fn found(&self) -> Handle {
        let mut runtime = self.0.subscribe();
        match runtime.wait_for(Option::is_some).await {
            Ok(found) => found.clone().unwrap_or_else(Handle::current),
            Err(_) => Handle::current(),
        }
    }
}
