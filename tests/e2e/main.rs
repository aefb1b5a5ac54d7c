//! End-to-end tests: the real binary, raw bytes on the wire, and what backends, log and metrics saw.
//!
//! One file a room, in the order in which a request meets them.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test panics where it cannot go on, and reads an environment of its own"
)]

mod support;

mod smoke;

mod connections;
mod proxy_protocol;
mod redirect;
mod tls;
mod unix_listeners;

mod head;
mod order;
mod routing;
mod sizes;
mod slow_clients;

mod grpc;
mod http2;
mod http2_attacks;
mod http2_conformance;
mod http2_ends;
mod http2_upstreams;

mod cors;

mod api_keys;
mod auth;
mod jwks;
mod key_cli;
mod permissions;

mod logout;
mod refresh;
mod revocation;

mod limits;
mod redis_away;
mod redis_topologies;
mod shared_limits;

mod users;
mod validation;
mod venues;

mod idempotency;

mod answers;
mod cache;

mod response_cache;
mod rfc9111;

mod aborts;
mod aggregates;
mod balancing;
mod batch;
mod batch_gone;
mod breaker;
mod deadlines;
mod failures;
mod headers;
mod outliers;
mod pools;
mod retries;
mod unix_sockets;
mod upstream_tls;
mod webhooks;

mod chaos;
mod exhausted;
mod loops;
mod overload;

mod events;
mod websocket;

mod documentation;

mod log_file;
mod logs;
mod metrics;
mod ops;

mod config;
mod containers;
mod diff;
mod drill;
mod reload;
mod reload_process;
mod shutdown;
mod signals;
mod soak;
mod systemd;
mod takeover;
mod unit_files;
mod upgrade;
