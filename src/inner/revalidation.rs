//! A stale answer was given, and is asked for anew behind its client's back: a request of the gateway's own, for the caller
//! and the route that were admitted with the one that it is for. Nobody is asked anew, and nothing is spent.

use std::sync::Arc;
use std::time::Instant;

use pingora::http::RequestHeader;
use pingora_proxy::Session;
use pingora_proxy::subrequest::Ctx as SubrequestCtx;

use super::{Behind, Prepared};
use crate::admit::auth::Caller;
use crate::context::Ctx;
use crate::forward::deadline::Deadline;
use crate::reply::cache::Cached;
use crate::route::{MethodIndex, Route};

/// What such a request brings with it.
pub struct Revalidation {
    head: RequestHeader,
    behind: Behind,
    route: Arc<Route>,
    target: Option<String>,
    caller: Option<Arc<Caller>>,
    beside: Option<Arc<Caller>>,
    cached: Box<Cached>,
}

impl Revalidation {
    /// Asks anew for what a request was answered with. `cached`: what it wants of the cache.
    pub fn begin(session: &Session, ctx: &Ctx, cached: Box<Cached>) {
        let (Some(route), Some(spawner)) = (&ctx.route, &session.subrequest_spawner) else {
            return;
        };
        // The client's own patience was for its answer, which it has.
        let deadline = Deadline::at_most(Instant::now() + route.timeouts.budget);
        let revalidation = Self {
            head: session.req_header().clone(),
            behind: Behind::of(ctx, deadline),
            route: route.clone(),
            target: ctx.target.clone(),
            caller: ctx.caller.clone(),
            beside: ctx.beside.clone(),
            cached,
        };
        let brought = SubrequestCtx::builder().user_ctx(Box::new(Some(revalidation)));
        let (request, handle) = spawner.create_subrequest(session.as_downstream(), brought.build());
        tokio::spawn(Prepared::of_its_own(request, handle).run_unheard(deadline.at()));
    }

    /// Puts what it brings where the phases look for it. `false`: the request is none of these.
    pub fn take_over(session: &mut Session, ctx: &mut Ctx) -> bool {
        let brought = session
            .subrequest_ctx
            .as_mut()
            .and_then(|inner| inner.user_ctx_mut())
            .and_then(|brought| brought.downcast_mut::<Option<Self>>())
            .and_then(Option::take);
        let Some(brought) = brought else {
            return false;
        };
        let Self {
            head,
            behind,
            route,
            target,
            caller,
            beside,
            cached,
        } = brought;
        *session.req_header_mut() = head;
        behind.introduce(ctx);
        ctx.request_id = behind.request_id;
        ctx.deadline = Some(behind.deadline);
        ctx.method = Some(MethodIndex::GET);
        ctx.route = Some(route);
        ctx.target = target;
        ctx.caller = caller;
        ctx.beside = beside;
        ctx.cached = Some(cached);
        true
    }
}
