//! A connection to Redis for the command line: nobody waits there but the operator.

use redis::{RedisError, RedisResult};
use tokio::sync::mpsc::unbounded_channel;

use super::watch::{Watch, scan};
use super::{Connection, RedisConfig};
use crate::config::Problems;

/// All of a Redis, wherever it is.
pub struct Operator(Watch);

impl Operator {
    /// # Errors
    /// Why there is no connection, and what to do about it.
    pub async fn connect(config: RedisConfig) -> Result<Self, String> {
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
        // Nothing is tracked, so nothing is pushed.
        let (pushes, _) = unbounded_channel();
        let watch = topology.watch(topology.connect_timeout, pushes).await;
        watch.map(Self).map_err(|e: RedisError| {
            format!(
                "{topology} cannot be used: {e}; check that it runs, and that `redis` in the YAML, or REDIS_HOST, _PORT, \
                 _PASSWORD and their like, are those of the gateways"
            )
        })
    }

    /// For commands on keys.
    pub fn redis(&mut self) -> &mut Connection {
        &mut self.0.reader
    }

    /// The keys under a prefix, on every master. Some may be named twice; none is left out that was there all the time.
    ///
    /// # Errors
    /// When Redis is lost, or there are more than `most`.
    pub async fn keys(&mut self, prefix: &str, most: usize) -> RedisResult<Option<Vec<Vec<u8>>>> {
        let mut all = Vec::new();
        for master in &mut self.0.masters {
            let mut cursor = 0;
            loop {
                let (next, keys) = scan(master, prefix, cursor).await?;
                all.extend(keys);
                if all.len() > most {
                    return Ok(None);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(Some(all))
    }
}
