//! Threads beside the loops, for what takes long: started while all of them are busy, ended when there was nothing to do for a
//! while, so that others pick up their memory. One that is idle stays: where the system has no thread left (pids.max,
//! RLIMIT_NPROC, memory), work waits for it. (tokio's `spawn_blocking` panics then, once the last of its threads has ended.)

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

/// What takes longer than some tens of microseconds is done by [`aside`]: text of so many bytes to read or to write, which
/// takes a quarter of a millisecond.
pub const LARGE: usize = 64 << 10;

/// More would only compete with the loops.
const MOST: usize = 32;

/// One that has had nothing to do for so long ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of the process.
static POOL: Pool = Pool::new(MOST, PATIENCE);

struct Pool {
    most: usize,
    patience: Duration,
    state: Mutex<State>,
    given: Condvar,
}

struct State {
    works: VecDeque<Work>,
    threads: usize,
    /// Of these: wait for work.
    idle: usize,
}

type Work = Box<dyn FnOnce() + Send>;

/// Does what takes long on a thread beside this loop, whose other tasks go on meanwhile. It is done to its end, also when nobody
/// waits for it any more. `None`: it panicked.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    POOL.give(Box::new(move || drop(tell.send(work()))));
    told.await.ok()
}

/// From now on there is a thread for [`aside`].
///
/// # Errors
/// When the system has none left.
pub(super) fn begin() -> io::Result<()> {
    let mut state = POOL.state.lock();
    match state.threads {
        0 => POOL.start(&mut state),
        _ => Ok(()),
    }
}

// === impl Pool ===

impl Pool {
    const fn new(most: usize, patience: Duration) -> Self {
        Self {
            most,
            patience,
            state: Mutex::new(State {
                works: VecDeque::new(),
                threads: 0,
                idle: 0,
            }),
            given: Condvar::new(),
        }
    }

    fn give(&'static self, work: Work) {
        let mut state = self.state.lock();
        state.works.push_back(work);
        // Who is idle and woken already has not taken its work yet.
        if state.works.len() <= state.idle {
            self.given.notify_one();
            return;
        }
        if state.threads == self.most || self.start(&mut state).is_ok() || state.threads > 0 {
            return;
        }
        // There never was one. A loop that is late is better than none.
        if let Some(work) = state.works.pop_back() {
            drop(state);
            carry_out(work);
        }
    }

    /// It is counted when it runs: the lock is held.
    fn start(&'static self, state: &mut MutexGuard<'_, State>) -> io::Result<()> {
        let thread = thread::Builder::new().name("aside".into());
        thread.spawn(|| self.work())?;
        state.threads += 1;
        Ok(())
    }

    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            while let Some(work) = state.works.pop_front() {
                MutexGuard::unlocked(&mut state, || carry_out(work));
            }
            state.idle += 1;
            let waited = self.given.wait_for(&mut state, self.patience);
            state.idle -= 1;
            if waited.timed_out() && state.works.is_empty() && state.idle > 0 {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// The thread goes on when it panics; who waits for it sees that there is no result.
fn carry_out(work: Work) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Instant;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn threads_come_with_work_and_go_without_it_all_but_one() {
        let pool = pool(3);
        let (held, taken): (Vec<Sender<()>>, Vec<Receiver<()>>) =
            (0..5).map(|_| hold(pool)).unzip();
        for taken in &taken[..3] {
            taken.recv_timeout(SOON).expect("it is begun");
        }
        assert_eq!(pool.state.lock().threads, 3);
        assert!(taken[3].try_recv().is_err(), "there are no more than three");
        drop(held);
        for taken in &taken[3..] {
            taken.recv_timeout(SOON).expect("it waited its turn");
        }
        within(|| pool.state.lock().threads == 1);
        let (_, taken) = hold(pool);
        taken.recv_timeout(SOON).expect("one is left");
        assert_eq!(pool.state.lock().threads, 1, "it is enough");
    }

    #[test]
    fn one_that_is_held_up_is_not_the_one_that_stays() {
        let pool = pool(3);
        let (held, taken) = hold(pool);
        taken.recv_timeout(SOON).expect("it is begun");
        for _ in 0..2 {
            let (_, taken) = hold(pool);
            taken.recv_timeout(SOON).expect("there is another");
        }
        thread::sleep(4 * pool.patience);
        within(|| pool.state.lock().threads == 2);
        assert_eq!(pool.state.lock().idle, 1, "the other is held up");
        drop(held);
        within(|| pool.state.lock().threads == 1);
    }

    #[test]
    fn work_that_panics_costs_no_thread() {
        let pool = pool(1);
        pool.give(Box::new(|| {
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        let (_, taken) = hold(pool);
        taken.recv_timeout(SOON).expect("the thread goes on");
        assert_eq!(pool.state.lock().threads, 1);
    }

    #[tokio::test]
    async fn who_waits_for_what_panics_is_told() {
        let panics = || -> u8 { std::panic::resume_unwind(Box::new("on purpose")) };
        assert_eq!(aside(panics).await, None);
        assert_eq!(aside(|| 7).await, Some(7));
    }

    fn pool(most: usize) -> &'static Pool {
        Box::leak(Box::new(Pool::new(most, Duration::from_millis(50))))
    }

    /// Work that tells that it is begun, and ends when the sender is dropped.
    fn hold(pool: &'static Pool) -> (Sender<()>, Receiver<()>) {
        let (held, released) = channel::<()>();
        let (tell, taken) = channel();
        pool.give(Box::new(move || {
            let _ = tell.send(());
            let _ = released.recv();
        }));
        (held, taken)
    }

    fn within(mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < SOON, "it does not come about");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
