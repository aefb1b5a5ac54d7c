//! Refresh tokens are verified here, and the pairs that follow them minted: HS256 both, each with its own secret.

use http::HeaderValue;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Reason;
use super::families::Lives;
use crate::admit::auth::keys::{VerifyingKey, hex, hs256};
use crate::admit::auth::token::{LONGEST_TOKEN, is_identifier, unix_now};
use crate::config::Secret;
use crate::state::{Away, Family, TokenFacts, signed_part};

/// The keys of both kinds of token.
pub struct Mint {
    verifying: VerifyingKey,
    refresh: EncodingKey,
    access: EncodingKey,
    issuer: String,
    lives: Lives,
}

/// A refresh token that holds.
pub struct Verified {
    pub facts: TokenFacts,
    pub family: Family,
    /// How many rotations it took to come to it; 0 for one that no gateway minted.
    rotation: u64,
    holder: Holder,
}

/// What the gateway answers: exactly the documented members.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pair {
    access_token: String,
    refresh_token: String,
}

/// A pair, and the id of its refresh token.
pub struct Minted {
    pub pair: Pair,
    pub id: String,
}

/// What a pair's tokens say of their holder: what the token before them said. A claim that appears twice, or has another
/// type, makes the token invalid.
#[derive(Clone, Deserialize, Serialize)]
struct Holder {
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    permissions: Option<Vec<String>>,
    tenant_id: String,
    #[serde(rename = "venueId", skip_serializing_if = "Option::is_none")]
    venue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    venues: Option<Vec<String>>,
}

/// The claims of a refresh token.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    id: Option<String>,
    email: Option<String>,
    role: Option<String>,
    permissions: Option<Vec<String>>,
    tenant_id: String,
    #[serde(rename = "venueId")]
    venue: Option<String>,
    venues: Option<Vec<String>>,
    #[serde(rename = "type")]
    kind: String,
    /// One string; the library would accept a list.
    #[serde(rename = "iss")]
    _issuer: String,
    exp: f64,
    iat: Option<f64>,
    jti: Option<String>,
    family: Option<String>,
    rotation: Option<u64>,
}

/// The claims of a token that is minted.
#[derive(Serialize)]
struct Minting<'a> {
    #[serde(flatten)]
    holder: &'a Holder,
    #[serde(rename = "type")]
    kind: &'static str,
    iss: &'a str,
    iat: i64,
    exp: i64,
    jti: &'a str,
    family: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotation: Option<u64>,
}

impl Mint {
    pub fn new(refresh: &Secret, access: &Secret, issuer: &str, lives: Lives) -> Self {
        let signing = |secret: &Secret| EncodingKey::from_secret(secret.expose().as_bytes());
        Self {
            verifying: hs256(refresh, issuer),
            refresh: signing(refresh),
            access: signing(access),
            issuer: issuer.to_owned(),
            lives,
        }
    }

    /// # Errors
    /// When it is no refresh token of ours, or its time is over.
    pub fn verify(&self, token: &str) -> Result<Verified, Reason> {
        if token.len() > LONGEST_TOKEN {
            return Err(Reason::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Reason::Invalid)?;
        if header.crit.is_some() || header.alg != Algorithm::HS256 {
            return Err(Reason::Invalid);
        }
        let VerifyingKey {
            key, validation, ..
        } = &self.verifying;
        match jsonwebtoken::decode::<Claims>(token, key, validation) {
            Ok(decoded) => verified(token, decoded.claims).ok_or(Reason::Invalid),
            Err(e) if *e.kind() == ErrorKind::ExpiredSignature => Err(Reason::Expired),
            Err(_) => Err(Reason::Invalid),
        }
    }

    /// The pair that follows `token`.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn mint(&self, token: &Verified) -> Result<Minted, Away> {
        let (access_id, id) = (random_id()?, random_id()?);
        let now = unix_now();
        let Lives { access, refresh } = self.lives;
        let ends = |life: std::time::Duration| now.saturating_add(life.as_secs() as i64);
        let claims = |kind, jti, exp, rotation| Minting {
            holder: &token.holder,
            kind,
            iss: &self.issuer,
            iat: now,
            exp,
            jti,
            family: token.family.name(),
            rotation,
        };
        let sign = |claims: &Minting<'_>, key| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, key).map_err(|e| {
                log::error!("a token cannot be signed: {e}");
                Away
            })
        };
        let rotation = Some(token.rotation.saturating_add(1));
        Ok(Minted {
            pair: Pair {
                access_token: sign(
                    &claims("access", &access_id, ends(access), None),
                    &self.access,
                )?,
                refresh_token: sign(
                    &claims("refresh", &id, ends(refresh), rotation),
                    &self.refresh,
                )?,
            },
            id,
        })
    }
}

// === impl Verified ===

impl Verified {
    /// The id by which the store knows it, if a gateway minted it.
    pub fn id(&self) -> Option<&str> {
        self.facts.jti.as_deref().filter(|_| self.rotation > 0)
    }
}

/// The same conditions as for access tokens, so that what is minted from it is one.
fn verified(token: &str, claims: Claims) -> Option<Verified> {
    let Claims {
        sub,
        id,
        email,
        role,
        permissions,
        tenant_id,
        venue,
        venues,
        kind,
        _issuer: _,
        exp,
        iat,
        jti,
        family,
        rotation,
    } = claims;
    let user = sub
        .as_ref()
        .or(id.as_ref())
        .filter(|id| is_identifier(id))?;
    let rotation = rotation.unwrap_or(0);
    let is_whole = rotation == 0 || (family.is_some() && jti.is_some());
    if kind != "refresh" || !is_identifier(&tenant_id) || !is_whole {
        return None;
    }
    HeaderValue::try_from(&tenant_id).ok()?;
    let family = match family {
        Some(name) => Family::named(&name)?,
        None => derived_family(token)?,
    };
    Some(Verified {
        facts: TokenFacts {
            user: user.clone().into(),
            tenant: tenant_id.clone().into(),
            jti,
            family: Some(family.clone()),
            issued: iat.unwrap_or(0.0) as i64,
            expires: exp as i64,
        },
        family,
        rotation,
        holder: Holder {
            sub,
            id,
            email,
            role,
            permissions,
            tenant_id,
            venue,
            venues,
        },
    })
}

/// The family that begins with a token that names none: the same in every process.
fn derived_family(token: &str) -> Option<Family> {
    let digest = Sha256::digest(signed_part(token.as_bytes()));
    Family::named(&hex(&digest[..16]))
}

fn random_id() -> Result<String, Away> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| {
        log::error!("no random id can be made: {e}");
        Away
    })?;
    Ok(hex(&bytes))
}
