//! Does the gateway keep to RFC 9113 and RFC 7541? One table: what is sent, and what must come of it. It follows the two
//! RFCs section by section; docs/decisions/0017-http2.md says why there is a table of our own.

use crate::support::http2::raw::*;
use crate::support::prelude::*;

/// What must come of a case.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// The connection ends: a GOAWAY with one of these errors, or, as RFC 9113, section 5.4.1, allows, without a word.
    Ends(&'static [u32]),
    /// The stream is reset with one of these errors; to end the connection for it is allowed (section 5.4.2).
    Resets(u32, &'static [u32]),
    /// The request is refused with a 4xx or the stream reset with a PROTOCOL_ERROR (section 8.1.1), and the connection goes on.
    Malformed(u32),
    /// What h2 cannot even decode as a field: it ends the connection with a PROTOCOL_ERROR, where section 8.1.1 would have it
    /// reset the stream.
    Undecodable,
    /// The stream is answered with this status.
    Answers(u32, u16),
    /// A PING with these octets is acknowledged.
    Pongs(&'static [u8]),
    /// Our SETTINGS are acknowledged (once more than at the beginning).
    Acknowledges,
    /// Nothing comes of it: the connection goes on.
    Nothing,
}

use Expect::*;

/// A name with its section, what is sent after the exchange of SETTINGS, and what comes of it.
type Case = (&'static str, Vec<Frame>, Expect);

const OPEN: u8 = END_HEADERS;
const WHOLE: u8 = END_HEADERS | END_STREAM;

/// A whole request.
fn request(stream: u32) -> Frame {
    headers(stream, WHOLE, &get("/s/x"))
}

/// The head of one whose body follows.
fn open(stream: u32) -> Frame {
    headers(stream, OPEN, &post("/s/x"))
}

fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Frame {
    Frame::new(kind, flags, stream, payload)
}

fn number(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// A request with other fields.
fn with(fields: &[(&str, &str)]) -> Vec<Frame> {
    vec![headers(1, WHOLE, fields)]
}

fn and(field: (&'static str, &'static str)) -> Vec<Frame> {
    with(&[get("/s/x"), vec![field]].concat())
}

/// One whose block is written octet by octet.
fn raw_block(block: Vec<u8>) -> Vec<Frame> {
    vec![frame(HEADERS, WHOLE, 1, block)]
}

fn good_block(more: &[u8]) -> Vec<u8> {
    [&block(&get("/s/x"))[..], more].concat()
}

#[rustfmt::skip]
fn framing() -> Vec<Case> {
    const FRAME_SIZE: &[u32] = &[FRAME_SIZE_ERROR];
    const PROTOCOL: &[u32] = &[PROTOCOL_ERROR];
    vec![
        ("4.1 an unknown frame is ignored", vec![frame(0x16, 0, 0, b"12345678"), ping()], Pongs(b"octets!!")),
        ("4.1 an unknown frame on a stream is ignored", vec![open(1), frame(0x16, 0, 1, b"1"), data_end(1)], Answers(1, 200)),
        ("4.1 undefined flags are ignored", vec![frame(PING, 0x16, 0, b"octets!!")], Pongs(b"octets!!")),
        ("4.1 the reserved bit of a stream is ignored", vec![frame(PING, 0, 0x8000_0000, b"octets!!")], Pongs(b"octets!!")),
        ("4.2 DATA of 2^14 octets is taken", vec![open(1), frame(DATA, END_STREAM, 1, vec![b'x'; 16384])], Answers(1, 200)),
        ("4.2 DATA larger than SETTINGS_MAX_FRAME_SIZE", vec![open(1), frame(DATA, END_STREAM, 1, vec![b'x'; 16385])], Resets(1, FRAME_SIZE)),
        ("4.2 HEADERS larger than SETTINGS_MAX_FRAME_SIZE", vec![frame(HEADERS, WHOLE, 1, good_block(&vec![0; 16384]))], Ends(FRAME_SIZE)),
        ("4.2 SETTINGS larger than SETTINGS_MAX_FRAME_SIZE", vec![frame(SETTINGS, 0, 0, vec![0; 6 * 2731])], Ends(FRAME_SIZE)),
        ("4.2 an unknown frame larger than SETTINGS_MAX_FRAME_SIZE", vec![frame(0x16, 0, 0, vec![0; 16385])], Ends(FRAME_SIZE)),
        ("4.3 a block that cannot be decompressed", raw_block(b"\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()), Ends(&[COMPRESSION_ERROR])),
        ("4.3 PRIORITY within a header block", vec![frame(HEADERS, END_STREAM, 1, good_block(b"")), frame(PRIORITY, 0, 1, [0, 0, 0, 3, 1])], Ends(PROTOCOL)),
        ("4.3 HEADERS of another stream within a header block", vec![frame(HEADERS, END_STREAM, 1, good_block(b"")), request(3)], Ends(PROTOCOL)),
        ("4.3 an unknown frame within a header block", vec![frame(HEADERS, END_STREAM, 1, good_block(b"")), frame(0x16, 0, 0, b"1")], Ends(PROTOCOL)),
        ("4.3 DATA within a header block", vec![frame(HEADERS, 0, 1, good_block(b"")), frame(DATA, END_STREAM, 1, b"x")], Ends(PROTOCOL)),
        ("4.3 a block in four frames", in_four(), Answers(1, 200)),
    ]
}

fn ping() -> Frame {
    frame(PING, 0, 0, b"octets!!")
}

fn data_end(stream: u32) -> Frame {
    frame(DATA, END_STREAM, stream, b"x")
}

fn in_four() -> Vec<Frame> {
    let whole = good_block(b"");
    let (a, rest) = whole.split_at(1);
    let (b, c) = rest.split_at(20);
    vec![
        frame(HEADERS, END_STREAM, 1, a),
        frame(CONTINUATION, 0, 1, b),
        frame(CONTINUATION, 0, 1, []),
        frame(CONTINUATION, END_HEADERS, 1, c),
    ]
}

#[rustfmt::skip]
fn streams() -> Vec<Case> {
    const PROTOCOL: &[u32] = &[PROTOCOL_ERROR];
    const CLOSED: &[u32] = &[STREAM_CLOSED];
    const CLOSED_OR_PROTOCOL: &[u32] = &[STREAM_CLOSED, PROTOCOL_ERROR];
    let reset = |stream| frame(RST_STREAM, 0, stream, number(CANCEL));
    let window = |stream| frame(WINDOW_UPDATE, 0, stream, number(100));
    vec![
        ("5.1 idle: DATA", vec![frame(DATA, END_STREAM, 1, b"x")], Ends(PROTOCOL)),
        ("5.1 idle: RST_STREAM", vec![reset(1)], Ends(PROTOCOL)),
        ("5.1 idle: WINDOW_UPDATE", vec![window(1)], Ends(PROTOCOL)),
        ("5.1 idle: CONTINUATION", vec![frame(CONTINUATION, END_HEADERS, 1, good_block(b""))], Ends(PROTOCOL)),
        ("5.1 idle: PRIORITY is allowed", vec![frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1]), request(1)], Answers(1, 200)),
        ("5.1 half-closed (remote): DATA", vec![request(1), frame(DATA, END_STREAM, 1, b"x")], Resets(1, CLOSED)),
        ("5.1 half-closed (remote): HEADERS", vec![request(1), headers(1, WHOLE, &[("x", "y")])], Resets(1, CLOSED)),
        ("5.1 half-closed (remote): CONTINUATION", vec![request(1), frame(CONTINUATION, END_HEADERS, 1, b"")], Ends(CLOSED_OR_PROTOCOL)),
        ("5.1 half-closed (remote): WINDOW_UPDATE is allowed", vec![request(1), window(1)], Answers(1, 200)),
        ("5.1 half-closed (remote): PRIORITY is allowed", vec![request(1), frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1])], Answers(1, 200)),
        ("5.1 closed by RST_STREAM: DATA", vec![open(1), reset(1), frame(DATA, END_STREAM, 1, b"x")], Resets(1, CLOSED)),
        ("5.1 closed by RST_STREAM: HEADERS", vec![open(1), reset(1), headers(1, WHOLE, &get("/s/x"))], Resets(1, CLOSED_OR_PROTOCOL)),
        ("5.1 closed by RST_STREAM: CONTINUATION", vec![open(1), reset(1), frame(CONTINUATION, END_HEADERS, 1, b"")], Ends(CLOSED_OR_PROTOCOL)),
        ("5.1 closed by RST_STREAM: WINDOW_UPDATE is allowed", vec![open(1), reset(1), window(1), ping()], Pongs(b"octets!!")),
        ("5.1 closed by RST_STREAM: RST_STREAM is allowed", vec![open(1), reset(1), reset(1), ping()], Pongs(b"octets!!")),
        ("5.1 closed by RST_STREAM: PRIORITY is allowed", vec![open(1), reset(1), frame(PRIORITY, 0, 1, [0, 0, 0, 0, 1]), ping()], Pongs(b"octets!!")),
        ("5.1.1 a stream of an even number", vec![request(2)], Ends(PROTOCOL)),
        ("5.1.1 a stream of a lower number than the last", vec![request(5), request(3)], Ends(PROTOCOL)),
        ("5.1.1 HEADERS on stream 0", vec![request(0)], Ends(PROTOCOL)),
        ("5.3.1 HEADERS that depend on themselves", vec![prioritized(1)], Resets(1, PROTOCOL)),
        ("5.3.1 PRIORITY that depends on itself", vec![frame(PRIORITY, 0, 1, [0, 0, 0, 1, 1])], Resets(1, PROTOCOL)),
        ("5.3 HEADERS with a priority", vec![prioritized(3)], Answers(1, 200)),
        ("5.5 an unknown setting is ignored", vec![frame(SETTINGS, 0, 0, setting(0xff, 1))], Acknowledges),
    ]
}

/// A request on stream 1 that depends on this one.
fn prioritized(on: u32) -> Frame {
    let payload = [&number(on)[..], &[255], &good_block(b"")].concat();
    frame(HEADERS, WHOLE | PRIORITY_FLAG, 1, payload)
}

fn padded(kind: u8, flags: u8, pad: u8, payload: &[u8], padding: usize) -> Frame {
    let payload = [&[pad][..], payload, &vec![0; padding]].concat();
    frame(kind, flags | PADDED, 1, payload)
}

#[rustfmt::skip]
fn frames() -> Vec<Case> {
    const PROTOCOL: &[u32] = &[PROTOCOL_ERROR];
    const FRAME_SIZE: &[u32] = &[FRAME_SIZE_ERROR];
    const FLOW: &[u32] = &[FLOW_CONTROL_ERROR];
    let most = number(0x7fff_ffff);
    vec![
        ("6.1 DATA on stream 0", vec![frame(DATA, END_STREAM, 0, b"x")], Ends(PROTOCOL)),
        ("6.1 padded DATA", vec![open(1), padded(DATA, END_STREAM, 6, b"x", 6)], Answers(1, 200)),
        ("6.1 DATA with more padding than payload", vec![open(1), padded(DATA, END_STREAM, 200, b"x", 6)], Ends(PROTOCOL)),
        ("6.1 padded DATA without a length", vec![open(1), frame(DATA, PADDED | END_STREAM, 1, [])], Ends(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR])),
        ("6.2 padded HEADERS", vec![padded(HEADERS, WHOLE, 6, &good_block(b""), 6)], Answers(1, 200)),
        ("6.2 HEADERS with more padding than payload", vec![padded(HEADERS, WHOLE, 255, &block(&get("/")), 0)], Ends(PROTOCOL)),
        ("6.2 HEADERS of a priority that is cut off", vec![frame(HEADERS, WHOLE | PRIORITY_FLAG, 1, [0, 0])], Ends(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR])),
        ("6.3 PRIORITY on stream 0", vec![frame(PRIORITY, 0, 0, [0, 0, 0, 1, 1])], Ends(PROTOCOL)),
        ("6.3 PRIORITY of four octets", vec![frame(PRIORITY, 0, 1, [0, 0, 0, 3])], Resets(1, FRAME_SIZE)),
        ("6.4 RST_STREAM on stream 0", vec![frame(RST_STREAM, 0, 0, number(CANCEL))], Ends(PROTOCOL)),
        ("6.4 RST_STREAM of three octets", vec![open(1), frame(RST_STREAM, 0, 1, [0, 0, 0])], Ends(FRAME_SIZE)),
        ("6.4 RST_STREAM with an unknown error", vec![open(1), frame(RST_STREAM, 0, 1, number(0xff)), ping()], Pongs(b"octets!!")),
        ("6.5 SETTINGS are acknowledged", vec![frame(SETTINGS, 0, 0, setting(3, 100))], Acknowledges),
        ("6.5 SETTINGS of ACK with a payload", vec![frame(SETTINGS, ACK, 0, setting(3, 100))], Ends(FRAME_SIZE)),
        ("6.5 SETTINGS on a stream", vec![frame(SETTINGS, 0, 1, setting(3, 100))], Ends(PROTOCOL)),
        ("6.5 SETTINGS of five octets", vec![frame(SETTINGS, 0, 0, [0, 3, 0, 0, 0])], Ends(FRAME_SIZE)),
        ("6.5.2 ENABLE_PUSH of 2", vec![frame(SETTINGS, 0, 0, setting(2, 2))], Ends(PROTOCOL)),
        ("6.5.2 INITIAL_WINDOW_SIZE over 2^31-1", vec![frame(SETTINGS, 0, 0, setting(4, 0x8000_0000))], Ends(FLOW)),
        ("6.5.2 MAX_FRAME_SIZE under 2^14", vec![frame(SETTINGS, 0, 0, setting(5, 16383))], Ends(PROTOCOL)),
        ("6.5.2 MAX_FRAME_SIZE over 2^24-1", vec![frame(SETTINGS, 0, 0, setting(5, 1 << 24))], Ends(PROTOCOL)),
        ("6.5.2 HEADER_TABLE_SIZE of 0", vec![frame(SETTINGS, 0, 0, setting(1, 0)), request(1)], Answers(1, 200)),
        ("6.5.2 HEADER_TABLE_SIZE as large as can be", vec![frame(SETTINGS, 0, 0, setting(1, u32::MAX)), request(1)], Answers(1, 200)),
        ("6.5.3 the last of equal settings counts", vec![frame(SETTINGS, 0, 0, [setting(4, 100), setting(4, 1)].concat()), request(1)], Answers(1, 200)),
        ("6.6 PUSH_PROMISE from a client", vec![open(1), frame(PUSH_PROMISE, END_HEADERS, 1, [&number(2)[..], &good_block(b"")].concat())], Ends(PROTOCOL)),
        ("6.7 PING is answered", vec![ping()], Pongs(b"octets!!")),
        ("6.7 an unsolicited PING of ACK is ignored", vec![frame(PING, ACK, 0, b"invalid!"), ping()], Pongs(b"octets!!")),
        ("6.7 PING on a stream", vec![frame(PING, 0, 1, b"octets!!")], Ends(PROTOCOL)),
        ("6.7 PING of six octets", vec![frame(PING, 0, 0, b"octets")], Ends(FRAME_SIZE)),
        ("6.8 GOAWAY on a stream", vec![frame(GOAWAY, 0, 1, [0; 8])], Ends(PROTOCOL)),
        ("6.8 GOAWAY of four octets", vec![frame(GOAWAY, 0, 0, [0; 4])], Ends(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR])),
        ("6.9 WINDOW_UPDATE of 0 on the connection", vec![frame(WINDOW_UPDATE, 0, 0, number(0))], Ends(PROTOCOL)),
        ("6.9 WINDOW_UPDATE of 0 on a stream", vec![open(1), frame(WINDOW_UPDATE, 0, 1, number(0))], Resets(1, PROTOCOL)),
        ("6.9 WINDOW_UPDATE of three octets", vec![frame(WINDOW_UPDATE, 0, 0, [0, 0, 1])], Ends(FRAME_SIZE)),
        ("6.9.1 the connection's window over 2^31-1", vec![frame(WINDOW_UPDATE, 0, 0, most), frame(WINDOW_UPDATE, 0, 0, most)], Ends(FLOW)),
        ("6.9.1 a stream's window over 2^31-1", vec![open(1), frame(WINDOW_UPDATE, 0, 1, most), frame(WINDOW_UPDATE, 0, 1, most)], Resets(1, FLOW)),
        ("6.9.1 more DATA than a stream's window", overflow(), Resets(1, FLOW)),
        ("6.9.2 a window may become negative", vec![frame(SETTINGS, 0, 0, setting(4, 3)), request(1), frame(SETTINGS, 0, 0, setting(4, 2)), frame(WINDOW_UPDATE, 0, 1, number(1000))], Answers(1, 200)),
        ("6.9.2 an INITIAL_WINDOW_SIZE that overflows a stream's window", vec![open(1), frame(WINDOW_UPDATE, 0, 1, number(0x7fff_0000)), frame(SETTINGS, 0, 0, setting(4, 0x7fff_ffff))], Ends(FLOW)),
        ("6.10 several CONTINUATIONs", in_four(), Answers(1, 200)),
        ("6.10 CONTINUATION after a complete block", vec![open(1), frame(CONTINUATION, END_HEADERS, 1, [])], Ends(PROTOCOL)),
        ("6.10 CONTINUATION on stream 0", vec![frame(HEADERS, END_STREAM, 1, good_block(b"")), frame(CONTINUATION, END_HEADERS, 0, [])], Ends(PROTOCOL)),
        ("6.10 CONTINUATION of another stream", vec![frame(HEADERS, END_STREAM, 1, good_block(b"")), frame(CONTINUATION, END_HEADERS, 3, [])], Ends(PROTOCOL)),
        ("6.10 CONTINUATION after DATA", vec![open(1), frame(DATA, 0, 1, b"x"), frame(CONTINUATION, END_HEADERS, 1, [])], Ends(PROTOCOL)),
        ("7 an unknown error in GOAWAY", vec![frame(GOAWAY, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0xff]), ping()], Nothing),
    ]
}

/// 64 KiB and more, of which nothing is taken: the body is not read before its length is judged.
fn overflow() -> Vec<Frame> {
    let body = frame(DATA, 0, 1, vec![b'x'; 16384]);
    let mut frames = vec![headers(1, OPEN, &post("/hang/x"))];
    frames.extend(std::iter::repeat_n(body, 80));
    frames
}

#[rustfmt::skip]
fn messages() -> Vec<Case> {
    let post_with = |length: &'static str, bodies: &[&[u8]]| -> Vec<Frame> {
        let head = [post("/s/x"), vec![("content-length", length)]].concat();
        let last = bodies.len() - 1;
        let body = |(i, body): (usize, &&[u8])| frame(DATA, if i == last { END_STREAM } else { 0 }, 1, body);
        std::iter::once(headers(1, OPEN, &head)).chain(bodies.iter().enumerate().map(body)).collect()
    };
    let g = || get("/s/x");
    vec![
        ("8.1 a request with a body", vec![open(1), data_end(1)], Answers(1, 200)),
        ("8.1 a request with trailers", vec![open(1), frame(DATA, 0, 1, b"x"), headers(1, WHOLE, &[("x-sum", "1")])], Answers(1, 200)),
        ("8.1 a second HEADERS that does not end the stream", vec![open(1), headers(1, OPEN, &[("x", "1")])], Resets(1, &[PROTOCOL_ERROR])),
        // Section 8.1 calls this malformed; h2 drops the pseudo-field, and we all trailers: no backend sees any of them.
        ("8.1 trailers with a pseudo-field", vec![open(1), frame(DATA, 0, 1, b"x"), headers(1, WHOLE, &[(":method", "GET")])], Answers(1, 200)),
        ("8.1.1 a content-length that is more than the DATA", post_with("2", &[b"x"]), Resets(1, &[PROTOCOL_ERROR])),
        ("8.1.1 a content-length that is less than the DATA", post_with("1", &[b"xy"]), Resets(1, &[PROTOCOL_ERROR])),
        ("8.1.1 a content-length that is less than several DATA", post_with("1", &[b"x", b"y"]), Resets(1, &[PROTOCOL_ERROR])),
        ("8.1.1 a content-length without DATA", and(("content-length", "1")), Resets(1, &[PROTOCOL_ERROR])),
        ("8.1.1 a content-length that is none", and(("content-length", "x")), Malformed(1)),
        ("8.2 a field name in upper case", and(("X-Test", "1")), Undecodable),
        ("8.2.1 a field name with a space", and(("x test", "1")), Undecodable),
        ("8.2.1 a field name with a colon in it", and(("x:test", "1")), Undecodable),
        ("8.2.1 an empty field name", and(("", "1")), Undecodable),
        ("8.2.1 a field name of other octets", and(("x-\u{e9}", "1")), Undecodable),
        ("8.2.1 a field name with a control", and(("x-\u{1}", "1")), Undecodable),
        ("8.2.1 a value with NUL", and(("x", "a\0b")), Undecodable),
        ("8.2.1 a value with CR", and(("x", "a\rb")), Undecodable),
        ("8.2.1 a value with LF", and(("x", "a\nb")), Undecodable),
        ("8.2.1 a value that begins with a space", and(("x", " a")), Malformed(1)),
        ("8.2.1 a value that ends with a tab", and(("x", "a\t")), Malformed(1)),
        ("8.2.2 connection", and(("connection", "keep-alive")), Malformed(1)),
        ("8.2.2 keep-alive", and(("keep-alive", "1")), Malformed(1)),
        ("8.2.2 proxy-connection", and(("proxy-connection", "x")), Malformed(1)),
        ("8.2.2 transfer-encoding", and(("transfer-encoding", "chunked")), Malformed(1)),
        ("8.2.2 upgrade", and(("upgrade", "h2c")), Malformed(1)),
        ("8.2.2 te other than trailers", and(("te", "trailers, deflate")), Malformed(1)),
        ("8.2.2 te: trailers", and(("te", "trailers")), Answers(1, 200)),
        ("8.3 an unknown pseudo-field", with(&[g(), vec![(":unknown", "x")]].concat()), Undecodable),
        ("8.3 a pseudo-field of responses", with(&[g(), vec![(":status", "200")]].concat()), Malformed(1)),
        ("8.3 a pseudo-field behind a field", with(&[&g()[..3], &[("x", "y")], &g()[3..]].concat()), Malformed(1)),
        ("8.3.1 an empty :path", with(&get("")), Malformed(1)),
        ("8.3.1 no :method", with(&g()[1..]), Malformed(1)),
        ("8.3.1 no :scheme", with(&[&g()[..1], &g()[2..]].concat()), Malformed(1)),
        ("8.3.1 no :path", with(&[&g()[..2], &g()[3..]].concat()), Malformed(1)),
        ("8.3.1 two :method", with(&[&g()[..1], &g()[..]].concat()), Malformed(1)),
        ("8.3.1 two :scheme", with(&[&g()[..2], &g()[1..]].concat()), Malformed(1)),
        ("8.3.1 two :path", with(&[&g()[..3], &g()[2..]].concat()), Malformed(1)),
        ("8.3.1 two :authority", with(&[&g()[..], &g()[3..]].concat()), Malformed(1)),
        ("8.3.1 an :authority with user information", with(&[&g()[..3], &[(":authority", "u@a")]].concat()), Malformed(1)),
        ("8.3.1 an :authority that Host contradicts", and(("host", "b")), Malformed(1)),
        ("8.3.1 Host in place of :authority", with(&[&g()[..3], &[("host", "a")]].concat()), Answers(1, 200)),
        ("8.3.1 a :path that is no path", with(&get("s/x")), Malformed(1)),
        ("8.3.1 a :path of another form", with(&get("http://a/s/x")), Malformed(1)),
        ("8.3.1 a :path with a space", with(&get("/s/ x")), Malformed(1)),
        ("8.3.1 a :path with a line end", with(&get("/s/x\r\nX: y")), Malformed(1)),
        ("8.3.1 a :method that is no token", with(&[&[(":method", "G T")], &g()[1..]].concat()), Undecodable),
        ("8.5 CONNECT with :path", with(&[&[(":method", "CONNECT")], &g()[1..]].concat()), Malformed(1)),
        ("8.4 a HEAD request", with(&[&[(":method", "HEAD")], &g()[1..]].concat()), Answers(1, 200)),
    ]
}

fn hpack() -> Vec<Case> {
    const COMPRESSION: &[u32] = &[COMPRESSION_ERROR];
    let literal = |first: u8, name: &[u8]| {
        let mut block = vec![first];
        string(&mut block, name);
        string(&mut block, b"1");
        block
    };
    let mut huffman = vec![0x00];
    string(&mut huffman, b"x-test");
    let with_huffman = |value: &[u8]| {
        let mut block = huffman.clone();
        integer(&mut block, 7, 0x80, value.len());
        block.extend_from_slice(value);
        raw_block(good_block(&block))
    };
    let mut long_integer = vec![0x00];
    integer(&mut long_integer, 7, 0, 1 << 40);
    let mut too_large = Vec::new();
    integer(&mut too_large, 5, 0x20, 4097);
    let mut size_behind = block(&get("/s/x"));
    size_behind.push(0x20);
    let evict = [&[0x20][..], &good_block(b"")].concat();
    vec![
        (
            "2.3.2 a field is indexed and named again",
            raw_block(good_block(
                &[literal(0x40, b"x-test"), vec![0x80 | 62]].concat(),
            )),
            Answers(1, 200),
        ),
        (
            "2.3.3 an index behind the tables",
            raw_block(good_block(&[0x80 | 70])),
            Ends(COMPRESSION),
        ),
        (
            "2.3.3 a name's index behind the tables",
            raw_block(good_block(&[0x40 | 0x3f, 60, 1, b'x'])),
            Ends(COMPRESSION),
        ),
        (
            "4.1 what is larger than the table empties it",
            raw_block(
                [
                    &[0x20][..],
                    &good_block(&literal(0x40, b"x-test")),
                    &[0x80 | 62],
                ]
                .concat(),
            ),
            Ends(COMPRESSION),
        ),
        (
            "4.2 a size update behind a field",
            raw_block(size_behind),
            Ends(COMPRESSION),
        ),
        (
            "4.2 a size update at the beginning",
            raw_block(evict),
            Answers(1, 200),
        ),
        (
            "4.2 two size updates at the beginning",
            raw_block([&[0x20, 0x3f, 0xe1, 0x1f][..], &good_block(b"")].concat()),
            Answers(1, 200),
        ),
        (
            "5.1 an integer that overflows",
            raw_block(good_block(&[
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
            ])),
            Ends(COMPRESSION),
        ),
        (
            "5.1 a string that is longer than its block",
            raw_block(good_block(&long_integer)),
            Ends(COMPRESSION),
        ),
        (
            "5.1 an integer that is cut off",
            raw_block(good_block(&[0xff, 0x80])),
            Ends(COMPRESSION),
        ),
        (
            "5.2 a Huffman-coded value",
            with_huffman(&[
                0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
            ]),
            Answers(1, 200),
        ),
        (
            "5.2 Huffman padding longer than seven bits",
            with_huffman(&[0x1f, 0xff]),
            Ends(COMPRESSION),
        ),
        (
            "5.2 Huffman padding of zeros",
            with_huffman(&[0x18]),
            Ends(COMPRESSION),
        ),
        (
            "5.2 a Huffman-coded EOS",
            with_huffman(&[0xff, 0xff, 0xff, 0xff]),
            Ends(COMPRESSION),
        ),
        (
            "6.1 index 0",
            raw_block(good_block(&[0x80])),
            Ends(COMPRESSION),
        ),
        (
            "6.1 a field of the static table",
            raw_block(good_block(&[0x80 | 16])),
            Answers(1, 200),
        ),
        (
            "6.2.1 a literal with incremental indexing",
            raw_block(good_block(&literal(0x40, b"x-test"))),
            Answers(1, 200),
        ),
        (
            "6.2.2 a literal without indexing",
            raw_block(good_block(&literal(0x00, b"x-test"))),
            Answers(1, 200),
        ),
        (
            "6.2.3 a literal that is never indexed",
            raw_block(good_block(&literal(0x10, b"x-test"))),
            Answers(1, 200),
        ),
        (
            "6.2 a literal whose name is of the static table",
            raw_block(good_block(&[0x0f, 0x04, 1, b'x'])),
            Answers(1, 200),
        ),
        (
            "6.3 a table size over SETTINGS_HEADER_TABLE_SIZE",
            raw_block([too_large, good_block(b"")].concat()),
            Ends(COMPRESSION),
        ),
    ]
}

/// Whether the case ends as it must; else what happened.
fn check(addr: SocketAddr, frames: &[Frame], expect: Expect) -> Result<(), String> {
    const LIMIT: Duration = Duration::from_secs(3);
    let mut raw = Raw::connect(addr);
    raw.frames(frames);
    let mut came = Vec::new();
    loop {
        let Some(frame) = raw.read(LIMIT) else {
            return match expect {
                Ends(_) | Resets(..) if raw.is_closed() => Ok(()),
                Nothing if !raw.is_closed() => Ok(()),
                // Its client has said that it goes.
                Nothing if frames.iter().any(|f| f.kind == GOAWAY) => Ok(()),
                _ => Err(format!("closed: {}; {came:?}", raw.is_closed())),
            };
        };
        let (kind, stream, error) = (frame.kind, frame.stream, frame.error());
        // A generic error may stand in place of any other (section 5.4).
        let is_of = |errors: &[u32]| {
            error.is_some_and(|error| errors.contains(&error) || error == PROTOCOL_ERROR)
        };
        let is_good = match expect {
            Ends(errors) => kind == GOAWAY && is_of(errors),
            Undecodable => kind == GOAWAY && is_of(&[PROTOCOL_ERROR]),
            Resets(_, errors) if kind == GOAWAY => is_of(errors),
            Resets(on, errors) => kind == RST_STREAM && stream == on && is_of(errors),
            Malformed(on) if stream == on && kind == RST_STREAM => {
                is_of(&[PROTOCOL_ERROR]) && raw.is_alive()
            }
            Malformed(on) if stream == on && kind == DATA => {
                let json: Value = serde_json::from_slice(&frame.payload).unwrap_or_default();
                (400..500).contains(&json["statusCode"].as_u64().unwrap_or(0)) && raw.is_alive()
            }
            Answers(on, status) => {
                kind == HEADERS && stream == on && frame.status() == Some(status)
            }
            Pongs(octets) => kind == PING && frame.flags == ACK && frame.payload == octets,
            Acknowledges => kind == SETTINGS && frame.flags == ACK,
            Malformed(_) | Nothing => false,
        };
        if is_good {
            return Ok(());
        }
        let is_wrong =
            kind == GOAWAY || (kind == RST_STREAM && !matches!(expect, Ends(_) | Undecodable));
        came.push(format!(
            "kind {kind} flags {} stream {stream} error {error:?}",
            frame.flags
        ));
        if is_wrong
            && !matches!(expect, Nothing)
            && !matches!((expect, kind), (Resets(..), RST_STREAM))
        {
            return Err(format!("{came:?}"));
        }
    }
}

#[track_caller]
fn all_hold(cases: Vec<Case>) {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()])
        .and_service("hang", &upstream.url(), "")
        .start();
    let mut failed = Vec::new();
    let count = cases.len();
    for (name, frames, expect) in cases {
        if let Err(what) = check(gateway.addr(), &frames, expect) {
            failed.push(format!("{name}: expected {expect:?}: {what}"));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {count} cases:\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert_eq!(Request::get("/s/well").send_to(gateway.addr()).status, 200);
}

#[test]
fn frames_are_read_as_rfc_9113_section_4_has_them() {
    all_hold(framing());
}

#[test]
fn streams_live_as_rfc_9113_section_5_has_it() {
    all_hold(streams());
}

#[test]
fn each_frame_is_what_rfc_9113_section_6_says() {
    all_hold(frames());
}

#[test]
fn messages_are_those_of_rfc_9113_section_8() {
    all_hold(messages());
}

#[test]
fn header_compression_is_that_of_rfc_7541() {
    all_hold(hpack());
}

#[test]
fn a_preface_that_is_none_begins_no_connection() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    // Section 3.4: the preface is followed by SETTINGS, and by nothing else.
    let mut raw = Raw::tcp(gateway.addr());
    raw.send(PREFACE);
    raw.frame(&ping());
    let error = raw.find(Duration::from_secs(3), |f| f.kind == GOAWAY);
    assert!(matches!(
        error.and_then(|f| f.error()),
        None | Some(PROTOCOL_ERROR)
    ));
    let mut raw = Raw::tcp(gateway.addr());
    raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx");
    assert!(raw.closes(Duration::from_secs(3)));
}
