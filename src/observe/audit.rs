//! Security events, each a line of its own in the documented form: `{level, context: "audit", type: "security", …}`.

use std::net::IpAddr;

use super::access_log::{Line, Logger};
use crate::admit::auth::Source;
use crate::reply::Refusal;

/// What happened, and how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    pub name: &'static str,
    pub severity: &'static str,
    /// That was asked for.
    pub venue: Option<&'a str>,
}

impl<'a> Event<'a> {
    /// The event that a refusal is, if it is one.
    pub fn of(refusal: &'a Refusal) -> Option<Self> {
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
        let venue = match refusal {
            Refusal::ForeignVenue { venue, .. } => Some(&**venue),
            _ => None,
        };
        Some(Self {
            name,
            severity,
            venue,
        })
    }
}

impl Logger {
    /// Writes the event. `user` where somebody was identified.
    pub fn audit(
        &self,
        event: Event<'_>,
        request_id: &str,
        user: Option<&str>,
        client: IpAddr,
        method: &str,
        target: &str,
    ) {
        self.write(log::Level::Warn, |line: &mut Line<'_>| {
            line.text("context", "audit");
            line.text("type", "security");
            line.text("event", event.name);
            line.text("severity", event.severity);
            line.text("requestId", request_id);
            if let Some(user) = user {
                line.text("userId", user);
            }
            line.optional("venueId", event.venue);
            line.display("ip", &client);
            line.text("method", method);
            line.target("url", target);
            line.text("msg", event.name);
        });
    }
}
