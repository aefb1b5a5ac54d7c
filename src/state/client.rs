//! Commands to Redis on the path of a request: a few multiplexed connections, a hard time for each command, and no wait
//! at all while Redis is away.
//!
//! A command that fails or takes too long closes its connection for all: from then on every command fails at once, until
//! the background task has a connection again that answers. So a Redis that is a black hole costs the requests of one
//! moment their time limit, and the others nothing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pingora_timeout::timeout;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisError, RedisResult};
use tokio::sync::Notify;

/// The connections.
pub struct Redis {
    links: Box<[Link]>,
    limit: Duration,
}

struct Link {
    connection: ArcSwapOption<MultiplexedConnection>,
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
    async fn prepare(&self, redis: &mut MultiplexedConnection) -> RedisResult<()>;

    /// Requests use it now, and from time to time after that: what was done without it meanwhile. At least a `PING`.
    async fn prepared(&self, redis: &mut MultiplexedConnection) -> RedisResult<()>;
}

/// The background task that keeps the connections.
pub struct Keeper {
    pub redis: Arc<Redis>,
    pub client: Client,
    pub connect_timeout: Duration,
    pub prepare: Arc<dyn Prepare>,
}

/// The pause between two tries to connect, and the longest of these: who is back is taken up again within two seconds.
const RECONNECT: Duration = Duration::from_millis(500);
const LONGEST_CONNECT: Duration = Duration::from_secs(1);

/// A connection that died silently is noticed after one of these, also when no request comes.
const PING_EVERY: Duration = Duration::from_secs(1);

impl Redis {
    pub fn new(connections: usize, limit: Duration) -> Self {
        Self {
            links: (0..connections.max(1)).map(|_| Link::default()).collect(),
            limit,
        }
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
        let mut connection = MultiplexedConnection::clone(&connection);
        let answer = timeout(self.limit, command.query_async(&mut connection)).await;
        match answer {
            Ok(Ok(answer)) => {
                if link.complained.load(Relaxed) {
                    link.complained.store(false, Relaxed);
                }
                Ok(answer)
            }
            Ok(Err(e)) => {
                // Redis is there and says no: full, read-only, busy. Another connection would hear the same; but scripts
                // are loaded with a new one.
                if e.code().is_none() || e.code() == Some("NOSCRIPT") {
                    link.lose();
                }
                if !link.complained.swap(true, Relaxed) {
                    log::warn!("redis refuses what a request needs, it goes on without: {e}");
                }
                Err(Away)
            }
            Err(_) => {
                link.lose();
                Err(Away)
            }
        }
    }

    /// Each thread has its own, so that their answers do not wait for each other.
    fn link(&self) -> &Link {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: usize = THREADS.fetch_add(1, Relaxed);
        }
        &self.links[THREAD.with(|thread| *thread) % self.links.len()]
    }
}

impl Default for Link {
    fn default() -> Self {
        Self {
            connection: ArcSwapOption::empty(),
            lost: Notify::new(),
            complained: AtomicBool::new(false),
        }
    }
}

impl Link {
    fn lose(&self) {
        if self.connection.swap(None).is_some() {
            self.lost.notify_one();
        }
    }
}

// === impl Keeper ===

impl Keeper {
    /// Connects, and watches over the connection until it is lost.
    async fn keep(&self, link: &Link) -> RedisResult<()> {
        // A network that drops what we send would let one try outlast its return.
        let patience = self.connect_timeout.min(LONGEST_CONNECT);
        // The time of a command is ours to take: another timer for each would be waste.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(patience))
            .set_response_timeout(None);
        let mut redis = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        timeout(self.connect_timeout, self.prepare.prepare(&mut redis))
            .await
            .map_err(|_| silent())??;
        link.connection.store(Some(Arc::new(redis.clone())));
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

fn silent() -> RedisError {
    RedisError::from(io::Error::from(io::ErrorKind::TimedOut))
}

#[async_trait]
impl BackgroundService for Keeper {
    async fn start(&self, shutdown: ShutdownWatch) {
        let kept = self.redis.links.iter().map(|link| {
            let mut shutdown = shutdown.clone();
            async move {
                loop {
                    tokio::select! {
                        kept = self.keep(link) => if let Err(e) = kept {
                            log::debug!("redis: {e}");
                        },
                        _ = shutdown.changed() => return,
                    }
                    link.connection.store(None);
                    tokio::time::sleep(RECONNECT).await;
                }
            }
        });
        futures::future::join_all(kept).await;
    }
}
