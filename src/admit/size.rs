//! How large may a request be? The header block and the target are bounded while they are read (`head.rs`), a body
//! by its announced length before it is read, and by its counted length while it streams.

use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use serde::{Deserialize, Serialize};

use crate::config::{Bytes, Problems};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SizeConfig {
    /// A request body; a route may name its own.
    pub body: Bytes,
    /// Request line and header fields together.
    pub headers: Bytes,
    /// Number of header fields.
    pub header_fields: usize,
    /// The request target.
    pub uri: Bytes,
}

/// Bounds of the head, in bytes and fields.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub head: usize,
    pub target: usize,
    pub fields: usize,
}

/// The bound of a route's request bodies, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimit(pub u64);

/// The body is longer than the route allows.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

impl Default for SizeConfig {
    fn default() -> Self {
        // 10 MiB as documented (`bodyLimit: 10485760`); the rest from the issue of the trunk.
        Self {
            body: Bytes::mib(10),
            headers: Bytes::kib(32),
            header_fields: 100,
            uri: Bytes::kib(8),
        }
    }
}

impl SizeConfig {
    pub fn compile(self, problems: &mut Problems) -> (HeadLimits, BodyLimit) {
        let Self {
            body,
            headers,
            header_fields,
            uri,
        } = self;
        if !(Bytes::kib(1)..=Bytes::mib(1)).contains(&headers) {
            problems.add("sizes.headers", "must be from 1KiB to 1MiB");
        }
        if uri > headers {
            problems.add("sizes.uri", "must not be larger than sizes.headers");
        }
        if !(1..=200).contains(&header_fields) {
            problems.add("sizes.header_fields", "must be from 1 to 200");
        }
        let head = HeadLimits {
            head: headers.0 as usize,
            target: uri.0 as usize,
            fields: header_fields,
        };
        (head, BodyLimit(body.0))
    }
}

/// What Content-Length says, where it is there and a number.
pub fn content_length(fields: &HeaderMap) -> Option<u64> {
    fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl BodyLimit {
    /// Looks at the announced length.
    ///
    /// # Errors
    /// When it is over the limit: nothing of the body was read yet.
    pub fn check_announced(self, headers: &HeaderMap) -> Result<(), TooLarge> {
        match headers.get(CONTENT_LENGTH) {
            None => Ok(()),
            // `head.rs` has seen to it that this is one number of at most 18 digits.
            Some(_) if content_length(headers).is_some_and(|length| length <= self.0) => Ok(()),
            Some(_) => Err(TooLarge),
        }
    }

    /// Looks at what has arrived so far, `seen` bytes with the chunk at hand.
    ///
    /// # Errors
    /// When that is over the limit: the chunk must not be forwarded.
    pub fn check_seen(self, seen: u64) -> Result<(), TooLarge> {
        if seen > self.0 { Err(TooLarge) } else { Ok(()) }
    }
}
