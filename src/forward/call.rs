//! A question of the gateway's own to a service: through its pool, with its breaker, its balancing, its retries and a
//! deadline, as any request.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use tokio::time::timeout;

use super::breaker::{Outcome, Permit};
use super::overload::{Priority, Tenant};
use super::pool::{Affinity, Attempt, Pool};
use super::retry::{Case, Decision, Failure, Repeatable};

/// Asks one service one kind of question.
pub struct Caller {
    pub pool: Arc<Pool>,
    connector: Arc<Connector>,
    /// To connect to an instance.
    connect: Duration,
}

/// A `GET`.
pub struct Question<'a> {
    pub path: &'a str,
    pub fields: &'a HeaderMap,
    pub tenant: &'a [u8],
    /// When the answer is no use any more.
    pub until: Instant,
    /// What an answer may take.
    pub patience: Duration,
}

/// What the service said.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
}

/// There is no answer: the service is away, too slow, or says nothing of sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

/// Interim answers before the one that counts.
const MOST_INTERIM: usize = 8;

/// An answer is a small document.
const LARGEST: usize = 64 << 10;

impl Caller {
    pub fn new(pool: Arc<Pool>, connector: Arc<Connector>, connect: Duration) -> Self {
        Self {
            pool,
            connector,
            connect,
        }
    }

    /// # Errors
    /// When there is no answer in time. What the service says of an error of its own (5xx) is none.
    pub async fn ask(&self, question: &Question<'_>) -> Result<Answer, NoAnswer> {
        let now = Instant::now();
        let left = question.until.checked_duration_since(now).ok_or(NoAnswer)?;
        let permit = self.pool.breaker.admit(now, true).map_err(|_| NoAnswer)?;
        let tenant = Tenant::named(question.tenant);
        let limiter = &self.pool.limiter;
        let _slot = match limiter.enter(tenant) {
            Some(slot) => slot,
            None if permit.is_probe() => limiter.enter_anyway(tenant),
            None => limiter
                .wait(Priority::High, tenant, left)
                .await
                .map_err(|_| NoAnswer)?,
        };
        self.pool.retry.earn(now);
        self.try_all(question, permit).await
    }

    async fn try_all(&self, question: &Question<'_>, permit: Permit) -> Result<Answer, NoAnswer> {
        let mut tried: Vec<Address> = Vec::new();
        let mut retries = 0;
        let affinity = Affinity {
            headers: question.fields,
            user: None,
            client: b"",
        };
        loop {
            let now = Instant::now();
            let Ok(mut attempt) = self.pool.attempt(&tried, &affinity, now) else {
                permit.end(Outcome::Failure);
                return Err(NoAnswer);
            };
            attempt.begins(now);
            let failure = match self.attempt(question, &mut attempt).await {
                Ok(answer) => {
                    permit.end(Outcome::Success);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let now = Instant::now();
            // It waited for its turn, and had next to no time left: that is nobody's fault.
            if failure == Failure::Timeout && attempt.lasts(now) < question.patience / 2 {
                permit.end(Outcome::Unknown);
                return Err(NoAnswer);
            }
            attempt.failed(failure, now);
            tried.push(attempt.member.address.clone());
            let left = question.until.saturating_duration_since(now);
            let case = Case {
                failure,
                repeatable: Repeatable::Always,
                retries,
                elsewhere: self.pool.has_another(&tried, now),
                left,
            };
            let may_retry = !permit.is_probe() && self.pool.breaker.is_closed();
            let decision = if may_retry {
                self.pool.retry.decide(&case, now)
            } else {
                Decision::No
            };
            let Decision::Again(back_off) = decision else {
                permit.end(match failure {
                    Failure::Timeout => Outcome::Timeout,
                    _ => Outcome::Failure,
                });
                return Err(NoAnswer);
            };
            self.pool.metrics.retried(failure);
            retries += 1;
            tokio::time::sleep(back_off).await;
        }
    }

    async fn attempt(
        &self,
        question: &Question<'_>,
        attempt: &mut Attempt,
    ) -> Result<Answer, Failure> {
        let left = question.until.saturating_duration_since(Instant::now());
        let mut request = RequestHeader::build("GET", question.path.as_bytes(), None)
            .map_err(|_| Failure::Reset)?;
        for (name, value) in question.fields {
            let _ = request.insert_header(name.clone(), value.clone());
        }
        let _ = request.insert_header(HOST, attempt.authority());
        let peer = attempt.peer(self.connect.min(left));
        let exchange = exchange(&self.connector, &peer, request, LARGEST);
        let outcome = match timeout(left, exchange).await {
            Err(_) => Err(Failure::Timeout),
            Ok(Err(Fault::Connect(_))) => Err(Failure::Connect),
            Ok(Err(Fault::Stale)) => Err(Failure::Stale),
            Ok(Err(Fault::Broken(_))) => Err(Failure::Reset),
            Ok(Ok(answer)) if answer.status.is_server_error() => {
                Err(Failure::Status(answer.status))
            }
            Ok(Ok(answer)) => Ok(answer),
        };
        let now = Instant::now();
        match &outcome {
            Ok(_) => {
                let took = attempt.answered(now);
                self.pool.limiter.observe(&self.pool.baseline, took, now);
            }
            Err(Failure::Timeout) if attempt.lasts(now) >= question.patience / 2 => {
                let took = attempt.took(now);
                self.pool.limiter.observe(&self.pool.baseline, took, now);
            }
            Err(_) => {}
        }
        outcome
    }
}

/// Why an exchange came to nothing.
pub enum Fault {
    Connect(Box<Error>),
    /// A kept connection had been closed meanwhile.
    Stale,
    Broken(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Connect(e) => e.fmt(f),
            Fault::Stale => f.write_str("the connection was closed"),
            Fault::Broken(why) => f.write_str(why),
        }
    }
}

/// One `GET`, and its whole answer of at most `largest` bytes. The connection is kept for the next one.
pub async fn exchange(
    connector: &Connector,
    peer: &HttpPeer,
    mut request: RequestHeader,
    largest: usize,
) -> Result<Answer, Fault> {
    let broken = |e: Box<Error>| Fault::Broken(e.to_string());
    request
        .insert_header(ACCEPT, "application/json")
        .map_err(broken)?;
    request.insert_header(USER_AGENT, AGENT).map_err(broken)?;
    let (mut session, reused) = connector
        .get_http_session(peer)
        .await
        .map_err(Fault::Connect)?;
    if let Err(e) = send(&mut session, request).await {
        return Err(if reused { Fault::Stale } else { broken(e) });
    }
    let status = session.response_header().map(|head| head.status);
    let status = status.ok_or_else(|| Fault::Broken("no answer".to_owned()))?;
    let mut body = Vec::new();
    while let Some(chunk) = session.read_response_body().await.map_err(broken)? {
        body.extend_from_slice(&chunk);
        if body.len() > largest {
            return Err(Fault::Broken(format!("larger than {largest} bytes")));
        }
    }
    if let HttpSession::H1(session) = &mut session {
        session.respect_keepalive();
    }
    connector
        .release_http_session(session, peer, peer.options.idle_timeout)
        .await;
    Ok(Answer { status, body })
}

const AGENT: HeaderValue =
    HeaderValue::from_static(concat!("api-gateway/", env!("CARGO_PKG_VERSION")));

async fn send(session: &mut HttpSession, request: RequestHeader) -> pingora::Result<()> {
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    for _ in 0..MOST_INTERIM {
        session.read_response_header().await?;
        let status = session.response_header().map(|head| head.status);
        match status {
            // Nobody asked for another protocol.
            Some(StatusCode::SWITCHING_PROTOCOLS) | None => break,
            // An interim answer is none (RFC 9110, section 15.2).
            Some(status) if status.is_informational() => {}
            Some(_) => return Ok(()),
        }
    }
    Error::e_explain(ErrorType::InvalidHTTPHeader, "there is no final answer")
}
