//! Work that has time, beside requests that have none: on a thread of its own that runs while no other thread of the machine
//! wants its processor (`SCHED_IDLE`, sched(7)), and as any other once it has waited for too long.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::Builder;
use std::time::Duration;

use thread_priority::NormalThreadSchedulePolicy::{Idle, Other};
use thread_priority::{
    ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::sync::oneshot;

/// Where every processor is busy for good, what only fills gaps gets a three-hundredth of one.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does the work, on a thread of this name.
///
/// # Errors
/// When the system has no thread left, or the work panics.
pub async fn beside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, mut result) = oneshot::channel();
    let thread = Builder::new().name(name.into()).spawn(move || {
        // A container's or an older unit's filter may refuse it: then it is done as before.
        let _ = set_thread_priority_and_policy(
            thread_native_id(),
            ThreadPriority::Min,
            ThreadSchedulePolicy::Normal(Idle),
        );
        // Who waited may have gone.
        let _ = done.send(work());
    })?;
    let result = match tokio::time::timeout(PATIENCE, &mut result).await {
        Ok(result) => result,
        Err(_) => {
            // The thread is ours, ended or not, for as long as nobody has joined it.
            let _ = set_thread_priority_and_policy(
                thread.as_pthread_t(),
                ordinary(),
                ThreadSchedulePolicy::Normal(Other),
            );
            result.await
        }
    };
    result.map_err(|_| io::Error::other("it has panicked"))
}

/// Nice 0, on the crate's scale from 0 to 99.
fn ordinary() -> ThreadPriority {
    ThreadPriority::Crossplatform(48.try_into().expect("less than 99"))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use thread_priority::thread_schedule_policy;

    use super::*;

    fn of_this_thread() -> ThreadSchedulePolicy {
        thread_schedule_policy().unwrap()
    }

    #[tokio::test]
    async fn work_yields_to_every_other_thread_and_leaves_who_waits_as_it_was() {
        let before = of_this_thread();
        let there = beside("test", of_this_thread).await.unwrap();
        assert_eq!(there, ThreadSchedulePolicy::Normal(Idle));
        assert_eq!(of_this_thread(), before);
    }

    #[tokio::test]
    async fn work_that_has_waited_for_too_long_is_a_thread_as_any_other() {
        let work = || {
            while of_this_thread() == ThreadSchedulePolicy::Normal(Idle) {
                thread::sleep(Duration::from_millis(1));
            }
            of_this_thread()
        };
        let there = beside("test", work).await.unwrap();
        assert_eq!(there, ThreadSchedulePolicy::Normal(Other));
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let ended = beside("test", || panic!("on purpose")).await;
        assert!(ended.is_err());
    }
}
