//! What a client does to its HTTP/2 connection beside asking: each kind of frame that costs us work, and its client next to
//! nothing, has an allowance that grows with time. h2 bounds what it remembers (streams, resets that nobody took,
//! CONTINUATION, empty DATA); it does not bound how often.
//!
//! The bytes are followed frame by frame (RFC 9113, section 4.1): nine octets are read of each, the rest is skipped.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Ended;
use super::outgoing::Sent;

/// Follows what the client sends.
#[derive(Debug)]
pub struct Meter {
    /// Octets of the frame's head that have come.
    head: [u8; HEAD],
    have: usize,
    /// Of the payload, and of the preface before the first frame.
    skip: usize,
    /// The frame at hand, or the last one, belongs to a header block that is not complete.
    in_block: bool,
    /// And the frame ends it.
    ends_block: bool,
    /// One was completed by the octets at hand.
    ended_block: bool,
    /// Where in the octets at hand the first whole answer to a PING begins.
    pong: Option<usize>,
    /// That have come since h2 was last let write.
    frames: u32,
    resets: Allowance,
    control: Allowance,
    windows: Allowance,
}

/// What the task of a connection is told by its [`Meter`], which sits below h2. Both are in one task: the atomics only
/// make it `Sync`.
#[derive(Debug)]
pub struct Signs {
    epoch: Instant,
    /// An [`Ended`], or 0.
    flood: AtomicU8,
    /// Milliseconds after `epoch`, from 1 on, since when a header block has not been complete; or 0.
    block_since: AtomicU64,
    /// The connection has not looked since `block_since` or `is_closing` was set.
    is_news: AtomicBool,
    /// The client is told to ask no more here.
    is_leaving: AtomicBool,
    /// When h2 is to learn that it has heard us, like `block_since`.
    pong_at: AtomicU64,
    may_have_pong: AtomicBool,
    /// Octets of answers that the kernel has taken.
    answers: AtomicU64,
    /// Streams that were reset for what their client did, and that the connection has not seen.
    faults: AtomicU32,
    /// Everything was said: nothing is missing but the client's end.
    is_closing: AtomicBool,
    /// That is not waited for any longer.
    has_given_up: AtomicBool,
}

/// So many at once, and so many a second.
#[derive(Debug)]
pub struct Allowance {
    left: u32,
    most: u32,
    per_second: u32,
    since: Option<Instant>,
}

const HEAD: usize = 9;

/// The answer to a PING, in octets.
pub const PONG: usize = HEAD + 8;
const PREFACE: usize = 24;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const ACK: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// h2 takes the answer to its PING for the last frame of a client that has not heard of its GOAWAY. Clients write such answers
/// in front of what they had in their queue, so that it would come too late; nothing of it is lost when h2 learns of it
/// this much later.
const AFTER_PONG: Duration = Duration::from_millis(100);

/// See [`Meter::is_turn_over`].
const FRAMES_A_TURN: u32 = 128;

/// Octets that we send for which a client may send one WINDOW_UPDATE: who acknowledges every small frame is no attacker.
const OCTETS_A_WINDOW: usize = 256;

// === impl Meter ===

impl Meter {
    pub fn new() -> Self {
        Self {
            head: [0; HEAD],
            have: 0,
            skip: PREFACE,
            in_block: false,
            ends_block: false,
            ended_block: false,
            pong: None,
            frames: 0,
            // A page that is left cancels what it has asked for: a hundred at once.
            resets: Allowance::new(200, 20),
            // PING, SETTINGS, PRIORITY and what is unknown. gRPC measures its path with PINGs.
            control: Allowance::new(1000, 200),
            windows: Allowance::new(10_000, 2000),
        }
    }

    /// Follows the next octets.
    pub fn read(&mut self, mut octets: &[u8], signs: &Signs) {
        let (was_in_block, all) = (self.in_block, octets.len());
        self.pong = None;
        self.ended_block = false;
        while !octets.is_empty() {
            if self.skip > 0 {
                let here = self.skip.min(octets.len());
                self.skip -= here;
                octets = &octets[here..];
                if self.skip == 0 {
                    self.frame_ends();
                }
                continue;
            }
            let here = (HEAD - self.have).min(octets.len());
            self.head[self.have..self.have + here].copy_from_slice(&octets[..here]);
            self.have += here;
            octets = &octets[here..];
            if self.have == HEAD {
                self.have = 0;
                self.frame(signs);
                if self.pong.is_none() && self.is_pong() && octets.len() >= self.skip {
                    self.pong = (all - octets.len()).checked_sub(HEAD);
                }
            }
        }
        match (was_in_block && !self.ended_block, self.in_block) {
            (false, true) => signs.block_begins(),
            (_, false) if was_in_block => signs.block_ends(),
            _ => {}
        }
    }

    /// Where in the octets that were read last an answer to a PING begins, if all of it is there.
    pub fn pong(&self) -> Option<usize> {
        self.pong
    }

    /// Whether so many frames have come since this was last said that h2 has to write something before it reads on: what a
    /// frame costs us shows when it is answered.
    pub fn is_turn_over(&mut self) -> bool {
        let is_over = self.frames >= FRAMES_A_TURN;
        if is_over {
            self.frames = 0;
        }
        is_over
    }

    /// Whether another frame could stand here.
    pub fn is_between_frames(&self) -> bool {
        self.have == 0 && self.skip == 0 && !self.in_block
    }

    fn is_pong(&self) -> bool {
        self.head[3] == PING && self.head[4] & ACK != 0 && self.skip == PONG - HEAD
    }

    /// So many octets were sent.
    pub fn sent(&mut self, octets: usize) {
        let more = octets.div_ceil(OCTETS_A_WINDOW) as u32;
        self.windows.left = self.windows.left.saturating_add(more).min(u32::MAX / 2);
    }

    fn frame(&mut self, signs: &Signs) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.frames += 1;
        let (allowance, of) = match kind {
            DATA => return,
            HEADERS | CONTINUATION => {
                self.in_block = true;
                self.ends_block = flags & END_HEADERS != 0;
                if self.skip == 0 {
                    self.frame_ends();
                }
                return;
            }
            RST_STREAM => (&mut self.resets, Ended::Resets),
            WINDOW_UPDATE => (&mut self.windows, Ended::WindowUpdates),
            _ => (&mut self.control, Ended::ControlFrames),
        };
        if !allowance.take() {
            signs.flood.store(of as u8, Relaxed);
        }
    }

    fn frame_ends(&mut self) {
        if std::mem::take(&mut self.ends_block) {
            self.in_block = false;
            self.ended_block = true;
        }
    }
}

// === impl Signs ===

impl Signs {
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            flood: AtomicU8::new(0),
            block_since: AtomicU64::new(0),
            is_news: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            pong_at: AtomicU64::new(0),
            may_have_pong: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            faults: AtomicU32::new(0),
            is_closing: AtomicBool::new(false),
            has_given_up: AtomicBool::new(false),
        }
    }

    pub fn flood(&self) -> Option<Ended> {
        Ended::of(self.flood.load(Relaxed))
    }

    /// Since when a header block has not been complete.
    pub fn block_since(&self) -> Option<Instant> {
        match self.block_since.load(Relaxed) {
            0 => None,
            millis => Some(self.epoch + Duration::from_millis(millis)),
        }
    }

    /// Whether there is something that the connection has not seen.
    pub fn take_news(&self) -> bool {
        self.is_news.swap(false, Relaxed) || self.flood().is_some()
    }

    pub fn leaves(&self) {
        self.is_leaving.store(true, Relaxed);
    }

    pub fn is_leaving(&self) -> bool {
        self.is_leaving.load(Relaxed)
    }

    /// The client has heard that we leave.
    pub fn pong_came(&self) {
        let at = (self.epoch.elapsed() + AFTER_PONG).as_millis() as u64;
        self.pong_at.store(at.max(1), Relaxed);
        self.is_news.store(true, Relaxed);
    }

    /// When [`Signs::release_pong`] is to be called.
    pub fn pong_at(&self) -> Option<Instant> {
        match self.pong_at.load(Relaxed) {
            0 => None,
            millis => Some(self.epoch + Duration::from_millis(millis)),
        }
    }

    pub fn release_pong(&self) {
        self.pong_at.store(0, Relaxed);
        self.may_have_pong.store(true, Relaxed);
    }

    pub fn may_have_pong(&self) -> bool {
        self.may_have_pong.load(Relaxed)
    }

    pub fn sent(&self, sent: Sent) {
        self.answers.fetch_add(sent.answers, Relaxed);
        if sent.faults > 0 {
            self.faults.fetch_add(sent.faults, Relaxed);
            self.is_news.store(true, Relaxed);
        }
    }

    pub fn answers_sent(&self) -> u64 {
        self.answers.load(Relaxed)
    }

    pub fn faults(&self) -> u32 {
        self.faults.load(Relaxed)
    }

    pub fn take_faults(&self) -> u32 {
        self.faults.swap(0, Relaxed)
    }

    pub fn closes(&self) {
        self.is_closing.store(true, Relaxed);
        self.is_news.store(true, Relaxed);
    }

    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Relaxed)
    }

    pub fn give_up(&self) {
        self.has_given_up.store(true, Relaxed);
    }

    pub fn has_given_up(&self) -> bool {
        self.has_given_up.load(Relaxed)
    }

    fn block_begins(&self) {
        let since = self.epoch.elapsed().as_millis() as u64;
        self.block_since.store(since.max(1), Relaxed);
        self.is_news.store(true, Relaxed);
    }

    fn block_ends(&self) {
        self.block_since.store(0, Relaxed);
    }
}

// === impl Allowance ===

impl Allowance {
    pub fn new(most: u32, per_second: u32) -> Self {
        Self {
            left: most,
            most,
            per_second,
            since: None,
        }
    }

    pub fn take(&mut self) -> bool {
        if self.left == 0 {
            self.fill(Instant::now());
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return false,
        }
        // The clock is read for the first one and whenever the allowance is used up, not for each.
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
        true
    }

    /// What has grown since it was full.
    fn fill(&mut self, now: Instant) {
        let since = self.since.replace(now).unwrap_or(now);
        let grown = now.saturating_duration_since(since).as_secs_f64() * f64::from(self.per_second);
        self.left = (grown as u32).min(self.most);
        if self.left == 0 {
            self.since = Some(since); // less than one: it goes on growing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn after(octets: &[u8], step: usize) -> Signs {
        let (mut meter, signs) = (Meter::new(), Signs::new(Instant::now()));
        meter.read(&[0; PREFACE], &signs);
        octets
            .chunks(step)
            .for_each(|piece| meter.read(piece, &signs));
        signs
    }

    #[test]
    fn frames_are_counted_however_they_arrive() {
        for (kind, most, ended) in [
            (RST_STREAM, 200, Ended::Resets),
            (6, 1000, Ended::ControlFrames),
            (0x77, 1000, Ended::ControlFrames),
            (WINDOW_UPDATE, 10_000, Ended::WindowUpdates),
        ] {
            for step in [1, 7, 4096] {
                let well = frame(kind, 0, b"12345678").repeat(most);
                assert_eq!(after(&well, step).flood(), None, "{kind} {step}");
                let flood = frame(kind, 0, b"12345678").repeat(most * 2);
                assert_eq!(after(&flood, step).flood(), Some(ended), "{kind} {step}");
            }
        }
    }

    #[test]
    fn a_header_block_is_open_until_its_last_octet() {
        let whole = [
            frame(HEADERS, 0, b"abc"),
            frame(CONTINUATION, 0, b""),
            frame(CONTINUATION, END_HEADERS, b"de"),
        ]
        .concat();
        for end in 0..=whole.len() {
            let is_open = after(&whole[..end], 1).block_since().is_some();
            assert_eq!(is_open, (HEAD..whole.len()).contains(&end), "{end}");
        }
    }

    #[test]
    fn the_answer_to_a_ping_is_found_where_it_is_whole() {
        let (before, pong) = (frame(DATA, 0, b"abc"), frame(PING, ACK, b"12345678"));
        let all = [before.clone(), pong.clone(), before.clone()].concat();
        let (mut meter, signs) = (Meter::new(), Signs::new(Instant::now()));
        meter.read(&[0; PREFACE], &signs);
        meter.read(&all, &signs);
        assert_eq!(meter.pong(), Some(before.len()));
        meter.read(&before, &signs);
        assert_eq!(meter.pong(), None);
        for split in 1..pong.len() {
            meter.read(&pong[..split], &signs);
            assert!(!meter.is_between_frames());
            meter.read(&pong[split..], &signs);
            assert_eq!(meter.pong(), None, "in two pieces: {split}");
            assert!(meter.is_between_frames());
        }
        meter.read(&frame(PING, 0, b"12345678"), &signs);
        assert_eq!(meter.pong(), None, "a question");
    }

    #[test]
    fn an_allowance_grows_with_time() {
        let mut allowance = Allowance::new(10, 5);
        assert_eq!((0..20).filter(|_| allowance.take()).count(), 10);
        allowance.since = allowance.since.map(|since| since - Duration::from_secs(1));
        assert_eq!((0..20).filter(|_| allowance.take()).count(), 5);
    }

    #[test]
    fn who_is_sent_much_may_acknowledge_much() {
        let (mut meter, signs) = (Meter::new(), Signs::new(Instant::now()));
        meter.read(&[0; PREFACE], &signs);
        meter.sent(OCTETS_A_WINDOW * 20_000);
        meter.read(&frame(WINDOW_UPDATE, 0, b"1234").repeat(30_000), &signs);
        assert_eq!(signs.flood(), None);
    }
}
