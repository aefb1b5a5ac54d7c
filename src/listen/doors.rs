//! The sockets that clients come in by: whether they are let in, and to whom the sockets are handed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The doors of a process.
pub struct Doors {
    state: watch::Sender<State>,
    /// Sockets that another process will give.
    offered: Vec<Key>,
    given: Mutex<Vec<(Key, OwnedFd)>>,
    listening: Mutex<Vec<(Key, Weak<dyn AsFd + Send + Sync>)>>,
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

/// What the doors do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing listens yet: another process has the sockets.
    Waiting,
    Open,
    /// Who comes waits in the sockets' queues.
    Paused,
}

/// Sockets that are to listen, and that do.
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
            offered: offered.unwrap_or_default(),
            given: Mutex::default(),
            listening: Mutex::default(),
            count: watch::Sender::new(Count::default()),
        }
    }

    /// What is done, and what will be.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
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

    /// One more socket will listen.
    pub fn expect_one(&self) {
        self.count.send_modify(|count| count.expected += 1);
    }

    /// The socket that will be given for this, if one will.
    pub fn offered(&self, name: &str, wanted: &str) -> Option<&Key> {
        let same = |key: &&Key| key.name == name && key.wanted == wanted;
        // The same place under another name.
        let there = |key: &&Key| key.address == wanted;
        self.offered
            .iter()
            .find(same)
            .or_else(|| self.offered.iter().find(there))
    }

    /// Another process' sockets.
    pub fn give(&self, sockets: impl Iterator<Item = (Key, OwnedFd)>) {
        self.given.lock().extend(sockets);
    }

    pub fn take(&self, key: &Key) -> Option<OwnedFd> {
        let mut given = self.given.lock();
        let place = given.iter().position(|(of, _)| of == key)?;
        Some(given.swap_remove(place).1)
    }

    /// Clients are let in by this from now on, as long as it is held.
    pub fn listens(&self, key: Key, socket: Weak<dyn AsFd + Send + Sync>) {
        self.listening.lock().push((key, socket));
        self.count.send_modify(|count| count.listening += 1);
    }

    /// Waits until every socket listens. Those that were given and that nobody wants are closed then.
    pub async fn all_listen(&self) {
        let mut count = self.count.subscribe();
        let all = |count: &Count| count.listening >= count.expected;
        // It cannot be gone while `self` is there.
        let _ = count.wait_for(all).await;
        for (key, _) in self.given.lock().drain(..) {
            log::info!("{} is not listened on any more", key.address);
        }
    }

    pub fn keys(&self) -> Vec<Key> {
        self.listening
            .lock()
            .iter()
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// The sockets that listen.
    pub fn held(&self) -> Vec<(Key, Arc<dyn AsFd + Send + Sync>)> {
        let listening = self.listening.lock();
        let held = listening
            .iter()
            .filter_map(|(key, socket)| Some((key.clone(), socket.upgrade()?)));
        held.collect()
    }
}
