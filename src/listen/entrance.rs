//! What a connection passes before its first request is read: how many are open, who speaks for it, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use pingora_timeout::timeout;

use super::accept::Accepted;
use super::caps::{Caps, Reason, Visit};
use super::proxy_protocol::{self, Progress};
use super::socket::{NOBODY, Socket};
use super::tls::{Tls, Unfinished};
use crate::policies::InForce;
use crate::server::threads::Threads;

/// What a listener asks of its connections.
#[derive(Default)]
pub struct Entrance {
    /// `None`: they are not counted, as on the private listener.
    pub caps: Option<Arc<Caps>>,
    /// They begin with a PROXY header: who is believed, and how long it may take, the policies in force say.
    pub proxy_header: Option<InForce>,
    pub tls: Option<Arc<Tls>>,
    /// That serve its connections; `None`: the one that accepts them.
    pub threads: Option<Threads>,
    /// A connection that was accepted could not be waited for, since somebody asked.
    pub is_out_of_breath: AtomicBool,
}

/// Why a connection is not served.
struct Refused {
    reason: Reason,
    why: String,
}

/// Once the process is told to end: what is in its handshake may still have a request to make, but nobody waits long
/// for it.
const LAST_CALL: Duration = Duration::from_secs(1);

impl Entrance {
    /// Gives a connection to the application, in a task of its own; or resets it when it is one too many.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn let_in<A: ServerApp + Send + Sync + 'static>(
        self: &Arc<Self>,
        accepted: Accepted,
        app: &Arc<A>,
        shutdown: &ShutdownWatch,
    ) -> io::Result<()> {
        let peer = accepted.peer;
        let visit = match self.count(peer) {
            Ok(visit) => visit,
            Err(reason) => {
                self.refuse(reason, peer, None);
                accepted.reset();
                return Ok(());
            }
        };
        let (entrance, app, shutdown) = (self.clone(), app.clone(), shutdown.clone());
        let connection = async move {
            let mut visit = visit;
            let wire = match accepted.open() {
                Ok(wire) => wire,
                Err(e) => return entrance.cannot_serve(peer, &e),
            };
            let socket = Socket::new(wire, peer.unwrap_or(NOBODY));
            let mut stream: Option<Stream> = match entrance.is_plain() {
                true => Some(Box::new(socket)),
                // In a box of its own: most connections need no room for it.
                false => Box::pin(entrance.pass(socket, peer, &mut visit, shutdown.clone())).await,
            };
            while let Some(again) = stream.take() {
                stream = app.process_new(again, &shutdown).await;
            }
        };
        match &self.threads {
            Some(threads) => threads.serve(connection)?,
            None => drop(tokio::spawn(connection)),
        }
        Ok(())
    }

    /// Whether accepting should pause: what the system had no room for a moment ago it has none for now.
    pub(super) fn takes_a_breath(&self) -> bool {
        self.is_out_of_breath.load(Relaxed) && self.is_out_of_breath.swap(false, Relaxed)
    }

    /// Its client is told by the end of the connection.
    fn cannot_serve(&self, peer: Option<SocketAddr>, e: &io::Error) {
        self.is_out_of_breath.store(true, Relaxed);
        match self.caps {
            Some(_) => self.refuse(Reason::Resources, peer, Some(&e.to_string())),
            None => log::error!("a connection cannot be served: {e}"),
        }
    }

    /// Nothing is to be read before the first request.
    fn is_plain(&self) -> bool {
        self.proxy_header.is_none() && self.tls.is_none()
    }

    fn count(&self, peer: Option<SocketAddr>) -> Result<Option<Visit>, Reason> {
        let Some(caps) = &self.caps else {
            return Ok(None);
        };
        let mut visit = caps.enter()?;
        let is_trusted = |policies: &InForce, proxy: SocketAddr| {
            let policies = policies.load();
            policies.trusted.trusts(proxy.ip().to_canonical())
        };
        match (&self.proxy_header, peer) {
            (None, Some(peer)) => visit.is_of(peer.ip())?,
            (Some(policies), Some(proxy)) if !is_trusted(policies, proxy) => {
                return Err(Reason::ProxyHeader);
            }
            // Its client is not known yet, or never will be.
            _ => {}
        }
        Ok(Some(visit))
    }

    async fn pass(
        &self,
        mut socket: Socket,
        peer: Option<SocketAddr>,
        visit: &mut Option<Visit>,
        shutdown: ShutdownWatch,
    ) -> Option<Stream> {
        let mut client = peer;
        let outcome = tokio::select! {
            outcome = self.try_pass(&mut socket, &mut client, visit) => outcome,
            () = last_call(shutdown.clone()) => return None,
        };
        if let Err(Refused { reason, why }) = outcome {
            self.refuse(reason, client, Some(&why));
            return None;
        }
        let Some(tls) = &self.tls else {
            return Some(Box::new(socket));
        };
        tokio::select! {
            outcome = tls.handshake(socket) => match outcome {
                Ok(stream) => Some(stream),
                Err(Unfinished(why)) => {
                    self.refuse(Reason::Tls, client, Some(&why));
                    None
                }
            },
            () = last_call(shutdown) => None,
        }
    }

    /// Finds out whose connection it is where a PROXY header tells.
    async fn try_pass(
        &self,
        socket: &mut Socket,
        client: &mut Option<SocketAddr>,
        visit: &mut Option<Visit>,
    ) -> Result<(), Refused> {
        let Some(policies) = &self.proxy_header else {
            return Ok(());
        };
        let patience = policies.load().times.header;
        let refused = |reason, why: &str| Refused {
            reason,
            why: why.to_owned(),
        };
        let declared = timeout(patience, read_proxy_header(socket))
            .await
            .unwrap_or(Err("the PROXY header did not arrive in time"))
            .map_err(|why| refused(Reason::ProxyHeader, why))?;
        // Never the proxy's own: what is for its network is not for its clients.
        socket.declare(declared.unwrap_or(NOBODY));
        *client = declared;
        match (visit, declared) {
            (Some(visit), Some(declared)) => visit
                .is_of(declared.ip())
                .map_err(|reason| refused(reason, "declared by a PROXY header")),
            _ => Ok(()),
        }
    }

    fn refuse(&self, reason: Reason, client: Option<SocketAddr>, why: Option<&str>) {
        if let Some(caps) = &self.caps {
            caps.refusals
                .note(reason, client.map(|client| client.ip()), why);
        }
    }
}

async fn read_proxy_header(socket: &mut Socket) -> Result<Option<SocketAddr>, &'static str> {
    loop {
        match proxy_protocol::read(socket.ahead()) {
            Ok(Progress::Complete { len, client }) => {
                socket.skip(len);
                return Ok(client);
            }
            Ok(Progress::Partial) => {}
            Err(fault) => return Err(fault.0),
        }
        match socket.read_ahead().await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err("the connection ended within the PROXY header"),
        }
    }
}

async fn last_call(mut shutdown: ShutdownWatch) {
    // An error means that the server is gone: the same.
    let _ = shutdown.wait_for(|down| *down).await;
    tokio::time::sleep(LAST_CALL).await;
}
