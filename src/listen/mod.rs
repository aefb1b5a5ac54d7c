//! Where clients come in: sockets are bound before anything is built on them, and accept once the process can serve.
//!
//! The loop is ours and not Pingora's: what a connection must pass before a byte of it is read (how many are open, who
//! speaks for it, TLS) stands here, and a new process can take the sockets over while nothing is lost.

mod address;
mod caps;
mod config;
mod doors;
mod entrance;
mod proxy_protocol;
mod socket;
pub mod tls;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use pingora::apps::ServerApp;
use pingora::protocols::l4::ext::set_tcp_fastopen_backlog;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::TcpKeepalive;
use tokio::net::{TcpListener, UnixListener};

use tokio::sync::watch;

use crate::observe::access_log::Logger;
use crate::state::Home;
pub use address::Address;
pub use caps::{Caps, Refusals};
pub use config::{
    ConnectionsConfig, ListenConfig, ListenerConfig, Listeners, Protocol, Tcp, TcpConfig,
};
pub use doors::{Doors, Key, State};
pub use entrance::Entrance;
use socket::Wire;

/// A socket that is bound, and does not listen yet: no client can meet it, and another one at the port shows.
pub struct Bound {
    /// Its name is what the log calls it.
    key: Key,
    /// Among all of the process, in the order of the configuration.
    number: usize,
    is_unix: bool,
    /// `None`: the process that this one replaces will give it.
    socket: Option<socket2::Socket>,
}

/// A socket, and what its connections are asked for.
pub struct Door {
    pub bound: Bound,
    pub protocol: Protocol,
    pub entrance: Entrance,
}

/// A socket that listens.
enum Listener {
    Tcp(Arc<TcpListener>),
    Unix(Arc<UnixListener>),
}

/// Between two keep-alive probes, and how many of them a dead client leaves unanswered (tcp(7)): it is gone a minute
/// after the first.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// Connections that are accepted in a row.
const AT_ONCE: usize = 64;

/// After a connection could not be accepted for want of descriptors or memory.
const OUT_OF_BREATH: Duration = Duration::from_millis(50);

/// For the log, before the process ends for want of a socket.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Bound {
    /// Finds a port for port 0, and says at once, and clearly, when another process has the wanted one.
    /// # Errors
    /// When it cannot be had.
    pub fn to(
        name: Option<&'static str>,
        wanted: &Address,
        reuse_port: bool,
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
                socket: None,
            });
        }
        let (socket, address) = wanted
            .bind(reuse_port)
            .map_err(|e| format!("cannot listen on {wanted}: {e}"))?;
        let address = address.to_string();
        Ok(Self {
            key: Key {
                name: name.unwrap_or(&address).to_owned(),
                wanted: text,
                address,
            },
            number,
            is_unix,
            socket: Some(socket),
        })
    }

    /// From now on clients are let in; to be called where the runtime is that serves them.
    fn listen(self, tcp: &Tcp, doors: &Doors) -> io::Result<Listener> {
        let given = || doors.take(&self.key).map(socket2::Socket::from);
        let Some(socket) = self.socket.or_else(given) else {
            return Err(io::Error::other("it was not handed over"));
        };
        socket.set_nonblocking(true)?;
        if !self.is_unix {
            tcp.set(&socket)?;
        }
        // It may be in use already: then only the length of its queue changes.
        socket.listen(tcp.backlog)?;
        let (listener, held): (_, Weak<dyn AsFd + Send + Sync>) = if self.is_unix {
            let listener = Arc::new(UnixListener::from_std(socket.into())?);
            let held = Arc::downgrade(&listener);
            (Listener::Unix(listener), held)
        } else {
            let listener = Arc::new(TcpListener::from_std(socket.into())?);
            let held = Arc::downgrade(&listener);
            (Listener::Tcp(listener), held)
        };
        doors.listens(self.key, self.number, held);
        Ok(listener)
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

impl Listener {
    /// The next connection, and its client's address where it has one.
    async fn accept(&self) -> io::Result<(Wire, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Wire::Tcp(stream), Some(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Wire::Unix(stream), None))
            }
        }
    }
}

/// Listens on some sockets, and gives each connection to the application.
pub struct Listen<A> {
    /// Of the threads.
    pub name: &'static str,
    /// Default: those of the configuration.
    pub threads: Option<usize>,
    pub doors: Vec<Door>,
    pub tcp: Tcp,
    pub app: Arc<A>,
    /// Is told that requests run on this service's runtime.
    pub home: Option<Home>,
    pub logger: Arc<Logger>,
    /// Says when they are open.
    pub keeper: Arc<Doors>,
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for Listen<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, _: usize) {
        if let Some(home) = &self.home {
            home.is_here();
        }
        let mut state = self.keeper.state();
        let may_listen = state.wait_for(|state| *state != State::Waiting);
        if may_listen.await.is_err() {
            return;
        }
        let mut doors = Vec::new();
        for door in std::mem::take(&mut self.doors) {
            let Door {
                bound,
                protocol,
                entrance,
            } = door;
            let Key { name, address, .. } = bound.key.clone();
            match bound.listen(&self.tcp, &self.keeper) {
                Ok(listener) => {
                    self.logger.write(log::Level::Info, |line| {
                        line.text("context", "server");
                        line.text("listener", &name);
                        line.text("address", &address);
                        line.text("protocol", protocol.name());
                        line.text("msg", "listening");
                    });
                    doors.push(accept(
                        listener,
                        Arc::new(entrance),
                        self.app.clone(),
                        shutdown.clone(),
                        self.keeper.state(),
                    ));
                }
                // Another process has listened on it between binding and this: nothing is served half.
                Err(e) => {
                    log::error!("cannot listen on {address}: {e}; the process ends");
                    self.logger.flush(LAST_WORDS);
                    std::process::exit(1);
                }
            }
        }
        futures::future::join_all(doors).await;
        self.app.cleanup().await;
    }

    fn name(&self) -> &str {
        self.name
    }

    fn threads(&self) -> Option<usize> {
        self.threads
    }
}

/// Accepts until the process is told to end.
async fn accept<A: ServerApp + Send + Sync + 'static>(
    listener: Listener,
    entrance: Arc<Entrance>,
    app: Arc<A>,
    mut shutdown: ShutdownWatch,
    mut state: watch::Receiver<State>,
) {
    loop {
        let is_open = *state.borrow_and_update() == State::Open;
        let accepted = tokio::select! {
            accepted = listener.accept(), if is_open => Some(accepted),
            Ok(()) = state.changed() => continue,
            _ = shutdown.wait_for(|down| *down) => None,
        };
        let Some(accepted) = accepted else {
            // Who was let into the queue is served; when another process has the socket, it does that.
            while is_open && let Some(Ok((wire, peer))) = listener.accept().now_or_never() {
                entrance.let_in(wire, peer, &app, &shutdown);
            }
            return;
        };
        // Who waits behind it is taken at once: a queue that fills faster than it is emptied turns others away.
        let (mut next, mut left) = (Some(accepted), AT_ONCE);
        while let Some(accepted) = next.take() {
            match accepted {
                Ok((wire, peer)) => entrance.let_in(wire, peer, &app, &shutdown),
                Err(e) if is_of_one_connection(&e) => {}
                Err(e) => {
                    log::error!("a connection cannot be accepted: {e}");
                    tokio::time::sleep(OUT_OF_BREATH).await;
                    break;
                }
            }
            left -= 1;
            if left > 0 {
                next = listener.accept().now_or_never();
            }
        }
    }
}

/// Whether the fault is that of the connection that would have been accepted (accept(2)).
fn is_of_one_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
