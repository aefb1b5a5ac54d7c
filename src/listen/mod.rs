//! Where clients come in: sockets are bound before anything is built on them, and accept once the process can serve.
//!
//! The loop is ours and not Pingora's: what a connection must pass before a byte of it is read (how many are open, who
//! speaks for it, TLS) stands here, and a new process can take the sockets over while nothing is lost.

mod doors;
mod socket;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::{Domain, SockRef, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::observe::access_log::Logger;
use crate::state::Home;
pub use doors::{Doors, Key, State};
pub use socket::Socket;

/// A socket that is bound, and does not listen yet: no client can meet it, and another one at the port shows.
pub struct Bound {
    /// Its name is what the log calls it.
    key: Key,
    /// `None`: the process that this one replaces will give it.
    socket: Option<socket2::Socket>,
}

/// Connections that wait to be accepted, and as many that are being set up (listen(2)).
const BACKLOG: i32 = 1024;

/// After a connection could not be accepted for want of descriptors or memory.
const OUT_OF_BREATH: Duration = Duration::from_millis(50);

impl Bound {
    /// Finds a port for port 0, and says at once, and clearly, when another process has the wanted one.
    /// # Errors
    /// When it cannot be had.
    pub fn to(name: &str, wanted: SocketAddr, doors: &Doors) -> Result<Self, String> {
        doors.expect_one();
        if let Some(key) = doors.offered(name, &wanted.to_string()) {
            return Ok(Self {
                key: key.clone(),
                socket: None,
            });
        }
        let bind = || -> std::io::Result<Self> {
            let socket = socket2::Socket::new(Domain::for_address(wanted), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.set_reuse_address(true)?;
            socket.bind(&wanted.into())?;
            let address = socket.local_addr()?.as_socket().unwrap_or(wanted);
            Ok(Self {
                key: Key::new(name, wanted, address),
                socket: Some(socket),
            })
        };
        bind().map_err(|e| format!("cannot listen on {wanted}: {e}"))
    }

    /// From now on clients are let in; to be called where the runtime is that serves them.
    fn listen(self, doors: &Doors) -> std::io::Result<Arc<TcpListener>> {
        let given = || doors.take(&self.key).map(socket2::Socket::from);
        let Some(socket) = self.socket.or_else(given) else {
            return Err(std::io::Error::other("it was not handed over"));
        };
        socket.set_nonblocking(true)?;
        // It may be in use already: then only the length of its queue changes.
        socket.listen(BACKLOG)?;
        let listener = Arc::new(TcpListener::from_std(socket.into())?);
        let held: Weak<TcpListener> = Arc::downgrade(&listener);
        doors.listens(self.key, held as Weak<dyn AsFd + Send + Sync>);
        Ok(listener)
    }
}

/// Listens on some sockets, and gives each connection to the application.
pub struct Listen<A> {
    /// Of the threads.
    pub name: &'static str,
    /// Default: those of the configuration.
    pub threads: Option<usize>,
    pub sockets: Vec<Bound>,
    pub app: Arc<A>,
    /// Is told that requests run on this service's runtime.
    pub home: Option<Home>,
    pub logger: Arc<Logger>,
    pub doors: Arc<Doors>,
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for Listen<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, _: usize) {
        if let Some(home) = &self.home {
            home.is_here();
        }
        let mut state = self.doors.state();
        let may_listen = state.wait_for(|state| *state != State::Waiting);
        if may_listen.await.is_err() {
            return;
        }
        let mut doors = Vec::new();
        for bound in std::mem::take(&mut self.sockets) {
            let Key { name, address, .. } = bound.key.clone();
            match bound.listen(&self.doors) {
                Ok(listener) => {
                    self.logger.write(log::Level::Info, |line| {
                        line.text("context", "server");
                        line.text("listener", &name);
                        line.text("address", &address);
                        line.text("msg", "listening");
                    });
                    let state = self.doors.state();
                    doors.push(accept(listener, self.app.clone(), shutdown.clone(), state));
                }
                // Another process has listened on it between binding and this: nothing is served half.
                Err(e) => {
                    log::error!("cannot listen on {address}: {e}; the process ends");
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
    listener: Arc<TcpListener>,
    app: Arc<A>,
    mut shutdown: ShutdownWatch,
    mut doors: watch::Receiver<State>,
) {
    loop {
        let is_open = *doors.borrow_and_update() == State::Open;
        let accepted = tokio::select! {
            accepted = listener.accept(), if is_open => accepted,
            Ok(()) = doors.changed() => continue,
            _ = shutdown.wait_for(|down| *down) => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                // One that cannot be set has been reset already, which its first read will tell.
                let _ = SockRef::from(&stream).set_tcp_nodelay(true);
                let (app, shutdown) = (app.clone(), shutdown.clone());
                tokio::spawn(async move {
                    let mut stream = Some(Box::new(Socket::new(stream, peer)) as _);
                    while let Some(again) = stream.take() {
                        stream = app.process_new(again, &shutdown).await;
                    }
                });
            }
            Err(e) if is_of_one_connection(&e) => {}
            Err(e) => {
                log::error!("a connection cannot be accepted: {e}");
                tokio::time::sleep(OUT_OF_BREATH).await;
            }
        }
    }
}

/// Whether the fault is that of the connection that would have been accepted (accept(2)).
fn is_of_one_connection(e: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
