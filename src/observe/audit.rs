//! Security events, each a line of its own in the documented form: `{level, context: "audit", type: "security", …}`.

use std::net::IpAddr;

use pingora_proxy::Session;

use super::access_log::{Line, Logger};
use crate::admit::auth::Source;
use crate::context::Ctx;
use crate::gateway::Gateway;
use crate::reply::Refusal;
use crate::route::target_of;

/// What happened, and how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub name: &'static str,
    pub severity: &'static str,
}

impl Event {
    /// The event that a refusal is, if it is one.
    pub fn of(refusal: &Refusal) -> Option<Self> {
        let (name, severity) = match refusal {
            Refusal::InvalidToken => ("authentication_failed", "medium"),
            Refusal::AuthRequired | Refusal::TokenExpired => ("authentication_failed", "low"),
            Refusal::Forbidden(_) => ("authorization_failed", "medium"),
            Refusal::RateLimited(exceeded) if exceeded.block_began => ("bot_detected", "high"),
            Refusal::RateLimited(_) => ("rate_limit_exceeded", "medium"),
            Refusal::ForeignVenue {
                source: Source::Jwt,
                ..
            } => ("venue_access_denied", "high"),
            Refusal::ForeignVenue {
                source: Source::ApiKey,
                ..
            } => ("cross_venue_api_access", "critical"),
            Refusal::ForeignTenant(_) => ("cross_tenant_access", "critical"),
            Refusal::Malformed(_)
            | Refusal::BadPath(_)
            | Refusal::BadBody(_)
            | Refusal::AmbiguousVenue(_)
            | Refusal::UnsupportedMediaType => ("malformed_request", "medium"),
            _ => return None,
        };
        Some(Self { name, severity })
    }
}

/// An event, and the request that it happened in.
pub struct Incident<'a> {
    pub event: Event,
    pub request_id: &'a str,
    /// Where somebody was identified.
    pub user: Option<&'a str>,
    pub client: IpAddr,
    pub method: &'a str,
    pub target: &'a str,
    /// Further fields, where they are known.
    pub more: &'a [(&'static str, Option<&'a str>)],
}

impl Logger {
    pub fn audit(&self, incident: &Incident<'_>) {
        let Incident {
            event,
            request_id,
            user,
            client,
            method,
            target,
            more,
        } = incident;
        self.write(log::Level::Warn, |line: &mut Line<'_>| {
            line.text("context", "audit");
            line.text("type", "security");
            line.text("event", event.name);
            line.text("severity", event.severity);
            line.text("requestId", request_id);
            line.optional("userId", *user);
            line.display("ip", client);
            line.text("method", method);
            line.target("url", target);
            for (name, value) in *more {
                line.optional(name, *value);
            }
            line.text("msg", event.name);
        });
    }
}

impl Gateway {
    /// Writes the event that a refusal is, if it is one.
    pub fn audit(&self, session: &Session, ctx: &Ctx, refusal: &Refusal) {
        let Some(event) = Event::of(refusal) else {
            return;
        };
        let (venue, tenant) = match refusal {
            Refusal::ForeignVenue { venue, .. } => (Some(&**venue), None),
            Refusal::ForeignTenant(tenant) => (None, Some(&**tenant)),
            _ => (None, None),
        };
        let own = ctx
            .caller
            .as_ref()
            .and_then(|caller| caller.tenant.to_str().ok());
        let request = session.req_header();
        self.logger.audit(&Incident {
            event,
            request_id: ctx.request_id(),
            user: ctx.caller.as_ref().map(|caller| &*caller.id),
            client: ctx.client,
            method: request.method.as_str(),
            target: target_of(request),
            more: &[
                ("venueId", venue),
                ("tenantId", own.filter(|_| venue.or(tenant).is_some())),
                ("foreignTenantId", tenant),
            ],
        });
    }
}
