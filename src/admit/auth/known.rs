//! What is known of callers and their tokens as long as the process lives, whatever the configuration says of them.

use std::sync::Arc;

use pingora::services::background::BackgroundService;
use prometheus::IntGaugeVec;

use super::api_key::{Lookups, StoredKeys};
use super::keys::RandomSecret;
use super::refresh::Store;
use crate::admit::limits::Failures;
use crate::admit::lookup::User;
use crate::connection::streams::{Ask, Streams};
use crate::state::{Cache, Redis, Revoked};

pub struct Known {
    pub revoked: Arc<Revoked>,
    pub stored_keys: Option<Arc<StoredKeys>>,
    pub users: Arc<Cache<User>>,
    /// What is open for callers, and is cut when they are revoked.
    pub streams: Arc<Streams>,
    /// Of refresh tokens.
    pub families: Arc<Store>,
    /// By address.
    pub failures: Arc<Failures>,
    pub random: RandomSecret,
}

impl Known {
    pub fn new(
        revoked: Arc<Revoked>,
        redis: Option<&Arc<Redis>>,
        users: Arc<Cache<User>>,
        lookups: Lookups,
        streams_open: &IntGaugeVec,
    ) -> Self {
        Self {
            stored_keys: redis.map(|redis| Arc::new(StoredKeys::new(redis.clone(), lookups))),
            users,
            streams: Arc::new(Streams::new(revoked.clone(), streams_open)),
            families: Arc::new(Store::new(redis.cloned())),
            failures: Arc::default(),
            random: RandomSecret::default(),
            revoked,
        }
    }

    /// What runs beside the requests: streams of the revoked are cut, and what Redis was not told yet is.
    pub fn tasks(&self) -> Vec<Box<dyn BackgroundService + Send + Sync>> {
        let mut tasks: Vec<Box<dyn BackgroundService + Send + Sync>> =
            vec![Box::new(Ask(self.streams.clone()))];
        tasks.extend(self.families.settle().map(|task| Box::new(task) as Box<_>));
        tasks
    }
}
