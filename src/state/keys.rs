//! Every Redis key that the gateway touches, its owner and its life.
//!
//! | key | written by | life |
//! |---|---|---|
//! | `session:blacklist:{token}` | operators, auth-service | the token's remaining life |
//! | `session:revoked:jti:{jti}` | auth-service | the token's remaining life |
//! | `session:revoked:user:{id}` | auth-service | the longest token's life; value: issued before, unix seconds |
//! | `session:revoked:tenant:{id}` | auth-service | as for users |
//! | `session:user:{id}` | the gateway (`admit::lookup`) | `auth.users.life`; the value says whose it is |
//! | `cache:venue:member:{venue}:{user}` | the gateway (`admit::lookup`) | `tenancy.life`; the value says whose it is |
//! | `apikey:sha256:{hex}` | operators (`api-gateway key`), the platform | until the key's `expires_at` |
//! | `apikey:{key}` | the platform, as the old gateway had it | the writer's |
//! | `lock:apikey:{id}` | `api-gateway key create` | 30 s, or until the command is done |
//! | `rl:ticket:{user}:{event}` | the gateway (`admit::limits::shared`) | the limit's window, or its block |
//! | `rl:user:{id}` `rl:api:{id}` `rl:ip:{ip}`, and each with `:{limit}` | the gateway (`admit::limits::shared`) | the limit's window |
//!
//! These braces stand for a value, but for `rl:` keys on a Cluster: there they are written, around the caller's id.

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

/// What a revocation key names.
#[derive(Debug, PartialEq, Eq)]
pub enum RevocationKey<'a> {
    Token(&'a [u8]),
    Jti(&'a str),
    User(&'a str),
    Tenant(&'a str),
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
            _ => None,
        }
    }
}
