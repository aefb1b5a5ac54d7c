//! Does it look as it must? Path, query, header fields and body, by JSON Schema or by an operation of an OpenAPI document.
//!
//! It is asked after the caller's venues and limits, and before anything is sent. A body of up to 64 KiB is read for it; a
//! larger one is held back on its way until it is whole. What is wrong is told at once, as the documented 422, or with
//! `mode: report-only` to the log alone.

mod config;
mod dialect;
mod faults;
mod files;
mod loaded;
mod openapi;
mod reference;
mod rules;
mod shape;
mod source;

use pingora_proxy::Session;

use super::body::{self, Body, Size};
use super::json::Bounds;
use super::tenancy::Hold;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::reply::Refusal;
pub use config::{LimitsConfig, Parts, Subject, ValidationConfig};
pub use dialect::BEFORE;
pub use faults::Faults;
pub use files::Shelf;
pub use rules::{BodyRule, Mode, Rules, Validation};
pub use source::{Parameter, Source};

/// What a request came to.
type Verdict = Result<(), Refusal>;

// === impl Gateway ===

impl Gateway {
    /// `path`: the values of its parameters, as they stand there.
    pub async fn validate(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        rules: &Rules,
        path: &[Box<str>],
        body: &mut Option<Body>,
    ) -> Result<(), Refusal> {
        let request = session.req_header();
        let query = request.uri.query().unwrap_or_default();
        let faults = rules.check_head(path, query, &request.headers);
        let verdict = match &rules.body {
            None => faults.verdict(),
            Some(_) => self.judge_body(session, ctx, rules, faults, body).await?, // 408
        };
        self.settle(ctx, verdict) // 400, 415, 422
    }

    /// `faults`: what was found before it.
    async fn judge_body(
        &self,
        session: &mut Session,
        ctx: &mut Ctx,
        rules: &Rules,
        faults: Faults,
        body: &mut Option<Body>,
    ) -> Result<Verdict, Refusal> {
        let (Some(content), Some(route)) = (&rules.body, ctx.route.clone()) else {
            return Ok(faults.verdict());
        };
        let mode = route.validation.as_ref().map(|validation| validation.mode);
        let size = match body {
            None => Size::announced(session),
            Some(body) if body.is_empty() => Size::None,
            Some(_) => Size::Small,
        };
        if size == Size::None {
            return Ok(content.check_missing(faults, rules.limits));
        }
        let fields = &session.req_header().headers;
        let rule = match content.rule_for(fields, rules.limits, mode.unwrap_or_default()) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(None) => return Ok(faults.verdict()),
            Ok(Some(rule)) => rule,
        };
        if size == Size::Small {
            let body = match body {
                Some(body) => body,
                None => body.insert(body::read(session, ctx, body::SMALL).await?),
            };
            return Ok(rule.check(body, faults));
        }
        if !faults.is_empty() {
            return Ok(faults.verdict()); // it need not send the rest
        }
        match &mut ctx.hold {
            Some(hold) => hold.add_rule(rule),
            None => {
                let room = ctx.policies.tenancy.room_for(ctx.caller.as_deref());
                ctx.hold = Some(Box::new(Hold::for_rule(rule, room)));
            }
        }
        Ok(Ok(()))
    }

    /// Counts what does not look as it must, and lets it go on where the route only reports.
    pub fn settle(&self, ctx: &Ctx, verdict: Verdict) -> Result<(), Refusal> {
        let (Err(refusal), Some(route)) = (verdict, &ctx.route) else {
            return Ok(());
        };
        let Some(validation) = &route.validation else {
            return Err(refusal);
        };
        validation.failures.inc();
        if validation.mode == Mode::Enforce {
            return Err(refusal);
        }
        let parts = refusal.parts();
        self.logger.write(log::Level::Warn, |line| {
            line.text("context", "validation");
            line.text("requestId", ctx.request_id());
            line.text("route", &route.template);
            line.text("code", parts.code);
            match &refusal {
                Refusal::Invalid(faults) => line.list("faults", &faults.places()),
                _ => line.text("fault", &parts.message),
            }
            line.text("msg", "the request does not look as it must, and went on");
        });
        Ok(())
    }
}

// === impl Ctx ===

impl Ctx {
    /// Within which bounds the body is going to be read as JSON, if it is.
    pub fn reads_json(&self) -> Option<Bounds> {
        let validation = self.route.as_ref()?.validation.as_ref()?;
        validation.rules(self.method?)?.document_bounds()
    }
}
