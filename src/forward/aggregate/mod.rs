//! One answer made of several services' (decision 26): its sources are asked side by side, each as soon as what its path
//! needs is known, through everything that a request goes through on its way to a service. `{data, errors, meta}`.

mod answer;
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
use http::{HeaderMap, HeaderName, Method, StatusCode};
use pingora_proxy::Session;
use prometheus::IntCounter;
use serde_json::Value;
use serde_json::value::RawValue;

use super::deadline::Deadline;
use super::exchange;
use crate::admit::Admitted;
use crate::admit::budget::Full;
use crate::admit::json::is_well_formed;
use crate::admit::media::says_json;
use crate::admit::permissions::Required;
use crate::admit::tenancy::X_VENUE_ID;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::inner::{self, Behind, Bounds, Fault, Inner, Prepared, Reply};
use crate::reply::{Answer, Refusal};
use crate::route::Route;
use crate::server::threads::{LARGE, aside};
use answer::{Part, Whole};
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
    /// What who asks for the aggregate must have beside, to be told of this one.
    permission: Option<Required>,
    required: bool,
    fallback: Value,
    /// Where it has a time of its own.
    budget: Option<Duration>,
    shape: Shape,
    /// Other sources' paths are made of its answer.
    is_needed: bool,
    counters: Counters,
}

/// By [`RESULTS`].
struct Counters([IntCounter; RESULTS.len()]);

/// What came of asking a source.
const RESULTS: [&str; 5] = ["ok", "refused", "unavailable", "timeout", "invalid"];

/// A source's answer.
struct Said {
    /// As it stands there, where all of it is told.
    text: Option<Box<RawValue>>,
    /// Built, where a part of it is told, or other sources' paths are made of it.
    value: Option<Value>,
    /// Bytes that it came in.
    size: usize,
}

/// A source's answer in full, or what its failure is to the client.
type Outcome = Result<Said, Refusal>;

/// What there is of each source once all are asked.
struct Outcomes {
    answers: Vec<Option<Said>>,
    failures: Vec<Option<Refusal>>,
}

/// An aggregate that is being made.
struct Making<'a> {
    aggregate: &'a Aggregate,
    parameters: &'a [Box<str>],
    deadline: Deadline,
    behind: Behind,
    asked: Vec<bool>,
    answers: Vec<Option<Said>>,
    failures: Vec<Option<Refusal>>,
    running: FuturesUnordered<BoxFuture<'a, (usize, Outcome)>>,
}

/// What of the client's fields the sources are told, beside who is asking.
static TOLD: [HeaderName; 3] = [ACCEPT_LANGUAGE, CACHE_CONTROL, X_VENUE_ID];

impl Gateway {
    /// Answers with what the sources say, or as the first of them that is required and fails.
    ///
    /// # Errors
    /// When one that is required is not for who asks.
    pub async fn compose(
        &self,
        aggregate: &Aggregate,
        parameters: &[Box<str>],
        session: &mut Session,
        ctx: &Ctx,
    ) -> Result<Admitted, Refusal> {
        let deadline = ctx.deadline.ok_or(Refusal::Internal)?;
        let mut making = Making::new(aggregate, parameters, deadline, ctx);
        making.judge(ctx)?; // 403
        // What a service refuses is no event of ours that the audit log should have.
        let made = making.make(session, ctx).await;
        Ok(made.unwrap_or_else(Admitted::Refused))
    }
}

// === impl Aggregate ===

impl Aggregate {
    /// What `data` calls its sources, and whether each must be there.
    pub fn sources(&self) -> impl Iterator<Item = (&str, bool)> {
        let sources = self.sources.iter();
        sources.map(|source| (&*source.name, source.required))
    }

    /// The route of the source of this name.
    pub fn source(&self, name: &str) -> Option<&Route> {
        let source = self.sources.iter().find(|source| *source.name == *name);
        source.map(|source| &*source.route)
    }

    fn write(&self, outcomes: Outcomes, request_id: &str) -> Result<Vec<u8>, Refusal> {
        let mut whole = Whole::new(request_id);
        let Outcomes { answers, failures } = outcomes;
        let outcomes = answers.into_iter().zip(failures);
        for (source, (answer, failure)) in self.sources.iter().zip(outcomes) {
            match answer {
                Some(answer) => whole.add(&source.name, "ok", source.part(answer)),
                None => {
                    whole.fail(&source.name, &failure.unwrap_or(Refusal::BadGateway));
                    let has_fallback = !source.fallback.is_null();
                    let status = if has_fallback { "fallback" } else { "failed" };
                    whole.add(&source.name, status, Part::Fallback(&source.fallback));
                }
            }
        }
        whole.write()
    }

    /// Whether anything is kept of its sources' answers.
    pub fn keeps_answers(&self) -> bool {
        self.sources
            .iter()
            .any(|source| source.route.cache.is_some())
    }
}

// === impl Making ===

impl<'a> Making<'a> {
    fn new(
        aggregate: &'a Aggregate,
        parameters: &'a [Box<str>],
        deadline: Deadline,
        ctx: &Ctx,
    ) -> Self {
        let count = aggregate.sources.len();
        Self {
            aggregate,
            parameters,
            deadline,
            behind: Behind::of(ctx, deadline),
            asked: vec![false; count],
            answers: (0..count).map(|_| None).collect(),
            failures: vec![None; count],
            running: FuturesUnordered::new(),
        }
    }

    /// Leaves out the sources that who asks has no permission for: they are not asked.
    ///
    /// # Errors
    /// When one of them is required.
    fn judge(&mut self, ctx: &Ctx) -> Result<(), Refusal> {
        for (place, source) in self.aggregate.sources.iter().enumerate() {
            if !source.is_for(self.parameters, ctx) {
                self.asked[place] = true;
                source.counters.count("refused");
                self.take(place, Err(FORBIDDEN))?;
            }
        }
        Ok(())
    }

    async fn make(mut self, session: &mut Session, ctx: &Ctx) -> Result<Admitted, Refusal> {
        loop {
            self.ask(session, ctx)?;
            if self.running.is_empty() {
                break;
            }
            // Dropped with what is under way: the sources' connections are closed.
            let ended = tokio::select! {
                ended = self.running.next() => ended,
                gone = exchange::client_gone(session) => return Ok(Admitted::ClientGone(gone)),
            };
            if let Some((source, outcome)) = ended {
                self.take(source, outcome)?;
            }
        }
        let json = "application/json; charset=utf-8";
        let mut answer = Answer::new(StatusCode::OK, json, self.write(ctx).await?);
        let mut room = ctx.policies.rooms.answers.of_client(ctx.client);
        let held = room.grow(answer.body.len());
        held.map_err(|Full| Refusal::Overloaded("api-gateway".into()))?; // 503
        answer.held.push(room);
        Ok(Admitted::Answered(answer))
    }

    async fn write(self, ctx: &Ctx) -> Result<Vec<u8>, Refusal> {
        let outcomes = Outcomes {
            answers: self.answers,
            failures: self.failures,
        };
        let size: usize = outcomes
            .answers
            .iter()
            .flatten()
            .map(|said| said.size)
            .sum();
        if size <= LARGE {
            return self.aggregate.write(outcomes, ctx.request_id());
        }
        let (route, id) = (ctx.route.clone(), ctx.request_id.clone());
        let written = aside(move || {
            let aggregate = route.as_ref().and_then(|route| route.aggregate.as_deref());
            let aggregate = aggregate.ok_or(Refusal::Internal)?;
            aggregate.write(outcomes, id.to_str().unwrap_or_default())
        });
        written.await.unwrap_or(Err(Refusal::Internal))
    }

    /// Asks every source of which all is known that its path needs.
    fn ask(&mut self, session: &Session, ctx: &Ctx) -> Result<(), Refusal> {
        // A failure may settle what others wait for, which are looked at again.
        while let Some(place) = (0..self.asked.len()).find(|place| self.is_due(*place)) {
            self.asked[place] = true;
            let source = &self.aggregate.sources[place];
            let path = source.template.fill(&Values {
                parameters: self.parameters,
                caller: ctx.caller.as_deref(),
                answer: &|source: usize| self.answers.get(source)?.as_ref()?.value.as_ref(),
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
                let outcome = source.outcome(request.0.run(bounds).await).await;
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
            beside: ctx.beside.clone(),
            parameters: match source.route.cache {
                Some(_) => self.parameters.to_vec(),
                None => Vec::new(),
            },
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
}

const FORBIDDEN: Refusal = Refusal::Forbidden("Insufficient permissions");

// === impl Source ===

impl Source {
    /// Whether who asks, and the key beside the token, may be told of it.
    fn is_for(&self, parameters: &[Box<str>], ctx: &Ctx) -> bool {
        let (Some(required), Some(route)) = (&self.permission, &ctx.route) else {
            return true;
        };
        let owner = route.owner.parameter(parameters);
        let holders = [&ctx.caller, &ctx.beside].into_iter().flatten();
        let mut holders = holders.map(|holder| required.check(holder, &route.owner, owner));
        ctx.caller.is_some() && holders.all(|checked| checked.is_ok())
    }

    /// What of an answer stands in the aggregate.
    fn part<'a>(&self, answer: Said) -> Part<'a> {
        match answer {
            Said {
                text: Some(text), ..
            } => Part::Whole(text),
            Said { value, .. } => Part::Shaped(self.shape.apply(value.unwrap_or_default())),
        }
    }

    async fn outcome(&self, asked: Result<Reply, Fault>) -> Outcome {
        let (result, outcome) = match asked {
            Err(Fault::Late) => ("timeout", Err(Refusal::GatewayTimeout)),
            Err(Fault::Broken) => ("invalid", Err(Refusal::BadGateway)),
            Ok(reply) if reply.status.is_success() => match self.read(reply).await {
                Some(said) => ("ok", Ok(said)),
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
            S::FORBIDDEN => ("refused", FORBIDDEN),
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

    /// The JSON of an answer; `None` when it is none, or is in a coding that nobody asked for. What is deeper than 128
    /// levels is none either.
    async fn read(&self, reply: Reply) -> Option<Said> {
        let body = match reply.status {
            // There is none to read.
            StatusCode::NO_CONTENT => b"null".to_vec(),
            _ => json_of(reply)?,
        };
        let is_told = self.shape.is_whole();
        let is_built = self.is_needed || !is_told;
        match body.len() {
            ..=LARGE => Said::read(body, is_told, is_built),
            _ => aside(move || Said::read(body, is_told, is_built)).await?,
        }
    }
}

/// The body of what is said to be JSON, all of it, as it stands.
fn json_of(reply: Reply) -> Option<Vec<u8>> {
    let coding = reply.fields.get(CONTENT_ENCODING);
    let is_plain = coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    let is_json = reply.fields.get(CONTENT_TYPE).is_some_and(says_json);
    (is_plain && is_json && !reply.is_cut).then_some(reply.body)
}

// === impl Said ===

impl Said {
    fn read(body: Vec<u8>, is_told: bool, is_built: bool) -> Option<Self> {
        if !is_well_formed(&body) {
            return None;
        }
        let size = body.len();
        let value = match is_built {
            true => Some(serde_json::from_slice(&body).ok()?),
            false => None,
        };
        let text = match is_told {
            true => Some(RawValue::from_string(String::from_utf8(body).ok()?).ok()?),
            false => None,
        };
        Some(Self { text, value, size })
    }
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
