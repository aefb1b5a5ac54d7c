//! The keys in Redis, as an operator sees them: also those that no gateway accepts.

use std::collections::BTreeSet;

use jiff::Timestamp;
use redis::RedisError;

use crate::admit::auth::api_key::{Digest, Record, may_be_plain};
use crate::state::{API_KEY_DIGESTS, API_KEY_LOCK, API_KEYS, Operator};

/// How long a lock is held at most.
pub const LOCK_LIFE: std::time::Duration = std::time::Duration::from_secs(30);

/// More keys than this are not looked through.
const MOST_KEYS: usize = 100_000;

pub struct Store(Operator);

/// One key in Redis. Not `Debug`: the name of a plain one is the key itself.
pub struct Entry {
    name: Vec<u8>,
    value: Vec<u8>,
    pub digest: Digest,
    pub form: Form,
    /// Why no gateway accepts it, where it has a fault.
    pub record: Result<Record, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Hashed,
    /// As the old gateway had it: whoever reads Redis has the key.
    Plain,
}

// === impl Store ===

impl Store {
    pub fn new(redis: Operator) -> Self {
        Self(redis)
    }

    /// All keys, by tenant, id and digest; those with a fault first.
    pub async fn entries(&mut self) -> Result<Vec<Entry>, String> {
        let mut entries = Vec::new();
        for name in self.names().await? {
            let value: Result<Option<Vec<u8>>, RedisError> = redis::cmd("GET")
                .arg(&name)
                .query_async(self.0.redis())
                .await;
            match value {
                Ok(Some(value)) => entries.push(Entry::new(name, value)),
                Ok(None) => {} // it went meanwhile
                Err(e) if e.code() == Some("WRONGTYPE") => entries.push(Entry::new(name, vec![])),
                Err(e) => return Err(failed(e)),
            }
        }
        entries.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(entries)
    }

    async fn names(&mut self) -> Result<BTreeSet<Vec<u8>>, String> {
        let names = self.0.keys(API_KEYS, MOST_KEYS).await.map_err(failed)?;
        let names = names.ok_or_else(|| {
            format!(
                "redis has more than {MOST_KEYS} keys under `{API_KEYS}`: something else writes there"
            )
        })?;
        // A scan may name a key twice.
        Ok(names.into_iter().collect())
    }

    /// Stores a new key until it expires.
    pub async fn add(
        &mut self,
        digest: &Digest,
        record: &Record,
        life_secs: i64,
    ) -> Result<(), String> {
        let json = serde_json::to_string(record).map_err(|e| e.to_string())?;
        redis::cmd("SET")
            .arg(format!("{API_KEY_DIGESTS}{digest}"))
            .arg(json)
            .arg("NX")
            .arg("EX")
            .arg(life_secs)
            .query_async::<()>(self.0.redis())
            .await
            .map_err(failed)
    }

    /// Lets a key end in so many seconds. One that was revoked meanwhile stays so.
    pub async fn shorten(
        &mut self,
        entry: &Entry,
        expires_at: Timestamp,
        life_secs: i64,
    ) -> Result<(), String> {
        // Members that others have added are kept.
        let mut json: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&entry.value).map_err(|e| e.to_string())?;
        json.insert("expires_at".to_owned(), expires_at.to_string().into());
        let json = serde_json::Value::from(json);
        redis::cmd("SET")
            .arg(&entry.name)
            .arg(json.to_string())
            .arg("XX")
            .arg("EX")
            .arg(life_secs)
            .query_async::<Option<String>>(self.0.redis())
            .await
            .map(|_| ())
            .map_err(failed)
    }

    /// Whether there was something to remove.
    pub async fn remove(&mut self, entry: &Entry) -> Result<bool, String> {
        self.delete(&entry.name).await
    }

    pub async fn remove_hashed(&mut self, digest: &Digest) -> Result<bool, String> {
        let name = format!("{API_KEY_DIGESTS}{digest}");
        self.delete(name.as_bytes()).await
    }

    /// Nobody else makes a key for this id until [`Store::unlock`], or for [`LOCK_LIFE`].
    pub async fn lock(&mut self, id: &str) -> Result<(), String> {
        let locked: Option<String> = redis::cmd("SET")
            .arg(format!("{API_KEY_LOCK}{id}"))
            .arg(1)
            .arg("NX")
            .arg("EX")
            .arg(LOCK_LIFE.as_secs())
            .query_async(self.0.redis())
            .await
            .map_err(failed)?;
        match locked {
            Some(_) => Ok(()),
            None => Err(format!(
                "somebody else makes a key for {id} just now: try again in {LOCK_LIFE:?}"
            )),
        }
    }

    pub async fn unlock(&mut self, id: &str) {
        // Not given back, it ends by itself.
        let _ = self.delete(format!("{API_KEY_LOCK}{id}").as_bytes()).await;
    }

    async fn delete(&mut self, name: &[u8]) -> Result<bool, String> {
        redis::cmd("DEL")
            .arg(name)
            .query_async(self.0.redis())
            .await
            .map_err(failed)
    }
}

// === impl Entry ===

impl Entry {
    fn new(name: Vec<u8>, value: Vec<u8>) -> Self {
        let digits = name.strip_prefix(API_KEY_DIGESTS.as_bytes());
        let named = digits.and_then(|hex| Digest::of_hex(std::str::from_utf8(hex).ok()?));
        let key = &name[API_KEYS.len().min(name.len())..];
        let (digest, form, misnamed) = match named {
            Some(digest) => {
                let written = digest.to_string();
                let is_lower_case = digits == Some(written.as_bytes());
                (digest, Form::Hashed, !is_lower_case)
            }
            None => (Digest::of(key), Form::Plain, !may_be_plain(key)),
        };
        let record = if misnamed {
            Err("nobody can send the key that its name stands for".to_owned())
        } else {
            Record::parse(&value)
        };
        Self {
            name,
            value,
            digest,
            form,
            record,
        }
    }

    /// What may be shown of the key.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.digest)
    }

    pub fn is_of(&self, id: &str) -> bool {
        self.record.as_ref().is_ok_and(|record| record.id == id)
    }

    pub fn is_live(&self, now: Timestamp) -> bool {
        self.record.as_ref().is_ok_and(|record| record.is_live(now))
    }

    fn place(&self) -> (Option<(&str, &str)>, Digest) {
        let record = self.record.as_ref().ok();
        let names = record.map(|record| (&*record.tenant_id, &*record.id));
        (names, self.digest)
    }
}

pub fn fingerprint(digest: &Digest) -> String {
    format!("{digest:.12}")
}

fn failed(e: RedisError) -> String {
    format!("redis refuses: {e}")
}
