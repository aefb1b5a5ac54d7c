//! What signals mean: SIGTERM and SIGINT end the process in order, a second one of either at once (decision 35); SIGUSR2
//! puts a new process in the place of this one. SIGHUP is heard in `reload`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::life::Life;
use super::notify::Notify;
use crate::handover::Upgrades;
use crate::observe::sink::Sink;

/// SIGHUP and SIGUSR2, which end a process that does not hear them: they are heard before anything takes its time, and
/// what came by the time that there is somebody to act on it is acted on then.
pub struct Early {
    pub hangup: Signal,
    pub usr2: Signal,
}

pub struct Signals {
    pub life: Arc<Life>,
    pub upgrades: Arc<Upgrades>,
    pub notify: Notify,
    pub sink: Sink,
    /// SIGUSR2, for who listens.
    pub usr2: Mutex<Option<Signal>>,
    /// /ready says 503 for so long before the listeners close.
    pub drain_delay: Duration,
}

/// For the log, when the process ends at once.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Early {
    /// # Errors
    /// When they cannot be heard.
    pub fn hear() -> io::Result<Self> {
        // It only asks for them; which runtime hears them later is all the same to tokio.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let _entered = runtime.enter();
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let usr2 = self.usr2.lock().take();
        let (Ok([mut term, mut int]), Some(mut usr2)) = (to_end(), usr2) else {
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
                    self.notify.leave();
                    let (upgrades, sink) = (self.upgrades.clone(), self.sink.clone());
                    tokio::spawn(async move {
                        // It drains already: the first signal asks for what is done, the second for the end.
                        either(&mut term, &mut int).await;
                        either(&mut term, &mut int).await;
                        at_once(&upgrades, &sink);
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
        let (upgrades, sink) = (self.upgrades.clone(), self.sink.clone());
        tokio::spawn(async move {
            either(&mut term, &mut int).await;
            at_once(&upgrades, &sink);
        });
        tokio::time::sleep(self.drain_delay).await;
        ShutdownSignal::GracefulTerminate
    }
}

fn to_end() -> io::Result<[Signal; 2]> {
    Ok([
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    ])
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn at_once(upgrades: &Upgrades, sink: &Sink) {
    log::warn!("told to end again: the process ends at once");
    upgrades.abort();
    sink.flush(LAST_WORDS);
    std::process::exit(130);
}
