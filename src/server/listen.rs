//! Where the gateway listens: its ports are found before anything is built on them, and told once they answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::listeners::TcpSocketOptions;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::net::TcpSocket;

use crate::observe::access_log::Logger;

/// A port that was found or tried, and is kept until the listener has it.
pub struct Reserved {
    pub address: SocketAddr,
    _placeholder: Option<TcpSocket>,
}

/// Finds a port for port 0, and says at once, and clearly, when another process has the wanted one.
/// # Errors
/// When it cannot be had.
pub fn reserve(wanted: SocketAddr) -> Result<(Reserved, TcpSocketOptions), String> {
    let failed = |e: std::io::Error| format!("cannot listen on {wanted}: {e}");
    let any_port = wanted.port() == 0;
    // It is bound but does not listen: no client can meet it, and another listener at the port shows.
    let bound = || -> std::io::Result<TcpSocket> {
        let socket = if wanted.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(any_port)?;
        socket.bind(wanted)?;
        Ok(socket)
    };
    let socket = bound().map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    let mut options = TcpSocketOptions::default();
    if any_port {
        options.so_reuseport = Some(true);
    }
    // A free port is kept from others until ours listens on it; a given one must be let go for it.
    Ok((
        Reserved {
            address,
            _placeholder: any_port.then_some(socket),
        },
        options,
    ))
}

/// Says where the gateway listens, once it does.
pub struct Announce {
    pub listeners: Mutex<Vec<(&'static str, Reserved)>>,
    pub logger: Arc<Logger>,
}

#[async_trait]
impl BackgroundService for Announce {
    async fn start(&self, _: ShutdownWatch) {
        let listeners = std::mem::take(&mut *self.listeners.lock());
        for (name, reserved) in &listeners {
            let mut here = reserved.address;
            if here.ip().is_unspecified() {
                here.set_ip(if here.is_ipv4() {
                    [127, 0, 0, 1].into()
                } else {
                    std::net::Ipv6Addr::LOCALHOST.into()
                });
            }
            while tokio::net::TcpStream::connect(here).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.logger.write(log::Level::Info, |line| {
                line.text("context", "server");
                line.text("listener", name);
                line.display("address", &reserved.address);
                line.text("msg", "listening");
            });
        }
    }
}
