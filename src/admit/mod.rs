//! May it go on? What a request must pass before it is sent anywhere, in the order in which it is asked.

pub mod address;
pub mod auth;
pub mod body;
pub mod budget;

pub mod chunks;
pub mod cors;
pub mod head;
pub mod head2;
pub mod idempotency;
pub mod json;
pub mod limits;
pub mod lookup;
pub mod media;
pub mod nominated;

pub mod path;
pub mod permissions;
pub mod request_id;
pub mod schema;
mod session;
pub mod size;
pub mod tenancy;
pub mod websocket;

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderValue, Method};
use pingora_proxy::Session;

use crate::context::Ctx;
use crate::forward::deadline::Deadline;
use crate::gateway::Gateway;
use crate::listen::tls;
use crate::observe::trace::Trace;
use crate::ops::Endpoint;
use crate::policies::Policies;
use crate::reply::{Answer, Refusal};
use crate::route::{Found, MethodIndex, Route, rebuild_target, split_target, target_of};
use auth::refresh::SessionStep;
use auth::{AuthError, AuthRule, Caller, Identified, MissingPermission};
use body::Size;
use cors::Cors;
use limits::event;
use tenancy::VenueRule;

/// What admission came to, when it did not refuse.
pub enum Admitted {
    GoOn,
    /// An answer of our own: nothing is forwarded.
    Answered(Answer),
    /// The answer of an earlier request that was this one.
    Replayed(Box<idempotency::Answer>),
    /// A refusal that the audit log has been told of.
    Refused(Refusal),
    /// Nobody waits for the answer any more.
    ClientGone(Box<pingora::Error>),
    Preflight,
}

// === impl Gateway ===

impl Gateway {
    /// The order is the security model: docs/decisions/0002-policy-order.md.
    pub async fn admit(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Admitted, Refusal> {
        if ctx.source().is_some() {
            return Ok(Admitted::GoOn); // its aggregate was admitted, and has said all that is known
        }
        ctx.request_id = request_id::take(&session.req_header().headers);
        if ctx.inner.is_none() {
            meet(session, ctx);
            nominated::remove(session)?; // 400
        }
        let request = session.req_header();
        let (method, fields) = (&request.method, &request.headers);

        ctx.policies
            .limits
            .check_address(ctx.client)
            .inspect_err(|_| self.rate_limited("address"))?; // 429
        let (path, query) = split_target(target_of(request));
        let path = path::normalize(path)?; // 400
        if let Some(endpoint) = Endpoint::at(&path) {
            return Box::pin(self.answer_endpoint(endpoint, method, ctx)).await;
        }
        let documentation = ctx.policies.documentation.as_ref();
        if documentation.is_some_and(|documentation| documentation.is_at(&path)) {
            return Box::pin(self.show_documentation(&path, request, peer_address(session), ctx))
                .await; // 400, 401, 403, 404, 405, 429, 503
        }
        let foreign = match ctx.policies.cors.check(fields, ctx.scheme) {
            Ok(origin) => {
                ctx.origin = origin;
                None
            }
            // A route may know other origins for its WebSockets.
            Err(foreign) if method == Method::GET && websocket::is_upgrade(fields) => Some(foreign),
            Err(foreign) => return Err(foreign.into()), // 403
        };
        let host = fields
            .get(http::header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        let is_batch = ctx
            .policies
            .batch
            .as_ref()
            .is_some_and(|batch| batch.is_at(&path));
        let has_path = || is_batch || ctx.policies.table.has_path(host, &path);
        if Cors::is_preflight(method, fields) && has_path() {
            return Ok(Admitted::Preflight);
        }
        if is_batch {
            return Box::pin(self.run_batch(session, ctx)).await; // 400, 405, 408, 413, 415
        }
        let Found {
            route,
            method,
            target_path,
            owner_parameter,
            path_venues,
            parameters,
        } = ctx.policies.table.find(host, method, &path)?; // 404, 405
        ctx.in_progress = Some(route.metrics.method(Some(method)).begin());
        let deadline = Deadline::of(fields, ctx.start, route.timeouts.budget)?; // 400
        ctx.deadline = Some(match &ctx.inner {
            Some(inner) => deadline.no_later_than(inner.deadline),
            None => deadline,
        });
        ctx.target = rebuild_target(path, target_path, query);
        ctx.method = Some(method);
        let route = ctx.route.insert(route).clone();
        if ctx.inner.is_some() && !route.may_be_in_a_batch() {
            return Err(Refusal::NotInABatch); // 400
        }
        self.take_handshake(session, ctx, &route, foreign)?; // 400, 403, 426
        let fields = &session.req_header().headers;

        route.body.check_announced(fields)?; // 413
        if !ctx.policies.is_public(route.auth, ctx.client) {
            match ctx
                .policies
                .auth
                .identify(route.auth, fields, ctx.client, ctx.start)
                .await
            {
                Ok(identified) => {
                    let Identified { caller, beside } = identified.of_one_tenant()?; // 403
                    let is_needed =
                        route.auth == AuthRule::Ops || route.permission(method).is_some();
                    ctx.caller = Some(caller.clone());
                    let known = ctx
                        .policies
                        .auth
                        .complete(caller, is_needed, ctx.behalf()?)
                        .await;
                    let caller = match known {
                        Ok(caller) => caller,
                        Err(unknown) => {
                            self.spend(ctx).await?; // 429
                            return Err(unknown.into()); // 401, 503
                        }
                    };
                    ctx.caller = Some(caller.clone());
                    for holder in std::iter::once(&caller).chain(&beside) {
                        ctx.policies.check_permission(
                            &route,
                            method,
                            holder,
                            owner_parameter.as_deref(),
                        )?; // 403
                    }
                    ctx.beside = beside;
                }
                // Nobody was identified: the address pays, and its own limit may answer instead.
                Err(error) => {
                    if matches!(error, AuthError::TooManyFailures(_)) {
                        self.rate_limited("authentication");
                    }
                    self.spend(ctx).await?; // 429
                    return Err(error.into()); // 401, 429
                }
            }
        }
        let is_confined = route.venues != VenueRule::Any && ctx.caller.is_some();
        let named = is_confined.then(|| tenancy::Head::read(session, &route, &path_venues));
        let mut body = None;
        if ctx.who().is_some_and(|who| route.limits_by_event(who)) {
            let read = body.insert(Box::pin(body::read(session, ctx, body::SMALL)).await?); // 408, 413
            ctx.event = Some(event::find(&session.req_header().headers, read)?); // 400
        }
        if ctx.is_logout() && body.is_none() && Size::announced(session) == Size::Small {
            body = Some(Box::pin(body::read(session, ctx, body::SMALL)).await?); // 408
        }
        if let Some(body) = &body {
            self.note_family(body, ctx);
        }
        self.spend(ctx).await?; // 429
        let keyed = self.read_key(session, ctx, &route, &mut body).await?; // 400, 408, 413
        if let Some(named) = named {
            self.keep_to_own_venues(session, ctx, named, &mut body)
                .await?; // 400, 404, 415, 503
        }
        if let Some(rules) = route.rules(method) {
            // Boxed: most routes have none, and must not carry this about.
            let validated = self.validate(session, ctx, rules, &parameters, &mut body);
            Box::pin(validated).await?; // 400, 408, 415, 422
        }
        self.take_place(session, ctx)?; // 429
        if let Some(keyed) = keyed
            && let Some(answer) = Box::pin(self.run_once(session, ctx, keyed)).await?
        // 409, 422, 503
        {
            return Ok(Admitted::Replayed(Box::new(answer)));
        }
        if let Some(aggregate) = &route.aggregate {
            return Box::pin(self.compose(aggregate, &parameters, session, ctx)).await; // 401, 403, 404, 502, 503, 504
        }
        ctx.parameters = parameters;
        match &ctx.policies.auth.refresh {
            Some(refresh) if route.session == Some(SessionStep::Refresh) => {
                Box::pin(self.refresh(refresh, session, ctx)).await // 400, 401, 408, 413, 429, 503
            }
            _ => Ok(Admitted::GoOn),
        }
    }

    async fn spend(&self, ctx: &mut Ctx) -> Result<(), Refusal> {
        let (Some(route), Some(who)) = (&ctx.route, ctx.who()) else {
            return Ok(());
        };
        match ctx
            .policies
            .limits
            .spend(&route.limits, who, ctx.start)
            .await
        {
            Ok(standing) => {
                ctx.standing = standing;
                Ok(())
            }
            Err(exceeded) => {
                self.rate_limited("caller");
                Err(exceeded.into())
            }
        }
    }

    pub fn rate_limited(&self, limit: &str) {
        self.metrics
            .rate_limit_hits
            .with_label_values(&[limit])
            .inc();
    }

    async fn answer_endpoint(
        &self,
        endpoint: Endpoint,
        method: &Method,
        ctx: &mut Ctx,
    ) -> Result<Admitted, Refusal> {
        ctx.endpoint = Some(endpoint);
        ctx.method = MethodIndex::of(method);
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Refusal::MethodNotAllowed(HeaderValue::from_static(
                "GET, HEAD",
            )));
        }
        let in_full = ctx.policies.ops.allows(ctx.client);
        match ctx.policies.ops.answer(endpoint, in_full).await {
            Some(answer) => Ok(Admitted::Answered(answer)),
            None if in_full => Err(Refusal::NotFound),
            None => Err(Refusal::Forbidden("Only for addresses in ops.allow")),
        }
    }
}

// === impl Policies ===

impl Policies {
    fn check_permission(
        &self,
        route: &Route,
        method: MethodIndex,
        caller: &Caller,
        owner_parameter: Option<&str>,
    ) -> Result<(), MissingPermission> {
        match (route.auth, route.permission(method)) {
            (AuthRule::Ops, _) if self.is_admin(caller) => Ok(()),
            (AuthRule::Ops, _) => Err(MissingPermission),
            _ if route.owner_only
                && !self.is_admin(caller)
                && !route.owner.is(caller, owner_parameter) =>
            {
                Err(MissingPermission)
            }
            (_, None) => Ok(()),
            (_, Some(required)) => required.check(caller, &route.owner, owner_parameter),
        }
    }

    fn is_public(&self, rule: AuthRule, client: IpAddr) -> bool {
        match rule {
            AuthRule::Public => true,
            AuthRule::Ops => self.ops.allows(client),
            AuthRule::Token | AuthRule::TokenOrKey => false,
        }
    }

    fn is_admin(&self, caller: &Caller) -> bool {
        caller.role.is_some() && caller.role == self.admin
    }
}

/// Notes who has sent the request, and how.
fn meet(session: &Session, ctx: &mut Ctx) {
    let peer = peer_address(session);
    let fields = &session.req_header().headers;
    ctx.client = ctx.policies.trusted.client_address(peer, fields);
    ctx.client_text = address::text(ctx.client);
    let forwarded = fields.get("x-forwarded-proto");
    ctx.scheme = match forwarded.filter(|_| ctx.client != peer) {
        // A trusted proxy says how its client came to it, whatever it speaks with us.
        Some(proto) if proto.as_bytes().eq_ignore_ascii_case(b"https") => "https",
        Some(_) => "http",
        None if tls::is_tls(session.digest()) => "https",
        None => "http",
    };
    ctx.trace = ctx.policies.tracing.then(|| Trace::of(fields));
}

fn peer_address(session: &Session) -> IpAddr {
    session
        .client_addr()
        .and_then(|address| address.as_inet())
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| {
            address.ip().to_canonical()
        })
}
