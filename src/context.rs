//! What an earlier phase of a request tells a later one. Each field names the phase that writes it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};
use pingora_proxy::Session;

use crate::admit::auth::Caller;
use crate::admit::auth::refresh::SessionStep;
use crate::admit::cors::Origin;
use crate::admit::idempotency::Run;
use crate::admit::limits::{Standing, Who};
use crate::admit::lookup::Behalf;
use crate::admit::tenancy::{Hold, X_VENUE_ID};
use crate::admit::websocket::Handshake;
use crate::connection::streams::{Place, Watch};
use crate::connection::websocket::Link;
use crate::forward::deadline::Deadline;
use crate::forward::exchange::Exchange;
use crate::inner;
use crate::observe::registry::InProgress;
use crate::observe::trace::Trace;
use crate::ops::Endpoint;
use crate::policies::Policies;
use crate::reply::Refusal;
use crate::reply::cache::Cached;
use crate::route::{MethodIndex, Route};
use crate::state::Family;

/// One request's state.
pub struct Ctx {
    /// When its head had arrived. (new)
    pub start: Instant,
    /// What it is judged by, in all phases. (new)
    pub policies: Arc<Policies>,
    /// It is one of the gateway's own. (early_request_filter)
    pub inner: Option<Box<inner::Origin>>,
    /// (admit)
    pub request_id: HeaderValue,
    /// (admit)
    pub client: IpAddr,
    /// The same as text. (admit)
    pub client_text: HeaderValue,
    /// The client came over TLS, here or at a trusted proxy. (admit)
    pub scheme: &'static str,
    /// Whether the answer must name a page's origin. (admit)
    pub origin: Origin,
    /// (admit)
    pub trace: Option<Trace>,
    /// One of the gateway's own paths was asked for. (admit)
    pub endpoint: Option<Endpoint>,
    /// Several requests in one were asked for. (admit)
    pub is_batch: bool,
    /// (admit)
    pub route: Option<Arc<Route>>,
    /// (admit)
    pub method: Option<MethodIndex>,
    /// The target at the service where it differs from the client's. (admit)
    pub target: Option<String>,
    /// (admit)
    pub caller: Option<Arc<Caller>>,
    /// The holder of the key beside the token. (admit)
    pub beside: Option<Arc<Caller>>,
    /// The venue that the request names first. (admit)
    pub venue: Option<Box<str>>,
    /// The login that this logout ends beside its token's own. (admit)
    pub ends_family: Option<Family>,
    /// What holds the body back until it is judged. (admit)
    pub hold: Option<Box<Hold>>,
    /// The event that a purchase is about. (admit)
    pub event: Option<Box<str>>,
    /// Where the tightest limit stands. (admit)
    pub standing: Option<Standing>,
    /// (admit)
    pub in_progress: Option<InProgress>,
    /// (admit)
    pub deadline: Option<Deadline>,
    /// A write that runs once. (admit)
    pub run: Option<Box<Run>>,
    /// Bytes of the body that have arrived. (request_body_filter)
    pub body_seen: u64,
    /// The dealings with the service. (proxy_upstream_filter)
    pub exchange: Option<Exchange>,
    /// The values of its path's parameters, where the cache's tags or a rule ask for them. (admit)
    pub parameters: Vec<Box<str>>,
    /// What the cache has to do with it. (request_filter)
    pub cached: Option<Box<Cached>>,
    /// The WebSocket that is asked for. (admit)
    pub handshake: Option<Box<Handshake>>,
    /// One of the caller's places for what streams. (admit, or upstream_response_filter)
    pub place: Option<Place>,
    /// The answer streams, and is cut when its caller is revoked. (upstream_response_filter)
    pub watch: Option<Watch>,
    /// The WebSocket that it has become, and when. (upstream_response_filter)
    pub tunnel: Option<(Arc<Link>, Instant)>,
    /// What `fail_to_proxy` tells the client, where a phase knew better than the error does. (any)
    pub refusal: Option<Refusal>,
    /// The status that a refusal stands for whose own is gRPC's. (reply)
    pub refused: Option<StatusCode>,
    /// The stable code of a refusal, for the log. (reply)
    pub code: Option<&'static str>,
}

impl Ctx {
    pub fn new(policies: Arc<Policies>) -> Self {
        Self {
            start: Instant::now(),
            policies,
            inner: None,
            request_id: HeaderValue::from_static(""),
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            client_text: HeaderValue::from_static(""),
            scheme: "http",
            origin: Origin::None,
            trace: None,
            endpoint: None,
            is_batch: false,
            route: None,
            method: None,
            target: None,
            caller: None,
            beside: None,
            venue: None,
            ends_family: None,
            hold: None,
            event: None,
            standing: None,
            in_progress: None,
            deadline: None,
            run: None,
            body_seen: 0,
            exchange: None,
            parameters: Vec::new(),
            cached: None,
            handshake: None,
            place: None,
            watch: None,
            tunnel: None,
            refusal: None,
            refused: None,
            code: None,
        }
    }

    /// The id as text: it is ours or was found to be letters, digits, `.`, `_` and `-`.
    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The venue that the log names: the first in the request, else the caller's usual one.
    pub fn venue<'a>(&'a self, fields: &'a HeaderMap) -> Option<&'a str> {
        let in_field = || fields.get(X_VENUE_ID)?.to_str().ok();
        let usual = || self.caller.as_ref()?.venues.usual.as_deref();
        self.venue.as_deref().or_else(in_field).or_else(usual)
    }

    /// For a piece of the answer to be taken by the client.
    pub fn patience(&self) -> Duration {
        let times = &self.policies.times;
        let left = self.exchange.as_ref().map(Exchange::patience);
        let patience = left.map_or(times.patience, |left| left.min(times.patience));
        let run = self.run.as_ref();
        run.map_or(patience, |run| run.patience(patience))
    }

    /// Its client has its answer already: what it costs was spent.
    pub fn is_behind(&self) -> bool {
        self.cached.as_ref().is_some_and(|cached| cached.is_behind)
    }

    /// Limits that count failures alone do not count what did well.
    pub fn forgive(&self, status: StatusCode) {
        if status.as_u16() < 400
            && let (Some(route), Some(who)) = (&self.route, self.who())
        {
            self.policies.limits.forgive(&route.limits, who);
        }
    }

    /// Whose limits the request meets, once its route is known.
    pub fn who(&self) -> Option<Who<'_>> {
        if self.is_behind() {
            return None;
        }
        Some(Who {
            caller: self.caller.as_deref(),
            client: self.client,
            method: self.method?,
            event: self.event.as_deref(),
        })
    }

    /// Whether nothing is missing of the request. A handshake has no body, although one is awaited.
    pub fn has_all(&self, session: &mut Session) -> bool {
        self.handshake.is_some() || session.as_mut().is_body_done()
    }

    /// What the log and the metrics show.
    pub fn status(&self, session: &Session) -> u16 {
        session
            .response_written()
            .filter(|head| self.tunnel.is_some() || !head.status.is_informational())
            .map(|head| self.refused.unwrap_or(head.status))
            .map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16())
    }

    /// Bytes of bodies, or of frames: from the client, and to it.
    pub fn transferred(&self, session: &Session) -> (usize, usize) {
        match &self.tunnel {
            Some((link, _)) => (link.received() as usize, link.sent() as usize),
            None => (session.body_bytes_read(), session.body_bytes_sent()),
        }
    }

    /// On whose behalf other services are asked.
    ///
    /// # Errors
    /// Before the request has a route, and with that a deadline.
    pub fn behalf(&self) -> Result<Behalf<'_>, Refusal> {
        Ok(Behalf {
            request_id: &self.request_id,
            trace: self.trace.as_ref(),
            deadline: self.deadline.ok_or(Refusal::Internal)?,
        })
    }

    /// What it asks for an aggregate, if it is one of the gateway's own that does.
    pub fn source(&self) -> Option<&str> {
        self.inner.as_ref()?.source.as_deref()
    }

    pub fn is_over_tls(&self) -> bool {
        self.scheme == "https"
    }

    pub fn is_logout(&self) -> bool {
        let route = self.route.as_ref();
        route.is_some_and(|route| route.session == Some(SessionStep::Logout))
    }

    pub fn is_webhook(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.webhook)
    }
}

/// The status that the log and the metrics show when the client did not wait for an answer, as nginx has it.
const CLIENT_CLOSED_REQUEST: u16 = 499;
