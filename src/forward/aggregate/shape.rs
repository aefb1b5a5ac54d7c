//! What of a source's answer stands in the aggregate: a part of it, and of that part these members, under other names.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A way into a JSON value: `data.venue.id`, `data.0.id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Box<str>>);

/// What is taken of an answer.
#[derive(Debug, Default)]
pub struct Shape {
    part: Option<Path>,
    /// To, and from; none: all.
    fields: Vec<(Path, Path)>,
}

/// Steps of one way.
const DEEPEST: usize = 16;

impl Path {
    /// # Errors
    /// In words for the operator.
    pub fn compile(text: &str) -> Result<Self, String> {
        let steps: Vec<Box<str>> = text.split('.').map(Into::into).collect();
        if steps.iter().any(|step| step.is_empty()) {
            return Err(format!("`{text}` has an empty step between its dots"));
        }
        if steps.len() > DEEPEST {
            return Err(format!("`{text}` has more than {DEEPEST} steps"));
        }
        Ok(Self(steps))
    }

    pub fn find<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(value, |value, step| match value {
            Value::Object(members) => members.get(&**step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }

    fn take(&self, value: Value) -> Option<Value> {
        self.0.iter().try_fold(value, |value, step| match value {
            Value::Object(mut members) => members.remove(&**step),
            Value::Array(mut items) => {
                let place = step.parse::<usize>().ok()?;
                (place < items.len()).then(|| items.swap_remove(place))
            }
            _ => None,
        })
    }

    fn put(&self, into: &mut Map<String, Value>, value: Value) {
        let Some((last, parents)) = self.0.split_last() else {
            return;
        };
        let mut into = into;
        for step in parents {
            let place = into.entry(&**step).or_insert_with(|| Map::new().into());
            let Value::Object(members) = place else {
                return; // not compiled: no way is the beginning of another
            };
            into = members;
        }
        into.insert(last.to_string(), value);
    }

    fn is_beginning_of(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }
}

// === impl Shape ===

impl Shape {
    /// # Errors
    /// The key, and what is wrong with it.
    pub fn compile(
        part: Option<&str>,
        fields: &BTreeMap<String, String>,
    ) -> Result<Self, (String, String)> {
        let part = part.map(Path::compile).transpose();
        let part = part.map_err(|fault| ("part".to_owned(), fault))?;
        let mut compiled: Vec<(Path, Path)> = Vec::with_capacity(fields.len());
        for (to, from) in fields {
            let at = |fault| (format!("fields.{to}"), fault);
            let (to_path, from) = (
                Path::compile(to).map_err(at)?,
                Path::compile(from).map_err(at)?,
            );
            let clash = |(other, _): &&(Path, Path)| {
                other.is_beginning_of(&to_path) || to_path.is_beginning_of(other)
            };
            if compiled.iter().find(clash).is_some() {
                return Err(at(format!("`{to}` is in the place of another member")));
            }
            compiled.push((to_path, from));
        }
        Ok(Self {
            part,
            fields: compiled,
        })
    }

    /// Whether all of an answer is taken.
    pub fn is_whole(&self) -> bool {
        self.part.is_none() && self.fields.is_empty()
    }

    /// What is not there is left out. Of a list, each entry has the shape.
    pub fn apply(&self, answer: Value) -> Value {
        let part = match &self.part {
            None => answer,
            Some(part) => part.take(answer).unwrap_or_default(),
        };
        match part {
            part if self.fields.is_empty() => part,
            Value::Array(items) => items.iter().map(|item| self.members(item)).collect(),
            part => self.members(&part),
        }
    }

    fn members(&self, value: &Value) -> Value {
        if !value.is_object() {
            return Value::Null;
        }
        let mut members = Map::new();
        for (to, from) in &self.fields {
            if let Some(found) = from.find(value) {
                to.put(&mut members, found.clone());
            }
        }
        members.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shaped(part: Option<&str>, fields: &[(&str, &str)], answer: Value) -> Value {
        let fields = fields
            .iter()
            .map(|(to, from)| (to.to_string(), from.to_string()));
        Shape::compile(part, &fields.collect())
            .unwrap()
            .apply(answer)
    }

    #[test]
    fn members_are_taken_renamed_and_moved() {
        let answer = json!({"data": {"id": 1, "address": {"city": "Oslo"}, "secret": true}});
        assert_eq!(shaped(None, &[], answer.clone()), answer);
        assert_eq!(
            shaped(Some("data.address"), &[], answer.clone()),
            json!({"city": "Oslo"})
        );
        let fields = [("id", "id"), ("where.city", "address.city"), ("x", "gone")];
        assert_eq!(
            shaped(Some("data"), &fields, answer.clone()),
            json!({"id": 1, "where": {"city": "Oslo"}})
        );
        assert_eq!(shaped(Some("nothing"), &fields, answer), json!(null));
        assert_eq!(
            shaped(None, &[("a", "b")], json!([{"b": 1}, {"b": 2}, 3])),
            json!([{"a": 1}, {"a": 2}, null])
        );
    }

    #[test]
    fn two_members_in_one_place_are_a_fault() {
        for fields in [
            [("a", "x"), ("a.b", "y")],
            [("a.b.c", "x"), ("a.b", "y")],
            [("a..b", "x"), ("c", "y")],
            [("a", ""), ("b", "y")],
        ] {
            let fields = fields.map(|(to, from)| (to.to_owned(), from.to_owned()));
            assert!(Shape::compile(None, &BTreeMap::from(fields)).is_err());
        }
    }
}
