//! Which venues does a request name? In its path, its query, its header fields and its body.
//!
//! What a backend could read as the name of a venue is one: names are compared without regard to case and to anything
//! but letters and digits. What two readers could read differently is no answer but a fault: a name that is repeated,
//! an operator in the place of an id, a spelling that only shows after decoding once more.

mod json;
mod query;
mod words;

use http::HeaderMap;
use http::header::{COOKIE, HeaderName};
use percent_encoding::percent_decode;

pub use json::{in_document, in_json};
pub use query::in_form;
use words::{Kind, kind_of, mentions_venue};

/// The venues that were found, and the tenants.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    venues: Vec<Box<str>>,
    pub tenants: Vec<Box<str>>,
    /// How many documents, addresses and texts the one that is being read stands in.
    depth: u8,
}

/// Two readers could disagree about which venue is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous(pub &'static str);

/// More venues than this in one request are nobody's use, and each may be a question to another service.
const MOST: usize = 32;

/// Names of venues in one object, form or query: looking for one twice costs all of them.
const MOST_NAMES: usize = 64;

/// A document within a text within a document, and so on: what is deeper nobody wrote by hand, and reading it would cost
/// as much stack as its writer likes.
const DEEPEST: u8 = 4;

/// Longer is no id.
const LONGEST_ID: usize = 128;

const REPEATED: Ambiguous = Ambiguous("A venue is named twice under one name");
const NO_ID: Ambiguous = Ambiguous("A venue's id must be a text or a whole number");
const HIDDEN: Ambiguous = Ambiguous("A venue is named in a way that could be read differently");

// === impl Named ===

impl Named {
    pub fn venues(&self) -> impl Iterator<Item = &str> {
        self.venues.iter().map(|venue| &**venue)
    }

    pub fn is_empty(&self) -> bool {
        self.venues.is_empty() && self.tenants.is_empty()
    }

    /// # Errors
    /// When it cannot be an id, or there are too many.
    pub fn add(&mut self, id: &str) -> Result<(), Ambiguous> {
        add(&mut self.venues, id)
    }

    /// # Errors
    /// As [`Named::add`].
    pub fn add_all(&mut self, others: &Self) -> Result<(), Ambiguous> {
        others.venues().try_for_each(|id| self.add(id))?;
        others
            .tenants
            .iter()
            .try_for_each(|id| add(&mut self.tenants, id))
    }

    /// Reads a document that stands in another.
    fn within<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Ambiguous>,
    ) -> Result<T, Ambiguous> {
        if self.depth == DEEPEST {
            return Err(HIDDEN);
        }
        self.depth += 1;
        let outcome = read(self);
        self.depth -= 1;
        outcome
    }

    fn add_text(&mut self, kind: Kind, text: &str) -> Result<(), Ambiguous> {
        match kind {
            Kind::Id | Kind::Venue => self.add(text),
            Kind::Ids | Kind::Venues => text.split(',').try_for_each(|id| self.add(id.trim())),
            Kind::Tenant => add(&mut self.tenants, text),
            Kind::Tenants => text
                .split(',')
                .try_for_each(|id| add(&mut self.tenants, id.trim())),
            Kind::About => Ok(()),
        }
    }
}

fn add(known: &mut Vec<Box<str>>, id: &str) -> Result<(), Ambiguous> {
    if id.is_empty() || known.iter().any(|known| **known == *id) {
        return Ok(());
    }
    if id.len() > LONGEST_ID || known.len() >= MOST {
        return Err(HIDDEN);
    }
    known.push(id.into());
    Ok(())
}

/// Whether a path segment says that a venue follows: `venues`, also with path parameters behind it.
pub fn announces_venue(segment: &str) -> bool {
    let segment = words::decoded(segment);
    let name = segment.split(';').next().unwrap_or_default();
    matches!(
        kind_of(name),
        Some(Kind::Id | Kind::Ids | Kind::Venue | Kind::Venues)
    )
}

/// Whether it says that a tenant follows.
pub fn announces_tenant(segment: &str) -> bool {
    let segment = words::decoded(segment);
    let name = segment.split(';').next().unwrap_or_default();
    matches!(kind_of(name), Some(Kind::Tenant | Kind::Tenants))
}

/// The venue that a path segment behind such a one is, percent-encoded as it stands there.
///
/// # Errors
/// When it is no text.
pub fn in_segment(segment: &str, named: &mut Named) -> Result<(), Ambiguous> {
    let id = percent_decode(segment.as_bytes()).decode_utf8();
    named.add(&id.map_err(|_| HIDDEN)?)
}

/// The same of a tenant.
///
/// # Errors
/// As [`in_segment`].
pub fn in_tenant_segment(segment: &str, named: &mut Named) -> Result<(), Ambiguous> {
    let id = percent_decode(segment.as_bytes()).decode_utf8();
    add(&mut named.tenants, &id.map_err(|_| HIDDEN)?)
}

/// # Errors
/// When a path segment names a venue in a way of its own: `;venueId=v1`, `venues(v1)`.
pub fn check_segment(segment: &str) -> Result<(), Ambiguous> {
    let segment = words::decoded(segment);
    let is_odd = match segment.split_once(['(', '=', ':']) {
        Some((name, _)) => mentions_venue(&segment) || announces_venue(name),
        None => false,
    };
    if is_odd { Err(HIDDEN) } else { Ok(()) }
}

/// A header field that names one venue.
///
/// # Errors
/// When there are several, or it is not an id.
pub fn in_field(name: &HeaderName, fields: &HeaderMap, named: &mut Named) -> Result<(), Ambiguous> {
    let mut values = fields.get_all(name).iter();
    let Some(value) = values.next().filter(|_| announces_venue(name.as_str())) else {
        return Ok(());
    };
    let id = value.to_str().unwrap_or_default();
    if values.next().is_some() || id.is_empty() || id.contains(',') {
        return Err(Ambiguous("A header field that names a venue must name one"));
    }
    named.add(id)
}

/// A header field that a route forwards for reasons of its own: it could be a document, or a condition.
///
/// # Errors
/// As for a query.
pub fn in_values(
    name: &HeaderName,
    fields: &HeaderMap,
    named: &mut Named,
) -> Result<(), Ambiguous> {
    let mut values = fields.get_all(name).iter();
    values.try_for_each(|value| query::in_value(&String::from_utf8_lossy(value.as_bytes()), named))
}

/// The cookies, on a route that forwards them.
///
/// # Errors
/// As for a query.
pub fn in_cookies(fields: &HeaderMap, named: &mut Named) -> Result<(), Ambiguous> {
    let mut all = Vec::new();
    for cookies in fields.get_all(COOKIE) {
        for cookie in cookies.as_bytes().split(|b| *b == b';') {
            all.extend_from_slice(cookie.trim_ascii());
            all.push(b'&');
        }
    }
    in_form(&all, false, named)
}

#[cfg(test)]
mod tests;
