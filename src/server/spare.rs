//! Work that has time, beside requests that have none: on a thread that runs while no other thread of the machine wants its
//! processor (`SCHED_IDLE`, sched(7)), and as any other once somebody has waited for too long.
//!
//! One thread for all of it: one that ends leaves its memory to be picked up by those that serve.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thread_priority::NormalThreadSchedulePolicy::{Idle, Other};
use thread_priority::{
    ThreadId, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::sync::oneshot;

/// Ends with the last of its clones, when it has done what it was given.
#[derive(Clone)]
pub struct Spare {
    works: mpsc::Sender<Work>,
    /// Joined by nobody: its number stays its own.
    thread: Arc<JoinHandle<()>>,
    /// Who may not lift a thread must not lower it as far.
    may_lift: bool,
}

type Work = Box<dyn FnOnce() + Send>;

/// Where every processor is busy for good, what only fills gaps gets a three-hundredth of one.
const PATIENCE: Duration = Duration::from_secs(1);

// === impl Spare ===

impl Spare {
    /// Blocks for a moment.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start() -> io::Result<Self> {
        let (works, given) = mpsc::channel::<Work>();
        let may_lift = may_lift()?;
        let thread = thread::Builder::new().name("spare".into()).spawn(move || {
            while let Ok(work) = given.recv() {
                // A container's filter may refuse it: then it is done as before.
                let _ = match may_lift {
                    true => set(thread_native_id(), Idle, ThreadPriority::Min),
                    false => set(thread_native_id(), Other, nice(TEN)),
                };
                // Who waits for it sees that there is no result.
                let _ = catch_unwind(AssertUnwindSafe(work));
            }
        })?;
        Ok(Self {
            works,
            thread: Arc::new(thread),
            may_lift,
        })
    }

    /// Does the work, behind what was given before.
    ///
    /// # Errors
    /// When it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (done, mut result) = oneshot::channel();
        let panicked = || io::Error::other("it has panicked");
        // Who waited may have gone.
        let work = Box::new(move || drop(done.send(work())));
        self.works.send(work).map_err(|_| panicked())?;
        loop {
            if let Ok(result) = tokio::time::timeout(PATIENCE, &mut result).await {
                return result.map_err(|_| panicked());
            }
            // Again and again: what is before it in the queue may be what was lifted. (The crate sets the nice value of who calls:
            // that is a thread as any other.)
            if self.may_lift {
                let _ = set(self.thread.as_pthread_t(), Other, nice(ZERO));
            }
        }
    }
}

/// Whether a thread that was lowered can be lifted again: RLIMIT_NICE, or CAP_SYS_NICE (sched(7)).
fn may_lift() -> io::Result<bool> {
    let trial = || {
        let this = thread_native_id();
        set(this, Idle, ThreadPriority::Min) && set(this, Other, nice(ZERO))
    };
    let trial = thread::Builder::new().name("spare".into()).spawn(trial)?;
    Ok(trial.join().unwrap_or(false))
}

fn set(
    thread: ThreadId,
    policy: thread_priority::NormalThreadSchedulePolicy,
    priority: ThreadPriority,
) -> bool {
    let policy = ThreadSchedulePolicy::Normal(policy);
    set_thread_priority_and_policy(thread, priority, policy).is_ok()
}

/// Nice 0, and nice 10 (a tenth of the others' time where all want some), on the crate's scale from 99 to 0.
const ZERO: u8 = 48;
const TEN: u8 = 22;

fn nice(value: u8) -> ThreadPriority {
    ThreadPriority::Crossplatform(value.try_into().expect("less than 100"))
}

#[cfg(test)]
mod tests {
    use thread_priority::thread_schedule_policy;

    use super::*;

    fn of_this_thread() -> ThreadSchedulePolicy {
        thread_schedule_policy().unwrap()
    }

    fn lowered() -> ThreadSchedulePolicy {
        ThreadSchedulePolicy::Normal(if may_lift().unwrap() { Idle } else { Other })
    }

    #[tokio::test]
    async fn work_yields_to_every_other_thread_and_leaves_who_waits_as_it_was() {
        let (before, spare) = (of_this_thread(), Spare::start().unwrap());
        let there = spare.run(of_this_thread).await.unwrap();
        assert_eq!(there, lowered());
        assert_eq!(of_this_thread(), before);
    }

    #[tokio::test]
    async fn work_that_has_waited_for_too_long_is_as_any_other_and_what_comes_next_is_not() {
        let spare = Spare::start().unwrap();
        let work = || {
            while of_this_thread() == ThreadSchedulePolicy::Normal(Idle) {
                thread::sleep(Duration::from_millis(1));
            }
            of_this_thread()
        };
        let there = spare.run(work).await.unwrap();
        assert_eq!(there, ThreadSchedulePolicy::Normal(Other));
        let next = spare.run(of_this_thread).await.unwrap();
        assert_eq!(next, lowered());
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_does_not_end_the_thread() {
        let spare = Spare::start().unwrap();
        let ended = spare.run(|| panic!("on purpose")).await;
        assert!(ended.is_err());
        assert_eq!(spare.run(|| 7).await.unwrap(), 7);
    }
}
