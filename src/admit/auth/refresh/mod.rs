//! POST /auth/refresh: a refresh token for a new pair, once (decision 16).
//!
//! The gateway answers it where it holds the secret that refresh tokens are signed with; elsewhere auth-service does. The
//! token is verified, then the store decides whether it is its family's current one, and only then a pair leaves.

mod body;
mod families;
mod memory;
mod token;

use std::sync::Arc;

use prometheus::IntCounterVec;
use serde::{Deserialize, Serialize};

use super::keys::SHORTEST_SECRET;
use super::{Attempts, JwtConfig};
use crate::config::{Duration, Problems, Secret, Stage};
use crate::reply::Refusal;
use crate::state::{Family, Revoked, TokenFacts};
pub use body::{LARGEST, check_fields, token_of};
pub use families::{Families, Store};
use families::{Lives, Presented, Verdict};
use token::Mint;
pub use token::Pair;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RefreshConfig {
    pub mode: RefreshMode,
    pub secret: Option<Secret>,
    pub access_life: Duration,
    pub refresh_life: Duration,
}

/// Who answers POST /auth/refresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RefreshMode {
    /// The gateway if it holds the refresh secret.
    #[default]
    Auto,
    /// The gateway; the refresh secret is that of access tokens where it is not set.
    Gateway,
    /// auth-service.
    Proxy,
}

/// What a route does to its caller's tokens, where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionStep {
    Refresh,
    Logout,
}

/// Answers for auth-service.
pub struct Refresh {
    mint: Mint,
    families: Arc<Families>,
    revoked: Arc<Revoked>,
    outcomes: IntCounterVec,
}

/// What came of a refresh token, and whose it is if it was a good one once.
pub struct Refreshed {
    pub holder: Option<TokenFacts>,
    pub outcome: Result<Pair, Reason>,
}

/// Why there is no new pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Invalid,
    Expired,
    /// The token itself, its user, its tenant or its family.
    Revoked,
    /// Somebody has used it before.
    Reused,
    /// What was known of its family is lost.
    Unknown,
    /// Nobody can tell at the moment.
    Unavailable,
}

/// `token_refreshes_total{outcome}`.
const SUCCESS: &str = "success";

/// Longest lives, and shortest: tokens count in seconds.
const LIVES: std::ops::RangeInclusive<Duration> = Duration::secs(1)..=Duration::secs(3650 * 86_400);

impl Default for RefreshConfig {
    fn default() -> Self {
        Self {
            mode: RefreshMode::Auto,
            secret: None,
            access_life: Duration::secs(86_400),
            refresh_life: Duration::secs(7 * 86_400),
        }
    }
}

impl RefreshConfig {
    pub fn lives(&self, problems: &mut Problems) -> Lives {
        let (access, refresh) = (self.access_life, self.refresh_life);
        if !LIVES.contains(&access) || !LIVES.contains(&refresh) || refresh < access {
            problems.add(
                "auth.refresh",
                "access_life and refresh_life must be between 1s and 3650d, and refresh_life not shorter than access_life",
            );
        }
        Lives {
            access: access.0,
            refresh: refresh.0,
        }
    }

    /// `None`: it is auth-service's to answer.
    pub fn compile(
        self,
        jwt: &JwtConfig,
        stage: Stage,
        families: Arc<Families>,
        attempts: &Attempts,
        problems: &mut Problems,
    ) -> Option<Refresh> {
        let lives = families.lives();
        let Self {
            mode,
            secret,
            access_life: _, // `lives` has looked at them
            refresh_life: _,
        } = self;
        let is_long = |secret: &&Secret| secret.expose().chars().count() >= SHORTEST_SECRET;
        if secret.as_ref().is_some_and(|secret| !is_long(&secret)) {
            let fault = "JWT_REFRESH_SECRET must have at least 32 characters";
            match stage {
                Stage::Development => log::warn!("{fault}: it is not used"),
                Stage::Staging | Stage::Production => problems.add("auth.refresh.secret", fault),
            }
        }
        let secret = secret.filter(|secret| is_long(&secret));
        let access = jwt.access_secret.as_ref().filter(is_long);
        let access = access.or(jwt.secret.as_ref().filter(is_long));
        let refresh = match (mode, &secret, access) {
            (RefreshMode::Proxy, ..) | (RefreshMode::Auto, None, _) => return None,
            (RefreshMode::Auto, Some(_), None) => {
                log::warn!(
                    "JWT_REFRESH_SECRET is not used: without JWT_SECRET the gateway signs no access tokens"
                );
                return None;
            }
            (RefreshMode::Gateway, _, None) => {
                problems.add(
                    "auth.refresh.mode",
                    "`gateway` needs JWT_SECRET (or JWT_ACCESS_SECRET), to sign access tokens with",
                );
                return None;
            }
            (_, secret, Some(access)) => secret.as_ref().unwrap_or(access),
        };
        let outcomes = attempts.refreshes.clone();
        for outcome in Reason::ALL.map(Reason::name).into_iter().chain([SUCCESS]) {
            outcomes.with_label_values(&[outcome]);
        }
        Some(Refresh {
            mint: Mint::new(refresh, access?, &jwt.issuer, lives),
            revoked: families.revoked().clone(),
            families,
            outcomes,
        })
    }
}

// === impl Refresh ===

impl Refresh {
    /// A new pair for a refresh token.
    pub async fn refresh(&self, token: &str) -> Refreshed {
        let refreshed = match self.mint.verify(token) {
            Ok(verified) => Refreshed {
                outcome: self.rotate(token, &verified).await,
                holder: Some(verified.facts),
            },
            Err(reason) => Refreshed {
                outcome: Err(reason),
                holder: None,
            },
        };
        let outcome = refreshed.outcome.as_ref().err();
        let outcome = outcome.map_or(SUCCESS, |reason| reason.name());
        self.outcomes.with_label_values(&[outcome]).inc();
        refreshed
    }

    /// The family of a refresh token, if it is a good one of this holder's.
    pub fn family_of(&self, token: &str, holder: &TokenFacts) -> Option<Family> {
        let verified = self.mint.verify(token).ok()?;
        let TokenFacts { user, tenant, .. } = &verified.facts;
        (*user == holder.user && *tenant == holder.tenant).then_some(verified.family)
    }

    async fn rotate(&self, token: &str, verified: &token::Verified) -> Result<Pair, Reason> {
        let unavailable = |_| Reason::Unavailable;
        if self.revoked.is_revoked(token.as_bytes(), &verified.facts) {
            return Err(Reason::Revoked);
        }
        let minted = self.mint.mint(verified).map_err(unavailable)?;
        let presented = Presented {
            family: &verified.family,
            id: verified.id(),
            expires: verified.facts.expires,
        };
        match self.families.rotate(&presented, &minted.id).await {
            Ok(Verdict::Rotated) => Ok(minted.pair),
            Ok(Verdict::Reused) => Err(Reason::Reused),
            Ok(Verdict::Dead) => Err(Reason::Revoked),
            Ok(Verdict::Unknown) => Err(Reason::Unknown),
            Err(away) => Err(unavailable(away)),
        }
    }
}

// === impl Reason ===

impl Reason {
    const ALL: [Self; 6] = [
        Self::Invalid,
        Self::Expired,
        Self::Revoked,
        Self::Reused,
        Self::Unknown,
        Self::Unavailable,
    ];

    /// What logs and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Reused => "reused",
            Self::Unknown => "unknown",
            Self::Unavailable => "unavailable",
        }
    }

    /// Whether it counts as a failed authentication of its address.
    pub fn is_suspicious(self) -> bool {
        // The others were good tokens once: who holds them does not guess.
        matches!(self, Self::Invalid | Self::Reused)
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Expired => Refusal::TokenExpired,
            Reason::Unavailable => Refusal::Unavailable {
                service: "token refresh".into(),
                retry_after_secs: 1,
            },
            Reason::Invalid | Reason::Revoked | Reason::Reused | Reason::Unknown => {
                Refusal::InvalidToken
            }
        }
    }
}
