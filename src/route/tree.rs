//! Paths as a tree of segments: a lookup costs what the path is long, however many patterns there are.

use std::collections::{HashMap, HashSet};

/// Most parameters that a pattern may have.
pub const MOST_PARAMETERS: usize = 8;

/// Values by pattern. A literal segment goes before a parameter, a parameter before `*`.
pub struct Tree<T> {
    literals: HashMap<Box<str>, Tree<T>, ahash::RandomState>,
    /// The literals in lower case.
    folded: HashSet<Box<str>, ahash::RandomState>,
    parameter: Option<Box<Tree<T>>>,
    /// The pattern that ends here.
    here: Option<T>,
    /// The pattern that ends with `/*` here: it answers here and everywhere below.
    below: Option<T>,
}

/// Where a walk down the tree ended.
enum Walk<'t, T> {
    Found(&'t T),
    Nothing,
    /// Another spelling (letter case, a slash at the end) of what has a pattern of its own. Many a backend takes it for
    /// the same, so no wider pattern may answer it: its rules could be weaker.
    Lookalike,
}

/// What a path says at the places that its pattern leaves open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captures<'p> {
    parameters: [&'p str; MOST_PARAMETERS],
    count: usize,
    /// What `*` stands for, with the slash before it: `/x/y`, `/`, or nothing.
    pub rest: &'p str,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self {
            literals: HashMap::default(),
            folded: HashSet::default(),
            parameter: None,
            here: None,
            below: None,
        }
    }
}

impl<T: Default> Tree<T> {
    /// The value at a pattern (`/a/{b}`, `/a/*`), made if there is none. The names of parameters do not matter.
    pub fn entry(&mut self, pattern: &str) -> &mut T {
        let (body, below) = match pattern.strip_suffix("/*") {
            Some(body) => (body, true),
            None => (pattern, false),
        };
        let mut node = self;
        for segment in body.split('/').skip(1) {
            node = match segment.starts_with('{') {
                true => node.parameter.get_or_insert_default(),
                false => {
                    node.folded.insert(segment.to_ascii_lowercase().into());
                    node.literals.entry(segment.into()).or_default()
                }
            };
        }
        let place = if below {
            &mut node.below
        } else {
            &mut node.here
        };
        place.get_or_insert_default()
    }
}

impl<T> Tree<T> {
    /// The value of the most specific pattern that matches.
    pub fn find<'p>(&self, path: &'p str) -> Option<(&T, Captures<'p>)> {
        let mut captures = Captures::default();
        match self.walk(path, &mut captures) {
            Walk::Found(found) => Some((found, captures)),
            Walk::Nothing | Walk::Lookalike => None,
        }
    }

    /// `path` is what is left: nothing, or a slash and more.
    fn walk<'p>(&self, path: &'p str, captures: &mut Captures<'p>) -> Walk<'_, T> {
        let Some(left) = path.strip_prefix('/') else {
            return match (&self.here, &self.below) {
                (Some(here), _) => Walk::Found(here),
                (None, Some(below)) => {
                    captures.rest = path;
                    Walk::Found(below)
                }
                (None, None) => Walk::Nothing,
            };
        };
        if left.is_empty() && self.here.is_some() && self.below.is_none() {
            return Walk::Lookalike;
        }
        let end = memchr::memchr(b'/', left.as_bytes()).unwrap_or(left.len());
        let (segment, left) = left.split_at(end);
        match self.literals.get(segment) {
            Some(node) => match node.walk(left, captures) {
                Walk::Nothing => {}
                ended => return ended,
            },
            None if self.resembles_a_literal(segment) => return Walk::Lookalike,
            None => {}
        }
        if let Some(node) = self.parameter.as_ref().filter(|_| !segment.is_empty()) {
            let count = captures.count;
            if let Some(place) = captures.parameters.get_mut(count) {
                *place = segment;
                captures.count = count + 1;
                match node.walk(left, captures) {
                    Walk::Nothing => captures.count = count,
                    ended => return ended,
                }
            }
        }
        captures.rest = path;
        self.below.as_ref().map_or(Walk::Nothing, Walk::Found)
    }

    /// Whether a segment that is no literal is one in another letter case.
    fn resembles_a_literal(&self, segment: &str) -> bool {
        if self.folded.is_empty() {
            return false;
        }
        match segment.bytes().any(|b| b.is_ascii_uppercase()) {
            true => self.folded.contains(segment.to_ascii_lowercase().as_str()),
            false => self.folded.contains(segment),
        }
    }
}

impl<'p> Captures<'p> {
    pub fn parameters(&self) -> impl Iterator<Item = &'p str> {
        self.parameters[..self.count].iter().copied()
    }

    pub fn parameter(&self, index: usize) -> Option<&'p str> {
        self.parameters[..self.count].get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(patterns: &[&'static str]) -> Tree<&'static str> {
        let mut tree = Tree::default();
        for pattern in patterns {
            *tree.entry(pattern) = *pattern;
        }
        tree
    }

    fn found(
        tree: &Tree<&'static str>,
        path: &'static str,
    ) -> Option<(&'static str, Vec<&'static str>, &'static str)> {
        let (pattern, captures) = tree.find(path)?;
        Some((
            pattern,
            captures.parameters[..captures.count].to_vec(),
            captures.rest,
        ))
    }

    #[test]
    fn the_most_specific_pattern_wins() {
        let tree = tree(&["/a/*", "/a/b", "/a/{x}/c", "/a/b/{y}", "/", "/d/{x}"]);
        assert_eq!(found(&tree, "/a"), Some(("/a/*", vec![], "")));
        assert_eq!(found(&tree, "/a/"), Some(("/a/*", vec![], "/")));
        assert_eq!(found(&tree, "/a/b"), Some(("/a/b", vec![], "")));
        assert_eq!(found(&tree, "/a/z"), Some(("/a/*", vec![], "/z")));
        assert_eq!(found(&tree, "/a/z/c"), Some(("/a/{x}/c", vec!["z"], "")));
        assert_eq!(found(&tree, "/a/z/d"), Some(("/a/*", vec![], "/z/d")));
        assert_eq!(
            found(&tree, "/a/b/c"),
            Some(("/a/b/{y}", vec!["c"], "")),
            "a literal before a parameter"
        );
        assert_eq!(found(&tree, "/a/b/c/d"), Some(("/a/*", vec![], "/b/c/d")));
        assert_eq!(found(&tree, "/"), Some(("/", vec![], "")));
        assert_eq!(found(&tree, "/d/"), None, "a parameter is not empty");
        assert_eq!(found(&tree, "/d"), None);
        assert_eq!(found(&tree, "/ab"), None, "whole segments");
        assert_eq!(found(&tree, ""), None);
    }

    #[test]
    fn another_spelling_of_a_pattern_does_not_fall_to_a_wider_one() {
        let tree = tree(&["/a/*", "/a/b", "/a/{x}/c"]);
        for path in ["/a/b/", "/a/B", "/A/b", "/a/z/c/", "/a/z/C", "/a/B/d"] {
            assert_eq!(found(&tree, path), None, "{path}");
        }
    }

    #[test]
    fn a_star_at_the_root_takes_everything() {
        let tree = tree(&["/*"]);
        assert_eq!(found(&tree, "/"), Some(("/*", vec![], "/")));
        assert_eq!(found(&tree, "/x/y"), Some(("/*", vec![], "/x/y")));
    }

    #[test]
    fn ten_thousand_patterns_cost_what_ten_do() {
        fn steps(patterns: usize) -> u128 {
            let mut tree = Tree::<usize>::default();
            for i in 0..patterns {
                *tree.entry(&format!("/api/v1/service{i}/*")) = i;
            }
            let path = format!("/api/v1/service{}/42/x", patterns / 2);
            let best = (0..50).map(|_| {
                let start = std::time::Instant::now();
                for _ in 0..1000 {
                    assert_eq!(
                        std::hint::black_box(tree.find(&path)).map(|(i, _)| *i),
                        Some(patterns / 2)
                    );
                }
                start.elapsed().as_nanos()
            });
            best.min().unwrap()
        }
        let (few, many) = (steps(10), steps(10_000));
        assert!(
            many < few * 5,
            "{many} ns with ten thousand patterns, {few} ns with ten"
        );
    }
}
