//! `aggregate` of a route, as YAML writes it.

use std::collections::BTreeMap;

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::shape::Shape;
use super::template::{Names, Template};
use super::{Aggregate, Counters, Source};
use crate::admit::auth::AuthRule;
use crate::admit::permissions::is_permission;
use crate::config::{Bytes, Problems};
use crate::forward::deadline::TimeoutConfig;
use crate::reply::cache::RouteCacheConfig;
use crate::route::{METHODS, MethodIndex, Parts, RouteConfig};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AggregateConfig {
    /// By name: what `data` calls them.
    pub sources: BTreeMap<String, SourceConfig>,
    /// Of one source's answer.
    #[serde(default = "usual_size")]
    pub largest: Bytes,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    pub service: String,
    /// With parameters of the route, of the caller, and of other sources' answers.
    pub path: String,
    /// What who asks for the aggregate must have beside the route's own, or it is not asked.
    #[serde(default)]
    pub permission: Option<String>,
    /// Without it there is no answer.
    #[serde(default)]
    pub required: bool,
    /// What stands for one that is not required and failed.
    #[serde(default)]
    pub fallback: Value,
    /// For this one; default: the route's, and the route's holds for all of them.
    #[serde(default)]
    pub timeout: Option<TimeoutConfig>,
    /// What is kept of its answers; default: as the route says.
    #[serde(default)]
    pub cache: Option<RouteCacheConfig>,
    /// The part of the answer that counts.
    #[serde(default)]
    pub part: Option<String>,
    /// Of that, these members: where they stand in `data`, and where in the answer.
    #[serde(default)]
    pub fields: BTreeMap<String, String>,
}

/// What the sources have from their route.
pub struct OfRoute<'a> {
    pub config: &'a RouteConfig,
    pub methods: &'a [MethodIndex],
}

fn usual_size() -> Bytes {
    Bytes::kib(256)
}

/// A request becomes no more requests than this.
const MOST_SOURCES: usize = 16;

/// The sources' answers are held in memory until they are put together.
const LARGEST: Bytes = Bytes::mib(8);

/// Of one aggregate, and then until its client has taken them.
const MOST_HELD: Bytes = Bytes::mib(64);

impl AggregateConfig {
    pub fn compile(
        self,
        place: &str,
        of: &OfRoute<'_>,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Option<Box<Aggregate>> {
        let faults_before = problems.len();
        let Self { sources, largest } = self;
        of.check(place, problems);
        if sources.is_empty() || sources.len() > MOST_SOURCES {
            problems.add(
                format!("{place}.sources"),
                format!("must be from 1 to {MOST_SOURCES}"),
            );
        }
        if largest == Bytes(0) || largest > LARGEST {
            problems.add(format!("{place}.largest"), "must be from 1B to 8MiB");
        }
        if largest.0.saturating_mul(sources.len() as u64) > MOST_HELD.0 {
            problems.add(
                format!("{place}.largest"),
                "the answers of all sources together are held in memory: at most 64MiB",
            );
        }
        of.check_cache(place, &sources, problems);
        let names: Vec<String> = sources.keys().cloned().collect();
        let mut compiled = Vec::with_capacity(sources.len());
        for (name, source) in sources {
            let place = format!("{place}.sources.{name}");
            if !is_name(&name) {
                problems.add(
                    &*place,
                    "a source's name is letters, digits and `_`, and not `caller`",
                );
            }
            compiled.push(source.compile(&place, &name, &names, of, parts, problems));
        }
        let mut sources: Vec<Source> = compiled.into_iter().collect::<Option<_>>()?;
        let needed: Vec<usize> = sources.iter().flat_map(|s| s.template.needs()).collect();
        for place in needed {
            sources[place].is_needed = true;
        }
        check_order(place, &sources, problems);
        (problems.len() == faults_before).then(|| {
            Box::new(Aggregate {
                sources,
                largest: largest.0 as usize,
            })
        })
    }
}

impl SourceConfig {
    fn compile(
        self,
        place: &str,
        name: &str,
        names: &[String],
        of: &OfRoute<'_>,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Option<Source> {
        let Self {
            service,
            path,
            permission,
            required,
            fallback,
            timeout,
            cache,
            part,
            fields,
        } = self;
        if required && !fallback.is_null() {
            problems.add(
                format!("{place}.fallback"),
                "nothing stands for a source that is required",
            );
        }
        let template = Template::compile(
            &path,
            &Names {
                path: &of.config.path,
                sources: names,
            },
        );
        let template = template
            .map_err(|fault| problems.add(format!("{place}.path"), fault))
            .ok();
        if let Some(fault) = template.as_ref().and_then(|path| of.check_caller(path)) {
            problems.add(format!("{place}.path"), fault);
        }
        let permission = permission.map(|permission| {
            of.check_permission(place, &permission, problems);
            parts.roles.require(&permission)
        });
        let shape = Shape::compile(part.as_deref(), &fields)
            .map_err(|(key, fault)| problems.add(format!("{place}.{key}"), fault))
            .ok();
        let has_own_time = timeout.is_some();
        let route = of.source(name, service, timeout, cache);
        let route = route.compile(place, parts, problems);
        let (template, shape, (route, _)) = (template?, shape?, route?);
        Some(Source {
            name: name.into(),
            budget: has_own_time.then_some(route.timeouts.budget),
            counters: Counters::new(parts.aggregate_sources, &of.config.path, name),
            route,
            template,
            permission,
            required,
            fallback,
            shape,
            is_needed: false, // until all are known
        })
    }
}

// === impl OfRoute ===

impl OfRoute<'_> {
    /// An aggregate is a question, and its answer is made here.
    fn check(&self, place: &str, problems: &mut Problems) {
        let is_read =
            |method: &MethodIndex| matches!(METHODS[method.0], Method::GET | Method::HEAD);
        let config = self.config;
        for (is_fault, key, fault) in [
            (
                !self.methods.iter().all(is_read),
                "methods",
                "an aggregate answers GET alone: say `methods: [GET]`",
            ),
            (
                config.path.ends_with("/*"),
                "path",
                "an aggregate has one path",
            ),
            (
                config.target.is_some(),
                "target",
                "the sources of an aggregate have paths of their own",
            ),
            (config.webhook, "webhook", "a webhook is no aggregate"),
            (
                config.websocket.is_some(),
                "websocket",
                "no WebSocket begins at an aggregate",
            ),
            (
                config.idle_timeout.is_some(),
                "idle_timeout",
                "an aggregate does not stream",
            ),
            (
                config.session.is_some(),
                "session",
                "an aggregate does nothing to tokens",
            ),
        ] {
            if is_fault {
                let route = place.strip_suffix(".aggregate").unwrap_or(place);
                problems.add(format!("{route}.{key}"), fault);
            }
        }
    }

    /// What the route keeps are the answers of sources that say nothing of it.
    fn check_cache(
        &self,
        place: &str,
        sources: &BTreeMap<String, SourceConfig>,
        problems: &mut Problems,
    ) {
        let is_for_some = sources.values().any(|source| source.cache.is_none());
        if self.config.cache.is_some() && !is_for_some {
            let route = place.strip_suffix(".aggregate").unwrap_or(place);
            problems.add(
                format!("{route}.cache"),
                "does nothing: every source has a `cache` of its own, and what is made of them is not kept",
            );
        }
    }

    /// Whether there is somebody whose name can stand in a source's path.
    fn check_caller(&self, path: &Template) -> Option<&'static str> {
        match self.config.auth {
            AuthRule::Public | AuthRule::Ops if path.needs_caller() => {
                Some("there is no `caller` on a route that is public, or for operators")
            }
            // A service would take a key's id for a user's.
            AuthRule::TokenOrKey if path.needs_user() => {
                Some("`{caller.id}` needs `auth: token`: the id of an API key is no user's")
            }
            _ => None,
        }
    }

    fn check_permission(&self, place: &str, permission: &str, problems: &mut Problems) {
        let fault = if !is_permission(permission) || permission.ends_with('*') {
            format!("`{permission}` is not `resource:action`")
        } else if matches!(self.config.auth, AuthRule::Public | AuthRule::Ops) {
            "nobody is identified on a route that is public, or for operators".to_owned()
        } else {
            return;
        };
        problems.add(format!("{place}.permission"), fault);
    }

    /// The route of one source: what its route says of all of them, and nothing that was asked of the aggregate already.
    fn source(
        &self,
        name: &str,
        service: String,
        timeout: Option<TimeoutConfig>,
        cache: Option<RouteCacheConfig>,
    ) -> RouteConfig {
        let of = self.config;
        RouteConfig {
            path: format!("{}#{name}", of.path),
            hosts: of.hosts.clone(),
            methods: vec!["GET".into()],
            service,
            target: None,
            auth: of.auth,
            session: None,
            permissions: BTreeMap::new(),
            owner: None,
            owner_only: false,
            timeout: timeout.or_else(|| of.timeout.clone()),
            idle_timeout: None,
            priority: of.priority,
            webhook: false,
            body_limit: None,
            limits: Some(Vec::new()),
            forward_headers: of.forward_headers.clone(),
            venues: of.venues,
            websocket: None,
            cookies: of.cookies,
            cache: cache.or_else(|| of.cache.clone()),
            invalidates: Vec::new(),
            aggregate: None,
            idempotency: None,
            validate: None,
        }
    }
}

fn is_name(name: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_word) && name != "caller"
}

/// No source may wait for itself, by whatever way.
fn check_order(place: &str, sources: &[Source], problems: &mut Problems) {
    let mut left: Vec<usize> = (0..sources.len()).collect();
    loop {
        let waits = |source: &usize| {
            let mut needs = sources[*source].template.needs();
            needs.any(|needed| left.contains(&needed))
        };
        let waiting: Vec<usize> = left.iter().copied().filter(waits).collect();
        if waiting.len() == left.len() {
            break;
        }
        left = waiting;
    }
    for source in left {
        problems.add(
            format!("{place}.sources.{}.path", sources[source].name),
            "the source waits for itself, or for sources that do",
        );
    }
}

impl Counters {
    fn new(counters: &prometheus::IntCounterVec, path: &str, source: &str) -> Self {
        Self(super::RESULTS.map(|result| counters.with_label_values(&[path, source, result])))
    }
}
