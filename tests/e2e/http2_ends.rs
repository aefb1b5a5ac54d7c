//! How an HTTP/2 connection ends: not before its client has every octet of its answers, and not long after.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use h2::Reason;

use crate::support::http2::raw::*;
use crate::support::http2::{Http2, run, whole};
use crate::support::prelude::*;

const TERM: i32 = 15;

/// Three seconds for a client that takes its time, and little enough for the kernels to hold it meanwhile.
const SIZE: usize = 320 << 10;

/// A client that takes its time with one answer.
struct Slow(Raw);

impl Slow {
    /// Asks for it, and returns when the gateway has done all it can for it.
    fn ask(gateway: &Gateway) -> Self {
        let mut raw = Raw::connect_with(gateway.addr(), &setting(4, 0x7fff_ffff));
        raw.small_receive_buffer();
        let most = 0x7fff_0000_u32.to_be_bytes();
        raw.frame(&Frame::new(WINDOW_UPDATE, 0, 0, most));
        let fields = [get("/s/x"), vec![("x-request-id", "slow")]].concat();
        raw.frame(&headers(1, END_STREAM | END_HEADERS, &fields));
        gateway.access_line("slow");
        Self(raw)
    }

    /// Takes it, piece by piece. Returns how much came, if that was all.
    fn take(mut self) -> Option<usize> {
        let mut taken = 0;
        loop {
            let frame = self.0.find(Duration::from_secs(5), |f| f.kind == DATA)?;
            taken += frame.payload.len();
            if frame.flags & END_STREAM != 0 {
                return Some(taken);
            }
            // Clients say so whenever they have taken something.
            let len = (frame.payload.len() as u32).max(1).to_be_bytes();
            self.0.frame(&Frame::new(WINDOW_UPDATE, 0, 0, len));
            std::thread::sleep(Duration::from_millis(150)); // it is slow
        }
    }
}

fn start(server: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::start_with(|_| Reply::status(200).body(noise(SIZE)));
    let gateway = Conf::of(&[upstream.url()]).top("server", server).start();
    (upstream, gateway)
}

#[test]
fn a_slow_reader_gets_its_last_answer_whole_across_a_drain() {
    let (_upstream, gateway) = start("{}");
    let slow = Slow::ask(&gateway);
    let since = Instant::now();
    gateway.signal(TERM);
    assert_eq!(slow.take(), Some(SIZE));
    let took = since.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?} is not slow");
    assert_eq!(gateway.wait_exit(Duration::from_secs(3)), Some(0));
}

#[test]
fn a_slow_reader_gets_its_last_answer_whole_beyond_the_idle_time() {
    let (_upstream, gateway) = start("{ keepalive_timeout: 300ms }");
    let slow = Slow::ask(&gateway);
    assert_eq!(slow.take(), Some(SIZE));
    gateway.wait_metric("downstream_connections", |open| open == 0.0);
}

#[test]
fn who_takes_nothing_does_not_hold_up_a_drain_for_longer_than_a_client_may_take() {
    let (_upstream, gateway) = start("{ client_timeout: 1s }");
    let _slow = Slow::ask(&gateway);
    let since = Instant::now();
    gateway.signal(TERM);
    assert_eq!(gateway.wait_exit(Duration::from_secs(8)), Some(0));
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// A client whose streams have no window, so that an answer lies ready for it, and that asks for the answers to PINGs, more
/// than the least rate comes to. How long until the connection ends.
fn ping_on(gateway: &Gateway, begun: impl FnOnce()) -> Option<Duration> {
    let mut raw = Raw::connect_with(gateway.addr(), &setting(4, 0));
    let bad = [get("/s/x"), vec![("host", "b")]].concat();
    raw.frame(&headers(1, END_STREAM | END_HEADERS, &bad));
    raw.wait("a refusal", |f| f.kind == HEADERS && f.stream == 1);
    begun();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(10) {
        raw.frame(&Frame::new(PING, 0, 0, b"01234567"));
        while raw.read(Duration::from_millis(7)).is_some() {}
        if raw.is_closed() {
            return Some(since.elapsed());
        }
    }
    None
}

#[test]
fn who_asks_for_pings_and_takes_no_answer_is_not_waited_for() {
    for rate in ["1KiB", "0B"] {
        let server =
            format!("{{ client_timeout: 1s, keepalive_timeout: 300ms, min_body_rate: {rate} }}");
        let (_upstream, gateway) = start(&server);
        let took = ping_on(&gateway, || {});
        assert!(
            took.is_some_and(|took| took < Duration::from_secs(6)),
            "{took:?}"
        );
    }
    let (_upstream, gateway) = start("{ client_timeout: 1s }");
    let took = ping_on(&gateway, || gateway.signal(TERM));
    assert!(
        took.is_some_and(|took| took < Duration::from_secs(6)),
        "{took:?}"
    );
    assert_eq!(gateway.wait_exit(Duration::from_secs(5)), Some(0));
}

#[test]
fn a_request_that_was_queued_behind_the_answer_to_our_ping_is_served() {
    let upstream = Upstream::start();
    let gateway = Conf::of(&[upstream.url()]).start();
    let mut raw = Raw::connect(gateway.addr());
    raw.frame(&headers(1, END_STREAM | END_HEADERS, &get("/s/x")));
    raw.wait("an answer", |f| f.kind == HEADERS && f.stream == 1);
    gateway.signal(TERM);
    raw.wait("a GOAWAY", |f| f.kind == GOAWAY);
    let ping = raw.wait("a PING", |f| f.kind == PING && f.flags == 0);
    raw.frames(&[
        Frame::new(PING, ACK, 0, &ping.payload),
        headers(3, END_STREAM | END_HEADERS, &get("/s/queued")),
    ]);
    let answer = raw.wait("an answer", |f| f.kind == HEADERS && f.stream == 3);
    assert_eq!(answer.status(), Some(200));
    let last = raw.wait("the last GOAWAY", |f| f.kind == GOAWAY);
    assert_eq!(last.payload[..4], [0, 0, 0, 3]);
    assert!(raw.closes(Duration::from_secs(2)));
}

#[test]
fn a_connection_goes_by_the_configuration_that_is_in_force_now() {
    let upstream = Upstream::start();
    let conf = |server: &str| Conf::of(&[upstream.url()]).top("server", server);
    let gateway = conf("{ keepalive_timeout: 60s }").start();
    run(async {
        let (client, connection) = Http2::connect(gateway.addr()).await;
        assert_eq!(client.get("/s/x").await.status, 200);
        gateway.rewrite_conf(&conf("{ keepalive_timeout: 300ms }").yaml());
        let told = Request::post("/reload").send_to(gateway.private_addr());
        assert_eq!(told.status, 200, "{}", told.text());
        assert_eq!(client.get("/s/x").await.status, 200);
        let ended = tokio::time::timeout(Duration::from_secs(5), connection).await;
        assert!(ended.is_ok(), "it has the idle time of its beginning");
    });
}

/// What came of one client's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    answered: usize,
    /// The connection took no more, and said so before they were sent.
    never_sent: usize,
    /// They were sent, and we said that nothing was done with them.
    unprocessed: usize,
}

/// One request after the other, on another connection where one has ended: as RFC 9113, section 8.7, allows it. What was sent
/// and may or may not have been processed is a failure.
async fn keep_asking(addr: SocketAddr, is_over: &AtomicBool, total: &AtomicUsize) -> Asked {
    let mut asked = Asked::default();
    let (mut client, _) = Http2::connect(addr).await;
    while !is_over.load(SeqCst) {
        let request = client.request("GET", "/s/x").body(()).unwrap();
        let sent = match client.send.clone().ready().await {
            Ok(mut send) => send.send_request(request, true),
            Err(e) => Err(e),
        };
        let Ok((answer, _)) = sent else {
            asked.never_sent += 1;
            client = Http2::connect(addr).await.0;
            continue;
        };
        let answer = async { whole(answer.await?).await };
        match answer.await {
            Ok(answer) => {
                assert_eq!(
                    (answer.status, &answer.body[..]),
                    (200, &br#"{"ok":true}"#[..])
                );
                asked.answered += 1;
                total.fetch_add(1, SeqCst);
            }
            Err(e) if e.is_go_away() || e.reason() == Some(Reason::REFUSED_STREAM) => {
                asked.unprocessed += 1;
                client = Http2::connect(addr).await.0;
            }
            Err(e) => panic!("nobody knows whether it was processed: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    asked
}

#[test]
fn an_upgrade_costs_clients_that_listen_to_goaways_no_request() {
    const CLIENTS: usize = 16;
    let _alone = alone();
    let upgrades = std::env::var("E2E_UPGRADES").map_or(3, |n| n.parse().unwrap());
    let (upstream, runtime) = (Upstream::start(), Runtime::new());
    let gateway = runtime.of(Conf::of(&[upstream.url()]).gateway()).start();
    wait_until("it can be asked", || runtime.control().exists());
    let (is_over, total) = (AtomicBool::new(false), AtomicUsize::new(0));
    let asked = std::thread::scope(|scope| {
        let clients = scope.spawn(|| {
            run(async {
                let clients = (0..CLIENTS).map(|_| keep_asking(gateway.addr(), &is_over, &total));
                futures::future::join_all(clients).await
            })
        });
        for upgrade in 1..=upgrades {
            let before = total.load(SeqCst);
            wait_until("there is load", || total.load(SeqCst) > before + 200);
            assert_eq!(runtime.upgrade().code, 0);
            gateway.successor(upgrade);
        }
        let before = total.load(SeqCst);
        wait_until("there is load", || total.load(SeqCst) > before + 200);
        is_over.store(true, SeqCst);
        clients.join().unwrap()
    });
    println!("{upgrades} upgrades: {asked:?}");
    assert!(
        asked.iter().all(|asked| asked.unprocessed == 0),
        "{asked:?}"
    );
    assert!(
        asked.iter().all(|asked| asked.never_sent >= upgrades),
        "{asked:?}"
    );
    let answered: usize = asked.iter().map(|asked| asked.answered).sum();
    assert_eq!(upstream.count(), answered, "each was processed once");
}
