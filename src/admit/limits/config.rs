//! Limits as YAML writes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use serde::{Deserialize, Serialize};

use super::{GLOBAL, Limits, Rule, Shared, Spent, TICKET};
use crate::config::{Duration, Problems};
use crate::route::METHODS;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    pub enabled: bool,
    pub flood: FloodConfig,
    pub global: GlobalConfig,
    /// The limit `ticket`: of each user and event, with a block for who exceeds it.
    pub ticket: TicketConfig,
    /// Further limits by name, for routes to list.
    pub rules: BTreeMap<String, RuleConfig>,
    /// Most keys that are remembered; the longest idle give way.
    pub max_keys: usize,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FloodConfig {
    /// Requests a second from one address, whoever they are for. A guard, counted in one-second steps.
    pub per_second: u32,
}

/// The one rule that has defaults.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct GlobalConfig {
    pub max: u32,
    pub window: Duration,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    pub max: u32,
    pub window: Duration,
    /// Whose requests it counts; none: all of them.
    #[serde(default)]
    pub methods: Vec<String>,
    /// A request that the service answers with 2xx or 3xx is given back.
    #[serde(default)]
    pub skip_successes: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TicketConfig {
    pub max: u32,
    pub window: Duration,
    pub block: Duration,
}

impl Default for GlobalConfig {
    fn default() -> Self {
        Self {
            max: 100,
            window: Duration::secs(60),
        }
    }
}

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
    /// `spent` has been made for `max_keys`.
    pub fn compile(
        self,
        spent: Arc<Spent>,
        shared: Option<Shared>,
        problems: &mut Problems,
    ) -> Limits {
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
        if block < window || block > Duration::secs(7 * 86_400) {
            problems.add(
                "limits.ticket.block",
                "must be from the length of the window to 7d",
            );
        }
        let ticket = Rule {
            name: TICKET.into(),
            max,
            window: window.0,
            block: block.0,
            methods: METHODS.map(|method| method == Method::POST),
            skip_successes: false,
            per_event: true,
        };
        if per_second == 0 {
            problems.add(
                "limits.flood.per_second",
                "must be at least 1; set limits.enabled: false to turn limits off",
            );
        }
        if max_keys < 1_000 {
            problems.add("limits.max_keys", "must be at least 1000");
        }
        for own in [GLOBAL, TICKET] {
            if named.contains_key(own) {
                problems.add(
                    format!("limits.rules.{own}"),
                    format!("is the name of limits.{own}"),
                );
            }
        }
        let mut rules = BTreeMap::from([(TICKET.to_owned(), Arc::new(ticket))]);
        let GlobalConfig { max, window } = global;
        let global = RuleConfig {
            max,
            window,
            methods: Vec::new(),
            skip_successes: false,
        };
        for (name, rule) in std::iter::once((GLOBAL.to_owned(), global)).chain(named) {
            let RuleConfig {
                max,
                window,
                methods,
                skip_successes,
            } = rule;
            let place = if name == GLOBAL {
                "limits.global".to_owned()
            } else {
                format!("limits.rules.{name}")
            };
            check_rule(&place, max, window, problems);
            let methods = counted_methods(&place, &methods, problems);
            let own = if name == GLOBAL { "" } else { &name };
            rules.insert(
                name.clone(),
                Arc::new(Rule {
                    name: own.into(),
                    max,
                    window: window.0,
                    block: std::time::Duration::ZERO,
                    methods,
                    skip_successes,
                    per_event: false,
                }),
            );
        }
        Limits {
            enabled,
            flood: isize::try_from(per_second).unwrap_or(isize::MAX),
            rules,
            spent,
            shared,
        }
    }
}

fn counted_methods(
    place: &str,
    named: &[String],
    problems: &mut Problems,
) -> [bool; METHODS.len()] {
    let mut counted = [named.is_empty(); METHODS.len()];
    for (i, name) in named.iter().enumerate() {
        match METHODS.iter().position(|method| method.as_str() == name) {
            Some(place) => counted[place] = true,
            None => problems.add(
                format!("{place}.methods[{i}]"),
                format!("`{name}` is none of {METHODS:?}"),
            ),
        }
    }
    counted
}

pub fn check_rule(place: &str, max: u32, window: Duration, problems: &mut Problems) {
    if max == 0 {
        problems.add(format!("{place}.max"), "must be at least 1");
    }
    if window < Duration::millis(100) || window > Duration::secs(7 * 86_400) {
        problems.add(format!("{place}.window"), "must be from 100ms to 7d");
    }
}
