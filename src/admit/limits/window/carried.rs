//! What the next process must know: who was granted what, with the times at which it leaves the windows.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Grants, Shard, Windows, shard_of};
use crate::handover::{Clock, Seeded};

/// Some keys with what they were granted.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Page {
    seeds: [u64; 4],
    /// [`Seeded::proof`]
    proof: u64,
    keys: Vec<Key>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Key {
    k: u64,
    /// The window, in milliseconds.
    w: u64,
    /// It was exceeded, and has a block.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    b: bool,
    /// Ends of steps, as [`Clock::millis`], oldest first, with the number of grants.
    g: Vec<(i64, u32)>,
}

/// Up to here the next process was told.
#[derive(Clone, Copy, Debug)]
pub struct Mark(i64);

/// About a quarter of a megabyte.
const KEYS_PER_PAGE: usize = 5_000;

impl Mark {
    pub fn here(clock: &Clock) -> Self {
        Self(clock.millis(clock.here()))
    }

    pub fn is_before(self, millis: i64) -> bool {
        millis > self.0
    }
}

// === impl Windows ===

impl Windows {
    /// All that holds now, or what was granted after the mark; whoever asked last comes first. There is a page also where
    /// nobody was counted: by its seeds the next process knows whom this one counts later.
    pub fn carried(&self, clock: &Clock, after: Option<Mark>) -> Vec<Page> {
        let seeded = self.seeded.get_or_init(Seeded::default);
        let (base, now_ms) = (self.base(clock), self.millis(clock.here()));
        let mut keys = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for (key, grants) in &mut shard.0 {
                grants.forget(now_ms);
                keys.extend(grants.carried(*key, base, after));
            }
        }
        keys.sort_unstable_by_key(|key| std::cmp::Reverse(key.g.last().map(|(end, _)| *end)));
        let mut pages = Vec::with_capacity(keys.len() / KEYS_PER_PAGE + 1);
        while !keys.is_empty() || pages.is_empty() {
            let rest = keys.split_off(keys.len().min(KEYS_PER_PAGE));
            pages.push(Page {
                seeds: seeded.seeds(),
                proof: seeded.proof(),
                keys: std::mem::replace(&mut keys, rest),
            });
        }
        pages
    }

    /// Adds what another process has granted.
    ///
    /// # Errors
    /// When its keys cannot be told from others here.
    pub fn take_over(&self, page: Page, clock: &Clock) -> Result<usize, &'static str> {
        let seeded = self.seeded.get_or_init(|| Seeded::with(page.seeds));
        if seeded.seeds() != page.seeds || seeded.proof() != page.proof {
            return Err("its keys are made in another way");
        }
        let (base, now_ms) = (self.base(clock), self.millis(clock.here()));
        let count = page.keys.len();
        for key in page.keys {
            let mut shard = self.shards[shard_of(key.k)].lock();
            let is_known = shard.0.contains_key(&key.k);
            if shard.0.len() < self.max_keys_per_shard || is_known {
                shard.take_over(key, base, now_ms);
            }
        }
        Ok(count)
    }

    /// The machine's clock where ours is at 0.
    fn base(&self, clock: &Clock) -> i64 {
        let now: Instant = clock.here();
        clock.millis(now) - self.millis(now) as i64
    }
}

impl Shard {
    fn take_over(&mut self, key: Key, base: i64, now_ms: u64) {
        // Clocks are read in whole milliseconds, here and there: nothing leaves a window too early for that.
        const ROUNDING: i64 = 1;
        let moved = key.g.into_iter().map(|(end, count)| {
            let end = end.saturating_sub(base).saturating_add(ROUNDING);
            (u64::try_from(end).unwrap_or(0), count)
        });
        let grants = self.0.entry(key.k).or_default();
        if key.b {
            *grants = Grants::default();
        }
        grants.steps.extend(moved);
        grants
            .steps
            .make_contiguous()
            .sort_unstable_by_key(|(end, _)| *end);
        let total = grants.steps.iter().map(|(_, count)| *count);
        grants.total = total.fold(0, u32::saturating_add);
        grants.window_ms = grants.window_ms.max(key.w);
        grants.is_blocked |= key.b;
        grants.forget(now_ms);
    }
}

impl Grants {
    fn carried(&self, key: u64, base: i64, after: Option<Mark>) -> Option<Key> {
        let steps = self
            .steps
            .iter()
            .map(|(end, count)| (*end as i64 + base, *count));
        // A block is passed on as a whole: it takes the place of what it was before.
        let is_new = |end: i64| self.is_blocked || after.is_none_or(|mark| mark.is_before(end));
        let steps: Vec<_> = steps.filter(|(end, _)| is_new(*end)).collect();
        (!steps.is_empty()).then_some(Key {
            k: key,
            w: self.window_ms,
            b: self.is_blocked,
            g: steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Ask;
    use super::*;
    use std::time::Duration;

    fn ask(windows: &Windows, block: u64) -> Ask {
        Ask {
            key: windows.hash(&"somebody"),
            max: 3,
            window: Duration::from_secs(60),
            block: Duration::from_secs(block),
        }
    }

    fn pass_on(from: &Windows, to: &Windows, after: Option<Mark>) {
        for page in from.carried(&Clock::now(), after) {
            let page = serde_json::from_slice(&serde_json::to_vec(&page).unwrap()).unwrap();
            to.take_over(page, &Clock::now()).unwrap();
        }
    }

    #[test]
    fn what_was_spent_is_spent_in_the_next_process_too_and_leaves_its_window_in_time() {
        let (old, new) = (Windows::new(1000), Windows::new(1000));
        let now = Instant::now();
        for _ in 0..3 {
            old.spend(&[ask(&old, 0)], now).unwrap();
        }
        pass_on(&old, &new, None);
        let exceeded = new.spend(&[ask(&new, 0)], now).unwrap_err();
        assert_eq!(
            exceeded.retry_after_secs, 61,
            "rounding holds it back by milliseconds"
        );
        let later = now + Duration::from_millis(60_010);
        assert_eq!(new.spend(&[ask(&new, 0)], later).unwrap().remaining, 2);
    }

    #[test]
    fn what_is_granted_after_the_mark_is_added() {
        let (old, new) = (Windows::new(1000), Windows::new(1000));
        let now = Instant::now();
        old.spend(&[ask(&old, 0)], now).unwrap();
        let mark = Mark::here(&Clock::now());
        pass_on(&old, &new, None);
        let later = now + Duration::from_millis(50);
        old.spend(&[ask(&old, 0)], later).unwrap();
        new.spend(&[ask(&new, 0)], later).unwrap();
        pass_on(&old, &new, Some(mark));
        assert!(new.spend(&[ask(&new, 0)], later).is_err());
    }

    #[test]
    fn a_block_goes_on_and_keys_of_another_hash_are_refused() {
        let (old, new) = (Windows::new(1000), Windows::new(1000));
        let now = Instant::now();
        for _ in 0..4 {
            let _ = old.spend(&[ask(&old, 300)], now);
        }
        pass_on(&old, &new, None);
        let exceeded = new.spend(&[ask(&new, 300)], now).unwrap_err();
        assert!((299..=301).contains(&exceeded.retry_after_secs) && !exceeded.block_began);
        let other = Windows::new(1000);
        other.hash(&"somebody");
        let page = old.carried(&Clock::now(), None).pop().unwrap();
        assert!(other.take_over(page, &Clock::now()).is_err());
    }
}
