//! Where clients come in: sockets are bound before anything is built on them, and accept once the process can serve.
//!
//! The loop is ours and not Pingora's: what a connection must pass before a byte of it is read (how many are open, who
//! speaks for it, TLS) stands here, and a new process can take the sockets over while nothing is lost.

mod accept;
mod address;
mod caps;
mod config;
mod doors;
mod entrance;
pub mod proxy_protocol;
mod queues;
mod socket;
pub mod tls;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::protocols::l4::ext::set_tcp_fastopen_backlog;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::TcpKeepalive;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};

use crate::observe::access_log::Logger;
use crate::server::threads::keep_one;
use accept::Listener;
pub use address::Address;
pub use caps::{Caps, Refusals};
pub use config::{
    ConnectionsConfig, ListenConfig, ListenerConfig, Listeners, Protocol, Tcp, TcpConfig,
};
pub use doors::{Doors, Key, State};
pub use entrance::Entrance;
pub use queues::of_each as queues_of_each;

/// An address that is bound, and not listened on yet: no client can meet it, and another one at the port shows.
pub struct Bound {
    /// Its name is what the log calls it.
    key: Key,
    /// Among all of the process, in the order of the configuration.
    number: usize,
    is_unix: bool,
    /// None: the process that this one replaces will give them.
    sockets: Vec<socket2::Socket>,
}

/// A socket, and what its connections are asked for.
pub struct Door {
    pub bound: Bound,
    pub protocol: Protocol,
    pub entrance: Entrance,
}

/// Between two keep-alive probes, and how many of them a dead client leaves unanswered (tcp(7)): it is gone a minute
/// after the first.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// For the log, before the process ends for want of a socket.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Bound {
    /// Finds a port for port 0, and says at once, and clearly, when another process has the wanted one.
    ///
    /// `queues`: of a port that is not shared with other processes.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn to(
        name: Option<&'static str>,
        wanted: &Address,
        reuse_port: bool,
        queues: usize,
        doors: &Doors,
    ) -> Result<Self, String> {
        let number = doors.expect_one();
        let text = wanted.to_string();
        let is_unix = matches!(wanted, Address::Unix(_));
        if let Some(key) = doors.claim(name, &text) {
            return Ok(Self {
                key,
                number,
                is_unix,
                sockets: Vec::new(),
            });
        }
        let bound = wanted.bind(reuse_port).and_then(|(socket, address)| {
            let sockets = match address {
                Address::Inet(at) if !reuse_port => queues::widen(socket, at, queues)?,
                _ => vec![socket],
            };
            Ok((sockets, address))
        });
        let (sockets, address) = bound.map_err(|e| format!("cannot listen on {wanted}: {e}"))?;
        let address = address.to_string();
        Ok(Self {
            key: Key {
                name: name.unwrap_or(&address).to_owned(),
                wanted: text,
                address,
            },
            number,
            is_unix,
            sockets,
        })
    }

    /// From now on clients are let in; to be called where the runtime is that accepts them.
    fn listen(self, tcp: &Tcp, doors: &Doors) -> io::Result<Vec<Listener>> {
        let Self {
            key,
            number,
            is_unix,
            mut sockets,
        } = self;
        if sockets.is_empty() {
            let given = doors.take(&key).into_iter();
            sockets.extend(given.map(socket2::Socket::from));
        }
        if sockets.is_empty() {
            return Err(io::Error::other("it was not handed over"));
        }
        for socket in &sockets {
            socket.set_nonblocking(true)?;
            if !is_unix {
                tcp.set(socket)?;
            }
            // It may be in use already: then only the length of its queue changes.
            socket.listen(tcp.backlog)?;
        }
        if sockets.len() > 1
            && let Err(e) = queues::divide(&sockets)
        {
            log::warn!("clients of {} do not wait apart: {e}", key.address);
        }
        let listeners = sockets
            .into_iter()
            .map(|socket| Listener::new(socket.into(), is_unix))
            .collect::<io::Result<Vec<_>>>()?;
        doors.listens(key, number, listeners.iter().map(Listener::held));
        Ok(listeners)
    }
}

impl Tcp {
    /// On Linux an accepted connection has the options of the socket that it was accepted from: nothing is set again for
    /// each.
    fn set(&self, socket: &socket2::Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        match self.keepalive {
            None => socket.set_keepalive(false)?,
            Some(idle) => {
                let probes = TcpKeepalive::new().with_time(idle);
                let probes = probes.with_interval(PROBE_INTERVAL).with_retries(PROBES);
                socket.set_tcp_keepalive(&probes)?;
            }
        }
        if self.fast_open > 0 {
            set_tcp_fastopen_backlog(socket.as_raw_fd(), self.fast_open)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Listens on some sockets, and gives each connection to the application.
pub struct Listen<A> {
    /// Of the thread that accepts.
    pub name: &'static str,
    pub doors: Vec<Door>,
    pub tcp: Tcp,
    pub app: Arc<A>,
    pub logger: Arc<Logger>,
    /// Says when they are open.
    pub keeper: Arc<Doors>,
}

impl<A> Listen<A> {
    /// Whoever started the process starts it again: one that does not accept would only look as if it served.
    fn give_up(&self, why: &str) -> ! {
        log::error!("{why}; the process ends");
        self.logger.flush(LAST_WORDS);
        std::process::exit(1);
    }
}

/// Waits until all have ended, or one of them has panicked.
async fn all_end(doors: &mut JoinSet<()>) -> Result<(), JoinError> {
    while let Some(ended) = doors.join_next().await {
        ended?;
    }
    Ok(())
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for Listen<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, _: usize) {
        let mut state = self.keeper.state();
        let may_listen = state.wait_for(|state| *state != State::Waiting);
        if may_listen.await.is_err() {
            return;
        }
        keep_one(&Handle::current());
        let mut doors = JoinSet::new();
        for door in std::mem::take(&mut self.doors) {
            let Door {
                bound,
                protocol,
                entrance,
            } = door;
            let Key { name, address, .. } = bound.key.clone();
            match bound.listen(&self.tcp, &self.keeper) {
                Ok(listeners) => {
                    self.logger.write(log::Level::Info, |line| {
                        line.text("context", "server");
                        line.text("listener", &name);
                        line.text("address", &address);
                        line.text("protocol", protocol.name());
                        line.text("msg", "listening");
                    });
                    let entrance = Arc::new(entrance);
                    for listener in listeners {
                        // Tasks of their own: while one empties the queue that somebody floods, the others go on.
                        doors.spawn(listener.serve(
                            entrance.clone(),
                            self.app.clone(),
                            shutdown.clone(),
                            self.keeper.state(),
                            self.logger.clone(),
                        ));
                    }
                }
                // Another process has listened on it between binding and this: nothing is served half.
                Err(e) => {
                    self.give_up(&format!("cannot listen on {address}: {e}"));
                }
            }
        }
        if let Err(e) = all_end(&mut doors).await {
            self.give_up(&format!("`{}` does not accept any more: {e}", self.name));
        }
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use accept::Accepted;
    use std::future::pending;
    use std::os::unix::fs::OpenOptionsExt;
    use std::time::Instant;

    #[tokio::test]
    async fn one_that_panics_is_heard_of_while_the_others_go_on() {
        let mut doors = JoinSet::new();
        doors.spawn(pending());
        doors.spawn(async {});
        doors.spawn(async { std::panic::resume_unwind(Box::new("on purpose")) });
        let ended = tokio::time::timeout(Duration::from_secs(10), all_end(&mut doors)).await;
        assert!(ended.expect("it is heard of at once").is_err());
    }

    struct NeverAsked;

    #[async_trait]
    impl ServerApp for NeverAsked {
        async fn process_new(
            self: &Arc<Self>,
            _: pingora::protocols::Stream,
            _: &ShutdownWatch,
        ) -> Option<pingora::protocols::Stream> {
            panic!("there is nothing to serve");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_waited_for_is_let_go_and_accepting_pauses_once() {
        let (_tell, shutdown) = tokio::sync::watch::channel(false);
        let entrance = Arc::new(Entrance::default());
        assert!(!entrance.takes_a_breath());
        // No poll can wait for a regular file (epoll_ctl(2): EPERM).
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/proc/self/exe");
        let accepted = Accepted {
            socket: file.unwrap().into(),
            peer: None,
            is_unix: false,
        };
        let app = Arc::new(NeverAsked);
        entrance.let_in(accepted, &app, &shutdown).unwrap();
        let start = Instant::now();
        while !entrance.takes_a_breath() {
            assert!(start.elapsed() < Duration::from_secs(10));
            tokio::task::yield_now().await;
        }
        assert!(!entrance.takes_a_breath(), "it was taken");
    }
}
