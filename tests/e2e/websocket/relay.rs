//! What passes: every byte, in both directions at once, in its order, and without being kept.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::*;

/// `WEBSOCKET_BYTES=1073741824` for the whole gigabyte.
const USUAL_BYTES: u64 = 64 << 20;

#[test]
fn random_frames_come_back_byte_for_byte() {
    let bytes = std::env::var("WEBSOCKET_BYTES").map_or(USUAL_BYTES, |bytes| {
        bytes.parse().expect("a number of bytes")
    });
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let backend = listener.local_addr().unwrap();
    runtime.spawn(echo(listener));
    let gateway = Conf::at(&[backend]).route("websocket", "{}").start();
    let memory = gateway.memory_kb();
    let started = Instant::now();
    let url = format!("ws://{}/s/echo", gateway.addr());
    let frames = runtime.block_on(async {
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let (mut sink, mut stream) = socket.split();
        let sender = tokio::spawn(async move {
            let (mut sent, mut frames) = (0, 0);
            while sent < bytes {
                let payload = random(frames);
                sent += payload.len() as u64;
                frames += 1;
                sink.feed(Message::binary(payload)).await.unwrap();
            }
            sink.flush().await.unwrap();
            (sink, frames)
        });
        let mut received = 0;
        let mut frames = 0;
        while received < bytes {
            let message = stream.next().await.expect("more is to come").unwrap();
            assert!(message.is_binary(), "{message:?}");
            let payload = message.into_data();
            assert!(payload == random(frames), "frame {frames} is another");
            received += payload.len() as u64;
            frames += 1;
        }
        let (mut sink, sent) = sender.await.unwrap();
        assert_eq!(frames, sent);
        sink.close().await.unwrap();
        while let Some(Ok(_)) = stream.next().await {}
        frames
    });
    let took = started.elapsed();
    let megabytes = bytes as f64 / 1e6;
    println!(
        "{megabytes:.0} MB in {frames} frames, there and back in {took:?}: {:.0} MB/s each way",
        megabytes / took.as_secs_f64()
    );
    let grown = gateway.memory_kb().saturating_sub(memory);
    println!("memory has grown by {grown} KiB");
    assert!(grown < 32 << 10, "{grown} KiB");
    let line = gateway.wait_log(|line| line["protocol"] == "websocket");
    assert!(line["requestBytes"].as_u64() > Some(bytes), "{line}");
    assert!(line["responseBytes"].as_u64() > Some(bytes), "{line}");
    assert_eq!(
        (&line["closeCode"], &line["statusCode"]),
        (&json!(1005), &json!(101)),
        "{line}"
    );
}

async fn echo(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
                return; // a health check
            };
            while let Some(Ok(message)) = socket.next().await {
                if message.is_binary() && socket.send(message).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// The payload of this frame: most are small, some as large as is allowed.
fn random(frame: u64) -> Vec<u8> {
    let mut state = frame.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let most = [125, 126, 4096, 65_535, 65_536, 200_000, 1 << 20][(next() % 7) as usize];
    let length = (next() % (most + 1)) as usize;
    let mut payload = Vec::with_capacity(length + 8);
    while payload.len() < length {
        payload.extend_from_slice(&next().to_le_bytes());
    }
    payload.truncate(length);
    payload
}

#[test]
fn a_client_that_does_not_read_holds_back_its_backend_and_costs_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let gateway = Conf::at(&[backend]).route("websocket", "{}").start();
    let written = std::sync::Arc::new(std::sync::atomic::AtomicU64::default());
    let count = written.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let count = count.clone();
            thread::spawn(move || flood(stream, &count));
        }
    });
    let before = gateway.memory_kb();
    let mut sockets: Vec<Connection> = (0..20).map(|_| open_raw(gateway.addr(), "/s/a")).collect();
    let written = || written.load(std::sync::atomic::Ordering::Relaxed);
    let mut last = 0;
    // Until all buffers between the two ends are full.
    wait_until("the backend is held back", || {
        let now = written();
        let still = now > 0 && now == std::mem::replace(&mut last, now);
        thread::sleep(Duration::from_millis(200));
        still
    });
    let grown = gateway.memory_kb().saturating_sub(before);
    println!(
        "20 sockets that nobody reads: {grown} KiB, {} KiB written",
        written() / 1024
    );
    // What Pingora has under way of one: nine pieces of 64 KiB, and once more as it writes them.
    assert!(grown < 20 * 1536, "{grown} KiB");
    // What is behind it comes as soon as it is read.
    let (first, payload) = read_frame(&mut sockets[0]);
    assert_eq!((first, payload.len()), (0x82, 60_000));
}

/// Answers the handshake, and then writes as much as it can.
fn flood(mut stream: std::net::TcpStream, written: &std::sync::atomic::AtomicU64) {
    let mut head = [0; 4096];
    let _ = stream.read(&mut head);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    let _ = stream.write_all(answer.as_bytes());
    let frame = server_frame(0x82, &noise(60_000));
    while stream.write_all(&frame).is_ok() {
        written.fetch_add(frame.len() as u64, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_message_is_passed_on_within_milliseconds() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat).start();
    let mut socket = open(gateway.addr(), "/s/a", &[]);
    let mut took: Vec<Duration> = (0..500)
        .map(|i| {
            let started = Instant::now();
            echoes(&mut socket, &format!("message {i}"));
            started.elapsed()
        })
        .collect();
    took.sort();
    println!("there and back: p50 {:?}, p99 {:?}", took[250], took[495]);
    assert!(took[250] < Duration::from_millis(10), "{:?}", took[250]);
}
