//! Several requests in one: `POST /api/v1/batch`. Each call is judged by every policy, with the credentials and from the
//! address of the client that sent the batch, as if it had come by itself; nothing is granted to a batch that its calls
//! would not get, and nothing counts less.

pub mod request;
mod results;

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use pingora_proxy::Session;
use prometheus::IntCounter;
use serde::{Deserialize, Serialize};

use super::deadline::Deadline;
use crate::admit::media::{self, Media};
use crate::admit::path::normalize;
use crate::admit::request_id::X_REQUEST_ID;
use crate::admit::{Admitted, body};
use crate::config::{self, Problems};
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::inner::{self, Bounds, Inner, Prepared};
use crate::observe::registry::{HttpMetrics, RouteMetrics};
use crate::reply::{Answer, Refusal};
use crate::route::{MethodIndex, Table};
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
    /// Makes the calls of a batch. They are made although the client has gone: some may change something.
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
        let room = policies
            .tenancy
            .take_room(ctx.client_text.as_bytes(), batch.body)?; // 503
        let body = body::read(session, ctx, batch.body).await?; // 408, 413
        let behind = request::Behind {
            head: session.req_header(),
            request_id: ctx.request_id(),
            limits: &policies.head,
            most: batch.most,
        };
        let calls = request::read(&body, &behind)?; // 400
        drop((body, room));
        batch.calls.inc_by(calls.len() as u64);
        let results = make(batch, calls, session, ctx, deadline).await;
        let json = "application/json; charset=utf-8";
        let results = results::write(results).await?;
        Ok(Admitted::Answered(Answer::new(
            StatusCode::OK,
            json,
            results,
        )))
    }
}

/// Makes the calls side by side, a few at once. The results stand in the order of the calls.
async fn make(
    batch: &Batch,
    calls: Vec<Call>,
    session: &mut Session,
    ctx: &Ctx,
    deadline: Deadline,
) -> Vec<Option<CallResult>> {
    let behind = inner::Behind::of(ctx, deadline);
    let bounds = Bounds {
        largest: batch.answer,
        until: deadline.at(),
    };
    let mut results: Vec<Option<CallResult>> = calls.iter().map(|_| None).collect();
    let mut waiting = calls.into_iter().enumerate();
    let mut running: FuturesUnordered<BoxFuture<'_, (usize, CallResult)>> = FuturesUnordered::new();
    loop {
        while running.len() < batch.at_once
            && let Some((place, call)) = waiting.next()
        {
            let Call { id, mut head, body } = call;
            let request_id = id_of(&head);
            let is_late = deadline.left(Instant::now()).is_none();
            // What an answer is coded in is between the client and the answer to the batch.
            let _ = head.insert_header(ACCEPT_ENCODING, "identity");
            let inner = Inner::Call(Box::new(inner::Call {
                head,
                behind: behind.clone(),
            }));
            let prepared = match is_late {
                true => Err(Refusal::GatewayTimeout),
                false => Prepared::new(session, inner, body).ok_or(Refusal::Internal),
            };
            running.push(Box::pin(async move {
                let reply = match prepared {
                    Ok(prepared) => prepared.run(bounds).await.map_err(results::refusal),
                    Err(refusal) => Err(refusal),
                };
                (place, results::result(id, reply, &request_id).await)
            }));
        }
        match running.next().await {
            Some((place, result)) => results[place] = Some(result),
            None => return results,
        }
    }
}

fn id_of(head: &RequestHeader) -> String {
    let id = head.headers.get(X_REQUEST_ID);
    id.and_then(|id| id.to_str().ok())
        .unwrap_or_default()
        .into()
}
