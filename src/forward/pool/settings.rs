//! What a service's configuration comes to: pools whose settings are equal are one pool, which a reload leaves alone.

use serde_yaml::Value;

use super::{Defaults, ServiceConfig};
use crate::config::tree;
use crate::forward::breaker::BreakerOverrides;

/// Every key of a service with what holds for it. What the files hold that it names is a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings(Value);

/// Keys that say nothing of how an instance is reached, whatever further ones there are.
const NOT_OF_THE_WAY: [&str; 8] = [
    "url",
    "instances",
    "breaker",
    "retry",
    "balance",
    "outlier",
    "health",
    "overload",
];

impl Settings {
    pub fn of(config: &ServiceConfig, defaults: &Defaults) -> Self {
        fn or<T: Clone>(own: &Option<T>, usual: &T) -> Option<T> {
            Some(own.as_ref().unwrap_or(usual).clone())
        }
        let breaker = defaults.breaker.overridden_by(config.breaker.clone());
        Self(tree(&ServiceConfig {
            // The routes' matter.
            timeout: None,
            breaker: BreakerOverrides::from(breaker),
            retry: or(&config.retry, &defaults.retry),
            balance: or(&config.balance, &defaults.balance),
            outlier: or(&config.outlier, &defaults.outlier),
            health: or(&config.health, &defaults.health),
            overload: or(&config.overload, &defaults.overload),
            ..config.clone()
        }))
    }

    /// Whether instances are reached in the same way, as far as that is not their own.
    pub fn reaches_as(&self, other: &Self) -> bool {
        self.way() == other.way()
    }

    fn way(&self) -> Value {
        let mut way = self.0.clone();
        if let Some(keys) = way.as_mapping_mut() {
            NOT_OF_THE_WAY
                .iter()
                .for_each(|key| drop(keys.remove(*key)));
        }
        way
    }
}
