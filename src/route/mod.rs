//! Which rules hold for this request? A route is compiled once; a request only follows references.

mod config;
mod steps;
mod table;
mod target;

mod tree;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use pingora::http::RequestHeader;
use prometheus::IntCounterVec;

use crate::admit::auth::AuthRule;
use crate::admit::auth::refresh::SessionStep;
use crate::admit::idempotency::IdempotencyRule;
use crate::admit::limits::{GLOBAL, Limits, MAX_RULES, Rule, Who};
use crate::admit::permissions::{Owner, Required, Roles, is_permission};
use crate::admit::schema::{self, Rules, Subject, Validation};
use crate::admit::size::BodyLimit;
use crate::admit::tenancy::{PathVenues, VenueRule};
use crate::admit::websocket::WebSocket;
use crate::config::Problems;
use crate::forward::aggregate::{Aggregate, OfRoute};
use crate::forward::deadline::Timeouts;
use crate::forward::overload::{Baseline, Priority};
use crate::forward::pool::{Pool, Pools};
use crate::observe::registry::{HttpMetrics, RouteMetrics};
use crate::reply::cache::{About, Classes, RouteCache, Tag, compile_tags, fingerprint};
pub use config::RouteConfig;
use steps::Steps;
pub use table::{Found, Listed, NoRoute, Table, spellings};
use target::Target;
pub use target::{parameter_index, parameter_named};
use tree::Captures;

/// The compiled policies of one route.
pub struct Route {
    /// The path as the configuration has it: what logs and metrics call the route.
    pub template: Box<str>,
    pub service: Arc<Pool>,
    target: Target,
    pub auth: AuthRule,
    /// What it does to its caller's tokens.
    pub session: Option<SessionStep>,
    permissions: [Option<Required>; METHODS.len()],
    pub owner: Owner,
    /// Nobody else may, but for the role admin.
    pub owner_only: bool,
    pub timeouts: Timeouts,
    /// For the gap between two pieces of an answer that streams.
    pub idle_timeout: Option<Duration>,
    pub priority: Priority,
    /// By method.
    pub baselines: Arc<[Baseline; METHODS.len()]>,
    pub webhook: bool,
    /// What its WebSockets may be, if any may begin here.
    pub websocket: Option<Box<WebSocket>>,
    pub body: BodyLimit,
    pub limits: Vec<Arc<Rule>>,
    pub forward_headers: Vec<HeaderName>,
    pub venues: VenueRule,
    /// What its requests must look like.
    pub validation: Option<Box<Validation>>,
    /// Whether its writes run once.
    pub idempotency: Option<IdempotencyRule>,
    venue_steps: Steps,
    /// What is kept of its answers, if anything is.
    pub cache: Option<Box<RouteCache>>,
    /// What its successful writes put out of date.
    pub invalidates: Box<[Tag]>,
    pub metrics: RouteMetrics,
    /// What answers instead of the service.
    pub aggregate: Option<Box<Aggregate>>,
}

/// The methods that routes know, in the order of every per-method table.
pub const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// A method's place in a per-method table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodIndex(pub usize);

/// What routes are compiled against.
pub struct Parts<'a> {
    pub pools: &'a Pools,
    pub roles: &'a Roles,
    pub limits: &'a Limits,
    pub body: BodyLimit,
    pub http: &'a Arc<HttpMetrics>,
    pub aggregate_sources: &'a IntCounterVec,
    pub validation: &'a schema::Parts<'a>,
    pub classes: &'a Classes,
    /// Those in force.
    pub before: Option<&'a Table>,
}

impl MethodIndex {
    pub const GET: Self = Self(0);

    pub fn of(method: &Method) -> Option<Self> {
        METHODS.iter().position(|m| m == method).map(Self)
    }
}

impl RouteConfig {
    /// The route and the methods that it answers, or `None` when a fault was found.
    pub fn compile(
        mut self,
        place: &str,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Option<(Arc<Route>, Vec<MethodIndex>)> {
        let faults_before = problems.len();
        let methods = compile_methods(place, &self.methods, self.permissions.keys(), problems);
        let aggregate = self.aggregate.take().map(|aggregate| {
            let of = OfRoute {
                config: &self,
                methods: &methods,
            };
            let aggregate = aggregate.compile(&format!("{place}.aggregate"), &of, parts, problems);
            self.cache = None; // that is its sources'
            aggregate
        });
        let Self {
            path,
            hosts,
            methods: _, // compiled above
            service,
            target,
            auth,
            session,
            permissions,
            owner,
            owner_only,
            timeout,
            idle_timeout,
            priority,
            webhook,
            body_limit,
            limits,
            forward_headers,
            venues,
            idempotency,
            websocket,
            cookies,
            aggregate: _, // as well
            validate,
            cache,
            invalidates,
        } = self;
        let mut required = [const { None }; METHODS.len()];
        for (method, permission) in &permissions {
            if !is_permission(permission) || permission.ends_with('*') {
                problems.add(
                    format!("{place}.permissions.{method}"),
                    format!("`{permission}` is not `resource:action`"),
                );
            }
            for index in indices_of(method) {
                // `*` comes first in a BTreeMap: what a method names itself comes later and wins.
                required[index.0] = Some(parts.roles.require(permission));
            }
        }
        if auth == AuthRule::Public && !permissions.is_empty() {
            problems.add(
                format!("{place}.permissions"),
                "nobody is identified on a public route",
            );
        }
        let websocket = config::compile_websocket(place, websocket, &methods, webhook, problems);
        config::check_session(place, session, auth, &methods, problems);
        let subject = Subject {
            path: &path,
            methods: &methods,
            session,
        };
        let validation =
            validate.map(|validate| validate.compile(place, &subject, parts.validation, problems));
        let is_other = webhook || session.is_some() || idle_timeout.is_some();
        IdempotencyRule::check(place, idempotency, auth, &methods, is_other, problems);
        let owner = match owner.as_deref() {
            None => Owner::Unknown,
            Some("service") => Owner::Service,
            Some(text) => match parameter_index(&path, text) {
                Some(index) => Owner::PathParameter(index),
                None => {
                    problems.add(
                        format!("{place}.owner"),
                        format!("`{text}` is neither `service` nor a parameter of the path"),
                    );
                    Owner::Unknown
                }
            },
        };
        config::check_owner(place, owner_only, &owner, auth, problems);
        let limits = compile_limits(place, limits, parts.limits, problems);
        let mut headers = Vec::new();
        for (i, name) in forward_headers.iter().enumerate() {
            match HeaderName::try_from(name) {
                Ok(header) if crate::forward::headers::may_be_forwarded(&header) => {
                    headers.push(header)
                }
                Ok(_) => problems.add(
                    format!("{place}.forward_headers[{i}]"),
                    format!("`{name}` is never forwarded"),
                ),
                Err(_) => problems.add(
                    format!("{place}.forward_headers[{i}]"),
                    format!("`{name}` is not a header name"),
                ),
            }
        }
        if cookies {
            headers.push(http::header::COOKIE);
        }
        let pool = parts.pools.get(&service);
        if pool.is_none() {
            problems.add(
                format!("{place}.service"),
                format!("there is no service `{service}`"),
            );
        }
        let target_text = target;
        let target = Target::compile(place, &path, target_text.as_deref(), problems);
        let timeouts = parts.pools.timeouts(place, &service, timeout, problems);
        if idle_timeout.is_some_and(|time| time.0.is_zero()) {
            problems.add(
                format!("{place}.idle_timeout"),
                "must be longer than nothing",
            );
        }
        let identity = (
            &service,
            &target_text,
            &hosts,
            &forward_headers,
            cookies,
            auth,
        );
        let about = About {
            path: &path,
            service: &service,
            identity: fingerprint(&identity),
            classes: parts.classes,
        };
        let cache = config::compile_cache(place, cache, &methods, &about, problems);
        let invalidates = compile_tags(
            &format!("{place}.invalidates"),
            &path,
            invalidates,
            problems,
        );
        if problems.len() > faults_before {
            return None;
        }
        let usual = if webhook {
            Priority::High
        } else {
            Priority::default()
        };
        let venue_steps = Steps::compile(&path, target_text.as_deref());
        let before = parts
            .before
            .and_then(|table| table.same(&path, &hosts, &methods));
        // What its answers take is the same as long as the same service gives them.
        let before = before.filter(|before| *before.service.name == *service);
        let route = Route {
            metrics: parts.http.route(&path),
            template: path.into(),
            service: pool?.clone(),
            target: target?,
            auth,
            session,
            permissions: required,
            owner,
            owner_only,
            timeouts: timeouts?,
            idle_timeout: idle_timeout.map(|time| time.0),
            priority: priority.unwrap_or(usual),
            baselines: before.map_or_else(Arc::default, |before| before.baselines.clone()),
            webhook,
            websocket,
            body: body_limit.map_or(parts.body, |bytes| BodyLimit(bytes.0)),
            limits,
            venues,
            validation,
            idempotency,
            venue_steps,
            forward_headers: headers,
            aggregate: aggregate.flatten(),
            cache,
            invalidates,
        };
        Some((Arc::new(route), methods))
    }
}

fn compile_methods<'a>(
    place: &str,
    named: &[String],
    permissions: impl Iterator<Item = &'a String>,
    problems: &mut Problems,
) -> Vec<MethodIndex> {
    let permissions: Vec<&String> = permissions.collect();
    for (i, method) in named
        .iter()
        .enumerate()
        .filter(|(_, m)| indices_of(m).is_empty() || *m == "*")
    {
        problems.add(
            format!("{place}.methods[{i}]"),
            format!("`{method}` is none of {METHODS:?}"),
        );
    }
    for method in permissions.iter().filter(|m| indices_of(m).is_empty()) {
        problems.add(
            format!("{place}.permissions.{method}"),
            format!("`{method}` is none of {METHODS:?}, nor `*`"),
        );
    }
    let all: Vec<&str> = match (named, &permissions[..]) {
        ([], permissions) if permissions.is_empty() || permissions.iter().any(|m| *m == "*") => {
            vec!["*"]
        }
        ([], permissions) => permissions.iter().map(|m| m.as_str()).collect(),
        (named, _) => named.iter().map(String::as_str).collect(),
    };
    let mut methods: Vec<MethodIndex> = all.into_iter().flat_map(indices_of).collect();
    methods.sort_unstable_by_key(|m| m.0);
    methods.dedup();
    methods
}

/// The table places of a method's name; `*` is every method but OPTIONS, and GET brings HEAD.
fn indices_of(method: &str) -> Vec<MethodIndex> {
    match method {
        "*" => (0..6).map(MethodIndex).collect(),
        "GET" => vec![MethodIndex(0), MethodIndex(1)],
        _ => METHODS
            .iter()
            .position(|m| m.as_str() == method)
            .map(MethodIndex)
            .into_iter()
            .collect(),
    }
}

fn compile_limits(
    place: &str,
    named: Option<Vec<String>>,
    limits: &Limits,
    problems: &mut Problems,
) -> Vec<Arc<Rule>> {
    let named = named.unwrap_or_else(|| vec![GLOBAL.to_owned()]);
    if named.len() > MAX_RULES {
        problems.add(
            format!("{place}.limits"),
            format!("a route has at most {MAX_RULES} limits"),
        );
    }
    let mut rules = Vec::with_capacity(named.len());
    for (i, name) in named.iter().enumerate() {
        match limits.rule(name) {
            Some(rule) => rules.push(rule.clone()),
            None => problems.add(
                format!("{place}.limits[{i}]"),
                format!("there is no limit `{name}`"),
            ),
        }
    }
    rules
}

// === impl Route ===

impl Route {
    /// Whether the request has to say what event it is about.
    pub fn limits_by_event(&self, who: Who<'_>) -> bool {
        self.limits
            .iter()
            .any(|rule| rule.per_event && rule.counts(who))
    }

    pub fn permission(&self, method: MethodIndex) -> Option<&Required> {
        self.permissions[method.0].as_ref()
    }

    pub fn rules(&self, method: MethodIndex) -> Option<&Rules> {
        self.validation
            .as_ref()?
            .rules(method)
            .map(|rules| &**rules)
    }

    /// What the request's path says about venues; nothing where nobody asks.
    fn path_venues(&self, captures: &Captures<'_>) -> PathVenues {
        match self.venues {
            VenueRule::Any => PathVenues::default(),
            VenueRule::Everywhere | VenueRule::Head => self.venue_steps.venues(captures),
        }
    }

    /// The values of the path's parameters, where somebody asks for them: an aggregate's sources, the method's rules, or the
    /// cache's tags.
    fn parameters(&self, method: MethodIndex, captures: &Captures<'_>) -> Vec<Box<str>> {
        let judges = || self.rules(method).is_some_and(Rules::asks_for_path);
        let names = || self.tags(method).iter().any(Tag::asks_for_path);
        if self.aggregate.is_none() && !judges() && !names() {
            return Vec::new();
        }
        captures.parameters().map(Into::into).collect()
    }

    /// Of what is kept of its answers, or of what its writes put out of date.
    fn tags(&self, method: MethodIndex) -> &[Tag] {
        match METHODS[method.0].is_safe() {
            true => self.cache.as_ref().map_or(&[], |cache| cache.tags()),
            false => &self.invalidates,
        }
    }

    /// Whether anything is kept of its answers, or of those that they are made of.
    pub fn keeps_answers(&self) -> bool {
        let aggregate = self.aggregate.as_deref();
        self.cache.is_some() || aggregate.is_some_and(Aggregate::keeps_answers)
    }

    /// Whether it may be one of several requests in one.
    pub fn may_be_in_a_batch(&self) -> bool {
        !self.webhook && self.idle_timeout.is_none()
    }

    fn owner_parameter(&self, captures: &Captures<'_>) -> Option<Box<str>> {
        match &self.owner {
            Owner::PathParameter(index) => captures.parameter(*index).map(Into::into),
            Owner::Unknown | Owner::Service => None,
        }
    }
}

/// A request's target, path and query.
pub fn target_of(request: &RequestHeader) -> &str {
    request
        .uri
        .path_and_query()
        .map_or("", |target| target.as_str())
}

/// The parts of a request's target, in their one spelling.
pub fn split_target(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}

/// Whether the target must be written anew, and how.
pub fn rebuild_target(
    path: Cow<'_, str>,
    target_path: Option<String>,
    query: Option<&str>,
) -> Option<String> {
    let path = match (target_path, path) {
        (Some(target), _) => target,
        (None, Cow::Owned(normal)) => normal,
        (None, Cow::Borrowed(_)) => return None,
    };
    Some(match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    })
}
