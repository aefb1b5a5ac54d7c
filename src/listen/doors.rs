//! The sockets that clients come in by: whether they are let in, and to whom the sockets are handed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The doors of a process.
pub struct Doors {
    state: watch::Sender<State>,
    /// Sockets that another process will give, and that nobody has claimed yet.
    offered: Mutex<Vec<Key>>,
    given: Mutex<Vec<(Key, OwnedFd)>>,
    listening: Mutex<Vec<Listening>>,
    count: watch::Sender<Count>,
}

/// How one is found again: by what it is called and where the configuration wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub wanted: String,
    /// Where it is: another one for port 0.
    pub address: String,
}

struct Listening {
    key: Key,
    /// In the order of the configuration.
    number: usize,
    /// One for each of its queues.
    sockets: Vec<Weak<dyn AsFd + Send + Sync>>,
}

/// What the doors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing listens yet: another process has the sockets.
    Waiting,
    Open,
    /// Who comes waits in the sockets' queues.
    Paused,
    /// Another process has the sockets, and lets them in.
    HandedOver,
}

/// Addresses that are to be listened on, and that are.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    expected: usize,
    listening: usize,
}

impl Doors {
    /// `offered`: by the process that this one is to replace.
    pub fn new(offered: Option<Vec<Key>>) -> Self {
        let state = match offered {
            Some(_) => State::Waiting,
            None => State::Open,
        };
        Self {
            state: watch::Sender::new(state),
            offered: Mutex::new(offered.unwrap_or_default()),
            given: Mutex::default(),
            listening: Mutex::default(),
            count: watch::Sender::new(Count::default()),
        }
    }

    /// What is done, and what will be.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Waits until nobody accepts any more: at the end of the process.
    pub async fn closed(&self) {
        self.state.closed().await;
    }

    pub fn open(&self) {
        self.state.send_replace(State::Open);
    }

    pub fn pause(&self) {
        self.state.send_replace(State::Paused);
    }

    /// After a pause.
    pub fn resume(&self) {
        let is_paused = |state: &mut State| *state == State::Paused;
        self.state.send_if_modified(|state| {
            let paused = is_paused(state);
            if paused {
                *state = State::Open;
            }
            paused
        });
    }

    /// Another process has the sockets, after a pause.
    pub fn hand_over(&self) {
        self.state.send_replace(State::HandedOver);
    }

    /// One more address will be listened on. Gives its number.
    pub fn expect_one(&self) -> usize {
        let mut number = 0;
        self.count.send_modify(|count| {
            number = count.expected;
            count.expected += 1;
        });
        number
    }

    /// The socket that will be given for this, if one will. It is nobody else's then: of several that are wanted at any
    /// port each finds its own, in the order of the configuration.
    pub fn claim(&self, name: Option<&str>, wanted: &str) -> Option<Key> {
        let same = |key: &Key| {
            let is_called = name.map_or(key.name == key.address, |name| key.name == name);
            is_called && key.wanted == wanted
        };
        // The same place under another name.
        let there = |key: &Key| key.address == wanted;
        let mut offered = self.offered.lock();
        let place = offered.iter().position(same);
        let place = place.or_else(|| offered.iter().position(there))?;
        Some(offered.remove(place))
    }

    /// Another process' sockets.
    pub fn give(&self, sockets: impl Iterator<Item = (Key, OwnedFd)>) {
        self.given.lock().extend(sockets);
    }

    /// Those that were given for this.
    pub fn take(&self, key: &Key) -> Vec<OwnedFd> {
        let mut given = self.given.lock();
        let taken = given.extract_if(.., |(of, _)| of == key);
        taken.map(|(_, socket)| socket).collect()
    }

    /// Clients are let in by these from now on, as long as they are held.
    pub fn listens(
        &self,
        key: Key,
        number: usize,
        sockets: impl Iterator<Item = Weak<dyn AsFd + Send + Sync>>,
    ) {
        let mut listening = self.listening.lock();
        let place = listening.partition_point(|other| other.number < number);
        listening.insert(
            place,
            Listening {
                key,
                number,
                sockets: sockets.collect(),
            },
        );
        drop(listening);
        self.count.send_modify(|count| count.listening += 1);
    }

    /// Waits until all addresses are listened on. Sockets that were given and that nobody wants are closed
    /// then.
    pub async fn all_listen(&self) {
        let mut count = self.count.subscribe();
        let all = |count: &Count| count.listening >= count.expected;
        // It cannot be gone while `self` is there.
        let _ = count.wait_for(all).await;
        let mut given = std::mem::take(&mut *self.given.lock());
        given.dedup_by(|(one, _), (other, _)| one == other);
        for (key, _) in given {
            log::info!("{} is not listened on any more", key.address);
        }
    }

    pub fn keys(&self) -> Vec<Key> {
        self.listening
            .lock()
            .iter()
            .map(|listening| listening.key.clone())
            .collect()
    }

    /// The sockets that listen.
    pub fn held(&self) -> Vec<(Key, Arc<dyn AsFd + Send + Sync>)> {
        let listening = self.listening.lock();
        let held = listening.iter().flat_map(|Listening { key, sockets, .. }| {
            let sockets = sockets.iter().filter_map(Weak::upgrade);
            sockets.map(|socket| (key.clone(), socket))
        });
        held.collect()
    }
}
