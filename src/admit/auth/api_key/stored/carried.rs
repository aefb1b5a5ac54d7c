//! What the next process must know of keys: it asks Redis for each anew, and has these for the time that Redis is away.

use serde::{Deserialize, Serialize};

use super::{Found, StoredKeys};
use crate::admit::auth::api_key::{Digest, Record};
use crate::handover::Clock;

/// A key that was found: by its digest, which does not tell the key.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedKey {
    sha256: String,
    record: String,
    /// As [`Clock::millis`].
    since: i64,
}

/// Never that of this process: what bears it is asked for before it is believed.
const ANOTHER_ERA: u64 = u64::MAX;

impl StoredKeys {
    pub fn carried(&self, clock: &Clock) -> Vec<CarriedKey> {
        let carried = self.found.iter().filter_map(|(digest, found)| {
            Some(CarriedKey {
                sha256: digest.to_string(),
                record: found.key.record.as_deref()?.to_owned(),
                since: clock.millis(found.since),
            })
        });
        carried.collect()
    }

    pub fn take_over(&self, keys: Vec<CarriedKey>, clock: &Clock) -> usize {
        let mut count = 0;
        let pending = self.pending.lock();
        for CarriedKey {
            sha256,
            record,
            since,
        } in keys
        {
            let key = Record::parse(record.as_bytes())
                .ok()
                .and_then(Record::into_key);
            let (Some(digest), Some(key), Some(since)) =
                (Digest::of_hex(&sha256), key, clock.instant(since))
            else {
                continue;
            };
            let era = ANOTHER_ERA;
            self.found.insert(digest, Found { key, since, era });
            count += 1;
        }
        drop(pending);
        count
    }
}
