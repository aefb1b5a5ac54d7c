//! Who is calling? A bearer token, or an API key where the route allows it (decisions 12 to 15, and 19).

pub mod api_key;
mod fetch;
mod jwks;
mod keys;
mod known;
mod logout;
pub mod refresh;
mod rights;
mod token;
mod users;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use prometheus::{IntCounter, IntCounterVec};
use serde::{Deserialize, Serialize};

use super::limits::{Exceeded, FailureGuard, FailureGuardConfig};
use super::lookup::Behalf;
use super::permissions::{Permissions, RoleId, Roles};
use super::tenancy::Venues;
use crate::config::{self, Duration, Problems, Secret, Stage};
use crate::connection::streams::{Credentials, Rule, StreamLimits, Streams};
use crate::forward::pool::Pools;
use crate::policies::Task;
use crate::state::{Revoked, TokenFacts};
use api_key::{ApiKeyConfig, ApiKeys, Given};
use jwks::Jwks;
pub use known::Known;
use logout::Logout;
use refresh::{Families, Refresh, RefreshConfig};
pub use rights::Rights;
use token::Tokens;
pub use token::unix_now;
pub use users::UsersConfig;
use users::{Incomplete, Users};

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    pub jwt: JwtConfig,
    pub refresh: RefreshConfig,
    pub users: UsersConfig,
    pub revocation: RevocationConfig,
    /// Keys by name. Only their SHA-256 is written down.
    pub api_keys: BTreeMap<String, ApiKeyConfig>,
    pub failures: FailureGuardConfig,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    pub issuer: String,
    pub secret: Option<Secret>,
    /// Signs access tokens where it differs from `secret`.
    pub access_secret: Option<Secret>,
    /// PEM, or the path of a PEM file.
    #[serde(serialize_with = "config::with_content")]
    pub public_key: Option<String>,
    pub jwks_url: Option<String>,
    pub jwks_refresh: Duration,
    /// Verified tokens that are remembered.
    pub cache_tokens: usize,
}

/// What holds for tokens while revocations were never read from Redis (decision 33).
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RevocationConfig {
    pub unknown: Unread,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unread {
    #[default]
    Accept,
    Refuse,
}

/// Whoever was identified. Everything in it was verified; nothing comes from a header that the client may set freely.
#[derive(Debug)]
pub struct Caller {
    pub id: Box<str>,
    pub role: Option<RoleId>,
    /// Of all that its credential says of what it may do.
    pub rights: Rights,
    /// Granted to this caller itself, beside its role.
    pub permissions: Permissions,
    pub tenant: HeaderValue,
    /// What `X-Tenant-Source` tells the backends.
    pub source: Source,
    pub tier: Tier,
    /// Its own, as far as its credential says.
    pub venues: Venues,
    /// Nothing more can be found out about it.
    pub is_complete: bool,
    /// What its token says of itself, where it has one.
    pub token: Option<TokenFacts>,
    /// When its credential is over; unix seconds.
    pub until: Option<i64>,
}

/// How many times the limits are a caller's: the documented multipliers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    #[default]
    Free = 1,
    Standard = 5,
    Premium = 10,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Jwt,
    ApiKey,
}

/// What callers are identified with.
pub struct Parts<'a> {
    pub stage: Stage,
    pub roles: &'a Arc<Roles>,
    pub known: &'a Known,
    pub pools: &'a Pools,
    pub streams: StreamLimits,
    pub attempts: Attempts,
    /// Whose place this takes.
    pub before: Option<&'a Auth>,
}

/// What a route asks of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthRule {
    /// Anybody.
    Public,
    /// A valid access token.
    Token,
    /// A valid access token, or a valid API key.
    TokenOrKey,
    /// Anybody at an address in `ops.allow`, elsewhere the role `admin`.
    Ops,
}

/// Who calls, and the holder of the key beside the token: both must be allowed what is asked (decision 19).
pub struct Identified {
    pub caller: Arc<Caller>,
    pub beside: Option<Arc<Caller>>,
}

/// Nobody was identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    NoCredentials,
    Invalid,
    Expired,
    /// Whoever could tell does not answer.
    CannotTell,
    /// This address has failed too often; its next unknown token is not even looked at.
    TooManyFailures(Exceeded),
}

/// The caller lacks what the route needs.
#[derive(Debug, PartialEq, Eq)]
pub struct MissingPermission;

/// The token is one tenant's and the key beside it another's.
#[derive(Debug, PartialEq, Eq)]
pub struct TenantsDiffer;

/// Identifies callers, and answers what they ask about their tokens.
pub struct Auth {
    tokens: Arc<Tokens>,
    api_keys: Arc<ApiKeys>,
    stream_limits: StreamLimits,
    users: Users,
    failures: FailureGuard,
    attempts: Attempts,
    /// Asked whether it was read, where no token counts before that.
    unread: Option<Arc<Revoked>>,
    /// Where POST /auth/refresh is ours.
    pub refresh: Option<Refresh>,
    pub logout: Arc<Logout>,
    /// What is open for callers, and is cut when they are revoked.
    pub streams: Arc<Streams>,
}

/// `authentication_attempts_total{status}` and `token_refreshes_total{outcome}`.
pub struct Attempts {
    pub success: IntCounter,
    pub failure: IntCounter,
    pub refreshes: IntCounterVec,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            issuer: "tickettoken-api".into(),
            secret: None,
            access_secret: None,
            public_key: None,
            jwks_url: None,
            jwks_refresh: Duration::secs(300),
            cache_tokens: 100_000,
        }
    }
}

impl AuthConfig {
    pub fn compile(self, parts: Parts<'_>, problems: &mut Problems) -> Auth {
        let Parts {
            stage,
            roles,
            known,
            pools,
            streams,
            attempts,
            before,
        } = parts;
        let revoked = &known.revoked;
        let Self {
            jwt,
            refresh,
            users,
            revocation: RevocationConfig { unknown },
            api_keys,
            failures,
        } = self;
        let users = users.compile(pools, known.users.clone(), roles.clone(), problems);
        let lives = refresh.lives(problems);
        let families = Families::new(lives, known.families.clone(), revoked.clone());
        let families = Arc::new(families);
        let tokens = token::Parts {
            stage,
            roles,
            revoked,
            look_up_all: users.always,
            random: &known.random,
            before: before.map(|before| &before.tokens),
        };
        Auth {
            unread: (unknown == Unread::Refuse).then(|| revoked.clone()),
            refresh: refresh.compile(&jwt, stage, families.clone(), &attempts, problems),
            logout: Arc::new(Logout::new(families, revoked.clone())),
            streams: known.streams.clone(),
            tokens: Tokens::compile(jwt, tokens, problems),
            users,
            api_keys: Arc::new(ApiKeys::compile(
                api_keys,
                known.stored_keys.clone(),
                problems,
            )),
            stream_limits: streams,
            failures: failures.compile(known.failures.clone(), problems),
            attempts,
        }
    }
}

// === impl Auth ===

impl Auth {
    /// Finds out who calls.
    ///
    /// With a key beside a token both must be valid; the token then names the caller.
    ///
    /// # Errors
    /// When a credential is missing, or any that was given is not valid.
    pub async fn identify(
        &self,
        rule: AuthRule,
        headers: &HeaderMap,
        client: IpAddr,
        now: Instant,
    ) -> Result<Identified, AuthError> {
        let found = self.find_caller(rule, headers, client, now).await;
        match &found {
            Ok(_) => self.attempts.success.inc(),
            Err(error) => {
                self.attempts.failure.inc();
                if *error == AuthError::Invalid {
                    self.failures.note(client, now);
                }
            }
        }
        found
    }

    async fn find_caller(
        &self,
        rule: AuthRule,
        headers: &HeaderMap,
        client: IpAddr,
        now: Instant,
    ) -> Result<Identified, AuthError> {
        let key = match rule {
            AuthRule::TokenOrKey => self.find_key_holder(headers, client, now).await?,
            AuthRule::Public | AuthRule::Token | AuthRule::Ops => None,
        };
        let Some(token) = bearer(headers)? else {
            let caller = key.ok_or(AuthError::NoCredentials)?;
            return Ok(Identified {
                caller,
                beside: None,
            });
        };
        if self
            .unread
            .as_ref()
            .is_some_and(|revoked| revoked.is_unread())
        {
            return Err(AuthError::CannotTell);
        }
        let caller = match self.tokens.recall(token) {
            Some(known) => known?,
            None => {
                self.failures.check(client, now)?;
                // Boxed: what is only needed for a new token must not be moved about for every request.
                Box::pin(self.tokens.verify(token)).await?
            }
        };
        Ok(Identified {
            caller,
            beside: key,
        })
    }

    /// The caller with what else can be found out about it, where its token does not say enough. `is_needed`: the
    /// request depends on it.
    ///
    /// # Errors
    /// When the user is gone, or it cannot be found out.
    pub async fn complete(
        &self,
        caller: Arc<Caller>,
        is_needed: bool,
        behalf: Behalf<'_>,
    ) -> Result<Arc<Caller>, Incomplete> {
        match caller.is_complete || !(is_needed || self.users.always) {
            true => Ok(caller),
            false => Box::pin(self.users.complete(caller, behalf)).await,
        }
    }

    async fn find_key_holder(
        &self,
        headers: &HeaderMap,
        client: IpAddr,
        now: Instant,
    ) -> Result<Option<Arc<Caller>>, AuthError> {
        let guarded = |error| match error {
            // Guessing keys costs what guessing tokens costs.
            AuthError::Invalid => self.failures.check(client, now).err().unwrap_or(error),
            _ => error,
        };
        let Some(given) = Given::of(headers).map_err(guarded)? else {
            return Ok(None);
        };
        let found = match self.api_keys.recall(&given) {
            Some(known) => known,
            None => {
                self.failures.check(client, now)?;
                Box::pin(self.api_keys.look_up(&given)).await
            }
        };
        found.map(Some).map_err(guarded)
    }

    /// What a caller was let in with: what is open for it lasts no longer.
    pub fn credentials(
        &self,
        headers: &HeaderMap,
        caller: Option<&Arc<Caller>>,
        beside: Option<&Arc<Caller>>,
    ) -> Credentials {
        let key = Given::of(headers).ok().flatten().map(|given| given.keep());
        Credentials::new(bearer(headers).ok().flatten(), key, caller, beside)
    }

    /// Whether credentials of this address that were not seen before are looked at.
    ///
    /// # Errors
    /// When it has failed too often.
    pub fn may_fail(&self, client: IpAddr, now: Instant) -> Result<(), AuthError> {
        self.failures.check(client, now)
    }

    /// A credential that this address gave was not valid.
    pub fn failed(&self, client: IpAddr, now: Instant) {
        self.failures.note(client, now);
    }

    /// The issuer's keys, where they come from one.
    pub fn jwks(&self) -> Option<&Arc<Jwks>> {
        self.tokens.jwks()
    }

    /// Fetches the issuer's keys, where nobody has yet.
    pub async fn first_look(&self) {
        self.tokens.first_look().await;
    }

    /// From now on what streams is asked about here.
    pub fn begins(&self) {
        self.streams.obey(Rule {
            keys: self.api_keys.clone(),
            limits: self.stream_limits,
        });
    }

    /// What keeps the issuer's keys fresh.
    pub fn tasks(&self) -> impl Iterator<Item = Task> {
        self.tokens.tasks()
    }
}

/// The token of `Authorization: Bearer`. Another scheme is no token; two headers are no answer to "who".
pub fn bearer(headers: &HeaderMap) -> Result<Option<&[u8]>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(AuthError::Invalid);
    }
    match value.as_bytes().split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
            match token.trim_ascii() {
                [] => Err(AuthError::NoCredentials),
                token => Ok(Some(token)),
            }
        }
        _ => Err(AuthError::NoCredentials),
    }
}

// === impl Identified ===

impl Identified {
    /// # Errors
    /// When the holder of the key beside the token is of another tenant: what one of them may do is nothing to the other.
    pub fn of_one_tenant(self) -> Result<Self, TenantsDiffer> {
        match &self.beside {
            Some(beside) if beside.tenant != self.caller.tenant => Err(TenantsDiffer),
            _ => Ok(self),
        }
    }
}

// === impl Tier ===

impl Tier {
    pub fn name(self) -> &'static str {
        match self {
            Tier::Free => "free",
            Tier::Standard => "standard",
            Tier::Premium => "premium",
        }
    }
}

// === impl Caller ===

impl Caller {
    /// What the caller's limits are counted on: `rl:user:{id}` or `rl:api:{id}`.
    pub fn limit_key(&self) -> (&'static str, &str) {
        match self.source {
            Source::Jwt => ("rl:user:", &self.id),
            Source::ApiKey => ("rl:api:", &self.id),
        }
    }

    /// Whether it is who the other is, and may do what the other may.
    pub fn may_the_same_as(&self, other: &Self) -> bool {
        let rights = |caller: &Self| (caller.role, caller.source, caller.tier);
        self.id == other.id
            && self.tenant == other.tenant
            && self.permissions == other.permissions
            && self.venues == other.venues
            && rights(self) == rights(other)
    }
}

impl Source {
    pub fn header(self) -> HeaderValue {
        match self {
            Source::Jwt => HeaderValue::from_static("jwt"),
            Source::ApiKey => HeaderValue::from_static("api-key"),
        }
    }
}
