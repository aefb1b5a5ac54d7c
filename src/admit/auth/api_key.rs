//! API keys (decision 19): found by the SHA-256 of what `X-API-Key` carries; the key itself is kept nowhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{AuthError, Caller, Source, Tier};
use crate::admit::permissions::{Permissions, is_permission};
use crate::admit::tenancy::Venues;
use crate::config::Problems;

/// A key with more characters than this is no key of ours.
const LONGEST_KEY: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// 64 hex digits: `printf %s "$KEY" | sha256sum`.
    pub sha256: String,
    pub tenant_id: String,
    pub permissions: Vec<String>,
    #[serde(default)]
    pub tier: Tier,
    /// That it may name.

    #[serde(default)]
    pub venues: Vec<String>,
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// All keys by their digest. Looking one up compares digests, so its time tells nothing of the key.
pub struct ApiKeys(HashMap<[u8; 32], ApiKey, ahash::RandomState>);

struct ApiKey {
    caller: Arc<Caller>,
    expires_at: Option<Timestamp>,
}

impl ApiKeys {
    pub fn compile(config: BTreeMap<String, ApiKeyConfig>, problems: &mut Problems) -> Self {
        let mut keys = HashMap::default();
        for (id, key) in config {
            let place = format!("auth.api_keys.{id}");
            let ApiKeyConfig {
                sha256,
                tenant_id,
                permissions,
                tier,
                venues,
                expires_at,
            } = key;
            for (i, permission) in permissions
                .iter()
                .enumerate()
                .filter(|(_, p)| !is_permission(p))
            {
                problems.add(
                    format!("{place}.permissions[{i}]"),
                    format!("`{permission}` is not `resource:action`"),
                );
            }
            let expires_at = expires_at.and_then(|text| {
                text.parse::<Timestamp>()
                    .inspect_err(|_| {
                        problems.add(
                            format!("{place}.expires_at"),
                            "is not a time such as 2027-01-31T00:00:00Z",
                        )
                    })
                    .ok()
            });
            let Some(digest) = digest_of_hex(&sha256) else {
                problems.add(format!("{place}.sha256"), "is not 64 hex digits");
                continue;
            };
            let Ok(tenant) = HeaderValue::try_from(tenant_id) else {
                problems.add(format!("{place}.tenant_id"), "must be visible ASCII");
                continue;
            };
            if tenant.is_empty() {
                problems.add(format!("{place}.tenant_id"), "must not be empty");
            }
            let permissions = Permissions::new(permissions);
            let caller = Arc::new(Caller {
                id: id.into(),
                role: None,
                permissions,
                tenant,
                source: Source::ApiKey,
                tier,
                venues: Venues::new(None, venues),
                is_complete: true,
            });
            if keys.insert(digest, ApiKey { caller, expires_at }).is_some() {
                problems.add(format!("{place}.sha256"), "is the key of another entry too");
            }
        }
        Self(keys)
    }

    /// The holder of the key that the request carries, if it carries one.
    ///
    /// # Errors
    /// When the key is unknown or over its time, or there are several.
    pub fn find(&self, headers: &HeaderMap) -> Result<Option<Arc<Caller>>, AuthError> {
        let mut given = headers.get_all("x-api-key").iter();
        let Some(key) = given.next() else {
            return Ok(None);
        };
        if given.next().is_some() || key.len() > LONGEST_KEY {
            return Err(AuthError::Invalid);
        }
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let key = self.0.get(&digest).ok_or(AuthError::Invalid)?;
        if key.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(AuthError::Expired);
        }
        Ok(Some(key.caller.clone()))
    }
}

fn digest_of_hex(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}
