//! Every fault of a configuration, each with its place: an operator mends a file once, not once a fault.

use std::fmt;

/// What is wrong with a configuration. Empty means that it can be put in force.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

/// One fault: where it stands, and what to do about it.
#[derive(Debug)]
struct Problem {
    place: String,
    fault: String,
}

// === impl Problems ===

impl Problems {
    /// Notes a fault at a YAML path such as `routes[3].service`, or at an environment variable.
    pub fn add(&mut self, place: impl Into<String>, fault: impl Into<String>) {
        let (place, fault) = (place.into(), fault.into());
        self.0.push(Problem { place, fault });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One text for each.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(Problem::to_string).collect()
    }

    /// The places and their faults.
    #[cfg(any(fuzzing, test))]
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|problem| (&*problem.place, &*problem.fault))
    }

    /// `Ok(value)` when nothing is wrong, all the faults otherwise.
    pub fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "  {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, fault } = self;
        write!(f, "{place}: {fault}")
    }
}

impl std::error::Error for Problems {}
