//! What Redis holds of an API key: strict JSON. A record with a fault is no key.

use std::sync::Arc;

use http::HeaderValue;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{ApiKey, holder};
use crate::admit::auth::Tier;
use crate::admit::auth::token::is_identifier;
use crate::admit::permissions::is_permission;

/// A record with more bytes than this is none of ours.
const LONGEST_RECORD: usize = 16 << 10;

/// The documented members; others are left to whoever wrote them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub tenant_id: String,
    /// That it may name; `*`: all of its tenant's.
    #[serde(default)]
    pub venues: Vec<String>,
    #[serde(default)]
    pub permissions: Vec<String>,
    #[serde(default)]
    pub tier: Tier,
    #[serde(default = "active")]
    pub active: bool,
    /// RFC 3339, or unix seconds.
    #[serde(default, deserialize_with = "moment", serialize_with = "rfc_3339")]
    pub expires_at: Option<Timestamp>,
}

impl Record {
    /// # Errors
    /// What is wrong, in words that show nothing of the value: it may not be what it should be.
    pub fn parse(value: &[u8]) -> Result<Self, String> {
        if value.len() > LONGEST_RECORD {
            return Err(format!("it has more than {LONGEST_RECORD} bytes"));
        }
        // Members of others are skipped without being read as text.
        let value = std::str::from_utf8(value).map_err(|_| "it is not UTF-8")?;
        // A list would be taken for the members in their order.
        if !value.trim_ascii_start().starts_with('{') {
            return Err("it is not a JSON object".to_owned());
        }
        let json = &mut serde_json::Deserializer::from_str(value);
        let record: Self = serde_path_to_error::deserialize(&mut *json).map_err(|e| {
            match e.path().to_string().as_str() {
                "." => {
                    "it is not a JSON object with `id` and `tenant_id`, each member once".to_owned()
                }
                place => format!("`{place}` is not what it should be"),
            }
        })?;
        json.end()
            .map_err(|_| "something follows the JSON object".to_owned())?;
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), String> {
        let names = [("id", &self.id), ("tenant_id", &self.tenant_id)];
        let venues = self.venues.iter().map(|venue| ("venues", venue));
        for (member, name) in names.into_iter().chain(venues) {
            if !is_identifier(name) {
                return Err(format!(
                    "`{member}` is not 1 to 256 characters of visible ASCII"
                ));
            }
        }
        if self.permissions.iter().all(|p| is_permission(p)) {
            Ok(())
        } else {
            Err("an entry of `permissions` is not `resource:action`".to_owned())
        }
    }

    /// Whether it lets somebody in at this time.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.active && self.expires_at.is_none_or(|at| at > now)
    }

    /// `None`: it is not active.
    pub(super) fn into_key(self) -> Option<ApiKey> {
        let record = serde_json::to_string(&self).ok().map(Arc::from);
        let Self {
            id,
            tenant_id,
            venues,
            permissions,
            tier,
            active,
            expires_at,
        } = self;
        let tenant = HeaderValue::try_from(tenant_id).ok().filter(|_| active)?;
        Some(ApiKey {
            caller: Arc::new(holder(id, tenant, permissions, tier, venues, expires_at)),
            expires_at,
            record,
        })
    }
}

fn active() -> bool {
    true
}

/// Milliseconds in place of seconds are refused: they would be a time after the year 9999.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Moment {
        Unix(i64),
        Text(String),
    }
    let moment = match Option::<Moment>::deserialize(deserializer)? {
        None => return Ok(None),
        Some(Moment::Unix(seconds)) => Timestamp::from_second(seconds),
        Some(Moment::Text(text)) => text.parse(),
    };
    moment.map(Some).map_err(D::Error::custom)
}

fn rfc_3339<S: Serializer>(moment: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serializer.collect_str(moment),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Record, String> {
        Record::parse(json.as_bytes())
    }

    #[test]
    fn what_is_left_out_is_the_least() {
        let record = parse(r#"{"id": "p", "tenant_id": "t", "created_by": {"any": 1}}"#).unwrap();
        assert!(record.venues.is_empty() && record.permissions.is_empty() && record.active);
        assert_eq!((record.tier, record.expires_at), (Tier::Free, None));
    }

    #[test]
    fn times_are_rfc_3339_or_unix_seconds() {
        let expiry = |value: &str| {
            let json = format!(r#"{{"id": "p", "tenant_id": "t", "expires_at": {value}}}"#);
            parse(&json).map(|record| record.expires_at)
        };
        let moment = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(expiry("1800000000"), Ok(Some(moment)));
        assert_eq!(expiry(r#""2027-01-15T08:00:00Z""#), Ok(Some(moment)));
        assert_eq!(expiry(r#""2027-01-15T09:00:00+01:00""#), Ok(Some(moment)));
        assert_eq!(expiry("null"), Ok(None));
        for bad in [
            "1800000000000",
            "1.5",
            "true",
            r#""soon""#,
            r#""2027-01-15""#,
            "[]",
        ] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_fault_anywhere_makes_it_no_key_and_shows_nothing_of_it() {
        let long = format!(
            r#"{{"id": "p", "tenant_id": "t", "x": "{}"}}"#,
            "x".repeat(20_000)
        );
        let no_text = b"{\"id\": \"p\", \"tenant_id\": \"t\", \"x\": \"\xff\"}";
        assert_eq!(Record::parse(no_text).unwrap_err(), "it is not UTF-8");
        for bad in [
            "",
            "hunter2",
            r#"["hunter2", "t"]"#,
            r#"{"tenant_id": "hunter2"}"#,
            r#"{"id": "hunter2"}"#,
            r#"{"id": 1, "tenant_id": "hunter2"}"#,
            r#"{"id": "", "tenant_id": "hunter2"}"#,
            r#"{"id": "hunter2", "tenant_id": "t 1"}"#,
            r#"{"id": "hunter2", "tenant_id": "t", "id": "p"}"#,
            r#"{"id": "p", "tenant_id": "t", "venues": "hunter2"}"#,
            r#"{"id": "p", "tenant_id": "t", "venues": ["hunter2", 1]}"#,
            r#"{"id": "p", "tenant_id": "t", "venues": ["hunter2", ""]}"#,
            r#"{"id": "p", "tenant_id": "t", "permissions": "hunter2"}"#,
            r#"{"id": "p", "tenant_id": "t", "permissions": ["hunter2"]}"#,
            r#"{"id": "p", "tenant_id": "t", "permissions": null}"#,
            r#"{"id": "p", "tenant_id": "t", "tier": "hunter2"}"#,
            r#"{"id": "p", "tenant_id": "t", "active": "hunter2"}"#,
            r#"{"id": "p", "tenant_id": "t", "active": 1}"#,
            r#"{"id": "p", "tenant_id": "t", "expires_at": "hunter2"}"#,
            r#"{"id": "p", "tenant_id": "t"} hunter2"#,
            &long,
        ] {
            let fault = parse(bad).expect_err(bad);
            assert!(!fault.contains("hunter2"), "{fault}");
        }
    }
}
