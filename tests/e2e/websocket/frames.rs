//! What frames may be, and what becomes of a connection with others.

use super::*;

#[test]
fn a_client_that_breaks_the_protocol_is_told_so_and_its_backend_never_sees_it() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat)
        .route("websocket", "{ max_frame: 1000B }")
        .start();
    let large = client_frame(0x82, &[0; 1001]);
    for (i, (what, bytes, code)) in [
        ("not masked", server_frame(0x81, b"hello"), 1002),
        (
            "RSV1 without an extension",
            client_frame(0xc1, b"hello"),
            1002,
        ),
        ("RSV2", client_frame(0xa1, b"hello"), 1002),
        (
            "an opcode of the future",
            client_frame(0x83, b"hello"),
            1002,
        ),
        ("a ping in pieces", client_frame(0x09, b"hello"), 1002),
        ("nothing to continue", client_frame(0x80, b"hello"), 1002),
        (
            "a length that is longer than need be",
            vec![0x81, 0xfe, 0, 5, 1, 2, 3, 4],
            1002,
        ),
        (
            "a length with its highest bit",
            vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0],
            1002,
        ),
        ("too large", large.clone(), 1009),
        (
            "announced as the largest of all",
            vec![0x82, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255],
            1009,
        ),
        (
            "plain HTTP",
            b"GET /s/admin HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            1002,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = open_raw(gateway.addr(), "/s/a");
        connection.send(&client_frame(0x82, b"before"));
        assert_eq!(read_frame(&mut connection), (0x82, b"before".to_vec()));
        connection.send(&bytes);
        assert_eq!(read_close(&mut connection), code, "{what}");
        connection.finish_sending();
        assert!(connection.is_closed(), "{what}");
        let visit = chat.wait_visit(i, |visit| visit.over);
        assert_eq!(visit.messages, [b"before"], "{what}");
        assert_eq!(visit.close, Some(1001), "{what}: its client is gone");
    }
    let mut connection = open_raw(gateway.addr(), "/s/a");
    connection.send(&large[..3]);
    assert!(connection.stays_open(), "nobody knows yet");
    connection.send(&large[3..4]);
    assert_eq!(
        read_close(&mut connection),
        1009,
        "it is enough that it is announced"
    );
    assert_eq!(chat.visits().len(), 12);
}

#[test]
fn a_backend_that_breaks_the_protocol_is_told_so_and_its_client_never_sees_it() {
    let backend = Upstream::start();
    let gateway = Conf::at(&[backend.addr()])
        .route("websocket", "{ max_frame: 1000B }")
        .start();
    for (what, bytes) in [
        ("masked", client_frame(0x81, b"hello")),
        ("RSV1", server_frame(0xc1, b"hello")),
        ("too large", server_frame(0x82, &[0; 1001])),
        (
            "HTTP",
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
    ] {
        let mut head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
        )
        .into_bytes();
        head.extend(server_frame(0x82, b"before"));
        head.extend(bytes);
        backend.set(move |_| Reply::raw(head.clone()).then_hang());
        let mut connection = open_raw(gateway.addr(), "/s/a");
        assert_eq!(
            read_frame(&mut connection),
            (0x82, b"before".to_vec()),
            "{what}"
        );
        assert_eq!(read_close(&mut connection), 1011, "{what}");
        connection.finish_sending();
        assert!(connection.is_closed(), "{what}");
    }
    wait_until("no connection is left", || backend.open_connections() == 0);
}

#[test]
fn frames_may_come_byte_by_byte_and_many_at_once() {
    let chat = Chat::start();
    let gateway = in_front_of(&chat).start();
    let mut connection = open_raw(gateway.addr(), "/s/a");
    let payload = noise(300);
    for byte in client_frame(0x82, &payload) {
        connection.send(&[byte]);
    }
    assert_eq!(read_frame(&mut connection), (0x82, payload));
    let many: Vec<u8> = (0..2000)
        .flat_map(|i: u32| client_frame(0x82, &i.to_be_bytes()))
        .collect();
    let sender = connection.send_meanwhile(many);
    for i in 0..2000u32 {
        assert_eq!(
            read_frame(&mut connection),
            (0x82, i.to_be_bytes().to_vec())
        );
    }
    sender.join().unwrap();
    // A message in pieces, with a ping between them.
    connection.send(&client_frame(0x02, b"one "));
    connection.send(&client_frame(0x89, b"?"));
    connection.send(&client_frame(0x80, b"two"));
    let mut frames = [read_frame(&mut connection), read_frame(&mut connection)];
    frames.sort();
    assert_eq!(frames, [(0x82, b"one two".to_vec()), (0x8a, b"?".to_vec())]);
}

#[test]
fn compressed_messages_pass_where_both_ends_agreed_on_them() {
    let echo = Upstream::start_with(|request| {
        let offered = request.header("Sec-WebSocket-Extensions").is_some();
        let extension = "\r\nSec-WebSocket-Extensions: permessage-deflate";
        Reply::raw(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {ACCEPT}{}\r\n\r\n",
            if offered { extension } else { "" }
        ))
        .then_hang()
    });
    let gateway = Conf::at(&[echo.addr()]).route("websocket", "{}").start();
    let compressed = [
        0xc1, 0x87, 0, 0, 0, 0, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00,
    ];
    let offers = handshake("/s/a").header("Sec-WebSocket-Extensions", "permessage-deflate");
    let mut connection = Client::to(gateway.addr()).connect();
    let answer = connection.request(&offers);
    assert_eq!(
        answer.header("Sec-WebSocket-Extensions"),
        Some("permessage-deflate")
    );
    connection.send(&compressed);
    assert!(connection.stays_open());
    let mut plain = open_raw(gateway.addr(), "/s/a");
    plain.send(&compressed);
    assert_eq!(read_close(&mut plain), 1002);
}

#[test]
fn a_close_whose_header_comes_in_two_pieces_is_the_end_as_any_other() {
    let backend = Upstream::start();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    );
    backend.set(move |_| {
        let pieces = [head.clone().into_bytes(), vec![0x88], vec![0]];
        Reply::paced(pieces, Duration::from_millis(100)).then_hang()
    });
    let gateway = Conf::at(&[backend.addr()])
        .route("websocket", "{}")
        .top("streams", "{ drain_grace: 0s }")
        .start();
    let mut connection = Client::to(gateway.addr()).connect();
    let answer = connection.request(&handshake("/s/a").header("X-Request-ID", "in-two"));
    assert_eq!(answer.status, 101);
    assert_eq!(read_frame(&mut connection), (0x88, Vec::new()));
    gateway.signal(15);
    assert_eq!(connection.read_to_end(), b"", "it was told already");
    let line = gateway.access_line("in-two");
    assert_eq!(line["closeCode"], 1005, "{line}");
    assert_eq!(line["responseBytes"], 2, "{line}");
}
