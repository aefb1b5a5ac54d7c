//! Accepts connections. Who is one too many is found out before anything is made of the connection, so that turning it
//! away costs less than making it: the kernel's queue, which holds everybody, stays short while somebody floods it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pingora::apps::ServerApp;
use pingora::server::ShutdownWatch;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::doors::State;
use super::entrance::Entrance;
use super::socket::Wire;
use crate::observe::access_log::Logger;
use crate::observe::seldom::Seldom;

/// A socket that listens.
pub struct Listener {
    socket: Arc<AsyncFd<OwnedFd>>,
    is_unix: bool,
}

/// A connection as the kernel gives it: nothing waits for it yet.
pub struct Accepted {
    pub(super) socket: OwnedFd,
    /// Its client's address, where it has one.
    pub peer: Option<SocketAddr>,
    pub(super) is_unix: bool,
}

/// Connections that are accepted in a row.
const AT_ONCE: usize = 64;

/// At the end: no queue is longer (listen(2)).
const LONGEST_QUEUE: usize = 65_535;

/// After a connection could not be accepted, or waited for, for want of descriptors or memory.
const OUT_OF_BREATH: Duration = Duration::from_millis(50);

// === impl Listener ===

impl Listener {
    /// To be called where the runtime is that waits for them. `socket` does not block.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn new(socket: OwnedFd, is_unix: bool) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types that lie about their descriptor: this one does not"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self {
            socket: Arc::new(socket),
            is_unix,
        })
    }

    /// For who hands it over.
    pub fn held(&self) -> Weak<dyn AsFd + Send + Sync> {
        let held: Weak<AsyncFd<OwnedFd>> = Arc::downgrade(&self.socket);
        held
    }

    /// Accepts until the process is told to end.
    pub async fn serve<A: ServerApp + Send + Sync + 'static>(
        self,
        entrance: Arc<Entrance>,
        app: Arc<A>,
        mut shutdown: ShutdownWatch,
        mut state: watch::Receiver<State>,
        logger: Arc<Logger>,
    ) {
        let told = shutdown.clone();
        let let_in = |accepted| entrance.let_in(accepted, &app, &told);
        loop {
            let is_open = *state.borrow_and_update() == State::Open;
            let ready = tokio::select! {
                ready = self.socket.readable(), if is_open => ready,
                Ok(()) = state.changed() => continue,
                () = async { drop(shutdown.wait_for(|down| *down).await) } => {
                    // Who was let into the queue is served; when another process has the socket, it does that. Which of
                    // the two it is shows at the end of a pause.
                    let settled = state.wait_for(|state| *state != State::Paused);
                    if settled.await.is_ok_and(|state| *state == State::Open) {
                        self.take(LONGEST_QUEUE, let_in).ok();
                    }
                    return;
                }
            };
            let taken = ready.and_then(|mut ready| {
                let is_empty = self.take(AT_ONCE, let_in)?;
                if is_empty {
                    AsyncFdReadyGuard::clear_ready(&mut ready);
                }
                Ok(())
            });
            if let Err(e) = &taken {
                tell_not_accepted(e, &logger);
            }
            if taken.is_err() || entrance.takes_a_breath() {
                tokio::time::sleep(OUT_OF_BREATH).await;
            }
        }
    }

    /// Takes so many out of the queue: a queue that fills faster than it is emptied turns others away. Returns whether it
    /// is empty.
    fn take(&self, most: usize, let_in: impl Fn(Accepted) -> io::Result<()>) -> io::Result<bool> {
        for _ in 0..most {
            match self.accept() {
                Ok(accepted) => let_in(accepted)?,
                Err(Errno::WOULDBLOCK) => return Ok(true),
                // The fault is that of the connection that would have been accepted (accept(2)).
                Err(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(false)
    }

    fn accept(&self) -> Result<Accepted, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = acceptfrom_with(&*self.socket, flags)?;
        Ok(Accepted {
            socket,
            peer: peer.and_then(|peer| match peer {
                SocketAddrAny::V4(peer) => Some(peer.into()),
                SocketAddrAny::V6(peer) => Some(peer.into()),
                _ => None,
            }),
            is_unix: self.is_unix,
        })
    }
}

/// What one queue is short of all of them are short of.
fn tell_not_accepted(e: &io::Error, logger: &Logger) {
    static SELDOM: Seldom = Seldom::new();
    let Some(count) = SELDOM.again() else {
        return;
    };
    logger.write(log::Level::Error, |line| {
        line.text("context", "connection");
        line.text("err", &e.to_string());
        line.number("count", count);
        line.text("msg", "a connection cannot be accepted");
    });
}

// === impl Accepted ===

impl Accepted {
    /// From now on it can be waited for.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn open(self) -> io::Result<Wire> {
        Ok(match self.is_unix {
            true => Wire::Unix(UnixStream::from_std(self.socket.into())?),
            false => Wire::Tcp(TcpStream::from_std(self.socket.into())?),
        })
    }

    /// Ends the connection with a reset: nothing of it stays in the kernel, and its client knows at once.
    pub fn reset(self) {
        // One that cannot be set is gone already.
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}
