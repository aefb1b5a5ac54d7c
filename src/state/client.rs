//! Commands to Redis on the path of a request: a few multiplexed connections, a hard time for each command, and no wait
//! at all while Redis is away.
//!
//! A command that fails or takes too long closes its connection for all: from then on every command fails at once, until
//! the background task has a connection again that answers. So a Redis that is a black hole costs the requests of one
//! moment their time limit, and the others nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora_timeout::{timeout, tokio_timeout};
use prometheus::IntCounter;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::Notify;

use super::connection::Connection;
use super::health::{RedisHealth, RedisState};
use super::topology::{LONGEST_CONNECT, PING_EVERY, RECONNECT, Topology, silent};
use crate::observe::registry::RedisMetrics;
use crate::server::threads::{self, Threads};

/// The connections: one for what is no loop, and one for each loop, by [`threads::place`].
pub struct Redis {
    links: Box<[Link]>,
    topology: Arc<Topology>,
    health: Arc<RedisHealth>,
    refused: IntCounter,
    late: IntCounter,
    reconnects: IntCounter,
}

#[derive(Default)]
struct Link {
    connection: ArcSwapOption<Connection>,
    lost: Notify,
    /// An answer that is an error was told of, and none was good since.
    complained: AtomicBool,
}

/// Redis did not answer, or not in time.
#[derive(Debug, PartialEq, Eq)]
pub struct Away;

/// Prepares a fresh connection, before requests may use it.
#[async_trait]
pub trait Prepare: Send + Sync {
    async fn prepare(&self, redis: &mut Connection) -> RedisResult<()>;

    /// Requests use it now, and from time to time after that: what was done without it meanwhile. At least a `PING`.
    async fn prepared(&self, redis: &mut Connection) -> RedisResult<()>;
}

/// The background task that keeps the connections.
#[derive(Clone)]
pub struct Keeper {
    pub redis: Arc<Redis>,
    pub prepare: Arc<dyn Prepare>,
    pub threads: Threads,
}

impl Redis {
    pub(super) fn new(
        loops: usize,
        topology: Arc<Topology>,
        health: Arc<RedisHealth>,
        metrics: &RedisMetrics,
    ) -> Self {
        Self {
            links: (0..=loops).map(|_| Link::default()).collect(),
            topology,
            health,
            refused: metrics.commands_refused.clone(),
            late: metrics.commands_late.clone(),
            reconnects: metrics.command_reconnects.clone(),
        }
    }

    /// One that never answers.
    #[cfg(test)]
    pub fn that_is_away() -> Self {
        let metrics =
            crate::observe::registry::Metrics::new().expect("the metrics have names of their own");
        let config = super::RedisConfig {
            host: Some("127.0.0.1".to_owned()),
            ..Default::default()
        };
        let topology = config.topology(&mut crate::config::Problems::default());
        let topology = topology.expect("it has a host");
        Self::new(0, Arc::new(topology), Arc::default(), &metrics.redis)
    }

    /// Sends a command and waits for its answer, for as long as the limit.
    ///
    /// # Errors
    /// When there is no connection, at once; and when there is no answer in time.
    pub async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Away> {
        let link = self.link();
        let Some(connection) = link.connection.load_full() else {
            return Err(Away);
        };
        let mut connection = Connection::clone(&connection);
        let limit = self.topology.command_timeout;
        let begun = Instant::now();
        // Of this thread's own clock: when it has been busy, an answer that is there is read before the time is looked at.
        let answer = tokio_timeout(limit, command.query_async(&mut connection)).await;
        match answer {
            Ok(Ok(answer)) => {
                if link.complained.load(Relaxed) {
                    link.complained.store(false, Relaxed);
                }
                Ok(answer)
            }
            Ok(Err(e)) => {
                self.refused.inc();
                if is_for_another(&e) {
                    self.lose(link);
                }
                if !link.complained.swap(true, Relaxed) {
                    log::warn!("redis refuses what a request needs, it goes on without: {e}");
                }
                Err(Away)
            }
            Err(_) => {
                self.late.inc();
                // A thread that was held up says nothing about Redis: its connection is tried by the next PING.
                if begun.elapsed() < limit + HELD_UP {
                    self.lose(link);
                }
                Err(Away)
            }
        }
    }

    /// The time (milliseconds since 1970) where this key is: what is said in that time is not done later.
    ///
    /// # Errors
    /// As [`Redis::run`].
    pub async fn time(&self, key: &str) -> Result<u64, Away> {
        let mut clock = redis::cmd("EVAL");
        clock.arg("return redis.call('TIME')").arg(1).arg(key);
        let (seconds, micros): (u64, u64) = self.run(&clock).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// As [`Topology::identity`].
    pub fn identity(&self) -> String {
        self.topology.identity()
    }

    /// The keys of one command must lie in one slot.
    pub fn has_slots(&self) -> bool {
        self.topology.has_slots()
    }

    fn lose(&self, link: &Link) {
        if link.connection.swap(None).is_some() {
            self.observe();
            link.lost.notify_one();
        }
    }

    /// Says how it is with the connections.
    fn observe(&self) {
        self.health.commands.set(|| {
            let mut links = self.links.iter();
            match links.all(|link| link.connection.load().is_some()) {
                true => RedisState::Ok,
                false => RedisState::Away,
            }
        });
    }

    /// The time that one command has.
    pub fn limit(&self) -> Duration {
        self.topology.command_timeout
    }

    /// Each thread has its own, so that their answers do not wait for each other, nor any request for what is read in bulk.
    fn link(&self) -> &Link {
        &self.links[threads::place() % self.links.len()]
    }
}

/// Whether a new connection would hear something else: scripts are loaded with it, and it is to who is the master then.
/// Who is full or busy says the same to all.
fn is_for_another(error: &RedisError) -> bool {
    matches!(
        error.code(),
        None | Some("NOSCRIPT" | "READONLY" | "MOVED" | "CLUSTERDOWN")
    )
}

/// A time-out that comes so much later than it should tells more of this process than of Redis.
const HELD_UP: Duration = Duration::from_millis(15);

// === impl Keeper ===

impl Keeper {
    /// Connects, and watches over the connection until it is lost.
    async fn keep(&self, link: &Link) -> RedisResult<()> {
        let topology = &self.redis.topology;
        // A network that drops what we send would let one try outlast its return.
        let patience = topology.connect_timeout.min(LONGEST_CONNECT);
        let mut redis = topology.connect(patience).await?;
        timeout(topology.connect_timeout, self.prepare.prepare(&mut redis))
            .await
            .map_err(|_| silent())??;
        link.connection.store(Some(Arc::new(redis.clone())));
        self.redis.observe();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = link.lost.notified() => return Ok(()),
                () = tokio::time::sleep(pause) => {
                    timeout(patience, self.prepare.prepared(&mut redis))
                        .await
                        .map_err(|_| silent())??;
                    pause = PING_EVERY;
                }
            }
        }
    }
}

impl Keeper {
    /// Keeps one connection until the process ends.
    async fn keep_always(self, place: usize) {
        let link = &self.redis.links[place];
        loop {
            if let Err(e) = self.keep(link).await {
                log::debug!("redis: {e}");
            }
            link.connection.store(None);
            self.redis.observe();
            tokio::time::sleep(RECONNECT).await;
            self.redis.reconnects.inc();
        }
    }
}

#[async_trait]
impl BackgroundService for Keeper {
    async fn start(&self, _: ShutdownWatch) {
        let places = 0..self.redis.links.len();
        let kept: io::Result<Vec<_>> = places
            .map(|place| {
                let keep = self.clone().keep_always(place);
                // What a thread asks at each turn has its answers there: they wake nobody else.
                Ok(match place.checked_sub(1) {
                    Some(number) => self.threads.handle(number)?.spawn(keep),
                    None => tokio::spawn(keep),
                })
            })
            .collect();
        let Ok(kept) = kept else {
            return log::error!("redis: there is no thread for its connections");
        };
        futures::future::join_all(kept).await;
    }
}
