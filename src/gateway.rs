//! The table of contents: which policy speaks in which phase of a request, and in what order.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, RespCacheable};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, RangeType, Session};
use prometheus::IntCounter;

use crate::admit::Admitted;
use crate::admit::websocket;
use crate::connection::here;
use crate::context::Ctx;
use crate::forward::exchange::{Exchange, NotSent};
use crate::forward::headers;
use crate::forward::overload::Tenant;
use crate::forward::pool::Affinity;
use crate::forward::retry::{Failure, Repeatable};
use crate::forward::verdict::{self, Blame};
use crate::inner::Inner;
use crate::inner::revalidation::Revalidation;
use crate::listen::tls;
use crate::observe::access_log::Logger;
use crate::observe::registry::{Metrics, RouteMetrics};
use crate::policies::InForce;
use crate::reply::{self, Refusal, cache};

/// What the phases work with, beside the policies that [`Ctx`] holds for each request.
pub struct Gateway {
    pub in_force: InForce,
    pub metrics: Arc<Metrics>,
    pub unmatched: Arc<RouteMetrics>,
    /// Requests that became one.
    pub websockets: IntCounter,
    pub logger: Arc<Logger>,
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(here::take_policies().unwrap_or_else(|| self.in_force.load_full()))
    }

    /// No modules: Pingora's compression would only be built to stay off.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        Inner::take_over(session, ctx);
        let times = &ctx.policies.times;
        session.set_read_timeout(Some(times.longest_gap()));
        session.set_write_timeout(Some(times.patience));
        // A client that sends its next request early does not harm this one; `logging` sees to it that the bytes go no
        // further than here.
        session.set_pipelining_enabled(true);
        // What changes something is finished, although its client may have ended its side: a payment on its way is.
        if !session.req_header().method.is_safe() {
            session.set_abort_on_close(false);
        }
        Ok(())
    }

    /// Which requests lead to others shows only later.
    fn allow_spawning_subrequest(&self, _: &Session, ctx: &Ctx) -> bool {
        ctx.policies.has_inner_requests || ctx.policies.caching.is_some()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        if Revalidation::take_over(session, ctx) {
            return Ok(false); // it was admitted with the request that it is for
        }
        match self.admit(session, ctx).await {
            Ok(Admitted::GoOn) => return self.recall(session, ctx).await,
            Ok(Admitted::Answered(answer)) => reply::answer(session, ctx, answer).await?,
            Ok(Admitted::Replayed(answer)) => reply::replay(session, ctx, *answer).await?,
            Ok(Admitted::Refused(refusal)) => reply::refuse(session, ctx, &refusal).await?,
            Ok(Admitted::ClientGone(error)) => return Err(error),
            Ok(Admitted::Preflight) => reply::preflight(session, ctx).await?,
            Err(refusal) => {
                self.audit(session, ctx, &refusal);
                reply::refuse(session, ctx, &refusal).await?;
            }
        }
        Ok(true)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if ctx.tunnel.is_some() {
            return Ok(());
        }
        if let (true, Some(exchange)) = (end_of_stream, &mut ctx.exchange) {
            exchange.sent();
        }
        if let Err(refusal) = self.check_body(body, end_of_stream, ctx).await {
            *body = None; // nothing more reaches the backend
            let status = refusal.parts().status;
            ctx.refusal = Some(refusal);
            return Err(Error::new_down(ErrorType::HTTPStatus(status.as_u16())));
        }
        Ok(())
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        cache::begin(session, ctx);
        Ok(())
    }

    fn cache_key_callback(&self, _: &Session, ctx: &mut Ctx) -> Result<CacheKey> {
        cache::key_of(ctx)
    }

    async fn cache_hit_filter(
        &self,
        _: &mut Session,
        meta: &CacheMeta,
        _: &mut HitHandler,
        _: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<ForcedFreshness>> {
        Ok(cache::judge_found(meta, ctx))
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<RespCacheable> {
        Ok(cache::judge_answer(session, response, ctx))
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        _: &mut Ctx,
    ) -> Result<bool> {
        Ok(cache::is_not_modified(session, response))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _: &mut Ctx,
    ) -> RangeType {
        cache::range(session, response)
    }

    fn should_serve_stale(&self, _: &mut Session, ctx: &mut Ctx, e: Option<&Error>) -> bool {
        cache::stands_in(ctx, e)
    }

    /// May it be sent? Asked here, where a refusal does not cost the client its connection.
    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let (Some(route), Some(method), Some(deadline)) =
            (ctx.route.clone(), ctx.method, ctx.deadline)
        else {
            return Err(verdict::without_a_route());
        };
        let tenant = ctx.caller.as_ref().map(|caller| caller.tenant.as_bytes());
        let tenant = Tenant::named(tenant.unwrap_or_default());
        let breaker = &route.service.breaker;
        if let Err(refusal) = self.await_all_of_it(session, ctx, breaker).await {
            reply::refuse(session, ctx, &refusal).await?;
            return Ok(false);
        }
        if let Some(idle) = route.idle_timeout {
            session.set_read_timeout(Some(idle)); // both sides of what streams may be silent so long
        }
        let whole = ctx.has_all(session);
        let begun = Exchange::begin(session, route, method, tenant, deadline, whole).await;
        let refusal = match begun {
            Ok(mut exchange) => {
                exchange.is_alone = ctx.handshake.is_some();
                ctx.exchange = Some(exchange);
                // One whose body was read for a policy has been told already.
                if !whole {
                    reply::tell_to_continue(session).await?;
                }
                return Ok(true);
            }
            Err(NotSent::ClientGone(error)) => return Err(error),
            Err(NotSent::Refused(_)) if ctx.is_webhook() => Refusal::WebhookFailed,
            Err(NotSent::Refused(refusal)) => refusal,
        };
        if let Some(entry) = cache::stand_in(session, ctx, &refusal) {
            cache::answer(session, ctx, &entry, Some("stale-if-error")).await?;
            return Ok(false);
        }
        reply::refuse(session, ctx, &refusal).await?;
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let Some(exchange) = &mut ctx.exchange else {
            return Err(verdict::without_a_route());
        };
        ctx.body_seen = 0; // a body that is sent again is counted again, and judged again
        if let Some(hold) = &mut ctx.hold {
            hold.begin();
        }
        exchange.pause(session).await?;
        let affinity = Affinity {
            headers: &session.req_header().headers,
            user: ctx.caller.as_ref().map(|caller| &*caller.id),
            client: ctx.client_text.as_bytes(),
        };
        exchange.attempt(&affinity).map_err(|refusal| {
            ctx.refusal = Some(refusal);
            Error::explain(ErrorType::ConnectNoRoute, "no attempt is possible").into_up()
        })
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _: bool,
        _: &HttpPeer,
        socket: RawFd,
        _: Option<&Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let whole = ctx.has_all(session);
        if let Some(exchange) = &mut ctx.exchange {
            exchange.connected(socket, whole);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        cache::asks(session, ctx);
        let (Some(route), Some(deadline)) = (&ctx.route, ctx.deadline) else {
            return Err(verdict::without_a_route());
        };
        let Some(authority) = ctx.exchange.as_ref().and_then(Exchange::authority) else {
            return Err(verdict::without_a_route());
        };
        if let Some(run) = &mut ctx.run {
            run.sends();
        }
        let stamps = headers::Stamps {
            authority,
            request_id: ctx.request_id.clone(),
            client: ctx.client_text.clone(),
            caller: ctx.caller.as_deref(),
            scheme: ctx.scheme,
            client_subject: tls::client_subject(session.digest()),
            trace: ctx.trace.as_ref(),
            deadline,
            takes_trailers: headers::takes_trailers(&session.req_header().headers),
            handshake: ctx.handshake.as_deref(),
        };
        headers::rewrite(request, route, stamps);
        match &ctx.target {
            Some(target) => request.set_raw_path(target.as_bytes()),
            None => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.open_websocket(session, response, ctx);
        }
        if response.status.is_informational() {
            return Ok(());
        }
        cache::note_answer(response, ctx);
        let Some(exchange) = &mut ctx.exchange else {
            return Err(verdict::without_a_route());
        };
        let again = exchange.answered(response.status, verdict::repeatable(session));
        if again || (response.status.is_server_error() && ctx.is_webhook()) {
            // It is not passed on: another attempt follows, or `fail_to_proxy` answers the webhook.
            if let (true, Some(run)) = (again, &mut ctx.run) {
                run.goes_on(response);
            }
            return Err(verdict::not_passed_on(response.status, again));
        }
        // A client that does not take its answer does not keep the backend for longer than one that does.
        session.set_write_timeout(Some(ctx.patience()));
        if let Some(run) = &mut ctx.run {
            Box::pin(run.answered(response)).await;
        }
        if ctx.is_logout() && response.status.is_success() {
            Box::pin(self.log_out(session, ctx)).await;
        }
        self.watch_stream(session, response, ctx)
    }

    fn upstream_response_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let Some(exchange) = ctx.exchange.as_ref().filter(|_| ctx.tunnel.is_none()) else {
            return Ok(None);
        };
        // A body that ends with its connection would look whole.
        if let Some(error) = exchange.cut_short() {
            return Err(error);
        }
        exchange.flows();
        if let Some(run) = &mut ctx.run
            && run.takes(body, is_end)
        {
            exchange.disarm(); // all of it is here
        }
        Ok(None)
    }

    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        _: &mut HeaderMap,
        ctx: &mut Ctx,
    ) -> Result<Option<Bytes>> {
        Ok(ctx.run.as_mut().and_then(|run| run.ends()))
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            self.stamp_websocket(response, ctx);
        }
        if response.status.is_informational() {
            return Ok(());
        }
        if session.is_process_shutting_down() {
            session.set_keepalive(None);
        }
        ctx.forgive(response.status);
        cache::invalidate(session, response, ctx);
        cache::release(session, ctx);
        reply::stamp(response, ctx);
        cache::stamp(session, response, ctx);
        reply::begin_for_http10(session, response).await
    }

    /// Nothing was sent yet: another instance may answer.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        let again = ctx
            .exchange
            .as_mut()
            .is_some_and(|exchange| exchange.failed(Failure::Connect, Repeatable::Always));
        e.set_retry(again);
        e
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        let mut e = e.more_context(format!("instance {}", peer._address));
        let whole = ctx.has_all(session);
        let Some(exchange) = &mut ctx.exchange else {
            return e;
        };
        if *e.esource() == ErrorSource::Upstream && matches!(e.etype(), ErrorType::HTTPStatus(_)) {
            exchange.disarm();
            return e; // `upstream_response_filter` judged it
        }
        if ctx.tunnel.is_some() {
            exchange.abandon();
            e.set_retry(false);
            return e;
        }
        if let Some(end) = exchange.was_ended() {
            let error = exchange.cut_short();
            exchange.abandon();
            let service = ctx.route.as_ref().map_or("", |route| &*route.service.name);
            ctx.refusal = Some(verdict::ended(end, service));
            return error.unwrap_or(e);
        }
        let blame = verdict::blame(&e, session, whole, exchange.was_cut(), client_reused);
        e.set_retry(false);
        match blame {
            Blame::Instance(failure) => {
                if let (Failure::NotProcessed, Some(run)) = (failure, &mut ctx.run) {
                    run.was_not_processed();
                }
                let again = exchange.failed(failure, verdict::repeatable(session));
                e.set_retry(again);
                if failure == Failure::Timeout && !again {
                    ctx.refusal = Some(Refusal::GatewayTimeout);
                }
            }
            Blame::Client => {
                exchange.abandon();
                ctx.refusal = websocket::too_early(session).or(ctx.refusal.take());
                return exchange.client_fault().unwrap_or(e);
            }
            Blame::SlowClient => {
                exchange.abandon();
                ctx.refusal = Some(Refusal::RequestTimeout);
            }
        }
        e
    }

    /// The one way out for what cannot be answered otherwise.
    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let service = ctx.route.as_ref().map_or("", |route| &*route.service.name);
        let refusal = match e.esource() {
            ErrorSource::Upstream if ctx.is_webhook() => Some(Refusal::WebhookFailed),
            _ => ctx.refusal.take().or_else(|| verdict::refusal(e, service)),
        };
        let mut error_code = 0;
        if let Some(refusal) = refusal.filter(|_| {
            let written = session.response_written();
            ctx.tunnel.is_none() && written.is_none_or(|r| r.status.is_informational())
        }) {
            // Pingora closes the connection after this, and the answer must say so.
            session.set_keepalive(None);
            self.audit(session, ctx, &refusal);
            error_code = refusal.parts().status.as_u16();
            if let Err(e) = reply::refuse(session, ctx, &refusal).await {
                log::debug!("the client is gone before its answer: {e}");
            }
        }
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    /// In lines of Pingora's own: a target may hold what is nobody's business.
    fn request_summary(&self, _: &Session, ctx: &Ctx) -> String {
        format!("request {}", ctx.request_id())
    }

    /// Our access line tells it.
    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _: &Session,
        _: &Ctx,
        _: &Error,
        _: ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut Ctx) {
        // Bytes that came behind this request close the connection: the next head must pass `connection` first.
        session.set_pipelining_enabled(false);
        if let Some(run) = ctx.run.take() {
            Box::pin(run.settle(e.is_none())).await;
        }
        self.tell(session, e, ctx);
    }
}
