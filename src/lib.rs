//! The front door of TicketToken.
//!
//! # The life of a request
//!
//! | where | what is decided |
//! |---|---|
//! | `listen` | the connection is accepted: caps, PROXY header, TLS |
//! | `connection` | the head arrives whole, in time, and is HTTP (`admit::head`) |
//! | `gateway` | the phases, in order: the table of contents |
//! | `admit` | may it go on? address, path, origin, route, size, caller, permission, limits, venues, schemas |
//! | `forward` | where to, how often, how long? instance, breaker, headers, time |
//! | `reply` | what comes back? refusals, the headers of every answer |
//! | `observe` | the log line, the metrics, the trace |
//!
//! "Decision N" in a comment is number N of docs/contract/decisions.md.
//!
//! Beside it stand `config` (what the operator wrote), `route` and `policies` (what it compiles to), `state` (what processes share),
//! `ops` (what is asked of the gateway itself), `inner` (requests of its own), `handover` (from one process to the next) and `server` (from a configuration to a running process).

mod admit;
mod cli;
mod config;
mod connection;
mod context;
mod forward;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod gateway;
mod handover;
mod inner;
mod listen;
mod observe;
mod ops;
mod policies;
mod reply;
mod route;
mod server;
mod state;

pub use cli::main;
