//! One request's dealings with its service: the breaker's permit, a slot among what is in flight, and the attempts, one
//! after another, within the request's one deadline.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use pingora_proxy::Session;

use super::breaker::{Outcome, Permit};
use super::deadline::{Deadline, Timeouts};
use super::overload::{Baseline, Slot, Tenant};
use super::pool::{Affinity, Attempt, Pool};
use super::retry::{Case, Decision, Failure, Repeatable};
use super::verdict;
use crate::connection::{Cut, End, here};
use crate::reply::Refusal;
use crate::route::{MethodIndex, Route};

pub struct Exchange {
    route: Arc<Route>,
    method: MethodIndex,
    deadline: Deadline,
    cut: Arc<Cut>,
    permit: Option<Permit>,
    tenant: Tenant,
    /// Held while the instance has the whole request and has not begun to answer.
    slot: Option<Slot>,
    attempt: Option<Attempt>,
    attempts: u32,
    /// The attempt's instance has the whole request.
    is_sent: bool,
    /// The head of the answer that the client gets has come.
    is_answered: bool,
    /// The instance of the last attempt.
    last: Option<Arc<str>>,
    /// Instances that failed this request.
    tried: Vec<Address>,
    /// Where the earlier attempts went, and why they ended.
    ended: Vec<(Arc<str>, Failure)>,
    /// Before the next attempt.
    back_off: Duration,
    /// It has a connection of its own, also where requests share them: a WebSocket.
    pub is_alone: bool,
}

/// As the log has it.
const TOO_SLOW: &str = "the answer came too slowly";

/// Why a request did not go to its service.
pub enum NotSent {
    /// With what its client is told.
    Refused(Refusal),
    ClientGone(Box<Error>),
}

impl Exchange {
    /// Asks the breaker and the limit of the service for leave.
    ///
    /// # Errors
    /// When the request is not to be sent.
    pub async fn begin(
        session: &mut Session,
        route: Arc<Route>,
        method: MethodIndex,
        tenant: Tenant,
        deadline: Deadline,
        request_is_whole: bool,
    ) -> Result<Self, NotSent> {
        let now = Instant::now();
        let service = &route.service;
        let left = deadline.left(now).ok_or(Refusal::GatewayTimeout)?;
        let permit = service
            .breaker
            // What probes must not depend on how fast a client sends.
            .admit(now, request_is_whole)
            .map_err(|rejected| unavailable(service, rejected.retry_after))?;
        let slot = match service.limiter.enter(tenant) {
            Some(slot) => slot,
            None if permit.is_probe() => service.limiter.enter_anyway(tenant),
            // Boxed: this is rare, and its future would make that of every request larger.
            None => Box::pin(wait(session, &route, tenant, left)).await?,
        };
        service.retry.earn(now);
        Ok(Self {
            method,
            deadline,
            cut: here::cut(),
            permit: Some(permit),
            tenant,
            slot: Some(slot),
            attempt: None,
            attempts: 0,
            is_sent: false,
            is_answered: false,
            last: None,
            tried: Vec::new(),
            ended: Vec::new(),
            back_off: Duration::ZERO,
            is_alone: false,
            route,
        })
    }

    /// The back-off that the next attempt needs.
    ///
    /// # Errors
    /// When the client goes away meanwhile, and what it asked for can be left undone.
    pub async fn pause(&mut self, session: &mut Session) -> pingora::Result<()> {
        self.attempt = None;
        if self.back_off.is_zero() {
            return Ok(());
        }
        self.slot = None;
        let over = tokio::time::sleep(std::mem::take(&mut self.back_off));
        Box::pin(async {
            tokio::select! {
                () = over => Ok(()),
                error = client_gone(session) => Err(error),
            }
        })
        .await
    }

    /// The peer of the next attempt.
    ///
    /// # Errors
    /// When there is no time, or no instance, or the breaker has opened since the last one.
    pub fn attempt(&mut self, affinity: &Affinity<'_>) -> Result<Box<HttpPeer>, Refusal> {
        let now = Instant::now();
        let service = &self.route.service;
        let may_go_on = self.attempts == 0 || service.breaker.is_closed();
        let attempt = match self.deadline.left(now) {
            None => Err(Refusal::GatewayTimeout),
            Some(_) if !may_go_on => Err(unavailable(service, Duration::ZERO)),
            Some(left) => service
                .attempt(&self.tried, affinity, now)
                .map(|attempt| (attempt, left))
                .map_err(|_| unavailable(service, Duration::ZERO)),
        };
        let (attempt, left) = attempt.inspect_err(|_| {
            // Without another attempt, the failure that was to be mended stands.
            if let Some(permit) = self.permit.take_if(|_| self.attempts > 0) {
                permit.end(Outcome::Failure);
            }
        })?;
        self.attempts += 1;
        let connect = self.route.timeouts.connect.min(left);
        let mut peer = match self.is_shared() {
            false => attempt.peer(connect),
            true => {
                let patience = self.route.idle_timeout.unwrap_or_default().max(left);
                attempt.shared_peer(connect, patience)
            }
        };
        if self.is_alone {
            peer.options.set_http_version(1, 1); // HTTP/2 knows no Upgrade
        }
        self.last = Some(attempt.member.text.clone());
        self.attempt = Some(attempt);
        Ok(peer)
    }

    /// Whether others use its connection as well.
    fn is_shared(&self) -> bool {
        self.route.service.http2 && !self.is_alone
    }

    /// The connection stands: from now on the clock runs against the attempt.
    pub fn connected(&mut self, socket: RawFd, request_is_whole: bool) {
        match self.is_shared() {
            true => self.cut.arm_shared(self.deadline.at()),
            false => self.cut.arm(socket, self.deadline.at()),
        }
        self.is_sent = false;
        match request_is_whole {
            true => self.sent(),
            // A client may take its time to send; that is no time of the instance's, and no room is kept for it.
            false => {
                self.slot = None;
                self.begin_work(Instant::now());
            }
        }
    }

    /// The whole request is on its way: now the instance is at work.
    pub fn sent(&mut self) {
        if self.is_answered || std::mem::replace(&mut self.is_sent, true) {
            return;
        }
        let now = Instant::now();
        self.begin_work(now);
        if self.slot.is_none() {
            self.slot = Some(self.route.service.limiter.enter_anyway(self.tenant));
        }
        if self.route.timeouts.attempt < self.route.timeouts.budget {
            let at = now + self.route.timeouts.attempt;
            self.cut.move_to(self.deadline.at().min(at));
        }
    }

    fn begin_work(&mut self, now: Instant) {
        if let Some(attempt) = &mut self.attempt {
            attempt.begins(now);
        }
    }

    /// The head of an answer has come. Returns whether another attempt is made instead of passing it on.
    pub fn answered(&mut self, status: StatusCode, repeatable: Repeatable) -> bool {
        let now = Instant::now();
        if status.is_server_error() {
            if self.end(Failure::Status(status), repeatable, now) {
                return true;
            }
        } else if let Some(attempt) = &mut self.attempt {
            let took = attempt.answered(now);
            let limiter = &self.route.service.limiter;
            limiter.observe(self.baseline(), took, now);
            self.tell_breaker(Outcome::Success);
        }
        self.is_answered = true;
        // How fast the client reads says nothing about how much the service does at once.
        self.slot = None;
        self.cut.move_to(match self.route.idle_timeout {
            Some(idle) => now + idle,
            None => self.deadline.at(),
        });
        false
    }

    /// The backend has agreed to a WebSocket: from now on only the time counts in which nothing flows.
    pub fn upgraded(&self, idle: Duration) {
        self.cut.be_gentle();
        self.cut.move_to(Instant::now() + idle);
    }

    /// For a piece of the answer to be taken by the client.
    pub fn patience(&self) -> Duration {
        let left = || self.deadline.left(Instant::now()).unwrap_or_default();
        self.route.idle_timeout.unwrap_or_else(left)
    }

    /// A piece of the answer's body has come.
    pub fn flows(&self) {
        if let Some(idle) = self.route.idle_timeout {
            self.cut.move_to(Instant::now() + idle);
        }
    }

    /// The attempt failed. Returns whether another one is made.
    pub fn failed(&mut self, failure: Failure, repeatable: Repeatable) -> bool {
        self.cut.disarm();
        let now = Instant::now();
        if self.had_no_chance(failure, now) {
            self.abandon();
            return false;
        }
        self.end(failure, repeatable, now)
    }

    /// Whether the time was over through no fault of the instance: its client had left it next to none, or read too
    /// slowly what it had answered in time.
    fn had_no_chance(&self, failure: Failure, now: Instant) -> bool {
        let Timeouts {
            budget, attempt, ..
        } = self.route.timeouts;
        match failure {
            Failure::Timeout if self.is_answered => true,
            Failure::Timeout => self.worked_for(now) < attempt.min(budget / 2),
            Failure::Connect => self.deadline.left(now).is_none(),
            Failure::Stale | Failure::NotProcessed | Failure::Reset | Failure::Status(_) => false,
        }
    }

    fn worked_for(&self, now: Instant) -> Duration {
        let attempt = self.attempt.as_ref();
        attempt.map_or(Duration::ZERO, |attempt| attempt.lasts(now))
    }

    /// Whether the time was over, and not the instance the one that ended the connection.
    pub fn was_cut(&self) -> bool {
        self.cut.was_shut_down()
    }

    /// Why somebody else has cut it, if it was.
    pub fn was_ended(&self) -> Option<End> {
        self.cut.ordered().filter(|_| self.was_cut())
    }

    /// Why it was cut, if it was.
    pub fn cut_short(&self) -> Option<Box<Error>> {
        use ErrorType as E;
        if !self.was_cut() {
            return None;
        }
        let (kind, why) = match self.was_ended() {
            Some(End::Revoked) => (E::ConnectionClosed, "the caller's token was revoked"),
            Some(End::KeyChanged) => (E::ConnectionClosed, "the caller's API key was changed"),
            Some(End::Expired) => (E::ConnectionClosed, "the caller's credentials have expired"),
            Some(End::Draining) => (E::ConnectionClosed, "the process ends"),
            Some(End::Idle) | None if self.is_shared() => (verdict::OVERDUE, TOO_SLOW),
            Some(End::Idle) | None => (E::ReadTimedout, TOO_SLOW),
        };
        Some(Error::explain(kind, why).into_up())
    }

    /// Why its client was given up, if it was.
    pub fn client_fault(&self) -> Option<Box<Error>> {
        let slow = "the client took its answer too slowly";
        let is_slow = self.cut.client_is_slow();
        is_slow.then(|| Error::explain(ErrorType::WriteTimedout, slow).into_down())
    }

    /// For who may end it from elsewhere.
    pub fn cut(&self) -> &Arc<Cut> {
        &self.cut
    }

    /// The attempt's connection is about to be given away.
    pub fn disarm(&self) {
        self.cut.disarm();
    }

    /// Nobody at the service is to blame for how the request ends.
    pub fn abandon(&mut self) {
        self.cut.disarm();
        self.attempt = None;
        self.tell_breaker(Outcome::Unknown);
    }

    fn end(&mut self, failure: Failure, repeatable: Repeatable, now: Instant) -> bool {
        let service = self.route.service.clone();
        let Some(attempt) = &mut self.attempt else {
            return false;
        };
        attempt.failed(failure, now);
        if failure == Failure::Timeout {
            let took = attempt.took(now);
            service.limiter.observe(self.baseline(), took, now);
        }
        // A good head was told to the breaker already; what breaks after it cannot be mended.
        let Some(permit) = &self.permit else {
            return false;
        };
        let may_retry = !permit.is_probe() && service.breaker.is_closed();
        if may_retry && self.again(failure, repeatable, &service, now) {
            return true;
        }
        self.tell_breaker(match failure {
            Failure::Timeout => Outcome::Timeout,
            _ => Outcome::Failure,
        });
        false
    }

    fn again(
        &mut self,
        failure: Failure,
        repeatable: Repeatable,
        service: &Pool,
        now: Instant,
    ) -> bool {
        let Some(member) = self.attempt.as_ref().map(|attempt| attempt.member.clone()) else {
            return false;
        };
        if !self.tried.contains(&member.address) {
            self.tried.push(member.address.clone());
        }
        let case = Case {
            failure,
            repeatable,
            retries: self.attempts - 1,
            elsewhere: service.has_another(&self.tried, now),
            left: self.deadline.left(now).unwrap_or_default(),
        };
        match service.retry.decide(&case, now) {
            Decision::Again(back_off) => {
                self.back_off = back_off;
                self.ended.push((member.text.clone(), failure));
                service.metrics.retried(failure);
                true
            }
            Decision::Denied => {
                service.metrics.retries_denied.inc();
                false
            }
            Decision::No => false,
        }
    }

    /// What `Host` carries to the instance.
    pub fn authority(&self) -> Option<HeaderValue> {
        self.attempt.as_ref().map(Attempt::authority)
    }

    /// The instance of the last attempt, for the log.
    pub fn instance(&self) -> Option<&str> {
        self.last.as_deref()
    }

    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Where the attempts before the last one went, and why they ended.
    pub fn ended(&self) -> &[(Arc<str>, Failure)] {
        &self.ended
    }

    fn tell_breaker(&mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            permit.end(outcome);
        }
    }

    fn baseline(&self) -> &Baseline {
        &self.route.baselines[self.method.0]
    }

    /// The request is over.
    pub fn finish(&mut self) {
        self.cut.disarm();
        self.attempt = None;
        self.slot = None;
        self.permit = None;
    }
}

/// Waits for room at the service.
async fn wait(
    session: &mut Session,
    route: &Route,
    tenant: Tenant,
    left: Duration,
) -> Result<Slot, NotSent> {
    let service = &route.service;
    let slot = tokio::select! {
        slot = service.limiter.wait(route.priority, tenant, left) => slot,
        error = client_gone(session) => return Err(NotSent::ClientGone(error)),
    };
    let slot = slot.map_err(|_| Refusal::Overloaded(service.name.clone()))?;
    // What it was admitted to has changed while it waited.
    match service.breaker.is_closed() {
        true => Ok(slot),
        false => Err(unavailable(service, Duration::ZERO).into()),
    }
}

/// Resolves when nobody waits for the answer to a request that only reads.
pub async fn client_gone(session: &mut Session) -> Box<Error> {
    // While a body arrives only Pingora reads it; it will hear of the end.
    if session.as_mut().is_body_done()
        && let Err(mut error) = session.as_mut().read_body_or_idle(true).await
    {
        error.set_retry(false);
        return error.into_down();
    }
    std::future::pending().await
}

impl From<Refusal> for NotSent {
    fn from(refusal: Refusal) -> Self {
        NotSent::Refused(refusal)
    }
}

fn unavailable(service: &Pool, retry_after: Duration) -> Refusal {
    Refusal::Unavailable {
        service: service.name.clone(),
        retry_after_secs: retry_after.as_secs_f64().ceil() as u32,
    }
}
