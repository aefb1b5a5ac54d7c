//! Ends an upstream exchange on time. Pingora's time-outs count from each read anew, so that a backend that trickles
//! never meets one; here the exchange as a whole has a moment at which its connection is shut down, whatever it was
//! waiting for, and Pingora sees the connection end.
//!
//! A connection to a backend that several requests share (HTTP/2) must outlive each of them: there the exchange ends from
//! its client's side instead, whose session asks [`Cut::is_over_here`] whenever it waits, and Pingora resets the one
//! stream.
//!
//! What another thread wants to end (`super::streams`) is ended here as well, by the task whose socket it is, and so is
//! the connection of a client that does not take its answer (`super::pace`). A WebSocket is told first
//! (`super::websocket`), and has a moment to end by itself.
//!
//! One timer serves all requests of a client's connection. Most end long before their deadline, so it is not set anew
//! for each: when it goes off and the deadline has moved on, it only follows it.

use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::time::Sleep;

use super::ahead::Ahead;
use super::gone::Gone;
use super::pace::{Taking, TooSlow};

/// What a request sets and its connection's task obeys. Both are the same task: the atomics only make it `Sync`, but for
/// `order`, which another thread may give.
#[derive(Debug)]
pub struct Cut {
    epoch: Instant,
    /// The upstream's socket, or [`SHARED`]; [`NONE`], or after its time [`SHUT_DOWN`] or [`OVER`].
    socket: AtomicI32,
    /// Microseconds after `epoch`; [`NEVER`] when nothing is to be ended.
    at: AtomicU64,
    /// When to look whether the client takes its answer, in the same way.
    look: AtomicU64,
    /// It did not.
    client_is_slow: AtomicBool,
    /// The same: when the caller's credentials are over, whatever flows.
    expiry: AtomicU64,
    /// [`UNWATCHED`], [`WATCHED`] or an [`End`].
    order: AtomicU8,
    /// [`AT_ONCE`], [`GENTLY`] or [`CLOSING`].
    manner: AtomicU8,
    waker: AtomicWaker,
    /// [`FREE`], [`FINISHED`] or [`HELD`], and above these two bits how often it was held.
    answer: AtomicU64,
    writer: AtomicWaker,
    /// Whether the exchange waits for its client.
    pub ahead: Ahead,
    /// Whether it is told that its client is gone.
    pub gone: Gone,
}

/// Why something that streams has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The caller's token.
    Revoked = 2,
    /// The caller's API key.
    KeyChanged = 3,
    Expired = 4,
    /// The process ends.
    Draining = 5,
    /// Nothing flowed for too long. Only a WebSocket is told so.
    Idle = 6,
}

/// Nobody else may end the exchange: this is asked of every request, and costs one load.
const UNWATCHED: u8 = 0;
const WATCHED: u8 = 1;

/// The socket is shut down when its time has come.
const AT_ONCE: u8 = 0;
/// Its time comes, and both sides are told.
const GENTLY: u8 = 1;
/// They were.
const CLOSING: u8 = 2;

/// For both sides of a WebSocket to answer that it ends.
pub const TO_CLOSE: Duration = Duration::from_secs(1);

/// Behind the head of an answer: most are over before.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// It ends when its client is gone.
const FREE: u64 = 0;
/// It is finished, whoever takes it.
const FINISHED: u64 = 1;
/// It is, and nothing of it goes out at the moment.
const HELD: u64 = 2;

/// Bits of these.
const STATE: u32 = 2;

const NEVER: u64 = u64::MAX;
const NONE: RawFd = -1;
const SHUT_DOWN: RawFd = -2;
const SHARED: RawFd = -3;
const OVER: RawFd = -4;

/// Keeps an answer back. Its going lets that out, and no later one of the same connection.
#[derive(Debug)]
pub struct Hold {
    cut: Arc<Cut>,
    held: u64,
    then: u64,
}

/// Serves requests, and looks at the clock for them.
pub struct Watched<'a, F> {
    pub requests: F,
    pub cut: &'a Cut,
    pub timer: Pin<&'a mut Sleep>,
    pub taking: Option<Taking>,
}

impl Cut {
    pub fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            epoch: now,
            socket: AtomicI32::new(NONE),
            at: AtomicU64::new(NEVER),
            look: AtomicU64::new(NEVER),
            client_is_slow: AtomicBool::new(false),
            expiry: AtomicU64::new(NEVER),
            order: AtomicU8::new(UNWATCHED),
            manner: AtomicU8::new(AT_ONCE),
            waker: AtomicWaker::new(),
            answer: AtomicU64::new(FREE),
            writer: AtomicWaker::new(),
            ahead: Ahead::default(),
            gone: Gone::default(),
        })
    }

    /// From now on `socket` is shut down at `at`.
    ///
    /// The number must be that of an open socket until [`Cut::disarm`]. Pingora tells it in `connected_to_upstream`, and
    /// closes it, or gives it back to its pool, right before `error_while_proxy` or `logging` without waiting for
    /// anything in between; these disarm it, and only between two waits does [`Watched`] look.
    pub fn arm(&self, socket: RawFd, at: Instant) {
        self.socket.store(socket, Relaxed);
        self.move_to(at);
    }

    /// From now on the exchange, on a connection that others share, is over at `at`.
    pub fn arm_shared(&self, at: Instant) {
        self.socket.store(SHARED, Relaxed);
        self.move_to(at);
    }

    /// Another moment for the exchange at hand.
    pub fn move_to(&self, at: Instant) {
        self.at.store(self.micros(at), Relaxed);
    }

    /// From now on, when its time has come or the end is ordered, the two sides of a WebSocket are told, and the socket is
    /// shut down only [`TO_CLOSE`] later.
    pub fn be_gentle(&self) {
        self.manner.store(GENTLY, Relaxed);
    }

    /// They are told now.
    pub fn close(&self) {
        self.manner.store(CLOSING, Relaxed);
        self.move_to(Instant::now() + TO_CLOSE);
    }

    pub fn disarm(&self) {
        self.at.store(NEVER, Relaxed);
        self.look.store(NEVER, Relaxed);
        self.socket.store(NONE, Relaxed);
        self.manner.store(AT_ONCE, Relaxed);
    }

    /// From now on, until [`Cut::disarm`], the client must take what is sent to it.
    pub fn watch_client(&self, now: Instant) {
        self.look.store(self.micros(now + FIRST_LOOK), Relaxed);
    }

    /// Whether its connection was shut down here because it did not.
    pub fn client_is_slow(&self) -> bool {
        self.client_is_slow.load(Relaxed)
    }

    /// Whether the exchange was ended here: its time was over, or it was ordered.
    pub fn was_shut_down(&self) -> bool {
        matches!(self.socket.load(Relaxed), SHUT_DOWN | OVER)
    }

    /// Whether it was, and the client's side is where it has to end.
    pub fn is_over_here(&self) -> bool {
        self.socket.load(Relaxed) == OVER
    }

    /// From now on, until [`Cut::unwatch`], another thread may [`Cut::order`] the end.
    pub fn watch(&self) {
        self.order.store(WATCHED, Relaxed);
    }

    pub fn unwatch(&self) {
        self.order.store(UNWATCHED, Relaxed);
        self.expiry.store(NEVER, Relaxed);
    }

    /// What is watched ends at `at`, whatever flows.
    pub fn expires(&self, at: Option<Instant>) {
        let micros = at.map_or(NEVER, |at| self.micros(at));
        self.expiry.store(micros, Relaxed);
        self.waker.wake();
    }

    /// Ends the exchange as soon as its task has woken up. The first order counts.
    pub fn order(&self, end: End) {
        let _ = self
            .order
            .compare_exchange(WATCHED, end as u8, Relaxed, Relaxed);
        self.waker.wake();
    }

    pub fn ordered(&self) -> Option<End> {
        match self.order.load(Relaxed) {
            2 => Some(End::Revoked),
            3 => Some(End::KeyChanged),
            4 => Some(End::Expired),
            5 => Some(End::Draining),
            6 => Some(End::Idle),
            _ => None,
        }
    }

    /// When there is something to do next.
    fn next_moment(&self) -> Option<Instant> {
        let end = self.at.load(Relaxed).min(self.expiry.load(Relaxed));
        match end.min(self.look.load(Relaxed)) {
            NEVER => None,
            micros => Some(self.epoch + Duration::from_micros(micros)),
        }
    }

    fn micros(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.epoch).as_micros();
        // What is further away than can be told is so for ever.
        u64::try_from(micros).unwrap_or(NEVER)
    }

    /// Does what the moment asks for.
    fn act(&self, taking: Option<&mut Taking>, now: Instant, cx: &mut Context<'_>) {
        let micros = self.micros(now);
        if self.at.load(Relaxed).min(self.expiry.load(Relaxed)) <= micros {
            self.time_is_up(micros, cx);
        }
        if self.look.load(Relaxed) > micros {
            return;
        }
        self.look.store(NEVER, Relaxed);
        let Some(taking) = taking else {
            return;
        };
        match taking.look(now) {
            Ok(again) => self.look.store(self.micros(again), Relaxed),
            Err(TooSlow) => {
                self.client_is_slow.store(true, Relaxed);
                taking.give_up();
            }
        }
    }

    fn shut_down(&self, cx: &Context<'_>) {
        self.at.store(NEVER, Relaxed);
        // The client's side is asked once more, and finds it.
        cx.waker().wake_by_ref();
        let socket = self.socket.load(Relaxed);
        if socket == SHARED {
            self.socket.store(OVER, Relaxed);
            return;
        }
        self.socket.store(SHUT_DOWN, Relaxed);
        if socket >= 0 {
            // Whoever reads or writes it is woken. One that the peer has reset already is as good as shut down.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }
}

/// What is sent to the client.
impl Cut {
    /// From now on, until [`Cut::let_go`], the exchange goes on to its end although its client is gone: what cannot be
    /// written to it is as good as written.
    pub fn finish_anyway(&self) {
        self.becomes(FINISHED);
    }

    pub fn is_finished_anyway(&self) -> bool {
        self.state() != FREE
    }

    /// The same, and from now on nothing is written until what this returns is dropped, here or in another thread.
    /// `to_the_end`: it is finished then all the same, else it ends when its client is gone.
    pub fn hold(self: &Arc<Self>, to_the_end: bool) -> Hold {
        let number = (self.answer.load(Relaxed) >> STATE) + 1;
        let held = number << STATE | HELD;
        self.answer.store(held, Relaxed);
        Hold {
            cut: self.clone(),
            held,
            then: number << STATE | if to_the_end { FINISHED } else { FREE },
        }
    }

    pub fn let_go(&self) {
        self.becomes(FREE);
        self.writer.wake();
    }

    fn state(&self) -> u64 {
        self.answer.load(Relaxed) & ((1 << STATE) - 1)
    }

    /// Whoever held it does so no more.
    fn becomes(&self, state: u64) {
        let number = self.answer.load(Relaxed) >> STATE;
        self.answer.store(number << STATE | state, Relaxed);
    }

    /// Whether it goes on although its client is gone. If so, this task is woken when that changes.
    pub fn goes_on_anyway(&self, cx: &Context<'_>) -> bool {
        self.is_finished_anyway() && {
            self.writer.register(cx.waker());
            self.is_finished_anyway()
        }
    }

    /// Pending while nothing may be written.
    pub fn poll_held(&self, cx: &Context<'_>) -> Poll<()> {
        if self.state() != HELD {
            return Poll::Ready(());
        }
        self.writer.register(cx.waker());
        match self.state() {
            HELD => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }
}

impl Cut {
    /// Obeys an order, now or when it comes.
    fn obey(&self, cx: &mut Context<'_>) {
        if self.order.load(Relaxed) == UNWATCHED {
            return;
        }
        self.waker.register(cx.waker());
        let socket = self.socket.load(Relaxed);
        if self.ordered().is_some() && (socket >= 0 || socket == SHARED) {
            self.end(cx);
        }
    }

    /// The end that was set has come.
    fn time_is_up(&self, micros: u64, cx: &mut Context<'_>) {
        if self.expiry.load(Relaxed) <= micros {
            self.expiry.store(NEVER, Relaxed);
            self.order(End::Expired);
            return self.obey(cx);
        }
        match self.manner.load(Relaxed) {
            CLOSING => {
                self.shut_down(cx);
                cx.waker().wake_by_ref();
            }
            GENTLY => {
                self.order(End::Idle);
                self.end(cx);
            }
            _ => self.shut_down(cx),
        }
    }

    fn end(&self, cx: &mut Context<'_>) {
        match self.manner.load(Relaxed) {
            AT_ONCE => self.shut_down(cx),
            GENTLY => {
                self.close();
                cx.waker().wake_by_ref();
            }
            _ => {}
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Self { cut, held, then } = self;
        // Otherwise it was let go before, and may be held for another answer by now.
        let _ = cut.answer.compare_exchange(*held, *then, Relaxed, Relaxed);
        cut.writer.wake();
    }
}

impl<F: Future + Unpin> Future for Watched<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.requests).poll(cx);
        if polled.is_ready() {
            return polled;
        }
        this.cut.obey(cx);
        while let Some(at) = this.cut.next_moment() {
            if this.timer.deadline().into_std() > at || this.timer.is_elapsed() {
                let now = Instant::now();
                if at <= now {
                    this.cut.act(this.taking.as_mut(), now, cx);
                    continue;
                }
                this.timer.as_mut().reset(at.into());
            } else {
                // It was polled when it was set: it wakes this task at `at`, or earlier, and then is set anew.
                break;
            }
            if this.timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_last_longer_than_can_be_told_do_not_end_now() {
        let start = Instant::now();
        let cut = Cut::new(start);
        let soon = start + Duration::from_secs(5);
        cut.expires(Some(soon));
        assert_eq!(cut.next_moment(), Some(soon));
        cut.expires(Some(soon + Duration::from_micros(u64::MAX)));
        assert_eq!(cut.next_moment(), None);
    }

    #[test]
    fn an_answer_is_let_out_by_its_own_hold_and_by_no_earlier_one() {
        let cut = Cut::new(Instant::now());
        let cx = Context::from_waker(std::task::Waker::noop());
        let first = cut.hold(true);
        assert!(cut.poll_held(&cx).is_pending());
        // Its request is over before whoever writes it down comes back; the next one begins, and is held too.
        cut.let_go();
        cut.finish_anyway();
        let second = cut.hold(true);
        drop(first);
        assert!(cut.poll_held(&cx).is_pending(), "it is another's");
        drop(second);
        assert!(cut.poll_held(&cx).is_ready() && cut.is_finished_anyway());
        let more_comes = cut.hold(false);
        drop(more_comes);
        assert!(cut.poll_held(&cx).is_ready() && !cut.is_finished_anyway());
    }
}
