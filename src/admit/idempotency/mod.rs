//! Did this write run before? On routes that say so an `Idempotency-Key` makes it run once: the first request with the key
//! runs, those beside it wait for its end, and later ones get its answer, byte for byte (docs/decisions/0025).
//!
//! What is not known to be undone is never done again: when the gateway or the service dies between the request and the
//! answer, the key is worth a 409 that says so.

mod carried;
mod config;
mod key;
mod lease;
mod ledger;
mod memory;
mod record;
mod run;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use pingora_proxy::Session;
use pingora_timeout::timeout;

use super::body::{self, Body};
use crate::connection::here;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::reply::Refusal;
use crate::route::{Route, target_of};
pub use carried::{IN_MEMORY, NotCarried};
pub use config::{IdempotencyConfig, IdempotencyRule};
use config::{Results, is_write};
pub use key::Key;
use key::{Fingerprint, IDEMPOTENCY_KEY, Name, Owner, Target};
use lease::Lease;
use ledger::Claim;
pub use ledger::Ledger;
pub use record::Answer;
use record::Outcome;
pub use run::Run;

/// Makes writes run once.
pub struct Idempotency {
    ledger: Arc<Ledger>,
    life: Duration,
    /// Bytes of an answer that is kept.
    largest: usize,
    results: Results,
}

/// A request that has a key.
pub struct Keyed {
    name: Name,
    owner: Owner,
    fingerprint: Fingerprint,
}

/// Why a write with a key neither runs nor gets its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRun {
    /// The route needs a key.
    NoKey,
    /// The key stands for something else.
    Reused,
    /// Another request is at it.
    InProgress,
    /// It was sent, and what came of it is not known.
    Unknown,
    /// It was answered with this status; the answer is not kept.
    Unkept(StatusCode),
    /// Whoever could tell does not answer.
    CannotTell,
}

/// Between two questions while another process is at it, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// Before its deadline, for who has waited in vain to be told so.
const TO_ANSWER: Duration = Duration::from_millis(50);

// === impl Gateway ===

impl Gateway {
    /// What makes the request this one, if it has a key that counts here: its body is read for that.
    ///
    /// # Errors
    /// When it has none and needs one, or it or the body is none that a key can stand for.
    pub async fn read_key(
        &self,
        session: &mut Session,
        ctx: &Ctx,
        route: &Route,
        body: &mut Option<Body>,
    ) -> Result<Option<Box<Keyed>>, Refusal> {
        let Some(rule) = route
            .idempotency
            .filter(|_| is_write(&session.req_header().method))
        else {
            return Ok(None);
        };
        let has_key = session.req_header().headers.contains_key(IDEMPOTENCY_KEY);
        match (has_key, rule) {
            (false, IdempotencyRule::Optional) => return Ok(None),
            (false, IdempotencyRule::Required) => Err(NotRun::NoKey.into()),
            // Boxed: most requests have none.
            (true, _) => Box::pin(keyed(session, ctx, route, body))
                .await
                .map(|keyed| Some(Box::new(keyed))),
        }
        .inspect_err(|_| ctx.policies.idempotency.results.refused.inc())
    }

    /// Asks whether the request is to run: then its run is in the context. Otherwise it has the answer of the one that ran.
    ///
    /// # Errors
    /// When it is neither to run nor to be answered.
    pub async fn run_once(
        &self,
        session: &Session,
        ctx: &mut Ctx,
        keyed: Box<Keyed>,
    ) -> Result<Option<Answer>, Refusal> {
        let policies = ctx.policies.clone();
        let Idempotency {
            ledger,
            life,
            largest,
            results,
        } = &policies.idempotency;
        let outcome = match claim(ledger, &keyed, ctx, *life).await {
            Ok(Ran::Not(lease)) => {
                results.run.inc();
                let is_grpc = crate::reply::is_grpc(&session.req_header().headers);
                let largest = if is_grpc { 0 } else { *largest };
                ctx.run = Some(Box::new(Run::begin(lease, largest, here::cut())));
                return Ok(None);
            }
            Ok(Ran::Before(outcome)) => outcome,
            Err(not_run) => {
                results.count(not_run);
                return Err(not_run.into());
            }
        };
        let not_run = match outcome {
            Outcome::Done(answer) => {
                results.replayed.inc();
                if answer.status.as_u16() < 400
                    && let (Some(route), Some(who)) = (&ctx.route, ctx.who())
                {
                    ctx.policies.limits.forgive(&route.limits, who);
                }
                return Ok(Some(answer));
            }
            Outcome::Unknown => NotRun::Unknown,
            Outcome::Unkept(status) => NotRun::Unkept(status),
        };
        results.count(not_run);
        Err(not_run.into())
    }
}

async fn keyed(
    session: &mut Session,
    ctx: &Ctx,
    route: &Route,
    body: &mut Option<Body>,
) -> Result<Keyed, Refusal> {
    let key = Key::read(&session.req_header().headers)?; // 400
    let caller = ctx.caller.clone();
    let (Some(key), Some(caller)) = (key, caller) else {
        return Err(Refusal::Internal); // both were there
    };
    let read = match body {
        Some(read) => read,
        None => body.insert(body::read(session, ctx, body::SMALL).await?), // 408, 413
    };
    route.body.check_seen(read.len() as u64)?; // 413
    let request = session.req_header();
    let name = key.name(
        &caller,
        &Target {
            service: &route.service.name,
            method: &request.method,
            target: ctx.target.as_deref().unwrap_or(target_of(request)),
        },
    );
    let fingerprint = Fingerprint::of(&name, &request.headers, read);
    Ok(Keyed {
        name,
        owner: Owner::of(&caller),
        fingerprint,
    })
}

/// Whether a write has run.
enum Ran {
    Not(Lease),
    Before(Outcome),
}

/// Asks until it is ours, has ended, or the request has no time to wait any longer.
async fn claim(
    ledger: &Arc<Ledger>,
    keyed: &Keyed,
    ctx: &Ctx,
    life: Duration,
) -> Result<Ran, NotRun> {
    let mut waiting = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let left = ctx
            .deadline
            .and_then(|deadline| deadline.left(Instant::now()));
        let left = left.unwrap_or_default();
        let claim = ledger.claim(keyed, left, life).await;
        let end = match claim.map_err(|_| NotRun::CannotTell)? {
            Claim::Ours(lease) => return Ok(Ran::Not(lease)),
            Claim::Ended(outcome) => return Ok(Ran::Before(outcome)),
            Claim::Reused => return Err(NotRun::Reused),
            Claim::Running(end) => end,
        };
        if waiting.is_none() {
            waiting = Some(ledger.wait().ok_or(NotRun::InProgress)?);
        }
        let patience = left.saturating_sub(TO_ANSWER);
        if patience.is_zero() {
            return Err(NotRun::InProgress);
        }
        match end {
            // Either of both: then it is asked for again.
            Some(mut end) => drop(timeout(patience, end.changed()).await),
            None => {
                tokio::time::sleep(pause.min(patience)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

// === impl Results ===

impl Results {
    fn count(&self, not_run: NotRun) {
        match not_run {
            NotRun::NoKey => &self.refused,
            NotRun::Reused => &self.reused,
            NotRun::InProgress => &self.in_progress,
            NotRun::Unknown => &self.unknown,
            NotRun::Unkept(_) => &self.unkept,
            NotRun::CannotTell => &self.unavailable,
        }
        .inc();
    }
}

impl From<NotRun> for Refusal {
    fn from(not_run: NotRun) -> Self {
        Refusal::NotRun(not_run)
    }
}

/// Whether the answer says that nothing was done, and the request may come again: a limit, or an overload that says when.
fn is_undone(status: StatusCode, fields: &HeaderMap) -> bool {
    match status {
        StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::SERVICE_UNAVAILABLE => fields.contains_key(http::header::RETRY_AFTER),
        _ => false,
    }
}
