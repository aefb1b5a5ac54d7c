//! The scan for venues: what a plain reader finds in a document, the scan finds too, or it refuses the document.

use serde_json::Value;

use crate::admit::tenancy::names::{
    self, Named, check_segment, in_form, in_json, in_segment, in_tenant_segment,
};

/// The first byte says whether the path speaks of venues.
fn split(input: &[u8]) -> (bool, &[u8]) {
    match input {
        [first, rest @ ..] => (*first == b'v', rest),
        [] => (false, input),
    }
}

pub fn json(input: &[u8]) {
    let (of_venues, body) = split(input);
    let mut named = Named::default();
    if in_json(body, of_venues, &mut named).is_err() {
        return;
    }
    let document: Value = serde_json::from_slice(body).expect("the scan has read it as JSON");
    find(&document, &named);
}

pub fn form(input: &[u8]) {
    let (of_venues, text) = split(input);
    let mut named = Named::default();
    if in_form(text, of_venues, &mut named).is_err() {
        return;
    }
    for (name, value) in form_urlencoded::parse(text) {
        if is_venue_id(&name) {
            must_know(&named, &value);
        }
    }
}

/// What a path segment announces holds for every spelling of it, and never panics.
pub fn segment(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let mut named = Named::default();
    let read = in_segment(text, &mut named).and(in_tenant_segment(text, &mut named));
    let shouted = text.to_ascii_uppercase();
    if !text.contains('%') {
        assert!(read.is_err() || text.is_empty() || named.venues().any(|venue| venue == text));
        if check_segment(text).is_ok() && text.starts_with("venues(") {
            panic!("`{text}` names a venue");
        }
    }
    if is_venue_id(text) {
        assert!(names::announces_venue(text) && names::announces_venue(&shouted));
    }
}

fn find(document: &Value, named: &Named) {
    match document {
        Value::Array(list) => list.iter().for_each(|element| find(element, named)),
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(id) if is_venue_id(name) => must_know(named, id),
                    Value::Number(id) if is_venue_id(name) => must_know(named, &id.to_string()),
                    value => find(value, named),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The documented name, however it is spelled.
fn is_venue_id(name: &str) -> bool {
    matches!(
        name,
        "venueId" | "venue_id" | "venue-id" | "VENUE_ID" | "venueid" | "VenueID"
    )
}

#[track_caller]
fn must_know(named: &Named, id: &str) {
    assert!(
        id.is_empty() || named.venues().any(|known| known == id),
        "the scan has not found {id:?}"
    );
}
