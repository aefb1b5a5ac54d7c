//! What a reload would change: two configurations side by side, one line a difference. Values are never shown.

use std::fmt;

use serde_yaml::Value;

use super::tree::Tree;

/// What is in force as soon as it is reloaded. Everything else is a part of the process, and needs a new one.
const RELOADED: &[&str] = &[
    "server.trusted_proxies",
    "server.header_timeout",
    "server.keepalive_timeout",
    "server.client_timeout",
    "server.min_body_rate",
    "server.keepalive_drain",
    "server.http2",
    "server.watch",
    "server.public_host",
    "tls",
    "ops.allow",
    "ops.metrics",
    "ops.ready",
    "tracing",
    "sizes",
    "cors",
    "secure_headers",
    "auth",
    "tenancy",
    "roles",
    "limits",
    "validation",
    "idempotency",
    "streams",
    "timeouts",
    "breaker",
    "retry",
    "balance",
    "outlier",
    "health",
    "overload",
    "cache",
    "services",
    "aliases",
    "routes",
    "batch",
    "documentation",
];

/// But not these, which are below one of them.
const NOT_RELOADED: &[&str] = &["limits.max_keys", "cache.memory", "cache.redis"];

/// Neither this, when the first certificate comes or the last one goes: listeners with TLS are bound at the start, and
/// what they show goes with them.
const WITH_LISTENERS: &str = "tls";

/// Mappings from names that the operator chose: an entry comes, goes or changes.
const NAMED: &[&str] = &[
    "roles",
    "limits.rules",
    "services",
    "aliases",
    "auth.api_keys",
];

/// What tells one route from another, wherever they stand in the file.
const OF_A_ROUTE: [&str; 3] = ["path", "hosts", "methods"];

/// What one configuration does otherwise than another.
#[derive(Debug, Default)]
pub struct Diff {
    changes: Vec<Change>,
    /// Keys, from the root.
    needs_restart: Vec<Vec<String>>,
    /// Certificates stand in one of the two alone.
    tls_comes_or_goes: bool,
}

/// One difference.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    place: String,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Added,
    Removed,
    /// In these keys, where it has keys.
    Changed(Vec<String>),
}

impl Diff {
    pub fn between(old: &Tree, new: &Tree) -> Self {
        let mut diff = Self {
            tls_comes_or_goes: has_certificates(&old.0) != has_certificates(&new.0),
            ..Self::default()
        };
        diff.look(&[], Some(&old.0), Some(&new.0));
        diff
    }

    /// One line for each change.
    pub fn changes(&self) -> Vec<String> {
        self.changes.iter().map(Change::to_string).collect()
    }

    /// The keys whose running values stay in force.
    pub fn needs_restart(&self) -> Vec<String> {
        self.needs_restart.iter().map(|key| key.join(".")).collect()
    }

    /// What is in force once `new` was reloaded over `old`.
    pub fn in_force(&self, old: &Tree, mut new: Tree) -> Tree {
        for key in &self.needs_restart {
            let running = key
                .iter()
                .try_fold(&old.0, |place, key| place.get(key.as_str()));
            let (Some((last, parents)), Some(running)) = (key.split_last(), running) else {
                continue;
            };
            let place = parents
                .iter()
                .try_fold(&mut new.0, |place, key| place.get_mut(key.as_str()));
            if let Some(Value::Mapping(place)) = place {
                place.insert(last.as_str().into(), running.clone());
            }
        }
        new
    }

    fn look(&mut self, at: &[&str], old: Option<&Value>, new: Option<&Value>) {
        if old == new {
            return;
        }
        let place = at.join(".");
        match (old, new) {
            (Some(Value::Sequence(old)), Some(Value::Sequence(new))) if place == "routes" => {
                self.look_at_routes(old, new)
            }
            (Some(Value::Mapping(_)), Some(Value::Mapping(_))) => {
                for key in keys(old, new) {
                    let (old, new) = (old.and_then(|v| v.get(&key)), new.and_then(|v| v.get(&key)));
                    match NAMED.contains(&&*place) {
                        true => self.look_at_entry(format!("{place}.{key}"), old, new),
                        false => self.look(&[at, &[&key]].concat(), old, new),
                    }
                }
            }
            _ if self.is_reloaded(&place) => self.changes.push(Change {
                place,
                what: What::Changed(Vec::new()),
            }),
            _ => {
                let key = at.iter().map(|key| (*key).to_owned()).collect();
                self.needs_restart.push(key);
            }
        }
    }

    fn is_reloaded(&self, place: &str) -> bool {
        RELOADED.iter().any(|key| is_below(place, key))
            && !NOT_RELOADED.iter().any(|key| is_below(place, key))
            && !(self.tls_comes_or_goes && is_below(place, WITH_LISTENERS))
    }

    fn look_at_entry(&mut self, place: String, old: Option<&Value>, new: Option<&Value>) {
        let what = match (old, new) {
            (old, new) if old == new => return,
            (None, _) => What::Added,
            (_, None) => What::Removed,
            (old, new) => What::Changed(changed_keys(old, new)),
        };
        self.changes.push(Change { place, what });
    }

    /// Their order says nothing: the most specific path decides.
    fn look_at_routes(&mut self, old: &[Value], new: &[Value]) {
        let same = |a: &Value, b: &Value| OF_A_ROUTE.iter().all(|key| a.get(key) == b.get(key));
        let mut before: Vec<(usize, &Value)> = old.iter().enumerate().collect();
        let mut take = |is_it: &dyn Fn(&Value) -> bool| {
            let place = before.iter().position(|(_, route)| is_it(route))?;
            Some(before.remove(place).1)
        };
        let mut now: Vec<(usize, &Value)> = new.iter().enumerate().collect();
        now.retain(|(_, route)| take(&|other| other == *route).is_none());
        for (i, route) in now {
            let what = match take(&|other| same(other, route)) {
                None => What::Added,
                Some(before) => What::Changed(changed_keys(Some(before), Some(route))),
            };
            self.changes.push(Change::of_route(i, what));
        }
        let gone = before
            .into_iter()
            .map(|(i, _)| Change::of_route(i, What::Removed));
        self.changes.extend(gone);
    }
}

/// One line for each difference; none when there is none.
impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        for key in self.needs_restart() {
            writeln!(f, "{key}: needs a restart")?;
        }
        Ok(())
    }
}

// === impl Change ===

impl Change {
    /// Where it stands in the new file; one that is removed, in the old one.
    fn of_route(i: usize, what: What) -> Self {
        let place = format!("routes[{i}]");
        Self { place, what }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, what } = self;
        match what {
            What::Added => write!(f, "{place}: added"),
            What::Removed => write!(f, "{place}: removed"),
            What::Changed(keys) if keys.is_empty() => write!(f, "{place}: changed"),
            What::Changed(keys) => write!(f, "{place}: changed ({})", keys.join(", ")),
        }
    }
}

/// Whether it is this key, or stands below it.
fn is_below(place: &str, key: &str) -> bool {
    place
        .strip_prefix(key)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn has_certificates(tree: &Value) -> bool {
    let certificates = tree.get("tls").and_then(|tls| tls.get("certificates"));
    certificates
        .and_then(Value::as_sequence)
        .is_some_and(|list| !list.is_empty())
}

fn changed_keys(old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let of = |value: Option<&Value>, key: &str| value.and_then(|value| value.get(key)).cloned();
    let mut keys = keys(old, new);
    keys.retain(|key| of(old, key) != of(new, key));
    keys
}

/// Of both, each once, in the order of the new one.
fn keys(old: Option<&Value>, new: Option<&Value>) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let mappings = [new, old]
        .into_iter()
        .flatten()
        .filter_map(Value::as_mapping);
    for key in mappings.flat_map(|mapping| mapping.keys()) {
        let key = key.as_str().unwrap_or_default();
        if !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, File, REFERENCE, load};
    use super::*;

    fn tree(yaml: &str) -> Tree {
        Tree::of(&serde_yaml::from_str::<File>(yaml).unwrap())
    }

    fn diff(old: &str, new: &str) -> Vec<String> {
        let diff = Diff::between(&tree(old), &tree(new)).to_string();
        diff.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_written_otherwise_and_says_the_same_is_no_change() {
        assert_eq!(diff(REFERENCE, REFERENCE), [""; 0]);
        let explicit =
            "server: { header_timeout: 10s, keepalive_timeout: 1m }\nsizes: { body: 10MiB }";
        assert_eq!(diff("", explicit), [""; 0]);
        let routes =
            "routes: [{path: /a, service: s, auth: public}, {path: /b, service: s, auth: token}]";
        let others = "routes: [{path: /b, service: s, auth: token, methods: []}, {path: /a, service: s, auth: public}]";
        assert_eq!(diff(routes, others), [""; 0], "their order says nothing");
    }

    #[test]
    fn every_difference_is_named_by_its_place_and_no_value_is() {
        let old = "
server: { port: 3000, header_timeout: 10s }
auth: { jwt: { secret: one }, api_keys: { p: { sha256: '00', tenant_id: t, permissions: [] } } }
limits: { max_keys: 1000, rules: { a: { max: 1, window: 1s }, b: { max: 1, window: 1s } } }
services: { x: { url: 'http://a' }, y: { url: 'http://b' } }
routes: [{path: /a, service: x, auth: public}, {path: /gone, service: x, auth: public}]
";
        let new = "
server: { port: 3001, header_timeout: 11s }
redis: { password: hunter2 }
auth: { jwt: { secret: two }, api_keys: { p: { sha256: '01', tenant_id: t, permissions: [] } } }
limits: { max_keys: 2000, rules: { a: { max: 2, window: 1s }, c: { max: 1, window: 1s } } }
services: { x: { url: 'http://c', timeout: 1s }, z: { url: 'http://b' } }
routes: [{path: /new, service: x, auth: public}, {path: /a, service: x, auth: token}]
";
        let mut lines = diff(old, new);
        lines.sort_unstable();
        let expected = [
            "auth.api_keys.p: changed (sha256)",
            "auth.jwt.secret: changed",
            "limits.max_keys: needs a restart",
            "limits.rules.a: changed (max)",
            "limits.rules.b: removed",
            "limits.rules.c: added",
            "redis.password: needs a restart",
            "routes[0]: added",
            "routes[1]: changed (auth)",
            "routes[1]: removed",
            "server.header_timeout: changed",
            "server.port: needs a restart",
            "services.x: changed (url, timeout)",
            "services.y: removed",
            "services.z: added",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_needs_a_restart_is_named_again_until_there_was_one() {
        let (old, new) = (tree(""), tree("server: { port: 1, header_timeout: 1s }"));
        let first = Diff::between(&old, &new);
        let running = first.in_force(&old, new.clone());
        let second = Diff::between(&running, &new);
        assert_eq!(second.to_string(), "server.port: needs a restart\n");
        assert_eq!(
            Diff::between(&running, &old).to_string(),
            "server.header_timeout: changed\n"
        );
    }

    #[test]
    fn every_part_of_the_reference_can_be_compared() {
        let environment = Environment::from_pairs([]);
        let file = load(&super::super::Source::BuiltIn, &environment).unwrap();
        let Tree(Value::Mapping(sections)) = Tree::of(&file) else {
            panic!("a configuration is a mapping");
        };
        let Value::Mapping(reference) = serde_yaml::from_str(REFERENCE).unwrap() else {
            panic!("the reference is a mapping");
        };
        assert_eq!(sections.len(), reference.len());
    }
}
