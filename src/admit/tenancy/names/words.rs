//! Which names stand for a venue, or for a tenant. Compared are letters and digits alone, in lower case.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One venue's id.
    Id,
    /// A list of ids.
    Ids,
    /// One id, or an object that has one.
    Venue,
    /// A list of these.
    Venues,
    /// A tenant's id.
    Tenant,
}

/// What follows `venue` in the name of something that picks one.
const PICKS: [&str; 7] = ["id", "uuid", "guid", "ref", "key", "slug", "code"];

pub fn kind_of(name: &str) -> Option<Kind> {
    if !name.bytes().any(|b| matches!(b, b'v' | b'V' | b't' | b'T')) {
        return None;
    }
    let normal = normal(name);
    if matches!(&*normal, "tenant" | "tenantid" | "tenantuuid") {
        return Some(Kind::Tenant);
    }
    let behind = &normal[normal.rfind("venue")? + 5..];
    let kind = match behind {
        "" => Kind::Venue,
        "s" => Kind::Venues,
        one if PICKS.contains(&one) => Kind::Id,
        many if many
            .strip_suffix('s')
            .is_some_and(|one| PICKS.contains(&one)) =>
        {
            Kind::Ids
        }
        _ => return None,
    };
    (!is_another_word(name)).then_some(kind)
}

/// `revenue` and `avenue` hold the letters of a venue and are none; `areVenue` is one.
fn is_another_word(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let mut places = lower.match_indices("venue").map(|(at, _)| at).peekable();
    let is_part = |at: usize| {
        let begins_a_word =
            name[at..].starts_with('V') && !name[..at].ends_with(|c: char| c.is_ascii_uppercase());
        !begins_a_word && (lower[..at].ends_with('a') || lower[..at].ends_with("re"))
    };
    places.peek().is_some() && places.all(is_part)
}

/// The member of a venue that names it.
pub fn is_id(name: &str) -> bool {
    let normal = normal(name);
    matches!(&*normal, "id" | "uuid" | "guid" | "oid")
}

pub fn is_ids(name: &str) -> bool {
    matches!(&*normal(name), "ids" | "uuids")
}

/// Members that only wrap what they hold, as object mappers and JSON:API have them.
pub fn is_wrapper(name: &str) -> bool {
    matches!(
        &*normal(name),
        "data" | "connect" | "where" | "set" | "node" | "ref" | "attributes"
    )
}

/// Whether a text that cannot be read could tell somebody of a venue.
pub fn mentions_venue(text: &str) -> bool {
    normal(text).contains("venueid") && !is_another_word(text)
}

/// Whether a text reads as a condition on a venue: `venueId:v1`, `venueId eq v1`, `{ events(venueId: "v1") }`.
pub fn is_condition(text: &str) -> bool {
    let operators = ['=', ':', '(', '<', '>', '{', '[', '"', '\'', '!', '/'];
    let has_operator = text.contains(operators) || text.contains(" eq ") || text.contains(" in ");
    has_operator && text.len() >= 7 && mentions_venue(&decoded(text))
}

/// Decoded until nothing is left to decode.
pub fn decoded(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..4 {
        if !text.contains('%') {
            break;
        }
        text = Cow::Owned(
            percent_decode(text.as_bytes())
                .decode_utf8_lossy()
                .into_owned(),
        );
    }
    text
}

/// Letters and digits, in lower case.
pub fn normal(name: &str) -> String {
    let kept = name.bytes().filter(u8::is_ascii_alphanumeric);
    kept.map(|b| char::from(b.to_ascii_lowercase())).collect()
}
