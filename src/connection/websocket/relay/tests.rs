use std::task::Waker;

use super::*;
use crate::connection::{Cut, End};

/// Pingora's buffers are larger; but what is put in must fit wherever it is put.
#[test]
fn what_is_put_into_a_read_always_fits() {
    for room in [LEAST_ROOM - 1, LEAST_ROOM] {
        let mut relay = ended();
        let (near, _far) = tokio::io::duplex(1024);
        let mut stream: Stream = Box::new(near);
        let mut cx = Context::from_waker(Waker::noop());
        let mut space = vec![0; room];
        let mut buf = ReadBuf::new(&mut space);
        let read = relay.poll_read(&mut stream, &mut cx, &mut buf);
        match (room == LEAST_ROOM, read) {
            (true, Some(Poll::Ready(Ok(())))) => assert_eq!(buf.filled()[0], 0x88, "a Close"),
            (false, Some(Poll::Ready(Err(_)))) => assert!(buf.filled().is_empty()),
            (_, other) => panic!("{room}: {other:?}"),
        }
    }
}

/// A WebSocket whose process ends: the backend is told with the next read.
fn ended() -> Relay {
    let cut = Cut::new(Instant::now());
    cut.watch();
    cut.order(End::Draining);
    let relay = Relay::new(false);
    relay.link().open(Terms {
        deflate: false,
        max_frame: 1000,
        idle: Duration::from_secs(1),
        cut,
    });
    relay
}
