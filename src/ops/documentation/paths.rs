//! How OpenAPI spells the paths of routes.
//!
//! It has no word for `/*`: what stands there is the parameter `rest`, in which slashes may be. Two paths that differ only
//! in the names of their parameters are one to OpenAPI; so `/venues/*` beside `/venues/{venue}` is
//! `/venues/{segment}/{rest}`, which is what it answers then. What is not in a document has no part in how it spells the rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::route::{Listed, Table};

/// What of a pattern's paths is its route's own.
#[derive(Debug)]
pub struct Reach {
    /// The pattern, without `/*`.
    base: Box<str>,
    /// What is below it, behind at least so many segments; `None`: itself.
    below: Option<usize>,
    /// A path that it answers: nobody has a literal segment of this name.
    pub probe: Box<str>,
}

/// A path of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// As in `/venues/{venue}/{rest}`.
    pub template: String,
    pub parameters: Vec<Parameter>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What the document calls it.
    pub name: String,
    /// What the route calls it; `None`: a part of what `*` stands for.
    pub own: Option<String>,
    pub may_have_slashes: bool,
}

/// The paths of a table.
pub struct Paths<'a> {
    table: &'a Table,
    /// Without the names of parameters: those of routes without `/*`.
    fixed: BTreeSet<String>,
}

/// What `*` stands for at most before `rest`.
const MOST_SEGMENTS: usize = 3;

/// Stands for any segment.
const ANY: &str = "~";

// === impl Paths ===

impl<'a> Paths<'a> {
    pub fn new(table: &'a Table) -> Self {
        let patterns = table.listed().iter().map(|listed| &*listed.route.template);
        let fixed = patterns.filter(|pattern| !pattern.ends_with("/*"));
        Self {
            table,
            fixed: fixed.map(bare).collect(),
        }
    }

    /// `None` when others answer all that the route could.
    pub fn reach(&self, listed: &Listed) -> Option<Reach> {
        let pattern = &*listed.route.template;
        let Some(base) = pattern.strip_suffix("/*") else {
            let reach = Reach::new(pattern, None);
            return self.is_answered(&reach, listed).then_some(reach);
        };
        let below = (0..=MOST_SEGMENTS).map(|segments| Reach::new(base, Some(segments)));
        let itself = (!base.is_empty()).then(|| Reach::new(base, None));
        let mut reaches = below.chain(itself);
        reaches.find(|reach| {
            let path = bare(&reach.spelled(reach.below).template);
            !self.fixed.contains(&path) && self.is_answered(reach, listed)
        })
    }

    fn is_answered(&self, reach: &Reach, listed: &Listed) -> bool {
        let host = listed.hosts.first().map_or("", String::as_str);
        let host = host.replace('*', ANY);
        let mut methods = listed.methods.iter();
        methods.any(|method| {
            self.table
                .leads_to(&listed.route, &host, *method, &reach.probe)
        })
    }
}

/// How these are spelled where there are no others.
pub fn spell(reaches: &[&Reach]) -> Vec<Shown> {
    let fixed = reaches.iter().filter(|reach| reach.below.is_none());
    let fixed: BTreeSet<String> = fixed.map(|reach| bare(&reach.base)).collect();
    let mut first = BTreeMap::new();
    let shown = reaches.iter().map(|reach| {
        let mut found = reach.spelled_beside(&fixed);
        let (template, names) = first.entry(bare(&found.template)).or_insert_with(|| {
            let names = found.parameters.iter();
            let names: Vec<String> = names.map(|parameter| parameter.name.clone()).collect();
            (found.template.clone(), names)
        });
        // The names are those of the first that has the path; what they stand for is the route's own.
        found.template.clone_from(template);
        for (parameter, name) in found.parameters.iter_mut().zip(names) {
            parameter.name.clone_from(name);
        }
        found
    });
    shown.collect()
}

/// A path without the names of its parameters.
fn bare(template: &str) -> String {
    let segments = template
        .split('/')
        .map(|segment| match segment.starts_with('{') {
            true => "{}",
            false => segment,
        });
    segments.collect::<Vec<_>>().join("/")
}

// === impl Reach ===

impl Reach {
    fn new(base: &str, below: Option<usize>) -> Self {
        let mut reach = Self {
            base: base.into(),
            below,
            probe: Box::default(),
        };
        let path = bare(&reach.spelled(below).template);
        reach.probe = path.replace("{}", ANY).into();
        reach
    }

    /// The one path of something that is no route's.
    pub fn at(path: &str) -> Self {
        Self::new(path, None)
    }

    /// With as few segments before `rest` as these leave.
    fn spelled_beside(&self, fixed: &BTreeSet<String>) -> Shown {
        let Some(most) = self.below else {
            return self.spelled(None);
        };
        let mut fewer = (0..most).map(|segments| self.spelled(Some(segments)));
        let free = fewer.find(|shown| !fixed.contains(&bare(&shown.template)));
        free.unwrap_or_else(|| self.spelled(self.below))
    }

    /// `below`: it goes on behind the base, and `rest` stands behind so many segments.
    fn spelled(&self, below: Option<usize>) -> Shown {
        let mut template = String::from(&*self.base);
        let names = template
            .split('/')
            .filter(|segment| segment.starts_with('{'));
        let mut parameters: Vec<Parameter> = names
            .map(|segment| segment.trim_matches(['{', '}']))
            .map(|name| Parameter {
                name: name.to_owned(),
                own: Some(name.to_owned()),
                may_have_slashes: false,
            })
            .collect();
        if let Some(segments) = below {
            let before = (1..=segments).map(|number| match number {
                1 => "segment".to_owned(),
                number => format!("segment{number}"),
            });
            let added: Vec<String> = before.chain(["rest".to_owned()]).collect();
            for (place, name) in added.iter().enumerate() {
                let name = free(name, &parameters);
                template.push_str(&format!("/{{{name}}}"));
                parameters.push(Parameter {
                    name,
                    own: None,
                    may_have_slashes: place + 1 == added.len(),
                });
            }
        }
        Shown {
            template,
            parameters,
        }
    }
}

fn free(name: &str, taken: &[Parameter]) -> String {
    let is_taken = |name: &str| taken.iter().any(|parameter| parameter.name == name);
    let longer = std::iter::successors(Some(name.to_owned()), |name| Some(format!("{name}_")));
    let mut longer = longer.take(taken.len() + 1);
    longer
        .find(|name| !is_taken(name))
        .unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_star_stands_for_is_a_parameter() {
        let shown = |base: &str, below| {
            let reach = Reach::new(base, below);
            let Shown {
                template,
                parameters,
            } = reach.spelled(below);
            let names: Vec<String> = parameters.into_iter().map(|p| p.name).collect();
            (template, names.join(" "), reach.probe.to_string())
        };
        let of = |template: &str, names: &str, probe: &str| {
            (template.to_owned(), names.to_owned(), probe.to_owned())
        };
        assert_eq!(shown("/a/{b}", None), of("/a/{b}", "b", "/a/~"));
        assert_eq!(shown("/a", Some(0)), of("/a/{rest}", "rest", "/a/~"));
        assert_eq!(
            shown("/{rest}", Some(1)),
            of("/{rest}/{segment}/{rest_}", "rest segment rest_", "/~/~/~")
        );
        assert_eq!(shown("", Some(0)), of("/{rest}", "rest", "/~"));
    }

    #[test]
    fn what_is_not_there_has_no_part_in_the_spelling() {
        let (below, one) = (Reach::new("/a", Some(1)), Reach::at("/a/{x}"));
        let other = Reach::at("/a/{y}");
        let spelled = |reaches: &[&Reach]| {
            let shown = spell(reaches).into_iter();
            shown.map(|shown| shown.template).collect::<Vec<_>>()
        };
        assert_eq!(spelled(&[&below]), ["/a/{rest}"]);
        assert_eq!(
            spelled(&[&below, &other, &one]),
            ["/a/{segment}/{rest}", "/a/{y}", "/a/{y}"]
        );
        assert_eq!(spelled(&[&one]), ["/a/{x}"]);
    }
}
