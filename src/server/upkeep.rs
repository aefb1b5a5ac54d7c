//! What runs beside the requests: health checks, key sets, revocations, and reloads.

use std::collections::HashMap;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::process::Tasks;
use super::reload::Reloading;
use super::threads::keep_one;
use crate::policies::Task;

pub struct Upkeep(Mutex<Option<(Tasks, Reloading)>>);

impl Upkeep {
    /// `tasks` run until the process ends.
    pub fn new(tasks: Tasks, reloading: Reloading) -> Self {
        Self(Mutex::new(Some((tasks, reloading))))
    }
}

#[async_trait]
impl BackgroundService for Upkeep {
    async fn start(&self, shutdown: ShutdownWatch) {
        let Some((tasks, reloading)) = self.0.lock().take() else {
            return;
        };
        keep_one(&Handle::current());
        let tasks = tasks.iter().map(|task| task.start(shutdown.clone()));
        futures::join!(
            futures::future::join_all(tasks),
            reloading.run(shutdown.clone()),
        );
    }
}

/// The tasks of the snapshot in force.
#[derive(Default)]
pub struct Running(HashMap<usize, Work>);

/// It ends with this.
struct Work(JoinHandle<()>);

impl Running {
    /// From now on these run, and no others. What runs already goes on.
    pub fn only(&mut self, tasks: impl Iterator<Item = Task>) {
        let mut before = std::mem::take(&mut self.0);
        self.0 = tasks
            .map(|Task { part, work }| {
                let running = before.remove(&part);
                (part, running.unwrap_or_else(|| Work(tokio::spawn(work))))
            })
            .collect();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.abort();
    }
}
