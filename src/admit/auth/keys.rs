//! The keys that tokens are verified with. Each has one algorithm, fixed when it is read: a token's `alg` never
//! chooses what kind of key it is checked with (RFC 8725, section 3.1).

use std::io;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use once_cell::sync::OnceCell;

use super::JwtConfig;
use crate::config::{self, Problems, Secret, Stage};

/// In characters, as documented: 256 bits if they are random.
pub const SHORTEST_SECRET: usize = 32;

/// Seconds that our clock and the issuer's may differ (decision 12).
pub const LEEWAY: u64 = 5;

/// A key, its one algorithm, and what a token signed with it must hold.
pub struct VerifyingKey {
    pub kid: Option<String>,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
    pub validation: Validation,
}

impl VerifyingKey {
    fn new(kid: Option<String>, algorithm: Algorithm, key: DecodingKey, issuer: &str) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        Self {
            kid,
            algorithm,
            key,
            validation,
        }
    }
}

/// In place of one that is not configured, in development; it lives as long as the process.
pub type RandomSecret = OnceCell<Secret>;

/// The keys of the configuration itself: the shared secret and the public key.
pub fn local_keys(
    config: &mut JwtConfig,
    stage: Stage,
    random: &RandomSecret,
    problems: &mut Problems,
) -> Vec<VerifyingKey> {
    let mut keys = Vec::new();
    let has_public_key = config.public_key.is_some() || config.jwks_url.is_some();
    let long_enough = |variable: &str, secret: Option<Secret>, problems: &mut Problems| {
        let secret = secret?;
        if secret.expose().chars().count() >= SHORTEST_SECRET {
            return Some(secret);
        }
        let fault = format!("{variable} must have at least {SHORTEST_SECRET} characters");
        match stage {
            Stage::Development => log::warn!("{fault}: it is not used"),
            Stage::Staging | Stage::Production => {
                problems.add(format!("auth.jwt ({variable})"), fault)
            }
        }
        None
    };
    let faults_before = problems.len();
    let secret = long_enough("JWT_SECRET", config.secret.take(), problems);
    let access_secret = long_enough("JWT_ACCESS_SECRET", config.access_secret.take(), problems);
    match access_secret.or(secret) {
        Some(secret) => keys.push(hs256(&secret, &config.issuer)),
        None if has_public_key || problems.len() > faults_before => {}
        None if stage == Stage::Development => {
            log::warn!("JWT_SECRET is not set: a random one is in force until this process ends");
            match random.get_or_try_init(random_secret) {
                Ok(secret) => keys.push(hs256(secret, &config.issuer)),
                Err(e) => problems.add(
                    "auth.jwt.secret",
                    format!("no random secret can be made: {e}"),
                ),
            }
        }
        None => problems.add(
            "auth.jwt.secret",
            "JWT_SECRET is required in staging and production (or JWT_PUBLIC_KEY, or JWT_JWKS_URL)",
        ),
    }
    if let Some(text) = config.public_key.take() {
        match public_key(&text, &config.issuer) {
            Ok(key) => keys.push(key),
            Err(fault) => problems.add("auth.jwt.public_key", fault),
        }
    }
    keys
}

fn random_secret() -> Result<Secret, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(Secret::new(hex(&bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn hs256(secret: &Secret, issuer: &str) -> VerifyingKey {
    VerifyingKey::new(
        None,
        Algorithm::HS256,
        DecodingKey::from_secret(secret.expose().as_bytes()),
        issuer,
    )
}

/// PEM, or the path of a file that holds it. The algorithm follows from the type of the key.
fn public_key(text: &str, issuer: &str) -> Result<VerifyingKey, String> {
    let pem = if text.contains("-----BEGIN") {
        // Environment files cannot hold line breaks; they carry `\n` instead.
        text.replace("\\n", "\n")
    } else {
        config::contents(text)
            .and_then(|pem| String::from_utf8(pem).map_err(io::Error::other))
            .map_err(|e| format!("is neither PEM nor the path of a readable file: {e}"))?
    };
    let pem = pem.as_bytes();
    let readings = [
        (Algorithm::RS256, DecodingKey::from_rsa_pem(pem)),
        (
            Algorithm::ES256,
            DecodingKey::from_ec_pem(pem).and_then(p256),
        ),
        (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem)),
    ];
    readings
        .into_iter()
        .find_map(|(algorithm, key)| Some(VerifyingKey::new(None, algorithm, key.ok()?, issuer)))
        .ok_or_else(|| "is not a public key for RS256, ES256 or EdDSA in PEM".to_owned())
}

/// Only a point of 256 bits: the library reads the PEM of every curve.
fn p256(key: DecodingKey) -> Result<DecodingKey, jsonwebtoken::errors::Error> {
    match key.try_get_as_bytes()?.len() {
        65 => Ok(key),
        _ => Err(ErrorKind::InvalidKeyFormat.into()),
    }
}

/// The usable keys of a JWK set; symmetric keys and keys for encryption are left out.
pub fn keys_of_set(set: &JwkSet, issuer: &str) -> Vec<VerifyingKey> {
    set.keys
        .iter()
        .filter_map(|jwk| key_of_jwk(jwk, issuer))
        .collect()
}

fn key_of_jwk(jwk: &Jwk, issuer: &str) -> Option<VerifyingKey> {
    if !matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    ) {
        return None;
    }
    let declared = jwk
        .common
        .key_algorithm
        .map(Algorithm::try_from)
        .transpose()
        .ok()?;
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => declared.unwrap_or(Algorithm::RS256),
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P384 => Algorithm::ES384,
        AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let is_rsa = matches!(jwk.algorithm, AlgorithmParameters::RSA(_));
    let fits = match declared {
        None => true,
        Some(declared) if is_rsa => {
            use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
            matches!(declared, RS256 | RS384 | RS512 | PS256 | PS384 | PS512)
        }
        Some(declared) => declared == algorithm,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    fits.then(|| VerifyingKey::new(jwk.common.key_id.clone(), algorithm, key, issuer))
}
