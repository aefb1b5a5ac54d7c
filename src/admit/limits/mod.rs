//! How often? A flood guard on the address before anything costs us, and exact windows per caller after it is known.
//!
//! Limits add up: a request meets the global one and those that its route names. All of them are decided in one step,
//! and a request that is refused by one spends nothing on any (decision 20).

mod config;
pub mod event;
mod failures;
mod shared;
mod window;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, HeaderValue};
use once_cell::sync::Lazy;
use pingora_limits::rate::Rate;

use super::auth::{Caller, Tier};
use crate::route::{METHODS, MethodIndex};
use crate::state::{chosen_key_part, key_part};
pub use config::LimitsConfig;
use config::check_rule;
pub use failures::{FailureGuard, FailureGuardConfig, Failures};
use shared::Decision;
pub use shared::{Books, Shared};
use window::Ask;
pub use window::{Exceeded, Mark, Page, Standing, Windows};

/// One limit: at most `max` requests of a key in any `window`.
#[derive(Debug)]
pub struct Rule {
    /// Empty for the global one.
    pub name: Box<str>,
    pub max: u32,
    pub window: std::time::Duration,
    /// How long one who exceeds it is kept out.
    pub block: std::time::Duration,
    pub methods: [bool; METHODS.len()],
    pub skip_successes: bool,
    pub per_event: bool,
}

/// Whose request it is, and what it is.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub caller: Option<&'a Caller>,
    pub client: IpAddr,
    pub method: MethodIndex,
    /// What the body says, on a route with a limit by event.
    pub event: Option<&'a str>,
}

/// Every limit of the gateway, and who has spent what.
pub struct Limits {
    enabled: bool,
    /// Requests a second from one address.
    flood: isize,
    rules: BTreeMap<String, Arc<Rule>>,
    spent: Arc<Spent>,
    /// One window for all processes, where Redis is configured.
    shared: Option<Shared>,
}

/// Who has spent what in this process, whatever the limits are: it outlives them.
pub struct Spent {
    windows: Windows,
    /// Of each address, within a second.
    flood: Rate,
}

/// The name of the limit that every route has unless it says otherwise.
pub const GLOBAL: &str = "global";

/// The name of the limit of purchases, for routes to list.
const TICKET: &str = "ticket";

// === impl Limits ===

impl Limits {
    pub fn are_enabled(&self) -> bool {
        self.enabled
    }

    pub fn rule(&self, name: &str) -> Option<&Arc<Rule>> {
        self.rules.get(name)
    }

    /// The flood guard: cheap, before anything else is done for an address.
    ///
    /// # Errors
    /// When the address has sent more than its share within this second.
    pub fn check_address(&self, client: IpAddr) -> Result<(), Exceeded> {
        if self.enabled && self.spent.flood.observe(&counted(client), 1) > self.flood {
            return Err(Exceeded::after_ms(self.flood as u32, 1000));
        }
        Ok(())
    }

    /// Spends one request of whoever calls (user, API key, or address) on every rule of the route, or on none.
    ///
    /// # Errors
    /// When one of the rules is used up: with the time until this request would pass.
    pub async fn spend(
        &self,
        rules: &[Arc<Rule>],
        who: Who<'_>,
        now: Instant,
    ) -> Result<Option<Standing>, Exceeded> {
        if !self.enabled {
            return Ok(None);
        }
        let hash = self.hash(who);
        let mut asks = [Ask::default(); MAX_RULES];
        let mut count = 0;
        for (ask, rule) in asks
            .iter_mut()
            .zip(rules.iter().filter(|rule| rule.counts(who)))
        {
            *ask = self.ask(rule, who, hash);
            count += 1;
        }
        let asks = &asks[..count];
        match &self.shared {
            _ if asks.is_empty() => Ok(None),
            None => self.spent.windows.spend(asks, now).map(Some),
            Some(shared) => {
                let keys = rules
                    .iter()
                    .filter(|rule| rule.counts(who))
                    .map(|rule| rule.key(who, shared.has_slots()));
                let limits: Vec<(String, Ask)> = keys.zip(asks.iter().copied()).collect();
                // Boxed: without Redis no request carries its future about.
                Box::pin(self.spend_shared(shared, limits, now))
                    .await
                    .map(Some)
            }
        }
    }

    /// The request was answered well: those rules that do not count such requests take it back.
    pub fn forgive(&self, rules: &[Arc<Rule>], who: Who<'_>) {
        let forgiving = |rule: &&Arc<Rule>| rule.skip_successes && rule.counts(who);
        if !self.enabled || !rules.iter().any(|rule| forgiving(&rule)) {
            return;
        }
        let hash = self.hash(who);
        for rule in rules.iter().filter(forgiving) {
            self.spent.windows.forgive(&self.ask(rule, who, hash));
        }
        if let Some(shared) = &self.shared {
            let keys = rules.iter().filter(forgiving);
            let keys = keys.map(|rule| rule.key(who, shared.has_slots()));
            shared.forgive(keys.collect());
        }
    }

    fn hash(&self, who: Who<'_>) -> u64 {
        match who.caller {
            Some(caller) => self.spent.windows.hash(&caller.limit_key()),
            None => self.spent.windows.hash(&("rl:ip:", counted(who.client))),
        }
    }

    fn ask(&self, rule: &Rule, who: Who<'_>, hash: u64) -> Ask {
        let event = who.event.filter(|_| rule.per_event);
        let tier = who.caller.map_or(Tier::default(), |caller| caller.tier);
        Ask {
            key: self.spent.windows.hash(&(&*rule.name, hash, event)),
            max: rule.max.saturating_mul(tier as u32),
            window: rule.window,
            block: rule.block,
        }
    }

    async fn spend_shared(
        &self,
        shared: &Shared,
        limits: Vec<(String, Ask)>,
        now: Instant,
    ) -> Result<Standing, Exceeded> {
        let Ok(decision) = shared.spend(&limits).await else {
            let asks: Vec<Ask> = limits.iter().map(|(_, ask)| *ask).collect();
            let standing = self.spent.windows.spend(&asks, now)?;
            shared.note(limits, now);
            return Ok(standing);
        };
        let Decision {
            granted,
            block_began,
            usage,
        } = decision;
        let mut standings: Vec<Standing> = Vec::with_capacity(usage.len());
        for ((_, ask), usage) in limits.iter().zip(&usage) {
            self.spent
                .windows
                .follow(ask, usage.used, usage.leaves_in_ms, now);
            standings.push(Standing {
                limit: ask.max,
                remaining: ask.max.saturating_sub(usage.used),
                // The millisecond after the window is no part of it: a fresh grant of 60 s says 60.
                reset_secs: (usage.leaves_in_ms.saturating_sub(u32::from(granted)))
                    .div_ceil(1000)
                    .max(1),
            });
        }
        let tightest = standings
            .iter()
            .copied()
            .min_by_key(|standing| standing.remaining);
        let longest = standings
            .iter()
            .filter(|standing| standing.remaining == 0)
            .max_by_key(|standing| standing.reset_secs);
        match (granted, longest, tightest) {
            (false, Some(exceeded), _) => Err(Exceeded {
                limit: exceeded.limit,
                retry_after_secs: exceeded.reset_secs,
                block_began,
            }),
            (_, _, Some(standing)) => Ok(standing),
            // A route without limits does not come here.
            (_, _, None) => Ok(Standing {
                limit: 0,
                remaining: 0,
                reset_secs: 0,
            }),
        }
    }
}

// === impl Spent ===

impl Spent {
    /// Of so many keys at most; the longest idle give way.
    pub fn new(max_keys: usize) -> Self {
        Self {
            windows: Windows::new(max_keys),
            flood: Rate::new(std::time::Duration::from_secs(1)),
        }
    }

    pub fn windows(&self) -> &Windows {
        &self.windows
    }
}

// === impl Rule ===

impl Rule {
    pub fn counts(&self, who: Who<'_>) -> bool {
        self.methods[who.method.0]
    }

    /// The documented key in Redis, with the name of the limit behind it where that is not the global one.
    fn key(&self, who: Who<'_>, tagged: bool) -> String {
        let (prefix, id) = match who.caller.map(Caller::limit_key) {
            Some((prefix, id)) => (prefix, key_part(id)),
            None => ("rl:ip:", Cow::Owned(counted(who.client).to_string())),
        };
        // A Cluster keeps keys in one slot that have the same text in their first braces.
        let id = if tagged {
            format!("{{{id}}}").into()
        } else {
            id
        };
        match (who.event.filter(|_| self.per_event), &*self.name) {
            (Some(event), _) => format!("rl:ticket:{id}:{}", chosen_key_part(event)),
            (None, "") => format!("{prefix}{id}"),
            (None, name) => format!("{prefix}{id}:{name}"),
        }
    }
}

/// What an address is counted on: itself, or its /64, which is what one IPv6 subscriber has.
pub fn counted(client: IpAddr) -> IpAddr {
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
