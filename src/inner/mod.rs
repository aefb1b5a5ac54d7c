//! Requests of the gateway's own, for one that a client has made: the sources of an aggregate, the calls of a batch,
//! and what asks anew for an answer that was given stale ([`revalidation`]). They run through all of the phases, as
//! subrequests of Pingora; here is what they bring with them, and how far they were judged already.
//!
//! A [`Inner::Call`] is a client's request in all but its connection: it is judged by every policy, and only where it comes
//! from is known beforehand. A [`Inner::Source`] has its route, and its caller was admitted to the aggregate: it goes on to
//! what forwards it.

pub mod revalidation;
mod run;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;
use pingora_proxy::Session;

use crate::admit::auth::Caller;
use crate::context::Ctx;
use crate::forward::deadline::Deadline;
use crate::observe::trace::Trace;
use crate::policies::Policies;
use crate::route::{MethodIndex, Route};
pub use run::{Bounds, Fault, Prepared, Reply};

/// One of the gateway's own requests, on its way into the phases.
pub enum Inner {
    Call(Box<Call>),
    Source(Box<Source>),
}

/// Judged as if its client had sent it by itself.
pub struct Call {
    pub head: RequestHeader,
    pub behind: Behind,
}

/// Admitted, with the request that it is for.
pub struct Source {
    pub head: RequestHeader,
    pub behind: Behind,
    pub name: Arc<str>,
    pub route: Arc<Route>,
    pub caller: Option<Arc<Caller>>,
    /// The holder of the key beside the token.
    pub beside: Option<Arc<Caller>>,
    /// The values of the parameters of the aggregate's path, where the cache's tags ask for them.
    pub parameters: Vec<Box<str>>,
    pub deadline: Deadline,
}

/// What is known of the request that one of ours is made for.
#[derive(Clone)]
pub struct Behind {
    policies: Arc<Policies>,
    request_id: HeaderValue,
    client: IpAddr,
    client_text: HeaderValue,
    scheme: &'static str,
    trace: Option<Trace>,
    /// When nobody waits for it any more.
    deadline: Deadline,
}

/// What the phases know of a request of ours: it stands in its [`Ctx`].
pub struct Origin {
    /// The id of the request that it is for.
    pub behind: HeaderValue,
    /// When that must be answered.
    pub deadline: Deadline,
    /// The name of the source that it asks.
    pub source: Option<Arc<str>>,
}

/// What a client says about itself: it holds for what is asked on its behalf, too.
static CREDENTIALS: [HeaderName; 5] = [
    HOST,
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    COOKIE,
    USER_AGENT,
];

// === impl Inner ===

impl Inner {
    /// Puts what it brings in the place of what Pingora has copied of the client's request. For all other requests it is one
    /// look at an `Option`.
    pub fn take_over(session: &mut Session, ctx: &mut Ctx) {
        let brought = session
            .subrequest_ctx
            .as_mut()
            .and_then(|inner| inner.user_ctx_mut())
            .and_then(|brought| brought.downcast_mut::<Option<Self>>())
            .and_then(Option::take);
        match brought {
            None => {}
            Some(Self::Call(call)) => {
                let Call { head, behind } = *call;
                *session.req_header_mut() = head;
                behind.stamp(ctx, None);
            }
            Some(Self::Source(source)) => {
                let Source {
                    head,
                    behind,
                    name,
                    route,
                    caller,
                    beside,
                    parameters,
                    deadline,
                } = *source;
                *session.req_header_mut() = head;
                behind.stamp(ctx, Some(name));
                ctx.request_id = behind.request_id;
                ctx.method = Some(MethodIndex::GET);
                ctx.deadline = Some(deadline);
                ctx.route = Some(route);
                ctx.caller = caller;
                ctx.beside = beside;
                ctx.parameters = parameters;
            }
        }
    }
}

// === impl Behind ===

impl Behind {
    pub fn of(ctx: &Ctx, deadline: Deadline) -> Self {
        Self {
            policies: ctx.policies.clone(),
            request_id: ctx.request_id.clone(),
            client: ctx.client,
            client_text: ctx.client_text.clone(),
            scheme: ctx.scheme,
            trace: ctx.trace.clone(),
            deadline,
        }
    }

    fn stamp(&self, ctx: &mut Ctx, source: Option<Arc<str>>) {
        self.introduce(ctx);
        ctx.inner = Some(Box::new(Origin {
            behind: self.request_id.clone(),
            deadline: self.deadline,
            source,
        }));
    }

    /// Says who has sent the request, and by what it is judged: one configuration for all that a request leads to.
    fn introduce(&self, ctx: &mut Ctx) {
        ctx.policies = self.policies.clone();
        ctx.client = self.client;
        ctx.client_text = self.client_text.clone();
        ctx.scheme = self.scheme;
        ctx.trace = self.trace.clone();
    }
}

/// A head as HTTP/1.1 has it on the wire, with its target in this spelling.
pub fn raw(head: &RequestHeader, target: &str) -> Vec<u8> {
    let mut raw = Vec::with_capacity(1024);
    raw.extend_from_slice(head.method.as_str().as_bytes());
    raw.push(b' ');
    raw.extend_from_slice(target.as_bytes());
    raw.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in &head.headers {
        raw.extend_from_slice(name.as_str().as_bytes());
        raw.extend_from_slice(b": ");
        raw.extend_from_slice(value.as_bytes());
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"\r\n");
    raw
}

/// A head with this method and target, and with what the client's own head, `from`, says of who is asking, and of `more`.
pub fn head<'a>(
    from: &RequestHeader,
    method: &Method,
    target: &str,
    more: impl IntoIterator<Item = &'a HeaderName>,
) -> Option<RequestHeader> {
    let mut parts = http::Request::new(()).into_parts().0;
    parts.method = method.clone();
    parts.uri = target.parse().ok()?;
    parts.headers = HeaderMap::with_capacity(16);
    for name in CREDENTIALS.iter().chain(more) {
        for value in from.headers.get_all(name) {
            parts.headers.append(name.clone(), value.clone());
        }
    }
    Some(RequestHeader::from(parts))
}
