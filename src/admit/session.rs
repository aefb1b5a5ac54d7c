//! The two routes that are about a caller's tokens themselves: new ones, and none any more. Each leaves an audit line; no
//! token stands in it.

use http::header::USER_AGENT;
use http::{HeaderMap, StatusCode};
use pingora_proxy::Session;

use super::{Admitted, body};
use crate::admit::auth::bearer;
use crate::admit::auth::refresh::{self, Reason, Refresh, Refreshed};
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::observe::audit::{Event, Incident};
use crate::reply::{Answer, Refusal};
use crate::route::target_of;
use crate::state::TokenFacts;

/// Characters of a User-Agent that are logged.
const LONGEST_AGENT: usize = 256;

impl Gateway {
    /// Answers for auth-service: a refresh token for a new pair.
    ///
    /// # Errors
    /// When the address has failed too often, or the body names no token.
    pub(super) async fn refresh(
        &self,
        refresh: &Refresh,
        session: &mut Session,
        ctx: &Ctx,
    ) -> Result<Admitted, Refusal> {
        ctx.policies
            .auth
            .may_fail(ctx.client, ctx.start)
            .inspect_err(|_| self.rate_limited("authentication"))?; // 429
        refresh::check_fields(&session.req_header().headers)?; // 400
        let body = body::read(session, ctx, refresh::LARGEST).await?; // 408, 413
        if let Some(route) = &ctx.route {
            route.body.check_seen(body.len() as u64)?; // 413: it need not announce how long it is
        }
        let token = refresh::token_of(&body)?; // 400
        let Refreshed { holder, outcome } = refresh.refresh(&token).await;
        let reason = outcome.as_ref().err().map(|reason| reason.name());
        let event = match &outcome {
            Ok(_) => ("token_refreshed", "low"),
            Err(Reason::Reused) => ("refresh_token_reused", "critical"),
            Err(_) => ("refresh_failed", "medium"),
        };
        self.audit_tokens(session, ctx, event, holder.as_ref(), reason);
        match outcome {
            Ok(pair) => {
                let pair = serde_json::to_vec(&pair).map_err(|_| Refusal::Internal)?;
                let json = "application/json; charset=utf-8";
                Ok(Admitted::Answered(Answer::new(StatusCode::OK, json, pair)))
            }
            Err(reason) => {
                if reason.is_suspicious() {
                    ctx.policies.auth.failed(ctx.client, ctx.start);
                }
                Ok(Admitted::Refused(reason.into())) // 401, 503
            }
        }
    }

    /// The login that a logout ends by its refresh token: access tokens of auth-service name no family.
    pub(super) fn note_family(&self, body: &[u8], ctx: &mut Ctx) {
        let facts = ctx.caller.as_ref().and_then(|caller| caller.token.as_ref());
        let (Some(refresh), Some(facts)) = (&ctx.policies.auth.refresh, facts) else {
            return;
        };
        if ctx.is_logout()
            && let Ok(token) = refresh::token_of(body)
        {
            ctx.ends_family = refresh.family_of(&token, facts);
        }
    }

    /// auth-service has let the caller go: that takes effect before the client hears of it.
    pub async fn log_out(&self, session: &Session, ctx: &Ctx) {
        let token = token(&session.req_header().headers).map(str::to_owned);
        let (Some(caller), Some(token)) = (ctx.caller.clone(), token) else {
            return;
        };
        let (logout, bearer) = (ctx.policies.auth.logout.clone(), caller.clone());
        let family = ctx.ends_family.clone();
        // By itself: a client that goes away meanwhile does not take it back.
        let revoked = tokio::spawn(async move {
            if let Some(facts) = &bearer.token {
                logout.revoke(&token, facts, family.as_ref()).await;
            }
        });
        if let Err(e) = revoked.await {
            log::error!("a logout was not finished: {e}");
        }
        let event = ("logout", "low");
        self.audit_tokens(session, ctx, event, caller.token.as_ref(), None);
    }

    fn audit_tokens(
        &self,
        session: &Session,
        ctx: &Ctx,
        (name, severity): (&'static str, &'static str),
        holder: Option<&TokenFacts>,
        reason: Option<&str>,
    ) {
        let request = session.req_header();
        let agent = request.headers.get(USER_AGENT).map(|agent| {
            let agent = String::from_utf8_lossy(agent.as_bytes());
            agent.chars().take(LONGEST_AGENT).collect::<String>()
        });
        let family = holder.and_then(|facts| facts.family.as_ref());
        self.logger.audit(&Incident {
            event: Event { name, severity },
            request_id: ctx.request_id(),
            user: holder.map(|facts| &*facts.user),
            client: ctx.client,
            method: request.method.as_str(),
            target: target_of(request),
            more: &[
                ("userAgent", agent.as_deref()),
                ("tenantId", holder.map(|facts| &*facts.tenant)),
                ("family", family.map(|family| family.name())),
                ("reason", reason),
            ],
        });
    }
}

fn token(fields: &HeaderMap) -> Option<&str> {
    std::str::from_utf8(bearer(fields).ok()??).ok()
}
