//! Clients of the protocols beside plain HTTP/1, each doing what such clients do, over and over. What a process that is
//! replaced may do to them, it may: end a stream after its grace, close a connection between two requests, say that it
//! goes away. Whatever else goes wrong is a failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use futures::future::join_all;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::http2::{Http2, run, whole};
use crate::support::prelude::*;
use crate::support::websocket::{Socket, open};

/// Where the lanes lead.
#[derive(Clone)]
pub struct Doors {
    pub plain: SocketAddr,
    pub https: SocketAddr,
    pub client: TlsClient,
}

/// Clients at work. Each returns how much came of one visit; the number tells the visits apart.
pub struct Lanes {
    stopping: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<usize>)>,
}

type Visit = fn(&Doors, usize, &AtomicBool) -> usize;

const ALL: [(&str, Visit); 7] = [
    ("https", over_tls),
    ("http/2", over_http2),
    ("events", events),
    ("websockets", websocket),
    ("kept websockets", kept_websocket),
    ("leavers", leaver),
    ("https leavers", tls_leaver),
];

impl Lanes {
    pub fn start(doors: &Doors) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let threads = ALL.map(|(name, visit)| {
            let (doors, stop) = (doors.clone(), stopping.clone());
            let thread = thread::spawn(move || {
                let (mut number, mut done) = (0, 0);
                while !stop.load(Relaxed) {
                    done += visit(&doors, number, &stop);
                    number += 1;
                    thread::sleep(Duration::from_millis(5));
                }
                done
            });
            (name, thread)
        });
        Self {
            stopping,
            threads: threads.into(),
        }
    }

    /// What each has come to.
    pub fn stop(self) -> Vec<(&'static str, usize)> {
        self.stopping.store(true, Relaxed);
        let ended = self.threads.into_iter().map(|(name, thread)| {
            let done = thread.join();
            (
                name,
                done.unwrap_or_else(|_| panic!("the lane {name} failed: see above")),
            )
        });
        ended.collect()
    }
}

/// A handshake, and some requests.
fn over_tls(doors: &Doors, number: usize, _: &AtomicBool) -> usize {
    let mut connection = doors.client.connect(doors.https);
    for request in 1..=10 {
        let answer = connection.request(&Request::get(&format!("/public/{number}")));
        assert_eq!(answer.status, 200);
        if answer.header("connection") == Some("close") {
            return request;
        }
    }
    10
}

/// Requests side by side, to a backend that speaks HTTP/2 and to one that does not.
fn over_http2(doors: &Doors, number: usize, _: &AtomicBool) -> usize {
    let answered = AtomicUsize::new(0);
    run(async {
        let (client, _) = Http2::connect(doors.plain).await;
        let stream = async |lane: usize| {
            for n in 0..10 {
                let service = ["public", "h"][(lane + n) % 2];
                let request = client.request("GET", &format!("/{service}/{number}"));
                // It may be told that its process goes: then it asks on another connection.
                let Ok(mut send) = client.send.clone().ready().await else {
                    return;
                };
                let Ok((answer, _)) = send.send_request(request.body(()).unwrap(), true) else {
                    return;
                };
                let answer = match answer.await {
                    Ok(answer) => whole(answer).await,
                    Err(e) => Err(e),
                };
                match answer {
                    Ok(answer) => assert_eq!(answer.status, 200),
                    Err(e) if e.reason() == Some(h2::Reason::REFUSED_STREAM) => return,
                    Err(e) if e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR) => return,
                    Err(e) => panic!("over HTTP/2: {e}"),
                }
                answered.fetch_add(1, Relaxed);
            }
        };
        join_all((0..4).map(stream)).await;
    });
    answered.into_inner()
}

/// A stream of events, to its end or left in its middle.
fn events(doors: &Doors, number: usize, _: &AtomicBool) -> usize {
    let mut connection = Client::to(doors.plain).connect();
    let request = Request::get("/events/x").header("Accept", "text/event-stream");
    connection.send(&request.bytes());
    match number % 3 {
        0 => assert!(!connection.read_up_to(400).is_empty(), "no event came"),
        1 => connection.reset(),
        _ => {
            let all = connection.read_to_end_of_chunks();
            assert!(all.starts_with(b"HTTP/1.1 200"), "{all:?}");
        }
    }
    1
}

/// A conversation that its client ends.
fn websocket(doors: &Doors, number: usize, _: &AtomicBool) -> usize {
    let mut socket = open(doors.plain, "/ws/x", &[]);
    for said in 0..10 {
        if !is_heard(&mut socket) {
            return said;
        }
    }
    if number.is_multiple_of(2) {
        let _ = socket.close(None);
        while socket.read().is_ok() {}
    }
    10
}

/// One that goes on until it is told to end.
fn kept_websocket(doors: &Doors, _: usize, stop: &AtomicBool) -> usize {
    let mut socket = open(doors.plain, "/ws/x", &[]);
    let mut said = 0;
    while !stop.load(Relaxed) && is_heard(&mut socket) {
        said += 1;
        thread::sleep(Duration::from_millis(20));
    }
    said
}

/// Says something: whether it comes back. If not, a Close has said why.
fn is_heard(socket: &mut Socket) -> bool {
    // When this fails, the reason for it is there to be read.
    let _ = socket.send(Message::text("heard?"));
    match socket.read() {
        Ok(Message::Text(text)) => assert_eq!(text.as_str(), "heard?"),
        Ok(Message::Close(Some(close))) => {
            assert_eq!(u16::from(close.code), 1001, "the process ends");
            return false;
        }
        Err(Error::ConnectionClosed) => return false,
        other => panic!("a WebSocket ended: {other:?}"),
    }
    true
}

/// Goes away with half a head, with half a body, before its answer, or in the middle of a WebSocket.
fn leaver(doors: &Doors, number: usize, _: &AtomicBool) -> usize {
    let mut connection = Client::to(doors.plain).connect();
    match number % 5 {
        0 => connection.send(b"GET /public/x HTTP/1.1\r\nHo"),
        1 => connection
            .send(b"POST /public/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"),
        2 => connection.send(&Request::get("/public/x").bytes()),
        3 => drop(open(doors.plain, "/ws/x", &[])),
        _ => connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    }
    if number % 10 < 5 {
        connection.reset();
    }
    1
}

/// Goes away in the middle of its handshake, or behind it.
fn tls_leaver(doors: &Doors, number: usize, _: &AtomicBool) -> usize {
    match number % 2 {
        0 => drop(doors.client.connect(doors.https)),
        _ => Client::to(doors.https)
            .connect()
            .send(&[0x16, 3, 1, 2, 0, 1, 0]),
    }
    1
}
