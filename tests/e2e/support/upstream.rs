//! A backend that records every request byte for byte and answers what the test tells it to.
//!
//! Each connection has a thread. A request is recorded when its body has ended, then the script
//! chooses the [`Reply`], then the gate of [`Upstream::hold`] is passed, and then the reply is
//! written. `GET /health` is answered beside all that and is not among the requests.

use super::client::{lossy, parse_field, position, push_chunk, values_named};
use super::lock;
use super::wait::{SOON, within};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A running backend. Closes its port and all its connections when dropped.
pub struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<Vec<JoinHandle<()>>>>>,
}

impl Upstream {
    /// A backend that answers 200 `{"ok":true}` to everything.
    pub fn start() -> Self {
        Self::start_with(|_| Reply::json(json!({"ok": true})))
    }

    /// A backend that answers what `script` says, once the whole request is there.
    pub fn start_with(script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of 127.0.0.1 is free");
        let addr = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared::new(Arc::new(script)));
        let acceptor = accept_on(listener, &shared);
        Self {
            addr,
            shared,
            acceptor: Mutex::new(Some(acceptor)),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Replaces the script, for the requests that have not reached it yet.
    pub fn set(&self, script: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) {
        *lock(&self.shared.script) = Arc::new(script);
    }

    /// Asks `script` as soon as the head of a request is there. A reply it gives is sent before
    /// the body is read, which [`Reply::reset`] and [`Reply::hang`] leave unread altogether; else
    /// the request takes the usual way.
    pub fn set_before_body(
        &self,
        script: impl Fn(&Recorded) -> Option<Reply> + Send + Sync + 'static,
    ) {
        *lock(&self.shared.script_before_body) = Arc::new(script);
    }

    /// Whether `/health` is answered 200 (from the start) or 503.
    pub fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, SeqCst);
    }

    /// Makes all replies wait for [`Upstream::release`], but for those to `/health`.
    pub fn hold(&self) {
        self.shared.gate.change(|state| state.held = true);
    }

    /// Lets the held replies go, and those to come.
    pub fn release(&self) {
        self.shared.gate.change(|state| state.held = false);
    }

    /// The requests so far, in the order in which their bodies ended.
    pub fn requests(&self) -> Vec<Recorded> {
        lock(&self.shared.requests).clone()
    }

    /// Waits up to 5 s until there are at least `count` requests.
    #[track_caller]
    pub fn wait_requests(&self, count: usize) -> Vec<Recorded> {
        within(SOON, || {
            Some(self.requests()).filter(|requests| requests.len() >= count)
        })
        .unwrap_or_else(|| {
            panic!(
                "{} of {count} requests came within {SOON:?} ({} heads): {:#?}",
                self.count(),
                self.heads_seen(),
                self.requests()
            )
        })
    }

    /// How many requests have come so far.
    pub fn count(&self) -> usize {
        lock(&self.shared.requests).len()
    }

    /// How many requests have come so far with or without the end of their bodies.
    pub fn heads_seen(&self) -> usize {
        self.shared.heads_seen.load(SeqCst)
    }

    /// How many requests to `/health` have come so far.
    pub fn health_checks(&self) -> usize {
        self.shared.health_checks.load(SeqCst)
    }

    /// How many TCP connections have been accepted so far, those of health checks included.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(SeqCst)
    }

    /// How many TCP connections are open by now.
    pub fn open_connections(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Closes the port, which then refuses, and all connections. Panics if a script has.
    #[track_caller]
    pub fn stop(&self) {
        assert!(
            self.close().is_ok(),
            "a thread of the upstream {} panicked: its message is above",
            self.addr
        );
    }

    /// Opens the port again after [`Upstream::stop`].
    #[track_caller]
    pub fn restart(&self) {
        let mut acceptor = lock(&self.acceptor);
        assert!(acceptor.is_none(), "the upstream was not stopped");
        let listener = within(SOON, || TcpListener::bind(self.addr).ok())
            .unwrap_or_else(|| panic!("{} cannot be bound again", self.addr));
        self.shared.gate.change(|state| state.stopping = false);
        *acceptor = Some(accept_on(listener, &self.shared));
    }

    /// Ends every thread; the error is that one of them had panicked.
    fn close(&self) -> thread::Result<()> {
        let Some(acceptor) = lock(&self.acceptor).take() else {
            return Ok(());
        };
        self.shared.gate.change(|state| state.stopping = true);
        // Wakes the acceptor up. It cannot be woken up only when it has panicked.
        let _ = TcpStream::connect(self.addr);
        let connections = acceptor.join();
        for stream in lock(&self.shared.open).values() {
            // Fails only for a connection that the peer has closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let ends: Vec<_> = connections?.into_iter().map(JoinHandle::join).collect();
        ends.into_iter().collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let closed = self.close();
        if !thread::panicking() {
            closed.expect("no thread of the upstream panicked");
        }
    }
}

/// An address on which nothing listens, nor will as long as this process lives.
pub fn refused_addr() -> SocketAddr {
    static TAKEN: Mutex<Vec<Socket>> = Mutex::new(Vec::new());
    let (socket, addr) = reserve_port();
    lock(&TAKEN).push(socket);
    addr
}

/// A port of 127.0.0.1 that refuses and that nobody else gets, but that a server with SO_REUSEADDR
/// can listen on.
///
/// It must not be the port of a connection's end: one connection in 30,000 to such a port gets that
/// very port for its own end too, and is connected to itself.
pub(super) fn reserve_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
    socket
        .set_reuse_address(true)
        .expect("SO_REUSEADDR is settable");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("a port is free");
    let addr = socket.local_addr().expect("a bound socket has one");
    (socket, addr.as_socket().expect("it is an address of IPv4"))
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: String,
    pub target: String,
    pub version: String,
    /// The names as they came.
    pub headers: Vec<(String, String)>,
    /// Without the chunk framing.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The exact bytes of the head and of the body, with the chunk framing.
    pub raw: Vec<u8>,
    pub chunked: bool,
    /// Whether the body has ended as it should.
    pub complete: bool,
    /// Which TCP connection it came on, counted from 0.
    pub connection: usize,
    /// When its head was whole.
    pub at: Instant,
}

impl Recorded {
    /// The value of this header. Panics if it is there more than once.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.headers_named(name).as_slice() {
            [] => None,
            [value] => Some(value),
            values => panic!("{name} is there {} times: {values:?}", values.len()),
        }
    }

    /// Every value of this header, in order.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        values_named(&self.headers, name)
    }

    /// How many times this header is there.
    pub fn header_count(&self, name: &str) -> usize {
        self.headers_named(name).len()
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("the body is no JSON ({error}): {:?}", lossy(&self.body))
        })
    }

    fn parse(raw: Vec<u8>, connection: usize) -> Self {
        let text = lossy(&raw);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let request_line = lines.next().unwrap_or_default();
        let parts: Vec<&str> = request_line.split(' ').collect();
        let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = parts[..] else {
            panic!("the upstream got the request line {request_line:?}");
        };
        let headers: Result<Vec<_>, _> = lines.map(parse_field).collect();
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: version.to_owned(),
            headers: headers.unwrap_or_else(|why| panic!("the upstream got the {why}")),
            body: Vec::new(),
            trailers: Vec::new(),
            raw,
            chunked: false,
            complete: false,
            connection,
            at: Instant::now(),
        }
    }

    fn has(&self, name: &str, value: &str) -> bool {
        let values = self.headers_named(name);
        let mut tokens = values.iter().flat_map(|values| values.split(','));
        tokens.any(|token| token.trim().eq_ignore_ascii_case(value))
    }

    fn is_health_check(&self) -> bool {
        self.path() == "/health"
    }
}

/// What the backend answers.
#[derive(Clone, Debug)]
pub struct Reply {
    delay: Duration,
    content: Content,
    end: End,
}

#[derive(Clone, Debug)]
enum Content {
    Nothing,
    Raw(Vec<u8>),
    Paced(Vec<Vec<u8>>, Duration),
    Http(HttpReply),
}

#[derive(Clone, Debug)]
struct HttpReply {
    status: u16,
    headers: Vec<(String, String)>,
    body: ReplyBody,
}

#[derive(Clone, Debug)]
enum ReplyBody {
    Sized(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
    Trickled(Vec<u8>, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    KeepAlive,
    Close,
    Reset,
    ResetAfter(usize),
    Hang,
    Echo,
}

impl Reply {
    /// This status with `Content-Length: 0`.
    pub fn status(status: u16) -> Self {
        Self::new(
            Content::Http(HttpReply {
                status,
                headers: Vec::new(),
                body: ReplyBody::Sized(Vec::new()),
            }),
            End::KeepAlive,
        )
    }

    /// 200 with a JSON body.
    pub fn json(body: Value) -> Self {
        Self::status(200)
            .header("Content-Type", "application/json")
            .body(body.to_string())
    }

    /// 200 with a Content-Length and a body that is written byte by byte.
    pub fn trickle(body: impl Into<Vec<u8>>, every: Duration) -> Self {
        Self::status(200).with_body(ReplyBody::Trickled(body.into(), every))
    }

    /// These very bytes, after which the connection stays open for the next request.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(Content::Raw(bytes.into()), End::KeepAlive)
    }

    /// These very pieces, each written by itself and after this pause.
    pub fn paced<P: Into<Vec<u8>>>(pieces: impl IntoIterator<Item = P>, every: Duration) -> Self {
        let pieces = pieces.into_iter().map(Into::into).collect();
        Self::new(Content::Paced(pieces, every), End::KeepAlive)
    }

    /// No answer: the peer gets a RST.
    pub fn reset() -> Self {
        Self::new(Content::Nothing, End::Reset)
    }

    /// No answer: the peer gets a RST when so many bytes of a body have come. For
    /// [`Upstream::set_before_body`].
    pub fn reset_after(count: usize) -> Self {
        Self::new(Content::Nothing, End::ResetAfter(count))
    }

    /// No answer until the peer closes or the upstream is stopped.
    pub fn hang() -> Self {
        Self::new(Content::Nothing, End::Hang)
    }

    /// Adds a header. Content-Length and Transfer-Encoding are there already.
    #[track_caller]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let headers = &mut self.http().headers;
        headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A body with its Content-Length.
    #[track_caller]
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        self.with_body(ReplyBody::Sized(body.into()))
    }

    /// A body in these chunks, each written by itself.
    #[track_caller]
    pub fn chunked<C: Into<Vec<u8>>>(self, chunks: Vec<C>) -> Self {
        let chunks = chunks.into_iter().map(Into::into).collect();
        self.with_body(ReplyBody::Chunked(chunks))
    }

    /// Waits before the first byte.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Closes the connection afterwards, without saying so in a header.
    pub fn then_close(mut self) -> Self {
        self.end = End::Close;
        self
    }

    /// Resets the connection afterwards.
    pub fn then_reset(mut self) -> Self {
        self.end = End::Reset;
        self
    }

    /// Says nothing more afterwards, until the peer closes or the upstream is stopped.
    pub fn then_hang(mut self) -> Self {
        self.end = End::Hang;
        self
    }

    /// Sends back all that comes afterwards: for a raw `101 Switching Protocols`.
    pub fn then_echo(mut self) -> Self {
        self.end = End::Echo;
        self
    }

    fn new(content: Content, end: End) -> Self {
        Self {
            delay: Duration::ZERO,
            content,
            end,
        }
    }

    #[track_caller]
    fn with_body(mut self, body: ReplyBody) -> Self {
        self.http().body = body;
        self
    }

    #[track_caller]
    fn http(&mut self) -> &mut HttpReply {
        match &mut self.content {
            Content::Http(http) => http,
            other => panic!("{other:?} has neither headers nor a body"),
        }
    }

    fn write(&self, wire: &Wire, gate: &Gate, of_head_request: bool) -> io::Result<()> {
        match &self.content {
            Content::Nothing => Ok(()),
            Content::Raw(bytes) => wire.write(bytes),
            Content::Paced(pieces, every) => pieces.iter().try_for_each(|piece| {
                gate.pause(*every);
                wire.write(piece)
            }),
            Content::Http(http) => http.write(wire, gate, of_head_request),
        }
    }
}

impl HttpReply {
    fn write(&self, wire: &Wire, gate: &Gate, of_head_request: bool) -> io::Result<()> {
        let head = self.head().into_bytes();
        match &self.body {
            _ if of_head_request => wire.write(&head),
            ReplyBody::Sized(body) => wire.write(&[&head, body.as_slice()].concat()),
            ReplyBody::Chunked(chunks) => {
                wire.write(&head)?;
                for chunk in chunks {
                    let mut framed = Vec::new();
                    push_chunk(&mut framed, chunk);
                    wire.write(&framed)?;
                }
                wire.write(b"0\r\n\r\n")
            }
            ReplyBody::Trickled(body, every) => {
                wire.write(&head)?;
                for byte in body {
                    gate.pause(*every);
                    wire.write(&[*byte])?;
                }
                Ok(())
            }
        }
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason_of(self.status));
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match &self.body {
            ReplyBody::Sized(body) if body.is_empty() && has_no_body(self.status) => {}
            ReplyBody::Sized(body) | ReplyBody::Trickled(body, _) => {
                head += &format!("Content-Length: {}\r\n", body.len());
            }
            ReplyBody::Chunked(_) => head += "Transfer-Encoding: chunked\r\n",
        }
        head + "\r\n"
    }
}

type Script = Arc<dyn Fn(&Recorded) -> Reply + Send + Sync>;
type ScriptBeforeBody = Arc<dyn Fn(&Recorded) -> Option<Reply> + Send + Sync>;

struct Shared {
    script: Mutex<Script>,
    script_before_body: Mutex<ScriptBeforeBody>,
    requests: Mutex<Vec<Recorded>>,
    heads_seen: AtomicUsize,
    health_checks: AtomicUsize,
    healthy: AtomicBool,
    connections: AtomicUsize,
    open: Mutex<HashMap<usize, Arc<TcpStream>>>,
    gate: Gate,
}

impl Shared {
    fn new(script: Script) -> Self {
        Self {
            script: Mutex::new(script),
            script_before_body: Mutex::new(Arc::new(|_| None)),
            requests: Mutex::default(),
            heads_seen: AtomicUsize::new(0),
            health_checks: AtomicUsize::new(0),
            healthy: AtomicBool::new(true),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            gate: Gate::default(),
        }
    }

    fn record(&self, request: &Recorded) {
        lock(&self.requests).push(request.clone());
    }
}

fn accept_on(listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<Vec<JoinHandle<()>>> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut serving: Vec<JoinHandle<()>> = Vec::new();
        loop {
            let (stream, _) = listener.accept().expect("a connection can be accepted");
            if shared.gate.is_stopping() {
                stop_listening(listener);
                return serving;
            }
            join_finished(&mut serving);
            let connection = shared.connections.fetch_add(1, SeqCst);
            let stream = Arc::new(stream);
            lock(&shared.open).insert(connection, Arc::clone(&stream));
            let shared = Arc::clone(&shared);
            serving.push(thread::spawn(move || {
                let _closing = CloseOnDrop(&shared, connection);
                serve(&shared, &mut Wire::new(stream), connection);
            }));
        }
    })
}

/// Closes the port at once. Only to drop the listener leaves the port open as long as a process has
/// a copy of it that another thread has forked and that has not come to its `exec` yet.
fn stop_listening(listener: TcpListener) {
    let socket = TcpStream::from(OwnedFd::from(listener));
    socket
        .shutdown(Shutdown::Both)
        .expect("a listener can be shut down");
}

/// Gives the memory of the threads back that have ended well.
fn join_finished(serving: &mut Vec<JoinHandle<()>>) {
    for finished in serving.extract_if(.., |thread| thread.is_finished()) {
        finished.join().expect("no thread of the upstream panicked");
    }
}

/// Takes a connection out of the open ones, also when the script panics.
struct CloseOnDrop<'a>(&'a Shared, usize);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        lock(&self.0.open).remove(&self.1);
    }
}

/// Serves one connection, request by request.
fn serve(shared: &Shared, wire: &mut Wire, connection: usize) {
    while let Some(head) = wire.read_head() {
        let mut request = Recorded::parse(head, connection);
        let kept = if request.is_health_check() {
            serve_health_check(shared, wire, &mut request)
        } else {
            serve_request(shared, wire, &mut request)
        };
        if kept.is_none() {
            return;
        }
    }
}

/// `Some` when the connection can carry a next request; so all below.
fn serve_health_check(shared: &Shared, wire: &mut Wire, request: &mut Recorded) -> Option<()> {
    shared.health_checks.fetch_add(1, SeqCst);
    wire.read_body(request)?;
    let reply = match shared.healthy.load(SeqCst) {
        true => Reply::json(json!({"status": "ok"})),
        false => Reply::status(503),
    };
    reply
        .write(wire, &shared.gate, request.method == "HEAD")
        .ok()
}

fn serve_request(shared: &Shared, wire: &mut Wire, request: &mut Recorded) -> Option<()> {
    shared.heads_seen.fetch_add(1, SeqCst);
    let script_before_body = lock(&shared.script_before_body).clone();
    if let Some(reply) = script_before_body(request) {
        return reply_before_body(shared, wire, request, &reply);
    }
    if request.has("expect", "100-continue") {
        wire.write(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    let body = wire.read_body(request);
    shared.record(request);
    body?;
    let script = lock(&shared.script).clone();
    let reply = script(request);
    write_when_released(shared, wire, request, &reply)?;
    end(wire, reply.end)
}

fn reply_before_body(
    shared: &Shared,
    wire: &mut Wire,
    request: &mut Recorded,
    reply: &Reply,
) -> Option<()> {
    let written = write_when_released(shared, wire, request, reply);
    match reply.end {
        End::Reset => shared.record(request),
        End::ResetAfter(count) => {
            let read = wire.read_exactly(count, &mut request.raw);
            shared.record(request);
            read?;
        }
        End::Hang => {
            shared.record(request);
            shared.gate.wait_stopping();
        }
        End::KeepAlive | End::Close | End::Echo => {
            if reply.end == End::Close {
                wire.finish_writing();
            }
            let body = wire.read_body(request);
            shared.record(request);
            body?;
        }
    }
    written?;
    end(wire, reply.end)
}

fn write_when_released(
    shared: &Shared,
    wire: &Wire,
    request: &Recorded,
    reply: &Reply,
) -> Option<()> {
    shared.gate.wait_released();
    shared.gate.pause(reply.delay);
    if shared.gate.is_stopping() {
        return None;
    }
    reply
        .write(wire, &shared.gate, request.method == "HEAD")
        .ok()
}

fn end(wire: &mut Wire, end: End) -> Option<()> {
    match end {
        End::KeepAlive => return Some(()),
        End::Close => wire.settle()?,
        // The last byte of the request is unread still, which makes the kernel send a RST.
        End::Reset | End::ResetAfter(_) => {}
        End::Hang => wire.drain(|_| Ok(())),
        End::Echo => {
            let back = Arc::clone(&wire.stream);
            wire.drain(|bytes| (&*back).write_all(bytes));
        }
    }
    None
}

/// What all threads of an upstream wait on.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    held: bool,
    stopping: bool,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn is_stopping(&self) -> bool {
        lock(&self.state).stopping
    }

    fn wait_released(&self) {
        self.wait_while(|state| state.held && !state.stopping);
    }

    fn wait_stopping(&self) {
        self.wait_while(|state| !state.stopping);
    }

    /// Sleeps, though not while the upstream is stopping.
    fn pause(&self, time: Duration) {
        let state = lock(&self.state);
        let waited = self
            .changed
            .wait_timeout_while(state, time, |state| !state.stopping);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn wait_while(&self, condition: impl Fn(&mut GateState) -> bool) {
        let state = lock(&self.state);
        let waited = self.changed.wait_while(state, condition);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// The reading end of a connection. It leaves the last byte of what it has read in the buffer of
/// the kernel until it reads on: closing a socket with unread bytes sends a RST, which is how
/// [`Reply::reset`] works without SO_LINGER.
struct Wire {
    stream: Arc<TcpStream>,
    last_byte_left: bool,
}

impl Wire {
    fn new(stream: Arc<TcpStream>) -> Self {
        stream.set_nodelay(true).expect("TCP_NODELAY is settable");
        Self {
            stream,
            last_byte_left: false,
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.stream).write_all(bytes)
    }

    fn finish_writing(&self) {
        // Fails only for a connection that the peer has closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The next head, `None` when the peer has closed.
    fn read_head(&mut self) -> Option<Vec<u8>> {
        let mut head = Vec::new();
        self.read_until(b"\r\n\r\n", &mut head)?;
        Some(head)
    }

    /// Completes the request with its body; `None` when the peer has closed before its end.
    fn read_body(&mut self, request: &mut Recorded) -> Option<()> {
        request.chunked = request.has("transfer-encoding", "chunked");
        if request.chunked {
            self.read_chunks(request)?;
        } else if let Some(length) = request.header("content-length") {
            let length = length
                .parse()
                .unwrap_or_else(|_| panic!("the upstream got the Content-Length {length:?}"));
            let start = request.raw.len();
            let read = self.read_exactly(length, &mut request.raw);
            request.body = request.raw[start..].to_vec();
            read?;
        }
        request.complete = true;
        Some(())
    }

    fn read_chunks(&mut self, request: &mut Recorded) -> Option<()> {
        loop {
            let line = self.read_line(&mut request.raw)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .unwrap_or_else(|_| panic!("the upstream got the chunk size {line:?}"));
            if size == 0 {
                break;
            }
            let start = request.raw.len();
            let read = self.read_exactly(size, &mut request.raw);
            request.body.extend_from_slice(&request.raw[start..]);
            read?;
            let end = self.read_line(&mut request.raw)?;
            assert!(end.is_empty(), "the upstream got {end:?} behind a chunk");
        }
        loop {
            let line = self.read_line(&mut request.raw)?;
            if line.is_empty() {
                return Some(());
            }
            let trailer = parse_field(&line);
            let trailer =
                trailer.unwrap_or_else(|why| panic!("the upstream got the trailer {why}"));
            request.trailers.push(trailer);
        }
    }

    fn read_line(&mut self, raw: &mut Vec<u8>) -> Option<String> {
        let start = raw.len();
        self.read_until(b"\r\n", raw)?;
        Some(lossy(&raw[start..raw.len() - 2]))
    }

    /// Reads up to the end of the first `end`, into `raw`.
    fn read_until(&mut self, end: &[u8], raw: &mut Vec<u8>) -> Option<()> {
        self.settle()?;
        let start = raw.len();
        let mut window = [0; 16 * 1024];
        loop {
            let known = raw.len();
            let seen = self.peek(&mut window)?;
            raw.extend_from_slice(&window[..seen]);
            let from = start.max(known.saturating_sub(end.len() - 1));
            if let Some(at) = position(&raw[from..], end) {
                raw.truncate(from + at + end.len());
                return self.take_but_last(raw.len() - known);
            }
            self.take(&mut window[..seen])?;
        }
    }

    /// Reads this many bytes, into `raw`.
    fn read_exactly(&mut self, count: usize, raw: &mut Vec<u8>) -> Option<()> {
        let end = raw.len() + count;
        let mut window = [0; 16 * 1024];
        while raw.len() < end {
            self.settle()?;
            let wanted = window.len().min(end - raw.len());
            let seen = self.peek(&mut window[..wanted])?;
            raw.extend_from_slice(&window[..seen]);
            self.take_but_last(seen)?;
        }
        Some(())
    }

    /// Takes the byte that was left.
    fn settle(&mut self) -> Option<()> {
        if std::mem::take(&mut self.last_byte_left) {
            self.take(&mut [0])?;
        }
        Some(())
    }

    /// Takes `count` bytes that were seen by [`Wire::peek`], and leaves one.
    fn take_but_last(&mut self, count: usize) -> Option<()> {
        self.take(&mut vec![0; count - 1])?;
        self.last_byte_left = true;
        Some(())
    }

    fn take(&self, bytes: &mut [u8]) -> Option<()> {
        (&*self.stream).read_exact(bytes).ok()
    }

    fn peek(&self, window: &mut [u8]) -> Option<usize> {
        self.stream.peek(window).ok().filter(|count| *count > 0)
    }

    /// Hands on all that comes until the peer closes or the upstream is stopped.
    fn drain(&mut self, mut sink: impl FnMut(&[u8]) -> io::Result<()>) {
        let mut buffer = [0; 16 * 1024];
        if self.settle().is_none() {
            return;
        }
        while let Ok(count @ 1..) = (&*self.stream).read(&mut buffer) {
            if sink(&buffer[..count]).is_err() {
                return;
            }
        }
    }
}

fn has_no_body(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

fn reason_of(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Scripted",
    }
}
