//! What stands before the first byte of a client, and what passes behind its last head: however the bytes arrive, the reading is
//! the same, and what a sender writes is what is read.

use std::net::{IpAddr, SocketAddr};

use crate::connection::websocket::frames::{Fault, Frames, Rest, Rules, Side, close};
use crate::listen::proxy_protocol::{self, Progress};

/// What is read of a header does not change with what follows, nothing is read of a part of one, and a header that is written
/// as the document has it says its client.
pub fn proxy_protocol(input: &[u8]) {
    let mut last = Ok(Progress::Partial);
    for end in 0..=input.len().min(300) {
        let now = proxy_protocol::read(&input[..end]);
        if last != Ok(Progress::Partial) {
            assert_eq!(now, last, "with {end} bytes");
        } else if let Ok(Progress::Complete { len, .. }) = now {
            assert_eq!(len, end, "it was whole before");
        }
        last = now;
    }
    if let Ok(Progress::Complete { len, client }) = proxy_protocol::read(input) {
        assert!(len <= input.len() && len <= 16 + 4096);
        let text = input[..len].strip_prefix(b"PROXY ");
        if let (Some(client), Some(text)) = (client, text) {
            let text = std::str::from_utf8(text).expect("it was read as text");
            let mut words = text.trim_ascii_end().split(' ').skip(1);
            assert_eq!(words.next().map(str::parse), Some(Ok(client.ip())));
            assert_eq!(words.nth(1).map(str::parse), Some(Ok(client.port())));
        }
    }
    written(input);
}

/// The bytes are a client's address and port.
fn written(input: &[u8]) {
    if let Some((address, rest)) = input.split_first_chunk::<4>()
        && let Some((port, _)) = rest.split_first_chunk::<2>()
    {
        says(IpAddr::from(*address), "TCP4", 0x11, *port, address);
    }
    if let Some((address, rest)) = input.split_first_chunk::<16>()
        && let Some((port, _)) = rest.split_first_chunk::<2>()
    {
        says(IpAddr::from(*address), "TCP6", 0x21, *port, address);
    }
}

fn says(address: IpAddr, word: &str, family: u8, port: [u8; 2], octets: &[u8]) {
    let client = SocketAddr::new(address, u16::from_be_bytes(port));
    let text = format!("PROXY {word} {address} {address} {} 443\r\n", client.port());
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    binary.push(family);
    binary.extend((2 * octets.len() as u16 + 4).to_be_bytes());
    binary.extend([octets, octets, &port, &[1, 187]].concat());
    for header in [text.into_bytes(), binary] {
        let complete = Progress::Complete {
            len: header.len(),
            client: Some(client),
        };
        assert_eq!(proxy_protocol::read(&header), Ok(complete));
    }
}

/// The first byte says whose frames they are. In whatever pieces they come the same of them passes, all of that is frames as
/// RFC 6455 has them, and a Close of ours is one.
pub fn websocket(input: &[u8]) {
    let Some((first, data)) = input.split_first() else {
        return;
    };
    let rules = Rules {
        of: if first & 1 == 0 {
            Side::Client
        } else {
            Side::Server
        },
        deflate: first & 2 != 0,
        largest: 1000,
    };
    let whole = walked(rules, data, data.len().max(1));
    for size in [1, 2, 3, 15, usize::from(first >> 2).max(1)] {
        assert_eq!(walked(rules, data, size), whole, "in pieces of {size}");
    }
    are_frames(rules, &data[..whole.passed]);
    let code = 1000 + u16::from(*first);
    let mask = (rules.of == Side::Client).then_some([*first; 4]);
    let ours = walked(rules, &close(code, "bye", mask), 1);
    assert_eq!((ours.fault, ours.closed), (None, Some(code)));
}

#[derive(Debug, PartialEq)]
struct Walked {
    passed: usize,
    fault: Option<Fault>,
    closed: Option<u16>,
}

/// In pieces of this size; what is held back comes again in front of the next.
fn walked(rules: Rules, data: &[u8], size: usize) -> Walked {
    let mut frames = Frames::new(rules);
    let (mut passed, mut end) = (0, 0);
    let mut fault = None;
    while end < data.len() && fault.is_none() && frames.closed().is_none() {
        end = (end + size).min(data.len());
        let (some, found) = frames.walk(&data[passed..end], Rest::Hold);
        passed += some;
        fault = found;
    }
    Walked {
        passed,
        fault,
        closed: frames.closed(),
    }
}

/// Frame after frame, read as plainly as can be; the last one may lack some of its payload.
fn are_frames(rules: Rules, mut data: &[u8]) {
    let mut in_message = false;
    while let [first, second, rest @ ..] = data {
        let (opcode, is_final) = (first & 15, first & 0x80 != 0);
        let wide = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let length = match wide {
            0 => u64::from(second & 0x7f),
            _ => rest[..wide]
                .iter()
                .fold(0, |sum, b| sum << 8 | u64::from(*b)),
        };
        let is_masked = second & 0x80 != 0;
        assert_eq!(is_masked, rules.of == Side::Client);
        assert!(length <= rules.largest);
        match opcode {
            0 => assert!(in_message),
            1 | 2 => assert!(!in_message),
            8..=10 => assert!(is_final && length <= 125),
            _ => panic!("opcode {opcode}"),
        }
        assert!(first & 0x30 == 0 && (first & 0x40 == 0 || rules.deflate));
        if opcode < 8 {
            in_message = !is_final;
        }
        let behind = wide + if is_masked { 4 } else { 0 };
        data = rest[behind..].get(length as usize..).unwrap_or_default();
        assert!(opcode != 8 || data.is_empty(), "it goes on behind a Close");
    }
    assert!(data.is_empty(), "half a header has passed");
}
