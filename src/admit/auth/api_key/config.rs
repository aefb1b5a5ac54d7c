//! The API keys that stand in the YAML, under `auth.api_keys`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::HeaderValue;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ApiKey, Digest, holder};
use crate::admit::auth::Tier;
use crate::admit::permissions::is_permission;
use crate::config::Problems;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// 64 hex digits: `printf %s "$KEY" | sha256sum`.
    pub sha256: String,
    pub tenant_id: String,
    pub permissions: Vec<String>,
    #[serde(default)]
    pub tier: Tier,
    /// That it may name; `*`: all of its tenant's.
    #[serde(default)]
    pub venues: Vec<String>,
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// By digest. Looking one up compares digests, so its time tells nothing of the key.
pub type ByDigest = HashMap<Digest, ApiKey, ahash::RandomState>;

pub fn compile(config: BTreeMap<String, ApiKeyConfig>, problems: &mut Problems) -> ByDigest {
    let mut keys = ByDigest::default();
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
        let Some(digest) = Digest::of_hex(&sha256) else {
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
        let caller = Arc::new(holder(id, tenant, permissions, tier, venues, expires_at));
        if keys
            .insert(
                digest,
                ApiKey {
                    caller,
                    expires_at,
                    record: None,
                },
            )
            .is_some()
        {
            problems.add(format!("{place}.sha256"), "is the key of another entry too");
        }
    }
    keys
}
