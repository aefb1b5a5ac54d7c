//! How long? One budget for a whole request, spent by every attempt; each wait is capped by what is left of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::config::{self, Problems};
use crate::observe::logging::unix_millis;

/// Times by name, for services and routes to refer to; `default`, `connect` and `attempt_cap` are the gateway's own.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    pub default: config::Duration,
    pub payment: config::Duration,
    pub nft_minting: config::Duration,
    /// To establish a connection to an instance, TLS included.
    pub connect: config::Duration,
    /// Caps every attempt (`CIRCUIT_BREAKER_TIMEOUT`, when it is set); not set: the budget alone counts.
    pub attempt_cap: Option<config::Duration>,
}

/// A time, or the name of one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub struct TimeoutConfig(pub String);

/// The times of one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For the whole answer.
    pub budget: Duration,
    pub connect: Duration,
    /// For the head of one attempt's answer.
    pub attempt: Duration,
}

/// Resolves the names.
#[derive(Debug)]
pub struct NamedTimeouts {
    named: BTreeMap<&'static str, Duration>,
    connect: Duration,
    attempt_cap: Option<Duration>,
}

/// When a request must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

/// The documented header, from clients and to backends: milliseconds since the Unix epoch.
pub const X_REQUEST_DEADLINE: HeaderName = HeaderName::from_static("x-request-deadline");

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The client's own deadline is not a time.
#[derive(Debug, PartialEq, Eq)]
pub struct NotATime;

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            default: config::Duration::secs(10),
            payment: config::Duration::secs(30),
            nft_minting: config::Duration::secs(120),
            connect: config::Duration::secs(2),
            attempt_cap: None,
        }
    }
}

impl TimeoutsConfig {
    pub fn compile(self, problems: &mut Problems) -> NamedTimeouts {
        let Self {
            default,
            payment,
            nft_minting,
            connect,
            attempt_cap,
        } = self;
        let named = [
            ("default", default),
            ("payment", payment),
            ("nft_minting", nft_minting),
            ("connect", connect),
        ];
        for (name, time) in named
            .iter()
            .copied()
            .chain(attempt_cap.map(|cap| ("attempt_cap", cap)))
        {
            if time.0.is_zero() {
                problems.add(format!("timeouts.{name}"), "must be longer than nothing");
            }
        }
        NamedTimeouts {
            named: named
                .into_iter()
                .take(3)
                .map(|(name, time)| (name, time.0))
                .collect(),
            connect: connect.0,
            attempt_cap: attempt_cap.map(|cap| cap.0),
        }
    }
}

// === impl NamedTimeouts ===

impl NamedTimeouts {
    pub fn connect(&self) -> Duration {
        self.connect
    }

    /// The times of a route that has `budget`, or, where it names none, its service's, or the default.
    pub fn resolve(
        &self,
        place: &str,
        budget: Option<&TimeoutConfig>,
        problems: &mut Problems,
    ) -> Option<Timeouts> {
        let budget = match budget {
            None => self.named["default"],
            Some(TimeoutConfig(text)) => match (
                self.named.get(text.as_str()),
                text.parse::<config::Duration>(),
            ) {
                (Some(time), _) => *time,
                (None, Ok(time)) if !time.0.is_zero() => time.0,
                (None, Ok(_)) => {
                    problems.add(format!("{place}.timeout"), "must be longer than nothing");
                    return None;
                }
                (None, Err(fault)) => {
                    let names: Vec<&str> = self.named.keys().copied().collect();
                    problems.add(
                        format!("{place}.timeout"),
                        format!("{fault}, or the name of one: {}", names.join(", ")),
                    );
                    return None;
                }
            },
        };
        let attempt = self.attempt_cap.map_or(budget, |cap| cap.min(budget));
        Some(Timeouts {
            budget,
            connect: self.connect.min(attempt),
            attempt,
        })
    }
}

// === impl Deadline ===

impl Deadline {
    /// The route's budget from `start` on, or the client's own deadline, in our field or in gRPC's, where that is earlier.
    ///
    /// # Errors
    /// When the client's deadline cannot be read: it would wait for an answer of which we do not know when it is too late.
    pub fn of(fields: &HeaderMap, start: Instant, budget: Duration) -> Result<Self, NotATime> {
        let grpc = fields
            .get(GRPC_TIMEOUT)
            .and_then(|text| grpc_timeout(text.as_bytes()));
        let by_route = start + grpc.map_or(budget, |time| time.min(budget));
        let mut values = fields.get_all(X_REQUEST_DEADLINE).iter();
        let value = match (values.next(), values.next()) {
            (None, _) => return Ok(Self(by_route)),
            (Some(value), None) => value,
            (Some(_), Some(_)) => return Err(NotATime),
        };
        let digits = value.as_bytes();
        if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_digit) {
            return Err(NotATime);
        }
        let at = digits
            .iter()
            .fold(0, |at: u64, digit| at * 10 + u64::from(digit - b'0'));
        let left = Duration::from_millis(at.saturating_sub(unix_millis()));
        Ok(Self(by_route.min(Instant::now() + left.min(budget))))
    }

    /// This moment.
    pub fn at_most(moment: Instant) -> Self {
        Self(moment)
    }

    /// The earlier one.
    pub fn no_later_than(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    pub fn at(self) -> Instant {
        self.0
    }

    /// For the backend: when its answer is no use any more.
    pub fn header(self) -> HeaderValue {
        let left = self.0.saturating_duration_since(Instant::now());
        HeaderValue::from(unix_millis() + left.as_millis() as u64)
    }

    /// What is left, or `None` when it is over.
    pub fn left(self, now: Instant) -> Option<Duration> {
        self.0
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }
}

/// At most eight digits and a unit (gRPC over HTTP/2); what is none is left to the backend to judge.
fn grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number: u64, digit| {
        number * 10 + u64::from(digit - b'0')
    });
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_has_a_unit() {
        for (text, expected) in [
            ("1S", Some(1000)),
            ("250m", Some(250)),
            ("2M", Some(120_000)),
            ("00000003H", Some(10_800_000)),
            ("5000u", Some(5)),
            ("1000000n", Some(1)),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("123456789S", None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text}");
        }
    }
}
