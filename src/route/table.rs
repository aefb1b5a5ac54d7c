//! From host, path and method to a route.
//!
//! The most specific pattern decides (a literal segment before a parameter before `*`), and it alone: a method that it
//! lacks is a 405, not a reason to look at a wider pattern.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::target::split_source;
use super::tree::{Captures, MOST_PARAMETERS, Tree};
use super::{METHODS, MethodIndex, Parts, Route, RouteConfig};
use crate::admit::tenancy::PathVenues;
use crate::config::Problems;
use http::{HeaderValue, Method};

/// All routes.
#[derive(Default)]
pub struct Table {
    any_host: Tree<Node>,
    hosts: HashMap<String, Tree<Node>, ahash::RandomState>,
    /// By suffix with its dot: `.example.com`.
    wildcards: Vec<(String, Tree<Node>)>,
    /// Each once, for the table that takes this one's place.
    all: Vec<Listed>,
}

/// A route, and what leads to it.
pub struct Listed {
    /// Empty: all.
    pub hosts: Vec<String>,
    pub methods: Vec<MethodIndex>,
    pub route: Arc<Route>,
}

/// The routes of one pattern, by method.
#[derive(Default)]
struct Node {
    by_method: [Option<Entry>; METHODS.len()],
}

#[derive(Clone)]
struct Entry {
    route: Arc<Route>,
    /// Reached by an alias of its path.
    aliased: bool,
}

/// A request's route, and what the path says.
pub struct Found {
    pub route: Arc<Route>,
    pub method: MethodIndex,
    /// The path at the service where it differs from the request's.
    pub target_path: Option<String>,
    pub owner_parameter: Option<Box<str>>,
    pub path_venues: PathVenues,
    /// The values of the path's parameters, where a rule asks for them.
    pub parameters: Vec<Box<str>>,
}

/// No route answers.
#[derive(Debug, PartialEq, Eq)]
pub enum NoRoute {
    Path,
    /// The path has routes, the method none.
    Method {
        allow: HeaderValue,
    },
}

impl Table {
    pub fn compile(
        routes: Vec<RouteConfig>,
        aliases: &BTreeMap<String, String>,
        parts: &Parts<'_>,
        problems: &mut Problems,
    ) -> Self {
        if routes.is_empty() {
            problems.add("routes", "there must be at least one");
        }
        for (alias, path) in aliases {
            if !alias.starts_with('/')
                || !path.starts_with('/')
                || alias.ends_with('/')
                || path.ends_with('/')
            {
                problems.add(
                    format!("aliases.{alias}"),
                    "alias and path begin with a slash and do not end with one",
                );
            }
        }
        let mut table = Self::default();
        for (i, config) in routes.into_iter().enumerate() {
            let place = format!("routes[{i}]");
            let (path, hosts) = (config.path.clone(), config.hosts.clone());
            if let Err(fault) = check_pattern(&path) {
                problems.add(format!("{place}.path"), fault);
                continue;
            }
            let Some((route, methods)) = config.compile(&place, parts, problems) else {
                continue;
            };
            table.all.push(Listed {
                hosts: hosts.clone(),
                methods: methods.clone(),
                route: route.clone(),
            });
            for (pattern, aliased) in spellings(&path, aliases) {
                for node in table.nodes(&hosts, &pattern) {
                    for index in &methods {
                        match &mut node.by_method[index.0] {
                            Some(Entry { route: other, .. }) => problems.add(
                                format!("{place}.path"),
                                format!(
                                    "{} {pattern} is answered by the route `{}` already",
                                    METHODS[index.0], other.template
                                ),
                            ),
                            empty => {
                                *empty = Some(Entry {
                                    route: route.clone(),
                                    aliased,
                                })
                            }
                        }
                    }
                }
            }
        }
        table
            .wildcards
            .sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        table
    }

    /// The places of a pattern, for each of these hosts.
    fn nodes(&mut self, hosts: &[String], pattern: &str) -> Vec<&mut Node> {
        if hosts.is_empty() {
            return vec![self.any_host.entry(pattern)];
        }
        for host in hosts {
            let host = host.to_ascii_lowercase();
            match host.strip_prefix('*') {
                None => drop(self.hosts.entry(host).or_default()),
                Some(suffix) if self.wildcards.iter().any(|(known, _)| known == suffix) => {}
                Some(suffix) => self.wildcards.push((suffix.to_owned(), Tree::default())),
            }
        }
        let wanted = |name: &str| hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
        let exact = self
            .hosts
            .iter_mut()
            .filter(|(name, _)| wanted(name))
            .map(|(_, tree)| tree);
        let wild = self
            .wildcards
            .iter_mut()
            .filter(|(suffix, _)| wanted(&format!("*{suffix}")))
            .map(|(_, tree)| tree);
        exact.chain(wild).map(|tree| tree.entry(pattern)).collect()
    }

    /// Finds the route of a request. `host` is the value of `Host`; `path` is in its one spelling.
    ///
    /// # Errors
    /// When there is none for the path, or none for the method.
    pub fn find(&self, host: &str, method: &Method, path: &str) -> Result<Found, NoRoute> {
        let Some((node, captures)) = self.at(host, path) else {
            return Err(NoRoute::Path);
        };
        let found = MethodIndex::of(method)
            .and_then(|index| Some((index, node.by_method[index.0].as_ref()?)));
        let Some((index, Entry { route, aliased })) = found else {
            return Err(NoRoute::Method {
                allow: node.allow(),
            });
        };
        Ok(Found {
            method: index,
            target_path: route.target.path(*aliased, &captures, path.len()),
            owner_parameter: route.owner_parameter(&captures),
            path_venues: route.path_venues(&captures),
            parameters: route.parameters(index, &captures),
            route: route.clone(),
        })
    }

    /// The route that the file wrote with the same path, hosts and methods. `/path#name`: that of a source of the aggregate
    /// at `/path`.
    pub fn same(&self, path: &str, hosts: &[String], methods: &[MethodIndex]) -> Option<&Route> {
        let (path, source) = split_source(path);
        let mut there = self
            .all
            .iter()
            .filter(|listed| *listed.route.template == *path && listed.hosts == hosts);
        match source {
            None => there
                .find(|listed| listed.methods == methods)
                .map(|listed| &*listed.route),
            Some(name) => there.find_map(|listed| listed.route.aggregate.as_ref()?.source(name)),
        }
    }

    /// Each once, in the order of the file.
    pub fn listed(&self) -> &[Listed] {
        &self.all
    }

    /// Whether some routes are for certain hosts alone.
    pub fn has_hosts(&self) -> bool {
        !self.hosts.is_empty() || !self.wildcards.is_empty()
    }

    /// Whether it is this route that answers.
    pub fn leads_to(
        &self,
        route: &Arc<Route>,
        host: &str,
        method: MethodIndex,
        path: &str,
    ) -> bool {
        let entry = self
            .at(host, path)
            .and_then(|(node, _)| node.by_method[method.0].as_ref());
        entry.is_some_and(|entry| Arc::ptr_eq(&entry.route, route))
    }

    pub fn has_aggregates(&self) -> bool {
        let mut routes = self.all.iter().map(|listed| &listed.route);
        routes.any(|route| route.aggregate.is_some())
    }

    /// Whether a route has this very path, and is for all hosts.
    pub fn has_template(&self, path: &str) -> bool {
        self.all
            .iter()
            .any(|listed| *listed.route.template == *path)
    }

    /// Whether any route keeps answers.
    pub fn has_caches(&self) -> bool {
        self.all.iter().any(|listed| listed.route.keeps_answers())
    }

    /// Whether any method of the path has a route: all that a preflight needs to know.
    pub fn has_path(&self, host: &str, path: &str) -> bool {
        self.at(host, path).is_some()
    }

    fn at<'p>(&self, host: &str, path: &'p str) -> Option<(&Node, Captures<'p>)> {
        if self.has_hosts() {
            let name = host_name(host).to_ascii_lowercase();
            if let Some(found) = self.hosts.get(&name).and_then(|tree| tree.find(path)) {
                return Some(found);
            }
            let mut wild = self
                .wildcards
                .iter()
                .filter(|(suffix, _)| name.ends_with(suffix.as_str()));
            if let Some(found) = wild.find_map(|(_, tree)| tree.find(path)) {
                return Some(found);
            }
        }
        self.any_host.find(path)
    }
}

impl Node {
    fn allow(&self) -> HeaderValue {
        let names: Vec<&str> = METHODS
            .iter()
            .zip(&self.by_method)
            .filter(|(_, e)| e.is_some())
            .map(|(m, _)| m.as_str())
            .collect();
        HeaderValue::from_str(&names.join(", ")).expect("method names are a header value")
    }
}

/// A path and what it is also reached by.
pub fn spellings(path: &str, aliases: &BTreeMap<String, String>) -> Vec<(String, bool)> {
    let mut spellings = vec![(path.to_owned(), false)];
    for (alias, original) in aliases {
        if let Some(rest) = path
            .strip_prefix(original.as_str())
            .filter(|r| r.is_empty() || r.starts_with('/'))
        {
            spellings.push((format!("{alias}{rest}"), true));
        }
    }
    spellings
}

fn check_pattern(path: &str) -> Result<(), String> {
    let body = path.strip_suffix("/*").unwrap_or(path);
    let is_segment = |segment: &str| match segment.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').is_some_and(|name| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        }),
        None => !segment.contains(['{', '}', '*', '?', '#']),
    };
    if !path.starts_with('/') {
        return Err(format!("`{path}` does not begin with a slash"));
    }
    if let Some(bad) = body.split('/').find(|segment| !is_segment(segment)) {
        return Err(format!(
            "`{bad}` is neither a literal segment nor a `{{parameter}}`; `*` stands alone at the end"
        ));
    }
    if body.matches('{').count() > MOST_PARAMETERS {
        return Err(format!(
            "`{path}` has more than {MOST_PARAMETERS} parameters"
        ));
    }
    if !path.contains('{')
        && !body.is_empty()
        && !crate::admit::path::normalize(body).is_ok_and(|normal| normal == body)
    {
        return Err(format!(
            "`{path}` is not in normal form, so no request would match it"
        ));
    }
    Ok(())
}

/// `Host` without its port.
fn host_name(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    // The root's dot is no part of a name (RFC 3986, section 3.2.2).
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests;
