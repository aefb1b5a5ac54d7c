//! A connection to Redis for the command line: nobody waits there but the operator.

use redis::RedisError;

use super::{Connection, RedisConfig};
use crate::config::Problems;

/// # Errors
/// Why there is no connection, and what to do about it.
pub async fn connect(config: RedisConfig) -> Result<Connection, String> {
    let mut problems = Problems::default();
    let topology = config.topology(&mut problems);
    problems.none_or(()).map_err(|faults| faults.to_string())?;
    let Some(topology) = topology else {
        return Err(
            "no redis is configured: set REDIS_HOST or `redis` in the YAML as the gateways have it; \
             without redis, keys stand in the YAML under `auth.api_keys`"
                .to_owned(),
        );
    };
    let connection = topology.connect(topology.connect_timeout).await;
    connection.map_err(|e: RedisError| {
        format!(
            "{topology} cannot be used: {e}; \
             check that it runs, and that the settings under `redis` and REDIS_* are those of the gateways"
        )
    })
}
