//! The orderly end: what is in flight is finished, and the process is gone as soon as it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use prometheus::IntGauge;

use super::control::Control;
use super::life::Life;
use crate::handover::Upgrades;
use crate::listen::Doors;
use crate::observe::sink::Sink;

/// Leaves as soon as nothing is in flight any more.
pub struct Drain {
    pub connections: IntGauge,
    pub limit: Duration,
    pub life: Arc<Life>,
    pub upgrades: Arc<Upgrades>,
    pub doors: Arc<Doors>,
    pub control: Option<Arc<Control>>,
    pub sink: Sink,
}

/// For the log, for what is said to Redis behind the last requests, and for the last word to the process that took over.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[async_trait]
impl BackgroundService for Drain {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let _ = shutdown.wait_for(|down| *down).await;
        let deadline = Instant::now() + self.limit;
        // A new process that has not taken over is ended with this one; until that is known its clients wait in the queues.
        self.life.until_settled().await;
        // Who is in the queues is let in, and counted.
        let _ = tokio::time::timeout(LAST_WORDS, self.doors.closed()).await;
        while self.connections.get() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // What the last requests have put out of date is told to the other processes, or kept for the next one.
        let last_words = Instant::now() + LAST_WORDS;
        while self.upgrades.memory.is_writing() && Instant::now() < last_words {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if !self.upgrades.finish(LAST_WORDS)
            && let lost @ 1.. = self.upgrades.memory.count_unwritten()
        {
            log::warn!(
                "redis is away: {lost} ends of writes, revocations and words on what is out of date that it was not told of are lost"
            );
        }
        if let Some(control) = &self.control {
            control.withdraw();
        }
        match self.connections.get() {
            0 => log::info!("every request is answered, the process ends"),
            left => log::warn!(
                "{left} connections are still open after {:?}, the process ends",
                self.limit
            ),
        }
        self.sink.flush(LAST_WORDS);
        std::process::exit(0);
    }
}
