//! HTTP/2 for tests: a client and a backend that keep to the protocol, on the `h2` crate, and a client that does whatever
//! the test wants, frame by frame.

pub mod raw;
mod upstream;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use serde_json::Value;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

pub use upstream::{Http2Upstream, Play, Seen};

/// The whole of a test that speaks HTTP/2, for at most a minute.
#[track_caller]
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let limit = Duration::from_secs(60);
    runtime
        .block_on(async { tokio::time::timeout(limit, test).await })
        .expect("the test ends within a minute")
}

/// A connection with prior knowledge.
#[derive(Clone)]
pub struct Http2 {
    pub send: SendRequest<Bytes>,
    authority: String,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Http2 {
    /// Connects; the task ends with the connection, and says how.
    pub async fn connect(addr: SocketAddr) -> (Self, JoinHandle<Result<(), h2::Error>>) {
        Self::connect_with(addr, &h2::client::Builder::new()).await
    }

    pub async fn connect_with(
        addr: SocketAddr,
        builder: &h2::client::Builder,
    ) -> (Self, JoinHandle<Result<(), h2::Error>>) {
        let stream = TcpStream::connect(addr).await.expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY is settable");
        let (send, connection) = builder.handshake(stream).await.expect("a handshake");
        let task = tokio::spawn(connection);
        let authority = addr.to_string();
        (Self { send, authority }, task)
    }

    /// A request of this method and target, to be completed with headers.
    pub fn request(&self, method: &str, target: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{target}", self.authority))
    }

    /// Sends a head; the stream is for its body.
    pub async fn begin(
        &self,
        request: http::request::Builder,
        end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut send = self.send.clone().ready().await.expect("room for a stream");
        let request = request.body(()).expect("a request");
        send.send_request(request, end).expect("it is sent")
    }

    /// A whole exchange.
    pub async fn fetch(
        &self,
        request: http::request::Builder,
        body: &[u8],
    ) -> Result<Answer, h2::Error> {
        let (answer, mut stream) = self.begin(request, body.is_empty()).await;
        let sent = async {
            if !body.is_empty() {
                // A refusal may come before the body is taken.
                let _ = send_all(&mut stream, Bytes::copy_from_slice(body), true).await;
            }
        };
        let answer = async { whole(answer.await?).await };
        futures::join!(sent, answer).1
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.fetch(self.request("GET", target), b"")
            .await
            .expect("an answer")
    }
}

/// Sends a piece of a body as its window allows.
pub async fn send_all(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    loop {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 && !data.is_empty() {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(room) => room.map(|_| ())?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            }
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        stream.send_data(piece, end && data.is_empty())?;
        if data.is_empty() {
            return Ok(());
        }
    }
}

/// Reads an answer to its end.
pub async fn whole(answer: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut stream) = answer.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
        trailers: stream.trailers().await?,
    })
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
