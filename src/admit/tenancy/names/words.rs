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
    /// Something of a venue's: what it holds may name it.
    About,
    /// One tenant's id, or an object that has one.
    Tenant,
    Tenants,
}

/// What follows `venue` in the name of something that picks one.
const PICKS: [&str; 7] = ["id", "uuid", "guid", "ref", "key", "slug", "code"];

pub fn kind_of(name: &str) -> Option<Kind> {
    let may_be = |b: u8| matches!(b, b'v' | b'V' | b't' | b'T');
    if !name.bytes().any(may_be) {
        return None;
    }
    let normal = normal(name);
    let normal = normal.trim_end_matches(|c: char| c.is_ascii_digit());
    if let Some(kind) = tenant(normal) {
        return Some(kind);
    }
    let word = normal.rfind("venue")? + "venue".len();
    let kind = match &normal[word..] {
        "" => Kind::Venue,
        "s" => Kind::Venues,
        one if PICKS.contains(&one) => Kind::Id,
        many if many
            .strip_suffix('s')
            .is_some_and(|one| PICKS.contains(&one)) =>
        {
            Kind::Ids
        }
        // `venueId__in`: nothing that we know, but too close to it to be something else.
        odd if odd.starts_with("id") => return None,
        // `venueManager`: its id is not the venue's.
        thing if is_another_thing(thing) => return None,
        _ => Kind::About,
    };
    let is_other = match kind {
        Kind::Id | Kind::Ids => matches!(&normal[..word], "avenue" | "revenue"),
        _ => is_another_word(name),
    };
    (!is_other).then_some(kind)
}

fn tenant(normal: &str) -> Option<Kind> {
    let ends = |ends: [&str; 3]| ends.iter().any(|end| normal.ends_with(end));
    match normal {
        "lieutenant" | "lieutenants" => None,
        _ if ends(["tenant", "tenantid", "tenantuuid"]) => Some(Kind::Tenant),
        _ if ends(["tenants", "tenantids", "tenantuuids"]) => Some(Kind::Tenants),
        _ => None,
    }
}

/// `revenue` and `avenue` hold the letters of a venue and are none; `areVenue` is one.
fn is_another_word(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let mut places = lower.match_indices("venue").map(|(at, _)| at).peekable();
    places.peek().is_some() && places.all(|at| is_part_of_a_word(name, &lower, at))
}

/// Whether the letters at this place end another word. `lower` is the same text in lower case.
fn is_part_of_a_word(text: &str, lower: &str, at: usize) -> bool {
    let is_shouted = text[..at].ends_with(|c: char| c.is_ascii_uppercase());
    let begins_a_word = text[at..].starts_with('V') && !is_shouted;
    !begins_a_word && (lower[..at].ends_with('a') || lower[..at].ends_with("re"))
}

/// The member of a venue that names it.
pub fn is_id(name: &str) -> bool {
    matches!(&*normal(name), "id" | "uuid" | "guid" | "oid")
}

pub fn is_ids(name: &str) -> bool {
    matches!(&*normal(name), "ids" | "uuids" | "guids")
}

/// A member of a venue that names it where no `id` does.
pub fn is_other_id(name: &str) -> bool {
    matches!(&*normal(name), "slug" | "code")
}

/// Members that only wrap a venue, or what it is compared with, as object mappers and JSON:API have them.
pub fn is_wrapper(name: &str) -> bool {
    const WRAPPERS: [&str; 26] = [
        "add",
        "append",
        "connect",
        "connectorcreate",
        "create",
        "data",
        "entity",
        "eq",
        "equals",
        "every",
        "in",
        "is",
        "isnot",
        "items",
        "key",
        "node",
        "none",
        "push",
        "ref",
        "set",
        "some",
        "update",
        "upsert",
        "value",
        "values",
        "where",
    ];
    let normal = normal(name);
    WRAPPERS.contains(&&*normal) || normal.bytes().all(|b| b.is_ascii_digit())
}

/// Members of a venue that are things of their own: their ids are not the venue's.
pub fn is_another_thing(name: &str) -> bool {
    const THINGS: [&str; 24] = [
        "address",
        "author",
        "category",
        "categorie",
        "contact",
        "creator",
        "customer",
        "event",
        "file",
        "image",
        "location",
        "manager",
        "order",
        "organizer",
        "owner",
        "payment",
        "price",
        "row",
        "seat",
        "section",
        "staff",
        "tag",
        "ticket",
        "user",
    ];
    let normal = normal(name);
    let one = normal.strip_suffix('s').unwrap_or(&normal);
    THINGS.contains(&one) || normal == "address"
}

/// What stands before `id` in the name of an id: nothing, or what tells it from others.
pub fn id_stem(name: &str) -> Option<Box<str>> {
    let normal = normal(name);
    let ends = ["uuid", "guid", "oid", "id", "ref"];
    ends.iter()
        .find_map(|end| normal.strip_suffix(end))
        .map(Into::into)
}

/// What stands before `type` in the name of a type.
pub fn type_stem(name: &str) -> Option<Box<str>> {
    let normal = normal(name);
    match normal.as_str() {
        "entity" | "model" | "resource" | "object" | "target" | "subject" => Some(normal.into()),
        name => ["type", "typename", "kind"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .map(Into::into),
    }
}

/// Names under which it is said what a field is compared with, or how.
pub fn is_value(name: &str) -> bool {
    const VALUES: [&str; 18] = [
        "contains", "eq", "equals", "in", "is", "like", "not", "op", "operand", "operator",
        "query", "rhs", "right", "term", "terms", "val", "value", "values",
    ];
    (2..=10).contains(&name.len()) && VALUES.contains(&&*normal(name))
}

pub fn is_operator(text: &str) -> bool {
    matches!(
        text.to_ascii_lowercase().as_str(),
        "=" | "=="
            | "==="
            | "!="
            | "<>"
            | "eq"
            | "ne"
            | "neq"
            | "in"
            | "nin"
            | "is"
            | "like"
            | "equals"
            | "not"
            | "not in"
    )
}

/// Whether a text is the name of what picks a venue: one half of a condition.
pub fn is_field(text: &str) -> bool {
    let name = text.trim_matches('/');
    text.len() <= 64
        && name.split('/').any(|part| {
            matches!(
                kind_of(part),
                Some(Kind::Id | Kind::Ids | Kind::Venue | Kind::Venues)
            )
        })
}

/// Whether a name that cannot be read could tell somebody of a venue.
pub fn mentions_venue(text: &str) -> bool {
    normal(text).contains("venueid") && !is_another_word(text)
}

/// Whether a text reads as a condition on a venue: `venueId:v1`, `venueId eq v1`, `{ venue(id: "v1") }`.
pub fn is_condition(text: &str) -> bool {
    if text.len() < 7 || !text.bytes().any(|b| matches!(b, b'v' | b'V' | b'%')) {
        return false;
    }
    let text = decoded(text);
    let lower = text.to_ascii_lowercase();
    // What stands behind a name is looked at once, however often the name speaks of venues.
    let mut name = NameIn::default();
    lower.match_indices("venue").any(|(at, _)| {
        if at >= name.end {
            name = NameIn::at(at, &lower);
        }
        let text_of_it = &lower[at..name.end - name.dots];
        if is_part_of_a_word(&text, &lower, at) {
            return false;
        }
        if text_of_it.len() > LONGEST_NAME {
            return name.is_compared;
        }
        match kind_of(text_of_it) {
            Some(Kind::Id | Kind::Ids) => name.is_compared,
            Some(Kind::Venue | Kind::Venues) => name.is_compared_at_once,
            None => text_of_it.starts_with("venueid") && name.is_compared,
            Some(_) => false,
        }
    })
}

/// Longer is no name, but whoever sends it may mean one: how it ends is not looked for.
const LONGEST_NAME: usize = 256;

/// A name in a text.
#[derive(Default)]
struct NameIn {
    end: usize,
    /// So many of its last bytes are no part of it, but of the sentence.
    dots: usize,
    is_compared: bool,
    is_compared_at_once: bool,
}

impl NameIn {
    fn at(start: usize, text: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let behind = text[start..].trim_start_matches(is_name);
        let name = &text[start..text.len() - behind.len()];
        Self {
            end: start + name.len(),
            dots: name.len() - name.trim_end_matches(['.', '-']).len(),
            is_compared: is_compared(behind),
            is_compared_at_once: is_compared_at_once(behind),
        }
    }
}

/// What stands behind a name that only means an id.
fn is_compared(behind: &str) -> bool {
    let behind = behind.trim_start_matches(['"', '\'', '`', ']', ')', ' ']);
    match behind.strip_prefix(':') {
        Some(value) => {
            let value = value.trim_start();
            !value.is_empty() && !value.starts_with("asc") && !value.starts_with("desc")
        }
        None => {
            behind.starts_with(['=', '<', '>', '!', '~', '('])
                || ["eq ", "in ", "in(", "is ", "like "]
                    .iter()
                    .any(|op| behind.starts_with(op))
        }
    }
}

/// What stands behind a word that prose has as well.
fn is_compared_at_once(behind: &str) -> bool {
    let behind = behind.trim_start_matches(['"', '\'', '`', ']']);
    if let Some(value) = behind.strip_prefix(':') {
        return !value.starts_with([' ', '\n', '/']) && is_compared(behind);
    }
    if let Some(argument) = behind.strip_prefix('(') {
        let argument = argument.trim_start();
        let names = ["id", "uuid", "slug", "where", "'", "\"", "filter"];
        return argument.starts_with(|c: char| c.is_ascii_digit())
            || names.iter().any(|name| argument.starts_with(name));
    }
    behind.starts_with(['=', '~']) || behind.starts_with("!=") || behind.starts_with(" eq ")
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
