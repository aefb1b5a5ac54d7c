//! How OpenAPI spells the paths of routes.
//!
//! It has no word for `/*`: what stands there is the parameter `rest`, in which slashes may be. Two paths that differ only
//! in the names of their parameters are one to OpenAPI; so `/venues/*` beside `/venues/{venue}` is
//! `/venues/{segment}/{rest}`, which is what it answers then.

use std::collections::{BTreeMap, BTreeSet};

use crate::route::{Listed, Table};

/// A path of the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// As in `/venues/{venue}/{rest}`.
    pub template: String,
    pub parameters: Vec<Parameter>,
    /// A path that it stands for: nobody has a literal segment of this name.
    pub probe: String,
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
    /// By what they are without the names of their parameters.
    shown: BTreeMap<String, Shown>,
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
            shown: BTreeMap::new(),
        }
    }

    /// The path of a route; `None` when others answer all that it could.
    pub fn show(&mut self, listed: &Listed) -> Option<Shown> {
        let pattern = &*listed.route.template;
        let candidates: Vec<Shown> = match pattern.strip_suffix("/*") {
            None => vec![Shown::of(pattern, None)],
            Some(base) => {
                let below = (0..=MOST_SEGMENTS).map(|segments| Shown::of(base, Some(segments)));
                let itself = (!base.is_empty()).then(|| Shown::of(base, None));
                below.chain(itself).collect()
            }
        };
        let is_below = pattern.ends_with("/*");
        let found = candidates.into_iter().find(|shown| {
            (!is_below || !self.fixed.contains(&bare(&shown.template)))
                && self.is_answered(shown, listed)
        })?;
        let first = self
            .shown
            .entry(bare(&found.template))
            .or_insert_with(|| found.clone());
        // The names are those of the first route that has the path; what they stand for is the route's own.
        let names = first.parameters.iter().map(|parameter| &parameter.name);
        let parameters = found.parameters.into_iter().zip(names);
        Some(Shown {
            template: first.template.clone(),
            probe: found.probe,
            parameters: parameters
                .map(|(parameter, name)| Parameter {
                    name: name.clone(),
                    ..parameter
                })
                .collect(),
        })
    }

    fn is_answered(&self, shown: &Shown, listed: &Listed) -> bool {
        let host = listed.hosts.first().map_or("", String::as_str);
        let host = host.replace('*', ANY);
        let mut methods = listed.methods.iter();
        methods.any(|method| {
            self.table
                .leads_to(&listed.route, &host, *method, &shown.probe)
        })
    }
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

// === impl Shown ===

impl Shown {
    /// `below`: it goes on behind the pattern, and `rest` stands behind so many segments.
    fn of(pattern: &str, below: Option<usize>) -> Self {
        let names = pattern
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
        let mut template = pattern.to_owned();
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
        Self {
            probe: bare(&template).replace("{}", ANY),
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
        let shown = |pattern: &str, below| {
            let Shown {
                template,
                parameters,
                probe,
            } = Shown::of(pattern, below);
            let names: Vec<String> = parameters.into_iter().map(|p| p.name).collect();
            (template, names.join(" "), probe)
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
}
