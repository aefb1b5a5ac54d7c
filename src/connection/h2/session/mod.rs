//! One stream as Pingora sees it: a session of our own, because Pingora's own for HTTP/2 resets what it finds malformed
//! without an answer, waits for bodies without end, and knows nothing of the moment at which an exchange is over.
//!
//! Whatever waits here also ends when [`Cut`] says so: on a connection to a backend that others share there is no socket
//! to shut down, so the exchange ends from its client's side.

mod writing;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Response};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::{CustomMessageWrite, server};
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, OrErr, Result};
use pingora_timeout::timeout;

use super::body::Body;
use crate::connection::Cut;
use crate::connection::pace::MinRate;
use crate::inner;
use crate::reply::is_grpc;
use crate::route::target_of;

/// A request, and the way back.
pub struct Session {
    request: RequestHeader,
    body: Body,
    respond: SendResponse<Bytes>,
    writer: Option<SendStream<Bytes>>,
    written: Option<Box<ResponseHeader>>,
    /// The end of the answer was sent.
    ended: bool,
    sent: usize,
    digest: Arc<Digest>,
    cut: Arc<Cut>,
    times: Times,
    /// A client that resets the stream does not take back what changes something. A gRPC client means it when it cancels.
    survives_reset: bool,
    is_reset: bool,
    /// Of an answer that others wait for: what its client has no room for yet.
    behind: VecDeque<Bytes>,
    /// Behind that.
    trailers: Option<HeaderMap>,
}

#[derive(Default)]
struct Times {
    read: Option<Duration>,
    write: Option<Duration>,
    drain: Option<Duration>,
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

impl Session {
    /// `head` was judged.
    pub fn new(
        head: Parts,
        body: RecvStream,
        respond: SendResponse<Bytes>,
        digest: Arc<Digest>,
        cut: Arc<Cut>,
        rate: Option<MinRate>,
    ) -> Self {
        let is_grpc = is_grpc(&head.headers);
        Self {
            survives_reset: !head.method.is_safe() && !is_grpc,
            request: RequestHeader::from(head),
            body: Body::new(body, rate.filter(|_| !is_grpc)),
            respond,
            writer: None,
            written: None,
            ended: false,
            sent: 0,
            digest,
            cut,
            times: Times::default(),
            is_reset: false,
            behind: VecDeque::new(),
            trailers: None,
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        if self.cut.is_over_here() {
            return Poll::Ready(Err(over()));
        }
        self.body.poll_piece(cx)
    }

    /// Ready when nobody waits for the answer any more, or its time is over.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        if self.cut.is_over_here() {
            return Poll::Ready(over());
        }
        if !self.is_reset {
            let reset = match &mut self.writer {
                Some(writer) => writer.poll_reset(cx),
                None => self.respond.poll_reset(cx),
            };
            self.is_reset = reset.is_ready();
        }
        self.poll_behind(cx);
        // Once the answer has begun, what was to be changed is changed.
        let survives = self.survives_reset && !self.cut.gone.is_told();
        let goes_on = (survives && self.written.is_none())
            || (self.is_reset && self.cut.goes_on_anyway(cx))
            || self.cut.ahead.outlives_client();
        match self.is_reset && !goes_on {
            true => Poll::Ready(Error::explain(
                ErrorType::ConnectionClosed,
                "the client has reset the stream",
            )),
            false => Poll::Pending,
        }
    }

    /// Interim answers (RFC 9110, section 15.2), where h2 can still send one.
    fn inform(&mut self, head: &ResponseHeader) {
        let mut interim = Response::new(());
        *interim.status_mut() = head.status;
        *interim.headers_mut() = head.headers.clone();
        strip(interim.headers_mut());
        let _ = self.respond.send_informational(interim); // the final one comes all the same
    }
}

impl Drop for Session {
    /// An answer that is not whole must not look whole, and an exchange that came to nothing not like a wish of ours.
    fn drop(&mut self) {
        if !self.ended && !self.is_reset {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

#[async_trait]
impl server::Session for Session {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        let limit = self.times.read;
        let read = poll_fn(|cx| self.poll_read(cx));
        let data = match limit {
            None => read.await,
            Some(limit) => timeout(limit, read).await.unwrap_or_else(|_| {
                Error::e_explain(ErrorType::ReadTimedout, "the body does not come")
            }),
        };
        let data = data?;
        self.body.took(data.as_ref());
        Ok(data)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        let limit = self.times.drain;
        let drain = async {
            while !self.is_body_done() {
                self.read_body_bytes().await?;
            }
            Ok(())
        };
        match limit {
            None => drain.await,
            Some(limit) => timeout(limit, drain).await.unwrap_or_else(|_| {
                Error::e_explain(ErrorType::ReadTimedout, "the body does not end")
            }),
        }
    }

    async fn write_response_header(
        &mut self,
        mut head: Box<ResponseHeader>,
        end: bool,
    ) -> Result<()> {
        if self.ended || self.written.is_some() {
            return Ok(());
        }
        if head.status.is_informational() {
            self.inform(&head);
            return Ok(());
        }
        head.insert_header(DATE, get_cached_date())?;
        let mut answer = Response::new(());
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers.clone();
        strip(answer.headers_mut());
        let is_for_others = self.cut.ahead.outlives_client();
        let sent = self
            .respond
            .send_response(answer, end)
            .or_err(ErrorType::WriteError, "the answer's head is not sent");
        match sent {
            Ok(writer) => self.writer = Some(writer),
            Err(_) if self.cut.is_finished_anyway() => self.is_reset = true,
            // It is read to its end for others, and then this shows.
            Err(_) if is_for_others => {}
            Err(e) => return Err(e),
        }
        self.written = Some(head);
        self.ended = end || (self.is_reset && !is_for_others);
        Ok(())
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(head.clone()), end)
            .await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        poll_fn(|cx| self.cut.poll_held(cx)).await;
        if let Some(room) = self.cut.ahead.room() {
            if self.is_reset {
                return Ok(()); // the fetch goes on, for others
            }
            let kept: usize = self.behind.iter().map(Bytes::len).sum();
            if kept + data.len() <= room {
                self.behind.push_back(data);
                self.send_ahead();
                return Ok(());
            }
        }
        match self.send_all(data, end).await {
            // Nobody takes it, and the exchange is to go on all the same.
            Err(_) if self.cut.is_finished_anyway() => self.ended = true,
            sent => sent?,
        }
        match end {
            true => self.finish().await,
            false => Ok(()),
        }
    }

    async fn write_trailers(&mut self, mut trailers: HeaderMap) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        strip(&mut trailers);
        // What frames or routes a message has no place behind it (RFC 9110, section 6.5.1).
        for name in [CONTENT_LENGTH, HOST, TE, TRAILER] {
            trailers.remove(name);
        }
        self.trailers = Some(trailers);
        match self.cut.ahead.room() {
            // The fetch is over when its end is told, which may come a moment later: it does not wait for the client.
            Some(_) => Ok(()),
            None => self.finish().await,
        }
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut is_over = false;
        for task in tasks {
            is_over |= match task {
                HttpTask::Header(head, end) => {
                    let written = self.write_response_header(head, end).await;
                    written.map_err(|e| e.into_down())?;
                    end
                }
                HttpTask::Body(data, end) => {
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        let written = self.write_body(data, end).await;
                        written.map_err(|e| e.into_down())?;
                    }
                    end
                }
                HttpTask::Trailer(Some(trailers)) => {
                    let written = self.write_trailers(*trailers).await;
                    written.map_err(|e| e.into_down())?;
                    self.ended
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::Failed(e) => return Err(e),
                HttpTask::UpgradedBody(..) => {
                    return Error::e_explain(ErrorType::InternalError, "nothing is upgraded here");
                }
            };
        }
        if is_over {
            self.finish().await.map_err(|e| e.into_down())?;
        }
        Ok(is_over)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.times.read = timeout;
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.times.read
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.times.write = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.times.write
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.times.drain = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.times.drain
    }

    fn request_summary(&self) -> String {
        format!("{} {}", self.request.method, self.request.uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        if !self.ended {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            self.ended = true;
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.body.has_ended() || self.is_body_empty()
    }

    async fn finish(&mut self) -> Result<()> {
        poll_fn(|cx| self.cut.poll_held(cx)).await;
        self.send_behind().await?;
        if let (false, Some(writer)) = (self.ended, &mut self.writer) {
            match self.trailers.take() {
                Some(trailers) => writer.send_trailers(trailers),
                None => writer.send_data(Bytes::new(), true),
            }
            .or_err(ErrorType::WriteError, "the answer's end is not sent")?;
            self.ended = true;
        }
        Ok(())
    }

    fn is_body_empty(&mut self) -> bool {
        let is_nothing = |length: &http::HeaderValue| length.as_bytes().iter().all(|b| *b == b'0');
        let length = self.request.headers.get(CONTENT_LENGTH);
        self.body.is_nothing() || (self.body.received() == 0 && length.is_some_and(is_nothing))
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if no_body_expected || self.is_body_done() {
            return Err(poll_fn(|cx| self.poll_gone(cx)).await);
        }
        self.read_body_bytes().await
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        self.body.received()
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Arc::get_mut(&mut self.digest)
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        inner::raw(&self.request, target_of(&self.request)).into() // Pingora's subrequests ask for it
    }

    fn enable_retry_buffering(&mut self) {
        self.body.keep();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.body.is_truncated()
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.body.kept()
    }

    // === messages of other protocols than HTTP: there are none ===

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}

/// Takes out what belongs to an HTTP/1 connection (RFC 9113, section 8.2.2).
fn strip(fields: &mut HeaderMap) {
    for name in [
        CONNECTION,
        TRANSFER_ENCODING,
        UPGRADE,
        KEEP_ALIVE,
        PROXY_CONNECTION,
    ] {
        fields.remove(name);
    }
}

fn over() -> Box<Error> {
    Error::explain(ErrorType::ReadTimedout, "the time for the answer is over").into_down()
}

fn no_head() -> Box<Error> {
    Error::explain(ErrorType::InternalError, "a body without a head")
}

/// What broke the stream: its client's going, or that it did not keep to the protocol.
pub fn broken(e: h2::Error, usual: ErrorType) -> Box<Error> {
    let kind = match e.is_library() && e.reason() == Some(Reason::PROTOCOL_ERROR) {
        true => ErrorType::H2Error,
        false => usual,
    };
    Error::because(kind, "the client's stream", e).into_down()
}
