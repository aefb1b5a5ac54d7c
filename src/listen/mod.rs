//! Where clients come in: sockets are bound before anything is built on them, and accept once the process can serve.
//!
//! The loop is ours and not Pingora's: what a connection must pass before a byte of it is read (how many are open, who
//! speaks for it, TLS) stands here, and a new process can take the sockets over while nothing is lost.

mod socket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use socket2::{Domain, SockRef, Type};
use tokio::net::TcpListener;

use crate::observe::access_log::Logger;
use crate::state::Home;
pub use socket::Socket;

/// A socket that is bound, and does not listen yet: no client can meet it, and another one at the port shows.
pub struct Bound {
    /// What the log calls it.
    name: &'static str,
    address: SocketAddr,
    socket: socket2::Socket,
}

/// Connections that wait to be accepted, and as many that are being set up (listen(2)).
const BACKLOG: i32 = 1024;

/// After a connection could not be accepted for want of descriptors or memory.
const OUT_OF_BREATH: Duration = Duration::from_millis(50);

impl Bound {
    /// Finds a port for port 0, and says at once, and clearly, when another process has the wanted one.
    /// # Errors
    /// When it cannot be had.
    pub fn to(name: &'static str, wanted: SocketAddr) -> Result<Self, String> {
        let bind = || -> std::io::Result<Self> {
            let socket = socket2::Socket::new(Domain::for_address(wanted), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.set_reuse_address(true)?;
            socket.bind(&wanted.into())?;
            let address = socket.local_addr()?.as_socket().unwrap_or(wanted);
            Ok(Self {
                name,
                address,
                socket,
            })
        };
        bind().map_err(|e| format!("cannot listen on {wanted}: {e}"))
    }

    /// From now on clients are let in; to be called where the runtime is that serves them.
    fn listen(self) -> std::io::Result<TcpListener> {
        self.socket.listen(BACKLOG)?;
        TcpListener::from_std(self.socket.into())
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
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> Service for Listen<A> {
    async fn start_service(&mut self, _: Option<ListenFds>, shutdown: ShutdownWatch, _: usize) {
        if let Some(home) = &self.home {
            home.is_here();
        }
        let mut doors = Vec::new();
        for bound in std::mem::take(&mut self.sockets) {
            let (name, address) = (bound.name, bound.address);
            match bound.listen() {
                Ok(listener) => {
                    self.logger.write(log::Level::Info, |line| {
                        line.text("context", "server");
                        line.text("listener", name);
                        line.display("address", &address);
                        line.text("msg", "listening");
                    });
                    doors.push(accept(listener, self.app.clone(), shutdown.clone()));
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
    listener: TcpListener,
    app: Arc<A>,
    mut shutdown: ShutdownWatch,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
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
