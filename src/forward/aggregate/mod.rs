//! One answer made of several services' (decision 26): its sources are asked side by side, each as soon as what its path
//! needs is known, through everything that a request goes through on its way to a service. `{data, errors, meta}`.

mod config;
mod shape;
mod template;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE,
    RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora_proxy::Session;
use prometheus::IntCounter;
use serde_json::{Map, Value, json};

use super::deadline::Deadline;
use super::exchange;
use crate::admit::Admitted;
use crate::admit::tenancy::X_VENUE_ID;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::inner::{self, Behind, Bounds, Fault, Inner, Prepared, Reply};
use crate::reply::{Answer, Refusal};
use crate::route::Route;
pub use config::{AggregateConfig, OfRoute};
use shape::Shape;
use template::{Template, Values};

/// What answers a route instead of its service.
pub struct Aggregate {
    sources: Vec<Source>,
    /// Bytes of one answer.
    largest: usize,
}

struct Source {
    name: Arc<str>,
    /// How it is asked; no client gets there by itself.
    route: Arc<Route>,
    template: Template,
    required: bool,
    fallback: Value,
    /// Where it has a time of its own.
    budget: Option<Duration>,
    shape: Shape,
    counters: Counters,
}

/// By [`RESULTS`].
struct Counters([IntCounter; RESULTS.len()]);

/// What came of asking a source.
const RESULTS: [&str; 5] = ["ok", "refused", "unavailable", "timeout", "invalid"];

/// A source's answer in full, or what its failure is to the client.
type Outcome = Result<Value, Refusal>;

/// An aggregate that is being made.
struct Making<'a> {
    aggregate: &'a Aggregate,
    parameters: &'a [Box<str>],
    deadline: Deadline,
    behind: Behind,
    asked: Vec<bool>,
    /// In full: other sources' paths are made of them.
    answers: Vec<Option<Value>>,
    failures: Vec<Option<Refusal>>,
    running: FuturesUnordered<BoxFuture<'a, (usize, Outcome)>>,
}

/// What of the client's fields the sources are told, beside who is asking.
static TOLD: [HeaderName; 3] = [ACCEPT_LANGUAGE, CACHE_CONTROL, X_VENUE_ID];

impl Gateway {
    /// Answers with what the sources say, or as the first of them that is required and fails.
    pub async fn compose(
        &self,
        aggregate: &Aggregate,
        parameters: &[Box<str>],
        session: &mut Session,
        ctx: &Ctx,
    ) -> Admitted {
        match make(aggregate, parameters, session, ctx).await {
            Ok(admitted) => admitted,
            // What a service refuses is no event of ours that the audit log should have.
            Err(refusal) => Admitted::Refused(refusal),
        }
    }
}

async fn make(
    aggregate: &Aggregate,
    parameters: &[Box<str>],
    session: &mut Session,
    ctx: &Ctx,
) -> Result<Admitted, Refusal> {
    let deadline = ctx.deadline.ok_or(Refusal::Internal)?;
    let count = aggregate.sources.len();
    let mut making = Making {
        aggregate,
        parameters,
        deadline,
        behind: Behind::of(ctx, deadline),
        asked: vec![false; count],
        answers: vec![None; count],
        failures: vec![None; count],
        running: FuturesUnordered::new(),
    };
    loop {
        making.ask(session, ctx)?;
        if making.running.is_empty() {
            break;
        }
        // Dropped with what is under way: the sources' connections are closed.
        let ended = tokio::select! {
            ended = making.running.next() => ended,
            gone = exchange::client_gone(session) => return Ok(Admitted::ClientGone(gone)),
        };
        if let Some((source, outcome)) = ended {
            making.take(source, outcome)?;
        }
    }
    Ok(Admitted::Answered(Answer {
        status: StatusCode::OK,
        content_type: "application/json; charset=utf-8",
        body: making.answer(ctx.request_id())?,
    }))
}

// === impl Making ===

impl<'a> Making<'a> {
    /// Asks every source of which all is known that its path needs.
    fn ask(&mut self, session: &Session, ctx: &Ctx) -> Result<(), Refusal> {
        // A failure may settle what others wait for, which are looked at again.
        while let Some(place) = (0..self.asked.len()).find(|place| self.is_due(*place)) {
            self.asked[place] = true;
            let source = &self.aggregate.sources[place];
            let path = source.template.fill(&Values {
                parameters: self.parameters,
                caller: ctx.caller.as_deref(),
                answers: &self.answers,
            });
            let Ok(path) = path else {
                source.counters.count("invalid");
                self.take(place, Err(Refusal::BadGateway))?;
                continue;
            };
            let largest = self.aggregate.largest;
            let request = self.request(source, &path, session, ctx)?;
            let bounds = Bounds {
                largest,
                until: request.1,
            };
            let asked = async move {
                let outcome = source.outcome(request.0.run(bounds).await);
                (place, outcome)
            };
            self.running.push(Box::pin(asked));
        }
        Ok(())
    }

    fn is_due(&self, place: usize) -> bool {
        let is_settled =
            |needed: usize| self.answers[needed].is_some() || self.failures[needed].is_some();
        !self.asked[place]
            && self.aggregate.sources[place]
                .template
                .needs()
                .all(is_settled)
    }

    /// The request, and when its answer is of no use any more.
    fn request(
        &self,
        source: &Source,
        path: &str,
        session: &Session,
        ctx: &Ctx,
    ) -> Result<(Prepared, Instant), Refusal> {
        let own = source
            .budget
            .map(|budget| Deadline::at_most(Instant::now() + budget));
        let deadline = own.map_or(self.deadline, |own| own.no_later_than(self.deadline));
        let told = TOLD.iter().chain(&source.route.forward_headers);
        let mut head = inner::head(session.req_header(), &Method::GET, path, told)
            .ok_or(Refusal::BadGateway)?;
        for (name, value) in [(ACCEPT, "application/json"), (ACCEPT_ENCODING, "identity")] {
            head.insert_header(name, value)
                .map_err(|_| Refusal::Internal)?;
        }
        let request = Inner::Source(Box::new(inner::Source {
            head,
            behind: self.behind.clone(),
            name: source.name.clone(),
            route: source.route.clone(),
            caller: ctx.caller.clone(),
            deadline,
        }));
        let prepared = Prepared::new(session, request, None).ok_or(Refusal::Internal)?;
        Ok((prepared, deadline.at()))
    }

    fn take(&mut self, place: usize, outcome: Outcome) -> Result<(), Refusal> {
        match outcome {
            Ok(answer) => self.answers[place] = Some(answer),
            Err(refusal) if self.aggregate.sources[place].required => return Err(refusal),
            Err(refusal) => self.failures[place] = Some(refusal),
        }
        Ok(())
    }

    fn answer(self, request_id: &str) -> Result<Vec<u8>, Refusal> {
        let (mut data, mut errors, mut sources) = (Map::new(), Vec::new(), Map::new());
        let outcomes = self.answers.into_iter().zip(self.failures);
        for (source, (answer, failure)) in self.aggregate.sources.iter().zip(outcomes) {
            let name = source.name.to_string();
            let (value, status) = match (answer, failure) {
                (Some(answer), _) => (source.shape.apply(answer), "ok"),
                (None, failure) => {
                    errors.push(error(&name, &failure.unwrap_or(Refusal::BadGateway)));
                    let has_fallback = !source.fallback.is_null();
                    let status = if has_fallback { "fallback" } else { "failed" };
                    (source.fallback.clone(), status)
                }
            };
            sources.insert(name.clone(), status.into());
            data.insert(name, value);
        }
        let answer = json!({
            "data": data,
            "meta": {
                "requestId": request_id,
                "timestamp": format!("{:.3}", jiff::Timestamp::now()),
                "partial": !errors.is_empty(),
                "sources": sources,
            },
            "errors": errors,
        });
        serde_json::to_vec(&answer).map_err(|_| Refusal::Internal)
    }
}

/// The documented error body, as far as it is about one source.
fn error(source: &str, refusal: &Refusal) -> Value {
    let parts = refusal.parts();
    json!({
        "source": source,
        "statusCode": parts.status.as_u16(),
        "error": parts.status.canonical_reason(),
        "message": parts.message,
        "code": parts.code,
    })
}

// === impl Source ===

impl Source {
    fn outcome(&self, asked: Result<Reply, Fault>) -> Outcome {
        let (result, outcome) = match asked {
            Err(Fault::Late) => ("timeout", Err(Refusal::GatewayTimeout)),
            Err(Fault::Broken | Fault::Endless) => ("invalid", Err(Refusal::BadGateway)),
            Ok(reply) if reply.status.is_success() => match value(reply) {
                Some(value) => ("ok", Ok(value)),
                None => ("invalid", Err(Refusal::BadGateway)),
            },
            Ok(reply) => {
                let (result, refusal) = self.failure(reply.status, &reply.fields);
                (result, Err(refusal))
            }
        };
        self.counters.count(result);
        outcome
    }

    /// What a status, the service's or ours, is to the client of the aggregate: who asks and what for is its business, the
    /// rest is between us and the service.
    fn failure(&self, status: StatusCode, fields: &HeaderMap) -> (&'static str, Refusal) {
        use StatusCode as S;
        match status {
            S::NOT_FOUND => ("refused", Refusal::NotFound),
            S::UNAUTHORIZED => ("refused", Refusal::InvalidToken),
            S::FORBIDDEN => ("refused", Refusal::Forbidden("Insufficient permissions")),
            S::SERVICE_UNAVAILABLE | S::TOO_MANY_REQUESTS => {
                let seconds = fields.get(RETRY_AFTER);
                let seconds = seconds.and_then(|text| text.to_str().ok()?.parse().ok());
                let refusal = Refusal::Unavailable {
                    service: self.route.service.name.clone(),
                    retry_after_secs: seconds.unwrap_or(1),
                };
                ("unavailable", refusal)
            }
            S::GATEWAY_TIMEOUT => ("timeout", Refusal::GatewayTimeout),
            _ => ("invalid", Refusal::BadGateway),
        }
    }
}

/// The JSON of an answer; `None` when it is none, or is in a coding that nobody asked for. Deeper than 128 is none either:
/// so deep the parser goes.
fn value(reply: Reply) -> Option<Value> {
    if reply.status == StatusCode::NO_CONTENT {
        return Some(Value::Null);
    }
    let coding = reply.fields.get(CONTENT_ENCODING);
    let is_plain = coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let kind = reply.fields.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if reply.too_large || !is_plain || !kind.is_some_and(is_json) {
        return None;
    }
    serde_json::from_slice(&reply.body).ok()
}

/// `application/json`, or a type that ends in `+json` (RFC 6839, section 3.1).
pub fn is_json(kind: &[u8]) -> bool {
    let essence = kind.split(|b| *b == b';').next().unwrap_or_default();
    let essence = essence.trim_ascii().to_ascii_lowercase();
    essence == b"application/json" || essence.ends_with(b"+json")
}

// === impl Counters ===

impl Counters {
    fn count(&self, result: &str) {
        let place = RESULTS.iter().position(|known| *known == result);
        if let Some(counter) = place.and_then(|place| self.0.get(place)) {
            counter.inc();
        }
    }
}
