//! Which request is it? What a client calls one of its writes, and what makes it the same request when it comes again.
//!
//! The field is a string of RFC 8941 (`"8e03978e"`), as draft-ietf-httpapi-idempotency-key-header has it, or a bare token, as the
//! documented clients send it. Both spellings of a key are one key.

use std::fmt;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, Method};
use sha2::{Digest as _, Sha256};

use crate::admit::auth::{Caller, Source};
use crate::admit::tenancy::X_VENUE_ID;
use crate::reply::Refusal;
use crate::state::idempotency_key;

pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// In characters: two UUIDs and what stands around them, several times over.
const LONGEST: usize = 255;

/// What the client says.
#[derive(Debug, PartialEq, Eq)]
pub struct Key(Vec<u8>);

/// A write of one caller: nobody else's key, method or target comes to the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name([u8; 32]);

/// Whose a write is: for what there is of each caller, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

/// What is asked for under it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// The target of a write.
pub struct Target<'a> {
    pub service: &'a str,
    pub method: &'a Method,
    /// At the service: path and query.
    pub target: &'a str,
}

// === impl Key ===

impl Key {
    /// Reads the field, if there is one.
    ///
    /// # Errors
    /// When it is no key: who sends one relies on it.
    pub fn read(fields: &HeaderMap) -> Result<Option<Self>, Refusal> {
        const NO_KEY: Refusal = Refusal::BadHeader(
            "Idempotency-Key must be one string of 1 to 255 characters, as in \"8e03978e-40d5\"",
        );
        let mut values = fields.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(NO_KEY);
        }
        let value = value.as_bytes();
        let key = match value.strip_prefix(b"\"") {
            Some(rest) => unquoted(rest),
            None => value.iter().all(is_token).then(|| value.to_vec()),
        };
        let key = key.filter(|key| (1..=LONGEST).contains(&key.len()));
        key.map(|key| Some(Self(key))).ok_or(NO_KEY)
    }

    #[cfg(any(fuzzing, test))]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn name(&self, caller: &Caller, target: &Target<'_>) -> Name {
        let [tenant, source, id] = who(caller);
        Name(digest(&[
            tenant,
            source,
            id,
            target.service.as_bytes(),
            target.method.as_str().as_bytes(),
            target.target.as_bytes(),
            &self.0,
        ]))
    }
}

fn who(caller: &Caller) -> [&[u8]; 3] {
    let source: &[u8] = match caller.source {
        Source::Jwt => b"user",
        Source::ApiKey => b"api-key",
    };
    [caller.tenant.as_bytes(), source, caller.id.as_bytes()]
}

/// What stands between the quotes (RFC 8941, section 3.3.3). Parameters are none of the draft's.
fn unquoted(text: &[u8]) -> Option<Vec<u8>> {
    let mut key = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return bytes.as_slice().is_empty().then_some(key),
            b'\\' => match bytes.next() {
                Some(escaped @ (b'"' | b'\\')) => key.push(*escaped),
                _ => return None,
            },
            b' '..=b'~' => key.push(*byte),
            _ => return None,
        }
    }
    None
}

/// Nothing that a list, a parameter or a string is made of.
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

// === impl Name ===

impl Name {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As it was written by [`Name::as_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// The key in Redis.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&idempotency_key(&hex(&self.0)))
    }
}

// === impl Owner ===

impl Owner {
    /// Of what another version has handed over.
    pub const UNKNOWN: Self = Self(0);

    pub fn of(caller: &Caller) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = digest(&who(caller));
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Of a body, and of the fields that say what it means. With the name in it, equal bodies of different requests cannot be
    /// told to be equal.
    pub fn of(name: &Name, fields: &HeaderMap, body: &[u8]) -> Self {
        let read_as = [CONTENT_TYPE, CONTENT_ENCODING, X_VENUE_ID]
            .map(|field| fields.get(field).map_or(&b""[..], |value| value.as_bytes()));
        Self(digest(&[
            name.as_bytes(),
            read_as[0],
            read_as[1],
            read_as[2],
            body,
        ]))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Of parts that cannot run into each other.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // a String takes everything
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<Key>, Refusal> {
        let mut fields = HeaderMap::new();
        for value in values {
            fields.append(IDEMPOTENCY_KEY, (*value).try_into().unwrap());
        }
        Key::read(&fields)
    }

    #[test]
    fn a_key_is_a_string_or_a_token_and_both_spellings_are_one() {
        assert_eq!(read(&[]), Ok(None));
        let key = |text: &str| Ok(Some(Key(text.as_bytes().to_vec())));
        assert_eq!(read(&[b"8e03978e-40d5"]), key("8e03978e-40d5"));
        assert_eq!(read(&[b"\"8e03978e-40d5\""]), key("8e03978e-40d5"));
        assert_eq!(read(&[br#""a \"b\" \\ c""#]), key(r#"a "b" \ c"#));
        assert_eq!(read(&["x".repeat(255).as_bytes()]), key(&"x".repeat(255)));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_key() {
        for value in [
            &b""[..],
            b"\"\"",
            b"a b",
            b"a,b",
            b"\"a\", \"b\"",
            b"\"a\";p=1",
            b"a;p=1",
            b"\"a",
            b"a\"",
            b"\"\\x\"",
            b"\"a\tb\"",
            b"\xc3\xa9",
            b"\"\xc3\xa9\"",
            "x".repeat(256).as_bytes(),
        ] {
            assert!(read(&[value]).is_err(), "{value:?}");
        }
        assert!(read(&[b"a", b"a"]).is_err());
    }

    #[test]
    fn parts_of_a_digest_do_not_run_into_each_other() {
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_ne!(digest(&[b"a", b""]), digest(&[b"a"]));
    }
}
