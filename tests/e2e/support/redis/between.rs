//! Somebody between a gateway and its Redis, who holds back what the test says, and cuts connections.

use super::super::lock;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Lasts as long as the test's process; its connections end with their gateway or Redis.
pub struct Between {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hold: Option<Hold>,
    /// Pieces that wait, and how often what waited was let go.
    held: usize,
    released: usize,
    links: Vec<Link>,
}

#[derive(Clone)]
enum Hold {
    Commands(String),
    Answers(String),
}

struct Link {
    client: TcpStream,
    server: TcpStream,
    said: Vec<String>,
    /// Its answers wait for this release.
    until: usize,
}

impl Between {
    pub fn start(redis: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of 127.0.0.1 is free");
        let addr = listener.local_addr().expect("a listener has an address");
        let shared = Arc::<Shared>::default();
        let all = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                all.join(client, redis);
            }
        });
        Self { addr, shared }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on a command that has this in it waits, and all that comes behind it on its connection.
    pub fn hold_commands(&self, text: &str) {
        lock(&self.shared.state).hold = Some(Hold::Commands(text.to_owned()));
    }

    /// From now on the answer to a command that has this in it waits: Redis has obeyed.
    pub fn hold_answers(&self, text: &str) {
        lock(&self.shared.state).hold = Some(Hold::Answers(text.to_owned()));
    }

    /// What waits goes on. What comes later waits again.
    pub fn release(&self) {
        lock(&self.shared.state).released += 1;
        self.shared.changed.notify_all();
    }

    /// What waits goes on, and nothing waits any more.
    pub fn release_all(&self) {
        lock(&self.shared.state).hold = None;
        self.release();
    }

    /// How many wait now.
    pub fn held(&self) -> usize {
        lock(&self.shared.state).held
    }

    /// How many commands have had this in them.
    pub fn said(&self, text: &str) -> usize {
        let state = lock(&self.shared.state);
        let said = state.links.iter().flat_map(|link| &link.said);
        said.filter(|said| said.contains(text)).count()
    }

    /// Cuts the connections on which this was said.
    pub fn cut(&self, text: &str) {
        for link in &lock(&self.shared.state).links {
            if link.said.iter().any(|said| said.contains(text)) {
                let _ = link.client.shutdown(Shutdown::Both); // it may have ended
                let _ = link.server.shutdown(Shutdown::Both);
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    fn join(self: &Arc<Self>, client: TcpStream, redis: SocketAddr) {
        let Ok(server) = TcpStream::connect(redis) else {
            return; // it is away
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor is left");
        let mut state = lock(&self.state);
        let number = state.links.len();
        state.links.push(Link {
            client: clone(&client),
            server: clone(&server),
            said: Vec::new(),
            until: 0,
        });
        drop(state);
        let (back, forth) = (
            (clone(&server), clone(&client), Arc::clone(self)),
            (client, server, Arc::clone(self)),
        );
        thread::spawn(move || {
            let (from, to, all) = forth;
            pass(from, to, |piece| all.hear(number, piece));
        });
        thread::spawn(move || {
            let (from, to, all) = back;
            pass(from, to, |_| all.answer(number));
        });
    }

    fn hear(&self, link: usize, piece: &[u8]) {
        let text = String::from_utf8_lossy(piece).into_owned();
        let mut state = lock(&self.state);
        let until = state.released + 1;
        let hold = state.hold.clone();
        match hold {
            Some(Hold::Commands(held)) if text.contains(&held) => {
                state.links[link].said.push(text);
                self.wait(state, until);
            }
            Some(Hold::Answers(held)) if text.contains(&held) => {
                state.links[link].said.push(text);
                state.links[link].until = until;
            }
            _ => state.links[link].said.push(text),
        }
    }

    fn answer(&self, link: usize) {
        let state = lock(&self.state);
        let until = state.links[link].until;
        self.wait(state, until);
    }

    fn wait(&self, mut state: std::sync::MutexGuard<'_, State>, until: usize) {
        if state.released >= until {
            return;
        }
        state.held += 1;
        while state.released < until {
            state = self.changed.wait(state).expect("no thread here panics");
        }
        state.held -= 1;
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn(&[u8])) {
    let mut piece = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        before(&piece[..count]);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
