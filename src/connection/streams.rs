//! Answers that stream, and whose they are: who is revoked has them cut, whatever flows (decision 15).
//!
//! An answer is entered when its head has come, and leaves when its request is over. Whenever something is revoked, here or
//! in Redis, all that are open are asked. Other answers end by themselves, and are not here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::Cut;
use crate::admit::auth::Caller;
use crate::state::{Revoked, signed_part};

/// The streams that are open in this process.
pub struct Streams {
    open: Mutex<Open>,
    revoked: Arc<Revoked>,
}

#[derive(Default)]
struct Open {
    streams: HashMap<u64, Stream, ahash::RandomState>,
    /// The number of the next one.
    next: u64,
}

struct Stream {
    /// Without its signature.
    token: Box<[u8]>,
    caller: Arc<Caller>,
    cut: Arc<Cut>,
}

/// A stream that may be cut, for as long as this lives.
pub struct Watch {
    streams: Arc<Streams>,
    number: u64,
    cut: Arc<Cut>,
}

/// Between two looks at all streams, when one revocation follows the other.
const PAUSE: Duration = Duration::from_millis(20);

/// Whether an answer streams: `idle` where its route says so.
pub fn is_stream(idle: Option<Duration>, answer: &HeaderMap) -> bool {
    const EVENTS: &[u8] = b"text/event-stream";
    let kind = answer.get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    let begins = |kind: &[u8]| {
        let begin = kind.get(..EVENTS.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(EVENTS))
    };
    idle.is_some() || kind.is_some_and(begins)
}

impl Streams {
    pub fn new(revoked: Arc<Revoked>) -> Self {
        Self {
            open: Mutex::default(),
            revoked,
        }
    }

    /// Enters what is open for the bearer of `token`: when that is revoked, `cut` is ordered.
    pub fn watch(self: &Arc<Self>, token: &[u8], caller: &Arc<Caller>, cut: &Arc<Cut>) -> Watch {
        let stream = Stream {
            token: signed_part(token).into(),
            caller: caller.clone(),
            cut: cut.clone(),
        };
        cut.watch();
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        // It may have been revoked since its caller was identified; what comes after this finds it among the others.
        let stream = open.streams.entry(number).or_insert(stream);
        self.ask(stream);
        Watch {
            streams: self.clone(),
            number,
            cut: cut.clone(),
        }
    }

    fn ask_all(&self) {
        for stream in self.open.lock().streams.values() {
            self.ask(stream);
        }
    }

    fn ask(&self, stream: &Stream) {
        let token = stream.caller.token.as_ref();
        // The signature is no part of what is looked up.
        if token.is_some_and(|facts| self.revoked.is_signed_part_revoked(&stream.token, facts)) {
            stream.cut.order();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Orders are given under the lock: none comes after this.
        self.streams.open.lock().streams.remove(&self.number);
        self.cut.unwatch();
    }
}

/// The background task that asks.
pub struct Ask(pub Arc<Streams>);

#[async_trait]
impl BackgroundService for Ask {
    /// Until the process ends: streams are open meanwhile.
    async fn start(&self, _: ShutdownWatch) {
        let Self(streams) = self;
        loop {
            streams.revoked.news().await;
            streams.ask_all();
            tokio::time::sleep(PAUSE).await;
        }
    }
}
