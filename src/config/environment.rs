//! The documented environment variables, each with the place in the file that it wins over.
//!
//! This is the only module that reads the process environment.

use std::collections::BTreeMap;

use serde_yaml::{Mapping, Value};

use super::Problems;

/// The environment that the process was started with.
#[derive(Debug, Clone)]
pub struct Environment(BTreeMap<String, String>);

/// How the text of a variable becomes a YAML value.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    Flag,
    /// Whole milliseconds, as the documentation has them.
    Millis,
    /// Entries separated by commas.
    List,
}

/// Every documented variable, and our own additions at the end.
const VARIABLES: &[(&str, &str, Kind)] = &[
    ("NODE_ENV", "environment", Kind::Text),
    ("SERVICE_NAME", "service_name", Kind::Text),
    ("PORT", "server.port", Kind::Number),
    ("HOST", "server.host", Kind::Text),
    ("REDIS_HOST", "redis.host", Kind::Text),
    ("REDIS_PORT", "redis.port", Kind::Number),
    ("REDIS_USERNAME", "redis.username", Kind::Text),
    ("REDIS_PASSWORD", "redis.password", Kind::Text),
    ("REDIS_DB", "redis.db", Kind::Number),
    ("JWT_SECRET", "auth.jwt.secret", Kind::Text),
    ("JWT_ACCESS_SECRET", "auth.jwt.access_secret", Kind::Text),
    ("JWT_REFRESH_SECRET", "auth.refresh.secret", Kind::Text),
    ("JWT_EXPIRES_IN", "auth.refresh.access_life", Kind::Text),
    ("JWT_ACCESS_EXPIRY", "auth.refresh.access_life", Kind::Text),
    (
        "JWT_REFRESH_EXPIRY",
        "auth.refresh.refresh_life",
        Kind::Text,
    ),
    ("JWT_ISSUER", "auth.jwt.issuer", Kind::Text),
    ("JWT_PUBLIC_KEY", "auth.jwt.public_key", Kind::Text),
    ("JWT_JWKS_URL", "auth.jwt.jwks_url", Kind::Text),
    ("ALLOWED_ORIGINS", "cors.allowed_origins", Kind::List),
    ("RATE_LIMIT_ENABLED", "limits.enabled", Kind::Flag),
    ("RATE_LIMIT_GLOBAL_MAX", "limits.global.max", Kind::Number),
    (
        "RATE_LIMIT_GLOBAL_WINDOW",
        "limits.global.window",
        Kind::Millis,
    ),
    ("RATE_LIMIT_TICKET_MAX", "limits.ticket.max", Kind::Number),
    (
        "RATE_LIMIT_TICKET_WINDOW",
        "limits.ticket.window",
        Kind::Millis,
    ),
    (
        "RATE_LIMIT_TICKET_BLOCK",
        "limits.ticket.block",
        Kind::Millis,
    ),
    (
        "CIRCUIT_BREAKER_TIMEOUT",
        "timeouts.attempt_cap",
        Kind::Millis,
    ),
    (
        "CIRCUIT_BREAKER_ERROR_THRESHOLD",
        "breaker.error_percent",
        Kind::Number,
    ),
    (
        "CIRCUIT_BREAKER_RESET_TIMEOUT",
        "breaker.reset",
        Kind::Millis,
    ),
    (
        "CIRCUIT_BREAKER_VOLUME_THRESHOLD",
        "breaker.volume",
        Kind::Number,
    ),
    ("TIMEOUT_DEFAULT", "timeouts.default", Kind::Millis),
    ("TIMEOUT_PAYMENT", "timeouts.payment", Kind::Millis),
    ("TIMEOUT_NFT_MINTING", "timeouts.nft_minting", Kind::Millis),
    ("LOG_LEVEL", "log.level", Kind::Text),
    ("LOG_FORMAT", "log.format", Kind::Text),
    ("ENABLE_METRICS", "ops.metrics", Kind::Flag),
    ("ENABLE_TRACING", "tracing.enabled", Kind::Flag),
    ("SWAGGER_HOST", "server.public_host", Kind::Text),
    ("RUNTIME_DIRECTORY", "server.runtime_dir", Kind::Text),
    ("DRAIN_DELAY", "server.drain_delay", Kind::Text),
    ("OPS_LISTEN", "ops.listen", Kind::Text),
    ("SERVER_THREADS", "server.threads", Kind::Number),
    ("TRUSTED_PROXIES", "server.trusted_proxies", Kind::List),
    ("SERVER_PROTOCOL", "server.protocol", Kind::Text),
    ("TLS_CLIENT_CA", "tls.client.ca", Kind::Text),
    ("MAX_CONNECTIONS", "server.connections.max", Kind::Number),
    (
        "MAX_CONNECTIONS_PER_ADDRESS",
        "server.connections.per_address",
        Kind::Number,
    ),
    ("LIMITS_FLOOD_MAX", "limits.flood.per_second", Kind::Number),
    ("REDIS_TLS", "redis.tls.enabled", Kind::Flag),
    ("REDIS_SENTINEL_MASTER", "redis.sentinel.master", Kind::Text),
    ("REDIS_SENTINELS", "redis.sentinel.nodes", Kind::List),
    ("REDIS_CLUSTER_NODES", "redis.cluster.nodes", Kind::List),
];

/// The one certificate that variables can name, in place of those of the file.
const CERTIFICATE: [(&str, &str); 2] = [("TLS_CERTIFICATE", "certificate"), ("TLS_KEY", "key")];

/// Keys of one service's breaker, and the variable that wins over them for all services.
const BREAKER_KEYS: &[(&str, &str)] = &[
    ("CIRCUIT_BREAKER_ERROR_THRESHOLD", "error_percent"),
    ("CIRCUIT_BREAKER_RESET_TIMEOUT", "reset"),
    ("CIRCUIT_BREAKER_VOLUME_THRESHOLD", "volume"),
];

// === impl Environment ===

impl Environment {
    /// The variables of this process. A variable set to nothing counts as not set.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    pub fn of_this_process() -> Self {
        Self::from_pairs(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(
            pairs
                .into_iter()
                .filter(|(_, value)| !value.is_empty())
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Lays every variable that is set over the file. Returns the places that it wrote, with the variable's name.
    pub(super) fn overlay(
        &self,
        file: &mut Value,
        problems: &mut Problems,
    ) -> BTreeMap<String, String> {
        let mut written = BTreeMap::new();
        for &(name, path, kind) in VARIABLES {
            let Some(text) = self.get(name) else { continue };
            match kind.value(text) {
                Ok(value) => {
                    set(file, path, value);
                    written.insert(path.to_owned(), name.to_owned());
                }
                Err(fault) => problems.add(name, fault),
            }
        }
        self.overlay_certificate(file, &mut written);
        self.overlay_services(file, &mut written);
        written
    }

    /// One without the other is a fault, and told as that of the key that is missing.
    fn overlay_certificate(&self, file: &mut Value, written: &mut BTreeMap<String, String>) {
        let mut pair = Mapping::new();
        for (variable, key) in CERTIFICATE {
            if let Some(path) = self.get(variable) {
                pair.insert(key.into(), path.into());
                written.insert("tls.certificates[0]".into(), variable.to_owned());
                written.insert(format!("tls.certificates[0].{key}"), variable.to_owned());
            }
        }
        if !pair.is_empty() {
            set(
                file,
                "tls.certificates",
                Value::Sequence(vec![Value::Mapping(pair)]),
            );
        }
    }

    /// `AUTH_SERVICE_URL` is the URL of the service `auth-service`: a service added in YAML has its variable too.
    fn overlay_services(&self, file: &mut Value, written: &mut BTreeMap<String, String>) {
        let Some(services) = file.get_mut("services").and_then(Value::as_mapping_mut) else {
            return;
        };
        for (name, service) in services.iter_mut() {
            let (Some(name), Some(service)) = (name.as_str(), service.as_mapping_mut()) else {
                continue;
            };
            let variable = format!("{}_URL", name.replace('-', "_").to_uppercase());
            if let Some(urls) = self.get(&variable) {
                service.insert("url".into(), urls.into());
                service.remove("instances");
                written.insert(format!("services.{name}.url"), variable);
            }
            if let Some(breaker) = service.get_mut("breaker").and_then(Value::as_mapping_mut) {
                for (variable, key) in BREAKER_KEYS {
                    if self.get(variable).is_some() {
                        breaker.remove(*key);
                    }
                }
            }
        }
    }
}

// === impl Kind ===

impl Kind {
    fn value(self, text: &str) -> Result<Value, String> {
        let number = || {
            text.trim()
                .parse::<u64>()
                .map_err(|_| format!("`{text}` is not a whole number"))
        };
        match self {
            Kind::Text => Ok(text.into()),
            Kind::Number => number().map(Value::from),
            Kind::Millis => number()
                .map(|ms| format!("{ms}ms").into())
                .map_err(|fault| fault + " of milliseconds"),
            Kind::Flag => match text.trim() {
                "true" | "1" | "yes" | "on" => Ok(true.into()),
                "false" | "0" | "no" | "off" => Ok(false.into()),
                _ => Err(format!("`{text}` is neither true nor false")),
            },
            Kind::List => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|e| !e.is_empty())
                .map(Value::from)
                .collect::<Vec<_>>()
                .into()),
        }
    }
}

/// Writes `value` at a dotted path, making the mappings on the way.
fn set(file: &mut Value, path: &str, value: Value) {
    let mut place = file;
    for key in path.split('.') {
        if place.is_null() {
            *place = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(mapping) = place else {
            return; // a fault that is told when the file is read as what it should be
        };
        place = mapping.entry(key.into()).or_insert(Value::Null);
    }
    *place = value;
}
