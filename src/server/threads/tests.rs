use super::*;
use crate::observe::registry::Metrics;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;
use tokio::sync::oneshot;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_connection_goes_to_the_loop_with_the_fewest() {
    let (threads, metrics) = threads(3);
    let mut open: Vec<Open> = (0..6).map(|_| Open::on(&threads)).collect();
    assert_eq!(connections(&metrics), [2, 2, 2]);
    let place = open[0].place;
    open.retain(|open| open.place != place);
    let is_free = |open: &[i64; 3]| open[place - 1] == 0;
    within(|| is_free(&connections(&metrics)));
    let next = [Open::on(&threads), Open::on(&threads)];
    assert!(
        next.iter().all(|next| next.place == place),
        "twice in a row"
    );
    drop(open);
    drop(next);
    within(|| connections(&metrics) == [0; 3]);
}

#[test]
fn a_connection_that_panics_gives_its_place_back() {
    let (threads, metrics) = threads(1);
    let lively = Open::on(&threads);
    let (told, tells) = channel::<()>();
    threads
        .serve(async move {
            // In the way of a panic, but that nobody is told of it.
            let _ends = told;
            std::panic::resume_unwind(Box::new("on purpose"));
        })
        .unwrap();
    assert!(tells.recv_timeout(SOON).is_err(), "it has ended");
    within(|| connections(&metrics) == [1]);
    assert_eq!(lively.place, 1);
    assert_eq!(Open::on(&threads).place, 1, "the loop goes on");
}

#[test]
fn a_thread_knows_its_number_and_numbers_go_round() {
    let (threads, _) = threads(2);
    assert_eq!(place(), 0, "it does not serve");
    for (number, expected) in [(0, 1), (1, 2), (2, 1), (5, 2)] {
        let (tell, told) = channel();
        let handle = threads.handle(number).unwrap();
        handle.spawn(async move { tell.send(place()) });
        assert_eq!(told.recv_timeout(SOON), Ok(expected), "handle {number}");
    }
}

#[test]
fn what_takes_long_is_done_elsewhere() {
    let (threads, _) = threads(1);
    let places = on_a_loop(&threads, async { (aside(place).await, place()) });
    assert_eq!(places, (Some(0), 1));
}

#[test]
fn a_loop_that_is_held_up_knows_it_until_it_is_in_time_again() {
    let (threads, _) = threads(1);
    on_a_loop(&threads, async {
        // Its pulse is there.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let since = Instant::now();
        let before = held_up(since);
        std::thread::sleep(Duration::from_millis(100));
        let late = || held_up(Instant::now()) - before;
        assert!(late() > Duration::from_millis(50), "the beat is overdue");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(late() > Duration::from_millis(50), "the beat was late");
        let limit = since + SOON;
        loop {
            let before = held_up(Instant::now());
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now = Instant::now();
            if held_up(now) == before {
                return;
            }
            assert!(now < limit, "it is in time again");
        }
    });
}

/// A connection that is served until this is dropped.
struct Open {
    /// Of the thread that serves it.
    place: usize,
    _end: oneshot::Sender<()>,
}

impl Open {
    fn on(threads: &Threads) -> Self {
        let (end, ended) = oneshot::channel();
        let (tell, told) = channel();
        threads
            .serve(async move {
                tell.send(place()).unwrap();
                let _ = ended.await;
            })
            .unwrap();
        Self {
            place: told.recv_timeout(SOON).unwrap(),
            _end: end,
        }
    }
}

fn threads(count: usize) -> (Threads, Metrics) {
    let metrics = Metrics::new().unwrap();
    (Threads::new(count, &metrics.loops), metrics)
}

fn connections<const N: usize>(metrics: &Metrics) -> [i64; N] {
    std::array::from_fn(|place| metrics.loops.of(place + 1).connections.get())
}

fn on_a_loop<T: Send + 'static>(
    threads: &Threads,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let (tell, told): (_, Receiver<T>) = channel();
    let handle = threads.handle(0).unwrap();
    handle.spawn(async move { tell.send(work.await) });
    told.recv_timeout(SOON).unwrap()
}

fn within(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "it does not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}
