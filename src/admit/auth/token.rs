//! Bearer tokens: verified once, remembered until they expire.
//!
//! What is remembered is found by the whole token, compared byte for byte; a token that failed is remembered as
//! failed, so that no signature is checked twice.

use std::sync::Arc;

use http::HeaderValue;
use jsonwebtoken::errors::ErrorKind;

use serde::Deserialize;

use super::jwks::{Jwks, keep_fresh};
use super::keys::{RandomSecret, VerifyingKey, local_keys};
use super::{AuthError, Caller, JwtConfig, Rights, Source, Tier};
use crate::admit::permissions::{Permissions, Roles};
use crate::admit::tenancy::Venues;
use crate::config::{Problems, Stage, tree};
use crate::observe::logging::unix_millis;
use crate::policies::Task;
use crate::state::{Family, Memory, Revoked, TokenFacts, memory};

/// A token longer than this is no token of ours; it also would not fit the header block beside anything else.
pub const LONGEST_TOKEN: usize = 8 << 10;

/// Failed tokens that are remembered.
const FAILED_TOKENS: usize = 10_000;

pub const LEEWAY: i64 = super::keys::LEEWAY as i64;

/// Verifies tokens and remembers the outcome.
pub struct Tokens {
    local: Vec<VerifyingKey>,
    jwks: Option<Arc<Jwks>>,
    roles: Arc<Roles>,
    revoked: Arc<Revoked>,
    good: Memory<Box<[u8]>, Arc<Verified>>,
    /// By seeded hash: a token that failed need not be kept to be known again.
    bad: Memory<u64, ()>,
    hasher: ahash::RandomState,
    /// What tokens say of their users is not the last word.
    look_up_all: bool,
    /// What the configuration says of tokens: while that holds, what is remembered does.
    basis: serde_yaml::Value,
}

/// What tokens are verified with, beside their own configuration.
pub struct Parts<'a> {
    pub stage: Stage,
    pub roles: &'a Arc<Roles>,
    pub revoked: &'a Arc<Revoked>,
    pub look_up_all: bool,
    pub random: &'a RandomSecret,
    /// Whose place these take.
    pub before: Option<&'a Arc<Tokens>>,
}

struct Verified {
    caller: Arc<Caller>,
    expires: i64,
    /// Which key set it was verified under; 0 for a local key.
    jwks_generation: u64,
}

/// The documented claims. A claim that appears twice, or has another type, makes the token invalid.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    id: Option<String>,
    role: Option<String>,
    permissions: Option<Vec<String>>,
    tenant_id: String,
    #[serde(rename = "type")]
    kind: String,
    /// One string; the library would accept a list.
    #[serde(rename = "iss")]
    _issuer: String,
    exp: f64,
    iat: Option<f64>,
    jti: Option<String>,
    /// The refresh token that it came with names the same.
    family: Option<String>,
    #[serde(rename = "venueId")]
    venue: Option<String>,
    venues: Option<Vec<String>>,
}

impl Tokens {
    pub fn compile(mut config: JwtConfig, parts: Parts<'_>, problems: &mut Problems) -> Arc<Self> {
        let Parts {
            stage,
            roles,
            revoked,
            look_up_all,
            random,
            before,
        } = parts;
        let basis = tree(&config);
        if let Some(unchanged) = before.filter(|before| {
            let says_the_same = before.basis == basis && before.look_up_all == look_up_all;
            says_the_same && before.roles.has_same_ids(roles)
        }) {
            return unchanged.clone();
        }
        let local = local_keys(&mut config, stage, random, problems);
        let JwtConfig {
            issuer,
            secret: _,
            access_secret: _,
            public_key: _,
            jwks_url,
            jwks_refresh,
            cache_tokens,
        } = config;
        if issuer.is_empty() {
            problems.add("auth.jwt.issuer", "must not be empty");
        }
        if cache_tokens == 0 {
            problems.add("auth.jwt.cache_tokens", "must be at least 1");
        }
        let jwks = jwks_url.and_then(|url| {
            let before = before.and_then(|before| before.jwks.as_ref());
            if let Some(same) = before.filter(|jwks| jwks.is_of(&url, jwks_refresh.0, &issuer)) {
                return Some(same.clone());
            }
            Jwks::new(url, jwks_refresh.0, issuer)
                .inspect_err(|fault| problems.add("auth.jwt.jwks_url", fault.clone()))
                .ok()
                .map(Arc::new)
        });
        Arc::new(Self {
            local,
            jwks,
            roles: roles.clone(),
            revoked: revoked.clone(),
            good: memory(cache_tokens),
            bad: memory(FAILED_TOKENS),
            look_up_all,
            hasher: ahash::RandomState::new(),
            basis,
        })
    }

    /// The outcome for a token that was seen before, if it still holds.
    pub fn recall(&self, token: &[u8]) -> Option<Result<Arc<Caller>, AuthError>> {
        let Some(verified) = self.good.get(token) else {
            return self
                .bad
                .get(&self.bad_key(token, self.generation()))
                .map(|()| Err(AuthError::Invalid));
        };
        if verified.expires.saturating_add(LEEWAY) < unix_now() {
            self.good.remove(token);
            return Some(Err(AuthError::Expired));
        }
        if self.is_revoked(token, &verified.caller) {
            return Some(Err(AuthError::Invalid));
        }
        // A key that its issuer took back takes its tokens with it.
        if verified.jwks_generation != 0 && verified.jwks_generation != self.generation() {
            self.good.remove(token);
            return None;
        }
        Some(Ok(verified.caller.clone()))
    }

    /// Verifies a token that [`Tokens::recall`] does not know.
    pub async fn verify(&self, token: &[u8]) -> Result<Arc<Caller>, AuthError> {
        let generation = self.generation();
        let outcome = self.verify_signed(token).await;
        match outcome {
            Ok(verified) => {
                let verified = Arc::new(verified);
                self.good.insert(token.into(), verified.clone());
                if self.is_revoked(token, &verified.caller) {
                    return Err(AuthError::Invalid);
                }
                Ok(verified.caller.clone())
            }
            Err(Rejected::For(error)) => {
                if error == AuthError::Invalid {
                    self.bad.insert(self.bad_key(token, generation), ());
                }
                Err(error)
            }
            // It may be good soon: nothing is remembered.
            Err(Rejected::ForNow) => Err(AuthError::Invalid),
        }
    }

    fn is_revoked(&self, token: &[u8], caller: &Caller) -> bool {
        let facts = caller.token.as_ref();
        facts.is_some_and(|facts| self.revoked.is_revoked(token, facts))
    }

    fn generation(&self) -> u64 {
        self.jwks.as_ref().map_or(0, |jwks| jwks.generation())
    }

    /// A token that failed may be good under the issuer's next set.
    fn bad_key(&self, token: &[u8], generation: u64) -> u64 {
        self.hasher.hash_one((token, generation))
    }

    async fn verify_signed(&self, token: &[u8]) -> Result<Verified, Rejected> {
        let invalid = Rejected::For(AuthError::Invalid);
        if token.len() > LONGEST_TOKEN {
            return Err(invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| invalid)?;
        // Extensions that must be understood are not (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(invalid);
        }
        let mut rejected = invalid;
        let mut tried = |key: &VerifyingKey, generation| {
            let outcome = self.verify_with(key, header.alg, token, generation);
            if let Err(reason @ (Rejected::For(AuthError::Expired) | Rejected::ForNow)) = outcome {
                rejected = reason;
            }
            outcome.ok()
        };
        let set = match (&self.jwks, &header.kid) {
            (None, _) => Arc::default(),
            (Some(jwks), Some(kid)) => jwks.with_key(kid).await,
            (Some(jwks), None) => jwks.current(),
        };
        let mut issuers_key_is_known = self.jwks.is_none();
        for key in set
            .keys
            .iter()
            .filter(|key| header.kid.is_none() || key.kid == header.kid)
        {
            issuers_key_is_known = true;
            if let Some(verified) = tried(key, set.generation) {
                return Ok(verified);
            }
        }
        // A `kid` of the issuer's names that key alone.
        let locals_may = header.kid.is_none() || !issuers_key_is_known || self.jwks.is_none();
        for key in self.local.iter().filter(|_| locals_may) {
            if let Some(verified) = tried(key, 0) {
                return Ok(verified);
            }
        }
        match rejected {
            Rejected::For(AuthError::Invalid) if !issuers_key_is_known => Err(Rejected::ForNow),
            rejected => Err(rejected),
        }
    }

    fn verify_with(
        &self,
        key: &VerifyingKey,
        algorithm: jsonwebtoken::Algorithm,
        token: &[u8],
        jwks_generation: u64,
    ) -> Result<Verified, Rejected> {
        let invalid = Rejected::For(AuthError::Invalid);
        if key.algorithm != algorithm {
            return Err(invalid);
        }
        let claims = match jsonwebtoken::decode::<Claims>(token, &key.key, &key.validation) {
            Ok(decoded) => decoded.claims,
            Err(e) if *e.kind() == ErrorKind::ExpiredSignature => {
                return Err(Rejected::For(AuthError::Expired));
            }
            Err(e) if *e.kind() == ErrorKind::ImmatureSignature => return Err(Rejected::ForNow),
            Err(_) => return Err(invalid),
        };
        self.verified(claims, jwks_generation).ok_or(invalid)
    }

    fn verified(&self, claims: Claims, jwks_generation: u64) -> Option<Verified> {
        let Claims {
            sub,
            id,
            role,
            permissions,
            tenant_id,
            kind,
            _issuer: _,
            exp,
            iat,
            jti,
            family,
            venue,
            venues,
        } = claims;
        let id = sub.or(id).filter(|id| is_identifier(id))?;
        if kind != "access" || !is_identifier(&tenant_id) {
            return None;
        }
        let family = match family {
            Some(name) => Some(Family::named(&name)?),
            None => None,
        };
        let facts = TokenFacts {
            user: id.clone().into(),
            tenant: tenant_id.clone().into(),
            jti,
            family,
            issued: iat.unwrap_or(0.0) as i64,
            expires: exp as i64,
        };
        let is_complete = !self.look_up_all && (role.is_some() || permissions.is_some());
        let permissions = permissions.unwrap_or_default();
        let own = venue.iter().chain(venues.iter().flatten());
        let caller = Caller {
            rights: Rights::of(role.as_deref(), &permissions, own.map(String::as_str)),
            tier: Tier::default(),
            id: id.into(),
            role: role.and_then(|role| self.roles.id(&role)),
            permissions: Permissions::new(permissions),
            tenant: HeaderValue::try_from(tenant_id).ok()?,
            source: Source::Jwt,
            venues: Venues::new(venue, venues.into_iter().flatten()),
            is_complete,
            token: Some(facts),
            until: Some((exp as i64).saturating_add(LEEWAY)),
        };
        Some(Verified {
            caller: Arc::new(caller),
            expires: exp as i64,
            jwks_generation,
        })
    }

    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.jwks.as_ref()
    }

    pub async fn first_look(&self) {
        if let Some(jwks) = &self.jwks {
            jwks.first_look().await;
        }
    }

    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        self.jwks.iter().map(|jwks| Task::of(jwks, keep_fresh))
    }
}

#[derive(Clone, Copy)]
enum Rejected {
    For(AuthError),
    /// The issuer has no such key, or the token does not hold yet (`nbf`): both may change.
    ForNow,
}

/// Visible ASCII, and not so long that it could not travel in a header.
pub fn is_identifier(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

pub fn unix_now() -> i64 {
    (unix_millis() / 1000) as i64
}
