//! From bytes to [`File`]: parse, lay the environment over it, and name every fault with its place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_path_to_error::Segment;
use serde_yaml::Value;

use super::tree::mark;
use super::{Environment, File, Problems, bounds};

/// The reference configuration and the TicketToken platform's routes, compiled in: it cannot drift from the code.
pub const REFERENCE: &str = include_str!("../../conf/gateway.yaml");

/// More faults than this in one file are not worth listing.
const MOST_FAULTS: usize = 100;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    BuiltIn,
    File(PathBuf),
}

/// Reads the configuration.
///
/// # Errors
/// Every fault of syntax, name, unit and type, each with its YAML path or environment variable.
pub fn load(source: &Source, environment: &Environment) -> Result<File, Problems> {
    match source {
        Source::BuiltIn => parse(REFERENCE, source, environment),
        Source::File(path) => parse_file(bounds::read(path), source, environment),
    }
}

/// Reads it once more, in a process that serves.
///
/// # Errors
/// As [`load`]; and where it is no file: what a pipe holds is gone when it was read, and who writes it may never come.
pub fn load_again(source: &Source, environment: &Environment) -> Result<File, Problems> {
    match source {
        Source::BuiltIn => parse(REFERENCE, source, environment),
        Source::File(path) => parse_file(bounds::read_again(path), source, environment),
    }
}

fn parse_file(
    text: Result<String, String>,
    source: &Source,
    environment: &Environment,
) -> Result<File, Problems> {
    let text = text.map_err(|fault| {
        let mut problems = Problems::default();
        problems.add(source.to_string(), fault);
        problems
    })?;
    parse(&text, source, environment)
}

/// The same of a text that was read already.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, source: &Source, environment: &Environment) -> Result<File, Problems> {
    let mut problems = Problems::default();
    let read = bounds::check(text).and_then(|()| {
        serde_yaml::from_str::<Value>(text).map_err(|e| format!("is not YAML: {e}"))
    });
    let mut value = match read {
        Ok(Value::Null) => Value::Mapping(Default::default()),
        Ok(value @ Value::Mapping(_)) => value,
        Ok(_) => {
            problems.add(
                source.to_string(),
                "must be keys and values, as in `server:`",
            );
            return Err(problems);
        }
        Err(fault) => {
            problems.add(source.to_string(), fault);
            return Err(problems);
        }
    };
    let from_environment = environment.overlay(&mut value, &mut problems);
    let file = typed(value, source, &from_environment, &mut problems);
    problems.none_or(())?;
    let mut file = file.ok_or_else(Problems::default)?;
    let folder = source.folder();
    for validate in file.routes.iter_mut().filter_map(|r| r.validate.as_mut()) {
        validate.stand_in(folder.as_ref());
    }
    Ok(file)
}

/// Deserializes, and on a fault takes the faulty node out and goes on, so that one run finds them all.
fn typed(
    mut value: Value,
    source: &Source,
    origin: &BTreeMap<String, String>,
    problems: &mut Problems,
) -> Option<File> {
    let mut taken: Vec<String> = Vec::new();
    let mut lists = ListIndices::default();
    while taken.len() < MOST_FAULTS {
        let error = match serde_path_to_error::deserialize::<_, File>(value.clone()) {
            Ok(file) => return Some(file),
            Err(error) => error,
        };
        let segments: Vec<Segment> = error.path().iter().cloned().collect();
        let place = lists.place(&segments);
        let fault = error.inner().to_string();
        if !follows_from_a_taken_node(&place, &fault, &taken) {
            let place = match origin.get(&place) {
                Some(name) => format!("{place} (from {name})"),
                // A key that is no text.
                None if place.is_empty() => source.to_string(),
                None => place.clone(),
            };
            problems.add(place, readable(&fault));
        }
        if !take_out(&mut value, &segments, &mut lists) {
            return None;
        }
        taken.push(place);
    }
    None
}

/// Where the entries of a list stood before faulty ones were taken out: faults name the index that an operator counts to.
#[derive(Default)]
struct ListIndices(BTreeMap<String, Vec<usize>>);

impl ListIndices {
    fn place(&self, path: &[Segment]) -> String {
        let mut place = String::new();
        for segment in path {
            match segment {
                Segment::Map { key } if place.is_empty() => place.push_str(key),
                Segment::Map { key } => place = format!("{place}.{key}"),
                Segment::Seq { index } => {
                    let original = self
                        .0
                        .get(&place)
                        .and_then(|list| list.get(*index))
                        .unwrap_or(index);
                    place = format!("{place}[{original}]");
                }
                Segment::Enum { variant } => place = format!("{place}.{variant}"),
                Segment::Unknown => {}
            }
        }
        place
    }

    fn remove(&mut self, list: String, index: usize, len: usize) {
        self.0
            .entry(list)
            .or_insert_with(|| (0..len).collect())
            .remove(index);
    }
}

/// A required key that is missing only because its faulty value was taken out is not a second fault.
fn follows_from_a_taken_node(place: &str, fault: &str, taken: &[String]) -> bool {
    let Some(field) = fault
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next())
    else {
        return false;
    };
    let missing = if place.is_empty() {
        field.to_owned()
    } else {
        format!("{place}.{field}")
    };
    taken
        .iter()
        .any(|path| *path == missing || path.starts_with(&format!("{missing}.")))
}

/// serde's words, less the YAML library's own prefix of the path, which we print ourselves.
fn readable(fault: &str) -> String {
    fault
        .rsplit_once(": ")
        .filter(|(path, _)| !path.contains(' '))
        .map_or(fault, |(_, rest)| rest)
        .to_owned()
}

fn take_out(value: &mut Value, path: &[Segment], lists: &mut ListIndices) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let mut place = value;
    for segment in parents {
        let next = match segment {
            Segment::Map { key } => place.get_mut(key.as_str()),
            Segment::Seq { index } => place.get_mut(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        match next {
            Some(next) => place = next,
            None => return false,
        }
    }
    match (last, place) {
        (Segment::Map { key }, Value::Mapping(mapping)) => mapping.remove(key.as_str()).is_some(),
        (Segment::Seq { index }, Value::Sequence(items)) if *index < items.len() => {
            lists.remove(lists.place(parents), *index, items.len());
            items.remove(*index);
            true
        }
        _ => false,
    }
}

impl Source {
    /// What names of files in it are relative to.
    fn folder(&self) -> Option<Arc<Path>> {
        match self {
            Self::BuiltIn => None,
            Self::File(path) => path.parent().map(Arc::from),
        }
    }

    /// What tells its content from another, to this process; `None` where it cannot be read, or only once: what a pipe
    /// holds is gone after that.
    pub fn mark(&self) -> Option<u64> {
        match self {
            Self::BuiltIn => Some(0),
            Self::File(path) => Some(mark(bounds::read_again(path).ok()?.as_bytes())),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::BuiltIn => f.write_str("the built-in configuration"),
            Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mapping_is_said_with_its_place() {
        let none = Environment::from_pairs([]);
        for yaml in ["server", "[server]", "3", "!tag {a: 1}", "3: 4", "{[]: 1}"] {
            let problems = parse(yaml, &Source::BuiltIn, &none).unwrap_err();
            let places: Vec<_> = problems.iter().map(|(place, _)| place).collect();
            assert_eq!(places, ["the built-in configuration"], "{yaml}");
        }
        assert!(parse("", &Source::BuiltIn, &none).is_ok());
    }
}
