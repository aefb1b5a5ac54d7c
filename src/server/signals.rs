//! What signals mean: SIGTERM and SIGINT end the process in order, a second one of either at once (decision 35); SIGUSR2
//! puts a new process in the place of this one. SIGHUP is heard in `reload`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::life::Life;
use super::notify::Notify;
use crate::handover::Upgrades;

pub struct Signals {
    pub life: Arc<Life>,
    pub upgrades: Arc<Upgrades>,
    pub notify: Notify,
    /// /ready says 503 for so long before the listeners close.
    pub drain_delay: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let Ok([mut term, mut int, mut usr2]) = all() else {
            // Without signals only SIGKILL ends the process; it serves on.
            log::error!("signals cannot be heard");
            return std::future::pending().await;
        };
        loop {
            tokio::select! {
                () = either(&mut term, &mut int) => break,
                // It logs what came of it.
                _ = usr2.recv() => drop(self.upgrades.begin()),
                () = self.life.until_replaced() => {
                    let upgrades = self.upgrades.clone();
                    tokio::spawn(async move {
                        // It drains already: the first signal asks for what is done, the second for the end.
                        either(&mut term, &mut int).await;
                        either(&mut term, &mut int).await;
                        at_once(&upgrades);
                    });
                    return ShutdownSignal::GracefulTerminate;
                }
            }
        }
        log::info!("told to end: the listeners close, what is in flight is finished");
        self.life.told();
        // Where another process has just taken over, the service goes on.
        if self.life.is_told() {
            self.notify.stopping();
        }
        let upgrades = self.upgrades.clone();
        tokio::spawn(async move {
            either(&mut term, &mut int).await;
            at_once(&upgrades);
        });
        tokio::time::sleep(self.drain_delay).await;
        ShutdownSignal::GracefulTerminate
    }
}

fn all() -> std::io::Result<[Signal; 3]> {
    Ok([
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::user_defined2())?,
    ])
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn at_once(upgrades: &Upgrades) {
    log::warn!("told to end again: the process ends at once");
    upgrades.abort();
    std::process::exit(130);
}
