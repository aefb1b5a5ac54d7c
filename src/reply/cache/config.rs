//! The cache as YAML writes it: one for the process, and what each route says of itself.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::store::Store;
use super::{Caching, RouteCache};
use crate::config::{Bytes, Duration, Problems};
use crate::route::parameter_named;
use crate::state::cache_prefix;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Of the memory tier; 0: nothing is cached.
    pub memory: Bytes,
    /// One answer, head and body.
    pub largest: Bytes,
    /// A second tier in Redis, where there is one.
    pub redis: bool,
    /// Times to live, for routes to name.
    pub classes: Classes,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Classes {
    pub short: Duration,
    pub medium: Duration,
    pub long: Duration,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    Short,
    Medium,
    Long,
}

/// What a route says of its GET and HEAD.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteCacheConfig {
    /// The freshness of answers that name none.
    pub class: Option<Class>,
    /// Answers to identified callers are kept, for the same caller, although the backend does not permit it.
    pub authorized: bool,
    /// Where the answer names none.
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    /// `{x}` stands for a parameter of the path.
    pub tags: Vec<String>,
}

/// What a route's answers are known by.
pub struct About<'a> {
    pub path: &'a str,
    pub service: &'a str,
    /// The [`fingerprint`] of what else they depend on.
    pub identity: u64,
    pub classes: &'a Classes,
}

/// A tag with parameters of the path in it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Tag(Vec<Piece>);

#[derive(Debug, PartialEq, Eq, Hash)]
enum Piece {
    Text(Box<str>),
    /// By its place among the path's parameters.
    Parameter(usize),
}

/// Most tags of a route.
const MOST_TAGS: usize = 8;

/// Longest tag, as it is written.
const LONGEST_TAG: usize = 128;

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            memory: Bytes::mib(64),
            largest: Bytes::mib(1),
            redis: true,
            classes: Classes::default(),
        }
    }
}

/// As documented.
impl Default for Classes {
    fn default() -> Self {
        Self {
            short: Duration::secs(60),
            medium: Duration::secs(300),
            long: Duration::secs(3600),
        }
    }
}

// === impl CacheConfig ===

impl CacheConfig {
    /// `store`: that of the process; none: nothing is cached.
    pub fn compile(
        self,
        store: Option<Arc<Store>>,
        problems: &mut Problems,
    ) -> (Option<Caching>, Classes) {
        let Self {
            memory,
            largest,
            redis: _, // the store has it
            classes,
        } = self;
        let Classes {
            short,
            medium,
            long,
        } = &classes;
        for (name, life) in [("short", short), ("medium", medium), ("long", long)] {
            if life.0.as_secs() == 0 || life.0 > super::LONGEST_LIFE {
                problems.add(
                    format!("cache.classes.{name}"),
                    "must be at least 1s, and at most 24h",
                );
            }
        }
        if largest.0 == 0 {
            problems.add(
                "cache.largest",
                "must be more than nothing; `memory: 0B` turns the cache off",
            );
        }
        let caching = store.map(|store| Caching {
            store,
            largest: usize::try_from(largest.0.min(memory.0 / 4)).unwrap_or(usize::MAX),
        });
        (caching, classes)
    }
}

// === impl Classes ===

impl Classes {
    /// Seconds.
    fn life(&self, class: Class) -> u64 {
        let life = match class {
            Class::Short => self.short,
            Class::Medium => self.medium,
            Class::Long => self.long,
        };
        life.0.as_secs()
    }
}

// === impl RouteCacheConfig ===

impl RouteCacheConfig {
    /// `identity`: what else an answer of the route depends on.
    pub fn compile(self, place: &str, about: &About<'_>, problems: &mut Problems) -> RouteCache {
        let Self {
            class,
            authorized,
            stale_while_revalidate,
            stale_if_error,
            tags,
        } = self;
        let About {
            path,
            service,
            identity,
            classes,
        } = *about;
        let place = format!("{place}.cache");
        let life = class.map(|class| classes.life(class));
        let tags = compile_tags(&format!("{place}.tags"), path, tags, problems);
        let while_revalidate = stale_while_revalidate.map(|time| time.0.as_secs());
        let if_error = stale_if_error.map(|time| time.0.as_secs());
        let kept = (path, life, authorized, while_revalidate, if_error, &tags);
        let known_by = fingerprint(&(kept, identity));
        RouteCache {
            life,
            authorized,
            stale_while_revalidate: while_revalidate.unwrap_or_default(),
            stale_if_error: if_error.unwrap_or_default(),
            tags,
            prefix: cache_prefix(service).into(),
            fingerprint: known_by,
        }
    }
}

pub fn compile_tags(
    place: &str,
    path: &str,
    tags: Vec<String>,
    problems: &mut Problems,
) -> Box<[Tag]> {
    if tags.len() > MOST_TAGS {
        problems.add(place, format!("a route has at most {MOST_TAGS} tags"));
    }
    let tags = tags.iter().enumerate().filter_map(|(i, text)| {
        Tag::parse(path, text)
            .map_err(|fault| problems.add(format!("{place}[{i}]"), fault))
            .ok()
    });
    tags.collect()
}

// === impl Tag ===

impl Tag {
    fn parse(path: &str, text: &str) -> Result<Self, String> {
        let is_plain = text.bytes().all(|b| b.is_ascii_graphic());
        if text.is_empty() || text.len() > LONGEST_TAG || !is_plain {
            return Err(format!("a tag is 1 to {LONGEST_TAG} visible characters"));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (name, after) = behind
                .split_once('}')
                .ok_or_else(|| format!("`{text}` has a brace without its other"))?;
            let index = parameter_named(path, name)
                .ok_or_else(|| format!("the path has no parameter `{{{name}}}`"))?;
            pieces.push(Piece::Text(before.into()));
            pieces.push(Piece::Parameter(index));
            rest = after;
        }
        pieces.push(Piece::Text(rest.into()));
        Ok(Self(pieces))
    }

    pub fn asks_for_path(&self) -> bool {
        let is_parameter = |piece: &Piece| matches!(piece, Piece::Parameter(_));
        self.0.iter().any(is_parameter)
    }

    /// With the parameters of a path.
    pub fn fill<'a>(&self, parameter: impl Fn(usize) -> Option<&'a str>) -> String {
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Parameter(index) => parameter(*index).unwrap_or_default().to_owned(),
        };
        self.0.iter().map(text).collect()
    }
}

/// Of anything that it depends on.
pub fn fingerprint(of: &impl Hash) -> u64 {
    let mut fingerprint = Fingerprint(Sha256::new());
    of.hash(&mut fingerprint);
    fingerprint.finish()
}

/// The same in every process that has the same configuration.
struct Fingerprint(Sha256);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_take_parameters_of_the_path() {
        let tag = Tag::parse("/venues/{venue}/events/{event}", "e:{event}@{venue}").unwrap();
        assert_eq!(tag.fill(|i| ["v1", "e1"].get(i).copied()), "e:e1@v1");
        for bad in ["", "a b", "{x}", "{event", &"x".repeat(129)] {
            assert!(Tag::parse("/events/{event}", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_changes_what_is_kept_changes_the_fingerprint() {
        let (_, classes) = CacheConfig::default().compile(None, &mut Problems::default());
        let known_by = |config: RouteCacheConfig, identity: &str| {
            let mut problems = Problems::default();
            let about = About {
                path: "/a",
                service: "s",
                identity: fingerprint(&identity),
                classes: &classes,
            };
            let cache = config.compile("r", &about, &mut problems);
            assert!(problems.is_empty());
            cache.fingerprint
        };
        let of = |class: Class| RouteCacheConfig {
            class: Some(class),
            ..Default::default()
        };
        let usual = known_by(of(Class::Short), "s");
        assert_eq!(usual, known_by(of(Class::Short), "s"));
        assert_ne!(usual, known_by(of(Class::Long), "s"));
        assert_ne!(usual, known_by(of(Class::Short), "t"));
    }
}
