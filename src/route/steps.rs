//! Where a path names venues: behind a segment that announces one, in what the route leaves open.

use super::parameter_index;
use super::tree::Captures;
use crate::admit::tenancy::{PathVenues, announces_tenant, announces_venue};

/// The segments of a route's path, and of its target where that differs.
pub struct Steps {
    paths: Vec<Vec<Step>>,
}

enum Step {
    /// As the configuration has it: it names nothing, but may announce something.
    Literal(Announced),
    /// A parameter, by its place; its own name may say what it is.
    Parameter(usize, Announced),
    Rest,
}

/// What a segment says that the next one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Nothing,
    Venue,
    Tenant,
}

impl Announced {
    fn by(segment: &str) -> Self {
        match segment {
            segment if announces_venue(segment) => Self::Venue,
            segment if announces_tenant(segment) => Self::Tenant,
            _ => Self::Nothing,
        }
    }
}

// === impl Steps ===

impl Steps {
    pub fn compile(path: &str, target: Option<&str>) -> Self {
        let step = |segment: &str| match segment {
            "*" => Step::Rest,
            parameter if parameter.starts_with('{') => Step::Parameter(
                parameter_index(path, parameter).unwrap_or_default(),
                Announced::by(parameter),
            ),
            literal => Step::Literal(Announced::by(literal)),
        };
        let steps = |path: &str| path.split('/').skip(1).map(step).collect();
        let target = target.filter(|target| *target != path);
        Self {
            paths: std::iter::once(path).chain(target).map(steps).collect(),
        }
    }

    pub fn venues(&self, captures: &Captures<'_>) -> PathVenues {
        let mut found = PathVenues::default();
        for steps in &self.paths {
            let mut walk = Walk {
                found: &mut found,
                announced: Announced::Nothing,
            };
            for step in steps {
                match step {
                    Step::Literal(announced) => walk.pass(*announced),
                    Step::Parameter(place, own) => {
                        if *own != Announced::Nothing {
                            walk.announced = *own;
                        }
                        walk.step(captures.parameter(*place).unwrap_or_default());
                    }
                    Step::Rest => captures
                        .rest
                        .split('/')
                        .for_each(|segment| walk.step(segment)),
                }
            }
            walk.pass(Announced::Nothing);
        }
        found
    }
}

struct Walk<'a> {
    found: &'a mut PathVenues,
    /// By the last segment.
    announced: Announced,
}

impl Walk<'_> {
    /// A segment that the configuration chose, or the end. What was announced is none in particular.
    fn pass(&mut self, announced: Announced) {
        self.found.is_collection |= self.announced == Announced::Venue;
        self.announced = announced;
    }

    /// A segment that the client chose.
    fn step(&mut self, segment: &str) {
        let is_telling = |b: u8| matches!(b, b'v' | b'V' | b't' | b'T' | b'%' | b'(' | b'=' | b':');
        if self.announced == Announced::Nothing && !segment.bytes().any(is_telling) {
            return;
        }
        if segment.is_empty() {
            return;
        }
        match std::mem::replace(&mut self.announced, Announced::by(segment)) {
            Announced::Venue => self.found.venues.push(segment.into()),
            Announced::Tenant => self.found.tenants.push(segment.into()),
            Announced::Nothing if segment.contains(['(', '=', ':', '%']) => {
                self.found.odd.push(segment.into());
            }
            Announced::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    #[track_caller]
    fn venues(path: &str, target: Option<&str>, request: &str) -> String {
        let mut tree: Tree<()> = Tree::default();
        tree.entry(path);
        let (_, captures) = tree.find(request).expect("the request is the route's");
        let found = Steps::compile(path, target).venues(&captures);
        let collection = if found.is_collection { " +" } else { "" };
        found.venues.join(" ") + collection
    }

    #[test]
    fn venues_stand_behind_what_announces_them() {
        for (path, request, expected) in [
            ("/api/v1/venues/*", "/api/v1/venues", " +"),
            ("/api/v1/venues/*", "/api/v1/venues/", " +"),
            ("/api/v1/venues/*", "/api/v1/venues/v1", "v1"),
            ("/api/v1/venues/*", "/api/v1/venues/v1/events/e1", "v1"),
            ("/api/v1/venues/search", "/api/v1/venues/search", " +"),
            ("/x/*", "/x/%2576enues/v1", "v1"),
            ("/api/v1/events/*", "/api/v1/events/e1", ""),
            ("/api/v1/events/*", "/api/v1/events/Venues/v1/x", "v1"),
            ("/api/v1/events/*", "/api/v1/events/e1/venues", " +"),
            ("/x/{venueId}/y", "/x/v1/y", "v1"),
            ("/x/{kind}/{id}", "/x/venues/v1", "v1"),
            ("/x/{kind}/*", "/x/venues/v1", "v1"),
        ] {
            assert_eq!(venues(path, None, request), expected, "{path} {request}");
        }
        assert_eq!(venues("/v/{id}", Some("/venues/{id}"), "/v/v1"), "v1");
        assert_eq!(venues("/mine/*", Some("/venues/*"), "/mine/v1/x"), "v1");
    }
}
