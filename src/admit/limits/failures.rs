//! Guessing costs: an address whose tokens keep failing is told to wait, before another signature is checked.
//!
//! Tokens that were verified before are not affected, so people behind one address do not lock each other out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::window::{Ask, Windows};
use crate::admit::auth::AuthError;
use crate::config::{Duration, Problems};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailureGuardConfig {
    /// Failed authentications of one address in a window, before unknown tokens of it are refused with 429.
    pub max: u32,
    pub window: Duration,
}

pub struct FailureGuard {
    max: u32,
    window: std::time::Duration,
    failures: Arc<Failures>,
}

/// The failures of each address, whatever the limit is: they outlive it.
pub struct Failures(Windows);

/// Addresses that are remembered.
const ADDRESSES: usize = 100_000;

impl Default for FailureGuardConfig {
    fn default() -> Self {
        Self {
            max: 30,
            window: Duration::secs(60),
        }
    }
}

impl FailureGuardConfig {
    pub fn compile(self, failures: Arc<Failures>, problems: &mut Problems) -> FailureGuard {
        let Self { max, window } = self;
        super::check_rule("auth.failures", max, window, problems);
        FailureGuard {
            max,
            window: window.0,
            failures,
        }
    }
}

impl Failures {
    pub fn windows(&self) -> &Windows {
        &self.0
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self(Windows::new(ADDRESSES))
    }
}

impl FailureGuard {
    /// # Errors
    /// When the address has used up its failures.
    pub fn check(&self, client: IpAddr, now: Instant) -> Result<(), AuthError> {
        match self.failures.0.exceeded(&self.ask(client), now) {
            None => Ok(()),
            Some(exceeded) => Err(AuthError::TooManyFailures(exceeded)),
        }
    }

    /// Counts a failure.
    pub fn note(&self, client: IpAddr, now: Instant) {
        let _ = self.failures.0.spend(&[self.ask(client)], now);
    }

    fn ask(&self, client: IpAddr) -> Ask {
        Ask {
            key: self.failures.0.hash(&super::counted(client)),
            max: self.max,
            window: self.window,
            block: std::time::Duration::ZERO,
        }
    }
}
