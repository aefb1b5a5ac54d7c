//! A backend that speaks HTTP/2 with prior knowledge and plays what the test tells it to.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::super::lock;
use super::send_all;

/// A running backend; `GET /health` is answered beside the script and not recorded.
pub struct Http2Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What came of one request.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub connection: usize,
    pub method: String,
    pub target: String,
    pub scheme: String,
    pub authority: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    /// The end of the request has come.
    pub is_whole: bool,
    /// The gateway has reset the stream.
    pub reset: Option<Reason>,
}

/// What a request is answered with.
#[derive(Clone, Debug)]
pub enum Play {
    /// A whole answer: pieces of the body, each after a pause.
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        pieces: Vec<(Duration, Bytes)>,
        trailers: Vec<(&'static str, String)>,
    },
    /// Every piece of the body comes back as it comes.
    Echo,
    /// REFUSED_STREAM.
    Refuse,
    Reset(Reason),
    /// Nothing, until the stream is reset; the body is not read.
    Hang,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    checked: AtomicUsize,
    open: AtomicUsize,
    end: Notify,
}

type Script = dyn Fn(&Seen) -> Play + Send + Sync;

impl Play {
    pub fn ok(body: &'static str) -> Self {
        Self::slow(&[(Duration::ZERO, body)])
    }

    pub fn slow(pieces: &[(Duration, &'static str)]) -> Self {
        let pieces = pieces
            .iter()
            .map(|(pause, piece)| (*pause, Bytes::from_static(piece.as_bytes())));
        Self::Answer {
            status: 200,
            headers: Vec::new(),
            pieces: pieces.collect(),
            trailers: Vec::new(),
        }
    }
}

impl Http2Upstream {
    pub fn start(script: impl Fn(&Seen) -> Play + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("it can be polled");
        let addr = listener.local_addr().expect("it has an address");
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            checked: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            end: Notify::new(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let ended = of_thread.end.notified();
                tokio::select! {
                    () = accept(listener, of_thread.clone()) => {}
                    () = ended => {}
                }
            });
        });
        Self {
            addr,
            shared,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }

    /// Connections so far, without those of health checks.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// Connections so far on which `/health` was the first to be asked.
    pub fn checked(&self) -> usize {
        self.shared.checked.load(SeqCst)
    }

    /// Connections that are open now, with those of health checks.
    pub fn open(&self) -> usize {
        self.shared.open.load(SeqCst)
    }
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        self.shared.end.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            shared.open.fetch_add(1, SeqCst);
            serve(stream, shared.clone()).await;
            shared.open.fetch_sub(1, SeqCst);
        });
    }
}

async fn serve(stream: tokio::net::TcpStream, shared: Arc<Shared>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let (mut number, mut is_checked) = (None, false);
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.uri().path() == "/health" {
            if number.is_none() && !std::mem::replace(&mut is_checked, true) {
                shared.checked.fetch_add(1, SeqCst);
            }
            let _ = respond.send_response(Response::new(()), true);
            continue;
        }
        let number = *number.get_or_insert_with(|| shared.connections.fetch_add(1, SeqCst) + 1);
        let seen = Seen {
            connection: number,
            method: request.method().to_string(),
            target: request.uri().path_and_query().expect("a path").to_string(),
            scheme: request.uri().scheme_str().unwrap_or_default().to_owned(),
            authority: request
                .uri()
                .authority()
                .map(|a| a.to_string())
                .unwrap_or_default(),
            headers: request.headers().clone(),
            is_whole: request.body().is_end_stream(),
            ..Seen::default()
        };
        let script = lock(&shared.script).clone();
        let play = script(&seen);
        let index = {
            let mut all = lock(&shared.seen);
            all.push(seen);
            all.len() - 1
        };
        tokio::spawn(act(play, request, respond, shared.clone(), index));
    }
}

async fn act(
    play: Play,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    shared: Arc<Shared>,
    index: usize,
) {
    let mut body = request.into_body();
    let note = |change: &dyn Fn(&mut Seen)| change(&mut lock(&shared.seen)[index]);
    match play {
        Play::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
        Play::Reset(reason) => respond.send_reset(reason),
        Play::Hang => {
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            note(&|seen| seen.reset = reset.as_ref().ok().copied());
        }
        Play::Echo => {
            let answer = Response::builder().header("content-type", "application/grpc");
            let answer = answer.body(()).expect("an answer");
            let Ok(mut writer) = respond.send_response(answer, false) else {
                return;
            };
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                note(&|seen| seen.body.extend_from_slice(&data));
                if send_all(&mut writer, data, false).await.is_err() {
                    break;
                }
            }
            note(&|seen| seen.is_whole = true);
            let trailers = HeaderMap::from_iter([("grpc-status", "0")].map(field));
            let _ = writer.send_trailers(trailers);
        }
        Play::Answer {
            status,
            headers,
            pieces,
            trailers,
        } => {
            while let Some(data) = body.data().await {
                let Ok(data) = data else {
                    let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                    note(&|seen| seen.reset = reset.as_ref().ok().copied());
                    return;
                };
                let _ = body.flow_control().release_capacity(data.len());
                note(&|seen| seen.body.extend_from_slice(&data));
            }
            note(&|seen| seen.is_whole = true);
            let mut answer = Response::builder().status(status);
            for (name, value) in &headers {
                answer = answer.header(*name, value);
            }
            let is_over = pieces.is_empty() && trailers.is_empty();
            let Ok(mut writer) =
                respond.send_response(answer.body(()).expect("an answer"), is_over)
            else {
                return;
            };
            for (i, (pause, piece)) in pieces.iter().enumerate() {
                let reset = tokio::select! {
                    reset = std::future::poll_fn(|cx| writer.poll_reset(cx)) => reset.ok(),
                    () = tokio::time::sleep(*pause) => None,
                };
                let end = i + 1 == pieces.len() && trailers.is_empty();
                if reset.is_some() || send_all(&mut writer, piece.clone(), end).await.is_err() {
                    note(&|seen| seen.reset = reset.or(Some(Reason::CANCEL)));
                    return;
                }
            }
            if !trailers.is_empty() {
                let trailers = trailers.iter().map(|(name, value)| field((*name, value)));
                let _ = writer.send_trailers(HeaderMap::from_iter(trailers));
            }
        }
    }
}

fn field((name, value): (&'static str, &str)) -> (http::HeaderName, http::HeaderValue) {
    let value = value.parse().expect("a value");
    (http::HeaderName::from_static(name), value)
}
