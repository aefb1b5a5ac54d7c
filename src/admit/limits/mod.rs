//! How often? A flood guard on the address before anything costs us, and exact windows per caller after it is known.
//!
//! Limits add up: a request meets the global one and those that its route names. All of them are decided in one step,
//! and a request that is refused by one spends nothing on any (decision 20).

mod failures;
mod window;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use once_cell::sync::Lazy;
use pingora_limits::rate::Rate;
use serde::Deserialize;

use super::auth::Caller;
use crate::config::{Duration, Problems};
pub use failures::{FailureGuard, FailureGuardConfig};
use window::{Ask, Windows};
pub use window::{Exceeded, Standing};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    pub enabled: bool,
    pub flood: FloodConfig,
    pub global: GlobalConfig,
    /// Accepted with the documented variables; the purchase limit itself needs the body's event.
    pub ticket: TicketConfig,
    /// Further limits by name, for routes to list.
    pub rules: BTreeMap<String, RuleConfig>,
    /// Most keys that are remembered; the longest idle give way.
    pub max_keys: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FloodConfig {
    /// Requests a second from one address, whoever they are for. A guard, counted in one-second steps.
    pub per_second: u32,
}

/// The one rule that has defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GlobalConfig {
    pub max: u32,
    pub window: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    pub max: u32,
    pub window: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TicketConfig {
    pub max: u32,
    pub window: Duration,
    pub block: Duration,
}

/// One limit: at most `max` requests of a key in any `window`.
#[derive(Debug)]
pub struct Rule {
    id: u32,
    max: u32,
    window: std::time::Duration,
}

/// Every limit of the gateway, and who has spent what.
pub struct Limits {
    enabled: bool,
    flood: Option<Flood>,
    rules: BTreeMap<String, Arc<Rule>>,
    windows: Windows,
}

struct Flood {
    per_second: isize,
    rate: Rate,
}

impl Default for GlobalConfig {
    fn default() -> Self {
        Self {
            max: 100,
            window: Duration::secs(60),
        }
    }
}

/// The name of the limit that every route has unless it says otherwise.
pub const GLOBAL: &str = "global";

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            flood: FloodConfig::default(),
            global: GlobalConfig::default(),
            ticket: TicketConfig::default(),
            rules: BTreeMap::new(),
            max_keys: 1_000_000,
        }
    }
}

impl Default for FloodConfig {
    fn default() -> Self {
        Self { per_second: 500 }
    }
}

impl Default for TicketConfig {
    fn default() -> Self {
        Self {
            max: 5,
            window: Duration::secs(60),
            block: Duration::secs(300),
        }
    }
}

impl LimitsConfig {
    pub fn compile(self, problems: &mut Problems) -> Limits {
        let Self {
            enabled,
            flood,
            global,
            ticket,
            rules: named,
            max_keys,
        } = self;
        let FloodConfig { per_second } = flood;
        let TicketConfig { max, window, block } = ticket;
        check_rule("limits.ticket", max, window, problems);
        if block.0.is_zero() {
            problems.add("limits.ticket.block", "must be longer than nothing");
        }
        if per_second == 0 {
            problems.add(
                "limits.flood.per_second",
                "must be at least 1; set limits.enabled: false to turn limits off",
            );
        }
        if max_keys < 1_000 {
            problems.add("limits.max_keys", "must be at least 1000");
        }
        if named.contains_key(GLOBAL) {
            problems.add("limits.rules.global", "is the name of limits.global");
        }
        let mut rules = BTreeMap::new();
        let GlobalConfig { max, window } = global;
        let global = RuleConfig { max, window };
        for (name, RuleConfig { max, window }) in
            std::iter::once((GLOBAL.to_owned(), global)).chain(named)
        {
            let place = if name == GLOBAL {
                "limits.global".to_owned()
            } else {
                format!("limits.rules.{name}")
            };
            check_rule(&place, max, window, problems);
            let id = rules.len() as u32;
            rules.insert(
                name,
                Arc::new(Rule {
                    id,
                    max,
                    window: window.0,
                }),
            );
        }
        let flood = enabled.then(|| Flood {
            per_second: isize::try_from(per_second).unwrap_or(isize::MAX),
            rate: Rate::new(std::time::Duration::from_secs(1)),
        });
        Limits {
            enabled,
            flood,
            rules,
            windows: Windows::new(max_keys),
        }
    }
}

fn check_rule(place: &str, max: u32, window: Duration, problems: &mut Problems) {
    if max == 0 {
        problems.add(format!("{place}.max"), "must be at least 1");
    }
    if window < Duration::millis(100) || window > Duration::secs(7 * 86_400) {
        problems.add(format!("{place}.window"), "must be from 100ms to 7d");
    }
}

// === impl Limits ===

impl Limits {
    pub fn rule(&self, name: &str) -> Option<&Arc<Rule>> {
        self.rules.get(name)
    }

    /// The flood guard: cheap, before anything else is done for an address.
    ///
    /// # Errors
    /// When the address has sent more than its share within this second.
    pub fn check_address(&self, client: IpAddr) -> Result<(), Exceeded> {
        let Some(flood) = &self.flood else {
            return Ok(());
        };
        if flood.rate.observe(&counted(client), 1) > flood.per_second {
            return Err(Exceeded {
                limit: flood.per_second as u32,
                retry_after_secs: 1,
            });
        }
        Ok(())
    }

    /// Spends one request of whoever calls (user, API key, or address) on every rule of the route, or on none.
    ///
    /// # Errors
    /// When one of the rules is used up: with the time until this request would pass.
    pub fn spend(
        &self,
        rules: &[Arc<Rule>],
        caller: Option<&Caller>,
        client: IpAddr,
        now: Instant,
    ) -> Result<Option<Standing>, Exceeded> {
        if !self.enabled || rules.is_empty() {
            return Ok(None);
        }
        let who = match caller {
            Some(caller) => self.windows.hash(&caller.limit_key()),
            None => self.windows.hash(&("rl:ip:", counted(client))),
        };
        let mut asks = [Ask::default(); MAX_RULES];
        for (ask, rule) in asks.iter_mut().zip(rules) {
            *ask = Ask {
                key: self.windows.hash(&(rule.id, who)),
                max: rule.max,
                window: rule.window,
            };
        }
        self.windows
            .spend(&asks[..rules.len().min(MAX_RULES)], now)
            .map(Some)
    }
}

/// What an address is counted on: itself, or its /64, which is what one IPv6 subscriber has.
fn counted(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
    }
}

/// Most limits that one route may name, the global one with them.
pub const MAX_RULES: usize = 4;

// === impl Standing ===

const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

impl Standing {
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds), as the old gateway sent them.
    pub fn stamp(&self, fields: &mut HeaderMap) {
        fields.insert(X_RATELIMIT_LIMIT, number(self.limit));
        fields.insert(X_RATELIMIT_REMAINING, number(self.remaining));
        fields.insert(X_RATELIMIT_RESET, number(self.reset_secs));
    }
}

impl Exceeded {
    /// The same for a request that was refused.
    pub fn stamp(&self, fields: &mut HeaderMap) {
        Standing {
            limit: self.limit,
            remaining: 0,
            reset_secs: self.retry_after_secs,
        }
        .stamp(fields);
    }
}

/// A number as a header value; the small ones, which nearly all are, are made once.
fn number(n: u32) -> HeaderValue {
    static SMALL: Lazy<Vec<HeaderValue>> = Lazy::new(|| {
        // A clone of a shared value costs a count; that of a fresh one would first have to make it shared.
        (0..1024u32)
            .map(HeaderValue::from)
            .inspect(|value| drop(value.clone()))
            .collect()
    });
    SMALL
        .get(n as usize)
        .cloned()
        .unwrap_or_else(|| HeaderValue::from(n))
}
