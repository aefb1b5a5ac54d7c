//! `websocket` of a route.

use std::time::Duration;

use http::HeaderValue;
use http::header::GetAll;
use serde::{Deserialize, Serialize};

use super::handshake::TOKEN_PROTOCOL;
use crate::admit::cors::{OriginNotAllowed, check_origin};
use crate::admit::head::is_token_byte;
use crate::config::{Bytes, Duration as Time, Problems};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocketConfig {
    /// Of pages that may ask for one; default: those of `cors`.
    pub origins: Option<Vec<String>>,
    /// Without a byte from either side.
    pub idle_timeout: Time,
    /// Of one frame's payload.
    pub max_frame: Bytes,
    /// Subprotocols that may be agreed on; none: any.
    pub protocols: Vec<String>,
}

/// What a route's WebSockets may be.
#[derive(Debug)]
pub struct WebSocket {
    /// In lower case.
    origins: Option<Vec<String>>,
    pub idle_timeout: Duration,
    pub max_frame: u64,
    pub protocols: Vec<String>,
}

/// A control frame may have so much (RFC 6455, section 5.5).
const SMALLEST_MAX: u64 = 125;

impl Default for WebSocketConfig {
    fn default() -> Self {
        Self {
            origins: None,
            idle_timeout: Time::secs(60),
            max_frame: Bytes(1 << 20),
            protocols: Vec::new(),
        }
    }
}

impl WebSocketConfig {
    pub fn compile(self, place: &str, problems: &mut Problems) -> WebSocket {
        let Self {
            origins,
            idle_timeout,
            max_frame,
            protocols,
        } = self;
        for (i, origin) in origins.iter().flatten().enumerate() {
            check_origin(&format!("{place}.origins[{i}]"), origin, problems);
        }
        if idle_timeout.0.is_zero() {
            problems.add(
                format!("{place}.idle_timeout"),
                "must be longer than nothing",
            );
        }
        if max_frame.0 < SMALLEST_MAX {
            let fault = "must be at least 125B, which a ping may have";
            problems.add(format!("{place}.max_frame"), fault);
        }
        for (i, protocol) in protocols.iter().enumerate() {
            let place = || format!("{place}.protocols[{i}]");
            if protocol == TOKEN_PROTOCOL {
                problems.add(
                    place(),
                    "`bearer` stands before a token; it is always there",
                );
            } else if protocol.is_empty() || !protocol.bytes().all(is_token_byte) {
                problems.add(
                    place(),
                    format!("`{protocol}` is not the name of a subprotocol"),
                );
            }
        }
        let lower = |origins: Vec<String>| origins.iter().map(|o| o.to_ascii_lowercase()).collect();
        WebSocket {
            origins: origins.map(lower),
            idle_timeout: idle_timeout.0,
            max_frame: max_frame.0,
            protocols,
        }
    }
}

impl WebSocket {
    /// `foreign`: what `cors` says of it.
    ///
    /// # Errors
    /// When it is none of the route's.
    pub fn check_origin(
        &self,
        origin: GetAll<'_, HeaderValue>,
        foreign: Option<OriginNotAllowed>,
    ) -> Result<(), OriginNotAllowed> {
        let Some(allowed) = &self.origins else {
            return foreign.map_or(Ok(()), Err);
        };
        let mut origins = origin.iter();
        let is_allowed = match (origins.next(), origins.next()) {
            (None, _) => true, // not a browser
            (Some(origin), None) => allowed
                .iter()
                .any(|allowed| origin.as_bytes().eq_ignore_ascii_case(allowed.as_bytes())),
            (Some(_), Some(_)) => false,
        };
        match is_allowed {
            true => Ok(()),
            false => Err(OriginNotAllowed),
        }
    }
}
