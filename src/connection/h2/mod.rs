//! One client's HTTP/2 connection (RFC 9113): each stream is a request of its own, with a task, a deadline and a fate of
//! its own; what befalls one does not touch its siblings. Frames, flow control and header compression are h2's; how much
//! a connection may ask of us is decided here (docs/decisions/0017-http2.md).

mod body;
mod meter;
mod outgoing;
mod rest;
mod session;
mod wire;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::{Digest, Stream};
use pingora::server::ShutdownWatch;
use pingora_timeout::timeout;
use prometheus::{IntCounter, IntCounterVec};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Sleep;

use super::cut::Watched;
use super::here::Here;
use super::{Cut, Front, NOT_SOON, peer_address, shutting_down};
use crate::admit::head2;
use crate::admit::size::HeadLimits;
use crate::config::{self, Problems};
use crate::reply::Refusal;
use meter::{Allowance, Signs};
use rest::{Look, Rest};
use session::Session;
use wire::Wire;

/// What a client begins with (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http2Config {
    pub enabled: bool,
    /// At once, on one connection.
    pub max_streams: u32,
    /// What a client may send of one body before we have taken it.
    pub window: config::Bytes,
}

/// How HTTP/2 is spoken to clients.
pub struct Http2 {
    builder: h2::server::Builder,
    max_streams: usize,
    closed: Closed,
}

/// Connections that we have ended, by [`Ended`].
type Closed = Arc<[IntCounter; ENDED.len()]>;

/// Why we end a connection that its client would have gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Resets = 1,
    ControlFrames = 2,
    WindowUpdates = 3,
    /// Requests that are none.
    Malformed = 4,
    /// What h2 counts: CONTINUATION, empty DATA, resets; and streams that break the protocol.
    Excess = 5,
    Protocol = 6,
    SlowHead = 7,
}

/// Of the metric, in the order of [`Ended`].
pub const ENDED: [&str; 7] = [
    "resets",
    "control_frames",
    "window_updates",
    "malformed",
    "excess",
    "protocol",
    "slow_head",
];

/// All streams of a connection together: a client that sends on all at once still gets on.
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Of each answer, for a client that does not take it.
const SEND_BUFFER: usize = 64 << 10;

/// Requests that are none, and streams that h2 has to reset because they break the protocol; and [`FAULTS_A_SECOND`] more: a
/// connection of a proxy has many users, for long.
const FAULTS: usize = 64;
const FAULTS_A_SECOND: u32 = 1;

/// After a GOAWAY the last streams may still be on their way; a client that does not answer our PING is not waited for
/// longer than this, nor one that has everything and does not end its side.
const GOODBYE: Duration = Duration::from_millis(500);

/// For the GOAWAY of a connection that is ended to be sent.
const LAST_WORD: Duration = Duration::from_millis(200);

impl Default for Http2Config {
    fn default() -> Self {
        Self {
            enabled: true,
            max_streams: 128,
            window: config::Bytes::kib(64),
        }
    }
}

impl Http2Config {
    /// `None`: it is not spoken.
    pub fn compile(
        self,
        limits: &HeadLimits,
        closed: &IntCounterVec,
        problems: &mut Problems,
    ) -> Option<Http2> {
        let Self {
            enabled,
            max_streams,
            window,
        } = self;
        if !(1..=1000).contains(&max_streams) {
            problems.add("server.http2.max_streams", "must be from 1 to 1000");
        }
        if !(config::Bytes::kib(16)..=config::Bytes::mib(16)).contains(&window) {
            problems.add("server.http2.window", "must be from 16KiB to 16MiB");
            return None;
        }
        let window = window.0 as u32;
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(max_streams)
            .initial_window_size(window)
            .initial_connection_window_size(CONNECTION_WINDOW.max(window))
            .max_header_list_size(head2::list_size(limits))
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(FAULTS)
            .max_pending_accept_reset_streams(FAULTS)
            // Its own count does not grow, and ends what others have under way: `Serving::fault` has another.
            .max_local_error_reset_streams(None);
        enabled.then(|| Http2 {
            builder,
            max_streams: max_streams as usize,
            closed: Arc::new(ENDED.map(|reason| closed.with_label_values(&[reason]))),
        })
    }
}

// === impl Ended ===

impl Ended {
    fn of(number: u8) -> Option<Self> {
        [
            Self::Resets,
            Self::ControlFrames,
            Self::WindowUpdates,
            Self::Malformed,
            Self::Excess,
            Self::Protocol,
            Self::SlowHead,
        ]
        .into_iter()
        .find(|ended| *ended as u8 == number)
    }

    fn name(self) -> &'static str {
        ENDED[self as usize - 1]
    }
}

/// A connection while it is served.
struct Serving<'a> {
    front: &'a Arc<Front>,
    /// As the client was told.
    max_streams: usize,
    connection: Connection<Wire, Bytes>,
    digest: Arc<Digest>,
    signs: Arc<Signs>,
    shutdown: ShutdownWatch,
    streams: JoinSet<()>,
    /// For requests that are none, and streams that break the protocol.
    faults: Allowance,
    /// Streams that were refused here, and whose reset is no fault.
    refused: u32,
    /// Why it asks no more here, if we were not to be expected to end it.
    ended: Option<Ended>,
    rest: Rest,
    /// At the last look some of what was sent was still on its way.
    is_taking: bool,
    /// The first request has come.
    has_asked: bool,
    /// Since when nothing is in flight, nor on its way.
    idle_since: Instant,
    /// Since when it is told to end.
    leaving_since: Option<Instant>,
}

/// Serves a connection until one of both sides ends it. `first` was read of it already.
pub async fn serve(front: &Arc<Front>, stream: Stream, first: BytesMut, shutdown: ShutdownWatch) {
    let now = Instant::now();
    let digest = Arc::new(Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    let client = peer_address(&stream);
    let signs = Arc::new(Signs::new(now));
    let rest = Rest::new(stream.id());
    let wire = Wire::new(stream, first, signs.clone());
    // Nothing of the snapshot is kept: the connection may outlive many.
    let (handshake, limit, max_streams, closed) = {
        let policies = front.parts.in_force.load();
        let Some(http2) = &policies.http2 else {
            return;
        };
        let handshake = http2.builder.handshake::<_, Bytes>(wire);
        let closed = http2.closed.clone();
        (handshake, policies.times.header, http2.max_streams, closed)
    };
    let Ok(Ok(connection)) = timeout(limit, handshake).await else {
        return;
    };
    let mut serving = Serving {
        front,
        max_streams,
        connection,
        digest,
        signs,
        shutdown,
        streams: JoinSet::new(),
        faults: Allowance::new(FAULTS as u32, FAULTS_A_SECOND),
        refused: 0,
        ended: None,
        rest,
        is_taking: false,
        has_asked: false,
        idle_since: now,
        leaving_since: None,
    };
    if let Some(ended) = serving.run().await {
        closed[ended as usize - 1].inc();
        front.tell_closed(ended.name(), client);
    }
    let Serving {
        connection,
        mut streams,
        ..
    } = serving;
    // Without its connection each stream ends as its client's going decides: a read is dropped, a write is finished.
    drop(connection);
    while streams.join_next().await.is_some() {}
}

impl Serving<'_> {
    /// Returns why the connection was ended, if we were not to be expected to.
    async fn run(&mut self) -> Option<Ended> {
        let mut shutdown = self.shutdown.clone();
        let mut timer = pin!(tokio::time::sleep(NOT_SOON));
        loop {
            self.set(timer.as_mut());
            tokio::select! {
                biased;
                () = shutting_down(&mut shutdown), if self.leaving_since.is_none() => self.leave(),
                accepted = self.connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        if let Some(ended) = self.accept(request, respond) {
                            return self.end(ended).await;
                        }
                    }
                    Some(Err(e)) => return self.ended.or(verdict(&e)),
                    None => return self.ended,
                },
                Some(_) = self.streams.join_next(), if !self.streams.is_empty() => {
                    self.idle_since = Instant::now();
                }
                // After `accept`, which reads: what it has read is seen here.
                () = news(&self.signs) => {}
                () = timer.as_mut() => {}
            }
            if let Some(ended) = self.signs.flood().or_else(|| self.count_faults()) {
                return self.end(ended).await;
            }
            if self.signs.is_closing() && self.leaving_since.is_none() {
                self.leaving_since = Some(Instant::now());
            }
            let now = Instant::now();
            if self.signs.pong_at().is_some_and(|at| at <= now) {
                self.signs.release_pong(); // `accept` finds it
            }
            if self.next_look() <= now {
                if self.signs.block_since().is_some() && !self.signs.is_closing() {
                    return self.end(Ended::SlowHead).await;
                }
                if self.is_over(now) {
                    self.say(Reason::NO_ERROR).await;
                    return self.ended;
                }
            }
        }
    }

    /// Nothing has happened for long enough. Whether the connection ends now: not while its client still takes what was sent.
    fn is_over(&mut self, now: Instant) -> bool {
        let in_h2 = self.connection.has_streams();
        let look = self
            .rest
            .look(in_h2, self.signs.answers_sent(), &self.front.times(), now);
        let was_taking = std::mem::replace(&mut self.is_taking, look == Look::Taking);
        if self.is_taking || (was_taking && look == Look::AllTaken) {
            self.idle_since = now;
            return false;
        }
        // Where h2 has said everything it comes to its end by itself, and with its own reason.
        let waits_for_end = self.signs.is_closing() && !self.signs.has_given_up();
        if waits_for_end {
            self.signs.give_up();
        }
        !waits_for_end
    }

    /// When something is over: a header block's time, or that of a connection on which nothing happens.
    fn next_look(&self) -> Instant {
        let times = self.front.times();
        let block = self.signs.block_since().map(|since| since + times.header);
        let is_quiet = self.streams.is_empty() || self.signs.is_closing();
        let quiet = is_quiet.then(|| match self.leaving_since {
            Some(leaving) => self.idle_since.max(leaving) + GOODBYE,
            None if self.is_taking => self.idle_since + GOODBYE,
            None if self.has_asked => self.idle_since + times.idle,
            None => self.idle_since + times.header,
        });
        let never = self.idle_since + NOT_SOON;
        block.unwrap_or(never).min(quiet.unwrap_or(never))
    }

    fn set(&self, timer: Pin<&mut Sleep>) {
        let look = self.next_look();
        let at = self.signs.pong_at().map_or(look, |at| at.min(look));
        if timer.deadline().into_std() != at {
            timer.reset(at.into());
        }
    }

    /// Tells the client to ask no more here (RFC 9113, section 6.8): what it has sent meanwhile is still served.
    fn leave(&mut self) {
        self.leaving_since = Some(Instant::now());
        self.signs.leaves();
        self.connection.graceful_shutdown();
    }

    /// Returns why the connection has to end at once, if it has to.
    fn accept(
        &mut self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Ended> {
        self.front.parts.requests.http2.inc();
        self.has_asked = true;
        while self.streams.try_join_next().is_some() {
            self.idle_since = Instant::now(); // what is over is no work
        }
        // A stream that its client has reset may still have work to finish: that is no way to more work than allowed.
        if self.ended.is_some() || self.streams.len() >= 2 * self.max_streams {
            self.refused += 1;
            respond.send_reset(Reason::REFUSED_STREAM);
            return self.ended.filter(|_| !self.faults.take());
        }
        let (head, body) = request.into_parts();
        let (method, is_grpc) = (head.method.clone(), crate::reply::is_grpc(&head.headers));
        let policies = self.front.parts.in_force.load_full();
        match head2::judge(head, &policies.head) {
            Ok(head) => {
                let (front, shutdown) = (self.front.clone(), self.shutdown.clone());
                let (cut, digest) = (Cut::new(Instant::now()), self.digest.clone());
                let rate = policies.times.rate;
                let session = Session::new(head, body, respond, digest, cut.clone(), rate);
                let here = Here::new(cut.clone(), Some(policies));
                let answer = here.scope(answer(front, session, cut, shutdown));
                self.streams.spawn(answer);
            }
            Err(fault) => {
                let refusal = Refusal::from(fault);
                self.front
                    .refuse_stream(respond, &refusal, &method, is_grpc, &self.digest);
                if matches!(refusal, Refusal::Malformed(_)) {
                    return self.fault(Ended::Malformed);
                }
            }
        }
        None
    }

    /// Streams that h2 has reset since the last look. Returns why the connection has to end at once, if it has to.
    fn count_faults(&mut self) -> Option<Ended> {
        let reset = self.signs.take_faults();
        let own = self.refused.min(reset);
        self.refused -= own;
        (own..reset).find_map(|_| self.fault(Ended::Excess))
    }

    /// One more than there should be. Returns why the connection has to end at once, if it has to.
    fn fault(&mut self, why: Ended) -> Option<Ended> {
        if self.faults.take() {
            return None;
        }
        if self.ended.is_none() {
            // What is under way may be another user's. Who goes on all the same is not waited for.
            self.ended = Some(why);
            self.faults = Allowance::new(FAULTS as u32, 0);
            self.leave();
            return None;
        }
        self.ended
    }

    async fn end(&mut self, ended: Ended) -> Option<Ended> {
        self.say(Reason::ENHANCE_YOUR_CALM).await;
        Some(ended)
    }

    /// Sends a GOAWAY, and ends the connection with it.
    async fn say(&mut self, reason: Reason) {
        self.connection.abrupt_shutdown(reason);
        let _ = timeout(LAST_WORD, poll_fn(|cx| self.connection.poll_closed(cx))).await;
    }
}

/// Answers one stream.
async fn answer(front: Arc<Front>, session: Session, cut: Arc<Cut>, shutdown: ShutdownWatch) {
    let session = ServerSession::new_custom(Box::new(session));
    let timer = pin!(tokio::time::sleep(NOT_SOON));
    let requests = Watched {
        requests: front.proxy.process_new_http(session, &shutdown),
        cut: &cut,
        timer,
        taking: None, // flow control: `Session` bounds each wait
    };
    requests.await;
}

/// Resolves when there are some.
async fn news(signs: &Signs) {
    poll_fn(|_| match signs.take_news() {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// Why h2 has ended a connection.
fn verdict(e: &h2::Error) -> Option<Ended> {
    match e.reason() {
        _ if !e.is_library() => None,
        Some(Reason::ENHANCE_YOUR_CALM) => Some(Ended::Excess),
        Some(Reason::NO_ERROR) | None => None,
        Some(_) => Some(Ended::Protocol),
    }
}
