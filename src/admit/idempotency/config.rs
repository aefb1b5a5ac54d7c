//! Idempotency keys as YAML says them: for how long, how much of an answer, and on which routes.

use std::sync::Arc;

use http::Method;
use prometheus::{IntCounter, IntCounterVec};
use serde::{Deserialize, Serialize};

use super::Idempotency;
use super::ledger::Ledger;
use crate::admit::auth::AuthRule;
use crate::config::{Bytes, Duration, Problems};
use crate::route::{METHODS, MethodIndex};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdempotencyConfig {
    /// How long the answer of a write, or that its outcome is unknown, is kept.
    pub life: Duration,
    /// A larger answer is passed on, and not kept.
    pub largest: Bytes,
}

/// Whether a route's writes name themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IdempotencyRule {
    /// Those that have a key run once.
    Optional,
    /// Without a key they do not run.
    Required,
}

/// What came of requests with a key, or of those that need one: `idempotency_requests_total{result}`.
pub struct Results {
    /// Sent to the service.
    pub run: IntCounter,
    pub replayed: IntCounter,
    /// Another request was at it for too long.
    pub in_progress: IntCounter,
    /// The key had stood for something else.
    pub reused: IntCounter,
    /// Nobody knows what the service has done.
    pub unknown: IntCounter,
    /// It was done, and its answer is not kept.
    pub unkept: IntCounter,
    /// No key, or none that is one.
    pub refused: IntCounter,
    /// Redis is away, or the memory full.
    pub unavailable: IntCounter,
}

impl Default for IdempotencyConfig {
    fn default() -> Self {
        Self {
            life: Duration::secs(86_400),
            largest: Bytes::kib(256),
        }
    }
}

impl IdempotencyConfig {
    pub fn compile(
        self,
        ledger: Arc<Ledger>,
        results: &IntCounterVec,
        problems: &mut Problems,
    ) -> Idempotency {
        let Self { life, largest } = self;
        if !(Duration::secs(1)..=Duration::secs(30 * 86_400)).contains(&life) {
            problems.add("idempotency.life", "must be from 1s to 30d");
        }
        if !(Bytes::kib(1)..=Bytes::mib(4)).contains(&largest) {
            problems.add("idempotency.largest", "must be from 1KiB to 4MiB");
        }
        Idempotency {
            ledger,
            life: life.0,
            largest: largest.0 as usize,
            results: Results::of(results),
        }
    }
}

impl IdempotencyRule {
    /// Whether a route can keep the promise.
    pub fn check(
        place: &str,
        rule: Option<Self>,
        auth: AuthRule,
        methods: &[MethodIndex],
        is_other: bool,
        problems: &mut Problems,
    ) {
        let writes = || methods.iter().any(|method| is_write(&METHODS[method.0]));
        let fault = match rule {
            None => return,
            Some(_) if matches!(auth, AuthRule::Public | AuthRule::Ops) => {
                "a key is its caller's: `auth` must be `token` or `token-or-key`"
            }
            Some(_) if is_other => {
                "goes with neither `webhook`, `session` nor `idle_timeout`: their answers are none to keep"
            }
            Some(_) if !writes() => "needs POST, PUT, PATCH or DELETE among the methods",
            Some(_) => return,
        };
        problems.add(format!("{place}.idempotency"), fault);
    }
}

/// Whether a key means something there. Elsewhere it is passed on as any field.
pub fn is_write(method: &Method) -> bool {
    !method.is_safe()
}

// === impl Results ===

impl Results {
    fn of(results: &IntCounterVec) -> Self {
        let of = |result| results.with_label_values(&[result]);
        Self {
            run: of("run"),
            replayed: of("replayed"),
            in_progress: of("in_progress"),
            reused: of("reused"),
            unknown: of("unknown"),
            unkept: of("unkept"),
            refused: of("refused"),
            unavailable: of("unavailable"),
        }
    }
}
