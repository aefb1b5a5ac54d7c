//! A JSON document, read once and not kept.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use super::query::Parameter;
use super::words::{Kind, is_condition, is_wrapper, kind_of, mentions_venue, normal};
use super::{Ambiguous, HIDDEN, NO_ID, Named, REPEATED};

/// How often JSON is looked for in a text within JSON.
const DEEPEST_TEXT: u8 = 3;

/// The largest whole number that every reader reads alike (RFC 8259, section 6).
const LARGEST_NUMBER: u64 = (1 << 53) - 1;

const NO_JSON: Ambiguous = Ambiguous("The body is not JSON that every reader reads alike");

/// Finds the venues in it. `of_venues`: it speaks of venues, so that a plain `id` is one's.
///
/// # Errors
/// When it is no JSON (RFC 8259), or two readers could read different venues.
pub fn in_json(text: &[u8], of_venues: bool, named: &mut Named) -> Result<(), Ambiguous> {
    let mut fault = None;
    let mut json = serde_json::Deserializer::from_slice(text);
    let reader = Reader {
        kind: None,
        of_venues,
        named,
        fault: &mut fault,
        conditions: &mut 0,
        depth: DEEPEST_TEXT,
    };
    let read = reader.deserialize(&mut json).and_then(|()| json.end());
    read.map_err(|_| fault.unwrap_or(NO_JSON))
}

/// Reads a value for the venues in it.
struct Reader<'a> {
    /// What its name says that it is.
    kind: Option<Kind>,
    /// It is a venue, or wraps one.
    of_venues: bool,
    named: &'a mut Named,
    /// Why reading ended, where it is not that the text is no JSON.
    fault: &'a mut Option<Ambiguous>,
    /// Texts that are the name of a venue's member: half a condition.
    conditions: &'a mut usize,
    depth: u8,
}

impl Reader<'_> {
    fn within(&mut self, kind: Option<Kind>, of_venues: bool) -> Reader<'_> {
        Reader {
            kind,
            of_venues,
            named: self.named,
            fault: self.fault,
            conditions: self.conditions,
            depth: self.depth,
        }
    }

    fn fail<E: Error>(&mut self, fault: Ambiguous) -> E {
        *self.fault = Some(fault);
        E::custom("ambiguous")
    }

    /// What is no text: nothing, unless an id should be here.
    fn no_id<E: Error>(mut self) -> Result<(), E> {
        match self.kind {
            None => Ok(()),
            Some(_) => Err(self.fail(NO_ID)),
        }
    }

    fn text<E: Error>(mut self, text: &str) -> Result<(), E> {
        let read = match self.kind {
            Some(kind) => self.named.add_text(kind, text),
            None => self.text_within(text),
        };
        read.map_err(|fault| self.fail(fault))
    }

    /// A text that is a document of its own, or a condition, or half of one.
    fn text_within(&mut self, text: &str) -> Result<(), Ambiguous> {
        if text.trim_start().starts_with(['{', '[']) {
            let depth = self.depth.checked_sub(1).ok_or(HIDDEN)?;
            let mut fault = None;
            let mut json = serde_json::Deserializer::from_str(text);
            let mut reader = self.within(None, false);
            reader.depth = depth;
            let reader = Reader {
                fault: &mut fault,
                ..reader
            };
            if reader
                .deserialize(&mut json)
                .and_then(|()| json.end())
                .is_ok()
            {
                return Ok(());
            }
            if fault.is_some() {
                return Err(HIDDEN);
            }
        }
        if text.len() <= 64 && kind_of(text).is_some() && mentions_venue(text) {
            *self.conditions += 1;
            // A pointer, as JSON Patch has it, says the whole of it.
            return if text.starts_with('/') {
                Err(HIDDEN)
            } else {
                Ok(())
            };
        }
        match is_condition(text) {
            true => Err(HIDDEN),
            false => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.no_id()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.no_id()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.no_id()
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        match self.kind {
            Some(_) if number <= LARGEST_NUMBER => self.text(itoa::Buffer::new().format(number)),
            _ => self.no_id(),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let kind = match self.kind {
            None => None,
            Some(Kind::Ids) => Some(Kind::Id),
            Some(Kind::Venues) => Some(Kind::Venue),
            Some(Kind::Id | Kind::Venue | Kind::Tenant) => return Err(self.fail(NO_ID)),
        };
        let of_venues = self.of_venues;
        while list
            .next_element_seed(self.within(kind, of_venues))?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        let of_venues = match self.kind {
            None => self.of_venues,
            Some(Kind::Venue | Kind::Venues) => true,
            Some(Kind::Id | Kind::Ids | Kind::Tenant) => return Err(self.fail(NO_ID)),
        };
        let conditions = *self.conditions;
        let mut has_value = false;
        let mut seen: Vec<Box<str>> = Vec::new();
        while let Some(name) = object.next_key_seed(Name { of_venues })? {
            let (kind, within) = match name {
                Read::Fault(fault) => return Err(self.fail(fault)),
                Read::Venue(Parameter { name, .. }) if seen.contains(&name) => {
                    return Err(self.fail(REPEATED));
                }
                Read::Venue(Parameter { kind, name, .. }) => {
                    seen.push(name);
                    (Some(kind), false)
                }
                Read::Wrapper => (None, of_venues),
                Read::Value => {
                    has_value = true;
                    (None, false)
                }
                Read::Nothing => (None, false),
            };
            object.next_value_seed(self.within(kind, within))?;
        }
        // {"field":"venueId","value":"v1"}
        match has_value && *self.conditions > conditions {
            true => Err(self.fail(HIDDEN)),
            false => Ok(()),
        }
    }
}

/// Reads a member's name, its escapes read.
struct Name {
    /// The object is a venue.
    of_venues: bool,
}

/// What a member's name says of what stands under it.
enum Read {
    Nothing,
    Venue(Parameter),
    Wrapper,
    /// What some field is compared with.
    Value,
    Fault(Ambiguous),
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Read;

    fn deserialize<D: serde::Deserializer<'de>>(self, name: D) -> Result<Read, D::Error> {
        name.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Read, E> {
        Ok(match Parameter::of(name, self.of_venues) {
            Err(fault) => Read::Fault(fault),
            Ok(Some(parameter)) => Read::Venue(parameter),
            Ok(None) if self.of_venues && name.starts_with('$') => Read::Fault(HIDDEN),
            Ok(None) if self.of_venues && is_wrapper(name) => Read::Wrapper,
            Ok(None) if is_value(name) => Read::Value,
            Ok(None) => Read::Nothing,
        })
    }
}

fn is_value(name: &str) -> bool {
    (2..=10).contains(&name.len())
        && matches!(
            &*normal(name),
            "value" | "values" | "val" | "eq" | "in" | "op" | "operator" | "term" | "terms"
        )
}
