//! One client's connection: each request's head is read here, whole, in bounded time and space, and judged byte for
//! byte, before Pingora parses it. So a malformed request has our answer, our log line and our metrics, and nothing
//! of it reaches a backend (docs/decisions/0003-own-head-reader.md).

mod ahead;
mod cut;
mod gone;
mod guard;
pub mod h2;
pub mod here;
mod pace;
mod redirect;
mod refuse;
pub mod streams;
pub mod websocket;

use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::{ALPN, SocketDigest, Stream};
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use pingora_timeout::timeout;
use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::admit::head::{HeadReader, Progress};
use crate::gateway::Gateway;
use crate::observe::access_log::Logger;
use crate::observe::registry::RouteMetrics;
use crate::policies::{InForce, Policies, Times};
use crate::reply::Refusal;
use crate::server::Life;
use cut::Watched;
pub use cut::{Cut, End};
pub use gone::Listening;
use guard::{Body, Guard, Needs};
use here::Here;
pub use pace::MinRate;
use pace::Taking;
pub use redirect::Redirect;
use websocket::{Link, Relay};

/// The application of the main listener.
pub struct Front {
    proxy: Arc<HttpProxy<Gateway>>,
    parts: FrontParts,
}

/// What connections need beside the proxy.
pub struct FrontParts {
    pub in_force: InForce,
    pub unmatched: Arc<RouteMetrics>,
    pub requests: Requests,
    pub logger: Arc<Logger>,
    pub life: Arc<Life>,
}

/// Requests by the protocol that their clients spoke.
pub struct Requests {
    pub http1: IntCounter,
    pub http2: IntCounter,
}

/// Room for a head: most fit, with a token. Each idle connection keeps so much ready.
const USUAL_HEAD: usize = 2 << 10;

/// After a refusal the client may still be sending: so long, and so much, is read and thrown away, so that closing
/// does not reset the connection under the answer.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 256 << 10;

/// Where the connection's timer stands before it is set for the first time.
const NOT_SOON: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What came of waiting for a head.
enum Arrived {
    Head(Arrival),
    /// The preface of HTTP/2, and what was read behind it.
    Http2(BytesMut),
    /// The client, the idle time or a shutdown ended the connection between two requests.
    Nothing,
    /// With what was read, and since when.
    Refused(Refusal, BytesMut, Instant),
}

/// A head, and what goes with it.
struct Arrival {
    /// With what was read of the body.
    head: BytesMut,
    /// What is to come of it.
    body: Body,
    /// What follows an upgrade.
    relay: Option<Relay>,
    /// What it was judged by, as the whole request will be.
    policies: Arc<Policies>,
}

impl Front {
    pub fn new(proxy: HttpProxy<Gateway>, parts: FrontParts) -> Self {
        Self {
            proxy: Arc::new(proxy),
            parts,
        }
    }

    fn times(&self) -> Times {
        self.parts.in_force.load().times
    }

    /// `wait`: how long the client may be silent before its first byte.
    async fn read_head(
        &self,
        stream: &mut Stream,
        wait: Duration,
        may_be_http2: bool,
        shutdown: &mut ShutdownWatch,
    ) -> Arrived {
        let mut buf = BytesMut::with_capacity(USUAL_HEAD);
        let first = tokio::select! {
            biased;
            first = timeout(wait, stream.read_buf(&mut buf)) => first,
            () = shutting_down(shutdown) => {
                timeout(self.drain_patience(), stream.read_buf(&mut buf)).await
            }
        };
        let Ok(Ok(1..)) = first else {
            return Arrived::Nothing;
        };
        // Those in force now that it begins.
        let policies = self.parts.in_force.load_full();
        let (limits, times) = (policies.head, policies.times);
        let mut reader = HeadReader::default();
        let mut since: Option<Instant> = None;
        let mut may_skip = true;
        loop {
            // One empty line before a request is let pass (RFC 9112, section 2.2).
            if may_skip && buf.starts_with(b"\r\n") {
                buf.advance(2);
                may_skip = false;
            }
            may_skip &= *buf == b"\r"[..];
            let is_preface = may_be_http2 && h2::PREFACE.iter().zip(&buf).all(|(a, b)| a == b);
            if is_preface && buf.len() >= h2::PREFACE.len() {
                return Arrived::Http2(buf);
            }
            let head = match may_skip || is_preface {
                true => b"",
                false => &buf[..],
            };
            match reader.read(head, &limits) {
                Ok(Progress::Complete(head)) => {
                    let mut body = Body::of(&head);
                    if let Err(fault) = body.read(&buf[head.len..]) {
                        return refused(Refusal::Malformed(fault.0), buf, since);
                    }
                    let relay = head.upgrade.then(|| Relay::new(buf.len() > head.len));
                    if let Some(cut) = head.cut {
                        let tail = buf.split_off(cut.end);
                        buf.truncate(cut.start);
                        buf.unsplit(tail);
                    }
                    return Arrived::Head(Arrival {
                        head: buf,
                        body,
                        relay,
                        policies,
                    });
                }
                Ok(Progress::Partial) => {}
                Err(fault) => return refused(fault.into(), buf, since),
            }
            // The clock is read only for heads that do not come in one piece.
            let left = times
                .header
                .saturating_sub(since.get_or_insert_with(Instant::now).elapsed());
            match timeout(left, stream.read_buf(&mut buf)).await {
                Ok(Ok(0)) | Ok(Err(_)) => return Arrived::Nothing,
                Ok(Ok(_)) => {}
                Err(_) => return refused(Refusal::RequestTimeout, buf, since),
            }
        }
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let cut = Cut::new(Instant::now());
        let serve = self.serve(stream, shutdown, &cut);
        Here::new(cut.clone(), None).scope(serve).await;
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

impl Front {
    fn drain_patience(&self) -> Duration {
        /// Nobody waits for the end of a process that was replaced, and its clients do not expect it to close.
        const WHEN_REPLACED: Duration = Duration::from_secs(1);
        let patience = self.times().drain;
        match self.parts.life.is_replaced() {
            true => patience.max(WHEN_REPLACED),
            false => patience,
        }
    }

    /// Serves one request after the other, until one of both sides ends the connection.
    async fn serve(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
        cut: &Arc<Cut>,
    ) -> Option<()> {
        let mut shutdown = shutdown.clone();
        if stream.selected_alpn_proto() == Some(ALPN::H2) {
            Box::pin(h2::serve(self, stream, BytesMut::new(), shutdown)).await;
            return None;
        }
        let mut may_be_http2 = self.parts.in_force.load().http2.is_some();
        let mut settings = None;
        let mut wait = self.times().header;
        let mut timer = pin!(tokio::time::sleep(NOT_SOON));
        loop {
            let arrived = self.read_head(&mut stream, wait, may_be_http2, &mut shutdown);
            let Arrival {
                head,
                body,
                relay,
                policies,
            } = match arrived.await {
                Arrived::Head(arrival) => arrival,
                Arrived::Http2(first) => {
                    Box::pin(h2::serve(self, stream, first, shutdown)).await;
                    return None;
                }
                Arrived::Nothing => return None,
                Arrived::Refused(refusal, buf, start) => {
                    // Boxed: rare, and every idle connection would have its room ready.
                    Box::pin(self.refuse(stream, refusal, &buf, start)).await;
                    return None;
                }
            };
            may_be_http2 = false;
            // What becomes a WebSocket is counted as that.
            let asked = relay.as_ref().map(|relay| relay.link().clone());
            if asked.is_none() {
                self.parts.requests.http1.inc();
            }
            let Times { rate, patience, .. } = policies.times;
            let keeps_answers = policies.caching.is_some() && head.starts_with(b"GET ");
            let taking = rate.map(|rate| Taking::new(stream.id(), rate));
            let changes_something = !is_safe(&head);
            let needs = Needs {
                body,
                rate,
                survives_reset: changes_something,
                cut: policies.shares_upstreams.then(|| cut.clone()),
                answer: changes_something.then(|| cut.clone()),
                ahead: keeps_answers.then(|| (cut.clone(), patience)),
                relay,
            };
            here::hand_on(policies);
            stream = Guard::wrap(stream, needs);
            let session = session_of(stream, head, settings.take());
            let requests = Watched {
                requests: self.proxy.process_new_http(session, &shutdown),
                cut,
                timer: timer.as_mut(),
                taking,
            };
            let served = requests.await;
            if asked.is_some_and(|link| !link.is_open()) {
                self.parts.requests.http1.inc();
            }
            let (again, kept) = served?.consume();
            let (again, has_more) = Guard::unwrap(again);
            if has_more {
                // The next request was not waiting for its turn: its client sends it again.
                Box::pin(close(again, true)).await;
                return None;
            }
            stream = again;
            settings = kept;
            wait = self.times().idle;
        }
    }
}

/// Serves a request of the gateway's own, which has a clock of its own: many run at once in the task of one connection.
pub async fn apart<F: Future>(request: F, cut: &Arc<Cut>) -> F::Output {
    let timer = pin!(tokio::time::sleep(NOT_SOON));
    let watched = Watched {
        requests: Box::pin(request),
        cut,
        timer,
        taking: None,
    };
    Here::new(cut.clone(), None).scope(watched).await
}

/// Apart: what an `async` function has borrowed once keeps its room in every connection.
fn session_of(
    stream: Stream,
    head: BytesMut,
    settings: Option<HttpPersistentSettings>,
) -> ServerSession {
    let mut session = ServerSession::new_http1(stream);
    if let Some(settings) = settings {
        settings.apply_to_session(&mut session);
    }
    session.set_pipelined_prefix(head);
    session
}

/// What is known of the WebSocket that this request's connection may become.
pub fn link_of(session: &ServerSession) -> Option<Arc<Link>> {
    session.stream().and_then(Guard::link).cloned()
}

fn refused(refusal: Refusal, buf: BytesMut, since: Option<Instant>) -> Arrived {
    Arrived::Refused(refusal, buf, since.unwrap_or_else(Instant::now))
}

/// Whether the request only reads (RFC 9110, section 9.2.1): nobody needs its answer once its client is gone.
fn is_safe(head: &[u8]) -> bool {
    [&b"GET "[..], b"HEAD ", b"OPTIONS "]
        .iter()
        .any(|method| head.starts_with(method))
}

async fn shutting_down(shutdown: &mut ShutdownWatch) {
    // An error means that the server is gone: the same.
    let _ = shutdown.wait_for(|down| *down).await;
}

/// The last answer on a connection. Returns whether it was taken.
async fn send(stream: &mut Stream, answer: &[u8], patience: Duration) -> bool {
    match timeout(patience, stream.write_all(answer)).await {
        Ok(Ok(())) => stream.flush().await.is_ok(),
        _ => false,
    }
}

async fn close(mut stream: Stream, has_answer: bool) {
    if has_answer && stream.shutdown().await.is_ok() {
        let _ = timeout(LINGER, discard(&mut stream)).await;
    }
}

async fn discard(stream: &mut Stream) {
    let mut scrap = [0; 4096];
    let mut read = 0;
    while let Ok(n) = stream.read(&mut scrap).await {
        read += n;
        if n == 0 || read > LINGER_BYTES {
            return;
        }
    }
}

fn peer_address(stream: &Stream) -> IpAddr {
    address_of(stream.get_socket_digest().as_deref())
}

fn address_of(digest: Option<&SocketDigest>) -> IpAddr {
    digest
        .and_then(|digest| {
            digest
                .peer_addr()
                .and_then(|address| address.as_inet().map(|inet| inet.ip()))
        })
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| {
            address.to_canonical()
        })
}
