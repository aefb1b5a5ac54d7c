//! Follows what others change in Redis: every revocation, and what this process remembers of the rest.
//!
//! A full read of the revocations at connect, then every change as Redis pushes it (client-side tracking in broadcast
//! mode, RESP3). A lost connection is taken up again with a full read, and what was remembered is forgotten.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo,
    PushKind, RedisConnectionInfo, RedisResult, Value,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::changes::Remembers;
use super::keys::{CACHES, FORGET, REVOCATIONS, TRACKED};
use super::revoked::Sets;
use super::{RedisHealth, RedisState, Revoked};
use crate::config::Secret;

/// The pause between two tries to connect.
const RECONNECT: Duration = Duration::from_secs(1);

/// A connection that died silently is noticed after one of these.
const PING_EVERY: Duration = Duration::from_secs(1);

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// The background task.
pub struct Follow {
    host: String,
    port: u16,
    password: Option<Secret>,
    db: i64,
    connect_timeout: Duration,
    revoked: Arc<Revoked>,
    pub(super) memories: Vec<Arc<dyn Remembers>>,
    health: Arc<RedisHealth>,
}

impl Follow {
    pub(super) fn new(
        host: String,
        port: u16,
        password: Option<Secret>,
        db: i64,
        connect_timeout: Duration,
        revoked: Arc<Revoked>,
        health: Arc<RedisHealth>,
    ) -> Self {
        Self {
            host,
            port,
            password,
            db,
            connect_timeout,
            revoked,
            memories: Vec::new(),
            health,
        }
    }

    /// Connects and follows until the connection is lost.
    async fn follow(&self) -> RedisResult<()> {
        let (mut redis, mut pushes) = self.connect().await?;
        self.read_all(&mut redis).await?;
        self.health.set(RedisState::Ok);
        log::info!(
            "revocations are followed in redis at {}:{}",
            self.host,
            self.port
        );
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                push = pushes.recv() => match push {
                    Some(PushInfo { kind: PushKind::Invalidate, data }) => self.take_up(&mut redis, data).await?,
                    Some(PushInfo { kind: PushKind::Message, data }) => self.take_out(&mut redis, data).await?,
                    Some(PushInfo { kind: PushKind::Disconnection, .. }) | None => return Ok(()),
                    Some(_) => {}
                },
                _ = ping.tick() => redis::cmd("PING").query_async::<()>(&mut redis).await?,
            }
        }
    }

    async fn connect(&self) -> RedisResult<(MultiplexedConnection, UnboundedReceiver<PushInfo>)> {
        let client = client(
            &self.host,
            self.port,
            self.password.as_ref(),
            self.db,
            ProtocolVersion::RESP3,
        )?;
        let (sender, pushes) = unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(ANSWER))
            .set_push_sender(sender);
        let mut redis = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in REVOCATIONS.iter().chain(&TRACKED) {
            tracking.arg("PREFIX").arg(prefix);
        }
        tracking.query_async::<()>(&mut redis).await?;
        redis.subscribe(FORGET).await?;
        Ok((redis, pushes))
    }

    /// Tracking is on already: a key written during the scan is pushed as well.
    async fn read_all(&self, redis: &mut MultiplexedConnection) -> RedisResult<()> {
        let mut sets = Sets::default();
        for prefix in REVOCATIONS {
            let mut cursor = 0u64;
            loop {
                let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                    .arg(cursor)
                    .arg("MATCH")
                    .arg(format!("{prefix}*"))
                    .arg("COUNT")
                    .arg(1000)
                    .query_async(redis)
                    .await?;
                for key in keys {
                    let value = value_of(redis, &key).await?;
                    sets.set(&key, value.as_deref());
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        self.revoked.replace(sets);
        for memory in &self.memories {
            memory.forget_all();
        }
        Ok(())
    }

    /// A push names keys, or nothing at all when the whole database was flushed.
    async fn take_up(
        &self,
        redis: &mut MultiplexedConnection,
        data: Vec<Value>,
    ) -> RedisResult<()> {
        let Some(Value::Array(keys)) = data.into_iter().next() else {
            return self.read_all(redis).await;
        };
        for key in keys {
            let Value::BulkString(key) = key else {
                continue;
            };
            if TRACKED
                .iter()
                .any(|prefix| key.starts_with(prefix.as_bytes()))
            {
                self.forget(&key);
                continue;
            }
            let value = value_of(redis, &key).await?;
            self.revoked.update(&key, value.as_deref());
        }
        Ok(())
    }

    /// Somebody says that a cached key is out of date.
    async fn take_out(
        &self,
        redis: &mut MultiplexedConnection,
        data: Vec<Value>,
    ) -> RedisResult<()> {
        let Some(Value::BulkString(key)) = data.into_iter().nth(1) else {
            return Ok(());
        };
        if CACHES
            .iter()
            .any(|prefix| key.starts_with(prefix.as_bytes()))
        {
            redis::cmd("DEL").arg(&key).query_async::<()>(redis).await?;
            self.forget(&key);
        }
        Ok(())
    }

    fn forget(&self, key: &[u8]) {
        for memory in &self.memories {
            memory.forget(key);
        }
    }
}

/// For connections to the configured server.
pub fn client(
    host: &str,
    port: u16,
    password: Option<&Secret>,
    db: i64,
    protocol: ProtocolVersion,
) -> RedisResult<Client> {
    let mut settings = RedisConnectionInfo::default()
        .set_db(db)
        .set_protocol(protocol);
    if let Some(password) = password {
        settings = settings.set_password(password.expose());
    }
    let address = ConnectionAddr::Tcp(host.to_owned(), port).into_connection_info()?;
    Client::open(address.set_redis_settings(settings))
}

/// A key of another type is there, too: it revokes, and its value is no time.
async fn value_of(redis: &mut MultiplexedConnection, key: &[u8]) -> RedisResult<Option<Vec<u8>>> {
    match redis::cmd("GET").arg(key).query_async(redis).await {
        Err(e) if e.code() == Some("WRONGTYPE") => Ok(Some(Vec::new())),
        outcome => outcome,
    }
}

#[async_trait]
impl BackgroundService for Follow {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut told = false;
        loop {
            let lost = tokio::select! {
                lost = self.follow() => lost,
                _ = shutdown.changed() => return,
            };
            // A redis that stays away is told of once.
            if self.health.get() == RedisState::Ok {
                told = false;
            }
            self.health.set(RedisState::Away);
            let why = lost
                .err()
                .map_or_else(|| "the connection was closed".to_owned(), |e| e.to_string());
            if !std::mem::replace(&mut told, true) {
                let Self { host, port, .. } = self;
                log::warn!(
                    "redis at {host}:{port} is away, the last known revocations hold: {why}"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(RECONNECT) => {}
                _ = shutdown.changed() => return,
            }
        }
    }
}
