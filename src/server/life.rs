//! How far the process is: it serves, it is being replaced, it ends. One thing at a time.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// The life of a process.
pub struct Life {
    since: Instant,
    stage: watch::Sender<Stage>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stage {
    /// Clients are let in.
    serves: bool,
    /// A new process is being started.
    is_upgrading: bool,
    end: Option<End>,
}

/// Why it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By a signal.
    Told,
    /// A new process serves.
    Replaced,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            stage: watch::Sender::new(Stage::default()),
        }
    }
}

impl Life {
    /// Clients are let in from now on.
    pub fn serves(&self) {
        self.stage.send_modify(|stage| stage.serves = true);
    }

    /// # Errors
    /// Why it cannot be replaced now.
    pub fn begin_upgrade(&self) -> Result<(), &'static str> {
        let mut outcome = Ok(());
        self.stage.send_modify(|stage| {
            outcome = match stage {
                Stage { end: Some(_), .. } => Err("this process is about to end"),
                Stage {
                    is_upgrading: true, ..
                } => Err("an upgrade is under way already"),
                Stage { serves: false, .. } => Err("this process does not serve yet"),
                _ => Ok(()),
            };
            stage.is_upgrading |= outcome.is_ok();
        });
        outcome
    }

    pub fn upgrade_failed(&self) {
        self.stage.send_modify(|stage| stage.is_upgrading = false);
    }

    /// Another process serves. Whether this one had been told to end before that: then so is the other.
    pub fn replaced(&self) -> bool {
        let mut was_told = false;
        self.stage.send_modify(|stage| {
            was_told = stage.end == Some(End::Told);
            stage.is_upgrading = false;
            stage.end = Some(End::Replaced);
        });
        was_told
    }

    /// It was told to end.
    pub fn told(&self) {
        self.stage
            .send_modify(|stage| stage.end = stage.end.or(Some(End::Told)));
    }

    pub fn lasts(&self) -> Duration {
        self.since.elapsed()
    }

    pub fn is_upgrading(&self) -> bool {
        self.stage.borrow().is_upgrading
    }

    /// It ends, whyever.
    pub fn is_ending(&self) -> bool {
        self.stage.borrow().end.is_some()
    }

    pub fn is_told(&self) -> bool {
        self.stage.borrow().end == Some(End::Told)
    }

    pub fn is_replaced(&self) -> bool {
        self.stage.borrow().end == Some(End::Replaced)
    }

    pub async fn until_replaced(&self) {
        let mut stage = self.stage.subscribe();
        // It cannot be gone while `self` is there.
        let _ = stage
            .wait_for(|stage| stage.end == Some(End::Replaced))
            .await;
    }

    /// Waits until no new process is half-way.
    pub async fn until_settled(&self) {
        let mut stage = self.stage.subscribe();
        let _ = stage.wait_for(|stage| !stage.is_upgrading).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_upgrade_at_a_time_and_none_before_it_serves_or_while_it_ends() {
        let life = Life::default();
        assert!(life.begin_upgrade().is_err(), "it does not serve yet");
        life.serves();
        assert_eq!(life.begin_upgrade(), Ok(()));
        assert!(life.begin_upgrade().is_err(), "one is under way");
        life.upgrade_failed();
        assert_eq!(life.begin_upgrade(), Ok(()));
        assert!(!life.replaced(), "nobody told it to end");
        life.told();
        assert!(life.is_replaced() && life.begin_upgrade().is_err());
        let life = Life::default();
        life.serves();
        life.told();
        assert!(life.is_told() && life.begin_upgrade().is_err());
        assert!(life.replaced(), "the signal came first");
    }
}
