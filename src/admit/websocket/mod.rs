//! May this request become a WebSocket, and has its backend agreed to that? (RFC 6455)
//!
//! Only on a route that says so, and after every policy that a GET meets. Elsewhere an `Upgrade` is not forwarded, and a
//! 101 is no answer. What passes afterwards is the matter of `connection::websocket`.

mod config;
mod handshake;

use std::time::Instant;

use http::header::{AUTHORIZATION, CONNECTION, ORIGIN, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType};
use pingora_proxy::Session;

use super::cors::{Cors, OriginNotAllowed};
use super::request_id::X_REQUEST_ID;
use crate::connection::streams::{Holder, Kind, asks_for_events, kind_of};
use crate::connection::{link_of, websocket::Terms};
use crate::context::Ctx;
use crate::forward::retry::Repeatable;
use crate::gateway::Gateway;
use crate::reply::{self, Refusal};
use crate::route::Route;
pub use config::{WebSocket, WebSocketConfig};
pub use handshake::Handshake;

/// Whether another protocol is asked for: then the origins of the route decide.
pub fn is_upgrade(fields: &HeaderMap) -> bool {
    fields.contains_key(UPGRADE)
}

/// What a client is told that sent frames before its handshake was answered.
pub fn too_early(session: &Session) -> Option<Refusal> {
    let link = link_of(session.as_ref()).filter(|link| link.is_early())?;
    link.is_asked().then_some(Refusal::Malformed(
        "frames came before the handshake was answered",
    ))
}

impl Gateway {
    /// Takes up a request that asks for another protocol, where its route has one.
    ///
    /// A token among its protocols is put where every other request has it; nobody else learns of it.
    ///
    /// # Errors
    /// When its page may not ask that, or it is not the handshake of a WebSocket.
    pub(super) fn take_handshake(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        route: &Route,
        foreign: Option<OriginNotAllowed>,
    ) -> Result<(), Refusal> {
        let request = session.req_header();
        let asked = route
            .websocket
            .as_deref()
            .filter(|_| is_upgrade(&request.headers));
        let Some(websocket) = asked else {
            return foreign.map_or(Ok(()), |foreign| Err(foreign.into()));
        };
        websocket.check_origin(request.headers.get_all(ORIGIN), foreign)?; // 403
        let (handshake, token) = Handshake::read(request, websocket)?; // 400, 426
        ctx.handshake = Some(Box::new(handshake));
        let request = session.as_downstream_mut().req_header_mut();
        request.remove_header(&SEC_WEBSOCKET_PROTOCOL);
        if let Some(token) = token {
            // It was found to be one header value.
            let _ = request.insert_header(AUTHORIZATION, token);
        }
        Ok(())
    }

    /// The request goes to a backend, and its answer is awaited.
    ///
    /// # Errors
    /// When more than the handshake has come already.
    pub fn await_upgrade(&self, session: &mut Session) -> Result<(), Refusal> {
        // Over HTTP/2 there is no Upgrade.
        let link = link_of(session.as_ref()).ok_or(Refusal::Internal)?;
        link.ask(session);
        too_early(session).map_or(Ok(()), |refusal| {
            link.decline();
            Err(refusal)
        })
    }

    /// A caller that asks for what streams needs a place for it.
    ///
    /// # Errors
    /// When it has none left.
    pub(super) fn take_place(&self, session: &Session, ctx: &mut Ctx) -> Result<(), Refusal> {
        if ctx.handshake.is_some() || asks_for_events(&session.req_header().headers) {
            self.enter(ctx)?;
        }
        Ok(())
    }

    fn enter(&self, ctx: &mut Ctx) -> Result<(), Refusal> {
        let holder = Holder::of(ctx.caller.as_deref(), ctx.client);
        let place = ctx.policies.auth.streams.take_place(holder);
        ctx.place = Some(place.inspect_err(|_| self.rate_limited("streams"))?);
        Ok(())
    }

    /// The head of an answer has come: if it streams, it has a place and is cut when its caller may no longer have it.
    ///
    /// # Errors
    /// When the caller has no place left.
    pub fn watch_stream(
        &self,
        session: &Session,
        answer: &ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        if let Some(link) = link_of(session.as_ref()) {
            link.decline();
        }
        let Some(kind) = ctx
            .route
            .as_ref()
            .and_then(|route| kind_of(route.idle_timeout, &answer.headers))
        else {
            ctx.place = None;
            // It comes to its end, and so must its client. On HTTP/2 each stream bounds its own waits.
            let has_connection = session.as_ref().stream().is_some();
            if let Some(exchange) = ctx.exchange.as_ref().filter(|_| has_connection) {
                exchange.cut().watch_client(Instant::now());
            }
            return Ok(());
        };
        if kind == Kind::Events
            && ctx.place.is_none()
            && let Err(refusal) = self.enter(ctx)
        {
            ctx.refusal = Some(refusal);
            return Err(Error::explain(ErrorType::InternalError, "too many streams"));
        }
        self.watch(kind, session, answer, ctx);
        Ok(())
    }

    fn watch(&self, kind: Kind, session: &Session, answer: &ResponseHeader, ctx: &mut Ctx) {
        let Some(exchange) = &ctx.exchange else {
            return;
        };
        let (caller, beside) = (ctx.caller.as_ref(), ctx.beside.as_ref());
        let fields = &session.req_header().headers;
        let credentials = ctx.policies.auth.credentials(fields, caller, beside);
        let streams = &ctx.policies.auth.streams;
        ctx.watch = Some(streams.watch(kind, credentials, &answer.headers, exchange.cut()));
    }

    /// The backend has answered with 101.
    ///
    /// # Errors
    /// When nobody asked for that, or it agrees to something else than was asked for.
    pub fn open_websocket(
        &self,
        session: &mut Session,
        answer: &ResponseHeader,
        ctx: &mut Ctx,
    ) -> pingora::Result<()> {
        let refused = |why| Error::explain(ErrorType::InvalidHTTPHeader, why).into_up();
        let link = link_of(session.as_ref());
        let (Some(handshake), Some(link), Some(route), Some(exchange)) =
            (&ctx.handshake, link, &ctx.route, &mut ctx.exchange)
        else {
            // A tunnel would carry requests that no policy sees.
            return Err(refused("101 was not asked for"));
        };
        let Some(websocket) = route.websocket.as_deref() else {
            return Err(refused("101 was not asked for"));
        };
        let agreed = handshake.check_answer(answer).map_err(refused)?;
        if link.is_early() {
            ctx.refusal = Some(Refusal::Malformed(
                "frames came before the handshake was answered",
            ));
            return Err(Error::new_down(ErrorType::InvalidHTTPHeader));
        }
        exchange.answered(StatusCode::SWITCHING_PROTOCOLS, Repeatable::Never);
        exchange.upgraded(websocket.idle_timeout);
        let terms = Terms {
            deflate: agreed.deflate,
            max_frame: websocket.max_frame,
            idle: websocket.idle_timeout,
            cut: exchange.cut().clone(),
        };
        // From here on its own time counts.
        session.set_read_timeout(None);
        session.set_write_timeout(None);
        self.watch(Kind::WebSocket, session, answer, ctx);
        self.websockets.inc();
        link.open(terms);
        ctx.tunnel = Some((link, Instant::now()));
        Ok(())
    }

    /// The 101 for the client.
    pub fn stamp_websocket(&self, answer: &mut ResponseHeader, ctx: &Ctx) {
        let Some(handshake) = &ctx.handshake else {
            return;
        };
        reply::rewrite(answer, |fields| {
            reply::scrub(fields);
            handshake.stamp_answer(fields);
            fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
            fields.insert(X_REQUEST_ID, ctx.request_id.clone());
            if let Some(standing) = &ctx.standing {
                standing.stamp(fields);
            }
            Cors::stamp(&ctx.origin, fields);
        });
    }
}
