//! A client that writes frames as the test has them, good or bad (RFC 9113, section 4.1).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY_FLAG: u8 = 32;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.as_ref().to_vec(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let len = (self.payload.len() as u32).to_be_bytes();
        let head = [
            &len[1..],
            &[self.kind, self.flags],
            &self.stream.to_be_bytes(),
        ]
        .concat();
        [head, self.payload.clone()].concat()
    }

    /// Of a RST_STREAM or GOAWAY.
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }

    /// Of a HEADERS frame whose first field is `:status`, as h2 writes it.
    pub fn status(&self) -> Option<u16> {
        const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        let first = *self.payload.iter().find(|b| **b & 0xe0 != 0x20)?;
        match first {
            0x88..=0x8e => Some(INDEXED[usize::from(first - 0x88)]),
            _ => None,
        }
    }
}

/// A HEADERS frame with the whole of a request.
pub fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Frame {
    Frame::new(HEADERS, flags, stream, block(fields))
}

/// What every request has.
pub fn get(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "a"),
    ]
}

pub fn post(path: &str) -> Vec<(&str, &str)> {
    let mut fields = get(path);
    fields[0].1 = "POST";
    fields
}

/// A header block of literals without indexing, not Huffman-coded (RFC 7541, section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name.as_bytes());
        string(&mut block, value.as_bytes());
    }
    block
}

/// A literal with incremental indexing (RFC 7541, section 6.2.1).
pub fn indexed_literal(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    string(&mut block, name.as_bytes());
    string(&mut block, value.as_bytes());
    block
}

pub fn string(block: &mut Vec<u8>, text: &[u8]) {
    integer(block, 7, 0, text.len());
    block.extend_from_slice(text);
}

/// RFC 7541, section 5.1.
pub fn integer(block: &mut Vec<u8>, bits: u8, pattern: u8, mut value: usize) {
    let most = (1usize << bits) - 1;
    if value < most {
        block.push(pattern | value as u8);
        return;
    }
    block.push(pattern | most as u8);
    value -= most;
    while value >= 128 {
        block.push(value as u8 | 128);
        value >>= 7;
    }
    block.push(value as u8);
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// One connection.
pub struct Raw {
    stream: TcpStream,
    got: Vec<u8>,
    is_closed: bool,
}

impl Raw {
    /// Connects, and says nothing.
    pub fn tcp(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY is settable");
        let limit = Some(Duration::from_secs(10));
        stream.set_write_timeout(limit).expect("settable");
        Self {
            stream,
            got: Vec::new(),
            is_closed: false,
        }
    }

    /// The other side of a connection: what the test plays is a server.
    pub fn serve(stream: TcpStream) -> Self {
        let mut raw = Self {
            stream,
            got: Vec::new(),
            is_closed: false,
        };
        let mut preface = [0; PREFACE.len()];
        raw.stream.read_exact(&mut preface).expect("a preface");
        raw.frame(&Frame::new(SETTINGS, 0, 0, []));
        raw.wait("SETTINGS", |f| f.kind == SETTINGS && f.flags == 0);
        raw.frame(&Frame::new(SETTINGS, ACK, 0, []));
        raw
    }

    /// Connects, and exchanges SETTINGS.
    pub fn connect(addr: SocketAddr) -> Self {
        Self::connect_with(addr, &[])
    }

    pub fn connect_with(addr: SocketAddr, settings: &[u8]) -> Self {
        let mut raw = Self::tcp(addr);
        raw.send(PREFACE);
        raw.frame(&Frame::new(SETTINGS, 0, 0, settings));
        raw.wait("the server's SETTINGS", |f| {
            f.kind == SETTINGS && f.flags == 0
        });
        raw.frame(&Frame::new(SETTINGS, ACK, 0, []));
        raw.wait("an ACK", |f| f.kind == SETTINGS && f.flags == ACK);
        raw
    }

    /// Sends these octets. That the peer has closed shows when reading.
    pub fn send(&mut self, octets: &[u8]) -> bool {
        self.stream.write_all(octets).is_ok()
    }

    pub fn frame(&mut self, frame: &Frame) -> bool {
        self.send(&frame.bytes())
    }

    pub fn frames(&mut self, frames: &[Frame]) -> bool {
        let octets: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.send(&octets)
    }

    /// The next frame within `limit`; `None` when the connection was closed, or nothing came.
    pub fn read(&mut self, limit: Duration) -> Option<Frame> {
        let until = Instant::now() + limit;
        loop {
            if let [a, b, c, kind, flags, s @ ..] = &self.got[..]
                && s.len() >= 4
            {
                let len = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
                if self.got.len() >= 9 + len {
                    let stream = u32::from_be_bytes([s[0], s[1], s[2], s[3]]);
                    let frame = Frame::new(*kind, *flags, stream, &self.got[9..9 + len]);
                    self.got.drain(..9 + len);
                    return Some(frame);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_closed {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).expect("settable");
            let mut buf = [0; 16 << 10];
            match self.stream.read(&mut buf) {
                Ok(0) => self.is_closed = true,
                Ok(n) => self.got.extend_from_slice(&buf[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => self.is_closed = true,
            }
        }
    }

    /// The first frame that `wanted` accepts; `None` when the connection was closed before.
    pub fn find(&mut self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let until = Instant::now() + limit;
        loop {
            let frame = self.read(until.saturating_duration_since(Instant::now()))?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    #[track_caller]
    pub fn wait(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        match self.find(Duration::from_secs(5), wanted) {
            Some(frame) => frame,
            None => panic!("no {what}; closed: {}", self.is_closed),
        }
    }

    /// Whether the peer closes within `limit`; what it sends before is dropped.
    pub fn closes(&mut self, limit: Duration) -> bool {
        while self.read(limit).is_some() {}
        self.is_closed
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Whether it still answers a PING.
    pub fn is_alive(&mut self) -> bool {
        self.frame(&Frame::new(PING, 0, 0, b"areyouok"));
        self.find(Duration::from_secs(3), |f| {
            f.kind == PING && f.flags == ACK && f.payload == b"areyouok"
        })
        .is_some()
    }

    /// Takes no more than this from the peer before TCP holds it up.
    pub fn small_receive_buffer(&self) {
        socket2::SockRef::from(&self.stream)
            .set_recv_buffer_size(4096)
            .expect("settable");
    }
}
