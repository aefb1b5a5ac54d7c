//! Who asks for what others ask for waits for them: Pingora's lock for its cache, in a table of our own. Pingora's keeps for
//! good what nobody has let go of: a request that was dropped while it asked, as the calls of a batch are whose client goes.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::Extensions;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use pingora_cache::key::{CacheHashKey, CacheKey};
use pingora_cache::lock::{CacheKeyLock, LockStatus, LockStub, Locked, WritePermit};

use super::storage::wanted;

pub static ALONE: Lazy<Alone> = Lazy::new(Alone::new);

/// What is being asked for.
pub struct Alone(Box<[Mutex<Table>]>);

struct Table {
    asked: HashMap<u128, LockStub>,
    /// When it is so large, it is looked through for what nobody asks for any more.
    swept_at: usize,
}

/// After this another one may ask, too.
const LONGEST_FILL: Duration = Duration::from_secs(10);

const SHARDS: usize = 16;

/// A table is not looked through before.
const SMALL: usize = 64;

impl Alone {
    fn new() -> Self {
        let table = || Table {
            asked: HashMap::new(),
            swept_at: SMALL,
        };
        Self((0..SHARDS).map(|_| Mutex::new(table())).collect())
    }

    /// The key is a digest.
    fn place(&self, key: &CacheKey) -> (u128, &Mutex<Table>) {
        let key = u128::from_be_bytes(key.combined_bin());
        (key, &self.0[key as usize % SHARDS])
    }
}

impl CacheKeyLock for Alone {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        let (key, table) = self.place(key);
        let mut table = table.lock();
        if let Some(asked) = table.asked.get(&key).filter(|asked| !is_over(asked)) {
            return Locked::Read(asked.read_lock());
        }
        table.sweep();
        let (permit, stub) = WritePermit::new(LONGEST_FILL, stale_writer, Extensions::new());
        table.asked.insert(key, stub);
        Locked::Write(permit)
    }

    fn release(&self, key: &CacheKey, mut permit: WritePermit, reason: LockStatus) {
        // That nobody waits in vain one after the other.
        let is_in_vain = || wanted(key).is_some_and(|wanted| wanted.is_for_me_alone.load(Relaxed));
        let reason = match reason {
            LockStatus::Done | LockStatus::TransientError if is_in_vain() => LockStatus::GiveUp,
            reason => reason,
        };
        let (key, table) = self.place(key);
        let mut table = table.lock();
        match permit.lock_status() {
            // Another one may ask in its place.
            LockStatus::AgeTimeout => {
                if table.asked.get(&key).is_some_and(is_over) {
                    table.asked.remove(&key);
                }
                permit.unlock(LockStatus::AgeTimeout);
            }
            _ => {
                table.asked.remove(&key);
                permit.unlock(reason);
            }
        }
    }
}

// === impl Table ===

impl Table {
    fn sweep(&mut self) {
        if self.asked.len() >= self.swept_at {
            self.asked.retain(|_, asked| !is_over(asked));
            self.swept_at = SMALL.max(2 * self.asked.len());
        }
    }
}

/// Whether it is not to be waited for: who asked took too long, or is gone without a word.
fn is_over(asked: &LockStub) -> bool {
    matches!(
        asked.0.lock_status(),
        LockStatus::Dangling | LockStatus::AgeTimeout
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> CacheKey {
        CacheKey::new(number.to_be_bytes().to_vec(), "")
    }

    /// Whether nobody else asks; who asks is gone without a word.
    fn is_gone(locked: Locked) -> bool {
        match locked {
            Locked::Write(mut permit) => {
                permit.unlock(LockStatus::Dangling);
                true
            }
            Locked::Read(_) => false,
        }
    }

    #[test]
    fn one_asks_and_the_others_wait_until_it_is_done_or_gone() {
        let alone = Alone::new();
        let Locked::Write(permit) = alone.lock(&key(1), false) else {
            panic!("nobody asks for it");
        };
        assert!(!alone.lock(&key(1), false).is_write());
        assert!(is_gone(alone.lock(&key(2), false)));
        alone.release(&key(1), permit, LockStatus::Done);
        let Locked::Write(mut permit) = alone.lock(&key(1), false) else {
            panic!("it was released");
        };
        permit.unlock(LockStatus::Dangling);
        assert!(is_gone(alone.lock(&key(1), false)));
    }

    #[test]
    fn who_is_gone_without_a_word_leaves_nothing() {
        let alone = Alone::new();
        for number in 0..100_000 {
            assert!(is_gone(alone.lock(&key(number), false)));
        }
        let left: usize = alone.0.iter().map(|table| table.lock().asked.len()).sum();
        assert!(left <= SHARDS * SMALL, "{left} are kept");
    }
}
