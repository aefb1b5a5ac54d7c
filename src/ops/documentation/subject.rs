//! What an operation of the document stands for, and what is known of it.

use std::time::Duration;

use crate::admit::auth::AuthRule;
use crate::admit::auth::refresh::{self, SessionStep};
use crate::admit::body::SMALL;
use crate::admit::idempotency::IdempotencyRule;
use crate::admit::limits::Rule;
use crate::admit::schema::{Mode, Rules};
use crate::admit::tenancy::VenueRule;
use crate::admit::websocket::WebSocket;
use crate::forward::aggregate::Aggregate;
use crate::forward::batch::Batch;
use crate::reply::cache::RouteCache;
use crate::route::{METHODS, MethodIndex, Route};

/// An operation, with what the configuration says of all.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub what: What<'a>,
    pub method: MethodIndex,
    pub policies: All,
    /// It is for addresses in `ops.allow`.
    pub is_near: bool,
}

#[derive(Clone, Copy)]
pub enum What<'a> {
    Route(&'a Route),
    Batch(&'a Batching),
}

/// How many calls a batch may have, how many bytes, and how much time.
#[derive(Clone, Copy)]
pub struct Batching {
    pub most: usize,
    body: usize,
    timeout: Duration,
}

/// What holds for all operations.
#[derive(Clone, Copy)]
pub struct All {
    pub has_limits: bool,
    /// POST /auth/refresh is answered here.
    pub refreshes: bool,
}

// === impl Batching ===

impl Batching {
    pub fn of(batch: &Batch) -> Self {
        Self {
            most: batch.most,
            body: batch.body,
            timeout: batch.timeout,
        }
    }
}

// === impl Subject ===

impl<'a> Subject<'a> {
    pub fn route(&self) -> Option<&'a Route> {
        match self.what {
            What::Route(route) => Some(route),
            What::Batch(_) => None,
        }
    }

    pub fn batch(&self) -> Option<&'a Batching> {
        match self.what {
            What::Route(_) => None,
            What::Batch(batch) => Some(batch),
        }
    }

    pub fn is_batch(&self) -> bool {
        self.batch().is_some()
    }

    /// Each call of a batch is asked for itself.
    pub fn auth(&self) -> AuthRule {
        self.route().map_or(AuthRule::Public, |route| route.auth)
    }

    pub fn is_safe(&self) -> bool {
        METHODS[self.method.0].is_safe()
    }

    /// Requests come with content, as a rule, or their content has rules.
    pub fn has_body(&self) -> bool {
        let has_rules = self.rules().is_some_and(|rules| rules.bodies().is_some());
        has_rules || matches!(METHODS[self.method.0].as_str(), "POST" | "PUT" | "PATCH")
    }

    pub fn is_webhook(&self) -> bool {
        self.route().is_some_and(|route| route.webhook)
    }

    pub fn session(&self) -> Option<SessionStep> {
        self.route()?.session
    }

    /// The gateway answers for auth-service.
    pub fn refreshes(&self) -> bool {
        self.policies.refreshes && self.session() == Some(SessionStep::Refresh)
    }

    /// A service answers.
    pub fn is_forwarded(&self) -> bool {
        let is_route = self.route().is_some();
        is_route && self.aggregate().is_none() && !self.refreshes()
    }

    pub fn aggregate(&self) -> Option<&'a Aggregate> {
        self.route()?.aggregate.as_deref()
    }

    pub fn idempotency(&self) -> Option<IdempotencyRule> {
        self.route()?.idempotency.filter(|_| !self.is_safe())
    }

    pub fn websocket(&self) -> Option<&'a WebSocket> {
        let is_get = self.method == MethodIndex::GET;
        self.route()?.websocket.as_deref().filter(|_| is_get)
    }

    pub fn cache(&self) -> Option<&'a RouteCache> {
        let is_read = METHODS[self.method.0].is_safe();
        self.route()?.cache.as_deref().filter(|_| is_read)
    }

    /// The limits that count it.
    pub fn limits(&self) -> impl Iterator<Item = &'a Rule> {
        let method = self.method.0;
        let rules = self.route().filter(|_| self.policies.has_limits);
        let rules = rules.into_iter().flat_map(|route| &route.limits);
        rules
            .map(|rule| &**rule)
            .filter(move |rule| rule.methods[method])
    }

    pub fn is_limited(&self) -> bool {
        self.limits().next().is_some()
    }

    /// Venues that are not the caller's are not found.
    pub fn is_confined(&self) -> bool {
        let venues = self.route().map_or(VenueRule::Any, |route| route.venues);
        venues != VenueRule::Any && self.auth() != AuthRule::Public
    }

    /// Its body is read before it goes on, and must be readable.
    pub fn is_read(&self) -> bool {
        let everywhere = |route: &Route| route.venues == VenueRule::Everywhere;
        let is_judged = self.rules().is_some_and(|rules| rules.bodies().is_some());
        (self.is_confined() && self.route().is_some_and(everywhere))
            || (self.is_validated() && is_judged)
    }

    pub fn rules(&self) -> Option<&'a Rules> {
        self.route()?.rules(self.method)
    }

    /// It must look as its schemas have it.
    pub fn is_validated(&self) -> bool {
        self.rules().is_some() && self.mode() == Some(Mode::Enforce)
    }

    pub fn mode(&self) -> Option<Mode> {
        Some(self.route()?.validation.as_ref()?.mode)
    }

    /// Of a body, in bytes: what is read before it goes on must fit in there.
    pub fn largest_body(&self) -> u64 {
        let most = match self.what {
            What::Route(route) => route.body.0,
            What::Batch(batch) => batch.body as u64,
        };
        let is_keyed = self.idempotency() == Some(IdempotencyRule::Required);
        let read = match self.refreshes() {
            true => refresh::LARGEST,
            false if is_keyed || self.is_by_event() => SMALL,
            false => return most,
        };
        most.min(read as u64)
    }

    /// Of one with an `Idempotency-Key`, where that makes a difference.
    pub fn largest_keyed_body(&self) -> Option<u64> {
        self.idempotency()?;
        Some(SMALL as u64).filter(|keyed| *keyed < self.largest_body())
    }

    /// Whom it counts for stands in its body.
    fn is_by_event(&self) -> bool {
        let rules = self.route().into_iter().flat_map(|route| &route.limits);
        let method = self.method.0;
        rules
            .into_iter()
            .any(|rule| rule.per_event && rule.methods[method])
    }

    /// For the whole answer.
    pub fn budget(&self) -> Duration {
        match self.what {
            What::Route(route) => route.timeouts.budget,
            What::Batch(batch) => batch.timeout,
        }
    }
}
