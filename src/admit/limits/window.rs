//! Exact sliding windows in memory: never more than `max` in any window's length, and `max` in a row pass.
//!
//! Each key keeps the times of what it was granted. Times are rounded *up* to the end of a step, so rounding can
//! only hold a request back for up to one step, never let one too many through. The step is a millisecond for
//! limits of up to [`EXACT`]; for larger ones the window is cut into [`EXACT`] steps, which bounds a key to 8 KiB.

mod carried;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};

use crate::handover::Seeded;
pub use carried::{Mark, Page};

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
    /// How long one who exceeds it is kept out; nothing: until the window has room. Not shorter than the window.
    pub block: Duration,
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
    /// This request was the one too many.
    pub block_began: bool,
}

impl Exceeded {
    pub fn after_ms(limit: u32, ms: u32) -> Self {
        Self {
            limit,
            retry_after_secs: ms.div_ceil(1000).max(1),
            block_began: false,
        }
    }
}

/// The windows of all keys.
pub struct Windows {
    epoch: Instant,
    /// Made with the first key, unless another process has made it.
    seeded: OnceCell<Seeded>,
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
    /// It was exceeded, and has a block.
    is_blocked: bool,
}

/// Keys are hashes already (seeded, so that nobody can aim at a shard).
#[derive(Default)]
struct AlreadyHashed(u64);

// === impl Windows ===

impl Windows {
    pub fn new(max_keys: usize) -> Self {
        Self {
            epoch: Instant::now(),
            seeded: OnceCell::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            max_keys_per_shard: (max_keys / SHARDS).max(1),
        }
    }

    /// A key for whatever names somebody.
    pub fn hash(&self, of: &impl Hash) -> u64 {
        self.seeded.get_or_init(Seeded::default).hash(of)
    }

    /// Spends one on every limit, or on none.
    ///
    /// # Errors
    /// When one of them is used up: with the longest of the waiting times.
    pub fn spend(&self, asks: &[Ask], now: Instant) -> Result<Standing, Exceeded> {
        let now_ms = self.millis(now);
        let mut held = self.lock(asks);
        let mut longest: Option<(u32, u32)> = None;
        let mut block_began = false;
        for ask in asks {
            let shard = held.shard(ask.key);
            if let Some(grants) = shard.0.get_mut(&ask.key) {
                grants.forget(now_ms);
                if grants.total >= ask.max {
                    block_began |= grants.block(now_ms, ask);
                    longest = longest.max(Some((grants.oldest_leaves_in(now_ms), ask.max)));
                }
            }
        }
        if let Some((ms, limit)) = longest {
            return Err(Exceeded {
                block_began,
                ..Exceeded::after_ms(limit, ms)
            });
        }
        let mut tightest: Option<Standing> = None;
        for ask in asks {
            let shard = held.shard(ask.key);
            if shard.0.len() >= self.max_keys_per_shard && !shard.0.contains_key(&ask.key) {
                shard.make_room(now_ms);
            }
            let grants = shard.0.entry(ask.key).or_default();
            grants.add(now_ms, ask, 1);
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

    /// Takes over what was decided elsewhere, for all processes: `used` of the limit are spent, and the oldest of them
    /// leaves in so many milliseconds.
    pub fn follow(&self, ask: &Ask, used: u32, leaves_in_ms: u32, now: Instant) {
        let now_ms = self.millis(now);
        let mut shard = self.shards[shard_of(ask.key)].lock();
        if used == 0 {
            shard.0.remove(&ask.key);
            return;
        }
        if shard.0.len() >= self.max_keys_per_shard && !shard.0.contains_key(&ask.key) {
            shard.make_room(now_ms);
        }
        let grants = shard.0.entry(ask.key).or_default();
        grants.forget(now_ms);
        if grants.is_blocked && used < ask.max {
            // An operator took the block back.
            *grants = Grants::default();
        }
        grants.shrink_to(used);
        // What others were granted since we looked is as old as it can be young.
        if grants.total < used {
            grants.add(now_ms, ask, used - grants.total);
        }
        let leaves_in = Duration::from_millis(leaves_in_ms.into());
        if leaves_in > ask.window + Duration::from_millis(step_ms(ask)) {
            grants.keep_out(now_ms, leaves_in, ask);
        }
    }

    /// Takes the newest grant back.
    pub fn forgive(&self, ask: &Ask) {
        let mut shard = self.shards[shard_of(ask.key)].lock();
        if let Some(grants) = shard.0.get_mut(&ask.key)
            && let Some((_, count)) = grants.steps.back_mut()
        {
            *count -= 1;
            if *count == 0 {
                grants.steps.pop_back();
            }
            grants.total -= 1;
        }
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

    /// Never less than the longest window.
    fn millis(&self, now: Instant) -> u64 {
        const LONGEST_MS: u64 = 7 * 86_400_000;
        LONGEST_MS + now.saturating_duration_since(self.epoch).as_millis() as u64
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

/// To the end of a step of this length times are rounded.
pub fn step_ms(ask: &Ask) -> u64 {
    match ask.max {
        ..=EXACT => 1,
        _ => (ask.window.as_millis() as u64 / u64::from(EXACT)).max(1),
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
        self.is_blocked &= self.total > 0;
    }

    fn add(&mut self, now_ms: u64, ask: &Ask, new: u32) {
        self.window_ms = ask.window.as_millis() as u64;
        let step = step_ms(ask);
        let end = now_ms / step * step + (step - 1);
        self.total += new;
        match self.steps.back_mut() {
            Some((last, count)) if *last == end => *count += new,
            _ => self.steps.push_back((end, new)),
        }
    }

    /// Drops the oldest grants.
    fn shrink_to(&mut self, total: u32) {
        while self.total > total
            && let Some((_, count)) = self.steps.front_mut()
        {
            let gone = (*count).min(self.total - total);
            *count -= gone;
            self.total -= gone;
            if *count == 0 {
                self.steps.pop_front();
            }
        }
    }

    /// Begins the limit's block, if it has one that has not begun.
    fn block(&mut self, now_ms: u64, ask: &Ask) -> bool {
        if ask.block.is_zero() || self.is_blocked {
            return false;
        }
        self.keep_out(now_ms, ask.block, ask);
        true
    }

    /// As if all had been granted so late that they leave the window after this time.
    fn keep_out(&mut self, now_ms: u64, time: Duration, ask: &Ask) {
        let end = now_ms + time.as_millis() as u64 - ask.window.as_millis() as u64;
        self.steps.clear();
        self.steps.push_back((end, ask.max));
        self.total = ask.max;
        self.window_ms = ask.window.as_millis() as u64;
        self.is_blocked = true;
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
mod tests;
