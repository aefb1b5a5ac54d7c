//! Writes the gateway's own answers: refusals, preflights, and what ops asks for.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use super::{Refusal, secure_headers::SecureHeaders};
use crate::admit::cors::Cors;
use crate::admit::request_id::X_REQUEST_ID;
use crate::context::Ctx;

/// An answer of our own that is not a refusal.
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: Vec<u8>,
}

/// A body that is not wanted any more is read up to this size, so that the connection can go on.
const SMALL_BODY: u64 = 64 << 10;

/// How long such a body may take to arrive.
const DRAIN: Duration = Duration::from_millis(500);

/// How long a connection lingers after an answer that its client may not read before it has sent everything: closing
/// at once would reset it, and take the answer away.
const LINGER: Duration = Duration::from_secs(2);

/// Refuses a request. Where it is safe the connection stays open.
pub async fn refuse(
    session: &mut Session,
    ctx: &mut Ctx,
    secure_headers: &SecureHeaders,
    refusal: &Refusal,
) -> pingora::Result<()> {
    let parts = refusal.parts();
    ctx.code = Some(parts.code);
    let body = refusal.body(ctx.request_id.to_str().unwrap_or_default());
    let mut head = ResponseHeader::build(parts.status, Some(24))?;
    head.insert_header(
        "Content-Type",
        HeaderValue::from_static("application/json; charset=utf-8"),
    )?;
    if let Some(seconds) = refusal.retry_after_secs() {
        head.insert_header("Retry-After", HeaderValue::from(seconds))?;
    }
    if let Some(challenge) = refusal.challenge() {
        head.insert_header("WWW-Authenticate", HeaderValue::from_static(challenge))?;
    }
    if let Refusal::MethodNotAllowed(allow) = refusal {
        head.insert_header("Allow", allow.clone())?;
    }
    if let (Refusal::RateLimited { retry_after_secs }, Some(limit)) =
        (refusal, ctx.limit_of_route())
    {
        head.insert_header("X-RateLimit-Limit", limit)?;
        head.insert_header("X-RateLimit-Remaining", HeaderValue::from(0))?;
        head.insert_header("X-RateLimit-Reset", HeaderValue::from(*retry_after_secs))?;
    }
    if refusal.closes_connection() {
        session.set_keepalive(None);
    }
    write(session, ctx, secure_headers, head, body).await
}

/// Answers a request.
pub async fn answer(
    session: &mut Session,
    ctx: &mut Ctx,
    secure_headers: &SecureHeaders,
    answer: Answer,
) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(16))?;
    if !answer.body.is_empty() {
        head.insert_header(
            "Content-Type",
            HeaderValue::from_static(answer.content_type),
        )?;
    }
    write(session, ctx, secure_headers, head, answer.body).await
}

/// Answers a preflight.
pub async fn preflight(
    session: &mut Session,
    ctx: &mut Ctx,
    secure_headers: &SecureHeaders,
    cors: &Cors,
) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(StatusCode::NO_CONTENT, Some(16))?;
    cors.stamp_preflight(&mut head)?;
    write(session, ctx, secure_headers, head, Vec::new()).await
}

async fn write(
    session: &mut Session,
    ctx: &Ctx,
    secure_headers: &SecureHeaders,
    mut head: ResponseHeader,
    body: Vec<u8>,
) -> pingora::Result<()> {
    if head.status != StatusCode::NO_CONTENT {
        head.insert_header("Content-Length", HeaderValue::from(body.len()))?;
    }
    head.insert_header("Cache-Control", HeaderValue::from_static("no-store"))?;
    head.insert_header(X_REQUEST_ID, ctx.request_id.clone())?;
    secure_headers.stamp(&mut head)?;
    Cors::stamp(&ctx.origin, &mut head)?;
    drain_small_body(session).await;
    let has_body = !body.is_empty() && session.req_header().method != Method::HEAD;
    session
        .write_response_header(Box::new(head), !has_body)
        .await?;
    if has_body {
        session
            .write_response_body(Some(Bytes::from(body)), true)
            .await?;
    }
    if !session.is_body_done() {
        session.set_total_drain_timeout(Some(LINGER));
        let _ = session.drain_request_body().await;
    }
    Ok(())
}

/// Reads a small body that nobody wants, before the answer: the next request stands behind it. A client that waits
/// for `100 Continue` sends none.
async fn drain_small_body(session: &mut Session) {
    let headers = &session.req_header().headers;
    let length = headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let waits = headers.contains_key(http::header::EXPECT);
    if waits || length.is_some_and(|length| length > SMALL_BODY) || session.is_body_done() {
        return;
    }
    session.set_total_drain_timeout(Some(DRAIN));
    if session.drain_request_body().await.is_err() {
        session.set_keepalive(None);
    }
}
