//! API keys (decision 19): found by the SHA-256 of what `X-API-Key` carries. Those in the YAML win, then those in Redis.

mod config;
mod record;
mod stored;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{AuthError, Caller, Rights, Source, Tier};
use crate::admit::permissions::Permissions;
use crate::admit::tenancy::Venues;
use crate::config::Problems;
use crate::state::{API_KEY_DIGESTS, API_KEYS};
pub use config::ApiKeyConfig;
pub use record::Record;
pub use stored::{Lookups, StoredKeys};

/// A key with more characters than this is no key of ours.
const LONGEST_KEY: usize = 256;

/// What the keys that we make begin with: known where they should not be, in a repository or in a log.
pub const PREFIX: &str = "ttk_";

/// All keys that this process can find.
pub struct ApiKeys {
    configured: config::ByDigest,
    /// `None`: there is no Redis, and the YAML has them all.
    stored: Option<Arc<StoredKeys>>,
}

/// A key that is one: whose, and until when.
#[derive(Clone, Debug)]
struct ApiKey {
    caller: Arc<Caller>,
    expires_at: Option<Timestamp>,
    /// What it was read from, where that was Redis.
    record: Option<Arc<str>>,
}

/// What `X-API-Key` carries.
pub struct Given<'a> {
    key: &'a [u8],
    digest: Digest,
}

/// The same, kept while what it was given for is open.
#[derive(Clone)]
pub struct GivenKey {
    key: Arc<Zeroizing<Vec<u8>>>,
    digest: Digest,
}

/// What a key is known by: its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

// === impl ApiKeys ===

impl ApiKeys {
    pub fn compile(
        config: BTreeMap<String, ApiKeyConfig>,
        stored: Option<Arc<StoredKeys>>,
        problems: &mut Problems,
    ) -> Self {
        Self {
            configured: config::compile(config, problems),
            stored,
        }
    }

    /// The holder of a key, where nobody need be asked.
    pub fn recall(&self, given: &Given<'_>) -> Option<Result<Arc<Caller>, AuthError>> {
        if let Some(key) = self.configured.get(&given.digest) {
            return Some(key.holder());
        }
        match self.stored_for(given) {
            Some(stored) => stored.recall(&given.digest),
            None => Some(Err(AuthError::Invalid)),
        }
    }

    /// The holder of a key that [`ApiKeys::recall`] does not know.
    ///
    /// # Errors
    /// When there is no such key, it is over its time, or Redis cannot tell.
    pub async fn look_up(&self, given: &Given<'_>) -> Result<Arc<Caller>, AuthError> {
        match self.stored_for(given) {
            Some(stored) => stored.look_up(given).await,
            None => Err(AuthError::Invalid),
        }
    }

    /// The holder of a key that was seen before.
    ///
    /// # Errors
    /// As for [`ApiKeys::look_up`].
    pub async fn find(&self, given: &Given<'_>) -> Result<Arc<Caller>, AuthError> {
        match self.recall(given) {
            Some(known) => known,
            None => self.look_up(given).await,
        }
    }

    fn stored_for(&self, given: &Given<'_>) -> Option<&Arc<StoredKeys>> {
        self.stored.as_ref().filter(|_| may_be_stored(given.key))
    }
}

// === impl ApiKey ===

impl ApiKey {
    fn holder(&self) -> Result<Arc<Caller>, AuthError> {
        if self.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(AuthError::Expired);
        }
        Ok(self.caller.clone())
    }
}

/// Whoever holds a key has no role: what it may do stands with the key.
fn holder(
    id: String,
    tenant: HeaderValue,
    permissions: Vec<String>,
    tier: Tier,
    venues: Vec<String>,
    expires_at: Option<Timestamp>,
) -> Caller {
    Caller {
        rights: Rights::of(None, &permissions, venues.iter().map(String::as_str)),
        until: expires_at.map(Timestamp::as_second),
        id: id.into(),
        role: None,
        permissions: Permissions::new(permissions),
        tenant,
        source: Source::ApiKey,
        tier,
        venues: Venues::new(None, venues),
        is_complete: true,
        token: None,
    }
}

// === impl Given ===

impl<'a> Given<'a> {
    /// # Errors
    /// When there are several keys, or one that cannot be a key.
    pub fn of(headers: &'a HeaderMap) -> Result<Option<Self>, AuthError> {
        let mut given = headers.get_all("x-api-key").iter();
        let Some(key) = given.next().map(HeaderValue::as_bytes) else {
            return Ok(None);
        };
        if given.next().is_some() || key.len() > LONGEST_KEY {
            return Err(AuthError::Invalid);
        }
        let digest = Digest::of(key);
        Ok(Some(Self { key, digest }))
    }

    pub fn keep(&self) -> GivenKey {
        GivenKey {
            key: Arc::new(Zeroizing::new(self.key.to_vec())),
            digest: self.digest,
        }
    }
}

// === impl GivenKey ===

impl GivenKey {
    pub fn as_given(&self) -> Given<'_> {
        Given {
            key: &self.key,
            digest: self.digest,
        }
    }

    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// The digest of the key that stands under this name in Redis.
pub fn digest_of(name: &[u8]) -> Option<Digest> {
    match name.strip_prefix(API_KEY_DIGESTS.as_bytes()) {
        Some(hex) => Digest::of_hex(std::str::from_utf8(hex).ok()?),
        None => name.strip_prefix(API_KEYS.as_bytes()).map(Digest::of),
    }
}

/// Whether it can be a key in Redis. `sha256:…` is none: it would read the record of another key by its digest, and the
/// digest at rest would be as good as the key.
pub fn may_be_stored(key: &[u8]) -> bool {
    (1..=LONGEST_KEY).contains(&key.len())
        && key.iter().all(u8::is_ascii_graphic)
        && !key.starts_with(b"sha256:")
}

// === impl Digest ===

impl Digest {
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    pub fn of_hex(hex: &str) -> Option<Self> {
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(digest))
    }
}

/// In lower-case hex. A precision shortens it: `{digest:.8}` may be shown where the key itself may not.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(64);
        for place in 0..digits.min(64) {
            let byte = self.0[place / 2];
            let digit = if place % 2 == 0 { byte >> 4 } else { byte & 15 };
            write!(f, "{digit:x}")?;
        }
        Ok(())
    }
}

/// Whether Redis may have it in plain. Ours are stored by their digest alone, and are not named to Redis, where its slow log
/// and MONITOR would show them.
pub fn may_be_plain(key: &[u8]) -> bool {
    may_be_stored(key) && !key.starts_with(PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_in_hex_as_far_as_is_asked() {
        let digest = Digest::of(b"abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), hex);
        assert_eq!(format!("{digest:.8}"), &hex[..8]);
        assert!(Digest::of_hex(hex) == Some(digest));
        assert!(Digest::of_hex(&hex.to_uppercase()) == Some(digest));
        assert!(Digest::of_hex(&hex[1..]).is_none());
        assert!(Digest::of_hex(&hex.replace('b', "x")).is_none());
    }
}
