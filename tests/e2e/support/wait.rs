//! Waiting for a condition instead of for an amount of time.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for something that is expected to happen at once.
pub const SOON: Duration = Duration::from_secs(5);

const STEP: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics naming `what` when it does not within [`SOON`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    if within(SOON, || condition().then_some(())).is_none() {
        panic!("waited {SOON:?} in vain until {what}");
    }
}

/// Asks `probe` again and again until it has an answer or `limit` has passed.
pub fn within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(STEP);
    }
}
