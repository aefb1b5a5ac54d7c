//! Every Redis key that the gateway touches, its owner and its life.
//!
//! | key | written by | life |
//! |---|---|---|
//! | `session:blacklist:{token}` | operators, auth-service, the gateway (`admit::auth::logout`) | the token's remaining life |
//! | `session:revoked:jti:{jti}` | auth-service | the token's remaining life |
//! | `session:revoked:user:{id}` | auth-service | the longest token's life; value: issued before, unix seconds |
//! | `session:revoked:tenant:{id}` | auth-service | as for users |
//! | `session:revoked:family:{family}` | operators, the gateway (`admit::auth::refresh`) | an access token's life |
//! | `refresh:{family}` | the gateway (`admit::auth::refresh`) | the longest refresh token's life |
//! | `session:user:{id}` | the gateway (`admit::lookup`) | `auth.users.life`; the value says whose it is |
//! | `cache:venue:member:{venue}:{user}` | the gateway (`admit::lookup`) | `tenancy.life`; the value says whose it is |
//! | `idem:{sha256}` | the gateway (`admit::idempotency`) | `idempotency.life` |
//! | `cache:event:{digest}` `cache:venue:{digest}` `cache:ticket:{digest}`, `cache:{service}:{digest}` | the gateway (`reply::cache`) | the answer's freshness, and while it may be used stale |
//! | `cache:invalid` | the gateway (`reply::cache`): what is out of date, and since when | 25 h |
//! | `apikey:sha256:{hex}` | operators (`api-gateway key`), the platform | until the key's `expires_at` |
//! | `apikey:{key}` | the platform, as the old gateway had it | the writer's |
//! | `lock:apikey:{id}` | `api-gateway key create` | 30 s, or until the command is done |
//! | `rl:ticket:{user}:{event}` | the gateway (`admit::limits::shared`) | the limit's window, or its block |
//! | `rl:user:{id}` `rl:api:{id}` `rl:ip:{ip}`, and each with `:{limit}` | the gateway (`admit::limits::shared`) | the limit's window |
//!
//! These braces stand for a value, but for `rl:` keys on a Cluster: there they are written, around the caller's id. In ids of
//! `rl:`, `session:user:` and `cache:` keys what is not plain is percent-encoded.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stands in a key as it is: nothing that a shell, a line or a pattern would take for something else.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'@')
    .remove(b'|')
    .remove(b'+')
    .remove(b'=')
    .remove(b'/')
    .remove(b':');

/// An id in a key. What is not plain is percent-encoded.
pub fn key_part(id: &str) -> Cow<'_, str> {
    utf8_percent_encode(id, PLAIN).into()
}

/// The same of one that clients choose: it cannot look like two.
pub fn chosen_key_part(id: &str) -> Cow<'_, str> {
    const CHOSEN: &AsciiSet = &PLAIN.add(b':');
    utf8_percent_encode(id, CHOSEN).into()
}

/// The prefixes that revocations are followed under.
pub const REVOCATIONS: [&str; 2] = ["session:blacklist:", "session:revoked:"];

/// API keys in plain, as the old gateway had them.
pub const API_KEYS: &str = "apikey:";

/// API keys by the SHA-256 of the key, in lower-case hex. Within [`API_KEYS`].
pub const API_KEY_DIGESTS: &str = "apikey:sha256:";

/// Who makes a key for an id holds this with the id behind it, so that nobody else makes one meanwhile.
pub const API_KEY_LOCK: &str = "lock:apikey:";

/// What this process remembers of these is forgotten when Redis pushes that they have changed.
pub const TRACKED: [&str; 1] = [API_KEYS];

/// Caches of what other services know. Who changes what stands under one of these says its key on [`FORGET`].
pub const CACHES: [&str; 2] = ["session:user:", "cache:venue:member:"];

/// The channel on which a key of [`CACHES`] is said to be out of date: every process then removes it and forgets it.
pub const FORGET: &str = "cache:forget";

/// What answers are out of date, since when: read by who comes later.
pub const CACHE_INVALID: &str = "cache:invalid";

/// The channel on which it is said.
pub const CACHE_PURGE: &str = "cache:purge";

/// Where the answers of a service stand: `cache:event:` for event-service.
pub fn cache_prefix(service: &str) -> String {
    let name = service.strip_suffix("-service").unwrap_or(service);
    format!("cache:{}:", chosen_key_part(name))
}

/// What a revocation key names.
#[derive(Debug, PartialEq, Eq)]
pub enum RevocationKey<'a> {
    Token(&'a [u8]),
    Jti(&'a str),
    User(&'a str),
    Tenant(&'a str),
    /// As it is spelled: its name, or as [`Family::tagged`] has it.
    Family(&'a str),
}

/// The refresh tokens, and the access tokens beside them, that came out of one login.
///
/// The gateway writes `refresh:{name}` and `session:revoked:family:{refresh:{name}}` in one call. The braces of the second
/// stand in the key: they are Redis Cluster's hash tag, and put it where the first one is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Family(Box<str>);

/// Longer is no name.
const LONGEST_FAMILY: usize = 128;

impl RevocationKey<'_> {
    /// Whether its value says what it revokes.
    pub fn has_time(&self) -> bool {
        matches!(self, Self::User(_) | Self::Tenant(_))
    }
}

impl<'a> RevocationKey<'a> {
    pub fn parse(key: &'a [u8]) -> Option<Self> {
        if let Some(token) = key.strip_prefix(b"session:blacklist:") {
            return Some(Self::Token(token));
        }
        let rest = std::str::from_utf8(key.strip_prefix(b"session:revoked:")?).ok()?;
        match rest.split_once(':')? {
            ("jti", jti) => Some(Self::Jti(jti)),
            ("user", id) => Some(Self::User(id)),
            ("tenant", id) => Some(Self::Tenant(id)),
            ("family", name) => Some(Self::Family(name)),
            _ => None,
        }
    }
}

/// The documented key of a token that is called back.
pub fn blacklisted(token: &str) -> String {
    format!("session:blacklist:{token}")
}

/// A write of one caller, by the digest (hex) of all that makes it this one.
pub fn idempotency_key(digest: &str) -> String {
    format!("idem:{digest}")
}

// === impl Family ===

impl Family {
    /// `None` when that can be no family's name.
    pub fn named(name: &str) -> Option<Self> {
        let is_letter = |b: u8| b.is_ascii_graphic() && !matches!(b, b'{' | b'}');
        let is_name = (1..=LONGEST_FAMILY).contains(&name.len()) && name.bytes().all(is_letter);
        is_name.then(|| Self(format!("{{refresh:{name}}}").into()))
    }

    /// `{refresh:NAME}`.
    pub fn tagged(&self) -> &str {
        &self.0
    }

    /// What is current: `refresh:NAME`.
    pub fn key(&self) -> &str {
        &self.0[1..self.0.len() - 1]
    }

    pub fn name(&self) -> &str {
        self.key().strip_prefix("refresh:").unwrap_or_default()
    }

    /// It is revoked, and the access tokens that name it.
    pub fn revocation_key(&self) -> String {
        format!("session:revoked:family:{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_of_a_family_have_the_same_hash_tag() {
        let family = Family::named("f1").unwrap();
        assert_eq!(family.name(), "f1");
        assert_eq!(family.key(), "refresh:f1");
        let key = family.revocation_key();
        let tag = key
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'));
        assert_eq!(tag, Some((family.key(), "")));
        assert_eq!(
            RevocationKey::parse(key.as_bytes()),
            Some(RevocationKey::Family(family.tagged()))
        );
        for bad in ["", "a b", "a}b", "{a", "\u{e9}", &"x".repeat(129)] {
            assert_eq!(Family::named(bad), None, "{bad}");
        }
    }
}
