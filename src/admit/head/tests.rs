use super::*;

const LIMITS: HeadLimits = HeadLimits {
    head: 32 << 10,
    target: 8 << 10,
    fields: 100,
};

fn read(head: &str) -> Result<Progress, HeadFault> {
    HeadReader::default().read(head.as_bytes(), &LIMITS)
}

#[test]
fn a_plain_head_is_complete_to_its_last_byte() {
    let head = "GET /a?b=c HTTP/1.1\r\nHost: api.example:3000\r\nAccept: */*\r\n\r\n";
    assert_eq!(
        read(&format!("{head}body")),
        Ok(Progress::Complete(Head {
            len: head.len(),
            chunked: false,
            length: 0,
            upgrade: false,
            cut: None
        }))
    );
}

#[test]
fn a_head_may_arrive_byte_by_byte() {
    let head = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
    let mut reader = HeadReader::default();
    for end in 0..head.len() {
        assert_eq!(
            reader.read(&head[..end], &LIMITS),
            Ok(Progress::Partial),
            "{end}"
        );
    }
    assert!(matches!(
        reader.read(head, &LIMITS),
        Ok(Progress::Complete(Head { length: 2, .. }))
    ));
}

#[test]
fn an_absolute_target_is_cut_to_its_path() {
    let head = "GET http://a:1/p HTTP/1.1\r\nHost: A:1\r\n\r\n";
    assert_eq!(
        read(head),
        Ok(Progress::Complete(Head {
            len: head.len(),
            chunked: false,
            length: 0,
            upgrade: false,
            cut: Some(4..14)
        }))
    );
    assert!(matches!(
        read("GET http://b/p HTTP/1.1\r\nHost: a\r\n\r\n"),
        Err(Malformed(_))
    ));
}

#[test]
fn what_parsers_read_differently_is_refused() {
    for bad in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS */a HTTP/1.1\r\nHost: a\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:http\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "\u{16}\u{3}\u{1}",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert!(
            matches!(read(bad), Err(Malformed(_))),
            "{bad:?}: {:?}",
            read(bad)
        );
    }
}

#[test]
fn other_faults_have_their_own_answer() {
    assert_eq!(
        read("GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        Err(HeadFault::Version)
    );
    assert_eq!(
        read("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        Err(HeadFault::Connect)
    );
    assert_eq!(
        read("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n"),
        Err(HeadFault::Expectation)
    );
    assert_eq!(
        read(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(8 << 10))),
        Err(HeadFault::TargetTooLong)
    );
    assert_eq!(
        read(&format!("GET /{}", "a".repeat(9 << 10))),
        Err(HeadFault::TargetTooLong)
    );
    let many = "X: y\r\n".repeat(101);
    assert_eq!(
        read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")),
        Err(HeadFault::TooLarge)
    );
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(33 << 10));
    assert_eq!(read(&large), Err(HeadFault::TooLarge));
}

#[test]
fn http_1_0_may_go_without_host() {
    assert!(matches!(
        read("GET / HTTP/1.0\r\n\r\n"),
        Ok(Progress::Complete(_))
    ));
}
