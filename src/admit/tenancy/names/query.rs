//! The parameters of a query, or of a form.

use form_urlencoded::parse;

use super::words::{Kind, decoded, is_condition, is_id, is_ids, kind_of, mentions_venue, normal};
use super::{Ambiguous, HIDDEN, Named, REPEATED, in_json};

/// Finds the venues in them. `of_venues`: they speak of venues, so that a plain `id` is one's.
///
/// # Errors
/// When two readers could read different ones.
pub fn in_form(text: &[u8], of_venues: bool, named: &mut Named) -> Result<(), Ambiguous> {
    // Nearly every query names no venue, and shows it.
    let may_name = |b: &u8| matches!(b, b'v' | b'V' | b't' | b'T' | b'%' | b'{' | b'[');
    if !of_venues && !text.iter().any(may_name) {
        return Ok(());
    }
    let mut seen: Vec<(Box<str>, bool)> = Vec::new();
    for (name, value) in parse(text) {
        let Some(Parameter { kind, name, listed }) = Parameter::of(&name, of_venues)? else {
            in_value(&value, named)?;
            continue;
        };
        let repeated = seen.iter().find(|(known, _)| *known == name);
        if repeated.is_some_and(|(_, also_listed)| !(listed && *also_listed)) {
            return Err(REPEATED);
        }
        seen.push((name, listed));
        named.add_text(kind, &value)?;
    }
    Ok(())
}

/// The value of a parameter whose name is no venue's: it could be a document, or a condition.
fn in_value(value: &str, named: &mut Named) -> Result<(), Ambiguous> {
    let may_be_json = value.trim_start().starts_with(['{', '[']);
    if may_be_json && in_json(value.as_bytes(), false, named).is_ok() {
        return Ok(());
    }
    match is_condition(value) {
        true => Err(HIDDEN),
        false => Ok(()),
    }
}

/// A name that names a venue: a parameter's, or a member's in JSON.
pub struct Parameter {
    pub kind: Kind,
    /// As far as it tells names apart.
    pub name: Box<str>,
    /// One of several: `venueIds[]`.
    listed: bool,
}

impl Parameter {
    /// Reads `venueId`, `venueIds[]`, `filter[venueId]`, `venue.id`.
    ///
    /// # Errors
    /// When an operator stands behind the name, or it only shows after decoding once more.
    pub fn of(name: &str, of_venues: bool) -> Result<Option<Self>, Ambiguous> {
        if of_venues && (is_id(name) || is_ids(name)) {
            let kind = if is_ids(name) { Kind::Ids } else { Kind::Id };
            return Ok(Some(Self {
                kind,
                name: normal(name).into(),
                listed: false,
            }));
        }
        if !name
            .bytes()
            .any(|b| matches!(b, b'v' | b'V' | b't' | b'T' | b'%'))
        {
            return Ok(None);
        }
        let whole = decoded(name);
        let parts = || whole.split(['[', ']', '.']).filter(|part| !part.is_empty());
        let Some((place, kind)) = parts()
            .enumerate()
            .find_map(|(i, p)| Some((i, kind_of(p)?)))
        else {
            return match mentions_venue(&whole) {
                true => Err(HIDDEN),
                false => Ok(None),
            };
        };
        let is_balanced = whole.matches('[').count() == whole.matches(']').count();
        if *whole != *name || !is_balanced {
            return Err(HIDDEN);
        }
        let mut behind = parts().skip(place + 1).filter(|part| !is_number(part));
        let kind = match (kind, behind.next(), behind.next()) {
            (kind, None, _) => kind,
            (Kind::Venue | Kind::Venues, Some(name), None) if is_id(name) => Kind::Id,
            _ => return Err(HIDDEN),
        };
        let listed = name.contains("[]") || parts().skip(place + 1).any(is_number);
        let kind = match kind {
            Kind::Tenant => kind,
            _ if listed => Kind::Id,
            kind => kind,
        };
        let name = parts()
            .filter(|part| !is_number(part))
            .map(normal)
            .collect::<String>();
        Ok(Some(Self {
            kind,
            name: name.into(),
            listed,
        }))
    }
}

fn is_number(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_digit())
}
