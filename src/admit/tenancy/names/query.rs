//! The parameters of a query, or of a form.

use form_urlencoded::parse;

use super::words::{
    Kind, decoded, is_condition, is_field, is_id, is_ids, is_value, kind_of, mentions_venue, normal,
};
use super::{Ambiguous, HIDDEN, MOST_NAMES, Named, REPEATED, in_json};

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
    read(text, of_venues, named)?;
    // Some readers take `;` for `&`.
    if text.contains(&b';') {
        let text: Vec<u8> = text
            .iter()
            .map(|b| if *b == b';' { b'&' } else { *b })
            .collect();
        read(&text, of_venues, named)?;
    }
    Ok(())
}

fn read(text: &[u8], of_venues: bool, named: &mut Named) -> Result<(), Ambiguous> {
    let mut seen: Vec<(Box<str>, bool)> = Vec::new();
    let (mut names_field, mut has_value) = (false, false);
    for (name, value) in parse(text) {
        if is_about_answers(&name) {
            continue;
        }
        let Some(Parameter { kind, name, listed }) = Parameter::of(&name, of_venues)? else {
            names_field |= is_field(&value);
            has_value |= is_value(last_part(&name));
            in_value(&value, named)?;
            continue;
        };
        if kind == Kind::About {
            in_value(&value, named)?;
            continue;
        }
        let repeated = seen.iter().find(|(known, _)| *known == name);
        if repeated.is_some_and(|(_, also_listed)| !(listed && *also_listed)) {
            return Err(REPEATED);
        }
        if seen.len() >= MOST_NAMES {
            return Err(HIDDEN);
        }
        seen.push((name, listed));
        named.add_text(kind, &value)?;
    }
    // `field=venueId&value=v1`
    if names_field && has_value {
        Err(HIDDEN)
    } else {
        Ok(())
    }
}

/// `fields[venues]=name` says what an answer should hold (JSON:API, sparse fieldsets).
fn is_about_answers(name: &str) -> bool {
    ["fields[", "include[", "sort["]
        .iter()
        .any(|begin| name.starts_with(begin))
}

fn last_part(name: &str) -> &str {
    name.trim_end_matches(']')
        .rsplit(['[', '.'])
        .next()
        .unwrap_or(name)
}

/// The value of a parameter whose name is no venue's: it could be a document, an address, or a condition.
pub fn in_value(value: &str, named: &mut Named) -> Result<(), Ambiguous> {
    if value.trim_start().starts_with(['{', '[', '"']) {
        match named.within(|named| in_json(value.as_bytes(), false, named)) {
            Ok(()) => return Ok(()),
            Err(fault) if fault != super::json::NO_JSON => return Err(HIDDEN),
            Err(_) => {}
        }
    }
    if in_address(value, named)? {
        return Ok(());
    }
    if is_condition(value) {
        Err(HIDDEN)
    } else {
        Ok(())
    }
}

/// Whether it is an address with a query, which is read.
pub fn in_address(text: &str, named: &mut Named) -> Result<bool, Ambiguous> {
    if text.contains(char::is_whitespace) || !(text.contains("://") || text.starts_with('/')) {
        return Ok(false);
    }
    let Some((_, query)) = text.split_once('?') else {
        return Ok(false);
    };
    let query = query.split('#').next().unwrap_or_default();
    // Without its addresses: an address within an address is read as a text.
    match query.contains('?') {
        true => Ok(false),
        false => named
            .within(|named| in_form(query.as_bytes(), false, named))
            .map(|()| true),
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
    pub fn one(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: normal(name).into(),
            listed: false,
        }
    }

    /// Reads `venueId`, `venueIds[]`, `filter[venueId]`, `venue.id`.
    ///
    /// # Errors
    /// When an operator stands behind the name, or it only shows after decoding once more.
    pub fn of(name: &str, of_venues: bool) -> Result<Option<Self>, Ambiguous> {
        let may_name = |b: u8| matches!(b, b'v' | b'V' | b't' | b'T' | b'%');
        if !of_venues && !name.bytes().any(may_name) {
            return Ok(None);
        }
        let whole = decoded(name);
        let parts = || whole.split(['[', ']', '.']).filter(|part| !part.is_empty());
        let found = parts()
            .enumerate()
            .find_map(|(i, part)| match kind_of(part) {
                Some(kind) => Some((i, kind)),
                None if of_venues => plain_id(part).map(|kind| (i, kind)),
                None => None,
            });
        let Some((place, kind)) = found else {
            let is_odd = mentions_venue(&whole) || (of_venues && is_plain_condition(&whole));
            return if is_odd { Err(HIDDEN) } else { Ok(None) };
        };
        let is_balanced = whole.matches('[').count() == whole.matches(']').count();
        if *whole != *name || !is_balanced {
            return Err(HIDDEN);
        }
        let mut behind = parts().skip(place + 1).filter(|part| !is_number(part));
        let kind = match (kind, behind.next(), behind.next()) {
            (kind, None, _) => kind,
            (Kind::Venue | Kind::Venues | Kind::About, Some(name), None) if is_id(name) => Kind::Id,
            (Kind::Tenant | Kind::Tenants, Some(name), None) if is_id(name) => Kind::Tenant,
            (Kind::About, Some(_), _) => Kind::About,
            _ => return Err(HIDDEN),
        };
        let listed = name.contains("[]") || parts().skip(place + 1).any(is_number);
        let kind = match kind {
            Kind::Ids | Kind::Venue | Kind::Venues if listed => Kind::Id,
            Kind::Tenants if listed => Kind::Tenant,
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

/// Where venues are spoken of: `id`, `ids`.
fn plain_id(part: &str) -> Option<Kind> {
    match part {
        part if is_id(part) => Some(Kind::Id),
        part if is_ids(part) => Some(Kind::Ids),
        _ => None,
    }
}

/// `id__in`, where venues are spoken of.
fn is_plain_condition(name: &str) -> bool {
    let mut words = name
        .split(['_', '-', '.', ':', ' '])
        .filter(|word| !word.is_empty());
    words.next().is_some_and(|word| plain_id(word).is_some()) && words.next().is_some()
}

fn is_number(part: &str) -> bool {
    part.bytes().all(|b| b.is_ascii_digit())
}
