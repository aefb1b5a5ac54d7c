//! Bodies that a policy must see before anything is forwarded.
//!
//! Pingora keeps what was read of a body, up to 64 KiB, and sends it on from there. What is larger, or does not say how
//! large it is, is looked at on its way instead.

use std::ops::Deref;
use std::time::Instant;

use bytes::Bytes;
use http::Version;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora_proxy::Session;
use pingora_timeout::timeout;
use serde_json::Value;

use super::budget::{Full, Held};
use super::json::{self, Bounds, NoDocument};
use super::size::content_length;
use crate::context::Ctx;
use crate::forward::breaker::Breaker;
use crate::gateway::Gateway;
use crate::reply::{self, Refusal};

/// As large as the buffer that Pingora sends a body again from.
pub const SMALL: usize = 64 << 10;

/// A whole body. What it says as JSON is read once, whoever asks for it.
pub struct Body {
    text: Bytes,
    document: Option<Result<Value, NoDocument>>,
}

/// Reads a whole body that must not have more than `most` bytes, nor than [`SMALL`] if it is sent on.
///
/// # Errors
/// When it is, or it does not arrive.
pub async fn read(session: &mut Session, ctx: &Ctx, most: usize) -> Result<Body, Refusal> {
    read_into(session, ctx, most, None).await
}

/// The same, in a room that it takes of piece by piece: what is announced is free to invent.
///
/// # Errors
/// As [`read`], and when there is no room for it.
pub async fn read_into(
    session: &mut Session,
    ctx: &Ctx,
    most: usize,
    room: Option<&mut Held>,
) -> Result<Body, Refusal> {
    let left = ctx
        .deadline
        .and_then(|deadline| deadline.left(Instant::now()));
    match timeout(left.unwrap_or_default(), read_all(session, most, room)).await {
        Ok(read) => read.map(Body::from),
        Err(_) => Err(Refusal::RequestTimeout),
    }
}

async fn read_all(
    session: &mut Session,
    most: usize,
    mut room: Option<&mut Held>,
) -> Result<Vec<u8>, Refusal> {
    reply::tell_to_continue(session)
        .await
        .map_err(|_| Refusal::RequestTimeout)?;
    session.as_mut().enable_retry_buffering();
    let mut body = Vec::new();
    loop {
        match session.as_mut().read_request_body().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) if body.len() + chunk.len() <= most => {
                let grown = room.as_mut().map_or(Ok(()), |room| room.grow(chunk.len()));
                grown.map_err(|Full| Refusal::Overloaded("api-gateway".into()))?;
                body.extend_from_slice(&chunk);
            }
            Ok(Some(_)) => return Err(Refusal::PayloadTooLarge),
            Err(e) => {
                log::debug!("a body did not arrive: {e}");
                return Err(Refusal::RequestTimeout);
            }
        }
    }
}

// === impl Body ===

impl Body {
    pub fn bytes(&self) -> Bytes {
        self.text.clone()
    }

    /// # Errors
    /// As [`json::read`].
    pub fn document(&mut self, bounds: Bounds) -> &Result<Value, NoDocument> {
        self.document
            .get_or_insert_with(|| json::read(&self.text, bounds))
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            document: None,
        }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.text
    }
}

// === impl Gateway ===

impl Gateway {
    /// A request was admitted: what its backend must not wait for is awaited, which is the end of a handshake, or the body where
    /// a breaker wants a probe that does not depend on how fast a client sends.
    ///
    /// # Errors
    /// When it does not come, or is not what it must be.
    pub async fn await_all_of_it(
        &self,
        session: &mut Session,
        ctx: &Ctx,
        breaker: &Breaker,
    ) -> Result<(), Refusal> {
        if ctx.handshake.is_some() {
            return self.await_upgrade(session);
        }
        if breaker.wants_probes()
            && !ctx.has_all(session)
            && Size::announced(session) == Size::Small
        {
            // Boxed: this is rare, and its future would make that of every request larger.
            Box::pin(read(session, ctx, SMALL)).await?; // 408
        }
        Ok(())
    }

    /// Judges the next piece of a body on its way to the backend.
    ///
    /// # Errors
    /// When nothing more of it may go there.
    pub async fn check_body(
        &self,
        body: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut Ctx,
    ) -> Result<(), Refusal> {
        if let (Some(chunk), Some(route)) = (&body, &ctx.route) {
            ctx.body_seen += chunk.len() as u64;
            route.body.check_seen(ctx.body_seen)?;
        }
        match ctx.hold {
            None => Ok(()),
            Some(_) => Box::pin(self.hold_back(ctx, body, is_end)).await,
        }
    }
}

/// How much of a body there is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    None,
    /// At most [`SMALL`].
    Small,
    /// More, or it does not say.
    Large,
}

impl Size {
    pub fn announced(session: &mut Session) -> Self {
        let fields = &session.req_header().headers;
        let announces =
            fields.contains_key(CONTENT_LENGTH) || fields.contains_key(TRANSFER_ENCODING);
        // HTTP/2 need not announce one.
        if (!announces && session.req_header().version <= Version::HTTP_11)
            || session.as_mut().is_body_empty()
        {
            return Self::None;
        }
        let fields = &session.req_header().headers;
        match content_length(fields) {
            _ if fields.contains_key(TRANSFER_ENCODING) => Self::Large,
            Some(0) => Self::None,
            None => Self::Large, // HTTP/2 needs no announcement
            Some(length) if length <= SMALL as u64 => Self::Small,
            Some(_) => Self::Large,
        }
    }
}
