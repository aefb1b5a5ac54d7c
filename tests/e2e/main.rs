//! End-to-end tests: the real binary, raw bytes on the wire, and what backends, log and metrics saw.
//!
//! One file a room, in the order in which a request meets them.

mod support;

mod smoke;
