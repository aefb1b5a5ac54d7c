//! Exact sliding windows in memory: never more than `max` in any window's length, and `max` in a row pass.
//!
//! Each key keeps the times of what it was granted. Times are rounded *up* to the end of a step, so rounding can
//! only hold a request back for up to one step, never let one too many through. The step is a millisecond for
//! limits of up to [`EXACT`]; for larger ones the window is cut into [`EXACT`] steps, which bounds a key to 8 KiB.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// Most steps that a key remembers.
const EXACT: u32 = 512;

/// Power of two, so that a key's shard is a mask away; enough that two cores seldom meet.
const SHARDS: usize = 64;

/// A limit that a request would spend on.
#[derive(Clone, Copy, Default)]
pub struct Ask {
    pub key: u64,
    pub max: u32,
    pub window: Duration,
}

/// Where the tightest of a request's limits stands after it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub limit: u32,
    pub remaining: u32,
    /// Whole seconds until the oldest grant leaves the window.
    pub reset_secs: u32,
}

/// A limit is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub limit: u32,
    /// Whole seconds, at least 1.
    pub retry_after_secs: u32,
}

impl Exceeded {
    fn after_ms(limit: u32, ms: u32) -> Self {
        Self {
            limit,
            retry_after_secs: ms.div_ceil(1000).max(1),
        }
    }
}

/// The windows of all keys.
pub struct Windows {
    epoch: Instant,
    hasher: ahash::RandomState,
    shards: Box<[Mutex<Shard>]>,
    max_keys_per_shard: usize,
}

#[derive(Default)]
struct Shard(HashMap<u64, Grants, BuildHasherDefault<AlreadyHashed>>);

/// What one key was granted, oldest first, as (end of step in ms since the epoch, number of grants).
#[derive(Default)]
struct Grants {
    steps: VecDeque<(u64, u32)>,
    total: u32,
    window_ms: u64,
}

/// Keys are hashes already (seeded, so that nobody can aim at a shard).
#[derive(Default)]
struct AlreadyHashed(u64);

// === impl Windows ===

impl Windows {
    pub fn new(max_keys: usize) -> Self {
        Self {
            epoch: Instant::now(),
            hasher: ahash::RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            max_keys_per_shard: (max_keys / SHARDS).max(1),
        }
    }

    /// A key for whatever names somebody.
    pub fn hash(&self, of: &impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Spends one on every limit, or on none.
    ///
    /// # Errors
    /// When one of them is used up: with the longest of the waiting times.
    pub fn spend(&self, asks: &[Ask], now: Instant) -> Result<Standing, Exceeded> {
        let now_ms = self.millis(now);
        let mut held = self.lock(asks);
        let mut longest: Option<(u32, u32)> = None;
        for ask in asks {
            let shard = held.shard(ask.key);
            if let Some(grants) = shard.0.get_mut(&ask.key) {
                grants.forget(now_ms);
                if grants.total >= ask.max {
                    longest = longest.max(Some((grants.oldest_leaves_in(now_ms), ask.max)));
                }
            }
        }
        if let Some((ms, limit)) = longest {
            return Err(Exceeded::after_ms(limit, ms));
        }
        let mut tightest: Option<Standing> = None;
        for ask in asks {
            let shard = held.shard(ask.key);
            if shard.0.len() >= self.max_keys_per_shard && !shard.0.contains_key(&ask.key) {
                shard.make_room(now_ms);
            }
            let grants = shard.0.entry(ask.key).or_default();
            grants.add(now_ms, ask);
            let standing = Standing {
                limit: ask.max,
                remaining: ask.max.saturating_sub(grants.total),
                reset_secs: (grants.oldest_leaves_in(now_ms) - 1).div_ceil(1000).max(1),
            };
            if tightest.is_none_or(|other| standing.remaining < other.remaining) {
                tightest = Some(standing);
            }
        }
        Ok(tightest.unwrap_or(Standing {
            limit: 0,
            remaining: 0,
            reset_secs: 0,
        }))
    }

    /// Whether a limit is used up, without spending on it.
    pub fn exceeded(&self, ask: &Ask, now: Instant) -> Option<Exceeded> {
        let now_ms = self.millis(now);
        let mut shard = self.shards[shard_of(ask.key)].lock();
        let grants = shard.0.get_mut(&ask.key)?;
        grants.forget(now_ms);
        (grants.total >= ask.max)
            .then(|| Exceeded::after_ms(ask.max, grants.oldest_leaves_in(now_ms)))
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    /// All shards that the asks fall into, locked in one order so that two requests never wait for each other.
    fn lock(&self, asks: &[Ask]) -> Held<'_> {
        let mut indices = [usize::MAX; super::MAX_RULES];
        for (place, ask) in indices.iter_mut().zip(asks) {
            *place = shard_of(ask.key);
        }
        indices.sort_unstable();
        let mut held = Held {
            shards: [const { None }; super::MAX_RULES],
        };
        let mut last = usize::MAX;
        for (place, index) in held.shards.iter_mut().zip(indices) {
            if index != usize::MAX && index != last {
                *place = Some((index, self.shards[index].lock()));
                last = index;
            }
        }
        held
    }
}

fn shard_of(key: u64) -> usize {
    // The map uses the low bits and the top seven; take the shard from between.
    (key >> 40) as usize & (SHARDS - 1)
}

struct Held<'a> {
    shards: [Option<(usize, MutexGuard<'a, Shard>)>; super::MAX_RULES],
}

impl Held<'_> {
    fn shard(&mut self, key: u64) -> &mut Shard {
        let index = shard_of(key);
        self.shards
            .iter_mut()
            .flatten()
            .find_map(|(i, shard)| (*i == index).then_some(&mut **shard))
            .expect("the shard of every ask was locked")
    }
}

impl Shard {
    /// Lets go of every key whose window is over, and of the longest idle eighth when that is not enough.
    fn make_room(&mut self, now_ms: u64) {
        let full = self.0.len();
        self.0.retain(|_, grants| {
            grants.forget(now_ms);
            grants.total > 0
        });
        if self.0.len() < full - full / 8 {
            return;
        }
        let mut ages: Vec<(u64, u64)> = self
            .0
            .iter()
            .map(|(key, g)| (g.idle_ms(now_ms), *key))
            .collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        for (_, key) in ages.into_iter().take(full.div_ceil(8)) {
            self.0.remove(&key);
        }
    }
}

impl Grants {
    /// Drops the steps that lie more than a window back.
    fn forget(&mut self, now_ms: u64) {
        while let Some(&(end, count)) = self.steps.front() {
            if now_ms.saturating_sub(end) <= self.window_ms {
                break;
            }
            self.total -= count;
            self.steps.pop_front();
        }
    }

    fn add(&mut self, now_ms: u64, ask: &Ask) {
        self.window_ms = ask.window.as_millis() as u64;
        let step = if ask.max <= EXACT {
            1
        } else {
            (self.window_ms / u64::from(EXACT)).max(1)
        };
        let end = now_ms / step * step + (step - 1);
        self.total += 1;
        match self.steps.back_mut() {
            Some((last, count)) if *last == end => *count += 1,
            _ => self.steps.push_back((end, 1)),
        }
    }

    fn oldest_leaves_in(&self, now_ms: u64) -> u32 {
        let Some(&(end, _)) = self.steps.front() else {
            return 0;
        };
        (end + self.window_ms + 1).saturating_sub(now_ms).max(1) as u32
    }

    fn idle_ms(&self, now_ms: u64) -> u64 {
        self.steps
            .back()
            .map_or(u64::MAX, |&(end, _)| now_ms.saturating_sub(end))
    }
}

impl Hasher for AlreadyHashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(key: u64, max: u32, window_ms: u64) -> Ask {
        Ask {
            key,
            max,
            window: Duration::from_millis(window_ms),
        }
    }

    #[test]
    fn max_in_a_row_pass_and_the_next_waits_for_the_window() {
        let windows = Windows::new(1000);
        let asks = [ask(1, 3, 1000)];
        let at = |ms| windows.epoch + Duration::from_millis(ms);
        for remaining in [2, 1, 0] {
            assert_eq!(windows.spend(&asks, at(10)).unwrap().remaining, remaining);
        }
        assert_eq!(
            windows.spend(&asks, at(11)),
            Err(Exceeded {
                limit: 3,
                retry_after_secs: 1
            })
        );
        assert!(
            windows.spend(&asks, at(1010)).is_err(),
            "a whole window must have passed"
        );
        assert!(windows.spend(&asks, at(1011)).is_ok());
    }

    #[test]
    fn no_window_ever_holds_more_than_max() {
        let windows = Windows::new(1000);
        for (max, window) in [(1, 100), (7, 250), (600, 1000), (5000, 2000)] {
            let asks = [ask(u64::from(max), max, window)];
            let mut granted: Vec<u64> = Vec::new();
            let mut ms = 0;
            while ms < window * 4 {
                ms += fastrand::u64(0..3);
                for _ in 0..fastrand::u32(0..max.div_ceil(20) + 2) {
                    if windows
                        .spend(&asks, windows.epoch + Duration::from_millis(ms))
                        .is_ok()
                    {
                        granted.push(ms);
                    }
                }
            }
            for (i, start) in granted.iter().enumerate() {
                let within = granted[i..]
                    .iter()
                    .take_while(|t| **t < start + window)
                    .count();
                assert!(
                    within <= max as usize,
                    "{within} in {window} ms, {max} are allowed"
                );
            }
            assert!(
                granted.len() >= 2 * max as usize,
                "{} of {max} a window",
                granted.len()
            );
        }
    }

    #[test]
    fn what_one_limit_refuses_spends_nothing_on_another() {
        let windows = Windows::new(1000);
        let now = windows.epoch + Duration::from_millis(5);
        let (wide, tight) = (ask(1, 10, 1000), ask(2, 1, 1000));
        assert_eq!(
            windows.spend(&[wide, tight], now).unwrap(),
            Standing {
                limit: 1,
                remaining: 0,
                reset_secs: 1
            }
        );
        for _ in 0..5 {
            assert!(windows.spend(&[wide, tight], now).is_err());
        }
        assert_eq!(windows.spend(&[wide], now).unwrap().remaining, 8);
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let windows = Windows::new(SHARDS * 16);
        let hasher = ahash::RandomState::with_seed(1);
        for i in 0..50_000u64 {
            let now = windows.epoch + Duration::from_millis(i / 10);
            windows
                .spend(&[ask(hasher.hash_one(i), 5, 60_000)], now)
                .unwrap();
        }
        let keys: usize = windows.shards.iter().map(|s| s.lock().0.len()).sum();
        assert!(keys <= SHARDS * 17, "{keys}");
    }

    #[test]
    fn threads_that_race_are_granted_max_together() {
        let windows = Windows::new(1000);
        let asks = [ask(3, 100, 60_000), ask(7 << 40, 150, 60_000)];
        let granted: usize = std::thread::scope(|scope| {
            let spend = || {
                (0..500)
                    .filter(|_| windows.spend(&asks, Instant::now()).is_ok())
                    .count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(spend)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(granted, 100);
    }
}
