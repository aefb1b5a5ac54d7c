//! A real WebSocket server behind the gateway, a real client in front of it, and frames by hand.

use super::client::{Client, Connection, Request};
use super::lock;
use super::wait::{SOON, within};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::HandshakeError;
use tokio_tungstenite::tungstenite::handshake::server::{
    ErrorResponse, Request as Asked, Response as Answered,
};
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{self, Error, Message, WebSocket};

/// The key of RFC 6455, section 1.3, and what is answered to it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A server that sends every message back, but on paths with `mute`; it agrees to `chat.v1` where that is offered.
pub struct Chat {
    addr: SocketAddr,
    visits: Arc<Mutex<Vec<Arc<Mutex<Visit>>>>>,
}

/// One handshake, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Visit {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub messages: Vec<Vec<u8>>,
    /// The code of the Close that came.
    pub close: Option<u16>,
    pub over: bool,
}

pub type Socket = WebSocket<TcpStream>;

/// The head of a 101.
pub type Opened = http::Response<Option<Vec<u8>>>;

impl Chat {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("it has an address");
        let visits = Arc::<Mutex<Vec<_>>>::default();
        let all = visits.clone();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let all = all.clone();
                thread::spawn(move || serve(stream, &all));
            }
        });
        Self { addr, visits }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn visits(&self) -> Vec<Visit> {
        let visits = lock(&self.visits).clone();
        visits.iter().map(|visit| lock(visit).clone()).collect()
    }

    /// Waits until the visit of this number is as wanted.
    #[track_caller]
    pub fn wait_visit(&self, number: usize, wanted: impl Fn(&Visit) -> bool) -> Visit {
        let found = within(SOON, || {
            self.visits().get(number).filter(|v| wanted(v)).cloned()
        });
        found.unwrap_or_else(|| panic!("visit {number} is not as wanted: {:?}", self.visits()))
    }
}

impl Visit {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = named.next().map(|(_, value)| value.as_str());
        assert!(named.next().is_none(), "{name} is there twice");
        value
    }
}

fn serve(stream: TcpStream, all: &Mutex<Vec<Arc<Mutex<Visit>>>>) {
    let visit = Arc::<Mutex<Visit>>::default();
    let noted = visit.clone();
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let note = move |asked: &Asked, mut answered: Answered| -> Result<Answered, ErrorResponse> {
        let mut noted = lock(&noted);
        noted.path = asked.uri().path().to_owned();
        for (name, value) in asked.headers() {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            noted.headers.push((name.to_string(), value));
        }
        if noted
            .header("Sec-WebSocket-Protocol")
            .is_some_and(|p| p.contains("chat.v1"))
        {
            let chosen = HeaderValue::from_static("chat.v1");
            answered
                .headers_mut()
                .insert("sec-websocket-protocol", chosen);
        }
        Ok(answered)
    };
    let _ = stream.set_nodelay(true);
    let Ok(mut socket) = tungstenite::accept_hdr(stream, note) else {
        return;
    };
    lock(all).push(visit.clone());
    let is_mute = lock(&visit).path.contains("mute");
    loop {
        match socket.read() {
            Ok(Message::Close(close)) => {
                lock(&visit).close = Some(close.map_or(1005, |close| close.code.into()));
            }
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                lock(&visit)
                    .messages
                    .push(message.clone().into_data().to_vec());
                if !is_mute && socket.send(message).is_err() {
                    break;
                }
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    lock(&visit).over = true;
}

/// Opens a WebSocket with a real client.
///
/// # Errors
/// The status of an answer that is none.
#[track_caller]
pub fn try_open(
    addr: SocketAddr,
    path: &str,
    fields: &[(&str, &str)],
) -> Result<(Socket, Opened), u16> {
    let mut request = format!("ws://{addr}{path}")
        .into_client_request()
        .expect("a good URL");
    for (name, value) in fields {
        let name: HeaderName = name.parse().expect("a good name");
        request
            .headers_mut()
            .append(name, value.parse().expect("a good value"));
    }
    let stream = TcpStream::connect(addr).expect("the gateway listens");
    stream.set_nodelay(true).expect("it can be set");
    stream.set_read_timeout(Some(SOON)).expect("it can be set");
    match tungstenite::client::client(request, stream) {
        Ok(opened) => Ok(opened),
        Err(HandshakeError::Failure(Error::Http(answer))) => Err(answer.status().as_u16()),
        Err(error) => panic!("no answer to the handshake: {error}"),
    }
}

#[track_caller]
pub fn open(addr: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Socket {
    match try_open(addr, path, fields) {
        Ok((socket, _)) => socket,
        Err(status) => panic!("the handshake was refused with {status}"),
    }
}

/// Opens one whose handshake has this token.
#[track_caller]
pub fn open_as(addr: SocketAddr, path: &str, token: &str) -> Socket {
    open(addr, path, &[("Authorization", &format!("Bearer {token}"))])
}

/// Says something, and hears it back.
#[track_caller]
pub fn echoes(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).expect("it can be sent");
    let heard = socket.read().expect("it comes back");
    assert_eq!(heard, Message::text(text));
}

/// Waits for the Close that ends it, answers it, and sees the connection end. Returns its code.
#[track_caller]
pub fn closed_with(socket: &mut Socket) -> u16 {
    let mut code = None;
    loop {
        match socket.read() {
            Ok(Message::Close(close)) => code = Some(close.map_or(1005, |close| close.code.into())),
            Ok(_) => {}
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => break,
            Err(error) if code.is_none() => panic!("it ended without a Close: {error}"),
            Err(_) => break,
        }
    }
    code.expect("a Close")
}

/// The bytes of a handshake.
pub fn handshake(path: &str) -> Request {
    Request::get(path)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", KEY)
}

/// Opens one by hand.
#[track_caller]
pub fn open_raw(addr: SocketAddr, path: &str) -> Connection {
    let mut connection = Client::to(addr).connect();
    let answer = connection.request(&handshake(path));
    assert_eq!(answer.status, 101, "{:?}", answer.headers);
    assert_eq!(answer.header("Sec-WebSocket-Accept"), Some(ACCEPT));
    connection
}

/// A frame of a client, masked.
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 77, 177, 255];
    let mut frame = head_of(first, payload.len(), 0x80);
    frame.extend_from_slice(&mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    frame.extend(masked.map(|(byte, mask)| byte ^ mask));
    frame
}

/// A frame of a server.
pub fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head_of(first, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

fn head_of(first: u8, length: usize, mask_bit: u8) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..126 => head.push(mask_bit | length as u8),
        126..65_536 => {
            head.push(mask_bit | 126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(mask_bit | 127);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head
}

/// The next frame of a server: its first byte and its payload.
#[track_caller]
pub fn read_frame(connection: &mut Connection) -> (u8, Vec<u8>) {
    let head = connection.read_up_to(2);
    assert_eq!(head.len(), 2, "the connection ended without a frame");
    assert_eq!(head[1] & 0x80, 0, "a server's frame is not masked");
    let length = match head[1] {
        126 => u64::from(u16::from_be_bytes(
            connection.read_up_to(2).try_into().unwrap(),
        )),
        127 => u64::from_be_bytes(connection.read_up_to(8).try_into().unwrap()),
        short => u64::from(short),
    };
    (head[0], connection.read_up_to(length as usize))
}

/// The next frame is a Close; its code.
#[track_caller]
pub fn read_close(connection: &mut Connection) -> u16 {
    let (first, payload) = read_frame(connection);
    assert_eq!(first, 0x88, "no Close, but {payload:?}");
    u16::from_be_bytes([payload[0], payload[1]])
}

/// For what happens within so much time, and no sooner.
#[track_caller]
pub fn took(what: &str, since: std::time::Instant, least: Duration, most: Duration) {
    let took = since.elapsed();
    assert!((least..most).contains(&took), "{what} took {took:?}");
}
