//! Several requests in one: `POST /api/v1/batch`. Each call is judged by every policy, with the credentials and from the
//! address of the client that sent the batch, as if it had come by itself; nothing is granted to a batch that its calls
//! would not get, and nothing counts less.

pub mod request;
mod results;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::Error;
use pingora::http::RequestHeader;
use pingora_proxy::Session;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};

use super::deadline::Deadline;
use super::exchange;
use crate::admit::Admitted;
use crate::admit::body::{self, Body};
use crate::admit::budget::{Full, Held};
use crate::admit::media::{self, Media};
use crate::admit::path::normalize;
use crate::admit::request_id::X_REQUEST_ID;
use crate::config::{self, Problems};
use crate::connection::Listening;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::inner::{self, Bounds, Inner, Prepared};
use crate::observe::registry::{HttpMetrics, RouteMetrics};
use crate::reply::{Answer, Refusal};
use crate::route::{MethodIndex, Table};
use crate::server::threads::{LARGE, aside};
use request::Call;
use results::CallResult;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Where batches are taken; empty: nowhere.
    pub path: String,
    /// In one batch.
    pub calls: usize,
    /// Calls of one batch that are under way at once.
    pub at_once: usize,
    /// Of a batch.
    pub body: config::Bytes,
    /// Of one call's answer.
    pub answer: config::Bytes,
    /// For all calls together.
    pub timeout: config::Duration,
}

/// Where batches are taken, and how large they may be.
pub struct Batch {
    path: Box<str>,
    pub most: usize,
    at_once: usize,
    pub body: usize,
    answer: usize,
    pub timeout: std::time::Duration,
    pub metrics: RouteMetrics,
    calls: IntCounter,
}

/// What batches are compiled against.
pub struct Parts<'a> {
    pub table: &'a Table,
    pub http: &'a Arc<HttpMetrics>,
    pub calls: &'a IntCounter,
}

/// A batch is no way to keep the process busy for many.
const MOST_CALLS: usize = 100;

/// The answers of a batch are held in memory until all are there.
const LARGEST: config::Bytes = config::Bytes::mib(8);

/// Of one batch, and then until its client has taken them.
const MOST_HELD: config::Bytes = config::Bytes::mib(64);

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            path: "/api/v1/batch".into(),
            calls: 20,
            at_once: 8,
            body: config::Bytes::mib(1),
            answer: config::Bytes::kib(512),
            timeout: config::Duration::secs(30),
        }
    }
}

impl BatchConfig {
    pub fn compile(self, parts: &Parts<'_>, problems: &mut Problems) -> Option<Batch> {
        let Self {
            path,
            calls,
            at_once,
            body,
            answer,
            timeout,
        } = self;
        if !(1..=MOST_CALLS).contains(&calls) {
            problems.add("batch.calls", format!("must be from 1 to {MOST_CALLS}"));
        }
        if !(1..=MOST_CALLS).contains(&at_once) {
            problems.add("batch.at_once", format!("must be from 1 to {MOST_CALLS}"));
        }
        for (key, size) in [("body", body), ("answer", answer)] {
            if size == config::Bytes(0) || size > LARGEST {
                problems.add(format!("batch.{key}"), "must be from 1B to 8MiB");
            }
        }
        if answer.0.saturating_mul(calls as u64) > MOST_HELD.0 {
            problems.add(
                "batch.answer",
                "the answers of all `calls` together are held in memory: at most 64MiB",
            );
        }
        if timeout.0.is_zero() {
            problems.add("batch.timeout", "must be longer than nothing");
        }
        if path.is_empty() {
            return None;
        }
        if !normalize(&path).is_ok_and(|normal| *normal == *path) || path.contains(['{', '*', '?'])
        {
            problems.add("batch.path", "must be one path, such as /api/v1/batch");
        }
        if parts.table.has_template(&path) {
            problems.add("batch.path", "is the path of a route already");
        }
        Some(Batch {
            most: calls,
            at_once,
            body: body.0 as usize,
            answer: answer.0 as usize,
            timeout: timeout.0,
            metrics: parts.http.route(&path),
            calls: parts.calls.clone(),
            path: path.into(),
        })
    }
}

// === impl Batch ===

impl Batch {
    pub fn is_at(&self, path: &str) -> bool {
        *self.path == *path
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// # Errors
    /// When it is none, or none that can be read.
    fn check_head(&self, method: &Method, fields: &HeaderMap) -> Result<(), Refusal> {
        if *method != Method::POST {
            return Err(Refusal::MethodNotAllowed(HeaderValue::from_static("POST")));
        }
        match Media::of(fields)?.essence {
            Some(essence) if media::is_json(&essence) => Ok(()),
            _ => Err(Refusal::UnsupportedMediaType),
        }
    }
}

impl Gateway {
    /// Makes the calls of a batch. When the client goes each is what it would be by itself: what reads ends, or is not
    /// begun, and what may change something is finished.
    ///
    /// # Errors
    /// When it is no batch. What a call comes to stands in its result.
    pub async fn run_batch(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
    ) -> Result<Admitted, Refusal> {
        // A batch within a batch would be many.
        if ctx.inner.is_some() {
            return Err(Refusal::NotInABatch);
        }
        let policies = ctx.policies.clone();
        let Some(batch) = &policies.batch else {
            return Err(Refusal::NotFound);
        };
        ctx.is_batch = true;
        let request = session.req_header();
        ctx.method = MethodIndex::of(&request.method);
        ctx.in_progress = Some(batch.metrics.method(ctx.method).begin());
        batch.check_head(&request.method, &request.headers)?; // 400, 405, 415
        let deadline = Deadline::of(&request.headers, ctx.start, batch.timeout)?; // 400
        ctx.deadline = Some(deadline);
        // Nobody is identified yet: what is held is counted by address.
        let mut room = policies.rooms.batches.of_client(ctx.client);
        let body = body::read_into(session, ctx, batch.body, Some(&mut room)).await?; // 408, 413, 503
        let calls = calls_of(&body, session.req_header(), ctx, batch.most).await?; // 400
        drop(body);
        batch.calls.inc_by(calls.len() as u64);
        let (results, held) = match make(batch, calls, session, ctx, deadline).await {
            Ok(results) => results.into_iter().unzip(),
            Err(gone) => return Ok(Admitted::ClientGone(gone)),
        };
        let json = "application/json; charset=utf-8";
        let results = results::write(results).await?;
        let mut answer = Answer::new(StatusCode::OK, json, results);
        answer.held = held;
        Ok(Admitted::Answered(answer))
    }
}

/// What a batch asks for.
///
/// # Errors
/// When one of its calls is no request.
async fn calls_of(
    body: &Body,
    head: &RequestHeader,
    ctx: &Ctx,
    most: usize,
) -> Result<Vec<Call>, Refusal> {
    let (id, limits) = (ctx.request_id.clone(), ctx.policies.head);
    let read = move |body: &[u8], head: &RequestHeader| {
        let behind = request::Behind {
            head,
            request_id: id.to_str().unwrap_or_default(),
            limits: &limits,
            most,
        };
        request::read(body, &behind)
    };
    if body.len() <= LARGE {
        return read(body, head);
    }
    let (body, head) = (body.bytes(), head.clone());
    let read = aside(move || read(&body, &head)).await;
    read.unwrap_or(Err(Refusal::Internal))
}

/// Makes the calls side by side, a few at once. The results stand in the order of the calls.
///
/// # Errors
/// When the client has gone, and nothing is left but what nobody needs then.
async fn make(
    batch: &Batch,
    calls: Vec<Call>,
    session: &mut Session,
    ctx: &Ctx,
    deadline: Deadline,
) -> Result<Vec<(CallResult, Held)>, Box<Error>> {
    let behind = inner::Behind::of(ctx, deadline);
    let mut results: Vec<Option<(CallResult, Held)>> = calls.iter().map(|_| None).collect();
    let mut waiting: VecDeque<(usize, Call)> = calls.into_iter().enumerate().collect();
    let (mut reads, mut writes) = (FuturesUnordered::new(), FuturesUnordered::new());
    let listening = Listening::begin(session);
    let mut gone = None;
    loop {
        while reads.len() + writes.len() < batch.at_once
            && let Some((place, call)) = waiting.pop_front()
        {
            let running = match call.only_reads() {
                true => &mut reads,
                false => &mut writes,
            };
            let room = ctx.policies.rooms.answers.of_client(ctx.client);
            let result = result_of(batch, call, &behind, session, deadline, room);
            running.push(async move { (place, result.await) }.boxed());
        }
        tokio::select! {
            Some((place, result)) = reads.next() => results[place] = Some(result),
            Some((place, result)) = writes.next() => results[place] = Some(result),
            error = exchange::client_gone(session), if gone.is_none() && !(reads.is_empty() && writes.is_empty()) => {
                gone = Some(error);
                // Dropped with what is under way: it ends, for nobody listens.
                reads.clear();
                waiting.retain(|(_, call)| !call.only_reads());
            }
            else => break,
        }
    }
    drop(listening);
    let results: Vec<_> = results.into_iter().flatten().collect();
    match gone {
        Some(gone) if results.is_empty() => Err(gone),
        _ => Ok(results),
    }
}

/// Makes one call. `room`: for its answer.
fn result_of(
    batch: &Batch,
    call: Call,
    behind: &inner::Behind,
    session: &Session,
    deadline: Deadline,
    mut room: Held,
) -> impl Future<Output = (CallResult, Held)> + Send + use<> {
    let Call { id, mut head, body } = call;
    let request_id = id_of(&head);
    let bounds = Bounds {
        largest: batch.answer,
        until: deadline.at(),
    };
    // What an answer is coded in is between the client and the answer to the batch.
    let _ = head.insert_header(ACCEPT_ENCODING, "identity");
    let inner = Inner::Call(Box::new(inner::Call {
        head,
        behind: behind.clone(),
    }));
    let prepared = match deadline.left(Instant::now()) {
        Some(_) => Prepared::new(session, inner, body).ok_or(Refusal::Internal),
        None => Err(Refusal::GatewayTimeout),
    };
    async move {
        let reply = match prepared {
            Ok(prepared) => prepared.run(bounds).await.map_err(results::refusal),
            Err(refusal) => Err(refusal),
        };
        // It is held until the client has taken all results.
        let reply = reply.map(|reply| match room.grow(reply.body.len()) {
            Ok(()) => reply,
            Err(Full) => {
                room.clear();
                reply.cut()
            }
        });
        (results::result(id, reply, &request_id).await, room)
    }
}

fn id_of(head: &RequestHeader) -> String {
    let id = head.headers.get(X_REQUEST_ID);
    id.and_then(|id| id.to_str().ok())
        .unwrap_or_default()
        .into()
}
