//! The background task that asks whether what is open may stay open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::Streams;
use crate::admit::auth::AuthError;

pub struct Ask(pub Arc<Streams>);

/// Between two looks at all streams, when one change follows the other.
const PAUSE: Duration = Duration::from_millis(20);

/// Before Redis is asked again for a key that it could not tell of.
const AGAIN: Duration = Duration::from_millis(500);

/// Keys that are asked for at once.
const AT_ONCE: usize = 32;

impl Ask {
    /// Returns whether all could be found out.
    async fn ask_for_keys(&self) -> bool {
        let Self(streams) = self;
        let Some(rule) = streams.rule.load_full() else {
            return true;
        };
        let all = AtomicBool::new(true);
        let keys = stream::iter(streams.doubtful_keys());
        let asked = keys.for_each_concurrent(AT_ONCE, async |(digest, given)| {
            match rule.keys.find(&given.as_given()).await {
                Ok(holder) => streams.settle(digest, Some(&holder)),
                Err(AuthError::CannotTell) => {
                    streams.doubt(digest);
                    all.store(false, Relaxed);
                }
                Err(_) => streams.settle(digest, None),
            }
        });
        asked.await;
        all.into_inner()
    }
}

#[async_trait]
impl BackgroundService for Ask {
    /// Until the process ends: streams are open meanwhile. Each waits for itself: Redis may take its time for a key.
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Self(streams) = self;
        let revocations = async {
            loop {
                streams.revoked.news().await;
                streams.ask_all();
                tokio::time::sleep(PAUSE).await;
            }
        };
        let keys = async {
            loop {
                streams.doubts.notified().await;
                while !self.ask_for_keys().await {
                    tokio::time::sleep(AGAIN).await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let drain = async {
            // An error means that the server is gone: the same.
            let _ = shutdown.wait_for(|down| *down).await;
            tokio::time::sleep(streams.drain_grace()).await;
            streams.drain();
        };
        futures::join!(revocations, keys, drain);
    }
}
