//! A JSON document, read once and not kept.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::query::{Parameter, in_address};
use super::words::{
    Kind, id_stem, is_another_thing, is_condition, is_field, is_id, is_operator, is_other_id,
    is_value, is_wrapper, type_stem,
};
use super::{Ambiguous, HIDDEN, MOST_NAMES, NO_ID, Named, REPEATED, announces_venue};

/// Ids of nested objects whose types are not known yet, and of one object.
const MOST_CANDIDATES: usize = 256;

/// The largest whole number that every reader reads alike (RFC 8259, section 6).
const LARGEST_NUMBER: u64 = (1 << 53) - 1;

pub const NO_JSON: Ambiguous = Ambiguous("The body is not JSON that every reader reads alike");

/// Finds the venues in it. `of_venues`: it speaks of venues, so that a plain `id` is one's.
///
/// # Errors
/// When it is no JSON (RFC 8259), or two readers could read different venues.
pub fn in_json(text: &[u8], of_venues: bool, named: &mut Named) -> Result<(), Ambiguous> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let mut state = State::new(named);
    let read = Reader::of(&mut state, of_venues).deserialize(&mut json);
    let read = read.and_then(|()| json.end());
    read.map_err(|_| state.fault.unwrap_or(NO_JSON))
}

/// The same of a document that was read already.
///
/// # Errors
/// As [`in_json`].
pub fn in_document(value: &Value, of_venues: bool, named: &mut Named) -> Result<(), Ambiguous> {
    let mut state = State::new(named);
    let read = Reader::of(&mut state, of_venues).deserialize(value);
    read.map_err(|_| state.fault.unwrap_or(NO_JSON))
}

/// What was found so far.
struct State<'a> {
    named: &'a mut Named,
    /// Why reading ended, where it is not that the text is no JSON.
    fault: Option<Ambiguous>,
    /// Texts that are the name of what picks a venue, and texts that are an operator: together a condition.
    fields: usize,
    operators: usize,
    /// Ids of the objects that are being read, should they turn out to be venues'.
    candidates: Vec<Box<str>>,
    /// A text that was read as a type is a venue's.
    is_venue: bool,
}

/// Reads one value.
struct Reader<'r, 'a> {
    what: What,
    within: Within,
    state: &'r mut State<'a>,
}

/// What its name says of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Anything,
    Is(Kind),
    /// The id of something.
    Candidate,
    /// What that is.
    Type,
    /// In a list.
    Element,
}

/// What a value is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Nothing,
    /// Something that speaks of venues: ids are theirs.
    Venues,
    /// A venue, or what wraps one.
    Venue,
}

impl<'a> State<'a> {
    fn new(named: &'a mut Named) -> Self {
        Self {
            named,
            fault: None,
            fields: 0,
            operators: 0,
            candidates: Vec::new(),
            is_venue: false,
        }
    }
}

impl<'r, 'a> Reader<'r, 'a> {
    fn of(state: &'r mut State<'a>, of_venues: bool) -> Self {
        let within = match of_venues {
            true => Within::Venues,
            false => Within::Nothing,
        };
        Self {
            what: What::Anything,
            within,
            state,
        }
    }

    fn inner(&mut self, what: What, within: Within) -> Reader<'_, 'a> {
        Reader {
            what,
            within,
            state: self.state,
        }
    }

    fn fail<E: Error>(&mut self, fault: Ambiguous) -> E {
        self.state.fault = Some(fault);
        E::custom("ambiguous")
    }

    /// What is no text: nothing, unless an id should be here.
    fn no_id<E: Error>(mut self) -> Result<(), E> {
        match self.what {
            What::Is(kind) if kind != Kind::About => Err(self.fail(NO_ID)),
            _ => Ok(()),
        }
    }

    fn text<E: Error>(mut self, text: &str) -> Result<(), E> {
        let state = &mut *self.state;
        let read = match self.what {
            What::Is(Kind::About) | What::Anything | What::Element => text_within(state, text),
            What::Is(kind) => state.named.add_text(kind, text),
            What::Candidate if state.candidates.len() >= MOST_CANDIDATES => Err(HIDDEN),
            What::Candidate => {
                state.candidates.push(text.into());
                Ok(())
            }
            What::Type => {
                state.is_venue = announces_venue(text);
                text_within(state, text)
            }
        };
        read.map_err(|fault| self.fail(fault))
    }
}

/// A text that is a document of its own, an address, a condition, or half of one.
fn text_within(state: &mut State<'_>, text: &str) -> Result<(), Ambiguous> {
    if text.trim_start().starts_with(['{', '[']) {
        let read = state
            .named
            .within(|named| in_json(text.as_bytes(), false, named));
        match read {
            Ok(()) => return Ok(()),
            Err(fault) if fault != NO_JSON => return Err(HIDDEN),
            Err(_) => {}
        }
    }
    if is_field(text) {
        state.fields += 1;
    } else if is_operator(text) {
        state.operators += 1;
    }
    match in_address(text, state.named)? {
        false if is_condition(text) => Err(HIDDEN),
        _ => Ok(()),
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_, '_> {
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
        match self.what {
            What::Is(Kind::About) | What::Anything | What::Element | What::Type => Ok(()),
            _ if number <= LARGEST_NUMBER => self.text(itoa::Buffer::new().format(number)),
            _ => self.no_id(),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let (element, within) = match self.what {
            What::Is(Kind::Ids) => (What::Is(Kind::Id), Within::Nothing),
            What::Is(Kind::Venues) => (What::Is(Kind::Venue), Within::Venue),
            What::Is(Kind::Tenants) => (What::Is(Kind::Tenant), Within::Nothing),
            What::Is(Kind::Id | Kind::Venue | Kind::Tenant) => return Err(self.fail(NO_ID)),
            What::Is(Kind::About) => (What::Element, Within::Venue),
            What::Anything | What::Candidate | What::Type | What::Element => {
                (What::Element, self.within)
            }
        };
        let (fields, operators) = (self.state.fields, self.state.operators);
        let mut length = 0;
        while list
            .next_element_seed(self.inner(element, within))?
            .is_some()
        {
            length += 1;
        }
        let has_field = self.state.fields > fields;
        // ["venueId", "=", "v1"], and ["venueId", "v1"] in a list of its like
        let is_pair = self.what == What::Element && length == 2;
        match has_field && (is_pair || self.state.operators > operators) {
            true => Err(self.fail(HIDDEN)),
            false => Ok(()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        let (within, is_tenant) = match self.what {
            What::Is(Kind::Venue | Kind::Venues | Kind::About) => (Within::Venue, false),
            What::Is(Kind::Tenant) => (Within::Nothing, true),
            What::Is(Kind::Id | Kind::Ids | Kind::Tenants) => return Err(self.fail(NO_ID)),
            What::Anything | What::Candidate | What::Type | What::Element => (self.within, false),
        };
        let fields = self.state.fields;
        let (candidates, mut stems) = (self.state.candidates.len(), Stems::default());
        let mut has_value = false;
        let mut seen: Vec<Box<str>> = Vec::new();
        while let Some(name) = object.next_key_seed(Name { within, is_tenant })? {
            let (what, inner) = match name {
                Member::Odd(fault) => return Err(self.fail(fault)),
                Member::Names(Parameter { name, .. }) if seen.contains(&name) => {
                    return Err(self.fail(REPEATED));
                }
                Member::Names(_) if seen.len() >= MOST_NAMES => return Err(self.fail(HIDDEN)),
                Member::Names(Parameter { kind, name, .. }) => {
                    seen.push(name);
                    (What::Is(kind), Within::Nothing)
                }
                Member::Wraps => (What::Is(Kind::Venues), Within::Venue),
                Member::Id(stem) => {
                    let before = self.state.candidates.len();
                    object.next_value_seed(self.inner(What::Candidate, within))?;
                    let read = self.state.candidates.len() - before;
                    stems.ids.extend(std::iter::repeat_n(stem, read));
                    continue;
                }
                Member::Type(stem) => {
                    self.state.is_venue = false;
                    object.next_value_seed(self.inner(What::Type, within))?;
                    if std::mem::take(&mut self.state.is_venue) {
                        stems.types.push(stem);
                    }
                    continue;
                }
                Member::Other {
                    is_compared,
                    within,
                } => {
                    has_value |= is_compared;
                    (What::Anything, within)
                }
            };
            object.next_value_seed(self.inner(what, inner))?;
        }
        // {"type":"venues","id":"v1"}
        let ids = self.state.candidates.split_off(candidates);
        for id in stems.venues(&ids) {
            let known = self.state.named.add(id);
            known.map_err(|fault| self.fail(fault))?;
        }
        // {"field":"venueId","value":"v1"}
        match has_value && self.state.fields > fields {
            true => Err(self.fail(HIDDEN)),
            false => Ok(()),
        }
    }
}

/// The ids of an object, and what its types say of them.
#[derive(Default)]
struct Stems {
    /// For each candidate.
    ids: Vec<Box<str>>,
    /// Of types that are a venue's.
    types: Vec<Box<str>>,
}

impl Stems {
    fn venues<'i>(&'i self, ids: &'i [Box<str>]) -> impl Iterator<Item = &'i str> {
        let with_stems = ids.iter().zip(&self.ids);
        with_stems
            .filter(|(_, stem)| self.types.contains(stem))
            .map(|(id, _)| &**id)
    }
}

/// Reads a member's name, its escapes read.
struct Name {
    within: Within,
    is_tenant: bool,
}

/// What a member's name says of what stands under it.
enum Member {
    Names(Parameter),
    /// A venue is in it, or its id.
    Wraps,
    /// The id of something, and what stands before it in its name: `resourceId`.
    Id(Box<str>),
    /// What that is: `resourceType`.
    Type(Box<str>),
    Other {
        /// Something is compared with it.
        is_compared: bool,
        within: Within,
    },
    Odd(Ambiguous),
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Member;

    fn deserialize<D: serde::Deserializer<'de>>(self, name: D) -> Result<Member, D::Error> {
        name.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Member, E> {
        let is_venue = self.within == Within::Venue;
        Ok(match Parameter::of(name, self.within != Within::Nothing) {
            Err(fault) => Member::Odd(fault),
            Ok(Some(parameter)) => Member::Names(parameter),
            Ok(None) if self.is_tenant && is_id(name) => Member::of_kind(Kind::Tenant, name),
            Ok(None) if (is_venue || self.is_tenant) && name.starts_with('$') => {
                Member::Odd(HIDDEN)
            }
            Ok(None) if is_venue && is_other_id(name) => Member::of_kind(Kind::Id, name),
            Ok(None) if is_venue && is_wrapper(name) => Member::Wraps,
            Ok(None) => match (id_stem(name), type_stem(name)) {
                (Some(stem), _) => Member::Id(stem),
                (_, Some(stem)) => Member::Type(stem),
                _ => Member::Other {
                    is_compared: is_value(name),
                    within: if is_another_thing(name) {
                        Within::Nothing
                    } else {
                        self.within
                    },
                },
            },
        })
    }
}

impl Member {
    fn of_kind(kind: Kind, name: &str) -> Self {
        Self::Names(Parameter::one(kind, name))
    }
}
