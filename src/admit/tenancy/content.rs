//! What a body says about venues: by its type, and by what it begins like.
//!
//! A body that has to be judged is held back until it is whole: the backend sees none of it before.

use bytes::Bytes;
use http::HeaderMap;

use super::names::{self, Ambiguous, Named};
use crate::admit::body::{self, Body};
use crate::admit::budget::{Full, Held};
use crate::admit::json::Bounds;
use crate::admit::media::Media;
use crate::admit::schema::{BodyRule, Faults};
use crate::reply::Refusal;
use crate::server::threads::aside;

/// How a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Json,
    Form,
    /// JSON when it begins like it, else a form.
    Unknown,
    /// Nothing that names a venue, unless it begins like JSON.
    Other,
    /// Has a form of its own, in which nobody looks for names.
    Opaque,
}

/// A body on its way: what has arrived of it, and what becomes of it.
pub struct Hold {
    /// How it is looked at for venues, and whether it speaks of them; `None`: nobody asks.
    venues: Option<(Content, bool)>,
    /// What it must look like.
    rule: Option<BodyRule>,
    held: Vec<u8>,
    room: Held,
    /// It is nothing that has to be judged.
    passes: bool,
}

/// What a whole body came to.
#[derive(Debug)]
pub struct Judged {
    pub named: Named,
    /// Whether it looks as it must.
    pub verdict: Result<(), Refusal>,
}

/// What is done with a piece of a body.
pub enum Step {
    /// Nothing goes on yet.
    Wait,
    Pass(Bytes),
    /// It is whole, and goes on if it names only its caller's.
    Whole(Bytes),
}

// === impl Content ===

impl Content {
    /// # Errors
    /// When the body is in a form that hides what it says.
    pub fn of(fields: &HeaderMap) -> Result<Self, Refusal> {
        match Media::of(fields)?.essence.as_deref() {
            None => Ok(Self::Unknown),
            Some(kind) if kind.contains(',') => Err(Refusal::UnsupportedMediaType),
            Some(kind) if kind.contains("urlencoded") => Ok(Self::Form),
            Some(kind) if kind.contains("json") => Ok(Self::Json),
            Some("text/plain" | "application/octet-stream") => Ok(Self::Other),
            Some(kind) if is_opaque(kind) => Ok(Self::Opaque),
            Some(_) => Err(Refusal::UnsupportedMediaType),
        }
    }

    /// The venues in a whole body. `json`: it is going to be read as a document anyhow, within these bounds.
    ///
    /// # Errors
    /// When two readers could read different ones.
    pub fn read(
        self,
        body: &mut Body,
        of_venues: bool,
        json: Option<Bounds>,
    ) -> Result<Named, Ambiguous> {
        let mut named = Named::default();
        let is_json = begins_like_json(body) == Some(true);
        match self {
            Self::Form => names::in_form(body, of_venues, &mut named)?,
            // What stands before the first `&` is JSON, whoever reads it.
            Self::Unknown if is_json => {
                let rest = memchr::memchr(b'&', body).map_or(&body[..0], |at| &body[at..]);
                names::in_form(rest, of_venues, &mut named)?;
            }
            Self::Unknown => names::in_form(body, of_venues, &mut named)?,
            Self::Opaque => return Ok(named),
            Self::Json | Self::Other => {}
        }
        // A form can be JSON as well.
        if (self == Self::Json || is_json) && !body.is_empty() {
            match json.and_then(|bounds| body.document(bounds).as_ref().ok()) {
                Some(document) => names::in_document(document, of_venues, &mut named)?,
                None => names::in_json(body, of_venues, &mut named)?,
            }
        }
        Ok(named)
    }
}

fn is_opaque(kind: &str) -> bool {
    let families = [
        "image/",
        "audio/",
        "video/",
        "font/",
        "application/pdf",
        "application/zip",
    ];
    // SVG is a text.
    families.iter().any(|family| kind.starts_with(family)) && !kind.contains("xml")
}

/// `None`: that cannot be told yet. What some readers skip (spaces of all kinds, byte order marks, the zeros of other
/// encodings) is skipped.
fn begins_like_json(mut body: &[u8]) -> Option<bool> {
    loop {
        let width = match body {
            [] => return None,
            [b'\t'..=b'\r' | b' ' | 0, ..] => 1,
            [0xc2, 0xa0, ..] | [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => 2,
            [0xef, 0xbb, 0xbf, ..] | [0xe2, 0x80 | 0x81, _, ..] => 3,
            [0xe1, 0x9a, 0x80, ..] | [0xe3, 0x80, 0x80, ..] => 3,
            [0xc2 | 0xe1 | 0xe2 | 0xe3 | 0xef | 0xfe | 0xff] => return None,
            [0xe1 | 0xe2 | 0xe3 | 0xef, _] => return None,
            [first, ..] => return Some(matches!(first, b'{' | b'[')),
        };
        body = &body[width..];
    }
}

// === impl Hold ===

impl Hold {
    pub fn for_venues(content: Content, of_venues: bool, room: Held) -> Self {
        Self::new(Some((content, of_venues)), None, room)
    }

    pub fn for_rule(rule: BodyRule, room: Held) -> Self {
        Self::new(None, Some(rule), room)
    }

    fn new(venues: Option<(Content, bool)>, rule: Option<BodyRule>, room: Held) -> Self {
        let mut hold = Self {
            venues,
            rule,
            held: Vec::new(),
            room,
            passes: false,
        };
        hold.begin();
        hold
    }

    /// It must look like this as well.
    pub fn add_rule(&mut self, rule: BodyRule) {
        self.rule = Some(rule);
        self.begin();
    }

    /// Whether it may name somebody's venues.
    pub fn is_for_venues(&self) -> bool {
        self.venues.is_some()
    }

    /// The body is sent once more, from its beginning.
    pub fn begin(&mut self) {
        self.held.clear();
        self.room.clear();
        self.passes = self.rule.is_none() && matches!(self.venues, Some((Content::Opaque, _)));
    }

    /// # Errors
    /// When too much is held already.
    pub fn take(&mut self, chunk: Option<Bytes>, is_end: bool) -> Result<Step, Full> {
        let chunk = chunk.unwrap_or_default();
        if self.passes {
            return Ok(Step::Pass(chunk));
        }
        let grown = self.room.grow(chunk.len());
        self.held.extend_from_slice(&chunk);
        let is_judged = match (&self.rule, self.venues) {
            (Some(rule), None) if rule.only_reports() => grown.is_ok(),
            (None, Some((Content::Other, _))) => begins_like_json(&self.held) != Some(false),
            _ => true,
        };
        if !is_judged {
            self.passes = true;
            self.room.clear();
            return Ok(Step::Pass(std::mem::take(&mut self.held).into()));
        }
        grown?;
        Ok(match is_end {
            false => Step::Wait,
            true => Step::Whole(std::mem::take(&mut self.held).into()),
        })
    }

    /// What a whole body comes to.
    ///
    /// # Errors
    /// When two readers could read different venues in it.
    pub async fn judge(&self, body: Bytes) -> Result<Judged, Ambiguous> {
        let (venues, rule) = (self.venues, self.rule.clone());
        let quick = match &rule {
            Some(_) => body::SMALL,
            None => QUICK,
        };
        let judge = move |body: Bytes| {
            let mut body = Body::from(body);
            let json = rule.as_ref().map(BodyRule::bounds);
            Ok(Judged {
                named: match venues {
                    Some((content, of_venues)) => content.read(&mut body, of_venues, json)?,
                    None => Named::default(),
                },
                verdict: match &rule {
                    Some(rule) => rule.check(&mut body, Faults::default()),
                    None => Ok(()),
                },
            })
        };
        if body.len() <= quick {
            return judge(body);
        }
        // Requests that share this thread do not wait for it.
        let judged = aside(move || judge(body)).await;
        judged.unwrap_or(Err(Ambiguous("The body cannot be read")))
    }
}

/// Bytes that are read in less than a millisecond.
const QUICK: usize = 256 << 10;
