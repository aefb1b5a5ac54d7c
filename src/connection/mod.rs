//! One client's connection: each request's head is read here, whole, in bounded time and space, and judged byte for
//! byte, before Pingora parses it. So a malformed request has our answer, our log line and our metrics, and nothing
//! of it reaches a backend (docs/decisions/0003-own-head-reader.md).

mod cut;
mod guard;
pub mod streams;

use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use pingora_timeout::timeout;
use prometheus::IntGauge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::admit::chunks::ChunkReader;
use crate::admit::head::{Head, HeadReader, Progress};
use crate::admit::request_id;
use crate::gateway::Gateway;
use crate::observe::access_log::{Access, Logger};
use crate::observe::audit::{Event, Incident};
use crate::observe::registry::{RouteMetrics, UNMATCHED};
use crate::policies::{InForce, Times};
use crate::reply::Refusal;
pub use cut::Cut;
use cut::Watched;
use guard::Guard;

/// The application of the main listener.
pub struct Front {
    proxy: Arc<HttpProxy<Gateway>>,
    parts: FrontParts,
}

/// What connections need beside the proxy.
pub struct FrontParts {
    pub in_force: InForce,
    pub connections: IntGauge,
    pub unmatched: Arc<RouteMetrics>,
    pub logger: Arc<Logger>,
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
    /// With what was read of the body, and, where it is chunked, its framing so far.
    Head(BytesMut, Option<ChunkReader>),
    /// The client, the idle time or a shutdown ended the connection between two requests.
    Nothing,
    /// With what was read, and since when.
    Refused(Refusal, BytesMut, Instant),
}

/// Counts an open connection.
struct Open<'a>(&'a IntGauge);

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
        shutdown: &mut ShutdownWatch,
    ) -> Arrived {
        let mut buf = BytesMut::with_capacity(USUAL_HEAD);
        tokio::select! {
            biased;
            first = timeout(wait, stream.read_buf(&mut buf)) => match first {
                Ok(Ok(n)) if n > 0 => {}
                _ => return Arrived::Nothing,
            },
            () = shutting_down(shutdown) => return Arrived::Nothing,
        }
        // Those in force now that it begins; copied, so that a slow head keeps no snapshot.
        let (limits, times) = {
            let policies = self.parts.in_force.load();
            (policies.head, policies.times)
        };
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
            let head = if may_skip { b"" } else { &buf[..] };
            match reader.read(head, &limits) {
                Ok(Progress::Complete(Head { len, chunked, cut })) => {
                    let mut chunks = chunked.then(ChunkReader::default);
                    if let Some(Err(fault)) = chunks.as_mut().map(|chunks| chunks.read(&buf[len..]))
                    {
                        return refused(Refusal::Malformed(fault.0), buf, since);
                    }
                    if let Some(cut) = cut {
                        let tail = buf.split_off(cut.end);
                        buf.truncate(cut.start);
                        buf.unsplit(tail);
                    }
                    return Arrived::Head(buf, chunks);
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

    /// Answers what never became a request, logs it and counts it.
    async fn refuse(&self, mut stream: Stream, refusal: Refusal, buf: &[u8], start: Instant) {
        let FrontParts {
            unmatched, logger, ..
        } = &self.parts;
        let policies = self.parts.in_force.load_full();
        let parts = refusal.parts();
        let id = request_id::generate();
        let id = id.to_str().unwrap_or_default();
        let client = peer_address(&stream);
        let body = refusal.body(id);
        let mut head = Vec::with_capacity(1024);
        head.extend_from_slice(
            format!(
                "HTTP/1.1 {} {}\r\nDate: {}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\
                 Cache-Control: no-store\r\nX-Request-ID: {id}\r\nConnection: close\r\n",
                parts.status.as_u16(),
                parts.status.canonical_reason().unwrap_or("Error"),
                jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT"),
                body.len(),
            )
            .as_bytes(),
        );
        if let Refusal::MethodNotAllowed(allow) = &refusal {
            head.extend_from_slice(b"Allow: ");
            head.extend_from_slice(allow.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        policies.secure_headers.write_to(&mut head);
        head.extend_from_slice(b"\r\n");
        if !buf.starts_with(b"HEAD ") {
            head.extend_from_slice(&body);
        }
        let sent = match timeout(policies.times.patience, stream.write_all(&head)).await {
            Ok(Ok(())) => stream.flush().await.is_ok(),
            _ => false,
        };
        let status = parts.status.as_u16();
        unmatched
            .method(None)
            .end(status, start.elapsed(), 0, body.len());
        if let Some(event) = Event::of(&refusal) {
            logger.audit(&Incident {
                event,
                request_id: id,
                user: None,
                client,
                method: "-",
                target: "-",
                more: &[],
            });
        }
        logger.access(&Access {
            request_id: id,
            trace_id: None,
            method: "-",
            target: "-",
            client: &client.to_string(),
            route: UNMATCHED,
            service: None,
            exchange: None,
            user: None,
            tenant: None,
            venue: None,
            status,
            code: Some(parts.code),
            error: Some(parts.message.into_owned()),
            elapsed: start.elapsed(),
            request_bytes: 0,
            response_bytes: if sent { body.len() } else { 0 },
            headers: None,
        });
        if sent && stream.shutdown().await.is_ok() {
            let _ = timeout(LINGER, discard(&mut stream)).await;
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
        cut.clone().scope(self.serve(stream, shutdown, &cut)).await;
        None
    }

    async fn cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

impl Front {
    /// Serves one request after the other, until one of both sides ends the connection.
    async fn serve(&self, mut stream: Stream, shutdown: &ShutdownWatch, cut: &Cut) -> Option<()> {
        let _open = Open::new(&self.parts.connections);
        let mut shutdown = shutdown.clone();
        let mut settings = None;
        let mut wait = self.times().header;
        let mut timer = pin!(tokio::time::sleep(NOT_SOON));
        loop {
            let (head, chunks) = match self.read_head(&mut stream, wait, &mut shutdown).await {
                Arrived::Head(head, chunks) => (head, chunks),
                Arrived::Nothing => return None,
                Arrived::Refused(refusal, buf, start) => {
                    self.refuse(stream, refusal, &buf, start).await;
                    return None;
                }
            };
            stream = Guard::wrap(stream, chunks, !is_safe(&head));
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings.take() {
                pingora::apps::HttpPersistentSettings::apply_to_session(settings, &mut session);
            }
            session.set_pipelined_prefix(head);
            let requests = Watched {
                requests: self.proxy.process_new_http(session, &shutdown),
                cut,
                timer: timer.as_mut(),
            };
            let (again, kept) = requests.await?.consume();
            stream = Guard::unwrap(again);
            settings = kept;
            wait = self.times().idle;
        }
    }
}

// === impl Open ===

impl<'a> Open<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
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
    stream
        .get_socket_digest()
        .and_then(|digest| {
            digest
                .peer_addr()
                .and_then(|address| address.as_inet().map(|inet| inet.ip()))
        })
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| {
            address.to_canonical()
        })
}
