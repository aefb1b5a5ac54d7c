//! A raw HTTP/1.1 client: it sends exactly the bytes it is told to and keeps exactly the bytes it
//! gets, so that a test can say malformed things and see every octet of the answer.

use super::tls::Wire;
use serde_json::Value;
use socket2::SockRef;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_FOR_CLOSE: Duration = Duration::from_secs(3);
const IMPATIENCE: Duration = Duration::from_millis(100);

/// Where to connect to.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    addr: SocketAddr,
    patience: Duration,
}

impl Client {
    /// A client that waits up to 10 s for the next byte.
    pub fn to(addr: SocketAddr) -> Self {
        Self {
            addr,
            patience: PATIENCE,
        }
    }

    /// Another limit for the wait for the next byte.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Opens a connection.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        let stream = TcpStream::connect_timeout(&self.addr, self.patience)
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", self.addr));
        stream.set_nodelay(true).expect("TCP_NODELAY is settable");
        stream
            .set_write_timeout(Some(self.patience))
            .expect("the write timeout is settable");
        Connection::over(Wire::Plain(stream), self.patience)
    }
}

/// One TCP connection. Closed when dropped.
#[derive(Debug)]
pub struct Connection {
    stream: Wire,
    patience: Duration,
    received: Vec<u8>,
    closed: bool,
}

impl Connection {
    /// A connection that is open already, and waits so long for the next byte.
    pub fn over(stream: Wire, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            received: Vec::new(),
            closed: false,
        }
    }

    /// The connection below: for what its TLS says, or its options.
    pub fn wire(&self) -> &Wire {
        &self.stream
    }

    /// Sends these bytes. That the peer has closed is no panic: it shows when reading.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        match self.try_send(bytes) {
            Err(error) if !is_closing(&error) => {
                panic!("cannot send {} bytes: {error}", bytes.len())
            }
            _ => {}
        }
    }

    /// Sends these bytes, or says why they cannot be sent.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent (a FIN), and keeps on reading.
    pub fn finish_sending(&mut self) {
        match self.stream.socket().shutdown(Shutdown::Write) {
            Err(error) if error.kind() != ErrorKind::NotConnected => {
                panic!("cannot half-close: {error}")
            }
            _ => {}
        }
    }

    /// Sends these bytes from a thread of its own, to read meanwhile: the peer need not take them all.
    pub fn send_meanwhile(&self, bytes: Vec<u8>) -> JoinHandle<()> {
        let stream = self.another();
        thread::spawn(move || {
            // Fails when the peer has enough, which is what it is for.
            let _ = (&stream).write_all(&bytes);
        })
    }

    /// Sends this again and again, from a thread of its own, until the peer closes.
    pub fn trickle(&self, piece: &str, every: Duration) -> JoinHandle<()> {
        let stream = self.another();
        let piece = piece.as_bytes().to_vec();
        thread::spawn(move || {
            while (&stream).write_all(&piece).is_ok() {
                thread::sleep(every);
            }
        })
    }

    /// Another hand on the socket.
    #[track_caller]
    fn another(&self) -> TcpStream {
        let Wire::Plain(stream) = &self.stream else {
            panic!("TLS is not sent from two threads");
        };
        stream.try_clone().expect("a socket can be cloned")
    }

    /// Closes it with a RST in place of a FIN.
    pub fn reset(self) {
        SockRef::from(self.stream.socket())
            .set_linger(Some(Duration::ZERO))
            .expect("SO_LINGER is settable");
    }

    /// Sends the request and reads one response (of a HEAD request: only its head). The response
    /// may be an interim one such as `100 Continue`.
    #[track_caller]
    pub fn request(&mut self, request: &Request) -> Response {
        self.send(&request.bytes());
        self.read(request.method == "HEAD")
    }

    /// Reads one whole response.
    #[track_caller]
    pub fn read_response(&mut self) -> Response {
        self.read(false)
    }

    /// Reads the response of a HEAD request: no body follows, whatever its fields say.
    #[track_caller]
    pub fn read_head_response(&mut self) -> Response {
        self.read(true)
    }

    /// Reads one whole response, or says how it broke. Only silence panics.
    #[track_caller]
    pub fn try_read_response(&mut self) -> Result<Response, Broken> {
        self.try_read(false)
    }

    /// Reads everything until the peer closes.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.received)
    }

    /// Waits until exactly this many more bytes have come and takes them; fewer when the peer
    /// closes before.
    #[track_caller]
    pub fn read_up_to(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() < count && self.fill() {}
        let count = count.min(self.received.len());
        self.received.drain(..count).collect()
    }

    /// Reads all up to the chunk that ends a chunked body, and nothing behind it.
    #[track_caller]
    pub fn read_to_end_of_chunks(&mut self) -> Vec<u8> {
        const END: &[u8] = b"0\r\n\r\n";
        while !self.received.ends_with(END) && self.fill() {}
        std::mem::take(&mut self.received)
    }

    /// Whether the peer closes or resets the connection within 3 s. What it sends before stays
    /// readable.
    pub fn is_closed(&mut self) -> bool {
        self.closes_within(PATIENCE_FOR_CLOSE)
    }

    /// Whether the peer has kept the connection open for 100 ms.
    pub fn stays_open(&mut self) -> bool {
        !self.closes_within(IMPATIENCE)
    }

    /// The client's own address.
    pub fn local_addr(&self) -> SocketAddr {
        let socket = self.stream.socket();
        socket.local_addr().expect("a connection has one")
    }

    #[track_caller]
    fn read(&mut self, of_head_request: bool) -> Response {
        match self.try_read(of_head_request) {
            Ok(response) => response,
            Err(broken) => panic!("{broken}"),
        }
    }

    #[track_caller]
    fn try_read(&mut self, of_head_request: bool) -> Result<Response, Broken> {
        let end_of_head = self.find_from(0, b"\r\n\r\n")?;
        let raw_head = self.received[..end_of_head].to_vec();
        let mut response = parse_head(raw_head).map_err(|why| self.malformed(why))?;
        let framing = response
            .framing(of_head_request)
            .map_err(|why| self.malformed(why))?;
        let end = match framing {
            Framing::Nothing => end_of_head,
            Framing::Length(length) => {
                let end = end_of_head + length;
                while self.received.len() < end {
                    self.fill_or_broken()?;
                }
                response.body = self.received[end_of_head..end].to_vec();
                end
            }
            Framing::UntilClose => {
                while self.fill() {}
                response.body = self.received[end_of_head..].to_vec();
                self.received.len()
            }
            Framing::Chunked => self.read_chunks(end_of_head, &mut response)?,
        };
        response.raw_body = self.received[end_of_head..end].to_vec();
        self.received.drain(..end);
        Ok(response)
    }

    #[track_caller]
    fn read_chunks(&mut self, start: usize, response: &mut Response) -> Result<usize, Broken> {
        response.chunked = true;
        let mut at = start;
        loop {
            let end_of_line = self.find_from(at, b"\r\n")?;
            let line = lossy(&self.received[at..end_of_line - 2]);
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| self.malformed(format!("chunk size {line:?}")))?;
            at = end_of_line;
            if size == 0 {
                break;
            }
            while self.received.len() < at + size + 2 {
                self.fill_or_broken()?;
            }
            response
                .body
                .extend_from_slice(&self.received[at..at + size]);
            at += size + 2;
            if !self.received[..at].ends_with(b"\r\n") {
                return Err(self.malformed("a chunk does not end where it said".into()));
            }
        }
        loop {
            let end_of_line = self.find_from(at, b"\r\n")?;
            let line = lossy(&self.received[at..end_of_line - 2]);
            at = end_of_line;
            if line.is_empty() {
                return Ok(at);
            }
            let trailer = parse_field(&line).map_err(|why| self.malformed(why))?;
            response.trailers.push(trailer);
        }
    }

    /// The position just behind the first `wanted` at or behind `start`.
    #[track_caller]
    fn find_from(&mut self, start: usize, wanted: &[u8]) -> Result<usize, Broken> {
        loop {
            if let Some(at) = position(&self.received[start..], wanted) {
                return Ok(start + at + wanted.len());
            }
            self.fill_or_broken()?;
        }
    }

    #[track_caller]
    fn fill_or_broken(&mut self) -> Result<(), Broken> {
        if self.fill() {
            return Ok(());
        }
        Err(Broken::Closed {
            received: std::mem::take(&mut self.received),
        })
    }

    fn malformed(&mut self, why: String) -> Broken {
        Broken::Malformed {
            why,
            received: std::mem::take(&mut self.received),
        }
    }

    /// Gets more bytes; false when there are none to come.
    #[track_caller]
    fn fill(&mut self) -> bool {
        match self.fill_within(self.patience) {
            Filled::More => true,
            Filled::Closed => false,
            Filled::Silence => panic!(
                "nothing more came within {:?}; so far: {:?}",
                self.patience,
                lossy(&self.received)
            ),
        }
    }

    fn closes_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.closed;
            }
            match self.fill_within(left) {
                Filled::More => {}
                Filled::Closed => return true,
                Filled::Silence => return false,
            }
        }
    }

    fn fill_within(&mut self, limit: Duration) -> Filled {
        if self.closed {
            return Filled::Closed;
        }
        self.stream
            .socket()
            .set_read_timeout(Some(limit))
            .expect("the read timeout is settable");
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Filled::More;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_silence(&error) => return Filled::Silence,
                Err(error) if is_closing(&error) => break,
                Err(error) => panic!("cannot read: {error}"),
            }
        }
        self.closed = true;
        Filled::Closed
    }
}

enum Filled {
    More,
    Closed,
    Silence,
}

/// How a response can fail to be one.
#[derive(Debug)]
pub enum Broken {
    /// The peer closed or reset the connection before the response was whole.
    Closed { received: Vec<u8> },
    /// What came is not HTTP/1.1.
    Malformed { why: String, received: Vec<u8> },
}

impl Broken {
    /// What had come of the response.
    pub fn received(&self) -> &[u8] {
        match self {
            Self::Closed { received } | Self::Malformed { received, .. } => received,
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { .. } => write!(out, "closed before the response was whole")?,
            Self::Malformed { why, .. } => write!(out, "malformed response: {why}")?,
        }
        write!(out, "; received: {:?}", lossy(self.received()))
    }
}

/// A response, byte for byte.
#[derive(Clone, Debug)]
pub struct Response {
    pub version: String,
    pub status: u16,
    pub reason: String,
    /// The names as they were sent.
    pub headers: Vec<(String, String)>,
    /// Without the chunk framing.
    pub body: Vec<u8>,
    pub chunked: bool,
    pub trailers: Vec<(String, String)>,
    /// The head as it came, with the empty line that ends it.
    pub raw_head: Vec<u8>,
    /// The body as it came, with the chunk framing.
    pub raw_body: Vec<u8>,
}

impl Response {
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

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "the body of this {} is no JSON ({error}): {:?}",
                self.status,
                lossy(&self.body)
            )
        })
    }

    /// The body as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    fn framing(&self, of_head_request: bool) -> Result<Framing, String> {
        let lengths = self.headers_named("content-length");
        let codings = self.headers_named("transfer-encoding");
        if lengths.len() + codings.len() > 1 {
            return Err(format!(
                "ambiguous length: Content-Length {lengths:?}, Transfer-Encoding {codings:?}"
            ));
        }
        if of_head_request || matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::Nothing);
        }
        match (lengths.first(), codings.first()) {
            (Some(length), _) => length
                .parse()
                .map(Framing::Length)
                .map_err(|_| format!("Content-Length {length:?}")),
            (_, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
            (_, Some(coding)) => Err(format!("Transfer-Encoding {coding:?}")),
            (None, None) => Ok(Framing::UntilClose),
        }
    }
}

enum Framing {
    Nothing,
    Length(usize),
    Chunked,
    UntilClose,
}

/// A request to be sent: exactly what is said, and nothing else but `Host: gateway.test`.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    version: &'static str,
    host: Option<String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub fn get(target: &str) -> Self {
        Self::method("GET", target)
    }

    pub fn post(target: &str) -> Self {
        Self::method("POST", target)
    }

    /// A request of any method.
    pub fn method(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            version: "HTTP/1.1",
            host: Some("gateway.test".into()),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Adds a header, also one that is there already.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// `Authorization: Bearer TOKEN`.
    pub fn bearer(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    /// The Host header in place of `gateway.test`.
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.into());
        self
    }

    /// No Host header at all.
    pub fn without_host(mut self) -> Self {
        self.host = None;
        self
    }

    /// As HTTP/1.0.
    pub fn http_1_0(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// A body with its Content-Length.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// A JSON body with its Content-Type and Content-Length.
    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json")
            .body(body.to_string())
    }

    /// A body in these chunks.
    pub fn chunked<C: AsRef<[u8]>>(mut self, chunks: Vec<C>) -> Self {
        for chunk in &chunks {
            push_chunk(&mut self.body, chunk.as_ref());
        }
        self.body.extend_from_slice(b"0\r\n\r\n");
        self.header("Transfer-Encoding", "chunked")
    }

    /// The exact bytes of the request.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The bytes without those of the body, to send only the head.
    pub fn head_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        let host = self.host.as_ref().map(|host| ("Host", host.as_str()));
        let others = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        for (name, value) in host.into_iter().chain(others) {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// Sends it on a new connection and reads one response.
    #[track_caller]
    pub fn send_to(&self, addr: SocketAddr) -> Response {
        Client::to(addr).connect().request(self)
    }
}

/// Bytes of every value, the same at each run.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Appends one chunk with its framing; an empty one would end the body, so it is left out.
pub(super) fn push_chunk(out: &mut Vec<u8>, chunk: &[u8]) {
    if !chunk.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
}

/// Splits `Name: value` as sent.
pub(super) fn parse_field(line: &str) -> Result<(String, String), String> {
    match line.split_once(':') {
        Some((name, value)) if !name.is_empty() && !name.contains([' ', '\t']) => {
            Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
        }
        _ => Err(format!("header line {line:?}")),
    }
}

pub(super) fn values_named<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields
        .iter()
        .filter(|(candidate, _)| candidate.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect()
}

pub(super) fn position(within: &[u8], wanted: &[u8]) -> Option<usize> {
    within
        .windows(wanted.len())
        .position(|window| window == wanted)
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse_head(raw_head: Vec<u8>) -> Result<Response, String> {
    let text = lossy(&raw_head);
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut parts = status_line.splitn(3, ' ');
    let (version, status) = (parts.next(), parts.next());
    let (Some(version @ ("HTTP/1.1" | "HTTP/1.0")), Some(Ok(status))) =
        (version, status.map(str::parse))
    else {
        return Err(format!("status line {status_line:?}"));
    };
    Ok(Response {
        version: version.to_owned(),
        status,
        reason: parts.next().unwrap_or_default().to_owned(),
        headers: lines.map(parse_field).collect::<Result<_, _>>()?,
        body: Vec::new(),
        chunked: false,
        trailers: Vec::new(),
        raw_body: Vec::new(),
        raw_head,
    })
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn is_closing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof
            // A TLS alert that ends the connection.
            | ErrorKind::InvalidData
    )
}

/// A field that must be a whole number.
#[track_caller]
pub fn number(response: &Response, name: &str) -> u64 {
    let value = response
        .header(name)
        .unwrap_or_else(|| panic!("no {name}: {:?}", response.headers));
    value
        .parse()
        .unwrap_or_else(|_| panic!("{name}: {value:?} is no whole number"))
}
