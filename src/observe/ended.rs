//! What the log and the metrics are told of a request that has ended.

use http::Method;
use pingora::{Error, ErrorSource};
use pingora_proxy::Session;

use super::access_log::Access;
use super::registry::{MethodMetrics, UNMATCHED};
use crate::context::Ctx;
use crate::forward::verdict;
use crate::gateway::Gateway;
use crate::ops::Endpoint;
use crate::route::{MethodIndex, target_of};

impl Gateway {
    /// Counts the request and writes its access line.
    pub fn tell(&self, session: &Session, e: Option<&Error>, ctx: &mut Ctx) {
        let elapsed = ctx.start.elapsed();
        let status = ctx.status(session);
        let (received, sent) = ctx.transferred(session);
        let request = session.req_header();
        let metrics = match &ctx.route {
            Some(route) => route.metrics.method(ctx.method),
            None => self.method_metrics(ctx, &request.method),
        };
        match &ctx.tunnel {
            Some((_, opened)) => metrics.end(status, *opened - ctx.start, 0, 0),
            None => metrics.end(status, elapsed, received, sent),
        }
        ctx.in_progress = None;
        if let Some(exchange) = &mut ctx.exchange {
            exchange.finish();
        }
        if ctx.endpoint.is_some_and(|endpoint| !endpoint.is_logged()) {
            return;
        }
        self.logger.access(&Access {
            request_id: ctx.request_id(),
            trace_id: ctx.trace.as_ref().map(|trace| trace.id()),
            method: request.method.as_str(),
            target: target_of(request),
            client: ctx.client_text.to_str().unwrap_or_default(),
            route: ctx
                .route
                .as_ref()
                .map_or(ctx.endpoint.map_or(UNMATCHED, Endpoint::path), |route| {
                    &route.template
                }),
            service: ctx.route.as_ref().map(|route| &*route.service.name),
            exchange: ctx.exchange.as_ref(),
            user: ctx.caller.as_ref().map(|caller| &*caller.id),
            tenant: ctx
                .caller
                .as_ref()
                .and_then(|caller| caller.tenant.to_str().ok()),
            venue: ctx.venue(&request.headers),
            status,
            code: ctx.code,
            error: e
                .filter(|e| *e.esource() != ErrorSource::Downstream || ctx.code.is_none())
                .map(verdict::cause),
            elapsed,
            request_bytes: received,
            response_bytes: sent,
            close_code: ctx.tunnel.as_ref().map(|(link, _)| link.close_code()),
            headers: self.logger.logs_headers().then_some(&request.headers),
        });
    }

    fn method_metrics<'a>(&'a self, ctx: &'a Ctx, method: &Method) -> &'a MethodMetrics {
        let index = ctx.method.or_else(|| MethodIndex::of(method));
        match ctx.endpoint {
            Some(endpoint) => ctx.policies.ops.route_metrics(endpoint).method(index),
            None => self.unmatched.method(index),
        }
    }
}
