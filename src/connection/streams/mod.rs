//! What streams, and whose it is: WebSockets, event streams, and other answers that do not end by themselves.
//!
//! One is entered when its head has come, and leaves when its request is over. It is cut, whatever flows, when its caller's
//! token is revoked (decision 15) or over, when its API key is changed, and some time after the process was told to end.
//! Other answers end by themselves, and are not here.

mod ask;
mod config;
mod places;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use parking_lot::Mutex;
use prometheus::{IntGauge, IntGaugeVec};
use tokio::sync::Notify;

use super::{Cut, End};
use crate::admit::auth::Caller;
use crate::admit::auth::api_key::{ApiKeys, Digest, GivenKey, digest_of};
use crate::observe::logging::unix_millis;
use crate::state::{Remembers, Revoked, signed_part};
pub use ask::Ask;
pub use config::{StreamLimits, StreamsConfig};
use places::Places;
pub use places::{Holder, Place, TooManyStreams};

/// The streams that are open in this process.
pub struct Streams {
    open: Mutex<Open>,
    places: Arc<Places>,
    /// By the configuration in force.
    rule: ArcSwapOption<Rule>,
    revoked: Arc<Revoked>,
    /// Some `doubtful` ones are to be asked about.
    doubts: Notify,
    /// By [`Kind`].
    gauges: [IntGauge; KINDS.len()],
}

/// What the configuration in force says of streams.
pub struct Rule {
    pub keys: Arc<ApiKeys>,
    pub limits: StreamLimits,
}

#[derive(Default)]
struct Open {
    streams: HashMap<u64, Stream, ahash::RandomState>,
    /// Those with an API key, by it: thousands of keys may be asked for at once.
    keyed: BTreeSet<(Digest, u64)>,
    /// The number of the next one.
    next: u64,
    /// The process ends, and the grace is over: what comes now ends at once.
    drained: bool,
}

struct Stream {
    credentials: Credentials,
    /// Its API key may have changed.
    doubtful: bool,
    /// It ends with the process' grace, and not by itself.
    endless: bool,
    cut: Arc<Cut>,
}

/// What the caller of a stream was let in with.
#[derive(Default)]
pub struct Credentials {
    token: Option<BearerToken>,
    key: Option<HeldKey>,
}

struct BearerToken {
    /// Without its signature.
    token: Box<[u8]>,
    caller: Arc<Caller>,
}

#[derive(Clone)]
struct HeldKey {
    given: GivenKey,
    holder: Arc<Caller>,
}

/// What streams, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    WebSocket = 0,
    Events = 1,
    /// On a route with an `idle_timeout`.
    Other = 2,
}

const KINDS: [&str; 3] = ["websocket", "events", "other"];

/// A stream that may be cut, for as long as this lives.
pub struct Watch {
    streams: Arc<Streams>,
    number: u64,
    cut: Arc<Cut>,
    kind: Kind,
}

const EVENTS: &[u8] = b"text/event-stream";

/// Whether an answer streams: `idle` where its route says so.
pub fn kind_of(idle: Option<Duration>, answer: &HeaderMap) -> Option<Kind> {
    match is_events(answer) {
        true => Some(Kind::Events),
        false => idle.map(|_| Kind::Other),
    }
}

/// Whether an answer is a stream of events, which has no end in sight.
pub fn is_events(answer: &HeaderMap) -> bool {
    let kind = answer.get(CONTENT_TYPE);
    kind.is_some_and(|kind| begins_with_events(kind.as_bytes()))
}

/// Whether a request asks for events, as every `EventSource` does.
pub fn asks_for_events(request: &HeaderMap) -> bool {
    let mut accepted = request.get_all(ACCEPT).iter();
    accepted.any(|accept| {
        let mut kinds = accept.as_bytes().split(|b| *b == b',');
        kinds.any(|kind| begins_with_events(kind.trim_ascii_start()))
    })
}

fn begins_with_events(kind: &[u8]) -> bool {
    let begin = kind.get(..EVENTS.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(EVENTS))
}

impl Streams {
    pub fn new(revoked: Arc<Revoked>, gauges: &IntGaugeVec) -> Self {
        Self {
            open: Mutex::default(),
            places: Arc::default(),
            rule: ArcSwapOption::empty(),
            revoked,
            doubts: Notify::new(),
            gauges: KINDS.map(|kind| gauges.with_label_values(&[kind])),
        }
    }

    /// Another configuration is in force. An API key that it does not know any more ends what is open with it.
    pub fn obey(&self, rule: Rule) {
        self.rule.store(Some(Arc::new(rule)));
        self.ask_for_all();
    }

    /// # Errors
    /// When the caller has as many open as it may.
    pub fn take_place(&self, holder: Holder) -> Result<Place, TooManyStreams> {
        let most = self
            .rule
            .load()
            .as_ref()
            .map_or(0, |rule| rule.limits.per_user);
        self.places.take(holder, most)
    }

    fn drain_grace(&self) -> Duration {
        let rule = self.rule.load();
        rule.as_ref()
            .map_or(Duration::ZERO, |rule| rule.limits.drain_grace)
    }

    /// Enters what is open for whoever has the `credentials`: when these count no longer, the end of `cut` is ordered.
    pub fn watch(
        self: &Arc<Self>,
        kind: Kind,
        credentials: Credentials,
        answer: &HeaderMap,
        cut: &Arc<Cut>,
    ) -> Watch {
        cut.watch();
        cut.expires(credentials.until());
        let stream = Stream {
            doubtful: credentials.key.is_some(),
            credentials,
            // One that says its length comes to its end.
            endless: !answer.contains_key(CONTENT_LENGTH),
            cut: cut.clone(),
        };
        let is_doubtful = stream.doubtful;
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        if open.drained && stream.endless {
            cut.order(End::Draining);
        }
        // It may have been revoked since its caller was identified; what comes after this finds it among the others.
        self.ask(&stream);
        open.insert(number, stream);
        drop(open);
        if is_doubtful {
            self.doubts.notify_one();
        }
        self.gauges[kind as usize].inc();
        Watch {
            streams: self.clone(),
            number,
            cut: cut.clone(),
            kind,
        }
    }

    fn ask_all(&self) {
        for stream in self.open.lock().streams.values() {
            self.ask(stream);
        }
    }

    fn ask(&self, stream: &Stream) {
        let Some(BearerToken { token, caller }) = &stream.credentials.token else {
            return;
        };
        // The signature is no part of what is looked up.
        let facts = caller.token.as_ref();
        if facts.is_some_and(|facts| self.revoked.is_signed_part_revoked(token, facts)) {
            stream.cut.order(End::Revoked);
        }
    }

    /// The grace is over.
    fn drain(&self) {
        let mut open = self.open.lock();
        open.drained = true;
        for stream in open.streams.values().filter(|stream| stream.endless) {
            stream.cut.order(End::Draining);
        }
    }

    fn ask_for(&self, digest: Digest) {
        if self.doubt(digest) {
            self.doubts.notify_one();
        }
    }

    fn ask_for_all(&self) {
        let mut any = false;
        for stream in self.open.lock().streams.values_mut() {
            stream.doubtful = stream.credentials.key.is_some();
            any |= stream.doubtful;
        }
        if any {
            self.doubts.notify_one();
        }
    }

    /// Returns whether there is a stream with this key.
    fn doubt(&self, digest: Digest) -> bool {
        let mut open = self.open.lock();
        let numbers = open.with_key(digest);
        for number in &numbers {
            if let Some(stream) = open.streams.get_mut(number) {
                stream.doubtful = true;
            }
        }
        !numbers.is_empty()
    }

    /// The keys of the doubtful ones, each once. They are doubtful no longer.
    fn doubtful_keys(&self) -> HashMap<Digest, GivenKey, ahash::RandomState> {
        let mut open = self.open.lock();
        let doubtful = open.streams.values_mut().filter(|stream| stream.doubtful);
        let keys = doubtful.filter_map(|stream| {
            stream.doubtful = false;
            let given = stream.credentials.key.as_ref()?.given.clone();
            Some((given.digest(), given))
        });
        keys.collect()
    }

    /// What has come of asking for a key: its holder, or that there is none.
    fn settle(&self, digest: Digest, holder: Option<&Caller>) {
        let open = self.open.lock();
        for number in open.with_key(digest) {
            let Some(stream) = open.streams.get(&number) else {
                continue;
            };
            let key = stream.credentials.key.as_ref();
            match holder.filter(|holder| key.is_some_and(|key| holder.may_the_same_as(&key.holder)))
            {
                Some(holder) => {
                    let until = instant(holder.until);
                    let others = stream.credentials.token.as_ref();
                    let token = others.and_then(|token| instant(token.caller.until));
                    stream.cut.expires(until.into_iter().chain(token).min());
                }
                None => stream.cut.order(End::KeyChanged),
            }
        }
    }
}

// === impl Open ===

impl Open {
    fn insert(&mut self, number: u64, stream: Stream) {
        if let Some(key) = &stream.credentials.key {
            self.keyed.insert((key.given.digest(), number));
        }
        self.streams.insert(number, stream);
    }

    fn remove(&mut self, number: u64) {
        let key = self.streams.remove(&number).and_then(|s| s.credentials.key);
        if let Some(key) = key {
            self.keyed.remove(&(key.given.digest(), number));
        }
    }

    fn with_key(&self, digest: Digest) -> Vec<u64> {
        let numbers = self.keyed.range((digest, 0)..=(digest, u64::MAX));
        numbers.map(|(_, number)| *number).collect()
    }
}

/// After `StoredKeys`: by the time that a key is doubted here, it is not remembered there.
impl Remembers for Streams {
    fn forget(&self, key: &[u8]) {
        if let Some(digest) = digest_of(key) {
            self.ask_for(digest);
        }
    }

    fn forget_all(&self) {
        self.ask_for_all();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Orders are given under the lock: none comes after this.
        self.streams.open.lock().remove(self.number);
        self.cut.unwatch();
        self.streams.gauges[self.kind as usize].dec();
    }
}

// === impl Credentials ===

impl Credentials {
    /// `caller` has given `token`, or `key` alone; `beside` has given the `key` beside the token.
    pub fn new(
        token: Option<&[u8]>,
        key: Option<GivenKey>,
        caller: Option<&Arc<Caller>>,
        beside: Option<&Arc<Caller>>,
    ) -> Self {
        let Some(caller) = caller else {
            return Self::default();
        };
        let is_bearer = caller.token.is_some();
        let holder = if is_bearer { beside } else { Some(caller) };
        Self {
            token: token.filter(|_| is_bearer).map(|token| BearerToken {
                token: signed_part(token).into(),
                caller: caller.clone(),
            }),
            key: key.zip(holder).map(|(given, holder)| HeldKey {
                given,
                holder: holder.clone(),
            }),
        }
    }

    fn until(&self) -> Option<Instant> {
        let token = self.token.as_ref().and_then(|token| token.caller.until);
        let key = self.key.as_ref().and_then(|key| key.holder.until);
        instant(token.into_iter().chain(key).min())
    }
}

/// From unix seconds.
fn instant(until: Option<i64>) -> Option<Instant> {
    let now = unix_millis();
    let until = u64::try_from(until?).unwrap_or(0).saturating_mul(1000);
    Instant::now().checked_add(Duration::from_millis(until.saturating_sub(now)))
}

#[cfg(test)]
mod tests;
