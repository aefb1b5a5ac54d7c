//! A Redis that is slow on one connection and not on the others: a claim that nobody waits for any more may be made all the
//! same, and is taken back behind that, not before.

use super::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

/// A command's time. A claim is good for half of it from the time on that Redis has said before.
const LIMIT: Duration = Duration::from_secs(1);

/// In this order: what is asked first takes so long that the claim behind it is given up at LIMIT, and comes after that.
const SLOW: [(&str, Duration); 2] = [
    ("return redis.call('TIME')", Duration::from_millis(800)),
    ("Takes a write for one run", Duration::from_millis(300)),
];

#[test]
fn a_claim_that_comes_after_it_was_given_up_does_not_keep_its_key() {
    let redis = Redis::start();
    let (addr, is_slow) = relay(redis.addr());
    let backend = Upstream::start();
    numbered(&backend);
    let conf = Conf::of(&[backend.url()])
        .route("auth", "token")
        .route("idempotency", "optional")
        .top("server", "{ threads: 4 }")
        .top(
            "redis",
            &format!(
                "{{ host: {}, port: {}, command_timeout: {}ms }}",
                addr.ip(),
                addr.port(),
                LIMIT.as_millis()
            ),
        );
    let gateway = conf.start();
    gateway.wait_metric("redis_up", |up| up == 1.0);
    let keys = || {
        redis
            .command(&["KEYS", "idem:*"])
            .split_whitespace()
            .count()
    };
    // What takes a claim back goes by any of four connections.
    for number in 0..3 {
        let key = format!("k{number}");
        is_slow.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            let refused = scope.spawn(|| pay("u1", &key).send_to(gateway.addr()).status);
            wait_until("the claim has come", || keys() == number + 1);
            assert_eq!(refused.join().unwrap(), 503);
        });
        is_slow.store(false, Ordering::SeqCst);
        wait_until("it is taken back", || keys() == number);
        let ran = pay("u1", &key).send_to(gateway.addr());
        assert_eq!(ran.status, 201, "{}", ran.text());
    }
    assert_eq!(backend.count(), 3);
}

/// Passes on to `target` what comes, and while it is slow waits before what [`SLOW`] names. Lasts as long as the test's process.
fn relay(target: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = is_slow.clone();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(target).unwrap();
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (back, slow) = (
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
                slow.clone(),
            );
            thread::spawn(move || pass(client, server, |piece| slow_for(&slow, piece)));
            thread::spawn(move || pass(back.0, back.1, |_| Duration::ZERO));
        }
    });
    (addr, is_slow)
}

fn slow_for(is_slow: &AtomicBool, piece: &[u8]) -> Duration {
    let has = |text: &str| piece.windows(text.len()).any(|w| w == text.as_bytes());
    let slow = SLOW.iter().find(|(text, _)| has(text));
    slow.filter(|_| is_slow.load(Ordering::SeqCst))
        .map_or(Duration::ZERO, |(_, time)| *time)
}

fn pass(mut from: TcpStream, mut to: TcpStream, pause: impl Fn(&[u8]) -> Duration) {
    let mut piece = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        thread::sleep(pause(&piece[..count]));
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
