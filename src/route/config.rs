//! A route as YAML writes it. Adding one is a change of the file only.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Serialize};

use super::{METHODS, MethodIndex};
use crate::admit::auth::AuthRule;
use crate::admit::auth::refresh::SessionStep;
use crate::admit::idempotency::IdempotencyRule;
use crate::admit::permissions::Owner;
use crate::admit::schema::ValidationConfig;
use crate::admit::tenancy::VenueRule;
use crate::admit::websocket::{WebSocket, WebSocketConfig};
use crate::config::{self, Bytes, Problems};
use crate::forward::aggregate::AggregateConfig;
use crate::forward::deadline::TimeoutConfig;
use crate::forward::overload::Priority;
use crate::reply::cache::{About, RouteCache, RouteCacheConfig};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Whole segments: `/api/v1/venues/{venue}`, or with everything below: `/api/v1/venues/*`.
    pub path: String,
    /// Hosts that it answers for, `*.example.com` among them; empty: all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Default: those that `permissions` names, else all of them. GET brings HEAD with it.
    #[serde(default)]
    pub methods: Vec<String>,
    pub service: String,
    /// The path at the service, with the parameters of `path`; default: the same.
    #[serde(default)]
    pub target: Option<String>,
    pub auth: AuthRule,
    /// `refresh` or `logout`: what the route does to its caller's tokens.
    #[serde(default)]
    pub session: Option<SessionStep>,
    /// By method, or `*` for the others. Where none is named, a valid caller suffices.
    #[serde(default)]
    pub permissions: BTreeMap<String, String>,
    /// Whose data it is, for `-own` permissions: `service` or `{parameter}`.
    #[serde(default)]
    pub owner: Option<String>,
    /// Only the user whose data it is may, and the role admin; `owner` names the parameter.
    #[serde(default)]
    pub owner_only: bool,
    /// The whole time for an answer.
    #[serde(default)]
    pub timeout: Option<TimeoutConfig>,
    /// For answers that stream: `timeout` counts until their head, and then only the gap between two pieces.
    #[serde(default)]
    pub idle_timeout: Option<config::Duration>,
    /// How much it matters when not everything can be served; default: `high` for webhooks, else `normal`.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// Forward the request untouched, and answer 500 when it cannot be delivered.
    #[serde(default)]
    pub webhook: bool,
    #[serde(default)]
    pub body_limit: Option<Bytes>,
    /// Names of limits; default: the global one.
    #[serde(default)]
    pub limits: Option<Vec<String>>,
    /// Request headers to forward beside the ordinary ones.
    #[serde(default)]
    pub forward_headers: Vec<String>,
    /// Where venues are looked for that are not the caller's.
    #[serde(default)]
    pub venues: VenueRule,
    /// Its writes run once for each Idempotency-Key.
    #[serde(default)]
    pub idempotency: Option<IdempotencyRule>,
    /// WebSockets may begin here.
    #[serde(default)]
    pub websocket: Option<WebSocketConfig>,
    /// Forward `Cookie`.
    #[serde(default)]
    pub cookies: bool,
    /// The answer is made of several services'.
    #[serde(default)]
    pub aggregate: Option<AggregateConfig>,
    /// What requests must look like, by method.
    #[serde(default)]
    pub validate: Option<ValidationConfig>,
    /// Answers to GET and HEAD are kept.
    #[serde(default)]
    pub cache: Option<RouteCacheConfig>,
    /// Tags that a successful write puts out of date; `{x}` stands for a parameter of the path.
    #[serde(default)]
    pub invalidates: Vec<String>,
}

/// Whether a route says whose data it is that nobody else may see.
pub fn check_owner(
    place: &str,
    owner_only: bool,
    owner: &Owner,
    auth: AuthRule,
    problems: &mut Problems,
) {
    let is_known = matches!(owner, Owner::PathParameter(_)) && auth == AuthRule::Token;
    if owner_only && !is_known {
        problems.add(
            format!("{place}.owner_only"),
            "needs `auth: token`, and a parameter as `owner`",
        );
    }
}

/// What the WebSockets of a route may be.
pub fn compile_websocket(
    place: &str,
    websocket: Option<WebSocketConfig>,
    methods: &[MethodIndex],
    webhook: bool,
    problems: &mut Problems,
) -> Option<Box<WebSocket>> {
    let place = format!("{place}.websocket");
    let websocket = websocket?.compile(&place, problems);
    if !methods
        .iter()
        .any(|method| METHODS[method.0] == Method::GET)
    {
        problems.add(
            &*place,
            "a WebSocket begins with a GET, which is none of `methods`",
        );
    }
    if webhook {
        problems.add(&*place, "a webhook is no WebSocket");
    }
    Some(Box::new(websocket))
}

/// What is kept of a route's answers.
pub fn compile_cache(
    place: &str,
    cache: Option<RouteCacheConfig>,
    methods: &[MethodIndex],
    about: &About<'_>,
    problems: &mut Problems,
) -> Option<Box<RouteCache>> {
    let cache = cache?.compile(place, about, problems);
    if !methods
        .iter()
        .any(|method| METHODS[method.0] == Method::GET)
    {
        problems.add(
            format!("{place}.cache"),
            "answers to GET are kept, which is none of `methods`",
        );
    }
    Some(Box::new(cache))
}

/// Whether a route may do this to its caller's tokens.
pub fn check_session(
    place: &str,
    session: Option<SessionStep>,
    auth: AuthRule,
    methods: &[MethodIndex],
    problems: &mut Problems,
) {
    let only_posts = methods
        .iter()
        .all(|method| METHODS[method.0] == Method::POST);
    let fault = match session {
        Some(SessionStep::Refresh) if auth != AuthRule::Public || !only_posts => {
            "`refresh` needs `methods: [POST]` and `auth: public`"
        }
        Some(SessionStep::Logout) if auth != AuthRule::Token => "`logout` needs `auth: token`",
        _ => return,
    };
    problems.add(format!("{place}.session"), fault);
}
