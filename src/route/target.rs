//! The path at the service, cut into pieces once.

use super::tree::Captures;
use crate::config::Problems;

/// The path at the service.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// The target is spelled like the path: nothing is built for a request that came by the route's own path.
    same: bool,
    pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    /// By its place among the path's parameters.
    Parameter(usize),
    /// What `*` stood for, with the slash before it.
    Rest,
}

/// The place of a segment, `{name}`, among a path's parameters.
pub fn parameter_index(path: &str, segment: &str) -> Option<usize> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    parameter_named(path, name)
}

/// The same, by its name.
pub fn parameter_named(path: &str, name: &str) -> Option<usize> {
    let mut parameters = split_source(path)
        .0
        .split('/')
        .filter_map(|s| s.strip_prefix('{'));
    parameters.position(|parameter| parameter.strip_suffix('}') == Some(name))
}

/// The path of a route, and of the route of a source of an aggregate (`/path#name`) the source's name.
pub fn split_source(path: &str) -> (&str, Option<&str>) {
    match path.split_once('#') {
        Some((path, source)) => (path, Some(source)),
        None => (path, None),
    }
}

// === impl Target ===

impl Target {
    pub fn compile(
        place: &str,
        path: &str,
        target: Option<&str>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let path = split_source(path).0;
        let target_text = target.unwrap_or(path);
        let target_place = format!(
            "{place}.{}",
            if target.is_some() { "target" } else { "path" }
        );
        let mut pieces = Vec::new();
        let (body, rest) = match target_text.strip_suffix("/*") {
            Some(body) => (body, true),
            None => (target_text, false),
        };
        let mut text = String::new();
        for segment in body.split('/').skip(usize::from(body.starts_with('/'))) {
            text.push('/');
            match parameter_index(path, segment) {
                Some(index) => {
                    pieces.push(Piece::Text(std::mem::take(&mut text).into()));
                    pieces.push(Piece::Parameter(index));
                }
                None if segment.starts_with('{') => {
                    problems.add(
                        &target_place,
                        format!("the path has no parameter `{segment}`"),
                    );
                }
                None => text.push_str(segment),
            }
        }
        if body.is_empty() && !rest {
            text.push('/');
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        if rest {
            pieces.push(Piece::Rest);
        }
        if rest != path.ends_with("/*") {
            problems.add(
                &target_place,
                "path and target must both end in `/*`, or neither",
            );
        }
        if !target_text.starts_with('/') {
            problems.add(&target_place, "must begin with a slash");
            return None;
        }
        Some(Self {
            same: target_text == path,
            pieces,
        })
    }

    /// The path to ask the service for; `None` when it is the one that the client asked for.
    pub fn path(&self, aliased: bool, captures: &Captures<'_>, path_len: usize) -> Option<String> {
        if self.same && !aliased {
            return None;
        }
        let mut target = String::with_capacity(path_len + 16);
        for piece in &self.pieces {
            target.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Parameter(index) => captures.parameter(*index).unwrap_or_default(),
                Piece::Rest => captures.rest,
            });
        }
        if target.is_empty() {
            target.push('/');
        }
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str, target: Option<&str>) -> (Option<Target>, Problems) {
        let mut problems = Problems::default();
        (Target::compile("r", path, target, &mut problems), problems)
    }

    #[test]
    fn a_target_is_cut_into_pieces_once() {
        let (compiled, problems) = target("/api/v1/auth/*", Some("/auth/*"));
        assert!(problems.is_empty());
        let pieces = vec![Piece::Text("/auth".into()), Piece::Rest];
        assert_eq!(
            compiled,
            Some(Target {
                same: false,
                pieces
            })
        );
        assert!(target("/a/{id}", None).0.unwrap().same);
    }

    #[test]
    fn a_target_may_only_use_what_the_path_has() {
        for (path, given) in [
            ("/a/{id}", "/b/{other}"),
            ("/a/*", "/b"),
            ("/a", "/b/*"),
            ("/a", "b"),
        ] {
            assert!(!target(path, Some(given)).1.is_empty(), "{path} -> {given}");
        }
    }
}
