//! What the log and the metrics are told of a request that has ended.

use http::Method;
use pingora::{Error, ErrorSource};
use pingora_proxy::Session;

use super::access_log::Access;
use super::registry::{MethodMetrics, UNMATCHED};
use crate::connection::here;
use crate::context::Ctx;
use crate::forward::batch::Batch;
use crate::forward::verdict;
use crate::gateway::Gateway;
use crate::route::{MethodIndex, target_of};

impl Gateway {
    /// Counts the request and writes its access line.
    pub fn tell(&self, session: &Session, e: Option<&Error>, ctx: &mut Ctx) {
        if ctx.is_behind() {
            // No client's request: the one that it is for was told.
            if let Some(exchange) = &mut ctx.exchange {
                exchange.finish();
            }
            return;
        }
        if ctx.cached.is_some() {
            here::cut().ahead.end();
        }
        let elapsed = ctx.start.elapsed();
        let status = ctx.status(session);
        let (received, sent) = ctx.transferred(session);
        let request = session.req_header();
        let is_source = ctx.source().is_some();
        // What an aggregate asks is no client's request: `aggregate_sources_total` counts it.
        if !is_source {
            let metrics = match &ctx.route {
                Some(route) => route.metrics.method(ctx.method),
                None => self.method_metrics(ctx, &request.method),
            };
            match &ctx.tunnel {
                Some((_, opened)) => metrics.end(status, *opened - ctx.start, 0, 0),
                None => metrics.end(status, elapsed, received, sent),
            }
        }
        ctx.in_progress = None;
        if let Some(exchange) = &mut ctx.exchange {
            exchange.finish();
        }
        if ctx.endpoint.is_some_and(|endpoint| !endpoint.is_logged()) {
            return;
        }
        // The aggregate's line tells of those that did well.
        if is_source && status < 400 && !self.logger.is_debug() {
            return;
        }
        self.logger.access(&Access {
            request_id: ctx.request_id(),
            parent: ctx
                .inner
                .as_ref()
                .and_then(|inner| inner.behind.to_str().ok()),
            source: ctx.source(),
            trace_id: ctx.trace.as_ref().map(|trace| trace.id()),
            method: request.method.as_str(),
            target: target_of(request),
            client: ctx.client_text.to_str().unwrap_or_default(),
            route: ctx
                .route
                .as_ref()
                .map_or_else(|| own_path(ctx), |route| &route.template),
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
            headers: self.logger.is_debug().then_some(&request.headers),
        });
    }

    fn method_metrics<'a>(&'a self, ctx: &'a Ctx, method: &Method) -> &'a MethodMetrics {
        let index = ctx.method.or_else(|| MethodIndex::of(method));
        match (ctx.endpoint, batch_of(ctx)) {
            (Some(endpoint), _) => ctx.policies.ops.route_metrics(endpoint).method(index),
            (None, Some(batch)) => batch.metrics.method(index),
            (None, None) => self.unmatched.method(index),
        }
    }
}

/// What the log calls a path that has no route.
fn own_path(ctx: &Ctx) -> &str {
    match (ctx.endpoint, batch_of(ctx)) {
        (Some(endpoint), _) => endpoint.path(),
        (None, Some(batch)) => batch.path(),
        (None, None) => UNMATCHED,
    }
}

fn batch_of(ctx: &Ctx) -> Option<&Batch> {
    ctx.policies.batch.as_ref().filter(|_| ctx.is_batch)
}
