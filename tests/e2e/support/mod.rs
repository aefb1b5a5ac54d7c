//! What the end-to-end tests are written with: the real gateway as a child process, a recording
//! backend behind it, a client in front of it that keeps exact bytes, tokens, and bursts.
//!
//! A test file says `use crate::support::prelude::*;`.
#![allow(
    dead_code,
    unused_imports,
    reason = "every test file uses a part of the support, and none uses all of it"
)]

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod burst;
pub mod certificates;
pub mod chromium;
pub mod client;
pub mod firewall;
pub mod fleet;
pub mod gateway;
pub mod http2;
pub mod instance;
pub mod limited;
pub mod load;
pub mod nginx;
pub mod redis;
pub mod relay;
pub mod runtime;
pub mod tenancy;
pub mod tls;
pub mod token;
pub mod upstream;
pub mod wait;
pub mod websocket;

/// The names that nearly every test needs.
pub mod prelude {
    pub use super::burst::burst;
    pub use super::certificates::Authority;
    pub use super::client::{Broken, Client, Connection, Request, Response, noise, number};
    pub use super::firewall::BlackHole;
    pub use super::fleet::{Conf, Fleet};
    pub use super::gateway::{Exit, Gateway, GatewayBuilder, SERVICES, TempFile};
    pub use super::instance::Instance;
    pub use super::load::{Exchange, Load, Running, Traffic, alone};
    pub use super::redis::{Between, Cluster, Redis, Watched};
    pub use super::relay::{Relay, Seen};
    pub use super::runtime::{Runtime, is_gone};
    pub use super::tls::{TlsClient, Wire};
    pub use super::token::{self, KeyPair, Token};
    pub use super::upstream::{Recorded, Reply, Upstream, refused_addr};
    pub use super::wait::{wait_until, within};
    pub use jsonwebtoken::Algorithm;
    pub use serde_json::{Value, json};
    pub use std::net::SocketAddr;
    pub use std::time::{Duration, Instant};
}

/// Locks also what a panicking thread has left: the test shall show the first panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
