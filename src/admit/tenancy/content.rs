//! What a body says about venues: by its type, and by what it begins like.
//!
//! A body that has to be judged is held back until it is whole: the backend sees none of it before.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};

use super::budget::{Full, Held};
use super::names::{self, Ambiguous, Named};
use crate::reply::Refusal;

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
    content: Content,
    of_venues: bool,
    held: Vec<u8>,
    room: Held,
    /// It is nothing that has to be judged.
    passes: bool,
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
        let mut codings = fields.get_all(CONTENT_ENCODING).iter();
        if codings.any(|coding| !is(coding, "identity")) {
            return Err(Refusal::UnsupportedMediaType);
        }
        let mut types = fields.get_all(CONTENT_TYPE).iter();
        let Some(given) = types.next() else {
            return Ok(Self::Unknown);
        };
        if types.next().is_some() {
            return Err(Refusal::AmbiguousVenue(
                "There is more than one Content-Type",
            ));
        }
        let text = given.to_str().map_err(|_| Refusal::UnsupportedMediaType)?;
        let mut parts = text.split(';').map(|part| part.trim().to_ascii_lowercase());
        let essence = parts.next().unwrap_or_default();
        if !parts.all(|parameter| is_readable(&parameter)) {
            return Err(Refusal::UnsupportedMediaType);
        }
        match essence.as_str() {
            "" => Ok(Self::Unknown),
            kind if kind.contains(',') => Err(Refusal::UnsupportedMediaType),
            kind if kind.contains("urlencoded") => Ok(Self::Form),
            kind if kind.contains("json") => Ok(Self::Json),
            "text/plain" | "application/octet-stream" => Ok(Self::Other),
            kind if is_opaque(kind) => Ok(Self::Opaque),
            _ => Err(Refusal::UnsupportedMediaType),
        }
    }

    /// The venues in a whole body.
    ///
    /// # Errors
    /// When two readers could read different ones.
    pub fn read(self, body: &[u8], of_venues: bool) -> Result<Named, Ambiguous> {
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
        if self == Self::Json || is_json {
            match body {
                [] => {}
                body => names::in_json(body, of_venues, &mut named)?,
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

fn is(value: &HeaderValue, text: &str) -> bool {
    value
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(text.as_bytes())
}

/// A parameter of a type, in lower case: texts in other character sets are not read.
fn is_readable(parameter: &str) -> bool {
    let Some(charset) = parameter.strip_prefix("charset") else {
        return true;
    };
    let name = charset.trim_matches([' ', '\t', '=', '"']);
    matches!(name, "utf-8" | "utf8" | "us-ascii")
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
    pub fn new(content: Content, of_venues: bool, room: Held) -> Self {
        Self {
            content,
            of_venues,
            held: Vec::new(),
            room,
            passes: content == Content::Opaque,
        }
    }

    /// The body is sent once more, from its beginning.
    pub fn begin(&mut self) {
        self.held.clear();
        self.room.clear();
        self.passes = self.content == Content::Opaque;
    }

    /// # Errors
    /// When too much is held already.
    pub fn take(&mut self, chunk: Option<Bytes>, is_end: bool) -> Result<Step, Full> {
        let chunk = chunk.unwrap_or_default();
        if self.passes {
            return Ok(Step::Pass(chunk));
        }
        self.room.grow(chunk.len())?;
        self.held.extend_from_slice(&chunk);
        if self.content == Content::Other && begins_like_json(&self.held) == Some(false) {
            self.passes = true;
            self.room.clear();
            return Ok(Step::Pass(std::mem::take(&mut self.held).into()));
        }
        Ok(match is_end {
            false => Step::Wait,
            true => Step::Whole(std::mem::take(&mut self.held).into()),
        })
    }

    /// The venues in a whole body.
    ///
    /// # Errors
    /// When two readers could read different ones.
    pub async fn read(&self, body: Bytes) -> Result<Named, Ambiguous> {
        let (content, of_venues) = (self.content, self.of_venues);
        if body.len() <= QUICK {
            return content.read(&body, of_venues);
        }
        // Requests that share this thread do not wait for it.
        let read = tokio::task::spawn_blocking(move || content.read(&body, of_venues));
        read.await
            .unwrap_or(Err(Ambiguous("The body cannot be read")))
    }
}

/// Bytes that are read in less than a millisecond.
const QUICK: usize = 256 << 10;
