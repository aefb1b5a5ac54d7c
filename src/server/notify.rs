//! What the service manager is told (sd_notify(3)): ready, reloading, stopping, and which process is the main one now.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use crate::config::Environment;

/// The manager, where there is one.
#[derive(Clone)]
pub struct Notify(Option<Arc<Manager>>);

struct Manager {
    address: SocketAddr,
    /// The process has said its last word: that it stops, or nothing, where another one speaks for the service now.
    is_over: Mutex<bool>,
}

impl Notify {
    pub fn of(environment: &Environment) -> Self {
        let address = environment.get("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(name),
            };
            let told = |e: &std::io::Error| log::warn!("NOTIFY_SOCKET is no address: {e}");
            address.inspect_err(told).ok()
        });
        Self(address.map(|address| {
            let is_over = Mutex::new(false);
            Arc::new(Manager { address, is_over })
        }))
    }

    /// Every listener listens. The process says that it is the main one: after an upgrade the manager does not know.
    pub fn ready(&self, status: &str) {
        self.say(&format!(
            "READY=1\nMAINPID={}\nSTATUS={status}",
            std::process::id()
        ));
    }

    /// A reload begins; [`Notify::reloaded`] follows, whatever comes of it.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.say(&format!(
            "RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading"
        ));
    }

    pub fn reloaded(&self, status: &str) {
        self.say(&format!("READY=1\nSTATUS={status}"));
    }

    /// It is told nothing after that.
    pub fn stopping(&self) {
        self.say("STOPPING=1\nSTATUS=draining");
        self.leave();
    }

    /// From now on another process speaks for the service.
    pub fn leave(&self) {
        if let Some(manager) = &self.0 {
            *manager.is_over.lock() = true;
        }
    }

    fn say(&self, text: &str) {
        let Some(manager) = &self.0 else {
            return;
        };
        let is_over = manager.is_over.lock();
        if *is_over {
            return;
        }
        let said = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to_addr(text.as_bytes(), &manager.address));
        if let Err(e) = said {
            log::warn!("the service manager cannot be told: {e}");
        }
    }
}
