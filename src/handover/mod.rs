//! A new process takes the place of the one that serves, and nothing is refused, dropped or forgotten.
//!
//! | the old process | the new one |
//! |---|---|
//! | starts the new one, with one end of a pair of sockets as its standard input | |
//! | `hello`: which sockets listen | |
//! | | compiles its configuration, binds what the old one does not have, looks at the pools, reads what is revoked |
//! | | `ready`, or `failed` and why |
//! | stops accepting: who comes now waits in the sockets' queues | |
//! | `listeners` with the sockets (`more-listeners` before, where there are many), what it remembers in parts, `end` | |
//! | | takes over, listens: `serving` |
//! | `known`: it does not end the new one any more | |
//! | | says to the service manager that it is the main one |
//! | drains; ends of writes as they come; what its last requests changed; ends | |
//!
//! Whatever else happens, the old process ends the new one and accepts again. The point of no return is the new one's
//! receipt of the sockets: should the old one be gone after that, the new one serves, before that it ends too. Why not
//! Pingora's own hand-over: docs/decisions/0021-upgrade.md.

mod clock;
mod giver;
mod heir;
mod memory;
mod seeds;
mod sockets;
mod wire;

use serde::{Deserialize, Serialize};

pub use clock::Clock;
pub use giver::{Program, Upgrades};
pub use heir::{Heir, Succession};
pub use memory::Memory;
pub use seeds::Seeded;

use crate::listen::Key;

/// Tells the new process that it is one: the value is the old one's id.
const MARK: &str = "API_GATEWAY_UPGRADE_FROM";

/// Of what is said; another one is not understood. What is remembered may change without a new number.
const PROTOCOL: u32 = 1;

const HELLO: &str = "hello";
const READY: &str = "ready";
const FAILED: &str = "failed";
const LISTENERS: &str = "listeners";
/// Before `listeners`, where one frame does not hold all.
const MORE_LISTENERS: &str = "more-listeners";
const END: &str = "end";
const SERVING: &str = "serving";
const KNOWN: &str = "known";

/// What the old process says first.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    version: String,
    listeners: Vec<Key>,
    /// It can be talked to at a control socket.
    has_control: bool,
    /// It says `known`.
    #[serde(default)]
    confirms: bool,
    /// Where it decides which writes have run ([`crate::admit::idempotency::Ledger::place`]).
    #[serde(default)]
    writes: Option<String>,
}

/// The new process could take over.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// It has not read what is revoked.
    wants_revocations: bool,
}

/// It could not, and why.
#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    reason: String,
}
