//! Where clients come in: binds every listener of the configuration, and gives each what its connections must pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pingora::server::Server;

use super::Process;
use crate::connection::{Front, Redirect};
use crate::listen::tls::{Loaded, Tls};
use crate::listen::{
    Address, Bound, Caps, Door, Doors, Entrance, Listen, Listeners, Protocol, Refusals, Tcp,
    queues_of_each,
};
use crate::observe::access_log::Logger;
use crate::ops::Private;
use crate::policies::InForce;

/// What the configuration says of them.
pub struct Entrances {
    pub listeners: Listeners,
    pub redirect_port: u16,
    /// What https listeners show; `None` where there is none.
    pub tls: Option<Loaded>,
}

impl Entrances {
    /// Binds them all. Gives what https listeners show, where there are some.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn open(
        self,
        server: &mut Server,
        front: Arc<Front>,
        in_force: &InForce,
        keeper: &Arc<Doors>,
        process: &Process,
    ) -> Result<Option<Arc<Tls>>, String> {
        let Process {
            metrics,
            logger,
            threads,
            ..
        } = process;
        let Self {
            listeners:
                Listeners {
                    wanted,
                    tcp,
                    max,
                    per_address,
                },
            redirect_port,
            tls,
        } = self;
        let not_after = metrics.certificate_not_after.clone();
        let tls = tls.map(|loaded| Arc::new(Tls::new(loaded, &metrics.tls_handshakes, not_after)));
        let caps = Arc::new(Caps::new(
            metrics.connections.clone(),
            max,
            per_address,
            in_force.clone(),
            Refusals::new(&metrics.connections_refused, logger.clone()),
        ));
        let (mut doors, mut redirects) = (Vec::new(), Vec::new());
        let queues = queues_of_each(wanted.len());
        for wanted in wanted {
            let protocol = wanted.protocol;
            let door = Door {
                bound: Bound::to(wanted.name, &wanted.address, tcp.reuse_port, queues, keeper)?,
                protocol,
                entrance: Entrance {
                    caps: Some(caps.clone()),
                    proxy_header: wanted.proxy_protocol.then(|| in_force.clone()),
                    tls: tls.clone().filter(|_| protocol == Protocol::Https),
                    threads: (protocol != Protocol::Redirect).then(|| threads.clone()),
                    is_out_of_breath: AtomicBool::default(),
                },
            };
            match protocol {
                Protocol::Http | Protocol::Https => doors.push(door),
                Protocol::Redirect => redirects.push(door),
            }
        }
        if !redirects.is_empty() {
            server.add_service(Listen {
                name: "redirect",
                doors: redirects,
                tcp,
                app: Arc::new(Redirect::new(front.clone(), redirect_port, tls.clone())),
                logger: logger.clone(),
                keeper: keeper.clone(),
            });
        }
        server.add_service(Listen {
            name: "accept",
            doors,
            tcp,
            app: front,
            logger: logger.clone(),
            keeper: keeper.clone(),
        });
        Ok(tls)
    }
}

/// The private listener: its connections are few, and not counted.
///
/// # Errors
/// When it cannot be had.
pub fn private(
    address: SocketAddr,
    app: Private,
    logger: Arc<Logger>,
    keeper: &Arc<Doors>,
) -> Result<Listen<Private>, String> {
    Ok(Listen {
        name: "private",
        doors: vec![Door {
            bound: Bound::to(Some("private"), &Address::Inet(address), false, 1, keeper)?,
            protocol: Protocol::Http,
            entrance: Entrance::default(),
        }],
        tcp: Tcp::default(),
        app: Arc::new(app),
        logger,
        keeper: keeper.clone(),
    })
}
