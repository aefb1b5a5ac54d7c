//! Writes the gateway's own answers: refusals, preflights, and what ops asks for.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, EXPECT,
    RETRY_AFTER, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::{Error, ErrorType};
use pingora_proxy::Session;
use pingora_timeout::tokio_timeout;

use super::{Refusal, grpc};
use crate::admit::budget::Held;
use crate::admit::cors::Cors;
use crate::admit::idempotency::Answer as Kept;
use crate::admit::request_id::X_REQUEST_ID;
use crate::admit::size::content_length;
use crate::connection::link_of;
use crate::context::Ctx;

/// An answer of our own that is not a refusal.
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    /// Beside that.
    pub fields: HeaderMap,
    /// In place of the Content-Security-Policy of all others: a page of ours, which is shown in no frame.
    pub policy: Option<HeaderValue>,
    pub body: Bytes,
    /// Until the client has it.
    pub held: Vec<Held>,
}

/// The answer was given before, to the same write.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A body that is not wanted any more is read up to this size, so that the connection can go on.
const SMALL_BODY: u64 = 64 << 10;

/// How long such a body may take to arrive.
const DRAIN: Duration = Duration::from_millis(500);

/// Of an answer that is written at once.
const PIECE: usize = 64 << 10;

/// How long a connection lingers after an answer that its client may not read before it has sent everything: closing
/// at once would reset it, and take the answer away.
const LINGER: Duration = Duration::from_secs(2);

// === impl Answer ===

impl Answer {
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type,
            fields: HeaderMap::new(),
            policy: None,
            body: body.into(),
            held: Vec::new(),
        }
    }

    pub fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.fields.insert(name, value);
    }
}

/// Refuses a request. Where it is safe the connection stays open.
pub async fn refuse(
    session: &mut Session,
    ctx: &mut Ctx,
    refusal: &Refusal,
) -> pingora::Result<()> {
    let parts = refusal.parts();
    ctx.code = Some(parts.code);
    let mut fields = HeaderMap::with_capacity(24);
    fields.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    if let Some(seconds) = refusal.retry_after_secs() {
        fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(challenge) = refusal.challenge() {
        fields.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if let Some(standing) = &ctx.standing {
        standing.stamp(&mut fields);
    }
    match refusal {
        Refusal::MethodNotAllowed(allow) => drop(fields.insert(ALLOW, allow.clone())),
        Refusal::RateLimited(exceeded) => exceeded.stamp(&mut fields),
        // What would be good instead (RFC 9110, section 15.5.22, and RFC 6455, section 4.4).
        Refusal::WebSocketVersion => {
            fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
            fields.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        _ => {}
    }
    if refusal.closes_connection() {
        session.set_keepalive(None);
    }
    let (mut status, mut body) = (parts.status, refusal.body(ctx.request_id()));
    if grpc::is_grpc(&session.req_header().headers) {
        grpc::stamp(&mut fields, &parts);
        body.clear();
        // Log and metrics show what it stands for.
        ctx.refused = Some(std::mem::replace(&mut status, StatusCode::OK));
    }
    write(session, ctx, status, fields, body).await
}

/// Answers a request.
pub async fn answer(session: &mut Session, ctx: &mut Ctx, answer: Answer) -> pingora::Result<()> {
    let Answer {
        status,
        content_type,
        mut fields,
        policy,
        body,
        held: _held,
    } = answer;
    fields.reserve(16);
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(standing) = &ctx.standing {
        standing.stamp(&mut fields);
    }
    write_under(policy, session, ctx, status, fields, body).await
}

/// Answers a request as the same one was answered before.
pub async fn replay(session: &mut Session, ctx: &Ctx, answer: Kept) -> pingora::Result<()> {
    let Kept {
        status,
        mut fields,
        body,
    } = answer;
    fields.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    if let Some(standing) = &ctx.standing {
        standing.stamp(&mut fields);
    }
    write(session, ctx, status, fields, body).await
}

/// Answers a preflight.
pub async fn preflight(session: &mut Session, ctx: &Ctx) -> pingora::Result<()> {
    let mut fields = HeaderMap::with_capacity(16);
    ctx.policies.cors.stamp_preflight(&mut fields);
    write(session, ctx, StatusCode::NO_CONTENT, fields, Vec::new()).await
}

/// Answers `Expect: 100-continue`, now that the request may go on. HTTP/1.0 has no such answer (RFC 9110, section
/// 10.1.1).
pub async fn tell_to_continue(session: &mut Session) -> pingora::Result<()> {
    let request = session.req_header();
    if request.version < Version::HTTP_11 || !request.headers.contains_key(EXPECT) {
        return Ok(());
    }
    // Pingora takes the 100 for an answer before the body's end, and would close the connection for it.
    let keepalive = session.get_keepalive();
    session.write_continue_response().await?;
    session.set_keepalive(keepalive);
    Ok(())
}

/// Takes out of a backend's answer what is not for clients, and puts in what every answer carries.
pub fn stamp(response: &mut ResponseHeader, ctx: &Ctx) {
    super::rewrite(response, |fields| {
        super::scrub(fields);
        fields.insert(X_REQUEST_ID, ctx.request_id.clone());
        ctx.policies.secure_headers.stamp(fields, ctx.is_over_tls());
        if let Some(standing) = &ctx.standing {
            standing.stamp(fields);
        }
        Cors::stamp(&ctx.origin, fields);
    });
}

/// Begins an HTTP/2 backend's answer of unknown length to a client that knows no chunks, in which Pingora would write it:
/// it ends with the connection (RFC 9112, section 6.3). Pingora finds the head written, and goes on with the body.
pub async fn begin_for_http10(
    session: &mut Session,
    answer: &mut ResponseHeader,
) -> pingora::Result<()> {
    if session.req_header().version != Version::HTTP_10 {
        return Ok(());
    }
    // It knows no chunks: the body ends with the connection (RFC 9112, section 6.1).
    if answer.remove_header(&TRANSFER_ENCODING).is_some() {
        session.set_keepalive(None);
    }
    if answer.version != Version::HTTP_2 || answer.headers.contains_key(CONTENT_LENGTH) {
        return Ok(());
    }
    session.set_keepalive(None);
    answer.set_version(Version::HTTP_11);
    let head = Box::new(answer.clone());
    let written = session.write_response_header(head, false).await;
    written.map_err(|e| e.into_down())
}

async fn write(
    session: &mut Session,
    ctx: &Ctx,
    status: StatusCode,
    fields: HeaderMap,
    body: impl Into<Bytes>,
) -> pingora::Result<()> {
    write_under(None, session, ctx, status, fields, body).await
}

/// `policy`: a Content-Security-Policy of its own.
async fn write_under(
    policy: Option<HeaderValue>,
    session: &mut Session,
    ctx: &Ctx,
    status: StatusCode,
    mut fields: HeaderMap,
    body: impl Into<Bytes>,
) -> pingora::Result<()> {
    let body = body.into();
    if !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    fields
        .entry(CACHE_CONTROL)
        .or_insert(const { HeaderValue::from_static("no-store") });
    fields.insert(X_REQUEST_ID, ctx.request_id.clone());
    ctx.policies
        .secure_headers
        .stamp(&mut fields, ctx.is_over_tls());
    if let Some(policy) = policy {
        fields.insert(CONTENT_SECURITY_POLICY, policy);
        fields.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    }
    Cors::stamp(&ctx.origin, &mut fields);
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = status;
    parts.headers = fields;
    if ctx.handshake.is_some()
        && let Some(link) = link_of(session.as_ref())
    {
        link.decline();
    }
    drain_small_body(session).await;
    if session.is_process_shutting_down() {
        session.set_keepalive(None);
    }
    let has_body = !body.is_empty() && session.req_header().method != Method::HEAD;
    let limit = ctx.policies.times.time_to_take(body.len());
    let head = Box::new(ResponseHeader::from(parts));
    if !has_body && session.req_header().version == Version::HTTP_2 {
        // In one frame with the end: so gRPC knows an answer that has no body (Pingora's other way sends two).
        let task = HttpTask::Header(head, true);
        return session.write_response_tasks(vec![task]).await.map(|_| ());
    }
    session.write_response_header(head, !has_body).await?;
    if has_body {
        in_time(limit, write_body(session, body)).await?;
    }
    // On HTTP/2 a stream may end before its body (RFC 9113, section 8.1).
    if !session.is_body_done() && session.req_header().version != Version::HTTP_2 {
        session.set_total_drain_timeout(Some(LINGER));
        let _ = session.drain_request_body().await;
    }
    Ok(())
}

/// What is here has no backend's deadline: its client has the time that the least rate gives it for all of it, however small
/// the pieces are that it makes room for.
///
/// # Errors
/// When it took longer, or as `writing` does.
pub async fn in_time<T>(
    limit: Option<Duration>,
    writing: impl Future<Output = pingora::Result<T>>,
) -> pingora::Result<T> {
    let Some(limit) = limit else {
        return writing.await;
    };
    // A timer that goes with the wait: it may be set for hours, and most never ring.
    tokio_timeout(limit, writing).await.unwrap_or_else(|_| {
        let slow = "the client took its answer too slowly";
        Err(Error::explain(ErrorType::WriteTimedout, slow).into_down())
    })
}

/// Each piece has the time that a client may take for one.
async fn write_body(session: &mut Session, mut body: Bytes) -> pingora::Result<()> {
    while !body.is_empty() {
        let piece = body.split_to(body.len().min(PIECE));
        session
            .write_response_body(Some(piece), body.is_empty())
            .await?;
    }
    Ok(())
}

/// Reads a small body that nobody wants, before the answer: the next request stands behind it. A client that waits
/// for `100 Continue` sends none.
async fn drain_small_body(session: &mut Session) {
    if session.req_header().version == Version::HTTP_2 {
        return; // nothing stands behind it
    }
    let headers = &session.req_header().headers;
    let length = content_length(headers);
    let waits = headers.contains_key(EXPECT);
    if waits || length.is_some_and(|length| length > SMALL_BODY) || session.is_body_done() {
        return;
    }
    session.set_total_drain_timeout(Some(DRAIN));
    if session.drain_request_body().await.is_err() {
        session.set_keepalive(None);
    }
}
