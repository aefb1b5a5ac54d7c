//! The new process' part: it makes itself ready, takes everything over, and only then serves.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::Taken;
use super::wire::{Broken, Wire};
use super::{
    END, FAILED, Failed, HELLO, Hello, KNOWN, MARK, Memory, PROTOCOL, READY, Ready, SERVING,
    sockets,
};
use crate::admit::idempotency::IN_MEMORY;
use crate::listen::{Doors, Key};

/// A process that was started to take another's place.
#[derive(Clone)]
pub struct Heir(Arc<Inner>);

struct Inner {
    wire: Wire,
    hello: Hello,
}

/// What it takes to succeed, once everything is built.
pub struct Succession {
    pub doors: Arc<Doors>,
    pub memory: Memory,
}

/// The old process is there, or it is not: its first word is on its way already.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Longer than the old process waits for this one: it ends this one then.
const KNOWN_LIMIT: Duration = Duration::from_secs(15);

/// The old process has its own, shorter limits; this is only a last stop.
const LIMIT: Duration = Duration::from_secs(600);

/// Once this one serves the old process drains for as long as it may: a century.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Heir {
    /// The heir that this process is, if it is one: `from` is what the environment says of who started it.
    ///
    /// # Errors
    /// When the old process is gone, or cannot be understood.
    pub fn of_this_process(
        environment: &crate::config::Environment,
    ) -> Result<Option<Self>, String> {
        // A value that was inherited from further up names another process than the one that started this.
        let parent = std::os::unix::process::parent_id().to_string();
        if environment.get(MARK) != Some(&*parent) {
            return Ok(None);
        }
        let wire = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .and_then(|stdin: OwnedFd| Wire::new(UnixStream::from(stdin)))
            .map_err(|e| format!("the standard input is no socket: {e}"))?;
        let deadline = Instant::now() + HELLO_LIMIT;
        let gone = |e: Broken| format!("the process that started this one cannot be heard: {e}");
        let frame = wire.receive(deadline, &|| true).map_err(gone)?;
        let hello: Hello = match &*frame.name {
            HELLO => frame.parse().map_err(gone)?,
            _ => return Err(gone(Broken::Garbled("it says what it should not"))),
        };
        let heir = Self(Arc::new(Inner { wire, hello }));
        let theirs = heir.0.hello.protocol;
        if theirs != PROTOCOL {
            let why = format!("the hand-over is of protocol {theirs} there, and {PROTOCOL} here");
            heir.fail(&why);
            return Err(why);
        }
        Ok(Some(heir))
    }

    /// The sockets that it will be given.
    pub fn offered(&self) -> Vec<Key> {
        self.0.hello.listeners.clone()
    }

    /// Whether who is to be replaced can be talked to at a control socket: then its heir must be, too.
    pub fn needs_control(&self) -> bool {
        self.0.hello.has_control
    }

    pub fn version(&self) -> &str {
        &self.0.hello.version
    }

    /// Tells the old process why this one cannot take its place. `false`: it is gone, and nobody needs to know.
    pub fn fail(&self, reason: &str) -> bool {
        let failed = Failed {
            reason: reason.to_owned(),
        };
        let deadline = Instant::now() + HELLO_LIMIT;
        self.0.wire.send(FAILED, &failed, deadline).is_ok()
    }

    /// Says that this process could take over, waits for everything, and takes it. When this returns the sockets may be
    /// listened on.
    ///
    /// # Errors
    /// When the old process was gone before it gave its sockets, or has changed its mind.
    pub fn inherit(
        &self,
        succession: &Succession,
        wants_revocations: bool,
    ) -> Result<Taken, String> {
        let Inner { wire, hello } = &*self.0;
        let ledger = &succession.memory.ledger;
        if let Some(there) = &hello.writes
            && ![IN_MEMORY, &*ledger.place()].contains(&&**there)
        {
            log::warn!(
                "upgrade: the old process asks `{there}` which writes have run: until it has ended those with a key are refused"
            );
            ledger.close();
        }
        let deadline = Instant::now() + LIMIT;
        let gone =
            |e: Broken| format!("the process that started this one has not handed over: {e}");
        wire.send(READY, &Ready { wants_revocations }, deadline)
            .map_err(gone)?;
        let given = sockets::take(wire, deadline).map_err(gone)?;
        succession.doors.give(given.into_iter());
        // From here on there is no way back: should the old process be gone, nobody else would serve.
        let mut taken = Taken::default();
        loop {
            match wire.receive(deadline, &|| true) {
                Ok(frame) if frame.name == END => break,
                Ok(frame) => {
                    if let Err(why) = succession.memory.take_over(&frame, &mut taken) {
                        let why = format!("`{}` is not taken over: {why}", frame.name);
                        // Where the old one is gone, nobody else serves.
                        if succession.memory.needs(&frame.name) && self.fail(&why) {
                            return Err(why);
                        }
                        log::warn!("upgrade: {why}");
                    }
                }
                Err(e) => {
                    log::warn!("upgrade: the old process has not told everything: {e}");
                    break;
                }
            }
        }
        Ok(taken)
    }

    /// The old process may drain. Returns when it knows, and does not end this one any more; or is gone.
    pub fn serves(&self) {
        if let Err(e) = self.say_serving() {
            log::warn!("upgrade: whether the old process knows that this one serves is open: {e}");
        }
    }

    fn say_serving(&self) -> Result<(), Broken> {
        let Inner { wire, hello } = &*self.0;
        let deadline = Instant::now() + KNOWN_LIMIT;
        wire.send(SERVING, &(), deadline)?;
        if !hello.confirms {
            return Ok(());
        }
        match wire.receive(deadline, &|| true)? {
            frame if frame.name == KNOWN => Ok(()),
            _ => Err(Broken::Garbled("it says what it should not")),
        }
    }

    /// What the old one's last requests changed is heard until it ends.
    pub fn hear_out(&self, succession: &Succession) {
        let Inner { wire, .. } = &*self.0;
        let mut late = Taken::default();
        let deadline = Instant::now() + FOR_EVER;
        while let Ok(frame) = wire.receive(deadline, &|| true) {
            if let Err(why) = succession.memory.take_over(&frame, &mut late) {
                log::warn!("upgrade: `{}` is not taken over: {why}", frame.name);
            }
        }
        succession.memory.ledger.open();
        log::info!(
            "upgrade: the old process has ended; of its last requests were taken over: {late}"
        );
    }
}
