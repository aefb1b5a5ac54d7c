//! Many requests at the same time.

use super::client::{Request, Response};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

/// Sends every request on a connection of its own, from `threads` threads that set off together.
/// The responses come in the order of the requests.
pub fn burst(addr: SocketAddr, requests: Vec<Request>, threads: usize) -> Vec<Response> {
    assert!(threads > 0, "a burst needs at least one thread");
    let next = AtomicUsize::new(0);
    let start = Barrier::new(threads);
    let responses: Vec<Mutex<Option<Response>>> =
        requests.iter().map(|_| Mutex::new(None)).collect();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                start.wait();
                while let Some((request, slot)) = take_next(&next, &requests, &responses) {
                    let response = request.send_to(addr);
                    *slot.lock().unwrap() = Some(response);
                }
            });
        }
    });
    responses
        .into_iter()
        .map(|slot| slot.into_inner().unwrap().expect("every request was sent"))
        .collect()
}

fn take_next<'a, A, B>(
    next: &AtomicUsize,
    ones: &'a [A],
    others: &'a [B],
) -> Option<(&'a A, &'a B)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    ones.get(index).zip(others.get(index))
}
